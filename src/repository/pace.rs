//! How many range requests, and how large, serve reading ahead best: found by measuring.
//!
//! A few requests are enough on a near and slow line; a far and fast one wants many, and so does a store that gives each connection so much
//! and no more. So half as many again are tried from time to time and kept where more bytes a second came of it, and fewer are tried where
//! there are many, and kept where hardly fewer bytes came; and a request is made as long as it is over soon, since long ones cost
//! a registry less. Who asks for the pace is the loader, whose lanes and windows keep to it; [`Limited`](super::Limited) measures.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The smallest and the largest request, and what is begun with.
const LEAST_BYTES: u64 = 1 << 20;
const FIRST_BYTES: u64 = 4 << 20;
const MOST_BYTES: u64 = 16 << 20;
/// How many requests are begun with.
const FIRST_REQUESTS: usize = 4;
/// The size of one ahead of a reader where a connection does not carry the largest within so long: four of them are the smallest window.
const SHARED_BYTES: u64 = 8 << 20;
const SHARED: f64 = 0.15;
/// How long a request may last, so that what is given up half way is little.
const LONGEST: f64 = 4.0;
/// How long must have been measured with all requests under way before a number is judged.
const EPOCH: Duration = Duration::from_millis(250);
/// Which part of what more requests would bring, had each a rate of its own, they must bring to be kept: half as many again a fifth more. The
/// same number brings a tenth more or less from one time to the next where processors are the limit.
const GAIN: f64 = 0.4;
/// Which part of what was to be more must have been under way for a verdict: less is waited for, for so many epochs, since a reader comes to the
/// whole of a window little by little, or has no room for it.
const PRESENT: f64 = 0.5;
const PATIENCE: u32 = 3;
/// What fewer may lose, all that are tried one after the other together.
const LOSS: f64 = 1.08;
/// For how many epochs a number stays after it was found to be the best.
const HOLD: u32 = 16;

/// How much is to be read ahead at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How many requests beside one another.
    pub requests: usize,
    /// How many, where each is small ([`Pace::SMALL`] at most): it is over before a far registry's next answer begins.
    pub small: usize,
    /// The size of one, in stored bytes.
    pub bytes: u64,
    /// The same ahead of a reader, for whom no more than a window is loaded: smaller where one connection does not carry much, so that
    /// several share it.
    pub ahead: u64,
    /// How far ahead of a reader is loaded, in bytes of content: farther where more requests were found to bring more.
    pub window: u64,
}

impl Pace {
    /// The largest request that is small, in bytes.
    pub const SMALL: u64 = 2 << 20;
    /// The smallest window, in bytes, and what memory holds at first.
    pub const WINDOW: u64 = 32 << 20;
}

impl Default for Pace {
    /// 4 requests of 4 MiB, or 8 small ones.
    fn default() -> Self {
        Self {
            requests: FIRST_REQUESTS,
            small: 2 * FIRST_REQUESTS,
            bytes: FIRST_BYTES,
            ahead: FIRST_BYTES,
            window: Self::WINDOW,
        }
    }
}

/// Measures what is read ahead.
#[derive(Debug)]
pub(super) struct Pacer(Mutex<State>);

#[derive(Debug)]
struct State {
    pace: Pace,
    most: usize,
    /// The largest window.
    farthest: u64,
    under_way: usize,
    /// When the numbers below were last brought up to date.
    at: Instant,
    /// For how long the requests under way were as many as may be, how many these were by their time (in seconds), what came meanwhile, how
    /// many ended.
    full: Duration,
    beside: f64,
    bytes: u64,
    ended: usize,
    trial: Option<Trial>,
    hold: u32,
    /// Whether more were tried last.
    tried_more: bool,
    /// Bytes a second of one request after its first byte; smoothed.
    alone: Option<f64>,
    /// The same of those that are not small: fewer of them share the line.
    carried: Option<f64>,
}

/// Another number is being tried; this was before.
#[derive(Clone, Copy, Debug)]
struct Trial {
    before: usize,
    seen: Seen,
    /// For how many epochs it has told nothing.
    mute: u32,
}

/// What a number has brought.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// How many were under way beside one another: one less than may be, now and then.
    beside: f64,
    /// Bytes a second.
    rate: f64,
}

impl Trial {
    /// How many more were under way, in parts of what there were before.
    fn more(&self, seen: Seen) -> f64 {
        seen.beside / self.seen.beside - 1.0
    }

    /// Whether hardly more than before were under way, where there were to be more.
    fn is_mute(&self, present: usize, seen: Seen) -> bool {
        let meant = present as f64 / self.before.max(1) as f64 - 1.0;
        meant > 0.0 && self.more(seen) < PRESENT * meant
    }

    /// Whether the number before is a better one than `present`, which has brought `seen`.
    fn was_better(&self, present: usize, seen: Seen) -> bool {
        if present > self.before {
            self.is_mute(present, seen) || seen.rate < self.seen.rate * (1.0 + GAIN * self.more(seen))
        } else {
            seen.rate * LOSS < self.seen.rate
        }
    }
}

/// One request that is measured. Dropped before its end, it counts for nothing.
pub(super) struct Measured {
    pacer: Arc<Pacer>,
    /// How much is asked for.
    due: u64,
    first: Option<Instant>,
    bytes: u64,
    done: bool,
}

impl Pacer {
    /// Nothing is known; at most `most` requests will be advised, and a window of `farthest` bytes where that is more than the smallest.
    pub(super) fn new(most: usize, farthest: u64) -> Self {
        let most = most.max(1);
        let default = Pace::default();
        let pace = Pace { requests: default.requests.min(most), small: default.small.min(most), ..default };
        Self(Mutex::new(State {
            pace,
            most,
            farthest: farthest.max(Pace::WINDOW),
            under_way: 0,
            at: Instant::now(),
            full: Duration::ZERO,
            beside: 0.0,
            bytes: 0,
            ended: 0,
            trial: None,
            // How a line begins says little of it.
            hold: 1,
            tried_more: false,
            alone: None,
            carried: None,
        }))
    }

    /// What is best as far as is known.
    pub(super) fn pace(&self) -> Pace {
        self.0.lock().pace
    }

    /// Begins to measure a request for `due` bytes.
    pub(super) fn begin(self: &Arc<Self>, due: u64) -> Measured {
        let mut state = self.0.lock();
        state.catch_up();
        state.under_way += 1;
        drop(state);
        Measured { pacer: Arc::clone(self), due, first: None, bytes: 0, done: false }
    }

    /// Takes down that the registry asks to slow down.
    pub(super) fn throttled(&self) {
        let mut state = self.0.lock();
        let fewer = (state.pace.requests / 2).max(1);
        state.set_requests(fewer);
        (state.trial, state.hold) = (None, HOLD);
    }
}

impl Measured {
    /// Takes down bytes that came.
    pub(super) fn came(&mut self, bytes: u64) {
        self.first.get_or_insert_with(Instant::now);
        self.bytes = self.bytes.saturating_add(bytes);
        let mut state = self.pacer.0.lock();
        state.catch_up();
        if state.is_full() {
            state.bytes = state.bytes.saturating_add(bytes);
        }
    }

    /// Takes down that all of it came, where it is as much as was asked for.
    pub(super) fn complete(&mut self) {
        if self.bytes < self.due || std::mem::replace(&mut self.done, true) {
            return;
        }
        let mut state = self.pacer.0.lock();
        state.ended += 1;
        // What is over in no time says nothing of the line.
        if let Some(first) = self.first.filter(|_| self.bytes >= LEAST_BYTES) {
            let rest = first.elapsed().as_secs_f64();
            let rate = self.bytes as f64 / rest.max(1e-4);
            smooth(&mut state.alone, rate);
            if self.bytes > Pace::SMALL {
                smooth(&mut state.carried, rate);
            }
        }
        state.size();
        state.judge();
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let mut state = self.pacer.0.lock();
        state.catch_up();
        state.under_way = state.under_way.saturating_sub(1);
    }
}

impl State {
    fn catch_up(&mut self) {
        let now = Instant::now();
        if self.is_full() {
            let passed = now.duration_since(self.at);
            self.full += passed;
            self.beside += passed.as_secs_f64() * self.under_way as f64;
        }
        self.at = now;
    }

    /// Whether as many are under way as may be, but for one that may be somebody's who waits; or as many as a reader's window has room for.
    fn is_full(&self) -> bool {
        let led = usize::try_from(self.pace.window / self.pace.ahead.max(1)).unwrap_or(usize::MAX);
        self.under_way >= self.pace.requests.saturating_sub(1).min(led).max(1)
    }

    fn set_requests(&mut self, requests: usize) {
        self.pace.requests = requests.clamp(1, self.most);
        // One request at a time is what somebody has asked for.
        let twice = if requests > 1 { requests.saturating_mul(2) } else { 1 };
        self.pace.small = twice.clamp(1, self.most);
        self.lead();
        (self.full, self.beside, self.bytes, self.ended) = (Duration::ZERO, 0.0, 0, 0);
    }

    /// Judges the present number, where enough was seen of it.
    fn judge(&mut self) {
        self.catch_up();
        if self.full < EPOCH || self.ended < 2 * self.pace.requests {
            return;
        }
        let full = self.full.as_secs_f64();
        let seen = Seen { beside: self.beside / full, rate: self.bytes as f64 / full };
        let present = self.pace.requests;
        match self.trial.take() {
            Some(trial) if trial.mute < PATIENCE && trial.is_mute(present, seen) => {
                self.trial = Some(Trial { mute: trial.mute + 1, ..trial });
                self.set_requests(present);
            }
            Some(trial) if trial.was_better(present, seen) => {
                self.hold = HOLD;
                self.set_requests(trial.before);
            }
            None if self.hold > 0 => {
                self.hold -= 1;
                self.set_requests(present);
            }
            // What has just been found better is gone on with; of fewer, against what most of them brought.
            Some(trial) if present > trial.before => self.attempt(true, seen),
            Some(trial) => self.attempt(false, Seen { rate: seen.rate.max(trial.seen.rate), ..seen }),
            None => self.attempt(!self.tried_more || present <= FIRST_REQUESTS, seen),
        }
        tracing::debug!(pace = ?self.pace, ?seen, "the pace of reading ahead");
    }

    /// Tries more, or fewer, where there is a number to try.
    fn attempt(&mut self, more: bool, seen: Seen) {
        let before = self.pace.requests;
        let next = match more {
            true => (before + (before / 2).max(1)).min(self.most),
            false => (before * 2 / 3).max(FIRST_REQUESTS.min(before)),
        };
        self.tried_more = more;
        (self.trial, self.hold) =
            if next == before { (None, HOLD) } else { (Some(Trial { before, seen, mute: 0 }), 0) };
        self.set_requests(next);
    }

    /// Moves the size of a request a step towards what lasts no longer than it may.
    fn size(&mut self) {
        let Some(most) = self.alone.map(|alone| alone * LONGEST) else { return };
        let present = self.pace.bytes as f64;
        if most < present {
            self.pace.bytes = (self.pace.bytes / 2).max(LEAST_BYTES);
        } else if most >= present * 4.0 {
            self.pace.bytes = (self.pace.bytes * 2).min(MOST_BYTES);
        }
        self.lead();
    }

    /// Says how a reader is led: by requests of a size that suits the line, and as far as their number reaches with the smaller size.
    fn lead(&mut self) {
        let is_shared = self.carried.is_none_or(|rate| rate * SHARED < MOST_BYTES as f64);
        self.pace.ahead = if is_shared { self.pace.bytes.min(SHARED_BYTES) } else { self.pace.bytes };
        let all = self.pace.ahead.min(SHARED_BYTES).saturating_mul(self.pace.requests as u64);
        self.pace.window = all.clamp(Pace::WINDOW, self.farthest);
    }
}

fn smooth(value: &mut Option<f64>, sample: f64) {
    *value = Some(value.map_or(sample, |value| value * 0.75 + sample * 0.25));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of so many requests at most, and a window as far as they reach.
    fn up_to(most: usize) -> Pacer {
        Pacer::new(most, 1 << 30)
    }

    /// Reads ahead over a line for a while, so many requests of one size beside one another: so many bytes a second for one request and for
    /// all, and so long to the first.
    async fn read(
        pacer: &Arc<Pacer>,
        asked: impl Fn(Pace) -> (u64, u64),
        (alone, all): (f64, f64),
        latency: Duration,
    ) -> Pace {
        for _ in 0..200 {
            let (requests, bytes) = asked(pacer.pace());
            let mut requests: Vec<_> = (0..requests).map(|_| pacer.begin(bytes)).collect();
            tokio::time::sleep(latency).await;
            requests.iter_mut().for_each(|request| request.came(1));
            let rate = alone.min(all / requests.len() as f64);
            // The line's own time: no clock but the test's goes on.
            tokio::time::sleep(Duration::from_secs_f64(bytes as f64 / rate)).await;
            requests.iter_mut().for_each(|request| request.came(bytes - 1));
            requests.iter_mut().for_each(Measured::complete);
        }
        pacer.pace()
    }

    /// As who brings all of it.
    async fn line(pacer: &Arc<Pacer>, alone: f64, all: f64, latency: Duration) -> Pace {
        read(pacer, |pace| (pace.requests as u64, pace.bytes), (alone, all), latency).await
    }

    /// As one who is led: no more is under way than his window has, and each request is as large as may be ahead of a reader.
    async fn led(pacer: &Arc<Pacer>, alone: f64, all: f64) -> Pace {
        read(pacer, |pace| (pace.window / pace.ahead, pace.ahead), (alone, all), Duration::ZERO).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_line_that_bears_more_gets_more_and_larger_requests() {
        let pacer = Arc::new(up_to(16));
        let pace = line(&pacer, 20e6, 1e9, Duration::from_millis(150)).await;
        assert!(pace.requests >= 13, "{pace:?}");
        assert_eq!((pace.bytes, pace.ahead), (MOST_BYTES, SHARED_BYTES));
        assert_eq!(pace.window, pace.requests as u64 * SHARED_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_full_gets_no_more_than_it_began_with() {
        let pacer = Arc::new(up_to(16));
        let pace = line(&pacer, 100e6, 100e6, Duration::from_millis(1)).await;
        assert!(pace.requests <= 6, "{pace:?}");
        assert_eq!(pace.bytes, MOST_BYTES);
        assert!(pace.window <= 6 * SHARED_BYTES, "{pace:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_connection_carries_much_the_largest_is_asked_for_ahead_of_a_reader_too() {
        let pacer = Arc::new(up_to(16));
        let pace = line(&pacer, 400e6, 8e8, Duration::from_millis(1)).await;
        assert_eq!((pace.bytes, pace.ahead), (MOST_BYTES, MOST_BYTES));
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_of_one_reader_grows_as_long_as_that_brings_more() {
        for (alone, all, least, most) in [
            (64e6, 1e9, 13 * SHARED_BYTES, 16 * SHARED_BYTES),
            (250e6, 2e9, 13 * SHARED_BYTES, 16 * SHARED_BYTES),
            (1e9, 1e9, Pace::WINDOW, 6 * SHARED_BYTES),
            (125e6, 125e6, Pace::WINDOW, 6 * SHARED_BYTES),
        ] {
            let pace = led(&Arc::new(up_to(16)), alone, all).await;
            assert!((least..=most).contains(&pace.window), "{alone} of {all}: {pace:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_step_to_the_most_is_taken_however_small_it_is() {
        for most in [5, 7, 10, 14, 16, 32] {
            let pace = led(&Arc::new(up_to(most)), 64e6, 64e9).await;
            assert_eq!(pace.requests, most, "{pace:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_goes_no_farther_than_memory_and_a_number_that_it_has_no_room_for_is_not_kept() {
        for (farthest, requests) in [(4 << 20, 4), (Pace::WINDOW, 4), (64 << 20, 9)] {
            let pacer = Arc::new(Pacer::new(16, farthest));
            led(&pacer, 64e6, 1e9).await;
            let state = pacer.0.lock();
            let found = state.trial.map_or(state.pace.requests, |trial| trial.before);
            assert_eq!(found, requests, "{farthest}: {state:?}");
            assert!(state.pace.window <= farthest.max(Pace::WINDOW), "{state:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_brings_nothing_any_more_goes_back() {
        let pacer = Arc::new(up_to(16));
        let wide = led(&pacer, 64e6, 1e9).await.window;
        for _ in 0..4 {
            led(&pacer, 125e6, 125e6).await;
        }
        let narrow = pacer.pace().window;
        assert!(wide >= 13 * SHARED_BYTES && narrow <= 6 * SHARED_BYTES, "{wide} to {narrow}");
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_slow_line_little_is_asked_for_at_once() {
        let pacer = Arc::new(up_to(16));
        let pace = line(&pacer, 1e6, 1e6, Duration::from_millis(20)).await;
        assert_eq!(pace.bytes, LEAST_BYTES, "{pace:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_asks_to_slow_down_gets_half_and_the_cap_is_kept() {
        let pacer = Arc::new(up_to(6));
        let pace = line(&pacer, 20e6, 1e9, Duration::from_millis(150)).await;
        assert_eq!(pace.requests, 6);
        pacer.throttled();
        assert_eq!(pacer.pace().requests, 3);
        assert_eq!(up_to(0).pace().requests, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_were_given_up_count_for_nothing() {
        let pacer = Arc::new(up_to(16));
        for _ in 0..1000 {
            drop(pacer.begin(1));
        }
        assert_eq!((pacer.pace(), pacer.0.lock().under_way), (Pace::default(), 0));
    }
}
