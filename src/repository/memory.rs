//! A repository in memory, for tests and benches of the floors above.
//!
//! Not a cache. It counts what is asked of it, and it can be told to fail, to hold reads back and to serve
//! wrong bytes, so that a test needs neither a server nor a clock.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};

use super::{ByteStream, Pace, Pinned, Repository, referrers};
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Descriptor, Digest, Which};
use crate::range::StoredRange;

/// One that has nothing, for what a test puts [around](super::around) it.
#[cfg(test)]
pub(crate) fn nothing() -> &'static Memory {
    static NOTHING: std::sync::LazyLock<Memory> = std::sync::LazyLock::new(Memory::new);
    &NOTHING
}

type Failure = Arc<dyn Fn(&Blob, StoredRange) -> Option<Error> + Send + Sync>;

/// The size of a stream's items, so that readers meet more than one.
const PIECE: u64 = 256 << 10;

/// Blobs and manifests in memory.
pub struct Memory {
    state: Mutex<State>,
    requests: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    blobs: HashMap<Digest, Bytes>,
    manifests: HashMap<Digest, (String, Bytes)>,
    tags: HashMap<String, Digest>,
    ranges: Vec<(Digest, StoredRange)>,
    failure: Option<Failure>,
    gate: Option<Arc<Semaphore>>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { state: Mutex::default(), requests: watch::Sender::new(0) }
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("requests", &self.requests()).finish_non_exhaustive()
    }
}

impl Memory {
    /// Nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps `bytes` as a blob and says what to ask for.
    pub fn put(&self, bytes: impl Into<Bytes>) -> Blob {
        let bytes = bytes.into();
        let blob = Blob { digest: Digest::of(&bytes), size: bytes.len().try_into().unwrap_or(u64::MAX) };
        self.state.lock().blobs.insert(blob.digest.clone(), bytes);
        blob
    }

    /// Keeps `bytes` as a manifest under its digest and under `tag`.
    pub fn put_manifest(&self, tag: &str, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let mut state = self.state.lock();
        state.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        state.tags.insert(tag.to_owned(), digest.clone());
        digest
    }

    /// Serves `bytes` under the digest of others from now on.
    pub fn replace(&self, digest: &Digest, bytes: impl Into<Bytes>) {
        self.state.lock().blobs.insert(digest.clone(), bytes.into());
    }

    /// Asks `failure` before every read of a blob; the error it gives is the answer.
    pub fn fail_with(&self, failure: impl Fn(&Blob, StoredRange) -> Option<Error> + Send + Sync + 'static) {
        self.state.lock().failure = Some(Arc::new(failure));
    }

    /// From now on each read of a blob waits for a permit of the semaphore and uses it up; it has none yet.
    /// Closing the semaphore opens the gate for good.
    pub fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.state.lock().gate = Some(gate.clone());
        gate
    }

    /// How many reads of blobs, empty ones left out, have been asked for.
    #[must_use]
    pub fn requests(&self) -> u64 {
        *self.requests.borrow()
    }

    /// Waits until `count` reads of blobs have been asked for, whether or not they were answered.
    pub async fn requested(&self, count: u64) {
        // The sender lives as long as `self`, so that waiting can't fail.
        let _ = self.requests.subscribe().wait_for(|seen| *seen >= count).await;
    }

    /// How many bytes of blobs have been asked for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state.lock().ranges.iter().map(|(_, range)| range.len()).sum()
    }

    /// Every range asked for, in order.
    #[must_use]
    pub fn ranges(&self) -> Vec<(Digest, StoredRange)> {
        self.state.lock().ranges.clone()
    }

    fn find(&self, which: &Which) -> Result<Pinned> {
        let state = self.state.lock();
        let digest = match which {
            Which::Digest(digest) => Some(digest),
            Which::Tag(tag) => state.tags.get(tag),
        };
        let found = digest.and_then(|digest| state.manifests.get_key_value(digest));
        let Some((digest, (media_type, bytes))) = found else {
            return Err(Error::new(Kind::NotFound, format!("no manifest {which} in memory")));
        };
        if !digest.matches(bytes) {
            return Err(Error::new(Kind::Integrity, format!("the manifest {digest} in memory is another")));
        }
        Ok(Pinned { digest: digest.clone(), media_type: media_type.clone(), bytes: bytes.clone() })
    }

    fn referring(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>> {
        let state = self.state.lock();
        let all = state
            .manifests
            .values()
            .filter(|(_, bytes)| referrers::subject_of(bytes).as_ref() == Some(subject));
        let list = all.map(|(media_type, bytes)| (media_type.as_str(), bytes));
        let mut index = Vec::new();
        for (media_type, bytes) in list {
            index = referrers::with(&index, media_type, bytes)?.unwrap_or(index);
        }
        if index.is_empty() { Ok(Vec::new()) } else { referrers::of_type(&index, artifact_type) }
    }

    async fn answer(&self, blob: &Blob, range: StoredRange) -> Result<ByteStream> {
        super::inside(blob, range)?;
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        self.pass_gate(blob, range).await;
        let failure = self.state.lock().failure.clone();
        if let Some(error) = failure.and_then(|failure| failure(blob, range)) {
            return Err(error);
        }
        let bytes = self.state.lock().blobs.get(&blob.digest).cloned();
        let missing = || Error::new(Kind::NotFound, format!("no blob {} in memory", blob.digest));
        slices(blob, &bytes.ok_or_else(missing)?, range)
    }

    async fn pass_gate(&self, blob: &Blob, range: StoredRange) {
        let gate = {
            let mut state = self.state.lock();
            state.ranges.push((blob.digest.clone(), range));
            state.gate.clone()
        };
        self.requests.send_modify(|count| *count += 1);
        if let Some(gate) = gate
            && let Ok(permit) = gate.acquire().await
        {
            permit.forget();
        }
    }
}

fn slices(blob: &Blob, bytes: &Bytes, range: StoredRange) -> Result<ByteStream> {
    let short = || Error::new(Kind::Broken, format!("{} ends before byte {}", blob.digest, range.end()));
    let start = usize::try_from(range.start()).map_err(|_| short())?;
    let end = usize::try_from(range.end()).map_err(|_| short())?;
    if end > bytes.len() {
        return Err(short());
    }
    let piece = usize::try_from(PIECE).unwrap_or(usize::MAX);
    let bytes = bytes.slice(start..end);
    let starts = (0..bytes.len()).step_by(piece);
    let pieces: Vec<_> =
        starts.map(|at| Ok(bytes.slice(at..bytes.len().min(at.saturating_add(piece))))).collect();
    Ok(stream::iter(pieces).boxed())
}

impl Repository for Memory {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        Box::pin(async move { self.find(which) })
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.answer(blob, range))
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.read(blob, range)
    }

    fn pace(&self) -> Pace {
        Pace::default()
    }

    fn distrust(&self, _: &Blob) {}

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        Box::pin(async move { self.referring(subject, artifact_type) })
    }

    fn place(&self) -> String {
        "memory".to_owned()
    }

    fn identity(&self) -> String {
        "memory".to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::read_all;

    #[tokio::test]
    async fn a_read_waits_at_the_gate_until_it_is_let_through() {
        let memory = Arc::new(Memory::new());
        let blob = memory.put(&b"0123456789"[..]);
        let gate = memory.gate();
        let reader = tokio::spawn({
            let (memory, blob) = (memory.clone(), blob.clone());
            async move { read_all(&*memory, &blob, StoredRange::new(2, 5)).await }
        });
        memory.requested(1).await;
        assert!(!reader.is_finished());
        gate.add_permits(1);
        assert_eq!(reader.await.unwrap().unwrap(), &b"234"[..]);
        assert_eq!(memory.ranges(), [(blob.digest, StoredRange::new(2, 5))]);
    }

    #[tokio::test]
    async fn replaced_bytes_are_served_under_the_old_digest() {
        let memory = Memory::new();
        let blob = memory.put(&b"right"[..]);
        memory.replace(&blob.digest, &b"wrong"[..]);
        assert_eq!(read_all(&memory, &blob, StoredRange::new(0, 5)).await.unwrap(), &b"wrong"[..]);
    }

    #[tokio::test]
    async fn the_failure_asked_for_is_the_answer() {
        let memory = Memory::new();
        let blob = memory.put(&b"x"[..]);
        memory.fail_with(|_, _| Some(Error::new(Kind::Denied, "no")));
        let error = read_all(&memory, &blob, StoredRange::new(0, 1)).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
    }
}
