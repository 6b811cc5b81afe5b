//! Proves layers: the manifest's digest over the layer's bytes, on a thread of its own.
//!
//! What arrives in order is hashed as it comes, from the memory the readers are given. What came out of order is
//! read back once, from the store, when the rest is here. Nobody who reads ever waits for it, and it runs only
//! where no stronger proof exists. A proved file is then sealed, so that the kernel may have it; what of it this process did
//! not write itself is read back before.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

use super::Sealing;
use super::extent::Extent;
use super::loader::{Loader, Standing};
use super::store::kept::KeptFile;
use super::verify::Verified;
use crate::index::{CHUNK, Coding, ExtentId, Layer};
use crate::oci::digest::Hasher;
use crate::range::{ContentRange, StoredRange};

/// How far is looked for other gaps that are asked for along with one: 64 KiB, as where headers are read.
const NEAR: u64 = 64 << 10;
/// How many chunks may wait to be hashed; a chunk beyond that is read back later.
const QUEUE: usize = 8;
/// A file that twice could not be sealed is left alone for so long: each attempt may read all of it.
const RETRY: Duration = Duration::from_secs(30);

/// The way to the proving thread.
#[derive(Debug, Default)]
pub(super) struct Prover {
    tasks: OnceLock<Sender<Task>>,
    queued: Arc<AtomicUsize>,
    hashed: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug)]
enum Task {
    Arrived(ExtentId, u64, Bytes),
    Check(usize),
    Seal(ExtentId),
}

impl Prover {
    /// Starts the thread. It ends with [`stop`](Self::stop), or when the loader is gone.
    pub(super) fn start(&self, loader: &Arc<Loader>) {
        let (sender, tasks) = channel();
        let proving = Proving {
            loader: Arc::downgrade(loader),
            runtime: tokio::runtime::Handle::current(),
            queued: Arc::clone(&self.queued),
            counted: Arc::clone(&self.hashed),
            seals: BTreeSet::new(),
            last_seal: None,
            unsealed: HashMap::new(),
            stopped: Arc::clone(&self.stopped),
            hashed: HashMap::new(),
        };
        let thread = std::thread::Builder::new().name("prove".into()).spawn(move || proving.run(&tasks));
        match thread {
            Ok(thread) => {
                *self.thread.lock() = Some(thread);
                drop(self.tasks.set(sender));
            }
            Err(error) => tracing::error!(%error, "no thread to prove layers with: none will be proved"),
        }
    }

    /// Offers a verified chunk that has just come; it is passed over where the thread is behind.
    pub(super) fn arrived(&self, id: ExtentId, chunk: u64, bytes: &Bytes) {
        if self.queued.load(Ordering::Relaxed) < QUEUE {
            self.queued.fetch_add(1, Ordering::Relaxed);
            self.send(Task::Arrived(id, chunk, bytes.clone()));
        }
    }

    /// Asks to prove a layer whose content is all in the store.
    pub(super) fn check(&self, layer: usize) {
        self.send(Task::Check(layer));
    }

    /// Asks to seal a complete file of a proved layer.
    pub(super) fn seal(&self, id: ExtentId) {
        self.send(Task::Seal(id));
    }

    /// How many bytes were hashed so far, for who waits for a proof to see that it gets on.
    pub(super) fn hashed(&self) -> u64 {
        self.hashed.load(Ordering::Relaxed)
    }

    /// Ends the thread, within a chunk's time, and gives it to be waited for.
    pub(super) fn stop(&self) -> Option<JoinHandle<()>> {
        self.stopped.store(true, Ordering::Relaxed);
        // Wakes a thread that waits for a task; the layer does not exist.
        self.send(Task::Check(usize::MAX));
        self.thread.lock().take()
    }

    fn send(&self, task: Task) {
        if let Some(tasks) = self.tasks.get() {
            // Fails only when the thread has ended.
            let _ = tasks.send(task);
        }
    }
}

/// What lies at a place of a layer's content.
enum Piece<'a> {
    File(usize),
    Gap(ContentRange, Option<&'a Bytes>),
}

/// What lies between files, asked for anew: where it begins, and the bytes from there on.
#[derive(Default)]
struct Anew(u64, Bytes);

impl Anew {
    fn part(&self, range: ContentRange) -> Option<Bytes> {
        let start = usize::try_from(range.start().checked_sub(self.0)?).ok()?;
        let end = start.checked_add(usize::try_from(range.len()).ok()?)?;
        (end <= self.1.len()).then(|| self.1.slice(start..end))
    }
}

/// The thread's own state.
struct Proving {
    loader: Weak<Loader>,
    runtime: tokio::runtime::Handle,
    queued: Arc<AtomicUsize>,
    counted: Arc<AtomicU64>,
    stopped: Arc<AtomicBool>,
    /// Files to be read back and sealed when nothing else is to do: nobody waits for that.
    seals: BTreeSet<ExtentId>,
    /// The last of them, so that none is always behind others.
    last_seal: Option<ExtentId>,
    /// Those that came to nothing: how often, and when last.
    unsealed: HashMap<ExtentId, (u32, Instant)>,
    /// For each layer, the hash of its content so far, and how far that is.
    hashed: HashMap<usize, (Hasher, u64)>,
}

impl Proving {
    fn run(mut self, tasks: &Receiver<Task>) {
        while let Some(task) = self.next(tasks) {
            let Some(loader) = self.loader.upgrade() else { return };
            if self.stopped.load(Ordering::Relaxed) {
                return;
            }
            match task {
                Some(Task::Arrived(id, chunk, bytes)) => {
                    self.arrived(&loader, id, chunk, &bytes);
                    self.queued.fetch_sub(1, Ordering::Relaxed);
                }
                Some(Task::Check(layer)) => self.check(&loader, layer),
                Some(Task::Seal(id)) => self.want_seal(id),
                None => {
                    if let Some(id) = self.next_seal() {
                        self.try_seal(&loader, id);
                    }
                }
            }
        }
    }

    /// The next task; `None` inside where there is time to seal a file; `None` when there will be no more.
    fn next(&self, tasks: &Receiver<Task>) -> Option<Option<Task>> {
        if self.seals.is_empty() {
            return tasks.recv().ok().map(Some);
        }
        match tasks.try_recv() {
            Ok(task) => Some(Some(task)),
            Err(TryRecvError::Empty) => Some(None),
            Err(TryRecvError::Disconnected) => None,
        }
    }

    /// Hashes a chunk if it is the next of its layer.
    fn arrived(&mut self, loader: &Loader, id: ExtentId, chunk: u64, bytes: &Bytes) {
        let (Some(layer), Some(extent)) = (unproved(loader, id.layer), loader.extent(id)) else { return };
        if loader.is_doubted(id.layer) {
            // What lies between is asked for anew, when all is here.
            return;
        }
        let (mut hasher, mut at) = self.take(id.layer, layer);
        at = pass_gaps(layer, &mut hasher, at);
        if extent.content(&(chunk..chunk + 1)).start() == at {
            hasher.update(bytes);
            at = pass_gaps(layer, &mut hasher, at + bytes.len() as u64);
        }
        self.put(loader, id.layer, layer, hasher, at);
    }

    /// Hashes the rest of a layer from what is kept, as far as that goes.
    fn check(&mut self, loader: &Loader, number: usize) {
        if loader.standing(number) == Standing::Unproved && loader.spans_of(number).is_some() {
            return loader.not_proved(number);
        }
        let Some(layer) = unproved(loader, number) else { return };
        let (mut hasher, mut at) = self.take(number, layer);
        let mut anew = Anew::default();
        while at < layer.blob.size && !self.stopped.load(Ordering::Relaxed) {
            let Some(bytes) = self.piece_at(loader, number, layer, at, &mut anew) else { break };
            hasher.update(&bytes);
            at += bytes.len() as u64;
            self.counted.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        self.put(loader, number, layer, hasher, at);
        if at < layer.blob.size {
            // What else is damaged is found out now, so that all of it can be brought at once.
            for extent in loader.extents(number).filter(|extent| extent.range.end() > at) {
                for chunk in 0..extent.grid.chunks() {
                    let looked = loader.read_kept(extent, chunk).map_or(0, |found| found.bytes().len());
                    // Who waits for the proof sees that it gets on.
                    self.counted.fetch_add(looked as u64, Ordering::Relaxed);
                }
            }
            loader.not_proved(number);
        }
    }

    /// The layer's verified bytes from `at` on: up to a chunk, from memory or store, or a gap.
    fn piece_at(
        &self,
        loader: &Loader,
        number: usize,
        layer: &Layer,
        at: u64,
        anew: &mut Anew,
    ) -> Option<Bytes> {
        match piece_at(layer, at)? {
            Piece::File(extent) => {
                let extent = loader.extent(ExtentId { layer: number, extent })?;
                let chunk = (at - extent.range.start()) / CHUNK;
                let fresh = loader.board.peek((extent.id, chunk));
                fresh.or_else(|| Some(loader.read_kept(extent, chunk)?.bytes().clone()))
            }
            Piece::Gap(range, _) if loader.is_doubted(number) => {
                let gap = ContentRange::new(at, range.end().min(at + CHUNK));
                self.gap_anew(loader, layer, gap, anew)
            }
            Piece::Gap(range, Some(bytes)) => {
                bytes.get(usize::try_from(at - range.start()).ok()?..).map(Bytes::copy_from_slice)
            }
            Piece::Gap(range, None) => self.fetch_gap(loader, layer, at, range.end().min(at + CHUNK)),
        }
    }

    /// A gap as the repository gives it now; those near by come along, since where files are small there are many.
    fn gap_anew(&self, loader: &Loader, layer: &Layer, gap: ContentRange, anew: &mut Anew) -> Option<Bytes> {
        if let Some(bytes) = anew.part(gap) {
            return Some(bytes);
        }
        let reach = gap.start().saturating_add(NEAR);
        let near = layer.gaps.partition_point(|gap| gap.range.end() <= reach);
        let last = near.checked_sub(1).and_then(|last| layer.gaps.get(last));
        let end = last.map_or(gap.end(), |last| last.range.end().max(gap.end()));
        *anew = Anew(gap.start(), self.fetch_gap(loader, layer, gap.start(), end)?);
        anew.part(gap)
    }

    fn fetch_gap(&self, loader: &Loader, layer: &Layer, at: u64, end: u64) -> Option<Bytes> {
        let range: StoredRange = layer.stored(ContentRange::new(at, end))?;
        let read = crate::repository::read_all(&*loader.repository, &layer.blob, range);
        self.runtime
            .block_on(read)
            .inspect_err(|error| tracing::warn!(%error, "cannot prove a layer yet"))
            .ok()
    }

    fn take(&mut self, number: usize, layer: &Layer) -> (Hasher, u64) {
        self.hashed.remove(&number).unwrap_or_else(|| (Hasher::new(layer.blob.digest.algorithm()), 0))
    }

    /// Decides, where the end is reached; else remembers how far the hash is.
    fn put(&mut self, loader: &Loader, number: usize, layer: &Layer, hasher: Hasher, at: u64) {
        if at < layer.blob.size {
            self.hashed.insert(number, (hasher, at));
            return;
        }
        let found = hasher.finish();
        match (found == layer.blob.digest, loader.binding(number).is_some()) {
            (true, false) => loader.set_proved(number),
            (true, true) => loader.note_paid(number),
            (false, false) => loader.poison(number, &format!("its bytes are {found}")),
            (false, true) => loader.doubt_index(number, &found),
        }
    }

    /// Takes a file up to be sealed, unless that came to nothing a little while ago: whoever opens it asks again. Once does not
    /// count: a chunk may just have been mended.
    fn want_seal(&mut self, id: ExtentId) {
        let may_be = |(tries, last): &(u32, Instant)| *tries < 2 || last.elapsed() >= RETRY;
        if self.unsealed.get(&id).is_none_or(may_be) {
            self.seals.insert(id);
        }
    }

    /// The file after the last one, in a circle.
    fn next_seal(&mut self) -> Option<ExtentId> {
        let after = |last| self.seals.range((Bound::Excluded(last), Bound::Unbounded)).next().copied();
        let next = self.last_seal.and_then(after).or_else(|| self.seals.first().copied())?;
        self.seals.remove(&next);
        self.last_seal = Some(next);
        Some(next)
    }

    fn try_seal(&mut self, loader: &Loader, id: ExtentId) {
        match self.seal(loader, id) {
            Ok(()) => drop(self.unsealed.remove(&id)),
            Err(error) => {
                let path = loader.extent(id).map_or("", |extent| &extent.path);
                tracing::warn!(path, %error, "cannot seal a complete file; it is tried again later");
                let tries = self.unsealed.get(&id).map_or(0, |(tries, _)| *tries);
                self.unsealed.insert(id, (tries.saturating_add(1), Instant::now()));
            }
        }
    }

    /// Declares a complete file of a proved layer whole, after reading back what this process did not write itself, unless
    /// somebody touches it meanwhile.
    fn seal(&self, loader: &Loader, id: ExtentId) -> io::Result<()> {
        let Some(extent) = loader.extent(id) else { return Ok(()) };
        let wanted = loader.config.sealing == Sealing::Soon && loader.is_settled(id.layer);
        if !wanted || !extent.complete(&loader.shelf) {
            return Ok(());
        }
        let Some(kept) = extent.kept(&loader.shelf) else { return Ok(()) };
        if kept.sealed() {
            if extent.vouched(&kept) {
                loader.note_sealed(extent);
            }
            return Ok(());
        }
        let seal = kept.prepare_seal()?;
        for chunk in kept.doubtful(&seal) {
            if self.stopped.load(Ordering::Relaxed) {
                return Ok(());
            }
            if loader.read_kept(extent, chunk).is_none() {
                return give_up(loader, extent, &kept, chunk);
            }
        }
        match kept.seal(seal) {
            // One was found to be damaged meanwhile; when it is here again the file is sealed.
            Err(_) if !extent.complete_by_now() => return Ok(()),
            sealed => sealed?,
        }
        if !kept.sealed() {
            return Err(io::Error::other("somebody touches it"));
        }
        loader.note_sealed(extent);
        Ok(())
    }
}

/// A chunk could not be read back: it is brought again, and then the file sealed. An error where it is said to be here all the same.
fn give_up(loader: &Loader, extent: &Extent, kept: &KeptFile, chunk: u64) -> io::Result<()> {
    if kept.has(chunk) {
        return Err(io::Error::other("what the store says of it cannot be relied on"));
    }
    loader.keep_again(extent, chunk);
    Ok(())
}

impl Loader {
    /// Keeps a chunk anew that the store had and has not any more, if it is still in memory: nobody who finds it there would. Then
    /// the file may be complete again. Blocks.
    fn keep_again(&self, extent: &Extent, chunk: u64) {
        let key = (extent.id, chunk);
        if let Some(verified) = self.board.peek(key).and_then(|bytes| extent.verify(chunk, bytes)) {
            self.keep(key, &verified);
        }
    }

    /// A chunk from the store, verified; counted. Blocks.
    pub(super) fn read_kept(&self, extent: &Extent, chunk: u64) -> Option<Verified> {
        self.read_from(extent, &*self.reliable(extent)?, chunk)
    }

    /// The same, from files that are known to be [`reliable`](Self::reliable).
    pub(super) fn read_from(&self, extent: &Extent, kept: &KeptFile, chunk: u64) -> Option<Verified> {
        let damaged = || {
            self.metrics.store_mismatches.add(1);
            tracing::warn!(path = extent.path, chunk, "a chunk of the store is damaged; it is fetched again");
        };
        let found = extent.read_kept(chunk, kept, &self.pool, damaged);
        self.metrics.store_reads.add(u64::from(found.is_some()));
        found
    }
}

/// The layer, if its digest is still to be found and can be by this thread: compressed ones are proved as they go by.
fn unproved(loader: &Loader, layer: usize) -> Option<&Layer> {
    let stored = |layer: &&Layer| matches!(layer.coding, Coding::Stored);
    loader.layer(layer).filter(stored).filter(|_| loader.is_to_be_proved(layer))
}

fn pass_gaps(layer: &Layer, hasher: &mut Hasher, mut at: u64) -> u64 {
    while let Some(Piece::Gap(range, Some(bytes))) = piece_at(layer, at) {
        let passed = usize::try_from(at - range.start()).ok().and_then(|from| bytes.get(from..));
        hasher.update(passed.unwrap_or_default());
        at = range.end();
    }
    at
}

fn piece_at(layer: &Layer, at: u64) -> Option<Piece<'_>> {
    let extent = layer.extents.partition_point(|range| range.end() <= at);
    if layer.extents.get(extent).is_some_and(|range| range.start() <= at) {
        return Some(Piece::File(extent));
    }
    let gap = layer.gaps.partition_point(|gap| gap.range.end() <= at);
    let gap = layer.gaps.get(gap).filter(|gap| gap.range.start() <= at)?;
    Some(Piece::Gap(gap.range, gap.bytes.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proving() -> Proving {
        Proving {
            loader: Weak::new(),
            runtime: tokio::runtime::Handle::current(),
            queued: Arc::default(),
            counted: Arc::default(),
            stopped: Arc::default(),
            seals: BTreeSet::new(),
            last_seal: None,
            unsealed: HashMap::new(),
            hashed: HashMap::new(),
        }
    }

    fn file(extent: usize) -> ExtentId {
        ExtentId { layer: 0, extent }
    }

    #[tokio::test]
    async fn files_are_sealed_in_turn_however_often_the_first_is_asked_for() {
        let mut proving = proving();
        (0..3).for_each(|extent| proving.want_seal(file(extent)));
        for extent in [0, 1, 2, 0] {
            assert_eq!(proving.next_seal(), Some(file(extent)));
            proving.want_seal(file(0));
        }
    }

    #[tokio::test]
    async fn a_file_that_twice_could_not_be_sealed_is_left_alone_for_a_while() {
        let mut proving = proving();
        proving.unsealed.insert(file(0), (1, Instant::now()));
        proving.want_seal(file(0));
        assert_eq!(proving.next_seal(), Some(file(0)));
        proving.unsealed.insert(file(0), (2, Instant::now()));
        proving.want_seal(file(0));
        assert_eq!(proving.next_seal(), None);
        proving.unsealed.insert(file(0), (2, Instant::now().checked_sub(RETRY).unwrap()));
        proving.want_seal(file(0));
        assert_eq!(proving.next_seal(), Some(file(0)));
    }
}
