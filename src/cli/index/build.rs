//! `weightfs index build`: every layer of a model goes by once, and what it was found to be is written as an index.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::{Asking, Chosen, Spans};
use crate::cli::args::{REFERENCE, set};
use crate::cli::progress::Progress;
use crate::cli::{print, reference, runtime};
use crate::config::{Flags, Settings};
use crate::content::Store;
use crate::error::{Error, Kind, Result};
use crate::index::format::Encoded;
use crate::index::{Coding, Entry, local};
use crate::oci::Reference;
use crate::pack::Watch;
use crate::pack::build::{Built, Making, Source, build};

/// Reads every layer of REF once, verifies it, and keeps what is needed to read compressed layers at any place: for the mounts of
/// this machine, or in a file for 'index push'.
#[derive(Debug, Args)]
pub(super) struct Build {
    #[arg(value_name = "REF", help = REFERENCE)]
    reference: String,
    /// Write the index into this file, in place of what is there, and not into the store of this machine
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Where fetched bytes and indexes are kept
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    store: Option<String>,
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    making: Spans,
    #[command(flatten)]
    asking: Asking,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

impl Build {
    pub(super) fn set(&self, flags: &mut Flags) {
        self.chosen.set(flags);
        self.asking.set(flags);
        set(flags, "store.folder", self.store.as_ref());
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reference: String,
    /// The manifest's digest.
    digest: String,
    index: String,
    index_bytes: u64,
    /// Of the layers that were read.
    bytes: u64,
    /// What they decode to.
    content_bytes: u64,
    seconds: f64,
}

/// Makes the index of REF.
///
/// # Errors
/// `Invalid` where REF can't be meant or has an index; `Integrity` where a layer is not what its digest says; `Storage`
/// where the file can't be written; those of reading.
pub(super) fn run(command: &Build, settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let (source, making) = (reference(&command.reference)?, command.making.making(settings)?);
    let (source, built) = runtime()?.block_on(built(&source, settings, &making))?;
    match &command.output {
        Some(path) => write(&built.encoded, path)?,
        None => keep(&built, &source, settings)?,
    }
    let content = built.index.layers.iter().filter_map(crate::index::Layer::content);
    let report = Report {
        reference: command.reference.clone(),
        digest: source.pinned.digest.to_string(),
        index: built.encoded.blob.digest.to_string(),
        index_bytes: built.encoded.blob.size,
        bytes: source.bytes(),
        content_bytes: content.fold(0, u64::saturating_add),
        seconds: begun.elapsed().as_secs_f64(),
    };
    if command.json { print::json(&report) } else { print::line(text(&report)) }
}

/// The index of the artifact that `reference` names, with a bar on the terminal.
///
/// # Errors
/// As [`run`].
pub(super) async fn built(
    reference: &Reference,
    settings: &Settings,
    making: &Making,
) -> Result<(Source, Built)> {
    let repository = crate::repository::connect(reference, &settings.repository)?;
    let source = Source::open(repository, reference, settings.content.platform.as_ref()).await?;
    let progress = Progress::of("reading", source.bytes());
    progress.name(&reference.to_string());
    let bar = progress.clone();
    let watch: Watch = std::sync::Arc::new(move |bytes| bar.add(bytes));
    let built = build(&*source.repository, &source.artifact, source.found.clone(), making, &watch).await;
    progress.finish();
    let built = built?;
    for warning in &built.index.warnings {
        print::complain(format!("{reference}: {warning}"));
    }
    Ok((source, built))
}

/// Keeps the index of each compressed layer for the mounts of this machine. The layers' own bytes have just been proved by
/// who asks.
fn keep(built: &Built, source: &Source, settings: &Settings) -> Result<()> {
    let (store, who) = (Store::open(&settings.store)?, source.repository.identity());
    let layers = built.index.layers.iter().zip(&built.digests).zip(source.artifact.visible());
    for (number, ((layer, digests), described)) in layers.enumerate() {
        if matches!(layer.coding, Coding::Stored) {
            continue;
        }
        let own = built.index.entries.iter().filter(|entry| entry.layer == number);
        let own: Vec<Entry> = own.cloned().collect();
        let digest = &layer.blob.digest;
        store.keep_index(&who, digest, &described.reading(), |file| {
            local::write(file, layer, &own, digests.clone())
        })?;
        store.set_proved(&who, digest);
    }
    Ok(())
}

/// Writes an index beside `path` and puts it there when all of it is written.
fn write(index: &Encoded, path: &Path) -> Result<()> {
    let failed = |error| Error::from_source(Kind::Storage, format!("cannot write {}", path.display()), error);
    let beside = path.with_added_extension(format!("{}.tmp", std::process::id()));
    let write = |mut file: File| {
        index.each(&mut |piece| file.write_all(piece).map_err(failed))?;
        file.sync_data().and_then(|()| std::fs::rename(&beside, path)).map_err(failed)
    };
    let opened = OpenOptions::new().write(true).create_new(true).open(&beside).map_err(failed)?;
    write(opened).inspect_err(|_| {
        let _ = std::fs::remove_file(&beside);
    })
}

fn text(report: &Report) -> String {
    let seconds = print::seconds(std::time::Duration::from_secs_f64(report.seconds));
    let (bytes, content) = (print::size(report.bytes), print::size(report.content_bytes));
    let index = print::size(report.index_bytes);
    format!("{}\n{bytes} read, {content} of content, index {index}, {seconds}", report.index)
}
