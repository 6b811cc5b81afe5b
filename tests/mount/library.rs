//! Real mounts: what the kernel makes of a model, seen by a reader. Needs root or fusermount3.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use weightfs::Kind;
use weightfs::content::store::StoreConfig;
use weightfs::content::{Config, Store, Warm};
use weightfs::fs::Model;
use weightfs::mount::{Detach, Mapping, Mount, Options, unmount};
use weightfs::repository::memory::Memory;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const RAW: &str = "application/vnd.cncf.model.weight.v1.raw";
const EROFS: i32 = 30;

/// A model in memory, a store, and a folder to mount at.
pub(super) struct Bench {
    folder: tempfile::TempDir,
    pub(super) repository: Arc<Memory>,
    pub(super) weights: Vec<u8>,
}

impl Bench {
    /// A model of one file of 3 MiB and a bit, `a/weights.bin`, in a repository in memory.
    pub(super) fn new() -> Self {
        Self::of((0..(3 << 20) + 77_u32).map(|at| (at / 4096 * 7 + at).to_le_bytes()[0]).collect())
    }

    /// A model whose one file, `a/weights.bin`, is this.
    pub(super) fn of(weights: Vec<u8>) -> Self {
        let repository = Arc::new(Memory::new());
        let layer = repository.put(weights.clone());
        let config = repository.put("{}");
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": config.digest, "size": 2},
            "layers": [{
                "mediaType": RAW, "digest": layer.digest, "size": layer.size,
                "annotations": {"org.cncf.model.filepath": "a/weights.bin"}
            }]
        });
        repository.put_manifest("latest", MANIFEST, manifest.to_string());
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("mnt")).unwrap();
        Self { folder, repository, weights }
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub(super) fn store(&self) -> PathBuf {
        self.folder.path().join("store")
    }

    pub(super) fn file(&self) -> PathBuf {
        self.dir().join("a/weights.bin")
    }

    pub(super) async fn model(&self, config: Config) -> Arc<Model> {
        self.model_kept(config, None).await
    }

    /// Opened over a store that may have so many bytes.
    pub(super) async fn model_kept(&self, config: Config, size: Option<u64>) -> Arc<Model> {
        let store = Store::open(&StoreConfig { folder: self.store(), size }).unwrap();
        let reference = "example.org/acme/llm".parse().unwrap();
        let model = Model::open(self.repository.clone(), reference, store, config).await;
        Arc::new(model.unwrap())
    }

    async fn mount(&self) -> Mount {
        self.mount_with(Config::default()).await
    }

    pub(super) async fn mount_with(&self, config: Config) -> Mount {
        Mount::open(self.model(config).await, &self.dir(), &Options::default()).await.unwrap()
    }
}

/// Runs what reads the mount outside of the runtime that answers it.
pub(super) async fn reading<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

pub(super) async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: not within thirty seconds");
}

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

fn read_direct(path: &Path, offset: u64) -> Vec<u8> {
    let file =
        OpenOptions::new().read(true).custom_flags(nix::fcntl::OFlag::O_DIRECT.bits()).open(path).unwrap();
    let mut buffer = vec![0; 2 << 20];
    let start = buffer.as_ptr().align_offset(4096);
    let aligned = &mut buffer[start..start + (1 << 20)];
    file.read_exact_at(aligned, offset).unwrap();
    aligned.to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_reads_the_same_by_read_by_mapping_and_by_direct_io_and_nothing_can_be_written() {
    let bench = Bench::new();
    let mount = bench.mount().await;
    let (dir, path, weights) = (bench.dir(), bench.file(), bench.weights.clone());
    reading(move || {
        assert!(*Mapping::open(&path).unwrap() == *weights);
        assert!(std::fs::read(&path).unwrap() == weights);
        assert!(read_direct(&path, 1 << 20) == weights[1 << 20..2 << 20]);
        let stat = std::fs::metadata(&path).unwrap();
        assert_eq!((stat.mode(), stat.size(), stat.blksize()), (0o100_444, weights.len() as u64, 1 << 20));
        let root = std::fs::metadata(&dir).unwrap();
        assert_eq!(root.mode(), 0o040_555);
        if nix::unistd::geteuid().is_root() {
            let (major, minor) = (nix::sys::stat::major(root.dev()), nix::sys::stat::minor(root.dev()));
            let ahead = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
            assert_eq!(std::fs::read_to_string(ahead).unwrap().trim(), "1024");
        }
        assert_eq!(errno(OpenOptions::new().write(true).open(&path)), Some(EROFS));
        assert_eq!(errno(std::fs::create_dir(dir.join("new"))), Some(EROFS));
        assert_eq!(errno(std::fs::remove_file(&path)), Some(EROFS));
    })
    .await;
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_complete_and_proved_file_is_served_by_the_kernel_and_never_fetched_again() {
    let bench = Bench::new();
    let mount = bench.mount().await;
    let path = bench.file();
    reading(move || std::fs::read(path).unwrap()).await;
    until("proved", || mount.status().standing == "verified").await;
    mount.unmount().await.unwrap();

    let mount = bench.mount().await;
    let before = mount.status().metrics;
    // Whether this mount may see what is kept, and whether the file is untouched, may still be being asked.
    let (path, weights) = (bench.file(), bench.weights.clone());
    let opened = || mount.status().metrics["passthrough_opens"];
    for _ in 0..1000 {
        let (path, weights) = (path.clone(), weights.clone());
        reading(move || assert!(std::fs::read(path).unwrap() == weights)).await;
        if opened() > 0 || !nix::unistd::geteuid().is_root() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(opened() > 0 || !nix::unistd::geteuid().is_root());
    assert_eq!(mount.status().metrics["fetched_bytes"], before["fetched_bytes"], "nothing is fetched twice");
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_a_poisoned_file_leave_the_kernels_cache_and_it_does_not_open_again() {
    let bench = Bench::new();
    let mut bad = bench.weights.clone();
    bad[1 << 20] ^= 1;
    bench.repository.replace(&weightfs::oci::Digest::of(&bench.weights), bad.clone());
    // Loaded by nobody but the reader, who is to have pages of it before it is found to be wrong.
    let mount = bench.mount_with(Config { warm: Warm::None, ..Config::default() }).await;
    let path = bench.file();
    // Deferred: served until the whole layer is here and its digest disagrees.
    let held = reading(move || {
        let file = File::open(path).unwrap();
        let mut byte = [0];
        for offset in (0..3 << 20).step_by(1 << 20) {
            let _ = file.read_exact_at(&mut byte, offset);
        }
        let _ = file.read_exact_at(&mut byte, (3 << 20) + 70);
        file
    })
    .await;
    until("poisoned", || mount.status().standing == "poisoned").await;
    assert_eq!(mount.status().poisoned.len(), 1);
    let held = Arc::new(held);
    let mut failed = false;
    for _ in 0..1000 {
        let held = held.clone();
        failed = reading(move || errno(held.read_exact_at(&mut [0], 0)) == Some(5)).await;
        if failed {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(failed, "pages cached before stay readable");
    let path = bench.file();
    assert_eq!(reading(move || errno(File::open(path))).await, Some(5));
    drop(held);
    mount.unmount().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_mounted_at_already_is_refused_and_one_in_use_is_only_left_lazily() {
    let bench = Bench::new();
    let mount = bench.mount().await;
    let again = Mount::open(bench.model(Config::default()).await, &bench.dir(), &Options::default())
        .await
        .unwrap_err();
    assert_eq!(again.kind(), Kind::Busy);
    assert!(again.to_string().contains("example.org/acme/llm"), "{again}");
    let (dir, path) = (bench.dir(), bench.file());
    reading(move || {
        let held = File::open(path).unwrap();
        assert_eq!(unmount(&dir, Detach::Unused).unwrap_err().kind(), Kind::Busy);
        unmount(&dir, Detach::Lazy).unwrap();
        assert_eq!(unmount(&dir, Detach::Lazy).unwrap_err().kind(), Kind::NotFound);
        drop(held);
    })
    .await;
    tokio::time::timeout(Duration::from_secs(10), mount.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_closed_while_its_mount_is_unmounted_is_waited_for() {
    let bench = Bench::new();
    let mount = bench.mount().await;
    let (dir, path) = (bench.dir(), bench.file());
    reading(move || {
        let held = File::open(path).unwrap();
        // The first attempt of umount2(2) comes within microseconds, and this is closed only when another has had its turn.
        let closing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        unmount(&dir, Detach::Unused).unwrap();
        closing.join().unwrap();
    })
    .await;
    tokio::time::timeout(Duration::from_secs(10), mount.ended()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_missing_or_not_empty_is_refused() {
    let bench = Bench::new();
    let open = async |dir: PathBuf| {
        Mount::open(bench.model(Config::default()).await, &dir, &Options::default()).await
    };
    let missing = open(bench.folder.path().join("none")).await.unwrap_err();
    assert_eq!(missing.kind(), Kind::NotFound);
    let full = open(bench.folder.path().to_owned()).await.unwrap_err();
    assert_eq!(full.kind(), Kind::Busy);
}
