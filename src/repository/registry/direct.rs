//! The request that moves the bytes, without a client in between: `GET` of a range from a host without TLS and without a
//! proxy. The body goes from the socket into the buffers that readers are given, aligned as the store writes them.
//!
//! An HTTP client reads into memory of its own, from which every byte is copied once more; on a fast line that is an eighth
//! of all that a read costs. This is HTTP/1.1 (RFC 9112) as far as an answer to `GET` needs it; how its body is framed says
//! `framing`.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use reqwest::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, TE, TRANSFER_ENCODING, UPGRADE,
};
use reqwest::{Response, ResponseBuilderExt};
use tokio::time::timeout;
use url::{Host, Url};

use super::framing::{Framing, Step};
use super::line::Line;
use super::reach::{self, Reach};
use super::{IDLE_LINES, IDLE_TIME, wire};
use crate::buffer::{Pool, SIZE};
use crate::error::{Error, Kind, Result};

/// What says how this connection is used, whatever a configuration says.
const OURS: [HeaderName; 5] = [CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE, TE];
/// How long a connection to one of a host's addresses may take before the next one is tried beside it (RFC 8305 §5).
const STAGGER: Duration = Duration::from_millis(300);
/// How much is read at once of a body that is not framed by its length.
const STEP: usize = 64 << 10;
/// What has come of a buffer is given after so long, full or not, so that a slow line is seen to get on.
const LINGER: Duration = Duration::from_millis(200);
/// How often is looked after what is idle.
const TIDY: Duration = Duration::from_secs(5);

/// Connections of one registry to hosts without TLS.
#[derive(Clone, Debug)]
pub(super) struct Direct(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    reach: Arc<Reach>,
    connect_timeout: Duration,
    idle: Mutex<Idle>,
    pool: Pool,
}

/// Connections that wait to be used again.
#[derive(Debug, Default)]
struct Idle {
    lines: HashMap<Place, Vec<(Instant, Line)>>,
    /// Whether a task looks after them.
    is_swept: bool,
}

/// The connections of a place that go with one that is given up before it has answered: what it waited for will not come on
/// those beside it either.
struct Suspects<'a> {
    direct: &'a Direct,
    place: Option<&'a Place>,
}

impl Drop for Suspects<'_> {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.direct.0.idle.lock().lines.remove(place);
        }
    }
}

/// Closes what nobody has used for long, until there is none, and gives back the memory that is not used meanwhile.
async fn sweep(inner: Weak<Inner>) {
    loop {
        tokio::time::sleep(TIDY).await;
        let Some(inner) = inner.upgrade() else { return };
        inner.pool.settle();
        let mut idle = inner.idle.lock();
        idle.lines.retain(|_, lines| {
            lines.retain(|(since, line)| since.elapsed() < IDLE_TIME && line.is_quiet());
            !lines.is_empty()
        });
        if idle.lines.is_empty() {
            idle.is_swept = false;
            inner.pool.release();
            return;
        }
    }
}

/// A host and its port.
type Place = (String, u16);

/// A body on its way.
struct Body {
    direct: Direct,
    place: Place,
    line: Line,
    /// What has come and was not given yet.
    rest: BytesMut,
    at: u64,
    framing: Framing,
    keep: bool,
}

impl Direct {
    /// None yet.
    pub(super) fn new(reach: &Arc<Reach>, connect_timeout: Duration) -> Self {
        let reach = Arc::clone(reach);
        Self(Arc::new(Inner { reach, connect_timeout, idle: Mutex::default(), pool: Pool::default() }))
    }

    /// Asks `url`, which is `http`, with these headers, and waits for the answer's head; with it, who answered.
    ///
    /// # Errors
    /// `Unreachable` where there is no connection, `Protocol` where the host is out of reach, `Broken` where the
    /// connection fails or what comes is no answer.
    pub(super) async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<(Response, SocketAddr)> {
        self.tidy();
        let request = request(url, headers)?;
        let place = place(url)?;
        let (line, head) = loop {
            let (mut line, used) = match self.idle(&place) {
                Some(line) => (line, true),
                None => (self.connect(url, &place).await?, false),
            };
            let mut suspects = Suspects { direct: self, place: used.then_some(&place) };
            let asked = line.ask(&request).await;
            suspects.place = None;
            match asked {
                Ok(head) => break (line, head),
                // It was closed while nobody looked: nothing of an answer had come.
                Err(failure) if used && failure.before_answer => {}
                Err(failure) => return Err(broken(&failure.error)),
            }
        };
        let peer = line.peer;
        let (rest, framing, keep) = (head.rest, head.framing, head.keep);
        let body = Body { direct: self.clone(), place, line, rest, at: 0, framing, keep };
        let pieces = stream::try_unfold(body, Body::next);
        let mut answer = http::Response::builder().status(head.status).url(url.clone());
        if let Some(into) = answer.headers_mut() {
            *into = head.headers;
        }
        let answer = answer.body(reqwest::Body::wrap_stream(pieces));
        let answer =
            answer.map_err(|error| Error::from_source(Kind::Protocol, "an answer that is none", error))?;
        Ok((answer.into(), peer))
    }

    /// Begins to make `count` connections to the host of `url`, for requests that come in a moment. One that can't be made is left
    /// to these.
    pub(super) fn prepare(&self, url: &Url, count: usize) {
        let Ok(place) = place(url) else { return };
        for _ in 0..count {
            let (direct, url, place) = (self.clone(), url.clone(), place.clone());
            tokio::spawn(async move {
                if let Ok(line) = direct.connect(&url, &place).await {
                    direct.keep(place, line);
                }
            });
        }
    }

    /// A connection that waits and is not closed.
    fn idle(&self, place: &Place) -> Option<Line> {
        let mut idle = self.0.idle.lock();
        let lines = idle.lines.get_mut(place)?;
        while let Some((since, line)) = lines.pop() {
            if since.elapsed() < IDLE_TIME && line.is_quiet() {
                return Some(line);
            }
        }
        None
    }

    fn keep(&self, place: Place, line: Line) {
        let mut idle = self.0.idle.lock();
        let lines = idle.lines.entry(place).or_default();
        if lines.len() < IDLE_LINES {
            lines.push((Instant::now(), line));
        }
        drop(idle);
        self.tidy();
    }

    /// Sees to it that what becomes idle is looked after.
    fn tidy(&self) {
        if !std::mem::replace(&mut self.0.idle.lock().is_swept, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0)));
        }
    }

    /// To the first of the host's addresses that answers; a dead one holds up the next for [`STAGGER`] at most.
    async fn connect(&self, url: &Url, place: &Place) -> Result<Line> {
        let no =
            |error: &dyn std::fmt::Display| Error::new(Kind::Unreachable, format!("no connection: {error}"));
        let connecting = async {
            let mut addresses = self.addresses(url, place).await?.into_iter();
            let (mut trying, mut last) =
                (FuturesUnordered::new(), io::Error::other("the name has no address"));
            loop {
                if let Some(at) = addresses.next() {
                    trying.push(Line::to(at));
                }
                let more = addresses.len() > 0;
                let connected = match more {
                    true => timeout(STAGGER, trying.next()).await,
                    false => Ok(trying.next().await),
                };
                match connected {
                    Ok(Some(Ok(line))) => return Ok(line),
                    Ok(Some(Err(error))) => last = error,
                    Ok(None) if !more => return Err(no(&last)),
                    Ok(None) | Err(_) => {}
                }
            }
        };
        match timeout(self.0.connect_timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(no(&format!("none within {} s", self.0.connect_timeout.as_secs_f32()))),
        }
    }

    async fn addresses(&self, url: &Url, (name, port): &Place) -> Result<Vec<SocketAddr>> {
        match url.host() {
            Some(Host::Ipv4(address)) => Ok(vec![(address, *port).into()]),
            Some(Host::Ipv6(address)) => Ok(vec![(address, *port).into()]),
            _ => reach::look_up(&self.0.reach, name, *port).await.map_err(|why| wire::unreached(&*why)),
        }
    }
}

impl Body {
    /// The next bytes.
    async fn next(mut self) -> io::Result<Option<(Bytes, Self)>> {
        let piece = match &mut self.framing {
            Framing::Length(0) => None,
            Framing::Length(left) => {
                let left = *left;
                let piece = self.buffer(left).await?;
                self.framing = Framing::Length(left.saturating_sub(piece.len() as u64));
                Some(piece)
            }
            Framing::Chunked(chunked) => loop {
                match chunked.step(&mut self.rest)? {
                    Step::Bytes(bytes) => break Some(bytes),
                    Step::Ended => break None,
                    Step::More => self.line.read(&mut self.rest, STEP).await?,
                }
            },
            Framing::UntilClosed => {
                let read = match self.rest.is_empty() {
                    true => self.line.read(&mut self.rest, STEP).await,
                    false => Ok(()),
                };
                match read {
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => None,
                    read => read.map(|()| Some(self.rest.split().freeze()))?,
                }
            }
        };
        if let Some(piece) = piece {
            return Ok(Some((piece, self)));
        }
        if self.keep && self.rest.is_empty() {
            self.direct.keep(self.place, self.line);
        }
        Ok(None)
    }

    /// Bytes in a buffer of their own, of which the next ones begin where the body's next MiB does.
    async fn buffer(&mut self, left: u64) -> io::Result<Bytes> {
        let within = usize::try_from(self.at % SIZE as u64).unwrap_or(0);
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(SIZE.saturating_sub(within));
        let mut filling = self.direct.0.pool.take(most);
        let came = self.rest.split_to(self.rest.len().min(most));
        filling.push(&came);
        let mut since = (!filling.is_empty()).then(Instant::now);
        while filling.len() < most {
            let read = self.line.fill(filling.room(most - filling.len()));
            let read = match since {
                None => read.await?,
                Some(since) => match timeout(LINGER.saturating_sub(since.elapsed()), read).await {
                    Ok(Ok(read)) => read,
                    // What came before it broke is not lost; who asks for more is told.
                    Ok(Err(_)) | Err(_) => break,
                },
            };
            filling.grow(read);
            since.get_or_insert_with(Instant::now);
        }
        self.at = self.at.saturating_add(filling.len() as u64);
        Ok(filling.share())
    }
}

fn place(url: &Url) -> Result<Place> {
    let host = url.host_str().ok_or_else(|| Error::new(Kind::Invalid, "a URL without a host"))?;
    Ok((host.to_owned(), url.port_or_known_default().unwrap_or(80)))
}

/// The bytes of a request. What is in headers and in a URL has no line ends by the rules of their types.
fn request(url: &Url, headers: &HeaderMap) -> Result<Vec<u8>> {
    let mut out = format!("GET {}", url.path()).into_bytes();
    if let Some(query) = url.query() {
        out.extend_from_slice(format!("?{query}").as_bytes());
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let host = url.host_str().ok_or_else(|| Error::new(Kind::Invalid, "a URL without a host"))?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    if !headers.contains_key(HOST) {
        out.extend_from_slice(format!("host: {host}{port}\r\n").as_bytes());
    }
    for (name, value) in headers.iter().filter(|(name, _)| !OURS.contains(name)) {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    Ok(out)
}

fn broken(error: &io::Error) -> Error {
    Error::new(Kind::Broken, format!("the connection failed: {error}"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use reqwest::header::HeaderValue;

    use super::super::line::HEAD;
    use super::*;
    use crate::buffer::is_aligned;

    const ALL: &[u8] = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 5\r\n\r\nbytes";

    /// Answers the connections that come, each as one list says: every request by the next words, then it is closed.
    async fn host(scripts: Vec<Vec<Vec<u8>>>) -> (Url, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/a/b?signature=x", listener.local_addr().unwrap())).unwrap();
        let serving = tokio::spawn(async move {
            let mut heard = Vec::new();
            for script in scripts {
                let (mut socket, _) = listener.accept().await.unwrap();
                for words in script {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(socket.read_u8().await.unwrap());
                    }
                    heard.push(String::from_utf8(request).unwrap());
                    // In two parts, cut where it hurts.
                    let (first, second) = words.split_at(words.len().min(20));
                    socket.write_all(first).await.unwrap();
                    tokio::task::yield_now().await;
                    socket.write_all(second).await.unwrap();
                }
            }
            heard
        });
        (url, serving)
    }

    fn direct(url: &Url) -> Direct {
        Direct::new(&Arc::new(Reach::new(url.clone(), Vec::new())), Duration::from_secs(30))
    }

    fn headers() -> HeaderMap {
        HeaderMap::from_iter([(reqwest::header::RANGE, HeaderValue::from_static("bytes=0-4"))])
    }

    async fn plain(direct: &Direct, url: &Url) -> Response {
        direct.get(url, &headers()).await.unwrap().0
    }

    #[tokio::test]
    async fn answers_come_one_after_the_other_over_one_connection() {
        let later = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n".iter().chain(ALL).copied().collect();
        let (url, serving) =
            host(vec![vec![ALL.to_vec(), later, b"HTTP/1.1 204 No Content\r\n\r\n".to_vec()]]).await;
        let direct = direct(&url);
        for due in ["bytes", "bytes", ""] {
            let response = plain(&direct, &url).await;
            assert_eq!(response.url(), &url);
            assert_eq!(response.text().await.unwrap(), due);
        }
        let heard = serving.await.unwrap();
        let host = url.port().unwrap();
        assert_eq!(
            heard.first().unwrap(),
            &format!("GET /a/b?signature=x HTTP/1.1\r\nhost: 127.0.0.1:{host}\r\nrange: bytes=0-4\r\n\r\n")
        );
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_or_is_to_be_is_not_used_again() {
        let close = b"HTTP/1.1 206 Partial Content\r\nConnection: x, Close\r\nContent-Length: 5\r\n\r\nbytes";
        let (url, serving) = host(vec![vec![ALL.to_vec()], vec![close.to_vec()], vec![ALL.to_vec()]]).await;
        let direct = direct(&url);
        for _ in 0..3 {
            assert_eq!(plain(&direct, &url).await.text().await.unwrap(), "bytes");
        }
        assert_eq!(serving.await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn a_connection_with_something_left_on_it_is_not_used_again() {
        let more = [ALL, b"and more"].concat();
        let (url, serving) = host(vec![vec![more], vec![ALL.to_vec()], vec![ALL.to_vec()]]).await;
        let direct = direct(&url);
        assert_eq!(plain(&direct, &url).await.text().await.unwrap(), "bytes");
        drop(plain(&direct, &url).await);
        assert_eq!(plain(&direct, &url).await.text().await.unwrap(), "bytes");
        assert_eq!(serving.await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn one_that_says_nothing_takes_those_beside_it_along() {
        let (url, _serving) = host(vec![vec![ALL.to_vec(), Vec::new(), Vec::new()]]).await;
        let direct = direct(&url);
        assert_eq!(plain(&direct, &url).await.text().await.unwrap(), "bytes");
        let place = place(&url).unwrap();
        let (line, other) =
            (direct.idle(&place).unwrap(), Line::to(url.socket_addrs(|| None).unwrap()[0]).await.unwrap());
        direct.keep(place.clone(), other);
        direct.keep(place.clone(), line);
        assert!(timeout(Duration::from_millis(50), direct.get(&url, &headers())).await.is_err());
        assert!(direct.idle(&place).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_uses_is_closed_after_a_while() {
        let (url, _serving) = host(vec![vec![ALL.to_vec(), Vec::new()]]).await;
        let direct = direct(&url);
        assert_eq!(plain(&direct, &url).await.text().await.unwrap(), "bytes");
        assert!(direct.0.idle.lock().is_swept);
        // The clock of connections is not the one that stands still here.
        direct.0.idle.lock().lines.clear();
        tokio::time::sleep(IDLE_TIME * 2).await;
        assert!(!direct.0.idle.lock().is_swept);
    }

    #[tokio::test]
    async fn connections_that_were_made_for_nothing_are_looked_after() {
        let (url, _serving) = host(vec![vec![ALL.to_vec()]]).await;
        let direct = direct(&url);
        direct.prepare(&url, 1);
        while direct.0.idle.lock().lines.is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(direct.0.idle.lock().is_swept);
    }

    #[tokio::test]
    async fn a_head_without_an_end_is_an_error() {
        let words = [b"HTTP/1.1 200 OK\r\nA: ", &[b'a'; 2 * HEAD][..]].concat();
        let (url, _serving) = host(vec![vec![words]]).await;
        let error = direct(&url).get(&url, &headers()).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Broken, "{error}");
    }

    #[tokio::test]
    async fn a_body_may_be_framed_in_any_way_that_there_is() {
        for words in [
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nby\r\n3\r\ntes\r\n0\r\nA: b\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\nbytes",
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nbytes",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nbytes",
        ] {
            let (url, serving) = host(vec![vec![words.as_bytes().to_vec()], vec![ALL.to_vec()]]).await;
            let direct = direct(&url);
            assert_eq!(plain(&direct, &url).await.text().await.unwrap(), "bytes", "{words}");
            assert_eq!(plain(&direct, &url).await.text().await.unwrap(), "bytes", "{words}");
            assert_eq!(serving.await.unwrap().len(), 2);
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_is_an_error() {
        for words in [
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
            "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\nx",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2 this is another protocol\r\n",
        ] {
            let (url, _serving) = host(vec![vec![words.as_bytes().to_vec()]]).await;
            let error = direct(&url).get(&url, &headers()).await.err().unwrap();
            assert_eq!(error.kind(), Kind::Broken, "{words}: {error}");
        }
    }

    #[tokio::test]
    async fn a_body_comes_in_whole_aligned_buffers_and_its_breaking_off_is_an_error() {
        let body: Vec<u8> = (0_u32..5 << 17).flat_map(|word| word.to_le_bytes()).collect();
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
        let (url, _serving) = host(vec![vec![[head.as_bytes(), &body].concat()]]).await;
        let mut response = plain(&direct(&url), &url).await;
        let mut came = Vec::new();
        let error = loop {
            match response.chunk().await {
                Ok(Some(piece)) => {
                    assert!(!came.len().is_multiple_of(SIZE) || is_aligned(&piece));
                    came.extend_from_slice(&piece);
                }
                Ok(None) => panic!("it ended"),
                Err(error) => break wire::transport(error),
            }
        };
        assert_eq!(error.kind(), Kind::Broken);
        assert!(came == body, "what came before is there");
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_a_place_out_of_reach_is_not_asked() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        drop(listener);
        let error = direct(&url).get(&url, &headers()).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Unreachable, "{error}");
        let away = Direct::new(
            &Arc::new(Reach::new(Url::parse("http://r.example/").unwrap(), Vec::new())),
            Duration::from_secs(30),
        );
        let error = away.get(&Url::parse("http://localhost:9/").unwrap(), &headers()).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
    }
}
