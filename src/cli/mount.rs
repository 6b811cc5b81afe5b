//! `weightfs mount`: shows a model as a folder, from this process or from one that stays behind.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::args;
use super::background;
use super::state::{Process, Record, State};
use super::{open, print, reference, runtime};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::fs::Model;
use crate::mount::{Mount, vacant};
use crate::oci::Reference;

/// How long threads that still work may take when the process ends.
const LAST_WORK: Duration = Duration::from_secs(1);

/// What there is to say of a mount that answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Mounted {
    /// As typed.
    pub(super) reference: String,
    /// The folder.
    pub(super) dir: std::path::PathBuf,
    /// The manifest's digest.
    pub(super) digest: String,
    /// The process that serves it.
    pub(super) pid: u32,
    /// Why the registry was not heard, where what is kept here is mounted.
    pub(super) unanswered: Option<String>,
    /// What else a person should know.
    pub(super) warnings: Vec<String>,
}

/// Where a mount is noted and logged.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// In the terminal it was started from.
    Foreground,
    /// Behind it.
    Background,
}

/// Mounts from a process that stays behind; returns when the mount answers.
///
/// # Errors
/// Those that the other process met, with their kinds; `Kernel` where it ended without a word.
pub(super) fn in_background(command: &args::Mount, settings: &Settings, begun: Instant) -> Result<()> {
    // What can be known without the network is said before it is asked, and in this process.
    reference(&command.reference)?;
    let dir = vacant(&command.dir)?;
    let log = State::open(&settings.state)?.log(&dir);
    let mounted = background::start(&log)?;
    // In the foreground they are in the log, which is on standard error.
    for warning in &mounted.warnings {
        print::complain(format_args!("warning: {warning}"));
    }
    report(command, &mounted, begun.elapsed())
}

/// Mounts from this process; returns when the mount has ended.
///
/// # Errors
/// Those of the floors below.
pub(super) fn in_foreground(command: &args::Mount, settings: &Settings, begun: Instant) -> Result<()> {
    serve(command, settings, Place::Foreground, |mounted| report(command, mounted, begun.elapsed()))
}

fn report(command: &args::Mount, mounted: &Mounted, time: Duration) -> Result<()> {
    if command.json {
        let mut value = serde_json::to_value(mounted).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.insert("seconds".to_owned(), time.as_secs_f64().into());
        }
        return print::json(&value);
    }
    let (dir, digest) = (mounted.dir.display(), &mounted.digest);
    let kept = mounted.unanswered.as_ref().map(|why| {
        format!("; opened from what is kept here, since the registry is not heard: {}", print::safe(why))
    });
    let (time, kept) = (print::seconds(time), kept.unwrap_or_default());
    print::line(format_args!("mounted {} at {dir}: {digest} in {time}{kept}", mounted.reference))
}

/// Mounts, calls `ready` when the mount answers, and serves it until it is unmounted or the process is asked to end.
///
/// # Errors
/// Those of the floors below and of `ready`; the mount is gone then.
pub(super) fn serve(
    command: &args::Mount,
    settings: &Settings,
    place: Place,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<()> {
    let reference = reference(&command.reference)?;
    let dir = vacant(&command.dir)?;
    let state = State::open(&settings.state)?;
    if matches!(place, Place::Background) {
        // Everything relative is resolved: the folder it was started from may go.
        let _ = std::env::set_current_dir("/");
    }
    raise_descriptor_limit();
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let mut asked = Asked::listen()?;
        let mount = tokio::select! {
            mount = begin(reference, &dir, settings) => mount?,
            () = asked.end() => return Err(Error::new(Kind::Kernel, "interrupted before the mount answered")),
        };
        let record = record(&mount, &state, settings, place);
        let done = attend(&mount, &state, &record, ready, &mut asked).await;
        state.forget(&record);
        done
    });
    runtime.shutdown_timeout(LAST_WORK);
    done
}

/// Lets this process open as many files as it may: an open file of the mount holds several of the store, and 1024, as
/// usual, is soon used up. Before threads start, so that none sees the old limit.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

async fn begin(reference: Reference, dir: &Path, settings: &Settings) -> Result<Arc<Mount>> {
    let model: Arc<Model> = open(reference, settings).await?;
    match Mount::open(model.clone(), dir, &settings.mount).await {
        Ok(mount) => Ok(Arc::new(mount)),
        Err(error) => {
            model.close().await;
            Err(error)
        }
    }
}

fn record(mount: &Mount, state: &State, settings: &Settings, place: Place) -> Record {
    let log = match place {
        Place::Foreground => None,
        Place::Background => Some(state.log(mount.dir())),
    };
    let (dir, model) = (mount.dir().to_owned(), mount.model());
    let (reference, digest) = (model.reference.to_string(), model.digest.to_string());
    let store = Some(settings.store.folder.clone());
    Record { dir, reference, digest, process: Process::own(), log, store }
}

/// Sees a mount through from its first answer to its end.
async fn attend(
    mount: &Arc<Mount>,
    state: &State,
    record: &Record,
    ready: impl FnOnce(&Mounted) -> Result<()>,
    asked: &mut Asked,
) -> Result<()> {
    let begun = announce(mount, state, record, ready);
    let answering = match begun {
        Ok(answering) => answering,
        Err(error) => {
            mount.unmount().await?;
            return Err(error);
        }
    };
    tracing::info!(dir = %record.dir.display(), digest = record.digest, "mounted {}", record.reference);
    let done = tokio::select! {
        () = mount.ended() => Ok(()),
        () = asked.end() => mount.unmount().await,
    };
    answering.abort();
    tracing::info!(dir = %record.dir.display(), "unmounted");
    done
}

fn announce(
    mount: &Arc<Mount>,
    state: &State,
    record: &Record,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<tokio::task::JoinHandle<()>> {
    state.note(record)?;
    let answering = state.answer(mount.clone(), record)?;
    let Record { dir, reference, digest, process, .. } = record.clone();
    let model = mount.model();
    let unanswered = model.unanswered.as_ref().map(ToString::to_string);
    let fault = model.loader.fault().map(|fault| format!("{fault}; choose another folder with --store"));
    let warnings = fault.into_iter().collect();
    ready(&Mounted { reference, dir, digest, pid: process.pid, unanswered, warnings })?;
    Ok(answering)
}

/// The signals that ask a process to end.
pub(super) struct Asked {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Asked {
    /// Listens from now on. Must be called within a tokio runtime.
    pub(super) fn listen() -> Result<Self> {
        let listen = |kind| {
            signal(kind).map_err(|error| Error::from_source(Kind::Kernel, "cannot listen for signals", error))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Returns when one of them comes.
    pub(super) async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_may_open_as_many_files_as_the_system_lets_it() {
        raise_descriptor_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}
