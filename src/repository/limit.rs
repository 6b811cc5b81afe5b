//! A repository whose reads are measured and kept to a limit of bytes a second.
//!
//! What it measures is the [`Pace`] that readers ahead keep to; it holds nobody back itself but for the limit. Every
//! call is one attempt, as below it.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::around::Around;
use super::pace::{Pace, Pacer};
use super::rate::Rate;
use super::{ByteStream, Config, Purpose, Repository};
use crate::error::{Kind, Result};
use crate::oci::Blob;
use crate::range::StoredRange;

/// Measures what `R` gives, and holds it to a rate.
#[derive(Debug)]
pub struct Limited<R> {
    inner: R,
    pacer: Arc<Pacer>,
    rate: Option<Arc<Rate>>,
}

impl<R: Repository> Limited<R> {
    /// Wraps `inner` with the limits of `config`.
    #[must_use]
    pub fn new(inner: R, config: &Config) -> Self {
        let rate = config.rate.map(|rate| Arc::new(Rate::new(rate)));
        Self { inner, pacer: Arc::new(Pacer::new(config.requests, config.window)), rate }
    }

    async fn open(&self, blob: &Blob, range: StoredRange, purpose: Purpose) -> Result<ByteStream> {
        let opened = match purpose {
            Purpose::Demand => self.inner.read(blob, range).await,
            Purpose::Ahead => return self.open_ahead(blob, range).await,
        };
        Ok(self.limited(opened?, purpose))
    }

    async fn open_ahead(&self, blob: &Blob, range: StoredRange) -> Result<ByteStream> {
        let mut measured = self.pacer.begin(range.len());
        let opened = self.inner.read_ahead(blob, range).await.inspect_err(|error| {
            // What was held back says nothing new.
            if error.kind() == Kind::Throttled && error.was_asked() {
                self.pacer.throttled();
            }
        });
        let measuring = opened?.map(move |piece| {
            if let Ok(bytes) = &piece {
                measured.came(len(bytes));
                measured.complete();
            }
            piece
        });
        Ok(self.limited(measuring.boxed(), Purpose::Ahead))
    }

    fn limited(&self, stream: ByteStream, purpose: Purpose) -> ByteStream {
        let Some(rate) = self.rate.clone() else { return stream };
        let passing = stream::unfold((stream, rate), move |(mut stream, rate)| async move {
            let piece = stream.next().await?;
            if let Ok(bytes) = &piece {
                rate.pass(purpose, len(bytes)).await;
            }
            Some((piece, (stream, rate)))
        });
        passing.boxed()
    }
}

fn len(bytes: &Bytes) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

impl<R: Repository> Around for Limited<R> {
    fn inner(&self) -> &dyn Repository {
        &self.inner
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.open(blob, range, Purpose::Demand))
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.open(blob, range, Purpose::Ahead))
    }

    fn pace(&self) -> Pace {
        let (found, most) = (self.pacer.pace(), self.inner.pace());
        Pace {
            requests: found.requests.min(most.requests),
            small: found.small.min(most.small),
            bytes: found.bytes.min(most.bytes),
            ahead: found.ahead.min(most.ahead),
            window: found.window.min(most.window),
        }
    }
}
