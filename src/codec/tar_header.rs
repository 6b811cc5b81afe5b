//! What stands around one file in a tar archive of it alone, byte for byte as Go's `archive/tar` writes it.
//!
//! The counterpart of [`tar`](super::tar), for those who pack: USTAR where name and size fit it, else PAX, so that an
//! archive made here equals the one that modctl makes of the same file by root.

use super::tar::BLOCK;

/// The largest size that eleven octal digits hold, plus one: 8 GiB.
const OCTAL_LIMIT: u64 = 1 << 33;

/// The size of the name field.
const NAME: usize = 100;

/// The size of the prefix field.
const PREFIX: usize = 155;

/// The headers of a regular file of user and group 0: one block, or three and more where an extension is needed.
///
/// `mtime` is in seconds since 1970 and is less than 8 Gi, beyond which 0 is written.
#[must_use]
pub fn headers(path: &str, size: u64, mode: u32, mtime: u64) -> Vec<u8> {
    let fits = path.is_ascii() && (path.len() <= NAME || split(path).is_some());
    if fits && size < OCTAL_LIMIT {
        let (prefix, name) = split(path).unwrap_or(("", path));
        return Block::new(name.as_bytes(), b'0')
            .of_file(size, mode, mtime)
            .put(345, prefix.as_bytes())
            .finish();
    }
    let mut records = String::new();
    if !path.is_ascii() || path.len() > NAME {
        records += &record("path", path);
    }
    if size >= OCTAL_LIMIT {
        records += &record("size", &size.to_string());
    }
    let mut bytes = extension(path, records.as_bytes());
    bytes.extend(Block::new(cut(&ascii(path)), b'0').of_file(size, mode, mtime).finish());
    bytes
}

/// How many zeros follow a file of `size` bytes: to the end of its last block, and the two blocks that end an archive.
#[must_use]
pub fn tail(size: u64) -> u64 {
    (BLOCK - size % BLOCK) % BLOCK + 2 * BLOCK
}

/// The extended header, as a member of its own.
fn extension(path: &str, records: &[u8]) -> Vec<u8> {
    let path = ascii(path);
    let name = match path.rsplit_once('/') {
        Some((folder, base)) => format!("{folder}/PaxHeaders.0/{base}"),
        None => format!("PaxHeaders.0/{path}"),
    };
    let name = name.get(..NAME).unwrap_or(&name).trim_end_matches('/');
    let size = u64::try_from(records.len()).unwrap_or(u64::MAX);
    let mut bytes = Block::new(name.as_bytes(), b'x').numbers(size, 0, 0).finish();
    bytes.extend(records);
    let padding = (BLOCK - size % BLOCK) % BLOCK;
    bytes.extend(std::iter::repeat_n(0, usize::try_from(padding).unwrap_or(0)));
    bytes
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

/// Prefix and name of a path too long for the name field, parted at the last slash that will do.
fn split(path: &str) -> Option<(&str, &str)> {
    if path.len() <= NAME {
        return None;
    }
    let at = path.get(..path.len().min(PREFIX + 1))?.rfind('/')?;
    let (prefix, name) = (path.get(..at)?, path.get(at + 1..)?);
    (!prefix.is_empty() && !name.is_empty() && name.len() <= NAME).then_some((prefix, name))
}

/// The path for those who read no extensions: without the letters that ASCII lacks.
fn ascii(path: &str) -> String {
    path.chars().filter(char::is_ascii).collect()
}

/// What of a name fits its field; readers take a slash at its end for a folder.
fn cut(name: &str) -> &[u8] {
    let cut = name.as_bytes().get(..NAME).unwrap_or(name.as_bytes());
    cut.strip_suffix(b"/").unwrap_or(cut)
}

/// A header block in the making.
struct Block(Vec<u8>);

impl Block {
    fn new(name: &[u8], typeflag: u8) -> Self {
        let block = Self(vec![0; usize::try_from(BLOCK).unwrap_or(512)]);
        block.put(0, name).put(156, &[typeflag]).put(257, b"ustar\x0000")
    }

    /// Owner and devices as Go fills them in for a file of root.
    fn of_file(self, size: u64, mode: u32, mtime: u64) -> Self {
        self.numbers(size, mode, mtime)
            .put(265, b"root")
            .put(297, b"root")
            .put(329, b"0000000\0")
            .put(337, b"0000000\0")
    }

    /// Mode, owner, size and time; a number that does not fit is written as 0, and stands in an extension.
    fn numbers(self, size: u64, mode: u32, mtime: u64) -> Self {
        let fitting = |number: u64| if number < OCTAL_LIMIT { number } else { 0 };
        self.put(100, format!("{mode:07o}\0").as_bytes())
            .put(108, b"0000000\0")
            .put(116, b"0000000\0")
            .put(124, format!("{:011o}\0", fitting(size)).as_bytes())
            .put(136, format!("{:011o}\0", fitting(mtime)).as_bytes())
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        if let Some(field) = self.0.get_mut(at..at.saturating_add(bytes.len())) {
            field.copy_from_slice(bytes);
        }
        self
    }

    fn finish(self) -> Vec<u8> {
        let block = self.put(148, b"        ");
        let sum: u32 = block.0.iter().map(|byte| u32::from(*byte)).sum();
        block.put(148, format!("{sum:06o}\0 ").as_bytes()).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tar::{self, MemberKind, Step};

    fn member(path: &str, size: u64) -> tar::Member {
        let headers = headers(path, size, 0o755, 7);
        let whole = headers.len() as u64 + size + tail(size);
        let Step::Member(member) = tar::step(&headers, whole).unwrap() else { panic!("no member") };
        assert_eq!(member.data, headers.len() as u64);
        assert_eq!(member.next + 1024, whole, "{path}");
        member
    }

    #[test]
    fn every_name_and_size_is_read_as_it_was_written() {
        let long = "x".repeat(255);
        let deep = format!("{}/{}", "folder/".repeat(20), "y".repeat(90));
        let deeper = format!("{}{}", "folder/".repeat(60), "z");
        let split = format!("{}/{}", "p".repeat(155), "n".repeat(100));
        let edge = format!("{}/b", "q".repeat(99));
        for path in ["a", "sub/a.bin", "模型/é.bin", &long, &deep, &deeper, &split, &edge] {
            for size in [0, 1, 511, 512, 513, OCTAL_LIMIT - 1, OCTAL_LIMIT, 1 << 40] {
                let member = member(path, size);
                assert_eq!((member.name.as_slice(), member.size), (path.as_bytes(), size));
                assert_eq!((member.kind, member.mode, member.mtime), (MemberKind::File, 0o755, 7));
            }
        }
    }

    /// The SHA-256 of what `archive/tar` of Go 1.27 wrote for these headers.
    #[test]
    fn the_bytes_are_those_that_go_writes() {
        let deep = "sub/".repeat(30) + "b.bin";
        let deeper = "folder/".repeat(60) + "z";
        for (path, size, digest) in [
            ("a.bin", 5, "fa9ade14a295fef9d88f23701bf430aa11f6bc99a9f1569a8bca855549791c65"),
            ("a.bin", 1 << 33, "da6996e1f99a3240219192deb5539e7e466ca01b8312a5979b9c05e78c98a2a4"),
            (&deep, 5, "35e5226dce04af6b87bb6957d956d4f954df43515d1ccb5bfc074a0b53ea7332"),
            (&deeper, 0, "2f8677a0c0cd38499f4ac75bf64ac67c1061be74e89e074b24bb8e151756bf36"),
            ("\u{e9}/c.bin", 5, "f96e93a3dc8b9e9821f425819246e45f233f1bc9fde01af4df13b1e865b70270"),
            ("a/\u{e9}/b", 1 << 40, "7289fd956b52fdd2007ca60adbf13a6a1d1e6edab16640abc1dacb1bca1ccf38"),
        ] {
            let bytes = headers(path, size, 0o755, 7);
            assert_eq!(crate::oci::Digest::of(&bytes).hex(), digest, "{path} {size}");
        }
    }

    #[test]
    fn an_ordinary_file_has_one_block_before_it_and_one_that_needs_an_extension_three() {
        assert_eq!(headers("sub/model.safetensors", OCTAL_LIMIT - 1, 0o644, 0).len(), 512);
        assert_eq!(headers("sub/model.safetensors", OCTAL_LIMIT, 0o644, 0).len(), 1536);
        assert_eq!(headers("é", 1, 0o644, 0).len(), 1536);
    }

    #[test]
    fn the_tail_ends_the_block_and_the_archive() {
        assert_eq!([0, 1, 511, 512, 513].map(tail), [1024, 1535, 1025, 1024, 1535]);
    }

    #[test]
    fn the_length_of_a_record_counts_its_own_digits() {
        assert_eq!(record("path", "é"), "11 path=é\n");
        for len in 80..110 {
            let record = record("path", &"x".repeat(len));
            assert!(record.starts_with(&format!("{} path=", record.len())), "{record}");
        }
    }
}
