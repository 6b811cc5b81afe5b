//! One answer of the repository, chunk by chunk: verified and handed out as each is here, and kept beside that.
//!
//! A part of the [`Request`], which says what is asked for. What comes of compressed layers is received in `passing` and `vouched`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::extent::Extent;
use super::fetch::Request;
use super::flight::Key;
use super::fresh::Reader;
use super::keeper::Keeping;
use super::lanes::Lane;
use super::pieces::Pieces;
use super::verify::{Arriving, Hashed};
use crate::buffer;
use crate::error::Result;
use crate::index::CHUNK;

/// The fewest chunks of which a request is held up until the disk takes some: two of its writes.
const LEAST: usize = 8;
/// How long a request that nobody waits for is held up for readers who do not come.
const PAUSE: Duration = Duration::from_secs(1);

impl Request {
    /// Fetches a run of chunks in one request and sees them into the store.
    pub(super) async fn take_from_repository(&mut self, extent: &Extent, run: Range<u64>) -> Result<()> {
        let loader = Arc::clone(&self.loader);
        if loader.is_pinned(self.id.layer) {
            return self.take_vouched(extent, run).await;
        }
        if loader.is_decoded(self.id.layer) {
            return self.take_decoded(extent, run).await;
        }
        let (blob, range) = loader.stored(extent, &run)?;
        loader.metrics.fetched_ranges.add(1);
        if self.lane == Lane::Demand {
            loader.metrics.demand_ranges.add(1);
        }
        let stream = match self.lane == Lane::Demand || self.urgency.is_raised() {
            true => loader.repository.read(&blob, range).await?,
            false => loader.repository.read_ahead(&blob, range).await?,
        };
        let mut pieces = Pieces { stream, left: Bytes::new() };
        let mut keeping = Keeping::default();
        let outcome = self.receive(extent, run, &mut pieces, &keeping).await;
        // What is left of an answer may hold a place in the repository, which somebody waits for.
        drop(pieces);
        // The turn is kept until the chunks are: what is in memory stays bounded by the lanes.
        keeping.until_fewer(1).await;
        outcome
    }

    async fn receive(
        &mut self,
        extent: &Extent,
        run: Range<u64>,
        pieces: &mut Pieces,
        keeping: &Keeping,
    ) -> Result<()> {
        let last = run.end.saturating_sub(1);
        let mut is_patient = self.lane != Lane::Demand;
        // What is loaded before anybody reads the file may be read or not.
        let reader = match self.lane == Lane::Ahead && extent.is_led() {
            true => Reader::Expected,
            false => Reader::Any,
        };
        for chunk in run {
            let len = usize::try_from(extent.grid.range(chunk).len()).unwrap_or(usize::MAX);
            let bytes = self.next_chunk(pieces, len).await?;
            let key = (self.id, chunk);
            let verified = match self.loader.verified(extent, chunk, bytes).await {
                Err(error) if extent.is_bound() => {
                    self.give_up(chunk..chunk + 1, &error);
                    continue;
                }
                verified => verified?,
            };
            self.loader.hand_out_to(reader, key, &verified);
            self.flights.retain(|(flown, _)| *flown != key);
            keeping.add(self.loader.keep_soon(key, verified));
            if chunk != last && is_patient {
                is_patient = self.await_room(key).await;
            }
        }
        Ok(())
    }

    /// Takes no more from the network than the disk takes on and readers take out of memory, so that what is in memory stays
    /// little: half as much for the disk where nobody waits for what is still to come as where somebody does, who is held up for nothing else.
    /// `false` where nothing has moved for a moment: the disk may hang and readers may have gone, and others may wait for what this
    /// request has claimed.
    async fn await_room(&self, last: Key) -> bool {
        let keeper = &self.loader.keeper;
        let most = usize::try_from(self.loader.config.memory / 2 / CHUNK).unwrap_or(usize::MAX).max(LEAST);
        let room = async {
            let is_taken = keeper.room(most / 2, || self.beat()).await;
            is_taken && (self.lane != Lane::Ahead || self.is_room_for_more(last).await)
        };
        tokio::select! {
            biased;
            () = self.awaited() => {}
            has_moved = room => return has_moved,
        }
        keeper.room(most, || self.beat()).await
    }

    /// Whether readers take out of memory what was loaded ahead of them, or there is room for more.
    async fn is_room_for_more(&self, last: Key) -> bool {
        tokio::time::timeout(PAUSE, self.loader.board.room(last)).await.is_ok()
    }

    /// Returns when somebody waits for a chunk that is still to come.
    async fn awaited(&self) {
        loop {
            let mut told = std::pin::pin!(self.urgency.told());
            told.as_mut().enable();
            if self.flights.iter().any(|(_, flight)| flight.is_awaited()) {
                return;
            }
            told.await;
        }
    }

    async fn next_chunk(&self, pieces: &mut Pieces, len: usize) -> Result<Hashed> {
        if pieces.left.is_empty() {
            self.next_piece(pieces).await?;
        }
        if pieces.left.len() == len && buffer::is_aligned(&pieces.left) {
            return Ok(std::mem::take(&mut pieces.left).into());
        }
        let mut arriving = Arriving::in_buffer(self.loader.pool.take(len));
        while arriving.len() < len {
            if pieces.left.is_empty() {
                self.next_piece(pieces).await?;
            }
            let want = pieces.left.len().min(len - arriving.len());
            let taken = arriving.push(pieces.left.get(..want).unwrap_or_default());
            pieces.left.advance(taken);
        }
        Ok(arriving.finish())
    }

    async fn next_piece(&self, pieces: &mut Pieces) -> Result<()> {
        pieces.left = pieces.next().await?;
        self.loader.metrics.fetched_bytes.add(pieces.left.len() as u64);
        self.flights.iter().for_each(|(_, flight)| flight.progress());
        Ok(())
    }
}
