//! zstd:chunked: a zstd blob that brings a table of its files' frames, in a frame without content near its end.
//!
//! Two dialects: that of containers/storage, with tar-split data and a footer of 64 bytes, and that of the stargz
//! snapshotter, with 40. Position and digest of the table are annotations of the layer; the footer says the position too,
//! without a digest. [`toc`](crate::codec::toc) reads the table. Floor 2 calls it.

use super::{Decoder, Moved, Scanner, invalid, u32_at, u64_at};
use crate::codec::toc::{self, ContentDigest, JSON_LIMIT, Toc};
use crate::error::{Error, Kind, Result};
use crate::range::StoredRange;

/// Annotations with the table's position, `OFFSET:STORED:CONTENT:TYPE` in decimal: of containers/storage, of stargz.
pub const POSITION_KEYS: [&str; 2] =
    ["io.github.containers.zstd-chunked.manifest-position", "io.containers.zstd-chunked.manifest-position"];

/// Annotations with the digest of the table's stored bytes, in the same order.
pub const CHECKSUM_KEYS: [&str; 2] =
    ["io.github.containers.zstd-chunked.manifest-checksum", "io.containers.zstd-chunked.manifest-checksum"];

/// How many bytes of a blob's end the footer needs at most, its frame's header among them.
pub const TAIL: u64 = 72;

/// Who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// containers/storage: podman, buildah, skopeo.
    Storage,
    /// The stargz snapshotter: nerdctl, buildkit.
    Stargz,
}

/// Where the table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Whose form it has.
    pub dialect: Dialect,
    /// The table as a zstd frame.
    pub stored: StoredRange,
    /// How many bytes of JSON it decodes to.
    pub content: u64,
    /// Digest of the table's stored bytes, where annotations say it.
    pub digest: Option<ContentDigest>,
}

/// Finds the table of a blob of `size` bytes by its layer's annotations; `None` where they name none.
///
/// # Errors
/// [`Kind::Invalid`] where an annotation is malformed, both dialects stand side by side, or the position is outside the
/// blob; [`Kind::Unsupported`] for a table of another type or a larger one than [`JSON_LIMIT`].
pub fn annotated<'a>(annotation: impl Fn(&str) -> Option<&'a str>, size: u64) -> Result<Option<Position>> {
    let [storage, stargz] = POSITION_KEYS.map(&annotation);
    let [storage_sum, stargz_sum] = CHECKSUM_KEYS.map(&annotation);
    let (dialect, text, sum) = match (storage, stargz) {
        (None, None) => return Ok(None),
        (Some(text), None) => (Dialect::Storage, text, storage_sum),
        (None, Some(text)) => (Dialect::Stargz, text, stargz_sum),
        (Some(_), Some(_)) => return Err(invalid("annotations give two positions of the table of contents")),
    };
    let bad = || invalid(format!("\"{}\" is no position of a table of contents", text.escape_debug()));
    let numbers: Option<Vec<u64>> = text.split(':').take(5).map(decimal).collect();
    let Some([start, stored, content, kind]) = numbers.as_deref() else { return Err(bad()) };
    let digest = sum.map(|sum| {
        let why = || invalid(format!("\"{}\" is no digest of a table of contents", sum.escape_debug()));
        ContentDigest::parse(sum).ok_or_else(why)
    });
    position(dialect, [*start, *stored, *content, *kind], size, digest.transpose()?).map(Some)
}

/// Finds the table of a blob of `size` bytes by its footer, where `tail` holds the last [`TAIL`] bytes, or all there are;
/// `None` where there is no footer. Its digest is not known then, so what it says may be anybody's.
///
/// # Errors
/// As [`annotated`], where the footer's frame is not right or a number in it is not.
pub fn footer(tail: &[u8], size: u64) -> Result<Option<Position>> {
    let (dialect, len) = match tail.last_chunk::<8>() {
        Some(b"GNUlInUx") => (Dialect::Storage, 64),
        Some(b"GnUlInUx") => (Dialect::Stargz, 40),
        _ => return Ok(None),
    };
    let frame = tail.len().checked_sub(len + 8).and_then(|start| tail.get(start..)).unwrap_or_default();
    if u32_at(frame, 0) != Some(0x184d_2a50) || u32_at(frame, 4).map(usize::try_from) != Some(Ok(len)) {
        return Err(invalid("the footer of zstd:chunked stands in no frame of its own"));
    }
    let number = |at: usize| u64_at(frame, 8 + at * 8).unwrap_or(u64::MAX);
    position(dialect, [number(0), number(1), number(2), number(3)], size, None).map(Some)
}

fn decimal(text: &str) -> Option<u64> {
    Some(text).filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?.parse().ok()
}

fn position(
    dialect: Dialect,
    [start, len, content, kind]: [u64; 4],
    size: u64,
    digest: Option<ContentDigest>,
) -> Result<Position> {
    if kind != 1 {
        return Err(Error::new(Kind::Unsupported, format!("the table of contents is of type {kind}")));
    }
    if len > JSON_LIMIT || content > JSON_LIMIT {
        return Err(toc::too_large());
    }
    let stored = StoredRange::at(start, len).filter(|stored| stored.end() <= size && start >= 8 && len > 0);
    let stored = stored.ok_or_else(|| invalid("the table of contents lies outside the blob"))?;
    Ok(Position { dialect, stored, content, digest })
}

/// Reads the table from its stored bytes, which are those of `position`. Takes memory as [`json`] and [`toc::read`].
///
/// # Errors
/// As these two.
pub fn read(position: &Position, stored: &[u8]) -> Result<Toc> {
    // The table's own frame has 8 bytes before it.
    toc::read(&json(position, stored)?, position.stored.start().saturating_sub(8))
}

/// The JSON of the table, whose stored bytes are those of `position`: as many bytes as that says.
///
/// # Errors
/// [`Kind::Integrity`] where the annotation's digest is another; [`Kind::Invalid`] where it decodes to another size than
/// said.
pub fn json(position: &Position, stored: &[u8]) -> Result<Vec<u8>> {
    if position.digest.is_some_and(|digest| digest != ContentDigest::of(stored)) {
        return Err(Error::new(
            Kind::Integrity,
            "the table of contents has another digest than its annotation",
        ));
    }
    if u64::try_from(stored.len()) != Ok(position.stored.len()) || position.content > JSON_LIMIT {
        return Err(invalid("the table of contents has another length than its position says"));
    }
    let mut json = vec![0; usize::try_from(position.content).map_err(|_| toc::too_large())?];
    Decoder::new()?.span(stored, &mut json).map_err(|error| error.context("the table of contents"))?;
    Ok(json)
}

/// The content of one file's part from the stored bytes of its [`Part`](toc::Part); `content` is of the part's size.
///
/// What else its frame decodes to (padding, the next header) is not looked at. Costs a decoder with its window, and the
/// time for the bytes before the part's end.
///
/// # Errors
/// [`Kind::Invalid`] where no frame starts there or there is too little content; [`Kind::Unsupported`] as
/// [`Scanner::push`]; [`Kind::Integrity`] where the table has a digest of the part and it is another.
pub fn part(part: &toc::Part, stored: &[u8], content: &mut [u8]) -> Result<()> {
    let short = || invalid("a part of a file has less content than the table of contents says");
    if u64::try_from(content.len()) != Ok(part.content.len()) {
        return Err(short());
    }
    let (mut scanner, mut taken, mut skipped) = (Scanner::new(u64::MAX)?, 0, 0_u64);
    let (mut unwanted, mut filled) = ([0; 4096], 0);
    while filled < content.len() {
        let left = usize::try_from(part.skip - skipped).unwrap_or(usize::MAX).min(unwanted.len());
        let room = if left == 0 { content.get_mut(filled..) } else { unwanted.get_mut(..left) };
        let moved = scanner.push(stored.get(taken..).unwrap_or_default(), room.unwrap_or_default())?;
        taken += moved.stored;
        if left == 0 {
            filled += moved.content;
        } else {
            skipped += u64::try_from(moved.content).unwrap_or(0);
        }
        if moved == Moved::default() {
            return Err(short());
        }
    }
    if part.digest.is_some_and(|digest| digest != ContentDigest::of(content)) {
        return Err(Error::new(Kind::Integrity, "a part of a file is not what the table of contents says"));
    }
    Ok(())
}
