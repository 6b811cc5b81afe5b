//! A relay in front of the registry that counts what passes and can spoil the line.
//!
//! Not a proxy: it reads the heads of requests, to know and to hold them, and passes every byte on as it is. A request's
//! body is passed on by its `Content-Length`; one that is chunked is not understood.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What the line is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weather {
    /// Every byte passes at once.
    Clear,
    /// Every request is held this long.
    Delay(Duration),
    /// All answers together pass at this many bytes a second.
    Limit(u64),
    /// Every connection breaks after this many bytes of answers.
    Cut(u64),
    /// Nothing passes, and nothing is closed.
    Stall,
    /// Requests whose first line contains this do not pass; others do.
    StallOf(String),
}

/// The relay: listens on a port of the loopback until it is closed or dropped.
pub struct Relay {
    line: Arc<Line>,
    port: u16,
    accepting: Option<JoinHandle<()>>,
}

struct Line {
    upstream: AtomicU64,
    fetched: AtomicU64,
    requests: Mutex<Vec<String>>,
    weather: Mutex<Weather>,
    changed: Condvar,
    open: Mutex<Vec<TcpStream>>,
    closing: AtomicBool,
    free_at: Mutex<Instant>,
}

impl Relay {
    /// Listens on a free port and passes everything on to `upstream`, a port of the loopback.
    pub fn start(upstream: u16) -> Self {
        let line = Line {
            upstream: AtomicU64::new(u64::from(upstream)),
            fetched: AtomicU64::new(0),
            requests: Mutex::default(),
            weather: Mutex::new(Weather::Clear),
            changed: Condvar::new(),
            open: Mutex::default(),
            closing: AtomicBool::new(false),
            free_at: Mutex::new(Instant::now()),
        };
        let mut relay = Self { line: Arc::new(line), port: 0, accepting: None };
        relay.open(upstream);
        relay
    }

    /// The port it listens on; the same after it was closed and opened again.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Bytes of answers that passed so far, heads included.
    pub fn fetched(&self) -> u64 {
        self.line.fetched.load(Ordering::SeqCst)
    }

    /// The head of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.line.requests.lock().unwrap().clone()
    }

    /// Changes the weather, also for what is under way.
    pub fn set(&self, weather: Weather) {
        *self.line.weather.lock().unwrap() = weather;
        self.line.changed.notify_all();
    }

    /// Stops listening and breaks every connection: from now on connections are refused.
    pub fn close(&mut self) {
        let Some(accepting) = self.accepting.take() else { return };
        self.line.closing.store(true, Ordering::SeqCst);
        self.line.changed.notify_all();
        let _wakes_accept = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        accepting.join().unwrap();
        for stream in self.line.open.lock().unwrap().drain(..) {
            let _already_closed = stream.shutdown(Shutdown::Both);
        }
    }

    /// Listens again after [`Relay::close`].
    pub fn open(&mut self, upstream: u16) {
        self.line.upstream.store(u64::from(upstream), Ordering::SeqCst);
        self.line.closing.store(false, Ordering::SeqCst);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        self.port = listener.local_addr().unwrap().port();
        let line = Arc::clone(&self.line);
        self.accepting = Some(std::thread::spawn(move || accept(&listener, &line)));
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.close();
    }
}

fn accept(listener: &TcpListener, line: &Arc<Line>) {
    for client in listener.incoming().flatten() {
        if line.closing.load(Ordering::SeqCst) {
            return;
        }
        let line = Arc::clone(line);
        // Ends when either side closes, at the latest when the relay does.
        std::thread::spawn(move || line.serve(client));
    }
}

/// The length of the body that follows a request's head; 0 where there is none.
fn content_length(head: &[u8]) -> usize {
    let head = String::from_utf8_lossy(head).to_ascii_lowercase();
    let value = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    value.map_or(0, |value| value.trim().parse().unwrap())
}

impl Line {
    fn serve(self: Arc<Self>, client: TcpStream) -> Option<()> {
        let upstream = u16::try_from(self.upstream.load(Ordering::SeqCst)).ok()?;
        let server = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, upstream))).ok()?;
        client.set_nodelay(true).ok()?;
        server.set_nodelay(true).ok()?;
        let (from_client, to_server) = (client.try_clone().ok()?, server.try_clone().ok()?);
        self.open.lock().unwrap().extend([client.try_clone().ok()?, server.try_clone().ok()?]);
        if self.closing.load(Ordering::SeqCst) {
            return None;
        }
        let line = Arc::clone(&self);
        let requests = std::thread::spawn(move || line.pass_requests(from_client, to_server));
        self.pass_answers(&server, &client);
        let _already_closed = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        requests.join().ok()
    }

    fn pass_requests(&self, mut from: TcpStream, mut to: TcpStream) {
        let (mut pending, mut part, mut body) = (Vec::new(), [0; 64 << 10], 0);
        while let Ok(count @ 1..) = from.read(&mut part) {
            pending.extend_from_slice(&part[..count]);
            loop {
                let of_body: Vec<u8> = pending.drain(..body.min(pending.len())).collect();
                body -= of_body.len();
                if to.write_all(&of_body).is_err() {
                    return;
                }
                let end = pending.windows(4).position(|four| four == b"\r\n\r\n").filter(|_| body == 0);
                let Some(end) = end else { break };
                let head: Vec<u8> = pending.drain(..end + 4).collect();
                if !self.admit(&head) || to.write_all(&head).is_err() {
                    return;
                }
                body = content_length(&head);
            }
        }
        let _already_closed = to.shutdown(Shutdown::Write);
    }

    /// Records a request and holds it as the weather says; `false` when the relay closed meanwhile.
    fn admit(&self, head: &[u8]) -> bool {
        let head = String::from_utf8_lossy(head).into_owned();
        let first = head.lines().next().unwrap_or_default().to_owned();
        self.requests.lock().unwrap().push(head);
        let delay = match &*self.weather.lock().unwrap() {
            Weather::Delay(delay) => *delay,
            _ => Duration::ZERO,
        };
        std::thread::sleep(delay);
        self.wait_while(|weather| match weather {
            Weather::Stall => true,
            Weather::StallOf(part) => first.contains(part.as_str()),
            _ => false,
        })
    }

    fn pass_answers(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let (mut part, mut passed) = (vec![0; 64 << 10], 0_u64);
        while let Ok(count @ 1..) = from.read(&mut part) {
            if !self.wait_while(|weather| *weather == Weather::Stall) {
                return;
            }
            self.pace(count as u64);
            let allowed = match *self.weather.lock().unwrap() {
                Weather::Cut(limit) => limit.saturating_sub(passed).min(count as u64),
                _ => count as u64,
            };
            if to.write_all(&part[..allowed as usize]).is_err() {
                return;
            }
            passed += allowed;
            self.fetched.fetch_add(allowed, Ordering::SeqCst);
            if allowed < count as u64 {
                return;
            }
        }
    }

    /// Takes the time that `count` bytes take on the limited line, which all connections share.
    fn pace(&self, count: u64) {
        let Weather::Limit(rate) = *self.weather.lock().unwrap() else { return };
        let until = {
            let mut free_at = self.free_at.lock().unwrap();
            let took = Duration::from_secs_f64(count as f64 / rate as f64);
            *free_at = (*free_at).max(Instant::now()) + took;
            *free_at
        };
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }

    fn wait_while(&self, holds: impl Fn(&Weather) -> bool) -> bool {
        let mut weather = self.weather.lock().unwrap();
        while holds(&weather) && !self.closing.load(Ordering::SeqCst) {
            weather = self.changed.wait_timeout(weather, Duration::from_millis(100)).unwrap().0;
        }
        !self.closing.load(Ordering::SeqCst)
    }
}
