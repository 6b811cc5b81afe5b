//! Each of the registries of `docs/registries.md`, by a stand-in that behaves like it.

use std::time::Duration;

use serde_json::json;
use weightfs::Kind;
use weightfs::oci::Which;
use weightfs::range::StoredRange;
use weightfs::repository::credentials::Providers;

use super::scene::Scene;
use super::standin::{Challenge, ECR_EXPIRED, Make, StandIn, UNAUTHORIZED};
use crate::support::canary;

const HUB: Make = Make {
    challenge: Challenge::Bearer {
        path: "/token",
        service: "registry.docker.io",
        scope: "repository:test/sample:pull",
    },
    user: None,
    post: Ok(()),
    tokens_for_all: true,
    token: |token| json!({"token": token, "access_token": token, "expires_in": 300, "issued_at": "2026-01-01T00:00:00Z"}),
    expired: (401, UNAUTHORIZED),
};

const HARBOR: Make = Make {
    challenge: Challenge::Bearer {
        path: "/service/token",
        service: "harbor-registry",
        scope: "repository:test/sample:pull",
    },
    user: Some("robot$team+ci"),
    token: |token| json!({"token": token, "access_token": "", "expires_in": 1800, "issued_at": "2026-01-01T00:00:00Z"}),
    ..PLAIN
};

const ECR: Make =
    Make { challenge: Challenge::Basic, user: Some("AWS"), expired: (403, ECR_EXPIRED), ..PLAIN };

const ECR_PUBLIC: Make = Make {
    challenge: Challenge::Bearer { path: "/token/", service: "public.ecr.aws", scope: "aws" },
    token: |token| json!({ "token": token }),
    expired: (400, ECR_EXPIRED),
    ..PLAIN
};

const GAR: Make = Make {
    challenge: Challenge::Bearer { path: "/v2/token", service: "HOST", scope: "repository:test/sample:pull" },
    user: Some("oauth2accesstoken"),
    token: |token| json!({"token": token, "expires_in": 3600, "issued_at": "2026-01-01T00:00:00Z"}),
    ..PLAIN
};

const ACR: Make = Make {
    challenge: Challenge::Bearer {
        path: "/oauth2/token",
        service: "HOST",
        scope: "repository:test/sample:pull",
    },
    user: Some(NO_USER),
    post: Ok(()),
    tokens_for_all: false,
    token: |token| json!({ "access_token": token }),
    ..PLAIN
};
const NO_USER: &str = "00000000-0000-0000-0000-000000000000";

const GHCR: Make = Make {
    challenge: Challenge::Bearer { path: "/token", service: "ghcr.io", scope: "repository:test/sample:pull" },
    user: Some("octocat"),
    token: |token| json!({ "token": token }),
    ..PLAIN
};

const QUAY: Make = Make {
    challenge: Challenge::Bearer { path: "/v2/auth", service: "HOST", scope: "repository:test/sample:pull" },
    user: Some("acme+robot"),
    token: |token| json!({ "token": token }),
    ..PLAIN
};

const PLAIN: Make = Make {
    challenge: Challenge::Basic,
    user: None,
    post: Err(404),
    tokens_for_all: true,
    token: |token| json!({ "token": token }),
    expired: (401, UNAUTHORIZED),
};

fn range(n: u64) -> StoredRange {
    StoredRange::new(n * 1000, n * 1000 + 5000)
}

/// Pulls; lets the token end before its time and pulls again: one more token, and nobody sees a refusal.
async fn outlives_its_token(scene: &Scene) {
    let repository = scene.repository();
    scene.pull(&*repository).await;
    assert_eq!(scene.registry.asked().len(), 1);
    scene.registry.expire();
    scene.pull(&*repository).await;
    assert_eq!(scene.registry.asked().len(), 2);
}

#[tokio::test]
async fn docker_hub_gives_tokens_to_all_and_its_limit_is_waited_out() {
    let scene = Scene::new(HUB).await;
    outlives_its_token(&scene).await;
    let asked = scene.registry.asked().remove(0);
    assert_eq!((&*asked.method, asked.authorization), ("GET", None));
    assert!(asked.query.contains("service=registry.docker.io"), "{}", asked.query);
    let limit = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your unauthenticated pull rate limit."}]}"#;
    scene.registry.next_answer(429, "1", limit);
    let (before, begun) = (scene.registry.requests().0, std::time::Instant::now());
    scene.repository().manifest(&Which::Tag("v1".into())).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    // Anonymous, with a token and limited, and once more: nobody asks during the wait.
    assert_eq!(scene.registry.requests().0 - before, 3);
}

#[tokio::test]
async fn docker_hub_sends_readers_to_signed_addresses_which_are_told_to_nobody() {
    let scene = Scene::with_user(Make { user: Some("me"), ..HUB }, "me").await;
    let storage = StandIn::start(scene.sample.folder(), Make { tokens_for_all: false, ..HARBOR }).await;
    let repository = scene.repository();
    // A refusal there is asked about once more: the address may have been over.
    for _ in 0..2 {
        scene.registry.next_redirect(format!("http://{}", storage.host()));
    }
    let error = scene.try_read(&*repository, range(1)).await.unwrap_err();
    // The storage knows no user and is sent none: its refusal is what the registry's would be, with another name.
    assert!(error.to_string().contains(&storage.host()), "{error}");
    canary::absent("the error", &error.to_string());
    assert_eq!((storage.asked().len(), storage.requests()), (0, (2, 2)));
    scene.try_read(&*repository, range(1)).await.unwrap();
}

#[tokio::test]
async fn docker_hub_takes_a_user_and_an_identity_token() {
    let config = |host: &str| json!({"auths": {host: {"auth": "", "identitytoken": canary::IDENTITY}}});
    let scene = Scene::with_config(Make { user: Some("me"), ..HUB }, config).await;
    outlives_its_token(&scene).await;
    for asked in scene.registry.asked() {
        assert_eq!((&*asked.method, asked.authorization), ("POST", None));
        assert!(asked.form.contains("grant_type=refresh_token") && asked.form.contains("client_id=weightfs"));
        assert!(asked.form.contains("scope=repository%3Atest%2Fsample%3Apull"), "the scope");
        assert!(!asked.query.contains("canary"), "a token in an address");
    }
    let scene = Scene::with_user(Make { user: Some("me"), ..HUB }, "me").await;
    outlives_its_token(&scene).await;
}

#[tokio::test]
async fn harbor_knows_robots_with_a_dollar_in_their_name() {
    let scene = Scene::with_user(HARBOR, "robot$team+ci").await;
    outlives_its_token(&scene).await;
    let asked = scene.registry.asked().remove(0);
    assert!(asked.query.contains("service=harbor-registry") && asked.authorization.is_some());
}

#[tokio::test]
async fn harbor_gives_strangers_a_token_that_opens_nothing_private() {
    let scene = Scene::new(HARBOR).await;
    let error = scene.refusal().await;
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains(&format!("weightfs login {}", scene.registry.host())), "{error}");
    assert_eq!((scene.registry.asked().len(), scene.registry.requests()), (1, (2, 2)));
}

/// A plugin as ECR's: asks for the image on its standard input, and answers for the registry with the password in a file.
fn ecr_provider(scene: &mut Scene) {
    let password = scene.write("password", canary::PASSWORD);
    let script = format!(
        r#"[ "$1" = get-credentials ] && [ "$AWS_PROFILE" = test ] || exit 9
request=$(cat)
case "$request" in
  *'"kind":"CredentialProviderRequest"'*'"image":"127.0.0.1:'*'/test/sample"'*) ;;
  *) echo "not for me" >&2; exit 8 ;;
esac
host=${{request##*\"image\":\"}}; host=${{host%%/*}}
printf '{{"kind":"CredentialProviderResponse","cacheKeyType":"Registry","cacheDuration":"6h0m0s",'
printf '"auth":{{"%s":{{"username":"AWS","password":"%s"}}}}}}' "127.0.*.${{host##*.}}" "$(cat '{}')""#,
        password.display()
    );
    scene.program("ecr-credential-provider", &script);
    let host = scene.registry.host();
    let port = host.rsplit(':').next().unwrap();
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n\
         - name: ecr-credential-provider\n  matchImages: [\"*.dkr.ecr.*.amazonaws.com\", \"127.0.*.1:{port}\"]\n  \
         defaultCacheDuration: 12h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get-credentials]\n  \
         env: [{{name: AWS_PROFILE, value: test}}]\n"
    );
    let config = scene.write("providers.yaml", &config);
    scene.sources.providers = Some(Providers { config, folder: None });
}

#[tokio::test]
async fn ecr_is_asked_with_the_password_of_the_kubelets_plugin_which_is_renewed_when_it_is_over() {
    let mut scene = Scene::new(ECR).await;
    ecr_provider(&mut scene);
    let repository = scene.repository();
    scene.pull(&*repository).await;
    scene.pull(&*repository).await;
    assert_eq!(scene.runs("ecr-credential-provider"), 1);
    // Twelve hours later: the old password is answered 403, and the plugin has a new one.
    scene.registry.set_password("canary-password-2");
    scene.write("password", "canary-password-2");
    scene.pull(&*repository).await;
    assert_eq!((scene.runs("ecr-credential-provider"), scene.registry.asked().len()), (2, 0));
}

#[tokio::test]
async fn ecr_refuses_for_good_where_the_plugin_has_nothing_newer() {
    let mut scene = Scene::new(ECR).await;
    ecr_provider(&mut scene);
    let repository = scene.repository();
    scene.pull(&*repository).await;
    scene.registry.set_password("canary-password-2");
    let before = scene.registry.requests().0;
    let error = scene.try_read(&*repository, range(3)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains("authorization token has expired"), "{error}");
    canary::absent("the error", &error.to_string());
    // A blob is asked for once more; the plugin is not.
    assert_eq!((scene.registry.requests().0 - before, scene.runs("ecr-credential-provider")), (2, 2));
}

#[tokio::test]
async fn ecr_public_answers_400_to_a_token_whose_time_is_over() {
    let scene = Scene::new(ECR_PUBLIC).await;
    outlives_its_token(&scene).await;
    let asked = scene.registry.asked().remove(0);
    assert!(asked.query.contains("service=public.ecr.aws"), "{}", asked.query);
}

#[tokio::test]
async fn ecr_public_is_not_asked_for_tokens_over_and_over_where_400_is_meant() {
    let scene = Scene::new(ECR_PUBLIC).await;
    let repository = scene.repository();
    scene.pull(&*repository).await;
    for _ in 0..5 {
        scene.registry.next_answer(400, "", "{}");
        scene.registry.next_answer(400, "", "{}");
        let _ = scene.try_read(&*repository, range(7)).await;
    }
    assert!(scene.registry.asked().len() <= 3, "{}", scene.registry.asked().len());
}

#[tokio::test]
async fn artifact_registry_is_opened_by_the_helper_of_gcloud() {
    let helper = |host: &str| json!({"credHelpers": {host: "gcloud"}});
    let scene = Scene::with_config(GAR, helper).await;
    let host = scene.registry.host();
    let script = format!(
        r#"[ "$1" = get ] && [ "$(cat)" = "{host}" ] || {{ echo "credentials not found in native keychain"; exit 1; }}
printf '{{"ServerURL":"{host}","Username":"oauth2accesstoken","Secret":"{}"}}'"#,
        canary::PASSWORD
    );
    scene.program("docker-credential-gcloud", &script);
    outlives_its_token(&scene).await;
    assert_eq!(scene.runs("docker-credential-gcloud"), 1);
    assert!(scene.registry.asked()[0].query.contains(&format!("service={}", host.replace(':', "%3A"))));
}

#[tokio::test]
async fn acr_gives_tokens_for_an_identity_token_and_says_nothing_of_their_life() {
    // As `az acr login` writes it: no user, no password, and a token.
    let config = |host: &str| {
        json!({"auths": {host: {
            "auth": "MDAwMDAwMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAwOg==", "identitytoken": canary::IDENTITY,
        }}})
    };
    let scene = Scene::with_config(ACR, config).await;
    outlives_its_token(&scene).await;
    assert!(scene.registry.asked().iter().all(|asked| asked.method == "POST"));
}

#[tokio::test]
async fn acr_refuses_an_identity_token_that_is_over_and_says_so_once() {
    let config = |host: &str| json!({"auths": {host: {"identitytoken": "canary-identity-old"}}});
    let scene = Scene::with_config(ACR, config).await;
    let error = scene.refusal().await;
    assert_eq!((error.kind(), scene.registry.asked().len()), (Kind::Denied, 1), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    canary::absent("the error", &error.to_string());
}

#[tokio::test]
async fn acr_without_credentials_gives_no_token() {
    let scene = Scene::new(ACR).await;
    let error = scene.refusal().await;
    assert_eq!((error.kind(), scene.registry.asked().len()), (Kind::Denied, 1), "{error}");
}

#[tokio::test]
async fn ghcr_is_asked_for_one_range_at_a_time() {
    let scene = Scene::with_user(GHCR, "octocat").await;
    outlives_its_token(&scene).await;
    let repository = scene.repository();
    for n in 0..8 {
        scene.try_read(&*repository, range(n)).await.unwrap();
    }
    let ranges = scene.registry.ranges();
    assert!(ranges.len() >= 9 && ranges.iter().all(|range| !range.contains(',')), "{ranges:?}");
}

#[tokio::test]
async fn quay_gives_strangers_a_token_and_refuses_it_without_a_loop() {
    let scene = Scene::new(QUAY).await;
    let error = scene.refusal().await;
    assert_eq!((error.kind(), scene.registry.asked().len()), (Kind::Denied, 1), "{error}");
    let scene = Scene::with_user(QUAY, "acme+robot").await;
    outlives_its_token(&scene).await;
    let manifest = scene.repository().manifest(&Which::Tag("none".into())).await.unwrap_err();
    assert_eq!(manifest.kind(), Kind::NotFound);
}
