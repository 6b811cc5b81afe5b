//! What a person or a program reads on standard output and standard error, and how numbers look there.
//!
//! A reader who has gone (`weightfs ls … | head`) is no error: the rest is not wanted.

use std::fmt::{Display, Write as _};
use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

use serde::Serialize;

use crate::error::{Error, Kind, Result};

/// A line on standard output.
///
/// # Errors
/// `Storage` where it cannot be written.
pub(super) fn line(text: impl Display) -> Result<()> {
    bytes(format!("{text}\n").as_bytes()).map(drop)
}

/// A value as JSON on standard output, followed by a line break.
///
/// # Errors
/// `Storage` where it cannot be written.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).map_err(|error| unwritten(error.into()))?;
    line(text)
}

/// Whether anybody still reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Somebody may.
    Here,
    /// Nobody does.
    Gone,
}

/// Bytes on standard output, at once.
///
/// # Errors
/// `Storage` where they cannot be written.
pub(super) fn bytes(bytes: &[u8]) -> Result<Reader> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Here),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(unwritten(error)),
    }
}

fn unwritten(error: io::Error) -> Error {
    Error::from_source(Kind::Storage, "cannot write the output", error)
}

/// A line on standard error: `weightfs: …`. Where even that fails there is nobody to tell.
pub(super) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "weightfs: {}", safe(&text.to_string()));
}

/// Text from outside on a terminal: control characters are spelled out, so that it can't pretend to be ours.
pub(super) fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_control() {
            true => out.extend(letter.escape_default()),
            false => out.push(letter),
        }
    }
    out
}

/// A size for people: `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    bytesize::ByteSize::b(bytes).display().iec().to_string()
}

/// So many of a thing, named by its singular: `1 file`, `2 indexes`.
pub(super) fn count(number: impl TryInto<u64>, thing: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {thing}"),
        number if thing.ends_with('x') => format!("{number} {thing}es"),
        number => format!("{number} {thing}s"),
    }
}

/// A share in percent, rounded down, so that `100 %` says that all of it is there. All of nothing is all.
pub(super) fn percent(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part).saturating_mul(100).checked_div(u128::from(whole)).unwrap_or(100);
    format!("{} %", hundredths.min(100))
}

/// Seconds with milliseconds: `0.123 s`.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

/// A time in seconds since 1970 as RFC 3339 in UTC; `-` for 0, which means unknown. What no calendar of four digits
/// has stays a number.
pub(super) fn time(since_1970: i64) -> String {
    const YEAR_10000: u64 = 253_402_300_800;
    match u64::try_from(since_1970) {
        Ok(0) => "-".to_owned(),
        Ok(seconds) if seconds < YEAR_10000 => match UNIX_EPOCH.checked_add(Duration::from_secs(seconds)) {
            Some(time) => humantime::format_rfc3339_seconds(time).to_string(),
            None => since_1970.to_string(),
        },
        Ok(_) | Err(_) => since_1970.to_string(),
    }
}

/// Rows under heads, in columns as wide as they need to be; numbers are not told from words.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max())
        .map(Option::unwrap_or_default)
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:<width$}  ", width = *width);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text.pop();
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_shares_and_times_read_well() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(3 << 29), "1.5 GiB");
        assert_eq!(percent(0, 0), "100 %");
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(u64::MAX, u64::MAX), "100 %");
        assert_eq!(seconds(Duration::from_millis(123)), "0.123 s");
    }

    #[test]
    fn one_thing_is_not_said_to_be_several() {
        assert_eq!(count(1_u64, "index"), "1 index");
        assert_eq!(count(2_usize, "index"), "2 indexes");
        assert_eq!((count(0_u64, "file"), count(1_u64, "file")), ("0 files".to_owned(), "1 file".to_owned()));
    }

    #[test]
    fn a_time_that_no_calendar_has_stays_a_number() {
        assert_eq!(time(0), "-");
        assert_eq!(time(1), "1970-01-01T00:00:01Z");
        assert_eq!(time(-5), "-5");
        assert_eq!(time(i64::MAX), i64::MAX.to_string());
        assert_eq!(time(253_402_300_799), "9999-12-31T23:59:59Z");
        assert_eq!(time(253_402_300_800), "253402300800");
    }

    #[test]
    fn control_characters_from_outside_are_spelled_out() {
        assert_eq!(safe("a\u{1b}[2Jb\nc"), "a\\u{1b}[2Jb\\nc");
        assert_eq!(safe("modèle"), "modèle");
    }

    #[test]
    fn a_table_has_columns() {
        let rows = [vec!["A".into(), "B".into()], vec!["long".into(), "x".into()]];
        assert_eq!(table(&rows), "A     B\nlong  x");
        assert_eq!(table(&[]), "");
    }
}
