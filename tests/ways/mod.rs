//! The ways to a registry: mirrors, TLS, proxies. Through real servers, `docker-registry` and `nginx`.

mod mirrors;
mod proxies;
mod real;
mod tls;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;
use weightfs::oci::{Blob, Reference, Which};
use weightfs::range::StoredRange;
use weightfs::repository::{Config, Repository, connect};
use weightfs::{Result, repository};

use crate::support::pack::{self, Artifact, Content, Dialect, Packing};
use crate::support::registry::Registry;
use crate::support::{bound, sample, scratch};

/// How long anything may take that is not a matter of time.
const PATIENCE: Duration = Duration::from_secs(60);

/// The large file of the model.
const NAME: &str = "model.safetensors";
/// Where the model lies.
const REPOSITORY: &str = "acme/llm";

/// A model of one large file and a small one, with a bound index.
struct Model {
    files: Vec<pack::File>,
    artifact: Artifact,
}

impl Model {
    fn new() -> Self {
        let mut weights = vec![0; (6 << 20) + 4097];
        sample::fill(&mut weights, 11);
        let files = vec![pack::File::new(NAME, weights), pack::File::new("config.json", *b"{}")];
        let plain = pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
        let artifact = bound::bind(&plain, &files, Packing::Raw);
        Self { files, artifact }
    }

    /// A registry that has it.
    fn in_registry(&self) -> Registry {
        let registry = Registry::start();
        registry.push(REPOSITORY, "v1", &self.artifact);
        registry
    }

    fn weights(&self) -> &[u8] {
        match &self.files[0].content {
            Content::Bytes(bytes) => bytes,
            _ => unreachable!("in memory"),
        }
    }

    /// The layer that is the large file.
    fn blob(&self) -> Blob {
        let digest = self.artifact.blobs[0].digest.parse().unwrap();
        Blob { digest, size: self.weights().len() as u64 }
    }

    /// Opens the model at `host` and reads a range of its large file, which must be right.
    async fn read_at(&self, host: &str, config: &Config) -> Result<()> {
        let repository = open(host, config)?;
        repository.manifest(&Which::Tag("v1".into())).await?;
        self.read(&*repository, 0).await
    }

    /// Reads a mebibyte of the large file, the `n`-th, which must be right.
    async fn read(&self, repository: &dyn Repository, n: u64) -> Result<()> {
        let range = StoredRange::new(n << 20, (n + 1) << 20);
        let got: Bytes = repository::read_all(repository, &self.blob(), range).await?;
        assert!(got == self.weights()[(n as usize) << 20..(n as usize + 1) << 20], "other bytes of {range}");
        Ok(())
    }
}

fn open(host: &str, config: &Config) -> Result<std::sync::Arc<dyn Repository>> {
    let reference: Reference = format!("{host}/{REPOSITORY}:v1").parse().unwrap();
    connect(&reference, config)
}

/// A folder as containerd's `certs.d`.
struct Hosts(TempDir);

impl Hosts {
    fn new() -> Self {
        Self(scratch::short())
    }

    /// One in which `text` is said of `registry`.
    fn saying(registry: &str, text: &str) -> Self {
        let hosts = Self::new();
        let folder = hosts.path().join(registry);
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("hosts.toml"), text).unwrap();
        hosts
    }

    fn path(&self) -> PathBuf {
        self.0.path().to_owned()
    }

    fn config(&self) -> Config {
        Config { hosts_dir: Some(self.path()), ..Config::default() }
    }
}

/// Docker's `config.json` in `folder`, with Basic credentials by host.
fn docker_config(folder: &Path, auths: &[(&str, &str)]) {
    let auths: serde_json::Map<_, _> =
        auths.iter().map(|(host, auth)| ((*host).to_owned(), serde_json::json!({"auth": auth}))).collect();
    let json = serde_json::json!({"auths": auths});
    fs::write(folder.join("config.json"), json.to_string()).unwrap();
}
