//! What a process knows of one file's content: digests seen, chunks here, its files in the store, its readers.
//!
//! Called by the loader and the prover. Blocking where it opens or reads files of the store; each function says so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::buffer::Pool;
use super::grid::Grid;
use super::prefetch::stream::{Plan, Streams};
use super::prefetch::tensors::Tensors;
use super::store::Store;
use super::store::kept::{KeptFile, Recorded};
use super::verify::{ChunkDigest, Verified};
use crate::index::ExtentId;
use crate::oci::Digest;
use crate::range::ContentRange;

/// After a failure of the store it is left alone for so long.
const PAUSE: Duration = Duration::from_secs(30);

/// One file's content.
#[derive(Debug)]
pub(super) struct Extent {
    pub(super) id: ExtentId,
    /// The file's path, for messages and for what its name says about it.
    pub(super) path: String,
    pub(super) layer: Digest,
    /// Where it lies in its layer's content.
    pub(super) range: ContentRange,
    pub(super) grid: Grid,
    digests: Mutex<HashMap<u64, ChunkDigest>>,
    /// Held while files are opened, so never taken by who may not block.
    files: Mutex<Files>,
    readers: Mutex<Readers>,
}

#[derive(Debug, Default)]
struct Files {
    kept: Option<Arc<KeptFile>>,
    /// Chunks not in the store when it was last looked at, less those kept since; `None`: look.
    missing: Option<u64>,
    last_use: Option<Instant>,
    paused: Option<Instant>,
}

#[derive(Debug, Default)]
struct Readers {
    streams: Streams,
    tensors: TensorMap,
}

#[derive(Debug, Default)]
enum TensorMap {
    #[default]
    Unasked,
    Asked,
    Found(Arc<Tensors>),
}

impl Extent {
    pub(super) fn new(id: ExtentId, path: String, layer: Digest, range: ContentRange) -> Self {
        Self {
            id,
            path,
            layer,
            range,
            grid: Grid::new(range.len()),
            digests: Mutex::default(),
            files: Mutex::default(),
            readers: Mutex::default(),
        }
    }

    /// Where the chunk lies in the layer's content.
    pub(super) fn content(&self, chunks: &std::ops::Range<u64>) -> ContentRange {
        let start = self.range.start().saturating_add(self.grid.range(chunks.start).start());
        let end = self.range.start().saturating_add(self.grid.range(chunks.end.saturating_sub(1)).end());
        ContentRange::new(start, end)
    }

    /// Takes a read into account; what to load ahead of it.
    pub(super) fn observe(&self, range: ContentRange) -> Plan {
        let mut readers = self.readers.lock();
        let tensors = match &readers.tensors {
            TensorMap::Found(tensors) => Some(Arc::clone(tensors)),
            _ => None,
        };
        readers.streams.observe(range, self.grid.len(), tensors.as_deref())
    }

    /// Whether the caller shall look for the file's tensors: said once, of files that tell where theirs are.
    pub(super) fn wants_tensors(&self) -> bool {
        if ![".safetensors", ".gguf"].iter().any(|ending| self.path.ends_with(ending)) {
            return false;
        }
        let mut readers = self.readers.lock();
        let first = matches!(readers.tensors, TensorMap::Unasked);
        if first {
            readers.tensors = TensorMap::Asked;
        }
        first
    }

    /// Takes down where the file's tensors lie.
    pub(super) fn set_tensors(&self, tensors: Tensors) {
        self.readers.lock().tensors = TensorMap::Found(Arc::new(tensors));
    }

    /// The files in the store, opened (and made) where they are not open; `None` while the store fails. Blocks.
    pub(super) fn kept(&self, store: &Store) -> Option<Arc<KeptFile>> {
        let mut files = self.files.lock();
        files.last_use = Some(Instant::now());
        if let Some(kept) = files.kept.as_ref().filter(|kept| !kept.removed()) {
            return Some(Arc::clone(kept));
        }
        if files.paused.is_some_and(|since| since.elapsed() < PAUSE) {
            return None;
        }
        match store.file(&self.layer, self.range) {
            Ok(kept) => {
                *files = Files { kept: Some(Arc::new(kept)), last_use: files.last_use, ..Files::default() }
            }
            Err(error) => files.pause(&self.path, &error),
        }
        files.kept.clone()
    }

    /// The files in the store, if they are open now.
    pub(super) fn open_kept(&self) -> Option<Arc<KeptFile>> {
        self.files.lock().kept.clone()
    }

    /// Lets go of the files in the store where nobody uses them and nobody has for `idle`.
    pub(super) fn release_idle(&self, idle: Duration) {
        let mut files = self.files.lock();
        let unused = files.kept.as_ref().is_some_and(|kept| Arc::strong_count(kept) == 1);
        if unused && files.last_use.is_none_or(|last| last.elapsed() >= idle) {
            *files = Files::default();
        }
    }

    /// Forgets the digests seen, for a layer whose bytes were found to be wrong.
    pub(super) fn forget(&self) {
        self.digests.lock().clear();
        *self.files.lock() = Files::default();
    }

    /// The digest the chunk must have, from this process or the store. Blocks where only the store knows.
    pub(super) fn digest(&self, chunk: u64, kept: Option<&KeptFile>) -> Option<ChunkDigest> {
        let seen = self.digests.lock().get(&chunk).copied();
        seen.or_else(|| kept.and_then(|kept| kept.digest(chunk)))
    }

    /// The chunk, if its bytes are what they must be; on first contact, what they are is what they must be.
    pub(super) fn verify(&self, chunk: u64, bytes: Bytes, kept: Option<&KeptFile>) -> Option<Verified> {
        let verified = Verified::check(bytes, self.digest(chunk, kept))?;
        self.agrees(chunk, &verified).then_some(verified)
    }

    /// Whether this process has seen the chunk with these bytes before, or sees it for the first time.
    fn agrees(&self, chunk: u64, verified: &Verified) -> bool {
        *self.digests.lock().entry(chunk).or_insert(verified.digest()) == verified.digest()
    }

    /// Keeps the chunk, where there is room; `false` where it could not be kept. Blocks.
    pub(super) fn keep(&self, chunk: u64, verified: &Verified, store: &Store) -> bool {
        let Some(kept) = self.kept(store) else { return false };
        if kept.has(chunk) {
            return true;
        }
        let room = store.budget().admit(verified.bytes().len() as u64);
        let outcome = if room.is_some() {
            kept.write(chunk, verified)
        } else {
            kept.record(chunk, verified.digest()).map(drop)
        };
        let mut files = self.files.lock();
        match outcome {
            Ok(()) => {
                files.missing =
                    files.missing.and_then(|missing| missing.checked_sub(u64::from(room.is_some())))
            }
            Err(error) => {
                files.pause(&self.path, &error);
                return false;
            }
        }
        room.is_some()
    }

    /// The chunk as the store has it, verified. Blocks.
    pub(super) fn read_kept(
        &self,
        chunk: u64,
        store: &Store,
        pool: &Pool,
        damaged: impl FnOnce(),
    ) -> Option<Verified> {
        let kept = self.kept(store)?;
        let forget = || {
            damaged();
            self.files.lock().missing = None;
        };
        // What this process saw before counts as well: both must agree.
        kept.read(chunk, pool, forget).filter(|verified| self.agrees(chunk, verified))
    }

    /// Whether every chunk is said to be in the store. Blocks, but looks at the disk only where it must.
    pub(super) fn complete(&self, store: &Store) -> bool {
        let Some(kept) = self.kept(store) else { return false };
        let mut files = self.files.lock();
        if files.missing.is_none_or(|missing| missing == 0) {
            let missing = kept.all().into_iter().filter(|here| !here).count();
            files.missing = Some(missing as u64);
        }
        files.missing == Some(0)
    }

    /// As [`complete`](Self::complete), after looking at what other processes have kept meanwhile.
    pub(super) fn complete_by_now(&self, store: &Store) -> bool {
        self.files.lock().missing = None;
        self.complete(store)
    }

    /// Takes down the digests seen where the store has none, so that a proof holds for the next process too.
    pub(super) fn record_digests(&self, store: &Store) -> bool {
        let Some(kept) = self.kept(store) else { return false };
        (0..self.grid.chunks()).all(|chunk| {
            let seen = self.digests.lock().get(&chunk).copied();
            seen.is_none_or(|seen| kept.record(chunk, seen).is_ok_and(|found| found != Recorded::Differs))
        })
    }
}

impl Files {
    fn pause(&mut self, path: &str, error: &std::io::Error) {
        tracing::warn!(path, %error, "the store fails; going on without keeping for a while");
        *self = Self { paused: Some(Instant::now()), ..Self::default() };
    }
}
