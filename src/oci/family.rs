//! Whose artifact it is: the families of identifiers, and how a manifest gives its family away.
//!
//! Only recognition: what a family makes of its layers is [`dialect`](super::dialect)'s. Asked by
//! [`Artifact::read`](super::Artifact::read), and where one manifest of an index is chosen.

use super::artifact::INDEX_KEY;
use super::manifest::{Descriptor, Manifest};
use crate::codec::foreign;
use crate::error::{Error, Kind, Result};

/// The families of identifiers: each has its own way to name files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `application/vnd.cncf.model.…`: the ModelPack specification from v0.0.7 on.
    Cncf,
    /// `application/vnd.cnai.model.…`: the specification before, and modctl before 0.2.
    Cnai,
    /// `application/vnd.cncf.modelpack.…`: the flat form.
    ModelPack,
    /// A ModelKit of KitOps, or of Jozu before: its config is a Kitfile.
    KitOps,
    /// Docker Model Runner with a config v0.1: names by the layers' types.
    DockerV1,
    /// Docker Model Runner with a config v0.2: a layer for each file, named by annotation.
    DockerV2,
    /// Ollama: names by the layers' types, or in their descriptors.
    Ollama,
    /// A container image: layers that lie on one another.
    Image,
    /// Files with titles, as ORAS pushes them.
    Oras,
    /// None of these: an artifact of another kind whose layers are files.
    Other,
}

/// The annotation that is a file's name to ORAS, and to others where theirs is missing.
pub(super) const TITLE: &str = "org.opencontainers.image.title";

/// How the media types of Ollama's layers begin.
pub(super) const OLLAMA_LAYER: &str = "application/vnd.ollama.image.";

/// Media types of configs that tell a family alone.
const CONFIGS: [(&str, Family); 4] = [
    ("application/vnd.kitops.modelkit.config.v1+json", Family::KitOps),
    ("application/vnd.jozu.model.config.v1+json", Family::KitOps),
    ("application/vnd.docker.ai.model.config.v0.1+json", Family::DockerV1),
    ("application/vnd.docker.ai.model.config.v0.2+json", Family::DockerV2),
];

const IMAGE_CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// How the media types of an image's layers begin.
const IMAGE_LAYERS: [&str; 2] = ["application/vnd.oci.image.layer.", DOCKER_LAYER];

/// How the media types of an image's layers begin that is Docker's own.
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.";

/// How the type of an attached index begins.
const INDEX_TYPE: &str = "application/vnd.weightfs.index.";

/// How the types of artifacts begin that only say something of another artifact: indexes, signatures, attestations.
const ABOUT_ANOTHER: [&str; 7] = [
    "application/vnd.amazon.soci.",
    INDEX_TYPE,
    "application/vnd.cncf.notary.",
    "application/vnd.dev.cosign.",
    "application/vnd.dev.sigstore.",
    "application/vnd.in-toto",
    "application/vnd.cyclonedx",
];

impl Family {
    /// The family that a media type or artifact type belongs to; `None` for those of no family.
    #[must_use]
    pub fn of_type(media_type: &str) -> Option<Self> {
        let rest = media_type.strip_prefix("application/vnd.")?;
        [("cncf.modelpack.", Self::ModelPack), ("cncf.model.", Self::Cncf), ("cnai.model.", Self::Cnai)]
            .into_iter()
            .find_map(|(prefix, family)| rest.starts_with(prefix).then_some(family))
    }

    /// What people call it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Cncf => "cncf.model",
            Self::Cnai => "cnai.model",
            Self::ModelPack => "cncf.modelpack",
            Self::KitOps => "kitops",
            Self::DockerV1 => "docker-model v0.1",
            Self::DockerV2 => "docker-model v0.2",
            Self::Ollama => "ollama",
            Self::Image => "image",
            Self::Oras => "oras",
            Self::Other => "other",
        }
    }

    /// Whether it is one of those that the ModelPack specification, as it is or was, describes.
    #[must_use]
    pub fn is_model_pack(self) -> bool {
        matches!(self, Self::Cncf | Self::Cnai | Self::ModelPack)
    }
}

/// The family of a manifest, and the type that gave a ModelPack family away, or else its artifact type.
///
/// The artifact type decides, then the manifest's media type, then the config's, then the layers'.
pub(super) fn of_manifest(manifest: &Manifest) -> (Family, String) {
    let config = config_type(manifest);
    let candidates = [manifest.artifact_type.as_str(), manifest.media_type.as_str(), config];
    let found = candidates.into_iter().find_map(|text| Some((Family::of_type(text)?, text)));
    let (family, by) = found.unwrap_or_else(|| (neighbour(manifest), ""));
    let artifact_type = if manifest.artifact_type.is_empty() { by } else { &manifest.artifact_type };
    (family, artifact_type.to_owned())
}

/// Whether artifacts of this type are made to go with another, and are no model themselves.
pub(super) fn is_about_another(artifact_type: &str) -> bool {
    ABOUT_ANOTHER.iter().any(|prefix| artifact_type.starts_with(prefix))
}

/// Refuses a manifest that is no model and no image by what it says itself.
///
/// # Errors
/// [`Kind::Unsupported`], saying what it is instead.
pub(super) fn refuse_others(manifest: &Manifest) -> Result<()> {
    let types = [manifest.artifact_type.as_str(), config_type(manifest)];
    // Our own kind of index is read as an artifact, by whoever looks for one.
    let refused = |text: &&str| is_about_another(text) && !text.starts_with(INDEX_TYPE);
    if let Some(found) = types.into_iter().find(refused) {
        let doing = format!("this is not a model but what goes with one ({found})");
        return Err(Error::new(Kind::Unsupported, doing)
            .hint("name the model itself: its manifest is the subject of this one"));
    }
    if manifest.layers.iter().any(is_nydus_blob) {
        let doing = "this image is converted to the format of nydus, whose layers are no archives";
        return Err(Error::new(Kind::Unsupported, doing).hint("name the image that it was converted from"));
    }
    Ok(())
}

/// Whether the layer is one of a container image.
pub(super) fn is_image_layer(layer: &Descriptor) -> bool {
    IMAGE_LAYERS.iter().any(|prefix| layer.media_type.starts_with(prefix))
}

fn neighbour(manifest: &Manifest) -> Family {
    let config = config_type(manifest);
    if let Some((_, family)) = CONFIGS.iter().find(|(media_type, _)| *media_type == config) {
        return *family;
    }
    let any = |test: &dyn Fn(&Descriptor) -> bool| manifest.layers.iter().any(test);
    if any(&|layer| layer.media_type.starts_with(OLLAMA_LAYER)) {
        Family::Ollama
    } else if is_container_image(manifest) {
        Family::Image
    } else if any(&has_title) && !any(&is_of_model_pack) {
        Family::Oras
    } else {
        Family::Other
    }
}

/// By its type or by how its file is named. A bound index is too, and may have been added to any artifact.
fn is_of_model_pack(layer: &Descriptor) -> bool {
    let path = ["org.cncf.model.filepath", "org.cnai.model.filepath"];
    let named = path.iter().any(|key| layer.annotations.contains_key(*key));
    (named || Family::of_type(&layer.media_type).is_some()) && !layer.annotations.contains_key(INDEX_KEY)
}

fn has_title(layer: &Descriptor) -> bool {
    layer.annotations.contains_key(TITLE)
}

fn is_container_image(manifest: &Manifest) -> bool {
    let image_layers = manifest.layers.iter().any(is_image_layer);
    manifest.layers.iter().any(|layer| layer.media_type.starts_with(DOCKER_LAYER))
        || (IMAGE_CONFIGS.contains(&config_type(manifest)) && (image_layers || manifest.layers.is_empty()))
}

fn is_nydus_blob(layer: &Descriptor) -> bool {
    let [_, blob] = foreign::NYDUS_KEYS;
    layer.media_type == foreign::NYDUS_BLOB || layer.annotations.contains_key(blob)
}

fn config_type(manifest: &Manifest) -> &str {
    manifest.config.as_ref().map_or("", |config| config.media_type.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn typed(media_type: &str) -> Descriptor {
        let (digest, annotations) = (Digest::of(media_type.as_bytes()), Default::default());
        Descriptor { media_type: media_type.to_owned(), digest, size: 9, annotations }
    }

    fn family(config: &str, layers: Vec<Descriptor>) -> Family {
        let manifest = Manifest { config: Some(typed(config)), layers, ..Manifest::default() };
        of_manifest(&manifest).0
    }

    #[test]
    fn each_model_pack_family_is_known_by_artifact_type_media_type_or_config() {
        for (text, family) in [
            ("application/vnd.cncf.model.manifest.v1+json", Family::Cncf),
            ("application/vnd.cnai.model.manifest.v1+json", Family::Cnai),
            ("application/vnd.cncf.modelpack.manifest.v1+json", Family::ModelPack),
        ] {
            let by_artifact = Manifest { artifact_type: text.to_owned(), ..Manifest::default() };
            let by_media = Manifest { media_type: text.to_owned(), ..Manifest::default() };
            let config = Some(typed(&text.replace("manifest", "config")));
            let by_config = Manifest { config, ..Manifest::default() };
            for manifest in [by_artifact, by_media, by_config] {
                assert_eq!(of_manifest(&manifest).0, family);
            }
        }
        assert_eq!(of_manifest(&Manifest::default()), (Family::Other, String::new()));
    }

    #[test]
    fn neighbours_are_known_by_their_config_or_their_layers() {
        let titled = |media_type: &str| {
            let annotations = [(TITLE.to_owned(), "a".to_owned())].into();
            Descriptor { annotations, ..typed(media_type) }
        };
        for (config, layers, expected) in [
            (CONFIGS[0].0, vec![], Family::KitOps),
            (CONFIGS[1].0, vec![], Family::KitOps),
            (CONFIGS[2].0, vec![], Family::DockerV1),
            (CONFIGS[3].0, vec![], Family::DockerV2),
            (IMAGE_CONFIGS[1], vec![typed("application/vnd.ollama.image.model")], Family::Ollama),
            (IMAGE_CONFIGS[0], vec![typed("application/vnd.oci.image.layer.v1.tar+zstd")], Family::Image),
            (IMAGE_CONFIGS[0], vec![], Family::Image),
            ("", vec![typed("application/vnd.docker.image.rootfs.diff.tar.gzip")], Family::Image),
            ("application/vnd.oci.empty.v1+json", vec![titled("application/octet-stream")], Family::Oras),
            ("", vec![titled("application/vnd.cncf.model.doc.v1.raw")], Family::Other),
            ("application/vnd.oci.empty.v1+json", vec![typed("x/y")], Family::Other),
        ] {
            assert_eq!(family(config, layers), expected, "{config}");
        }
    }

    #[test]
    fn what_goes_with_a_model_is_refused_as_that() {
        let soci = "application/vnd.amazon.soci.index.v1+json";
        let by_type = Manifest { artifact_type: soci.to_owned(), ..Manifest::default() };
        let by_config = Manifest { config: Some(typed(soci)), ..Manifest::default() };
        let mut blob = typed("application/vnd.oci.image.layer.nydus.blob.v1");
        blob.annotations = [("containerd.io/snapshot/nydus-blob".to_owned(), "true".to_owned())].into();
        let nydus = Manifest { layers: vec![blob], ..Manifest::default() };
        for (manifest, word) in [(by_type, soci), (by_config, soci), (nydus, "nydus")] {
            let error = refuse_others(&manifest).unwrap_err();
            assert_eq!(error.kind(), Kind::Unsupported);
            assert!(error.to_string().contains(word), "{error}");
        }
        refuse_others(&Manifest::default()).unwrap();
    }
}
