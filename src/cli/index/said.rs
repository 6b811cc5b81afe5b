//! An index that is looked at: the one in a file, or a model's, wherever that stands.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::index::format::{Encoded, Head, of_file};
use crate::index::{attached_of, bound};
use crate::oci::artifact::BoundIndex;
use crate::pack::build::Opened;
use crate::repository::Repository;

/// The index in a file.
pub(super) struct Said {
    pub(super) encoded: Encoded,
    pub(super) head: Head,
}

impl Said {
    /// The index in the file `path`.
    ///
    /// # Errors
    /// `NotFound` and `Storage` where the file can't be read; `Invalid` and `Unsupported` where it is no index.
    pub(super) fn of_file(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| {
            let kind =
                if error.kind() == std::io::ErrorKind::NotFound { Kind::NotFound } else { Kind::Storage };
            Error::from_source(kind, format!("cannot read {}", path.display()), error)
        })?;
        let said = of_file(Arc::new(file));
        let (encoded, head) =
            said.map_err(|error| error.context(format!("{} is no index", path.display())))?;
        Ok(Self { encoded, head })
    }
}

/// The index of a model.
pub(super) struct OfModel {
    pub(super) opened: Opened,
    /// How it stands there: `bound` or `attached`.
    pub(super) how: &'static str,
    pub(super) index: BoundIndex,
    pub(super) head: Head,
}

impl OfModel {
    /// The index that the model `reference` has: its own, else one that is attached to it.
    ///
    /// # Errors
    /// `NotFound` where it has none; those of reading it.
    pub(super) async fn open(reference: &str, settings: &Settings) -> Result<Self> {
        let reference = crate::cli::reference(reference)?;
        let repository = crate::repository::connect(&reference, &settings.repository)?;
        let opened = Opened::open(repository, &reference, settings.content.platform.as_ref()).await?;
        let repository: &dyn Repository = &*opened.repository;
        if let Some(found) = bound::open(repository, &opened.artifact, None).await? {
            let (index, head) = (found.index, found.head);
            return Ok(Self { opened, how: "bound", index, head });
        }
        match attached_of(repository, &opened.artifact, &opened.pinned.digest, None).await? {
            Some(found) => Ok(Self { opened, how: "attached", index: found.index, head: found.head }),
            None => Err(Error::new(Kind::NotFound, format!("{reference} has no index"))
                .hint("make one with 'weightfs index build', 'index push' or 'index add'")),
        }
    }
}
