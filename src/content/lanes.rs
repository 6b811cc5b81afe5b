//! Demand goes first: one queue for all requests of a loader, in which whoever waits is before whatever is loaded early.
//!
//! What somebody waits for has turns of its own, so that no number of prefetches can keep a reader waiting; what is
//! loaded early shares as many as the repository's pace says, and stands back while readers need the line. A request
//! that somebody begins to wait for goes to the front.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::Span;

use super::flight::Urgency;
use crate::metrics::TRACED;

/// How many requests that somebody waits for are under way at most: as many as the kernel has reads under way.
const DEMAND: usize = 64;

/// How much a request matters; what matters more comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lane {
    /// Somebody waits for it.
    Demand,
    /// A reader is expected there soon.
    Ahead,
    /// Somebody waits for all of a file, or of many.
    Whole,
    /// Nobody is known to want it.
    Background,
}

impl Lane {
    /// What is traced of a fetch of these chunks of the file at `path`: those that somebody waits for.
    pub(super) fn span(self, path: &str, run: &Range<u64>) -> Span {
        match self {
            Self::Demand => {
                let chunks = run.end.saturating_sub(run.start);
                tracing::info_span!(target: TRACED, "fetch", path, chunk = run.start, chunks)
            }
            _ => Span::none(),
        }
    }
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

/// The turns of one loader.
#[derive(Debug, Default)]
pub(super) struct Lanes(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<State>,
    moved: Notify,
}

#[derive(Debug, Default)]
struct State {
    demand: usize,
    ahead: usize,
    whole: usize,
    background: usize,
    /// How many of all these were begun ahead of a reader, whether he has caught up with them or not.
    led: usize,
    /// Who waits, the first one first; each has a number of its own.
    waiting: BTreeSet<(Lane, u64)>,
    numbers: u64,
}

/// Leave to fetch, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Turn {
    queue: Arc<Queue>,
    lane: Lane,
    /// The lane it came from.
    from: Lane,
}

/// A place in the queue, given up when it is dropped.
struct Waiting<'a> {
    queue: &'a Queue,
    place: (Lane, u64),
}

impl Lanes {
    /// Waits for a turn in `lane`, or in the demand lane from the moment that somebody waits for the request. `width` is
    /// how many requests may be under way beside it, in all lanes together, where it is an early one.
    pub(super) async fn enter(&self, lane: Lane, urgency: &Urgency, width: usize) -> Turn {
        if lane == Lane::Demand {
            return self.turn(lane, lane, width).await;
        }
        tokio::select! {
            biased;
            turn = self.turn(lane, lane, width) => turn,
            () = urgency.raised() => self.turn(Lane::Demand, lane, width).await,
        }
    }

    async fn turn(&self, lane: Lane, from: Lane, width: usize) -> Turn {
        let waiting = self.0.wait(lane);
        loop {
            let mut moved = std::pin::pin!(self.0.moved.notified());
            moved.as_mut().enable();
            if self.0.state.lock().take(waiting.place, from, width) {
                return Turn { queue: Arc::clone(&self.0), lane, from };
            }
            moved.await;
        }
    }
}

#[cfg(test)]
impl Lanes {
    /// How many wait for a turn.
    pub(super) fn waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }
}

impl Queue {
    fn wait(&self, lane: Lane) -> Waiting<'_> {
        let mut state = self.state.lock();
        state.numbers += 1;
        let place = (lane, state.numbers);
        state.waiting.insert(place);
        Waiting { queue: self, place }
    }
}

impl State {
    /// Whether the turn is there now; then it is taken.
    fn take(&mut self, place: (Lane, u64), from: Lane, width: usize) -> bool {
        let (lane, _) = place;
        let first = self.waiting.range((lane, 0)..).next() == Some(&place);
        let taken = first && self.has_turn(lane, width);
        if taken {
            *self.under_way(lane) += 1;
            self.led += usize::from(from == Lane::Ahead);
        }
        taken
    }

    fn has_turn(&self, lane: Lane, width: usize) -> bool {
        let early = self.ahead + self.whole + self.background;
        // One at a time goes on however many readers wait: what is loaded early is what they will need.
        let room = early == 0 || self.demand + early < width;
        let before = self.waiting.first().is_some_and(|(first, _)| *first < lane);
        match lane {
            Lane::Demand => self.demand < DEMAND,
            Lane::Ahead => room && !before,
            // A line is full with one less, and what is under way is lost when the process is killed.
            Lane::Whole => early < width.saturating_sub(1).max(1) && !before,
            // Who reads in order will come to all of it: what comes sooner is out of memory before he is there.
            Lane::Background => room && !before && self.led == 0 && self.background < (width / 2).max(1),
        }
    }

    fn under_way(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Demand => &mut self.demand,
            Lane::Ahead => &mut self.ahead,
            Lane::Whole => &mut self.whole,
            Lane::Background => &mut self.background,
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.queue.state.lock().waiting.remove(&self.place);
        self.queue.moved.notify_waiters();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.queue.state.lock();
            let under_way = state.under_way(self.lane);
            *under_way = under_way.saturating_sub(1);
            state.led = state.led.saturating_sub(usize::from(self.from == Lane::Ahead));
        }
        self.queue.moved.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::super::flight::{Board, Place};
    use super::*;

    /// The turn, if it is there at once.
    async fn at_once(lanes: &Lanes, lane: Lane, width: usize) -> Option<Turn> {
        let idle = Urgency::default();
        let entering = lanes.enter(lane, &idle, width);
        tokio::select! {
            biased;
            turn = entering => Some(turn),
            () = std::future::ready(()) => None,
        }
    }

    #[tokio::test]
    async fn a_request_that_somebody_begins_to_wait_for_leaves_the_slow_lane() {
        let lanes = Arc::new(Lanes::default());
        let mut turns = Vec::new();
        for _ in 0..2 {
            turns.push(at_once(&lanes, Lane::Background, 4).await.unwrap());
        }
        let board = Board::new(0);
        let urgency = Arc::new(Urgency::default());
        let key = (crate::index::ExtentId { layer: 0, extent: 0 }, 0);
        let found = board.find(std::iter::once(key), &urgency).unwrap().pop();
        let Some((_, Place::Lead(flight))) = found else { panic!("no flight") };
        let queued = tokio::spawn({
            let (lanes, urgency) = (Arc::clone(&lanes), Arc::clone(&urgency));
            async move { lanes.enter(Lane::Background, &urgency, 4).await.lane }
        });
        let waiter = tokio::spawn(async move { flight.wait(std::time::Duration::from_secs(60)).await });
        assert_eq!(queued.await.unwrap(), Lane::Demand);
        waiter.abort();
    }

    #[tokio::test]
    async fn what_is_loaded_early_keeps_to_the_pace_and_stands_back_for_readers() {
        let lanes = Lanes::default();
        let mut readers = Vec::new();
        for _ in 0..3 {
            readers.push(at_once(&lanes, Lane::Demand, 4).await.unwrap());
        }
        let early = at_once(&lanes, Lane::Ahead, 4).await.unwrap();
        assert!(at_once(&lanes, Lane::Ahead, 4).await.is_none(), "the line is full");
        assert!(at_once(&lanes, Lane::Demand, 4).await.is_some(), "a reader never waits for it");
        assert!(at_once(&lanes, Lane::Ahead, 8).await.is_some(), "the line bears more");
        drop((readers, early));
        let _one = at_once(&lanes, Lane::Ahead, 1).await.unwrap();
        assert!(at_once(&lanes, Lane::Ahead, 1).await.is_none());
    }

    #[tokio::test]
    async fn one_goes_on_however_many_readers_wait_and_all_readers_have_turns() {
        let lanes = Lanes::default();
        let mut readers = Vec::new();
        while let Some(turn) = at_once(&lanes, Lane::Demand, 4).await {
            readers.push(turn);
        }
        assert_eq!(readers.len(), DEMAND);
        assert!(at_once(&lanes, Lane::Background, 4).await.is_some());
    }

    #[tokio::test]
    async fn what_nobody_is_known_to_want_waits_while_a_reader_is_led_who_has_caught_up_or_not() {
        let lanes = Lanes::default();
        let led = at_once(&lanes, Lane::Ahead, 4).await.unwrap();
        assert!(at_once(&lanes, Lane::Background, 4).await.is_none());
        drop(led);
        drop(at_once(&lanes, Lane::Background, 4).await.unwrap());
        let full: Vec<_> =
            [at_once(&lanes, Lane::Whole, 2).await, at_once(&lanes, Lane::Demand, 2).await].into();
        let urgency = Urgency::default();
        urgency.raise();
        let caught_up = lanes.enter(Lane::Ahead, &urgency, 2).await;
        assert_eq!(caught_up.lane, Lane::Demand);
        drop(full);
        assert!(at_once(&lanes, Lane::Background, 4).await.is_none());
        drop(caught_up);
        assert!(at_once(&lanes, Lane::Background, 4).await.is_some());
    }

    #[tokio::test]
    async fn turns_are_given_in_order_and_to_what_matters_more_first() {
        let lanes = Arc::new(Lanes::default());
        let held = at_once(&lanes, Lane::Ahead, 1).await.unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let wait = |lane, name: &'static str| {
            let (lanes, order) = (Arc::clone(&lanes), Arc::clone(&order));
            tokio::spawn(async move {
                let _turn = lanes.enter(lane, &Urgency::default(), 1).await;
                order.lock().push(name);
                tokio::task::yield_now().await;
            })
        };
        let mut all = Vec::new();
        for (lane, name) in [(Lane::Background, "last"), (Lane::Ahead, "first"), (Lane::Ahead, "second")] {
            all.push(wait(lane, name));
            tokio::task::yield_now().await;
        }
        drop(held);
        for one in all {
            one.await.unwrap();
        }
        assert_eq!(*order.lock(), ["first", "second", "last"]);
    }
}
