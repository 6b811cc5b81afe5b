//! What every test builds on: a real registry with a breakable line to it, artifacts made in memory, one sample model,
//! and places to mount in that clean up after themselves.
//!
//! Not a copy of the product: nothing here uses the library, so that a bug cannot hide on both sides.

pub mod child;
pub mod http;
pub mod pack;
pub mod place;
pub mod read;
pub mod registry;
pub mod relay;
pub mod sample;
pub mod scratch;
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
