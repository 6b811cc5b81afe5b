//! The diffIDs that an artifact's config gives: what whoever wrote it says the digests of its layers' content are.
//!
//! A disagreement is a warning, never proof, and never a failure: only the digest of stored bytes is pinned. Called by who opens a
//! model, and by who reads whole layers for an index.

use super::{Coding, Index};
use crate::oci::artifact::{INDEX_KEY, ModelLayer};
use crate::oci::{Artifact, Digest};

/// Notes the config's diffIDs in the layers, and says where one disagrees: where content is the stored bytes it
/// should be the layer's digest. Of other layers it is [compared](disagreement) by who reads all of one.
#[must_use]
pub fn note(index: &mut Index, artifact: &Artifact, diff_ids: &[Digest]) -> Vec<String> {
    let shown =
        described(artifact, diff_ids.len()).into_iter().zip(diff_ids).filter(|(layer, _)| !layer.hidden);
    let mut warnings = Vec::new();
    for (layer, (_, diff_id)) in index.layers.iter_mut().zip(shown) {
        let digest = &layer.blob.digest;
        let is_content = matches!(layer.coding, Coding::Stored);
        if is_content && diff_id != digest && diff_id.algorithm() == digest.algorithm() {
            warnings.push(said(digest, diff_id));
        }
        layer.diff_id = Some(diff_id.clone());
    }
    warnings
}

/// What to say of a layer whose content turned out to have the digest `found`, where its diffID is another.
#[must_use]
pub fn disagreement(layer: &Digest, diff_id: &Digest, found: &Digest) -> Option<String> {
    (diff_id != found).then(|| format!("{}: its content is {found}", said(layer, diff_id)))
}

fn said(layer: &Digest, diff_id: &Digest) -> String {
    format!("layer {layer}: the config's diffID for it is {diff_id}, ignored")
}

/// The layers that a config with `count` diffIDs describes: all, or all but the bound index, which may have been added
/// since, or those that are shown. None where it can't be told.
fn described(artifact: &Artifact, count: usize) -> Vec<&ModelLayer> {
    let all: Vec<_> = artifact.layers.iter().collect();
    let not_index = |layer: &&ModelLayer| !layer.descriptor.annotations.contains_key(INDEX_KEY);
    let without_index = artifact.layers.iter().filter(not_index).collect();
    let shown = artifact.visible().collect();
    [all, without_index, shown].into_iter().find(|layers| layers.len() == count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::oci::Descriptor;
    use crate::oci::manifest::Manifest;
    use crate::repository::Memory;

    fn layer(path: &str, content: u8) -> Descriptor {
        let annotations = [("org.cncf.model.filepath".to_owned(), path.to_owned())].into();
        let media_type = "application/vnd.cncf.model.weight.v1.raw".to_owned();
        Descriptor { media_type, digest: Digest::of(&[content]), size: 1, annotations }
    }

    #[test]
    fn a_diff_id_is_given_to_its_layer_and_one_that_disagrees_is_a_warning() {
        let mut layers = vec![layer("h", 0), layer("a", 1), layer("b", 2)];
        let mark = ("containerd.io/snapshot/nydus-bootstrap".to_owned(), "true".to_owned());
        layers[0].annotations.extend([mark]);
        let artifact = Artifact::read(Manifest { layers, ..Manifest::default() }).unwrap();
        let memory = Memory::new();
        let found = crate::index::find(&memory, &artifact, &|_| Vec::new()).now_or_never().unwrap().unwrap();
        let ids = [Digest::of(&[0]), Digest::of(&[1]), Digest::of(&[9]), Digest::of(&[7])];
        let mut with_index = artifact.clone();
        with_index.layers.push(with_index.layers[0].clone());
        with_index.layers[3].descriptor.annotations = [(INDEX_KEY.to_owned(), "v1".to_owned())].into();
        for (artifact, ids) in [
            (&artifact, &ids[..3]),
            (&artifact, &ids[1..3]),
            (&with_index, &ids[..]),
            (&with_index, &ids[..3]),
            (&with_index, &ids[1..3]),
        ] {
            let mut index = found.clone();
            let warnings = note(&mut index, artifact, ids);
            assert_eq!(index.layers[0].diff_id, Some(Digest::of(&[1])));
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].contains(&Digest::of(&[2]).to_string()), "{warnings:?}");
        }
        let mut index = found;
        assert!(note(&mut index, &artifact, &ids[..1]).is_empty());
        assert_eq!(index.layers[0].diff_id, None);
    }
}
