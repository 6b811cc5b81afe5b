//! A network of its own for a thread, with nothing in it but loopback and a name server that fails when it is told to.
//!
//! The system's resolver asks the servers that `/etc/resolv.conf` names at port 53: in a network and a mount namespace of the
//! thread's own that is ours. Threads and programs that it starts are in them too. Needs root, as mounting does.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use tokio::net::UdpSocket;

/// What is wrong with the answer for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no such name (NXDOMAIN).
    Missing,
    /// The server cannot say (SERVFAIL).
    Failing,
    /// There is such a name, and it has no address.
    Nothing,
    /// Nothing comes.
    Silence,
    /// The right answer comes so much later.
    Slow(Duration),
    /// It has this address.
    Elsewhere(Ipv4Addr),
}

/// How long something is wrong.
#[derive(Clone, Copy, Debug)]
pub enum For {
    /// The next question.
    One,
    /// Every question.
    Ever,
    /// So long after the next question.
    Time(Duration),
}

/// A name server; every name that it knows is on loopback.
#[derive(Clone, Debug, Default)]
pub struct Names(Arc<Mutex<HashMap<String, Name>>>);

#[derive(Debug)]
struct Name {
    address: Ipv4Addr,
    trouble: Option<(Trouble, For)>,
    until: Option<Instant>,
    asked: usize,
}

/// Runs `work` in a thread with such a network, on a runtime of that thread's.
///
/// # Panics
/// Where `work` does, or the namespaces cannot be had.
pub fn alone<F: Future<Output = ()>>(work: impl FnOnce(Names) -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        enter();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let names = Names::default();
            let serving = tokio::spawn(names.clone().serve());
            work(names).await;
            serving.abort();
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Puts this thread into namespaces of its own.
fn enter() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
    let mut conf = tempfile::NamedTempFile::new().unwrap();
    let said = "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n";
    std::io::Write::write_all(&mut conf, said.as_bytes()).unwrap();
    mount(Some(conf.path()), Path::new("/etc/resolv.conf"), nothing, MsFlags::MS_BIND, nothing).unwrap();
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "no loopback");
}

impl Names {
    /// Makes `name` known, at this address.
    pub fn put(&self, name: &str, address: Ipv4Addr) {
        let known = Name { address, trouble: None, until: None, asked: 0 };
        self.0.lock().insert(name.to_owned(), known);
    }

    /// Answers questions for `name` with this trouble.
    pub fn trouble(&self, name: &str, trouble: Trouble, how_long: For) {
        self.change(name, |name| (name.trouble, name.until) = (Some((trouble, how_long)), None));
    }

    /// Answers as it should again.
    pub fn heal(&self, name: &str) {
        self.change(name, |name| name.trouble = None);
    }

    /// How often the address of `name` was asked for.
    pub fn asked(&self, name: &str) -> usize {
        self.0.lock()[name].asked
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Name)) {
        change(self.0.lock().get_mut(name).unwrap());
    }

    async fn serve(self) {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).await.unwrap());
        let mut question = [0; 512];
        loop {
            let (len, from) = socket.recv_from(&mut question).await.unwrap();
            if let Some((answer, wait)) = self.answer(&question[..len]) {
                tokio::spawn(send(socket.clone(), answer, wait, from));
            }
        }
    }

    /// The answer (RFC 1035 §4) and how long it takes; `None` where none comes.
    fn answer(&self, question: &[u8]) -> Option<(Vec<u8>, Duration)> {
        let (name, end) = asked(question);
        // Of two questions, for an IPv4 and an IPv6 address, the first is the one that counts.
        let four = question[end - 4..end - 2] == [0, 1];
        let mut names = self.0.lock();
        let known = names.get_mut(&name);
        let (address, trouble) = match known {
            Some(name) => {
                name.asked += usize::from(four);
                (Some(name.address), name.meets(four))
            }
            None => (None, Some(Trouble::Missing)),
        };
        let (code, address, wait) = match trouble {
            Some(Trouble::Silence) => return None,
            Some(Trouble::Missing) => (3, None, Duration::ZERO),
            Some(Trouble::Failing) => (2, None, Duration::ZERO),
            Some(Trouble::Nothing) => (0, None, Duration::ZERO),
            Some(Trouble::Slow(wait)) => (0, address, wait),
            Some(Trouble::Elsewhere(other)) => (0, Some(other), Duration::ZERO),
            None => (0, address, Duration::ZERO),
        };
        let address = address.filter(|_| four);
        // An answer, recursion wanted and had.
        let mut answer =
            [&question[..2], &[0x81, 0x80 | code, 0, 1, 0, u8::from(address.is_some()), 0, 0, 0, 0]].concat();
        answer.extend_from_slice(&question[12..end]);
        if let Some(address) = address {
            // The name of the question; A, IN, good for no time, four bytes.
            answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
            answer.extend_from_slice(&address.octets());
        }
        Some((answer, wait))
    }
}

impl Name {
    /// The trouble that a question meets; one for an IPv6 address (not `four`) uses nothing up.
    fn meets(&mut self, four: bool) -> Option<Trouble> {
        let (trouble, how_long) = self.trouble?;
        match how_long {
            For::One if four => self.trouble = None,
            For::Time(time) => {
                let until = *self.until.get_or_insert_with(|| Instant::now() + time);
                if Instant::now() >= until {
                    return None;
                }
            }
            For::One | For::Ever => {}
        }
        Some(trouble)
    }
}

async fn send(socket: Arc<UdpSocket>, answer: Vec<u8>, wait: Duration, to: SocketAddr) {
    tokio::time::sleep(wait).await;
    // Who asked may have gone.
    let _ = socket.send_to(&answer, to).await;
}

/// The name that is asked for, and where the question ends.
fn asked(question: &[u8]) -> (String, usize) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while question[at] != 0 {
        let end = at + 1 + usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..end]).to_lowercase());
        at = end;
    }
    (labels.join("."), at + 5)
}
