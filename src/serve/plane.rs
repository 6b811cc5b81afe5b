//! The plane: one process for each artifact that is asked for on this node, and that shown at every folder it is asked for at.
//!
//! Volumes are counted by what is noted of them on disk, so that who comes after this process knows them too: it adopts the
//! processes that live on, starts the others again, and repairs what they are shown at. Nothing here prints or knows who
//! asks; [`control`](super::control) and CSI do.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::Mutex;

use super::book::{Book, Spec, Volume};
use super::claims::Claims;
use super::host::{self, Host, Running};
use super::process::Process;
use super::start::Start;
use super::state::{State, StateConfig};
use super::turns::Turns;
use super::wish::Settled;
use super::{Overrides, exposition::Tally};
use crate::error::{Error, Kind, Result};
use crate::mount::bind::{self, Seen};
use crate::repository::Secret;

/// How long a mount's process may take to open its model: longer than its own deadlines together.
const OPENING: Duration = Duration::from_secs(300);

/// How many mounts are started at once that nobody waits for.
const STARTED_AT_ONCE: usize = 8;

/// How long each of them has its turn.
const SHARE: Duration = Duration::from_secs(10);

/// How long a process that lives may take to be looked after.
const ADOPTING: Duration = Duration::from_secs(5);

/// The setting that names a mount's own credentials.
const ONLY_PULL_SECRET: &str = "registry.only_pull_secret";

/// What settings come to: of the plane's own configuration, and before it of those given.
pub type Settle = dyn Fn(&Overrides) -> Result<Settled> + Send + Sync;

/// What the plane is made of.
pub struct Config {
    /// This program.
    pub program: PathBuf,
    /// Where mounts are noted, and where their logs go.
    pub state: StateConfig,
    /// The configuration file's text that counts from now on.
    pub text: String,
    /// How many mounts there may be, each a process. Those that a former plane has left are taken up all the same.
    pub max_mounts: usize,
    /// What settings come to, with the file at [`configuration`].
    pub settle: Box<Settle>,
}

/// Where the plane keeps the configuration that counts: as it was read last, so that a mount that is started anew is as it was.
#[must_use]
pub fn configuration(live: &Path) -> PathBuf {
    Book::configuration(live)
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config").field("program", &self.program).field("state", &self.state).finish()
    }
}

/// All mounts and volumes of a node.
#[derive(Debug)]
pub struct Plane {
    config: Config,
    pub(super) state: State,
    pub(super) book: Book,
    pub(super) hosts: Mutex<HashMap<String, Arc<Host>>>,
    pub(super) volumes: Mutex<BTreeMap<PathBuf, Volume>>,
    /// The folders for which something is under way.
    pub(super) claims: Claims<PathBuf>,
    /// Who looks whether something is bound and binds it is alone in that.
    pub(super) binding: Mutex<()>,
    pub(super) tally: Tally,
    /// Who starts a process.
    turns: Turns,
    /// Processes of a former plane that live, until they are taken up.
    adopting: Mutex<Vec<Arc<Host>>>,
}

impl Plane {
    /// Takes up what is noted in the state folder: processes that live are adopted, the others are started again, beside
    /// whatever comes next. Must be called within a tokio runtime, whose end is the plane's; processes and mounts stay.
    ///
    /// # Errors
    /// `Busy` where there is a plane for this state folder; `Storage`, `Denied`.
    pub async fn open(config: Config) -> Result<Arc<Self>> {
        let plane = blocking(move || {
            let (state, book) = (State::open(&config.state)?, Book::open(&config.state.live)?);
            book.keep_configuration(&config.text)?;
            book.clear_leftovers()?;
            state.clear_drafts();
            let volumes = book.volumes()?.into_iter().map(|volume| (volume.target.clone(), volume)).collect();
            Ok(Arc::new(Self {
                config,
                state,
                book,
                hosts: Mutex::default(),
                volumes: Mutex::new(volumes),
                claims: Claims::default(),
                binding: Mutex::default(),
                tally: Tally::default(),
                turns: Turns::new(STARTED_AT_ONCE, SHARE),
                adopting: Mutex::default(),
            }))
        })
        .await?;
        let taking = plane.clone();
        let specs = blocking(move || taking.book.mounts()).await?;
        for spec in specs {
            plane.take_up(spec);
        }
        Ok(plane)
    }

    /// Returns once every process that a former plane has left is looked after, and shown where it should be.
    pub async fn adopted(self: &Arc<Self>) {
        let adopting = std::mem::take(&mut *self.adopting.lock());
        for host in adopting {
            // One that has ended meanwhile is started again beside.
            if let Ok(Ok(())) = tokio::time::timeout(ADOPTING, host.serving()).await {
                self.bind_all(&host).await;
            }
        }
    }

    fn take_up(self: &Arc<Self>, spec: Spec) {
        let dir = self.book.host(&spec);
        let host = Host::new(spec, dir);
        self.hosts.lock().insert(host.spec.id.clone(), host.clone());
        if !self.is_used(&host.spec.id) {
            host.retire();
        }
        let adopted = self.adopt(&host);
        if adopted.is_some() && host.is_wanted() {
            self.adopting.lock().push(host.clone());
        }
        tokio::spawn(host::attend(self.clone(), host, adopted));
    }

    /// The process that serves a mount already, if its mount still stands.
    fn adopt(&self, host: &Host) -> Option<Running> {
        let process = self.state.find(&host.dir)?.process;
        let watch = process.watch().ok()??;
        let stands = bind::seen(&host.dir, &host.dir).is_ok_and(|seen| seen == Seen::Bound);
        stands.then_some(Running { process, watch, child: None })
    }

    /// Has mounts that are started from now on made by the configuration file's new text.
    ///
    /// # Errors
    /// `Storage`; what was there counts on.
    pub fn reconfigure(&self, text: &str) -> Result<()> {
        self.book.keep_configuration(text)
    }

    pub(super) fn digest_of(&self, mount: &str) -> Option<String> {
        self.hosts.lock().get(mount).map(|host| host.spec.digest.clone())
    }

    pub(super) async fn settle(self: &Arc<Self>, settings: &Overrides) -> Result<Settled> {
        let (plane, settings) = (self.clone(), settings.clone());
        blocking(move || (plane.config.settle)(&settings)).await
    }

    /// How many mounts there may be.
    pub(super) fn max_mounts(&self) -> usize {
        self.config.max_mounts
    }

    /// The mount of `spec`, made where there is none; it stays as long as what is given back. `None` where it is another one, and
    /// there are as many already as there may be.
    pub(super) async fn join(self: &Arc<Self>, spec: Spec, secret: Option<Secret>) -> Result<Option<Using>> {
        loop {
            let (host, is_new) = match self.seize(&spec) {
                Seat::There(host) => (host, false),
                Seat::New(host) => (host, true),
                Seat::Full => return Ok(None),
                Seat::Leaving(leaving) => {
                    leaving.gone().await;
                    continue;
                }
            };
            let using = Using { plane: self.clone(), host: host.clone() };
            let noted = {
                let (plane, spec, secret) = (self.clone(), spec.clone(), secret.clone());
                blocking(move || plane.book.note_mount(&spec, secret.as_ref())).await
            };
            if is_new {
                tokio::spawn(host::attend(self.clone(), host, None));
            }
            return noted.map(|()| Some(using));
        }
    }

    /// The mount, with one more user.
    fn seize(&self, spec: &Spec) -> Seat {
        let mut hosts = self.hosts.lock();
        if let Some(host) = hosts.get(&spec.id) {
            if !host.is_wanted() {
                return Seat::Leaving(host.clone());
            }
            host.uses.fetch_add(1, Ordering::Relaxed);
            return Seat::There(host.clone());
        }
        if hosts.len() >= self.config.max_mounts {
            return Seat::Full;
        }
        let host = Host::new(spec.clone(), self.book.host(spec));
        host.uses.fetch_add(1, Ordering::Relaxed);
        hosts.insert(spec.id.clone(), host.clone());
        Seat::New(host)
    }

    /// A mount that is wanted, with one more user.
    pub(super) fn hold(self: &Arc<Self>, mount: &str) -> Option<Using> {
        let hosts = self.hosts.lock();
        let host = hosts.get(mount).filter(|host| host.is_wanted())?.clone();
        host.uses.fetch_add(1, Ordering::Relaxed);
        Some(Using { plane: self.clone(), host })
    }

    fn is_used(&self, mount: &str) -> bool {
        self.volumes.lock().values().any(|volume| volume.mount == mount)
    }

    /// Has a mount taken away that nobody uses; gives it, until it is gone.
    pub(super) fn release(&self, mount: &str) -> Option<Arc<Host>> {
        let hosts = self.hosts.lock();
        let host = hosts.get(mount)?;
        if host.uses.load(Ordering::Relaxed) > 0 || self.is_used(mount) || !host.is_wanted() {
            return None;
        }
        host.retire();
        Some(host.clone())
    }

    /// Takes a mount away that nobody wants any more. Called by who looks after it.
    pub(super) async fn take_away(self: &Arc<Self>, host: &Arc<Host>) {
        let (plane, told) = (self.clone(), host.clone());
        let _ = blocking(move || {
            plane.tally.end(&told.spec.id, plane.status_of(&told));
            Ok(())
        })
        .await;
        let (plane, left) = (self.clone(), host.clone());
        let _ = blocking(move || {
            left.clear();
            plane.state.forget_log(&left.dir);
            plane.book.forget_mount(&left.spec.id);
            Ok(())
        })
        .await;
        self.hosts.lock().remove(&host.spec.id);
        host.vanish();
    }

    /// Starts the process of a mount, with what is left of a former one cleared away, once it is waited for or has a turn; `None`
    /// where nobody wants it by then. Called by who looks after it.
    ///
    /// # Errors
    /// Those of [`Start::run`] and of the settings.
    pub(super) async fn launch(self: &Arc<Self>, host: &Arc<Host>) -> Result<Option<Running>> {
        let (plane, started) = (self.clone(), host.clone());
        let start = blocking(move || plane.start(&started));
        let Some(started) = host.in_turn(&self.turns, start).await else { return Ok(None) };
        let (mounted, mut child) = started?;
        let process = Process::of(mounted.pid);
        let ended = || Error::new(Kind::Kernel, "the mount's process ended as soon as it had begun");
        match process.watch().and_then(|watch| watch.ok_or_else(ended)) {
            Ok(watch) => Ok(Some(Running { watch, process, child: Some(child) })),
            Err(error) => {
                // Nobody would look after it: it would be in the way of the next one.
                let _ = blocking(move || {
                    let _already_gone = child.kill();
                    let _ = child.wait();
                    Ok(())
                })
                .await;
                Err(error)
            }
        }
    }

    fn start(&self, host: &Host) -> Result<(super::start::Mounted, std::process::Child)> {
        let mut settings = host.spec.settings.clone();
        if let Some(secret) = self.book.secret_of(&host.spec.id) {
            settings.insert(ONLY_PULL_SECRET.to_owned(), secret.display().to_string());
        }
        let variables = (self.config.settle)(&settings)?.variables;
        host.make_room()?;
        let words = match (&host.spec.volume, &host.folders) {
            (Some(id), Some(folders)) => ["volume".into(), id.into(), folders.base().into()],
            _ => ["mount".into(), host.spec.reference.clone().into(), host.dir.clone().into_os_string()],
        };
        let words = words.to_vec();
        let log = self.state.log(&host.dir);
        Start { program: self.config.program.clone(), words, variables, log, limit: Some(OPENING) }.run()
    }

    /// Shows a mount at every folder of its volumes where it does not stand.
    pub(super) async fn bind_all(self: &Arc<Self>, host: &Arc<Host>) {
        let volumes: Vec<Volume> = {
            let volumes = self.volumes.lock();
            volumes.values().filter(|volume| volume.mount == host.spec.id).cloned().collect()
        };
        for volume in volumes {
            if let Err(error) = self.bind(host, &volume).await {
                tracing::warn!(volume = volume.id, "{error}");
            }
        }
    }

    pub(super) async fn bind(self: &Arc<Self>, host: &Arc<Host>, volume: &Volume) -> Result<()> {
        let (plane, shown, volume) = (self.clone(), host.clone(), volume.clone());
        blocking(move || {
            let _alone = plane.binding.lock();
            // One that was taken away meanwhile is not brought back, nor what another has taken the place of.
            let stands = plane.volumes.lock().get(&volume.target).is_some_and(|known| *known == volume);
            match stands {
                true => shown.show(&volume.target),
                false => Ok(()),
            }
        })
        .await
    }
}

/// What there is for who wants a mount.
#[derive(Debug)]
enum Seat {
    /// The mount.
    There(Arc<Host>),
    /// The mount, which nobody looks after yet.
    New(Arc<Host>),
    /// One that is about to be taken away.
    Leaving(Arc<Host>),
    /// There are as many as there may be.
    Full,
}

/// A user of a mount, who keeps it from being taken away.
#[derive(Debug)]
pub(super) struct Using {
    plane: Arc<Plane>,
    pub(super) host: Arc<Host>,
}

impl Drop for Using {
    fn drop(&mut self) {
        {
            let _hosts = self.plane.hosts.lock();
            self.host.uses.fetch_sub(1, Ordering::Relaxed);
        }
        self.plane.release(&self.host.spec.id);
    }
}

/// Does what waits for the kernel, the disk or a process where it holds up nobody else.
///
/// # Errors
/// Those of the work; `Kernel` where it was interrupted.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::from_source(Kind::Kernel, "the work was interrupted", error)))
}

/// Does the work in a task of its own, begun at once and ended also where who asked goes away: the next one who asks would begin it anew
/// otherwise.
///
/// # Errors
/// Those of the work; `Kernel` where it was interrupted.
pub(super) fn seen_through<T: Send + 'static, E: From<Error> + Send + 'static>(
    work: impl Future<Output = Result<T, E>> + Send + 'static,
) -> impl Future<Output = Result<T, E>> {
    let task = tokio::spawn(work);
    async move {
        let failed = |error| Err(Error::from_source(Kind::Kernel, "the work was interrupted", error).into());
        task.await.unwrap_or_else(failed)
    }
}
