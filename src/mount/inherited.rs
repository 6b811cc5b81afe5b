//! Descriptors that the process has inherited by intent: they lie at numbers, and become values here.
//!
//! What they are and what they are for is known above. Called once, by the plane, before it opens anything itself.
#![allow(unsafe_code, reason = "a descriptor that is known by its number has to be taken at its word")]

use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_getfd, fcntl_setfd};

use crate::error::{Error, Kind, Result};

/// The first of their numbers (sd_listen_fds(3), SD_LISTEN_FDS_START).
const FIRST: RawFd = 3;

/// Copies of the `count` descriptors from number 3 on. The numbers themselves stay open, but no program that is started from now on
/// inherits them in turn.
///
/// # Errors
/// `Invalid` where one of the numbers is not open, `Kernel` where no descriptor is free.
pub fn descriptors(count: usize) -> Result<Vec<OwnedFd>> {
    (FIRST..).take(count).map(copy).collect()
}

fn copy(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: the descriptor is borrowed for the three calls below and no longer. Where nothing is open at the number the first
    // of them says so; nothing is ever closed here, so that it matters to nobody whose the descriptor is.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let copied = fcntl_getfd(inherited).and_then(|_| {
        fcntl_setfd(inherited, FdFlags::CLOEXEC)?;
        fcntl_dupfd_cloexec(inherited, FIRST)
    });
    copied.map_err(|error| {
        let kind = if error == rustix::io::Errno::BADF { Kind::Invalid } else { Kind::Kernel };
        Error::from_source(kind, format!("descriptor {number}, which this process was to inherit"), error)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_descriptor_is_copied_and_one_that_is_not_open_is_named() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"here").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let mut text = String::new();
        std::fs::File::from(copy(file.as_raw_fd()).unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "here");
        let error = copy(RawFd::MAX).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("2147483647"), "{error}");
        assert!(descriptors(0).unwrap().is_empty());
    }
}
