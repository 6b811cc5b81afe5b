//! The faults, one a row, and what each may cost.

use std::time::Duration;

use axum::http::header::{CONTENT_ENCODING, CONTENT_RANGE};
use weightfs::oci::Digest;
use weightfs::testing::registry::Fault;

/// What a reader may see of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Nothing, even where it happens every time: the answer is legal, or brings some bytes each time.
    Harmless,
    /// Nothing where it passes, an error where it stays.
    Passing,
    /// Nothing where it passes; where it stays it is chance whether some bytes come each time.
    Lossy,
    /// Nothing where it happens once, and an error soon where it happens again: it is a refusal, and asking on would be
    /// importunate.
    Once,
    /// The same; and only a digest can tell.
    Lie,
}

use Fate::{Harmless, Lie, Lossy, Once, Passing};

/// Where the fault happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// In the registry, which gives the bytes itself.
    Registry,
    /// In the storage that the registry sends its readers to.
    Storage,
    /// In a registry that wants a token.
    Door,
}

use At::{Door, Registry, Storage};

/// A fault, where it happens and what it may cost.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) fault: Fault,
    pub(super) at: At,
    pub(super) fate: Fate,
}

/// How many of the [`TAIL`](super::setting::TAIL) bytes come before a body breaks.
const PART: usize = 8_000;

/// Every kind of fault that shows. Ranges in headers are those of the second chunk of a file of the matrix.
pub(super) fn rows() -> Vec<Row> {
    [connection(), head(), body(), other(), statuses(), redirects(), storage(), door()].concat()
}

/// Those that the mixture is made of: a reader sees none of them as long as they pass. Of those that ask everybody to wait
/// there is one, or the mixture would be little else.
pub(super) fn passing() -> Vec<Fault> {
    let at_registry = |row: &Row| row.at == Registry && matches!(row.fate, Harmless | Passing | Lossy);
    let waits = |fault: &Fault| matches!(fault, Fault::RetryAfter(..) | Fault::RetryAt(..));
    let faults = rows().into_iter().filter(at_registry).map(|row| row.fault);
    faults.filter(|fault| !waits(fault)).chain([Fault::RetryAfter(429, "1")]).collect()
}

/// Those that only a digest can tell; `other` is a blob that the bytes may come from.
pub(super) fn lies(other: Digest) -> Vec<Row> {
    rows_of(Registry, Lie, [Fault::Flip(77), Fault::Shifted(1), Fault::Zeros, Fault::Swap(other)])
}

fn rows_of(at: At, fate: Fate, faults: impl IntoIterator<Item = Fault>) -> Vec<Row> {
    faults.into_iter().map(|fault| Row { fault, at, fate }).collect()
}

fn connection() -> Vec<Row> {
    rows_of(Registry, Passing, [Fault::Reset, Fault::Close, Fault::Garbage, Fault::Silence])
}

fn head() -> Vec<Row> {
    let harmless = [Fault::TwiceTheSame(CONTENT_RANGE), Fault::SlowHead(Duration::from_millis(2))];
    let passing = [
        Fault::EndlessHead(Duration::from_millis(20)),
        Fault::HugeHeader(1_000_000),
        Fault::ManyHeaders(1_000),
        Fault::TwoLengths,
        Fault::Header(CONTENT_RANGE, "bytes 0-19999/1068576"),
        Fault::Header(CONTENT_RANGE, "bytes 1048576-1068575/*"),
        Fault::Header(CONTENT_RANGE, "bytes 1048576-1068575/1068577"),
        Fault::Header(CONTENT_RANGE, "bytes */1068576"),
        Fault::Header(CONTENT_RANGE, "nonsense"),
        Fault::NoHeader(CONTENT_RANGE),
        Fault::Header(CONTENT_ENCODING, "gzip"),
    ];
    [rows_of(Registry, Harmless, harmless), rows_of(Registry, Passing, passing)].concat()
}

fn body() -> Vec<Row> {
    let harmless = [
        Fault::Truncate(PART),
        Fault::Stall(PART),
        Fault::Slow(20, Duration::from_millis(10)),
        Fault::Extra(50),
        Fault::NoLength,
        Fault::Chunked,
    ];
    let passing = [
        Fault::Truncate(0),
        Fault::ResetAt(0),
        Fault::Stall(0),
        Fault::ChunkedCut(0),
        Fault::ChunkedCut(PART),
        Fault::Short(super::setting::TAIL),
        Fault::Overlong(1),
        Fault::Overlong(100_000),
        Fault::Padded(1),
    ];
    [
        rows_of(Registry, Harmless, harmless),
        rows_of(Registry, Passing, passing),
        rows_of(Registry, Lossy, [Fault::ResetAt(PART)]),
    ]
    .concat()
}

fn other() -> Vec<Row> {
    let harmless = [Fault::IgnoreRange, Fault::Short206(5_000)];
    let passing = [
        Fault::Partial200,
        Fault::Whole206,
        Fault::Elsewhere(4_096),
        Fault::Multipart,
        Fault::Html200,
        Fault::Html206,
    ];
    [rows_of(Registry, Harmless, harmless), rows_of(Registry, Passing, passing)].concat()
}

fn statuses() -> Vec<Row> {
    let passing = [204, 304, 400, 408, 416, 500, 502, 503, 504].map(Fault::Status);
    let waits = [
        Fault::RetryAfter(429, "1"),
        Fault::RetryAfter(503, "1"),
        Fault::RetryAt(429, Duration::from_secs(2)),
        Fault::RetryAt(503, Duration::from_secs(2)),
    ];
    let refusals = [403, 404, 410].map(Fault::Status);
    [
        rows_of(Registry, Passing, passing),
        rows_of(Registry, Passing, waits),
        rows_of(Registry, Once, refusals),
        rows_of(Registry, Once, [Fault::Unauthorized]),
    ]
    .concat()
}

fn redirects() -> Vec<Row> {
    let harmless = [Fault::RedirectChain(3)];
    let passing = [
        Fault::RedirectChain(20),
        Fault::RedirectLoop,
        Fault::RedirectTo("file:///etc/passwd"),
        Fault::RedirectTo("http://user:password@127.0.0.1/"),
        Fault::RedirectTo("http://"),
        Fault::RedirectTo("http://169.254.169.254/latest/meta-data/"),
        Fault::RedirectTo("http://[fe80::1]/latest/meta-data/"),
        Fault::RedirectTo("ftp://127.0.0.1/"),
        Fault::RedirectTo("http://127.0.0.1:1/nobody-there"),
    ];
    [rows_of(Registry, Harmless, harmless), rows_of(Registry, Passing, passing)].concat()
}

/// A signature that is over answers 400, 401 or 403; the registry knows a new address. A storage that is a moment behind
/// answers 403, 404 or 410.
fn storage() -> Vec<Row> {
    let passing = [
        Fault::Status(400),
        Fault::Status(500),
        Fault::Reset,
        Fault::Truncate(0),
        Fault::RetryAfter(429, "1"),
        Fault::Html200,
    ];
    let refusals = [401, 403, 404, 410].map(Fault::Status);
    [
        rows_of(Storage, Harmless, [Fault::Truncate(PART)]),
        rows_of(Storage, Passing, passing),
        rows_of(Storage, Once, refusals),
        rows_of(Storage, Once, [Fault::Expire]),
    ]
    .concat()
}

/// Tokens that end at once are asked for anew; where that helps nobody, the registry means it.
fn door() -> Vec<Row> {
    let passing = [Fault::Status(503), Fault::Reset, Fault::RetryAfter(429, "1")];
    [rows_of(Door, Once, [Fault::Revoke, Fault::Unauthorized]), rows_of(Door, Passing, passing)].concat()
}
