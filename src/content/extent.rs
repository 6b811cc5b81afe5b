//! What a process knows of one file's content: digests seen, chunks here, its files in the store, its readers.
//!
//! Called by the loader and the prover. Blocking where it opens or reads files of the store; each function says so.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::bound::Digests;
use super::instant::Trial;
use super::prefetch::stream::{Onward, Plan, Reach, Streams};
use super::prefetch::tensors::Tensors;
use super::scatter::Scatter;
use super::shelf::Shelf;
use super::store::kept::{KeptFile, Recorded};
use super::verify::{Hashed, Verified, bytes_of};
use crate::buffer::Pool;
use crate::index::ChunkDigest;
use crate::index::ExtentId;
use crate::index::Grid;
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
    /// What names its layer in the store.
    pub(super) layer: Digest,
    /// Where it lies in its layer's content.
    pub(super) range: ContentRange,
    pub(super) grid: Grid,
    /// What its chunks must be, where the artifact says so; then nothing else counts, and the next field is empty.
    bound: Option<Digests>,
    digests: Mutex<HashMap<u64, Known>>,
    /// Held while files are opened, so never taken by who may not block.
    files: Mutex<Files>,
    readers: Mutex<Readers>,
    scatter: Mutex<Scatter>,
    /// Whether the image is worth asking for in the page cache.
    pub(super) trial: Trial,
    /// Whether the kept files were sealed when this process looked last.
    sealed: AtomicBool,
}

/// What a chunk's bytes must be.
#[derive(Clone, Copy, Debug)]
struct Known {
    digest: ChunkDigest,
    /// Whether this process has had such bytes in its hands, or knows of them from the store only.
    seen: bool,
    /// Whether they were found right by digests that the manifest pins.
    vouched: bool,
}

#[derive(Debug, Default)]
struct Files {
    kept: Weak<KeptFile>,
    /// Whether the digests on record are those of a proved layer, or of a bound one.
    vouched: bool,
    /// Chunks not in the store when it was last looked at, less those kept since; `None`: look.
    missing: Option<u64>,
    /// When the files could last not be opened.
    failed: Option<Instant>,
    /// When a chunk could last not be written.
    refused: Option<Instant>,
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
    pub(super) fn new(
        id: ExtentId,
        path: String,
        layer: Digest,
        range: ContentRange,
        bound: Option<Digests>,
    ) -> Self {
        Self {
            id,
            path,
            layer,
            range,
            grid: Grid::new(range.len()),
            bound,
            digests: Mutex::default(),
            files: Mutex::default(),
            readers: Mutex::default(),
            scatter: Mutex::default(),
            trial: Trial::default(),
            sealed: AtomicBool::new(false),
        }
    }

    /// Where the chunk lies in the layer's content.
    pub(super) fn content(&self, chunks: &std::ops::Range<u64>) -> ContentRange {
        let start = self.range.start().saturating_add(self.grid.range(chunks.start).start());
        let end = self.range.start().saturating_add(self.grid.range(chunks.end.saturating_sub(1)).end());
        ContentRange::new(start, end)
    }

    /// Takes a read into account; what to load ahead of it, within `reach`.
    pub(super) fn observe(&self, range: ContentRange, reach: Reach) -> Plan {
        let mut readers = self.readers.lock();
        readers.streams.reach = reach;
        let tensors = match &readers.tensors {
            TensorMap::Found(tensors) => Some(Arc::clone(tensors)),
            _ => None,
        };
        readers.streams.observe(range, self.grid.len(), tensors.as_deref())
    }

    /// Takes down that the reader of the file before this one is about to go on here.
    pub(super) fn expect(&self, onward: Onward) {
        self.readers.lock().streams.expect(onward, self.grid.len());
    }

    /// Whether somebody has read it, or is about to come to it.
    pub(super) fn is_led(&self) -> bool {
        self.readers.lock().streams.is_led()
    }

    /// Takes what came for the page cache into account; whether it may be declined. What becomes of it is to be said then.
    pub(super) fn observe_wish(&self, range: ContentRange) -> bool {
        self.scatter.lock().observe(range)
    }

    /// Takes down that what might have been declined is answered.
    pub(super) fn grant_wish(&self, range: ContentRange) {
        self.scatter.lock().grant(range);
    }

    /// Takes down that it is declined; `false` where that is not right any more.
    pub(super) fn decline_wish(&self, range: ContentRange) -> bool {
        self.scatter.lock().decline(range)
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

    /// Takes down where the file's tensors lie; what to load now that it is known.
    pub(super) fn set_tensors(&self, tensors: Tensors) -> Plan {
        let mut readers = self.readers.lock();
        let plan = readers.streams.learn(self.grid.len(), &tensors);
        readers.tensors = TensorMap::Found(Arc::new(tensors));
        plan
    }

    /// Whether the artifact itself says what its chunks must be.
    pub(super) fn is_bound(&self) -> bool {
        self.bound.is_some()
    }

    /// What every chunk must be by the bound index; `None` where there is none, or its section is not here.
    pub(super) fn bound_digests(&self) -> Option<Vec<ChunkDigest>> {
        let digests = self.bound.as_ref()?.all()?;
        Some(digests.as_chunks::<32>().0.iter().copied().map(ChunkDigest::recorded).collect())
    }

    /// The files in the store, opened (and made) where they are not open; `None` while the store fails. Those of a bound
    /// layer have the right digests on record once the section is here. Blocks.
    pub(super) fn kept(&self, shelf: &Shelf) -> Option<Arc<KeptFile>> {
        let mut files = self.files.lock();
        let kept = self.opened(&mut files, shelf)?;
        let digests = self.bound.as_ref().filter(|_| !files.vouched).and_then(Digests::all);
        let Some(digests) = digests else { return Some(kept) };
        match kept.hold_to(&digests) {
            Ok(()) => {
                files.vouched = true;
                Some(kept)
            }
            Err(error) => {
                let path = &self.path;
                shelf.store.complain(
                    &error,
                    format_args!("the store fails for {path}; going on without it for a while"),
                );
                *files = Files { failed: Some(Instant::now()), ..Files::default() };
                None
            }
        }
    }

    fn opened(&self, files: &mut Files, shelf: &Shelf) -> Option<Arc<KeptFile>> {
        if let Some(kept) = files.kept.upgrade().filter(|kept| !kept.removed()) {
            kept.touch();
            return Some(kept);
        }
        if files.failed.is_some_and(|since| since.elapsed() < PAUSE) {
            return None;
        }
        match shelf.file(&self.layer, self.range) {
            Ok(kept) => {
                files.vouched = false;
                (files.missing, files.failed) = (None, None);
                files.kept = Arc::downgrade(&kept);
                Some(kept)
            }
            Err(error) => {
                let path = &self.path;
                shelf.store.complain(
                    &error,
                    format_args!("the store fails for {path}; going on without it for a while"),
                );
                files.failed = Some(Instant::now());
                None
            }
        }
    }

    /// The files in the store, if they are open now and still in their folder: the marks of those that were removed name
    /// chunks that nobody will find. Does not count as a use.
    pub(super) fn open_kept(&self) -> Option<Arc<KeptFile>> {
        self.files.lock().kept.upgrade().filter(|kept| !kept.removed())
    }

    /// The files in the store, if they are open and nobody is opening them; never waits, and does not count as a use.
    pub(super) fn kept_now(&self) -> Option<Arc<KeptFile>> {
        self.files.try_lock()?.kept.upgrade()
    }

    /// Whether the digests on record are those of a proved layer; they are taken over then, all of them. Looks again while
    /// they are not: another process may have proved the layer since. Blocks.
    pub(super) fn vouched(&self, kept: &KeptFile) -> bool {
        let vouched = self.files.lock().vouched;
        if vouched || self.is_bound() {
            return vouched;
        }
        let vouched = kept.vouched();
        if vouched {
            (0..self.grid.chunks()).for_each(|chunk| self.learn(chunk, kept));
            self.files.lock().vouched = true;
        }
        vouched
    }

    /// Takes down whether the kept files are sealed.
    pub(super) fn note_sealed(&self, sealed: bool) {
        self.sealed.store(sealed, Ordering::Relaxed);
    }

    /// Whether the kept files were sealed when this process looked last.
    pub(super) fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Relaxed)
    }

    /// Looks whether files that were found sealed are so still: another process may have found out otherwise. Blocks.
    pub(super) fn check_seal(&self) {
        if self.is_sealed() && self.open_kept().is_some_and(|kept| !kept.sealed()) {
            self.note_sealed(false);
        }
    }

    /// Forgets what the store said and has, for a layer whose bytes there are not to be relied on any more.
    pub(super) fn forget(&self) {
        self.digests.lock().retain(|_, known| known.seen);
        *self.files.lock() = Files::default();
        self.note_sealed(false);
    }

    /// Forgets what the manifest does not pin of what this process has had in its hands.
    pub(super) fn keep_vouched(&self) {
        self.digests.lock().retain(|_, known| known.vouched);
    }

    /// Whether this process has had the chunk in its hands.
    pub(super) fn seen(&self, chunk: u64) -> bool {
        self.digests.lock().get(&chunk).is_some_and(|known| known.seen)
    }

    /// Takes down that the chunk as it is known is what the manifest pins.
    pub(super) fn vouch_for(&self, chunk: u64) {
        if let Some(known) = self.digests.lock().get_mut(&chunk) {
            known.vouched = true;
        }
    }

    /// Whether what the chunk must be is known to be what the manifest pins.
    pub(super) fn is_vouched_for(&self, chunk: u64) -> bool {
        self.digests.lock().get(&chunk).is_some_and(|known| known.vouched)
    }

    /// Whether this process has had any chunk in its hands.
    pub(super) fn touched(&self) -> bool {
        self.digests.lock().values().any(|known| known.seen)
    }

    /// Whether a digest is known that the chunk must have.
    pub(super) fn knows(&self, chunk: u64) -> bool {
        match &self.bound {
            Some(bound) => bound.of(chunk).is_some(),
            None => self.digests.lock().contains_key(&chunk),
        }
    }

    /// Takes over the digest that the store has on record for the chunk, unless one is known. Blocks.
    pub(super) fn learn(&self, chunk: u64, kept: &KeptFile) {
        if self.is_bound() || self.knows(chunk) {
            return;
        }
        if let Some(digest) = kept.digest(chunk) {
            self.digests.lock().entry(chunk).or_insert(Known { digest, seen: false, vouched: false });
        }
    }

    /// Takes over what all chunks must be, 32 bytes each, as it was found when the layer was proved; `false` where this process has
    /// had other bytes in its hands.
    pub(super) fn know(&self, found: &[u8]) -> bool {
        let mut digests = self.digests.lock();
        (0..).zip(found.as_chunks::<32>().0).all(|(chunk, found)| {
            let digest = ChunkDigest::recorded(*found);
            let known = digests.entry(chunk).or_insert(Known { digest, seen: false, vouched: false });
            if !known.seen {
                known.digest = digest;
            }
            known.digest == digest
        })
    }

    /// Makes these digests, which [`know`](Self::know) has taken over, those on record. Where that fails, what is kept counts for
    /// nothing and is fetched again. Blocks.
    pub(super) fn hold_to(&self, kept: &KeptFile, digests: &[u8]) {
        self.files.lock().vouched = kept.hold_to(digests).is_ok();
    }

    /// The chunk, if its bytes are what they must be; on first contact, what they are is what they must be.
    pub(super) fn verify(&self, chunk: u64, bytes: impl Into<Hashed>) -> Option<Verified> {
        let known = match &self.bound {
            Some(bound) => Some(bound.of(chunk)?),
            None => self.digests.lock().get(&chunk).map(|known| known.digest),
        };
        Verified::check(bytes, known).filter(|verified| self.agrees(chunk, verified))
    }

    /// Whether the chunk has had these bytes all along, as far as is known; they count as seen then.
    fn agrees(&self, chunk: u64, verified: &Verified) -> bool {
        if let Some(bound) = &self.bound {
            return bound.of(chunk) == Some(verified.digest());
        }
        let mut digests = self.digests.lock();
        let known =
            digests.entry(chunk).or_insert(Known { digest: verified.digest(), seen: true, vouched: false });
        let agrees = known.digest == verified.digest();
        known.seen |= agrees;
        agrees
    }

    /// Whether all chunks that this process has had in its hands are on record with the same digests. Blocks.
    pub(super) fn agrees_with(&self, kept: &KeptFile) -> bool {
        let seen: Vec<_> = self
            .digests
            .lock()
            .iter()
            .filter(|(_, known)| known.seen)
            .map(|(chunk, known)| (*chunk, *known))
            .collect();
        seen.into_iter().all(|(chunk, known)| kept.digest(chunk) == Some(known.digest))
    }

    /// Keeps neighbouring chunks from `first` on, as far as there is room for them; gives how many of their bytes are kept. Blocks.
    pub(super) fn keep(&self, first: u64, run: &[Verified], shelf: &Shelf) -> u64 {
        let Some(kept) = self.kept(shelf) else { return 0 };
        let len = bytes_of(run);
        let chunks = first..first.saturating_add(run.len() as u64);
        if kept.among(chunks).into_iter().all(|here| here) {
            return len;
        }
        if self.files.lock().refused.is_some_and(|since| since.elapsed() < PAUSE) {
            return 0;
        }
        let room = shelf.store.budget().admit(len);
        let outcome = match (&room, run) {
            (Some(_), _) => kept.write(first, run).map(|written| (written, len)),
            (None, [alone]) => kept.record(first, alone.digest()).map(|_| (0, 0)),
            // There may be some for one of them.
            (None, _) => {
                let alone = |(chunk, verified)| self.keep(chunk, std::slice::from_ref(verified), shelf);
                return (first..).zip(run).map(alone).sum();
            }
        };
        drop(room);
        let mut files = self.files.lock();
        match outcome {
            Ok((written, kept)) => {
                files.missing = files.missing.and_then(|missing| missing.checked_sub(written));
                kept
            }
            Err(error) => {
                let path = &self.path;
                shelf.store.complain(&error, format_args!("nothing more of {path} is kept for a while"));
                files.refused = Some(Instant::now());
                // Some of them may be here.
                files.missing = None;
                0
            }
        }
    }

    /// The chunk as the store has it, verified. Blocks.
    pub(super) fn read_kept(
        &self,
        chunk: u64,
        kept: &KeptFile,
        pool: &Pool,
        damaged: impl FnOnce(),
    ) -> Option<Verified> {
        if self.is_bound() && !self.knows(chunk) {
            return None;
        }
        let wrong = Cell::new(false);
        let found = kept.read(chunk, pool, || wrong.set(true));
        // What this process saw before, or what the artifact says, counts as well: both must agree.
        let agreed = found.as_ref().is_none_or(|found| self.agrees(chunk, found));
        if !agreed && self.is_bound() {
            // Somebody else has put both there, the bytes and their digest.
            kept.forget(chunk);
            wrong.set(true);
        }
        if wrong.get() {
            damaged();
            let mut files = self.files.lock();
            files.missing = None;
            // The records of a bound layer are written again.
            files.vouched &= !self.is_bound();
        }
        found.filter(|_| agreed)
    }

    /// Whether every chunk is said to be in the store. Blocks, but looks at the disk only where it must.
    pub(super) fn complete(&self, shelf: &Shelf) -> bool {
        let Some(kept) = self.kept(shelf) else { return false };
        self.none_missing(&kept)
    }

    /// As [`complete`](Self::complete), of files that are open, after looking at what other processes have kept
    /// meanwhile; does not count as a use.
    pub(super) fn complete_by_now(&self) -> bool {
        let Some(kept) = self.open_kept() else { return false };
        self.files.lock().missing = None;
        self.none_missing(&kept)
    }

    fn none_missing(&self, kept: &KeptFile) -> bool {
        let mut files = self.files.lock();
        if files.missing.is_none_or(|missing| missing == 0) {
            let missing = kept.all().into_iter().filter(|here| !here).count();
            files.missing = Some(missing as u64);
        }
        files.missing == Some(0)
    }

    /// Sees to it that every chunk's digest is on record, and vouches for the records: for a layer just proved.
    /// `false` where the store fails. Blocks.
    pub(super) fn vouch(&self, shelf: &Shelf) -> bool {
        let Some(kept) = self.kept(shelf) else { return false };
        let digests: Vec<_> =
            self.digests.lock().iter().map(|(chunk, known)| (*chunk, known.digest)).collect();
        let recorded = |(chunk, digest): (u64, ChunkDigest)| {
            kept.record(chunk, digest).is_ok_and(|found| found != Recorded::Differs)
        };
        let vouched = digests.into_iter().all(recorded) && kept.vouch().is_ok();
        self.files.lock().vouched = vouched;
        vouched
    }
}
