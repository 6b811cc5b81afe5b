//! The table of a blob's spans: where each lies in stored bytes and in content; also as bytes (index format v1, kind 2).
//!
//! Made from frames one after the other, whoever knows them. Who had their bytes gives the digests of the spans as well.

use super::{invalid, u64_at};
use crate::error::{Error, Kind, Result};
use crate::range::{ContentRange, StoredRange};

/// The most spans of a blob: 4 Mi, which is 4 TiB in spans of 1 MiB, and 64 MiB of memory.
pub const SPANS_LIMIT: usize = 4 << 20;

/// More stored bytes than these that have no content are no part of a span that has: nobody should fetch them.
const BALLAST: u64 = 4096;

/// The length of a table's header.
const HEADER: usize = 16;

/// A table with a digest for each span: what an index holds.
const DIGESTED: u8 = 1;

/// A table of places alone: of spans that a seek table or a table of contents gave, never part of an index.
const PLACES: u8 = 2;

/// The length of a span's BLAKE3.
const DIGEST: usize = 32;

/// A stretch of a blob that is decodable alone: one frame, or several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where its frames lie in the blob.
    pub stored: StoredRange,
    /// What they decode to; may be empty, where frames hold no content.
    pub content: ContentRange,
    /// The BLAKE3 of its stored bytes; `None` where nobody had them yet.
    pub digest: Option<[u8; DIGEST]>,
}

/// All spans of a blob, in order, nothing between them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Where each begins.
    starts: Vec<Start>,
    /// The BLAKE3 of the stored bytes of each, or none at all.
    digests: Vec<[u8; DIGEST]>,
    end: Start,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Start {
    content: u64,
    stored: u64,
}

impl Spans {
    /// How many bytes the table of an index can have.
    pub const LENGTHS: std::ops::RangeInclusive<u64> = 16..=16 + 48 * (4 << 20);

    /// How many spans.
    #[must_use]
    pub fn len(&self) -> usize {
        self.starts.len()
    }

    /// Whether the blob has no byte.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Size of the blob in bytes.
    #[must_use]
    pub fn stored(&self) -> u64 {
        self.end.stored
    }

    /// Size of its content in bytes.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.end.content
    }

    /// The span at `position`, or `None` past the last.
    #[must_use]
    pub fn span(&self, position: usize) -> Option<Span> {
        let start = self.starts.get(position)?;
        let end = self.starts.get(position + 1).unwrap_or(&self.end);
        let stored = StoredRange::new(start.stored, end.stored);
        let (content, digest) = (ContentRange::new(start.content, end.content), self.digests.get(position));
        Some(Span { stored, content, digest: digest.copied() })
    }

    /// All spans in order.
    pub fn iter(&self) -> impl Iterator<Item = Span> + '_ {
        (0..self.len()).filter_map(|position| self.span(position))
    }

    /// The spans that hold any byte of `range`, in order; none of them is empty. Costs a binary search.
    pub fn covering(&self, range: ContentRange) -> impl Iterator<Item = Span> + '_ {
        let range = range.meet(ContentRange::new(0, self.end.content));
        let first = self.starts.partition_point(|start| start.content <= range.start()).saturating_sub(1);
        let spans = (first..self.len()).filter_map(|position| self.span(position));
        let spans = spans.take_while(move |span| span.content.start() < range.end());
        spans.filter(move |span| !span.content.meet(range).is_empty())
    }

    /// Whether the digest of every span is known.
    #[must_use]
    pub fn is_digested(&self) -> bool {
        self.digests.len() == self.starts.len()
    }

    /// The table as bytes (docs/index-format.md): 16, then of each span where its content and its stored bytes begin and,
    /// where it is known, the digest of its stored bytes. Its ends are the layer's sizes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let form = if self.is_digested() { DIGESTED } else { PLACES };
        let mut bytes = vec![form, 0, 0, 0, 0, 0, 0, 0];
        bytes.extend(u64::try_from(self.starts.len()).unwrap_or(u64::MAX).to_le_bytes());
        for (position, start) in self.starts.iter().enumerate() {
            bytes.extend([start.content, start.stored].into_iter().flat_map(u64::to_le_bytes));
            bytes.extend(self.digests.get(position).into_iter().flatten().filter(|_| form == DIGESTED));
        }
        bytes
    }

    /// Reads a table of a blob of `stored` bytes that decode to `content` bytes. Takes as much memory as the table.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it is malformed, does not begin at 0, stored starts do not rise or content's fall, or either
    /// leaves its size; [`Kind::Unsupported`] for another form, or past [`SPANS_LIMIT`].
    pub fn decode(table: &[u8], stored: u64, content: u64) -> Result<Self> {
        let wrong = || invalid("the table of spans has the wrong length");
        let (header, rows) = table.split_first_chunk::<HEADER>().ok_or_else(wrong)?;
        let (form, reserved) = header.split_first().ok_or_else(wrong)?;
        let row = match *form {
            DIGESTED => 16 + DIGEST,
            PLACES => 16,
            _ => return Err(Error::new(Kind::Unsupported, "the table of spans has an unknown form")),
        };
        if reserved.iter().take(7).any(|byte| *byte != 0) {
            return Err(invalid("reserved bytes of the table of spans are not 0"));
        }
        let count = u64_at(header, 8).and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
        if count > SPANS_LIMIT {
            return Err(too_many());
        }
        if count.checked_mul(row) != Some(rows.len()) || rows.is_empty() != (stored == 0) {
            return Err(wrong());
        }
        let rows = rows.chunks_exact(row);
        let starts =
            rows.clone().filter_map(|row| Some(Start { content: u64_at(row, 0)?, stored: u64_at(row, 8)? }));
        let digests =
            rows.filter(|_| *form == DIGESTED).filter_map(|row| row.last_chunk::<DIGEST>().copied());
        let end = Start { content, stored };
        let spans = Self { starts: starts.collect(), digests: digests.collect(), end };
        spans.check()?;
        Ok(spans)
    }

    /// The same with the digests of their stored bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where there are more or fewer than spans.
    pub(super) fn with_digests(mut self, digests: Vec<[u8; DIGEST]>) -> Result<Self> {
        if digests.len() != self.starts.len() {
            return Err(invalid(format!("{} spans have {} digests", self.starts.len(), digests.len())));
        }
        self.digests = digests;
        Ok(self)
    }

    fn check(&self) -> Result<()> {
        let mut before: Option<Start> = None;
        for start in self.starts.iter().chain([&self.end]).copied() {
            let is_right = match before {
                None => start == Start::default(),
                Some(before) => start.stored > before.stored && start.content >= before.content,
            };
            if !is_right {
                let why = format!("the table of spans is out of order at stored byte {}", start.stored);
                return Err(invalid(why));
            }
            before = Some(start);
        }
        Ok(())
    }
}

/// Joins frames to spans: small ones to one while it stays within a size, so that there are few spans whatever the frames.
pub struct Builder {
    limit: u64,
    spans: Spans,
    /// Where the span that may still grow begins.
    open: Option<Start>,
}

impl Builder {
    /// A builder at a blob's start. Frames are joined while together they have at most `span` bytes of content and of
    /// stored bytes; a larger frame is a span of its own. So is a stretch of more than 4 KiB without content.
    #[must_use]
    pub fn new(span: u64) -> Self {
        Self { limit: span, spans: Spans::default(), open: None }
    }

    /// The next frame: how many stored bytes it has, and how many they decode to. Costs no memory where it is joined.
    ///
    /// # Errors
    /// [`Kind::Invalid`] for a frame without bytes or where a sum does not fit 64 bits; [`Kind::Unsupported`] past
    /// [`SPANS_LIMIT`].
    pub fn push(&mut self, stored: u64, content: u64) -> Result<()> {
        let begin = self.spans.end;
        let end = begin.stored.checked_add(stored).zip(begin.content.checked_add(content));
        let end = end.filter(|_| stored != 0).map(|(stored, content)| Start { content, stored });
        let end = end.ok_or_else(|| invalid("a frame has no bytes, or frames have more than fit 64 bits"))?;
        let is_ballast =
            |from: Start, to: Start| from.content == to.content && to.stored - from.stored > BALLAST;
        let fits = |open: Start| {
            let is_small = end.stored - open.stored <= self.limit && end.content - open.content <= self.limit;
            let all = begin.content == open.content && content == 0;
            is_small && (all || !(is_ballast(open, begin) || is_ballast(begin, end)))
        };
        if !self.open.is_some_and(fits) {
            if self.spans.starts.len() == SPANS_LIMIT {
                return Err(too_many());
            }
            self.spans.starts.push(begin);
            self.open = Some(begin);
        }
        self.spans.end = end;
        Ok(())
    }

    /// How many spans there are so far.
    pub(super) fn spans(&self) -> usize {
        self.spans.starts.len()
    }

    /// Whether a frame that has so many bytes so far may still be joined to the span before it.
    pub(super) fn may_join(&self, stored: u64, content: u64) -> bool {
        let (Some(open), end) = (self.open, self.spans.end) else { return false };
        let fits =
            |from: u64, to: u64, by: u64| (to - from).checked_add(by).is_some_and(|len| len <= self.limit);
        fits(open.stored, end.stored, stored) && fits(open.content, end.content, content)
    }

    /// How many bytes of content all frames so far have.
    #[must_use]
    pub fn content(&self) -> u64 {
        self.spans.end.content
    }

    /// The spans of all frames.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where there was none: no bytes at all are no zstd.
    pub fn finish(self) -> Result<Spans> {
        if self.spans.is_empty() {
            return Err(invalid("there is no zstd frame at all"));
        }
        Ok(self.spans)
    }
}

fn too_many() -> Error {
    Error::new(Kind::Unsupported, format!("the layer has more than {SPANS_LIMIT} spans"))
        .hint("use larger spans, or compress it again in larger frames")
}
