//! An OCI image layout folder as a repository: `oci-layout`, `index.json`, `blobs/ALGORITHM/HEX`.
//!
//! Only reads. Blobs are read by position on tokio's blocking threads, so that a slow disk holds up no
//! other task. [`super::connect`] opens one for an `oci:` reference; the demo's registry serves one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::referrers::REFERRERS_LIMIT;
use super::{ByteStream, MANIFEST_LIMIT, Pace, Pinned, Repository, referrers};
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Descriptor, Digest, Which};
use crate::range::StoredRange;

/// The annotation of a descriptor in `index.json` that is its tag (image specification, annotations.md).
pub const TAG: &str = "org.opencontainers.image.ref.name";

/// How much is read from a file at once.
const PIECE: u64 = 1 << 20;

/// What a tag that `index.json` does not have means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Untagged {
    /// Nothing: there is no such manifest.
    Missing,
    /// The only manifest of the folder that belongs to no other, where there is exactly one. For references without a tag.
    TheOnlyOne,
}

/// An OCI image layout folder (image specification, image-layout.md).
#[derive(Clone, Debug)]
pub struct Layout {
    folder: PathBuf,
    untagged: Untagged,
}

#[derive(serde::Deserialize)]
struct ImageIndex {
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(serde::Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

impl Layout {
    /// Opens the folder after a look at its `oci-layout` file.
    ///
    /// # Errors
    /// `NotFound` where the folder is missing or no layout, `Unsupported` where it has another major version
    /// than 1, `Storage` where it cannot be read.
    pub fn open(folder: impl Into<PathBuf>, untagged: Untagged) -> Result<Self> {
        let layout = Self { folder: folder.into(), untagged };
        let marker =
            read_small(&layout.folder.join("oci-layout")).map_err(|error| layout.no_layout(error))?;
        let marker: Marker = serde_json::from_slice(&marker).map_err(|error| {
            Error::from_source(
                Kind::Protocol,
                format!("cannot read {}/oci-layout", layout.folder.display()),
                error,
            )
        })?;
        if !marker.version.starts_with("1.") {
            let doing = format!("{} is an image layout of version {:?}", layout.place(), marker.version);
            return Err(Error::new(Kind::Unsupported, doing).hint("weightfs reads version 1"));
        }
        Ok(layout)
    }

    /// Where the bytes of `digest` are kept, whether or not they are.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }

    fn no_layout(&self, error: Error) -> Error {
        error
            .context(format!("no image layout at {}", self.folder.display()))
            .hint("the folder must have the files oci-layout and index.json")
    }

    fn resolve(&self, which: &Which) -> Result<(Digest, String)> {
        let path = self.folder.join("index.json");
        let index: ImageIndex = serde_json::from_slice(&read_small(&path)?).map_err(|error| {
            Error::from_source(Kind::Protocol, format!("cannot read {}", path.display()), error)
        })?;
        match which {
            Which::Digest(digest) => {
                let known = index.manifests.into_iter().find(|descriptor| descriptor.digest == *digest);
                Ok((digest.clone(), known.map_or_else(String::new, |descriptor| descriptor.media_type)))
            }
            Which::Tag(tag) => self.tagged(index, tag).map(|found| (found.digest, found.media_type)),
        }
    }

    fn tagged(&self, index: ImageIndex, tag: &str) -> Result<Descriptor> {
        let mut tagged =
            index.manifests.iter().filter(|one| one.annotations.get(TAG).is_some_and(|t| t == tag));
        if let Some(found) = tagged.next() {
            if tagged.any(|other| other.digest != found.digest) {
                let doing = format!("the tag {tag:?} stands for several manifests in {}", self.place());
                return Err(Error::new(Kind::Invalid, doing).hint("name one by its digest, after '@'"));
            }
            return Ok(found.clone());
        }
        let all = index.manifests.as_slice();
        let only = if self.untagged == Untagged::TheOnlyOne { self.only(all) } else { None };
        only.ok_or_else(|| self.no_such_tag(tag, all))
    }

    /// The only manifest that belongs to no other, if that is one.
    fn only(&self, all: &[Descriptor]) -> Option<Descriptor> {
        let stands_alone = |one: &&Descriptor| {
            let manifest = read_small(&self.blob_path(&one.digest)).ok();
            manifest.and_then(|manifest| referrers::subject_of(&manifest)).is_none()
        };
        match all {
            [only] => Some(only.clone()),
            several => {
                let mut alone = several.iter().take(REFERRERS_LIMIT).filter(stands_alone);
                alone.next().filter(|_| alone.next().is_none()).cloned()
            }
        }
    }

    fn no_such_tag(&self, tag: &str, all: &[Descriptor]) -> Error {
        let tags: Vec<_> = all.iter().filter_map(|one| one.annotations.get(TAG)).take(10).cloned().collect();
        let hint =
            if tags.is_empty() { "it has no tags".into() } else { format!("it has {}", tags.join(", ")) };
        Error::new(Kind::NotFound, format!("no tag {tag:?} in {}", self.place())).hint(hint)
    }

    fn pinned(&self, which: &Which) -> Result<Pinned> {
        let (digest, media_type) = self.resolve(which)?;
        let bytes: Bytes = read_small(&self.blob_path(&digest))?.into();
        if !digest.matches(&bytes) {
            let doing =
                format!("the bytes of the manifest {digest} in {} are not what it names", self.place());
            return Err(Error::new(Kind::Integrity, doing));
        }
        Ok(Pinned { digest, media_type, bytes })
    }

    fn referring(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>> {
        let list = referrers::of_type(&read_small(&self.folder.join("index.json"))?, artifact_type)?;
        let refers = |one: &Descriptor| {
            let manifest = read_small(&self.blob_path(&one.digest)).ok();
            manifest.and_then(|manifest| referrers::subject_of(&manifest)).as_ref() == Some(subject)
        };
        Ok(list.into_iter().filter(refers).collect())
    }

    /// The size of a blob that is kept here, in stored bytes.
    ///
    /// # Errors
    /// `NotFound` or `Storage` as the file system says.
    pub fn size(&self, digest: &Digest) -> Result<u64> {
        let path = self.blob_path(digest);
        std::fs::metadata(&path).map(|found| found.len()).map_err(|error| file_error(&path, error))
    }

    /// The stored bytes of `range`, in pieces of `piece` bytes; the last is shorter.
    ///
    /// # Errors
    /// As [`Repository::read`].
    pub async fn pieces(&self, blob: &Blob, range: StoredRange, piece: u64) -> Result<ByteStream> {
        super::inside(blob, range)?;
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let (path, size, place) = (self.blob_path(&blob.digest), blob.size, self.place());
        let file = blocking(move || open_sized(&path, size, &place)).await?;
        Ok(file_stream(Arc::new(file), range, piece.max(1)))
    }
}

impl Repository for Layout {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        let (layout, which) = (self.clone(), which.clone());
        Box::pin(blocking(move || layout.pinned(&which)))
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(self.pieces(blob, range, PIECE))
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.read(blob, range)
    }

    fn pace(&self) -> Pace {
        Pace::default()
    }

    fn distrust(&self, _: &Blob) {}

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        let (layout, subject, artifact_type) = (self.clone(), subject.clone(), artifact_type.to_owned());
        Box::pin(blocking(move || layout.referring(&subject, &artifact_type)))
    }

    fn place(&self) -> String {
        format!("oci:{}", self.folder.display())
    }

    /// One identity for everyone: the file system already decides who may read a folder.
    fn identity(&self) -> String {
        let path = std::path::absolute(&self.folder).unwrap_or_else(|_| self.folder.clone());
        super::identity_of(&["layout", &path.to_string_lossy()])
    }
}

fn file_stream(file: Arc<File>, range: StoredRange, piece: u64) -> ByteStream {
    stream::try_unfold(range, move |rest| {
        let file = file.clone();
        async move {
            let now = rest.meet(StoredRange::new(rest.start(), rest.start().saturating_add(piece)));
            if now.is_empty() {
                return Ok(None);
            }
            let bytes = blocking(move || read_piece(&file, now)).await?;
            Ok(Some((bytes, StoredRange::new(now.end(), rest.end()))))
        }
    })
    .boxed()
}

pub(super) fn read_piece(file: &File, range: StoredRange) -> Result<Bytes> {
    let len =
        usize::try_from(range.len()).map_err(|error| Error::from_source(Kind::Invalid, "a piece", error))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, range.start()).map_err(|error| {
        Error::from_source(Kind::Storage, format!("cannot read bytes {range} of a blob"), error)
    })?;
    Ok(bytes.into())
}

fn open_sized(path: &Path, size: u64, place: &str) -> Result<File> {
    let file = File::open(path).map_err(|error| file_error(path, error))?;
    let found = file.metadata().map_err(|error| file_error(path, error))?.len();
    if found != size {
        let doing = format!("{} in {place} has {found} bytes; the manifest says {size}", path.display());
        return Err(Error::new(Kind::Integrity, doing));
    }
    Ok(file)
}

/// A manifest or another JSON file, at most [`MANIFEST_LIMIT`] bytes.
pub(super) fn read_small(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = File::open(path).map_err(|error| file_error(path, error))?;
    let mut bytes = Vec::new();
    file.take(MANIFEST_LIMIT + 1).read_to_end(&mut bytes).map_err(|error| file_error(path, error))?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MANIFEST_LIMIT {
        let doing = format!("{} is larger than {MANIFEST_LIMIT} bytes", path.display());
        return Err(Error::new(Kind::Unsupported, doing));
    }
    Ok(bytes)
}

fn file_error(path: &Path, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => Kind::NotFound,
        _ => Kind::Storage,
    };
    Error::from_source(kind, format!("cannot read {}", path.display()), error)
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::from_source(Kind::Storage, "work on a local file did not end", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(index: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        std::fs::write(folder.path().join("index.json"), index).unwrap();
        std::fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        folder
    }

    fn entry(bytes: &[u8], tag: &str) -> String {
        format!(
            r#"{{"mediaType":"m","digest":"{}","size":2,"annotations":{{"{TAG}":"{tag}"}}}}"#,
            Digest::of(bytes)
        )
    }

    #[tokio::test]
    async fn a_folder_with_one_manifest_needs_no_tag() {
        let folder = folder(&format!(r#"{{"manifests":[{}]}}"#, entry(b"{}", "v1")));
        std::fs::write(folder.path().join("blobs/sha256").join(Digest::of(b"{}").hex()), b"{}").unwrap();
        let latest = Which::Tag("latest".into());
        let lenient = Layout::open(folder.path(), Untagged::TheOnlyOne).unwrap();
        assert_eq!(lenient.manifest(&latest).await.unwrap().digest, Digest::of(b"{}"));
        let strict = Layout::open(folder.path(), Untagged::Missing).unwrap();
        let error = strict.manifest(&latest).await.unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("it has v1"), "{error}");
    }

    #[tokio::test]
    async fn a_manifest_that_is_not_what_its_digest_names_is_refused() {
        let folder = folder(&format!(r#"{{"manifests":[{}]}}"#, entry(b"{}", "v1")));
        std::fs::write(folder.path().join("blobs/sha256").join(Digest::of(b"{}").hex()), b"[]").unwrap();
        let layout = Layout::open(folder.path(), Untagged::Missing).unwrap();
        assert_eq!(layout.manifest(&Which::Tag("v1".into())).await.unwrap_err().kind(), Kind::Integrity);
    }

    #[tokio::test]
    async fn a_blob_of_another_size_than_the_manifest_says_is_refused() {
        let folder = folder("{}");
        let blob = Blob { digest: Digest::of(b"abc"), size: 4 };
        std::fs::write(folder.path().join("blobs/sha256").join(blob.digest.hex()), b"abc").unwrap();
        let layout = Layout::open(folder.path(), Untagged::Missing).unwrap();
        let error = layout.read(&blob, StoredRange::new(0, 3)).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Integrity);
    }

    #[test]
    fn a_folder_that_is_no_layout_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Layout::open(folder.path(), Untagged::Missing).unwrap_err();
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("no image layout at"), "{error}");
    }

    #[test]
    fn the_tag_that_stands_for_two_manifests_is_refused() {
        let folder = folder(&format!(r#"{{"manifests":[{},{}]}}"#, entry(b"1", "v"), entry(b"2", "v")));
        let layout = Layout::open(folder.path(), Untagged::TheOnlyOne).unwrap();
        assert_eq!(layout.resolve(&Which::Tag("v".into())).unwrap_err().kind(), Kind::Invalid);
    }
}
