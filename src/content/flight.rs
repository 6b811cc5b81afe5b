//! One fetch that many wait for, and the chunks that are in memory already.
//!
//! A [`Board`] knows every chunk that is under way or fresh in memory. Who asks for a chunk is given its bytes,
//! or the flight that will bring it, or, where nobody fetches it yet, a flight of its own to lead. Waiters hold
//! no lock and lead nothing: a read that is given up strands nobody.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use super::fresh::{Fresh, Reader};
use crate::error::{Error, Kind, Result};
use crate::index::ExtentId;

/// A chunk of an extent.
pub(super) type Key = (ExtentId, u64);

/// What a flight has come to.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    /// Under way; the number grows with every piece that arrives.
    Pending(u64),
    /// Here, and verified.
    Here(Bytes),
    /// Given up.
    Failed(Error),
}

/// One chunk under way.
#[derive(Debug)]
pub(super) struct Flight {
    outcome: watch::Sender<Outcome>,
    urgency: Arc<Urgency>,
    /// How many wait for it now.
    waiting: AtomicUsize,
}

/// One who waits for a flight.
struct Waiting<'a>(&'a Flight);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether somebody waits for a request that was begun for nobody. Shared by the flights of one request.
#[derive(Debug, Default)]
pub(super) struct Urgency {
    raised: AtomicBool,
    notify: Notify,
}

/// How a chunk was found on the board.
#[derive(Debug)]
pub(super) enum Place {
    /// In memory.
    Here(Bytes),
    /// Under way by another's hand.
    Aboard(Arc<Flight>),
    /// Nowhere: whoever asked leads this new flight.
    Lead(Arc<Flight>),
}

/// The chunks under way and in memory.
#[derive(Debug)]
pub(super) struct Board {
    inner: Mutex<Inner>,
    /// Told when a chunk that was loaded ahead is read, or has left.
    read: Notify,
}

#[derive(Debug)]
struct Inner {
    flights: HashMap<Key, Arc<Flight>>,
    /// What is in memory.
    fresh: Fresh,
    closed: bool,
}

impl Urgency {
    /// Says that somebody waits.
    pub(super) fn raise(&self) {
        self.raised.store(true, Ordering::Release);
        self.notify.notify_waiters();
    }

    /// Ends when somebody begins to wait after this call.
    pub(super) fn told(&self) -> Notified<'_> {
        self.notify.notified()
    }

    /// Whether somebody waits, or has waited.
    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// Returns when somebody waits.
    pub(super) async fn raised(&self) {
        let notified = self.notify.notified();
        if !self.raised.load(Ordering::Acquire) {
            notified.await;
        }
    }
}

impl Flight {
    fn new(urgency: Arc<Urgency>) -> Self {
        Self { outcome: watch::Sender::new(Outcome::Pending(0)), urgency, waiting: AtomicUsize::new(0) }
    }

    /// Says that bytes of this chunk's request arrived, so that its waiters go on waiting.
    pub(super) fn progress(&self) {
        self.outcome.send_modify(|outcome| {
            if let Outcome::Pending(pieces) = outcome {
                *pieces += 1;
            }
        });
    }

    /// Whether it has come to an end.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(*self.outcome.borrow(), Outcome::Pending(_))
    }

    /// Whether somebody waits for it now.
    pub(super) fn is_awaited(&self) -> bool {
        self.waiting.load(Ordering::Acquire) > 0
    }

    /// Waits for the chunk, as long as something of it arrives every `deadline`.
    ///
    /// # Errors
    /// Why the flight was given up, or `Deadline`.
    pub(super) async fn wait(&self, deadline: Duration) -> Result<Bytes> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let _waiting = Waiting(self);
        self.urgency.raise();
        let mut outcome = self.outcome.subscribe();
        loop {
            match &*outcome.borrow_and_update() {
                Outcome::Here(bytes) => return Ok(bytes.clone()),
                Outcome::Failed(error) => return Err(error.clone()),
                Outcome::Pending(_) => {}
            }
            let changed = tokio::time::timeout(deadline, outcome.changed()).await;
            if !matches!(changed, Ok(Ok(()))) {
                let doing = format!("nothing arrived for {}", humantime::format_duration(deadline));
                return Err(Error::new(Kind::Deadline, doing));
            }
        }
    }
}

impl Board {
    /// A board whose memory holds chunks of `memory` bytes in all, at least two of them.
    pub(super) fn new(memory: u64) -> Self {
        let inner = Inner { flights: HashMap::new(), fresh: Fresh::new(memory), closed: false };
        Self { inner: Mutex::new(inner), read: Notify::new() }
    }

    /// Has memory hold chunks of `memory` bytes from now on ([`Fresh::resize`]). Costs a lock where nothing changes.
    pub(super) fn resize(&self, memory: u64) {
        self.change(|inner| inner.fresh.resize(memory));
    }

    /// Shrinks memory to `memory` bytes where nobody has begun a read for so long, and nobody waits for one that he began before.
    pub(super) fn release_idle(&self, memory: u64, idle: Duration) {
        self.change(|inner| {
            if !inner.flights.values().any(|flight| flight.is_awaited()) {
                inner.fresh.release_idle(memory, idle);
            }
        });
    }

    /// Changes what is on the board, and tells who waits for room where that may have come of it.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.inner.lock();
        let (unread, most) = inner.fresh.state();
        let changed = change(&mut inner);
        let now = inner.fresh.state();
        drop(inner);
        if now.0 < unread || now.1 != most {
            self.read.notify_waiters();
        }
        changed
    }

    /// The chunk's bytes, if they are in memory.
    pub(super) fn peek(&self, key: Key) -> Option<Bytes> {
        // What waits for the disk may be out of memory already.
        self.change(|inner| inner.fresh.take(key).or_else(|| inner.flown(key)))
    }

    /// Returns while less than three quarters of the memory are chunks that their readers have not come to yet, or where the next
    /// one after `key` would be read before one of these: more of them would have to be read from the disk when they do.
    pub(super) async fn room(&self, key: Key) {
        loop {
            let mut read = std::pin::pin!(self.read.notified());
            read.as_mut().enable();
            if self.inner.lock().fresh.has_room(key) {
                return;
            }
            read.await;
        }
    }

    /// Finds each chunk, or makes a flight that the caller must lead to an end. The new flights share `urgency`.
    ///
    /// # Errors
    /// `Deadline` once the board is closed.
    pub(super) fn find(
        &self,
        keys: impl Iterator<Item = Key>,
        urgency: &Arc<Urgency>,
    ) -> Result<Vec<(Key, Place)>> {
        self.change(|inner| match inner.closed {
            true => Err(closing()),
            false => Ok(keys.map(|key| (key, inner.find(key, urgency))).collect()),
        })
    }

    /// Hands the chunk to everybody who waits, and keeps it in memory, for `reader`. The flight stays until [`land`](Self::land).
    pub(super) fn publish(&self, key: Key, bytes: &Bytes, reader: Reader) {
        self.change(|inner| {
            let flight = inner.flights.get(&key);
            // Who waits has it in his hands then.
            let is_awaited = flight.is_some_and(|flight| flight.is_awaited());
            inner.fresh.put(key, bytes.clone(), if is_awaited { Reader::Any } else { reader });
            if let Some(flight) = flight {
                flight.outcome.send_replace(Outcome::Here(bytes.clone()));
            }
        });
    }

    /// Takes the flight off that has brought its chunk: it is in the store now, or will not be.
    pub(super) fn land(&self, key: Key) {
        let mut inner = self.inner.lock();
        if inner.flights.get(&key).is_some_and(|flight| flight.is_here()) {
            inner.flights.remove(&key);
        }
    }

    /// Takes a flight off that has brought nothing, unless somebody else has it in his hands; whether it did.
    pub(super) fn withdraw(&self, key: Key, flight: &Arc<Flight>) -> bool {
        let mut inner = self.inner.lock();
        match inner.flights.get(&key) {
            // The board's own and the caller's. Nobody comes by another while the board is locked.
            Some(aboard) if Arc::ptr_eq(aboard, flight) => {
                let alone = Arc::strong_count(flight) <= 2;
                if alone {
                    inner.flights.remove(&key);
                }
                alone
            }
            _ => true,
        }
    }

    /// Whether the chunk is in memory or under way.
    pub(super) fn knows(&self, key: Key) -> bool {
        let inner = self.inner.lock();
        inner.flights.contains_key(&key) || inner.fresh.knows(key)
    }

    /// Whether nothing is under way.
    #[cfg(test)]
    pub(super) fn is_quiet(&self) -> bool {
        self.inner.lock().flights.is_empty()
    }

    /// Whether [`close`](Self::close) was called.
    pub(super) fn closed(&self) -> bool {
        self.inner.lock().closed
    }

    /// Ends the flight in failure, unless it has brought its chunk. Another one of the same chunk is let be.
    pub(super) fn fail(&self, key: Key, flight: &Arc<Flight>, error: &Error) {
        let mut inner = self.inner.lock();
        if inner.flights.get(&key).is_some_and(|aboard| Arc::ptr_eq(aboard, flight)) {
            inner.flights.remove(&key);
        }
        flight.fail(error);
    }

    /// Forgets the chunks of a layer, in memory and under way; who waits for them is given `error`.
    pub(super) fn purge(&self, layer: usize, error: &Error) {
        self.change(|inner| {
            inner.flights.retain(|(id, _), flight| {
                if id.layer == layer {
                    flight.fail(error);
                }
                id.layer != layer
            });
            inner.fresh.forget_layer(layer);
        });
    }

    /// Fails everybody who waits, and everybody who asks from now on.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        for (_, flight) in inner.flights.drain() {
            flight.fail(&closing());
        }
        inner.fresh.clear();
        drop(inner);
        self.read.notify_waiters();
    }
}

impl Flight {
    /// Waits until the chunk is here or given up, without making it urgent.
    ///
    /// # Errors
    /// Why the flight was given up.
    pub(super) async fn settled(&self) -> Result<()> {
        let mut outcome = self.outcome.subscribe();
        let settled = outcome.wait_for(|outcome| !matches!(outcome, Outcome::Pending(_))).await;
        match settled.as_deref() {
            Ok(Outcome::Failed(error)) => Err(error.clone()),
            _ => Ok(()),
        }
    }

    /// Whether it has brought its chunk.
    pub(super) fn is_here(&self) -> bool {
        matches!(&*self.outcome.borrow(), Outcome::Here(_))
    }

    fn fail(&self, error: &Error) {
        self.outcome.send_modify(|outcome| {
            if matches!(outcome, Outcome::Pending(_)) {
                *outcome = Outcome::Failed(error.clone());
            }
        });
    }
}

impl Inner {
    /// The chunk, where its flight has brought it and is not off the board yet.
    fn flown(&self, key: Key) -> Option<Bytes> {
        match &*self.flights.get(&key)?.outcome.borrow() {
            Outcome::Here(bytes) => Some(bytes.clone()),
            Outcome::Pending(_) | Outcome::Failed(_) => None,
        }
    }

    fn find(&mut self, key: Key, urgency: &Arc<Urgency>) -> Place {
        if let Some(bytes) = self.fresh.take(key) {
            return Place::Here(bytes);
        }
        if let Some(flight) = self.flights.get(&key) {
            return Place::Aboard(Arc::clone(flight));
        }
        let flight = Arc::new(Flight::new(Arc::clone(urgency)));
        self.flights.insert(key, Arc::clone(&flight));
        Place::Lead(flight)
    }
}

fn closing() -> Error {
    Error::new(Kind::Deadline, "the mount is being ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::CHUNK;

    const KEY: Key = (ExtentId { layer: 0, extent: 0 }, 3);

    const WORD: Bytes = Bytes::from_static(b"x");

    fn of_file(extent: usize, chunk: u64) -> Key {
        (ExtentId { layer: 0, extent }, chunk)
    }

    fn unread(board: &Board) -> usize {
        board.inner.lock().fresh.state().0
    }

    fn lead(board: &Board) -> Arc<Flight> {
        match board.find(std::iter::once(KEY), &Arc::default()).unwrap().pop() {
            Some((_, Place::Lead(flight))) => flight,
            other => panic!("not to lead: {other:?}"),
        }
    }

    #[tokio::test]
    async fn everybody_gets_the_chunk_that_one_fetches() {
        let board = Board::new(0);
        let flight = lead(&board);
        let waiters: Vec<_> = (0..32)
            .map(|_| match board.find(std::iter::once(KEY), &Arc::default()).unwrap().pop() {
                Some((_, Place::Aboard(flight))) => {
                    tokio::spawn(async move { flight.wait(Duration::from_secs(60)).await })
                }
                other => panic!("a second leader: {other:?}"),
            })
            .collect();
        board.publish(KEY, &WORD, Reader::Any);
        for waiter in waiters {
            assert_eq!(waiter.await.unwrap().unwrap(), "x");
        }
        assert!(flight.wait(Duration::ZERO).await.is_ok());
        board.land(KEY);
        assert_eq!(board.peek(KEY).unwrap(), "x");
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_nothing_arrives_and_not_while_something_does() {
        let board = Board::new(0);
        let flight = lead(&board);
        let deadline = Duration::from_secs(60);
        let waiter = tokio::spawn({
            let flight = Arc::clone(&flight);
            async move { flight.wait(deadline).await }
        });
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(50)).await;
            flight.progress();
            tokio::task::yield_now().await;
        }
        assert!(!waiter.is_finished());
        tokio::time::advance(Duration::from_secs(61)).await;
        assert_eq!(waiter.await.unwrap().unwrap_err().kind(), Kind::Deadline);
    }

    #[tokio::test]
    async fn a_failed_flight_fails_its_waiters_and_is_led_again_by_the_next() {
        let board = Board::new(0);
        let flight = lead(&board);
        board.fail(KEY, &flight, &Error::new(Kind::Broken, "cut"));
        assert_eq!(flight.wait(Duration::ZERO).await.unwrap_err().kind(), Kind::Broken);
        let _next = lead(&board);
        board.close();
        assert!(board.find(std::iter::once(KEY), &Arc::default()).is_err());
    }

    #[tokio::test]
    async fn who_loads_ahead_waits_until_what_is_unread_leaves_room() {
        let board = Arc::new(Board::new(8 * CHUNK));
        for chunk in 0..6 {
            board.room(of_file(0, chunk)).await;
            board.publish(of_file(0, chunk), &WORD, Reader::Expected);
        }
        let waiting = tokio::spawn({
            let board = Arc::clone(&board);
            async move { board.room(of_file(0, 5)).await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        // Who comes before what is there already need not wait: one of those gives way.
        board.room(of_file(0, 3)).await;
        board.room(of_file(1, 0)).await;
        board.peek(of_file(0, 3)).unwrap();
        waiting.await.unwrap();
        board.purge(0, &closing());
        assert_eq!(unread(&board), 0);
    }

    #[tokio::test]
    async fn memory_that_grows_lets_who_waits_go_on() {
        let board = Arc::new(Board::new(8 * CHUNK));
        (0..6).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Expected));
        let waiting = tokio::spawn({
            let board = Arc::clone(&board);
            async move { board.room(of_file(0, 5)).await }
        });
        tokio::task::yield_now().await;
        board.resize(8 * CHUNK);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        board.resize(16 * CHUNK);
        waiting.await.unwrap();
    }

    #[tokio::test]
    async fn memory_is_not_let_go_while_somebody_waits() {
        let board = Arc::new(Board::new(8 * CHUNK));
        let flight = lead(&board);
        (4..8).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Expected));
        let waiting = tokio::spawn({
            let flight = Arc::clone(&flight);
            async move { flight.wait(Duration::from_secs(60)).await.is_ok() }
        });
        while !flight.is_awaited() {
            tokio::task::yield_now().await;
        }
        board.release_idle(2 * CHUNK, Duration::ZERO);
        assert_eq!(unread(&board), 4);
        board.publish(KEY, &WORD, Reader::Any);
        assert!(waiting.await.unwrap());
        board.release_idle(2 * CHUNK, Duration::ZERO);
        assert!(unread(&board) <= 2);
    }

    #[tokio::test]
    async fn a_chunk_that_somebody_waits_for_counts_as_read_when_it_comes() {
        let board = Arc::new(Board::new(8 * CHUNK));
        let flight = lead(&board);
        let waiting = tokio::spawn({
            let flight = Arc::clone(&flight);
            async move { flight.wait(Duration::from_secs(60)).await.unwrap() }
        });
        while !flight.is_awaited() {
            tokio::task::yield_now().await;
        }
        board.publish(KEY, &WORD, Reader::Expected);
        waiting.await.unwrap();
        assert_eq!(unread(&board), 0);
        // It can be had as long as its flight is there, however little memory there is.
        (4..40).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Any));
        assert!(board.peek(KEY).is_some());
        board.land(KEY);
        assert!(board.peek(KEY).is_none());
    }

    #[tokio::test]
    async fn a_waiter_makes_a_request_urgent_whenever_it_comes() {
        let urgency = Arc::new(Urgency::default());
        let flight = Flight::new(Arc::clone(&urgency));
        let waiting = tokio::spawn(async move { flight.wait(Duration::from_secs(60)).await.is_ok() });
        urgency.raised().await;
        urgency.raised().await;
        waiting.abort();
    }
}
