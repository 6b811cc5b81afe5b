//! A repository that knows how others are reached: by the settings that it was itself.
//!
//! What [`connect`](super::connect) gives. It changes nothing of what the repository within answers.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{ByteStream, Config, Pace, Pinned, Repository, connect};
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Descriptor, Digest, Place, Reference, Which};
use crate::range::StoredRange;

/// `R` and the settings it was made by.
#[derive(Debug)]
pub(super) struct Connected<R> {
    inner: R,
    config: Config,
}

impl<R: Repository> Connected<R> {
    pub(super) fn new(inner: R, config: &Config) -> Self {
        Self { inner, config: config.clone() }
    }
}

impl<R: Repository> Repository for Connected<R> {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        self.inner.manifest(which)
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.inner.read(blob, range)
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.inner.read_ahead(blob, range)
    }

    fn pace(&self) -> Pace {
        self.inner.pace()
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        self.inner.referrers(subject, artifact_type)
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

    fn elsewhere(&self, reference: &Reference) -> Result<Arc<dyn Repository>> {
        match reference.place {
            Place::Registry { .. } => connect(reference, &self.config),
            Place::Layout { .. } => {
                let doing = format!("an artifact of {} names the folder {reference}", self.place());
                Err(Error::new(Kind::Unsupported, doing))
            }
        }
    }
}
