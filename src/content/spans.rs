//! The spans of a compressed layer, whichever way it is compressed: where each lies and what its stored bytes must be.
//!
//! Pure: the codecs' own tables behind one face, and the state of a decoder between two steps. What is fetched for it is
//! asked for in `reader`.

use bytes::{Buf, Bytes};

use crate::buffer::Filling;
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
pub(super) use crate::index::sections::Table;
use crate::range::{ContentRange, StoredRange};

/// The most stored bytes of a span that is held as a whole, so that it is verified before it is decoded. A larger one is
/// decoded as it comes; then only the digests of chunks say whether its content is right.
pub(super) const HELD: u64 = 16 << 20;

/// A span of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) stored: StoredRange,
    pub(super) content: ContentRange,
    /// The BLAKE3 of its stored bytes, where the table says it.
    pub(super) digest: Option<[u8; 32]>,
}

/// What reading asks of a table.
impl Table {
    /// The position of the span that holds the byte of content at `at`; `None` past the end.
    pub(super) fn position(&self, at: u64) -> Option<usize> {
        match self {
            Self::Gzip(table) => table.span_at(at),
            Self::Zstd(spans) => spans.position(at),
        }
    }

    pub(super) fn span(&self, position: usize) -> Option<Span> {
        match self {
            Self::Gzip(table) => {
                let content = table.content(position);
                let stored = table.stored(content);
                (!content.is_empty()).then_some(Span { stored, content, digest: table.digest(position) })
            }
            Self::Zstd(spans) => {
                let zstd::Span { stored, content, digest } = spans.span(position)?;
                Some(Span { stored, content, digest })
            }
        }
    }

    /// The span that holds the byte of content at `at`, with its position.
    pub(super) fn at(&self, at: u64) -> Result<(usize, Span)> {
        let found = self.position(at).and_then(|position| Some((position, self.span(position)?)));
        found.ok_or_else(|| Error::new(Kind::Invalid, format!("no span holds byte {at} of the content")))
    }

    /// Where the window that decoding the span needs is; `None` where it needs none.
    pub(super) fn window(&self, position: usize) -> Option<gzip::WindowPlace> {
        match self {
            Self::Gzip(table) => table.window(position),
            Self::Zstd(_) => None,
        }
    }
}

impl Span {
    /// Whether it is held as a whole and verified before it is decoded.
    pub(super) fn is_held(&self) -> bool {
        self.digest.is_some() && self.stored.len() <= HELD
    }

    /// Whether these are its stored bytes, as far as the table says.
    pub(super) fn is(&self, bytes: &[u8]) -> bool {
        self.digest.is_none_or(|digest| *blake3::hash(bytes).as_bytes() == digest)
    }
}

/// A decoder somewhere in a layer: goes on from there through this span and the next ones. Takes about 100 KiB; in zstd the
/// frame's window beside it.
pub(super) struct Walker {
    codec: Codec,
    /// The span that it is in, or at whose start it is.
    pub(super) span: usize,
    /// Where the next byte of content lies.
    pub(super) content: u64,
    /// Where the next stored byte lies that it has to be given.
    pub(super) stored: u64,
    /// Where the content of its span ends, and its stored bytes.
    ends: (u64, u64),
}

enum Codec {
    Gzip(Box<gzip::Decoder>),
    /// Of a table of members alone: each is a span, and none runs on into the next.
    Members(Box<gzip::Members>),
    Zstd(Box<zstd::Scanner>),
}

impl Walker {
    /// At the start of a span; `window` is as the index keeps it.
    ///
    /// # Errors
    /// `Integrity` where the window is not the table's, `Invalid` where it is malformed or missing.
    pub(super) fn at_span(table: &Table, position: usize, window: Option<&[u8]>) -> Result<Self> {
        let missing = || Error::new(Kind::Invalid, "there is no such span");
        let span = table.span(position).ok_or_else(missing)?;
        let codec = match table {
            Table::Gzip(table) if span.digest.is_some() => {
                let rest = ContentRange::new(span.content.start(), table.content_size());
                Codec::Gzip(Box::new(gzip::Decoder::new(table, window, rest)?))
            }
            Table::Gzip(_) => Codec::Members(Box::new(gzip::Members::new()?)),
            // Frames are told apart by itself; what it notes of them is one span.
            Table::Zstd(_) => Codec::Zstd(Box::new(zstd::Scanner::of_known()?)),
        };
        let ends = (span.content.end(), span.stored.end());
        let (content, stored) = (span.content.start(), span.stored.start());
        Ok(Self { codec, span: position, content, stored, ends })
    }

    /// Whether all content of its span has come out.
    pub(super) fn is_past_span(&self) -> bool {
        self.content >= self.ends.0
    }

    /// Enters the next span that has content. What is left of this one is frames without content, or a byte that both share.
    pub(super) fn enter_next(&mut self, table: &Table) -> Result<()> {
        let (position, span) = table.at(self.ends.0)?;
        // Between frames, wherever the next one begins; what it was not given of the last one is passed over.
        let is_within = self.stored != self.ends.1;
        match &mut self.codec {
            Codec::Gzip(_) => {}
            Codec::Members(members) if is_within => **members = gzip::Members::new()?,
            Codec::Zstd(scanner) if is_within => **scanner = zstd::Scanner::of_known()?,
            Codec::Members(_) | Codec::Zstd(_) => {}
        }
        if !matches!(self.codec, Codec::Gzip(_)) {
            self.stored = span.stored.start();
        }
        (self.span, self.ends) = (position, (span.content.end(), span.stored.end()));
        Ok(())
    }

    /// Decodes into `filling` until it has `len` bytes, or the span ends, or `stored`, the bytes from
    /// [`stored`](Self::stored) on, are used up: then they are empty. Blocks for as long as that takes.
    ///
    /// # Errors
    /// `Invalid` where the bytes are malformed or the span has other content than the table says; `Integrity` and
    /// `Unsupported` as the codecs have it.
    pub(super) fn fill(&mut self, stored: &mut Bytes, filling: &mut Filling, len: usize) -> Result<()> {
        while filling.len() < len && !self.is_past_span() {
            let left = usize::try_from(self.ends.0 - self.content).unwrap_or(usize::MAX);
            let most = left.min(len - filling.len());
            let mut read = 0;
            let written = filling.extend_with(most, |room| {
                let moved = self.codec.step(stored, room)?;
                read = moved.0;
                Ok::<_, Error>(moved.1)
            })?;
            stored.advance(read.min(stored.len()));
            self.stored = self.stored.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            self.content = self.content.saturating_add(u64::try_from(written).unwrap_or(u64::MAX));
            if (read, written) == (0, 0) {
                return self.is_starved(stored);
            }
        }
        if self.is_past_span() {
            self.end_span(stored)?;
        }
        Ok(())
    }

    /// More stored bytes are needed; an error where the span has none.
    fn is_starved(&self, stored: &Bytes) -> Result<()> {
        if stored.is_empty() && self.stored < self.ends.1 {
            return Ok(());
        }
        Err(Error::new(Kind::Invalid, "a span has less content than the table says, or is malformed"))
    }

    /// Nothing may come out of what is left of a span that is decoded by itself: its checksum, frames without content.
    fn end_span(&mut self, stored: &mut Bytes) -> Result<()> {
        if matches!(self.codec, Codec::Gzip(_)) {
            return Ok(());
        }
        // An answer may go on into the next span.
        let left = usize::try_from(self.ends.1.saturating_sub(self.stored)).unwrap_or(usize::MAX);
        let mut own = stored.split_to(left.min(stored.len()));
        while !own.is_empty() {
            let (read, written) = self.codec.step(&own, &mut [0])?;
            if written > 0 || read == 0 {
                return Err(Error::new(Kind::Invalid, "a span has more content than the table says"));
            }
            own.advance(read);
            self.stored = self.stored.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        }
        Ok(())
    }
}

impl Codec {
    /// How many bytes it has read and written.
    fn step(&mut self, stored: &[u8], room: &mut [u8]) -> Result<(usize, usize)> {
        match self {
            Self::Gzip(decoder) => decoder.step(stored, room).map(|moved| (moved.read, moved.written)),
            Self::Members(members) => members.step(stored, room).map(|moved| (moved.read, moved.written)),
            Self::Zstd(scanner) => scanner.push(stored, room).map(|moved| (moved.stored, moved.content)),
        }
    }
}

impl std::fmt::Debug for Walker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walker")
            .field("span", &self.span)
            .field("content", &self.content)
            .finish_non_exhaustive()
    }
}
