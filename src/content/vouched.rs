//! Chunks of a layer whose table of contents the manifest pins: verified part by part before the layer has gone by.
//!
//! The manifest has the table's digest, the table those of the parts of files. So a part whose digest is right may be served
//! to anybody, and one that is wrong is an error for who reads it, and for nobody else. Parts and chunks have other bounds: a
//! chunk is right when all parts are that hold any of it.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use super::decoding::{Beginning, interrupted};
use super::extent::Extent;
use super::fetch::Request;
use super::keeper::Keeping;
use super::lanes::Lane;
use super::loader::{Loader, Standing};
use super::passing::within;
use super::reader::{Fault, Reader};
use super::stream::Stream;
use super::verify::Verified;
use super::wire::Use;
use crate::buffer;
use crate::error::{Error, Kind, Result};
use crate::index::CHUNK;
use crate::index::guide::Part;
use crate::range::ContentRange;

/// How many chunks are verified at once for one read.
const RUN: u64 = 8;

/// A part's content, or why it can't be had.
type Had = (ContentRange, Result<Bytes>);

impl Loader {
    /// Whether the manifest pins what the parts of the layer's files must be, and it has not gone by.
    pub(super) fn is_pinned(&self, layer: usize) -> bool {
        self.streaming(layer).is_some_and(Stream::is_pinned)
    }

    /// Whether the store may have the chunk otherwise than the manifest pins it.
    pub(super) fn is_doubtful(&self, extent: &Extent, chunk: u64) -> bool {
        let layer = extent.id.layer;
        self.is_pinned(layer) && self.standing(layer) == Standing::Unproved && !extent.is_vouched_for(chunk)
    }

    /// The chunk, whose parts are what the manifest pins: what was on record otherwise, of a layer that is not proved, is
    /// wrong. Blocks.
    ///
    /// # Errors
    /// `Integrity` where what was proved is another.
    pub(super) fn verify_vouched(&self, extent: &Extent, chunk: u64, bytes: Bytes) -> Result<Verified> {
        let layer = extent.id.layer;
        self.doubt_unknown(extent, chunk);
        let mut verified = extent.verify(chunk, bytes.clone());
        if verified.is_none() && self.is_doubtful(extent, chunk) {
            self.metrics.store_mismatches.add(1);
            self.discard(layer);
            extent.keep_vouched();
            verified = extent.verify(chunk, bytes);
        }
        let differs = || Error::new(Kind::Integrity, format!("chunk {chunk} had other bytes before"));
        let verified = verified.ok_or_else(differs)?;
        extent.vouch_for(chunk);
        Ok(verified)
    }

    /// The first of the chunks, which are in order, and those that follow it and are fetched with it: a long part is fetched
    /// by one alone.
    fn side_by_side(&self, extent: &Extent, chunks: &[u64]) -> Range<u64> {
        let part = |chunk: u64| self.parts(extent, &(chunk..chunk + 1)).first().copied();
        let first = chunks.first().copied().unwrap_or(0);
        let with = part(first);
        let follows = |(at, chunk): &(u64, &u64)| {
            let own = part(**chunk);
            **chunk == first.saturating_add(*at)
                && (own == with || own.is_some_and(|own| own.content.len() <= CHUNK))
        };
        let count = (0..RUN).zip(chunks).take_while(follows).count();
        first..first.saturating_add(u64::try_from(count).unwrap_or(0).max(1))
    }

    /// The parts that hold any byte of these chunks, whatever has become of the layer meanwhile.
    fn parts(&self, extent: &Extent, run: &Range<u64>) -> &[Part] {
        let stream = self.layers.get(extent.id.layer).and_then(|layer| layer.stream.as_deref());
        let guided = stream.and_then(Stream::guide);
        guided.and_then(|guided| guided.parts(extent.content(run))).unwrap_or_default()
    }

    /// Waits until nobody else fetches the part with which this chunk begins.
    async fn begin_parts(self: &Arc<Self>, extent: &Extent, chunk: u64) -> Result<Beginning<'_>> {
        let layer = extent.id.layer;
        let (span, _) = self.table(layer).await?.at(extent.content(&(chunk..chunk + 1)).start())?;
        let decoding = self.decoding(layer).ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        Ok(decoding.begin(span).await)
    }

    /// Fetches these chunks, and those that come along with their parts, each verified by the parts that hold it.
    async fn vouch(
        self: &Arc<Self>,
        extent: &Extent,
        run: Range<u64>,
        lane: Lane,
    ) -> Result<Vec<(u64, Result<Verified>)>> {
        let layer = extent.id.layer;
        let parts = self.parts(extent, &run);
        let end = parts.last().map_or(0, |part| part.content.end());
        let (mut had, mut reader): (Vec<Had>, Option<Reader>) = (Vec::new(), None);
        for part in parts {
            let content = match self.part_of(&mut reader, layer, part, end, lane).await {
                Ok(bytes) => Ok(bytes),
                Err(Fault::Missing(error)) => return Err(error),
                Err(fault) => Err(self.refuse_part(extent, part, fault)),
            };
            had.push((part.content, content));
        }
        let start = parts.first().map_or(end, |part| part.content.start());
        let whole = within(extent.grid, extent.range, ContentRange::new(start, end));
        let whole = whole.start.min(run.start)..whole.end.max(run.end);
        let (loader, id) = (Arc::clone(self), extent.id);
        let chunks = move || {
            let Some(extent) = loader.extent(id) else { return Vec::new() };
            whole.map(|chunk| (chunk, loader.chunk_of(extent, chunk, &had))).collect()
        };
        tokio::task::spawn_blocking(chunks).await.map_err(interrupted)
    }

    /// A part's content; asked for once more where it is wrong. `reader` is gone on with where there is one.
    async fn part_of(
        self: &Arc<Self>,
        reader: &mut Option<Reader>,
        layer: usize,
        part: &Part,
        end: u64,
        lane: Lane,
    ) -> Result<Bytes, Fault> {
        let rest = ContentRange::new(part.content.start(), end);
        let mut open = match reader.take() {
            Some(open) => open,
            None => Reader::open(self, layer, rest, lane, Use::Shared).await?,
        };
        match right(&mut open, part).await {
            Ok(bytes) => {
                *reader = Some(open);
                return Ok(bytes);
            }
            Err(Fault::Missing(error)) => return Err(Fault::Missing(error)),
            Err(_) => self.metrics.fetch_mismatches.add(1),
        }
        self.distrust(layer);
        let mut open = Reader::open(self, layer, part.content, lane, Use::Fresh).await?;
        right(&mut open, part).await
    }

    fn refuse_part(&self, extent: &Extent, part: &Part, fault: Fault) -> Error {
        self.metrics.fetch_mismatches.add(1);
        let start = part.content.start().saturating_sub(extent.range.start());
        let range = ContentRange::new(start, start.saturating_add(part.content.len()));
        let error = fault.into_error();
        tracing::error!(path = extent.path, bytes = %range, %error, "REFUSED: reading these bytes fails, the rest is served");
        let doing = format!(
            "{} gives other bytes {range} of it than its layer's table of contents says",
            self.repository.place()
        );
        Error::new(Kind::Integrity, doing)
            .hint("push the layer again; until then only these bytes are missing")
    }

    /// The chunk, of parts that are right.
    fn chunk_of(&self, extent: &Extent, chunk: u64, had: &[Had]) -> Result<Verified> {
        let wanted = extent.content(&(chunk..chunk + 1));
        let mut filling = self.pool.take(usize::try_from(wanted.len()).unwrap_or(buffer::SIZE));
        for (place, content) in had {
            let part = place.meet(wanted);
            if part.is_empty() {
                continue;
            }
            let content = content.as_ref().map_err(Clone::clone)?;
            let at = |at: u64| usize::try_from(at - place.start()).unwrap_or(usize::MAX);
            filling.push(content.get(at(part.start())..at(part.end())).unwrap_or_default());
        }
        let missing = || Error::new(Kind::Integrity, "the table of contents does not cover a chunk");
        let bytes = (filling.len() as u64 == wanted.len()).then(|| filling.share()).ok_or_else(missing)?;
        self.verify_vouched(extent, chunk, bytes)
    }
}

impl Request {
    /// Fetches a run of chunks and sees those into the store that are right; the others are given up by themselves.
    pub(super) async fn take_vouched(&mut self, extent: &Extent, run: Range<u64>) -> Result<()> {
        let loader = Arc::clone(&self.loader);
        let decoding = loader.decoding(self.id.layer);
        let decoding = decoding.ok_or_else(|| Error::new(Kind::Invalid, "no such layer"))?;
        let mut left: Vec<u64> = run.collect();
        while let Some(first) = left.first().copied() {
            let run = loader.side_by_side(extent, &left);
            left.retain(|chunk| !run.contains(chunk));
            let _begun = decoding.relay(|| self.beat(), loader.begin_parts(extent, first)).await?;
            let wanted = self.still_wanted(run);
            let (Some(first), Some(last)) = (wanted.front(), wanted.back()) else { continue };
            let vouched = loader.vouch(extent, *first..last.saturating_add(1), self.lane);
            let vouched = decoding.relay(|| self.beat(), vouched).await?;
            self.take_verified(vouched).await;
        }
        Ok(())
    }

    /// Hands out all that is right before any of it is kept.
    async fn take_verified(&mut self, vouched: Vec<(u64, Result<Verified>)>) {
        let mut right = Vec::new();
        for (chunk, verified) in vouched {
            let key = (self.id, chunk);
            match verified {
                Ok(verified) => {
                    self.loader.hand_out(key, &verified);
                    self.flights.retain(|(flown, _)| *flown != key);
                    right.push((key, verified));
                }
                Err(error) => self.give_up(chunk..chunk + 1, &error),
            }
        }
        let mut keeping = Keeping::default();
        for (key, verified) in right {
            keeping.add(self.loader.keep_soon(key, verified));
        }
        keeping.until_fewer(1).await;
    }
}

/// The part's content, if it is right.
async fn right(reader: &mut Reader, part: &Part) -> Result<Bytes, Fault> {
    let bytes = reader.all(part.content).await?;
    let (digest, content) = (part.digest, bytes.clone());
    let check = move || crate::codec::toc::ContentDigest::of(&content) == digest;
    match tokio::task::spawn_blocking(check).await.map_err(interrupted)? {
        true => Ok(bytes),
        false => Err(Fault::Malformed(Error::new(Kind::Integrity, "its digest is another"))),
    }
}
