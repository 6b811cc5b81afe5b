//! What containerd's client says of a layer that need not be downloaded: by labels, which an image's author has a hand in.
//!
//! Kubernetes' plugin of containerd and the stargz snapshotter's client have labels of their own, which say the same. All that is
//! taken from them is held to what the registry says before anything is made of it. Chains are named as the image
//! specification has it (config.md, "Layer ChainID").

use super::ledger::TARGET;
use super::record::Labels;
use crate::error::{Error, Kind, Result};
use crate::oci::{Digest, Place, Reference};

/// The labels of Kubernetes' plugin, then of the stargz snapshotter's client.
const IMAGES: [&str; 2] =
    ["containerd.io/snapshot/cri.image-ref", "containerd.io/snapshot/remote/stargz.reference"];
const LAYERS: [&str; 2] =
    ["containerd.io/snapshot/cri.layer-digest", "containerd.io/snapshot/remote/stargz.digest"];
const MANIFEST: &str = "containerd.io/snapshot/cri.manifest-digest";

/// A layer of an image that is to be there as a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// The chain that the layer and all below it are.
    pub(super) target: Digest,
    /// The image.
    pub(super) image: Reference,
    /// The layer.
    pub(super) layer: Digest,
}

impl Asked {
    /// What these labels ask for; `None` where they ask for an ordinary snapshot.
    ///
    /// # Errors
    /// `Invalid` where one of them can't be meant.
    pub(super) fn read(labels: &Labels) -> Result<Option<Self>> {
        let any = |keys: [&str; 2]| keys.iter().find_map(|key| labels.get(*key));
        let (Some(target), Some(image), Some(layer)) = (labels.get(TARGET), any(IMAGES), any(LAYERS)) else {
            return Ok(None);
        };
        let mut image: Reference = image.parse()?;
        if let Place::Layout { folder } = &image.place {
            let doing = format!("an image in the folder {} is not asked for here", folder.display());
            return Err(Error::new(Kind::Invalid, doing));
        }
        if let Some(manifest) = labels.get(MANIFEST) {
            image.digest = Some(manifest.parse()?);
        }
        Ok(Some(Self { target: target.parse()?, image, layer: layer.parse()? }))
    }
}

/// The chain of a layer with this content on the chain `below`.
pub(super) fn chain(below: Option<&Digest>, content: &Digest) -> Digest {
    match below {
        None => content.clone(),
        Some(below) => Digest::of(format!("{below} {content}").as_bytes()),
    }
}

/// The chain that a snapshot of this name is: containerd puts the namespace and a number before it.
pub(super) fn chain_of(name: &str) -> Option<Digest> {
    name.rsplit('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn both_clients_labels_mean_the_same() {
        let (target, layer, manifest) = (Digest::of(b"t"), Digest::of(b"l"), Digest::of(b"m"));
        let [target_text, layer_text, manifest_text] = [&target, &layer, &manifest].map(Digest::to_string);
        let stargz = labels(&[(TARGET, &target_text), (IMAGES[1], "r.io/a/b:v1"), (LAYERS[1], &layer_text)]);
        let expected = Asked { target, image: "r.io/a/b:v1".parse().unwrap(), layer };
        assert_eq!(Asked::read(&stargz).unwrap(), Some(expected.clone()));
        let kubernetes = labels(&[
            (TARGET, &target_text),
            (IMAGES[0], "r.io/a/b:v1"),
            (LAYERS[0], &layer_text),
            (MANIFEST, &manifest_text),
        ]);
        let image = Reference { digest: Some(manifest), ..expected.image.clone() };
        assert_eq!(Asked::read(&kubernetes).unwrap(), Some(Asked { image, ..expected }));
        for missing in [TARGET, IMAGES[1], LAYERS[1]] {
            let mut some = stargz.clone();
            some.remove(missing);
            assert_eq!(Asked::read(&some).unwrap(), None, "{missing}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let digest = Digest::of(b"t").to_string();
        for (target, image, layer) in [
            ("sha256:../../etc", "r.io/a/b", &*digest),
            (&*digest, "oci:/etc", &*digest),
            (&*digest, "--config=/etc/shadow", &*digest),
            (&*digest, "r.io/a/b", "latest"),
        ] {
            let labels = labels(&[(TARGET, target), (IMAGES[0], image), (LAYERS[0], layer)]);
            assert_eq!(Asked::read(&labels).unwrap_err().kind(), Kind::Invalid, "{target} {image} {layer}");
        }
    }

    /// The values of the image specification's own example would need its layers; these are of `printf 'A B' | sha256sum`.
    #[test]
    fn a_chain_is_the_digest_of_the_chain_below_and_the_content() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        assert_eq!(chain(None, &one), one);
        assert_eq!(chain(Some(&one), &two), Digest::of(format!("{one} {two}").as_bytes()));
        assert_eq!(chain_of(&format!("k8s.io/17/{one}")), Some(one.clone()));
        assert_eq!(chain_of(&one.to_string()), Some(one));
        assert_eq!(chain_of("default/3/extract-1-x"), None);
    }
}
