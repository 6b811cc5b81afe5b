//! Floor 0: the words of OCI and ModelPack. Values in, values out; no input or output.
//!
//! [`mod@reference`] is what a person types, [`digest`] what content is named by, [`manifest`] what a registry
//! keeps under a digest, [`artifact`] what that means as a model: layers, packaging, file names. [`metadata`]
//! and [`config`] read what writers say of a file and of the model, [`path`] which names may stand in a tree.

pub mod artifact;
pub mod config;
pub mod digest;
pub mod manifest;
pub mod metadata;
pub mod path;
pub mod reference;

pub use artifact::Artifact;
pub use digest::Digest;
pub use manifest::{Blob, Descriptor};
pub use reference::{Place, Reference, Which};
