//! A model in this process over a registry with faults: the loader and all below it, without a kernel.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tempfile::TempDir;
use weightfs::content::{self, Store, StoreConfig, Warm};
use weightfs::fs::Model;
use weightfs::metrics::Metrics;
use weightfs::oci::Digest;
use weightfs::repository::{self, PlainHttp, connect};
use weightfs::testing::registry::{Habits, Registry, Source};
use weightfs::{Kind, Result};

use crate::support::pack::{self, Content, Dialect, Packing};
use crate::support::{bound, sample, scratch};

/// How long anything may take before a test gives it up: this machine may be busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Whether an artifact brings its own chunk digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// It does: every byte is verified before it is served.
    Packed,
    /// It does not: bytes are served as they come, and the layer is proved once it is here.
    Plain,
}

/// Files in an image layout folder, under the tag `v1`.
pub(super) struct Artifact {
    folder: TempDir,
    pub(super) files: Vec<pack::File>,
}

impl Artifact {
    /// `files` as an artifact of this form.
    pub(super) fn new(files: Vec<pack::File>, packing: Packing, form: Form) -> Self {
        let folder = scratch::roomy();
        let plain = pack::pack(&files, packing, Dialect::Upstream, Path::new("/nowhere"));
        match form {
            Form::Plain => plain.write_layout(folder.path(), "v1"),
            Form::Packed => bound::bind(&plain, &files, packing).write_layout(folder.path(), "v1"),
        }
        Self { folder, files }
    }

    /// `count` files of `size` bytes, no two alike.
    pub(super) fn of(count: usize, size: usize, packing: Packing, form: Form) -> Self {
        let file = |number: usize| {
            let mut bytes = vec![0; size];
            sample::fill(&mut bytes, number as u64 + 1);
            pack::File::new(format!("file-{number:03}.safetensors"), bytes)
        };
        Self::new((0..count).map(file).collect(), packing, form)
    }

    /// The same in a folder of its own, with the manifest and the blobs of `other` beside it, which no tag names.
    pub(super) fn with(&self, other: &Self) -> Self {
        let folder = scratch::roomy();
        for artifact in [other, self] {
            let blobs = Path::new("blobs/sha256");
            std::fs::create_dir_all(folder.path().join(blobs)).unwrap();
            for blob in std::fs::read_dir(artifact.folder.path().join(blobs)).unwrap() {
                let blob = blob.unwrap();
                std::fs::copy(blob.path(), folder.path().join(blobs).join(blob.file_name())).unwrap();
            }
            for name in ["oci-layout", "index.json"] {
                std::fs::copy(artifact.folder.path().join(name), folder.path().join(name)).unwrap();
            }
        }
        Self { folder, files: self.files.clone() }
    }

    /// What a registry serves of it.
    pub(super) fn source(&self) -> Source {
        Source::layout(self.folder.path().to_owned()).unwrap()
    }

    /// The bytes of a file.
    pub(super) fn bytes(&self, file: usize) -> &[u8] {
        match &self.files[file].content {
            Content::Bytes(bytes) => bytes,
            _ => unreachable!("in memory"),
        }
    }

    /// The digest of the manifest that `v1` names.
    pub(super) fn manifest(&self) -> Digest {
        let index = std::fs::read(self.folder.path().join("index.json")).unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
        index["manifests"][0]["digest"].as_str().unwrap().parse().unwrap()
    }

    /// The digest of the config, a blob that no reader of files asks for.
    pub(super) fn config(&self) -> Digest {
        let manifest =
            std::fs::read(self.folder.path().join("blobs/sha256").join(self.manifest().hex())).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        manifest["config"]["digest"].as_str().unwrap().parse().unwrap()
    }

    /// The digest of the raw layer that is this file.
    pub(super) fn digest(&self, file: usize) -> Digest {
        self.files[file].content.digest().parse().unwrap()
    }
}

/// Files whose second chunk is [`TAIL`] bytes: ranges of it lie in the middle of nothing larger, and cost little.
pub(super) const HEAD: usize = 1 << 20;
/// See [`HEAD`].
pub(super) const TAIL: usize = 20_000;
/// How many of them are read. There is one more, whose bytes stand in for theirs where a registry confuses them.
pub(super) const FILES: usize = 24;

/// The artifact that the matrix reads, made once.
pub(super) fn shared(form: Form) -> &'static Artifact {
    static PACKED: OnceLock<Artifact> = OnceLock::new();
    static PLAIN: OnceLock<Artifact> = OnceLock::new();
    let made = if form == Form::Packed { &PACKED } else { &PLAIN };
    made.get_or_init(|| Artifact::of(FILES + 1, HEAD + TAIL, Packing::Raw, form))
}

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Without progress, until a read fails.
    pub(super) deadline: Duration,
    /// Without a byte, until a request counts as broken.
    pub(super) stall: Duration,
}

impl Times {
    /// How long anything may take beside these.
    pub(super) fn patience(self) -> Duration {
        self.deadline + PATIENCE
    }

    pub(super) fn repository(self) -> repository::Config {
        repository::Config {
            read_deadline: self.deadline,
            setup_deadline: self.deadline,
            stall: self.stall,
            connect_timeout: Duration::from_secs(2),
            // Those that have a name are on this machine all the same.
            plain_http: PlainHttp::Allowed,
            ..repository::Config::default()
        }
    }
}

/// A registry and a model that is read from it.
pub(super) struct Setting {
    pub(super) registry: Registry,
    pub(super) model: Arc<Model>,
    pub(super) metrics: Arc<Metrics>,
    times: Times,
    store: TempDir,
}

impl Setting {
    /// A model with a store of its own, which may keep `room` bytes.
    pub(super) async fn open(source: Source, habits: Habits, times: Times, room: u64) -> Self {
        let registry = Registry::start(source, habits).await.unwrap();
        let host = registry.host();
        Self::of(registry, &host, times, room).await
    }

    /// The same, of a registry that is there already and is asked at `host`.
    pub(super) async fn of(registry: Registry, host: &str, times: Times, room: u64) -> Self {
        let (store, config) = (scratch::roomy(), times.repository());
        let metrics = config.metrics.clone();
        let model = open(host, store.path(), config, room).await.unwrap();
        Self { registry, model, metrics, times, store }
    }

    /// The bytes of a file from `offset` on.
    pub(super) async fn read(&self, path: &str, offset: u64, len: u64) -> Result<bytes::Bytes> {
        let node = self.model.tree.find(path).unwrap();
        let read = self.model.read(node, offset, len);
        let patience = self.times.patience();
        tokio::time::timeout(patience, read).await.unwrap_or_else(|_| panic!("{path}: no answer at all"))
    }

    /// The model as whoever opens it now gets it, with an empty store.
    pub(super) async fn anew(&self) -> Result<(Arc<Model>, TempDir)> {
        let store = scratch::roomy();
        Ok((open(&self.registry.host(), store.path(), self.times.repository(), 1 << 30).await?, store))
    }

    /// What the store's images hold.
    pub(super) fn images(&self) -> Vec<Vec<u8>> {
        fn below(folder: &Path, found: &mut Vec<Vec<u8>>) {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    below(&path, found);
                } else if path.extension().is_some_and(|kind| kind == "data") {
                    found.push(std::fs::read(&path).unwrap());
                }
            }
        }
        let mut found = Vec::new();
        below(self.store.path(), &mut found);
        found
    }

    /// Makes sure that the client broke no rule, and ends.
    pub(super) async fn end(self, what: &str) {
        let violations = self.registry.violations();
        assert!(violations.is_empty(), "{what}: {}", list(&violations));
        self.model.close().await;
    }
}

fn list<T: std::fmt::Display>(all: &[T]) -> String {
    all.iter().take(20).map(|one| format!("\n  {one}")).collect()
}

/// Opens `test/model:v1` of the registry at `host`.
async fn open(host: &str, store: &Path, asking: repository::Config, room: u64) -> Result<Arc<Model>> {
    let reference = format!("{host}/test/model:v1").parse()?;
    let repository = connect(&reference, &asking)?;
    let store = Store::open(&StoreConfig { folder: store.join("store"), size: Some(room) })?;
    let config = content::Config {
        warm: Warm::None,
        read_deadline: asking.read_deadline,
        ..content::Config::default()
    };
    Ok(Arc::new(Model::open(repository, reference, store, config).await?))
}

/// Makes sure that an error is one that a reader may get from a registry with a fault: of a kind that says what is wrong
/// with the network, with the file and the registry (`host`) in it, and no secret.
pub(super) fn is_clear(error: &weightfs::Error, file: &str, host: &str, what: &str) {
    const KINDS: [Kind; 8] = [
        Kind::Deadline,
        Kind::Protocol,
        Kind::Broken,
        Kind::Unreachable,
        Kind::Throttled,
        Kind::Denied,
        Kind::NotFound,
        Kind::Integrity,
    ];
    let text = error.to_string();
    assert!(KINDS.contains(&error.kind()), "{what}: {error:?}");
    assert_eq!(error.kind().errno(), nix::libc::EIO, "{what}");
    assert!(text.contains(file) && text.contains(host), "{what}: {text}");
    crate::support::canary::absent(what, &text);
}
