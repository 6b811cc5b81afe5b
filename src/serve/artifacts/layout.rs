//! The store's folder: an OCI image layout in which manifests are files, and all other blobs links into the mounts that show them.
//!
//! `index.json` says what is registered, and nothing else does: it outlives the machine's next start, where the state folder does
//! not. Whoever reads the folder reads it without asking anybody, so everything is put in place whole, and blobs before the
//! index that leads to them. Only disk here; [`Artifacts`](super::Artifacts) decides.
//!
//! ```text
//! DIR/artifacts/oci-layout  index.json  index.lock
//! DIR/artifacts/blobs/sha256/HEX   a manifest, or a link to ../../mounts/NAME/sha256/HEX
//! DIR/artifacts/mounts/NAME        a volume of the plane for each artifact
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::word::Doubt;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::oci::Digest;
use crate::oci::blobs::path_of;
use crate::oci::manifest::{Descriptor, Document, OCI_INDEX};
use crate::repository::MANIFEST_LIMIT;
use crate::repository::layout::TAG;
use crate::serve::Overrides;
use crate::serve::put::settle;

/// The annotation of a manifest in `index.json` that has its settings, as a JSON object.
const SETTINGS: &str = "dev.weightfs.settings";

/// The annotation that has what stands for chunks, by blob, as a JSON object.
const CHUNKS: &str = "dev.weightfs.chunks";

/// What `oci-layout` says (image specification, image-layout.md).
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An artifact under its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    /// What containers ask for: `HOST/REPOSITORY:TAG`, or with `@DIGEST` where there is no tag.
    pub(super) name: String,
    /// The manifest's digest.
    pub(super) digest: Digest,
    /// The manifest's media type.
    pub(super) media_type: String,
    /// The manifest's size in bytes.
    pub(super) size: u64,
    /// What is set for it.
    pub(super) settings: Overrides,
    /// Of each blob whose chunks its own index names, what stands for the blob and these chunks.
    pub(super) chunks: BTreeMap<Digest, Digest>,
}

/// The folder, which one plane at a time has.
#[derive(Debug)]
pub(super) struct Layout {
    folder: PathBuf,
    _lock: File,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ImageIndex {
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    /// Tools of others write an empty list as `null`.
    manifests: Option<Vec<Manifest>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

impl Layout {
    /// Opens the folder `artifacts` below `dir`, made where it is missing.
    ///
    /// # Errors
    /// `Busy` where another plane has it; `Invalid` where it is somebody else's layout, with artifacts in it; `Storage`, also where
    /// another user may write to it.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let folder = dir.join("artifacts");
        own(&folder)?;
        let folder = folder.canonicalize().storage(|| format!("cannot use {}", folder.display()))?;
        let lock = lock(&folder)?;
        let layout = Self { folder, _lock: lock };
        if !layout.mounts().exists() && !layout.index()?.is_empty() {
            let doing = format!("{} has artifacts of somebody else's", layout.folder.display());
            return Err(Error::new(Kind::Invalid, doing).hint("name an empty folder with --artifact-store"));
        }
        own(&layout.mounts())?;
        own(&layout.folder.join("blobs/sha256"))?;
        layout.put(Path::new("oci-layout"), MARKER)?;
        // Who reads the store locks this file, and may have no leave to make it.
        let path = layout.folder.join("index.lock");
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o644).open(&path).storage(|| cannot_write(&path))?;
        Ok(layout)
    }

    /// Where the volumes of artifacts are.
    pub(super) fn mounts(&self) -> PathBuf {
        self.folder.join("mounts")
    }

    /// The folder that shows the blobs of an artifact.
    pub(super) fn mount_of(&self, named: &Named) -> PathBuf {
        self.mounts().join(mount_name(named))
    }

    /// What is registered.
    ///
    /// # Errors
    /// `Storage` and `Invalid` where `index.json` can't be read; no such file is an empty one.
    pub(super) fn named(&self) -> Result<Vec<Named>> {
        let named = self.index()?.into_iter().filter_map(|manifest| {
            let name = manifest.annotations.get(TAG)?.clone();
            let settings = serde_json::from_str(manifest.annotations.get(SETTINGS)?).ok()?;
            let chunks = manifest
                .annotations
                .get(CHUNKS)
                .map_or(Ok(BTreeMap::new()), |text| serde_json::from_str(text));
            let (chunks, Manifest { media_type, digest, size, .. }) = (chunks.ok()?, manifest);
            Some(Named { name, digest, media_type, size, settings, chunks })
        });
        Ok(named.collect())
    }

    /// Whether the manifest is here as it must be.
    pub(super) fn has_manifest(&self, named: &Named) -> bool {
        self.manifest(named).is_ok()
    }

    /// Keeps a manifest, which stays as long as it is [registered](Self::arrange).
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn keep_manifest(&self, digest: &Digest, bytes: &[u8]) -> Result<()> {
        let path = Path::new("blobs").join(path_of(digest));
        own(&self.folder.join("blobs").join(digest.algorithm().name()))?;
        self.put(&path, bytes)
    }

    /// Makes the folder say that these artifacts are registered, and no others: their blobs, then `index.json`, and then what is
    /// left of others goes. Once more repairs what is missing.
    ///
    /// # Errors
    /// `Storage`; what was registered before still is, or these are.
    pub(super) fn arrange(&self, all: &[Named]) -> Result<()> {
        let blobs = self.blobs(all);
        let links: Vec<_> =
            blobs.iter().filter_map(|(path, target)| Some((path, target.as_ref()?))).collect();
        for (path, target) in &links {
            self.link(path, target)?;
        }
        // One of each folder stands for all that was put there: what the index leads to is on the disk before it.
        let folders: BTreeMap<_, _> =
            links.iter().map(|(path, _)| (path.parent(), self.folder.join(path))).collect();
        folders.values().try_for_each(|path| settle(path).storage(|| cannot_write(path)))?;
        self.put(Path::new("index.json"), &index_of(all)?)?;
        self.sweep(&blobs)
    }

    /// What `new`, whose manifest this is, has in common with one of `all` by another word. Looks at no mount.
    ///
    /// # Errors
    /// Those of reading the manifest.
    pub(super) fn doubts(&self, all: &[Named], new: &Named, manifest: &[u8]) -> Result<Vec<Doubt>> {
        let own = blobs_of(new, manifest)?;
        let lazy = |other: &&Named| other.name != new.name && !other.is_strict() && !new.is_strict();
        let mut doubts = Vec::new();
        for other in all.iter().filter(lazy) {
            // One whose manifest is not here is had anew, and compared then.
            let theirs = by_digest(self.manifest(other).unwrap_or_default());
            for ours in own.iter().filter(|blob| !new.has_word_of(other, &blob.digest)) {
                let Some(theirs) = theirs.get(&ours.digest) else { continue };
                let shown_at = [other, new].map(|named| self.mount_of(named).join(path_of(&ours.digest)));
                let (other, blob) = (other.name.clone(), ours.digest.clone());
                doubts.push(Doubt { other, blob, shown_at, limit: Doubt::limit_of([ours, theirs]) });
            }
        }
        Ok(doubts)
    }

    fn index(&self) -> Result<Vec<Manifest>> {
        let path = self.folder.join("index.json");
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            read => read.storage(|| format!("cannot read {}", path.display()))?,
        };
        let index: ImageIndex = serde_json::from_slice(&bytes).map_err(|error| {
            Error::from_source(Kind::Invalid, format!("{} can't be read", path.display()), error)
                .hint("take it away; what was registered has to be added anew then")
        })?;
        Ok(index.manifests.unwrap_or_default())
    }

    /// Every blob by its path below the folder: a manifest with nothing, another with what it is a link to.
    fn blobs(&self, all: &[Named]) -> BTreeMap<PathBuf, Option<PathBuf>> {
        let place = |digest: &Digest| Path::new("blobs").join(path_of(digest));
        let mut blobs: BTreeMap<_, _> = all.iter().map(|named| (place(&named.digest), None)).collect();
        let mut ranks = HashMap::new();
        for named in all {
            let held = match self.manifest(named) {
                Ok(held) => held,
                // Its mount is had anew, and its manifest with it.
                Err(error) => {
                    tracing::warn!("{error}");
                    continue;
                }
            };
            for digest in held.into_iter().map(|blob| blob.digest) {
                let target = Path::new("../../mounts").join(mount_name(named)).join(path_of(&digest));
                let rank = named.rank(&digest);
                let is_first = ranks.get(&digest).is_none_or(|other| rank < *other);
                // A manifest that is registered is a file.
                if is_first && blobs.get(&place(&digest)).is_none_or(Option::is_some) {
                    blobs.insert(place(&digest), Some(target));
                    ranks.insert(digest, rank);
                }
            }
        }
        blobs
    }

    /// An artifact's config and layers.
    fn manifest(&self, named: &Named) -> Result<Vec<Descriptor>> {
        let path = self.folder.join("blobs").join(path_of(&named.digest));
        let doing = || format!("the manifest of {} is not at {}", named.name, path.display());
        let size = std::fs::symlink_metadata(&path).storage(doing)?.len();
        let bytes = if size > MANIFEST_LIMIT { Vec::new() } else { std::fs::read(&path).storage(doing)? };
        if !named.digest.matches(&bytes) {
            return Err(Error::new(Kind::Integrity, doing()));
        }
        blobs_of(named, &bytes)
    }

    /// Puts a link in place, in one step where another has it.
    fn link(&self, path: &Path, target: &Path) -> Result<()> {
        let path = self.folder.join(path);
        if std::fs::read_link(&path).is_ok_and(|found| found == target) {
            return Ok(());
        }
        let doing = || format!("cannot make the link {}", path.display());
        if let Some(folder) = path.parent() {
            own(folder)?;
        }
        let draft = path.with_extension("new");
        remove(&draft)?;
        std::os::unix::fs::symlink(target, &draft).storage(doing)?;
        std::fs::rename(&draft, &path).storage(doing)
    }

    /// Puts a file in place as a whole, so that it is there after a power cut too.
    fn put(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let path = self.folder.join(path);
        let is_there = std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_file());
        if is_there && std::fs::read(&path).is_ok_and(|found| found == bytes) {
            return Ok(());
        }
        let doing = || cannot_write(&path);
        let draft = path.with_extension("new");
        remove(&draft)?;
        let mut options = OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(0o644).open(&draft).storage(doing)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).storage(doing)?;
        std::fs::rename(&draft, &path).and_then(|()| settle(&path)).storage(doing)
    }

    /// Takes away all blobs that are not among `wanted`.
    fn sweep(&self, wanted: &BTreeMap<PathBuf, Option<PathBuf>>) -> Result<()> {
        let algorithms = list(&self.folder.join("blobs"))?;
        for algorithm in algorithms.iter().filter(|path| path.is_dir()) {
            for path in list(algorithm)? {
                let is_wanted = path.strip_prefix(&self.folder).is_ok_and(|path| wanted.contains_key(path));
                if !is_wanted {
                    remove(&path)?;
                }
            }
        }
        Ok(())
    }
}

/// An artifact's config and layers, by its manifest.
fn blobs_of(named: &Named, manifest: &[u8]) -> Result<Vec<Descriptor>> {
    let Document::Manifest(manifest) = Document::parse(manifest, &named.media_type)? else {
        let doing = format!("{} of {} is no manifest of one artifact", named.digest, named.name);
        return Err(Error::new(Kind::Unsupported, doing));
    };
    Ok(manifest.config.into_iter().chain(manifest.layers).collect())
}

fn by_digest(blobs: Vec<Descriptor>) -> HashMap<Digest, Descriptor> {
    blobs.into_iter().map(|blob| (blob.digest.clone(), blob)).collect()
}

/// The name of an artifact's volume: another one for each name and digest.
fn mount_name(named: &Named) -> String {
    let text = format!("{}\n{}", named.name, named.digest);
    Digest::of(text.as_bytes()).hex().chars().take(16).collect()
}

fn index_of(all: &[Named]) -> Result<Vec<u8>> {
    let manifest = |named: &Named| -> serde_json::Result<Manifest> {
        let settings = serde_json::to_string(&named.settings)?;
        let mut annotations =
            BTreeMap::from([(TAG.to_owned(), named.name.clone()), (SETTINGS.to_owned(), settings)]);
        if !named.chunks.is_empty() {
            annotations.insert(CHUNKS.to_owned(), serde_json::to_string(&named.chunks)?);
        }
        let Named { media_type, digest, size, .. } = named.clone();
        Ok(Manifest { media_type, digest, size, annotations })
    };
    let manifests = all.iter().map(manifest).collect::<serde_json::Result<Vec<_>>>();
    let written = manifests.and_then(|manifests| {
        let (media_type, manifests) = (OCI_INDEX.to_owned(), Some(manifests));
        serde_json::to_vec(&ImageIndex { schema_version: 2, media_type, manifests })
    });
    written.map_err(|error| Error::from_source(Kind::Storage, "cannot write index.json", error))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("weightfs.lock");
    let doing = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).storage(doing)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let doing = format!("another 'weightfs serve' has the artifact store {}", folder.display());
            Err(Error::new(Kind::Busy, doing).hint("end it first, or name another folder"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).storage(doing),
    }
}

/// Makes the folder where it is missing, and refuses one that another user may change.
fn own(folder: &Path) -> Result<()> {
    let doing = || format!("cannot use the folder {}", folder.display());
    DirBuilder::new().recursive(true).mode(0o700).create(folder).storage(doing)?;
    let found = std::fs::symlink_metadata(folder).storage(doing)?;
    let is_ours = found.uid() == nix::unistd::geteuid().as_raw() && found.mode() & 0o022 == 0;
    if found.is_dir() && is_ours {
        return Ok(());
    }
    let why = "it is a link, or others may write to it";
    Err(Error::new(Kind::Storage, format!("{}: {why}", doing())).hint("name one that is this user's own"))
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let doing = || format!("cannot look into {}", folder.display());
    let entries = std::fs::read_dir(folder).storage(doing)?;
    entries.map(|entry| entry.map(|entry| entry.path()).storage(doing)).collect()
}

/// Takes a file or link away; none there is as well.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).storage(|| format!("cannot take {} away", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
