//! containerd, with a snapshotter of ours as its plugin: Debian's, in a folder of its own, started and ended by a test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::{scratch, wait};

/// What the plugin is called.
pub const SNAPSHOTTER: &str = "weightfs";

/// How long one command may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// containerd; dropping it ends it and all containers that it has started.
pub struct Containerd {
    home: TempDir,
    server: Option<Child>,
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Said {
    pub is_ok: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// The standard output of a command that went well.
    pub fn ok(self) -> String {
        assert!(self.is_ok, "{}{}", self.stdout, self.stderr);
        self.stdout
    }
}

impl Containerd {
    /// Starts one whose snapshotter `weightfs` answers at `socket`.
    pub fn start(socket: &Path) -> Self {
        let home = scratch::short();
        // What it would look for elsewhere, or would need what tests have not got.
        let off = ["grpc.v1.cri", "internal.v1.opt", "snapshotter.v1.btrfs", "snapshotter.v1.devmapper"];
        let off: Vec<String> = off.iter().map(|plugin| format!("\"io.containerd.{plugin}\"")).collect();
        let path = |name: &str| home.path().join(name).display().to_string();
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\ndisabled_plugins = [{}]\n\
             [grpc]\naddress = \"{}\"\n[ttrpc]\naddress = \"{}\"\n\
             [proxy_plugins.{SNAPSHOTTER}]\ntype = \"snapshot\"\naddress = \"{}\"\n",
            path("root"),
            path("state"),
            off.join(", "),
            path("c.sock"),
            path("t.sock"),
            socket.display()
        );
        fs::write(home.path().join("config.toml"), config).unwrap();
        let mut containerd = Self { home, server: None };
        containerd.restart();
        containerd
    }

    /// Starts the one that was killed, and waits until it answers.
    pub fn restart(&mut self) {
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new("containerd");
        command.arg("--config").arg(self.home.path().join("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let server = command.spawn();
        self.server = Some(
            server.unwrap_or_else(|error| panic!("containerd: {error}; run tools/test, which installs it")),
        );
        wait::until("containerd answers", Duration::from_secs(60), || {
            let ended = self.server.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(self.log()).unwrap());
            self.try_run("ctr", &["version"]).is_ok
        });
    }

    /// Kills it; containers go on.
    pub fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn log(&self) -> PathBuf {
        self.home.path().join("log")
    }

    /// Runs its client, which has to go well, and gives what it says.
    pub fn ctr(&self, words: &[&str]) -> String {
        self.try_run("ctr", words).ok()
    }

    /// Pulls an image as a client does that lets the snapshotter answer, and says what it printed.
    pub fn rpull(&self, image: &str) -> String {
        let words = ["images", "rpull", "--plain-http", "--snapshotter", SNAPSHOTTER, image];
        self.try_run("ctr-remote", &words).ok()
    }

    /// Pulls an image as clients do that download it first.
    pub fn pull(&self, image: &str, snapshotter: &str) -> String {
        self.ctr(&["images", "pull", "--plain-http", "--snapshotter", snapshotter, image])
    }

    /// Runs a program in a new container of the image, and gives what it prints.
    pub fn run(&self, snapshotter: &str, image: &str, id: &str, program: &[&str]) -> String {
        let words = ["run", "--rm", "--snapshotter", snapshotter, image, id];
        self.ctr(&[&words[..], program].concat())
    }

    /// The names of all snapshots of ours.
    pub fn snapshots(&self) -> Vec<String> {
        let list = self.ctr(&["snapshots", "--snapshotter", SNAPSHOTTER, "list"]);
        list.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// Runs one of its clients.
    pub fn try_run(&self, program: &str, words: &[&str]) -> Said {
        let [out, err] = ["out", "err"].map(|kind| tempfile::NamedTempFile::with_suffix(kind).unwrap());
        let mut command = Command::new(program);
        // What runs containers keeps them by namespace, in one folder for all of the machine.
        let namespace = self.home.path().file_name().unwrap();
        command.arg("--namespace").arg(namespace).arg("--address").arg(self.home.path().join("c.sock"));
        command.args(words);
        command.stdin(Stdio::null()).stdout(out.reopen().unwrap()).stderr(err.reopen().unwrap());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; run tools/test"));
        let status = wait::ended(&mut child, PATIENCE);
        let [stdout, stderr] =
            [out, err].map(|file| String::from_utf8_lossy(&fs::read(file.path()).unwrap()).into_owned());
        let Some(status) = status else { panic!("{words:?} did not end: {stdout}{stderr}") };
        Said { is_ok: status.success(), stdout, stderr }
    }

    /// The processes that look after containers of this one, which outlive it.
    fn shims(&self) -> Vec<Pid> {
        let own = self.home.path().display().to_string();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let is_own = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("containerd-shim") && line.contains(&own)
        };
        pids.filter(is_own).map(Pid::from_raw).collect()
    }

    /// Kills all of a process's children, and itself.
    fn end(shim: Pid) {
        let children = fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(Pid::from_raw);
        for pid in children.chain([shim]) {
            let _already_gone = kill(pid, Signal::SIGKILL);
        }
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _already_gone = server.kill();
            server.wait().unwrap();
        }
        let shims = self.shims();
        shims.iter().copied().for_each(Self::end);
        wait::eventually(Duration::from_secs(10), || self.shims().is_empty());
        scratch::detach_below(self.home.path());
    }
}
