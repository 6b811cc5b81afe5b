//! The half of the faulty registry that takes pushes: sessions, parts, mounts and manifests, with the habits that real
//! registries have. What is pushed lies in the image layout folder that the other half serves from.
//!
//! Strict where a client may be lax: a part at another place, or under an address that is not the latest, is refused.
#![allow(clippy::result_large_err, reason = "a refusal is an answer, and answers are large")]

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderName, LOCATION, RANGE};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt;
use futures_util::stream;
use parking_lot::Mutex;
use serde_json::{Value, json};
use weightfs::oci::Digest;

use super::server::{Fault, answer};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What a registry is like all the time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Habits {
    /// What goes before the path of an upload's place; a path alone where empty.
    pub(crate) origin: String,
    /// The least that it wants of a part.
    pub(crate) least: Option<&'static str>,
    /// The most that it takes in one request.
    pub(crate) largest: Option<u64>,
    /// Whether it takes no parts.
    pub(crate) whole_only: bool,
    /// Whether it forgets each upload with its first part.
    pub(crate) forgetful: bool,
}

/// What was pushed, and what is under way.
pub(crate) struct Uploads {
    folder: PathBuf,
    pub(crate) habits: Mutex<Habits>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    count: u64,
    sessions: HashMap<String, Session>,
    /// In which repositories a pushed blob is.
    pushed: HashMap<String, HashSet<String>>,
    received: u64,
}

#[derive(Default)]
struct Session {
    bytes: Vec<u8>,
    /// The part of its address that changes with every answer.
    state: u64,
}

/// The end of a handler before its good answer.
type Reply<T> = Result<T, Response>;

impl Uploads {
    pub(crate) fn new(folder: PathBuf, habits: Habits) -> Self {
        Self { folder, habits: Mutex::new(habits), kept: Mutex::default() }
    }

    /// Bytes of blobs that came in, in all.
    pub(crate) fn received(&self) -> u64 {
        self.kept.lock().received
    }

    /// How many uploads are under way.
    pub(crate) fn under_way(&self) -> usize {
        self.kept.lock().sessions.len()
    }

    /// The bytes of a blob that was pushed.
    pub(crate) fn blob(&self, digest: &Digest) -> Vec<u8> {
        std::fs::read(self.folder.join("blobs/sha256").join(digest.hex())).unwrap()
    }

    fn begin(&self, path: &str, query: &HashMap<String, String>) -> Response {
        let repository = repository(path);
        let mut kept = self.kept.lock();
        if let (Some(digest), Some(from)) = (query.get("mount"), query.get("from")) {
            let places = kept.pushed.entry(digest.clone()).or_default();
            if places.contains(from) {
                places.insert(repository);
                return answer(201, &[(LOCATION, "/somewhere"), (CONTENT_DIGEST, digest)], "");
            }
        }
        kept.count += 1;
        let id = kept.count.to_string();
        kept.sessions.insert(id.clone(), Session::default());
        drop(kept);
        let place = format!("/v2/{repository}/blobs/uploads/{id}");
        let least = self.habits.lock().least;
        let mut response = self.standing(202, &place, &id);
        if let Some(least) = least {
            response.headers_mut().insert("oci-chunk-min-length", least.parse().unwrap());
        }
        response
    }

    /// An answer that says how far an upload is, and where it goes on from now.
    fn standing(&self, status: u16, path: &str, id: &str) -> Response {
        let mut kept = self.kept.lock();
        kept.count += 1;
        let state = kept.count;
        let Some(session) = kept.sessions.get_mut(id) else { return unknown() };
        session.state = state;
        let range = format!("0-{}", session.bytes.len().saturating_sub(1));
        let place = format!("{}{path}?_state=canary-state-{state}", self.habits.lock().origin);
        answer(status, &[(LOCATION, &place), (RANGE, &range)], "")
    }

    fn known(&self, id: &str, query: &HashMap<String, String>) -> Reply<usize> {
        let kept = self.kept.lock();
        let session = kept.sessions.get(id).ok_or_else(unknown)?;
        let latest =
            query.get("_state").is_some_and(|state| *state == format!("canary-state-{}", session.state));
        if latest { Ok(session.bytes.len()) } else { Err(unknown()) }
    }

    async fn part(&self, path: &str, id: &str, fault: Option<Fault>, request: Request) -> Reply<Response> {
        let habits = self.habits.lock().clone();
        if habits.whole_only {
            return Err(answer(405, &[], r#"{"errors":[{"code":"UNSUPPORTED","message":"no parts"}]}"#));
        }
        let have = self.kept.lock().sessions.get(id).map_or(0, |session| session.bytes.len());
        let told = header(request.headers(), CONTENT_RANGE);
        let (first, last) = told.split_once('-').expect("a Content-Range");
        let len = last.parse::<usize>().unwrap() + 1 - first.parse::<usize>().unwrap();
        assert_eq!(header(request.headers(), CONTENT_LENGTH), len.to_string());
        if first != have.to_string() {
            return Err(answer(416, &[(RANGE, &format!("0-{}", have.saturating_sub(1)))], ""));
        }
        self.take(id, fault, request).await?;
        if habits.forgetful {
            self.kept.lock().sessions.remove(id);
            return Err(unknown());
        }
        Ok(self.standing(202, path, id))
    }

    /// Takes a body into the session, as far as a fault lets it.
    async fn take(&self, id: &str, fault: Option<Fault>, request: Request) -> Reply<()> {
        let len: u64 = header(request.headers(), CONTENT_LENGTH).parse().unwrap();
        let largest = self.habits.lock().largest;
        if largest.is_some_and(|largest| len > largest) {
            return Err(answer(413, &[], ""));
        }
        let limit = match fault {
            Some(Fault::BreakBody(limit) | Fault::StallBody(limit)) => limit,
            _ => usize::MAX,
        };
        let (mut taken, mut body) = (0, request.into_body().into_data_stream());
        while taken < limit {
            let Some(frame) = body.next().await else { break };
            let frame = frame.map_err(|_| hung_up())?;
            let frame = frame.slice(..frame.len().min(limit - taken));
            taken += frame.len();
            let mut kept = self.kept.lock();
            kept.received += frame.len() as u64;
            kept.sessions.get_mut(id).ok_or_else(unknown)?.bytes.extend_from_slice(&frame);
        }
        match fault {
            Some(Fault::BreakBody(_)) => Err(hung_up()),
            Some(Fault::StallBody(_)) => std::future::pending().await,
            _ => Ok(()),
        }
    }

    async fn end(
        &self,
        path: &str,
        id: &str,
        digest: &str,
        fault: Option<Fault>,
        request: Request,
    ) -> Reply<Response> {
        let answered = fault.clone();
        self.take(id, None, request).await?;
        let session = self.kept.lock().sessions.remove(id).ok_or_else(unknown)?;
        let found = Digest::of(&session.bytes);
        if found.to_string() != digest {
            return Err(answer(400, &[], r#"{"errors":[{"code":"DIGEST_INVALID","message":"not that"}]}"#));
        }
        self.keep(&found, &session.bytes);
        self.kept.lock().pushed.entry(digest.to_owned()).or_default().insert(repository(path));
        if matches!(answered, Some(Fault::BreakBody(_))) {
            return Err(hung_up());
        }
        Ok(answer(201, &[(LOCATION, "/somewhere"), (CONTENT_DIGEST, digest)], ""))
    }

    fn keep(&self, digest: &Digest, bytes: &[u8]) {
        std::fs::write(self.folder.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    }

    async fn manifest(&self, name: &str, request: Request) -> Response {
        let media_type = header(request.headers(), CONTENT_TYPE);
        let bytes = axum::body::to_bytes(request.into_body(), 4 << 20).await.unwrap();
        let digest = Digest::of(&bytes);
        self.keep(&digest, &bytes);
        let path = self.folder.join("index.json");
        let mut index: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let entries = index["manifests"].as_array_mut().unwrap();
        entries.retain(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] != name);
        let mut entry = json!({"mediaType": media_type, "digest": digest, "size": bytes.len()});
        if !name.contains(':') {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        entries.push(entry);
        std::fs::write(&path, index.to_string()).unwrap();
        answer(201, &[(LOCATION, "/somewhere"), (CONTENT_DIGEST, &digest.to_string())], "")
    }

    /// Whether a pushed blob is hidden from this repository, since it was pushed to others only.
    fn hides(&self, path: &str) -> bool {
        let Some((_, digest)) = path.split_once("/blobs/") else { return false };
        let kept = self.kept.lock();
        kept.pushed.get(digest).is_some_and(|places| !places.contains(&repository(path)))
    }
}

/// Answers what has to do with pushing, and leaves the rest to those who read.
pub(crate) async fn around(
    State(uploads): State<Arc<Uploads>>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method().clone(), request.uri().clone());
    let path = uri.path();
    let query =
        url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()).into_owned().collect();
    if let Some(id) = path.split("/blobs/uploads/").nth(1) {
        let fault = request.extensions_mut().remove::<Fault>();
        return session(&uploads, &method, path, id, &query, fault, request)
            .await
            .unwrap_or_else(|reply| reply);
    }
    match path.split_once("/manifests/") {
        Some((_, name)) if method == Method::PUT => uploads.manifest(name, request).await,
        _ if uploads.hides(path) => unknown(),
        _ => next.run(request).await,
    }
}

async fn session(
    uploads: &Uploads,
    method: &Method,
    path: &str,
    id: &str,
    query: &HashMap<String, String>,
    fault: Option<Fault>,
    request: Request,
) -> Reply<Response> {
    if *method == Method::POST {
        return Ok(uploads.begin(path, query));
    }
    let have = uploads.known(id, query)?;
    match fault {
        Some(Fault::Lose) => {
            uploads.kept.lock().sessions.remove(id);
            return Err(unknown());
        }
        Some(Fault::Forget(some)) => {
            let mut kept = uploads.kept.lock();
            kept.sessions.get_mut(id).unwrap().bytes.truncate(have.saturating_sub(some));
        }
        _ => {}
    }
    match method.as_str() {
        "PATCH" => uploads.part(path, id, fault, request).await,
        "PUT" => uploads.end(path, id, &query["digest"], fault, request).await,
        "GET" => Ok(uploads.standing(204, path, id)),
        "DELETE" => {
            uploads.kept.lock().sessions.remove(id);
            Ok(answer(204, &[], ""))
        }
        _ => Ok(answer(405, &[], "")),
    }
}

fn repository(path: &str) -> String {
    path.trim_start_matches("/v2/").split("/blobs/").next().unwrap().to_owned()
}

fn header(headers: &HeaderMap, name: HeaderName) -> String {
    headers.get(&name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap().to_owned()
}

fn unknown() -> Response {
    answer(404, &[], r#"{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"never heard of it"}]}"#)
}

/// No answer: the connection is closed.
fn hung_up() -> Response {
    let cut = async { Err::<Bytes, _>(std::io::Error::other("cut")) };
    Response::new(Body::from_stream(stream::once(cut)))
}
