//! Index format v1: an index as bytes that are published under a digest. docs/index-format.md draws it.
//!
//! [`encode()`] is called by whoever packs an artifact, [`decode()`] by whoever opens one; both work on bytes in memory
//! and ask nobody. One artifact has one form: what [`decode()`] takes, [`Head::encode`] gives back byte for byte.

mod decode;
mod encode;
mod wire;

pub use decode::decode;
pub(super) use decode::decode_at;
pub use encode::encode;

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, Layer};
use crate::oci::{Blob, Digest};
use crate::range::{ContentRange, StoredRange};

/// The longest head that is read or written in bytes: 256 MiB, which is a data set of two million files.
pub const HEAD_LIMIT: u64 = 256 << 20;

/// An index as it is published.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// What it is made of, one after the other: the head, then the sections.
    pub parts: Vec<Part>,
    /// What to ask for: digest and size of all of it.
    pub blob: Blob,
    /// The head, which is the first `head.size` bytes: the manifest pins it by annotations.
    pub head: Blob,
}

/// A stretch of an index that is about to be published.
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes in memory.
    Bytes(Bytes),
    /// Bytes of a file on this machine, which nobody changes: checkpoints are too large for memory.
    File(Arc<File>, StoredRange),
}

/// What the head of an index says.
#[derive(Clone, Debug)]
pub struct Head {
    /// The layers it covers, in the manifest's order. Their media types are the manifest's to say, so empty here; gaps
    /// have no bytes.
    pub layers: Vec<Layer>,
    /// Their entries.
    pub entries: Vec<Entry>,
    /// Sections that say more than this version knows, and need not be known.
    pub passed_over: Vec<PassedOver>,
}

/// A section of a kind that this version does not know, marked as one that a reader may pass over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// The layer it belongs to, as an index into [`Head::layers`].
    pub layer: usize,
    /// Its kind; bit 15 is set.
    pub kind: u16,
    /// Where it lies in the blob.
    pub range: StoredRange,
    /// Its SHA-256.
    pub digest: Digest,
}

/// The name under which a layer's verified chunks are kept: whoever has the same name has the same bytes.
///
/// The section's digest stands for what the chunks are, the extents for which files they make, the layer's digest for
/// whose they are.
fn kept_as(layer: &Digest, extents: &[ContentRange], section: &Digest) -> Digest {
    let mut text = format!("weightfs: chunks of a layer under a bound index, v1\n{layer}\n{section}\n");
    text.reserve(extents.len().saturating_mul(24));
    for extent in extents {
        text.push_str(&format!("{}+{}\n", extent.start(), extent.len()));
    }
    // Not SHA-256 of the text: a layer of exactly these bytes would have this name too, and a name is all that the store has.
    Digest::sha256(blake3::hash(text.as_bytes()).as_bytes())
}

#[cfg(test)]
mod tests;
