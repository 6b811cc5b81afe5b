//! Tests of indexes that are attached to an artifact: used where they are trusted, a line in the log where not.

use futures_util::FutureExt;

use super::*;
use crate::codec::tar::tests::plain;
use crate::index::local::tests::indexed;
use crate::index::pass::tests::digested;
use crate::index::{Coding, Guides, Index, Sources, find_in, format};
use crate::oci::Digest;
use crate::oci::manifest::OCI_MANIFEST;
use crate::repository::Memory;

/// An artifact of one gzip layer in memory, and its manifest's digest.
struct Model {
    memory: Memory,
    stored: Vec<u8>,
    digest: Digest,
    artifact: Artifact,
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
    fn attach(&self, change: impl FnOnce(&mut Vec<u8>), subject: &Digest, artifact_type: &str) {
        let (layer, mut entries, _) = indexed("tar+gzip", &self.stored);
        entries.iter_mut().for_each(|entry| *entry = crate::index::local::renumbered(entry.clone(), 0));
        let index = Index { entries, layers: vec![layer], warnings: Vec::new() };
        let encoded = format::encode(&index, &[digested("tar+gzip", &self.stored)]).unwrap();
        let mut bytes = encoded.bytes().unwrap().to_vec();
        change(&mut bytes);
        self.memory.replace(&encoded.blob.digest, bytes);
        let manifest = format!(
            r#"{{"schemaVersion":2,"artifactType":"{artifact_type}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},
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
    }

    fn find(&self, trust: Trust) -> Result<Index> {
        let attached = Some(Subject { digest: &self.digest, trust });
        let sources = Sources {
            bound: None,
            local: &|_| None,
            attached,
            known: &|_| Vec::new(),
            guides: Guides::default(),
        };
        find_in(&self.memory, &self.artifact, sources).now_or_never().unwrap()
    }
}

#[test]
fn an_attached_index_counts_where_it_is_trusted_and_nowhere_else() {
    let model = model();
    model.attach(|_| {}, &model.digest, ARTIFACT_TYPE);
    let trusted = model.find(Trust::Always).unwrap();
    assert!(matches!(trusted.layers[0].coding, Coding::Spans(_)));
    assert_eq!(trusted.entries[0].path, "a");
    assert_ne!(trusted.layers[0].kept_as(), &trusted.layers[0].blob.digest, "its word is not the layer's");
    let ignored = model.find(Trust::Never).unwrap();
    assert!(matches!(ignored.layers[0].coding, Coding::Streamed(..)) && ignored.entries.is_empty());
}

#[test]
fn what_belongs_to_another_artifact_or_is_another_tools_is_not_taken() {
    let model = model();
    model.attach(|_| {}, &Digest::of(b"another"), ARTIFACT_TYPE);
    model.attach(|_| {}, &model.digest, "application/vnd.amazon.soci.index.v1+json");
    assert!(matches!(model.find(Trust::Always).unwrap().layers[0].coding, Coding::Streamed(..)));
}

#[test]
fn a_trusted_index_that_is_damaged_is_an_error_that_names_it() {
    for at in [0, 20, 70, 300] {
        let model = model();
        model.attach(|bytes| bytes[at] ^= 1, &model.digest, ARTIFACT_TYPE);
        let error = model.find(Trust::Always).unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity);
        assert!(error.to_string().contains("the attached index sha256:"), "{error}");
        assert!(matches!(model.find(Trust::Never).unwrap().layers[0].coding, Coding::Streamed(..)));
    }
}
