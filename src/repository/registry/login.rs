//! Whether credentials are right: asked of the registry before they are kept.

use std::sync::Arc;
use std::time::Duration;

use reqwest::{Method, StatusCode};

use super::{Ask, Auth, Config, Hop, Registry, Result};
use crate::error::{Error, Kind};
use crate::repository::credentials::{Credentials, Keychain};
use crate::repository::retry::{Tries, UNREACHABLE_PATIENCE};

/// What a registry says to credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are right.
    Accepted,
    /// It has not asked for any: it serves everybody.
    Unasked,
}

impl Registry {
    /// Asks the registry at `host` whether `credentials` are right (distribution specification, "Determining support": a
    /// GET of `/v2/`). Says nothing about what they may do there.
    ///
    /// # Errors
    /// `Denied` where they are not, `NotFound` where no registry is there, `Invalid` where the host cannot be meant, and
    /// what the wire may bring.
    pub async fn check_login(host: &str, credentials: &Credentials, config: &Config) -> Result<Verdict> {
        let mut registry = Self::for_actions("pull", host, "library/none", config)?;
        let keychain = Arc::new(Keychain::of(credentials.clone()));
        registry.auth = Arc::new(Auth::for_login(keychain, registry.base.clone(), config.stall));
        let mut tries = Tries::new(config.setup_deadline, UNREACHABLE_PATIENCE.min(Duration::from_secs(5)));
        loop {
            match tries.bounded(registry.ping()).await {
                Ok(verdict) => return Ok(verdict),
                Err(error) => {
                    let asked = tries.pause(error, &format!("logging in to {host}")).await;
                    asked.map_err(|error| error.context(format!("cannot log in to {host}")))?;
                }
            }
        }
    }

    async fn ping(&self) -> Result<Verdict> {
        let url =
            self.base.join("/v2/").map_err(|error| Error::from_source(Kind::Invalid, "no URL", error))?;
        let (_, response) = self.follow(Hop::first(url), &Ask::new(Method::GET, &self.auth)).await?;
        match response.status() {
            StatusCode::OK => {
                let (header, _) = self.auth.header(&self.client).await?;
                Ok(if header.is_some() { Verdict::Accepted } else { Verdict::Unasked })
            }
            StatusCode::UNAUTHORIZED => Err(Error::new(Kind::Denied, "user name and password are refused")),
            _ => Err(super::wire::refusal(response, self.stall).await),
        }
    }
}
