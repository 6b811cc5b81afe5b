//! Indexes of other lazy readers that may stand in an artifact or among its referrers: known by name, and never read.
//!
//! Floor 2 asks, so that none of them is taken for a layer of files. Names are as SOCI's docs and the nydus snapshotter's
//! label package give them.

/// Annotations and media types of SOCI begin so.
pub const SOCI: [&str; 2] = ["application/vnd.amazon.soci.", "com.amazon.soci."];

/// The annotations of a nydus layer: its metadata, its data.
pub const NYDUS_KEYS: [&str; 2] =
    ["containerd.io/snapshot/nydus-bootstrap", "containerd.io/snapshot/nydus-blob"];

/// The media type of a nydus data layer.
pub const NYDUS_BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";

/// Whose index this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// A SOCI index, zTOC or prefetch list.
    Soci,
    /// A nydus bootstrap or blob.
    Nydus,
}

/// Tells whose index something is by its media or artifact type and its annotations' keys; `None` for anything else.
///
/// A zTOC itself is an `application/octet-stream`, and only its annotations tell. The annotation that leads from a
/// manifest to its SOCI index (`com.amazon.soci.index-digest`) says nothing of the manifest itself.
#[must_use]
pub fn foreign<'a>(media_type: &str, keys: impl IntoIterator<Item = &'a str>) -> Option<Foreign> {
    let [types, names] = SOCI;
    let mut keys = keys.into_iter().filter(|key| *key != "com.amazon.soci.index-digest");
    if media_type.starts_with(types) {
        return Some(Foreign::Soci);
    }
    if media_type == NYDUS_BLOB {
        return Some(Foreign::Nydus);
    }
    keys.find_map(|key| match key {
        key if key.starts_with(names) => Some(Foreign::Soci),
        key if NYDUS_KEYS.contains(&key) => Some(Foreign::Nydus),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_of_others_are_known_by_type_or_annotation_and_ordinary_layers_are_not() {
        assert_eq!(foreign("application/vnd.amazon.soci.index.v1+json", []), Some(Foreign::Soci));
        let ztoc = ["com.amazon.soci.image-layer-mediaType", "com.amazon.soci.image-layer-digest"];
        assert_eq!(foreign("application/octet-stream", ztoc), Some(Foreign::Soci));
        let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
        assert_eq!(foreign(layer, ["containerd.io/snapshot/nydus-bootstrap"]), Some(Foreign::Nydus));
        assert_eq!(foreign(NYDUS_BLOB, []), Some(Foreign::Nydus));
        assert_eq!(foreign(layer, [crate::codec::estargz::DIGEST_KEY]), None);
        assert_eq!(foreign(layer, ["com.amazon.soci.index-digest"]), None);
    }
}
