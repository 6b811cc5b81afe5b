//! A run of chunks out of a compressed layer, and all other chunks that decoding passes anyway.
//!
//! Decoding begins at a span's start, so it passes chunks that nobody asked this request for: they are verified, handed
//! out and kept as well, so that nothing is decoded once for each chunk. Who begins with the same span waits for its turn
//! and joins what the first one hands out. Called by the request that leads the run.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::decoding::Beginning;
use super::extent::Extent;
use super::fetch::Request;
use super::flight::{Flight, Key, Place};
use super::keeper::Keeping;
use super::lanes::Lane;
use super::loader::Loader;
use super::reader::{Fault, Reader};
use super::verify::Verified;
use super::wire::Use;
use crate::error::{Error, Kind, Result};
use crate::index::{ExtentId, Grid};
use crate::range::ContentRange;

/// How far is looked for chunks that decoding will pass, in content.
const LOOK_AHEAD: u64 = 64 << 20;
/// How many of them at most: a span may hold thousands of small files.
const EXTRAS: usize = 256;
/// How many chunks may be on their way to the store before decoding waits for it.
const KEEPING: usize = 8;

/// A chunk that decoding will pass, and where it lies in the layer's content.
struct Stop {
    key: Key,
    content: ContentRange,
}

impl Request {
    /// Decodes a run of chunks and sees them into the store, with what decoding passes before, between and after them.
    pub(super) async fn take_decoded(&mut self, extent: &Extent, run: Range<u64>) -> Result<()> {
        let loader = Arc::clone(&self.loader);
        let layer = self.id.layer;
        let table = loader.table(layer).await?;
        let decoding = loader.decoding(layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        let (span, _) = table.at(extent.content(&run).start())?;
        let mut begun = decoding.relay(|| self.beat(), decoding.begin(span)).await;
        let mut left = self.still_wanted(run);
        let mut keeping = Keeping::default();
        let mut outcome = Ok(());
        while !left.is_empty() && outcome.is_ok() {
            outcome = match self.pass(extent, &mut left, &mut begun, &mut keeping).await {
                Ok(()) => Ok(()),
                Err(fault) if loader.is_misled(layer, &fault) => break,
                Err(fault) => self.recover(extent, &mut left, fault, &mut keeping).await,
            };
        }
        self.leave_extras(&outcome);
        // The turn is kept until the chunks are: what is in memory stays bounded by the lanes.
        keeping.until_fewer(1).await;
        outcome
    }

    /// The chunks of the run that nobody has handed out while this request waited.
    pub(super) fn still_wanted(&mut self, run: Range<u64>) -> VecDeque<u64> {
        let id = self.id;
        self.flights.retain(|((flown, _), flight)| *flown != id || !flight.is_here());
        let mine = self.flights.iter().map(|(key, _)| *key);
        mine.filter(|(flown, chunk)| *flown == id && run.contains(chunk)).map(|(_, chunk)| chunk).collect()
    }

    /// One decoder's way: past all that is `left`, and as far as that costs no more fetching.
    async fn pass(
        &mut self,
        extent: &Extent,
        left: &mut VecDeque<u64>,
        begun: &mut Beginning<'_>,
        keeping: &mut Keeping,
    ) -> Result<(), Fault> {
        let (Some(first), Some(last)) = (left.front().copied(), left.back().copied()) else { return Ok(()) };
        let (loader, wanted) = (Arc::clone(&self.loader), extent.content(&(first..last + 1)));
        let decoding =
            loader.decoding(self.id.layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        let open = Reader::open(&loader, self.id.layer, wanted, self.lane, Use::Shared);
        let mut reader = decoding.relay(|| self.beat(), open).await?;
        let reach = reader.reach(wanted.end());
        let mut looked = reader.at();
        while looked < reach {
            let window = ContentRange::new(looked, reach.min(looked.saturating_add(LOOK_AHEAD)));
            for stop in self.stops(extent, left, window).await {
                let len = usize::try_from(stop.content.len()).unwrap_or(usize::MAX);
                let bytes = async {
                    reader.skip_to(stop.content.start()).await?;
                    reader.take(len).await
                };
                let bytes = decoding.relay(|| self.beat(), bytes).await;
                reader.span().inspect(|span| begun.come_to(*span));
                let mine = stop.key.0 == self.id && left.front() == Some(&stop.key.1);
                match bytes {
                    Ok(bytes) if mine => self.deliver(extent, left, bytes, keeping).await?,
                    Ok(bytes) => self.deliver_extra(stop.key, bytes, keeping).await,
                    // Nobody asked for what is left.
                    Err(_) if left.is_empty() => return Ok(()),
                    Err(fault) => return Err(fault),
                }
            }
            looked = window.end();
        }
        reader.leave();
        Ok(())
    }

    /// Verifies and hands out the first chunk that is left. One that is wrong is given up by itself in a bound layer.
    async fn deliver(
        &mut self,
        extent: &Extent,
        left: &mut VecDeque<u64>,
        bytes: Bytes,
        keeping: &mut Keeping,
    ) -> Result<(), Fault> {
        let Some(chunk) = left.front().copied() else { return Ok(()) };
        let verified = match self.loader.guided(self.id.layer) {
            Some(_) => self.loader.verified_by_guide(extent, chunk, bytes).map_err(Fault::Malformed),
            None => self.loader.verified(extent, chunk, bytes).await.map_err(Fault::Missing),
        };
        match verified {
            Ok(verified) => self.hand_out((self.id, chunk), verified, keeping).await,
            Err(Fault::Missing(error)) if extent.is_bound() => self.give_up(chunk..chunk + 1, &error),
            Err(fault) => return Err(fault),
        }
        left.pop_front();
        Ok(())
    }

    /// The same for a chunk that only came along: where it is wrong, whoever wants it asks for it.
    async fn deliver_extra(&mut self, key: Key, bytes: Bytes, keeping: &mut Keeping) {
        let loader = Arc::clone(&self.loader);
        let verified = loader.extent(key.0).and_then(|extent| extent.verify(key.1, bytes));
        match verified {
            Some(verified) => self.hand_out(key, verified, keeping).await,
            None => loader.metrics.fetch_mismatches.add(1),
        }
    }

    async fn hand_out(&mut self, key: Key, verified: Verified, keeping: &mut Keeping) {
        self.loader.hand_out(key, &verified);
        self.flights.retain(|(flown, _)| *flown != key);
        keeping.until_fewer(KEEPING).await;
        keeping.add(self.loader.keep_soon(key, verified));
    }

    /// What becomes of the chunks that are left when a decoder has failed: those that nothing can be done for are given
    /// up, in a bound layer by themselves.
    async fn recover(
        &mut self,
        extent: &Extent,
        left: &mut VecDeque<u64>,
        fault: Fault,
        keeping: &mut Keeping,
    ) -> Result<()> {
        match fault {
            Fault::Wrong(content, _) if extent.is_bound() => {
                let touched = |chunk: u64| !extent.content(&(chunk..chunk + 1)).meet(content).is_empty();
                let wrong: Vec<u64> = left.iter().copied().filter(|chunk| touched(*chunk)).collect();
                left.retain(|chunk| !touched(*chunk));
                for chunk in wrong {
                    let error = self.loader.refuse(extent, chunk);
                    self.give_up(chunk..chunk + 1, &error);
                }
                Ok(())
            }
            Fault::Malformed(error) => self.once_more(extent, left, error, keeping).await,
            Fault::Wrong(_, error) | Fault::Missing(error) => Err(error),
        }
    }

    /// Asks for the first chunk that is left once more, from the repository alone, since what came could not be decoded.
    async fn once_more(
        &mut self,
        extent: &Extent,
        left: &mut VecDeque<u64>,
        error: Error,
        keeping: &mut Keeping,
    ) -> Result<()> {
        let Some(chunk) = left.front().copied() else { return Ok(()) };
        tracing::warn!(path = extent.path, chunk, %error, "asking once more");
        self.loader.metrics.fetch_mismatches.add(1);
        let (loader, range) = (Arc::clone(&self.loader), extent.content(&(chunk..chunk + 1)));
        let decoding =
            loader.decoding(self.id.layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        match decoding.relay(|| self.beat(), loader.content(self.id.layer, range)).await {
            Ok(bytes) => self.deliver(extent, left, bytes, keeping).await.map_err(Fault::into_error),
            Err(again) if extent.is_bound() && concerns_bytes(again.kind()) => {
                let refused = loader.refuse(extent, chunk);
                self.give_up(chunk..chunk + 1, &refused);
                left.pop_front();
                Ok(())
            }
            Err(again) => Err(again),
        }
    }

    /// Says to who waits that something has arrived.
    pub(super) fn beat(&self) {
        self.flights.iter().for_each(|(_, flight)| flight.progress());
    }

    /// What is passed in a window of content, in order: what is left of the run, and chunks that are not here. Those of
    /// them that nobody fetches are this request's from now on.
    async fn stops(&mut self, extent: &Extent, left: &VecDeque<u64>, window: ContentRange) -> Vec<Stop> {
        let (loader, id) = (Arc::clone(&self.loader), self.id);
        let mine: Vec<u64> = left.iter().copied().collect();
        let own = mine
            .iter()
            .map(|chunk| Stop { key: (id, *chunk), content: extent.content(&(*chunk..*chunk + 1)) });
        let own =
            own.filter(|stop| window.covers(ContentRange::new(stop.content.start(), stop.content.start())));
        let mut stops: Vec<Stop> = own.filter(|stop| stop.content.start() < window.end()).collect();
        let look = move || loader.missing_within(id.layer, window);
        let mut extras = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        extras.retain(|stop| stop.key.0 != id || !mine.contains(&stop.key.1));
        let keys = extras.iter().map(|stop| stop.key);
        let Ok(places) = self.loader.board.find(keys, &self.urgency) else { return stops };
        for (stop, (key, place)) in extras.into_iter().zip(places) {
            match place {
                Place::Here(_) => continue,
                Place::Aboard(_) => {}
                Place::Lead(flight) => {
                    self.extras.push(key);
                    self.flights.push((key, flight));
                }
            }
            stops.push(stop);
        }
        stops.sort_by_key(|stop| stop.content.start());
        stops
    }

    /// Gives up the chunks that should have come along and did not. Those that somebody may wait for get a request of their own; where the
    /// registry has not answered they end as this one does, since it has been given its time.
    fn leave_extras(&mut self, outcome: &Result<()>) {
        let extras = std::mem::take(&mut self.extras);
        let (left, mine) =
            std::mem::take(&mut self.flights).into_iter().partition(|(key, _)| extras.contains(key));
        self.flights = mine;
        let left: Vec<(Key, Arc<Flight>)> = left;
        for (key, flight) in left {
            if self.loader.board.withdraw(key, &flight) {
                continue;
            }
            match outcome {
                Err(error) if !concerns_bytes(error.kind()) && error.kind() != Kind::Storage => {
                    self.loader.board.fail(key, &flight, error)
                }
                _ => {
                    let lane = if flight.is_awaited() { Lane::Demand } else { self.lane };
                    drop(self.loader.lead(key.0, lane, Arc::clone(&self.urgency), vec![(key, flight)]));
                }
            }
        }
    }
}

impl Loader {
    /// The chunks that lie within the range and are not in the store, in order; none where nothing can be kept. Takes down
    /// what they must be. Blocks.
    fn missing_within(&self, layer: usize, range: ContentRange) -> Vec<Stop> {
        if self.shelf.store.budget().exhausted() {
            return Vec::new();
        }
        let touched = self.extents_within(layer, range);
        let mut stops = Vec::new();
        for extent in touched.take(EXTRAS) {
            let chunks = within(extent.grid, extent.range, range);
            let Some(kept) = self.reliable(extent).filter(|_| !chunks.is_empty()) else { continue };
            for (chunk, here) in chunks.clone().zip(kept.among(chunks)) {
                if !here && stops.len() < EXTRAS {
                    extent.learn(chunk, &kept);
                    stops.push(stop(extent.id, extent, chunk));
                }
            }
        }
        stops
    }

    /// The files that lie in the range at least in part, in order. Costs a binary search.
    fn extents_within(&self, layer: usize, range: ContentRange) -> impl Iterator<Item = &Extent> {
        let extent = move |extent: usize| self.extent(ExtentId { layer, extent });
        let before = |number: usize| extent(number).is_some_and(|extent| extent.range.end() <= range.start());
        let (mut first, mut end) = (0, 1);
        while before(end) {
            (first, end) = (end, end * 2);
        }
        while first < end {
            let middle = first + (end - first) / 2;
            (first, end) = if before(middle) { (middle + 1, end) } else { (first, middle) };
        }
        (first..).map_while(extent).take_while(move |extent| extent.range.start() < range.end())
    }
}

fn stop(id: ExtentId, extent: &Extent, chunk: u64) -> Stop {
    Stop { key: (id, chunk), content: extent.content(&(chunk..chunk + 1)) }
}

/// The chunks of a file, which lies at `place`, that lie wholly within the range.
pub(super) fn within(grid: Grid, place: ContentRange, range: ContentRange) -> Range<u64> {
    let start = range.start().saturating_sub(place.start());
    let end = range.end().saturating_sub(place.start()).min(grid.len());
    let first = start.div_ceil(crate::index::CHUNK);
    let last = if end == grid.len() { grid.chunks() } else { end / crate::index::CHUNK };
    first..last.max(first)
}

/// Whether an error is about what the bytes are.
fn concerns_bytes(kind: Kind) -> bool {
    matches!(kind, Kind::Integrity | Kind::Invalid | Kind::Unsupported)
}
