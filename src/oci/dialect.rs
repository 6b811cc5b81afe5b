//! What each dialect makes of its layers, as tables: kind, packaging, and how their files are named.
//!
//! Only names and types; what names need of a config is added by [`complete`](super::complete). The rules are those
//! of the tools that write the dialects, as `docs/formats.md` lists them. Called by
//! [`Artifact::read`](super::Artifact::read).

use std::collections::HashMap;

use super::artifact::{LayerKind, Manner, Members, ModelLayer, Packaging};
use super::family::{Family, OLLAMA_LAYER, TITLE, is_image_layer};
use super::manifest::{Descriptor, NAME_KEY};
use super::path;
use crate::codec::estargz;
use crate::error::{Error, Kind, Result};

/// What a dialect makes of the layers of one media type.
struct Rule {
    /// The media type, or what comes after the dialect's own beginning.
    media_type: &'static str,
    kind: LayerKind,
    packaging: Packaging,
    /// Ways to a name: the first that gives one counts. A raw layer that none gives a name is not shown.
    names: &'static [Naming],
}

/// A way to a layer's name.
#[derive(Clone, Copy)]
enum Naming {
    /// The annotation's path, below this folder; empty for the root.
    Annotated(&'static str),
    /// The same, with leading `../` taken away: some writers packed from an absolute path.
    Tamed(&'static str),
    /// The descriptor's own name.
    Named,
    /// This name. Where several layers of the type have it, later ones get a number: `license`, `license-2`.
    One(&'static str),
    /// What stands before the dot, and behind it: `model.gguf`, or `model-00001-of-00002.gguf` of several.
    Shards(&'static str, &'static str),
    /// The digest's digits between these.
    Digits(&'static str, &'static str),
    /// The archive's own names, below this folder.
    Members(&'static str),
}

const DOCKER: &str = "application/vnd.docker.ai.";

/// Docker Model Runner, v0.1: the names of its bundles.
const DOCKER_V1: [Rule; 9] = [
    rule("gguf.v3", LayerKind::Weight, &[Naming::Shards("model/model", ".gguf")]),
    rule(
        "safetensors",
        LayerKind::Weight,
        &[Naming::Annotated("model"), Naming::Shards("model/model", ".safetensors")],
    ),
    rule("dduf", LayerKind::Weight, &[Naming::Annotated("model"), Naming::Digits("model/", ".dduf")]),
    rule("mmproj", LayerKind::Weight, &[Naming::One("model/model.mmproj")]),
    rule("license", LayerKind::Doc, &[Naming::Annotated("model"), Naming::One("model/LICENSE")]),
    rule("chat.template.jinja", LayerKind::WeightConfig, &[Naming::One("model/template.jinja")]),
    rule("model.file", LayerKind::WeightConfig, &[Naming::Annotated("model")]),
    archive("vllm.config.tar", LayerKind::WeightConfig, &[Naming::Members("model")]),
    archive("dir.tar", LayerKind::Unknown, &[Naming::Members("model")]),
];

/// Docker Model Runner, v0.2: what each layer is; each is a file that its annotation names.
const DOCKER_V2: [Rule; 7] = [
    rule("gguf.v3", LayerKind::Weight, BY_PATH),
    rule("safetensors", LayerKind::Weight, BY_PATH),
    rule("dduf", LayerKind::Weight, BY_PATH),
    rule("mmproj", LayerKind::Weight, BY_PATH),
    rule("license", LayerKind::Doc, BY_PATH),
    rule("chat.template.jinja", LayerKind::WeightConfig, BY_PATH),
    rule("model.file", LayerKind::WeightConfig, BY_PATH),
];

const BY_PATH: &[Naming] = &[Naming::Tamed("model")];

/// Ollama: what it calls nothing gets the name that other tools know such a file by.
const OLLAMA: [Rule; 12] = [
    rule("model", LayerKind::Weight, &[Naming::One("model.gguf")]),
    rule("projector", LayerKind::Weight, &[Naming::One("projector.gguf")]),
    rule("adapter", LayerKind::Weight, &[Naming::One("adapter.gguf")]),
    rule("draft", LayerKind::Weight, &[Naming::One("draft.gguf")]),
    rule("tensor", LayerKind::Weight, &[Naming::Named]),
    rule("json", LayerKind::WeightConfig, &[Naming::Named]),
    rule("template", LayerKind::WeightConfig, &[Naming::One("template")]),
    rule("prompt", LayerKind::WeightConfig, &[Naming::One("prompt")]),
    rule("system", LayerKind::WeightConfig, &[Naming::One("system")]),
    rule("params", LayerKind::WeightConfig, &[Naming::One("params.json")]),
    rule("messages", LayerKind::WeightConfig, &[Naming::One("messages.json")]),
    rule("license", LayerKind::Doc, &[Naming::One("license")]),
];

/// KitOps, and Jozu before: archives, compressed or not, by their types' suffixes.
const KITS: [(&str, LayerKind); 6] = [
    ("application/vnd.kitops.modelkit.model.", LayerKind::Weight),
    ("application/vnd.kitops.modelkit.modelpart.", LayerKind::WeightConfig),
    ("application/vnd.kitops.modelkit.dataset.", LayerKind::Dataset),
    ("application/vnd.kitops.modelkit.code.", LayerKind::Code),
    ("application/vnd.kitops.modelkit.docs.", LayerKind::Doc),
    ("application/vnd.jozu.model.", LayerKind::Unknown),
];

/// The annotation of ORAS for a folder that it packed as a compressed archive.
const UNPACK: &str = "io.deis.oras.content.unpack";

const fn rule(media_type: &'static str, kind: LayerKind, names: &'static [Naming]) -> Rule {
    Rule { media_type, kind, packaging: Packaging::Raw, names }
}

const fn archive(media_type: &'static str, kind: LayerKind, names: &'static [Naming]) -> Rule {
    Rule { media_type, kind, packaging: Packaging::Tar, names }
}

/// Makes `layers`, as they are by their types and annotations alone, those of `family`. What a person should know
/// goes to `warnings`.
///
/// # Errors
/// [`Kind::Unsupported`] for an archive in a form that is not read: the tree would lack its files.
pub(super) fn apply(family: Family, layers: &mut [ModelLayer], warnings: &mut Vec<String>) -> Result<()> {
    match family {
        Family::DockerV1 => by_table(DOCKER, &DOCKER_V1, &[], layers),
        Family::DockerV2 => by_table(DOCKER, &DOCKER_V2, BY_PATH, layers),
        Family::Ollama => by_table(OLLAMA_LAYER, &OLLAMA, &[Naming::Named], layers),
        Family::KitOps => layers.iter_mut().try_for_each(kit)?,
        Family::Image => layers.iter_mut().filter(|layer| !layer.hidden).try_for_each(image)?,
        Family::Oras => layers.iter_mut().for_each(titled),
        Family::Cncf | Family::Cnai | Family::ModelPack | Family::Other => {}
    }
    for layer in layers.iter_mut().filter(|layer| !layer.hidden) {
        let stargz = layer.descriptor.annotations.contains_key(estargz::DIGEST_KEY);
        if stargz || layer.packaging == Packaging::TarGzip {
            layer.members.skipped = &estargz::HIDDEN;
        }
        let nameless = layer.packaging == Packaging::Raw && layer.path.is_none();
        if nameless && !family.is_model_pack() && family != Family::Other {
            warnings.push(format!("{}: nothing names its file, not shown", layer.name()));
            layer.hidden = true;
        }
    }
    Ok(())
}

/// `otherwise` names the layers of types that are in no rule.
fn by_table(prefix: &str, rules: &[Rule], otherwise: &'static [Naming], layers: &mut [ModelLayer]) {
    let other = rule("", LayerKind::Unknown, otherwise);
    let of = |layer: &ModelLayer| {
        let rest = essence(&layer.descriptor).strip_prefix(prefix);
        rules.iter().find(|rule| Some(rule.media_type) == rest).unwrap_or(&other)
    };
    let mut counts: HashMap<&str, (usize, usize)> = HashMap::new();
    for layer in layers.iter() {
        counts.entry(of(layer).media_type).or_default().1 += 1;
    }
    for layer in layers {
        let rule = of(layer);
        let (at, all) = counts.entry(rule.media_type).or_default();
        *at += 1;
        (layer.kind, layer.packaging) = (rule.kind, rule.packaging);
        let annotated = layer.path.take();
        let name = |naming: &Naming| name(*naming, &layer.descriptor, annotated.as_deref(), (*at, *all));
        layer.path = rule.names.iter().find_map(name);
        if let [Naming::Members(below)] = rule.names {
            layer.members.below = (*below).to_owned();
        }
    }
}

/// The name that a layer is given, number `at` (from 1 on) of `all` of its type.
fn name(
    naming: Naming,
    descriptor: &Descriptor,
    annotated: Option<&str>,
    (at, all): (usize, usize),
) -> Option<String> {
    match naming {
        Naming::Annotated(below) => annotated.map(|path| path::below(below, path)),
        Naming::Tamed(below) => annotated.map(|path| path::below(below, tamed(path))),
        Naming::Named => descriptor.annotations.get(NAME_KEY).cloned(),
        Naming::One(name) if at == 1 => Some(name.to_owned()),
        Naming::One(name) => Some(match name.rsplit_once('.') {
            Some((stem, end)) => format!("{stem}-{at}.{end}"),
            None => format!("{name}-{at}"),
        }),
        Naming::Shards(stem, end) if all == 1 => Some(format!("{stem}{end}")),
        Naming::Shards(stem, end) => Some(format!("{stem}-{at:05}-of-{all:05}{end}")),
        Naming::Digits(before, after) => Some(format!("{before}{}{after}", descriptor.digest.hex())),
        Naming::Members(_) => None,
    }
}

fn tamed(mut path: &str) -> &str {
    while let Some(rest) = path.strip_prefix("../") {
        path = rest;
    }
    path
}

fn kit(layer: &mut ModelLayer) -> Result<()> {
    let media_type = essence(&layer.descriptor);
    let found = KITS.iter().find(|(prefix, _)| media_type.starts_with(prefix));
    layer.path = None;
    let Some((_, kind)) = found else { return Ok(()) };
    layer.kind = *kind;
    refuse_unknown(layer)
}

fn image(layer: &mut ModelLayer) -> Result<()> {
    layer.path = None;
    layer.members.manner = Manner::Layered;
    if is_image_layer(&layer.descriptor) {
        return refuse_unknown(layer);
    }
    layer.packaging = Packaging::Raw;
    Ok(())
}

/// Refuses what is an archive by its type and has none of the suffixes of archives.
fn refuse_unknown(layer: &ModelLayer) -> Result<()> {
    if layer.packaging != Packaging::Raw {
        return Ok(());
    }
    let doing = format!("{} is in a form that is not read ({})", layer.name(), layer.descriptor.media_type);
    Err(Error::new(Kind::Unsupported, doing))
}

/// A title names a file, whatever its type, unless the writer says that it is a folder's archive.
fn titled(layer: &mut ModelLayer) {
    let annotations = &layer.descriptor.annotations;
    layer.path = annotations.get(TITLE).cloned();
    let unpacked = annotations.get(UNPACK).is_some_and(|mark| mark == "true");
    layer.packaging = match (unpacked, layer.packaging) {
        (false, _) => Packaging::Raw,
        (true, Packaging::Raw) => Packaging::TarGzip,
        (true, known) => known,
    };
    if unpacked && layer.path.take().is_none() {
        // As every other layer without a title.
        layer.packaging = Packaging::Raw;
    }
}

/// The media type without parameters.
fn essence(descriptor: &Descriptor) -> &str {
    descriptor.media_type.split(';').next().unwrap_or_default().trim()
}

impl Members {
    /// Whether the member of this path is no file of the archive but data for another tool.
    #[must_use]
    pub fn skips(&self, path: &str) -> bool {
        self.skipped.contains(&path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::artifact::Artifact;
    use super::super::digest::Digest;
    use super::super::manifest::Manifest;
    use super::*;

    fn layer(media_type: &str, annotations: &[(&str, &str)]) -> Descriptor {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let digest = Digest::of(media_type.as_bytes());
        Descriptor { media_type: media_type.to_owned(), digest, size: 9, annotations: annotations.collect() }
    }

    fn artifact(config: &str, layers: Vec<Descriptor>) -> Artifact {
        let config = Some(layer(config, &[]));
        Artifact::read(Manifest { config, layers, ..Manifest::default() }).unwrap()
    }

    #[test]
    fn compressed_archives_are_said_to_be_and_their_landmarks_are_not_shown() {
        let (kit, image) = ("application/vnd.kitops.modelkit", "application/vnd.oci.image");
        let (jozu, docker) = ("application/vnd.jozu.model", "application/vnd.docker.image.rootfs");
        for (config, media_type, packaging) in [
            (format!("{kit}.config.v1+json"), format!("{kit}.model.v1.tar"), Packaging::Tar),
            (format!("{kit}.config.v1+json"), format!("{kit}.modelpart.v1.tar+gzip"), Packaging::TarGzip),
            (format!("{jozu}.config.v1+json"), format!("{jozu}.content.v1.tar+gzip"), Packaging::TarGzip),
            (format!("{image}.config.v1+json"), format!("{image}.layer.v1.tar+zstd"), Packaging::TarZstd),
            (format!("{image}.config.v1+json"), format!("{image}.layer.v1.tar+gzip"), Packaging::TarGzip),
            (String::new(), format!("{docker}.diff.tar.gzip"), Packaging::TarGzip),
            (String::new(), format!("{docker}.diff.tar"), Packaging::Tar),
        ] {
            let artifact = artifact(&config, vec![layer(&media_type, &[])]);
            let found = &artifact.layers[0];
            assert_eq!((found.packaging, found.hidden), (packaging, false), "{media_type}");
            assert_eq!(found.members.skips("stargz.index.json"), packaging == Packaging::TarGzip);
            assert!(!found.members.skips("sub/stargz.index.json") && artifact.warnings.is_empty());
        }
    }

    #[test]
    fn a_folder_of_oras_is_a_compressed_archive_unless_its_type_says_otherwise() {
        let unpack = [(TITLE, "data"), (UNPACK, "true")];
        for (media_type, annotations, packaging, path) in [
            ("application/octet-stream", &unpack[..], Packaging::TarGzip, None),
            ("application/vnd.oci.image.layer.v1.tar", &unpack[..], Packaging::Tar, None),
            ("application/vnd.oci.image.layer.v1.tar+gzip", &unpack[..1], Packaging::Raw, Some("data")),
        ] {
            let artifact =
                artifact("application/vnd.oci.empty.v1+json", vec![layer(media_type, annotations)]);
            let found = &artifact.layers[0];
            assert_eq!((found.packaging, found.path.as_deref()), (packaging, path), "{media_type}");
        }
    }

    #[test]
    fn an_archive_in_an_unknown_form_is_refused_by_its_name() {
        let unknown = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        let config = Some(layer("application/vnd.oci.image.config.v1+json", &[]));
        let manifest = Manifest { config, layers: vec![layer(unknown, &[])], ..Manifest::default() };
        let error = Artifact::read(manifest).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains(unknown), "{error}");
    }

    #[test]
    fn no_two_rules_of_a_table_are_for_one_type() {
        for table in [&DOCKER_V1[..], &DOCKER_V2, &OLLAMA] {
            for (at, rule) in table.iter().enumerate() {
                assert!(table.iter().skip(at + 1).all(|other| other.media_type != rule.media_type));
            }
        }
    }
}
