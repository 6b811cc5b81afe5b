//! Forward proxies: with and without TLS behind them, with a password, of both kinds, and failing.

use weightfs::Kind;
use weightfs::repository::{Config, Exceptions, PlainHttp, Proxies};

use super::{Model, PATIENCE, REPOSITORY};
use crate::support::authority::Authority;
use crate::support::nginx::{Nginx, free_port, hand_on_to, listen_with_tls};
use crate::support::place::Place;
use crate::support::proxy::ForwardProxy;

/// `me:canary-proxy`, as Basic credentials have it.
const BASIC: &str = "bWU6Y2FuYXJ5LXByb3h5";

/// Everything goes through `proxy`, also what is on this machine.
fn through(proxy: &str) -> Config {
    let proxy = Some(proxy.parse().unwrap());
    let proxies = Proxies { tls: proxy.clone(), plain: proxy, except: Exceptions::read("<-loopback>") };
    Config { proxies, ..Config::default() }
}

fn with_tls(authority: &Authority, config: Config) -> Config {
    Config { plain_http: PlainHttp::Never, ca_file: Some(authority.root()), ..config }
}

fn behind_tls(authority: &Authority, host: &str) -> Nginx {
    let port = free_port();
    let lines = listen_with_tls(port, &authority.issue(&["127.0.0.1"]));
    Nginx::start(port, &format!("server {{ {lines} location / {{ {} }} }}", hand_on_to(host)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_is_asked_through_a_proxy_with_its_password() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let nginx = behind_tls(&authority, &registry.direct());
    let proxy = ForwardProxy::guarded(BASIC);
    let config = through(&format!("http://me:canary-proxy@{}", proxy.host()));
    model.read_at(&nginx.host(), &with_tls(&authority, config.clone())).await.unwrap();
    assert!(proxy.asked().iter().all(|line| line.starts_with("CONNECT 127.0.0.1:")), "{:?}", proxy.asked());
    let tunnels = proxy.asked().len();
    model.read_at(&registry.host(), &config).await.unwrap();
    let plain = proxy.asked().split_off(tunnels);
    assert!(!plain.is_empty() && plain.iter().all(|line| line.starts_with("GET http://")), "{plain:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socks_proxy_takes_what_a_http_proxy_takes() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let nginx = behind_tls(&authority, &registry.direct());
    let proxy = ForwardProxy::start();
    for scheme in ["socks5", "socks5h"] {
        let config = through(&format!("{scheme}://{}", proxy.host()));
        model.read_at(&nginx.host(), &with_tls(&authority, config)).await.unwrap();
    }
    let expected = format!("socks {}", nginx.host());
    assert!(
        proxy.asked().len() >= 2 && proxy.asked().iter().all(|line| *line == expected),
        "{:?}",
        proxy.asked()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_refuses_or_is_gone_is_named_without_its_password() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let nginx = behind_tls(&authority, &registry.direct());
    let guarded = ForwardProxy::guarded(BASIC);
    let wrong = through(&format!("http://me:canary-wrong@{}", guarded.host()));
    let nobody = format!("127.0.0.1:{}", free_port());
    let gone = through(&format!("http://me:canary-wrong@{nobody}"));
    for (config, host, proxy, kind) in [
        (with_tls(&authority, wrong.clone()), nginx.host(), guarded.host(), Kind::Untrusted),
        (wrong, registry.host(), guarded.host(), Kind::Untrusted),
        (with_tls(&authority, gone.clone()), nginx.host(), nobody.clone(), Kind::Unreachable),
        (gone, registry.host(), nobody, Kind::Unreachable),
    ] {
        let error = model.read_at(&host, &config).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(&format!("the proxy http://{proxy}")), "{error}");
        assert!(!error.to_string().contains("canary"), "{error}");
        assert!(!error.to_string().contains("weightfs login"), "{error}");
    }
}

#[test]
fn the_environments_proxies_are_used_but_never_for_this_machine() {
    let (model, proxy, place) = (Model::new(), ForwardProxy::start(), Place::new());
    let registry = model.in_registry();
    let inspect = |variables: &[(&str, &str)]| {
        let mut command = place.command();
        command.args(["inspect", &registry.reference(&format!("{REPOSITORY}:v1"))]);
        command.envs(variables.iter().copied());
        place.finish(command, PATIENCE).ok();
        proxy.asked().len()
    };
    let host = proxy.host();
    assert_eq!(inspect(&[("HTTP_PROXY", &host), ("ALL_PROXY", &host)]), 0);
    let asked = inspect(&[("http_proxy", &host), ("NO_PROXY", "<-loopback>")]);
    assert!(asked > 0);
    assert_eq!(inspect(&[("HTTP_PROXY", &host), ("NO_PROXY", "<-loopback>,127.0.0.0/8")]), asked);
    assert!(inspect(&[("WEIGHTFS_PROXY", &host), ("WEIGHTFS_NO_PROXY", "<-loopback>")]) > asked);
}
