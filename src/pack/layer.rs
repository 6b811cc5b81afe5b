//! One file as a layer, and that layer as the index has it: known from name, size and times, before the file is read.
//!
//! As modctl writes layers: the file itself (raw), or a tar of the file alone, which may be compressed
//! ([`compress`](super::compress)).

use bytes::Bytes;

use super::walk::File;
use crate::codec::tar_header;
use crate::error::{Error, Kind, Result};
use crate::index::{self, Coding, Entry, EntryKind, ExtentId, Gap};
use crate::oci::Blob;
use crate::oci::artifact::{LayerKind, Packaging};
use crate::range::{ContentRange, StoredRange};
use crate::repository::push::Piece;

/// A layer in the making.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The file it holds.
    pub file: File,
    /// What the file is.
    pub kind: LayerKind,
    /// Raw, tar, or tar compressed.
    pub packaging: Packaging,
    /// Permission bits: 0644, or 0755 for what its user may execute.
    pub mode: u32,
    /// Modification time in seconds since 1970.
    pub mtime: u64,
    /// What stands before the file; empty for raw.
    pub headers: Bytes,
    /// How many zeros stand after it; 0 for raw.
    pub tail: u64,
}

impl Layer {
    /// The layer of `file`.
    ///
    /// # Errors
    /// `Unsupported` where the layer would not fit 64 bits.
    pub fn new(file: File, kind: LayerKind, packaging: Packaging, mtime: u64) -> Result<Self> {
        let mode = if file.executable { 0o755 } else { 0o644 };
        let (headers, tail) = match packaging {
            Packaging::Tar | Packaging::TarGzip | Packaging::TarZstd => {
                let headers = tar_header::headers(&file.path, file.size, mode, mtime);
                (Bytes::from(headers), tar_header::tail(file.size))
            }
            Packaging::Raw => (Bytes::new(), 0),
        };
        let around = u64::try_from(headers.len()).ok().and_then(|len| len.checked_add(tail));
        if around.and_then(|around| around.checked_add(file.size)).is_none() {
            return Err(Error::new(Kind::Unsupported, format!("{} is too large", file.path)));
        }
        Ok(Self { file, kind, packaging, mode, mtime, headers, tail })
    }

    /// How many bytes its content has: the stored ones, where it is not compressed.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.content().end().saturating_add(self.tail)
    }

    /// Where the file lies in it.
    #[must_use]
    pub fn content(&self) -> ContentRange {
        let start = u64::try_from(self.headers.len()).unwrap_or(u64::MAX);
        ContentRange::new(start, start.saturating_add(self.file.size))
    }

    /// The extents that the index has of it: the file, or none where it is empty.
    #[must_use]
    pub fn extents(&self) -> Vec<ContentRange> {
        let content = self.content();
        if content.is_empty() { Vec::new() } else { vec![content] }
    }

    /// The media type.
    #[must_use]
    pub fn media_type(&self) -> String {
        format!("application/vnd.cncf.model.{}.v1.{}", self.kind.name(), self.packaging.name())
    }

    /// Its content, which is what is stored where it is not compressed, for an upload.
    #[must_use]
    pub fn pieces(&self) -> Vec<Piece> {
        let mut pieces = Vec::with_capacity(3);
        if !self.headers.is_empty() {
            pieces.push(Piece::Bytes(self.headers.clone()));
        }
        if self.file.size > 0 {
            let range = StoredRange::new(0, self.file.size);
            let (path, seal) = (self.file.place.clone(), self.file.seal);
            pieces.push(Piece::Sealed { path, range, seal });
        }
        let tail = usize::try_from(self.tail).unwrap_or(0);
        if tail > 0 {
            pieces.push(Piece::Bytes(vec![0; tail].into()));
        }
        pieces
    }

    /// Itself, if it is not compressed, as the index has it, where `blob` is what it turned out to be and `number` its place among the layers: as
    /// [`find`](crate::index::find()) derives it from the published layer.
    #[must_use]
    pub fn indexed(&self, blob: &Blob, number: usize) -> (index::Layer, Entry) {
        let content = self.content();
        let gap = |start, end| Gap { range: ContentRange::new(start, end), bytes: None };
        let mut gaps = match content.is_empty() {
            true => vec![gap(0, blob.size)],
            false => vec![gap(0, content.start()), gap(content.end(), blob.size)],
        };
        gaps.retain(|gap| !gap.range.is_empty());
        let layer = index::Layer {
            blob: blob.clone(),
            media_type: self.media_type(),
            // Neither raw nor tar is compressed, so that stored bytes and content are the same.
            diff_id: Some(blob.digest.clone()),
            coding: Coding::Stored,
            extents: self.extents(),
            gaps,
            bound: None,
        };
        let extent = (!content.is_empty()).then_some(ExtentId { layer: number, extent: 0 });
        let entry = Entry {
            path: self.file.path.clone(),
            kind: EntryKind::File { extent, size: self.file.size },
            mode: self.mode,
            mtime: i64::try_from(self.mtime).unwrap_or(0),
            layer: number,
        };
        (layer, entry)
    }
}
