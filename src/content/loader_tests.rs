//! What the loader promises, over a repository in memory and a store in a temporary folder.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::flight::Urgency;
use super::fresh::Reader;
use super::lanes::Lane;
use super::prefetch::stream::Reach;
use super::{Config, Held, Integrity, Loader, Standing, Store, StoreConfig, Warm};
use crate::error::Kind;
use crate::index::{CHUNK, ChunkDigest, Coding, Entry, EntryKind, ExtentId, Gap, Index, Layer};
use crate::metrics::Metrics;
use crate::range::ContentRange;
use crate::repository::around::Around;
use crate::repository::memory::Memory;
use crate::repository::{Pace, Repository};

/// Bytes that repeat nowhere within a test.
pub(super) fn content(seed: u64, len: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(usize::try_from(len).unwrap()).collect()
}

/// Files of a layer, 512 bytes of header before each and of padding at the end, which nobody has read.
pub(super) struct Laid {
    pub(super) extents: Vec<ContentRange>,
    pub(super) gaps: Vec<Gap>,
    pub(super) entries: Vec<Entry>,
    /// The layer's length.
    pub(super) len: u64,
}

/// Files of these sizes, whose names end so.
pub(super) fn laid(sizes: &[u64], ending: &str) -> Laid {
    let (mut at, mut extents, mut gaps, mut entries) = (0, Vec::new(), Vec::new(), Vec::new());
    let gap = |at: u64| Gap { range: ContentRange::new(at, at + 512), bytes: None };
    for (extent, size) in sizes.iter().enumerate() {
        gaps.push(gap(at));
        extents.push(ContentRange::new(at + 512, at + 512 + size));
        at += 512 + size;
        let kind = EntryKind::File { extent: Some(id(extent)), size: *size };
        entries.push(Entry { path: format!("{extent}.{ending}"), kind, mode: 0, mtime: 0, layer: 0 });
    }
    gaps.push(gap(at));
    Laid { extents, gaps, entries, len: at + 512 }
}

/// The digests of all chunks of the files that lie here in a layer's content, as a section of an index.
pub(super) fn chunk_digests(content: &[u8], extents: &[ContentRange]) -> Vec<u8> {
    let chunks = extents.iter().flat_map(|extent| slice(content, *extent).chunks(1 << 20));
    chunks.flat_map(|chunk| *ChunkDigest::of(chunk).bytes()).collect()
}

/// A loader whose store, of so many bytes, is in `dir`.
pub(super) fn loader_in(
    dir: &tempfile::TempDir,
    budget: u64,
    repository: Arc<dyn Repository>,
    index: &Arc<Index>,
    config: Config,
) -> Arc<Loader> {
    let store = StoreConfig { folder: dir.path().join("store"), size: Some(budget) };
    let store = Store::open(&store).unwrap();
    Loader::new(repository, Arc::clone(index), store, config, Arc::new(Metrics::default()))
}

/// One layer with files of these sizes, 512 bytes of header before each and of padding at the end.
struct Model {
    repository: Arc<Memory>,
    layer: Vec<u8>,
    index: Arc<Index>,
    dir: tempfile::TempDir,
    budget: u64,
}

impl Model {
    fn new(sizes: &[u64]) -> Self {
        let Laid { extents, mut gaps, entries, len } = laid(sizes, "safetensors");
        let layer = content(sizes.len() as u64, len);
        let repository = Arc::new(Memory::new());
        let blob = repository.put(layer.clone());
        // Headers are read where an index is derived; what is behind the last file is not.
        for gap in gaps.iter_mut().rev().skip(1) {
            gap.bytes = Some(Bytes::copy_from_slice(slice(&layer, gap.range)));
        }
        let described = Layer {
            blob,
            media_type: String::new(),
            diff_id: None,
            coding: Coding::Stored,
            extents,
            gaps,
            bound: None,
        };
        let index = Arc::new(Index { entries, layers: vec![described], warnings: Vec::new() });
        Self { repository, layer, index, dir: tempfile::tempdir().unwrap(), budget: 1 << 30 }
    }

    fn loader(&self, config: Config) -> Arc<Loader> {
        loader_in(&self.dir, self.budget, Arc::clone(&self.repository) as _, &self.index, config)
    }

    fn file(&self, extent: usize) -> &[u8] {
        slice(&self.layer, self.index.layers[0].extents[extent])
    }

    fn image(&self, extent: usize) -> std::path::PathBuf {
        let layer = &self.index.layers[0];
        let range = layer.extents[extent];
        let name = format!("{}-{}.data", range.start(), range.len());
        self.home().join(name)
    }

    /// The layer's folder in the store: shared once it is proved.
    fn home(&self) -> std::path::PathBuf {
        let hex = self.index.layers[0].blob.digest.hex();
        let folders = std::fs::read_dir(self.dir.path().join("store/layers/sha256")).unwrap();
        let mut homes: Vec<_> = folders.map(|folder| folder.unwrap().path()).collect();
        homes.retain(|home| home.file_name().is_some_and(|name| name.to_str().unwrap().starts_with(hex)));
        homes.sort();
        homes.swap_remove(0)
    }

    /// Serves the layer with one byte of a file flipped.
    fn corrupt(&self, extent: usize, at: u64) {
        let mut wrong = self.layer.clone();
        wrong[usize::try_from(self.index.layers[0].extents[extent].start() + at).unwrap()] ^= 1;
        self.repository.replace(&self.index.layers[0].blob.digest, wrong);
    }
}

pub(super) fn slice(all: &[u8], range: ContentRange) -> &[u8] {
    &all[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()]
}

pub(super) const fn id(extent: usize) -> ExtentId {
    ExtentId { layer: 0, extent }
}

pub(super) fn plain() -> Config {
    Config { warm: Warm::None, ..Config::default() }
}

pub(super) fn strict() -> Config {
    Config { integrity: Integrity::Strict, ..plain() }
}

pub(super) async fn read_all(loader: &Arc<Loader>, extent: usize) -> crate::Result<Bytes> {
    loader.read(id(extent), ContentRange::new(0, u64::MAX)).await
}

/// Waits for what another thread does, looking often; half a minute is for machines under load.
pub(super) async fn until(what: impl Fn() -> bool) {
    for _ in 0..15_000 {
        if what() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("it did not happen");
}

/// Waits until no request is under way: a read that joins one hears what that one was told, be it of bytes that are right by now.
pub(super) async fn quiet(loader: &Loader) {
    until(|| loader.board.is_quiet()).await;
}

/// Puts a file in the place of the store. What is being kept at this moment may make the folder anew: then again.
pub(super) async fn vanish(store: &std::path::Path) {
    until(|| std::fs::remove_dir_all(store).is_ok() && std::fs::write(store, b"a file").is_ok()).await;
}

pub(super) async fn whole(loader: &Arc<Loader>, extent: usize) -> Held {
    until(|| loader.hold(id(extent)).whole().is_some()).await;
    loader.hold(id(extent))
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_at_the_disks_pace_once_memory_is_full_of_what_waits_for_it() {
    // The clock stands still while anything is at work.
    let took = async |chunks: u64| {
        let model = Model::new(&[chunks * CHUNK]);
        let loader = model.loader(Config { memory: 128 * CHUNK, ..plain() });
        loader.keeper.hang();
        let fetching = Arc::clone(&loader);
        let ahead = tokio::spawn(async move { fetching.fetch_run(id(0), 0..chunks, Lane::Ahead).await });
        until(|| loader.board.knows((id(0), 0))).await;
        let began = tokio::time::Instant::now();
        assert!(read_all(&loader, 0).await.unwrap() == model.file(0));
        ahead.abort();
        began.elapsed()
    };
    assert!(took(60).await < Duration::from_secs(1));
    assert!(took(70).await >= Duration::from_secs(1));
}

/// A loader that brings all of the layer, and whose repository answers through a gate.
fn pulled(model: &Model) -> (Arc<Loader>, Arc<Semaphore>, JoinHandle<crate::Result<()>>) {
    let (loader, gate) = (model.loader(plain()), model.repository.gate());
    let bringing = Arc::clone(&loader);
    let bring = async move { bringing.bring(0, &bringing.files_of(0), &(Arc::new(|_| {}) as _)).await };
    (loader, gate, tokio::spawn(bring))
}

#[tokio::test(flavor = "multi_thread")]
async fn of_small_files_more_are_pulled_beside_one_another() {
    let model = Model::new(&[CHUNK; 24]);
    let (loader, gate, bringing) = pulled(&model);
    let pace = model.repository.pace();
    assert!(pace.small > pace.requests);
    let asked = model.repository.requested(pace.small as u64 - 1);
    tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap();
    gate.close();
    bringing.await.unwrap().unwrap();
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pulled_is_asked_for_in_order_by_as_many_requests_as_the_pace_says() {
    let model = Model::new(&[64 * CHUNK]);
    let (loader, gate, bringing) = pulled(&model);
    let pace = model.repository.pace();
    // One turn is left to who waits for a chunk.
    let asked = model.repository.requested(pace.requests as u64 - 1);
    tokio::time::timeout(Duration::from_secs(60), asked).await.unwrap();
    until(|| loader.board.knows((id(0), 15))).await;
    let known = (0..64).filter(|chunk| loader.board.knows((id(0), *chunk))).count();
    assert_eq!(known, 16, "no more than that is begun with");
    gate.close();
    bringing.await.unwrap().unwrap();
    assert!(std::fs::read(loader.image(id(0)).unwrap()).unwrap() == model.file(0));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn any_range_is_the_layers_bytes() {
    let model = Model::new(&[1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]);
    for config in [plain(), Config::default(), strict()] {
        let loader = model.loader(config);
        for extent in 0..5 {
            let file = model.file(extent);
            let len = file.len() as u64;
            let edges = [0, 1, 4095, CHUNK - 1, CHUNK, CHUNK + 1, len.saturating_sub(1), len, len + 5];
            for (start, end) in edges.iter().flat_map(|start| edges.map(|end| (*start, end))) {
                let range = ContentRange::new(start, end);
                let bytes = loader.read(id(extent), range).await.unwrap();
                let expected = ContentRange::new(start.min(len), end.min(len));
                assert_eq!(bytes, slice(file, expected), "{extent} {range}");
                if let Some(ready) = loader.ready(id(extent), range) {
                    assert_eq!(ready, bytes);
                }
            }
        }
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_readers_of_a_chunk_cost_one_request_and_the_next_mount_none() {
    let model = Model::new(&[2 * CHUNK]);
    let loader = model.loader(plain());
    let readers: Vec<_> = (0..32)
        .map(|reader| {
            let loader = Arc::clone(&loader);
            tokio::spawn(async move {
                loader.read(id(0), ContentRange::new(reader * 100, reader * 100 + 50)).await
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert_eq!(model.repository.requests(), 1);
    until(|| loader.share().kept == CHUNK).await;
    loader.close().await;
    let loader = model.loader(plain());
    assert_eq!(
        loader.read(id(0), ContentRange::new(5, 10)).await.unwrap(),
        slice(model.file(0), ContentRange::new(5, 10))
    );
    assert_eq!(model.repository.requests(), 1);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_complete_is_proved_and_its_files_may_be_given_to_the_kernel() {
    // Read backwards, so that the proof reads most of it back from the store.
    for order in [[0, 1, 2], [2, 1, 0]] {
        let model = Model::new(&[CHUNK + 5, 3 * CHUNK, 100]);
        let loader = model.loader(plain());
        assert!(loader.hold(id(0)).whole().is_none());
        for extent in order {
            read_all(&loader, extent).await.unwrap();
        }
        for extent in order {
            let held = whole(&loader, extent).await;
            assert!(held.whole().is_some());
            assert_eq!(std::fs::read(model.image(extent)).unwrap(), model.file(extent));
        }
        assert_eq!(loader.standing(0), Standing::Proved);
        loader.close().await;
        let next = model.loader(plain());
        assert!(next.hold(id(1)).whole().is_some(), "known to the next process at once");
        next.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_byte_in_the_registry_poisons_the_layer_when_it_is_complete() {
    let model = Model::new(&[2 * CHUNK, 100]);
    model.corrupt(0, CHUNK + 9);
    let loader = model.loader(plain());
    let mut poisonings = loader.poisonings();
    read_all(&loader, 0).await.unwrap();
    assert_eq!(loader.standing(0), Standing::Unproved);
    let _ = read_all(&loader, 1).await;
    assert_eq!(poisonings.recv().await, Some(0));
    assert_eq!(read_all(&loader, 0).await.unwrap_err().kind(), Kind::Integrity);
    assert!(loader.ready(id(0), ContentRange::new(0, 10)).is_none());
    until(|| loader.share().kept == 0 && !model.image(0).exists()).await;
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_that_served_the_same_bytes_learns_of_the_poison() {
    let model = Model::new(&[2 * CHUNK, 100]);
    model.corrupt(0, 9);
    let (one, two) = (model.loader(plain()), model.loader(plain()));
    let mut poisonings = two.poisonings();
    two.read(id(0), ContentRange::new(0, 10)).await.unwrap();
    read_all(&one, 0).await.unwrap();
    let _ = read_all(&one, 1).await;
    assert_eq!(poisonings.recv().await, Some(0));
    for loader in [one, two] {
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_serves_no_byte_of_a_wrong_layer_and_all_of_a_right_one() {
    let model = Model::new(&[2 * CHUNK, 100]);
    let loader = model.loader(strict());
    assert_eq!(
        loader.read(id(1), ContentRange::new(0, 5)).await.unwrap(),
        slice(model.file(1), ContentRange::new(0, 5))
    );
    assert_eq!(loader.standing(0), Standing::Proved);
    loader.close().await;

    let model = Model::new(&[2 * CHUNK, 100]);
    model.corrupt(0, 9);
    let loader = model.loader(strict());
    for extent in [1, 0] {
        assert_eq!(read_all(&loader, extent).await.unwrap_err().kind(), Kind::Integrity);
    }
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_in_the_store_is_never_served() {
    use std::os::unix::fs::FileExt;
    let model = Model::new(&[3 * CHUNK]);
    let loader = model.loader(plain());
    read_all(&loader, 0).await.unwrap();
    whole(&loader, 0).await;
    let image = std::fs::OpenOptions::new().write(true).open(model.image(0)).unwrap();
    image.write_all_at(&[!model.file(0)[5]], 5).unwrap();
    assert!(loader.hold(id(0)).whole().is_none(), "not handed to the kernel any more");
    loader.close().await;
    let before = loader.metrics.store_mismatches.value();
    let loader = model.loader(plain());
    assert!(loader.hold(id(0)).whole().is_none());
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    assert!(before + loader.metrics.store_mismatches.value() > 0, "found by whoever read it back first");
    // Healed, read back as a whole and sealed again.
    whole(&loader, 0).await;
    assert_eq!(std::fs::read(model.image(0)).unwrap(), model.file(0));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_that_read_at_once_fetch_once() {
    let model = Model::new(&[24 * CHUNK]);
    let (one, two) = (model.loader(Config::default()), model.loader(Config::default()));
    let read = |loader: Arc<Loader>| async move {
        for chunk in 0..24 {
            let range = ContentRange::new(chunk * CHUNK, (chunk + 1) * CHUNK);
            loader.read(id(0), range).await.unwrap();
        }
    };
    tokio::join!(read(Arc::clone(&one)), read(Arc::clone(&two)));
    let fetched = one.metrics.fetched_bytes.value() + two.metrics.fetched_bytes.value();
    assert_eq!(fetched, 24 * CHUNK);
    for loader in [one, two] {
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_in_the_store_reads_are_right_all_the_same() {
    let mut model = Model::new(&[6 * CHUNK]);
    model.budget = 2 * CHUNK;
    let loader = model.loader(Config { memory: 0, ..plain() });
    for _ in 0..2 {
        assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    }
    until(|| loader.metrics.unkept_bytes.value() >= 4 * CHUNK).await;
    assert!(loader.share().kept <= 2 * CHUNK);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_vanishes_costs_no_byte() {
    let model = Model::new(&[6 * CHUNK]);
    let loader = model.loader(plain());
    loader.read(id(0), ContentRange::new(0, CHUNK)).await.unwrap();
    // A chunk may be on its way into the folder: then it is tried again.
    vanish(&model.dir.path().join("store")).await;
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    assert_ne!(loader.standing(0), Standing::Poisoned);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_bytes_on_a_second_fetch_are_an_error_and_never_mixed_in() {
    let mut model = Model::new(&[4 * CHUNK]);
    model.budget = 0;
    let loader = model.loader(Config { memory: 0, ..plain() });
    for chunk in 0..4 {
        // One after the other, so that the first is not in memory any more when all are done with.
        loader.read(id(0), ContentRange::new(chunk * CHUNK, (chunk + 1) * CHUNK)).await.unwrap();
        until(|| loader.metrics.unkept_bytes.value() == (chunk + 1) * CHUNK).await;
    }
    model.corrupt(0, 5);
    assert_eq!(read_all(&loader, 0).await.err().map(|error| error.kind()), Some(Kind::Integrity));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_readers_bring_before_its_turn_has_come_is_neither_fetched_again_nor_read_back() {
    let model = Model::new(&[8 * CHUNK]);
    let loader = model.loader(Config { memory: 0, ..plain() });
    let led = loader.lanes.enter(Lane::Ahead, &Urgency::default(), 4).await;
    let warming = tokio::spawn({
        let loader = Arc::clone(&loader);
        async move { loader.fetch_missing(id(0), ContentRange::new(0, 8 * CHUNK), Lane::Background).await }
    });
    until(|| loader.lanes.waiting() > 0).await;
    assert!(loader.board.is_quiet(), "nobody is to wait for what waits for its turn");
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    // The proof reads back what came out of order.
    drop(whole(&loader, 0).await);
    let counts = || (loader.metrics.fetched_bytes.value(), loader.metrics.store_reads.value());
    let before = counts();
    drop(led);
    warming.await.unwrap().unwrap();
    assert_eq!(counts(), before);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_reads_that_wait() {
    let model = Model::new(&[4 * CHUNK]);
    let _gate = model.repository.gate();
    let loader = model.loader(Config::default());
    let reader = tokio::spawn({
        let loader = Arc::clone(&loader);
        async move { read_all(&loader, 0).await }
    });
    model.repository.requested(1).await;
    loader.close().await;
    assert!(reader.await.unwrap().is_err());
    assert!(read_all(&loader, 0).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_of_the_registry_is_the_readers_and_is_not_remembered() {
    let model = Model::new(&[4 * CHUNK]);
    let failing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let switch = Arc::clone(&failing);
    model.repository.fail_with(move |_, _| {
        let fail = switch.load(std::sync::atomic::Ordering::Relaxed);
        fail.then(|| crate::Error::new(Kind::Broken, "cut"))
    });
    let loader = model.loader(plain());
    let error = read_all(&loader, 0).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Broken);
    assert!(error.to_string().contains("0.safetensors"), "{error}");
    quiet(&loader).await;
    failing.store(false, std::sync::atomic::Ordering::Relaxed);
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_all_brings_everything_and_proves_it() {
    let model = Model::new(&[5 * CHUNK + 3, 10, 2 * CHUNK]);
    let loader = model.loader(Config { warm: Warm::All, ..Config::default() });
    loader.warm();
    until(|| loader.standing(0) == Standing::Proved).await;
    let share = loader.share();
    assert_eq!(share.kept, share.total);
    loader.close().await;
}

impl Model {
    /// A loader on the same store for another place, with what is there.
    fn elsewhere(&self, repository: &Arc<Memory>) -> Arc<Loader> {
        let store = Store::open(&StoreConfig { folder: self.dir.path().join("store"), size: None }).unwrap();
        let elsewhere = Arc::new(Elsewhere(Arc::clone(repository)));
        Loader::new(elsewhere, Arc::clone(&self.index), store, plain(), Arc::new(Metrics::default()))
    }

    /// A place that names the layer in a manifest, but has not its bytes.
    fn liar(&self) -> Arc<Memory> {
        let liar = Arc::new(Memory::new());
        liar.replace(&self.index.layers[0].blob.digest, vec![0; self.layer.len()]);
        liar
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kept_bytes_are_shown_only_to_a_place_that_has_them() {
    let model = Model::new(&[3 * CHUNK]);
    let liar = model.liar();
    // Before anything is kept, so that having come first gives no right either.
    let early = model.elsewhere(&liar);
    let _ = read_all(&early, 0).await;
    early.close().await;
    let loader = model.loader(plain());
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0), "others' bytes do no harm");
    whole(&loader, 0).await;
    loader.close().await;
    let loader = model.elsewhere(&liar);
    assert!(loader.hold(id(0)).whole().is_none());
    assert!(read_all(&loader, 0).await.map_or(true, |bytes| bytes.iter().all(|byte| *byte == 0)));
    assert!(loader.hold(id(0)).whole().is_none());
    loader.close().await;
    // Another that has them is asked for one chunk, and may see the rest.
    let before = model.repository.bytes();
    let loader = model.elsewhere(&model.repository);
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    assert_eq!(model.repository.bytes() - before, CHUNK);
    assert!(loader.hold(id(0)).whole().is_some());
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_place_that_opens_before_it_reads_shares_the_layer_and_takes_nothing_away() {
    let model = Model::new(&[3 * CHUNK, 100]);
    let first = model.loader(plain());
    for extent in 0..2 {
        read_all(&first, extent).await.unwrap();
    }
    whole(&first, 0).await;
    let before = model.repository.bytes();
    let second = model.elsewhere(&model.repository);
    // As the kernel does it: open, then read; and something loaded ahead besides.
    let held = second.hold(id(0));
    second.fetch_missing(id(1), ContentRange::new(0, 100), Lane::Ahead).await.unwrap();
    assert_eq!(read_all(&second, 0).await.unwrap(), model.file(0));
    assert!(model.repository.bytes() - before <= CHUNK + 100, "asked for one chunk at most");
    assert_eq!(second.standing(0), Standing::Proved);
    assert!(second.hold(id(0)).whole().is_some() && first.hold(id(0)).whole().is_some());
    drop(held);
    for loader in [first, second] {
        loader.close().await;
    }
}

impl Model {
    /// The layer with another header before its first file, and the index with names that were read from it.
    fn renamed(&self) -> (Vec<u8>, Arc<Index>) {
        let (mut renamed, mut index) = (self.layer.clone(), Index::clone(&self.index));
        renamed[0] ^= 1;
        let gap = &mut index.layers[0].gaps[0];
        gap.bytes = Some(Bytes::copy_from_slice(slice(&renamed, gap.range)));
        (renamed, Arc::new(index))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_names_from_other_headers_than_a_layer_was_proved_with_goes_by_his_own_bytes() {
    for config in [plain(), strict()] {
        let model = Model::new(&[2 * CHUNK, 100]);
        let honest = model.loader(plain());
        for extent in 0..2 {
            read_all(&honest, extent).await.unwrap();
        }
        until(|| honest.standing(0) == Standing::Proved).await;
        let (renamed, index) = model.renamed();
        let forger = Arc::new(Memory::new());
        forger.replace(&model.index.layers[0].blob.digest, renamed);
        let elsewhere = Arc::new(Elsewhere(Arc::clone(&forger)));
        let is_strict = config.integrity == Integrity::Strict;
        let evil = loader_in(&model.dir, model.budget, elsewhere, &index, config);
        let first = evil.read(id(0), ContentRange::new(0, 1)).await;
        assert_eq!(first.is_err(), is_strict, "{first:?}");
        if !is_strict {
            assert_eq!((evil.standing(0), forger.bytes()), (Standing::Unproved, CHUNK), "shown nothing");
            let _before_the_verdict = read_all(&evil, 0).await;
            let _before_the_verdict = read_all(&evil, 1).await;
        }
        until(|| evil.standing(0) == Standing::Poisoned).await;
        evil.close().await;
        // The others have what they had.
        assert_eq!(honest.standing(0), Standing::Proved);
        let asked = model.repository.requests();
        let next = model.loader(plain());
        assert_eq!((next.standing(0), next.share().kept), (Standing::Proved, 2 * CHUNK + 100));
        assert_eq!(read_all(&next, 0).await.unwrap(), model.file(0));
        assert_eq!(model.repository.requests(), asked);
        for loader in [honest, next] {
            loader.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_with_other_headers_learns_no_proof_of_its_own_place_neither_while_it_is_made_nor_after() {
    let model = Model::new(&[2 * CHUNK, 100]);
    let (_, index) = model.renamed();
    let misled = || loader_in(&model.dir, model.budget, Arc::clone(&model.repository) as _, &index, plain());
    let (honest, beside) = (model.loader(plain()), misled());
    beside.read(id(0), ContentRange::new(0, 1)).await.unwrap();
    for extent in 0..2 {
        read_all(&honest, extent).await.unwrap();
    }
    until(|| honest.standing(0) == Standing::Proved).await;
    let after = misled();
    assert_eq!(after.standing(0), Standing::Unproved, "it may be seen, and is not believed");
    let asked = model.repository.bytes();
    for loader in [&beside, &after] {
        for extent in 0..2 {
            if let Ok(bytes) = read_all(loader, extent).await {
                assert_eq!(bytes, model.file(extent));
            }
        }
        until(|| loader.standing(0) == Standing::Poisoned).await;
    }
    // What each reads behind the last file is the prover's, since nobody has.
    assert!(model.repository.bytes() - asked <= 2 * 512, "what is here is right");
    assert_eq!((honest.standing(0), honest.share().kept), (Standing::Proved, 2 * CHUNK + 100));
    for loader in [honest, beside, after] {
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_serves_nothing_unproved_when_the_store_fails_under_a_proved_layer() {
    let model = Model::new(&[2 * CHUNK]);
    let loader = model.loader(plain());
    read_all(&loader, 0).await.unwrap();
    whole(&loader, 0).await;
    loader.close().await;
    // A folder where the image should be: nobody can open it.
    let image = model.image(0);
    std::fs::remove_file(&image).unwrap();
    std::fs::create_dir(&image).unwrap();
    model.corrupt(0, 9);
    let loader = model.loader(strict());
    let read = read_all(&loader, 0).await.map(|bytes| (bytes == model.file(0), loader.standing(0)));
    assert!(read.is_err(), "{read:?}");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_fetches_again_what_the_store_has_damaged() {
    let model = Model::new(&[4 * CHUNK, 100]);
    let loader = model.loader(plain());
    read_all(&loader, 0).await.unwrap();
    until(|| loader.share().kept == 4 * CHUNK).await;
    loader.close().await;
    // The marks are on the disk, the data is not: what a power failure leaves.
    std::fs::write(model.image(0), vec![0; usize::try_from(4 * CHUNK).unwrap()]).unwrap();
    let loader = model.loader(strict());
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_is_worth_nothing_without_the_digests_it_was_made_of() {
    let model = Model::new(&[2 * CHUNK]);
    let loader = model.loader(plain());
    read_all(&loader, 0).await.unwrap();
    whole(&loader, 0).await;
    loader.close().await;
    for ending in ["digests", "data", "kept"] {
        std::fs::remove_file(model.image(0).with_extension(ending)).unwrap();
    }
    model.corrupt(0, CHUNK + 9);
    // A deferred reader fetches a chunk, whose digest goes on record, and is gone.
    let loader = model.loader(plain());
    loader.read(id(0), ContentRange::new(CHUNK, CHUNK + 5)).await.unwrap();
    assert_eq!(loader.standing(0), Standing::Unproved);
    until(|| loader.share().kept == CHUNK).await;
    loader.close().await;
    let loader = model.loader(strict());
    assert_eq!(read_all(&loader, 0).await.unwrap_err().kind(), Kind::Integrity);
    assert!(loader.hold(id(0)).whole().is_none());
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_record_that_nobody_was_served_from_gives_way_to_what_the_registry_says() {
    let model = Model::new(&[2 * CHUNK]);
    let right = model.layer.clone();
    model.corrupt(0, 9);
    let loader = model.loader(plain());
    loader.read(id(0), ContentRange::new(0, 5)).await.unwrap();
    until(|| loader.share().kept == CHUNK).await;
    loader.close().await;
    model.repository.replace(&model.index.layers[0].blob.digest, right);
    std::fs::remove_file(model.image(0)).unwrap();
    let loader = model.loader(plain());
    assert_eq!(read_all(&loader, 0).await.unwrap(), model.file(0));
    assert_eq!(loader.standing(0), Standing::Unproved);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_room_in_the_store_nothing_is_fetched_in_vain() {
    let mut model = Model::new(&[96 * CHUNK]);
    model.budget = 0;
    let loader = model.loader(Config { warm: Warm::All, ..Config::default() });
    for chunk in 0..96 {
        loader.read(id(0), ContentRange::new(chunk * CHUNK, (chunk + 1) * CHUNK)).await.unwrap();
    }
    assert!(model.repository.bytes() <= 100 * CHUNK, "{} MiB", model.repository.bytes() / CHUNK);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn descriptors_stay_few_and_idle_files_are_closed() {
    let model = Model::new(&[10; 300]);
    let open = || {
        let folder = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = folder.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        targets.filter(|target| target.starts_with(model.dir.path())).count()
    };
    let loader = model.loader(plain());
    for extent in 0..300 {
        loader.read(id(extent), ContentRange::new(0, 10)).await.unwrap();
    }
    assert!(open() <= 4 * 60, "{}", open());
    until(|| loader.standing(0) == Standing::Proved).await;
    until(|| open() == 0).await;
    loader.close().await;
}

/// The same bytes under another identity.
#[derive(Debug)]
pub(super) struct Elsewhere(pub(super) Arc<Memory>);

impl Around for Elsewhere {
    fn inner(&self) -> &dyn Repository {
        &*self.0
    }

    fn place(&self) -> String {
        "elsewhere".into()
    }

    fn identity(&self) -> String {
        "elsewhere".into()
    }
}

/// The same bytes over a line that wants so much under way ahead of a reader.
#[derive(Debug)]
struct Wide(Arc<Memory>, u64);

impl Around for Wide {
    fn inner(&self) -> &dyn Repository {
        &*self.0
    }

    fn pace(&self) -> Pace {
        Pace { window: self.1, ..Pace::default() }
    }
}

#[tokio::test]
async fn readers_are_led_as_far_as_the_line_asks_and_memory_may_hold() {
    let model = Model::new(&[CHUNK]);
    for (wanted, memory, window, held) in
        [(32, 128, 32, 32), (96, 128, 96, 96), (96, 64, 64, 64), (96, 4, 32, 4)]
    {
        let line: Arc<dyn Repository> = Arc::new(Wide(Arc::clone(&model.repository), wanted * CHUNK));
        let config = Config { memory: memory * CHUNK, ..plain() };
        let loader = loader_in(&model.dir, model.budget, line, &model.index, config);
        assert_eq!(loader.reach(0), Reach { window: window * CHUNK, eager: 0 }, "{wanted} in {memory}");
        loader.read(id(0), ContentRange::new(0, 100)).await.unwrap();
        let word = Bytes::from_static(b"x");
        let elsewhere = |chunk| (ExtentId { layer: 1, extent: 0 }, chunk);
        (0..128).for_each(|chunk| loader.board.publish(elsewhere(chunk), &word, Reader::Any));
        let here = (0..128).filter(|chunk| loader.board.knows(elsewhere(*chunk))).count();
        assert_eq!(here as u64, held, "{wanted} in {memory}");
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn small_reads_of_what_is_kept_are_answered_at_once_and_never_with_bytes_that_somebody_wrote_there() {
    let model = Model { dir: beside_the_build(), ..Model::new(&[8 * CHUNK + 100]) };
    let loader = model.loader(Config { memory: 4 * CHUNK, ..plain() });
    let _open = loader.hold(id(0));
    let page = |at: u64| ContentRange::new(at, at + 4096);
    let right = |at: u64| slice(model.file(0), page(at));
    // All but the last chunk: the file does not become whole.
    for chunk in 0..8 {
        assert_eq!(loader.read(id(0), page(chunk * CHUNK)).await.unwrap(), right(chunk * CHUNK));
    }
    let is_idle = || !loader.sums.busy.load(std::sync::atomic::Ordering::Acquire);
    until(|| loader.share().kept == 8 * CHUNK && is_idle()).await;
    // Brought back from the store, and remembered; what is in memory now are others.
    assert_eq!(loader.read(id(0), page(CHUNK + 4096)).await.unwrap(), right(CHUNK + 4096));
    for chunk in 4..8 {
        loader.read(id(0), page(chunk * CHUNK)).await.unwrap();
    }
    let at = CHUNK + 77 * 4096 + 5;
    until(|| loader.ready(id(0), page(at)).is_some()).await;
    assert_eq!(loader.ready(id(0), page(at)).unwrap(), right(at));
    assert!(loader.metrics.instant_reads.value() > 0);
    flip(&model.image(0), at);
    assert!(loader.ready(id(0), page(at)).is_none());
    assert_eq!(loader.read(id(0), page(at)).await.unwrap(), right(at));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_file_is_read_at_once_and_as_a_whole_until_somebody_touches_it() {
    let model = Model { dir: beside_the_build(), ..Model::new(&[6 * CHUNK + 100]) };
    let loader = model.loader(Config { memory: 4 * CHUNK, ..plain() });
    read_all(&loader, 0).await.unwrap();
    let _open = whole(&loader, 0).await;
    let across = ContentRange::new(CHUNK / 2, CHUNK / 2 + CHUNK);
    // What somebody has just read the page cache has, as far as nobody needed the memory.
    until(|| loader.ready(id(0), across).is_some() || std::fs::read(model.image(0)).is_err()).await;
    assert_eq!(loader.ready(id(0), across).unwrap(), slice(model.file(0), across));
    let before = loader.metrics.instant_reads.value();
    assert!(before > 0);
    flip(&model.image(0), CHUNK + 5);
    assert!(loader.ready(id(0), across).is_none());
    assert_eq!(loader.read(id(0), across).await.unwrap(), slice(model.file(0), across));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_readers_get_and_what_they_wait_for_is_counted() {
    let model = Model::new(&[2 * CHUNK]);
    let loader = model.loader(plain());
    let counted = || {
        let metrics = &loader.metrics;
        [&metrics.served_bytes, &metrics.waited_chunks].map(|counter| counter.value())
    };
    let page = ContentRange::new(CHUNK - 100, CHUNK + 100);
    loader.read(id(0), page).await.unwrap();
    assert_eq!(counted(), [200, 2]);
    assert!(loader.metrics.waited_microseconds.value() > 0);
    // Both chunks are in memory now, and nobody waits for what is there.
    loader.read(id(0), page).await.unwrap();
    assert!(loader.ready(id(0), ContentRange::new(0, 50)).is_some());
    assert_eq!(counted(), [450, 2]);
    loader.close().await;
}

/// A folder on a real disk: not every file system of temporary files says what it has in the page cache.
fn beside_the_build() -> tempfile::TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

/// Turns the bits of one byte of a file.
fn flip(path: &std::path::Path, at: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}
