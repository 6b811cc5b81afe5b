//! Tests of the format: what goes in comes out, and what is damaged or made up is refused.

use proptest::prelude::*;

use super::*;
use crate::error::Kind;
use crate::index::{
    Bound, CHUNK, ChunkDigest, Coding, Compression, EntryKind, ExtentId, Grid, Home, Index, Section, Spans,
};
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Descriptor};

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
    encoded.bytes().unwrap().slice(..usize::try_from(encoded.head.size).unwrap())
}

#[test]
fn what_is_encoded_is_decoded_to_the_same() {
    let index = sample();
    let digests = digests(&index);
    let encoded = encode(&index, &digests).unwrap();
    assert!(
        encoded.blob.digest.matches(&encoded.bytes().unwrap())
            && encoded.head.digest.matches(&head_of(&encoded))
    );
    let head = decode(&head_of(&encoded), &encoded.blob).unwrap();
    assert_eq!(head.entries, index.entries);
    for ((found, layer), digests) in head.layers.iter().zip(&index.layers).zip(&digests) {
        assert_eq!((&found.blob, &found.diff_id), (&layer.blob, &layer.diff_id));
        assert_eq!(found.extents, layer.extents);
        let Some(Bound { chunks: bound, .. }) = &found.bound else {
            return assert!(layer.extents.is_empty());
        };
        assert!(matches!(&bound.home, Home::Repository(blob) if *blob == encoded.blob));
        let range =
            usize::try_from(bound.range.start()).unwrap()..usize::try_from(bound.range.end()).unwrap();
        let section = encoded.bytes().unwrap().slice(range);
        assert!(bound.digest.matches(&section));
        let expected: Vec<u8> = digests.iter().flat_map(|digest| *digest.bytes()).collect();
        assert_eq!(section, expected);
    }
    let gaps: Vec<_> = head.layers[1].gaps.iter().map(|gap| (gap.range.start(), gap.range.end())).collect();
    assert_eq!(gaps, [(0, 512), (612, 2048), (2648, 8192)]);
    assert_eq!(head.encode().unwrap(), head_of(&encoded));
}

/// The layer as one that is compressed, with a table and checkpoints of these bytes.
fn compressed(
    mut layer: Layer,
    how: Compression,
    content: u64,
    table: Bytes,
    windows: Option<Bytes>,
) -> Layer {
    let section = |bytes: Bytes| Section {
        home: Home::Repository(layer.blob.clone()),
        range: StoredRange::new(0, 0),
        digest: Digest::of(&bytes),
        bytes: Some(bytes),
    };
    let (table, checkpoints) = (section(table), windows.map(section));
    layer.coding = Coding::Spans(Box::new(Spans { how, content, table, checkpoints }));
    layer
}

/// A gzip layer with checkpoints, one without, and a zstd layer without files.
fn compressed_sample() -> Index {
    let (gzip, zstd) = (Compression::Gzip, Compression::Zstd);
    let table = Bytes::from(vec![1; 64 + 2 * 56 + 32]);
    let with = compressed(
        layer("gz", 900, &[(512, CHUNK + 1), (CHUNK + 1024, 5)]),
        gzip,
        2 * CHUNK,
        table,
        Some("windows".into()),
    );
    let without = compressed(layer("gz2", 30, &[(0, 7)]), gzip, 7, vec![2; 64].into(), None);
    let empty = compressed(layer("zst", 9, &[]), zstd, 0, vec![3; 16 + 48].into(), None);
    let entries = vec![file(0, "a", 0, CHUNK + 1), file(0, "b", 1, 5), file(1, "c", 0, 7)];
    Index { entries, layers: vec![with, without, empty, layer("raw", 0, &[])], warnings: Vec::new() }
}

#[test]
fn spans_and_checkpoints_of_compressed_layers_come_back_with_their_content() {
    let index = compressed_sample();
    let encoded = encode(&index, &digests(&index)).unwrap();
    let (bytes, head) = (encoded.bytes().unwrap(), decode(&head_of(&encoded), &encoded.blob).unwrap());
    assert_eq!(head.encode().unwrap(), head_of(&encoded));
    assert_eq!(head.entries, index.entries);
    for (found, layer) in head.layers.iter().zip(&index.layers) {
        assert_eq!((found.content(), &found.extents), (layer.content(), &layer.extents));
        let (Coding::Spans(found), Coding::Spans(spans)) = (&found.coding, &layer.coding) else {
            assert!(matches!(layer.coding, Coding::Stored));
            continue;
        };
        assert_eq!((found.how, found.content), (spans.how, spans.content));
        let sections = [
            (Some(&found.table), Some(&spans.table)),
            (found.checkpoints.as_ref(), spans.checkpoints.as_ref()),
        ];
        for (found, section) in sections {
            assert_eq!(found.is_some(), section.is_some());
            let (Some(found), Some(section)) = (found, section) else { continue };
            let range =
                usize::try_from(found.range.start()).unwrap()..usize::try_from(found.range.end()).unwrap();
            assert_eq!(
                (&bytes[range], &found.digest),
                (&section.bytes.as_ref().unwrap()[..], &section.digest)
            );
        }
    }
    let gaps: Vec<_> = head.layers[0].gaps.iter().map(|gap| (gap.range.start(), gap.range.end())).collect();
    assert_eq!(gaps, [(0, 512), (CHUNK + 513, CHUNK + 1024), (CHUNK + 1029, 2 * CHUNK)]);
}

#[test]
fn an_index_in_a_file_is_published_as_one_in_memory() {
    let index = compressed_sample();
    let expected = encode(&index, &digests(&index)).unwrap();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"before windows after").unwrap();
    let mut of_file = index.clone();
    let Coding::Spans(spans) = &mut of_file.layers[0].coding else { panic!("not compressed") };
    let checkpoints = spans.checkpoints.as_mut().unwrap();
    (checkpoints.home, checkpoints.bytes) = (Home::File(file.into()), None);
    checkpoints.range = StoredRange::new(7, 14);
    let found = encode(&of_file, &digests(&index)).unwrap();
    assert_eq!((found.bytes().unwrap(), found.blob), (expected.bytes().unwrap(), expected.blob));
}

#[test]
fn spans_that_are_not_here_or_not_meant_are_not_written() {
    let changed = |change: fn(&mut Spans)| {
        let mut index = compressed_sample();
        let Coding::Spans(spans) = &mut index.layers[0].coding else { panic!("not compressed") };
        change(spans);
        encode(&index, &digests(&index)).unwrap_err()
    };
    assert_eq!(changed(|spans| spans.table.bytes = None).kind(), Kind::Unsupported);
    let short = |spans: &mut Spans| spans.table.bytes = Some(vec![0; 63].into());
    assert!(changed(short).to_string().contains("63 bytes"));
    let none = |spans: &mut Spans| spans.checkpoints.as_mut().unwrap().bytes = Some(Bytes::new());
    assert!(changed(none).to_string().contains("no use"));
    assert!(changed(|spans| spans.how = Compression::Zstd).to_string().contains("no use"));
    assert!(changed(|spans| spans.content = 9).to_string().contains("beyond the end"));
    let mut index = compressed_sample();
    let layers = vec![Descriptor {
        media_type: "a.tar+gzip".to_owned(),
        digest: index.layers[0].blob.digest.clone(),
        size: 1,
        annotations: std::collections::BTreeMap::new(),
    }];
    let artifact = Artifact::read(Manifest { layers, ..Manifest::default() }).unwrap();
    index.layers[0].coding = Coding::Streamed(Arc::new(artifact.layers[0].clone()), None);
    assert_eq!(encode(&index, &digests(&index)).unwrap_err().kind(), Kind::Unsupported);
}

#[test]
fn too_few_or_too_many_digests_are_refused() {
    let index = sample();
    let mut wrong = digests(&index);
    wrong[1].pop();
    assert_eq!(encode(&index, &wrong).unwrap_err().kind(), Kind::Invalid);
    assert_eq!(encode(&index, &wrong[..1]).unwrap_err().kind(), Kind::Invalid);
}

/// An index of each thing that an index can hold.
fn every_field() -> (Bytes, Blob) {
    let mut index = sample();
    let mut long = Hasher::new(Algorithm::Sha512);
    long.update(b"long");
    index.layers[0].blob.digest = long.finish();
    let encoded = encode(&index, &digests(&index)).unwrap();
    (head_of(&encoded), encoded.blob)
}

/// Decodes, with the blob's size as given and as the head's own sections would have it; what is taken must be given back
/// byte for byte.
fn refused_or_canonical(bytes: &[u8], blob: &Blob) {
    let head = Bytes::copy_from_slice(bytes);
    let sizes = [Some(blob.size), said_size(bytes)];
    for size in sizes.into_iter().flatten() {
        let blob = Blob { digest: blob.digest.clone(), size };
        match decode(&head, &blob) {
            Ok(found) => assert_eq!(found.encode().unwrap(), head),
            Err(error) => assert!(matches!(error.kind(), Kind::Invalid | Kind::Unsupported), "{error:?}"),
        }
    }
}

/// Where the last section ends, by its record.
fn said_size(head: &[u8]) -> Option<u64> {
    let field = |at: usize| Some(u32::from_le_bytes(*head.get(at..)?.first_chunk()?));
    let rows = |at, size: usize| usize::try_from(field(at)?).ok()?.checked_mul(size);
    let end = 64 + rows(24, 160)? + rows(28, 16)? + rows(32, 40)? + rows(36, 64)?;
    let record = head.get(end.checked_sub(64)?..end).filter(|_| field(36) > Some(0))?;
    let number = |at: usize| Some(u64::from_le_bytes(*record.get(at..)?.first_chunk()?));
    number(8)?.checked_add(number(16)?)
}

#[test]
fn every_head_cut_short_or_drawn_out_is_refused() {
    let (head, blob) = every_field();
    for len in 0..head.len() {
        assert_eq!(decode(&head.slice(..len), &blob).unwrap_err().kind(), Kind::Invalid, "{len} bytes");
    }
    let longer = [&head[..], &[0]].concat();
    assert_eq!(decode(&longer.into(), &blob).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn every_byte_of_a_head_is_checked_or_means_something() {
    let index = compressed_sample();
    let compressed = encode(&index, &digests(&index)).unwrap();
    flip_every_byte(&head_of(&compressed), &compressed.blob);
    let (head, blob) = every_field();
    flip_every_byte(&head, &blob);
}

fn flip_every_byte(head: &[u8], blob: &Blob) {
    for at in 0..head.len() {
        for flip in [0x01, 0x02, 0x10, 0x80, 0xff] {
            let mut wrong = head.to_vec();
            wrong[at] ^= flip;
            refused_or_canonical(&wrong, blob);
        }
    }
}

/// What is said of a head whose bytes at `at` are these.
fn refusal(at: usize, bytes: &[u8]) -> (Kind, String) {
    let (head, blob) = every_field();
    let mut wrong = head.to_vec();
    wrong[at..at + bytes.len()].copy_from_slice(bytes);
    let error = decode(&wrong.into(), &blob).unwrap_err();
    (error.kind(), error.to_string())
}

#[test]
fn each_rule_of_the_document_is_held_and_named() {
    // Three layers, three extents, eight entries, two sections.
    let extents = 64 + 3 * 160;
    let entries = extents + 3 * 16;
    let sections = entries + 8 * 40;
    let text = sections + 2 * 64;
    let (invalid, unsupported) = (Kind::Invalid, Kind::Unsupported);
    let mut wrong = Vec::new();
    for (at, bytes, kind, part) in [
        (0, &b"W"[..], invalid, "does not begin"),
        (8, &[2], unsupported, "version 2"),
        (10, &[2], unsupported, "algorithm 2"),
        (11, &[21], unsupported, "2^21"),
        (15, &[1], invalid, "reserved"),
        (16, &[0, 0], invalid, "says"),
        (24, &[0xff; 4], invalid, "layers"),
        (28, &[0xff; 4], invalid, "extents"),
        (32, &[0xff; 4], invalid, "entries"),
        (36, &[0xff; 4], invalid, "sections"),
        (40, &[0xff; 4], invalid, "text"),
        (63, &[1], invalid, "reserved"),
        (64, &[9], invalid, "stored"),
        (64 + 16, &[0], invalid, "digests"),
        (64 + 16, &[9], invalid, "tables"),
        (64 + 20, &[0], invalid, "chunk digests"),
        (64 + 20, &[9], invalid, "tables"),
        (64 + 24, &[3], invalid, "algorithm"),
        (64 + 24, &[1], invalid, "filled up"),
        (64 + 26, &[1], invalid, "has no spans"),
        (64 + 26, &[2], invalid, "has no spans"),
        (64 + 26, &[3], unsupported, "coding 3"),
        (64 + 31, &[1], invalid, "reserved"),
        (64 + 160 + 96 + 32, &[1], invalid, "filled up"),
        (64 + 96, &[1], invalid, "0 is no algorithm"),
        (extents + 8, &[0; 8], invalid, "empty"),
        (extents + 8, &[0xff; 8], invalid, "beyond"),
        (extents + 16 + 9, &[0x10], invalid, "out of order"),
        (entries + 40, &[8], invalid, "kind 8"),
        (entries, &[1], invalid, "is no file"),
        (entries + 1, &[1], invalid, "reserved"),
        (entries + 4, &[0, 0x10], invalid, "permission"),
        (entries + 16, &[3], invalid, "layer 3"),
        (entries + 2 * 40 + 16, &[0], invalid, "layer 0"),
        (entries + 20, &[1], invalid, "an extent that is not there"),
        (entries + 24, &[1], invalid, "text"),
        (entries + 28, &[0xff; 4], invalid, "text"),
        (entries + 32, &[1], invalid, "no link"),
        (sections, &[2, 0], invalid, "is not compressed"),
        (sections, &[3, 0], invalid, "is not compressed"),
        (sections, &[4, 0], unsupported, "kind 4"),
        (sections, &[0, 0], invalid, "kind 0"),
        (sections, &[0, 0x80], invalid, "no chunk digests"),
        (sections + 2, &[1], invalid, "reserved"),
        (sections + 8, &[1], invalid, "out of place"),
        (sections + 16, &[0], invalid, "chunk digests"),
        (sections + 16, &[0xff; 8], invalid, "out of place"),
        (sections + 24, &[1], invalid, "reserved"),
        (text, b"/", invalid, "absolute"),
        (text, b"\xff", invalid, "UTF-8"),
    ] {
        let (found, said) = refusal(at, bytes);
        if found != kind || !said.contains(part) {
            wrong.push(format!("byte {at} as {bytes:?}, {part}: {found:?} {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let (head, blob) = every_field();
    let larger = Blob { size: blob.size + 1, ..blob };
    assert!(decode(&head, &larger).unwrap_err().to_string().contains("sections end"));
}

#[test]
fn counts_are_held_to_their_limits_and_to_the_bytes_that_are_there() {
    for (at, limit) in [(24, 10_000_u32), (28, 2_000_000), (32, 2_000_000), (36, 40_000)] {
        assert!(refusal(at, &limit.to_le_bytes()).1.contains("too short"));
        assert!(refusal(at, &(limit + 1).to_le_bytes()).1.contains("more than"));
    }
}

#[test]
fn names_that_an_archive_may_not_have_an_index_may_not_have() {
    let wrong = |change: fn(&mut Index)| {
        let mut index = sample();
        change(&mut index);
        let error = encode(&index, &digests(&index)).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{error}");
        error.to_string()
    };
    for path in ["", "/a", "a/../b", "a//b", "./a", "a\0"] {
        let mut index = sample();
        index.entries[0].path = path.to_owned();
        let error = encode(&index, &digests(&index)).unwrap_err();
        assert!(error.to_string().contains("refused path"), "{error}");
    }
    let nul = |index: &mut Index| index.entries[4].kind = EntryKind::Symlink("a\0b".to_owned());
    assert!(wrong(nul).contains("symbolic"));
    let up = |index: &mut Index| index.entries[5].kind = EntryKind::HardLink("../x".to_owned());
    assert!(wrong(up).contains("refused path"));
    assert!(wrong(|index| index.entries[6].path = "sub/a".to_owned()).contains("twice"));
    assert!(wrong(|index| index.entries.swap(2, 6)).contains("not its own"));
    assert!(wrong(|index| index.entries.swap(0, 1)).contains("order"));
    assert!(wrong(|index| index.entries[0].mode = 0o10_644).contains("permission"));
    assert!(wrong(|index| index.entries[6] = file(1, "b", 0, 100)).contains("not its own"));
    assert!(wrong(|index| index.entries[6] = file(1, "b", 1, 100)).contains("extents"));
    assert!(wrong(|index| index.entries[3] = file(1, "sub/empty", 9, 1)).contains("extent"));
    assert!(wrong(|index| index.layers[1].extents.swap(0, 1)).contains("out of order"));
    assert!(wrong(|index| index.layers[1].blob.size = 2500).contains("beyond"));
}

#[test]
fn more_than_an_index_holds_is_not_written() {
    let mut index = Index { layers: vec![layer("x", 0, &[]); wire::LAYER_LIMIT], ..Index::default() };
    let encoded = encode(&index, &vec![vec![]; wire::LAYER_LIMIT]).unwrap();
    assert_eq!(encoded.bytes().unwrap().len(), 64 + 160 * wire::LAYER_LIMIT);
    index.layers.push(layer("x", 0, &[]));
    let error = encode(&index, &vec![vec![]; wire::LAYER_LIMIT + 1]).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("10001 layers"), "{error}");
}

#[test]
fn sections_that_need_not_be_known_are_passed_over_and_kept_in_order() {
    let index = sample();
    let encoded = encode(&index, &digests(&index)).unwrap();
    let mut head = decode(&head_of(&encoded), &encoded.blob).unwrap();
    let other = |kind, len| PassedOver {
        layer: 1,
        kind,
        range: StoredRange::new(0, len),
        digest: Digest::of(b"section"),
    };
    let with = |head: &mut Head, others: Vec<PassedOver>| {
        let len = others.iter().map(|other| other.range.len()).sum::<u64>();
        let records = u64::try_from(others.len()).unwrap() * 64;
        head.passed_over = others;
        let size = encoded.blob.size + records + len;
        decode(&head.encode().unwrap(), &Blob { digest: encoded.blob.digest.clone(), size })
    };
    let found = with(&mut head, vec![other(0x8001, 5), other(0x8005, 0)]).unwrap();
    let kinds: Vec<_> = found.passed_over.iter().map(|other| (other.kind, other.range.len())).collect();
    assert_eq!(kinds, [(0x8001, 5), (0x8005, 0)]);
    assert_eq!(found.entries, index.entries);
    for others in [vec![other(0x8005, 0), other(0x8001, 0)], vec![other(0x8001, 0); 2]] {
        assert_eq!(with(&mut head, others).unwrap_err().kind(), Kind::Invalid);
    }
    for kind in [4, 0x7fff] {
        assert_eq!(with(&mut head, vec![other(kind, 0)]).unwrap_err().kind(), Kind::Unsupported);
    }
}

/// One layer: its files as the bytes before each and its own, whether it has links, and its diffID.
type Made = (Vec<(u64, u64)>, bool, Option<bool>);

fn some_layers() -> impl Strategy<Value = Vec<Made>> {
    let len = prop_oneof![Just(0), Just(1), Just(CHUNK), Just(CHUNK + 1), 0..3 * CHUNK, 0..600_u64];
    let files = prop::collection::vec((0..2000_u64, len), 0..8);
    prop::collection::vec((files, any::<bool>(), any::<Option<bool>>()), 0..6)
}

fn made(layers: &[Made]) -> Index {
    let mut index = Index::default();
    for (number, (files, links, diff_id)) in layers.iter().enumerate() {
        let (mut at, mut extents) = (0, Vec::new());
        for (place, (gap, len)) in files.iter().enumerate() {
            let path = format!("d{}/é{place}", place % 2);
            at += gap;
            if *len == 0 {
                index.entries.push(empty(number, &path));
                continue;
            }
            index.entries.push(file(number, &path, extents.len(), *len));
            extents.push((at, *len));
            at += len;
        }
        if *links && !files.is_empty() {
            index.entries.push(entry(number, "d0/s", EntryKind::Symlink("../x".to_owned())));
            index.entries.push(entry(number, "hard", EntryKind::HardLink("d0/é0".to_owned())));
            index.entries.push(entry(number, "d0", EntryKind::Directory));
        }
        let mut layer = layer(&number.to_string(), at + u64::from(*links), &extents);
        layer.diff_id = diff_id.map(|long| {
            let mut hasher = Hasher::new(if long { Algorithm::Sha512 } else { Algorithm::Sha256 });
            hasher.update(&[1]);
            hasher.finish()
        });
        // Which of the codings it has follows from what was drawn already.
        let (content, odd) = (layer.blob.size, files.len() % 3);
        match odd {
            1 => {
                layer = compressed(
                    layer,
                    Compression::Gzip,
                    content,
                    vec![9; 64].into(),
                    links.then(|| "w".into()),
                )
            }
            2 => layer = compressed(layer, Compression::Zstd, content, vec![9; 16].into(), None),
            _ => {}
        }
        index.layers.push(layer);
    }
    index
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_index_comes_back_as_it_was(layers in some_layers()) {
        let index = made(&layers);
        let encoded = encode(&index, &digests(&index)).unwrap();
        let head = decode(&head_of(&encoded), &encoded.blob).unwrap();
        prop_assert_eq!(&head.entries, &index.entries);
        prop_assert_eq!(head.layers.len(), index.layers.len());
        for (found, layer) in head.layers.iter().zip(&index.layers) {
            prop_assert_eq!((&found.blob, &found.diff_id, &found.extents), (&layer.blob, &layer.diff_id, &layer.extents));
            let parts = found.gaps.iter().map(|gap| gap.range).chain(found.extents.iter().copied());
            prop_assert_eq!(parts.map(|range| range.len()).sum::<u64>(), layer.blob.size);
        }
        prop_assert_eq!(head.encode().unwrap(), head_of(&encoded));
    }

    #[test]
    fn what_anybody_makes_of_a_head_is_refused_or_the_one_form_of_what_it_says(
        layers in some_layers(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let index = made(&layers);
        let encoded = encode(&index, &digests(&index)).unwrap();
        let mut head = head_of(&encoded).to_vec();
        for (at, byte) in changes {
            let at = at.index(head.len());
            head[at] = byte;
        }
        if let Some(cut) = cut {
            head.truncate(cut.index(head.len()));
        }
        refused_or_canonical(&head, &encoded.blob);
    }

    #[test]
    fn bytes_that_never_were_an_index_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let blob = Blob { digest: Digest::of(b""), size: bytes.len().try_into().unwrap() };
        refused_or_canonical(&bytes, &blob);
        let (head, _) = every_field();
        refused_or_canonical(&[&head[..24], &bytes].concat(), &blob);
    }
}

#[test]
fn what_only_a_layer_of_an_image_has_comes_back_as_it_was() {
    let mut index = sample();
    let (layer, before) = (index.layers.len() - 1, index.entries.len());
    for (path, kind) in [
        ("gone", EntryKind::Whiteout),
        ("emptied", EntryKind::Opaque),
        ("gone", EntryKind::Directory),
        ("out", EntryKind::Symlink("/etc/../passwd".to_owned())),
        ("elsewhere", EntryKind::HardLink("of/a/lower/layer".to_owned())),
    ] {
        index.entries.push(entry(layer, path, kind));
    }
    let encoded = encode(&index, &digests(&index)).unwrap();
    let decoded = decode(&head_of(&encoded), &encoded.blob).unwrap();
    assert_eq!(decoded.entries[before..], index.entries[before..]);
    assert_eq!(decoded.encode().unwrap(), head_of(&encoded));
    index.entries.push(entry(layer, "", EntryKind::Opaque));
    assert_eq!(encode(&index, &digests(&index)).unwrap_err().kind(), Kind::Unsupported);
}
