//! Tests of [`merge`] against a tree of folders that each layer is unpacked into.

use proptest::prelude::*;

use super::*;

fn entry(path: &str, kind: EntryKind, layer: usize) -> Entry {
    Entry { path: path.to_owned(), kind, mode: 0, mtime: 0, layer }
}

fn file(path: &str, size: u64, layer: usize) -> Entry {
    entry(path, EntryKind::File { extent: None, size }, layer)
}

fn link(path: &str, target: &str, layer: usize) -> Entry {
    entry(path, EntryKind::Symlink(target.to_owned()), layer)
}

#[test]
fn the_first_of_a_files_names_that_is_left_is_the_file() {
    let hard = |path: &str, layer| entry(path, EntryKind::HardLink("a".to_owned()), layer);
    let all = vec![
        file("a", 5, 0),
        hard("z", 0),
        hard("y", 1),
        entry("a", EntryKind::Whiteout, 2),
        file("a", 9, 2),
    ];
    let left = merge(all).unwrap();
    let kinds: Vec<_> = left.iter().map(|entry| (entry.path.as_str(), entry.kind.clone())).collect();
    let five = EntryKind::File { extent: None, size: 5 };
    let nine = EntryKind::File { extent: None, size: 9 };
    assert_eq!(kinds, [("y", five), ("z", EntryKind::HardLink("y".to_owned())), ("a", nine)]);
}

#[test]
fn a_mark_goes_where_its_links_lead() {
    let lower = [file("usr/lib/a", 1, 0), file("usr/lib/b", 1, 0), link("lib", "./usr/../usr/lib", 0)];
    for (mark, left) in [
        (entry("lib/a", EntryKind::Whiteout, 1), &["lib", "usr", "usr/lib", "usr/lib/b"][..]),
        (entry("lib", EntryKind::Opaque, 1), &["lib", "usr", "usr/lib"]),
        (entry("lib", EntryKind::Whiteout, 1), &["usr", "usr/lib", "usr/lib/a", "usr/lib/b"]),
    ] {
        let mut paths: Vec<_> = merge(lower.iter().cloned().chain([mark]).collect())
            .unwrap()
            .into_iter()
            .map(|entry| entry.path)
            .collect();
        paths.sort();
        assert_eq!(paths, left);
    }
}

#[test]
fn folders_that_only_paths_imply_are_bounded_over_all_layers() {
    // Each path of 4 KiB implies two thousand folders, whose own paths are two thousand bytes each.
    let deep = |number: usize| format!("{number}/{}/f", vec!["a"; 2000].join("/"));
    let mut names = Names::new();
    let mut put = (0..1000).map(|number| names.put(&file(&deep(number), 1, number)));
    let error = put.find_map(Result::err).unwrap();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("512 MiB"), "{error}");
    assert!(names.all.len() < 500_000, "{}", names.all.len());
}

#[test]
fn what_is_taken_away_makes_room() {
    let deep = format!("{}/f", vec!["a"; 2000].join("/"));
    let mut names = Names::new();
    for layer in 0..200 {
        names.put(&file(&deep, 1, layer)).unwrap();
        names.take_away(&entry("a", EntryKind::Whiteout, layer)).unwrap();
    }
    assert!(names.all.is_empty());
    names.room.take(512 << 20).unwrap();
}

#[test]
fn a_chain_of_links_to_long_paths_is_given_up_early() {
    let long = "x/".repeat(2000);
    let chain = (0..30).map(|number| link(&number.to_string(), &format!("{}/{long}", number + 1), 0));
    let error = merge(chain.chain([file("0/f", 1, 0)]).collect()).unwrap_err();
    assert_eq!(error.kind(), Kind::Invalid);
    assert!(error.to_string().contains("longer than 4096"), "{error}");
}

#[test]
fn following_links_has_an_end_over_all_entries() {
    let round = "x/../".repeat(800);
    let mut names = Names { walk: 1 << 22, ..Names::new() };
    let links = (0..30).map(|number| link(&number.to_string(), &format!("{round}{}", number + 1), 0));
    links.for_each(|link| names.put(&link).unwrap());
    let mut put = (0..1000).map(|number| names.put(&file(&format!("0/{number}/f"), 1, 0)));
    let error = put.find_map(Result::err).unwrap();
    assert_eq!(error.kind(), Kind::Unsupported);
    assert!(error.to_string().contains("too long to follow"), "{error}");
}

#[test]
fn links_are_followed_once_for_all_files_of_a_folder_until_one_changes() {
    let mut names = Names::new();
    names.put(&link("l", "one", 0)).unwrap();
    names.put(&file("l/a", 1, 0)).unwrap();
    let walk = names.walk;
    (0..100).for_each(|number| names.put(&file(&format!("l/{number}"), 1, 0)).unwrap());
    assert_eq!(names.walk, walk, "nothing was looked at again");
    names.put(&link("l", "two", 1)).unwrap();
    names.put(&file("l/b", 1, 1)).unwrap();
    names.take_away(&entry("l", EntryKind::Whiteout, 2)).unwrap();
    names.put(&file("l/c", 1, 2)).unwrap();
    for path in ["one/a", "one/99", "two/b", "l/c"] {
        assert!(names.all.contains_key(path), "{path}");
    }
}

#[test]
fn a_link_that_makes_a_path_too_long_is_refused_and_one_that_climbs_stays_within() {
    let long = vec!["x".repeat(200); 20].join("/");
    let all = vec![link("a", &long, 0), file("a/a/a/b", 1, 1)];
    assert!(merge(all).is_ok());
    let all = vec![link("a", &long, 0), file(&format!("a/{}/y", "z".repeat(150)), 1, 1)];
    assert_eq!(merge(all).unwrap_err().kind(), Kind::Invalid);
    let left = merge(vec![link("a", "../../../etc", 0), file("a/passwd", 1, 1)]).unwrap();
    assert!(left.iter().any(|entry| entry.path == "etc/passwd"), "{left:?}");
}

/// A folder as an unpacker makes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Folder(BTreeMap<String, Thing>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Thing {
    File(u64),
    Folder(Folder),
}

impl Folder {
    /// The folder that holds the last part of `path`, made where it is missing or something else.
    fn above<'a>(&mut self, path: &'a str) -> (&mut Self, &'a str) {
        let Some((first, rest)) = path.split_once('/') else { return (self, path) };
        let thing = self.0.entry(first.to_owned()).or_insert_with(|| Thing::Folder(Self::default()));
        if let Thing::File(_) = thing {
            *thing = Thing::Folder(Self::default());
        }
        let Thing::Folder(folder) = thing else { unreachable!("it was just made one") };
        folder.above(rest)
    }

    fn find(&mut self, path: &str) -> Option<&mut Thing> {
        match path.split_once('/') {
            None => self.0.get_mut(path),
            Some((first, rest)) => match self.0.get_mut(first)? {
                Thing::Folder(folder) => folder.find(rest),
                Thing::File(_) => None,
            },
        }
    }

    fn remove(&mut self, path: &str) {
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        match above {
            "" => drop(self.0.remove(name)),
            _ => {
                if let Some(Thing::Folder(folder)) = self.find(above) {
                    folder.0.remove(name);
                }
            }
        }
    }

    fn unpack(&mut self, layer: &[Entry]) {
        for mark in layer {
            match mark.kind {
                EntryKind::Whiteout => {
                    self.remove(&mark.path);
                    self.above(&mark.path);
                }
                EntryKind::Opaque => self.above(&format!("{}/any", mark.path)).0.0.clear(),
                _ => {}
            }
        }
        for entry in layer {
            let thing = match entry.kind {
                EntryKind::File { size, .. } => Thing::File(size),
                EntryKind::Directory => Thing::Folder(Self::default()),
                _ => continue,
            };
            let (folder, name) = self.above(&entry.path);
            match (folder.0.get(name), &thing) {
                (Some(Thing::Folder(_)), Thing::Folder(_)) => {}
                _ => drop(folder.0.insert(name.to_owned(), thing)),
            }
        }
    }

    /// Every file with its size, and every folder.
    fn list(&self, above: &str, all: &mut BTreeMap<String, Option<u64>>) {
        for (name, thing) in &self.0 {
            let path = path::below(above, name);
            match thing {
                Thing::File(size) => drop(all.insert(path, Some(*size))),
                Thing::Folder(folder) => {
                    folder.list(&path, all);
                    all.insert(path, None);
                }
            }
        }
    }
}

fn some_entry() -> impl Strategy<Value = (String, EntryKind)> {
    let kind = prop_oneof![
        4 => (0..9_u64).prop_map(|size| EntryKind::File { extent: None, size }),
        2 => Just(EntryKind::Directory),
        2 => Just(EntryKind::Whiteout),
        1 => Just(EntryKind::Opaque),
    ];
    ("[ab-](/[ab]){0,3}", kind)
}

proptest! {
    #[test]
    fn what_is_left_is_what_unpacking_the_layers_leaves(
        layers in prop::collection::vec(prop::collection::vec(some_entry(), 0..8), 0..5)
    ) {
        let (mut root, mut all) = (Folder::default(), Vec::new());
        for (number, layer) in layers.into_iter().enumerate() {
            let layer: Vec<_> = layer.into_iter().map(|(path, kind)| entry(&path, kind, number)).collect();
            root.unpack(&layer);
            all.extend(layer);
        }
        let left = merge(all).unwrap();
        let mut wanted = BTreeMap::new();
        root.list("", &mut wanted);
        let found = left.iter().map(|entry| match entry.kind {
            EntryKind::File { size, .. } => (entry.path.clone(), Some(size)),
            _ => (entry.path.clone(), None),
        });
        prop_assert_eq!(found.collect::<BTreeMap<_, _>>(), wanted);
    }
}
