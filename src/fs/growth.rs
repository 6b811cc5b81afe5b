//! Names that appear: the part of a tree that grows while compressed layers without an index go by for the first time.
//!
//! An answer once given stays: a name is said only when nothing that may still come can be shown in its place, and that there
//! is no such name only when all are known. A folder is listed when nothing can come any more; from then on the tree is
//! like any other, without a lock. Called by the [tree](super::tree) alone, which a model without such layers never does.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::tree::{Child, Look, Node, NodeId, NodeKind, both_ways, node};
use crate::content::stream::{Coming, Names};
use crate::error::{Error, Kind, Result};
use crate::index::{Allowance, Coding, Entry, EntryKind, Index, union};
use crate::oci::artifact::Manner;

/// Whether names of lower layers hang on those that come, so that none can be said before all are known: in a container
/// image, whose layers take away, replace and redirect what lies below them.
pub(super) fn is_layered(index: &Index) -> bool {
    let layered = |layer: &crate::index::Layer| match &layer.coding {
        Coding::Streamed(layer, None) => layer.members.manner != Manner::Model,
        _ => false,
    };
    index.layers.iter().any(layered)
}

/// The layers of `index` whose names are not known yet.
pub(super) fn layers(index: &Index) -> Vec<usize> {
    let named: HashSet<usize> = index.entries.iter().map(|entry| entry.layer).collect();
    let streamed = index.layers.iter().enumerate();
    let streamed = streamed.filter(|(_, layer)| layer.is_growing());
    streamed.map(|(number, _)| number).filter(|number| !named.contains(number)).collect()
}

/// What is known so far.
#[derive(Debug)]
pub(super) struct Growing {
    state: Mutex<State>,
    /// Set when every folder's children have been said.
    settled: AtomicBool,
}

#[derive(Debug)]
struct State {
    rule: Rule,
    folders: Folders,
    layers: BTreeMap<usize, Layer>,
    /// How much memory names may still take.
    room: Allowance,
}

/// How names of several layers become one tree.
#[derive(Debug)]
enum Rule {
    /// Each is taken as it comes.
    Each,
    /// All at once, when they are known: these are those of the other layers.
    Union(Vec<Entry>),
}

/// A layer whose names come.
#[derive(Debug, Default)]
struct Layer {
    /// How many of its entries are in the tree.
    taken: usize,
    names: Names,
    refused: Option<Error>,
    files: Files,
}

/// Where the files of a layer stand among its names, by path: filled when a hard link first asks.
#[derive(Debug, Default)]
struct Files {
    /// How many names have been looked at.
    seen: usize,
    last: HashMap<Box<str>, usize>,
}

impl Files {
    /// The last file named `path` among the first `count` names. Looks at each name once, however often it is asked; `count`
    /// must not fall.
    fn before(&mut self, coming: &Coming<'_>, count: usize, path: &str) -> Option<Entry> {
        for (at, entry) in coming.entries(self.seen).take_while(|(at, _)| *at < count) {
            if matches!(entry.kind, EntryKind::File { .. }) {
                self.last.insert(entry.path.as_str().into(), at);
            }
            self.seen = at.saturating_add(1);
        }
        self.last.get(path).and_then(|at| coming.entry(*at)).cloned()
    }
}

/// What a name in a folder stands for.
#[derive(Clone, Copy, Debug)]
struct Name {
    node: NodeId,
    /// Whether anybody was told.
    given: bool,
}

/// Finds a file of the same layer that came before.
type Earlier<'a> = dyn FnMut(&str) -> Option<Entry> + 'a;
type Nodes = boxcar::Vec<Node>;
type Folders = HashMap<NodeId, BTreeMap<Box<str>, Name>>;

impl Growing {
    /// A tree that has these children by folder, and to which these layers will add as long as there is `room`.
    pub(super) fn new(children: BTreeMap<NodeId, Vec<Child>>, layers: &[usize], room: Allowance) -> Self {
        let name = |child: Child| (child.name, Name { node: child.node, given: false });
        let folders = children.into_iter();
        let folders = folders.map(|(id, children)| (id, children.into_iter().map(name).collect())).collect();
        Self::with(Rule::Each, folders, layers, room)
    }

    /// A tree whose layers are put on one another: `entries` are those that are known, and these layers will add to them.
    pub(super) fn union(entries: Vec<Entry>, layers: &[usize]) -> Self {
        let folders = HashMap::from([(NodeId::ROOT, BTreeMap::new())]);
        Self::with(Rule::Union(entries), folders, layers, Allowance::names())
    }

    fn with(rule: Rule, folders: Folders, layers: &[usize], room: Allowance) -> Self {
        let layers = layers.iter().map(|layer| (*layer, Layer::default())).collect();
        Self { state: Mutex::new(State { rule, folders, layers, room }), settled: AtomicBool::new(false) }
    }

    /// Takes in what has come of each layer.
    pub(super) fn catch_up<'a>(&self, nodes: &Nodes, coming: impl Fn(usize) -> Coming<'a>) {
        if self.settled.load(Ordering::Acquire) {
            return;
        }
        let mut state = self.state.lock();
        let layers: Vec<usize> = state.layers.keys().copied().collect();
        for layer in layers {
            match state.rule {
                Rule::Each => state.take_layer(nodes, layer, &coming(layer)),
                Rule::Union(_) => state.look_at(layer, coming(layer).names),
            }
        }
        if state.all_known() {
            state.put_together(nodes, &coming);
        }
        if state.all_known() {
            state.settle(nodes);
            self.settled.store(true, Ordering::Release);
        }
    }

    /// As [`Tree::settled`](super::Tree).
    ///
    /// # Errors
    /// Why a layer's names can't be had.
    pub(super) fn settled(&self) -> Result<Option<usize>> {
        if self.settled.load(Ordering::Acquire) {
            return Ok(None);
        }
        let state = self.state.lock();
        match state.open(|_| true) {
            Some((_, Some(error))) => Err(error),
            Some((layer, None)) => Ok(Some(layer)),
            None => Ok(None),
        }
    }

    /// The layers that were refused, each with the reason.
    pub(super) fn refused(&self) -> Vec<(usize, Error)> {
        let state = self.state.lock();
        let refused =
            state.layers.iter().filter_map(|(number, layer)| Some((*number, layer.refused.clone()?)));
        refused.collect()
    }

    /// What `name` is in the folder `parent`; a node that is named here counts as given. `None` where all children have been
    /// said meanwhile.
    pub(super) fn look(&self, nodes: &Nodes, parent: NodeId, name: &str) -> Option<Look> {
        let mut state = self.state.lock();
        if self.settled.load(Ordering::Acquire) {
            return None;
        }
        let found = state.folders.get(&parent).and_then(|names| names.get(name)).map(|name| name.node);
        let shown = found.and_then(|id| nodes.get(id.0));
        let above = match shown {
            // Whoever else has a folder there has the same one.
            Some(node) if node.is_folder() => None,
            Some(node) => state.open(|layer| node.layer.is_none_or(|own| layer > own)),
            None => state.open(|_| true),
        };
        Some(match (found, above) {
            (Some(id), None) => {
                state.give(parent, name);
                Look::Here(id)
            }
            (None, None) => Look::Absent,
            (_, Some((layer, None))) => Look::Later(layer),
            (_, Some((_, Some(error)))) => Look::Unknown(error),
        })
    }
}

impl State {
    /// The first of the layers that `counts` whose names are not all known, with the reason where they never will be.
    fn open(&self, counts: impl Fn(usize) -> bool) -> Option<(usize, Option<Error>)> {
        let of_interest = || self.layers.iter().filter(|(number, _)| counts(**number));
        let lost = of_interest().find_map(|(number, layer)| {
            let error = layer.refused.clone().or_else(|| match &layer.names {
                Names::Lost(error) => Some(error.clone()),
                Names::Coming | Names::Known => None,
            });
            error.map(|error| (*number, Some(error)))
        });
        let coming = || {
            of_interest().find(|(_, layer)| matches!(layer.names, Names::Coming)).map(|(at, _)| (*at, None))
        };
        lost.or_else(coming)
    }

    fn give(&mut self, parent: NodeId, name: &str) {
        let name = self.folders.get_mut(&parent).and_then(|names| names.get_mut(name));
        if let Some(name) = name {
            name.given = true;
        }
    }

    fn all_known(&self) -> bool {
        let known = |layer: &Layer| matches!(layer.names, Names::Known) && layer.refused.is_none();
        self.layers.values().all(known)
    }

    fn look_at(&mut self, number: usize, names: Names) {
        if let Some(layer) = self.layers.get_mut(&number) {
            layer.names = names;
        }
    }

    /// Puts the layers on one another, where that is the rule. What fails is taken down as of the highest.
    fn put_together<'a>(&mut self, nodes: &Nodes, coming: &impl Fn(usize) -> Coming<'a>) {
        let Rule::Union(known) = &mut self.rule else { return };
        let mut all = std::mem::take(known);
        for number in self.layers.keys() {
            all.extend(coming(*number).entries(0).map(|(_, entry)| entry.clone()));
        }
        all.sort_by_key(|entry| entry.layer);
        let done = union::merge(all).and_then(|entries| self.take_all(nodes, entries));
        if let (Err(error), Some(mut last)) = (done, self.layers.last_entry()) {
            tracing::error!(%error, "REFUSED: the layers can't be put on one another");
            last.get_mut().refused = Some(error);
        }
    }

    /// Gives every entry its place: folders before what is in them, files before their other names.
    fn take_all(&mut self, nodes: &Nodes, mut entries: Vec<Entry>) -> Result<()> {
        let is_link = |entry: &Entry| matches!(entry.kind, EntryKind::HardLink(_));
        entries.sort_by(|one, other| (is_link(one), &one.path).cmp(&(is_link(other), &other.path)));
        entries.iter().try_for_each(|entry| self.take(nodes, entry, &mut |_| None))
    }

    fn take_layer(&mut self, nodes: &Nodes, number: usize, coming: &Coming<'_>) {
        let Some(layer) = self.layers.get_mut(&number).filter(|layer| layer.refused.is_none()) else {
            return;
        };
        let mut taken = layer.taken;
        let mut files = std::mem::take(&mut layer.files);
        let mut refused = None;
        for (at, entry) in coming.entries(taken) {
            taken = at.saturating_add(1);
            let mut earlier = |path: &str| files.before(coming, at, path);
            if let Err(error) = self.take(nodes, entry, &mut earlier) {
                tracing::error!(layer = number, %error, "REFUSED: no more names of this layer are taken");
                refused = Some(error);
                break;
            }
        }
        if let Some(layer) = self.layers.get_mut(&number) {
            (layer.taken, layer.names, layer.refused) = (taken, coming.names.clone(), refused);
            layer.files = files;
        }
    }

    /// Gives the entry its place.
    fn take(&mut self, nodes: &Nodes, entry: &Entry, earlier: &mut Earlier<'_>) -> Result<()> {
        self.room.take_entry(entry)?;
        let (above, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
        let parent = self.folder(nodes, above)?;
        let known = self.folders.get(&parent).and_then(|names| names.get(name)).copied();
        let node = known.and_then(|known| nodes.get(known.node.0));
        if node.is_some_and(|node| node.is_folder() != (entry.kind == EntryKind::Directory)) {
            return Err(both_ways(&entry.path));
        }
        match (known, node) {
            (Some(_), Some(node)) if node.is_folder() => {}
            (Some(known), Some(node)) if hides(node, known, entry) => {
                tracing::warn!(
                    path = entry.path,
                    layer = entry.layer,
                    "comes twice: the name that was given stays"
                );
            }
            (_, shown) => {
                if shown.is_some() {
                    tracing::warn!(
                        path = entry.path,
                        layer = entry.layer,
                        "comes twice: this one hides the other"
                    );
                }
                let id = self.node_for(nodes, entry, parent, name, earlier)?;
                self.adopt(nodes, parent, name, id);
            }
        }
        Ok(())
    }

    /// The node that the entry names: a new one, or for a hard link that of the file it leads to.
    fn node_for(
        &self,
        nodes: &Nodes,
        entry: &Entry,
        parent: NodeId,
        name: &str,
        earlier: &mut Earlier<'_>,
    ) -> Result<NodeId> {
        let EntryKind::HardLink(target) = &entry.kind else {
            return Ok(NodeId(nodes.push(node(Some(&entry.kind), Some(entry), parent, name))));
        };
        let shown = self.find(target).and_then(|id| Some((id, nodes.get(id.0)?)));
        if let Some((id, node)) = shown.filter(|(_, node)| node.layer == Some(entry.layer))
            && matches!(node.kind, NodeKind::File { .. })
        {
            node.link();
            return Ok(id);
        }
        // Another layer's file has taken the name that it leads to.
        let file = earlier(target).ok_or_else(|| {
            let doing = format!(
                "hard link {:?} points to {target:?}, which is no file that comes before it",
                entry.path
            );
            Error::new(Kind::Invalid, doing)
        })?;
        Ok(NodeId(nodes.push(node(Some(&file.kind), Some(&file), parent, name))))
    }

    fn find(&self, path: &str) -> Option<NodeId> {
        let mut parts = path.split('/');
        parts.try_fold(NodeId::ROOT, |node, part| Some(self.folders.get(&node)?.get(part)?.node))
    }

    /// The folder at `path`, made where it is only implied.
    fn folder(&mut self, nodes: &Nodes, path: &str) -> Result<NodeId> {
        let (mut at, mut end) = (NodeId::ROOT, 0_usize);
        for part in path.split('/').filter(|part| !part.is_empty()) {
            end = end.saturating_add(part.len()).saturating_add(1);
            let known = self.folders.get(&at).and_then(|names| names.get(part)).map(|name| name.node);
            at = match known {
                Some(id) if self.folders.contains_key(&id) => id,
                Some(_) => return Err(both_ways(path)),
                None => {
                    self.room.take_folder(path.get(..end).unwrap_or(path))?;
                    let id = NodeId(nodes.push(node(None, None, at, part)));
                    self.adopt(nodes, at, part, id);
                    id
                }
            };
        }
        Ok(at)
    }

    fn adopt(&mut self, nodes: &Nodes, parent: NodeId, name: &str, id: NodeId) {
        self.folders.entry(parent).or_default().insert(name.into(), Name { node: id, given: false });
        if nodes.get(id.0).is_some_and(Node::is_folder) {
            self.folders.entry(id).or_default();
            if let Some(folder) = nodes.get(parent.0) {
                folder.link();
            }
        }
    }

    /// Says every folder's children.
    fn settle(&mut self, nodes: &Nodes) {
        for (folder, names) in std::mem::take(&mut self.folders) {
            let children = names.into_iter().map(|(name, known)| Child { name, node: known.node }).collect();
            if let Some(NodeKind::Directory(named)) = nodes.get(folder.0).map(|node| &node.kind) {
                named.set(children);
            }
        }
    }
}

/// Whether what a name stands for stays when `entry` comes: it is a higher layer's, or somebody was told of it.
fn hides(shown: &Node, known: Name, entry: &Entry) -> bool {
    known.given || shown.layer.is_some_and(|layer| layer > entry.layer)
}

#[cfg(test)]
#[path = "growth_tests.rs"]
mod tests;
