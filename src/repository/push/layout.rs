//! An image layout folder that is pushed into: blobs written beside and renamed, `index.json` replaced as a whole.
//!
//! Reading is [`super::super::Layout`]'s. Several processes may push into one folder: a blob's name is its digest, so that
//! who is last changes nothing, and the index is changed under a lock. Nothing that is no image layout is touched.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use nix::libc;
use serde_json::{Map, Value, json};

use super::Upload;
use super::source::Source;
use super::temporary;
use crate::error::{Error, Kind, Result};
use crate::oci::digest::Hasher;
use crate::oci::{Blob, Digest};
use crate::range::StoredRange;
use crate::repository::layout::{TAG, blocking, read_small};
use crate::repository::{Layout, Repository, Untagged};

/// What `oci-layout` says (image specification, image-layout.md).
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// How long the index may be held by others, who need milliseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);
const LOCK_PAUSE: Duration = Duration::from_millis(10);

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    root: PathBuf,
    layout: Layout,
}

impl Folder {
    /// The image layout at `root`, made where there is none.
    pub(super) fn open(root: &Path) -> Result<Self> {
        if !root.join("oci-layout").exists() {
            make(root)?;
        }
        let layout = Layout::open(root, Untagged::Missing)?;
        let folder = Self { root: root.to_owned(), layout };
        make_dir(&root.join("blobs"))?;
        if !root.join("index.json").exists() {
            let _lock = folder.lock()?;
            if !root.join("index.json").exists() {
                folder.write_index(&json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }))?;
            }
        }
        Ok(folder)
    }

    /// `oci:FOLDER`
    pub(super) fn place(&self) -> String {
        self.layout.place()
    }

    /// Whether the blob is kept here, by name and size.
    pub(super) async fn has(&self, blob: &Blob) -> Result<bool> {
        let (layout, blob) = (self.layout.clone(), blob.clone());
        let look = move || match layout.size(&blob.digest) {
            Ok(size) => Ok(size == blob.size),
            Err(error) if error.kind() == Kind::NotFound => Ok(false),
            Err(error) => Err(error),
        };
        blocking(look).await
    }

    /// Writes the blob where it is missing.
    pub(super) async fn put(&self, upload: &Upload, sent: &(dyn Fn(u64) + Send + Sync)) -> Result<()> {
        let source = Source::new(upload)?;
        let blob = &upload.blob;
        if self.has(blob).await? {
            sent(blob.size);
            return Ok(());
        }
        let (path, digest) = (self.layout.blob_path(&blob.digest), blob.digest.clone());
        let mut writing = blocking(move || Writing::begin(path, &digest)).await?;
        let mut bytes = source.stream(StoredRange::new(0, blob.size));
        while let Some(piece) = bytes.next().await {
            let piece = piece?;
            let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            writing = blocking(move || writing.write(&piece).map(|()| writing)).await?;
            sent(len);
        }
        let digest = blob.digest.clone();
        blocking(move || writing.finish(&digest)).await
    }

    /// Writes the manifest, and its line in the index.
    pub(super) async fn tag(&self, tag: Option<&str>, media_type: &str, manifest: &Bytes) -> Result<Digest> {
        let (folder, tag) = (self.clone(), tag.map(str::to_owned));
        let (media_type, manifest) = (media_type.to_owned(), manifest.clone());
        let change = move || {
            let digest = Digest::of(&manifest);
            let mut writing = Writing::begin(folder.layout.blob_path(&digest), &digest)?;
            writing.write(&manifest)?;
            writing.finish(&digest)?;
            let entry = entry(&digest, &media_type, &manifest, tag.as_deref());
            let _lock = folder.lock()?;
            let mut index = folder.read_index()?;
            enter(&mut index, entry, tag.as_deref())
                .ok_or_else(|| folder.no_index("its manifests are no list"))?;
            folder.write_index(&index)?;
            Ok(digest)
        };
        blocking(change).await
    }

    fn index_path(&self) -> PathBuf {
        self.root.join("index.json")
    }

    fn read_index(&self) -> Result<Value> {
        let bytes = read_small(&self.index_path())?;
        serde_json::from_slice(&bytes).map_err(|error| self.no_index(&error.to_string()))
    }

    fn no_index(&self, why: &str) -> Error {
        Error::new(Kind::Protocol, format!("cannot change {}: {why}", self.index_path().display()))
    }

    fn write_index(&self, index: &Value) -> Result<()> {
        let path = self.index_path();
        let write = |path: &Path| {
            let mut beside = Beside::new(path)?;
            beside.file.write_all(index.to_string().as_bytes())?;
            beside.rename()
        };
        write(&path).map_err(|error| failed("write", &path, error))
    }

    /// Keeps others from changing the index until the value is dropped.
    fn lock(&self) -> Result<File> {
        let path = self.root.join("index.lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o644).custom_flags(libc::O_NOFOLLOW);
        let file = options.open(&path).map_err(|error| failed("open", &path, error))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_PATIENCE => {
                    std::thread::sleep(LOCK_PAUSE);
                }
                Err(TryLockError::WouldBlock) => {
                    let doing = format!("another process holds {}", path.display());
                    return Err(Error::new(Kind::Busy, doing));
                }
                Err(TryLockError::Error(error)) => return Err(failed("lock", &path, error)),
            }
        }
    }
}

/// A blob in the making; what is written goes away where it is not finished.
struct Writing {
    beside: Beside,
    hasher: Hasher,
}

impl Writing {
    fn begin(path: PathBuf, digest: &Digest) -> Result<Self> {
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let beside = Beside::new(&path).map_err(|error| failed("write", &path, error))?;
        Ok(Self { beside, hasher: Hasher::new(digest.algorithm()) })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.beside.file.write_all(bytes).map_err(|error| failed("write", &self.beside.path, error))
    }

    fn finish(self, digest: &Digest) -> Result<()> {
        let found = self.hasher.finish();
        if found != *digest {
            let doing = format!("the bytes to be put as {digest} are {found}");
            return Err(
                Error::new(Kind::Integrity, doing).hint("files must stay as they are while they are pushed")
            );
        }
        let path = self.beside.path.clone();
        self.beside.rename().map_err(|error| failed("write", &path, error))
    }
}

/// A file that takes the place of another when it is whole, or goes away.
struct Beside {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Beside {
    fn new(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
        let open = |name: &str| options.open(path.with_file_name(name));
        let (name, file) = temporary::make(open, |error| error.kind() == io::ErrorKind::AlreadyExists)?;
        let temporary = path.with_file_name(name);
        Ok(Self { file, temporary, path: path.to_owned() })
    }

    /// Puts the file at its path, in place of what is there.
    fn rename(self) -> io::Result<()> {
        self.file.sync_data()?;
        fs::rename(&self.temporary, &self.path)
    }

    /// Puts the file at its path, unless something is there.
    fn link(self) -> io::Result<()> {
        self.file.sync_data()?;
        match fs::hard_link(&self.temporary, &self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            linked => linked,
        }
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        // Gone already where it was renamed.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Makes `root` an image layout: it is missing, or has nothing in it.
fn make(root: &Path) -> Result<()> {
    make_dir(root)?;
    let entries = fs::read_dir(root).map_err(|error| failed("read", root, error))?;
    for entry in entries {
        let name = entry.map_err(|error| failed("read", root, error))?.file_name();
        // What a process that was killed left beside the marker; a folder that has nothing else still counts as empty.
        let ours = name == "oci-layout" || name.to_string_lossy().starts_with(temporary::BEGINS);
        if !ours {
            let doing = format!("{} has other files in it and is no image layout", root.display());
            return Err(
                Error::new(Kind::Busy, doing).hint("name an empty folder, or one that does not exist")
            );
        }
    }
    let marker = root.join("oci-layout");
    let write = || {
        let mut beside = Beside::new(&marker)?;
        beside.file.write_all(MARKER)?;
        beside.link()
    };
    write().map_err(|error| failed("write", &marker, error))
}

fn make_dir(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir).map_err(|error| failed("make", dir, error))
}

/// The manifest's line in the index (image specification, image-index.md).
fn entry(digest: &Digest, media_type: &str, manifest: &[u8], tag: Option<&str>) -> Map<String, Value> {
    let mut entry = Map::new();
    entry.insert("mediaType".into(), media_type.into());
    entry.insert("digest".into(), digest.to_string().into());
    entry.insert("size".into(), manifest.len().into());
    let manifest: Value = serde_json::from_slice(manifest).unwrap_or_default();
    if let Some(kind) = manifest.get("artifactType").filter(|kind| kind.is_string()) {
        entry.insert("artifactType".into(), kind.clone());
    }
    if let Some(tag) = tag {
        entry.insert("annotations".into(), json!({ TAG: tag }));
    }
    entry
}

/// Puts `entry` into the index; `None` where the index has no list of manifests to put it into.
///
/// The entry that had the tag loses it. An entry of the same digest that nothing names gives way; without a tag, any
/// entry of the same digest will do.
fn enter(index: &mut Value, entry: Map<String, Value>, tag: Option<&str>) -> Option<()> {
    let list = index.as_object_mut()?.entry("manifests").or_insert_with(|| Value::Array(Vec::new()));
    let list = list.as_array_mut()?;
    let same = |other: &Value| other.get("digest") == entry.get("digest");
    if tag.is_none() && list.iter().any(same) {
        return Some(());
    }
    for other in list.iter_mut().filter(|other| tag.is_some() && tag_of(other) == tag) {
        if let Some(annotations) = other.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove(TAG);
        }
    }
    list.retain(|other| !same(other) || tag_of(other).is_some());
    list.push(Value::Object(entry));
    Some(())
}

fn tag_of(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(TAG)?.as_str()
}

/// A failure of the local disk, by what was done to which file.
fn failed(verb: &str, path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => Kind::Busy,
        _ => Kind::Storage,
    };
    Error::from_source(kind, format!("cannot {verb} {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::super::{Piece, Target};
    use super::*;
    use crate::oci::Which;
    use crate::repository::Config;

    fn target(folder: &Path) -> Result<Target> {
        Target::open(&format!("oci:{}", folder.display()).parse().unwrap(), &Config::default())
    }

    fn upload(bytes: &'static [u8]) -> Upload {
        let blob = Blob { digest: Digest::of(bytes), size: bytes.len().try_into().unwrap() };
        Upload { blob, pieces: vec![Piece::Bytes(Bytes::from_static(bytes))] }
    }

    fn entries(folder: &Path) -> Vec<(String, Option<String>)> {
        let index: Value = serde_json::from_slice(&fs::read(folder.join("index.json")).unwrap()).unwrap();
        let list = index["manifests"].as_array().unwrap();
        let pair = |one: &Value| (one["digest"].as_str().unwrap().to_owned(), tag_of(one).map(str::to_owned));
        list.iter().map(pair).collect()
    }

    #[test]
    fn a_folder_with_other_files_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), "mine").unwrap();
        let error = target(folder.path()).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(target(&folder.path().join("thesis.txt")).unwrap_err().kind(), Kind::Busy);
    }

    #[test]
    fn a_layout_that_was_half_made_is_made_whole() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".weightfs-1-1.tmp"), "{").unwrap();
        target(folder.path()).unwrap();
        fs::remove_file(folder.path().join("index.json")).unwrap();
        fs::remove_dir(folder.path().join("blobs")).unwrap();
        target(folder.path()).unwrap();
        assert_eq!(entries(folder.path()), []);
    }

    #[test]
    fn two_that_write_one_blob_write_into_files_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blob");
        let (mut one, two) = (Beside::new(&path).unwrap(), Beside::new(&path).unwrap());
        assert_ne!(one.temporary, two.temporary);
        one.file.write_all(b"one").unwrap();
        drop(two);
        one.rename().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn what_a_process_of_our_number_is_writing_is_left_to_it() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path()).unwrap();
        let blobs = folder.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let theirs = |number| blobs.join(format!("{}{}-{number}.tmp", temporary::BEGINS, std::process::id()));
        (0..100).for_each(|number| fs::write(theirs(number), "theirs").unwrap());
        target.put(&upload(b"abc"), &|_| {}).await.unwrap();
        assert!((0..100).all(|number| fs::read(theirs(number)).unwrap() == b"theirs"));
    }

    #[tokio::test]
    async fn bytes_that_are_not_what_the_digest_names_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path()).unwrap();
        let mut wrong = upload(b"abc");
        wrong.pieces = vec![Piece::Bytes(Bytes::from_static(b"abd"))];
        assert_eq!(target.put(&wrong, &|_| {}).await.unwrap_err().kind(), Kind::Integrity);
        assert!(!target.has(&wrong.blob).await.unwrap());
        assert_eq!(fs::read_dir(folder.path().join("blobs/sha256")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_blob_of_another_size_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path()).unwrap();
        let whole = upload(b"abc");
        target.put(&whole, &|_| {}).await.unwrap();
        let path = folder.path().join("blobs/sha256").join(whole.blob.digest.hex());
        fs::write(&path, "ab").unwrap();
        assert!(!target.has(&whole.blob).await.unwrap());
        target.put(&whole, &|_| {}).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"abc");
    }

    #[tokio::test]
    async fn a_tag_moves_and_no_manifest_stands_twice() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path()).unwrap();
        let tag = async |tag, bytes: &'static [u8]| {
            target.tag(tag, "m", &Bytes::from_static(bytes)).await.unwrap().to_string()
        };
        let (a, b) = (tag(Some("v1"), b"{}").await, tag(Some("v1"), b"[]").await);
        let v1 = || Some("v1".to_owned());
        assert_eq!(entries(folder.path()), [(a.clone(), None), (b.clone(), v1())]);
        tag(Some("v1"), b"{}").await;
        assert_eq!(entries(folder.path()), [(b.clone(), None), (a.clone(), v1())]);
        tag(None, b"{}").await;
        tag(None, b"[]").await;
        assert_eq!(entries(folder.path()), [(b.clone(), None), (a.clone(), v1())]);
        tag(Some("v2"), b"{}").await;
        assert_eq!(entries(folder.path()), [(b, None), (a.clone(), v1()), (a, Some("v2".to_owned()))]);
    }

    #[tokio::test]
    async fn what_others_wrote_into_the_index_stays() {
        let folder = tempfile::tempdir().unwrap();
        let target = target(folder.path()).unwrap();
        let index = r#"{"schemaVersion":2,"annotations":{"a":"b"},"manifests":[{"digest":"x","platform":{"os":"o"}}]}"#;
        fs::write(folder.path().join("index.json"), index).unwrap();
        target.tag(Some("v"), "m", &Bytes::from_static(br#"{"artifactType":"t"}"#)).await.unwrap();
        let index: Value =
            serde_json::from_slice(&fs::read(folder.path().join("index.json")).unwrap()).unwrap();
        assert_eq!(
            (&index["annotations"]["a"], &index["manifests"][0]["platform"]["os"]),
            (&json!("b"), &json!("o"))
        );
        let entry = &index["manifests"][1];
        assert_eq!(
            (&entry["artifactType"], &entry["mediaType"], &entry["size"]),
            (&json!("t"), &json!("m"), &json!(20))
        );
        fs::write(folder.path().join("index.json"), "torn").unwrap();
        let error = target.tag(Some("v"), "m", &Bytes::from_static(b"{}")).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Protocol);
        assert_eq!(fs::read(folder.path().join("index.json")).unwrap(), b"torn");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_that_tag_at_once_lose_no_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let tags: Vec<_> = (0..16)
            .map(|n| {
                let target = target(folder.path()).unwrap();
                let manifest = Bytes::from(format!("{{\"n\":{n}}}"));
                tokio::spawn(async move { target.tag(Some(&format!("v{n}")), "m", &manifest).await.unwrap() })
            })
            .collect();
        for tag in tags {
            tag.await.unwrap();
        }
        assert_eq!(entries(folder.path()).len(), 16);
        let layout = Layout::open(folder.path(), Untagged::Missing).unwrap();
        layout.manifest(&Which::Tag("v7".into())).await.unwrap();
    }

    #[tokio::test]
    async fn what_a_stranger_linked_in_our_way_is_not_written_through() {
        let folder = tempfile::tempdir().unwrap();
        let victim = folder.path().join("victim");
        fs::write(&victim, "mine").unwrap();
        let root = folder.path().join("layout");
        let target = target(&root).unwrap();
        let whole = upload(b"abc");
        fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        std::os::unix::fs::symlink(&victim, root.join("blobs/sha256").join(whole.blob.digest.hex())).unwrap();
        std::os::unix::fs::symlink(&victim, root.join("index.lock")).unwrap_err();
        target.put(&whole, &|_| {}).await.unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"mine");
        assert!(target.has(&whole.blob).await.unwrap());
    }
}
