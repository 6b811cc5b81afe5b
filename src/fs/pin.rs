//! From a reference to an artifact whose digest is fixed: the first rounds of opening a model.
//!
//! Asks the repository, and the store where nobody answers, on the pool for what blocks. Reads no layer. Called by [`Model`](super::Model) only.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::content::store::{Asked, Store};
use crate::error::{Error, Kind, Result};
use crate::index::{Kept, bound, compression, find_blobs};
use crate::oci::artifact::Family;
use crate::oci::config::{CONFIG_LIMIT, Description, image_diff_ids};
use crate::oci::manifest::{Document, Manifest};
use crate::oci::{Artifact, Descriptor, Digest, Reference, Which};
use crate::range::StoredRange;
use crate::repository::{Pinned, Repository, read_all};

/// How long the config is waited for: it says nothing that a reader needs.
const CONFIG_WAIT: Duration = Duration::from_secs(10);

/// An artifact under its digest.
#[derive(Debug)]
pub(super) struct Found {
    /// The manifest; of an index, the one that was chosen.
    pub(super) pinned: Pinned,
    /// What the manifest means.
    pub(super) artifact: Artifact,
    /// Who gave it.
    pub(super) from: Source,
    /// Why the repository did not, where the store did.
    pub(super) unanswered: Option<Error>,
}

/// Who gave a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The repository, just now: the caller may see it.
    Repository,
    /// The store, since nobody answers: the caller was allowed to see it before.
    Store,
}

/// Resolves what is asked, through one level of index. Costs one request, or two where there is an index.
///
/// # Errors
/// Those of [`Repository::manifest`], where the store does not help; those of reading a manifest, and of choosing one.
pub(super) async fn pin(repository: &dyn Repository, asked: &Asked, store: &Arc<Store>) -> Result<Found> {
    let reference = &asked.reference;
    let error = match ask(repository, asked).await {
        Ok(meant) => {
            let (pinned, artifact) =
                meant.map_err(|error| error.context(format!("cannot open {reference}")))?;
            return Ok(Found { pinned, artifact, from: Source::Repository, unanswered: None });
        }
        Err(error) => error,
    };
    if error.kind().leaves_open() {
        return recall(repository, asked, store, error).await;
    }
    if matches!(error.kind(), Kind::Denied | Kind::NotFound) {
        let reference = reference.clone();
        blocking(store, repository, move |store, who| store.revoke(who, &reference)).await;
    }
    Err(error.context(format!("cannot open {reference}")))
}

/// What is asked for, by the repository's own word of just now: nothing that is kept stands in for it. Costs one request, or two
/// where there is an index.
///
/// # Errors
/// Those of [`Repository::manifest`], of reading a manifest, and of choosing one.
pub async fn resolve(repository: &dyn Repository, asked: &Asked) -> Result<(Pinned, Artifact)> {
    let found = ask(repository, asked).await.and_then(|meant| meant);
    found.map_err(|error| error.context(format!("cannot open {}", asked.reference)))
}

/// The artifact that this one is built upon, as its config says. Costs a request for the config of a ModelKit, and none for others.
///
/// # Errors
/// Those of reading the config, and where it can't be meant, as [`Artifact::complete`] has them.
pub async fn parent(repository: &dyn Repository, artifact: &Artifact) -> Result<Option<Reference>> {
    let config = artifact.config.as_ref().filter(|_| artifact.family == Family::KitOps);
    let Some(config) = config else { return Ok(None) };
    let read = async { artifact.clone().complete(&fetch(repository, config).await?) };
    let doing = || format!("cannot read the config {}, which names a parent", config.digest);
    Ok(read.await.map_err(|error| error.context(doing()))?.parent)
}

/// What the config of a container image says its layers hold, one for each, the lowest first; none where it does not say it of
/// all. Costs a request.
///
/// # Errors
/// Those of reading the config; `Invalid` where it can't be read.
pub async fn diff_ids(repository: &dyn Repository, artifact: &Artifact) -> Result<Vec<Digest>> {
    let Some(config) = &artifact.config else { return Ok(Vec::new()) };
    let read = async { image_diff_ids(&fetch(repository, config).await?) };
    read.await.map_err(|error| error.context(format!("cannot read the config {}", config.digest)))
}

/// Of each blob of the artifact whose chunks its own index names as those of one file, what stands for the blob and these chunks: whoever
/// has the same has the same bytes. An index counts only where it does for who mounts the blobs: nobody else is held to it. Costs a
/// request where there is one.
///
/// # Errors
/// As [`bound::open`].
pub async fn chunk_names(
    repository: &dyn Repository,
    artifact: &Artifact,
) -> Result<BTreeMap<Digest, Digest>> {
    let blobs = artifact.as_blobs();
    let opened = bound::open(repository, &blobs, None).await?;
    let head = opened.as_ref().map(|opened| &opened.head);
    let index = find_blobs(repository, &blobs, head).await?;
    let named = index.layers.into_iter().filter_map(|layer| Some((layer.blob.digest, layer.bound?.kept_as)));
    Ok(named.collect())
}

/// Remembers that the repository has just given `pinned` to who asks.
pub(super) async fn admit(repository: &dyn Repository, asked: &Asked, store: &Arc<Store>, pinned: &Pinned) {
    let (asked, pinned) = (asked.clone(), pinned.clone());
    blocking(store, repository, move |store, who| store.admit(who, &asked, &pinned)).await;
}

/// Does what waits for the store's disk, in the name of who asks `repository`, where it holds up no other task;
/// `None` where the work was interrupted, which is as if nothing were kept.
pub(super) async fn blocking<T: Send + 'static>(
    store: &Arc<Store>,
    repository: &dyn Repository,
    work: impl FnOnce(&Store, &str) -> T + Send + 'static,
) -> Option<T> {
    let (store, who) = (store.clone(), repository.identity());
    let done = tokio::task::spawn_blocking(move || work(&store, &who)).await;
    done.inspect_err(|error| tracing::warn!(%error, "the store was not asked to the end")).ok()
}

/// What is meant, or why nothing can be, by what the repository gives; the error is the repository's own.
async fn ask(repository: &dyn Repository, asked: &Asked) -> Result<Result<(Pinned, Artifact)>> {
    let pinned = repository.manifest(&asked.reference.which()).await?;
    let choice = match Document::parse(&pinned.bytes, &pinned.media_type) {
        Ok(Document::Manifest(manifest)) => {
            return Ok(Artifact::read(manifest).map(|artifact| (pinned, artifact)));
        }
        Ok(Document::Index(choice)) => choice,
        Err(error) => return Ok(Err(error)),
    };
    let chosen = match choice.choose(asked.platform.as_ref()) {
        Ok(chosen) => chosen.digest.clone(),
        Err(error) => return Ok(Err(error)),
    };
    let pinned = repository.manifest(&Which::Digest(chosen)).await?;
    Ok(single(&pinned).and_then(Artifact::read).map(|artifact| (pinned, artifact)))
}

fn single(pinned: &Pinned) -> Result<Manifest> {
    match Document::parse(&pinned.bytes, &pinned.media_type)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => {
            let doing = format!("{} is an index inside of an index", pinned.digest);
            Err(Error::new(Kind::Unsupported, doing).hint("name the manifest that is meant with @DIGEST"))
        }
    }
}

async fn recall(
    repository: &dyn Repository,
    asked: &Asked,
    store: &Arc<Store>,
    error: Error,
) -> Result<Found> {
    let reference = &asked.reference;
    let wanted = asked.clone();
    let recalled = blocking(store, repository, move |store, who| store.recall(who, &wanted)).await;
    let Some(pinned) = recalled.flatten() else {
        return Err(error.context(format!("cannot open {reference}, and nothing of it is kept here")));
    };
    tracing::warn!(digest = %pinned.digest, "{reference} is opened from what is kept here: {error}");
    let artifact = Artifact::read(single(&pinned)?)?;
    Ok(Found { pinned, artifact, from: Source::Store, unanswered: Some(error) })
}

/// The config's bytes, kept or asked for; `None` where the artifact has none, or where it is of no use, of
/// which `warnings` then has a line.
pub(super) async fn config(
    repository: &dyn Repository,
    found: &Found,
    store: &Arc<Store>,
    warnings: &mut Vec<String>,
) -> Option<Bytes> {
    let descriptor = found.artifact.config.as_ref()?;
    let had =
        tokio::time::timeout(CONFIG_WAIT, needed_config(repository, descriptor, found.from, store)).await;
    let had = had.unwrap_or_else(|_| Err(Error::new(Kind::Deadline, "no answer in time")));
    had.inspect_err(|error| {
        warnings.push(format!("the config {} can't be read: {error}", descriptor.digest));
    })
    .ok()
}

/// The config's bytes, kept or asked for: `from` is who gave its manifest.
///
/// # Errors
/// Those of reading; `NotFound` where they are not kept and nobody answers; `Integrity` where they are not what the
/// digest says.
pub(super) async fn needed_config(
    repository: &dyn Repository,
    descriptor: &Descriptor,
    from: Source,
    store: &Arc<Store>,
) -> Result<Bytes> {
    let digest = descriptor.digest.clone();
    let asked = digest.clone();
    if let Some(Some(kept)) = blocking(store, repository, move |store, who| store.small(who, &asked)).await {
        return Ok(kept);
    }
    if from == Source::Store {
        return Err(Error::new(Kind::NotFound, "it is not kept here"));
    }
    let bytes = fetch(repository, descriptor).await?;
    let kept = bytes.clone();
    blocking(store, repository, move |store, who| store.keep_small(who, &digest, &kept)).await;
    Ok(bytes)
}

/// The head of the artifact's bound index as it was kept of an earlier time.
pub(super) async fn kept_head(
    repository: &dyn Repository,
    store: &Arc<Store>,
    artifact: &Artifact,
) -> Option<Bytes> {
    let digest = artifact.bound_index().ok()??.head.digest;
    blocking(store, repository, move |store, who| store.small(who, &digest)).await?
}

/// The attached index that was used of the artifact `subject` at an earlier time, with its head.
pub(super) async fn kept_attached(
    repository: &dyn Repository,
    store: &Arc<Store>,
    subject: &Digest,
) -> Option<Kept> {
    let subject = subject.clone();
    let kept = move |store: &Store, who: &str| {
        let index = store.attached(who, &subject)?;
        let head = store.small(who, &index.head.digest)?;
        Some((index, head))
    };
    blocking(store, repository, kept).await?
}

/// Keeps the attached index that was used of the artifact `subject`, as [`keep_bound`] does one of its own.
pub(super) async fn keep_attached(
    repository: &dyn Repository,
    store: &Arc<Store>,
    subject: &Digest,
    opened: bound::Opened,
) {
    let (subject, index) = (subject.clone(), opened.index.clone());
    keep_bound(repository, store, opened).await;
    blocking(store, repository, move |store, who| store.keep_attached(who, &subject, &index)).await;
}

/// The indexes of compressed layers that were made here, by layer and how it is read.
pub(super) async fn kept_indexes(
    repository: &dyn Repository,
    store: &Arc<Store>,
    artifact: &Artifact,
) -> HashMap<(Digest, String), Arc<File>> {
    let compressed = artifact.visible().filter(|layer| compression(layer.packaging).is_some());
    let compressed = compressed.map(|layer| (layer.descriptor.digest.clone(), layer.reading()));
    let compressed: Vec<(Digest, String)> = compressed.collect();
    let open = move |store: &Store, who: &str| {
        let opened =
            compressed.into_iter().filter_map(|layer| Some((store.index(who, &layer.0, &layer.1)?, layer)));
        opened.map(|(file, layer)| (layer, Arc::new(file))).collect()
    };
    blocking(store, repository, open).await.unwrap_or_default()
}

/// Keeps the head of a bound index and the sections that came along with it, so that the artifact opens again while
/// nobody answers.
pub(super) async fn keep_bound(repository: &dyn Repository, store: &Arc<Store>, opened: bound::Opened) {
    let keep = move |store: &Store, who: &str| {
        store.keep_small(who, &opened.index.head.digest, &opened.bytes);
        for bound in opened.head.layers.iter().filter_map(|layer| layer.bound.as_ref()) {
            if let Some(section) = &bound.chunks.bytes {
                store.keep_small(who, &bound.chunks.digest, section);
            }
        }
    };
    blocking(store, repository, keep).await;
}

async fn fetch(repository: &dyn Repository, descriptor: &Descriptor) -> Result<Bytes> {
    if descriptor.size > CONFIG_LIMIT {
        return Err(Error::new(Kind::Invalid, format!("it has {} bytes", descriptor.size)));
    }
    let range = StoredRange::new(0, descriptor.size);
    let bytes = read_all(repository, &descriptor.blob(), range).await?;
    match descriptor.digest.matches(&bytes) {
        true => Ok(bytes),
        false => Err(Error::new(Kind::Integrity, "its bytes are not what the digest says")),
    }
}

/// The diffIDs that the config of a model gives.
pub(super) fn described(config: Option<&Bytes>) -> Vec<Digest> {
    config.map(|bytes| Description::parse(bytes).diff_ids).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures_util::future::BoxFuture;
    use parking_lot::Mutex;

    use super::super::Model;
    use super::*;
    use crate::content::{Config, StoreConfig};
    use crate::index::{ChunkDigest, Proof, View, find, format};
    use crate::oci::Blob;
    use crate::oci::artifact::{
        INDEX_DIGEST_KEY, INDEX_HEAD_DIGEST_KEY, INDEX_HEAD_SIZE_KEY, INDEX_KEY, INDEX_SIZE_KEY,
    };
    use crate::oci::manifest::OCI_MANIFEST;
    use crate::repository::around::Around;
    use crate::repository::memory::nothing;
    use crate::repository::{ByteStream, Memory};

    const MANIFEST: &[u8] = br#"{"schemaVersion":2,"layers":[]}"#;

    /// Answers with the manifest, or with what stands here first.
    #[derive(Debug, Default)]
    struct Fickle(Mutex<VecDeque<Kind>>);

    impl Around for Fickle {
        fn inner(&self) -> &dyn Repository {
            nothing()
        }

        fn manifest<'a>(&'a self, _: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
            let media_type = OCI_MANIFEST.to_owned();
            let pinned = Pinned { digest: Digest::of(MANIFEST), media_type, bytes: MANIFEST.into() };
            let failure = self.0.lock().pop_front();
            Box::pin(async move { failure.map_or(Ok(pinned), |kind| Err(Error::new(kind, "no"))) })
        }

        fn read<'a>(&'a self, _: &'a Blob, _: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
            unreachable!("no blob is read")
        }

        fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
            Around::read(self, blob, range)
        }

        fn identity(&self) -> String {
            "me".to_owned()
        }
    }

    #[tokio::test]
    async fn who_is_refused_is_given_nothing_that_is_kept_from_then_on() {
        for refusal in [Kind::Denied, Kind::NotFound] {
            let place = tempfile::tempdir().unwrap();
            let config = StoreConfig { folder: place.path().join("store"), size: Some(1 << 20) };
            let (store, repository) = (Store::open(&config).unwrap(), Fickle::default());
            let reference: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
            let asked = Asked::from(&reference);
            let found = pin(&repository, &asked, &store).await.unwrap();
            admit(&repository, &asked, &store, &found.pinned).await;

            repository.0.lock().extend([Kind::Unreachable, refusal, Kind::Unreachable]);
            let kept = pin(&repository, &asked, &store).await.unwrap();
            assert_eq!((kept.from, kept.pinned.digest), (Source::Store, found.pinned.digest));
            assert_eq!(pin(&repository, &asked, &store).await.unwrap_err().kind(), refusal);
            let error = pin(&repository, &asked, &store).await.unwrap_err();
            assert_eq!(error.kind(), Kind::Unreachable, "{error}");
        }
    }

    const WEIGHTS: &[u8] = b"weights";
    const OTHER: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    /// A repository with weights and an index of them, and as JSON: the descriptor of the weights, that of the index without
    /// annotations, and those which pin it.
    async fn indexed() -> (Arc<Memory>, [String; 3]) {
        let memory = Arc::new(Memory::new());
        let Blob { digest, size } = memory.put(WEIGHTS);
        let annotations = [("org.cncf.model.filepath".to_owned(), "w".to_owned())].into();
        let layer = Descriptor { media_type: "x.raw".to_owned(), digest, size, annotations };
        let weights = format!(r#"{{"mediaType":"x.raw","digest":"{}","size":{size}}}"#, layer.digest);
        let plain = Artifact::read(Manifest { layers: vec![layer], ..Manifest::default() }).unwrap();
        let index = find(&*memory, &plain, &|_| Vec::new()).await.unwrap();
        let encoded = format::encode(&index, &[vec![ChunkDigest::of(WEIGHTS)]]).unwrap();
        let Blob { digest, size } = memory.put(encoded.bytes().unwrap());
        let pins = format!(
            r#""annotations":{{"{INDEX_KEY}":"v1","{INDEX_HEAD_DIGEST_KEY}":"{}","{INDEX_HEAD_SIZE_KEY}":"{}",
            "{INDEX_DIGEST_KEY}":"{digest}","{INDEX_SIZE_KEY}":"{size}"}}"#,
            encoded.head.digest, encoded.head.size
        );
        (memory, [weights, format!(r#""digest":"{digest}","size":{size}"#), pins])
    }

    /// How many blobs `chunk_names` has, which must be those that a mount of the blobs holds to an index.
    async fn names_like_the_mount(memory: &Arc<Memory>, manifest: &str) -> usize {
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}",{manifest}}}"#);
        memory.put_manifest("v1", OCI_MANIFEST, manifest);
        let reference: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
        let (_, artifact) = resolve(&**memory, &Asked::from(&reference)).await.unwrap();
        let named = chunk_names(&**memory, &artifact).await.unwrap();
        let place = tempfile::tempdir().unwrap();
        let config = StoreConfig { folder: place.path().join("store"), size: Some(1 << 20) };
        let (store, memory) = (Store::open(&config).unwrap(), memory.clone());
        let config = Config { view: View::Blobs, proof: Proof::Layer, ..Config::default() };
        let mount = Model::open(memory, reference, store, config).await.unwrap();
        let layers = mount.index.layers.iter();
        let held = layers.filter_map(|layer| Some((layer.blob.digest.clone(), layer.bound.clone()?.kept_as)));
        assert_eq!(named, held.collect());
        mount.close().await;
        named.len()
    }

    #[tokio::test]
    async fn an_index_that_a_mount_of_the_blobs_is_not_held_to_names_no_chunks() {
        let (memory, [weights, index, pins]) = indexed().await;
        let as_layer = format!(r#""layers":[{weights},{{"mediaType":"y.raw",{index},{pins}}}]"#);
        assert_eq!(names_like_the_mount(&memory, &as_layer).await, 1);
        // A layer that is the config as well is shown as the config.
        let as_config = format!(r#""config":{{"mediaType":"z",{index}}},{as_layer}"#);
        assert_eq!(names_like_the_mount(&memory, &as_config).await, 0);
        let layer = "application/vnd.docker.image.rootfs.diff.tar";
        let beside_image =
            format!(r#""layers":[{weights},{{"mediaType":"{layer}","digest":"{OTHER}","size":9}}],{pins}"#);
        assert_eq!(names_like_the_mount(&memory, &beside_image).await, 0);
    }
}
