//! How it goes with one mirror: whether to ask it now, later, or not for this blob.

use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::oci::Digest;

/// How long a mirror is stepped over after its first failure; after each further one in a row twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest that our own pauses get: within a read's deadline it is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How long a mirror is not asked for what it did not have, or not as it must be: a pull-through cache may be filling.
const LACKING: Duration = Duration::from_secs(10);
/// How long a mirror is not asked for a blob of which it gave wrong bytes.
const DISTRUSTED: Duration = Duration::from_secs(600);
/// How many blobs are remembered of each kind; an artifact has far fewer layers.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// When a mirror is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// In its place.
    Now,
    /// In its place, by this one caller, to see whether it answers again.
    Trial,
    /// After all others: it failed a moment ago.
    Later,
}

/// What is known of one mirror.
#[derive(Debug)]
pub(super) struct Health(Mutex<State>);

#[derive(Debug)]
struct State {
    failures: u32,
    /// Until then it is stepped over.
    until: Option<Instant>,
    /// Whether somebody is trying it.
    on_trial: bool,
    /// What it is not asked for, until when.
    lacking: LruCache<Digest, Instant>,
    /// What it has given bytes of.
    gave: LruCache<Digest, ()>,
}

impl Default for Health {
    fn default() -> Self {
        let (lacking, gave) = (LruCache::new(REMEMBERED), LruCache::new(REMEMBERED));
        Self(Mutex::new(State { failures: 0, until: None, on_trial: false, lacking, gave }))
    }
}

impl Health {
    /// When to ask it for what has this digest, or for a tag; `None`: not at all.
    pub(super) fn turn(&self, digest: Option<&Digest>) -> Option<Turn> {
        let (mut state, now) = (self.0.lock(), Instant::now());
        if digest.and_then(|digest| state.lacking.get(digest)).is_some_and(|until| now < *until) {
            return None;
        }
        match state.until {
            None => Some(Turn::Now),
            Some(until) if now < until => Some(Turn::Later),
            Some(_) => {
                // One tries it; for the others it stays stepped over until that has come to something.
                state.until = Some(now + pause(state.failures));
                state.on_trial = true;
                Some(Turn::Trial)
            }
        }
    }

    /// Notes an answer that was good to its end; whether that is news.
    pub(super) fn went_well(&self) -> bool {
        let mut state = self.0.lock();
        (state.until, state.on_trial) = (None, false);
        std::mem::take(&mut state.failures) > 0
    }

    /// Notes that it failed, and perhaps asked to be left alone for so long; whether that is news.
    pub(super) fn went_wrong(&self, wait: Option<Duration>) -> bool {
        let mut state = self.0.lock();
        let news = state.failures == 0;
        // Many who were under way fail together: that is one failure.
        if news || std::mem::take(&mut state.on_trial) {
            state.failures = state.failures.saturating_add(1);
        }
        let until = Instant::now() + pause(state.failures).max(wait.unwrap_or_default());
        state.until = state.until.max(Some(until));
        news
    }

    /// Notes that it has not got this, or not as it must be.
    pub(super) fn lacks(&self, digest: &Digest) {
        self.0.lock().lacking.put(digest.clone(), Instant::now() + LACKING);
    }

    /// Notes that it has given bytes of this.
    pub(super) fn gave(&self, digest: &Digest) {
        let mut state = self.0.lock();
        if state.gave.get(digest).is_none() {
            state.gave.put(digest.clone(), ());
        }
    }

    /// Is not asked for this for a long time, if it has given bytes of it; whether it has.
    pub(super) fn distrust(&self, digest: &Digest) -> bool {
        let mut state = self.0.lock();
        let gave = state.gave.pop(digest).is_some();
        if gave {
            state.lacking.put(digest.clone(), Instant::now() + DISTRUSTED);
        }
        gave
    }
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_fails_is_stepped_over_ever_longer_and_tried_by_one_at_a_time() {
        let health = Health::default();
        assert_eq!(health.turn(None), Some(Turn::Now));
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            health.went_wrong(None);
            tokio::time::advance(Duration::from_millis(pause * 1000 - 1)).await;
            assert_eq!(health.turn(None), Some(Turn::Later), "{pause}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(health.turn(None), Some(Turn::Trial), "{pause}");
            assert_eq!(health.turn(None), Some(Turn::Later), "{pause}");
        }
        assert!(health.went_well());
        assert_eq!(health.turn(None), Some(Turn::Now));
    }

    #[tokio::test(start_paused = true)]
    async fn many_failures_at_once_are_one_and_only_the_first_is_news() {
        let health = Health::default();
        assert!(health.went_wrong(None));
        assert!((0..31).all(|_| !health.went_wrong(None)));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(health.turn(None), Some(Turn::Trial));
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_that_a_mirror_asks_for_is_kept() {
        let health = Health::default();
        health.went_wrong(Some(Duration::from_secs(100)));
        tokio::time::advance(Duration::from_secs(99)).await;
        assert_eq!(health.turn(None), Some(Turn::Later));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(health.turn(None), Some(Turn::Trial));
    }

    #[tokio::test(start_paused = true)]
    async fn a_blob_that_is_missing_or_wrong_there_keeps_nobody_from_the_others() {
        let health = Health::default();
        let [missing, wrong, other] = [&b"m"[..], b"w", b"o"].map(Digest::of);
        health.lacks(&missing);
        assert!(!health.distrust(&wrong), "it has given nothing of it");
        health.gave(&wrong);
        assert!(health.distrust(&wrong));
        assert_eq!((health.turn(Some(&missing)), health.turn(Some(&wrong))), (None, None));
        assert_eq!(health.turn(Some(&other)), Some(Turn::Now));
        tokio::time::advance(LACKING).await;
        assert_eq!((health.turn(Some(&missing)), health.turn(Some(&wrong))), (Some(Turn::Now), None));
        tokio::time::advance(DISTRUSTED).await;
        assert_eq!(health.turn(Some(&wrong)), Some(Turn::Now));
    }
}
