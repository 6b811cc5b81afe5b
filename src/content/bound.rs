//! What the artifact itself says of a layer's chunks: the section of its bound index, and what follows from it.
//!
//! The manifest pins the section and the section pins every chunk, so a bound layer is proved before it is read: nothing
//! of it is served unverified, nothing is hashed as a whole, and a chunk that is wrong is refused by itself. The section
//! is had when the layer is first touched. Who may see what others have kept of the layer is asked for
//! one chunk of it, picked at random, as of plain layers. Called by the fetch and by whoever relies on the store.

use std::collections::BTreeSet;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::OnceCell;

use super::extent::Extent;
use super::fetch::LOOK_LIMIT;
use super::flight::Key;
use super::loader::{Loader, Standing};
use super::verify::{Hashed, Verified};
use crate::error::{Error, Kind, Result};
use crate::index::{ChunkDigest, ExtentId, Grid, Home, Layer, Section};
use crate::range::StoredRange;
use crate::repository::read_all;

/// The length of a chunk's digest in a section (index format v1).
pub(super) const DIGEST: u64 = 32;

/// How many refused chunks are listed; more are counted only.
const LISTED: usize = 1000;

/// The longest section that is kept by itself: of a layer of 128 GiB. Those of larger ones are found in the records of what is
/// kept, and fetched again where nothing is.
const KEPT: usize = 4 << 20;

/// How often a section or a chunk is asked for that turns out wrong: a proxy that spoils one answer in fifty is not to be
/// seen in a million reads, and what is wrong for good is fetched few times more.
pub(super) const ATTEMPTS: usize = 5;

/// A bound layer at work.
#[derive(Debug)]
pub(super) struct Binding {
    /// The section, verified; empty until the layer is touched.
    section: Arc<OnceCell<Bytes>>,
    /// Whether this place reads and keeps the layer where all do who can have it.
    shared: AtomicBool,
    /// Whether its bytes were found to be another layer's once.
    doubted: AtomicBool,
}

/// Where the digests of one file's chunks are in its layer's section. Nothing is copied: 32 bytes a chunk in all.
#[derive(Debug)]
pub(super) struct Digests {
    section: Arc<OnceCell<Bytes>>,
    /// The file's chunks, counted within the layer.
    chunks: Range<u64>,
}

/// Chunks that were wrong when they were last fetched, the first [`LISTED`] of them.
#[derive(Debug, Default)]
pub(super) struct Refused(Mutex<BTreeSet<Key>>);

impl Binding {
    /// A binding whose section is not here yet; `shared` says whether the place was shown to have the layer before.
    pub(super) fn new(shared: bool) -> Self {
        Self { section: Arc::default(), shared: AtomicBool::new(shared), doubted: AtomicBool::new(false) }
    }

    /// Takes down that its bytes were found to be another layer's; whether that is news.
    pub(super) fn doubt(&self) -> bool {
        !self.doubted.swap(true, Ordering::AcqRel)
    }

    /// Whether they were once.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.load(Ordering::Acquire)
    }

    /// The digests of the file whose chunks are these, counted within the layer.
    pub(super) fn digests(&self, chunks: Range<u64>) -> Digests {
        Digests { section: Arc::clone(&self.section), chunks }
    }
}

impl Digests {
    /// The digest that the file's `chunk` must have; `None` while the section is not here.
    pub(super) fn of(&self, chunk: u64) -> Option<ChunkDigest> {
        let first = self.chunks.start.checked_add(chunk).filter(|at| self.chunks.contains(at))?;
        let digest = self.slice(first..first.checked_add(1)?)?;
        Some(ChunkDigest::recorded(digest.as_ref().try_into().ok()?))
    }

    /// Those of all chunks of the file, one after the other; `None` while the section is not here.
    pub(super) fn all(&self) -> Option<Bytes> {
        self.slice(self.chunks.clone())
    }

    fn slice(&self, chunks: Range<u64>) -> Option<Bytes> {
        let section = self.section.get()?;
        let at = |chunk: u64| usize::try_from(chunk.checked_mul(DIGEST)?).ok();
        section.get(at(chunks.start)?..at(chunks.end)?).map(|digests| section.slice_ref(digests))
    }
}

impl Refused {
    /// Notes a chunk; whether it is news.
    fn note(&self, key: Key) -> bool {
        let mut refused = self.0.lock();
        (refused.len() < LISTED || refused.contains(&key)) && refused.insert(key)
    }

    /// Takes a chunk off that has come right.
    pub(super) fn clear(&self, key: Key) {
        self.0.lock().remove(&key);
    }
}

impl Loader {
    /// The chunks of bound layers that were wrong when they were last fetched and have not come right since, each as a
    /// file and a chunk's number in it; a thousand at most.
    #[must_use]
    pub fn refused(&self) -> Vec<(ExtentId, u64)> {
        self.refused.0.lock().iter().copied().collect()
    }

    /// Makes sure, once a mount, that what the chunks of a bound layer must be is known. Asks the network at most where
    /// this machine has not the section. Does nothing for other layers.
    ///
    /// # Errors
    /// `Integrity` where the section is not what the manifest says, else what the repository says, either under the
    /// name of the bound index; the next one to ask tries again.
    pub(super) async fn bind(self: &Arc<Self>, layer: usize) -> Result<()> {
        let Some(binding) = self.binding(layer) else { return Ok(()) };
        binding.section.get_or_try_init(|| self.bring_section(layer)).await.map(drop)
    }

    /// The same, as far as it goes without the network. Blocks on the local disk.
    pub(super) fn bind_locally(&self, layer: usize) {
        let Some(binding) = self.binding(layer).filter(|binding| !binding.section.initialized()) else {
            return;
        };
        if let Some(section) = self.local_section(layer) {
            // Fails where somebody else has brought it meanwhile, or is about to.
            let _ = binding.section.set(section);
        }
    }

    /// Whether the error is about a chunk alone: what its neighbours must be is known as well.
    pub(super) fn concerns_a_chunk(&self, layer: usize, error: &Error) -> bool {
        let bound = self.binding(layer).is_some_and(|binding| binding.section.initialized());
        bound && error.kind() == Kind::Integrity
    }

    /// The chunk, if its bytes are what the bound index says; asked for again where they are not, a few times, then refused.
    pub(super) async fn verified_bound(
        self: &Arc<Self>,
        extent: &Extent,
        chunk: u64,
        bytes: impl Into<Hashed>,
    ) -> Result<Verified> {
        if let Some(verified) = extent.verify(chunk, bytes) {
            return Ok(verified);
        }
        self.metrics.fetch_mismatches.add(1);
        let (layer, content) = (extent.id.layer, extent.content(&(chunk..chunk + 1)));
        for _ in 1..ATTEMPTS {
            self.distrust(layer);
            let again = self.content(layer, content).await?;
            if let Some(verified) = extent.verify(chunk, again) {
                return Ok(verified);
            }
            self.metrics.fetch_mismatches.add(1);
        }
        Err(self.refuse(extent, chunk))
    }

    /// Says that bytes of the layer were wrong, so that another place is asked for them, where there is one.
    pub(super) fn distrust(&self, layer: usize) {
        if let Some(layer) = self.layer(layer) {
            self.repository.distrust(&layer.blob);
        }
    }

    /// Says of a chunk that it is wrong in the repository; logged when it is news, since readers ask again and again.
    pub(super) fn refuse(&self, extent: &Extent, chunk: u64) -> Error {
        self.metrics.refused_chunks.add(1);
        let digest =
            self.layer(extent.id.layer).map(|layer| layer.blob.digest.to_string()).unwrap_or_default();
        let (range, place) = (extent.grid.range(chunk), self.repository.place());
        if self.refused.note((extent.id, chunk)) {
            tracing::error!(
                path = extent.path, bytes = %range, layer = digest, place,
                "REFUSED: these bytes are not what the bound index says; reading them fails, the rest is served"
            );
        }
        let doing =
            format!("{place} gives other bytes {range} of it than the bound index says (layer {digest})");
        Error::new(Kind::Integrity, doing)
            .hint("push the layer again; until then only these bytes are missing")
    }

    /// Shares a bound layer that this place keeps for itself, if all of it is here: then it has nothing to learn from what
    /// others keep, as whoever has proved a plain layer has not. Blocks.
    pub(super) fn share_whole(&self, layer: usize) {
        let (Some(binding), Some(described)) = (self.binding(layer), self.layer(layer)) else { return };
        let here = |extent: &Extent| self.shelf.kept_bytes(&extent.layer, extent.range) == extent.grid.len();
        if !binding.shared.load(Ordering::Acquire) && self.extents(layer).all(here) {
            // Twice at once does no harm: the store looks again with nobody beside it.
            self.shelf.store.set_bound(&self.shelf.who, described.kept_as());
            if self.shelf.proved(described.kept_as()) {
                self.see_shared(layer);
            }
        }
    }

    /// Whether it is not known yet that the place may see what others keep of the layer.
    pub(super) fn is_stranger_to(&self, layer: usize) -> bool {
        match self.binding(layer) {
            Some(binding) => !binding.shared.load(Ordering::Acquire),
            None => self.standing(layer) == Standing::Unproved,
        }
    }

    /// Takes down that it may.
    pub(super) fn see_shared(&self, layer: usize) {
        if let Some(binding) = self.binding(layer) {
            binding.shared.store(true, Ordering::Release);
        }
    }

    pub(super) fn binding(&self, layer: usize) -> Option<&Binding> {
        self.layers.get(layer)?.binding.as_ref()
    }

    async fn bring_section(self: &Arc<Self>, layer: usize) -> Result<Bytes> {
        let described = self.layer(layer).and_then(|layer| Some((layer, &layer.bound.as_ref()?.chunks)));
        let Some((described, bound)) = described else {
            return Err(Error::new(Kind::Invalid, "no such layer"));
        };
        let loader = Arc::clone(self);
        let local = tokio::task::spawn_blocking(move || loader.local_section(layer));
        // A disk that hangs must not keep the network from being asked.
        if let Ok(Ok(Some(section))) = tokio::time::timeout(LOOK_LIMIT, local).await {
            return Ok(section);
        }
        let doing = || format!("cannot read the bound index of layer {}", described.blob.digest);
        let section = self.fetch_section(described, bound).await.map_err(|error| error.context(doing()))?;
        let (loader, digest, kept) = (Arc::clone(self), bound.digest.clone(), section.clone());
        // Beside the readers; where it can't be kept, it is fetched again by the next mount.
        let keep = move || loader.shelf.store.keep_small(&loader.shelf.who, &digest, &kept);
        if section.len() <= KEPT {
            drop(tokio::task::spawn_blocking(keep));
        }
        Ok(section)
    }

    async fn fetch_section(&self, layer: &Layer, bound: &Section) -> Result<Bytes> {
        let wrong = |why: &str| {
            let doing = format!("{} in {} {why}", bound.digest, self.repository.place());
            Error::new(Kind::Integrity, doing)
                .hint("push the artifact again; 'weightfs index add' writes a new index")
        };
        if bound.range.len() != section_len(layer) {
            return Err(wrong("has not a digest for every chunk"));
        }
        for _ in 0..ATTEMPTS {
            let section = self.read_section(bound).await?;
            if bound.digest.matches(&section) {
                return Ok(section);
            }
            tracing::warn!(layer = %layer.blob.digest, "the section of the bound index is wrong");
            if let Home::Repository(blob) = &bound.home {
                self.repository.distrust(blob);
            }
        }
        Err(wrong("is not what the manifest says"))
    }

    /// The bytes where the section should be, not verified.
    pub(super) async fn read_section(&self, section: &Section) -> Result<Bytes> {
        self.read_index(&section.home, section.range).await
    }

    /// Bytes of an index, not verified.
    pub(super) async fn read_index(&self, home: &Home, range: StoredRange) -> Result<Bytes> {
        let file = match home {
            Home::Repository(blob) => return read_all(&*self.repository, blob, range).await,
            Home::File(file) => Arc::clone(file),
        };
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; usize::try_from(range.len()).unwrap_or(0)];
            file.read_exact_at(&mut bytes, range.start()).map(|()| Bytes::from(bytes))
        });
        let failed = |error| Error::from_source(Kind::Storage, "cannot read an index of this machine", error);
        read.await.map_err(std::io::Error::other).flatten().map_err(failed)
    }

    /// The section, if this machine has it: along with the index, as it was kept, or in the records of the chunks that
    /// are kept. Blocks.
    fn local_section(&self, layer: usize) -> Option<Bytes> {
        let described = self.layer(layer)?;
        let bound = &described.bound.as_ref()?.chunks;
        let right =
            |section: &Bytes| section.len() as u64 == section_len(described) && bound.digest.matches(section);
        let (store, who) = (&self.shelf.store, &self.shelf.who);
        let along = || bound.bytes.clone().filter(right);
        let kept = || store.small(who, &bound.digest).filter(right);
        let records =
            || store.records(who, described.kept_as(), &described.extents).map(Bytes::from).filter(right);
        along().or_else(kept).or_else(records)
    }
}

/// How long a layer's section must be.
fn section_len(layer: &Layer) -> u64 {
    let chunks = layer.extents.iter().map(|extent| Grid::new(extent.len()).chunks());
    chunks.fold(0_u64, u64::saturating_add).saturating_mul(DIGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_file_finds_its_own_digests_in_the_section_and_no_others() {
        let binding = Binding::new(false);
        let (first, second) = (binding.digests(0..2), binding.digests(2..3));
        assert!(first.of(0).is_none() && first.all().is_none());
        let section: Vec<u8> = (0..3).flat_map(|chunk| [chunk; 32]).collect();
        binding.section.set(section.clone().into()).unwrap();
        assert_eq!(first.of(1), Some(ChunkDigest::recorded([1; 32])));
        assert_eq!(second.of(0), Some(ChunkDigest::recorded([2; 32])));
        assert!(first.of(2).is_none() && second.of(1).is_none() && second.of(u64::MAX).is_none());
        assert_eq!(first.all().unwrap(), &section[..64]);
        assert_eq!(binding.digests(2..4).all(), None, "beyond its end");
    }

    #[test]
    fn the_list_of_refused_chunks_is_bounded_and_says_what_is_news() {
        let refused = Refused::default();
        let key = |chunk: usize| (ExtentId { layer: 0, extent: 0 }, chunk as u64);
        assert!(refused.note(key(0)) && !refused.note(key(0)));
        let news = (1..2 * LISTED).filter(|chunk| refused.note(key(*chunk))).count();
        assert_eq!(news, LISTED - 1);
        assert_eq!(refused.0.lock().len(), LISTED);
        refused.clear(key(0));
        assert!(refused.note(key(0)));
    }
}
