//! Content of a zstd layer with a seek table, where headers are: the frames that hold them, decoded no further than they go.

use std::sync::Arc;

use bytes::{Buf, BytesMut};

use super::decode::Decoder;
use super::probe::{Bounds, Probe, Stored, apart};
use super::room::Loan;
use crate::codec::zstd::{Span, Spans};
use crate::error::{Error, Kind, Result};
use crate::index::Compression;
use crate::range::{ContentRange, StoredRange};

/// How much content is decoded at once.
const ROOM: usize = 64 << 10;

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
    /// What `content` takes.
    loan: Loan,
}

/// A decoder within a span.
struct Place {
    span: Span,
    decoder: Decoder,
    /// Its stored bytes that are here and not decoded yet.
    stored: Stored,
    /// Where the next ones lie.
    next: u64,
    /// Where the next byte of content lies.
    content: u64,
}

impl<'a> Front<'a> {
    pub(super) fn new(probe: &'a Probe<'a>, spans: &'a Spans) -> Self {
        Self { probe, spans, at: None, content: BytesMut::new(), start: 0, loan: Loan::default() }
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
        self.at = Some(Place { span, decoder, stored: Stored::default(), next, content });
        Ok(())
    }

    /// Decodes on in the span, up to `end` or its own end.
    async fn decode(&mut self, end: u64) -> Result<()> {
        let Some(mut at) = self.at.take() else { return Ok(()) };
        let end = end.min(at.span.content.end());
        while at.content < end {
            let (bounds, start) = (Arc::clone(&self.probe.bounds), self.start);
            let mut content = std::mem::take(&mut self.content);
            let decoded = apart(move || {
                at.decode(&bounds, ContentRange::new(start, end), &mut content)?;
                Ok((at, content))
            });
            (at, self.content) = decoded.await?;
            self.loan.cover(&self.probe.bounds.desk, self.content.len())?;
            if at.content < end {
                at.read_on(self.probe, end).await?;
            }
        }
        self.at = Some(at);
        Ok(())
    }
}

impl Place {
    /// Decodes what is here, up to the end of `wanted`, and puts what of it is wanted behind `content`.
    fn decode(&mut self, bounds: &Bounds, wanted: ContentRange, content: &mut BytesMut) -> Result<()> {
        let mut room = vec![0; ROOM];
        while self.content < wanted.end() {
            let left = usize::try_from(wanted.end() - self.content).unwrap_or(usize::MAX).min(room.len());
            let (read, written) =
                self.decoder.step(&self.stored, room.get_mut(..left).unwrap_or_default())?;
            self.stored.bytes.advance(read);
            bounds.decoded(written)?;
            let before = wanted.start().saturating_sub(self.content);
            let before = usize::try_from(before).unwrap_or(usize::MAX).min(written);
            content.extend_from_slice(room.get(before..written).unwrap_or_default());
            self.content = self.content.saturating_add(written as u64);
            match written == 0 && self.stored.is_empty() {
                true => return Ok(()),
                false if (read, written) == (0, 0) => {
                    return Err(Error::new(Kind::Invalid, "a frame leads nowhere"));
                }
                false => {}
            }
        }
        Ok(())
    }

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
