//! Whether credentials are right: asked of the registry before they are kept.

use std::sync::Arc;

use reqwest::{Method, StatusCode};

use super::{Ask, Auth, Config, Endpoint, Hop, Registry, Result};
use crate::error::{Error, Kind};
use crate::repository::credentials::{Credentials, Keychain};
use crate::repository::tries::{Tries, UNREACHABLE_PATIENCE};

/// What a registry says to credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are right.
    Accepted,
    /// It has not asked for any: it serves everybody.
    Unasked,
}

impl Registry {
    /// Asks at `endpoint` whether `credentials` are right (distribution specification, "Determining support": a GET of
    /// `/v2/`). Says nothing about what they may do there.
    ///
    /// # Errors
    /// `Denied` where they are not, `NotFound` where no registry is there, and what the wire may bring.
    pub(in crate::repository) async fn check_login(
        endpoint: Endpoint,
        credentials: &Credentials,
        config: &Config,
    ) -> Result<Verdict> {
        let host = endpoint.host.clone();
        let mut registry = Self::at(endpoint, (&host, "library/none"), config)?;
        let keychain = Arc::new(Keychain::of(credentials.clone()));
        registry.auth = Arc::new(Auth::for_login(keychain, Arc::clone(&registry.reach), config.stall));
        let mut tries = Tries::new(config.setup_deadline, UNREACHABLE_PATIENCE);
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
        let root = Hop::first(self.endpoint.root.clone());
        let (_, response) = self.follow(root, &Ask::new(Method::GET, &self.auth)).await?;
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
