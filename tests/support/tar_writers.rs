//! Archives byte for byte as the tar writers in use make them: Go's `archive/tar`, GNU tar, Python's `tarfile`.
//!
//! Written from their formats, not by them, so that tests need none of them installed; `tests/index/`
//! compares with the real ones where they are.
#![allow(dead_code, reason = "fixtures are for tests to pick from")]

/// Modification time of every member: 2025-01-01T00:00:00Z.
pub(crate) const MTIME: u64 = 1_735_689_600;

/// The largest size that eleven octal digits hold.
const OCTAL_LIMIT: u64 = 0o77_777_777_777;

/// A member of any kind: a name, and what it is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Member<'a> {
    /// A regular file and its content.
    File(&'a str, &'a str),
    /// A folder.
    Folder(&'a str),
    /// A symbolic link and its target.
    Symlink(&'a str, &'a str),
    /// A hard link and the member it is another name of.
    HardLink(&'a str, &'a str),
}

/// An archive of members of any kind as Go's `archive/tar` writes it, with names and targets of at most 100 bytes. Owners
/// have numbers alone, as tools write them that want the same bytes everywhere.
pub(crate) fn members(uid: u32, mtime: u64, all: &[Member<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for member in all {
        let (name, typeflag, target, content) = match *member {
            Member::File(name, content) => (name, b'0', "", content),
            Member::Folder(name) => (name, b'5', "", ""),
            Member::Symlink(name, target) => (name, b'2', target, ""),
            Member::HardLink(name, target) => (name, b'1', target, ""),
        };
        let mode = if typeflag == b'5' { "0000755" } else { "0000644" };
        let mut block = Block::new(name.as_bytes(), typeflag).mode(mode).devices();
        block.put(108, format!("{uid:07o}\0").as_bytes());
        block.put(157, target.as_bytes());
        bytes.extend(block.numbers(content.len() as u64, mtime).finish());
        bytes.extend(content.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend([0; 1024]);
    bytes
}

/// Whose tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writer {
    /// Go's `archive/tar`, as modctl uses it: ustar, or PAX for what does not fit; two blocks at the end.
    Go,
    /// GNU tar's own format; records of 10240 bytes.
    Gnu,
    /// Python's `tarfile` in `USTAR_FORMAT`; records of 10240 bytes.
    Python,
}

impl Writer {
    /// A whole archive of regular files, each a name and its content.
    pub(crate) fn archive<'a>(self, files: impl IntoIterator<Item = (&'a str, &'a [u8])>) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (name, content) in files {
            bytes.extend(self.headers(name, content.len() as u64));
            bytes.extend(content);
            bytes.resize(bytes.len().next_multiple_of(512), 0);
        }
        bytes.extend([0; 1024]);
        if self != Self::Go {
            bytes.resize(bytes.len().next_multiple_of(10240), 0);
        }
        bytes
    }

    /// What stands before the data of one file; `size` may be larger than anything a test would hold.
    pub(crate) fn headers(self, name: &str, size: u64) -> Vec<u8> {
        match self {
            Self::Go => go(name, size),
            Self::Gnu => gnu(name, size),
            Self::Python => {
                let (prefix, base) = split_early(name).unwrap_or(("", name));
                assert!(base.len() <= 100 && size <= OCTAL_LIMIT, "ustar holds no {name}");
                Block::new(base.as_bytes(), b'0').prefix(prefix).owner("").numbers(size, MTIME).finish()
            }
        }
    }
}

fn go(name: &str, size: u64) -> Vec<u8> {
    let ustar = name.is_ascii() && (name.len() <= 100 || split(name).is_some());
    if ustar && size <= OCTAL_LIMIT {
        let (prefix, base) = if name.len() <= 100 { ("", name) } else { split(name).unwrap() };
        return Block::new(base.as_bytes(), b'0')
            .prefix(prefix)
            .owner("root")
            .devices()
            .numbers(size, MTIME)
            .finish();
    }
    let mut records = Vec::new();
    if !name.is_ascii() || name.len() > 100 {
        records.extend(record("path", name));
    }
    if size > OCTAL_LIMIT {
        records.extend(record("size", &size.to_string()));
    }
    let ascii: String = name.chars().filter(char::is_ascii).collect();
    let of_extension = match ascii.rsplit_once('/') {
        Some((folder, base)) => format!("{folder}/PaxHeaders.0/{base}"),
        None => format!("PaxHeaders.0/{ascii}"),
    };
    let length = records.len() as u64;
    let mut bytes = Block::new(cut(&of_extension), b'x').mode("0000000").numbers(length, 0).finish();
    bytes.extend(records);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    let field = if size > OCTAL_LIMIT { 0 } else { size };
    bytes.extend(Block::new(cut(&ascii), b'0').owner("root").devices().numbers(field, MTIME).finish());
    bytes
}

fn gnu(name: &str, size: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if name.len() > 100 {
        let length = name.len() as u64 + 1;
        bytes.extend(Block::new(b"././@LongLink", b'L').gnu().owner("root").numbers(length, 0).finish());
        bytes.extend(name.as_bytes());
        bytes.push(0);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.extend(Block::new(cut(name), b'0').gnu().owner("root").numbers(size, MTIME).finish());
    bytes
}

/// Prefix and name, where a name over 100 bytes can be parted at a slash so that both fit their fields.
fn split(name: &str) -> Option<(&str, &str)> {
    if name.len() <= 100 {
        return None;
    }
    let at = name[..name.len().min(156)].rfind('/').filter(|at| *at > 0)?;
    (name.len() - at - 1 <= 100 && name.len() > at + 1).then(|| (&name[..at], &name[at + 1..]))
}

/// As [`split`], but at the first slash that will do: Python's way.
fn split_early(name: &str) -> Option<(&str, &str)> {
    let fits = |at: &usize| *at > 0 && *at <= 155 && name.len() - at - 1 <= 100;
    let at = name.match_indices('/').map(|(at, _)| at).find(fits).filter(|_| name.len() > 100)?;
    Some((&name[..at], &name[at + 1..]))
}

fn cut(name: &str) -> &[u8] {
    &name.as_bytes()[..name.len().min(100)]
}

/// `LENGTH KEY=VALUE\n`, the length counting itself.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (1..9).map(|digits| rest + digits).find(|len| len.to_string().len() + rest == *len).unwrap();
    format!("{length} {key}={value}\n").into_bytes()
}

/// A header block in the making.
struct Block([u8; 512]);

impl Block {
    fn new(name: &[u8], typeflag: u8) -> Self {
        let mut block = Self([0; 512]);
        block.put(0, name);
        block.put(156, &[typeflag]);
        block.put(257, b"ustar\x0000");
        block.mode("0000644")
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn mode(mut self, octal: &str) -> Self {
        self.put(100, octal.as_bytes());
        self.put(108, b"0000000\x000000000\0");
        self
    }

    fn prefix(mut self, prefix: &str) -> Self {
        self.put(345, prefix.as_bytes());
        self
    }

    fn owner(mut self, name: &str) -> Self {
        self.put(265, name.as_bytes());
        self.put(297, name.as_bytes());
        self
    }

    fn devices(mut self) -> Self {
        self.put(329, b"0000000\x000000000\0");
        self
    }

    fn gnu(mut self) -> Self {
        self.put(257, b"ustar  \0");
        self
    }

    /// Octal where it fits, else big-endian with the first bit set.
    fn numbers(mut self, size: u64, mtime: u64) -> Self {
        if size <= OCTAL_LIMIT {
            self.put(124, format!("{size:011o}\0").as_bytes());
        } else {
            self.put(124, &[0x80]);
            self.put(128, &size.to_be_bytes());
        }
        self.put(136, format!("{mtime:011o}\0").as_bytes());
        self
    }

    fn finish(mut self) -> Vec<u8> {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|byte| u32::from(*byte)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0.to_vec()
    }
}
