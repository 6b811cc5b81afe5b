//! A registry that is gone for a while: it is asked no more often than it bears, and read on as soon as it is back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use weightfs::range::StoredRange;
use weightfs::repository::{Config, connect, read_all};

use super::sample::Sample;
use super::server::{Fault, Rule, Server};

const READERS: u64 = 32;
/// How many more times it is asked while it is down before the test goes on.
const PROBES: u64 = 5;
/// How long anything may take that is not a matter of time.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_registry_that_closes_every_connection_make_no_storm_and_go_on_soon_after_it() {
    let sample = Arc::new(Sample::new());
    let dead = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = dead.local_addr().unwrap();
    let (count, mut connections) = watch::channel(0_u64);
    let closing = tokio::spawn(async move {
        while let Ok((connection, _)) = dead.accept().await {
            drop(connection);
            count.send_modify(|count| *count += 1);
        }
    });
    let config = Config::default();
    let repository = connect(&format!("{address}/test/sample:v1").parse().unwrap(), &config).unwrap();
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
    let mut seen = async |what: &str, enough: &mut (dyn FnMut(&u64) -> bool + Send)| {
        let seen = timeout(PATIENCE, connections.wait_for(enough)).await;
        *seen.unwrap_or_else(|_| panic!("waited in vain: {what}")).unwrap()
    };
    // Each reader's first attempt, and what the budget bears, come at the beginning.
    let before = seen("it counts as down", &mut |_| config.metrics.probes.value() > 0).await;
    assert!(before <= READERS + 20, "{before}");
    // Those a second after that: what takes longer on a busy machine is none too many.
    let start = Instant::now();
    let probes = seen("more probes", &mut |count| *count >= before + PROBES).await - before;
    assert!(probes <= start.elapsed().as_secs() + 1, "{probes} in {:?}", start.elapsed());
    closing.abort();
    let _ = closing.await;
    let _back = Server::start_at(sample.folder(), &address.to_string()).await;
    let back = Instant::now();
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(back.elapsed() < PATIENCE, "{:?}", back.elapsed());
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
