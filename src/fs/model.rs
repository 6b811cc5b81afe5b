//! A model: an artifact opened for reading, without a kernel.
//!
//! Turns a node, an offset and a length into a read of the loader, once all has been put together (`open`). Called by floor 5
//! for a mount, and by the commands that need none: `ls`, `cat`, `inspect`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::tree::{Look, NodeId, NodeKind, Tree};
use crate::content::{Loader, Standing};
use crate::error::{Error, Kind, Result};
use crate::index::{ExtentId, Grid, Home, Index, mention_attached};
use crate::metrics::Metrics;
use crate::oci::digest::Algorithm;
use crate::oci::{Artifact, Blob, Digest, Reference};
use crate::range::ContentRange;
use crate::repository::Repository;

const DIGEST: &str = "user.weightfs.digest";
const STANDING: &str = "user.weightfs.standing";
/// As `modctl` writes them beside a file that it has pulled, so that it can skip it when pulling again.
const MODCTL_SIZE: &str = "user.modctl.size";
const MODCTL_SHA256: &str = "user.modctl.sha256";
const XATTRS: [&str; 4] = [DIGEST, STANDING, MODCTL_SIZE, MODCTL_SHA256];

/// An artifact pinned, indexed and ready to be read, without a kernel. `ls`, `cat`, `inspect` need no more.
#[derive(Debug)]
pub struct Model {
    /// As it was typed.
    pub reference: Reference,
    /// The manifest's digest.
    pub digest: Digest,
    /// What the manifest says, and those of the artifacts that it is built upon.
    pub artifact: Artifact,
    /// The config as it is, for people; `None` where there is none or it can't be had.
    pub config: Option<Bytes>,
    /// Which bytes of which layer each file is; its warnings are all that there are of this model.
    pub index: Arc<Index>,
    /// The names.
    pub tree: Tree,
    /// Gives the bytes.
    pub loader: Arc<Loader>,
    /// Who is asked for an attached index that is not trusted; `None` where it would not serve.
    pub(super) ignoring: Option<Arc<dyn Repository>>,
    /// Why the repository was not heard, where the model was opened from what is kept here.
    pub unanswered: Option<Error>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// Whose index says what the chunks of a layer are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexedBy {
    /// The artifact's own.
    Artifact,
    /// One that is attached to the artifact, and trusted.
    Attached,
    /// One that was made on this machine when the layer's digest was proved.
    Machine,
}

impl Model {
    /// Has a line written to the log where an index is attached to the artifact that would serve and is not trusted. Returns
    /// at once: the registry is asked beside whatever else there is to do.
    pub fn mention_ignored_index(&self) {
        let Some(repository) = self.ignoring.clone() else { return };
        let subject = self.digest.clone();
        self.loader.spawn(async move { mention_attached(&*repository, &subject).await });
    }

    /// What `name` is in the folder `parent`, `None` inside where there is no such thing; `None` where that is not known yet,
    /// which is so only while a compressed layer without an index goes by for the first time. Never waits.
    #[must_use]
    pub fn known(&self, parent: NodeId, name: &[u8]) -> Option<Option<NodeId>> {
        self.catch_up();
        match self.tree.look(parent, name) {
            Look::Here(id) => Some(Some(id)),
            Look::Absent => Some(None),
            Look::Later(_) | Look::Unknown(_) => None,
        }
    }

    /// What `name` is in the folder `parent`; `None` where there is no such thing. Waits until that is known.
    ///
    /// # Errors
    /// Why the names of a layer on which it hangs can't be had; `Deadline` where nothing of that layer arrived for the read
    /// deadline.
    pub async fn look_up(&self, parent: NodeId, name: &[u8]) -> Result<Option<NodeId>> {
        loop {
            let seen = self.catch_up();
            match self.tree.look(parent, name) {
                Look::Here(id) => return Ok(Some(id)),
                Look::Absent => return Ok(None),
                Look::Unknown(error) => return Err(self.unnamed(error)),
                Look::Later(layer) => self.await_names(layer, &seen).await?,
            }
        }
    }

    /// What stands at `path`, components joined by `/`; `None` where there is no such thing. Waits until that is known.
    ///
    /// # Errors
    /// As [`look_up`](Self::look_up).
    pub async fn find(&self, path: &str) -> Result<Option<NodeId>> {
        let mut at = NodeId::ROOT;
        for part in path.split('/').filter(|part| !part.is_empty()) {
            match self.look_up(at, part.as_bytes()).await? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// Whether all names are known, so that folders can be listed. Never waits.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.catch_up();
        matches!(self.tree.settled(), Ok(None))
    }

    /// Waits until all names are known: from then on every folder has its children.
    ///
    /// # Errors
    /// As [`look_up`](Self::look_up).
    pub async fn all_named(&self) -> Result<()> {
        loop {
            let seen = self.catch_up();
            match self.tree.settled().map_err(|error| self.unnamed(error))? {
                None => return Ok(()),
                Some(layer) => self.await_names(layer, &seen).await?,
            }
        }
    }

    /// Takes the names that have come into the tree; gives how many there were, by layer.
    fn catch_up(&self) -> HashMap<usize, usize> {
        let seen = std::cell::RefCell::new(HashMap::new());
        self.tree.catch_up(|layer| {
            let coming = self.loader.coming(layer);
            seen.borrow_mut().insert(layer, coming.count());
            coming
        });
        seen.into_inner()
    }

    async fn await_names(&self, layer: usize, seen: &HashMap<usize, usize>) -> Result<()> {
        let have = seen.get(&layer).copied().unwrap_or(0);
        self.loader.more_names(layer, have).await.map_err(|error| self.unnamed(error))
    }

    fn unnamed(&self, error: Error) -> Error {
        error.context(format!("cannot tell what files there are in {}", self.reference))
    }

    /// Ends the loader's tasks; reads that wait fail. Bounded.
    pub async fn close(&self) {
        self.loader.close().await;
    }

    /// Whose index covers a layer, by its number; `None` where none did when the model was opened.
    #[must_use]
    pub fn indexed_by(&self, layer: usize) -> Option<IndexedBy> {
        let bound = self.index.layers.get(layer)?.bound.as_ref()?;
        let own = self.artifact.bound_index().ok().flatten();
        Some(match &bound.chunks.home {
            Home::File(_) => IndexedBy::Machine,
            Home::Repository(index) if own.is_some_and(|own| own.blob == *index) => IndexedBy::Artifact,
            Home::Repository(_) => IndexedBy::Attached,
        })
    }

    /// Where the bytes of a file lie; `None` for what is no file, and for an empty one.
    #[must_use]
    pub fn extent(&self, node: NodeId) -> Option<ExtentId> {
        match self.tree.node(node)?.kind {
            NodeKind::File { extent, .. } => extent,
            NodeKind::Directory(_) | NodeKind::Symlink(_) => None,
        }
    }

    /// The bytes of a file from `offset` on, at most `len` and up to the file's end, never fewer.
    ///
    /// # Errors
    /// `Invalid` where `node` is no file; those of [`Loader::read`], under the file's path.
    pub async fn read(&self, node: NodeId, offset: u64, len: u64) -> Result<Bytes> {
        let Some(wanted) = self.wanted(node, offset, len)? else { return Ok(Bytes::new()) };
        let (extent, range) = wanted;
        let bytes = self.loader.read(extent, range).await;
        let bytes = bytes.map_err(|error| error.context(self.reading(node, range)))?;
        if fits(&bytes, range) {
            return Ok(bytes);
        }
        let why =
            Error::new(Kind::Broken, format!("the loader gave {} of {} bytes", bytes.len(), range.len()));
        Err(why.context(self.reading(node, range)))
    }

    /// As [`read`](Self::read), if the bytes are verified and in memory at this moment; never waits.
    #[must_use]
    pub fn ready(&self, node: NodeId, offset: u64, len: u64) -> Option<Bytes> {
        match self.wanted(node, offset, len).ok()? {
            Some((extent, range)) => self.loader.ready(extent, range).filter(|bytes| fits(bytes, range)),
            None => Some(Bytes::new()),
        }
    }

    /// Whether a wish of the kernel for its page cache is better [declined](Loader::declines).
    pub async fn declines(&self, node: NodeId, offset: u64, len: u64) -> bool {
        match self.wanted(node, offset, len) {
            Ok(Some((extent, range))) => self.loader.declines(extent, range).await,
            Ok(None) | Err(_) => false,
        }
    }

    /// What to ask of the loader; `None` for nothing at all, at the end of the file or beyond.
    fn wanted(&self, node: NodeId, offset: u64, len: u64) -> Result<Option<(ExtentId, ContentRange)>> {
        let Some(NodeKind::File { extent, size }) = self.tree.node(node).map(|node| &node.kind) else {
            return Err(Error::new(Kind::Invalid, format!("{:?} is no file", self.tree.path(node))));
        };
        let asked = ContentRange::new(offset, offset.saturating_add(len));
        let range = asked.meet(ContentRange::new(0, *size));
        Ok(extent.filter(|_| !range.is_empty()).map(|extent| (extent, range)))
    }

    fn reading(&self, node: NodeId, range: ContentRange) -> String {
        format!("cannot read {} bytes {range}", self.tree.path(node))
    }

    /// The digest of the layer that a file's bytes come from, if it is poisoned.
    #[must_use]
    pub fn poisoned(&self, node: NodeId) -> Option<&Digest> {
        let layer = self.extent(node)?.layer;
        let digest = &self.index.layers.get(layer)?.blob.digest;
        (self.loader.standing(layer) == Standing::Poisoned).then_some(digest)
    }

    /// How bytes are served: `strict` where each is verified before, by setting or since the artifact brings all digests,
    /// else `deferred`.
    #[must_use]
    pub fn integrity(&self) -> &'static str {
        if self.loader.is_strict() { "strict" } else { "deferred" }
    }

    /// The bytes of files that the loader [refuses](Loader::refused), as `PATH bytes A-B`, under every name they have; before
    /// them the layers of which no more names are taken, each with the reason.
    #[must_use]
    pub fn refused(&self) -> Vec<String> {
        let layers = self.tree.refused().into_iter().filter_map(|(layer, error)| {
            Some(format!("names of {}: {error}", self.index.layers.get(layer)?.blob.digest))
        });
        let mut refused: Vec<String> = layers.collect();
        refused.extend(self.refused_bytes());
        refused
    }

    fn refused_bytes(&self) -> Vec<String> {
        let mut chunks: HashMap<ExtentId, Vec<u64>> = HashMap::new();
        for (extent, chunk) in self.loader.refused() {
            chunks.entry(extent).or_default().push(chunk);
        }
        if chunks.is_empty() {
            return Vec::new();
        }
        let files = self.tree.nodes().filter_map(|(id, node)| match node.kind {
            NodeKind::File { extent: Some(extent), size } => {
                Some((id, Grid::new(size), chunks.get(&extent)?))
            }
            _ => None,
        });
        let named = files.flat_map(|(id, grid, chunks)| {
            chunks.iter().map(move |chunk| format!("{} bytes {}", self.tree.path(id), grid.range(*chunk)))
        });
        named.collect()
    }

    /// What is known of all layers that have bytes of files: `poisoned` where one is, `verified` where all are proved or
    /// bound, else `deferred`.
    #[must_use]
    pub fn standing(&self) -> &'static str {
        let layers = (0..self.index.layers.len()).filter(|layer| self.loader.may_have_files(*layer));
        let mut all = "verified";
        for layer in layers {
            match self.loader.standing(layer) {
                Standing::Poisoned => return "poisoned",
                Standing::Unproved => all = "deferred",
                Standing::Proved => {}
            }
        }
        all
    }

    /// The names of the extended attributes that the node has now.
    pub fn xattrs(&self, node: NodeId) -> impl Iterator<Item = &'static str> {
        XATTRS.into_iter().filter(move |name| self.xattr(node, name).is_some())
    }

    /// The value of an extended attribute; `None` where the node has no such attribute now.
    ///
    /// `user.weightfs.digest` is the manifest's for the root and the layer's for a file; `user.weightfs.standing` is
    /// that of all layers or of the file's. `user.modctl.size` and `user.modctl.sha256` are there once a file that is a
    /// layer by itself has been proved, or where the layer is bound.
    #[must_use]
    pub fn xattr(&self, node: NodeId, name: &str) -> Option<String> {
        if node == NodeId::ROOT {
            return match name {
                DIGEST => Some(self.digest.to_string()),
                STANDING => Some(self.standing().to_owned()),
                _ => None,
            };
        }
        let extent = self.extent(node)?;
        match name {
            DIGEST => Some(self.index.layers.get(extent.layer)?.blob.digest.to_string()),
            STANDING => Some(spelled(&self.loader.standing(extent.layer)).to_owned()),
            MODCTL_SIZE => Some(self.proved_blob(extent)?.size.to_string()),
            MODCTL_SHA256 => Some(self.proved_blob(extent)?.digest.to_string()),
            _ => None,
        }
    }

    /// The blob that a file is by itself, once it is proved: then the blob's SHA-256 is the file's. Never of a bound layer:
    /// there the digests of its chunks are proved, and nobody has hashed the whole.
    fn proved_blob(&self, extent: ExtentId) -> Option<&Blob> {
        let bound = self.index.layers.get(extent.layer).is_some_and(|layer| layer.bound.is_some());
        let proved = !bound && self.loader.standing(extent.layer) == Standing::Proved;
        let sha256 = |blob: &&Blob| blob.digest.algorithm() == Algorithm::Sha256;
        self.whole_blob(extent).filter(|_| proved).filter(sha256)
    }

    /// The blob that a file is by itself; `None` where it is a part of one.
    #[must_use]
    pub fn whole_blob(&self, extent: ExtentId) -> Option<&Blob> {
        let layer = self.index.layers.get(extent.layer)?;
        let whole = ContentRange::new(0, layer.blob.size);
        let alone = layer.extents.as_slice() == [whole] && layer.gaps.is_empty();
        alone.then_some(&layer.blob)
    }
}

fn fits(bytes: &Bytes, range: ContentRange) -> bool {
    u64::try_from(bytes.len()) == Ok(range.len())
}

fn spelled(standing: &Standing) -> &'static str {
    match standing {
        Standing::Unproved => "unproved",
        Standing::Proved => "proved",
        Standing::Poisoned => "poisoned",
    }
}
