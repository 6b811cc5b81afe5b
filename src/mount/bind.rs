//! One superblock at several folders: a mount of weightfs is shown at another folder, and taken away from there.
//!
//! What is bound stays read-only, without suid and devices, as the mount that it shows. Nothing of what is mounted is asked:
//! the kernel's table says what stands where, so that all of this works beside a mount that nobody answers any more. Called by
//! the floor above for its volumes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::mount::MsFlags;
use nix::sys::stat::{Mode, mkdirat};

use super::Detach;
use super::kernel::{self, Device};
use crate::error::{Error, Kind, Result, StorageContext};

/// The longest path that the kernel takes, without its end (PATH_MAX).
const PATH_LIMIT: usize = 4095;

/// How many mounts over one another are taken away before giving up.
pub(super) const STACKED: usize = 16;

/// What stands at the folder of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The mount that is meant.
    Bound,
    /// Nothing.
    Nothing,
    /// Another mount of weightfs, as one whose process has died.
    Stale,
    /// What somebody else has mounted.
    Foreign,
}

/// A folder to bind at, as the kernel's table will name it: absolute, its parents without links. Need not be there.
///
/// # Errors
/// `Invalid` where the path is not absolute, too long, has `.` or `..` in it, or is a link itself, which may lead anywhere by
/// the time that something is mounted; `NotFound` where its parent is missing.
pub fn target(path: &Path) -> Result<PathBuf> {
    let wrong =
        |why: &str| Error::new(Kind::Invalid, format!("{} is no folder to mount at: {why}", path.display()));
    let bytes = path.as_os_str().as_encoded_bytes();
    if bytes.len() > PATH_LIMIT || bytes.contains(&0) {
        return Err(wrong("no path is that long, or has a NUL in it"));
    }
    if !path.is_absolute() {
        return Err(wrong("it is not absolute"));
    }
    // `Path` itself passes over `.` between slashes.
    let odd = bytes.split(|byte| *byte == b'/').any(|part| matches!(part, b"." | b".."));
    if odd || !matches!(path.components().next_back(), Some(Component::Normal(_))) {
        return Err(wrong("it has '.' or '..' in it, or is the root"));
    }
    if std::fs::read_link(path).is_ok() {
        return Err(wrong("it is a link"));
    }
    kernel::resolve(path)
}

/// Whether the mount at `source` stands at `target` too. Reads the mount table.
///
/// # Errors
/// `Storage` where the table can't be read.
pub fn seen(source: &Path, target: &Path) -> Result<Seen> {
    let (meant, found) = (kernel::mounted_at(source)?, kernel::mounted_at(target)?);
    Ok(match (meant, found) {
        (_, None) => Seen::Nothing,
        (_, Some(found)) if !found.is_ours() => Seen::Foreign,
        (Some(meant), Some(found)) if meant.device == found.device => Seen::Bound,
        (_, Some(_)) => Seen::Stale,
    })
}

/// Whether somebody answers for the mount at `dir`; who stands still for a moment counts. Blocks for a moment.
#[must_use]
pub fn is_answered(dir: &Path) -> bool {
    !kernel::is_dead(dir)
}

/// Shows the mount at `source` at `target` as well; a folder is made there where none is, whose parent must be. What of
/// weightfs stands there otherwise is taken away first, also where it is in use. Once more changes nothing.
///
/// # Errors
/// `NotFound` where nothing of weightfs is mounted at `source`, `Busy` where somebody else's mount stands at `target`, `Invalid` where
/// a link or something that is no folder does, `Kernel` where the kernel refuses.
pub fn bind(source: &Path, target: &Path) -> Result<()> {
    let meant = device(source)?;
    for _ in 0..STACKED {
        match kernel::mounted_at(target)? {
            None => return bind_at(source, target),
            Some(found) if found.device == meant => return Ok(()),
            Some(found) if found.is_ours() => kernel::detach(target, Detach::Lazy)?,
            Some(found) => {
                let doing = format!("{} is mounted at {}", found.fstype, target.display());
                return Err(Error::new(Kind::Busy, doing).hint("unmount it first"));
            }
        }
    }
    Err(Error::new(Kind::Busy, format!("too much is mounted at {}", target.display())))
}

fn device(source: &Path) -> Result<Device> {
    let entry = kernel::mounted_at(source)?.filter(kernel::MountEntry::is_ours);
    let gone = || Error::new(Kind::NotFound, format!("nothing is mounted at {}", source.display()));
    entry.map(|entry| entry.device).ok_or_else(gone)
}

/// The folder is held while the kernel is told of it, so that nobody can put a link in its place meanwhile.
fn bind_at(source: &Path, target: &Path) -> Result<()> {
    let doing = || format!("cannot show {} at {}", source.display(), target.display());
    let refused = |errno: Errno| Error::from_source(Kind::Kernel, doing(), std::io::Error::from(errno));
    let none = None::<&str>;
    let folder = folder(target)?;
    nix::mount::mount(Some(source), &through(&folder), none, MsFlags::MS_BIND, none).map_err(refused)?;
    // A mount of its own from here on: what happens to one volume of a model happens to no other.
    let private = self::folder(target).and_then(|bound| {
        nix::mount::mount(none, &through(&bound), none, MsFlags::MS_PRIVATE, none).map_err(refused)
    });
    if private.is_err()
        && let Err(error) = kernel::detach(target, Detach::Lazy)
    {
        tracing::warn!("{error}");
    }
    private
}

/// A path to a folder that is held open, whatever becomes of its name.
pub(super) fn through(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

/// The folder at `target`, made where none is; not through any link.
pub(super) fn folder(target: &Path) -> Result<OwnedFd> {
    let doing = || format!("cannot open the folder {}", target.display());
    let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
        return Err(Error::new(Kind::Invalid, format!("{} is no folder to mount at", target.display())));
    };
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let how = OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    let parent = openat2(AT_FDCWD, parent, how).storage(doing)?;
    match mkdirat(parent.as_fd(), name, Mode::from_bits_truncate(0o750)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).storage(doing),
    }
    match openat(parent.as_fd(), name, flags | OFlag::O_NOFOLLOW, Mode::empty()) {
        Ok(folder) => Ok(folder),
        Err(Errno::ENOTDIR | Errno::ELOOP) => {
            Err(Error::new(Kind::Invalid, format!("{} is a link, or no folder", target.display())))
        }
        Err(errno) => Err(errno).storage(doing),
    }
}

/// Takes what weightfs shows at `target` away; nothing there is as well.
///
/// # Errors
/// `Busy` where it is in use and `how` is [`Detach::Unused`], or where what somebody else has mounted covers it; `Kernel` for the rest.
/// What others have mounted there stays.
pub fn unbind(target: &Path, how: Detach) -> Result<()> {
    for _ in 0..STACKED {
        match kernel::mounted_at(target)? {
            Some(found) if found.is_ours() => kernel::detach(target, how)?,
            Some(found) if kernel::has_ours(target)? => {
                let doing = format!("{} is mounted over the model at {}", found.fstype, target.display());
                return Err(Error::new(Kind::Busy, doing).hint("unmount that first"));
            }
            _ => return Ok(()),
        }
    }
    Err(Error::new(Kind::Busy, format!("too much is mounted at {}", target.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_to_mount_at_is_absolute_plain_and_no_link() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        std::os::unix::fs::symlink("/etc", place.join("link")).unwrap();
        std::os::unix::fs::symlink(&place, place.join("parent")).unwrap();
        let fine = place.join("mount");
        assert_eq!(target(&fine).unwrap(), fine);
        assert_eq!(target(&place.join("parent/mount")).unwrap(), fine);
        let kind = |path: PathBuf| target(&path).unwrap_err().kind();
        for odd in ["link", "a/../b", "./mount", "a/./b", "mount/..", ".."] {
            assert_eq!(kind(place.join(odd)), Kind::Invalid, "{odd}");
        }
        for odd in ["relative/mount", "", "/", "/a\0b"] {
            assert_eq!(kind(odd.into()), Kind::Invalid, "{odd:?}");
        }
        assert_eq!(kind(format!("/{}", "a".repeat(5000)).into()), Kind::Invalid);
        assert_eq!(kind(place.join("none/mount")), Kind::NotFound);
    }

    #[test]
    fn a_link_that_takes_the_folders_place_is_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let elsewhere = place.join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, place.join("target")).unwrap();
        std::os::unix::fs::symlink(&place, place.join("parent")).unwrap();
        assert_eq!(folder(&place.join("target")).unwrap_err().kind(), Kind::Invalid);
        assert!(folder(&place.join("parent/new")).is_err());
        assert!(folder(&place.join("new")).is_ok() && place.join("new").is_dir());
    }

    #[test]
    fn where_nothing_is_mounted_nothing_can_be_bound_or_taken_away() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        assert_eq!(bind(&place, &place.join("target")).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(seen(&place, &place.join("target")).unwrap(), Seen::Nothing);
        unbind(&place.join("target"), Detach::Unused).unwrap();
    }
}
