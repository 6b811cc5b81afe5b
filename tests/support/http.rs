//! The little HTTP/1.1 that pushing needs: one request, one connection.
//!
//! Not the product's client, on purpose: what the tests put into a registry must not pass through what they test.

use std::fs::File;
use std::io::{self, Cursor, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A request's body and its length in bytes.
pub struct Body<'a> {
    length: u64,
    bytes: Box<dyn Read + 'a>,
}

impl<'a> Body<'a> {
    /// No body.
    pub fn none() -> Self {
        Self::bytes(&[])
    }

    /// These bytes.
    pub fn bytes(bytes: &'a [u8]) -> Self {
        Self { length: bytes.len() as u64, bytes: Box::new(Cursor::new(bytes)) }
    }

    /// The whole of a file.
    pub fn file(path: &Path) -> Self {
        let file = File::open(path).unwrap();
        Self { length: file.metadata().unwrap().len(), bytes: Box::new(file) }
    }
}

/// Status and headers of an answer, and its body as it came (not unchunked).
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Reply {
    /// The first value of a header, by any case of its name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

/// Sends one request to a port of the loopback and reads the whole answer.
///
/// # Errors
/// What the connection says; an answer that is no HTTP is `InvalidData`.
pub fn send(port: u16, method: &str, target: &str, headers: &str, body: Body<'_>) -> io::Result<Reply> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    talk(stream, &format!("127.0.0.1:{port}"), method, target, headers, body)
}

/// Asks for a page at a socket.
///
/// # Errors
/// As [`send`].
pub fn get_at(socket: &Path, target: &str) -> io::Result<Reply> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    talk(stream, "localhost", "GET", target, "", Body::none())
}

/// Sends one request to a socket and reads the whole answer.
///
/// # Errors
/// As [`send`].
pub fn send_at(socket: &Path, method: &str, target: &str, body: Body<'_>) -> io::Result<Reply> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    talk(stream, "unix", method, target, "Content-Type: application/json\r\n", body)
}

fn talk(
    mut stream: impl Read + Write,
    host: &str,
    method: &str,
    target: &str,
    headers: &str,
    mut body: Body<'_>,
) -> io::Result<Reply> {
    let head = format!(
        "{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.length
    );
    stream.write_all(head.as_bytes())?;
    io::copy(&mut body.bytes, &mut stream)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    parse(answer)
}

fn parse(answer: Vec<u8>) -> io::Result<Reply> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "no HTTP answer");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(bad)?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    Ok(Reply { status, head, body: answer[end + 4..].to_vec() })
}

/// A port that nobody listens at, for a server that is told where to. Free when it is looked for.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}

/// The body of an answer, put together where it came in chunks.
pub fn unchunked(reply: &Reply) -> Vec<u8> {
    if !reply.header("Transfer-Encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        return reply.body.clone();
    }
    let (mut whole, mut rest) = (Vec::new(), reply.body.as_slice());
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        whole.extend_from_slice(&rest[end + 2..end + 2 + size]);
        rest = &rest[end + 4 + size..];
    }
    whole
}
