//! One connection to a host without TLS: a request goes, the head of its answer comes (RFC 9112), then bytes.

use std::io;
use std::net::SocketAddr;

use bytes::{Buf, BytesMut};
use nix::sys::socket::{setsockopt, sockopt};
use reqwest::StatusCode;
use reqwest::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::framing::{Framing, strange};

/// The longest head of an answer, and the most headers in it.
pub(super) const HEAD: usize = 64 << 10;
const HEADERS: usize = 100;
/// How much is read at once while the head has not ended: little, since what follows it is copied.
const HEAD_STEP: usize = 2 << 10;

/// A connection to one.
#[derive(Debug)]
pub(super) struct Line {
    socket: TcpStream,
    pub(super) peer: SocketAddr,
}

/// The head of an answer, and what of the body came with it.
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) framing: Framing,
    /// Whether another request may follow over the same connection.
    pub(super) keep: bool,
    pub(super) rest: BytesMut,
}

/// Why a request failed, and whether that was before anything was answered.
pub(super) struct Failure {
    pub(super) error: io::Error,
    pub(super) before_answer: bool,
}

impl Line {
    pub(super) async fn to(at: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(at).await?;
        // Without them requests are only slower, and a line that died is noticed later.
        let _ = socket.set_nodelay(true);
        let _ = setsockopt(&socket, sockopt::KeepAlive, &true);
        let _ = setsockopt(&socket, sockopt::TcpKeepIdle, &15);
        let _ = setsockopt(&socket, sockopt::TcpKeepInterval, &15);
        let _ = setsockopt(&socket, sockopt::TcpKeepCount, &3);
        let _ = setsockopt(&socket, sockopt::TcpUserTimeout, &30_000);
        Ok(Self { socket, peer: at })
    }

    /// Whether nothing has come, and it was not closed.
    pub(super) fn is_quiet(&self) -> bool {
        matches!(self.socket.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Sends a request and reads the head of its answer.
    pub(super) async fn ask(&mut self, request: &[u8]) -> Result<Head, Failure> {
        let sent = self.socket.write_all(request).await;
        sent.map_err(|error| Failure { error, before_answer: true })?;
        let mut came = BytesMut::new();
        loop {
            let read = self.read(&mut came, HEAD_STEP).await;
            if let Err(error) = read {
                return Err(Failure { error, before_answer: came.is_empty() });
            }
            let long = came.len() > HEAD;
            match Head::parse(&mut came) {
                Ok(Some(head)) => return Ok(head),
                Ok(None) if !long => {}
                Ok(None) => {
                    return Err(Failure { error: strange("a head without an end"), before_answer: false });
                }
                Err(error) => return Err(Failure { error, before_answer: false }),
            }
        }
    }

    /// At least one byte more.
    pub(super) async fn read(&self, into: &mut BytesMut, most: usize) -> io::Result<()> {
        let from = into.len();
        into.resize(from + most, 0);
        let read = self.fill(into.get_mut(from..).unwrap_or_default()).await;
        into.truncate(from + read.as_ref().map_or(0, |read| *read));
        read.map(drop)
    }

    /// What has come, at least one byte.
    pub(super) async fn fill(&self, room: &mut [u8]) -> io::Result<usize> {
        loop {
            self.socket.readable().await?;
            match self.socket.try_read(room) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

impl Head {
    /// The head at the start of what came, which it is taken from; `None` where it has not ended. Words before the answer
    /// (1xx) are passed over.
    fn parse(came: &mut BytesMut) -> io::Result<Option<Self>> {
        loop {
            let mut room = [httparse::EMPTY_HEADER; HEADERS];
            let mut answer = httparse::Response::new(&mut room);
            let end = match answer.parse(came) {
                Ok(httparse::Status::Complete(end)) => end,
                Ok(httparse::Status::Partial) => return Ok(None),
                Err(error) => return Err(strange(&format!("what came is no answer: {error}"))),
            };
            let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
            let is_new = answer.version == Some(1);
            let headers = collected(answer.headers);
            let (Some(status), Some(headers)) = (status, headers) else {
                return Err(strange("what came is no answer"));
            };
            came.advance(end);
            if status == StatusCode::SWITCHING_PROTOCOLS {
                return Err(strange("101 where nobody asked for another protocol"));
            }
            if !status.is_informational() {
                let framing = Framing::of(status, &headers)?;
                let says_close = headers.get_all(CONNECTION).iter().any(says_close);
                let keep = is_new && !says_close && framing != Framing::UntilClosed;
                return Ok(Some(Self { status, headers, framing, keep, rest: std::mem::take(came) }));
            }
        }
    }
}

fn collected(headers: &[httparse::Header<'_>]) -> Option<HeaderMap> {
    let mut all = HeaderMap::with_capacity(headers.len());
    for header in headers {
        let name = HeaderName::from_bytes(header.name.as_bytes()).ok()?;
        all.append(name, HeaderValue::from_bytes(header.value).ok()?);
    }
    Some(all)
}

fn says_close(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|words| words.split(',').any(|word| word.trim().eq_ignore_ascii_case("close")))
}
