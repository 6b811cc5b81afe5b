//! A blob larger than the store, read from end to end while tokens and signed addresses live two seconds.

use std::time::{Duration, Instant};

use weightfs::range::StoredRange;
use weightfs::testing::registry::{Door, Habits, Source, Synthetic, Tokens};

use super::figures::{self, Given};
use super::setting::{Setting, Times};
use crate::support::pack::{self, Content, Dialect, File, Packing};
use crate::support::scratch;

const MIB: u64 = 1 << 20;
const LIFE: Duration = Duration::from_secs(2);
const TIMES: Times = Times { deadline: Duration::from_secs(60), stall: Duration::from_secs(15) };
/// The most that the store may keep.
const ROOM: u64 = 2 << 30;
/// What is read at once.
const STEP: u64 = 4 * MIB;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_blob_is_read_through_while_tokens_and_addresses_end_all_the_time() {
    let size = super::scale("WEIGHTFS_TEST_STREAM_MIB", 1024) * MIB + 4_711;
    let (folder, blob) = tokio::task::spawn_blocking(move || artifact(size)).await.unwrap();
    let source = Source::layout(folder.path().to_owned()).unwrap().with([blob]);
    let tokens = Tokens { told: LIFE.as_secs(), ..Tokens::for_everybody() };
    let habits = Habits { door: Door::Tokens(tokens), storage: Some(LIFE) };
    let setting = Setting::open(source, habits, TIMES, (size / 4).min(ROOM)).await;
    let begun = Instant::now();
    let (mut wrong, mut errors) = (Vec::new(), Vec::new());
    for at in (0..size).step_by(STEP as usize) {
        let due = StoredRange::new(at, (at + STEP).min(size));
        match setting.read("model.safetensors", at, STEP).await {
            Ok(got) if got == Synthetic::bytes(due) => {}
            Ok(_) => wrong.push(at),
            Err(error) => errors.push(format!("at {at}: {error:?}")),
        }
    }
    let took = begun.elapsed();
    let tokens = setting.registry.log("/token").len() as u128;
    println!(
        "{} MiB in {} reads, {}; {} wrong, {} errors; {} tokens in {} lives of one, {} addresses, {} requests for bytes; {}",
        size / MIB,
        size.div_ceil(STEP),
        Given::of(&setting.registry),
        wrong.len(),
        errors.len(),
        tokens,
        took.as_millis() / LIFE.as_millis(),
        setting.registry.log("/blobs/").len(),
        setting.registry.storage().unwrap().log("/blobs/").len(),
        figures::seconds(took),
    );
    assert!(wrong.is_empty() && errors.is_empty(), "wrong at {wrong:?}, errors {errors:#?}");
    // A token is renewed when a quarter of its life is left; before the first read there was one.
    let most = took.as_millis() / (LIFE.as_millis() * 3 / 4) + 2;
    assert!(tokens <= most, "{tokens} tokens in {took:?}");
    setting.end("the stream").await;
}

/// A layout whose one layer is made as it is read.
fn artifact(size: u64) -> (tempfile::TempDir, Synthetic) {
    let folder = scratch::roomy();
    let content = Content::made(0, size);
    let Content::Made(blob) = content.clone() else { unreachable!("as it was made") };
    let file = File { path: "model.safetensors".to_owned(), content };
    pack::pack(&[file], Packing::Raw, Dialect::Upstream, folder.path()).write_layout(folder.path(), "v1");
    (folder, blob)
}
