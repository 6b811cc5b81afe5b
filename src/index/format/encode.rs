//! From an index and the digests of its chunks to the bytes that are published.
//!
//! The form is a function of the content alone: no time, name or order of the writer's own goes in.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use zerocopy::little_endian::U32;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::{Encoded, HEAD_LIMIT, Head, Part, decode, decode_at, wire};
use crate::error::{Error, Kind, Result};
use crate::index::{ChunkDigest, Coding, Compression, Entry, EntryKind, Grid, Home, Index, Layer, Section};
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::{Blob, Digest, path};
use crate::range::StoredRange;

/// How much of a file is read at once.
const PIECE: u64 = 1 << 20;

/// The index as it is published; `digests` has, for each layer of `index`, those of the chunks of its first extent, then
/// those of its second. Layers are the manifest's without the hidden ones; warnings and bytes of gaps stay out.
///
/// Sections of compressed layers are taken from their [`Spans`], where their bytes are in memory or in a file. What is
/// given back has been decoded again and found to say the same. Costs a few times the head's length in memory, and reads
/// those files twice.
///
/// # Errors
/// [`Kind::Invalid`] where there are more or fewer digests than chunks, or the index has what [`decode()`] refuses;
/// [`Kind::Unsupported`] where it is larger than an index may be, or a layer's spans are not known or not here;
/// [`Kind::Storage`] where a file can't be read.
pub fn encode(index: &Index, digests: &[Vec<ChunkDigest>]) -> Result<Encoded> {
    let sections = sections(&index.layers, digests)?;
    let planned: Vec<Vec<Planned>> =
        sections.iter().map(|own| own.iter().map(|(planned, _)| planned.clone()).collect()).collect();
    let head = head(&index.layers, &index.entries, &planned)?;
    let mut parts = vec![Part::Bytes(head.clone())];
    parts.extend(sections.into_iter().flatten().map(|(_, part)| part));
    let mut encoded = Encoded { head: blob(&head), blob: blob(&[]), parts };
    encoded.blob = encoded.whole()?;
    match decode(&head, &encoded.blob)?.entries == index.entries {
        true => Ok(encoded),
        false => Err(Error::new(Kind::Invalid, "its entries are not those of its layers' extents")),
    }
}

/// The index that is all of a file, as one that is about to be published, and what it says. Reads the file once.
///
/// # Errors
/// [`Kind::Storage`] where it can't be read; those of [`decode()`].
pub fn of_file(file: Arc<File>) -> Result<(Encoded, Head)> {
    let failed = |error| Error::from_source(Kind::Storage, "cannot read the index", error);
    let size = file.metadata().map_err(failed)?.len();
    let mut said = [0; 8];
    let too_short = |_| Error::new(Kind::Invalid, "it does not begin as an index does");
    file.read_exact_at(&mut said, 16).map_err(too_short)?;
    let said = u64::from_le_bytes(said);
    if said > size.min(HEAD_LIMIT) {
        return Err(Error::new(Kind::Invalid, format!("its head says it has {said} bytes")));
    }
    let mut head = vec![0; usize::try_from(said).unwrap_or(0)];
    file.read_exact_at(&mut head, 0).map_err(failed)?;
    let (head, parts) = (Bytes::from(head), vec![Part::File(file.clone(), StoredRange::new(0, size))]);
    let decoded = decode_at(&head, size, &Home::File(file))?;
    let mut encoded = Encoded { head: blob(&head), blob: blob(&[]), parts };
    encoded.blob = encoded.whole()?;
    Ok((encoded, decoded))
}

impl Encoded {
    /// All of it in memory: the head, then the sections.
    ///
    /// # Errors
    /// [`Kind::Storage`] where a file can't be read.
    pub fn bytes(&self) -> Result<Bytes> {
        let mut bytes = BytesMut::with_capacity(usize::try_from(self.blob.size).unwrap_or(0));
        self.each(&mut |piece| {
            bytes.put_slice(piece);
            Ok(())
        })?;
        Ok(bytes.freeze())
    }

    /// Gives all of it to `take`, piece by piece. Blocks on the local disk.
    ///
    /// # Errors
    /// [`Kind::Storage`] where a file can't be read; those of `take`.
    pub fn each(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        self.parts.iter().try_for_each(|part| part.each(take))
    }

    fn whole(&self) -> Result<Blob> {
        let (mut hasher, mut size) = (Hasher::new(Algorithm::Sha256), 0_u64);
        self.each(&mut |piece| {
            hasher.update(piece);
            size = size.saturating_add(length(piece.len()));
            Ok(())
        })?;
        Ok(Blob { digest: hasher.finish(), size })
    }
}

impl Part {
    /// The part that a section is; `None` where it has to be asked for.
    fn of(section: &Section) -> Option<Self> {
        match (&section.bytes, &section.home) {
            (Some(bytes), _) => Some(Self::Bytes(bytes.clone())),
            (None, Home::File(file)) => Some(Self::File(file.clone(), section.range)),
            (None, Home::Repository(_)) => None,
        }
    }

    fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => length(bytes.len()),
            Self::File(_, range) => range.len(),
        }
    }

    fn each(&self, take: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (file, range) = match self {
            Self::Bytes(bytes) => return take(bytes),
            Self::File(file, range) => (file, range),
        };
        let mut at = range.start();
        let mut room = vec![0; usize::try_from(range.len().min(PIECE)).unwrap_or(0)];
        while at < range.end() {
            let len = usize::try_from((range.end() - at).min(PIECE)).unwrap_or(0);
            let piece = room.get_mut(..len).unwrap_or_default();
            let read = file.read_exact_at(piece, at);
            read.map_err(|error| Error::from_source(Kind::Storage, "cannot read the index", error))?;
            take(piece)?;
            at = at.saturating_add(length(len));
        }
        Ok(())
    }

    fn digest(&self) -> Result<Digest> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        self.each(&mut |piece| {
            hasher.update(piece);
            Ok(())
        })?;
        Ok(hasher.finish())
    }
}

impl Head {
    /// The bytes that it was decoded from.
    ///
    /// # Errors
    /// As [`encode()`], where it was made otherwise.
    pub fn encode(&self) -> Result<Bytes> {
        let mut sections: Vec<Vec<Planned>> = vec![Vec::new(); self.layers.len()];
        for (planned, layer) in sections.iter_mut().zip(&self.layers) {
            let chunks = layer.bound.as_ref().map(|bound| (wire::CHUNK_DIGESTS, &bound.chunks));
            let plan = |(kind, section): (u16, &Section)| Planned {
                kind,
                len: section.range.len(),
                digest: section.digest.clone(),
            };
            planned.extend(chunks.into_iter().chain(of_spans(layer)).map(plan));
        }
        for other in &self.passed_over {
            let planned = sections.get_mut(other.layer);
            let planned = planned.ok_or_else(|| Error::new(Kind::Invalid, "a section is of no layer"))?;
            let (kind, len) = (other.kind, other.range.len());
            planned.push(Planned { kind, len, digest: other.digest.clone() });
        }
        head(&self.layers, &self.entries, &sections)
    }
}

fn blob(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size: length(bytes.len()) }
}

fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

/// A section as its record says.
#[derive(Clone)]
struct Planned {
    kind: u16,
    len: u64,
    digest: Digest,
}

/// The sections that make content of a compressed layer, with their kinds.
fn of_spans(layer: &Layer) -> impl Iterator<Item = (u16, &Section)> {
    let spans = if let Coding::Spans(spans) = &layer.coding { Some(spans) } else { None };
    let table = spans.map(|spans| (wire::SPANS, &spans.table));
    let checkpoints = spans.and_then(|spans| spans.checkpoints.as_ref());
    table.into_iter().chain(checkpoints.map(|checkpoints| (wire::CHECKPOINTS, checkpoints)))
}

/// The sections of each layer.
fn sections(layers: &[Layer], digests: &[Vec<ChunkDigest>]) -> Result<Vec<Vec<(Planned, Part)>>> {
    if layers.len() != digests.len() {
        let doing = format!("{} layers have chunk digests, and {} are there", digests.len(), layers.len());
        return Err(Error::new(Kind::Invalid, doing));
    }
    layers.iter().zip(digests).map(|(layer, digests)| sections_of(layer, digests)).collect()
}

fn sections_of(layer: &Layer, digests: &[ChunkDigest]) -> Result<Vec<(Planned, Part)>> {
    let name = &layer.blob.digest;
    let mut parts = Vec::new();
    if let Some(chunks) = chunk_digests(layer, digests)? {
        parts.push((wire::CHUNK_DIGESTS, Part::Bytes(chunks)));
    }
    for (kind, section) in of_spans(layer) {
        let part = Part::of(section).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("the spans of layer {name} are in another index"))
        })?;
        parts.push((kind, part));
    }
    let plan = |(kind, part): (u16, Part)| {
        let (len, digest) = (part.len(), part.digest()?);
        Ok((Planned { kind, len, digest }, part))
    };
    parts.into_iter().map(plan).collect()
}

/// The digests as a section; `None` for a layer without extents.
fn chunk_digests(layer: &Layer, digests: &[ChunkDigest]) -> Result<Option<Bytes>> {
    let chunks: u64 = layer.extents.iter().map(|extent| Grid::new(extent.len()).chunks()).sum();
    if chunks != length(digests.len()) {
        let (name, given) = (&layer.blob.digest, digests.len());
        let doing = format!("layer {name} has {chunks} chunks and {given} digests of them");
        return Err(Error::new(Kind::Invalid, doing));
    }
    let bytes: BytesMut = digests.iter().flat_map(|digest| digest.bytes()).copied().collect();
    Ok((!layer.extents.is_empty()).then(|| bytes.freeze()))
}

/// The tables in the making.
#[derive(Default)]
struct Tables {
    layers: Vec<wire::Layer>,
    extents: Vec<wire::Extent>,
    entries: Vec<wire::Entry>,
    sections: Vec<wire::Section>,
    text: Vec<u8>,
    /// The files so far, by layer and path: what hard links lead to.
    files: HashSet<(usize, String)>,
}

fn head(layers: &[Layer], entries: &[Entry], sections: &[Vec<Planned>]) -> Result<Bytes> {
    let mut tables = Tables::default();
    for (layer, sections) in layers.iter().zip(sections) {
        tables.add_layer(layer, sections.len())?;
    }
    for entry in entries {
        tables.add_entry(entry)?;
    }
    let count = sections.iter().map(Vec::len).sum();
    let mut end = tables.length_with(count);
    for section in sections.iter().flatten() {
        end = tables.add_section(section, end);
    }
    tables.finish()
}

impl Tables {
    fn add_layer(&mut self, layer: &Layer, sections: usize) -> Result<()> {
        let content = layer.content().ok_or_else(|| {
            let doing = format!("the spans of layer {} are not known", layer.blob.digest);
            Error::new(Kind::Unsupported, doing)
        })?;
        let mut row = wire::Layer::new_zeroed();
        row.stored = layer.blob.size.into();
        row.content = content.into();
        row.coding = coding(&layer.coding);
        row.extents = number(layer.extents.len())?;
        row.sections = number(sections)?;
        row.digest_algorithm = fill(&mut row.digest, &layer.blob.digest);
        if let Some(diff_id) = &layer.diff_id {
            row.diff_id_algorithm = fill(&mut row.diff_id, diff_id);
        }
        let extents = layer.extents.iter();
        self.extents.extend(
            extents.map(|extent| wire::Extent { start: extent.start().into(), len: extent.len().into() }),
        );
        self.layers.push(row);
        Ok(())
    }

    fn add_entry(&mut self, entry: &Entry) -> Result<()> {
        let mut row = wire::Entry::new_zeroed();
        row.mode = entry.mode.into();
        row.mtime = entry.mtime.into();
        row.layer = number(entry.layer)?;
        row.extent = wire::NO_EXTENT.into();
        (row.path, row.path_len) = self.add_text(&entry.path)?;
        match &entry.kind {
            EntryKind::File { extent, .. } => {
                row.kind = wire::FILE;
                if let Some(id) = extent {
                    row.extent = number(id.extent)?;
                }
            }
            EntryKind::Directory => row.kind = wire::FOLDER,
            EntryKind::Symlink(target) => {
                let stays = path::link_target(&entry.path, target.as_bytes()).is_ok();
                row.kind = if stays { wire::SYMBOLIC_LINK } else { wire::LOOSE_SYMBOLIC_LINK };
                (row.target, row.target_len) = self.add_text(target)?;
            }
            EntryKind::HardLink(target) => {
                let known = self.files.contains(&(entry.layer, target.clone()));
                row.kind = if known { wire::HARD_LINK } else { wire::LOOSE_HARD_LINK };
                (row.target, row.target_len) = self.add_text(target)?;
            }
            EntryKind::Whiteout => row.kind = wire::WHITEOUT,
            EntryKind::Opaque if entry.path.is_empty() => {
                return Err(Error::new(
                    Kind::Unsupported,
                    "a layer empties the root, which an index can't say",
                ));
            }
            EntryKind::Opaque => row.kind = wire::OPAQUE,
        }
        if let EntryKind::File { .. } = entry.kind {
            self.files.insert((entry.layer, entry.path.clone()));
        }
        self.entries.push(row);
        Ok(())
    }

    /// Where the piece begins, and its length.
    fn add_text(&mut self, piece: &str) -> Result<(U32, U32)> {
        let place = (number(self.text.len())?, number(piece.len())?);
        self.text.extend_from_slice(piece.as_bytes());
        Ok(place)
    }

    /// Where the section ends that begins at `start`.
    fn add_section(&mut self, section: &Planned, start: u64) -> u64 {
        let mut row = wire::Section::new_zeroed();
        row.kind = section.kind.into();
        row.start = start.into();
        row.len = section.len.into();
        row.digest.iter_mut().zip(section.digest.value()).for_each(|(byte, value)| *byte = value);
        self.sections.push(row);
        start.saturating_add(section.len)
    }

    /// The head's length once it has `sections` records of sections.
    fn length_with(&self, sections: usize) -> u64 {
        let tables = [
            size_of_val(self.layers.as_slice()),
            size_of_val(self.extents.as_slice()),
            size_of_val(self.entries.as_slice()),
            sections.saturating_mul(size_of::<wire::Section>()),
            self.text.len(),
        ];
        length(tables.into_iter().fold(size_of::<wire::Header>(), usize::saturating_add))
    }

    fn finish(self) -> Result<Bytes> {
        let len = self.length_with(self.sections.len());
        let header = wire::Header {
            magic: wire::MAGIC,
            version: wire::VERSION.into(),
            chunk_digest: wire::BLAKE3,
            chunk_power: wire::CHUNK_POWER,
            reserved: [0; 4],
            length: len.into(),
            layers: limited(self.layers.len(), wire::LAYER_LIMIT, "layers")?,
            extents: limited(self.extents.len(), wire::EXTENT_LIMIT, "files that are not empty")?,
            entries: limited(self.entries.len(), wire::ENTRY_LIMIT, "names")?,
            sections: limited(self.sections.len(), wire::SECTION_LIMIT, "sections")?,
            text: limited(self.text.len(), wire::TEXT_LIMIT, "bytes of names")?,
            reserved_too: [0; 20],
        };
        let mut bytes = BytesMut::with_capacity(usize::try_from(len.min(HEAD_LIMIT)).unwrap_or(0));
        put(&mut bytes, &[header]);
        put(&mut bytes, &self.layers);
        put(&mut bytes, &self.extents);
        put(&mut bytes, &self.entries);
        put(&mut bytes, &self.sections);
        bytes.put_slice(&self.text);
        Ok(bytes.freeze())
    }
}

fn put<Row: IntoBytes + Immutable>(bytes: &mut BytesMut, rows: &[Row]) {
    bytes.put_slice(rows.as_bytes());
}

fn coding(coding: &Coding) -> u8 {
    match coding {
        Coding::Spans(spans) => match spans.how {
            Compression::Gzip => wire::GZIP,
            Compression::Zstd => wire::ZSTD,
        },
        Coding::Stored | Coding::Streamed(..) => wire::STORED,
    }
}

/// Puts the digest's value where 64 bytes are kept for it, and says which algorithm's it is.
fn fill(filled: &mut [u8; 64], digest: &Digest) -> u8 {
    filled.iter_mut().zip(digest.value()).for_each(|(byte, value)| *byte = value);
    match digest.algorithm() {
        Algorithm::Sha256 => 1,
        Algorithm::Sha512 => 2,
    }
}

fn number(value: usize) -> Result<U32> {
    let too_large = |_| Error::new(Kind::Unsupported, format!("{value} is more than an index can count"));
    u32::try_from(value).map(U32::from).map_err(too_large)
}

fn limited(value: usize, limit: usize, name: &str) -> Result<U32> {
    if value > limit {
        let doing = format!("it has {value} {name}, more than the {limit} that an index holds");
        return Err(Error::new(Kind::Unsupported, doing)
            .hint("pack fewer and larger files, or the model without an index"));
    }
    number(value)
}
