//! What a read costs where nothing has to be fetched: the path that is walked most.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a bench fails by panicking"
)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weightfs::buffer::Pool;
use weightfs::content::prefetch::stream::Streams;
use weightfs::content::store::kept::KeptFile;
use weightfs::content::verify::Verified;
use weightfs::content::{Config, Loader, Store, StoreConfig, Warm};
use weightfs::fs::{NodeId, Tree};
use weightfs::index::{CHUNK, Coding, Entry, EntryKind, ExtentId, Index, Layer};
use weightfs::metrics::Metrics;
use weightfs::range::ContentRange;
use weightfs::repository::Memory;

fn chunk() -> bytes::Bytes {
    let mut filling = Pool::default().take(1 << 20);
    filling.push(&vec![7; usize::try_from(CHUNK).unwrap()]);
    filling.share()
}

fn verify(c: &mut Criterion) {
    let bytes = chunk();
    let known = Verified::check(bytes.clone(), None).unwrap().digest();
    let mut group = c.benchmark_group("verify");
    group.throughput(Throughput::Bytes(CHUNK));
    group.bench_function("chunk", |b| {
        b.iter(|| Verified::check(black_box(bytes.clone()), Some(known)).unwrap())
    });
    group.finish();
}

fn kept(c: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let file = KeptFile::open(&dir.path().join("0-1"), 4 * CHUNK).unwrap();
    file.write(1, &[Verified::check(chunk(), None).unwrap()]).unwrap();
    let pool = Pool::default();
    let mut group = c.benchmark_group("kept");
    group.throughput(Throughput::Bytes(CHUNK));
    group.bench_function("read and verify a chunk", |b| b.iter(|| file.read(1, &pool, || ()).unwrap()));
    group.finish();
}

fn planner(c: &mut Criterion) {
    c.bench_function("plan of a sequential read", |b| {
        let (mut streams, mut at) = (Streams::default(), 0);
        b.iter(|| {
            at = (at + CHUNK) % (1 << 34);
            black_box(streams.observe(ContentRange::new(at, at + CHUNK), 1 << 34, None))
        });
    });
}

fn loader(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let _within = runtime.enter();
    let (dir, repository) = (tempfile::tempdir().unwrap(), Arc::new(Memory::new()));
    let blob = repository.put(vec![5; usize::try_from(4 * CHUNK).unwrap()]);
    let id = ExtentId { layer: 0, extent: 0 };
    let kind = EntryKind::File { extent: Some(id), size: blob.size };
    let entry = Entry { path: "model.safetensors".into(), kind, mode: 0, mtime: 0, layer: 0 };
    let extents = vec![ContentRange::new(0, blob.size)];
    let (media_type, coding) = (String::new(), Coding::Stored);
    let layer = Layer { blob, media_type, diff_id: None, coding, extents, gaps: Vec::new(), bound: None };
    let index = Arc::new(Index { entries: vec![entry], layers: vec![layer], warnings: Vec::new() });
    let store = Store::open(&StoreConfig { folder: dir.path().join("store"), size: Some(1 << 30) }).unwrap();
    let config = Config { warm: Warm::None, ..Config::default() };
    let loader = Loader::new(repository, index, store, config, Arc::new(Metrics::default()));
    let range = ContentRange::new(4096, 8192);
    runtime.block_on(loader.read(id, range)).unwrap();
    c.bench_function("4 KiB of a chunk in memory", |b| {
        b.iter(|| loader.ready(id, black_box(range)).unwrap())
    });
    runtime.block_on(loader.close());
}

/// A file of a terabyte, of which every chunk is said to be here.
fn large(c: &mut Criterion) {
    const CHUNKS: u64 = 1_000_000;
    let dir = tempfile::tempdir().unwrap();
    let stem = dir.path().join("0-1");
    drop(KeptFile::open(&stem, CHUNKS * CHUNK).unwrap());
    let empty = std::fs::metadata(stem.with_added_extension("kept")).unwrap().len();
    let mut marks = vec![0; usize::try_from(empty).unwrap()];
    marks.resize(marks.len() + 64 + usize::try_from(CHUNKS).unwrap(), 1);
    std::fs::write(stem.with_added_extension("kept"), marks).unwrap();
    c.bench_function("open a kept file of 10^6 chunks", |b| {
        b.iter(|| KeptFile::open(&stem, CHUNKS * CHUNK).unwrap());
    });
    let file = KeptFile::open(&stem, CHUNKS * CHUNK).unwrap();
    c.bench_function("look for all of its chunks", |b| b.iter(|| black_box(file.all()).len()));
}

/// Names among 4,096.
fn names(c: &mut Criterion) {
    let file = |number: usize| Entry {
        path: format!("model-{number:05}-of-04096.safetensors"),
        kind: EntryKind::File { extent: None, size: 0 },
        mode: 0,
        mtime: 0,
        layer: 0,
    };
    let index = Index { entries: (0..4096).map(file).collect(), ..Index::default() };
    let tree = Tree::build(&index, &mut Vec::new()).unwrap();
    let mut at = 0;
    c.bench_function("look a name up among 4,096", |b| {
        b.iter(|| {
            at = (at + 1709) % 4096;
            tree.lookup(NodeId::ROOT, black_box(index.entries[at].path.as_bytes())).unwrap()
        });
    });
}

criterion_group!(benches, verify, kept, large, names, planner, loader);
criterion_main!(benches);
