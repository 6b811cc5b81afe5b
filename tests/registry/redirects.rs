//! Redirects to another host: no credentials there, its address used again, and asked for anew when it is over.

use std::sync::Arc;
use std::time::Duration;

use weightfs::Kind;
use weightfs::range::StoredRange;
use weightfs::repository::{Config, Repository, connect, read_all};

use super::sample::Sample;
use super::server::{Fault, Rule, Server, Tokens};

struct Setting {
    sample: Sample,
    server: Server,
    cdn: Server,
    repository: Arc<dyn Repository>,
}

impl Setting {
    async fn new() -> Self {
        let sample = Sample::new();
        let cdn = Server::start(sample.folder()).await;
        let server = Server::with_tokens(sample.folder(), Tokens::for_everyone()).await;
        let repository = connect(&server.reference(), &Config::default()).unwrap();
        Self { sample, server, cdn, repository }
    }

    fn redirect(&self) {
        self.server.rule(Rule::always("/blobs/", Fault::Redirect(self.cdn.origin())));
    }

    async fn read(&self, range: StoredRange) -> weightfs::Result<()> {
        let bytes = read_all(&*self.repository, &self.sample.large, range).await?;
        assert!(bytes == self.sample.bytes_of(range), "{range}");
        Ok(())
    }
}

#[tokio::test]
async fn no_credential_crosses_to_another_origin_and_its_address_is_used_again() {
    let setting = Setting::new().await;
    // The first request gets the challenge, the second a redirect.
    setting.server.rule(Rule::always("/blobs/", Fault::Redirect(setting.cdn.origin())).after(1));
    for n in 0..5 {
        setting.read(StoredRange::new(n * 10, n * 10 + 100_000)).await.unwrap();
    }
    let seen = setting.cdn.log("");
    assert_eq!(seen.len(), 5);
    assert!(seen.iter().all(|one| one.authorization.is_none()), "{seen:?}");
    let asked = setting.server.log("/blobs/");
    assert_eq!(asked.len(), 2, "one that is challenged, one that is redirected");
    assert!(asked[1].authorization.is_some());
}

#[tokio::test]
async fn an_address_whose_signature_is_over_is_asked_for_anew() {
    for status in [400, 401, 403, 404, 410] {
        let setting = Setting::new().await;
        setting.redirect();
        setting.cdn.rule(Rule::once("/blobs/", Fault::Status(status)).after(1));
        for n in 0..3 {
            setting.read(StoredRange::new(n, n + 100)).await.unwrap();
        }
        assert_eq!(setting.server.log("/blobs/").len(), 2, "{status}");
        assert_eq!(setting.cdn.log("").len(), 4, "{status}");
    }
}

#[tokio::test]
async fn an_address_that_fails_in_any_way_is_asked_for_anew() {
    for fault in [
        Fault::Stall(0),
        Fault::Stall(50_000),
        Fault::Truncate(0),
        Fault::Truncate(50_000),
        Fault::Status(500),
        Fault::RetryAfter(429, "0"),
        Fault::Status(416),
        Fault::Overlong(1),
    ] {
        let Setting { sample, server, cdn, .. } = Setting::new().await;
        let config = Config { stall: Duration::from_millis(300), ..Config::default() };
        let repository = connect(&server.reference(), &config).unwrap();
        let range = StoredRange::new(0, 100_000);
        let read = async || read_all(&*repository, &sample.large, range).await;
        // Asked a second time, the registry wants a token and then gives the blob itself.
        server.rule(Rule::once("/blobs/", Fault::Redirect(cdn.origin())));
        assert!(read().await.unwrap() == sample.bytes_of(range));
        assert_eq!((server.log("/blobs/").len(), cdn.log("").len()), (1, 1));
        cdn.rule(Rule::once("/blobs/", fault.clone()));
        assert!(read().await.unwrap() == sample.bytes_of(range), "{fault:?}");
        assert_eq!((server.log("/blobs/").len(), cdn.log("").len()), (3, 2), "{fault:?}");
    }
}

#[tokio::test]
async fn a_host_that_refuses_for_good_is_reported_without_a_loop() {
    let setting = Setting::new().await;
    setting.redirect();
    setting.cdn.rule(Rule::always("/blobs/", Fault::Status(403)));
    let error = setting.read(StoredRange::new(0, 100)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Denied);
    assert!(error.to_string().contains(&setting.cdn.host()), "{error}");
    assert!(!error.to_string().contains("canary"), "{error}");
    assert_eq!(setting.cdn.log("").len(), 2, "an address that was just given may have been over");
}

#[tokio::test]
async fn a_host_that_has_gone_is_left_for_where_the_registry_says() {
    let Setting { sample, server, cdn, repository } = Setting::new().await;
    let read =
        async |range| read_all(&*repository, &sample.large, range).await.unwrap() == sample.bytes_of(range);
    server.rule(Rule::once("/blobs/", Fault::Redirect(cdn.origin())));
    assert!(read(StoredRange::new(0, 100)).await);
    cdn.stop().await;
    let start = std::time::Instant::now();
    assert!(read(StoredRange::new(100, 200)).await);
    assert!(start.elapsed().as_secs() < 3);
}

#[tokio::test]
async fn a_redirect_that_leads_nowhere_good_is_refused() {
    for to in ["file:///etc/passwd", "ftp://x.example/", "http://", "/v2/test/sample/blobs/loop"] {
        let setting = Setting::new().await;
        let config = Config { read_deadline: Duration::from_secs(2), ..Config::default() };
        let repository = connect(&setting.server.reference(), &config).unwrap();
        setting.server.rule(Rule::always("/blobs/", Fault::RedirectTo(to)));
        let range = StoredRange::new(0, 100);
        let error = read_all(&*repository, &setting.sample.large, range).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Deadline, "{to}: {error}");
        assert!(error.to_string().contains("redirect"), "{to}: {error}");
        assert!(setting.server.log("/blobs/").len() <= 20 * 6, "{to}");
    }
}
