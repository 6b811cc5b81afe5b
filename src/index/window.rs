//! A window that moves forward over a blob, to read archive headers: bytes kept from earlier first, the rest by
//! range requests.
//!
//! Not a way to read files: it holds only what lies between them. [`plain`](super::plain) moves it.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::Result;
use crate::oci::Blob;
use crate::range::{ContentRange, StoredRange};
use crate::repository::{self, Repository};

use super::Gap;
use super::allowance::Allowance;

/// How much one request brings: enough for a header and what surrounds it, little against a round trip.
const HOP: u64 = 64 << 10;

/// How much one request brings where members are so small that hopping over them would be a request each.
const STRIDE: u64 = 1 << 20;

/// How many requests the average member is taken over, to say which of the two comes next.
const PROBES: u64 = 3;

/// The bytes from some place in a blob on, as far as they have been read.
pub(crate) struct Window<'a> {
    repository: &'a dyn Repository,
    blob: &'a Blob,
    /// Sorted by start.
    known: Vec<&'a (StoredRange, Bytes)>,
    allowance: &'a Allowance,
    /// Where `bytes` begins in the blob.
    start: u64,
    bytes: BytesMut,
    /// How much the next request brings.
    hop: u64,
    /// Where the average over members was last taken, and what has passed since.
    mark: u64,
    requests: u64,
    members: u64,
}

impl<'a> Window<'a> {
    /// A window at the blob's start, with nothing read yet.
    pub(crate) fn new(
        repository: &'a dyn Repository,
        blob: &'a Blob,
        known: &'a [(StoredRange, Bytes)],
        allowance: &'a Allowance,
    ) -> Self {
        let mut known: Vec<_> = known.iter().collect();
        known.sort_by_key(|(range, _)| range.start());
        let (start, mark, requests, members) = (0, 0, 0, 0);
        let bytes = BytesMut::new();
        Self { repository, blob, known, allowance, start, bytes, hop: HOP, mark, requests, members }
    }

    /// What has been read from `place` on; empty where nothing has.
    pub(crate) fn from(&self, place: u64) -> &[u8] {
        let at = place.checked_sub(self.start).and_then(|at| usize::try_from(at).ok());
        at.and_then(|at| self.bytes.get(at..)).unwrap_or_default()
    }

    /// Reads on until the window holds the bytes up to `end`, or to the blob's end where that is sooner.
    ///
    /// # Errors
    /// Those of reading; `Unsupported` where the gap at hand grows over what may be held.
    pub(crate) async fn reach(&mut self, end: u64) -> Result<()> {
        let end = end.min(self.blob.size);
        while self.end() < end {
            self.allowance.check(end.saturating_sub(self.start))?;
            let piece = match self.known_at(self.end()) {
                Some(piece) => piece,
                None => self.fetch(end).await?,
            };
            self.bytes.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// Ends the gap that began at the window's start: it goes up to `end`, and the window on from `after`.
    ///
    /// # Errors
    /// `Unsupported` where more would be held than may be.
    pub(crate) fn cut_gap(&mut self, end: u64, after: u64) -> Result<Gap> {
        let range = ContentRange::new(self.start, end);
        self.allowance.take(range.len())?;
        let len = usize::try_from(range.len()).ok();
        // Copied, since a slice would keep the whole window in memory.
        let bytes = len.and_then(|len| self.bytes.get(..len)).map(Bytes::copy_from_slice);
        self.members += 1;
        self.skip_to(after);
        Ok(Gap { range, bytes })
    }

    /// The gap from the window's start to the blob's end, with its bytes only if they have been read already.
    ///
    /// # Errors
    /// As [`cut_gap`](Self::cut_gap).
    pub(crate) fn last_gap(&mut self) -> Result<Option<Gap>> {
        let range = ContentRange::new(self.start, self.blob.size);
        if range.is_empty() {
            return Ok(None);
        }
        // Written so that a piece kept from earlier counts as read.
        if let Some(piece) = self.known_at(self.end()) {
            self.bytes.extend_from_slice(&piece);
        }
        if self.end() < self.blob.size {
            return Ok(Some(Gap { range, bytes: None }));
        }
        self.cut_gap(self.blob.size, self.blob.size).map(Some)
    }

    fn end(&self) -> u64 {
        self.start.saturating_add(u64::try_from(self.bytes.len()).unwrap_or(u64::MAX))
    }

    fn skip_to(&mut self, place: u64) {
        match usize::try_from(place.saturating_sub(self.start)) {
            Ok(len) if len <= self.bytes.len() => self.bytes.advance(len),
            _ => self.bytes.clear(),
        }
        self.start = place;
    }

    /// What is known from `place` on, of a piece that has the length it says and lies within the blob.
    fn known_at(&self, place: u64) -> Option<Bytes> {
        let after = self.known.partition_point(|(range, _)| range.start() <= place);
        let (range, bytes) = self.known.get(after.checked_sub(1)?)?;
        let honest = u64::try_from(bytes.len()) == Ok(range.len()) && range.end() <= self.blob.size;
        let skip = usize::try_from(place - range.start()).ok()?;
        (honest && skip < bytes.len()).then(|| bytes.slice(skip..))
    }

    async fn fetch(&mut self, end: u64) -> Result<Bytes> {
        let from = self.end();
        if self.requests == PROBES {
            let average = from.saturating_sub(self.mark) / self.members.max(1);
            self.hop = if average < HOP { STRIDE } else { HOP };
            (self.mark, self.requests, self.members) = (from, 0, 0);
        }
        // A gap that outgrows a hop is a run of empty members.
        let hop = if from.saturating_sub(self.start) >= HOP { STRIDE } else { self.hop };
        let end = end.max(from.saturating_add(hop)).min(self.blob.size);
        self.requests += 1;
        repository::read_all(self.repository, self.blob, StoredRange::new(from, end)).await
    }
}
