//! Answers reads of extents from memory, the store or the repository, whichever has the bytes first.
#![allow(missing_docs, reason = "signatures only, for the floors above; the body follows")]
#![allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc, reason = "signatures only")]

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Config, Store};
use crate::error::Result;
use crate::index::{ExtentId, Index};
use crate::metrics::Metrics;
use crate::range::ContentRange;
use crate::repository::Repository;

/// What is loaded before being asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Warm {
    None,
    #[default]
    Auto,
    All,
}

/// What is known of a layer's bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// Not complete yet, so not proved.
    Unproved,
    /// The layer's digest was proved over its bytes, on this node.
    Proved,
    /// The bytes are not what the manifest says: reads fail.
    Poisoned,
}

/// Answers reads. One per mount.
#[derive(Debug)]
pub struct Loader;

/// What an open file keeps: while it lives, the store does not evict the file's kept bytes.
#[derive(Debug)]
pub struct Held;

impl Held {
    /// The store's file, if it is complete, proved and trusted at this moment: an exact image of the file
    /// that may be given to the kernel (passthrough).
    pub fn whole(&self) -> Option<&File> {
        unimplemented!()
    }
}

/// How much of an artifact is on this machine.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Share {
    pub kept: u64,
    pub total: u64,
}

impl Loader {
    /// Must be called within a tokio runtime; the loader's tasks run there. `paths[i]`... names for logs and the
    /// prefetch plan come from `index.entries`.
    pub fn new(
        repository: Arc<dyn Repository>,
        index: Arc<Index>,
        store: Arc<Store>,
        config: Config,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        unimplemented!()
    }
    /// The bytes, if they are verified and in memory at this moment; never waits. `range` counts within the file.
    pub fn ready(&self, id: ExtentId, range: ContentRange) -> Option<Bytes> {
        unimplemented!()
    }
    /// The bytes of `range`, which counts within the file and is clamped to its end.
    pub async fn read(self: &Arc<Self>, id: ExtentId, range: ContentRange) -> Result<Bytes> {
        unimplemented!()
    }
    /// Called at open (may block for a moment on the local disk; not async).
    pub fn hold(&self, id: ExtentId) -> Held {
        unimplemented!()
    }
    pub fn standing(&self, layer: usize) -> Standing {
        unimplemented!()
    }
    pub fn share(&self) -> Share {
        unimplemented!()
    }
    /// Gives the index of each layer that gets poisoned from now on (those poisoned before come first).
    pub fn poisonings(&self) -> tokio::sync::mpsc::UnboundedReceiver<usize> {
        unimplemented!()
    }
    /// Starts what `Config::warm` asks for. Returns at once.
    pub fn warm(self: &Arc<Self>) {
        unimplemented!()
    }
    /// Ends all tasks of the loader; reads that still wait fail. Returns when they have ended (bounded).
    pub async fn close(&self) {
        unimplemented!()
    }
}
