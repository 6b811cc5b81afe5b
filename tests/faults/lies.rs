//! Bytes that are wrong under a right head, of a model that cannot tell at once: seen when the layer is complete, and never kept.

use std::time::Duration;

use weightfs::Kind;
use weightfs::testing::registry::{Fault, Habits, Rule};

use super::setting::{Artifact, Form, PATIENCE, Setting, Times};
use crate::support::pack::Packing;
use crate::support::wait;

const TIMES: Times = Times { deadline: Duration::from_secs(30), stall: Duration::from_secs(2) };
const SIZE: usize = (2 << 20) + 777;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plain_layer_of_which_a_chunk_is_a_lie_is_poisoned_when_it_is_complete_and_nothing_of_it_is_kept() {
    let artifact = Artifact::of(2, SIZE, Packing::Raw, Form::Plain);
    for lie in [Fault::Flip(77), Fault::Shifted(1), Fault::Zeros, Fault::Swap(artifact.digest(1))] {
        let setting = Setting::open(artifact.source(), Habits::default(), TIMES, 1 << 30).await;
        // The middle chunk is asked for once, and the answer is a lie.
        let path = &artifact.files[0].path;
        setting.read(path, 0, 1 << 20).await.unwrap();
        setting.registry.rule(Rule::once(format!("/blobs/{}", artifact.digest(0)), lie.clone()));
        setting.read(path, 1 << 20, 1 << 20).await.unwrap();
        // Its end completes the layer; who reads it may be served before the proof has failed.
        let _either_way = setting.read(path, 2 << 20, 777).await;
        poisoned(&setting, path, &lie).await;
        let other = setting.read(&artifact.files[1].path, 0, SIZE as u64).await.unwrap();
        assert!(other == artifact.bytes(1), "{lie:?}: the other layer is none the worse");
        // What is kept is written behind the replies, and what is given up goes behind them too.
        let right = artifact.bytes(1);
        wait::until("nothing of it is kept", PATIENCE, || kept_alone(&setting, right));
        setting.model.close().await;
        assert!(kept_alone(&setting, right), "{lie:?}: once all is written");
        setting.end(&format!("{lie:?}")).await;
    }
}

/// Whether the store has an image of a file that is `right`, or of some of its chunks, and of none besides. Chunks that are not
/// there are holes.
fn kept_alone(setting: &Setting, right: &[u8]) -> bool {
    const CHUNK: usize = 1 << 20;
    let is_hole = |chunk: &[u8]| chunk.iter().all(|byte| *byte == 0);
    let images = setting.images();
    let honest = |image: &Vec<u8>| {
        let mut chunks = image.chunks(CHUNK).zip(right.chunks(CHUNK));
        !is_hole(image) && chunks.all(|(kept, right)| is_hole(kept) || kept.starts_with(right))
    };
    !images.is_empty() && images.iter().all(honest)
}

/// Waits until the layer is given up, and makes sure that reads of its file say why.
async fn poisoned(setting: &Setting, path: &str, lie: &Fault) {
    let mut told = setting.model.loader.poisonings();
    let layer = tokio::time::timeout(PATIENCE, told.recv()).await;
    assert_eq!(layer.unwrap_or_else(|_| panic!("{lie:?}: never found out")), Some(0));
    let error = setting.read(path, 0, 100).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity, "{lie:?}: {error}");
}
