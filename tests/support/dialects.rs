//! The dialects of those who write artifacts: modctl of both ages, the flat form, AIKit, `push_model.py`.
//!
//! Written from what these tools were seen to write; each is a constructor of [`Artifact`].
#![allow(dead_code, reason = "fixtures are for tests to pick from")]

use std::collections::BTreeMap;

use serde_json::json;
use weightfs::oci::Digest;

use super::artifacts::{Artifact, File, Layer, OCI_MANIFEST, Style};
use super::tar_writers::{MTIME, Writer};

const TITLE: &str = "org.opencontainers.image.title";

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
