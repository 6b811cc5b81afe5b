//! Guides against the layers going by, in every form, and against tables that say what is not so.
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests fit")]

use std::sync::Mutex;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::{FutureExt, StreamExt};
use proptest::prelude::*;

use super::forms::{
    FORMS, Rows, Written, estargz, estargz_apart, frames, noise, stargz_zstd, storage, with_rows,
};
use super::*;
use crate::index::pass::{Pass, Passed, Spacing};
use crate::index::{Attached, Coding, Index, Sources, find_in};
use crate::oci::{Artifact, Blob, Descriptor, Digest, Which};
use crate::range::StoredRange;
use crate::repository::around::Around;
use crate::repository::memory::nothing;
use crate::repository::{ByteStream, Pinned, Repository};

const MIB: usize = 1 << 20;
const PIECE: usize = 100 << 10;

/// A blob in memory, and what was read of it.
#[derive(Debug)]
struct Line {
    blob: Bytes,
    reads: Mutex<Vec<StoredRange>>,
    /// From which stored byte on nothing comes.
    stalls: u64,
}

impl Line {
    fn of(blob: Bytes) -> Self {
        Self { blob, reads: Mutex::default(), stalls: u64::MAX }
    }
}

impl Around for Line {
    fn inner(&self) -> &dyn Repository {
        nothing()
    }

    fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        unreachable!("nobody asks")
    }

    fn read<'a>(&'a self, _: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.reads.lock().unwrap().push(range);
        let bytes = self.blob.slice(range.start() as usize..range.end() as usize);
        let stalls = range.start() >= self.stalls;
        async move {
            if stalls {
                std::future::pending::<()>().await;
            }
            Ok(stream::iter([Ok(bytes)]).boxed())
        }
        .boxed()
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Around::read(self, blob, range)
    }

    fn referrers<'a>(&'a self, _: &'a Digest, _: &'a str) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        unreachable!("nobody asks")
    }
}

fn some_files() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("config.json", b"{}".to_vec()),
        ("w/one.safetensors", noise(MIB + 77, 1)),
        ("empty", Vec::new()),
        ("w/two.safetensors", noise(MIB / 2, 2)),
        ("w/three.safetensors", noise(MIB - 512, 3)),
    ]
}

/// The index of the layer, and what was read for it.
fn found(written: &Written, guides: Guides) -> (Index, Vec<StoredRange>) {
    let artifact = written.artifact();
    let line = Line::of(written.stored.clone().into());
    let index = clocked().block_on(found_over(&line, &artifact, guides));
    (index, line.reads.into_inner().unwrap())
}

fn clocked() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
}

async fn found_over(line: &Line, artifact: &Artifact, guides: Guides) -> Index {
    let sources = Sources {
        bound: None,
        local: &|_| None,
        attached: Attached::Nowhere,
        known: &|_| Vec::new(),
        guides,
        proof: crate::index::Proof::default(),
    };
    find_in(line, artifact, sources).await.unwrap().0
}

fn guide(index: &Index) -> Option<&Guide> {
    match &index.layers[0].coding {
        Coding::Streamed(_, guide) => guide.as_deref(),
        other => panic!("{other:?}"),
    }
}

/// What going by makes of it.
fn passed(written: &Written) -> (Passed, Vec<u8>) {
    gone_by(written).expect("it is in order")
}

/// The same; `None` where it is not in order.
fn gone_by(written: &Written) -> Option<(Passed, Vec<u8>)> {
    let artifact = written.artifact();
    let mut pass = Pass::new(&artifact.layers[0], 0, Spacing::default()).unwrap();
    pass.step(&written.stored, &mut |_| Ok(())).ok()?;
    let passed = pass.finish(&mut |_| Ok(())).ok()?;
    let how = compression(artifact.layers[0].packaging).unwrap();
    let content = decoded(&written.stored, how)?;
    Some((passed, content))
}

fn decoded(stored: &[u8], how: crate::index::Compression) -> Option<Vec<u8>> {
    let blob = Blob { digest: Digest::of(stored), size: stored.len() as u64 };
    let probe = Probe::new(nothing(), &blob, Room::default().share());
    Some(decode::decode(&probe.bounds, how, stored, 0, usize::MAX).ok()?.bytes)
}

/// Whether every span of the guide's decodes to what lies there.
fn leads_right(written: &Written, guide: &Guide, content: &[u8]) -> bool {
    let spans: Vec<(StoredRange, ContentRange)> = match &*guide.table {
        Table::Gzip(table) => {
            (0..table.len()).map(|at| (table.stored(table.content(at)), table.content(at))).collect()
        }
        Table::Zstd(spans) => spans.iter().map(|span| (span.stored, span.content)).collect(),
    };
    let how = if matches!(*guide.table, Table::Gzip(_)) {
        crate::index::Compression::Gzip
    } else {
        crate::index::Compression::Zstd
    };
    guide.table.content() == content.len() as u64
        && spans.into_iter().all(|(stored, range)| {
            let stored = &written.stored[stored.start() as usize..stored.end() as usize];
            let decoded = decoded(stored, how);
            decoded.is_some_and(|decoded| decoded == content[range.start() as usize..range.end() as usize])
        })
}

#[test]
fn every_form_tells_its_names_sizes_and_places_for_little_of_its_bytes() {
    for form in FORMS {
        let written = form(&some_files(), PIECE);
        let (index, reads) = found(&written, Guides::Checked);
        let guide = guide(&index).expect("it has a guide");
        let (passed, content) = passed(&written);
        assert_eq!(index.entries, passed.entries);
        assert_eq!(guide.entries, passed.entries);
        assert_eq!(index.layers[0].extents, passed.extents);
        assert!(leads_right(&written, guide, &content));
        let fetched: u64 = reads.iter().map(|range| range.len()).sum();
        assert!(fetched < written.stored.len() as u64 / 4, "{fetched} bytes in {} reads", reads.len());
        assert!(reads.len() <= 12, "{reads:?}");
    }
}

#[test]
fn a_table_that_the_manifest_pins_says_what_every_part_must_be() {
    for form in [storage, stargz_zstd, estargz, estargz_apart] {
        let written = form(&some_files(), PIECE);
        let (index, _) = found(&written, Guides::Pinned);
        let parts = guide(&index).expect("it is pinned").parts.as_ref().expect("it has digests");
        let (_, content) = passed(&written);
        for part in parts {
            let bytes = &content[part.content.start() as usize..part.content.end() as usize];
            assert_eq!(ContentDigest::of(bytes), part.digest);
        }
        let files: u64 = some_files().iter().map(|(_, file)| file.len() as u64).sum();
        let covered: u64 = parts.iter().map(|part| part.content.len()).sum();
        assert!(covered == files || covered == files + 1, "all files, and a mark");
    }
}

#[test]
fn nobody_vouches_for_a_table_that_the_manifest_does_not_pin() {
    for form in FORMS {
        let mut written = form(&some_files(), PIECE);
        written.annotations.clear();
        let (index, _) = found(&written, Guides::Checked);
        assert!(guide(&index).expect("it has a footer").parts.is_none());
        let (strict, _) = found(&written, Guides::Pinned);
        assert!(guide(&strict).is_none() && strict.entries.is_empty());
        let (none, reads) = found(&written, Guides::None);
        assert!(guide(&none).is_none() && reads.is_empty());
    }
}

#[test]
fn a_pinned_table_with_another_digest_is_of_no_use() {
    for form in [storage, stargz_zstd, estargz] {
        let mut written = form(&some_files(), PIECE);
        written.annotations.last_mut().unwrap().1 = ContentDigest::of(b"another").to_string();
        assert!(guide(&found(&written, Guides::Checked).0).is_none());
    }
}

#[test]
fn a_seek_table_that_the_headers_contradict_is_of_no_use() {
    assert!(
        guide(&found(&with_rows(&some_files(), PIECE, |_| {}), Guides::Checked).0).is_some(),
        "as it was"
    );
    let wrong: [fn(&mut Rows); 5] = [
        |rows| rows[0].1 += 512,
        |rows| rows[2].1 -= 1,
        |rows| rows.swap(1, 20),
        |rows| rows[3].0 += 100,
        |rows| rows.truncate(5),
    ];
    for (case, change) in wrong.into_iter().enumerate() {
        let written = with_rows(&some_files(), PIECE, change);
        let (index, _) = found(&written, Guides::Checked);
        // Two frames of one size in the wrong order are not seen in headers that lie elsewhere.
        if case != 2 {
            assert!(guide(&index).is_none() && index.entries.is_empty(), "case {case}");
        }
    }
}

#[test]
fn what_takes_more_than_it_is_worth_goes_by_instead() {
    let many: Vec<(String, Vec<u8>)> =
        (0..300).map(|file| (format!("f{file}"), noise(33 << 10, file))).collect();
    let many: Vec<(&str, Vec<u8>)> =
        many.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    let (index, reads) = found(&frames(&many, PIECE), Guides::Checked);
    assert!(guide(&index).is_none() && reads.len() <= 256);
    let fetched: u64 = reads.iter().map(|range| range.len()).sum();
    assert!(fetched <= 8 << 20, "{fetched} bytes");
}

#[test]
fn small_layers_and_those_without_a_table_cost_one_read_at_most() {
    let small = [("a", noise(MIB / 2, 1))];
    assert!(found(&frames(&small, PIECE), Guides::Checked).1.is_empty());
    let stored = crate::codec::gzip::tests::member(&forms::archive(&some_files()), 1);
    let plain = Written { suffix: "tar+gzip", stored, annotations: Vec::new() };
    let (index, reads) = found(&plain, Guides::Checked);
    assert!(guide(&index).is_none() && reads.len() == 1, "{reads:?}");
}

#[tokio::test(start_paused = true)]
async fn a_repository_of_which_no_end_of_a_layer_comes_keeps_a_mount_waiting_for_seconds_in_all() {
    let written = frames(&some_files(), PIECE);
    let mut artifact = written.artifact();
    let layer = artifact.layers[0].clone();
    artifact.layers.extend((0..20).map(|_| layer.clone()));
    let mut line = Line::of(written.stored.into());
    line.stalls = 1;
    let began = tokio::time::Instant::now();
    let index = found_over(&line, &artifact, Guides::Checked).await;
    assert!(index.layers.iter().all(Layer::is_growing));
    assert!(began.elapsed() <= std::time::Duration::from_secs(6), "{:?}", began.elapsed());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]
    #[test]
    fn damage_anywhere_costs_no_more_than_the_guide(form in 0..FORMS.len(), at in any::<prop::sample::Index>(), near_end in any::<bool>(), bit in 0..8_u8) {
        let files = [("a", noise(500 << 10, 1)), ("b", noise(600 << 10, 2))];
        let mut written = FORMS[form](&files, 200 << 10);
        let len = written.stored.len();
        let place = if near_end { len - 1 - at.index(2000) } else { at.index(len) };
        written.stored[place] ^= 1_u8 << bit;
        let (index, reads) = found(&written, Guides::Checked);
        prop_assert!(reads.len() <= 256);
        if let (Some(guide), Some((passed, content))) = (guide(&index), gone_by(&written))
            && leads_right(&written, guide, &content)
        {
            prop_assert_eq!(&guide.entries, &passed.entries);
            prop_assert_eq!(&index.layers[0].extents, &passed.extents);
        }
    }
}
