//! Bytes with proof: the only door through which chunks reach the store and the readers.
//!
//! A [`Verified`] chunk matched a digest: one known before (recorded, derived or bound), or, on first contact
//! under [`Integrity::Deferred`](super::Integrity::Deferred), the one recorded from these very bytes.

use bytes::Bytes;

use crate::buffer::Filling;
use crate::index::ChunkDigest;

/// How many bytes are hashed at a time while a chunk arrives: enough for the widest instructions, and still in the cache of
/// the processor that has just copied them.
const STEP: usize = 128 << 10;

/// Bytes with their digest, before it is compared with anything.
#[derive(Clone, Debug)]
pub struct Hashed {
    bytes: Bytes,
    digest: ChunkDigest,
}

/// A chunk that arrives piece by piece and is hashed on the way.
#[derive(Debug)]
pub struct Arriving {
    filling: Filling,
    hasher: blake3::Hasher,
    hashed: usize,
}

/// A chunk whose bytes matched a digest.
#[derive(Clone, Debug)]
pub struct Verified {
    bytes: Bytes,
    digest: ChunkDigest,
}

impl Verified {
    /// The chunk, if its bytes are what `known` says; without a known digest, what they are is taken down.
    #[must_use]
    pub fn check(bytes: impl Into<Hashed>, known: Option<ChunkDigest>) -> Option<Self> {
        let Hashed { bytes, digest } = bytes.into();
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

/// How many bytes all of these are together.
#[must_use]
pub fn bytes_of(run: &[Verified]) -> u64 {
    run.iter().map(|verified| verified.bytes.len() as u64).sum()
}

impl From<Bytes> for Hashed {
    /// Hashes all of it now.
    fn from(bytes: Bytes) -> Self {
        let digest = ChunkDigest::of(&bytes);
        Self { bytes, digest }
    }
}

impl Arriving {
    /// Nothing yet, in an empty buffer.
    #[must_use]
    pub fn in_buffer(filling: Filling) -> Self {
        Self { filling, hasher: blake3::Hasher::new(), hashed: 0 }
    }

    /// How many bytes have arrived.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filling.len()
    }

    /// Whether none has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filling.is_empty()
    }

    /// Copies as much of `bytes` as fits and gives how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let taken = self.filling.push(bytes);
        self.hash(STEP);
        taken
    }

    /// The bytes with their digest.
    #[must_use]
    pub fn finish(mut self) -> Hashed {
        self.hash(1);
        let digest = ChunkDigest::recorded(*self.hasher.finalize().as_bytes());
        Hashed { bytes: self.filling.share(), digest }
    }

    /// Hashes what has not been yet, if it is at least so much.
    fn hash(&mut self, least: usize) {
        let fresh = self.filling.bytes().get(self.hashed..).unwrap_or_default();
        if fresh.len() >= least {
            self.hasher.update(fresh);
            self.hashed += fresh.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Pool;

    #[test]
    fn what_arrives_in_pieces_has_the_digest_of_the_whole() {
        let chunk: Vec<u8> =
            (0..1_u32 << 18).flat_map(|word| word.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
        for piece in [1 << 20, 400_000, 131_072, 8_191] {
            let mut arriving = Arriving::in_buffer(Pool::default().take(1 << 20));
            chunk.chunks(piece).for_each(|piece| assert_eq!(arriving.push(piece), piece.len()));
            let verified = Verified::check(arriving.finish(), Some(ChunkDigest::of(&chunk))).unwrap();
            assert!(*verified.bytes() == chunk);
        }
        let nothing = Arriving::in_buffer(Pool::default().take(1 << 20)).finish();
        assert!(Verified::check(nothing, Some(ChunkDigest::of(b""))).is_some());
    }

    #[test]
    fn other_bytes_than_recorded_are_not_verified() {
        let known = Verified::check(Bytes::from_static(b"right"), None).unwrap().digest();
        assert!(Verified::check(Bytes::from_static(b"right"), Some(known)).is_some());
        assert!(Verified::check(Bytes::from_static(b"wrong"), Some(known)).is_none());
    }
}
