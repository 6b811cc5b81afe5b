//! One fetch that many wait for, and the chunks that are in memory already.
//!
//! A [`Board`] knows every chunk that is under way or fresh in memory. Who asks for a chunk is given its bytes,
//! or the flight that will bring it, or, where nobody fetches it yet, a flight of its own to lead. Waiters hold
//! no lock and lead nothing: a read that is given up strands nobody.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::futures::Notified;
use tokio::sync::{Notify, watch};

use crate::error::{Error, Kind, Result};
use crate::index::{CHUNK, ExtentId};

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

/// A chunk that was loaded ahead.
#[derive(Debug)]
struct Unread {
    bytes: Bytes,
    /// How many had come before it.
    came: u64,
}

/// Who is there for a chunk that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Whoever asked for it, or nobody.
    Any,
    /// One who reads the file in order, and is not there yet unless he waits already.
    Expected,
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
    /// How many chunks memory holds, read and unread.
    most: usize,
    /// When that was last said.
    resized: Instant,
    /// In the order in which they came or were first read: what somebody has read, or asked for himself.
    read: LruCache<Key, Bytes>,
    /// What was loaded ahead of readers who have not come to it yet.
    unread: BTreeMap<Key, Unread>,
    /// The same by when it came.
    by_age: BTreeMap<u64, Key>,
    /// How many chunks have come.
    came: u64,
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
        let (read, unread) = (LruCache::unbounded(), BTreeMap::new());
        let (by_age, came) = (BTreeMap::new(), 0);
        let (most, resized) = (chunks(memory), Instant::now());
        let inner =
            Inner { flights: HashMap::new(), most, resized, read, unread, by_age, came, closed: false };
        Self { inner: Mutex::new(inner), read: Notify::new() }
    }

    /// Has memory hold chunks of `memory` bytes from now on. It shrinks as what is there is read, and drops nothing that somebody is still to
    /// read. Costs a lock where nothing changes.
    pub(super) fn resize(&self, memory: u64) {
        let mut inner = self.inner.lock();
        inner.resized = Instant::now();
        // With the quarter for who reads in small steps.
        let unread = inner.unread.len() + inner.unread.len().div_ceil(3);
        let most = chunks(memory).max(unread.min(inner.most));
        if inner.most != most {
            self.hold(inner, most);
        }
    }

    /// The same at once, of anything, where it was not said for so long, since nobody reads.
    pub(super) fn release_idle(&self, memory: u64, idle: Duration) {
        let inner = self.inner.lock();
        if inner.resized.elapsed() > idle && inner.most > chunks(memory) {
            self.hold(inner, chunks(memory));
        }
    }

    fn hold(&self, mut inner: MutexGuard<'_, Inner>, most: usize) {
        inner.most = most;
        while inner.read.len() + inner.unread.len() > most && inner.make_room() {}
        drop(inner);
        self.read.notify_waiters();
    }

    /// The chunk's bytes, if they are in memory.
    pub(super) fn peek(&self, key: Key) -> Option<Bytes> {
        let mut inner = self.inner.lock();
        // What waits for the disk may be out of memory already.
        let (bytes, was_unread) = inner.take(key).or_else(|| Some((inner.flown(key)?, false)))?;
        drop(inner);
        if was_unread {
            self.read.notify_waiters();
        }
        Some(bytes)
    }

    /// Returns while less than three quarters of the memory are chunks that their readers have not come to yet, or where the next
    /// one after `key` would be read before one of these: more of them would have to be read from the disk when they do.
    pub(super) async fn room(&self, key: Key) {
        loop {
            let mut read = std::pin::pin!(self.read.notified());
            read.as_mut().enable();
            if self.inner.lock().has_room(key) {
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
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(closing());
        }
        let unread = inner.unread.len();
        let places = keys.map(|key| (key, inner.find(key, urgency))).collect();
        if inner.unread.len() < unread {
            self.read.notify_waiters();
        }
        Ok(places)
    }

    /// Hands the chunk to everybody who waits, and keeps it in memory, for `reader`. The flight stays until [`land`](Self::land).
    pub(super) fn publish(&self, key: Key, bytes: &Bytes, reader: Reader) {
        let mut inner = self.inner.lock();
        let unread = inner.unread.len();
        let flight = inner.flights.get(&key).cloned();
        // Who waits has it in his hands then.
        let is_awaited = flight.as_ref().is_some_and(|flight| flight.is_awaited());
        inner.put(key, bytes.clone(), if is_awaited { Reader::Any } else { reader });
        if let Some(flight) = flight {
            flight.outcome.send_replace(Outcome::Here(bytes.clone()));
        }
        if inner.unread.len() < unread {
            self.read.notify_waiters();
        }
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
        inner.flights.contains_key(&key) || inner.read.contains(&key) || inner.unread.contains_key(&key)
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
        let mut inner = self.inner.lock();
        inner.flights.retain(|(id, _), flight| {
            if id.layer == layer {
                flight.fail(error);
            }
            id.layer != layer
        });
        let here = inner.read.iter().map(|(key, _)| *key).chain(inner.unread.keys().copied());
        let doomed: Vec<Key> = here.filter(|(id, _)| id.layer == layer).collect();
        for key in doomed {
            inner.forget(key);
        }
        drop(inner);
        self.read.notify_waiters();
    }

    /// Fails everybody who waits, and everybody who asks from now on.
    pub(super) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closed = true;
        for (_, flight) in inner.flights.drain() {
            flight.fail(&closing());
        }
        inner.read.clear();
        inner.unread.clear();
        inner.by_age.clear();
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
    /// The chunk for who reads it, and whether he is the first.
    fn take(&mut self, key: Key) -> Option<(Bytes, bool)> {
        if let Some(bytes) = self.forget_unread(key) {
            self.read.put(key, bytes.clone());
            return Some((bytes, true));
        }
        self.read.peek(&key).map(|bytes| (bytes.clone(), false))
    }

    /// The chunk, where its flight has brought it and is not off the board yet.
    fn flown(&self, key: Key) -> Option<Bytes> {
        match &*self.flights.get(&key)?.outcome.borrow() {
            Outcome::Here(bytes) => Some(bytes.clone()),
            Outcome::Pending(_) | Outcome::Failed(_) => None,
        }
    }

    fn put(&mut self, key: Key, bytes: Bytes, reader: Reader) {
        self.forget(key);
        self.came += 1;
        self.give_up_expecting();
        while self.read.len() + self.unread.len() >= self.most && self.make_room() {}
        match reader {
            Reader::Any => drop(self.read.put(key, bytes)),
            Reader::Expected => {
                self.by_age.insert(self.came, key);
                self.unread.insert(key, Unread { bytes, came: self.came });
            }
        }
    }

    /// A reader who has not come while so much else did is not coming: what was loaded for him goes first.
    fn give_up_expecting(&mut self) {
        let most = 2 * self.most as u64;
        while let Some((_, key)) = self.by_age.first_key_value().filter(|(came, _)| self.came - **came > most)
        {
            let key = *key;
            let Some(bytes) = self.forget_unread(key) else { break };
            self.read.put(key, bytes);
            self.read.demote(&key);
        }
    }

    /// Lets one go: what was read, of which a quarter stays for who reads in small steps, else what is read last. `false`: there is
    /// nothing.
    fn make_room(&mut self) -> bool {
        let spare = self.read.len() > self.most / 4 || self.unread.is_empty();
        match spare {
            true => self.read.pop_lru().is_some(),
            false => self.farthest().and_then(|last| self.forget_unread(last)).is_some(),
        }
    }

    fn forget(&mut self, key: Key) {
        self.read.pop(&key);
        self.forget_unread(key);
    }

    fn forget_unread(&mut self, key: Key) -> Option<Bytes> {
        let Unread { bytes, came } = self.unread.remove(&key)?;
        self.by_age.remove(&came);
        Some(bytes)
    }

    /// What is read last of the unread chunks: the last one of the file that has most of them.
    fn farthest(&self) -> Option<Key> {
        let keys: Vec<Key> = self.unread.keys().copied().collect();
        let files = keys.chunk_by(|one, next| one.0 == next.0);
        files.max_by_key(|file| file.len()).and_then(|file| file.last().copied())
    }

    /// Whether one more is welcome after `key`.
    fn has_room(&self, (id, chunk): Key) -> bool {
        let is_nearer = || self.farthest().is_none_or(|last| last.0 != id || chunk < last.1);
        self.unread.len() < (self.most * 3 / 4).max(1) || is_nearer()
    }

    fn find(&mut self, key: Key, urgency: &Arc<Urgency>) -> Place {
        if let Some((bytes, _)) = self.take(key) {
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

/// How many chunks are `memory` bytes.
fn chunks(memory: u64) -> usize {
    usize::try_from(memory / CHUNK).unwrap_or(usize::MAX).max(2)
}

fn closing() -> Error {
    Error::new(Kind::Deadline, "the mount is being ended")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = (ExtentId { layer: 0, extent: 0 }, 3);

    const WORD: Bytes = Bytes::from_static(b"x");

    fn of_file(extent: usize, chunk: u64) -> Key {
        (ExtentId { layer: 0, extent }, chunk)
    }

    fn unread(board: &Board) -> usize {
        board.inner.lock().unread.len()
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
    async fn what_was_read_leaves_before_what_was_not_and_of_that_what_is_read_last() {
        let board = Board::new(8 * CHUNK);
        let here = || (0..20).filter(|chunk| board.knows(of_file(0, *chunk))).collect::<Vec<_>>();
        (0..6).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Expected));
        (0..3).for_each(|chunk| assert!(board.peek(of_file(0, chunk)).is_some()));
        (6..9).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Expected));
        assert_eq!(here(), [1, 2, 3, 4, 5, 6, 7, 8]);
        board.publish(of_file(0, 9), &WORD, Reader::Expected);
        assert_eq!(here(), [1, 2, 3, 4, 5, 6, 7, 9], "a quarter is for who reads in small steps");
        // Another file gives way to nobody who has more than it.
        board.publish(of_file(1, 0), &WORD, Reader::Expected);
        assert_eq!(here(), [1, 2, 3, 4, 5, 6, 7]);
    }

    #[tokio::test]
    async fn memory_that_grows_lets_who_waits_go_on_and_what_is_too_much_leaves_when_it_shrinks() {
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
        (6..12).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Expected));
        assert_eq!(unread(&board), 12);
        (0..6).for_each(|chunk| assert!(board.peek(of_file(0, chunk)).is_some()));
        let here = || (0..12).filter(|chunk| board.knows(of_file(0, *chunk))).collect::<Vec<_>>();
        board.resize(4 * CHUNK);
        assert_eq!(
            here(),
            [4, 5, 6, 7, 8, 9, 10, 11],
            "of what was read, a quarter stays; of what was not, all"
        );
        (6..9).for_each(|chunk| assert!(board.peek(of_file(0, chunk)).is_some()));
        board.resize(4 * CHUNK);
        assert_eq!(here(), [8, 9, 10, 11]);
        board.resize(16 * CHUNK);
        (0..8).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Expected));
        board.release_idle(4 * CHUNK, Duration::from_secs(60));
        assert_eq!(here().len(), 12, "somebody reads");
        board.release_idle(4 * CHUNK, Duration::ZERO);
        assert_eq!(here(), [0, 1, 2, 8], "nobody is coming");
    }

    #[tokio::test]
    async fn a_reader_who_does_not_come_is_not_expected_for_ever() {
        let board = Board::new(8 * CHUNK);
        (0..6).for_each(|chunk| board.publish(of_file(0, chunk), &WORD, Reader::Expected));
        (0..17).for_each(|chunk| board.publish(of_file(1, chunk), &WORD, Reader::Any));
        assert_eq!(unread(&board), 0);
        board.room(of_file(1, 17)).await;
        assert!((0..5).all(|chunk| !board.knows(of_file(0, chunk))));
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
