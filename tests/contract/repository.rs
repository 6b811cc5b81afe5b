//! The contract of [`Repository`], over memory, an image layout folder and a registry.

use std::sync::Arc;

use futures_util::StreamExt;
use weightfs::Kind;
use weightfs::oci::{Blob, Digest, Which};
use weightfs::range::StoredRange;
use weightfs::repository::{
    Config, Hedging, Joined, Limited, Memory, Repository, Retrying, connect, read_all,
};

use crate::registry::sample::{MEDIA_TYPE, REFERRER_TYPE, Sample};
use crate::registry::server::Server;

/// Asks `repository`, which has what `sample` has, everything that the trait promises.
async fn holds(repository: Arc<dyn Repository>, sample: &Sample) {
    manifests_are_found_by_tag_and_digest(&*repository, sample).await;
    what_is_missing_is_not_found(&*repository).await;
    ranges_are_exact(&*repository, sample).await;
    ranges_outside_are_refused(&*repository, sample).await;
    a_stream_given_up_disturbs_nobody(&*repository, sample).await;
    many_read_at_once(&repository, sample).await;
    referrers_are_found_by_their_type_and_subject(&*repository, sample).await;
    assert!(!repository.place().is_empty());
    assert_eq!(repository.identity(), repository.identity());
}

async fn manifests_are_found_by_tag_and_digest(repository: &dyn Repository, sample: &Sample) {
    for which in [Which::Tag("v1".into()), Which::Digest(sample.manifest.clone())] {
        let pinned = repository.manifest(&which).await.unwrap();
        assert_eq!(pinned.digest, sample.manifest, "{which}");
        assert!(pinned.digest.matches(&pinned.bytes));
        assert_eq!(pinned.media_type, MEDIA_TYPE);
    }
}

async fn what_is_missing_is_not_found(repository: &dyn Repository) {
    let digest = Digest::of(b"nobody has this");
    for which in [Which::Tag("v2".into()), Which::Digest(digest.clone())] {
        assert_eq!(repository.manifest(&which).await.unwrap_err().kind(), Kind::NotFound, "{which}");
    }
    let blob = Blob { digest, size: 15 };
    let error = read_all(repository, &blob, StoredRange::new(0, 15)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(read_all(repository, &blob, StoredRange::new(3, 3)).await.unwrap().is_empty(), "asks nobody");
}

async fn ranges_are_exact(repository: &dyn Repository, sample: &Sample) {
    let size = sample.large.size;
    let middle = StoredRange::new(size / 2 - 1000, size / 2 + 1_200_000);
    for range in [
        StoredRange::new(0, size),
        StoredRange::new(0, 1),
        StoredRange::new(size - 1, size),
        StoredRange::new(1 << 20, (1 << 20) + 1),
        middle,
        StoredRange::new(size, size),
    ] {
        let bytes = read_all(repository, &sample.large, range).await.unwrap();
        assert!(bytes == sample.bytes_of(range), "{range}");
    }
    let bytes = read_all(repository, &sample.small, StoredRange::new(0, 1)).await.unwrap();
    assert_eq!(bytes, &b"x"[..]);
    let ahead: Vec<_> = repository.read_ahead(&sample.large, middle).await.unwrap().collect().await;
    let ahead: Vec<u8> = ahead.into_iter().flat_map(|piece| piece.unwrap()).collect();
    assert!(ahead == sample.bytes_of(middle), "ahead");
    assert!(repository.pace().requests > 0 && repository.pace().bytes > 0);
}

async fn ranges_outside_are_refused(repository: &dyn Repository, sample: &Sample) {
    let size = sample.large.size;
    for range in [StoredRange::new(0, size + 1), StoredRange::new(size + 1, size + 1)] {
        let error = read_all(repository, &sample.large, range).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid, "{range}");
    }
}

async fn referrers_are_found_by_their_type_and_subject(repository: &dyn Repository, sample: &Sample) {
    let found = repository.referrers(&sample.manifest, REFERRER_TYPE).await.unwrap();
    assert_eq!(found.iter().map(|one| &one.digest).collect::<Vec<_>>(), [&sample.referrer]);
    let pinned = repository.manifest(&Which::Digest(sample.referrer.clone())).await.unwrap();
    assert_eq!(found[0].size, pinned.bytes.len() as u64);
    assert!(repository.referrers(&sample.manifest, "application/other").await.unwrap().is_empty());
    assert!(repository.referrers(&sample.referrer, REFERRER_TYPE).await.unwrap().is_empty());
}

async fn a_stream_given_up_disturbs_nobody(repository: &dyn Repository, sample: &Sample) {
    let all = StoredRange::new(0, sample.large.size);
    let mut stream = repository.read(&sample.large, all).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(sample.bytes_of(all).starts_with(&first));
    drop(stream);
    assert!(read_all(repository, &sample.large, all).await.unwrap() == sample.bytes_of(all));
}

async fn many_read_at_once(repository: &Arc<dyn Repository>, sample: &Sample) {
    let readers: Vec<_> = (0..16)
        .map(|n| {
            let (repository, blob) = (repository.clone(), sample.large.clone());
            let range = StoredRange::new(n * 100_000, n * 100_000 + 150_000);
            tokio::spawn(async move { (range, read_all(&*repository, &blob, range).await) })
        })
        .collect();
    for reader in readers {
        let (range, bytes) = reader.await.unwrap();
        assert!(bytes.unwrap() == sample.bytes_of(range), "{range}");
    }
}

fn memory(sample: &Sample) -> Memory {
    let memory = Memory::new();
    memory.put(sample.bytes_of(StoredRange::new(0, sample.large.size)).to_vec());
    memory.put(&b"x"[..]);
    memory.put_manifest("v1", MEDIA_TYPE, sample.manifest_bytes.clone());
    memory.put_manifest("referrer", MEDIA_TYPE, sample.referrer_bytes.clone());
    memory
}

#[tokio::test]
async fn memory_keeps_the_contract() {
    let sample = Sample::new();
    holds(Arc::new(memory(&sample)), &sample).await;
}

#[tokio::test]
async fn whatever_goes_around_a_repository_keeps_the_contract() {
    let (sample, config) = (Sample::new(), Config { rate: Some(1 << 30), ..Config::default() });
    holds(Arc::new(Limited::new(memory(&sample), &config)), &sample).await;
    holds(Arc::new(Hedging::new(memory(&sample), &config)), &sample).await;
    holds(Arc::new(Retrying::new(memory(&sample), &config)), &sample).await;
    holds(Arc::new(Joined::new(Arc::new(memory(&sample)), [])), &sample).await;
    let all = Hedging::new(Limited::new(memory(&sample), &config), &config);
    holds(Arc::new(Retrying::new(all, &config)), &sample).await;
}

#[tokio::test]
async fn an_image_layout_keeps_the_contract() {
    let sample = Sample::new();
    let reference = format!("oci:{}:v1", sample.folder().display()).parse().unwrap();
    holds(connect(&reference, &Config::default()).unwrap(), &sample).await;
}

#[tokio::test]
async fn a_registry_keeps_the_contract() {
    let sample = Sample::new();
    let server = Server::start(sample.folder()).await;
    holds(connect(&server.reference(), &Config::default()).unwrap(), &sample).await;
}

#[tokio::test]
async fn a_registry_that_wants_tokens_and_sends_away_for_blobs_keeps_the_contract() {
    use crate::registry::server::{Fault, Rule, Tokens};
    let sample = Sample::new();
    let cdn = Server::start(sample.folder()).await;
    let server = Server::with_tokens(sample.folder(), Tokens::for_everyone()).await;
    server.rule(Rule::always("/blobs/", Fault::Redirect(cdn.origin())));
    holds(connect(&server.reference(), &Config::default()).unwrap(), &sample).await;
}

#[tokio::test]
async fn a_registry_with_mirrors_keeps_the_contract_whether_they_answer_or_not() {
    use crate::registry::server::{Fault, Rule};
    let sample = Sample::new();
    let (server, mirror) = (Server::start(sample.folder()).await, Server::start(sample.folder()).await);
    let hosts = tempfile::tempdir().unwrap();
    let folder = hosts.path().join(server.host());
    std::fs::create_dir(&folder).unwrap();
    // Nobody listens at port 1.
    let text = format!("[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n", mirror.host());
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let config = Config { hosts_dir: Some(hosts.path().to_owned()), ..Config::default() };
    holds(connect(&server.reference(), &config).unwrap(), &sample).await;
    mirror.rule(Rule::always("/v2/", Fault::Status(503)));
    holds(connect(&server.reference(), &config).unwrap(), &sample).await;
}
