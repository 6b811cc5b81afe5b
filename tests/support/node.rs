//! A node: `weightfs serve` in a place of its own, killed and started again as a test wants it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::csi::Client;
use super::http::{self, Body, Reply};
use super::place::{Place, Ran, is_running};
use super::wait;

/// How long what should come at once may take on a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// The node; dropping it ends the plane, and the place everything else.
pub struct Node {
    pub place: Place,
    /// What runs the plane, where it is not run by itself.
    by: Vec<String>,
    words: Vec<String>,
    /// Where the pages are on the loopback, if they are there and not at a socket.
    port: Option<u16>,
    manager: Option<PathBuf>,
    /// Whether it is containerd's snapshotter too.
    containers: bool,
    starts: u32,
    plane: Option<Child>,
}

impl Node {
    /// A node whose plane answers.
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// The same, with more words on the command line.
    pub fn with(words: &[&str]) -> Self {
        Self::at(words, None, None)
    }

    /// A node whose plane is run by another program with its words as the last ones, in a place that was prepared.
    pub fn by(by: &[&str], words: &[&str], prepare: impl FnOnce(&Place)) -> Self {
        let mut node = Self::unstarted(words, None, None);
        node.by = by.iter().map(|word| (*word).to_owned()).collect();
        prepare(&node.place);
        node.restart();
        node
    }

    /// The same, whose words are told of the place.
    pub fn by_words(by: &[&str], words: impl FnOnce(&Place) -> Vec<String>) -> Self {
        let mut node = Self::unstarted(&[], None, None);
        node.by = by.iter().map(|word| (*word).to_owned()).collect();
        node.words = words(&node.place);
        node.restart();
        node
    }

    /// A node whose plane tells a service manager at `socket` of itself.
    pub fn with_manager(socket: &Path) -> Self {
        Self::at(&[], None, Some(socket.to_owned()))
    }

    /// A node whose pages are at an address and not at a socket.
    pub fn on_loopback() -> Self {
        Self::at(&[], Some(http::free_port()), None)
    }

    fn at(words: &[&str], port: Option<u16>, manager: Option<PathBuf>) -> Self {
        let mut node = Self::unstarted(words, port, manager);
        node.restart();
        node
    }

    fn unstarted(words: &[&str], port: Option<u16>, manager: Option<PathBuf>) -> Self {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            place: Place::new(),
            by: Vec::new(),
            words,
            port,
            manager,
            containers: false,
            starts: 0,
            plane: None,
        }
    }

    /// A node that is containerd's snapshotter.
    pub fn for_containers() -> Self {
        let mut node = Self::unstarted(&[], None, None);
        node.containers = true;
        node.restart();
        node
    }

    /// The socket that containerd asks for snapshots at.
    pub fn snapshotter(&self) -> PathBuf {
        self.place.folder("csi").join("snapshots.sock")
    }

    /// Where snapshots are kept.
    pub fn snapshots(&self) -> PathBuf {
        self.place.folder("snapshots")
    }

    /// A node that serves pods, and how it is asked.
    pub fn for_pods() -> (Self, Client) {
        let node = Self::with(&["--node-id", "node-1"]);
        let client = Client::connect(&node.csi());
        (node, client)
    }

    /// The socket that pods' volumes are asked for at.
    pub fn csi(&self) -> PathBuf {
        self.place.folder("csi").join("csi.sock")
    }

    /// Starts the plane that was killed or has ended, and waits until everything listens.
    pub fn restart(&mut self) {
        self.starts += 1;
        // By this name the place looks through it for secrets.
        let output = self.place.folder("").join(format!("run-plane-{}.err", self.starts));
        let mut command = self.place.command_by(&self.by);
        let pages = match self.port {
            Some(port) => format!("127.0.0.1:{port}"),
            None => format!("unix://{}", self.pages().display()),
        };
        command.args(["serve", "--metrics", &pages]).args(&self.words);
        if self.words.iter().any(|word| word == "--node-id") {
            command.arg("--csi").arg(format!("unix://{}", self.csi().display()));
        }
        if self.containers {
            command.arg("--snapshotter").arg(format!("unix://{}", self.snapshotter().display()));
            command.arg("--snapshots").arg(self.snapshots());
        }
        command.envs(self.manager.iter().map(|socket| ("NOTIFY_SOCKET", socket)));
        let log = File::create(&output).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.plane = Some(command.spawn().unwrap());
        wait::until("the plane is ready", SOON, || {
            let ended = self.plane.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "{}", fs::read_to_string(&output).unwrap());
            self.get("/readyz").is_some_and(|reply| reply.status == 200)
        });
    }

    /// The plane's own process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.plane.as_ref().unwrap().id().try_into().unwrap())
    }

    /// Kills the plane, which has no time to say anything.
    pub fn kill(&mut self) {
        let mut plane = self.plane.take().unwrap();
        plane.kill().unwrap();
        plane.wait().unwrap();
    }

    /// Asks the plane to end, and gives its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let mut plane = self.plane.take().unwrap();
        wait::ended(&mut plane, SOON).expect("the plane ends when it is asked to").code()
    }

    /// What a page says; `None` where nobody answers.
    pub fn get(&self, page: &str) -> Option<Reply> {
        match self.port {
            Some(port) => http::send(port, "GET", page, "", Body::none()).ok(),
            None => http::get_at(&self.pages(), page).ok(),
        }
    }

    /// A connection to the pages, at which nothing is said.
    pub fn silence(&self) -> std::net::TcpStream {
        std::net::TcpStream::connect(("127.0.0.1", self.port.expect("a node on the loopback"))).unwrap()
    }

    fn pages(&self) -> PathBuf {
        self.place.folder("csi").join("pages.sock")
    }

    /// The mounts' page.
    pub fn mounts(&self) -> Vec<Value> {
        let reply = self.get("/mounts").expect("a page");
        let page: Value = serde_json::from_slice(&http::unchunked(&reply)).unwrap();
        page.as_array().unwrap().clone()
    }

    /// The value of a metric without labels.
    pub fn metric(&self, name: &str) -> u64 {
        let reply = self.get("/metrics").expect("a page");
        let text = String::from_utf8(http::unchunked(&reply)).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
        line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
    }

    /// A folder of a node's pods, whose parents are there.
    pub fn target(&self, name: &str) -> PathBuf {
        self.place.folder("pods").canonicalize().unwrap().join(name)
    }

    /// An empty folder to mount at.
    pub fn dir(&self, name: &str) -> PathBuf {
        let dir = self.target(name);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    /// Has the plane mount.
    pub fn mount(&self, reference: &str, dir: &Path) -> Ran {
        self.try_mount(reference, dir, &[]).ok()
    }

    /// The same, which may fail.
    pub fn try_mount(&self, reference: &str, dir: &Path, words: &[&str]) -> Ran {
        let mut command = self.place.command();
        command.args(["mount", reference, "--json"]).arg(dir).args(words);
        self.place.finish(command, Duration::from_secs(60))
    }

    /// Has the plane unmount.
    pub fn unmount(&self, dir: &Path) -> Ran {
        let mut command = self.place.command();
        command.arg("unmount").arg(dir);
        self.place.finish(command, Duration::from_secs(60))
    }

    /// What `list` says of the mount at `dir`.
    pub fn listed(&self, dir: &Path) -> Option<Value> {
        let list = self.place.run(["list", "--json"]).ok().json();
        let rows = list.as_array().unwrap().clone();
        rows.into_iter().find(|row| row["dir"].as_str().is_some_and(|at| Path::new(at) == dir))
    }

    /// The process that serves the mount at `dir`.
    pub fn server(&self, dir: &Path) -> Pid {
        let row = self.listed(dir).unwrap_or_else(|| panic!("{} is not listed", dir.display()));
        Pid::from_raw(row["pid"].as_i64().unwrap().try_into().unwrap())
    }

    /// Waits until a process has ended.
    pub fn await_end(pid: Pid) {
        wait::until("the process ends", SOON, || !is_running(pid));
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut plane) = self.plane.take() {
            let _already_gone = plane.kill();
            plane.wait().unwrap();
        }
    }
}
