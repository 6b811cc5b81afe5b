//! Many reads while nearly every third request meets some fault: no wrong byte, and no error.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use weightfs::testing::registry::{Fault, Habits, Rule};

use super::kinds;
use super::setting::{Artifact, Form, Setting, Times};
use crate::support::pack::Packing;
use crate::support::sample;

const TIMES: Times = Times { deadline: Duration::from_secs(60), stall: Duration::from_millis(500) };
/// The share of requests that meet a fault.
const SHARE: f64 = 0.3;
const READERS: usize = 32;
/// The reads of each reader before the store is emptied, so that there is something to fetch.
const READS: usize = 32;
const FILES: usize = 512;
const SIZE: usize = 6_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_packed_model_is_read_right_while_a_third_of_the_requests_meet_any_fault() {
    let artifact = Artifact::of(FILES, SIZE, Packing::OneTar, Form::Packed);
    let faults: Vec<_> = kinds::passing()
        .into_iter()
        .chain(kinds::lies(kinds::At::Registry).into_iter().map(|row| row.fault))
        .collect();
    read(artifact, faults).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_model_is_read_right_while_a_third_of_the_requests_meet_a_fault_that_shows() {
    let artifact = Artifact::of(FILES, SIZE, Packing::OneTar, Form::Plain);
    read(artifact, kinds::passing()).await;
}

async fn read(artifact: Artifact, faults: Vec<Fault>) {
    let seed = super::scale("WEIGHTFS_TEST_SEED", 5);
    let reads = super::scale("WEIGHTFS_TEST_READS", 10_000) as usize;
    println!("seed {seed}, {reads} reads, {} kinds of faults", faults.len());
    let artifact = Arc::new(artifact);
    let mut requests = 0;
    for round in 0..reads.div_ceil(READERS * READS) {
        let setting = Setting::open(artifact.source(), Habits::default(), TIMES, 1 << 30).await;
        setting.registry.rule(Rule::mixture("/blobs/", SHARE, seed + round as u64, faults.clone()));
        join_all(
            (0..READERS)
                .map(|reader| reads_of(&setting, &artifact, seed ^ (round * READERS + reader) as u64)),
        )
        .await;
        requests += setting.registry.log("/blobs/").len();
        setting.end(&format!("seed {seed}, round {round}")).await;
    }
    println!("{requests} requests");
    assert!(requests > reads / 4, "{requests} requests: the reads were answered from the store");
}

/// Random reads, one after the other.
async fn reads_of(setting: &Setting, artifact: &Artifact, seed: u64) {
    let mut dice = vec![0; READS * 8 * 3];
    sample::fill(&mut dice, seed.wrapping_mul(977).wrapping_add(3));
    let numbers: Vec<usize> =
        dice.chunks(8).map(|eight| u64::from_le_bytes(eight.try_into().unwrap()) as usize).collect();
    for three in numbers.chunks(3) {
        let (file, start) = (three[0] % FILES, three[1] % SIZE);
        let len = 1 + three[2] % (SIZE - start);
        let path = &artifact.files[file].path;
        let got = setting.read(path, start as u64, len as u64).await;
        let got = got.unwrap_or_else(|error| panic!("{path} bytes {start}+{len}: {error:?}"));
        assert!(got == artifact.bytes(file)[start..start + len], "{path} bytes {start}+{len}: wrong bytes");
    }
}
