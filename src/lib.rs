//! weightfs mounts an AI model that lives in an OCI registry as a local folder, at once.
//!
//! The house has floors that look only down; `tests/house.rs` holds them to it.
//!
//! * rails: [`error`], [`range`], [`metrics`], [`buffer`]: words, and memory, that every floor uses.
//! * floor 0, [`oci`] and [`codec`]: words and formats. Bytes in, values out; no input or output.
//! * floor 1, [`repository`]: stored bytes, from a registry over HTTP, an image layout folder or memory.
//! * floor 2, [`index`]: the map from files to bytes: which layer and which range a file is.
//! * floor 3, [`content`]: trusted bytes, the heart: what is fetched, verified, kept and handed out.
//! * floor 4, [`fs`]: files and folders; knows nothing of FUSE.
//! * floor 5, [`mount`]: the kernel's door; all `unsafe` is here, but for the calls around inflate in [`codec::gzip`].
//! * beside it, [`pack`]: a folder becomes an artifact with an index; [`pull`]: a model's files become a folder.
//! * beside them, [`testing`]: a registry on loopback that fails when told to, for tests and for `weightfs demo`.
//! * floor 7, [`cli`]: what a person types; the only floor that prints.
//! * roof: [`config`]: each floor's settings put together and checked once.

pub mod buffer;
pub mod cli;
pub mod codec;
pub mod config;
pub mod content;
pub mod error;
pub mod fs;
pub mod index;
pub mod metrics;
pub mod mount;
pub mod oci;
pub mod pack;
pub mod pull;
pub mod range;
pub mod repository;
pub mod testing;

pub use error::{Error, Kind, Result};
