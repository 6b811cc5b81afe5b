//! Floor 5: bringing files of a model here as a whole.
//!
//! [`plan`] says which files are meant. Knows files and folders, not the kernel. Called by the commands.

pub mod folder;
pub mod plan;

pub use plan::Choice;
