//! Floor 0: the words of OCI and ModelPack. Values in, values out; no input or output.
//!
//! [`mod@reference`] is what a person types, [`digest`] what content is named by, [`manifest`] what a registry
//! keeps under a digest, [`choice`] one of several for a [`platform`], [`artifact`] what that means as a model: layers, packaging, file names, by the tables of
//! `dialect` for each [`family`], and by what [`complete`] finds in a config; [`blobs`] what it is where nobody
//! asks for files, [`cut`] a part of an image. [`metadata`] and [`config`] read what writers say of a file and of the model, [`path`] which
//! names may stand in a tree.

pub mod artifact;
pub mod blobs;
mod bounded;
pub mod choice;
pub mod complete;
pub mod config;
pub mod cut;
mod dialect;
pub mod digest;
pub mod exclude;
pub mod family;
mod kitfile;
pub mod manifest;
pub mod metadata;
pub mod path;
pub mod platform;
pub mod reference;
mod yaml;

pub use artifact::Artifact;
pub use digest::Digest;
pub use manifest::{Blob, Descriptor};
pub use platform::Platform;
pub use reference::{Place, Reference, Which};
