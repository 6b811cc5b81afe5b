//! What the headers are worth that a mount's names were read from: each mount is given them by its own repository, before any of
//! the layer is proved.
//!
//! They are part of the layer that its digest is over. So a proof that others have made holds for a mount only where it was made
//! with the same headers; where it was made with others, the mount goes by its own bytes alone, and is poisoned if those are not
//! the layer. Layers of which no header was read, raw and compressed ones, are none of this, and nothing is asked for them.

use super::loader::Loader;
use super::shelf::Shelf;
use super::store::GapsDigest;
use crate::error::{Error, Kind};
use crate::index::Layer;

/// Whether the layer was proved here, may be seen, and the proof holds for a mount that has read names from headers of this
/// digest. Reads small files of the store.
pub(super) fn is_proved(layer: &Layer, gaps: Option<GapsDigest>, shelf: &Shelf) -> bool {
    shelf.proved(layer.kept_as()) && is_proved_with(layer, gaps, shelf)
}

fn is_proved_with(layer: &Layer, gaps: Option<GapsDigest>, shelf: &Shelf) -> bool {
    gaps.is_none() || shelf.store.is_paid_for_all(layer.kept_as(), &layer.blob.digest, gaps)
}

impl Loader {
    /// Whether this mount has read names from the headers that the layer was proved with by others, or from none. A bound layer
    /// is shown whoever has read which: its chunks are proved without, and what is [owed](super::owing) is owed by each mount.
    /// Reads a small file of the store.
    pub(super) fn has_headers_of_proof(&self, layer: usize, described: &Layer) -> bool {
        let gaps = self.gaps(layer);
        described.bound.is_some() || is_proved_with(described, gaps, &self.shelf)
    }

    /// Takes down with which headers the layer was proved, for other mounts to compare. Blocks.
    pub(super) fn note_headers(&self, layer: usize, described: &Layer) {
        let gaps = self.gaps(layer);
        if gaps.is_some() {
            let (store, who) = (&self.shelf.store, &self.shelf.who);
            store.note_paid(who, described.kept_as(), &described.blob.digest, gaps);
        }
    }

    /// Poisons, for this mount alone, a layer whose bytes are right and whose names were read from headers that are not its own.
    /// Blocks.
    pub(super) fn disown_names(&self, layer: usize, described: &Layer) {
        let digest = &described.blob.digest;
        // Whoever else has these bytes keeps them.
        self.shelf.store.note_paid(&self.shelf.who, described.kept_as(), digest, None);
        let place = self.repository.place();
        let doing = format!("the archive headers that {place} gave first are not those of {digest}");
        let reason = Error::new(Kind::Integrity, doing).hint("unmount and mount: they are read anew");
        self.poison_for(layer, "its names were read from headers that are not its own", &reason);
    }

    /// The digest of the headers that the layer's names were read from; `None` where none were.
    pub(super) fn gaps(&self, layer: usize) -> Option<GapsDigest> {
        self.layers.get(layer)?.gaps
    }
}
