//! A real registry on the loopback: Debian's `docker-registry`, in a folder of its own, behind a [`Relay`].
//!
//! Readers are given the relay's address, pushes go past it: what the relay counts is what was read.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use super::http::{self, Body};
use super::pack::{Artifact, Blob, Content, hex};
use super::relay::{Relay, Weather};
use super::{scratch, wait};

/// The password of `reader`, the one user of a registry that asks for one; recognisable in a log.
pub const PASSWORD: &str = "open-sesame";
/// User and password as `htpasswd -B` writes them.
const HTPASSWD: &str = "reader:$2y$05$eIsMW.Z36GaxmEwRayDr3eqRJN41Ahg8U.xYpki3QfYs/ny4HkovG\n";
/// User and password as a Basic header (and docker's `config.json`) has them.
pub const BASIC: &str = "cmVhZGVyOm9wZW4tc2VzYW1l";

/// Who may read, and what.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Door {
    Open,
    Password,
    /// Who brings a token, as these lines of the configuration say.
    Tokens(String),
    /// What another registry has, fetched from there when it is asked for.
    Through(String),
}

/// The registry and the line to it; both end when it is dropped.
pub struct Registry {
    home: TempDir,
    door: Door,
    server: Option<Child>,
    port: u16,
    relay: Relay,
}

impl Registry {
    /// An empty registry that anybody may read and write.
    pub fn start() -> Self {
        Self::over(scratch::roomy(), Door::Open)
    }

    /// An empty registry that asks for `reader` and [`PASSWORD`].
    pub fn with_password() -> Self {
        Self::over(scratch::roomy(), Door::Password)
    }

    /// A registry that has what lies in `storage`, another registry's. Blobs are linked, not copied: nothing is ever
    /// written into one.
    pub fn like(storage: &Path) -> Self {
        Self::over(linked(storage), Door::Open)
    }

    /// The same for those who bring a token, as `config` says, lines of the registry's configuration.
    pub fn with_tokens(storage: &Path, config: String) -> Self {
        Self::over(linked(storage), Door::Tokens(config))
    }

    /// An empty pull-through cache of the registry at `remote`, as `127.0.0.1:PORT`.
    pub fn through(remote: &str) -> Self {
        Self::over(scratch::roomy(), Door::Through(remote.to_owned()))
    }

    fn over(home: TempDir, door: Door) -> Self {
        fs::create_dir_all(home.path().join("storage")).unwrap();
        fs::write(home.path().join("htpasswd"), HTPASSWD).unwrap();
        let (server, port) = serve(home.path(), &door);
        Self { home, door, server: Some(server), port, relay: Relay::start(port) }
    }

    /// What goes before `/` in a reference, and is read through the relay.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.relay.port())
    }

    /// What goes before `/` in a reference that is pushed to past the relay, which counts what passes it.
    pub fn direct(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// How many uploads to a repository are under way, or were left lying. Of one that was cancelled this registry keeps
    /// a folder without a beginning.
    pub fn uploads(&self, repository: &str) -> usize {
        let folder = self.storage().join("docker/registry/v2/repositories").join(repository).join("_uploads");
        let uploads = fs::read_dir(folder).into_iter().flatten().flatten();
        uploads.filter(|upload| upload.path().join("startedat").exists()).count()
    }

    /// `HOST/what`.
    pub fn reference(&self, what: &str) -> String {
        format!("{}/{what}", self.host())
    }

    /// Where the registry keeps what it has.
    pub fn storage(&self) -> PathBuf {
        self.home.path().join("storage")
    }

    /// Bytes that readers have been sent so far.
    pub fn fetched(&self) -> u64 {
        self.relay.fetched()
    }

    /// [`Registry::fetched`], once it has stopped growing.
    pub fn settled(&self) -> u64 {
        wait::settled("the registry's counter", || self.fetched())
    }

    /// The heads of all requests of readers so far.
    pub fn requests(&self) -> Vec<String> {
        self.relay.requests()
    }

    /// Changes the line to the readers.
    pub fn weather(&self, weather: Weather) {
        self.relay.set(weather);
    }

    /// Ends the registry: connections break, new ones are refused.
    pub fn stop(&mut self) {
        self.relay.close();
        self.end_server();
    }

    /// Starts it again, at the same address.
    pub fn restart(&mut self) {
        let (server, port) = serve(self.home.path(), &self.door);
        (self.server, self.port) = (Some(server), port);
        self.relay.open(port);
    }

    fn end_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _already_gone = server.kill();
            server.wait().unwrap();
        }
    }

    /// Pushes an artifact, and gives the manifest's digest.
    pub fn push(&self, repository: &str, tag: &str, artifact: &Artifact) -> String {
        for blob in &artifact.blobs {
            self.push_blob(repository, blob);
        }
        let headers = format!("Content-Type: {}\r\n", artifact.media_type);
        let target = format!("/v2/{repository}/manifests/{tag}");
        let reply = self.send("PUT", &target, &headers, Body::bytes(&artifact.manifest));
        assert_eq!(reply.status, 201, "manifest refused: {}", String::from_utf8_lossy(&reply.body));
        artifact.digest()
    }

    fn push_blob(&self, repository: &str, blob: &Blob) {
        let there = format!("/v2/{repository}/blobs/{}", blob.digest);
        if self.send("HEAD", &there, "", Body::none()).status == 200 {
            return;
        }
        let started = self.send("POST", &format!("/v2/{repository}/blobs/uploads/"), "", Body::none());
        let place = started.header("Location").expect("an upload has a place");
        let mark = if place.contains('?') { '&' } else { '?' };
        let target = format!("{place}{mark}digest={}", blob.digest);
        let body = match &blob.content {
            Content::Bytes(bytes) => Body::bytes(bytes),
            Content::Disk(path) => Body::file(path),
            Content::Made(_) => unreachable!("it is in the library's own registry alone"),
        };
        let reply = self.send("PUT", &target, "Content-Type: application/octet-stream\r\n", body);
        assert_eq!(reply.status, 201, "blob refused: {}", String::from_utf8_lossy(&reply.body));
    }

    /// The configuration file, for the registry's own commands.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("config.yml")
    }

    /// The digests of all blobs it keeps, manifests among them, sorted.
    pub fn blobs(&self) -> Vec<String> {
        let folders =
            fs::read_dir(self.storage().join("docker/registry/v2/blobs/sha256")).into_iter().flatten();
        let blobs =
            folders.flatten().flat_map(|folder| fs::read_dir(folder.path()).into_iter().flatten().flatten());
        let whole = blobs.filter(|blob| blob.path().join("data").is_file());
        let mut digests: Vec<_> =
            whole.map(|blob| format!("sha256:{}", blob.file_name().to_string_lossy())).collect();
        digests.sort();
        digests
    }

    fn send(&self, method: &str, target: &str, headers: &str, body: Body<'_>) -> http::Reply {
        let headers = format!("Authorization: Basic {BASIC}\r\n{headers}");
        http::send(self.port, method, target, &headers, body).unwrap()
    }

    /// Flips all bits of the byte at `offset` of a stored blob; the blob's digest is no longer its own.
    pub fn corrupt(&self, digest: &str, offset: u64) {
        let hex = hex(digest);
        let path = self.storage().join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let copy = path.with_extension("flipped");
        fs::copy(&path, &copy).unwrap();
        flip(&copy, offset);
        fs::rename(&copy, &path).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.end_server();
    }
}

/// A folder with the same storage.
fn linked(storage: &Path) -> TempDir {
    let home = scratch::roomy();
    let linked =
        Command::new("cp").arg("-al").arg(storage).arg(home.path().join("storage")).status().unwrap();
    assert!(linked.success(), "cp -al {}", storage.display());
    home
}

/// Flips all bits of one byte of a file, in place.
pub fn flip(path: &Path, offset: u64) {
    use std::os::unix::fs::FileExt;
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[!byte[0]], offset).unwrap();
}

/// Starts a server on a free port and waits until it answers. The port is free when it is looked for; should somebody take it
/// before the server does, another is tried.
fn serve(home: &Path, door: &Door) -> (Child, u16) {
    for _ in 0..5 {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut server = spawn(home, port, door);
        let answers = || {
            http::send(port, "GET", "/v2/", "", Body::none())
                .is_ok_and(|reply| [200, 401].contains(&reply.status))
        };
        wait::eventually(Duration::from_secs(20), || server.try_wait().unwrap().is_some() || answers());
        if server.try_wait().unwrap().is_none() && answers() {
            return (server, port);
        }
        let _already_gone = server.kill();
        server.wait().unwrap();
    }
    panic!("docker-registry does not start: {}", fs::read_to_string(home.join("log")).unwrap_or_default());
}

fn spawn(home: &Path, port: u16, door: &Door) -> Child {
    let auth = match door {
        Door::Open => String::new(),
        Door::Password => format!("auth: {{htpasswd: {{realm: test, path: {}/htpasswd}}}}\n", home.display()),
        Door::Tokens(config) => config.clone(),
        Door::Through(remote) => format!("proxy: {{remoteurl: \"http://{remote}\"}}\n"),
    };
    let config = format!(
        "version: 0.1\n\
         log: {{level: warn, accesslog: {{disabled: true}}}}\n\
         storage:\n  cache: {{blobdescriptor: inmemory}}\n  filesystem: {{rootdirectory: {}/storage, maxthreads: 100}}\n  delete: {{enabled: true}}\n\
         http: {{addr: \"127.0.0.1:{port}\", relativeurls: true, secret: loopback}}\n{auth}",
        home.display()
    );
    fs::write(home.join("config.yml"), config).unwrap();
    let log = File::create(home.join("log")).unwrap();
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(home.join("config.yml")).env("OTEL_TRACES_EXPORTER", "none");
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
    command
        .spawn()
        .unwrap_or_else(|error| panic!("docker-registry: {error}; run tools/test, which installs it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::support::pack::{self, Dialect, File as ModelFile, Packing};

    fn pushed(registry: &Registry) -> Artifact {
        let files = [ModelFile::new("a.bin", vec![7; 300_000])];
        let artifact = pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
        registry.push("acme/llm", "v1", &artifact);
        artifact
    }

    fn read(registry: &Registry, digest: &str) -> std::io::Result<http::Reply> {
        let target = format!("/v2/acme/llm/blobs/{digest}");
        http::send(registry.relay.port(), "GET", &target, "", Body::none())
    }

    #[test]
    fn what_is_pushed_can_be_read_through_the_relay_and_is_counted() {
        let registry = Registry::start();
        let artifact = pushed(&registry);
        let before = registry.fetched();
        let reply = read(&registry, &artifact.blobs[0].digest).unwrap();
        assert_eq!((reply.status, reply.body), (200, vec![7; 300_000]));
        assert!((300_000..301_000).contains(&(registry.fetched() - before)));
        assert_eq!(registry.requests().len(), 1);
    }

    #[test]
    fn a_corrupted_blob_differs_in_one_byte() {
        let registry = Registry::start();
        let artifact = pushed(&registry);
        registry.corrupt(&artifact.blobs[0].digest, 1000);
        let body = read(&registry, &artifact.blobs[0].digest).unwrap().body;
        assert_eq!(body.iter().position(|byte| *byte != 7), Some(1000));
        assert_eq!(body.iter().filter(|byte| **byte != 7).count(), 1);
    }

    #[test]
    fn a_stopped_registry_refuses_and_comes_back_at_the_same_address() {
        let mut registry = Registry::start();
        let artifact = pushed(&registry);
        let host = registry.host();
        registry.stop();
        assert!(read(&registry, &artifact.blobs[0].digest).is_err());
        registry.restart();
        assert_eq!(registry.host(), host);
        assert_eq!(read(&registry, &artifact.blobs[0].digest).unwrap().status, 200);
    }

    #[test]
    fn a_registry_like_another_has_its_blobs_and_keeps_its_wounds_to_itself() {
        let registry = Registry::start();
        let artifact = pushed(&registry);
        let other = Registry::like(&registry.storage());
        other.corrupt(&artifact.blobs[0].digest, 0);
        assert_eq!(read(&other, &artifact.blobs[0].digest).unwrap().body[0], !7);
        assert_eq!(read(&registry, &artifact.blobs[0].digest).unwrap().body[0], 7);
    }

    #[test]
    fn a_registry_with_a_password_refuses_without_it() {
        let registry = Registry::with_password();
        let artifact = pushed(&registry);
        assert_eq!(read(&registry, &artifact.blobs[0].digest).unwrap().status, 401);
    }

    #[test]
    fn the_line_can_be_cut_stalled_and_slowed() {
        let registry = Registry::start();
        let artifact = pushed(&registry);
        let digest = &artifact.blobs[0].digest;
        registry.weather(Weather::Cut(100_000));
        assert!(read(&registry, digest).unwrap().body.len() < 100_000);
        registry.weather(Weather::Limit(1_000_000));
        let start = std::time::Instant::now();
        assert_eq!(read(&registry, digest).unwrap().body.len(), 300_000);
        assert!(start.elapsed() > Duration::from_millis(200));
        registry.weather(Weather::StallOf(digest.clone()));
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| read(&registry, digest).unwrap().body.len());
            wait::until("the request to arrive", Duration::from_secs(5), || registry.requests().len() == 3);
            assert!(!wait::eventually(Duration::from_millis(300), || reader.is_finished()));
            registry.weather(Weather::Clear);
            assert_eq!(reader.join().unwrap(), 300_000);
        });
    }
}
