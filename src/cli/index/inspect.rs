//! `weightfs index inspect`: what an index has, by its head.

use std::path::Path;

use clap::Args;
use serde::Serialize;

use super::Looking;
use super::said::{OfModel, Said};
use crate::cli::{print, runtime};
use crate::config::Settings;
use crate::error::Result;
use crate::index::format::Head;
use crate::index::{Coding, Compression, Layer};
use crate::oci::Blob;

/// Says what the index of REF has, its own or one that is attached to it, or the index in a file.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    pub(super) looking: Looking,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// `bound`: part of the model; `attached`: published beside it; `file`.
    how: &'static str,
    index: String,
    index_bytes: u64,
    head_bytes: u64,
    names: usize,
    layers: Vec<Described>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    digest: String,
    /// `stored`, `gzip` or `zstd`.
    coding: &'static str,
    stored_bytes: u64,
    content_bytes: u64,
    /// Files that are not empty.
    files: usize,
    chunk_digest_bytes: u64,
    span_bytes: u64,
    checkpoint_bytes: u64,
}

/// Says what an index has.
///
/// # Errors
/// `NotFound` where there is none; those of reading it.
pub(super) fn run(command: &Inspect, settings: &Settings) -> Result<()> {
    let path = Path::new(&command.looking.of);
    let report = if path.is_file() {
        let Said { encoded, head } = Said::of_file(path)?;
        report("file", &encoded.blob, encoded.head.size, &head)
    } else {
        let found = runtime()?.block_on(OfModel::open(&command.looking.of, settings))?;
        report(found.how, &found.index.blob, found.index.head.size, &found.head)
    };
    if command.looking.json { print::json(&report) } else { print::line(text(&report)) }
}

fn report(how: &'static str, blob: &Blob, head_bytes: u64, head: &Head) -> Report {
    Report {
        how,
        index: blob.digest.to_string(),
        index_bytes: blob.size,
        head_bytes,
        names: head.entries.len(),
        layers: head.layers.iter().map(described).collect(),
    }
}

fn described(layer: &Layer) -> Described {
    let (coding, spans) = match &layer.coding {
        Coding::Spans(spans) if spans.how == Compression::Gzip => ("gzip", Some(spans)),
        Coding::Spans(spans) => ("zstd", Some(spans)),
        Coding::Stored | Coding::Streamed(..) => ("stored", None),
    };
    let checkpoints = spans.and_then(|spans| spans.checkpoints.as_ref());
    Described {
        digest: layer.blob.digest.to_string(),
        coding,
        stored_bytes: layer.blob.size,
        content_bytes: layer.content().unwrap_or(0),
        files: layer.extents.len(),
        chunk_digest_bytes: layer.bound.as_ref().map_or(0, |bound| bound.chunks.range.len()),
        span_bytes: spans.map_or(0, |spans| spans.table.range.len()),
        checkpoint_bytes: checkpoints.map_or(0, |checkpoints| checkpoints.range.len()),
    }
}

fn text(report: &Report) -> String {
    let mut rows = vec![
        ["layer", "coding", "stored", "content", "files", "digests", "spans", "checkpoints"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(report.layers.iter().map(|layer| {
        vec![
            layer.digest.clone(),
            layer.coding.to_owned(),
            print::size(layer.stored_bytes),
            print::size(layer.content_bytes),
            layer.files.to_string(),
            print::size(layer.chunk_digest_bytes),
            print::size(layer.span_bytes),
            print::size(layer.checkpoint_bytes),
        ]
    }));
    let (size, head) = (print::size(report.index_bytes), print::size(report.head_bytes));
    let title = format!("{} ({}, {size}, head {head}, {} names)", report.index, report.how, report.names);
    format!("{title}\n{}", print::table(&rows))
}
