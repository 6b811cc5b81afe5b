//! TLS: whose certificates are believed, which one is shown, and what it means when that fails.
//!
//! Only rustls, with the machine's own [`Roots`]. There is no way down: who is to be asked with TLS is never asked without
//! it. What is lifted or shown for one host ([`Trust`]) holds for that host alone, and for no other that it sends
//! us to ([`Clients`]).

use std::error::Error as StdError;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use reqwest::{Client, ClientBuilder, Identity, Method, RequestBuilder, Response};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, RootCertStore};
use url::{Origin, Url};

use super::endpoint::Endpoint;
use super::proxy::Proxies;
use super::reach::Reach;
use super::roots::{NoRoots, Roots, Shown};
use super::wire;
use crate::error::{Error, Kind, Result};
use crate::repository::Config;

/// What helps where the machine believes nobody.
const INSTALL: &str = "install the root certificates (Debian: ca-certificates), or name some with --ca-file";

/// What one host is believed and shown beyond the usual.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::repository) struct Trust {
    /// PEM files with further roots.
    pub(in crate::repository) roots: Vec<PathBuf>,
    /// The certificate that we show, and its key where that is in a file of its own. PEM.
    pub(in crate::repository) shown: Option<(PathBuf, Option<PathBuf>)>,
    /// Whether certificates are looked at.
    pub(in crate::repository) checks: Checks,
}

/// Whether certificates are looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::repository) enum Checks {
    /// They are.
    #[default]
    All,
    /// Any is believed, by the user's word for this one host.
    None,
}

/// Whom a client of an endpoint asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// The endpoint's own host.
    Own,
    /// Others that it sends us to: for blobs, or for a token.
    Away,
}

impl Trust {
    /// Whether the host is asked as any other.
    fn is_usual(&self) -> bool {
        self.shown.is_none() && self.checks == Checks::All
    }

    /// Whether the host's certificate is looked at.
    pub(in crate::repository) fn is_checked(&self) -> bool {
        self.checks == Checks::All
    }

    /// Puts it into a client for one side. Reads the files that are named; the machine's own roots are read when they are needed.
    ///
    /// # Errors
    /// `Invalid` where a file cannot be read, or is not what it must be.
    pub(super) fn apply(&self, builder: ClientBuilder, config: &Config, side: Side) -> Result<ClientBuilder> {
        let mut further = Vec::new();
        for path in config.ca_file.iter().chain(&self.roots) {
            further.extend(roots(path)?);
        }
        let shown = self.shown.as_ref().filter(|_| side == Side::Own);
        if side == Side::Own && !self.is_checked() {
            let builder = builder.tls_danger_accept_invalid_certs(true);
            let Some((certificate, key)) = shown else { return Ok(builder) };
            let identity = Identity::from_pem(&pem(certificate, key.as_deref())?);
            // Its own words could show something of the key.
            return Ok(builder.identity(identity.map_err(|_| no_identity(certificate))?));
        }
        let roots = Roots::new(further);
        let tls = match shown {
            Some((certificate, key)) => {
                let shown = identity(certificate, key.as_deref())?;
                roots.config(Some(shown)).map_err(|_| no_identity(certificate))?
            }
            None => roots
                .config(None)
                .map_err(|error| Error::from_source(Kind::Untrusted, "cannot set up TLS", error))?,
        };
        Ok(builder.tls_backend_preconfigured(tls))
    }
}

/// The certificates in a PEM file: at least one, each of them usable as a root.
fn roots(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let bad = |why: String| {
        Error::new(Kind::Invalid, format!("cannot use the certificates in {}: {why}", path.display()))
            .hint("it must be a file of certificates in PEM form, readable for who runs weightfs")
            .of_machine()
    };
    let pem = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let found = found.map_err(|_| bad("it is not in PEM form".to_owned()))?;
    let mut store = RootCertStore::empty();
    for root in &found {
        store.add(root.clone()).map_err(|error| bad(error.to_string()))?;
    }
    if found.is_empty() { Err(bad("there is none".to_owned())) } else { Ok(found) }
}

/// The certificate that is shown, with its key.
fn identity(certificate: &Path, key: Option<&Path>) -> Result<Shown> {
    let pem = pem(certificate, key)?;
    let chain: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.ok().filter(|chain| !chain.is_empty());
    // The last key is that of the file that is named for it, where the certificate's has one too.
    let key = PrivateKeyDer::pem_slice_iter(&pem).filter_map(std::result::Result::ok).last();
    chain.zip(key).ok_or_else(|| no_identity(certificate))
}

/// What the files have in which the certificate that is shown and its key are.
fn pem(certificate: &Path, key: Option<&Path>) -> Result<Vec<u8>> {
    let mut pem = Vec::new();
    for path in std::iter::once(certificate).chain(key) {
        pem.extend(std::fs::read(path).map_err(|error| bad_identity(path, &error.to_string()))?);
        pem.push(b'\n');
    }
    Ok(pem)
}

fn no_identity(certificate: &Path) -> Error {
    bad_identity(certificate, "no certificate with its key")
}

fn bad_identity(path: &Path, why: &str) -> Error {
    let doing = format!("cannot use the client certificate in {}: {why}", path.display());
    Error::new(Kind::Invalid, doing)
        .hint("certificate and key must be in PEM form, in one file or in two")
        .of_machine()
}

/// The two clients of an endpoint: what is lifted or shown for its host holds for no other.
#[derive(Clone)]
pub(super) struct Clients {
    /// The scheme, name and port that the endpoint is asked at.
    origin: Origin,
    own: Client,
    away: Client,
    proxies: Proxies,
}

impl Clients {
    /// For `endpoint`, which leads no further than `reach`. Reads the files that its trust names.
    ///
    /// # Errors
    /// `Invalid` where they cannot be used; `Untrusted` where TLS cannot be set up.
    pub(super) fn new(config: &Config, endpoint: &Endpoint, reach: &Arc<Reach>) -> Result<Self> {
        let own = super::client(config, endpoint, reach, Side::Own)?;
        let away = match endpoint.trust.is_usual() {
            // One pool of connections for both.
            true => own.clone(),
            false => super::client(config, endpoint, reach, Side::Away)?,
        };
        let origin = endpoint.root.origin();
        Ok(Self { origin, own, away, proxies: config.proxies.clone() })
    }

    /// A request to `url`, by the client for whoever is there.
    pub(super) fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let client = if self.is_own(&url) { &self.own } else { &self.away };
        client.request(method, url)
    }

    /// Whether `url` is the endpoint's own: another service on the same machine is another host.
    fn is_own(&self, url: &Url) -> bool {
        url.origin() == self.origin
    }

    /// The error of a request to `url`, with the proxy that it went through: it may be the one that failed.
    pub(super) fn through(&self, url: &Url, error: Error) -> Error {
        self.proxies.of(url).map_or(error.clone(), |proxy| proxy.failed(error))
    }

    /// Whether requests to `url` go through a proxy.
    pub(super) fn is_proxied(&self, url: &Url) -> bool {
        self.proxies.of(url).is_some()
    }

    /// Where the answer came from; `None` where a proxy stands before that.
    pub(super) fn peer(&self, url: &Url, answer: &Response) -> Option<IpAddr> {
        let peer = answer.remote_addr().map(|peer| peer.ip());
        peer.filter(|_| !self.is_proxied(url))
    }

    /// A `GET` of `url`.
    pub(super) fn get(&self, url: Url) -> RequestBuilder {
        self.request(Method::GET, url)
    }
}

/// What a failed request means where it failed for TLS; `None` where it did for something that may pass.
pub(super) fn failure(error: &reqwest::Error) -> Option<Error> {
    let cause = cause(error)?;
    let (doing, hint) = meaning(cause, error.is_connect())?;
    Some(Error::new(Kind::Untrusted, doing).hint(hint))
}

fn meaning(cause: &rustls::Error, connecting: bool) -> Option<(String, &'static str)> {
    use AlertDescription as Alert;
    let said = wire::clean(&cause.to_string());
    match cause {
        rustls::Error::InvalidMessage(_) if connecting => Some((
            "it does not speak TLS".to_owned(),
            "a registry without TLS is asked with --plain-http, or by 'http://' in its hosts.toml",
        )),
        rustls::Error::Other(why) if why.0.is::<NoRoots>() => {
            let said = wire::clean(&why.0.to_string());
            Some((format!("its certificate cannot be looked at: {said}"), INSTALL))
        }
        rustls::Error::InvalidCertificate(why) => {
            Some((format!("its certificate is not trusted: {said}"), way_out(why)))
        }
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateUnknown
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::UnknownCA
            | Alert::AccessDenied,
        ) => Some((
            format!("it does not take our certificate, or misses one: {said}"),
            "name one that it takes as 'client' in its hosts.toml",
        )),
        rustls::Error::PeerIncompatible(_)
        | rustls::Error::AlertReceived(Alert::ProtocolVersion | Alert::HandshakeFailure)
            if connecting =>
        {
            Some((format!("no form of TLS that both speak: {said}"), "TLS 1.2 or 1.3 is needed"))
        }
        _ => None,
    }
}

fn way_out(why: &CertificateError) -> &'static str {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "have it renewed; or this machine's clock is wrong"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "this machine's clock may be wrong"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "ask it under a name that the certificate has"
        }
        _ => "name its CA's certificate with --ca-file, or as 'ca' in its hosts.toml",
    }
}

/// The TLS error beneath; the layers between hide it in I/O errors, whose sources leave themselves out.
fn cause(error: &reqwest::Error) -> Option<&rustls::Error> {
    let mut next: Option<&(dyn StdError + 'static)> = error.source();
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<rustls::Error>() {
            return Some(found);
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn StdError + 'static)),
            None => error.source(),
        };
    }
    None
}

/// What an answer to a request without TLS means that says TLS is spoken there; `None` where it says no such thing.
/// The words are those of Go's and of nginx' server.
pub(super) fn asked_plainly(status: reqwest::StatusCode, body: &str) -> Option<Error> {
    let body = body.to_ascii_lowercase();
    if status != reqwest::StatusCode::BAD_REQUEST || !body.contains("http request") || !body.contains("https")
    {
        return None;
    }
    let error = Error::new(Kind::Untrusted, "it speaks TLS and was asked without");
    Some(error.hint("ask it with --plain-http=false, or by 'https://' in its hosts.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_no_certificate_is_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.crt");
        for content in
            ["hunter2", "", "-----BEGIN PRIVATE KEY-----\naHVudGVyMg==\n-----END PRIVATE KEY-----\n"]
        {
            std::fs::write(&file, content).unwrap();
            for error in [roots(&file).err().unwrap(), identity(&file, None).err().unwrap()] {
                assert_eq!(error.kind(), Kind::Invalid);
                assert!(error.to_string().contains("ca.crt"), "{error}");
                assert!(!error.to_string().contains("hunter2"), "{error}");
            }
        }
        assert!(roots(&folder.path().join("none")).err().unwrap().to_string().contains("none"));
    }

    #[test]
    fn a_failure_of_tls_that_stays_has_its_way_out_and_one_that_passes_has_none() {
        let meant = |cause: rustls::Error| meaning(&cause, true).map(|(_, hint)| hint);
        let not_tls = rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType);
        assert!(meant(not_tls.clone()).unwrap().contains("--plain-http"));
        assert!(meaning(&not_tls, false).is_none(), "a line may garble what was TLS before");
        let certificate = |why| meant(rustls::Error::InvalidCertificate(why)).unwrap();
        assert!(certificate(CertificateError::UnknownIssuer).contains("--ca-file"));
        assert!(certificate(CertificateError::NotValidForName).contains("name"));
        assert!(certificate(CertificateError::Expired).contains("clock"));
        let alert = |alert| meant(rustls::Error::AlertReceived(alert));
        assert!(alert(AlertDescription::CertificateRequired).unwrap().contains("'client'"));
        assert!(alert(AlertDescription::InternalError).is_none());
    }

    #[test]
    fn what_holds_for_a_host_holds_for_no_other_port_of_it() {
        let root = Url::parse("https://r.io:5000/v2/").unwrap();
        let reach = Arc::new(Reach::new(root.clone(), Vec::new()));
        let mut endpoint = Endpoint::at(root, "r.io:5000");
        endpoint.trust.checks = Checks::None;
        let clients = Clients::new(&Config::default(), &endpoint, &reach).unwrap();
        let is_own = |url: &str| clients.is_own(&Url::parse(url).unwrap());
        assert!(is_own("https://r.io:5000/blobs/x"));
        for other in ["https://r.io/", "https://r.io:5001/", "https://cdn.io:5000/", "http://r.io:5000/"] {
            assert!(!is_own(other), "{other}");
        }
    }

    #[test]
    fn who_says_that_it_speaks_tls_is_believed() {
        let bad = reqwest::StatusCode::BAD_REQUEST;
        for body in [
            "Client sent an HTTP request to an HTTPS server.\n",
            "<center>The plain HTTP request was sent to HTTPS port</center>",
        ] {
            assert_eq!(asked_plainly(bad, body).unwrap().kind(), Kind::Untrusted);
        }
        assert!(asked_plainly(bad, r#"{"errors":[]}"#).is_none());
        assert!(asked_plainly(reqwest::StatusCode::OK, "http request https").is_none());
    }
}
