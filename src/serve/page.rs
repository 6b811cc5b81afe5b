//! The pages of the plane: `/metrics` and `/metrics/detail` for Prometheus, `/healthz` and `/readyz` for who watches it, `/mounts` for people.
//!
//! Reached on this machine alone, or through a socket of the plane's user. Everything is read-only; nothing shows a secret. A
//! connection is one question, and lasts no longer than an answer takes, since any program of the node's network may ask.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::listen::{self, Listen};
use super::places::Places;
use super::plane::{Plane, blocking};
use super::view::Shown;
use crate::error::{Error, Kind, Result};

/// The form of [`Plane::exposition`].
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long after the beginning of an answer that asks all processes the next one is begun.
const PAUSE: Duration = Duration::from_millis(500);

/// How long a connection may last: question, answer and the wait for who asked before.
const LIFE: Duration = Duration::from_secs(20);

/// A place where the pages are asked for.
#[derive(Debug)]
pub enum Door {
    /// An address of this machine.
    Loopback(TcpListener),
    /// A socket.
    Socket(tokio::net::UnixListener),
}

impl Door {
    /// Listens there.
    ///
    /// # Errors
    /// `Busy` where somebody does already, `Kernel` for the rest of addresses; those of [`listen::listen`].
    pub async fn open(place: &Listen) -> Result<Self> {
        match place {
            Listen::Socket(path) => listen::listen(path).map(Self::Socket),
            Listen::Loopback(address) => {
                TcpListener::bind(address).await.map(Self::Loopback).map_err(|error| {
                    let kind = match error.kind() {
                        std::io::ErrorKind::AddrInUse => Kind::Busy,
                        _ => Kind::Kernel,
                    };
                    Error::from_source(kind, format!("cannot listen at {address}"), error)
                })
            }
        }
    }

    /// Where it is, for people: a port that was left to the system is known by now.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Loopback(listener) => listener
                .local_addr()
                .map_or_else(|error| error.to_string(), |address| format!("http://{address}")),
            Self::Socket(_) => "a socket".to_owned(),
        }
    }
}

/// What the pages are made of.
#[derive(Clone, Debug)]
struct Pages {
    plane: Arc<Plane>,
    ready: Arc<AtomicBool>,
    metrics: Dear,
    detail: Dear,
    mounts: Dear,
}

/// A page that asks all processes, made once for all who wait for it, so that who asks often costs no more than who asks twice a
/// second. None is given an answer that was begun before the question.
#[derive(Clone, Debug, Default)]
struct Dear(Arc<tokio::sync::Mutex<Option<(Instant, Bytes)>>>);

impl Dear {
    /// What `make` gives. It is seen through also where who asked hangs up, so that never two are made at once.
    async fn text(&self, make: impl FnOnce() -> Result<Bytes> + Send + 'static) -> Result<Bytes> {
        let asked = Instant::now();
        let mut last = self.0.clone().lock_owned().await;
        let mut next = asked;
        if let Some((begun, text)) = &*last {
            if *begun > asked {
                return Ok(text.clone());
            }
            next = *begun + PAUSE;
        }
        let made = tokio::spawn(async move {
            tokio::time::sleep_until(next).await;
            let begun = Instant::now();
            let text = blocking(make).await?;
            *last = Some((begun, text.clone()));
            Ok(text)
        });
        made.await.unwrap_or_else(|error| Err(Error::from_source(Kind::Kernel, "the page failed", error)))
    }
}

/// Answers at `door` until `end`. `ready` says whether everything listens.
pub async fn serve(
    plane: Arc<Plane>,
    door: Door,
    ready: Arc<AtomicBool>,
    end: impl Future<Output = ()> + Send + 'static,
) {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readiness))
        .route("/metrics", get(metrics))
        .route("/metrics/detail", get(detail))
        .route("/mounts", get(mounts))
        .layer(map_response(one_answer))
        .with_state(Pages {
            plane,
            ready,
            metrics: Dear::default(),
            detail: Dear::default(),
            mounts: Dear::default(),
        });
    let served = match door {
        Door::Loopback(listener) => {
            axum::serve(Places::new(listener, LIFE), router).with_graceful_shutdown(end).await
        }
        Door::Socket(listener) => {
            axum::serve(Places::new(listener, LIFE), router).with_graceful_shutdown(end).await
        }
    };
    if let Err(error) = served {
        tracing::error!(%error, "the pages are no longer served");
    }
}

/// Has the connection end with its answer, so that it needs no longer life than one takes.
async fn one_answer(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

async fn readiness(State(shown): State<Pages>) -> Response {
    match shown.ready.load(Ordering::Relaxed) {
        true => "ready\n".into_response(),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n").into_response(),
    }
}

async fn metrics(State(shown): State<Pages>) -> Response {
    let plane = shown.plane.clone();
    let text = shown.metrics.text(move || Ok(plane.exposition().into())).await;
    answer(PROMETHEUS, text)
}

async fn detail(State(shown): State<Pages>) -> Response {
    let plane = shown.plane.clone();
    let text = shown.detail.text(move || Ok(plane.detail().into())).await;
    answer(PROMETHEUS, text)
}

fn answer(form: &'static str, text: Result<Bytes>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, form)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

/// One mount on the page.
#[derive(Debug, Serialize)]
struct Row {
    reference: String,
    digest: String,
    dir: PathBuf,
    pid: Option<u32>,
    kept: Option<u64>,
    total: Option<u64>,
    standing: Option<String>,
    restarts: u64,
    trouble: Option<String>,
    volumes: Vec<Shown>,
}

async fn mounts(State(shown): State<Pages>) -> Response {
    let plane = shown.plane.clone();
    let written = move || {
        let text = serde_json::to_vec_pretty(&rows(&plane));
        text.map(Bytes::from)
            .map_err(|error| Error::from_source(Kind::Kernel, "the mounts cannot be written", error))
    };
    answer("application/json", shown.mounts.text(written).await)
}

fn rows(plane: &Plane) -> Vec<Row> {
    let survey = plane.survey();
    let volumes = plane.list_with(&survey);
    let rows = survey.into_iter().map(|(host, status)| Row {
        reference: host.name().to_owned(),
        digest: host.spec.digest.clone(),
        dir: host.dir.clone(),
        pid: host.process().map(|process| process.pid),
        kept: status.as_ref().map(|status| status.kept),
        total: status.as_ref().map(|status| status.total),
        standing: status.map(|status| status.standing),
        restarts: host.restarts.load(Ordering::Relaxed),
        trouble: host.trouble(),
        volumes: volumes.iter().filter(|volume| volume.host == host.dir).cloned().collect(),
    });
    let mut rows: Vec<Row> = rows.collect();
    rows.sort_by(|a, b| a.reference.cmp(&b.reference).then_with(|| a.dir.cmp(&b.dir)));
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_page_is_made_once_for_all_who_wait_and_anew_for_who_asks_later() {
        let (page, made) = (Dear::default(), Arc::new(std::sync::atomic::AtomicU64::new(0)));
        let ask = || {
            let (page, made) = (page.clone(), made.clone());
            let make = move || Ok(Bytes::from(made.fetch_add(1, Ordering::SeqCst).to_string()));
            async move { page.text(make).await.unwrap() }
        };
        assert_eq!(ask().await, "0");
        let begun = Instant::now();
        let (second, third) = tokio::join!(ask(), ask());
        assert_eq!((second, third), (Bytes::from("1"), Bytes::from("1")));
        assert_eq!(ask().await, "2");
        assert!(begun.elapsed() >= PAUSE * 3 / 2, "{:?}", begun.elapsed());
    }
}
