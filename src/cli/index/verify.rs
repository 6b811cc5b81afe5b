//! `weightfs index verify`: whether an index is in order, and says of a model what its layers are.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::Looking;
use super::said::{OfModel, Said};
use crate::cli::progress::Progress;
use crate::cli::{print, runtime};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::index::format::Head;
use crate::index::sections;
use crate::pack::Watch;
use crate::pack::build::compare;
use crate::repository::Repository;

/// Checks every section of an index. That of REF, its own, one that is attached to it or what was made on this machine, is also compared with the layers, which are read once for their content and
/// once for their spans.
#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    pub(super) looking: Looking,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Its digest; `made on this machine` where it stands nowhere else.
    index: String,
    layers: usize,
    names: usize,
    /// Whether the layers were read and are what the index says.
    layers_read: bool,
}

/// Checks an index.
///
/// # Errors
/// `Integrity` and `Invalid` where something is wrong, naming it; `NotFound` where there is no index; those of reading.
pub(super) fn run(command: &Verify, settings: &Settings) -> Result<()> {
    let path = Path::new(&command.looking.of);
    let report = runtime()?.block_on(async {
        if path.is_file() {
            let Said { encoded, head } = Said::of_file(path)?;
            check(None, &head).await?;
            return Ok(report(encoded.blob.digest.to_string(), &head, false));
        }
        let found = OfModel::open(&command.looking.of, settings).await?;
        let named = |error: Error| {
            error.context(format!("the index of {} ({}: {})", command.looking.of, found.how, found.name()))
        };
        check(Some(&*found.opened.repository), &found.head).await.map_err(named)?;
        layers(&found, &command.looking.of, settings).await.map_err(named)?;
        Ok::<_, Error>(report(found.name(), &found.head, true))
    })?;
    if command.looking.json {
        return print::json(&report);
    }
    let also = if report.layers_read { ", and says what the layers are" } else { "" };
    let (layers, names) = (print::count(report.layers, "layer"), print::count(report.names, "name"));
    print::line(format!("{}: {layers}, {names}, in order{also}", report.index))
}

fn report(index: String, head: &Head, layers_read: bool) -> Report {
    Report { index, layers: head.layers.len(), names: head.entries.len(), layers_read }
}

async fn check(repository: Option<&dyn Repository>, head: &Head) -> Result<()> {
    for layer in &head.layers {
        let checked = sections::check(repository, layer).await;
        checked.map_err(|error| error.context(format!("what it says of layer {}", layer.blob.digest)))?;
    }
    Ok(())
}

/// Reads the layers that the index covers, and compares.
async fn layers(found: &OfModel, name: &str, settings: &Settings) -> Result<()> {
    let covered = crate::index::cover_of(&found.opened.artifact, found.head.clone())?;
    let stored = covered.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.blob.size));
    let progress = Progress::of("reading", stored.saturating_mul(2));
    progress.name(name);
    let bar = progress.clone();
    let watch: Watch = std::sync::Arc::new(move |bytes| bar.add(bytes));
    let scratch = settings.store.folder.join("scratch");
    let compared =
        compare(&*found.opened.repository, &found.opened.artifact, &covered, scratch, &watch).await;
    progress.finish();
    let compared = compared?;
    for warning in &compared.warnings {
        print::complain(format!("{name}: {warning}"));
    }
    match compared.differs {
        None => Ok(()),
        Some(what) => Err(Error::new(Kind::Integrity, what)),
    }
}
