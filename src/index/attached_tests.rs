//! Tests of indexes that are attached to an artifact: which of them is used, and what one that is wrong or slow costs.

use futures_util::future::BoxFuture;

use super::*;
use crate::codec::tar::tests::plain;
use crate::index::local::tests::indexed;
use crate::index::pass::tests::digested;
use crate::index::{Attached, Coding, Guides, Index, Sources, find_in, format};
use crate::oci::Digest;
use crate::oci::manifest::OCI_MANIFEST;
use crate::repository::Memory;
use crate::repository::around::Around;

/// An artifact of one gzip layer in memory, and its manifest's digest.
struct Model {
    memory: Memory,
    stored: Vec<u8>,
    digest: Digest,
    artifact: Artifact,
}

fn sources(attached: Attached<'_>) -> Sources<'_> {
    Sources {
        bound: None,
        local: &|_| None,
        attached,
        known: &|_| Vec::new(),
        guides: Guides::default(),
        proof: crate::index::Proof::default(),
    }
}

fn model() -> Model {
    let mut content = [plain("a", 700), vec![7; 1024]].concat();
    content.extend([0; 1024]);
    let stored = crate::codec::gzip::tests::member(&content, 6);
    let memory = Memory::new();
    let blob = memory.put(stored.clone());
    let layer = format!(
        r#"{{"mediaType":"application/vnd.cncf.modelpack.model.layer.v1.tar+gzip","digest":"{}","size":{}}}"#,
        blob.digest, blob.size
    );
    let manifest = format!(r#"{{"schemaVersion":2,"layers":[{layer}]}}"#).into_bytes();
    let digest = memory.put_manifest("v1", OCI_MANIFEST, manifest.clone());
    let Document::Manifest(parsed) = Document::parse(&manifest, OCI_MANIFEST).unwrap() else {
        panic!("a list")
    };
    Model { memory, stored, digest, artifact: Artifact::read(parsed).unwrap() }
}

impl Model {
    /// Attaches the layer's index, whose bytes and manifest are changed before.
    fn attach(&self, change: impl FnOnce(&mut Vec<u8>), subject: &Digest, artifact_type: &str) -> Digest {
        self.attach_at("", change, subject, artifact_type)
    }

    /// The same with the time `created`, if there is one; gives the index's digest. The time is part of the index's file, too, in
    /// the form of a folder's, so that each is another.
    fn attach_at(
        &self,
        created: &str,
        change: impl FnOnce(&mut Vec<u8>),
        subject: &Digest,
        artifact_type: &str,
    ) -> Digest {
        let (layer, mut entries, _) = indexed("tar+gzip", &self.stored);
        entries.iter_mut().for_each(|entry| {
            *entry = crate::index::local::renumbered(entry.clone(), 0);
            entry.mtime = seconds(created).unwrap_or(0);
        });
        let index = Index { entries, layers: vec![layer], warnings: Vec::new() };
        let encoded = format::encode(&index, &[digested("tar+gzip", &self.stored)]).unwrap();
        let mut bytes = encoded.bytes().unwrap().to_vec();
        change(&mut bytes);
        self.memory.replace(&encoded.blob.digest, bytes);
        let annotations = match created {
            "" => String::new(),
            time => format!(r#""annotations":{{"{CREATED}":"{time}"}},"#),
        };
        let manifest = format!(
            r#"{{"schemaVersion":2,"artifactType":"{artifact_type}",{annotations}"config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},
            "subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":1}},
            "layers":[{{"mediaType":"{ARTIFACT_TYPE}","digest":"{}","size":{},"annotations":{{"dev.weightfs.index":"v1",
            "dev.weightfs.index.head.digest":"{}","dev.weightfs.index.head.size":"{}"}}}}]}}"#,
            Digest::of(b"{}"),
            encoded.blob.digest,
            encoded.blob.size,
            encoded.head.digest,
            encoded.head.size
        );
        self.memory.put_manifest("index", OCI_MANIFEST, manifest.into_bytes());
        encoded.blob.digest
    }

    async fn find_where(&self, attached: Attached<'_>) -> Result<(Index, Option<Opened>)> {
        find_in(&self.memory, &self.artifact, sources(attached)).await
    }

    async fn find(&self) -> Result<Index> {
        self.find_where(Attached::Beside(&self.digest, None)).await.map(|(index, _)| index)
    }

    /// The digest of the index that is used.
    async fn used(&self) -> Option<Digest> {
        let (_, used) = self.find_where(Attached::Beside(&self.digest, None)).await.unwrap();
        used.map(|opened| opened.index.blob.digest)
    }
}

fn is_streamed(index: &Index) -> bool {
    matches!(index.layers[0].coding, Coding::Streamed(..)) && index.entries.is_empty()
}

#[tokio::test]
async fn an_attached_index_counts_where_it_is_looked_for_and_nowhere_else() {
    let model = model();
    model.attach(|_| {}, &model.digest, ARTIFACT_TYPE);
    let trusted = model.find().await.unwrap();
    assert!(matches!(trusted.layers[0].coding, Coding::Spans(_)));
    assert_eq!(trusted.entries[0].path, "a");
    assert_ne!(trusted.layers[0].kept_as(), &trusted.layers[0].blob.digest, "its word is not the layer's");
    let asked = model.memory.requests();
    assert!(is_streamed(&model.find_where(Attached::Nowhere).await.unwrap().0));
    assert_eq!(model.memory.requests(), asked);
}

#[tokio::test]
async fn what_belongs_to_another_artifact_or_is_another_tools_is_not_taken() {
    let model = model();
    model.attach(|_| {}, &Digest::of(b"another"), ARTIFACT_TYPE);
    model.attach(|_| {}, &model.digest, "application/vnd.amazon.soci.index.v1+json");
    assert!(is_streamed(&model.find().await.unwrap()));
}

#[tokio::test]
async fn a_trusted_index_that_is_damaged_is_an_error_that_names_it() {
    for at in [0, 20, 70, 300] {
        let model = model();
        model.attach(|bytes| bytes[at] ^= 1, &model.digest, ARTIFACT_TYPE);
        let error = model.find().await.unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity);
        assert!(error.to_string().contains("the attached index sha256:"), "{error}");
        assert!(is_streamed(&model.find_where(Attached::Nowhere).await.unwrap().0));
    }
}

#[tokio::test]
async fn of_several_the_newest_that_is_right_is_used_whatever_the_order() {
    let model = model();
    let attach = |created: &str| model.attach_at(created, |_| {}, &model.digest, ARTIFACT_TYPE);
    let without = attach("");
    assert_eq!(model.used().await, Some(without));
    let middle = attach("2025-06-01T00:00:00Z");
    attach("2024-01-01T00:00:00Z");
    attach("no time at all");
    assert_eq!(model.used().await, Some(middle));
    let newest = attach("2025-06-01T01:00:00+00:30");
    assert_eq!(model.used().await, Some(newest));
    model.attach_at("2026-01-01T00:00:00Z", |bytes| bytes[70] ^= 1, &model.digest, ARTIFACT_TYPE);
    assert_eq!(model.used().await, Some(attach("2025-06-01T01:00:00+00:30")), "a broken one is passed over");
}

#[tokio::test]
async fn an_index_that_was_used_serves_again_where_nobody_can_be_asked_and_saves_asking_elsewhere() {
    let model = model();
    model.attach(|_| {}, &model.digest, ARTIFACT_TYPE);
    let (_, used) = model.find_where(Attached::Beside(&model.digest, None)).await.unwrap();
    let used = used.unwrap();
    let kept = (used.index.clone(), used.bytes.clone());
    let asked = model.memory.requests();
    for attached in [Attached::Kept(kept.clone()), Attached::Beside(&model.digest, Some(kept.clone()))] {
        let (index, _) = model.find_where(attached).await.unwrap();
        assert!(matches!(index.layers[0].coding, Coding::Spans(_)));
    }
    assert_eq!(model.memory.requests(), asked, "its head is not read again");
    let spoiled = (kept.0, Bytes::from_static(b"spoiled"));
    assert!(is_streamed(&model.find_where(Attached::Kept(spoiled)).await.unwrap().0));
}

/// Blobs and manifests in memory, and a list of referrers that never comes.
#[derive(Debug)]
struct Silent(Memory);

impl Around for Silent {
    fn inner(&self) -> &dyn Repository {
        &self.0
    }

    fn referrers<'a>(&'a self, _: &'a Digest, _: &'a str) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_of_referrers_that_never_comes_costs_some_seconds_and_no_more() {
    let Model { memory, digest, artifact, .. } = model();
    let began = Instant::now();
    let attached = Attached::Beside(&digest, None);
    let (index, used) = find_in(&Silent(memory), &artifact, sources(attached)).await.unwrap();
    assert!(is_streamed(&index) && used.is_none());
    assert_eq!(began.elapsed(), LIST_WAIT, "by the clock that stands still");
}
