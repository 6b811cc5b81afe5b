//! A registry on the loopback that asks for credentials the way a registry of the world does: its challenge, its token
//! service, its words for a token whose time is over. What it serves is an image layout.

use std::path::Path;
use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{AUTHORIZATION, HeaderName, LOCATION, RANGE, WWW_AUTHENTICATE};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use weightfs::oci::Reference;
use weightfs::testing::registry::{Serving, Source, serve};

use crate::support::canary;

/// What it asks for on 401.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token of the service at this path, under this name, for this scope; `HOST` stands for its own.
    Bearer { path: &'static str, service: &'static str, scope: &'static str },
}

/// How a registry behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Make {
    pub(crate) challenge: Challenge,
    /// Who may pull, by password; nobody's password is wrong where `None`.
    pub(crate) user: Option<&'static str>,
    /// Whether its token service takes identity tokens by POST, or what it answers to one.
    pub(crate) post: Result<(), u16>,
    /// Whether it gives tokens to those without credentials: that they open something is not said by it.
    pub(crate) tokens_for_all: bool,
    /// What a token comes as.
    pub(crate) token: fn(&str) -> Value,
    /// What it answers to a token, or a password, whose time is over.
    pub(crate) expired: (u16, &'static str),
}

/// What a registry says to who has no rights.
pub(crate) const UNAUTHORIZED: &str =
    r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required","detail":null}]}"#;
/// What ECR says to a token whose time is over.
pub(crate) const ECR_EXPIRED: &str = r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;

impl Default for Make {
    fn default() -> Self {
        Self {
            challenge: Challenge::Bearer {
                path: "/token",
                service: "test",
                scope: "repository:test/sample:pull",
            },
            user: None,
            post: Err(405),
            tokens_for_all: true,
            token: |token| json!({"token": token, "expires_in": 300}),
            expired: (401, UNAUTHORIZED),
        }
    }
}

/// A request to its token service.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    pub(crate) query: String,
    pub(crate) authorization: Option<String>,
    pub(crate) form: String,
}

/// The registry; it ends when dropped.
pub(crate) struct StandIn {
    serving: Serving,
    shared: Arc<Shared>,
}

struct Shared {
    make: Make,
    state: Mutex<Stand>,
}

#[derive(Default)]
struct Stand {
    password: String,
    given: usize,
    /// How many of the tokens given first are over.
    over: usize,
    asked: Vec<Asked>,
    requests: usize,
    refused: usize,
    ranges: Vec<String>,
    canned: Vec<Canned>,
}

/// An answer to the next request for content, whoever asks.
enum Canned {
    /// A status, seconds to wait, a body.
    Status(u16, &'static str, &'static str),
    /// To the same path at this origin, with a signature.
    Redirect(String),
}

impl StandIn {
    /// One of this make over the image layout at `layout`. The password is [`canary::PASSWORD`].
    pub(crate) async fn start(layout: &Path, make: Make) -> Self {
        let state = Stand { password: canary::PASSWORD.to_owned(), ..Stand::default() };
        let shared = Arc::new(Shared { make, state: Mutex::new(state) });
        let router = Source::layout(layout.to_owned()).unwrap().router();
        let router = router.layer(from_fn_with_state(shared.clone(), around));
        Self { serving: serve(router).await.unwrap(), shared }
    }

    /// `127.0.0.1:PORT`
    pub(crate) fn host(&self) -> String {
        self.serving.address().to_string()
    }

    /// `HOST/test/sample:v1`
    pub(crate) fn reference(&self) -> Reference {
        format!("{}/test/sample:v1", self.host()).parse().unwrap()
    }

    /// From now on every token given so far is over.
    pub(crate) fn expire(&self) {
        let mut state = self.shared.state.lock();
        state.over = state.given;
    }

    /// From now on the password is another one; a Basic header with the old one counts as over.
    pub(crate) fn set_password(&self, password: &str) {
        password.clone_into(&mut self.shared.state.lock().password);
    }

    /// The next request for a manifest or a blob gets this status and body, with a header `Retry-After` of so many seconds.
    pub(crate) fn next_answer(&self, status: u16, retry_after: &'static str, body: &'static str) {
        self.shared.state.lock().canned.push(Canned::Status(status, retry_after, body));
    }

    /// The next such request is sent to `origin`, with a signature in the address.
    pub(crate) fn next_redirect(&self, origin: String) {
        self.shared.state.lock().canned.push(Canned::Redirect(origin));
    }

    /// The requests to its token service so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.shared.state.lock().asked.clone()
    }

    /// How many other requests it has had so far, and how many of them it refused.
    pub(crate) fn requests(&self) -> (usize, usize) {
        let state = self.shared.state.lock();
        (state.requests, state.refused)
    }

    /// The values of all `Range` headers so far.
    pub(crate) fn ranges(&self) -> Vec<String> {
        self.shared.state.lock().ranges.clone()
    }
}

fn answer(status: u16, headers: &[(HeaderName, &str)], body: &str) -> Response {
    let builder = Response::builder().status(status);
    let builder = headers.iter().fold(builder, |builder, (name, value)| builder.header(name, *value));
    builder.body(Body::from(body.to_owned())).unwrap()
}

/// A Basic header.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

async fn around(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let header =
        |headers: &HeaderMap, name| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (path, host) =
        (request.uri().path().to_owned(), header(request.headers(), HeaderName::from_static("host")));
    let authorization = header(request.headers(), AUTHORIZATION);
    if let Challenge::Bearer { path: service, .. } = shared.make.challenge
        && path == service
    {
        let (parts, body) = request.into_parts();
        let asked = Asked {
            method: parts.method.to_string(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            authorization,
            form: String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap(),
        };
        return shared.token(asked);
    }
    shared.state.lock().ranges.extend(header(request.headers(), RANGE));
    match shared.refusal(authorization.as_deref(), &host.unwrap_or_default()) {
        Some(refusal) => refusal,
        None if path == "/v2/" => answer(200, &[], "{}"),
        None => match shared.canned(&path) {
            Some(canned) => canned,
            None => next.run(request).await,
        },
    }
}

impl Shared {
    fn canned(&self, path: &str) -> Option<Response<Body>> {
        let content = path.contains("/manifests/") || path.contains("/blobs/");
        let canned = if content { self.state.lock().canned.pop()? } else { return None };
        Some(match canned {
            Canned::Status(status, wait, body) => {
                answer(status, &[(HeaderName::from_static("retry-after"), wait)], body)
            }
            Canned::Redirect(origin) => {
                let address = format!("{origin}{path}?signature={}", canary::SIGNATURE);
                answer(307, &[(LOCATION, &address)], "")
            }
        })
    }

    fn token(&self, asked: Asked) -> Response {
        let knows = self.knows(&asked);
        let mut state = self.state.lock();
        state.asked.push(asked);
        if let Err(status) = knows {
            let body = if status == 400 { r#"{"error":"invalid_grant"}"# } else { UNAUTHORIZED };
            return answer(status, &[], body);
        }
        state.given += 1;
        let token = format!("{}-{}-", canary::TOKEN, state.given);
        answer(200, &[], &(self.make.token)(&token).to_string())
    }

    /// Whether who asks for a token gets one, or the status that says why not.
    fn knows(&self, asked: &Asked) -> Result<(), u16> {
        if asked.method == "POST" {
            let form = asked.form.split('&').collect::<Vec<_>>();
            let right = form.contains(&"grant_type=refresh_token")
                && form.contains(&&*format!("refresh_token={}", canary::IDENTITY));
            self.make.post?;
            return if right { Ok(()) } else { Err(400) };
        }
        match (&asked.authorization, self.make.user) {
            (_, None) => Ok(()),
            (None, Some(_)) => {
                if self.make.tokens_for_all {
                    Ok(())
                } else {
                    Err(401)
                }
            }
            (Some(given), Some(user)) => {
                if self.is_right(given, user) {
                    Ok(())
                } else {
                    Err(401)
                }
            }
        }
    }

    fn is_right(&self, authorization: &str, user: &str) -> bool {
        let with = |secret: &str| authorization == basic(user, secret);
        with(&self.state.lock().password) || with(canary::IDENTITY)
    }

    /// The refusal of a request with this header, if it is refused.
    fn refusal(&self, authorization: Option<&str>, host: &str) -> Option<Response> {
        let right = self.admits(authorization);
        let mut state = self.state.lock();
        state.requests += 1;
        let (status, body) = match right {
            Ok(()) => return None,
            Err(refusal) => refusal,
        };
        state.refused += 1;
        let challenge = self.challenge(host);
        let challenge = [(WWW_AUTHENTICATE, &*challenge)];
        Some(answer(status, if status == 401 { &challenge } else { &[] }, body))
    }

    fn admits(&self, authorization: Option<&str>) -> Result<(), (u16, &'static str)> {
        let Some(authorization) = authorization else { return Err((401, UNAUTHORIZED)) };
        match self.make.challenge {
            Challenge::Basic => match self.make.user {
                Some(user) if self.is_right(authorization, user) => Ok(()),
                _ => Err(self.make.expired),
            },
            Challenge::Bearer { .. } => self.admits_token(authorization),
        }
    }

    fn admits_token(&self, authorization: &str) -> Result<(), (u16, &'static str)> {
        let token = authorization.strip_prefix(&format!("Bearer {}-", canary::TOKEN));
        let number = token.and_then(|rest| rest.trim_end_matches('-').parse::<usize>().ok());
        let state = self.state.lock();
        let number = number.filter(|number| *number <= state.given).ok_or((401, UNAUTHORIZED))?;
        if number <= state.over {
            return Err(self.make.expired);
        }
        // A token for all opens nothing where a user is asked for.
        let of_user = state.asked.iter().any(|one| one.authorization.is_some() || one.method == "POST");
        if self.make.user.is_some() && !of_user { Err((401, UNAUTHORIZED)) } else { Ok(()) }
    }

    fn challenge(&self, host: &str) -> String {
        match self.make.challenge {
            Challenge::Basic => format!(r#"Basic realm="http://{host}/",service="ecr.amazonaws.com""#),
            Challenge::Bearer { path, service, scope } => {
                let service = service.replace("HOST", host);
                format!(r#"Bearer realm="http://{host}{path}",service="{service}",scope="{scope}""#)
            }
        }
    }
}
