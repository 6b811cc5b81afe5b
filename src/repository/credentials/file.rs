//! A file with credentials, as Docker, containers' tools and Kubernetes write it: read, and asked for a repository.
//!
//! `config.json` of Docker, `auth.json` of containers(-auth.json(5)), `.dockerconfigjson` and the older `.dockercfg` of
//! Kubernetes are one form: `auths` by host, and the names of programs that know more.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Credentials;
use super::matching::{Wanted, best, fit};
use crate::error::{Error, Kind, Result};
use crate::repository::Secret;

/// The largest file that is read.
const LIMIT: u64 = 4 << 20;

/// Names of the file where a folder is given: Docker's own, and those of a Kubernetes secret that is mounted.
const NAMES: [&str; 3] = ["config.json", ".dockerconfigjson", OLDER];
/// The one that has hosts where others have `auths` among other things.
pub(super) const OLDER: &str = ".dockercfg";

/// What a file says, as far as credentials go.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct File {
    auths: HashMap<String, Entry>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
}

/// One of `auths`. A null is as good as nothing: some tools write it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

/// The file that is meant by the path of a file or of a folder that has one. What is not there is taken for a folder unless
/// it is called `….json`: `~/.docker` is one before anybody has logged in.
pub(super) fn resolve(path: &Path) -> PathBuf {
    let is_json = path.extension().is_some_and(|extension| extension == "json");
    if !path.is_dir() && (path.exists() || is_json) {
        return path.to_owned();
    }
    let [usual, ..] = NAMES;
    let inside = NAMES.map(|name| path.join(name));
    inside.into_iter().find(|path| path.exists()).unwrap_or_else(|| path.join(usual))
}

/// The bytes of a file, or `None` where there is none.
///
/// # Errors
/// `Invalid` where it cannot be read, or is larger than 4 MiB.
pub(super) fn read(file: &Path) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let unread = |error| Error::from_source(Kind::Invalid, format!("cannot read {}", file.display()), error);
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(unread(error)),
    };
    let mut bytes = Zeroizing::new(Vec::new());
    opened.take(LIMIT + 1).read_to_end(&mut bytes).map_err(unread)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > LIMIT {
        return Err(Error::new(Kind::Invalid, format!("{} is larger than 4 MiB", file.display())));
    }
    Ok(Some(bytes))
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

/// The error for a file that cannot be meant; `why` shows nothing of its content.
pub(super) fn unusable(file: &Path, why: &str) -> Error {
    Error::new(Kind::Invalid, format!("cannot use {}: {why}", file.display()))
        .hint("it must be a configuration file as 'docker login' writes it")
}

impl File {
    /// The file at `path`, or in the folder there; `None` where there is none.
    ///
    /// # Errors
    /// `Invalid` where it cannot be read or meant; the error shows nothing of its content.
    pub(super) fn load(path: &Path) -> Result<Option<(PathBuf, Self)>> {
        let file = resolve(path);
        let Some(bytes) = read(&file)? else { return Ok(None) };
        let parsed = Self::parse(&bytes).map_err(|why| unusable(&file, &why))?;
        Ok(Some((file, parsed)))
    }

    /// Reads the form; an empty file says nothing.
    ///
    /// # Errors
    /// Why not, without anything of the content.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Keys {
            auths: Option<serde::de::IgnoredAny>,
            #[serde(rename = "credsStore")]
            store: Option<serde::de::IgnoredAny>,
            #[serde(rename = "credHelpers")]
            helpers: Option<serde::de::IgnoredAny>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Value {
            Entry(Entry),
            Other(serde::de::IgnoredAny),
        }
        if bytes.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let keys: Keys = from_json(bytes)?;
        if keys.auths.is_some() || keys.store.is_some() || keys.helpers.is_some() {
            return from_json(bytes);
        }
        // The older form: the hosts themselves, or a file that is about other things.
        let values: HashMap<String, Value> = from_json(bytes)?;
        let entry = |(key, value)| match value {
            Value::Entry(entry) => Some((key, entry)),
            Value::Other(_) => None,
        };
        Ok(Self { auths: values.into_iter().filter_map(entry).collect(), ..Self::default() })
    }

    /// The program that knows the credentials for `wanted`, by the last part of its name.
    pub(super) fn helper(&self, wanted: Wanted<'_>) -> Option<&str> {
        let host = Wanted { repository: "", ..wanted };
        let own = best(&self.cred_helpers, host).map(|(_, name)| name.as_str());
        own.or(Some(&*self.creds_store)).filter(|name| !name.is_empty())
    }

    /// Whether a key of `auths` is one of these.
    pub(super) fn names(&self, is_one: impl Fn(&str) -> bool) -> bool {
        self.auths.keys().any(|key| is_one(key))
    }

    /// The credentials in the file itself that fit `wanted` best.
    ///
    /// # Errors
    /// Why they cannot be meant, without anything of them.
    pub(super) fn credentials(&self, wanted: Wanted<'_>) -> Result<Option<Credentials>, String> {
        let mut fitting: Vec<_> =
            self.auths.iter().filter_map(|(key, entry)| Some((fit(key, wanted)?, key, entry))).collect();
        fitting.sort_by(|(a, left, _), (b, right, _)| b.cmp(a).then(left.cmp(right)));
        for (_, key, entry) in fitting {
            let found = entry.credentials().ok_or_else(|| format!("the entry {key:?} has a bad auth"))?;
            // An empty entry is what stays where a credential store has the secret.
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}

/// The value, or where the text is none: serde_json's own message may quote a value, and values are secrets here.
fn from_json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    serde_json::from_slice(bytes)
        .map_err(|error| format!("no valid configuration at line {} column {}", error.line(), error.column()))
}

impl Entry {
    /// `None`: malformed. `Some(None)`: empty.
    fn credentials(&self) -> Option<Option<Credentials>> {
        let mut user = self.username.clone().unwrap_or_default();
        let mut password = self.password.clone().unwrap_or_default();
        if let Some(auth) = self.auth.as_ref().map(Secret::expose).filter(|auth| !auth.trim().is_empty()) {
            let decoded = Zeroizing::new(STANDARD.decode(auth.trim()).ok()?);
            let (name, secret) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
            (user, password) = (name.to_owned(), Secret::new(secret.trim_end_matches('\0')));
        }
        let token = self.identitytoken.as_ref().filter(|token| !token.expose().is_empty());
        if let Some(token) = token {
            return Some(Some(Credentials::identity_token(user, token.clone())));
        }
        if user.is_empty() || password.expose().is_empty() {
            return Some(None);
        }
        Some(Some(Credentials::password(user, password)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Form;
    use super::*;

    fn wanted(name: &str) -> Wanted<'_> {
        let (host, repository) = name.split_once('/').unwrap_or((name, ""));
        Wanted { host, repository }
    }

    fn found(json: &str, name: &str) -> Option<String> {
        let file = File::parse(json.as_bytes()).unwrap();
        let found = file.credentials(wanted(name)).unwrap();
        found.map(|it| format!("{}:{} {:?}", it.user, it.secret.expose(), it.form))
    }

    #[test]
    fn a_password_is_read_in_both_spellings() {
        // base64 of user:pass
        let json = r#"{"auths":{"r.io":{"auth":"dXNlcjpwYXNz"}}}"#;
        assert_eq!(found(json, "r.io/a").as_deref(), Some("user:pass Password"));
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"username":"me","password":"p:w"}}}"#;
        assert_eq!(found(json, "docker.io/x").as_deref(), Some("me:p:w Password"));
        let json = r#"{"auths":{"r.io":{"auth":"dXNlcjpwYXNz","username":null,"email":"a@b"}}}"#;
        assert_eq!(found(json, "r.io/a").as_deref(), Some("user:pass Password"));
    }

    #[test]
    fn an_identity_token_goes_before_the_empty_password_beside_it() {
        let json = r#"{"auths":{"acme.azurecr.io":{"auth":"MDAwOg==","identitytoken":"tok"}}}"#;
        assert_eq!(found(json, "acme.azurecr.io/x").as_deref(), Some("000:tok IdentityToken"));
        let json = r#"{"auths":{"r.io":{"identitytoken":"tok"}}}"#;
        assert_eq!(found(json, "r.io/x"), Some(format!(":tok {:?}", Form::IdentityToken)));
    }

    #[test]
    fn an_empty_entry_is_none_and_a_wider_one_counts_then() {
        assert_eq!(found(r#"{"credsStore":"x","auths":{"r.io":{}}}"#, "r.io/a"), None);
        assert_eq!(found("{}", "r.io/a"), None);
        assert_eq!(found("", "r.io/a"), None);
        let json = r#"{"auths":{"r.io/a":{},"r.io":{"auth":"dXNlcjpwYXNz"}}}"#;
        assert_eq!(found(json, "r.io/a").as_deref(), Some("user:pass Password"));
    }

    #[test]
    fn the_longest_namespace_that_fits_counts() {
        let json = r#"{"auths":{"r.io":{"username":"a","password":"1"},"r.io/team":{"username":"b","password":"2"}}}"#;
        assert_eq!(found(json, "r.io/team/llm").as_deref(), Some("b:2 Password"));
        assert_eq!(found(json, "r.io/other").as_deref(), Some("a:1 Password"));
    }

    #[test]
    fn the_older_form_of_a_kubernetes_secret_is_read_and_other_keys_are_not_hosts() {
        let json = r#"{"https://r.io":{"auth":"dXNlcjpwYXNz","email":"x"}}"#;
        assert_eq!(found(json, "r.io/a").as_deref(), Some("user:pass Password"));
        assert_eq!(found(r#"{"HttpHeaders":{"User-Agent":"x"},"detachKeys":"ctrl-q"}"#, "r.io/a"), None);
    }

    #[test]
    fn a_helper_of_the_host_goes_before_the_store_for_all() {
        let file = File::parse(br#"{"credsStore":"all","credHelpers":{"r.io":"own"}}"#).unwrap();
        assert_eq!(file.helper(wanted("r.io/a")), Some("own"));
        assert_eq!(file.helper(wanted("x.io/a")), Some("all"));
        assert_eq!(File::parse(b"{\"auths\":{}}").unwrap().helper(wanted("r.io/a")), None);
    }

    #[test]
    fn an_error_shows_nothing_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        for content in [
            r#"{"auths":{"r.io":{"auth":"hunter2!"}}}"#,
            r#"{"auths":{"r.io":"hunter2"}}"#,
            r#"{"r.io":{"auth":"hunter2!"}}"#,
            r#"{"auths":{"r.io":{"auth":["hunter2"]}}}"#,
            r#"hunter2"#,
        ] {
            std::fs::write(folder.path().join("config.json"), content).unwrap();
            let found = File::load(folder.path());
            let used = found.and_then(|found| {
                let (path, file) = found.unwrap();
                file.credentials(wanted("r.io/a")).map_err(|why| unusable(&path, &why))
            });
            let error = used.unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
