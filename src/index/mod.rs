//! Floor 2: the map from files to bytes. It answers everything before the first read.
//!
//! An [`Index`] has the entries of an artifact (names, sizes, links) and, for each layer, which stretches of
//! its content are files. How it is found: [`find()`] takes it from the artifact's [bound](bound) index, and derives it for
//! raw and tar layers from their descriptors and headers where there is none; [`find_blobs()`] lists the blobs
//! themselves. How it is published: [`format`](mod@format).

mod allowance;
mod archive;
mod attached;
mod blobs;
pub mod bound;
mod cover;
pub mod diff_ids;
mod digest;
pub mod find;
pub mod format;
mod grid;
pub mod guide;
mod layered;
pub mod local;
mod names;
pub mod pass;
mod plain;
pub mod sections;
pub mod spool;
mod streamed;
pub mod union;
mod window;

pub use allowance::{Allowance, Headers};
pub use attached::{ARTIFACT_TYPE, Kept, Trust, mention as mention_attached, open as attached_of};
pub use blobs::{View, find_blobs};
pub use cover::{Proof, of as cover_of};
pub use digest::ChunkDigest;
pub use find::{Attached, Sources, find, find_in, find_with};
pub use grid::Grid;
pub use guide::{Guide, Guides};

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use crate::oci::artifact::ModelLayer;
use crate::oci::artifact::Packaging;
use crate::oci::{Blob, Digest};
use crate::range::{ContentRange, StoredRange};

/// The size of a chunk, the unit of verifying and keeping: 1 MiB, counted from the start of each file
/// (index format v1). The last chunk of a file is shorter.
pub const CHUNK: u64 = 1 << 20;

/// All that is known of an artifact's files before any of them is read.
#[derive(Clone, Debug, Default)]
pub struct Index {
    /// Every file, folder and link, in the order of layers and, within one, of its archive.
    pub entries: Vec<Entry>,
    /// The layers, in the manifest's order.
    pub layers: Vec<Layer>,
    /// What a person should know: duplicate paths, ignored layers.
    pub warnings: Vec<String>,
}

/// One name in the artifact's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The path below the mount, validated: components joined by `/`, no empty, `.` or `..` among them.
    pub path: String,
    /// What the name is.
    pub kind: EntryKind,
    /// Permission bits as the writer recorded them, 0 where unknown. Shown masked to what a reader may do.
    pub mode: u32,
    /// Modification time in seconds since 1970, 0 where unknown.
    pub mtime: i64,
    /// The layer this name comes from, as an index into [`Index::layers`].
    pub layer: usize,
}

/// What a name is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; no extent where it is empty.
    File {
        /// Where its bytes lie.
        extent: Option<ExtentId>,
        /// Its size in bytes.
        size: u64,
    },
    /// A folder that is named by itself; folders that only files imply have no entry.
    Directory,
    /// A symbolic link with its target as written, known to stay inside the tree, except in a container image.
    Symlink(String),
    /// Another name of the regular file at this path, which comes earlier, and but for container images in the same layer.
    HardLink(String),
    /// What lower layers have at this path is gone. Only of a layer that lies on others, before they are
    /// [put together](union): an index has none but while names of other layers are still to come.
    Whiteout,
    /// What lower layers have in this folder is gone; the path is empty for the root. As [`Whiteout`](Self::Whiteout).
    Opaque,
}

/// Which extent of which layer: the name of one file's content on every floor above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtentId {
    /// Index into [`Index::layers`].
    pub layer: usize,
    /// Index into [`Layer::extents`].
    pub extent: usize,
}

/// A layer as stretches of content: files, and what lies between them.
///
/// Extents are sorted, not empty and do not overlap; together with the gaps they cover the content exactly.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The blob it is stored as.
    pub blob: Blob,
    /// The media type, for people.
    pub media_type: String,
    /// The `diffID` the config gives, if any. A disagreement is a warning, never proof.
    pub diff_id: Option<Digest>,
    /// How content is made from stored bytes.
    pub coding: Coding,
    /// Where each file lies in the content.
    pub extents: Vec<ContentRange>,
    /// What lies between them: archive headers and padding. Described, not chunked.
    pub gaps: Vec<Gap>,
    /// Where the digests of all its chunks are, if the artifact brings them.
    pub bound: Option<Bound>,
}

/// What says what every chunk of a layer must be: an index that is bound to the artifact, trusted, or was made on this
/// machine while the layer went by and was proved.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The digests of its chunks.
    pub chunks: Section,
    /// The name under which the layer's verified chunks are kept: made of the layer's digest, its extents and the
    /// section's digest, so that whoever has the same name has the same bytes. The layer's digest itself where the index
    /// was made on this machine: its bytes were proved.
    pub kept_as: Digest,
}

/// A section of an index. Pinned: its digest is in the index's head, and the head's is in the manifest, or this machine made it.
#[derive(Clone, Debug)]
pub struct Section {
    /// Where the index is.
    pub home: Home,
    /// Where the section lies in it.
    pub range: StoredRange,
    /// The SHA-256 of the section.
    pub digest: Digest,
    /// The section, where it came along with the head.
    pub bytes: Option<Bytes>,
}

/// Where an index is.
#[derive(Clone, Debug)]
pub enum Home {
    /// A blob of the artifact's repository.
    Repository(Blob),
    /// A file on this machine.
    File(Arc<File>),
}

/// How a layer's content is made from its stored bytes.
#[derive(Clone, Debug)]
pub enum Coding {
    /// Content is the stored bytes: raw and tar layers.
    Stored,
    /// Decoded span by span.
    Spans(Box<Spans>),
    /// Compressed, and nobody has seen the spans yet: the layer, of which the manifest says this, goes by once. Where it has
    /// a guide all its entries and extents are known already. Else its files become known as it goes by; the one file of a
    /// layer whose annotation names it is known already, with the first extent; no other entry or extent is.
    Streamed(Arc<ModelLayer>, Option<Arc<Guide>>),
}

/// The spans of a compressed layer.
#[derive(Clone, Debug)]
pub struct Spans {
    /// How they are compressed.
    pub how: Compression,
    /// The size of the layer's content in bytes.
    pub content: u64,
    /// Where each begins: [`gzip::Table`](crate::codec::gzip::Table) or [`zstd::Spans`](crate::codec::zstd::Spans).
    pub table: Section,
    /// What decoding needs to start at them, for gzip; `None` where there is none to keep.
    pub checkpoints: Option<Section>,
}

/// A compression of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// How a layer of this packaging is compressed; `None` where it is not.
#[must_use]
pub fn compression(packaging: Packaging) -> Option<Compression> {
    match packaging {
        Packaging::Raw | Packaging::Tar => None,
        Packaging::TarGzip => Some(Compression::Gzip),
        Packaging::TarZstd => Some(Compression::Zstd),
    }
}

impl Layer {
    /// The name under which the layer's chunks are kept: its digest, or, for a bound layer, one that its chunk digests
    /// are part of.
    #[must_use]
    pub fn kept_as(&self) -> &Digest {
        self.bound.as_ref().map_or(&self.blob.digest, |bound| &bound.kept_as)
    }

    /// Whether an index says anything of it: its chunks' digests, or how it is decoded.
    #[must_use]
    pub fn is_covered(&self) -> bool {
        self.bound.is_some() || matches!(self.coding, Coding::Spans(_))
    }

    /// Whether its names become known only as it goes by, but for that of its one file where an annotation says it.
    #[must_use]
    pub fn is_growing(&self) -> bool {
        matches!(self.coding, Coding::Streamed(_, None))
    }

    /// The size of its content in bytes; `None` where the layer must go by before it is known.
    #[must_use]
    pub fn content(&self) -> Option<u64> {
        match &self.coding {
            Coding::Stored => Some(self.blob.size),
            Coding::Spans(spans) => Some(spans.content),
            Coding::Streamed(..) => None,
        }
    }

    /// Where the content range lies among the stored bytes, where both spaces agree; `None` where it must be decoded.
    #[must_use]
    pub fn stored(&self, content: ContentRange) -> Option<StoredRange> {
        matches!(self.coding, Coding::Stored).then(|| StoredRange::new(content.start(), content.end()))
    }
}

/// What lies between extents, up to the end of the content.
fn between(extents: &[ContentRange], content: u64) -> Vec<Gap> {
    let starts = std::iter::once(0).chain(extents.iter().map(|extent| extent.end()));
    let ends = extents.iter().map(|extent| extent.start()).chain([content]);
    let gaps = starts.zip(ends).map(|(start, end)| ContentRange::new(start, end));
    gaps.filter(|range| !range.is_empty()).map(|range| Gap { range, bytes: None }).collect()
}

/// A stretch of a layer that belongs to no file.
#[derive(Clone, Debug)]
pub struct Gap {
    /// Where it lies in the content.
    pub range: ContentRange,
    /// Its bytes, where deriving the index has read them anyway.
    pub bytes: Option<Bytes>,
}
