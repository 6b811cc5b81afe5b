//! Floor 5: the kernel's door: FUSE adapter, session, passthrough. All `unsafe` is here.
#![allow(missing_docs, reason = "signatures only, for the floors above; the body follows")]
#![allow(unused_variables, clippy::unimplemented, clippy::missing_errors_doc, reason = "signatures only")]

use std::path::Path;
use std::sync::Arc;

use crate::error::Result;
use crate::fs::Model;

/// How a mount looks and behaves to the kernel.
#[derive(Clone, Debug, Default)]
pub struct Options {
    pub allow_other: bool,
    /// Owner shown; default: the mounting user.
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    /// Taken from 0444 and 0555.
    pub umask: u32,
    /// Kernel read-ahead in bytes; 1 MiB by default, set through /sys/class/bdi after mount.
    pub read_ahead: u64,
}

/// What `weightfs list` shows of a live mount.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Status {
    pub reference: String,
    pub digest: String,
    /// Content bytes kept on this machine, of `total`.
    pub kept: u64,
    pub total: u64,
    /// `deferred` (not all proved yet), `verified` or `poisoned`.
    pub standing: String,
    /// Files whose layer is poisoned, each with the layer's digest.
    pub poisoned: Vec<String>,
    /// Name and value of each counter in `metrics`.
    pub metrics: std::collections::BTreeMap<String, u64>,
}

/// A mounted model.
#[derive(Debug)]
pub struct Mount;

impl Mount {
    /// Mounts; returns when the kernel's INIT is answered and read-ahead is set. Must be called within a tokio
    /// runtime. The one way in for every floor above.
    pub async fn open(model: Arc<Model>, dir: &Path, options: &Options) -> Result<Self> {
        unimplemented!()
    }
    pub fn status(&self) -> Status {
        unimplemented!()
    }
    /// Waits until the mount has ended, by whoever's hand (umount, fusermount3 -u, unmount()).
    pub async fn ended(&self) {
        unimplemented!()
    }
    /// Unmounts (lazily where busy), ends the session and the loader.
    pub async fn unmount(&self) -> Result<()> {
        unimplemented!()
    }
}

/// Whether to wait for a mount to be unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Refuse with `Busy` while it is in use.
    Unused,
    /// Detach at once (MNT_DETACH).
    Lazy,
}

/// Unmounts the weightfs mount at `dir` from outside its process; also clears a dead one.
/// Refuses what is no weightfs mount. Uses umount2, or fusermount3 where not root.
pub fn unmount(dir: &Path, how: Detach) -> Result<()> {
    unimplemented!()
}
