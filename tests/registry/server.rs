//! The demo's registry with faults around it: rules say which request gets which fault, a log says who asked.
//!
//! A second one of these is the host that blobs are redirected to. Any suite may start one over any image
//! layout folder; it ends when dropped.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::serve::ListenerExt;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use weightfs::cli::demo::registry::{Serving, router, serve, serve_on};
use weightfs::oci::Reference;

use super::uploads::{self, Habits, Uploads};

/// What is done to an answer.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// The body is cut after so many bytes, by closing the connection.
    Truncate(usize),
    /// The body stops after so many bytes and the connection stays open.
    Stall(usize),
    /// 200 with the whole blob, whatever range was asked for.
    IgnoreRange,
    /// A header gets this value.
    Header(HeaderName, &'static str),
    /// A header is left out.
    NoHeader(HeaderName),
    /// The headers of the range, no length, and a body that ends so many bytes early.
    Short(usize),
    /// The headers of the range, no length, and so many bytes more than it has.
    Overlong(usize),
    /// This status and no more.
    Status(u16),
    /// This status with `Retry-After`.
    RetryAfter(u16, &'static str),
    /// 307 to the same path, with a signature, at this origin.
    Redirect(String),
    /// 307 to exactly this.
    RedirectTo(&'static str),
    /// The right headers of a range, and a page for people as the body.
    Html206,
    /// The right headers, and one byte of the body another.
    Flip(usize),
    /// An upload takes so many bytes, and then the connection closes; the end of one is taken, and not answered.
    BreakBody(usize),
    /// An upload takes so many bytes, and then no more, and the connection stays open.
    StallBody(usize),
    /// An upload is forgotten.
    Lose,
    /// An upload loses so many bytes of what it has.
    Forget(usize),
    /// All tokens given out so far are refused from now on.
    Revoke,
}

/// Which requests get a fault.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    path: &'static str,
    skip: usize,
    times: usize,
    fault: Fault,
}

impl Rule {
    /// Every request whose method, path and query (`PUT /v2/…`) contain `path`.
    pub(crate) fn always(path: &'static str, fault: Fault) -> Self {
        Self::times(path, usize::MAX, fault)
    }

    /// The next such request.
    pub(crate) fn once(path: &'static str, fault: Fault) -> Self {
        Self::times(path, 1, fault)
    }

    /// The next so many such requests.
    pub(crate) fn times(path: &'static str, times: usize, fault: Fault) -> Self {
        Self { path, skip: 0, times, fault }
    }

    /// The same, but only after so many such requests have been answered well.
    pub(crate) fn after(self, skip: usize) -> Self {
        Self { skip, ..self }
    }
}

/// How a registry gives out tokens.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    /// The life that the answer tells, in seconds.
    pub(crate) life: u64,
    /// Who gets one; everyone where `None`.
    pub(crate) user: Option<(&'static str, &'static str)>,
}

impl Tokens {
    /// Tokens of an hour, for everyone.
    pub(crate) fn for_everyone() -> Self {
        Self { life: 3600, user: None }
    }
}

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) content_range: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
}

/// A registry that runs until it is dropped.
pub(crate) struct Server {
    serving: Serving,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<Logged>>,
    tokens: Option<Tokens>,
    given: Mutex<Given>,
    uploads: Option<Arc<Uploads>>,
}

#[derive(Default)]
struct Given {
    count: u64,
    valid: Vec<String>,
}

impl Server {
    /// Serves the image layout at `layout` to everyone.
    pub(crate) async fn start(layout: &Path) -> Self {
        Self::over(router(layout.to_owned()).unwrap(), Shared::default()).await
    }

    /// Serves it at the address of one that has stopped.
    pub(crate) async fn start_at(layout: &Path, address: &str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let shared = Arc::new(Shared::default());
        let router = faulty_router(router(layout.to_owned()).unwrap(), &shared);
        Self { serving: serve_on(listener, router).unwrap(), shared }
    }

    /// Serves it to those who bring a token.
    pub(crate) async fn with_tokens(layout: &Path, tokens: Tokens) -> Self {
        let shared = Shared { tokens: Some(tokens), ..Shared::default() };
        Self::over(router(layout.to_owned()).unwrap(), shared).await
    }

    /// Serves it to everyone, or to those who bring a token, and takes pushes into it.
    pub(crate) async fn with_uploads(layout: &Path, habits: Habits, tokens: Option<Tokens>) -> Self {
        let uploads = Arc::new(Uploads::new(layout.to_owned(), habits));
        let router = router(layout.to_owned()).unwrap();
        let router = router.layer(from_fn_with_state(uploads.clone(), uploads::around));
        Self::over(router, Shared { tokens, uploads: Some(uploads), ..Shared::default() }).await
    }

    /// What was pushed to a registry that takes pushes.
    pub(crate) fn uploads(&self) -> &Uploads {
        self.shared.uploads.as_ref().unwrap()
    }

    /// Serves it over connections that end with a reset, so that [`Fault::Truncate`] is one.
    pub(crate) async fn with_resets(layout: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listener = listener.tap_io(|connection| connection.set_zero_linger().unwrap());
        let shared = Arc::new(Shared::default());
        let router = faulty_router(router(layout.to_owned()).unwrap(), &shared);
        Self { serving: serve_on(listener, router).unwrap(), shared }
    }

    async fn over(router: Router, shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let router = faulty_router(router, &shared);
        Self { serving: serve(router).await.unwrap(), shared }
    }

    /// Stops serving; returns once nobody can connect any more and idle connections are closed.
    pub(crate) async fn stop(self) {
        let address = self.serving.address();
        drop(self.serving);
        while tokio::net::TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn host(&self) -> String {
        self.serving.address().to_string()
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `HOST/test/sample:v1`
    pub(crate) fn reference(&self) -> Reference {
        format!("{}/test/sample:v1", self.host()).parse().unwrap()
    }

    /// Adds a rule; of several that fit a request the first counts.
    pub(crate) fn rule(&self, rule: Rule) {
        self.shared.rules.lock().push(rule);
    }

    /// The requests so far whose path contains `path`.
    pub(crate) fn log(&self, path: &str) -> Vec<Logged> {
        self.shared.log.lock().iter().filter(|one| one.path.contains(path)).cloned().collect()
    }

    /// Refuses all tokens given out so far.
    pub(crate) fn revoke_tokens(&self) {
        self.shared.given.lock().valid.clear();
    }
}

fn faulty_router(router: Router, shared: &Arc<Shared>) -> Router {
    router.layer(from_fn_with_state(shared.clone(), around))
}

async fn around(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let logged = logged(&request);
    let (path, authorization) = (logged.path.clone(), logged.authorization.clone());
    let fault = shared.fault(&format!("{} {path}", logged.method));
    shared.log.lock().push(logged);
    if matches!(fault, Some(Fault::Revoke)) {
        shared.given.lock().valid.clear();
    }
    match (fault.filter(|fault| !matches!(fault, Fault::Revoke)), &shared.tokens) {
        (Some(fault), _) => faulty(fault, &path, request, next).await,
        (None, Some(tokens)) if path.starts_with("/token") => shared.token(tokens, authorization.as_deref()),
        (None, Some(_)) if !shared.admits(authorization.as_deref()) => challenge(request.headers()),
        _ => next.run(request).await,
    }
}

fn logged(request: &Request) -> Logged {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let path = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    Logged {
        method: request.method().to_string(),
        path,
        content_range: header(CONTENT_RANGE),
        range: header(RANGE),
        authorization: header(AUTHORIZATION),
    }
}

impl Shared {
    fn fault(&self, path: &str) -> Option<Fault> {
        let mut rules = self.rules.lock();
        let rule = rules.iter_mut().find(|rule| path.contains(rule.path) && rule.times > 0)?;
        if rule.skip > 0 {
            rule.skip -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault.clone())
    }

    fn admits(&self, authorization: Option<&str>) -> bool {
        let token = authorization.and_then(|text| text.strip_prefix("Bearer "));
        token.is_some_and(|token| self.given.lock().valid.iter().any(|valid| valid == token))
    }

    fn token(&self, tokens: &Tokens, authorization: Option<&str>) -> Response {
        let due = tokens
            .user
            .map(|(user, password)| format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))));
        if due.is_some() && due.as_deref() != authorization {
            return answer(401, &[], "{}");
        }
        let mut given = self.given.lock();
        given.count += 1;
        let token = format!("canary-token-{}", given.count);
        given.valid.push(token.clone());
        answer(200, &[], &format!(r#"{{"token":"{token}","expires_in":{}}}"#, tokens.life))
    }
}

fn challenge(headers: &HeaderMap) -> Response {
    let host = headers.get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
    let value =
        format!(r#"Bearer realm="http://{host}/token",service="test",scope="repository:test/sample:pull""#);
    answer(
        401,
        &[(WWW_AUTHENTICATE, &value)],
        r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#,
    )
}

pub(crate) fn answer(status: u16, headers: &[(HeaderName, &str)], body: &str) -> Response {
    let builder = Response::builder().status(status);
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(name, *value));
    builder.body(Body::from(body.to_owned())).unwrap()
}

async fn faulty(fault: Fault, path: &str, mut request: Request, next: Next) -> Response {
    match &fault {
        Fault::Status(status) => return answer(*status, &[], ""),
        Fault::RetryAfter(status, wait) => {
            return answer(*status, &[(HeaderName::from_static("retry-after"), wait)], "");
        }
        Fault::Redirect(origin) => {
            let mark = if path.contains('?') { '&' } else { '?' };
            return answer(
                307,
                &[(LOCATION, &format!("{origin}{path}{mark}signature=canary-signature"))],
                "",
            );
        }
        Fault::RedirectTo(location) => return answer(307, &[(LOCATION, location)], ""),
        Fault::IgnoreRange => {
            request.headers_mut().remove(RANGE);
        }
        Fault::BreakBody(_) | Fault::StallBody(_) | Fault::Lose | Fault::Forget(_) => {
            request.extensions_mut().insert(fault);
            return next.run(request).await;
        }
        _ => {}
    }
    let mut response = next.run(request).await;
    let body = std::mem::take(response.body_mut());
    let body = to_bytes(body, usize::MAX).await.unwrap();
    spoil(fault, response, body)
}

fn spoil(fault: Fault, mut response: Response, body: Bytes) -> Response {
    let headers = response.headers_mut();
    let body = match fault {
        Fault::Truncate(at) => broken(body, at),
        Fault::Stall(at) => stalled(body, at),
        Fault::Header(name, value) => {
            headers.insert(name, value.parse().unwrap());
            Body::from(body)
        }
        Fault::NoHeader(name) => {
            headers.remove(name);
            Body::from(body)
        }
        Fault::Short(by) => {
            headers.remove(CONTENT_LENGTH);
            chunked(body.slice(..body.len() - by))
        }
        Fault::Overlong(by) => {
            headers.remove(CONTENT_LENGTH);
            chunked([&body[..], &vec![7; by]].concat().into())
        }
        Fault::Html206 => {
            headers.insert(CONTENT_TYPE, "text/html".parse().unwrap());
            headers.remove(CONTENT_LENGTH);
            headers.remove(CONTENT_RANGE);
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            Body::from("<html>Please log in to this network</html>")
        }
        Fault::Flip(at) => {
            let mut bytes = body.to_vec();
            bytes[at] ^= 1;
            Body::from(bytes)
        }
        _ => Body::from(body),
    };
    *response.body_mut() = body;
    response
}

fn broken(body: Bytes, at: usize) -> Body {
    let start = stream::iter([Ok(body.slice(..at.min(body.len())))]);
    // The bytes before the break must leave before the connection is closed under them.
    let end = stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(std::io::Error::other("cut"))
    });
    Body::from_stream(start.chain(end))
}

fn stalled(body: Bytes, at: usize) -> Body {
    let start = stream::iter([Ok::<_, std::io::Error>(body.slice(..at.min(body.len())))]);
    Body::from_stream(start.chain(stream::pending()))
}

fn chunked(body: Bytes) -> Body {
    Body::from_stream(stream::iter([Ok::<_, std::io::Error>(body)]))
}
