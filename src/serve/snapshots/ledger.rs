//! The ledger: which snapshots there are, on disk, so that they outlive this process and the machine's restarts as containerd's
//! own records do.
//!
//! A file for each snapshot, put in place whole and on the disk before anybody is told of it; a folder of the same number for
//! what the snapshot holds. A folder without a file is nobody's and goes at the next cleanup, one whose file cannot be read stays. Every
//! change is made by one at a time. Everything here waits for the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use parking_lot::Mutex;
use tonic::Code;

use super::filter::Filter;
use super::record::{Kind, Labels, Record, Usage};
use crate::error::{Error, Kind as Fault, Result, StorageContext};
use crate::serve::put::settle;
use crate::serve::refused::Refused;
use crate::serve::state::private;

/// The label by which containerd finds a snapshot that was made without being asked for by name.
pub(super) const TARGET: &str = "containerd.io/snapshot.ref";

/// All snapshots.
#[derive(Debug)]
pub(super) struct Ledger {
    root: PathBuf,
    state: Mutex<State>,
    /// Held as long as the ledger is: there is one for a folder.
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    by_name: BTreeMap<String, Record>,
    /// Numbers whose folders are somebody's although no record of them is known.
    kept: BTreeSet<u64>,
    next: u64,
}

impl Ledger {
    /// Opens the folder `root`, made where missing.
    ///
    /// # Errors
    /// `Invalid` for a path that cannot stand among mount options, `Busy` where another process has it; `Storage`.
    pub(super) fn open(root: &Path) -> Result<Self> {
        if root.to_str().is_none_or(|text| text.contains([',', ':', '\\', '"', '\n'])) {
            let doing =
                format!("{} cannot hold snapshots: its path has one of , : \\ \" in it", root.display());
            return Err(Error::new(Fault::Invalid, doing).hint("name another one as serve.snapshots"));
        }
        for part in ["meta", "snapshots", ""] {
            private(&root.join(part))?;
        }
        let root = root.canonicalize().storage(|| format!("cannot open {}", root.display()))?;
        let lock = lock(&root.join("lock"))?;
        let state = Mutex::new(State::read(&root)?);
        Ok(Self { root, state, _lock: lock })
    }

    /// The folder of a snapshot.
    pub(super) fn folder(&self, id: u64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    /// What a snapshot has that those below it have not, or, of a remote one, where it is mounted.
    pub(super) fn fs(&self, id: u64) -> PathBuf {
        self.folder(id).join("fs")
    }

    /// What an overlay needs beside that.
    pub(super) fn work(&self, id: u64) -> PathBuf {
        self.folder(id).join("work")
    }

    /// Where the mount stands that has more layers than the snapshot itself.
    pub(super) fn run(&self, id: u64) -> PathBuf {
        self.folder(id).join("run")
    }

    /// Whether `dir` is within a snapshot's folder; the snapshot's number.
    pub(super) fn holder(&self, dir: &Path) -> Option<u64> {
        let inside = dir.strip_prefix(self.root.join("snapshots")).ok()?;
        inside.components().next()?.as_os_str().to_str()?.parse().ok()
    }

    fn record_path(&self, id: u64) -> PathBuf {
        self.root.join("meta").join(format!("{id}.json"))
    }

    /// The snapshot of this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn get(&self, name: &str) -> Result<Record, Refused> {
        self.state.lock().get(name).cloned()
    }

    /// The snapshot of this name, and all that it lies on, the nearest first.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn chain(&self, name: &str) -> Result<Vec<Record>, Refused> {
        self.state.lock().chain(name)
    }

    /// All snapshots that one of `filters` lets pass; all of them where there is none.
    pub(super) fn list(&self, filters: &[Filter]) -> Vec<Record> {
        let state = self.state.lock();
        let passes =
            |record: &&Record| filters.is_empty() || filters.iter().any(|filter| filter.takes(record));
        state.by_name.values().filter(passes).cloned().collect()
    }

    /// The remote snapshot that stands for `target` on `parent`.
    pub(super) fn find_remote(&self, target: &str, parent: &str) -> Option<Record> {
        let stands = |record: &&Record| {
            record.remote.is_some()
                && record.parent == parent
                && record.labels.get(TARGET).is_some_and(|label| label == target)
        };
        self.state.lock().by_name.values().find(stands).cloned()
    }

    /// Makes a snapshot that is to be read or written to.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` where there is no such parent, `InvalidArgument` where that is not committed; `Internal`.
    pub(super) fn create(
        &self,
        key: &str,
        parent: &str,
        kind: Kind,
        labels: Labels,
    ) -> Result<Record, Refused> {
        let mut state = self.state.lock();
        state.refuse_taken(key)?;
        let below = state.parent(parent)?;
        let id = state.number();
        let record = Record { labels, ..Record::new(id, key, parent, kind) };
        self.make_folder(&record, below.as_ref())?;
        self.put(&record).inspect_err(|_| discard(&self.folder(id)))?;
        state.by_name.insert(key.to_owned(), record.clone());
        Ok(record)
    }

    /// A number for a snapshot that is made by and by, whose folder is kept until what is given back is dropped.
    pub(super) fn reserve(&self) -> Reserved<'_> {
        let mut state = self.state.lock();
        let id = state.number();
        state.kept.insert(id);
        Reserved { ledger: self, id }
    }

    /// Notes a committed snapshot, whose folder is there.
    ///
    /// # Errors
    /// As [`create`](Self::create).
    pub(super) fn insert(&self, record: Record) -> Result<(), Refused> {
        let mut state = self.state.lock();
        state.refuse_taken(&record.name)?;
        state.parent(&record.parent)?;
        self.put(&record)?;
        state.by_name.insert(record.name.clone(), record);
        Ok(())
    }

    /// Commits the active snapshot `key` under `name`, with these labels and no others.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`; `FailedPrecondition` where it is not active; `Internal`.
    pub(super) fn commit(&self, key: &str, name: &str, labels: Labels, usage: Usage) -> Result<(), Refused> {
        let mut state = self.state.lock();
        state.refuse_taken(name)?;
        let mut record = state.get(key)?.clone();
        if record.kind != Kind::Active {
            return Err(Refused::state(format!("the snapshot {key:?} is not active")));
        }
        let now = SystemTime::now();
        (record.name, record.kind, record.labels) = (name.to_owned(), Kind::Committed, labels);
        (record.created, record.updated, record.usage) = (now, now, usage);
        self.put(&record)?;
        state.by_name.remove(key);
        state.by_name.insert(name.to_owned(), record);
        Ok(())
    }

    /// Changes a snapshot's labels.
    ///
    /// # Errors
    /// `NotFound`, `Internal`; those of `change`.
    pub(super) fn relabel(
        &self,
        name: &str,
        change: impl FnOnce(&mut Labels) -> Result<(), Refused>,
    ) -> Result<Record, Refused> {
        let mut state = self.state.lock();
        let mut record = state.get(name)?.clone();
        change(&mut record.labels)?;
        record.updated = SystemTime::now();
        self.put(&record)?;
        state.by_name.insert(name.to_owned(), record.clone());
        Ok(record)
    }

    /// Forgets a snapshot; its folder is nobody's from then on.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` where another one lies on it; `Internal`.
    pub(super) fn remove(&self, name: &str) -> Result<Record, Refused> {
        let mut state = self.state.lock();
        let record = state.get(name)?.clone();
        if state.by_name.values().any(|other| other.parent == name) {
            return Err(Refused::state(format!("cannot remove the snapshot {name:?}: another lies on it")));
        }
        let path = self.record_path(record.id);
        std::fs::remove_file(&path).and_then(|()| settle(&path)).storage(|| cannot_write(&path))?;
        state.by_name.remove(name);
        Ok(record)
    }

    /// Whether the folder of this number is that of a snapshot, or may be: that of a record that cannot be read, or one that is being
    /// made.
    pub(super) fn is_somebodys(&self, id: u64) -> bool {
        self.state.lock().somebodys().contains(&id)
    }

    /// The numbers of folders that are nobody's.
    pub(super) fn strays(&self) -> Vec<u64> {
        let somebodys = self.state.lock().somebodys();
        let found = numbers(&self.root.join("snapshots"), "");
        found.filter(|id| !somebodys.contains(id)).collect()
    }

    /// Removes a folder that is nobody's and in which nothing is mounted. What cannot be removed stays for the next time.
    pub(super) fn discard(&self, id: u64) {
        discard(&self.folder(id));
    }

    /// The folder of a new snapshot, with the owner of what it lies on.
    fn make_folder(&self, record: &Record, parent: Option<&Record>) -> Result<()> {
        let folder = self.folder(record.id);
        let doing = || format!("cannot make {}", folder.display());
        let make = |path: &Path, mode: u32| {
            DirBuilder::new().mode(mode).create(path)?;
            // Whatever the process's mask is.
            std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode))
        };
        make(&folder, 0o700).storage(doing)?;
        make(&self.fs(record.id), 0o755).storage(doing)?;
        if record.kind == Kind::Active {
            make(&self.work(record.id), 0o711).storage(doing)?;
        }
        // All that a mount shows is root's.
        if let Some(parent) = parent.filter(|parent| parent.remote.is_none()) {
            let owner = std::fs::metadata(self.fs(parent.id)).storage(doing)?;
            let chown = std::os::unix::fs::chown(self.fs(record.id), Some(owner.uid()), Some(owner.gid()));
            chown.storage(doing)?;
        }
        Ok(())
    }

    fn put(&self, record: &Record) -> Result<()> {
        let path = self.record_path(record.id);
        let draft = path.with_extension("new");
        let written = || {
            let bytes = serde_json::to_vec(record)?;
            let no_link = nix::fcntl::OFlag::O_NOFOLLOW.bits();
            let mut options = OpenOptions::new();
            options.create(true).truncate(true).write(true).mode(0o600).custom_flags(no_link);
            let mut file = options.open(&draft)?;
            file.write_all(&bytes)?;
            file.sync_all()?;
            std::fs::rename(&draft, &path)?;
            settle(&path)
        };
        written().storage(|| cannot_write(&path))
    }
}

impl State {
    fn read(root: &Path) -> Result<Self> {
        let mut state = Self::default();
        let meta = root.join("meta");
        for id in numbers(&meta, ".json") {
            let path = meta.join(format!("{id}.json"));
            let read = std::fs::read(&path).map_err(|error| error.to_string());
            match read.and_then(|bytes| serde_json::from_slice(&bytes).map_err(|error| error.to_string())) {
                Ok(record) => {
                    let record: Record = record;
                    state.by_name.insert(record.name.clone(), Record { id, ..record });
                }
                Err(error) => {
                    tracing::error!(error, "{} is no record of a snapshot; its folder stays", path.display());
                    state.kept.insert(id);
                }
            }
            state.next = state.next.max(id);
        }
        let folders = numbers(&root.join("snapshots"), "");
        state.next = folders.fold(state.next, u64::max);
        Ok(state)
    }

    fn somebodys(&self) -> BTreeSet<u64> {
        let known = self.by_name.values().map(|record| record.id);
        known.chain(self.kept.iter().copied()).collect()
    }

    fn number(&mut self) -> u64 {
        self.next = self.next.saturating_add(1);
        self.next
    }

    fn get(&self, name: &str) -> Result<&Record, Refused> {
        self.by_name.get(name).ok_or_else(|| no_such(name))
    }

    fn refuse_taken(&self, name: &str) -> Result<(), Refused> {
        match self.by_name.contains_key(name) {
            true => Err(exists(name)),
            false => Ok(()),
        }
    }

    /// The parent of this name; `None` where it is empty.
    fn parent(&self, name: &str) -> Result<Option<Record>, Refused> {
        if name.is_empty() {
            return Ok(None);
        }
        let parent = self.get(name)?;
        match parent.kind {
            Kind::Committed => Ok(Some(parent.clone())),
            _ => Err(Refused::invalid(format!("the parent {name:?} is not committed"))),
        }
    }

    fn chain(&self, name: &str) -> Result<Vec<Record>, Refused> {
        let mut chain = Vec::new();
        let mut next = name;
        // A parent is older than its child, so that no chain is longer than all there are.
        while !next.is_empty() && chain.len() <= self.by_name.len() {
            let record = self.get(next)?;
            chain.push(record.clone());
            next = &record.parent;
        }
        Ok(chain)
    }
}

/// A number whose folder is kept for now.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    ledger: &'a Ledger,
    pub(super) id: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.ledger.state.lock().kept.remove(&self.id);
    }
}

/// The numbers that names in `folder` begin with, which end with `end`.
fn numbers(folder: &Path, end: &'static str) -> impl Iterator<Item = u64> + use<> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    names.filter_map(move |name| name.to_str()?.strip_suffix(end)?.parse().ok())
}

fn lock(path: &Path) -> Result<File> {
    let doing = || format!("cannot lock {}", path.display());
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path).storage(doing)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => {
            let error = Error::new(Fault::Busy, format!("{}: another process has it", doing()));
            Err(error.hint("end that one first, or name another folder as serve.snapshots"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(error).storage(doing),
    }
}

/// There is no snapshot of this name.
pub(super) fn no_such(name: &str) -> Refused {
    Refused::new(Code::NotFound, format!("there is no snapshot {name:?}"))
}

/// There is one of this name.
pub(super) fn exists(name: &str) -> Refused {
    Refused::new(Code::AlreadyExists, format!("the snapshot {name:?} exists already"))
}

fn cannot_write(path: &Path) -> String {
    format!("cannot write {}", path.display())
}

fn discard(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(%error, "{} stays until the next cleanup", folder.display());
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
