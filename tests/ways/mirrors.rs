//! Mirrors as `hosts.toml` names them: what they are sent, what they are believed, and what happens when they fail.

use std::fs;

use weightfs::oci::Which;
use weightfs::repository::Config;
use weightfs::repository::credentials::Sources;

use super::{Hosts, Model, NAME, PATIENCE, REPOSITORY, docker_config, open};
use crate::support::nginx::{Nginx, free_port, hand_on_to};
use crate::support::place::Place;
use crate::support::registry::{BASIC, Registry};
use crate::support::{read, scratch, wait};

/// Requests for blobs among the heads that a relay has seen.
fn blobs(heads: &[String]) -> usize {
    heads.iter().filter(|head| head.contains("/blobs/")).count()
}

fn server(port: u16, locations: &str) -> String {
    format!("server {{ listen 127.0.0.1:{port}; {locations} }}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_is_told_which_registry_is_meant_and_gets_its_headers() {
    let (model, port) = (Model::new(), free_port());
    let origin = model.in_registry();
    // Spegel wants the one, Dragonfly's daemon the other.
    let picky = format!(
        "location / {{ if ($arg_ns != '{}') {{ return 404; }} if ($http_x_dragonfly_registry = '') {{ return 400; }} {} }}",
        origin.host().replace(':', "%3A"),
        hand_on_to(&origin.direct())
    );
    let mirror = Nginx::start(port, &server(port, &picky));
    let text = format!(
        "[host.\"http://{0}\"]\n[host.\"http://{0}\".header]\nX-Dragonfly-Registry = \"http://{1}\"\n",
        mirror.host(),
        origin.host()
    );
    model.read_at(&origin.host(), &Hosts::saying(&origin.host(), &text).config()).await.unwrap();
    assert_eq!(origin.requests(), Vec::<String>::new(), "the mirror gave everything");
    assert!(mirror.log().iter().all(|line| line.contains("registry=http://")), "{:?}", mirror.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_host_gets_its_own_credentials_and_nobody_elses() {
    let (model, port, folder) = (Model::new(), free_port(), scratch::short());
    let origin = Registry::with_password();
    origin.push(REPOSITORY, "v1", &model.artifact);
    let own = "bWlycm9yOmNhbmFyeS1taXJyb3I=";
    let guarded = format!(
        "location / {{ error_page 418 = @who; if ($http_authorization != 'Basic {own}') {{ return 418; }} \
         proxy_set_header Host $http_host; proxy_set_header Authorization 'Basic {BASIC}'; proxy_pass http://{}; }} \
         location @who {{ add_header WWW-Authenticate 'Basic realm=mirror' always; return 401; }}",
        origin.direct()
    );
    let mirror = Nginx::start(port, &server(port, &guarded));
    let hosts = Hosts::saying(&origin.host(), &format!("[host.\"http://{}\"]\n", mirror.host()));
    let credentials = Sources { docker_config: Some(folder.path().to_owned()), ..Sources::default() };
    let config = Config { credentials, ..hosts.config() };

    docker_config(folder.path(), &[(&origin.host(), BASIC), (&mirror.host(), own)]);
    model.read_at(&origin.host(), &config).await.unwrap();
    assert_eq!(origin.requests().len(), 0);
    let identity = open(&origin.host(), &config).unwrap().identity();

    // Without its own, the mirror is stepped over and the registry is asked with the registry's.
    docker_config(folder.path(), &[(&origin.host(), BASIC)]);
    model.read_at(&origin.host(), &config).await.unwrap();
    assert!(blobs(&origin.requests()) > 0);
    assert_eq!(
        open(&origin.host(), &config).unwrap().identity(),
        identity,
        "who asks is the registry's to know"
    );
    assert!(mirror.log().iter().all(|line| !line.contains(BASIC)), "{:?}", mirror.log());
    assert!(origin.requests().iter().all(|head| !head.contains(own)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_resolves_no_tags_gives_blobs_all_the_same() {
    let model = Model::new();
    let (origin, mirror) = (model.in_registry(), model.in_registry());
    let text = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n", mirror.host());
    model.read_at(&origin.host(), &Hosts::saying(&origin.host(), &text).config()).await.unwrap();
    let manifests = |heads: &[String]| heads.iter().filter(|head| head.contains("/manifests/")).count();
    assert_eq!((manifests(&origin.requests()), blobs(&origin.requests())), (1, 0));
    assert_eq!((manifests(&mirror.requests()), blobs(&mirror.requests())), (0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_project_is_a_path_before_the_repositorys_name() {
    let (model, port) = (Model::new(), free_port());
    let (origin, storage) = (model.in_registry(), model.in_registry());
    // As Harbor: /v2/PROJECT/REPOSITORY/…
    let project = format!(
        "location /v2/cache/ {{ proxy_set_header Host $http_host; proxy_pass http://{}/v2/; }} location / {{ return 404; }}",
        storage.direct()
    );
    let mirror = Nginx::start(port, &server(port, &project));
    let text = format!("[host.\"http://{}/v2/cache\"]\noverride_path = true\n", mirror.host());
    model.read_at(&origin.host(), &Hosts::saying(&origin.host(), &text).config()).await.unwrap();
    assert_eq!(origin.requests(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn dragonflys_word_that_it_failed_itself_is_no_word_of_the_registry() {
    let (model, port) = (Model::new(), free_port());
    let origin = model.in_registry();
    for (kind, status) in [("proxy", 404), ("dfdaemon", 403), ("dfdaemon", 500), ("backend", 404)] {
        let failing =
            format!("location / {{ add_header X-Dragonfly-Error-Type {kind} always; return {status}; }}");
        let mirror = Nginx::start(port, &server(port, &failing));
        let hosts = Hosts::saying(&origin.host(), &format!("[host.\"http://{}\"]\n", mirror.host()));
        let repository = open(&origin.host(), &hosts.config()).unwrap();
        for n in 0..3 {
            model.read(&*repository, n).await.unwrap();
        }
        // After the first it is left alone for a while, at least for this blob.
        assert_eq!(mirror.log().len(), 1, "{kind} {status}: {:?}", mirror.log());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_is_gone_is_stepped_over_and_asked_again_when_it_is_back() {
    let model = Model::new();
    let (origin, mut mirror) = (model.in_registry(), model.in_registry());
    let hosts = Hosts::saying(&origin.host(), &format!("[host.\"http://{}\"]\n", mirror.host()));
    let repository = open(&origin.host(), &hosts.config()).unwrap();
    repository.manifest(&Which::Tag("v1".into())).await.unwrap();
    model.read(&*repository, 0).await.unwrap();
    assert_eq!(blobs(&origin.requests()), 0);
    mirror.stop();
    for n in 1..4 {
        model.read(&*repository, n).await.unwrap();
    }
    assert_eq!(blobs(&origin.requests()), 3);
    mirror.restart();
    // It has its place back once a read leaves the registry out; that it is asked says little while it is starting.
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let (at_mirror, at_origin) = (blobs(&mirror.requests()), blobs(&origin.requests()));
        model.read(&*repository, 4).await.unwrap();
        if blobs(&mirror.requests()) > at_mirror && blobs(&origin.requests()) == at_origin {
            break;
        }
        assert!(tokio::time::Instant::now() < end, "the mirror never gets its place back");
    }
}

#[test]
fn wrong_bytes_of_a_mirror_are_had_from_the_registry_instead() {
    let model = Model::new();
    let (origin, mirror, place) = (model.in_registry(), model.in_registry(), Place::new());
    for mebibyte in 0..6 {
        mirror.corrupt(&model.artifact.blobs[0].digest, (mebibyte << 20) + 5);
    }
    let hosts = Hosts::saying(&origin.host(), &format!("[host.\"http://{}\"]\n", mirror.host()));
    let options = ["--hosts-dir", hosts.path().to_str().unwrap(), "--warm", "none"].map(str::to_owned);
    place.mount(&origin.reference(&format!("{REPOSITORY}:v1")), &options.each_ref().map(String::as_str));
    let path = place.path(NAME);
    read::assert_same(&path, 0, &fs::read(&path).unwrap(), model.weights());
    assert!(blobs(&mirror.requests()) > 0 && blobs(&origin.requests()) > 0);
    let status = place.status();
    assert_eq!(status["standing"], "verified", "{status}");
}

#[test]
fn what_is_pushed_goes_to_the_first_host_that_takes_pushes() {
    let (origin, mirror, place) = (Registry::start(), Registry::start(), Place::new());
    let folder = place.folder("model");
    fs::write(folder.join("config.json"), "{}").unwrap();
    fs::write(folder.join("weights.bin"), vec![7; 1000]).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        origin.host(),
        mirror.host()
    );
    let hosts = Hosts::saying("registry.test", &text);
    let hosts_dir = hosts.path();
    let hosts_dir = hosts_dir.to_str().unwrap();
    place
        .run(["pack", folder.to_str().unwrap(), "registry.test/acme/small:v1", "--hosts-dir", hosts_dir])
        .ok();
    assert!(origin.blobs().len() >= 3, "{:?}", origin.blobs());
    assert_eq!(mirror.requests(), Vec::<String>::new());
    // And is read from where it is, though the mirror says that there is no such thing.
    let ran = place.run(["cat", "registry.test/acme/small:v1", "config.json", "--hosts-dir", hosts_dir]).ok();
    assert_eq!(ran.stdout, "{}");
    assert!(wait::eventually(PATIENCE, || !mirror.requests().is_empty()), "the mirror was asked first");
}
