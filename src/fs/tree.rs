//! The tree: every name of an artifact, laid out once, never changed again.
//!
//! A plain value with no lock and no input or output. A node's position in the vector is its identity, the
//! same in every process that lays out the same index, so that a mount can be taken over. Asked by
//! [`Model`](super::Model) and by the adapter of floor 5.

use std::collections::BTreeMap;

use crate::error::{Error, Kind, Result};
use crate::index::{Entry, EntryKind, ExtentId, Index};

/// How many single warnings one tree gives; the rest are counted in a last one.
const WARNINGS: usize = 64;

/// A node's identity: its position in the tree, 0 for the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(usize);

impl NodeId {
    /// The folder that the mount shows.
    pub const ROOT: Self = Self(0);

    /// The position, from 0 on.
    #[must_use]
    pub fn position(self) -> usize {
        self.0
    }
}

/// A file, folder or link, and what `stat` says of it.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it is.
    pub kind: NodeKind,
    /// The folder that its first name stands in; the root's is the root.
    pub parent: NodeId,
    /// Its first name there; empty for the root.
    pub name: Box<str>,
    /// Permission bits as the writer recorded them, 0 where unknown.
    pub mode: u32,
    /// Seconds since 1970, 0 where unknown, as for a folder that only its files imply.
    pub mtime: i64,
    /// How many names it has; for a folder two and one for each folder in it, as Unix has it.
    pub nlink: u32,
    /// The layer it comes from, as an index into [`Index::layers`]; `None` for implied folders.
    pub layer: Option<usize>,
}

/// What a node is.
#[derive(Clone, Debug)]
pub enum NodeKind {
    /// A regular file; no extent where it is empty.
    File {
        /// Where its bytes lie.
        extent: Option<ExtentId>,
        /// Its size in bytes.
        size: u64,
    },
    /// A folder with its children, sorted by the bytes of their names.
    Directory(Vec<Child>),
    /// A symbolic link and its target as written.
    Symlink(Box<str>),
}

/// A name in a folder.
#[derive(Clone, Debug)]
pub struct Child {
    /// One component of a path.
    pub name: Box<str>,
    /// What it names.
    pub node: NodeId,
}

/// All names of an artifact.
#[derive(Clone, Debug)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Lays out the names of `index`. Where a path comes twice, the higher layer wins (within a layer the later
    /// entry, as an archive is unpacked), and a line in `warnings` names both.
    ///
    /// Costs a sort of all paths: 100,000 of them take well under a second.
    ///
    /// # Errors
    /// `Invalid` where one path is both a folder and something else, or where a hard link's target is no file
    /// that comes earlier.
    pub fn build(index: &Index, warnings: &mut Vec<String>) -> Result<Self> {
        let mut names = Names::default();
        for entry in &index.entries {
            names.take(entry, index)?;
        }
        if names.winners.is_empty() {
            names.duplicates.push("the artifact has no file at all: an empty folder".to_owned());
        }
        warnings.append(&mut names.duplicates);
        if names.unnamed > 0 {
            warnings.push(format!("and {} more duplicate paths", names.unnamed));
        }
        Layout::of(names).finish()
    }

    /// The node, or `None` where no node has that position.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0)
    }

    /// The identity at `position`, or `None` where the tree is smaller.
    #[must_use]
    pub fn at(&self, position: usize) -> Option<NodeId> {
        (position < self.nodes.len()).then_some(NodeId(position))
    }

    /// How many nodes there are, the root counted.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the root is always there")]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Every node with its identity, in order of position.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().enumerate().map(|(position, node)| (NodeId(position), node))
    }

    /// What `name` is in the folder `parent`; `None` where there is no such name, or `parent` is no folder.
    /// Costs a binary search.
    #[must_use]
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        let children = self.children(parent)?;
        let at = children.binary_search_by(|child| child.name.as_bytes().cmp(name)).ok()?;
        children.get(at).map(|child| child.node)
    }

    /// What stands at `path`, components joined by `/`; the empty path is the root. Links are not followed.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<NodeId> {
        let mut parts = path.split('/').filter(|part| !part.is_empty());
        parts.try_fold(NodeId::ROOT, |node, part| self.lookup(node, part.as_bytes()))
    }

    /// The children of a folder, sorted by the bytes of their names; `None` where `id` is no folder.
    #[must_use]
    pub fn children(&self, id: NodeId) -> Option<&[Child]> {
        match &self.node(id)?.kind {
            NodeKind::Directory(children) => Some(children),
            NodeKind::File { .. } | NodeKind::Symlink(_) => None,
        }
    }

    /// The path of the node's first name below the mount, components joined by `/`; empty for the root.
    #[must_use]
    pub fn path(&self, id: NodeId) -> String {
        let mut parts = Vec::new();
        let mut at = id;
        while let Some(node) = self.node(at).filter(|_| at != NodeId::ROOT) {
            parts.push(&*node.name);
            at = node.parent;
        }
        parts.reverse();
        parts.join("/")
    }

    /// The sum of the sizes of all files, in bytes; a file with several names counts once.
    #[must_use]
    pub fn total(&self) -> u64 {
        let sizes = self.nodes.iter().map(|node| match node.kind {
            NodeKind::File { size, .. } => size,
            NodeKind::Directory(_) | NodeKind::Symlink(_) => 0,
        });
        sizes.fold(0, u64::saturating_add)
    }
}

/// What a path means so far, while the entries go by in order.
#[derive(Clone, Copy)]
enum Meaning<'a> {
    /// A file, by the position of its first entry: hard links share it.
    File(&'a Entry),
    Link(&'a Entry),
    /// A folder, with its own entry where it has one.
    Folder(Option<&'a Entry>),
}

impl<'a> Meaning<'a> {
    fn entry(self) -> Option<&'a Entry> {
        match self {
            Self::File(entry) | Self::Link(entry) => Some(entry),
            Self::Folder(entry) => entry,
        }
    }

    fn is_folder(self) -> bool {
        matches!(self, Self::Folder(_))
    }
}

/// Which entry each path stands for: the winners, and what lost to them.
#[derive(Default)]
struct Names<'a> {
    /// Sorted, so that a folder comes before what is in it and siblings come in the order of their bytes.
    winners: BTreeMap<&'a str, Meaning<'a>>,
    duplicates: Vec<String>,
    unnamed: u64,
}

impl<'a> Names<'a> {
    fn take(&mut self, entry: &'a Entry, index: &Index) -> Result<()> {
        self.imply_folders(&entry.path)?;
        let meaning = match &entry.kind {
            EntryKind::File { .. } => Meaning::File(entry),
            EntryKind::Directory => Meaning::Folder(Some(entry)),
            EntryKind::Symlink(_) => Meaning::Link(entry),
            EntryKind::HardLink(target) => self.file_at(target, &entry.path)?,
            // Found indexes have none.
            EntryKind::Whiteout | EntryKind::Opaque => return Ok(()),
        };
        match self.winners.insert(&entry.path, meaning) {
            Some(loser) if loser.is_folder() != meaning.is_folder() => Err(both_ways(&entry.path)),
            Some(Meaning::Folder(_)) | None => Ok(()),
            Some(loser) => {
                self.warn(entry, loser, index);
                Ok(())
            }
        }
    }

    /// Every folder above `path`, up to the first that is known already.
    fn imply_folders(&mut self, path: &'a str) -> Result<()> {
        let mut rest = path;
        while let Some((parent, _)) = rest.rsplit_once('/') {
            match self.winners.get(parent) {
                Some(Meaning::Folder(_)) => return Ok(()),
                Some(Meaning::File(_) | Meaning::Link(_)) => return Err(both_ways(parent)),
                None => self.winners.insert(parent, Meaning::Folder(None)),
            };
            rest = parent;
        }
        Ok(())
    }

    fn file_at(&self, target: &str, path: &str) -> Result<Meaning<'a>> {
        match self.winners.get(target) {
            Some(file @ Meaning::File(_)) => Ok(*file),
            Some(Meaning::Link(_) | Meaning::Folder(_)) | None => Err(Error::new(
                Kind::Invalid,
                format!("hard link {path:?} points to {target:?}, which is no file that comes before it"),
            )),
        }
    }

    fn warn(&mut self, winner: &Entry, loser: Meaning<'a>, index: &Index) {
        if self.duplicates.len() >= WARNINGS {
            self.unnamed = self.unnamed.saturating_add(1);
            return;
        }
        let lost = loser.entry().map_or_else(String::new, |entry| layer_name(index, entry.layer));
        let won = layer_name(index, winner.layer);
        self.duplicates
            .push(format!("{:?} comes twice: the one of {won} hides the one of {lost}", winner.path));
    }
}

fn both_ways(path: &str) -> Error {
    Error::new(Kind::Invalid, format!("the artifact has {path:?} both as a folder and as a file or link"))
}

fn layer_name(index: &Index, layer: usize) -> String {
    let digest = index.layers.get(layer).map(|layer| layer.blob.digest.to_string());
    digest.map_or_else(|| format!("layer {layer}"), |digest| format!("layer {layer} ({digest})"))
}

/// The nodes, as the sorted winners become them.
struct Layout<'a> {
    nodes: Vec<Node>,
    folders: BTreeMap<&'a str, NodeId>,
    /// The node of each file's entry, by where that entry lies in memory: hard links share the entry.
    files: std::collections::HashMap<*const Entry, NodeId>,
    names: BTreeMap<&'a str, Meaning<'a>>,
}

impl<'a> Layout<'a> {
    fn of(names: Names<'a>) -> Self {
        let root = Node {
            kind: NodeKind::Directory(Vec::new()),
            parent: NodeId::ROOT,
            name: "".into(),
            mode: 0,
            mtime: 0,
            nlink: 2,
            layer: None,
        };
        let mut nodes = Vec::with_capacity(names.winners.len() + 1);
        nodes.push(root);
        let folders = BTreeMap::from([("", NodeId::ROOT)]);
        Self { nodes, folders, files: std::collections::HashMap::new(), names: names.winners }
    }

    fn finish(mut self) -> Result<Tree> {
        for (path, meaning) in std::mem::take(&mut self.names) {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = self.folders.get(folder).copied().ok_or_else(|| both_ways(folder))?;
            let id = self.node_for(path, meaning, parent, name);
            self.adopt(parent, Child { name: name.into(), node: id }, meaning);
        }
        Ok(Tree { nodes: self.nodes })
    }

    fn node_for(&mut self, path: &'a str, meaning: Meaning<'a>, parent: NodeId, name: &str) -> NodeId {
        let next = NodeId(self.nodes.len());
        let id = match meaning {
            Meaning::File(entry) => *self.files.entry(std::ptr::from_ref(entry)).or_insert(next),
            Meaning::Link(_) => next,
            Meaning::Folder(_) => {
                self.folders.insert(path, next);
                next
            }
        };
        match self.nodes.get_mut(id.0) {
            Some(known) => known.nlink = known.nlink.saturating_add(1),
            None => self.nodes.push(node(meaning, parent, name)),
        }
        id
    }

    fn adopt(&mut self, parent: NodeId, child: Child, meaning: Meaning<'_>) {
        let Some(folder) = self.nodes.get_mut(parent.0) else { return };
        if let NodeKind::Directory(children) = &mut folder.kind {
            children.push(child);
        }
        if meaning.is_folder() {
            folder.nlink = folder.nlink.saturating_add(1);
        }
    }
}

fn node(meaning: Meaning<'_>, parent: NodeId, name: &str) -> Node {
    let (kind, nlink) = match meaning.entry().map(|entry| &entry.kind) {
        Some(EntryKind::File { extent, size }) => (NodeKind::File { extent: *extent, size: *size }, 1),
        Some(EntryKind::Symlink(target)) => (NodeKind::Symlink(target.as_str().into()), 1),
        _ => (NodeKind::Directory(Vec::new()), 2),
    };
    let entry = meaning.entry();
    Node {
        kind,
        parent,
        name: name.into(),
        mode: entry.map_or(0, |entry| entry.mode),
        mtime: entry.map_or(0, |entry| entry.mtime),
        nlink,
        layer: entry.map(|entry| entry.layer),
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
