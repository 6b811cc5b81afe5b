//! Layers that say themselves where their frames lie, read before they have gone by: over a line on which whole layers come
//! only when a test lets them.
#![allow(clippy::cast_possible_truncation, reason = "sizes of tests fit")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::loader_tests::{id, plain, strict, until};
use super::{Config, Loader, Standing, Store, StoreConfig, Warm};
use crate::error::{Kind, Result};
use crate::index::guide::forms::{
    FORMS, Form, Rows, Written, estargz, estargz_apart, frames, noise, stargz_zstd, storage, with_rows,
};
use crate::index::guide::{Guide, Guides};
use crate::index::{Attached, Coding, Index, Sources, find_in};
use crate::metrics::Metrics;
use crate::oci::{Blob, Descriptor, Digest, Which};
use crate::range::{ContentRange, StoredRange};
use crate::repository::around::Around;
use crate::repository::memory::nothing;
use crate::repository::{ByteStream, Pinned, Repository};

const MIB: usize = 1 << 20;
const PIECE: usize = 200 << 10;

/// A repository of one blob.
#[derive(Debug)]
struct Line {
    blob: Mutex<Vec<u8>>,
    /// Closed where the whole layer may be read as well.
    whole: Semaphore,
    /// Which byte is another one when the whole layer is read.
    damage: Mutex<Option<usize>>,
    asked: Mutex<Vec<StoredRange>>,
}

impl Around for Arc<Line> {
    fn inner(&self) -> &dyn Repository {
        nothing()
    }

    fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        unreachable!("nobody asks")
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.asked.lock().push(range);
        Box::pin(async move {
            if range.len() == blob.size {
                let _ = self.whole.acquire().await;
            }
            let mut bytes = self.blob.lock()[range.start() as usize..range.end() as usize].to_vec();
            if range.len() == blob.size
                && let Some(place) = *self.damage.lock()
            {
                bytes[place] ^= 4;
            }
            Ok(Box::pin(stream::iter([Ok(Bytes::from(bytes))])) as ByteStream)
        })
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Around::read(self, blob, range)
    }

    fn referrers<'a>(&'a self, _: &'a Digest, _: &'a str) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        unreachable!("nobody asks")
    }

    fn identity(&self) -> String {
        "me".to_owned()
    }
}

struct Model {
    files: Vec<(&'static str, Vec<u8>)>,
    line: Arc<Line>,
    index: Index,
    dir: tempfile::TempDir,
}

fn some_files() -> Vec<(&'static str, Vec<u8>)> {
    vec![("a", noise(300_000, 1)), ("b", noise(2 * MIB + 17, 2)), ("c", noise(400_000, 3))]
}

impl Model {
    async fn new(written: Written) -> Self {
        let artifact = written.artifact();
        let line = Line {
            blob: Mutex::new(written.stored),
            whole: Semaphore::new(0),
            damage: Mutex::default(),
            asked: Mutex::default(),
        };
        let line = Arc::new(line);
        let guides = Guides::Checked;
        let sources = Sources {
            bound: None,
            local: &|_| None,
            attached: Attached::Nowhere,
            known: &|_| Vec::new(),
            guides,
            proof: crate::index::Proof::default(),
        };
        let (index, _) = find_in(&line, &artifact, sources).await.unwrap();
        assert!(matches!(&index.layers[0].coding, Coding::Streamed(_, Some(_))), "it has no guide");
        line.asked.lock().clear();
        Self { files: some_files(), line, index, dir: tempfile::tempdir().unwrap() }
    }

    fn loader(&self, config: Config) -> Arc<Loader> {
        let folder = self.dir.path().join("store");
        let store = Store::open(&StoreConfig { folder, size: Some(1 << 30) }).unwrap();
        let (line, index) = (Arc::new(Arc::clone(&self.line)), Arc::new(self.index.clone()));
        Loader::new(line, index, store, config, Arc::new(Metrics::default()))
    }

    /// Which extent the file is, and its content.
    fn file(&self, name: &str) -> (usize, &[u8]) {
        let entry = self.index.entries.iter().find(|entry| entry.path == name).unwrap();
        let crate::index::EntryKind::File { extent: Some(id), .. } = entry.kind else { panic!("{entry:?}") };
        (id.extent, &self.files.iter().find(|(file, _)| *file == name).unwrap().1)
    }

    async fn assert_right(&self, loader: &Arc<Loader>, name: &str) {
        let (extent, content) = self.file(name);
        let read = loader.read(id(extent), ContentRange::new(0, u64::MAX)).await.unwrap();
        assert!(read == content, "{name}");
    }

    async fn assert_all(&self, loader: &Arc<Loader>) {
        for (name, _) in &self.files {
            self.assert_right(loader, name).await;
        }
    }

    fn asked_for_whole(&self) -> usize {
        let size = self.index.layers[0].blob.size;
        self.line.asked.lock().iter().filter(|range| range.len() == size).count()
    }
}

async fn standing(loader: &Loader, wanted: Standing) {
    let mut standing = loader.layers[0].standing.subscribe();
    let reached = standing.wait_for(|standing| *standing == wanted);
    tokio::time::timeout(Duration::from_secs(60), reached).await.expect("never came").unwrap();
}

/// Nobody vouches for its table.
fn unpinned(form: Form) -> Written {
    let mut written = form(&some_files(), PIECE);
    written.annotations.clear();
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_form_are_right_before_the_layer_has_gone_by_and_after() {
    for form in FORMS {
        let model = Model::new(unpinned(form)).await;
        let loader = model.loader(plain());
        model.assert_right(&loader, "b").await;
        assert_eq!(loader.standing(0), Standing::Unproved);
        model.assert_all(&loader).await;
        model.line.whole.close();
        loader.let_pass(0).await.unwrap();
        assert_eq!(loader.standing(0), Standing::Proved);
        model.assert_all(&loader).await;
        assert_eq!(model.asked_for_whole(), 1);
        assert!(loader.streaming(0).is_none(), "it has spans");
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_has_the_layer_go_by_who_has_read_little_of_it() {
    let model = Model::new(unpinned(storage)).await;
    let loader = model.loader(Config { warm: Warm::None, ..plain() });
    assert!(loader.ready(id(0), ContentRange::new(0, 1)).is_none());
    // Less than an eighth.
    loader.count_guided(0, 1000);
    loader.warm();
    tokio::task::yield_now().await;
    assert!(!loader.streaming(0).unwrap().is_going());
    model.assert_right(&loader, "a").await;
    model.line.whole.close();
    model.assert_right(&loader, "b").await;
    standing(&loader, Standing::Proved).await;
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_leads_astray_is_given_up_and_the_layer_waited_for() {
    // Within the second file, so that all headers are where the table says.
    let wrong: [fn(&mut Rows); 3] = [
        |rows| (rows[4].0, rows[5].0) = (rows[4].0 + 10, rows[5].0 - 10),
        |rows| (rows[4].1, rows[5].1) = (rows[4].1 + 100, rows[5].1 - 100),
        |rows| (rows[4].1, rows[5].1) = (rows[4].1 - 100, rows[5].1 + 100),
    ];
    for change in wrong {
        let model = Model::new(with_rows(&some_files(), PIECE, change)).await;
        model.line.whole.close();
        let loader = model.loader(plain());
        model.assert_all(&loader).await;
        standing(&loader, Standing::Proved).await;
        model.assert_all(&loader).await;
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_as_its_table_had_it_is_poisoned_when_it_has_gone_by() {
    let mut model = Model::new(unpinned(estargz)).await;
    model.line.whole.close();
    let Coding::Streamed(layer, Some(guide)) = &model.index.layers[0].coding else { panic!("no guide") };
    let mut entries = guide.entries.clone();
    entries[1].mode ^= 1;
    let guide = Guide { table: guide.table.clone(), entries, parts: None };
    model.index.layers[0].coding = Coding::Streamed(Arc::clone(layer), Some(Arc::new(guide)));
    let loader = model.loader(plain());
    model.assert_right(&loader, "a").await;
    loader.let_pass(0).await.unwrap_err();
    standing(&loader, Standing::Poisoned).await;
    let (extent, _) = model.file("a");
    let error = loader.read(id(extent), ContentRange::new(0, 1)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().contains("own table says"), "the bytes are right: {error}");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_were_read_by_the_guide_must_be_those_that_go_by() {
    let model = Model::new(unpinned(storage)).await;
    let (extent, content) = model.file("a");
    // Incompressible bytes stand in the frame as they are: another one of them still decodes.
    let place = {
        let blob = model.line.blob.lock();
        blob.windows(64).position(|bytes| bytes == &content[1000..1064]).expect("a frame of raw blocks") + 10
    };
    model.line.blob.lock()[place] ^= 1;
    let loader = model.loader(plain());
    let read = loader.read(id(extent), ContentRange::new(0, u64::MAX)).await.unwrap();
    assert!(read != content, "deferred is what it is called");
    model.line.blob.lock()[place] ^= 1;
    model.line.whole.close();
    loader.let_pass(0).await.unwrap_err();
    assert_eq!(loader.standing(0), Standing::Poisoned);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_manifest_pins_is_served_under_strict_before_the_layer_has_gone_by() {
    for form in [storage, stargz_zstd, estargz, estargz_apart] {
        let model = Model::new(form(&some_files(), PIECE)).await;
        let loader = model.loader(strict());
        model.assert_all(&loader).await;
        assert_eq!(loader.standing(0), Standing::Unproved);
        model.line.whole.close();
        loader.let_pass(0).await.unwrap();
        assert_eq!(loader.standing(0), Standing::Proved);
        model.assert_all(&loader).await;
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_is_not_what_the_manifest_pins_is_an_error_for_it_alone() {
    for form in [storage, stargz_zstd, estargz, estargz_apart] {
        for config in [plain(), strict()] {
            let model = Model::new(form(&some_files(), PIECE)).await;
            let size = model.index.layers[0].blob.size as usize;
            // In the second chunk of the second file, far from its ends.
            model.line.blob.lock()[size * 6 / 10] ^= 4;
            let loader = model.loader(config);
            let (extent, content) = model.file("b");
            let error = loader.read(id(extent), ContentRange::new(0, u64::MAX)).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Integrity, "{error}");
            let first = loader.read(id(extent), ContentRange::new(0, 1 << 20)).await.unwrap();
            assert!(first == content[..MIB]);
            model.assert_right(&loader, "a").await;
            model.assert_right(&loader, "c").await;
            assert_eq!(loader.standing(0), Standing::Unproved);
            loader.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn strict_waits_for_the_layer_where_nobody_vouches_for_its_table() {
    let model = Model::new(unpinned(frames)).await;
    let loader = model.loader(strict());
    let reading = tokio::spawn({
        let loader = Arc::clone(&loader);
        async move { loader.read(id(0), ContentRange::new(0, u64::MAX)).await }
    });
    while model.asked_for_whole() == 0 {
        tokio::task::yield_now().await;
    }
    assert!(!reading.is_finished());
    model.line.whole.close();
    assert!(reading.await.unwrap().unwrap() == model.files[0].1);
    assert_eq!(loader.standing(0), Standing::Proved);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_answer_of_the_whole_layer_puts_nothing_in_doubt_that_the_manifest_pins() {
    for form in [storage, stargz_zstd, estargz, estargz_apart] {
        for config in [plain(), strict()] {
            let model = Model::new(form(&some_files(), PIECE)).await;
            let size = model.index.layers[0].blob.size as usize;
            *model.line.damage.lock() = Some(size * 6 / 10);
            let loader = model.loader(config);
            model.assert_right(&loader, "a").await;
            model.line.whole.close();
            loader.let_pass(0).await.unwrap_err();
            assert_eq!(loader.standing(0), Standing::Unproved);
            model.assert_all(&loader).await;
            assert_eq!(loader.standing(0), Standing::Unproved);
            loader.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_by_a_table_that_nobody_vouches_for_is_held_to_one_that_is_pinned() {
    for config in [plain(), strict()] {
        let mut model = Model::new(storage(&some_files(), PIECE)).await;
        let pinned = model.index.clone();
        model.index = Model::new(unpinned(storage)).await.index;
        let (extent, content) = model.file("a");
        let place = {
            let blob = model.line.blob.lock();
            blob.windows(64).position(|bytes| bytes == &content[1000..1064]).expect("a raw frame") + 10
        };
        model.line.blob.lock()[place] ^= 1;
        let loader = model.loader(Config { warm: Warm::None, ..plain() });
        let read = loader.read(id(extent), ContentRange::new(0, u64::MAX)).await.unwrap();
        assert!(read != content, "deferred is what it is called");
        // Kept behind the reader.
        until(|| loader.share().kept > 0).await;
        loader.close().await;
        model.line.blob.lock()[place] ^= 1;
        model.index = pinned;
        let loader = model.loader(config);
        assert!(loader.share().kept > 0, "the wrong chunk is kept");
        model.assert_all(&loader).await;
        loader.close().await;
    }
}
