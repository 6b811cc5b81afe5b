//! Whether layers that are shown beside those below them look as if they had been unpacked upon them.
//!
//! An overlay merges folders by their names alone. Who unpacks a layer follows links to folders that are there, and leaves folders
//! as they are that the layer does not name itself; where that would make a difference the layer is unpacked.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::error::{Error, Kind, Result, StorageContext};

/// How many folders are looked at: a model has few, and what has many is better unpacked.
const FOLDERS: usize = 10_000;

/// What of `shown`, a mount, would look otherwise if it were unpacked upon `lower`, folders of which the first is the uppermost;
/// `None` where nothing would. Looks at folders alone, and follows no link. Blocks.
///
/// # Errors
/// `Unsupported` where there are too many folders; `Storage`.
pub(super) fn between(shown: &Path, lower: &[PathBuf]) -> Result<Option<String>> {
    let doing = |path: &Path| format!("cannot look into {}", path.display());
    let lower =
        lower.iter().map(|path| File::open(path).storage(|| doing(path))).collect::<Result<Vec<_>>>()?;
    let (mut left, mut seen) = (vec![PathBuf::new()], 0);
    while let Some(folder) = left.pop() {
        let path = shown.join(&folder);
        for entry in std::fs::read_dir(&path).storage(|| doing(&path))? {
            let entry = entry.storage(|| doing(&path))?;
            if !entry.file_type().storage(|| doing(&path))?.is_dir() {
                continue;
            }
            seen += 1;
            if seen > FOLDERS {
                let why = format!("the layers have more than {FOLDERS} folders");
                return Err(Error::new(Kind::Unsupported, why));
            }
            let inside = folder.join(entry.file_name());
            let Some(found) = first(&lower, &inside)? else { continue };
            let own = File::open(shown.join(&inside)).storage(|| doing(&inside))?;
            let own = fstat(own.as_fd()).storage(|| doing(&inside))?;
            if !is_same(&own, &found) {
                return Ok(Some(inside.display().to_string()));
            }
            left.push(inside);
        }
    }
    Ok(None)
}

/// What the uppermost of `lower` that has `path` has there; `None` where none has, or it was taken away.
fn first(lower: &[File], path: &Path) -> Result<Option<FileStat>> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let how =
        OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH);
    let doing = || format!("cannot look at {}", path.display());
    for folder in lower {
        match openat2(folder.as_fd(), path, how) {
            Ok(found) => {
                let found = fstat(found.as_fd()).storage(doing)?;
                return Ok(Some(found).filter(|found| !is_whiteout(found)));
            }
            // A link above it, or a file: what is below these is not in this layer.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
            Err(errno) => return Err(errno).storage(doing),
        }
    }
    Ok(None)
}

fn kind(stat: &FileStat) -> libc::mode_t {
    stat.st_mode & SFlag::S_IFMT.bits()
}

/// What overlay has in the place of what is taken away (Documentation/filesystems/overlayfs.rst).
fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR.bits() && stat.st_rdev == 0
}

fn is_same(one: &FileStat, other: &FileStat) -> bool {
    (one.st_mode, one.st_uid, one.st_gid) == (other.st_mode, other.st_uid, other.st_gid)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn found(make: impl Fn(&Path, &Path)) -> Option<String> {
        let place = tempfile::tempdir().unwrap();
        let [shown, upper, lower] = ["shown", "upper", "lower"].map(|name| place.path().join(name));
        for path in [shown.join("usr/lib/deep"), upper.clone(), lower.join("usr/lib")] {
            std::fs::create_dir_all(path).unwrap();
        }
        make(&upper, &lower);
        between(&shown, &[upper, lower]).unwrap()
    }

    #[test]
    fn folders_that_are_the_same_below_or_are_not_there_make_no_difference() {
        assert_eq!(found(|_, _| {}), None);
        assert_eq!(found(|upper, _| std::fs::create_dir_all(upper.join("usr")).unwrap()), None);
    }

    #[test]
    fn links_files_and_other_permissions_in_the_place_of_a_folder_do() {
        let link = |upper: &Path, _: &Path| std::os::unix::fs::symlink("/etc", upper.join("usr")).unwrap();
        assert_eq!(found(link).as_deref(), Some("usr"));
        let file = |_: &Path, lower: &Path| std::fs::write(lower.join("usr/lib/deep"), "").unwrap();
        assert_eq!(found(file).as_deref(), Some("usr/lib/deep"));
        let mode = |_: &Path, lower: &Path| {
            let open = std::fs::Permissions::from_mode(0o1777);
            std::fs::set_permissions(lower.join("usr/lib"), open).unwrap();
        };
        assert_eq!(found(mode).as_deref(), Some("usr/lib"));
    }
}
