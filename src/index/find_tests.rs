//! Tests of [`find`] against whole layers in memory, with every request counted.

use std::collections::BTreeMap;
use std::sync::Mutex;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use proptest::prelude::*;

use super::*;
use crate::codec::tar::tests::{extension, header, plain, record};
use crate::index::{CHUNK, Coding, ExtentId, Gap, Layer};
use crate::oci::artifact::Packaging;
use crate::oci::manifest::Manifest;
use crate::oci::{Blob, Descriptor, Which};
use crate::range::ContentRange;
use crate::repository::around::Around;
use crate::repository::memory::nothing;
use crate::repository::{ByteStream, Pinned};

/// Blobs in memory; a blob that is not there reads as zeros, so that it may be large.
#[derive(Debug, Default)]
struct Memory {
    blobs: BTreeMap<Digest, Vec<u8>>,
    reads: Mutex<Vec<StoredRange>>,
}

impl Around for Memory {
    fn inner(&self) -> &dyn Repository {
        nothing()
    }

    fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        unreachable!("no manifest is asked for")
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        assert!(range.end() <= blob.size && !range.is_empty());
        self.reads.lock().unwrap().push(range);
        let (start, end) = (usize::try_from(range.start()).unwrap(), usize::try_from(range.end()).unwrap());
        let stored = &self.blobs[&blob.digest];
        let mut bytes = stored[start.min(stored.len())..end.min(stored.len())].to_vec();
        bytes.resize(end - start, 0);
        let stream: ByteStream = stream::iter([Ok(Bytes::from(bytes))]).boxed();
        async { Ok(stream) }.boxed()
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        Around::read(self, blob, range)
    }
}

/// A model in the making.
#[derive(Default)]
struct Model {
    repository: Memory,
    layers: Vec<Descriptor>,
}

impl Model {
    fn layer(mut self, suffix: &str, path: &str, bytes: Vec<u8>) -> Self {
        let size = bytes.len() as u64;
        self = self.sized(suffix, path, bytes, size);
        self
    }

    /// A layer whose blob goes on with zeros up to `size`.
    fn sized(mut self, suffix: &str, path: &str, bytes: Vec<u8>, size: u64) -> Self {
        let mut annotations = BTreeMap::new();
        if !path.is_empty() {
            annotations.insert("org.cncf.model.filepath".to_owned(), path.to_owned());
        }
        let digest = Digest::of(&bytes);
        self.repository.blobs.insert(digest.clone(), bytes);
        let media_type = format!("application/vnd.cncf.model.weight.v1.{suffix}");
        self.layers.push(Descriptor { media_type, digest, size, annotations });
        self
    }

    fn find_with(&self, known: &Known<'_>) -> Result<Index> {
        let artifact =
            Artifact::read(Manifest { layers: self.layers.clone(), ..Manifest::default() }).unwrap();
        find(&self.repository, &artifact, known).now_or_never().unwrap()
    }

    fn find(&self) -> Result<Index> {
        self.find_with(&|_| Vec::new())
    }

    fn requests(&self) -> usize {
        std::mem::take(&mut *self.repository.reads.lock().unwrap()).len()
    }
}

fn tar(layer: Vec<Vec<u8>>) -> Model {
    Model::default().layer("tar", "", archive(layer))
}

/// Members and the mark of the end.
fn archive(members: Vec<Vec<u8>>) -> Vec<u8> {
    let mut bytes = members.concat();
    bytes.extend([0; 1024]);
    bytes
}

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    padded([plain(name, content.len() as u64), content.to_vec()].concat())
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn special(name: &str, typeflag: u8, link: &str) -> Vec<u8> {
    header(name.as_bytes(), typeflag, b"0", |block| {
        block[157..157 + link.len()].copy_from_slice(link.as_bytes())
    })
}

fn paths(index: &Index) -> Vec<&str> {
    index.entries.iter().map(|entry| entry.path.as_str()).collect()
}

fn refusal(model: &Model) -> String {
    let error = model.find().unwrap_err();
    assert!(matches!(error.kind(), Kind::Invalid | Kind::Unsupported), "{error:?}");
    error.to_string()
}

/// Extents and gaps follow one another from the first byte to the last, and gaps hold the blob's bytes.
fn assert_partition(layer: &Layer, blob: &[u8]) {
    let gaps = layer.gaps.iter().map(|gap| (gap.range, gap.bytes.as_ref()));
    let mut parts: Vec<_> = layer.extents.iter().map(|range| (*range, None)).chain(gaps).collect();
    parts.sort_by_key(|(range, _)| range.start());
    let mut end = 0;
    for (range, bytes) in parts {
        assert_eq!(range.start(), end, "{layer:?}");
        assert!(!range.is_empty());
        end = range.end();
        if let Some(bytes) = bytes {
            assert_eq!(bytes, &blob[usize::try_from(range.start()).unwrap()..usize::try_from(end).unwrap()]);
        }
    }
    assert_eq!(end, layer.blob.size);
    assert!(layer.extents.is_sorted());
}

#[test]
fn a_raw_layer_is_one_extent_and_costs_no_request() {
    let model = Model::default().layer("raw", "sub/w.bin", vec![7; 100]).layer("raw", "empty", vec![]);
    let index = model.find().unwrap();
    assert_eq!(model.requests(), 0);
    assert_eq!(index.layers[0].extents, [ContentRange::new(0, 100)]);
    let extent = Some(ExtentId { layer: 0, extent: 0 });
    assert_eq!(
        (index.entries[0].path.as_str(), &index.entries[0].kind),
        ("sub/w.bin", &EntryKind::File { extent, size: 100 })
    );
    assert_eq!(index.entries[1].kind, EntryKind::File { extent: None, size: 0 });
    assert!(index.layers[1].extents.is_empty() && index.layers[1].gaps.is_empty());
}

#[test]
fn a_raw_layer_without_a_name_is_called_by_its_digest() {
    let index = Model::default().layer("raw", "", vec![7]).find().unwrap();
    assert_eq!(paths(&index), [format!("sha256-{}", Digest::of(&[7]).hex())]);
}

#[test]
fn annotations_that_escape_are_refused_by_layer_and_name() {
    for path in ["../../etc/passwd", "/etc/passwd", "a//b", "a/./b", "a\0b"] {
        let text = refusal(&Model::default().layer("raw", path, vec![7]));
        assert!(text.contains(&Digest::of(&[7]).to_string()) && text.contains("refused path"), "{text}");
    }
}

#[test]
fn members_of_an_archive_become_entries_with_their_extents() {
    let bytes = archive(vec![
        special("./", b'5', ""),
        special("./sub/", b'5', ""),
        file("./sub/a", b"hello"),
        file("empty", b""),
        special("link", b'2', "sub/a"),
        special("hard", b'1', "./sub/a"),
        special("harder", b'1', "hard"),
        file("b", &[9; 513]),
    ]);
    let model = Model::default().layer("tar", "code", bytes.clone());
    let index = model.find().unwrap();
    assert_eq!(model.requests(), 1);
    assert_eq!(paths(&index), ["sub", "sub/a", "empty", "link", "hard", "harder", "b"]);
    let kinds: Vec<_> = index.entries.iter().map(|entry| entry.kind.clone()).collect();
    let extent = |extent| Some(ExtentId { layer: 0, extent });
    assert_eq!(kinds[0], EntryKind::Directory);
    assert_eq!(kinds[1], EntryKind::File { extent: extent(0), size: 5 });
    assert_eq!(kinds[2], EntryKind::File { extent: None, size: 0 });
    assert_eq!(kinds[3], EntryKind::Symlink("sub/a".to_owned()));
    assert_eq!(kinds[4], EntryKind::HardLink("sub/a".to_owned()));
    assert_eq!(kinds[5], kinds[4]);
    assert_eq!(kinds[6], EntryKind::File { extent: extent(1), size: 513 });
    assert_eq!(index.entries[1].mode, 0o644);
    assert_partition(&index.layers[0], &bytes);
}

#[test]
fn a_base_name_in_the_archive_takes_the_path_of_the_annotation() {
    let of = |annotation: &str, members: Vec<Vec<u8>>| {
        let index = Model::default().layer("tar", annotation, archive(members)).find().unwrap();
        paths(&index).join(" ")
    };
    assert_eq!(of("sub/w.bin", vec![file("w.bin", b"x")]), "sub/w.bin");
    assert_eq!(of("sub/w.bin", vec![file("./w.bin", b"x")]), "sub/w.bin");
    assert_eq!(of("config", vec![file("config.json", b"x")]), "config.json");
    assert_eq!(of("sub/w.bin", vec![file("other", b"x")]), "other");
    assert_eq!(of("sub/w.bin", vec![file("sub/w.bin", b"x")]), "sub/w.bin");
    assert_eq!(of("sub/w.bin", vec![file("w.bin", b"x"), file("v.bin", b"x")]), "w.bin v.bin");
    let text = refusal(&Model::default().layer("tar", "../w.bin", archive(vec![file("w.bin", b"x")])));
    assert!(text.contains("'..'"), "{text}");
}

#[test]
fn large_members_cost_one_request_each_and_their_data_none() {
    let big = 9_u64 << 30;
    let head = [extension(b'x', &record("size", &big.to_string())), plain("big", 0)].concat();
    let size = 1536 + big + 1024;
    let model = Model::default().sized("tar", "", head, size);
    let index = model.find().unwrap();
    assert_eq!(model.requests(), 2);
    assert_eq!(index.layers[0].extents, [ContentRange::new(1536, 1536 + big)]);
    assert_eq!(index.layers[0].gaps.iter().map(|gap| gap.range.len()).sum::<u64>(), 1536 + 1024);
}

#[test]
fn many_small_members_share_requests() {
    let members: Vec<_> = (0..2000).map(|at| file(&format!("f{at}"), &[1; 3000])).collect();
    let bytes = archive(members);
    let model = Model::default().layer("tar", "code", bytes.clone());
    let index = model.find().unwrap();
    assert_eq!(index.entries.len(), 2000);
    assert_partition(&index.layers[0], &bytes);
    // Three windows of 64 KiB, the rest in windows of 1 MiB.
    assert!(model.requests() <= 3 + bytes.len().div_ceil(1 << 20) + 1);
}

#[test]
fn a_layer_whose_gaps_are_known_costs_no_request() {
    let large = vec![5; 200_000];
    let mut bytes = archive(vec![file("a", &large), file("b", b""), file("c", &large)]);
    bytes.resize(bytes.len() + 300_000, 0);
    let model = Model::default().layer("tar", "", bytes.clone());
    let first = model.find().unwrap();
    assert_eq!(model.requests(), 3);
    let keep = |gap: &Gap| Some((StoredRange::new(gap.range.start(), gap.range.end()), gap.bytes.clone()?));
    let kept: Vec<_> = first.layers[0].gaps.iter().filter_map(keep).collect();
    let second = model.find_with(&|_| kept.clone()).unwrap();
    assert_eq!(model.requests(), 0);
    assert_eq!(second.entries, first.entries);
    assert_eq!(second.layers[0].extents, first.layers[0].extents);
    assert_partition(&second.layers[0], &bytes);
    assert!(second.layers[0].gaps.last().unwrap().bytes.is_none());
}

#[test]
fn what_follows_the_end_is_the_last_gap() {
    let mut bytes = archive(vec![file("a", b"x")]);
    bytes.resize(10240, 0);
    let index = Model::default().layer("tar", "", bytes.clone()).find().unwrap();
    let gaps: Vec<_> =
        index.layers[0].gaps.iter().map(|gap| (gap.range.start(), gap.bytes.is_some())).collect();
    assert_eq!(gaps, [(0, true), (513, true), (2048, true)]);
    assert_partition(&index.layers[0], &bytes);
}

#[test]
fn an_archive_that_just_stops_is_read_and_one_cut_short_is_refused() {
    let whole = file("a", b"hello");
    for len in [whole.len(), 517] {
        let bytes = whole[..len].to_vec();
        let index = Model::default().layer("tar", "", bytes.clone()).find().unwrap();
        assert_partition(&index.layers[0], &bytes);
    }
    for len in [0, 100, 511, 516] {
        let model = Model::default().layer("tar", "", whole[..len].to_vec());
        if len == 0 {
            assert!(model.find().unwrap().entries.is_empty());
        } else {
            assert!(refusal(&model).contains("sha256:"));
        }
    }
}

#[test]
fn links_that_leave_the_tree_or_lead_nowhere_are_refused() {
    for link in [
        special("l", b'2', "/etc/passwd"),
        special("l", b'2', "../x"),
        special("l", b'1', "missing"),
        special("l", b'1', "../a"),
        special("l", b'1', "/a"),
        special("l", b'1', "d"),
        special("l", b'1', "l"),
    ] {
        refusal(&tar(vec![file("a", b"x"), special("d/", b'5', ""), link]));
    }
    refusal(&tar(vec![special("l", b'1', "a"), file("a", b"x")]));
    refusal(&tar(vec![special("s", b'2', "a"), special("l", b'1', "s")]));
}

#[test]
fn nothing_lies_below_a_link_or_a_file_in_any_order_or_layer() {
    let link = || special("s", b'2', "d");
    refusal(&tar(vec![link(), file("s/x", b"x")]));
    refusal(&tar(vec![file("s/x", b"x"), file("s!", b"x"), link()]));
    refusal(&tar(vec![file("s", b"x"), file("s/x/y", b"x")]));
    refusal(&tar(vec![file("s", b"x"), special("s/", b'5', "")]));
    refusal(&Model::default().layer("raw", "s/x", vec![1]).layer("tar", "", archive(vec![link()])));
    refusal(&Model::default().layer("raw", "s", vec![1]).layer("raw", "s/x", vec![2]));
    let fine =
        Model::default().layer("raw", "s", vec![1]).layer("raw", "s.x", vec![2]).layer("raw", "s", vec![3]);
    assert_eq!(paths(&fine.find().unwrap()), ["s", "s.x", "s"]);
}

#[test]
fn of_a_path_twice_in_a_layer_the_later_is_shown() {
    let bytes = archive(vec![file("a", b"old"), file("b", b"b"), file("a", b"newer")]);
    let index = Model::default().layer("tar", "", bytes.clone()).find().unwrap();
    assert_eq!(paths(&index), ["b", "a"]);
    assert_eq!(
        index.entries[1].kind,
        EntryKind::File { extent: Some(ExtentId { layer: 0, extent: 2 }), size: 5 }
    );
    assert_eq!(index.warnings.len(), 1);
    assert_partition(&index.layers[0], &bytes);
    refusal(&tar(vec![file("a", b"old"), special("l", b'1', "a"), file("a", b"newer")]));
}

#[test]
fn devices_are_refused_with_the_layer() {
    let text = refusal(&tar(vec![special("dev/null", b'3', "")]));
    assert!(text.contains("layer sha256:") && text.contains("dev/null"), "{text}");
}

#[test]
fn headers_without_end_are_refused_before_they_fill_memory() {
    let empty: Vec<_> = vec![plain("a", 0).repeat(1 << 17), vec![0; 1024]];
    let text = refusal(&Model::default().layer("tar", "", empty.concat()));
    assert!(text.contains("64 MiB"), "{text}");
}

#[test]
fn a_layer_larger_than_a_file_can_be_is_refused_by_its_name() {
    let of = |suffix: &str, size| Model::default().sized(suffix, "huge", vec![7], size);
    assert!(of("raw", LARGEST_LAYER).find().is_ok());
    for suffix in ["raw", "tar"] {
        for size in [LARGEST_LAYER + 1, u64::MAX] {
            let model = of(suffix, size);
            let error = model.find().unwrap_err();
            assert_eq!((error.kind(), model.requests()), (Kind::Unsupported, 0));
            assert!(error.to_string().contains(&Digest::of(&[7]).to_string()), "{error}");
        }
    }
}

#[test]
fn a_layer_listed_twice_is_found_twice() {
    let model = Model::default().layer("raw", "a", vec![1]).layer("raw", "a", vec![1]);
    assert_eq!((model.find().unwrap().layers.len(), paths(&model.find().unwrap())), (2, vec!["a", "a"]));
}

#[test]
fn a_task_of_any_thread_may_find() {
    fn sendable<T: Send>(_: &T) {}
    let (repository, known) = (Memory::default(), |_: &Digest| Vec::new());
    let artifact = Artifact::read(Manifest::default()).unwrap();
    let repository: Arc<dyn Repository> = Arc::new(repository);
    let task = async move { find(&*repository, &artifact, &known).await };
    sendable(&task);
    assert!(task.now_or_never().unwrap().unwrap().entries.is_empty());
}

/// A member of each form that writers use, with content of a length that meets every edge.
fn some_member() -> impl Strategy<Value = (usize, Vec<u8>)> {
    let len = prop_oneof![
        Just(0_usize),
        Just(1),
        Just(511),
        Just(512),
        Just(513),
        0..5000_usize,
        60_000..70_000_usize,
        Just(usize::try_from(CHUNK).unwrap()),
    ];
    (0..5_usize, len).prop_map(|(form, len)| (form, vec![u8::try_from(form).unwrap() + 1; len]))
}

fn written(at: usize, form: usize, content: &[u8]) -> (String, Vec<u8>) {
    let name = format!("dir{}/file{at}", at % 3);
    let long = format!("{}{name}", "long/".repeat(40));
    match form {
        0 => (name.clone(), file(&name, content)),
        1 => (long.clone(), [extension(b'x', &record("path", &long)), file("short", content)].concat()),
        2 => (long.clone(), [extension(b'L', long.as_bytes()), file("short", content)].concat()),
        3 => {
            let size = extension(b'x', &record("size", &content.len().to_string()));
            (name.clone(), padded([size, plain(&name, 0), content.to_vec()].concat()))
        }
        _ => (name.clone(), [extension(b'g', &record("comment", "c")), file(&name, content)].concat()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn extents_and_gaps_partition_any_archive(members in prop::collection::vec(some_member(), 0..12), tail in 0..40_usize) {
        let (mut names, mut bytes) = (Vec::new(), Vec::new());
        for (at, (form, content)) in members.iter().enumerate() {
            let (name, written) = written(at, *form, content);
            names.push(name);
            bytes.extend(written);
        }
        bytes.extend(vec![0; 1024 + tail * 5120]);
        let model = Model::default().layer("tar", "code", bytes.clone());
        let index = model.find().unwrap();
        assert_partition(&index.layers[0], &bytes);
        prop_assert_eq!(paths(&index), names);
        for (entry, (_, content)) in index.entries.iter().zip(&members) {
            let EntryKind::File { extent, size } = entry.kind else { panic!("no file: {entry:?}") };
            prop_assert_eq!(size, content.len() as u64);
            let range = extent.map(|id| index.layers[0].extents[id.extent]).unwrap_or(ContentRange::new(0, 0));
            let (start, end) = (usize::try_from(range.start()).unwrap(), usize::try_from(range.end()).unwrap());
            prop_assert_eq!(&bytes[start..end], content.as_slice());
        }
    }
}

/// The stored bytes of an archive of these members as one gzip member.
fn gzipped(members: Vec<Vec<u8>>) -> Vec<u8> {
    crate::codec::gzip::tests::member(&archive(members), 6)
}

#[test]
fn a_compressed_layer_without_an_index_is_streamed_and_asks_for_nothing() {
    let model =
        Model::default().layer("tar+gzip", "", gzipped(vec![file("a", b"x")])).layer("raw", "w", vec![1]);
    let index = model.find().unwrap();
    assert_eq!(model.requests(), 0);
    assert!(
        matches!(&index.layers[0].coding, Coding::Streamed(layer, _) if layer.packaging == Packaging::TarGzip)
    );
    assert!(index.layers[0].extents.is_empty() && index.layers[0].content().is_none());
    assert_eq!(paths(&index), ["w"]);
}

#[test]
fn the_file_that_an_annotation_names_is_known_with_its_size_from_the_first_header() {
    let large = vec![7; 300_000];
    for (annotation, name, expected) in [
        ("w.bin", "w.bin", Some("w.bin")),
        ("w.bin", "./w.bin", Some("w.bin")),
        ("sub/w.bin", "w.bin", Some("sub/w.bin")),
        ("config", "config.json", None),
        ("sub/w.bin", "v.bin", None),
        ("../w.bin", "w.bin", None),
    ] {
        for zstd in [false, true] {
            let content = archive(vec![file(name, &large)]);
            let (suffix, stored) = match zstd {
                false => ("tar+gzip", crate::codec::gzip::tests::member(&content, 6)),
                true => {
                    let mut stored = Vec::new();
                    crate::codec::zstd::Compressor::new(3).unwrap().frame(&content, &mut stored).unwrap();
                    ("tar+zstd", stored)
                }
            };
            let model = Model::default().layer(suffix, annotation, stored);
            let index = model.find().unwrap();
            assert_eq!(model.requests(), 1);
            let Some(expected) = expected else {
                assert!(
                    index.entries.is_empty() && index.layers[0].extents.is_empty(),
                    "{annotation} {name}"
                );
                continue;
            };
            let extent = Some(ExtentId { layer: 0, extent: 0 });
            assert_eq!(paths(&index), [expected]);
            assert_eq!(index.entries[0].kind, EntryKind::File { extent, size: 300_000 });
            assert_eq!(index.layers[0].extents, [ContentRange::new(512, 300_512)]);
        }
    }
}

#[test]
fn the_start_of_a_layer_that_cannot_be_decoded_names_no_file() {
    for stored in [vec![1], vec![0; 100_000], gzipped(vec![vec![9; 512]])] {
        let index = Model::default().layer("tar+gzip", "w.bin", stored).find().unwrap();
        assert!(index.entries.is_empty() && index.layers[0].extents.is_empty());
    }
}

#[test]
fn an_index_of_this_machine_is_used_unless_it_is_wrong() {
    let stored = gzipped(vec![file("a", b"x"), file("b", &[3; 9000])]);
    let model = Model::default().layer("raw", "w", vec![1]).layer("tar+gzip", "", stored.clone());
    let (_, entries, file) = local::tests::indexed("tar+gzip", &stored);
    let artifact = Artifact::read(Manifest { layers: model.layers.clone(), ..Manifest::default() }).unwrap();
    let find = |file: File| {
        let file = Arc::new(file);
        let local = |_: &ModelLayer| Some(file.clone());
        let sources = Sources {
            bound: None,
            local: &local,
            attached: Attached::Nowhere,
            known: &|_| Vec::new(),
            guides: Guides::default(),
            proof: Proof::default(),
        };
        find_in(&model.repository, &artifact, sources).now_or_never().unwrap().unwrap().0
    };
    let index = find(file.try_clone().unwrap());
    assert_eq!(paths(&index), ["w", "a", "b"]);
    assert_eq!(index.entries[2].layer, 1);
    assert_eq!(index.entries.len(), entries.len() + 1);
    assert_eq!(index.layers[1].kept_as(), &index.layers[1].blob.digest);
    assert!(index.layers[1].bound.is_some() && index.layers[1].media_type.ends_with("tar+gzip"));
    let empty = find(tempfile::tempfile().unwrap());
    assert!(matches!(empty.layers[1].coding, Coding::Streamed(..)));
    assert_eq!(model.requests(), 0);
}
