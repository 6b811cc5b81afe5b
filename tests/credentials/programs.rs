//! Programs that hand out credentials: they fail, hang and lie, and what they are told stays between them and us.

use std::time::{Duration, Instant};

use serde_json::json;
use weightfs::Kind;
use weightfs::repository::{Registry, Repository};

use super::scene::Scene;
use super::standin::Make;
use crate::support::canary;

const PRIVATE: Make = Make {
    user: Some("me"),
    tokens_for_all: false,
    challenge: super::standin::Challenge::Bearer { path: "/token", service: "x", scope: "" },
    post: Err(404),
    token: |token| json!({"token": token, "expires_in": 300}),
    expired: (401, super::standin::UNAUTHORIZED),
};

async fn with_store(make: Make, name: &str, script: &str) -> Scene {
    let scene = Scene::with_config(make, |_| json!({"credsStore": name})).await;
    scene.program(&format!("docker-credential-{name}"), script);
    scene
}

fn registry(scene: &Scene) -> Registry {
    Registry::new(&scene.registry.host(), "test/sample", &scene.config()).unwrap()
}

#[tokio::test]
async fn a_helper_that_hangs_is_given_up_in_time_and_may_be_asked_again() {
    let mut scene = with_store(PRIVATE, "slow", "exec sleep 1000").await;
    scene.sources.program_limit = Duration::from_millis(500);
    let begun = Instant::now();
    let error = scene.try_pull(&registry(&scene)).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    // It may answer next time, so this is no refusal.
    assert!(error.kind().may_retry(), "{error:?}");
    assert!(error.to_string().contains("docker-credential-slow has not answered"), "{error}");
}

#[tokio::test]
async fn a_helper_that_is_missing_does_not_keep_anybody_from_what_is_public() {
    let scene = Scene::with_config(Make::default(), |_| json!({"credsStore": "desktop"})).await;
    scene.pull(&*scene.repository()).await;
}

#[tokio::test]
async fn a_helper_that_is_missing_is_named_where_it_was_needed() {
    let scene = Scene::with_config(PRIVATE, |_| json!({"credsStore": "desktop"})).await;
    let error = scene.try_pull(&registry(&scene)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("docker-credential-desktop"), "{error}");
}

#[tokio::test]
async fn a_helper_that_has_nothing_leaves_it_to_the_file() {
    let nothing = "cat > /dev/null; echo 'credentials not found in native keychain'; exit 1";
    let config = |host: &str| json!({"credsStore": "empty", "auths": {host: {"username": "me", "password": canary::PASSWORD}}});
    let scene = Scene::with_config(PRIVATE, config).await;
    scene.program("docker-credential-empty", nothing);
    scene.pull(&*scene.repository()).await;
    assert_eq!(scene.runs("docker-credential-empty"), 1);
}

#[tokio::test]
async fn a_helper_is_asked_anew_once_what_it_said_is_refused() {
    let scene = with_store(
        PRIVATE,
        "rotating",
        &format!(
            r#"cat > /dev/null; number=$(wc -l < "$0.runs"); [ "$number" -gt 1 ] && secret={} || secret=canary-password-old
printf '{{"Username":"me","Secret":"%s"}}' "$secret""#,
            canary::PASSWORD
        ),
    )
    .await;
    scene.pull(&*scene.repository()).await;
    assert_eq!((scene.runs("docker-credential-rotating"), scene.registry.asked().len()), (2, 2));
}

#[tokio::test]
async fn an_identity_token_of_a_helper_goes_by_post() {
    let script =
        format!(r#"cat > /dev/null; printf '{{"Username":"<token>","Secret":"{}"}}'"#, canary::IDENTITY);
    let scene = with_store(Make { post: Ok(()), ..PRIVATE }, "tokens", &script).await;
    scene.pull(&*scene.repository()).await;
    assert_eq!(scene.registry.asked()[0].method, "POST");
}

#[tokio::test]
async fn what_a_failing_helper_prints_tells_no_secret() {
    let script = format!(r#"printf '{{"Secret":"{}"}}'; exit 3"#, canary::PASSWORD);
    let scene = with_store(PRIVATE, "talkative", &script).await;
    let error = scene.try_pull(&registry(&scene)).await.unwrap_err();
    assert!(error.to_string().contains("docker-credential-talkative failed"), "{error}");
    canary::absent("the error", &error.to_string());
}

#[tokio::test]
async fn identities_differ_by_helper_and_ask_none() {
    let scene = with_store(PRIVATE, "never", "exit 1").await;
    let mine = registry(&scene).identity();
    scene.write("config.json", "{}");
    assert_ne!(mine, registry(&scene).identity());
    assert_eq!(scene.runs("docker-credential-never"), 0);
}
