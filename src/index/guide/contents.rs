//! Which table a layer brings, found by its annotations or its last bytes.

use super::decode::{Decoded, decode};
use super::probe::{Bounds, Probe, Stored, apart};
use super::room::Loan;
use crate::codec::estargz::{self, Footer};
use crate::codec::toc::{self, ContentDigest, JSON_LIMIT, Toc};
use crate::codec::zstd::chunked::{self, Position};
use crate::codec::zstd::{Spans, seekable};
use crate::error::{Error, Kind, Result};
use crate::index::Compression;
use crate::oci::artifact::ModelLayer;
use crate::range::StoredRange;

/// How much of a layer's end is read: any footer, and the seek table of some 8,000 frames.
const TAIL: u64 = 64 << 10;

/// Frames are joined to spans of so many bytes, so that there are few of them whatever their size, and a read that needs a few
/// bytes decodes little.
const SPAN: u64 = 64 << 10;

/// How much more memory the spans of a seek table take at worst than its rows.
const WORST: u64 = 8;

/// A table that a layer brings.
pub(super) enum Found {
    /// Of all frames of a zstd layer.
    Frames(Spans),
    /// Of the parts of its files.
    Contents(Contents),
}

/// A table of contents.
pub(super) struct Contents {
    pub(super) how: Compression,
    pub(super) toc: Toc,
    /// Where the stored bytes end that it is about.
    pub(super) data: u64,
    /// What follows them in the archive, which is the table itself: where its stored bytes are, and their content.
    pub(super) after: Option<(StoredRange, Decoded)>,
    /// Whether the manifest says what its digest must be.
    pub(super) is_pinned: bool,
    /// What `toc` takes.
    _loan: Loan,
}

/// The table of `layer`; `None` where it has none.
///
/// # Errors
/// Those of reading, and of the codecs where what is there is not in order.
pub(super) async fn find(probe: &Probe<'_>, layer: &ModelLayer, how: Compression) -> Result<Option<Found>> {
    match how {
        Compression::Gzip => members(probe, layer).await,
        Compression::Zstd => frames(probe, layer).await,
    }
}

async fn frames(probe: &Probe<'_>, layer: &ModelLayer) -> Result<Option<Found>> {
    let size = probe.blob.size;
    let annotations = &layer.descriptor.annotations;
    let annotated = chunked::annotated(|key| annotations.get(key).map(String::as_str), size)?;
    if let Some(position) = annotated {
        let stored = probe.read(position.stored).await?;
        return chunked_contents(probe, position, stored).await.map(Some);
    }
    let tail = probe.tail(TAIL).await?;
    if let Some(position) = chunked::footer(last(&tail, chunked::TAIL), size)? {
        let stored = match within(&tail, position.stored, size) {
            Some(stored) => stored,
            None => probe.read(position.stored).await?,
        };
        return chunked_contents(probe, position, stored).await.map(Some);
    }
    let mut table = tail;
    loop {
        match seek_table(probe, table, size).await? {
            (seekable::Step::Table(spans), _) => return Ok(Some(Found::Frames(spans))),
            (seekable::Step::Absent, _) => return Ok(None),
            (seekable::Step::Need(range), here) if range.len() > here => table = probe.read(range).await?,
            (seekable::Step::Need(_), _) => return Err(invalid("its seek table asks for what is here")),
        }
    }
}

/// What the end of the blob says, and how many bytes of it that was.
async fn seek_table(probe: &Probe<'_>, end: Stored, size: u64) -> Result<(seekable::Step, u64)> {
    let len = u64::try_from(end.len()).unwrap_or(u64::MAX);
    // As many spans as it has rows, at worst.
    let loan = probe.bounds.desk.take(len.saturating_mul(WORST))?;
    apart(move || {
        let step = seekable::read(&end, size, SPAN);
        drop(loan);
        step.map(|step| (step, len))
    })
    .await
}

async fn chunked_contents(probe: &Probe<'_>, position: Position, stored: Stored) -> Result<Found> {
    let (bounds, is_pinned) = (probe.bounds.clone(), position.digest.is_some());
    // The table's own frame has 8 bytes before it.
    let data = position.stored.start().saturating_sub(8);
    let read = apart(move || {
        let _of_json = bounds.desk.take(position.content)?;
        let json = chunked::json(&position, &stored)?;
        drop(stored);
        of_json(&bounds, &json, || toc::read(&json, data))
    });
    let (toc, _loan) = read.await?;
    let how = Compression::Zstd;
    Ok(Found::Contents(Contents { how, toc, data, after: None, is_pinned, _loan }))
}

/// The table that `read` makes of this JSON, and what it takes.
fn of_json(bounds: &Bounds, json: &[u8], read: impl FnOnce() -> Result<Toc>) -> Result<(Toc, Loan)> {
    let loan = bounds.desk.take(toc::weight(json))?;
    read().map(|toc| (toc, loan))
}

async fn members(probe: &Probe<'_>, layer: &ModelLayer) -> Result<Option<Found>> {
    let size = probe.blob.size;
    let digest = layer.descriptor.annotations.get(estargz::DIGEST_KEY);
    let digest = digest.map(|text| {
        ContentDigest::parse(text).ok_or_else(|| invalid("the annotation of its table's digest is no digest"))
    });
    let digest = digest.transpose()?;
    let tail = probe.tail(TAIL).await?;
    let Some(Footer::Table(stored)) = estargz::footer(last(&tail, estargz::TAIL), size)? else {
        return Ok(None);
    };
    let bytes = match within(&tail, stored, size) {
        Some(bytes) => bytes,
        None => probe.read(stored).await?,
    };
    let (how, bounds) = (Compression::Gzip, probe.bounds.clone());
    let limit = usize::try_from(JSON_LIMIT).unwrap_or(usize::MAX).saturating_add(4096);
    let read = apart(move || {
        let content = decode(&bounds, how, &bytes, 0, limit)?;
        drop(bytes);
        let read = || estargz::read(&content.bytes, stored, digest);
        let (toc, loan) = of_json(&bounds, &content.bytes, read)?;
        Ok((toc, loan, content))
    });
    let (toc, _loan, content) = read.await?;
    let (data, after, is_pinned) = (stored.start(), Some((stored, content)), digest.is_some());
    Ok(Some(Found::Contents(Contents { how, toc, data, after, is_pinned, _loan })))
}

/// The last `len` bytes, or all.
fn last(tail: &[u8], len: u64) -> &[u8] {
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(tail.len());
    tail.get(tail.len() - len..).unwrap_or_default()
}

/// The bytes of `range` of a blob of `size` bytes, if its end, `tail`, has all of them.
fn within(tail: &Stored, range: StoredRange, size: u64) -> Option<Stored> {
    let start = size.checked_sub(tail.len() as u64)?;
    let at = |place: u64| usize::try_from(place.checked_sub(start)?).ok();
    let (from, to) = (at(range.start())?, at(range.end())?);
    // The end is held no longer than this, and counts for itself.
    (to <= tail.len()).then(|| Stored { bytes: tail.bytes.slice(from..to), _loan: Loan::default() })
}

fn invalid(why: &str) -> Error {
    Error::new(Kind::Invalid, why)
}
