//! A model: an artifact opened for reading, without a kernel.
//!
//! Puts the floors below together, once ([`Model::open`]), and turns a node, an offset and a length into a read of the
//! loader. Called by floor 5 for a mount, and by the commands that need none: `ls`, `cat`, `inspect`.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;

use super::assemble::{Whole, assemble};
use super::pin;
use super::tree::{Look, NodeId, NodeKind, Tree};
use crate::content::{Config, Integrity, Loader, Standing, Store};
use crate::error::{Error, Kind, Result};
use crate::index::find::Known;
use crate::index::{Coding, ExtentId, Grid, Guides, Index, Sources, Subject, bound};
use crate::metrics::Metrics;
use crate::oci::artifact::{INDEX_KEY, ModelLayer, Packaging};
use crate::oci::digest::Algorithm;
use crate::oci::{Artifact, Blob, Digest, Reference};
use crate::range::{ContentRange, StoredRange};
use crate::repository::Repository;

const DIGEST: &str = "user.weightfs.digest";
const STANDING: &str = "user.weightfs.standing";
/// As `modctl` writes them beside a file that it has pulled, so that it can skip it when pulling again.
const MODCTL_SIZE: &str = "user.modctl.size";
const MODCTL_SHA256: &str = "user.modctl.sha256";
const XATTRS: [&str; 4] = [DIGEST, STANDING, MODCTL_SIZE, MODCTL_SHA256];

/// How many bytes of archive headers are taken from the store into memory at most: what an index may have in all. A
/// manifest may list any number of layers.
const KEPT_HEADERS: u64 = 64 << 20;

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
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Model {
    /// Resolves, pins, puts together, indexes. At most four sequential rounds after authentication; one more where names come
    /// from the config, and two for each parent of a ModelKit.
    ///
    /// A reference that was opened before with the same credentials opens again from `store` where nobody answers.
    /// Nothing is warmed: who wants that calls [`Loader::warm`]. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, `Unreachable` and what else the repository may say; `Invalid` for manifests, names and
    /// archives that are refused; `Unsupported` for forms that are not read.
    pub async fn open(
        repository: Arc<dyn Repository>,
        reference: Reference,
        store: Arc<Store>,
        config: Config,
    ) -> Result<Self> {
        let found = pin::pin(&*repository, &reference, &store).await?;
        let own = repository;
        let Whole { artifact, repository } = assemble(own.clone(), &found, &store)
            .await
            .map_err(|error| error.context(format!("cannot open {reference}")))?;
        let mut warnings = Vec::new();
        let gaps = kept_gaps(&store, &*repository, &artifact).await;
        let known = |layer: &Digest| gaps.get(layer).cloned().unwrap_or_default();
        // Side by side, to save a round: nothing but warnings hangs on the config.
        let (description, index) = tokio::join!(
            pin::config(&*own, &found, &store, &mut warnings),
            find(&*repository, &store, &found, &artifact, &known, &config),
        );
        let (mut index, opened) = index.map_err(|error| error.context(format!("cannot open {reference}")))?;
        warnings.extend(compare_diff_ids(&mut index, &artifact, &pin::diff_ids(description.as_ref())));
        if config.integrity == Integrity::Strict {
            forget_unproved(&mut index);
        }
        let tree = Tree::build(&index, &mut warnings)?;
        index.warnings.append(&mut warnings);
        let index = Arc::new(index);
        if found.from == pin::Source::Repository {
            pin::admit(&*own, &reference, &store, &found.pinned).await;
            keep_gaps(&store, &*repository, &index).await;
            if let Some(opened) = opened {
                pin::keep_bound(&*repository, &store, opened).await;
            }
        }
        let metrics = Arc::clone(&config.metrics);
        let loader = Loader::new(repository, index.clone(), store, config, metrics.clone());
        let digest = found.pinned.digest;
        Ok(Self { reference, digest, artifact, config: description, index, tree, loader, metrics })
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

/// The index of `artifact`, which `found` was put together to, and what was read of its bound one: kept of an earlier time
/// or asked for.
async fn find(
    repository: &dyn Repository,
    store: &Arc<Store>,
    found: &pin::Found,
    artifact: &Artifact,
    known: &Known<'_>,
    config: &Config,
) -> Result<(Index, Option<bound::Opened>)> {
    let kept = pin::kept_head(repository, store, artifact).await;
    let opened = bound::open(repository, artifact, kept).await?;
    let bound = opened.as_ref().map(|opened| opened.head.clone());
    let answers = found.from == pin::Source::Repository;
    let subject = Subject { digest: &found.pinned.digest, trust: config.trust_index };
    let attached = answers.then_some(subject);
    let guides = match config.integrity {
        _ if !answers => Guides::None,
        Integrity::Strict => Guides::Pinned,
        Integrity::Auto | Integrity::Deferred => Guides::Checked,
    };
    let indexes = pin::kept_indexes(repository, store, artifact).await;
    let local =
        |layer: &ModelLayer| indexes.get(&(layer.descriptor.digest.clone(), layer.reading())).cloned();
    let sources = Sources { bound, local: &local, attached, known, guides };
    let index = crate::index::find_in(repository, artifact, sources).await?;
    Ok((index, opened))
}

/// The archive headers kept of an earlier time, by layer, as far as [`KEPT_HEADERS`] goes.
async fn kept_gaps(
    store: &Arc<Store>,
    repository: &dyn Repository,
    artifact: &Artifact,
) -> HashMap<Digest, Vec<(StoredRange, Bytes)>> {
    let archives = artifact.visible().filter(|layer| layer.packaging == Packaging::Tar);
    let archives: Vec<Digest> = archives.map(|layer| layer.descriptor.digest.clone()).collect();
    let read = move |store: &Store, who: &str| {
        let (mut kept, mut left) = (HashMap::new(), KEPT_HEADERS);
        for layer in archives {
            if left == 0 {
                break;
            }
            let gaps = kept.entry(layer).or_insert_with_key(|layer| store.gaps(who, layer));
            left = gaps.iter().fold(left, |left, (range, _)| left.saturating_sub(range.len()));
        }
        kept
    };
    pin::blocking(store, repository, read).await.unwrap_or_default()
}

async fn keep_gaps(store: &Arc<Store>, repository: &dyn Repository, index: &Arc<Index>) {
    let index = index.clone();
    let keep = move |store: &Store, who: &str| {
        for layer in index.layers.iter().filter(|layer| !layer.gaps.is_empty()) {
            store.keep_gaps(who, layer);
        }
    };
    pin::blocking(store, repository, keep).await;
}

/// Forgets what the first header of a compressed layer says of its one file: nobody has verified it.
fn forget_unproved(index: &mut Index) {
    let mut streamed = Vec::new();
    for layer in &mut index.layers {
        let is_streamed = layer.is_growing();
        if is_streamed {
            layer.extents.clear();
        }
        streamed.push(is_streamed);
    }
    index.entries.retain(|entry| streamed.get(entry.layer) != Some(&true));
}

/// Notes the config's diffIDs in the layers, and says where one disagrees: where content is the stored bytes it
/// should be the layer's digest. A disagreement is a warning, never proof.
fn compare_diff_ids(index: &mut Index, artifact: &Artifact, diff_ids: &[Digest]) -> Vec<String> {
    let shown =
        described(artifact, diff_ids.len()).into_iter().zip(diff_ids).filter(|(layer, _)| !layer.hidden);
    let mut warnings = Vec::new();
    for (layer, (_, diff_id)) in index.layers.iter_mut().zip(shown) {
        let digest = &layer.blob.digest;
        let is_content = matches!(layer.coding, Coding::Stored);
        if is_content && diff_id != digest && diff_id.algorithm() == digest.algorithm() {
            warnings.push(format!("layer {digest}: the config's diffID for it is {diff_id}, ignored"));
        }
        layer.diff_id = Some(diff_id.clone());
    }
    warnings
}

/// The layers that a config with `count` diffIDs describes: all, or all but the bound index, which may have been added
/// since, or those that are shown. None where it can't be told.
fn described(artifact: &Artifact, count: usize) -> Vec<&ModelLayer> {
    let all: Vec<_> = artifact.layers.iter().collect();
    let not_index = |layer: &&ModelLayer| !layer.descriptor.annotations.contains_key(INDEX_KEY);
    let without_index = artifact.layers.iter().filter(not_index).collect();
    let shown = artifact.visible().collect();
    [all, without_index, shown].into_iter().find(|layers| layers.len() == count).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::content::StoreConfig;
    use crate::index::ChunkDigest;
    use crate::oci::Descriptor;
    use crate::oci::artifact::{INDEX_HEAD_DIGEST_KEY, INDEX_HEAD_SIZE_KEY};
    use crate::oci::manifest::{Manifest, OCI_MANIFEST};
    use crate::repository::Memory;

    fn layer(path: &str, content: u8) -> Descriptor {
        let annotations = [("org.cncf.model.filepath".to_owned(), path.to_owned())].into();
        let media_type = "application/vnd.cncf.model.weight.v1.raw".to_owned();
        Descriptor { media_type, digest: Digest::of(&[content]), size: 1, annotations }
    }

    #[test]
    fn a_diff_id_is_given_to_its_layer_and_one_that_disagrees_is_a_warning() {
        let mut layers = vec![layer("h", 0), layer("a", 1), layer("b", 2)];
        let mark = ("containerd.io/snapshot/nydus-bootstrap".to_owned(), "true".to_owned());
        layers[0].annotations.extend([mark]);
        let artifact = Artifact::read(Manifest { layers, ..Manifest::default() }).unwrap();
        let memory = Memory::new();
        let found = crate::index::find(&memory, &artifact, &|_| Vec::new()).now_or_never().unwrap().unwrap();
        let ids = [Digest::of(&[0]), Digest::of(&[1]), Digest::of(&[9]), Digest::of(&[7])];
        let mut with_index = artifact.clone();
        with_index.layers.push(with_index.layers[0].clone());
        with_index.layers[3].descriptor.annotations = [(INDEX_KEY.to_owned(), "v1".to_owned())].into();
        for (artifact, ids) in [
            (&artifact, &ids[..3]),
            (&artifact, &ids[1..3]),
            (&with_index, &ids[..]),
            (&with_index, &ids[..3]),
            (&with_index, &ids[1..3]),
        ] {
            let mut index = found.clone();
            let warnings = compare_diff_ids(&mut index, artifact, ids);
            assert_eq!(index.layers[0].diff_id, Some(Digest::of(&[1])));
            assert_eq!(warnings.len(), 1);
            assert!(warnings[0].contains(&Digest::of(&[2]).to_string()), "{warnings:?}");
        }
        let mut index = found;
        assert!(compare_diff_ids(&mut index, &artifact, &ids[..1]).is_empty());
        assert_eq!(index.layers[0].diff_id, None);
    }

    #[tokio::test]
    async fn an_artifact_with_an_index_opens_again_without_its_repository_having_it() {
        let memory = Arc::new(Memory::new());
        let content = memory.put(vec![1]);
        let plain = Artifact::read(Manifest { layers: vec![layer("a", 1)], ..Manifest::default() }).unwrap();
        let index = crate::index::find(&*memory, &plain, &|_| Vec::new()).await.unwrap();
        let encoded = crate::index::format::encode(&index, &[vec![ChunkDigest::of(&[1])]]).unwrap();
        let blob = memory.put(encoded.bytes().unwrap());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","layers":[
            {{"mediaType":"x.raw","digest":"{}","size":1,"annotations":{{"org.cncf.model.filepath":"a"}}}},
            {{"mediaType":"y.raw","digest":"{}","size":{},"annotations":{{"{INDEX_KEY}":"v1",
            "{INDEX_HEAD_DIGEST_KEY}":"{}","{INDEX_HEAD_SIZE_KEY}":"{}"}}}}]}}"#,
            content.digest, blob.digest, blob.size, encoded.head.digest, encoded.head.size
        );
        memory.put_manifest("v1", OCI_MANIFEST, manifest);
        let place = tempfile::tempdir().unwrap();
        let config = StoreConfig { folder: place.path().join("store"), size: Some(1 << 20) };
        let store = Store::open(&config).unwrap();
        let open = || {
            let reference: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
            Model::open(memory.clone(), reference, store.clone(), Config::default())
        };
        let first = open().await.unwrap();
        let bound = first.index.layers[0].bound.clone().unwrap();
        assert_eq!(store.small(&memory.identity(), &bound.chunks.digest), bound.chunks.bytes);
        first.close().await;
        memory.fail_with(|_, _| Some(Error::new(Kind::Unreachable, "nobody answers")));
        let again = open().await.unwrap();
        assert_eq!(again.index.layers[0].bound.as_ref().unwrap().kept_as, bound.kept_as);
        again.close().await;
        std::fs::remove_dir_all(store.folder().join("small")).unwrap();
        let error = open().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unreachable);
        assert!(error.to_string().contains(&format!("the bound index {}", blob.digest)), "{error}");
    }
}
