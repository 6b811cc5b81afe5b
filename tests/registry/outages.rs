//! A registry that is gone for a while: it is asked no more often than it bears, and read on as soon as it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use weightfs::range::StoredRange;
use weightfs::repository::{Config, connect, read_all};

use super::sample::Sample;
use super::server::{Fault, Rule, Server};

const READERS: u64 = 32;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_registry_that_closes_every_connection_make_no_storm_and_go_on_soon_after_it() {
    let sample = Arc::new(Sample::new());
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = dead.local_addr().unwrap();
    let connections = Arc::new(AtomicU64::new(0));
    let closing = tokio::spawn({
        let connections = connections.clone();
        async move {
            while let Ok((connection, _)) = dead.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                drop(connection);
            }
        }
    });
    let repository =
        connect(&format!("{address}/test/sample:v1").parse().unwrap(), &Config::default()).unwrap();
    let readers: Vec<_> = (0..READERS)
        .map(|at| {
            let (repository, sample) = (repository.clone(), sample.clone());
            tokio::spawn(async move {
                let range = StoredRange::new(at * 1000, at * 1000 + 50_000);
                let bytes = read_all(&*repository, &sample.large, range).await.unwrap();
                assert!(bytes == sample.bytes_of(range));
            })
        })
        .collect();
    // Each reader's first attempt, and what the budget bears, come at the beginning.
    let limit = Instant::now() + Duration::from_secs(30);
    while connections.load(Ordering::SeqCst) < READERS && Instant::now() < limit {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, start) = (connections.load(Ordering::SeqCst), Instant::now());
    assert!(before <= READERS + 20, "{before}");
    tokio::time::sleep(Duration::from_secs(4)).await;
    let probes = connections.load(Ordering::SeqCst) - before;
    assert!(probes <= start.elapsed().as_secs() + 1, "{probes} in {:?}", start.elapsed());
    closing.abort();
    let _ = closing.await;
    let _back = Server::start_at(sample.folder(), &address.to_string()).await;
    let back = Instant::now();
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(back.elapsed() < Duration::from_secs(15), "{:?}", back.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_is_over_for_many_readers_is_asked_for_by_one() {
    let sample = Arc::new(Sample::new());
    let (old, new) = (Server::start(sample.folder()).await, Server::start(sample.folder()).await);
    let server = Server::start(sample.folder()).await;
    server.rule(Rule::once("/blobs/", Fault::Redirect(old.origin())));
    server.rule(Rule::always("/blobs/", Fault::Redirect(new.origin())));
    old.rule(Rule::always("/blobs/", Fault::Status(403)).after(1));
    let repository = connect(&server.reference(), &Config::default()).unwrap();
    read_all(&*repository, &sample.large, StoredRange::new(0, 10)).await.unwrap();
    let readers: Vec<_> = (0..READERS)
        .map(|at| {
            let (repository, sample) = (repository.clone(), sample.clone());
            tokio::spawn(async move {
                let range = StoredRange::new(at * 1000, at * 1000 + 50_000);
                let bytes = read_all(&*repository, &sample.large, range).await.unwrap();
                assert!(bytes == sample.bytes_of(range));
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(server.log("/blobs/").len(), 2, "one reader asked for all");
    assert!(old.log("/blobs/").len() > 1);
}
