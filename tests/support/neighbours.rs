//! Artifacts of tools that write no ModelPack: KitOps, Docker Model Runner, Ollama, ramalama, ORAS, and those that build
//! container images.
//!
//! Written from what these tools were seen to write, byte for byte where their formats leave no choice. Layers are not
//! compressed where the tool leaves that to its user.

use serde_json::{Value, json};
use weightfs::oci::Digest;

use super::artifacts::{Artifact, Layer, OCI_MANIFEST, Style};
use super::tar_writers::{MTIME, Member, members};

const TITLE: &str = "org.opencontainers.image.title";
const FILEPATH: &str = "org.cncf.model.filepath";

/// A part of a ModelKit: `model`, `modelpart`, `code`, `dataset` or `docs`, its path in the Kitfile, and its archive.
pub(crate) struct Part<'a> {
    pub(crate) kind: &'a str,
    pub(crate) path: &'a str,
    pub(crate) members: &'a [Member<'a>],
}

/// Whether the Kitfile says which layer each part is, as it does since KitOps 1.0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    Today,
    Older,
}

/// `kit pack`, with its default of no compression. `parent` is what `model.path` refers to where no part is the model.
pub(crate) fn kit(parts: &[Part<'_>], parent: Option<&str>, age: Age) -> Artifact {
    // Whoever packs, files are those of the same user and of no time.
    let layer = |part: &Part<'_>| {
        let media_type = format!("application/vnd.kitops.modelkit.{}.v1.tar", part.kind);
        Layer::new(&media_type, members(1000, 0, part.members))
    };
    let layers: Vec<_> = parts.iter().map(layer).collect();
    let entry = |part: &Part<'_>, layer: &Layer| match age {
        Age::Today => {
            let digest = Digest::of(&layer.content);
            format!(r#"{{"path":"{}","digest":"{digest}","diffId":"{digest}"}}"#, part.path)
        }
        Age::Older => format!(r#"{{"path":"{}"}}"#, part.path),
    };
    let of = |kind: &str| -> Vec<String> {
        let found = parts.iter().zip(&layers).filter(|(part, _)| part.kind == kind);
        found.map(|(part, layer)| entry(part, layer)).collect()
    };
    let list = |key: &str, all: Vec<String>| {
        if all.is_empty() { String::new() } else { format!(r#","{key}":[{}]"#, all.join(",")) }
    };
    let model = match (parent, of("model").first()) {
        (Some(parent), _) => format!(r#"{{"name":"tuned","path":"{parent}"}}"#),
        (None, Some(model)) => model.replacen('{', r#"{"name":"llm","#, 1),
        (None, None) => "{}".to_owned(),
    };
    let model = model.trim_end_matches('}').to_owned() + &list("parts", of("modelpart")) + "}";
    let config = format!(
        r#"{{"manifestVersion":"1.0.0","package":{{"name":"sample","version":"1.0","authors":["A"]}},"model":{model}{}{}{}}}"#,
        list("code", of("code")),
        list("datasets", of("dataset")),
        list("docs", of("docs")),
    );
    Artifact {
        config_type: "application/vnd.kitops.modelkit.config.v1+json".to_owned(),
        config: config.into_bytes(),
        layers,
        annotations: [("ml.kitops.modelkit.cli-version".to_owned(), "1.7.0".to_owned())].into(),
        ..plain()
    }
}

/// Docker Model Runner with a config v0.1: layers by their types, each with its annotation if it has one.
pub(crate) fn docker_v1(layers: &[(&str, &str, &[u8])]) -> Artifact {
    docker("v0.1", layers)
}

/// Docker Model Runner with a config v0.2: a layer a file.
pub(crate) fn docker_v2(layers: &[(&str, &str, &[u8])]) -> Artifact {
    docker("v0.2", layers)
}

/// What Docker Model Runner writes as a bundle's `config.json` for [`docker_v1`] and [`docker_v2`].
pub(crate) const RUNTIME_CONFIG: &str =
    "{\"format\":\"gguf\",\"quantization\":\"Q4_0\",\"parameters\":\"8B\",\"context_size\":4096}\n";

fn docker(version: &str, layers: &[(&str, &str, &[u8])]) -> Artifact {
    let layer = |(kind, path, content): &(&str, &str, &[u8])| {
        let layer = Layer::new(&format!("application/vnd.docker.ai.{kind}"), *content);
        if path.is_empty() { layer } else { layer.annotate(FILEPATH, path) }
    };
    let layers: Vec<_> = layers.iter().map(layer).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(&layer.content).to_string()).collect();
    let config = format!(
        r#"{{"config":{},"descriptor":{{"created":"2025-01-01T00:00:00Z"}},"rootfs":{{"type":"rootfs","diff_ids":{}}}}}"#,
        RUNTIME_CONFIG.trim_end(),
        json!(diff_ids)
    );
    Artifact {
        config_type: format!("application/vnd.docker.ai.model.config.{version}+json"),
        config: config.into_bytes(),
        layers,
        ..plain()
    }
}

/// Docker Model Runner with `cncf` for its format, as Docker Hub serves it: a ModelPack of raw layers that only the annotation
/// names.
pub(crate) fn docker_cncf(files: &[(&str, &str, &[u8])]) -> Artifact {
    let layer = |(kind, path, content): &(&str, &str, &[u8])| {
        let base = path.rsplit('/').next().unwrap();
        let metadata = format!(
            r#"{{"name":"{base}","mode":420,"uid":0,"gid":0,"size":{},"mtime":"2025-01-01T00:00:00Z","typeflag":0}}"#,
            content.len()
        );
        Layer::new(&format!("application/vnd.cncf.model.{kind}.v1.raw"), *content)
            .annotate(FILEPATH, path)
            .annotate("org.cncf.model.file.metadata+json", &metadata)
    };
    let layers: Vec<_> = files.iter().map(layer).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(&layer.content).to_string()).collect();
    let config = format!(
        r#"{{"descriptor":{{"createdAt":"2025-01-01T00:00:00Z","family":"llama"}},"modelfs":{{"type":"layers","diffIds":{}}},"config":{{"architecture":"llama","format":"gguf","paramSize":"8B","quantization":"Q4_0"}}}}"#,
        json!(diff_ids)
    );
    Artifact {
        artifact_type: "application/vnd.cncf.model.manifest.v1+json".to_owned(),
        config_type: "application/vnd.cncf.model.config.v1+json".to_owned(),
        config: config.into_bytes(),
        layers,
        ..plain()
    }
}

/// Ollama: layers by their types, with names of their own where not empty.
pub(crate) fn ollama(layers: &[(&str, &str, &[u8])]) -> Artifact {
    let layer = |(kind, name, content): &(&str, &str, &[u8])| {
        Layer::new(&format!("application/vnd.ollama.image.{kind}"), *content).named(name)
    };
    let config = r#"{"model_format":"gguf","model_family":"llama","model_families":["llama"],"model_type":"8.0B","file_type":"Q4_0","architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    Artifact {
        media_type: "application/vnd.docker.distribution.manifest.v2+json".to_owned(),
        config_type: "application/vnd.docker.container.image.v1+json".to_owned(),
        config: config.into(),
        layers: layers.iter().map(layer).collect(),
        ..plain()
    }
}

/// `ramalama convert --type artifact`, which leaves the layers' type to `podman artifact add`.
pub(crate) fn ramalama(files: &[(&str, &str)]) -> Artifact {
    let layer = |(path, content): &(&str, &str)| {
        let metadata = json!({"name": path, "mode": 0o644, "uid": 0, "gid": 0, "size": content.len(),
            "mtime": "2025-01-01T00:00:00Z", "typeflag": 48});
        Layer::new("application/octet-stream", *content)
            .annotate(TITLE, path)
            .annotate(FILEPATH, path)
            .annotate("org.cncf.model.file.metadata+json", &metadata.to_string())
            .annotate("org.cncf.model.file.mediatype.untested", "true")
    };
    Artifact {
        artifact_type: "application/vnd.cncf.model.manifest.v1+json".to_owned(),
        layers: files.iter().map(layer).collect(),
        ..plain()
    }
}

/// `oras push`: layers as they are given; see [`oras_file`] and [`oras_folder`].
pub(crate) fn oras(layers: Vec<Layer>) -> Artifact {
    let created = ("org.opencontainers.image.created".to_owned(), "2025-01-01T00:00:00Z".to_owned());
    let artifact_type = "application/vnd.unknown.artifact.v1".to_owned();
    Artifact { artifact_type, layers, annotations: [created].into(), ..plain() }
}

/// A file as ORAS pushes it.
pub(crate) fn oras_file(media_type: &str, title: &str, content: &str) -> Layer {
    Layer::new(media_type, content).annotate(TITLE, title)
}

/// A folder as ORAS pushes it, with `archive` for its compressed archive, or one that is not.
pub(crate) fn oras_folder(media_type: &str, title: &str, archive: Vec<u8>, unpacked: &[u8]) -> Layer {
    Layer::new(media_type, archive)
        .annotate(TITLE, title)
        .annotate("io.deis.oras.content.digest", &Digest::of(unpacked).to_string())
        .annotate("io.deis.oras.content.unpack", "true")
}

/// A container image of these layers, as BuildKit and Buildah write it where nobody compresses.
pub(crate) fn image(layers: &[&[Member<'_>]]) -> Artifact {
    let layer =
        |all: &&[Member<'_>]| Layer::new("application/vnd.oci.image.layer.v1.tar", members(0, MTIME, all));
    image_of(layers.iter().map(layer).collect())
}

/// `ramalama convert --type raw` or `car`: an image that says so in a label, with the model below `/models` and a link that the
/// runtime follows.
pub(crate) fn ramalama_image(kind: &str, model: &str, content: &str) -> Artifact {
    let (folder, file) = (format!("models/{model}/"), format!("models/{model}/{model}.gguf"));
    let target = format!("{model}/{model}.gguf");
    let layer = [
        Member::Folder("models/"),
        Member::Folder(&folder),
        Member::File(&file, content),
        Member::Symlink("models/model.file", &target),
    ];
    let os = [Member::Folder("etc/"), Member::File("etc/os-release", "ID=ubi")];
    let mut image = if kind == "car" { image(&[&os, &layer]) } else { image(&[&layer]) };
    let label = format!(r#""Labels":{{"org.containers.type":"ai.image.model.{kind}"}}"#);
    let config = String::from_utf8(image.config).unwrap().replace(r#""Labels":{}"#, &label);
    image.config = config.into_bytes();
    image
}

/// A container image of layers that are blobs already.
pub(crate) fn image_of(layers: Vec<Layer>) -> Artifact {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(&layer.content).to_string()).collect();
    let config: Value = json!({"architecture": "amd64", "os": "linux", "config": {"Labels": {}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    Artifact {
        config_type: "application/vnd.oci.image.config.v1+json".to_owned(),
        config: config.to_string().into_bytes(),
        layers,
        ..plain()
    }
}

/// An OCI manifest with the empty config and nothing else.
fn plain() -> Artifact {
    Artifact {
        media_type: OCI_MANIFEST.to_owned(),
        artifact_type: String::new(),
        config_type: "application/vnd.oci.empty.v1+json".to_owned(),
        config: b"{}".to_vec(),
        layers: Vec::new(),
        annotations: Default::default(),
        style: Style::Go,
    }
}
