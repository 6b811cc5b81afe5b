//! `weightfs inspect`: what a model is made of, read from its manifest, config and archive headers.

use serde::Serialize;

use super::{args, open, print, reference, runtime};
use crate::config::Settings;
use crate::error::Result;
use crate::fs::{IndexedBy, Model, NodeKind};
use crate::oci::config::Description;

/// What there is to say of a model.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    reference: String,
    digest: String,
    /// Whose identifiers it uses.
    dialect: &'static str,
    artifact_type: String,
    model: Description,
    layers: Vec<Layer>,
    files: usize,
    /// The sum of the files' sizes.
    content_bytes: u64,
    /// The sum of the layers' sizes.
    stored_bytes: u64,
    integrity: Vec<Integrity>,
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Layer {
    digest: String,
    size: u64,
    media_type: String,
    kind: &'static str,
    packaging: &'static str,
    /// As the annotation has it.
    path: Option<String>,
    /// Whether it is data for another tool, and not shown.
    hidden: bool,
}

/// A way of verifying that is possible, and what it means for this artifact.
#[derive(Debug, Serialize)]
struct Integrity {
    way: &'static str,
    meaning: &'static str,
}

/// What an artifact allows whose bound index covers every layer.
const BOUND: [Integrity; 1] = [Integrity {
    way: "strict",
    meaning: "the artifact brings the digest of every chunk: each is verified when it arrives",
}];

/// What raw and tar layers without an index allow.
const WAYS: [Integrity; 2] = [
    Integrity {
        way: "deferred",
        meaning: "bytes are served as they come; each layer is proved when it is complete",
    },
    Integrity { way: "strict", meaning: "a layer is served once the whole of it is here and proved" },
];

/// Says what a model is made of.
///
/// # Errors
/// Those of opening the model.
pub(super) fn run(command: &args::Inspect, settings: &Settings) -> Result<()> {
    let reference = reference(&command.reference)?;
    let report = runtime()?.block_on(async {
        let model = open(reference, settings).await?;
        let report = report(&model);
        model.close().await;
        Ok(report)
    })?;
    if command.json { print::json(&report) } else { print::line(text(&report)) }
}

fn report(model: &Model) -> Report {
    let layers: Vec<Layer> = model.artifact.layers.iter().map(layer).collect();
    let is_file = |kind: &NodeKind| matches!(kind, NodeKind::File { .. });
    Report {
        reference: model.reference.to_string(),
        digest: model.digest.to_string(),
        dialect: model.artifact.family.name(),
        artifact_type: model.artifact.artifact_type.clone(),
        model: model.config.as_ref().map(|json| Description::parse(json)).unwrap_or_default(),
        files: model.tree.nodes().filter(|(_, node)| is_file(&node.kind)).count(),
        content_bytes: model.tree.total(),
        stored_bytes: layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size)),
        layers,
        integrity: if bound(model) { BOUND.into() } else { WAYS.into() },
        warnings: model.index.warnings.iter().cloned().chain(unnamed(model)).collect(),
    }
}

/// Says that the files of some layers are not known, where that is so.
fn unnamed(model: &Model) -> Option<String> {
    let why = "some layers are compressed and have no index: their files are known, and counted, once they were read";
    (!model.is_named()).then(|| why.to_owned())
}

/// Whether the artifact itself brings the digests of all files' chunks. An index of this machine, or one that is attached, is
/// no word of the artifact's.
fn bound(model: &Model) -> bool {
    if !matches!(model.artifact.bound_index(), Ok(Some(_))) {
        return false;
    }
    let layers = 0..model.index.layers.len();
    let mut files = layers.filter(|number| model.loader.may_have_files(*number)).peekable();
    files.peek().is_some() && files.all(|number| model.indexed_by(number) == Some(IndexedBy::Artifact))
}

fn layer(layer: &crate::oci::artifact::ModelLayer) -> Layer {
    Layer {
        digest: layer.descriptor.digest.to_string(),
        size: layer.descriptor.size,
        media_type: layer.descriptor.media_type.clone(),
        kind: layer.kind.name(),
        packaging: layer.packaging.name(),
        path: layer.path.clone(),
        hidden: layer.hidden,
    }
}

fn text(report: &Report) -> String {
    let mut rows = vec![
        pair("reference", &report.reference),
        pair("digest", &report.digest),
        pair("dialect", report.dialect),
        pair("type", if report.artifact_type.is_empty() { "none" } else { &report.artifact_type }),
    ];
    rows.extend(description(&report.model));
    rows.push(pair("files", &format!("{}, {}", report.files, print::size(report.content_bytes))));
    let layers = format!("{}, {}", report.layers.len(), print::size(report.stored_bytes));
    rows.push(pair("layers", &layers));
    rows.extend(report.integrity.iter().map(|way| pair(way.way, way.meaning)));
    let mut text = format!("{}\n\n{}", print::table(&rows), print::table(&layer_rows(report)));
    for warning in &report.warnings {
        text.push_str(&format!("\nwarning: {}", print::safe(warning)));
    }
    text
}

fn pair(name: &str, value: &str) -> Vec<String> {
    vec![name.to_owned(), print::safe(value)]
}

/// What the config says, in its own order; what it does not say is left out.
fn description(model: &Description) -> Vec<Vec<String>> {
    let value = serde_json::to_value(model).unwrap_or_default();
    let said = value.as_object().into_iter().flatten();
    said.filter_map(|(name, value)| Some(pair(name, value.as_str()?))).collect()
}

fn layer_rows(report: &Report) -> Vec<Vec<String>> {
    let head = ["LAYER", "KIND", "PACKAGING", "SIZE", "PATH"].map(str::to_owned).to_vec();
    let rows = report.layers.iter().map(|layer| {
        let hidden = if layer.hidden { " (not shown)" } else { "" };
        let path = layer.path.as_deref().unwrap_or("-");
        vec![
            layer.digest.chars().take("sha256:".len() + 12).collect(),
            layer.kind.to_owned(),
            layer.packaging.to_owned(),
            print::size(layer.size),
            print::safe(&format!("{path}{hidden}")),
        ]
    });
    std::iter::once(head).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_config_does_not_say_is_left_out() {
        let model = Description { name: Some("llm".into()), ..Description::default() };
        assert_eq!(description(&model), [pair("name", "llm")]);
    }
}
