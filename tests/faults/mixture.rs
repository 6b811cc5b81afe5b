//! Many reads while nearly every third request meets some fault: no wrong byte, and no error.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt};
use weightfs::testing::registry::{Fault, Habits, Rule};

use super::figures::{self, Given};
use super::kinds;
use super::setting::{Artifact, Form, Setting, Times};
use crate::support::pack::Packing;
use crate::support::{heavy, sample};

const TIMES: Times = Times { deadline: Duration::from_secs(60), stall: Duration::from_millis(500) };
/// The share of requests that meet a fault.
const SHARE: f64 = 0.3;
const READERS: usize = 32;
/// The reads of each reader before the store is emptied, so that there is something to fetch.
const READS: usize = 32;
/// How many models are read beside one another, each from a registry of its own: they wait most of the time.
const AT_ONCE: usize = 8;
const FILES: usize = 512;
const SIZE: usize = 6_000;

#[test]
fn a_packed_model_is_read_right_while_a_third_of_the_requests_meet_any_fault() {
    let artifact = Artifact::of(FILES, SIZE, Packing::OneTar, Form::Packed);
    let lies = kinds::lies(artifact.config()).into_iter().map(|row| row.fault);
    let faults = kinds::passing().into_iter().chain(lies).collect();
    run(read("packed", artifact, faults));
}

#[test]
fn a_plain_model_is_read_right_while_a_third_of_the_requests_meet_a_fault_that_shows() {
    let artifact = Artifact::of(FILES, SIZE, Packing::OneTar, Form::Plain);
    run(read("plain", artifact, kinds::passing()));
}

fn run(reading: impl Future<Output = ()>) {
    let _alone = heavy();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(reading);
}

/// What came of some reads.
#[derive(Default)]
struct Sum {
    reads: usize,
    requests: usize,
    wrong: usize,
    /// What those said that failed.
    errors: Vec<String>,
    given: Given,
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.requests += other.requests;
        self.wrong += other.wrong;
        self.errors.extend(other.errors);
        self.given += other.given;
    }
}

async fn read(what: &str, artifact: Artifact, faults: Vec<Fault>) {
    let seed = super::scale("WEIGHTFS_TEST_SEED", 5);
    let reads = super::scale("WEIGHTFS_TEST_READS", 10_000) as usize;
    let (begun, artifact) = (Instant::now(), Arc::new(artifact));
    let rounds = (0..reads.div_ceil(READERS * READS)).map(|number| {
        let (artifact, faults) = (artifact.clone(), faults.clone());
        async move { tokio::spawn(round(artifact, faults, seed + number as u64)).await.unwrap() }
    });
    let mut all = Sum::default();
    let mut rounds = stream::iter(rounds).buffer_unordered(AT_ONCE);
    while let Some(sum) = rounds.next().await {
        all += sum;
    }
    println!(
        "{what}, seed {seed}: {} reads, {} requests, {}; {} wrong, {} errors; {}",
        all.reads,
        all.requests,
        all.given,
        all.wrong,
        all.errors.len(),
        figures::seconds(begun.elapsed())
    );
    assert!(all.wrong == 0 && all.errors.is_empty(), "{:#?}", all.errors);
    assert_eq!(all.given.kinds(), figures::kinds(&faults), "some kinds were never met: read more");
    assert!(all.requests > reads / 4, "the reads were answered from the store");
}

/// Some readers of one model with an empty store.
async fn round(artifact: Arc<Artifact>, faults: Vec<Fault>, seed: u64) -> Sum {
    let setting = Setting::open(artifact.source(), Habits::default(), TIMES, 1 << 30).await;
    setting.registry.rule(Rule::mixture("/blobs/", SHARE, seed, faults));
    let readers = (0..READERS as u64).map(|reader| reads_of(&setting, &artifact, seed << 8 | reader));
    let mut sum = Sum::default();
    for one in join_all(readers).await {
        sum += one;
    }
    sum.requests = setting.registry.log("/blobs/").len();
    sum.given = Given::of(&setting.registry);
    setting.end(&format!("seed {seed}")).await;
    sum
}

/// Random reads, one after the other.
async fn reads_of(setting: &Setting, artifact: &Artifact, seed: u64) -> Sum {
    let mut dice = vec![0; READS * 8 * 3];
    sample::fill(&mut dice, seed.wrapping_mul(977).wrapping_add(3));
    let numbers: Vec<usize> =
        dice.chunks(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap()) as usize).collect();
    let mut sum = Sum::default();
    for three in numbers.chunks(3) {
        let (file, start) = (three[0] % FILES, three[1] % SIZE);
        let len = 1 + three[2] % (SIZE - start);
        let path = &artifact.files[file].path;
        sum.reads += 1;
        match setting.read(path, start as u64, len as u64).await {
            Ok(got) => sum.wrong += usize::from(got != artifact.bytes(file)[start..start + len]),
            Err(error) => sum.errors.push(format!("{path} bytes {start}+{len}: {error:?}")),
        }
    }
    sum
}
