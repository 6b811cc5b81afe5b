//! A model's files brought here, layer by layer: into the store, or through a store of its own into a folder.
//!
//! A folder gets the very files that the loader wrote: verified chunk by chunk on their way, proved, then moved under their
//! names. So what was there when a pull was killed is not fetched again, and nothing is kept twice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::compare::{Compared, compare};
use super::folder::{Folder, Look};
use super::plan::Choice;
use crate::content::bring::Watch;
use crate::error::{Error, Kind, Result};
use crate::fs::{Model, NodeId, NodeKind};
use crate::index::ExtentId;
use crate::oci::Digest;
use crate::range::ContentRange;

/// How many layers are brought at once. One is proved while others come, and small ones come together.
const LAYERS: usize = 4;

/// What of a model is meant.
#[derive(Debug)]
pub struct Plan {
    /// Files that have bytes: by what names their layer in the store, then by where they lie in it.
    layers: BTreeMap<Digest, Layer>,
    /// Everything else: folders, links, empty files.
    others: Vec<(NodeId, String)>,
    /// How many files there are, links and empty ones counted.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A layer's files. Layers of the same content are one.
#[derive(Debug, Default)]
struct Layer {
    files: BTreeMap<ContentRange, File>,
}

/// A file's content and the names that it has.
#[derive(Clone, Debug)]
struct File {
    id: ExtentId,
    names: Vec<(NodeId, String)>,
}

impl Plan {
    /// The files of `model` that `choice` takes.
    ///
    /// # Errors
    /// `NotFound` where it takes none.
    pub fn new(model: &Model, choice: &Choice) -> Result<Self> {
        let tree = &model.tree;
        let all: Vec<(NodeId, String)> = tree.nodes().map(|(node, _)| (node, tree.path(node))).collect();
        let is_file = |node| !matches!(tree.node(node).map(|node| &node.kind), None | Some(NodeKind::Directory(_)));
        let names: Vec<&str> = all.iter().filter(|(node, _)| is_file(*node)).map(|(_, path)| &**path).collect();
        choice.among(&names)?;
        let mut plan = Self { layers: BTreeMap::new(), others: Vec::new(), files: 0, bytes: 0 };
        for (node, path) in all.into_iter().filter(|(node, path)| *node != NodeId::ROOT && choice.takes(path)) {
            plan.files += u64::from(is_file(node));
            plan.take(model, node, path);
        }
        Ok(plan)
    }

    fn take(&mut self, model: &Model, node: NodeId, path: String) {
        let placed = model.extent(node).and_then(|id| {
            let layer = model.index.layers.get(id.layer)?;
            Some((id, layer.kept_as().clone(), *layer.extents.get(id.extent)?))
        });
        let Some((id, layer, range)) = placed else { return self.others.push((node, path)) };
        self.bytes = self.bytes.saturating_add(range.len());
        let file = self.layers.entry(layer).or_default().files.entry(range);
        file.or_insert_with(|| File { id, names: Vec::new() }).names.push((node, path));
    }
}

impl Layer {
    /// What is to be brought, by layers of the manifest: these files, or, where only the whole of a layer can be proved,
    /// all of its files.
    fn wanted(&self, model: &Model) -> BTreeMap<usize, Vec<ExtentId>> {
        let mut wanted: BTreeMap<usize, Vec<ExtentId>> = BTreeMap::new();
        for file in self.files.values() {
            wanted.entry(file.id.layer).or_default().push(file.id);
        }
        for (number, files) in &mut wanted {
            let layer = model.index.layers.get(*number).filter(|layer| layer.bound.is_none());
            let extents = layer.map_or(0, |layer| layer.extents.len());
            if extents > 0 {
                *files = (0..extents).map(|extent| ExtentId { layer: *number, extent }).collect();
            }
        }
        wanted
    }

    async fn bring(&self, model: &Model, watch: &Watch) -> Result<()> {
        let meant: u64 = self.files.keys().map(ContentRange::len).sum();
        let wanted = self.wanted(model);
        // What else of the layer comes along is not part of what the watcher counts on.
        let watch: Watch = match wanted.values().map(Vec::len).sum::<usize>() == self.files.len() {
            true => Arc::clone(watch),
            false => Arc::new(|_| {}),
        };
        for (layer, files) in wanted {
            model.loader.bring(layer, &files, &watch).await?;
        }
        let _ = meant;
        Ok(())
    }
}

/// Brings everything that is meant into the store of `model`.
///
/// # Errors
/// `Storage` where the store is too small for it, said before anything is fetched; those of [`Loader::bring`].
///
/// [`Loader::bring`]: crate::content::Loader::bring
pub async fn into_store(model: &Model, plan: &Plan, watch: &Watch) -> Result<()> {
    let limit = model.loader.room();
    if plan.bytes > limit {
        let doing = format!("the store has room for {limit} bytes, and {} are meant", plan.bytes);
        return Err(Error::new(Kind::Storage, doing)
            .hint("give it more room (--store-size), choose less (--include, --exclude), or pull into a folder (--output)"));
    }
    let each = plan.layers.values().map(|layer| layer.bring(model, watch));
    stream::iter(each).buffer_unordered(LAYERS).try_collect().await
}
