//! What goes around another repository: it says what it changes, and hands on everything else.
//!
//! A [`Repository`] answers every question itself, so that one that is forgotten does not compile. For what wraps another
//! the right answer to a forgotten one is that other's.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{ByteStream, Pace, Pinned, Repository};
use crate::error::Result;
use crate::oci::{Blob, Descriptor, Digest, Reference, Which};
use crate::range::StoredRange;

/// A [`Repository`] around another: each question is [`inner`](Self::inner)'s unless it is answered here. What they give is
/// said at the questions of the same names there.
pub(crate) trait Around: Send + Sync + fmt::Debug {
    /// The repository within.
    fn inner(&self) -> &dyn Repository;

    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        self.inner().manifest(which)
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.inner().read(blob, range)
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.inner().read_ahead(blob, range)
    }

    fn pace(&self) -> Pace {
        self.inner().pace()
    }

    fn expect_reads(&self) {
        self.inner().expect_reads();
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        self.inner().referrers(subject, artifact_type)
    }

    fn distrust(&self, blob: &Blob) {
        self.inner().distrust(blob);
    }

    fn place(&self) -> String {
        self.inner().place()
    }

    fn identity(&self) -> String {
        self.inner().identity()
    }

    fn elsewhere(&self, reference: &Reference) -> Result<Arc<dyn Repository>> {
        self.inner().elsewhere(reference)
    }
}

impl<T: Around> Repository for T {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        Around::manifest(self, which)
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Around::read(self, blob, range)
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Around::read_ahead(self, blob, range)
    }

    fn pace(&self) -> Pace {
        Around::pace(self)
    }

    fn expect_reads(&self) {
        Around::expect_reads(self);
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        Around::referrers(self, subject, artifact_type)
    }

    fn distrust(&self, blob: &Blob) {
        Around::distrust(self, blob);
    }

    fn place(&self) -> String {
        Around::place(self)
    }

    fn identity(&self) -> String {
        Around::identity(self)
    }

    fn elsewhere(&self, reference: &Reference) -> Result<Arc<dyn Repository>> {
        Around::elsewhere(self, reference)
    }
}
