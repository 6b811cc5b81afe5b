//! What zstd layers cost: the pass over one, a span at random, and writing one.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "a bench fails by panicking")]

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weightfs::codec::zstd::{Compressor, Decoder, FRAME, Scanner, Writer};
use zstd::zstd_safe::{DCtx, InBuffer, OutBuffer};

const SIZE: usize = 64 << 20;
/// What is pushed and taken at once, by all that stream.
const PIECE: usize = 1 << 20;

fn one_frame(content: &[u8]) -> Vec<u8> {
    let mut stored = Vec::new();
    Compressor::new(3).unwrap().frame(content, &mut stored).unwrap();
    stored
}

fn plain(stored: &[u8], buffer: &mut [u8]) {
    let mut context = DCtx::create();
    let mut from = InBuffer::around(stored);
    while from.pos() < stored.len() {
        context.decompress_stream(&mut OutBuffer::around(&mut *buffer), &mut from).unwrap();
    }
}

fn scan(stored: &[u8], buffer: &mut [u8]) {
    let mut scanner = Scanner::new(1 << 20).unwrap();
    for mut piece in stored.chunks(PIECE) {
        loop {
            let moved = scanner.push(piece, buffer).unwrap();
            piece = piece.get(moved.stored..).unwrap();
            if piece.is_empty() && moved.content < buffer.len() {
                break;
            }
        }
    }
    black_box(scanner.finish().unwrap());
}

fn pass(c: &mut Criterion) {
    let content = common::halving(SIZE);
    let (mut writer, mut seekable) = (Writer::new(3, 1 << 20).unwrap(), Vec::new());
    writer.push(&content, &mut seekable).unwrap();
    writer.finish(&mut seekable).unwrap();
    let mut buffer = vec![0; PIECE];
    let mut group = c.benchmark_group("zstd");
    group.sample_size(10).throughput(Throughput::Bytes(u64::try_from(SIZE).unwrap()));
    for (form, stored) in [("one frame", one_frame(&content)), ("frames of 1 MiB", seekable)] {
        group.bench_function(format!("plain, {form}"), |b| b.iter(|| plain(&stored, &mut buffer)));
        group.bench_function(format!("scan, {form}"), |b| b.iter(|| scan(&stored, &mut buffer)));
    }
    group.finish();
}

fn span(c: &mut Criterion) {
    let stored = one_frame(&common::halving(FRAME));
    let (mut decoder, mut content) = (Decoder::new().unwrap(), vec![0; FRAME]);
    let mut group = c.benchmark_group("zstd");
    group.throughput(Throughput::Bytes(u64::try_from(FRAME).unwrap()));
    group.bench_function("a span of 1 MiB", |b| b.iter(|| decoder.span(&stored, &mut content).unwrap()));
    group.finish();
}

fn write(c: &mut Criterion) {
    let content = common::halving(SIZE / 4);
    let mut group = c.benchmark_group("zstd");
    group.sample_size(10).throughput(Throughput::Bytes(u64::try_from(content.len()).unwrap()));
    for level in [1, 3] {
        group.bench_function(format!("write at level {level}"), |b| {
            b.iter(|| {
                let (mut writer, mut stored) = (Writer::new(level, 1 << 20).unwrap(), Vec::new());
                writer.push(&content, &mut stored).unwrap();
                writer.finish(&mut stored).unwrap();
                stored
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pass, span, write);
criterion_main!(benches);
