//! Where a request may go next: the rules of a redirect. Values in, values out.
//!
//! A registry may send us to another host for the bytes (distribution specification, "Pulling blobs"). It may
//! not send us out of TLS, into this machine, or take the credentials along.

use url::{Host, Url};

use super::reach::{OutOfReach, Reach, is_local_name};
use super::wire;
use crate::error::Result;

/// How many redirects are followed for one request.
pub(super) const MOST: usize = 5;

/// Whether the registry's `Authorization` goes along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Carries {
    /// The chain has not left the registry's origin.
    Credentials,
    /// It has, and what was dropped is never taken up again.
    Nothing,
}

/// One request of a chain.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) url: Url,
    pub(super) carries: Carries,
}

impl Hop {
    /// The first request, to the registry itself.
    pub(super) fn first(url: Url) -> Self {
        Self { url, carries: Carries::Credentials }
    }

    /// The next request of the chain, as `Location` says.
    pub(super) fn next(&self, reach: &Reach, location: &str) -> Result<Self> {
        let url = self.url.join(location).map_err(|error| {
            wire::protocol(format!("a redirect to {:?}, which is no URL: {error}", without_query(location)))
        })?;
        reach.may_go(&url).map_err(|why| {
            wire::protocol(format!("a redirect to {}, which {why}", wire::shown(&url))).hint(OutOfReach::HINT)
        })?;
        let carries = if url.origin() == reach.registry.origin() { self.carries } else { Carries::Nothing };
        Ok(Self { url, carries })
    }
}

impl std::fmt::Debug for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({:?})", wire::shown(&self.url), self.carries)
    }
}

fn without_query(location: &str) -> String {
    wire::clean(location.split('?').next().unwrap_or_default())
}

/// Whether the host is this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => is_local_name(name),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn chain(registry: &str, locations: &[&str]) -> Result<Hop> {
        let reach = Reach::new(url(registry), Vec::new());
        locations.iter().try_fold(Hop::first(url(registry)), |hop, to| hop.next(&reach, to))
    }

    #[test]
    fn credentials_stay_with_the_origin_and_are_never_taken_up_again() {
        let carries = |locations: &[&str]| chain("https://r.io/v2/", locations).unwrap().carries;
        assert_eq!(carries(&["/elsewhere"]), Carries::Credentials);
        assert_eq!(carries(&["https://r.io:443/x"]), Carries::Credentials);
        assert_eq!(carries(&["https://r.io:444/x"]), Carries::Nothing);
        assert_eq!(carries(&["https://cdn.io/x"]), Carries::Nothing);
        assert_eq!(carries(&["https://cdn.io/x", "https://r.io/back"]), Carries::Nothing);
    }

    #[test]
    fn a_redirect_out_of_tls_or_into_the_machine_is_refused() {
        for to in [
            "http://r.io/x",
            "file:///etc/passwd",
            "ftp://r.io/",
            "https://169.254.169.254/latest",
            "https://127.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://localhost/",
            "https://0.0.0.0/",
            "https://10.0.0.1/",
            "https://[fd00::1]/",
            "https://user:pw@cdn.io/",
            "https://",
        ] {
            assert!(chain("https://r.io/v2/", &[to]).is_err(), "{to}");
        }
        assert!(chain("http://127.0.0.1:5000/v2/", &["http://127.0.0.1:6000/x"]).is_ok());
        assert!(chain("http://127.0.0.1:5000/v2/", &["http://169.254.169.254/latest"]).is_err());
    }

    #[test]
    fn the_error_of_a_redirect_shows_no_signature() {
        let error = chain("https://r.io/", &["http://cdn.io/x?sig=hunter2"]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
}
