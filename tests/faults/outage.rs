//! A registry that is gone for minutes: what is kept is read as ever, and the rest as soon as it is back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use weightfs::testing::registry::Habits;

use super::setting::{FILES, Form, HEAD, Setting, TAIL, Times, is_clear, shared};

/// Far shorter than the outage, so that readers fail and ask again.
const TIMES: Times = Times { deadline: Duration::from_secs(5), stall: Duration::from_secs(2) };
/// The files that are kept before it begins.
const KEPT: usize = FILES / 2;
/// How soon the first new byte is there once the registry is.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_registry_is_gone_kept_bytes_are_read_as_ever_and_new_ones_soon_after_it_is_back() {
    let outage = Duration::from_secs(super::scale("WEIGHTFS_TEST_OUTAGE", 12));
    let mut setting = Setting::open(shared(Form::Packed).source(), Habits::default(), TIMES, 1 << 30).await;
    let before = kept_reads(&setting).await;
    setting.registry.leave().await;
    let begun = Instant::now();
    let mut during = Vec::new();
    let mut failed = 0;
    while begun.elapsed() < outage {
        let (times, new) = tokio::join!(kept_reads(&setting), new_read(&setting, KEPT));
        during.extend(times);
        is_clear(&new.unwrap_err(), "file-", "127.0.0.1", "nobody there");
        failed += 1;
    }
    println!("kept reads: {:?} before, {:?} during; {failed} new reads failed", p99(before), p99(during));

    let waiting = async {
        loop {
            if new_read(&setting, KEPT + 1).await.is_ok() {
                return Instant::now();
            }
        }
    };
    // Somebody waits already when it comes back, and has asked in vain.
    let address = setting.registry.host().parse().unwrap();
    let router = shared(Form::Packed).source().router();
    let asked = setting.metrics.probes.value();
    let back = async {
        while setting.metrics.probes.value() < asked + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let registry =
            weightfs::testing::registry::Registry::over_at(address, router, Habits::default()).await.unwrap();
        (registry, Instant::now())
    };
    let (first, (registry, back)) = tokio::join!(waiting, back);
    println!("first new byte {:?} after the registry was back", first.duration_since(back));
    assert!(first.duration_since(back) <= SOON, "{:?}", first.duration_since(back));
    let violations = registry.violations();
    assert!(violations.is_empty(), "once it is back: {violations:?}");
    drop(registry);
    setting.end("the outage").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_a_registry_that_breaks_every_connection_make_no_storm() {
    let mut setting = Setting::open(shared(Form::Packed).source(), Habits::default(), TIMES, 1 << 30).await;
    setting.registry.leave().await;
    let listener = TcpListener::bind(setting.registry.host()).await.unwrap();
    let knocks = Arc::new(AtomicUsize::new(0));
    let door = tokio::spawn({
        let knocks = knocks.clone();
        async move {
            while let Ok((connection, _)) = listener.accept().await {
                knocks.fetch_add(1, Ordering::SeqCst);
                connection.set_zero_linger().unwrap();
            }
        }
    });
    let begun = Instant::now();
    let readers = (0..32).map(|reader| new_read(&setting, reader % FILES));
    for outcome in futures_util::future::join_all(readers).await {
        is_clear(&outcome.unwrap_err(), "file-", "127.0.0.1", "broken off");
    }
    let (took, knocks) = (begun.elapsed(), knocks.load(Ordering::SeqCst));
    println!("{knocks} connections in {took:?}");
    // One for each file before it is known, and one a second after that.
    let most = FILES + 2 * usize::try_from(took.as_secs()).unwrap() + 4;
    assert!(knocks <= most, "{knocks} connections in {took:?}");
    door.abort();
    setting.end("the broken door").await;
}

/// Reads the second chunk of every file that is kept, the first time for it to be kept, and gives how long each took.
async fn kept_reads(setting: &Setting) -> Vec<Duration> {
    let mut times = Vec::new();
    for file in 0..KEPT {
        let begun = Instant::now();
        let got = new_read(setting, file).await.unwrap_or_else(|error| panic!("kept: {error:?}"));
        times.push(begun.elapsed());
        assert!(got == shared(Form::Packed).bytes(file)[HEAD..], "wrong bytes");
    }
    times
}

async fn new_read(setting: &Setting, file: usize) -> weightfs::Result<bytes::Bytes> {
    setting.read(&shared(Form::Packed).files[file].path, HEAD as u64, TAIL as u64).await
}

fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() * 99 / 100]
}
