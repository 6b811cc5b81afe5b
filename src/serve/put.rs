//! Files that are put in place whole: what reads one finds all of the former or all of the next.
//!
//! Used for what the plane and its volumes note on disk.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Result, StorageContext};

/// What a file is called that is not in place yet, by its ending.
const DRAFT: &str = "new";

/// Who may read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Readers {
    /// Its owner.
    Owner,
    /// All who get to it.
    Everybody,
}

/// Puts a file in place as a whole.
///
/// # Errors
/// `Storage`.
pub(super) fn put(path: &Path, bytes: &[u8], readers: Readers) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    // Two may write the same file at once, each whole.
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
    let draft = path.with_extension(format!("{}.{number}.{DRAFT}", std::process::id()));
    let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600).custom_flags(no_link);
    let mut file = options.open(&draft).storage(doing)?;
    file.write_all(bytes).storage(doing)?;
    if readers == Readers::Everybody {
        file.set_permissions(Permissions::from_mode(0o644)).storage(doing)?;
    }
    std::fs::rename(&draft, path).storage(doing)
}

/// The same, as JSON, for its owner.
///
/// # Errors
/// `Storage`.
pub(super) fn put_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::from);
    put(path, &bytes.storage(|| format!("cannot write {}", path.display()))?, Readers::Owner)
}

/// Has the folder of a file that was put in place or removed on the disk, so that a power cut undoes neither.
///
/// # Errors
/// The disk's.
pub(super) fn settle(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

/// What a file has, as JSON; `None` where there is none, or where it can't be read, which is in the log.
pub(super) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, "{} is passed over", path.display());
            return None;
        }
    };
    serde_json::from_slice(&bytes)
        .inspect_err(|error| tracing::warn!(%error, "{} is passed over", path.display()))
        .ok()
}

/// Removes a file, which need not be there.
pub(super) fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "{} stays", path.display());
        }
        _ => {}
    }
}

/// What lies in a folder, by name; nothing where it can't be looked into.
pub(super) fn names_in(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    entries.filter_map(|entry| Some(entry.ok()?.path())).collect()
}

/// Removes what was about to be put in place in `folder` when its writer died. Called while nobody else writes there.
pub(super) fn clear_drafts(folder: &Path) {
    for path in names_in(folder) {
        if path.extension().is_some_and(|extension| extension == DRAFT) {
            remove(&path);
        }
    }
}
