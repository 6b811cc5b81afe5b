//! `weightfs pull`: a model's files brought here as a whole, into the store or into a folder.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use super::args::{REFERENCE, Reading};
use super::progress::Progress;
use super::{open_over, print, reference, runtime};
use crate::config::{Flags, Settings};
use crate::content::bring::Watch;
use crate::content::store::Sharing;
use crate::content::{Sealing, Store, StoreConfig, Warm};
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
    let (reference, store) = (reference(&command.reference)?, Store::open(&settings.store)?);
    if let Some(fault) = store.fault() {
        return Err(Error::new(Kind::Storage, format!("cannot pull into the store: {fault}"))
            .hint("choose another folder with --store, or a folder for the files with --output"));
    }
    let model = open_over(store, reference, &quiet(settings)).await?;
    let done = async {
        model.all_named().await?;
        let plan = planned(&model, choice)?;
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
    // It may take all the room that there is, and what is found in it proves nothing: the folder may be from anywhere.
    let store = StoreConfig { folder: unfinished.clone(), size: Some(u64::MAX) };
    let store = Store::open_as(&store, Sharing::Nothing)
        .map_err(|error| error.context("cannot use the folder for what is not whole yet"))?;
    let model = open_over(store, reference, &quiet(settings)).await.map_err(|error| {
        error.context(format!("cannot fill {}, for which nothing is taken from the store", dir.display()))
    })?;
    let done = async {
        model.all_named().await?;
        let plan = planned(&model, choice)?;
        plan.refuse(UNFINISHED)?;
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

/// What is meant. A pattern that takes nothing while others do is named.
fn planned(model: &Model, choice: &Choice) -> Result<Plan> {
    let plan = Plan::new(model, choice)?;
    plan.in_vain.iter().for_each(|line| print::complain(format_args!("warning: {line}")));
    Ok(plan)
}

/// Keeps other pulls from the folder while it is filled, and refuses what an earlier pull did not leave there.
fn alone(folder: &Folder, unfinished: &Path) -> Result<File> {
    folder.folder(UNFINISHED)?;
    let doing = || format!("cannot use {}", unfinished.display());
    let lock = File::open(unfinished).storage(doing)?;
    match lock.try_lock() {
        Ok(()) => {
            let (locked, there) = (lock.metadata().storage(doing)?, std::fs::symlink_metadata(unfinished));
            if !there.is_ok_and(|there| (there.dev(), there.ino()) == (locked.dev(), locked.ino())) {
                // The pull that had it has just removed it.
                return alone(folder, unfinished);
            }
            refuse_foreign(unfinished, &["layers", "small", "admitted"])?;
            Ok(lock)
        }
        Err(std::fs::TryLockError::WouldBlock) => {
            let doing = format!("another pull fills {}", folder.path().display());
            Err(Error::new(Kind::Busy, doing).hint("wait for it, or choose another folder with --output"))
        }
        Err(std::fs::TryLockError::Error(error)) => Err(Error::from_source(Kind::Storage, doing(), error)),
    }
}

/// Refuses what no pull of this user has made: it would be followed, or removed at the end. `names`: what may stand there;
/// anything, where it is empty.
fn refuse_foreign(folder: &Path, names: &[&str]) -> Result<()> {
    let doing = || format!("cannot use {}", folder.display());
    for entry in std::fs::read_dir(folder).storage(doing)? {
        let entry = entry.storage(doing)?;
        let meta = entry.metadata().storage(doing)?;
        let known = names.is_empty() || names.iter().any(|name| entry.file_name() == *name);
        let ours = meta.uid() == nix::unistd::geteuid().as_raw() && !meta.is_symlink();
        if !(known && ours) {
            let doing = format!("{} is nothing that a pull of this user has left", entry.path().display());
            return Err(
                Error::new(Kind::Invalid, doing).hint("move it away, or choose another folder with --output")
            );
        }
        if meta.is_dir() {
            refuse_foreign(&entry.path(), &[])?;
        }
    }
    Ok(())
}

/// The settings for a process that brings files and reads none.
fn quiet(settings: &Settings) -> Settings {
    let mut settings = settings.clone();
    (settings.content.warm, settings.content.sealing) = (Warm::None, Sealing::Later);
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
        let files = print::count(self.files, "file");
        let (bytes, fetched) = (print::size(self.bytes), print::size(self.fetched));
        let place = self.output.as_ref().map_or("the store".to_owned(), |dir| dir.display().to_string());
        let rate = print::size(rate(self.fetched, time));
        let present =
            if self.present > 0 { format!(", {} there already", self.present) } else { String::new() };
        format!(
            "{}: {files}, {bytes} in {place}{present}; {fetched} fetched, {rate}/s, {}: {}",
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
