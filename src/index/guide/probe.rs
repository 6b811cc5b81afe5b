//! Reads of a layer that is looked into, as many as it is worth, and what is held and decoded of it.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::room::{Desk, Loan};
use crate::error::{Error, Kind, Result};
use crate::oci::Blob;
use crate::range::StoredRange;
use crate::repository::{Repository, read_all};

/// How many reads a layer is worth.
const READS: u64 = 256;

/// How many stored bytes any layer is worth, and the largest.
const BYTES: [u64; 2] = [8 << 20, 64 << 20];

/// The part of a layer that may be read of one between them.
const SHARE: u64 = 16;

/// How much content may be decoded.
const CONTENT: u64 = 128 << 20;

/// How often decoding may be tried where nothing says that a member begins.
const TRIES: u64 = 1000;

/// A layer that is looked into.
pub(super) struct Probe<'a> {
    repository: &'a dyn Repository,
    pub(super) blob: &'a Blob,
    pub(super) bounds: Arc<Bounds>,
}

/// What looking into a layer may still cost.
#[derive(Debug)]
pub(super) struct Bounds {
    reads: AtomicU64,
    bytes: AtomicU64,
    content: AtomicU64,
    tries: AtomicU64,
    /// What it may hold at once.
    pub(super) desk: Desk,
}

/// Bytes that count as long as they are held.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) bytes: Bytes,
    pub(super) _loan: Loan,
}

impl Deref for Stored {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<'a> Probe<'a> {
    pub(super) fn new(repository: &'a dyn Repository, blob: &'a Blob, desk: Desk) -> Self {
        let [least, most] = BYTES;
        let bounds = Bounds {
            reads: AtomicU64::new(READS),
            bytes: AtomicU64::new((blob.size / SHARE).clamp(least, most)),
            content: AtomicU64::new(CONTENT),
            tries: AtomicU64::new(TRIES),
            desk,
        };
        Self { repository, blob, bounds: Arc::new(bounds) }
    }

    /// The stored bytes of `range`, which lies in the blob and is not empty.
    ///
    /// # Errors
    /// Those of reading; `Unsupported` where it would be too much.
    pub(super) async fn read(&self, range: StoredRange) -> Result<Stored> {
        take(&self.bounds.reads, 1, "reads")?;
        take(&self.bounds.bytes, range.len(), "stored bytes")?;
        let loan = self.bounds.desk.take(range.len())?;
        let bytes = read_all(self.repository, self.blob, range).await?;
        Ok(Stored { bytes, _loan: loan })
    }

    /// The last `len` bytes of the blob, or all of it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) async fn tail(&self, len: u64) -> Result<Stored> {
        let size = self.blob.size;
        self.read(StoredRange::new(size.saturating_sub(len), size)).await
    }
}

impl Bounds {
    /// Counts a try to decode.
    ///
    /// # Errors
    /// `Unsupported` where there have been too many.
    pub(super) fn tried(&self) -> Result<()> {
        take(&self.tries, 1, "tries to decode")
    }

    /// Counts content that is decoded.
    ///
    /// # Errors
    /// `Unsupported` where it becomes too much.
    pub(super) fn decoded(&self, len: usize) -> Result<()> {
        take(&self.content, u64::try_from(len).unwrap_or(u64::MAX), "bytes of content")
    }
}

/// Does what keeps a processor busy where it holds up no task.
///
/// # Errors
/// Those of `work`; `Unsupported` where it was interrupted.
pub(super) async fn apart<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let interrupted = |error| Error::from_source(Kind::Unsupported, "looking into it was interrupted", error);
    tokio::task::spawn_blocking(work).await.map_err(interrupted)?
}

fn take(left: &AtomicU64, by: u64, what: &str) -> Result<()> {
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(by));
    taken.map(drop).map_err(|left| {
        Error::new(
            Kind::Unsupported,
            format!("it takes more {what} than it is worth: {by} more, and {left} are left"),
        )
    })
}
