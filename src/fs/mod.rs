//! Floor 4: files and folders; knows nothing of FUSE.
#![allow(missing_docs, reason = "signatures only, for the floors above; the body follows")]
#![allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc, reason = "signatures only")]

use std::sync::Arc;

use crate::content::{Loader, Store};
use crate::error::Result;
use crate::index::Index;
use crate::metrics::Metrics;
use crate::oci::{Digest, Reference};
use crate::repository::Repository;

/// An artifact pinned, indexed and ready to be read, without a kernel. `ls`, `cat`, `inspect` need no more.
#[derive(Debug)]
pub struct Model {
    pub reference: Reference,
    /// The manifest's digest.
    pub digest: Digest,
    pub index: Arc<Index>,
    pub loader: Arc<Loader>,
    pub metrics: Arc<Metrics>,
    // also: artifact: oci::Artifact, tree: Tree
}

impl Model {
    /// Resolves, pins, indexes. At most four sequential rounds after authentication.
    pub async fn open(
        repository: Arc<dyn Repository>,
        reference: Reference,
        store: Arc<Store>,
        config: crate::content::Config,
    ) -> Result<Self> {
        unimplemented!()
    }
    /// Ends the loader's tasks.
    pub async fn close(&self) {
        unimplemented!()
    }
}
