//! What the loader promises of bound layers: verified from the first byte, and a wrong chunk refused by itself.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use proptest::prelude::*;

use super::bound::ATTEMPTS;
use super::lanes::Lane;
use super::loader_tests::{
    Elsewhere, Laid, chunk_digests, content, id, laid, loader_in, plain, quiet, read_all, slice, strict,
    until, vanish, whole,
};
use super::store::kept::KeptFile;
use super::{Config, Integrity, Loader, Standing, Store, StoreConfig, Warm};
use crate::error::Kind;
use crate::index::{Bound, CHUNK, ChunkDigest, Coding, ExtentId, Grid, Home, Index, Layer, Proof, Section};
use crate::oci::{Blob, Digest};
use crate::range::{ContentRange, StoredRange};
use crate::repository::Repository;
use crate::repository::memory::Memory;

/// Something before the section in the blob of the index.
const HEAD: usize = 64;
/// A chunk's length, as slices count.
const MIB: usize = 1 << 20;

/// One bound layer with files of these sizes and archive headers between them that nobody has read.
struct Packed {
    repository: Arc<Memory>,
    layer: Vec<u8>,
    index_blob: Vec<u8>,
    index: Arc<Index>,
    dir: tempfile::TempDir,
    budget: u64,
}

impl Packed {
    fn new(sizes: &[u64]) -> Self {
        let Laid { extents, gaps, entries, len } = laid(sizes, "safetensors");
        let layer = content(sizes.len() as u64 + 100, len);
        let section = chunk_digests(&layer, &extents);
        let mut index_blob = vec![7; HEAD];
        index_blob.extend_from_slice(&section);
        let repository = Arc::new(Memory::new());
        let (blob, pinned) = (repository.put(layer.clone()), repository.put(index_blob.clone()));
        let digest = Digest::of(&section);
        let kept_as = Digest::of(format!("{} {digest}", blob.digest).as_bytes());
        let range = StoredRange::new(HEAD as u64, pinned.size);
        let chunks = Section { home: Home::Repository(pinned), range, digest, bytes: None };
        let bound = Some(Bound { chunks, kept_as });
        let described = Layer {
            blob,
            media_type: String::new(),
            diff_id: None,
            coding: Coding::Stored,
            extents,
            gaps,
            bound,
        };
        let index = Arc::new(Index { entries, layers: vec![described], warnings: Vec::new() });
        Self { repository, layer, index_blob, index, dir: tempfile::tempdir().unwrap(), budget: 1 << 30 }
    }

    fn loader(&self, config: Config) -> Arc<Loader> {
        self.loader_of(Arc::clone(&self.repository) as _, config)
    }

    /// A loader for another place on the same store.
    fn elsewhere(&self, repository: &Arc<Memory>) -> Arc<Loader> {
        self.loader_of(Arc::new(Elsewhere(Arc::clone(repository))), plain())
    }

    fn loader_of(&self, repository: Arc<dyn Repository>, config: Config) -> Arc<Loader> {
        loader_in(&self.dir, self.budget, repository, &self.index, config)
    }

    /// A repository that gives other bytes for the layer, and the index that says just these of it.
    fn forged(&self) -> (Arc<Memory>, Arc<Index>) {
        let wrong = content(999, self.layer.len() as u64);
        let section = chunk_digests(&wrong, &self.index.layers[0].extents);
        let forger = Arc::new(Memory::new());
        forger.replace(&self.blob().digest, wrong);
        let home = forger.put(section.clone());
        let (digest, range) = (home.digest.clone(), StoredRange::new(0, home.size));
        let kept_as = Digest::of(format!("{} {digest}", self.blob().digest).as_bytes());
        let chunks = Section { home: Home::Repository(home), range, digest, bytes: None };
        let mut index = Index::clone(&self.index);
        index.layers[0].bound = Some(Bound { chunks, kept_as });
        (forger, Arc::new(index))
    }

    /// The index with names that were read from the headers in these bytes of the layer. Nobody has read what is behind the last
    /// file.
    fn named_by(&self, layer: &[u8]) -> Arc<Index> {
        let mut index = Index::clone(&self.index);
        for gap in index.layers[0].gaps.iter_mut().rev().skip(1) {
            gap.bytes = Some(Bytes::copy_from_slice(slice(layer, gap.range)));
        }
        Arc::new(index)
    }

    /// The layer with another header before its first file.
    fn renamed(&self) -> Vec<u8> {
        let mut renamed = self.layer.clone();
        renamed[0] ^= 1;
        renamed
    }

    /// A loader of what others are shown too.
    fn shown(&self, repository: Arc<dyn Repository>, index: &Arc<Index>) -> Arc<Loader> {
        let config = Config { proof: Proof::Layer, ..plain() };
        loader_in(&self.dir, self.budget, repository, index, config)
    }

    fn blob(&self) -> &Blob {
        &self.index.layers[0].blob
    }

    fn bound_blob(&self) -> &Blob {
        match &self.bound().chunks.home {
            Home::Repository(blob) => blob,
            Home::File(_) => unreachable!("the index is a blob"),
        }
    }

    fn bound(&self) -> &Bound {
        self.index.layers[0].bound.as_ref().unwrap()
    }

    fn file(&self, extent: usize) -> &[u8] {
        slice(&self.layer, self.index.layers[0].extents[extent])
    }

    /// Where the layer is kept for all who can have it.
    fn shared(&self) -> PathBuf {
        self.dir.path().join("store/layers/sha256").join(self.bound().kept_as.hex())
    }

    /// Waits until the first file is sealed and the layer shared, which come in any order.
    async fn shared_whole(&self, loader: &Arc<Loader>) {
        whole(loader, 0).await;
        until(|| self.shared().join("proved").exists()).await;
    }

    fn kept(&self, extent: usize, ending: &str) -> PathBuf {
        let range = self.index.layers[0].extents[extent];
        self.shared().join(format!("{}-{}.{ending}", range.start(), range.len()))
    }

    /// Serves the layer with these bytes of files flipped.
    fn corrupt(&self, places: &[(usize, u64)]) {
        let mut wrong = self.layer.clone();
        for (extent, at) in places {
            wrong[usize::try_from(self.index.layers[0].extents[*extent].start() + at).unwrap()] ^= 1;
        }
        self.repository.replace(&self.blob().digest, wrong);
    }

    /// Serves the index with its section as `change` leaves it.
    fn change_section(&self, change: impl FnOnce(&mut Vec<u8>)) {
        let mut wrong = self.index_blob.clone();
        change(&mut wrong);
        self.repository.replace(&self.bound_blob().digest, wrong);
    }

    /// How often the blob was asked for.
    fn asked(&self, blob: &Blob) -> usize {
        self.repository.ranges().iter().filter(|(digest, _)| *digest == blob.digest).count()
    }

    /// How many of the layer's bytes were asked for.
    fn fetched(&self) -> u64 {
        let ranges = self.repository.ranges();
        let layer = ranges.iter().filter(|(digest, _)| *digest == self.blob().digest);
        layer.map(|(_, range)| range.len()).sum()
    }

    fn forget_section(&self) {
        std::fs::remove_dir_all(self.dir.path().join("store/small")).unwrap();
    }
}

fn chunk(number: u64) -> ContentRange {
    ContentRange::new(number * CHUNK, (number + 1) * CHUNK)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_layer_is_proved_before_its_first_byte_and_any_range_is_right() {
    let packed = Packed::new(&[1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7]);
    for integrity in [Integrity::Auto, Integrity::Deferred, Integrity::Strict] {
        let loader = packed.loader(Config { integrity, ..plain() });
        assert_eq!(loader.standing(0), Standing::Proved);
        assert!(loader.is_strict());
        for extent in 0..5 {
            let len = packed.file(extent).len() as u64;
            let edges = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, len.saturating_sub(1), len];
            for (start, end) in edges.iter().flat_map(|start| edges.map(|end| (*start, end))) {
                let range = ContentRange::new(start, end);
                let expected = ContentRange::new(start.min(len), end.min(len));
                let bytes = loader.read(id(extent), range).await.unwrap();
                assert_eq!(bytes, slice(packed.file(extent), expected), "{extent} {range}");
                if let Some(ready) = loader.ready(id(extent), range) {
                    assert_eq!(ready, bytes);
                }
            }
        }
        loader.close().await;
    }
    assert_eq!(packed.asked(packed.bound_blob()), 1, "the section is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_brings_the_section_however_many_read_and_a_byte_costs_one_chunk_even_under_strict() {
    let packed = Packed::new(&[64 * CHUNK]);
    let gate = packed.repository.gate();
    let loader = packed.loader(strict());
    let readers: Vec<_> = (0..32)
        .map(|reader| {
            let loader = Arc::clone(&loader);
            tokio::spawn(async move { loader.read(id(0), ContentRange::new(reader, reader + 1)).await })
        })
        .collect();
    packed.repository.requested(1).await;
    gate.close();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    assert_eq!((packed.asked(packed.bound_blob()), packed.fetched()), (1, CHUNK));
    assert_eq!(loader.metrics.proved_layers.value(), 0, "nothing is hashed as a whole");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_section_that_came_along_with_the_index_is_not_asked_for() {
    let mut packed = Packed::new(&[CHUNK, 10]);
    let bytes = Bytes::copy_from_slice(&packed.index_blob[HEAD..]);
    Arc::get_mut(&mut packed.index).unwrap().layers[0].bound.as_mut().unwrap().chunks.bytes = Some(bytes);
    let loader = packed.loader(plain());
    assert_eq!(read_all(&loader, 1).await.unwrap(), packed.file(1));
    assert_eq!(packed.asked(packed.bound_blob()), 0);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_chunk_is_refused_alone_and_served_once_it_is_right() {
    let packed = Packed::new(&[10 * CHUNK + 5]);
    packed.corrupt(&[(0, 2 * CHUNK + 9), (0, 10 * CHUNK)]);
    let loader = packed.loader(plain());
    // Runs of four chunks in one request, a wrong one in the midst of the first.
    let whole_file = ContentRange::new(0, u64::MAX);
    let error = loader.fetch_missing(id(0), whole_file, Lane::Background).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    until(|| loader.share().kept == 9 * CHUNK).await;
    let asked = packed.fetched();
    assert_eq!(asked, 10 * CHUNK + 5 + 4 * (CHUNK + 5), "each wrong chunk four times more, no other");
    for number in (0..10).filter(|number| *number != 2) {
        assert_eq!(loader.read(id(0), chunk(number)).await.unwrap(), slice(packed.file(0), chunk(number)));
    }
    assert_eq!(packed.fetched(), asked, "the neighbours came with the wrong one");
    assert_eq!(loader.refused(), [(id(0), 2), (id(0), 10)]);
    let error = loader.read(id(0), ContentRange::new(2 * CHUNK, 2 * CHUNK + 1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    for word in ["0.safetensors", "2097152-3145727", &packed.blob().digest.to_string(), "memory"] {
        assert!(error.to_string().contains(word), "{error}");
    }
    assert!(loader.ready(id(0), chunk(2)).is_none());
    assert_eq!((loader.metrics.refused_chunks.value(), loader.metrics.fetch_mismatches.value()), (3, 15));
    assert_eq!(loader.standing(0), Standing::Proved);
    assert_eq!(loader.share().kept, 9 * CHUNK, "nothing wrong is kept");
    packed.corrupt(&[]);
    assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0));
    assert!(loader.refused().is_empty());
    whole(&loader, 0).await;
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chunk_that_is_wrong_once_is_asked_for_once_more_and_served() {
    let packed = Packed::new(&[4 * CHUNK]);
    packed.corrupt(&[(0, CHUNK)]);
    let (repository, digest, right) =
        (Arc::downgrade(&packed.repository), packed.blob().digest.clone(), packed.layer.clone());
    let asked = AtomicBool::new(false);
    packed.repository.fail_with(move |blob, _| {
        // The first answer is made of what is there when it is asked for.
        if blob.digest == digest && asked.swap(true, Ordering::SeqCst) {
            repository.upgrade().unwrap().replace(&digest, right.clone());
        }
        None
    });
    let loader = packed.loader(plain());
    assert_eq!(loader.read(id(0), chunk(1)).await.unwrap(), slice(packed.file(0), chunk(1)));
    assert_eq!((loader.metrics.fetch_mismatches.value(), loader.metrics.refused_chunks.value()), (1, 0));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_section_that_cannot_be_had_is_an_error_under_its_name_and_the_next_read_tries_again() {
    let packed = Packed::new(&[3 * CHUNK]);
    let flip = |blob: &mut Vec<u8>| *blob.last_mut().unwrap() ^= 1;
    let shorten = |blob: &mut Vec<u8>| blob.truncate(70);
    let loader = packed.loader(plain());
    for (change, kind) in [(&flip as &dyn Fn(&mut Vec<u8>), Kind::Integrity), (&shorten, Kind::Broken)] {
        packed.change_section(change);
        let error = read_all(&loader, 0).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        for word in ["the bound index", &packed.blob().digest.to_string(), "0.safetensors"] {
            assert!(error.to_string().contains(word), "{error}");
        }
        assert_eq!(packed.fetched(), 0, "nothing is fetched that nothing is known of");
    }
    // Two reads of three chunks, of which each asks a few times at most, some after the read has failed.
    let asked = packed.asked(packed.bound_blob());
    assert!(asked <= 2 * 3 * ATTEMPTS, "bounded: {asked}");
    packed.change_section(|_| ());
    quiet(&loader).await;
    assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_section_of_another_length_than_the_chunks_need_is_refused_unasked() {
    let mut packed = Packed::new(&[3 * CHUNK]);
    let bound = &mut Arc::get_mut(&mut packed.index).unwrap().layers[0].bound.as_mut().unwrap().chunks;
    bound.range = StoredRange::new(HEAD as u64, HEAD as u64 + 64);
    bound.digest = Digest::of(&packed.index_blob[HEAD..HEAD + 64]);
    let loader = packed.loader(plain());
    let error = read_all(&loader, 0).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().contains("bound index"), "{error}");
    assert_eq!(packed.repository.requests(), 0);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_process_needs_neither_the_registry_nor_the_section() {
    let packed = Packed::new(&[2 * CHUNK, 100]);
    let loader = packed.loader(plain());
    for extent in 0..2 {
        read_all(&loader, extent).await.unwrap();
        whole(&loader, extent).await;
    }
    loader.close().await;
    packed.repository.fail_with(|_, _| Some(crate::Error::new(Kind::Unreachable, "gone")));
    for forget in [false, true] {
        if forget {
            // The records of what is kept are the section as well.
            packed.forget_section();
        }
        let loader = packed.loader(plain());
        assert!(loader.hold(id(0)).whole().is_some(), "known at once");
        for extent in 0..2 {
            assert_eq!(read_all(&loader, extent).await.unwrap(), packed.file(extent));
        }
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_place_sees_nothing_before_its_own_repository_gave_a_chunk_picked_here_and_then_everything() {
    let packed = Packed::new(&[3 * CHUNK, 100]);
    let first = packed.loader(plain());
    read_all(&first, 0).await.unwrap();
    assert!(!packed.shared().exists(), "shared when all of it is here");
    read_all(&first, 1).await.unwrap();
    until(|| packed.shared().join("proved").exists()).await;
    whole(&first, 0).await;
    // One that knows the digests and has not the bytes.
    let liar = Arc::new(Memory::new());
    liar.replace(&packed.blob().digest, vec![0; packed.layer.len()]);
    liar.replace(&packed.bound_blob().digest, packed.index_blob.clone());
    let thief = packed.elsewhere(&liar);
    for _ in 0..2 {
        assert_eq!(read_all(&thief, 0).await.unwrap_err().kind(), Kind::Integrity);
        assert!(thief.hold(id(0)).whole().is_none());
        assert_eq!(thief.share().kept, 0);
    }
    thief.close().await;
    // One that has them: it is asked for one chunk, and shown them all.
    let before = packed.fetched();
    let second = packed.elsewhere(&packed.repository);
    assert!(second.hold(id(0)).whole().is_none());
    second.read(id(1), ContentRange::new(0, 1)).await.unwrap();
    until(|| second.share().kept == 3 * CHUNK + 100).await;
    assert_eq!(read_all(&second, 0).await.unwrap(), packed.file(0));
    assert!([100, CHUNK].contains(&(packed.fetched() - before)), "{}", packed.fetched() - before);
    assert!(second.hold(id(0)).whole().is_some() && first.hold(id(0)).whole().is_some());
    for loader in [first, second] {
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn places_and_processes_that_read_at_once_end_with_one_shared_layer() {
    let packed = Packed::new(&[24 * CHUNK, 10]);
    let loaders = [
        packed.loader(Config::default()),
        packed.loader(Config::default()),
        packed.elsewhere(&packed.repository),
        packed.elsewhere(&packed.repository),
    ];
    let read = |loader: Arc<Loader>| async move {
        for number in 0..24 {
            loader.read(id(0), chunk(number)).await.unwrap();
        }
        loader.read(id(1), ContentRange::new(0, 10)).await.unwrap();
    };
    futures_util::future::join_all(loaders.iter().map(|loader| read(Arc::clone(loader)))).await;
    for loader in &loaders {
        assert_eq!(read_all(loader, 0).await.unwrap(), packed.file(0));
        until(|| loader.share().kept >= 24 * CHUNK).await;
    }
    until(|| packed.shared().join("proved").exists()).await;
    for loader in &loaders {
        loader.close().await;
    }
    let before = packed.fetched();
    for loader in [packed.loader(plain()), packed.elsewhere(&packed.repository)] {
        assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0));
        whole(&loader, 0).await;
        loader.close().await;
    }
    assert_eq!(packed.fetched(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_of_one_place_that_read_at_once_fetch_once() {
    let packed = Packed::new(&[24 * CHUNK]);
    let (one, two) = (packed.loader(Config::default()), packed.loader(Config::default()));
    let read = |loader: Arc<Loader>| async move {
        for number in 0..24 {
            loader.read(id(0), chunk(number)).await.unwrap();
        }
    };
    tokio::join!(read(Arc::clone(&one)), read(Arc::clone(&two)));
    assert_eq!(packed.fetched(), 24 * CHUNK);
    for loader in [one, two] {
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_damaged_costs_a_fetch_and_never_an_error_or_a_wrong_byte() {
    for ending in ["data", "digests", "kept"] {
        let packed = Packed::new(&[3 * CHUNK]);
        let loader = packed.loader(plain());
        read_all(&loader, 0).await.unwrap();
        packed.shared_whole(&loader).await;
        loader.close().await;
        let right = std::fs::read(packed.kept(0, ending)).unwrap();
        for number in 0..5 {
            let mut wrong = right.clone();
            match number {
                0 => wrong[0] ^= 1,
                1 => *wrong.last_mut().unwrap() ^= 1,
                2 => wrong[45] ^= 0xff,
                3 => wrong.truncate(50),
                _ => wrong.fill(1),
            }
            std::fs::write(packed.kept(0, ending), wrong).unwrap();
            let loader = packed.loader(plain());
            if ending == "data" {
                assert!(loader.hold(id(0)).whole().is_none(), "{number}");
            }
            assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0), "{ending} {number}");
            assert_eq!((loader.standing(0), loader.refused()), (Standing::Proved, Vec::new()));
            whole(&loader, 0).await;
            assert_eq!(std::fs::read(packed.kept(0, "data")).unwrap(), packed.file(0), "mended");
            loader.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_and_digests_that_somebody_else_has_put_into_the_store_are_not_served() {
    let packed = Packed::new(&[4 * CHUNK]);
    let loader = packed.loader(plain());
    read_all(&loader, 0).await.unwrap();
    packed.shared_whole(&loader).await;
    loader.close().await;
    let forged = vec![9; MIB];
    let forge = || {
        let kept = KeptFile::open(&packed.kept(0, "data").with_extension(""), 4 * CHUNK).unwrap();
        let mut digests = ChunkDigest::of(&forged).bytes().to_vec();
        for right in packed.file(0).chunks(MIB).skip(1) {
            digests.extend_from_slice(ChunkDigest::of(right).bytes());
        }
        kept.hold_to(&digests).unwrap();
        kept.image().write_all_at(&forged, 0).unwrap();
        kept.seal(kept.prepare_seal().unwrap()).unwrap();
        assert!(kept.vouched() && kept.sealed());
    };
    // Before the process looks, and behind its back.
    forge();
    let loader = packed.loader(Config { memory: 0, ..plain() });
    assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0));
    let held = whole(&loader, 0).await;
    assert_eq!(std::fs::read(packed.kept(0, "data")).unwrap(), packed.file(0));
    forge();
    for _ in 0..2 {
        assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0));
    }
    until(|| loader.share().kept == 4 * CHUNK).await;
    assert_eq!(std::fs::read(packed.kept(0, "data")).unwrap(), packed.file(0));
    drop(held);
    loader.close().await;
}

/// One place, one store, one process: the forger's mount is still open, and everything of it kept.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_forged_index_says_of_a_layer_counts_for_nobody_who_has_not_chosen_it() {
    let packed = Packed::new(&[3 * CHUNK + 5, 100]);
    let (forger, forged) = packed.forged();
    let wrong = content(999, packed.layer.len() as u64);
    let mut plain_index = Index::clone(&packed.index);
    plain_index.layers[0].bound = None;
    let believing = loader_in(&packed.dir, packed.budget, forger, &forged, plain());
    for extent in 0..2 {
        let range = packed.index.layers[0].extents[extent];
        assert_eq!(read_all(&believing, extent).await.unwrap(), slice(&wrong, range), "it was chosen");
        whole(&believing, extent).await;
    }
    let honest = [Arc::clone(&packed.index), Arc::new(plain_index)];
    for index in &honest {
        let repository = Arc::clone(&packed.repository) as Arc<dyn Repository>;
        let loader = loader_in(&packed.dir, packed.budget, repository, index, plain());
        assert_eq!(loader.share().kept, 0, "nothing of it is here");
        for extent in 0..2 {
            assert_eq!(read_all(&loader, extent).await.unwrap(), packed.file(extent));
        }
        whole(&loader, 0).await;
        loader.close().await;
    }
    believing.close().await;
    // What is kept of each is found again, and no other's.
    packed.repository.fail_with(|_, _| Some(crate::Error::new(Kind::Unreachable, "gone")));
    for index in &honest {
        let loader =
            loader_in(&packed.dir, packed.budget, Arc::clone(&packed.repository) as _, index, plain());
        assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0));
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_shown_to_others_is_compared_with_its_own_digest_once_all_of_it_is_here() {
    let packed = Packed::new(&[2 * CHUNK + 5, 100]);
    let shown = || Config { proof: Proof::Layer, ..plain() };
    let loader = packed.loader(shown());
    read_all(&loader, 0).await.unwrap();
    assert!(loader.hold(id(0)).whole().is_none(), "not the kernel's before");
    assert_eq!(loader.metrics.proved_layers.value(), 0, "not all of it is here");
    read_all(&loader, 1).await.unwrap();
    until(|| loader.metrics.proved_layers.value() == 1).await;
    whole(&loader, 0).await;
    loader.close().await;
    // Once is enough, and who has chosen the index never asks.
    for config in [shown(), plain()] {
        let loader = packed.loader(config);
        assert!(!loader.owes(0) && loader.hold(id(0)).whole().is_some());
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_that_turns_out_to_be_forged_poisons_what_is_shown_to_others_for_good() {
    let packed = Packed::new(&[2 * CHUNK + 5, 100]);
    let (forger, forged) = packed.forged();
    let shown = || Config { proof: Proof::Layer, ..plain() };
    let loader_of = |repository: &Arc<Memory>, index: &Arc<Index>| {
        loader_in(&packed.dir, packed.budget, Arc::clone(repository) as _, index, shown())
    };
    let loader = loader_of(&forger, &forged);
    assert_eq!(loader.standing(0), Standing::Proved, "its index says so");
    read_all(&loader, 0).await.unwrap();
    let _before_the_verdict = read_all(&loader, 1).await;
    until(|| loader.standing(0) == Standing::Poisoned).await;
    let error = read_all(&loader, 0).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(loader.ready(id(0), chunk(0)).is_none() && loader.hold(id(0)).whole().is_none());
    loader.close().await;
    let asked = forger.requests();
    let again = loader_of(&forger, &forged);
    assert_eq!(again.standing(0), Standing::Poisoned, "known from the start");
    assert!(read_all(&again, 1).await.is_err());
    assert_eq!(forger.requests(), asked);
    again.close().await;
    let honest = loader_of(&packed.repository, &packed.index);
    for extent in 0..2 {
        assert_eq!(read_all(&honest, extent).await.unwrap(), packed.file(extent));
    }
    whole(&honest, 0).await;
    honest.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_other_headers_has_its_names_compared_though_another_was_found_to_be_right() {
    let packed = Packed::new(&[2 * CHUNK + 5, 100]);
    let repository = || Arc::clone(&packed.repository) as Arc<dyn Repository>;
    let (right, wrong) = (packed.named_by(&packed.layer), packed.named_by(&packed.renamed()));
    let honest = packed.shown(repository(), &right);
    for extent in 0..2 {
        read_all(&honest, extent).await.unwrap();
    }
    until(|| !honest.owes(0)).await;
    whole(&honest, 0).await;
    honest.close().await;
    let forger = Arc::new(Memory::new());
    forger.replace(&packed.blob().digest, packed.renamed());
    forger.replace(&packed.bound_blob().digest, packed.index_blob.clone());
    let forging = || packed.shown(Arc::new(Elsewhere(Arc::clone(&forger))), &wrong);
    let evil = forging();
    assert!(evil.owes(0));
    // Its bytes are right: it is shown what others keep.
    let _before_the_verdict = evil.read(id(0), ContentRange::new(0, 1)).await;
    until(|| evil.standing(0) == Standing::Poisoned).await;
    assert_eq!(read_all(&evil, 1).await.unwrap_err().kind(), Kind::Integrity);
    evil.close().await;
    // The headers are at fault and not what all share.
    let asked = packed.repository.requests();
    let honest = packed.shown(repository(), &right);
    assert!(!honest.owes(0) && honest.hold(id(0)).whole().is_some());
    assert_eq!(read_all(&honest, 1).await.unwrap(), packed.file(1));
    assert_eq!(packed.repository.requests(), asked);
    honest.close().await;
    let evil = forging();
    assert_eq!(evil.standing(0), Standing::Poisoned, "known from the start");
    evil.close().await;
    // Who has read no names from headers asks for none of it.
    let unnamed = packed.shown(repository(), &packed.index);
    assert!(!unnamed.owes(0));
    unnamed.close().await;
}

/// The other place has chosen its index, so nobody has compared what it shares.
#[tokio::test(flavor = "multi_thread")]
async fn an_image_with_other_headers_takes_nothing_from_a_place_that_mounts_the_layer_by_reference() {
    let packed = Packed::new(&[2 * CHUNK + 5, 100]);
    let honest = packed.loader(plain());
    for extent in 0..2 {
        read_all(&honest, extent).await.unwrap();
    }
    packed.shared_whole(&honest).await;
    let wrong = packed.named_by(&packed.renamed());
    let forger = Arc::new(Memory::new());
    forger.replace(&packed.blob().digest, packed.renamed());
    forger.replace(&packed.bound_blob().digest, packed.index_blob.clone());
    let evil = packed.shown(Arc::new(Elsewhere(Arc::clone(&forger))), &wrong);
    // Its one chunk is right: it is shown what others keep, and compared by its own headers.
    let _before_the_verdict = evil.read(id(0), ContentRange::new(0, 1)).await;
    until(|| evil.standing(0) == Standing::Poisoned).await;
    let store = Arc::clone(&evil.shelf.store);
    until(|| !store.proved(&evil.shelf.who, &packed.bound().kept_as)).await;
    evil.close().await;
    assert_eq!(honest.share().kept, 2 * CHUNK + 5 + 100, "all of it is here still");
    honest.close().await;
    let asked = packed.repository.requests();
    let again = packed.loader(plain());
    for extent in 0..2 {
        assert_eq!(read_all(&again, extent).await.unwrap(), packed.file(extent));
    }
    assert_eq!(packed.repository.requests(), asked);
    again.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forged_index_stays_known_though_the_same_place_mounts_it_by_reference_meanwhile() {
    let packed = Packed::new(&[2 * CHUNK + 5, 100]);
    let (forger, forged) = packed.forged();
    let by_digest = || packed.shown(Arc::clone(&forger) as _, &forged);
    let first = by_digest();
    read_all(&first, 0).await.unwrap();
    let _before_the_verdict = read_all(&first, 1).await;
    until(|| first.standing(0) == Standing::Poisoned).await;
    first.close().await;
    let chosen = loader_in(&packed.dir, packed.budget, Arc::clone(&forger) as _, &forged, plain());
    for extent in 0..2 {
        read_all(&chosen, extent).await.unwrap();
    }
    let (store, who) = (Arc::clone(&chosen.shelf.store), forger.identity());
    let name = forged.layers[0].kept_as();
    until(|| store.proved(&who, name)).await;
    chosen.close().await;
    let asked = forger.requests();
    let again = by_digest();
    assert_eq!(again.standing(0), Standing::Poisoned, "known from the start");
    assert!(read_all(&again, 0).await.is_err());
    assert_eq!(forger.requests(), asked);
    again.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_with_wrong_headers_costs_the_mount_that_was_given_it_and_none_after_it() {
    // What the repository gives when it is asked anew: the right ones, or the wrong ones once more.
    for gives_right in [true, false] {
        let packed = Packed::new(&[2 * CHUNK + 5, 100]);
        let (right, wrong) = (packed.named_by(&packed.layer), packed.named_by(&packed.renamed()));
        let mount = |index: &Arc<Index>| packed.shown(Arc::clone(&packed.repository) as _, index);
        if !gives_right {
            packed.repository.replace(&packed.blob().digest, packed.renamed());
        }
        let misled = mount(&wrong);
        let (store, who) = (Arc::clone(&misled.shelf.store), packed.repository.identity());
        store.keep_gaps(&who, &wrong.layers[0]);
        read_all(&misled, 0).await.unwrap();
        let _before_the_verdict = read_all(&misled, 1).await;
        until(|| misled.standing(0) == Standing::Poisoned).await;
        assert!(store.gaps(&who, &packed.blob().digest).is_empty(), "nobody is given them again");
        let error = read_all(&misled, 0).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.to_string().contains("headers")),
            (Kind::Integrity, gives_right),
            "{error}"
        );
        misled.close().await;
        let ranges = packed.repository.ranges();
        let asked: Vec<_> = ranges.iter().rev().take(2).map(|(_, range)| range.len()).collect();
        assert_eq!(asked, [512 + 100 + 512, 512], "what lies between, and of small files all at once");
        packed.corrupt(&[]);
        let before = packed.repository.requests();
        let next = mount(&right);
        assert_eq!(next.standing(0), Standing::Proved);
        for extent in 0..2 {
            assert_eq!(read_all(&next, extent).await.unwrap(), packed.file(extent));
        }
        until(|| !next.owes(0)).await;
        whole(&next, 0).await;
        if gives_right {
            assert!(packed.repository.requests() <= before + 1, "all was here but the padding at the end");
        }
        next.close().await;
        // Once more the wrong ones.
        let misled = mount(&wrong);
        until(|| misled.standing(0) == Standing::Poisoned).await;
        misled.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_is_not_asked_to_compare_what_another_has_compared_with_the_same_headers() {
    let packed = Packed::new(&[2 * CHUNK + 5, 100]);
    let right = packed.named_by(&packed.layer);
    let first = packed.shown(Arc::clone(&packed.repository) as _, &right);
    for extent in 0..2 {
        read_all(&first, extent).await.unwrap();
    }
    until(|| !first.owes(0)).await;
    let second = packed.shown(Arc::new(Elsewhere(Arc::clone(&packed.repository))), &right);
    second.read(id(0), ContentRange::new(0, 1)).await.unwrap();
    until(|| !second.owes(0)).await;
    whole(&second, 0).await;
    assert_eq!(second.metrics.proved_layers.value(), 0, "nothing was hashed");
    for loader in [first, second] {
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_vanishes_or_has_no_room_costs_no_byte_and_no_standing() {
    let mut packed = Packed::new(&[6 * CHUNK]);
    packed.budget = 2 * CHUNK;
    let loader = packed.loader(Config { memory: 0, ..strict() });
    for _ in 0..2 {
        assert_eq!(read_all(&loader, 0).await.unwrap(), packed.file(0));
    }
    vanish(&packed.dir.path().join("store")).await;
    for number in 0..6 {
        assert_eq!(loader.read(id(0), chunk(number)).await.unwrap(), slice(packed.file(0), chunk(number)));
    }
    packed.corrupt(&[(0, 5)]);
    // Until the right one is not in memory any more.
    let mut rounds = 0..15_000;
    let error = loop {
        assert!(rounds.next().is_some(), "never asked for again");
        match loader.read(id(0), chunk(0)).await {
            Err(error) => break error,
            Ok(right) => assert_eq!(right, slice(packed.file(0), chunk(0))),
        }
        for number in 1..6 {
            loader.read(id(0), chunk(number)).await.unwrap();
        }
    };
    assert_eq!(error.kind(), Kind::Integrity, "still held to the section");
    assert_eq!(loader.standing(0), Standing::Proved);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_layer_beside_a_bound_one_is_served_as_it_is_set() {
    let packed = Packed::new(&[2 * CHUNK, CHUNK]);
    let mut index = Index::clone(&packed.index);
    let plain_layer = Layer { bound: None, ..index.layers[0].clone() };
    index.layers.push(plain_layer);
    let fetched_for_a_byte = |integrity| {
        let (index, repository) = (Arc::new(index.clone()), Arc::clone(&packed.repository));
        async move {
            let dir = tempfile::tempdir().unwrap();
            let store = Store::open(&StoreConfig { folder: dir.path().join("store"), size: None }).unwrap();
            let config = Config { integrity, ..plain() };
            let loader = Loader::new(repository, index, store, config, Arc::default());
            assert_eq!(loader.is_strict(), integrity == Integrity::Strict);
            let second = ExtentId { layer: 1, extent: 0 };
            loader.read(second, ContentRange::new(0, 1)).await.unwrap();
            let fetched = loader.metrics.fetched_bytes.value();
            loader.close().await;
            fetched
        }
    };
    for (integrity, fetched) in
        [(Integrity::Auto, CHUNK), (Integrity::Deferred, CHUNK), (Integrity::Strict, 3 * CHUNK)]
    {
        assert_eq!(fetched_for_a_byte(integrity).await, fetched, "{integrity:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn warming_all_brings_all_but_what_is_wrong() {
    let packed = Packed::new(&[40 * CHUNK, 10, 2 * CHUNK]);
    packed.corrupt(&[(0, 5), (0, 20 * CHUNK)]);
    let loader = packed.loader(Config { warm: Warm::All, ..Config::default() });
    loader.warm();
    until(|| loader.share().kept == 40 * CHUNK + 10).await;
    assert_eq!(loader.refused(), [(id(0), 0), (id(0), 20)]);
    loader.close().await;
}

/// What happens to a bound layer, its registry and its store, in any order.
#[derive(Clone, Debug)]
enum Step {
    Read { extent: usize, start: u64, len: u64 },
    Warm { extent: usize },
    Hold { extent: usize },
    Corrupt { extent: usize, at: u64 },
    LoseSection,
    Mend,
    Damage { ending: usize, extent: usize, at: u64 },
    Wipe,
    Restart { elsewhere: bool },
}

const SIZES: [u64; 3] = [2 * CHUNK + 7, 100, CHUNK];

fn step() -> impl Strategy<Value = Step> {
    let place = || prop_oneof![Just(0), Just(CHUNK - 1), Just(CHUNK), 0..3 * CHUNK];
    prop_oneof![
        8 => (0..3_usize, place(), place()).prop_map(|(extent, start, len)| Step::Read { extent, start, len }),
        2 => (0..3_usize).prop_map(|extent| Step::Warm { extent }),
        2 => (0..3_usize).prop_map(|extent| Step::Hold { extent }),
        3 => (0..3_usize, place()).prop_map(|(extent, at)| Step::Corrupt { extent, at }),
        1 => Just(Step::LoseSection),
        2 => Just(Step::Mend),
        4 => (0..3_usize, 0..3_usize, place()).prop_map(|(ending, extent, at)| Step::Damage { ending, extent, at }),
        1 => Just(Step::Wipe),
        3 => any::<bool>().prop_map(|elsewhere| Step::Restart { elsewhere }),
    ]
}

/// A bound layer, what is wrong with its registry at the moment, and the processes that read it at once: of two places.
struct Trial {
    packed: Packed,
    wrong: Vec<(usize, u64)>,
    section_lost: bool,
    loaders: [Arc<Loader>; 2],
}

impl Trial {
    async fn take(&mut self, step: &Step) {
        match *step {
            Step::Read { extent, start, len } => {
                let [one, two] = &self.loaders;
                tokio::join!(self.read(one, extent, start, len), self.read(two, extent, start, len));
            }
            Step::Warm { extent } => {
                let all = ContentRange::new(0, u64::MAX);
                drop(self.loaders[0].fetch_missing(id(extent), all, Lane::Ahead).await);
            }
            Step::Hold { extent } => {
                for held in self.loaders.iter().map(|loader| loader.hold(id(extent))) {
                    let Some(file) = held.whole() else { continue };
                    let mut found = vec![0; self.packed.file(extent).len()];
                    file.read_exact_at(&mut found, 0).unwrap();
                    assert!(found == self.packed.file(extent), "handed to the kernel");
                }
            }
            Step::Corrupt { extent, at } => {
                self.wrong.push((extent, at % SIZES[extent]));
                self.packed.corrupt(&self.wrong);
            }
            Step::LoseSection => {
                self.section_lost = true;
                self.packed.change_section(|blob| blob[HEAD] ^= 1);
            }
            Step::Mend => {
                self.wrong.clear();
                self.section_lost = false;
                self.packed.corrupt(&[]);
                self.packed.change_section(|_| ());
            }
            Step::Damage { ending, extent, at } => {
                let path = self.packed.kept(extent, ["data", "digests", "kept"][ending]);
                if let Ok(mut file) = std::fs::read(&path)
                    && !file.is_empty()
                {
                    let at = usize::try_from(at).unwrap() % file.len();
                    file[at] ^= 1;
                    let writing = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
                    writing.write_all_at(&file[at..=at], at as u64).unwrap();
                }
            }
            Step::Wipe => {
                let _nothing_there = std::fs::remove_dir_all(self.packed.dir.path().join("store/layers"));
            }
            Step::Restart { elsewhere } => {
                let loader = &mut self.loaders[usize::from(elsewhere)];
                loader.close().await;
                *loader = match elsewhere {
                    true => self.packed.elsewhere(&self.packed.repository),
                    false => self.packed.loader(plain()),
                };
            }
        }
    }

    /// Right bytes, or an error where something of what is read is wrong in the registry.
    async fn read(&self, loader: &Arc<Loader>, extent: usize, start: u64, len: u64) {
        let range = ContentRange::new(start, start + len);
        let grid = Grid::new(SIZES[extent]);
        match loader.read(id(extent), range).await {
            Ok(bytes) => {
                let expected = range.meet(ContentRange::new(0, SIZES[extent]));
                let expected =
                    if expected.is_empty() { &[][..] } else { slice(self.packed.file(extent), expected) };
                assert!(bytes == expected, "{extent} {range}");
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::Integrity, "{error}");
                let chunks = grid.covering(range);
                let touched =
                    self.wrong.iter().any(|(file, at)| *file == extent && chunks.contains(&(at / CHUNK)));
                assert!(touched || self.section_lost, "{error}");
            }
        }
        assert_eq!(loader.standing(0), Standing::Proved);
    }
}

#[test]
fn whatever_happens_a_read_of_a_bound_layer_is_right_or_an_error_that_the_registry_is_to_blame_for() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in prop::collection::vec(step(), 1..30))| {
        runtime.block_on(async {
            let packed = Packed::new(&SIZES);
            let loaders = [packed.loader(plain()), packed.elsewhere(&packed.repository)];
            let mut trial = Trial { packed, wrong: Vec::new(), section_lost: false, loaders };
            for step in &steps {
                trial.take(step).await;
            }
            trial.take(&Step::Mend).await;
            for loader in &trial.loaders {
                for extent in 0..SIZES.len() {
                    assert_eq!(read_all(loader, extent).await.unwrap(), trial.packed.file(extent));
                }
                assert!(loader.refused().is_empty());
                loader.close().await;
            }
        });
    });
}
