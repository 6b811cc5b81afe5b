//! Models that take no room, in a registry that makes their bytes as it is asked for them, and who reads them.
//!
//! At full size: `WEIGHTFS_TEST_NODE_MIB=10240`, with `--release`; that is how much all models of a test have together.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use weightfs::range::StoredRange;
use weightfs::testing::registry::{Habits, Registry, Source, Synthetic};

use crate::support::pack::{self, Content, Dialect, Packing};
use crate::support::{bound, read, scratch, wait};

/// What is read at once.
pub(super) const STEP: u64 = 1 << 20;

/// The file of each model that is large.
const WEIGHTS: &str = "weights.bin";

/// What all models of a test have together, in bytes, with as much that no file ends where a chunk does.
pub(super) fn size() -> u64 {
    let mib =
        std::env::var("WEIGHTFS_TEST_NODE_MIB").map_or(160, |text| text.parse().expect("a number of MiB"));
    (mib << 20) + 4_711
}

/// The models, each packed with an index of its own, and the registry that has them.
pub(super) struct Models {
    registry: Registry,
    weights: Vec<Synthetic>,
    _folder: tempfile::TempDir,
    _runtime: Runtime,
}

impl Models {
    /// So many models with weights of so many bytes each, none of which has 4 KiB in common with another.
    pub(super) fn start(count: u64, size: u64) -> Self {
        let folder = scratch::roomy();
        let weights = (0..count).map(|number| pushed(folder.path(), number, size)).collect::<Vec<_>>();
        let source = Source::layout(folder.path().to_owned()).unwrap().with(weights.clone());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let registry = runtime.block_on(Registry::start(source, Habits::default())).unwrap();
        Self { registry, weights, _folder: folder, _runtime: runtime }
    }

    /// What the model of this number is asked for by.
    pub(super) fn reference(&self, number: usize) -> String {
        format!("{}/models/{number}:v{number}", self.registry.host())
    }

    /// Its weights.
    pub(super) fn weights(&self, number: usize) -> &Synthetic {
        &self.weights[number]
    }

    /// Waits until nobody asks the registry any more.
    pub(super) fn settle(&self) {
        wait::settled("the registry's log", || self.registry.log("").len());
    }

    /// How many bytes of blobs were asked for so far, and how often one of them that had been asked for before.
    pub(super) fn asked(&self) -> (u64, u64) {
        let mut blobs: BTreeMap<String, Vec<(u64, u64)>> = BTreeMap::new();
        for request in self.registry.log("/blobs/").into_iter().filter(|one| one.method == "GET") {
            let range = request.range.as_deref().map_or((0, u64::MAX), range);
            blobs.entry(request.path).or_default().push(range);
        }
        let (mut bytes, mut again) = (0, 0);
        for ranges in blobs.values_mut() {
            ranges.sort_unstable();
            let mut seen = 0;
            for (start, end) in ranges {
                again += u64::from(*start < seen);
                bytes += *end - *start;
                seen = seen.max(*end);
            }
        }
        (bytes, again)
    }

    /// Makes sure that no client of the registry broke a rule. That the manifest of a volume is asked for each time that one is
    /// published is no storm.
    pub(super) fn assert_no_violations(&self) {
        let mut broken = self.registry.violations();
        broken.retain(|violation| violation.request.contains("/blobs/"));
        assert!(broken.is_empty(), "{broken:#?}");
    }
}

/// Puts a model into the layout at `folder`, but for its weights, which are made as they are read.
fn pushed(folder: &Path, number: u64, size: u64) -> Synthetic {
    let content = Content::made(number * size.div_ceil(4096), size);
    let Content::Made(weights) = content.clone() else { unreachable!("as it was made") };
    let config = pack::File::new("config.json", format!("{{\"number\":{number}}}"));
    let files = [config, pack::File { path: WEIGHTS.to_owned(), content }];
    let plain = pack::pack(&files, Packing::Raw, Dialect::Upstream, folder);
    bound::bind(&plain, &files, Packing::Raw).write_layout(folder, &format!("v{number}"));
    weights
}

/// The first byte of a `Range` header's one range, and the one after its last.
fn range(header: &str) -> (u64, u64) {
    let (first, last) = header.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    (first.parse().unwrap(), last.parse::<u64>().unwrap() + 1)
}

/// Somebody who reads a model's weights.
pub(super) struct Reader {
    path: PathBuf,
    weights: Synthetic,
    held: File,
    steps: u64,
    slowest: Duration,
}

impl Reader {
    /// Opens the weights of the model that is shown at `dir`.
    pub(super) fn open(dir: &Path, weights: &Synthetic) -> Self {
        let path = dir.join(WEIGHTS);
        let held = File::open(&path).unwrap();
        assert_eq!(held.metadata().unwrap().len(), weights.size);
        Self { path, weights: weights.clone(), held, steps: 0, slowest: Duration::ZERO }
    }

    /// Reads the next MiB, round again at the end, by the handle that stays open and by one that is opened for it in turn. Then the
    /// kernel is made to forget it, so that the next round is read from who serves the mount.
    ///
    /// # Panics
    /// Where it can't be read, or is something else.
    pub(super) fn step(&mut self) {
        let begun = Instant::now();
        let at = self.steps % self.weights.size.div_ceil(STEP) * STEP;
        match self.steps % 2 {
            0 => self.check(&self.held, at),
            _ => self.check(&File::open(&self.path).unwrap(), at),
        }
        self.forget();
        self.steps += 1;
        self.slowest = self.slowest.max(begun.elapsed());
    }

    /// Reads a MiB from `at` on, or what there is of it.
    ///
    /// # Panics
    /// As [`step`](Self::step).
    pub(super) fn read_at(&self, at: u64) {
        self.check(&self.held, at);
    }

    /// Makes the kernel forget what was read.
    pub(super) fn forget(&self) {
        read::forget(&self.held);
    }

    /// The longest time that a step has taken.
    pub(super) fn slowest(&self) -> Duration {
        self.slowest
    }

    fn check(&self, file: &File, at: u64) {
        let end = (at + STEP).min(self.weights.size);
        let got = read::range(file, at, end - at);
        let got = got.unwrap_or_else(|error| panic!("{} at {at}: {error}", self.path.display()));
        read::assert_same(&self.path, at, &got, &self.weights.part(StoredRange::new(at, end)));
    }
}
