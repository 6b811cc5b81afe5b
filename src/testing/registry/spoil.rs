//! Carries faults out: an honest answer becomes another one, or a script for the connection.

use std::time::{Duration, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue,
    LOCATION, RANGE, RETRY_AFTER, TRANSFER_ENCODING,
};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use futures_util::stream;

use super::fault::Fault;
use super::line::{End, Script, Step};
use super::reply::{plain, set};
use crate::oci::Digest;

/// The longest answer that is spoiled: it is taken into memory for that.
const LONGEST: usize = 256 << 20;
/// How a page for people looks, which proxies and networks answer with.
const PAGE: &str = "<html>Please log in to this network</html>";

/// What answers in the place of the honest answer, which nobody is asked for. `None`: the fault needs it.
pub(super) fn instead(fault: &Fault, request: &Request) -> Option<Response> {
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    let mark = if path.contains('?') { '&' } else { '?' };
    let moved = |to: &str| plain(307, &[(LOCATION, to)], "");
    Some(match fault {
        Fault::Status(status) => plain(*status, &[], ""),
        Fault::RetryAfter(status, wait) => plain(*status, &[(RETRY_AFTER, wait)], ""),
        Fault::RetryAt(status, wait) => plain(*status, &[(RETRY_AFTER, &date_after(*wait))], ""),
        Fault::Redirect(origin) => moved(&format!("{origin}{path}{mark}signature=canary-signature")),
        Fault::RedirectTo(location) => moved(location),
        Fault::RedirectChain(hops) if hops_so_far(&path) < *hops => {
            moved(&format!("{}?hop={}", request.uri().path(), hops_so_far(&path).saturating_add(1)))
        }
        Fault::RedirectLoop => moved(&path),
        Fault::Html200 => plain(200, &[(CONTENT_TYPE, "text/html")], PAGE),
        _ => return None,
    })
}

/// How long a client is told to wait, if it is.
pub(super) fn wait_of(fault: &Fault) -> Option<Duration> {
    match fault {
        Fault::RetryAfter(_, wait) => wait.parse().ok().map(Duration::from_secs),
        // The date has no parts of a second.
        Fault::RetryAt(_, wait) => Some(wait.saturating_sub(Duration::from_secs(1))),
        _ => None,
    }
}

/// The script that needs no answer at all.
pub(super) fn mute(fault: &Fault) -> Option<Script> {
    Some(match fault {
        Fault::Reset => Script::new([], End::Reset),
        Fault::Close => Script::new([], End::Close),
        Fault::Garbage => {
            let noise = Bytes::from_static(b"\x16\x03\x01\xff\x00garbage before any header\r\n\r\n");
            Script::new([Step::Send(noise)], End::Close)
        }
        Fault::Silence => Script::new([Step::Silence], End::Close),
        _ => return None,
    })
}

/// Makes the request another one, where that is how the fault works.
pub(super) fn redirect_within(fault: &Fault, request: &mut Request) {
    match fault {
        Fault::IgnoreRange | Fault::Whole206 => drop(request.headers_mut().remove(RANGE)),
        Fault::Elsewhere(by) => move_range(request, |first, last| (first.saturating_add(*by), last)),
        Fault::Short206(by) => {
            move_range(request, |first, last| (first, last.saturating_sub(*by).max(first.midpoint(last))))
        }
        Fault::Swap(digest) | Fault::Instead(digest) => ask_for(request, digest),
        _ => {}
    }
}

fn move_range(request: &mut Request, change: impl Fn(u64, u64) -> (u64, u64)) {
    let text = request.headers().get(RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let range = text.strip_prefix("bytes=").and_then(|range| range.split_once('-'));
    let Some((Ok(first), Ok(last))) = range.map(|(first, last)| (first.parse(), last.parse())) else {
        return;
    };
    let (first, last) = change(first, last);
    set(request.headers_mut(), RANGE, &format!("bytes={first}-{last}"));
}

/// Asks for no more than the first `count` bytes, one at the least.
pub(super) fn only_first(request: &mut Request, count: usize) {
    set(request.headers_mut(), RANGE, &format!("bytes=0-{}", count.saturating_sub(1)));
}

fn ask_for(request: &mut Request, digest: &Digest) {
    let path = request.uri().path();
    let folder = path.rsplit_once('/').map_or(path, |(folder, _)| folder);
    if let Ok(uri) = format!("{folder}/{digest}").parse::<Uri>() {
        *request.uri_mut() = uri;
    }
}

/// The honest answer's head, taken before the request was changed for [`Fault::Swap`].
pub(super) struct Honest {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

impl Honest {
    /// Takes an answer into memory.
    ///
    /// # Errors
    /// An answer in its place that says so, where it is longer than [`LONGEST`] or breaks.
    #[allow(clippy::result_large_err, reason = "what comes back is no error but an answer")]
    pub(super) async fn of(response: Response) -> Result<Self, Response> {
        let (parts, body) = response.into_parts();
        match to_bytes(body, LONGEST).await {
            Ok(body) => Ok(Self { status: parts.status, headers: parts.headers, body }),
            Err(error) => {
                let most = LONGEST >> 20;
                let why = format!(
                    "no answer of more than {most} MiB can have this fault, nor one that breaks: {error}"
                );
                Err(plain(500, &[], why))
            }
        }
    }

    fn into_response(self) -> Response {
        super::reply::response(self.status, self.headers, Body::from(self.body))
    }

    /// The head as it goes over the wire.
    fn head(&self) -> Vec<u8> {
        let reason = self.status.canonical_reason().unwrap_or_default();
        let mut head = format!("HTTP/1.1 {} {reason}\r\n", self.status.as_u16()).into_bytes();
        for (name, value) in &self.headers {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }

    fn whole(&self) -> Vec<u8> {
        let mut all = self.head();
        all.extend_from_slice(&self.body);
        all
    }

    fn first(&self, count: usize) -> Bytes {
        self.body.slice(..count.min(self.body.len()))
    }

    /// Head and the first bytes of the body.
    fn up_to(&self, count: usize) -> Step {
        let mut all = self.head();
        all.extend_from_slice(&self.first(count));
        Step::Send(all.into())
    }

    fn with(mut self, name: HeaderName, value: &str) -> Self {
        set(&mut self.headers, name, value);
        self
    }

    fn without(mut self, name: &HeaderName) -> Self {
        self.headers.remove(name);
        self
    }
}

/// The script that the fault makes of an honest answer; the answer where it is none for the connection.
#[allow(clippy::result_large_err, reason = "what comes back is no error but the answer, unspoiled")]
pub(super) fn script(fault: &Fault, honest: Honest) -> Result<Script, Honest> {
    Ok(match fault {
        Fault::Truncate(at) => Script::new([honest.up_to(*at)], End::Close),
        // What was sent shall be there before the reset takes it away, mostly.
        Fault::ResetAt(at) => {
            Script::new([honest.up_to(*at), Step::Pause(Duration::from_millis(20))], End::Reset)
        }
        Fault::Stall(at) => Script::new([honest.up_to(*at), Step::Silence], End::Close),
        Fault::Slow(pieces, pause) => {
            let piece = honest.body.len().div_ceil((*pieces).max(1));
            slowly(honest.head().into(), &honest.body, piece, *pause)
        }
        Fault::SlowHead(pause) => {
            let head = honest.head();
            slowly(Bytes::new(), &head, head.len().div_ceil(40), *pause).followed_by(honest.body)
        }
        Fault::EndlessHead(pause) => {
            let endless =
                [&b"HTTP/1.1 206 Partial Content\r\nX-Endless: "[..], &b"x".repeat(10_000)].concat();
            slowly(Bytes::new(), &endless, 1, *pause)
        }
        Fault::Extra(count) => {
            let all = [honest.whole(), vec![b'?'; *count]].concat();
            Script::new([Step::Send(all.into())], End::Stay)
        }
        Fault::NoLength => {
            let honest = honest.without(&CONTENT_LENGTH);
            Script::new([Step::Send(honest.whole().into())], End::Close)
        }
        Fault::ChunkedCut(at) => {
            let honest = honest.without(&CONTENT_LENGTH).with(TRANSFER_ENCODING, "chunked");
            let mut all = honest.head();
            all.extend_from_slice(format!("{:x}\r\n", honest.body.len()).as_bytes());
            all.extend_from_slice(&honest.first(*at));
            Script::new([Step::Send(all.into())], End::Close)
        }
        Fault::TwoLengths => {
            let other = HeaderValue::from(honest.body.len().saturating_add(1));
            let mut honest = honest;
            honest.headers.append(CONTENT_LENGTH, other);
            Script::new([Step::Send(honest.whole().into())], End::Close)
        }
        _ => return Err(honest),
    })
}

/// `first` at once, and then `rest` in pieces.
fn slowly(first: Bytes, rest: &[u8], piece: usize, pause: Duration) -> Script {
    let pieces = rest
        .chunks(piece.max(1))
        .flat_map(|piece| [Step::Pause(pause), Step::Send(Bytes::copy_from_slice(piece))]);
    Script::new(std::iter::once(Step::Send(first)).chain(pieces), End::Stay)
}

/// The other answer that the fault makes of an honest one.
pub(super) fn spoil(fault: Fault, honest: Honest) -> Response {
    match fault {
        Fault::Header(name, value) => honest.with(name, value).into_response(),
        Fault::NoHeader(name) => honest.without(&name).into_response(),
        Fault::HugeHeader(size) => {
            honest.with(HeaderName::from_static("x-huge"), &"x".repeat(size)).into_response()
        }
        Fault::ManyHeaders(count) => many_headers(honest, count).into_response(),
        Fault::TwiceTheSame(name) => twice(honest, &name).into_response(),
        Fault::Chunked => chunked(honest, |body| body),
        Fault::Short(by) => chunked(honest, |body| body.slice(..body.len().saturating_sub(by))),
        Fault::Overlong(by) => chunked(honest, |body| [&body[..], &vec![7; by]].concat().into()),
        Fault::Padded(by) => padded(honest, by).into_response(),
        Fault::Partial200 => {
            Honest { status: StatusCode::OK, ..honest.without(&CONTENT_RANGE) }.into_response()
        }
        Fault::Multipart => multipart(honest).into_response(),
        Fault::Html206 => html_206(honest).into_response(),
        Fault::Flip(at) => lie(honest, |bytes| {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1;
            }
        }),
        Fault::Shifted(by) => lie(honest, |bytes| {
            let by = by % bytes.len().max(1);
            bytes.rotate_left(by);
        }),
        Fault::Zeros => lie(honest, |bytes| bytes.fill(0)),
        _ => honest.into_response(),
    }
}

/// The honest head over the bytes of another blob.
pub(super) fn swapped(honest: Honest, other: &Honest) -> Response {
    let len = honest.body.len();
    let bytes: Vec<u8> = other.body.iter().copied().cycle().take(len).collect();
    Honest { body: bytes.into(), ..honest }.into_response()
}

fn lie(honest: Honest, change: impl FnOnce(&mut Vec<u8>)) -> Response {
    let mut bytes = honest.body.to_vec();
    change(&mut bytes);
    Honest { body: bytes.into(), ..honest }.into_response()
}

fn many_headers(mut honest: Honest, count: usize) -> Honest {
    for number in 0..count {
        if let Ok(name) = HeaderName::try_from(format!("x-many-{number}")) {
            honest.headers.insert(name, HeaderValue::from_static("x"));
        }
    }
    honest
}

fn twice(mut honest: Honest, name: &HeaderName) -> Honest {
    if let Some(value) = honest.headers.get(name).cloned() {
        honest.headers.append(name, value);
    }
    honest
}

fn chunked(honest: Honest, change: impl FnOnce(Bytes) -> Bytes) -> Response {
    let Honest { status, headers, body } = honest.without(&CONTENT_LENGTH);
    let body = Body::from_stream(stream::iter([Ok::<_, std::io::Error>(change(body))]));
    super::reply::response(status, headers, body)
}

fn padded(honest: Honest, by: usize) -> Honest {
    let body: Bytes = [&honest.body[..], &vec![7; by]].concat().into();
    let length = body.len().to_string();
    Honest { body, ..honest }.with(CONTENT_LENGTH, &length)
}

/// 206 of an answer with the whole blob, which goes by; of any other answer that answer.
pub(super) fn whole_206(mut honest: Response) -> Response {
    let len = honest.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<u64>().ok());
    let Some(len) = len.filter(|_| honest.status() == StatusCode::OK) else { return honest };
    *honest.status_mut() = StatusCode::PARTIAL_CONTENT;
    set(honest.headers_mut(), CONTENT_RANGE, &format!("bytes 0-{}/{len}", len.saturating_sub(1)));
    honest
}

fn multipart(honest: Honest) -> Honest {
    let range = honest.headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let start = format!("--part\r\nContent-Range: {range}\r\n\r\n");
    let body: Bytes = [start.as_bytes(), &honest.body, b"\r\n--part--\r\n"].concat().into();
    let length = body.len().to_string();
    Honest { body, ..honest.without(&CONTENT_RANGE) }
        .with(CONTENT_TYPE, "multipart/byteranges; boundary=part")
        .with(CONTENT_LENGTH, &length)
}

fn html_206(honest: Honest) -> Honest {
    let honest = honest.without(&CONTENT_LENGTH).without(&CONTENT_RANGE).without(&CONTENT_ENCODING);
    Honest { status: StatusCode::PARTIAL_CONTENT, body: Bytes::from_static(PAGE.as_bytes()), ..honest }
        .with(CONTENT_TYPE, "text/html")
}

fn hops_so_far(path: &str) -> u32 {
    path.split_once("hop=").and_then(|(_, number)| number.parse().ok()).unwrap_or_default()
}

fn date_after(wait: Duration) -> String {
    httpdate::fmt_http_date(SystemTime::now().checked_add(wait).unwrap_or_else(SystemTime::now))
}
