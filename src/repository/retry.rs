//! A repository that is asked again where that may help.
//!
//! A stream that breaks goes on at the byte where it broke, so that its reader sees one unbroken stream. What
//! may be asked again is [`Kind::may_retry`]'s to say; this file says when, and when to give up ([`Tries`], which
//! pushing uses too). It wraps the registry in [`super::connect`]; folders and memory need none of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use tokio::time::{Instant, sleep, timeout_at};

use super::{ByteStream, Config, Pinned, Repository};
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Which};
use crate::range::StoredRange;

/// How often in a row an answer against the rules is asked for again: a proxy's page comes and goes, a
/// registry that ignores ranges stays.
const PROTOCOL_RETRIES: u32 = 3;

/// How long a manifest is asked for where nobody answers at all, with [`UNREACHABLE_ATTEMPTS`] made: long
/// enough for a registry that restarts, short enough for a person who mistyped a host.
pub(super) const UNREACHABLE_PATIENCE: Duration = Duration::from_secs(5);
const UNREACHABLE_ATTEMPTS: u32 = 3;

/// Asks `R` again after failures that may pass, until a deadline without progress.
#[derive(Debug)]
pub struct Retrying<R> {
    inner: Arc<R>,
    read_deadline: Duration,
    setup_deadline: Duration,
}

impl<R: Repository + 'static> Retrying<R> {
    /// Wraps `inner` with the deadlines of `config`.
    #[must_use]
    pub fn new(inner: R, config: &Config) -> Self {
        let (read_deadline, setup_deadline) = (config.read_deadline, config.setup_deadline);
        Self { inner: Arc::new(inner), read_deadline, setup_deadline }
    }

    async fn pin(&self, which: &Which) -> Result<Pinned> {
        let doing = format!("reading the manifest {which} of {}", self.inner.place());
        let mut tries = Tries::new(self.setup_deadline, UNREACHABLE_PATIENCE);
        loop {
            match tries.bounded(self.inner.manifest(which)).await {
                Ok(pinned) => return Ok(pinned),
                Err(error) => tries.pause(error, &doing).await?,
            }
        }
    }

    async fn open(&self, blob: &Blob, range: StoredRange) -> Result<ByteStream> {
        let mut reading = Reading {
            inner: self.inner.clone(),
            blob: blob.clone(),
            rest: range,
            stream: None,
            deadline: self.read_deadline,
        };
        super::inside(blob, range)?;
        if !range.is_empty() {
            let mut tries = Tries::new(self.read_deadline, self.read_deadline);
            while reading.stream.is_none() {
                reading.attempt(&mut tries).await?;
            }
        }
        Ok(stream::try_unfold(reading, Reading::next).boxed())
    }
}

impl<R: Repository + 'static> Repository for Retrying<R> {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        Box::pin(self.pin(which))
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.open(blob, range))
    }

    fn distrust(&self, blob: &Blob) {
        self.inner.distrust(blob);
    }

    fn place(&self) -> String {
        self.inner.place()
    }

    fn identity(&self) -> String {
        self.inner.identity()
    }
}

/// A read under way: what is still owed to the reader, and the stream that brings it, if one is open.
struct Reading<R> {
    inner: Arc<R>,
    blob: Blob,
    rest: StoredRange,
    stream: Option<ByteStream>,
    deadline: Duration,
}

impl<R: Repository + 'static> Reading<R> {
    /// The next bytes. Time counts only while somebody waits here, so a slow reader breaks no deadline.
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let mut tries = Tries::new(self.deadline, self.deadline);
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
                    tries.pause(error, &self.doing()).await?;
                }
            }
        }
        Ok(None)
    }

    /// Asks once for the rest; a failure that may pass has been waited out when this returns.
    async fn attempt(&mut self, tries: &mut Tries) -> Result<()> {
        match tries.bounded(self.inner.read(&self.blob, self.rest)).await {
            Ok(stream) => self.stream = Some(stream),
            Err(error) => tries.pause(error, &self.doing()).await?,
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

/// The attempts at one thing since its last progress.
pub(super) struct Tries {
    since: Instant,
    deadline: Duration,
    unreachable_patience: Duration,
    attempts: u32,
    protocol_in_row: u32,
    backoff: ExponentialBackoff,
    last: Option<Error>,
}

impl Tries {
    /// None yet. `unreachable_patience` is how long it is tried where nobody answers at all.
    pub(super) fn new(deadline: Duration, unreachable_patience: Duration) -> Self {
        // Each pause is drawn from its value here to twice that: 25 ms to 3 s.
        let backoff = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(25))
            .with_max_delay(Duration::from_millis(1500))
            .without_max_times()
            .with_jitter()
            .build();
        Self {
            since: Instant::now(),
            deadline,
            unreachable_patience,
            attempts: 0,
            protocol_in_row: 0,
            backoff,
            last: None,
        }
    }

    /// What `attempt` gives, or a `Deadline` error where the time is over first.
    pub(super) async fn bounded<T>(&mut self, attempt: impl Future<Output = Result<T>>) -> Result<T> {
        let over =
            self.since.checked_add(self.deadline).unwrap_or_else(|| self.since + Duration::from_secs(86_400));
        match timeout_at(over, attempt).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(Kind::Deadline, "nothing came")),
        }
    }

    /// How many attempts have failed.
    pub(super) fn failed(&self) -> u32 {
        self.attempts
    }

    /// Starts the deadline anew, and neither the pauses nor what was counted: bytes moved, and nobody has said yet
    /// that they came in.
    pub(super) fn moved(&mut self) {
        self.since = Instant::now();
    }

    /// Waits until the next attempt is due, or gives up with the reason.
    pub(super) async fn pause(&mut self, error: Error, doing: &str) -> Result<()> {
        if error.kind() == Kind::Deadline {
            return Err(self.overdue(doing));
        }
        self.attempts = self.attempts.saturating_add(1);
        self.protocol_in_row = if error.kind() == Kind::Protocol { self.protocol_in_row + 1 } else { 0 };
        if !error.kind().may_retry() || self.protocol_in_row > PROTOCOL_RETRIES {
            return Err(error);
        }
        let wait = self.wait_before_next(error.wait());
        if self.nobody_there(&error, wait) {
            return Err(error);
        }
        tracing::debug!(%error, attempt = self.attempts, ?wait, "asking again");
        self.last = Some(error);
        if self.since.elapsed().saturating_add(wait) >= self.deadline {
            return Err(self.overdue(doing));
        }
        sleep(wait).await;
        Ok(())
    }

    fn nobody_there(&self, error: &Error, wait: Duration) -> bool {
        error.kind() == Kind::Unreachable
            && self.unreachable_patience < self.deadline
            && self.attempts >= UNREACHABLE_ATTEMPTS
            && self.since.elapsed().saturating_add(wait) > self.unreachable_patience
    }

    /// The longer of our own pause and the one asked for; where that lies beyond the deadline, a last attempt
    /// is due shortly before it, since a failed page fault kills the reader.
    fn wait_before_next(&mut self, asked: Option<Duration>) -> Duration {
        let own = self.backoff.next().unwrap_or(Duration::from_secs(3));
        let reserve = self.deadline / 10;
        let latest = self.deadline.saturating_sub(self.since.elapsed()).saturating_sub(reserve);
        asked.map_or(own, |asked| asked.min(latest).max(own))
    }

    /// The end at the deadline; the last failure, where there was one, names what was done where.
    fn overdue(&self, doing: &str) -> Error {
        let sentence = format!("no progress for {} s", self.deadline.as_secs_f32());
        match &self.last {
            Some(last) => Error::from_source(Kind::Deadline, sentence, last.clone()),
            None => Error::new(Kind::Deadline, format!("{sentence} {doing}")),
        }
    }
}

impl fmt::Debug for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tries").field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;
    use crate::repository::{Memory, read_all};

    fn config() -> Config {
        Config { read_deadline: Duration::from_secs(60), ..Config::default() }
    }

    fn failing(kind: Kind, times: u32) -> (Retrying<Memory>, Blob) {
        let memory = Memory::new();
        let blob = memory.put(vec![7; 1 << 20]);
        let left = AtomicU32::new(times);
        memory.fail_with(move |_, _| {
            let fails =
                left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
            fails.then(|| Error::new(kind, "refused for a while"))
        });
        (Retrying::new(memory, &config()), blob)
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
    async fn an_answer_against_the_rules_is_asked_for_three_times_again() {
        let (repository, blob) = failing(Kind::Protocol, 3);
        assert!(read_all(&repository, &blob, StoredRange::new(0, 5)).await.is_ok());
        let (repository, blob) = failing(Kind::Protocol, 4);
        let error = read_all(&repository, &blob, StoredRange::new(0, 5)).await.unwrap_err();
        assert_eq!((error.kind(), repository.inner.requests()), (Kind::Protocol, 4));
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_not_asked_about_again() {
        let (repository, blob) = failing(Kind::Denied, u32::MAX);
        let error = read_all(&repository, &blob, StoredRange::new(0, 5)).await.unwrap_err();
        assert_eq!((error.kind(), repository.inner.requests()), (Kind::Denied, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_ends_at_the_deadline() {
        let (repository, blob) = failing(Kind::Broken, 0);
        let _gate = repository.inner.gate();
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
        let repository = Retrying::new(memory, &config());
        read_all(&repository, &blob, StoredRange::new(0, 1)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(20), "{:?}", start.elapsed());
    }

    /// Gives a few bytes at a time and then breaks.
    #[derive(Debug)]
    struct Brittle(Memory);

    impl Repository for Brittle {
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

        fn place(&self) -> String {
            "here".into()
        }

        fn identity(&self) -> String {
            "me".into()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_stream_goes_on_at_the_byte_where_it_broke() {
        let memory = Memory::new();
        let blob = memory.put(&b"0123456789"[..]);
        let repository = Retrying::new(Brittle(memory), &config());
        let all = read_all(&repository, &blob, StoredRange::new(1, 9)).await.unwrap();
        assert_eq!(all, &b"12345678"[..]);
        let starts: Vec<_> = repository.inner.0.ranges().iter().map(|(_, range)| range.start()).collect();
        assert_eq!(starts, [1, 4, 7]);
    }

    /// Gives pieces that have no bytes, again and again.
    #[derive(Debug)]
    struct Empty;

    impl Repository for Empty {
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

        fn place(&self) -> String {
            "here".into()
        }

        fn identity(&self) -> String {
            "me".into()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn pieces_without_bytes_are_no_progress() {
        let start = Instant::now();
        let repository = Retrying::new(Empty, &config());
        let blob = Memory::new().put(&b"x"[..]);
        let error = read_all(&repository, &blob, StoredRange::new(0, 1)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline);
        assert!(start.elapsed() <= Duration::from_secs(61), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_manifest_that_nobody_serves_is_given_up_after_seconds() {
        let start = Instant::now();
        let repository = Retrying::new(Brittle(Memory::new()), &config());
        let error = repository.manifest(&Which::Tag("t".into())).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable);
        assert!(start.elapsed() <= Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
