//! A forward proxy on the loopback: `CONNECT`, plain requests, and SOCKS 5 at the same port.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// The proxy; listens until it is dropped.
pub struct ForwardProxy {
    shared: Arc<Shared>,
    port: u16,
    accepting: Option<JoinHandle<()>>,
}

struct Shared {
    /// What `Proxy-Authorization` must be.
    due: Option<&'static str>,
    asked: Mutex<Vec<String>>,
    closing: AtomicBool,
}

impl ForwardProxy {
    /// One for everybody.
    pub fn start() -> Self {
        Self::of(None)
    }

    /// One that wants `Proxy-Authorization: Basic` with this.
    pub fn guarded(due: &'static str) -> Self {
        Self::of(Some(due))
    }

    fn of(due: Option<&'static str>) -> Self {
        let shared = Arc::new(Shared { due, asked: Mutex::default(), closing: AtomicBool::new(false) });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (port, accepting) = (listener.local_addr().unwrap().port(), Arc::clone(&shared));
        let accepting = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if accepting.closing.load(Ordering::SeqCst) {
                    return;
                }
                let shared = Arc::clone(&accepting);
                // A connection that breaks is no matter of the proxy's.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Self { shared, port, accepting: Some(accepting) }
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The first line of each request so far, or `socks HOST:PORT`.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }
}

impl Drop for ForwardProxy {
    fn drop(&mut self) {
        self.shared.closing.store(true, Ordering::SeqCst);
        let _wakes_accept = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(accepting) = self.accepting.take() {
            accepting.join().unwrap();
        }
    }
}

impl Shared {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let first = byte(&mut client)?;
        if first == 5 {
            return self.socks(client);
        }
        let mut head = vec![first];
        while !head.ends_with(b"\r\n\r\n") {
            head.push(byte(&mut client)?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = head.lines().next().unwrap_or_default().to_owned();
        self.asked.lock().unwrap().push(line.clone());
        let brought = head.lines().find(|line| line.to_ascii_lowercase().starts_with("proxy-authorization:"));
        if self.due.is_some_and(|due| !brought.is_some_and(|line| line.ends_with(&format!("Basic {due}")))) {
            let refusal = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=p";
            return write!(client, "{refusal}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
        let target = line.split(' ').nth(1).unwrap_or_default();
        if line.starts_with("CONNECT ") {
            let upstream = TcpStream::connect(target)?;
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            return splice(client, upstream);
        }
        let host = target.trim_start_matches("http://").split('/').next().unwrap_or_default();
        let mut upstream = TcpStream::connect(host)?;
        // One request a connection: the next one may be for another host.
        let path = target.trim_start_matches("http://").trim_start_matches(host);
        let rest = head.split_once("\r\n").map_or("", |(_, rest)| rest);
        let method = line.split(' ').next().unwrap_or_default();
        write!(upstream, "{method} {path} HTTP/1.1\r\nConnection: close\r\n{rest}")?;
        splice(client, upstream)
    }

    /// RFC 1928, without authentication, for addresses (IPv4) and names.
    fn socks(&self, mut client: TcpStream) -> io::Result<()> {
        let mut methods = vec![0; usize::from(byte(&mut client)?)];
        client.read_exact(&mut methods)?;
        client.write_all(&[5, 0])?;
        let mut request = [0; 4];
        client.read_exact(&mut request)?;
        let host = match request[3] {
            1 => {
                let mut address = [0; 4];
                client.read_exact(&mut address)?;
                Ipv4Addr::from(address).to_string()
            }
            _ => {
                let mut name = vec![0; usize::from(byte(&mut client)?)];
                client.read_exact(&mut name)?;
                String::from_utf8_lossy(&name).into_owned()
            }
        };
        let mut port = [0; 2];
        client.read_exact(&mut port)?;
        let target = format!("{host}:{}", u16::from_be_bytes(port));
        self.asked.lock().unwrap().push(format!("socks {target}"));
        let upstream = TcpStream::connect(&target)?;
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
        splice(client, upstream)
    }
}

fn byte(stream: &mut TcpStream) -> io::Result<u8> {
    let mut one = [0];
    stream.read_exact(&mut one)?;
    Ok(one[0])
}

/// Passes bytes both ways until both sides have ended.
fn splice(client: TcpStream, upstream: TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (client.try_clone()?, upstream.try_clone()?);
    let up = std::thread::spawn(move || {
        // Either end may go first.
        let _ended = io::copy(&mut from, &mut to);
        let _gone = to.shutdown(Shutdown::Write);
    });
    let (mut from, mut to) = (upstream, client);
    let _ended = io::copy(&mut from, &mut to);
    let _gone = to.shutdown(Shutdown::Both);
    up.join().unwrap();
    Ok(())
}
