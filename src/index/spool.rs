//! The windows of a layer that goes by, put aside in a file until its index is written: they are too many for memory.
//!
//! The file is the caller's, and nobody else's: one without a name, as a rule. Called by whoever drives a
//! [`Pass`](super::pass::Pass).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;

use super::pass::Passed;
use super::{Coding, Home, Layer, Section, Spans};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::ModelLayer;
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::{Blob, Digest};
use crate::range::StoredRange;

/// Windows on their way into an index.
pub struct Spool {
    file: Arc<File>,
    len: u64,
    hasher: Hasher,
}

impl Spool {
    /// Nothing is in `file` yet, which is open for reading and writing.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file: Arc::new(file), len: 0, hasher: Hasher::new(Algorithm::Sha256) }
    }

    /// Puts the next window aside. Blocks on the local disk.
    ///
    /// # Errors
    /// [`Kind::Storage`] where it can't be written.
    pub fn push(&mut self, window: &Bytes) -> Result<()> {
        let written = self.file.write_all_at(window, self.len);
        written.map_err(|error| Error::from_source(Kind::Storage, "cannot put a checkpoint aside", error))?;
        self.hasher.update(window);
        self.len = self.len.saturating_add(u64::try_from(window.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// The layer that has gone by, as it stands in an index that is about to be written, but for its chunk digests:
    /// [`encode`](super::format::encode()) is given those. Its entries stay in `passed`.
    #[must_use]
    pub fn layer(self, layer: &ModelLayer, passed: &Passed) -> Layer {
        let home = Home::File(self.file);
        let table = Section {
            home: home.clone(),
            range: StoredRange::new(0, u64::try_from(passed.table.len()).unwrap_or(u64::MAX)),
            digest: Digest::of(&passed.table),
            bytes: Some(passed.table.clone()),
        };
        let range = StoredRange::new(0, self.len);
        let checkpoints =
            (self.len > 0).then(|| Section { home, range, digest: self.hasher.finish(), bytes: None });
        let spans = Spans { how: passed.how, content: passed.content, table, checkpoints };
        Layer {
            blob: Blob { digest: layer.descriptor.digest.clone(), size: passed.stored },
            media_type: layer.descriptor.media_type.clone(),
            diff_id: None,
            coding: Coding::Spans(spans),
            extents: passed.extents.clone(),
            gaps: passed.gaps.clone(),
            bound: None,
        }
    }
}
