//! Artifacts byte for byte as the writers in use make them, in memory or as an OCI image layout folder.
//!
//! `Artifact::modctl_raw(&sample()).write(folder, "v1")` is all that most tests need. Content is pseudo-random
//! and the same in every run.
#![allow(dead_code, reason = "fixtures are for tests to pick from")]

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};
use weightfs::oci::Digest;

use super::tar_writers::{MTIME, Writer};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TITLE: &str = "org.opencontainers.image.title";

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
}

impl Layer {
    /// A layer without annotations.
    pub(crate) fn new(media_type: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { media_type: media_type.to_owned(), content: content.into(), annotations: BTreeMap::new() }
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
    style: Style,
}

/// How the manifest's JSON is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Fields in the order of the specification, nothing between: Go's `encoding/json`.
    Go,
    /// With spaces, as the shell script of AIKit prints it.
    Script,
    /// Keys sorted, nothing between: `push_model.py`.
    Sorted,
}

impl Artifact {
    /// modctl 0.2 and later, its default: a file is a raw layer.
    pub(crate) fn modctl_raw(files: &[File]) -> Self {
        modctl("cncf", "raw", files)
    }

    /// modctl 0.2 and later with `--raw=false`: a file is a tar layer.
    pub(crate) fn modctl_tar(files: &[File]) -> Self {
        modctl("cncf", "tar", files)
    }

    /// modctl before 0.2, raw.
    pub(crate) fn legacy_raw(files: &[File]) -> Self {
        modctl("cnai", "raw", files)
    }

    /// modctl before 0.2, tar.
    pub(crate) fn legacy_tar(files: &[File]) -> Self {
        modctl("cnai", "tar", files)
    }

    /// The flat form, raw, with titles for names.
    pub(crate) fn seed_raw(files: &[File]) -> Self {
        seed(files.iter().map(|file| seed_layer("raw", &file.content).annotate(TITLE, &file.path)).collect())
    }

    /// The flat form, tar, with no annotation at all.
    pub(crate) fn seed_tar(files: &[File]) -> Self {
        seed(files.iter().map(|file| seed_layer("tar", &tar(Writer::Go, file))).collect())
    }

    /// AIKit, its default: raw.
    pub(crate) fn aikit_raw(files: &[File]) -> Self {
        let raw = |category: &Category, file: &&File| {
            let metadata = aikit_metadata(&file.path, file.content.len(), "");
            aikit_layer(category, "raw", &file.path, &metadata, file.content.clone())
        };
        aikit(files, |category, files| files.iter().map(|file| raw(category, file)).collect())
    }

    /// AIKit with `layer_packaging=tar`: a weight is an archive under its base name, the rest an archive of each
    /// category.
    pub(crate) fn aikit_tar(files: &[File]) -> Self {
        aikit(files, |category, files| match category.name {
            "weights" => files.iter().map(|file| aikit_weight(category, file)).collect(),
            _ => vec![aikit_category(category, files)],
        })
    }

    /// `push_model.py --variant raw`.
    pub(crate) fn push_model_raw(files: &[File]) -> Self {
        push_model("raw", files)
    }

    /// `push_model.py --variant tar`.
    pub(crate) fn push_model_tar(files: &[File]) -> Self {
        push_model("tar", files)
    }

    /// The same model in every dialect, each with a name that makes a tag.
    pub(crate) fn every_dialect(files: &[File]) -> Vec<(&'static str, Self)> {
        vec![
            ("modctl-raw", Self::modctl_raw(files)),
            ("modctl-tar", Self::modctl_tar(files)),
            ("legacy-raw", Self::legacy_raw(files)),
            ("legacy-tar", Self::legacy_tar(files)),
            ("seed-raw", Self::seed_raw(files)),
            ("seed-tar", Self::seed_tar(files)),
            ("seed-media-type", Self::seed_tar(files).with_artifact_type_as_media_type()),
            ("aikit-raw", Self::aikit_raw(files)),
            ("aikit-tar", Self::aikit_tar(files)),
            ("push-model-raw", Self::push_model_raw(files)),
            ("push-model-tar", Self::push_model_tar(files)),
            ("nydus", Self::legacy_tar(files).with_nydus_bootstrap()),
        ]
    }

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

fn tar(writer: Writer, file: &File) -> Vec<u8> {
    writer.archive([(file.path.as_str(), file.content.as_slice())])
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// The kind as media types spell it, by the extensions that the writers go by.
fn kind(path: &str) -> &'static str {
    let base = base_name(path).to_lowercase();
    let ends = |all: &[&str]| all.iter().any(|end| base.ends_with(end));
    match base.as_str() {
        _ if ends(&[".safetensors", ".gguf", ".bin", ".pt"]) => "weight",
        _ if ends(&[".md"]) || base.starts_with("readme") || base.starts_with("license") => "doc",
        _ if ends(&[".py", ".sh"]) => "code",
        _ => "weight.config",
    }
}

fn modctl(family: &str, packaging: &str, files: &[File]) -> Artifact {
    let order = ["weight.config", "weight", "code", "doc"];
    let mut files: Vec<_> = files.iter().collect();
    files.sort_by_key(|file| (order.iter().position(|one| *one == kind(&file.path)), &file.path));
    let layers: Vec<_> = files.into_iter().map(|file| modctl_layer(family, packaging, file)).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("\"{}\"", Digest::of(&layer.content))).collect();
    let key = if family == "cnai" { "diff_ids" } else { "diffIds" };
    let config = format!(
        r#"{{"descriptor":{{"createdAt":"2025-01-01T08:00:00.123456789+08:00","family":"llama","name":"sample"}},"modelfs":{{"type":"layers","{key}":[{}]}},"config":{{"architecture":"transformer","format":"safetensors","paramSize":"7b","precision":"bfloat16"}}}}"#,
        diff_ids.join(",")
    );
    let modelfile =
        "# Generated at 2025-01-01T08:00:00+08:00\n\nNAME sample\nFAMILY llama\nMODEL *.safetensors\n";
    Artifact {
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: format!("application/vnd.{family}.model.manifest.v1+json"),
        config_type: format!("application/vnd.{family}.model.config.v1+json"),
        config: config.into_bytes(),
        layers,
        annotations: [(format!("org.{family}.modctl.modelfile"), modelfile.to_owned())].into(),
        style: Style::Go,
    }
}

fn modctl_layer(family: &str, packaging: &str, file: &File) -> Layer {
    let content = if packaging == "raw" { file.content.clone() } else { tar(Writer::Go, file) };
    let metadata = format!(
        r#"{{"name":"{}","mode":420,"uid":0,"gid":0,"size":{},"mtime":"2025-01-01T08:00:00+08:00","typeflag":0}}"#,
        base_name(&file.path),
        file.content.len()
    );
    Layer::new(&format!("application/vnd.{family}.model.{}.v1.{packaging}", kind(&file.path)), content)
        .annotate(&format!("org.{family}.model.filepath"), &file.path)
        .annotate(&format!("org.{family}.model.file.metadata+json"), &metadata)
}

fn seed(layers: Vec<Layer>) -> Artifact {
    let config = r#"{"name":"sample","version":"1.0","framework":"pytorch","frameworkVersion":"2.4","format":"safetensors","architecture":"transformer","parameters":7000000000,"precision":"bfloat16"}"#;
    Artifact {
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: "application/vnd.cncf.modelpack.manifest.v1+json".to_owned(),
        config_type: "application/vnd.cncf.modelpack.config.v1+json".to_owned(),
        config: config.into(),
        layers,
        annotations: BTreeMap::new(),
        style: Style::Go,
    }
}

fn seed_layer(packaging: &str, content: &[u8]) -> Layer {
    Layer::new(&format!("application/vnd.cncf.modelpack.model.layer.v1.{packaging}"), content)
}

/// What AIKit groups files by: its own name, and the kind in the media type.
struct Category {
    name: &'static str,
    kind: &'static str,
}

const CATEGORIES: [Category; 4] = [
    Category { name: "weights", kind: "weight" },
    Category { name: "config", kind: "weight.config" },
    Category { name: "docs", kind: "doc" },
    Category { name: "code", kind: "code" },
];

fn aikit(files: &[File], pack: impl Fn(&Category, &[&File]) -> Vec<Layer>) -> Artifact {
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort_by_key(|file| &file.path);
    let of = |category: &Category| -> Vec<&File> {
        sorted.iter().copied().filter(|file| kind(&file.path) == category.kind).collect()
    };
    let filled =
        CATEGORIES.iter().map(|category| (category, of(category))).filter(|(_, files)| !files.is_empty());
    Artifact {
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: "application/vnd.cncf.model.manifest.v1+json".to_owned(),
        config_type: "application/vnd.cncf.model.config.v1+json".to_owned(),
        config: b"{}".to_vec(),
        layers: filled.flat_map(|(category, files)| pack(category, &files)).collect(),
        annotations: BTreeMap::new(),
        style: Style::Script,
    }
}

fn aikit_weight(category: &Category, file: &File) -> Layer {
    let archive = Writer::Gnu.archive([(base_name(&file.path), file.content.as_slice())]);
    let metadata = aikit_metadata(&file.path, file.content.len(), "");
    aikit_layer(category, "tar", &file.path, &metadata, archive)
}

fn aikit_category(category: &Category, files: &[&File]) -> Layer {
    let archive = Writer::Gnu.archive(files.iter().map(|file| (file.path.as_str(), file.content.as_slice())));
    let size = files.iter().map(|file| file.content.len()).sum();
    let metadata = aikit_metadata(category.name, size, &format!(",\"files\":{}", files.len()));
    aikit_layer(category, "tar", category.name, &metadata, archive)
}

fn aikit_metadata(name: &str, size: usize, more: &str) -> String {
    format!(
        r#"{{"name":"{name}","mode":420,"uid":0,"gid":0,"size":{size},"mtime":"1970-01-01T00:00:00Z","typeflag":0{more}}}"#
    )
}

fn aikit_layer(category: &Category, packaging: &str, path: &str, metadata: &str, content: Vec<u8>) -> Layer {
    Layer::new(&format!("application/vnd.cncf.model.{}.v1.{packaging}", category.kind), content)
        .annotate(TITLE, path)
        .annotate("org.cncf.model.filepath", path)
        .annotate("org.cncf.model.file.metadata+json", metadata)
        .annotate("org.cncf.model.file.mediatype.untested", "true")
}

fn push_model(packaging: &str, files: &[File]) -> Artifact {
    let layers: Vec<_> = files.iter().map(|file| push_model_layer(packaging, file)).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(&layer.content).to_string()).collect();
    let config = json!({
        "descriptor": {"createdAt": "2025-01-01T00:00:00Z", "name": "synthetic", "family": "llama", "version": "1"},
        "config": {"architecture": "transformer", "format": "safetensors", "precision": "bfloat16"},
        "modelfs": {"type": "layers", "diffIds": diff_ids},
    });
    Artifact {
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: "application/vnd.cncf.model.manifest.v1+json".to_owned(),
        config_type: "application/vnd.cncf.model.config.v1+json".to_owned(),
        config: config.to_string().into_bytes(),
        layers,
        annotations: BTreeMap::new(),
        style: Style::Sorted,
    }
}

fn push_model_layer(packaging: &str, file: &File) -> Layer {
    assert_eq!(MTIME, 1_735_689_600, "the metadata's time is the archive's");
    let content = if packaging == "raw" { file.content.clone() } else { tar(Writer::Python, file) };
    let kind = if kind(&file.path) == "code" { "weight.config" } else { kind(&file.path) };
    let metadata = format!(
        r#"{{"name":"{}","mode":420,"uid":0,"gid":0,"size":{},"mtime":"2025-01-01T00:00:00Z","typeflag":48}}"#,
        file.path,
        file.content.len()
    );
    Layer::new(&format!("application/vnd.cncf.model.{kind}.v1.{packaging}"), content)
        .annotate("org.cncf.model.filepath", &file.path)
        .annotate("org.cncf.model.file.metadata+json", &metadata)
        .annotate("org.cncf.model.file.mediatype.untested", "false")
}
