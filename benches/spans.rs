//! What reading a compressed layer costs as readers meet it: through the loader, from memory, beside the plain programs.
//!
//! `cargo bench --bench spans` prints ratios of one run: a sequential read of an indexed zstd layer beside `zstd -dc` on as
//! many cores, and reads of 4 KiB here and there in an indexed layer beside decoding half a span.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a bench fails by panicking")]
#![allow(
    clippy::print_stdout,
    clippy::cast_precision_loss,
    reason = "ratios of programs are no figures that criterion prints"
)]

mod common;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use weightfs::codec::{gzip, zstd};
use weightfs::content::{Config, Loader, Store, StoreConfig, Warm};
use weightfs::index::{
    Bound, ChunkDigest, Coding, Compression, Entry, EntryKind, ExtentId, Home, Index, Layer, Section, Spans,
};
use weightfs::metrics::Metrics;
use weightfs::oci::Digest;
use weightfs::range::{ContentRange, StoredRange};
use weightfs::repository::Memory;
use zlib_rs::{Inflate, InflateFlush, Status};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 256 * MIB;
const READS: u64 = 200;
const ID: ExtentId = ExtentId { layer: 0, extent: 0 };

/// A layer of one file in memory, with all that an index says of it.
struct Sample {
    repository: Arc<Memory>,
    index: Arc<Index>,
    stored: Vec<u8>,
    content: Vec<u8>,
}

impl Sample {
    fn new(how: Compression, content: Vec<u8>, stored: Vec<u8>, table: &[u8], windows: &[u8]) -> Self {
        let chunks: Vec<u8> =
            content.chunks(1 << 20).flat_map(|chunk| *ChunkDigest::of(chunk).bytes()).collect();
        let repository = Arc::new(Memory::new());
        let blob = repository.put(stored.clone());
        let home = Home::Repository(repository.put([&chunks[..], table, windows].concat()));
        let mut end = 0;
        let mut section = |bytes: &[u8]| {
            let range = StoredRange::new(end, end + bytes.len() as u64);
            end = range.end();
            Section { home: home.clone(), range, digest: Digest::of(bytes), bytes: None }
        };
        let (chunks, table) = (section(&chunks), section(table));
        let checkpoints = (!windows.is_empty()).then(|| section(windows));
        let spans = Spans { how, content: content.len() as u64, table, checkpoints };
        let kept_as = blob.digest.clone();
        let layer = Layer {
            blob,
            media_type: String::new(),
            diff_id: None,
            coding: Coding::Spans(Box::new(spans)),
            extents: vec![ContentRange::new(0, content.len() as u64)],
            gaps: Vec::new(),
            bound: Some(Bound { chunks, kept_as }),
        };
        let kind = EntryKind::File { extent: Some(ID), size: content.len() as u64 };
        let entries = vec![Entry { path: "model.bin".into(), kind, mode: 0, mtime: 0, layer: 0 }];
        let index = Arc::new(Index { entries, layers: vec![layer], warnings: Vec::new() });
        Self { repository, index, stored, content }
    }

    fn loader(
        &self,
        folder: &std::path::Path,
        config: Config,
        budget: Option<u64>,
    ) -> (Arc<Loader>, Arc<Metrics>) {
        let store = Store::open(&StoreConfig { folder: folder.to_owned(), size: budget }).unwrap();
        let metrics = Arc::new(Metrics::default());
        let repository = Arc::clone(&self.repository) as _;
        (Loader::new(repository, Arc::clone(&self.index), store, config, Arc::clone(&metrics)), metrics)
    }
}

/// Frames of 1 MiB, of which the table joins so many bytes of content to a span.
fn zstd_sample(span: u64) -> Sample {
    let content = common::halving(usize::try_from(SIZE).unwrap());
    let (mut writer, mut stored) = (zstd::Writer::new(3, span).unwrap(), Vec::new());
    writer.push(&content, &mut stored).unwrap();
    let table = writer.finish(&mut stored).unwrap().encode();
    Sample::new(Compression::Zstd, content, stored, &table, &[])
}

fn gzip_sample() -> Sample {
    let content = common::halving(usize::try_from(SIZE / 2).unwrap());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights");
    std::fs::write(&path, &content).unwrap();
    let stored = Command::new("gzip").args(["-6", "-c"]).arg(&path).output().unwrap().stdout;
    let mut scanner = gzip::Scanner::new(gzip::Spacing::new(MIB).unwrap()).unwrap();
    let (mut rest, mut windows, mut room) = (&stored[..], Vec::new(), vec![0; 1 << 20]);
    loop {
        let moved = scanner.step(rest, &mut room).unwrap();
        rest = &rest[moved.read..];
        windows.extend(scanner.take_windows().concat());
        if rest.is_empty() && moved.written < room.len() {
            break;
        }
    }
    let table = scanner.finish().unwrap().encode();
    Sample::new(Compression::Gzip, content, stored, &table, &windows)
}

/// User and system time of this process so far.
fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let time = |value: nix::sys::time::TimeVal| {
        Duration::new(value.tv_sec().try_into().unwrap(), u32::try_from(value.tv_usec()).unwrap() * 1000)
    };
    time(usage.user_time()) + time(usage.system_time())
}

/// `zstd -dc` of a part of the blob on each core at once: all cores decode, as ours do.
fn theirs(sample: &Sample, folder: &std::path::Path, threads: usize) -> Duration {
    let part = sample.stored.len().div_ceil(threads);
    // Cut at frames: each part is written again as frames of its own.
    let content = sample.content.len().div_ceil(threads);
    let paths: Vec<_> = (0..threads)
        .map(|number| {
            let (mut writer, mut stored) = (zstd::Writer::new(3, 4 * MIB).unwrap(), Vec::with_capacity(part));
            let piece = &sample.content[number * content..((number + 1) * content).min(sample.content.len())];
            writer.push(piece, &mut stored).unwrap();
            writer.finish(&mut stored).unwrap();
            let path = folder.join(format!("part{number}.zst"));
            std::fs::write(&path, stored).unwrap();
            path
        })
        .collect();
    let began = Instant::now();
    let children: Vec<_> = paths
        .iter()
        .map(|path| Command::new("zstd").arg("-dcq").arg(path).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    began.elapsed()
}

async fn sequential(sample: &Sample, budget: Option<u64>) -> (Duration, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let (loader, _) = sample.loader(&folder.path().join("store"), Config::default(), budget);
    let (began, before) = (Instant::now(), cpu());
    for at in 0..SIZE / MIB {
        let range = ContentRange::new(at * MIB, (at + 1) * MIB);
        let bytes = loader.read(ID, range).await.unwrap();
        std::hint::black_box(&bytes);
    }
    let took = (began.elapsed(), cpu() - before);
    loader.close().await;
    took
}

async fn here_and_there(sample: &Sample) -> (u64, Duration) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { warm: Warm::None, ..Config::default() };
    let (loader, metrics) = sample.loader(&folder.path().join("store"), config, None);
    loader.read(ID, ContentRange::new(MIB + 5, MIB + 6)).await.unwrap();
    let (fetched, before, mut at) = (metrics.fetched_bytes.value(), cpu(), 7_u64);
    for _ in 0..READS {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let start = MIB + (at >> 33) % ((sample.content.len() as u64 - 2 * MIB) / 4096) * 4096;
        let bytes = loader.read(ID, ContentRange::new(start, start + 4096)).await.unwrap();
        let from = usize::try_from(start).unwrap();
        assert!(bytes == sample.content[from..from + 4096]);
    }
    let took = ((metrics.fetched_bytes.value() - fetched) / READS, cpu() - before);
    loader.close().await;
    took
}

/// Decoding half a frame by itself.
fn half_a_frame(content: &[u8]) -> Duration {
    let stored = ::zstd::bulk::compress(&content[..512 << 10], 3).unwrap();
    let (mut room, before) = (vec![0; 512 << 10], cpu());
    for _ in 0..READS {
        ::zstd::bulk::decompress_to_buffer(&stored, &mut room).unwrap();
    }
    cpu() - before
}

/// Inflating half a span by itself.
fn half_a_span(content: &[u8]) -> Duration {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half");
    std::fs::write(&path, &content[..512 << 10]).unwrap();
    let stored = Command::new("gzip").args(["-6", "-c"]).arg(&path).output().unwrap().stdout;
    let (mut room, before) = (vec![0; 256 << 10], cpu());
    for _ in 0..READS {
        let (mut inflate, mut rest) = (Inflate::new(true, 31), &stored[..]);
        loop {
            let read = inflate.total_in();
            let status = inflate.decompress(rest, &mut room, InflateFlush::NoFlush).unwrap();
            rest = &rest[usize::try_from(inflate.total_in() - read).unwrap()..];
            if status == Status::StreamEnd {
                break;
            }
        }
    }
    cpu() - before
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let threads = std::thread::available_parallelism().unwrap().get();
    let sample = zstd_sample(4 * MIB);
    let folder = tempfile::tempdir().unwrap();
    for (name, budget) in [("kept", None), ("not kept", Some(0))] {
        let (mut ours, mut used, mut plain) = (Duration::MAX, Duration::MAX, Duration::MAX);
        for _ in 0..3 {
            plain = plain.min(theirs(&sample, folder.path(), threads));
            let (took, cpu) = runtime.block_on(sequential(&sample, budget));
            (ours, used) = (ours.min(took), used.min(cpu));
        }
        let ratio = plain.as_secs_f64() / ours.as_secs_f64();
        println!(
            "zstd in sequence, {name}: {ours:?} ({used:?} of processors), zstd -dc on {threads} cores {plain:?}: {ratio:.2} of its speed"
        );
    }
    drop(sample);
    let sample = zstd_sample(MIB);
    let half = half_a_frame(&sample.content);
    report("zstd here and there", runtime.block_on(here_and_there(&sample)), half, &sample);
    drop(sample);
    let sample = gzip_sample();
    let half = half_a_span(&sample.content);
    report("gzip here and there", runtime.block_on(here_and_there(&sample)), half, &sample);
}

/// What 4 KiB cost, in spans of 1 MiB and in decoding half of one.
fn report(name: &str, (fetched, cpu): (u64, Duration), half: Duration, sample: &Sample) {
    let span = sample.stored.len() as f64 / (sample.content.len() as f64 / MIB as f64);
    println!(
        "{name}: {:.2} spans fetched for 4 KiB; {:?} of processors, {:.2} of decoding half a span",
        fetched as f64 / span,
        cpu / u32::try_from(READS).unwrap(),
        cpu.as_secs_f64() / half.as_secs_f64()
    );
}
