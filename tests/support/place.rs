//! A place to mount in: a folder for the mount, a store, a state folder, a home; and the program run with them.
//!
//! Whatever happens in a test, dropping the place kills the processes that serve it and detaches the mount: a reader stuck in
//! a page fault would hang the test program for ever otherwise.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use super::{canary, scratch, wait};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_weightfs");

/// How long a command that has nothing to wait for may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ran {
    /// The standard output as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:?}"))
    }

    /// Itself, after making sure that the command went well.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, 0, "{self:?}");
        self
    }

    /// Itself, after making sure that the command failed with `code` and said each of `words` (in any case).
    pub fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        let said = self.stderr.to_lowercase();
        let missing: Vec<_> = words.iter().filter(|word| !said.contains(&word.to_lowercase())).collect();
        assert!(missing.is_empty(), "the message lacks {missing:?}: {self:?}");
        assert!(!said.contains("panicked"), "{self:?}");
        self
    }
}

/// The place. Commands run in it find its store, state and home in their environment.
pub struct Place {
    home: TempDir,
    store: Arc<TempDir>,
    runs: AtomicU32,
}

impl Place {
    /// A place with an empty store of its own.
    pub fn new() -> Self {
        Self::with_store(Arc::new(scratch::roomy()))
    }

    /// Another place that uses this one's store.
    pub fn neighbour(&self) -> Self {
        Self::with_store(Arc::clone(&self.store))
    }

    fn with_store(store: Arc<TempDir>) -> Self {
        let home = scratch::short();
        fs::create_dir_all(home.path().join("mnt")).unwrap();
        fs::create_dir_all(home.path().join("docker")).unwrap();
        Self { home, store, runs: AtomicU32::new(0) }
    }

    /// Where it mounts.
    pub fn dir(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    /// A path in the mount.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.dir().join(inside)
    }

    /// The store's folder.
    pub fn store(&self) -> PathBuf {
        self.store.path().join("store")
    }

    /// The store's folder of a layer: the one for all once it is proved, else that of who fetches it.
    pub fn layer(&self, digest: &str) -> PathBuf {
        let (layers, hex) = (self.store().join("layers/sha256"), super::pack::hex(digest));
        let shared = layers.join(hex);
        if shared.is_dir() {
            return shared;
        }
        let folders = fs::read_dir(&layers).unwrap().map(|folder| folder.unwrap());
        let mut own = folders.filter(|folder| {
            folder.path().is_dir() && folder.file_name().to_str().is_some_and(|name| name.starts_with(hex))
        });
        own.next().unwrap_or_else(|| panic!("nothing of {digest} in {}", layers.display())).path()
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.home.path().join("state")
    }

    /// The folder where docker's `config.json` is looked for.
    pub fn docker(&self) -> PathBuf {
        self.home.path().join("docker")
    }

    /// A folder of the place's own for anything else.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.home.path().join(name);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// The program with this place in its environment, and nothing of the user's but what `WEIGHTFS_TEST_SETTINGS` says: words such as
    /// `WEIGHTFS_PASSTHROUGH=off`, so that any test can be run with other settings than the defaults.
    pub fn command(&self) -> Command {
        self.furnish(Command::new(PROGRAM))
    }

    /// The same, run by another program that is told of it by its last word; by itself where there is none.
    pub fn command_by<S: AsRef<std::ffi::OsStr>>(&self, by: &[S]) -> Command {
        let Some((first, rest)) = by.split_first() else { return self.command() };
        let mut command = Command::new(first);
        command.args(rest).arg(PROGRAM);
        self.furnish(command)
    }

    fn furnish(&self, mut command: Command) -> Command {
        let theirs = |name: &std::ffi::OsStr| {
            let name = name.to_string_lossy().to_ascii_lowercase();
            name.starts_with("weightfs_") || name.ends_with("_proxy")
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| theirs(name)) {
            command.env_remove(name);
        }
        command
            .env("WEIGHTFS_STORE", self.store())
            .env("WEIGHTFS_STATE", self.state())
            .env("HOME", self.home.path())
            .env("XDG_CONFIG_HOME", self.home.path().join("config"))
            .env("XDG_CACHE_HOME", self.home.path().join("cache"))
            .env("XDG_STATE_HOME", self.home.path().join("state-home"))
            .env("XDG_RUNTIME_DIR", self.home.path().join("runtime"))
            .env("DOCKER_CONFIG", self.docker())
            .stdin(Stdio::null());
        let settings = std::env::var("WEIGHTFS_TEST_SETTINGS").unwrap_or_default();
        command.envs(settings.split_whitespace().filter_map(|setting| setting.split_once('=')));
        command
    }

    /// Runs the program to its end.
    ///
    /// # Panics
    /// When it takes longer than a minute.
    pub fn run<S: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ran {
        let mut command = self.command();
        command.args(arguments);
        self.finish(command, PATIENCE)
    }

    /// Runs a prepared command to its end. Its output goes to files: one who stays behind cannot hold up the caller.
    ///
    /// # Panics
    /// When it takes longer than `limit`.
    pub fn finish(&self, mut command: Command, limit: Duration) -> Ran {
        let number = self.runs.fetch_add(1, Ordering::SeqCst);
        let [out, err] = ["out", "err"].map(|kind| self.home.path().join(format!("run-{number}.{kind}")));
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let start = std::time::Instant::now();
        let mut child = command.spawn().unwrap();
        let status = wait::ended(&mut child, limit);
        let took = start.elapsed();
        let [stdout, stderr] =
            [&out, &err].map(|path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned());
        let Some(status) = status else { panic!("{command:?} did not end in {limit:?}: {stdout}{stderr}") };
        Ran { code: status.code().unwrap_or(-1), stdout, stderr, took }
    }

    /// Tries to mount.
    pub fn try_mount(&self, reference: &str, options: &[&str]) -> Ran {
        let mut command = self.command();
        command.args(["mount", reference]).arg(self.dir()).args(options);
        self.finish(command, PATIENCE)
    }

    /// Mounts.
    pub fn mount(&self, reference: &str, options: &[&str]) -> Ran {
        let ran = self.try_mount(reference, options).ok();
        assert!(self.is_mounted(), "the command ended well and nothing is mounted: {ran:?}");
        ran
    }

    /// Unmounts; the process that served the mount has ended then.
    pub fn unmount(&self) {
        let pid = self.pid();
        let mut command = self.command();
        command.arg("unmount").arg(self.dir());
        self.finish(command, PATIENCE).ok();
        assert!(!self.is_mounted(), "unmounted and still there");
        assert!(!is_running(pid), "unmounted and process {pid} still there");
    }

    /// Whether something is mounted on the folder, alive or dead.
    pub fn is_mounted(&self) -> bool {
        !scratch::mount_points_below(&self.dir()).is_empty()
    }

    /// The line of `/proc/self/mountinfo` for the mount.
    pub fn mountinfo(&self) -> String {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let dir = self.dir();
        let mine = |line: &&str| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == dir);
        table.lines().rfind(mine).expect("a line for the mount").to_owned()
    }

    /// What `list` says of this mount.
    pub fn status(&self) -> Value {
        let list = self.run(["list", "--json"]).ok().json();
        let mounts = list.as_array().expect("an array").clone();
        let mine = |mount: &Value| mount["dir"].as_str().is_some_and(|dir| Path::new(dir) == self.dir());
        mounts
            .into_iter()
            .find(mine)
            .unwrap_or_else(|| panic!("{} is not listed: {list}", self.dir().display()))
    }

    /// Waits until `list` calls the mount `standing`.
    pub fn wait_for(&self, standing: &str, limit: Duration) {
        wait::until(&format!("the mount is {standing}"), limit, || self.status()["standing"] == standing);
    }

    /// Waits until everything is kept and proved.
    pub fn wait_until_complete(&self) {
        let complete = |status: &Value| status["standing"] == "verified" && status["kept"] == status["total"];
        let mut last = Value::Null;
        let done = wait::eventually(Duration::from_secs(180), || {
            last = self.status();
            complete(&last)
        });
        assert!(done, "never complete: {last}");
    }

    /// Waits until so many content bytes are kept: they are written behind the replies.
    pub fn wait_until_kept(&self, bytes: u64) {
        let limit = Duration::from_secs(60);
        wait::until("what was read is kept", limit, || {
            self.status()["kept"].as_u64().is_some_and(|kept| kept >= bytes)
        });
    }

    /// The process that serves the mount, as `list` says.
    pub fn pid(&self) -> Pid {
        let status = self.status();
        Pid::from_raw(
            status["pid"]
                .as_i64()
                .and_then(|pid| i32::try_from(pid).ok())
                .unwrap_or_else(|| panic!("no pid: {status}")),
        )
    }

    /// Kills the process that serves the mount, and leaves the dead mount.
    pub fn kill(&self) {
        let pid = self.pid();
        kill(pid, Signal::SIGKILL).unwrap();
        wait::until("the killed process is gone", PATIENCE, || !is_running(pid));
    }

    /// Makes sure that no secret was printed by a command or written to the log of a mount.
    fn check_for_secrets(&self) {
        let files =
            |folder: &Path| fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let printed = files(self.home.path())
            .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("run-")));
        for path in printed.chain(files(&self.state().join("log"))) {
            let text = fs::read(&path).unwrap_or_default();
            canary::absent(&path.display().to_string(), &String::from_utf8_lossy(&text));
        }
    }

    /// The processes of the program that were started for this place.
    fn processes(&self) -> Vec<Pid> {
        let home = self.home.path().to_string_lossy().into_owned();
        let all = fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        all.map(Pid::from_raw).filter(|pid| serves(*pid, &home)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ended_meanwhile = kill(pid, Signal::SIGKILL);
        }
        scratch::detach_below(self.home.path());
        if !std::thread::panicking() {
            self.check_for_secrets();
        }
    }
}

/// Whether a process is alive; a zombie is not.
pub fn is_running(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.split(' ').nth(1))
        .is_some_and(|state| state != "Z" && state != "X")
}

/// Whether a process runs the program with this home in its environment.
fn serves(pid: Pid, home: &str) -> bool {
    let ours = fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == Path::new(PROGRAM));
    let environment = || fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    ours && environment().split(|byte| *byte == 0).any(|entry| entry == format!("HOME={home}").as_bytes())
}
