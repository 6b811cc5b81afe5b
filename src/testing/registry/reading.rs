//! What an honest registry answers to who reads: an OCI image layout folder, and blobs that are made as they are read.
//!
//! It answers the distribution specification's "pull" category: manifests by tag and digest, blobs whole or by one
//! range, referrers, each under any repository's name. It checks no credentials and belongs on loopback.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, RANGE,
};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use futures_util::stream::{self, StreamExt};

use super::referrers::{self, Referrers};
use super::reply::{refusal, response, set};
use super::synthetic::Synthetic;
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Digest, Which};
use crate::range::StoredRange;
use crate::repository::{ByteStream, Layout, Repository, Untagged};

/// How much of a file is read and sent at once.
const PIECE: u64 = 128 << 10;

/// Where the media type of a manifest is unknown.
const ANY_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a registry has.
#[derive(Debug)]
pub struct Source {
    layout: Layout,
    folder: PathBuf,
    synthetic: Vec<Synthetic>,
    referrers: Referrers,
}

impl Source {
    /// What is in the image layout folder `folder`; it may grow while it is served.
    ///
    /// # Errors
    /// Those of [`Layout::open`].
    pub fn layout(folder: PathBuf) -> Result<Self> {
        let layout = Layout::open(&folder, Untagged::Missing)?;
        Ok(Self { layout, folder, synthetic: Vec::new(), referrers: Referrers::default() })
    }

    /// The same, with blobs that take no room.
    #[must_use]
    pub fn with(mut self, blobs: impl IntoIterator<Item = Synthetic>) -> Self {
        self.synthetic.extend(blobs);
        self
    }

    /// The same, with another way to say what refers to a manifest.
    #[must_use]
    pub fn telling(self, referrers: Referrers) -> Self {
        Self { referrers, ..self }
    }

    /// Answers from it, under every repository's name.
    pub fn router(self) -> Router {
        Router::new().fallback(answer).with_state(Arc::new(self))
    }

    fn made(&self, digest: &Digest) -> Option<&Synthetic> {
        self.synthetic.iter().find(|blob| blob.digest == *digest)
    }

    fn size(&self, digest: &Digest) -> Result<u64> {
        self.made(digest).map_or_else(|| self.layout.size(digest), |blob| Ok(blob.size))
    }

    async fn pieces(&self, blob: &Blob, range: StoredRange) -> Result<ByteStream> {
        let Some(made) = self.made(&blob.digest).cloned() else {
            return self.layout.pieces(blob, range, PIECE).await;
        };
        let pieces = stream::iter(cut(range)).map(move |piece| Ok(made.part(piece)));
        Ok(pieces.boxed())
    }
}

/// The range in pieces.
fn cut(range: StoredRange) -> impl Iterator<Item = StoredRange> + Send {
    let next = move |piece: &StoredRange| {
        let start = piece.end();
        let end = start.saturating_add(PIECE).min(range.end());
        (start < end).then(|| StoredRange::new(start, end))
    };
    let first = StoredRange::new(range.start(), range.start().saturating_add(PIECE).min(range.end()));
    std::iter::successors(Some(first).filter(|first| !first.is_empty()), next)
}

async fn answer(State(source): State<Arc<Source>>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path());
    if method != Method::GET && method != Method::HEAD {
        return refusal(405, "UNSUPPORTED", "this registry is read-only");
    }
    let answer = match asked(path) {
        Some(Asked::Version) => Ok(response(StatusCode::OK, HeaderMap::new(), Body::from("{}"))),
        Some(Asked::Manifest(which)) => manifest(&source.layout, &which).await,
        Some(Asked::Blob(digest)) => blob(&source, digest, request.headers()).await,
        Some(Asked::Referrers(subject)) if source.referrers == Referrers::Api => {
            referrers::answer(&source.folder, &subject, request.uri().query())
        }
        Some(Asked::Referrers(_)) => Err(Error::new(Kind::NotFound, "this registry has no referrers API")),
        None => Err(Error::new(Kind::NotFound, "no such path")),
    };
    let mut answer = answer.unwrap_or_else(|error| failure(&error));
    if method == Method::HEAD {
        *answer.body_mut() = Body::empty();
    }
    answer
}

enum Asked {
    Version,
    Manifest(Which),
    Blob(Digest),
    Referrers(Digest),
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
        "referrers" => last.parse().ok().map(Asked::Referrers),
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
    Ok(response(StatusCode::OK, headers, Body::from(found.bytes)))
}

async fn blob(source: &Source, digest: Digest, asked: &HeaderMap) -> Result<Response> {
    let size = source.size(&digest)?;
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
            return Ok(response(StatusCode::RANGE_NOT_SATISFIABLE, headers, Body::empty()));
        }
    };
    set(&mut headers, CONTENT_LENGTH, &range.len().to_string());
    let pieces = source.pieces(&blob, range).await?;
    Ok(response(status, headers, Body::from_stream(pieces)))
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
        Kind::NotFound => refusal(404, "NOT_FOUND", &error.to_string()),
        _ => refusal(500, "UNKNOWN", &error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use axum::http::header::HeaderValue;

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
