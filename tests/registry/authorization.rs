//! Tokens and passwords: one request for a token however many wait, and a clear refusal.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use weightfs::Kind;
use weightfs::oci::Which;
use weightfs::range::StoredRange;
use weightfs::repository::credentials::Sources;
use weightfs::repository::{Config, Repository, connect, read_all};

use super::sample::Sample;
use super::server::{Fault, Rule, Server, Tokens};

fn docker_config(folder: &Path, host: &str, user: &str, password: &str) -> Config {
    let auth = STANDARD.encode(format!("{user}:{password}"));
    let json = serde_json::json!({ "auths": { host: { "auth": auth } } });
    std::fs::write(folder.join("config.json"), json.to_string()).unwrap();
    let credentials = Sources { docker_config: Some(folder.to_owned()), ..Sources::default() };
    Config { credentials, ..Config::default() }
}

async fn read_32_at_once(repository: &Arc<dyn Repository>, sample: &Sample) {
    let readers: Vec<_> = (0..32)
        .map(|n| {
            let (repository, blob) = (repository.clone(), sample.large.clone());
            let range = StoredRange::new(n * 1000, n * 1000 + 5000);
            tokio::spawn(async move { (range, read_all(&*repository, &blob, range).await) })
        })
        .collect();
    for reader in readers {
        let (range, bytes) = reader.await.unwrap();
        assert!(bytes.unwrap() == sample.bytes_of(range), "{range}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn thirty_two_readers_ask_for_one_token() {
    let sample = Sample::new();
    let server = Server::with_tokens(sample.folder(), Tokens::for_everyone()).await;
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    read_32_at_once(&repository, &sample).await;
    let asked = server.log("/token");
    assert_eq!(asked.len(), 1);
    assert!(asked[0].path.contains("scope=repository%3Atest%2Fsample%3Apull"), "{}", asked[0].path);
    assert!(asked[0].path.contains("service=test"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_token_that_is_refused_before_its_time_is_renewed_once_for_all() {
    let sample = Sample::new();
    let server = Server::with_tokens(sample.folder(), Tokens::for_everyone()).await;
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    read_32_at_once(&repository, &sample).await;
    server.revoke_tokens();
    read_32_at_once(&repository, &sample).await;
    assert_eq!(server.log("/token").len(), 2);
}

#[tokio::test]
async fn a_token_is_renewed_before_it_ends() {
    let sample = Sample::new();
    let server = Server::with_tokens(sample.folder(), Tokens { life: 1, user: None }).await;
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    let start = std::time::Instant::now();
    while server.log("/token").len() < 3 {
        repository.manifest(&Which::Tag("v1".into())).await.unwrap();
        assert!(start.elapsed().as_secs() < 20);
    }
    // No request but the first was ever refused: each token was renewed in time.
    let without = server.log("/v2/").into_iter().filter(|one| one.authorization.is_none()).count();
    assert_eq!(without, 1);
    assert!(start.elapsed().as_millis() >= 1400, "{:?}", start.elapsed());
}

#[tokio::test]
async fn who_brings_no_password_is_denied_with_the_way_out() {
    let sample = Sample::new();
    let tokens = Tokens { life: 60, user: Some(("me", "canary-password")) };
    let server = Server::with_tokens(sample.folder(), tokens).await;
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    let error = repository.manifest(&Which::Tag("v1".into())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains(&format!("weightfs login {}", server.host())), "{error}");
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_and_nowhere_else() {
    let (sample, folder) = (Sample::new(), tempfile::tempdir().unwrap());
    let tokens = Tokens { life: 60, user: Some(("me", "canary-password")) };
    let server = Server::with_tokens(sample.folder(), tokens).await;
    let config = docker_config(folder.path(), &server.host(), "me", "canary-password");
    let repository = connect(&server.reference(), &config).unwrap();
    repository.manifest(&Which::Tag("v1".into())).await.unwrap();
    let with_password = |path| {
        server.log(path).iter().any(|one| one.authorization.as_ref().is_some_and(|a| a.starts_with("Basic")))
    };
    assert!(with_password("/token"));
    assert!(!with_password("/v2/"));
    assert!(!format!("{repository:?}").contains("canary"));
}

#[tokio::test]
async fn a_wrong_password_is_denied_and_not_shown() {
    let (sample, folder) = (Sample::new(), tempfile::tempdir().unwrap());
    let tokens = Tokens { life: 60, user: Some(("me", "right")) };
    let server = Server::with_tokens(sample.folder(), tokens).await;
    let config = docker_config(folder.path(), &server.host(), "me", "canary-password");
    let repository = connect(&server.reference(), &config).unwrap();
    let error = repository.manifest(&Which::Tag("v1".into())).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(!error.to_string().contains("canary"), "{error}");
    assert_eq!(server.log("/token").len(), 1);
}

#[tokio::test]
async fn identities_differ_by_user_and_show_none() {
    let (sample, folder) = (Sample::new(), tempfile::tempdir().unwrap());
    let server = Server::start(sample.folder()).await;
    let config = docker_config(folder.path(), &server.host(), "me", "canary-password");
    let known = connect(&server.reference(), &config).unwrap().identity();
    let anonymous = connect(&server.reference(), &Config::default()).unwrap().identity();
    assert_ne!(known, anonymous);
    assert!(!known.contains("me:"));
}

#[tokio::test]
async fn a_token_service_that_fails_for_a_while_is_asked_again() {
    let sample = Sample::new();
    let server = Server::with_tokens(sample.folder(), Tokens::for_everyone()).await;
    server.rule(Rule::times("/token", 2, Fault::Status(503)));
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    repository.manifest(&Which::Tag("v1".into())).await.unwrap();
}

#[tokio::test]
async fn a_token_is_used_to_its_end_where_the_next_one_cannot_be_had_yet() {
    let sample = Sample::new();
    let server = Server::with_tokens(sample.folder(), Tokens { life: 4, user: None }).await;
    server.rule(Rule::always("/token", Fault::Status(403)).after(1));
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    let tag = Which::Tag("v1".into());
    repository.manifest(&tag).await.unwrap();
    while server.log("/token").len() < 2 {
        repository.manifest(&tag).await.unwrap();
    }
    repository.manifest(&tag).await.unwrap();
}

#[tokio::test]
async fn a_token_service_that_hangs_holds_nobody_up_while_the_present_token_lives() {
    let sample = Sample::new();
    let server = Server::with_tokens(sample.folder(), Tokens { life: 4, user: None }).await;
    server.rule(Rule::always("/token", Fault::Stall(0)).after(1));
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    let tag = Which::Tag("v1".into());
    let manifest = async || {
        let answer = tokio::time::timeout(Duration::from_millis(700), repository.manifest(&tag));
        answer.await.expect("nobody waits").unwrap();
    };
    manifest().await;
    while server.log("/token").len() < 2 {
        manifest().await;
    }
    manifest().await;
    assert_eq!(server.log("/token").len(), 2);
}

#[tokio::test]
async fn a_token_that_is_over_is_renewed_before_it_is_sent() {
    let sample = Sample::new();
    let server = Server::with_tokens(sample.folder(), Tokens { life: 1, user: None }).await;
    server.rule(Rule::once("/token", Fault::Status(503)).after(1));
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    let tag = Which::Tag("v1".into());
    while server.log("/token").len() < 3 {
        repository.manifest(&tag).await.unwrap();
    }
    let last = server.log("/v2/").pop().unwrap();
    assert_eq!(last.authorization.as_deref(), Some("Bearer canary-token-2"));
}
