//! Debian's `nginx` on a port of the loopback, in a folder of its own: the proxies that stand before registries.
//!
//! One process, which can be killed and started again at its address. What it was asked is in its log.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use tempfile::TempDir;

use super::authority::Issued;
use super::{scratch, wait};

/// The server; killed when dropped.
pub struct Nginx {
    home: TempDir,
    port: u16,
    server: Option<Child>,
}

/// A port that is free now, given to nobody else in this process, and below those that the system gives to whoever asks for any.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = u16::try_from(std::process::id() % 10_000).unwrap();
    loop {
        let port = 10_000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}

/// The lines of a `server` that make it speak TLS with this certificate on `port`.
pub fn listen_with_tls(port: u16, issued: &Issued) -> String {
    let (certificate, key) = (issued.certificate.display(), issued.key.display());
    format!("listen 127.0.0.1:{port} ssl;\nssl_certificate {certificate};\nssl_certificate_key {key};\n")
}

/// The lines of a `location` that hand on to a server on the loopback.
pub fn hand_on_to(host: &str) -> String {
    format!("proxy_set_header Host $http_host;\nproxy_pass http://{host};\n")
}

impl Nginx {
    /// One that listens at `port`, as the `server` blocks of `servers` say.
    pub fn start(port: u16, servers: &str) -> Self {
        let mut nginx = Self { home: scratch::roomy(), port, server: None };
        nginx.change(servers);
        nginx
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A line for each request so far: method, path with query, status, and what it had of some headers.
    pub fn log(&self) -> Vec<String> {
        let log = fs::read_to_string(self.home.path().join("access.log")).unwrap_or_default();
        log.lines().map(str::to_owned).collect()
    }

    /// Ends it: connections break, new ones are refused.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _already_gone = server.kill();
            server.wait().unwrap();
        }
    }

    /// Starts it again after [`Nginx::kill`].
    pub fn restart(&mut self) {
        let home = self.home.path();
        let output = File::create(home.join("output")).unwrap();
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(home)
            .arg("-c")
            .arg(home.join("nginx.conf"))
            .arg("-e")
            .arg(home.join("error.log"));
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let server = command.spawn();
        let mut server =
            server.unwrap_or_else(|error| panic!("nginx: {error}; run tools/test, which installs it"));
        let answers = || TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok();
        wait::eventually(Duration::from_secs(30), || server.try_wait().unwrap().is_some() || answers());
        let said = || fs::read_to_string(home.join("output")).unwrap_or_default();
        assert!(server.try_wait().unwrap().is_none(), "nginx does not start: {}", said());
        self.server = Some(server);
    }

    /// Starts it, or starts it anew, with other `server` blocks.
    pub fn change(&mut self, servers: &str) {
        self.kill();
        let home = self.home.path().display();
        let folders = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {home}/{name};\n"))
            .concat();
        let config = format!(
            "daemon off;\nmaster_process off;\nuser root;\npid {home}/pid;\nerror_log {home}/error.log;\n\
             events {{ worker_connections 512; }}\n\
             http {{\n{folders}\
             log_format told '$request_method $request_uri $status range=$http_range auth=$http_authorization \
             registry=$http_x_dragonfly_registry';\n\
             access_log {home}/access.log told;\n\
             client_max_body_size 0;\nproxy_http_version 1.1;\nproxy_request_buffering off;\n{servers}\n}}\n"
        );
        fs::write(self.home.path().join("nginx.conf"), config).unwrap();
        self.restart();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.kill();
    }
}
