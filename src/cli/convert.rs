//! `weightfs convert`: a model's artifact published as a container image, of the same blobs.

use std::sync::Arc;
use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::args::{REFERENCE, Registries, set};
use super::progress::Progress;
use super::{pack, print, reference, runtime};
use crate::config::{Flags, Settings};
use crate::error::{Error, Result};
use crate::index::pass::Spacing;
use crate::oci::{Platform, Reference};
use crate::pack::build::{Contents, Making};
use crate::pack::convert::{Converted, Convertible};
use crate::pack::publish::Done;
use crate::pack::{Destination, Watch};
use crate::repository::push::Target;

/// Publishes REF, whose layers are archives, as a container image. Blobs that the target's registry has are not sent again.
#[derive(Debug, Args)]
pub(super) struct Convert {
    #[arg(value_name = "REF", help = REFERENCE)]
    reference: String,
    /// HOST[:PORT]/REPOSITORY[:TAG], or oci:FOLDER[:TAG] for an image layout on disk; without a tag, latest
    #[arg(value_name = "TARGET")]
    target: String,
    /// Make the image one for this platform, as linux/arm64; where REF is a list of several, that one of them [this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,
    #[command(flatten)]
    registries: Registries,
    /// How long a read may go without progress before it fails, as 60s
    #[arg(long, value_name = "TIME")]
    read_deadline: Option<String>,
    /// Answer with a JSON object
    #[arg(long)]
    json: bool,
}

impl Convert {
    /// What the flags set.
    pub(super) fn set(&self, flags: &mut Flags) {
        set(flags, "content.platform", self.platform.as_ref());
        set(flags, "content.read_deadline", self.read_deadline.as_ref());
        self.registries.set(flags);
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reference: String,
    target: String,
    /// The digest of the manifest that was converted.
    from: String,
    /// The image's digest.
    digest: String,
    /// The index that the image pins; `null` where it has none.
    index: Option<String>,
    /// Of the layers.
    bytes: u64,
    uploaded_bytes: u64,
    mounted_bytes: u64,
    present_bytes: u64,
    seconds: f64,
}

/// Converts an artifact.
///
/// # Errors
/// `Invalid` where REF or TARGET can't be meant; `Unsupported` where no image can be made of REF; those of reading and publishing.
pub(super) fn run(command: &Convert, settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let source = reference(&command.reference)?;
    let (target, tag) = pack::target(&command.target)?;
    let platform = settings.content.platform.clone();
    let scratch = settings.store.folder.join("scratch");
    let making = Making { spacing: Spacing::default(), scratch, contents: Contents::All };
    let report = runtime()?.block_on(async {
        let repository = crate::repository::connect(&source, &settings.repository)?;
        let convertible = Convertible::open(repository, &source, platform.as_ref()).await?;
        let into = Target::open(&target, &settings.repository)?;
        let destination = Destination::new(into, Some(tag), pack::sharing(&source, &target));
        let progress = Progress::of("converting", convertible.bytes().saturating_add(convertible.stored()));
        progress.name(&source.to_string());
        let bar = progress.clone();
        let watch: Watch = Arc::new(move |bytes| bar.add(bytes));
        let platform = platform.unwrap_or_else(Platform::host);
        let converted = convertible.convert(&destination, &platform, &making, &watch).await;
        progress.finish();
        let converted = converted?;
        for warning in &converted.warnings {
            print::complain(format!("{source}: {warning}"));
        }
        Ok::<_, Error>(report(&source, &target, &convertible, &converted, destination.done(), begun))
    })?;
    if command.json { print::json(&report) } else { print::line(text(&report)) }
}

fn report(
    source: &Reference,
    target: &Reference,
    convertible: &Convertible,
    converted: &Converted,
    done: Done,
    begun: Instant,
) -> Report {
    Report {
        reference: source.to_string(),
        target: target.to_string(),
        from: converted.from.to_string(),
        digest: converted.digest.to_string(),
        index: converted.index.as_ref().map(|index| index.digest.to_string()),
        bytes: convertible.stored(),
        uploaded_bytes: done.uploaded,
        mounted_bytes: done.mounted,
        present_bytes: done.present,
        seconds: begun.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let seconds = print::seconds(std::time::Duration::from_secs_f64(report.seconds));
    let index = if report.index.is_some() { "with an index" } else { "no index" };
    format!(
        "{}@{}: {}, {} uploaded, {index}, {seconds}",
        report.target,
        report.digest,
        print::size(report.bytes),
        print::size(report.uploaded_bytes)
    )
}
