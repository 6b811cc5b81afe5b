//! The seekable format: a table at a blob's end that says how long each frame is (zstd's contrib/seekable_format, 0.1.0).
//!
//! The table is checked against the blob's size and never believed further: a span that decodes to another size than it
//! says is an error of the decoder. Checksums in it are 32 bits of XXH64 and prove nothing, so they are passed over.
//! What a table says of content is as good as its writer until every span has been decoded. Floor 2 reads it; the
//! [`Writer`](super::Writer) writes it.

use super::spans::{Builder, Spans};
use super::{invalid, u32_at};
use crate::error::{Error, Kind, Result};
use crate::range::StoredRange;

/// The largest table: 64 MiB, which is 8 TiB in frames of 1 MiB.
pub const TABLE_LIMIT: u64 = 64 << 20;

const MAGIC: u32 = 0x8f92_eab1;
const SKIPPABLE: u32 = 0x184d_2a5e;
const FOOTER: u64 = 9;
const HEADER: u64 = 8;

/// What the end of a blob says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// This range, which ends where the blob ends, is needed to tell.
    Need(StoredRange),
    /// There is no seek table.
    Absent,
    /// The blob's spans, with the table itself a part without content.
    Table(Spans),
}

/// Reads the seek table of a blob of `size` bytes, where `tail` is the blob's end, as much of it as is here.
///
/// Frames are joined to spans of up to `span` bytes as [`Builder`] does. Two requests at most: 9 bytes, then the table.
/// Memory is that of the spans; time is in proportion to the table.
///
/// # Errors
/// [`Kind::Invalid`] for a table that does not fit the blob; [`Kind::Unsupported`] for one larger than [`TABLE_LIMIT`].
pub fn read(tail: &[u8], size: u64, span: u64) -> Result<Step> {
    let last = |len: u64| Step::Need(StoredRange::new(size - len, size));
    if size < HEADER + FOOTER {
        return Ok(Step::Absent);
    }
    let Some(footer) = end_of(tail, FOOTER) else { return Ok(last(FOOTER)) };
    let (Some(frames), Some(descriptor), Some(MAGIC)) = (u32_at(footer, 0), footer.get(4), u32_at(footer, 5))
    else {
        return Ok(Step::Absent);
    };
    if descriptor & 0x7c != 0 {
        return Err(Error::new(Kind::Unsupported, "the seek table has flags of a later format"));
    }
    let row: usize = if descriptor & 0x80 == 0 { 8 } else { 12 };
    let rows = u64::from(frames) * if row == 8 { 8 } else { 12 };
    let len = HEADER + rows + FOOTER;
    if len > size {
        return Err(invalid(format!("the seek table says {frames} frames, more than the blob has room for")));
    }
    if len > TABLE_LIMIT {
        let why = format!("the seek table has {len} bytes, and {TABLE_LIMIT} is the most");
        return Err(Error::new(Kind::Unsupported, why).hint("compress it again in larger frames"));
    }
    let Some(table) = end_of(tail, len) else { return Ok(last(len)) };
    if u32_at(table, 0) != Some(SKIPPABLE) || u32_at(table, 4).map(u64::from) != Some(rows + FOOTER) {
        return Err(invalid("the seek table is no frame of the length that its footer says"));
    }
    let (_, rows) = table.split_at_checked(8).unwrap_or_default();
    let rows = rows.get(..rows.len().saturating_sub(9)).unwrap_or_default();
    spans(rows.chunks_exact(row), len, size, span).map(Step::Table)
}

fn end_of(tail: &[u8], len: u64) -> Option<&[u8]> {
    tail.get(tail.len().checked_sub(usize::try_from(len).ok()?)?..)
}

fn spans<'a>(rows: impl Iterator<Item = &'a [u8]>, table: u64, size: u64, span: u64) -> Result<Spans> {
    let mut builder = Builder::new(span);
    for row in rows {
        let (stored, content) = (u32_at(row, 0).unwrap_or(0), u32_at(row, 4).unwrap_or(0));
        builder.push(u64::from(stored), u64::from(content))?;
    }
    builder.push(table, 0)?;
    let spans = builder.finish()?;
    if spans.stored() != size {
        let covered = spans.stored();
        return Err(invalid(format!("the seek table covers {covered} bytes of a blob of {size}")));
    }
    Ok(spans)
}

/// The seek table of frames of so many stored and content bytes, to be written after the last of them. Without checksums,
/// since our frames bring their own.
///
/// # Errors
/// [`Kind::Unsupported`] for more frames than [`TABLE_LIMIT`] allows.
pub fn table(frames: &[(u32, u32)]) -> Result<Vec<u8>> {
    let too_many = || Error::new(Kind::Unsupported, "a blob has more frames than its seek table may hold");
    let count = u32::try_from(frames.len()).map_err(|_| too_many())?;
    let rows = u64::from(count) * 8;
    if HEADER + rows + FOOTER > TABLE_LIMIT {
        return Err(too_many());
    }
    let len = u32::try_from(rows + FOOTER).map_err(|_| too_many())?;
    let numbers = frames.iter().flat_map(|(stored, content)| [*stored, *content]);
    let numbers = [SKIPPABLE, len].into_iter().chain(numbers).chain([count]);
    let mut table: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
    table.push(0);
    table.extend(MAGIC.to_le_bytes());
    Ok(table)
}
