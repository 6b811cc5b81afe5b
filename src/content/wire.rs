//! The stored bytes of a layer's spans, fetched in few requests and verified span by span.
//!
//! One answer of the repository covers the spans that a reader will come to, except those that are here already. A span
//! that is wrong is asked for once more by itself.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::OwnedSemaphorePermit;

use super::decoding::interrupted;
use super::lanes::Lane;
use super::loader::Loader;
use super::reader::Fault;
use super::spans::{Span, Table};
use crate::error::{Error, Kind, Result};
use crate::range::StoredRange;
use crate::repository::{ByteStream, read_all};

/// How much of a span that is not held is handed out at once.
const PIECE: u64 = 1 << 20;
/// How much of such a span is asked for beyond what its content should take.
const MARGIN: u64 = 256 << 10;
/// The same by a table without digests, whose spans are small.
const NARROW: u64 = 64 << 10;
/// From so many spans on, the last one is asked for by itself where little of it is needed: a neighbour may bring it.
const MANY: usize = 4;

/// Whose bytes may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// What others have fetched and left as well.
    Shared,
    /// The repository's alone: what was here may be wrong.
    Fresh,
}

/// Where a reader's stored bytes come from.
pub(super) struct Wire {
    loader: Arc<Loader>,
    layer: usize,
    table: Arc<Table>,
    lane: Lane,
    how: Use,
    /// Where the content ends that will be asked for.
    end: u64,
    answer: Option<Answer>,
}

/// An answer of the repository that is being read.
struct Answer {
    stream: ByteStream,
    left: Bytes,
    /// The stored bytes that have not been taken from it.
    range: StoredRange,
    /// The byte before them: two spans of gzip may share one.
    before: Option<u8>,
}

impl Wire {
    pub(super) fn new(
        loader: &Arc<Loader>,
        layer: usize,
        table: &Arc<Table>,
        lane: Lane,
        how: Use,
        end: u64,
    ) -> Self {
        Self { loader: Arc::clone(loader), layer, table: Arc::clone(table), lane, how, end, answer: None }
    }

    pub(super) fn loader(&self) -> &Arc<Loader> {
        &self.loader
    }

    pub(super) fn layer(&self) -> usize {
        self.layer
    }

    /// Waits until what reading from this span on takes may be in hand, where somebody waits for it.
    pub(super) async fn hold(&mut self, from: usize) -> Option<OwnedSemaphorePermit> {
        match (self.lane, self.how) {
            (Lane::Demand, Use::Shared) => self.loader.desk.hold(self.largest(from)).await,
            _ => None,
        }
    }

    /// The most stored bytes that are in hand at once when content is read from this span on.
    fn largest(&self, from: usize) -> u64 {
        let to = self.last().max(from);
        let spans = (from..=to).filter_map(|position| self.table.span(position));
        spans.map(|span| if span.is_held() { span.stored.len() } else { PIECE }).max().unwrap_or(PIECE)
    }

    /// All stored bytes of a span that is held, verified.
    pub(super) async fn span(&mut self, position: usize, span: &Span) -> Result<Bytes, Fault> {
        if self.how == Use::Shared
            && let Some(stored) = self.loader.desk.spooled(self.layer, position)
        {
            return Ok(stored);
        }
        let ends = self.answer.as_ref().is_some_and(|answer| answer.can_give(span.stored));
        if !ends {
            self.ask(StoredRange::new(span.stored.start(), self.until(position, span))).await?;
        }
        let stored = self.gather(span.stored).await?;
        if is(span, &stored).await? {
            return Ok(stored);
        }
        self.loader.metrics.fetch_mismatches.add(1);
        tracing::warn!(span = position, "the stored bytes of a span are wrong; asking once more");
        self.again(span).await
    }

    /// The next stored bytes of a span that is not held: those at `from`, of which the content at `content` is made.
    pub(super) async fn piece(&mut self, from: u64, content: u64, span: &Span) -> Result<Bytes> {
        // The end of the span before, which had no content.
        let passed = self
            .answer
            .as_ref()
            .map(|answer| answer.range)
            .filter(|range| range.start() < from && from < range.end() && from - range.start() <= MARGIN);
        if let Some(range) = passed {
            self.gather(StoredRange::new(range.start(), from)).await?;
        }
        let next =
            |end: u64| StoredRange::new(from, span.stored.end().min(end).min(from.saturating_add(PIECE)));
        let ready =
            self.answer.as_ref().filter(|answer| answer.range.start() == from && !answer.range.is_empty());
        if let Some(end) = ready.map(|answer| answer.range.end()) {
            return self.gather(next(end)).await;
        }
        // Where no span is held, one answer is for all of them.
        let last =
            (span.digest.is_none() && self.end > span.content.end()).then(|| self.table.span(self.last()));
        let end = match last.flatten().filter(|last| last.stored.start() >= span.stored.end()) {
            Some(last) => share(&last, last.stored.start(), self.end.saturating_sub(last.content.start())),
            None => share(span, from, self.end.min(span.content.end()).saturating_sub(content)),
        };
        self.ask(StoredRange::new(from, end)).await?;
        self.gather(next(end)).await
    }

    /// The error under the layer's name.
    pub(super) fn named(&self, error: Error) -> Error {
        let digest =
            self.loader.layer(self.layer).map(|layer| layer.blob.digest.to_string()).unwrap_or_default();
        error.context(format!("cannot decode what {} gives of {digest}", self.loader.repository.place()))
    }

    /// The last span that will be asked for.
    fn last(&self) -> usize {
        self.end.checked_sub(1).and_then(|last| self.table.position(last)).unwrap_or(0)
    }

    /// Where the request ends that begins with this span: with the last one needed that is not here.
    fn until(&self, position: usize, span: &Span) -> u64 {
        let mut spans = vec![*span];
        let follows = |position: &usize| self.table.span(*position);
        let rest = (position.saturating_add(1)..=self.last()).map_while(|position| follows(&position));
        spans.extend(rest.take_while(|span| span.is_held() && !span.content.is_empty()));
        let here = |at: usize| {
            self.how == Use::Shared
                && self.loader.desk.spooled(self.layer, position.saturating_add(at)).is_some()
        };
        while spans.len() > 1 && here(spans.len() - 1) {
            spans.pop();
        }
        let is_many = spans.len() >= MANY && self.lane != Lane::Demand;
        let little = |last: &Span| self.end.saturating_sub(last.content.start()) < last.content.len() / 4;
        if is_many && spans.last().is_some_and(little) {
            spans.pop();
        }
        spans.last().map_or(span.stored.end(), |last| last.stored.end())
    }

    async fn ask(&mut self, range: StoredRange) -> Result<()> {
        let layer =
            self.loader.layer(self.layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        self.loader.metrics.fetched_ranges.add(1);
        if self.lane == Lane::Demand {
            self.loader.metrics.demand_ranges.add(1);
        }
        self.answer = None;
        let stream = self.loader.repository.read(&layer.blob, range).await?;
        self.answer = Some(Answer { stream, left: Bytes::new(), range, before: None });
        Ok(())
    }

    async fn gather(&mut self, range: StoredRange) -> Result<Bytes> {
        let early = || Error::new(Kind::Broken, "the answer ended early");
        let answer = self.answer.as_mut().ok_or_else(early)?;
        let shared = (answer.range.start() > range.start()).then_some(answer.before).flatten();
        let mut wanted = usize::try_from(range.len()).unwrap_or(usize::MAX) - usize::from(shared.is_some());
        let mut all = BytesMut::with_capacity(wanted + 1);
        all.extend(shared);
        while wanted > 0 {
            if answer.left.is_empty() {
                answer.left = answer.stream.next().await.unwrap_or_else(|| Err(early()))?;
                self.loader.metrics.fetched_bytes.add(answer.left.len() as u64);
                self.loader.count_guided(self.layer, answer.left.len() as u64);
                if let Some(decoding) = self.loader.decoding(self.layer) {
                    decoding.progress();
                }
                continue;
            }
            let part = answer.left.split_to(answer.left.len().min(wanted));
            wanted -= part.len();
            answer.before = part.last().copied();
            all.extend_from_slice(&part);
        }
        answer.range = StoredRange::new(range.end(), answer.range.end());
        Ok(all.freeze())
    }

    /// A span once more, by itself.
    async fn again(&mut self, span: &Span) -> Result<Bytes, Fault> {
        let layer =
            self.loader.layer(self.layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        self.loader.metrics.fetched_ranges.add(1);
        let stored = read_all(&*self.loader.repository, &layer.blob, span.stored).await?;
        self.loader.metrics.fetched_bytes.add(span.stored.len());
        if is(span, &stored).await? {
            return Ok(stored);
        }
        self.loader.metrics.fetch_mismatches.add(1);
        let (place, digest) = (self.loader.repository.place(), &layer.blob.digest);
        let doing =
            format!("{place} gives other bytes {} of layer {digest} than the index says", span.stored);
        Err(Fault::Wrong(span.content, Error::new(Kind::Integrity, doing).hint("push the layer again")))
    }
}

impl Answer {
    /// Whether the range is what comes next, all of it.
    fn can_give(&self, range: StoredRange) -> bool {
        let start = self.range.start();
        let shared = start == range.start().saturating_add(1) && self.before.is_some();
        (start == range.start() || shared) && range.end() <= self.range.end()
    }
}

/// Up to where stored bytes of `span` from `from` on should be enough for so much content.
fn share(span: &Span, from: u64, content: u64) -> u64 {
    let ratio = u128::from(content) * u128::from(span.stored.len()) / u128::from(span.content.len().max(1));
    let margin = if span.digest.is_none() { NARROW } else { MARGIN };
    let len = u64::try_from(ratio).unwrap_or(u64::MAX).saturating_add(margin);
    span.stored.end().min(from.saturating_add(len))
}

/// Whether these are the span's bytes. Hashes where blocking is allowed.
async fn is(span: &Span, stored: &Bytes) -> Result<bool> {
    let (span, stored) = (*span, stored.clone());
    tokio::task::spawn_blocking(move || span.is(&stored)).await.map_err(interrupted)
}
