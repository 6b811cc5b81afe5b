//! A registry on loopback, whole and in this process, which fails when it is told to.
//!
//! [`Registry`] serves an image layout folder, and blobs made as they are read ([`Synthetic`]). It can ask for passwords
//! or tokens ([`Door`]), and send its readers to a storage on another port, whose addresses are signed and end and which
//! refuses credentials. [`Rule`]s, which a person may type too ([`grammar`]), say which request meets which [`Fault`]: on the connection itself (`line`), in
//! status, headers and body (`spoil`), in the bytes alone. What a client does against the rules is noted
//! ([`Violation`]): credentials where they do not belong, a wait that was not kept, a storm.
//!
//! It checks what a client sees and does, and is no place to keep anything: it belongs on loopback.

mod fault;
mod line;
mod pattern;
mod reading;
mod referrers;
mod reply;
mod serving;
mod spoil;
mod storage;
mod synthetic;
mod tokens;
mod watch;
mod words;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::Method;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::serve::Listener;
use parking_lot::Mutex;

pub use self::fault::{Fault, Rule};
pub use self::line::Resets;
pub use self::pattern::Pattern;
pub use self::reading::Source;
pub use self::referrers::Referrers;
pub use self::reply::plain;
pub use self::serving::{Serving, serve};
pub use self::synthetic::Synthetic;
pub use self::tokens::{Door, Tokens, User};
pub use self::watch::{Breach, Logged, Violation};
pub use self::words::grammar;

use self::fault::Rules;
use self::line::Cue;
use self::spoil::Honest;
use self::storage::Signer;
use self::tokens::Given;
use self::watch::Watch;
use crate::error::Result;

/// What a registry is like all the time.
#[derive(Clone, Debug, Default)]
pub struct Habits {
    /// Who comes in.
    pub door: Door,
    /// Whether readers of blobs are sent to a storage on another port, and how long its addresses live.
    pub storage: Option<Duration>,
}

/// A registry that runs until it is dropped.
#[derive(Debug)]
pub struct Registry {
    serving: Option<Serving>,
    address: SocketAddr,
    router: Router,
    stage: Arc<Stage>,
    storage: Option<Box<Registry>>,
}

/// One server of a registry: what it is like, and what it has seen.
#[derive(Debug)]
struct Stage {
    scheme: &'static str,
    door: Door,
    role: Role,
    rules: Mutex<Rules>,
    watch: Mutex<Watch>,
    given: Mutex<Given>,
}

/// What a server does with a request for a blob.
#[derive(Debug)]
enum Role {
    /// Answers it.
    Whole,
    /// Sends it to the storage at this origin.
    Front { storage: String, signer: Arc<Mutex<Signer>>, life: Duration },
    /// Answers it where its address is signed.
    Storage { signer: Arc<Mutex<Signer>> },
}

impl Registry {
    /// Serves `source` over plain HTTP on a free port of 127.0.0.1. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `Unreachable` where no port can be had.
    pub async fn start(source: Source, habits: Habits) -> Result<Self> {
        Self::over(source.router(), habits).await
    }

    /// The same, of a router that answers honestly: [`Source::router`] with something around it.
    ///
    /// # Errors
    /// `Unreachable` where no port can be had.
    pub async fn over(router: Router, habits: Habits) -> Result<Self> {
        Self::over_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), router, habits).await
    }

    /// The same, at `address`: that of one that has gone, mostly.
    ///
    /// # Errors
    /// `Unreachable` where the address can't be had.
    pub async fn over_at(address: SocketAddr, router: Router, habits: Habits) -> Result<Self> {
        let (storage, role) = behind(&router, &habits).await?;
        let (stage, router) = staged("http", habits.door, role, router);
        let serving = serving::serve_at(address, router.clone()).await?;
        Ok(Self { address: serving.address(), serving: Some(serving), router, stage, storage })
    }

    /// The same, to who connects to `listener`, which speaks TLS; the storage does not. `resets` readies one of its
    /// connections for a reset.
    ///
    /// # Errors
    /// `Unreachable` where the listener has no address, or no port can be had for the storage.
    pub async fn over_tls<L>(
        listener: L,
        resets: Resets<L::Io>,
        router: Router,
        habits: Habits,
    ) -> Result<Self>
    where
        L: Listener<Addr = SocketAddr>,
    {
        let (storage, role) = behind(&router, &habits).await?;
        let (stage, router) = staged("https", habits.door, role, router);
        let serving = serving::serve_on(listener, resets, router.clone())?;
        Ok(Self { address: serving.address(), serving: Some(serving), router, stage, storage })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `127.0.0.1:PORT`
    #[must_use]
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// `http://127.0.0.1:PORT`
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}://{}", self.stage.scheme, self.address)
    }

    /// The storage behind it, where it has one: a registry of its own, with its own rules and its own log.
    #[must_use]
    pub fn storage(&self) -> Option<&Registry> {
        self.storage.as_deref()
    }

    /// Adds a rule; of several that fit a request the first counts.
    pub fn rule(&self, rule: Rule) {
        self.stage.rules.lock().add(rule);
    }

    /// Takes all rules back.
    pub fn heal(&self) {
        self.stage.rules.lock().clear();
    }

    /// The requests so far whose path contains `path`.
    #[must_use]
    pub fn log(&self, path: &str) -> Vec<Logged> {
        self.stage.watch.lock().log.iter().filter(|one| one.path.contains(path)).cloned().collect()
    }

    /// What clients did against the rules so far, here and at the storage.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        let mut all = self.stage.watch.lock().violations();
        all.extend(self.storage.iter().flat_map(|storage| storage.violations()));
        all
    }

    /// How often each kind of fault was given so far, here and at the storage.
    #[must_use]
    pub fn faults_given(&self) -> BTreeMap<&'static str, usize> {
        let mut all = self.storage.as_ref().map(|storage| storage.faults_given()).unwrap_or_default();
        for (name, count) in &self.stage.rules.lock().given {
            *all.entry(*name).or_default() += count;
        }
        all
    }

    /// Refuses all tokens given out so far.
    pub fn revoke_tokens(&self) {
        self.stage.given.lock().revoke();
    }

    /// Refuses all signed addresses given out so far.
    pub fn expire_addresses(&self) {
        self.stage.expire();
    }

    /// Is gone: returns once nobody can connect any more and idle connections are closed. What it knows it keeps.
    pub async fn leave(&mut self) {
        self.serving = None;
        while tokio::net::TcpStream::connect(self.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    }

    /// Is back, at the same address, over plain HTTP.
    ///
    /// # Errors
    /// `Unreachable` where somebody else has the port.
    pub async fn come_back(&mut self) -> Result<()> {
        self.serving = Some(serving::serve_at(self.address, self.router.clone()).await?);
        Ok(())
    }
}

/// The storage that the habits want, and the part that the registry before it plays.
async fn behind(router: &Router, habits: &Habits) -> Result<(Option<Box<Registry>>, Role)> {
    let Some(life) = habits.storage else { return Ok((None, Role::Whole)) };
    let signer: Arc<Mutex<Signer>> = Arc::default();
    let role = Role::Storage { signer: signer.clone() };
    let (stage, router) = staged("http", Door::Open, role, router.clone());
    let serving = serve(router.clone()).await?;
    let storage =
        Registry { address: serving.address(), serving: Some(serving), router, stage, storage: None };
    let role = Role::Front { storage: storage.origin(), signer, life };
    Ok((Some(Box::new(storage)), role))
}

fn staged(scheme: &'static str, door: Door, role: Role, router: Router) -> (Arc<Stage>, Router) {
    let (rules, watch, given) = (Mutex::default(), Mutex::default(), Mutex::default());
    let stage = Arc::new(Stage { scheme, door, role, rules, watch, given });
    let router = router.layer(from_fn_with_state(stage.clone(), around));
    (stage, router)
}

/// Notes a request, and lets its fault or its honest answer happen.
async fn around(
    State(stage): State<Arc<Stage>>,
    ConnectInfo(cue): ConnectInfo<Cue>,
    request: Request,
    next: Next,
) -> Response {
    let logged = Logged::of(&request);
    cue.asked();
    let fault = stage.rules.lock().fault(&format!("{} {}", logged.method, logged.path));
    stage.watch.lock().note(logged.clone());
    match fault {
        None => stage.honest(request, &logged, next).await,
        Some(Fault::Revoke) => {
            stage.given.lock().revoke();
            stage.honest(request, &logged, next).await
        }
        Some(Fault::Expire) => {
            stage.expire();
            stage.honest(request, &logged, next).await
        }
        Some(fault) => stage.faulty(fault, &cue, request, &logged, next).await,
    }
}

impl Stage {
    async fn faulty(
        &self,
        fault: Fault,
        cue: &Cue,
        request: Request,
        logged: &Logged,
        next: Next,
    ) -> Response {
        if let Some(wait) = spoil::wait_of(&fault) {
            self.watch.lock().told_to_wait(logged.key(), wait, cue.answer());
        }
        if let Some(script) = spoil::mute(&fault) {
            cue.play(script);
            return plain(200, &[], "");
        }
        if let Some(response) = spoil::instead(&fault, &request) {
            return response;
        }
        if matches!(fault, Fault::Unauthorized) {
            return self.challenged(&request);
        }
        self.spoiled(fault, cue, request, logged, next).await
    }

    /// What becomes of the honest answer.
    async fn spoiled(
        &self,
        fault: Fault,
        cue: &Cue,
        mut request: Request,
        logged: &Logged,
        next: Next,
    ) -> Response {
        if matches!(fault, Fault::BreakBody(_) | Fault::StallBody(_) | Fault::Lose | Fault::Forget(_)) {
            request.extensions_mut().insert(fault);
            return next.run(request).await;
        }
        if let Fault::Swap(_) = &fault {
            return self.swapped(&fault, request, logged, next).await;
        }
        spoil::redirect_within(&fault, &mut request);
        let honest = self.honest(request, logged, next).await;
        match fault {
            // The head alone tells: the body goes by, however long it is.
            Fault::IgnoreRange => return honest,
            Fault::Whole206 => return spoil::whole_206(honest),
            _ => {}
        }
        let honest = match Honest::of(honest).await {
            Ok(honest) => honest,
            Err(too_long) => return too_long,
        };
        match spoil::script(&fault, honest) {
            Ok(script) => {
                cue.play(script);
                plain(200, &[], "")
            }
            Err(honest) => spoil::spoil(fault, honest),
        }
    }

    /// The honest head over bytes of another blob.
    async fn swapped(&self, fault: &Fault, request: Request, logged: &Logged, next: Next) -> Response {
        let mut other = bodiless(&request);
        let honest = match Honest::of(self.honest(request, logged, next.clone()).await).await {
            Ok(honest) => honest,
            Err(too_long) => return too_long,
        };
        if honest.body.is_empty() {
            return spoil::spoil(fault.clone(), honest);
        }
        spoil::redirect_within(fault, &mut other);
        spoil::only_first(&mut other, honest.body.len());
        match Honest::of(next.run(other).await).await {
            Ok(other) => spoil::swapped(honest, &other),
            Err(too_long) => too_long,
        }
    }

    async fn honest(&self, request: Request, logged: &Logged, next: Next) -> Response {
        let path = request.uri().path().to_owned();
        if path == "/token" {
            return self.token(&request, logged);
        }
        if let Role::Storage { signer } = &self.role {
            let (refused, breach) = signer.lock().refuses(&request, logged);
            if let Some(breach) = breach {
                self.watch.lock().broken(breach, &logged.key());
            }
            return match refused {
                Some(refusal) => refusal,
                None => next.run(request).await,
            };
        }
        if !self.admits(&request) {
            return self.challenged(&request);
        }
        match &self.role {
            Role::Front { storage, signer, life } if is_read_of_a_blob(&request) => {
                let to = format!("{storage}{path}?{}", signer.lock().sign(&path, *life));
                plain(307, &[(http::header::LOCATION, &to)], "")
            }
            _ => next.run(request).await,
        }
    }

    fn token(&self, request: &Request, logged: &Logged) -> Response {
        let anybody = Tokens::for_everybody();
        let tokens = if let Door::Tokens(tokens) = &self.door { tokens } else { &anybody };
        let query = request.uri().query().unwrap_or_default();
        let answer = self.given.lock().give(tokens, query, request.headers());
        if answer.too_soon {
            self.watch.lock().broken(Breach::TokenTooSoon, &logged.key());
        } else if answer.response.status().is_success() {
            // Many readers whose tokens are refused one after the other have each a reason for the next.
            self.watch.lock().given(logged);
        }
        answer.response
    }

    fn admits(&self, request: &Request) -> bool {
        match &self.door {
            Door::Open => true,
            Door::Basic(users) => tokens::knows(users, request.headers(), &scope(request)),
            Door::Tokens(_) => self.given.lock().admits(request.headers(), &scope(request)),
        }
    }

    fn challenged(&self, request: &Request) -> Response {
        self.given.lock().refused(request.headers());
        let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        let realm = format!("{}://{host}/token", self.scheme);
        let realm = (!matches!(self.door, Door::Basic(_))).then_some(realm);
        tokens::challenge(realm.as_deref(), &scope(request))
    }

    fn expire(&self) {
        if let Role::Front { signer, .. } | Role::Storage { signer } = &self.role {
            signer.lock().expire();
        }
    }
}

/// The same request without its body, which can be had but once.
fn bodiless(request: &Request) -> Request {
    let mut copy = Request::new(axum::body::Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

fn is_read_of_a_blob(request: &Request) -> bool {
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    reads && request.uri().path().contains("/blobs/sha")
}

/// What leave a request needs: `repository:NAME:ACTION`; none where it names no repository.
fn scope(request: &Request) -> String {
    let path = request.uri().path().strip_prefix("/v2/").unwrap_or_default();
    let ends = ["/blobs/", "/manifests/", "/referrers/", "/tags/"];
    let Some(name) = ends.iter().find_map(|end| path.split_once(end)).map(|(name, _)| name) else {
        return String::new();
    };
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let action = if reads && !path.contains("/blobs/uploads/") { "pull" } else { "push" };
    format!("repository:{name}:{action}")
}
