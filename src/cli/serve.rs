//! `weightfs serve`: the plane of a node, and the ways to it, until the process is asked to end. Its mounts live on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::args::{self, CommandLine, Reading, set};
use super::{background, print, runtime};
use crate::config::{self, Environment, Flags, KEYS, Settings};
use crate::error::{Error, Kind, Result};
use crate::serve::csi::{self, Names};
use crate::serve::inherited::{
    CONTROL, CSI, Inherited, METRICS, SNAPSHOTTER, Socket, address_in_runtime, in_runtime,
};
use crate::serve::notify::Notifier;
use crate::serve::page::{self, Door};
use crate::serve::snapshots::{self, Snapshots};
use crate::serve::{
    Artifacts, Config, Listen, Listening, Overrides, Plane, Settled, configuration, control, listen,
};

/// How long what is being answered may take once the process is asked to end.
const LAST_ANSWERS: Duration = Duration::from_secs(8);

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Answer 'mount', 'unmount' and 'list' at this socket
    #[arg(long, value_name = "PATH")]
    control: Option<String>,
    /// Show metrics and health at this address of this machine, or at unix:///PATH
    #[arg(long, value_name = "127.0.0.1:PORT")]
    metrics: Option<String>,
    /// Serve volumes of pods (CSI) at this socket
    #[arg(long, value_name = "unix:///PATH")]
    csi: Option<String>,
    /// What this node is called (CSI)
    #[arg(long, value_name = "ID")]
    node_id: Option<String>,
    /// What the driver is called (CSI), and what the attributes of its volumes begin with [model.csi.modelpack.org]
    #[arg(long, value_name = "NAME")]
    csi_driver: Option<String>,
    /// Keep an artifact store for CRI-O below this folder, of what 'artifact add' registers
    #[arg(long, value_name = "DIR")]
    artifact_store: Option<String>,
    /// Serve containerd as a snapshotter at this socket
    #[arg(long, value_name = "unix:///PATH")]
    snapshotter: Option<String>,
    /// Where snapshots are kept [/var/lib/weightfs/snapshots]
    #[arg(long, value_name = "DIR")]
    snapshots: Option<String>,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    state: args::State,
}

impl Serve {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        set(flags, "serve.control", self.control.as_ref());
        set(flags, "serve.metrics", self.metrics.as_ref());
        set(flags, "serve.csi", self.csi.as_ref());
        set(flags, "serve.node_id", self.node_id.as_ref());
        set(flags, "serve.csi_driver", self.csi_driver.as_ref());
        set(flags, "serve.artifact_store", self.artifact_store.as_ref());
        set(flags, "serve.snapshotter", self.snapshotter.as_ref());
        set(flags, "serve.snapshots", self.snapshots.as_ref());
        self.reading.set(flags);
        self.state.set(flags);
    }
}

/// Serves until asked to end by SIGTERM or SIGINT; SIGHUP has the configuration read anew.
///
/// # Errors
/// `Denied` for who is not root, `Busy` where a plane runs for this state folder, and those of listening.
pub(super) fn run(line: &CommandLine, settings: &Settings, environment: &Environment) -> Result<()> {
    if !environment.root {
        let error =
            Error::new(Kind::Denied, "'weightfs serve' shows mounts at several folders, which only root may");
        return Err(error.hint("run it as root; 'weightfs mount' needs no plane"));
    }
    // Before anything is opened here: they are known by numbers alone.
    let inherited = Inherited::take(environment.inherited_sockets()?)?;
    let runtime = runtime()?;
    let done = runtime.block_on(serve(line, settings, environment, inherited));
    runtime.shutdown_timeout(Duration::from_secs(1));
    done
}

async fn serve(
    line: &CommandLine,
    settings: &Settings,
    environment: &Environment,
    inherited: Inherited,
) -> Result<()> {
    let mut asked = Asked::listen()?;
    let notifier = Notifier::new(environment.notify_socket());
    let source =
        Source { named: line.common.config.clone(), environment: environment.clone(), flags: line.flags() };
    let plane = Plane::open(Config {
        program: background::program()?,
        state: settings.state.clone(),
        text: source.text()?,
        max_mounts: settings.serve.max_mounts,
        settle: settle(&source, configuration(&settings.state.live))?,
    })
    .await?;
    let ways = Ways::open(&plane, settings, inherited).await?;
    // Who asks meanwhile is answered; who waits for all to be as it was waits until then.
    plane.adopted().await;
    ways.ready.store(true, Ordering::Relaxed);
    notifier.ready();
    print::line(format_args!("serving at {}", ways.control.display()))?;
    while asked.next().await == Wanted::Configuration {
        notifier.reloading();
        reload(&plane, &source);
        notifier.ready();
    }
    notifier.stopping();
    ways.close().await;
    Ok(())
}

/// The ways to the plane: what listens, and where.
struct Ways {
    plane: Arc<Plane>,
    tasks: JoinSet<()>,
    end: watch::Sender<bool>,
    /// Whether all of them listen, and what a former plane has left is looked after.
    ready: Arc<AtomicBool>,
    /// What was listened at for this process before it began.
    inherited: Inherited,
    /// Where it is asked by the commands.
    control: PathBuf,
    /// What is taken away at the end: sockets that were made here.
    sockets: Vec<PathBuf>,
}

impl Ways {
    /// Listens wherever the settings say, and at all that was inherited.
    async fn open(plane: &Arc<Plane>, settings: &Settings, inherited: Inherited) -> Result<Self> {
        let ((end, _), ready) = (watch::channel(false), Arc::new(AtomicBool::new(false)));
        let (tasks, control) = (JoinSet::new(), settings.serve.control(&settings.state.live));
        let mut ways =
            Self { plane: plane.clone(), tasks, end, ready, inherited, control, sockets: Vec::new() };
        let artifacts = match &settings.serve.artifact_store {
            Some(dir) => Some(Artifacts::open(plane.clone(), dir).await?),
            None => None,
        };
        ways.open_control(artifacts)?;
        if let Some(listener) = ways.socket(CSI, settings.serve.csi.as_deref())? {
            let names = Names { driver: settings.serve.csi_driver.clone(), node: node(settings)? };
            ways.open_csi(listener, names);
        }
        ways.open_snapshots(&settings.serve).await?;
        ways.open_pages(settings.serve.metrics.as_ref()).await?;
        std::mem::take(&mut ways.inherited).finish()?;
        Ok(ways)
    }

    /// What was inherited under `name`, else what is listened at `place`; none where neither is said.
    fn socket(&mut self, name: &str, place: Option<&Path>) -> Result<Option<UnixListener>> {
        if let Some(inherited) = self.inherited.unix(name)? {
            return Ok(Some(inherited));
        }
        let Some(place) = place else { return Ok(None) };
        let listener = listen::listen(place)?;
        self.sockets.push(place.to_owned());
        Ok(Some(listener))
    }

    fn open_control(&mut self, artifacts: Option<Arc<Artifacts>>) -> Result<()> {
        let listener = match self.inherited.unix(CONTROL)? {
            Some(inherited) => {
                let at = inherited.local_addr().ok();
                let place = at.as_ref().and_then(|at| at.as_pathname());
                self.control = place.map_or_else(|| "an inherited socket".into(), Path::to_owned);
                inherited
            }
            None => {
                let listener = listen::listen(&self.control)?;
                self.sockets.push(self.control.clone());
                listener
            }
        };
        self.tasks.spawn(control::serve(self.plane.clone(), artifacts, listener, self.ended()));
        Ok(())
    }

    fn open_csi(&mut self, listener: UnixListener, names: Names) {
        let (plane, ready, ended) = (self.plane.clone(), self.ready.clone(), self.ended());
        self.tasks.spawn(csi::serve(plane, listener, names, ready, ended));
    }

    async fn open_snapshots(&mut self, settings: &Listening) -> Result<()> {
        let Some(listener) = self.socket(SNAPSHOTTER, settings.snapshotter.as_deref())? else {
            return Ok(());
        };
        let opened = Snapshots::open(self.plane.clone(), &settings.snapshots, settings.diff_ids).await?;
        self.tasks.spawn(snapshots::serve(opened, listener, self.ended()));
        Ok(())
    }

    async fn open_pages(&mut self, place: Option<&Listen>) -> Result<()> {
        let door = match (self.inherited.socket(METRICS)?, place) {
            (Some(Socket::Unix(listener)), _) => Door::Socket(in_runtime(METRICS, listener)?),
            (Some(Socket::Loopback(listener)), _) => Door::Loopback(address_in_runtime(METRICS, listener)?),
            (None, Some(place)) => {
                let door = Door::open(place).await?;
                if let Listen::Socket(path) = place {
                    self.sockets.push(path.clone());
                }
                door
            }
            (None, None) => return Ok(()),
        };
        if let Door::Loopback(_) = door {
            tracing::info!("metrics at {}", door.place());
        }
        self.tasks.spawn(page::serve(self.plane.clone(), door, self.ready.clone(), self.ended()));
        Ok(())
    }

    fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.end.subscribe();
        async move {
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Answers those who have asked already, and takes the sockets away.
    async fn close(mut self) {
        self.end.send_replace(true);
        let answered = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST_ANSWERS, answered).await.is_err() {
            tracing::warn!("somebody is left without an answer");
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}

fn node(settings: &Settings) -> Result<String> {
    settings.serve.node_id.clone().ok_or_else(|| {
        Error::new(Kind::Invalid, "a node that serves CSI has to have a name")
            .hint("say it with --node-id, WEIGHTFS_NODE_ID or serve.node_id")
    })
}

fn reload(plane: &Plane, source: &Source) {
    match source.checked().and_then(|text| plane.reconfigure(&text)) {
        Ok(()) => tracing::info!("the configuration was read anew; it counts for mounts from now on"),
        Err(error) => tracing::error!("the former configuration counts on: {error}"),
    }
}

/// Where the settings of the plane come from.
#[derive(Clone, Debug)]
struct Source {
    named: Option<PathBuf>,
    environment: Environment,
    flags: Flags,
}

impl Source {
    /// The configuration file's text; empty where there is none.
    fn text(&self) -> Result<String> {
        let file = config::read_file(&self.environment, self.named.as_deref())?;
        Ok(file.map(|(_, text)| text).unwrap_or_default())
    }

    /// The same, if it can be meant.
    fn checked(&self) -> Result<String> {
        Settings::load(&self.environment, self.named.as_deref(), &self.flags)?;
        self.text()
    }
}

/// What settings come to: those of the configuration that the plane keeps, of the environment and of the flags, and before
/// all these those of one mount.
fn settle(source: &Source, file: PathBuf) -> Result<Box<crate::serve::Settle>> {
    let flags = source.flags.iter().map(|(name, value)| (*name, value.as_str()));
    let own = source.environment.with(flags)?;
    Ok(Box::new(move |overrides: &Overrides| settled(&own, &file, overrides)))
}

fn settled(own: &Environment, file: &Path, overrides: &Overrides) -> Result<Settled> {
    let differing = own.differing(overrides);
    let of_mount = own.with(differing.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
    let settings = Settings::load(&of_mount, Some(file), &Vec::new())?;
    let variables = KEYS.iter().filter_map(|key| {
        let value = of_mount.variables.get(key.variable)?;
        Some((key.variable.to_owned(), value.clone()))
    });
    let named = ("WEIGHTFS_CONFIG".to_owned(), file.as_os_str().to_owned());
    Ok(Settled {
        repository: settings.repository,
        platform: settings.content.platform,
        store: settings.store,
        integrity: settings.content.integrity,
        settings: differing,
        variables: variables.chain([named]).collect(),
    })
}

/// What a signal wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Configuration,
    End,
}

/// The signals that are listened for.
struct Asked {
    end: [tokio::signal::unix::Signal; 2],
    hang_up: tokio::signal::unix::Signal,
}

impl Asked {
    fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::from_source(Kind::Kernel, "cannot listen for signals", error))
        };
        let end = [listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?];
        Ok(Self { end, hang_up: listen(SignalKind::hangup())? })
    }

    async fn next(&mut self) -> Wanted {
        let [terminate, interrupt] = &mut self.end;
        tokio::select! {
            _ = terminate.recv() => Wanted::End,
            _ = interrupt.recv() => Wanted::End,
            _ = self.hang_up.recv() => Wanted::Configuration,
        }
    }
}
