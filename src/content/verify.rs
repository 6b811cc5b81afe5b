//! Bytes with proof: the only door through which chunks reach the store and the readers.
//!
//! A [`Verified`] chunk matched a digest: one known before (recorded, derived or bound), or, on first contact
//! under [`Integrity::Deferred`](super::Integrity::Deferred), the one recorded from these very bytes.

use bytes::Bytes;

use crate::index::ChunkDigest;

/// A chunk whose bytes matched a digest.
#[derive(Clone, Debug)]
pub struct Verified {
    bytes: Bytes,
    digest: ChunkDigest,
}

impl Verified {
    /// The chunk, if its bytes are what `known` says; without a known digest, what they are is taken down.
    #[must_use]
    pub fn check(bytes: Bytes, known: Option<ChunkDigest>) -> Option<Self> {
        let digest = ChunkDigest::of(&bytes);
        known.is_none_or(|known| known == digest).then_some(Self { bytes, digest })
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Their digest.
    #[must_use]
    pub fn digest(&self) -> ChunkDigest {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_than_recorded_are_not_verified() {
        let known = Verified::check(Bytes::from_static(b"right"), None).unwrap().digest();
        assert!(Verified::check(Bytes::from_static(b"right"), Some(known)).is_some());
        assert!(Verified::check(Bytes::from_static(b"wrong"), Some(known)).is_none());
    }
}
