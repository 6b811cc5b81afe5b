//! How chunks come: from the store where it has them, else from the repository, claimed against other processes.
//!
//! A request is a run of chunks of one extent with a task of its own that leads it. Each chunk is verified and
//! handed out as soon as its last byte is here; then it is kept, beside the readers and never before them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::oneshot;
use tracing::Instrument;

use super::extent::Extent;
use super::flight::{Flight, Key, Place, Urgency};
use super::fresh::Reader;
use super::lanes::{Grain, Lane};
use super::loader::{Loader, Standing};
use super::runs::{contiguous, runs, runs_by_place};
use super::store::kept::{Claim, KeptFile};
use super::verify::{Hashed, Verified};
use crate::error::{Error, Kind, Result};
use crate::index::{CHUNK, ExtentId};
use crate::range::ContentRange;
use crate::repository::Pace;

/// How long nothing may come of what other processes claim before it is fetched here as well.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for what nobody waits for: on a slow line a chunk takes its time in the other process too.
const LONG_PATIENCE: Duration = Duration::from_secs(60);
/// How long the store is waited for before the repository is asked instead.
pub(super) const LOOK_LIMIT: Duration = Duration::from_secs(5);
/// From how many chunks on a request ahead of a reader is cut where a span ends.
const FEWEST: u64 = 2;
/// How often a claimed chunk is looked for. Claims have no notification; a look costs two system calls.
const LOOK: Duration = Duration::from_millis(3);

/// A run of chunks being fetched. Dropped before its end (a panic, the loader closing), it fails its flights.
pub(super) struct Request {
    pub(super) loader: Arc<Loader>,
    pub(super) id: ExtentId,
    pub(super) lane: Lane,
    pub(super) urgency: Arc<Urgency>,
    /// Those of the run, and of chunks that come along.
    pub(super) flights: Vec<(Key, Arc<Flight>)>,
    /// Which of them come along: nobody asked for them.
    pub(super) extras: Vec<Key>,
}

impl Drop for Request {
    fn drop(&mut self) {
        let error = Error::new(Kind::Broken, "the fetch was given up");
        for (key, flight) in &self.flights {
            self.loader.board.fail(*key, flight, &error);
        }
    }
}

impl Loader {
    /// Finds the chunks for a reader who waits; begins to fetch those that nobody fetches yet, each by itself, so
    /// that they come side by side and the first one soonest. Those of a compressed layer come together, since what is
    /// decoded for one is on the way to the next.
    pub(super) fn demand(self: &Arc<Self>, extent: &Extent, chunks: Range<u64>) -> Result<Vec<(Key, Place)>> {
        let mut places = Vec::new();
        let at_once = self.grain(extent.id.layer).demand;
        for run in runs(&chunks.collect::<Vec<_>>(), at_once) {
            let urgency = Arc::default();
            let found = self.board.find(run.map(|chunk| (extent.id, chunk)), &urgency)?;
            let led = found.iter().filter_map(|(key, place)| match place {
                Place::Lead(flight) => Some((*key, Arc::clone(flight))),
                Place::Here(_) | Place::Aboard(_) => None,
            });
            for group in contiguous(led.collect()) {
                drop(self.lead(extent.id, Lane::Demand, Arc::clone(&urgency), group));
            }
            places.extend(found);
        }
        Ok(places)
    }

    /// Brings every chunk of `range` that is not here yet into the store, and returns when it is.
    ///
    /// # Errors
    /// The first request that failed.
    pub(super) async fn fetch_missing(
        self: &Arc<Self>,
        id: ExtentId,
        range: ContentRange,
        lane: Lane,
    ) -> Result<()> {
        self.fetch_missing_by(id, range, lane, u64::MAX).await
    }

    /// The same with requests of `request` bytes, where the repository is not served better by smaller ones.
    pub(super) async fn fetch_missing_by(
        self: &Arc<Self>,
        id: ExtentId,
        range: ContentRange,
        lane: Lane,
        request: u64,
    ) -> Result<()> {
        let loader = Arc::clone(self);
        let missing = tokio::task::spawn_blocking(move || loader.missing(id, range, lane)).await;
        let mut under_way = FuturesUnordered::new();
        let mut outcome = Ok(());
        let pace = self.repository.pace();
        let request = request.min(if lane == Lane::Ahead { pace.ahead } else { pace.bytes });
        for run in self.runs_ahead(id, &missing.unwrap_or_default(), request).await {
            // The best number may be another meanwhile. More than one prefetch may be at it: the lanes have fewer turns than all of them
            // together.
            let most = width(self.repository.pace(), request);
            while under_way.len() >= most {
                match under_way.next().await.unwrap_or(Ok(())) {
                    // A chunk that is wrong keeps nobody from the others.
                    Err(error) if self.concerns_a_chunk(id.layer, &error) => {
                        outcome = outcome.and(Err(error))
                    }
                    next => next?,
                }
            }
            for run in self.still_missing(id, run, lane, most).await {
                under_way.push(self.fetch_run(id, run, lane));
            }
        }
        while let Some(next) = under_way.next().await {
            outcome = outcome.and(next);
        }
        outcome
    }

    /// What nobody is known to want is looked for once more when there is a turn for it: readers may have brought it since, and what
    /// only waits for its turn is not to be in their way.
    async fn still_missing(
        self: &Arc<Self>,
        id: ExtentId,
        run: Range<u64>,
        lane: Lane,
        width: usize,
    ) -> Vec<Range<u64>> {
        let Some(extent) = self.extent(id).filter(|_| lane == Lane::Background) else { return vec![run] };
        drop(self.lanes.enter(lane, &Urgency::default(), width).await);
        let last = extent.grid.range(run.end.saturating_sub(1));
        let range = ContentRange::new(extent.grid.range(run.start).start(), last.end());
        let loader = Arc::clone(self);
        let missing = tokio::task::spawn_blocking(move || loader.missing(id, range, lane)).await;
        runs(&missing.unwrap_or_default(), u64::MAX)
    }

    /// What is asked for in one request each, of chunks that nobody waits for. Of a compressed layer a span each, since spans
    /// are decoded side by side and one of them is not.
    async fn runs_ahead(self: &Arc<Self>, id: ExtentId, chunks: &[u64], request: u64) -> Vec<Range<u64>> {
        let grain = self.grain(id.layer);
        let table = match self.is_decoded(id.layer) && !chunks.is_empty() {
            true => self.table(id.layer).await.ok(),
            false => return runs(chunks, (request / CHUNK).max(1)),
        };
        let Some((table, extent)) = table.zip(self.extent(id)) else { return runs(chunks, grain.ahead) };
        let span = |chunk: u64| table.position(extent.content(&(chunk..chunk + 1)).start());
        runs_by_place(chunks, FEWEST, grain.ahead, span)
    }

    /// Fetches a run of chunks for nobody in particular and waits until they are here, and kept where it was this that
    /// fetched them, without making them urgent.
    pub(super) async fn fetch_run(self: &Arc<Self>, id: ExtentId, run: Range<u64>, lane: Lane) -> Result<()> {
        let urgency: Arc<Urgency> = Arc::default();
        let places = self.board.find(run.map(|chunk| (id, chunk)), &urgency)?;
        let (mut aboard, mut flights) = (Vec::new(), Vec::new());
        for (key, place) in places {
            match place {
                Place::Here(_) => {}
                Place::Aboard(flight) => aboard.push(flight),
                Place::Lead(flight) => {
                    aboard.push(Arc::clone(&flight));
                    flights.push((key, flight));
                }
            }
        }
        let led =
            contiguous(flights).into_iter().map(|group| self.lead(id, lane, Arc::clone(&urgency), group));
        let led: Vec<_> = led.collect();
        let mut outcome = Ok(());
        for flight in aboard {
            outcome = outcome.and(flight.settled().await);
        }
        for ended in led {
            // Nothing is ever sent: it ends with the request.
            let _ = ended.await;
        }
        outcome
    }

    /// The chunks of `range` to be brought; none where nobody waits and nothing can be kept. Blocks.
    fn missing(&self, id: ExtentId, range: ContentRange, lane: Lane) -> Vec<u64> {
        let Some(extent) = self.extent(id) else { return Vec::new() };
        let chunks = extent.grid.covering(range);
        let kept = extent.kept(&self.shelf);
        let keeps = kept.is_some() && !self.shelf.store.budget().exhausted();
        let most = match lane {
            Lane::Demand | Lane::Whole => u64::MAX,
            _ if keeps => u64::MAX,
            // What is not kept is fetched again unless it is read out of memory soon.
            Lane::Ahead => self.memory() / CHUNK / 2,
            Lane::Background => 0,
        };
        let end = chunks.end.min(chunks.start.saturating_add(most));
        let here = kept.map(|kept| kept.among(chunks.start..end)).unwrap_or_default();
        let is_here = |chunk: u64| {
            let kept = usize::try_from(chunk - chunks.start).ok().and_then(|at| here.get(at)).copied();
            kept.unwrap_or(false) || (lane != Lane::Demand && self.board.knows((id, chunk)))
        };
        (chunks.start..end).filter(|chunk| !is_here(*chunk)).collect()
    }

    /// Finds out what may be seen of a layer that is kept, and what its chunks must be.
    pub(super) async fn prepare(self: &Arc<Self>, layer: usize) -> Result<()> {
        self.admit(layer).await?;
        self.bind(layer).await
    }

    pub(super) fn grain(&self, layer: usize) -> Grain {
        if self.is_decoded(layer) { Grain::DECODED } else { Grain::STORED }
    }

    /// Starts a request for chunks that are neighbours; what it gives ends when the request has, with its chunks kept.
    pub(super) fn lead(
        self: &Arc<Self>,
        id: ExtentId,
        lane: Lane,
        urgency: Arc<Urgency>,
        flights: Vec<(Key, Arc<Flight>)>,
    ) -> oneshot::Receiver<()> {
        let request = Request { loader: Arc::clone(self), id, lane, urgency, flights, extras: Vec::new() };
        let (until_then, ended) = oneshot::channel();
        self.spawn(async move {
            request.run().await;
            drop(until_then);
        });
        ended
    }

    /// The chunk's bytes as proved by what is known; asked for once more where they are not what they must be.
    pub(super) async fn verified(
        self: &Arc<Self>,
        extent: &Extent,
        chunk: u64,
        bytes: impl Into<Hashed>,
    ) -> Result<Verified> {
        if extent.is_bound() {
            return self.verified_bound(extent, chunk, bytes).await;
        }
        self.doubt_unknown(extent, chunk);
        if let Some(verified) = extent.verify(chunk, bytes) {
            return Ok(verified);
        }
        self.metrics.fetch_mismatches.add(1);
        tracing::warn!(
            path = extent.path,
            chunk,
            "bytes fetched again differ from those before; asking once more"
        );
        self.distrust(extent.id.layer);
        let bytes = self.content(extent.id.layer, extent.content(&(chunk..chunk + 1))).await?;
        if let Some(verified) = extent.verify(chunk, bytes.clone()) {
            return Ok(verified);
        }
        self.metrics.fetch_mismatches.add(1);
        let mismatch = || {
            let doing =
                format!("{} gives other bytes than before for chunk {chunk}", self.repository.place());
            Error::new(Kind::Integrity, doing)
        };
        if self.standing(extent.id.layer) == Standing::Proved {
            return Err(mismatch());
        }
        let (loader, layer, served) = (Arc::clone(self), extent.id.layer, extent.seen(chunk));
        let settle = move || match served {
            true => loader.poison(layer, "a chunk fetched again has other bytes than before"),
            // Only the store said otherwise, of a layer that nobody has proved: it may be the one that is wrong.
            false => loader.discard(layer),
        };
        let _ = tokio::task::spawn_blocking(settle).await;
        extent.verify(chunk, bytes).filter(|_| !served).ok_or_else(mismatch)
    }

    pub(super) fn stored(
        &self,
        extent: &Extent,
        chunks: &Range<u64>,
    ) -> Result<(crate::oci::Blob, crate::range::StoredRange)> {
        let layer = self.layer(extent.id.layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        let range = layer.stored(extent.content(chunks));
        let range = range.ok_or_else(|| Error::new(Kind::Unsupported, "the layer is compressed"))?;
        Ok((layer.blob.clone(), range))
    }

    /// Hands out the chunk if the store has it; else takes down what it must be. Blocks.
    fn look(&self, extent: &Extent, chunk: u64) -> Look {
        let Some(kept) = self.reliable(extent) else { return Look::Absent };
        let said_to_be_here = kept.has(chunk);
        let may_be = !self.is_doubtful(extent, chunk);
        if let Some(verified) = may_be.then(|| self.read_from(extent, &kept, chunk)).flatten() {
            let key = (extent.id, chunk);
            self.hand_out(key, &verified);
            self.board.land(key);
            return Look::Found;
        }
        extent.learn(chunk, &kept);
        if said_to_be_here && kept.has(chunk) { Look::Unusable } else { Look::Absent }
    }

    /// Hands a verified chunk to who waits, and to the prover where there is something to prove.
    pub(super) fn hand_out(&self, key: Key, verified: &Verified) {
        self.hand_out_to(Reader::Any, key, verified);
    }

    /// The same for a reader who may have to come yet.
    pub(super) fn hand_out_to(&self, reader: Reader, key: Key, verified: &Verified) {
        let standing = self.standing(key.0.layer);
        if standing != Standing::Poisoned {
            self.refused.clear(key);
            self.board.publish(key, verified.bytes(), reader);
        }
        if self.is_to_be_proved(key.0.layer) {
            self.prover.arrived(key.0, key.1, verified.bytes());
        }
    }
}

/// What a look into the store has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    /// Handed out.
    Found,
    /// Not there, or damaged and marked as absent.
    Absent,
    /// Said to be there, and yet not to be had.
    Unusable,
}

impl Request {
    async fn run(mut self) {
        let loader = Arc::clone(&self.loader);
        let Some(extent) = loader.extent(self.id) else { return };
        let ready = loader.refuse_poisoned(self.id.layer);
        if let Err(error) = loader.prepare(self.id.layer).await.and(ready) {
            self.give_up(0..u64::MAX, &error);
            return;
        }
        self.flights.iter().for_each(|(_, flight)| flight.progress());
        let (mut left, mut unusable) = self.take_from_store().await;
        // Twice where a guide leads astray: it is given up then.
        while !left.is_empty() {
            if loader.streaming(self.id.layer).is_some() {
                left = self.let_come(left).await;
            }
            left = self.bring(extent, left, std::mem::take(&mut unusable)).await;
        }
    }

    /// Brings what is left, of which the store only says to have what is `unusable`. Gives what must be waited for after all.
    async fn bring(&mut self, extent: &Extent, mut left: Vec<u64>, mut unusable: Vec<u64>) -> Vec<u64> {
        if left.is_empty() {
            return left;
        }
        let loader = Arc::clone(&self.loader);
        let asked = (left.len() as u64).saturating_mul(CHUNK);
        let width = width(loader.repository.pace(), asked);
        let _turn = loader.lanes.enter(self.lane, &self.urgency, width).await;
        let mut patience = Instant::now();
        while !left.is_empty() {
            let kept = extent.open_kept();
            let limit = if self.lane == Lane::Demand { PATIENCE } else { LONG_PATIENCE };
            let claims = claim(&left, &unusable, kept.as_deref().filter(|_| patience.elapsed() < limit));
            let mine: Vec<u64> = claims.iter().map(|(chunk, _)| *chunk).collect();
            for run in runs(&mine, u64::MAX) {
                let span = self.lane.span(&extent.path, &run);
                let taken = self.take_from_repository(extent, run.clone()).instrument(span).await;
                if loader.must_come(self.id.layer) {
                    return self.flights.iter().map(|((_, chunk), _)| *chunk).collect();
                }
                if let Err(error) = taken {
                    self.give_up(run, &error);
                }
            }
            drop(claims);
            left.retain(|chunk| !mine.contains(chunk));
            if !left.is_empty() {
                tokio::time::sleep(LOOK).await;
                let before = left.len();
                (left, unusable) = self.take_from_store().await;
                if left.len() < before {
                    patience = Instant::now();
                }
            }
        }
        left
    }

    /// Hands out the chunks that the store has. Gives the others, and those of them that it only says to have.
    pub(super) async fn take_from_store(&mut self) -> (Vec<u64>, Vec<u64>) {
        let (loader, id) = (Arc::clone(&self.loader), self.id);
        let wanted: Vec<u64> = self.flights.iter().map(|((_, chunk), _)| *chunk).collect();
        let all = wanted.clone();
        let look = tokio::task::spawn_blocking(move || {
            let Some(extent) = loader.extent(id) else { return Vec::new() };
            wanted.into_iter().map(|chunk| (chunk, loader.look(extent, chunk))).collect::<Vec<_>>()
        });
        // A disk that hangs, or a panic there, must not keep the network from being asked.
        let Ok(Ok(found)) = tokio::time::timeout(LOOK_LIMIT, look).await else { return (all.clone(), all) };
        let chunks = |wanted: &dyn Fn(Look) -> bool| -> Vec<u64> {
            found.iter().filter(|(_, look)| wanted(*look)).map(|(chunk, _)| *chunk).collect()
        };
        let left = chunks(&|look| look != Look::Found);
        self.flights.retain(|((_, chunk), _)| left.contains(chunk));
        (left, chunks(&|look| look == Look::Unusable))
    }

    pub(super) fn give_up(&mut self, run: Range<u64>, error: &Error) {
        let id = self.id;
        let given_up = |(flown, chunk): &Key| *flown == id && run.contains(chunk);
        let (failed, left) =
            std::mem::take(&mut self.flights).into_iter().partition(|(key, _)| given_up(key));
        self.flights = left;
        let failed: Vec<(Key, Arc<Flight>)> = failed;
        for (key, flight) in failed {
            self.loader.board.fail(key, &flight, error);
        }
    }
}

/// How many requests of `request` bytes may be under way.
pub(super) fn width(pace: Pace, request: u64) -> usize {
    if request <= Pace::SMALL { pace.small } else { pace.requests }
}

/// Claims what no other process has claimed; everything, where they have had their time or nothing is kept.
fn claim<'a>(left: &[u64], unusable: &[u64], kept: Option<&'a KeptFile>) -> Vec<(u64, Option<Claim<'a>>)> {
    let Some(kept) = kept else { return left.iter().map(|chunk| (*chunk, None)).collect() };
    let claim = |chunk: &u64| kept.claim(*chunk).map(|claim| (*chunk, Some(claim)));
    // What was stored between the look and the claim is not fetched again: it is left for the next look.
    let wanted = |chunk: u64| unusable.contains(&chunk) || !kept.has(chunk);
    left.iter().filter_map(claim).filter(|(chunk, _)| wanted(*chunk)).collect()
}
