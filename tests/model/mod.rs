//! A reference model: random small artifacts and random operations, through a real mount and in memory side by side.
//!
//! Some are one compressed layer whose names appear as it goes by. Half of the others bring their own chunk digests; their registry is wrong now and then, which may cost an error and never
//! a wrong byte. Sizes lie around the borders where mistakes live (nothing, one byte, a page, a chunk of 1 MiB, each with its neighbours).
//! The seed is printed; `WEIGHTFS_TEST_SEED=N` repeats a run, `PROPTEST_CASES` sets the number of cases (64).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc::EIO;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed, TestRunner};

use crate::support::compressed::{self, Form};
use crate::support::pack::{self, Content, Dialect, Packing};
use crate::support::place::Place;
use crate::support::read::{self, Mapping};
use crate::support::registry::Registry;
use crate::support::{bound, heavy, sample};

const CHUNK: u64 = 1 << 20;

/// What is done with one of the files, chosen by its number.
#[derive(Clone, Debug)]
enum Step {
    Read {
        offset: u64,
        size: u64,
    },
    Direct,
    Map {
        how: Mapping,
        offset: u64,
        size: u64,
    },
    Whole,
    Stat,
    List,
    Forget,
    Reopen,
    Remount,
    /// A byte of the file's layer is flipped in the registry, or flipped back.
    Flip {
        offset: u64,
    },
}

/// An artifact and what is done with it.
#[derive(Clone, Debug)]
struct Case {
    files: BTreeMap<String, (u64, u64)>,
    packing: Packing,
    dialect: Dialect,
    /// How its one layer is compressed, without an index: then its names appear as it goes by.
    form: Option<Form>,
    /// Whether it brings its own chunk digests. Only then can the registry be wrong and the mount none the worse.
    bound: bool,
    steps: Vec<(usize, Step)>,
}

fn size() -> impl Strategy<Value = u64> {
    let border = prop::sample::select(vec![
        0,
        1,
        4095,
        4096,
        4097,
        CHUNK - 1,
        CHUNK,
        CHUNK + 1,
        2 * CHUNK,
        2 * CHUNK + 1,
    ]);
    prop_oneof![3 => border, 1 => 0..20_000_u64, 1 => 0..3 * CHUNK]
}

/// Few letters, so that names meet: the same twice, and a file where another's folder would be.
fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab é.]{1,3}", 1..4).prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let place = || prop_oneof![Just(0), Just(CHUNK - 1), Just(CHUNK), 0..3 * CHUNK];
    let length = || prop_oneof![Just(1_u64), Just(4096), Just(CHUNK + 2), 0..2 * CHUNK];
    let how = prop::sample::select(vec![Mapping::Shared, Mapping::Populated, Mapping::Private]);
    prop_oneof![
        6 => (place(), length()).prop_map(|(offset, size)| Step::Read { offset, size }),
        3 => (how, place(), length()).prop_map(|(how, offset, size)| Step::Map { how, offset, size }),
        1 => Just(Step::Direct),
        1 => Just(Step::Whole),
        1 => Just(Step::Stat),
        1 => Just(Step::List),
        2 => Just(Step::Forget),
        2 => Just(Step::Reopen),
        1 => Just(Step::Remount),
        3 => place().prop_map(|offset| Step::Flip { offset }),
    ]
}

fn case() -> impl Strategy<Value = Case> {
    let files = prop::collection::btree_map(path(), (size(), any::<u64>()), 1..6).prop_map(mountable);
    let packing = prop::sample::select(vec![
        (Packing::Raw, Dialect::Upstream),
        (Packing::Raw, Dialect::Legacy),
        (Packing::Tar, Dialect::Upstream),
        (Packing::Tar, Dialect::Seed),
        (Packing::OneTar, Dialect::Upstream),
        (Packing::OneTar, Dialect::Seed),
    ]);
    let form = prop::sample::select(vec![Form::Gzip, Form::Pigz, Form::Zstd, Form::Frames]);
    let steps = prop::collection::vec((0..6_usize, step()), 1..25);
    (files, packing, form, any::<bool>(), steps)
        .prop_map(|(files, (packing, dialect), form, bound, steps)| {
            let form = Some(form).filter(|_| (packing, dialect) == (Packing::OneTar, Dialect::Seed));
            let bound = bound && form.is_none();
            Case { files, packing, dialect, form, bound, steps }
        })
        .prop_filter("a file at least", |case| !case.files.is_empty())
}

/// Leaves out what an artifact may not have: `.` and `..`, and files that are folders of others.
fn mountable(files: BTreeMap<String, (u64, u64)>) -> BTreeMap<String, (u64, u64)> {
    let dots = |path: &str| path.split('/').any(|part| part == "." || part == "..");
    let kept: BTreeMap<_, _> = files.into_iter().filter(|(path, _)| !dots(path)).collect();
    let below = |path: &String| kept.keys().any(|other| other.starts_with(&format!("{path}/")));
    kept.iter().filter(|(path, _)| !below(path)).map(|(path, file)| (path.clone(), *file)).collect()
}

/// The mount and what it should look like.
struct Twin<'a> {
    place: &'a Place,
    reference: String,
    files: Vec<(String, Vec<u8>)>,
    open: BTreeMap<usize, File>,
    registry: &'a Registry,
    /// Of a bound artifact: for each file the digest of its layer, and where in it the file begins.
    layers: Vec<(String, u64)>,
    /// Which bytes of which layers are wrong in the registry.
    wrong: BTreeSet<(String, u64)>,
}

impl Twin<'_> {
    fn take(&mut self, number: usize, step: &Step) {
        let number = number % self.files.len();
        let path = self.place.path(&self.files[number].0);
        let right = self.files[number].1.clone();
        let span = |offset: u64, size: u64| {
            let end = (offset + size).min(right.len() as u64);
            offset.min(end) as usize..end as usize
        };
        match *step {
            Step::Read { offset, size } => {
                let got = read::range(self.file(number), offset, size);
                self.assert_right(number, offset, got, &right[span(offset, size)]);
            }
            // A mapping of nothing is an error everywhere.
            Step::Map { .. } if right.is_empty() => {}
            // It would never return: a fault that Linux lets wait for the file is begun anew by populating, as if it were the first,
            // whatever came of the read; only one by touch is told the second time. Ends when the process is killed.
            Step::Map { how: Mapping::Populated, .. } if self.is_wrong(number, 0, right.len() as u64) => {}
            // It would raise SIGBUS.
            Step::Map { offset, size, .. } if self.is_wrong(number, offset, size) => {}
            Step::Map { how, offset, size } => {
                let map = read::map_as(&path, how).unwrap();
                assert_eq!(map.len(), right.len());
                read::assert_same(&path, offset, &map[span(offset, size)], &right[span(offset, size)]);
            }
            Step::Direct => self.assert_right(number, 0, read::direct(&path), &right),
            Step::Whole => self.assert_right(number, 0, fs::read(&path), &right),
            Step::Stat => {
                let found = path.metadata().unwrap();
                assert_eq!(
                    (found.len(), found.mtime()),
                    (right.len() as u64, pack::MTIME as i64),
                    "{}",
                    path.display()
                );
            }
            Step::List => assert_eq!(names_below(&self.place.dir(), ""), self.names()),
            Step::Forget => read::forget(self.file(number)),
            Step::Reopen => drop(self.open.remove(&number)),
            Step::Remount => {
                self.open.clear();
                self.place.unmount();
                self.place.mount(&self.reference, &[]);
            }
            Step::Flip { offset } => {
                if let Some((digest, start)) = self.layers.get(number).filter(|_| !right.is_empty()) {
                    self.flip((digest.clone(), start + offset % right.len() as u64));
                }
            }
        }
    }

    fn flip(&mut self, byte: (String, u64)) {
        self.registry.corrupt(&byte.0, byte.1);
        if !self.wrong.remove(&byte) {
            self.wrong.insert(byte);
        }
    }

    /// Whether a byte of a MiB that the stretch touches is wrong in the registry.
    fn is_wrong(&self, number: usize, offset: u64, size: u64) -> bool {
        let Some((digest, start)) = self.layers.get(number) else { return false };
        let touched = offset / CHUNK * CHUNK..offset.saturating_add(size).next_multiple_of(CHUNK);
        let len = self.files[number].1.len() as u64;
        let mine = |at: &u64| *at >= *start && *at < start + len && touched.contains(&(at - start));
        self.wrong.iter().any(|(layer, at)| layer == digest && mine(at))
    }

    /// Right bytes, or EIO where what was asked for is wrong in the registry.
    fn assert_right(&self, number: usize, offset: u64, got: std::io::Result<Vec<u8>>, right: &[u8]) {
        let (path, wrong) =
            (self.place.path(&self.files[number].0), self.is_wrong(number, offset, right.len() as u64));
        match got {
            Ok(got) => read::assert_same(&path, offset, &got, right),
            Err(error) => {
                assert!(wrong && error.raw_os_error() == Some(EIO), "{}: {error}", path.display());
            }
        }
    }

    fn file(&mut self, number: usize) -> &File {
        let path = self.place.path(&self.files[number].0);
        self.open.entry(number).or_insert_with(|| File::open(path).unwrap())
    }

    fn names(&self) -> BTreeSet<String> {
        self.files.iter().map(|(path, _)| path.clone()).collect()
    }
}

/// Paths of all files below a folder, relative to where it began.
fn names_below(folder: &Path, prefix: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
    let paths = entries.flat_map(|entry| {
        let path = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        match entry.file_type().unwrap() {
            kind if kind.is_dir() => names_below(&entry.path(), &format!("{path}/")),
            kind if kind.is_file() => BTreeSet::from([path]),
            kind => panic!("{path} is a {kind:?}"),
        }
    });
    paths.collect()
}

fn run(registry: &Registry, number: u32, case: &Case) {
    let bytes = |(size, seed): (u64, u64)| {
        let mut bytes = vec![0; size as usize];
        sample::fill(&mut bytes, seed);
        bytes
    };
    let files: Vec<(String, Vec<u8>)> =
        case.files.iter().map(|(path, file)| (path.clone(), bytes(*file))).collect();
    let packed: Vec<pack::File> = files
        .iter()
        .map(|(path, bytes)| pack::File { path: path.clone(), content: Content::Bytes(bytes.clone()) })
        .collect();
    let plain = match case.form {
        Some(form) => compressed::pack(&packed, form),
        None => pack::pack(&packed, case.packing, case.dialect, Path::new("/nowhere")),
    };
    let artifact = if case.bound { bound::bind(&plain, &packed, case.packing) } else { plain };
    let layers = if case.bound { bound::places(&artifact, &packed, case.packing) } else { Vec::new() };
    let name = format!("random/case-{number}");
    registry.push(&name, "v1", &artifact);
    let (place, reference) = (Place::new(), registry.reference(&format!("{name}:v1")));
    place.mount(&reference, &[]);
    let (open, wrong) = (BTreeMap::new(), BTreeSet::new());
    let mut twin = Twin { place: &place, reference, files, open, registry, layers, wrong };
    for (number, step) in &case.steps {
        twin.take(*number, step);
    }
    for byte in twin.wrong.clone() {
        twin.flip(byte);
    }
    for number in 0..twin.files.len() {
        twin.take(number, &Step::Whole);
    }
    assert_ne!(place.status()["standing"], "poisoned");
    twin.take(0, &Step::List);
    twin.open.clear();
    place.unmount();
}

#[test]
fn a_random_artifact_reads_through_a_mount_as_it_does_in_memory() {
    let _alone = heavy();
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let seed = number("WEIGHTFS_TEST_SEED").unwrap_or(now);
    let cases = number("PROPTEST_CASES").unwrap_or(64) as u32;
    println!("WEIGHTFS_TEST_SEED={seed} repeats these {cases} cases");
    let config = Config {
        cases,
        rng_seed: RngSeed::Fixed(seed),
        failure_persistence: None,
        max_shrink_iters: 200,
        ..Config::default()
    };
    let registry = Registry::start();
    let count = std::cell::Cell::new(0);
    let outcome = TestRunner::new(config).run(&case(), |case| {
        count.set(count.get() + 1);
        run(&registry, count.get(), &case);
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("WEIGHTFS_TEST_SEED={seed}: {error}");
    }
}
