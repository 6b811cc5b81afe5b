//! Floor 5: files of a model brought here as a whole, into a folder.
//!
//! Knows files and folders, not the kernel. Called by the commands.

pub mod compare;

pub use compare::{Compared, compare};

/// The extended attribute of a filled folder: reference and digest of the model that its files are of.
pub const PULLED: &str = "user.weightfs.pulled";
