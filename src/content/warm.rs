//! Loading before being asked: carries out what [`prefetch`](super::prefetch) plans.
//!
//! Everything here runs in tasks of its own that nobody waits for, in the slow lanes.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;

use super::extent::Extent;
use super::lanes::Lane;
use super::loader::{Loader, Standing, Stratum, Warm};
use super::prefetch::opening::following;
use super::prefetch::stream::{Onward, Reach};
use super::prefetch::tensors::Tensors;
use super::prefetch::{gguf, opening};
use crate::index::{CHUNK, EntryKind, ExtentId, Layer};
use crate::range::ContentRange;
use crate::repository::Pace;

/// A usual span of a compressed layer: the default of `weightfs index build`.
const SPAN: u64 = 4 << 20;

impl Loader {
    /// Starts loading what [`Config::warm`](super::Config::warm) asks for, and has what is complete already made ready for the
    /// kernel. Returns at once.
    pub fn warm(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        if self.config.warm == Warm::None {
            return self.spawn(async move { loader.seal_what_is_complete().await });
        }
        for stream in self.layers.iter().filter_map(|layer| layer.stream.as_ref()) {
            // What can be read without is loaded as that of plain layers is.
            if stream.guided().is_none() || self.config.warm == Warm::All {
                stream.begin();
            }
        }
        self.spawn(async move {
            loader.seal_what_is_complete().await;
            for (id, range) in opening::plan(&loader.index) {
                loader.warm_logged(id, range, Lane::Ahead, CHUNK).await;
            }
            if loader.config.warm == Warm::All {
                let (named, files) = (loader.named(), loader.layers.iter().flat_map(Stratum::files));
                let is_shown = |id: ExtentId| {
                    named.as_ref().is_none_or(|named| named.contains(&id) || loader.may_be_named(id))
                };
                for extent in files.filter(|extent| is_shown(extent.id)) {
                    let whole = ContentRange::new(0, extent.grid.len());
                    loader.warm_logged(extent.id, whole, Lane::Background, u64::MAX).await;
                }
            }
        });
    }

    /// The files that have a name: who left one out does not want it loaded. `None` where nothing was left out.
    fn named(&self) -> Option<HashSet<ExtentId>> {
        let its = |kind: &EntryKind| match kind {
            EntryKind::File { extent, .. } => *extent,
            _ => None,
        };
        let all = || self.index.entries.iter().filter_map(|entry| its(&entry.kind)).collect();
        (!self.config.exclude.is_empty()).then(all)
    }

    /// Whether a file may come to have a name.
    fn may_be_named(&self, id: ExtentId) -> bool {
        self.index.layers.get(id.layer).is_some_and(Layer::is_growing)
    }

    /// Has files sealed that were complete and proved when the last mount ended, but not sealed.
    async fn seal_what_is_complete(self: &Arc<Self>) {
        let loader = Arc::clone(self);
        let look = move || {
            let proved = loader.layers.iter().filter(|layer| *layer.standing.borrow() == Standing::Proved);
            let complete =
                |extent: &&Extent| loader.shelf.kept_bytes(&extent.layer, extent.range) == extent.grid.len();
            // The prover finds out which of them are sealed.
            proved.flat_map(Stratum::files).filter(complete).for_each(|extent| loader.prover.seal(extent.id));
        };
        // Not done, it is done when a file is opened.
        let _ = tokio::task::spawn_blocking(look).await;
    }

    /// Loads ahead of who just read `range`; whether he has read on here for a while, rather than here and there.
    pub(super) fn observe(self: &Arc<Self>, extent: &Extent, range: ContentRange) -> bool {
        let reach = self.reach(extent.id.layer);
        self.board.resize(reach.window.min(self.config.memory));
        let plan = extent.observe(range, reach);
        // What goes by is all coming already.
        if self.config.warm == Warm::None || self.comes_by_itself(extent.id.layer) {
            return plan.reads_on;
        }
        if let Some(ahead) = plan.ahead {
            self.warm_later(extent.id, ahead, Lane::Ahead, plan.request);
        }
        if let Some(onward) = plan.onward {
            self.begin_next(extent.id, onward);
        }
        if plan.rest {
            self.warm_later(extent.id, ContentRange::new(0, extent.grid.len()), Lane::Background, u64::MAX);
        }
        if extent.wants_tensors() {
            let (loader, id) = (Arc::clone(self), extent.id);
            self.spawn(async move { loader.find_tensors(id).await });
        }
        plan.reads_on
    }

    /// How far ahead of a reader is loaded: what the line is best served by, as far as memory may grow for it; a span for each processor
    /// where it is decoded.
    pub(super) fn reach(&self, layer: usize) -> Reach {
        let spans = if self.is_decoded(layer) { self.cores as u64 } else { 0 };
        Reach { window: self.memory().max(Pace::WINDOW), eager: spans.saturating_mul(SPAN) }
    }

    /// How many bytes may wait in memory for their readers at present.
    pub(super) fn memory(&self) -> u64 {
        self.config.memory.min(self.repository.pace().window)
    }

    /// Loads the beginning of the file after `id`, whose reader is about to be there.
    fn begin_next(self: &Arc<Self>, id: ExtentId, onward: Onward) {
        let following = self.following.get_or_init(|| following(&self.index));
        let next = following.get(&id).filter(|next| !self.comes_by_itself(next.layer));
        let Some(next) = next.and_then(|next| self.extent(*next)) else { return };
        next.expect(onward);
        let start = ContentRange::new(0, onward.bytes.min(next.grid.len()));
        self.warm_later(next.id, start, Lane::Ahead, onward.request);
    }

    fn warm_later(self: &Arc<Self>, id: ExtentId, range: ContentRange, lane: Lane, request: u64) {
        let loader = Arc::clone(self);
        self.spawn(async move { loader.warm_logged(id, range, lane, request).await });
    }

    async fn warm_logged(self: &Arc<Self>, id: ExtentId, range: ContentRange, lane: Lane, request: u64) {
        if let Err(error) = self.fetch_missing_by(id, range, lane, request).await {
            tracing::debug!(%error, "a prefetch failed; whoever reads will try again");
        }
    }

    async fn find_tensors(self: &Arc<Self>, id: ExtentId) {
        let Some(extent) = self.extent(id) else { return };
        // One after the other, however many files are opened at once: headers may be large.
        let _alone = self.headers.lock().await;
        let found = match extent.path.ends_with(".gguf") {
            true => self.gguf_tensors(extent).await,
            false => self.safetensors(extent).await,
        };
        let Some(plan) = found.map(|tensors| extent.set_tensors(tensors)) else { return };
        if let Some(ahead) = plan.ahead {
            self.warm_later(id, ahead, Lane::Ahead, plan.request);
        }
    }

    async fn safetensors(self: &Arc<Self>, extent: &Extent) -> Option<Tensors> {
        let len = extent.grid.len();
        let head = self.header(extent, 8.min(len)).await?;
        let header = Tensors::header_len(&head).filter(|header| *header <= len)?;
        let header = self.header(extent, header).await?;
        Tensors::parse(&header, len)
    }

    /// A GGUF header does not say how long it is, so more and more of the file is looked at: 1 MiB, 4 (one with a vocabulary has 2 to 10),
    /// and twice as much each time from there on, since each look costs a round trip.
    async fn gguf_tensors(self: &Arc<Self>, extent: &Extent) -> Option<Tensors> {
        let limit = extent.grid.len().min(gguf::HEADER_LIMIT);
        let mut len = CHUNK.min(limit);
        loop {
            match gguf::parse(&self.header(extent, len).await?) {
                gguf::Header::Tensors(starts) => return Some(Tensors::beginning_at(starts)),
                gguf::Header::Longer if len < limit => len = (len * 2).max(4 * CHUNK).min(limit),
                gguf::Header::Longer | gguf::Header::Malformed => return None,
            }
        }
    }

    /// The first bytes of a file, brought in without being urgent.
    async fn header(self: &Arc<Self>, extent: &Extent, len: u64) -> Option<Bytes> {
        let head = ContentRange::new(0, len);
        self.fetch_missing(extent.id, head, Lane::Ahead).await.ok()?;
        self.collect(extent, head).await.ok()
    }
}
