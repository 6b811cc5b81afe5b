//! One token from a token service (distribution, "Token Authentication Specification" and "OAuth2 Token Authentication").
//!
//! A password goes by GET with a Basic header, which every service knows. An identity token goes by POST as a
//! `refresh_token`; services that know no POST answer 404 or 405 and are asked by GET. When to ask is [`super::auth`]'s.

use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{Method, Response, StatusCode};
use url::Url;
use url::form_urlencoded::Serializer;
use zeroize::Zeroizing;

use super::realm::Realm;
use super::tls::Clients;
use super::wire;
use crate::error::{Error, Kind, Result};
use crate::repository::Secret;
use crate::repository::credentials::{Credentials, Form};

/// The life of a token that names none (token specification, `expires_in`).
const DEFAULT_LIFE: u64 = 60;
/// The longest life that is believed; after it a new token is asked for.
const LONGEST_LIFE: u64 = 86_400;
/// How much of a token service's answer is read.
const TOKEN_LIMIT: usize = 1 << 20;

/// A header with a token, and how long it lives from when it was asked for.
#[derive(Debug)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) life: Duration,
}

#[derive(serde::Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<Secret>,
    #[serde(default)]
    access_token: Option<Secret>,
    expires_in: Option<Life>,
}

/// Seconds. Some services write fractions, and some a number as text.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Life {
    Number(f64),
    Text(String),
}

/// Asks once for a token for `scopes`. Redirects are not followed: credentials go to the realm and nowhere else.
///
/// # Errors
/// `Denied` where it gives none, and what the wire may bring.
pub(super) async fn fetch(
    client: &Clients,
    realm: &Realm,
    scopes: &[String],
    credentials: Option<&Credentials>,
    stall: Duration,
) -> Result<Token> {
    let answer = match credentials {
        Some(token) if token.form == Form::IdentityToken => {
            let answer = post(client, realm, scopes, &token.secret).await?;
            match answer.status() {
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                    get(client, realm, scopes, credentials).await?
                }
                _ => answer,
            }
        }
        credentials => get(client, realm, scopes, credentials).await?,
    };
    if answer.status().is_redirection() {
        return Err(wire::protocol(format!("{}, and credentials follow no redirect", answer.status())));
    }
    if !answer.status().is_success() {
        return Err(refusal(answer, stall).await);
    }
    read(&Zeroizing::new(wire::limited(answer, TOKEN_LIMIT, stall).await?.to_vec()))
}

/// A token service says no in more ways than a registry: 400 is OAuth 2's for credentials that are not right (RFC 6749
/// §5.2, `invalid_grant`).
async fn refusal(answer: Response, stall: Duration) -> Error {
    let status = answer.status();
    let error = wire::refusal(answer, stall).await;
    match status {
        StatusCode::BAD_REQUEST => Error::from_source(Kind::Denied, "the credentials are refused", error),
        _ => error,
    }
}

async fn get(
    client: &Clients,
    realm: &Realm,
    scopes: &[String],
    credentials: Option<&Credentials>,
) -> Result<Response> {
    let mut url: Url = realm.url.clone();
    if let Some(service) = &realm.service {
        url.query_pairs_mut().append_pair("service", service);
    }
    for scope in scopes {
        url.query_pairs_mut().append_pair("scope", scope);
    }
    let mut request = client.get(url);
    if let Some(credentials) = credentials {
        request = request.header(AUTHORIZATION, sensitive(credentials.basic().expose())?);
    }
    request.send().await.map_err(wire::transport)
}

async fn post(client: &Clients, realm: &Realm, scopes: &[String], token: &Secret) -> Result<Response> {
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    let request = client.request(Method::POST, realm.url.clone()).header(CONTENT_TYPE, form_type);
    request.body(form(realm, scopes, token)).send().await.map_err(wire::transport)
}

fn form(realm: &Realm, scopes: &[String], token: &Secret) -> String {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token").append_pair("client_id", "weightfs");
    if let Some(service) = &realm.service {
        form.append_pair("service", service);
    }
    if !scopes.is_empty() {
        form.append_pair("scope", &scopes.join(" "));
    }
    form.append_pair("refresh_token", token.expose()).finish()
}

fn read(body: &[u8]) -> Result<Token> {
    // serde_json's message may quote the value, which is the secret.
    let answer: Answer =
        serde_json::from_slice(body).map_err(|_| wire::protocol("the answer is not a token as JSON"))?;
    let there = |token: &Secret| !token.expose().is_empty();
    let token = answer.token.filter(there).or(answer.access_token.filter(there));
    let token = token.ok_or_else(|| wire::protocol("the answer has no token in it"))?;
    let text = Zeroizing::new(format!("Bearer {}", token.expose()));
    Ok(Token { header: sensitive(&text)?, life: life(answer.expires_in) })
}

/// What cannot be meant counts as not told.
fn life(told: Option<Life>) -> Duration {
    let seconds = match told {
        Some(Life::Number(seconds)) => Some(seconds),
        Some(Life::Text(text)) => text.trim().parse().ok(),
        None => None,
    };
    let life = seconds.filter(|life| *life > 0.0).and_then(|life| Duration::try_from_secs_f64(life).ok());
    life.unwrap_or(Duration::from_secs(DEFAULT_LIFE)).min(Duration::from_secs(LONGEST_LIFE))
}

/// The value of a header that is not shown where headers are.
pub(super) fn sensitive(text: &str) -> Result<HeaderValue> {
    let mut value =
        HeaderValue::from_str(text).map_err(|_| wire::protocol("the token cannot be sent as a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_found_under_both_names_and_lives_a_minute_by_default() {
        for body in [
            r#"{"token":"t"}"#,
            r#"{"access_token":"t"}"#,
            r#"{"token":"","access_token":"t"}"#,
            r#"{"token":null,"access_token":"t","expires_in":null}"#,
            r#"{"token":"t","expires_in":0}"#,
        ] {
            let token = read(body.as_bytes()).unwrap();
            assert_eq!((token.header.to_str().unwrap(), token.life), ("Bearer t", Duration::from_secs(60)));
            assert!(!format!("{token:?}").contains("Bearer"));
        }
        for body in [r#"{}"#, r#"{"token":"a\nb"}"#, "<html>", r#"{"token":["hunter2"]}"#] {
            let error = read(body.as_bytes()).unwrap_err();
            assert!(!error.to_string().contains("hunter2"));
        }
    }

    #[test]
    fn a_life_is_believed_within_reason_however_it_is_written() {
        let lives = |told: &str| {
            let body = format!(r#"{{"token":"t","expires_in":{told}}}"#);
            read(body.as_bytes()).unwrap().life.as_secs_f64()
        };
        assert_eq!((lives("300"), lives("1.5"), lives("\"1800\"")), (300.0, 1.5, 1800.0));
        assert_eq!(
            (lives("1e18"), lives("-1"), lives("\"soon\""), lives("\"NaN\"")),
            (86_400.0, 60.0, 60.0, 60.0)
        );
    }
}
