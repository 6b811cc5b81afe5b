//! A small read-only registry over an OCI image layout folder, in this process.
//!
//! The demo mounts from it, and tests put faults around it. It answers what a reader of the distribution
//! specification's "pull" category asks: manifests by tag and digest, blobs whole or by one range, each
//! under any repository's name. It checks no credentials and belongs on loopback.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE,
};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use axum::serve::{Listener, ListenerExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Digest, Which};
use crate::range::StoredRange;
use crate::repository::{Layout, Repository, Untagged};

/// How much of a file is read and sent at once.
const PIECE: u64 = 128 << 10;

/// Where the media type of a manifest is unknown.
const ANY_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// Answers from the image layout folder `layout`, under every repository's name.
///
/// # Errors
/// Those of [`Layout::open`].
pub fn router(layout: PathBuf) -> Result<Router> {
    let layout = Layout::open(layout, Untagged::Missing)?;
    Ok(Router::new().fallback(answer).with_state(Arc::new(layout)))
}

/// A server that runs until this value is dropped. Then its port is closed, and so is each connection as soon
/// as it has no answer under way.
#[derive(Debug)]
pub struct Serving {
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Serving {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// Serves `router` on a free port of 127.0.0.1.
///
/// # Errors
/// `Unreachable` where no port can be had.
pub async fn serve(router: Router) -> Result<Serving> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(no_port)?;
    // Otherwise the end of an answer waits for the acknowledgement of its head, 40 ms.
    let listener = listener.tap_io(|stream| {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "answers may be late");
        }
    });
    serve_on(listener, router)
}

/// Serves `router` to who connects to `listener`. Must be called within a tokio runtime.
///
/// # Errors
/// `Unreachable` where the listener has no address.
pub fn serve_on<L>(listener: L, router: Router) -> Result<Serving>
where
    L: Listener<Addr = SocketAddr>,
{
    let address = listener.local_addr().map_err(no_port)?;
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(async move {
        // The sender is never used, only dropped.
        let dropped = async move { drop(stopped.await) };
        if let Err(error) = axum::serve(listener, router).with_graceful_shutdown(dropped).await {
            tracing::warn!(%error, "the registry on loopback ended");
        }
    });
    Ok(Serving { address, _stop: stop })
}

fn no_port(error: std::io::Error) -> Error {
    Error::from_source(Kind::Unreachable, "no free port on 127.0.0.1", error)
}

async fn answer(State(layout): State<Arc<Layout>>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path());
    if method != Method::GET && method != Method::HEAD {
        return refusal(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only");
    }
    let answer = match asked(path) {
        Some(Asked::Version) => Ok(body(StatusCode::OK, HeaderMap::new(), Body::from("{}"))),
        Some(Asked::Manifest(which)) => manifest(&layout, &which).await,
        Some(Asked::Blob(digest)) => blob(&layout, digest, request.headers()).await,
        None => Err(Error::new(Kind::NotFound, "no such path")),
    };
    let mut response = answer.unwrap_or_else(|error| failure(&error));
    if method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

enum Asked {
    Version,
    Manifest(Which),
    Blob(Digest),
}

fn asked(path: &str) -> Option<Asked> {
    let rest = path.strip_prefix("/v2/")?;
    if rest.is_empty() {
        return Some(Asked::Version);
    }
    let (front, last) = rest.rsplit_once('/')?;
    let (repository, what) = front.rsplit_once('/')?;
    match what {
        _ if repository.is_empty() => None,
        "blobs" => last.parse().ok().map(Asked::Blob),
        "manifests" if last.contains(':') => {
            last.parse().ok().map(|digest| Asked::Manifest(Which::Digest(digest)))
        }
        "manifests" => Some(Asked::Manifest(Which::Tag(last.to_owned()))),
        _ => None,
    }
}

async fn manifest(layout: &Layout, which: &Which) -> Result<Response> {
    let found = layout.manifest(which).await?;
    let media_type = if found.media_type.is_empty() { ANY_MANIFEST } else { &found.media_type };
    let mut headers = HeaderMap::new();
    set(&mut headers, CONTENT_TYPE, media_type);
    set(&mut headers, CONTENT_DIGEST, &found.digest.to_string());
    set(&mut headers, CONTENT_LENGTH, &found.bytes.len().to_string());
    Ok(body(StatusCode::OK, headers, Body::from(found.bytes)))
}

async fn blob(layout: &Layout, digest: Digest, asked: &HeaderMap) -> Result<Response> {
    let size = layout.size(&digest)?;
    let blob = Blob { digest, size };
    let mut headers = HeaderMap::new();
    set(&mut headers, CONTENT_TYPE, "application/octet-stream");
    set(&mut headers, ACCEPT_RANGES, "bytes");
    set(&mut headers, CONTENT_DIGEST, &blob.digest.to_string());
    let (status, range) = match wanted(asked, size) {
        Wanted::All => (StatusCode::OK, StoredRange::new(0, size)),
        Wanted::Part(range) => {
            set(&mut headers, CONTENT_RANGE, &format!("bytes {range}/{size}"));
            (StatusCode::PARTIAL_CONTENT, range)
        }
        Wanted::Nothing => {
            set(&mut headers, CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(body(StatusCode::RANGE_NOT_SATISFIABLE, headers, Body::empty()));
        }
    };
    set(&mut headers, CONTENT_LENGTH, &range.len().to_string());
    let pieces = layout.pieces(&blob, range, PIECE).await?;
    Ok(body(status, headers, Body::from_stream(pieces)))
}

#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    /// No range, or one that may be ignored (RFC 9110 §14.2): malformed, or several.
    All,
    Part(StoredRange),
    /// A range that has no byte of the blob.
    Nothing,
}

fn wanted(headers: &HeaderMap, size: u64) -> Wanted {
    let text = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let Some((first, last)) = text.and_then(|text| text.strip_prefix("bytes=")?.split_once('-')) else {
        return Wanted::All;
    };
    let range = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => StoredRange::new(first, last.saturating_add(1).min(size)),
        (Ok(first), Err(_)) if last.is_empty() => StoredRange::new(first, size),
        (Err(_), Ok(count)) if first.is_empty() => StoredRange::new(size.saturating_sub(count), size),
        _ => return Wanted::All,
    };
    if range.is_empty() { Wanted::Nothing } else { Wanted::Part(range) }
}

fn failure(error: &Error) -> Response {
    match error.kind() {
        Kind::NotFound => refusal(StatusCode::NOT_FOUND, "NOT_FOUND", &error.to_string()),
        _ => refusal(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", &error.to_string()),
    }
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let errors = serde_json::json!({ "errors": [{ "code": code, "message": message }] });
    let mut headers = HeaderMap::new();
    set(&mut headers, CONTENT_TYPE, "application/json");
    body(status, headers, Body::from(errors.to_string()))
}

fn body(status: StatusCode, headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    response
}

/// Sets a header; a value that cannot be one is left out.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &'static str) -> Wanted {
        wanted(&[(RANGE, HeaderValue::from_static(text))].into_iter().collect(), 100)
    }

    #[test]
    fn one_range_is_given_and_what_is_none_is_ignored() {
        assert_eq!(range("bytes=0-9"), Wanted::Part(StoredRange::new(0, 10)));
        assert_eq!(range("bytes=90-"), Wanted::Part(StoredRange::new(90, 100)));
        assert_eq!(range("bytes=-10"), Wanted::Part(StoredRange::new(90, 100)));
        assert_eq!(range("bytes=90-500"), Wanted::Part(StoredRange::new(90, 100)));
        assert_eq!(range("bytes=100-"), Wanted::Nothing);
        assert_eq!(range("bytes=-0"), Wanted::Nothing);
        for ignored in ["bytes=0-1,5-6", "bytes=9-0", "bytes=-", "lines=1-2", "bytes=a-b"] {
            assert_eq!(range(ignored), Wanted::All, "{ignored}");
        }
    }

    #[test]
    fn a_path_names_a_manifest_or_a_blob_under_any_repository() {
        assert!(matches!(asked("/v2/"), Some(Asked::Version)));
        assert!(matches!(asked("/v2/a/b/manifests/v1"), Some(Asked::Manifest(Which::Tag(_)))));
        let digest = Digest::of(b"");
        assert!(matches!(asked(&format!("/v2/a/blobs/{digest}")), Some(Asked::Blob(_))));
        for path in
            ["/", "/v2/a/blobs/sha256:../../x", "/v2/a/uploads/x", "/v2/manifests/x", "/v2/a/manifests/x:y"]
        {
            assert!(asked(path).is_none(), "{path}");
        }
    }
}
