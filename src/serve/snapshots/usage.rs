//! What a folder takes on the disk.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::record::Usage;
use crate::error::{Result, StorageContext};

/// The unit of `st_blocks` (man 3 stat).
const BLOCK: u64 = 512;

/// What everything at and below `folder` takes; a file of several names once. Links are not followed, and what vanishes
/// meanwhile does not count. Reads every folder, so it blocks.
///
/// # Errors
/// `Storage`.
pub(super) fn of(folder: &Path) -> Result<Usage> {
    let (mut usage, mut seen, mut left) = (Usage::default(), HashSet::new(), vec![folder.to_owned()]);
    while let Some(path) = left.pop() {
        let doing = || format!("cannot look into {}", path.display());
        let found = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            found => found.storage(doing)?,
        };
        if !seen.insert((found.dev(), found.ino())) {
            continue;
        }
        usage.inodes = usage.inodes.saturating_add(1);
        usage.size = usage.size.saturating_add(found.blocks().saturating_mul(BLOCK));
        if found.is_dir() {
            for entry in std::fs::read_dir(&path).storage(doing)? {
                left.push(entry.storage(doing)?.path());
            }
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_two_names_counts_once_and_links_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let empty = of(place.path()).unwrap();
        std::fs::create_dir(place.path().join("sub")).unwrap();
        std::fs::write(place.path().join("sub/a"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(place.path().join("sub/a"), place.path().join("b")).unwrap();
        std::os::unix::fs::symlink("/usr", place.path().join("link")).unwrap();
        let usage = of(place.path()).unwrap();
        assert_eq!((empty.inodes, usage.inodes), (1, 4));
        assert!((100_000..200_000).contains(&(usage.size - empty.size)), "{usage:?}");
    }
}
