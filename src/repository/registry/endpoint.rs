//! Where and how one host is asked for a registry's repositories: the registry itself, or a mirror of it.

use std::time::Duration;

use reqwest::header::HeaderMap;
use url::Url;

use super::hops;
use super::tls::Trust;
use crate::error::{Error, Kind, Result};
use crate::repository::PlainHttp;
use crate::repository::credentials::is_hub;

/// Docker Hub's registry has another host than its references.
const HUB: &str = "registry-1.docker.io";

/// One host, and how it is asked.
#[derive(Clone, Debug)]
pub(in crate::repository) struct Endpoint {
    /// What repositories' names follow: `SCHEME://HOST/v2/`, or another path.
    pub(in crate::repository) root: Url,
    /// The host as credentials are looked up for it and as people know it.
    pub(in crate::repository) host: String,
    /// The registry that is meant, told to a host that is another one (`?ns=`).
    pub(in crate::repository) namespace: Option<String>,
    /// Sent with every request to this host, and to no other.
    pub(in crate::repository) headers: HeaderMap,
    pub(in crate::repository) trust: Trust,
    /// How long one attempt to connect may take, where that is another time than for others.
    pub(in crate::repository) connect_timeout: Option<Duration>,
    pub(in crate::repository) role: Role,
}

/// Whether others can be asked in place of a host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::repository) enum Role {
    /// They cannot: what it makes of ranges has to do.
    #[default]
    Last,
    /// They can: where it ignores a range, as a pull-through cache that has not got the blob yet, another is asked.
    Mirror,
}

impl Endpoint {
    /// The registry of the references that name `host`, where nothing is said of it.
    ///
    /// # Errors
    /// `Invalid` where there can be no such host.
    pub(in crate::repository) fn of(host: &str, plain: PlainHttp) -> Result<Self> {
        let parse = |scheme: &str| {
            let wire_host = if is_hub(host) { HUB } else { host };
            Url::parse(&format!("{scheme}://{wire_host}/v2/")).map_err(|error| {
                Error::from_source(Kind::Invalid, format!("no registry can be at {host}"), error)
            })
        };
        let tls = parse("https")?;
        let plainly = match plain {
            PlainHttp::Allowed => true,
            PlainHttp::OnThisMachine => hops::is_loopback(&tls),
            PlainHttp::Never => false,
        };
        Ok(Self::at(if plainly { parse("http")? } else { tls }, host))
    }

    /// The host of `root`, asked for what references name by `registry`.
    pub(in crate::repository) fn at(mut root: Url, registry: &str) -> Self {
        if root.host_str().is_some_and(is_hub) {
            // A host name always takes another's place in a URL.
            let _ = root.set_host(Some(HUB));
        }
        let own = is_of(&root, registry);
        let port = root.port().map(|port| format!(":{port}")).unwrap_or_default();
        let host = format!("{}{port}", root.host_str().unwrap_or_default());
        Self {
            root,
            host: if own { registry.to_owned() } else { host },
            namespace: (!own).then(|| registry.to_owned()),
            headers: HeaderMap::new(),
            trust: Trust::default(),
            connect_timeout: None,
            role: Role::default(),
        }
    }

    /// `SCHEME://HOST/v2/REPOSITORY/`
    ///
    /// # Errors
    /// `Invalid` where there can be no such repository.
    pub(super) fn base(&self, repository: &str) -> Result<Url> {
        self.root.join(&format!("{repository}/")).map_err(|error| {
            Error::from_source(Kind::Invalid, format!("no repository can be {repository:?}"), error)
        })
    }
}

/// Whether the host of `url` is the one that references name by `registry`.
fn is_of(url: &Url, registry: &str) -> bool {
    let Some(host) = url.host_str() else { return false };
    if is_hub(registry) {
        return is_hub(host) && url.port().is_none();
    }
    let typed = Url::parse(&format!("{}://{registry}/", url.scheme()));
    typed.is_ok_and(|typed| typed.origin() == url.origin())
}

/// Who has failed, where Dragonfly's daemon answers in place of the registry behind it and says that it was not that one
/// (`X-Dragonfly-Error-Type`: `backend` is the registry; `proxy` and `dfdaemon` are Dragonfly's own).
pub(super) fn failed_between(headers: &HeaderMap) -> Option<&'static str> {
    match headers.get("x-dragonfly-error-type")?.as_bytes() {
        b"proxy" => Some("Dragonfly's proxy failed"),
        b"dfdaemon" => Some("Dragonfly's daemon failed"),
        _ => None,
    }
}

/// One-word names of Docker Hub are in `library`.
pub(super) fn name_on_the_wire(host: &str, repository: &str) -> String {
    let library = if is_hub(host) && !repository.contains('/') { "library/" } else { "" };
    format!("{library}{repository}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_registry_on_this_machine_is_plain_by_itself() {
        let scheme = |host, plain| Endpoint::of(host, plain).unwrap().root.scheme().to_owned();
        for host in ["localhost:5000", "127.0.0.1:5000", "127.8.8.8", "[::1]:5000", "localhost"] {
            assert_eq!(scheme(host, PlainHttp::OnThisMachine), "http", "{host}");
            assert_eq!(scheme(host, PlainHttp::Never), "https", "{host}");
        }
        for host in ["ghcr.io", "10.0.0.1:5000", "localhost.example", "169.254.1.1"] {
            assert_eq!(scheme(host, PlainHttp::OnThisMachine), "https", "{host}");
            assert_eq!(scheme(host, PlainHttp::Allowed), "http", "{host}");
        }
    }

    #[test]
    fn the_hub_is_asked_under_its_other_name() {
        let hub = Endpoint::of("docker.io", PlainHttp::default()).unwrap();
        assert_eq!(hub.root.as_str(), "https://registry-1.docker.io/v2/");
        assert_eq!((hub.host.as_str(), hub.namespace), ("docker.io", None));
        assert_eq!(name_on_the_wire("docker.io", "busybox"), "library/busybox");
        assert_eq!(name_on_the_wire("docker.io", "me/x"), "me/x");
        assert_eq!(name_on_the_wire("ghcr.io", "x"), "x");
    }

    #[test]
    fn another_host_is_told_which_registry_is_meant() {
        let at = |root: &str, registry: &str| {
            let endpoint = Endpoint::at(Url::parse(root).unwrap(), registry);
            (endpoint.host, endpoint.namespace)
        };
        let namespace = |name: &str| Some(name.to_owned());
        assert_eq!(at("https://m:5000/v2/", "ghcr.io"), ("m:5000".into(), namespace("ghcr.io")));
        assert_eq!(at("https://ghcr.io/v2/", "ghcr.io"), ("ghcr.io".into(), None));
        assert_eq!(at("https://ghcr.io/v2/", "ghcr.io:443"), ("ghcr.io:443".into(), None));
        assert_eq!(at("https://docker.io/v2/", "docker.io"), ("docker.io".into(), None));
        assert_eq!(at("http://127.0.0.1:1/v2/", "127.0.0.1:2").1, namespace("127.0.0.1:2"));
    }
}
