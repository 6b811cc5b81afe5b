//! An artifact seen as the blobs that it is made of: what an image layout keeps, and not the files in them.
//!
//! Nothing is fetched and nothing is interpreted. Floor 4 opens such an artifact in place of the one it is made of where a mount
//! [shows blobs](crate::index::View).

use std::collections::HashSet;

use super::artifact::{Artifact, Family, LayerKind, Members, ModelLayer, Packaging};
use super::digest::Digest;
use super::manifest::Descriptor;

impl Artifact {
    /// Config and layers, those that are hidden too, each as one file of its stored bytes at [`path_of`] its digest; a blob that
    /// comes twice, once. The manifest itself is none of them.
    #[must_use]
    pub fn as_blobs(&self) -> Self {
        let config = self.config.iter().map(|config| (config, LayerKind::Unknown));
        let layers = self.layers.iter().map(|layer| (&layer.descriptor, layer.kind));
        let mut seen = HashSet::new();
        let blobs = config.chain(layers).filter(|(descriptor, _)| seen.insert(&descriptor.digest));
        let layers = blobs.map(|(descriptor, kind)| as_blob(descriptor, kind)).collect();
        Self { family: Family::Other, layers, warnings: Vec::new(), ..self.clone() }
    }
}

/// Where an image layout has a blob, below its folder `blobs`.
#[must_use]
pub fn path_of(digest: &Digest) -> String {
    format!("{}/{}", digest.algorithm().name(), digest.hex())
}

fn as_blob(descriptor: &Descriptor, kind: LayerKind) -> ModelLayer {
    ModelLayer {
        descriptor: descriptor.clone(),
        kind,
        packaging: Packaging::Raw,
        path: Some(path_of(&descriptor.digest)),
        metadata: None,
        hidden: false,
        members: Members::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::artifact::INDEX_KEY;
    use crate::oci::manifest::Manifest;

    fn descriptor(media_type: &str, content: &[u8], annotations: &[(&str, &str)]) -> Descriptor {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let size = content.len().try_into().unwrap();
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(content),
            size,
            annotations: annotations.collect(),
        }
    }

    #[test]
    fn every_blob_is_one_file_by_its_digest_however_it_is_packaged_and_whoever_it_is_for() {
        let layers = vec![
            descriptor("x.raw", b"weights", &[("org.cncf.model.filepath", "a/w.bin")]),
            descriptor("x.tar+gzip", b"archive", &[]),
            descriptor("y.raw", b"index", &[(INDEX_KEY, "v1")]),
            descriptor("x.raw", b"weights", &[("org.cncf.model.filepath", "again.bin")]),
        ];
        let config = Some(descriptor("application/json", b"{}", &[]));
        let artifact = Artifact::read(Manifest { config, layers, ..Manifest::default() }).unwrap();
        let blobs = artifact.as_blobs();
        let named = [&b"{}"[..], b"weights", b"archive", b"index"];
        let expected: Vec<_> = named.iter().map(|content| path_of(&Digest::of(content))).collect();
        let found: Vec<_> = blobs.visible().map(|layer| layer.path.clone().unwrap()).collect();
        assert_eq!(found, expected);
        assert!(blobs.visible().all(|layer| layer.packaging == Packaging::Raw));
        assert!(!blobs.is_layered());
    }
}
