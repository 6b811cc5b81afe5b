//! `weightfs volume`: the process of a dynamic volume, whose pod chooses its models. Started by the plane, and by nobody else.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::mount::{Asked, LAST_WORK, raise_descriptor_limit};
use super::runtime;
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::mount::Gallery;
use crate::serve::dynamic::{self, Dynamic};
use crate::serve::start::Mounted;
use crate::serve::{Process, Record, State};

#[derive(Debug, Args)]
pub(super) struct Volume {
    /// The volume's id
    #[arg(value_name = "ID")]
    id: String,
    /// The folder that the plane has made for it
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

impl Volume {
    /// Where it is mounted.
    pub(super) fn dir(&self) -> PathBuf {
        dynamic::models(&self.folder)
    }
}

/// Mounts, calls `ready` when the mount answers, and serves it until it is unmounted or the process is asked to end.
///
/// # Errors
/// Those of the floors below and of `ready`; the mount is gone then.
pub(super) fn serve(
    command: &Volume,
    settings: &Settings,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<()> {
    let state = State::open(&settings.state)?;
    let _ = std::env::set_current_dir("/");
    raise_descriptor_limit();
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let mut asked = Asked::listen()?;
        let volume = tokio::select! {
            volume = Dynamic::open(config(command, settings)) => volume?,
            () = asked.end() => return Err(Error::new(Kind::Kernel, "interrupted before the mount answered")),
        };
        let record = record(command, settings, &volume.gallery, &state);
        let done = attend(&volume.gallery, &state, &record, ready, &mut asked).await;
        state.forget(&record);
        done
    });
    runtime.shutdown_timeout(LAST_WORK);
    done
}

fn config(command: &Volume, settings: &Settings) -> dynamic::Config {
    dynamic::Config {
        volume: command.id.clone(),
        folder: command.folder.clone(),
        repository: settings.repository.clone(),
        content: settings.content.clone(),
        store: settings.store.clone(),
        mount: settings.mount.clone(),
        max_models: settings.serve.max_models,
    }
}

fn record(command: &Volume, settings: &Settings, gallery: &Gallery, state: &State) -> Record {
    let dir = gallery.dir().to_owned();
    let log = Some(state.log(&dir));
    let store = Some(settings.store.folder.clone());
    Record { dir, reference: command.id.clone(), digest: String::new(), process: Process::own(), log, store }
}

/// Sees the mount through from its first answer to its end.
async fn attend(
    gallery: &Arc<Gallery>,
    state: &State,
    record: &Record,
    ready: impl FnOnce(&Mounted) -> Result<()>,
    asked: &mut Asked,
) -> Result<()> {
    let answering = match announce(gallery, state, record, ready) {
        Ok(answering) => answering,
        Err(error) => {
            gallery.unmount().await?;
            return Err(error);
        }
    };
    tracing::info!(dir = %record.dir.display(), "mounted the dynamic volume {}", record.reference);
    let done = tokio::select! {
        () = gallery.ended() => Ok(()),
        () = asked.end() => gallery.unmount().await,
    };
    answering.abort();
    tracing::info!(dir = %record.dir.display(), "unmounted");
    done
}

fn announce(
    gallery: &Arc<Gallery>,
    state: &State,
    record: &Record,
    ready: impl FnOnce(&Mounted) -> Result<()>,
) -> Result<tokio::task::JoinHandle<()>> {
    state.note(record)?;
    let says = gallery.clone();
    let answering = state.answer_with(Arc::new(move || says.status()), record)?;
    let Record { dir, reference, digest, process, .. } = record.clone();
    let (pid, unanswered, warnings) = (process.pid, None, Vec::new());
    ready(&Mounted { reference, dir, digest, pid, unanswered, warnings })?;
    Ok(answering)
}
