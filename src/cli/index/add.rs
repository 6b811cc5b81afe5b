//! `weightfs index add`: an artifact that has no index gets one, under a new digest.

use std::time::Instant;

use clap::Args;
use serde::Serialize;

use super::Making;
use crate::cli::args::REFERENCE;
use crate::cli::progress::Progress;
use crate::cli::{pack, print, reference, runtime};
use crate::config::Settings;
use crate::error::{Error, Kind, Result};
use crate::oci::Reference;
use crate::pack::add::{Added, Plain};
use crate::pack::{Destination, Watch};
use crate::repository::push::Target;

/// Reads every layer of REF once, verifies it, and publishes the same layers with an index, under a new digest.
#[derive(Debug, Args)]
pub(super) struct Add {
    #[arg(value_name = "REF", help = REFERENCE)]
    reference: String,
    /// Where the model with its index is put; where this is not given REF's tag is moved to it
    #[arg(value_name = "TARGET")]
    target: Option<String>,
    #[command(flatten)]
    pub(super) making: Making,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reference: String,
    target: String,
    /// The manifest's digest before.
    old: String,
    /// The manifest's digest with the index.
    new: String,
    index: String,
    index_bytes: u64,
    /// Of the layers that were read.
    bytes: u64,
    uploaded_bytes: u64,
    mounted_bytes: u64,
    seconds: f64,
}

/// Gives an artifact an index.
///
/// # Errors
/// `Invalid` where REF or TARGET can't be meant, or REF has an index; those of reading and publishing.
pub(super) fn run(command: &Add, settings: &Settings) -> Result<()> {
    let begun = Instant::now();
    let making = command.making.spans.making(settings)?;
    let source = reference(&command.reference)?;
    let (target, tag) = target(command.target.as_deref(), &source)?;
    let replaced = is_replaced(&source, &target).then_some(&*tag);
    let report = runtime()?.block_on(async {
        let repository = crate::repository::connect(&source, &settings.repository)?;
        let plain = Plain::open(repository, &source).await?;
        for warning in plain.warnings() {
            print::complain(format!("{source}: {warning}"));
        }
        let destination = Destination::new(
            Target::open(&target, &settings.repository)?,
            Some(tag.clone()),
            pack::sharing(&source, &target),
        );
        let progress = Progress::of("reading", plain.bytes().saturating_mul(2));
        progress.name(&source.to_string());
        let bar = progress.clone();
        let watch: Watch = std::sync::Arc::new(move |bytes| bar.add(bytes));
        let added = plain.add(&destination, replaced, &making, &watch).await;
        progress.finish();
        let added = added?;
        for warning in &added.warnings {
            print::complain(format!("{source}: {warning}"));
        }
        Ok::<_, Error>(report(&source, &target, &plain, &added, &destination, begun))
    })?;
    if command.making.json { print::json(&report) } else { print::line(text(&report)) }
}

/// Where it goes: what was typed, else the tag it came from. Of a digest nobody knows whether the tag beside it still
/// stands for it, so that such a tag is moved only by name.
fn target(typed: Option<&str>, source: &Reference) -> Result<(Reference, String)> {
    match typed {
        Some(target) => pack::target(target),
        None if source.digest.is_some() => {
            let doing = match &source.tag {
                None => format!("{source} has no tag that could be moved to the model with its index"),
                Some(tag) => {
                    format!("{source} is read by its digest, and the tag {tag} may stand for another")
                }
            };
            let hint = "name a TARGET, as HOST/REPOSITORY:TAG, or leave off what begins with '@'";
            Err(Error::new(Kind::Invalid, doing).hint(hint))
        }
        None => pack::target(&source.to_string()),
    }
}

/// Whether the tag that is read is the one that is moved. A digest names what is read whatever the tag stands for.
fn is_replaced(source: &Reference, target: &Reference) -> bool {
    source.digest.is_none() && (&source.place, source.which()) == (&target.place, target.which())
}

fn report(
    source: &Reference,
    target: &Reference,
    plain: &Plain,
    added: &Added,
    destination: &Destination,
    begun: Instant,
) -> Report {
    Report {
        reference: source.to_string(),
        target: target.to_string(),
        old: added.old.to_string(),
        new: added.new.to_string(),
        index: added.index.digest.to_string(),
        index_bytes: added.index.size,
        bytes: plain.bytes(),
        uploaded_bytes: destination.done().uploaded,
        mounted_bytes: destination.done().mounted,
        seconds: begun.elapsed().as_secs_f64(),
    }
}

fn text(report: &Report) -> String {
    let seconds = print::seconds(std::time::Duration::from_secs_f64(report.seconds));
    let (bytes, index) = (print::size(report.bytes), print::size(report.index_bytes));
    let rows = [
        vec!["before".to_owned(), report.old.clone()],
        vec!["now".to_owned(), format!("{}@{}", report.target, report.new)],
    ];
    format!("{}\n{bytes} read, index {index}, {seconds}", print::table(&rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn what_is_named_by_a_digest_goes_nowhere_without_a_target() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (source, why) in
            [("r.io/a/b:v1@", "the tag v1 may stand for another"), ("r.io/a/b@", "has no tag")]
        {
            let source = of(&format!("{source}{digest}"));
            let error = target(None, &source).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            let text = error.to_string();
            assert!(text.contains(why) && text.contains("name a TARGET"), "{text}");
            assert_eq!(target(Some("r.io/a/b:v1"), &source).unwrap().1, "v1");
        }
        assert_eq!(target(None, &of("r.io/a/b")).unwrap().1, "latest");
    }

    #[test]
    fn a_tag_is_replaced_where_it_is_read_and_written() {
        let digest = format!("sha256:{}", "0".repeat(64));
        for (source, target, expected) in [
            ("r.io/a/b", "r.io/a/b:latest", true),
            ("r.io/a/b:v1", "r.io/a/b:v1", true),
            ("r.io/a/b:v1", "r.io/a/b:v2", false),
            ("r.io/a/b:v1", "r.io/a/c:v1", false),
            (&*format!("r.io/a/b:v1@{digest}"), "r.io/a/b:v1", false),
        ] {
            assert_eq!(is_replaced(&of(source), &of(target)), expected, "{source} {target}");
        }
    }
}
