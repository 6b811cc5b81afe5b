//! How long an address is good that a registry sends us to, as far as it says so. Values in, values out.
//!
//! A guess that saves a request that would be refused, and no promise: an address that is refused is asked for anew
//! whatever was told of it.

use std::time::{Duration, SystemTime};

use reqwest::header::{CACHE_CONTROL, DATE, EXPIRES, HeaderMap};
use url::Url;

/// The part of its life in which an address is not used any more: clocks differ, and requests take time.
const MARGIN: f64 = 0.1;
const LARGEST_MARGIN: Duration = Duration::from_secs(30);

/// For how long the address `url` may be used that an answer with these headers named; `None` where nothing is told.
///
/// Looks at what signed addresses of S3, Google, CloudFront and Azure have in their query, and at `Expires` and
/// `Cache-Control: max-age` of the answer (RFC 9111 §5). The shortest counts.
pub(super) fn life(url: &Url, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    // By the clock of who signs, where it is told: it is the one that counts.
    let now = date(headers.get(DATE)).unwrap_or(now);
    let told = [signed(url, now), expires(headers, now), max_age(headers)];
    let life = told.into_iter().flatten().min()?;
    Some(life.saturating_sub(life.mul_f64(MARGIN).min(LARGEST_MARGIN)))
}

fn signed(url: &Url, now: SystemTime) -> Option<Duration> {
    let value = |name: &str| {
        let mut pairs = url.query_pairs();
        pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.into_owned())
    };
    for family in ["X-Amz", "X-Goog"] {
        if let Some(seconds) = value(&format!("{family}-Expires")).and_then(|text| text.parse().ok()) {
            let life = Duration::from_secs(seconds);
            let began = value(&format!("{family}-Date")).and_then(|text| basic_date(&text));
            // From the future it is only a clock that differs.
            let old = began.and_then(|began| now.duration_since(began).ok()).unwrap_or_default();
            return Some(life.saturating_sub(old));
        }
    }
    if let Some(seconds) = value("Expires").and_then(|text| text.parse().ok()) {
        return left(SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?, now);
    }
    left(humantime::parse_rfc3339(&value("se")?).ok()?, now)
}

/// `20240131T235959Z`, as signatures have it.
fn basic_date(text: &str) -> Option<SystemTime> {
    let part = |at: std::ops::Range<usize>| text.get(at);
    let extended = format!(
        "{}-{}-{}T{}:{}:{}",
        part(0..4)?,
        part(4..6)?,
        part(6..8)?,
        part(9..11)?,
        part(11..13)?,
        part(13..16)?
    );
    humantime::parse_rfc3339(&extended).ok()
}

fn expires(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    left(date(headers.get(EXPIRES))?, now)
}

fn max_age(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(CACHE_CONTROL)?.to_str().ok()?.to_ascii_lowercase();
    let seconds = text.split(',').find_map(|part| part.trim().strip_prefix("max-age=")?.parse().ok())?;
    Some(Duration::from_secs(seconds))
}

/// Nothing where it is over already: that is more likely a clock than an answer in vain.
fn left(end: SystemTime, now: SystemTime) -> Option<Duration> {
    end.duration_since(now).ok().filter(|left| !left.is_zero())
}

fn date(value: Option<&reqwest::header::HeaderValue>) -> Option<SystemTime> {
    httpdate::parse_http_date(value?.to_str().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use reqwest::header::{HeaderName, HeaderValue};

    use super::*;

    fn told(query: &str, headers: &[(HeaderName, &'static str)]) -> Option<u64> {
        let url = Url::parse(&format!("https://cdn.example/blob?{query}")).unwrap();
        let headers: HeaderMap =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect();
        let now = humantime::parse_rfc3339("2024-02-03T04:05:06Z").unwrap();
        life(&url, &headers, now).map(|life| life.as_secs())
    }

    #[test]
    fn signed_addresses_of_each_family_tell_their_end() {
        assert_eq!(told("X-Amz-Date=20240203T040506Z&X-Amz-Expires=200", &[]), Some(180));
        assert_eq!(told("X-Amz-Date=20240203T040326Z&X-Amz-Expires=200", &[]), Some(90));
        assert_eq!(told("X-Goog-Date=20240203T040506Z&X-Goog-Expires=200", &[]), Some(180));
        assert_eq!(told("X-Amz-Expires=3600&X-Amz-Signature=x", &[]), Some(3570));
        assert_eq!(told("Expires=1706933206&Signature=x", &[]), Some(90));
        assert_eq!(told("sv=2020&se=2024-02-03T04%3A06%3A46Z&sig=x", &[]), Some(90));
        assert_eq!(told("X-Amz-Date=nonsense&X-Amz-Expires=200", &[]), Some(180));
    }

    #[test]
    fn headers_tell_it_too_and_the_shortest_counts() {
        assert_eq!(told("", &[(CACHE_CONTROL, "private, Max-Age=100")]), Some(90));
        assert_eq!(told("", &[(EXPIRES, "Sat, 03 Feb 2024 04:06:46 GMT")]), Some(90));
        assert_eq!(told("X-Amz-Expires=1000", &[(CACHE_CONTROL, "max-age=10")]), Some(9));
        assert_eq!(told("", &[]), None);
        assert_eq!(told("se=soon&Expires=x&X-Amz-Expires=-1", &[(CACHE_CONTROL, "no-store")]), None);
    }

    #[test]
    fn the_signers_clock_counts_and_what_seems_to_be_over_is_not_judged() {
        let date = (DATE, "Sat, 03 Feb 2024 05:00:00 GMT");
        assert_eq!(
            told("X-Amz-Date=20240203T050000Z&X-Amz-Expires=100", std::slice::from_ref(&date)),
            Some(90)
        );
        assert_eq!(told("Expires=1706933206", &[date]), None);
    }
}
