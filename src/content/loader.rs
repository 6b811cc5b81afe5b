//! Answers reads of extents from memory, the store or the repository, whichever has the bytes first.
//!
//! The public face of the floor. How chunks are fetched is in [`fetch`](super::fetch), how layers are proved in
//! [`prove`](super::prove). Floor 4 calls; nothing here knows files by name, save for messages.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{OnceCell, mpsc, watch};
use tokio::task::JoinSet;

use super::buffer::Pool;
use super::extent::Extent;
use super::flight::{Board, Place};
use super::lanes::{Lane, Lanes};
use super::prove::Prover;
use super::store::Store;
use super::store::kept::KeptFile;
use super::{Config, Integrity};
use crate::error::{Error, Kind, Result};
use crate::index::{CHUNK, EntryKind, ExtentId, Index, Layer};
use crate::metrics::Metrics;
use crate::range::ContentRange;
use crate::repository::Repository;

/// How often the loader looks after what is idle and what other processes did.
const TEND: Duration = Duration::from_secs(1);
/// Files of the store that nobody has used for so long are closed, so that they may be evicted.
const IDLE: Duration = Duration::from_secs(5);

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
    /// The layer's digest was proved over its bytes, on this node.
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
    pub(super) store: Arc<Store>,
    pub(super) config: Config,
    pub(super) metrics: Arc<Metrics>,
    pub(super) board: Board,
    pub(super) lanes: Lanes,
    pub(super) pool: Pool,
    pub(super) prover: Prover,
    layers: Vec<Stratum>,
    poisoned: Mutex<Poisoned>,
    tasks: Mutex<JoinSet<()>>,
    began: SystemTime,
}

/// A layer at work: its files and what is known of its bytes.
#[derive(Debug)]
struct Stratum {
    extents: Vec<Extent>,
    standing: watch::Sender<Standing>,
    /// Extents not known to be complete; `None`: not looked at yet.
    incomplete: Mutex<Option<BTreeSet<usize>>>,
    /// Set once this mount may see what the store has of the layer.
    admitted: OnceCell<()>,
}

#[derive(Debug, Default)]
struct Poisoned {
    layers: Vec<usize>,
    told: Vec<mpsc::UnboundedSender<usize>>,
}

/// What an open file keeps: while it lives, the store does not evict the file's content.
#[derive(Debug)]
pub struct Held {
    kept: Option<Arc<KeptFile>>,
    whole: bool,
}

impl Held {
    /// The store's file, if it was complete, proved and untouched when it was asked for: an exact image of the
    /// file that may be given to the kernel (passthrough).
    #[must_use]
    pub fn whole(&self) -> Option<&File> {
        self.kept.as_deref().filter(|_| self.whole).map(KeptFile::image)
    }
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
        let layers = strata(&index, &store);
        let loader = Arc::new(Self {
            board: Board::new(config.memory),
            lanes: Lanes::default(),
            pool: Pool::default(),
            prover: Prover::default(),
            poisoned: Mutex::default(),
            tasks: Mutex::default(),
            began: SystemTime::now(),
            repository,
            index,
            store,
            config,
            metrics,
            layers,
        });
        loader.prover.start(&loader);
        loader.spawn(tend(Arc::downgrade(&loader)));
        loader
    }

    /// The bytes, if they lie in one chunk that is verified and in memory at this moment; never waits.
    ///
    /// `range` counts within the file. Counts as a read for the prefetch plan where it succeeds.
    pub fn ready(self: &Arc<Self>, id: ExtentId, range: ContentRange) -> Option<Bytes> {
        let extent = self.extent(id)?;
        let range = range.meet(ContentRange::new(0, extent.grid.len()));
        let chunks = extent.grid.covering(range);
        if chunks.end.checked_sub(chunks.start) != Some(1) || !self.may_serve(id.layer) {
            return None;
        }
        let bytes = self.board.peek((id, chunks.start))?;
        let part = cut(&bytes, extent.grid.range(chunks.start), range)?;
        self.observe(extent, range);
        Some(part)
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
        self.observe(extent, range);
        let read = async {
            if self.config.integrity == Integrity::Strict {
                self.prove_first(id.layer).await?;
            }
            let bytes = self.collect(extent, range).await?;
            if self.config.integrity == Integrity::Strict {
                // Records of digests may have turned out to be lost: then the proof is made again first.
                self.prove_first(id.layer).await?;
            }
            Ok(bytes)
        };
        let bytes =
            read.await.map_err(|error: Error| error.context(format!("cannot read {}", extent.path)))?;
        self.refuse_poisoned(id.layer)?;
        Ok(bytes)
    }

    async fn collect(self: &Arc<Self>, extent: &Extent, range: ContentRange) -> Result<Bytes> {
        let chunks = extent.grid.covering(range);
        let single = chunks.end - chunks.start == 1;
        let places = self.demand(extent, chunks)?;
        let mut all = BytesMut::new();
        for ((_, chunk), place) in places {
            let bytes = match place {
                Place::Here(bytes) => bytes,
                Place::Aboard(flight) | Place::Lead(flight) => flight.wait(self.config.read_deadline).await?,
            };
            let part = cut(&bytes, extent.grid.range(chunk), range)
                .ok_or_else(|| Error::new(Kind::Integrity, "a chunk has not the size it must have"))?;
            if single {
                return Ok(part);
            }
            all.extend_from_slice(&part);
        }
        Ok(all.freeze())
    }

    /// What an open file keeps; says whether the kernel may have the store's file instead of replies.
    ///
    /// Opens files of the store, so it may block for a moment on the local disk; never on the network.
    #[must_use]
    pub fn hold(&self, id: ExtentId) -> Held {
        let Some(extent) = self.extent(id) else { return Held { kept: None, whole: false } };
        let kept = extent.kept(&self.store);
        let proved = self.standing(id.layer) == Standing::Proved && self.has_admission(id.layer);
        let whole = proved && kept.as_ref().is_some_and(|kept| kept.sealed());
        if proved && !whole && extent.complete_by_now(&self.store) {
            self.prover.seal(id);
        }
        Held { kept, whole }
    }

    /// What is known of the bytes of layer `layer` of the index.
    #[must_use]
    pub fn standing(&self, layer: usize) -> Standing {
        self.layers.get(layer).map_or(Standing::Unproved, |layer| *layer.standing.borrow())
    }

    /// How much of the artifact is on this machine. Reads a small file of the store for each file, so it blocks.
    #[must_use]
    pub fn share(&self) -> Share {
        let extents = || self.layers.iter().flat_map(|layer| &layer.extents);
        let kept = extents().map(|extent| self.store.kept_bytes(&extent.layer, extent.range)).sum();
        Share { kept, total: extents().map(|extent| extent.grid.len()).sum() }
    }

    /// Gives the index of each layer that is poisoned, those poisoned before first.
    #[must_use]
    pub fn poisonings(&self) -> mpsc::UnboundedReceiver<usize> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut poisoned = self.poisoned.lock();
        for layer in &poisoned.layers {
            let _ = sender.send(*layer);
        }
        poisoned.told.push(sender);
        receiver
    }

    /// Starts loading what [`Config::warm`] asks for. Returns at once.
    pub fn warm(self: &Arc<Self>) {
        if self.config.warm == Warm::None {
            return;
        }
        let loader = Arc::clone(self);
        self.spawn(async move {
            for (id, range) in super::prefetch::opening::plan(&loader.index) {
                loader.warm_logged(id, range, Lane::Ahead).await;
            }
            if loader.config.warm == Warm::All {
                for extent in loader.layers.iter().flat_map(|layer| &layer.extents) {
                    let whole = ContentRange::new(0, extent.grid.len());
                    loader.warm_logged(extent.id, whole, Lane::Background).await;
                }
            }
        });
    }

    /// Ends all tasks of the loader; reads that still wait fail. Returns when they have ended.
    pub async fn close(&self) {
        self.board.close();
        let mut tasks = std::mem::take(&mut *self.tasks.lock());
        tasks.shutdown().await;
        self.prover.stop();
    }

    pub(super) fn extent(&self, id: ExtentId) -> Option<&Extent> {
        self.layers.get(id.layer)?.extents.get(id.extent)
    }

    pub(super) fn extents(&self, layer: usize) -> &[Extent] {
        self.layers.get(layer).map_or(&[], |layer| &layer.extents)
    }

    pub(super) fn admission(&self, layer: usize) -> Option<&OnceCell<()>> {
        self.layers.get(layer).map(|layer| &layer.admitted)
    }

    pub(super) fn layer(&self, layer: usize) -> Option<&Layer> {
        self.index.layers.get(layer)
    }

    /// Runs `task` until it ends or the loader closes.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    /// Loads ahead of who just read `range`.
    fn observe(self: &Arc<Self>, extent: &Extent, range: ContentRange) {
        if self.config.warm == Warm::None {
            return;
        }
        let plan = extent.observe(range);
        if let Some(ahead) = plan.ahead {
            self.warm_later(extent.id, ahead, Lane::Ahead);
        }
        if plan.rest {
            self.warm_later(extent.id, ContentRange::new(0, extent.grid.len()), Lane::Background);
        }
        if extent.wants_tensors() {
            let (loader, id) = (Arc::clone(self), extent.id);
            self.spawn(async move { loader.find_tensors(id).await });
        }
    }

    fn warm_later(self: &Arc<Self>, id: ExtentId, range: ContentRange, lane: Lane) {
        let loader = Arc::clone(self);
        self.spawn(async move { loader.warm_logged(id, range, lane).await });
    }

    async fn warm_logged(self: &Arc<Self>, id: ExtentId, range: ContentRange, lane: Lane) {
        if let Err(error) = self.fetch_missing(id, range, lane).await {
            tracing::debug!(%error, "a prefetch failed; whoever reads will try again");
        }
    }

    async fn find_tensors(self: &Arc<Self>, id: ExtentId) {
        use super::prefetch::tensors::Tensors;
        let Some(extent) = self.extent(id) else { return };
        let Ok(head) = self.collect(extent, ContentRange::new(0, 8.min(extent.grid.len()))).await else {
            return;
        };
        let Some(len) = Tensors::header_len(&head).filter(|len| *len <= extent.grid.len()) else { return };
        let Ok(header) = self.collect(extent, ContentRange::new(0, len)).await else { return };
        if let Some(tensors) = Tensors::parse(&header, extent.grid.len()) {
            extent.set_tensors(tensors);
        }
    }

    fn may_serve(&self, layer: usize) -> bool {
        match self.standing(layer) {
            Standing::Proved => true,
            Standing::Unproved => self.config.integrity == Integrity::Deferred,
            Standing::Poisoned => false,
        }
    }

    pub(super) fn refuse_poisoned(&self, layer: usize) -> Result<()> {
        if self.standing(layer) == Standing::Poisoned {
            return Err(self.poison_error(layer));
        }
        Ok(())
    }

    fn poison_error(&self, layer: usize) -> Error {
        let digest = self.layer(layer).map(|layer| layer.blob.digest.to_string()).unwrap_or_default();
        let doing = format!("the bytes that {} gave are not {digest}", self.repository.place());
        Error::new(Kind::Integrity, doing).hint("push the layer again, then unmount and mount")
    }

    /// Waits until the layer is here as a whole and proved.
    async fn prove_first(self: &Arc<Self>, layer: usize) -> Result<()> {
        let Some(stratum) = self.layers.get(layer) else { return Ok(()) };
        let mut standing = stratum.standing.subscribe();
        if *standing.borrow_and_update() != Standing::Proved {
            let whole = |extent: &Extent| (extent.id, ContentRange::new(0, extent.grid.len()));
            let fetches = stratum
                .extents
                .iter()
                .map(whole)
                .map(|(id, whole)| self.fetch_missing(id, whole, Lane::Ahead));
            futures_util::stream::iter(fetches).buffer_unordered(4).try_collect::<()>().await?;
            self.prover.check(layer);
        }
        let settled = standing.wait_for(|standing| *standing != Standing::Unproved);
        match tokio::time::timeout(self.config.read_deadline, settled).await {
            Ok(_) => self.refuse_poisoned(layer),
            Err(_) => {
                let doing = "the layer could not be proved: it cannot be kept as a whole";
                Err(Error::new(Kind::Storage, doing).hint("give the store more room (--store-size)"))
            }
        }
    }

    /// Takes down that the layer's digest was proved over its bytes.
    pub(super) fn set_proved(&self, layer: usize) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        if *stratum.standing.borrow() != Standing::Unproved {
            return;
        }
        if stratum.extents.iter().all(|extent| extent.record_digests(&self.store)) {
            self.store.set_proved(&described.blob.digest);
        }
        self.metrics.proved_layers.add(1);
        tracing::info!(layer = %described.blob.digest, "proved");
        stratum.standing.send_replace(Standing::Proved);
    }

    /// Takes back a proof whose chunk digests are not all on record any more.
    pub(super) fn set_unproved(&self, layer: usize) {
        let Some(stratum) = self.layers.get(layer) else { return };
        stratum.standing.send_if_modified(|standing| {
            let proved = *standing == Standing::Proved;
            if proved {
                *standing = Standing::Unproved;
            }
            proved
        });
    }

    /// Declares the layer's bytes wrong: from now on its reads fail, and the store has none of them.
    pub(super) fn poison(&self, layer: usize, why: &str) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        if stratum.standing.send_replace(Standing::Poisoned) == Standing::Poisoned {
            return;
        }
        tracing::error!(layer = %described.blob.digest, why, "POISONED: reads of its files fail from now on");
        self.metrics.poisoned_layers.add(1);
        self.board.purge(layer, &self.poison_error(layer));
        self.store.poison(&described.blob.digest);
        stratum.extents.iter().for_each(Extent::forget);
        let mut poisoned = self.poisoned.lock();
        poisoned.layers.push(layer);
        poisoned.told.retain(|told| told.send(layer).is_ok());
    }

    /// Lets go of idle files, and takes over what other processes found out about shared layers.
    fn look_around(&self) {
        for (number, stratum) in self.layers.iter().enumerate() {
            let open = stratum.extents.iter().filter(|extent| extent.open_kept().is_some()).count();
            if open == 0 {
                continue;
            }
            if *stratum.standing.borrow() == Standing::Unproved {
                self.learn(number, stratum);
            }
            stratum.extents.iter().for_each(|extent| extent.release_idle(IDLE));
        }
    }

    fn learn(&self, number: usize, stratum: &Stratum) {
        let Some(layer) = self.layer(number) else { return };
        if self.store.poisoned_since(&layer.blob.digest, self.began) {
            self.poison(number, "another process found it out");
            return;
        }
        let open = stratum.extents.iter().filter(|extent| extent.open_kept().is_some());
        for extent in open.filter(|extent| extent.complete_by_now(&self.store)) {
            self.completed(extent);
        }
    }

    /// Sees to a file whose last chunk has come: its layer may be complete now, or it may be sealed.
    pub(super) fn completed(&self, extent: &Extent) {
        let layer = extent.id.layer;
        match self.standing(layer) {
            Standing::Proved => self.prover.seal(extent.id),
            Standing::Unproved if self.all_complete(extent) => self.prover.check(layer),
            _ => {}
        }
    }

    fn all_complete(&self, complete: &Extent) -> bool {
        let Some(stratum) = self.layers.get(complete.id.layer) else { return false };
        let mut incomplete = stratum.incomplete.lock();
        let left = incomplete.get_or_insert_with(|| {
            let unfinished =
                |extent: &&Extent| self.store.kept_bytes(&extent.layer, extent.range) < extent.grid.len();
            stratum.extents.iter().filter(unfinished).map(|extent| extent.id.extent).collect()
        });
        left.remove(&complete.id.extent);
        let all = left.is_empty();
        if all {
            // Should the proof not come about, the next one to complete looks again.
            *incomplete = None;
        }
        all
    }
}

fn strata(index: &Index, store: &Store) -> Vec<Stratum> {
    let mut paths = HashMap::new();
    for entry in &index.entries {
        if let EntryKind::File { extent: Some(id), .. } = entry.kind {
            paths.entry(id).or_insert_with(|| entry.path.clone());
        }
    }
    let stratum = |(number, layer): (usize, &Layer)| {
        let extents = layer.extents.iter().enumerate().map(|(extent, range)| {
            let id = ExtentId { layer: number, extent };
            let path = paths.remove(&id).unwrap_or_else(|| layer.blob.digest.to_string());
            Extent::new(id, path, layer.blob.digest.clone(), *range)
        });
        let extents = extents.collect();
        let proved = store.proved(&layer.blob.digest);
        let standing = watch::Sender::new(if proved { Standing::Proved } else { Standing::Unproved });
        Stratum { extents, standing, incomplete: Mutex::default(), admitted: OnceCell::new() }
    };
    index.layers.iter().enumerate().map(stratum).collect()
}

async fn tend(loader: std::sync::Weak<Loader>) {
    let mut ticks = tokio::time::interval(TEND);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(loader) = loader.upgrade() else { return };
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
