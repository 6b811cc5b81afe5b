//! A repository of a registry, over HTTP (OCI distribution specification 1.1).
//!
//! Every call is one attempt: asking again is [`super::Retrying`]'s. Manifests (`manifests`) are read whole; blobs are read (`blobs`) by single ranges that are
//! checked to the byte (`wire`), or cut out of the whole where ranges are ignored (`whole`); redirects are followed by
//! hand (`hops`), no further than a registry may lead (`reach`), and remembered (`found`) for a time (`expiry`);
//! credentials stay with the registry (`auth`, which meets the challenge of `realm` by a `token`). What is pushed goes by
//! `upload`; `ask` is any one request; ranges without TLS come `direct`ly over a `line` of ours (`framing`); `login` finds out whether credentials are right. Where it is asked says `endpoint`,
//! with what trust `tls` (and the machine's `roots`), and through whom `proxy`.

mod ask;
mod auth;
mod blobs;
mod direct;
mod doubt;
mod endpoint;
mod expiry;
mod found;
mod framing;
mod hops;
mod line;
mod login;
mod manifests;
pub mod proxy;
mod reach;
mod realm;
mod roots;
mod tls;
mod token;
mod upload;
mod whole;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};
use parking_lot::Mutex;
use reqwest::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response, StatusCode};
use url::Url;

use self::ask::Ask;
pub(super) use self::ask::Stretch;
use self::auth::{Auth, Generation, Renewed};
use self::direct::Direct;
use self::doubt::Doubts;
use self::endpoint::name_on_the_wire;
pub(super) use self::endpoint::{Endpoint, Role};
use self::found::Found;
use self::hops::{Carries, Hop};
pub use self::login::Verdict;
pub use self::reach::RedirectTo;
use self::reach::{Names, Reach};
pub(super) use self::tls::Checks;
use self::tls::{Clients, Side};
pub(super) use self::upload::{Session, Setback};
use self::whole::Wholes;
use super::credentials::Keychain;
use super::{ByteStream, Config, Pace, Pinned, Repository};
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Descriptor, Digest, Which};
use crate::range::StoredRange;

/// How often one request is sent at most: anonymous, with a token, with a token that others renewed meanwhile.
const AUTH_ATTEMPTS: u32 = 3;

/// How long a connection waits to be used again, and how many do of one host.
const IDLE_TIME: Duration = Duration::from_secs(90);
const IDLE_LINES: usize = 128;
/// How many blobs are asked for side by side once a manifest is here: its config, and the head of its index.
const FIRST_READS: usize = 2;

/// What one request of a chain of redirects has come to.
enum Step {
    Answer(Response),
    /// Another place is to be asked, which is good for so long, if that was told.
    Away(Hop, Option<Duration>),
}

/// Leave to read another repository too: its name, and who asks there.
type Mounting = (String, Arc<Auth>);

/// A repository of a registry. Cloned, it is the same one.
#[derive(Clone)]
pub struct Registry {
    client: Clients,
    direct: Direct,
    endpoint: Endpoint,
    /// `SCHEME://HOST/v2/REPOSITORY/`
    base: Url,
    /// The registry and the repository as typed; the endpoint may be a mirror's.
    host: String,
    repository: String,
    /// `base`, were nothing configured of the registry: the same whoever is asked in its place.
    known_as: Url,
    /// Whose credentials are used, without a secret.
    who: String,
    auth: Arc<Auth>,
    /// For the repository from which blobs are mounted.
    mounting: Arc<Mutex<Option<Mounting>>>,
    stall: Duration,
    reach: Arc<Reach>,
    found: Found,
    wholes: Wholes,
    doubts: Doubts,
}

impl Registry {
    /// A client for `repository` at `host`, as a reference names them.
    ///
    /// Reads the files that have credentials; asks no network.
    ///
    /// # Errors
    /// `Invalid` where the host, or a file with credentials, cannot be meant.
    pub fn new(host: &str, repository: &str, config: &Config) -> Result<Self> {
        Self::at(Endpoint::of(host, config.plain_http)?, (host, repository), config)
    }

    /// The same, asked at `endpoint`.
    pub(super) fn at(endpoint: Endpoint, named: (&str, &str), config: &Config) -> Result<Self> {
        Self::for_actions("pull", endpoint, named, config)
    }

    /// The same, for pushing: asks for leave to write too.
    pub(super) fn pushing(endpoint: Endpoint, named: (&str, &str), config: &Config) -> Result<Self> {
        Self::for_actions("pull,push", endpoint, named, config)
    }

    fn for_actions(
        actions: &str,
        endpoint: Endpoint,
        (host, repository): (&str, &str),
        config: &Config,
    ) -> Result<Self> {
        let wire_repository = name_on_the_wire(host, repository);
        let base = endpoint.base(&wire_repository)?;
        let keychain = Arc::new(Keychain::new(&config.credentials, &endpoint.host, repository));
        let reach = Reach::new(base.clone(), config.redirect_to.clone());
        let reach = Arc::new(reach.through(config.proxies.hosts()));
        Ok(Self {
            client: Clients::new(config, &endpoint, &reach)?,
            direct: Direct::new(&reach, endpoint.connect_timeout.unwrap_or(config.connect_timeout)),
            who: keychain.who()?,
            auth: Arc::new(Auth::new(
                keychain,
                (&wire_repository, actions),
                Arc::clone(&reach),
                config.stall,
            )),
            mounting: Arc::default(),
            reach,
            base,
            host: host.to_owned(),
            repository: repository.to_owned(),
            known_as: Endpoint::of(host, config.plain_http)?.base(&wire_repository)?,
            endpoint,
            stall: config.stall,
            found: Found::new(),
            doubts: Doubts::new(),
            wholes: Wholes::new(Arc::clone(&config.metrics)),
        })
    }

    /// Follows redirects from `hop` on; gives the last hop and its answer, of whatever status.
    async fn follow(&self, hop: Hop, ask: &Ask<'_>) -> Result<(Hop, Response)> {
        self.follow_up_to(hops::MOST, hop, ask).await
    }

    async fn follow_up_to(&self, most: usize, mut hop: Hop, ask: &Ask<'_>) -> Result<(Hop, Response)> {
        let mut been = Vec::new();
        for _ in 0..=most {
            match self.step(&hop, ask).await? {
                Step::Answer(response) => return Ok((hop, response)),
                Step::Away(next, _) => been.push(std::mem::replace(&mut hop, next)),
            }
            // It would be asked the same again, and nothing says that it would know better.
            if been.contains(&hop) {
                return Err(wire::protocol(format!("a redirect back to {}", wire::shown(&hop.url))));
            }
        }
        Err(wire::protocol(format!("more than {} redirects", hops::MOST)))
    }

    /// One request of a chain.
    async fn step(&self, hop: &Hop, ask: &Ask<'_>) -> Result<Step> {
        let response = match hop.carries {
            Carries::Credentials => self.send_authorized(&hop.url, ask).await?,
            Carries::Nothing => self.send(&hop.url, ask, HeaderMap::new()).await?,
        };
        if !response.status().is_redirection() {
            return Ok(Step::Answer(response));
        }
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let status = response.status();
        if !ask.is_question() && !matches!(status.as_u16(), 307 | 308) {
            return Err(wire::protocol(format!("{status} where something was sent")));
        }
        let location =
            location.ok_or_else(|| wire::protocol(format!("{status} without a usable Location")))?;
        let next = hop.next(&self.reach, location)?;
        if next == *hop {
            return Err(wire::protocol(format!("a redirect of {} to itself", wire::shown(&next.url))));
        }
        let life = expiry::life(&next.url, response.headers(), SystemTime::now());
        Ok(Step::Away(next, life))
    }

    /// Sends with the header of the moment; after a refusal again with a new one, which is renewed once here.
    async fn send_authorized(&self, url: &Url, ask: &Ask<'_>) -> Result<Response> {
        let mut left = AUTH_ATTEMPTS;
        loop {
            let (authorization, used) = ask.auth.header(&self.client).await.map_err(|e| self.explained(e))?;
            let mut headers = self.endpoint.headers.clone();
            // Instead of one that its hosts.toml has: two would be a request against the rules.
            authorization.map(|value| headers.insert(AUTHORIZATION, value));
            let response = self.send(url, ask, headers).await?;
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(response);
            }
            let renewed = self.renewed(ask, used, &response).await.map_err(|error| self.explained(error))?;
            match renewed {
                None => return Ok(response),
                Some(Renewed::Here) => left = 1,
                Some(Renewed::Elsewhere) => {}
            }
        }
    }

    /// Makes a new header where the answer says, or may mean, that the one of `used` will not do.
    async fn renewed(&self, ask: &Ask<'_>, used: Generation, response: &Response) -> Result<Option<Renewed>> {
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                ask.auth.refused(&self.client, used, response.headers()).await.map(Some)
            }
            StatusCode::FORBIDDEN => ask.auth.suspected(&self.client, used).await,
            // To what is sent 400 may be the true answer, and it may not be sent twice.
            StatusCode::BAD_REQUEST if ask.is_question() => ask.auth.suspected(&self.client, used).await,
            status => {
                if status.is_success() || status.is_redirection() {
                    ask.auth.accepted(used);
                }
                Ok(None)
            }
        }
    }

    async fn send(&self, url: &Url, ask: &Ask<'_>, headers: HeaderMap) -> Result<Response> {
        if ask.is_for_a_range() && url.scheme() == "http" && !self.client.is_proxied(url) {
            let sent = ask.send_directly(&self.direct, url, headers, self.stall).await;
            let (response, peer) = sent.map_err(|error| self.elsewhere(url, error))?;
            self.reach.answered(url, peer.ip());
            return Ok(response);
        }
        let request = self
            .client
            .request(ask.method.clone(), url.clone())
            .headers(headers)
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let sent = ask.send(request, self.stall).await;
        let response = sent.map_err(|error| self.elsewhere(url, self.client.through(url, error)))?;
        if let Some(peer) = self.client.peer(url, &response) {
            self.reach.answered(url, peer);
        }
        Ok(response)
    }

    /// Names the host where it is not the registry's own.
    fn elsewhere(&self, url: &Url, error: Error) -> Error {
        if url.origin() == self.base.origin() { error } else { error.context(wire::shown(url)) }
    }

    async fn refusal(&self, response: Response) -> Error {
        let (url, between) = (response.url().clone(), endpoint::failed_between(response.headers()));
        let by_proxy = response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED;
        let error = wire::refusal(response, self.stall).await;
        match between {
            None if by_proxy => self.client.through(&url, error),
            // What stands between failed, whatever the status means where a registry says it.
            Some(who) => Error::from_source(Kind::Broken, who, error),
            None => self.explained(self.elsewhere(&url, error)),
        }
    }

    /// Adds the way out that the kind of error has.
    fn explained(&self, error: Error) -> Error {
        match error.kind() {
            Kind::Denied => {
                error.hint(format!("check the name, or run 'weightfs login {}'", self.endpoint.host))
            }
            _ => error,
        }
    }

    fn url(&self, path: &str) -> Result<Url> {
        let url = self.base.join(path);
        let mut url =
            url.map_err(|error| Error::from_source(Kind::Invalid, format!("no URL: {path}"), error))?;
        if let Some(registry) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", registry);
        }
        Ok(url)
    }

    fn unread(&self, what: &str, error: Error) -> Error {
        let error = error.context(format!("cannot read {what} from {}", self.place()));
        match error.kind() {
            Kind::Unreachable => error.hint("check the address and the network"),
            _ => error,
        }
    }
}

impl Repository for Registry {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        let read = async move {
            self.pin(which).await.map_err(|error| self.unread(&format!("the manifest {which}"), error))
        };
        Box::pin(read)
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            super::inside(blob, range)?;
            if range.is_empty() {
                return Ok(stream::empty().boxed());
            }
            let place = self.place();
            let what = format!("{} bytes {range}", blob.digest);
            let body = self.open(blob, range).await.map_err(|error| self.unread(&what, error))?;
            let named = move |error: Error| error.context(format!("cannot read {what} from {place}"));
            Ok(body.map(move |piece| piece.map_err(&named)).boxed())
        })
    }

    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        let read = async move {
            let found = self.referring(subject, artifact_type).await;
            found.map_err(|error| self.unread(&format!("what refers to {subject}"), error))
        };
        Box::pin(read)
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.read(blob, range)
    }

    fn expect_reads(&self) {
        if self.base.scheme() == "http" && !self.client.is_proxied(&self.base) {
            self.direct.prepare(&self.base, FIRST_READS);
        }
    }

    /// No opinion, but where ranges are ignored: what comes in one stream is best asked for in order.
    fn pace(&self) -> Pace {
        match self.wholes.are_needed() {
            true => Pace { requests: 1, small: 1, ..Pace::default() },
            false => Pace {
                requests: usize::MAX,
                small: usize::MAX,
                bytes: u64::MAX,
                ahead: u64::MAX,
                window: u64::MAX,
            },
        }
    }

    fn distrust(&self, _: &Blob) {}

    fn place(&self) -> String {
        format!("{}/{}", self.endpoint.host, self.repository)
    }

    fn identity(&self) -> String {
        super::identity_of(&["registry", self.known_as.as_str(), &self.who])
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("base", &wire::shown(&self.base)).field("auth", &self.auth).finish()
    }
}

/// The HTTP client for one side of an endpoint, over HTTP/1.1 alone: with HTTP/2 all ranges of a host would share one
/// connection, and so one TCP window and the loss of one packet. A connection for each range in flight costs a handshake
/// once, and is kept.
fn client(config: &Config, endpoint: &Endpoint, reach: &Arc<Reach>, side: Side) -> Result<Client> {
    let builder = Client::builder()
        .user_agent(ask::AGENT)
        .http1_only()
        .dns_resolver(Arc::new(Names(Arc::clone(reach))))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(endpoint.connect_timeout.unwrap_or(config.connect_timeout))
        .pool_idle_timeout(IDLE_TIME)
        .pool_max_idle_per_host(IDLE_LINES);
    let builder = config.proxies.apply(builder);
    let built = endpoint.trust.apply(builder, config, side)?.build();
    built.map_err(|error| Error::from_source(Kind::Untrusted, "cannot set up TLS", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_that_leads_into_this_machine_is_not_connected_to() {
        let reach = Arc::new(Reach::new(Url::parse("https://r.example/").unwrap(), Vec::new()));
        let endpoint = Endpoint::at(reach.registry.clone(), "r.example");
        let asking = client(&Config::default(), &endpoint, &reach, Side::Own).unwrap();
        let sent = asking.get("http://localhost:9/x?signature=hunter2").send().await;
        let error = wire::transport(sent.unwrap_err());
        assert_eq!(error.kind(), Kind::Protocol, "{error}");
        assert!(error.to_string().contains("registry.redirect_to"), "{error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let named = Reach::new(reach.registry.clone(), vec!["localhost".parse().unwrap()]);
        let asking = client(&Config::default(), &endpoint, &Arc::new(named), Side::Own).unwrap();
        let error = wire::transport(asking.get("http://localhost:9/").send().await.unwrap_err());
        assert_eq!(error.kind(), Kind::Unreachable, "only nobody is there: {error}");
    }

    #[test]
    fn an_identity_shows_neither_place_nor_user() {
        let registry = Registry::new("127.0.0.1:1", "acme/llm", &Config::default()).unwrap();
        assert_eq!(registry.identity().len(), 64);
        assert_eq!(registry.place(), "127.0.0.1:1/acme/llm");
    }
}
