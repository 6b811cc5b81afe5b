//! Artifacts that bring their own chunk digests: a bound index written byte by byte as `docs/index-format.md` draws it.
//!
//! Uses nothing of the library but the bytes of files that are made as they are read, so that a mistake in its own writer or reader
//! cannot hide on both sides.

use std::io::Read;

use serde_json::{Value, json};

use super::pack::{self, Artifact, Blob, Content, File, Packing};

const CHUNK: u64 = 1 << 20;
/// What an entry without bytes has in place of its extent.
const NO_EXTENT: u32 = u32::MAX;

/// A layer as the head describes it: its digest and size, and the files in it with where each begins.
struct Described<'a> {
    digest: String,
    size: u64,
    files: Vec<(&'a File, u64)>,
}

/// The same artifact with a bound index as its last layer: of `files`, which were packed as `packing` says.
pub fn bind(artifact: &Artifact, files: &[File], packing: Packing) -> Artifact {
    let index = index(&described(artifact, files, packing));
    let mut manifest: Value = serde_json::from_slice(&artifact.manifest).unwrap();
    let blob = Blob { digest: pack::digest(&index.bytes), content: Content::Bytes(index.bytes.clone()) };
    manifest["layers"].as_array_mut().unwrap().push(json!({
        "mediaType": "application/vnd.cncf.model.doc.v1.raw",
        "digest": blob.digest,
        "size": index.bytes.len(),
        "annotations": {
            "org.cncf.model.filepath": ".weightfs/index",
            "dev.weightfs.index": "v1",
            "dev.weightfs.index.head.digest": pack::digest(&index.bytes[..index.head]),
            "dev.weightfs.index.head.size": index.head.to_string(),
        },
    }));
    let mut bound = artifact.clone();
    bound.blobs.insert(bound.blobs.len() - 1, blob);
    bound.manifest = manifest.to_string().into_bytes();
    bound
}

/// The same image of one layer, which is not compressed, with an index beside it that its manifest pins: of these files, and where
/// each begins in the layer.
pub fn pin(image: &Artifact, files: &[(File, u64)]) -> Artifact {
    let layer = &image.blobs[0];
    let files = files.iter().map(|(file, start)| (file, *start)).collect();
    let layer = Described { digest: layer.digest.clone(), size: layer.content.size(), files };
    let index = index(&[layer]);
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let digest = pack::digest(&index.bytes);
    manifest["annotations"] = json!({
        "dev.weightfs.index": "v1",
        "dev.weightfs.index.digest": digest,
        "dev.weightfs.index.size": index.bytes.len().to_string(),
        "dev.weightfs.index.head.digest": pack::digest(&index.bytes[..index.head]),
        "dev.weightfs.index.head.size": index.head.to_string(),
    });
    let mut pinned = image.clone();
    pinned.blobs.push(Blob { digest, content: Content::Bytes(index.bytes) });
    pinned.manifest = manifest.to_string().into_bytes();
    pinned
}

/// The digest of the index's blob: the last layer of a bound artifact.
pub fn index_digest(bound: &Artifact) -> String {
    bound.blobs[bound.blobs.len() - 2].digest.clone()
}

/// Where the sections begin in the index of a bound artifact.
pub fn head_size(bound: &Artifact) -> u64 {
    let manifest: Value = serde_json::from_slice(&bound.manifest).unwrap();
    let last = manifest["layers"].as_array().unwrap().last().unwrap();
    last["annotations"]["dev.weightfs.index.head.size"].as_str().unwrap().parse().unwrap()
}

/// For each file the digest of its layer, and where in that it begins.
pub fn places(artifact: &Artifact, files: &[File], packing: Packing) -> Vec<(String, u64)> {
    let layers = described(artifact, files, packing);
    let place = |layer: &Described<'_>| -> Vec<(String, u64)> {
        layer.files.iter().map(|(_, start)| (layer.digest.clone(), *start)).collect()
    };
    layers.iter().flat_map(place).collect()
}

fn described<'a>(artifact: &Artifact, files: &'a [File], packing: Packing) -> Vec<Described<'a>> {
    let describe = |blob: &Blob, files: Vec<(&'a File, u64)>| Described {
        digest: blob.digest.clone(),
        size: blob.content.size(),
        files,
    };
    match packing {
        Packing::OneTar => {
            let mut at = 0;
            let places = files.iter().map(|file| {
                let start = at + 512;
                at = start + file.content.size().next_multiple_of(512);
                (file, start)
            });
            vec![describe(&artifact.blobs[0], places.collect())]
        }
        alone => {
            let start = if alone == Packing::Raw { 0 } else { 512 };
            files
                .iter()
                .zip(&artifact.blobs)
                .map(|(file, blob)| describe(blob, vec![(file, start)]))
                .collect()
        }
    }
}

struct Index {
    bytes: Vec<u8>,
    head: usize,
}

fn index(layers: &[Described<'_>]) -> Index {
    let (mut table, mut extents, mut entries) = (Vec::new(), Vec::new(), Vec::new());
    let (mut sections, mut text) = (Vec::new(), Vec::new());
    for (number, layer) in layers.iter().enumerate() {
        let (mut section, mut count) = (Vec::new(), 0_u32);
        for (file, start) in &layer.files {
            let extent = if file.content.size() == 0 { NO_EXTENT } else { count };
            entries.extend(entry(number, extent, text.len(), file.path.len()));
            text.extend_from_slice(file.path.as_bytes());
            if extent != NO_EXTENT {
                count += 1;
                extents.extend([start.to_le_bytes(), file.content.size().to_le_bytes()].concat());
                section.extend(digests(file));
            }
        }
        table.extend(layer_row(layer, count, u32::from(count > 0)));
        sections.extend((count > 0).then_some(section));
    }
    let head = 64 + table.len() + extents.len() + entries.len() + 64 * sections.len() + text.len();
    let (mut records, mut end) = (Vec::new(), head);
    for section in &sections {
        records.extend(record(end, section));
        end += section.len();
    }
    let counts = [layers.len(), extents.len() / 16, entries.len() / 40, sections.len(), text.len()];
    let parts = [preamble(head, &counts), table, extents, entries, records, text, sections.concat()];
    Index { bytes: parts.concat(), head }
}

/// The digests of a file's chunks, one after the other. No more than a chunk of it is in memory.
fn digests(file: &File) -> Vec<u8> {
    let (mut reader, mut chunk, mut digests) = (file.content.reader(), Vec::new(), Vec::new());
    while reader.by_ref().take(CHUNK).read_to_end(&mut chunk).unwrap() > 0 {
        digests.extend(blake3::hash(&chunk).as_bytes());
        chunk.clear();
    }
    digests
}

fn preamble(head: usize, counts: &[usize; 5]) -> Vec<u8> {
    let mut out = b"weightfs".to_vec();
    out.extend([1, 0, 1, 20, 0, 0, 0, 0]);
    out.extend((head as u64).to_le_bytes());
    out.extend(counts.iter().flat_map(|count| (*count as u32).to_le_bytes()));
    out.resize(64, 0);
    out
}

fn layer_row(layer: &Described<'_>, extents: u32, sections: u32) -> Vec<u8> {
    let mut out = [layer.size.to_le_bytes(), layer.size.to_le_bytes()].concat();
    out.extend([extents.to_le_bytes(), sections.to_le_bytes()].concat());
    out.push(1);
    out.resize(32, 0);
    out.extend(unhex(&layer.digest));
    out.resize(160, 0);
    out
}

fn entry(layer: usize, extent: u32, path: usize, len: usize) -> Vec<u8> {
    let mut out = vec![0; 4];
    out.extend(0o644_u32.to_le_bytes());
    out.extend((pack::MTIME as i64).to_le_bytes());
    for number in [layer as u32, extent, path as u32, len as u32, 0, 0] {
        out.extend(number.to_le_bytes());
    }
    out
}

fn record(start: usize, section: &[u8]) -> Vec<u8> {
    let mut out = vec![1, 0, 0, 0, 0, 0, 0, 0];
    out.extend((start as u64).to_le_bytes());
    out.extend((section.len() as u64).to_le_bytes());
    out.extend([0; 8]);
    out.extend(unhex(&pack::digest(section)));
    out
}

fn unhex(digest: &str) -> Vec<u8> {
    let hex = pack::hex(digest).as_bytes();
    hex.chunks(2).map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
}
