//! `weightfs mount`: shows a model as a folder, from this process or from one that stays behind.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::Instrument;

use super::args::{self, CommandLine};
use super::background;
use super::{open, print, reference, runtime};
use crate::config::{Environment, Settings};
use crate::error::{Error, Kind, Result};
use crate::fs::Model;
use crate::metrics::TRACED;
use crate::mount::{Mount, vacant};
use crate::oci::Reference;
use crate::repository::Secret;
use crate::repository::credentials::Given;
use crate::serve::control::{self, Answer, Question};
use crate::serve::start::Mounted;
use crate::serve::{Overrides, Process, Record, State};

/// How long threads that still work may take when the process ends.
pub(super) const LAST_WORK: Duration = Duration::from_secs(1);

/// Where a mount is noted and logged.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// In the terminal it was started from.
    Foreground,
    /// Behind it.
    Background,
}

/// Mounts from a process that stays behind, by way of the plane where one runs; returns when the mount answers.
///
/// # Errors
/// Those that the other process met, with their kinds; `Kernel` where it ended without a word.
pub(super) fn in_background(
    command: &args::Mount,
    settings: &Settings,
    begun: Instant,
    line: &CommandLine,
    environment: &Environment,
) -> Result<()> {
    // What can be known without the network is said before it is asked, and in this process.
    reference(&command.reference)?;
    let dir = vacant(&command.dir)?;
    let mounted = match by_the_plane(command, &dir, settings, line, environment)? {
        Some(mounted) => mounted,
        None => background::start(&State::open(&settings.state)?.log(&dir))?,
    };
    // In the foreground they are in the log, which is on standard error.
    for warning in &mounted.warnings {
        print::complain(format_args!("warning: {warning}"));
    }
    report(command, &mounted, begun.elapsed())
}

/// Asks the plane for the mount; `None` where none runs, or where it could not mean the same: the mount has a configuration file of
/// its own, or a proxy with a password, which the plane would note.
fn by_the_plane(
    command: &args::Mount,
    dir: &Path,
    settings: &Settings,
    line: &CommandLine,
    environment: &Environment,
) -> Result<Option<Mounted>> {
    if line.common.config.is_some() || environment.names_a_file() {
        return Ok(None);
    }
    let reference = reference(&command.reference)?;
    let (mut said, secret) = said(&reference, line, environment)?;
    said.insert("mount.allow_other".to_owned(), settings.mount.allow_other.to_string());
    if control::has_password(&said) {
        return Ok(None);
    }
    let (reference, dir) = (reference.to_string(), dir.to_owned());
    let question = Question::Mount { reference, dir, settings: said, secret };
    match control::ask(&settings.serve.control(&settings.state.live), &question)? {
        Some(Answer::Mounted(mounted)) => Ok(Some(mounted)),
        Some(other) => Err(Error::new(Kind::Protocol, format!("'weightfs serve' answered {other:?}"))),
        None => Ok(None),
    }
}

/// What is set where the plane is asked for `reference`, and the credentials among that.
///
/// # Errors
/// `Invalid` where something can't be meant.
pub(super) fn said(
    reference: &Reference,
    line: &CommandLine,
    environment: &Environment,
) -> Result<(Overrides, Option<Secret>)> {
    let mut said = environment.said(&line.flags())?;
    let secret = take_secret(&mut said, reference)?;
    Ok((said, secret))
}

/// The credentials among the settings that are for the reference's repository, in the form of a pull secret: the plane notes
/// settings, and shows them.
fn take_secret(said: &mut Overrides, reference: &Reference) -> Result<Option<Secret>> {
    let Some(text) = said.remove("registry.auth") else { return Ok(None) };
    let given = Given::parse(&text);
    let given = given.map_err(|why| Error::new(Kind::Invalid, format!("registry.auth: {why}")))?;
    // Where another place for credentials is the only one, these do not count.
    match said.contains_key("registry.only_pull_secret") {
        true => Ok(None),
        false => given.only_for(&reference.place),
    }
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
pub(super) fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

async fn begin(reference: Reference, dir: &Path, settings: &Settings) -> Result<Arc<Mount>> {
    let span = tracing::info_span!(target: TRACED, "mount", %reference);
    begin_at(reference, dir, settings).instrument(span).await
}

async fn begin_at(reference: Reference, dir: &Path, settings: &Settings) -> Result<Arc<Mount>> {
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
    fn credentials_go_to_the_plane_as_a_secret_where_they_are_for_the_repository_and_never_as_a_setting() {
        let taken = |reference: &str, more: &str| {
            let said = [("registry.auth", "r.io=me:canary-x"), (more, "x")];
            let mut said: Overrides = said.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
            let secret = take_secret(&mut said, &reference.parse().unwrap()).unwrap();
            assert!(!said.contains_key("registry.auth"));
            secret.is_some()
        };
        assert!(taken("r.io/a/b", "content.warm"));
        assert!(!taken("other.io/a/b", "content.warm"));
        assert!(!taken("oci:/models", "content.warm"));
        assert!(!taken("r.io/a/b", "registry.only_pull_secret"));
    }

    #[test]
    fn a_mount_may_open_as_many_files_as_the_system_lets_it() {
        raise_descriptor_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}
