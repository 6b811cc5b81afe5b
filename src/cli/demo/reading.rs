//! How the demo's tensor is read out of its file.
//!
//! A mapping is what engines use, and what is measured where nothing fails. A byte that cannot be had ends whoever touches
//! it there, by SIGBUS, and this process is the mount too: where faults are asked for the tensor is read with `pread`,
//! whose failure is an error.

use std::fmt;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::sample;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::mount::Mapping;

/// How a tensor is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// Out of a mapping of the file.
    Mapped,
    /// By reads at its place.
    Read,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mapped => "mmap",
            Self::Read => "pread",
        })
    }
}

impl How {
    /// A copy of the tensor of this name in the safetensors file at `path`.
    ///
    /// # Errors
    /// `Storage` where the file cannot be mapped or read; `Integrity` where it has no such tensor.
    pub(super) fn tensor(self, path: &Path, name: &str) -> Result<Vec<u8>> {
        let found = match self {
            Self::Mapped => mapped(path, name),
            Self::Read => read(path, name),
        };
        found?.ok_or_else(|| Error::new(Kind::Integrity, format!("{} has no such tensor", path.display())))
    }
}

fn mapped(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let file = Mapping::open(path).storage(|| format!("cannot map {}", path.display()))?;
    let range = sample::locate(&file, file.len(), name);
    Ok(range.and_then(|range| file.get(range)).map(<[u8]>::to_vec))
}

fn read(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let failed = || format!("cannot read {} from the mount", path.display());
    let file = File::open(path).storage(failed)?;
    let size = file.metadata().storage(failed)?.len();
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    let bytes = |range: Range<usize>| {
        let mut bytes = vec![0; range.len()];
        file.read_exact_at(&mut bytes, u64::try_from(range.start).unwrap_or(u64::MAX)).storage(failed)?;
        Ok(bytes)
    };
    let start = bytes(0..size.min(sample::LENGTH))?;
    let Some(start) = sample::header(&start, size).map(|header| bytes(0..header.end)).transpose()? else {
        return Ok(None);
    };
    sample::locate(&start, size, name).map(bytes).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_the_same_however_it_is_read_and_what_is_no_such_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard");
        let header = br#"{"a":{"data_offsets":[0,3]},"b":{"data_offsets":[3,5]}}"#;
        let length = u64::try_from(header.len()).unwrap().to_le_bytes();
        std::fs::write(&path, [&length[..], header, b"aaabb"].concat()).unwrap();
        for how in [How::Mapped, How::Read] {
            assert_eq!(how.tensor(&path, "b").unwrap(), b"bb", "{how}");
            let error = how.tensor(&path, "c").unwrap_err();
            assert!(error.kind() == Kind::Integrity && error.to_string().contains("shard"), "{error}");
            let error = how.tensor(&folder.path().join("none"), "b").unwrap_err();
            assert!(error.kind() == Kind::Storage && error.to_string().contains("none"), "{error}");
        }
        let huge = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
        for bytes in [&b"12"[..], &huge] {
            std::fs::write(&path, bytes).unwrap();
            assert_eq!(How::Read.tensor(&path, "b").unwrap_err().kind(), Kind::Integrity);
        }
    }
}
