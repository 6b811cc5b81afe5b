//! Whether CRI-O can use an artifact: what it would refuse is refused, and what it would not show is said.
//!
//! Its rules (internal/ociartifact/store.go, as of 1.36): a manifest with an image's config and no artifact type is an image; every
//! layer is shown as it is stored, under the title that its annotations give it or else ModelPack's path, and not at all where it
//! has neither.

use crate::error::{Error, Kind, Result};
use crate::oci::Artifact;
use crate::oci::artifact::{ModelLayer, Packaging};
use crate::oci::manifest::{Document, OCI_MANIFEST};
use crate::repository::Pinned;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Media types of configs that make a manifest without an artifact type an image.
const IMAGE_CONFIGS: [&str; 3] =
    ["", "application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Annotations that CRI-O names a file by.
const NAMES: [&str; 2] = ["org.opencontainers.image.title", "org.cncf.model.filepath"];

/// The media type of a manifest that is an artifact to CRI-O.
///
/// # Errors
/// `Unsupported` where it is none.
pub(super) fn media_type(pinned: &Pinned) -> Result<String> {
    let refused = |why: String, way_out: &str| Err(Error::new(Kind::Unsupported, why).hint(way_out));
    let Document::Manifest(manifest) = Document::parse(&pinned.bytes, &pinned.media_type)? else {
        return refused(format!("{} is a list of manifests", pinned.digest), "name one of them with @DIGEST");
    };
    let media_type = match manifest.media_type.as_str() {
        "" => OCI_MANIFEST,
        known @ (OCI_MANIFEST | DOCKER_MANIFEST) => known,
        other => {
            let why = format!("a manifest of the type {other:?} is read by no reader of artifact stores");
            return refused(
                why,
                "push the model anew, with an OCI image manifest; 'weightfs mount' reads it as it is",
            );
        }
    };
    let config = manifest.config.as_ref().map_or("", |config| config.media_type.as_str());
    if manifest.artifact_type.is_empty() && IMAGE_CONFIGS.contains(&config) {
        let why = format!("{} is a container image, which no artifact store takes", pinned.digest);
        return refused(why, "pull it as an image, or mount it with 'weightfs mount'");
    }
    Ok(media_type.to_owned())
}

/// What a person should know who registers the artifact.
pub(super) fn warnings(artifact: &Artifact) -> Vec<String> {
    let layers = || artifact.visible();
    let archives: Vec<_> = layers().filter(|layer| layer.packaging != Packaging::Raw).collect();
    let is_unnamed = |layer: &&ModelLayer| {
        layer.packaging == Packaging::Raw
            && !NAMES.iter().any(|name| layer.descriptor.annotations.contains_key(*name))
    };
    let unnamed: Vec<_> = layers().filter(is_unnamed).collect();
    let said = [
        said(&archives, "an archive, and CRI-O shows blobs as they are stored: containers see the archive"),
        said(&unnamed, "without a name that CRI-O knows: containers do not see it"),
    ];
    said.into_iter().flatten().collect()
}

fn said(layers: &[&ModelLayer], what: &str) -> Option<String> {
    let (first, rest) = layers.split_first()?;
    let others = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    Some(format!("{}{others}: {what}", first.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn pinned(manifest: &str) -> Pinned {
        let bytes = bytes::Bytes::from(manifest.to_owned());
        Pinned { digest: Digest::of(&bytes), media_type: String::new(), bytes }
    }

    fn manifest(artifact_type: &str, config: &str, layers: &str) -> Pinned {
        let digest = Digest::of(b"{}");
        pinned(&format!(
            r#"{{"schemaVersion":2,"artifactType":"{artifact_type}",
            "config":{{"mediaType":"{config}","digest":"{digest}","size":2}},"layers":[{layers}]}}"#
        ))
    }

    #[test]
    fn a_container_image_is_refused_and_an_artifact_with_the_config_of_one_is_not() {
        let image = "application/vnd.oci.image.config.v1+json";
        let refused = media_type(&manifest("", image, "")).unwrap_err();
        assert_eq!(refused.kind(), Kind::Unsupported);
        assert!(refused.to_string().contains("container image"), "{refused}");
        let model = "application/vnd.cncf.model.manifest.v1+json";
        assert_eq!(media_type(&manifest(model, image, "")).unwrap(), OCI_MANIFEST);
        assert_eq!(media_type(&manifest("", "application/vnd.oci.empty.v1+json", "")).unwrap(), OCI_MANIFEST);
        let odd = pinned(&format!(r#"{{"schemaVersion":2,"mediaType":"{model}","layers":[]}}"#));
        assert_eq!(media_type(&odd).unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn layers_that_containers_do_not_see_as_files_are_told() {
        let layer = |media_type: &str, key: &str, content: &str| {
            let digest = Digest::of(content.as_bytes());
            format!(
                r#"{{"mediaType":"{media_type}","digest":"{digest}","size":1,"annotations":{{"{key}":"a/w.bin"}}}}"#
            )
        };
        let warned = |layers: &[String]| {
            let pinned = manifest("application/vnd.cncf.model.manifest.v1+json", "x", &layers.join(","));
            let Document::Manifest(manifest) = Document::parse(&pinned.bytes, "").unwrap() else { panic!() };
            warnings(&Artifact::read(manifest).unwrap())
        };
        let raw = "application/vnd.cncf.model.weight.v1.raw";
        assert!(warned(&[layer(raw, NAMES[1], "1"), layer(raw, NAMES[0], "2")]).is_empty());
        let older = warned(&[layer(raw, "org.cnai.model.filepath", "1")]);
        assert!(older.len() == 1 && older[0].contains("a/w.bin"), "{older:?}");
        let tar = "application/vnd.cncf.model.weight.v1.tar";
        let archives = warned(&[layer(tar, NAMES[1], "1"), layer(tar, NAMES[1], "2")]);
        assert!(archives.len() == 1 && archives[0].contains("and 1 more"), "{archives:?}");
    }
}
