//! Follows the readers of one file and says how far to load ahead of them.
//!
//! Several streams a file, told apart by where they read, not by file handle: ranks and threads share
//! descriptors, and the kernel's own read-ahead comes in pieces and out of order. What is loaded ahead never
//! exceeds a fixed multiple of what the stream has consumed, and stays within the tensor being read until the stream has shown that
//! it goes on beyond: a reader who stops after one tensor has cost little more than the tensor. Who has read a large header shows it,
//! too.

use crate::index::CHUNK;
use crate::range::ContentRange;
use crate::repository::Pace;

use super::tensors::Tensors;

/// How many readers of one file are told apart; the one that was quiet longest makes room.
const STREAMS: usize = 8;
/// How far behind its newest byte a read still belongs to a stream (the kernel's read-ahead overlaps).
const BACKWARD: u64 = 2 << 20;
/// How far ahead of it a read still belongs to a stream.
const FORWARD: u64 = 4 << 20;
/// What is loaded ahead at once where the window is large: the largest request. Two of them are the smallest window. Each costs a
/// registry 3 to 5 ms of processor besides its bytes: of 8 MiB, `docker-registry` takes 1.2 s/GB where it takes 1.0 for 16 and 0.5 for
/// one long answer.
const BATCH: u64 = 16 << 20;
/// What a stream must have consumed before anything is loaded ahead of it: more than the 1 MiB that the kernel reads
/// around a single fault.
const SETTLED: u64 = 1280 << 10;
/// What a stream has consumed at most that may be a few reads here and there: two faults with what the kernel reads around them.
const SCATTERED: u64 = 256 << 10;
/// How many times what a stream consumed is loaded ahead of it within the first tensor that it reads: more than
/// beyond it, since the tensor's end bounds what is fetched in vain.
const WITHIN: u64 = 4;
/// A tensor up to this size is loaded whole when any of it is read.
const SMALL_TENSOR: u64 = 2 << 20;
/// From here on a stream is taken for somebody who reads the file, and not for a fault with what the kernel reads
/// around it.
const READING: u64 = 4 << 20;
/// How many times what was read at first is loaded ahead of who begins where a tensor does: nobody but who reads it in order begins
/// there, since around a fault the kernel begins before it. 16 MiB where the kernel reads 1 MiB first: with half of that a far line
/// lies idle for a round trip, since the first of the requests that share it comes no sooner than the last, and only then is more
/// asked for.
const FROM_ITS_START: u64 = 16;
/// How many times what a stream consumed is loaded ahead of it when it comes to the end of a header that it has read from the start, and in
/// the first tensor after it: an engine loads the file next, and lets the line lie idle while it is at work with the header. Who wanted the
/// header alone has cost as much more, in the background and no more than the window.
const PAST_HEADER: u64 = 8;
/// The part of what should be here or under way ahead of a stream that is asked for at once, rather than in pieces as the stream goes on.
const PUT_OFF: u64 = 2;
/// The same where it is decoded: several spans are to be under way at any time, so that no processor is idle.
const PUT_OFF_DECODED: u64 = 4;
/// A page, on which the kernel begins a read.
const PAGE: u64 = 4096;
/// The part of what a stream consumed that one request has, so that the first ones are small and come side by side, and later ones
/// spare the registry.
const REQUEST: u64 = 4;
/// Between how many requests what is loaded ahead at once is shared, while they are small: as many as are under way beside one another
/// at first. More of them would end together on a far line, with nothing under way for a round trip until the next ones answer.
const ABREAST: u64 = 8;
/// The part of its window that a stream has left in its file when the next file is begun with.
const ONWARD: u64 = 2;
/// How far the kernel reads past the last byte that an application asked for: two requests of 1 MiB. So many
/// bytes of a tensor prove nothing about the reader.
const READ_AROUND: u64 = 2 << 20;

/// The readers of one file.
#[derive(Debug, Default)]
pub struct Streams {
    /// How far ahead of a reader is loaded.
    pub reach: Reach,
    streams: Vec<Stream>,
    clock: u64,
    consumed: u64,
    rest_planned: bool,
}

/// How far ahead of a reader is loaded at most, as far as it is not he who decides, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The farthest of all: what the line is best served by ([`Pace::window`]).
    pub window: u64,
    /// Up to so many bytes, as much is loaded ahead of a reader as he has read: what keeps all processors busy where it is
    /// decoded. 0 where it is not.
    pub eager: u64,
}

impl Default for Reach {
    /// The smallest window, of what is not decoded.
    fn default() -> Self {
        Self { window: Pace::WINDOW, eager: 0 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// Where it began.
    start: u64,
    /// One past the newest byte it read.
    next: u64,
    /// How many new bytes it read.
    consumed: u64,
    /// One past the last byte already asked for on its behalf.
    planned: u64,
    /// When it last read, by `Streams::clock`.
    last: u64,
    /// Whether it has come from the file before this one, and so is known to go on.
    came_on: bool,
    /// Whether the next file was begun with for it.
    went_on: bool,
}

/// What to load, as ranges of the file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Ahead of this reader, before anything else that nobody waits for.
    pub ahead: Option<ContentRange>,
    /// How many bytes of that one request should have.
    pub request: u64,
    /// The reader is near the end of the file and likely to go on in the next one.
    pub onward: Option<Onward>,
    /// Whether so much of the file was read that the rest should come too, when nothing else is to do.
    pub rest: bool,
    /// Whether this reader has read on for a while, so that he is likely to want what lies around his last read.
    pub reads_on: bool,
}

/// A reader who has read a file to its end, as he is expected in the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Onward {
    /// How much to load of the next file's beginning.
    pub bytes: u64,
    /// How many bytes one request should have.
    pub request: u64,
    /// How much he has consumed.
    consumed: u64,
}

impl Streams {
    /// Expects the reader of the file before this one to go on here, where as much as he was given is loaded already.
    pub fn expect(&mut self, onward: Onward, len: u64) {
        let planned = onward.bytes.min(len);
        self.put(Stream { consumed: onward.consumed, planned, came_on: true, ..Stream::at(0, self.clock) });
    }

    /// Whether the file has had a reader, or one is expected.
    #[must_use]
    pub fn is_led(&self) -> bool {
        !self.streams.is_empty()
    }

    /// Takes a read of `range` into account; `len` is the file's size.
    ///
    /// Costs a look at up to eight streams and, where tensors are known, a binary search.
    pub fn observe(&mut self, range: ContentRange, len: u64, tensors: Option<&Tensors>) -> Plan {
        self.clock += 1;
        let (clock, reach) = (self.clock, self.reach);
        let stream = self.stream_of(range);
        let new = range.end().saturating_sub(stream.next.max(range.start()));
        stream.next = stream.next.max(range.end());
        stream.consumed = stream.consumed.saturating_add(new);
        stream.last = clock;
        let reads_on = stream.consumed > SCATTERED;
        let target = stream.target(len, tensors, reach);
        let onward = stream.onward(len, reach);
        let from = stream.planned.max(stream.next);
        let request = stream.request(target.saturating_sub(from));
        let ahead = (target > from && stream.is_worth_it(from, target, len, tensors, reach))
            .then(|| ContentRange::new(from, target));
        if ahead.is_some() {
            stream.planned = target;
        }
        // Faults here and there say nothing of the rest of the file, however many they are.
        let read_on = if stream.consumed >= READING { new } else { 0 };
        self.consumed = self.consumed.saturating_add(read_on);
        let rest = !self.rest_planned && self.consumed > len / 2;
        self.rest_planned |= rest;
        Plan { request: ahead.map_or(0, |_| request), ahead, onward, rest, reads_on }
    }

    /// What to load for who has read a header to its end before it was known where tensors lie: while he is at work with it he reads
    /// nothing that would tell.
    pub fn learn(&mut self, len: u64, tensors: &Tensors) -> Plan {
        let reach = self.reach;
        let led = |stream: &mut Stream| {
            let end = stream.past_header(len, tensors, reach)?.min(len);
            let from = stream.planned.max(stream.next);
            let ahead = (from < end).then(|| ContentRange::new(from, end))?;
            stream.planned = ahead.end();
            Some(Plan { request: stream.request(ahead.len()), ahead: Some(ahead), ..Plan::default() })
        };
        let readers = self.streams.iter_mut().filter(|stream| stream.consumed >= SETTLED && !stream.came_on);
        readers.max_by_key(|stream| stream.last).and_then(led).unwrap_or_default()
    }

    fn stream_of(&mut self, range: ContentRange) -> &mut Stream {
        let belongs = |stream: &Stream| {
            range.start() <= stream.next.saturating_add(FORWARD)
                && range.end() >= stream.next.saturating_sub(BACKWARD).max(stream.start)
        };
        let found = match self.streams.iter().position(belongs) {
            Some(found) => found,
            None => self.put(Stream::at(range.start(), self.clock)),
        };
        // `found` is a position in `streams`: of an element just seen, or just put there.
        #[allow(clippy::indexing_slicing, reason = "found is a position just looked up or made")]
        &mut self.streams[found]
    }

    fn put(&mut self, fresh: Stream) -> usize {
        if self.streams.len() < STREAMS {
            self.streams.push(fresh);
            return self.streams.len() - 1;
        }
        let quietest = self.streams.iter().enumerate().min_by_key(|(_, stream)| stream.last);
        let place = quietest.map_or(0, |(place, _)| place);
        if let Some(slot) = self.streams.get_mut(place) {
            *slot = fresh;
        }
        place
    }
}

impl Stream {
    fn at(start: u64, last: u64) -> Self {
        Self { start, next: start, consumed: 0, planned: start, last, came_on: false, went_on: false }
    }

    /// How many bytes one request should have where `ahead` bytes are loaded ahead of it.
    fn request(&self, ahead: u64) -> u64 {
        let abreast = (ahead / ABREAST).next_multiple_of(CHUNK).min(Pace::SMALL);
        (self.consumed / REQUEST).max(abreast).clamp(CHUNK, BATCH)
    }

    /// What to begin with of the next file: once, when most of what is loaded ahead would lie behind this one's end.
    fn onward(&mut self, len: u64, reach: Reach) -> Option<Onward> {
        let bytes = (self.consumed / 2).min(reach.window) / ONWARD;
        let is_near =
            self.consumed > len / 2 && self.consumed >= READING && len.saturating_sub(self.next) <= bytes;
        if self.went_on || !is_near {
            return None;
        }
        self.went_on = true;
        Some(Onward { bytes, request: self.request(bytes), consumed: self.consumed })
    }

    /// Whether what is to be loaded is worth requests of its own, or waits until there is more of it: far ahead of the
    /// reader nothing is urgent, and a registry is spared many small requests.
    fn is_worth_it(&self, from: u64, target: u64, len: u64, tensors: Option<&Tensors>, reach: Reach) -> bool {
        let part = if reach.eager == 0 { PUT_OFF } else { PUT_OFF_DECODED };
        let worth = (target.saturating_sub(self.next) / part).min(BATCH);
        let ends = tensors.map_or(len, |tensors| tensors.around(target.saturating_sub(1), len).end());
        target - from >= worth || target == ends
    }

    /// One past the last byte that should be here or under way for this stream.
    fn target(&self, len: u64, tensors: Option<&Tensors>, reach: Reach) -> u64 {
        if self.consumed < SETTLED {
            let here = tensors.map(|tensors| self.here(len, tensors));
            return here.map_or(self.next, |tensor| self.first_target(tensor));
        }
        let eager =
            if self.consumed >= READING { self.consumed.min(reach.eager).min(reach.window) } else { 0 };
        let window =
            |share: u64| self.next.saturating_add((self.consumed / share).min(reach.window).max(eager));
        let bounded =
            tensors.filter(|_| !self.came_on).map(|tensors| self.within_tensor(len, tensors, reach));
        let target = match bounded {
            Some(Some(bounded)) => bounded,
            Some(None) => window(2),
            None if self.came_on => window(2),
            None => window(4),
        };
        target.min(len)
    }

    /// The target before the stream is told from a fault here or there.
    fn first_target(&self, tensor: ContentRange) -> u64 {
        let begins_there = tensor.start().checked_sub(self.start).is_some_and(|before| before < PAGE);
        match tensor.len() {
            ..=SMALL_TENSOR => tensor.end(),
            _ if begins_there => {
                self.next.saturating_add(self.consumed.saturating_mul(FROM_ITS_START)).min(tensor.end())
            }
            _ => self.next,
        }
    }

    /// The target while the stream reads its first two tensors; `None` once it has gone on beyond them.
    fn within_tensor(&self, len: u64, tensors: &Tensors, reach: Reach) -> Option<u64> {
        if let Some(target) = self.past_header(len, tensors, reach) {
            return Some(target);
        }
        let (here, first) = (self.here(len, tensors), self.first(len, tensors));
        let grown = |consumed: u64| Some(self.led(consumed, reach).min(here.end()));
        if here.start() <= first.end().saturating_sub(1) {
            return grown(self.consumed.saturating_mul(WITHIN));
        }
        if here.start() == first.end() {
            return grown(self.next.saturating_sub(here.start()).saturating_sub(READ_AROUND));
        }
        None
    }

    /// The target of who has read a large header from its start to its end, until he has read the first tensor too.
    fn past_header(&self, len: u64, tensors: &Tensors, reach: Reach) -> Option<u64> {
        let header = Some(self.first(len, tensors)).filter(|first| self.start == 0 && first.start() == 0)?;
        let is_there = self.here(len, tensors).start() <= header.end()
            && self.next.saturating_add(CHUNK) >= header.end();
        is_there.then(|| self.led(self.consumed.saturating_mul(PAST_HEADER), reach))
    }

    /// As far ahead of it as `bytes`, within the window.
    fn led(&self, bytes: u64, reach: Reach) -> u64 {
        self.next.saturating_add(bytes.min(reach.window))
    }

    /// The tensor that it reads.
    fn here(&self, len: u64, tensors: &Tensors) -> ContentRange {
        tensors.around(self.next.saturating_sub(1), len)
    }

    /// The tensor that it began with. The kernel begins a read on a page, or before it: what it reads there is not the reader's tensor.
    fn first(&self, len: u64, tensors: &Tensors) -> ContentRange {
        tensors.around(self.start.saturating_add(SETTLED - 1), len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LEN: u64 = 256 * MIB;

    fn sixteen_mib_tensors() -> Tensors {
        let entries: Vec<String> = (0..16)
            .map(|t| format!(r#""t{t}":{{"data_offsets":[{},{}]}}"#, t * 16 * MIB, (t + 1) * 16 * MIB))
            .collect();
        let json = format!("{{{}}}", entries.join(","));
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.extend_from_slice(json.as_bytes());
        Tensors::parse(&header, LEN + header.len() as u64).unwrap()
    }

    /// Reads `range` in steps and gives how far beyond it anything was asked for.
    fn overshoot(tensors: Option<&Tensors>, range: ContentRange, step: u64) -> u64 {
        let mut streams = Streams::default();
        let mut farthest = range.end();
        let mut at = range.start();
        while at < range.end() {
            let plan = streams.observe(ContentRange::new(at, at + step), LEN + MIB, tensors);
            farthest = farthest.max(plan.ahead.map_or(0, ContentRange::end));
            at += step;
        }
        farthest - range.end()
    }

    #[test]
    fn a_reader_that_stops_after_one_tensor_has_cost_little_more_than_the_tensor() {
        let tensors = sixteen_mib_tensors();
        let tensor = tensors.around(100 * MIB, LEN);
        assert_eq!(overshoot(Some(&tensors), tensor, 128 << 10), 0);
        // The kernel begins on a page, and reads ahead of the application, across the tensor's end.
        let as_the_kernel_reads =
            ContentRange::new(tensor.start() / 4096 * 4096 - 4096, tensor.end() + 2 * MIB);
        assert!(overshoot(Some(&tensors), as_the_kernel_reads, MIB) <= 2 * MIB);
        assert!(overshoot(None, tensor, MIB) <= 4 * MIB);
    }

    #[test]
    fn a_reader_that_goes_on_is_led_by_a_growing_window() {
        let tensors = sixteen_mib_tensors();
        for (tensors, window) in [(None, Pace::WINDOW), (Some(&tensors), Pace::WINDOW), (None, 48 * MIB)] {
            let mut streams = Streams { reach: Reach { window, eager: 0 }, ..Streams::default() };
            let mut planned = 0;
            for at in 0..200 {
                let plan = streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), LEN, tensors);
                planned = planned.max(plan.ahead.map_or(0, ContentRange::end));
            }
            assert!((200 * MIB + window - BATCH..=200 * MIB + window).contains(&planned), "{planned}");
        }
    }

    #[test]
    fn where_it_is_decoded_as_much_is_loaded_ahead_as_was_read_up_to_a_limit() {
        for (eager, least, most) in [(0, 0, 16 * MIB), (16 * MIB, 12 * MIB, 16 * MIB)] {
            let mut streams = Streams { reach: Reach { eager, ..Reach::default() }, ..Streams::default() };
            let mut end = 0;
            for at in 0..64 {
                let plan = streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), LEN, None);
                end = end.max(plan.ahead.map_or(0, ContentRange::end));
                let ahead = end.saturating_sub((at + 1) * MIB);
                assert!(ahead <= (at + 1) * MIB && ahead <= most, "{ahead} after {at}");
                assert!(at < 20 || ahead >= least, "{ahead} after {at}");
            }
        }
    }

    #[test]
    fn nothing_is_asked_for_twice() {
        let mut streams = Streams::default();
        let mut end = 0;
        for at in 0..100 {
            let plan = streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), LEN, None);
            if let Some(ahead) = plan.ahead {
                assert!(ahead.start() >= end && ahead.start() > at * MIB);
                end = ahead.end();
            }
        }
    }

    #[test]
    fn far_ahead_of_a_reader_little_pieces_are_put_together() {
        let mut streams = Streams::default();
        let plans: Vec<_> = (0..4096)
            .filter_map(|at| {
                streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), 8 << 30, None).ahead
            })
            .collect();
        assert!(plans.len() < 288, "{} plans for 4 GiB", plans.len());
        assert!(plans.last().unwrap().len() >= BATCH);
        let first = plans.first().unwrap();
        assert!(first.start() <= 3 * MIB, "{first:?}: not put off at the beginning");
    }

    #[test]
    fn who_begins_where_a_tensor_does_is_led_at_once_and_no_farther_than_it() {
        let tensors = sixteen_mib_tensors();
        let tensor = tensors.around(100 * MIB, LEN);
        let page = tensor.start() / 4096 * 4096;
        let begins = |tensors: &Tensors, start: u64, len: u64| {
            Streams::default().observe(ContentRange::new(start, start + len), LEN, Some(tensors))
        };
        let plan = begins(&tensors, page, MIB);
        assert_eq!(plan.ahead, Some(ContentRange::new(page + MIB, tensor.end())));
        assert_eq!(plan.request, 2 * MIB, "all of it beside one another");
        assert_eq!(begins(&tensors, page - 512 * 1024, MIB).ahead, None);
        let large = Tensors::beginning_at(vec![4096, 100 * MIB]);
        assert_eq!(begins(&large, 4096, MIB / 8).ahead.map(ContentRange::len), Some(2 * MIB));
        assert_eq!(begins(&large, 4096, MIB).ahead.map(ContentRange::len), Some(16 * MIB));
    }

    #[test]
    fn who_has_read_a_large_header_is_led_on_beyond_it_once_he_comes_to_its_end() {
        let tensors = Tensors::beginning_at((0..20).map(|tensor| (5 + 10 * tensor) * MIB).collect());
        let read = |streams: &mut Streams, at: u64, known| {
            let range = ContentRange::new(at * MIB, (at + 1) * MIB);
            streams.observe(range, LEN, known).ahead.map_or(0, ContentRange::end)
        };
        let mut streams = Streams::default();
        for at in 0..3 {
            assert!(read(&mut streams, at, Some(&tensors)) <= 5 * MIB, "{at}");
        }
        assert_eq!(read(&mut streams, 3, Some(&tensors)), 4 * MIB + Pace::WINDOW);
        // Where tensors lie is known a little later.
        let mut streams = Streams::default();
        let before = (0..5).map(|at| read(&mut streams, at, None)).max();
        assert!(before < Some(8 * MIB));
        assert_eq!(read(&mut streams, 5, Some(&tensors)), 6 * MIB + Pace::WINDOW);
        // He is at work with what he has read when it becomes known.
        let mut streams = Streams::default();
        for at in 0..4 {
            read(&mut streams, at, None);
        }
        let plan = streams.learn(LEN, &tensors);
        assert_eq!(plan.ahead.map(ContentRange::end), Some(4 * MIB + Pace::WINDOW));
        assert_eq!(streams.learn(LEN, &tensors), Plan::default(), "once");
        // Who has read a part of it, or comes to the same place from elsewhere, has not read the header.
        let mut streams = Streams::default();
        read(&mut streams, 0, None);
        read(&mut streams, 1, None);
        assert_eq!(streams.learn(LEN, &tensors), Plan::default());
        let plan = Streams::default().observe(ContentRange::new(3 * MIB, 5 * MIB), LEN, Some(&tensors));
        assert_eq!(plan.ahead, None);
    }

    #[test]
    fn requests_grow_with_what_was_read() {
        let mut streams = Streams::default();
        let observe = |at: u64| streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), LEN, None);
        let requests: Vec<u64> =
            (0..128).map(observe).filter(|plan| plan.ahead.is_some()).map(|plan| plan.request).collect();
        assert!(requests.is_sorted() && requests.first() == Some(&MIB), "{requests:?}");
        assert_eq!(requests.last(), Some(&BATCH));
    }

    #[test]
    fn who_has_read_a_file_is_expected_in_the_next_one_and_led_on_there() {
        let mut streams = Streams::default();
        let plans =
            (0..256).map(|at| streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), LEN, None));
        let onward: Vec<Onward> = plans.filter_map(|plan| plan.onward).collect();
        let [onward] = *onward else { panic!("{onward:?}") };
        assert!(onward.bytes >= 16 * MIB && onward.bytes <= Pace::WINDOW / 2, "{onward:?}");
        let tensors = sixteen_mib_tensors();
        let mut next = Streams::default();
        next.expect(onward, LEN);
        let plan = next.observe(ContentRange::new(0, MIB), LEN, Some(&tensors));
        let ahead = plan.ahead.unwrap();
        assert_eq!((ahead.start(), plan.request), (onward.bytes, BATCH));
        assert!(ahead.len() >= BATCH);
    }

    #[test]
    fn who_has_read_little_of_a_file_is_not_expected_in_the_next_one() {
        let mut streams = Streams::default();
        let mut plans =
            (200..256).map(|at| streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), LEN, None));
        assert!(plans.all(|plan| plan.onward.is_none()));
    }

    #[test]
    fn random_faults_lead_to_nothing() {
        let mut streams = Streams::default();
        let mut at = 7u64;
        for _ in 0..200 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let page = (at >> 33) % (LEN / 4096) * 4096;
            let plan = streams.observe(ContentRange::new(page, page + 4096), LEN, None);
            assert_eq!(plan, Plan::default());
        }
    }

    #[test]
    fn random_faults_with_what_the_kernel_reads_around_them_do_not_bring_the_rest_of_a_file() {
        let mut streams = Streams::default();
        let mut at = 7u64;
        for _ in 0..200 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let start = (at >> 33) % (LEN / MIB - 1) * MIB + MIB / 2;
            assert!(!streams.observe(ContentRange::new(start, start + MIB), LEN, None).rest);
        }
    }

    #[test]
    fn a_fault_in_a_small_tensor_brings_the_tensor_and_no_more() {
        let tensors = Tensors::beginning_at(vec![100, MIB, 2 * MIB + 5, 100 * MIB]);
        let mut streams = Streams::default();
        let small = streams.observe(ContentRange::new(MIB + 4096, MIB + 8192), LEN, Some(&tensors));
        assert_eq!(small.ahead, Some(ContentRange::new(MIB + 8192, 2 * MIB + 5)));
        let large = streams.observe(ContentRange::new(50 * MIB, 50 * MIB + 4096), LEN, Some(&tensors));
        assert_eq!(large.ahead, None);
    }

    #[test]
    fn interleaved_readers_are_told_apart() {
        let mut streams = Streams::default();
        let mut led = [false; 4];
        for at in 0..8 {
            for reader in 0..4u64 {
                let start = reader * 64 * MIB + at * MIB;
                let plan = streams.observe(ContentRange::new(start, start + MIB), LEN, None);
                led[usize::try_from(reader).unwrap()] |= plan.ahead.is_some();
            }
        }
        assert_eq!(led, [true; 4]);
    }

    #[test]
    fn past_half_of_a_file_the_rest_is_asked_for_once() {
        let mut streams = Streams::default();
        let asked = (0..256)
            .filter(|at| streams.observe(ContentRange::new(at * MIB, (at + 1) * MIB), LEN, None).rest);
        assert_eq!(asked.collect::<Vec<_>>(), [131]);
    }

    #[test]
    fn no_window_leaves_the_file() {
        assert_eq!(overshoot(None, ContentRange::new(0, LEN + MIB), MIB), 0);
    }
}
