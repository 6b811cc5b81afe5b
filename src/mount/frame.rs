//! A read-only frame around a mount: a plain folder of this machine, shown with the mount that stands in it as one whole.
//!
//! The plain folder is bound at a view of it, which is read-only, without suid, devices and programs; a mount is made in the
//! view, and both are shown elsewhere at once. So whatever namespace a bind propagates to gets neither without the other, and
//! nobody gets the folder to write to. The kernel's table says what stands where. Called by the floor above for its volumes.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::MsFlags;

use super::Detach;
use super::bind::{self, STACKED, Seen, folder, through};
use super::kernel::{self, MountEntry};
use crate::error::{Error, Kind, Result};

/// Shows the folder `plain` at `view`, which is a folder beside it, for who mounts in it. Once more changes nothing.
///
/// # Errors
/// `Busy` where something else is mounted at `view`; `Kernel` where the kernel refuses; those of opening the folders.
pub fn raise(plain: &Path, view: &Path) -> Result<()> {
    if let Some(found) = kernel::mounted_at(view)? {
        return match is_of(&found, plain)? {
            true => Ok(()),
            false => Err(taken(&found, view)),
        };
    }
    let (from, at) = (folder(plain)?, folder(view)?);
    let refused = refused(plain, view);
    let none = None::<&str>;
    nix::mount::mount(Some(&through(&from)), &through(&at), none, MsFlags::MS_BIND, none)
        .map_err(&refused)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let closed =
        settle(view, &refused, &[MsFlags::MS_PRIVATE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags]);
    leave_nothing(closed, view)
}

/// Shows the view, and what is mounted in it, at `target` too; a folder is made there where none is. What of it stands there
/// already and is not as it should be is taken away first, also where it is in use. Once more changes nothing.
///
/// # Errors
/// `NotFound` where there is no view, or nothing of weightfs in it at `inside`; `Busy` where somebody else's mount stands at
/// `target`; `Kernel`.
pub fn show(view: &Path, inside: &str, target: &Path) -> Result<()> {
    if bind::seen(&view.join(inside), &view.join(inside))? != Seen::Bound {
        return Err(Error::new(Kind::NotFound, format!("nothing is mounted in {}", view.display())));
    }
    for _ in 0..STACKED {
        match seen(view, inside, target)? {
            Seen::Bound => return Ok(()),
            Seen::Nothing => return show_at(view, target),
            Seen::Stale => kernel::detach(target, Detach::Lazy)?,
            Seen::Foreign => {
                return Err(Error::new(Kind::Busy, format!("another mount stands at {}", target.display())));
            }
        }
    }
    Err(Error::new(Kind::Busy, format!("too much is mounted at {}", target.display())))
}

fn show_at(view: &Path, target: &Path) -> Result<()> {
    let at = folder(target)?;
    let refused = refused(view, target);
    let (none, whole) = (None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC);
    nix::mount::mount(Some(view), &through(&at), none, whole, none).map_err(&refused)?;
    leave_nothing(settle(target, &refused, &[MsFlags::MS_PRIVATE | MsFlags::MS_REC]), target)
}

/// What stands at `target`: the frame with its mount, the frame without it or with one that has ended, or something else.
///
/// # Errors
/// `Storage` where the table can't be read.
pub fn seen(view: &Path, inside: &str, target: &Path) -> Result<Seen> {
    let (meant, found) = (kernel::mounted_at(view)?, kernel::mounted_at(target)?);
    let Some(found) = found else { return Ok(Seen::Nothing) };
    match meant.is_some_and(|meant| is_same(&meant, &found)) {
        false if found.is_ours() => Ok(Seen::Stale),
        false => Ok(Seen::Foreign),
        true => Ok(match bind::seen(&view.join(inside), &target.join(inside))? {
            Seen::Bound => Seen::Bound,
            Seen::Nothing | Seen::Stale | Seen::Foreign => Seen::Stale,
        }),
    }
}

/// Takes the frame that is seen at `target`, which may be the view itself, away with all that is mounted in it, also where it is in
/// use; nothing there is as well. What others have mounted there stays.
///
/// # Errors
/// `Busy` where what somebody else has mounted covers it; `Kernel`.
pub fn hide(plain: &Path, target: &Path) -> Result<()> {
    for _ in 0..STACKED {
        match kernel::mounted_at(target)? {
            None => return Ok(()),
            Some(found) if found.is_ours() || is_of(&found, plain)? => kernel::detach(target, Detach::Lazy)?,
            Some(found) => return Err(taken(&found, target)),
        }
    }
    Err(Error::new(Kind::Busy, format!("too much is mounted at {}", target.display())))
}

fn taken(found: &MountEntry, target: &Path) -> Error {
    let doing = format!("{} is mounted at {}", found.fstype, target.display());
    Error::new(Kind::Busy, doing).hint("unmount that first")
}

fn refused(source: &Path, target: &Path) -> impl Fn(Errno) -> Error {
    let doing = format!("cannot show {} at {}", source.display(), target.display());
    move |errno| Error::from_source(Kind::Kernel, doing.clone(), std::io::Error::from(errno))
}

/// Changes what has just been mounted at `target`, one thing after the other.
fn settle(target: &Path, refused: &impl Fn(Errno) -> Error, changes: &[MsFlags]) -> Result<()> {
    let none = None::<&str>;
    for change in changes {
        // Opened anew: it leads to what is mounted there now.
        let mounted = folder(target)?;
        nix::mount::mount(none, &through(&mounted), none, *change, none).map_err(refused)?;
    }
    Ok(())
}

/// Takes away what could not be settled: nobody shall have it to write to.
fn leave_nothing(settled: Result<()>, target: &Path) -> Result<()> {
    if settled.is_err()
        && let Err(error) = kernel::detach(target, Detach::Lazy)
    {
        tracing::warn!("{error}");
    }
    settled
}

fn is_same(one: &MountEntry, other: &MountEntry) -> bool {
    one.device == other.device && one.root == other.root
}

/// Whether what is mounted shows the folder `plain`, as the kernel's table has it: the mount that the folder is in, and the folder's
/// path there.
fn is_of(found: &MountEntry, plain: &Path) -> Result<bool> {
    let Some(around) = kernel::mounted_around(plain)? else { return Ok(false) };
    let within = plain.strip_prefix(&around.point).unwrap_or(Path::new(""));
    let root: PathBuf = around.root.join(within);
    Ok(found.device == around.device && found.root == root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_known_by_its_folder_and_can_be_written_to_by_nobody() {
        let place = tempfile::tempdir().unwrap();
        let place = place.path().canonicalize().unwrap();
        let (plain, view) = (place.join("plain"), place.join("view"));
        std::fs::create_dir(&plain).unwrap();
        std::fs::write(plain.join("status.json"), "{}").unwrap();
        raise(&plain, &view).unwrap();
        raise(&plain, &view).unwrap();
        let refused = std::fs::write(view.join("status.json"), "").unwrap_err();
        let entry = kernel::mounted_at(&view).unwrap().unwrap();
        let (own, other) = (is_of(&entry, &plain), is_of(&entry, &place));
        let shown = show(&view, "models", &place.join("target"));
        hide(&plain, &view).unwrap();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        assert!(own.unwrap() && !other.unwrap());
        assert_eq!(shown.unwrap_err().kind(), Kind::NotFound, "nothing is mounted in it");
        assert!(kernel::mounted_at(&view).unwrap().is_none());
        assert_eq!(seen(&view, "models", &place.join("target")).unwrap(), Seen::Nothing);
        hide(&plain, &view).unwrap();
    }
}
