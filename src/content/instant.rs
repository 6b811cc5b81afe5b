//! Reads that are answered at once out of the page cache of the store's disk, by who asks and without a thread of their own.
//!
//! A file that is sealed and served by replies all the same is read as it is, as the kernel would. Of a chunk of any other file, sums
//! of its pieces are remembered when a small read has had all of it in its hands, verified: then a few pages of it are
//! compared with these instead of hashing the whole chunk again. Whatever is not in the page cache, or not right, is
//! left to the way of all chunks, which finds out. Asked by the loader, on threads that wait for no disk: the kernel is asked for what
//! it has in memory. Where it has not it may begin to read, which takes a moment, so it is left alone about that file for a while then.

use std::fs::File;
use std::io::IoSliceMut;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::extent::Extent;
use super::flight::Key;
use super::loader::Loader;
use crate::buffer::Pool;
use crate::index::CHUNK;
use crate::range::ContentRange;

/// What a sum is of: BLAKE3 is at its fastest from here on, and it takes 4 µs.
const PIECE: u64 = 16 << 10;
/// The longest read that is compared with sums: more takes longer than handing it to a thread.
const LONGEST: u64 = 64 << 10;
/// How many chunks are remembered: 1 KiB each.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(8192).unwrap();

/// How long a file is not asked for after it was not in the page cache.
const PAUSE: Duration = Duration::from_secs(1);

/// The first half of a BLAKE3 digest: nobody who could choose the bytes gets to see it.
type Sum = [u8; 16];

/// Sums of the pieces of chunks that small reads have come upon.
#[derive(Debug)]
pub(super) struct Sums {
    known: Mutex<LruCache<Key, Arc<[Sum]>>>,
    /// Whether some are being taken: one after the other.
    pub(super) busy: AtomicBool,
}

impl Default for Sums {
    fn default() -> Self {
        Self { known: Mutex::new(LruCache::new(REMEMBERED)), busy: AtomicBool::new(false) }
    }
}

/// Whether it is worth asking for a file in the page cache.
#[derive(Debug, Default)]
pub(super) struct Trial(Mutex<Outlook>);

#[derive(Clone, Copy, Debug, Default)]
enum Outlook {
    #[default]
    Good,
    /// Something was not there at that time.
    Missed(Instant),
    /// The file system does not say what it has there, as stacked ones do not.
    Never,
}

impl Trial {
    fn is_worth_it(&self) -> bool {
        match *self.0.lock() {
            Outlook::Good => true,
            Outlook::Missed(since) => since.elapsed() >= PAUSE,
            Outlook::Never => false,
        }
    }

    fn may_ever_be(&self) -> bool {
        !matches!(*self.0.lock(), Outlook::Never)
    }

    fn failed(&self, error: Option<Errno>) {
        let mut outlook = self.0.lock();
        *outlook = match (error, *outlook) {
            (Some(Errno::OPNOTSUPP), _) | (_, Outlook::Never) => Outlook::Never,
            _ => Outlook::Missed(Instant::now()),
        };
    }
}

impl Sums {
    /// Takes down the sums of a verified chunk. Costs a hash of it.
    fn remember(&self, key: Key, chunk: &Bytes) {
        let pieces = chunk.chunks(usize::try_from(PIECE).unwrap_or(1 << 14));
        let sums = pieces.map(sum).collect();
        self.known.lock().put(key, sums);
    }

    /// Forgets what is known of a layer's chunks.
    pub(super) fn forget_layer(&self, layer: usize) {
        let mut known = self.known.lock();
        let stale: Vec<Key> = known.iter().map(|(key, _)| *key).filter(|(id, _)| id.layer == layer).collect();
        for key in stale {
            known.pop(&key);
        }
    }

    fn of(&self, key: Key) -> Option<Arc<[Sum]>> {
        self.known.lock().get(&key).cloned()
    }

    fn knows(&self, key: Key) -> bool {
        self.known.lock().contains(&key)
    }

    fn forget(&self, key: Key) {
        self.known.lock().pop(&key);
    }
}

fn sum(piece: &[u8]) -> Sum {
    blake3::hash(piece).as_bytes().first_chunk().copied().unwrap_or_default()
}

impl Loader {
    /// The bytes of `range`, if they are in the page cache and known to be right; waits for no disk.
    pub(super) fn instant(&self, extent: &Extent, range: ContentRange) -> Option<Bytes> {
        if range.is_empty() || !extent.trial.is_worth_it() {
            return None;
        }
        let found = match extent.is_sealed() {
            true => self.out_of_sealed(extent, range),
            false => self.out_of_chunk(extent, range),
        };
        // In this order: what was found may be served if its layer may be after that.
        let found = found.filter(|_| self.may_serve(extent.id.layer));
        self.metrics.instant_reads.add(u64::from(found.is_some()));
        found
    }

    /// A few pages of a chunk whose pieces are remembered.
    fn out_of_chunk(&self, extent: &Extent, range: ContentRange) -> Option<Bytes> {
        let chunks = extent.grid.covering(range);
        let is_small = range.len() <= LONGEST && chunks.end.checked_sub(chunks.start) == Some(1);
        let key = (extent.id, chunks.start);
        let sums = is_small.then(|| self.sums.of(key)).flatten()?;
        let place = extent.grid.range(chunks.start);
        let found = out_of_pieces(extent, &self.pool, place, range, &sums);
        if matches!(found, Found::Wrong) {
            self.sums.forget(key);
        }
        match found {
            Found::Here(bytes) => Some(bytes),
            Found::Elsewhere | Found::Wrong => None,
        }
    }

    /// As the kernel reads a file that it was given.
    fn out_of_sealed(&self, extent: &Extent, range: ContentRange) -> Option<Bytes> {
        let proved = self.is_settled(extent.id.layer);
        let kept = extent.kept_now().filter(|_| proved && range.len() <= CHUNK)?;
        if !kept.still_sealed() {
            extent.note_sealed(false);
            return None;
        }
        out_of_cache(extent, kept.image(), &self.pool, range)
    }

    /// Takes the sums of a chunk down, beside the reader whom it was brought for, if such reads are what they are for.
    pub(super) fn remember_pieces(self: &Arc<Self>, extent: &Extent, range: ContentRange, chunk: &Bytes) {
        let key = (extent.id, extent.grid.covering(range).start);
        let is_wanted = range.len() <= LONGEST && !extent.is_sealed() && extent.trial.may_ever_be();
        // One at a time: what is left out now is taken down when it is read again.
        if !is_wanted || self.sums.knows(key) || self.sums.busy.swap(true, Ordering::AcqRel) {
            return;
        }
        let (loader, chunk) = (Arc::clone(self), chunk.clone());
        tokio::task::spawn_blocking(move || {
            loader.sums.remember(key, &chunk);
            loader.sums.busy.store(false, Ordering::Release);
        });
    }
}

enum Found {
    Here(Bytes),
    /// Not in the page cache, or not to be had.
    Elsewhere,
    Wrong,
}

/// `range` out of the chunk at `place`, as far as its pieces are in the page cache and what they were.
fn out_of_pieces(
    extent: &Extent,
    pool: &Pool,
    place: ContentRange,
    range: ContentRange,
    sums: &[Sum],
) -> Found {
    let from = range.start().saturating_sub(place.start()) / PIECE;
    let start = place.start().saturating_add(from * PIECE);
    let end = place.start().saturating_add((range.end() - place.start()).next_multiple_of(PIECE));
    let pieces = ContentRange::new(start, end.min(place.end()));
    let Some(bytes) = extent.kept_now().and_then(|kept| out_of_cache(extent, kept.image(), pool, pieces))
    else {
        return Found::Elsewhere;
    };
    let known = sums.get(usize::try_from(from).unwrap_or(usize::MAX)..).unwrap_or_default();
    let found = bytes.chunks(usize::try_from(PIECE).unwrap_or(1 << 14));
    if found.len() > known.len() || found.zip(known).any(|(piece, known)| sum(piece) != *known) {
        return Found::Wrong;
    }
    let from = usize::try_from(range.start() - start).unwrap_or(usize::MAX);
    let len = usize::try_from(range.len()).unwrap_or(usize::MAX);
    match from.checked_add(len).filter(|end| *end <= bytes.len()) {
        Some(end) => Found::Here(bytes.slice(from..end)),
        None => Found::Wrong,
    }
}

/// These bytes of the file, if its disk need not be waited for.
fn out_of_cache(extent: &Extent, image: &File, pool: &Pool, range: ContentRange) -> Option<Bytes> {
    let len = usize::try_from(range.len()).ok()?;
    let mut buffer = pool.take(len);
    let read = buffer.fill_with(len, |room| {
        let read = preadv2(image, &mut [IoSliceMut::new(room)], range.start(), ReadWriteFlags::NOWAIT);
        if read == Ok(len) { Ok(()) } else { Err(read.err()) }
    });
    read.inspect_err(|error| extent.trial.failed(*error)).ok().map(|()| buffer.share())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_not_in_the_page_cache_is_left_alone_for_a_while_and_one_of_which_nobody_can_say_for_ever()
     {
        let trial = Trial::default();
        assert!(trial.is_worth_it());
        trial.failed(Some(Errno::AGAIN));
        assert!(!trial.is_worth_it() && trial.may_ever_be());
        let before = Instant::now().checked_sub(PAUSE).unwrap();
        *trial.0.lock() = Outlook::Missed(before);
        assert!(trial.is_worth_it());
        trial.failed(Some(Errno::OPNOTSUPP));
        trial.failed(None);
        assert!(!trial.is_worth_it() && !trial.may_ever_be());
    }

    #[test]
    fn the_sums_of_a_layer_are_forgotten_and_no_others() {
        let sums = Sums::default();
        let key = |layer| (crate::index::ExtentId { layer, extent: 0 }, 7);
        sums.remember(key(0), &Bytes::from_static(b"one"));
        sums.remember(key(1), &Bytes::from_static(b"other"));
        sums.forget_layer(0);
        assert!(!sums.knows(key(0)) && sums.knows(key(1)));
    }
}
