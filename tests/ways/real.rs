//! Mounts through what stands before registries in the world: TLS of a private CA, passwords and token services, storage
//! that blobs are sent away to under signed addresses, a pull-through mirror that dies and comes back.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Hosts, Model, NAME, PATIENCE, REPOSITORY, docker_config};
use crate::support::authority::Authority;
use crate::support::http::{self, Body};
use crate::support::nginx::{Nginx, free_port, hand_on_to, listen_with_tls};
use crate::support::place::Place;
use crate::support::registry::{BASIC, PASSWORD, Registry};
use crate::support::sample::{self, sample};
use crate::support::tokens::Tokens;
use crate::support::{heavy, read, wait};

const LOOPBACK: &[&str] = &["127.0.0.1"];

/// A `hosts.toml` that has the registry at `host` asked with TLS of this CA.
fn trusting(authority: &Authority, host: &str) -> Hosts {
    Hosts::saying(host, &format!("server = \"https://{host}\"\nca = \"{}\"\n", authority.root().display()))
}

fn mount(place: &Place, host: &str, hosts: &Hosts) {
    let options = ["--hosts-dir", hosts.path().to_str().unwrap(), "--warm", "none"].map(str::to_owned);
    place.mount(&format!("{host}/{REPOSITORY}:v1"), &options.each_ref().map(String::as_str));
}

fn log_in(place: &Place, host: &str, hosts: &Hosts) {
    let mut command = place.command();
    command.args(["login", host, "-u", "reader", "--password-stdin", "--hosts-dir"]).arg(hosts.path());
    let input = place.folder("input").join("password");
    fs::write(&input, PASSWORD).unwrap();
    command.stdin(fs::File::open(&input).unwrap());
    place.finish(command, PATIENCE).ok();
}

fn assert_whole(place: &Place, model: &Model) {
    let path = place.path(NAME);
    read::assert_same(&path, 0, &fs::read(&path).unwrap(), model.weights());
    assert_eq!(fs::read(place.path("config.json")).unwrap(), b"{}");
}

#[test]
fn a_model_behind_a_password_and_tls_of_a_private_ca_is_mounted() {
    let (model, authority, place, port) = (Model::new(), Authority::new(), Place::new(), free_port());
    let registry = Registry::with_password();
    registry.push(REPOSITORY, "v1", &model.artifact);
    let lines = listen_with_tls(port, &authority.issue(LOOPBACK));
    let nginx = Nginx::start(
        port,
        &format!("server {{ {lines} location / {{ {} }} }}", hand_on_to(&registry.direct())),
    );
    let hosts = trusting(&authority, &nginx.host());
    place
        .try_mount(
            &format!("{}/{REPOSITORY}:v1", nginx.host()),
            &["--hosts-dir", hosts.path().to_str().unwrap()],
        )
        .failed(4, &[&nginx.host()]);
    log_in(&place, &nginx.host(), &hosts);
    mount(&place, &nginx.host(), &hosts);
    assert_whole(&place, &model);
}

/// `server` blocks of a registry behind TLS that sends who may read a blob to a storage with an address signed by
/// `signature`; the storage takes no other, and nobody's credentials.
fn sending_away(
    ports: (u16, u16),
    lines: (&str, &str),
    registry: &Registry,
    tokens: &Tokens,
    signature: &str,
) -> String {
    let (storage, folder) = (registry.storage(), registry.storage().join("redirect.sock"));
    let (storage, socket) = (storage.display(), folder.display());
    format!(
        "server {{ {lines}
           location / {{ {to_registry} }}
           location /token {{ proxy_pass http://{tokens}; }}
           location ~ \"^/v2/.+/blobs/sha256:[0-9a-f]+$\" {{
             auth_request /may; proxy_pass http://unix:{socket}:; proxy_set_header Host $http_host; }}
           location = /may {{
             internal; proxy_method HEAD; proxy_pass_request_body off; proxy_set_header Host $http_host;
             proxy_pass http://{direct}$request_uri; }}
         }}
         server {{ listen unix:{socket};
           location ~ \"sha256:(?<hex>[0-9a-f]+)$\" {{
             return 307 https://127.0.0.1:{away}/data/$hex?X-Amz-Signature={signature}; }}
         }}
         server {{ {lines_away}
           location ~ \"^/data/(?<two>..)(?<rest>[0-9a-f]+)$\" {{
             if ($http_authorization != '') {{ return 400; }}
             if ($args != 'X-Amz-Signature={signature}') {{ return 403; }}
             alias {storage}/docker/registry/v2/blobs/sha256/$two/$two$rest/data; }}
         }}",
        lines = lines.0,
        lines_away = lines.1,
        to_registry = hand_on_to(&registry.direct()),
        tokens = tokens.host(),
        direct = registry.direct(),
        away = ports.1,
    )
}

#[test]
fn a_model_behind_tokens_whose_blobs_lie_under_signed_addresses_is_mounted_and_outlives_both() {
    let (model, authority, place) = (Model::new(), Authority::new(), Place::new());
    let (tokens, ports) = (Tokens::start(), (free_port(), free_port()));
    let open = model.in_registry();
    let realm = format!("https://127.0.0.1:{}/token", ports.0);
    let registry = Registry::with_tokens(&open.storage(), tokens.config(&realm));
    let issued = authority.issue(LOOPBACK);
    let lines = [ports.0, ports.1].map(|port| listen_with_tls(port, &issued));
    let servers =
        |signature: &str| sending_away(ports, (&lines[0], &lines[1]), &registry, &tokens, signature);
    let mut nginx = Nginx::start(ports.0, &servers("canary-first"));
    let hosts = trusting(&authority, &nginx.host());
    docker_config(&place.docker(), &[(&nginx.host(), BASIC)]);
    mount(&place, &nginx.host(), &hosts);

    let (path, weights) = (place.path(NAME), model.weights());
    let file = fs::File::open(&path).unwrap();
    let read = |offset: usize| {
        let got = read::range(&file, offset as u64, 4096).unwrap();
        read::assert_same(&path, offset as u64, &got, &weights[offset..offset + 4096]);
    };
    read(0);
    // The addresses that were found are over, and with the connections the token service's patience is tried too.
    let _socket_is_taken = fs::remove_file(registry.storage().join("redirect.sock"));
    nginx.change(&servers("canary-second"));
    read(3 << 20);
    assert_whole(&place, &model);
    let log = nginx.log();
    let lines_with =
        |words: [&str; 2]| log.iter().filter(|line| words.iter().all(|word| line.contains(word))).count();
    assert!(lines_with(["/data/", "canary-first"]) > 0 && lines_with(["/data/", " 206 "]) > 1, "{log:#?}");
    assert!(lines_with(["canary-second", " 206 "]) > 0, "{log:#?}");
    assert_eq!(lines_with(["/data/", "auth=B"]), 0, "credentials went to the storage: {log:#?}");
    assert!(tokens.given() > 0);
    let mount_log = place.status()["log"].as_str().map(|log| fs::read_to_string(log).unwrap_or_default());
    assert!(!mount_log.unwrap_or_default().contains("canary"), "signatures are in the log");
}

/// Whether the registry gives ranges of the blob: a pull-through cache does once it has fetched it.
fn gives_ranges(registry: &Registry, digest: &str) -> bool {
    let port = registry.direct().rsplit_once(':').unwrap().1.parse().unwrap();
    let target = format!("/v2/{}/blobs/{digest}", sample::REPOSITORY);
    http::send(port, "GET", &target, "Range: bytes=0-9\r\n", Body::none())
        .is_ok_and(|reply| reply.status == 206)
}

#[test]
fn a_pull_through_mirror_is_killed_and_restarted_under_a_reader() {
    let _alone = heavy();
    let (origin, place) = (sample().registry(), Place::new());
    let mut mirror = Registry::through(&origin.direct());
    let text = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.host());
    let hosts = Hosts::saying(&origin.host(), &text);
    let name = &sample().shards[0];
    wait::until("the mirror has the layer", PATIENCE, || gives_ranges(&mirror, &sample().digest(name)));
    let options = ["--hosts-dir", hosts.path().to_str().unwrap(), "--warm", "none"].map(str::to_owned);
    let reference = origin.reference(&format!("{}:{}", sample::REPOSITORY, sample::PACKED));
    place.mount(&reference, &options.each_ref().map(String::as_str));
    let (path, original) = (place.path(name), sample().original(name));
    let size = sample().file(name).size;
    let blobs = |registry: &Registry| {
        registry.requests().iter().filter(|head| head.contains(&sample().digest(name))).count()
    };
    let part =
        |from: u64, to: u64| read::compare(&path, &original, size * from / 100, size * (to - from) / 100);

    part(0, 20);
    assert!(blobs(&mirror) > 0 && blobs(&origin) == 0);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| part(20, 60));
        mirror.stop();
        reader.join().unwrap();
    });
    assert!(blobs(&origin) > 0, "the registry stood in");
    mirror.restart();
    let before = blobs(&mirror);
    let mut at = 60;
    wait::until("the mirror is asked again", PATIENCE, || {
        if at < 95 {
            part(at, at + 1);
            at += 1;
            // A mirror that has failed some times is left alone for seconds, which nothing outside shows the end of.
            std::thread::sleep(Duration::from_secs(1));
        }
        blobs(&mirror) > before || at >= 95
    });
    part(at, 100);
    read::compare_whole(&path, &original);
    assert!(blobs(&mirror) > before, "the mirror got its place back");
    others_come_through_as_well(&place, name);
}

/// Files that the mirror has not got yet: it has no ranges of them at first.
fn others_come_through_as_well(place: &Place, but: &str) {
    for file in sample().files.iter().filter(|file| file.path != but && !Path::new(&file.path).is_absolute())
    {
        read::compare_whole(&place.path(&file.path), &sample().original(&file.path));
    }
}
