//! A host that is asked no more than it bears: what its [`Budget`] holds back fails at once, and nothing goes out.
//!
//! One stands around each host of a registry, the mirrors too, so that one in trouble keeps nobody from the others.
//! When to come again is [`super::Retrying`]'s to say, whose wait ends as soon as the host answers.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::StreamExt;

use super::around::Around;
use super::budget::{Budget, Pass};
use super::{ByteStream, Config, Pinned, Repository};
use crate::error::Result;
use crate::oci::{Blob, Descriptor, Digest, Which};
use crate::range::StoredRange;

/// How much a body must bring to have been worth its request: the least that a reader of a file asks for. One that breaks
/// before that brings its host no nearer to being well, however often it does.
const WORTH: u64 = 4 << 10;

/// `R`, asked as its host's budget allows.
#[derive(Debug)]
pub(super) struct Guarded<R> {
    inner: R,
    budget: Arc<Budget>,
    /// For how long the host may ask to be left alone.
    longest: Duration,
}

impl<R: Repository> Guarded<R> {
    /// Wraps `inner`, which is at the host of `budget`.
    pub(super) fn new(inner: R, budget: Arc<Budget>, config: &Config) -> Self {
        // A reader that comes just after the wish still has an attempt before it fails.
        let longest = config.read_deadline.saturating_sub(config.read_deadline / 10);
        Self { inner, budget, longest }
    }

    #[cfg(test)]
    pub(super) fn within(&self) -> &R {
        &self.inner
    }

    /// One request whose answer is good for itself.
    async fn asked<T>(&self, asking: impl Future<Output = Result<T>>) -> Result<T> {
        let pass = self.budget.pass()?;
        let done = asking.await;
        match &done {
            Ok(_) => self.budget.succeeded(pass),
            Err(error) => self.budget.failed(pass, error, self.longest),
        }
        done
    }

    /// One request for a body, whose bytes say how it went.
    async fn opened(
        &self,
        range: StoredRange,
        opening: impl Future<Output = Result<ByteStream>>,
    ) -> Result<ByteStream> {
        let pass = self.budget.pass()?;
        let stream = opening.await.inspect_err(|error| self.budget.failed(pass, error, self.longest))?;
        if range.is_empty() {
            return Ok(stream);
        }
        let mut bringing = Bringing {
            budget: Arc::clone(&self.budget),
            longest: self.longest,
            pass,
            left: range.len().min(WORTH),
        };
        Ok(stream.inspect(move |piece| bringing.note(piece)).boxed())
    }
}

/// A body under way.
struct Bringing {
    budget: Arc<Budget>,
    longest: Duration,
    pass: Pass,
    /// How much is owed until the request was worth it.
    left: u64,
}

impl Bringing {
    fn note(&mut self, piece: &Result<bytes::Bytes>) {
        match piece {
            Ok(bytes) if self.left > 0 => {
                self.left = self.left.saturating_sub(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                if self.left == 0 {
                    self.budget.succeeded(self.pass);
                }
            }
            Ok(_) => {}
            Err(error) => self.budget.failed(self.pass, error, self.longest),
        }
    }
}

impl<R: Repository> Around for Guarded<R> {
    fn inner(&self) -> &dyn Repository {
        &self.inner
    }

    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        Box::pin(self.asked(self.inner.manifest(which)))
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.opened(range, self.inner.read(blob, range)))
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.opened(range, self.inner.read_ahead(blob, range)))
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        Box::pin(self.asked(self.inner.referrers(subject, artifact_type)))
    }
}
