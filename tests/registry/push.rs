//! Pushing to a registry with faults: the right bytes arrive, few of them twice, and what stays wrong is said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::http::header::HeaderName;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use weightfs::oci::{Blob, Descriptor, Digest, Reference, Which};
use weightfs::range::StoredRange;
use weightfs::repository::push::{Piece, Target, Upload};
use weightfs::repository::{ByteStream, Config, Memory, Pace, Pinned, Repository};
use weightfs::{Error, Kind, Result};

use super::sample::Sample;
use super::server::{Fault, Rule, Server, Tokens};
use super::uploads::Habits;

const MIB: usize = 1 << 20;

fn patient() -> Config {
    Config { stall: Duration::from_millis(500), ..Config::default() }
}

/// Short enough that a test sees a deadline pass.
fn impatient() -> Config {
    Config {
        read_deadline: Duration::from_secs(4),
        setup_deadline: Duration::from_secs(4),
        stall: Duration::from_millis(300),
        ..Config::default()
    }
}

fn upload(len: usize) -> Upload {
    static MADE: Mutex<Vec<Upload>> = Mutex::new(Vec::new());
    let mut made = MADE.lock();
    if let Some(upload) = made.iter().find(|upload| upload.blob.size == len as u64) {
        return upload.clone();
    }
    made.push(made_new(len));
    made.last().unwrap().clone()
}

fn made_new(len: usize) -> Upload {
    let mut bytes = vec![0; len];
    for (place, eight) in bytes.chunks_mut(8).enumerate() {
        eight.copy_from_slice(&place.to_le_bytes()[..eight.len()]);
    }
    let bytes = Bytes::from(bytes);
    let blob = Blob { digest: Digest::of(&bytes), size: len as u64 };
    Upload { blob, pieces: vec![Piece::Bytes(bytes)] }
}

struct Setting {
    _sample: Sample,
    server: Server,
    target: Target,
}

impl Setting {
    async fn new(config: &Config) -> Self {
        Self::with(config, Habits::default(), None).await
    }

    async fn with(config: &Config, habits: Habits, tokens: Option<Tokens>) -> Self {
        let sample = Sample::new();
        let server = Server::with_uploads(sample.folder(), habits, tokens).await;
        let target = Target::open(&server.reference(), config).unwrap();
        Self { _sample: sample, server, target }
    }

    /// Puts the blob; what was said to be sent is its size, whatever went wrong.
    async fn put(&self, upload: &Upload) -> Result<()> {
        let sent = AtomicU64::new(0);
        let count = |n| {
            sent.fetch_add(n, Ordering::Relaxed);
        };
        let done = self.target.put(upload, &count).await;
        let sent = sent.into_inner();
        assert!(sent <= upload.blob.size, "{sent} of {}", upload.blob.size);
        if done.is_ok() {
            assert_eq!(sent, upload.blob.size);
        }
        done
    }

    /// Puts the blob, which must arrive whole.
    async fn arrives(&self, upload: &Upload) {
        self.put(upload).await.unwrap();
        let bytes = self.server.uploads().blob(&upload.blob.digest);
        assert_eq!(bytes.len() as u64, upload.blob.size);
        assert_eq!(Digest::of(&bytes), upload.blob.digest);
    }

    fn nothing_is_left_under_way(&self) {
        assert_eq!(self.server.uploads().under_way(), 0);
    }

    /// The methods of the requests for uploads so far.
    fn methods(&self) -> Vec<String> {
        self.server.log("/uploads/").into_iter().map(|one| one.method).collect()
    }

    /// Where the parts that were sent lay.
    fn parts(&self) -> Vec<String> {
        self.server.log("/uploads/").into_iter().filter_map(|one| one.content_range).collect()
    }
}

#[tokio::test]
async fn a_small_blob_takes_two_requests_and_a_large_one_three() {
    let setting = Setting::new(&Config::default()).await;
    setting.arrives(&upload(4 * MIB)).await;
    assert_eq!(setting.methods(), ["POST", "PUT"]);
    setting.arrives(&upload(4 * MIB + 1)).await;
    assert_eq!(setting.methods()[2..], ["POST", "PATCH", "PUT"]);
}

#[tokio::test]
async fn a_part_that_breaks_goes_on_after_what_the_registry_has() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::once("PATCH /v2/", Fault::BreakBody(2 * MIB)));
    let upload = upload(5 * MIB);
    setting.arrives(&upload).await;
    assert_eq!(setting.parts(), ["0-5242879", "2097152-5242879"]);
    assert_eq!(setting.server.uploads().received(), upload.blob.size, "no byte came in twice");
    assert_eq!(setting.methods(), ["POST", "PATCH", "GET", "PATCH", "PUT"]);
    setting.nothing_is_left_under_way();
}

#[tokio::test]
async fn a_part_whose_answer_is_lost_is_not_sent_again() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::once("PATCH /v2/", Fault::BreakBody(usize::MAX)));
    setting.arrives(&upload(5 * MIB)).await;
    assert_eq!(setting.methods(), ["POST", "PATCH", "GET", "PUT"]);
}

#[tokio::test]
async fn an_end_whose_answer_is_lost_is_looked_for() {
    for len in [100, 5 * MIB] {
        let setting = Setting::new(&Config::default()).await;
        setting.server.rule(Rule::once("PUT /v2/", Fault::BreakBody(usize::MAX)));
        setting.arrives(&upload(len)).await;
        assert_eq!(setting.methods().iter().filter(|method| *method == "PUT").count(), 1, "{len}");
    }
}

#[tokio::test]
async fn a_fault_that_passes_costs_time_and_no_bytes() {
    for (rule, len) in [
        (Rule::times("POST /v2/", 2, Fault::Status(500)), 5 * MIB),
        (Rule::times("PATCH /v2/", 2, Fault::Status(500)), 5 * MIB),
        (Rule::times("PATCH /v2/", 2, Fault::RetryAfter(429, "0")), 5 * MIB),
        (Rule::times("GET /v2/", 2, Fault::Status(502)), 5 * MIB),
        (Rule::times("PUT /v2/", 2, Fault::Status(503)), 5 * MIB),
        (Rule::times("PUT /v2/", 2, Fault::Status(500)), 100),
        (Rule::times("PUT /v2/", 2, Fault::RetryAfter(429, "0")), 100),
        (Rule::once("PATCH /v2/", Fault::Truncate(0)), 5 * MIB),
        (Rule::once("PATCH /v2/", Fault::Stall(0)), 5 * MIB),
        (Rule::once("PATCH /v2/", Fault::NoHeader(HeaderName::from_static("range"))), 5 * MIB),
        (Rule::once("PATCH /v2/", Fault::NoHeader(HeaderName::from_static("location"))), 5 * MIB),
        (Rule::once("PATCH /v2/", Fault::Header(HeaderName::from_static("range"), "0-0")), 5 * MIB),
        (Rule::once("PATCH /v2/", Fault::Header(HeaderName::from_static("range"), "nonsense")), 5 * MIB),
    ] {
        let setting = Setting::new(&patient()).await;
        setting.server.rule(rule.clone());
        setting.server.rule(Rule::once("PATCH /v2/", Fault::BreakBody(MIB)));
        setting.arrives(&upload(len)).await;
    }
}

#[tokio::test]
async fn the_wait_that_a_registry_asks_for_is_kept() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::once("PATCH /v2/", Fault::RetryAfter(429, "1")));
    let start = Instant::now();
    setting.arrives(&upload(5 * MIB)).await;
    assert!(start.elapsed() >= Duration::from_secs(1));
}

#[tokio::test]
async fn a_part_that_no_longer_moves_is_given_up_and_gone_on_with() {
    let setting = Setting::new(&patient()).await;
    setting.server.rule(Rule::once("PATCH /v2/", Fault::StallBody(MIB)));
    setting.arrives(&upload(30 * MIB)).await;
    assert_eq!(setting.parts()[1], "1048576-31457279");
}

#[tokio::test]
async fn a_registry_that_lost_some_bytes_is_sent_them_again() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::once("PATCH /v2/", Fault::BreakBody(3 * MIB)));
    setting.server.rule(Rule::once("PATCH /v2/", Fault::Forget(MIB)));
    setting.arrives(&upload(5 * MIB)).await;
    assert_eq!(setting.parts(), ["0-5242879", "3145728-5242879", "2097152-5242879"]);
}

#[tokio::test]
async fn an_upload_that_the_registry_lost_begins_again() {
    for (method, len) in [("PATCH /v2/", 5 * MIB), ("PUT /v2/", 5 * MIB), ("PUT /v2/", 100)] {
        let setting = Setting::new(&Config::default()).await;
        setting.server.rule(Rule::times(method, 2, Fault::Lose));
        setting.arrives(&upload(len)).await;
        assert_eq!(setting.methods().iter().filter(|method| *method == "POST").count(), 3);
    }
}

#[tokio::test]
async fn a_registry_that_loses_every_upload_is_given_up() {
    for len in [5 * MIB, 100] {
        let setting = Setting::new(&Config::default()).await;
        setting.server.rule(Rule::always("PATCH /v2/", Fault::Lose));
        setting.server.rule(Rule::always("PUT /v2/", Fault::Lose));
        let error = setting.put(&upload(len)).await.unwrap_err();
        assert!(error.to_string().contains("never heard of it"), "{error}");
        assert!(setting.server.log("/uploads/").len() < 60);
    }
}

#[tokio::test]
async fn a_registry_that_says_now_more_now_less_is_given_up() {
    let config = Config { read_deadline: Duration::from_secs(1), ..impatient() };
    let setting = Setting::new(&config).await;
    setting.server.rule(Rule::always("PATCH /v2/", Fault::Status(416)));
    for told in ["0-4", "0-0"].repeat(100) {
        setting.server.rule(Rule::once("GET /v2/", Fault::Header(HeaderName::from_static("range"), told)));
    }
    let error = setting.put(&upload(5 * MIB)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Deadline, "{error}");
    assert!(setting.methods().len() < 100, "{}", setting.methods().len());
}

#[tokio::test]
async fn a_registry_that_takes_no_parts_gets_the_blob_at_once() {
    for habits in
        [Habits { whole_only: true, ..Habits::default() }, Habits { forgetful: true, ..Habits::default() }]
    {
        let setting = Setting::with(&Config::default(), habits, None).await;
        setting.arrives(&upload(5 * MIB)).await;
        assert_eq!(setting.methods().last().unwrap(), "PUT");
        setting.nothing_is_left_under_way();
    }
}

#[tokio::test]
async fn a_registry_that_takes_only_small_parts_gets_small_parts() {
    let habits = Habits { largest: Some(2 * MIB as u64), ..Habits::default() };
    let setting = Setting::with(&Config::default(), habits, None).await;
    setting.arrives(&upload(5 * MIB)).await;
    assert_eq!(setting.parts().last().unwrap(), "3932160-5242879");
    setting.arrives(&upload(3 * MIB)).await;
    let setting = Setting::with(&impatient(), Habits { largest: Some(10), ..Habits::default() }, None).await;
    let error = setting.put(&upload(3 * MIB)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("takes nothing that large"), "{error}");
}

#[tokio::test]
async fn no_part_but_the_last_is_smaller_than_the_registry_wants() {
    let habits = Habits { least: Some("68157440"), ..Habits::default() };
    let setting = Setting::with(&Config::default(), habits, None).await;
    setting.arrives(&upload(66 * MIB)).await;
    assert_eq!(setting.parts(), ["0-68157439", "68157440-69206015"]);
}

#[tokio::test]
async fn a_token_that_ends_between_parts_is_renewed() {
    let habits = Habits { largest: Some(2 * MIB as u64), ..Habits::default() };
    let setting = Setting::with(&Config::default(), habits, Some(Tokens::for_everyone())).await;
    setting.server.rule(Rule::once("PATCH /v2/", Fault::Revoke).after(2));
    setting.arrives(&upload(5 * MIB)).await;
    let asked = setting.server.log("/token");
    assert_eq!(asked.len(), 2);
    assert!(asked[0].path.ends_with("scope=repository%3Atest%2Fsample%3Apull%2Cpush"), "{}", asked[0].path);
}

#[tokio::test]
async fn a_blob_is_mounted_from_another_repository_and_else_no_upload_is_left() {
    let setting = Setting::with(&Config::default(), Habits::default(), Some(Tokens::for_everyone())).await;
    let (blob, reference) = (upload(100), format!("{}/test/other:v1", setting.server.host()));
    let other = Target::open(&reference.parse::<Reference>().unwrap(), &Config::default()).unwrap();
    assert!(!other.mount(&blob.blob, "test/sample").await.unwrap());
    setting.nothing_is_left_under_way();
    setting.arrives(&blob).await;
    assert!(!other.has(&blob.blob).await.unwrap());
    assert!(other.mount(&blob.blob, "test/sample").await.unwrap());
    assert!(other.has(&blob.blob).await.unwrap());
    let scopes: Vec<_> = setting.server.log("/token").into_iter().map(|one| one.path).collect();
    let both = "scope=repository%3Atest%2Fother%3Apull%2Cpush&scope=repository%3Atest%2Fsample%3Apull";
    assert!(scopes[0].ends_with(both), "{scopes:?}");
}

#[tokio::test]
async fn a_mount_that_is_refused_is_a_no_and_one_of_another_blob_an_error() {
    for status in [400, 401, 403, 404, 405] {
        let setting = Setting::new(&impatient()).await;
        setting.server.rule(Rule::always("mount=", Fault::Status(status)));
        assert!(!setting.target.mount(&upload(9).blob, "test/x").await.unwrap(), "{status}");
    }
    let location = HeaderName::from_static("location");
    for fault in [Fault::NoHeader(location.clone()), Fault::Header(location, "http://")] {
        let setting = Setting::new(&impatient()).await;
        setting.server.rule(Rule::always("mount=", fault.clone()));
        assert!(!setting.target.mount(&upload(9).blob, "test/x").await.unwrap(), "{fault:?}");
    }
    let setting = Setting::new(&impatient()).await;
    let blob = upload(100);
    setting.arrives(&blob).await;
    setting.server.rule(Rule::always("mount=", another_digest()));
    let error = setting.target.mount(&blob.blob, "test/sample").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
}

fn another_digest() -> Fault {
    let nothing = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    Fault::Header(HeaderName::from_static("docker-content-digest"), nothing)
}

#[tokio::test]
async fn a_registry_that_takes_it_for_something_else_is_not_believed() {
    // A word that is late on a busy machine would be asked for again, and found to be there.
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::always("PUT /v2/", another_digest()));
    assert_eq!(setting.put(&upload(100)).await.unwrap_err().kind(), Kind::Integrity);
    assert_eq!(setting.put(&upload(5 * MIB)).await.unwrap_err().kind(), Kind::Integrity);
    let error = setting.target.tag(Some("v2"), "m", &Bytes::from_static(b"{}")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
}

#[tokio::test]
async fn a_refusal_is_reported_at_once_with_the_way_out() {
    for (status, kind, way_out) in [
        (401, Kind::Denied, "weightfs login 127.0.0.1"),
        (403, Kind::Denied, "weightfs login 127.0.0.1"),
        (404, Kind::NotFound, "made first"),
        (405, Kind::Denied, "read-only"),
        (413, Kind::Invalid, "nothing that large"),
        (507, Kind::Storage, "no room left"),
    ] {
        let setting = Setting::new(&Config::default()).await;
        setting.server.rule(Rule::always("POST /v2/", Fault::Status(status)));
        setting.server.rule(Rule::always("/manifests/", Fault::Status(status)));
        let error = setting.put(&upload(5 * MIB)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().contains(way_out), "{error}");
        assert!(error.to_string().contains("/test/sample"), "{error}");
        assert_eq!(setting.methods(), ["POST"]);
        let error = setting.target.tag(None, "m", &Bytes::from_static(b"{}")).await.unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(way_out), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_that_stays_ends_at_the_deadline_after_few_requests() {
    let cases = [
        (Rule::always("POST /v2/", Fault::Status(500)), Kind::Deadline),
        (Rule::always("PATCH /v2/", Fault::Status(503)), Kind::Deadline),
        (Rule::always("PATCH /v2/", Fault::BreakBody(0)), Kind::Deadline),
        (Rule::always("PUT /v2/", Fault::Status(500)), Kind::Deadline),
        (
            Rule::always("POST /v2/", Fault::Header(HeaderName::from_static("location"), "http://")),
            Kind::Protocol,
        ),
        (Rule::always("/uploads/", Fault::Status(418)), Kind::Protocol),
    ];
    let cases = cases.map(|(rule, kind)| {
        tokio::spawn(async move {
            let setting = Setting::new(&impatient()).await;
            setting.server.rule(rule.clone());
            let error = setting.put(&upload(5 * MIB)).await.expect_err(&format!("{rule:?}"));
            assert_eq!(error.kind(), kind, "{rule:?}: {error}");
            assert!(error.to_string().contains("cannot push sha256:"), "{error}");
            let asked = setting.methods().len();
            assert!(asked < 100, "{rule:?} was asked about {asked} times");
        })
    });
    for case in cases {
        case.await.unwrap();
    }
}

#[tokio::test]
async fn an_upload_elsewhere_goes_there_without_credentials() {
    let setting = Setting::with(&Config::default(), Habits::default(), Some(Tokens::for_everyone())).await;
    let (folder, blob) = (Sample::new(), upload(5 * MIB));
    let elsewhere = Server::with_uploads(folder.folder(), Habits::default(), None).await;
    // Both count their uploads alike, so that the first one here is known there when it has been begun there too.
    let other = Target::open(&elsewhere.reference(), &Config::default()).unwrap();
    elsewhere.rule(Rule::once("DELETE /v2/", Fault::Status(500)));
    assert!(!other.mount(&blob.blob, "test/nobody").await.unwrap());
    setting.server.uploads().habits.lock().origin = elsewhere.origin();
    setting.put(&blob).await.unwrap();
    assert!(Digest::of(&elsewhere.uploads().blob(&blob.blob.digest)) == blob.blob.digest);
    let there = elsewhere.log("/uploads/1");
    assert!(there.iter().any(|one| one.method == "PATCH"));
    assert!(there.iter().all(|one| one.authorization.is_none()), "the token stays with the registry");
    assert!(setting.server.log("/uploads/").iter().any(|one| one.authorization.is_some()));
}

#[tokio::test]
async fn a_place_with_host_and_query_is_used_as_it_is_given() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.uploads().habits.lock().origin = setting.server.origin();
    setting.arrives(&upload(5 * MIB)).await;
}

#[tokio::test]
async fn an_upload_that_is_sent_on_keeps_its_method_and_body() {
    let setting = Setting::new(&Config::default()).await;
    setting.server.rule(Rule::once("PATCH /v2/", Fault::Redirect(setting.server.origin())));
    setting.server.rule(Rule::once("PUT /v2/", Fault::Redirect(setting.server.origin())));
    setting.arrives(&upload(5 * MIB)).await;
    setting.server.rule(Rule::always("PATCH /v2/", Fault::RedirectTo("http://")));
    setting.server.rule(Rule::always("PUT /v2/", Fault::RedirectTo("http://")));
    assert_eq!(setting.put(&upload(5 * MIB + 1)).await.unwrap_err().kind(), Kind::Protocol);
}

#[tokio::test]
async fn no_error_shows_what_an_address_keeps_secret() {
    for fault in
        [Fault::Status(400), Fault::Status(403), Fault::BreakBody(0), Fault::RedirectTo("ftp://x/?canary")]
    {
        let setting = Setting::with(&impatient(), Habits::default(), Some(Tokens::for_everyone())).await;
        setting.server.uploads().habits.lock().origin = setting.server.origin();
        for method in ["PATCH /v2/", "PUT /v2/", "GET /v2/"] {
            setting.server.rule(Rule::always(method, fault.clone()));
        }
        let error = setting.put(&upload(5 * MIB)).await.unwrap_err();
        assert!(!format!("{error:?} {error}").contains("canary"), "{error}");
        assert!(!format!("{:?}", setting.target).contains("canary"));
    }
}

#[tokio::test]
async fn a_manifest_is_put_again_where_the_registry_stumbles() {
    let setting = Setting::new(&patient()).await;
    for fault in [Fault::Status(500), Fault::RetryAfter(429, "0"), Fault::Truncate(0)] {
        setting.server.rule(Rule::once("/manifests/", fault));
        let manifest = Bytes::from_static(b"{\"schemaVersion\":2}");
        let digest = setting.target.tag(Some("v9"), "m", &manifest).await.unwrap();
        assert_eq!(digest, Digest::of(&manifest));
    }
    let large = Bytes::from(vec![b' '; 4 * MIB + 1]);
    assert_eq!(setting.target.tag(None, "m", &large).await.unwrap_err().kind(), Kind::Invalid);
}

#[tokio::test]
async fn bytes_that_changed_meanwhile_are_named_as_such() {
    let setting = Setting::new(&impatient()).await;
    for len in [100, 5 * MIB] {
        let mut changed = upload(len);
        changed.pieces = upload(len + 8).pieces;
        changed.pieces = vec![match &changed.pieces[0] {
            Piece::Bytes(bytes) => Piece::Bytes(bytes.slice(8..)),
            other => other.clone(),
        }];
        let error = setting.put(&changed).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity, "{error}");
        assert!(error.to_string().contains("must stay as they are"), "{error}");
    }
}

#[tokio::test]
async fn a_file_that_went_or_shrank_is_named_and_not_waited_for() {
    let setting = Setting::new(&Config::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.bin");
    let mut upload = upload(5 * MIB);
    upload.pieces = vec![Piece::File { path: path.clone(), range: StoredRange::new(0, upload.blob.size) }];
    for make in [None, Some(3 * MIB)] {
        make.map_or(Ok(()), |len| std::fs::write(&path, vec![0; len])).unwrap();
        let error = setting.put(&upload).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Storage, "{error}");
        assert!(error.to_string().contains("weights.bin"), "{error}");
        setting.nothing_is_left_under_way();
    }
}

/// Gives a blob's bytes, and notes how far ahead of the receiver it was asked for them.
#[derive(Debug)]
struct Watched {
    memory: Memory,
    given: Arc<AtomicU64>,
}

impl Repository for Watched {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        self.memory.manifest(which)
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Box::pin(async move {
            let given = self.given.clone();
            let count = move |piece: &Result<Bytes, Error>| {
                given.fetch_add(piece.as_ref().map_or(0, Bytes::len) as u64, Ordering::SeqCst);
            };
            Ok(self.memory.read(blob, range).await?.inspect(count).boxed())
        })
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.read(blob, range)
    }

    fn pace(&self) -> Pace {
        Pace::default()
    }

    fn referrers<'a>(&'a self, _: &'a Digest, _: &'a str) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn distrust(&self, _: &Blob) {}

    fn place(&self) -> String {
        self.memory.place()
    }

    fn identity(&self) -> String {
        self.memory.identity()
    }
}

#[tokio::test]
async fn no_more_is_read_ahead_than_a_line_holds() {
    let setting = Setting::new(&patient()).await;
    let mut large = upload(70 * MIB);
    let Piece::Bytes(bytes) = large.pieces.remove(0) else { panic!("bytes") };
    let (memory, given) = (Memory::new(), Arc::<AtomicU64>::default());
    memory.put(bytes);
    let repository = Arc::new(Watched { memory, given: given.clone() });
    large.pieces = vec![Piece::Blob { repository, blob: large.blob.clone() }];
    // The registry takes a MiB and no more, and never says how far it is: when it is asked, the part has been given up
    // without another begun, and whatever was asked of the source until then is what was held by us or by the system.
    setting.server.rule(Rule::once("PATCH /v2/", Fault::StallBody(MIB)));
    setting.server.rule(Rule::always("GET /v2/", Fault::Status(500)));
    let putting = setting.target.put(&large, &|_| {});
    let until_it_is_given_up = async {
        while !setting.methods().iter().any(|method| method == "GET") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        given.load(Ordering::SeqCst)
    };
    tokio::select! {
        _ = putting => panic!("it cannot end"),
        ahead = until_it_is_given_up => assert!(ahead < 20 * MIB as u64, "{ahead} bytes asked for, of which 1 MiB was taken"),
    }
    assert_eq!(setting.server.uploads().received(), MIB as u64);
}
