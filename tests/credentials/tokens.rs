//! Tokens: one for all who wait, by POST or GET as the service knows it, and never from where none may come.

use serde_json::json;
use weightfs::Kind;
use weightfs::range::StoredRange;
use weightfs::repository::{Registry, read_all};

use super::scene::Scene;
use super::standin::{Challenge, ECR_EXPIRED, Make};
use crate::support::canary;

fn identity(host: &str) -> serde_json::Value {
    json!({"auths": {host: {"identitytoken": canary::IDENTITY}}})
}

#[tokio::test]
async fn a_service_that_knows_no_post_is_asked_by_get() {
    for status in [404, 405] {
        let make = Make { user: Some("<token>"), post: Err(status), ..Make::default() };
        let scene = Scene::with_config(make, identity).await;
        scene.pull(&*scene.repository()).await;
        let methods: Vec<_> = scene.registry.asked().into_iter().map(|asked| asked.method).collect();
        assert_eq!(methods, ["POST", "GET"]);
    }
}

#[tokio::test]
async fn thirty_two_readers_who_are_refused_with_403_share_one_new_token() {
    let scene = Scene::new(Make { expired: (403, ECR_EXPIRED), ..Make::default() }).await;
    let repository = scene.repository();
    scene.pull(&*repository).await;
    scene.registry.expire();
    let readers: Vec<_> = (0..32)
        .map(|n| {
            let (repository, blob) = (repository.clone(), scene.sample.large.clone());
            let range = StoredRange::new(n * 1000, n * 1000 + 5000);
            tokio::spawn(async move { (range, read_all(&*repository, &blob, range).await) })
        })
        .collect();
    for reader in readers {
        let (range, bytes) = reader.await.unwrap();
        assert!(bytes.unwrap() == scene.sample.bytes_of(range), "{range}");
    }
    assert_eq!(scene.registry.asked().len(), 2);
}

#[tokio::test]
async fn a_refusal_of_a_header_that_was_never_taken_costs_no_new_one() {
    let scene = Scene::new(Make::default()).await;
    let repository = scene.repository();
    // The blob is asked for once more.
    scene.registry.next_answer(403, "", ECR_EXPIRED);
    scene.registry.next_answer(403, "", ECR_EXPIRED);
    let error = scene.try_read(&*repository, StoredRange::new(0, 10)).await.unwrap_err();
    assert_eq!((error.kind(), scene.registry.asked().len()), (Kind::Denied, 1));
}

#[tokio::test]
async fn a_token_service_that_redirects_is_not_followed() {
    let make = Make {
        challenge: Challenge::Bearer { path: "/elsewhere", service: "x", scope: "" },
        post: Err(307),
        ..Make::default()
    };
    let scene = Scene::with_config(make, identity).await;
    let registry = Registry::new(&scene.registry.host(), "test/sample", &scene.config()).unwrap();
    let error = scene.try_pull(&registry).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Protocol, "{error}");
    assert!(error.to_string().contains("no redirect"), "{error}");
}

#[tokio::test]
async fn credentials_that_were_renewed_in_their_file_are_used_without_a_new_mount() {
    let scene =
        Scene::with_user(Make { user: Some("me"), tokens_for_all: false, ..Make::default() }, "me").await;
    let repository = scene.repository();
    scene.pull(&*repository).await;
    scene.registry.set_password("canary-password-2");
    let host = scene.registry.host();
    let config = json!({"auths": {host: {"username": "me", "password": "canary-password-2"}}});
    scene.write("config.json", &config.to_string());
    scene.registry.expire();
    scene.pull(&*repository).await;
}
