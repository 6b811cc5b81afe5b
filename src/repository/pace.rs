//! How many range requests, and how large, serve reading ahead best: found by measuring.
//!
//! A few requests are enough on a near and slow line; a far and fast one wants many, and so does a store that gives each connection so much
//! and no more. So half as many again are tried from time to time and kept where more bytes a second came of it, and fewer are tried where
//! there are many, and kept where no fewer bytes came; and a request is made as long as it is over soon, since long ones cost
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
/// The size of one ahead of a reader where a connection does not carry the largest within so long: four of them are a reader's window.
const SHARED_BYTES: u64 = 8 << 20;
const SHARED: f64 = 0.15;
/// How long a request may last, so that what is given up half way is little.
const LONGEST: f64 = 4.0;
/// How long must have been measured with all requests under way before a number is judged.
const EPOCH: Duration = Duration::from_millis(250);
/// What half as many requests again must bring to be kept: where each has a rate of its own it is half as much again. The same number
/// brings a tenth more or less from one time to the next where processors are the limit.
const GAIN: f64 = 1.2;
/// What fewer may lose.
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
    /// How far ahead of a reader is loaded, in bytes of content: farther where a connection does not carry much and more of them
    /// were found to carry more.
    pub window: u64,
}

impl Pace {
    /// The largest request that is small, in bytes.
    pub const SMALL: u64 = 2 << 20;
    /// The smallest window, in bytes: as much as memory holds by default, since what lies farther ahead leaves it before it is read.
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
    under_way: usize,
    /// How much those were begun for that are under way.
    due: u64,
    /// When the numbers below were last brought up to date.
    at: Instant,
    /// For how long the requests under way were as many as may be, what came meanwhile, how many ended.
    full: Duration,
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
    rate: f64,
}

impl Trial {
    /// Whether the number before is the better one than `present`, which has brought `rate`.
    fn was_better(&self, present: usize, rate: f64) -> bool {
        if present > self.before { rate < self.rate * GAIN } else { rate * LOSS < self.rate }
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
    /// Nothing is known; at most `most` requests will be advised.
    pub(super) fn new(most: usize) -> Self {
        let most = most.max(1);
        let default = Pace::default();
        let pace = Pace { requests: default.requests.min(most), small: default.small.min(most), ..default };
        Self(Mutex::new(State {
            pace,
            most,
            under_way: 0,
            due: 0,
            at: Instant::now(),
            full: Duration::ZERO,
            bytes: 0,
            ended: 0,
            trial: None,
            hold: 0,
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
        state.due = state.due.saturating_add(due);
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
        state.due = state.due.saturating_sub(self.due);
    }
}

impl State {
    fn catch_up(&mut self) {
        let now = Instant::now();
        if self.is_full() {
            self.full += now.duration_since(self.at);
        }
        self.at = now;
    }

    /// Whether as many are under way as may be, but for one that may be somebody's who waits; or so much that one more would not be
    /// within the window of a reader.
    fn is_full(&self) -> bool {
        let is_led = self.due.saturating_add(self.pace.ahead) > self.pace.window;
        self.under_way > 0 && (self.under_way + 1 >= self.pace.requests || is_led)
    }

    fn set_requests(&mut self, requests: usize) {
        self.pace.requests = requests.clamp(1, self.most);
        // One request at a time is what somebody has asked for.
        let twice = if requests > 1 { requests.saturating_mul(2) } else { 1 };
        self.pace.small = twice.clamp(1, self.most);
        self.lead();
        (self.full, self.bytes, self.ended) = (Duration::ZERO, 0, 0);
    }

    /// Judges the present number, where enough was seen of it.
    fn judge(&mut self) {
        self.catch_up();
        if self.full < EPOCH || self.ended < 2 * self.pace.requests {
            return;
        }
        let rate = self.bytes as f64 / self.full.as_secs_f64();
        let present = self.pace.requests;
        match self.trial.take() {
            Some(trial) if trial.was_better(present, rate) => {
                self.hold = HOLD;
                self.set_requests(trial.before);
            }
            None if self.hold > 0 => {
                self.hold -= 1;
                self.set_requests(present);
            }
            // What has just been found better is gone on with.
            Some(trial) => self.attempt(present > trial.before, rate),
            None => self.attempt(!self.tried_more || present <= FIRST_REQUESTS, rate),
        }
        tracing::debug!(pace = ?self.pace, rate, "the pace of reading ahead");
    }

    /// Tries more, or fewer, where there is a number to try.
    fn attempt(&mut self, more: bool, rate: f64) {
        let before = self.pace.requests;
        let next = match more {
            true => (before + (before / 2).max(1)).min(self.most),
            false => (before * 2 / 3).max(FIRST_REQUESTS.min(before)),
        };
        self.tried_more = more;
        (self.trial, self.hold) =
            if next == before { (None, HOLD) } else { (Some(Trial { before, rate }), 0) };
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

    /// Says how a reader is led: by as many requests as were found to be best, where one of them does not carry much.
    fn lead(&mut self) {
        let is_shared = self.carried.is_none_or(|rate| rate * SHARED < MOST_BYTES as f64);
        self.pace.ahead = if is_shared { self.pace.bytes.min(SHARED_BYTES) } else { self.pace.bytes };
        let all = self.pace.ahead.min(SHARED_BYTES).saturating_mul(self.pace.requests as u64);
        self.pace.window = all.max(Pace::WINDOW);
    }
}

fn smooth(value: &mut Option<f64>, sample: f64) {
    *value = Some(value.map_or(sample, |value| value * 0.75 + sample * 0.25));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads ahead over a line for a while: so many bytes a second for one request and for all, and so long to the first.
    async fn line(pacer: &Arc<Pacer>, alone: f64, all: f64, latency: Duration) -> Pace {
        for _ in 0..120 {
            let pace = pacer.pace();
            let mut requests: Vec<_> = (0..pace.requests).map(|_| pacer.begin(pace.bytes)).collect();
            tokio::time::sleep(latency).await;
            for request in &mut requests {
                request.came(1);
            }
            let rate = alone.min(all / pace.requests as f64);
            tokio::time::sleep(Duration::from_secs_f64(pace.bytes as f64 / rate)).await;
            for request in &mut requests {
                request.came(pace.bytes - 1);
            }
            requests.iter_mut().for_each(Measured::complete);
        }
        pacer.pace()
    }

    #[tokio::test(start_paused = true)]
    async fn a_far_line_that_bears_more_gets_more_and_larger_requests() {
        let pacer = Arc::new(Pacer::new(16));
        let pace = line(&pacer, 20e6, 1e9, Duration::from_millis(150)).await;
        assert!(pace.requests >= 13, "{pace:?}");
        assert_eq!((pace.bytes, pace.ahead), (MOST_BYTES, SHARED_BYTES));
        assert_eq!(pace.window, pace.requests as u64 * SHARED_BYTES);
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_is_full_gets_no_more_than_it_began_with() {
        let pacer = Arc::new(Pacer::new(16));
        let pace = line(&pacer, 100e6, 100e6, Duration::from_millis(1)).await;
        assert!(pace.requests <= 6, "{pace:?}");
        assert_eq!(pace.bytes, MOST_BYTES);
        assert!(pace.window <= 6 * SHARED_BYTES, "{pace:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_a_connection_carries_much_the_largest_is_asked_for_ahead_of_a_reader_too() {
        let pacer = Arc::new(Pacer::new(16));
        let pace = line(&pacer, 400e6, 8e8, Duration::from_millis(1)).await;
        assert_eq!((pace.bytes, pace.ahead), (MOST_BYTES, MOST_BYTES));
    }

    /// Reads as one who is led: no more is under way than his window has, and each request is as large as may be ahead of a reader.
    async fn led(pacer: &Arc<Pacer>, alone: f64, all: f64) -> Pace {
        for _ in 0..200 {
            let pace = pacer.pace();
            let mut requests: Vec<_> =
                (0..pace.window / pace.ahead).map(|_| pacer.begin(pace.ahead)).collect();
            requests.iter_mut().for_each(|request| request.came(1));
            let rate = alone.min(all / requests.len() as f64);
            tokio::time::sleep(Duration::from_secs_f64(pace.ahead as f64 / rate)).await;
            for request in &mut requests {
                request.came(pace.ahead - 1);
                request.complete();
            }
        }
        pacer.pace()
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_of_one_reader_grows_as_long_as_that_brings_more() {
        for (alone, all, least, most) in [
            (64e6, 1e9, 13 * SHARED_BYTES, 16 * SHARED_BYTES),
            (250e6, 2e9, 13 * SHARED_BYTES, 16 * SHARED_BYTES),
            (1e9, 1e9, Pace::WINDOW, 6 * SHARED_BYTES),
            (125e6, 125e6, Pace::WINDOW, 6 * SHARED_BYTES),
            (1e6, 1e6, Pace::WINDOW, Pace::WINDOW),
        ] {
            let pace = led(&Arc::new(Pacer::new(16)), alone, all).await;
            assert!((least..=most).contains(&pace.window), "{alone} of {all}: {pace:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_that_brings_nothing_any_more_goes_back() {
        let pacer = Arc::new(Pacer::new(16));
        let wide = led(&pacer, 64e6, 1e9).await.window;
        for _ in 0..4 {
            led(&pacer, 125e6, 125e6).await;
        }
        let narrow = pacer.pace().window;
        assert!(wide >= 13 * SHARED_BYTES && narrow <= 6 * SHARED_BYTES, "{wide} to {narrow}");
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_slow_line_little_is_asked_for_at_once() {
        let pacer = Arc::new(Pacer::new(16));
        let pace = line(&pacer, 1e6, 1e6, Duration::from_millis(20)).await;
        assert_eq!(pace.bytes, LEAST_BYTES, "{pace:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_asks_to_slow_down_gets_half_and_the_cap_is_kept() {
        let pacer = Arc::new(Pacer::new(6));
        let pace = line(&pacer, 20e6, 1e9, Duration::from_millis(150)).await;
        assert_eq!(pace.requests, 6);
        pacer.throttled();
        assert_eq!(pacer.pace().requests, 3);
        assert_eq!(Pacer::new(0).pace().requests, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_that_were_given_up_count_for_nothing() {
        let pacer = Arc::new(Pacer::new(16));
        for _ in 0..1000 {
            drop(pacer.begin(1));
        }
        assert_eq!((pacer.pace(), pacer.0.lock().under_way), (Pace::default(), 0));
    }
}
