//! The storage that a registry sends its readers to: addresses that are signed and end, and no credentials.

use std::collections::HashSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::Request;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;

use super::reply::plain;
use super::watch::{Breach, Logged};
use crate::oci::Digest;

/// Signs addresses, and knows its own.
#[derive(Debug, Default)]
pub(super) struct Signer {
    /// Raised where all addresses so far are to end.
    generation: u64,
    /// Addresses that were refused, each with the range that was asked for.
    refused: HashSet<String>,
}

impl Signer {
    /// The query that makes an address of `path` good for `life`.
    pub(super) fn sign(&self, path: &str, life: Duration) -> String {
        let end = SystemTime::now().checked_add(life).map_or(u128::MAX, millis);
        format!("expires={end}&signature=canary-signature-{}", self.signature(path, &end.to_string()))
    }

    /// Ends all addresses given out so far.
    pub(super) fn expire(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Why an address is not served, as object storage says it; and the rule that was broken, where one was.
    pub(super) fn refuses(
        &mut self,
        request: &Request,
        logged: &Logged,
    ) -> (Option<Response>, Option<Breach>) {
        if request.headers().contains_key(AUTHORIZATION) {
            let why = "Only one auth mechanism allowed";
            return (Some(error(400, "InvalidArgument", why)), Some(Breach::CredentialsElsewhere));
        }
        let value = |name: &str| {
            let query = request.uri().query().unwrap_or_default();
            let mut pairs = url::form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
        };
        let (end, signature) = (value("expires"), value("signature"));
        let right = format!("canary-signature-{}", self.signature(request.uri().path(), &end));
        let lives = end.parse().is_ok_and(|end: u128| millis(SystemTime::now()) < end);
        if signature == right && lives {
            return (None, None);
        }
        // The same range again, of an address that is known to be over: a client that does not ask the registry anew.
        let range = logged.range.as_deref().unwrap_or_default();
        let stale = !self.refused.insert(format!("{} {range}", logged.path));
        (Some(error(403, "AccessDenied", "Request has expired")), stale.then_some(Breach::StaleAddress))
    }

    fn signature(&self, path: &str, end: &str) -> String {
        let secret = format!("storage\0{}\0{path}\0{end}", self.generation);
        Digest::of(secret.as_bytes()).hex().chars().take(16).collect()
    }
}

fn millis(time: SystemTime) -> u128 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()
}

fn error(status: u16, code: &str, message: &str) -> Response {
    plain(status, &[], format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>"))
}
