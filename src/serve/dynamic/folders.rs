//! Where a dynamic volume lies on the node: what its pod sees, and what only its process does.
//!
//! Below the plane's own folder, which is private. The pod is shown the view, and nothing beside it.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::error::{Result, StorageContext};
use crate::mount::frame;
use crate::serve::state::private;

/// What the mount is called in the view.
pub(in crate::serve) const MODELS: &str = "models";

/// The folders of one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::serve) struct Folders {
    base: PathBuf,
}

impl Folders {
    /// Those below `base`.
    pub(in crate::serve) fn at(base: &Path) -> Self {
        Self { base: base.to_owned() }
    }

    /// Those whose models are mounted at `models`.
    pub(in crate::serve) fn around(models: &Path) -> Option<Self> {
        models.parent().and_then(Path::parent).map(Self::at)
    }

    /// All of them.
    pub(in crate::serve) fn base(&self) -> &Path {
        &self.base
    }

    /// What the pod sees, to write to.
    pub(in crate::serve) fn plain(&self) -> PathBuf {
        self.base.join("plain")
    }

    /// The same in its frame.
    pub(in crate::serve) fn view(&self) -> PathBuf {
        self.base.join("view")
    }

    /// Where the models are mounted.
    pub(in crate::serve) fn models(&self) -> PathBuf {
        self.view().join(MODELS)
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.plain().join("csi").join("csi.sock")
    }

    pub(super) fn status(&self) -> PathBuf {
        self.plain().join("status.json")
    }

    /// What is noted of the models, for the next process.
    pub(super) fn noted(&self) -> PathBuf {
        self.base.join("models.json")
    }

    /// Makes them where they are missing, and the frame.
    ///
    /// # Errors
    /// `Storage`, and those of [`frame::raise`].
    pub(in crate::serve) fn make(&self) -> Result<()> {
        private(&self.base)?;
        for folder in [self.plain(), self.plain().join("csi"), self.plain().join(MODELS)] {
            let doing = || format!("cannot make {}", folder.display());
            DirBuilder::new().recursive(true).mode(0o755).create(&folder).storage(doing)?;
            // Whatever the process's own mask: who runs in the pod need not be root.
            std::fs::set_permissions(&folder, Permissions::from_mode(0o755)).storage(doing)?;
        }
        frame::raise(&self.plain(), &self.view())
    }

    /// Takes all of it away. What stays is in the log.
    pub(in crate::serve) fn clear(&self) {
        if let Err(error) = frame::hide(&self.plain(), &self.view()) {
            tracing::warn!("{error}");
            return;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.base)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the folder {} stays", self.base.display());
        }
    }
}
