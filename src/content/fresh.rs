//! The chunks in memory: what somebody has read, and what was loaded ahead of readers who have not come to it yet.
//!
//! Values in, values out: whoever holds them locks them, and tells who waits for room.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;

use super::flight::Key;
use crate::index::CHUNK;

/// Who is there for a chunk that comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Whoever asked for it, or nobody.
    Any,
    /// One who reads the file in order, and is not there yet unless he waits already.
    Expected,
}

/// Chunks, up to a number.
#[derive(Debug)]
pub(super) struct Fresh {
    /// How many there may be, read and unread.
    most: usize,
    /// When that was last said.
    resized: Instant,
    /// In the order in which they came or were first read: what somebody has read, or asked for himself.
    read: LruCache<Key, Bytes>,
    /// What was loaded ahead of readers who have not come to it yet.
    unread: BTreeMap<Key, Unread>,
    /// The same by when it came.
    by_age: BTreeMap<u64, Key>,
    /// How many chunks have come.
    came: u64,
}

/// A chunk that was loaded ahead.
#[derive(Debug)]
struct Unread {
    bytes: Bytes,
    /// How many had come before it.
    came: u64,
}

impl Fresh {
    /// None yet, and room for `memory` bytes of them, for two at least.
    pub(super) fn new(memory: u64) -> Self {
        Self {
            most: chunks(memory),
            resized: Instant::now(),
            read: LruCache::unbounded(),
            unread: BTreeMap::new(),
            by_age: BTreeMap::new(),
            came: 0,
        }
    }

    /// Has room for `memory` bytes from now on. It shrinks as what is there is read, and drops nothing that somebody is still to read.
    pub(super) fn resize(&mut self, memory: u64) {
        self.resized = Instant::now();
        // With the quarter for who reads in small steps.
        let unread = self.unread.len() + self.unread.len().div_ceil(3);
        self.become_as_large_as(chunks(memory).max(unread.min(self.most)));
    }

    /// Shrinks to `memory` bytes at once, whatever has to leave, where its size was not said for `idle`, since nobody reads.
    pub(super) fn release_idle(&mut self, memory: u64, idle: Duration) {
        if self.resized.elapsed() > idle {
            self.become_as_large_as(chunks(memory).min(self.most));
        }
    }

    fn become_as_large_as(&mut self, most: usize) {
        self.most = most;
        while self.read.len() + self.unread.len() > most && self.make_room() {}
    }

    /// How many chunks wait for their readers, and how many there may be in all: who waits for room looks again where either has
    /// become another.
    pub(super) fn state(&self) -> (usize, usize) {
        (self.unread.len(), self.most)
    }

    /// Whether less than three quarters of the room are chunks that their readers have not come to yet, or the next one after `key` would
    /// be read before one of these.
    pub(super) fn has_room(&self, (id, chunk): Key) -> bool {
        let is_nearer = || self.farthest().is_none_or(|last| last.0 != id || chunk < last.1);
        self.unread.len() < (self.most * 3 / 4).max(1) || is_nearer()
    }

    /// Whether the chunk is here.
    pub(super) fn knows(&self, key: Key) -> bool {
        self.read.contains(&key) || self.unread.contains_key(&key)
    }

    /// The chunk for who reads it.
    pub(super) fn take(&mut self, key: Key) -> Option<Bytes> {
        if let Some(bytes) = self.forget_unread(key) {
            self.read.put(key, bytes.clone());
            return Some(bytes);
        }
        self.read.peek(&key).cloned()
    }

    /// Takes in a chunk; where there is no room, another one leaves.
    pub(super) fn put(&mut self, key: Key, bytes: Bytes, reader: Reader) {
        self.forget(key);
        self.came += 1;
        self.give_up_expecting();
        while self.read.len() + self.unread.len() >= self.most && self.make_room() {}
        match reader {
            Reader::Any => drop(self.read.put(key, bytes)),
            Reader::Expected => {
                self.by_age.insert(self.came, key);
                self.unread.insert(key, Unread { bytes, came: self.came });
            }
        }
    }

    /// Lets go of a layer's chunks.
    pub(super) fn forget_layer(&mut self, layer: usize) {
        let here = self.read.iter().map(|(key, _)| *key).chain(self.unread.keys().copied());
        let doomed: Vec<Key> = here.filter(|(id, _)| id.layer == layer).collect();
        doomed.into_iter().for_each(|key| self.forget(key));
    }

    /// Lets go of all.
    pub(super) fn clear(&mut self) {
        self.read.clear();
        self.unread.clear();
        self.by_age.clear();
    }

    /// A reader who has not come while so much else did is not coming: what was loaded for him goes first.
    fn give_up_expecting(&mut self) {
        let most = 2 * self.most as u64;
        while let Some((_, key)) = self.by_age.first_key_value().filter(|(came, _)| self.came - **came > most)
        {
            let key = *key;
            let Some(bytes) = self.forget_unread(key) else { break };
            self.read.put(key, bytes);
            self.read.demote(&key);
        }
    }

    /// Lets one go: what was read, of which a quarter stays for who reads in small steps, else what is read last. `false`: there is
    /// nothing.
    fn make_room(&mut self) -> bool {
        let spare = self.read.len() > self.most / 4 || self.unread.is_empty();
        match spare {
            true => self.read.pop_lru().is_some(),
            false => self.farthest().and_then(|last| self.forget_unread(last)).is_some(),
        }
    }

    fn forget(&mut self, key: Key) {
        self.read.pop(&key);
        self.forget_unread(key);
    }

    fn forget_unread(&mut self, key: Key) -> Option<Bytes> {
        let Unread { bytes, came } = self.unread.remove(&key)?;
        self.by_age.remove(&came);
        Some(bytes)
    }

    /// What is read last of the unread chunks: the last one of the file that has most of them.
    fn farthest(&self) -> Option<Key> {
        let keys: Vec<Key> = self.unread.keys().copied().collect();
        let files = keys.chunk_by(|one, next| one.0 == next.0);
        files.max_by_key(|file| file.len()).and_then(|file| file.last().copied())
    }
}

/// How many chunks are `memory` bytes.
fn chunks(memory: u64) -> usize {
    usize::try_from(memory / CHUNK).unwrap_or(usize::MAX).max(2)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::ExtentId;

    const WORD: Bytes = Bytes::from_static(b"x");

    fn of_file(extent: usize, chunk: u64) -> Key {
        (ExtentId { layer: 0, extent }, chunk)
    }

    fn put(fresh: &mut Fresh, extent: usize, chunks: std::ops::Range<u64>, reader: Reader) {
        chunks.for_each(|chunk| fresh.put(of_file(extent, chunk), WORD, reader));
    }

    fn take(fresh: &mut Fresh, chunks: std::ops::Range<u64>) {
        chunks.for_each(|chunk| assert!(fresh.take(of_file(0, chunk)).is_some(), "{chunk}"));
    }

    fn here(fresh: &Fresh) -> Vec<u64> {
        (0..20).filter(|chunk| fresh.knows(of_file(0, *chunk))).collect()
    }

    #[test]
    fn what_was_read_leaves_before_what_was_not_and_of_that_what_is_read_last() {
        let mut fresh = Fresh::new(8 * CHUNK);
        put(&mut fresh, 0, 0..6, Reader::Expected);
        take(&mut fresh, 0..3);
        put(&mut fresh, 0, 6..9, Reader::Expected);
        assert_eq!(here(&fresh), [1, 2, 3, 4, 5, 6, 7, 8]);
        put(&mut fresh, 0, 9..10, Reader::Expected);
        assert_eq!(here(&fresh), [1, 2, 3, 4, 5, 6, 7, 9], "a quarter is for who reads in small steps");
        // Another file gives way to nobody who has more than it.
        put(&mut fresh, 1, 0..1, Reader::Expected);
        assert_eq!(here(&fresh), [1, 2, 3, 4, 5, 6, 7]);
        fresh.forget_layer(0);
        assert!(here(&fresh).is_empty() && fresh.state() == (0, 8));
    }

    #[test]
    fn a_reader_who_does_not_come_is_not_expected_for_ever() {
        let mut fresh = Fresh::new(8 * CHUNK);
        put(&mut fresh, 0, 0..6, Reader::Expected);
        put(&mut fresh, 1, 0..17, Reader::Any);
        assert_eq!(fresh.state(), (0, 8));
        assert!(fresh.has_room(of_file(1, 17)));
        assert!(here(&fresh).iter().all(|chunk| *chunk > 4));
    }

    #[test]
    fn what_is_too_much_leaves_as_it_is_read_or_when_nobody_reads() {
        let mut fresh = Fresh::new(16 * CHUNK);
        put(&mut fresh, 0, 0..12, Reader::Expected);
        take(&mut fresh, 0..6);
        fresh.resize(4 * CHUNK);
        assert_eq!(
            here(&fresh),
            [4, 5, 6, 7, 8, 9, 10, 11],
            "of what was read, a quarter stays; of what was not, all"
        );
        take(&mut fresh, 6..9);
        fresh.resize(4 * CHUNK);
        assert_eq!(here(&fresh), [8, 9, 10, 11]);
        fresh.resize(16 * CHUNK);
        put(&mut fresh, 0, 0..8, Reader::Expected);
        fresh.release_idle(4 * CHUNK, Duration::from_secs(60));
        assert_eq!(here(&fresh).len(), 12, "somebody reads");
        fresh.release_idle(4 * CHUNK, Duration::ZERO);
        assert_eq!(here(&fresh), [0, 1, 2, 8], "nobody is coming");
        fresh.release_idle(16 * CHUNK, Duration::ZERO);
        assert_eq!(fresh.state().1, 4, "it only shrinks");
    }
}
