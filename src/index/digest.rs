//! The name of a chunk: what its content must be, and the one algorithm that says so (index format v1).
//!
//! Not the digest of stored bytes: that is [`Digest`](crate::oci::Digest).

use std::fmt;

/// The BLAKE3 of a chunk's content (0.2 CPU-seconds per GB, measured; see docs/benchmarks.md).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkDigest([u8; 32]);

impl ChunkDigest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The 32 bytes as they are recorded.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A digest that was recorded.
    #[must_use]
    pub fn recorded(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for ChunkDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}
