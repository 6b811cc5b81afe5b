//! Pushing to a registry, request by request (OCI distribution specification 1.1, "Push").
//!
//! Every call is one attempt. What follows after a failure, and from which byte on, is [`crate::repository::push`]'s to
//! say; here is what each answer means for it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LOCATION, RANGE,
};
use reqwest::{Method, Response, StatusCode};

use super::ask::{Ask, Body, Stretch};
use super::auth::Auth;
use super::hops::Hop;
use super::manifests::CONTENT_DIGEST;
use super::{Registry, name_on_the_wire, wire};
use crate::error::{Error, Kind, Result};
use crate::oci::digest::Hasher;
use crate::oci::{Blob, Digest, Which};

const CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");
const OCTETS: HeaderValue = HeaderValue::from_static("application/octet-stream");

/// How fast a registry checks or moves a blob before it says that it has it, in bytes a second: slow object stores.
const CHECKED: u64 = 32 << 20;

/// An upload under way, as the registry knows it.
#[derive(Debug)]
pub(in crate::repository) struct Session {
    hop: Hop,
    /// How many bytes the registry has.
    pub(in crate::repository) offset: u64,
    /// The least that a part other than the last may have.
    pub(in crate::repository) least: u64,
}

/// Why a step of an upload was not taken.
#[derive(Debug)]
pub(in crate::repository) enum Setback {
    /// The registry knows nothing of the session (any more).
    Lost(Error),
    /// It has other bytes than we thought.
    Misplaced(Error),
    /// The part is larger than it, or a proxy before it, takes at once.
    TooLarge(Error),
    /// Anything else.
    Failed(Error),
}

impl From<Error> for Setback {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Registry {
    /// Whether the registry has the blob in this repository.
    pub(in crate::repository) async fn has(&self, blob: &Blob) -> Result<bool> {
        let url = self.url(&format!("blobs/{}", blob.digest))?;
        let (_, response) = self.follow(Hop::first(url), &Ask::new(Method::HEAD, &self.auth)).await?;
        match response.status() {
            StatusCode::OK => {
                // Some leave the length out of an answer without a body, or say 0.
                let told = wire::one(response.headers(), &CONTENT_LENGTH)?.and_then(|text| text.parse().ok());
                Ok(told.is_none_or(|told: u64| told == blob.size || told == 0))
            }
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.unpushed(response).await),
        }
    }

    /// Whether the registry took the blob over from the repository `from`; an upload that it begins instead is
    /// cancelled. Any refusal is a no: `from` may be missing or not ours to read.
    pub(in crate::repository) async fn mounted(&self, blob: &Blob, from: &str) -> Result<bool> {
        let from = name_on_the_wire(&self.host, from);
        let auth = self.auth_with(&from);
        let mut url = self.url("blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", &blob.digest.to_string()).append_pair("from", &from);
        let answer = self.follow(Hop::first(url), &post(&auth)).await;
        let (hop, response) = match answer {
            Err(error) if error.kind() == Kind::Denied => return Ok(false),
            answer => answer?,
        };
        match response.status() {
            StatusCode::CREATED => same_digest(&blob.digest, response.headers()).map(|()| true),
            StatusCode::ACCEPTED => {
                // Without a usable place there is nothing to cancel, and a no all the same.
                match self.session(&hop, response.headers()) {
                    Ok(session) => self.cancel(&session).await,
                    Err(error) => tracing::debug!(%error, "nothing to cancel"),
                }
                Ok(false)
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                Err(self.unpushed(response).await)
            }
            status => {
                tracing::debug!(%status, from, "not mounted from there");
                Ok(false)
            }
        }
    }

    /// The authorization that may also read `from`: made once for many blobs of one repository.
    fn auth_with(&self, from: &str) -> Arc<Auth> {
        let mut mounting = self.mounting.lock();
        match &*mounting {
            Some((known, auth)) if known == from => auth.clone(),
            _ => {
                let auth = Arc::new(self.auth.and_pull(from));
                *mounting = Some((from.to_owned(), auth.clone()));
                auth
            }
        }
    }

    /// Begins an upload.
    pub(in crate::repository) async fn begin(&self) -> Result<Session> {
        let (hop, response) = self.follow(Hop::first(self.url("blobs/uploads/")?), &post(&self.auth)).await?;
        if response.status() != StatusCode::ACCEPTED {
            return Err(self.unpushed(response).await);
        }
        self.session(&hop, response.headers())
    }

    fn session(&self, hop: &Hop, headers: &HeaderMap) -> Result<Session> {
        let place = self.place_of(hop, headers)?;
        let hop = place.ok_or_else(|| wire::protocol("an upload without a usable Location"))?;
        let least = wire::one(headers, &CHUNK_MIN_LENGTH)?.and_then(|text| text.parse().ok()).unwrap_or(0);
        Ok(Session { hop, offset: 0, least })
    }

    /// Where the upload goes on, as the answer to `hop` says.
    fn place_of(&self, hop: &Hop, headers: &HeaderMap) -> Result<Option<Hop>> {
        let Some(location) = headers.get(LOCATION) else { return Ok(None) };
        let location = location.to_str().map_err(|_| wire::protocol("a Location that is no text"))?;
        hop.next(&self.reach, location).map(Some).map_err(|error| error.context("the place of an upload"))
    }

    /// Sends the next part, which begins at the session's offset.
    pub(in crate::repository) async fn send_part(
        &self,
        session: &mut Session,
        part: Stretch<'_>,
    ) -> Result<(), Setback> {
        let range = HeaderValue::from_str(&part.range.to_string())
            .map_err(|error| Error::from_source(Kind::Invalid, "a part of an upload", error))?;
        let ask =
            Ask::new(Method::PATCH, &self.auth).header(CONTENT_TYPE, OCTETS).header(CONTENT_RANGE, range);
        let (hop, response) = self.follow(session.hop.clone(), &ask.body(Body::Blob(part))).await?;
        match response.status() {
            status if status.is_success() => {}
            // It took the upload: it is parts that it does not take.
            status @ (StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED) => {
                return Err(wire::protocol(format!("{status}: it takes no parts")).into());
            }
            _ => return Err(self.setback(response).await),
        }
        if let Some(next) = self.place_of(&hop, response.headers())? {
            session.hop = next;
        }
        match offset(response.headers())? {
            Some(told) if told > part.range.end() => {
                Err(wire::protocol(format!("it has {told} bytes of the {} sent", part.range.end())).into())
            }
            Some(told) if told < part.range.end() => Err(Setback::Misplaced(wire::protocol(format!(
                "it took {told} of {} bytes",
                part.range.end()
            )))),
            _ => {
                session.offset = part.range.end();
                Ok(())
            }
        }
    }

    /// Asks how far the upload is.
    pub(in crate::repository) async fn locate(&self, session: &mut Session) -> Result<(), Setback> {
        let (hop, response) = self.follow(session.hop.clone(), &Ask::new(Method::GET, &self.auth)).await?;
        if !response.status().is_success() {
            let status = response.status();
            return Err(match self.setback(response).await {
                // One that cannot be asked about cannot be gone on with.
                Setback::Failed(error) if status.is_client_error() && error.kind() == Kind::Protocol => {
                    Setback::Lost(error)
                }
                other => other,
            });
        }
        let told = offset(response.headers())?;
        session.offset =
            told.ok_or_else(|| Setback::Lost(wire::protocol("the state of an upload without a Range")))?;
        if let Some(next) = self.place_of(&hop, response.headers())? {
            session.hop = next;
        }
        Ok(())
    }

    /// Ends the upload: what the registry has now, and `rest` after it, is the blob.
    pub(in crate::repository) async fn finish(
        &self,
        session: &Session,
        blob: &Blob,
        rest: Option<Stretch<'_>>,
    ) -> Result<(), Setback> {
        let mut hop = session.hop.clone();
        hop.url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let body = rest.map_or_else(|| Body::Bytes(Bytes::new()), Body::Blob);
        let mut ask = Ask::new(Method::PUT, &self.auth).header(CONTENT_TYPE, OCTETS).body(body);
        ask.patience = Duration::from_secs(blob.size / CHECKED);
        let (_, response) = self.follow(hop, &ask).await?;
        if !response.status().is_success() {
            return Err(self.setback(response).await);
        }
        Ok(same_digest(&blob.digest, response.headers())?)
    }

    /// Ends the upload for nothing. Whether the registry minds is its own matter: it clears up after a while.
    pub(in crate::repository) async fn cancel(&self, session: &Session) {
        let ask = Ask::new(Method::DELETE, &self.auth);
        match self.follow(session.hop.clone(), &ask).await {
            Ok((_, response)) => tracing::debug!(status = %response.status(), "upload cancelled"),
            Err(error) => tracing::debug!(%error, "upload not cancelled"),
        }
    }

    /// Puts a manifest under a tag or its digest. The answer may take `patience` longer than others: registries look for
    /// everything that it names first.
    pub(in crate::repository) async fn put_manifest(
        &self,
        which: &Which,
        media_type: &str,
        manifest: &Bytes,
        patience: Duration,
    ) -> Result<()> {
        let media_type = HeaderValue::from_str(media_type).map_err(|error| {
            Error::from_source(Kind::Invalid, format!("the media type {media_type:?}"), error)
        })?;
        let ask = Ask::new(Method::PUT, &self.auth).header(CONTENT_TYPE, media_type);
        let ask = Ask { patience, ..ask.body(Body::Bytes(manifest.clone())) };
        let hop = Hop::first(self.url(&format!("manifests/{which}"))?);
        let (_, response) = self.follow(hop, &ask).await?;
        if !response.status().is_success() {
            return Err(self.unpushed(response).await);
        }
        same_bytes(manifest, response.headers())
    }

    async fn setback(&self, response: Response) -> Setback {
        let status = response.status();
        let error = self.unpushed(response).await;
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => Setback::Lost(error),
            StatusCode::RANGE_NOT_SATISFIABLE => Setback::Misplaced(error),
            StatusCode::PAYLOAD_TOO_LARGE => Setback::TooLarge(error),
            _ => Setback::Failed(error),
        }
    }

    /// The error that a refusal to take something means.
    async fn unpushed(&self, response: Response) -> Error {
        let url = response.url().clone();
        let refused = wire::refused(response, self.stall).await;
        let error = self.elsewhere(&url, refused.error);
        let says = |code: &str| refused.codes.iter().any(|one| one == code);
        if refused.no_room {
            return Error::from_source(Kind::Storage, "the registry has no room left", error);
        }
        match refused.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.explained(error),
            StatusCode::NOT_FOUND => {
                error.hint("check the name; some registries want a repository to be made first")
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                Error::from_source(Kind::Denied, "the registry is read-only", error)
            }
            StatusCode::PAYLOAD_TOO_LARGE => {
                let doing = "the registry, or a proxy before it, takes nothing that large";
                Error::from_source(Kind::Invalid, doing, error)
            }
            StatusCode::NOT_IMPLEMENTED => wire::protocol("it does not know how").context(error.to_string()),
            _ if says("DIGEST_INVALID") => {
                Error::from_source(Kind::Integrity, "the bytes are not what the digest names", error)
                    .hint("files must stay as they are while they are pushed")
            }
            _ if says("MANIFEST_INVALID") || says("MANIFEST_BLOB_UNKNOWN") || says("NAME_INVALID") => {
                Error::from_source(Kind::Invalid, "the registry does not take it", error)
            }
            _ => error,
        }
    }
}

fn post(auth: &Arc<Auth>) -> Ask<'_> {
    Ask::new(Method::POST, auth).body(Body::Bytes(Bytes::new()))
}

/// How many bytes the registry has: `0-N` is the last byte, and what an empty upload says too.
fn offset(headers: &HeaderMap) -> Result<Option<u64>> {
    let Some(text) = wire::one(headers, &RANGE)? else { return Ok(None) };
    let last = text.trim_start_matches("bytes=").strip_prefix("0-").and_then(|last| last.parse::<u64>().ok());
    match last {
        Some(0) => Ok(Some(0)),
        Some(last) => Ok(last.checked_add(1)),
        None => Err(wire::protocol(format!("an upload with the Range {text:?}"))),
    }
}

/// Refuses an answer that names another blob than the one that was sent.
fn same_digest(digest: &Digest, headers: &HeaderMap) -> Result<()> {
    match told(headers)? {
        Some(told) if told.algorithm() == digest.algorithm() && told != *digest => {
            Err(Error::new(Kind::Integrity, format!("the registry has taken {told} for {digest}")))
        }
        _ => Ok(()),
    }
}

/// Refuses an answer that names other bytes than these.
fn same_bytes(bytes: &[u8], headers: &HeaderMap) -> Result<()> {
    let Some(told) = told(headers)? else { return Ok(()) };
    let mut hasher = Hasher::new(told.algorithm());
    hasher.update(bytes);
    let digest = hasher.finish();
    if digest == told {
        return Ok(());
    }
    Err(Error::new(Kind::Integrity, format!("the registry has taken {told} for {digest}")))
}

fn told(headers: &HeaderMap) -> Result<Option<Digest>> {
    let told = wire::one(headers, &CONTENT_DIGEST)?.map(|text| text.parse()).transpose();
    told.map_err(|error| Error::from_source(Kind::Protocol, "Docker-Content-Digest", error))
}
