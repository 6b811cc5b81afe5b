//! `weightfs pull`: a model's files brought here as a whole, into the store or into a folder.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::args::{REFERENCE, Reading};
use super::progress::Progress;
use super::{open, print, reference, runtime};
use crate::config::{Flags, Settings};
use crate::content::bring::Watch;
use crate::content::{Sealing, StoreConfig, Warm};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::fs::Model;
use crate::oci::Reference;
use crate::pull::{self, Choice, Filled, Folder, Plan, UNFINISHED};

/// What is verified on its way; what was here is not fetched again, also after this was killed.
#[derive(Debug, Args)]
pub(super) struct Pull {
    #[arg(value_name = "REF", help = REFERENCE)]
    reference: String,
    /// Put the files into this folder; without it they go into the store, and a later mount needs no network
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Only files whose path matches; * stays within a folder, ** does not, a pattern without / is looked for in every
    /// folder; may be given several times
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// No files whose path matches; may be given several times
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    #[command(flatten)]
    reading: Reading,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    reference: String,
    digest: String,
    /// The folder; `null` for the store.
    output: Option<PathBuf>,
    files: u64,
    bytes: u64,
    /// Content bytes that came from the repository.
    fetched: u64,
    /// Files that stood in the folder already, byte for byte.
    present: u64,
    seconds: f64,
}

impl Pull {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        self.reading.set(flags);
    }
}

/// Brings the files.
///
/// # Errors
/// `NotFound` where none is meant; `Busy` where another pull fills the folder; those of opening the model, of bringing its
/// files and of placing them.
pub(super) fn run(command: &Pull, settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let choice = Choice::new(&command.include, &command.exclude)?;
    let report = runtime()?.block_on(async {
        match &command.output {
            Some(dir) => into_folder(command, settings, &choice, dir).await,
            None => into_store(command, settings, &choice).await,
        }
    })?;
    let report = Report { seconds: begun.elapsed().as_secs_f64(), ..report };
    if command.json { print::json(&report) } else { print::line(report.text(begun.elapsed())) }
}

async fn into_store(command: &Pull, settings: &Settings, choice: &Choice) -> Result<Report> {
    let model = open(reference(&command.reference)?, &quiet(settings, None)).await?;
    let done = async {
        let plan = Plan::new(&model, choice)?;
        let bar = Bar::of(&model, &plan);
        pull::into_store(&model, &plan, &bar.watch()).await?;
        Ok(report(&model, &plan, None, Filled::default()))
    };
    let done = done.await;
    model.close().await;
    done
}

async fn into_folder(command: &Pull, settings: &Settings, choice: &Choice, dir: &Path) -> Result<Report> {
    let reference = reference(&command.reference)?;
    let folder = Arc::new(Folder::open(dir)?);
    let unfinished = dir.join(UNFINISHED);
    let lock = alone(&folder, &unfinished)?;
    let model = open(reference, &quiet(settings, Some(&unfinished))).await?;
    let done = async {
        let plan = Plan::new(&model, choice)?;
        let bar = Bar::of(&model, &plan);
        let filled = pull::into_folder(&model, &plan, &folder, &bar.watch()).await?;
        let pinned = Reference { digest: Some(model.digest.clone()), ..model.reference.clone() };
        folder.mark(pull::PULLED, &pinned.to_string());
        Ok(report(&model, &plan, Some(dir.to_owned()), filled))
    };
    let done = done.await;
    model.close().await;
    if done.is_ok() {
        std::fs::remove_dir_all(&unfinished)
            .storage(|| format!("all files are there, but {} can't be removed", unfinished.display()))?;
    }
    drop(lock);
    done
}

/// Keeps other pulls from the folder while it is filled.
fn alone(folder: &Folder, unfinished: &Path) -> Result<File> {
    folder.folder(UNFINISHED)?;
    let doing = || format!("cannot use {}", unfinished.display());
    let lock = File::open(unfinished).storage(doing)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(std::fs::TryLockError::WouldBlock) => {
            let doing = format!("another pull fills {}", folder.path().display());
            Err(Error::new(Kind::Busy, doing).hint("wait for it, or choose another folder with --output"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(Error::from_source(Kind::Storage, doing(), error)),
    }
}

/// The settings for a process that brings files and reads none, with the store in `folder` where one is given.
fn quiet(settings: &Settings, folder: Option<&Path>) -> Settings {
    let mut settings = settings.clone();
    (settings.content.warm, settings.content.sealing) = (Warm::None, Sealing::Later);
    if let Some(folder) = folder {
        // What is fetched there is what was asked for, so it may take all the room that there is.
        settings.store = StoreConfig { folder: folder.to_owned(), size: Some(u64::MAX) };
    }
    settings
}

fn report(model: &Model, plan: &Plan, output: Option<PathBuf>, filled: Filled) -> Report {
    Report {
        reference: model.reference.to_string(),
        digest: model.digest.to_string(),
        output,
        files: plan.files,
        bytes: plan.bytes,
        fetched: model.metrics.fetched_bytes.value(),
        present: filled.present,
        seconds: 0.0,
    }
}

impl Report {
    fn text(&self, time: Duration) -> String {
        let (files, bytes, fetched) = (self.files, print::size(self.bytes), print::size(self.fetched));
        let place = self.output.as_ref().map_or("the store".to_owned(), |dir| dir.display().to_string());
        let rate = print::size(rate(self.fetched, time));
        let present =
            if self.present > 0 { format!(", {} there already", self.present) } else { String::new() };
        format!(
            "{}: {files} files, {bytes} in {place}{present}; {fetched} fetched, {rate}/s, {}: {}",
            self.reference,
            print::seconds(time),
            self.digest
        )
    }
}

/// Bytes a second.
fn rate(bytes: u64, time: Duration) -> u64 {
    let rate = u128::from(bytes).saturating_mul(1000).checked_div(time.as_millis()).unwrap_or(0);
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// The bar, which goes when this does.
struct Bar(Progress);

impl Bar {
    fn of(model: &Model, plan: &Plan) -> Self {
        let progress = Progress::of("pulling", plan.brought);
        progress.name(&model.reference.to_string());
        Self(progress)
    }

    fn watch(&self) -> Watch {
        let bar = self.0.clone();
        Arc::new(move |bytes| bar.add(bytes))
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish();
    }
}
