//! A read-only mapping of a whole file, as the engines map their weights.
//!
//! For the `demo` command and for tests, which read the mount the way engines do. Nothing that serves bytes
//! uses it: a reply is never made from a mapping.
#![allow(unsafe_code, reason = "mapping a file is unsafe by nature; the module says why it holds")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file's bytes, read by the kernel when they are touched.
///
/// The slice is sound as long as nobody changes the file meanwhile. A mount is read-only and the artifact
/// behind it is pinned by digest, so nobody can. What may fail is a fault: where the bytes can't be had, or turn out
/// not to be what the manifest says, touching them raises SIGBUS and ends the process; that is no undefined
/// behaviour, and no error this type could give. Map only files of a mount, not files that others may shorten.
#[derive(Debug)]
pub struct Mapping(memmap2::Mmap);

impl Mapping {
    /// Maps all of the file at `path`. Reads nothing yet.
    ///
    /// # Errors
    /// The I/O error of opening or of mapping.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the caller maps a file that nobody changes, as the type's documentation asks.
        unsafe { memmap2::Mmap::map(&file) }.map(Self)
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_has_the_bytes_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, b"0123").unwrap();
        assert_eq!(&*Mapping::open(&path).unwrap(), b"0123");
    }
}
