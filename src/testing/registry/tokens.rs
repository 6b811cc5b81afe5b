//! The token service of a registry (distribution "Token Authentication Specification"), and who may do what.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use axum::http::header::{AUTHORIZATION, HeaderMap, WWW_AUTHENTICATE};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::reply::{plain, refusal};

/// Who comes in.
#[derive(Clone, Debug, Default)]
pub enum Door {
    /// Everybody.
    #[default]
    Open,
    /// Who brings name and password of one of these.
    Basic(Vec<User>),
    /// Who brings a token of the token service.
    Tokens(Tokens),
}

/// Somebody with a password.
#[derive(Clone, Debug)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password. That of a test begins with a word that can be looked for in everything that is printed.
    pub password: String,
    /// The repositories that they may use; all where empty.
    pub repositories: Vec<String>,
}

impl User {
    /// Somebody who may use every repository.
    pub fn new(name: impl Into<String>, password: impl Into<String>) -> Self {
        Self { name: name.into(), password: password.into(), repositories: Vec::new() }
    }

    fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:{}", self.name, self.password)))
    }

    fn may(&self, scope: &str) -> bool {
        let repository = scope.split(':').nth(1).unwrap_or_default();
        self.repositories.is_empty() || self.repositories.iter().any(|one| one == repository)
    }
}

/// How tokens are given out.
#[derive(Clone, Debug)]
pub struct Tokens {
    /// The life that the answer tells, in seconds (`expires_in`).
    pub told: u64,
    /// The life that they have; as told where `None`.
    pub life: Option<Duration>,
    /// Who gets one; everybody where empty.
    pub users: Vec<User>,
}

impl Tokens {
    /// Tokens of an hour, for everybody.
    #[must_use]
    pub fn for_everybody() -> Self {
        Self { told: 3600, life: None, users: Vec::new() }
    }
}

/// The tokens given out so far.
#[derive(Debug, Default)]
pub(super) struct Given {
    count: u64,
    tokens: HashMap<String, Token>,
    /// The last token of each user for each list of scopes.
    latest: HashMap<(String, Vec<String>), String>,
}

#[derive(Debug)]
struct Token {
    scopes: Vec<String>,
    end: Option<Instant>,
    /// Until when nobody has a reason to ask for another.
    good: Option<Instant>,
    refused: bool,
}

/// What came of a request for a token.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Whether there was no reason to ask.
    pub(super) too_soon: bool,
}

impl Given {
    /// Refuses all tokens given out so far.
    pub(super) fn revoke(&mut self) {
        for token in self.tokens.values_mut() {
            token.end = Some(Instant::now());
        }
    }

    /// Notes that a request with this header was answered 401, whatever the reason: then another token may be asked for.
    pub(super) fn refused(&mut self, headers: &HeaderMap) {
        if let Some(token) = bearer(headers).and_then(|token| self.tokens.get_mut(token)) {
            token.refused = true;
        }
    }

    /// A token, as `query` asks for it, to who may have one.
    pub(super) fn give(&mut self, tokens: &Tokens, query: &str, headers: &HeaderMap) -> Answer {
        let authorization = header(headers).unwrap_or_default();
        let user = tokens.users.iter().find(|user| user.basic() == authorization);
        if user.is_none() && !tokens.users.is_empty() {
            return Answer { response: refusal(401, "UNAUTHORIZED", "who are you?"), too_soon: false };
        }
        let asked = url::form_urlencoded::parse(query.as_bytes());
        let scopes = asked.filter(|(name, _)| name == "scope").map(|(_, scope)| scope.into_owned());
        let may = |scope: &String| user.is_none_or(|user| user.may(scope));
        let scopes: Vec<String> = scopes.filter(may).collect();
        let who = (user.map(|user| user.name.clone()).unwrap_or_default(), scopes.clone());
        let too_soon = self.latest.get(&who).and_then(|token| self.tokens.get(token)).is_some_and(is_good);
        self.count += 1;
        let name = format!("canary-token-{}", self.count);
        self.tokens.insert(name.clone(), Token::new(scopes, tokens));
        self.latest.insert(who, name.clone());
        let body = json!({ "token": name, "access_token": name, "expires_in": tokens.told });
        Answer { response: plain(200, &[], body.to_string()), too_soon }
    }

    /// Whether a request with these headers may do `scope`: `repository:NAME:ACTION`.
    pub(super) fn admits(&self, headers: &HeaderMap, scope: &str) -> bool {
        let Some(token) = bearer(headers).and_then(|token| self.tokens.get(token)) else { return false };
        let lives = token.end.is_none_or(|end| Instant::now() < end);
        lives && (scope.is_empty() || token.scopes.iter().any(|given| covers(given, scope)))
    }
}

impl Token {
    fn new(scopes: Vec<String>, tokens: &Tokens) -> Self {
        let told = Duration::from_secs(tokens.told);
        let life = tokens.life.unwrap_or(told);
        let now = Instant::now();
        // A careful client asks for the next some time before the end.
        let good = now.checked_add(life.min(told) / 2);
        Self { scopes, end: now.checked_add(life), good, refused: false }
    }
}

fn is_good(token: &Token) -> bool {
    let now = Instant::now();
    !token.refused && token.end.is_none_or(|end| now < end) && token.good.is_none_or(|good| now < good)
}

/// Whether `given` (`repository:NAME:pull,push`) allows `scope`, which has one action.
fn covers(given: &str, scope: &str) -> bool {
    let parts =
        |text: &str| text.rsplit_once(':').map(|(place, actions)| (place.to_owned(), actions.to_owned()));
    let (Some((place, actions)), Some((wanted, action))) = (parts(given), parts(scope)) else { return false };
    place == wanted && actions.split(',').any(|one| one == action)
}

/// Whether one of the users brings name and password.
pub(super) fn knows(users: &[User], headers: &HeaderMap, scope: &str) -> bool {
    let authorization = header(headers).unwrap_or_default();
    users.iter().any(|user| user.basic() == authorization && (scope.is_empty() || user.may(scope)))
}

/// 401 with what the registry wants; `realm` is the token service, or nothing for Basic.
pub(super) fn challenge(realm: Option<&str>, scope: &str) -> Response {
    let value = match realm {
        Some(realm) => format!(r#"Bearer realm="{realm}",service="test",scope="{scope}""#),
        None => r#"Basic realm="test""#.to_owned(),
    };
    let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"who are you?"}]}"#;
    plain(401, &[(WWW_AUTHENTICATE, &value)], body)
}

fn header(headers: &HeaderMap) -> Option<&str> {
    headers.get(AUTHORIZATION)?.to_str().ok()
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    header(headers)?.strip_prefix("Bearer ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(authorization: &str) -> HeaderMap {
        [(AUTHORIZATION, authorization.parse().unwrap())].into_iter().collect()
    }

    #[test]
    fn a_token_is_good_for_its_scope_until_it_is_revoked() {
        let mut given = Given::default();
        let answer = given.give(&Tokens::for_everybody(), "scope=repository%3Aa/b%3Apull", &HeaderMap::new());
        assert!(answer.response.status().is_success() && !answer.too_soon);
        let headers = with("Bearer canary-token-1");
        assert!(given.admits(&headers, "repository:a/b:pull"));
        assert!(
            !given.admits(&headers, "repository:a/b:push") && !given.admits(&headers, "repository:a/c:pull")
        );
        given.revoke();
        assert!(!given.admits(&headers, "repository:a/b:pull"));
    }

    #[test]
    fn a_second_token_without_a_reason_is_noticed() {
        let (mut given, tokens) = (Given::default(), Tokens::for_everybody());
        let mut ask = |refused: bool| {
            if refused {
                given.refused(&with("Bearer canary-token-1"));
            }
            given.give(&tokens, "scope=x:y:z", &HeaderMap::new()).too_soon
        };
        assert_eq!((ask(false), ask(true), ask(false)), (false, false, true));
    }

    #[test]
    fn a_user_gets_a_token_for_what_is_theirs_alone() {
        let user = User { repositories: vec!["a/b".into()], ..User::new("me", "canary-password") };
        let tokens = Tokens { users: vec![user.clone()], ..Tokens::for_everybody() };
        let mut given = Given::default();
        let scopes = "scope=repository:a/b:pull&scope=repository:other:pull";
        assert_eq!(given.give(&tokens, scopes, &HeaderMap::new()).response.status(), 401);
        assert_eq!(given.give(&tokens, scopes, &with(&user.basic())).response.status(), 200);
        let headers = with("Bearer canary-token-1");
        assert!(
            given.admits(&headers, "repository:a/b:pull") && !given.admits(&headers, "repository:other:pull")
        );
    }
}
