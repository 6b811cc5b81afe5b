//! What an index of a compressed layer costs to make: the whole pass (decoding, archive, windows, digests of chunks, spans and
//! stored bytes) over a gzip and a zstd layer of weights.
//!
//! `cargo bench --bench index -- pipe` goes over 256 MiB (`gzip -6`) beside `gzip -dc | sha256sum`, once each in turn.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a bench fails by panicking")]
#![allow(clippy::cast_precision_loss, reason = "sizes of benches fit")]
#![allow(clippy::print_stdout, reason = "a ratio of two programs is no figure that criterion prints")]

mod common;

use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest as _, Sha256};
use weightfs::index::pass::{Digesting, Event, Pass, Spacing};
use weightfs::oci::manifest::Manifest;
use weightfs::oci::{Artifact, Descriptor, Digest};

const PIECE: usize = 256 << 10;

/// A tar of one file of weights.
fn archive(len: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.safetensors"), common::weights(len)).unwrap();
    let tar = Command::new("tar").args(["-C"]).arg(folder.path()).args(["-c", "model.safetensors"]).output();
    tar.unwrap().stdout
}

/// The whole way of `index build` but for network and file: gives the bytes of windows and of the table.
fn indexed(suffix: &str, stored: &[u8], spacing: u64) -> (usize, usize) {
    let descriptor = Descriptor {
        media_type: format!("application/vnd.cncf.model.weight.v1.tar+{suffix}"),
        digest: Digest::of(b""),
        size: 0,
        annotations: std::collections::BTreeMap::new(),
    };
    let artifact = Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() }).unwrap();
    let mut pass = Pass::new(&artifact.layers[0], 0, Spacing::new(spacing).unwrap()).unwrap();
    let (mut digests, mut windows, mut hasher) = (Digesting::default(), 0, Sha256::new());
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Content { extent, bytes, .. } => digests.update(extent, bytes),
            Event::Window(window) => windows += window.len(),
            Event::Extent(..) | Event::Entry(_) => {}
        }
        Ok(())
    };
    for piece in stored.chunks(PIECE) {
        hasher.update(piece);
        pass.step(piece, &mut sink).unwrap();
    }
    let passed = pass.finish(&mut sink).unwrap();
    black_box((digests.finish(), hasher.finalize()));
    (windows, passed.table.len())
}

fn build(c: &mut Criterion) {
    let content = archive(32 << 20);
    let mut group = c.benchmark_group("index");
    group.sample_size(10).throughput(Throughput::Bytes(content.len().try_into().unwrap()));
    for (suffix, arguments) in [("gzip", ["-6", "-c"]), ("zstd", ["-3", "-c"])] {
        let stored = common::through(suffix, &arguments, &content);
        for spacing in [1 << 20, 4 << 20] {
            let name = format!("build/{suffix}/{}MiB", spacing >> 20);
            group.bench_function(name, |b| b.iter(|| indexed(suffix, &stored, spacing)));
        }
    }
    group.finish();
}

/// Beside the two programs that do the same but for the index; the best of three, in turn.
fn pipe(c: &mut Criterion) {
    // Only where it is asked for by name: it takes a minute.
    if !std::env::args().any(|argument| argument == "pipe") {
        return;
    }
    let content = archive(256 << 20);
    let stored = common::through("gzip", &["-6", "-c"], &content);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &stored).unwrap();
    let (mut ours, mut theirs, mut sizes) = (Duration::MAX, Duration::MAX, (0, 0));
    for _ in 0..3 {
        let begun = Instant::now();
        let script = format!("gzip -dc < {} | sha256sum", file.path().display());
        assert!(Command::new("sh").args(["-c", &script]).stdout(Stdio::null()).status().unwrap().success());
        theirs = theirs.min(begun.elapsed());
        let begun = Instant::now();
        sizes = indexed("gzip", &std::fs::read(file.path()).unwrap(), 4 << 20);
        ours = ours.min(begun.elapsed());
    }
    let share = (sizes.0 + sizes.1) as f64 / content.len() as f64;
    println!(
        "index build {ours:?}, gzip -dc | sha256sum {theirs:?}: {:.2} of its speed; index {:.2} % of the content",
        theirs.as_secs_f64() / ours.as_secs_f64(),
        share * 100.0
    );
    c.bench_function("pipe", |b| b.iter(|| ()));
}

criterion_group!(benches, build, pipe);
criterion_main!(benches);
