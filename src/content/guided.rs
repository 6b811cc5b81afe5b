//! A layer that says itself where its frames lie: read by them before it has gone by, and as long as that comes out.
//!
//! A [guide](crate::index::guide) was held to the archive's headers and to nothing else. So a chunk that is read by it is what
//! a chunk of a plain layer is before the proof: its digest is taken down, and must be that of what goes by later. Where
//! something can't be decoded as the guide says, nobody goes by it any more, and who reads waits for the layer to go by. That
//! begins when somebody wants all of it, or when so much has been read by the guide that the rest costs little beside.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;

use super::extent::Extent;
use super::fetch::Request;
use super::lanes::Lane;
use super::loader::Loader;
use super::reader::Fault;
use super::stream::Stream;
use super::verify::Verified;
use crate::error::{Error, Kind, Result};
use crate::index::guide::{Guide, Part};
use crate::range::ContentRange;

/// Which part of a layer is read by its guide before all of it goes by.
const SHARE: u64 = 8;

/// What goes by within so much content is waited for rather than read beside, once the layer is seen to move.
const SOON: u64 = 4 << 20;

/// A guide at work.
#[derive(Debug)]
pub(super) struct Guided {
    pub(super) guide: Arc<Guide>,
    /// Stored bytes of the layer in all, and those that were fetched by the guide.
    stored: u64,
    fetched: AtomicU64,
    /// Whether it was found to be wrong.
    is_lost: AtomicBool,
}

impl Guided {
    /// The guide of a layer of so many stored bytes.
    pub(super) fn new(guide: &Arc<Guide>, stored: u64) -> Self {
        let (fetched, is_lost) = (AtomicU64::new(0), AtomicBool::new(false));
        Self { guide: Arc::clone(guide), stored, fetched, is_lost }
    }

    /// Whether it may still be gone by.
    pub(super) fn is_good(&self) -> bool {
        !self.is_lost.load(Ordering::Acquire)
    }

    /// The parts that hold any byte of `range`, where the manifest pins what they must be.
    pub(super) fn parts(&self, range: ContentRange) -> Option<&[Part]> {
        let parts = self.guide.parts.as_deref()?;
        let first = parts.partition_point(|part| part.content.end() <= range.start());
        let end = parts.partition_point(|part| part.content.start() < range.end());
        parts.get(first..end.max(first))
    }
}

impl Loader {
    /// The layer's guide, as long as its chunks are read by it.
    pub(super) fn guided(&self, layer: usize) -> Option<&Guided> {
        self.streaming(layer)?.guided()
    }

    /// Whether content of the layer is decoded from spans that are known, by an index or by a guide.
    pub(super) fn is_decoded(&self, layer: usize) -> bool {
        self.spans_of(layer).is_some() || self.guided(layer).is_some()
    }

    /// Whether chunks of the layer come in no other way than by its going by.
    pub(super) fn must_come(&self, layer: usize) -> bool {
        self.streaming(layer).is_some() && self.guided(layer).is_none()
    }

    /// Whether chunks of the layer come without anybody's asking: it goes by, or will for the first who reads.
    pub(super) fn comes_by_itself(&self, layer: usize) -> bool {
        self.streaming(layer).is_some_and(|stream| stream.guided().is_none() || stream.is_going())
    }

    /// Counts stored bytes of a layer; has it go by once enough of it was read by its guide.
    pub(super) fn count_guided(&self, layer: usize, bytes: u64) {
        let Some(stream) = self.streaming(layer) else { return };
        let Some(guided) = stream.guided() else { return };
        let before = guided.fetched.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > guided.stored / SHARE {
            stream.begin();
        }
    }

    /// The chunk, which was decoded by the layer's guide, if it is what it was before.
    ///
    /// # Errors
    /// `Integrity` where it is another: whether the guide is wrong, or what was here before, shows when the layer goes by.
    pub(super) fn verified_by_guide(&self, extent: &Extent, chunk: u64, bytes: Bytes) -> Result<Verified> {
        self.doubt_unknown(extent, chunk);
        let doing = || format!("chunk {chunk} of {} had other bytes before", extent.path);
        extent.verify(chunk, bytes).ok_or_else(|| Error::new(Kind::Integrity, doing()))
    }

    /// Gives up the layer's guide where this is its fault; whether who was led by it must wait for the layer to go by.
    pub(super) fn is_misled(&self, layer: usize, fault: &Fault) -> bool {
        let Some(stream) = self.streaming(layer) else { return false };
        let Some(guided) = stream.guide() else { return false };
        let (Fault::Wrong(_, error) | Fault::Malformed(error)) = fault else { return !guided.is_good() };
        if !guided.is_lost.swap(true, Ordering::AcqRel) {
            let layer = self.layer(layer).map(|layer| layer.blob.digest.to_string());
            tracing::warn!(layer, %error, "its own table leads astray: what is not here yet comes when it goes by");
        }
        true
    }
}

impl Request {
    /// Whether the chunks are read by the layer's guide now, rather than waited for.
    pub(super) fn goes_beside(&self, stream: &Stream, extent: &Extent, left: &[u64]) -> bool {
        if stream.guided().is_none() {
            return false;
        }
        let Some(settled) = stream.going() else { return self.lane != Lane::Whole };
        let first = left.first().map_or(u64::MAX, |chunk| extent.content(&(*chunk..*chunk + 1)).start());
        let soon = settled > 0 && settled <= first && first - settled <= SOON;
        (self.lane == Lane::Demand || self.urgency.is_raised()) && !soon
    }
}
