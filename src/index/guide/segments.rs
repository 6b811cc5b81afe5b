//! A table of contents laid out: where the content of each part begins, and what lies between the files.
//!
//! A table says where parts are stored and how much of a file each holds, and of headers nothing. What is no part is read and
//! decoded whole, which tells how long it is. A part that ends a file may share its member with the header that follows:
//! where that header is in a member of its own after all, the last bytes show it; else the part is decoded as well.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::contents::Contents;
use super::decode::{Decoded, decode};
use super::hop::Hopped;
use super::probe::{Bounds, Probe, Stored, apart};
use super::room::Loan;
use super::{PART, Part};
use crate::codec::tar::{self, Step};
use crate::codec::toc::{self, EntryKind, Toc};
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
use crate::index::sections::Table;
use crate::index::{Compression, EntryKind as Shown};
use crate::range::{ContentRange, StoredRange};

/// What lies nearer to one another is read at once.
const NEAR: u64 = 64 << 10;

/// The last bytes of a part in which the header after it is looked for.
const END: u64 = 4 << 10;

/// How many places in it are tried where a header's member may begin.
const STARTS: usize = 4;

/// How many reads go side by side.
const SIDE_BY_SIDE: usize = 8;

/// The most content between files that is held.
const BETWEEN: usize = 64 << 20;

/// What a part of a file takes while a table is laid out: where it is, its segment, what that turned out to hold, and its place.
const EACH: u64 = 320;

/// A layer by its table of contents.
pub(super) struct Laid {
    pub(super) table: Table,
    pub(super) content: u64,
    /// What lies between files.
    pub(super) pieces: Vec<(u64, Vec<u8>)>,
    /// All parts, by place, those without digests as well.
    pub(super) parts: Vec<Placed>,
    /// Where the content begins of what the table itself is in.
    pub(super) after: Option<u64>,
    /// What all of this takes.
    _loan: Loan,
}

/// A part of a file, and where it lies in the layer's content.
#[derive(Clone, Copy)]
pub(super) struct Placed {
    content: ContentRange,
    digest: Option<toc::ContentDigest>,
    /// Which entry of the table is its file, and where the part begins in that.
    file: usize,
    offset: u64,
}

/// A stretch of stored bytes that is decoded alone.
struct Segment {
    stored: StoredRange,
    /// The number of its file's entry of each, and which of that file's parts it is.
    parts: Vec<(usize, usize)>,
    shape: Shape,
}

/// What is known of a segment's content before it is decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// So many bytes of a file.
    Exactly(u64),
    /// So many bytes of a file, with which it ends; the file has so many after a whole number of blocks. More may follow.
    AtLeast(u64, u64),
    /// Nothing.
    Unknown,
}

/// What a segment turned out to hold.
struct Content {
    len: u64,
    /// The end of it that belongs to no file, or all of it where that is not known.
    between: Decoded,
}

/// Lays out the table; `after` is what of it follows the files in the archive.
///
/// # Errors
/// Those of reading and decoding; `Invalid` where it does not fit the blob; `Unsupported` where it would take too much.
pub(super) async fn lay_out(
    probe: &Probe<'_>,
    contents: &Arc<Contents>,
    after: Option<(StoredRange, Decoded)>,
) -> Result<Laid> {
    let (how, size) = (contents.how, probe.blob.size);
    let (bounds, of) = (Arc::clone(&probe.bounds), Arc::clone(contents));
    let (segments, loan) = apart(move || {
        let parts = u64::try_from(of.toc.entries.iter().map(parts).sum::<usize>()).unwrap_or(u64::MAX);
        let loan = bounds.desk.take(parts.saturating_mul(EACH))?;
        Ok((segments(&of.toc, of.data), loan))
    })
    .await?;
    let first: Vec<StoredRange> = segments.iter().filter_map(first_look).collect();
    let (bounds, here) = (Arc::clone(&probe.bounds), fetch(probe, &first).await?);
    let (segments, found, room) = apart(move || {
        let (found, room) = look(&bounds, how, &segments, &here)?;
        Ok((segments, found, room))
    })
    .await?;
    let missing = segments.iter().zip(&found).filter(|(_, found)| found.is_none());
    let missing: Vec<StoredRange> = missing.map(|(segment, _)| segment.stored).collect();
    let (bounds, here) = (Arc::clone(&probe.bounds), fetch(probe, &missing).await?);
    let of = Arc::clone(contents);
    apart(move || {
        let mut laying = Laying { loan, ..Laying::default() };
        for (segment, content) in segments.iter().zip(found) {
            let content = match content {
                Some(content) => content,
                None => whole(&bounds, how, segment.shape, here.bytes(segment.stored)?, room)?,
            };
            laying.add(&of.toc, segment, content)?;
        }
        laying.end(after, &of, size)
    })
    .await
}

/// How many parts an entry has.
fn parts(entry: &toc::Entry) -> usize {
    match &entry.kind {
        EntryKind::File(file) => file.parts.len(),
        EntryKind::Directory | EntryKind::Symlink(_) | EntryKind::HardLink(_) => 0,
    }
}

/// The parts that make up the files that are shown, where each file is made of its own, each of which has a digest and is not
/// too long.
pub(super) fn covering(mut parts: Vec<Placed>, hopped: &Hopped) -> Option<Vec<Part>> {
    parts.sort_by_key(|part| part.content.start());
    for entry in &hopped.entries {
        let Shown::File { extent: Some(id), .. } = entry.kind else { continue };
        let (extent, file) = (hopped.extents.get(id.extent)?, *hopped.files.get(id.extent)?);
        let first = parts.partition_point(|part| part.content.start() < extent.start());
        let mut at = extent.start();
        for part in parts.get(first..)?.iter().take_while(|part| part.content.start() < extent.end()) {
            let is_own = Some(part.file) == file && part.offset == at - extent.start();
            let fits = is_own && part.content.start() == at && part.is_held();
            at = fits.then_some(part.content.end())?;
        }
        (at == extent.end()).then_some(())?;
    }
    let held = parts.into_iter().filter(Placed::is_held);
    Some(held.filter_map(|part| Some(Part { content: part.content, digest: part.digest? })).collect())
}

impl Placed {
    /// Whether it can be held to its digest before it is served.
    fn is_held(&self) -> bool {
        self.content.len() <= PART && self.digest.is_some()
    }
}

/// All stored bytes before `data`, in order.
fn segments(toc: &Toc, data: u64) -> Vec<Segment> {
    let files = toc.entries.iter().enumerate().filter_map(|(number, entry)| match &entry.kind {
        EntryKind::File(file) => Some((number, file)),
        _ => None,
    });
    let mut parts: Vec<(&toc::Part, u64, (usize, usize))> = files
        .flat_map(|(number, file)| {
            (0..).zip(&file.parts).map(move |(at, part)| (part, file.size, (number, at)))
        })
        .collect();
    parts.sort_by_key(|(part, ..)| (part.stored.start(), part.skip));
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = 0;
    let mut rest = parts.as_slice();
    while let Some(((first, size, _), _)) = rest.split_first() {
        let start = first.stored.start();
        let count = rest.partition_point(|(part, ..)| part.stored.start() == start);
        let (group, after) = rest.split_at_checked(count).unwrap_or((rest, &[]));
        let end = group.iter().map(|(part, ..)| part.stored.end()).max().unwrap_or(start);
        let next = after.first().map_or(data, |(part, ..)| part.stored.start());
        let alone = group.len() == 1 && first.skip == 0;
        let shape = match () {
            () if !alone => Shape::Unknown,
            () if first.content.end() < *size || end < next => Shape::Exactly(first.content.len()),
            () => Shape::AtLeast(first.content.len(), size % tar::BLOCK),
        };
        segments.extend(gap(at, start));
        let parts = group.iter().map(|(_, _, number)| *number).collect();
        segments.push(Segment { stored: StoredRange::new(start, end), parts, shape });
        (at, rest) = (end, after);
    }
    segments.extend(gap(at, data));
    segments
}

fn gap(start: u64, end: u64) -> Option<Segment> {
    let stored = StoredRange::new(start, end);
    (!stored.is_empty()).then_some(Segment { stored, parts: Vec::new(), shape: Shape::Unknown })
}

/// The content of each segment, as far as it can be told from what is read at first, and how much of what lies between files
/// may still be held.
fn look(
    bounds: &Bounds,
    how: Compression,
    segments: &[Segment],
    here: &Here,
) -> Result<(Vec<Option<Content>>, usize)> {
    let (mut found, mut room) = (Vec::new(), BETWEEN);
    for segment in segments {
        let content = match (segment.shape, first_look(segment)) {
            (Shape::Exactly(len), _) => Some(Content { len, between: Decoded::default() }),
            (_, Some(range)) => {
                let bytes = here.bytes(range)?;
                match segment.shape {
                    Shape::AtLeast(len, over) if range != segment.stored => {
                        header_in(bounds, how, bytes, len, over)
                    }
                    _ => Some(whole(bounds, how, segment.shape, bytes, room)?),
                }
            }
            (_, None) => None,
        };
        room = room.saturating_sub(content.as_ref().map_or(0, |content| content.between.bytes.len()));
        found.push(content);
    }
    Ok((found, room))
}

/// What is read of a segment at first; `None` where its length is known.
fn first_look(segment: &Segment) -> Option<StoredRange> {
    let stored = segment.stored;
    match segment.shape {
        Shape::Exactly(_) => None,
        Shape::AtLeast(..) if stored.len() > NEAR => Some(StoredRange::new(stored.end() - END, stored.end())),
        Shape::AtLeast(..) | Shape::Unknown => Some(stored),
    }
}

fn whole(bounds: &Bounds, how: Compression, shape: Shape, stored: &[u8], room: usize) -> Result<Content> {
    let skip = match shape {
        Shape::Exactly(len) | Shape::AtLeast(len, _) => len,
        Shape::Unknown => 0,
    };
    let between = decode(bounds, how, stored, usize::try_from(skip).unwrap_or(usize::MAX), room)?;
    Ok(Content { len: skip.saturating_add(between.bytes.len() as u64), between })
}

/// What follows a part of `len` bytes, `over` more than whole blocks, where it stands in members of its own at the end of
/// `stored`: padding and the headers of the next file.
fn header_in(bounds: &Bounds, how: Compression, stored: &[u8], len: u64, over: u64) -> Option<Content> {
    let magic: &[u8] = match how {
        Compression::Gzip => b"\x1f\x8b\x08",
        Compression::Zstd => b"\x28\xb5\x2f\xfd",
    };
    let padding = usize::try_from((tar::BLOCK - over) % tar::BLOCK).ok()?;
    let starts = (0..stored.len()).filter(|at| stored.get(*at..).is_some_and(|rest| rest.starts_with(magic)));
    let mut contents = starts.take(STARTS).map_while(|at| {
        // Where the layer has had its tries, the part is decoded instead.
        bounds.tried().ok()?;
        Some(decode(bounds, how, stored.get(at..)?, 0, BETWEEN).ok())
    });
    let between = contents.by_ref().flatten().find_map(|Decoded { bytes, loan }| {
        let rest = bytes.len() % usize::try_from(tar::BLOCK).ok()?;
        // The padding may be in a member before that.
        let missing = if rest == 0 { padding } else { 0 };
        let bytes = [vec![0; missing], bytes].concat();
        let headers = bytes.get(padding..)?;
        (rest == 0 || rest == padding).then_some(())?;
        let is_right = bytes.iter().take(padding).all(|byte| *byte == 0) && is_headers(headers);
        is_right.then_some(Decoded { bytes, loan })
    })?;
    Some(Content { len: len.saturating_add(between.bytes.len() as u64), between })
}

/// Whether these bytes are the headers of members without data, then of one whose data follows, or an archive's end.
fn is_headers(mut bytes: &[u8]) -> bool {
    loop {
        match tar::step(bytes, u64::MAX / 4) {
            Ok(Step::End(_)) => return true,
            Ok(Step::Member(member)) if member.size > 0 => return member.data == bytes.len() as u64,
            Ok(Step::Member(member)) => {
                let rest = usize::try_from(member.next).ok().and_then(|next| bytes.get(next..));
                let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { return false };
                bytes = rest;
            }
            Ok(Step::Need(_)) | Err(_) => return false,
        }
    }
}

/// Stretches of a blob that are here, sorted.
struct Here(Vec<(StoredRange, Stored)>);

impl Here {
    fn bytes(&self, range: StoredRange) -> Result<&[u8]> {
        let after = self.0.partition_point(|(here, _)| here.start() <= range.start());
        let found = after.checked_sub(1).and_then(|at| self.0.get(at)).and_then(|(here, bytes)| {
            let from = usize::try_from(range.start().checked_sub(here.start())?).ok()?;
            bytes.get(from..from.checked_add(usize::try_from(range.len()).ok()?)?)
        });
        found.ok_or_else(|| Error::new(Kind::Broken, "stored bytes are not here that were read"))
    }
}

/// Reads the ranges, which are in order, those that are near one another at once.
async fn fetch(probe: &Probe<'_>, ranges: &[StoredRange]) -> Result<Here> {
    let mut joined: Vec<StoredRange> = Vec::new();
    for range in ranges.iter().filter(|range| !range.is_empty()) {
        match joined.last_mut() {
            Some(last) if range.start().saturating_sub(last.end()) <= NEAR => {
                *last = StoredRange::new(last.start(), range.end().max(last.end()));
            }
            _ => joined.push(*range),
        }
    }
    let reads = joined.into_iter().map(|range| async move { Ok((range, probe.read(range).await?)) });
    stream::iter(reads).buffered(SIDE_BY_SIDE).try_collect().await.map(Here)
}

/// A layout in the making.
#[derive(Default)]
struct Laying {
    /// Where each segment begins: its stored bytes, and its content.
    starts: Vec<(u64, u64)>,
    content: u64,
    pieces: Vec<(u64, Vec<u8>)>,
    parts: Vec<Placed>,
    after: Option<u64>,
    /// What all of this takes.
    loan: Loan,
}

impl Laying {
    fn begin(&mut self, stored: StoredRange) -> Result<()> {
        if self.starts.last().is_some_and(|(before, _)| *before >= stored.start()) {
            return Err(Error::new(Kind::Invalid, "parts overlap"));
        }
        self.starts.push((stored.start(), self.content));
        Ok(())
    }

    fn add(&mut self, toc: &Toc, segment: &Segment, content: Content) -> Result<()> {
        self.begin(segment.stored)?;
        let beyond = || Error::new(Kind::Invalid, "there is more content than fits 64 bits");
        for (file, at) in &segment.parts {
            let Some(part) = part(toc, *file, *at) else { continue };
            let start = self.content.checked_add(part.skip).ok_or_else(beyond)?;
            let content = ContentRange::at(start, part.content.len()).ok_or_else(beyond)?;
            let (file, offset, digest) = (*file, part.content.start(), part.digest);
            self.parts.push(Placed { content, digest, file, offset });
        }
        let of_files = content.len.saturating_sub(content.between.bytes.len() as u64);
        self.content = self.content.checked_add(of_files).ok_or_else(beyond)?;
        self.piece(content.between);
        Ok(())
    }

    /// Content that is here, joined with what is before it.
    fn piece(&mut self, decoded: Decoded) {
        let Decoded { bytes, loan } = decoded;
        self.loan.join(loan);
        let len = bytes.len() as u64;
        match self.pieces.last_mut() {
            Some((start, before)) if start.saturating_add(before.len() as u64) == self.content => {
                before.extend(bytes)
            }
            _ if bytes.is_empty() => {}
            _ => self.pieces.push((self.content, bytes)),
        }
        self.content = self.content.saturating_add(len);
    }

    /// The layout of a blob of `size` bytes, where what of the table follows the files is put behind them.
    fn end(mut self, after: Option<(StoredRange, Decoded)>, of: &Contents, size: u64) -> Result<Laid> {
        let end = match after {
            Some((stored, content)) => {
                self.begin(stored)?;
                self.after = Some(self.content);
                self.piece(content);
                stored.end()
            }
            None => of.data,
        };
        let Self { starts, content, pieces, parts, after, loan } = self;
        let table = match of.how {
            Compression::Gzip => Table::Gzip(gzip::Table::of_members(&starts, end, content, size)?),
            Compression::Zstd => Table::Zstd(frames(&starts, content, end, size)?),
        };
        Ok(Laid { table, content, pieces, parts, after, _loan: loan })
    }
}

/// A part of a file, by the number of its entry and its own.
fn part(toc: &Toc, file: usize, at: usize) -> Option<&toc::Part> {
    match &toc.entries.get(file)?.kind {
        EntryKind::File(file) => file.parts.get(at),
        EntryKind::Directory | EntryKind::Symlink(_) | EntryKind::HardLink(_) => None,
    }
}

/// The spans of a zstd layer, with what follows its data as one without content.
fn frames(starts: &[(u64, u64)], content: u64, end: u64, size: u64) -> Result<zstd::Spans> {
    // Each is one span: no two are joined.
    let mut builder = zstd::Builder::new(0);
    let ends = starts.iter().skip(1).copied().chain([(end, content)]);
    for ((stored, before), (next, after)) in starts.iter().zip(ends) {
        builder.push(next.saturating_sub(*stored), after.saturating_sub(*before))?;
    }
    if size > end {
        builder.push(size - end, 0)?;
    }
    builder.finish()
}
