//! What a registry's answer means: its status, its headers, its length. Values in, values out.
//!
//! Nothing is sent from here. Each rule is that of RFC 9110 or of the OCI distribution specification, applied
//! without mercy: a range is the range asked for, to the byte, or it is an error.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use reqwest::header::{
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER,
};
use reqwest::{Response, StatusCode};
use tokio::time::timeout;
use url::Url;

use super::reach::{NoAddress, OutOfReach};
use super::tls;
use crate::error::{Error, Kind, Result};
use crate::range::StoredRange;
use crate::repository::ByteStream;

/// How much of an error page is read for its message.
const ERROR_BODY_LIMIT: usize = 64 << 10;
/// How much of a registry's message is shown.
const MESSAGE_LIMIT: usize = 300;
/// The longest wait that a registry may ask for and be believed.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What an answer to a request for a range brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// This range: the one asked for, or the first bytes of it.
    Range(StoredRange),
    /// The whole blob.
    Whole,
}

/// Accepts the answer to a request for `range` of a blob of `size` bytes, or says what is wrong with it.
pub(super) fn given(status: StatusCode, headers: &HeaderMap, range: StoredRange, size: u64) -> Result<Given> {
    let whole = StoredRange::new(0, size);
    let given = match status {
        StatusCode::PARTIAL_CONTENT => Given::Range(given_range(headers, range, size)?),
        StatusCode::OK if range == whole => Given::Range(range),
        StatusCode::OK => Given::Whole,
        other => return Err(protocol(format!("{other} where 206 Partial Content was due"))),
    };
    check_encoding(headers)?;
    let due = if let Given::Range(given) = given { given.len() } else { size };
    match one(headers, &CONTENT_LENGTH)? {
        Some(length) if length.parse() != Ok(due) => {
            Err(protocol(format!("Content-Length {length:?} where {due} bytes are due")))
        }
        _ => Ok(given),
    }
}

/// The range of a 206: it begins where it must, and may end early (RFC 9110 §15.3.7).
fn given_range(headers: &HeaderMap, range: StoredRange, size: u64) -> Result<StoredRange> {
    let Some(given) = one(headers, &CONTENT_RANGE)? else {
        let several = one(headers, &CONTENT_TYPE)?.is_some_and(|form| form.starts_with("multipart/"));
        return Err(protocol(match several {
            true => "206 Partial Content with several parts where one range was asked for",
            false => "206 Partial Content without Content-Range",
        }));
    };
    let parsed = content_range(&given).filter(|(found, total)| {
        found.start() == range.start() && range.covers(*found) && !found.is_empty() && *total == size
    });
    let (found, _) = parsed
        .ok_or_else(|| protocol(format!("Content-Range {given:?} where \"bytes {range}/{size}\" is due")))?;
    Ok(found)
}

/// `bytes FIRST-LAST/TOTAL`; `None` for every other form, those of an unknown total among them.
fn content_range(text: &str) -> Option<(StoredRange, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?;
    let (first, last, total): (u64, u64, u64) = (number(first)?, number(last)?, number(total)?);
    (first <= last).then_some((StoredRange::new(first, last.checked_add(1)?), total))
}

/// Refuses bytes that are encoded: nobody asked for it, and a range of them means nothing.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<()> {
    match one(headers, &CONTENT_ENCODING)? {
        Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
            Err(protocol(format!("Content-Encoding {encoding:?}, which nobody asked for")))
        }
        _ => Ok(()),
    }
}

/// The value of a header, cleaned for printing; `None` where it is missing. Twice the same is once.
pub(super) fn one(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.any(|other| Some(other) != first) {
        return Err(protocol(format!("more than one {name}")));
    }
    Ok(first.map(|value| clean(&String::from_utf8_lossy(value.as_bytes()))))
}

/// An error for an answer that breaks the rules.
pub(super) fn protocol(doing: impl Into<String>) -> Error {
    Error::new(Kind::Protocol, doing)
}

/// The error that a status other than success means, with the registry's own words.
pub(super) async fn refusal(response: Response, stall: Duration) -> Error {
    refused(response, stall).await.error
}

/// A refusal in its parts, for who tells more cases apart than [`Kind`] does.
pub(super) struct Refused {
    pub(super) status: StatusCode,
    pub(super) error: Error,
    /// The registry's error codes (distribution specification, "Error codes").
    pub(super) codes: Vec<String>,
    /// Whether it says that its disk is full: it has no code for that.
    pub(super) no_room: bool,
}

/// What a status other than success means.
pub(super) async fn refused(response: Response, stall: Duration) -> Refused {
    let (status, wait) = (response.status(), retry_after(response.headers(), SystemTime::now()));
    let words = words(response, stall).await.unwrap_or_default();
    let doing = words.text.map_or_else(|| status.to_string(), |words| format!("{status}: {words}"));
    let error = words.plainly.unwrap_or_else(|| Error::new(kind_of(status), doing));
    let error = match error.kind() {
        Kind::NotFound => error.hint(
            "check repository and tag ('latest' is meant where none is typed); a private one may be said not to exist: \
             run 'weightfs login'",
        ),
        _ => error,
    };
    let error = wait.map_or(error.clone(), |wait| error.retry_after(wait));
    let no_room = words.no_room || status == StatusCode::INSUFFICIENT_STORAGE;
    Refused { status, error, codes: words.codes, no_room }
}

fn kind_of(status: StatusCode) -> Kind {
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            Kind::Denied
        }
        StatusCode::NOT_FOUND | StatusCode::GONE => Kind::NotFound,
        StatusCode::TOO_MANY_REQUESTS => Kind::Throttled,
        StatusCode::REQUEST_TIMEOUT => Kind::Broken,
        status if status.is_server_error() => Kind::Broken,
        _ => Kind::Protocol,
    }
}

/// `Retry-After` (RFC 9110 §10.2.3) in seconds or as a date; nonsense counts as not given.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default(),
    };
    Some(wait.min(LONGEST_WAIT))
}

#[derive(serde::Deserialize)]
struct Errors {
    errors: Vec<OneError>,
}

#[derive(serde::Deserialize)]
struct OneError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// What an answer other than success says of itself.
#[derive(Default)]
struct Words {
    text: Option<String>,
    codes: Vec<String>,
    no_room: bool,
    /// That it should have been asked with TLS.
    plainly: Option<Error>,
}

/// The `errors[]` of a registry's answer (distribution specification, "Error codes").
async fn words(response: Response, stall: Duration) -> Option<Words> {
    let status = response.status();
    let body = limited(response, ERROR_BODY_LIMIT, stall).await.ok()?;
    let no_room = String::from_utf8_lossy(&body).to_ascii_lowercase().contains("no space left");
    let Ok(errors) = serde_json::from_slice::<Errors>(&body) else {
        let plainly = tls::asked_plainly(status, &String::from_utf8_lossy(&body));
        return Some(Words { no_room, plainly, ..Words::default() });
    };
    let codes = errors.errors.iter().map(|one| one.code.clone()).collect();
    let text = |one: OneError| if one.message.is_empty() { one.code } else { one.message };
    let words: Vec<_> = errors.errors.into_iter().take(4).map(text).collect();
    let text = Some(clean(&words.join(", "))).filter(|words| !words.is_empty());
    Some(Words { text, codes, no_room, plainly: None })
}

/// The same text without control characters and not too long: it comes from outside and goes to a terminal.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MESSAGE_LIMIT).collect()
}

/// The whole body, at most `limit` bytes.
pub(super) async fn limited(response: Response, limit: usize, stall: Duration) -> Result<Bytes> {
    let mut body = pieces(response, stall);
    let mut all = Vec::new();
    while let Some(piece) = body.next().await {
        let piece = piece?;
        if all.len().saturating_add(piece.len()) > limit {
            return Err(protocol(format!("the answer is longer than {limit} bytes")));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.into())
}

/// The body as it comes, or `Broken` where nothing comes for `stall`. No piece is empty.
fn pieces(response: Response, stall: Duration) -> BoxStream<'static, Result<Bytes>> {
    stream::try_unfold(response, move |mut response| async move {
        match timeout(stall, next_piece(&mut response)).await {
            Ok(Ok(piece)) => Ok(piece.map(|piece| (piece, response))),
            Ok(Err(error)) => Err(transport(error)),
            Err(_) => Err(Error::new(Kind::Broken, format!("no byte came for {} s", stall.as_secs_f32()))),
        }
    })
    .boxed()
}

/// The next bytes; a frame without any is no sign of life.
async fn next_piece(response: &mut Response) -> reqwest::Result<Option<Bytes>> {
    loop {
        match response.chunk().await? {
            Some(piece) if piece.is_empty() => tokio::task::consume_budget().await,
            piece => return Ok(piece),
        }
    }
}

/// The body, exactly `len` bytes of it.
///
/// The last piece is given only once the body has ended, so that a body that is too long gives no answer
/// that looks right, and so that its connection can be used again.
pub(super) fn exactly(response: Response, len: u64, stall: Duration) -> ByteStream {
    let start = (pieces(response, stall), len);
    stream::try_unfold(start, |(mut body, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let short = || Error::new(Kind::Broken, format!("the body ended {left} bytes early"));
        let piece = body.next().await.unwrap_or_else(|| Err(short()))?;
        let left =
            u64::try_from(piece.len()).ok().and_then(|got| left.checked_sub(got)).ok_or_else(too_long)?;
        if left == 0 {
            ended(&mut body).await?;
        }
        Ok(Some((piece, (body, left))))
    })
    .boxed()
}

async fn ended(body: &mut BoxStream<'static, Result<Bytes>>) -> Result<()> {
    while let Some(piece) = body.next().await {
        if !piece?.is_empty() {
            return Err(too_long());
        }
    }
    Ok(())
}

fn too_long() -> Error {
    protocol("the body is longer than what was asked for")
}

/// The kind of a failure below HTTP. The URL is left out of its text, since its query may be a signature.
pub(super) fn transport(error: reqwest::Error) -> Error {
    if let Some(final_one) = tls::failure(&error) {
        return final_one;
    }
    if let Some(why) = std::error::Error::source(&error).and_then(no_address) {
        return why;
    }
    let (kind, doing) = if error.is_connect() {
        (Kind::Unreachable, "no connection")
    } else if error.is_builder() {
        (Kind::Invalid, "no request can be made")
    } else {
        (Kind::Broken, "the connection failed")
    };
    Error::new(kind, format!("{doing}: {}", causes(&error.without_url())))
}

/// The error of a host without an address that may be asked.
pub(super) fn unreached(why: &(dyn std::error::Error + 'static)) -> Error {
    no_address(why).unwrap_or_else(|| Error::new(Kind::Unreachable, format!("no connection: {why}")))
}

/// What it means that a name has no address, or none within reach, where that is the error or its cause.
fn no_address(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(out) = error.downcast_ref::<OutOfReach>() {
            return Some(protocol(out.to_string()).hint(OutOfReach::HINT));
        }
        if let Some(unknown) = error.downcast_ref::<NoAddress>() {
            return Some(Error::new(Kind::Unreachable, unknown.to_string()));
        }
        cause = error.source();
    }
    None
}

/// The causes beneath an error of the HTTP client; its own sentence adds nothing for a person.
pub(super) fn causes(error: &reqwest::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        let text = clean(&error.to_string());
        if !words.contains(&text) {
            words.push(text);
        }
        cause = error.source();
    }
    if words.is_empty() { error.to_string() } else { words.join(": ") }
}

/// A URL as it may be shown: its query, which may be a signature, is left out.
pub(super) fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let query = url.query().map(|_| "?…").unwrap_or_default();
    clean(&format!("{}://{}{port}{}{query}", url.scheme(), url.host_str().unwrap_or_default(), url.path()))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(pairs: &[(HeaderName, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_str(value).unwrap())).collect()
    }

    fn checked(status: u16, pairs: &[(HeaderName, &str)]) -> Result<Given> {
        let status = StatusCode::from_u16(status).unwrap();
        given(status, &headers(pairs), StoredRange::new(10, 20), 100)
    }

    #[test]
    fn only_the_range_asked_for_or_its_beginning_is_accepted() {
        let all = Given::Range(StoredRange::new(10, 20));
        assert_eq!(checked(206, &[(CONTENT_RANGE, "bytes 10-19/100")]).unwrap(), all);
        assert_eq!(checked(206, &[(CONTENT_RANGE, "bytes 10-19/100"), (CONTENT_LENGTH, "10")]).unwrap(), all);
        let less = checked(206, &[(CONTENT_RANGE, "bytes 10-18/100"), (CONTENT_LENGTH, "9")]).unwrap();
        assert_eq!(less, Given::Range(StoredRange::new(10, 19)));
        assert!(checked(206, &[(CONTENT_RANGE, "bytes 10-18/100"), (CONTENT_LENGTH, "10")]).is_err());
        for wrong in [
            "bytes 9-19/100",
            "bytes 11-19/100",
            "bytes 10-20/100",
            "bytes 10-9/100",
            "bytes 10-19/101",
            "bytes 10-19/*",
            "bytes */100",
            "bytes +10-19/100",
            "bytes 10-18446744073709551615/100",
            "items 10-19/100",
            "",
        ] {
            assert_eq!(
                checked(206, &[(CONTENT_RANGE, wrong)]).unwrap_err().kind(),
                Kind::Protocol,
                "{wrong}"
            );
        }
        assert_eq!(checked(206, &[]).unwrap_err().kind(), Kind::Protocol);
        let several = checked(206, &[(CONTENT_TYPE, "multipart/byteranges; boundary=x")]).unwrap_err();
        assert!(several.to_string().contains("several parts"), "{several}");
        let right = (CONTENT_RANGE, "bytes 10-19/100");
        assert!(checked(206, &[right.clone(), (CONTENT_LENGTH, "11")]).is_err());
        assert!(checked(206, &[right.clone(), (CONTENT_ENCODING, "gzip")]).is_err());
        assert!(checked(206, &[right, (CONTENT_ENCODING, "identity")]).is_ok());
        assert!(checked(204, &[]).is_err());
    }

    #[test]
    fn a_whole_answer_is_told_apart_and_has_the_blobs_length() {
        assert_eq!(checked(200, &[(CONTENT_LENGTH, "100")]).unwrap(), Given::Whole);
        assert_eq!(checked(200, &[]).unwrap(), Given::Whole);
        assert!(checked(200, &[(CONTENT_LENGTH, "10")]).is_err(), "a part under the wrong status");
        assert!(checked(200, &[(CONTENT_ENCODING, "gzip")]).is_err());
        let all = StoredRange::new(0, 100);
        let whole = |length| given(StatusCode::OK, &headers(&[(CONTENT_LENGTH, length)]), all, 100);
        assert_eq!(whole("100").unwrap(), Given::Range(all));
        assert!(whole("99").is_err());
    }

    #[test]
    fn a_wait_is_read_as_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let wait = |text| retry_after(&headers(&[(RETRY_AFTER, text)]), now);
        assert_eq!(wait("7"), Some(Duration::from_secs(7)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:49:47 GMT"), Some(Duration::from_secs(10)));
        assert_eq!(wait("Sun, 06 Nov 1994 08:40:00 GMT"), Some(Duration::ZERO));
        assert_eq!(wait("99999999999"), Some(LONGEST_WAIT));
        assert_eq!(wait("soon"), None);
    }

    #[test]
    fn a_url_is_shown_without_its_signature() {
        let url = Url::parse("https://user:pw@cdn.example:444/blob?X-Amz-Signature=abc#f").unwrap();
        assert_eq!(shown(&url), "https://cdn.example:444/blob?…");
    }

    #[test]
    fn words_from_outside_bring_no_control_characters() {
        assert_eq!(clean("a\x1b[31mb\nc"), "a[31mbc");
        assert_eq!(clean(&"x".repeat(1000)).len(), MESSAGE_LIMIT);
    }
}
