//! What can be wrong with an answer ([`Fault`]), and which requests get it ([`Rule`]). `words` says both in words.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use axum::http::header::HeaderName;

use super::pattern::Pattern;
use crate::oci::Digest;

/// What is done to the answer for a request. Counts are of bytes of the body.
#[derive(Clone, Debug)]
pub enum Fault {
    // On the connection, before anything of an answer.
    /// The connection is reset.
    Reset,
    /// The connection is closed.
    Close,
    /// Bytes that are no HTTP, and the connection is closed.
    Garbage,
    /// Nothing, and the connection stays open.
    Silence,

    // In the head of the answer.
    /// The head comes in forty pieces with such pauses between, and then the body.
    SlowHead(Duration),
    /// The head comes a byte at a time with such pauses between, and has no end.
    EndlessHead(Duration),
    /// One header of so many bytes.
    HugeHeader(usize),
    /// So many headers more.
    ManyHeaders(usize),
    /// Two `Content-Length`: the right one, and one more than that.
    TwoLengths,
    /// The same header twice, alike.
    TwiceTheSame(HeaderName),
    /// A header gets this value.
    Header(HeaderName, &'static str),
    /// A header is left out.
    NoHeader(HeaderName),

    // In the body, under a right head.
    /// The body is cut after so many bytes, by closing the connection.
    Truncate(usize),
    /// The body is cut after so many bytes, by resetting the connection.
    ResetAt(usize),
    /// The body stops after so many bytes and the connection stays open.
    Stall(usize),
    /// The body comes in so many pieces with such pauses before each.
    Slow(usize, Duration),
    /// So many bytes after the end of the body, on a connection that stays open.
    Extra(usize),
    /// No length: the body ends with the connection.
    NoLength,
    /// No length but chunks, all of them.
    Chunked,
    /// Chunks, cut after so many bytes of the body in the middle of one.
    ChunkedCut(usize),
    /// No length, chunks, and a body that ends so many bytes early.
    Short(usize),
    /// No length, chunks, and so many bytes more than the range has.
    Overlong(usize),
    /// A length and a body that have so many bytes more than the range.
    Padded(usize),

    // Another answer than to what was asked.
    /// 200 with the whole blob, whatever range was asked for.
    IgnoreRange,
    /// 200 with no more than the range.
    Partial200,
    /// 206 with the whole blob, and a head that says so.
    Whole206,
    /// 206 with a range that begins so many bytes later, and a head that says so.
    Elsewhere(u64),
    /// 206 that ends so many bytes early, but gives half at least, and a head that says so: legal.
    Short206(u64),
    /// The range as the one part of `multipart/byteranges`.
    Multipart,
    /// This status and no more.
    Status(u16),
    /// This status with `Retry-After`.
    RetryAfter(u16, &'static str),
    /// This status with `Retry-After` as a date so long from now, in whole seconds.
    RetryAt(u16, Duration),
    /// 401 with the challenge that a request without a token gets.
    Unauthorized,
    /// 307 to the same path, with a signature, at this origin.
    Redirect(String),
    /// 307 to exactly this.
    RedirectTo(&'static str),
    /// 307 to the same path again and again, so often before the answer; endless where that is more than is followed.
    RedirectChain(u32),
    /// 307 to exactly what was asked for.
    RedirectLoop,
    /// What there is under this digest in the place of what was asked for, head and all: as where a tag has moved.
    Instead(Digest),
    /// 200 and a page for people.
    Html200,

    // Lies: everything is as it must be but the bytes.
    /// The right headers of a range, and a page for people as the body.
    Html206,
    /// One byte of the body is another.
    Flip(usize),
    /// The bytes of so many places later; the last are the first.
    Shifted(usize),
    /// Nothing but zeros.
    Zeros,
    /// The bytes of another blob of the registry, over and over where it is shorter.
    Swap(Digest),

    // While something is pushed.
    /// An upload takes so many bytes, and then the connection closes; the end of one is taken, and not answered.
    BreakBody(usize),
    /// An upload takes so many bytes, and then no more, and the connection stays open.
    StallBody(usize),
    /// An upload is forgotten.
    Lose,
    /// An upload loses so many bytes of what it has.
    Forget(usize),

    // Of the registry itself.
    /// All tokens given out so far are refused from now on, and the request goes its way.
    Revoke,
    /// All signed addresses given out so far are refused from now on, and the request goes its way.
    Expire,
}

impl Fault {
    /// Its kind in a word, as a person types it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Close => "close",
            Self::Garbage => "garbage",
            Self::Silence => "silence",
            Self::SlowHead(..) => "slow-head",
            Self::EndlessHead(..) => "endless-head",
            Self::HugeHeader(..) => "huge-header",
            Self::ManyHeaders(..) => "many-headers",
            Self::TwoLengths => "two-lengths",
            Self::TwiceTheSame(..) => "twice-the-same",
            Self::Header(..) => "header",
            Self::NoHeader(..) => "no-header",
            Self::Truncate(..) => "truncate",
            Self::ResetAt(..) => "reset-at",
            Self::Stall(..) => "stall",
            Self::Slow(..) => "slow",
            Self::Extra(..) => "extra",
            Self::NoLength => "no-length",
            Self::Chunked => "chunked",
            Self::ChunkedCut(..) => "chunked-cut",
            Self::Short(..) => "short",
            Self::Overlong(..) => "overlong",
            Self::Padded(..) => "padded",
            Self::IgnoreRange => "ignore-range",
            Self::Partial200 => "partial200",
            Self::Whole206 => "whole206",
            Self::Elsewhere(..) => "elsewhere",
            Self::Short206(..) => "short206",
            Self::Multipart => "multipart",
            Self::Status(..) => "status",
            Self::RetryAfter(..) => "retry-after",
            Self::RetryAt(..) => "retry-at",
            Self::Unauthorized => "unauthorized",
            Self::Redirect(..) => "redirect",
            Self::RedirectTo(..) => "redirect-to",
            Self::RedirectChain(..) => "redirect-chain",
            Self::RedirectLoop => "redirect-loop",
            Self::Instead(..) => "instead",
            Self::Html200 => "html200",
            Self::Html206 => "html206",
            Self::Flip(..) => "flip",
            Self::Shifted(..) => "shifted",
            Self::Zeros => "zeros",
            Self::Swap(..) => "swap",
            Self::BreakBody(..) => "break-body",
            Self::StallBody(..) => "stall-body",
            Self::Lose => "lose",
            Self::Forget(..) => "forget",
            Self::Revoke => "revoke",
            Self::Expire => "expire",
        }
    }
}

/// Which requests get which fault. The first rule that fits a request counts; one whose chance spares it leaves it to the next.
#[derive(Clone, Debug)]
pub struct Rule {
    pattern: Pattern,
    faults: Vec<Fault>,
    skip: usize,
    times: usize,
    chance: Option<Chance>,
    lasting: Option<Duration>,
    until: Option<Instant>,
    first_only: Option<HashSet<String>>,
}

#[derive(Clone, Debug)]
struct Chance {
    share: f64,
    state: u64,
}

impl Rule {
    /// Every request whose method, path and query (`PUT /v2/…`) contain `pattern`; where that has a `*`, which stands for
    /// anything, those that are as the whole of it says.
    pub fn always(pattern: impl Into<Pattern>, fault: Fault) -> Self {
        Self::times(pattern, usize::MAX, fault)
    }

    /// The next such request.
    pub fn once(pattern: impl Into<Pattern>, fault: Fault) -> Self {
        Self::times(pattern, 1, fault)
    }

    /// The next so many such requests.
    pub fn times(pattern: impl Into<Pattern>, times: usize, fault: Fault) -> Self {
        Self::new(pattern.into(), times, vec![fault])
    }

    /// A share of such requests, between 0 and 1: each gets one of `faults`. The same `seed` gives the same choices in the
    /// order of requests.
    pub fn mixture(
        pattern: impl Into<Pattern>,
        share: f64,
        seed: u64,
        faults: impl IntoIterator<Item = Fault>,
    ) -> Self {
        Self::new(pattern.into(), usize::MAX, faults.into_iter().collect()).sometimes(share, seed)
    }

    fn new(pattern: Pattern, times: usize, faults: Vec<Fault>) -> Self {
        let (lasting, until, chance, first_only) = (None, None, None, None);
        Self { pattern, faults, skip: 0, times, chance, lasting, until, first_only }
    }

    /// The same, but only after so many such requests have been answered well.
    #[must_use]
    pub fn after(self, skip: usize) -> Self {
        Self { skip, ..self }
    }

    /// The same, but only so many times.
    #[must_use]
    pub fn at_most(self, times: usize) -> Self {
        Self { times, ..self }
    }

    /// The same, but a share of the requests, between 0 and 1, which `seed` chooses.
    #[must_use]
    pub fn sometimes(self, share: f64, seed: u64) -> Self {
        Self { chance: Some(Chance { share, state: seed }), ..self }
    }

    /// The same, but only for so long after the first request that fits.
    #[must_use]
    pub fn lasting(self, time: Duration) -> Self {
        Self { lasting: Some(time), ..self }
    }

    /// The same, but of each path only the first request.
    #[must_use]
    pub fn first_of_each(self) -> Self {
        Self { first_only: Some(HashSet::new()), ..self }
    }

    /// Whether it ends signed addresses, so that it is for who gives bytes under them.
    pub fn is_for_a_storage(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault, Fault::Expire))
    }

    fn fits(&self, request: &str) -> bool {
        self.times > 0 && self.pattern.fits(request) && self.until.is_none_or(|until| Instant::now() < until)
    }

    /// Which of its faults it is that chance gives a request; `None` where it spares it.
    fn draw(&mut self) -> Option<usize> {
        match &mut self.chance {
            Some(chance) => chance.draw(self.faults.len()),
            None => Some(0),
        }
    }

    /// The fault that was drawn for a request that fits, where it gets one.
    fn fault(&mut self, path: &str, drawn: usize) -> Option<Fault> {
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        if let Some(lasting) = self.lasting.take() {
            self.until = Instant::now().checked_add(lasting);
        }
        if self.first_only.as_mut().is_some_and(|seen| !seen.insert(path.to_owned())) {
            return None;
        }
        self.times -= 1;
        self.faults.get(drawn).cloned()
    }
}

impl Chance {
    /// Which of `count` it is; `None` where none is due.
    fn draw(&mut self, count: usize) -> Option<usize> {
        const LARGEST: f64 = u32::MAX as f64;
        let number = self.next();
        let due = f64::from(u32::try_from(number >> 32).unwrap_or(u32::MAX)) < self.share * LARGEST;
        let count = u64::try_from(count).ok().filter(|count| due && *count > 0)?;
        usize::try_from((number & u64::from(u32::MAX)) % count).ok()
    }

    /// splitmix64, by Vigna.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// The rules of a registry.
#[derive(Debug, Default)]
pub(super) struct Rules {
    all: Vec<Rule>,
    /// How often each kind of fault was given.
    pub(super) given: BTreeMap<&'static str, usize>,
}

impl Rules {
    pub(super) fn add(&mut self, rule: Rule) {
        self.all.push(rule);
    }

    /// Takes all rules back; what was given stays counted.
    pub(super) fn clear(&mut self) {
        self.all.clear();
    }

    /// The fault for a request, from the first rule that fits; `request` is its method, path and query.
    pub(super) fn fault(&mut self, request: &str) -> Option<Fault> {
        let path = request.split('?').next().unwrap_or_default();
        let mut fitting = self.all.iter_mut().filter(|rule| rule.fits(request));
        let (rule, drawn) = fitting.find_map(|rule| rule.draw().map(|drawn| (rule, drawn)))?;
        let fault = rule.fault(path, drawn)?;
        *self.given.entry(fault.name()).or_default() += 1;
        Some(fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hits(rule: Rule, requests: &[&str]) -> Vec<bool> {
        let mut rules = Rules::default();
        rules.add(rule);
        requests.iter().map(|request| rules.fault(request).is_some()).collect()
    }

    #[test]
    fn a_rule_counts_the_requests_that_it_fits() {
        let requests = ["GET /a", "GET /b", "GET /a", "GET /a", "GET /a"];
        let rule = Rule::times("/a", 2, Fault::Close).after(1);
        assert_eq!(hits(rule, &requests), [false, false, true, true, false]);
    }

    #[test]
    fn of_each_path_the_first_request_is_hit() {
        let requests = ["GET /a?x", "GET /b", "GET /a?y", "GET /b"];
        let rule = Rule::always("/", Fault::Close).first_of_each();
        assert_eq!(hits(rule, &requests), [true, true, false, false]);
    }

    #[test]
    fn the_same_seed_makes_the_same_choices_and_about_the_share_asked_for() {
        let draw = |seed| {
            let faults = [Fault::Close, Fault::Reset, Fault::Garbage];
            let mut rules = Rules::default();
            rules.add(Rule::mixture("", 0.3, seed, faults));
            (0..1000).map(|_| rules.fault("GET /").map(|fault| format!("{fault:?}"))).collect::<Vec<_>>()
        };
        let first = draw(7);
        assert_eq!(first, draw(7));
        assert_ne!(first, draw(8));
        assert!((250..350).contains(&first.iter().flatten().count()));
        for kind in ["Close", "Reset", "Garbage"] {
            assert!(first.iter().flatten().filter(|one| *one == kind).count() > 60, "{kind}");
        }
    }

    #[test]
    fn what_the_chance_of_one_rule_spares_is_left_to_the_next() {
        let mut rules = Rules::default();
        rules.add(Rule::mixture("", 0.5, 1, [Fault::Close]));
        rules.add(Rule::always("", Fault::Reset));
        rules.add(Rule::always("", Fault::Garbage));
        for _ in 0..1000 {
            rules.fault("GET /").unwrap();
        }
        let given = |name| rules.given.get(name).copied().unwrap_or_default();
        assert_eq!((given("close") + given("reset"), given("garbage")), (1000, 0));
        assert!((400..600).contains(&given("close")), "{}", given("close"));
    }

    #[test]
    fn a_rule_with_a_time_is_over_after_it() {
        let rule = Rule::always("", Fault::Close).lasting(Duration::ZERO);
        assert_eq!(hits(rule, &["GET /", "GET /"]), [true, false]);
    }
}
