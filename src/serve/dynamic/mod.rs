//! Dynamic volumes: a pod is given an empty folder and a socket in it, and chooses its models while it runs.
//!
//! One process for each, which the plane starts and looks after like any mount's. It shows all of the pod's models in one
//! [`Gallery`], and answers the pod at the socket ([`api`]); [`models`] is what it has. What the pod sees is a plain folder in a
//! read-only frame:
//!
//! ```text
//! csi/csi.sock   status.json   models/ID/model/…   models/ID/status.json
//! ```
//!
//! All that comes in at the socket is the pod's. It gets to its own models alone: by references into registries, with the
//! volume's own credentials, which the registry is shown each time.

mod api;
mod ask;
mod folders;
mod models;
mod noted;
mod table;

use std::sync::Arc;

use tokio::task::JoinHandle;

pub(super) use self::api::Addition;
pub(super) use self::ask::{add, remove};
pub(super) use self::folders::{Folders, MODELS};
use self::models::Models;
use super::listen;
use super::report::Report;
use crate::content::{self, Store, StoreConfig};
use crate::error::Result;
use crate::mount::{Gallery, Options};
use crate::repository;

/// Where the volume whose folder is `folder` is mounted.
#[must_use]
pub fn models(folder: &std::path::Path) -> std::path::PathBuf {
    Folders::at(folder).models()
}

/// What a dynamic volume is made of.
#[derive(Debug)]
pub struct Config {
    /// The volume's id.
    pub volume: String,
    /// The folder that the plane has made for it.
    pub folder: std::path::PathBuf,
    /// How repositories are asked.
    pub repository: repository::Config,
    /// How models are read.
    pub content: content::Config,
    /// Where bytes are kept.
    pub store: StoreConfig,
    /// How the mount looks.
    pub mount: Options,
    /// How many models there may be at once, those among them that are taken out and still read.
    pub max_models: usize,
}

/// A dynamic volume that is mounted. Its mount stays when this is dropped as long as somebody has the [`Gallery`].
#[derive(Debug)]
pub struct Dynamic {
    /// The mount.
    pub gallery: Arc<Gallery>,
    answering: JoinHandle<()>,
}

impl Dynamic {
    /// Mounts, opens again what a former process had, and answers the pod from then on. What cannot be opened at once is tried
    /// again beside. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// Those of [`Gallery::open`], of the store, and of [`listen::listen`].
    pub async fn open(config: Config) -> Result<Self> {
        let folders = Folders::at(&config.folder);
        let metrics = config.content.metrics.clone();
        let gallery = Gallery::open(&folders.models(), &config.volume, &config.mount, metrics).await?;
        let gallery = Arc::new(gallery);
        let store = Store::open(&config.store)?;
        let volume = config.volume.clone();
        let models = Models::new(config, folders.clone(), gallery.clone(), store);
        models.restore().await;
        let listener = listen::listen_to_all(&folders.socket())?;
        Report { volume_name: volume, ..Report::default() }.write(&folders.status())?;
        let answering = tokio::spawn(api::serve(models, listener));
        Ok(Self { gallery, answering })
    }
}

impl Drop for Dynamic {
    fn drop(&mut self) {
        self.answering.abort();
    }
}
