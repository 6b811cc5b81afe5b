//! What the plane knows over its own end: which mounts it has processes for, and which volumes show them.
//!
//! A folder below the state folder, private as that is, with a file for each mount and for each volume. It lives as long as
//! what it tells of, until the machine starts anew; files are put in place whole. Used by the plane alone.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::state::{id, private};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::repository::Secret;

/// Settings by the names that the configuration file has for them, as text, that count before those of the plane itself.
pub type Overrides = BTreeMap<String, String>;

/// A mount that the plane has a process for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Spec {
    /// Its name: the same for the same artifact, asked for by the same identity with the same credentials and settings.
    pub(super) id: String,
    /// The reference, with the manifest's digest.
    pub(super) reference: String,
    /// The manifest's digest.
    pub(super) digest: String,
    /// What is set for it alone.
    pub(super) settings: Overrides,
}

/// Who asked for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A container orchestrator: the folder is the plane's, made and removed by it.
    Csi,
    /// Who typed `weightfs mount`: the folder stays.
    Command,
    /// containerd, of which it is a snapshot: the folder is the snapshot's.
    Snapshot,
}

/// A mount shown at a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What who asked for it calls it.
    pub id: String,
    /// The folder as it was asked for.
    pub asked: PathBuf,
    /// The folder as the mount table names it.
    pub target: PathBuf,
    /// The mount's name.
    pub mount: String,
    /// The reference as it was asked for.
    pub reference: String,
    /// What was set for it.
    pub settings: Overrides,
    /// Who asked.
    pub origin: Origin,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Book {
    folder: PathBuf,
    /// What names of mounts are made with.
    key: [u8; 32],
    /// Held as long as the plane is: there is one for a state folder.
    _lock: File,
}

impl Book {
    /// Opens the folder `node` below `live`, made where missing.
    ///
    /// # Errors
    /// `Busy` where another plane has it; `Storage`, and `Denied` where another user may write to it.
    pub(super) fn open(live: &Path) -> Result<Self> {
        let folder = folder(live);
        for part in ["hosts", "mounts", "volumes", "secrets"] {
            private(&folder.join(part))?;
        }
        private(&folder)?;
        let path = folder.join("lock");
        let doing = || format!("cannot lock {}", path.display());
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).storage(doing)?;
        match lock.try_lock() {
            Ok(()) => {
                let key = key(&folder.join("key"))?;
                Ok(Self { folder, key, _lock: lock })
            }
            Err(std::fs::TryLockError::WouldBlock) => {
                let error =
                    Error::new(Kind::Busy, format!("another 'weightfs serve' has {}", live.display()));
                Err(error.hint("end it first, or name another state folder with --state"))
            }
            Err(std::fs::TryLockError::Error(error)) => Err(error).storage(doing),
        }
    }

    /// A secret of this folder: what is hashed with it can't be guessed by who sees the hash.
    pub(super) fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// Where a mount's process mounts.
    pub(super) fn host(&self, mount: &str) -> PathBuf {
        self.folder.join("hosts").join(mount)
    }

    /// Where the configuration is kept that counts, as it was read last.
    pub(super) fn configuration(live: &Path) -> PathBuf {
        folder(live).join("config.toml")
    }

    /// Keeps the configuration that counts from now on.
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn keep_configuration(&self, text: &str) -> Result<()> {
        put(&self.folder.join("config.toml"), text.as_bytes())
    }

    fn mount(&self, id: &str) -> PathBuf {
        self.folder.join("mounts").join(format!("{id}.json"))
    }

    fn volume(&self, target: &Path) -> PathBuf {
        self.folder.join("volumes").join(format!("{}.json", id(target)))
    }

    fn secret(&self, mount: &str) -> PathBuf {
        self.folder.join("secrets").join(format!("{mount}.json"))
    }

    /// The file with the credentials that a mount was asked for with; `None`: those of the plane's own configuration count.
    pub(super) fn secret_of(&self, mount: &str) -> Option<PathBuf> {
        Some(self.secret(mount)).filter(|path| path.exists())
    }

    /// Notes a mount, and the credentials that it was asked for with. Those that are noted stay: others make another mount.
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn note_mount(&self, spec: &Spec, secret: Option<&Secret>) -> Result<()> {
        if let Some(secret) = secret.filter(|_| self.secret_of(&spec.id).is_none()) {
            put(&self.secret(&spec.id), secret.expose().as_bytes())?;
        }
        put_json(&self.mount(&spec.id), spec)
    }

    /// Forgets a mount and its credentials.
    pub(super) fn forget_mount(&self, id: &str) {
        for path in [self.mount(id), self.secret(id)] {
            remove(&path);
        }
    }

    /// Notes a volume.
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn note_volume(&self, volume: &Volume) -> Result<()> {
        put_json(&self.volume(&volume.target), volume)
    }

    /// Forgets a volume.
    pub(super) fn forget_volume(&self, volume: &Volume) {
        remove(&self.volume(&volume.target));
    }

    /// All mounts noted.
    ///
    /// # Errors
    /// `Storage` where the folder can't be read; what is in it and can't be read is passed over.
    pub(super) fn mounts(&self) -> Result<Vec<Spec>> {
        all(&self.folder.join("mounts"))
    }

    /// All volumes noted.
    ///
    /// # Errors
    /// As [`mounts`](Self::mounts).
    pub(super) fn volumes(&self) -> Result<Vec<Volume>> {
        all(&self.folder.join("volumes"))
    }
}

fn folder(live: &Path) -> PathBuf {
    live.join("node")
}

/// The key that is kept at `path`, made by chance where there is none.
fn key(path: &Path) -> Result<[u8; 32]> {
    let doing = || format!("cannot make {}", path.display());
    if let Some(kept) = std::fs::read(path).ok().and_then(|bytes| bytes.try_into().ok()) {
        return Ok(kept);
    }
    let mut key = [0; 32];
    File::open("/dev/urandom").and_then(|mut chance| chance.read_exact(&mut key)).storage(doing)?;
    put(path, &key)?;
    Ok(key)
}

fn all<T: DeserializeOwned>(folder: &Path) -> Result<Vec<T>> {
    let doing = || format!("cannot look into {}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).storage(doing)? {
        let path = entry.storage(doing)?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let read = std::fs::read(&path).map_err(|error| error.to_string());
        match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())) {
            Ok(one) => found.push(one),
            Err(error) => tracing::warn!(error, "{} is passed over", path.display()),
        }
    }
    Ok(found)
}

fn put_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec(value).map_err(std::io::Error::from);
    put(path, &bytes.storage(|| format!("cannot write {}", path.display()))?)
}

/// Puts a file in place as a whole, for its owner alone.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    // Two may write the same file at once, each whole.
    static DRAFTS: AtomicU64 = AtomicU64::new(0);
    let draft = path.with_extension(format!("{}.new", DRAFTS.fetch_add(1, Ordering::Relaxed)));
    let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600).custom_flags(no_link);
    let mut file = options.open(&draft).storage(doing)?;
    file.write_all(bytes).storage(doing)?;
    std::fs::rename(&draft, path).storage(doing)
}

fn remove(path: &Path) {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "{} stays", path.display());
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn volume(target: &str) -> Volume {
        Volume {
            id: "pvc-1".into(),
            asked: target.into(),
            target: target.into(),
            mount: "m".into(),
            reference: "r.io/a/b:v1".into(),
            settings: Overrides::new(),
            origin: Origin::Csi,
        }
    }

    fn spec(id: &str) -> Spec {
        Spec { id: id.into(), reference: "r".into(), digest: "d".into(), settings: Overrides::new() }
    }

    #[test]
    fn mounts_and_volumes_are_found_again_until_they_are_forgotten() {
        let live = tempfile::tempdir().unwrap();
        let book = Book::open(live.path()).unwrap();
        book.note_mount(&spec("m"), None).unwrap();
        for target in ["/a", "/b"] {
            book.note_volume(&volume(target)).unwrap();
        }
        book.forget_volume(&volume("/a"));
        drop(book);
        let book = Book::open(live.path()).unwrap();
        assert_eq!((book.mounts().unwrap(), book.volumes().unwrap()), (vec![spec("m")], vec![volume("/b")]));
        book.forget_mount("m");
        assert!(book.mounts().unwrap().is_empty());
    }

    #[test]
    fn credentials_are_kept_for_their_owner_alone_and_go_with_the_mount() {
        let live = tempfile::tempdir().unwrap();
        let book = Book::open(live.path()).unwrap();
        assert_eq!(book.secret_of("m"), None);
        book.note_mount(&spec("m"), Some(&Secret::new("{}".to_owned()))).unwrap();
        let path = book.secret_of("m").unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        for other in [None, Some(&Secret::new("{\"auths\":{}}".to_owned()))] {
            book.note_mount(&spec("m"), other).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), b"{}", "what is noted stays");
        }
        book.forget_mount("m");
        assert!(!path.exists());
    }

    #[test]
    fn names_of_mounts_are_made_with_the_same_key_as_long_as_the_folder_is_there() {
        let (live, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = |folder: &Path| *Book::open(folder).unwrap().key();
        assert_eq!(key(live.path()), key(live.path()));
        assert_ne!(key(live.path()), key(other.path()));
    }

    #[test]
    fn there_is_one_plane_for_a_state_folder() {
        let live = tempfile::tempdir().unwrap();
        let _first = Book::open(live.path()).unwrap();
        assert_eq!(Book::open(live.path()).unwrap_err().kind(), Kind::Busy);
    }

    #[test]
    fn what_cannot_be_read_is_passed_over() {
        let live = tempfile::tempdir().unwrap();
        let book = Book::open(live.path()).unwrap();
        book.note_mount(&spec("m"), None).unwrap();
        std::fs::write(live.path().join("node/mounts/x.json"), "{").unwrap();
        std::fs::write(live.path().join("node/mounts/y.new"), "{").unwrap();
        assert_eq!(book.mounts().unwrap(), [spec("m")]);
    }
}
