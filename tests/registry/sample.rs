//! A small image layout folder with known bytes.

use std::path::Path;

use serde_json::json;
use weightfs::oci::{Blob, Digest};
use weightfs::range::StoredRange;

/// The media type of the sample's manifest.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The artifact type of the sample's referrer.
pub(crate) const REFERRER_TYPE: &str = "application/vnd.example.referrer";

/// An image layout in a temporary folder: one manifest under the tag `v1`, a blob of a few MiB, one of a byte.
pub(crate) struct Sample {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    pub(crate) large: Blob,
    pub(crate) small: Blob,
    pub(crate) manifest: Digest,
    pub(crate) manifest_bytes: Vec<u8>,
    /// A manifest that refers to the other one, of the type [`REFERRER_TYPE`].
    pub(crate) referrer: Blob,
    pub(crate) referrer_bytes: Vec<u8>,
}

impl Sample {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
        std::fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        // Every 8 bytes count their own place, so that no two ranges are alike.
        let bytes: Vec<u8> = (0_u64..393_220).flat_map(u64::to_le_bytes).collect();
        let (large, small) = (keep(folder.path(), &bytes), keep(folder.path(), b"x"));
        let config = keep(folder.path(), b"{}");
        let layers: Vec<_> = [&large, &small]
            .map(|b| json!({"mediaType": "application/vnd.cncf.model.weight.v1.raw", "digest": b.digest, "size": b.size}))
            .into();
        let manifest_bytes = json!({
            "schemaVersion": 2, "mediaType": MEDIA_TYPE, "layers": layers,
            "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": config.digest, "size": 2},
        })
        .to_string()
        .into_bytes();
        let manifest = keep(folder.path(), &manifest_bytes);
        let referrer_bytes = json!({
            "schemaVersion": 2, "mediaType": MEDIA_TYPE, "artifactType": REFERRER_TYPE, "layers": [],
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.digest, "size": 2},
            "subject": {"mediaType": MEDIA_TYPE, "digest": manifest.digest, "size": manifest.size},
        })
        .to_string()
        .into_bytes();
        let referrer = keep(folder.path(), &referrer_bytes);
        let index = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": MEDIA_TYPE, "digest": manifest.digest, "size": manifest.size,
             "annotations": {"org.opencontainers.image.ref.name": "v1"}},
            {"mediaType": MEDIA_TYPE, "digest": referrer.digest, "size": referrer.size},
        ]});
        std::fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
        let manifest = manifest.digest;
        Self { folder, bytes, large, small, manifest, manifest_bytes, referrer, referrer_bytes }
    }

    /// Puts a list of referrers under the tag that stands for it where a registry has no other way; gives the tag.
    pub(crate) fn list_referrers(&self) -> String {
        let other =
            json!({"mediaType": MEDIA_TYPE, "digest": self.large.digest, "size": 1, "artifactType": "other"});
        let list = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
            other, {"mediaType": MEDIA_TYPE, "digest": self.referrer.digest, "size": self.referrer.size,
                    "artifactType": REFERRER_TYPE}]});
        let list = keep(self.folder(), list.to_string().as_bytes());
        let tag = format!("sha256-{}", self.manifest.hex());
        let path = self.folder().join("index.json");
        let mut index: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        index["manifests"].as_array_mut().unwrap().push(json!({
            "mediaType": "application/vnd.oci.image.index.v1+json", "digest": list.digest, "size": list.size,
            "annotations": {"org.opencontainers.image.ref.name": tag}}));
        std::fs::write(path, index.to_string()).unwrap();
        tag
    }

    /// The image layout.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The right bytes of a range of the large blob.
    pub(crate) fn bytes_of(&self, range: StoredRange) -> &[u8] {
        let at = |place: u64| usize::try_from(place).unwrap();
        &self.bytes[at(range.start())..at(range.end())]
    }
}

fn keep(folder: &Path, bytes: &[u8]) -> Blob {
    let digest = Digest::of(bytes);
    std::fs::write(folder.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    Blob { digest, size: bytes.len().try_into().unwrap() }
}
