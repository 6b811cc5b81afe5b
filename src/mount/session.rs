//! A mount from its beginning to its end: checks of the folder, the FUSE session, invalidation, unmounting.
//!
//! [`Mount::open`] is the one way in for every floor above. What the kernel asks meanwhile is answered by the adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fuser::{Filesystem, Notifier, Session, SessionACL};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;

use super::adapter::Adapter;
use super::answers::Answers;
use super::attach::{self, Audience};
use super::exchange::{self, Exchange};
use super::kernel::{self, Device};
use super::renumber::{self, Offers};
use super::{Detach, Options, Passthrough, Status};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::fs::Model;

/// How long ending the loader, and how long detaching may take: together with [`LAST_REQUESTS`] less than the 10 s
/// that supervisors give a process after SIGTERM.
pub(super) const CLOSING: Duration = Duration::from_secs(3);

/// How long the session may take to end once the mount is detached. With files still open it goes on; who unmounts
/// because the process ends need not wait for them.
pub(super) const LAST_REQUESTS: Duration = Duration::from_secs(2);

/// How many dead mounts over one another are cleared before giving up.
const STACKED: usize = 16;

/// A mounted model. Dropping it detaches the mount, without waiting for anybody.
#[derive(Debug)]
pub struct Mount {
    model: Arc<Model>,
    answers: Arc<Answers>,
    /// As the mount table names it.
    dir: PathBuf,
    device: Device,
    /// Closed once the session has ended.
    ended: watch::Receiver<()>,
}

impl Mount {
    /// Mounts; returns when the kernel's INIT is answered and read-ahead is set, and starts what the loader
    /// is to warm and what there is to say of the model. Must be called within a tokio runtime.
    ///
    /// A dead mount of weightfs at `dir` is cleared first. Given up before it returns, it leaves no mount behind.
    ///
    /// # Errors
    /// `NotFound` or `Invalid` where `dir` is no folder, `Busy` where it is not empty or something of weightfs is mounted
    /// there, `Kernel` where `/dev/fuse` or the helper is missing or the kernel refuses; each says what to do.
    pub async fn open(model: Arc<Model>, dir: &Path, options: &Options) -> Result<Self> {
        let answers = Arc::new(Answers::new(model.clone(), options));
        let adapter = Adapter::new(answers.clone());
        let passthrough = options.passthrough;
        let (dir, source, options) = (dir.to_owned(), model.reference.to_string(), options.clone());
        let begun = blocking(move || begin(&dir, &source, &options, adapter)).await?;
        let Served { dir, device, ended, notifier } = begun.serve()?;
        let mount = Self { model, answers, dir, device, ended };
        mount.notify(notifier, passthrough)?;
        mount.model.loader.warm();
        mount.model.mention_ignored_index();
        Ok(mount)
    }

    /// The folder, absolute and without links.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The model that is mounted.
    #[must_use]
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// What there is to say of the mount now. Asks no network, but reads a small file of the store for each file of
    /// the model, so it blocks.
    #[must_use]
    pub fn status(&self) -> Status {
        self.answers.status()
    }

    /// Waits until the mount has ended, by whoever's hand (umount, fusermount3 -u, [`unmount`](Self::unmount)).
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        while ended.changed().await.is_ok() {}
    }

    /// Ends the loader, so that reads that wait fail, and unmounts, lazily where the mount is in use. Returns within
    /// ten seconds; a mount whose files are still open is then detached, and its session ends with them.
    ///
    /// # Errors
    /// `Kernel` where the mount can't be taken away.
    pub async fn unmount(&self) -> Result<()> {
        if tokio::time::timeout(CLOSING, self.model.close()).await.is_err() {
            tracing::warn!("the loader did not end in time");
        }
        let (dir, device) = (self.dir.clone(), self.device.clone());
        let detached = tokio::time::timeout(CLOSING, blocking(move || detach_own(&dir, &device))).await;
        let late = || Error::new(Kind::Kernel, format!("unmounting {} takes too long", self.dir.display()));
        detached.unwrap_or_else(|_| Err(late()))?;
        if tokio::time::timeout(LAST_REQUESTS, self.ended()).await.is_err() {
            tracing::info!(dir = %self.dir.display(), "detached; files are still open");
        }
        Ok(())
    }
}

impl Mount {
    /// Starts the threads that tell the kernel what it does not know: each by itself, since a notification waits for whatever
    /// requests hold locked in the kernel.
    fn notify(&self, notifier: Notifier, passthrough: Passthrough) -> Result<()> {
        watch_poisonings(Arc::clone(&self.answers), notifier.clone(), self.ended.clone())?;
        if passthrough == Passthrough::Off {
            return Ok(());
        }
        let runtime = tokio::runtime::Handle::current();
        let exchange = Exchange::new(Arc::clone(&self.answers), notifier.clone(), self.ended.clone());
        let (sealings, within) = (self.model.loader.sealings(), runtime.clone());
        thread("weightfs-exchg", move || within.block_on(exchange::attend(sealings, exchange)))?;
        if passthrough == Passthrough::Auto {
            return Ok(());
        }
        let (answers, ended) = (Arc::clone(&self.answers), self.ended.clone());
        let (dir, sealings) = (self.dir.clone(), self.model.loader.sealings());
        thread("weightfs-renum", move || {
            runtime.block_on(renumber::attend(sealings, Offers::new(answers, notifier, dir, ended)));
        })
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.ended.has_changed().is_err() {
            return;
        }
        if let Err(error) = detach_own(&self.dir, &self.device) {
            tracing::warn!("{error}");
        }
    }
}

/// Unmounts the weightfs mount at `dir` from outside its process; also clears a dead one.
///
/// # Errors
/// `NotFound` where nothing is mounted at `dir`, `Invalid` where it is no weightfs mount, `Busy` where it is in use and
/// `how` is [`Detach::Unused`], `Kernel` for the rest.
pub fn unmount(dir: &Path, how: Detach) -> Result<()> {
    let dir = kernel::resolve(dir)?;
    let Some(entry) = kernel::mounted_at(&dir)? else {
        return Err(Error::new(Kind::NotFound, format!("nothing is mounted at {}", dir.display())));
    };
    if !entry.is_ours() {
        let doing = format!("what is mounted at {} is no weightfs mount but {}", dir.display(), entry.fstype);
        return Err(Error::new(Kind::Invalid, doing).hint("use umount"));
    }
    match how {
        Detach::Unused => kernel::detach_unused(&dir, &entry),
        Detach::Lazy => kernel::detach(&dir, how),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Error::from_source(Kind::Kernel, "mounting was interrupted", error)))
}

/// A mount whose INIT is answered, and that nobody serves yet. Dropped, it ends: nobody would ever answer it.
pub(super) struct Begun<F: Filesystem> {
    // Before `left`: the connection is closed, and then the mount taken away.
    session: Session<F>,
    left: Left,
}

/// A mount that is served, until it is taken away.
pub(super) struct Served {
    /// As the mount table names it.
    pub(super) dir: PathBuf,
    pub(super) device: Device,
    /// Closed once the session has ended.
    pub(super) ended: watch::Receiver<()>,
    pub(super) notifier: Notifier,
}

/// A mount that would be left behind dead: dropped before it is served, it is detached.
struct Left {
    dir: PathBuf,
    device: Device,
    served: bool,
}

impl Drop for Left {
    fn drop(&mut self) {
        if self.served {
            return;
        }
        if let Err(error) = detach_own(&self.dir, &self.device) {
            tracing::warn!("{error}");
        }
    }
}

/// Mounts at `dir` and answers the kernel's first request; nobody answers more until it is served. Blocks.
///
/// # Errors
/// Those of [`Mount::open`].
pub(super) fn begin<F: Filesystem>(
    dir: &Path,
    source: &str,
    options: &Options,
    adapter: F,
) -> Result<Begun<F>> {
    let dir = vacant(dir)?;
    let (audience, acl) = match options.allow_other {
        true => (Audience::Everyone, SessionACL::All),
        false => (Audience::Owner, SessionACL::Owner),
    };
    let kernel = attach::attach(&dir, source, audience)?;
    let started = Session::from_fd(adapter, kernel, acl, configuration(acl))
        .map_err(|error| Error::from_source(Kind::Kernel, "the kernel's first request failed", error));
    let begun = started.and_then(|session| {
        let device = own_device(&dir)?;
        Ok(Begun { session, left: Left { dir: dir.clone(), device, served: false } })
    });
    if begun.is_err() {
        // Nobody would ever answer it.
        let _ = kernel::detach(&dir, Detach::Lazy);
    }
    let begun = begun?;
    // Before any file can be opened: the kernel copies the setting into each open file.
    if let Err(error) = kernel::set_read_ahead(&begun.left.device, options.read_ahead) {
        tracing::warn!("reading ahead stays at the kernel's default: {error}");
    }
    Ok(begun)
}

fn configuration(acl: SessionACL) -> fuser::Config {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut config = fuser::Config::default();
    config.acl = acl;
    // Two at the least, so that a thread that copies a large reply is not all there is.
    config.n_threads = Some(cores.max(2));
    // A descriptor of each thread could not be handed to a successor as one.
    config.clone_fd = false;
    config
}

fn own_device(dir: &Path) -> Result<Device> {
    let entry = kernel::mounted_at(dir)?.filter(kernel::MountEntry::is_ours);
    let gone = || Error::new(Kind::Kernel, format!("the mount at {} is gone already", dir.display()));
    entry.map(|entry| entry.device).ok_or_else(gone)
}

/// The folder to mount at, as the mount table will name it, checked; dead mounts of weightfs are cleared away.
///
/// [`Mount::open`] does this too: asked before, it spares the network where there is nothing to mount at.
///
/// # Errors
/// `NotFound` or `Invalid` where `dir` is no folder, `Busy` where it is not empty or taken, each with what to do.
pub fn vacant(dir: &Path) -> Result<PathBuf> {
    let dir = kernel::resolve(dir).map_err(|error| error.hint("make the folder first"))?;
    for _ in 0..STACKED {
        let Some(entry) = kernel::mounted_at(&dir)?.filter(kernel::MountEntry::is_ours) else { break };
        if !kernel::is_dead(&dir) {
            let doing = format!("{} is mounted at {} already", entry.source, dir.display());
            return Err(Error::new(Kind::Busy, doing)
                .hint(format!("run 'weightfs unmount {}' first, or choose another folder", dir.display())));
        }
        tracing::info!(dir = %dir.display(), "clearing a mount whose process has died");
        kernel::detach(&dir, Detach::Lazy)?;
    }
    check_empty_folder(&dir)?;
    Ok(dir)
}

fn check_empty_folder(dir: &Path) -> Result<()> {
    let shown = dir.display();
    let found = std::fs::metadata(dir).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(Kind::NotFound, format!("no such folder: {shown}")).hint("make the folder first")
        }
        _ => Error::from_source(Kind::Storage, format!("cannot look at {shown}"), error),
    })?;
    if !found.is_dir() {
        return Err(
            Error::new(Kind::Invalid, format!("{shown} is no folder")).hint("mount at an empty folder")
        );
    }
    let mut entries = std::fs::read_dir(dir).storage(|| format!("cannot look into {shown}"))?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(Error::new(Kind::Busy, format!("the folder {shown} is not empty"))
            .hint("mount at an empty folder: a mount would hide what is in it")),
    }
}

impl<F: Filesystem> Begun<F> {
    /// Answers from now on.
    ///
    /// # Errors
    /// `Kernel` where no thread can be started; the mount is gone then.
    pub(super) fn serve(self) -> Result<Served> {
        let Self { session, mut left } = self;
        let notifier = session.notifier();
        let (alive, ended) = watch::channel(());
        let served = Served { dir: left.dir.clone(), device: left.device.clone(), ended, notifier };
        let (dir, device) = (left.dir.clone(), left.device.clone());
        thread("weightfs-fuse", move || run(session, &dir, &device, alive))?;
        left.served = true;
        Ok(served)
    }
}

fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    let started = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    started.map(drop).map_err(|error| Error::from_source(Kind::Kernel, format!("cannot start {name}"), error))
}

/// Answers until the mount ends, and takes it away should it still stand (the connection was aborted).
fn run<F: Filesystem>(session: Session<F>, dir: &Path, device: &Device, alive: watch::Sender<()>) {
    if let Err(error) = session.run() {
        tracing::error!(%error, "the FUSE session failed");
    }
    if let Err(error) = detach_own(dir, device) {
        tracing::warn!("{error}");
    }
    drop(alive);
}

/// Detaches the mount with this device at `dir`; one that somebody else has made there since stays.
pub(super) fn detach_own(dir: &Path, device: &Device) -> Result<()> {
    if !kernel::mounted_at(dir)?.is_some_and(|entry| entry.device == *device) {
        return Ok(());
    }
    kernel::detach(dir, Detach::Lazy)
}

/// Starts the thread that takes poisoned files out of the kernel's cache. Must be called within a tokio runtime.
///
/// # Errors
/// `Kernel` where it cannot be started.
pub(super) fn watch_poisonings(
    answers: Arc<Answers>,
    notifier: Notifier,
    ended: watch::Receiver<()>,
) -> Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let poisonings = answers.model.loader.poisonings();
    thread("weightfs-inval", move || {
        runtime.block_on(async { invalidate_poisoned(poisonings, ended, &answers, &notifier).await });
    })
}

/// Takes the pages of poisoned files out of the kernel's cache, so that every read and every live mapping asks again
/// and fails.
///
/// On a thread of its own that holds no lock: the kernel makes the notification wait for the pages that reads have
/// locked, and those reads may wait for anything else here.
async fn invalidate_poisoned(
    mut poisonings: UnboundedReceiver<usize>,
    mut ended: watch::Receiver<()>,
    answers: &Answers,
    notifier: &Notifier,
) {
    loop {
        let layer = tokio::select! {
            layer = poisonings.recv() => layer,
            _ = ended.changed() => None,
        };
        let Some(layer) = layer else { return };
        for ino in answers.inodes_of(layer) {
            if let Err(error) = notifier.inval_inode(ino, 0, 0) {
                tracing::error!(%error, layer, "cannot take a poisoned file out of the kernel's cache");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::{self, Store, StoreConfig};
    use crate::oci::manifest::OCI_MANIFEST;
    use crate::repository::Memory;

    #[tokio::test]
    async fn a_mount_that_is_given_up_before_it_is_served_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let memory = Memory::new();
        memory.put_manifest("v1", OCI_MANIFEST, &br#"{"schemaVersion":2,"layers":[]}"#[..]);
        let config = StoreConfig { folder: place.path().join("store"), size: Some(1 << 20) };
        let (store, reference) = (Store::open(&config).unwrap(), "127.0.0.1:1/a/b:v1".parse().unwrap());
        let model = Model::open(Arc::new(memory), reference, store, content::Config::default()).await;
        let model = Arc::new(model.unwrap());
        let dir = place.path().join("mount");
        std::fs::create_dir(&dir).unwrap();

        let options = Options::default();
        let adapter = Adapter::new(Arc::new(Answers::new(model.clone(), &options)));
        let at = dir.clone();
        let begun = blocking(move || begin(&at, "given-up", &options, adapter)).await.unwrap();
        let dir = begun.left.dir.clone();
        assert!(kernel::mounted_at(&dir).unwrap().is_some());
        tokio::task::spawn_blocking(move || drop(begun)).await.unwrap();
        assert!(kernel::mounted_at(&dir).unwrap().is_none());
        model.close().await;
    }
}
