//! The state folder: which mounts run, who serves them, and how they are asked.
//!
//! For each mount a record (`ID.json`) and a socket (`ID.sock`) that answers every connection with the mount's
//! status as one line of JSON. The folder is private. The mount table is the truth about what is mounted; a record
//! says who serves it, and may be left over from a process that was killed. Written by every mount; read by the commands
//! and by the plane.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, socket};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use super::process::Process;
use super::put::{names_in, remove};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::mount::{Mount, Status};
use crate::oci::Digest;

/// How long a mount's process may take to answer who asks for its status.
const ANSWER: Duration = Duration::from_secs(2);

/// The largest status that is read: more than the names of ten thousand poisoned files.
const STATUS_LIMIT: usize = 16 << 20;

/// What says how a mount is.
pub type Says = dyn Fn() -> Status + Send + Sync;

/// Where running mounts are noted, and where their logs go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateConfig {
    /// One record and one socket for each live mount.
    pub live: PathBuf,
    /// One log for each folder mounted at.
    pub logs: PathBuf,
}

/// What is noted of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The folder, absolute and without links.
    pub dir: PathBuf,
    /// The reference as typed.
    pub reference: String,
    /// The manifest's digest.
    pub digest: String,
    /// Who serves it.
    pub process: Process,
    /// Its log, where it runs in the background.
    pub log: Option<PathBuf>,
    /// Where it keeps what it fetches.
    #[serde(default)]
    pub store: Option<PathBuf>,
}

/// The folders, made where they were missing.
#[derive(Clone, Debug)]
pub struct State {
    live: PathBuf,
    logs: PathBuf,
}

impl State {
    /// Makes the folders where they are missing.
    ///
    /// # Errors
    /// `Storage` where that fails, and where another user owns one or may write to it.
    pub fn open(config: &StateConfig) -> Result<Self> {
        private(&config.live)?;
        private(&config.logs)?;
        Ok(Self { live: config.live.clone(), logs: config.logs.clone() })
    }

    /// The log of what is mounted at `dir`, which is absolute and without links.
    pub fn log(&self, dir: &Path) -> PathBuf {
        self.logs.join(format!("{}.log", id(dir)))
    }

    /// Removes the log of what was mounted at `dir`, and the one that is kept beside it.
    pub(super) fn forget_log(&self, dir: &Path) {
        let log = self.log(dir);
        let mut old = log.clone().into_os_string();
        old.push(".1");
        remove(&log);
        remove(Path::new(&old));
    }

    /// Removes what processes that have died were about to note. Called while no mount of the plane begins.
    pub(super) fn clear_drafts(&self) {
        for path in names_in(&self.live) {
            // `ID.PID.new`: of one that lives it is put in place at any moment.
            let pid = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
                let mut parts = name.strip_suffix(".new")?.rsplit('.');
                parts.next()?.parse().ok()
            });
            if pid.is_some_and(|pid| !Process::of(pid).runs()) {
                remove(&path);
            }
        }
    }

    fn record_path(&self, dir: &Path) -> PathBuf {
        self.live.join(format!("{}.json", id(dir)))
    }

    /// Notes a mount.
    ///
    /// # Errors
    /// `Storage`.
    pub fn note(&self, record: &Record) -> Result<()> {
        let path = self.record_path(&record.dir);
        let draft = path.with_extension(format!("{}.new", record.process.pid));
        let doing = || format!("cannot write {}", path.display());
        let bytes = serde_json::to_vec(record).map_err(io::Error::from).storage(doing)?;
        let mut options = OpenOptions::new();
        let mut file =
            options.create(true).truncate(true).write(true).mode(0o600).open(&draft).storage(doing)?;
        file.write_all(&bytes).storage(doing)?;
        std::fs::rename(&draft, &path).storage(doing)
    }

    /// What is noted of `dir`. A record that can't be read counts as none.
    pub fn find(&self, dir: &Path) -> Option<Record> {
        read_record(&self.record_path(dir)).filter(|record| record.dir == dir)
    }

    /// Forgets a mount, unless another process has noted one at the same folder since.
    pub fn forget(&self, record: &Record) {
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
    pub fn records(&self) -> Result<Vec<Record>> {
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
    pub fn answer(&self, mount: Arc<Mount>, record: &Record) -> Result<tokio::task::JoinHandle<()>> {
        self.answer_with(Arc::new(move || mount.status()), record)
    }

    /// The same, of what says its status itself, which may block.
    ///
    /// # Errors
    /// As [`answer`](Self::answer).
    pub fn answer_with(&self, says: Arc<Says>, record: &Record) -> Result<tokio::task::JoinHandle<()>> {
        let name = format!("{}.sock", id(&record.dir));
        let doing = || format!("cannot make the socket {}", self.live.join(&name).display());
        let _ = std::fs::remove_file(self.live.join(&name));
        let (_open, path) = self.short(&name)?;
        let listener = UnixListener::bind(path).storage(doing)?;
        Ok(tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(tell(stream, says.clone()))),
                    Err(error) => {
                        tracing::warn!(%error, "nobody can ask for the status for a moment");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                    }
                }
            }
        }))
    }

    /// The status that the process of `record` gives, or `None` where it does not answer. Blocks, two seconds at most, also where
    /// that process stands still.
    pub fn ask(&self, record: &Record) -> Option<Status> {
        let (_open, path) = self.short(&format!("{}.sock", id(&record.dir))).ok()?;
        let stream = connect(&path).ok()?;
        serde_json::from_slice(&hear(stream, Instant::now() + ANSWER).ok()?).ok()
    }

    fn short(&self, name: &str) -> Result<(File, PathBuf)> {
        short(&self.live.join(name))
    }
}

/// A path to the socket at `path` that is short enough for one (107 bytes): through its folder, which is held open.
///
/// # Errors
/// `Storage` where there is no such folder.
pub(super) fn short(path: &Path) -> Result<(File, PathBuf)> {
    let folder =
        path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    let open = File::open(folder).storage(|| format!("cannot open {}", folder.display()))?;
    let inside = PathBuf::from(format!("/proc/self/fd/{}", open.as_raw_fd()));
    Ok((open, path.file_name().map_or_else(|| inside.clone(), |name| inside.join(name))))
}

/// Connects to the socket at `path` without waiting: where too many wait already to be answered, nobody answers.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    nix::sys::socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// All that is said until the other end is closed, which has to be by `end`.
fn hear(mut stream: UnixStream, end: Instant) -> io::Result<Vec<u8>> {
    let (mut text, mut piece) = (Vec::new(), [0; 16 << 10]);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || text.len() > STATUS_LIMIT {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => return Ok(text),
            len => text.extend(piece.iter().take(len)),
        }
    }
}

async fn tell(mut stream: tokio::net::UnixStream, says: Arc<Says>) {
    let Ok(status) = tokio::task::spawn_blocking(move || says()).await else { return };
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
pub(super) fn id(dir: &Path) -> String {
    let digest = Digest::of(dir.as_os_str().as_encoded_bytes());
    digest.hex().chars().take(16).collect()
}

/// Makes the folder private to its owner, and refuses one that another has made.
pub(super) fn private(folder: &Path) -> Result<()> {
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
        let old = Record { process: Process::of(1), ..record("/a") };
        state.note(&record("/a")).unwrap();
        state.forget(&old);
        assert!(state.find(Path::new("/a")).is_some());
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
    fn a_process_that_stands_still_or_says_too_little_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path());
        let path = state.record_path(Path::new("/a")).with_extension("sock");
        let listener = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        nix::sys::socket::bind(listener.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        assert!(state.ask(&record("/a")).is_none(), "nobody accepts");
        let mut waiting = Vec::new();
        while let Ok(stream) = connect(&path) {
            waiting.push(stream);
        }
        assert!(state.ask(&record("/a")).is_none(), "nobody can even wait");
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let end = Instant::now() + Duration::from_millis(50);
        let drip = std::thread::spawn(move || while theirs.write_all(b" ").is_ok() {});
        assert!(hear(ours, end).is_err(), "it never comes to an end");
        drip.join().unwrap();
    }

    #[test]
    fn a_mount_that_nobody_serves_gives_no_status() {
        let folder = tempfile::tempdir().unwrap();
        let state = state(folder.path());
        assert!(state.ask(&record("/a")).is_none());
    }
}
