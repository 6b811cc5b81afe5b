//! The faults themselves, byte by byte as a client with bare hands sees them, and what is noted of clients.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weightfs::oci::Digest;
use weightfs::repository::credentials::Sources;
use weightfs::testing::registry::{Breach, Door, Fault, Habits, Registry, Rule, Source, Tokens, User};

use super::setting::{Artifact, Form};
use crate::support::canary;
use crate::support::pack::Packing;

const SIZE: usize = 10_000;

struct Bare {
    registry: Registry,
    artifact: Artifact,
    path: String,
}

impl Bare {
    async fn start(habits: Habits) -> Self {
        let artifact = Artifact::of(2, SIZE, Packing::Raw, Form::Plain);
        let registry = Registry::start(artifact.source(), habits).await.unwrap();
        let path = format!("/v2/test/model/blobs/{}", artifact.digest(0));
        Self { registry, artifact, path }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.registry.host()).await.unwrap()
    }

    /// What comes for bytes 100 to 1099, up to the end of the connection; `Err` where it is reset.
    async fn range(&self, fault: Fault) -> Result<Vec<u8>, std::io::Error> {
        self.registry.heal();
        self.registry.rule(Rule::once("/blobs/", fault));
        let mut connection = self.connect().await;
        ask(
            &mut connection,
            &self.path,
            "Range: bytes=100-1099\r\nAccept-Encoding: identity\r\nConnection: close",
        )
        .await;
        let mut all = Vec::new();
        connection.read_to_end(&mut all).await.map(|_| all)
    }

    fn right(&self) -> &[u8] {
        &self.artifact.bytes(0)[100..1100]
    }
}

async fn ask(connection: &mut TcpStream, path: &str, headers: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
}

/// Head and body.
fn split(answer: &[u8]) -> (String, &[u8]) {
    let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
    (String::from_utf8_lossy(&answer[..at]).to_lowercase(), &answer[at..])
}

#[tokio::test]
async fn faults_before_any_head_are_what_they_say() {
    let bare = Bare::start(Habits::default()).await;
    assert_eq!(bare.range(Fault::Reset).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(bare.range(Fault::Close).await.unwrap(), b"");
    let garbage = bare.range(Fault::Garbage).await.unwrap();
    assert!(!garbage.is_empty() && !garbage.starts_with(b"HTTP"));
    let silence = tokio::time::timeout(Duration::from_millis(300), bare.range(Fault::Silence));
    assert!(silence.await.is_err(), "it says nothing and stays");
}

#[tokio::test]
async fn a_body_breaks_where_it_is_told_to() {
    let bare = Bare::start(Habits::default()).await;
    let answer = bare.range(Fault::Truncate(300)).await.unwrap();
    let (head, body) = split(&answer);
    assert!(head.contains("content-length: 1000") && head.starts_with("http/1.1 206"), "{head}");
    assert!(body == &bare.right()[..300]);
    let answer = bare.range(Fault::ChunkedCut(300)).await.unwrap();
    let (head, body) = split(&answer);
    assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"), "{head}");
    assert!(body.starts_with(b"3e8\r\n") && body[5..] == bare.right()[..300]);
    assert!(bare.range(Fault::ResetAt(300)).await.is_err());
    let stalled = tokio::time::timeout(Duration::from_millis(300), bare.range(Fault::Stall(300)));
    assert!(stalled.await.is_err());
}

#[tokio::test]
async fn a_slow_answer_is_the_right_one() {
    let bare = Bare::start(Habits::default()).await;
    let piece = Duration::from_millis(1);
    for fault in [Fault::Slow(10, piece), Fault::SlowHead(Duration::from_micros(100))] {
        // The connection stays after it, so its end is not waited for.
        bare.registry.heal();
        bare.registry.rule(Rule::once("/blobs/", fault.clone()));
        let mut connection = bare.connect().await;
        ask(&mut connection, &bare.path, "Range: bytes=100-1099").await;
        let mut all = Vec::new();
        while !all.ends_with(bare.right()) {
            assert_ne!(connection.read_buf(&mut all).await.unwrap(), 0, "{fault:?}");
        }
        assert!(split(&all).1 == bare.right(), "{fault:?}");
    }
}

#[tokio::test]
async fn bytes_after_the_end_leave_the_connection_open() {
    let bare = Bare::start(Habits::default()).await;
    bare.registry.rule(Rule::once("/blobs/", Fault::Extra(7)));
    let mut connection = bare.connect().await;
    ask(&mut connection, &bare.path, "Range: bytes=100-1099").await;
    let mut all = Vec::new();
    while !all.ends_with(b"???????") {
        assert_ne!(connection.read_buf(&mut all).await.unwrap(), 0);
    }
    ask(&mut connection, &bare.path, "Range: bytes=0-0").await;
    all.clear();
    while !all.ends_with(&bare.artifact.bytes(0)[..1]) {
        assert_ne!(connection.read_buf(&mut all).await.unwrap(), 0);
    }
    assert!(all.starts_with(b"HTTP/1.1 206"));
}

#[tokio::test]
async fn answers_to_another_question_say_so_in_their_head() {
    let bare = Bare::start(Habits::default()).await;
    let whole = bare.artifact.bytes(0);
    let size = whole.len();
    for (fault, status, range, body) in [
        (Fault::IgnoreRange, 200, String::new(), whole),
        (Fault::Partial200, 200, String::new(), bare.right()),
        (Fault::Whole206, 206, format!("bytes 0-{}/{size}", size - 1), whole),
        (Fault::Elsewhere(10), 206, format!("bytes 110-1099/{size}"), &whole[110..1100]),
        (Fault::Short206(50), 206, format!("bytes 100-1049/{size}"), &whole[100..1050]),
    ] {
        let answer = bare.range(fault.clone()).await.unwrap();
        let (head, got) = split(&answer);
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{fault:?}: {head}");
        assert_eq!(head.contains("content-range:"), !range.is_empty(), "{fault:?}: {head}");
        assert!(head.contains(&range) && got == body, "{fault:?}: {head}");
    }
}

#[tokio::test]
async fn lies_have_the_right_head_and_other_bytes() {
    let bare = Bare::start(Habits::default()).await;
    let other = bare.artifact.digest(1);
    let honest = bare.range(Fault::NoHeader("x-none".parse().unwrap())).await.unwrap();
    let due = |answer: &[u8]| {
        split(answer)
            .0
            .lines()
            .filter(|line| !line.starts_with("date"))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for fault in [Fault::Flip(3), Fault::Shifted(1), Fault::Zeros, Fault::Swap(other)] {
        let answer = bare.range(fault.clone()).await.unwrap();
        assert_eq!(due(&answer), due(&honest), "{fault:?}");
        let (_, body) = split(&answer);
        assert!(body.len() == 1000 && body != bare.right(), "{fault:?}");
    }
    let answer = bare.range(Fault::Swap(bare.artifact.digest(1))).await.unwrap();
    assert!(split(&answer).1 == &bare.artifact.bytes(1)[..1000]);
}

#[tokio::test]
async fn credentials_at_the_storage_are_refused_and_noted() {
    let bare = Bare::start(Habits { storage: Some(Duration::from_secs(60)), ..Habits::default() }).await;
    let mut connection = bare.connect().await;
    ask(&mut connection, &bare.path, "Connection: close").await;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    let location = answer.lines().find_map(|line| line.strip_prefix("location: ")).expect("a redirect");
    let storage = bare.registry.storage().unwrap();
    assert!(location.contains(canary::SIGNATURE));
    let path = location.strip_prefix(&storage.origin()).expect("to the storage");
    let status = async |path: &str, headers: &str| {
        let mut connection = TcpStream::connect(storage.host()).await.unwrap();
        ask(&mut connection, path, &format!("{headers}Accept-Encoding: identity\r\nConnection: close")).await;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..12]).into_owned()
    };
    assert_eq!(status(path, "").await, "200");
    assert_eq!(status(path, &format!("Authorization: Bearer {}\r\n", canary::TOKEN)).await, "400");
    assert_eq!(status(&path.replace("expires=", "expires=9"), "").await, "403");
    bare.registry.expire_addresses();
    assert_eq!(status(path, "").await, "403");
    assert_eq!(status(path, "").await, "403");
    let breaches: Vec<_> = storage.violations().iter().map(|violation| violation.breach).collect();
    assert_eq!(breaches, [Breach::CredentialsElsewhere, Breach::StaleAddress]);
}

#[tokio::test]
async fn of_two_users_each_sees_what_is_theirs() {
    let mine = User { repositories: vec!["test/model".into()], ..User::new("me", canary::PASSWORD) };
    let other = User { repositories: vec!["test/other".into()], ..User::new("you", canary::IDENTITY) };
    for door in [
        Door::Basic(vec![mine.clone(), other.clone()]),
        Door::Tokens(Tokens { users: vec![mine.clone(), other.clone()], ..Tokens::for_everybody() }),
    ] {
        let bare = Bare::start(Habits { door, ..Habits::default() }).await;
        for (user, sees) in [(&mine, true), (&other, false)] {
            let folder = tempfile::tempdir().unwrap();
            let config = docker_config(folder.path(), &bare.registry.host(), user);
            let reference = format!("{}/test/model:v1", bare.registry.host()).parse().unwrap();
            let repository = weightfs::repository::connect(&reference, &config).unwrap();
            let got = repository.manifest(&reference.which()).await;
            assert_eq!(got.is_ok(), sees, "{}: {got:?}", user.name);
        }
    }
}

fn docker_config(folder: &std::path::Path, host: &str, user: &User) -> weightfs::repository::Config {
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", user.name, user.password));
    let json = serde_json::json!({ "auths": { host: { "auth": auth } } });
    std::fs::write(folder.join("config.json"), json.to_string()).unwrap();
    let credentials = Sources { docker_config: Some(folder.to_owned()), ..Sources::default() };
    weightfs::repository::Config { credentials, ..Default::default() }
}

#[tokio::test]
async fn what_refers_to_a_manifest_is_listed_where_there_is_an_api_for_it() {
    use weightfs::testing::registry::Referrers;
    let folder = tempfile::tempdir().unwrap();
    let subject = crate::support::artifacts::Artifact::modctl_raw(&crate::support::artifacts::sample());
    let digest = subject.write(folder.path(), "v1");
    attach(folder.path(), &digest);
    for (referrers, status) in [(Referrers::Api, "200"), (Referrers::Tags, "404")] {
        let source = Source::layout(folder.path().to_owned()).unwrap().telling(referrers);
        let registry = Registry::start(source, Habits::default()).await.unwrap();
        for (filter, count) in [("", 1), ("?artifactType=application/x-index", 1), ("?artifactType=x", 0)] {
            let mut connection = TcpStream::connect(registry.host()).await.unwrap();
            ask(&mut connection, &format!("/v2/a/referrers/{digest}{filter}"), "Connection: close").await;
            let mut answer = Vec::new();
            connection.read_to_end(&mut answer).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&answer[9..12]), status);
            if referrers == Referrers::Api {
                let listed: serde_json::Value = serde_json::from_slice(split(&answer).1).unwrap();
                assert_eq!(listed["manifests"].as_array().unwrap().len(), count, "{filter}");
            }
        }
    }
}

/// Adds a manifest to the layout that has `subject` for its subject.
fn attach(folder: &std::path::Path, subject: &Digest) {
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/x-index", "subject": {"digest": subject},
    })
    .to_string();
    let digest = Digest::of(manifest.as_bytes());
    std::fs::write(folder.join("blobs/sha256").join(digest.hex()), &manifest).unwrap();
    let path = folder.join("index.json");
    let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    index["manifests"].as_array_mut().unwrap().push(serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": manifest.len(),
    }));
    std::fs::write(path, index.to_string()).unwrap();
}
