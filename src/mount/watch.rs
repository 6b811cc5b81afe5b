//! A descriptor of a process, waited for within the runtime: readable once that process has ended (man 2 pidfd_open).
//!
//! Made by the floor above, which knows which process is meant.
#![allow(unsafe_code, reason = "the runtime takes a descriptor only with the promise that it stays open")]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Tells when a process ends.
#[derive(Debug)]
pub struct Watch(AsyncFd<OwnedFd>);

impl Watch {
    /// Of the process that `descriptor` is one of. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Where the runtime cannot wait for it.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by what waits for it, which takes itself off the runtime's list before it closes it.
        let registered = unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) };
        registered.map(Self).map_err(io::Error::from)
    }

    /// Returns when the process has ended.
    pub async fn end(&self) {
        // Where waiting itself fails, the runtime is ending.
        let _readable = self.0.readable().await;
    }
}
