//! How chunks come: from the store where it has them, else from the repository, claimed against other processes.
//!
//! A request is a run of chunks of one extent with a task of its own that leads it. Each chunk is verified and
//! handed out as soon as its last byte is here; then it is kept, beside the readers and never before them.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::task::JoinSet;

use super::extent::Extent;
use super::flight::{Flight, Key, Place, Urgency};
use super::lanes::Lane;
use super::loader::{Loader, Standing};
use super::store::kept::{Claim, KeptFile};
use super::verify::Verified;
use crate::error::{Error, Kind, Result};
use crate::index::ExtentId;
use crate::range::ContentRange;
use crate::repository::ByteStream;

/// How many chunks one request asks for at most, when nobody waits for it.
const AHEAD_CHUNKS: u64 = 4;
/// How many requests one prefetch has under way at once; the lane has fewer turns than all of them together.
const AHEAD_REQUESTS: usize = 4;
/// How long a chunk that another process claims is waited for before it is fetched here as well.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often a claimed chunk is looked for. Claims have no notification; a look costs two system calls.
const LOOK: Duration = Duration::from_millis(3);

/// A run of chunks being fetched. Dropped before its end (a panic, the loader closing), it fails its flights.
struct Request {
    loader: Arc<Loader>,
    id: ExtentId,
    lane: Lane,
    urgency: Arc<Urgency>,
    flights: Vec<(Key, Arc<Flight>)>,
}

/// The bytes of one answer, as they come.
struct Pieces {
    stream: ByteStream,
    left: Bytes,
}

impl Pieces {
    async fn next(&mut self) -> Result<Bytes> {
        let ended = || Err(Error::new(Kind::Broken, "the answer ended early"));
        self.stream.next().await.unwrap_or_else(ended)
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        let error = Error::new(Kind::Broken, "the fetch was given up");
        for (key, _) in &self.flights {
            self.loader.board.fail(*key, &error);
        }
    }
}

impl Loader {
    /// Finds the chunks for a reader who waits; begins to fetch those that nobody fetches yet, each by itself, so
    /// that they come side by side and the first one soonest.
    pub(super) fn demand(self: &Arc<Self>, extent: &Extent, chunks: Range<u64>) -> Result<Vec<(Key, Place)>> {
        let mut places = Vec::new();
        for chunk in chunks {
            let urgency = Arc::default();
            for (key, place) in self.board.find(std::iter::once((extent.id, chunk)), &urgency)? {
                if let Place::Lead(flight) = &place {
                    let flights = vec![(key, Arc::clone(flight))];
                    self.lead(extent.id, Lane::Demand, Arc::clone(&urgency), flights);
                }
                places.push((key, place));
            }
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
        let loader = Arc::clone(self);
        let missing = tokio::task::spawn_blocking(move || loader.missing(id, range)).await;
        let mut under_way = FuturesUnordered::new();
        let mut outcome = Ok(());
        for run in runs(&missing.unwrap_or_default(), AHEAD_CHUNKS) {
            while under_way.len() >= AHEAD_REQUESTS {
                outcome = outcome.and(under_way.next().await.unwrap_or(Ok(())));
            }
            outcome.clone()?;
            under_way.push(self.fetch_run(id, run, lane));
        }
        while let Some(next) = under_way.next().await {
            outcome = outcome.and(next);
        }
        outcome
    }

    /// Fetches a run of chunks for nobody in particular and waits for them, without making them urgent.
    async fn fetch_run(self: &Arc<Self>, id: ExtentId, run: Range<u64>, lane: Lane) -> Result<()> {
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
        for group in contiguous(flights) {
            self.lead(id, lane, Arc::clone(&urgency), group);
        }
        for flight in aboard {
            flight.settled().await?;
        }
        Ok(())
    }

    /// The chunks of `range` that are neither in the store nor in memory nor under way. Blocks.
    fn missing(&self, id: ExtentId, range: ContentRange) -> Vec<u64> {
        let Some(extent) = self.extent(id) else { return Vec::new() };
        let here = extent.kept(&self.store).map(|kept| kept.all()).unwrap_or_default();
        let kept =
            |chunk: u64| usize::try_from(chunk).ok().and_then(|at| here.get(at)).copied().unwrap_or(false);
        extent.grid.covering(range).filter(|chunk| !kept(*chunk)).collect()
    }

    fn lead(
        self: &Arc<Self>,
        id: ExtentId,
        lane: Lane,
        urgency: Arc<Urgency>,
        flights: Vec<(Key, Arc<Flight>)>,
    ) {
        let request = Request { loader: Arc::clone(self), id, lane, urgency, flights };
        self.spawn(async move { request.run().await });
    }

    /// The chunk's bytes as proved by what is known; asked for once more where they are not what they must be.
    async fn verified(
        self: &Arc<Self>,
        extent: &Extent,
        kept: Option<&KeptFile>,
        chunk: u64,
        bytes: Bytes,
    ) -> Result<Verified> {
        if extent.digest(chunk, kept).is_none() && self.standing(extent.id.layer) == Standing::Proved {
            // A proof without its chunk digests proves nothing any more.
            self.set_unproved(extent.id.layer);
        }
        if let Some(verified) = extent.verify(chunk, bytes, kept) {
            return Ok(verified);
        }
        self.metrics.fetch_mismatches.add(1);
        tracing::warn!(
            path = extent.path,
            chunk,
            "bytes fetched again differ from those before; asking once more"
        );
        let range = self.stored(extent, &(chunk..chunk + 1))?;
        let bytes = crate::repository::read_all(&*self.repository, &range.0, range.1).await?;
        if let Some(verified) = extent.verify(chunk, bytes, kept) {
            return Ok(verified);
        }
        self.metrics.fetch_mismatches.add(1);
        if self.standing(extent.id.layer) == Standing::Unproved {
            self.poison(extent.id.layer, "a chunk fetched again has other bytes than before");
        }
        let doing = format!("{} gives other bytes than before for chunk {chunk}", self.repository.place());
        Err(Error::new(Kind::Integrity, doing))
    }

    pub(super) fn stored(
        &self,
        extent: &Extent,
        chunks: &Range<u64>,
    ) -> Result<(crate::oci::Blob, crate::range::StoredRange)> {
        let layer = self.layer(extent.id.layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        Ok((layer.blob.clone(), layer.stored(extent.content(chunks))))
    }

    /// Hands out the chunk if the store has it. Blocks.
    fn hand_out_kept(&self, extent: &Extent, chunk: u64) -> bool {
        let Some(verified) = self.read_kept(extent, chunk) else { return false };
        let key = (extent.id, chunk);
        self.hand_out(key, &verified);
        self.board.land(key);
        true
    }

    /// Hands a verified chunk to who waits and to the prover.
    fn hand_out(&self, key: Key, verified: &Verified) {
        if self.standing(key.0.layer) != Standing::Poisoned {
            self.board.publish(key, verified.bytes());
            self.prover.arrived(key.0, key.1, verified.bytes());
        }
    }

    /// Keeps a chunk that was handed out, then takes its flight off. Blocks.
    fn keep(&self, key: Key, verified: &Verified) {
        let (id, chunk) = key;
        let Some(extent) = self.extent(id) else { return };
        let kept = self.standing(id.layer) != Standing::Poisoned && extent.keep(chunk, verified, &self.store);
        self.board.land(key);
        let counter = if kept { &self.metrics.kept_bytes } else { &self.metrics.unkept_bytes };
        counter.add(verified.bytes().len() as u64);
        if self.standing(id.layer) == Standing::Poisoned {
            // It was found out while this chunk was being written.
            self.store.poison(&extent.layer);
        } else if kept && extent.complete(&self.store) {
            self.completed(extent);
        }
    }
}

impl Request {
    async fn run(mut self) {
        let loader = Arc::clone(&self.loader);
        let Some(extent) = loader.extent(self.id) else { return };
        if let Err(error) = loader.admit(self.id.layer).await {
            self.give_up(0..u64::MAX, &error);
            return;
        }
        let mut left = self.take_from_store().await;
        if left.is_empty() {
            return;
        }
        let _turn = loader.lanes.enter(self.lane, &self.urgency).await;
        let begun = Instant::now();
        while !left.is_empty() {
            let kept = extent.open_kept();
            let claims = self.claim(&left, kept.as_deref(), begun);
            let mine: Vec<u64> = claims.iter().map(|(chunk, _)| *chunk).collect();
            for run in runs(&mine, u64::MAX) {
                if let Err(error) = self.take_from_repository(extent, kept.as_deref(), run.clone()).await {
                    self.give_up(run, &error);
                }
            }
            drop(claims);
            left.retain(|chunk| !mine.contains(chunk));
            if !left.is_empty() {
                tokio::time::sleep(LOOK).await;
                left = self.take_from_store().await;
            }
        }
    }

    /// Hands out the chunks that the store has, and gives the others that are still to be brought.
    async fn take_from_store(&mut self) -> Vec<u64> {
        let (loader, id) = (Arc::clone(&self.loader), self.id);
        let wanted: Vec<u64> = self.flights.iter().map(|((_, chunk), _)| *chunk).collect();
        let look = tokio::task::spawn_blocking(move || {
            let Some(extent) = loader.extent(id) else { return Vec::new() };
            wanted.into_iter().filter(|chunk| !loader.hand_out_kept(extent, *chunk)).collect::<Vec<u64>>()
        });
        let left = look.await.unwrap_or_default();
        self.flights.retain(|((_, chunk), _)| left.contains(chunk));
        left
    }

    /// Claims what no other process has claimed; everything, once they have had their time or nothing is kept.
    fn claim<'a>(
        &self,
        left: &[u64],
        kept: Option<&'a KeptFile>,
        begun: Instant,
    ) -> Vec<(u64, Option<Claim<'a>>)> {
        let Some(kept) = kept.filter(|_| begun.elapsed() < PATIENCE) else {
            return left.iter().map(|chunk| (*chunk, None)).collect();
        };
        let claim = |chunk: &u64| kept.claim(*chunk).map(|claim| (*chunk, Some(claim)));
        // What was stored between the look and the claim is not fetched again: it is left for the next look.
        left.iter().filter_map(claim).filter(|(chunk, _)| !kept.has(*chunk)).collect()
    }

    /// Fetches a run of chunks in one request and sees them into the store.
    async fn take_from_repository(
        &mut self,
        extent: &Extent,
        kept: Option<&KeptFile>,
        run: Range<u64>,
    ) -> Result<()> {
        let loader = Arc::clone(&self.loader);
        let (blob, range) = loader.stored(extent, &run)?;
        loader.metrics.fetched_ranges.add(1);
        if self.lane == Lane::Demand {
            loader.metrics.demand_ranges.add(1);
        }
        let mut pieces = Pieces { stream: loader.repository.read(&blob, range).await?, left: Bytes::new() };
        let mut keeping = JoinSet::new();
        let outcome = self.receive(extent, kept, run, &mut pieces, &mut keeping).await;
        // The turn is kept until the chunks are: what is in memory stays bounded by the lanes.
        keeping.join_all().await;
        outcome
    }

    async fn receive(
        &mut self,
        extent: &Extent,
        kept: Option<&KeptFile>,
        run: Range<u64>,
        pieces: &mut Pieces,
        keeping: &mut JoinSet<()>,
    ) -> Result<()> {
        for chunk in run {
            let len = usize::try_from(extent.grid.range(chunk).len()).unwrap_or(usize::MAX);
            let bytes = self.next_chunk(pieces, len).await?;
            let verified = self.loader.verified(extent, kept, chunk, bytes).await?;
            let key = (self.id, chunk);
            self.loader.hand_out(key, &verified);
            self.flights.retain(|(flown, _)| *flown != key);
            let loader = Arc::clone(&self.loader);
            keeping.spawn_blocking(move || loader.keep(key, &verified));
        }
        Ok(())
    }

    async fn next_chunk(&self, pieces: &mut Pieces, len: usize) -> Result<Bytes> {
        let mut filling = self.loader.pool.take();
        while filling.len() < len {
            if pieces.left.is_empty() {
                pieces.left = pieces.next().await?;
                self.loader.metrics.fetched_bytes.add(pieces.left.len() as u64);
                self.flights.iter().for_each(|(_, flight)| flight.progress());
            }
            let want = pieces.left.len().min(len - filling.len());
            let taken = filling.push(pieces.left.get(..want).unwrap_or_default());
            pieces.left.advance(taken);
        }
        Ok(filling.share())
    }

    fn give_up(&mut self, run: Range<u64>, error: &Error) {
        let (failed, left) =
            std::mem::take(&mut self.flights).into_iter().partition(|((_, chunk), _)| run.contains(chunk));
        self.flights = left;
        let failed: Vec<(Key, Arc<Flight>)> = failed;
        for (key, _) in failed {
            self.loader.board.fail(key, error);
        }
    }
}

/// Runs of neighbouring numbers, none longer than `longest`. The numbers are ascending.
fn runs(chunks: &[u64], longest: u64) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for chunk in chunks {
        match runs.last_mut() {
            Some(run) if run.end == *chunk && run.end - run.start < longest => run.end += 1,
            _ => runs.push(*chunk..*chunk + 1),
        }
    }
    runs
}

/// Flights in groups whose chunks are neighbours.
fn contiguous(flights: Vec<(Key, Arc<Flight>)>) -> Vec<Vec<(Key, Arc<Flight>)>> {
    let mut groups: Vec<Vec<(Key, Arc<Flight>)>> = Vec::new();
    for flight in flights {
        let next = |group: &Vec<(Key, Arc<Flight>)>| {
            group.last().is_some_and(|((_, last), _)| last + 1 == flight.0.1)
        };
        match groups.last_mut() {
            Some(group) if next(group) => group.push(flight),
            _ => groups.push(vec![flight]),
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_make_runs_up_to_the_longest() {
        assert_eq!(runs(&[0, 1, 2, 3, 4, 7, 8], 4), [0..4, 4..5, 7..9]);
        assert_eq!(runs(&[], 4), Vec::<Range<u64>>::new());
        assert_eq!(runs(&[5, 6, 9], u64::MAX), [5..7, 9..10]);
    }
}
