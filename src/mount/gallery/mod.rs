//! A mount in which models come and go: each is a folder, with the model in it and a note beside that.
//!
//! `NAME/model/…` is the model, `NAME/status.json` the note. One superblock, so that who has the mount bound somewhere, as a
//! container has, sees what comes later. [`rooms`] has the table, [`doors`] answers the kernel. Used by the floor above for
//! volumes whose models are chosen by the pod.

mod doors;
mod rooms;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fuser::Notifier;
use tokio::sync::watch;

use self::doors::Doors;
use self::rooms::{Room, Rooms};
use super::kernel::Device;
use super::session::{self, CLOSING, LAST_REQUESTS, Served};
use super::{Options, Passthrough, Status};
use crate::error::{Error, Kind, Result};
use crate::fs::Model;
use crate::metrics::Metrics;

/// How often is looked whether a model that was taken out is still read by somebody.
const LOOK: Duration = Duration::from_millis(500);

/// The mount. Dropping it detaches it, without waiting for anybody.
#[derive(Debug)]
pub struct Gallery {
    rooms: Arc<Rooms>,
    /// What all models count in.
    metrics: Arc<Metrics>,
    name: String,
    notifier: Told,
    dir: PathBuf,
    device: Device,
    /// Closed once the session has ended.
    ended: watch::Receiver<()>,
}

/// Who tells the kernel.
struct Told(Notifier);

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Told")
    }
}

impl Gallery {
    /// Mounts at `dir` with no model in it, under `name`; returns when the kernel's INIT is answered. Must be called within a
    /// tokio runtime. Files get no other number while they are open here: `swap` counts as `auto`.
    ///
    /// # Errors
    /// Those of [`Mount::open`](super::Mount::open).
    pub async fn open(dir: &Path, name: &str, options: &Options, metrics: Arc<Metrics>) -> Result<Self> {
        let mut options = options.clone();
        if options.passthrough == Passthrough::Swap {
            options.passthrough = Passthrough::Auto;
        }
        let rooms = Arc::new(Rooms::new(options.clone()));
        let doors = Doors::new(rooms.clone());
        let (at, source) = (dir.to_owned(), name.to_owned());
        let begun = session::blocking(move || session::begin(&at, &source, &options, doors)).await?;
        let Served { dir, device, ended, notifier } = begun.serve()?;
        let notifier = Told(notifier);
        Ok(Self { rooms, metrics, name: name.to_owned(), notifier, dir, device, ended })
    }

    /// The folder, absolute and without links.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Shows `model` in the folder `name`, with `note` beside it, from now on; starts what the loader is to warm.
    ///
    /// # Errors
    /// `Busy` where there is such a folder, or where more models came and went than there are numbers for; `Kernel` where no
    /// thread can be started.
    pub fn add(&self, name: &str, model: Arc<Model>, note: Bytes) -> Result<()> {
        let room = self.rooms.enter(name, model, note)?;
        let told = self.notifier.0.clone();
        if let Err(error) = session::watch_poisonings(room.answers().clone(), told, room.ended()) {
            self.rooms.take_out(name);
            self.rooms.clear(&room);
            return Err(error);
        }
        room.answers().model.loader.warm();
        room.answers().model.mention_ignored_index();
        Ok(())
    }

    /// Takes the folder `name` out: nobody finds it from now on, and who has a file of it open goes on reading. With the last of
    /// these the model is closed. Whether there was one. Must be called within a tokio runtime.
    pub fn remove(&self, name: &str) -> bool {
        let Some(room) = self.rooms.take_out(name) else { return false };
        tokio::spawn(see_out(self.rooms.clone(), room, self.ended.clone()));
        true
    }

    /// How many models are held: those that are shown, and those that are taken out and still read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rooms.all().len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What there is to say of all models that are shown. Reads a small file of the store for each file, so it blocks.
    #[must_use]
    pub fn status(&self) -> Status {
        let mut all = Status::of_none(self.name.clone(), &self.metrics);
        for room in self.rooms.shown() {
            all.add(room.name(), room.answers().status());
        }
        all
    }

    /// Waits until the mount has ended, by whoever's hand.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// Ends the loaders, so that reads that wait fail, and unmounts, lazily where the mount is in use. Returns within ten
    /// seconds.
    ///
    /// # Errors
    /// `Kernel` where the mount can't be taken away.
    pub async fn unmount(&self) -> Result<()> {
        let rooms = self.rooms.all();
        let closing = futures_util::future::join_all(rooms.iter().map(|room| room.answers().model.close()));
        if tokio::time::timeout(CLOSING, closing).await.is_err() {
            tracing::warn!("the loaders did not end in time");
        }
        let (dir, device) = (self.dir.clone(), self.device.clone());
        let detaching = session::blocking(move || session::detach_own(&dir, &device));
        let late = || Error::new(Kind::Kernel, format!("unmounting {} takes too long", self.dir.display()));
        tokio::time::timeout(CLOSING, detaching).await.unwrap_or_else(|_| Err(late()))?;
        if tokio::time::timeout(LAST_REQUESTS, self.ended()).await.is_err() {
            tracing::info!(dir = %self.dir.display(), "detached; files are still open");
        }
        Ok(())
    }
}

impl Drop for Gallery {
    fn drop(&mut self) {
        if self.ended.has_changed().is_err() {
            return;
        }
        if let Err(error) = session::detach_own(&self.dir, &self.device) {
            tracing::warn!("{error}");
        }
    }
}

/// Closes a model that was taken out, once nobody reads it any more.
async fn see_out(rooms: Arc<Rooms>, room: Arc<Room>, mut ended: watch::Receiver<()>) {
    // An open that was under way when the folder was taken out has its handle by the second look.
    let mut idle = 0;
    while idle < 2 {
        tokio::select! {
            () = tokio::time::sleep(LOOK) => {}
            _ = ended.changed() => break,
        }
        idle = if room.is_idle() { idle + 1 } else { 0 };
    }
    rooms.clear(&room);
    room.answers().model.close().await;
    tracing::info!(name = room.name(), "nobody reads it any more");
}
