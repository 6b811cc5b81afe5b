//! Artifacts byte for byte as the writers in use make them, in memory or as an OCI image layout folder.
//!
//! `Artifact::modctl_raw(&sample()).write(folder, "v1")` is all that most tests need. Content is pseudo-random
//! and the same in every run. The writers' dialects are in [`dialects`](super::dialects).
#![allow(dead_code, reason = "fixtures are for tests to pick from")]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use weightfs::oci::Digest;

pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A file of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    /// Its path below the mount.
    pub(crate) path: String,
    /// Its bytes.
    pub(crate) content: Vec<u8>,
}

/// A file with the content given.
pub(crate) fn file(path: &str, content: impl Into<Vec<u8>>) -> File {
    File { path: path.to_owned(), content: content.into() }
}

/// `len` pseudo-random bytes, the same for the same seed; a shorter one is the beginning of a longer one.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut all = Vec::with_capacity(len + 8);
    while all.len() < len {
        // xorshift64*, by Vigna.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        all.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    all.truncate(len);
    all
}

/// A small model: two shards, of 2 MiB and of 1 MiB and a bit more or less, a weight in a folder, and small files, one of them empty.
pub(crate) fn sample() -> Vec<File> {
    vec![
        file("model-00001-of-00002.safetensors", bytes(1, (2 << 20) + 17)),
        file("model-00002-of-00002.safetensors", bytes(2, (1 << 20) - 1)),
        file("adapters/one/adapter.bin", bytes(3, 100_000)),
        file("config.json", "{\"model_type\":\"llama\"}\n"),
        file("tokenizer.json", bytes(4, 70_000)),
        file("nested/deep/generation_config.json", "{}"),
        file("empty.json", ""),
        file("README.md", "# sample\n"),
        file("LICENSE", bytes(5, 5_000)),
        file("run.py", "print('hello')\n"),
    ]
}

/// A layer: its bytes and what the manifest says of them.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The media type.
    pub(crate) media_type: String,
    /// The blob.
    pub(crate) content: Vec<u8>,
    /// The annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// The descriptor's own name, which only Ollama gives; left out where empty.
    name: String,
}

impl Layer {
    /// A layer without annotations.
    pub(crate) fn new(media_type: &str, content: impl Into<Vec<u8>>) -> Self {
        let (media_type, content) = (media_type.to_owned(), content.into());
        Self { media_type, content, annotations: BTreeMap::new(), name: String::new() }
    }

    /// The same with a name of its own.
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// The same with an annotation.
    pub(crate) fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    fn descriptor(&self) -> Value {
        let mut descriptor = descriptor(&self.media_type, &self.content);
        if !self.annotations.is_empty() {
            descriptor["annotations"] = json!(self.annotations);
        }
        descriptor
    }
}

/// An artifact; its fields may be changed before it is written.
#[derive(Clone, Debug)]
pub(crate) struct Artifact {
    /// The manifest's own media type.
    pub(crate) media_type: String,
    /// The artifact type; left out where empty.
    pub(crate) artifact_type: String,
    /// The config's media type.
    pub(crate) config_type: String,
    /// The config.
    pub(crate) config: Vec<u8>,
    /// The layers.
    pub(crate) layers: Vec<Layer>,
    /// The manifest's annotations.
    pub(crate) annotations: BTreeMap<String, String>,
    /// How the manifest's JSON is laid out.
    pub(super) style: Style,
}

/// How the manifest's JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// Fields in the order of the specification, nothing between: Go's `encoding/json`.
    Go,
    /// With spaces, as the shell script of AIKit prints it.
    Script,
    /// Keys sorted, nothing between: `push_model.py`.
    Sorted,
}

impl Artifact {
    /// The same with one more layer on top.
    pub(crate) fn with(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    /// The same with the layer that nydusify adds, which is no part of the model.
    pub(crate) fn with_nydus_bootstrap(self) -> Self {
        let bootstrap = Layer::new("application/vnd.oci.image.layer.v1.tar+gzip", bytes(99, 3_000));
        self.with(bootstrap.annotate("containerd.io/snapshot/nydus-bootstrap", "true"))
    }

    /// The same with its artifact type where the manifest's media type belongs.
    pub(crate) fn with_artifact_type_as_media_type(mut self) -> Self {
        self.media_type = std::mem::take(&mut self.artifact_type);
        self
    }

    /// The manifest's bytes.
    pub(crate) fn manifest(&self) -> Vec<u8> {
        match self.style {
            Style::Go => self.in_order(",", ":", "{", "}"),
            Style::Script => self.in_order(", ", ": ", "{ ", " }") + "\n",
            Style::Sorted => self.sorted().to_string(),
        }
        .into_bytes()
    }

    /// The manifest's digest.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest())
    }

    /// Config and layers with their digests, as a registry takes them.
    pub(crate) fn blobs(&self) -> Vec<(Digest, &[u8])> {
        let all = std::iter::once(&self.config).chain(self.layers.iter().map(|layer| &layer.content));
        all.map(|blob| (Digest::of(blob), blob.as_slice())).collect()
    }

    /// Writes an OCI image layout, or adds to one; the tag is moved if it is there. Gives the manifest's digest.
    pub(crate) fn write(&self, folder: &Path, tag: &str) -> Digest {
        let manifest = self.manifest();
        for (_, blob) in self.blobs() {
            write_blob(folder, blob);
        }
        let mut descriptor = descriptor(&self.media_type, &manifest);
        if !self.artifact_type.is_empty() {
            descriptor["artifactType"] = json!(self.artifact_type);
        }
        write_blob(folder, &manifest);
        write_tag(folder, tag, descriptor);
        Digest::of(&manifest)
    }

    /// As [`write`](Self::write), with the tag at an index that lists the manifest and an attestation.
    pub(crate) fn write_in_index(&self, folder: &Path, tag: &str) -> Digest {
        let digest = self.write(folder, tag);
        let mut attestation = descriptor(OCI_MANIFEST, b"{}");
        attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
        let manifests = [attestation, descriptor(&self.media_type, &self.manifest())];
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}).to_string();
        write_blob(folder, index.as_bytes());
        write_tag(folder, tag, descriptor(OCI_INDEX, index.as_bytes()));
        digest
    }

    fn sorted(&self) -> Value {
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "artifactType": self.artifact_type,
            "config": descriptor(&self.config_type, &self.config),
            "layers": self.layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
        });
        if !self.annotations.is_empty() {
            manifest["annotations"] = json!(self.annotations);
        }
        manifest
    }

    /// Keys in the order of the specification, which a map of values can't keep.
    fn in_order(&self, comma: &str, colon: &str, open: &str, close: &str) -> String {
        let text = |text: &str| json!(text).to_string();
        let object = |fields: Vec<(&str, String)>| {
            let fields: Vec<_> =
                fields.iter().map(|(key, value)| format!("\"{key}\"{colon}{value}")).collect();
            format!("{open}{}{close}", fields.join(comma))
        };
        let annotations = |all: &BTreeMap<String, String>| {
            object(all.iter().map(|(key, value)| (key.as_str(), text(value))).collect())
        };
        let blob = |media_type: &str, content: &[u8]| {
            let digest = text(&Digest::of(content).to_string());
            vec![("mediaType", text(media_type)), ("digest", digest), ("size", content.len().to_string())]
        };
        let layer = |layer: &Layer| {
            let mut fields = blob(&layer.media_type, &layer.content);
            fields.push(("name", text(&layer.name)));
            fields.retain(|(key, _)| *key != "name" || !layer.name.is_empty());
            fields.push(("annotations", annotations(&layer.annotations)));
            fields.retain(|(key, _)| *key != "annotations" || !layer.annotations.is_empty());
            object(fields)
        };
        let layers: Vec<_> = self.layers.iter().map(layer).collect();
        let mut fields = vec![("schemaVersion", "2".to_owned()), ("mediaType", text(&self.media_type))];
        if !self.artifact_type.is_empty() {
            fields.push(("artifactType", text(&self.artifact_type)));
        }
        fields.push(("config", object(blob(&self.config_type, &self.config))));
        fields.push(("layers", format!("[{}]", layers.join(comma))));
        if !self.annotations.is_empty() {
            fields.push(("annotations", annotations(&self.annotations)));
        }
        object(fields)
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).to_string(), "size": content.len()})
}

fn write_blob(folder: &Path, blob: &[u8]) {
    let blobs = folder.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
}

fn write_tag(folder: &Path, tag: &str, mut descriptor: Value) {
    const REF_NAME: &str = "org.opencontainers.image.ref.name";
    let index = folder.join("index.json");
    let empty = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []});
    let mut all = std::fs::read(&index).map_or(empty, |bytes| serde_json::from_slice(&bytes).unwrap());
    descriptor["annotations"] = json!({REF_NAME: tag});
    let manifests = all["manifests"].as_array_mut().unwrap();
    manifests.retain(|manifest| manifest["annotations"][REF_NAME] != tag);
    manifests.push(descriptor);
    std::fs::write(index, all.to_string()).unwrap();
    std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}
