//! TLS: private CAs, certificates of our own, and what is said where it fails.

use weightfs::Kind;
use weightfs::repository::{Config, PlainHttp};

use super::{Hosts, Model, REPOSITORY};
use crate::support::authority::{Authority, Issued};
use crate::support::nginx::{Nginx, free_port, hand_on_to, listen_with_tls};
use crate::support::place::{Place, Ran};

const LOOPBACK: &[&str] = &["127.0.0.1", "localhost"];

/// A registry with the model behind TLS with this certificate, with further lines in its `server` block.
fn behind(issued: &Issued, host: &str, more: &str) -> Nginx {
    let port = free_port();
    let lines = listen_with_tls(port, issued);
    Nginx::start(port, &format!("server {{ {lines} {more} location / {{ {} }} }}", hand_on_to(host)))
}

fn with_tls() -> Config {
    Config { plain_http: PlainHttp::Never, ..Config::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_private_ca_is_trusted_where_it_is_named_and_nowhere_else() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let nginx = behind(&authority.issue(LOOPBACK), &registry.direct(), "");
    let error = model.read_at(&nginx.host(), &with_tls()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untrusted, "{error}");
    assert!(error.to_string().contains("--ca-file"), "{error}");
    assert!(error.to_string().contains(&nginx.host()), "{error}");

    let named = Config { ca_file: Some(authority.root()), ..with_tls() };
    model.read_at(&nginx.host(), &named).await.unwrap();
    let text = format!("server = \"https://{}\"\nca = \"{}\"\n", nginx.host(), authority.root().display());
    let hosts = Hosts::saying(&nginx.host(), &text);
    model.read_at(&nginx.host(), &hosts.config()).await.unwrap();

    // Docker's way: the certificate alone in the registry's folder.
    let hosts = Hosts::new();
    let folder = hosts.path().join(nginx.host());
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(authority.root(), folder.join("ca.crt")).unwrap();
    model.read_at(&nginx.host(), &Config { plain_http: PlainHttp::Never, ..hosts.config() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_is_over_or_anothers_is_refused_with_the_reason() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let config = Config { ca_file: Some(authority.root()), ..with_tls() };
    for (issued, words) in [
        (authority.issue_expired(LOOPBACK), ["expired", "clock"]),
        (authority.issue(&["elsewhere.example"]), ["not valid for name", "under a name"]),
    ] {
        let nginx = behind(&issued, &registry.direct(), "");
        let error = model.read_at(&nginx.host(), &config).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Untrusted, "{error}");
        assert!(words.iter().all(|word| error.to_string().contains(word)), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_is_never_asked_without_it_and_the_way_out_is_named() {
    let (model, port) = (Model::new(), free_port());
    let registry = model.in_registry();
    let plain =
        format!("server {{ listen 127.0.0.1:{port}; location / {{ {} }} }}", hand_on_to(&registry.direct()));
    let nginx = Nginx::start(port, &plain);
    for host in [nginx.host(), registry.direct()] {
        let error = model.read_at(&host, &with_tls()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Untrusted, "{error}");
        assert!(error.to_string().contains("--plain-http"), "{error}");
    }
    assert!(nginx.log().iter().all(|line| !line.contains("/v2/")), "{:?}", nginx.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_tls_and_is_asked_without_is_named_with_the_way_out() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let nginx = behind(&authority.issue(LOOPBACK), &registry.direct(), "");
    let error = model.read_at(&nginx.host(), &Config::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untrusted, "{error}");
    assert!(error.to_string().contains("--plain-http=false"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_wants_our_certificate_gets_the_one_that_is_named() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let wants = format!("ssl_client_certificate {}; ssl_verify_client on;", authority.root().display());
    let nginx = behind(&authority.issue(LOOPBACK), &registry.direct(), &wants);
    let config = Config { ca_file: Some(authority.root()), ..with_tls() };
    assert!(model.read_at(&nginx.host(), &config).await.is_err());
    let (client, other) = (authority.issue_to_client(), authority.issue_to_client());
    // With somebody else's key beside it, the key in the file that is named for it counts.
    let folder = tempfile::tempdir().unwrap();
    let both = folder.path().join("both.pem");
    let [mut text, more] =
        [&client.certificate, &other.key].map(|path| std::fs::read_to_string(path).unwrap());
    text.push_str(&more);
    std::fs::write(&both, text).unwrap();
    for (certificate, checked) in [(&client.certificate, true), (&both, true), (&both, false)] {
        let (certificate, key) = (certificate.display(), client.key.display());
        let text =
            format!("server = \"https://{}\"\nclient = [[\"{certificate}\", \"{key}\"]]\n", nginx.host());
        let hosts = Hosts::saying(&nginx.host(), &format!("{text}skip_verify = {}\n", !checked));
        let config = Config { ca_file: Some(authority.root()).filter(|_| checked), ..hosts.config() };
        model.read_at(&nginx.host(), &config).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_that_is_lifted_for_one_host_holds_for_those_it_sends_us_to() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let issued = authority.issue(LOOPBACK);
    let lifted = |nginx: &Nginx| {
        let text = format!("server = \"https://{}\"\nskip_verify = true\n", nginx.host());
        Hosts::saying(&nginx.host(), &text)
    };
    let nginx = behind(&issued, &registry.direct(), "");
    model.read_at(&nginx.host(), &lifted(&nginx).config()).await.unwrap();

    let away = nginx.host().replace("127.0.0.1", "localhost");
    let sends_away = format!("location ~ /blobs/ {{ return 307 https://{away}$request_uri; }}");
    let sending = behind(&issued, &registry.direct(), &sends_away);
    let error = model.read_at(&sending.host(), &lifted(&sending).config()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untrusted, "{error}");
    assert!(error.to_string().contains("localhost"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_without_tls_may_send_us_to_who_has_it_and_is_vouched_for() {
    let (model, authority) = (Model::new(), Authority::new());
    let registry = model.in_registry();
    let nginx = behind(&authority.issue(LOOPBACK), &registry.direct(), "");
    let port = free_port();
    let (to, rest) = (nginx.host(), hand_on_to(&registry.direct()));
    let blobs = format!("location ~ /blobs/ {{ return 307 https://{to}$request_uri; }}");
    let sends = format!("server {{ listen 127.0.0.1:{port}; {blobs} location / {{ {rest} }} }}");
    let sending = Nginx::start(port, &sends);
    let error = model.read_at(&sending.host(), &Config::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Untrusted, "{error}");
    let named = Config { ca_file: Some(authority.root()), ..Config::default() };
    model.read_at(&sending.host(), &named).await.unwrap();
}

/// `weightfs inspect` of a reference where the machine's roots are those of this file and of no folder.
fn inspect(place: &Place, reference: &str, roots: &std::path::Path, more: &[&str]) -> Ran {
    let mut command = place.command();
    command.args(["inspect", reference]).args(more).env("SSL_CERT_FILE", roots).env_remove("SSL_CERT_DIR");
    place.finish(command, super::PATIENCE)
}

#[test]
fn the_machines_own_roots_are_those_that_ssl_cert_file_names() {
    let (model, authority, other) = (Model::new(), Authority::new(), Authority::new());
    let (registry, place) = (model.in_registry(), Place::new());
    let nginx = behind(&authority.issue(LOOPBACK), &registry.direct(), "");
    let reference = format!("{}/{REPOSITORY}:v1", nginx.host());
    let (others, named) = (other.root(), authority.root());
    let ask = |roots: &std::path::Path, more: &[&str]| {
        inspect(&place, &reference, roots, &[&["--plain-http=false"], more].concat())
    };
    let none = place.dir().join("none");
    ask(&others, &[]).failed(5, &["--ca-file", &nginx.host()]);
    ask(&none, &[]).failed(5, &["cannot be looked at", "ca-certificates", &nginx.host()]);
    ask(&named, &[]).ok();
    ask(&others, &["--ca-file", named.to_str().unwrap()]).ok();
    ask(&none, &["--ca-file", named.to_str().unwrap()]).ok();
}

/// They are two hundred files, which a cold start would wait for.
#[test]
fn a_registry_without_tls_is_asked_without_a_look_at_the_machines_roots() {
    let (model, place) = (Model::new(), Place::new());
    let registry = model.in_registry();
    let reference = format!("{}/{REPOSITORY}:v1", registry.direct());
    // Who opens it waits for a writer, who never comes.
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots");
    nix::unistd::mkfifo(&roots, nix::sys::stat::Mode::S_IRUSR).unwrap();
    inspect(&place, &reference, &roots, &[]).ok();
}
