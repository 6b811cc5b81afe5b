//! Which proxy a request goes through: the rules of `HTTPS_PROXY` and its like. Values in, values out.
//!
//! There is no standard of these variables; the rules are those that Go's programs and curl share. Where they come
//! from is the roof's to say. A proxy's password is in its URL and leaves this file only for the HTTP client.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use url::{Host, Url};

use super::{hops, wire};
use crate::error::{Error, Kind};

/// A proxy's 407: to `CONNECT`, of which only the HTTP client's words remain, and to any other request.
const UNAUTHORIZED: [&str; 2] = ["proxy authorization required", "407 Proxy Authentication Required"];

/// The word that takes this machine off the list of exceptions, as in Chromium's list.
const NOT_LOOPBACK: &str = "<-loopback>";

/// The proxies by what is asked, and who is asked without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// For what is asked with TLS.
    pub tls: Option<Proxy>,
    /// For what is asked without.
    pub plain: Option<Proxy>,
    /// Who is asked without any.
    pub except: Exceptions,
}

impl Proxies {
    /// The proxy for a request to `url`.
    pub(super) fn of(&self, url: &Url) -> Option<&Proxy> {
        let proxy = if url.scheme() == "https" { &self.tls } else { &self.plain };
        proxy.as_ref().filter(|_| !self.except.has(url))
    }

    /// The names of their hosts.
    pub(super) fn hosts(&self) -> Vec<String> {
        let both = self.tls.iter().chain(&self.plain);
        both.filter_map(|proxy| proxy.0.host_str()).map(str::to_owned).collect()
    }

    /// Puts them into a client.
    pub(super) fn apply(&self, builder: reqwest::ClientBuilder) -> reqwest::ClientBuilder {
        if self.tls.is_none() && self.plain.is_none() {
            return builder;
        }
        let proxies = self.clone();
        builder.proxy(reqwest::Proxy::custom(move |url| proxies.of(url).map(|proxy| proxy.0.clone())))
    }
}

/// A proxy's URL. What is printed of it has no user and no password.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy(Url);

impl Proxy {
    /// Whether its URL has a password in it.
    #[must_use]
    pub fn has_password(&self) -> bool {
        self.0.password().is_some()
    }

    /// The error of a request that went through it.
    pub(super) fn failed(&self, error: Error) -> Error {
        let (doing, said) = (format!("through the proxy {self}"), error.to_string());
        if !UNAUTHORIZED.iter().any(|words| said.contains(words)) {
            return error.context(doing);
        }
        Error::from_source(Kind::Untrusted, doing, error).hint(
            "it wants a user and a password, or others: USER:PASSWORD@ before the host in the proxy's URL",
        )
    }
}

impl FromStr for Proxy {
    type Err = String;

    /// `http://`, `https://`, `socks5://` (names are looked up here) or `socks5h://` (by the proxy), with `USER:PASSWORD@`
    /// where it wants them; without a scheme `http://` is meant. Nothing of the text is in the error.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let url = if text.contains("://") { Url::parse(text) } else { Url::parse(&format!("http://{text}")) };
        let url = url.map_err(|error| format!("no usable URL of a proxy: {error}"))?;
        match url.scheme() {
            "http" | "https" | "socks5" | "socks5h" if url.has_host() => Ok(Self(url)),
            "http" | "https" | "socks5" | "socks5h" => Err("no host in the URL of a proxy".to_owned()),
            other => Err(format!("{other:?} is no kind of proxy; http, https, socks5 and socks5h are")),
        }
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        url.set_path("");
        f.write_str(wire::shown(&url).trim_end_matches('/'))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// Who is asked without a proxy: this machine, unless it is taken off the list, and who is on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exceptions {
    all: bool,
    loopback_too: bool,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    who: Who,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// A name and all below it; `Below` only those.
    Name(String),
    Below(String),
    Address(IpAddr),
    /// An address and how many of its first bits count.
    Net(IpAddr, u8),
}

impl Exceptions {
    /// Reads a list as `NO_PROXY` has it: separated by commas or spaces. What cannot be meant is left out.
    #[must_use]
    pub fn read(list: &str) -> Self {
        let mut read = Self::default();
        for word in list.split([',', ' ', '\t']).map(str::trim).filter(|word| !word.is_empty()) {
            match word {
                "*" => read.all = true,
                NOT_LOOPBACK => read.loopback_too = true,
                word => read.rules.extend(rule(word)),
            }
        }
        read
    }

    fn has(&self, url: &Url) -> bool {
        let loopback = !self.loopback_too && hops::is_loopback(url);
        self.all || loopback || self.rules.iter().any(|rule| rule.fits(url))
    }
}

impl Rule {
    fn fits(&self, url: &Url) -> bool {
        if self.port.is_some() && self.port != url.port_or_known_default() {
            return false;
        }
        let address = match url.host() {
            Some(Host::Domain(name)) => {
                return self.who.fits_name(&name.trim_end_matches('.').to_ascii_lowercase());
            }
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address).to_canonical(),
            None => return false,
        };
        match &self.who {
            Who::Address(own) => *own == address,
            Who::Net(net, bits) => in_net(address, *net, *bits),
            Who::Name(_) | Who::Below(_) => false,
        }
    }
}

impl Who {
    fn fits_name(&self, name: &str) -> bool {
        let below = |own: &str| name.strip_suffix(own).is_some_and(|front| front.ends_with('.'));
        match self {
            Self::Name(own) => name == own || below(own),
            Self::Below(own) => below(own),
            Self::Address(_) | Self::Net(..) => false,
        }
    }
}

/// `NAME`, `.NAME`, `*.NAME`, `ADDRESS`, `[ADDRESS]`, each also with `:PORT`, or `ADDRESS/BITS`.
fn rule(word: &str) -> Option<Rule> {
    if let Ok(address) = word.parse::<IpAddr>() {
        return Some(Rule { who: Who::Address(address.to_canonical()), port: None });
    }
    if let Some((address, bits)) = word.split_once('/') {
        let address: IpAddr = address.parse().ok()?;
        let bits = bits.parse().ok().filter(|bits| *bits <= if address.is_ipv4() { 32 } else { 128 })?;
        return Some(Rule { who: Who::Net(address, bits), port: None });
    }
    let (host, port) = match word.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (word, None),
    };
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Some(Rule { who: Who::Address(address.to_canonical()), port });
    }
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let below = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
    let who = below.map_or_else(|| Who::Name(host.clone()), |name| Who::Below(name.to_owned()));
    Some(Rule { who, port })
}

fn in_net(address: IpAddr, net: IpAddr, bits: u8) -> bool {
    match (address, net) {
        (IpAddr::V4(address), IpAddr::V4(net)) => {
            let off = 32_u32.saturating_sub(bits.into());
            (u32::from(address) ^ u32::from(net)).checked_shr(off).unwrap_or(0) == 0
        }
        (IpAddr::V6(address), IpAddr::V6(net)) => {
            let off = 128_u32.saturating_sub(bits.into());
            (u128::from(address) ^ u128::from(net)).checked_shr(off).unwrap_or(0) == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excepted(list: &str, url: &str) -> bool {
        Exceptions::read(list).has(&Url::parse(url).unwrap())
    }

    #[test]
    fn names_addresses_nets_and_ports_are_excepted() {
        for (list, url) in [
            ("r.io", "https://r.io/"),
            ("r.io", "https://eu.r.io/"),
            ("R.IO.", "https://r.io/"),
            (".r.io", "https://eu.r.io/"),
            ("*.r.io", "https://eu.r.io/"),
            ("a, r.io b", "https://r.io/"),
            ("r.io:5000", "https://r.io:5000/"),
            ("r.io:443", "https://r.io/"),
            ("10.1.2.3", "https://10.1.2.3:5000/"),
            ("10.1.2.3:80", "http://10.1.2.3/"),
            ("10.0.0.0/8", "https://10.200.0.1/"),
            ("0.0.0.0/0", "https://10.200.0.1/"),
            ("fd00::/8", "https://[fd12::1]/"),
            ("fd12::1", "https://[fd12::1]:99/"),
            ("[fd12::1]:99", "https://[fd12::1]:99/"),
            ("*", "https://any.where/"),
        ] {
            assert!(excepted(list, url), "{list} {url}");
        }
        for (list, url) in [
            ("r.io", "https://evilr.io/"),
            (".r.io", "https://r.io/"),
            ("r.io:5000", "https://r.io/"),
            ("10.0.0.0/8", "https://11.0.0.1/"),
            ("10.0.0.0/33", "https://10.0.0.1/"),
            ("10.0.0.0/8", "https://ten.io/"),
            ("fd00::/8", "https://10.0.0.1/"),
            ("", "https://r.io/"),
        ] {
            assert!(!excepted(list, url), "{list} {url}");
        }
    }

    #[test]
    fn this_machine_is_asked_without_a_proxy_unless_it_is_said() {
        for url in ["http://127.0.0.1:5000/", "https://localhost/", "http://[::1]/"] {
            assert!(excepted("", url), "{url}");
            assert!(!excepted("<-loopback>", url), "{url}");
        }
        assert!(excepted("<-loopback>,localhost", "https://localhost/"));
    }

    #[test]
    fn each_scheme_has_its_own_proxy() {
        let proxies = Proxies { tls: Some("p:1".parse().unwrap()), ..Proxies::default() };
        let of = |url: &str| proxies.of(&Url::parse(url).unwrap()).map(ToString::to_string);
        assert_eq!(of("https://r.io/").as_deref(), Some("http://p:1"));
        assert_eq!(of("http://r.io/"), None);
        assert_eq!(of("https://localhost/"), None);
    }

    #[test]
    fn a_proxy_is_shown_without_its_password() {
        let proxy: Proxy = "http://user:hunter2@proxy.corp:3128/x?hunter2".parse().unwrap();
        for shown in [format!("{proxy}"), format!("{proxy:?}")] {
            assert!(!shown.contains("hunter2") && !shown.contains("user"), "{shown}");
            assert!(shown.contains("http://proxy.corp:3128"), "{shown}");
        }
        assert!(proxy.has_password());
        for bad in
            ["ftp://hunter2@p", "http://", "http://user:hunter2@", "socks4://hunter2", "http://a b:hunter2"]
        {
            let why = bad.parse::<Proxy>().unwrap_err();
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
