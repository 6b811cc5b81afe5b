//! Floor 5: files of a model brought here as a whole, into the store or into a folder.
//!
//! | room | what happens there |
//! |---|---|
//! | [`plan`] | which names are meant |
//! | [`fill`] | they are brought, layer by layer, and placed |
//! | [`folder`] | a folder that files are placed in, and nothing outside of it |
//! | [`mod@compare`] | whether a file on disk is the model's |
//!
//! Knows files and folders, not the kernel. Called by the commands.

pub mod compare;
pub mod fill;
pub mod folder;
pub mod plan;

pub use compare::{By, Compared, compare};
pub use fill::{Filled, Plan, into_folder, into_store};
pub use folder::Folder;
pub use plan::Choice;

/// The extended attribute of a filled folder: reference and digest of the model that its files are of.
pub const PULLED: &str = "user.weightfs.pulled";

/// The folder below an output folder where files are until they are whole.
pub const UNFINISHED: &str = ".weightfs-pull";
