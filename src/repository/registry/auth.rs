//! Who asks: the `Authorization` header of a registry, from its challenge on 401.
//!
//! Anonymous first; then what the registry asks for (`realm`), Basic or a Bearer token from its token service (`token`).
//! However many requests want a token, one fetch brings it; nobody waits for it while the present one lives. What is sent
//! where is [`super::Registry`]'s to see to: the header made here is for the registry's own origin alone, and the
//! password goes to the registry or its token service, nowhere else.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, HeaderValue};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::time::{Instant, timeout};

use super::reach::Reach;
use super::realm::{self, Challenge, Realm};
use super::tls::Clients;
use super::token::{self, Token, sensitive};
use super::wire;
use crate::error::{Error, Kind, Result};
use crate::repository::credentials::{Credentials, Form, Found, Freshness, Keychain};

/// How long a token service that failed is left alone while the present token lives.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// How often at most a refusal that is no 401 is taken for the end of a token's life.
const SUSPICION_PAUSE: Duration = Duration::from_secs(1);

/// Says which header a request was sent with, so that many refused at once fetch one new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// The authorization of one repository.
pub(super) struct Auth {
    keychain: Arc<Keychain>,
    /// What is asked for, as `repository:acme/llm:pull`.
    scopes: Vec<String>,
    /// How far the registry may lead: to which token service the password may go.
    reach: Arc<Reach>,
    stall: Duration,
    /// Held for a moment only.
    state: Mutex<State>,
    /// Held while a header is made: whoever has no live one waits here and gets the same.
    flight: Arc<Turn<()>>,
}

#[derive(Default)]
struct State {
    generation: u64,
    header: Option<HeaderValue>,
    /// Where the next token comes from; `None` for Basic and anonymous.
    renewal: Option<Renewal>,
    /// How the last attempt failed, for those who waited for it.
    failure: Option<Error>,
    /// The registry has taken the present header for good at least once.
    accepted: bool,
    /// When, and of which generation, a refusal was last taken for the end of a token's life.
    suspected: Option<(Instant, Generation)>,
}

impl State {
    /// What came of a renewal since `seen`; `None` where there was none.
    fn since(&self, seen: Generation) -> Option<Result<Renewed>> {
        let failure = self.failure.clone();
        (self.generation != seen.0).then(|| failure.map_or(Ok(Renewed::Elsewhere), Err))
    }

    /// Takes what a fetch that began at `asked` brought.
    fn take(&mut self, fetched: Result<Token>, realm: Realm, asked: Instant) -> Result<()> {
        self.generation = self.generation.wrapping_add(1);
        match fetched {
            Ok(Token { header, life }) => {
                // A quarter of its life early: clocks differ, and a request in flight must not outlive it.
                self.renewal = Some(Renewal { realm, due: asked + life * 3 / 4, end: asked + life });
                (self.header, self.failure, self.accepted) = (Some(header), None, false);
                Ok(())
            }
            Err(error) => {
                self.failure = Some(error.clone());
                if let Some(renewal) = &mut self.renewal {
                    renewal.due = Instant::now() + RENEWAL_PAUSE;
                }
                Err(error)
            }
        }
    }

    /// Takes a header that lasts until it is refused.
    fn take_basic(&mut self, header: HeaderValue) {
        let generation = self.generation.wrapping_add(1);
        *self = Self { generation, header: Some(header), suspected: self.suspected, ..Self::default() };
    }
}

#[derive(Clone)]
struct Renewal {
    realm: Realm,
    /// When to ask for the next token.
    due: Instant,
    /// When the present one's life is over.
    end: Instant,
}

/// How a request that was refused may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// With a header made just now for this request: a second refusal is final.
    Here,
    /// With one that another request had made meanwhile.
    Elsewhere,
}

impl Auth {
    /// For `actions` (as `pull,push`) on `repository`.
    pub(super) fn new(
        keychain: Arc<Keychain>,
        (repository, actions): (&str, &str),
        reach: Arc<Reach>,
        stall: Duration,
    ) -> Self {
        Self::for_scopes(keychain, vec![format!("repository:{repository}:{actions}")], reach, stall)
    }

    /// For nothing in particular: to find out whether the credentials are right.
    pub(super) fn for_login(keychain: Arc<Keychain>, reach: Arc<Reach>, stall: Duration) -> Self {
        Self::for_scopes(keychain, Vec::new(), reach, stall)
    }

    /// The same, and leave to read `repository` besides; with a token of its own.
    pub(super) fn and_pull(&self, repository: &str) -> Self {
        let scopes = self.scopes.iter().cloned().chain([format!("repository:{repository}:pull")]).collect();
        Self::for_scopes(self.keychain.clone(), scopes, Arc::clone(&self.reach), self.stall)
    }

    fn for_scopes(keychain: Arc<Keychain>, scopes: Vec<String>, reach: Arc<Reach>, stall: Duration) -> Self {
        Self { keychain, scopes, reach, stall, state: Mutex::default(), flight: Arc::default() }
    }

    /// The header to send now. A token whose life is nearly over is renewed beside it; one that is over, first.
    pub(super) async fn header(
        self: &Arc<Self>,
        client: &Clients,
    ) -> Result<(Option<HeaderValue>, Generation)> {
        let (renewal, seen) = {
            let state = self.state.lock();
            (state.renewal.clone(), Generation(state.generation))
        };
        let now = Instant::now();
        match renewal {
            Some(renewal) if now >= renewal.end => {
                self.renew(client, renewal.realm, seen).await?;
            }
            Some(renewal) if now >= renewal.due => self.renew_beside(client, renewal.realm, seen),
            Some(_) | None => {}
        }
        let state = self.state.lock();
        Ok((state.header.clone(), Generation(state.generation)))
    }

    /// Takes note that the registry took the header of `used`.
    pub(super) fn accepted(&self, used: Generation) {
        let mut state = self.state.lock();
        state.accepted |= state.generation == used.0 && state.header.is_some();
    }

    /// Takes the registry's 401 to a request sent with the header of `used`; `Ok` where it may be sent again.
    pub(super) async fn refused(
        &self,
        client: &Clients,
        used: Generation,
        headers: &HeaderMap,
    ) -> Result<Renewed> {
        if let Some(done) = self.state.lock().since(used) {
            return done;
        }
        match realm::challenge(&self.reach, headers)? {
            Challenge::Bearer(realm) => self.renew(client, realm, used).await,
            Challenge::Basic => self.use_basic(used).await,
        }
    }

    /// Takes another refusal of a request sent with the header of `used`: some registries answer so to a token whose life
    /// is over, ECR Public with 400, others with 403. `None` where that cannot be: the header was never taken, nothing
    /// newer can be had, or a refusal was taken so just now.
    ///
    /// # Errors
    /// Those after which asking again may help.
    pub(super) async fn suspected(&self, client: &Clients, used: Generation) -> Result<Option<Renewed>> {
        let realm = {
            let mut state = self.state.lock();
            if let Some(done) = state.since(used) {
                return Self::if_it_helps(done);
            }
            let now = Instant::now();
            // Those who were sent with the same header are answered together.
            let just_now = state.suspected.is_some_and(|(at, of)| of != used && now < at + SUSPICION_PAUSE);
            if !state.accepted || just_now {
                return Ok(None);
            }
            state.suspected = Some((now, used));
            state.renewal.as_ref().map(|renewal| renewal.realm.clone())
        };
        Self::if_it_helps(match realm {
            Some(realm) => self.renew(client, realm, used).await,
            None => self.use_basic(used).await,
        })
    }

    /// A refusal of the renewal leaves the first refusal as it was.
    fn if_it_helps(renewed: Result<Renewed>) -> Result<Option<Renewed>> {
        match renewed {
            Ok(renewed) => Ok(Some(renewed)),
            Err(error) if error.kind().may_retry() => Err(error),
            Err(_) => Ok(None),
        }
    }

    /// Sends user and password with each request. Those that are refused are looked for once more: they may have been
    /// renewed, as ECR's are twice a day.
    async fn use_basic(&self, used: Generation) -> Result<Renewed> {
        let _turn = self.flight.lock().await;
        let old = {
            let state = self.state.lock();
            if let Some(done) = state.since(used) {
                return done;
            }
            state.header.clone().filter(|_| state.renewal.is_none())
        };
        let made = self.basic(old.as_ref()).await;
        let mut state = self.state.lock();
        match made {
            Ok(header) => state.take_basic(header),
            Err(error) => {
                // For those who wait for the turn: programs are not run again for each of them.
                state.generation = state.generation.wrapping_add(1);
                state.failure = Some(error.clone());
                return Err(error);
            }
        }
        Ok(Renewed::Here)
    }

    /// A header with user and password, other than the `old` one.
    async fn basic(&self, old: Option<&HeaderValue>) -> Result<HeaderValue> {
        let freshness = if old.is_some() { Freshness::Anew } else { Freshness::Remembered };
        let found = self.keychain.find(freshness).await?;
        let Some(credentials) = found.credentials else {
            return Err(explained(Error::new(Kind::Denied, "it wants a password"), found.failure));
        };
        if credentials.form == Form::IdentityToken {
            return Err(Error::new(Kind::Denied, "it wants a password, and only an identity token is known"));
        }
        let header = sensitive(credentials.basic().expose())?;
        if old == Some(&header) {
            return Err(Error::new(Kind::Denied, "user name and password are refused"));
        }
        Ok(header)
    }

    /// Renews in a task of its own, unless one is at it.
    fn renew_beside(self: &Arc<Self>, client: &Clients, realm: Realm, seen: Generation) {
        let Ok(turn) = self.flight.clone().try_lock_owned() else { return };
        let (auth, client) = (self.clone(), client.clone());
        tokio::spawn(async move {
            if let Err(error) = auth.renew_in(turn, &client, realm, seen).await {
                tracing::warn!(%error, "the token is not renewed yet; the present one is used to its end");
            }
        });
    }

    /// Renews, or waits for who is at it.
    async fn renew(&self, client: &Clients, realm: Realm, seen: Generation) -> Result<Renewed> {
        let turn = self.flight.clone().lock_owned().await;
        self.renew_in(turn, client, realm, seen).await
    }

    async fn renew_in(
        &self,
        _turn: OwnedMutexGuard<()>,
        client: &Clients,
        realm: Realm,
        seen: Generation,
    ) -> Result<Renewed> {
        if let Some(done) = self.state.lock().since(seen) {
            return done;
        }
        let (fetched, asked) = self.fetch(client, &realm).await;
        let fetched =
            fetched.map_err(|error| error.context(format!("no token from {}", wire::shown(&realm.url))));
        self.state.lock().take(fetched, realm, asked).map(|()| Renewed::Here)
    }

    /// A token, and when it was asked for. Credentials that are refused are looked for once more.
    async fn fetch(&self, client: &Clients, realm: &Realm) -> (Result<Token>, Instant) {
        let found = match self.keychain.find(Freshness::Remembered).await {
            Ok(found) => found,
            Err(error) => return (Err(error), Instant::now()),
        };
        let first = self.ask(client, realm, found.credentials.as_ref()).await;
        if found.credentials.is_none() || !is_denied(&first.0) {
            return (first.0.map_err(|error| explained(error, found.failure)), first.1);
        }
        match self.keychain.find(Freshness::Anew).await {
            Ok(Found { credentials: Some(other), .. }) if Some(&other) != found.credentials.as_ref() => {
                self.ask(client, realm, Some(&other)).await
            }
            _ => first,
        }
    }

    async fn ask(
        &self,
        client: &Clients,
        realm: &Realm,
        credentials: Option<&Credentials>,
    ) -> (Result<Token>, Instant) {
        let asked = Instant::now();
        let fetching = token::fetch(client, realm, &self.scopes, credentials, self.stall);
        // In all, and not for each part of the answer: others may wait for the turn.
        let fetched = timeout(self.stall, fetching).await;
        (fetched.unwrap_or_else(|_| Err(Error::new(Kind::Broken, "no answer in time"))), asked)
    }
}

fn is_denied<T>(done: &Result<T>) -> bool {
    done.as_ref().is_err_and(|error| error.kind() == Kind::Denied)
}

/// A refusal of who came without credentials is no news where the program that has them failed: that is, and unlike the
/// refusal it may pass.
fn explained(error: Error, failure: Option<Error>) -> Error {
    match failure {
        Some(failure) if error.kind() == Kind::Denied => {
            let kind = if failure.kind().may_retry() { failure.kind() } else { Kind::Denied };
            Error::from_source(kind, "there are no credentials", failure)
        }
        _ => error,
    }
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").field("scopes", &self.scopes).finish_non_exhaustive()
    }
}
