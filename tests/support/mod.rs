//! What tests share: fixtures, a real registry with a breakable line to it, artifacts of any files, one sample model, and
//! places to mount in that clean up after themselves.
//!
//! What is here for whole programs (`place`, `registry` and what they need) uses nothing of the library but the bytes of blobs that
//! are made as they are read, so that a bug cannot hide on both sides.

pub(crate) mod artifacts;
pub mod authority;
pub mod bound;
pub mod canary;
pub mod child;
pub mod compressed;
pub mod containerd;
pub mod containers;
pub mod csi;
mod dialects;
pub mod http;
pub mod names;
pub(crate) mod neighbours;
pub mod nginx;
pub mod node;
pub mod pack;
pub mod parted;
pub mod place;
pub mod proxy;
pub mod read;
pub mod registry;
pub mod relay;
pub mod sample;
pub mod scratch;
pub(crate) mod tar_writers;
pub mod tokens;
pub mod wait;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Waits until no other heavy test runs; held as long as the value lives.
///
/// Heavy is what moves the whole sample model: on a machine of two cores, ten of them at once would only measure
/// their quarrel for the processor.
pub fn heavy() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}
