//! Floor 3: trusted bytes, the heart. What is fetched, verified, kept and handed out.
//!
//! [`Loader`] answers reads of extents; [`Store`] keeps chunks on disk between processes. Nothing leaves
//! here unverified, except openly so under [`Integrity::Deferred`].

mod admission;
mod bound;
#[cfg(test)]
mod bound_tests;
pub mod bring;
mod decoding;
mod extent;
mod fetch;
mod flight;
mod fresh;
mod guided;
#[cfg(test)]
mod guided_tests;
mod headers;
mod instant;
mod keeper;
mod lanes;
pub mod loader;
#[cfg(test)]
mod loader_tests;
mod owing;
mod part;
mod passing;
mod pieces;
pub mod prefetch;
mod prove;
mod reader;
mod receive;
mod recheck;
mod runs;
mod scatter;
mod shelf;
mod spans;
#[cfg(test)]
mod spans_tests;
mod standing;
pub mod store;
pub mod stream;
pub mod verify;
mod vouched;
mod warm;
mod whole;
mod windows;
mod wire;

pub use loader::{Loader, Standing, Warm};
pub use store::{Store, StoreConfig};
pub use whole::{Held, Wholeness};

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::index::{Proof, Trust, View};
use crate::metrics::Metrics;
use crate::oci::Platform;
use crate::oci::cut::Cut;
use crate::oci::exclude::Exclude;

/// What is asked of bytes before they are served. Chunks of a bound layer are verified when they arrive whatever is set
/// here: the artifact itself says what they must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Integrity {
    /// The strictest that costs no reader the download of a whole layer: verified bytes only of bound layers, as
    /// `Deferred` of the others.
    #[default]
    Auto,
    /// Of a layer that is not bound, serve what the registry gives, record its digest, prove the layer when it is
    /// complete and poison it where the proof fails.
    Deferred,
    /// Serve nothing of a layer that is not bound before the whole of it is here and proved.
    Strict,
}

/// The settings of a [`Loader`].
#[derive(Clone, Debug)]
pub struct Config {
    /// What is asked of bytes before they are served.
    pub integrity: Integrity,
    /// What is loaded before being asked.
    pub warm: Warm,
    /// How long a read may go without progress before it fails. Default 60 s.
    pub read_deadline: Duration,
    /// How many bytes of verified chunks may wait in memory for their readers at most: more than 32 MiB only while the repository asks for a
    /// larger [window](crate::repository::Pace::window); half as many stored bytes of compressed layers for who reads beside them, 16 MiB at
    /// most. Default 128 MiB.
    pub memory: u64,
    /// Whether what is complete is made ready for the kernel.
    pub sealing: Sealing,
    /// Whether an index that is attached to an artifact counts, for compressed layers that have none of their own.
    pub trust_index: Trust,
    /// What proves the layers that an index covers.
    pub proof: Proof,
    /// Which manifest of a list is opened, where it has one for each platform; `None`: this machine's, or the only one.
    pub platform: Option<Platform>,
    /// Which layers of a container image are shown; `None`: all.
    pub layers: Option<Cut>,
    /// Which files are left out of the tree, and are not loaded before they are asked for.
    pub exclude: Exclude,
    /// What is shown of the artifact.
    pub view: View,
    /// Where is counted what happens; the repository's may be the same.
    pub metrics: Arc<Metrics>,
}

/// Whether a complete file of the store is sealed, so that the kernel may serve it by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sealing {
    /// Soon after it has become complete, when there is nothing else to do: for a mount.
    #[default]
    Soon,
    /// Not by this process: for who only brings files here. The next mount does it.
    Later,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            integrity: Integrity::default(),
            warm: Warm::default(),
            read_deadline: Duration::from_secs(60),
            memory: 128 << 20,
            sealing: Sealing::default(),
            trust_index: Trust::default(),
            proof: Proof::default(),
            platform: None,
            layers: None,
            exclude: Exclude::default(),
            view: View::default(),
            metrics: Arc::default(),
        }
    }
}
