//! Where blobs were found after redirects, so that the registry is not asked for each range.
//!
//! A place is used until it fails in any way: the registry may know a better one. Kept by [`super::Registry`].

use std::num::NonZeroUsize;
use std::sync::Arc;

use futures_util::stream::StreamExt;
use lru::LruCache;
use parking_lot::Mutex;

use super::hops::Hop;
use crate::oci::Digest;
use crate::repository::ByteStream;

/// For how many blobs a place is remembered; an artifact has far fewer layers.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// The places, shared with the bodies that come from them.
#[derive(Clone)]
pub(super) struct Found(Arc<Mutex<LruCache<Digest, Hop>>>);

impl Found {
    /// Nothing is found yet.
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(LruCache::new(REMEMBERED))))
    }

    /// The place of a blob.
    pub(super) fn get(&self, digest: &Digest) -> Option<Hop> {
        self.0.lock().get(digest).cloned()
    }

    /// Remembers the place of a blob.
    pub(super) fn put(&self, digest: &Digest, hop: Hop) {
        self.0.lock().put(digest.clone(), hop);
    }

    /// Forgets the place of a blob, unless another reader has found the blob elsewhere meanwhile.
    pub(super) fn forget(&self, digest: &Digest, hop: &Hop) {
        let mut found = self.0.lock();
        if found.peek(digest) == Some(hop) {
            found.pop(digest);
        }
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
