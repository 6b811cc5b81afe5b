//! Whether a registry that refuses a blob may be asked once more: a manifest has named the blob, so that it was there, and
//! what says otherwise may be a storage or a token service that is a moment behind.
//!
//! Only of blobs, and of nobody in whose place others can be asked. Kept by [`super::Registry`].

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;
use reqwest::StatusCode;
use tokio::time::{Instant, sleep};

use crate::oci::Digest;

/// How long after a refusal a blob is asked for once more, at the least; twice that at the most.
const SECOND_THOUGHT: Duration = Duration::from_millis(200);
/// For how long two refusals in a row are the last word on a blob: nobody asks twice meanwhile.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Of how many blobs that is remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// The blobs that were refused twice, and until when that is taken for the last word.
#[derive(Clone)]
pub(super) struct Doubts(Arc<Mutex<LruCache<Digest, Instant>>>);

impl Doubts {
    /// Nothing was refused yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(REMEMBERED))))
    }

    /// Whether this answer for a blob is to be doubted. A wish for credentials is none: it was met as far as it can be.
    pub(super) fn is_open(&self, digest: &Digest, status: StatusCode) -> bool {
        is_refusal(status) && self.0.lock().get(digest).is_none_or(|until| *until <= Instant::now())
    }

    /// Returns when it is time to ask once more.
    pub(super) async fn time_to_ask(&self) {
        sleep(SECOND_THOUGHT.mul_f64(1.0 + fastrand::f64())).await;
    }

    /// Takes down the second answer.
    pub(super) fn settled(&self, digest: &Digest, status: StatusCode) {
        if is_refusal(status) {
            self.0.lock().put(digest.clone(), Instant::now() + LAST_WORD);
        }
    }
}

/// Whether an answer refuses a blob.
pub(super) fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_doubted_until_it_is_repeated_and_again_after_a_time() {
        let (doubts, digest) = (Doubts::new(), Digest::of(b"x"));
        let gone = StatusCode::GONE;
        assert!(doubts.is_open(&digest, gone));
        doubts.settled(&digest, StatusCode::OK);
        assert!(doubts.is_open(&digest, gone));
        doubts.settled(&digest, gone);
        assert!(!doubts.is_open(&digest, gone) && doubts.is_open(&Digest::of(b"y"), gone));
        tokio::time::advance(LAST_WORD).await;
        assert!(doubts.is_open(&digest, gone));
        for other in [StatusCode::OK, StatusCode::UNAUTHORIZED, StatusCode::BAD_GATEWAY] {
            assert!(!doubts.is_open(&digest, other), "{other}");
        }
    }
}
