//! Volumes: a mount shown at a folder for somebody, and taken away from there.
//!
//! One thing at a time for each folder; whatever comes meanwhile is told so. A part of the [`Plane`], which has the mounts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::book::{Origin, Overrides, Volume};
use super::plane::{Plane, Using, blocking, seen_through};
use super::report::{Phase, Progress, Report};
use super::terms::{Renewal, Room, Terms};
use super::view::Shown;
use super::wish::{self, Pin, Wish, pin};
use crate::content::{Store, StoreConfig};
use crate::error::{Error, Kind, Result};
use crate::metrics::TRACED;
use crate::mount::bind::{self, Seen};
use crate::mount::{Detach, frame};
use crate::repository::Secret;

/// How long the end of a mount is waited for that has lost its last volume.
const LEAVING: Duration = Duration::from_secs(5);

/// What the ids of volumes begin with that belong to one pod and name their model themselves.
pub(super) const INLINE: &str = "csi-";

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
    /// All of the model had to fit into the store, and does not.
    NoRoom {
        /// Bytes of the model, as the registry keeps them.
        size: u64,
        /// How many the store may have.
        room: u64,
    },
}

/// What is to be shown.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A model.
    Model(Wish),
    /// A dynamic volume, whose models its pod chooses.
    Dynamic {
        /// What is set for it.
        settings: Overrides,
        /// The only credentials that its models may be had with; `None`: those of the plane's own configuration.
        secret: Option<Secret>,
    },
}

impl Wanted {
    fn reference(&self) -> String {
        match self {
            Self::Model(wish) => wish.reference.to_string(),
            Self::Dynamic { .. } => String::new(),
        }
    }

    fn settings(&self) -> &Overrides {
        match self {
            Self::Model(Wish { settings, .. }) | Self::Dynamic { settings, .. } => settings,
        }
    }
}

impl Published {
    /// The volume, where there is one now.
    ///
    /// # Errors
    /// `Busy`, with why there is none.
    pub fn ready(self) -> Result<Shown> {
        match self {
            Self::Ready(shown) => Ok(shown),
            Self::Pending => Err(Error::new(Kind::Busy, "something is under way for this folder already")),
            Self::Taken(what) => Err(Error::new(Kind::Busy, format!("the folder has {what} already"))),
            Self::Foreign => {
                let error = Error::new(Kind::Busy, "somebody else's mount stands at the folder");
                Err(error.hint("unmount it first"))
            }
            Self::Full(most) => {
                let doing = format!("there are {most} mounts already, as many as there may be");
                let way_out = "unmount one, or let the plane have more with serve.max_mounts";
                Err(Error::new(Kind::Busy, doing).hint(way_out))
            }
            Self::NoRoom { size, room } => {
                let doing = format!("the model has {size} bytes, and the store may have {room}");
                Err(Error::new(Kind::Storage, doing))
            }
        }
    }
}

impl Plane {
    /// Shows what is wished for at the folder `dir`, once its mount answers. The registry is asked with the wish's credentials,
    /// each time, also where the mount is here already. Once more changes nothing but repairs what is broken.
    ///
    /// # Errors
    /// Those of [`publish_on`](Self::publish_on).
    pub async fn publish(
        self: &Arc<Self>,
        id: &str,
        dir: &Path,
        origin: Origin,
        wish: Wish,
    ) -> Result<Published> {
        self.publish_on(id, dir, origin, Wanted::Model(wish), Terms::default()).await
    }

    /// The same, of whatever is wanted, on these terms.
    ///
    /// Who gives the wait up leaves what was begun to the next one who asks: spawn it.
    ///
    /// # Errors
    /// Those of the registry and of mounting; `Deadline` where that takes longer than the terms say; `Invalid` for a folder that
    /// can't be meant; `Busy` where somebody else mounts there meanwhile, or has the volume taken away.
    pub async fn publish_on(
        self: &Arc<Self>,
        id: &str,
        dir: &Path,
        origin: Origin,
        wanted: Wanted,
        terms: Terms,
    ) -> Result<Published> {
        self.publish_unless(std::future::pending(), id, dir, origin, wanted, terms).await
    }

    /// The same, which is given up when `unwanted` is ready; then nothing new is left of it.
    ///
    /// # Errors
    /// Those of [`publish_on`](Self::publish_on), and `Busy` where it was given up.
    pub(super) async fn publish_unless(
        self: &Arc<Self>,
        unwanted: impl Future<Output = ()>,
        id: &str,
        dir: &Path,
        origin: Origin,
        wanted: Wanted,
        terms: Terms,
    ) -> Result<Published> {
        let asked = dir.to_owned();
        let target = blocking(move || bind::target(&asked)).await?;
        let Some(claim) = self.claims.claim(&target) else { return Ok(Published::Pending) };
        let volume = Volume {
            id: id.to_owned(),
            asked: dir.to_owned(),
            target,
            mount: String::new(),
            reference: wanted.reference(),
            settings: wanted.settings().clone(),
            origin,
        };
        let known = self.volumes.lock().get(&volume.target).cloned();
        if let Some(known) = known.as_ref().filter(|known| !is_same(known, &volume)) {
            return Ok(Published::Taken(format!("volume {:?}, {}", known.id, known.reference)));
        }
        let (plane, place) = (self.clone(), known.clone().unwrap_or_else(|| volume.clone()));
        if blocking(move || plane.stands_at(&place)).await? == Seen::Foreign {
            return Ok(Published::Foreign);
        }
        let is_new = known.is_none();
        if is_new {
            self.report(&volume, Phase::Pulling, Progress::default()).await;
        }
        let span = tracing::info_span!(target: TRACED, "publish", volume = id, reference = volume.reference);
        let given_up = async {
            tokio::select! {
                () = claim.given_up() => {}
                () = unwanted => {}
            }
        };
        let done = self.publish_at(volume.clone(), known, wanted, terms, given_up).instrument(span).await;
        let failed = match &done {
            Ok(Published::Ready(_)) => None,
            Ok(_) => Some(Phase::PullFailed),
            Err(error) => Some(Phase::of_failure(error)),
        };
        if let Some(phase) = failed.filter(|_| is_new) {
            self.report(&volume, phase, Progress::default()).await;
        }
        self.tally.count(&done);
        done
    }

    /// What stands at a volume's folder.
    fn stands_at(&self, volume: &Volume) -> Result<Seen> {
        let host = self.hosts.lock().get(&volume.mount).cloned();
        match host {
            Some(host) => host.seen(&volume.target),
            None => bind::seen(&volume.target, &volume.target),
        }
    }

    async fn publish_at(
        self: &Arc<Self>,
        mut volume: Volume,
        known: Option<Volume>,
        wanted: Wanted,
        terms: Terms,
        unwanted: impl Future<Output = ()>,
    ) -> Result<Published> {
        let (what, plane) = (format!("volume {:?}", volume.id), self.clone());
        let given_up = || Error::new(Kind::Busy, format!("{what} is taken away again"));
        let prepared = tokio::select! {
            prepared = plane.prepare(&volume, known.as_ref(), wanted, terms) => prepared?,
            () = unwanted => return Err(given_up()),
            late = terms.over(&what) => return Err(late),
        };
        let (using, progress) = match prepared {
            Prepared::Mount(using, progress) => (using, progress),
            Prepared::Not(published) => return Ok(published),
        };
        volume.mount.clone_from(&using.host.spec.id);
        self.note(volume.clone()).await?;
        if let Err(error) = self.bind(&using.host, &volume).await {
            if known.is_none() {
                self.forget(&volume).await;
            }
            return Err(error);
        }
        self.report(&volume, Phase::Mounted, progress).await;
        if let Some(known) = known.filter(|known| known.mount != volume.mount) {
            self.release(&known.mount);
        }
        let plane = self.clone();
        blocking(move || Ok(Published::Ready(plane.shown(&volume)))).await
    }

    /// The mount that a volume shows, once it answers. Given up it leaves nothing behind.
    async fn prepare(
        self: &Arc<Self>,
        volume: &Volume,
        known: Option<&Volume>,
        wanted: Wanted,
        terms: Terms,
    ) -> Result<Prepared> {
        let (spec, secret, progress) = match wanted {
            Wanted::Model(mut wish) => {
                // What a volume shows does not change with a tag.
                if let Some(digest) = known.and_then(|known| self.digest_of(&known.mount)) {
                    wish.reference.digest = digest.parse().ok();
                }
                let settled = self.settle(&wish.settings).await?;
                let store = settled.store.clone();
                let Pin { spec, secret, size, progress } = pin(&wish, settled, self.book.key()).await?;
                if let Some(room) = room_for(size, store, terms.room).await? {
                    return Ok(Prepared::Not(Published::NoRoom { size, room }));
                }
                (spec, secret, progress)
            }
            Wanted::Dynamic { settings, secret } => {
                let settled = self.settle(&settings).await?;
                let (id, target) = (&volume.id, &volume.target);
                let spec = wish::dynamic(id, target, settled.settings, secret.as_ref(), self.book.key())?;
                (spec, secret, Progress::default())
            }
        };
        let renewed = known.filter(|_| terms.renewal == Renewal::InPlace).map(|known| &*known.mount);
        let using = match renewed.and_then(|mount| self.hold(mount)) {
            Some(using) if using.host.spec.digest == spec.digest => {
                self.renew(&using, secret).await?;
                Some(using)
            }
            _ => {
                // Seen through where the wait is given up: a mount that nobody looks after would be in the way for ever.
                let plane = self.clone();
                seen_through(async move { plane.join(spec, secret).await }).await?
            }
        };
        let Some(using) = using else { return Ok(Prepared::Not(Published::Full(self.max_mounts()))) };
        using.host.serving().await?;
        Ok(Prepared::Mount(using, progress))
    }

    /// Has the process of a mount find other credentials of the same one.
    async fn renew(self: &Arc<Self>, using: &Using, secret: Option<Secret>) -> Result<()> {
        let (plane, mount) = (self.clone(), using.host.spec.id.clone());
        let Some(secret) = secret else { return Ok(()) };
        blocking(move || plane.book.renew(&mount, &secret)).await
    }

    /// Writes how a pod's volume is, for who looks for it. What cannot be written is in the log.
    async fn report(self: &Arc<Self>, volume: &Volume, phase: Phase, progress: Progress) {
        if volume.origin != Origin::Csi {
            return;
        }
        let is_dynamic = volume.is_dynamic();
        let report = Report {
            volume_name: volume.id.clone(),
            mount_id: String::new(),
            reference: volume.reference.clone(),
            state: (!is_dynamic).then_some(phase),
            inline: !is_dynamic && volume.id.starts_with(INLINE),
            progress,
        };
        let plane = self.clone();
        match blocking(move || plane.book.write_report(&report)).await {
            Ok(Some(oldest)) => self.forget_report(&oldest).await,
            Ok(None) => {}
            Err(error) => tracing::warn!("{error}"),
        }
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
        let Some(_claim) = self.claims.take_over(&target).await else {
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
        self.forget_report(id).await;
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
        let dynamic = volume.as_ref().filter(|volume| volume.is_dynamic());
        let cleared = match dynamic {
            Some(volume) => frame::hide(&self.book.dynamic(&volume.mount).plain(), target),
            None => bind::unbind(target, how),
        };
        if let Err(error) = cleared {
            self.volumes.lock().extend(volume.map(|volume| (target.to_owned(), volume)));
            return Err(error);
        }
        if origin != Origin::Command
            && let Err(error) = std::fs::remove_dir(target)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(%error, "the folder {} stays", target.display());
        }
        Ok(())
    }

    /// Forgets what was written of a volume, unless it is shown somewhere else too.
    async fn forget_report(self: &Arc<Self>, id: &str) {
        if self.volumes.lock().values().any(|volume| volume.id == id) {
            return;
        }
        let (plane, id) = (self.clone(), id.to_owned());
        let _ = blocking(move || {
            plane.book.forget_report(&id);
            Ok(())
        })
        .await;
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

/// What there is to be shown.
enum Prepared {
    /// A mount that answers, and the layers of its model.
    Mount(Using, Progress),
    /// Nothing, for this reason.
    Not(Published),
}

/// How many bytes the store may have, where so many have to fit and do not.
async fn room_for(size: u64, store: StoreConfig, room: Room) -> Result<Option<u64>> {
    if room == Room::NotNeeded {
        return Ok(None);
    }
    let room = blocking(move || Ok(Store::open(&store)?.budget().limit())).await?;
    Ok(Some(room).filter(|room| size > *room))
}

/// Whether a volume is asked for as it is known already.
fn is_same(known: &Volume, asked: &Volume) -> bool {
    known.id == asked.id && known.reference == asked.reference && known.settings == asked.settings
}

impl Volume {
    /// Whether its pod chooses its models.
    pub(super) fn is_dynamic(&self) -> bool {
        self.reference.is_empty()
    }
}
