//! Who asks: user names, passwords and identity tokens for a repository, from all the places where people keep them.
//!
//! [`Sources`] says where to look and in which order; [`Keychain`] looks, for one repository. Files are read each time
//! anew, so that what is renewed beside a running mount is used; programs are run with a limit, and what they say is
//! remembered for a time. Nothing here asks the network: what is done with credentials is `registry::auth`'s.
//! [`login`] writes what this reads.

mod file;
mod helper;
mod kubelet;
pub mod login;
mod matching;
mod program;
mod sources;

use std::collections::HashMap;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use tokio::time::Instant;

use self::helper::Helper;
use self::kubelet::{CacheKey, Provider};
use self::matching::Wanted;
pub use self::matching::is_hub;
pub use self::sources::{Given, Providers, Sources};
use super::Secret;
use super::secret::shield;
use crate::error::{Error, Result};

/// How long the word of a Docker credential helper is believed.
const HELPER_LIFE: Duration = Duration::from_secs(5 * 60);

/// What a registry knows somebody by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The user's name; empty where an identity token has none.
    pub user: String,
    /// The password or the token.
    pub secret: Secret,
    /// Which of the two it is.
    pub form: Form,
}

/// What a secret is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A password, or a token used as one.
    Password,
    /// A long-lived token that others are had for: OAuth 2's `refresh_token`, Docker's `identitytoken`.
    IdentityToken,
}

/// The user name under which Docker's helpers keep identity tokens: it says nothing to anybody.
pub const TOKEN_USER: &str = "<token>";

/// User names that say which kind of secret follows, and not whose it is.
const NOBODYS_NAMES: [&str; 21] = [
    "",
    TOKEN_USER,
    "00000000-0000-0000-0000-000000000000",
    "aws",
    "oauth2accesstoken",
    "_json_key",
    "_json_key_base64",
    "_dcgcr_token",
    "_token",
    "$oauthtoken",
    "token",
    "x-access-token",
    "x-token-auth",
    "x-oauth-basic",
    "oauth2",
    "_oauth_token",
    "gitlab-ci-token",
    "iamapikey",
    "iambearer",
    "nologin",
    "unused",
];

impl Credentials {
    /// A user and a password.
    #[must_use]
    pub fn password(user: impl Into<String>, password: Secret) -> Self {
        Self { user: user.into(), secret: password, form: Form::Password }
    }

    /// An identity token, with the user it came with.
    #[must_use]
    pub fn identity_token(user: impl Into<String>, token: Secret) -> Self {
        Self { user: user.into(), secret: token, form: Form::IdentityToken }
    }

    /// The value of an `Authorization` header of the Basic scheme (RFC 7617).
    #[must_use]
    pub(super) fn basic(&self) -> Secret {
        let user = if self.user.is_empty() { TOKEN_USER } else { &self.user };
        let pair = zeroize::Zeroizing::new(format!("{user}:{}", self.secret.expose()));
        Secret::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
    }

    /// Whose they are, for telling identities apart: the user, whose passwords may change; or a digest of the secret where
    /// the name is nobody's, or an identity token goes with it, to which the name says nothing. Nobody learns the secret
    /// from the digest, nor finds it among digests of the same that were taken for something else.
    fn whose(&self) -> String {
        let named = self.form == Form::Password && !NOBODYS_NAMES.contains(&&*self.user.to_ascii_lowercase());
        if named {
            return self.user.clone();
        }
        let digest = blake3::derive_key("weightfs 1 whose credentials", self.secret.expose().as_bytes());
        format!("{}#{}", self.user, blake3::Hash::from_bytes(digest).to_hex())
    }
}

/// Whether what was remembered will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freshness {
    /// It will.
    Remembered,
    /// It was refused: everybody is asked anew.
    Anew,
}

/// What was found for a repository.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    /// The credentials; `None`: nobody has any.
    pub(super) credentials: Option<Credentials>,
    /// Why a program that may have had some did not say so.
    pub(super) failure: Option<Error>,
}

/// The credentials for one repository of a registry.
#[derive(Debug)]
pub(super) struct Keychain {
    looked: Looked,
    remembered: Mutex<Remembered>,
}

#[derive(Debug)]
enum Looked {
    /// In these places, for this repository.
    Up { sources: Box<Sources>, host: String, repository: String },
    /// Nowhere: they were given.
    Not(Box<Credentials>),
}

#[derive(Debug, Default)]
struct Remembered {
    helpers: HashMap<Helper, (Instant, Option<Credentials>)>,
    providers: HashMap<CacheKey, (Instant, kubelet::Auths)>,
}

/// Somebody who may have the credentials.
#[derive(Debug)]
enum Candidate {
    Known(Credentials),
    Helper(Helper),
    Provider(Provider),
}

impl Keychain {
    /// For `repository` at `host`, both as a reference names them.
    pub(super) fn new(sources: &Sources, host: &str, repository: &str) -> Self {
        let looked = Looked::Up {
            sources: Box::new(sources.clone()),
            host: host.to_owned(),
            repository: repository.to_owned(),
        };
        Self { looked, remembered: Mutex::default() }
    }

    /// That of somebody who has said who they are.
    pub(super) fn of(credentials: Credentials) -> Self {
        Self { looked: Looked::Not(Box::new(credentials)), remembered: Mutex::default() }
    }

    /// A stable name of whose credentials these are, without a secret in it: the user, or the program that knows, each with
    /// a word before it that says which, or `anonymous`. Reads files; runs nothing.
    ///
    /// # Errors
    /// `Invalid` where a file cannot be read or meant.
    pub(super) fn who(&self) -> Result<String> {
        let mut names = Vec::new();
        for candidate in self.candidates()? {
            match candidate {
                Candidate::Known(credentials) => {
                    names.push(format!("user {}", credentials.whose()));
                    break;
                }
                Candidate::Helper(helper) => names.push(format!("helper {}", helper.name)),
                Candidate::Provider(provider) => names.push(format!("provider {}", provider.name)),
            }
        }
        Ok(if names.is_empty() { "anonymous".to_owned() } else { names.join("\n") })
    }

    /// The first credentials that anybody has. Reads files; runs programs within their limit, unless what they said
    /// last will do.
    ///
    /// # Errors
    /// `Invalid` where a file cannot be read or meant. A program that fails is no error here: the next one is asked.
    pub(super) async fn find(&self, freshness: Freshness) -> Result<Found> {
        let mut failure = None;
        for candidate in self.candidates()? {
            let asked = match candidate {
                Candidate::Known(credentials) => Ok(Some(credentials)),
                Candidate::Helper(helper) => self.ask_helper(helper, freshness).await,
                Candidate::Provider(provider) => self.ask_provider(provider, freshness).await,
            };
            match asked {
                Ok(Some(credentials)) => {
                    shield();
                    return Ok(Found { credentials: Some(credentials), failure: None });
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(%error, "no credentials from there");
                    failure = failure.or_else(|| Some(error.of_machine()));
                }
            }
        }
        Ok(Found { credentials: None, failure })
    }

    fn candidates(&self) -> Result<Vec<Candidate>> {
        match &self.looked {
            Looked::Not(credentials) => Ok(vec![Candidate::Known((**credentials).clone())]),
            Looked::Up { sources, host, repository } => {
                sources.candidates(Wanted { host, repository }).map_err(Error::of_machine)
            }
        }
    }

    async fn ask_helper(&self, helper: Helper, freshness: Freshness) -> Result<Option<Credentials>> {
        let now = Instant::now();
        if freshness == Freshness::Remembered
            && let Some((end, said)) = self.remembered.lock().helpers.get(&helper)
            && now < *end
        {
            return Ok(said.clone());
        }
        let said = helper.get().await?;
        self.remembered.lock().helpers.insert(helper, (now + HELPER_LIFE, said.clone()));
        Ok(said)
    }

    async fn ask_provider(&self, provider: Provider, freshness: Freshness) -> Result<Option<Credentials>> {
        let Looked::Up { host, repository, .. } = &self.looked else { return Ok(None) };
        let (wanted, now) = (Wanted { host, repository }, Instant::now());
        if freshness == Freshness::Remembered {
            let remembered = self.remembered.lock();
            let alive = |key: CacheKey| remembered.providers.get(&key).filter(|(end, _)| now < *end);
            if let Some((_, auths)) = provider.cache_keys(wanted).into_iter().find_map(alive) {
                return Ok(auths.find(wanted));
            }
        }
        let answer = provider.ask(wanted).await?;
        let found = answer.auths.find(wanted);
        // One that says nothing of a time is asked each time (`cacheDuration`, kubelet credential providers).
        if !answer.life.is_zero() {
            let end = now.checked_add(answer.life).unwrap_or(now);
            self.remembered.lock().providers.insert(answer.key, (end, answer.auths));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nobodys_is_told_apart_by_its_secret() {
        let aws = |secret: &str| Credentials::password("AWS", Secret::new(secret)).whose();
        assert_ne!(aws("a"), aws("b"));
        assert!(!aws("hunter2").contains("hunter2"));
        for name in ["oauth2", "OAuth2", "<token>", "_json_key", "gitlab-ci-token"] {
            let whose = |secret: &str| Credentials::password(name, Secret::new(secret)).whose();
            assert_ne!(whose("a"), whose("b"), "{name}");
            assert_eq!(whose("a"), whose("a"), "{name}");
        }
        let token = |secret: &str| Credentials::identity_token("me", Secret::new(secret)).whose();
        assert_ne!(token("a"), token("b"), "whoever has the token, whatever name is beside it");
        let me = |secret: &str| Credentials::password("me", Secret::new(secret)).whose();
        assert_eq!((me("a"), me("b")), ("me".into(), "me".into()));
    }

    #[test]
    fn no_users_name_makes_somebody_of_nobody_or_of_a_program() {
        let who = |user: &str| Keychain::of(Credentials::password(user, Secret::new("s"))).who().unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), r#"{"credsStore":"desktop"}"#).unwrap();
        let places = |folder| Sources { docker_config: folder, ..Sources::default() };
        let looked = |folder| Keychain::new(&places(folder), "r.io", "model").who().unwrap();
        let (nobody, program) = (looked(None), looked(Some(folder.path().to_owned())));
        assert_eq!((&*nobody, &*program), ("anonymous", "helper desktop"));
        assert!(who(&nobody) != nobody && who(&program) != program);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_file_or_a_program_is_for_its_machine() {
        let folder = tempfile::tempdir().unwrap();
        let sources = Sources { docker_config: Some(folder.path().to_owned()), ..Sources::default() };
        let look = async |text: &str| {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            Keychain::new(&sources, "r.io", "model").find(Freshness::Remembered).await
        };
        let error = look("{").await.unwrap_err();
        assert!(error.is_of_machine() && error.to_string().contains("config.json"), "{error}");
        let failure = look(r#"{"credsStore":"that-is-nowhere"}"#).await.unwrap().failure.unwrap();
        assert!(failure.is_of_machine() && failure.to_string().contains("that-is-nowhere"), "{failure}");
    }

    #[test]
    fn an_identity_token_without_a_user_goes_under_dockers_name_for_it() {
        let header = Credentials::identity_token("", Secret::new("t")).basic();
        assert_eq!(header.expose(), format!("Basic {}", STANDARD.encode("<token>:t")));
        assert!(!format!("{header:?}").contains("Basic"));
    }
}
