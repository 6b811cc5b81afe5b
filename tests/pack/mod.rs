//! Packing: what `pack` and `index add` publish, read back and read by others.
//!
//! With the program itself, a real registry and image layout folders. [`push`] is about what goes over the line,
//! [`rules`] about what others ask of an artifact, [`model`] about what is in it, [`add`] about artifacts that get an index later.

mod add;
mod compressed;
mod model;
mod push;
mod rules;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use weightfs::content::{Config, Store, StoreConfig};
use weightfs::fs::{Model, NodeKind};
use weightfs::index::{self, Index};
use weightfs::oci::{Artifact, Blob, Reference};
use weightfs::range::StoredRange;
use weightfs::repository::{Repository, connect, read_all};

use crate::support::artifacts::bytes;
use crate::support::place::{Place, Ran};
use crate::support::scratch;

/// The paths and bytes of a model.
type Files = BTreeMap<String, Vec<u8>>;

/// A safetensors file of one tensor of `len` bytes of BF16.
fn safetensors(seed: u64, len: usize) -> Vec<u8> {
    let header = json!({"w": {"dtype": "BF16", "shape": [len / 2], "data_offsets": [0, len]}})
        .to_string()
        .into_bytes();
    [(header.len() as u64).to_le_bytes().to_vec(), header, bytes(seed, len)].concat()
}

/// A model as people have them: two shards, small files of every kind, one of them empty, two that are equal, one in a deep folder,
/// one that may be executed, one whose name is no ASCII.
fn files() -> Files {
    [
        ("model-00001-of-00002.safetensors", safetensors(1, (2 << 20) + 18)),
        ("model-00002-of-00002.safetensors", safetensors(2, (1 << 20) + 400)),
        (
            "config.json",
            br#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"torch_dtype":"bfloat16"}"#
                .to_vec(),
        ),
        ("tokenizer.json", bytes(4, 70_000)),
        ("nested/deep/generation_config.json", b"{}".to_vec()),
        ("other.json", b"{}".to_vec()),
        ("empty.json", Vec::new()),
        ("run.sh", b"#!/bin/sh\n".to_vec()),
        ("README.md", b"# sample\n".to_vec()),
        ("notes/\u{6a21}\u{578b} \u{e9}.md", b"notes".to_vec()),
        ("LICENSE", bytes(5, 5_000)),
        ("data/train.parquet", bytes(6, 3_000)),
    ]
    .map(|(path, content)| (path.to_owned(), content))
    .into()
}

/// Writes files below a folder; those called `*.sh` may be executed.
fn write(folder: &Path, files: &Files) {
    for (path, content) in files {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        let mode = if path.extension().is_some_and(|ending| ending == "sh") { 0o755 } else { 0o640 };
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    }
}

/// A folder with the files, and with what packing leaves out.
fn folder(files: &Files) -> TempDir {
    let folder = scratch::roomy();
    write(folder.path(), files);
    let left_out = [".gitattributes", "__pycache__/x.cpython.pyc", "Modelfile"];
    write(folder.path(), &left_out.map(|path| (path.to_owned(), b"x".to_vec())).into());
    folder
}

/// Packs, as typed.
fn pack(place: &Place, folder: &Path, target: &str, options: &[&str]) -> Ran {
    let mut command = place.command();
    command.arg("pack").arg(folder).arg(target).args(options);
    place.finish(command, std::time::Duration::from_secs(120))
}

/// Packs and gives what the program answers as JSON.
fn packed(place: &Place, folder: &Path, target: &str, options: &[&str]) -> Value {
    pack(place, folder, target, &[options, &["--json"]].concat()).ok().json()
}

/// A layout folder of the place's own, as a reference.
fn layout(place: &Place, name: &str) -> String {
    format!("oci:{}:v1", place.folder(name).display())
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// An artifact as it lies in its repository.
struct Published {
    repository: Arc<dyn Repository>,
    manifest: Value,
    config: Value,
    artifact: Artifact,
}

impl Published {
    fn open(reference: &str) -> Self {
        let reference: Reference = reference.parse().unwrap();
        let repository = connect(&reference, &weightfs::repository::Config::default()).unwrap();
        runtime().block_on(async {
            let pinned = repository.manifest(&reference.which()).await.unwrap();
            let manifest: Value = serde_json::from_slice(&pinned.bytes).unwrap();
            let parsed = weightfs::oci::manifest::Document::parse(&pinned.bytes, &pinned.media_type).unwrap();
            let weightfs::oci::manifest::Document::Manifest(parsed) = parsed else { panic!("a manifest") };
            let config = parsed.config.as_ref().unwrap().blob();
            let config = read_all(&*repository, &config, StoredRange::new(0, config.size)).await.unwrap();
            let config = serde_json::from_slice(&config).unwrap();
            Self { repository, manifest, config, artifact: Artifact::read(parsed).unwrap() }
        })
    }

    fn blob(&self, blob: &Blob) -> Vec<u8> {
        let whole = StoredRange::new(0, blob.size);
        runtime().block_on(read_all(&*self.repository, blob, whole)).unwrap().to_vec()
    }

    /// The index as it is found in the layers, without any that the artifact brings.
    fn found(&self) -> Index {
        runtime().block_on(index::find(&*self.repository, &self.artifact, &|_| Vec::new())).unwrap()
    }

    fn layers(&self) -> &[Value] {
        self.manifest["layers"].as_array().unwrap()
    }
}

/// Every file of a model with its bytes, as the model is read without a mount.
fn contents(reference: &str) -> Files {
    let reference: Reference = reference.parse().unwrap();
    let folder = scratch::roomy();
    let store = StoreConfig { folder: folder.path().join("store"), size: Some(1 << 30) };
    runtime().block_on(async {
        let repository = connect(&reference, &weightfs::repository::Config::default()).unwrap();
        let store = Store::open(&store).unwrap();
        let model = Model::open(repository, reference, store, Config::default()).await.unwrap();
        let mut files = Files::new();
        for (id, node) in model.tree.nodes() {
            let NodeKind::File { size, .. } = node.kind else { continue };
            let content = model.read(id, 0, size).await.unwrap();
            files.insert(model.tree.path(id), content.to_vec());
        }
        model.close().await;
        files
    })
}

/// Fails with the first path that differs, and not with megabytes of numbers.
fn assert_files(reference: &str, expected: &Files) {
    let got = contents(reference);
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{reference}");
    for (path, content) in expected {
        assert!(got[path] == *content, "{path} of {reference} differs");
    }
}

/// Checks the bound index of an artifact against its layers: entries and extents as found without it, and the digest of
/// every chunk of every file.
fn assert_indexed(reference: &str) {
    let published = Published::open(reference);
    let bound = published.artifact.bound_index().unwrap().expect("an index");
    let bytes = bytes::Bytes::from(published.blob(&bound.blob));
    let head = index::format::decode(&bytes.slice(..bound.head.size as usize), &bound.blob).unwrap();
    let found = published.found();
    assert_eq!(head.entries, found.entries, "{reference}");
    assert_eq!(head.layers.len(), found.layers.len());
    for (layer, found) in head.layers.iter().zip(&found.layers) {
        assert_eq!((&layer.blob, &layer.extents), (&found.blob, &found.extents));
        let section = layer.bound.as_ref().map_or(0..0, |bound| {
            let (start, end) = (bound.chunks.range.start() as usize, bound.chunks.range.end() as usize);
            start..end
        });
        let stored = published.blob(&layer.blob);
        let files =
            layer.extents.iter().map(|extent| &stored[extent.start() as usize..extent.end() as usize]);
        let chunks = files.flat_map(|file| file.chunks(index::CHUNK as usize));
        let expected: Vec<u8> = chunks.flat_map(|chunk| *index::ChunkDigest::of(chunk).bytes()).collect();
        assert!(bytes[section] == expected, "the chunks of {}", layer.blob.digest);
    }
}

/// The digests of the layers that a manifest lists, in order.
fn digests(manifest: &Value) -> Vec<String> {
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

fn path(place: &Place, name: &str) -> PathBuf {
    place.folder(name)
}
