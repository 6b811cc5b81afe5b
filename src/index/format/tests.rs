//! Tests of the format: what goes in comes out, and what is damaged or made up is refused.

use super::*;
use crate::error::Kind;
use crate::index::{CHUNK, ChunkDigest, Coding, EntryKind, ExtentId, Grid, Index};

/// A layer of `size` bytes with these extents, as it would be found without an index.
fn layer(content: &str, size: u64, extents: &[(u64, u64)]) -> Layer {
    Layer {
        blob: Blob { digest: Digest::of(content.as_bytes()), size },
        media_type: String::new(),
        diff_id: None,
        coding: Coding::Stored,
        extents: extents.iter().map(|(start, len)| ContentRange::at(*start, *len).unwrap()).collect(),
        gaps: Vec::new(),
        bound: None,
    }
}

fn entry(layer: usize, path: &str, kind: EntryKind) -> Entry {
    Entry { path: path.to_owned(), kind, mode: 0o644, mtime: 1_735_689_600, layer }
}

fn file(layer: usize, path: &str, extent: usize, size: u64) -> Entry {
    entry(layer, path, EntryKind::File { extent: Some(ExtentId { layer, extent }), size })
}

fn empty(layer: usize, path: &str) -> Entry {
    entry(layer, path, EntryKind::File { extent: None, size: 0 })
}

/// Made-up digests, a different one for every chunk.
fn digests(index: &Index) -> Vec<Vec<ChunkDigest>> {
    let chunks = |extent: &ContentRange| 0..Grid::new(extent.len()).chunks();
    let digest = |layer: &Layer, extent: &ContentRange, chunk: u64| {
        ChunkDigest::of(format!("{} {extent} {chunk}", layer.blob.digest).as_bytes())
    };
    let of_layer = |layer: &Layer| {
        let each = layer.extents.iter().flat_map(|extent| chunks(extent).map(move |chunk| (extent, chunk)));
        each.map(|(extent, chunk)| digest(layer, extent, chunk)).collect()
    };
    index.layers.iter().map(of_layer).collect()
}

fn sample() -> Index {
    let mut layers = vec![
        layer("weights", 3 * CHUNK + 7, &[(0, 3 * CHUNK + 7)]),
        layer("archive", 8192, &[(512, 100), (2048, 600)]),
        layer("nothing", 0, &[]),
    ];
    layers[1].diff_id = Some(Digest::of(b"diffID"));
    let entries = vec![
        file(0, "model.safetensors", 0, 3 * CHUNK + 7),
        entry(1, "sub", EntryKind::Directory),
        file(1, "sub/a", 0, 100),
        empty(1, "sub/empty"),
        entry(1, "link", EntryKind::Symlink("sub/./a".to_owned())),
        entry(1, "hard", EntryKind::HardLink("sub/a".to_owned())),
        file(1, "b", 1, 600),
        empty(2, "void"),
    ];
    Index { entries, layers, warnings: Vec::new() }
}

fn head_of(encoded: &Encoded) -> Bytes {
    encoded.bytes.slice(..usize::try_from(encoded.head.size).unwrap())
}

#[test]
fn what_is_encoded_is_decoded_to_the_same() {
    let index = sample();
    let digests = digests(&index);
    let encoded = encode(&index, &digests).unwrap();
    assert!(encoded.blob.digest.matches(&encoded.bytes) && encoded.head.digest.matches(&head_of(&encoded)));
    let head = decode(&head_of(&encoded), &encoded.blob).unwrap();
    assert_eq!(head.entries, index.entries);
    for ((found, layer), digests) in head.layers.iter().zip(&index.layers).zip(&digests) {
        assert_eq!((&found.blob, &found.diff_id), (&layer.blob, &layer.diff_id));
        assert_eq!(found.extents, layer.extents);
        let Some(bound) = &found.bound else { return assert!(layer.extents.is_empty()) };
        assert_eq!(bound.blob, encoded.blob);
        let range =
            usize::try_from(bound.range.start()).unwrap()..usize::try_from(bound.range.end()).unwrap();
        let section = encoded.bytes.slice(range);
        assert!(bound.digest.matches(&section));
        let expected: Vec<u8> = digests.iter().flat_map(|digest| *digest.bytes()).collect();
        assert_eq!(section, expected);
    }
    let gaps: Vec<_> = head.layers[1].gaps.iter().map(|gap| (gap.range.start(), gap.range.end())).collect();
    assert_eq!(gaps, [(0, 512), (612, 2048), (2648, 8192)]);
    assert_eq!(head.encode().unwrap(), head_of(&encoded));
}

#[test]
fn too_few_or_too_many_digests_are_refused() {
    let index = sample();
    let mut wrong = digests(&index);
    wrong[1].pop();
    assert_eq!(encode(&index, &wrong).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(encode(&index, &wrong[..1]).unwrap_err().kind(), Kind::Invalid);
}
