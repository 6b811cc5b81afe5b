//! The pass over a gzip file that happens once: content out, and where to start again.

use blake3::Hasher;
use bytes::Bytes;

use super::inflate::Stop;
use super::table::{SPANS_LIMIT, Start, Table};
use super::walk::{Landmark, Walk};
use super::{Moved, window};
use crate::error::{Error, Kind, Result};

/// How much content lies between two checkpoints: 64 KiB to 64 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spacing(u64);

impl Spacing {
    /// So many bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for less than 64 KiB or more than 64 MiB: windows would outweigh what they save, or a read of a few
    /// bytes would decode for a second.
    pub fn new(bytes: u64) -> Result<Self> {
        if !(64 << 10..=64 << 20).contains(&bytes) {
            return Err(Error::new(Kind::Invalid, format!("a span of {bytes} bytes is not possible"))
                .hint("choose 64KiB to 64MiB"));
        }
        Ok(Self(bytes))
    }

    /// In bytes of content.
    #[must_use]
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl Default for Spacing {
    /// 4 MiB: windows are 0.8 % of the content at most.
    fn default() -> Self {
        Self(4 << 20)
    }
}

/// Decodes a gzip file from its start to its end, and records where spans begin.
///
/// A span begins at the first block end when a spacing of content has gone by, or at the first member that begins when a
/// quarter has, since that needs no window. A block is as long as its writer made it, so a span may be longer.
///
/// Takes about 100 KiB, and 350 KiB while a window is kept, beside the table (96 bytes a span) and windows not yet taken.
pub struct Scanner {
    walk: Walk,
    spacing: u64,
    table: Table,
    /// Where the next span may begin, once there is content after it.
    candidate: Option<Candidate>,
    /// The content before the last span or candidate.
    last: u64,
    /// The stored bytes of the last span so far.
    stored: Hasher,
    /// How many stored bytes have been digested, and the last of them.
    digested: u64,
    last_byte: u8,
    windows: Vec<Bytes>,
}

struct Candidate {
    bit: u64,
    content: u64,
    window: Option<Bytes>,
    /// The stored bytes of the span before it, should it become one.
    before: Hasher,
    /// Its own stored bytes so far.
    stored: Hasher,
}

impl Scanner {
    /// A pass at the start of a file.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where the inflate library can't be set up.
    pub fn new(spacing: Spacing) -> Result<Self> {
        let spacing = spacing.bytes();
        let (spans, stored_digests, digests) = (Vec::new(), Vec::new(), Vec::new());
        let table = Table { stored: 0, end: 0, content: 0, spacing, spans, stored_digests, digests };
        Ok(Self {
            walk: Walk::from_start()?,
            spacing,
            table,
            candidate: None,
            last: 0,
            stored: Hasher::new(),
            digested: 0,
            last_byte: 0,
            windows: Vec::new(),
        })
    }

    /// Decodes on: reads from `stored`, the file's next bytes, and writes to `content` until one of them is used up.
    ///
    /// Where all of `content` was written there may be more without further stored bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it is no gzip file or malformed, or bytes that are not 0 follow the last member;
    /// [`Kind::Integrity`] where a member's CRC or length is wrong; [`Kind::Unsupported`] for another method than
    /// deflate. After an error the pass is over.
    pub fn step(&mut self, stored: &[u8], content: &mut [u8]) -> Result<Moved> {
        let mut moved = Moved::default();
        loop {
            let rest = stored.get(moved.read..).unwrap_or_default();
            let room = content.get_mut(moved.written..).unwrap_or_default();
            let (stop, until) = self.ahead(room.len());
            let full = until == room.len();
            let at_once = room.get_mut(..until).unwrap_or_default();
            let (by, landmark) = self.walk.step(rest, at_once, stop)?;
            self.digest(rest.get(..by.read).unwrap_or_default());
            self.commit(by);
            moved.add(by);
            match landmark {
                Landmark::Member => self.member(),
                Landmark::BlockEnd(bit) => self.block(bit)?,
                Landmark::None if by.written == until && !full => {}
                Landmark::None => return Ok(moved),
            }
        }
    }

    /// The windows kept since this was last asked: pieces of the windows' section, in order.
    pub fn take_windows(&mut self) -> Vec<Bytes> {
        std::mem::take(&mut self.windows)
    }

    /// So much content has been given.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.walk.content()
    }

    /// The table, when all stored bytes have gone by and all content was given.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where the file is cut short.
    pub fn finish(mut self) -> Result<Table> {
        self.walk.end()?;
        (self.table.stored, self.table.content) = (self.walk.stored(), self.walk.content());
        self.table.end = self.walk.members_end();
        if !self.table.spans.is_empty() {
            self.table.stored_digests.push(*self.stored.finalize().as_bytes());
        }
        Ok(self.table)
    }

    /// Whether to look out for a block's end, and how much content may go by before it is asked again.
    fn ahead(&self, room: usize) -> (Stop, usize) {
        if self.table.spans.len() >= SPANS_LIMIT {
            return (Stop::Never, room);
        }
        match self.spacing.saturating_sub(self.since()) {
            0 => (Stop::BlockEnd, room),
            left => (Stop::Never, usize::try_from(left).unwrap_or(room).min(room)),
        }
    }

    fn since(&self) -> u64 {
        self.walk.content() - self.last
    }

    /// Takes stored bytes into the digest of the span they are part of; padding is part of none.
    fn digest(&mut self, read: &[u8]) {
        let left = self.walk.members_end().saturating_sub(self.digested);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(read.len());
        let read = read.get(..len).unwrap_or_default();
        self.digested = self.digested.saturating_add(u64::try_from(len).unwrap_or(0));
        self.last_byte = read.last().copied().unwrap_or(self.last_byte);
        self.stored.update(read);
        if let Some(candidate) = &mut self.candidate {
            candidate.stored.update(read);
        }
    }

    /// Makes the candidate a span when there is content after it.
    fn commit(&mut self, by: Moved) {
        let Some(candidate) = self.candidate.take_if(|_| by.written > 0) else { return };
        let before = self.table.windows_size();
        let digest = u32::try_from(self.table.digests.len()).unwrap_or(u32::MAX);
        let len = candidate.window.as_ref().map_or(0, Bytes::len);
        let windows_end = before.saturating_add(u64::try_from(len).unwrap_or(0));
        let (bit, content) = (candidate.bit, candidate.content);
        if !self.table.spans.is_empty() {
            self.table.stored_digests.push(*candidate.before.finalize().as_bytes());
        }
        self.stored = candidate.stored;
        self.table.spans.push(Start { bit, content, windows_end, digest });
        if let Some(window) = candidate.window {
            self.table.digests.push(*blake3::hash(&window).as_bytes());
            self.windows.push(window);
        }
    }

    fn member(&mut self) {
        let first = self.table.spans.is_empty() && self.candidate.is_none();
        if first || (self.since() >= self.spacing / 4 && self.table.spans.len() < SPANS_LIMIT) {
            self.begin(self.walk.stored().saturating_mul(8), None);
        }
    }

    fn block(&mut self, bit: u64) -> Result<()> {
        let window = window::keep(&self.walk.window()?);
        self.begin(bit, Some(window));
        Ok(())
    }

    fn begin(&mut self, bit: u64, window: Option<Bytes>) {
        self.last = self.walk.content();
        let mut stored = Hasher::new();
        if !bit.is_multiple_of(8) {
            stored.update(&[self.last_byte]);
        }
        let before = self.stored.clone();
        self.candidate = Some(Candidate { bit, content: self.last, window, before, stored });
    }
}
