//! However the bytes of an index are changed, what a model serves by it is right, or an error.
//!
//! Head, sections and checkpoints alike, of gzip and zstd layers, of an index that the artifact binds and of one that is
//! attached to it and trusted.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Model, NodeId};
use crate::codec::gzip;
use crate::codec::tar::tests::plain as header;
use crate::codec::zstd::Compressor;
use crate::content::{Config, Store, StoreConfig, Warm};
use crate::error::Kind;
use crate::index::local::{renumbered, tests::indexed};
use crate::index::pass::tests::digested;
use crate::index::{Index, Trust, format};
use crate::oci::manifest::OCI_MANIFEST;
use crate::oci::{Digest, Reference};
use crate::repository::Memory;

const ATTACHED: &str = "application/vnd.weightfs.index.v1";
const SIZES: [usize; 3] = [700_001, 1, 150_000];

/// Where the index is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Bound,
    Attached,
}

/// An artifact of one compressed layer, and its index as it should be.
struct Packed {
    memory: Arc<Memory>,
    index: Vec<u8>,
    digest: Digest,
    trust: Trust,
}

/// A change of an index. Places count from its start and are taken modulo its length.
#[derive(Clone, Debug)]
enum Change {
    Flip { at: usize, bits: u8 },
    Truncate { at: usize },
    Swap { at: usize, with: usize, len: usize },
    Repeat { at: usize, len: usize },
    Insert { at: usize, bytes: Vec<u8> },
}

impl Change {
    fn make(&self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let len = bytes.len();
        let until = |at: usize, more: usize| (at + more).min(bytes.len());
        match self {
            Self::Flip { at, bits } => bytes.iter_mut().skip(at % len).take(1).for_each(|byte| *byte ^= bits),
            Self::Truncate { at } => bytes.truncate(at % len),
            Self::Swap { at, with, len: more } => {
                let (at, with) = (at % len, with % len);
                let (one, other) = (at.min(with), at.max(with));
                let more = (*more).min(len - other);
                (0..more).for_each(|by| bytes.swap(one + by, other + by));
            }
            Self::Repeat { at, len: more } => {
                let at = at % len;
                let again = bytes[at..until(at, *more)].to_vec();
                drop(bytes.splice(at..at, again));
            }
            Self::Insert { at, bytes: more } => drop(bytes.splice(at % len..at % len, more.iter().copied())),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    // The head and the tables are small beside the checkpoints.
    let at = || prop_oneof![2 => 0..1500_usize, 1 => any::<usize>()];
    prop_oneof![
        4 => (at(), 1..=255_u8).prop_map(|(at, bits)| Change::Flip { at, bits }),
        1 => at().prop_map(|at| Change::Truncate { at }),
        1 => (at(), at(), 1..200_usize).prop_map(|(at, with, len)| Change::Swap { at, with, len }),
        1 => (at(), 1..200_usize).prop_map(|(at, len)| Change::Repeat { at, len }),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..60)).prop_map(|(at, bytes)| Change::Insert { at, bytes }),
    ]
}

/// Half random, as weights are.
fn files() -> Vec<Vec<u8>> {
    let mut state = 7_u64;
    let mut byte = |at: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if at.is_multiple_of(2) { state.to_le_bytes()[7] } else { 0x3c }
    };
    SIZES.iter().map(|size| (0..*size).map(&mut byte).collect()).collect()
}

fn stored(suffix: &str) -> Vec<u8> {
    let mut content = Vec::new();
    for (number, file) in files().iter().enumerate() {
        content.extend(header(&number.to_string(), file.len() as u64));
        content.extend(file);
        content.resize(content.len().next_multiple_of(512), 0);
    }
    content.extend([0; 1024]);
    if suffix == "tar+gzip" {
        return gzip::tests::member(&content, 6);
    }
    let (mut compressor, mut stored) = (Compressor::new(1).unwrap(), Vec::new());
    for frame in content.chunks(130_000) {
        compressor.frame(frame, &mut stored).unwrap();
    }
    stored
}

impl Packed {
    fn new(suffix: &str, place: Place) -> Self {
        let stored = stored(suffix);
        let (layer, entries, _) = indexed(suffix, &stored);
        let entries = entries.into_iter().map(|entry| renumbered(entry, 0)).collect();
        let index = Index { entries, layers: vec![layer], warnings: Vec::new() };
        let encoded = format::encode(&index, &[digested(suffix, &stored)]).unwrap();
        let memory = Arc::new(Memory::new());
        let blob = memory.put(stored);
        memory.put(encoded.bytes().unwrap());
        let layer = |media_type: &str, digest: &Digest, size: u64, annotations: &str| {
            format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size}{annotations}}}"#)
        };
        let own = layer(
            &format!("application/vnd.cncf.modelpack.model.layer.v1.{suffix}"),
            &blob.digest,
            blob.size,
            "",
        );
        let annotations = format!(
            r#","annotations":{{"dev.weightfs.index":"v1","dev.weightfs.index.head.digest":"{}","dev.weightfs.index.head.size":"{}"}}"#,
            encoded.head.digest, encoded.head.size
        );
        let pinned = |media_type| layer(media_type, &encoded.blob.digest, encoded.blob.size, &annotations);
        let manifest = |layers: String| format!(r#"{{"schemaVersion":2,"layers":[{layers}]}}"#);
        match place {
            Place::Bound => {
                let layers = format!("{own},{}", pinned("application/vnd.cncf.model.doc.v1.raw"));
                memory.put_manifest("v1", OCI_MANIFEST, manifest(layers));
            }
            Place::Attached => {
                let subject = memory.put_manifest("v1", OCI_MANIFEST, manifest(own));
                let index = format!(
                    r#"{{"schemaVersion":2,"artifactType":"{ATTACHED}","config":{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{}","size":2}},
                    "subject":{{"mediaType":"{OCI_MANIFEST}","digest":"{subject}","size":1}},"layers":[{}]}}"#,
                    Digest::of(b"{}"),
                    pinned(ATTACHED)
                );
                memory.put_manifest("index", OCI_MANIFEST, index);
            }
        }
        let trust = if place == Place::Bound { Trust::Never } else { Trust::Always };
        Self { memory, index: encoded.bytes().unwrap().to_vec(), digest: encoded.blob.digest, trust }
    }

    async fn open(&self, folder: &tempfile::TempDir) -> crate::error::Result<Model> {
        let store = StoreConfig { folder: folder.path().join("store"), size: Some(1 << 30) };
        let reference: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
        let config = Config { warm: Warm::None, trust_index: self.trust, ..Config::default() };
        Model::open(self.memory.clone(), reference, Store::open(&store).unwrap(), config).await
    }

    /// Reads of the model under a changed index; whether all were right. None may be wrong.
    async fn survives(&self, changes: &[Change], reads: &[(usize, usize, usize)], files: &[Vec<u8>]) -> bool {
        let mut index = self.index.clone();
        changes.iter().for_each(|change| change.make(&mut index));
        self.memory.replace(&self.digest, index);
        let folder = tempfile::tempdir().unwrap();
        let model = match self.open(&folder).await {
            Ok(model) => model,
            Err(error) => {
                assert!(!matches!(error.kind(), Kind::Deadline), "{changes:?}: {error}");
                return false;
            }
        };
        if model.tree.lookup(NodeId::ROOT, b"2").is_none() {
            // One that can't be read to its end is passed over, and the layer goes by without.
            assert_eq!(self.trust, Trust::Always, "the index was not used: {changes:?}");
            model.close().await;
            return false;
        }
        let mut right = true;
        for (file, start, len) in reads {
            let expected = &files[*file][(*start).min(SIZES[*file])..(start + len).min(SIZES[*file])];
            let node = model.tree.lookup(NodeId::ROOT, file.to_string().as_bytes()).unwrap();
            match model.read(node, *start as u64, *len as u64).await {
                Ok(bytes) => assert!(bytes == expected, "{changes:?}: file {file} at {start}"),
                Err(error) => {
                    assert!(!matches!(error.kind(), Kind::Deadline), "{changes:?}: {error}");
                    right = false;
                }
            }
        }
        model.close().await;
        right
    }
}

#[test]
fn however_an_index_is_changed_no_byte_that_is_served_changes() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let forms = [
        ("tar+gzip", Place::Bound),
        ("tar+gzip", Place::Attached),
        ("tar+zstd", Place::Bound),
        ("tar+zstd", Place::Attached),
    ];
    let (packed, files) = (forms.map(|(suffix, place)| Packed::new(suffix, place)), files());
    let all: Vec<_> = (0..SIZES.len()).map(|file| (file, 0, SIZES[file])).collect();
    for packed in &packed {
        assert!(runtime.block_on(packed.survives(&[], &all, &files)), "unchanged it serves");
    }
    let default = ProptestConfig::default();
    // As many as `PROPTEST_CASES` says, and 64 where it says nothing.
    let cases = if default.cases == 256 { 64 } else { default.cases };
    let config = ProptestConfig { cases, failure_persistence: None, ..default };
    let reads = prop::collection::vec((0..SIZES.len(), 0..700_000_usize, 1..200_000_usize), 1..5);
    proptest!(config, |(form in 0..forms.len(), changes in prop::collection::vec(change(), 1..4), reads in reads)| {
        runtime.block_on(packed[form].survives(&changes, &reads, &files));
    });
}
