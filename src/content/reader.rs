//! A layer's content, decoded from its spans in order, from any place on.
//!
//! Fetches the stored bytes of the spans in few requests, verifies each span before it is decoded, and decodes where
//! blocking is allowed. What comes out has not been compared with chunk digests: `passing` and `part` know what it must be.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::sync::OwnedSemaphorePermit;

use super::decoding::interrupted;
use super::lanes::Lane;
use super::loader::Loader;
use super::spans::{Span, Table, Walker};
use super::wire::{Use, Wire};
use crate::error::{Error, Kind, Result};
use crate::index::CHUNK;
use crate::range::ContentRange;
use crate::repository::read_all;

/// Why content could not be had.
#[derive(Debug)]
pub(super) enum Fault {
    /// The stored bytes of the span with this content were wrong twice.
    Wrong(ContentRange, Error),
    /// What came cannot be decoded, or not to what the table says.
    Malformed(Error),
    /// Nothing came, or no table or window to decode it with.
    Missing(Error),
}

/// Reads a layer's content from one place on.
pub(super) struct Reader {
    wire: Wire,
    table: Arc<Table>,
    /// `None` after a failure: a reader that failed fails for ever.
    walker: Option<Walker>,
    /// What the decoder has not read yet.
    feed: Bytes,
    /// The span that was fed last, if it was held.
    held: Option<(usize, Bytes)>,
    _in_hand: Option<OwnedSemaphorePermit>,
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Missing(error)
    }
}

impl Fault {
    pub(super) fn into_error(self) -> Error {
        match self {
            Self::Wrong(_, error) | Self::Malformed(error) | Self::Missing(error) => error,
        }
    }
}

impl Reader {
    /// A reader that gives content from at or before the start of `range` on, and may be asked for it up to its end.
    ///
    /// Of what somebody waits for only so much is in hand at once, so this may wait for others.
    pub(super) async fn open(
        loader: &Arc<Loader>,
        layer: usize,
        range: ContentRange,
        lane: Lane,
        how: Use,
    ) -> Result<Self, Fault> {
        let table = loader.table(layer).await?;
        let (needed, mut span) = table.at(range.start())?;
        let mut wire = Wire::new(loader, layer, &table, lane, how, range.end());
        let mut in_hand = wire.hold(needed).await;
        let shared = loader.decoding(layer).filter(|_| how == Use::Shared);
        let resume = |span: &Span| shared?.resume(&table, span.content.start(), range.start());
        let mut resumed = resume(&span);
        let mut position = needed;
        if resumed.is_none() {
            position = loader.start_for(layer, &table, needed).await;
        }
        if position != needed {
            span = table.span(position).ok_or_else(|| Error::new(Kind::Invalid, "there is no such span"))?;
            drop(in_hand);
            in_hand = wire.hold(position).await;
            resumed = resume(&span);
        }
        if let Some(walker) = resumed {
            return Ok(Self {
                wire,
                table,
                walker: Some(walker),
                feed: Bytes::new(),
                held: None,
                _in_hand: in_hand,
            });
        }
        let window = loader.window(layer, &table, position);
        let (window, stored) = match span.is_held() {
            true => tokio::join!(window, wire.span(position, &span)),
            false => (window.await, Ok(Bytes::new())),
        };
        let stored = stored?;
        if how == Use::Shared && range.start() > span.content.start() && span.is_held() {
            loader.desk.spool(layer, position, &stored);
        }
        let walker = Walker::at_span(&table, position, window?.as_deref()).map_err(Fault::Malformed)?;
        let held = span.is_held().then(|| (position, stored.clone()));
        Ok(Self { wire, table, walker: Some(walker), feed: stored, held, _in_hand: in_hand })
    }

    /// Where the next byte of content lies; the end of everything after a failure.
    pub(super) fn at(&self) -> u64 {
        self.walker.as_ref().map_or(u64::MAX, |walker| walker.content)
    }

    /// The span that it is in.
    pub(super) fn span(&self) -> Option<usize> {
        self.walker.as_ref().map(|walker| walker.span)
    }

    /// How far content can be had without fetching more than what `end` needs.
    pub(super) fn reach(&self, end: u64) -> u64 {
        let last = end.checked_sub(1).and_then(|last| self.table.at(last).ok());
        last.filter(|(_, span)| span.is_held()).map_or(end, |(_, span)| span.content.end())
    }

    /// The next `len` bytes of content, at most a chunk's.
    pub(super) async fn take(&mut self, len: usize) -> Result<Bytes, Fault> {
        let mut filling = self.wire.loader().pool.take(len);
        while filling.len() < len {
            let mut walker =
                self.walker.take().ok_or_else(|| Error::new(Kind::Broken, "decoding has failed before"))?;
            self.nourish(&mut walker).await?;
            let mut feed = std::mem::take(&mut self.feed);
            let decode = move || {
                let decoded = walker.fill(&mut feed, &mut filling, len);
                decoded.map(|()| (walker, feed, filling))
            };
            let decoded = tokio::task::spawn_blocking(decode).await.map_err(interrupted)?;
            let (walker, feed, filled) = decoded.map_err(|error| Fault::Malformed(self.wire.named(error)))?;
            (self.walker, self.feed, filling) = (Some(walker), feed, filled);
        }
        self.wire.loader().metrics.decoded_bytes.add(u64::try_from(len).unwrap_or(0));
        Ok(filling.share())
    }

    /// Passes over content up to `place`.
    pub(super) async fn skip_to(&mut self, place: u64) -> Result<(), Fault> {
        while self.at() < place {
            let len = (place - self.at()).min(CHUNK);
            drop(self.take(usize::try_from(len).unwrap_or(0)).await?);
        }
        Ok(())
    }

    /// All content of `range`, which begins where the reader is or after that.
    pub(super) async fn all(&mut self, range: ContentRange) -> Result<Bytes, Fault> {
        self.skip_to(range.start()).await?;
        let mut all = BytesMut::new();
        while self.at() < range.end() {
            let len = (range.end() - self.at()).min(CHUNK);
            let bytes = self.take(usize::try_from(len).unwrap_or(0)).await?;
            if len == range.len() {
                return Ok(bytes);
            }
            all.extend_from_slice(&bytes);
        }
        Ok(all.freeze())
    }

    /// Leaves the decoder, and the span that it is in, to who reads on from here.
    pub(super) fn leave(self) {
        let (Some(walker), loader) = (self.walker, self.wire.loader()) else { return };
        let layer = self.wire.layer();
        let within = |range: ContentRange| range.start() < walker.content && walker.content < range.end();
        let within = self.table.span(walker.span).is_some_and(|span| within(span.content));
        if let Some(decoding) = loader.decoding(layer).filter(|_| within) {
            if let Some((position, stored)) = &self.held {
                loader.desk.spool(layer, *position, stored);
            }
            decoding.suspend(&self.table, walker);
        }
    }

    /// Sees to it that the decoder has something to go on with.
    async fn nourish(&mut self, walker: &mut Walker) -> Result<(), Fault> {
        if walker.is_past_span() {
            walker.enter_next(&self.table)?;
        }
        let span =
            self.table.span(walker.span).ok_or_else(|| Error::new(Kind::Invalid, "there is no such span"))?;
        if !self.feed.is_empty() || walker.stored >= span.stored.end() {
            return Ok(());
        }
        if !span.is_held() {
            self.held = None;
            self.feed = self.wire.piece(walker.stored, walker.content, &span).await?;
            return Ok(());
        }
        let stored = self.wire.span(walker.span, &span).await?;
        let from = usize::try_from(walker.stored.saturating_sub(span.stored.start())).unwrap_or(usize::MAX);
        self.feed = stored.slice(from.min(stored.len())..);
        self.held = Some((walker.span, stored));
        Ok(())
    }
}

impl Loader {
    /// The content of a layer, not verified by chunk digests. Asks the repository, whatever was fetched before.
    ///
    /// # Errors
    /// What the repository says; of a compressed layer `Integrity` where the stored bytes are not what the index says, and
    /// `Invalid` where they cannot be decoded.
    pub(super) async fn content(self: &Arc<Self>, layer: usize, range: ContentRange) -> Result<Bytes> {
        let described = self.layer(layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        if let Some(stored) = described.stored(range) {
            return read_all(&*self.repository, &described.blob, stored).await;
        }
        let reader = Reader::open(self, layer, range, Lane::Demand, Use::Fresh).await;
        let mut reader = reader.map_err(Fault::into_error)?;
        reader.all(range).await.map_err(Fault::into_error)
    }
}
