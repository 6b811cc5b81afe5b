//! What the loader promises of compressed layers whose spans are known: any read agrees with the content, and decodes and
//! fetches little for it; what is wrong is refused by itself.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use tokio::sync::Semaphore;
use zlib_rs::{Deflate, DeflateFlush};

use super::flight::{Flight, Place};
use super::lanes::Lane;
use super::loader_tests::{
    Laid, chunk_digests, id, laid, loader_in, plain, quiet, read_all, slice, until, whole,
};
use super::spans::HELD;
use super::{Config, Loader, Standing, Warm};
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind};
use crate::index::{Bound, CHUNK, Coding, Compression, Home, Index, Layer, Section, Spans};
use crate::oci::{Blob, Digest};
use crate::range::{ContentRange, StoredRange};
use crate::repository::memory::Memory;

const MIB: usize = 1 << 20;

/// How a layer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// One gzip member, with spans of so much content.
    Gzip(u64),
    /// A gzip member every so many bytes, as pigz and bgzip write them.
    Members(usize),
    /// A zstd frame every so many bytes, joined to spans of so much content.
    Frames(usize, u64),
    /// The same, and nobody knows the digests of the spans' stored bytes.
    Places(usize, u64),
    /// One zstd frame.
    OneFrame,
}

/// One compressed layer with files of these sizes, archive headers between them, and an index that the test has made.
struct Compressed {
    repository: Arc<Memory>,
    content: Vec<u8>,
    stored: Vec<u8>,
    index: Arc<Index>,
    index_blob: Vec<u8>,
    dir: tempfile::TempDir,
    budget: u64,
}

/// One byte of two is random, as in weights.
pub(super) fn weights(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 2);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let [a, b, c, ..] = state.to_le_bytes();
        bytes.extend([a, 0x38 + (b & c & 7)]);
    }
    bytes.truncate(len);
    bytes
}

fn member(content: &[u8]) -> Vec<u8> {
    let mut stored = vec![0; 2 * content.len() + 4096];
    let mut deflate = Deflate::new(2, false, 15);
    deflate.compress(content, &mut stored, DeflateFlush::Finish).unwrap();
    stored.truncate(usize::try_from(deflate.total_out()).unwrap());
    let crc = zlib_rs::crc32::crc32(0, content);
    let len = u32::try_from(content.len()).unwrap();
    [&[0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 0, 3], &stored[..], &crc.to_le_bytes(), &len.to_le_bytes()].concat()
}

fn frames(content: &[u8], len: usize) -> Vec<u8> {
    let (mut compressor, mut stored) = (zstd::Compressor::new(1).unwrap(), Vec::new());
    for frame in content.chunks(len) {
        compressor.frame(frame, &mut stored).unwrap();
    }
    stored
}

/// The stored bytes, the table of spans and the windows.
fn written(form: Form, content: &[u8]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let stored = match form {
        Form::Gzip(_) => member(content),
        Form::Members(len) => content.chunks(len).flat_map(member).collect(),
        Form::Frames(len, _) | Form::Places(len, _) => frames(content, len),
        Form::OneFrame => frames(content, content.len()),
    };
    let mut room = vec![0; MIB];
    match form {
        Form::Gzip(_) | Form::Members(_) => {
            let spacing = if let Form::Gzip(spacing) = form { spacing } else { 4 << 20 };
            let mut scanner = gzip::Scanner::new(gzip::Spacing::new(spacing).unwrap()).unwrap();
            let (mut rest, mut windows) = (&stored[..], Vec::new());
            loop {
                let moved = scanner.step(rest, &mut room).unwrap();
                rest = &rest[moved.read..];
                windows.extend(scanner.take_windows().concat());
                if rest.is_empty() && moved.written < room.len() {
                    break;
                }
            }
            let table = scanner.finish().unwrap().encode().to_vec();
            (stored, table, windows)
        }
        Form::Places(len, span) => {
            let mut builder = zstd::Builder::new(span);
            for frame in content.chunks(len) {
                builder.push(frames(frame, len).len() as u64, frame.len() as u64).unwrap();
            }
            (stored, builder.finish().unwrap().encode(), Vec::new())
        }
        Form::Frames(_, _) | Form::OneFrame => {
            let span = if let Form::Frames(_, span) = form { span } else { 1 << 20 };
            let (mut scanner, mut rest) = (zstd::Scanner::new(span).unwrap(), &stored[..]);
            loop {
                let moved = scanner.push(rest, &mut room).unwrap();
                rest = &rest[moved.stored..];
                if rest.is_empty() && moved.content < room.len() {
                    break;
                }
            }
            (stored, scanner.finish().unwrap().encode(), Vec::new())
        }
    }
}

impl Compressed {
    fn new(form: Form, sizes: &[u64]) -> Self {
        let Laid { extents, gaps, entries, len } = laid(sizes, "bin");
        let content = weights(sizes.len() as u64 + 7, usize::try_from(len).unwrap());
        let (stored, table, windows) = written(form, &content);
        let chunks = chunk_digests(&content, &extents);
        let repository = Arc::new(Memory::new());
        let index_blob = [&chunks[..], &table, &windows].concat();
        let (blob, pinned) = (repository.put(stored.clone()), repository.put(index_blob.clone()));
        let mut end = 0;
        let mut section = |bytes: &[u8]| {
            let range = StoredRange::new(end, end + bytes.len() as u64);
            end = range.end();
            Section { home: Home::Repository(pinned.clone()), range, digest: Digest::of(bytes), bytes: None }
        };
        let (chunks, table) = (section(&chunks), section(&table));
        let checkpoints = (!windows.is_empty()).then(|| section(&windows));
        let how = match form {
            Form::Gzip(_) | Form::Members(_) => Compression::Gzip,
            _ => Compression::Zstd,
        };
        let kept_as = Digest::of(format!("{} {}", blob.digest, chunks.digest).as_bytes());
        let described = Layer {
            blob,
            media_type: String::new(),
            diff_id: None,
            coding: Coding::Spans(Box::new(Spans { how, content: content.len() as u64, table, checkpoints })),
            extents,
            gaps,
            bound: Some(Bound { chunks, kept_as }),
        };
        let index = Arc::new(Index { entries, layers: vec![described], warnings: Vec::new() });
        let dir = tempfile::tempdir().unwrap();
        Self { repository, content, stored, index, index_blob, dir, budget: 1 << 30 }
    }

    fn loader(&self, config: Config) -> Arc<Loader> {
        loader_in(&self.dir, self.budget, Arc::clone(&self.repository) as _, &self.index, config)
    }

    fn file(&self, extent: usize) -> &[u8] {
        slice(&self.content, self.index.layers[0].extents[extent])
    }

    fn blob(&self) -> &Blob {
        &self.index.layers[0].blob
    }

    fn spans(&self) -> &Spans {
        match &self.index.layers[0].coding {
            Coding::Spans(spans) => spans,
            _ => unreachable!("the layer has spans"),
        }
    }

    fn index_digest(&self) -> &Digest {
        match &self.spans().table.home {
            Home::Repository(blob) => &blob.digest,
            Home::File(_) => unreachable!("the index is a blob"),
        }
    }

    /// How many of the layer's bytes were asked for.
    fn fetched(&self) -> u64 {
        let ranges = self.repository.ranges();
        let layer = ranges.iter().filter(|(digest, _)| *digest == self.blob().digest);
        layer.map(|(_, range)| range.len()).sum()
    }

    /// Serves the layer with these stored bytes flipped.
    fn corrupt(&self, places: &[usize]) {
        let mut wrong = self.stored.clone();
        places.iter().for_each(|at| wrong[*at] ^= 0x55);
        self.repository.replace(&self.blob().digest, wrong);
    }

    /// Where the table says that a byte of content is decoded from.
    fn span_of(&self, content: u64) -> super::spans::Span {
        let range = self.spans().table.range;
        let bytes =
            &self.index_blob[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()];
        let table = super::spans::Table::decode(self.spans(), bytes, self.stored.len() as u64).unwrap();
        table.at(content).unwrap().1
    }
}

fn forms() -> [Form; 7] {
    [
        Form::Gzip(1 << 20),
        Form::Gzip(4 << 20),
        Form::Members(128 << 10),
        Form::Frames(MIB, 1 << 20),
        Form::Frames(300_000, 4 << 20),
        Form::Places(MIB, 4 << 20),
        Form::OneFrame,
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn any_range_of_a_compressed_layer_is_right_however_it_is_written() {
    for form in forms() {
        let layer = Compressed::new(form, &[1, CHUNK - 1, 3 * CHUNK + 7, 300, CHUNK + 1]);
        let loader = layer.loader(plain());
        assert_eq!(loader.standing(0), Standing::Proved);
        for extent in [2, 0, 4, 1, 3] {
            let len = layer.file(extent).len() as u64;
            let edges = [0, 1, CHUNK - 1, CHUNK + 1, 3 * CHUNK, len.saturating_sub(1), len];
            for (start, end) in edges.iter().rev().flat_map(|start| edges.map(|end| (*start, end))) {
                let range = ContentRange::new(start, end);
                let expected = ContentRange::new(start.min(len), end.min(len));
                let bytes = loader.read(id(extent), range).await.unwrap();
                assert!(bytes == slice(layer.file(extent), expected), "{form:?} {extent} {range}");
            }
        }
        for extent in 0..5 {
            whole(&loader, extent).await;
        }
        loader.close().await;
        layer.repository.fail_with(|_, _| Some(Error::new(Kind::Unreachable, "gone")));
        let loader = layer.loader(plain());
        for extent in 0..5 {
            assert!(
                read_all(&loader, extent).await.unwrap() == layer.file(extent),
                "{form:?} from the store"
            );
        }
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_decoding_passes_is_kept_so_that_a_layer_is_fetched_and_decoded_once() {
    for form in
        [Form::Gzip(4 << 20), Form::Members(128 << 10), Form::Frames(300_000, 4 << 20), Form::OneFrame]
    {
        let layer = Compressed::new(form, &[100, 4 * CHUNK, 2 * CHUNK + 5]);
        let loader = layer.loader(plain());
        for chunk in 0..4 {
            let range = ContentRange::new(chunk * CHUNK, (chunk + 1) * CHUNK);
            let bytes = loader.read(id(1), range).await.unwrap();
            assert!(bytes == slice(layer.file(1), range), "{form:?}");
        }
        assert!(read_all(&loader, 2).await.unwrap() == layer.file(2));
        assert!(read_all(&loader, 0).await.unwrap() == layer.file(0));
        let (size, content) = (layer.stored.len() as u64, layer.content.len() as u64);
        let (fetched, decoded) = (layer.fetched(), loader.metrics.decoded_bytes.value());
        assert!(fetched <= size + size / 2 + (1 << 20), "{form:?}: {fetched} of {size}");
        assert!(decoded <= content + content / 4, "{form:?}: decoded {decoded} of {content}");
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_span_at_once_have_it_fetched_and_decoded_once() {
    for form in [Form::Frames(MIB, 4 << 20), Form::OneFrame, Form::Gzip(4 << 20)] {
        let layer = Compressed::new(form, &[4 * CHUNK - 100_000]);
        let gate = layer.repository.gate();
        let loader = layer.loader(plain());
        let read = |chunk: u64| {
            let loader = Arc::clone(&loader);
            let range = ContentRange::new(chunk * CHUNK, (chunk + 1) * CHUNK - 100_000);
            tokio::spawn(async move { (range, loader.read(id(0), range).await) })
        };
        let readers: Vec<_> = [3, 0, 2, 1, 0, 3].map(read).into();
        layer.repository.requested(1).await;
        gate.close();
        for reader in readers {
            let (range, bytes) = reader.await.unwrap();
            assert!(bytes.unwrap() == slice(layer.file(0), range), "{form:?}");
        }
        let decoded = loader.metrics.decoded_bytes.value();
        assert!(decoded <= 5 * CHUNK + CHUNK / 2, "{form:?}: {decoded}");
        assert!(
            layer.fetched() <= layer.stored.len() as u64 * 5 / 4 + (1 << 20),
            "{form:?}: {}",
            layer.fetched()
        );
        until(|| loader.share().kept == 4 * CHUNK - 100_000).await;
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_huge_frame_is_decoded_once_whoever_reads_where() {
    let layer = Compressed::new(Form::OneFrame, &[32 * CHUNK]);
    assert!(layer.stored.len() as u64 > HELD, "it is not held as a whole");
    let loader = layer.loader(plain());
    let read = |chunk: u64| {
        let loader = Arc::clone(&loader);
        let range = ContentRange::new(chunk * CHUNK + 5, chunk * CHUNK + 100);
        tokio::spawn(async move { (range, loader.read(id(0), range).await) })
    };
    for round in [[7, 3, 11, 1], [12, 20, 2, 25], [30, 31, 0, 13]] {
        for reader in round.map(read) {
            let (range, bytes) = reader.await.unwrap();
            assert!(bytes.unwrap() == slice(layer.file(0), range));
        }
    }
    let decoded = loader.metrics.decoded_bytes.value();
    assert!(decoded <= 34 * CHUNK, "{decoded}");
    assert!(
        layer.fetched() < layer.stored.len() as u64 * 3 / 2,
        "{} of {}",
        layer.fetched(),
        layer.stored.len()
    );
    until(|| loader.share().kept == 32 * CHUNK).await;
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_here_and_there_costs_a_span_and_keeps_nothing() {
    for form in [Form::Gzip(1 << 20), Form::Frames(MIB, 1 << 20)] {
        let layer = Compressed::new(form, &[12 * CHUNK]);
        let loader = layer.loader(plain());
        let span = layer.stored.len() as u64 / 12;
        let mut at = 7_u64;
        for _ in 0..12 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = CHUNK + (at >> 33) % (10 * CHUNK / 4096) * 4096;
            let range = ContentRange::new(start, start + 4096);
            assert!(
                loader.read(id(0), range).await.unwrap() == slice(layer.file(0), range),
                "{form:?} {range}"
            );
        }
        let fetched = layer.fetched();
        assert!(fetched <= 12 * span * 13 / 10, "{form:?}: {fetched} for 12 reads, a span has {span}");
        assert_eq!(loader.share().kept, 0, "{form:?}");
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_a_read_here_and_there_fetch_nothing_and_who_comes_back_gets_the_chunk() {
    let layer = Compressed::new(Form::Gzip(1 << 20), &[8 * CHUNK]);
    let loader = layer.loader(plain());
    for (count, at) in (0..20).map(|count| (count, 5 * CHUNK + 300_000 + count * 8192)) {
        let range = ContentRange::new(at, at + 4096);
        let fetched = layer.fetched();
        assert!(loader.read(id(0), range).await.unwrap() == slice(layer.file(0), range));
        assert!(count == 0 || layer.fetched() - fetched < 1 << 21, "{count}");
    }
    until(|| loader.share().kept >= CHUNK).await;
    assert!(layer.fetched() < 3 << 20, "{}", layer.fetched());
    loader.close().await;
}

/// A loader of which somebody reads a chunk whose end lies in a span that is wrong, and which asks for that span once more at a gate;
/// with the chunk after it, which comes along.
async fn with_one_that_comes_along(layer: &mut Compressed) -> (Arc<Loader>, Arc<Semaphore>, Arc<Flight>) {
    let bad = layer.span_of(5 * CHUNK);
    layer.corrupt(&[usize::try_from(bad.stored.end() - 9).unwrap()]);
    let loader = layer.loader(plain());
    loader.read(id(0), ContentRange::new(0, CHUNK)).await.unwrap();
    until(|| loader.share().kept == 3 * CHUNK).await;
    let (gate, before) = (layer.repository.gate(), layer.repository.requests());
    let reading = Arc::clone(&loader);
    tokio::spawn(async move { reading.read(id(0), ContentRange::new(3 * CHUNK, 4 * CHUNK)).await });
    gate.add_permits(1);
    layer.repository.requested(before + 2).await;
    let found = loader.board.find(std::iter::once((id(0), 4)), &Arc::default()).unwrap().pop();
    let Some((_, Place::Aboard(flight))) = found else { panic!("it does not come along: {found:?}") };
    (loader, gate, flight)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_what_only_came_along_is_told_what_is_wrong_and_not_that_it_was_given_up() {
    let mut layer = Compressed::new(Form::Frames(MIB, 4 << 20), &[8 * CHUNK]);
    let (loader, gate, flight) = with_one_that_comes_along(&mut layer).await;
    gate.close();
    let error = flight.wait(Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity, "{error}");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_what_only_came_along_is_told_that_nobody_answers_and_nobody_is_asked_again() {
    let mut layer = Compressed::new(Form::Frames(MIB, 4 << 20), &[8 * CHUNK]);
    let (loader, gate, flight) = with_one_that_comes_along(&mut layer).await;
    let asked = layer.repository.requests();
    layer.repository.fail_with(|_, _| Some(Error::new(Kind::Unreachable, "down")));
    gate.close();
    let error = flight.wait(Duration::from_secs(60)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    quiet(&loader).await;
    assert_eq!(layer.repository.requests(), asked);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_one_span_cost_the_chunks_of_that_span_alone() {
    for form in
        [Form::Gzip(1 << 20), Form::Frames(MIB, 1 << 20), Form::Frames(MIB, 4 << 20), Form::Members(1 << 20)]
    {
        let layer = Compressed::new(form, &[8 * CHUNK]);
        let bad = layer.span_of(5 * CHUNK + 9);
        layer.corrupt(&[usize::try_from(bad.stored.start() + bad.stored.len() / 2).unwrap()]);
        let loader = layer.loader(plain());
        let all = ContentRange::new(0, u64::MAX);
        let error = loader.fetch_missing(id(0), all, Lane::Background).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity, "{form:?}: {error}");
        let touched = |chunk: u64| {
            let place = ContentRange::new(512 + chunk * CHUNK, 512 + (chunk + 1) * CHUNK);
            !place.meet(bad.content).is_empty()
        };
        let refused: Vec<_> = (0..8).filter(|chunk| touched(*chunk)).map(|chunk| (id(0), chunk)).collect();
        assert_eq!(loader.refused(), refused, "{form:?}");
        for chunk in 0..8 {
            let range = ContentRange::new(chunk * CHUNK, (chunk + 1) * CHUNK);
            match loader.read(id(0), range).await {
                Ok(bytes) => {
                    assert!(!touched(chunk) && bytes == slice(layer.file(0), range), "{form:?} {chunk}")
                }
                Err(error) => {
                    assert!(touched(chunk) && error.kind() == Kind::Integrity, "{form:?} {chunk}: {error}");
                    assert!(error.to_string().contains("0.bin"), "{error}");
                }
            }
        }
        until(|| loader.share().kept == (8 - refused.len() as u64) * CHUNK).await;
        layer.corrupt(&[]);
        assert!(read_all(&loader, 0).await.unwrap() == layer.file(0));
        assert!(loader.refused().is_empty());
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_small_read_of_a_wrong_span_fails_under_its_name_and_a_right_answer_heals_it() {
    let layer = Compressed::new(Form::Gzip(1 << 20), &[4 * CHUNK]);
    let bad = layer.span_of(2 * CHUNK + 9);
    layer.corrupt(&[usize::try_from(bad.stored.start() + 100).unwrap()]);
    let loader = layer.loader(plain());
    let range = ContentRange::new(2 * CHUNK + 5, 2 * CHUNK + 50);
    let error = loader.read(id(0), range).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().contains("0.bin"), "{error}");
    layer.corrupt(&[]);
    assert!(loader.read(id(0), range).await.unwrap() == slice(layer.file(0), range));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_is_wrong_anywhere_never_changes_a_byte_that_is_served() {
    for form in [Form::Gzip(1 << 20), Form::Frames(MIB, 1 << 20)] {
        let mut layer = Compressed::new(form, &[2 * CHUNK + 9, 70]);
        for at in (0..layer.index_blob.len()).step_by(layer.index_blob.len() / 25) {
            let mut wrong = layer.index_blob.clone();
            wrong[at] ^= 4;
            layer.repository.replace(layer.index_digest(), wrong);
            layer.dir = tempfile::tempdir().unwrap();
            let loader = layer.loader(plain());
            for range in [
                ContentRange::new(0, 9),
                ContentRange::new(CHUNK + 8, CHUNK + 99),
                ContentRange::new(0, u64::MAX),
            ] {
                let expected = range.meet(ContentRange::new(0, 2 * CHUNK + 9));
                match loader.read(id(0), range).await {
                    Ok(bytes) => assert!(bytes == slice(layer.file(0), expected), "{form:?} {at}"),
                    Err(error) => assert_eq!(error.kind(), Kind::Integrity, "{form:?} {at}: {error}"),
                }
            }
            loader.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_table_that_lies_leads_to_errors_and_never_to_wrong_chunks() {
    for form in [Form::Gzip(1 << 20), Form::Frames(MIB, 1 << 20), Form::Places(MIB, 1 << 20)] {
        let mut layer = Compressed::new(form, &[3 * CHUNK + 9]);
        let range = layer.spans().table.range;
        for at in (range.start()..range.end()).step_by(13) {
            let mut wrong = layer.index_blob.clone();
            wrong[usize::try_from(at).unwrap()] ^= 0x10;
            let table =
                &wrong[usize::try_from(range.start()).unwrap()..usize::try_from(range.end()).unwrap()];
            let mut index = Index::clone(&layer.index);
            let Coding::Spans(spans) = &mut index.layers[0].coding else { unreachable!() };
            spans.table.digest = Digest::of(table);
            layer.index = Arc::new(index);
            layer.repository.replace(layer.index_digest(), wrong);
            layer.dir = tempfile::tempdir().unwrap();
            let loader = layer.loader(plain());
            // What all of a chunk is compared with its digest, whatever led to it.
            match read_all(&loader, 0).await {
                Ok(bytes) => assert!(bytes == layer.file(0), "{form:?} {at}"),
                Err(error) => assert_ne!(error.kind(), Kind::Deadline, "{form:?} {at}: {error}"),
            }
            loader.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_and_its_windows_that_are_kept_or_came_along_are_not_asked_for() {
    let layer = Compressed::new(Form::Gzip(1 << 20), &[6 * CHUNK]);
    let asked = |layer: &Compressed| {
        let ranges = layer.repository.ranges();
        ranges
            .iter()
            .filter(|(digest, range)| digest == layer.index_digest() && *range == layer.spans().table.range)
            .count()
    };
    for _ in 0..2 {
        let loader = layer.loader(plain());
        let range = ContentRange::new(3 * CHUNK, 3 * CHUNK + 7);
        assert!(loader.read(id(0), range).await.unwrap() == slice(layer.file(0), range));
        loader.close().await;
        assert_eq!(asked(&layer), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_without_room_costs_no_byte() {
    for form in forms() {
        let mut layer = Compressed::new(form, &[5 * CHUNK + 3, 9]);
        layer.budget = 0;
        let loader = layer.loader(Config { memory: 0, ..plain() });
        for extent in [0, 1, 0] {
            assert!(read_all(&loader, extent).await.unwrap() == layer.file(extent), "{form:?}");
        }
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_brings_all_of_a_compressed_layer_with_little_more_than_its_bytes() {
    for form in [Form::Gzip(1 << 20), Form::Frames(MIB, 4 << 20), Form::OneFrame] {
        let layer = Compressed::new(form, &[14 * CHUNK, 10, 2 * CHUNK]);
        let loader = layer.loader(Config { warm: Warm::All, ..Config::default() });
        loader.warm();
        until(|| loader.share().kept == 16 * CHUNK + 10).await;
        let size = layer.stored.len() as u64;
        assert!(layer.fetched() < size * 3 / 2, "{form:?}: {} of {size}", layer.fetched());
        for extent in 0..3 {
            assert!(read_all(&loader, extent).await.unwrap() == layer.file(extent));
        }
        loader.close().await;
    }
}

#[derive(Clone, Debug)]
enum Step {
    Read { extent: usize, start: u64, len: u64 },
    Warm { extent: usize },
    Corrupt { at: usize },
    Mend,
    Wipe,
    Restart,
}

const SIZES: [u64; 4] = [2 * CHUNK + 7, 100, 3 * CHUNK, 70_000];

fn step() -> impl Strategy<Value = Step> {
    let place = || prop_oneof![Just(0), Just(CHUNK - 1), Just(CHUNK), 0..3 * CHUNK];
    let len = || prop_oneof![3 => 1..5000_u64, 1 => 0..2 * CHUNK];
    prop_oneof![
        8 => (0..4_usize, place(), len()).prop_map(|(extent, start, len)| Step::Read { extent, start, len }),
        1 => (0..4_usize).prop_map(|extent| Step::Warm { extent }),
        2 => any::<usize>().prop_map(|at| Step::Corrupt { at }),
        2 => Just(Step::Mend),
        1 => Just(Step::Wipe),
        1 => Just(Step::Restart),
    ]
}

async fn read(layer: &Compressed, loader: &Arc<Loader>, wrong: bool, (extent, range): (usize, ContentRange)) {
    let expected = range.meet(ContentRange::new(0, SIZES[extent]));
    match loader.read(id(extent), range).await {
        Ok(bytes) if expected.is_empty() => assert!(bytes.is_empty()),
        Ok(bytes) => assert!(bytes == slice(layer.file(extent), expected), "{extent} {range}"),
        Err(error) => assert!(wrong, "{error}"),
    }
}

#[test]
fn whatever_happens_a_read_of_a_compressed_layer_is_right_or_an_error_that_the_registry_is_to_blame_for() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let layers: Vec<Compressed> = forms().into_iter().map(|form| Compressed::new(form, &SIZES)).collect();
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(form in 0..7_usize, steps in prop::collection::vec(step(), 1..25))| {
        runtime.block_on(async {
            let layer = &layers[form];
            layer.corrupt(&[]);
            let (mut loader, mut wrong) = (layer.loader(plain()), Vec::new());
            for step in &steps {
                match *step {
                    Step::Read { extent, start, len } => {
                        let range = ContentRange::new(start, start + len);
                        let other = ((extent + 1) % 4, ContentRange::new(start / 2, start / 2 + len));
                        let bad = !wrong.is_empty();
                        tokio::join!(read(layer, &loader, bad, (extent, range)), read(layer, &loader, bad, other));
                    }
                    Step::Warm { extent } => {
                        let all = ContentRange::new(0, u64::MAX);
                        drop(loader.fetch_missing(id(extent), all, Lane::Ahead).await);
                    }
                    Step::Corrupt { at } => {
                        wrong.push(at % layer.stored.len());
                        layer.corrupt(&wrong);
                    }
                    Step::Mend => {
                        wrong.clear();
                        layer.corrupt(&[]);
                        quiet(&loader).await;
                    }
                    Step::Wipe => {
                        let _nothing_there = std::fs::remove_dir_all(layer.dir.path().join("store/layers"));
                    }
                    Step::Restart => {
                        loader.close().await;
                        loader = layer.loader(plain());
                    }
                }
            }
            layer.corrupt(&[]);
            quiet(&loader).await;
            for extent in 0..SIZES.len() {
                assert!(read_all(&loader, extent).await.unwrap() == Bytes::copy_from_slice(layer.file(extent)));
            }
            assert!(loader.refused().is_empty());
            loader.close().await;
        });
    });
}
