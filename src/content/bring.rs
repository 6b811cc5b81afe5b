//! Bringing whole files here, for who waits for all of it and reads nothing meanwhile: the commands that pull.
//!
//! The same requests, flights and claims as a reader's, in a lane of its own. Files come in order and little is
//! under way at once, so that a layer is hashed as it comes and little is lost when the process is killed.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::TryStreamExt;
use futures_util::stream::FuturesUnordered;

use super::extent::Extent;
use super::fetch;
use super::lanes::Lane;
use super::loader::{Loader, Standing};
use super::runs::runs;
use super::store::Sharing;
use crate::error::{Error, Kind, Result};
use crate::index::{ChunkDigest, ExtentId};
use crate::oci::Digest;
use crate::range::ContentRange;

/// How often is brought what turned out to be missing after all: damage in the store shows when it is read back.
const ROUNDS: usize = 3;

/// Is told of every so many bytes that are done: brought here, or digested and uploaded where a model is packed.
pub type Watch = Arc<dyn Fn(u64) + Send + Sync>;

/// How the store is asked what it has.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Its word is taken.
    AtMarks,
    /// What it says to have is read, and given up where it is not right.
    AtBytes,
}

impl Loader {
    /// Brings these files of one layer here, whole and verified. Where the artifact has no digests for the layer's chunks
    /// all of the layer's files must be named: only then can it be proved, and it is before this returns.
    ///
    /// What is here already is read back, not fetched, unless it was sealed. `watch` is told of each byte once.
    ///
    /// # Errors
    /// Those of [`read`](Self::read); `Storage` where the store did not keep all of it.
    pub async fn bring(self: &Arc<Self>, layer: usize, files: &[ExtentId], watch: &Watch) -> Result<()> {
        self.admit(layer).await?;
        self.bind(layer).await?;
        if self.streaming(layer).is_some() {
            self.let_pass(layer).await?;
        }
        // What the prover reads anyway is not read twice.
        let mut look = if self.standing(layer) == Standing::Proved { Look::AtBytes } else { Look::AtMarks };
        // What is brought a second time was told before.
        let mut watch = Arc::clone(watch);
        for _ in 0..ROUNDS {
            self.refuse_poisoned(layer)?;
            let missing = self.missing_of(files, look).await?;
            let lacking: u64 = missing.iter().map(|(id, run)| self.len_of(*id, run)).sum();
            watch(files.iter().map(|id| self.len(*id)).sum::<u64>().saturating_sub(lacking));
            let bring = |(id, run): (ExtentId, Range<u64>)| {
                let (watch, len) = (&watch, self.len_of(id, &run));
                async move { self.fetch_run(id, run, Lane::Whole).await.map(|()| watch(len)) }
            };
            let mut under_way = FuturesUnordered::new();
            for run in missing {
                // The best number may be another meanwhile.
                while under_way.len() >= fetch::width(self.repository.pace(), self.len_of(run.0, &run.1)) {
                    under_way.try_next().await?;
                }
                under_way.push(bring(run));
            }
            while under_way.try_next().await?.is_some() {}
            drop(under_way);
            if self.standing(layer) == Standing::Unproved {
                self.prove_first(layer).await?;
            }
            (look, watch) = (Look::AtMarks, Arc::new(|_| {}));
            if self.missing_of(files, look).await?.is_empty() {
                self.share_now(layer).await;
                return self.refuse_poisoned(layer);
            }
        }
        let doing = "the store did not keep all of it";
        Err(Error::new(Kind::Storage, doing)
            .hint("the lines before this one say why; --store names another place"))
    }

    /// The store's file that is an exact image of a file that was brought; `None` where it is not whole or not proved.
    ///
    /// Blocks on the local disk.
    #[must_use]
    pub fn image(&self, id: ExtentId) -> Option<PathBuf> {
        let extent = self.extent(id).filter(|_| self.standing(id.layer) == Standing::Proved)?;
        // Anew: what has been open since before the proof has moved.
        let kept = self.shelf.file(&extent.layer, extent.range).ok()?;
        let whole = kept.all().into_iter().all(|here| here);
        whole.then(|| kept.stem().with_added_extension("data"))
    }

    /// Under which name, and as which stretch of its layer's content, a file is kept; `None` where there is no such file, or it is
    /// not known yet.
    #[must_use]
    pub fn kept_at(&self, id: ExtentId) -> Option<(&Digest, ContentRange)> {
        self.extent(id).map(|extent| (&extent.layer, extent.range))
    }

    /// The files of a layer, as far as they are known.
    #[must_use]
    pub fn files_of(&self, layer: usize) -> Vec<ExtentId> {
        self.extents(layer).map(|extent| extent.id).collect()
    }

    /// How many bytes of content the store may hold.
    #[must_use]
    pub fn room(&self) -> u64 {
        self.shelf.store.budget().limit()
    }

    /// Why nothing can be kept, as it was found when the store was opened; `None` where it can.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.shelf.store.fault()
    }

    /// What each chunk of the file must be, where the artifact says so; `None` where it does not.
    ///
    /// Asks the network for a section of the index at most.
    ///
    /// # Errors
    /// Those of reading the bound index.
    pub async fn chunk_digests(self: &Arc<Self>, id: ExtentId) -> Result<Option<Vec<ChunkDigest>>> {
        self.bind(id.layer).await?;
        Ok(self.extent(id).and_then(Extent::bound_digests))
    }

    /// So that nothing is moved in the store while files are taken out of it.
    async fn share_now(self: &Arc<Self>, layer: usize) {
        let loader = Arc::clone(self);
        let _ = tokio::task::spawn_blocking(move || loader.share_whole(layer)).await;
    }

    /// Runs of chunks that are not here.
    async fn missing_of(
        self: &Arc<Self>,
        files: &[ExtentId],
        look: Look,
    ) -> Result<Vec<(ExtentId, Range<u64>)>> {
        let (loader, files) = (Arc::clone(self), files.to_vec());
        let search = move || {
            let of_file =
                |id: &ExtentId| loader.extent(*id).map(|extent| loader.missing_chunks(extent, look));
            let of_all = files.iter().map(|id| (*id, of_file(id).unwrap_or_default()));
            of_all
                .flat_map(|(id, chunks)| {
                    runs(&chunks, loader.grain(id.layer).ahead).into_iter().map(move |run| (id, run))
                })
                .collect()
        };
        let found = tokio::task::spawn_blocking(search).await;
        found.map_err(|error| {
            Error::from_source(Kind::Storage, "looking into the store was interrupted", error)
        })
    }

    fn missing_chunks(&self, extent: &Extent, look: Look) -> Vec<u64> {
        let all = 0..extent.grid.chunks();
        let Some(kept) = self.reliable(extent) else { return all.collect() };
        let sealed = || self.shelf.store.sharing() == Sharing::Proved && kept.sealed();
        let trusted = look == Look::AtMarks || sealed();
        let is_here = |(chunk, marked): &(u64, bool)| {
            *marked && (trusted || self.read_from(extent, &kept, *chunk).is_some())
        };
        all.zip(kept.all()).filter(|one| !is_here(one)).map(|(chunk, _)| chunk).collect()
    }

    /// How many bytes the file has.
    #[must_use]
    pub fn len(&self, id: ExtentId) -> u64 {
        self.extent(id).map_or(0, |extent| extent.grid.len())
    }

    fn len_of(&self, id: ExtentId, run: &Range<u64>) -> u64 {
        self.extent(id).map_or(0, |extent| extent.content(run).len())
    }
}
