//! Whose turn it is to go by: of many compressed layers only so many at once, those that somebody waits for first.
//!
//! A layer on its way holds some MiB and three threads, also while nothing of it comes. So it has its turn until it has gone
//! by; one that has halted gives it up where another could go on, and begins anew when it is asked for: what is kept of it
//! stays. The line is another matter: that is shared by [lanes](super::super::lanes), while bytes come. Called by
//! [`feed`](super::feed).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::content::flight::Urgency;

/// How many layers are on their way at once. Each has up to 2 MiB waiting to be decoded, 8 MiB waiting to be kept, and what
/// its decoder needs.
const GOING: usize = 8;

/// How many of them may be such that nobody waits for.
const UNASKED: usize = 4;

/// How often who waits for a turn is told whether others get on.
const BEAT: Duration = Duration::from_secs(1);

/// The turns of one loader.
#[derive(Debug, Default)]
pub(in crate::content) struct Turns {
    state: Mutex<State>,
    moved: Notify,
    /// How many pieces of layers have arrived.
    arrived: AtomicU64,
}

/// Layers on their way and before it, by a number of each.
#[derive(Debug, Default)]
struct State {
    numbers: u64,
    waiting: BTreeMap<u64, Arc<Urgency>>,
    going: BTreeMap<u64, Arc<Urgency>>,
    /// Those of them that have halted, and would make room.
    halted: BTreeSet<u64>,
}

/// A turn, or a place in the queue for one; given up when it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    turns: &'a Turns,
    number: u64,
}

impl Turns {
    /// Waits for a turn: `urgency` says whether somebody waits for the layer. Calls `beat` now and then while others get on,
    /// so that who waits for this one knows that it will come to it.
    pub(super) async fn enter(&self, urgency: &Arc<Urgency>, beat: impl Fn()) -> Turn<'_> {
        let mut urgent = urgency.is_raised();
        let mut seen = self.arrived.load(Ordering::Relaxed);
        let turn = self.queue(urgency);
        loop {
            let mut moved = std::pin::pin!(self.moved.notified());
            moved.as_mut().enable();
            if self.state.lock().take(turn.number) {
                // Others may wait in vain from now on.
                self.moved.notify_waiters();
                return turn;
            }
            tokio::select! {
                () = moved => {}
                () = urgency.raised(), if !urgent => {
                    urgent = true;
                    self.moved.notify_waiters();
                }
                () = tokio::time::sleep(BEAT) => {
                    let before = std::mem::replace(&mut seen, self.arrived.load(Ordering::Relaxed));
                    if seen != before {
                        beat();
                    }
                }
            }
        }
    }

    /// Says that a piece of a layer has arrived.
    pub(super) fn beat(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    fn queue(&self, urgency: &Arc<Urgency>) -> Turn<'_> {
        let mut state = self.state.lock();
        state.numbers += 1;
        let number = state.numbers;
        state.waiting.insert(number, Arc::clone(urgency));
        drop(state);
        self.moved.notify_waiters();
        Turn { turns: self, number }
    }
}

impl Turn<'_> {
    /// Of a layer of which nothing comes: returns when its turn would be of use to another one.
    pub(super) async fn wanted(&self) {
        let halted = Halted::new(self);
        loop {
            let mut moved = std::pin::pin!(self.turns.moved.notified());
            moved.as_mut().enable();
            if self.turns.state.lock().is_wanted(self.number) {
                // Until the turn is given up, no other one needs to be.
                return std::mem::forget(halted);
            }
            moved.await;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.state.lock();
        state.waiting.remove(&self.number);
        state.going.remove(&self.number);
        state.halted.remove(&self.number);
        drop(state);
        self.turns.moved.notify_waiters();
    }
}

/// Says of a turn, until it is dropped, that nothing comes of it.
struct Halted<'a>(&'a Turn<'a>);

impl<'a> Halted<'a> {
    fn new(turn: &'a Turn<'a>) -> Self {
        turn.turns.state.lock().halted.insert(turn.number);
        Self(turn)
    }
}

impl Drop for Halted<'_> {
    fn drop(&mut self) {
        self.0.turns.state.lock().halted.remove(&self.0.number);
        self.0.turns.moved.notify_waiters();
    }
}

impl State {
    /// Whether the turn is there now; then it is taken.
    fn take(&mut self, number: u64) -> bool {
        let taken = self.next(None) == Some(number);
        if taken && let Some(urgency) = self.waiting.remove(&number) {
            self.going.insert(number, urgency);
        }
        taken
    }

    /// Who may go now: the first that somebody waits for, else the first. `without`: as if that one had given up its turn.
    fn next(&self, without: Option<u64>) -> Option<u64> {
        let urgent = self.waiting.iter().find(|(_, urgency)| urgency.is_raised());
        let going = || self.going.iter().filter(|(number, _)| Some(**number) != without);
        let unasked = going().filter(|(_, urgency)| !urgency.is_raised()).count();
        let (number, _) = urgent.or_else(|| self.waiting.first_key_value())?;
        let room = going().count() < GOING && (urgent.is_some() || unasked < UNASKED);
        room.then_some(*number)
    }

    /// Whether this one is the first of those that have halted whose turn would be of use to another, which waits in vain.
    fn is_wanted(&self, number: u64) -> bool {
        let of_use = |number: &&u64| self.next(Some(**number)).is_some();
        self.next(None).is_none() && self.halted.iter().find(of_use) == Some(&number)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    /// The turn, if it is there at once.
    async fn at_once<'a>(turns: &'a Turns, urgency: &Arc<Urgency>) -> Option<Turn<'a>> {
        tokio::select! {
            biased;
            turn = turns.enter(urgency, || ()) => Some(turn),
            () = std::future::ready(()) => None,
        }
    }

    fn asked() -> Arc<Urgency> {
        let urgency = Urgency::default();
        urgency.raise();
        Arc::new(urgency)
    }

    async fn all(turns: &Turns, urgency: impl Fn() -> Arc<Urgency>) -> Vec<Turn<'_>> {
        let mut all = Vec::new();
        while let Some(turn) = at_once(turns, &urgency()).await {
            all.push(turn);
        }
        all
    }

    #[tokio::test]
    async fn those_that_somebody_waits_for_have_turns_beside_any_number_of_others() {
        let turns = Turns::default();
        let unasked = all(&turns, Arc::default).await;
        assert_eq!(unasked.len(), UNASKED);
        let urgent = all(&turns, asked).await;
        assert_eq!(urgent.len(), GOING - UNASKED);
        drop(unasked);
        assert_eq!(all(&turns, asked).await.len(), UNASKED);
    }

    #[tokio::test]
    async fn one_that_somebody_begins_to_wait_for_goes_before_the_others_and_makes_room_for_one_of_them() {
        let turns = Turns::default();
        let going: Vec<Arc<Urgency>> = (0..UNASKED).map(|_| Arc::default()).collect();
        let mut held = Vec::new();
        for urgency in &going {
            held.push(at_once(&turns, urgency).await.unwrap());
        }
        let (first, second) = (Arc::default(), Arc::<Urgency>::default());
        let (one, other) = (turns.enter(&first, || ()), turns.enter(&second, || ()));
        let (mut one, mut other) = (std::pin::pin!(one), std::pin::pin!(other));
        assert!(one.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_none());
        second.raise();
        drop(other.await);
        assert!(one.as_mut().now_or_never().is_none());
        going[0].raise();
        drop(held.pop());
        one.await;
    }

    #[tokio::test]
    async fn one_that_has_halted_is_asked_to_make_room_only_where_that_is_of_use() {
        let turns = Turns::default();
        let mut going = all(&turns, asked).await;
        let (first, second) = (going.remove(0), going.remove(0));
        let (mut first_wanted, mut second_wanted) = (Box::pin(first.wanted()), Box::pin(second.wanted()));
        assert!(first_wanted.as_mut().now_or_never().is_none(), "nobody waits");
        assert!(second_wanted.as_mut().now_or_never().is_none());
        let urgency = asked();
        let mut entering = Box::pin(turns.enter(&urgency, || ()));
        assert!(entering.as_mut().now_or_never().is_none());
        first_wanted.await;
        assert!(second_wanted.as_mut().now_or_never().is_none(), "one of them is enough");
        drop(first);
        assert!(second_wanted.as_mut().now_or_never().is_none(), "there is room now");
        entering.await;
    }

    #[tokio::test]
    async fn one_that_has_halted_keeps_a_turn_that_would_let_nobody_else_go() {
        let turns = Turns::default();
        let going = all(&turns, Arc::default).await;
        let (asked, unasked) = (at_once(&turns, &asked()).await.unwrap(), &going[0]);
        let (mut asked, mut unasked) = (Box::pin(asked.wanted()), Box::pin(unasked.wanted()));
        assert!(asked.as_mut().now_or_never().is_none());
        assert!(unasked.as_mut().now_or_never().is_none());
        let urgency = Arc::default();
        let mut entering = Box::pin(turns.enter(&urgency, || ()));
        assert!(entering.as_mut().now_or_never().is_none(), "so many are on their way that nobody waits for");
        assert!(
            asked.as_mut().now_or_never().is_none(),
            "one that nobody waits for could not go in its place"
        );
        unasked.await;
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_a_turn_is_told_while_others_get_on_and_not_when_nobody_does() {
        let turns = Turns::default();
        let _going = all(&turns, asked).await;
        let beats = AtomicU64::new(0);
        let urgency = asked();
        let mut entering = std::pin::pin!(turns.enter(&urgency, || {
            beats.fetch_add(1, Ordering::Relaxed);
        }));
        let mut wait = async |beats: u32| {
            tokio::select! {
                _ = entering.as_mut() => panic!("there is no room"),
                () = tokio::time::sleep(BEAT * beats) => {}
            }
        };
        wait(3).await;
        assert_eq!(beats.load(Ordering::Relaxed), 0);
        for beaten in 1..3 {
            turns.beat();
            wait(2).await;
            assert_eq!(beats.load(Ordering::Relaxed), beaten);
        }
    }
}
