//! Which layers of an image a remote snapshot shows, decided from what the registry says of the image and what is known here.
//!
//! Only words. A snapshot's name says what is in it, and containerd takes one for another by that name alone, whatever image
//! asks for it: so it is only given to layers that are proved to be that. What a layer's content is, its own digest says where
//! it is not compressed.

use super::asked::{self, Asked};
use super::record::{Record, Remote};
use crate::oci::artifact::Packaging;
use crate::oci::{Artifact, Digest, Reference};

/// An image as the registry has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// With its manifest's digest.
    pub(super) reference: Reference,
    /// Its layers, the lowest first.
    pub(super) layers: Vec<Layer>,
    /// The digest of the head of its index, where its manifest pins one.
    pub(super) index: Option<Digest>,
}

/// A layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    /// Of its stored bytes.
    pub(super) digest: Digest,
    /// Of its content, where it is known.
    pub(super) content: Option<Digest>,
}

impl Image {
    /// The layers of `artifact`. What compressed ones hold is what `diff_ids` say, one for each layer; none where the image's word
    /// does not count.
    pub(super) fn of(reference: Reference, artifact: &Artifact, diff_ids: &[Digest]) -> Self {
        let count = artifact.visible().count();
        let said = |at: usize| diff_ids.get(at).filter(|_| diff_ids.len() == count).cloned();
        let layers = artifact.visible().enumerate().map(|(at, layer)| {
            let digest = layer.descriptor.digest.clone();
            let content = if layer.packaging == Packaging::Tar { Some(digest.clone()) } else { said(at) };
            Layer { digest, content }
        });
        let layers = layers.collect();
        let index = artifact.bound_index().ok().flatten().map(|index| index.head.digest);
        Self { reference, layers, index }
    }

    /// What is shown of the image as the snapshot that is asked for on those of `below`, the nearest first.
    ///
    /// # Errors
    /// Why it has to be downloaded.
    pub(super) fn plan(&self, asked: &Asked, below: &[Record]) -> Result<Remote, String> {
        let depth = below.len();
        let layer = self.layers.get(depth).filter(|layer| layer.digest == asked.layer);
        let layer = layer.ok_or_else(|| format!("{} is not layer {} of it", asked.layer, depth + 1))?;
        let content = layer.content.as_ref().ok_or_else(|| {
            format!("nothing proves what the compressed layer {} holds (serve.trust_diff_ids)", layer.digest)
        })?;
        let chain = match below.first() {
            None => None,
            Some(parent) => Some(
                asked::chain_of(&parent.name)
                    .ok_or_else(|| format!("the name {:?} of what it lies on says nothing", parent.name))?,
            ),
        };
        if asked::chain(chain.as_ref(), content) != asked.target {
            return Err(format!("layer {} is not what {} stands for", layer.digest, asked.target));
        }
        let first = self.first(below);
        let following = self.layers.iter().skip(depth + 1).take_while(|layer| layer.content.is_some());
        let layers = self.layers.iter().take(depth + 1).skip(first - 1);
        Ok(Remote {
            reference: self.reference.to_string(),
            first,
            layers: layers.map(|layer| layer.digest.clone()).collect(),
            top: depth + 1 + following.count(),
            // Of a part of the image it does not count.
            index: self.index.clone().filter(|_| depth + 1 == self.layers.len()),
        })
    }

    /// The lowest layer that can be shown with the one that lies on `below`: those that are shown already, where this image has
    /// the same.
    fn first(&self, below: &[Record]) -> usize {
        let depth = below.len();
        let parent = below.first().and_then(|parent| parent.remote.as_ref());
        let continued = parent.filter(|remote| {
            let own = self.layers.iter().take(depth).skip(remote.first.saturating_sub(1));
            remote.first >= 1 && remote.last() == depth && own.map(|layer| &layer.digest).eq(&remote.layers)
        });
        continued.map_or(depth + 1, |remote| remote.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::snapshots::asked::chain;
    use crate::serve::snapshots::record::Kind;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    /// Layers by name; one whose name begins with `z` is compressed.
    fn image(names: &[&str]) -> Image {
        let layer = |name: &&str| {
            let digest = digest(name);
            Layer { content: (!name.starts_with('z')).then(|| digest.clone()), digest }
        };
        let layers = names.iter().map(layer).collect();
        Image { reference: "r.io/a/b:v1".parse().unwrap(), layers, index: Some(digest("index")) }
    }

    fn chain_of(contents: &[&str]) -> Digest {
        let mut chain_of = None;
        for name in contents {
            chain_of = Some(chain(chain_of.as_ref(), &digest(name)));
        }
        chain_of.unwrap()
    }

    /// What is below the chain of `contents`, remote from `first` on; none where that is 0.
    fn below(contents: &[&str], first: usize) -> Vec<Record> {
        let record = |count: usize| {
            let name = format!("ns/{count}/{}", chain_of(&contents[..count]));
            let record = Record::new(count as u64, &name, "", Kind::Committed);
            let shown = if first > 0 && count >= first { &contents[first - 1..count] } else { &[] };
            let layers: Vec<_> = shown.iter().map(|name| digest(name)).collect();
            let remote = Remote { reference: "r".into(), first, layers, top: 9, index: None };
            Record { remote: Some(remote).filter(|remote| !remote.layers.is_empty()), ..record }
        };
        (1..=contents.len()).rev().map(record).collect()
    }

    fn plan(image: &Image, contents: &[&str], below: &[Record]) -> Result<(usize, usize, usize), String> {
        let layer = image.layers[contents.len() - 1].digest.clone();
        let asked = Asked { target: chain_of(contents), image: image.reference.clone(), layer };
        image.plan(&asked, below).map(|remote| (remote.first, remote.last(), remote.top))
    }

    #[test]
    fn layers_upon_one_another_are_shown_together_from_the_lowest_on() {
        let image = image(&["a", "b", "c"]);
        assert_eq!(plan(&image, &["a"], &[]), Ok((1, 1, 3)));
        assert_eq!(plan(&image, &["a", "b"], &below(&["a"], 1)), Ok((1, 2, 3)));
        assert_eq!(plan(&image, &["a", "b", "c"], &below(&["a", "b"], 1)), Ok((1, 3, 3)));
    }

    #[test]
    fn what_was_unpacked_stays_below_and_what_another_image_shows_is_gone_on_with_where_it_is_the_same() {
        let model = image(&["zbase", "b", "c", "zd"]);
        // containerd has unpacked the base, whose content has a digest of its own.
        assert_eq!(plan(&model, &["base", "b"], &below(&["base"], 0)), Ok((2, 2, 3)));
        assert_eq!(plan(&model, &["base", "b", "c"], &below(&["base", "b"], 2)), Ok((2, 3, 3)));
        let other = image(&["a", "b2", "c"]);
        let foreign = below(&["a", "b"], 1);
        let asked =
            Asked { target: chain_of(&["a", "b", "c"]), image: other.reference.clone(), layer: digest("c") };
        assert_eq!(other.plan(&asked, &foreign).unwrap().first, 3, "b2 is no b, though its content may be");
    }

    #[test]
    fn what_is_not_proved_to_be_what_it_is_asked_for_as_is_downloaded() {
        let (two, compressed) = (image(&["a", "b"]), image(&["a", "zb"]));
        let refused =
            |image: &Image, contents: &[&str], below: &[Record]| plan(image, contents, below).unwrap_err();
        assert!(refused(&two, &["b"], &[]).contains("stands for"));
        assert!(refused(&two, &["evil", "b"], &below(&["a"], 1)).contains("stands for"));
        assert!(refused(&compressed, &["a", "zb"], &below(&["a"], 1)).contains("compressed"));
        let asked = Asked { target: digest("b"), image: two.reference.clone(), layer: digest("b") };
        assert!(two.plan(&asked, &[]).unwrap_err().contains("is not layer 1"));
        assert!(two.plan(&asked, &below(&["a", "b"], 1)).unwrap_err().contains("is not layer 3"));
        let odd = [Record::new(1, "default/1/extract", "", Kind::Committed)];
        assert!(two.plan(&Asked { layer: digest("b"), ..asked }, &odd).unwrap_err().contains("says nothing"));
    }

    #[test]
    fn an_images_word_for_its_compressed_layers_counts_only_where_it_is_asked_for_and_complete() {
        let compressed = |_: usize| crate::oci::Descriptor {
            media_type: "application/vnd.docker.image.rootfs.diff.tar.gzip".to_owned(),
            digest: digest("z"),
            size: 1,
            annotations: Default::default(),
        };
        let manifest =
            crate::oci::manifest::Manifest { layers: (0..2).map(compressed).collect(), ..Default::default() };
        let artifact = Artifact::read(manifest).unwrap();
        let content = |said: &[Digest]| {
            let image = Image::of("r.io/a/b".parse().unwrap(), &artifact, said);
            image.layers.into_iter().map(|layer| layer.content).collect::<Vec<_>>()
        };
        assert_eq!(content(&[]), [None, None]);
        assert_eq!(content(&[digest("x")]), [None, None]);
        assert_eq!(content(&[digest("x"), digest("y")]), [Some(digest("x")), Some(digest("y"))]);
    }
}
