//! What a compressed layer without an index promises while it goes by, over a line in memory that a test lets flow.

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::super::loader_tests::{content, id, plain, quiet, until};
use super::super::spans_tests::weights;
use super::super::store::prune::Prune;
use super::super::{Config, Integrity, Loader, Standing, Store, StoreConfig, Warm};
use super::{Names, State};
use crate::codec::gzip::tests::member;
use crate::codec::tar::tests::plain as header;
use crate::codec::zstd::Compressor;
use crate::error::{Error, Kind, Result};
use crate::index::{CHUNK, Coding, ExtentId, Index, Layer, local};
use crate::metrics::Metrics;
use crate::oci::artifact::ModelLayer;
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Blob, Descriptor, Digest, Which};
use crate::range::{ContentRange, StoredRange};
use crate::repository::around::Around;
use crate::repository::memory::{Memory, nothing};
use crate::repository::{ByteStream, Pinned, Repository};

/// How much of a layer comes at once.
const PIECE: u64 = 100_000;

/// A repository of one blob, which comes as fast as it is let.
#[derive(Debug)]
struct Line {
    blob: Mutex<Bytes>,
    /// A permit for each piece; closed where all may come.
    flow: Semaphore,
    /// From where on nothing comes but an error.
    cut: Mutex<Option<u64>>,
    asked: Mutex<Vec<StoredRange>>,
}

impl Line {
    async fn piece(&self, at: u64, end: u64) -> Result<Bytes> {
        if let Ok(permit) = self.flow.acquire().await {
            permit.forget();
        }
        if self.cut.lock().is_some_and(|cut| at >= cut) {
            return Err(Error::new(Kind::Unreachable, "nobody answers"));
        }
        let end = end.min(at + PIECE);
        Ok(self.blob.lock().slice(usize::try_from(at).unwrap()..usize::try_from(end).unwrap()))
    }
}

impl Around for Arc<Line> {
    fn inner(&self) -> &dyn Repository {
        nothing()
    }

    fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        unreachable!("nobody asks")
    }

    fn read<'a>(&'a self, _: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        self.asked.lock().push(range);
        let line = Arc::clone(self);
        let pieces = stream::unfold(range.start(), move |at| {
            let line = Arc::clone(&line);
            async move {
                let piece = if at < range.end() { Some(line.piece(at, range.end()).await) } else { None }?;
                let next = piece.as_ref().map_or(range.end(), |piece| at + piece.len() as u64);
                Some((piece, next))
            }
        });
        Box::pin(async move { Ok(Box::pin(pieces) as ByteStream) })
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Around::read(self, blob, range)
    }

    fn identity(&self) -> String {
        "me".to_owned()
    }
}

/// One compressed layer of these files, named by their numbers.
struct Model {
    files: Vec<Vec<u8>>,
    line: Arc<Line>,
    index: Arc<Index>,
    dir: tempfile::TempDir,
    room: u64,
}

fn archive(files: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, file) in files.iter().enumerate() {
        bytes.extend(header(&number.to_string(), file.len() as u64));
        bytes.extend(file);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

fn gzip(files: &[Vec<u8>]) -> (&'static str, Vec<u8>) {
    ("tar+gzip", member(&archive(files), 1))
}

fn zstd(files: &[Vec<u8>]) -> (&'static str, Vec<u8>) {
    let mut stored = Vec::new();
    Compressor::new(1).unwrap().frame(&archive(files), &mut stored).unwrap();
    ("tar+zstd", stored)
}

impl Model {
    /// A model whose line lets nothing through yet.
    fn new(files: Vec<Vec<u8>>, form: impl Fn(&[Vec<u8>]) -> (&'static str, Vec<u8>)) -> Self {
        let (suffix, stored) = form(&files);
        Self::of(files, suffix, &stored, &stored)
    }

    /// One whose repository gives `given` for what should be `stored`.
    fn of(files: Vec<Vec<u8>>, suffix: &str, stored: &[u8], given: &[u8]) -> Self {
        let described = Self::described(layer(suffix, stored));
        let line = Line {
            blob: Mutex::new(Bytes::copy_from_slice(given)),
            flow: Semaphore::new(0),
            cut: Mutex::default(),
            asked: Mutex::default(),
        };
        let index = Index { layers: vec![described], ..Index::default() };
        let dir = tempfile::tempdir().unwrap();
        Self { files, line: Arc::new(line), index: Arc::new(index), dir, room: 1 << 30 }
    }

    fn described(layer: ModelLayer) -> Layer {
        Layer {
            blob: layer.descriptor.blob(),
            media_type: layer.descriptor.media_type.clone(),
            diff_id: None,
            coding: Coding::Streamed(Arc::new(layer), None),
            extents: Vec::new(),
            gaps: Vec::new(),
            bound: None,
        }
    }

    /// Takes the layer's index out of the store.
    fn lose_index(&self) {
        let home = self.dir.path().join("store/layers/sha256").join(self.blob().digest.hex());
        std::fs::remove_file(home.join(format!("index-{}", self.reading()))).unwrap();
    }

    fn store(&self) -> Arc<Store> {
        let folder = self.dir.path().join("store");
        Store::open(&StoreConfig { folder, size: Some(self.room) }).unwrap()
    }

    fn loader(&self, config: Config) -> Arc<Loader> {
        let repository = Arc::new(Arc::clone(&self.line));
        Loader::new(repository, Arc::clone(&self.index), self.store(), config, Arc::new(Metrics::default()))
    }

    fn blob(&self) -> &Blob {
        &self.index.layers[0].blob
    }

    fn reading(&self) -> String {
        match &self.index.layers[0].coding {
            Coding::Streamed(layer, _) => layer.reading(),
            other => unreachable!("{other:?}"),
        }
    }

    /// Lets everything through from now on.
    fn open(&self) {
        self.line.flow.close();
    }

    async fn assert_all(&self, loader: &Arc<Loader>) {
        for (number, file) in self.files.iter().enumerate() {
            let read = loader.read(id(number), ContentRange::new(0, u64::MAX)).await.unwrap();
            assert!(read == file, "file {number}");
        }
    }
}

fn layer(suffix: &str, stored: &[u8]) -> ModelLayer {
    let descriptor = Descriptor {
        media_type: format!("application/vnd.cncf.modelpack.model.layer.v1.{suffix}"),
        digest: Digest::of(stored),
        size: stored.len() as u64,
        annotations: std::collections::BTreeMap::new(),
    };
    let artifact = Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() }).unwrap();
    artifact.layers.into_iter().next().unwrap()
}

fn some_files() -> Vec<Vec<u8>> {
    [300_000, 2 * CHUNK + 17, 1, CHUNK, 3 * CHUNK - 1]
        .into_iter()
        .zip(1..)
        .map(|(len, seed)| content(seed, len))
        .collect()
}

async fn named(loader: &Loader, count: usize) {
    while loader.coming(0).count() < count {
        loader.more_names(0, loader.coming(0).count()).await.unwrap();
    }
}

async fn standing(loader: &Loader, wanted: Standing) {
    let mut standing = loader.layers[0].standing.subscribe();
    let reached = standing.wait_for(|standing| *standing == wanted);
    tokio::time::timeout(Duration::from_secs(30), reached).await.expect("never came").unwrap();
}

fn all(loader: &Loader, file: usize) -> ContentRange {
    ContentRange::new(0, loader.len(id(file)))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_file_is_right_as_it_goes_by_and_what_was_found_out_is_kept() {
    for form in [gzip, zstd] {
        let model = Model::new(some_files(), form);
        model.open();
        let loader = model.loader(plain());
        loader.more_names(0, 4).await.unwrap();
        named(&loader, 5).await;
        assert_eq!(
            loader.coming(0).entries(3).map(|(_, entry)| &*entry.path).collect::<Vec<_>>(),
            ["3", "4"]
        );
        model.assert_all(&loader).await;
        loader.let_pass(0).await.unwrap();
        assert_eq!(loader.standing(0), Standing::Proved);
        assert!(matches!(loader.coming(0).names, Names::Known));
        assert_eq!(*model.line.asked.lock(), [StoredRange::new(0, model.blob().size)], "once, as a whole");
        assert_eq!(loader.share().kept, loader.share().total);
        loader.close().await;

        let index = Arc::new(model.store().index("me", &model.blob().digest, &model.reading()).unwrap());
        let (layer, entries) = local::open(index, model.blob(), 0).unwrap();
        assert_eq!((layer.extents.len(), entries.len()), (5, 5));
        assert_eq!(layer.kept_as(), &model.blob().digest);
        let again = Arc::new(Index { entries, layers: vec![layer], ..Index::default() });
        let (repository, metrics) = (Arc::new(Arc::clone(&model.line)), Arc::new(Metrics::default()));
        let loader = Loader::new(repository, again, model.store(), plain(), metrics);
        model.assert_all(&loader).await;
        assert_eq!(model.line.asked.lock().len(), 1, "the next one has all of it");
        loader.close().await;
    }
}

/// Has a model of files of 3 MiB gone by, evicts all of it, and flips a bit in each window that `damaged` names, once the index
/// is open. Gives the model, the index's file, and a loader that goes by it.
async fn with_a_damaged_index(damaged: &[usize]) -> (Model, std::path::PathBuf, Arc<Loader>) {
    // The quickest level writes a single block, within which decoding can't start.
    let in_blocks = |files: &[Vec<u8>]| ("tar+gzip", member(&archive(files), 2));
    let model = Model::new((1..7).map(|seed| weights(seed, 3 << 20)).collect(), in_blocks);
    model.open();
    let loader = model.loader(plain());
    loader.let_pass(0).await.unwrap();
    loader.close().await;
    drop(loader);
    // Open, so that it is not evicted along with the files.
    let index = Arc::new(model.store().index("me", &model.blob().digest, &model.reading()).unwrap());
    let is_evicted = || {
        let _pruned = model.store().prune(Prune::Keep(0));
        model.store().holdings().is_empty()
    };
    until(is_evicted).await;
    let path = std::fs::read_link(format!("/proc/self/fd/{}", index.as_raw_fd())).unwrap();
    let (layer, entries) = local::open(index, model.blob(), 0).unwrap();
    let Coding::Spans(spans) = &layer.coding else { unreachable!("the layer has gone by") };
    let table = crate::codec::gzip::Table::decode(spans.table.bytes.as_ref().unwrap()).unwrap();
    let windows: Vec<_> = (0..)
        .take_while(|span| !table.content(*span).is_empty())
        .filter_map(|span| table.window(span))
        .collect();
    assert_eq!(windows.len(), 4);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    for window in damaged {
        let at = spans.checkpoints.as_ref().unwrap().range.start() + windows[*window].range.start();
        file.write_all_at(b"damage", at).unwrap();
    }
    model.line.asked.lock().clear();
    let again = Arc::new(Index { entries, layers: vec![layer], ..Index::default() });
    let (repository, metrics) = (Arc::new(Arc::clone(&model.line)), Arc::new(Metrics::default()));
    let loader = Loader::new(repository, again, model.store(), plain(), metrics);
    (model, path, loader)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_read_while_the_rest_of_its_layer_is_still_to_come() {
    for form in [gzip, zstd] {
        let model = Model::new(some_files(), form);
        let loader = model.loader(plain());
        let waiting = tokio::spawn({
            let loader = Arc::clone(&loader);
            async move {
                named(&loader, 1).await;
                loader.read(id(0), ContentRange::new(0, u64::MAX)).await
            }
        });
        model.line.flow.add_permits(9);
        assert!(waiting.await.unwrap().unwrap() == model.files[0]);
        assert!(matches!(loader.coming(0).names, Names::Coming));
        assert_eq!(loader.standing(0), Standing::Unproved);
        assert!(loader.ready(id(0), ContentRange::new(5, 10)).is_some());
        model.open();
        named(&loader, 5).await;
        model.assert_all(&loader).await;
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_named_or_served_before_the_proof_where_that_is_asked_for() {
    let model = Model::new(some_files(), gzip);
    let loader = model.loader(Config { integrity: Integrity::Strict, ..plain() });
    let read = tokio::spawn({
        let loader = Arc::clone(&loader);
        async move {
            named(&loader, 1).await;
            (loader.standing(0), loader.read(id(0), ContentRange::new(0, u64::MAX)).await)
        }
    });
    model.line.flow.add_permits(20);
    let come = || loader.layers[0].extents.count() >= 2;
    while !come() {
        tokio::task::yield_now().await;
    }
    assert_eq!(loader.coming(0).count(), 0);
    assert!(loader.ready(id(0), ContentRange::new(0, 10)).is_none());
    model.open();
    let (standing, read) = read.await.unwrap();
    assert_eq!(standing, Standing::Proved);
    assert!(read.unwrap() == model.files[0]);
    model.assert_all(&loader).await;
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_were_proved_stay_when_the_proof_is_lost() {
    let model = Model::new(some_files(), gzip);
    model.open();
    let loader = model.loader(Config { integrity: Integrity::Strict, ..plain() });
    loader.let_pass(0).await.unwrap();
    loader.set_unproved(0);
    loader.more_names(0, 0).await.unwrap();
    assert_eq!(loader.coming(0).count(), 5);
    assert!(matches!(loader.coming(0).names, Names::Known));
    loader.close().await;
}

/// Damages what the store has on record of the digests of a file's chunks.
fn damage_records(model: &Model, file: usize, damage: impl Fn(&std::fs::File)) {
    let home = model.dir.path().join("store/layers/sha256").join(model.blob().digest.hex());
    let records = std::fs::read_dir(home).unwrap().map(|entry| entry.unwrap().path());
    let len = format!("-{}.digests", model.files[file].len());
    let path = records.into_iter().find(|path| path.to_str().unwrap().ends_with(&len)).unwrap();
    damage(&std::fs::File::options().write(true).open(path).unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_are_damaged_after_a_layer_has_gone_by_cost_no_proof_and_no_byte() {
    let damages: [fn(&std::fs::File); 2] =
        [|records| records.write_all_at(b"x", 3).unwrap(), |records| records.set_len(0).unwrap()];
    for damage in damages {
        for integrity in [Integrity::Strict, Integrity::Deferred] {
            let model = Model::new(some_files(), zstd);
            model.open();
            let loader = model.loader(Config { integrity, memory: CHUNK, ..plain() });
            loader.let_pass(0).await.unwrap();
            assert_eq!(loader.share().kept, loader.share().total);
            damage_records(&model, 4, damage);
            // Opened anew, so that what is on record is looked at.
            let is_closed = || {
                loader.shelf.store.release_idle(Duration::ZERO);
                loader.extents(0).all(|extent| extent.open_kept().is_none())
            };
            until(is_closed).await;
            model.assert_all(&loader).await;
            assert_eq!(loader.standing(0), Standing::Proved);
            assert_eq!(model.line.asked.lock().len(), 1, "nothing is fetched again");
            loader.close().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_that_was_lost_after_a_layer_has_gone_by_is_made_again_for_who_waits_for_it() {
    let model = Model::new(some_files(), gzip);
    model.open();
    let loader = model.loader(Config { integrity: Integrity::Strict, ..plain() });
    loader.let_pass(0).await.unwrap();
    loader.set_unproved(0);
    model.assert_all(&loader).await;
    assert_eq!(loader.standing(0), Standing::Proved);
    assert_eq!(model.line.asked.lock().len(), 1, "nothing is fetched again");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_not_said_for_a_proof_of_earlier_before_their_own_bytes_are_proved() {
    let model = Model::new(some_files(), gzip);
    model.open();
    let loader = model.loader(plain());
    loader.let_pass(0).await.unwrap();
    loader.close().await;
    model.lose_index();
    let (_, other) = gzip(&[some_files(), vec![b"one more".to_vec()]].concat());
    let again = Model::of(some_files(), "tar+gzip", &other, &other);
    *model.line.blob.lock() = again.line.blob.lock().clone();
    let mut index = (*model.index).clone();
    index.layers[0].blob.size = other.len() as u64;
    let model = Model { index: Arc::new(index), ..model };
    let loader = model.loader(Config { integrity: Integrity::Strict, ..plain() });
    assert_eq!(loader.standing(0), Standing::Proved, "by the process before");
    let _ = loader.more_names(0, 0).await;
    assert_eq!(loader.coming(0).count(), 0);
    standing(&loader, Standing::Poisoned).await;
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_not_what_its_digest_says_is_poisoned_when_it_has_gone_by() {
    let (suffix, stored) = gzip(&some_files());
    let model = Model::of(some_files(), suffix, b"something else of another size", &stored);
    let mut index = (*model.index).clone();
    index.layers[0].blob.size = stored.len() as u64;
    let model = Model { index: Arc::new(index), ..model };
    model.open();
    let loader = model.loader(plain());
    let poisonings = loader.poisonings();
    named(&loader, 1).await;
    standing(&loader, Standing::Poisoned).await;
    assert_eq!(loader.read(id(0), ContentRange::new(0, 1)).await.unwrap_err().kind(), Kind::Integrity);
    assert!(model.store().index("me", &model.blob().digest, &model.reading()).is_none());
    drop(poisonings);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_breaks_in_its_middle_serves_what_came_before_and_an_error_for_the_rest() {
    for form in [gzip, zstd] {
        let (suffix, mut stored) = form(&some_files());
        // What a writer broke off before it digested it.
        stored.truncate(stored.len() / 2);
        let model = Model::of(some_files(), suffix, &stored, &stored);
        model.open();
        let loader = model.loader(plain());
        named(&loader, 2).await;
        assert!(loader.read(id(0), ContentRange::new(0, u64::MAX)).await.unwrap() == model.files[0]);
        let error = loader.let_pass(0).await.unwrap_err();
        assert!(!matches!(error.kind(), Kind::Deadline | Kind::Broken), "{error}");
        assert!(matches!(loader.coming(0).names, Names::Lost(_)));
        assert_eq!(loader.standing(0), Standing::Unproved);
        let last = loader.layers[0].extents.count() - 1;
        for file in 0..=last {
            match loader.read(id(file), all(&loader, file)).await {
                Ok(read) => assert!(read == model.files[file], "file {file}"),
                Err(error) => assert!(file > 0, "{error}"),
            }
        }
        assert!(loader.read(id(last), all(&loader, last)).await.is_err());
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_stops_coming_is_an_error_for_who_waits_and_goes_on_where_it_was_for_who_asks_next() {
    let model = Model::new(some_files(), gzip);
    let cut = 20 * PIECE;
    *model.line.cut.lock() = Some(cut);
    model.open();
    let loader = model.loader(plain());
    named(&loader, 2).await;
    let error = loader.read(id(1), ContentRange::new(0, u64::MAX)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unreachable, "{error}");
    assert_eq!(loader.more_names(0, 4).await.unwrap_err().kind(), Kind::Unreachable);
    assert!(loader.read(id(0), ContentRange::new(0, u64::MAX)).await.unwrap() == model.files[0]);
    quiet(&loader).await;
    *model.line.cut.lock() = None;
    assert!(loader.read(id(1), ContentRange::new(0, u64::MAX)).await.unwrap() == model.files[1]);
    loader.let_pass(0).await.unwrap();
    model.assert_all(&loader).await;
    let asked = model.line.asked.lock().clone();
    assert!(asked.iter().skip(1).all(|range| range.start() == cut), "{asked:?}");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_given_up_when_the_loader_closes() {
    let model = Model::new(some_files(), gzip);
    let loader = model.loader(plain());
    let waiting = tokio::spawn({
        let loader = Arc::clone(&loader);
        async move { loader.more_names(0, 0).await }
    });
    let asked = async {
        while model.line.asked.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asked).await.unwrap();
    loader.close().await;
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), Kind::Deadline);
    assert!(loader.more_names(0, 0).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_does_not_come_within_the_deadline_is_an_error() {
    let model = Model::new(some_files(), gzip);
    let loader = model.loader(Config { read_deadline: Duration::from_millis(1), ..plain() });
    assert_eq!(loader.more_names(0, 0).await.unwrap_err().kind(), Kind::Deadline);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_downloads_a_layer_that_nobody_asks_for() {
    let model = Model::new(some_files(), gzip);
    let loader = model.loader(plain());
    loader.warm();
    assert!(matches!(loader.layers[0].stream.as_ref().unwrap().progress.borrow().state, State::Idle));
    loader.close().await;

    let model = Model::new(some_files(), gzip);
    model.open();
    let loader = model.loader(Config { warm: Warm::Auto, ..plain() });
    loader.warm();
    standing(&loader, Standing::Proved).await;
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_brought_whole_into_the_store() {
    let model = Model::new(some_files(), zstd);
    model.open();
    let loader = model.loader(plain());
    named(&loader, 5).await;
    let told = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let watch = {
        let told = Arc::clone(&told);
        Arc::new(move |bytes| {
            told.fetch_add(bytes, std::sync::atomic::Ordering::SeqCst);
        }) as _
    };
    loader.bring(0, &loader.files_of(0), &watch).await.unwrap();
    let total: usize = model.files.iter().map(Vec::len).sum();
    assert_eq!(told.load(std::sync::atomic::Ordering::SeqCst), total as u64);
    for (number, file) in model.files.iter().enumerate() {
        assert!(std::fs::read(loader.image(id(number)).unwrap()).unwrap() == *file);
    }
    assert_eq!(loader.kept_at(ExtentId { layer: 0, extent: 9 }), None);
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_who_take_in_the_same_layer_at_once_are_both_right() {
    let model = Model::new(some_files(), gzip);
    let (one, other) = (model.loader(plain()), model.loader(plain()));
    let run = |loader: Arc<Loader>| async move {
        loader.let_pass(0).await.unwrap();
        loader
    };
    let both = tokio::spawn(async move { tokio::join!(run(one), run(other)) });
    model.open();
    let (one, other) = both.await.unwrap();
    model.assert_all(&one).await;
    model.assert_all(&other).await;
    assert_eq!(model.line.asked.lock().len(), 2);
    assert!(model.store().index("me", &model.blob().digest, &model.reading()).is_some());
    one.close().await;
    other.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_was_no_room_for_is_read_by_span_once_the_layer_has_gone_by() {
    let files = vec![content(1, 9 * CHUNK), content(2, CHUNK + 1)];
    let model = Model { room: CHUNK, ..Model::new(files, gzip) };
    model.open();
    let loader = model.loader(Config { memory: CHUNK, ..plain() });
    loader.let_pass(0).await.unwrap();
    assert!(loader.share().kept < loader.share().total, "there was no room");
    assert!(loader.streaming(0).is_none(), "it has spans");
    model.assert_all(&loader).await;
    assert!(model.line.asked.lock().len() > 1, "what was not kept is fetched once more");
    assert!(loader.streaming(0).is_none(), "and the layer has not gone by for it");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_store_a_layer_is_served_and_its_index_is_in_memory() {
    let model = Model::new(some_files(), gzip);
    model.open();
    let loader = model.loader(plain());
    // Nothing can be made in it.
    std::fs::remove_dir_all(model.dir.path().join("store")).unwrap();
    std::fs::write(model.dir.path().join("store"), b"").unwrap();
    loader.let_pass(0).await.unwrap();
    model.assert_all(&loader).await;
    assert!(loader.streaming(0).is_none(), "it has spans");
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_index_was_lost_goes_by_again_and_fetches_its_files_once_more_only_to_name_them() {
    let model = Model::new(some_files(), zstd);
    model.open();
    let loader = model.loader(plain());
    loader.let_pass(0).await.unwrap();
    loader.close().await;
    model.lose_index();
    let loader = model.loader(Config { integrity: Integrity::Strict, ..plain() });
    assert_eq!(loader.standing(0), Standing::Proved, "that is still known");
    named(&loader, 5).await;
    model.assert_all(&loader).await;
    loader.let_pass(0).await.unwrap();
    assert!(model.store().index("me", &model.blob().digest, &model.reading()).is_some());
    loader.close().await;
}

/// The loader of so many layers of one file each, and where they come from.
fn many(layers: u64, dir: &tempfile::TempDir) -> (Arc<Memory>, Arc<Loader>) {
    let memory = Arc::new(Memory::new());
    let described = |seed| {
        let (suffix, stored) = gzip(&[content(seed, 100_000)]);
        memory.put(stored.clone());
        Model::described(layer(suffix, &stored))
    };
    let index = Index { layers: (1..=layers).map(described).collect(), ..Index::default() };
    let store = Store::open(&StoreConfig { folder: dir.path().join("store"), size: Some(1 << 30) }).unwrap();
    let metrics = Arc::new(Metrics::default());
    let loader = Loader::new(Arc::clone(&memory) as _, Arc::new(index), store, plain(), metrics);
    (memory, loader)
}

async fn proved(loader: &Loader, layer: usize) {
    let mut standing = loader.layers[layer].standing.subscribe();
    let proved = standing.wait_for(|standing| *standing == Standing::Proved);
    tokio::time::timeout(Duration::from_secs(30), proved).await.expect("never came").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_of_which_nothing_comes_keep_no_other_one_from_going_by_and_go_by_later_themselves() {
    const STUCK: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    let (memory, loader) = many(STUCK as u64 + 2, &dir);
    let stuck: Vec<_> = loader.index.layers.iter().take(STUCK).map(|layer| layer.blob.clone()).collect();
    memory.fail_with(move |blob, range| {
        let fails = range.start() == 0 && stuck.contains(blob);
        fails.then(|| Error::new(Kind::Unreachable, "nobody answers"))
    });
    let stream = |layer: usize| loader.layers[layer].stream.as_ref().unwrap();
    (0..STUCK / 2).for_each(|layer| stream(layer).begin());
    stream(STUCK).begin();
    proved(&loader, STUCK).await;
    let asked = (0..STUCK).map(|layer| loader.more_names(layer, 0));
    for failed in futures_util::future::join_all(asked).await {
        assert_eq!(failed.unwrap_err().kind(), Kind::Unreachable);
    }
    loader.let_pass(STUCK + 1).await.unwrap();
    memory.fail_with(|_, _| None);
    let asked = (0..STUCK).map(|layer| loader.let_pass(layer));
    futures_util::future::join_all(asked).await.into_iter().collect::<Result<()>>().unwrap();
    let read = loader.read(ExtentId { layer: 3, extent: 0 }, ContentRange::new(0, u64::MAX)).await.unwrap();
    assert!(read == content(4, 100_000));
    loader.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_damaged_costs_decoding_from_the_one_before_and_no_read() {
    for damaged in [&[1, 2][..], &[0, 1, 2, 3]] {
        let (model, path, loader) = with_a_damaged_index(damaged).await;
        for file in [4, 1, 5, 0, 3, 2] {
            let place = ContentRange::new(CHUNK + 9, CHUNK + 4000);
            let read = loader.read(id(file), place).await.unwrap();
            assert!(
                read == model.files[file][usize::try_from(CHUNK).unwrap() + 9..][..3991],
                "{damaged:?} {file}"
            );
        }
        model.assert_all(&loader).await;
        assert_eq!(loader.standing(0), Standing::Proved);
        until(|| !path.exists()).await;
        loader.close().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_checkpoint_costs_no_more_bytes_than_from_the_one_before() {
    let (model, path, loader) = with_a_damaged_index(&[2]).await;
    // Its first byte lies 16 MiB in the content, in the last span but one.
    let place = ContentRange::new(2 * CHUNK, 2 * CHUNK + 4096);
    for _ in 0..2 {
        assert!(loader.read(id(4), place).await.unwrap() == model.files[4][2 << 20..][..4096]);
    }
    let fetched: u64 = model.line.asked.lock().iter().map(|range| range.len()).sum();
    assert!(fetched < model.blob().size * 6 / 10, "{fetched} of {}", model.blob().size);
    until(|| !path.exists()).await;
    loader.close().await;
}
