//! What a dynamic volume's process notes of its models, for the one that comes after it.
//!
//! A model is noted with the manifest that the registry gave for it, so that a tag that moves changes nothing of what is shown.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::models::Wanted;
use crate::error::Result;
use crate::serve::put::{put_json, read_json};

/// A model that is shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Noted {
    /// What it is called.
    pub(super) id: String,
    /// What was asked for.
    pub(super) wanted: Wanted,
    /// The reference, with the manifest's digest.
    pub(super) pinned: String,
}

/// Notes all models.
///
/// # Errors
/// `Storage`.
pub(super) fn note(path: &Path, models: &[Noted]) -> Result<()> {
    put_json(path, &models)
}

/// Those that are noted.
pub(super) fn read(path: &Path) -> Vec<Noted> {
    read_json(path).unwrap_or_default()
}
