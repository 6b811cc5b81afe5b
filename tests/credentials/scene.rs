//! What a test of credentials needs: a registry, a folder for configuration, and an ear for all that is logged.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tracing_subscriber::fmt::MakeWriter;
use weightfs::oci::Which;
use weightfs::range::StoredRange;
use weightfs::repository::credentials::Sources;
use weightfs::repository::{Config, Repository, connect, read_all};
use weightfs::{Error, Result};

use super::standin::{Make, StandIn};
use crate::registry::sample::Sample;
use crate::support::canary;

/// A stand-in with a client's surroundings. All that is logged in this thread is heard, down to the smallest trace.
pub(super) struct Scene {
    pub(super) registry: StandIn,
    pub(super) sample: Sample,
    pub(super) sources: Sources,
    folder: tempfile::TempDir,
    heard: Heard,
    _ear: tracing::subscriber::DefaultGuard,
}

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Heard {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Scene {
    /// A registry of this make, and nobody's credentials.
    pub(super) async fn new(make: Make) -> Self {
        let (sample, folder, heard) = (Sample::new(), tempfile::tempdir().unwrap(), Heard::default());
        let ear = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(heard.clone());
        let ear = tracing::subscriber::set_default(ear.finish());
        let registry = StandIn::start(sample.folder(), make).await;
        let sources = Sources { helper_folder: Some(folder.path().to_owned()), ..Sources::default() };
        Self { registry, sample, sources, folder, heard, _ear: ear }
    }

    /// The same, with Docker's `config.json` made of what `content` makes of the registry's host.
    pub(super) async fn with_config(make: Make, content: impl FnOnce(&str) -> Value) -> Self {
        let mut scene = Self::new(make).await;
        let content = content(&scene.registry.host());
        scene.sources.docker_config = Some(scene.write("config.json", &content.to_string()));
        scene
    }

    /// The same, with this user, who has the right password.
    pub(super) async fn with_user(make: Make, user: &str) -> Self {
        let auth = STANDARD.encode(format!("{user}:{}", canary::PASSWORD));
        Self::with_config(make, |host| json!({"auths": {host: {"auth": auth}}})).await
    }

    /// Writes a file of the client's.
    pub(super) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Writes a program of the client's, for `sh`. It counts its runs in a file of its name and `.runs`.
    pub(super) fn program(&self, name: &str, script: &str) -> PathBuf {
        let runs = self.path(&format!("{name}.runs"));
        let path = self.write(name, &format!("#!/bin/sh\necho run >> '{}'\n{script}\n", runs.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// How often it was run.
    pub(super) fn runs(&self, name: &str) -> usize {
        fs::read_to_string(self.path(&format!("{name}.runs"))).unwrap_or_default().lines().count()
    }

    /// A path in the client's folder.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The client's settings.
    pub(super) fn config(&self) -> Config {
        Config { credentials: self.sources.clone(), ..Config::default() }
    }

    /// The repository as the client sees it.
    pub(super) fn repository(&self) -> Arc<dyn Repository> {
        connect(&self.registry.reference(), &self.config()).unwrap()
    }

    /// Reads the manifest and a part of a blob, and makes sure that they are right.
    pub(super) async fn pull(&self, repository: &dyn Repository) {
        self.try_pull(repository).await.unwrap();
    }

    /// The same, where it may fail.
    pub(super) async fn try_pull(&self, repository: &dyn Repository) -> Result<()> {
        let pinned = repository.manifest(&Which::Tag("v1".into())).await?;
        assert_eq!(pinned.bytes, self.sample.manifest_bytes);
        self.try_read(repository, StoredRange::new(1000, 9000)).await
    }

    /// Reads a part of the large blob.
    pub(super) async fn try_read(&self, repository: &dyn Repository, range: StoredRange) -> Result<()> {
        let bytes = read_all(repository, &self.sample.large, range).await?;
        assert!(bytes == self.sample.bytes_of(range), "{range}");
        Ok(())
    }

    /// The error of a pull that fails.
    pub(super) async fn refusal(&self) -> Error {
        self.try_pull(&*self.repository()).await.unwrap_err()
    }
}

impl Drop for Scene {
    /// Whatever was tested, nothing was told.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let heard = String::from_utf8_lossy(&self.heard.0.lock()).into_owned();
            canary::absent("the log", &heard);
            canary::absent("the client's settings", &format!("{:?}", self.config()));
            canary::absent(
                "the client",
                &format!("{:?}", connect(&self.registry.reference(), &self.config())),
            );
        }
    }
}

/// A file's content.
pub(super) fn content(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}
