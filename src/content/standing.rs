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
    pub(super) fn look_around(&self) {
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
