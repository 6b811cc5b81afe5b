//! A repository that is asked again where that may help.
//!
//! A stream that breaks goes on at the byte where it broke, so that its reader sees one unbroken stream. What
//! may be asked again is [`Kind::may_retry`](crate::error::Kind::may_retry)'s to say; when, and when to give up, is
//! [`Tries`]'; how much asking again a host in trouble bears is its [`Budget`](super::budget)'s, which stands around each
//! host within. It wraps the registry in [`super::connect`]; folders and memory need none of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::around::Around;
use super::budget::Budgets;
use super::tries::{Tries, UNREACHABLE_PATIENCE};
use super::{ByteStream, Config, Pinned, Purpose, Repository};
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::oci::{Blob, Descriptor, Digest, Which};
use crate::range::StoredRange;

/// Asks `R` again after failures that may pass, until a deadline without progress.
#[derive(Debug)]
pub struct Retrying<R> {
    inner: Arc<R>,
    shared: Arc<Shared>,
    read_deadline: Duration,
    setup_deadline: Duration,
}

impl<R: Repository + 'static> Retrying<R> {
    /// Wraps `inner` with the deadlines of `config`.
    #[must_use]
    pub fn new(inner: R, config: &Config) -> Self {
        let (read_deadline, setup_deadline) = (config.read_deadline, config.setup_deadline);
        Self { inner: Arc::new(inner), shared: Arc::new(Shared::new(config)), read_deadline, setup_deadline }
    }

    async fn pin(&self, which: &Which) -> Result<Pinned> {
        let doing = format!("reading the manifest {which} of {}", self.inner.place());
        self.answered(&doing, || self.inner.manifest(which)).await
    }

    async fn list(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>> {
        let doing = format!("listing what refers to {subject} in {}", self.inner.place());
        self.answered(&doing, || self.inner.referrers(subject, artifact_type)).await
    }

    /// Asks until there is an answer, for a person who waits.
    async fn answered<'a, T>(&self, doing: &str, ask: impl Fn() -> BoxFuture<'a, Result<T>>) -> Result<T> {
        let mut tries = Tries::new(self.setup_deadline, UNREACHABLE_PATIENCE);
        loop {
            match tries.bounded(ask()).await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.shared.pause(&mut tries, error, doing).await?,
            }
        }
    }

    async fn open(&self, blob: &Blob, range: StoredRange, purpose: Purpose) -> Result<ByteStream> {
        let mut reading = Reading {
            inner: self.inner.clone(),
            shared: self.shared.clone(),
            purpose,
            blob: blob.clone(),
            rest: range,
            stream: None,
            deadline: self.read_deadline,
        };
        super::inside(blob, range)?;
        if !range.is_empty() {
            let mut tries = Tries::reading(self.read_deadline);
            while reading.stream.is_none() {
                reading.attempt(&mut tries).await?;
            }
        }
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }
}

impl<R: Repository + 'static> Around for Retrying<R> {
    fn inner(&self) -> &dyn Repository {
        &*self.inner
    }

    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        Box::pin(self.pin(which))
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.open(blob, range, Purpose::Demand))
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.open(blob, range, Purpose::Ahead))
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        Box::pin(self.list(subject, artifact_type))
    }
}

/// What all who read a repository share.
#[derive(Debug)]
struct Shared {
    budgets: Arc<Budgets>,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn new(config: &Config) -> Self {
        let (budgets, metrics) = (Arc::clone(&config.budgets), Arc::clone(&config.metrics));
        Self { budgets, metrics }
    }

    /// Waits until the next attempt is due, or gives up with the reason.
    async fn pause(&self, tries: &mut Tries, error: Error, doing: &str) -> Result<()> {
        let asked = error.was_asked();
        tries.pause_within(&self.budgets, error, doing).await?;
        self.metrics.retries.add(u64::from(asked));
        Ok(())
    }
}

/// A read under way: what is still owed to the reader, and the stream that brings it, if one is open.
struct Reading<R> {
    inner: Arc<R>,
    shared: Arc<Shared>,
    purpose: Purpose,
    blob: Blob,
    rest: StoredRange,
    stream: Option<ByteStream>,
    deadline: Duration,
}

impl<R: Repository + 'static> Reading<R> {
    /// The next bytes. Time counts only while somebody waits here, so a slow reader breaks no deadline.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let mut tries = Tries::reading(self.deadline);
        while !self.rest.is_empty() {
            let Some(mut stream) = self.stream.take() else {
                self.attempt(&mut tries).await?;
                continue;
            };
            let at = self.rest.start();
            match tries.bounded(some_bytes(&mut stream, at)).await {
                Ok(bytes) => {
                    self.take(&bytes)?;
                    self.stream = Some(stream);
                    return Ok(Some((bytes, self)));
                }
                Err(error) => {
                    drop(stream);
                    self.shared.pause(&mut tries, error, &self.doing()).await?;
                }
            }
        }
        Ok(None)
    }

    /// Asks once for the rest; a failure that may pass has been waited out when this returns.
    async fn attempt(&mut self, tries: &mut Tries) -> Result<()> {
        match tries.bounded(self.purpose.read(&*self.inner, &self.blob, self.rest)).await {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => self.shared.pause(tries, error, &self.doing()).await?,
        }
        Ok(())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let len = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        if len > self.rest.len() {
            return Err(Error::new(
                Kind::Protocol,
                format!("more bytes than asked for while {}", self.doing()),
            ));
        }
        self.rest = StoredRange::new(self.rest.start().saturating_add(len), self.rest.end());
        Ok(())
    }

    fn doing(&self) -> String {
        format!("reading {} bytes {} from {}", self.blob.digest, self.rest, self.inner.place())
    }
}

/// The stream's next bytes, which are due at `at`; an empty piece is no progress.
async fn some_bytes(stream: &mut ByteStream, at: u64) -> Result<Bytes> {
    loop {
        match stream.next().await {
            // With a chance for the deadline, also where such pieces come without end.
            Some(Ok(bytes)) if bytes.is_empty() => tokio::task::consume_budget().await,
            Some(item) => return item,
            None => return Err(Error::new(Kind::Broken, format!("the bytes end at {at}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::time::{Instant, sleep};
    use url::Url;

    use super::*;
    use crate::repository::guard::Guarded;
    use crate::repository::memory::nothing;
    use crate::repository::{Memory, read_all};

    fn config() -> Config {
        Config { read_deadline: Duration::from_secs(60), ..Config::default() }
    }

    /// One host that is asked as its budget allows, and again.
    fn guarded<R: Repository + 'static>(inner: R) -> Retrying<Guarded<R>> {
        let config = config();
        let budget = config.budgets.of(&Url::parse("https://r.io/").unwrap(), &config.metrics);
        Retrying::new(Guarded::new(inner, budget, &config), &config)
    }

    fn requests(repository: &Retrying<Guarded<Memory>>) -> u64 {
        repository.inner.within().requests()
    }

    fn failing(kind: Kind, times: u32) -> (Retrying<Guarded<Memory>>, Blob) {
        let memory = Memory::new();
        let blob = memory.put(vec![7; 1 << 20]);
        let left = AtomicU32::new(times);
        memory.fail_with(move |_, _| {
            let fails =
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            fails.then(|| Error::new(kind, "refused for a while"))
        });
        (guarded(memory), blob)
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_passes_is_not_seen() {
        for kind in [Kind::Broken, Kind::Throttled, Kind::Unreachable] {
            let (repository, blob) = failing(kind, 5);
            let all = read_all(&repository, &blob, StoredRange::new(0, blob.size)).await.unwrap();
            assert_eq!(all.len(), 1 << 20);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_that_stays_ends_at_the_deadline_with_its_cause() {
        let start = Instant::now();
        let (repository, blob) = failing(Kind::Broken, u32::MAX);
        let error = read_all(&repository, &blob, StoredRange::new(0, 5)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
        assert!(error.to_string().contains("no progress for 60 s"), "{error}");
        assert!(error.to_string().contains("refused for a while"), "{error}");
        assert!(start.elapsed() <= Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn answers_against_the_rules_are_borne_as_long_as_a_reader_waits() {
        let (repository, blob) = failing(Kind::Protocol, 20);
        assert!(read_all(&repository, &blob, StoredRange::new(0, 5)).await.is_ok());
        let (repository, blob) = failing(Kind::Protocol, u32::MAX);
        let error = read_all(&repository, &blob, StoredRange::new(0, 5)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
        assert!(error.to_string().contains("refused for a while"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn thirty_two_readers_of_a_registry_that_is_down_ask_it_once_a_second() {
        for kind in [Kind::Broken, Kind::Unreachable, Kind::Protocol] {
            let (repository, blob) = failing(kind, u32::MAX);
            let repository = Arc::new(repository);
            let read = || {
                let (repository, blob) = (Arc::clone(&repository), blob.clone());
                tokio::spawn(async move { read_all(&*repository, &blob, StoredRange::new(0, 5)).await })
            };
            let readers: Vec<_> = (0..32).map(|_| read()).collect();
            sleep(Duration::from_secs(10)).await;
            let before = requests(&repository);
            sleep(Duration::from_secs(30)).await;
            let asked = requests(&repository) - before;
            assert!((25..=31).contains(&asked), "{kind:?}: {asked} requests in 30 s");
            for reader in readers {
                let error = reader.await.unwrap().unwrap_err();
                assert_eq!(error.kind(), Kind::Deadline);
                assert!(error.to_string().contains("refused for a while"), "{error}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_readers_go_on_within_seconds_of_the_registrys_return() {
        let memory = Memory::new();
        let blob = memory.put(vec![7; 100]);
        let start = Instant::now();
        let back = start + Duration::from_secs(40);
        memory.fail_with(move |_, _| {
            (Instant::now() < back).then(|| Error::new(Kind::Unreachable, "connection refused"))
        });
        let repository = Arc::new(guarded(memory));
        let readers: Vec<_> = (0..32)
            .map(|_| {
                let (repository, blob) = (Arc::clone(&repository), blob.clone());
                tokio::spawn(async move { read_all(&*repository, &blob, StoredRange::new(0, 5)).await })
            })
            .collect();
        for reader in readers {
            reader.await.unwrap().unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(45), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_not_asked_about_again() {
        let (repository, blob) = failing(Kind::Denied, u32::MAX);
        let error = read_all(&repository, &blob, StoredRange::new(0, 5)).await.unwrap_err();
        assert_eq!((error.kind(), requests(&repository)), (Kind::Denied, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_break_after_a_byte_are_no_storm() {
        let memory = Memory::new();
        let blob = memory.put(vec![7; 1 << 20]);
        let repository = Arc::new(guarded(Brittle(memory)));
        let read = || {
            let (repository, blob) = (Arc::clone(&repository), blob.clone());
            tokio::spawn(async move { read_all(&*repository, &blob, StoredRange::new(0, blob.size)).await })
        };
        let readers: Vec<_> = (0..32).map(|_| read()).collect();
        sleep(Duration::from_secs(10)).await;
        let before = repository.inner.within().0.requests();
        sleep(Duration::from_secs(30)).await;
        let asked = repository.inner.within().0.requests() - before;
        assert!((25..=31).contains(&asked), "{asked} requests in 30 s");
        readers.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_ends_at_the_deadline() {
        let (repository, blob) = failing(Kind::Broken, 0);
        let _gate = repository.inner.within().gate();
        let error = read_all(&repository, &blob, StoredRange::new(0, 5)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_that_the_registry_asks_for_is_kept() {
        let memory = Memory::new();
        let blob = memory.put(&b"x"[..]);
        let first = AtomicU32::new(1);
        memory.fail_with(move |_, _| {
            let asks = first.swap(0, Ordering::SeqCst) == 1;
            asks.then(|| Error::new(Kind::Throttled, "429").retry_after(Duration::from_secs(20)))
        });
        let start = Instant::now();
        let repository = guarded(memory);
        read_all(&repository, &blob, StoredRange::new(0, 1)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(20), "{:?}", start.elapsed());
    }

    /// Gives a few bytes at a time and then breaks.
    #[derive(Debug)]
    struct Brittle(Memory);

    impl Around for Brittle {
        fn inner(&self) -> &dyn Repository {
            &self.0
        }

        fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
            Box::pin(async { Err(Error::new(Kind::Unreachable, "connection refused")) })
        }

        fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
            Box::pin(async move {
                let some = range.meet(StoredRange::new(range.start(), range.start() + 3));
                let bytes = self.0.read(blob, some).await?;
                let broken = Err(Error::new(Kind::Broken, "reset"));
                Ok(bytes.chain(stream::iter([broken])).boxed())
            })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_stream_goes_on_at_the_byte_where_it_broke() {
        let memory = Memory::new();
        let blob = memory.put(&b"0123456789"[..]);
        let repository = guarded(Brittle(memory));
        let all = read_all(&repository, &blob, StoredRange::new(1, 9)).await.unwrap();
        assert_eq!(all, &b"12345678"[..]);
        let starts: Vec<_> =
            repository.inner.within().0.ranges().iter().map(|(_, range)| range.start()).collect();
        assert_eq!(starts, [1, 4, 7]);
    }

    /// Gives pieces that have no bytes, again and again.
    #[derive(Debug)]
    struct Empty;

    impl Around for Empty {
        fn inner(&self) -> &dyn Repository {
            nothing()
        }

        fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
            Box::pin(async { Err(Error::new(Kind::NotFound, "none")) })
        }

        fn read<'a>(&'a self, _: &'a Blob, _: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
            let piece = async |()| {
                sleep(Duration::from_secs(1)).await;
                Some((Ok(Bytes::new()), ()))
            };
            Box::pin(async move { Ok(stream::unfold((), piece).boxed()) })
        }

        fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
            Around::read(self, blob, range)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_without_bytes_are_no_progress() {
        let start = Instant::now();
        let repository = guarded(Empty);
        let blob = Memory::new().put(&b"x"[..]);
        let error = read_all(&repository, &blob, StoredRange::new(0, 1)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
        assert!(start.elapsed() <= Duration::from_secs(61), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_manifest_that_nobody_serves_is_given_up_after_seconds() {
        let start = Instant::now();
        let repository = guarded(Brittle(Memory::new()));
        let error = Repository::manifest(&repository, &Which::Tag("t".into())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable);
        // The last attempt is begun before five are over, and waits a second at most for the leave of the budget.
        assert!(start.elapsed() <= Duration::from_secs(6), "{:?}", start.elapsed());
    }
}
