//! Blobs of a registry that ignores ranges: one stream brings the whole of a blob, and ranges are cut out as it goes by.
//!
//! What readers ask for in order costs one request and the blob's bytes once, however many ranges they ask for: the
//! stream stays open between them, and the last bytes of it are remembered, up to [`WINDOW`], since readers beside one
//! another are not quite in order. All streams together remember no more than [`ROOM`]. Who asks for what went by earlier begins the blob again; who asks for what is far
//! ahead waits until it comes by. So random reads of such a registry are slow, and said to be, once.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::StreamExt;
use lru::LruCache;
use parking_lot::Mutex;
use tokio::sync::Mutex as Turn;
use tokio::time::Instant;

use super::wire;
use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;
use crate::oci::{Blob, Digest};
use crate::range::StoredRange;
use crate::repository::ByteStream;

/// How many bytes behind a stream's place are remembered, at the most.
const WINDOW: u64 = 16 << 20;
/// How many bytes all streams remember, between them.
const ROOM: u64 = 64 << 20;
/// Of how many blobs a stream is kept open at once: of more where more are read at the same moment. A model has its layers in
/// parts that are read side by side, and a stream that is given up is begun again.
const STREAMS: usize = 32;
/// What is cut out at once. Between parts others have their turn.
pub(super) const PART: u64 = 1 << 20;
/// How many bytes one of the pieces that they are remembered in has room for.
const PIECE: usize = 64 << 10;
/// A range that begins no later than here is cut out of an answer that ignores it, whatever the registry does else.
const NEAR: u64 = 8 << 20;
/// How many answers in a row must ignore the range before the registry counts as one that always does.
const STRIKES: u32 = 3;
/// For how long it then does; after it a range is asked for again.
const MARKED: Duration = Duration::from_secs(60);

/// The streams of one registry, and what is known of how it takes ranges.
#[derive(Clone)]
pub(super) struct Wholes(Arc<Inner>);

struct Inner {
    streams: Mutex<LruCache<Digest, Slot>>,
    /// How many bytes each of them may remember at present.
    window: AtomicU64,
    habit: Mutex<Habit>,
    metrics: Arc<Metrics>,
}

type Slot = Arc<Turn<Option<Passing>>>;

#[derive(Default)]
struct Habit {
    strikes: u32,
    marked: Option<Instant>,
    warned: bool,
}

impl Wholes {
    /// Nothing is known.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let (streams, window) = (Mutex::new(LruCache::unbounded()), AtomicU64::new(WINDOW));
        Self(Arc::new(Inner { streams, window, habit: Mutex::default(), metrics }))
    }

    /// Whether ranges are not asked for at present.
    pub(super) fn are_needed(&self) -> bool {
        self.0.habit.lock().marked.is_some_and(|until| Instant::now() < until)
    }

    /// Takes down that a range was given: streams that were kept for the next ones are given up.
    pub(super) fn range_given(&self) {
        let mut habit = self.0.habit.lock();
        if std::mem::take(&mut habit.strikes) > 0 {
            habit.marked = None;
            drop(habit);
            self.0.streams.lock().clear();
        }
    }

    /// Takes down that a range was ignored; whether the answer is to be used all the same.
    ///
    /// # Errors
    /// `Protocol` where it is not: the range is far from the blob's beginning, and the registry may yet do better.
    pub(super) fn range_ignored(&self, range: StoredRange, place: &str) -> Result<()> {
        let mut habit = self.0.habit.lock();
        habit.strikes = habit.strikes.saturating_add(1);
        if habit.strikes >= STRIKES {
            habit.marked = Instant::now().checked_add(MARKED);
            if !std::mem::replace(&mut habit.warned, true) {
                tracing::warn!(
                    place,
                    "this registry, or a proxy before it, ignores range requests: whole blobs are read, and reading out of order is slow"
                );
            }
            return Ok(());
        }
        if range.start() <= NEAR {
            return Ok(());
        }
        let doing = "200 OK with the whole blob where a range was asked for";
        Err(wire::protocol(doing).hint("this registry, or a proxy before it, ignores range requests"))
    }

    /// Bytes of a blob, at most [`PART`] of them; `open` begins the blob where that is needed.
    pub(super) async fn cut<O>(&self, blob: &Blob, range: StoredRange, open: O) -> Result<Bytes>
    where
        O: AsyncFnOnce() -> Result<ByteStream>,
    {
        let slot = self.slot(&blob.digest);
        let mut slot = slot.lock().await;
        let passing = match slot.as_mut() {
            Some(passing) if passing.remembers() <= range.start() => passing,
            _ => {
                self.0.metrics.rangeless_streams.add(1);
                slot.insert(Passing::new(open().await?))
            }
        };
        let cut = passing.cut(range, &self.0.window).await;
        if cut.is_err() || passing.at == blob.size {
            // At the end there is nothing more to come: what is remembered serves while it does.
            passing.body = None;
        }
        if cut.is_err() {
            *slot = None;
        }
        cut
    }

    /// Where the stream of a blob is, or will be. Those that have waited longest for a reader make room for it; one in use
    /// never does.
    fn slot(&self, digest: &Digest) -> Slot {
        let mut streams = self.0.streams.lock();
        if let Some(slot) = streams.get(digest) {
            return slot.clone();
        }
        while streams.len() >= STREAMS {
            let idle = streams.iter().rev().find(|(_, slot)| Arc::strong_count(slot) == 1);
            let Some(idle) = idle.map(|(digest, _)| digest.clone()) else { break };
            streams.pop(&idle);
        }
        let slot = Slot::default();
        streams.put(digest.clone(), slot.clone());
        let each = ROOM / u64::try_from(streams.len()).unwrap_or(u64::MAX);
        self.0.window.store(each.min(WINDOW), Ordering::Relaxed);
        // Those in use see to it themselves.
        for (_, slot) in streams.iter() {
            if let Ok(mut idle) = slot.try_lock()
                && let Some(passing) = idle.as_mut()
            {
                passing.forget_before(passing.at, each);
            }
        }
        slot
    }
}

/// A blob that goes by.
struct Passing {
    body: Option<ByteStream>,
    /// Where the next byte lies.
    at: u64,
    /// Pieces of one size at the least, as far as they are full.
    recent: VecDeque<Vec<u8>>,
    /// How many bytes those are.
    held: u64,
}

impl Passing {
    fn new(body: ByteStream) -> Self {
        Self { body: Some(body), at: 0, recent: VecDeque::new(), held: 0 }
    }

    /// The first byte that is still here.
    fn remembers(&self) -> u64 {
        self.at.saturating_sub(self.held)
    }

    /// Goes on until the range has come by, and gives it. Given up half way, the next one goes on from there.
    async fn cut(&mut self, range: StoredRange, window: &AtomicU64) -> Result<Bytes> {
        while self.at < range.end() {
            let ended = || Error::new(Kind::Broken, format!("the body ended at {}", self.at));
            let piece = match &mut self.body {
                Some(body) => body.next().await,
                None => None,
            };
            let piece = piece.ok_or_else(ended)??;
            self.remember(&piece);
            self.forget_before(range.start(), window.load(Ordering::Relaxed));
        }
        Ok(self.copy(range))
    }

    fn remember(&mut self, piece: &[u8]) {
        let len = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        (self.at, self.held) = (self.at.saturating_add(len), self.held.saturating_add(len));
        // Copied, however small it is: by itself each would cost far more beside its bytes than those, and hold the whole
        // buffer that it was cut out of.
        match self.recent.back_mut() {
            Some(last) if last.capacity().saturating_sub(last.len()) >= piece.len() => {
                last.extend_from_slice(piece);
            }
            _ => {
                let mut next = Vec::with_capacity(piece.len().max(PIECE));
                next.extend_from_slice(piece);
                self.recent.push_back(next);
            }
        }
    }

    /// Keeps what is needed, and the last `window` bytes.
    fn forget_before(&mut self, needed: u64, window: u64) {
        while let Some(first) = self.recent.front() {
            let len = u64::try_from(first.len()).unwrap_or(u64::MAX);
            let left = self.held.saturating_sub(len);
            if left < window || self.remembers().saturating_add(len) > needed {
                return;
            }
            self.recent.pop_front();
            self.held = left;
        }
    }

    fn copy(&self, range: StoredRange) -> Bytes {
        let mut all = BytesMut::new();
        let mut at = self.remembers();
        for piece in &self.recent {
            let here = StoredRange::at(at, u64::try_from(piece.len()).unwrap_or(u64::MAX));
            let Some(here) = here else { break };
            let part = here.meet(range);
            let inside = |place: u64| usize::try_from(place.saturating_sub(at)).unwrap_or(usize::MAX);
            if !part.is_empty() {
                all.extend_from_slice(
                    piece.get(inside(part.start())..inside(part.end())).unwrap_or_default(),
                );
            }
            at = here.end();
        }
        all.freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use futures_util::stream;

    use super::*;

    const MIB: u64 = 1 << 20;

    struct Setting {
        wholes: Wholes,
        blob: Blob,
        bytes: Bytes,
        opened: AtomicU32,
    }

    impl Setting {
        fn new(len: u64) -> Self {
            let bytes: Bytes = (0..len / 8).flat_map(u64::to_le_bytes).collect::<Vec<_>>().into();
            let blob = Blob { digest: Digest::of(b"x"), size: len };
            Self { wholes: Wholes::new(Arc::default()), blob, bytes, opened: AtomicU32::new(0) }
        }

        async fn read(&self, start: u64, len: u64) -> Result<()> {
            self.read_of(&self.blob, start, len).await
        }

        async fn read_of(&self, blob: &Blob, start: u64, len: u64) -> Result<()> {
            let range = StoredRange::new(start, start + len);
            let open = async || {
                self.opened.fetch_add(1, Ordering::SeqCst);
                let pieces: Vec<_> =
                    self.bytes.chunks(100_003).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
                Ok(stream::iter(pieces).boxed())
            };
            let got = self.wholes.cut(blob, range, open).await?;
            let place = |at| usize::try_from(at).unwrap();
            assert!(got == self.bytes.slice(place(range.start())..place(range.end())), "{range}");
            Ok(())
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_in_order_or_nearly_so_comes_out_of_one_stream() {
        let setting = Setting::new(64 * MIB);
        for at in 0..16 {
            for back in [3, 1, 2, 0] {
                setting.read((at * 4 + back) * MIB, MIB).await.unwrap();
            }
        }
        setting.read(63 * MIB, MIB).await.unwrap();
        assert_eq!(setting.opened.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn what_went_by_long_ago_begins_the_blob_again_and_little_is_held() {
        let setting = Setting::new(64 * MIB);
        setting.read(60 * MIB, MIB).await.unwrap();
        setting.read(10, MIB).await.unwrap();
        assert_eq!(setting.opened.load(Ordering::SeqCst), 2);
        setting.read(40 * MIB, MIB).await.unwrap();
        let slot = setting.wholes.0.streams.lock().get(&setting.blob.digest).cloned().unwrap();
        assert!(slot.lock().await.as_ref().unwrap().held <= WINDOW + 2 * MIB);
    }

    #[tokio::test]
    async fn many_layers_side_by_side_cost_a_stream_each_and_no_more_memory_than_a_few() {
        let setting = Setting::new(6 * MIB);
        let blob = |number: usize| Blob { digest: Digest::of(&number.to_le_bytes()), size: 6 * MIB };
        for at in 0..6 {
            for number in 0..STREAMS {
                setting.read_of(&blob(number), at * MIB, MIB).await.unwrap();
            }
        }
        assert_eq!(setting.opened.load(Ordering::SeqCst), u32::try_from(STREAMS).unwrap());
        let slots: Vec<_> = setting.wholes.0.streams.lock().iter().map(|(_, slot)| slot.clone()).collect();
        let held: u64 = slots.iter().map(|slot| slot.try_lock().unwrap().as_ref().unwrap().held).sum();
        let pieces = u64::try_from(STREAMS).unwrap() * MIB;
        assert!(held <= ROOM + pieces, "{held}");
    }

    #[tokio::test]
    async fn a_stream_in_use_is_not_given_up_for_others() {
        let setting = Setting::new(2 * MIB);
        setting.read(0, MIB).await.unwrap();
        let in_use = setting.wholes.slot(&setting.blob.digest);
        for number in 0..2 * STREAMS {
            let other = Blob { digest: Digest::of(&number.to_le_bytes()), size: 2 * MIB };
            setting.read_of(&other, 0, 1000).await.unwrap();
        }
        assert!(Arc::ptr_eq(&in_use, &setting.wholes.slot(&setting.blob.digest)));
        assert!(setting.wholes.0.streams.lock().len() <= STREAMS);
    }

    #[tokio::test]
    async fn bytes_that_come_one_by_one_take_no_more_room_than_others() {
        let mut passing = Passing::new(stream::iter([]).boxed());
        for at in 0..1_000_000_u32 {
            passing.remember(&at.to_le_bytes()[..1]);
        }
        let room: usize = passing.recent.iter().map(Vec::capacity).sum();
        assert!(passing.recent.len() <= 16 && room <= 1_000_000 + PIECE, "{} pieces", passing.recent.len());
        assert_eq!(passing.copy(StoredRange::new(255, 258)), &[255, 0, 1][..]);
    }

    #[tokio::test]
    async fn a_stream_that_ends_early_is_an_error_and_the_next_one_begins_anew() {
        let mut setting = Setting::new(4 * MIB);
        let whole = std::mem::replace(&mut setting.bytes, Bytes::new());
        setting.bytes = whole.slice(..100);
        assert_eq!(setting.read(50, 1000).await.unwrap_err().kind(), Kind::Broken);
        setting.bytes = whole;
        setting.read(50, 1000).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn three_ignored_ranges_in_a_row_mark_a_registry_for_a_time() {
        let (wholes, far) = (Wholes::new(Arc::default()), StoredRange::new(NEAR + 1, NEAR + 2));
        assert!(wholes.range_ignored(StoredRange::new(5, 6), "here").is_ok(), "near the beginning");
        wholes.range_given();
        for _ in 0..2 {
            assert_eq!(wholes.range_ignored(far, "here").unwrap_err().kind(), Kind::Protocol);
            assert!(!wholes.are_needed());
        }
        wholes.range_ignored(far, "here").unwrap();
        assert!(wholes.are_needed());
        tokio::time::advance(MARKED).await;
        assert!(!wholes.are_needed(), "it is given another chance");
    }
}
