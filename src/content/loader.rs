//! Answers reads of extents from memory, the store or the repository, whichever has the bytes first.
//!
//! The public face of the floor. How chunks are fetched is in `fetch`, what is loaded before it is asked for in `warm`, how
//! layers are proved in `prove`, what follows from it in `standing`, and what an open file holds in `whole`.
//! Floor 4 calls; nothing here knows files by name, save for messages.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::JoinSet;

use super::bound::{Binding, Refused};
use super::decoding::{Decoding, Desk};
use super::extent::Extent;
use super::flight::{Board, Flight, Place};
use super::headers;
use super::instant::Sums;
use super::keeper::Keeper;
use super::lanes::Lanes;
use super::owing;
use super::part::Parts;
use super::prove::Prover;
use super::shelf::Shelf;
use super::store::{GapsDigest, Store};
use super::stream::Stream;
use super::stream::turns::Turns;
use super::{Config, Integrity};
use crate::buffer::Pool;
use crate::error::{Error, Kind, Result};
use crate::index::{Allowance, CHUNK, EntryKind, ExtentId, Grid, Index, Layer, Proof};
use crate::metrics::Metrics;
use crate::range::ContentRange;
use crate::repository::{Pace, Repository};

/// A read waits a little longer than the repository tries, so that what fails it is the repository's own error.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// How many stored bytes of compressed layers wait for who reads beside them, at most.
const SPOOLED: u64 = 16 << 20;
/// How long the proving thread is waited for when the loader closes: the time of a chunk, mostly.
const LAST_WORK: Duration = Duration::from_secs(3);
/// How often the loader looks after what is idle and what other processes did.
const TEND: Duration = Duration::from_secs(1);

/// What is loaded before being asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Warm {
    /// Nothing: a read fetches the chunks it touches, no more.
    None,
    /// What engines read first, a window ahead of sequential readers, the rest of a file that is half read.
    #[default]
    Auto,
    /// As `Auto`, and then everything, in the background.
    All,
}

/// What is known of a layer's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Not complete yet, so not proved.
    Unproved,
    /// The layer's digest was proved over its bytes, on this node; or the manifest pins the digests of its chunks.
    Proved,
    /// The bytes are not what the manifest says: reads fail.
    Poisoned,
}

/// How much of an artifact is on this machine, in bytes of file content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Share {
    /// Here, in the store.
    pub kept: u64,
    /// In all.
    pub total: u64,
}

/// Answers reads. One per mount; cloned as an [`Arc`].
#[derive(Debug)]
pub struct Loader {
    pub(super) repository: Arc<dyn Repository>,
    pub(super) index: Arc<Index>,
    pub(super) shelf: Shelf,
    pub(super) config: Config,
    pub(super) metrics: Arc<Metrics>,
    pub(super) board: Board,
    pub(super) lanes: Lanes,
    /// How many processors there are.
    pub(super) cores: usize,
    pub(super) turns: Turns,
    pub(super) keeper: Keeper,
    pub(super) pool: Pool,
    pub(super) desk: Desk,
    pub(super) parts: Parts,
    pub(super) sums: Sums,
    pub(super) prover: Prover,
    pub(super) layers: Vec<Stratum>,
    pub(super) poisoned: Mutex<Poisoned>,
    pub(super) refused: Refused,
    /// Who is told of files that are sealed.
    pub(super) sealings: Mutex<Vec<mpsc::UnboundedSender<ExtentId>>>,
    /// The file that is read after each, where there is one; found out when it is first asked.
    pub(super) following: OnceLock<HashMap<ExtentId, ExtentId>>,
    /// Held by who looks for a file's tensors.
    pub(super) headers: tokio::sync::Mutex<()>,
    tasks: Mutex<JoinSet<()>>,
    /// Where the tasks run, whichever thread asks.
    runtime: tokio::runtime::Handle,
    pub(super) began: SystemTime,
}

/// A layer at work: its files and what is known of its bytes.
#[derive(Debug)]
pub(super) struct Stratum {
    /// Grows while the layer goes by for the first time; what is there stays where it is. Boxed, since there is room for 32 of
    /// them in each, and a model may have thousands of layers of one file.
    pub(super) extents: boxcar::Vec<Box<Extent>>,
    /// Of a compressed layer without an index: its going by.
    pub(super) stream: Option<Arc<Stream>>,
    pub(super) standing: watch::Sender<Standing>,
    /// Why it is poisoned, where that is not the fault of its bytes.
    pub(super) reason: OnceLock<Error>,
    /// Of a layer whose names were read from its headers: the digest of these.
    pub(super) gaps: Option<GapsDigest>,
    /// Of a bound layer: what binds it.
    pub(super) binding: Option<Binding>,
    /// Of a bound layer: whether its own digest is still to be found over its bytes.
    pub(super) owes: AtomicBool,
    /// Of a compressed layer: what is had and under way of its spans.
    pub(super) decoding: Decoding,
    /// Extents not known to be complete; `None`: not looked at yet.
    pub(super) incomplete: Mutex<Option<BTreeSet<usize>>>,
    /// Set once this mount may see what the store has of the layer.
    pub(super) admitted: OnceCell<()>,
    /// How many attempts to prove the layer came to nothing, because not all of it was here.
    pub(super) attempts: watch::Sender<u64>,
    /// When the last of them was.
    pub(super) tried: Mutex<Option<Instant>>,
}

#[derive(Debug, Default)]
pub(super) struct Poisoned {
    pub(super) layers: Vec<usize>,
    pub(super) told: Vec<mpsc::UnboundedSender<usize>>,
}

impl Loader {
    /// A loader of what `index` describes. Must be called within a tokio runtime: its tasks run there, and end
    /// with [`close`](Self::close).
    ///
    /// Costs one look at the store for each layer.
    pub fn new(
        repository: Arc<dyn Repository>,
        index: Arc<Index>,
        store: Arc<Store>,
        config: Config,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let shelf = Shelf { store, who: repository.identity() };
        let layers = strata(&index, &shelf, config.proof);
        let loader = Arc::new(Self {
            board: Board::new(config.memory.min(Pace::WINDOW)),
            lanes: Lanes::default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            turns: Turns::default(),
            keeper: Keeper::default(),
            pool: Pool::default(),
            desk: Desk::new((config.memory / 2).min(SPOOLED)),
            parts: Parts::default(),
            sums: Sums::default(),
            prover: Prover::default(),
            poisoned: Mutex::default(),
            refused: Refused::default(),
            sealings: Mutex::default(),
            following: OnceLock::new(),
            headers: tokio::sync::Mutex::default(),
            tasks: Mutex::default(),
            runtime: tokio::runtime::Handle::current(),
            began: SystemTime::now(),
            repository,
            index,
            shelf,
            config,
            metrics,
            layers,
        });
        loader.prover.start(&loader);
        for layer in 0..loader.layers.len() {
            loader.stand_by(layer);
            loader.recall_lie(layer);
        }
        loader.spawn(tend(Arc::downgrade(&loader)));
        loader
    }

    /// The bytes, if they are known to be right and in memory at this moment: ours where they lie in one chunk, or the page cache of
    /// the store's disk. Waits for nothing.
    ///
    /// `range` counts within the file. Counts as a read for the prefetch plan where it succeeds.
    pub fn ready(self: &Arc<Self>, id: ExtentId, range: ContentRange) -> Option<Bytes> {
        let extent = self.extent(id)?;
        let range = range.meet(ContentRange::new(0, extent.grid.len()));
        let part = self.fresh(extent, range).or_else(|| self.instant(extent, range))?;
        self.metrics.served_bytes.add(range.len());
        self.observe(extent, range);
        if extent.observe_wish(range) {
            extent.grant_wish(range);
        }
        Some(part)
    }

    fn fresh(&self, extent: &Extent, range: ContentRange) -> Option<Bytes> {
        let chunks = extent.grid.covering(range);
        if chunks.end.checked_sub(chunks.start) != Some(1) {
            return None;
        }
        // In this order: what is found in memory may be served if its layer may be after that.
        let bytes = self.board.peek((extent.id, chunks.start)).filter(|_| self.may_serve(extent.id.layer))?;
        cut(&bytes, extent.grid.range(chunks.start), range)
    }

    /// Whether what the kernel wishes to have in its page cache is better declined, so that it asks for the one page that somebody
    /// needs: it surrounds a fault of who reads at random, and not all of it is here or under way. Not said twice of any place.
    ///
    /// To be asked of each read that comes for the page cache and is not [`ready`](Self::ready), and of no other: who reads past it
    /// would be given the error. Only what lies in two chunks is ever declined, and that no reader alone can be waiting for: what the
    /// kernel reads for one, it reads by folios, whose size is a power of two that they are aligned to.
    pub async fn declines(self: &Arc<Self>, id: ExtentId, range: ContentRange) -> bool {
        let Some(extent) = self.extent(id) else { return false };
        let range = range.meet(ContentRange::new(0, extent.grid.len()));
        if !extent.observe_wish(range) {
            return false;
        }
        let declined = self.had_better_not(extent, range).await && extent.decline_wish(range);
        if !declined {
            extent.grant_wish(range);
        }
        declined
    }

    /// Whether what may be declined lies in two chunks, of which one would have to be fetched for it.
    async fn had_better_not(self: &Arc<Self>, extent: &Extent, range: ContentRange) -> bool {
        let (id, chunks) = (extent.id, extent.grid.covering(range));
        let is_split = chunks.end.saturating_sub(chunks.start) > 1;
        if !is_split || self.comes_as_a_whole(id.layer) {
            return false;
        }
        let loader = Arc::clone(self);
        let look = move || loader.lacks(id, chunks);
        tokio::task::spawn_blocking(look).await.unwrap_or(false)
    }

    /// Whether chunks of the layer come for all readers together, however little one of them reads.
    fn comes_as_a_whole(&self, layer: usize) -> bool {
        let strict = self.config.integrity == Integrity::Strict && self.standing(layer) == Standing::Unproved;
        strict || self.comes_by_itself(layer)
    }

    /// Whether one of these chunks is neither here nor under way. Blocks.
    fn lacks(&self, id: ExtentId, chunks: std::ops::Range<u64>) -> bool {
        let Some(extent) = self.extent(id) else { return false };
        let kept = self.reliable(extent);
        let here =
            |chunk: u64| self.board.knows((id, chunk)) || kept.as_ref().is_some_and(|kept| kept.has(chunk));
        !chunks.clone().all(here)
    }

    /// The bytes of `range`, which counts within the file and is clamped to its end. Waits for disk and network.
    ///
    /// Copies nothing where one chunk has all of the range.
    ///
    /// # Errors
    /// `Integrity` where the layer is poisoned or the bytes are not what they must be, `Deadline` where nothing
    /// arrived for the read deadline, else what the repository says.
    pub async fn read(self: &Arc<Self>, id: ExtentId, range: ContentRange) -> Result<Bytes> {
        let extent = self.extent(id).ok_or_else(|| Error::new(Kind::Invalid, "no such extent"))?;
        let range = range.meet(ContentRange::new(0, extent.grid.len()));
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.refuse_poisoned(id.layer)?;
        let reads_on = self.observe(extent, range);
        let read = async {
            let waits = self.config.integrity == Integrity::Strict && !self.is_pinned(id.layer);
            if waits {
                self.prove_first(id.layer).await?;
            }
            let part = if reads_on { None } else { self.part(extent, range).await? };
            let bytes = match part {
                Some(bytes) => bytes,
                None => self.collect(extent, range).await?,
            };
            if waits {
                // Records of digests may have turned out to be lost: then the proof is made again first.
                self.prove_first(id.layer).await?;
            }
            Ok(bytes)
        };
        let bytes =
            read.await.map_err(|error: Error| error.context(format!("cannot read {}", extent.path)))?;
        self.refuse_poisoned(id.layer)?;
        self.metrics.served_bytes.add(range.len());
        Ok(bytes)
    }

    pub(super) async fn collect(self: &Arc<Self>, extent: &Extent, range: ContentRange) -> Result<Bytes> {
        let chunks = extent.grid.covering(range);
        let single = chunks.end - chunks.start == 1;
        let places = self.demand(extent, chunks)?;
        let mut all = BytesMut::new();
        for ((_, chunk), place) in places {
            let bytes = match place {
                Place::Here(bytes) => bytes,
                Place::Aboard(flight) | Place::Lead(flight) => {
                    let bytes = self.wait_for(&flight).await?;
                    // It counts as read.
                    drop(self.board.peek((extent.id, chunk)));
                    bytes
                }
            };
            let part = cut(&bytes, extent.grid.range(chunk), range)
                .ok_or_else(|| Error::new(Kind::Integrity, "a chunk has not the size it must have"))?;
            if single {
                self.remember_pieces(extent, range, &bytes);
                return Ok(part);
            }
            all.extend_from_slice(&part);
        }
        Ok(all.freeze())
    }

    /// What the flight brings; how long that took its reader is counted.
    async fn wait_for(&self, flight: &Flight) -> Result<Bytes> {
        let begun = Instant::now();
        let brought = flight.wait(self.config.read_deadline + GRACE).await;
        self.metrics.waited_chunks.add(1);
        self.metrics.waited_microseconds.add(u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        brought
    }

    /// How much of the artifact is on this machine. Reads a small file of the store for each file, so it blocks.
    #[must_use]
    pub fn share(&self) -> Share {
        let extents = || self.layers.iter().flat_map(Stratum::files);
        let kept = extents().map(|extent| self.shelf.kept_bytes(&extent.layer, extent.range)).sum();
        Share { kept, total: extents().map(|extent| extent.grid.len()).sum() }
    }

    /// Whether it is being ended, so that reads that wait are given up by intent.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.board.closed()
    }

    /// Ends all tasks of the loader; reads that still wait fail. Returns when they have ended.
    pub async fn close(&self) {
        self.board.close();
        for stream in self.layers.iter().filter_map(|layer| layer.stream.as_deref()) {
            stream.close();
        }
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        // What was found out is written down before the process may end.
        if let Some(thread) = self.prover.stop() {
            let ended = tokio::task::spawn_blocking(move || thread.join().is_ok());
            let _ = tokio::time::timeout(LAST_WORK, ended).await;
        }
    }

    pub(super) fn extent(&self, id: ExtentId) -> Option<&Extent> {
        self.layers.get(id.layer)?.extents.get(id.extent).map(|extent| &**extent)
    }

    pub(super) fn extents(&self, layer: usize) -> impl Iterator<Item = &Extent> {
        self.layers.get(layer).into_iter().flat_map(Stratum::files)
    }

    pub(super) fn admission(&self, layer: usize) -> Option<&OnceCell<()>> {
        self.layers.get(layer).map(|layer| &layer.admitted)
    }

    /// What the index says of a layer; of one that has gone by, what was found out.
    pub(super) fn layer(&self, layer: usize) -> Option<&Layer> {
        let passed = self.layers.get(layer).and_then(|stratum| stratum.stream.as_ref()?.passed());
        passed.or_else(|| self.index.layers.get(layer))
    }

    /// Runs `task` until it ends or the loader closes.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        if self.board.closed() {
            return;
        }
        while tasks.try_join_next().is_some() {}
        tasks.spawn_on(task, &self.runtime);
    }
}

impl Stratum {
    /// Its files, as far as they are known.
    pub(super) fn files(&self) -> impl Iterator<Item = &Extent> {
        self.extents.iter().map(|(_, extent)| &**extent)
    }

    /// Whether it has files, or may turn out to have some.
    pub(super) fn may_have_files(&self) -> bool {
        self.extents.count() > 0 || self.stream.is_some()
    }
}

fn strata(index: &Index, shelf: &Shelf, proof: Proof) -> Vec<Stratum> {
    let mut paths = HashMap::new();
    for entry in &index.entries {
        if let EntryKind::File { extent: Some(id), .. } = entry.kind {
            paths.entry(id).or_insert_with(|| entry.path.clone());
        }
    }
    let held = index.layers.iter().flat_map(|layer| &layer.gaps).filter(|gap| gap.bytes.is_some());
    let held = held.fold(0, |held: u64, gap| held.saturating_add(gap.range.len()));
    let headers = Arc::new(Allowance::headers(held));
    let named: HashSet<usize> = index.entries.iter().map(|entry| entry.layer).collect();
    let stratum = |(number, layer): (usize, &Layer)| {
        let binding = layer.bound.as_ref().map(|_| Binding::new(shelf.proved(layer.kept_as())));
        let mut chunks = 0;
        let extents = layer.extents.iter().enumerate().map(|(extent, range)| {
            let first = chunks;
            chunks = first + Grid::new(range.len()).chunks();
            let digests = binding.as_ref().map(|binding| binding.digests(first..chunks));
            let id = ExtentId { layer: number, extent };
            let path = paths.remove(&id).unwrap_or_else(|| layer.blob.digest.to_string());
            Box::new(Extent::new(id, path, layer.kept_as().clone(), *range, digests))
        });
        let extents: boxcar::Vec<Box<Extent>> = extents.collect();
        shelf.store.finish_poisoning(&shelf.who, layer.kept_as());
        let gaps = GapsDigest::of(&layer.gaps);
        let proved = binding.is_some() || headers::is_proved(layer, gaps, shelf);
        let owes = proof == Proof::Layer && owing::may_owe(layer, gaps, shelf);
        let standing = watch::Sender::new(if proved { Standing::Proved } else { Standing::Unproved });
        Stratum {
            extents,
            stream: Stream::of(layer, named.contains(&number), &headers),
            standing,
            reason: OnceLock::new(),
            gaps,
            binding,
            owes: AtomicBool::new(owes),
            decoding: Decoding::default(),
            incomplete: Mutex::default(),
            admitted: OnceCell::new(),
            attempts: watch::Sender::new(0),
            tried: Mutex::default(),
        }
    };
    index.layers.iter().enumerate().map(stratum).collect()
}

async fn tend(loader: std::sync::Weak<Loader>) {
    let mut ticks = tokio::time::interval(TEND);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(loader) = loader.upgrade() else { return };
        loader.pool.settle();
        // Looks at files of the store, so not on a thread that drives others.
        let _ = tokio::task::spawn_blocking(move || loader.look_around()).await;
    }
}

/// What of `range` lies in the chunk at `place`; `None` where the chunk is shorter than it must be.
fn cut(chunk: &Bytes, place: ContentRange, range: ContentRange) -> Option<Bytes> {
    let part = place.meet(range);
    let start = usize::try_from(part.start().checked_sub(place.start())?).ok()?;
    let end = start.checked_add(usize::try_from(part.len()).ok()?)?;
    (chunk.len() as u64 <= CHUNK && end <= chunk.len()).then(|| chunk.slice(start..end))
}
