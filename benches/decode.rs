//! What decoding costs: the pass over a gzip file against plain inflate of the same bytes, and a span at random.
//!
//! `cargo bench --bench decode -- pipe` also goes over 256 MiB (`gzip -6`) beside `gzip -dc | sha256sum`, once each in turn.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a bench fails by panicking")]
#![allow(clippy::print_stdout, reason = "a ratio of two programs is no figure that criterion prints")]

mod common;

use std::hint::black_box;
use std::io::Read;
use std::process::Command;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sha2::{Digest, Sha256};
use weightfs::codec::gzip::{Decoder, Scanner, Spacing, Table};
use weightfs::range::ContentRange;
use zlib_rs::{Inflate, InflateFlush, Status};

const PIECE: usize = 256 << 10;

fn gzip(content: &[u8]) -> Vec<u8> {
    common::through("gzip", &["-6", "-c"], content)
}

/// The pass over what `stored` gives; every piece of content goes to `content`. Gives the table and the windows' bytes.
fn pass(mut stored: impl Read, spacing: u64, mut content: impl FnMut(&[u8])) -> (Table, Vec<u8>) {
    let mut scanner = Scanner::new(Spacing::new(spacing).unwrap()).unwrap();
    let (mut piece, mut room, mut windows) = (vec![0; PIECE], vec![0; PIECE], Vec::new());
    loop {
        let len = stored.read(&mut piece).unwrap();
        if len == 0 {
            return (scanner.finish().unwrap(), windows);
        }
        let mut rest = &piece[..len];
        loop {
            let moved = scanner.step(rest, &mut room).unwrap();
            content(&room[..moved.written]);
            rest = &rest[moved.read..];
            windows.extend(scanner.take_windows().concat());
            if rest.is_empty() && moved.written < room.len() {
                break;
            }
        }
    }
}

fn plain(stored: &[u8], room: &mut [u8]) {
    let mut inflate = Inflate::new(true, 31);
    let mut rest = stored;
    loop {
        let before = inflate.total_in();
        let status = inflate.decompress(rest, room, InflateFlush::NoFlush).unwrap();
        rest = &rest[usize::try_from(inflate.total_in() - before).unwrap()..];
        black_box(&room);
        if status == Status::StreamEnd {
            return;
        }
    }
}

fn once(c: &mut Criterion) {
    let content = common::weights(32 << 20);
    let (stored, mut room) = (gzip(&content), vec![0; PIECE]);
    let mut group = c.benchmark_group("gzip, 32 MiB of weights");
    group.sample_size(10).throughput(Throughput::Bytes(content.len() as u64));
    group.bench_function("plain inflate with its CRC", |b| b.iter(|| plain(&stored, &mut room)));
    for (name, spacing) in [("pass, 4 MiB spans", 4 << 20), ("pass, 1 MiB spans", 1 << 20)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                pass(&stored[..], spacing, |piece| {
                    black_box(piece);
                })
            })
        });
    }
    group.finish();
}

fn random(c: &mut Criterion) {
    let content = common::weights(32 << 20);
    let stored = gzip(&content);
    let (table, windows) = pass(&stored[..], 1 << 20, |_| ());
    let mut room = vec![0; PIECE];
    let slice = |start: u64, end: u64| usize::try_from(start).unwrap()..usize::try_from(end).unwrap();
    let mut group = c.benchmark_group("gzip, 1 MiB spans");
    for (name, at) in [("4 KiB in the middle of a span", 512 << 10), ("4 KiB at its start", 0)] {
        let mut span = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                span = 1 + (span + 7) % (table.len() - 2);
                let start = table.content(span).start() + at;
                let wanted = ContentRange::new(start, start + 4096);
                let window =
                    table.window(span).map(|place| &windows[slice(place.range.start(), place.range.end())]);
                let mut decoder = Decoder::new(&table, window, wanted).unwrap();
                let mut rest = &stored[slice(decoder.stored().start(), decoder.stored().end())];
                while !decoder.is_done() {
                    let moved = decoder.step(rest, &mut room).unwrap();
                    rest = &rest[moved.read..];
                }
            })
        });
    }
    let half = gzip(&content[..512 << 10]);
    group.bench_function("plain inflate of half a span", |b| b.iter(|| plain(&half, &mut room)));
    group.finish();
}

/// The pass and a digest of the content, in one thread, beside two programs that share the cores.
fn pipe(c: &mut Criterion) {
    if !std::env::args().any(|argument| argument == "pipe") {
        return;
    }
    let len = 256 << 20;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("weights.gz");
    std::fs::write(&path, gzip(&common::weights(len))).unwrap();
    for spacing in [4 << 20, 1 << 20] {
        let (mut of_pass, mut of_pipe) = (Duration::MAX, Duration::MAX);
        let mut share = 0;
        for _ in 0..3 {
            let began = Instant::now();
            let line = format!("gzip -dc '{}' | sha256sum", path.display());
            let theirs = Command::new("sh").args(["-c", &line]).output().unwrap().stdout;
            of_pipe = of_pipe.min(began.elapsed());
            let (began, mut sha) = (Instant::now(), Sha256::new());
            let (table, windows) =
                pass(std::fs::File::open(&path).unwrap(), spacing, |piece| sha.update(piece));
            of_pass = of_pass.min(began.elapsed());
            let ours: String = sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            assert!(String::from_utf8(theirs).unwrap().starts_with(&ours));
            share = table.encode().len() + windows.len();
        }
        let ratio = of_pipe.as_secs_f64() / of_pass.as_secs_f64();
        let thousandths = share * 100_000 / len;
        println!(
            "spans of {spacing}: pass {of_pass:?}, pipe {of_pipe:?}: {ratio:.2} of its speed; 0.001 % of content: {thousandths}"
        );
    }
    c.bench_function("pipe", |b| b.iter(|| ()));
}

criterion_group!(benches, once, random, pipe);
criterion_main!(benches);
