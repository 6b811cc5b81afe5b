//! A layer whose table of contents the manifest pins, held to its parts as it goes by.
//!
//! A chunk is handed out when all parts have gone by that hold any of it, and were right: so what one bad answer brings is
//! found out before anybody is given it, and nothing that was verified by its part is put in doubt. Used by [`drive`](super::drive).

use std::collections::VecDeque;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::content::flight::Key;
use crate::error::{Error, Kind, Result};
use crate::index::guide::Part;
use crate::range::ContentRange;

/// A chunk that is whole, where it lies in the layer's content, and whether the manifest pins it.
pub(super) struct Whole {
    pub(super) key: Key,
    pub(super) bytes: Bytes,
    pub(super) content: ContentRange,
    pub(super) is_vouched: bool,
}

/// How far a layer has been held to its parts.
pub(super) struct Holding<'a> {
    parts: &'a [Part],
    /// The part that is not whole yet.
    current: Option<(Part, Sha256)>,
    /// Content that is right, up to which no part is missing.
    right: ContentRange,
    /// Chunks that wait for the rest of a part.
    waiting: VecDeque<Whole>,
}

impl<'a> Holding<'a> {
    /// Nothing has gone by of a layer of these parts, which are in order.
    pub(super) fn new(parts: &'a [Part]) -> Self {
        Self { parts, current: None, right: ContentRange::new(0, 0), waiting: VecDeque::new() }
    }

    /// Takes the next bytes of a file, which lie at `place` in the content.
    ///
    /// # Errors
    /// `Integrity` where a part is not what the manifest pins.
    pub(super) fn feed(&mut self, mut place: u64, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let next = self.current.take().or_else(|| self.next(place));
            // Of a file that nobody is shown: no part need hold it.
            let Some((part, mut hasher)) = next else { return Ok(()) };
            let len = usize::try_from(part.content.end().saturating_sub(place)).unwrap_or(usize::MAX);
            let (own, rest) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            hasher.update(own);
            place = place.saturating_add(own.len() as u64);
            bytes = rest;
            if place < part.content.end() {
                self.current = Some((part, hasher));
            } else {
                self.come_to_end(part, hasher)?;
            }
        }
        Ok(())
    }

    /// The part that begins at `place`, if one does.
    fn next(&mut self, place: u64) -> Option<(Part, Sha256)> {
        let passed = self.parts.partition_point(|part| part.content.start() < place);
        self.parts = self.parts.get(passed..).unwrap_or_default();
        let (first, rest) = self.parts.split_first().filter(|(first, _)| first.content.start() == place)?;
        self.parts = rest;
        Some((*first, Sha256::new()))
    }

    fn come_to_end(&mut self, part: Part, hasher: Sha256) -> Result<()> {
        let digest: [u8; 32] = hasher.finalize().into();
        if digest != *part.digest.bytes() {
            let doing =
                format!("what went by at bytes {} is not what its table of contents says", part.content);
            return Err(Error::new(Kind::Integrity, doing));
        }
        let start = match self.right.end() == part.content.start() {
            true => self.right.start(),
            false => part.content.start(),
        };
        self.right = ContentRange::new(start, part.content.end());
        Ok(())
    }

    /// Takes a chunk all of whose content was fed.
    pub(super) fn push(&mut self, key: Key, bytes: Bytes, content: ContentRange) {
        self.waiting.push_back(Whole { key, bytes, content, is_vouched: false });
    }

    /// The next chunk of which no part is missing.
    pub(super) fn pop(&mut self) -> Option<Whole> {
        let begun = self.current.as_ref().map_or(u64::MAX, |(part, _)| part.content.start());
        self.waiting.front().filter(|whole| whole.content.end() <= begun)?;
        let mut whole = self.waiting.pop_front()?;
        whole.is_vouched = self.right.covers(whole.content);
        Some(whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::toc::ContentDigest;
    use crate::index::ExtentId;

    const KEY: Key = (ExtentId { layer: 0, extent: 0 }, 0);

    fn part(start: u64, content: &[u8]) -> Part {
        let range = ContentRange::new(start, start + content.len() as u64);
        Part { content: range, digest: ContentDigest::of(content) }
    }

    fn chunk(holding: &mut Holding<'_>, start: u64, end: u64) {
        holding.push(KEY, Bytes::new(), ContentRange::new(start, end));
    }

    #[test]
    fn a_chunk_waits_for_the_end_of_the_last_part_that_holds_any_of_it() {
        let parts = [part(512, b"abcd"), part(516, b"efgh")];
        let mut holding = Holding::new(&parts);
        holding.feed(512, b"abc").unwrap();
        chunk(&mut holding, 512, 515);
        assert!(holding.pop().is_none());
        holding.feed(515, b"def").unwrap();
        chunk(&mut holding, 515, 518);
        assert!(holding.pop().is_some_and(|whole| whole.is_vouched && whole.content.end() == 515));
        assert!(holding.pop().is_none());
        holding.feed(518, b"gh").unwrap();
        assert!(holding.pop().is_some_and(|whole| whole.is_vouched));
    }

    #[test]
    fn what_no_part_holds_is_vouched_for_by_nobody() {
        let parts = [part(512, b"abcd"), part(2048, b"efgh")];
        let mut holding = Holding::new(&parts);
        holding.feed(1024, b"xyz").unwrap();
        chunk(&mut holding, 1024, 1027);
        assert!(holding.pop().is_some_and(|whole| !whole.is_vouched));
        holding.feed(2048, b"efgh").unwrap();
        chunk(&mut holding, 2048, 2052);
        assert!(holding.pop().is_some_and(|whole| whole.is_vouched));
    }

    #[test]
    fn a_part_that_is_another_ends_it() {
        let parts = [part(0, b"abcd")];
        let error = Holding::new(&parts).feed(0, b"abce").unwrap_err();
        assert_eq!(error.kind(), Kind::Integrity);
    }
}
