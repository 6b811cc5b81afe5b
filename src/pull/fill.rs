//! A model's files brought here, layer by layer: into the store, or through a store of its own into a folder.
//!
//! A folder gets the very files that the loader wrote: verified chunk by chunk on their way, proved, then moved under their
//! names. So what was there when a pull was killed is not fetched again, and nothing is kept twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use super::compare::{Compared, compare};
use super::folder::{Folder, Look};
use super::plan::Choice;
use crate::content::bring::Watch;
use crate::error::{Error, Kind, Result};
use crate::fs::tree::Node;
use crate::fs::{Model, NodeId, NodeKind};
use crate::index::ExtentId;
use crate::oci::Digest;
use crate::range::ContentRange;

/// How many layers are brought at once. One is proved while others come, and small ones come together.
const LAYERS: usize = 4;

/// What of a model is meant.
#[derive(Debug)]
pub struct Plan {
    /// Files that have bytes, by what names their layer in the store: layers of the same content are one.
    layers: BTreeMap<Digest, Layer>,
    /// Everything else: folders, links, empty files.
    others: Vec<(NodeId, String)>,
    /// How many files there are, links and empty ones counted.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that are brought for them: more, where a layer can only be proved as a whole.
    pub brought: u64,
    /// A line for each pattern that takes nothing, while others do.
    pub in_vain: Vec<String>,
}

/// A layer's files, by where they lie in it.
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

/// What became of a folder's files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filled {
    /// Placed now, links and empty files counted.
    pub placed: u64,
    /// There before, byte for byte.
    pub present: u64,
}

impl Plan {
    /// The files of `model`, whose names must all be known, that `choice` takes.
    ///
    /// # Errors
    /// `NotFound` where it takes none.
    pub fn new(model: &Model, choice: &Choice) -> Result<Self> {
        let tree = &model.tree;
        let is_folder = |node: &Node| matches!(node.kind, NodeKind::Directory(_));
        let files = tree.nodes().filter(|(_, node)| !is_folder(node)).map(|(id, _)| tree.path(id));
        let files: Vec<String> = files.collect();
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        choice.among(&files)?;
        let in_vain = choice.in_vain(&files);
        let (layers, others) = (BTreeMap::new(), Vec::new());
        let mut plan = Self { layers, others, files: 0, bytes: 0, brought: 0, in_vain };
        let mut waiting = vec![(NodeId::ROOT, String::new())];
        while let Some((folder, above)) = waiting.pop() {
            for child in tree.children(folder).unwrap_or_default() {
                let path =
                    if above.is_empty() { child.name.to_string() } else { format!("{above}/{}", child.name) };
                let Some(node) = tree.node(child.node) else { continue };
                if is_folder(node) {
                    waiting.push((child.node, path.clone()));
                }
                if choice.takes(&path) {
                    plan.files += u64::from(!is_folder(node));
                    plan.take(model, child.node, path);
                }
            }
        }
        let lens = |ids: Vec<ExtentId>| ids.into_iter().map(|id| model.loader.len(id)).sum::<u64>();
        plan.brought =
            plan.layers.values().flat_map(|layer| layer.wanted(model).into_values()).map(lens).sum();
        Ok(plan)
    }

    /// Refuses paths that begin with this name: it is where a folder's files are until they are whole.
    ///
    /// # Errors
    /// `Invalid`, naming the path.
    pub fn refuse(&self, name: &str) -> Result<()> {
        let files = self.layers.values().flat_map(|layer| layer.files.values()).flat_map(|file| &file.names);
        let mut paths = files.chain(&self.others).map(|(_, path)| path);
        match paths.find(|path| path.split('/').next() == Some(name)) {
            None => Ok(()),
            Some(path) => Err(Error::new(
                Kind::Invalid,
                format!("the model has {path:?}, where pull has its own files"),
            )
            .hint("leave it out (--exclude), or mount the model")),
        }
    }

    /// How many bytes of what is meant are not in the store.
    fn lacking(&self, model: &Model) -> u64 {
        let files = self.layers.values().flat_map(|layer| layer.files.values());
        files.map(|file| model.loader.len(file.id).saturating_sub(model.loader.kept(file.id))).sum()
    }

    fn take(&mut self, model: &Model, node: NodeId, path: String) {
        let placed = model.extent(node).and_then(|id| {
            let (layer, range) = model.loader.kept_at(id)?;
            Some((id, layer.clone(), range))
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
            if model.index.layers.get(*number).is_some_and(|layer| layer.bound.is_none()) {
                *files = model.loader.files_of(*number);
            }
        }
        wanted
    }

    async fn bring(&self, model: &Model, watch: &Watch) -> Result<()> {
        for (layer, files) in self.wanted(model) {
            model.loader.bring(layer, &files, watch).await?;
        }
        Ok(())
    }

    /// Those that are not in the folder yet, and how many are.
    async fn without_present(&self, model: &Model, folder: &Folder) -> Result<(Self, u64)> {
        let (mut left, mut present) = (Self::default(), 0);
        for (range, file) in &self.files {
            let mut names = Vec::new();
            for (node, path) in &file.names {
                let equal = match folder.existing(path)? {
                    Some(found) => is_equal(model, file.id, range.len(), found).await?,
                    None => false,
                };
                match equal {
                    true => present += 1,
                    false => names.push((*node, path.clone())),
                }
            }
            if !names.is_empty() {
                left.files.insert(*range, File { id: file.id, names });
            }
        }
        Ok((left, present))
    }

    async fn fill(&self, model: &Arc<Model>, folder: &Arc<Folder>, watch: &Watch) -> Result<Filled> {
        let (left, present) = self.without_present(model, folder).await?;
        let lens = |layer: &Self| -> u64 {
            let all = layer.wanted(model).into_values().flatten();
            all.map(|id| model.loader.len(id)).sum()
        };
        watch(lens(self).saturating_sub(lens(&left)));
        left.bring(model, watch).await?;
        let (model, folder) = (Arc::clone(model), Arc::clone(folder));
        let placing = tokio::task::spawn_blocking(move || left.place(&model, &folder));
        let placed = placing
            .await
            .map_err(|error| Error::from_source(Kind::Kernel, "placing was interrupted", error))??;
        Ok(Filled { placed, present })
    }

    fn place(&self, model: &Model, folder: &Folder) -> Result<u64> {
        let mut placed = 0;
        for file in self.files.values() {
            let image = model.loader.image(file.id).ok_or_else(|| {
                let names: Vec<&str> = file.names.iter().map(|(_, path)| &**path).collect();
                Error::new(Kind::Storage, format!("{} is gone before it was placed", names.join(", ")))
                    .hint("let nobody else change .weightfs-pull, and pull again")
            })?;
            // The last name gets the image itself.
            let Some(((last, last_path), others)) = file.names.split_last() else { continue };
            for (node, path) in others {
                folder.copy(path, &image, &look(model, *node))?;
            }
            folder.place(last_path, &image, &look(model, *last))?;
            placed += file.names.len() as u64;
        }
        Ok(placed)
    }
}

/// Brings everything that is meant into the store of `model`.
///
/// # Errors
/// `Storage` where the store is too small for it, said before anything is fetched; those of [`Loader::bring`].
///
/// [`Loader::bring`]: crate::content::Loader::bring
pub async fn into_store(model: &Model, plan: &Plan, watch: &Watch) -> Result<()> {
    let room = model.loader.room();
    if plan.brought > room {
        let doing = format!("the store has room for {room} bytes, and {} are meant", plan.brought);
        return Err(Error::new(Kind::Storage, doing).hint(
            "give it more room (--store-size), choose less (--include, --exclude), or pull into a folder (--output)",
        ));
    }
    let each = plan.layers.values().map(|layer| layer.bring(model, watch));
    stream::iter(each).buffer_unordered(LAYERS).try_collect::<()>().await?;
    match plan.lacking(model) {
        0 => Ok(()),
        lacking => {
            let doing = format!("{lacking} bytes were evicted again: others use the rest of the store");
            Err(Error::new(Kind::Storage, doing).hint("give it more room (--store-size), or choose less"))
        }
    }
}

/// Brings everything that is meant into `folder`, beside which the store of `model` must lie. What stands there already, byte
/// for byte, is left alone.
///
/// # Errors
/// Those of [`Folder::place`] and [`Loader::bring`]; what was placed until then stays.
///
/// [`Loader::bring`]: crate::content::Loader::bring
pub async fn into_folder(
    model: &Arc<Model>,
    plan: &Plan,
    folder: &Arc<Folder>,
    watch: &Watch,
) -> Result<Filled> {
    let each: Vec<_> = plan.layers.values().map(|layer| layer.fill(model, folder, watch)).collect();
    let each: Vec<Filled> = stream::iter(each).buffer_unordered(LAYERS).try_collect().await?;
    let mut filled = Filled::default();
    for one in each {
        filled = Filled { placed: filled.placed + one.placed, present: filled.present + one.present };
    }
    for (node, path) in &plan.others {
        match model.tree.node(*node).map(|node| &node.kind) {
            Some(NodeKind::Directory(_)) => {
                folder.folder(path)?;
                continue;
            }
            Some(NodeKind::Symlink(target)) => folder.link(path, target)?,
            Some(NodeKind::File { .. }) => match folder.existing(path)? {
                Some(found) if found.metadata().is_ok_and(|meta| meta.len() == 0) => {
                    filled.present += 1;
                    continue;
                }
                _ => folder.empty(path, &look(model, *node))?,
            },
            None => {}
        }
        filled.placed += 1;
    }
    Ok(filled)
}

async fn is_equal(model: &Model, id: ExtentId, size: u64, found: std::fs::File) -> Result<bool> {
    Ok(matches!(compare(model, Some(id), size, found).await?, Compared::Equal(_)))
}

/// How the node looks as a file of its own: what a reader may do, and what `modctl` would leave beside it.
fn look(model: &Model, node: NodeId) -> Look {
    let (mode, mtime) = model.tree.node(node).map_or((0, 0), |node| (node.mode, node.mtime));
    let marks = model.xattrs(node).filter(|name| name.starts_with("user.modctl."));
    let marks = marks.filter_map(|name| Some((name, model.xattr(node, name)?)));
    Look {
        executable: mode & 0o100 != 0,
        mtime: Some(mtime).filter(|mtime| *mtime != 0),
        marks: marks.collect(),
    }
}
