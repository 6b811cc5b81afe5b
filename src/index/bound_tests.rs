//! Tests of artifacts that bring an index: what opening them asks for, and how a wrong index fails it.

use futures_util::FutureExt;

use super::*;
use crate::codec::tar::tests::{header, plain};
use crate::index::{
    Attached, CHUNK, ChunkDigest, EntryKind, ExtentId, Grid, Guides, Home, Index, Proof, Sources, find,
    find_in, find_with,
};
use crate::oci::artifact::{INDEX_HEAD_DIGEST_KEY, INDEX_HEAD_SIZE_KEY, INDEX_KEY, INDEX_PATH};
use crate::oci::manifest::Manifest;
use crate::oci::{Blob, Descriptor, Digest};
use crate::range::ContentRange;
use crate::repository::Memory;

const PATH: &str = "org.cncf.model.filepath";

/// An artifact in the making, and the repository that has it.
#[derive(Default)]
struct Model {
    memory: Memory,
    layers: Vec<Descriptor>,
}

impl Model {
    fn layer(self, suffix: &str, path: &str, bytes: Vec<u8>) -> Self {
        let blob = self.memory.put(bytes);
        self.stored(suffix, path, blob)
    }

    /// A layer whose blob nobody has.
    fn stored(mut self, suffix: &str, path: &str, blob: Blob) -> Self {
        let media_type = format!("application/vnd.cncf.model.weight.v1.{suffix}");
        let annotations = [(PATH.to_owned(), path.to_owned())].into();
        let Blob { digest, size } = blob;
        self.layers.push(Descriptor { media_type, digest, size, annotations });
        self
    }

    fn artifact(&self) -> Artifact {
        Artifact::read(Manifest { layers: self.layers.clone(), ..Manifest::default() }).unwrap()
    }

    fn find(&self) -> Result<Index> {
        find(&self.memory, &self.artifact(), &|_| Vec::new()).now_or_never().unwrap()
    }

    fn open(&self, kept: Option<Bytes>) -> Result<Opened> {
        open(&self.memory, &self.artifact(), kept).now_or_never().unwrap().map(Option::unwrap)
    }

    /// The same with an index of the layers so far as one more.
    fn indexed(self) -> Self {
        let index = self.find().unwrap();
        self.with_index(&index)
    }

    fn with_index(self, index: &Index) -> Self {
        let encoded = format::encode(index, &digests(index)).unwrap();
        let head = encoded.head.clone();
        let blob = self.memory.put(encoded.bytes().unwrap());
        assert_eq!(blob, encoded.blob);
        let mut model = self.stored("raw", INDEX_PATH, blob);
        let marks = [
            (INDEX_KEY, "v1".to_owned()),
            (INDEX_HEAD_DIGEST_KEY, head.digest.to_string()),
            (INDEX_HEAD_SIZE_KEY, head.size.to_string()),
        ];
        let annotations = &mut model.layers.last_mut().unwrap().annotations;
        annotations.extend(marks.map(|(key, value)| (key.to_owned(), value)));
        model
    }

    fn index_blob(&self) -> Blob {
        self.artifact().bound_index().unwrap().unwrap().blob
    }

    fn index_bytes(&self) -> Vec<u8> {
        let blob = self.index_blob();
        let all = read_all(&self.memory, &blob, StoredRange::new(0, blob.size));
        all.now_or_never().unwrap().unwrap().to_vec()
    }

    /// How opening fails: under the index's name, and with a way out.
    fn refusal(&self) -> (Kind, String) {
        let error = self.find().unwrap_err();
        let text = error.to_string();
        let name = format!("the bound index {} of this artifact", self.index_blob().digest);
        assert!(text.starts_with(&name) && text.contains("; "), "{text}");
        (error.kind(), text)
    }
}

/// Made-up digests of every chunk: nothing is read here.
fn digests(index: &Index) -> Vec<Vec<ChunkDigest>> {
    let chunks = |extent: &ContentRange| 0..Grid::new(extent.len()).chunks();
    let of_layer = |extents: &[ContentRange]| {
        extents.iter().flat_map(chunks).map(|chunk| ChunkDigest::of(&chunk.to_le_bytes())).collect()
    };
    index.layers.iter().map(|layer| of_layer(&layer.extents)).collect()
}

fn archive() -> Vec<u8> {
    let file = |name: &str, len: usize| {
        let mut bytes = plain(name, len as u64);
        bytes.resize(512 + len.next_multiple_of(512), 7);
        bytes
    };
    let link = header(b"link", b'2', b"0", |block| block[157..160].copy_from_slice(b"a/b"));
    // Several hops, if it had to be derived.
    [file("a/b", 200_000), file("empty", 0), link, file("c", 200_000), vec![0; 1024]].concat()
}

fn sample() -> Model {
    Model::default().layer("raw", "model.safetensors", vec![1; 100]).layer("tar", "code", archive()).layer(
        "raw",
        "empty.json",
        vec![],
    )
}

#[test]
fn an_indexed_artifact_is_found_as_without_the_index_in_one_request_and_no_header_is_read() {
    let plain = sample().find().unwrap();
    let model = sample().indexed();
    let before = model.memory.ranges().len();
    let index = model.find().unwrap();
    let blob = model.index_blob();
    assert_eq!(model.memory.ranges()[before..], [(blob.digest.clone(), StoredRange::new(0, blob.size))]);
    assert_eq!((index.entries, index.warnings), (plain.entries, Vec::<String>::new()));
    for (layer, plain) in index.layers.iter().zip(&plain.layers) {
        assert_eq!((&layer.blob, &layer.media_type), (&plain.blob, &plain.media_type));
        assert_eq!(layer.extents, plain.extents);
        let gaps = |layer: &Layer| layer.gaps.iter().map(|gap| gap.range).collect::<Vec<_>>();
        assert_eq!(gaps(layer), gaps(plain));
        assert_eq!(layer.bound.is_some(), !layer.extents.is_empty());
        if let Some(bound) = layer.bound.as_ref().map(|bound| &bound.chunks) {
            assert!(matches!(&bound.home, Home::Repository(home) if *home == blob));
            assert!(bound.digest.matches(bound.bytes.as_ref().unwrap()));
        }
    }
}

#[test]
fn chunks_are_kept_under_one_name_only_where_layer_extents_and_digests_are_the_same() {
    let names = |model: Model| -> Vec<Digest> {
        let layers = model.indexed().find().unwrap().layers;
        layers.into_iter().filter_map(|layer| Some(layer.bound?.kept_as)).collect()
    };
    let raw = |byte| Model::default().layer("raw", "w", vec![byte; 9]);
    assert_eq!(names(raw(1)), names(raw(1).layer("raw", "other", vec![])));
    assert_ne!(names(raw(1)), names(raw(2)));
    let all = names(sample());
    assert!(all.len() == 2 && all[0] != all[1]);
}

#[test]
fn a_head_that_was_kept_costs_no_request_and_a_damaged_one_is_asked_for() {
    let model = sample().indexed();
    let first = model.open(None).unwrap();
    let before = model.memory.requests();
    let kept = model.open(Some(first.bytes.clone())).unwrap();
    assert_eq!((kept.head.entries.len(), model.memory.requests()), (6, before));
    let artifact = model.artifact();
    let found = find_with(&model.memory, &artifact, &|_| Vec::new(), Some(kept.head));
    assert_eq!(found.now_or_never().unwrap().unwrap().entries, first.head.entries);
    assert_eq!(model.memory.requests(), before);
    for damaged in [first.bytes.slice(1..), vec![0; first.bytes.len()].into(), Bytes::new()] {
        assert_eq!(model.open(Some(damaged)).unwrap().bytes, first.bytes);
    }
    assert_eq!(model.memory.requests(), before + 3);
}

#[test]
fn of_a_large_index_only_the_head_is_asked_for() {
    let chunks = (1 << 20) / 32 + 1;
    let huge = Blob { digest: Digest::of(b"huge"), size: chunks * CHUNK };
    let model = Model::default().stored("raw", "huge", huge).indexed();
    let index = model.find().unwrap();
    let head = model.artifact().bound_index().unwrap().unwrap().head;
    assert_eq!(model.memory.ranges(), [(model.index_blob().digest, StoredRange::new(0, head.size))]);
    let bound = &index.layers[0].bound.as_ref().unwrap().chunks;
    assert_eq!((bound.range.len(), &bound.bytes), (chunks * 32, &None));
}

#[test]
fn any_byte_of_the_index_that_is_another_fails_the_opening_by_name() {
    let model = sample().indexed();
    let (digest, right) = (model.index_blob().digest, model.index_bytes());
    for at in 0..right.len() {
        let mut wrong = right.clone();
        wrong[at] ^= 0x10;
        model.memory.replace(&digest, wrong);
        assert_eq!(model.refusal().0, Kind::Integrity, "byte {at}");
    }
    model.memory.replace(&digest, right);
    model.find().unwrap();
}

#[test]
fn an_index_that_is_missing_cut_short_swapped_or_refused_fails_the_opening_by_name() {
    let model = sample().indexed();
    let (digest, right) = (model.index_blob().digest, model.index_bytes());
    model.memory.replace(&digest, right[..right.len() - 1].to_vec());
    assert_eq!(model.refusal().0, Kind::Broken);
    let other = Model::default().layer("raw", "w", vec![1; 9]).indexed().index_bytes();
    model.memory.replace(&digest, [other, vec![0; right.len()]].concat());
    let (kind, text) = model.refusal();
    assert_eq!(kind, Kind::Integrity);
    assert!(text.contains("head") && text.ends_with("push the index layer again"), "{text}");
    for kind in [Kind::NotFound, Kind::Denied, Kind::Unreachable] {
        let failed = move || Error::new(kind, "it is so").hint("do this");
        model.memory.fail_with(move |_, _| Some(failed()));
        assert_eq!(model.refusal().0, kind);
    }
}

#[test]
fn a_head_that_is_right_by_digest_and_wrong_by_itself_is_refused_by_name() {
    let mut model = sample().indexed();
    let size = model.layers[3].annotations[INDEX_HEAD_SIZE_KEY].parse().unwrap();
    let mut bytes = model.index_bytes();
    for (at, kind) in [(0, Kind::Invalid), (8, Kind::Unsupported), (12, Kind::Invalid), (16, Kind::Invalid)] {
        bytes[at] ^= 0x40;
        let digest = Digest::of(&bytes[..size]).to_string();
        model.layers[3].annotations.insert(INDEX_HEAD_DIGEST_KEY.to_owned(), digest);
        model.memory.replace(&model.index_blob().digest, bytes.clone());
        assert_eq!(model.refusal().0, kind, "byte {at}");
        bytes[at] ^= 0x40;
    }
}

#[test]
fn a_head_too_large_to_be_one_is_refused_before_it_is_asked_for() {
    let mut model = sample().indexed();
    model.layers[3].size = HEAD_LIMIT + 1;
    model.layers[3].annotations.insert(INDEX_HEAD_SIZE_KEY.to_owned(), (HEAD_LIMIT + 1).to_string());
    let before = model.memory.requests();
    assert_eq!((model.refusal().0, model.memory.requests()), (Kind::Invalid, before));
}

#[test]
fn layers_that_came_later_are_derived_wherever_they_stand_and_one_line_says_so() {
    let mut model =
        sample().indexed().layer("tar", "later", archive_of("later")).layer("raw", "last", vec![5]);
    model.layers.rotate_right(1);
    let index = model.find().unwrap();
    let bound: Vec<_> = index.layers.iter().map(|layer| layer.bound.is_some()).collect();
    assert_eq!(bound, [false, true, true, false, false]);
    let warning = &index.warnings[0];
    assert!(warning.contains("last") && warning.contains("and 1 more"), "{warning}");
    assert_eq!(index.warnings.len(), 1);
    for entry in &index.entries {
        if let EntryKind::File { extent: Some(ExtentId { layer, extent }), size } = entry.kind {
            assert_eq!((layer, index.layers[layer].extents[extent].len()), (entry.layer, size), "{entry:?}");
        }
    }
}

fn archive_of(name: &str) -> Vec<u8> {
    [plain(name, 512), vec![3; 512], vec![0; 1024]].concat()
}

#[test]
fn a_blob_that_is_two_layers_is_matched_in_their_order() {
    let twice = || {
        Model::default().layer("raw", "a", vec![1; 9]).layer("raw", "x", vec![2; 9]).layer(
            "raw",
            "b",
            vec![1; 9],
        )
    };
    let index = twice().indexed().find().unwrap();
    let found: Vec<_> = index.entries.iter().map(|entry| (entry.path.as_str(), entry.layer)).collect();
    assert_eq!(found, [("a", 0), ("x", 1), ("b", 2)]);
    assert!(index.layers.iter().all(|layer| layer.bound.is_some()));
    let mut swapped = twice().indexed();
    swapped.layers.swap(0, 2);
    assert!(swapped.refusal().1.contains("its path is \"a\""));
    let mut moved = twice().indexed();
    moved.layers.swap(0, 1);
    assert!(moved.refusal().1.contains("another order"));
}

#[test]
fn an_index_of_other_layers_paths_or_sizes_is_refused_by_name() {
    let refusal = |change: fn(&mut Model)| {
        let mut model = sample().indexed();
        change(&mut model);
        let (kind, text) = model.refusal();
        assert_eq!(kind, Kind::Invalid, "{text}");
        text
    };
    let text = refusal(|model| drop(model.layers[0].annotations.insert(PATH.to_owned(), "other".to_owned())));
    assert!(text.contains("\"model.safetensors\"") && text.contains("\"other\""), "{text}");
    let text = refusal(|model| drop(model.layers[0].annotations.remove(PATH)));
    assert!(text.contains("sha256-"), "{text}");
    assert!(refusal(|model| drop(model.layers.remove(0))).contains("does not have"));
    assert!(refusal(|model| model.layers[0].size = 101).contains("100 bytes"));
    assert!(refusal(|model| model.layers.swap(0, 1)).contains("another order"));
}

#[test]
fn a_raw_layer_that_is_said_to_be_anything_but_one_whole_file_is_refused() {
    let raw = || Model::default().layer("raw", "w", vec![1; 9]);
    let changes: [fn(&mut Index); 4] = [
        |index| index.entries.clear(),
        |index| index.entries[0].kind = EntryKind::File { extent: None, size: 0 },
        |index| index.entries[0].kind = EntryKind::Symlink("x".to_owned()),
        |index| {
            index.layers[0].extents = vec![ContentRange::new(1, 9)];
            index.entries[0].kind =
                EntryKind::File { extent: Some(ExtentId { layer: 0, extent: 0 }), size: 8 };
        },
    ];
    for change in changes {
        let mut index = raw().find().unwrap();
        change(&mut index);
        let model = raw().with_index(&index);
        assert_eq!(model.refusal().0, Kind::Invalid);
    }
}

#[test]
fn what_only_a_layer_of_an_image_may_have_is_refused_in_a_model() {
    let tar = || sample();
    let at = tar().find().unwrap().entries.iter().position(|entry| entry.path == "link").unwrap();
    for kind in [
        EntryKind::Symlink("../x".to_owned()),
        EntryKind::HardLink("model.safetensors".to_owned()),
        EntryKind::Whiteout,
        EntryKind::Opaque,
    ] {
        let mut index = tar().find().unwrap();
        index.entries[at].kind = kind;
        let (refused, text) = tar().with_index(&index).refusal();
        assert_eq!(refused, Kind::Invalid, "{text}");
        assert!(text.contains("\"link\" is what only an image has"), "{text}");
    }
}

#[test]
fn names_of_an_index_make_one_tree_with_those_of_other_layers() {
    let model = sample().indexed().layer("raw", "link/below", vec![4]);
    let error = model.find().unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("symbolic link"), "{error}");
}

/// An image of one archive, whose index swaps the bytes of two files of it, or says the truth.
#[test]
fn what_an_index_says_of_an_images_names_does_not_count_where_others_are_shown_them() {
    let model = Model::default().layer("tar", "w", archive());
    let mut image = model.artifact();
    image.layers[0].members.manner = crate::oci::artifact::Manner::Layered;
    image.layers[0].path = None;
    image.family = crate::oci::artifact::Family::Image;
    assert!(image.is_layered());
    let found = |image: &Artifact, bound: Option<Head>, proof: Proof| {
        let (local, known) = (|_: &_| None, |_: &_| Vec::new());
        let (attached, guides) = (Attached::Nowhere, Guides::default());
        let sources = Sources { bound, local: &local, attached, known: &known, guides, proof };
        find_in(&model.memory, image, sources).now_or_never().unwrap().unwrap().0
    };
    let truth = found(&image, None, Proof::Index);
    let head_of = |index: &Index| {
        let encoded = format::encode(index, &digests(index)).unwrap();
        let bytes = encoded.bytes().unwrap();
        format::decode(&bytes.slice(..usize::try_from(encoded.head.size).unwrap()), &encoded.blob).unwrap()
    };
    let mut swapped = truth.clone();
    let named = |name: &str| truth.entries.iter().position(|entry| entry.path == name).unwrap();
    (swapped.entries[named("a/b")].path, swapped.entries[named("c")].path) = ("c".into(), "a/b".into());
    swapped.entries.retain(|entry| entry.path != "link");
    let mut moved = truth.clone();
    let range = moved.layers[0].extents[0];
    moved.layers[0].extents[0] = ContentRange::new(range.start() + 1, range.end());
    if let EntryKind::File { size, .. } = &mut moved.entries[named("a/b")].kind {
        *size -= 1;
    }
    assert_ne!(found(&image, Some(head_of(&swapped)), Proof::Index).entries, truth.entries, "it is believed");
    for (said, is_bound) in [(&truth, true), (&swapped, true), (&moved, false)] {
        let index = found(&image, Some(head_of(said)), Proof::Layer);
        assert_eq!(index.entries, truth.entries);
        assert_eq!(index.layers[0].bound.is_some(), is_bound);
        assert_eq!(index.warnings.iter().any(|warning| warning.contains("does not count")), !is_bound);
    }
}
