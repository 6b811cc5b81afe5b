//! What the plane knows over its own end: which mounts it has processes for, and which volumes show them.
//!
//! A folder below the state folder, private as that is, with a file for each mount and for each volume. It lives as long as
//! what it tells of, until the machine starts anew; files are put in place whole. Used by the plane alone.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::num::NonZeroUsize;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use lru::LruCache;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::dynamic::Folders;
use super::put::{Readers, clear_drafts, names_in, put, put_json, remove};
use super::report::{Phase, Report};
use super::state::{id, private};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::mount::Detach;
use crate::mount::bind;
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
    /// The dynamic volume that it is; `None` for a mount of one model. Such a volume has neither reference nor digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<String>,
}

/// Who asked for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A container orchestrator: the folder is the plane's, made and removed by it.
    Csi,
    /// Who typed `weightfs mount`: the folder stays.
    Command,
    /// The node's store of artifacts: the folder is the plane's, as the orchestrator's are.
    Artifact,
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
    /// The reference as it was asked for; empty for a dynamic volume, whose pod chooses its models.
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
    /// Where is written how volumes are.
    reports: PathBuf,
    /// The ids of volumes that could not be published, of whom only that is written.
    failed: Mutex<LruCache<String, ()>>,
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
        for part in PARTS {
            private(&folder.join(part))?;
        }
        private(&folder)?;
        let path = folder.join("lock");
        let doing = || format!("cannot lock {}", path.display());
        let lock = OpenOptions::new().create(true).append(true).mode(0o600).open(&path).storage(doing)?;
        match lock.try_lock() {
            Ok(()) => {
                let key = key(&folder.join("key"))?;
                let reports = live.join("volumes");
                private(&reports)?;
                let failed = Mutex::new(LruCache::new(FAILED));
                Ok(Self { folder, reports, failed, key, _lock: lock })
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
    pub(super) fn host(&self, spec: &Spec) -> PathBuf {
        match spec.volume {
            None => self.folder.join("hosts").join(&spec.id),
            Some(_) => self.dynamic(&spec.id).models(),
        }
    }

    /// What a dynamic volume's process has.
    pub(super) fn dynamic(&self, mount: &str) -> Folders {
        Folders::at(&self.folder.join("dynamic").join(mount))
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
        put(&self.folder.join("config.toml"), text.as_bytes(), Readers::Owner)
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
            self.renew(&spec.id, secret)?;
        }
        put_json(&self.mount(&spec.id), spec)
    }

    /// Keeps other credentials for a mount, of the same identity: its process finds them when it needs some.
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn renew(&self, mount: &str, secret: &Secret) -> Result<()> {
        put(&self.secret(mount), secret.expose().as_bytes(), Readers::Owner)
    }

    /// Removes what somebody who died has left: drafts, credentials and folders of no mount, and what was written of no volume.
    ///
    /// # Errors
    /// `Storage` where the folder can't be read.
    pub(super) fn clear_leftovers(&self) -> Result<()> {
        for part in PARTS {
            clear_drafts(&self.folder.join(part));
        }
        clear_drafts(&self.folder);
        let mounts: HashSet<String> = self.mounts()?.into_iter().map(|spec| spec.id).collect();
        let volumes: HashSet<String> = self.volumes()?.into_iter().map(|volume| volume.id).collect();
        let of_nobody = |path: &Path, known: &HashSet<String>| {
            path.file_stem().and_then(|name| name.to_str()).is_none_or(|name| !known.contains(name))
        };
        for path in names_in(&self.folder.join("secrets")).iter().filter(|path| of_nobody(path, &mounts)) {
            remove(path);
        }
        for path in names_in(&self.folder.join("hosts")).iter().filter(|path| of_nobody(path, &mounts)) {
            bind::unbind(path, Detach::Lazy)?;
            remove_folder(path);
        }
        for path in names_in(&self.folder.join("dynamic")).iter().filter(|path| of_nobody(path, &mounts)) {
            Folders::at(path).clear();
        }
        for path in names_in(&self.reports).iter().filter(|path| of_nobody(path, &volumes)) {
            clear_report(path);
        }
        Ok(())
    }

    /// Where is written how a volume is, for who looks for it by its id; `None` for an id that is no name of a folder.
    pub(super) fn report(&self, volume: &str) -> Option<PathBuf> {
        is_plain(volume).then(|| self.reports.join(volume).join(REPORT))
    }

    /// Writes how a volume is, for who looks for it by its id; of one whose id is no name of a folder nothing. Gives the id of a volume
    /// of which nothing has to be written any more: the one that failed longest ago, where more than a thousand have.
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn write_report(&self, report: &Report) -> Result<Option<String>> {
        let Some(path) = self.report(&report.volume_name) else { return Ok(None) };
        path.parent().map_or(Ok(()), private)?;
        report.write(&path)?;
        let (id, mut failed) = (&report.volume_name, self.failed.lock());
        if !matches!(report.state, Some(Phase::PullFailed | Phase::PullTimeout)) {
            failed.pop(id);
            return Ok(None);
        }
        Ok(failed.push(id.clone(), ()).map(|(oldest, ())| oldest).filter(|oldest| oldest != id))
    }

    /// Removes what was written of a volume.
    pub(super) fn forget_report(&self, volume: &str) {
        if is_plain(volume) {
            self.failed.lock().pop(volume);
            clear_report(&self.reports.join(volume));
        }
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

/// Of how many volumes that could not be published that is told: nobody has to take those away.
const FAILED: NonZeroUsize = NonZeroUsize::new(1000).unwrap();

/// What a volume's report is called.
pub(super) const REPORT: &str = "status.json";

/// The folders below that of the book.
const PARTS: [&str; 5] = ["hosts", "mounts", "volumes", "secrets", "dynamic"];

/// Whether an id is plain letters and digits with `-` and `_`, as those are that orchestrators give.
pub(super) fn is_plain(id: &str) -> bool {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    !id.is_empty() && id.len() <= 128 && id.chars().all(plain)
}

fn clear_report(folder: &Path) {
    clear_drafts(folder);
    remove(&folder.join(REPORT));
    remove_folder(folder);
}

fn remove_folder(path: &Path) {
    if let Err(error) = std::fs::remove_dir(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(%error, "the folder {} stays", path.display());
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
    put(path, &key, Readers::Owner)?;
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
        let settings = Overrides::new();
        Spec { id: id.into(), reference: "r".into(), digest: "d".into(), settings, volume: None }
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
    fn what_somebody_who_died_has_left_is_cleared_away() {
        let live = tempfile::tempdir().unwrap();
        let book = Book::open(live.path()).unwrap();
        let secret = Secret::new("{}".to_owned());
        book.note_mount(&spec("m"), Some(&secret)).unwrap();
        book.note_volume(&volume("/a")).unwrap();
        book.renew("gone", &secret).unwrap();
        let node = live.path().join("node");
        let left = ["mounts/x.7.0.new", "secrets/m.7.1.new", "config.7.2.new"].map(|name| node.join(name));
        left.iter().for_each(|path| std::fs::write(path, "{").unwrap());
        std::fs::create_dir(node.join("hosts/gone")).unwrap();
        std::fs::create_dir(node.join("hosts/m")).unwrap();
        for id in ["pvc-1", "pvc-2"] {
            let report = book.report(id).unwrap();
            std::fs::create_dir(report.parent().unwrap()).unwrap();
            std::fs::write(report, "{}").unwrap();
        }
        book.clear_leftovers().unwrap();
        assert!(left.iter().all(|path| !path.exists()));
        assert!(book.secret_of("gone").is_none() && book.secret_of("m").is_some());
        assert!(!node.join("hosts/gone").exists() && node.join("hosts/m").exists());
        assert!(book.report("pvc-1").unwrap().exists() && !book.report("pvc-2").unwrap().exists());
        assert_eq!(book.report("../x"), None);
    }

    #[test]
    fn of_volumes_that_could_not_be_published_only_the_last_thousand_are_told_of() {
        let live = tempfile::tempdir().unwrap();
        let book = Book::open(live.path()).unwrap();
        let write = |id: &str, state: Phase| {
            let report = Report { volume_name: id.to_owned(), state: Some(state), ..Report::default() };
            book.write_report(&report).unwrap()
        };
        assert_eq!(write("shown", Phase::PullFailed), None);
        assert_eq!(write("shown", Phase::Mounted), None);
        for number in 0..FAILED.get() {
            let id = format!("csi-{number}");
            assert_eq!((write(&id, Phase::Pulling), write(&id, Phase::PullFailed)), (None, None));
        }
        assert_eq!(write("csi-0", Phase::PullTimeout), None, "it is one of them already");
        assert_eq!(write("one-more", Phase::PullFailed).as_deref(), Some("csi-1"));
        book.forget_report("csi-2");
        assert_eq!(write("another", Phase::PullFailed), None, "there is a place");
        assert!(!book.report("csi-2").unwrap().exists() && book.report("csi-0").unwrap().exists());
        assert_eq!(write("a/b", Phase::PullFailed), None);
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
