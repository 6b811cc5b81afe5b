//! What a growing tree must say, and when: against examples, and against the tree that all names at once would make.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::tree::Tree;
use super::*;
use crate::error::Kind;
use crate::oci::artifact::ModelLayer;
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Blob, Descriptor, Digest};

fn entry(path: &str, kind: EntryKind, layer: usize) -> Entry {
    Entry { path: path.to_owned(), kind, mode: 0o644, mtime: 7, layer }
}

/// A file whose size tells which one it is.
fn file(path: &str, size: u64, layer: usize) -> Entry {
    entry(path, EntryKind::File { extent: None, size }, layer)
}

fn layer(coding: Coding) -> crate::index::Layer {
    crate::index::Layer {
        blob: Blob { digest: Digest::of(b"layer"), size: 1 },
        media_type: String::new(),
        diff_id: None,
        coding,
        extents: Vec::new(),
        gaps: Vec::new(),
        bound: None,
    }
}

fn compressed() -> Arc<ModelLayer> {
    let descriptor = Descriptor {
        media_type: "application/vnd.cncf.modelpack.model.layer.v1.tar+gzip".to_owned(),
        digest: Digest::of(b"layer"),
        size: 1,
        annotations: BTreeMap::new(),
    };
    let artifact = Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() }).unwrap();
    Arc::new(artifact.layers.into_iter().next().unwrap())
}

/// A tree of layers of which those that are streamed bring their names one after the other.
struct Growth {
    tree: Tree,
    entries: Vec<boxcar::Vec<Entry>>,
    names: RefCell<Vec<Names>>,
}

impl Growth {
    /// `streamed` says of each layer whether its names come; `first` are those of the others.
    fn new(streamed: &[bool], first: Vec<Entry>) -> Self {
        let coding = |streamed: &bool| match streamed {
            true => Coding::Streamed(compressed(), None),
            false => Coding::Stored,
        };
        let layers: Vec<_> = streamed.iter().map(|streamed| layer(coding(streamed))).collect();
        let index = Index { entries: first, layers, ..Index::default() };
        let tree = Tree::build(&index, &mut Vec::new()).unwrap();
        let entries = streamed.iter().map(|_| boxcar::Vec::new()).collect();
        let growth = Self { tree, entries, names: RefCell::new(vec![Names::Coming; streamed.len()]) };
        growth.catch_up();
        growth
    }

    fn catch_up(&self) {
        self.tree.catch_up(|layer| Coming::new(self.names.borrow()[layer].clone(), &self.entries[layer]));
    }

    fn comes(&self, entry: Entry) {
        self.entries[entry.layer].push(entry);
        self.catch_up();
    }

    fn ends(&self, layer: usize, names: Names) {
        self.names.borrow_mut()[layer] = names;
        self.catch_up();
    }

    /// The size of the file at `path`; the error is the layer that is waited for, or nothing where none of that is known.
    fn size(&self, path: &str) -> std::result::Result<Option<u64>, Option<usize>> {
        let mut at = NodeId::ROOT;
        for part in path.split('/') {
            match self.tree.look(at, part.as_bytes()) {
                Look::Here(next) => at = next,
                Look::Absent => return Ok(None),
                Look::Later(layer) => return Err(Some(layer)),
                Look::Unknown(_) => return Err(None),
            }
        }
        match self.tree.node(at).map(|node| &node.kind) {
            Some(NodeKind::File { size, .. }) => Ok(Some(*size)),
            _ => Ok(None),
        }
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.tree.children(NodeId::ROOT)?.iter().map(|child| child.name.to_string()).collect())
    }
}

#[test]
fn a_name_is_there_when_its_header_has_gone_by_and_absent_when_all_have() {
    let growth = Growth::new(&[true], Vec::new());
    assert_eq!(growth.size("a"), Err(Some(0)));
    growth.comes(file("a", 1, 0));
    growth.comes(file("deep/er/b", 2, 0));
    assert_eq!((growth.size("a"), growth.size("deep/er/b")), (Ok(Some(1)), Ok(Some(2))));
    assert_eq!((growth.size("c"), growth.size("deep/c")), (Err(Some(0)), Err(Some(0))));
    assert_eq!((growth.names(), growth.tree.settled().unwrap()), (None, Some(0)));
    growth.ends(0, Names::Known);
    assert_eq!((growth.size("c"), growth.size("deep/c"), growth.size("a/b")), (Ok(None), Ok(None), Ok(None)));
    assert_eq!(growth.names().unwrap(), ["a", "deep"]);
    assert_eq!(growth.tree.settled().unwrap(), None);
    assert_eq!(growth.tree.total(), 3);
}

#[test]
fn a_name_of_a_lower_layer_waits_for_the_layers_above_and_for_none_below() {
    let growth = Growth::new(&[true, false, true], vec![file("w", 1, 1), file("x", 1, 1)]);
    assert_eq!(growth.size("w"), Err(Some(2)), "a higher layer may have it too");
    growth.comes(file("w", 2, 2));
    assert_eq!(growth.size("w"), Ok(Some(2)));
    assert_eq!(growth.size("x"), Err(Some(2)));
    growth.ends(2, Names::Known);
    assert_eq!(growth.size("x"), Ok(Some(1)), "the lower one can't hide it");
    growth.comes(file("x", 0, 0));
    growth.comes(file("y", 5, 0));
    growth.ends(0, Names::Known);
    assert_eq!(
        (growth.size("x"), growth.size("y"), growth.size("w")),
        (Ok(Some(1)), Ok(Some(5)), Ok(Some(2)))
    );
    assert_eq!(growth.names().unwrap(), ["w", "x", "y"]);
}

#[test]
fn a_name_that_was_given_stays_when_its_layer_has_it_twice_and_one_that_was_not_is_the_later_one() {
    let growth = Growth::new(&[true], Vec::new());
    growth.comes(file("given", 1, 0));
    growth.comes(file("not", 1, 0));
    assert_eq!(growth.size("given"), Ok(Some(1)));
    growth.comes(file("given", 2, 0));
    growth.comes(file("not", 2, 0));
    growth.ends(0, Names::Known);
    assert_eq!((growth.size("given"), growth.size("not")), (Ok(Some(1)), Ok(Some(2))));
}

#[test]
fn a_layer_that_brings_more_folders_than_memory_may_hold_is_taken_no_further() {
    let growth = Growth::new(&[true, true], Vec::new());
    let deep = |number: usize| format!("{number}/{}/f", vec!["a"; 2000].join("/"));
    for number in 0..1000 {
        growth.entries[number % 2].push(file(&deep(number), 1, number % 2));
    }
    growth.catch_up();
    let error = growth.tree.settled().unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("512 MiB"), "{error}");
    assert!(!growth.tree.refused().is_empty());
    assert!(growth.tree.nodes().count() < 500_000);
}

#[test]
fn each_name_is_looked_at_once_for_all_hard_links() {
    let entries: boxcar::Vec<Entry> =
        (0..9).map(|number| file(&format!("{}", number % 3), number, 0)).collect();
    let coming = Coming::new(Names::Coming, &entries);
    let mut files = Files::default();
    let mut size = |count, path: &str| match files.before(&coming, count, path)?.kind {
        EntryKind::File { size, .. } => Some(size),
        _ => None,
    };
    assert_eq!((size(2, "0"), size(2, "2")), (Some(0), None));
    assert_eq!((size(9, "0"), size(9, "2"), size(9, "3")), (Some(6), Some(8), None));
    assert_eq!(files.seen, 9);
}

#[test]
fn a_folder_is_given_at_once_whoever_may_still_add_to_it() {
    let growth = Growth::new(&[false, true], vec![file("folder/one", 1, 0)]);
    assert!(matches!(growth.tree.look(NodeId::ROOT, b"folder"), Look::Here(_)));
    assert_eq!(growth.size("folder/one"), Err(Some(1)));
    growth.comes(entry("folder", EntryKind::Directory, 1));
    growth.comes(file("folder/two", 2, 1));
    growth.ends(1, Names::Known);
    assert_eq!((growth.size("folder/one"), growth.size("folder/two")), (Ok(Some(1)), Ok(Some(2))));
    assert_eq!(growth.tree.node(NodeId::ROOT).unwrap().nlink(), 3);
}

#[test]
fn a_file_where_a_folder_is_stops_its_layer_by_name_and_what_was_given_stays() {
    for late in [
        file("a/b", 1, 1),
        entry("f", EntryKind::Directory, 1),
        entry("d", EntryKind::Symlink("a".into()), 1),
    ] {
        let growth = Growth::new(&[false, true], vec![file("a", 1, 0), file("f", 2, 0), file("d/e", 3, 0)]);
        growth.comes(file("first", 4, 1));
        assert_eq!(growth.size("first"), Ok(Some(4)));
        growth.comes(late);
        growth.comes(file("never", 5, 1));
        growth.ends(1, Names::Known);
        assert_eq!((growth.size("first"), growth.size("never")), (Ok(Some(4)), Err(None)));
        let refused = growth.tree.refused();
        assert_eq!((refused.len(), refused[0].0, refused[0].1.kind()), (1, 1, Kind::Invalid));
        assert_eq!(growth.tree.settled().unwrap_err().kind(), Kind::Invalid);
    }
}

#[test]
fn names_that_are_lost_are_an_error_and_those_that_are_known_are_not() {
    let growth = Growth::new(&[false, true], vec![file("low", 1, 0)]);
    growth.comes(file("high", 2, 1));
    growth.ends(1, Names::Lost(Error::new(Kind::Broken, "cut")));
    assert_eq!(
        (growth.size("high"), growth.size("low"), growth.size("other")),
        (Ok(Some(2)), Err(None), Err(None))
    );
    assert_eq!(growth.tree.settled().unwrap_err().kind(), Kind::Broken);
}

#[test]
fn a_hard_link_names_the_file_of_its_own_layer_also_where_another_hides_it() {
    let link = |path: &str| entry(path, EntryKind::HardLink("one".into()), 0);
    let growth = Growth::new(&[true, false], vec![file("one", 9, 1)]);
    growth.comes(file("one", 5, 0));
    growth.comes(link("two"));
    growth.comes(entry("same", EntryKind::HardLink("three".into()), 0));
    assert_eq!(growth.size("same"), Err(None), "there is no such file");

    let growth = Growth::new(&[true], Vec::new());
    growth.comes(file("one", 5, 0));
    growth.comes(link("two"));
    growth.ends(0, Names::Known);
    assert_eq!(growth.tree.find("one"), growth.tree.find("two"));
    assert_eq!(growth.tree.node(growth.tree.find("two").unwrap()).unwrap().nlink(), 2);

    let growth = Growth::new(&[true, false], vec![file("one", 9, 1)]);
    growth.comes(file("one", 5, 0));
    growth.comes(link("two"));
    growth.ends(0, Names::Known);
    assert_eq!((growth.size("one"), growth.size("two")), (Ok(Some(9)), Ok(Some(5))));
}

/// One file of one of three layers, of which the number says the content.
fn some_files() -> impl Strategy<Value = Vec<(String, usize)>> {
    prop::collection::vec(("[ab]{1,2}(/[ab]){0,2}", 0..3_usize), 0..16)
}

proptest! {
    /// Whatever the order in which names come and are asked for: what is answered is what the tree that knew all names
    /// from the start has, and never changes.
    #[test]
    fn an_answer_is_that_of_the_whole_tree_and_stays(
        files in some_files(),
        streamed in prop::array::uniform3(any::<bool>()),
        asked in prop::collection::vec(("[ab]{1,2}(/[ab]){0,2}", 0..16_usize), 0..24),
    ) {
        // A path once in a layer: what is given of one that comes twice depends on who asks when.
        let mut seen = BTreeSet::new();
        let files: Vec<Entry> = files.into_iter().zip(1..)
            .filter(|((path, layer), _)| seen.insert((path.clone(), *layer)))
            .map(|((path, layer), size)| file(&path, size, layer)).collect();
        let mut all = files.clone();
        all.sort_by_key(|entry| entry.layer);
        let whole = Index { entries: all, ..Index::default() };
        let Ok(whole) = Tree::build(&whole, &mut Vec::new()) else { return Ok(()) };
        let right = |path: &str| whole.find(path).and_then(|id| match whole.node(id)?.kind {
            NodeKind::File { size, .. } => Some(size),
            _ => None,
        });
        let (later, mut first): (Vec<_>, Vec<_>) = files.into_iter().partition(|entry| streamed[entry.layer]);
        first.sort_by_key(|entry| entry.layer);
        let growth = Growth::new(&streamed, first);
        for (number, entry) in later.into_iter().enumerate() {
            growth.comes(entry);
            for (path, _) in asked.iter().filter(|(_, when)| *when == number) {
                if let Ok(answer) = growth.size(path) {
                    prop_assert_eq!(answer, right(path), "{}", path);
                }
            }
        }
        (0..3).filter(|layer| streamed[*layer]).for_each(|layer| growth.ends(layer, Names::Known));
        for (id, node) in whole.nodes().filter(|(_, node)| !node.is_folder()) {
            let NodeKind::File { size, .. } = node.kind else { continue };
            prop_assert_eq!(growth.size(&whole.path(id)), Ok(Some(size)));
        }
        let names = |tree: &Tree| tree.children(NodeId::ROOT).unwrap().iter().map(|child| child.name.to_string()).collect::<Vec<_>>();
        prop_assert_eq!(names(&growth.tree), names(&whole));
    }
}
