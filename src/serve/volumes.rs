//! Volumes: a mount shown at a folder for somebody, and taken away from there.
//!
//! One thing at a time for each folder; whatever comes meanwhile is told so. A part of the [`Plane`], which has the mounts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::book::{Origin, Volume};
use super::plane::{Plane, blocking};
use super::view::Shown;
use super::wish::{Pin, Wish, pin};
use crate::content::Store;
use crate::error::{Error, Kind, Result};
use crate::metrics::TRACED;
use crate::mount::Detach;
use crate::mount::bind::{self, Seen};

/// How long the end of a mount is waited for that has lost its last volume.
const LEAVING: Duration = Duration::from_secs(5);

/// What came of a wish.
#[derive(Clone, Debug)]
pub enum Published {
    /// The mount answers at the folder.
    Ready(Shown),
    /// Something is under way for this folder already.
    Pending,
    /// Another volume is shown at this folder: what it is.
    Taken(String),
    /// What somebody else has mounted stands at this folder.
    Foreign,
    /// There are as many mounts already as there may be: how many.
    Full(usize),
}

impl Plane {
    /// Shows what is wished for at the folder `dir`, once its mount answers. The registry is asked with the wish's credentials,
    /// each time, also where the mount is here already. Once more changes nothing but repairs what is broken.
    ///
    /// Who gives the wait up leaves what was begun to the next one who asks: spawn it.
    ///
    /// # Errors
    /// Those of the registry and of mounting; `Invalid` for a folder that can't be meant; `Busy` where somebody else mounts there
    /// meanwhile.
    pub async fn publish(
        self: &Arc<Self>,
        id: &str,
        dir: &Path,
        origin: Origin,
        wish: Wish,
    ) -> Result<Published> {
        let asked = dir.to_owned();
        let target = blocking(move || bind::target(&asked)).await?;
        let Some(_claim) = self.claim(&target) else { return Ok(Published::Pending) };
        let volume = Volume {
            id: id.to_owned(),
            asked: dir.to_owned(),
            target,
            mount: String::new(),
            reference: wish.reference.to_string(),
            settings: wish.settings.clone(),
            origin,
        };
        let known = self.volumes.lock().get(&volume.target).cloned();
        if let Some(known) = known.as_ref().filter(|known| !is_same(known, &volume)) {
            return Ok(Published::Taken(format!("volume {:?}, {}", known.id, known.reference)));
        }
        let place = volume.target.clone();
        if blocking(move || bind::seen(&place, &place)).await? == Seen::Foreign {
            return Ok(Published::Foreign);
        }
        let span = tracing::info_span!(target: TRACED, "publish", volume = id, reference = volume.reference);
        let done = self.publish_at(volume, known, wish).instrument(span).await;
        self.tally.count(&done);
        done
    }

    async fn publish_at(
        self: &Arc<Self>,
        mut volume: Volume,
        known: Option<Volume>,
        mut wish: Wish,
    ) -> Result<Published> {
        // What a volume shows does not change with a tag.
        if let Some(digest) = known.as_ref().and_then(|known| self.digest_of(&known.mount)) {
            wish.reference.digest = digest.parse().ok();
        }
        let settled = self.settle(&wish.settings).await?;
        let Pin { spec, secret, .. } = pin(&wish, settled, self.book.key()).await?;
        let Some(using) = self.join(spec, secret).await? else {
            return Ok(Published::Full(self.max_mounts()));
        };
        using.host.serving().await?;
        volume.mount.clone_from(&using.host.spec.id);
        self.note(volume.clone()).await?;
        if let Err(error) = self.bind(&using.host, &volume).await {
            if known.is_none() {
                self.forget(&volume).await;
            }
            return Err(error);
        }
        if let Some(known) = known.filter(|known| known.mount != volume.mount) {
            self.release(&known.mount);
        }
        let plane = self.clone();
        blocking(move || Ok(Published::Ready(plane.shown(&volume)))).await
    }

    /// Whether all of what is wished for fits into what the store may have: how many bytes the model has, as the registry keeps
    /// them, and how many there may be. Asks the registry, as [`publish`](Self::publish) does.
    ///
    /// # Errors
    /// Those of the registry, and of opening the store.
    pub async fn measure(self: &Arc<Self>, wish: &Wish) -> Result<(u64, u64)> {
        let settled = self.settle(&wish.settings).await?;
        let store = settled.store.clone();
        let room = blocking(move || Ok(Store::open(&store)?.budget().limit())).await?;
        Ok((pin(wish, settled, self.book.key()).await?.size, room))
    }

    /// Takes the volume `id` away from the folder `dir`; one that is not there is no error. The folder goes too where the plane
    /// has made it. The mount's process ends with its last volume.
    ///
    /// # Errors
    /// `NotFound` where another volume or mount stands at `dir`; `Busy` where it is in use and `how` is [`Detach::Unused`], or where
    /// something is under way for this folder; `Kernel`.
    pub async fn unpublish(self: &Arc<Self>, id: &str, dir: &Path, how: Detach) -> Result<()> {
        let (plane, asked) = (self.clone(), dir.to_owned());
        let Some(target) = blocking(move || Ok(plane.find_target(&asked))).await? else { return Ok(()) };
        let Some(_claim) = self.claim(&target) else {
            return Err(Error::new(Kind::Busy, format!("something is under way for {}", target.display())));
        };
        let volume = self.volumes.lock().get(&target).cloned();
        if let Some(other) = volume.as_ref().filter(|volume| volume.id != id) {
            let doing = format!("volume {id:?} is not at {}, but {:?}", dir.display(), other.id);
            return Err(Error::new(Kind::NotFound, doing));
        }
        // The mount stays until it is known that the volume goes.
        let using = volume.as_ref().and_then(|volume| self.hold(&volume.mount));
        let (plane, leaving) = (self.clone(), volume.clone());
        blocking(move || plane.clear(&target, how, leaving)).await?;
        if let Some(volume) = volume {
            self.forget(&volume).await;
            self.tally.node.unpublished_volumes.add(1);
            let host = using.map(|using| using.host.clone());
            if let Some(leaving) = host.filter(|host| !host.is_wanted()) {
                // So that nothing of it is left for who comes next; what takes longer goes on beside.
                let _ = tokio::time::timeout(LEAVING, leaving.gone()).await;
            }
        }
        Ok(())
    }

    /// The folder by the name that the mount table has for it; `None` where there is nothing to be taken away.
    fn find_target(&self, asked: &Path) -> Option<PathBuf> {
        let by_name = || {
            let volumes = self.volumes.lock();
            volumes.values().find(|volume| volume.asked == asked).map(|volume| volume.target.clone())
        };
        bind::target(asked).ok().or_else(by_name)
    }

    /// Takes what is at `target` away, and `volume` out of the table first, so that nobody who repairs binds it once more.
    fn clear(&self, target: &Path, how: Detach, volume: Option<Volume>) -> Result<()> {
        let _alone = self.binding.lock();
        if volume.is_none() && self.state.find(target).is_some() {
            let doing = format!("no volume is at {}, but a mount by itself", target.display());
            return Err(Error::new(Kind::NotFound, doing));
        }
        let origin = volume.as_ref().map_or(Origin::Csi, |volume| volume.origin);
        self.volumes.lock().remove(target);
        if let Err(error) = bind::unbind(target, how) {
            self.volumes.lock().extend(volume.map(|volume| (target.to_owned(), volume)));
            return Err(error);
        }
        if origin == Origin::Csi
            && let Err(error) = std::fs::remove_dir(target)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the folder {} stays", target.display());
        }
        Ok(())
    }

    fn claim(self: &Arc<Self>, target: &Path) -> Option<Claim> {
        let free = self.claims.lock().insert(target.to_owned());
        free.then(|| Claim { plane: self.clone(), target: target.to_owned() })
    }

    async fn note(self: &Arc<Self>, volume: Volume) -> Result<()> {
        let (plane, noted) = (self.clone(), volume.clone());
        blocking(move || plane.book.note_volume(&noted)).await?;
        self.volumes.lock().insert(volume.target.clone(), volume);
        Ok(())
    }

    async fn forget(self: &Arc<Self>, volume: &Volume) {
        self.volumes.lock().remove(&volume.target);
        let (plane, volume) = (self.clone(), volume.clone());
        let _ = blocking(move || {
            plane.book.forget_volume(&volume);
            Ok(())
        })
        .await;
    }
}

/// Whether a volume is asked for as it is known already.
fn is_same(known: &Volume, asked: &Volume) -> bool {
    known.id == asked.id && known.reference == asked.reference && known.settings == asked.settings
}

/// The word that something is under way for a folder.
#[derive(Debug)]
struct Claim {
    plane: Arc<Plane>,
    target: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.plane.claims.lock().remove(&self.target);
    }
}
