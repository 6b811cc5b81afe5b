//! Bound layers that are seen by others than those who chose their index: held to their own digest too, once all is here.
//!
//! A bound index is the word of who published the artifact. Who mounts that artifact has chosen it, and nothing more is asked. A
//! container's snapshot and a blob of an artifact store are found by a layer's digest alone, by whoever lists the same
//! layer; so such a mount owes them the comparison with that digest. It costs its readers nothing: the bytes are hashed by
//! the prover, as those of plain layers are. What turns out to be another layer is poisoned, and stays so.

use std::sync::atomic::Ordering;

use super::extent::Extent;
use super::loader::{Loader, Standing};
use super::shelf::Shelf;
use crate::index::{Coding, Layer};
use crate::oci::Digest;

/// Whether a layer's own digest is to be found over its bytes although an index says what they are: it was not yet, and can be.
/// Reads a small file of the store.
pub(super) fn may_owe(layer: &Layer, shelf: &Shelf) -> bool {
    let is_paid = || shelf.store.is_paid(&shelf.who, layer.kept_as(), &layer.blob.digest);
    layer.bound.is_some() && matches!(layer.coding, Coding::Stored) && !is_paid()
}

impl Loader {
    /// Whether the layer is bound, and its own digest is still to be found over its bytes.
    pub(super) fn owes(&self, layer: usize) -> bool {
        self.layers.get(layer).is_some_and(|layer| layer.owes.load(Ordering::Acquire))
    }

    /// Whether the layer's own digest is still to be found over its bytes.
    pub(super) fn is_to_be_proved(&self, layer: usize) -> bool {
        match self.standing(layer) {
            Standing::Unproved => true,
            Standing::Proved => self.owes(layer),
            Standing::Poisoned => false,
        }
    }

    /// Whether nothing is left to be found out about the bytes of the layer: the kernel may have them.
    pub(super) fn is_settled(&self, layer: usize) -> bool {
        self.standing(layer) == Standing::Proved && !self.owes(layer)
    }

    /// Has a layer that owes its proof compared with its digest, if all of it is here. Blocks.
    pub(super) fn prove_owed(&self, layer: usize) {
        let here = |extent: &Extent| self.shelf.kept_bytes(&extent.layer, extent.range) == extent.grid.len();
        if self.owes(layer) && self.extents(layer).all(here) {
            self.prover.check(layer);
        }
    }

    /// Takes down that the layer's own digest was found over its bytes. Blocks.
    pub(super) fn note_paid(&self, layer: usize) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        stratum.owes.store(false, Ordering::Release);
        self.shelf.store.note_paid(&self.shelf.who, described.kept_as(), &described.blob.digest);
        self.metrics.proved_layers.add(1);
        tracing::info!(layer = %described.blob.digest, "its index is right");
        self.extents(layer).for_each(|extent| self.prover.seal(extent.id));
    }

    /// Poisons a layer whose bytes are as its index says, and are not the layer. What lies between files is nobody's word but the
    /// repository's: where there is any, it is asked for once more before. Blocks.
    pub(super) fn doubt_index(&self, layer: usize, found: &Digest) {
        let (Some(binding), Some(described)) = (self.binding(layer), self.layer(layer)) else { return };
        if binding.doubt() && !described.gaps.is_empty() {
            self.distrust(layer);
            return self.prover.check(layer);
        }
        // Names may have been read from what lies between.
        self.shelf.store.discard(&self.shelf.who, &described.blob.digest);
        self.poison(layer, &format!("its bytes are {found}, and what its index says"));
    }

    /// Poisons a layer whose index was found to be wrong by an earlier process, or another one. Blocks.
    pub(super) fn recall_lie(&self, layer: usize) {
        let Some(described) = self.layer(layer).filter(|_| self.owes(layer)) else { return };
        if self.shelf.store.is_poisoned(&self.shelf.who, described.kept_as()) {
            self.poison(layer, "its index was found to be wrong before");
        }
    }

    /// Withdraws what others were shown of a bound layer that is poisoned. Blocks.
    pub(super) fn forget_shared(&self, layer: usize) {
        if let Some(described) = self.layer(layer).filter(|_| self.binding(layer).is_some()) {
            self.shelf.store.withdraw(described.kept_as());
        }
    }
}
