//! Each fault of a registry: the right bytes where it passes, the right kind of error where it stays.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, HeaderName};
use weightfs::oci::Which;
use weightfs::range::StoredRange;
use weightfs::repository::{Config, Repository, connect, read_all};
use weightfs::{Kind, Result};

use super::sample::Sample;
use super::server::{Fault, Rule, Server};

/// The range that the tests ask for; it begins and ends within pieces.
const RANGE: StoredRange = StoredRange::new(1_000_001, 1_300_002);

/// Short enough that a test sees a deadline pass.
fn impatient() -> Config {
    Config {
        read_deadline: Duration::from_secs(3),
        setup_deadline: Duration::from_secs(3),
        stall: Duration::from_millis(200),
        ..Config::default()
    }
}

fn patient() -> Config {
    Config { stall: Duration::from_millis(300), ..Config::default() }
}

struct Setting {
    sample: Sample,
    server: Server,
    repository: Arc<dyn Repository>,
}

impl Setting {
    async fn new(config: &Config) -> Self {
        let sample = Sample::new();
        let server = Server::start(sample.folder()).await;
        let repository = connect(&server.reference(), config).unwrap();
        Self { sample, server, repository }
    }

    async fn read(&self) -> Result<bytes::Bytes> {
        read_all(&*self.repository, &self.sample.large, RANGE).await
    }
}

/// What may happen to the answer for a range, and what it is where it happens every time.
fn faults() -> Vec<(Fault, Kind)> {
    vec![
        (Fault::Truncate(0), Kind::Deadline),
        (Fault::Stall(0), Kind::Deadline),
        (Fault::Short(300_001), Kind::Deadline),
        (Fault::Overlong(1), Kind::Deadline),
        (Fault::Html206, Kind::Deadline),
        (Fault::Header(CONTENT_RANGE, "bytes 0-300000/3145760"), Kind::Deadline),
        (Fault::Header(CONTENT_RANGE, "bytes 1000001-1300001/*"), Kind::Deadline),
        (Fault::Header(CONTENT_RANGE, "bytes 1000001-1300001/3145761"), Kind::Deadline),
        (Fault::NoHeader(CONTENT_RANGE), Kind::Deadline),
        (Fault::Header(CONTENT_ENCODING, "gzip"), Kind::Deadline),
        (Fault::Status(204), Kind::Deadline),
        (Fault::Status(304), Kind::Deadline),
        (Fault::Status(400), Kind::Deadline),
        (Fault::Status(416), Kind::Deadline),
        (Fault::Status(408), Kind::Deadline),
        (Fault::Status(500), Kind::Deadline),
        (Fault::Status(503), Kind::Deadline),
        (Fault::RetryAfter(429, "0"), Kind::Deadline),
    ]
}

#[tokio::test]
async fn a_fault_that_passes_costs_time_and_no_bytes() {
    let setting = Setting::new(&patient()).await;
    for (fault, _) in faults() {
        setting.server.rule(Rule::times("/blobs/", 2, fault.clone()));
        let bytes = setting.read().await.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert!(bytes == setting.sample.bytes_of(RANGE), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_stays_is_an_error_of_its_kind_within_the_deadline() {
    let cases: Vec<_> = faults()
        .into_iter()
        .map(|(fault, kind)| {
            tokio::spawn(async move {
                let setting = Setting::new(&impatient()).await;
                setting.server.rule(Rule::always("/blobs/", fault.clone()));
                let start = Instant::now();
                let error = setting.read().await.unwrap_err();
                assert_eq!(error.kind(), kind, "{fault:?}: {error}");
                assert!(error.to_string().contains("/test/sample"), "{error}");
                assert!(start.elapsed() < Duration::from_secs(30), "{fault:?} took {:?}", start.elapsed());
            })
        })
        .collect();
    for case in cases {
        case.await.unwrap();
    }
}

#[tokio::test]
async fn a_stream_that_breaks_in_the_middle_goes_on_where_it_broke() {
    for fault in [Fault::Truncate(100_000), Fault::Stall(100_000), Fault::Short(200_001)] {
        let setting = Setting::new(&patient()).await;
        setting.server.rule(Rule::once("/blobs/", fault.clone()));
        let bytes = setting.read().await.unwrap();
        assert!(bytes == setting.sample.bytes_of(RANGE), "{fault:?}");
        let ranges: Vec<_> = setting.server.log("/blobs/").into_iter().filter_map(|one| one.range).collect();
        assert_eq!(ranges, ["bytes=1000001-1300001", "bytes=1100001-1300001"], "{fault:?}");
    }
}

#[tokio::test]
async fn a_stream_that_is_reset_goes_on_and_loses_nothing() {
    let sample = Sample::new();
    let server = Server::start(sample.folder()).await;
    let repository = connect(&server.reference(), &patient()).unwrap();
    server.rule(Rule::times("/blobs/", 3, Fault::ResetAt(70_000)));
    let bytes = read_all(&*repository, &sample.large, RANGE).await.unwrap();
    assert!(bytes == sample.bytes_of(RANGE));
    assert!(server.log("/blobs/").len() >= 4);
}

#[tokio::test]
async fn a_registry_that_comes_back_is_read_on() {
    let sample = Sample::new();
    let server = Server::start(sample.folder()).await;
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    let address = server.host();
    server.stop().await;
    let reader = tokio::spawn({
        let blob = sample.large.clone();
        async move { read_all(&*repository, &blob, RANGE).await }
    });
    let _back = Server::start_at(sample.folder(), &address).await;
    assert!(reader.await.unwrap().unwrap() == sample.bytes_of(RANGE));
}

#[tokio::test]
async fn progress_however_small_keeps_a_read_alive() {
    let setting = Setting::new(&impatient()).await;
    setting.server.rule(Rule::always("/blobs/", Fault::Truncate(20_000)));
    assert!(setting.read().await.unwrap() == setting.sample.bytes_of(RANGE));
}

#[tokio::test]
async fn a_refusal_is_asked_about_once_more_and_reported_with_the_way_out() {
    for (status, kind) in [(403, Kind::Denied), (404, Kind::NotFound), (410, Kind::NotFound)] {
        let setting = Setting::new(&Config::default()).await;
        setting.server.rule(Rule::always("/blobs/", Fault::Status(status)));
        let error = setting.read().await.unwrap_err();
        assert_eq!(error.kind(), kind);
        assert_eq!(error.to_string().contains("weightfs login 127.0.0.1"), status == 403, "{error}");
        assert_eq!(setting.server.log("/blobs/").len(), 2, "{status}");
        setting.server.heal();
        setting.server.rule(Rule::once("/blobs/", Fault::Status(status)));
        let other = connect(&setting.server.reference(), &Config::default()).unwrap();
        let bytes = read_all(&*other, &setting.sample.large, RANGE).await.unwrap();
        assert!(bytes == setting.sample.bytes_of(RANGE), "{status}");
    }
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_gives_the_right_bytes_all_the_same() {
    let setting = Setting::new(&impatient()).await;
    setting.server.rule(Rule::always("/blobs/", Fault::IgnoreRange));
    assert!(setting.read().await.unwrap() == setting.sample.bytes_of(RANGE));
    let all = StoredRange::new(0, setting.sample.large.size);
    let bytes = read_all(&*setting.repository, &setting.sample.large, all).await.unwrap();
    assert!(bytes == setting.sample.bytes_of(all));
}

#[tokio::test]
async fn the_wait_that_a_registry_asks_for_is_kept() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::once("/blobs/", Fault::RetryAfter(503, "1")));
    let start = Instant::now();
    setting.read().await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn wrong_bytes_under_right_headers_pass_here_since_only_a_digest_can_tell() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::once("/blobs/", Fault::Flip(5)));
    let bytes = setting.read().await.unwrap();
    let right = setting.sample.bytes_of(RANGE);
    assert_eq!((bytes.len(), bytes[5]), (right.len(), right[5] ^ 1));
}

#[tokio::test]
async fn a_manifest_with_another_byte_is_never_pinned() {
    let setting = Setting::new(&impatient()).await;
    setting.server.rule(Rule::always("/manifests/", Fault::Flip(5)));
    let by_digest = Which::Digest(setting.sample.manifest.clone());
    assert_eq!(setting.repository.manifest(&by_digest).await.unwrap_err().kind(), Kind::Integrity);
    let by_tag = Which::Tag("v1".into());
    assert_eq!(setting.repository.manifest(&by_tag).await.unwrap_err().kind(), Kind::Protocol);
}

#[tokio::test]
async fn a_digest_header_that_disagrees_is_refused() {
    let setting = Setting::new(&impatient()).await;
    let header = HeaderName::from_static("docker-content-digest");
    let nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    setting.server.rule(Rule::always("/manifests/", Fault::Header(header, nothing)));
    let error = setting.repository.manifest(&Which::Tag("v1".into())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol);
}

#[tokio::test]
async fn a_manifest_fault_that_passes_is_not_seen() {
    let setting = Setting::new(&patient()).await;
    for fault in [Fault::Truncate(10), Fault::Stall(10), Fault::Status(502), Fault::NoHeader(CONTENT_LENGTH)]
    {
        setting.server.rule(Rule::once("/manifests/", fault.clone()));
        let pinned = setting.repository.manifest(&Which::Tag("v1".into())).await;
        assert_eq!(pinned.unwrap().digest, setting.sample.manifest, "{fault:?}");
    }
}

#[tokio::test]
async fn a_registry_that_nobody_runs_is_reported_within_seconds() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let reference = format!("127.0.0.1:{port}/a/b:c").parse().unwrap();
    let repository = connect(&reference, &Config::default()).unwrap();
    let start = Instant::now();
    let error = repository.manifest(&Which::Tag("c".into())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable);
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(error.to_string().contains("refused"), "{error}");
}
