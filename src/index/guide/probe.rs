//! Reads of a layer that is looked into, as many as it is worth.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

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
    reads: AtomicU64,
    bytes: AtomicU64,
    content: AtomicU64,
    tries: AtomicU64,
}

impl<'a> Probe<'a> {
    pub(super) fn new(repository: &'a dyn Repository, blob: &'a Blob) -> Self {
        let [least, most] = BYTES;
        let bytes = (blob.size / SHARE).clamp(least, most);
        let (reads, bytes, content) = (AtomicU64::new(READS), AtomicU64::new(bytes), AtomicU64::new(CONTENT));
        Self { repository, blob, reads, bytes, content, tries: AtomicU64::new(TRIES) }
    }

    /// The stored bytes of `range`, which lies in the blob and is not empty.
    ///
    /// # Errors
    /// Those of reading; `Unsupported` where it would be too much.
    pub(super) async fn read(&self, range: StoredRange) -> Result<Bytes> {
        take(&self.reads, 1, "reads")?;
        take(&self.bytes, range.len(), "stored bytes")?;
        read_all(self.repository, self.blob, range).await
    }

    /// The last `len` bytes of the blob, or all of it.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(super) async fn tail(&self, len: u64) -> Result<Bytes> {
        let size = self.blob.size;
        self.read(StoredRange::new(size.saturating_sub(len), size)).await
    }

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

fn take(left: &AtomicU64, by: u64, what: &str) -> Result<()> {
    let taken = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(by));
    taken.map(drop).map_err(|left| {
        Error::new(
            Kind::Unsupported,
            format!("it takes more {what} than it is worth: {by} more, and {left} are left"),
        )
    })
}
