//! User name and password from Docker's `config.json`.
//!
//! Only `auths` is read: credential helpers and identity tokens are not. [`super::Registry`] asks once, when
//! it is made.

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::error::{Error, Kind, Result};
use crate::repository::Secret;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: Secret,
}

impl Credentials {
    /// The value of an `Authorization` header of the Basic scheme (RFC 7617).
    pub(super) fn basic(&self) -> Secret {
        Secret::new(format!("Basic {}", STANDARD.encode(format!("{}:{}", self.user, self.password.expose()))))
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

/// The credentials for `host` in the file, or in its `config.json` where `path` is a folder; `None` where the
/// file is missing or has none.
///
/// # Errors
/// `Invalid` where the file cannot be read or meant; the error shows nothing of its content.
pub(super) fn find(path: &Path, host: &str) -> Result<Option<Credentials>> {
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    let bytes = match std::fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Error::from_source(Kind::Invalid, format!("cannot read {}", file.display()), error));
        }
    };
    in_config(&bytes, host).map_err(|why| {
        Error::new(Kind::Invalid, format!("cannot use {}: {why}", file.display()))
            .hint("it must be a configuration file as 'docker login' writes it")
    })
}

fn in_config(bytes: &[u8], host: &str) -> Result<Option<Credentials>, String> {
    // serde_json's message may quote a value, and the values here are secrets: only the place is told.
    let config: DockerConfig = serde_json::from_slice(bytes)
        .map_err(|error| format!("no valid JSON at line {} column {}", error.line(), error.column()))?;
    let mut found: Vec<_> = config.auths.into_iter().filter(|(key, _)| is_for(key, host)).collect();
    // The plain host first, then by name: the choice must not depend on a map's order.
    found.sort_by_key(|(key, _)| (key != host, key.clone()));
    for (key, entry) in found {
        if let Some(credentials) =
            entry.credentials().ok_or_else(|| format!("the entry {key:?} has a bad auth"))?
        {
            return Ok(Some(credentials));
        }
    }
    Ok(None)
}

impl Entry {
    /// `None`: malformed. `Some(None)`: empty, as where a credential store has the secret.
    fn credentials(self) -> Option<Option<Credentials>> {
        let (user, password) = if self.auth.is_empty() {
            (self.username, self.password)
        } else {
            let decoded = String::from_utf8(STANDARD.decode(self.auth.trim()).ok()?).ok()?;
            let (user, password) = decoded.split_once(':')?;
            (user.to_owned(), password.trim_end_matches('\0').to_owned())
        };
        if user.is_empty() || password.is_empty() {
            return Some(None);
        }
        Some(Some(Credentials { user, password: Secret::new(password) }))
    }
}

/// Whether a key of `auths` is for `host`: `HOST`, or a URL of it whose path is empty, `/v1/` or `/v2/`.
fn is_for(key: &str, host: &str) -> bool {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (named, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path_fits = matches!(path.trim_end_matches('/'), "" | "v1" | "v2");
    path_fits && (named.eq_ignore_ascii_case(host) || (is_hub(named) && is_hub(host)))
}

/// Docker Hub goes by several names, and `docker login` writes yet another one.
pub(in crate::repository) fn is_hub(host: &str) -> bool {
    ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str, host: &str) -> Option<String> {
        in_config(json.as_bytes(), host).unwrap().map(|it| format!("{}:{}", it.user, it.password.expose()))
    }

    #[test]
    fn a_host_is_found_under_each_of_its_spellings() {
        // base64 of user:pass
        for key in ["r.io", "https://r.io", "https://r.io/v1/", "https://r.io/v2/", "r.io/"] {
            let json = format!(r#"{{"auths":{{"{key}":{{"auth":"dXNlcjpwYXNz"}}}}}}"#);
            assert_eq!(found(&json, "r.io").as_deref(), Some("user:pass"), "{key}");
            assert_eq!(found(&json, "r.io:5000"), None);
            assert_eq!(found(&json, "evil.r.io"), None);
        }
    }

    #[test]
    fn the_hub_is_found_under_the_name_that_docker_login_writes() {
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"username":"me","password":"p:w"}}}"#;
        assert_eq!(found(json, "docker.io").as_deref(), Some("me:p:w"));
    }

    #[test]
    fn an_empty_entry_is_anonymous() {
        let json = r#"{"credsStore":"x","auths":{"r.io":{}}}"#;
        assert_eq!(found(json, "r.io"), None);
        assert_eq!(found("{}", "r.io"), None);
    }

    #[test]
    fn an_error_shows_nothing_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for content in [r#"{"auths":{"r.io":{"auth":"hunter2!"}}}"#, r#"{"auths":{"r.io":"hunter2"}}"#] {
            std::fs::write(folder.path().join("config.json"), content).unwrap();
            let error = find(folder.path(), "r.io").unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
