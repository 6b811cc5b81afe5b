//! Layers that bring a table of their parts, written here as their writers do: for tests.
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests fit")]

use serde_json::{Value, json};

use crate::codec::gzip::tests::member as deflated;
use crate::codec::tar::tests::plain;
use crate::codec::toc::ContentDigest;
use crate::codec::toc::tests::table;
use crate::codec::zstd::seekable;
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Descriptor, Digest};

/// A layer and what a manifest says of it.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) suffix: &'static str,
    pub(crate) stored: Vec<u8>,
    pub(crate) annotations: Vec<(&'static str, String)>,
}

impl Written {
    /// The artifact whose one layer it is.
    pub(crate) fn artifact(&self) -> Artifact {
        let annotations = self.annotations.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        let layer = Descriptor {
            media_type: format!("application/vnd.cncf.model.weight.v1.{}", self.suffix),
            digest: Digest::of(&self.stored),
            size: self.stored.len() as u64,
            annotations: annotations.collect(),
        };
        Artifact::read(Manifest { layers: vec![layer], ..Manifest::default() }).unwrap()
    }
}

/// Writes files in parts of so many bytes.
pub(crate) type Form = fn(&[(&str, Vec<u8>)], usize) -> Written;

/// The stored and content bytes of each frame, as a seek table has them.
pub(crate) type Rows = Vec<(u32, u32)>;

/// All forms.
pub(crate) const FORMS: [Form; 5] = [frames, storage, stargz_zstd, estargz, estargz_apart];

/// Bytes that no compression makes smaller.
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; len];
    random.fill(&mut bytes);
    bytes
}

/// A file's header, padded data left out.
fn headers(name: &str, content: &[u8]) -> Vec<u8> {
    plain(name, content.len() as u64)
}

fn padding(content: &[u8]) -> Vec<u8> {
    vec![0; content.len().next_multiple_of(512) - content.len()]
}

/// The archive of the files.
pub(crate) fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let members = files
        .iter()
        .map(|(name, content)| [headers(name, content), content.clone(), padding(content)].concat());
    let mut bytes = members.collect::<Vec<_>>().concat();
    bytes.extend([0; 1024]);
    bytes
}

fn framed(content: &[u8]) -> Vec<u8> {
    // Without a checksum, as the writers of these forms do.
    zstd::bulk::compress(content, 1).unwrap()
}

fn skippable(body: &[u8]) -> Vec<u8> {
    [&0x184d_2a50_u32.to_le_bytes()[..], &(body.len() as u32).to_le_bytes(), body].concat()
}

fn sum(content: &[u8]) -> String {
    ContentDigest::of(content).to_string()
}

/// zstd's seekable format: frames without regard to files, a seek table.
pub(crate) fn frames(files: &[(&str, Vec<u8>)], part: usize) -> Written {
    let (mut stored, mut rows) = (Vec::new(), Vec::new());
    for piece in archive(files).chunks(part) {
        let frame = framed(piece);
        rows.push((frame.len() as u32, piece.len() as u32));
        stored.extend(frame);
    }
    stored.extend(seekable::table(&rows).unwrap());
    Written { suffix: "tar+zstd", stored, annotations: Vec::new() }
}

/// As [`frames`], with the rows of the table changed.
pub(crate) fn with_rows(files: &[(&str, Vec<u8>)], part: usize, change: fn(&mut Rows)) -> Written {
    let mut written = frames(files, part);
    let len = written.stored.len();
    let number = |at: usize| u32::from_le_bytes(written.stored[at..at + 4].try_into().unwrap());
    let count = number(len - 9) as usize;
    let start = len - 9 - count * 8;
    let mut rows: Rows =
        (0..count).map(|row| (number(start + row * 8), number(start + row * 8 + 4))).collect();
    change(&mut rows);
    written.stored.truncate(start - 8);
    written.stored.extend(seekable::table(&rows).unwrap());
    written
}

/// Parts of files and what lies between them, each compressed by itself, and the rows of the table.
struct Parts {
    stored: Vec<u8>,
    rows: Vec<Value>,
    compress: fn(&[u8]) -> Vec<u8>,
    /// What is to be in the same member as a part before it.
    pending: Vec<u8>,
}

impl Parts {
    fn new(compress: fn(&[u8]) -> Vec<u8>) -> Self {
        Self { stored: Vec::new(), rows: Vec::new(), compress, pending: Vec::new() }
    }

    /// Ends the member at hand.
    fn cut(&mut self) {
        if !self.pending.is_empty() {
            let pending = std::mem::take(&mut self.pending);
            self.stored.extend((self.compress)(&pending));
        }
    }

    /// A file in parts. `apart`: what follows one is not in its last part's member.
    fn add(&mut self, name: &str, content: &[u8], part: usize, apart: Apart) {
        self.pending.extend(headers(name, content));
        let mut at = 0;
        for piece in content.chunks(part) {
            self.cut();
            let mut row = json!({"type": "reg", "name": name, "size": content.len(), "mode": 0o644, "digest": sum(content)});
            if at > 0 {
                row = json!({"type": "chunk", "name": name, "chunkOffset": at});
            }
            let of =
                json!({"offset": self.stored.len(), "chunkSize": piece.len(), "chunkDigest": sum(piece)});
            row.as_object_mut().unwrap().extend(of.as_object().unwrap().clone());
            self.rows.push(row);
            self.pending.extend(piece);
            at += piece.len();
        }
        if content.is_empty() {
            self.rows.push(json!({"type": "reg", "name": name, "mode": 0o644}));
        }
        if apart != Apart::Together && !content.is_empty() {
            self.cut();
            let first = self.rows.iter_mut().rev().find(|row| row["type"] == "reg").unwrap();
            if apart == Apart::Told {
                first["endOffset"] = json!(self.stored.len());
            }
        }
        self.pending.extend(padding(content));
    }
}

/// Where what follows a file is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Apart {
    /// In the member of its last part.
    Together,
    /// In a member of its own.
    Alone,
    /// In one of its own, and the table says where the part ends.
    Told,
}

fn chunked(files: &[(&str, Vec<u8>)], part: usize, apart: Apart) -> Written {
    let mut parts = Parts::new(framed);
    files.iter().for_each(|(name, content)| parts.add(name, content, part, apart));
    parts.pending.extend([0; 1024]);
    parts.cut();
    let (json, is_storage) = (table(&parts.rows), apart == Apart::Told);
    let (frame, start) = (framed(&json), parts.stored.len() + 8);
    parts.stored.extend(skippable(&frame));
    let numbers = [start, frame.len(), json.len(), 1];
    let mut footer: Vec<u8> = numbers.iter().flat_map(|number| (*number as u64).to_le_bytes()).collect();
    footer.extend(if is_storage { vec![0; 24] } else { Vec::new() });
    footer.extend(if is_storage { b"GNUlInUx" } else { b"GnUlInUx" });
    parts.stored.extend(skippable(&footer));
    let position = numbers.map(|number| number.to_string()).join(":");
    let mut keys = crate::codec::zstd::chunked::POSITION_KEYS
        .into_iter()
        .zip(crate::codec::zstd::chunked::CHECKSUM_KEYS);
    let (at, digest) = keys.nth(usize::from(!is_storage)).unwrap();
    Written {
        suffix: "tar+zstd",
        stored: parts.stored,
        annotations: vec![(at, position), (digest, sum(&frame))],
    }
}

/// zstd:chunked as containers/storage writes it.
pub(crate) fn storage(files: &[(&str, Vec<u8>)], part: usize) -> Written {
    chunked(files, part, Apart::Told)
}

/// zstd:chunked as the stargz snapshotter writes it.
pub(crate) fn stargz_zstd(files: &[(&str, Vec<u8>)], part: usize) -> Written {
    chunked(files, part, Apart::Together)
}

fn stargz(files: &[(&str, Vec<u8>)], part: usize, apart: Apart) -> Written {
    let mut parts = Parts::new(|content| deflated(content, 1));
    parts.add(".no.prefetch.landmark", b"\x0f", part, apart);
    files.iter().for_each(|(name, content)| parts.add(name, content, part, apart));
    parts.cut();
    let (json, start) = (table(&parts.rows), parts.stored.len());
    let mut last = [headers("stargz.index.json", &json), json.clone(), padding(&json)].concat();
    last.extend([0; 1024]);
    parts.stored.extend(deflated(&last, 9));
    let field = format!("SG\x16\0{start:016x}STARGZ");
    let header =
        [b"\x1f\x8b\x08\x04\0\0\0\0\0\xff", &(field.len() as u16).to_le_bytes()[..], field.as_bytes()]
            .concat();
    parts.stored.extend([&header[..], b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0"].concat());
    let annotations = vec![(crate::codec::estargz::DIGEST_KEY, sum(&json))];
    Written { suffix: "tar+gzip", stored: parts.stored, annotations }
}

/// eStargz, as the snapshotter writes it: the next header in the member of a file's last part.
pub(crate) fn estargz(files: &[(&str, Vec<u8>)], part: usize) -> Written {
    stargz(files, part, Apart::Together)
}

/// eStargz with headers in members of their own.
pub(crate) fn estargz_apart(files: &[(&str, Vec<u8>)], part: usize) -> Written {
    stargz(files, part, Apart::Alone)
}
