//! What the kernel makes of a real mount: faults of a file that is not whole, random faults, and files opened again.
//!
//! A program of its own and not criterion's, since what counts is the median, and each step is there once. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a bench fails by panicking, and prints"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use memmap2::{Advice, Mmap};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use weightfs::content::{Config, Store, StoreConfig, Warm};
use weightfs::fs::Model;
use weightfs::mount::{Mapping, Mount, Options, Passthrough, ReadAround};
use weightfs::repository::Memory;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
const SIZE: usize = 256 * MIB;

struct Scene {
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
    repository: Arc<Memory>,
    weights: Vec<u8>,
}

impl Scene {
    fn new() -> Self {
        let mut chance = fastrand::Rng::with_seed(7);
        let mut weights = vec![0; SIZE];
        chance.fill(&mut weights);
        let repository = Arc::new(Memory::new());
        let layer = repository.put(weights.clone());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[
            {{"mediaType":"application/vnd.cncf.model.weight.v1.raw","digest":"{}","size":{},
            "annotations":{{"org.cncf.model.filepath":"weights.bin"}}}}]}}"#,
            layer.digest, layer.size
        );
        repository.put_manifest("latest", "application/vnd.oci.image.manifest.v1+json", manifest);
        let folder =
            tempfile::tempdir_in(std::env::var("WEIGHTFS_BENCH").unwrap_or_else(|_| "target".into()));
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        Self { runtime, folder: folder.unwrap(), repository, weights }
    }

    /// A mount with a store of its own, which is empty.
    fn mount(&self, name: &str, warm: Warm, read_around: ReadAround) -> (Mount, PathBuf) {
        let folder = self.folder.path().canonicalize().unwrap().join(name);
        std::fs::create_dir_all(folder.join("mnt")).unwrap();
        let mount = self.runtime.block_on(async {
            let store = Store::open(&StoreConfig { folder: folder.join("store"), size: None }).unwrap();
            let reference = "example.org/acme/llm".parse().unwrap();
            let config = Config { warm, ..Config::default() };
            let model = Model::open(self.repository.clone(), reference, store, config).await.unwrap();
            let options = Options { read_around, passthrough: Passthrough::Swap, ..Options::default() };
            Mount::open(Arc::new(model), &folder.join("mnt"), &options).await.unwrap()
        });
        (mount, folder.join("mnt/weights.bin"))
    }

    fn unmount(&self, mount: Mount) {
        self.runtime.block_on(mount.unmount()).unwrap();
    }
}

fn count(mount: &Mount, counter: &str) -> u64 {
    mount.status().metrics[counter]
}

fn forget(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// MB/s of reading all of it, 1 MiB at a time.
fn rate(path: &Path) -> f64 {
    let file = File::open(path).unwrap();
    let (mut room, begun) = (vec![0; MIB], Instant::now());
    for at in (0..SIZE).step_by(MIB) {
        file.read_exact_at(&mut room, at as u64).unwrap();
    }
    SIZE as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

/// MB/s of touching each page of it through a map.
fn touch_rate(path: &Path) -> f64 {
    let map = Mapping::open(path).unwrap();
    let begun = Instant::now();
    let sum: u64 = (0..SIZE).step_by(PAGE).map(|at| u64::from(map[at])).sum();
    assert!(sum > 0);
    SIZE as f64 / 1e6 / begun.elapsed().as_secs_f64()
}

fn mapped(path: &Path, advice: Advice) -> Mmap {
    let file = File::open(path).unwrap();
    #[allow(unsafe_code, reason = "the file is of a read-only mount")]
    // SAFETY: nobody changes it.
    let map = unsafe { Mmap::map(&file) }.unwrap();
    map.advise(advice).unwrap();
    map
}

/// How long each of so many single faults takes, sorted.
fn faults(map: &Mmap, weights: &[u8], pages: impl Iterator<Item = usize>) -> Vec<Duration> {
    let mut times: Vec<Duration> = pages
        .map(|page| {
            let begun = Instant::now();
            let byte = std::hint::black_box(map[page * PAGE]);
            let took = begun.elapsed();
            assert_eq!(byte, weights[page * PAGE]);
            took
        })
        .collect();
    times.sort();
    times
}

fn shown(times: &[Duration]) -> String {
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e6;
    format!("p50 {:.1} µs, p90 {:.1} µs, p99 {:.1} µs of {}", at(50), at(90), at(99), times.len())
}

/// Faults under MADV_RANDOM where all chunks but the last are here, so that the file is not the kernel's own.
fn incomplete(scene: &Scene) {
    let (mount, path) = scene.mount("incomplete", Warm::None, ReadAround::Auto);
    let file = File::open(&path).unwrap();
    for at in (0..SIZE - 3 * MIB).step_by(MIB) {
        file.read_exact_at(&mut [0; PAGE], at as u64).unwrap();
    }
    wait("kept", || mount.status().kept >= (SIZE - 8 * MIB) as u64);
    let mut chance = fastrand::Rng::with_seed(3);
    for round in 1..=3 {
        forget(&file);
        let map = mapped(&path, Advice::Random);
        let pages: Vec<usize> = (0..2000).map(|_| chance.usize(0..(SIZE - 8 * MIB) / PAGE)).collect();
        let times = faults(&map, &scene.weights, pages.into_iter());
        println!("4 KiB fault, MADV_RANDOM, chunk here, file incomplete, round {round}: {}", shown(&times));
    }
    drop(file);
    scene.unmount(mount);
}

fn scattered(scene: &Scene) {
    for (name, read_around) in [("always", ReadAround::Always), ("auto", ReadAround::Auto)] {
        let (mount, path) = scene.mount(&format!("scattered-{name}"), Warm::Auto, read_around);
        let map = mapped(&path, Advice::Normal);
        let mut chance = fastrand::Rng::with_seed(11);
        let pages: Vec<usize> = (0..200).map(|_| chance.usize(0..SIZE / PAGE)).collect();
        let times = faults(&map, &scene.weights, pages.into_iter());
        let fetched = count(&mount, "fetched_bytes") >> 20;
        let declined = count(&mount, "declined_reads");
        println!(
            "200 random faults, read_around {name}: {fetched} MiB fetched, {declined} declined, {}",
            shown(&times)
        );
        drop(map);
        scene.unmount(mount);
    }
}

fn reopened(scene: &Scene) {
    let native = scene.folder.path().join("native");
    std::fs::write(&native, &scene.weights).unwrap();
    File::open(&native).unwrap().sync_all().unwrap();
    for round in 1..=3 {
        forget(&File::open(&native).unwrap());
        let (cold, warm) = (rate(&native), rate(&native));
        forget(&File::open(&native).unwrap());
        let (cold_touch, warm_touch) = (touch_rate(&native), touch_rate(&native));
        let (mount, path) = scene.mount(&format!("reopened-{round}"), Warm::Auto, ReadAround::Auto);
        let held = Mapping::open(&path).unwrap();
        let pass = rate(&path);
        let at_once = rate(&path);
        wait("renumbered", || count(&mount, "renumbered_files") > 0);
        let (first, second) = (rate(&path), rate(&path));
        let touches = touch_rate(&path);
        assert!(count(&mount, "passthrough_opens") >= 3);
        println!(
            "round {round}, MB/s: native cold {cold:.0} warm {warm:.0}, touch {cold_touch:.0} {warm_touch:.0}; cold pass {pass:.0}, \
             at once again {at_once:.0}, then reopened first {first:.0} second {second:.0}, touch {touches:.0}: {:.2} x cold, {:.2} x warm, {:.2} x warm touch",
            first / cold,
            second / warm,
            touches / warm_touch
        );
        drop(held);
        scene.unmount(mount);
    }
}

fn main() {
    let scene = Scene::new();
    incomplete(&scene);
    scattered(&scene);
    reopened(&scene);
}
