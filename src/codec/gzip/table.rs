//! The table of a gzip file's spans: where each begins, as numbers and as bytes.
//!
//! Not the windows: they are a section of their own, of which a reader fetches the one it needs; their places and digests
//! are here. `docs/index-format.md` draws the bytes.

use bytes::Bytes;

use super::window::WINDOW_LIMIT;
use crate::error::{Error, Kind, Result};
use crate::range::{ContentRange, StoredRange};

/// The most spans of a table: with spans of 4 MiB, those of 4 TiB.
pub const SPANS_LIMIT: usize = 1_000_000;

const HEADER: usize = 64;
const SPAN: usize = 56;
const DIGEST: usize = 32;
const FORM: u8 = 1;

/// The shortest kept window: the four bytes before an empty one.
const WINDOW_LEAST: u64 = 4;

/// The spans of one gzip file, in order: together they cover its content exactly.
///
/// Takes 96 bytes of memory a span at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Size of the file in stored bytes, padding included.
    pub(super) stored: u64,
    /// Where its last member ends.
    pub(super) end: u64,
    /// Size of its content.
    pub(super) content: u64,
    /// The spacing it was made with, for people.
    pub(super) spacing: u64,
    pub(super) spans: Vec<Start>,
    /// The BLAKE3 of each span's stored bytes.
    pub(super) stored_digests: Vec<[u8; DIGEST]>,
    /// The BLAKE3 of each window that there is.
    pub(super) digests: Vec<[u8; DIGEST]>,
}

/// Where a span begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Start {
    /// The first bit of its first block, or of a member's header, counted from the start of the file.
    pub(super) bit: u64,
    pub(super) content: u64,
    /// Where its window ends among the kept windows; where the one before ended if it begins with a member.
    pub(super) windows_end: u64,
    /// How many spans before it have windows.
    pub(super) digest: u32,
}

/// Where a span's window is, and what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowPlace {
    /// Its bytes among the kept windows, which are a section of the index.
    pub range: StoredRange,
    /// The BLAKE3 of these bytes.
    pub digest: [u8; DIGEST],
}

impl Table {
    /// How many bytes a table can have.
    pub const LENGTHS: std::ops::RangeInclusive<u64> = 64..=64 + 88 * 1_000_000;

    /// The table of a file of `stored` bytes, of which only is known where members begin: the stored byte, and the content
    /// before it, in order. They end at `end` with `content` bytes. Without digests, so it can be no part of an index.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where they are out of order or do not fit; [`Kind::Unsupported`] past [`SPANS_LIMIT`].
    pub fn of_members(members: &[(u64, u64)], end: u64, content: u64, stored: u64) -> Result<Self> {
        if members.len() > SPANS_LIMIT {
            return Err(Error::new(Kind::Unsupported, format!("it has more than {SPANS_LIMIT} members")));
        }
        let (spans, stored_digests, digests) = (Vec::new(), Vec::new(), Vec::new());
        let mut table = Self { stored, end, content, spacing: 0, spans, stored_digests, digests };
        for (start, before) in members.iter().copied() {
            let bit = start.checked_mul(8).ok_or_else(|| bad("a member begins beyond 64 bits"))?;
            // One without content is passed over with the member that follows it.
            if table.spans.last().is_none_or(|last| last.content != before) {
                table.push(bit, before, 0)?;
            }
        }
        table.check()?;
        Ok(table)
    }

    /// How many spans there are; 0 where there is no content.
    #[must_use]
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is no span, since there is no content.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The file's size in stored bytes.
    #[must_use]
    pub fn stored_size(&self) -> u64 {
        self.stored
    }

    /// The content's size in bytes.
    #[must_use]
    pub fn content_size(&self) -> u64 {
        self.content
    }

    /// The content between checkpoints that the table was made for; spans may be longer or shorter.
    #[must_use]
    pub fn spacing(&self) -> u64 {
        self.spacing
    }

    /// How many bytes all kept windows have.
    #[must_use]
    pub fn windows_size(&self) -> u64 {
        self.spans.last().map_or(0, |span| span.windows_end)
    }

    /// The content of a span; empty, at the end, where there is no such span.
    #[must_use]
    pub fn content(&self, span: usize) -> ContentRange {
        let start = |span: usize| self.spans.get(span).map_or(self.content, |span| span.content);
        ContentRange::new(start(span), start(span.saturating_add(1)))
    }

    /// The span that holds the byte of content at `at`, or `None` past the end. Takes logarithmic time.
    #[must_use]
    pub fn span_at(&self, at: u64) -> Option<usize> {
        let after = self.spans.partition_point(|span| span.content <= at);
        (at < self.content).then(|| after.saturating_sub(1))
    }

    /// The spans that hold any byte of `range`, cut at the end.
    #[must_use]
    pub fn covering(&self, range: ContentRange) -> std::ops::Range<usize> {
        let range = range.meet(ContentRange::new(0, self.content));
        match (self.span_at(range.start()), self.span_at(range.end().saturating_sub(1))) {
            (Some(first), Some(last)) if !range.is_empty() => first..last + 1,
            _ => 0..0,
        }
    }

    /// The stored bytes that a [`Decoder`](super::Decoder) of `range` is given: those of all its spans. Empty where
    /// the range is, cut at the end.
    #[must_use]
    pub fn stored(&self, range: ContentRange) -> StoredRange {
        let spans = self.covering(range);
        let Some(first) = self.spans.get(spans.start).filter(|_| !spans.is_empty()) else {
            return StoredRange::new(0, 0);
        };
        let end = self.spans.get(spans.end).map_or(self.end, |next| next.bit.div_ceil(8));
        StoredRange::new(first.bit / 8, end)
    }

    /// The BLAKE3 of the stored bytes of `span` alone, those that [`stored`](Self::stored) gives for its
    /// [`content`](Self::content); `None` where there is no such span. A byte that two spans share is part of both.
    #[must_use]
    pub fn digest(&self, span: usize) -> Option<[u8; DIGEST]> {
        self.stored_digests.get(span).copied()
    }

    /// Where the window that decoding `span` needs is; `None` where it begins with a member and needs none.
    #[must_use]
    pub fn window(&self, span: usize) -> Option<WindowPlace> {
        let start = self.spans.get(span)?;
        let before = span.checked_sub(1).and_then(|before| self.spans.get(before));
        let range = StoredRange::new(before.map_or(0, |before| before.windows_end), start.windows_end);
        let digest = self.digests.get(usize::try_from(start.digest).ok()?).copied()?;
        (!range.is_empty()).then_some(WindowPlace { range, digest })
    }

    /// Its bytes: 64, 56 a span and 32 a window.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let sizes = [self.stored, self.end, self.content, self.spacing];
        let counts =
            [self.spans.len(), self.digests.len()].map(|count| u32::try_from(count).unwrap_or(u32::MAX));
        let mut bytes = vec![FORM, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(sizes.into_iter().flat_map(u64::to_le_bytes));
        bytes.extend(counts.into_iter().flat_map(u32::to_le_bytes));
        bytes.resize(HEADER, 0);
        for (span, digest) in self.spans.iter().zip(&self.stored_digests) {
            bytes.extend([span.bit, span.content, span.windows_end].into_iter().flat_map(u64::to_le_bytes));
            bytes.extend(digest);
        }
        bytes.extend(self.digests.as_flattened());
        bytes.into()
    }

    /// The table whose bytes these are. Allocates 2 times their size at most.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where they are no table: every number is checked against the others.
    /// [`Kind::Unsupported`] for another form.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let (header, rest) = bytes.split_first_chunk::<HEADER>().ok_or_else(|| bad("it is cut short"))?;
        match header.split_first() {
            Some((&FORM, _)) => {}
            _ => return Err(Error::new(Kind::Unsupported, "the table of spans has an unknown form")),
        }
        let (counts, reserved) = (header.get(40..48), [header.get(1..8), header.get(48..)]);
        if reserved.into_iter().flatten().flatten().any(|byte| *byte != 0) {
            return Err(bad("reserved bytes are not 0"));
        }
        let [spans, windows] = counts.and_then(counts_of).ok_or_else(|| bad("it is cut short"))?;
        let [stored, end, content, spacing] =
            numbers(header.get(8..40)).ok_or_else(|| bad("it is cut short"))?;
        let of_spans = spans.checked_mul(SPAN).filter(|_| spans <= SPANS_LIMIT && windows <= spans);
        let of_spans = of_spans.ok_or_else(|| bad("it has too many spans"))?;
        let (of_spans, digests) = rest.split_at_checked(of_spans).ok_or_else(|| bad("it is cut short"))?;
        let (digests, left) = digests.as_chunks::<DIGEST>();
        if !left.is_empty() || digests.len() != windows {
            return Err(bad("its length is not that of its parts"));
        }
        let mut table = Self {
            stored,
            end,
            content,
            spacing,
            spans: Vec::with_capacity(spans),
            stored_digests: Vec::with_capacity(spans),
            digests: digests.to_vec(),
        };
        for span in of_spans.chunks_exact(SPAN) {
            let (digest, numbers_of) = (span.last_chunk::<DIGEST>(), span.get(..SPAN - DIGEST));
            let [bit, content, windows_end] = numbers(numbers_of).ok_or_else(|| bad("it is cut short"))?;
            table.push(bit, content, windows_end)?;
            table.stored_digests.extend(digest);
        }
        table.check()?;
        Ok(table)
    }

    /// Adds a span that must begin after the one before.
    fn push(&mut self, bit: u64, content: u64, windows_end: u64) -> Result<()> {
        let (windows_before, digest) = match self.spans.last() {
            None if bit == 0 && content == 0 && windows_end == 0 => (0, 0),
            Some(last) if last.bit < bit && last.content < content && last.windows_end <= windows_end => {
                (last.windows_end, last.digest + u32::from(self.has_window(self.spans.len() - 1)))
            }
            _ => return Err(bad("its spans are not in order")),
        };
        let window = windows_end - windows_before;
        let limit = u64::try_from(WINDOW_LIMIT).unwrap_or(0);
        if window == 0 && !bit.is_multiple_of(8) || window != 0 && !(WINDOW_LEAST..=limit).contains(&window) {
            return Err(bad("a window's length is wrong"));
        }
        self.spans.push(Start { bit, content, windows_end, digest });
        Ok(())
    }

    fn has_window(&self, span: usize) -> bool {
        let end = |span: usize| self.spans.get(span).map_or(0, |span| span.windows_end);
        end(span) > span.checked_sub(1).map_or(0, end)
    }

    fn check(&self) -> Result<()> {
        let last_bit = self.spans.last().map_or(0, |last| last.bit);
        let within = self.end <= self.stored
            && self.stored < u64::MAX / 16
            && self.spans.last().map_or(self.content == 0, |last| last.content < self.content)
            && (self.spans.is_empty() || last_bit < self.end.saturating_mul(8));
        if !within {
            return Err(bad("its spans do not fit its sizes"));
        }
        let windows = (0..self.spans.len()).filter(|span| self.has_window(*span)).count();
        if windows != self.digests.len() {
            return Err(bad("it has another number of windows than of digests"));
        }
        Ok(())
    }
}

fn numbers<const COUNT: usize>(bytes: Option<&[u8]>) -> Option<[u64; COUNT]> {
    let (numbers, _) = bytes?.as_chunks::<8>();
    let numbers = <&[[u8; 8]; COUNT]>::try_from(numbers).ok()?;
    Some(numbers.map(u64::from_le_bytes))
}

fn counts_of(bytes: &[u8]) -> Option<[usize; 2]> {
    let (counts, _) = bytes.as_chunks::<4>();
    let [first, second] = <&[[u8; 4]; 2]>::try_from(counts).ok()?;
    Some([
        usize::try_from(u32::from_le_bytes(*first)).ok()?,
        usize::try_from(u32::from_le_bytes(*second)).ok()?,
    ])
}

fn bad(why: &str) -> Error {
    Error::new(Kind::Invalid, format!("the table of a gzip layer's spans is malformed: {why}"))
}
