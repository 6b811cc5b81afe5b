//! Docker's credential helpers: programs `docker-credential-NAME` that keep credentials elsewhere
//! (docker/docker-credential-helpers, "Development").
//!
//! A word says what is wanted (`get`, `store`, `erase`), the standard input for which server; answers are JSON.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;
use zeroize::Zeroizing;

use super::matching::is_hub;
use super::program::{self, Said};
use super::{Credentials, Form, TOKEN_USER};
use crate::error::{Error, Kind, Result};
use crate::repository::Secret;

/// The name under which everybody keeps what is for Docker Hub.
pub(super) const HUB: &str = "https://index.docker.io/v1/";

/// What a helper says where it has nothing (its `errCredentialsNotFoundMessage`).
const NOTHING: &str = "credentials not found in native keychain";

/// A helper, and whose credentials it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Helper {
    /// The last part of its name, as the configuration has it.
    pub(super) name: String,
    program: PathBuf,
    server: String,
    limit: Duration,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Kept<'a> {
    #[serde(rename = "ServerURL", default)]
    server: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: Secret,
}

impl Helper {
    /// The helper `name` for `host`, looked for in `folder` first and else where programs are.
    ///
    /// # Errors
    /// Why there can be none of that name.
    pub(super) fn new(
        name: &str,
        host: &str,
        folder: Option<&Path>,
        limit: Duration,
    ) -> Result<Self, String> {
        if name.contains(['/', '\0']) {
            return Err(format!("{name:?} is no credential helper's name"));
        }
        let file = format!("docker-credential-{name}");
        let own = folder.map(|folder| folder.join(&file)).filter(|path| path.exists());
        let server = if is_hub(host) { HUB } else { host }.to_owned();
        Ok(Self { name: name.to_owned(), program: own.unwrap_or_else(|| file.into()), server, limit })
    }

    /// The credentials that it has; `None` where it has none.
    ///
    /// # Errors
    /// `NotFound` where there is no such program; `Broken` where it fails, answers nonsense or takes too long.
    pub(super) async fn get(&self) -> Result<Option<Credentials>> {
        let said = self.run("get", self.server.as_bytes()).await?;
        if !said.status.success() {
            if has_nothing(&said) {
                return Ok(None);
            }
            return Err(said.failure(&self.program));
        }
        let answer: Answer = serde_json::from_slice(&said.answer).map_err(|_| {
            Error::new(Kind::Broken, format!("{} gave no answer as JSON", self.program.display()))
        })?;
        if answer.secret.expose().is_empty() {
            return Ok(None);
        }
        Ok(Some(match &*answer.username {
            TOKEN_USER => Credentials::identity_token("", answer.secret),
            _ => Credentials::password(answer.username, answer.secret),
        }))
    }

    /// Gives it credentials to keep.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) async fn store(&self, credentials: &Credentials) -> Result<()> {
        let username = match credentials.form {
            Form::IdentityToken => TOKEN_USER,
            Form::Password => &credentials.user,
        };
        let kept = Kept {
            server: self.server.clone(),
            username: username.to_owned(),
            secret: credentials.secret.expose(),
        };
        let input =
            serde_json::to_vec(&kept).map_err(|_| Error::new(Kind::Invalid, "no such credentials"))?;
        let said = self.run("store", &Zeroizing::new(input)).await?;
        if said.status.success() { Ok(()) } else { Err(said.failure(&self.program)) }
    }

    /// Makes it forget; `false` where it had nothing.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub(super) async fn erase(&self) -> Result<bool> {
        let had = self.get().await?.is_some();
        let said = self.run("erase", self.server.as_bytes()).await?;
        if said.status.success() || has_nothing(&said) { Ok(had) } else { Err(said.failure(&self.program)) }
    }

    async fn run(&self, word: &str, input: &[u8]) -> Result<Said> {
        let mut command = Command::new(&self.program);
        command.arg(word);
        program::run(command, &self.program, input, self.limit).await
    }
}

fn has_nothing(said: &Said) -> bool {
    String::from_utf8_lossy(&said.answer).contains(NOTHING)
}
