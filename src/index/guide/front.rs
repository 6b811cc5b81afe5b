//! Content of a zstd layer with a seek table, where headers are: the frames that hold them, decoded no further than they go.

use bytes::{Bytes, BytesMut};

use super::decode::Decoder;
use super::probe::Probe;
use crate::codec::zstd::{Span, Spans};
use crate::error::{Error, Kind, Result};
use crate::index::Compression;
use crate::range::{ContentRange, StoredRange};

/// How much more of a span is read than its content should take.
const MARGIN: u64 = 32 << 10;

/// A place in the content that only moves on.
pub(super) struct Front<'a> {
    probe: &'a Probe<'a>,
    spans: &'a Spans,
    at: Option<Place>,
    /// The content from `start` on that was wanted.
    content: BytesMut,
    start: u64,
}

/// A decoder within a span.
struct Place {
    span: Span,
    decoder: Decoder,
    /// Its stored bytes that are here and not decoded yet.
    stored: Bytes,
    /// Where the next ones lie.
    next: u64,
    /// Where the next byte of content lies.
    content: u64,
}

impl<'a> Front<'a> {
    pub(super) fn new(probe: &'a Probe<'a>, spans: &'a Spans) -> Self {
        Self { probe, spans, at: None, content: BytesMut::new(), start: 0 }
    }

    /// What is here from `place` on, which is not before any place asked for earlier.
    pub(super) fn from(&self, place: u64) -> &[u8] {
        let at = place.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.content.get(at..)).unwrap_or_default()
    }

    /// Sees to it that the content of `wanted` is here, and nothing before it.
    ///
    /// # Errors
    /// Those of reading and decoding; `Invalid` where a span has less content than the table says.
    pub(super) async fn reach(&mut self, wanted: ContentRange) -> Result<()> {
        let here = usize::try_from(wanted.start().saturating_sub(self.start)).unwrap_or(usize::MAX);
        match here <= self.content.len() {
            true => drop(self.content.split_to(here)),
            false => self.content.clear(),
        }
        self.start = wanted.start();
        while self.end() < wanted.end() {
            self.enter(self.end())?;
            self.decode(wanted.end()).await?;
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(self.content.len() as u64)
    }

    /// Goes to the span that holds the byte at `place`, unless it is there.
    fn enter(&mut self, place: u64) -> Result<()> {
        let is_in = |at: &Place| at.content <= place && place < at.span.content.end();
        if self.at.as_ref().is_some_and(is_in) {
            return Ok(());
        }
        let span = self.spans.position(place).and_then(|position| self.spans.span(position));
        let span =
            span.ok_or_else(|| Error::new(Kind::Invalid, "its seek table ends before its archive does"))?;
        let decoder = Decoder::new(Compression::Zstd)?;
        let (next, content) = (span.stored.start(), span.content.start());
        self.at = Some(Place { span, decoder, stored: Bytes::new(), next, content });
        Ok(())
    }

    /// Decodes on in the span, up to `end` or its own end.
    async fn decode(&mut self, end: u64) -> Result<()> {
        let Some(at) = &mut self.at else { return Ok(()) };
        let end = end.min(at.span.content.end());
        let mut room = vec![0; 64 << 10];
        while at.content < end {
            let left = usize::try_from(end - at.content).unwrap_or(usize::MAX).min(room.len());
            let (read, written) = at.decoder.step(&at.stored, room.get_mut(..left).unwrap_or_default())?;
            drop(at.stored.split_to(read));
            self.probe.decoded(written)?;
            let before =
                usize::try_from(self.start.saturating_sub(at.content)).unwrap_or(usize::MAX).min(written);
            self.content.extend_from_slice(room.get(before..written).unwrap_or_default());
            at.content = at.content.saturating_add(written as u64);
            if written == 0 && at.stored.is_empty() {
                at.read_on(self.probe, end).await?;
            }
        }
        Ok(())
    }
}

impl Place {
    /// Reads as much as the content up to `end` should take.
    async fn read_on(&mut self, probe: &Probe<'_>, end: u64) -> Result<()> {
        let span = &self.span;
        if self.next >= span.stored.end() {
            return Err(Error::new(Kind::Invalid, "a frame has less content than the seek table says"));
        }
        let share = u128::from(end - span.content.start()) * u128::from(span.stored.len());
        let share = u64::try_from(share / u128::from(span.content.len().max(1))).unwrap_or(u64::MAX);
        let until = span.stored.start().saturating_add(share).max(self.next).saturating_add(MARGIN);
        let range = StoredRange::new(self.next, until.min(span.stored.end()));
        self.stored = probe.read(range).await?;
        self.next = range.end();
        Ok(())
    }
}
