//! What a tree must be, against examples and a map of paths.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn entry(path: &str, kind: EntryKind, layer: usize) -> Entry {
    Entry { path: path.to_owned(), kind, mode: 0o644, mtime: 7, layer }
}

fn file(path: &str, size: u64, layer: usize) -> Entry {
    entry(path, EntryKind::File { extent: None, size }, layer)
}

fn build(entries: Vec<Entry>) -> Result<(Tree, Vec<String>)> {
    let mut warnings = Vec::new();
    let index = Index { entries, ..Index::default() };
    Tree::build(&index, &mut warnings).map(|tree| (tree, warnings))
}

fn size(tree: &Tree, path: &str) -> Option<u64> {
    match tree.node(tree.find(path)?)?.kind {
        NodeKind::File { size, .. } => Some(size),
        NodeKind::Directory(_) | NodeKind::Symlink(_) => None,
    }
}

#[test]
fn folders_that_only_files_imply_are_there_and_named_ones_keep_their_time() {
    let (tree, warnings) =
        build(vec![file("a/b/c", 1, 0), entry("a", EntryKind::Directory, 0)]).expect("a tree");
    assert!(warnings.is_empty());
    let time = |path| tree.node(tree.find(path).unwrap()).unwrap().mtime;
    assert_eq!((time("a"), time("a/b")), (7, 0));
    assert_eq!(tree.node(NodeId::ROOT).unwrap().nlink(), 3);
    assert_eq!(tree.path(tree.find("a/b/c").unwrap()), "a/b/c");
}

#[test]
fn folders_that_only_paths_imply_may_take_so_much_memory_and_no_more() {
    let deep = |number: usize| file(&format!("{number}/{}/f", vec!["a"; 2000].join("/")), 1, number);
    let error = build((0..1000).map(deep).collect()).unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("512 MiB"), "{error}");
    build((0..100).map(deep).collect()).unwrap();
}

#[test]
fn siblings_are_sorted_by_bytes_whatever_their_children_are_called() {
    let (tree, _) = build(vec![file("a/x", 1, 0), file("a-b", 1, 0), file("a.b/y", 1, 0)]).expect("a tree");
    let names: Vec<_> = tree.children(NodeId::ROOT).unwrap().iter().map(|child| &*child.name).collect();
    assert_eq!(names, ["a", "a-b", "a.b"]);
}

#[test]
fn the_higher_layer_wins_and_a_warning_names_both() {
    let (tree, warnings) = build(vec![file("w", 1, 0), file("w", 2, 1)]).expect("a tree");
    assert_eq!(size(&tree, "w"), Some(2));
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("layer 0") && warnings[0].contains("layer 1"), "{warnings:?}");
}

#[test]
fn a_path_that_is_a_file_and_a_folder_is_refused_by_name() {
    let link = || entry("a", EntryKind::Symlink("b".to_owned()), 1);
    let folder = || entry("a", EntryKind::Directory, 1);
    for entries in [
        vec![file("a", 1, 0), file("a/b", 1, 1)],
        vec![file("a/b", 1, 0), file("a", 1, 1)],
        vec![file("a", 1, 0), folder()],
        vec![folder(), link()],
        vec![link(), file("a/b", 1, 0)],
    ] {
        let error = build(entries).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains("\"a\""), "{error}");
    }
}

#[test]
fn a_hard_link_is_another_name_of_the_same_node_also_when_a_higher_layer_takes_the_first() {
    let link = |path: &str| entry(path, EntryKind::HardLink("one".to_owned()), 0);
    let (tree, _) = build(vec![file("one", 5, 0), link("two"), link("three")]).expect("a tree");
    assert_eq!(tree.find("one"), tree.find("three"));
    assert_eq!(tree.node(tree.find("two").unwrap()).unwrap().nlink(), 3);

    let (tree, _) = build(vec![file("one", 5, 0), link("two"), file("one", 9, 1)]).expect("a tree");
    assert_eq!((size(&tree, "one"), size(&tree, "two")), (Some(9), Some(5)));
    assert_eq!(tree.node(tree.find("two").unwrap()).unwrap().nlink(), 1);
}

#[test]
fn a_hard_link_to_what_is_no_file_is_refused() {
    let link = entry("two", EntryKind::HardLink("one".to_owned()), 0);
    assert_eq!(build(vec![link]).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn an_artifact_without_files_is_an_empty_folder_with_a_warning() {
    let (tree, warnings) = build(Vec::new()).expect("a tree");
    assert_eq!((tree.len(), warnings.len()), (1, 1));
}

#[test]
fn a_hundred_thousand_entries_in_one_folder_and_in_deep_ones_are_all_found() {
    let wide = (0..50_000).map(|n| file(&format!("wide/{n}"), n, 0));
    let deep = (0..50_000).map(|n| file(&format!("{}/{}/{}/f", n % 10, n % 100, n), n, 0));
    let (tree, _) = build(wide.chain(deep).collect()).expect("a tree");
    assert_eq!(size(&tree, "wide/49999"), Some(49_999));
    assert_eq!(size(&tree, "9/99/49999/f"), Some(49_999));
}

#[test]
fn warnings_are_bounded() {
    let twice = (0..1000).flat_map(|n| [file(&n.to_string(), 1, 0), file(&n.to_string(), 2, 1)]);
    let (_, warnings) = build(twice.collect()).expect("a tree");
    assert_eq!(warnings.len(), WARNINGS + 1);
    assert!(warnings[WARNINGS].contains("936"), "{}", warnings[WARNINGS]);
}

/// The reference: the last file at each path, or nothing at all where a path is a folder too.
fn reference(paths: &[(String, u64)]) -> Option<BTreeMap<String, u64>> {
    let files: BTreeMap<_, _> = paths.iter().cloned().collect();
    let folders: BTreeSet<String> = files.keys().flat_map(|path| folders_above(path)).collect();
    files.keys().all(|path| !folders.contains(path)).then_some(files)
}

fn folders_above(path: &str) -> Vec<String> {
    path.match_indices('/').filter_map(|(at, _)| path.get(..at)).map(str::to_owned).collect()
}

fn all_files(tree: &Tree) -> BTreeMap<String, u64> {
    let files = tree.nodes().filter_map(|(id, node)| match node.kind {
        NodeKind::File { size, .. } => Some((tree.path(id), size)),
        NodeKind::Directory(_) | NodeKind::Symlink(_) => None,
    });
    files.collect()
}

proptest! {
    #[test]
    fn the_tree_has_exactly_the_files_that_a_map_of_paths_has(
        paths in prop::collection::vec(("[ab.-]{1,2}(/[ab-]{1,2}){0,3}", 0..9u64), 0..24)
    ) {
        let paths: Vec<_> = paths;
        let built = build(paths.iter().map(|(path, size)| file(path, *size, 0)).collect());
        match reference(&paths) {
            None => prop_assert_eq!(built.unwrap_err().kind(), Kind::Invalid),
            Some(files) => {
                let (tree, _) = built.unwrap();
                prop_assert_eq!(&all_files(&tree), &files);
                for path in files.keys() {
                    prop_assert_eq!(&tree.path(tree.find(path).unwrap()), path);
                }
                for (id, _) in tree.nodes() {
                    let names = tree.children(id).unwrap_or(&[]);
                    prop_assert!(names.is_sorted_by(|a, b| a.name.as_bytes() < b.name.as_bytes()));
                }
            }
        }
    }
}
