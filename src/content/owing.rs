//! Bound layers that are seen by others than those who chose their index: held to their own digest too, once all is here.
//!
//! A bound index is the word of who published the artifact. Who mounts that artifact has chosen it, and nothing more is asked. A
//! container's snapshot and a blob of an artifact store are found by a layer's digest alone, by whoever lists the same
//! layer; so such a mount owes them the comparison with that digest. It costs its readers nothing: the bytes are hashed by
//! the prover, as those of plain layers are. What turns out to be another layer is poisoned, and stays so.

use std::sync::atomic::Ordering;

use super::bound::Binding;
use super::extent::Extent;
use super::loader::{Loader, Standing};
use super::shelf::Shelf;
use super::store::GapsDigest;
use crate::index::{Coding, Layer};
use crate::oci::Digest;

/// Whether a layer's own digest is to be found over its bytes although an index says what they are: it was not yet, with the
/// headers of this digest among them, and can be. Reads a small file of the store.
pub(super) fn may_owe(layer: &Layer, gaps: Option<GapsDigest>, shelf: &Shelf) -> bool {
    let is_paid = || shelf.store.is_paid(&shelf.who, layer.kept_as(), &layer.blob.digest, gaps);
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

    /// Has a layer that owes its proof compared with its digest, if all of it is here and nobody has done so meanwhile. Blocks.
    pub(super) fn prove_owed(&self, layer: usize) {
        let Some(described) = self.layer(layer).filter(|_| self.owes(layer)) else { return };
        if !may_owe(described, self.gaps(layer), &self.shelf) {
            return self.settle(layer);
        }
        let here = |extent: &Extent| self.shelf.kept_bytes(&extent.layer, extent.range) == extent.grid.len();
        if self.extents(layer).all(here) {
            self.prover.check(layer);
        }
    }

    /// Nothing is left to be found out about the layer's bytes: the kernel may have what is complete.
    fn settle(&self, layer: usize) {
        if let Some(stratum) = self.layers.get(layer) {
            stratum.owes.store(false, Ordering::Release);
        }
        self.extents(layer).for_each(|extent| self.prover.seal(extent.id));
    }

    /// Takes down that the layer's own digest was found over its bytes, and what lies between: where that was asked for anew, it
    /// is not what names were read from. Blocks.
    pub(super) fn note_paid(&self, layer: usize) {
        let (Some(stratum), Some(described)) = (self.layers.get(layer), self.layer(layer)) else { return };
        if stratum.gaps.is_some() && self.is_doubted(layer) {
            return self.disown_names(layer, described);
        }
        let (kept_as, digest) = (described.kept_as(), &described.blob.digest);
        self.shelf.store.note_paid(&self.shelf.who, kept_as, digest, stratum.gaps);
        self.metrics.proved_layers.add(1);
        tracing::info!(layer = %described.blob.digest, "its index is right");
        self.settle(layer);
    }

    /// Poisons a layer whose bytes are as its index says, and are not the layer. What lies between files is nobody's word but the
    /// repository's: where there is any, all of it is asked for anew before, and none of it is kept. Blocks.
    pub(super) fn doubt_index(&self, layer: usize, found: &Digest) {
        let (Some(binding), Some(described)) = (self.binding(layer), self.layer(layer)) else { return };
        // Who opens the layer next must not be given it again.
        self.shelf.store.drop_gaps(&self.shelf.who, &described.blob.digest);
        if binding.doubt() && !described.gaps.is_empty() {
            self.distrust(layer);
            return self.prover.check(layer);
        }
        self.poison(layer, &format!("its bytes are {found}, and what its index says"));
    }

    /// Whether the layer's bytes were found to be another layer's once, so that what lies between them is asked for anew.
    pub(super) fn is_doubted(&self, layer: usize) -> bool {
        self.binding(layer).is_some_and(Binding::is_doubted)
    }

    /// Poisons a layer whose index, or whose headers as they were given here, were found to be wrong by an earlier process, or
    /// another one. Blocks.
    pub(super) fn recall_lie(&self, layer: usize) {
        let Some(described) = self.layer(layer).filter(|_| self.owes(layer)) else { return };
        if self.shelf.store.is_poisoned(&self.shelf.who, described.kept_as(), self.gaps(layer)) {
            self.poison(layer, "its index or its headers were found to be wrong before");
        }
    }

    /// Has this place see no more of what is shared of a bound layer that is poisoned, unless its bytes were found to be right: then
    /// it is for what lies between them. Others who see it keep it: whose headers or whose index lie may be known to this place
    /// alone, and who shows the layer to those who have not chosen its index compares it for himself. Blocks.
    pub(super) fn forget_shared(&self, layer: usize) {
        let Some(described) = self.layer(layer).filter(|_| self.binding(layer).is_some()) else { return };
        let (store, name) = (&self.shelf.store, described.kept_as());
        if !store.is_paid_for_all(name, &described.blob.digest, None) {
            store.forsake(&self.shelf.who, name);
        }
    }
}
