//! One place's part of the store: the store and who asks, which belong together on every call.

use std::io;
use std::sync::Arc;

use super::store::Store;
use super::store::kept::KeptFile;
use crate::oci::Digest;
use crate::range::ContentRange;

/// The store as one place and its credentials see it.
#[derive(Debug)]
pub(super) struct Shelf {
    pub(super) store: Arc<Store>,
    /// The place and the credentials used there, as [`identity`](crate::repository::Repository::identity) names them.
    pub(super) who: String,
}

impl Shelf {
    pub(super) fn file(&self, layer: &Digest, extent: ContentRange) -> io::Result<Arc<KeptFile>> {
        self.store.file(&self.who, layer, extent)
    }

    pub(super) fn kept_bytes(&self, layer: &Digest, extent: ContentRange) -> u64 {
        self.store.kept_bytes(&self.who, layer, extent)
    }

    pub(super) fn proved(&self, layer: &Digest) -> bool {
        self.store.proved(&self.who, layer)
    }
}
