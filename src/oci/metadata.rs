//! What a writer says of one file in the `file.metadata+json` annotation, in every dialect met in the wild.
//!
//! Dialects differ in `name` (base name or path), `typeflag` (a number, or the ASCII code of tar's letter) and
//! in which keys there are; so each key is read for itself and whatever is not understood is left out.
//! Nothing here is trusted for more than how a file looks: sizes come from descriptors and archive headers.

use serde_json::Value;

/// What is said of a file; `None` for what is not said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileMetadata {
    /// Base name, path, or a category's name, as the dialect has it.
    pub name: Option<String>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Size of the file in bytes, uncompressed.
    pub size: Option<u64>,
    /// Modification time in seconds since 1970, fractions dropped downwards.
    pub mtime: Option<i64>,
    /// What kind of file it is.
    pub kind: Option<FileKind>,
}

/// What `typeflag` tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file: 0 or `'0'`.
    Regular,
    /// A folder: 5 or `'5'`.
    Directory,
    /// A symbolic link: 2 or `'2'`.
    Symlink,
}

impl FileMetadata {
    /// Reads the annotation's text; `None` where it is no JSON object. Keys of another type than expected are
    /// left out.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let Ok(Value::Object(object)) = serde_json::from_str(text) else { return None };
        let number = |key: &str| object.get(key).and_then(Value::as_u64);
        let string = |key: &str| object.get(key).and_then(Value::as_str);
        Some(Self {
            name: string("name").map(str::to_owned),
            mode: number("mode").and_then(|mode| u32::try_from(mode & 0o7777).ok()),
            size: number("size"),
            mtime: string("mtime").and_then(seconds),
            kind: number("typeflag").and_then(kind),
        })
    }
}

fn kind(typeflag: u64) -> Option<FileKind> {
    match typeflag {
        0 | 48 => Some(FileKind::Regular),
        5 | 53 => Some(FileKind::Directory),
        2 | 50 => Some(FileKind::Symlink),
        _ => None,
    }
}

/// Seconds since 1970 of an RFC 3339 time (`2026-11-23T17:56:15.887140332+08:00`), fractions dropped; `None`
/// for any other text.
#[must_use]
pub fn seconds(text: &str) -> Option<i64> {
    let (date, clock) = text.split_once(['T', 't', ' '])?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let zone_at = clock.find(['Z', 'z', '+', '-'])?;
    let (time, zone) = clock.split_at_checked(zone_at)?;
    let (whole, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [hour, minute, second] = numbers(whole, ':', [2, 2, 2])?;
    let sane =
        (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second <= 60;
    if !sane || fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(days(year, month, day) * 86_400 + hour * 3_600 + minute * 60 + second - offset(zone)?)
}

fn offset(zone: &str) -> Option<i64> {
    let sign = match zone.bytes().next()? {
        b'+' => 1,
        b'-' => -1,
        _ => return (zone.len() == 1).then_some(0),
    };
    let [hours, minutes] = numbers(zone.get(1..)?, ':', [2, 2])?;
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3_600 + minutes * 60))
}

fn numbers<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(between);
    let mut found = [0; N];
    for (slot, width) in found.iter_mut().zip(widths) {
        let part =
            parts.next().filter(|part| part.len() == width && part.bytes().all(|b| b.is_ascii_digit()))?;
        *slot = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

/// Days from 1970-01-01 in the Gregorian calendar: years counted from March, so that the leap day is last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_that_go_writes_is_read() {
        let text = r#"{"name":"a.bin","mode":420,"uid":0,"gid":0,"size":1000,"mtime":"2026-11-23T17:56:15.887140332Z","typeflag":0}"#;
        let metadata = FileMetadata::parse(text).unwrap();
        assert_eq!(metadata.name.as_deref(), Some("a.bin"));
        assert_eq!((metadata.mode, metadata.size), (Some(0o644), Some(1000)));
        assert_eq!((metadata.mtime, metadata.kind), (Some(1_795_456_575), Some(FileKind::Regular)));
    }

    #[test]
    fn typeflags_count_as_numbers_and_as_letters() {
        for (flag, kind) in [(0, FileKind::Regular), (48, FileKind::Regular), (5, FileKind::Directory)]
            .into_iter()
            .chain([(53, FileKind::Directory), (2, FileKind::Symlink), (50, FileKind::Symlink)])
        {
            assert_eq!(
                FileMetadata::parse(&format!(r#"{{"typeflag":{flag},"files":3}}"#)).unwrap().kind,
                Some(kind)
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_left_out() {
        let odd = r#"{"name":7,"mode":"rw","size":-1,"mtime":"yesterday","typeflag":99}"#;
        assert_eq!(FileMetadata::parse(odd), Some(FileMetadata::default()));
        for text in ["", "[]", "null", "{", "\"x\""] {
            assert_eq!(FileMetadata::parse(text), None, "{text}");
        }
    }

    #[test]
    fn times_with_offsets_and_before_1970_are_seconds() {
        for (text, expected) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1970-01-01T08:00:00+08:00", 0),
            ("1969-12-31T19:30:00.5-04:30", 0),
            ("2000-02-29T12:00:00Z", 951_825_600),
            ("2025-01-01T00:00:00Z", 1_735_689_600),
            ("1969-12-31T23:59:59Z", -1),
            ("0001-01-01T00:00:00Z", -62_135_596_800),
        ] {
            assert_eq!(seconds(text), Some(expected), "{text}");
        }
        for text in [
            "",
            "2025-13-01T00:00:00Z",
            "2025-01-01",
            "2025-01-01T00:00:00",
            "2025-01-01T00:00:00Zx",
            "2025-1-1T0:0:0Z",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
