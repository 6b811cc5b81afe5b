//! A folder that a model's files are placed in: everything beneath it, no link followed, each file whole or not at all.
//!
//! Paths come from artifacts, the folder's present content from anybody: so every step is taken from the folder's own
//! descriptor with `openat2(RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)` (Linux 5.6), never by a path from outside.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use xattr::FileExt;

use crate::error::{Error, Kind, Result, StorageContext};

/// How an entry looks once it is placed.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Whether who may read it may run it too.
    pub executable: bool,
    /// Seconds since 1970; `None`: now.
    pub mtime: Option<i64>,
    /// Extended attributes, set where the file system has them.
    pub marks: Vec<(&'static str, String)>,
}

/// The folder.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    root: OwnedFd,
}

impl Folder {
    /// Opens the folder, made where it is missing.
    ///
    /// # Errors
    /// `Storage` where it can't be made or opened; `Invalid` where it is no folder.
    pub fn open(path: &Path) -> Result<Self> {
        let doing = || format!("cannot use the folder {}", path.display());
        DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Error::new(Kind::Invalid, format!("{} is no folder", path.display()))
            }
            _ => {
                Error::from_source(Kind::Storage, doing(), error).hint("choose another folder with --output")
            }
        })?;
        let root = File::open(path).storage(doing)?;
        Ok(Self { path: path.to_owned(), root: root.into() })
    }

    /// Its path as given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves a note on the folder itself, where its file system has such notes.
    pub fn mark(&self, name: &str, value: &str) {
        mark(&self.root, name, value);
    }

    /// The regular file at `path`; `None` where there is nothing.
    ///
    /// # Errors
    /// `Invalid` where something else than a regular file stands there or on the way; `Storage` where it can't be read.
    pub fn existing(&self, path: &str) -> Result<Option<File>> {
        let found = self.resolve(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK);
        let file = match found {
            Ok(file) => File::from(file),
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(self.in_the_way(path, errno)),
        };
        let meta = file.metadata().storage(|| self.doing(path))?;
        match meta.is_file() {
            true => Ok(Some(file)),
            false => Err(self.occupied(path, "something that is no regular file stands there")),
        }
    }

    /// Makes a folder, and those above it.
    ///
    /// # Errors
    /// `Invalid` where something else stands in the way, `Storage` where it can't be made.
    pub fn folder(&self, path: &str) -> Result<()> {
        self.enter(path, path).map(drop)
    }

    /// Places `image`, an exact image of the file, at `path`: moved, or copied where it lies on another file system. What
    /// stood there is replaced in one step; who has it open goes on reading it.
    ///
    /// # Errors
    /// `Invalid` where a folder or a link stands there, or something in the way; `Storage` where it can't be placed.
    pub fn place(&self, path: &str, image: &Path, look: &Look) -> Result<()> {
        let (parent, name) = self.prepare(path)?;
        let file = File::options().read(true).write(true).open(image).storage(|| self.doing(path))?;
        finish(&file, look).storage(|| self.doing(path))?;
        match renameat(nix::fcntl::AT_FDCWD, image, &parent, name) {
            Err(Errno::EXDEV) => self.copy(path, image, look),
            moved => moved.map_err(|errno| self.in_the_way(path, errno)),
        }
    }

    /// Places a copy of `source` at `path`.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn copy(&self, path: &str, source: &Path, look: &Look) -> Result<()> {
        let mut source = File::open(source).storage(|| self.doing(path))?;
        self.write(path, look, |file| io::copy(&mut source, file).map(drop))
    }

    /// Places an empty file at `path`.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn empty(&self, path: &str, look: &Look) -> Result<()> {
        self.write(path, look, |_| Ok(()))
    }

    /// Places a symbolic link at `path`, unless it is there.
    ///
    /// # Errors
    /// As [`place`](Self::place).
    pub fn link(&self, path: &str, target: &str) -> Result<()> {
        let (parent, name) = self.enter_above(path)?;
        let there = nix::fcntl::readlinkat(&parent, name);
        if there.as_deref() == Ok(OsStr::new(target)) {
            return Ok(());
        }
        if there.is_err() {
            self.refuse_what_is_no_file(path, &parent, name)?;
        }
        let (temporary, ()) = temporary(|name| symlinkat(target, &parent, name))
            .map_err(|errno| self.in_the_way(path, errno))?;
        self.put_into_place(path, &parent, &temporary, name)
    }

    fn write(&self, path: &str, look: &Look, fill: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
        let (parent, name) = self.prepare(path)?;
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let made =
            temporary(|name| nix::fcntl::openat(&parent, name, flags, Mode::from_bits_truncate(0o600)));
        let (temporary, file) = made.map_err(|errno| self.in_the_way(path, errno))?;
        let mut file = File::from(file);
        let filled = fill(&mut file).and_then(|()| finish(&file, look));
        if let Err(error) = filled {
            let _ = unlinkat(&parent, &*temporary, UnlinkatFlags::NoRemoveDir);
            return Err(Error::from_source(Kind::Storage, self.doing(path), error));
        }
        self.put_into_place(path, &parent, &temporary, name)
    }

    fn put_into_place(&self, path: &str, parent: &OwnedFd, temporary: &str, name: &str) -> Result<()> {
        renameat(parent, temporary, parent, name).map_err(|errno| {
            let _ = unlinkat(parent, temporary, UnlinkatFlags::NoRemoveDir);
            self.in_the_way(path, errno)
        })
    }

    /// The folder above `path`, where a regular file may be placed under the name.
    fn prepare<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str)> {
        let (parent, name) = self.enter_above(path)?;
        self.refuse_what_is_no_file(path, &parent, name)?;
        Ok((parent, name))
    }

    fn refuse_what_is_no_file(&self, path: &str, parent: &OwnedFd, name: &str) -> Result<()> {
        match fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(()),
            Ok(stat) if kind(&stat) == SFlag::S_IFREG => Ok(()),
            Ok(stat) if kind(&stat) == SFlag::S_IFLNK => {
                Err(self.occupied(path, "a symbolic link stands there"))
            }
            Ok(stat) if kind(&stat) == SFlag::S_IFDIR => Err(self.occupied(path, "a folder stands there")),
            Ok(_) => Err(self.occupied(path, "something that is no regular file stands there")),
            Err(errno) => Err(self.in_the_way(path, errno)),
        }
    }

    fn enter_above<'a>(&self, path: &'a str) -> Result<(OwnedFd, &'a str)> {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.enter(above, path)?, name))
    }

    /// Opens the folder `above`, made with those above it where they are missing, to place `path` there.
    fn enter(&self, above: &str, path: &str) -> Result<OwnedFd> {
        let folder = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        let mut at = self.root.try_clone().storage(|| self.doing(path))?;
        for name in above.split('/').filter(|name| !name.is_empty()) {
            match mkdirat(&at, name, Mode::from_bits_truncate(0o755)) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(errno) => return Err(self.in_the_way(path, errno)),
            }
            at = beneath(&at, name, folder).map_err(|errno| self.in_the_way(path, errno))?;
        }
        Ok(at)
    }

    fn resolve(&self, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
        beneath(&self.root, path, flags)
    }

    fn doing(&self, path: &str) -> String {
        format!("cannot place {path:?} in {}", self.path.display())
    }

    fn occupied(&self, path: &str, why: &str) -> Error {
        Error::new(Kind::Invalid, format!("{}: {why}", self.doing(path)))
            .hint("remove it, or choose another folder with --output")
    }

    fn in_the_way(&self, path: &str, errno: Errno) -> Error {
        match errno {
            Errno::ELOOP => self.occupied(path, "a symbolic link stands in the way"),
            Errno::ENOTDIR => self.occupied(path, "a file stands in the way where a folder belongs"),
            Errno::EISDIR => self.occupied(path, "a folder stands there"),
            Errno::EXDEV => self.occupied(path, "the way leads out of the folder"),
            errno => Error::from_source(Kind::Storage, self.doing(path), io::Error::from(errno)),
        }
    }
}

fn beneath(at: &impl AsFd, path: &str, flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(at, path, OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve))
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// Sets what a file looks like, and sees it onto the disk: what stands under its name is whole, also after a power failure.
fn finish(file: &File, look: &Look) -> io::Result<()> {
    file.set_permissions(PermissionsExt::from_mode(if look.executable { 0o755 } else { 0o644 }))?;
    let seconds = look.mtime.and_then(|mtime| u64::try_from(mtime).ok());
    let time = seconds.and_then(|seconds| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
    file.set_modified(time.unwrap_or_else(SystemTime::now))?;
    for (name, value) in &look.marks {
        mark(file, name, value);
    }
    file.sync_all()
}

/// Where the file system has no such attributes, nothing is lost but a hint.
fn mark(file: &impl AsFd, name: &str, value: &str) {
    let set =
        file.as_fd().try_clone_to_owned().and_then(|file| File::from(file).set_xattr(name, value.as_bytes()));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set {name}");
    }
}

/// Makes something under a name that nobody else uses, and gives the name too. What is there already is not ours.
fn temporary<T>(make: impl FnMut(&str) -> nix::Result<T>) -> nix::Result<(String, T)> {
    crate::repository::push::temporary::make(make, |errno| *errno == Errno::EEXIST)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(&dir.path().join("out")).unwrap();
        (dir, folder)
    }

    fn image(dir: &tempfile::TempDir, bytes: &[u8]) -> PathBuf {
        let image = dir.path().join("image");
        std::fs::write(&image, bytes).unwrap();
        image
    }

    #[test]
    fn a_file_is_moved_under_its_name_and_who_reads_the_old_one_goes_on() {
        let (dir, folder) = folder();
        let at = folder.path().join("a/b/w.bin");
        folder.place("a/b/w.bin", &image(&dir, b"old"), &Look::default()).unwrap();
        let reader = File::open(&at).unwrap();
        let new = image(&dir, b"newer");
        let inode = new.metadata().unwrap().ino();
        let look = Look { executable: true, mtime: Some(1_000_000_000), marks: Vec::new() };
        folder.place("a/b/w.bin", &new, &look).unwrap();
        let meta = at.metadata().unwrap();
        assert_eq!((meta.ino(), meta.mode() & 0o777, meta.mtime()), (inode, 0o755, 1_000_000_000));
        assert_eq!(io::read_to_string(reader).unwrap(), "old");
        assert!(!new.exists(), "moved, not copied");
    }

    #[test]
    fn copies_links_folders_and_empty_files_are_placed_and_nothing_temporary_is_left() {
        let (dir, folder) = folder();
        let source = image(&dir, b"bytes");
        folder.copy("copy", &source, &Look::default()).unwrap();
        folder.empty("empty", &Look::default()).unwrap();
        folder.link("link", "copy").unwrap();
        folder.link("link", "copy").unwrap();
        folder.folder("x/y").unwrap();
        assert!(source.exists());
        assert_eq!(std::fs::read(folder.path().join("link")).unwrap(), b"bytes");
        assert_eq!(folder.existing("empty").unwrap().unwrap().metadata().unwrap().len(), 0);
        assert!(folder.existing("none").unwrap().is_none());
        let mut names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["copy", "empty", "link", "x"]);
    }

    #[test]
    fn what_a_killed_process_of_our_number_left_fails_no_pull() {
        let (dir, folder) = folder();
        let source = image(&dir, b"bytes");
        let left = |number| folder.path().join(format!(".weightfs-{}-{number}", std::process::id()));
        (0..100).for_each(|number| std::fs::write(left(number), b"theirs").unwrap());
        folder.copy("copy", &source, &Look::default()).unwrap();
        folder.link("link", "copy").unwrap();
        assert_eq!(std::fs::read(folder.path().join("link")).unwrap(), b"bytes");
        assert!((0..100).all(|number| std::fs::read(left(number)).unwrap() == b"theirs"));
    }

    #[test]
    fn nothing_is_followed_or_removed_that_stands_in_the_way() {
        let (dir, folder) = folder();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        symlink(&outside, folder.path().join("sub")).unwrap();
        symlink(outside.join("file"), folder.path().join("name")).unwrap();
        std::fs::create_dir(folder.path().join("folder")).unwrap();
        std::fs::write(folder.path().join("file"), b"mine").unwrap();
        let source = image(&dir, b"bytes");
        for path in ["sub/w", "name", "folder", "file/w"] {
            for error in [
                folder.place(path, &source, &Look::default()).unwrap_err(),
                folder.copy(path, &source, &Look::default()).unwrap_err(),
                folder.empty(path, &Look::default()).unwrap_err(),
            ] {
                assert_eq!(error.kind(), Kind::Invalid, "{error}");
                assert!(error.to_string().contains(path), "{error}");
            }
        }
        assert!(folder.link("folder", "x").is_err() && folder.existing("sub/w").is_err());
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
        assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"mine");
        assert!(source.exists());
    }

    #[test]
    fn an_image_of_another_file_system_is_copied() {
        let (_dir, folder) = folder();
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let source = other.path().join("image");
        std::fs::write(&source, b"bytes").unwrap();
        folder.place("w", &source, &Look::default()).unwrap();
        assert_eq!(std::fs::read(folder.path().join("w")).unwrap(), b"bytes");
    }
}
