//! Who asks: the `Authorization` header of a registry, from its challenge on 401.
//!
//! Anonymous first; then what the registry asks for, Basic or a Bearer token from its token service
//! (distribution "Token Authentication Specification"). However many requests want a token, one fetch brings
//! it; nobody waits for it while the present one lives. What is sent where is [`super::Registry`]'s to see to: the header made here is for the registry's own
//! origin alone, and the password goes to the registry or its token service, nowhere else.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use tokio::sync::{Mutex as Turn, OwnedMutexGuard};
use tokio::time::{Instant, timeout};
use url::Url;

use super::credentials::Credentials;
use super::hops;
use super::tls::Clients;
use super::wire;
use crate::error::{Error, Kind, Result};
use crate::repository::Secret;

/// The life of a token that names none (token specification, `expires_in`).
const DEFAULT_LIFE: u64 = 60;
/// The longest life that is believed; after it a new token is asked for.
const LONGEST_LIFE: u64 = 86_400;
/// How long a token service that failed is left alone while the present token lives.
const RENEWAL_PAUSE: Duration = Duration::from_secs(1);
/// How much of a token service's answer is read.
const TOKEN_LIMIT: usize = 1 << 20;

/// Says which header a request was sent with, so that many refused at once fetch one new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Generation(u64);

/// The authorization of one repository.
pub(super) struct Auth {
    credentials: Option<Credentials>,
    /// What is asked for, as `repository:acme/llm:pull`.
    scopes: Vec<String>,
    /// The registry's own URL: where the password may go, and whether TLS may be missing.
    registry: Url,
    stall: Duration,
    /// Held for a moment only.
    state: Mutex<State>,
    /// Held while a token is fetched: whoever has no live one waits here and gets the same.
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
}

impl State {
    /// What came of a renewal since `seen`; `None` where there was none.
    fn since(&self, seen: Generation) -> Option<Result<Renewed>> {
        let failure = self.failure.clone();
        (self.generation != seen.0).then(|| failure.map_or(Ok(Renewed::Elsewhere), Err))
    }

    /// Takes what a fetch that began at `asked` brought.
    fn take(&mut self, fetched: Result<(HeaderValue, Duration)>, realm: Realm, asked: Instant) -> Result<()> {
        self.generation = self.generation.wrapping_add(1);
        match fetched {
            Ok((header, life)) => {
                // A quarter of its life early: clocks differ, and a request in flight must not outlive it.
                self.renewal = Some(Renewal { realm, due: asked + life * 3 / 4, end: asked + life });
                (self.header, self.failure) = (Some(header), None);
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
}

#[derive(Clone)]
struct Renewal {
    realm: Realm,
    /// When to ask for the next token.
    due: Instant,
    /// When the present one's life is over.
    end: Instant,
}

#[derive(Clone)]
struct Realm {
    url: Url,
    service: Option<String>,
}

/// How a request that was refused may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Renewed {
    /// With a header made just now for this request: a second refusal is final.
    Here,
    /// With one that another request had made meanwhile.
    Elsewhere,
}

enum Challenge {
    Bearer(Realm),
    Basic,
}

#[derive(serde::Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

impl Auth {
    /// For `actions` (as `pull,push`) on `repository`.
    pub(super) fn new(
        credentials: Option<Credentials>,
        (repository, actions): (&str, &str),
        registry: Url,
        stall: Duration,
    ) -> Self {
        let scopes = vec![format!("repository:{repository}:{actions}")];
        Self { credentials, scopes, registry, stall, state: Mutex::default(), flight: Arc::default() }
    }

    /// The same, and leave to read `repository` besides; with a token of its own.
    pub(super) fn and_pull(&self, repository: &str) -> Self {
        let scopes = self.scopes.iter().cloned().chain([format!("repository:{repository}:pull")]).collect();
        let (credentials, registry) = (self.credentials.clone(), self.registry.clone());
        let stall = self.stall;
        Self { credentials, scopes, registry, stall, state: Mutex::default(), flight: Arc::default() }
    }

    /// The user's name, or `anonymous`.
    pub(super) fn user(&self) -> &str {
        self.credentials.as_ref().map_or("anonymous", |credentials| &credentials.user)
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
        match self.challenge(headers)? {
            Challenge::Bearer(realm) => self.renew(client, realm, used).await,
            Challenge::Basic => self.use_basic(used),
        }
    }

    fn use_basic(&self, used: Generation) -> Result<Renewed> {
        let credentials =
            self.credentials.as_ref().ok_or_else(|| Error::new(Kind::Denied, "it wants a password"))?;
        let header = sensitive(credentials.basic().expose())?;
        let mut state = self.state.lock();
        if let Some(done) = state.since(used) {
            return done;
        }
        if state.header.is_some() && state.renewal.is_none() {
            return Err(Error::new(Kind::Denied, "user name and password are refused"));
        }
        *state =
            State { generation: state.generation.wrapping_add(1), header: Some(header), ..State::default() };
        Ok(Renewed::Here)
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
        let asked = Instant::now();
        // In all, and not for each part of the answer: others may wait for the turn.
        let fetched = match timeout(self.stall, self.fetch(client, &realm)).await {
            Ok(fetched) => fetched,
            Err(_) => Err(Error::new(Kind::Broken, "no answer in time")),
        };
        let fetched =
            fetched.map_err(|error| error.context(format!("no token from {}", wire::shown(&realm.url))));
        self.state.lock().take(fetched, realm, asked).map(|()| Renewed::Here)
    }

    async fn fetch(&self, client: &Clients, realm: &Realm) -> Result<(HeaderValue, Duration)> {
        let mut url = realm.url.clone();
        if let Some(service) = &realm.service {
            url.query_pairs_mut().append_pair("service", service);
        }
        for scope in &self.scopes {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        let mut request = client.get(url);
        if let Some(credentials) = &self.credentials {
            request = request.header(AUTHORIZATION, sensitive(credentials.basic().expose())?);
        }
        let answer = request.send().await.map_err(wire::transport)?;
        if !answer.status().is_success() {
            return Err(wire::refusal(answer, self.stall).await);
        }
        token(&wire::limited(answer, TOKEN_LIMIT, self.stall).await?)
    }

    /// What the registry wants; a token rather than a password where it would take either.
    fn challenge(&self, headers: &HeaderMap) -> Result<Challenge> {
        let mut basic = false;
        for value in headers.get_all(WWW_AUTHENTICATE) {
            let Ok(text) = value.to_str() else { continue };
            let Ok(challenges) = http_auth::parse_challenges(text) else { continue };
            for one in challenges {
                if one.scheme.eq_ignore_ascii_case("bearer") {
                    return self.bearer(&one).map(Challenge::Bearer);
                }
                basic |= one.scheme.eq_ignore_ascii_case("basic");
            }
        }
        if basic { Ok(Challenge::Basic) } else { Err(Error::new(Kind::Denied, "401 Unauthorized")) }
    }

    fn bearer(&self, challenge: &http_auth::ChallengeRef<'_>) -> Result<Realm> {
        let value = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let realm = value("realm").unwrap_or_default();
        let bad = |why: String| wire::protocol(format!("its token service {:?} {why}", wire::clean(&realm)));
        let url = Url::parse(&realm).map_err(|error| bad(format!("has no usable URL: {error}")))?;
        hops::may_go(&self.registry, &url).map_err(|why| bad(why.to_owned()))?;
        Ok(Realm { url, service: value("service") })
    }
}

fn token(body: &[u8]) -> Result<(HeaderValue, Duration)> {
    // serde_json's message may quote the value, which is the secret.
    let answer: TokenAnswer =
        serde_json::from_slice(body).map_err(|_| wire::protocol("the answer is not a token as JSON"))?;
    let token = Secret::new(if answer.token.is_empty() { answer.access_token } else { answer.token });
    if token.expose().is_empty() {
        return Err(wire::protocol("the answer has no token in it"));
    }
    let life = answer.expires_in.filter(|life| *life > 0).unwrap_or(DEFAULT_LIFE).min(LONGEST_LIFE);
    Ok((sensitive(&format!("Bearer {}", token.expose()))?, Duration::from_secs(life)))
}

fn sensitive(text: &str) -> Result<HeaderValue> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| wire::protocol("the token cannot be sent as a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth")
            .field("user", &self.user())
            .field("scopes", &self.scopes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn auth(registry: &str) -> Auth {
        Auth::new(None, ("a/b", "pull"), Url::parse(registry).unwrap(), Duration::from_secs(1))
    }

    fn challenged(registry: &str, values: &[&'static str]) -> Result<Challenge> {
        let headers = values.iter().map(|v| (WWW_AUTHENTICATE, HeaderValue::from_static(v))).collect();
        auth(registry).challenge(&headers)
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let found = challenged(
            "https://r.io/",
            &["Basic realm=\"x\"", "Bearer realm=\"https://auth.io/token\",service=\"r.io\",scope=\"x\""],
        );
        let Ok(Challenge::Bearer(realm)) = found else { panic!("no bearer") };
        assert_eq!((realm.url.as_str(), realm.service.as_deref()), ("https://auth.io/token", Some("r.io")));
    }

    #[test]
    fn a_token_service_without_tls_is_refused_where_the_registry_has_it() {
        let plain = &["Bearer realm=\"http://auth.io/token\""];
        assert_eq!(challenged("https://r.io/", plain).err().unwrap().kind(), Kind::Protocol);
        assert!(challenged("http://r.io/", plain).is_ok());
        assert!(challenged("https://r.io/", &["Bearer realm=\"file:///etc/passwd\""]).is_err());
        assert!(challenged("https://r.io/", &["Bearer service=\"x\""]).is_err());
    }

    #[test]
    fn an_answer_without_a_usable_challenge_is_a_refusal() {
        assert_eq!(challenged("https://r.io/", &["Negotiate"]).err().unwrap().kind(), Kind::Denied);
        assert_eq!(challenged("https://r.io/", &[]).err().unwrap().kind(), Kind::Denied);
    }

    #[test]
    fn a_token_is_found_under_both_names_and_lives_a_minute_by_default() {
        for body in [r#"{"token":"t"}"#, r#"{"access_token":"t"}"#, r#"{"token":"t","expires_in":0}"#] {
            let (header, life) = token(body.as_bytes()).unwrap();
            assert_eq!((header.to_str().unwrap(), life), ("Bearer t", Duration::from_secs(60)));
            assert!(!format!("{header:?}").contains("Bearer"));
        }
        for body in [r#"{}"#, r#"{"token":"a\nb"}"#, "<html>", r#"{"token":["hunter2"]}"#] {
            let error = token(body.as_bytes()).unwrap_err();
            assert!(!error.to_string().contains("hunter2"));
        }
    }
}
