//! The store's folder and the small files in it: private, no links followed, written whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;

use crate::error::{Error, Kind, Result};

/// Makes `dir` and what is missing above it, for this user alone (0700).
///
/// # Errors
/// Whatever the file system says.
pub(super) fn make_dir(dir: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// Refuses a folder that is a link, is another user's, or lets others write; tightens one that lets them read.
///
/// # Errors
/// `Storage`, with what to do about it.
pub(super) fn check_dir(dir: &Path) -> Result<()> {
    let deny = |why: &str| {
        let doing = format!("the store {} {why}", dir.display());
        Err(Error::new(Kind::Storage, doing).hint("choose another folder with --store"))
    };
    let Ok(meta) = fs::symlink_metadata(dir) else { return Ok(()) };
    if !meta.is_dir() {
        return deny("is not a folder of its own (a link or a file)");
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return deny("belongs to another user");
    }
    if meta.mode() & 0o022 != 0 {
        return deny("can be written by other users");
    }
    if meta.mode() & 0o077 != 0 {
        let _ = fs::set_permissions(dir, Permissions::from_mode(0o700));
    }
    Ok(())
}

/// Opens a file, making it where it is missing, and locks it until it is dropped. Waits for whoever holds it.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn lock_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let file = options.open(path)?;
    file.lock()?;
    Ok(file)
}

/// Reads a small file, at most `limit` bytes of it; a link is not followed.
///
/// # Errors
/// Whatever the file system says, or that the file is larger.
pub(super) fn read_small(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if file.metadata()?.len() > limit {
        return Err(io::Error::other("larger than it may be"));
    }
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Writes a small file (0600) so that a reader sees all of it or what was there before.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn write_small(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    write_whole(path, |error| error, |mut file| file.write_all(bytes)).map(drop)
}

/// The same of bytes that are held to their digest whenever they are read, so that nobody waits for the disk: after a crash they
/// may be others.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn write_checked(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    replace(path, |error| error, |mut file| file.write_all(bytes)).map(drop)
}

/// Has a file (0600) written by `write` so that a reader sees all of it or what was there before; gives it to be read.
///
/// # Errors
/// Those of `write`; whatever the file system says, as `failed` puts it.
pub(super) fn write_whole<E>(
    path: &Path,
    failed: impl Fn(io::Error) -> E,
    write: impl FnOnce(&File) -> Result<(), E>,
) -> Result<File, E> {
    replace(path, &failed, |file| write(file).and_then(|()| file.sync_data().map_err(&failed)))
}

fn replace<E>(
    path: &Path,
    failed: impl Fn(io::Error) -> E,
    write: impl FnOnce(&File) -> Result<(), E>,
) -> Result<File, E> {
    let temporary = path.with_added_extension(unique());
    let written = || {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&temporary);
        let file = file.map_err(&failed)?;
        write(&file)?;
        fs::rename(&temporary, path).map_err(&failed)?;
        Ok(file)
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}

/// An empty file without a name, on the disk of `dir`.
///
/// # Errors
/// Whatever the file system says.
pub(super) fn nameless(dir: &Path) -> io::Result<File> {
    let path = dir.join(unique());
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    fs::remove_file(path)?;
    Ok(file)
}

/// An ending that no other file has.
fn unique() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    // In containers that share a store, and in one and its successor, processes have the same numbers.
    format!("{}-{count}-{:08x}.tmp", std::process::id(), fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_may_write_is_refused_and_one_they_may_read_is_tightened() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        assert_eq!(check_dir(dir.path()).unwrap_err().kind(), Kind::Storage);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        check_dir(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert_eq!(check_dir(&link).unwrap_err().kind(), Kind::Storage);
    }

    #[test]
    fn a_small_file_is_replaced_whole_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/file");
        write_small(&path, b"one").unwrap();
        write_small(&path, b"two").unwrap();
        assert_eq!(read_small(&path, 10).unwrap(), b"two");
        assert!(read_small(&path, 2).is_err());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(read_small(&link, 10).is_err());
        assert_eq!(fs::read_dir(dir.path().join("deep/er")).unwrap().count(), 1, "nothing temporary is left");
    }
}
