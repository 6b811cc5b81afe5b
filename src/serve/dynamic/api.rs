//! What a pod asks of its dynamic volume: models are added, looked at and taken out, as at model-csi-driver's socket.
//!
//! HTTP with JSON, below `/api/v1/volumes/VOLUME/mounts`. Everything here is the pod's: names are letters and digits with `-` and `_`,
//! bodies are small, and nothing is said of the node but what concerns the model.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use super::models::{Models, Refused, Wanted};
use crate::error::{Error, Kind};
use crate::oci::exclude::WEIGHTS;
use crate::serve::Room;
use crate::serve::book::is_plain;
use crate::serve::places::Places;

/// The largest question, in bytes: more than a reference and all patterns that there may be.
const BODY_LIMIT: usize = 64 << 10;

/// How long a connection may last: longer than all models of a volume take to be opened, one after the other.
const LIFE: Duration = Duration::from_secs(3600);

/// Answers at `listener` as long as the task lives.
pub(super) async fn serve(models: Arc<Models>, listener: UnixListener) {
    let router = Router::new()
        .route("/api/v1/volumes/{volume}/mounts", get(list).post(add))
        .route("/api/v1/volumes/{volume}/mounts/{id}", get(look).delete(remove))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(models);
    if let Err(error) = axum::serve(Places::new(listener, LIFE), router).await {
        tracing::error!(%error, "the pod is no longer answered");
    }
}

/// What is posted. Other keys are passed over, as there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::serve) struct Addition {
    /// What the model is to be called.
    #[serde(default)]
    pub(in crate::serve) mount_id: String,
    #[serde(default)]
    pub(in crate::serve) reference: String,
    /// Whether all of it must fit into the store.
    #[serde(default)]
    pub(in crate::serve) check_disk_quota: bool,
    #[serde(default)]
    pub(in crate::serve) exclude_model_weights: bool,
    #[serde(default)]
    pub(in crate::serve) exclude_file_patterns: Option<Vec<String>>,
}

impl Addition {
    /// Those that are named count before the word that leaves out weights.
    fn exclude(&mut self) -> Vec<String> {
        let weights = self.exclude_model_weights.then_some(WEIGHTS).into_iter().flatten();
        let named = self.exclude_file_patterns.take().unwrap_or_default();
        weights.map(str::to_owned).chain(named).collect()
    }
}

/// Why something is not done, as it is said.
#[derive(Debug, Serialize)]
struct No {
    #[serde(skip)]
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl No {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", message)
    }

    fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "NOT_FOUND", message)
    }
}

impl From<Refused> for No {
    fn from(refused: Refused) -> Self {
        let (status, code) = match refused {
            Refused::Failed(error) => return error.into(),
            Refused::Invalid(_) => (StatusCode::BAD_REQUEST, "INVALID_ARGUMENT"),
            Refused::Taken(_) => (StatusCode::CONFLICT, "CONFLICT"),
            Refused::NoRoom(_) => (StatusCode::NOT_ACCEPTABLE, "INSUFFICIENT_DISK_QUOTA"),
            Refused::Full(_) => (StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED"),
        };
        Self::new(status, code, refused.to_string())
    }
}

impl From<Error> for No {
    /// What concerns the node itself is told to nobody in a pod: it has the node's paths in it, or words of its programs.
    fn from(error: Error) -> Self {
        match error.kind() {
            kind if error.is_of_machine() || matches!(kind, Kind::Storage | Kind::Kernel) => {
                let message = "the node cannot do it; its log says why";
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", message)
            }
            Kind::NotFound => Self::not_found(error.to_string()),
            _ => Self::new(StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", error.to_string()),
        }
    }
}

impl IntoResponse for No {
    fn into_response(self) -> Response {
        json(self.status, &self)
    }
}

fn json(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// The volume that is asked has to be this one: there is no way to another.
fn check_volume(models: &Models, volume: &str) -> Result<(), No> {
    match volume {
        volume if !is_plain(volume) => Err(No::invalid("volume_name is invalid")),
        volume if volume != models.volume() => {
            Err(No::not_found(format!("volume_name {volume} is not found")))
        }
        _ => Ok(()),
    }
}

fn check_id(id: &str) -> Result<(), No> {
    if is_plain(id) { Ok(()) } else { Err(No::invalid("mount_id is invalid")) }
}

async fn add(
    State(models): State<Arc<Models>>,
    Path(volume): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, No> {
    check_volume(&models, &volume)?;
    let body = body.map_err(|error| No::invalid(error.to_string()))?;
    let mut asked: Addition = serde_json::from_slice(&body).map_err(|_| No::invalid("invalid JSON body"))?;
    let (id, exclude) = (asked.mount_id.trim().to_owned(), asked.exclude());
    check_id(&id)?;
    let wanted = Wanted { reference: asked.reference.trim().to_owned(), exclude };
    if wanted.reference.is_empty() {
        return Err(No::invalid("reference is invalid"));
    }
    let room = if asked.check_disk_quota { Room::Needed } else { Room::NotNeeded };
    Ok(json(StatusCode::CREATED, &models.add(&id, wanted, room).await?))
}

async fn look(
    State(models): State<Arc<Models>>,
    Path((volume, id)): Path<(String, String)>,
) -> Result<Response, No> {
    check_volume(&models, &volume)?;
    check_id(&id)?;
    let missing = || No::not_found(format!("volume_name {volume} with mount_id {id} is not found"));
    models.report(&id).map(|report| json(StatusCode::OK, &report)).ok_or_else(missing)
}

async fn list(State(models): State<Arc<Models>>, Path(volume): Path<String>) -> Result<Response, No> {
    check_volume(&models, &volume)?;
    Ok(json(StatusCode::OK, &models.reports()))
}

async fn remove(
    State(models): State<Arc<Models>>,
    Path((volume, id)): Path<(String, String)>,
) -> Result<Response, No> {
    check_volume(&models, &volume)?;
    check_id(&id)?;
    let done = tokio::task::spawn_blocking(move || {
        // Taking it out starts a task of the runtime's.
        models.remove(&id)
    });
    done.await.map_err(|error| Error::from_source(Kind::Kernel, "taking it out failed", error))??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_hears_what_the_registry_says_and_nothing_of_the_nodes_files_and_programs() {
        let said = |error: Error| No::from(error.context("cannot read r.io/a")).message;
        let own = Error::new(Kind::Broken, "/usr/bin/helper failed: no role of node-7").of_machine();
        for error in [
            Error::from_source(Kind::Denied, "there are no credentials", own),
            Error::new(Kind::Invalid, "cannot use /etc/certs.d/r.io/hosts.toml").of_machine(),
            Error::new(Kind::NotFound, "no such program: /usr/bin/helper").of_machine(),
            Error::new(Kind::Storage, "cannot write /var/cache"),
            Error::new(Kind::Kernel, "cannot mount /run/weightfs"),
        ] {
            assert_eq!(said(error), "the node cannot do it; its log says why");
        }
        for kind in [Kind::NotFound, Kind::Denied, Kind::Invalid, Kind::Unsupported, Kind::Broken] {
            assert_eq!(
                said(Error::new(kind, "what the registry says")),
                "cannot read r.io/a: what the registry says"
            );
        }
    }
}
