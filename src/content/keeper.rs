//! Keeps what was handed out, behind those who wait for it: one thread at a time takes the chunks that wait, neighbours together,
//! so that the disk is given few large writes and no thread waits for another's.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::flight::Key;
use super::loader::{Loader, Standing};
use super::verify::{Verified, bytes_of};
use crate::index::ExtentId;

/// How many chunks are written at once at most: 4 MiB.
const RUN: usize = 4;
/// For how long the disk may take nothing before who fetches goes on without it.
const PAUSE: Duration = Duration::from_secs(1);

/// The chunks of a loader that wait to be kept.
#[derive(Debug, Default)]
pub(super) struct Keeper {
    queue: Mutex<Queue>,
    /// Told when chunks are taken out.
    taken: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Whether a thread is at it.
    is_attended: bool,
    /// How many chunks were taken out.
    taken: usize,
}

#[derive(Debug)]
struct Waiting {
    key: Key,
    verified: Verified,
    kept: oneshot::Sender<()>,
}

/// Chunks of one request that are on their way to the store.
#[derive(Debug, Default)]
pub(super) struct Keeping(FuturesUnordered<oneshot::Receiver<()>>);

impl Keeping {
    /// Takes one more into account.
    pub(super) fn add(&self, kept: oneshot::Receiver<()>) {
        self.0.push(kept);
    }

    /// Returns when fewer than `most` are left.
    pub(super) async fn until_fewer(&mut self, most: usize) {
        while self.0.len() >= most && self.0.next().await.is_some() {}
    }
}

impl Keeper {
    /// Puts a chunk at the end; whether somebody has to begin.
    fn push(&self, waiting: Waiting) -> bool {
        let mut queue = self.queue.lock();
        queue.waiting.push_back(waiting);
        !std::mem::replace(&mut queue.is_attended, true)
    }

    /// Waits until fewer than `most` chunks wait, or all that waited at first was taken, so that nobody is passed by for ever; tells `beat`
    /// whenever the disk takes some. `false`: it has taken none for [`PAUSE`].
    pub(super) async fn room(&self, most: usize, beat: impl Fn()) -> bool {
        let (waiting, mut before) = self.count();
        let due = before.saturating_add(waiting);
        loop {
            let mut told = std::pin::pin!(self.taken.notified());
            told.as_mut().enable();
            let (waiting, taken) = self.count();
            if waiting < most || taken >= due {
                return true;
            }
            if taken != before {
                before = taken;
                beat();
            }
            if tokio::time::timeout(PAUSE, told).await.is_err() && self.count().1 == before {
                return false;
            }
        }
    }

    /// How many chunks wait, and how many were taken out.
    fn count(&self) -> (usize, usize) {
        let queue = self.queue.lock();
        (queue.waiting.len(), queue.taken)
    }

    /// Has the disk take nothing any more.
    #[cfg(test)]
    pub(super) fn hang(&self) {
        self.queue.lock().is_attended = true;
    }

    /// What has waited longest, with its neighbours, in the order of their file; `None`: nothing waits, and who begins is to attend
    /// anew.
    fn take(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.queue.lock();
        let Some(first) = queue.waiting.pop_front() else {
            queue.is_attended = false;
            return None;
        };
        let (id, chunk) = first.key;
        let mut find = |chunk: u64| {
            let at = queue.waiting.iter().position(|waiting| waiting.key == (id, chunk))?;
            queue.waiting.remove(at)
        };
        let mut run = VecDeque::from([first]);
        let (mut before, mut after) = (chunk, chunk.saturating_add(1));
        while run.len() < RUN
            && let Some(next) = find(after)
        {
            run.push_back(next);
            after = after.saturating_add(1);
        }
        while run.len() < RUN
            && let Some(next) = before.checked_sub(1).and_then(&mut find)
        {
            run.push_front(next);
            before = before.saturating_sub(1);
        }
        queue.taken = queue.taken.saturating_add(run.len());
        drop(queue);
        self.taken.notify_waiters();
        Some(run.into())
    }
}

/// Keeps one chunk after the other. Where it comes to an unforeseen end nothing stays on the board for ever, and the next one begins.
struct Attending<'a> {
    loader: &'a Arc<Loader>,
    /// What is being kept.
    keys: Vec<Key>,
}

impl Attending<'_> {
    fn keep_what_waits(&mut self) {
        while let Some(run) = self.loader.keeper.take() {
            let parts = run.into_iter().map(|Waiting { key, verified, kept }| (key, verified, kept));
            let (keys, verified, told): (Vec<_>, Vec<_>, Vec<_>) = parts.collect();
            self.keys = keys;
            let has_more_to_do = self.loader.keep_run(&self.keys, &verified);
            drop(verified);
            for kept in told {
                // Whoever asked may have gone.
                let _ = kept.send(());
            }
            if let (true, Some((id, _))) = (has_more_to_do, self.keys.first().copied()) {
                // It may wait for other processes, and what comes meanwhile is to be kept.
                let loader = Arc::clone(self.loader);
                tokio::task::spawn_blocking(move || loader.after_keeping(id));
            }
        }
    }
}

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let keeper = &self.loader.keeper;
            let waiting = std::mem::take(&mut *keeper.queue.lock()).waiting;
            let keys = self.keys.iter().copied().chain(waiting.iter().map(|waiting| waiting.key));
            keys.for_each(|key| self.loader.board.land(key));
            keeper.taken.notify_waiters();
        }
    }
}

impl Loader {
    /// Sees to it that a chunk that was handed out is kept, and then its flight taken off. What it gives ends when that is done, or
    /// will not be.
    pub(super) fn keep_soon(self: &Arc<Self>, key: Key, verified: Verified) -> oneshot::Receiver<()> {
        let (kept, done) = oneshot::channel();
        if self.keeper.push(Waiting { key, verified, kept }) {
            let loader = Arc::clone(self);
            tokio::task::spawn_blocking(move || {
                Attending { loader: &loader, keys: Vec::new() }.keep_what_waits();
            });
        }
        done
    }

    /// Keeps a chunk that was handed out, then takes its flight off. Blocks.
    pub(super) fn keep(&self, key: Key, verified: &Verified) {
        if self.keep_run(&[key], std::slice::from_ref(verified)) {
            self.after_keeping(key.0);
        }
    }

    /// The same for neighbouring chunks of one file; whether [`after_keeping`](Self::after_keeping) is to follow. Blocks.
    fn keep_run(&self, keys: &[Key], run: &[Verified]) -> bool {
        let Some((id, first)) = keys.first().copied() else { return false };
        let extent = self.extent(id).filter(|_| self.standing(id.layer) != Standing::Poisoned);
        let kept = extent.map_or(0, |extent| extent.keep(first, run, &self.shelf));
        keys.iter().for_each(|key| self.board.land(*key));
        self.metrics.kept_bytes.add(kept);
        self.metrics.unkept_bytes.add(bytes_of(run).saturating_sub(kept));
        let is_complete = || extent.is_some_and(|extent| kept > 0 && extent.complete(&self.shelf));
        self.standing(id.layer) == Standing::Poisoned || is_complete()
    }

    /// Sees to a file that is complete, or to a layer that was found out while chunks of it were being written. Blocks.
    fn after_keeping(&self, id: ExtentId) {
        let Some(extent) = self.extent(id) else { return };
        match self.standing(id.layer) {
            Standing::Poisoned => self.shelf.store.discard(&self.shelf.who, &extent.layer),
            _ => self.completed(extent),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const FILE: ExtentId = ExtentId { layer: 0, extent: 0 };
    const OTHER: ExtentId = ExtentId { layer: 0, extent: 1 };

    fn waiting(key: Key) -> Waiting {
        let verified = Verified::check(Bytes::from_static(b"x"), None).unwrap();
        Waiting { key, verified, kept: oneshot::channel().0 }
    }

    #[test]
    fn neighbours_that_wait_are_taken_together_and_in_order_whatever_came_first() {
        let keeper = Keeper::default();
        let began: Vec<bool> = [(FILE, 5), (OTHER, 6), (FILE, 9), (FILE, 4), (FILE, 6)]
            .into_iter()
            .map(|key| keeper.push(waiting(key)))
            .collect();
        assert_eq!(began, [true, false, false, false, false], "one attends at a time");
        let mut runs = Vec::new();
        while let Some(run) = keeper.take() {
            runs.push(run.iter().map(|waiting| waiting.key).collect::<Vec<_>>());
        }
        let rest = [vec![(OTHER, 6)], vec![(FILE, 9)]];
        assert_eq!(runs, [vec![vec![(FILE, 4), (FILE, 5), (FILE, 6)]], rest.to_vec()].concat());
        assert!(keeper.push(waiting((FILE, 1))), "whoever comes next attends");
        (2..9).for_each(|chunk| assert!(!keeper.push(waiting((FILE, chunk)))));
        assert_eq!(keeper.take().unwrap().len(), RUN);
    }

    #[tokio::test(start_paused = true)]
    async fn there_is_room_again_when_what_waits_is_taken_and_who_waits_gives_up_when_nothing_is() {
        let keeper = Arc::new(Keeper::default());
        assert!(keeper.room(1, || panic!("nothing waits")).await);
        (0..32).for_each(|chunk| assert_eq!(keeper.push(waiting((FILE, chunk))), chunk == 0));
        let beats = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let room = tokio::spawn({
            let (keeper, beats) = (Arc::clone(&keeper), Arc::clone(&beats));
            let beat = move || {
                beats.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            };
            async move { keeper.room(8, beat).await }
        });
        // A slow disk is waited for, however long. The time is the disk's own: no clock but the test's goes on.
        for _ in 0..7 {
            tokio::time::sleep(PAUSE * 3 / 4).await;
            assert!(!room.is_finished());
            assert_eq!(keeper.take().unwrap().len(), RUN);
        }
        assert!(room.await.unwrap());
        assert_eq!(beats.load(std::sync::atomic::Ordering::SeqCst), 6);
        let began = tokio::time::Instant::now();
        assert!(!keeper.room(1, || panic!("nothing is taken")).await);
        assert_eq!(began.elapsed(), PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_room_is_not_passed_by_for_ever_by_those_who_do_not() {
        let keeper = Arc::new(Keeper::default());
        (0..32).for_each(|chunk| assert_eq!(keeper.push(waiting((FILE, chunk))), chunk == 0));
        let room = tokio::spawn({
            let keeper = Arc::clone(&keeper);
            async move { keeper.room(16, || {}).await }
        });
        for round in 8..16 {
            tokio::task::yield_now().await;
            assert!(!room.is_finished(), "{round}");
            let taken = keeper.take().unwrap().len() as u64;
            (0..taken).for_each(|chunk| assert!(!keeper.push(waiting((FILE, round * 4 + chunk)))));
        }
        assert!(room.await.unwrap());
    }
}
