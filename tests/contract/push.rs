//! The contract of [`Target`], over an image layout folder and registries.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use weightfs::oci::{Blob, Digest, Which};
use weightfs::range::StoredRange;
use weightfs::repository::push::{Piece, Target, Upload};
use weightfs::repository::{Config, Memory, Repository, connect, read_all};

use crate::support;

const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// Bytes of which no two stretches are alike.
fn counting(len: usize) -> Bytes {
    let mut bytes = vec![0; len];
    for (place, eight) in bytes.chunks_mut(8).enumerate() {
        eight.copy_from_slice(&place.to_le_bytes()[..eight.len()]);
    }
    bytes.into()
}

fn blob_of(bytes: &[u8]) -> Blob {
    Blob { digest: Digest::of(bytes), size: bytes.len().try_into().unwrap() }
}

/// The same bytes, from every kind of piece.
struct Origins {
    folder: tempfile::TempDir,
    memory: Arc<Memory>,
}

impl Origins {
    fn new() -> Self {
        Self { folder: support::scratch::roomy(), memory: Arc::new(Memory::new()) }
    }

    fn file(&self, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(Digest::of(bytes).hex());
        std::fs::write(&path, [b"before", bytes, b"after"].concat()).unwrap();
        path
    }

    fn in_memory(&self, bytes: &Bytes) -> Vec<Piece> {
        vec![Piece::Bytes(bytes.clone())]
    }

    fn in_a_file(&self, bytes: &Bytes) -> Vec<Piece> {
        let range = StoredRange::new(6, 6 + bytes.len() as u64);
        vec![Piece::File { path: self.file(bytes), range }]
    }

    fn elsewhere(&self, bytes: &Bytes) -> Vec<Piece> {
        let blob = self.memory.put(bytes.clone());
        vec![Piece::Blob { repository: self.memory.clone(), blob }]
    }

    /// A third of each.
    fn everywhere(&self, bytes: &Bytes) -> Vec<Piece> {
        let (a, b) = (bytes.len() / 3, bytes.len() / 3 * 2);
        let mut pieces = self.in_memory(&bytes.slice(..a));
        pieces.push(Piece::Bytes(Bytes::new()));
        pieces.extend(self.in_a_file(&bytes.slice(a..b)));
        pieces.extend(self.elsewhere(&bytes.slice(b..)));
        pieces
    }
}

/// Puts one blob from `pieces`, and gives the bytes that were said to be sent.
async fn put(target: &Arc<Target>, blob: &Blob, pieces: Vec<Piece>) -> u64 {
    let (target, upload) = (target.clone(), Upload { blob: blob.clone(), pieces });
    let putting = async move {
        let sent = AtomicU64::new(0);
        target
            .put(&upload, &|n| {
                sent.fetch_add(n, Ordering::Relaxed);
            })
            .await
            .map(|()| sent.into_inner())
    };
    // In a task of its own, as those who push many at once do.
    tokio::spawn(putting).await.unwrap().unwrap()
}

/// Pushes everything that may be pushed to `target`, and reads it back from `reader`.
async fn holds(target: Target, reader: &dyn Repository) {
    let target = Arc::new(target);
    let origins = Origins::new();
    let large = counting(70 << 20);
    let mut blobs = Vec::new();
    for (len, pieces) in [
        (0, Origins::in_memory as fn(&Origins, &Bytes) -> Vec<Piece>),
        (1, Origins::in_a_file),
        ((4 << 20) + 3, Origins::in_memory),
        ((5 << 20) + 1, Origins::elsewhere),
        (4 << 20, Origins::everywhere),
        (70 << 20, Origins::in_a_file),
        ((70 << 20) - 1, Origins::everywhere),
    ] {
        let bytes = large.slice(..len);
        let blob = blob_of(&bytes);
        assert!(!target.has(&blob).await.unwrap(), "{len}");
        assert_eq!(put(&target, &blob, pieces(&origins, &bytes)).await, blob.size);
        assert!(target.has(&blob).await.unwrap(), "{len}");
        let all = read_all(reader, &blob, StoredRange::new(0, blob.size)).await.unwrap();
        assert!(all == bytes, "{len}");
        blobs.push(blob);
    }
    a_blob_that_is_there_may_be_put_again(&target, &blobs[3], &large).await;
    what_is_not_the_blob_is_refused(&target).await;
    manifests_are_found_under_the_names_they_were_given(&target, reader, &blobs).await;
}

async fn a_blob_that_is_there_may_be_put_again(target: &Arc<Target>, blob: &Blob, large: &Bytes) {
    let bytes = large.slice(..blob.size as usize);
    assert_eq!(put(target, blob, vec![Piece::Bytes(bytes)]).await, blob.size);
}

async fn what_is_not_the_blob_is_refused(target: &Target) {
    let blob = blob_of(b"what was promised");
    for (pieces, kind) in [
        (vec![Piece::Bytes(Bytes::from_static(b"what was promise"))], weightfs::Kind::Invalid),
        (vec![Piece::Bytes(Bytes::from_static(b"what WAS promised"))], weightfs::Kind::Integrity),
    ] {
        let error = target.put(&Upload { blob: blob.clone(), pieces }, &|_| {}).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(!target.has(&blob).await.unwrap());
    }
}

async fn manifests_are_found_under_the_names_they_were_given(
    target: &Target,
    reader: &dyn Repository,
    blobs: &[Blob],
) {
    let config = &blobs[1];
    let manifest = |note: &str| -> Bytes {
        let blob = |blob: &Blob| serde_json::json!({"mediaType": "application/x", "digest": blob.digest, "size": blob.size});
        serde_json::json!({
            "schemaVersion": 2, "mediaType": MEDIA_TYPE, "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": blob(config), "layers": blobs[2..].iter().map(blob).collect::<Vec<_>>(),
            "annotations": {"note": note},
        })
        .to_string()
        .into()
    };
    let (first, second) = (manifest("first"), manifest("second"));
    for (tag, bytes) in [(Some("v1"), &first), (Some("v1"), &first), (None, &second), (Some("v1"), &second)] {
        let digest = target.tag(tag, MEDIA_TYPE, bytes).await.unwrap();
        assert_eq!(digest, Digest::of(bytes));
        let which = tag.map_or_else(|| Which::Digest(digest.clone()), |tag| Which::Tag(tag.into()));
        let pinned = reader.manifest(&which).await.unwrap();
        assert_eq!((&pinned.bytes, &*pinned.media_type), (bytes, MEDIA_TYPE));
    }
    let pinned = reader.manifest(&Which::Digest(Digest::of(&first))).await.unwrap();
    assert_eq!(pinned.bytes, first, "what lost its tag is still there");
}

fn opened(reference: &str) -> (Target, Arc<dyn Repository>) {
    let (reference, config) = (reference.parse().unwrap(), Config::default());
    (Target::open(&reference, &config).unwrap(), connect(&reference, &config).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_layout_keeps_the_contract() {
    let folder = support::scratch::roomy();
    let (target, reader) = opened(&format!("oci:{}", folder.path().join("made/here").display()));
    holds(target, &*reader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_registry_keeps_the_contract() {
    let registry = support::registry::Registry::start();
    let (target, reader) = opened(&format!("{}/team/model", registry.direct()));
    holds(target, &*reader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_registry_mounts_from_another_repository() {
    let registry = support::registry::Registry::start();
    let bytes = counting(5 << 20);
    let blob = blob_of(&bytes);
    let (one, _) = opened(&format!("{}/team/one", registry.direct()));
    put(&Arc::new(one), &blob, vec![Piece::Bytes(bytes.clone())]).await;
    let (two, reader) = opened(&format!("{}/team/two", registry.direct()));
    assert!(!two.mount(&blob, "team/nobody").await.unwrap());
    assert!(!two.mount(&blob_of(b"nowhere"), "team/one").await.unwrap());
    assert!(!two.has(&blob).await.unwrap());
    assert!(two.mount(&blob, "team/one").await.unwrap());
    assert!(two.has(&blob).await.unwrap());
    assert!(read_all(&*reader, &blob, StoredRange::new(0, blob.size)).await.unwrap() == bytes);
    assert_eq!(registry.uploads("team/two"), 0, "no upload is left under way");
}
