//! Decoding a stretch of content from the start of the span it begins in.

use super::inflate::Stop;
use super::table::Table;
use super::walk::{Landmark, Walk};
use super::{Moved, window};
use crate::error::{Error, Kind, Result};
use crate::range::{ContentRange, StoredRange};

/// Gives a range of content exactly, from the stored bytes of its spans.
///
/// What a wrong table or window leads to is an error or wrong bytes, never more memory: content is right when its
/// chunks' digests say so. Members that lie wholly within are checked by their CRC.
///
/// Takes about 100 KiB, whatever the range.
pub struct Decoder {
    walk: Walk,
    wanted: ContentRange,
    stored: StoredRange,
}

impl Decoder {
    /// A decoder of `wanted`, which begins in a span whose kept window is `window`.
    ///
    /// `window` is what [`Table::window`] places, `None` where that is; it is compared with its digest here.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where the range is empty or not within the content, or the window is malformed or missing;
    /// [`Kind::Integrity`] where the window is not what the table says.
    pub fn new(table: &Table, window: Option<&[u8]>, wanted: ContentRange) -> Result<Self> {
        let within = !wanted.is_empty() && wanted.end() <= table.content_size();
        let span = table.span_at(wanted.start()).filter(|_| within);
        let span = span.ok_or_else(|| invalid("the range is not within the content"))?;
        let start = table.spans.get(span).ok_or_else(|| invalid("there is no such span"))?;
        let walk = match (table.window(span), window) {
            (None, _) => Walk::from_member(start.bit / 8, start.content)?,
            (Some(_), None) => return Err(invalid("the span's window is missing")),
            (Some(place), Some(kept)) => {
                if *blake3::hash(kept).as_bytes() != place.digest {
                    return Err(Error::new(Kind::Integrity, "a window is not what the index says"));
                }
                Walk::from_block(start.bit, start.content, &window::unkeep(kept)?)?
            }
        };
        Ok(Self { walk, wanted, stored: table.stored(wanted) })
    }

    /// The stored bytes it has to be given, from first to last, in pieces of any size; it may need fewer.
    #[must_use]
    pub fn stored(&self) -> StoredRange {
        self.stored
    }

    /// Whether all of the range has been given.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.walk.content() >= self.wanted.end()
    }

    /// Decodes on: reads from `stored`, the next bytes of [`Self::stored`], and writes to `content` until one of
    /// them is used up, or the range is.
    ///
    /// `content` also is the room for what lies before the range, so what stands behind the bytes written is lost.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where the stored bytes are malformed or end before the range does; [`Kind::Integrity`] where a
    /// member's CRC or length is wrong; [`Kind::Unsupported`] for another method than deflate.
    pub fn step(&mut self, stored: &[u8], content: &mut [u8]) -> Result<Moved> {
        let mut moved = Moved::default();
        while !self.is_done() {
            let before = self.wanted.start().saturating_sub(self.walk.content());
            let left = if before > 0 { before } else { self.wanted.end() - self.walk.content() };
            let rest = stored.get(moved.read..).unwrap_or_default();
            let room = content.get_mut(moved.written..).unwrap_or_default();
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(room.len());
            let room = room.get_mut(..len).unwrap_or_default();
            let (by, landmark) = self.walk.step(rest, room, Stop::Never)?;
            moved.read += by.read;
            if before == 0 {
                moved.written += by.written;
            }
            let stopped = landmark == Landmark::None;
            let more = by.written > 0 && before > 0;
            if stopped && !more {
                break;
            }
        }
        self.must_have_more()?;
        Ok(moved)
    }

    /// When the stored bytes are used up and content is missing, they are not those of the range.
    fn must_have_more(&self) -> Result<()> {
        if !self.is_done() && self.walk.stored() > self.stored.end() {
            return Err(invalid("the stored bytes end before the range does"));
        }
        Ok(())
    }

    /// Says whether the range was given when there are no more stored bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where content is missing: the bytes or the table are wrong.
    pub fn finish(self) -> Result<()> {
        if self.is_done() { Ok(()) } else { Err(invalid("the stored bytes end before the range does")) }
    }
}

/// Decodes whole members, one after the other, from where one begins: for who knows where, and nothing else.
///
/// Takes about 100 KiB.
pub struct Members(Walk);

impl Members {
    /// A decoder at the start of a member.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where the inflate library can't be set up.
    pub fn new() -> Result<Self> {
        Walk::from_start().map(Self)
    }

    /// Decodes on, as [`Scanner::step`](super::Scanner::step).
    ///
    /// # Errors
    /// Those of [`Scanner::step`](super::Scanner::step).
    pub fn step(&mut self, stored: &[u8], content: &mut [u8]) -> Result<Moved> {
        let mut moved = Moved::default();
        loop {
            let rest = stored.get(moved.read..).unwrap_or_default();
            let room = content.get_mut(moved.written..).unwrap_or_default();
            let (by, landmark) = self.0.step(rest, room, Stop::Never)?;
            moved.add(by);
            if landmark == Landmark::None {
                return Ok(moved);
            }
        }
    }

    /// Says whether the last member has ended when there are no more stored bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it has not.
    pub fn finish(self) -> Result<()> {
        self.0.end()
    }
}

fn invalid(why: &str) -> Error {
    Error::new(Kind::Invalid, format!("cannot decode a part of a gzip layer: {why}"))
}
