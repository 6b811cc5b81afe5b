//! Which file one is and when it was last written, so that what is opened later is the file that was found before.
//!
//! Opens without waiting: a pipe that somebody put in a file's place would hold up its reader for ever. Nothing that
//! keeps others from writing. Packing seals what it finds; what is pushed is opened by its seal.

use std::fs::{File, Metadata, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use crate::error::{Error, Kind, Result, StorageContext};

/// Which file it is and when it was last written: two that are equal are one file that nobody wrote to. The time of change
/// goes with every writing and can't be set back, which that of modification can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Seal {
    /// The seal of what `metadata` is of.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            ctime: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Opens what is at `path`, where it still is the file of the seal. Never waits for anybody.
    ///
    /// # Errors
    /// `Busy` where it is not; `Storage` where it can't be opened.
    pub fn open(&self, path: &Path) -> Result<File> {
        let (file, metadata) = regular(path)?;
        if Self::of(&metadata) == *self {
            return Ok(file);
        }
        Err(Error::new(Kind::Busy, format!("{} is not the file that was found", path.display())))
    }
}

/// Opens the regular file at `path`.
///
/// # Errors
/// `Busy` where it is a pipe, a socket, a device or a folder; `Storage` where it can't be opened.
pub(super) fn regular(path: &Path) -> Result<(File, Metadata)> {
    let failed = || format!("cannot open {}", path.display());
    // The standard library adds O_CLOEXEC. Regular files do not know O_NONBLOCK.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).storage(failed)?;
    let metadata = file.metadata().storage(failed)?;
    if metadata.is_file() {
        return Ok((file, metadata));
    }
    Err(Error::new(Kind::Busy, format!("{} is no regular file any more", path.display())))
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn only_the_file_that_was_sealed_is_opened_and_a_pipe_in_its_place_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "abc").unwrap();
        let seal = Seal::of(&path.metadata().unwrap());
        seal.open(&path).unwrap();
        // Beside the old one, which keeps its inode until then.
        let other = folder.path().join("other");
        std::fs::write(&other, "abc").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert_eq!(seal.open(&path).unwrap_err().kind(), Kind::Busy);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(seal.open(&path).unwrap_err().kind(), Kind::Storage);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        assert_eq!(seal.open(&path).unwrap_err().kind(), Kind::Busy);
        assert_eq!(regular(folder.path()).unwrap_err().kind(), Kind::Busy);
    }
}
