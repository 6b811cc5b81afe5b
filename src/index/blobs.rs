//! The index of an artifact's blobs as they are stored, where a mount shows those and not the files in them.
//!
//! Every blob is one file; nothing of any layer is read to list them. Called by floor 4 in place of [`find_in`](super::find_in).

use std::collections::HashMap;

use super::format::Head;
use super::{Bound, Coding, Index, Layer, find_with};
use crate::error::Result;
use crate::oci::{Artifact, Blob};
use crate::range::ContentRange;
use crate::repository::Repository;

/// What is shown of an artifact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum View {
    /// The files of the model.
    #[default]
    Files,
    /// The blobs of config and layers as they are stored, as `ALGORITHM/HEX` of their digests.
    Blobs,
}

/// The index of `blobs`, an artifact [seen as such](Artifact::as_blobs). What `head`, of the bound index of the artifact that it
/// was made of, says of a layer that is one file from its first byte to its last counts for the blob as well: the bytes are
/// the same, and so is the name they are kept under. Costs no request.
///
/// # Errors
/// `Unsupported` for blobs of more than 16 TiB.
pub async fn find_blobs(repository: &dyn Repository, blobs: &Artifact, head: Option<&Head>) -> Result<Index> {
    let mut index = find_with(repository, blobs, &|_| Vec::new(), None).await?;
    let whole: HashMap<&Blob, &Bound> =
        head.into_iter().flat_map(|head| &head.layers).filter_map(whole).collect();
    for layer in &mut index.layers {
        layer.bound = whole.get(&layer.blob).map(|bound| (*bound).clone());
    }
    Ok(index)
}

/// The blob and its chunks' digests, where these are counted from its first byte and cover it.
fn whole(layer: &Layer) -> Option<(&Blob, &Bound)> {
    let all = ContentRange::new(0, layer.blob.size);
    let is_one_file = matches!(layer.coding, Coding::Stored) && layer.extents.as_slice() == [all];
    layer.bound.as_ref().filter(|_| is_one_file).map(|bound| (&layer.blob, bound))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::{ChunkDigest, EntryKind, format};
    use crate::oci::artifact::INDEX_KEY;
    use crate::oci::manifest::{Descriptor, Manifest};
    use crate::repository::Memory;

    fn descriptor(repository: &Memory, media_type: &str, content: &[u8], key: &str) -> Descriptor {
        let Blob { digest, size } = repository.put(content.to_vec());
        let value = if key == INDEX_KEY { "v1" } else { "w.bin" };
        let annotations = [(key.to_owned(), value.to_owned())].into();
        Descriptor { media_type: media_type.to_owned(), digest, size, annotations }
    }

    #[tokio::test]
    async fn a_raw_layer_keeps_the_digests_of_its_chunks_and_no_other_blob_gets_any() {
        let repository = Memory::new();
        let layers = vec![
            descriptor(&repository, "x.raw", b"weights", "org.cncf.model.filepath"),
            descriptor(&repository, "y.raw", b"index", INDEX_KEY),
            descriptor(&repository, "x.raw", b"", "org.cncf.model.filepath"),
        ];
        let artifact = Artifact::read(Manifest { layers, ..Manifest::default() }).unwrap();
        let plain = find_with(&repository, &artifact, &|_| Vec::new(), None).await.unwrap();
        let digests = [vec![ChunkDigest::of(b"weights")], Vec::new()];
        let encoded = format::encode(&plain, &digests).unwrap();
        let bytes = encoded.bytes().unwrap();
        let head = bytes.slice(..usize::try_from(encoded.head.size).unwrap());
        let head = format::decode(&head, &encoded.blob).unwrap();
        let of_files = head.layers[0].bound.clone().unwrap();
        let index = find_blobs(&repository, &artifact.as_blobs(), Some(&head)).await.unwrap();
        let bound: Vec<_> = index.layers.iter().map(|layer| layer.bound.is_some()).collect();
        assert_eq!(bound, [true, false, false]);
        assert_eq!(index.layers[0].kept_as(), &of_files.kept_as, "kept once, however it is shown");
        let sizes: Vec<_> = index.entries.iter().map(|entry| entry.kind.clone()).collect();
        assert!(matches!(sizes[2], EntryKind::File { extent: None, size: 0 }), "{sizes:?}");
    }

    #[test]
    fn members_of_an_archive_say_nothing_of_the_blob_that_they_are_in() {
        let all = ContentRange::new(0, 1024);
        let layer = |extents: Vec<ContentRange>, coding: Coding| Layer {
            blob: Blob { digest: crate::oci::Digest::of(b"x"), size: 1024 },
            media_type: String::new(),
            diff_id: None,
            coding,
            extents,
            gaps: Vec::new(),
            bound: None,
        };
        assert!(whole(&layer(vec![all], Coding::Stored)).is_none(), "nothing is bound");
        assert!(whole(&layer(vec![ContentRange::new(512, 1024)], Coding::Stored)).is_none());
    }
}
