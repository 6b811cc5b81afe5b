//! Where a registry may lead us, by address: not into this machine, nor into a network that it is not in itself.
//!
//! Whoever answers a request names the next address: of the bytes, of the token service. Clouds serve credentials on
//! link-local addresses to whoever asks, and much in a private network believes who is in it. So a registry leads
//! to public addresses, to such as are where it is, and where the user says. Names are looked at twice: as they
//! are written, and by the addresses that they have when a connection is made, so that a name that changes its
//! address gains nothing. Where the registry is says the address that the user wrote, or the one that its answer came from:
//! what a name server says of it is the word of whoever has the name, who may give any address with it. Behind a proxy it is
//! the proxy that looks names up, and says nothing of where the registry is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// A place that is not public and that registries may lead to all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectTo {
    /// The host of this name, or of this address.
    Host(String),
    /// All hosts below this domain, which is written with a point before it.
    Domain(String),
    /// All addresses whose first so many bits are those of this one.
    Net(IpAddr, u8),
}

impl FromStr for RedirectTo {
    type Err = String;

    /// Reads `minio.corp`, `.corp` or `10.0.0.0/8`.
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no host, .domain or network as 10.0.0.0/8");
        let text = text.trim().to_ascii_lowercase();
        if let Some((address, bits)) = text.split_once('/') {
            let (address, bits) =
                (address.parse().map_err(|_| bad())?, bits.parse::<u8>().map_err(|_| bad())?);
            let all = if matches!(address, IpAddr::V4(_)) { 32 } else { 128 };
            return if bits <= all { Ok(Self::Net(address, bits)) } else { Err(bad()) };
        }
        let name = text.strip_prefix('*').unwrap_or(&text);
        let parts = name.strip_prefix('.').unwrap_or(name);
        let may = |letter: char| letter.is_ascii_alphanumeric() || "-_.:".contains(letter);
        if parts.is_empty() || !parts.chars().all(may) {
            return Err(bad());
        }
        Ok(if parts == name { Self::Host(text) } else { Self::Domain(name.to_owned()) })
    }
}

impl RedirectTo {
    fn has(&self, host: &str, address: Option<IpAddr>) -> bool {
        match self {
            Self::Host(name) => name == host || address.is_some_and(|address| name.parse() == Ok(address)),
            Self::Domain(domain) => host.ends_with(domain.as_str()),
            Self::Net(net, bits) => address.is_some_and(|address| first_bits_agree(*net, address, *bits)),
        }
    }
}

fn first_bits_agree(one: IpAddr, other: IpAddr, bits: u8) -> bool {
    let wide = |address: IpAddr| match address.to_canonical() {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((one, family), (other, same)) = (wide(one), wide(other));
    let differing = 128_u32.checked_sub(u32::from(bits)).and_then(|shift| (one ^ other).checked_shr(shift));
    family == same && differing.unwrap_or(0) == 0
}

/// What kind of place an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Zone {
    Public = 1,
    Private = 2,
    Link = 4,
    Machine = 8,
}

impl Zone {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => Self::of_v6(v6),
        }
    }

    fn of_v4(address: Ipv4Addr) -> Self {
        // 100.64.0.0/10 is shared by a carrier's customers (RFC 6598), and used inside clouds.
        let shared = matches!(address.octets(), [100, second, ..] if second & 0xc0 == 64);
        match address {
            _ if address.is_loopback() || address.octets().first() == Some(&0) => Self::Machine,
            _ if address.is_link_local() || address.is_multicast() || address.is_broadcast() => Self::Link,
            _ if address.is_private() || shared => Self::Private,
            _ => Self::Public,
        }
    }

    fn of_v6(address: Ipv6Addr) -> Self {
        match address.segments() {
            // IPv4 behind a translator (RFC 6052).
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                Self::of_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
            }
            _ if address.is_loopback() || address.is_unspecified() => Self::Machine,
            _ if address.is_unicast_link_local() || address.is_multicast() => Self::Link,
            _ if address.is_unique_local() => Self::Private,
            _ => Self::Public,
        }
    }

    /// By what is written; a name says nothing before it is looked up, but for those of this machine.
    fn of_host(url: &Url) -> Self {
        match url.host() {
            Some(Host::Domain(name)) if is_local_name(name) => Self::Machine,
            Some(Host::Domain(_)) => Self::Public,
            Some(Host::Ipv4(address)) => Self::of(address.into()),
            Some(Host::Ipv6(address)) => Self::of(address.into()),
            None => Self::Machine,
        }
    }

    const fn bit(self) -> u8 {
        self as u8
    }
}

/// Whether the name is this machine's, whatever address it may have.
pub(super) fn is_local_name(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

/// How far one registry may lead.
#[derive(Debug)]
pub(super) struct Reach {
    pub(super) registry: Url,
    redirect_to: Vec<RedirectTo>,
    /// Hosts that are asked by the user's word wherever they are: proxies.
    proxies: Vec<String>,
    /// The zones that the registry itself is in.
    zones: AtomicU8,
}

impl Reach {
    /// For a registry at this URL.
    pub(super) fn new(registry: Url, redirect_to: Vec<RedirectTo>) -> Self {
        let zones = AtomicU8::new(Zone::of_host(&registry).bit());
        Self { registry, redirect_to, proxies: Vec::new(), zones }
    }

    /// The same where the registry is asked through proxies at these hosts.
    pub(super) fn through(self, proxies: Vec<String>) -> Self {
        Self { proxies, ..self }
    }

    /// Whether a request on behalf of the registry may go to `url`, as it is written; else why not.
    pub(super) fn may_go(&self, url: &Url) -> Result<(), &'static str> {
        match url.scheme() {
            "https" => {}
            "http" if self.registry.scheme() == "http" => {}
            "http" => return Err("has no TLS while the registry has"),
            _ => return Err("is neither http nor https"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("has a user name in it");
        }
        let address = match url.host() {
            Some(Host::Ipv4(v4)) => Some(v4.into()),
            Some(Host::Ipv6(v6)) => Some(v6.into()),
            _ => None,
        };
        let zone = Zone::of_host(url);
        match zone {
            _ if self.allows(zone) || self.is_named(url.host_str().unwrap_or_default(), address) => Ok(()),
            Zone::Machine => Err("is an address of this machine"),
            Zone::Link => Err("is an address of this machine's link"),
            Zone::Private | Zone::Public => Err("is an address of a private network"),
        }
    }

    /// Whether the registry is in that zone itself, or as near.
    fn allows(&self, zone: Zone) -> bool {
        let own = self.zones.load(Ordering::Relaxed);
        let machine = own & Zone::Machine.bit() != 0;
        zone == Zone::Public || own & zone.bit() != 0 || (machine && zone == Zone::Private)
    }

    fn is_named(&self, host: &str, address: Option<IpAddr>) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.redirect_to.iter().any(|place| place.has(&host, address))
    }

    /// Takes down that `url` was answered from this address. What is on this machine's link leads nobody to its neighbours,
    /// among whom clouds have their credentials.
    pub(super) fn answered(&self, url: &Url, from: IpAddr) {
        if url.origin() != self.registry.origin() {
            return;
        }
        let zone = Some(Zone::of(from)).filter(|zone| *zone != Zone::Link).map_or(0, Zone::bit);
        // In place of what an earlier answer said: a name may be at one place now and at another then.
        self.zones.store(Zone::of_host(&self.registry).bit() | zone, Ordering::Relaxed);
    }

    /// Those of a host's addresses that a connection may be made to. The registry itself may be anywhere: the user named it.
    pub(super) fn reachable(
        &self,
        host: &str,
        found: Vec<SocketAddr>,
    ) -> Result<Vec<SocketAddr>, OutOfReach> {
        if self.registry.host_str().is_some_and(|own| own.eq_ignore_ascii_case(host)) {
            return Ok(found);
        }
        if self.proxies.iter().any(|proxy| proxy.eq_ignore_ascii_case(host)) {
            return Ok(found);
        }
        let first = found.first().copied();
        let may = |at: &SocketAddr| self.allows(Zone::of(at.ip())) || self.is_named(host, Some(at.ip()));
        let reachable: Vec<_> = found.into_iter().filter(may).collect();
        match first {
            Some(first) if reachable.is_empty() => Err(OutOfReach { host: host.to_owned(), at: first.ip() }),
            _ => Ok(reachable),
        }
    }
}

/// A host that is where its registry may not lead.
#[derive(Debug)]
pub(super) struct OutOfReach {
    host: String,
    at: IpAddr,
}

impl OutOfReach {
    /// What a person can do about it.
    pub(super) const HINT: &'static str =
        "if that is right, name the host or its network in registry.redirect_to";
}

impl std::fmt::Display for OutOfReach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is at {}, where this registry may not lead", self.host, self.at)
    }
}

impl std::error::Error for OutOfReach {}

/// A name that leads nowhere.
#[derive(Debug)]
pub(super) struct NoAddress {
    host: String,
    error: std::io::Error,
}

impl std::fmt::Display for NoAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The system's resolver says in every message that it was looking an address up.
        let said = self.error.to_string();
        let cause = said.rsplit(": ").next().unwrap_or(&said);
        write!(f, "the name {} has no address: {cause}", self.host)
    }
}

impl std::error::Error for NoAddress {}

/// The addresses of a host that are within reach, as the system looks them up.
pub(super) async fn look_up(
    reach: &Reach,
    host: &str,
    port: u16,
) -> Result<Vec<SocketAddr>, Box<dyn std::error::Error + Send + Sync>> {
    let found = tokio::net::lookup_host((host, port)).await;
    let found = found.map_err(|error| NoAddress { host: host.to_owned(), error })?.collect();
    Ok(reach.reachable(host, found)?)
}

/// Looks names up as the system does, and gives the addresses that are within reach.
#[derive(Debug)]
pub(super) struct Names(pub(super) Arc<Reach>);

impl Resolve for Names {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = Arc::clone(&self.0);
        Box::pin(async move {
            let found = look_up(&reach, name.as_str(), 0).await?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(registry: &str, redirect_to: &[&str]) -> Reach {
        let redirect_to = redirect_to.iter().map(|place| place.parse().unwrap()).collect();
        Reach::new(Url::parse(registry).unwrap(), redirect_to).through(vec!["proxy.corp".to_owned()])
    }

    fn may_go(reach: &Reach, to: &str) -> bool {
        reach.may_go(&Url::parse(to).unwrap()).is_ok()
    }

    const PRIVATE: [&str; 5] = ["10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "[fd00::1]"];
    const LINK: [&str; 3] = ["169.254.169.254", "[fe80::1]", "255.255.255.255"];
    const MACHINE: [&str; 6] =
        ["127.0.0.1", "[::1]", "0.0.0.0", "localhost", "a.localhost.", "[::ffff:127.0.0.1]"];

    #[test]
    fn a_registry_leads_to_the_public_and_to_where_it_is_itself() {
        let public = reach("https://r.example/", &[]);
        let private = reach("https://10.0.0.1/", &[]);
        let machine = reach("http://127.0.0.1:5000/", &[]);
        for (hosts, from_private, from_machine) in
            [(&PRIVATE[..], true, true), (&LINK[..], false, false), (&MACHINE[..], false, true)]
        {
            for host in hosts {
                let to = format!("https://{host}/x");
                assert!(!may_go(&public, &to), "{to}");
                assert_eq!(may_go(&private, &to), from_private, "{to}");
                assert_eq!(may_go(&machine, &to), from_machine, "{to}");
            }
        }
        for public_host in ["cdn.example", "8.8.8.8", "[2606:4700::1111]", "172.32.0.1", "100.128.0.1"] {
            assert!(may_go(&public, &format!("https://{public_host}/")), "{public_host}");
        }
        assert!(!may_go(&public, "https://[64:ff9b::7f00:1]/"), "this machine behind a translator");
    }

    #[test]
    fn a_name_is_judged_again_by_the_address_that_it_has() {
        let at = |address: &str| vec![SocketAddr::new(address.parse().unwrap(), 0)];
        let public = reach("https://r.example/", &[]);
        assert!(public.reachable("cdn.example", at("8.8.8.8")).is_ok());
        for address in ["127.0.0.1", "10.0.0.1", "169.254.169.254", "::1"] {
            let error = public.reachable("cdn.example", at(address)).unwrap_err();
            assert!(error.to_string().contains("cdn.example"), "{error}");
        }
        assert!(public.reachable("proxy.corp", at("10.0.0.1")).is_ok(), "the user named it");
        let both = [at("10.0.0.1"), at("8.8.8.8")].concat();
        assert_eq!(public.reachable("cdn.example", both).unwrap(), at("8.8.8.8"));
    }

    #[test]
    fn a_registry_that_answers_from_a_private_network_may_lead_to_its_neighbours() {
        let at = |address: &str| vec![SocketAddr::new(address.parse().unwrap(), 0)];
        let registry = reach("https://harbor.corp/", &[]);
        assert!(!may_go(&registry, "https://10.9.9.9/"));
        assert!(registry.reachable("HARBOR.corp", at("10.0.0.7")).is_ok());
        assert!(!may_go(&registry, "https://10.9.9.9/"), "its name server's word alone");
        let answered = |from: &str, address: &str| {
            registry.answered(&Url::parse(from).unwrap(), address.parse().unwrap());
        };
        answered("https://cdn.corp/x", "10.0.0.7");
        assert!(!may_go(&registry, "https://10.9.9.9/"), "another's answer");
        answered("https://harbor.corp/v2/x", "169.254.0.7");
        assert!(!may_go(&registry, "https://169.254.169.254/") && !may_go(&registry, "https://10.9.9.9/"));
        answered("https://harbor.corp/v2/x", "10.0.0.7");
        assert!(may_go(&registry, "https://10.9.9.9/"));
        assert!(registry.reachable("minio.corp", at("192.168.0.1")).is_ok());
        assert!(registry.reachable("minio.corp", at("169.254.169.254")).is_err());
        answered("https://harbor.corp/v2/x", "8.8.8.8");
        assert!(!may_go(&registry, "https://10.9.9.9/") && may_go(&registry, "https://9.9.9.9/"));
    }

    #[test]
    fn where_the_user_says_any_registry_may_lead() {
        let named = reach("https://r.example/", &["10.0.0.0/8", "minio.corp", "*.store.corp", "fd00::/8"]);
        let at = |address: &str| vec![SocketAddr::new(address.parse().unwrap(), 0)];
        assert!(may_go(&named, "https://10.2.3.4/") && may_go(&named, "https://[fd12::1]/"));
        assert!(!may_go(&named, "https://192.168.0.1/"));
        assert!(named.reachable("minio.corp", at("192.168.0.1")).is_ok());
        assert!(named.reachable("a.store.corp", at("192.168.0.1")).is_ok());
        assert!(named.reachable("evilstore.corp", at("192.168.0.1")).is_err());
        assert!(named.reachable("x.example", at("10.0.0.1")).is_ok());
        assert!(!may_go(&named, "http://10.2.3.4/"), "TLS is another matter");
        for bad in ["", "10.0.0.0/33", "a b", "/8", ".", "http://x", "::/129"] {
            assert!(bad.parse::<RedirectTo>().is_err(), "{bad}");
        }
    }
}
