//! The files of a folder that is packed: which there are, which are left out, and whether one changed since.
//!
//! Reads names and what `stat` says, no content. [`plan`](super::plan()) walks once; the digests and the upload ask
//! [`Seal`] whether a file is still the one that was found.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result, StorageContext};
use crate::oci::path;
use crate::repository::push::Seal;

/// The most files of one model: a manifest may have so many layers, one of which is the index.
pub const FILES_LIMIT: usize = crate::oci::manifest::LAYER_LIMIT - 1;

/// The deepest folder that is entered: a path may have 4,096 bytes.
const DEPTH: usize = 2048;

/// Which links to files are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Links {
    /// Those that stay in the folder, and those of a snapshot folder of the Hugging Face cache to its own blobs: who put
    /// a link among a model's files must not get a file published that is none of them.
    #[default]
    Inside,
    /// All.
    All,
}

impl Links {
    /// Where a link in `folder` may lead; `None`: anywhere.
    fn allowed(self, folder: &Path) -> std::io::Result<Option<Vec<PathBuf>>> {
        if self == Self::All {
            return Ok(None);
        }
        let folder = folder.canonicalize()?;
        // MODEL/snapshots/REVISION has links to ../../blobs/DIGEST.
        let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"));
        let blobs = snapshots.and_then(Path::parent).map(|model| model.join("blobs"));
        Ok(Some(std::iter::once(folder.clone()).chain(blobs).collect()))
    }
}

/// What a folder has.
#[derive(Debug, Default)]
pub struct Found {
    /// The files, sorted by the bytes of their paths.
    pub files: Vec<File>,
    /// What is left out by its name, relative to the folder, sorted; a folder that is left out is named alone.
    pub skipped: Vec<String>,
}

/// A regular file of the folder, or one that a link in the folder leads to.
#[derive(Clone, Debug)]
pub struct File {
    /// Its path in the model: relative, UTF-8, validated.
    pub path: String,
    /// Where it is opened.
    pub place: PathBuf,
    /// What a link there leads to in the end.
    pub target: Option<PathBuf>,
    /// Its size in bytes.
    pub size: u64,
    /// Whether its user may execute it.
    pub executable: bool,
    /// Its modification time in seconds since 1970, fractions dropped downwards.
    pub mtime: i64,
    /// What it was when it was found.
    pub seal: Seal,
}

impl File {
    /// Opens the file that was found. Never waits for anybody.
    ///
    /// # Errors
    /// `Busy` where it is another or was written to, naming it; `Storage` where it can't be opened.
    pub fn open(&self) -> Result<fs::File> {
        self.seal.open(&self.place).map_err(|error| match error.kind() {
            Kind::Busy => self.changed(),
            _ => error,
        })
    }

    /// Whether the file that was found still stands at its place, unwritten.
    ///
    /// # Errors
    /// `Busy` where it does not, naming it.
    pub fn check(&self) -> Result<()> {
        let now = fs::metadata(&self.place).ok().map(|metadata| Seal::of(&metadata));
        if now == Some(self.seal) { Ok(()) } else { Err(self.changed()) }
    }

    /// The error for a file that changed while it was packed.
    #[must_use]
    pub fn changed(&self) -> Error {
        Error::new(Kind::Busy, format!("{} changed while it was packed", self.place.display()))
            .hint("pack again when nobody writes to the folder")
    }
}

/// The files below `folder`. Links to files are followed as `links` says, since a folder of the Hugging Face cache is made
/// of them.
///
/// Left out are names that begin with a dot, `__pycache__`, `*.pyc`, `*.pyo`, `*.pyd` and `Modelfile` (in any case), as
/// modctl does.
///
/// # Errors
/// `NotFound` where there is no such folder or nothing to pack in it; `Invalid` for what is no folder, for a link to a
/// folder, to nothing or out of `folder`, a socket, pipe or device, and for a name that can't stand in a model, each by
/// name; `Storage` where the folder can't be read.
pub fn walk(folder: &Path, links: Links) -> Result<Found> {
    let named = || format!("cannot read the folder {}", folder.display());
    let metadata = fs::metadata(folder).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(Kind::NotFound, format!("no such folder: {}", folder.display()))
        }
        _ => Error::from_source(Kind::Storage, named(), error),
    })?;
    if !metadata.is_dir() {
        return Err(Error::new(Kind::Invalid, format!("{} is no folder", folder.display()))
            .hint("name the folder that has the model's files"));
    }
    let allowed = links.allowed(folder).storage(named)?;
    let mut found = Found::default();
    enter(folder, &[], 0, allowed.as_deref(), &mut found)?;
    found.files.sort_by(|one, other| one.path.cmp(&other.path));
    found.skipped.sort();
    if found.files.is_empty() {
        let doing = format!("there is nothing to pack in {}", folder.display());
        return Err(Error::new(Kind::NotFound, doing).hint("names that begin with a dot are left out"));
    }
    Ok(found)
}

fn enter(
    folder: &Path,
    prefix: &[u8],
    depth: usize,
    allowed: Option<&[PathBuf]>,
    found: &mut Found,
) -> Result<()> {
    if depth > DEPTH {
        return Err(Error::new(Kind::Invalid, format!("{} is too deep", folder.display())));
    }
    let reading = || format!("cannot read the folder {}", folder.display());
    for entry in fs::read_dir(folder).storage(reading)? {
        let entry = entry.storage(reading)?;
        let name = entry.file_name();
        let relative = join(prefix, &name);
        if is_left_out(&name) {
            found.skipped.push(String::from_utf8_lossy(&relative).into_owned());
            continue;
        }
        let place = entry.path();
        let kind = entry.file_type().storage(|| format!("cannot look at {}", place.display()))?;
        if kind.is_dir() {
            enter(&place, &relative, depth + 1, allowed, found)?;
        } else {
            let target = if kind.is_symlink() { Some(followed(&place, allowed)?) } else { None };
            found.files.push(file(&relative, place, target)?);
            refuse_too_many(found.files.len())?;
        }
    }
    Ok(())
}

fn join(prefix: &[u8], name: &OsStr) -> Vec<u8> {
    if prefix.is_empty() { name.as_bytes().to_vec() } else { [prefix, b"/", name.as_bytes()].concat() }
}

fn is_left_out(name: &OsStr) -> bool {
    let name = name.as_bytes().to_ascii_lowercase();
    name.starts_with(b".")
        || name == b"__pycache__"
        || name == b"modelfile"
        || [&b".pyc"[..], b".pyo", b".pyd"].iter().any(|ending| name.ends_with(ending))
}

/// What the link leads to in the end: a file, where a link may lead.
fn followed(link: &Path, allowed: Option<&[PathBuf]>) -> Result<PathBuf> {
    let refused = |why: &str| Error::new(Kind::Invalid, format!("{} {why}", link.display()));
    let target = link.canonicalize().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            refused("is a link that leads nowhere").hint("remove it, or fetch what it leads to")
        }
        _ => Error::from_source(Kind::Storage, format!("cannot follow {}", link.display()), error),
    })?;
    if target.is_dir() {
        return Err(refused("is a link to a folder").hint("copy the folder to its place, or remove the link"));
    }
    if allowed.is_none_or(|allowed| allowed.iter().any(|folder| target.starts_with(folder))) {
        return Ok(target);
    }
    let why = format!("is a link out of the folder, to {}", target.display());
    Err(refused(&why).hint("copy the file to its place, remove the link, or pack with --follow-links"))
}

/// The file at `place`, or at `target` where a link there leads to it.
fn file(relative: &[u8], place: PathBuf, target: Option<PathBuf>) -> Result<File> {
    let path = path::validate(relative)?;
    let refused = |why: &str| Error::new(Kind::Invalid, format!("{} {why}", place.display()));
    // Of the target that was looked at, should the link be changed meanwhile: its seal then fits no other.
    let metadata = fs::symlink_metadata(target.as_ref().unwrap_or(&place))
        .storage(|| format!("cannot look at {}", place.display()))?;
    if !metadata.is_file() {
        return Err(refused("is a socket, a pipe or a device, which a model can't hold").hint("remove it"));
    }
    let executable = metadata.mode() & 0o100 != 0;
    let (size, mtime, seal) = (metadata.len(), metadata.mtime(), Seal::of(&metadata));
    Ok(File { path, place, target, size, executable, mtime, seal })
}

fn refuse_too_many(count: usize) -> Result<()> {
    if count <= FILES_LIMIT {
        return Ok(());
    }
    let doing = format!("the folder has more than the {FILES_LIMIT} files that one artifact may have");
    Err(Error::new(Kind::Unsupported, doing).hint("put small files into an archive"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(folder: &Path, path: &str) {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "x").unwrap();
    }

    #[test]
    fn files_come_sorted_by_the_bytes_of_their_paths_and_others_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let left_out = [".git/config", ".gitattributes", "__pycache__/a.py", "a.pyc", "s/x.PYO", "Modelfile"];
        let packed = ["B", "a", "a.b", "a-b/c", "a/../é", "sub/deep/x"];
        for path in left_out {
            write(folder.path(), path);
        }
        for path in packed.iter().filter(|path| !path.contains("..")) {
            if *path != "a" {
                write(folder.path(), path);
            }
        }
        write(folder.path(), "a/é");
        let found = walk(folder.path(), Links::Inside).unwrap();
        let paths: Vec<_> = found.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["B", "a-b/c", "a.b", "a/é", "sub/deep/x"]);
        assert_eq!(found.skipped, [".git", ".gitattributes", "Modelfile", "__pycache__", "a.pyc", "s/x.PYO"]);
    }

    #[test]
    fn a_link_to_a_file_is_the_file() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "blobs/0123");
        write(folder.path(), "snapshots/s/config.json");
        let snapshot = folder.path().join("snapshots/s");
        symlink("../../blobs/0123", snapshot.join("model.bin")).unwrap();
        let found = walk(&snapshot, Links::Inside).unwrap();
        let paths: Vec<_> = found.files.iter().map(|file| (file.path.as_str(), file.size)).collect();
        assert_eq!(paths, [("config.json", 1), ("model.bin", 1)]);
    }

    #[test]
    fn a_link_out_of_the_folder_is_refused_by_name_unless_all_are_followed() {
        let outer = tempfile::tempdir().unwrap();
        let outer = outer.path().canonicalize().unwrap();
        for path in ["secret", "blobs/0123", "home/blobs/0123", "home/a/model/a.bin"] {
            write(&outer, path);
        }
        let folder = outer.join("home/a/model");
        symlink("a.bin", folder.join("b.bin")).unwrap();
        symlink(folder.join("b.bin"), folder.join("c.bin")).unwrap();
        let found = walk(&folder, Links::Inside).unwrap();
        assert!(found.files.iter().skip(1).all(|file| file.target == Some(folder.join("a.bin"))));
        // The folder above is not called snapshots.
        for target in ["../../../secret", "../../blobs/0123"] {
            let link = folder.join("odd.bin");
            symlink(target, &link).unwrap();
            let error = walk(&folder, Links::Inside).unwrap_err();
            let text = error.to_string();
            assert_eq!(error.kind(), Kind::Invalid);
            let real = link.canonicalize().unwrap();
            assert!(text.contains("odd.bin") && text.contains(real.to_str().unwrap()), "{text}");
            assert!(text.contains("--follow-links"), "{text}");
            let found = walk(&folder, Links::All).unwrap();
            assert_eq!(found.files[3].target, Some(real));
            fs::remove_file(link).unwrap();
        }
    }

    #[test]
    fn a_snapshot_reaches_its_own_blobs_and_no_others() {
        let outer = tempfile::tempdir().unwrap();
        let outer = outer.path();
        for path in ["one/blobs/0123", "one/snapshots/s/a", "two/blobs/0123", "two/snapshots/s/a"] {
            write(outer, path);
        }
        symlink("../../blobs/0123", outer.join("one/snapshots/s/w")).unwrap();
        walk(&outer.join("one/snapshots/s"), Links::Inside).unwrap();
        symlink("../../../one/blobs/0123", outer.join("two/snapshots/s/w")).unwrap();
        walk(&outer.join("two/snapshots/s"), Links::Inside).unwrap_err();
        // Blobs that are a link themselves are somebody else's.
        fs::remove_dir_all(outer.join("two/blobs")).unwrap();
        symlink("../one/blobs", outer.join("two/blobs")).unwrap();
        walk(&outer.join("two/snapshots/s"), Links::Inside).unwrap_err();
    }

    #[test]
    fn what_is_no_file_is_refused_by_name() {
        type Make = fn(&Path);
        let makes: [(&str, Make); 4] = [
            ("leads nowhere", |path| symlink("nowhere", path).unwrap()),
            ("link to a folder", |path| symlink("..", path).unwrap()),
            ("a pipe", |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).unwrap()),
            ("socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap())),
        ];
        for (why, make) in makes {
            let folder = tempfile::tempdir().unwrap();
            write(folder.path(), "a");
            make(&folder.path().join("odd"));
            let error = walk(folder.path(), Links::Inside).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains(why) && error.to_string().contains("odd"), "{error}");
        }
    }

    #[test]
    fn a_name_that_is_no_text_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(OsStr::from_bytes(b"a\xff")), "x").unwrap();
        let error = walk(folder.path(), Links::Inside).unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.to_string().contains("a\\xff"), "{error}");
    }

    #[test]
    fn a_folder_with_nothing_in_it_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), ".hidden");
        assert_eq!(walk(folder.path(), Links::Inside).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(walk(&folder.path().join("none"), Links::Inside).unwrap_err().kind(), Kind::NotFound);
        assert_eq!(walk(&folder.path().join(".hidden"), Links::Inside).unwrap_err().kind(), Kind::Invalid);
    }

    #[test]
    fn a_file_that_is_written_to_or_replaced_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "a");
        let file = walk(folder.path(), Links::Inside).unwrap().files.remove(0);
        file.check().unwrap();
        fs::write(&file.place, "longer").unwrap();
        assert!(file.check().unwrap_err().to_string().contains("changed while it was packed"));
        let file = walk(folder.path(), Links::Inside).unwrap().files.remove(0);
        let modified = file.place.metadata().unwrap().modified().unwrap();
        // Coarse clocks give two writings that follow at once the same time.
        let changed = || file.place.metadata().map(|now| (now.ctime(), now.ctime_nsec())).unwrap();
        let before = changed();
        while changed() == before {
            fs::write(&file.place, "behind").unwrap();
        }
        fs::File::open(&file.place).unwrap().set_modified(modified).unwrap();
        assert_eq!(file.place.metadata().unwrap().modified().unwrap(), modified);
        assert!(file.check().is_err(), "its times were set back");
        fs::remove_file(&file.place).unwrap();
        assert_eq!(file.check().unwrap_err().kind(), Kind::Busy);
    }
}
