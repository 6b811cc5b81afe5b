//! The library's registry with faults, over an image layout folder, as most tests want it: with a panic where it cannot be
//! had, and with what takes pushes around it.
//!
//! What it can do is in `weightfs::testing::registry`. A second one of these is the host that blobs are redirected to. Any
//! suite may start one; it ends when dropped.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use axum::http::header::HeaderName;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use weightfs::oci::Reference;
use weightfs::testing::registry::{self, Door, Habits as Manners, Registry, Source, User, plain};

pub(crate) use weightfs::testing::registry::{Fault, Rule};

use super::uploads::{self, Habits, Uploads};

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

    fn door(self) -> Door {
        let users = self.user.map(|(name, password)| User::new(name, password)).into_iter().collect();
        Door::Tokens(registry::Tokens { told: self.life, life: None, users })
    }
}

/// A registry that runs until it is dropped.
pub(crate) struct Server {
    registry: Registry,
    uploads: Option<Arc<Uploads>>,
}

impl Deref for Server {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        &self.registry
    }
}

impl DerefMut for Server {
    fn deref_mut(&mut self) -> &mut Registry {
        &mut self.registry
    }
}

impl Server {
    /// Serves the image layout at `layout` to everyone.
    pub(crate) async fn start(layout: &Path) -> Self {
        Self::with(layout, Manners::default()).await
    }

    /// Serves it at the address of one that has stopped.
    pub(crate) async fn start_at(layout: &Path, address: &str) -> Self {
        let address = address.parse().unwrap();
        let registry = Registry::over_at(address, source(layout).router(), Manners::default()).await.unwrap();
        Self { registry, uploads: None }
    }

    /// Stops serving; returns once nobody can connect any more and idle connections are closed.
    pub(crate) async fn stop(mut self) {
        self.registry.leave().await;
    }

    /// Serves it to those who bring a token.
    pub(crate) async fn with_tokens(layout: &Path, tokens: Tokens) -> Self {
        Self::with(layout, Manners { door: tokens.door(), ..Manners::default() }).await
    }

    /// Serves it as a registry of these manners does.
    pub(crate) async fn with(layout: &Path, manners: Manners) -> Self {
        let registry = Registry::start(source(layout), manners).await.unwrap();
        Self { registry, uploads: None }
    }

    /// Serves it to everyone, or to those who bring a token, and takes pushes into it.
    pub(crate) async fn with_uploads(layout: &Path, habits: Habits, tokens: Option<Tokens>) -> Self {
        let uploads = Arc::new(Uploads::new(layout.to_owned(), habits));
        let router = source(layout).router().layer(from_fn_with_state(uploads.clone(), uploads::around));
        let door = tokens.map(Tokens::door).unwrap_or_default();
        let registry = Registry::over(router, Manners { door, ..Manners::default() }).await.unwrap();
        Self { registry, uploads: Some(uploads) }
    }

    /// What was pushed to a registry that takes pushes.
    pub(crate) fn uploads(&self) -> &Uploads {
        self.uploads.as_ref().unwrap()
    }

    /// `HOST/test/sample:v1`
    pub(crate) fn reference(&self) -> Reference {
        format!("{}/test/sample:v1", self.host()).parse().unwrap()
    }
}

/// What is in the image layout at `layout`.
pub(crate) fn source(layout: &Path) -> Source {
    Source::layout(layout.to_owned()).unwrap()
}

pub(crate) fn answer(status: u16, headers: &[(HeaderName, &str)], body: &str) -> Response {
    plain(status, headers, body.to_owned())
}
