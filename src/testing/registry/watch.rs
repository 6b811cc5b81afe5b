//! Everything that was asked, and what was wrong about it: a client may meet every fault and must break no rule.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderName, RANGE};

use super::line::Answer;

/// More of the same request than this within [`STORM_TIME`] is a storm: pauses that double from a few hundredths of
/// a second make seven or eight, each of which may ask twice where an address that was just given is over.
const STORM: usize = 16;
const STORM_TIME: Duration = Duration::from_secs(1);

/// A request as it came in.
#[derive(Clone, Debug)]
pub struct Logged {
    /// When.
    pub at: Instant,
    /// `GET`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The header of that name, and so the others.
    pub content_range: Option<String>,
    #[allow(missing_docs, reason = "as the one above")]
    pub content_type: Option<String>,
    #[allow(missing_docs, reason = "as the one above")]
    pub range: Option<String>,
    #[allow(missing_docs, reason = "as the one above")]
    pub accept_encoding: Option<String>,
    #[allow(missing_docs, reason = "as the one above; a secret")]
    pub authorization: Option<String>,
}

impl Logged {
    pub(super) fn of(request: &Request) -> Self {
        let header = |name: HeaderName| {
            request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        Self {
            at: Instant::now(),
            method: request.method().to_string(),
            path: request.uri().path_and_query().map(ToString::to_string).unwrap_or_default(),
            content_range: header(CONTENT_RANGE),
            content_type: header(CONTENT_TYPE),
            range: header(RANGE),
            accept_encoding: header(ACCEPT_ENCODING),
            authorization: header(AUTHORIZATION),
        }
    }

    /// Method, path and range: what makes two requests the same. Of signed addresses the signature is left out.
    pub(super) fn key(&self) -> String {
        let path = self.path.split('?').next().unwrap_or_default();
        format!("{} {path} {}", self.method, self.range.as_deref().unwrap_or_default())
    }

    /// The same with the query: a chain of redirects may come by several times on its way.
    fn counted(&self) -> String {
        format!("{} {} {}", self.method, self.path, self.range.as_deref().unwrap_or_default())
    }

    fn asks(&self) -> bool {
        self.method == "GET" || self.method == "HEAD"
    }
}

/// A rule that a client broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Breach {
    /// Credentials came to the storage that blobs are redirected to.
    CredentialsElsewhere,
    /// The same was asked again before the time that `Retry-After` gave was over, by who had that answer.
    EarlyRetry,
    /// The same was asked more than sixteen times within a second.
    Storm,
    /// Several ranges in one request: some registries answer with the whole blob, some with an error.
    SeveralRanges,
    /// A request for stored bytes that allows them to be encoded: without `Accept-Encoding: identity`.
    MayBeEncoded,
    /// A token was asked for while the one before, for the same, was alive and had not been refused.
    TokenTooSoon,
    /// A signed address that had been refused was asked again.
    StaleAddress,
    /// A request of a push is not as the distribution specification wants it.
    Push,
}

/// A breach and the request that it was; a person reads it, so no credential is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which rule.
    pub breach: Breach,
    /// Method, path, range, and what else there is to say.
    pub request: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.breach, self.request)
    }
}

/// A wait that was asked for.
#[derive(Debug)]
struct Wait {
    until: Instant,
    answer: Arc<Answer>,
}

/// What a registry has seen.
#[derive(Debug, Default)]
pub(super) struct Watch {
    pub(super) log: Vec<Logged>,
    violations: Vec<Violation>,
    /// Until when the same request must not come again.
    waits: HashMap<String, Wait>,
    /// Those that came again all the same, each with the answer that it should have kept to.
    early: Vec<(Violation, Arc<Answer>)>,
    recent: HashMap<String, VecDeque<Instant>>,
}

impl Watch {
    /// Notes a request, and what can be seen in it alone or with those before it.
    pub(super) fn note(&mut self, logged: Logged) {
        let key = logged.key();
        if logged.range.as_ref().is_some_and(|range| range.contains(',')) {
            self.broken(Breach::SeveralRanges, &key);
        }
        let identity = |text: &String| text.trim().eq_ignore_ascii_case("identity");
        if logged.asks()
            && logged.path.contains("/blobs/")
            && !logged.accept_encoding.as_ref().is_some_and(identity)
        {
            self.broken(Breach::MayBeEncoded, &key);
        }
        if let Some(wait) = self.waits.get(&key)
            && let Some(left) = wait.until.checked_duration_since(logged.at)
        {
            let request = format!("{key}, {left:?} early");
            self.early.push((Violation { breach: Breach::EarlyRetry, request }, wait.answer.clone()));
        }
        if logged.asks() {
            self.count(&logged.counted(), logged.at);
        }
        self.log.push(logged);
    }

    /// The client is told to wait with this request, by `answer`.
    pub(super) fn told_to_wait(&mut self, key: String, wait: Duration, answer: Answer) {
        if let Some(until) = Instant::now().checked_add(wait) {
            self.waits.insert(key, Wait { until, answer: answer.into() });
        }
    }

    /// What clients did against the rules. Whether somebody came early is judged now, by what became of the answer: who hung
    /// up before it came knows nothing of a wait.
    pub(super) fn violations(&self) -> Vec<Violation> {
        let early = self.early.iter().filter(|(_, answer)| answer.may_be_taken());
        self.violations.iter().chain(early.map(|(violation, _)| violation)).cloned().collect()
    }

    /// What was asked for with this request was given, so that asking for the next like it is no asking again.
    pub(super) fn given(&mut self, logged: &Logged) {
        self.recent.remove(&logged.counted());
    }

    pub(super) fn broken(&mut self, breach: Breach, request: &str) {
        self.violations.push(Violation { breach, request: request.to_owned() });
    }

    fn count(&mut self, key: &str, at: Instant) {
        let recent = self.recent.entry(key.to_owned()).or_default();
        while recent.front().is_some_and(|first| at.duration_since(*first) > STORM_TIME) {
            recent.pop_front();
        }
        recent.push_back(at);
        if recent.len() > STORM {
            recent.clear();
            self.broken(Breach::Storm, key.split('?').next().unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::line::Cue;
    use super::*;

    fn request(range: Option<&str>, encoding: Option<&str>) -> Logged {
        let headers = [(RANGE, range), (ACCEPT_ENCODING, encoding)];
        let mut request = Request::builder().uri("/v2/a/blobs/sha256:00?signature=x");
        for (name, value) in headers.into_iter().filter_map(|(name, value)| Some((name, value?))) {
            request = request.header(name, value);
        }
        Logged::of(&request.body(axum::body::Body::empty()).unwrap())
    }

    fn breaches(watch: &Watch) -> Vec<Breach> {
        watch.violations().iter().map(|violation| violation.breach).collect()
    }

    #[test]
    fn a_careful_request_breaks_no_rule() {
        let mut watch = Watch::default();
        watch.note(request(Some("bytes=0-9"), Some("identity")));
        assert_eq!(breaches(&watch), []);
    }

    #[test]
    fn several_ranges_and_encodings_are_noticed() {
        let mut watch = Watch::default();
        watch.note(request(Some("bytes=0-9,20-29"), Some("gzip, identity")));
        watch.note(request(None, None));
        assert_eq!(breaches(&watch), [Breach::SeveralRanges, Breach::MayBeEncoded, Breach::MayBeEncoded]);
    }

    #[test]
    fn the_same_before_its_time_is_noticed_and_another_is_not() {
        let mut watch = Watch::default();
        let asked = request(Some("bytes=0-9"), Some("identity"));
        let cue = Cue::default();
        watch.told_to_wait(asked.key(), Duration::from_secs(100), cue.answer());
        watch.note(request(Some("bytes=10-19"), Some("identity")));
        assert_eq!(breaches(&watch), []);
        watch.note(asked);
        assert_eq!(breaches(&watch), [Breach::EarlyRetry]);
    }

    #[test]
    fn who_hung_up_before_the_answer_knows_of_no_wait_and_who_asks_on_does() {
        for (asks_on, expected) in [(false, vec![]), (true, vec![Breach::EarlyRetry])] {
            let (mut watch, cue) = (Watch::default(), Cue::default());
            let asked = request(Some("bytes=0-9"), Some("identity"));
            watch.told_to_wait(asked.key(), Duration::from_secs(100), cue.answer());
            if asks_on {
                cue.asked();
            }
            watch.note(asked);
            drop(cue);
            assert_eq!(breaches(&watch), expected);
        }
    }

    #[test]
    fn the_same_again_and_again_is_a_storm() {
        let mut watch = Watch::default();
        for _ in 0..STORM {
            watch.note(request(Some("bytes=0-9"), Some("identity")));
        }
        assert_eq!(breaches(&watch), []);
        watch.note(request(Some("bytes=0-9"), Some("identity")));
        assert_eq!(breaches(&watch), [Breach::Storm]);
    }

    #[test]
    fn what_is_given_each_time_is_no_storm() {
        let mut watch = Watch::default();
        for _ in 0..3 * STORM {
            let asked = request(None, Some("identity"));
            watch.note(asked.clone());
            watch.given(&asked);
        }
        assert_eq!(breaches(&watch), []);
    }
}
