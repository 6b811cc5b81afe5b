//! Manifests and indexes as JSON: what is in them, read leniently, bounded and without ambiguity.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::digest::Digest;

/// What a repository is asked for: a digest and the size it must have.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Blob {
    /// The digest of the stored bytes.
    pub digest: Digest,
    /// How many stored bytes there are.
    pub size: u64,
}

/// An OCI descriptor (image specification, descriptor.md). `urls` are never followed, so not even read.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type, empty where the writer left it out.
    #[serde(default)]
    pub media_type: String,
    /// The digest of the stored bytes.
    pub digest: Digest,
    /// Size in stored bytes.
    pub size: u64,
    /// The annotations, sorted by key.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Digest and size alone.
    #[must_use]
    pub fn blob(&self) -> Blob {
        Blob { digest: self.digest.clone(), size: self.size }
    }
}
