//! Who may see what is kept: a mount is shown a layer that others proved only if it could fetch it by itself.
//!
//! The store is keyed by digest, and a digest is no secret: a registry of somebody's own making could name any layer
//! in a manifest. So a place and its credentials that did not prove a layer here are asked for one kept chunk of it,
//! picked at random, before they are shown the others. That they can have it is remembered. Who has read names from other
//! headers than a layer was proved with has not that layer: he is not asked.

use std::sync::Arc;

use super::loader::Loader;
use super::verify::Verified;
use crate::error::Result;
use crate::index::ExtentId;

impl Loader {
    /// Finds out, once a mount, whether it may see a layer that others have proved here. What it may not see it fetches
    /// and keeps for itself, as if nothing were here.
    ///
    /// Asks the network for one chunk at most, and not at all where nothing is to be found out.
    ///
    /// # Errors
    /// Whatever the repository says; the next one to ask tries again.
    pub(super) async fn admit(self: &Arc<Self>, layer: usize) -> Result<()> {
        let Some(admitted) = self.admission(layer) else { return Ok(()) };
        admitted.get_or_try_init(|| self.ask_admission(layer)).await.copied()
    }

    async fn ask_admission(self: &Arc<Self>, layer: usize) -> Result<()> {
        let Some(described) = self.layer(layer).filter(|_| self.is_stranger_to(layer)) else {
            return Ok(());
        };
        let loader = Arc::clone(self);
        let look = move || {
            let described = loader.layer(layer)?;
            let name = described.kept_as();
            let strange = loader.shelf.store.proved_for_some(name) && !loader.shelf.proved(name);
            let may_be_asked = strange && loader.has_headers_of_proof(layer, described);
            may_be_asked.then(|| loader.shelf.store.sample(name, &described.extents)).flatten()
        };
        let Ok(Some((range, chunk, known))) = tokio::task::spawn_blocking(look).await else { return Ok(()) };
        let extent = described.extents.iter().position(|extent| *extent == range);
        let Some(extent) = extent.and_then(|extent| self.extent(ExtentId { layer, extent })) else {
            return Ok(());
        };
        let blob = &described.blob;
        let bytes = match self.content(layer, extent.content(&(chunk..chunk + 1))).await {
            Ok(bytes) => bytes,
            // Offline there is still what this place keeps for itself.
            Err(error) if error.kind().leaves_open() => {
                tracing::warn!(layer = %blob.digest, %error, "cannot ask whether this mount may see what others keep");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        if Verified::check(bytes, Some(known)).is_none() {
            tracing::warn!(layer = %blob.digest, "{} gives other bytes than were proved here", self.repository.place());
            return Ok(());
        }
        let loader = Arc::clone(self);
        // Where it can't be remembered, it is asked again next time.
        let kept_as = described.kept_as().clone();
        let take_over = move || {
            loader.shelf.store.add_origin(&loader.shelf.who, &kept_as);
            loader.see_shared(layer);
            loader.adopt_proof(layer);
            // All of it may be here now.
            loader.prove_owed(layer);
        };
        let _ = tokio::task::spawn_blocking(take_over).await;
        Ok(())
    }
}
