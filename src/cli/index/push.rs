//! `weightfs index push`: an index of a model is published beside it, and the model stays as it is.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use super::said::Said;
use super::{Chosen, Making};
use crate::cli::args::REFERENCE;
use crate::cli::{print, reference, runtime};
use crate::config::{Flags, Settings};
use crate::error::{Error, Result};
use crate::index::cover_of;
use crate::pack::Destination;
use crate::pack::attach::attach;
use crate::pack::build::Source;
use crate::pack::publish::unwatched;
use crate::repository::push::Target;

/// Publishes an index of REF in its own repository, as a manifest that refers to it. Who reads the model uses it with
/// '--trust-index'. For who may change the model itself there is 'index add'.
#[derive(Debug, Args)]
pub(super) struct Push {
    #[arg(value_name = "REF", help = REFERENCE)]
    reference: String,
    /// An index that 'index build' has written; where none is given the model's layers are read
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    chosen: Chosen,
    #[command(flatten)]
    making: Making,
}

impl Push {
    pub(super) fn set(&self, flags: &mut Flags) {
        self.chosen.set(flags);
        self.making.asking.set(flags);
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reference: String,
    /// The digest of the model's manifest.
    subject: String,
    /// The digest of the manifest that refers to it.
    digest: String,
    index: String,
    index_bytes: u64,
}

/// Publishes an index beside REF.
///
/// # Errors
/// `Invalid` where REF can't be meant or has an index, or the file's index is not of it; those of reading and publishing.
pub(super) fn run(command: &Push, settings: &Settings) -> Result<()> {
    let (of, making) = (reference(&command.reference)?, command.making.spans.making(settings)?);
    let report = runtime()?.block_on(async {
        let (source, encoded) = match &command.file {
            None => {
                let (source, built) = super::build::built(&of, settings, &making).await?;
                (source, built.encoded)
            }
            Some(path) => {
                let repository = crate::repository::connect(&of, &settings.repository)?;
                let source = Source::open(repository, &of, settings.content.platform.as_ref()).await?;
                let said = Said::of_file(path)?;
                let named = |error: Error| error.context(format!("{} is no index of {of}", path.display()));
                cover_of(&source.artifact, said.head).map_err(named)?;
                (source, said.encoded)
            }
        };
        let target = Target::open(&of, &settings.repository)?;
        let destination = Destination::new(target, None, Vec::new());
        let digest = attach(&source.pinned, &encoded, &destination, &unwatched()).await?;
        Ok::<_, Error>(Report {
            reference: of.to_string(),
            subject: source.pinned.digest.to_string(),
            digest: digest.to_string(),
            index: encoded.blob.digest.to_string(),
            index_bytes: encoded.blob.size,
        })
    })?;
    if command.making.json {
        return print::json(&report);
    }
    let rows = [
        vec!["model".to_owned(), report.subject.clone()],
        vec!["index".to_owned(), format!("{} ({})", report.index, print::size(report.index_bytes))],
        vec!["referrer".to_owned(), report.digest.clone()],
    ];
    print::line(print::table(&rows))
}
