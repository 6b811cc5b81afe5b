//! Opening a model: the floors below put together, once, from a reference to a tree and a loader.
//!
//! What is asked of a model that is open is [`Model`]'s own file. Called by floor 5 and the commands.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;

use super::Model;
use super::assemble::{Whole, assemble};
use super::pin;
use super::tree::Tree;
use crate::content::store::Asked;
use crate::content::{Config, Integrity, Loader, Store};
use crate::error::{Error, Result};
use crate::index::find::Known;
use crate::index::{
    Attached, Coding, EntryKind, Guides, Index, Proof, Sources, Trust, View, bound, diff_ids, find_blobs,
};
use crate::oci::artifact::{ModelLayer, Packaging};
use crate::oci::exclude::Exclude;
use crate::oci::{Artifact, Digest, Reference};
use crate::range::StoredRange;
use crate::repository::Repository;

/// How many bytes of archive headers are taken from the store into memory at most: what an index may have in all. A
/// manifest may list any number of layers.
const KEPT_HEADERS: u64 = 64 << 20;

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
        let asked = Asked { reference: reference.clone(), platform: config.platform.clone() };
        repository.expect_reads();
        let found = pin::pin(&*repository, &asked, &store).await?;
        let own = repository;
        let opening = |error: Error| error.context(format!("cannot open {reference}"));
        let Whole { mut artifact, repository } =
            whole(own.clone(), &found, &store, config.view).await.map_err(opening)?;
        config.layers.map_or(Ok(()), |cut| artifact.cut(cut)).map_err(opening)?;
        let mut warnings = Vec::new();
        let gaps = kept_gaps(&store, &*repository, &artifact).await;
        let known = |layer: &Digest| gaps.get(layer).cloned().unwrap_or_default();
        // Side by side, to save a round: nothing but warnings hangs on the config.
        let (description, index) = tokio::join!(
            pin::config(&*own, &found, &store, &mut warnings),
            find(&*repository, &store, &found, &artifact, &known, &config),
        );
        let indexes = index.map_err(opening)?;
        let Indexes { mut index, bound, attached } = indexes;
        let has_bound = bound.is_some();
        if config.view == View::Files {
            warnings.extend(diff_ids::note(&mut index, &artifact, &pin::described(description.as_ref())));
            if config.integrity == Integrity::Strict {
                forget_unproved(&mut index);
            }
            leave_out(&mut index, &config.exclude);
        }
        let tree = Tree::build(&index, &mut warnings)?;
        index.warnings.append(&mut warnings);
        let index = Arc::new(index);
        if found.from == pin::Source::Repository {
            pin::admit(&*own, &asked, &store, &found.pinned).await;
            keep_gaps(&store, &*repository, &index).await;
            if let Some(bound) = bound {
                pin::keep_bound(&*repository, &store, bound).await;
            }
            if let Some(attached) = attached {
                pin::keep_attached(&*repository, &store, &found.pinned.digest, attached).await;
            }
        }
        let metrics = Arc::clone(&config.metrics);
        let is_asked = found.from == pin::Source::Repository && !has_bound;
        let ignores_attached = is_asked && config.trust_index == Trust::Never;
        let ignoring = Some(repository.clone()).filter(|_| ignores_attached && is_any_streamed(&index));
        let loader = Loader::new(repository, index.clone(), store, config, metrics.clone());
        let digest = found.pinned.digest;
        let unanswered = found.unanswered;
        let config = description;
        Ok(Self { reference, digest, artifact, config, index, tree, loader, ignoring, unanswered, metrics })
    }
}

/// All that is shown of what was found, and who gives it.
async fn whole(
    repository: Arc<dyn Repository>,
    found: &pin::Found,
    store: &Arc<Store>,
    view: View,
) -> Result<Whole> {
    match view {
        View::Files => assemble(repository, found, store).await,
        View::Blobs => Ok(Whole { artifact: found.artifact.as_blobs(), repository }),
    }
}

/// The index of an artifact, and those that it was made of.
struct Indexes {
    index: Index,
    bound: Option<bound::Opened>,
    attached: Option<bound::Opened>,
}

fn is_any_streamed(index: &Index) -> bool {
    index.layers.iter().any(|layer| matches!(layer.coding, Coding::Streamed(..)))
}

/// The index of `artifact`, which `found` was put together to, and what was read of its bound and of an attached one: kept of an
/// earlier time or asked for.
async fn find(
    repository: &dyn Repository,
    store: &Arc<Store>,
    found: &pin::Found,
    artifact: &Artifact,
    known: &Known<'_>,
    config: &Config,
) -> Result<Indexes> {
    let opened = match (config.proof, config.integrity) {
        // Nothing counts but a layer's own digest, and nothing is served before that.
        (Proof::Layer, Integrity::Strict) => None,
        _ => {
            let kept = pin::kept_head(repository, store, artifact).await;
            bound::open(repository, artifact, kept).await?
        }
    };
    if config.view == View::Blobs {
        let head = opened.as_ref().map(|opened| &opened.head);
        let index = find_blobs(repository, artifact, head).await?;
        return Ok(Indexes { index, bound: opened, attached: None });
    }
    let bound = opened.as_ref().map(|opened| opened.head.clone());
    let attached = if config.trust_index == Trust::Never {
        Attached::Nowhere
    } else {
        let kept = pin::kept_attached(repository, store, &found.pinned.digest).await;
        match found.from {
            pin::Source::Repository => Attached::Beside(&found.pinned.digest, kept),
            pin::Source::Store => kept.map_or(Attached::Nowhere, Attached::Kept),
        }
    };
    let indexes = pin::kept_indexes(repository, store, artifact).await;
    let local =
        |layer: &ModelLayer| indexes.get(&(layer.descriptor.digest.clone(), layer.reading())).cloned();
    let guides = match config.integrity {
        _ if found.from != pin::Source::Repository => Guides::None,
        Integrity::Strict => Guides::Pinned,
        Integrity::Auto | Integrity::Deferred => Guides::Checked,
    };
    let sources = Sources { bound, local: &local, attached, known, guides, proof: config.proof };
    let (index, attached) = crate::index::find_in(repository, artifact, sources).await?;
    Ok(Indexes { index, bound: opened, attached })
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

/// Takes the names of files out that are not wanted, and other names of the same files. Of a compressed layer whose names come
/// as it goes by, those that have not come stay.
fn leave_out(index: &mut Index, exclude: &Exclude) {
    if exclude.is_empty() {
        return;
    }
    let mut gone = HashSet::new();
    index.entries.retain(|entry| {
        let stays = match &entry.kind {
            EntryKind::File { .. } => !exclude.excludes(&entry.path),
            EntryKind::HardLink(first) => !exclude.excludes(&entry.path) && !gone.contains(first),
            _ => true,
        };
        if !stays {
            gone.insert(entry.path.clone());
        }
        stays
    });
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

#[cfg(test)]
mod tests {
    use futures_util::future::BoxFuture;
    use tokio::sync::watch;

    use super::*;
    use crate::content::StoreConfig;
    use crate::error::Kind;
    use crate::index::{ChunkDigest, Entry};
    use crate::oci::Descriptor;
    use crate::oci::artifact::{INDEX_HEAD_DIGEST_KEY, INDEX_HEAD_SIZE_KEY, INDEX_KEY};
    use crate::oci::manifest::{Manifest, OCI_MANIFEST};
    use crate::repository::Memory;
    use crate::repository::around::Around;

    #[test]
    fn other_names_of_a_file_that_is_left_out_go_with_it() {
        let entry =
            |path: &str, kind: EntryKind| Entry { path: path.into(), kind, mode: 0, mtime: 0, layer: 0 };
        let file = || EntryKind::File { extent: None, size: 0 };
        let names = [
            entry("a", EntryKind::Directory),
            entry("a/w.bin", file()),
            entry("again", EntryKind::HardLink("a/w.bin".into())),
            entry("kept", file()),
            entry("also", EntryKind::HardLink("kept".into())),
        ];
        let mut index = Index { entries: names.into(), ..Index::default() };
        leave_out(&mut index, &Exclude::default());
        assert_eq!(index.entries.len(), 5);
        leave_out(&mut index, &Exclude::parse(r#"["*.bin"]"#).unwrap());
        let left: Vec<_> = index.entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(left, ["a", "kept", "also"]);
    }

    fn layer(path: &str, content: u8) -> Descriptor {
        let annotations = [("org.cncf.model.filepath".to_owned(), path.to_owned())].into();
        let media_type = "application/vnd.cncf.model.weight.v1.raw".to_owned();
        Descriptor { media_type, digest: Digest::of(&[content]), size: 1, annotations }
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

    /// Blobs and manifests in memory, and a list of referrers that never comes; how often it was asked for.
    #[derive(Debug)]
    struct Silent(Memory, watch::Sender<u64>);

    impl Around for Silent {
        fn inner(&self) -> &dyn Repository {
            &self.0
        }

        fn referrers<'a>(&'a self, _: &'a Digest, _: &'a str) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
            self.1.send_modify(|asked| *asked += 1);
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn nobody_waits_for_the_referrers_of_an_artifact_whose_indexes_are_not_trusted() {
        let memory = Memory::new();
        let blob = memory.put("compressed");
        let layer =
            format!(r#"{{"mediaType":"x.tar+gzip","digest":"{}","size":{}}}"#, blob.digest, blob.size);
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","layers":[{layer}]}}"#);
        memory.put_manifest("v1", OCI_MANIFEST, manifest);
        let place = tempfile::tempdir().unwrap();
        let config = StoreConfig { folder: place.path().join("store"), size: Some(1 << 20) };
        let store = Store::open(&config).unwrap();
        let silent = Arc::new(Silent(memory, watch::Sender::new(0)));
        let reference: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
        let model = Model::open(silent.clone(), reference, store, Config::default()).await.unwrap();
        assert_eq!(*silent.1.borrow(), 0);
        model.mention_ignored_index();
        silent.1.subscribe().wait_for(|asked| *asked == 1).await.unwrap();
        model.close().await;
    }
}
