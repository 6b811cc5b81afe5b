//! What a manifest means as a model: its family, and of each layer the kind, the packaging and the file's name.
//!
//! Decided as the ecosystem's own tools do: packaging by the media type's suffix alone, names from the
//! annotations of either ModelPack family, or as the tables of [`dialect`] say. Nothing is fetched here; where names need
//! the config, [`complete`](super::complete) adds what it says. Whoever opens an artifact calls [`Artifact::read`];
//! floor 2 makes the files of its layers.

use std::collections::BTreeMap;

use super::dialect;
use super::digest::Digest;
pub use super::family::Family;
use super::family::{self, TITLE};
use super::manifest::{Blob, Descriptor, Manifest};
use super::metadata::FileMetadata;
use crate::codec::foreign;
use crate::error::{Error, Kind, Result};

/// An artifact as a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Whose identifiers it uses.
    pub family: Family,
    /// The artifact type; where the manifest has none, the media type that gave the family away, or empty.
    pub artifact_type: String,
    /// The config, which may hold a description of the model.
    pub config: Option<Descriptor>,
    /// The layers in the manifest's order.
    pub layers: Vec<ModelLayer>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// What a person should know: metadata that can't be read, ignored layers.
    pub warnings: Vec<String>,
}

/// A layer as a part of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelLayer {
    /// The blob, its media type and annotations.
    pub descriptor: Descriptor,
    /// What the layer holds.
    pub kind: LayerKind,
    /// How it is packaged.
    pub packaging: Packaging,
    /// The file's path as the annotation has it: not validated, and for an archive of several files not a
    /// path at all. `None` where no annotation gives one.
    pub path: Option<String>,
    /// What the writer says of the file.
    pub metadata: Option<FileMetadata>,
    /// Whether it is an index or data for another tool, and no part of the tree.
    pub hidden: bool,
    /// What an archive's members are called in the tree.
    pub members: Members,
}

/// How the members of an archive become names of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// The folder that they are put into, as its writer has it: not validated. Empty for the root.
    pub below: String,
    /// How members are taken.
    pub manner: Manner,
    /// Paths of members that are data for another tool, and not shown.
    pub skipped: &'static [&'static str],
}

/// How the members of an archive are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    /// As files of a model: what could mislead a reader is refused.
    #[default]
    Model,
    /// As a layer of a container image, which lies on those below it (image specification, layer.md): it may take
    /// away and replace what they have, and its links are as the image's own programs would follow them.
    Layered,
    /// The same, where what lies below is not shown here, so that nothing of it can be taken away.
    Above,
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// Weights.
    Weight,
    /// What belongs to weights: configuration, tokenizer.
    WeightConfig,
    /// Documents.
    Doc,
    /// Code.
    Code,
    /// A data set.
    Dataset,
    /// Not said.
    Unknown,
}

impl LayerKind {
    /// The name as media types spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::WeightConfig => "weight.config",
            Self::Doc => "doc",
            Self::Code => "code",
            Self::Dataset => "dataset",
            Self::Unknown => "unknown",
        }
    }

    fn of_type(media_type: &str) -> Self {
        let rest = ["application/vnd.cncf.model.", "application/vnd.cnai.model."]
            .into_iter()
            .find_map(|prefix| media_type.strip_prefix(prefix));
        let starts = |name: &str| rest.is_some_and(|rest| rest.starts_with(name));
        [
            ("weight.config.", Self::WeightConfig),
            ("weight.", Self::Weight),
            ("doc.", Self::Doc),
            ("code.", Self::Code),
            ("dataset.", Self::Dataset),
        ]
        .into_iter()
        .find_map(|(name, kind)| starts(name).then_some(kind))
        .unwrap_or(Self::Unknown)
    }
}

/// How files are packaged as a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packaging {
    /// The blob is the file.
    Raw,
    /// An archive.
    Tar,
    /// An archive, compressed by gzip.
    TarGzip,
    /// An archive, compressed by zstd.
    TarZstd,
}

impl Packaging {
    /// The name as media types spell it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Tar => "tar",
            Self::TarGzip => "tar+gzip",
            Self::TarZstd => "tar+zstd",
        }
    }

    /// By suffix; a type without a known one is the file itself (`.raw`, `.gguf`, `application/octet-stream`).
    fn of_type(media_type: &str) -> Self {
        let ends = |suffixes: &[&str]| suffixes.iter().any(|suffix| media_type.ends_with(suffix));
        if ends(&["+gzip", ".tar.gzip"]) {
            Self::TarGzip
        } else if ends(&["+zstd", ".tar.zstd"]) {
            Self::TarZstd
        } else if ends(&[".tar"]) {
            Self::Tar
        } else {
            Self::Raw
        }
    }
}

/// Annotations that name a layer's file, the first that is there wins.
const PATH_KEYS: [&str; 3] = ["org.cncf.model.filepath", "org.cnai.model.filepath", TITLE];

/// Annotations that describe a layer's file; those without `+json` are how specification v0.0.4 spelled it.
const METADATA_KEYS: [&str; 4] = [
    "org.cncf.model.file.metadata+json",
    "org.cnai.model.file.metadata+json",
    "org.cncf.model.file.metadata",
    "org.cnai.model.file.metadata",
];

/// The annotation of the layer that is the artifact's bound index; its value is [`INDEX_VERSION`].
pub const INDEX_KEY: &str = "dev.weightfs.index";

/// The version of the index format that is read and written (docs/index-format.md).
pub const INDEX_VERSION: &str = "v1";

/// The annotation of the index layer that pins the index's head: the SHA-256 of the head's bytes.
pub const INDEX_HEAD_DIGEST_KEY: &str = "dev.weightfs.index.head.digest";

/// The annotation of the index layer that says how many bytes the head has, decimal.
pub const INDEX_HEAD_SIZE_KEY: &str = "dev.weightfs.index.head.size";

/// The annotations of a container image's manifest that say which blob its index is: a layer of it would be unpacked by others.
pub const INDEX_DIGEST_KEY: &str = "dev.weightfs.index.digest";

/// How many bytes that has, decimal.
pub const INDEX_SIZE_KEY: &str = "dev.weightfs.index.size";

/// The path of the index layer, for tools that show it.
pub const INDEX_PATH: &str = ".weightfs/index";

/// The bound index as the manifest pins it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundIndex {
    /// The index layer, or the blob that an image's manifest names.
    pub blob: Blob,
    /// The head, which is the first `head.size` bytes of `blob`.
    pub head: Blob,
}

impl Artifact {
    /// The bound index, if the artifact has one. That of a container image is beside it: a layer of one counts for nothing, since
    /// whoever shows a part of the image shows it without.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where it is of another version than [`INDEX_VERSION`]; [`Kind::Invalid`] where there are
    /// several, or the annotations that pin its head are missing or can't be meant.
    pub fn bound_index(&self) -> Result<Option<BoundIndex>> {
        let named = self.index_beside()?;
        let own = self.layers.iter().map(|layer| &layer.descriptor);
        let own = own.filter(|layer| !self.is_layered() && is_index(layer));
        let mut layers = own.chain(&named);
        let Some(layer) = layers.next() else { return Ok(None) };
        let bad = |kind, why: &str| Error::new(kind, format!("the bound index {} {why}", layer.digest));
        if let Some(other) = layers.next() {
            return Err(bad(Kind::Invalid, &format!("is not the only one: {} is another", other.digest)));
        }
        let annotation = |key: &str| layer.annotations.get(key).map(String::as_str).unwrap_or_default();
        let version = annotation(INDEX_KEY);
        if version != INDEX_VERSION {
            return Err(bad(Kind::Unsupported, &format!("is of version {version:?}"))
                .hint(format!("this weightfs reads {INDEX_VERSION}; a newer one may read it")));
        }
        let digest: Digest = annotation(INDEX_HEAD_DIGEST_KEY).parse().map_err(|error: Error| {
            error.context(format!("the bound index {} has no usable {INDEX_HEAD_DIGEST_KEY}", layer.digest))
        })?;
        let size = annotation(INDEX_HEAD_SIZE_KEY).parse().ok().filter(|size| *size <= layer.size);
        let size = size.ok_or_else(|| bad(Kind::Invalid, &format!("has no usable {INDEX_HEAD_SIZE_KEY}")))?;
        Ok(Some(BoundIndex { blob: layer.blob(), head: Blob { digest, size } }))
    }

    /// The index that the manifest of a container image names, as if it were a layer.
    fn index_beside(&self) -> Result<Option<Descriptor>> {
        if !self.is_layered() || !self.annotations.contains_key(INDEX_KEY) {
            return Ok(None);
        }
        let annotation = |key: &str| self.annotations.get(key).map(String::as_str).unwrap_or_default();
        let unusable =
            |key: &str| Error::new(Kind::Invalid, format!("the image names an index without a usable {key}"));
        let digest = annotation(INDEX_DIGEST_KEY).parse().map_err(|_| unusable(INDEX_DIGEST_KEY))?;
        let size = annotation(INDEX_SIZE_KEY).parse().map_err(|_| unusable(INDEX_SIZE_KEY))?;
        Ok(Some(Descriptor {
            media_type: String::new(),
            digest,
            size,
            annotations: self.annotations.clone(),
        }))
    }

    /// What `manifest` means as a model.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where it is none by its own word: what goes with another artifact, or an image with layers in a
    /// format that is not read, as an encrypted one or a compressed file without an archive.
    pub fn read(manifest: Manifest) -> Result<Self> {
        family::refuse_others(&manifest)?;
        let (family, artifact_type) = family::of_manifest(&manifest);
        let mut warnings = Vec::new();
        let layers = manifest.layers.into_iter();
        let mut layers: Vec<_> = layers.map(|layer| ModelLayer::read(layer, &mut warnings)).collect();
        dialect::apply(family, &mut layers, &mut warnings)?;
        layers.iter().filter(|layer| !layer.hidden).try_for_each(refuse_compressed_raw)?;
        let Manifest { config, annotations, .. } = manifest;
        Ok(Self { family, artifact_type, config, layers, annotations, warnings })
    }

    /// Whether its layers are those of a container image, which lie on one another.
    #[must_use]
    pub fn is_layered(&self) -> bool {
        self.family == Family::Image
    }

    /// The layers that make the tree, in order.
    pub fn visible(&self) -> impl Iterator<Item = &ModelLayer> {
        self.layers.iter().filter(|layer| !layer.hidden)
    }
}

impl ModelLayer {
    /// A name for how this artifact reads the layer: what the layer's index says of names is right for those who read it so,
    /// and for nobody else.
    #[must_use]
    pub fn reading(&self) -> String {
        let Members { below, manner, skipped } = &self.members;
        let parts = format!("{:?}\n{:?}\n{below:?}\n{manner:?}\n{skipped:?}", self.packaging, self.path);
        Digest::of(parts.as_bytes()).hex().chars().take(16).collect()
    }

    /// How errors call the layer: `layer sha256:… (model.safetensors)`.
    #[must_use]
    pub fn name(&self) -> String {
        let digest = &self.descriptor.digest;
        match &self.path {
            Some(path) => format!("layer {digest} ({})", path.escape_debug()),
            None => format!("layer {digest}"),
        }
    }

    fn read(descriptor: Descriptor, warnings: &mut Vec<String>) -> Self {
        let annotation =
            |keys: &[&str]| keys.iter().find_map(|key| descriptor.annotations.get(*key)).cloned();
        let mut layer = Self {
            kind: LayerKind::of_type(&descriptor.media_type),
            packaging: Packaging::of_type(&descriptor.media_type),
            path: annotation(&PATH_KEYS),
            metadata: None,
            hidden: is_for_another_tool(&descriptor) || is_index(&descriptor),
            members: Members::default(),
            descriptor: descriptor.clone(),
        };
        if let Some(text) = annotation(&METADATA_KEYS) {
            layer.metadata = FileMetadata::parse(&text);
            if layer.metadata.is_none() {
                warnings.push(format!("{}: the file metadata is no JSON object, ignored", layer.name()));
            }
        }
        if is_for_another_tool(&descriptor) {
            warnings.push(format!("{}: data for another tool, not shown", layer.name()));
        }
        layer
    }
}

/// The specification compresses archives alone (ModelPack's `mediatype.go`): a file that is compressed without one has no name
/// or size in it, and nobody writes it.
fn refuse_compressed_raw(layer: &ModelLayer) -> Result<()> {
    let is_raw = [".raw+gzip", ".raw+zstd"].iter().any(|end| layer.descriptor.media_type.ends_with(end));
    if !is_raw || layer.packaging == Packaging::Raw {
        return Ok(());
    }
    let doing =
        format!("{} is a compressed file without an archive: {}", layer.name(), layer.descriptor.media_type);
    Err(Error::new(Kind::Unsupported, doing)
        .hint("push it as '.raw', or as an archive in '.tar+gzip' or '.tar+zstd'"))
}

fn is_index(descriptor: &Descriptor) -> bool {
    descriptor.annotations.contains_key(INDEX_KEY)
}

/// A nydus bootstrap, which lists the other layers' files for that tool, or a table of checkpoints of SOCI's.
fn is_for_another_tool(descriptor: &Descriptor) -> bool {
    let keys = descriptor.annotations.keys().map(String::as_str);
    foreign::foreign(&descriptor.media_type, keys).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn layer(media_type: &str, annotations: &[(&str, &str)]) -> Descriptor {
        Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(media_type.as_bytes()),
            size: 9,
            annotations: annotations
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    fn artifact(layers: Vec<Descriptor>) -> Artifact {
        Artifact::read(Manifest { layers, ..Manifest::default() }).unwrap()
    }

    #[test]
    fn the_suffix_decides_the_packaging_and_the_prefix_the_kind() {
        for (media_type, kind, packaging) in [
            ("application/vnd.cncf.model.weight.v1.raw", LayerKind::Weight, Packaging::Raw),
            ("application/vnd.cnai.model.weight.config.v1.tar", LayerKind::WeightConfig, Packaging::Tar),
            ("application/vnd.cncf.model.doc.v1.tar+gzip", LayerKind::Doc, Packaging::TarGzip),
            ("application/vnd.cncf.model.code.v1.tar+zstd", LayerKind::Code, Packaging::TarZstd),
            ("application/vnd.cncf.model.dataset.v1.raw", LayerKind::Dataset, Packaging::Raw),
            (
                "application/vnd.cncf.modelpack.model.layer.v1.tar+gzip",
                LayerKind::Unknown,
                Packaging::TarGzip,
            ),
            ("application/vnd.cncf.model.weight.v1.gguf", LayerKind::Weight, Packaging::Raw),
            ("application/octet-stream", LayerKind::Unknown, Packaging::Raw),
            ("application/vnd.cnai.model.layer.v1.tar", LayerKind::Unknown, Packaging::Tar),
        ] {
            let artifact = artifact(vec![layer(media_type, &[])]);
            assert_eq!(
                (artifact.layers[0].kind, artifact.layers[0].packaging),
                (kind, packaging),
                "{media_type}"
            );
        }
    }

    #[test]
    fn a_compressed_file_without_an_archive_is_refused_by_its_type() {
        for media_type in
            ["application/vnd.cncf.model.weight.v1.raw+gzip", "application/vnd.cnai.model.doc.v1.raw+zstd"]
        {
            let layers = vec![layer(media_type, &[("org.cncf.model.filepath", "w.bin")])];
            let error = Artifact::read(Manifest { layers, ..Manifest::default() }).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains(media_type), "{error}");
        }
    }

    #[test]
    fn the_newer_annotation_names_the_file() {
        let all = [
            ("org.opencontainers.image.title", "c"),
            ("org.cnai.model.filepath", "b"),
            ("org.cncf.model.filepath", "a"),
        ];
        for (used, path) in [(&all[..], "a"), (&all[..2], "b"), (&all[..1], "c")] {
            assert_eq!(artifact(vec![layer("x", used)]).layers[0].path.as_deref(), Some(path));
        }
    }

    #[test]
    fn metadata_is_read_from_every_key_and_garbage_is_a_warning() {
        for key in METADATA_KEYS {
            let artifact = artifact(vec![layer("x", &[(key, r#"{"mode":420}"#)])]);
            assert_eq!(artifact.layers[0].metadata.as_ref().unwrap().mode, Some(420));
            assert!(artifact.warnings.is_empty());
        }
        let artifact = artifact(vec![layer("x", &[(METADATA_KEYS[0], "garbage")])]);
        assert_eq!((artifact.layers[0].metadata.clone(), artifact.warnings.len()), (None, 1));
    }

    #[test]
    fn the_bound_index_is_hidden_and_pinned_by_its_annotations() {
        let head = Digest::of(b"head");
        let marks =
            [(INDEX_KEY, "v1"), (INDEX_HEAD_DIGEST_KEY, &head.to_string()), (INDEX_HEAD_SIZE_KEY, "9")];
        let of = |marks: &[(&str, &str)]| artifact(vec![layer("a", &[]), layer("i", marks)]);
        let found = of(&marks).bound_index().unwrap().unwrap();
        assert_eq!((found.blob.digest, found.head), (Digest::of(b"i"), Blob { digest: head, size: 9 }));
        assert_eq!((of(&marks).visible().count(), of(&marks).warnings.len()), (1, 0));
        assert_eq!(of(&[]).bound_index().unwrap(), None);
        let size = [marks[0], marks[1], (INDEX_HEAD_SIZE_KEY, "10")];
        for (marks, kind) in [
            (&[(INDEX_KEY, "v2")][..], Kind::Unsupported),
            (&marks[..1], Kind::Invalid),
            (&marks[..2], Kind::Invalid),
            (&size[..], Kind::Invalid),
        ] {
            let error = of(marks).bound_index().unwrap_err();
            assert_eq!(error.kind(), kind);
            assert!(error.to_string().contains(&Digest::of(b"i").to_string()), "{error}");
        }
        let twice = artifact(vec![layer("i", &marks), layer("j", &marks)]);
        assert_eq!(twice.bound_index().unwrap_err().kind(), Kind::Invalid);
    }
}
