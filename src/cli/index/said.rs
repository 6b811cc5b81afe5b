//! An index that is looked at: the one in a file, or a model's, wherever that stands.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use crate::config::Settings;
use crate::content::Store;
use crate::error::{Error, Kind, Result};
use crate::index::format::{Encoded, Head, of_file};
use crate::index::{attached_of, bound, compression, local};
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
    /// Where it stands: `bound`, `attached` or `this machine`.
    pub(super) how: &'static str,
    /// What it is there; `None` on this machine, where each layer has a file of its own.
    pub(super) index: Option<BoundIndex>,
    /// How many bytes it has.
    pub(super) size: u64,
    pub(super) head: Head,
}

impl OfModel {
    /// The index that the model `reference` has: its own, else one that is attached to it, else what was made of its layers on
    /// this machine.
    ///
    /// # Errors
    /// `NotFound` where it has none; those of reading it.
    pub(super) async fn open(reference: &str, settings: &Settings) -> Result<Self> {
        let reference = crate::cli::reference(reference)?;
        let repository = crate::repository::connect(&reference, &settings.repository)?;
        let opened = Opened::open(repository, &reference, settings.content.platform.as_ref()).await?;
        let repository: &dyn Repository = &*opened.repository;
        if let Some(found) = bound::open(repository, &opened.artifact, None).await? {
            return Ok(Self::of(opened, "bound", found));
        }
        if let Some(found) = attached_of(repository, &opened.artifact, &opened.pinned.digest, None).await? {
            return Ok(Self::of(opened, "attached", found));
        }
        let (head, size) = of_this_machine(&opened, settings)?;
        if head.layers.is_empty() {
            return Err(Error::new(Kind::NotFound, format!("{reference} has no index"))
                .hint("make one with 'weightfs index build', 'index push' or 'index add'"));
        }
        Ok(Self { opened, how: "this machine", index: None, size, head })
    }

    fn of(opened: Opened, how: &'static str, found: bound::Opened) -> Self {
        let size = found.index.blob.size;
        Self { opened, how, index: Some(found.index), size, head: found.head }
    }

    /// How it is named in a sentence.
    pub(super) fn name(&self) -> String {
        match &self.index {
            Some(index) => index.blob.digest.to_string(),
            None => "made on this machine".to_owned(),
        }
    }
}

/// What the indexes say together that were made on this machine of the model's compressed layers, and how many bytes they have.
fn of_this_machine(opened: &Opened, settings: &Settings) -> Result<(Head, u64)> {
    let (store, who) = (Store::open(&settings.store)?, opened.repository.identity());
    let (mut head, mut size) =
        (Head { layers: Vec::new(), entries: Vec::new(), passed_over: Vec::new() }, 0_u64);
    for layer in opened.artifact.visible().filter(|layer| compression(layer.packaging).is_some()) {
        let blob = layer.descriptor.blob();
        let Some(file) = store.index(&who, &blob.digest, &layer.reading()) else { continue };
        size = size.saturating_add(file.metadata().map_or(0, |found| found.len()));
        let opened = local::open(Arc::new(file), &blob, head.layers.len());
        let (layer, entries) = opened.map_err(|error| {
            let doing = format!("the index that was made of {} on this machine", blob.digest);
            error.context(doing).hint("'weightfs cache verify' drops it if it is damaged")
        })?;
        head.layers.push(layer);
        head.entries.extend(entries);
    }
    Ok((head, size))
}
