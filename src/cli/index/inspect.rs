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

/// Says what the index of REF has, its own, one that is attached to it or what was made on this machine, or the index in a file.
#[derive(Debug, Args)]
pub(super) struct Inspect {
    #[command(flatten)]
    pub(super) looking: Looking,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// `bound`: part of the model; `attached`: published beside it; `this machine`: made here; `file`.
    how: &'static str,
    /// Its digest; `null` of what was made on this machine, which has a file for each layer.
    index: Option<String>,
    index_bytes: u64,
    head_bytes: Option<u64>,
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
        report("file", Some((&encoded.blob, &encoded.head)), encoded.blob.size, &head)
    } else {
        let found = runtime()?.block_on(OfModel::open(&command.looking.of, settings))?;
        let index = found.index.as_ref().map(|index| (&index.blob, &index.head));
        report(found.how, index, found.size, &found.head)
    };
    if command.looking.json { print::json(&report) } else { print::line(text(&report)) }
}

/// `index`: its blob and that of its head, where it is one.
fn report(how: &'static str, index: Option<(&Blob, &Blob)>, index_bytes: u64, head: &Head) -> Report {
    Report {
        how,
        index: index.map(|(blob, _)| blob.digest.to_string()),
        index_bytes,
        head_bytes: index.map(|(_, head)| head.size),
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
    let (size, names) = (print::size(report.index_bytes), print::count(report.names, "name"));
    let head = report.head_bytes.map(|head| format!(", head {}", print::size(head))).unwrap_or_default();
    let title = match &report.index {
        Some(index) => format!("{index} ({}, {size}{head}, {names})", report.how),
        None => format!("made on this machine ({size}, {names})"),
    };
    format!("{title}\n{}", print::table(&rows))
}
