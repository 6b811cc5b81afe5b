//! From the bytes of a head to what it says, with every check that docs/index-format.md lists.
//!
//! Not the check of its digest, which is [`bound`](crate::index::bound)'s, nor of the manifest's layers, which is
//! [`find`](crate::index::find())'s. A head may come from anybody: nothing here panics, and no more than a small multiple of its
//! bytes is allocated.

use std::collections::HashMap;

use bytes::Bytes;
use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::{HEAD_LIMIT, Head, PassedOver, kept_as, wire};
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
use crate::index::{
    Bound, Coding, Compression, Entry, EntryKind, ExtentId, Grid, Home, Layer, Section, Spans, between,
};
use crate::oci::digest::Algorithm;
use crate::oci::{Blob, Digest, path};
use crate::range::{ContentRange, StoredRange};

/// What the head of the index `blob` says.
///
/// Costs one pass and a few times the head's length in memory.
///
/// # Errors
/// [`Kind::Invalid`] where it breaks a rule of the format; [`Kind::Unsupported`] where it is of a newer version, or uses
/// what that version only reserves. The caller names the index.
pub fn decode(head: &Bytes, blob: &Blob) -> Result<Head> {
    decode_at(head, blob.size, &Home::Repository(blob.clone()))
}

/// The same of an index of `size` bytes that is at `home`.
///
/// # Errors
/// As [`decode`].
pub(in crate::index) fn decode_at(head: &Bytes, size: u64, home: &Home) -> Result<Head> {
    let tables = Tables::read(head)?;
    let (layers, passed_over) = layers(&tables, head.len(), &Place { size, home })?;
    let entries = entries(&tables, &layers)?;
    Ok(Head { layers, entries, passed_over })
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, why)
}

fn unsupported(why: impl Into<String>) -> Error {
    Error::new(Kind::Unsupported, why).hint("a newer weightfs may read it")
}

fn require(holds: bool, why: impl FnOnce() -> String) -> Result<()> {
    if holds { Ok(()) } else { Err(invalid(why())) }
}

fn count(field: zerocopy::little_endian::U32) -> usize {
    usize::try_from(field.get()).unwrap_or(usize::MAX)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// The tables, each of the length the header says.
struct Tables<'a> {
    layers: &'a [wire::Layer],
    extents: &'a [wire::Extent],
    entries: &'a [wire::Entry],
    sections: &'a [wire::Section],
    text: &'a [u8],
}

impl<'a> Tables<'a> {
    fn read(head: &'a Bytes) -> Result<Self> {
        let (header, rest) =
            wire::Header::ref_from_prefix(head).map_err(|_| invalid("its head is cut short"))?;
        check_header(header, head.len())?;
        let (layers, rest) = table(rest, header.layers, wire::LAYER_LIMIT, "layers")?;
        let (extents, rest) = table(rest, header.extents, wire::EXTENT_LIMIT, "extents")?;
        let (entries, rest) = table(rest, header.entries, wire::ENTRY_LIMIT, "entries")?;
        let (sections, text) = table(rest, header.sections, wire::SECTION_LIMIT, "sections")?;
        let said = count(header.text);
        require(said <= wire::TEXT_LIMIT && said == text.len(), || {
            format!("its head has {} bytes of text and says {said}", text.len())
        })?;
        Ok(Self { layers, extents, entries, sections, text })
    }
}

fn check_header(header: &wire::Header, len: usize) -> Result<()> {
    require(header.magic == wire::MAGIC, || "it does not begin as an index does".to_owned())?;
    if header.version != wire::VERSION {
        return Err(unsupported(format!("it is of version {}", header.version)));
    }
    if (header.chunk_digest, header.chunk_power) != (wire::BLAKE3, wire::CHUNK_POWER) {
        let (digest, power) = (header.chunk_digest, header.chunk_power);
        return Err(unsupported(format!("its chunks are of size 2^{power}, digested by algorithm {digest}")));
    }
    require(is_zero(&header.reserved) && is_zero(&header.reserved_too), || {
        "reserved bytes of its head are not 0".to_owned()
    })?;
    let said = header.length.get();
    require(u64::try_from(len) == Ok(said) && said <= HEAD_LIMIT, || {
        format!("its head has {len} bytes and says {said}")
    })
}

/// The table at the beginning of `rest`, and what follows it.
fn table<'a, Row: FromBytes + Immutable + KnownLayout + Unaligned>(
    rest: &'a [u8],
    rows: zerocopy::little_endian::U32,
    limit: usize,
    name: &str,
) -> Result<(&'a [Row], &'a [u8])> {
    let rows = count(rows);
    require(rows <= limit, || format!("it says that it has {rows} {name}, more than {limit}"))?;
    <[Row]>::ref_from_prefix_with_elems(rest, rows)
        .map_err(|_| invalid(format!("its head is too short for {rows} {name}")))
}

/// The first `rows` rows of what is left of a table.
fn take<'a, Row>(left: &mut &'a [Row], rows: zerocopy::little_endian::U32) -> Option<&'a [Row]> {
    let (taken, rest) = left.split_at_checked(count(rows))?;
    *left = rest;
    Some(taken)
}

/// Where the index is whose head is read, and how long it is in all.
struct Place<'a> {
    size: u64,
    home: &'a Home,
}

fn layers(tables: &Tables<'_>, head: usize, index: &Place<'_>) -> Result<(Vec<Layer>, Vec<PassedOver>)> {
    let (mut extents, mut sections) = (tables.extents, tables.sections);
    let (mut layers, mut passed_over) = (Vec::with_capacity(tables.layers.len()), Vec::new());
    let mut end = u64::try_from(head).unwrap_or(u64::MAX);
    for (number, row) in tables.layers.iter().enumerate() {
        let named = |error: Error| error.context(format!("layer {number} of it can't be meant"));
        let short = || named(invalid("the tables are shorter than the layers say"));
        let own = take(&mut extents, row.extents).ok_or_else(short)?;
        let mut layer = layer(row, own).map_err(named)?;
        let own = take(&mut sections, row.sections).ok_or_else(short)?;
        let mut sections = Sections::default();
        sections.read(own, index, &mut end).map_err(named)?;
        let others = std::mem::take(&mut sections.others).into_iter();
        passed_over.extend(others.map(|(kind, Section { range, digest, .. })| PassedOver {
            layer: number,
            kind,
            range,
            digest,
        }));
        sections.give(&mut layer, row).map_err(named)?;
        layers.push(layer);
    }
    require(extents.is_empty() && sections.is_empty(), || {
        format!("{} extents and {} sections belong to no layer", extents.len(), sections.len())
    })?;
    require(end == index.size, || format!("its sections end at byte {end}, the blob at {}", index.size))?;
    Ok((layers, passed_over))
}

fn layer(row: &wire::Layer, extents: &[wire::Extent]) -> Result<Layer> {
    let (stored, content) = (row.stored.get(), row.content.get());
    require(row.coding != wire::STORED || stored == content, || {
        format!("{stored} bytes are stored as they are and make {content}")
    })?;
    require(is_zero(&row.reserved), || "reserved bytes are not 0".to_owned())?;
    let digest = digest(row.digest_algorithm, &row.digest)?;
    let diff_id = match row.diff_id_algorithm {
        0 if is_zero(&row.diff_id) => None,
        algorithm => Some(self::digest(algorithm, &row.diff_id)?),
    };
    let extents = ranges(extents, content)?;
    Ok(Layer {
        blob: Blob { digest, size: stored },
        media_type: String::new(),
        diff_id,
        coding: Coding::Stored,
        gaps: between(&extents, content),
        extents,
        bound: None,
    })
}

fn digest(algorithm: u8, filled: &[u8; 64]) -> Result<Digest> {
    let algorithm = match algorithm {
        1 => Algorithm::Sha256,
        2 => Algorithm::Sha512,
        other => return Err(invalid(format!("{other} is no algorithm of digests"))),
    };
    let split = filled.split_at_checked(algorithm.value_len());
    let value = split.filter(|(_, rest)| is_zero(rest)).map(|(value, _)| value);
    value
        .and_then(|value| Digest::of_value(algorithm, value))
        .ok_or_else(|| invalid("a digest is not filled up with 0"))
}

/// The extents, which are sorted, not empty, not overlapping and within the content.
fn ranges(rows: &[wire::Extent], content: u64) -> Result<Vec<ContentRange>> {
    let mut ranges = Vec::with_capacity(rows.len());
    let mut end = 0;
    for row in rows {
        let range = ContentRange::at(row.start.get(), row.len.get())
            .filter(|range| range.start() >= end && !range.is_empty() && range.end() <= content);
        let (start, len) = (row.start, row.len);
        let range = range.ok_or_else(|| {
            invalid(format!("the extent of {len} bytes at {start} is empty, out of order or beyond the end"))
        })?;
        end = range.end();
        ranges.push(range);
    }
    Ok(ranges)
}

/// The sections of a layer, as their records say.
#[derive(Default)]
struct Sections {
    chunks: Option<Section>,
    spans: Option<Section>,
    checkpoints: Option<Section>,
    /// Those that need not be known, with their kinds.
    others: Vec<(u16, Section)>,
}

impl Sections {
    /// Sections stand in the order of kinds, one of each, and follow one another from `end` on.
    fn read(&mut self, rows: &[wire::Section], index: &Place<'_>, end: &mut u64) -> Result<()> {
        let mut last = 0;
        for row in rows {
            let kind = row.kind.get();
            require(is_zero(&row.reserved) && is_zero(&row.reserved_too), || {
                "reserved bytes of a section are not 0".to_owned()
            })?;
            require(kind > last, || format!("its section of kind {kind} is out of order or there twice"))?;
            last = kind;
            let section = section(row, index, end)?;
            match kind {
                wire::CHUNK_DIGESTS => self.chunks = Some(section),
                wire::SPANS => self.spans = Some(section),
                wire::CHECKPOINTS => self.checkpoints = Some(section),
                kind if kind & wire::MAY_PASS_OVER != 0 => self.others.push((kind, section)),
                kind => return Err(unsupported(format!("it has a section of kind {kind}"))),
            }
        }
        Ok(())
    }

    /// Gives them to the layer that has this row.
    fn give(self, layer: &mut Layer, row: &wire::Layer) -> Result<()> {
        layer.coding = coding(row, self.spans, self.checkpoints)?;
        layer.bound = self.chunks.map(|chunks| bound(layer, chunks)).transpose()?;
        require(layer.bound.is_some() || layer.extents.is_empty(), || "it has no chunk digests".to_owned())
    }
}

fn section(row: &wire::Section, index: &Place<'_>, end: &mut u64) -> Result<Section> {
    let range = StoredRange::at(row.start.get(), row.len.get())
        .filter(|range| range.start() == *end && range.end() <= index.size);
    let range = range.ok_or_else(|| invalid(format!("its section of kind {} is out of place", row.kind)))?;
    *end = range.end();
    let digest =
        Digest::of_value(Algorithm::Sha256, &row.digest).ok_or_else(|| invalid("a section has no digest"))?;
    Ok(Section { home: index.home.clone(), range, digest, bytes: None })
}

/// How content is made, with the lengths that a table of spans can have, and checkpoints only where they mean something.
fn coding(row: &wire::Layer, spans: Option<Section>, checkpoints: Option<Section>) -> Result<Coding> {
    let (how, lengths) = match row.coding {
        wire::STORED if spans.is_none() && checkpoints.is_none() => return Ok(Coding::Stored),
        wire::STORED => return Err(invalid("it has spans and is not compressed")),
        wire::GZIP => (Compression::Gzip, gzip::Table::LENGTHS),
        wire::ZSTD => (Compression::Zstd, zstd::Spans::LENGTHS),
        other => return Err(unsupported(format!("it has coding {other}"))),
    };
    let table = spans.ok_or_else(|| invalid("it is compressed and has no spans"))?;
    require(lengths.contains(&table.range.len()), || {
        format!("its section of spans has {} bytes, which none has", table.range.len())
    })?;
    let meant = checkpoints.as_ref().is_none_or(|kept| how == Compression::Gzip && !kept.range.is_empty());
    require(meant, || "it has checkpoints and no use for them".to_owned())?;
    Ok(Coding::Spans(Spans { how, content: row.content.get(), table, checkpoints }))
}

fn bound(layer: &Layer, chunks: Section) -> Result<Bound> {
    let extents = &layer.extents;
    let count = extents.iter().map(|extent| Grid::new(extent.len()).chunks());
    // Extents do not overlap, so that their chunks are fewer than 2^64.
    let wanted = count.fold(0_u64, u64::saturating_add).saturating_mul(32);
    require(!extents.is_empty() && chunks.range.len() == wanted, || {
        format!("it has {} bytes of chunk digests where {wanted} are needed", chunks.range.len())
    })?;
    let kept_as = kept_as(&layer.blob.digest, extents, &chunks.digest);
    Ok(Bound { chunks, kept_as })
}

fn entries(tables: &Tables<'_>, layers: &[Layer]) -> Result<Vec<Entry>> {
    let mut names = Names { text: tables.text, layers, layer: 0, extents: 0, seen: HashMap::new() };
    let mut entries = Vec::with_capacity(tables.entries.len());
    let mut at = 0_usize;
    for (number, row) in tables.entries.iter().enumerate() {
        let named = |error: Error| error.context(format!("entry {number} of it can't be meant"));
        entries.push(names.entry(row, &mut at).map_err(named)?);
    }
    require(at == tables.text.len(), || format!("{} bytes of text are nobody's", tables.text.len() - at))?;
    Ok(entries)
}

/// The entries as they come by, layer after layer.
struct Names<'a> {
    text: &'a [u8],
    layers: &'a [Layer],
    /// The layer at hand, and how many of its extents belong to entries before.
    layer: usize,
    extents: usize,
    /// The paths of this layer, and whether each is a file.
    seen: HashMap<&'a [u8], bool>,
}

impl<'a> Names<'a> {
    /// `at` is where the text goes on.
    fn entry(&mut self, row: &wire::Entry, at: &mut usize) -> Result<Entry> {
        require(is_zero(&row.reserved), || "reserved bytes are not 0".to_owned())?;
        let mode = row.mode.get();
        require(mode <= wire::PERMISSIONS, || format!("it has the permission bits {mode:o}"))?;
        let layer = self.enter(count(row.layer))?;
        let raw = self.piece(row.path, row.path_len, at)?;
        let path = path::validate(raw)?;
        let kind = self.kind(row, &path, at)?;
        let is_file = matches!(kind, EntryKind::File { .. });
        require(self.seen.insert(raw, is_file).is_none(), || format!("{path:?} is twice in one layer"))?;
        Ok(Entry { path, kind, mode, mtime: row.mtime.get(), layer })
    }

    fn enter(&mut self, layer: usize) -> Result<usize> {
        require(layer >= self.layer && layer < self.layers.len(), || {
            format!("its layer {layer} is not there or out of order")
        })?;
        if layer > self.layer {
            (self.layer, self.extents) = (layer, 0);
            self.seen.clear();
        }
        Ok(layer)
    }

    fn kind(&mut self, row: &wire::Entry, path: &str, at: &mut usize) -> Result<EntryKind> {
        let is_link = matches!(row.kind, wire::SYMBOLIC_LINK | wire::HARD_LINK);
        require(is_link || (row.target.get(), row.target_len.get()) == (0, 0), || {
            format!("{path:?} has a target and is no link")
        })?;
        require(row.kind == wire::FILE || row.extent.get() == wire::NO_EXTENT, || {
            format!("{path:?} has an extent and is no file")
        })?;
        match row.kind {
            wire::FILE => self.file(row, path),
            wire::FOLDER => Ok(EntryKind::Directory),
            wire::SYMBOLIC_LINK => {
                let target = self.piece(row.target, row.target_len, at)?;
                path::link_target(path, target).map(EntryKind::Symlink)
            }
            wire::HARD_LINK => {
                let target = self.piece(row.target, row.target_len, at)?;
                require(self.seen.get(target) == Some(&true), || {
                    format!(
                        "the hard link {path:?} leads to no file before it: \"{}\"",
                        target.escape_ascii()
                    )
                })?;
                path::validate(target).map(EntryKind::HardLink)
            }
            other => Err(invalid(format!("{path:?} is of kind {other}"))),
        }
    }

    /// A file's extent comes after those of the files before it, as it does in an archive.
    fn file(&mut self, row: &wire::Entry, path: &str) -> Result<EntryKind> {
        if row.extent == wire::NO_EXTENT {
            return Ok(EntryKind::File { extent: None, size: 0 });
        }
        let extent = count(row.extent);
        let own = self.layers.get(self.layer).map_or(&[][..], |layer| &layer.extents);
        let range = own.get(extent).filter(|_| extent >= self.extents);
        let range = range
            .ok_or_else(|| invalid(format!("{path:?} has an extent that is not there or not its own")))?;
        self.extents = extent.saturating_add(1);
        let id = ExtentId { layer: self.layer, extent };
        Ok(EntryKind::File { extent: Some(id), size: range.len() })
    }

    /// The piece of text that must begin at `at`.
    fn piece(
        &self,
        start: zerocopy::little_endian::U32,
        len: zerocopy::little_endian::U32,
        at: &mut usize,
    ) -> Result<&'a [u8]> {
        let (start, len) = (count(start), count(len));
        let piece = start.checked_add(len).and_then(|end| self.text.get(start..end));
        let piece = piece.filter(|_| start == *at);
        *at = start.saturating_add(len);
        piece.ok_or_else(|| invalid("its text is not there or out of order"))
    }
}
