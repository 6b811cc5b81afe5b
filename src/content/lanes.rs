//! Demand goes first: a lane each for what somebody waits for, for what is read ahead, and for the rest.
//!
//! Lanes share nothing, so that no number of prefetches can keep a reader waiting for its turn; and a request in
//! a slow lane that somebody begins to wait for moves to the fast one.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::flight::Urgency;

/// How much a request matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Somebody waits for it.
    Demand,
    /// A reader is expected there soon.
    Ahead,
    /// Nobody is known to want it.
    Background,
    /// Somebody waits for all of a file, or of many.
    Whole,
}

/// How many chunks one request asks for at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grain {
    /// When somebody waits for them.
    pub(super) demand: u64,
    /// When nobody does.
    pub(super) ahead: u64,
}

impl Grain {
    /// Of content that is the stored bytes.
    pub(super) const STORED: Self = Self { demand: 1, ahead: 4 };
    /// Of what is decoded: a request begins and ends within a span, and what it fetches and decodes of that in vain is
    /// little beside 16 MiB.
    pub(super) const DECODED: Self = Self { demand: 8, ahead: 16 };
}

/// The turns of each lane. A turn is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Lanes {
    demand: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    background: Arc<Semaphore>,
    whole: Arc<Semaphore>,
}

/// A turn; `None` inside only while the loader closes.
pub(super) type Turn = Option<OwnedSemaphorePermit>;

impl Default for Lanes {
    /// As many requests that somebody waits for as the kernel has reads under way (64), 4 ahead of readers, 2 in the background.
    /// 3 for whole files: a line is full with them, and what is under way is lost when the process is killed.
    fn default() -> Self {
        let lane = |turns| Arc::new(Semaphore::new(turns));
        Self { demand: lane(64), ahead: lane(4), background: lane(2), whole: lane(3) }
    }
}

impl Lanes {
    /// Waits for a turn in `lane`, or in the demand lane from the moment that somebody waits for the request.
    pub(super) async fn enter(&self, lane: Lane, urgency: &Urgency) -> Turn {
        let slow = match lane {
            Lane::Demand => return turn(&self.demand).await,
            Lane::Ahead => &self.ahead,
            Lane::Background => &self.background,
            Lane::Whole => &self.whole,
        };
        tokio::select! {
            turn = turn(slow) => turn,
            () = urgency.raised() => turn(&self.demand).await,
        }
    }
}

async fn turn(lane: &Arc<Semaphore>) -> Turn {
    Arc::clone(lane).acquire_owned().await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_that_somebody_begins_to_wait_for_leaves_the_slow_lane() {
        let lanes = Arc::new(Lanes::default());
        let idle = Urgency::default();
        let mut turns = Vec::new();
        for _ in 0..2 {
            turns.push(lanes.enter(Lane::Background, &idle).await);
        }
        let board = super::super::flight::Board::new(0);
        let urgency = Arc::new(Urgency::default());
        let key = (crate::index::ExtentId { layer: 0, extent: 0 }, 0);
        let found = board.find(std::iter::once(key), &urgency).unwrap().pop();
        let Some((_, super::super::flight::Place::Lead(flight))) = found else { panic!("no flight") };
        let queued = tokio::spawn({
            let (lanes, urgency) = (Arc::clone(&lanes), Arc::clone(&urgency));
            async move { lanes.enter(Lane::Background, &urgency).await.is_some() }
        });
        let waiter = tokio::spawn(async move { flight.wait(std::time::Duration::from_secs(60)).await });
        assert!(queued.await.unwrap());
        waiter.abort();
    }
}
