//! Floor 5: the kernel's door: FUSE adapter, session, passthrough. All `unsafe` is here.
//!
//! [`Mount::open`] mounts a [`Model`](crate::fs::Model) at a folder and answers the kernel until the mount ends;
//! [`Gallery::open`] mounts a folder in which models come and go. [`unmount`] takes a mount away from outside. Knows what the kernel asks, not where bytes come from.

mod adapter;
mod ahead;
mod answers;
mod attach;
pub mod bind;
mod complaints;
mod exchange;
pub mod frame;
mod gallery;
mod handles;
pub mod inherited;
mod kernel;
pub mod mapped;
mod native;
mod numbers;
mod renumber;
mod session;
mod status;
mod watch;

pub use gallery::Gallery;
pub use kernel::{once_unused, resolve};
pub use mapped::Mapping;
pub use native::{Native, Passthrough};
pub use session::{Mount, unmount, vacant};
pub use watch::Watch;

/// How a mount looks and behaves to the kernel.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether other users than the one who mounts may read; without it not even root may.
    pub allow_other: bool,
    /// Owner shown; default: the mounting user.
    pub uid: Option<u32>,
    /// Group shown; default: the mounting user's.
    pub gid: Option<u32>,
    /// Taken from 0444 and 0555.
    pub umask: u32,
    /// Which permissions are shown.
    pub modes: Modes,
    /// Kernel read-ahead in bytes; 1 MiB by default, set through /sys/class/bdi after mount. Less makes more requests
    /// of a sequential reader, more makes a random page fault wait for more.
    pub read_ahead: u64,
    /// Whether complete files are given to the kernel, which then serves them by itself.
    pub passthrough: Passthrough,
    /// What the kernel is answered that reads around page faults.
    pub read_around: ReadAround,
}

/// Which permissions are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Modes {
    /// Those that a reader needs: 0444 of files, 0555 of folders.
    #[default]
    Read,
    /// Those that were recorded, as programs and folders of a container's root have them. Never those that lend a program the
    /// rights of its owner: everything belongs to one user here, whoever owned it where it was made.
    Image,
}

/// Whether the kernel is given all that it reads around a page fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReadAround {
    /// Where a file is read at random, only what is here: of the rest the page that is needed.
    #[default]
    Auto,
    /// Always, fetched where it is not here.
    Always,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            allow_other: false,
            uid: None,
            gid: None,
            umask: 0,
            modes: Modes::default(),
            read_ahead: 1 << 20,
            passthrough: Passthrough::default(),
            read_around: ReadAround::default(),
        }
    }
}

/// What `weightfs list` shows of a live mount.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Status {
    /// The reference as typed.
    pub reference: String,
    /// The manifest's digest.
    pub digest: String,
    /// Content bytes kept on this machine, of `total`.
    pub kept: u64,
    /// All content bytes.
    pub total: u64,
    /// `strict`: every byte is verified before it is served; `deferred`: some are once their layer is complete.
    #[serde(default)]
    pub integrity: String,
    /// `deferred` (not all proved yet), `verified` or `poisoned`.
    pub standing: String,
    /// Files whose layer is poisoned, each with the layer's digest.
    pub poisoned: Vec<String>,
    /// What was wrong in the repository when it was last asked for and is not served, as `PATH bytes A-B`.
    #[serde(default)]
    pub refused: Vec<String>,
    /// How many files the kernel serves by itself, and why not the others.
    #[serde(default)]
    pub native: Native,
    /// Name and value of each counter in `metrics`.
    pub metrics: std::collections::BTreeMap<String, u64>,
    /// The models of a mount that shows several, which all of the above is about; empty for a mount of one.
    #[serde(default)]
    pub models: Vec<Shown>,
}

/// A model among several.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shown {
    /// The folder that it is in.
    pub name: String,
    /// The reference that it was opened by.
    pub reference: String,
    /// The manifest's digest.
    pub digest: String,
}

/// Whether to wait for a mount to be unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detach {
    /// Refuse with `Busy` while it is in use.
    Unused,
    /// Detach at once (MNT_DETACH).
    Lazy,
}
