//! Floor 5, beside the kernel's door: a folder becomes an artifact, and an artifact that has no index gets one.
//!
//! | room | what happens there |
//! |---|---|
//! | [`walk`] | which files the folder has |
//! | [`mod@kind`] | weights, configuration, code, document or data set, by name |
//! | [`mod@describe`] | what config and headers say of the model |
//! | [`layer`] | a file as a layer: raw, or the only member of a tar |
//! | [`mod@plan`] | these four put together: all that is known before any content is read |
//! | [`digest`] | one pass over a layer's bytes: its digest and those of its chunks |
//! | [`compress`] | a file as a compressed tar that can be read at random |
//! | [`manifest`] | config and manifest as JSON, in the words of the specification |
//! | [`publish`] | layers digested and uploaded side by side, then index, config, manifest |
//! | [`build`] | the index of an artifact that is in a repository already, by reading its layers once |
//! | [`add`] | that index made part of the artifact |
//! | [`attach`] | that index published beside the artifact |
//! | [`convert`] | an artifact as a container image of the same blobs |
//! | `splice` | JSON changed as text, so that nothing else of it changes |
//!
//! Not a packer for other formats, and nothing that reads artifacts: that is what the floors below do. Called by the
//! commands `pack`, `convert` and `index`.

pub mod add;
pub mod attach;
pub mod build;
pub mod compress;
pub mod convert;
pub mod describe;
pub mod digest;
pub mod kind;
pub mod layer;
pub mod manifest;
pub mod plan;
pub mod publish;
mod splice;
pub mod walk;

pub use crate::content::bring::Watch;
pub use describe::Described;
pub use plan::{Options, Plan, Times, plan};
pub use publish::{Destination, Published, publish};
pub use walk::Links;
