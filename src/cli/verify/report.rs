//! What there is to say of a model's chain of digests, and how it reads.

use std::collections::HashMap;
use std::sync::Arc;

use serde::Serialize;

use super::folder::Found;
use crate::cli::print;
use crate::cli::progress::Progress;
use crate::cli::state::{Record, State};
use crate::content::Standing;
use crate::content::store::audit::Checked;
use crate::error::Result;
use crate::fs::{IndexedBy, Model, NodeId, NodeKind};
use crate::index::ExtentId;

/// How many names of each sort are printed; JSON has them all.
const NAMES: usize = 20;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Report {
    reference: String,
    digest: String,
    /// What says that this digest is meant: `the reference`, or `the tag TAG`, which may move.
    pinned_by: String,
    dialect: &'static str,
    artifact_type: String,
    /// `null` where the artifact brings no digests of chunks.
    index: Option<Index>,
    /// How many layers an index covers that is attached to the model, and how many one that was made on this machine.
    indexed_by_attached: usize,
    indexed_here: usize,
    files: Vec<File>,
    /// Where a mount was named.
    pub(super) mount: Option<Mounted>,
    /// Where a folder that was filled was named.
    folder: Option<Found>,
}

/// The bound index.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    digest: String,
    head: String,
    /// How many layers that have files it covers, and how many there are.
    covered: usize,
    layers: usize,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct File {
    path: String,
    layer: String,
    size: u64,
    /// `bound index`, `attached index`, `layer digest, on this machine` or `nothing yet`. Of a file in a folder: `layer digest`,
    /// whose index has said so, or `nothing` where it is not there or has no digest of its own.
    proved_by: &'static str,
    /// Bytes that are here and not known to be wrong: in the store, or in the folder that was named.
    kept_bytes: u64,
    /// Ranges that were wrong in the store, both ends included.
    wrong: Vec<String>,
}

/// What the process that serves a mount says.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mounted {
    dir: String,
    pid: u32,
    /// As `list` has it; `dead` or `silent` where the process does not answer.
    standing: String,
    poisoned: Vec<String>,
    refused: Vec<String>,
}

impl Mounted {
    /// Asks the process that serves the mount.
    pub(super) fn ask(record: &Record, state: &State) -> Self {
        let status = state.ask(record);
        let silent = || if record.process.runs() { "silent" } else { "dead" }.to_owned();
        Self {
            dir: record.dir.display().to_string(),
            pid: record.process.pid,
            standing: status.as_ref().map_or_else(silent, |status| status.standing.clone()),
            poisoned: status.as_ref().map(|status| status.poisoned.clone()).unwrap_or_default(),
            refused: status.map(|status| status.refused).unwrap_or_default(),
        }
    }
}

impl Report {
    /// What is known of the model: of its files by `folder`, where they are looked at there, else after reading back all that is
    /// kept of it.
    ///
    /// # Errors
    /// Those of reading the bound index.
    pub(super) async fn of(model: &Arc<Model>, folder: Option<Found>) -> Result<Self> {
        let files = match &folder {
            Some(found) => files_of(model, found),
            None => files(model).await?,
        };
        let layers = 0..model.index.layers.len();
        let by = |who| layers.clone().filter(|layer| model.indexed_by(*layer) == Some(who)).count();
        let pinned_by = match (&model.reference.digest, &model.reference.tag) {
            (Some(_), _) => "the reference".to_owned(),
            (None, tag) => format!("the tag {}", tag.as_deref().unwrap_or("latest")),
        };
        Ok(Self {
            reference: model.reference.to_string(),
            digest: model.digest.to_string(),
            pinned_by,
            dialect: model.artifact.family.name(),
            artifact_type: model.artifact.artifact_type.clone(),
            index: index(model)?,
            indexed_by_attached: by(IndexedBy::Attached),
            indexed_here: by(IndexedBy::Machine),
            files,
            mount: None,
            folder,
        })
    }

    /// Whether anything is not what its digests say.
    pub(super) fn is_wrong(&self) -> bool {
        let mount = |mount: &Mounted| !mount.poisoned.is_empty() || !mount.refused.is_empty();
        self.files.iter().any(|file| !file.wrong.is_empty())
            || self.mount.as_ref().is_some_and(mount)
            || self.folder.as_ref().is_some_and(|folder| !folder.wrong.is_empty())
    }

    /// For people.
    pub(super) fn text(&self) -> String {
        let mut rows = vec![
            row("reference", &self.reference),
            row("digest", &format!("{}, pinned by {}", self.digest, self.pinned_by)),
            row("dialect", &self.dialect_text()),
        ];
        rows.extend(self.index_rows());
        if let Some(mount) = &self.mount {
            rows.push(row("mount", &format!("{}: {}, process {}", mount.dir, mount.standing, mount.pid)));
        }
        let head = ["FILE", "SIZE", "HERE", "PROVED BY", "LAYER"].map(str::to_owned).to_vec();
        let files = self.files.iter().map(File::row);
        let table: Vec<_> = std::iter::once(head).chain(files).collect();
        let mut text = format!("{}\n\n{}", print::table(&rows), print::table(&table));
        for line in self.lines() {
            text.push_str(&format!("\n{}", print::safe(&line)));
        }
        text
    }

    fn dialect_text(&self) -> String {
        match self.artifact_type.as_str() {
            "" => self.dialect.to_owned(),
            artifact_type => format!("{} ({artifact_type})", self.dialect),
        }
    }

    fn index_rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        let layers = |count: usize| print::count(count, "layer");
        match &self.index {
            Some(index) => {
                let of = format!("{} of {}", index.covered, layers(index.layers));
                rows.push(row("index", &format!("{}, covers {of}", index.digest)));
                rows.push(row("head", &index.head));
            }
            None if self.indexed_by_attached + self.indexed_here > 0 => {
                rows.push(row("index", "none of the model's own"));
            }
            None => rows.push(row("index", "none: a layer is proved when all of it is here")),
        }
        for (name, count) in
            [("attached index", self.indexed_by_attached), ("index of this machine", self.indexed_here)]
        {
            rows.extend((count > 0).then(|| row(name, &format!("covers {}", layers(count)))));
        }
        rows
    }

    /// What is wrong, and what there is to say of a folder.
    fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for file in self.files.iter().filter(|file| !file.wrong.is_empty()) {
            lines.push(format!("WRONG in the store, dropped: {} bytes {}", file.path, file.wrong.join(", ")));
        }
        if let Some(mount) = &self.mount {
            name(&mut lines, "POISONED", &mount.poisoned);
            name(&mut lines, "REFUSED", &mount.refused);
        }
        if let Some(folder) = &self.folder {
            name(&mut lines, "WRONG in the folder", &folder.wrong);
            name(&mut lines, "cannot be proved by itself", &folder.unprovable);
            name(&mut lines, "not there", &folder.missing);
            name(&mut lines, "not of the model", &folder.extra);
            let right = print::count(folder.right, "file");
            lines.push(format!("{right} in the folder: what the model has"));
        }
        lines
    }
}

impl File {
    fn row(&self) -> Vec<String> {
        vec![
            print::safe(&self.path),
            print::size(self.size),
            print::percent(self.kept_bytes, self.size),
            self.proved_by.to_owned(),
            self.layer.chars().take("sha256:".len() + 12).collect(),
        ]
    }
}

fn row(name: &str, value: &str) -> Vec<String> {
    vec![name.to_owned(), print::safe(value)]
}

fn name(lines: &mut Vec<String>, what: &str, names: &[String]) {
    lines.extend(names.iter().take(NAMES).map(|name| format!("{what}: {name}")));
    if names.len() > NAMES {
        lines.push(format!("{what}: {} more", names.len() - NAMES));
    }
}

fn index(model: &Model) -> Result<Option<Index>> {
    let Some(index) = model.artifact.bound_index()? else { return Ok(None) };
    let layers = || {
        let all = model.index.layers.iter().enumerate();
        all.filter(|(_, layer)| !layer.extents.is_empty()).map(|(number, _)| number)
    };
    Ok(Some(Index {
        digest: index.blob.digest.to_string(),
        head: index.head.digest.to_string(),
        covered: layers().filter(|number| model.indexed_by(*number) == Some(IndexedBy::Artifact)).count(),
        layers: layers().count(),
    }))
}

/// Every file as it was found in a folder.
fn files_of(model: &Model, found: &Found) -> Vec<File> {
    let of_tree = model.tree.nodes().filter_map(|(id, node)| match node.kind {
        NodeKind::File { size, .. } => Some((id, node.layer, size)),
        _ => None,
    });
    let file = |(id, layer, size): (NodeId, Option<usize>, u64)| {
        let path = model.tree.path(id);
        let share = found.shares.get(&path).copied().unwrap_or_default();
        let layer = layer.and_then(|number| model.index.layers.get(number));
        File {
            path,
            layer: layer.map(|layer| layer.blob.digest.to_string()).unwrap_or_default(),
            size,
            proved_by: share.proved_by,
            kept_bytes: share.bytes,
            wrong: Vec::new(),
        }
    };
    of_tree.map(file).collect()
}

/// Every file by its first name, with what is kept of it read back.
async fn files(model: &Arc<Model>) -> Result<Vec<File>> {
    let of_tree = model.tree.nodes().filter_map(|(id, node)| match node.kind {
        NodeKind::File { extent, size } => Some((id, node.layer, extent, size)),
        _ => None,
    });
    let found: Vec<_> = of_tree.collect();
    let progress = Progress::of("reading", model.tree.total());
    let mut checked: HashMap<ExtentId, Checked> = HashMap::new();
    for (id, _, extent, size) in &found {
        progress.name(&model.tree.path(*id));
        if let Some(extent) = extent {
            checked.insert(*extent, model.loader.recheck(*extent).await?);
        }
        progress.add(*size);
    }
    progress.finish();
    // What a layer is proved by is known only when its records were looked at.
    let file = |(id, layer, extent, size): (NodeId, Option<usize>, Option<ExtentId>, u64)| {
        let checked = extent.and_then(|extent| checked.remove(&extent)).unwrap_or_default();
        let layer = layer.and_then(|number| Some((number, model.index.layers.get(number)?)));
        File {
            path: model.tree.path(id),
            layer: layer.map(|(_, layer)| layer.blob.digest.to_string()).unwrap_or_default(),
            size,
            proved_by: layer.map_or("nothing yet", |(number, _)| match model.indexed_by(number) {
                Some(IndexedBy::Artifact) => "bound index",
                Some(IndexedBy::Attached) => "attached index",
                // It was made when the layer was proved, and says what that proof is of.
                _ if model.loader.standing(number) == Standing::Proved => "layer digest, on this machine",
                _ => "nothing yet",
            }),
            kept_bytes: checked.right,
            wrong: checked.dropped.iter().map(ToString::to_string).collect(),
        }
    };
    Ok(found.into_iter().map(file).collect())
}
