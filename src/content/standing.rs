//! What is known of each layer's bytes, how that changes, and what follows from it.
//!
//! A layer begins unproved, or proved where an earlier process left the proof; it becomes proved or poisoned once
//! all of it has been here. The prover decides; here is what a decision does to readers, store and kernel.

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::mpsc;

use super::Integrity;
use super::extent::Extent;
use super::lanes::Lane;
use super::loader::{Loader, Standing, Stratum};
use super::store::kept::KeptFile;
use crate::error::{Error, Kind, Result};
use crate::range::ContentRange;

/// Files of the store that nobody has used for so long are closed, so that they may be evicted.
const IDLE: Duration = Duration::from_secs(5);

impl Loader {
    /// What is known of the bytes of layer `layer` of the index.
    #[must_use]
    pub fn standing(&self, layer: usize) -> Standing {
        self.layers.get(layer).map_or(Standing::Unproved, |layer| *layer.standing.borrow())
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

    pub(super) fn may_serve(&self, layer: usize) -> bool {
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
    pub(super) async fn prove_first(self: &Arc<Self>, layer: usize) -> Result<()> {
        let Some(stratum) = self.layers.get(layer) else { return Ok(()) };
        self.admit(layer).await?;
        let (mut standing, mut attempts) = (stratum.standing.subscribe(), stratum.attempts.subscribe());
        if *standing.borrow_and_update() == Standing::Unproved {
            attempts.borrow_and_update();
            let whole = |extent: &Extent| (extent.id, ContentRange::new(0, extent.grid.len()));
            let fetches = stratum
                .extents
                .iter()
                .map(whole)
                .map(|(id, whole)| self.fetch_missing(id, whole, Lane::Demand));
            futures_util::stream::iter(fetches).buffer_unordered(4).try_collect::<()>().await?;
            self.prover.check(layer);
        }
        loop {
            let hashed = self.prover.hashed();
            let settled = async {
                tokio::select! {
                    _ = standing.wait_for(|standing| *standing != Standing::Unproved) => true,
                    _ = attempts.changed() => false,
                }
            };
            match tokio::time::timeout(self.config.read_deadline, settled).await {
                Ok(true) => return self.refuse_poisoned(layer),
                Err(_) if self.prover.hashed() > hashed => {}
                Ok(false) | Err(_) => {
                    let doing = "the layer could not be proved: it cannot be kept as a whole";
                    return Err(
                        Error::new(Kind::Storage, doing).hint("give the store more room (--store-size)")
                    );
                }
            }
        }
    }

    /// Takes down that the layer's digest was proved over its bytes. Blocks.
    pub(super) fn set_proved(&self, layer: usize) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        if stratum.extents.iter().all(|extent| extent.vouch(&self.shelf)) {
            self.shelf.store.set_proved(&self.shelf.who, &described.blob.digest);
        }
        if stratum.become_proved() {
            self.metrics.proved_layers.add(1);
            tracing::info!(layer = %described.blob.digest, "proved");
        }
    }

    /// Takes over a proof that was made by others, which this mount may see.
    pub(super) fn adopt_proof(&self, layer: usize) {
        if let Some(stratum) = self.layers.get(layer) {
            stratum.become_proved();
        }
    }

    /// Makes sure that the digest which the store has on record for a chunk may be relied on, before it is: the records
    /// of a proved layer are vouched for. Where they are not, the proof is withdrawn. Blocks.
    pub(super) fn doubt(&self, extent: &Extent, kept: &KeptFile, chunk: u64) {
        let layer = extent.id.layer;
        if self.standing(layer) != Standing::Proved || extent.knows(chunk) || extent.vouched(kept) {
            return;
        }
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        tracing::warn!(path = extent.path, "digests on record are damaged: its layer counts as not proved");
        stratum.standing.send_if_modified(|standing| {
            let proved = *standing == Standing::Proved;
            if proved {
                *standing = Standing::Unproved;
            }
            proved
        });
        if self.shelf.proved(&described.blob.digest) {
            self.shelf.store.withdraw(&described.blob.digest);
        }
        stratum.extents.iter().for_each(Extent::forget);
    }

    /// Declares the layer's bytes wrong: from now on its reads fail, and the store has none of them. Blocks.
    pub(super) fn poison(&self, layer: usize, why: &str) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        if stratum.standing.send_replace(Standing::Poisoned) == Standing::Poisoned {
            return;
        }
        tracing::error!(layer = %described.blob.digest, why, "POISONED: reads of its files fail from now on");
        self.metrics.poisoned_layers.add(1);
        self.board.purge(layer, &self.poison_error(layer));
        let mut poisoned = self.poisoned.lock();
        poisoned.layers.push(layer);
        poisoned.told.retain(|told| told.send(layer).is_ok());
        drop(poisoned);
        self.shelf.store.poison(&self.shelf.who, &described.blob.digest);
        stratum.extents.iter().for_each(Extent::forget);
    }

    /// Removes what the store has of an unproved layer whose records are not what the repository gives. Blocks.
    pub(super) fn discard(&self, layer: usize) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        self.shelf.store.discard(&self.shelf.who, &described.blob.digest);
        stratum.extents.iter().for_each(Extent::forget);
    }

    /// Lets go of idle files, and takes over what other processes found out about shared layers. Blocks.
    pub(super) fn look_around(&self) {
        for (number, stratum) in self.layers.iter().enumerate() {
            if *stratum.standing.borrow() == Standing::Unproved && stratum.extents.iter().any(Extent::touched)
            {
                self.learn(number, stratum);
            }
        }
        self.shelf.store.release_idle(IDLE);
    }

    fn learn(&self, number: usize, stratum: &Stratum) {
        let Some(layer) = self.layer(number) else { return };
        if self.shelf.store.poisoned_since(&self.shelf.who, &layer.blob.digest, self.began) {
            self.poison(number, "another process found it out");
        } else if self.shelf.proved(&layer.blob.digest) {
            self.compare_with_proof(number, stratum);
        } else {
            for extent in stratum.extents.iter().filter(|extent| extent.complete_by_now()) {
                self.completed(extent);
            }
        }
    }

    /// Another process has proved the layer: what was served here must be what was proved there.
    fn compare_with_proof(&self, number: usize, stratum: &Stratum) {
        for extent in stratum.extents.iter().filter(|extent| extent.touched()) {
            // Anew: what is open here may not be what was proved.
            let Ok(kept) = self.shelf.file(&extent.layer, extent.range) else { return };
            if !kept.vouched() {
                return;
            }
            if !extent.agrees_with(&kept) {
                self.poison(number, "another process proved other bytes");
                return;
            }
        }
        stratum.become_proved();
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

    /// Whether the layer has become complete with this file; said once, until [`not_proved`](Self::not_proved).
    fn all_complete(&self, complete: &Extent) -> bool {
        let Some(stratum) = self.layers.get(complete.id.layer) else { return false };
        let mut incomplete = stratum.incomplete.lock();
        let left = incomplete.get_or_insert_with(|| {
            let unfinished =
                |extent: &&Extent| self.shelf.kept_bytes(&extent.layer, extent.range) < extent.grid.len();
            let left = stratum.extents.iter().filter(unfinished).map(|extent| extent.id.extent);
            left.chain([complete.id.extent]).collect()
        });
        left.remove(&complete.id.extent) && left.is_empty()
    }

    /// Takes down that an attempt to prove the layer came to nothing.
    pub(super) fn not_proved(&self, layer: usize) {
        if let Some(stratum) = self.layers.get(layer) {
            *stratum.incomplete.lock() = None;
            stratum.attempts.send_modify(|attempts| *attempts += 1);
        }
    }
}

impl Stratum {
    /// Whether the layer was unproved before.
    fn become_proved(&self) -> bool {
        self.standing.send_if_modified(|standing| {
            let unproved = *standing == Standing::Unproved;
            if unproved {
                *standing = Standing::Proved;
            }
            unproved
        })
    }
}
