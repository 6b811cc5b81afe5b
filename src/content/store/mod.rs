//! What is kept on disk, shared by the processes of one user.
//!
//! ```text
//! STORE/layers/ALGORITHM/HEX/OFFSET-LEN.{data,digests,kept}   one file's content (see [`kept`])
//! STORE/layers/ALGORITHM/HEX/gaps                             archive headers (see [`gaps`])
//! STORE/layers/ALGORITHM/HEX/proved                           the layer's digest was proved over its bytes
//! STORE/layers/ALGORITHM/HEX/poisoned                         it was disproved; when, is the file's time
//! STORE/layers/ALGORITHM/HEX/origins                          who has shown to have the layer (see [`Store::origin`])
//! STORE/small/ALGORITHM/HEX                                   manifests and configs
//! STORE/admitted/KEY                                          who was given which manifest (see [`Store::admit`])
//! ```
//!
//! All of it may be lost, torn, full, read-only or foreign at any time: that costs speed, never correctness.
//! The table of chunks is a plain file beside each image and not a database: the reason is in
//! `docs/decisions/0004-store-form.md`.

pub mod budget;
pub mod gaps;
pub mod kept;
mod private;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use budget::Budget;
use kept::KeptFile;

use crate::error::{Error, Kind, Result};
use crate::index::Layer;
use crate::oci::{Digest, Reference};
use crate::range::{ContentRange, StoredRange};
use crate::repository::{MANIFEST_LIMIT, Pinned};

/// How long an admission counts while the registry cannot be asked: seven days.
pub const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Room for the headers of a very large archive: index/plain stops reading them at 64 MiB.
const GAPS_LIMIT: u64 = 80 << 20;

/// Where the store is and how much it may hold.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The folder; made where missing.
    pub folder: PathBuf,
    /// Bytes of images; `None`: 90 % of what is the store's or free on its file system.
    pub size: Option<u64>,
}

/// What is kept on disk. Cheap to open however much it holds.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    budget: Budget,
}

#[derive(Serialize, Deserialize)]
struct Admission {
    reference: String,
    digest: Digest,
    media_type: String,
}

impl Store {
    /// The store at `config.folder`, which is made, private to this user (0700), where it is missing.
    ///
    /// A folder that cannot be made (a read-only or full disk) is a warning: the store keeps nothing then.
    ///
    /// # Errors
    /// `Denied` where the folder is a link, another user's, or can be written by others.
    pub fn open(config: &StoreConfig) -> Result<Arc<Self>> {
        let folder = config.folder.clone();
        if let Err(error) = private::make_dir(&folder) {
            if error.kind() == io::ErrorKind::PermissionDenied {
                let doing = format!("cannot make the store {}", folder.display());
                return Err(
                    Error::from_source(Kind::Denied, doing, error).hint("choose another folder with --store")
                );
            }
            tracing::warn!(store = %folder.display(), %error, "nothing can be kept");
        }
        private::check_dir(&folder)?;
        let layers = folder.join("layers");
        let limit = config.size.unwrap_or_else(|| default_limit(&folder));
        Ok(Arc::new(Self { budget: Budget::new(layers, limit), folder }))
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The budget of the images.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Opens the files of one extent, locked against eviction while they are open, and makes what is missing.
    ///
    /// # Errors
    /// Whatever the file system says; the caller goes on without keeping.
    pub fn file(&self, layer: &Digest, extent: ContentRange) -> io::Result<KeptFile> {
        private::make_dir(&self.layer(layer))?;
        let file = KeptFile::open(&self.stem(layer, extent), extent.len())?;
        Ok(file)
    }

    /// How many bytes of an extent are said to be here. Takes no lock and makes nothing.
    #[must_use]
    pub fn kept_bytes(&self, layer: &Digest, extent: ContentRange) -> u64 {
        kept::kept_bytes(&self.stem(layer, extent), extent.len())
    }

    /// Whether the layer's digest was proved over its bytes here before, so that its recorded chunk digests are
    /// as good as the manifest's.
    #[must_use]
    pub fn proved(&self, layer: &Digest) -> bool {
        let marker = private::read_small(&self.layer(layer).join("proved"), 256);
        marker.is_ok_and(|text| text == layer.to_string().as_bytes())
    }

    /// Records that the layer's digest was proved.
    pub fn set_proved(&self, layer: &Digest) {
        let folder = self.layer(layer);
        let _ = std::fs::remove_file(folder.join("poisoned"));
        self.note(
            private::write_small(&folder.join("proved"), layer.to_string().as_bytes()),
            "record a proof",
        );
    }

    /// Whether somebody found the layer's bytes to be wrong at or after `since`.
    #[must_use]
    pub fn poisoned_since(&self, layer: &Digest, since: SystemTime) -> bool {
        let marker = std::fs::symlink_metadata(self.layer(layer).join("poisoned"));
        marker.and_then(|meta| meta.modified()).is_ok_and(|when| when >= since)
    }

    /// Removes everything kept of the layer, in use or not, and leaves word of it for other processes.
    pub fn poison(&self, layer: &Digest) {
        let folder = self.layer(layer);
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        self.note(private::write_small(&folder.join("poisoned"), b""), "record a poisoned layer");
    }

    /// Whether `identity` (a place and the credentials used there) brought bytes of the layer here, or has shown
    /// that it can have them.
    #[must_use]
    pub fn origin(&self, layer: &Digest, identity: &str) -> bool {
        self.origins(layer).lines().any(|origin| origin == identity)
    }

    /// Records that `identity` can have the layer's bytes.
    pub fn add_origin(&self, layer: &Digest, identity: &str) {
        let origins = self.origins(layer) + identity + "\n";
        let path = self.layer(layer).join("origins");
        self.note(private::write_small(&path, origins.as_bytes()), "record who may see a layer");
    }

    fn origins(&self, layer: &Digest) -> String {
        let file = private::read_small(&self.layer(layer).join("origins"), 1 << 20);
        file.ok().and_then(|file| String::from_utf8(file).ok()).unwrap_or_default()
    }

    /// The gaps of a layer that were kept before; empty where none are.
    #[must_use]
    pub fn gaps(&self, layer: &Digest) -> Vec<(StoredRange, Bytes)> {
        let file = private::read_small(&self.layer(layer).join("gaps"), GAPS_LIMIT);
        file.map(|file| gaps::decode(&file.into())).unwrap_or_default()
    }

    /// Keeps the gaps of a layer, unless they are kept already.
    pub fn keep_gaps(&self, layer: &Layer) {
        let path = self.layer(&layer.blob.digest).join("gaps");
        if layer.gaps.iter().any(|gap| gap.bytes.is_some()) && self.gaps(&layer.blob.digest).is_empty() {
            self.note(private::write_small(&path, &gaps::encode(&layer.gaps)), "keep archive headers");
        }
    }

    /// Keeps a small blob (a manifest, a config) under its digest.
    pub fn keep_small(&self, digest: &Digest, bytes: &Bytes) {
        let path = self.small_path(digest);
        if !path.exists() {
            self.note(private::write_small(&path, bytes), "keep a manifest or config");
        }
    }

    /// A small blob kept before, verified against its digest; `None` where it is absent or damaged.
    #[must_use]
    pub fn small(&self, digest: &Digest) -> Option<Bytes> {
        let path = self.small_path(digest);
        let bytes = private::read_small(&path, MANIFEST_LIMIT).ok()?;
        if digest.matches(&bytes) {
            return Some(bytes.into());
        }
        let _ = std::fs::remove_file(path);
        None
    }

    /// Remembers that `identity` (a place and the credentials used there) was just given this manifest for
    /// this reference, so that it may have it again while nobody answers there.
    pub fn admit(&self, identity: &str, reference: &Reference, pinned: &Pinned) {
        self.keep_small(&pinned.digest, &pinned.bytes);
        let admission = Admission {
            reference: reference.to_string(),
            digest: pinned.digest.clone(),
            media_type: pinned.media_type.clone(),
        };
        let json = serde_json::to_vec(&admission).unwrap_or_default();
        self.note(private::write_small(&self.admission(identity, reference), &json), "record an admission");
    }

    /// What `identity` was given for this reference at most [`GRACE`] ago; for when nobody answers.
    #[must_use]
    pub fn recall(&self, identity: &str, reference: &Reference) -> Option<Pinned> {
        let path = self.admission(identity, reference);
        let when = std::fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok()?;
        if when.elapsed().is_ok_and(|age| age > GRACE) {
            return None;
        }
        let admission: Admission = serde_json::from_slice(&private::read_small(&path, 1 << 16).ok()?).ok()?;
        if admission.reference != reference.to_string() {
            return None;
        }
        let bytes = self.small(&admission.digest)?;
        Some(Pinned { digest: admission.digest, media_type: admission.media_type, bytes })
    }

    fn layer(&self, digest: &Digest) -> PathBuf {
        self.folder.join("layers").join(digest.algorithm().name()).join(digest.hex())
    }

    fn stem(&self, layer: &Digest, extent: ContentRange) -> PathBuf {
        self.layer(layer).join(format!("{}-{}", extent.start(), extent.len()))
    }

    fn small_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("small").join(digest.algorithm().name()).join(digest.hex())
    }

    fn admission(&self, identity: &str, reference: &Reference) -> PathBuf {
        let key = blake3::hash(format!("{identity}\n{reference}").as_bytes());
        self.folder.join("admitted").join(key.to_hex().as_str())
    }

    fn note(&self, outcome: io::Result<()>, doing: &str) {
        if let Err(error) = outcome {
            tracing::warn!(store = %self.folder.display(), %error, "cannot {doing}; going on without");
        }
    }
}

/// 90 % of what is free or already the store's. The walk is a second's work at worst, and only at a mount.
fn default_limit(folder: &Path) -> u64 {
    let free = nix::sys::statvfs::statvfs(folder)
        .map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
        .unwrap_or(0);
    free.saturating_add(budget::used(&folder.join("layers"))) / 10 * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        let store = Store::open(&StoreConfig { folder, size: Some(1 << 30) }).unwrap();
        (dir, store)
    }

    fn reference(tag: &str) -> Reference {
        let place = crate::oci::Place::Registry { host: "host:1".into(), repository: "a/b".into() };
        Reference { place, tag: Some(tag.into()), digest: None }
    }

    #[test]
    fn only_who_was_admitted_is_given_a_manifest_offline() {
        let (_dir, store) = store();
        let bytes = Bytes::from_static(b"{}");
        let pinned = Pinned { digest: Digest::of(&bytes), media_type: "m".into(), bytes };
        store.admit("host:1/a/b as alice", &reference("v1"), &pinned);
        let found = store.recall("host:1/a/b as alice", &reference("v1")).unwrap();
        assert_eq!((found.digest, found.media_type), (pinned.digest.clone(), "m".to_owned()));
        assert!(store.recall("host:1/a/b as bob", &reference("v1")).is_none());
        assert!(store.recall("host:1/a/b as alice", &reference("v2")).is_none());
        std::fs::write(store.small_path(&pinned.digest), b"{ }").unwrap();
        assert!(
            store.recall("host:1/a/b as alice", &reference("v1")).is_none(),
            "a damaged manifest is none"
        );
    }

    #[test]
    fn poisoning_removes_what_is_kept_and_is_seen_by_who_was_there() {
        let (_dir, store) = store();
        let layer = Digest::of(b"layer");
        let start = SystemTime::now() - Duration::from_secs(1);
        let kept = store.file(&layer, ContentRange::new(0, 100)).unwrap();
        store.set_proved(&layer);
        assert!(store.proved(&layer) && !store.poisoned_since(&layer, start));
        store.poison(&layer);
        assert!(!store.proved(&layer) && kept.removed());
        assert!(store.poisoned_since(&layer, start));
        assert!(!store.poisoned_since(&layer, SystemTime::now() + Duration::from_secs(60)));
    }

    #[test]
    fn a_store_is_private() {
        use std::os::unix::fs::MetadataExt;
        let (_dir, store) = store();
        let _kept = store.file(&Digest::of(b"layer"), ContentRange::new(0, 100)).unwrap();
        let mut dirs = vec![store.folder().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let (path, mode) = entry.map(|e| (e.path(), e.metadata().unwrap().mode())).unwrap();
                assert_eq!(mode & 0o077, 0, "{}", path.display());
                dirs.extend(path.is_dir().then_some(path));
            }
        }
    }
}
