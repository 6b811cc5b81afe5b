//! Which files of the store are whole, proved and untouched, so that the kernel may have them itself, and who is told.
//!
//! The prover [seals](super::prove) complete files; here is what follows from a seal. Asked by the mount:
//! when a file is opened, and when one that is open has become whole.

use std::fs::File;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::extent::Extent;
use super::loader::Loader;
use super::store::kept::KeptFile;
use crate::index::ExtentId;

/// What an open file keeps: while it lives, the store does not evict the file's content.
#[derive(Debug)]
pub struct Held {
    kept: Option<Arc<KeptFile>>,
    whole: bool,
}

impl Held {
    /// The store's file, complete or not: only to find out what the kernel says of it.
    #[must_use]
    pub fn image(&self) -> Option<&File> {
        self.kept.as_deref().map(KeptFile::image)
    }

    /// The store's file, if it was complete, proved and untouched when it was asked for: an exact image of the
    /// file that may be given to the kernel (passthrough).
    #[must_use]
    pub fn whole(&self) -> Option<&File> {
        self.kept.as_deref().filter(|_| self.whole).map(KeptFile::image)
    }
}

/// How far a file is on its way to being served by the kernel itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wholeness {
    /// Complete, proved and sealed when this process looked last.
    Sealed,
    /// Complete and proved, and still to be sealed.
    Unsealed,
    /// Complete, and its layer is not proved yet, or poisoned.
    Unproved,
    /// Not all of it is on this machine.
    Incomplete,
}

impl Loader {
    /// What an open file keeps; says whether the kernel may have the store's file instead of replies. Asks for a complete file
    /// that is not sealed to be sealed.
    ///
    /// Opens files of the store, so it may block for a moment on the local disk; never on the network.
    #[must_use]
    pub fn hold(&self, id: ExtentId) -> Held {
        let Some(extent) = self.extent(id) else { return Held { kept: None, whole: false } };
        let kept = self.reliable(extent);
        let proved = self.is_settled(id.layer);
        let whole = proved && kept.as_ref().is_some_and(|kept| extent.vouched(kept) && kept.sealed());
        extent.note_sealed(whole);
        if proved && !whole && extent.complete_by_now() {
            self.prover.seal(id);
        }
        Held { kept, whole }
    }

    /// Gives each file that is sealed from now on. A file may come more than once, and one that another process seals does not
    /// come: [`hold`](Self::hold) says whether it is.
    #[must_use]
    pub fn sealings(&self) -> mpsc::UnboundedReceiver<ExtentId> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.sealings.lock().push(sender);
        receiver
    }

    /// Whether a file was sealed when this process looked last. Asks the store nothing.
    #[must_use]
    pub fn was_sealed(&self, id: ExtentId) -> bool {
        self.extent(id).is_some_and(Extent::is_sealed)
    }

    /// Takes down that a file is sealed, and tells who wants to know.
    pub(super) fn note_sealed(&self, extent: &Extent) {
        extent.note_sealed(true);
        self.sealings.lock().retain(|told| told.send(extent.id).is_ok());
    }

    /// How far a file is; `None` where there is no such file. Reads a small file of the store where it is not sealed, so it
    /// blocks.
    #[must_use]
    pub fn wholeness(&self, id: ExtentId) -> Option<Wholeness> {
        let extent = self.extent(id)?;
        let proved = self.is_settled(id.layer);
        if proved && extent.is_sealed() {
            return Some(Wholeness::Sealed);
        }
        let complete = self.shelf.kept_bytes(&extent.layer, extent.range) == extent.grid.len();
        Some(match (complete, proved) {
            (false, _) => Wholeness::Incomplete,
            (true, false) => Wholeness::Unproved,
            (true, true) => Wholeness::Unsealed,
        })
    }
}
