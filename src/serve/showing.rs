//! How a mount is shown at a volume's folder: a model by itself, a dynamic volume in its frame.
//!
//! Called by the plane, which is alone in it.

use std::path::Path;

use super::dynamic::MODELS;
use super::host::Host;
use super::state::private;
use crate::error::Result;
use crate::mount::bind::{self, Seen};
use crate::mount::{Detach, frame};

impl Host {
    /// Shows the mount at `target`; once more changes nothing but repairs what is broken.
    ///
    /// # Errors
    /// Those of [`bind::bind`] and [`frame::show`].
    pub(super) fn show(&self, target: &Path) -> Result<()> {
        match &self.folders {
            None => bind::bind(&self.dir, target),
            Some(folders) => frame::show(&folders.view(), MODELS, target),
        }
    }

    /// What stands at `target`.
    ///
    /// # Errors
    /// `Storage` where the table can't be read.
    pub(super) fn seen(&self, target: &Path) -> Result<Seen> {
        match &self.folders {
            None => bind::seen(&self.dir, target),
            Some(folders) => frame::seen(&folders.view(), MODELS, target),
        }
    }

    /// Makes the place for the mount, with what is left of a former one cleared away.
    ///
    /// # Errors
    /// `Storage`, `Denied`, `Kernel`.
    pub(super) fn make_room(&self) -> Result<()> {
        bind::unbind(&self.dir, Detach::Lazy)?;
        match &self.folders {
            None => private(&self.dir),
            Some(folders) => folders.make(),
        }
    }

    /// Takes the mount and its place away. What stays is in the log.
    pub(super) fn clear(&self) {
        if let Err(error) = bind::unbind(&self.dir, Detach::Lazy) {
            tracing::warn!("{error}");
        }
        if let Some(folders) = &self.folders {
            return folders.clear();
        }
        if let Err(error) = std::fs::remove_dir(&self.dir) {
            tracing::debug!(%error, "the folder {} stays", self.dir.display());
        }
    }
}
