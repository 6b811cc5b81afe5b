//! The tree: every name of an artifact, laid out once, never changed again.
//!
//! A plain value with no input or output, and no lock but where names still [come](super::growth). A node's position is its
//! identity, the same in every process that lays out the same index, so that a mount can be taken over. Asked by
//! [`Model`](super::Model) and by the adapter of floor 5.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::growth::Growing;
use crate::content::stream::Coming;
use crate::error::{Error, Kind, Result};
use crate::index::{Allowance, Entry, EntryKind, ExtentId, Index};

/// How many single warnings one tree gives; the rest are counted in a last one.
const WARNINGS: usize = 64;

/// A node's identity: its position in the tree, 0 for the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub(super) usize);

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
#[derive(Debug)]
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
    pub(super) nlink: AtomicU32,
    /// The layer it comes from, as an index into [`Index::layers`]; `None` for implied folders.
    pub layer: Option<usize>,
}

impl Node {
    /// How many names it has; for a folder two and one for each folder in it, as Unix has it. Grows only while names come.
    #[must_use]
    pub fn nlink(&self) -> u32 {
        self.nlink.load(Ordering::Relaxed)
    }

    /// Counts another name.
    pub(super) fn link(&self) {
        self.nlink.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn is_folder(&self) -> bool {
        matches!(self.kind, NodeKind::Directory(_))
    }
}

/// What a node is.
#[derive(Debug)]
pub enum NodeKind {
    /// A regular file; no extent where it is empty.
    File {
        /// Where its bytes lie.
        extent: Option<ExtentId>,
        /// Its size in bytes.
        size: u64,
    },
    /// A folder.
    Directory(Children),
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

/// The children of a folder, sorted by the bytes of their names; not said before all of them are known.
#[derive(Debug, Default)]
pub struct Children(OnceLock<Box<[Child]>>);

impl Children {
    /// Says what the folder has, once and for all.
    pub(super) fn set(&self, children: Vec<Child>) {
        // Said once: by who lays the tree out, or by who saw the last name come.
        let _ = self.0.set(children.into());
    }
}

/// All names of an artifact.
#[derive(Debug)]
pub struct Tree {
    nodes: boxcar::Vec<Node>,
    growing: Option<Growing>,
}

/// What a name is, as far as it is known.
#[derive(Debug)]
pub enum Look {
    /// A node.
    Here(NodeId),
    /// Nothing, and never will be.
    Absent,
    /// It hangs on names that this layer may still bring.
    Later(usize),
    /// It hangs on names of a layer that can't be had.
    Unknown(Error),
}

impl Tree {
    /// Lays out the names of `index`. Where a path comes twice, the higher layer wins (within a layer the later
    /// entry, as an archive is unpacked), and a line in `warnings` names both.
    ///
    /// Costs a sort of all paths: 100,000 of them take well under a second.
    ///
    /// # Errors
    /// `Invalid` where one path is both a folder and something else, or where a hard link's target is no file
    /// that comes earlier; `Unsupported` where the names, and the folders that they imply, take more memory than they may.
    pub fn build(index: &Index, warnings: &mut Vec<String>) -> Result<Self> {
        let coming = super::growth::layers(index);
        if super::growth::is_layered(index) {
            return Ok(Self::of_union(index.entries.clone(), &coming));
        }
        let mut names = Names::new();
        for entry in &index.entries {
            names.take(entry, index)?;
        }
        if names.winners.is_empty() && coming.is_empty() {
            names.duplicates.push("the artifact has no file at all: an empty folder".to_owned());
        }
        warnings.append(&mut names.duplicates);
        if names.unnamed > 0 {
            warnings.push(format!("and {} more duplicate paths", names.unnamed));
        }
        let Names { winners, room, .. } = names;
        Layout::of(winners).finish(&coming, room)
    }

    /// A tree that has nothing but its root before all layers are known.
    fn of_union(entries: Vec<Entry>, coming: &[usize]) -> Self {
        let nodes = boxcar::Vec::new();
        nodes.push(node(None, None, NodeId::ROOT, ""));
        Self { nodes, growing: Some(Growing::union(entries, coming)) }
    }

    /// Takes the names that have come since it was last called into the tree; `coming` gives what there is of a layer.
    /// Costs nothing where all names are known.
    pub(super) fn catch_up<'a>(&self, coming: impl Fn(usize) -> Coming<'a>) {
        if let Some(growing) = &self.growing {
            growing.catch_up(&self.nodes, coming);
        }
    }

    /// Whether all names are known, so that a folder can be listed; else the layer that may still bring some, or why they
    /// can't be had.
    ///
    /// # Errors
    /// Why a layer's names can't be had.
    pub(super) fn settled(&self) -> Result<Option<usize>> {
        self.growing.as_ref().map_or(Ok(None), Growing::settled)
    }

    /// The layers that were refused for a name that cannot stand beside those that were known, each with the reason.
    pub(super) fn refused(&self) -> Vec<(usize, Error)> {
        self.growing.as_ref().map(Growing::refused).unwrap_or_default()
    }

    /// What `name` is in the folder `parent`, as far as it is known by now.
    pub(super) fn look(&self, parent: NodeId, name: &[u8]) -> Look {
        if self.node(parent).is_none_or(|node| !node.is_folder()) {
            return Look::Absent;
        }
        let growing = self.growing.as_ref().filter(|_| self.children(parent).is_none());
        // No path has other bytes than UTF-8.
        let found = growing.zip(std::str::from_utf8(name).ok());
        let found = found.and_then(|(growing, name)| growing.look(&self.nodes, parent, name));
        found.unwrap_or_else(|| self.listed(parent, name).map_or(Look::Absent, Look::Here))
    }

    /// The node, or `None` where no node has that position.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Node> {
        self.nodes.get(id.0)
    }

    /// The identity at `position`, or `None` where the tree is smaller.
    #[must_use]
    pub fn at(&self, position: usize) -> Option<NodeId> {
        self.nodes.get(position).map(|_| NodeId(position))
    }

    /// How many nodes there are, the root counted.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the root is always there")]
    pub fn len(&self) -> usize {
        self.nodes.count()
    }

    /// Every node with its identity, in order of position.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.nodes.iter().map(|(position, node)| (NodeId(position), node))
    }

    /// What `name` is in the folder `parent`; `None` where there is no such name, `parent` is no folder, or it is not known
    /// yet. Costs a binary search.
    #[must_use]
    pub fn lookup(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
        match self.look(parent, name) {
            Look::Here(id) => Some(id),
            Look::Absent | Look::Later(_) | Look::Unknown(_) => None,
        }
    }

    fn listed(&self, parent: NodeId, name: &[u8]) -> Option<NodeId> {
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

    /// The children of a folder, sorted by the bytes of their names; `None` where `id` is no folder, or may still get some.
    #[must_use]
    pub fn children(&self, id: NodeId) -> Option<&[Child]> {
        match &self.node(id)?.kind {
            NodeKind::Directory(children) => children.0.get().map(|children| &**children),
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

    /// Every name of a node that folders list, each with its folder; its first name where none does yet. Costs a look into all
    /// folders where it has more than one.
    #[must_use]
    pub fn names(&self, id: NodeId) -> Vec<(NodeId, &str)> {
        let Some(node) = self.node(id) else { return Vec::new() };
        let first = (node.parent, &*node.name);
        if node.nlink() < 2 {
            return vec![first];
        }
        let listed = self.nodes().filter_map(|(folder, _)| Some((folder, self.children(folder)?)));
        let names: Vec<_> = listed
            .flat_map(|(folder, children)| children.iter().map(move |child| (folder, child)))
            .filter(|(_, child)| child.node == id)
            .map(|(folder, child)| (folder, &*child.name))
            .collect();
        if names.is_empty() { vec![first] } else { names }
    }

    /// The sum of the sizes of all files, in bytes; a file with several names counts once.
    #[must_use]
    pub fn total(&self) -> u64 {
        let sizes = self.nodes.iter().map(|(_, node)| match node.kind {
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
struct Names<'a> {
    /// Sorted, so that a folder comes before what is in it and siblings come in the order of their bytes.
    winners: BTreeMap<&'a str, Meaning<'a>>,
    duplicates: Vec<String>,
    unnamed: u64,
    /// How much memory they may still take.
    room: Allowance,
}

impl<'a> Names<'a> {
    fn new() -> Self {
        Self { winners: BTreeMap::new(), duplicates: Vec::new(), unnamed: 0, room: Allowance::names() }
    }

    fn take(&mut self, entry: &'a Entry, index: &Index) -> Result<()> {
        self.room.take_entry(entry)?;
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
                None => {
                    self.room.take_folder(parent)?;
                    self.winners.insert(parent, Meaning::Folder(None))
                }
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

pub(super) fn both_ways(path: &str) -> Error {
    Error::new(Kind::Invalid, format!("the artifact has {path:?} both as a folder and as a file or link"))
}

fn layer_name(index: &Index, layer: usize) -> String {
    let digest = index.layers.get(layer).map(|layer| layer.blob.digest.to_string());
    digest.map_or_else(|| format!("layer {layer}"), |digest| format!("layer {layer} ({digest})"))
}

/// The nodes, as the sorted winners become them.
struct Layout<'a> {
    nodes: boxcar::Vec<Node>,
    children: BTreeMap<NodeId, Vec<Child>>,
    folders: BTreeMap<&'a str, NodeId>,
    /// The node of each file's entry, by where that entry lies in memory: hard links share the entry.
    files: std::collections::HashMap<*const Entry, NodeId>,
    names: BTreeMap<&'a str, Meaning<'a>>,
}

impl<'a> Layout<'a> {
    fn of(names: BTreeMap<&'a str, Meaning<'a>>) -> Self {
        let nodes = boxcar::Vec::with_capacity(names.len() + 1);
        nodes.push(node(None, None, NodeId::ROOT, ""));
        let folders = BTreeMap::from([("", NodeId::ROOT)]);
        let children = BTreeMap::from([(NodeId::ROOT, Vec::new())]);
        Self { nodes, children, folders, files: std::collections::HashMap::new(), names }
    }

    fn finish(mut self, coming: &[usize], room: Allowance) -> Result<Tree> {
        for (path, meaning) in std::mem::take(&mut self.names) {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
            let parent = self.folders.get(folder).copied().ok_or_else(|| both_ways(folder))?;
            let id = self.node_for(path, meaning, parent, name);
            self.adopt(parent, Child { name: name.into(), node: id }, meaning);
        }
        if !coming.is_empty() {
            let growing = Some(Growing::new(self.children, coming, room));
            return Ok(Tree { nodes: self.nodes, growing });
        }
        for (folder, children) in self.children {
            if let Some(NodeKind::Directory(named)) = self.nodes.get(folder.0).map(|node| &node.kind) {
                named.set(children);
            }
        }
        Ok(Tree { nodes: self.nodes, growing: None })
    }

    fn node_for(&mut self, path: &'a str, meaning: Meaning<'a>, parent: NodeId, name: &str) -> NodeId {
        let next = NodeId(self.nodes.count());
        let id = match meaning {
            Meaning::File(entry) => *self.files.entry(std::ptr::from_ref(entry)).or_insert(next),
            Meaning::Link(_) => next,
            Meaning::Folder(_) => {
                self.folders.insert(path, next);
                self.children.insert(next, Vec::new());
                next
            }
        };
        match self.nodes.get(id.0) {
            Some(known) => known.link(),
            None => {
                let kind = meaning.entry().map(|entry| &entry.kind);
                self.nodes.push(node(kind, meaning.entry(), parent, name));
            }
        }
        id
    }

    fn adopt(&mut self, parent: NodeId, child: Child, meaning: Meaning<'_>) {
        if let Some(children) = self.children.get_mut(&parent) {
            children.push(child);
        }
        if let Some(folder) = self.nodes.get(parent.0).filter(|_| meaning.is_folder()) {
            folder.link();
        }
    }
}

/// A node of this kind, a folder where nothing says what it is; `entry` says what it looks like.
pub(super) fn node(kind: Option<&EntryKind>, entry: Option<&Entry>, parent: NodeId, name: &str) -> Node {
    let (kind, nlink) = match kind {
        Some(EntryKind::File { extent, size }) => (NodeKind::File { extent: *extent, size: *size }, 1),
        Some(EntryKind::Symlink(target)) => (NodeKind::Symlink(target.as_str().into()), 1),
        _ => (NodeKind::Directory(Children::default()), 2),
    };
    Node {
        kind,
        parent,
        name: name.into(),
        mode: entry.map_or(0, |entry| entry.mode),
        mtime: entry.map_or(0, |entry| entry.mtime),
        nlink: AtomicU32::new(nlink),
        layer: entry.map(|entry| entry.layer),
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
