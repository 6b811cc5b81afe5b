//! The state folder: which mounts run, who serves them, and how they are asked.
//!
//! For each mount a record (`ID.json`) and a socket (`ID.sock`) that answers every connection with the mount's
//! status as one line of JSON. The folder is private. The mount table is the truth about what is mounted; a record
//! says who serves it, and may be left over from a process that was killed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use crate::config::StateConfig;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::mount::{Mount, Status};
use crate::oci::Digest;

/// How long a mount's process may take to answer who asks for its status.
const ANSWER: Duration = Duration::from_secs(2);

/// The largest status that is read: more than the names of ten thousand poisoned files.
const STATUS_LIMIT: u64 = 16 << 20;

/// What is noted of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The folder, absolute and without links.
    pub(super) dir: PathBuf,
    /// The reference as typed.
    pub(super) reference: String,
    /// The manifest's digest.
    pub(super) digest: String,
    /// Who serves it.
    pub(super) process: Process,
    /// Its log, where it runs in the background.
    pub(super) log: Option<PathBuf>,
    /// Where it keeps what it fetches.
    #[serde(default)]
    pub(super) store: Option<PathBuf>,
}

/// A process, told from a later one with the same number by when it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Process {
    /// Its number.
    pub(super) pid: u32,
    /// When it started, in clock ticks since the machine did (man 5 proc, stat, field 22).
    started: u64,
}

impl Process {
    /// This one.
    pub(super) fn own() -> Self {
        let pid = std::process::id();
        Self { pid, started: look(pid).map_or(0, |found| found.started) }
    }

    /// Whether it still runs. One that has ended and waits for its parent does not.
    pub(super) fn runs(&self) -> bool {
        look(self.pid).is_some_and(|found| found.started == self.started && !found.ended)
    }

    /// Waits until it has ended, at most `limit`; whether it has.
    pub(super) fn await_end(&self, limit: Duration) -> bool {
        let begun = std::time::Instant::now();
        while self.runs() {
            if begun.elapsed() >= limit {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

struct Look {
    started: u64,
    ended: bool,
}

/// What `/proc/PID/stat` says; the name in it may have spaces and brackets, so it is read from the last one on.
fn look(pid: u32) -> Option<Look> {
    let text = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let ended = matches!(fields.next()?, "Z" | "X" | "x");
    let started = fields.nth(18)?.parse().ok()?;
    Some(Look { started, ended })
}

/// The folders, made where they were missing.
#[derive(Clone, Debug)]
pub(super) struct State {
    live: PathBuf,
    logs: PathBuf,
}

impl State {
    /// Makes the folders where they are missing.
    ///
    /// # Errors
    /// `Storage` where that fails, and where another user owns one or may write to it.
    pub(super) fn open(config: &StateConfig) -> Result<Self> {
        private(&config.live)?;
        private(&config.logs)?;
        Ok(Self { live: config.live.clone(), logs: config.logs.clone() })
    }

    /// The log of what is mounted at `dir`, which is absolute and without links.
    pub(super) fn log(&self, dir: &Path) -> PathBuf {
        self.logs.join(format!("{}.log", id(dir)))
    }

    fn record_path(&self, dir: &Path) -> PathBuf {
        self.live.join(format!("{}.json", id(dir)))
    }

    /// Notes a mount.
    ///
    /// # Errors
    /// `Storage`.
    pub(super) fn note(&self, record: &Record) -> Result<()> {
        let path = self.record_path(&record.dir);
        let draft = path.with_extension(format!("{}.new", record.process.pid));
        let doing = || format!("cannot write {}", path.display());
        let bytes = serde_json::to_vec(record).map_err(std::io::Error::from).storage(doing)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).truncate(true).write(true).mode(0o600).open(&draft).storage(doing)?;
        file.write_all(&bytes).storage(doing)?;
        std::fs::rename(&draft, &path).storage(doing)
    }

    /// What is noted of `dir`. A record that can't be read counts as none.
    pub(super) fn find(&self, dir: &Path) -> Option<Record> {
        read_record(&self.record_path(dir)).filter(|record| record.dir == dir)
    }

    /// Forgets a mount, unless another process has noted one at the same folder since.
    pub(super) fn forget(&self, record: &Record) {
        if self.find(&record.dir).is_some_and(|found| found.process == record.process) {
            let path = self.record_path(&record.dir);
            for path in [path.with_extension("sock"), path] {
                if let Err(error) = std::fs::remove_file(&path) {
                    tracing::debug!(%error, "{} stays", path.display());
                }
            }
        }
    }

    /// All mounts noted, by folder.
    ///
    /// # Errors
    /// `Storage` where the folder can't be read.
    pub(super) fn records(&self) -> Result<Vec<Record>> {
        let doing = || format!("cannot look into {}", self.live.display());
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.live).storage(doing)? {
            let path = entry.storage(doing)?.path();
            if path.extension().is_some_and(|extension| extension == "json") {
                records.extend(read_record(&path));
            }
        }
        records.sort_by(|a, b| a.dir.cmp(&b.dir));
        Ok(records)
    }

    /// Answers who asks for the status of `mount`, until the task that is given back is ended.
    ///
    /// # Errors
    /// `Storage` where the socket can't be made.
    pub(super) fn answer(&self, mount: Arc<Mount>, record: &Record) -> Result<tokio::task::JoinHandle<()>> {
        let name = format!("{}.sock", id(&record.dir));
        let doing = || format!("cannot make the socket {}", self.live.join(&name).display());
        let _ = std::fs::remove_file(self.live.join(&name));
        let (_open, path) = self.short(&name)?;
        let listener = UnixListener::bind(path).storage(doing)?;
        Ok(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(tell(stream, mount.clone()))),
                    Err(error) => {
                        tracing::warn!(%error, "nobody can ask for the status for a moment");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }))
    }

    /// The status that the process of `record` gives, or `None` where it does not answer.
    pub(super) fn ask(&self, record: &Record) -> Option<Status> {
        let (_open, path) = self.short(&format!("{}.sock", id(&record.dir))).ok()?;
        let stream = UnixStream::connect(path).ok()?;
        stream.set_read_timeout(Some(ANSWER)).ok()?;
        let mut text = Vec::new();
        stream.take(STATUS_LIMIT).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// A path to `name` that is short enough for a socket (107 bytes), through the open folder.
    fn short(&self, name: &str) -> Result<(File, PathBuf)> {
        let folder = File::open(&self.live).storage(|| format!("cannot open {}", self.live.display()))?;
        let path = PathBuf::from(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()));
        Ok((folder, path))
    }
}

async fn tell(mut stream: tokio::net::UnixStream, mount: Arc<Mount>) {
    let Ok(status) = tokio::task::spawn_blocking(move || mount.status()).await else { return };
    let Ok(mut line) = serde_json::to_vec(&status) else { return };
    line.push(b'\n');
    let told = tokio::time::timeout(ANSWER, stream.write_all(&line)).await;
    if !matches!(told, Ok(Ok(()))) {
        tracing::debug!("who asked for the status did not wait for it");
    }
}

fn read_record(path: &Path) -> Option<Record> {
    let bytes = std::fs::read(path).ok()?;
    let record = serde_json::from_slice(&bytes);
    record.map_err(|error| tracing::warn!(%error, "{} is no record", path.display())).ok()
}

/// A name for a folder that is a file name whatever the folder's is.
fn id(dir: &Path) -> String {
    let digest = Digest::of(dir.as_os_str().as_encoded_bytes());
    digest.hex().chars().take(16).collect()
}

/// Makes the folder private to its owner, and refuses one that another has made.
fn private(folder: &Path) -> Result<()> {
    let doing = || format!("cannot use the state folder {}", folder.display());
    DirBuilder::new().recursive(true).mode(0o700).create(folder).storage(doing)?;
    let found = std::fs::symlink_metadata(folder).storage(doing)?;
    if !found.is_dir() {
        let error = Error::new(Kind::Storage, format!("{}: it is a link", doing()));
        return Err(error.hint("name another one with --state or WEIGHTFS_STATE"));
    }
    if found.uid() != nix::unistd::geteuid().as_raw() {
        let error = Error::new(Kind::Storage, format!("{}: it belongs to another user", doing()));
        return Err(error.hint("name another one with --state or WEIGHTFS_STATE"));
    }
    if found.mode() & 0o022 != 0 {
        let error = Error::new(Kind::Storage, format!("{}: others may write to it", doing()));
        return Err(error.hint(format!("run 'chmod 700 {}'", folder.display())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(folder: &Path) -> State {
        State::open(&StateConfig { live: folder.join("live"), logs: folder.join("log") }).unwrap()
    }

    fn record(dir: &str) -> Record {
        let process = Process::own();
        Record { dir: dir.into(), reference: "r".into(), digest: "d".into(), process, log: None, store: None }
    }

    #[test]
    fn a_mount_is_noted_found_listed_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path());
        let (first, second) = (record("/b"), record("/a"));
        state.note(&first).unwrap();
        state.note(&second).unwrap();
        assert_eq!(state.find(Path::new("/b")), Some(first.clone()));
        assert_eq!(state.records().unwrap(), [second.clone(), first.clone()]);
        state.forget(&first);
        assert_eq!(state.records().unwrap(), [second]);
    }

    #[test]
    fn a_mount_that_another_process_has_noted_since_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path());
        let old = Record { process: Process { pid: 1, started: 0 }, ..record("/a") };
        state.note(&record("/a")).unwrap();
        state.forget(&old);
        assert!(state.find(Path::new("/a")).is_some());
    }

    #[test]
    fn a_process_runs_until_it_has_ended() {
        assert!(Process::own().runs());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let process = Process { pid: child.id(), started: look(child.id()).unwrap().started };
        assert!(process.await_end(Duration::from_secs(10)));
        child.wait().unwrap();
        assert!(!Process { pid: std::process::id(), started: 0 }.runs());
    }

    #[test]
    fn a_state_folder_and_its_records_are_private() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path());
        assert_eq!(std::fs::metadata(&state.live).unwrap().mode() & 0o777, 0o700);
        state.note(&record("/a")).unwrap();
        let mode = std::fs::metadata(state.record_path(Path::new("/a"))).unwrap().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_state_folder_that_others_may_write_to_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("live");
        std::fs::create_dir(&live).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&live, open).unwrap();
        let error = State::open(&StateConfig { live, logs: folder.path().join("log") }).unwrap_err();
        assert_eq!(error.kind(), Kind::Storage);
    }

    #[test]
    fn a_mount_that_nobody_serves_gives_no_status() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path());
        assert!(state.ask(&record("/a")).is_none());
    }
}
