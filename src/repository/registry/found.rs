//! Where blobs were found after redirects, so that the registry is not asked for each range.
//!
//! A place is used until its time is over, as far as that was told, or it fails in any way: the registry may know a
//! better one. Kept by [`super::Registry`].

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::stream::StreamExt;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::time::Instant;

use super::hops::Hop;
use crate::oci::Digest;
use crate::repository::ByteStream;

/// For how many blobs a place is remembered; an artifact has far fewer layers.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The places, shared with the bodies that come from them.
#[derive(Clone)]
pub(super) struct Found(Arc<Inner>);

struct Inner {
    places: Mutex<LruCache<Digest, Entry>>,
    /// Whether the registry sent the last one who asked for a blob elsewhere.
    redirects: AtomicBool,
}

#[derive(Default)]
struct Entry {
    place: Option<(Hop, Option<Instant>)>,
    /// Held by who asks the registry where the blob is.
    turn: Arc<Turn<()>>,
}

impl Found {
    /// Nothing is found yet.
    pub(super) fn new() -> Self {
        let places = Mutex::new(LruCache::new(REMEMBERED));
        Self(Arc::new(Inner { places, redirects: AtomicBool::new(false) }))
    }

    /// The place of a blob.
    pub(super) fn get(&self, digest: &Digest) -> Option<Hop> {
        let mut places = self.0.places.lock();
        let (hop, end) = places.get(digest)?.place.as_ref()?;
        end.is_none_or(|end| Instant::now() < end).then(|| hop.clone())
    }

    /// Remembers the place of a blob, for as long as it may be used where that was told.
    pub(super) fn put(&self, digest: &Digest, hop: Hop, life: Option<Duration>) {
        let end = life.and_then(|life| Instant::now().checked_add(life));
        let mut places = self.0.places.lock();
        places.get_or_insert_mut(digest.clone(), Entry::default).place = Some((hop, end));
    }

    /// Forgets the place of a blob, unless another reader has found the blob elsewhere meanwhile.
    pub(super) fn forget(&self, digest: &Digest, hop: &Hop) {
        let mut places = self.0.places.lock();
        if let Some(entry) = places.peek_mut(digest)
            && entry.place.as_ref().is_some_and(|(place, _)| place == hop)
        {
            entry.place = None;
        }
    }

    /// Waits until nobody else asks where the blob is; at once where the registry gives blobs itself, since then each
    /// answer is bytes that somebody needs.
    pub(super) async fn turn(&self, digest: &Digest) -> Option<OwnedMutexGuard<()>> {
        if !self.0.redirects.load(Ordering::Relaxed) {
            return None;
        }
        let turn = self.0.places.lock().get_or_insert_mut(digest.clone(), Entry::default).turn.clone();
        Some(turn.lock_owned().await)
    }

    /// Takes down whether the registry sends who asks for a blob elsewhere.
    pub(super) fn redirects(&self, does: bool) {
        self.0.redirects.store(does, Ordering::Relaxed);
    }

    /// The same body; the place that it comes from is forgotten where it fails.
    pub(super) fn watched(&self, body: ByteStream, digest: &Digest, hop: Hop) -> ByteStream {
        let (found, digest) = (self.clone(), digest.clone());
        let watch = move |piece: &crate::Result<bytes::Bytes>| {
            if piece.is_err() {
                found.forget(&digest, &hop);
            }
        };
        body.inspect(watch).boxed()
    }
}

#[cfg(test)]
mod tests {
    use url::Url;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_is_used_until_its_time_is_over() {
        let (found, digest) = (Found::new(), Digest::of(b""));
        let hop = Hop::first(Url::parse("https://cdn.example/").unwrap());
        found.put(&digest, hop.clone(), Some(Duration::from_secs(2)));
        assert!(found.get(&digest).as_ref() == Some(&hop));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert!(found.get(&digest).is_none());
        found.put(&digest, hop.clone(), None);
        tokio::time::advance(Duration::from_secs(1 << 20)).await;
        assert!(found.get(&digest).is_some());
        found.forget(&digest, &hop);
        assert!(found.get(&digest).is_none());
    }

    #[tokio::test]
    async fn one_asks_where_a_blob_is_and_the_others_wait_for_the_answer() {
        let (found, digest) = (Found::new(), Digest::of(b""));
        assert!(found.turn(&digest).await.is_none(), "nothing is known of redirects");
        found.redirects(true);
        let turn = found.turn(&digest).await;
        let (other, same) = (found.clone(), digest.clone());
        let waiting = tokio::spawn(async move { other.turn(&same).await.is_some() });
        assert!(found.turn(&Digest::of(b"another")).await.is_some());
        assert!(!waiting.is_finished());
        drop(turn);
        assert!(waiting.await.unwrap());
    }
}
