//! Indexes as they are published, byte for byte: what was written once is read for ever, and written again the same.
//!
//! A file of `tests/fixtures/index-v1` never changes, and neither does its digest here: artifacts with such an index lie in
//! registries, and another form under the same version would be other digests for the same model.

use std::path::Path;

use bytes::Bytes;
use weightfs::index::format::{self, Encoded};
use weightfs::index::{
    Bound, CHUNK, ChunkDigest, Coding, Compression, Entry, EntryKind, ExtentId, Grid, Home, Index, Layer,
    Section, Spans,
};
use weightfs::oci::digest::{Algorithm, Hasher};
use weightfs::oci::{Blob, Digest};
use weightfs::range::{ContentRange, StoredRange};

/// An index in the making, with the bytes its layers have.
#[derive(Default)]
struct Made {
    index: Index,
    digests: Vec<Vec<ChunkDigest>>,
}

impl Made {
    /// A layer of these bytes, named by an algorithm's digest of them, with these files in it.
    fn layer(mut self, algorithm: Algorithm, bytes: &[u8], extents: &[(u64, u64)]) -> Self {
        let extents: Vec<_> =
            extents.iter().map(|(start, len)| ContentRange::at(*start, *len).unwrap()).collect();
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        let blob = Blob { digest: hasher.finish(), size: bytes.len().try_into().unwrap() };
        let within = extents.iter().filter(|extent| extent.end() <= bytes.len().try_into().unwrap());
        self.digests.push(within.flat_map(|extent| chunk_digests(slice(bytes, *extent))).collect());
        let media_type = String::new();
        let (coding, gaps) = (Coding::Stored, Vec::new());
        self.index.layers.push(Layer { blob, media_type, diff_id: None, coding, extents, gaps, bound: None });
        self
    }

    /// The last layer is compressed, with these sections.
    fn compressed(
        mut self,
        how: Compression,
        content: &[u8],
        table: &[u8],
        windows: Option<&'static [u8]>,
    ) -> Self {
        let layer = self.index.layers.last_mut().unwrap();
        let section = |bytes: Bytes| Section {
            home: Home::Repository(layer.blob.clone()),
            range: StoredRange::new(0, 0),
            digest: Digest::of(&bytes),
            bytes: Some(bytes),
        };
        let (table, checkpoints) =
            (section(table.to_vec().into()), windows.map(|windows| section(windows.into())));
        let size = u64::try_from(content.len()).unwrap();
        layer.coding = Coding::Spans(Spans { how, content: size, table, checkpoints });
        let digests = layer.extents.iter().flat_map(|extent| chunk_digests(slice(content, *extent)));
        *self.digests.last_mut().unwrap() = digests.collect();
        self
    }

    fn diff_id(mut self, diff_id: Digest) -> Self {
        self.index.layers.last_mut().unwrap().diff_id = Some(diff_id);
        self
    }

    /// A name of the last layer.
    fn entry(mut self, path: &str, mode: u32, mtime: i64, kind: EntryKind) -> Self {
        let (path, layer) = (path.to_owned(), self.index.layers.len() - 1);
        self.index.entries.push(Entry { path, kind, mode, mtime, layer });
        self
    }

    /// A file of the last layer; of no bytes where there is no such extent.
    fn file(self, path: &str, mode: u32, mtime: i64, extent: usize) -> Self {
        let layer = self.index.layers.len() - 1;
        let range = self.index.layers[layer].extents.get(extent);
        let id = range.map(|_| ExtentId { layer, extent });
        let size = range.map_or(0, |range| range.len());
        self.entry(path, mode, mtime, EntryKind::File { extent: id, size })
    }
}

fn slice(bytes: &[u8], range: ContentRange) -> &[u8] {
    &bytes[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()]
}

fn chunk_digests(content: &[u8]) -> Vec<ChunkDigest> {
    let grid = Grid::new(content.len().try_into().unwrap());
    (0..grid.chunks()).map(|chunk| ChunkDigest::of(slice(content, grid.range(chunk)))).collect()
}

fn filled(byte: u8, len: u64) -> Vec<u8> {
    vec![byte; usize::try_from(len).unwrap()]
}

const NONE: usize = usize::MAX;

/// Three files, a layer each: of several chunks, of one, of none.
fn raw() -> Made {
    Made::default()
        .layer(Algorithm::Sha256, &filled(1, 2 * CHUNK + 3), &[(0, 2 * CHUNK + 3)])
        .file("model-00001-of-00001.safetensors", 0o644, 1_735_689_600, 0)
        .layer(Algorithm::Sha256, b"{}", &[(0, 2)])
        .file("config/配置.json", 0, 0, 0)
        .layer(Algorithm::Sha256, b"", &[])
        .file("empty.txt", 0o600, -1, NONE)
}

/// A file, then an archive with a folder, files, one of them empty, one shown no more, and both kinds of link.
fn tar() -> Made {
    let archive =
        [filled(0, 1024), filled(2, CHUNK + 1), filled(0, 4095), filled(3, 9), filled(4, 7)].concat();
    let extents = [(1024, CHUNK + 1), (1024 + CHUNK + 1 + 4095, 9), (1024 + CHUNK + 1 + 4095 + 9, 7)];
    Made::default()
        .layer(Algorithm::Sha256, b"weights", &[(0, 7)])
        .file("w.gguf", 0o444, 1, 0)
        .layer(Algorithm::Sha256, &archive, &extents)
        .entry("sub", 0o2755, 1_735_689_600, EntryKind::Directory)
        .file("sub/a.bin", 0o640, 1_735_689_601, 0)
        .file("sub/empty", 0o644, 1_735_689_602, NONE)
        .entry("sub/up", 0o777, 1_735_689_603, EntryKind::Symlink("../w.gguf".to_owned()))
        .entry("again", 0o640, 1_735_689_604, EntryKind::HardLink("sub/a.bin".to_owned()))
        .file("b.bin", 0o7777, i64::MAX, 2)
}

/// A layer named by SHA-512 with a diffID of each algorithm, in its two forms.
fn sha512() -> Made {
    let mut long = Hasher::new(Algorithm::Sha512);
    long.update(b"stored");
    Made::default()
        .layer(Algorithm::Sha512, b"stored", &[(0, 6)])
        .diff_id(long.finish())
        .file("long", 0o644, 0, 0)
        .layer(Algorithm::Sha512, b"more", &[(0, 4)])
        .diff_id(Digest::of(b"more"))
        .file("short", 0o644, 0, 0)
}

/// An artifact of nothing but an empty file.
fn empty() -> Made {
    Made::default().layer(Algorithm::Sha256, b"", &[]).file("a", 0o644, 5, NONE)
}

/// A gzip layer of two members with checkpoints, one of nothing, and a zstd layer with a span that has no content.
fn compressed() -> Made {
    let content = [filled(0, 512), filled(5, 300_000), filled(0, 700), filled(6, 40)].concat();
    let rows: [u64; 6] = [0, 0, CHUNK, 90, CHUNK + 7, 590];
    let mut spans = [1_u64, 3].map(u64::to_le_bytes).concat();
    for (number, row) in rows.chunks(2).enumerate() {
        spans.extend(row.iter().flat_map(|number| number.to_le_bytes()));
        spans.extend(filled(number.try_into().unwrap(), 32));
    }
    Made::default()
        .layer(Algorithm::Sha256, &filled(7, 300_100), &[(512, 300_000), (301_212, 40)])
        .compressed(
            Compression::Gzip,
            &content,
            include_bytes!("../fixtures/gzip/spans.table"),
            Some(&[8; 1004]),
        )
        .diff_id(Digest::of(&content))
        .file("a.safetensors", 0o644, 1_735_689_600, 0)
        .file("b.json", 0o644, 1_735_689_600, 1)
        .layer(Algorithm::Sha256, b"no content", &[])
        .compressed(Compression::Gzip, b"", &[&[1][..], &[0; 63]].concat(), None)
        .file("empty", 0o644, 0, NONE)
        .layer(Algorithm::Sha256, &filled(9, 600), &[(0, CHUNK + 7)])
        .compressed(Compression::Zstd, &filled(9, CHUNK + 7), &spans, None)
        .file("c.bin", 0o644, 0, 0)
}

/// Each file of the fixtures with its SHA-256.
fn published() -> [(&'static str, Made, &'static str); 5] {
    [
        ("raw", raw(), "46a322d7a214d7b0097efa34d72cce47292aea68d8e07754d337ef7a74083202"),
        ("tar", tar(), "0e7faef350456dadd0ff0fd457311532973e58161a96d03c35651d9bf4812ff7"),
        ("sha512", sha512(), "870f7eb763a19131dcfc3118fd64b13a38313abb1a4a2a0f74a71f6361bb7d9f"),
        ("compressed", compressed(), "dbb76fbb1be6c7dbbb4edc86a55bbf3940a26b2abbb7856101765b581c463eda"),
        ("empty", empty(), "153be73374661bc9a570469c6af30124e23240912e03709a91f926473973f66a"),
    ]
}

fn encoded(made: &Made) -> Encoded {
    format::encode(&made.index, &made.digests).unwrap()
}

fn fixture(name: &str) -> std::io::Result<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/index-v1");
    std::fs::read(folder.join(format!("{name}.bin")))
}

#[test]
fn what_is_published_is_written_again_byte_for_byte_and_can_never_change() {
    for (name, made, digest) in published() {
        let encoded = encoded(&made);
        let written = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.bin"));
        if fixture(name).ok().as_deref() != Some(&encoded.bytes().unwrap()) {
            std::fs::write(&written, &encoded.bytes().unwrap()).unwrap();
            panic!(
                "the index {name:?} is not written as it was published (now: {}). What is published under a digest can \
                 never change: a new form is a new version, beside this one. Only a case that is new is copied to the \
                 fixtures.",
                written.display()
            );
        }
        let found = Digest::of(&encoded.bytes().unwrap()).to_string();
        assert_eq!(found, format!("sha256:{digest}"), "the fixture {name:?} is another than was published");
        assert_eq!(encoded.blob.digest.to_string(), found);
    }
}

#[test]
fn what_is_published_is_read_as_what_it_stands_for() {
    for (name, made, _) in published() {
        let bytes = Bytes::from(fixture(name).unwrap());
        let length = u64::from_le_bytes(*bytes[16..].first_chunk().unwrap());
        let head = bytes.slice(..usize::try_from(length).unwrap());
        let blob = Blob { digest: Digest::of(&bytes), size: bytes.len().try_into().unwrap() };
        let found = format::decode(&head, &blob).unwrap();
        assert_eq!(found.entries, made.index.entries, "{name}");
        assert_eq!(found.layers.len(), made.index.layers.len(), "{name}");
        for (number, (found, layer)) in found.layers.iter().zip(&made.index.layers).enumerate() {
            assert_eq!((&found.blob, &found.diff_id), (&layer.blob, &layer.diff_id), "{name} {number}");
            assert_eq!(found.extents, layer.extents, "{name} {number}");
            assert_eq!(sections(&bytes, &found.coding), sections(&bytes, &layer.coding), "{name} {number}");
            let Some(Bound { chunks: bound, .. }) = &found.bound else {
                assert!(layer.extents.is_empty(), "{name} {number}");
                continue;
            };
            let section = slice(&bytes, ContentRange::new(bound.range.start(), bound.range.end()));
            assert!(bound.digest.matches(section), "{name} {number}");
            let digests: Vec<u8> = made.digests[number].iter().flat_map(|digest| *digest.bytes()).collect();
            assert_eq!(section, digests, "{name} {number}");
        }
    }
}

/// How a layer is compressed, the size of its content, and the bytes of its sections, which have the digests they should.
fn sections(index: &[u8], coding: &Coding) -> Option<(Compression, u64, Vec<Vec<u8>>)> {
    let Coding::Spans(spans) = coding else { return None };
    let bytes = |section: &Section| {
        let range = ContentRange::new(section.range.start(), section.range.end());
        let bytes = section.bytes.as_deref().unwrap_or_else(|| slice(index, range));
        assert!(section.digest.matches(bytes));
        bytes.to_vec()
    };
    Some((
        spans.how,
        spans.content,
        [Some(&spans.table), spans.checkpoints.as_ref()].into_iter().flatten().map(bytes).collect(),
    ))
}

/// The smallest index there is, put together from docs/index-format.md by hand.
#[test]
fn the_form_is_the_one_that_the_document_draws() {
    let mut expected = Vec::new();
    expected.extend(b"weightfs");
    expected.extend([1, 0, 1, 20]);
    expected.extend([0; 4]);
    expected.extend((64 + 160 + 40 + 1_u64).to_le_bytes());
    for count in [1_u32, 0, 1, 0, 1] {
        expected.extend(count.to_le_bytes());
    }
    expected.extend([0; 20]);
    // The layer: sizes, counts, algorithms and coding, the SHA-256 of nothing.
    expected.extend([0; 8 + 8 + 4 + 4]);
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0]);
    expected.extend(Digest::of(b"").value());
    expected.extend([0; 32 + 64]);
    // The entry.
    expected.extend([0; 4]);
    expected.extend(0o644_u32.to_le_bytes());
    expected.extend(5_i64.to_le_bytes());
    for number in [0, u32::MAX, 0, 1, 0, 0] {
        expected.extend(number.to_le_bytes());
    }
    expected.extend(b"a");
    assert_eq!(encoded(&empty()).bytes().unwrap(), expected);
}
