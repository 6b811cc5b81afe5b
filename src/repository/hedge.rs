//! A repository that is asked a second time where a reader waits unusually long.
//!
//! Only for what somebody waits for, only where it takes longer than 99 of 100 such reads took, and for no more than
//! every twentieth of them: a second request helps against a slow server or connection, and against nothing that is
//! slow for all. Whichever gives the next byte first is read on, the other is dropped. Every call is one attempt, as below it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::around::Around;
use super::{ByteStream, Config, Repository};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::oci::Blob;
use crate::range::StoredRange;

/// Reads larger than this take their time and are not asked for twice.
const LARGEST: u64 = 4 << 20;
/// Reads smaller than this say nothing of how long larger ones take.
const TELLING: u64 = 512 << 10;
/// Of how many reads the times are remembered, and how many there must be before they say anything.
const REMEMBERED: usize = 256;
const ENOUGH: usize = 64;
/// What is unusual on a fast line is no hardship yet.
const LEAST_PATIENCE: Duration = Duration::from_millis(50);
/// The part of reads that may be asked for twice, and how many of these may be saved up.
const SHARE: f64 = 0.05;
const SAVED: f64 = 2.0;

/// Asks `R` a second time where the first takes unusually long.
#[derive(Debug)]
pub struct Hedging<R> {
    inner: Arc<R>,
    times: Arc<Times>,
    metrics: Arc<Metrics>,
}

impl<R: Repository + 'static> Hedging<R> {
    /// Wraps `inner`.
    #[must_use]
    pub fn new(inner: R, config: &Config) -> Self {
        let (inner, metrics) = (Arc::new(inner), Arc::clone(&config.metrics));
        Self { inner, times: Arc::default(), metrics }
    }

    async fn open(&self, blob: &Blob, range: StoredRange) -> Result<ByteStream> {
        if range.is_empty() || range.len() > LARGEST {
            return self.inner.read(blob, range).await;
        }
        let mut race = Race {
            inner: self.inner.clone(),
            times: self.times.clone(),
            metrics: self.metrics.clone(),
            blob: blob.clone(),
            rest: range,
            len: range.len(),
            first: Leg::of(&self.inner, blob, range),
            second: None,
            patience: self.times.patience(),
            waited: Duration::ZERO,
        };
        self.times.earn();
        let first = race.next().await?;
        let begun = stream::iter(first.map(Ok));
        let rest =
            stream::try_unfold(
                race,
                |mut race| async move { Ok(race.next().await?.map(|bytes| (bytes, race))) },
            );
        Ok(begun.chain(rest).boxed())
    }
}

impl<R: Repository + 'static> Around for Hedging<R> {
    fn inner(&self) -> &dyn Repository {
        &*self.inner
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.open(blob, range))
    }
}

/// A read under way, by one request or two.
struct Race<R> {
    inner: Arc<R>,
    times: Arc<Times>,
    metrics: Arc<Metrics>,
    blob: Blob,
    /// What the reader has not been given yet.
    rest: StoredRange,
    len: u64,
    first: Leg,
    second: Option<Leg>,
    /// How long the first is waited for before a second is begun; `None`: for ever.
    patience: Option<Duration>,
    /// How long somebody has waited here: a slow reader makes no slow registry.
    waited: Duration,
}

/// One request, and where the next byte that it brings lies.
struct Leg {
    stream: ByteStream,
    at: u64,
}

enum Event {
    First(Option<Result<Bytes>>),
    Second(Option<Result<Bytes>>),
    /// The first takes unusually long.
    Slow,
}

impl<R: Repository + 'static> Race<R> {
    /// The next bytes; `None` once all are given.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        while !self.rest.is_empty() {
            let began = Instant::now();
            let event = self.event().await;
            self.waited += began.elapsed();
            let bytes = match event {
                Event::Slow => {
                    self.hedge();
                    None
                }
                Event::First(Some(Ok(bytes))) => self.first.fresh(bytes, self.rest.start()),
                Event::First(failed) => {
                    // A second that is on its way is as good as a new attempt.
                    let ended = || Error::new(Kind::Broken, "the bytes end early");
                    let failure = failed.and_then(Result::err);
                    self.first = self.second.take().ok_or_else(|| failure.unwrap_or_else(ended))?;
                    None
                }
                Event::Second(Some(Ok(bytes))) => self.overtaken(bytes),
                Event::Second(_) => {
                    self.second = None;
                    None
                }
            };
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                return self.give(bytes).map(Some);
            }
        }
        Ok(None)
    }

    async fn event(&mut self) -> Event {
        if let Some(second) = &mut self.second {
            return tokio::select! {
                biased;
                piece = self.first.stream.next() => Event::First(piece),
                piece = second.stream.next() => Event::Second(piece),
            };
        }
        match self.patience.map(|patience| patience.saturating_sub(self.waited)) {
            None => Event::First(self.first.stream.next().await),
            Some(left) => match timeout(left, self.first.stream.next()).await {
                Ok(piece) => Event::First(piece),
                Err(_) => Event::Slow,
            },
        }
    }

    fn hedge(&mut self) {
        self.patience = None;
        if self.times.spend() {
            self.metrics.hedges.add(1);
            self.second = Some(Leg::beside(&self.inner, &self.blob, self.rest));
        }
    }

    /// Takes what the second brought; it is read on where it is ahead of the first.
    fn overtaken(&mut self, bytes: Bytes) -> Option<Bytes> {
        let mut second = self.second.take()?;
        let fresh = second.fresh(bytes, self.rest.start());
        match &fresh {
            Some(_) => {
                self.metrics.won_hedges.add(1);
                self.first = second;
            }
            None => self.second = Some(second),
        }
        fresh
    }

    fn give(&mut self, bytes: Bytes) -> Result<Bytes> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if len > self.rest.len() {
            return Err(Error::new(Kind::Protocol, "more bytes than asked for"));
        }
        self.rest = StoredRange::new(self.rest.start().saturating_add(len), self.rest.end());
        if self.rest.is_empty() {
            // The reader may keep what is left of this for long, and what nobody polls may hold what others wait for.
            self.second = None;
            self.first = Leg::over();
            if self.len >= TELLING {
                self.times.note(self.waited);
            }
        }
        Ok(bytes)
    }
}

impl Leg {
    fn of<R: Repository + 'static>(inner: &Arc<R>, blob: &Blob, range: StoredRange) -> Self {
        let (inner, blob) = (Arc::clone(inner), blob.clone());
        let opening = async move { inner.read(&blob, range).await };
        Self { stream: stream::once(opening).try_flatten().boxed(), at: range.start() }
    }

    /// One in a task of its own, which ends with it: while the first is read, or nobody reads at all, it is not left in the
    /// middle of what others wait for.
    fn beside<R: Repository + 'static>(inner: &Arc<R>, blob: &Blob, range: StoredRange) -> Self {
        let Self { mut stream, at } = Self::of(inner, blob, range);
        let (give, take) = mpsc::channel(1);
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(piece) = stream.next().await
                && give.send(piece).await.is_ok()
            {}
        });
        let taking = stream::unfold((take, task), |(mut take, task)| async move {
            let piece = take.recv().await?;
            Some((piece, (take, task)))
        });
        Self { stream: taking.boxed(), at }
    }

    /// One that brings nothing more.
    fn over() -> Self {
        Self { stream: stream::empty().boxed(), at: u64::MAX }
    }

    /// The part of what it brought that lies at `place` and after; `None` where there is none.
    fn fresh(&mut self, bytes: Bytes, place: u64) -> Option<Bytes> {
        let stale = usize::try_from(place.saturating_sub(self.at)).unwrap_or(usize::MAX);
        self.at = self.at.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        (stale < bytes.len()).then(|| bytes.slice(stale..))
    }
}

/// How long reads took, and how many may be asked for twice.
#[derive(Debug, Default)]
struct Times(Mutex<Past>);

#[derive(Debug, Default)]
struct Past {
    /// The newest replaces the oldest.
    times: Vec<Duration>,
    next: usize,
    /// What 99 of 100 did not exceed, as of the last few.
    unusual: Option<Duration>,
    credit: f64,
}

impl Times {
    /// How long a read is waited for before it is asked for again; `None` while too few have been seen.
    fn patience(&self) -> Option<Duration> {
        self.0.lock().unusual.map(|time| time.max(LEAST_PATIENCE))
    }

    fn note(&self, time: Duration) {
        let mut past = self.0.lock();
        let next = past.next;
        match past.times.get_mut(next) {
            Some(oldest) => *oldest = time,
            None => past.times.push(time),
        }
        past.next = (next + 1) % REMEMBERED;
        // Looked for now and then only: it moves slowly.
        if past.times.len() >= ENOUGH && next % 16 == 15 {
            let mut sorted = past.times.clone();
            sorted.sort_unstable();
            past.unusual = sorted.get(sorted.len() * 99 / 100).copied();
        }
    }

    fn earn(&self) {
        let mut past = self.0.lock();
        past.credit = (past.credit + SHARE).min(SAVED);
    }

    fn spend(&self) -> bool {
        let mut past = self.0.lock();
        let may = past.credit >= 1.0;
        if may {
            past.credit -= 1.0;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::sleep;

    use super::*;
    use crate::repository::{Memory, read_all};

    const MIB: u64 = 1 << 20;

    /// How long the first byte takes and how long lies between pieces, by the number of the read; else 10 ms and nothing.
    type Slowness = fn(u64) -> Option<(Duration, Duration)>;

    /// Gives what memory has, as slowly as it is told.
    #[derive(Debug)]
    struct Slow {
        memory: Memory,
        asked: AtomicU64,
        slow: Slowness,
    }

    impl Around for Slow {
        fn inner(&self) -> &dyn Repository {
            &self.memory
        }

        fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
            let number = self.asked.fetch_add(1, Ordering::SeqCst);
            let (first, between) = (self.slow)(number).unwrap_or((Duration::from_millis(10), Duration::ZERO));
            Box::pin(async move {
                sleep(first).await;
                let stream = self.memory.read(blob, range).await?;
                let dribbling = stream.then(move |piece| async move {
                    sleep(between).await;
                    piece
                });
                Ok(dribbling.boxed())
            })
        }
    }

    fn hedging(slow: Slowness) -> (Hedging<Slow>, Blob, Vec<u8>) {
        let memory = Memory::new();
        let bytes: Vec<u8> = (0..MIB / 8).flat_map(u64::to_le_bytes).collect();
        let blob = memory.put(bytes.clone());
        let slow = Slow { memory, asked: AtomicU64::new(0), slow };
        (Hedging::new(slow, &Config::default()), blob, bytes)
    }

    async fn read(hedging: &Hedging<Slow>, blob: &Blob, bytes: &[u8]) -> Duration {
        let start = Instant::now();
        let all = read_all(hedging, blob, StoredRange::new(0, blob.size)).await.unwrap();
        assert!(all == bytes);
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_or_dribbles_is_rescued_by_a_second_request() {
        const HOUR: Duration = Duration::from_secs(3600);
        let one_hangs = |number| (number == 100).then_some((HOUR, Duration::ZERO));
        let one_dribbles = |number| (number == 100).then_some((Duration::ZERO, Duration::from_secs(5)));
        for slow in [one_hangs, one_dribbles] {
            let (hedging, blob, bytes) = hedging(slow);
            for _ in 0..100 {
                read(&hedging, &blob, &bytes).await;
            }
            let took = read(&hedging, &blob, &bytes).await;
            assert!(took < Duration::from_millis(200), "{took:?}");
            let metrics = &hedging.metrics;
            assert_eq!((metrics.hedges.value(), metrics.won_hedges.value()), (1, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_are_slow_no_more_than_one_in_twenty_is_asked_for_twice() {
        let (hedging, blob, bytes) =
            hedging(|number| (number > 100).then_some((Duration::from_secs(1), Duration::ZERO)));
        for _ in 0..500 {
            read(&hedging, &blob, &bytes).await;
        }
        let hedges = hedging.metrics.hedges.value();
        assert!((1..=25).contains(&hedges), "{hedges}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_goes_on_where_the_first_breaks() {
        let (hedging, blob, bytes) = hedging(|_| None);
        let all = StoredRange::new(0, blob.size);
        let broken: ByteStream = hedging
            .inner
            .memory
            .read(&blob, StoredRange::new(0, 700_000))
            .await
            .unwrap()
            .chain(stream::iter([Err(Error::new(Kind::Broken, "cut"))]))
            .boxed();
        let mut race = Race {
            inner: hedging.inner.clone(),
            times: hedging.times.clone(),
            metrics: hedging.metrics.clone(),
            blob: blob.clone(),
            rest: all,
            len: all.len(),
            first: Leg { stream: broken, at: 0 },
            second: Some(Leg::of(&hedging.inner, &blob, all)),
            patience: None,
            waited: Duration::ZERO,
        };
        let mut given = Vec::new();
        while let Some(piece) = race.next().await.unwrap() {
            given.extend_from_slice(&piece);
        }
        assert!(given == bytes);
    }

    /// Holds what others wait for until it is asked a few times, as who asks where a blob is does.
    #[derive(Debug, Default)]
    struct Locking {
        memory: Memory,
        lock: tokio::sync::Mutex<()>,
    }

    impl Around for Locking {
        fn inner(&self) -> &dyn Repository {
            &self.memory
        }

        fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
            Box::pin(async move {
                let _held = self.lock.lock().await;
                for _ in 0..5 {
                    tokio::task::yield_now().await;
                }
                self.memory.read(blob, range).await
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_request_that_nobody_reads_keeps_nothing_from_others() {
        let locking = Arc::new(Locking::default());
        let blob = locking.memory.put(vec![7; 1 << 20]);
        let all = StoredRange::new(0, blob.size);
        let (give, first) = mpsc::channel(4);
        let first = stream::unfold(first, |mut first| async move { Some((first.recv().await?, first)) });
        let mut race = Race {
            inner: Arc::clone(&locking),
            times: Arc::default(),
            metrics: Arc::default(),
            blob: blob.clone(),
            rest: all,
            len: all.len(),
            first: Leg { stream: first.boxed(), at: 0 },
            second: Some(Leg::beside(&locking, &blob, all)),
            patience: None,
            waited: Duration::ZERO,
        };
        while locking.lock.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
        give.send(Ok(Bytes::from(vec![7; 10]))).await.unwrap();
        assert_eq!(race.next().await.unwrap().unwrap().len(), 10);
        assert!(race.second.is_some(), "it may still be the faster one");
        let free = timeout(Duration::from_secs(1), locking.lock.lock()).await;
        assert!(free.is_ok(), "held by who is not asked");
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_is_the_callers_and_nothing_is_asked_twice_before_times_are_known() {
        let (hedging, blob, bytes) =
            hedging(|number| (number == 0).then_some((Duration::from_secs(20), Duration::ZERO)));
        assert!(read(&hedging, &blob, &bytes).await >= Duration::from_secs(20));
        hedging.inner.memory.fail_with(|_, _| Some(Error::new(Kind::Denied, "no")));
        let error = read_all(&hedging, &blob, StoredRange::new(0, 5)).await.unwrap_err();
        assert_eq!((error.kind(), hedging.metrics.hedges.value()), (Kind::Denied, 0));
    }
}
