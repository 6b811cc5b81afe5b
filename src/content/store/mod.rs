//! What is kept on disk, shared by processes.
#![allow(missing_docs, reason = "signatures only, for the floors above; the body follows")]
#![allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc, reason = "signatures only")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use crate::error::Result;
use crate::index::Layer;
use crate::oci::{Digest, Reference};
use crate::range::StoredRange;
use crate::repository::Pinned;

/// The settings of a [`Store`].
#[derive(Clone, Debug)]
pub struct StoreConfig {
    pub folder: PathBuf,
    /// Budget in bytes; `None`: 90 % of what the file system has for it.
    pub size: Option<u64>,
}

/// What is kept on disk.
#[derive(Debug)]
pub struct Store;

impl Store {
    /// Makes the folder where missing (0700). Errors: another owner, a symlink, group/world-writable, not writable.
    pub fn open(config: &StoreConfig) -> Result<Arc<Self>> {
        unimplemented!()
    }
    pub fn folder(&self) -> &Path {
        unimplemented!()
    }
    /// Remembers that `identity` (see Repository::identity) was given this manifest for this reference.
    pub fn admit(&self, identity: &str, reference: &Reference, pinned: &Pinned) {
        unimplemented!()
    }
    /// What `identity` was given for this reference before, within the grace time; for when nobody answers.
    pub fn recall(&self, identity: &str, reference: &Reference) -> Option<Pinned> {
        unimplemented!()
    }
    /// Small blobs (the config): kept under their digest, verified on reading.
    pub fn keep_small(&self, digest: &Digest, bytes: &Bytes) {
        unimplemented!()
    }
    pub fn small(&self, digest: &Digest) -> Option<Bytes> {
        unimplemented!()
    }
    /// The gaps (archive headers) of a layer kept before; empty where none are.
    pub fn gaps(&self, layer: &Digest) -> Vec<(StoredRange, Bytes)> {
        unimplemented!()
    }
    pub fn keep_gaps(&self, layer: &Layer) {
        unimplemented!()
    }
}
