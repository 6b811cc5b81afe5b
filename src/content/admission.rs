//! Who may see what is kept: a mount is shown kept bytes of a layer only if it could fetch them by itself.
//!
//! The store is shared and keyed by digest, and a digest is no secret: a registry of somebody's own making could
//! name any layer in a manifest. So a place and its credentials that did not bring a layer here are asked for one
//! kept chunk of it, picked at random, before they are shown the others. That they can have it is remembered.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use super::extent::Extent;
use super::loader::Loader;
use super::verify::{ChunkDigest, Verified};
use crate::error::{Error, Kind, Result};

impl Loader {
    /// Makes sure that this mount may see what the store has of `layer`. Asks the network at most once a layer
    /// and mount, and not at all where it is known.
    ///
    /// # Errors
    /// Whatever the repository says; `Integrity` where it gives other bytes than those that are kept.
    pub(super) async fn admit(self: &Arc<Self>, layer: usize) -> Result<()> {
        let Some(admitted) = self.admission(layer) else { return Ok(()) };
        admitted.get_or_try_init(|| self.ask_admission(layer)).await.copied()
    }

    /// Whether this mount is known to be able to have the layer's bytes. Blocks for a small file.
    pub(super) fn has_admission(&self, layer: usize) -> bool {
        let described = self.layer(layer);
        self.admission(layer).is_some_and(|admitted| admitted.initialized())
            || described
                .is_some_and(|layer| self.store.origin(&layer.blob.digest, &self.repository.identity()))
    }

    async fn ask_admission(self: &Arc<Self>, layer: usize) -> Result<()> {
        let loader = Arc::clone(self);
        let look = move || (!loader.has_admission(layer)).then(|| loader.any_kept(layer));
        let Ok(Some(sample)) = tokio::task::spawn_blocking(look).await else { return Ok(()) };
        if let Some((extent, chunk, known)) =
            sample.and_then(|(id, chunk, known)| Some((self.extent(id)?, chunk, known)))
        {
            let (blob, range) = self.stored(extent, &(chunk..chunk + 1))?;
            let bytes = crate::repository::read_all(&*self.repository, &blob, range).await?;
            if Verified::check(bytes, Some(known)).is_none() {
                let doing = format!(
                    "{} has other bytes for {} than are kept here",
                    self.repository.place(),
                    blob.digest
                );
                return Err(Error::new(Kind::Integrity, doing).hint("choose another store for it (--store)"));
            }
        }
        let loader = Arc::clone(self);
        let remember = move || {
            if let Some(layer) = loader.layer(layer) {
                loader.store.add_origin(&layer.blob.digest, &loader.repository.identity());
            }
        };
        // Where it can't be remembered, it is asked again next time.
        let _ = tokio::task::spawn_blocking(remember).await;
        Ok(())
    }

    /// One of the layer's kept chunks whose digest is known, any; `None` where nothing is kept. Blocks.
    fn any_kept(&self, layer: usize) -> Option<(crate::index::ExtentId, u64, ChunkDigest)> {
        let kept = |extent: &&Extent| self.store.kept_bytes(&extent.layer, extent.range) > 0;
        let extent = self.extents(layer).iter().find(kept)?;
        let files = extent.kept(&self.store)?;
        let here: Vec<u64> =
            (0..).zip(files.all()).filter(|(_, here)| *here).map(|(chunk, _)| chunk).collect();
        let at = RandomState::new().hash_one(layer) % (here.len() as u64).max(1);
        let chunk = *here.get(usize::try_from(at).ok()?)?;
        Some((extent.id, chunk, files.digest(chunk)?))
    }
}
