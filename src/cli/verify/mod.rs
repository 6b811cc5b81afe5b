//! `weightfs verify`: the chain from a model's digest to its bytes on this machine, link by link.
//!
//! Of a model, of a mount, or of a folder that was filled with a model's files. Fetches none of the content.

mod folder;
mod report;

use std::path::{Path, PathBuf};

use clap::Args;

use self::report::{Mounted, Report};
use super::args::{Reading, State as StateFlags};
use super::state::{Record, State};
use super::{open, print, reference, runtime};
use crate::config::{Flags, Settings};
use crate::error::{Error, Kind, Result};
use crate::fs::Model;
use crate::mount;
use crate::oci::Reference;
use crate::pull;

#[derive(Debug, Args)]
pub(super) struct Verify {
    /// A model's reference, the folder of a mount, or a folder that 'weightfs pull --output' filled
    #[arg(value_name = "REF|DIR")]
    what: String,
    #[command(flatten)]
    reading: Reading,
    #[command(flatten)]
    state: StateFlags,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

impl Verify {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        self.reading.set(flags);
        self.state.set(flags);
    }
}

/// What was named.
enum Named {
    Model(Reference),
    Mount(Box<Record>, Reference),
    Folder(PathBuf, Reference),
}

impl Named {
    /// The settings to open it with: what is kept of a mount is where the mount keeps it.
    fn settings(&self, settings: &Settings) -> Settings {
        let mut settings = settings.clone();
        if let Self::Mount(record, _) = self {
            settings.store.folder = record.store.clone().unwrap_or(settings.store.folder);
        }
        settings
    }
}

/// Verifies a model, a mount or a folder.
///
/// # Errors
/// `Integrity` where anything is wrong, after it was named; `Invalid` where a folder is none that can be verified; those
/// of opening the model and reading its index.
pub(super) fn run(command: &Verify, settings: &Settings) -> Result<()> {
    let state = State::open(&settings.state)?;
    let named = named(&command.what, &state)?;
    let settings = named.settings(settings);
    let report = runtime()?.block_on(async {
        let model = match &named {
            Named::Model(reference) => open(reference.clone(), &settings).await?,
            Named::Mount(_, pinned) | Named::Folder(_, pinned) => open_known(pinned, &settings).await?,
        };
        let report = Box::pin(report(&model, &named, &state)).await;
        model.close().await;
        report
    })?;
    match command.json {
        true => print::json(&report)?,
        false => print::line(report.text())?,
    }
    if !report.is_wrong() {
        return Ok(());
    }
    let doing = format!("not all of {} is what its digests say", command.what);
    Err(Error::new(Kind::Integrity, doing)
        .hint("what was dropped of the store is fetched again when it is read; wrong files in a folder have to be pulled again"))
}

/// A folder where there is one, else a reference.
fn named(text: &str, state: &State) -> Result<Named> {
    let path = Path::new(text);
    // The folder of a dead mount can't be looked at.
    let record = mount::resolve(path).ok().and_then(|dir| state.find(&dir));
    if let Some(record) = record {
        let mut pinned = reference(&record.reference)?;
        pinned.digest = Some(record.digest.parse()?);
        return Ok(Named::Mount(Box::new(record), pinned));
    }
    if !path.is_dir() {
        return Ok(Named::Model(reference(text)?));
    }
    match xattr::get(path, pull::PULLED).ok().flatten() {
        Some(mark) => {
            let mark = String::from_utf8_lossy(&mark).into_owned();
            let broken =
                |error: Error| error.context(format!("the mark {} of {text} can't be meant", pull::PULLED));
            Ok(Named::Folder(path.to_owned(), reference(&mark).map_err(broken)?))
        }
        None => {
            let doing =
                format!("{text} is a folder that is no mount noted here, and that no pull has filled");
            Err(Error::new(Kind::Invalid, doing)
                .hint("name the model (REF), the folder that was mounted, or one that 'weightfs pull --output' filled"))
        }
    }
}

/// Opens the model under its digest; where nobody answers, as it was opened when it was kept, if it is the same.
async fn open_known(pinned: &Reference, settings: &Settings) -> Result<std::sync::Arc<Model>> {
    let error = match Box::pin(open(pinned.clone(), settings)).await {
        Ok(model) => return Ok(model),
        Err(error) => error,
    };
    if error.kind().leaves_open() {
        let typed = Reference { digest: None, ..pinned.clone() };
        if let Ok(model) = Box::pin(open(typed, settings)).await {
            if Some(&model.digest) == pinned.digest.as_ref() {
                return Ok(model);
            }
            model.close().await;
        }
    }
    Err(error)
}

async fn report(model: &std::sync::Arc<Model>, named: &Named, state: &State) -> Result<Report> {
    let folder = match named {
        Named::Folder(path, _) => Some(folder::check(model, path).await?),
        Named::Model(_) | Named::Mount(..) => None,
    };
    let mut report = Report::of(model, folder).await?;
    if let Named::Mount(record, _) = named {
        report.mount = Some(Mounted::ask(record, state));
    }
    Ok(report)
}
