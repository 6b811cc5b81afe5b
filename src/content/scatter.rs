//! Recognises files that are read at random through maps, and which of the kernel's own wishes are not worth fetching then.
//!
//! A page fault without advice makes the kernel ask for 1 MiB around the page, which meets two chunks; who reads at random wants
//! one of them. A wish that is declined leaves those pages unread: the kernel then asks for the page that the fault needs by itself, and
//! the reader sees nothing of it ([decision 7](../../docs/decisions/0007-declined-wishes.md)). Only what the kernel wishes by itself may be
//! declined: who calls says what that is. A pure observer of one file; asked by the loader.

use crate::range::ContentRange;

/// What is shorter is no wish of the kernel's own around a fault, but what a reader asked for.
const LEAST: u64 = 256 << 10;
/// How many ends of wishes are remembered, to tell who reads on from who reads here and there.
const HEADS: usize = 16;
/// How many wishes that go on from nothing make a file one that is read at random, less two for each that goes on.
const SCATTERED: u32 = 3;
/// More of them count no further, so that who begins to read on is recognised soon.
const MOST: u32 = 12;
/// How many wishes are declined at most: each is remembered, since a place is declined only once.
const PLACES: usize = 512;
/// How many pages one after the other are asked for singly, in a place that was declined, before it is clear that this was no
/// single fault: then it was wrong to decline, and nothing more of the file is.
const STRETCH: u32 = 8;

/// The readers of one file, as far as they read here and there.
#[derive(Debug, Default)]
pub(super) struct Scatter {
    heads: [u64; HEADS],
    oldest: usize,
    score: u32,
    declined: Vec<Place>,
    /// Whether nothing is declined any more.
    over: bool,
}

/// A stretch of the file whose wish was declined, and the single pages asked for in it.
#[derive(Clone, Copy, Debug)]
struct Place {
    range: ContentRange,
    /// One past the page asked for last.
    next: u64,
    /// How many came one after the other.
    run: u32,
}

impl Scatter {
    /// Takes a read of the file into account that came for the page cache; whether it may be declined. Then it is to be said what
    /// becomes of it: [`grant`](Self::grant) or [`decline`](Self::decline). Costs a look at some places.
    pub(super) fn observe(&mut self, range: ContentRange) -> bool {
        if range.len() < LEAST {
            self.follow(range);
            return false;
        }
        // Of two in a row the later one may come first.
        let before = range.start().saturating_sub(range.len());
        let goes_on = self.heads.iter().any(|head| [range.start(), before].contains(head));
        self.score = match goes_on {
            true => self.score.saturating_sub(2),
            false => (self.score + 1).min(MOST),
        };
        let may_be = !goes_on && !self.over && self.score >= SCATTERED && self.declined.len() < PLACES;
        let may_be = may_be && !self.has_declined(range);
        if !may_be {
            self.remember(range.end());
        }
        may_be
    }

    /// A read that might have been declined is answered: who reads on begins at its end.
    pub(super) fn grant(&mut self, range: ContentRange) {
        self.remember(range.end());
    }

    /// It is declined; `false` where the place was meanwhile, so that it must be answered.
    pub(super) fn decline(&mut self, range: ContentRange) -> bool {
        if self.has_declined(range) {
            return false;
        }
        // Its end is none to go on from: what the kernel wishes around a fault beside it begins there too.
        self.declined.push(Place { range, next: u64::MAX, run: 0 });
        true
    }

    fn has_declined(&self, range: ContentRange) -> bool {
        self.declined.iter().any(|place| !place.range.meet(range).is_empty())
    }

    fn remember(&mut self, end: u64) {
        if let Some(head) = self.heads.get_mut(self.oldest) {
            *head = end;
        }
        self.oldest = (self.oldest + 1) % HEADS;
    }

    /// Follows who reads on page by page where the pages around were left out.
    fn follow(&mut self, range: ContentRange) {
        let place = self.declined.iter_mut().find(|place| !place.range.meet(range).is_empty());
        let Some(place) = place else { return };
        place.run = if place.next == range.start() { place.run + 1 } else { 0 };
        place.next = range.end();
        self.over |= place.run >= STRETCH;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const LEN: u64 = 256 * MIB;

    fn around(page: u64) -> ContentRange {
        let start = page.saturating_sub(MIB / 2);
        ContentRange::new(start, (start + MIB).min(LEN))
    }

    fn pages(count: usize) -> impl Iterator<Item = u64> {
        let mut at = 7u64;
        std::iter::repeat_with(move || {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (at >> 33) % (LEN / 4096) * 4096
        })
        .take(count)
    }

    /// Has declined what may be.
    fn observe(scatter: &mut Scatter, range: ContentRange) -> bool {
        scatter.observe(range) && scatter.decline(range)
    }

    /// How many of the wishes around random faults are declined; each of those faults asks for its page then.
    fn declined(scatter: &mut Scatter, count: usize) -> usize {
        let fault = |page: &u64| {
            let declined = observe(scatter, around(*page));
            if declined {
                assert!(!scatter.observe(ContentRange::new(*page, *page + 4096)));
            }
            declined
        };
        pages(count).filter(fault).count()
    }

    #[test]
    fn of_random_faults_all_but_the_first_few_have_their_surroundings_declined() {
        let declined = declined(&mut Scatter::default(), 100);
        assert!((60..=98).contains(&declined), "{declined}: a place is declined once");
    }

    #[test]
    fn who_reads_on_has_nothing_declined_also_where_others_read_at_random() {
        let mut scatter = Scatter::default();
        let mut at = MIB / 2;
        for page in pages(200) {
            observe(&mut scatter, around(page));
            for _ in 0..2 {
                assert!(!scatter.observe(ContentRange::new(at, at + MIB)), "at {at}");
                at = (at + MIB) % (LEN - MIB);
            }
        }
    }

    #[test]
    fn who_overtakes_himself_goes_on_all_the_same() {
        let mut scatter = Scatter::default();
        for at in 0..100u64 {
            // 1 0 3 2 5 4
            let at = (at ^ 1) * MIB + MIB / 2;
            assert!(!scatter.observe(ContentRange::new(at, at + MIB)));
        }
    }

    #[test]
    fn no_place_is_declined_twice() {
        let mut scatter = Scatter::default();
        declined(&mut scatter, 50);
        let places: Vec<ContentRange> = scatter.declined.iter().map(|place| place.range).collect();
        assert!(!places.is_empty());
        for place in places {
            scatter.score = MOST;
            scatter.heads = [u64::MAX; HEADS];
            assert!(!scatter.observe(place));
            let beside = ContentRange::new(place.start() + MIB / 2, place.end() + MIB / 2);
            assert!(!scatter.observe(beside));
        }
    }

    #[test]
    fn who_reads_on_page_by_page_in_a_declined_place_ends_it_for_the_file() {
        let mut scatter = Scatter::default();
        declined(&mut scatter, 10);
        let place = scatter.declined[0].range;
        for page in 0..10 {
            let at = place.start() + page * 4096;
            assert!(!scatter.observe(ContentRange::new(at, at + 4096)));
        }
        assert_eq!(declined(&mut scatter, 100), 0);
    }

    #[test]
    fn single_faults_in_a_declined_place_do_not_end_it() {
        let mut scatter = Scatter::default();
        declined(&mut scatter, 10);
        let place = scatter.declined[0].range;
        for page in 0..100 {
            let at = place.start() + page * 37 % 256 * 4096;
            scatter.observe(ContentRange::new(at, at + 4096));
        }
        assert!(!scatter.over);
    }

    #[test]
    fn a_file_is_remembered_only_so_far() {
        let mut scatter = Scatter::default();
        for place in 0..4096u64 {
            let at = place * 64 * MIB;
            observe(&mut scatter, ContentRange::new(at, at + MIB));
        }
        assert_eq!(scatter.declined.len(), PLACES);
    }

    #[test]
    fn who_reads_on_from_what_might_have_been_declined_and_was_answered_goes_on() {
        let mut scatter = Scatter { score: MOST, ..Scatter::default() };
        let wish = ContentRange::new(10 * MIB, 11 * MIB);
        assert!(scatter.observe(wish));
        scatter.grant(wish);
        assert!(!scatter.observe(ContentRange::new(11 * MIB, 12 * MIB)));
        assert!(scatter.declined.is_empty());
    }

    #[test]
    fn a_place_that_two_reads_come_for_at_once_is_declined_to_one_of_them() {
        let mut scatter = Scatter { score: MOST, ..Scatter::default() };
        let wish = ContentRange::new(10 * MIB, 11 * MIB);
        assert!(scatter.observe(wish) && scatter.observe(wish));
        assert!(scatter.decline(wish) && !scatter.decline(wish));
    }
}
