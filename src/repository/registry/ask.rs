//! One request to a registry, as it is sent again after a redirect, a new token or a failure: everything but its URL.
//!
//! A body is made anew for each sending. While it goes, every piece that the connection takes is progress: a large
//! body has no limit of time, only one without progress.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::StreamExt;
use parking_lot::Mutex;
use reqwest::header::{
    ACCEPT, ACCEPT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, RANGE, USER_AGENT,
};
use reqwest::{Method, RequestBuilder, Response};
use tokio::sync::watch;
use tokio::time::timeout;
use url::Url;

use super::auth::Auth;
use super::direct::Direct;
use super::wire;
use crate::error::{Error, Kind, Result};
use crate::range::StoredRange;
use crate::repository::ByteStream;
use crate::repository::push::source::Source;

/// What we say that we are.
pub(super) const AGENT: &str = concat!("weightfs/", env!("CARGO_PKG_VERSION"));
/// How slowly a line may empty what lies in buffers after the last piece was taken, in bytes a second.
const SLOWEST: u64 = 256 << 10;
/// The most that lies there: what systems let a connection buffer.
const BUFFERED: u64 = 8 << 20;

/// What is sent with a request.
pub(super) enum Body<'a> {
    /// Nothing, and a method that needs no word about it.
    None,
    /// These bytes, which may be none.
    Bytes(Bytes),
    /// A stretch of a blob.
    Blob(Stretch<'a>),
}

/// A stretch of a blob that is sent piece by piece.
#[derive(Clone, Copy)]
pub(in crate::repository) struct Stretch<'a> {
    pub(in crate::repository) source: &'a Source,
    pub(in crate::repository) range: StoredRange,
    /// Told up to where in the blob the connection has taken bytes; after a failure it may begin at the start again.
    pub(in crate::repository) reached: &'a (dyn Fn(u64) + Send + Sync),
}

/// A request without its URL.
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) headers: HeaderMap,
    pub(super) body: Body<'a>,
    /// Who asks, while the chain has not left the registry.
    pub(super) auth: &'a Arc<Auth>,
    /// How much longer than usual the answer may take once all is sent.
    pub(super) patience: Duration,
}

impl<'a> Ask<'a> {
    /// Without a body and without headers.
    pub(super) fn new(method: Method, auth: &'a Arc<Auth>) -> Self {
        Self { method, headers: HeaderMap::new(), body: Body::None, auth, patience: Duration::ZERO }
    }

    /// The same with a header.
    pub(super) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The same with a body.
    pub(super) fn body(self, body: Body<'a>) -> Self {
        Self { body, ..self }
    }

    /// Whether it only asks, so that any redirect may be followed; else only those that keep method and body
    /// (RFC 9110 §15.4).
    pub(super) fn is_question(&self) -> bool {
        self.method == Method::GET || self.method == Method::HEAD
    }

    /// Whether it asks for a range of bytes, and for nothing else.
    pub(super) fn is_for_a_range(&self) -> bool {
        self.method == Method::GET && matches!(self.body, Body::None) && self.headers.contains_key(RANGE)
    }

    /// Sends it once, as [`send`](Self::send) does, without a client in between; `headers` are those that go with its own.
    pub(super) async fn send_directly(
        &self,
        direct: &Direct,
        url: &Url,
        mut headers: HeaderMap,
        stall: Duration,
    ) -> Result<(Response, SocketAddr)> {
        headers.entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        headers.entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        headers.extend(self.headers.clone());
        let limit = stall.saturating_add(self.patience);
        timeout(limit, direct.get(url, &headers)).await.unwrap_or_else(|_| Err(nothing_for(limit)))
    }

    /// Sends it once. A part of its way without any progress for `stall` is a failure.
    pub(super) async fn send(&self, request: RequestBuilder, stall: Duration) -> Result<Response> {
        let request = request.headers(self.headers.clone());
        let limit = stall.saturating_add(self.patience);
        match &self.body {
            Body::None => answered(request.send(), limit).await,
            Body::Bytes(bytes) => {
                let request = request.header(CONTENT_LENGTH, bytes.len()).body(bytes.clone());
                answered(
                    request.send(),
                    limit.saturating_add(drain(bytes.len().try_into().unwrap_or(BUFFERED))),
                )
                .await
            }
            Body::Blob(stretch) => stretch.send(request, stall, limit).await,
        }
    }
}

impl Stretch<'_> {
    async fn send(&self, request: RequestBuilder, stall: Duration, limit: Duration) -> Result<Response> {
        let (body, mut taken, failure) = self.watched();
        let request = request.header(CONTENT_LENGTH, self.range.len()).body(reqwest::Body::wrap_stream(body));
        let mut sending = pin!(request.send());
        let answer = loop {
            tokio::select! {
                answer = &mut sending => break answer.map_err(wire::transport),
                moved = timeout(stall, taken.changed()) => match moved {
                    Ok(Ok(())) => (self.reached)(*taken.borrow_and_update()),
                    // The body is gone: nothing is left but to wait for the answer.
                    Ok(Err(_)) => break answered(&mut sending, limit.saturating_add(drain(self.range.len()))).await,
                    Err(_) => break Err(nothing_for(stall)),
                }
            }
        };
        (self.reached)(*taken.borrow());
        // A source that fails breaks the connection, and is the reason that counts.
        let failure = failure.lock().take();
        failure.map_or(answer, Err)
    }

    /// The bytes, up to where they were taken, and how they failed.
    fn watched(&self) -> (ByteStream, watch::Receiver<u64>, Arc<Mutex<Option<Error>>>) {
        let (taken, watching) = watch::channel(self.range.start());
        let failure = Arc::new(Mutex::new(None));
        let failed = failure.clone();
        let body = self.source.stream(self.range).inspect(move |piece| match piece {
            Ok(bytes) => {
                taken.send_modify(|at| *at = at.saturating_add(bytes.len().try_into().unwrap_or(u64::MAX)));
            }
            Err(error) => *failed.lock() = Some(error.clone()),
        });
        (body.boxed(), watching, failure)
    }
}

/// How long the last bytes of a body may be under way after the connection took them.
fn drain(len: u64) -> Duration {
    Duration::from_secs(len.min(BUFFERED) / SLOWEST)
}

async fn answered(
    sending: impl Future<Output = reqwest::Result<Response>>,
    limit: Duration,
) -> Result<Response> {
    match timeout(limit, sending).await {
        Ok(answer) => answer.map_err(wire::transport),
        Err(_) => Err(nothing_for(limit)),
    }
}

fn nothing_for(limit: Duration) -> Error {
    Error::new(Kind::Broken, format!("no answer for {} s", limit.as_secs_f32()))
}
