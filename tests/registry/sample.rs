//! A small image layout folder with known bytes.

use std::path::Path;

use serde_json::json;
use weightfs::oci::manifest::OCI_INDEX;
use weightfs::oci::{Blob, Digest};
use weightfs::range::StoredRange;

/// The media type of the sample's manifest.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

/// The artifact type of what refers to the sample.
pub(crate) const REFERRER_TYPE: &str = "application/vnd.weightfs.index.v1";

/// An image layout in a temporary folder, with a manifest that refers to its first: one manifest under the tag `v1`, a blob of a few MiB, one of a byte.
pub(crate) struct Sample {
    folder: tempfile::TempDir,
    bytes: Vec<u8>,
    pub(crate) large: Blob,
    pub(crate) small: Blob,
    pub(crate) manifest: Digest,
    pub(crate) manifest_bytes: Vec<u8>,
    pub(crate) referrer: Digest,
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
        // As clients keep it where a registry keeps no lists.
        let list = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [{
            "mediaType": MEDIA_TYPE, "artifactType": REFERRER_TYPE, "digest": referrer.digest, "size": referrer.size,
        }]});
        let list = keep(folder.path(), list.to_string().as_bytes());
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": MEDIA_TYPE, "digest": manifest.digest, "size": manifest.size,
            "annotations": {"org.opencontainers.image.ref.name": "v1"},
        }, {
            "mediaType": MEDIA_TYPE, "artifactType": REFERRER_TYPE, "digest": referrer.digest, "size": referrer.size,
        }, {
            "mediaType": OCI_INDEX, "digest": list.digest, "size": list.size,
            "annotations": {"org.opencontainers.image.ref.name": format!("sha256-{}", manifest.digest.hex())},
        }]});
        std::fs::write(folder.path().join("index.json"), index.to_string()).unwrap();
        let (manifest, referrer) = (manifest.digest, referrer.digest);
        Self { folder, bytes, large, small, manifest, manifest_bytes, referrer, referrer_bytes }
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
