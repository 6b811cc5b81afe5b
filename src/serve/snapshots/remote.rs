//! Remote snapshots: layers that are shown by a mount of the image they are of, and are not downloaded.
//!
//! One mount shows all layers that are shown together, so that a container's root is one file system and an overlay of few. It is
//! made when the lowest of them is asked for, since what cannot be mounted has to be known before containerd is told that
//! nothing need be downloaded; the snapshots above find it there. Whatever fails makes an ordinary snapshot, and containerd
//! downloads the layer.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::asked::Asked;
use super::clash;
use super::ledger::Ledger;
use super::mounts;
use super::plan::Image;
use super::record::{Kind, Labels, Record, Remote};
use super::{DiffIds, Snapshots};
use crate::content::store::Asked as Named;
use crate::error::{Error, Kind as Fault, Result, StorageContext};
use crate::fs;
use crate::mount::Detach;
use crate::mount::bind;
use crate::oci::Reference;
use crate::oci::cut::Cut;
use crate::repository;
use crate::serve::plane::{Plane, blocking};
use crate::serve::{Origin, Overrides, Published, Wish};

/// How long a mount may take until containerd is told to download: registry, names and process together.
const READY: Duration = Duration::from_secs(60);

/// How often it is looked at whether what is under way for a folder is done.
const AGAIN: Duration = Duration::from_millis(50);

impl Snapshots {
    /// Whether what these labels ask for on `parent` is there, so that nothing need be downloaded; made where it can be. The
    /// registry is asked each time, with the node's credentials.
    pub(super) async fn stands(&self, parent: &str, labels: &Labels) -> bool {
        match self.try_remote(parent, labels).await {
            Ok(stands) => stands,
            Err(error) => {
                tracing::warn!("containerd has to download a layer: {error}");
                false
            }
        }
    }

    async fn try_remote(&self, parent: &str, labels: &Labels) -> Result<bool> {
        let Some(asked) = Asked::read(labels)? else { return Ok(false) };
        let below = match parent {
            "" => Vec::new(),
            parent => self.chain(parent).await?,
        };
        let image = self.look(&asked.image).await?;
        let remote = match image.plan(&asked, &below) {
            Ok(remote) => remote,
            Err(why) => {
                tracing::info!("containerd has to download a layer of {}: {why}", asked.image);
                return Ok(false);
            }
        };
        if let Some(known) = self.ledger.find_remote(&asked.target.to_string(), parent) {
            let is_shared = known.remote.as_ref().is_some_and(|known| known.has_word_of(&remote));
            if self.diff_ids == DiffIds::Proved && !is_shared {
                let (layer, image) = (&asked.layer, &asked.image);
                tracing::warn!(
                    "containerd has to download {layer} of {image}: it is shown by the word of another image"
                );
                return Ok(false);
            }
            // As it was when it was made: by the mount of all that will lie on it, and by none of its own layers alone.
            return self.mount_whole(&known).await.map(|_| true);
        }
        self.make(&asked, parent, labels, remote, &below).await?;
        tracing::info!("{} is shown without being downloaded, of {}", asked.layer, asked.image);
        Ok(true)
    }

    /// The image as the registry has it now.
    async fn look(&self, reference: &Reference) -> Result<Image> {
        let settled = self.plane.settle(&Overrides::new()).await?;
        let repository = repository::connect_to_origin(reference, &settled.repository)?;
        let named = Named { reference: reference.clone(), platform: settled.platform };
        let (pinned, artifact) = fs::resolve(&*repository, &named).await?;
        if !artifact.is_layered() {
            return Err(Error::new(Fault::Unsupported, format!("{reference} is no container image")));
        }
        let said = match self.diff_ids {
            DiffIds::Proved => Vec::new(),
            DiffIds::Trusted => fs::diff_ids(&*repository, &artifact).await?,
        };
        let pinned = Reference { digest: Some(pinned.digest), ..reference.clone() };
        Ok(Image::of(pinned, &artifact, &said))
    }

    /// Makes the snapshot: mounted first, and noted then.
    async fn make(
        &self,
        asked: &Asked,
        parent: &str,
        labels: &Labels,
        remote: Remote,
        below: &[Record],
    ) -> Result<()> {
        let reserved = self.ledger.reserve();
        let name = format!("weightfs/{}/{}", reserved.id, asked.target);
        let record = Record {
            labels: labels.clone(),
            remote: Some(remote),
            ..Record::new(reserved.id, &name, parent, Kind::Committed)
        };
        let made = match self.mount_run(&record, below).await {
            Ok(()) => self.insert(record.clone()).await,
            Err(error) => Err(error),
        };
        if made.is_err() {
            self.clear(record.id).await;
        }
        made
    }

    /// Mounts all that will be shown together, where it does not stand; gives where that is.
    async fn mount_whole(&self, record: &Record) -> Result<Option<PathBuf>> {
        let Some(remote) = &record.remote else { return Ok(None) };
        let is_top = remote.last() == remote.top;
        let dir = if is_top { self.ledger.fs(record.id) } else { self.ledger.run(record.id) };
        self.publish(record.id, &dir, remote, remote.whole()).await?;
        Ok(Some(dir))
    }

    /// Mounts all that will be shown together, and looks whether it can stand on what lies below.
    async fn mount_run(&self, record: &Record, below: &[Record]) -> Result<()> {
        let Some(dir) = self.mount_whole(record).await? else { return Ok(()) };
        let Some(remote) = record.remote.as_ref().filter(|remote| remote.first > 1) else { return Ok(()) };
        let covered = remote.layers.len().saturating_sub(1);
        let rest = below.get(covered..).unwrap_or_default();
        self.show_all(rest).await?;
        let lower = mounts::lower(&self.ledger, rest);
        match blocking(move || clash::between(&dir, &lower)).await? {
            None => Ok(()),
            Some(path) => {
                let doing = format!("{path:?} is a folder here and something else in a layer below");
                Err(Error::new(Fault::Unsupported, doing))
            }
        }
    }

    /// Sees to it that everything that these snapshots come to is mounted: those that lie on one another, the uppermost first.
    ///
    /// # Errors
    /// Those of the registry and of mounting.
    pub(super) async fn show_all(&self, chain: &[Record]) -> Result<()> {
        for record in mounts::shown(chain) {
            self.show(record).await?;
        }
        Ok(())
    }

    async fn show(&self, record: &Record) -> Result<()> {
        match &record.remote {
            Some(remote) => self.publish(record.id, &self.ledger.fs(record.id), remote, remote.own()).await,
            None => Ok(()),
        }
    }

    /// Shows these layers of the image at `dir`, unless they stand there.
    async fn publish(&self, id: u64, dir: &Path, remote: &Remote, cut: Option<Cut>) -> Result<()> {
        let cut = cut.ok_or_else(|| Error::new(Fault::Invalid, "there are no such layers"))?;
        let end = Instant::now() + READY;
        if self.is_shown(dir).await? {
            return Ok(());
        }
        let place = dir.to_owned();
        blocking(move || make_folder(&place)).await?;
        let wish = Wish { reference: remote.reference.parse()?, settings: self.settings(cut), secret: None };
        loop {
            match self.publish_once(id, dir, wish.clone(), end).await? {
                // Its process may have ended a moment ago, of which the plane has still to hear.
                Published::Ready(_) if self.is_shown(dir).await? => return Ok(()),
                Published::Ready(_) | Published::Pending if Instant::now() < end => sleep(AGAIN).await,
                Published::Ready(_) | Published::Pending => return Err(late()),
                refused => return refused.ready().map(drop),
            }
        }
    }

    /// What is set for a mount that is a container's root.
    fn settings(&self, cut: Cut) -> Overrides {
        let cut = cut.to_string();
        let proof = match self.diff_ids {
            // Others who list the same layers are shown them too.
            DiffIds::Proved => "layer",
            DiffIds::Trusted => "index",
        };
        let set = [
            ("mount.allow_other", "true"),
            ("mount.modes", "image"),
            ("content.layers", &*cut),
            ("content.proof", proof),
        ];
        set.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    async fn is_shown(&self, dir: &Path) -> Result<bool> {
        let (plane, dir) = (self.plane.clone(), dir.to_owned());
        blocking(move || Ok(plane.stands(&dir) && bind::is_answered(&dir))).await
    }

    /// What is not there in time is taken away again once it is.
    async fn publish_once(&self, id: u64, dir: &Path, wish: Wish, end: Instant) -> Result<Published> {
        let (plane, place) = (self.plane.clone(), dir.to_owned());
        let mut begun =
            tokio::spawn(async move { plane.publish(&volume(id), &place, Origin::Snapshot, wish).await });
        let left = end.saturating_duration_since(Instant::now());
        if let Ok(done) = timeout(left, &mut begun).await {
            return done.map_err(|error| Error::from_source(Fault::Kernel, "mounting failed", error))?;
        }
        let (plane, place) = (self.plane.clone(), dir.to_owned());
        tokio::spawn(async move {
            if matches!(begun.await, Ok(Ok(Published::Ready(_)))) {
                take_away(&plane, id, &place).await;
            }
        });
        Err(late())
    }

    /// Takes away what a snapshot showed and held, once nobody knows of it any more.
    pub(super) async fn clear(&self, id: u64) {
        for dir in [self.ledger.fs(id), self.ledger.run(id)] {
            take_away(&self.plane, id, &dir).await;
        }
        let ledger = self.ledger.clone();
        let _ = blocking(move || {
            ledger.discard(id);
            Ok(())
        })
        .await;
    }

    /// Takes away what is shown of snapshots that are no more: the last process may have ended in the middle.
    pub(super) async fn clear_forgotten(&self) {
        let of_snapshots: Vec<PathBuf> = {
            let volumes = self.plane.volumes.lock();
            let own = volumes.values().filter(|volume| volume.origin == Origin::Snapshot);
            own.map(|volume| volume.target.clone()).collect()
        };
        for dir in of_snapshots {
            if let Some(id) = self.ledger.holder(&dir).filter(|id| !self.ledger.is_somebodys(*id)) {
                take_away(&self.plane, id, &dir).await;
            }
        }
    }

    async fn chain(&self, name: &str) -> Result<Vec<Record>> {
        let (ledger, name) = (self.ledger.clone(), name.to_owned());
        blocking(move || ledger.chain(&name).map_err(|refused| Error::new(Fault::NotFound, refused.message)))
            .await
    }

    async fn insert(&self, record: Record) -> Result<()> {
        let ledger: Arc<Ledger> = self.ledger.clone();
        blocking(move || ledger.insert(record).map_err(|refused| Error::new(Fault::Busy, refused.message)))
            .await
    }
}

fn late() -> Error {
    Error::new(Fault::Deadline, "the image was not mounted in time")
}

fn volume(id: u64) -> String {
    format!("snapshot-{id}")
}

async fn take_away(plane: &Arc<Plane>, id: u64, dir: &Path) {
    if plane.volume_at(dir).is_some()
        && let Err(error) = plane.unpublish(&volume(id), dir, Detach::Lazy).await
    {
        tracing::warn!("a snapshot's mount stays: {error}");
    }
    // Of a plane whose notes are lost.
    let place = dir.to_owned();
    if let Err(error) = blocking(move || bind::unbind(&place, Detach::Lazy)).await {
        tracing::warn!("a snapshot's mount stays: {error}");
    }
}

/// Nothing is asked of a folder that is there: nobody may answer for what is mounted at it.
fn make_folder(dir: &Path) -> Result<()> {
    let doing = || format!("cannot make {}", dir.display());
    for path in [dir.parent(), Some(dir)].into_iter().flatten() {
        match std::fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.storage(doing)?,
        }
    }
    Ok(())
}
