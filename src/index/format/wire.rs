//! The tables of an index's head as they lie in its bytes (docs/index-format.md): sizes, places and limits.
//!
//! Says nothing of what they mean: [`encode`](super::encode()) fills them, [`decode`](super::decode()) checks them.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The first bytes of every index.
pub(super) const MAGIC: [u8; 8] = *b"weightfs";

pub(super) const VERSION: u16 = 1;

/// Chunks are digested by BLAKE3, 32 bytes each.
pub(super) const BLAKE3: u8 = 1;

/// The size of a chunk as a power of two.
pub(super) const CHUNK_POWER: u8 = 20;

pub(super) const LAYER_LIMIT: usize = 10_000;
pub(super) const EXTENT_LIMIT: usize = 2_000_000;
pub(super) const ENTRY_LIMIT: usize = 2_000_000;
pub(super) const SECTION_LIMIT: usize = 40_000;
pub(super) const TEXT_LIMIT: usize = 128 << 20;

/// The extent of what has no bytes.
pub(super) const NO_EXTENT: u32 = u32::MAX;

/// The kind of a section of chunk digests.
pub(super) const CHUNK_DIGESTS: u16 = 1;

/// The kind of a section of spans.
pub(super) const SPANS: u16 = 2;

/// The kind of a section of checkpoints.
pub(super) const CHECKPOINTS: u16 = 3;

/// Content is the stored bytes.
pub(super) const STORED: u8 = 0;
pub(super) const GZIP: u8 = 1;
pub(super) const ZSTD: u8 = 2;

/// Set in the kinds of sections that a reader who does not know them passes over.
pub(super) const MAY_PASS_OVER: u16 = 1 << 15;

pub(super) const FILE: u8 = 0;
pub(super) const FOLDER: u8 = 1;
pub(super) const SYMBOLIC_LINK: u8 = 2;
pub(super) const HARD_LINK: u8 = 3;

/// The largest permission bits.
pub(super) const PERMISSIONS: u32 = 0o7777;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: [u8; 8],
    pub(super) version: U16,
    pub(super) chunk_digest: u8,
    pub(super) chunk_power: u8,
    pub(super) reserved: [u8; 4],
    pub(super) length: U64,
    pub(super) layers: U32,
    pub(super) extents: U32,
    pub(super) entries: U32,
    pub(super) sections: U32,
    pub(super) text: U32,
    pub(super) reserved_too: [u8; 20],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Layer {
    pub(super) stored: U64,
    pub(super) content: U64,
    pub(super) extents: U32,
    pub(super) sections: U32,
    pub(super) digest_algorithm: u8,
    pub(super) diff_id_algorithm: u8,
    pub(super) coding: u8,
    pub(super) reserved: [u8; 5],
    pub(super) digest: [u8; 64],
    pub(super) diff_id: [u8; 64],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Extent {
    pub(super) start: U64,
    pub(super) len: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Entry {
    pub(super) kind: u8,
    pub(super) reserved: [u8; 3],
    pub(super) mode: U32,
    pub(super) mtime: I64,
    pub(super) layer: U32,
    pub(super) extent: U32,
    pub(super) path: U32,
    pub(super) path_len: U32,
    pub(super) target: U32,
    pub(super) target_len: U32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Section {
    pub(super) kind: U16,
    pub(super) reserved: [u8; 6],
    pub(super) start: U64,
    pub(super) len: U64,
    pub(super) reserved_too: [u8; 8],
    pub(super) digest: [u8; 32],
}

const _: () = {
    assert!(size_of::<Header>() == 64);
    assert!(size_of::<Layer>() == 160);
    assert!(size_of::<Extent>() == 16);
    assert!(size_of::<Entry>() == 40);
    assert!(size_of::<Section>() == 64);
};
