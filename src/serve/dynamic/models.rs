//! The models of a dynamic volume: asked for, opened, shown, noted, taken out.
//!
//! Each has a name that the pod gives it. What is asked for once is seen through, also where the pod hangs up. Called by the
//! [`api`](super::api).

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::noted::{self, Noted};
use super::table::{self, Entered, Entry, Table};
use super::{Config, Folders};
use crate::content::{self, Store};
use crate::error::{Error, Kind, Result};
use crate::fs::Model;
use crate::mount::Gallery;
use crate::oci::exclude::Exclude;
use crate::oci::{Place as Where, Reference};
use crate::repository;
use crate::serve::report::{Phase, Progress, Report};
use crate::serve::turns::Turns;
use crate::serve::{Room, wish};

/// How many models are opened at once.
const OPENED_AT_ONCE: usize = 4;

/// How long opening one may take: longer than its own deadlines together.
const OPENING: Duration = Duration::from_secs(300);

/// How long a new process waits for the models of a former one before it answers.
const RESTORING: Duration = Duration::from_secs(30);

/// How long a model of a former process has its turn at most.
const SHARE: Duration = Duration::from_secs(2);

/// How long is waited before a model of a former process is tried again.
const AGAIN: Duration = Duration::from_secs(5);

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wanted {
    /// Which model.
    pub(super) reference: String,
    /// Patterns of files that are left out.
    pub(super) exclude: Vec<String>,
}

/// Why something is not done.
#[derive(Clone, Debug)]
pub(super) enum Refused {
    /// It cannot be meant.
    Invalid(String),
    /// Another model has this name.
    Taken(String),
    /// The store may not have all of it.
    NoRoom(String),
    /// There are as many models as there may be.
    Full(usize),
    /// It could not be opened.
    Failed(Error),
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Invalid(why) | Self::NoRoom(why) => f.write_str(why),
            Self::Taken(by) => write!(f, "mount_id is taken by {by}, or with other patterns"),
            Self::Full(most) => write!(f, "the volume has {most} models, as many as it may have"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// One that is being opened.
struct Opening(Arc<Models>);

impl Opening {
    fn begin(models: &Arc<Models>) -> Self {
        models.table.lock().opening += 1;
        Self(models.clone())
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut table = self.0.table.lock();
        table.opening = table.opening.saturating_sub(1);
    }
}

/// All models.
#[derive(Debug)]
pub(super) struct Models {
    config: Config,
    folders: Folders,
    gallery: Arc<Gallery>,
    store: Arc<Store>,
    table: Mutex<Table>,
    /// Held while they are noted, so that what is noted last is what there was last.
    noting: Mutex<()>,
    openings: Semaphore,
}

impl Models {
    /// None yet.
    pub(super) fn new(
        config: Config,
        folders: Folders,
        gallery: Arc<Gallery>,
        store: Arc<Store>,
    ) -> Arc<Self> {
        let (table, noting, openings) = (Mutex::default(), Mutex::default(), Semaphore::new(OPENED_AT_ONCE));
        Arc::new(Self { config, folders, gallery, store, table, noting, openings })
    }

    /// The volume's id.
    pub(super) fn volume(&self) -> &str {
        &self.config.volume
    }

    /// Opens again what is noted of a former process, each as long as it takes; returns when all are here, or after a while.
    pub(super) async fn restore(self: &Arc<Self>) {
        let noted = noted::read(&self.folders.noted());
        // Turns of their own, so that they hold up nobody who is waited for.
        let turns = Arc::new(turns_for(noted.len()));
        let restoring: Vec<_> =
            noted.into_iter().filter_map(|noted| self.restore_one(noted, &turns)).collect();
        let all = futures_util::future::join_all(restoring);
        if tokio::time::timeout(RESTORING, all).await.is_err() {
            tracing::warn!("not all models of the former process are here yet");
        }
    }

    fn restore_one(
        self: &Arc<Self>,
        noted: Noted,
        turns: &Arc<Turns>,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let pinned: Reference = noted.pinned.parse().ok()?;
        let Ok(Entered::New(serial)) = self.enter(&noted.id, &noted.wanted) else { return None };
        let (models, turns, id, wanted) = (self.clone(), turns.clone(), noted.id, noted.wanted);
        // So that it is noted still where it takes long.
        models.change(&id, serial, |entry| entry.pinned = Some(pinned.clone()));
        Some(tokio::spawn(async move {
            while models.is_there(&id, serial) {
                let opening = Box::pin(models.open_pinned(&wanted, pinned.clone(), SystemTime::now()));
                let shown = match turns.take(std::future::pending(), opening).await {
                    Ok(opened) => models.show(&id, serial, opened).await,
                    Err(error) => Err(error),
                };
                let Err(error) = shown else { return };
                tracing::warn!(id, "cannot show {pinned} again yet: {error}");
                tokio::time::sleep(AGAIN).await;
            }
        }))
    }

    /// Shows a model as `id`, and returns when it can be read. Once more changes nothing. The registry is asked with the volume's
    /// credentials, also where the model is here already.
    ///
    /// # Errors
    /// Why not.
    pub(super) async fn add(
        self: &Arc<Self>,
        id: &str,
        wanted: Wanted,
        room: Room,
    ) -> std::result::Result<Report, Refused> {
        check(&wanted)?;
        let entered = self.enter(id, &wanted)?;
        if let Entered::New(serial) = entered {
            let (opening, id) = (Opening::begin(self), id.to_owned());
            tokio::spawn(async move { opening.0.fetch(&id, serial, wanted, room).await });
        }
        table::settled(&self.table, self.volume(), id, entered.serial()).await
    }

    /// The model's own place in the table, where it has none yet.
    fn enter(&self, id: &str, wanted: &Wanted) -> std::result::Result<Entered, Refused> {
        let mut table = self.table.lock();
        table.enter(id, wanted, self.config.max_models, self.gallery.len())
    }

    /// Opens the model and shows it, or notes why not.
    async fn fetch(&self, id: &str, serial: u64, wanted: Wanted, room: Room) {
        let opening = async {
            let _turn = self.openings.acquire().await;
            if !self.is_there(id, serial) {
                return Err(Error::new(Kind::Busy, "it was taken out meanwhile").into());
            }
            self.open(&wanted, room).await
        };
        let opened = tokio::time::timeout(OPENING, opening).await;
        let late = || Error::new(Kind::Deadline, "opening the model takes too long");
        let done = match opened.unwrap_or_else(|_| Err(late().into())) {
            Ok(opened) => self.show(id, serial, opened).await.map_err(Refused::from),
            Err(refused) => Err(refused),
        };
        let Err(refused) = done else { return };
        tracing::warn!(id, reference = wanted.reference, "not shown: {refused}");
        let phase = match &refused {
            Refused::Failed(error) => Phase::of_failure(error),
            _ => Phase::PullFailed,
        };
        self.change(id, serial, |entry| {
            entry.failure = Some(refused);
            entry.phase.send_replace(phase);
        });
        // Somebody else's note may have it from the moment that it was shown.
        if let Err(error) = self.note() {
            tracing::warn!(id, "{error}");
        }
    }

    async fn open(&self, wanted: &Wanted, room: Room) -> std::result::Result<Opened, Refused> {
        let begun = SystemTime::now();
        let (repository, platform) = (&self.config.repository, self.config.content.platform.clone());
        let granted = wish::grant(&wanted.reference.parse()?, repository, platform).await?;
        let (size, limit) = (granted.size(), self.store.budget().limit());
        if room == Room::Needed && size > limit {
            let message = format!("the model has {size} bytes, and the store may have {limit}");
            return Err(Refused::NoRoom(message));
        }
        Ok(self.open_pinned(wanted, granted.reference, begun).await?)
    }

    async fn open_pinned(&self, wanted: &Wanted, pinned: Reference, begun: SystemTime) -> Result<Opened> {
        let repository = repository::connect(&pinned, &self.config.repository)?;
        let exclude = Exclude::parse(&serde_json::json!(wanted.exclude).to_string());
        let exclude = exclude.map_err(|why| Error::new(Kind::Invalid, why))?;
        let content = content::Config { exclude, ..self.config.content.clone() };
        let model = Model::open(repository, pinned.clone(), self.store.clone(), content).await?;
        let progress = Progress::done(&model.artifact, begun);
        Ok(Opened { model: Arc::new(model), pinned, progress })
    }

    /// Shows what was opened, unless the pod has thought better of it.
    async fn show(&self, id: &str, serial: u64, opened: Opened) -> Result<()> {
        let Opened { model, pinned, progress } = opened;
        let shown = match self.show_now(id, serial, &model, pinned, progress) {
            // Who waits is told once the next process would know it too.
            Ok(true) => self.note().map(|()| true).inspect_err(|_| self.hide(id, serial)),
            shown => shown,
        };
        match shown {
            Ok(true) => {
                self.change(id, serial, |entry| {
                    entry.phase.send_replace(Phase::PullSucceeded);
                });
                return Ok(());
            }
            Ok(false) => tracing::info!(id, "not wanted any more"),
            Err(_) => {}
        }
        model.close().await;
        shown.map(|_| ())
    }

    /// Takes out what could not be noted.
    fn hide(&self, id: &str, serial: u64) {
        let table = self.table.lock();
        if table.find(id, serial).is_some() {
            self.gallery.remove(id);
        }
    }

    /// Under one lock, so that nobody takes it out before it is in. Whether it was wanted.
    fn show_now(
        &self,
        id: &str,
        serial: u64,
        model: &Arc<Model>,
        pinned: Reference,
        progress: Progress,
    ) -> Result<bool> {
        let mut table = self.table.lock();
        let Some(entry) = table.find_mut(id, serial) else { return Ok(false) };
        let state = Some(Phase::PullSucceeded);
        let report = Report { state, progress, ..entry.report(self.volume(), id) };
        self.gallery.add(id, model.clone(), report.text()?.into())?;
        entry.pinned = Some(pinned);
        entry.progress = report.progress;
        tracing::info!(id, digest = %model.digest, "shown {}", entry.wanted.reference);
        Ok(true)
    }

    /// How the model `id` is; `None` where there is none.
    pub(super) fn report(&self, id: &str) -> Option<Report> {
        self.table.lock().report(self.volume(), id)
    }

    /// How all are, by name.
    pub(super) fn reports(&self) -> Vec<Report> {
        self.table.lock().reports(self.volume())
    }

    /// Takes the model `id` out; nothing there is as well.
    ///
    /// # Errors
    /// `Storage` where that cannot be noted.
    pub(super) fn remove(&self, id: &str) -> Result<()> {
        {
            let mut table = self.table.lock();
            self.gallery.remove(id);
            table.remove(id);
        }
        // Also where nothing was there: it may not have been noted the last time.
        self.note()
    }

    /// Notes what there is now.
    fn note(&self) -> Result<()> {
        let _alone = self.noting.lock();
        let all = self.table.lock().noted();
        noted::note(&self.folders.noted(), &all)
    }

    fn is_there(&self, id: &str, serial: u64) -> bool {
        self.table.lock().find(id, serial).is_some()
    }

    fn change(&self, id: &str, serial: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.table.lock().find_mut(id, serial) {
            change(entry);
        }
    }
}

/// Turns for so many models of a former process: short enough that all are begun with in half of the time that is waited for them,
/// however many of the others take long.
fn turns_for(count: usize) -> Turns {
    let rounds = u32::try_from(count.div_ceil(OPENED_AT_ONCE)).unwrap_or(u32::MAX).max(1);
    Turns::new(OPENED_AT_ONCE, SHARE.min(RESTORING / 2 / rounds))
}

/// A model that was opened.
struct Opened {
    model: Arc<Model>,
    pinned: Reference,
    progress: Progress,
}

/// What can be told without asking anybody.
fn check(wanted: &Wanted) -> std::result::Result<(), Refused> {
    let invalid = |why: String| Refused::Invalid(why);
    let reference: Reference = wanted.reference.parse().map_err(|error: Error| invalid(error.to_string()))?;
    // Whoever runs in a pod does not decide which of the node's folders are read.
    if !matches!(reference.place, Where::Registry { .. }) {
        return Err(invalid("a volume's model has to be in a registry".to_owned()));
    }
    let patterns = serde_json::json!(wanted.exclude).to_string();
    Exclude::parse(&patterns).map(drop).map_err(|why| invalid(format!("exclude_file_patterns: {why}")))
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_model_behind_others_that_cannot_be_had_is_here_before_a_new_process_answers() {
        for count in [1, 4, 13, 32, 1000] {
            let (turns, begun) = (turns_for(count), Instant::now());
            let stalled = (1..count).map(|_| turns.take(pending(), pending::<()>()));
            let stalled = futures_util::future::join_all(stalled);
            let last = async {
                // Behind all of them.
                tokio::time::sleep(Duration::from_millis(1)).await;
                turns.take(pending(), ready(())).await;
            };
            tokio::select! {
                _ = stalled, if count > 1 => panic!("they are never here"),
                () = last => {}
            }
            let waited = begun.elapsed();
            assert!(waited < RESTORING * 2 / 3, "{waited:?} behind {count}");
        }
    }
}
