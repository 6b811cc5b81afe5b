//! What is at work of a compressed layer: its table of spans, had on first touch; stored spans and decoders that
//! the next read may go on with.
//!
//! All that comes from an index is verified here, by digests that lead to the manifest, before anything is decoded with
//! it. Called by `reader`; `passing` and `part` decide what is read.

use std::collections::BTreeSet;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::{Notify, OnceCell, OwnedSemaphorePermit, Semaphore, watch};

use super::bound::ATTEMPTS;
use super::fetch::LOOK_LIMIT;
use super::loader::Loader;
use super::spans::{HELD, Table, Walker};
use crate::error::{Error, Kind, Result};
use crate::index::{Coding, Section, Spans};

/// The longest table that is kept by itself, as of chunk digests: some 70,000 spans.
const KEPT: usize = 4 << 20;
/// The longest table that is read: twice that of as many spans as a layer may have.
const TABLE_LIMIT: u64 = 256 << 20;
/// How many windows of a layer stay in memory, of at most 32 KiB each.
const WINDOWS: NonZeroUsize = NonZeroUsize::new(64).unwrap();
/// How many decoders of a layer wait to be gone on with.
const WALKERS: usize = 4;
/// What nobody has gone on with for so long is let go.
const IDLE: Duration = Duration::from_secs(10);
/// How many stored bytes readers that somebody waits for hold at once; more of them wait for each other.
const IN_HAND: u64 = 64 << 20;
/// The unit that they are counted in.
const UNIT: u64 = 64 << 10;

/// What all compressed layers of a loader share.
#[derive(Debug)]
pub(super) struct Desk {
    spool: Mutex<Spool>,
    in_hand: Arc<Semaphore>,
}

/// Stored bytes of spans, verified, that a neighbour may need.
#[derive(Debug)]
struct Spool {
    spans: LruCache<(usize, usize), Bytes>,
    bytes: usize,
    limit: usize,
    used: Option<Instant>,
}

/// A compressed layer at work.
#[derive(Debug)]
pub(super) struct Decoding {
    table: OnceCell<Arc<Table>>,
    pub(super) windows: Mutex<LruCache<usize, Bytes>>,
    /// Spans whose window can't be had from this machine's index.
    pub(super) lost: Mutex<BTreeSet<usize>>,
    /// Each with the table that it goes by.
    walkers: Mutex<Vec<(Instant, Arc<Table>, Walker)>>,
    /// Spans that are being decoded: who begins with one of them waits, and joins what the other hands out.
    busy: Mutex<BTreeSet<usize>>,
    free: Notify,
    /// Grows with every piece of the layer that arrives.
    pulse: watch::Sender<u64>,
}

/// Leave to decode from a span on, given back when it is dropped.
pub(super) struct Beginning<'a> {
    decoding: &'a Decoding,
    /// The one it is in; `None` where somebody else is there already.
    span: Option<usize>,
}

impl Desk {
    /// A desk that keeps up to `memory` bytes of stored spans, or one.
    pub(super) fn new(memory: u64) -> Self {
        let limit = usize::try_from(memory).unwrap_or(usize::MAX);
        let spool = Spool { spans: LruCache::unbounded(), bytes: 0, limit, used: None };
        let units = usize::try_from(IN_HAND / UNIT).unwrap_or(1);
        Self { spool: Mutex::new(spool), in_hand: Arc::new(Semaphore::new(units)) }
    }

    /// Waits until so many stored bytes may be held; `None` only while the loader closes.
    pub(super) async fn hold(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = u32::try_from(bytes.min(HELD).div_ceil(UNIT)).unwrap_or(1);
        Arc::clone(&self.in_hand).acquire_many_owned(units).await.ok()
    }

    /// The stored bytes of a span, verified before; `None` where they are not here.
    pub(super) fn spooled(&self, layer: usize, span: usize) -> Option<Bytes> {
        let mut spool = self.spool.lock();
        spool.used = Some(Instant::now());
        spool.spans.get(&(layer, span)).cloned()
    }

    /// Keeps the verified stored bytes of a span for a while.
    pub(super) fn spool(&self, layer: usize, span: usize, stored: &Bytes) {
        let mut spool = self.spool.lock();
        spool.used = Some(Instant::now());
        spool.bytes += stored.len();
        if let Some(before) = spool.spans.put((layer, span), stored.clone()) {
            spool.bytes -= before.len();
        }
        while spool.bytes > spool.limit && spool.spans.len() > 1 {
            let Some((_, least)) = spool.spans.pop_lru() else { return };
            spool.bytes -= least.len();
        }
    }

    /// Lets go of what nobody has asked for lately.
    pub(super) fn release_idle(&self) {
        let mut spool = self.spool.lock();
        if spool.used.is_some_and(|used| used.elapsed() > IDLE) {
            spool.spans.clear();
            (spool.bytes, spool.used) = (0, None);
        }
    }
}

impl Default for Decoding {
    fn default() -> Self {
        Self {
            table: OnceCell::new(),
            windows: Mutex::new(LruCache::new(WINDOWS)),
            lost: Mutex::default(),
            walkers: Mutex::default(),
            busy: Mutex::default(),
            free: Notify::new(),
            pulse: watch::Sender::new(0),
        }
    }
}

impl Decoding {
    /// Waits until nobody else begins with this span.
    pub(super) async fn begin(&self, span: usize) -> Beginning<'_> {
        loop {
            let freed = self.free.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            if self.busy.lock().insert(span) {
                return Beginning { decoding: self, span: Some(span) };
            }
            freed.await;
        }
    }

    /// A decoder by `table` that is nearer to `content` than the start of its span, at `start`; `None` where there is none.
    pub(super) fn resume(&self, table: &Arc<Table>, start: u64, content: u64) -> Option<Walker> {
        let mut walkers = self.walkers.lock();
        let within = start..=content;
        let near = walkers.iter().enumerate().filter(|(_, (_, by, walker))| {
            // Of a layer with a guide there are two.
            within.contains(&walker.content) && Arc::ptr_eq(by, table)
        });
        let (place, _) = near.max_by_key(|(_, (.., walker))| walker.content)?;
        Some(walkers.swap_remove(place).2)
    }

    /// Keeps a decoder for who reads on.
    pub(super) fn suspend(&self, table: &Arc<Table>, walker: Walker) {
        let mut walkers = self.walkers.lock();
        if walkers.len() >= WALKERS
            && let Some(oldest) = walkers.iter().enumerate().min_by_key(|(_, (since, ..))| *since)
        {
            let oldest = oldest.0;
            walkers.swap_remove(oldest);
        }
        walkers.push((Instant::now(), Arc::clone(table), walker));
    }

    /// Lets go of decoders that nobody has gone on with lately.
    pub(super) fn release_idle(&self) {
        self.walkers.lock().retain(|(since, ..)| since.elapsed() <= IDLE);
    }

    /// Says that something of the layer has arrived.
    pub(super) fn progress(&self) {
        self.pulse.send_modify(|pieces| *pieces = pieces.wrapping_add(1));
    }

    /// Does `work`, and `beat` whenever something of the layer arrives meanwhile.
    pub(super) async fn relay<T>(&self, beat: impl Fn(), work: impl Future<Output = T>) -> T {
        let mut pulse = self.pulse.subscribe();
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = pulse.changed() => beat(),
            }
        }
    }
}

impl Beginning<'_> {
    /// Says that decoding has come to this span. Waits for nobody who has begun with it.
    pub(super) fn come_to(&mut self, span: usize) {
        if self.span == Some(span) {
            return;
        }
        let before = self.span.take();
        let mut busy = self.decoding.busy.lock();
        if let Some(before) = before {
            busy.remove(&before);
        }
        self.span = busy.insert(span).then_some(span);
        drop(busy);
        self.decoding.free.notify_waiters();
    }
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        if let Some(span) = self.span {
            self.decoding.busy.lock().remove(&span);
            self.decoding.free.notify_waiters();
        }
    }
}

impl Loader {
    pub(super) fn decoding(&self, layer: usize) -> Option<&Decoding> {
        Some(&self.layers.get(layer)?.decoding)
    }

    /// How the layer's content is made of spans; `None` where it is not.
    pub(super) fn spans_of(&self, layer: usize) -> Option<&Spans> {
        match &self.layer(layer)?.coding {
            Coding::Spans(spans) => Some(spans),
            Coding::Stored | Coding::Streamed(..) => None,
        }
    }

    /// The layer's table of spans. Asks the network once a mount at most, and not where this machine has it.
    ///
    /// # Errors
    /// `Integrity` where its bytes are not what the index says, `Invalid` where they are no table of this layer, else what
    /// the repository says; the next one to ask tries again.
    pub(super) async fn table(self: &Arc<Self>, layer: usize) -> Result<Arc<Table>> {
        if let Some(guided) = self.guided(layer) {
            return Ok(Arc::clone(&guided.guide.table));
        }
        let found = self.decoding(layer).zip(self.spans_of(layer));
        let (decoding, _) = found.ok_or_else(|| Error::new(Kind::Unsupported, "the layer has no spans"))?;
        decoding.table.get_or_try_init(|| self.bring_table(layer)).await.cloned()
    }

    async fn bring_table(self: &Arc<Self>, layer: usize) -> Result<Arc<Table>> {
        let found = self.layer(layer).zip(self.spans_of(layer));
        let (described, spans) = found.ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        let name = format!("the table of spans of layer {}", described.blob.digest);
        let bytes = match self.table_here(spans).await {
            Some(bytes) => bytes,
            None => {
                let bytes = self.fetch_table(&spans.table, &name).await;
                let bytes = bytes.map_err(|error| error.context(format!("cannot read {name}")))?;
                self.keep_table(&spans.table, &bytes);
                bytes
            }
        };
        let (spans, stored) = (spans.clone(), described.blob.size);
        let decoded = tokio::task::spawn_blocking(move || Table::decode(&spans, &bytes, stored)).await;
        let decoded = decoded.map_err(interrupted)?;
        decoded.map(Arc::new).map_err(|error| error.context(format!("cannot use {name}")))
    }

    /// Its bytes, if this machine has them: along with the index, or as they were kept.
    async fn table_here(self: &Arc<Self>, spans: &Spans) -> Option<Bytes> {
        let (loader, section) = (Arc::clone(self), spans.table.clone());
        let look = move || {
            let right = |bytes: &Bytes| section.digest.matches(bytes);
            let along = section.bytes.clone().filter(right);
            along.or_else(|| loader.shelf.store.small(&loader.shelf.who, &section.digest).filter(right))
        };
        // A disk that hangs must not keep the network from being asked.
        tokio::time::timeout(LOOK_LIMIT, tokio::task::spawn_blocking(look)).await.ok()?.ok()?
    }

    async fn fetch_table(&self, section: &Section, name: &str) -> Result<Bytes> {
        if section.range.len() > TABLE_LIMIT {
            let doing = format!("{name} has {} bytes, and {TABLE_LIMIT} is the most", section.range.len());
            return Err(Error::new(Kind::Unsupported, doing));
        }
        for _ in 0..ATTEMPTS {
            let bytes = self.read_section(section).await?;
            if section.digest.matches(&bytes) {
                return Ok(bytes);
            }
            tracing::warn!("{name} is wrong");
        }
        Err(Error::new(Kind::Integrity, format!("{name} is not what the index says: {}", section.digest))
            .hint("push the artifact again; 'weightfs index add' writes a new index"))
    }

    /// Beside the readers; where it can't be kept, it is fetched again by the next mount.
    fn keep_table(self: &Arc<Self>, section: &Section, bytes: &Bytes) {
        let (loader, digest, bytes) = (Arc::clone(self), section.digest.clone(), bytes.clone());
        if bytes.len() <= KEPT {
            let keep = move || loader.shelf.store.keep_small(&loader.shelf.who, &digest, &bytes);
            drop(tokio::task::spawn_blocking(keep));
        }
    }
}

pub(super) fn interrupted(error: tokio::task::JoinError) -> Error {
    Error::from_source(Kind::Storage, "decoding was interrupted", error)
}
