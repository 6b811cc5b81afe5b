//! A table of contents in JSON, as eStargz and zstd:chunked write it: which stored bytes hold which part of which file.
//!
//! It is a claim: checked here for what contradicts itself or the blob, and never for what is true. A part's digest is of
//! its content, so whoever trusts the table can verify what it leads to. Decoding is not done here, nor are paths judged.
//! [`estargz`](super::estargz) and [`chunked`](super::zstd::chunked) find the table; floor 2 uses what it says.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use sha2::{Digest as _, Sha256};

use crate::error::{Error, Kind, Result};
use crate::range::{ContentRange, StoredRange};

/// The largest table: 64 MiB of JSON.
pub const JSON_LIMIT: u64 = 64 << 20;

/// The most entries of a table, parts of files among them.
pub const ENTRIES_LIMIT: usize = 1 << 20;

/// What an entry takes beside its names.
const ENTRY: u64 = 120;

/// The SHA-256 of some content, as a table claims it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentDigest([u8; 32]);

impl ContentDigest {
    /// The digest of `content`.
    #[must_use]
    pub fn of(content: &[u8]) -> Self {
        Self(Sha256::digest(content).into())
    }

    /// Its 32 bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads `sha256:HEX` in lower case; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = text.strip_prefix("sha256:").filter(|hex| hex.len() == 64)?;
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Some(byte - b'0'),
            b'a'..=b'f' => Some(byte - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let [high, low] = pair else { return None };
            *byte = (digit(*high)? << 4) | digit(*low)?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a table says, in its order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toc {
    /// Files, folders and links.
    pub entries: Vec<Entry>,
}

/// A file, folder or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its path as written: not checked.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
}

/// What an entry is. Others are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File(File),
    /// A folder.
    Directory,
    /// A symbolic link, with its target as written.
    Symlink(String),
    /// A hard link, with the name it links to as written.
    HardLink(String),
}

/// A file's bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// How many.
    pub size: u64,
    /// Their digest, where the table has it.
    pub digest: Option<ContentDigest>,
    /// Its parts, which cover it in order; none for an empty file.
    pub parts: Vec<Part>,
}

/// A stretch of a file that is decodable alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which bytes of the file.
    pub content: ContentRange,
    /// Stored bytes that are enough to decode it: they start with its gzip member or zstd frame, and may go on after it.
    pub stored: StoredRange,
    /// How many bytes of what they decode to come before it.
    pub skip: u64,
    /// Its digest, where the table has it.
    pub digest: Option<ContentDigest>,
}

/// Reads a table of files that lie in the first `data` stored bytes of a blob, its writer's marks among them.
///
/// Takes memory of at most the JSON's size and 120 bytes an entry.
///
/// # Errors
/// [`Kind::Invalid`] where it is malformed, a file's parts do not cover it, or parts overlap or leave the data;
/// [`Kind::Unsupported`] for more than [`JSON_LIMIT`] or [`ENTRIES_LIMIT`], another version, or an entry that is no file,
/// folder or link.
pub fn read(json: &[u8], data: u64) -> Result<Toc> {
    if u64::try_from(json.len()).map_or(true, |len| len > JSON_LIMIT) {
        return Err(too_large());
    }
    let document: Document = serde_json::from_slice(json)
        .map_err(|error| Error::from_source(Kind::Invalid, "the table of contents is malformed", error))?;
    if document.version != 1 {
        let version = document.version;
        return Err(Error::new(Kind::Unsupported, format!("the table of contents is of version {version}")));
    }
    let mut building = document.entries.0;
    if let Some(error) = building.failed.take() {
        return Err(error);
    }
    building.end_file()?;
    building.lay_out(data)?;
    Ok(Toc { entries: building.entries })
}

/// How much memory [`read`] takes at most for a table in this JSON, whatever it says.
#[must_use]
pub fn weight(json: &[u8]) -> u64 {
    // An entry begins with a brace; those within names count for nothing worse than a smaller table.
    let entries = json.iter().filter(|byte| **byte == b'{').count();
    let (entries, names) = (u64::try_from(entries), u64::try_from(json.len()));
    entries.unwrap_or(u64::MAX).saturating_mul(ENTRY).saturating_add(names.unwrap_or(u64::MAX))
}

pub(super) fn too_large() -> Error {
    Error::new(Kind::Unsupported, format!("the table of contents has more than {JSON_LIMIT} bytes"))
}

fn too_many() -> Error {
    Error::new(Kind::Unsupported, format!("the table of contents has more than {ENTRIES_LIMIT} entries"))
}

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, why)
}

#[derive(Deserialize)]
struct Document {
    version: u64,
    entries: Entries,
}

/// Entries become what is kept of them one by one, so that JSON of many small ones takes no more memory.
struct Entries(Building);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut building = Building::default();
        Sink(&mut building).deserialize(deserializer)?;
        Ok(Self(building))
    }
}

struct Sink<'a>(&'a mut Building);

impl<'de> DeserializeSeed<'de> for Sink<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Sink<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rows: A) -> Result<(), A::Error> {
        let mut count = 0;
        while self.0.failed.is_none() {
            let Some(row) = rows.next_element::<Row<'_>>()? else { return Ok(()) };
            count += 1;
            let taken = if count > ENTRIES_LIMIT { Err(too_many()) } else { self.0.take(row) };
            self.0.failed = taken.err();
        }
        // An error of serde's would lose its kind; what is left is passed over instead.
        while rows.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}

/// An entry as both writers name its fields. Numbers that are negative are malformed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Row<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    link_name: Cow<'a, str>,
    #[serde(default)]
    mode: u64,
    #[serde(default)]
    size: u64,
    #[serde(borrow, default)]
    digest: Cow<'a, str>,
    #[serde(default)]
    offset: u64,
    #[serde(default)]
    end_offset: u64,
    #[serde(default)]
    inner_offset: u64,
    #[serde(default)]
    chunk_offset: u64,
    #[serde(default)]
    chunk_size: u64,
    #[serde(borrow, default)]
    chunk_digest: Cow<'a, str>,
}

/// Entries so far; the last file may still get parts.
#[derive(Default)]
struct Building {
    entries: Vec<Entry>,
    is_open: bool,
    /// Where the open file's stored bytes end, where the table says so.
    file_end: Option<u64>,
    /// Where parts' stored bytes end as the table says, by the position of the entry.
    ends: Vec<(usize, u64)>,
    failed: Option<Error>,
}

impl Building {
    fn take(&mut self, row: Row<'_>) -> Result<()> {
        if row.kind == "chunk" {
            return self.part(&row);
        }
        self.end_file()?;
        let name = row.name.clone().into_owned();
        let target = |row: &Row<'_>| row.link_name.clone().into_owned();
        let kind = match &*row.kind {
            "reg" => {
                EntryKind::File(File { size: row.size, digest: digest(&row.digest)?, parts: Vec::new() })
            }
            "dir" => EntryKind::Directory,
            "symlink" => EntryKind::Symlink(target(&row)),
            "hardlink" => EntryKind::HardLink(target(&row)),
            other => {
                let why = format!("\"{}\" is of type \"{}\"", name.escape_debug(), other.escape_debug());
                return Err(Error::new(Kind::Unsupported, why + ", which a model can't hold"));
            }
        };
        let is_file = matches!(kind, EntryKind::File(_));
        self.entries.push(Entry { name, kind, mode: u32::try_from(row.mode & 0o7777).unwrap_or(0) });
        self.is_open = is_file;
        self.file_end = Some(row.end_offset).filter(|end| *end != 0);
        if is_file && row.size > 0 { self.part(&row) } else { Ok(()) }
    }

    /// The file that is open, with its name.
    fn open(&mut self) -> Option<(&str, &mut File)> {
        match self.entries.last_mut().filter(|_| self.is_open)? {
            Entry { name, kind: EntryKind::File(file), .. } => Some((name, file)),
            _ => None,
        }
    }

    fn part(&mut self, row: &Row<'_>) -> Result<()> {
        let Some((name, file)) = self.open() else {
            return Err(invalid("a part in the table of contents follows no file"));
        };
        if !row.name.is_empty() && row.name != name {
            return Err(invalid(format!("a part of \"{}\" does not follow it", row.name.escape_debug())));
        }
        let at = file.parts.last().map_or(0, |part| part.content.end());
        let left = file.size.saturating_sub(at);
        let len = if row.chunk_size == 0 { left } else { row.chunk_size };
        let content = ContentRange::at(at, len).filter(|_| row.chunk_offset == at && len != 0 && len <= left);
        let content = content.ok_or_else(|| invalid(format!("the parts of {name:?} do not cover it")))?;
        // The digest of all is that of the part where there is one only.
        let of =
            if row.chunk_digest.is_empty() && len == file.size { &row.digest } else { &row.chunk_digest };
        let (digest, stored) = (digest(of)?, StoredRange::new(row.offset, row.offset));
        file.parts.push(Part { content, stored, skip: row.inner_offset, digest });
        Ok(())
    }

    fn end_file(&mut self) -> Result<()> {
        let end = self.file_end.take();
        if let Some((name, file)) = self.open() {
            if file.parts.last().map_or(0, |part| part.content.end()) != file.size {
                return Err(invalid(format!("the parts of {name:?} do not cover it")));
            }
            let has_parts = !file.parts.is_empty();
            if let Some(end) = end.filter(|_| has_parts) {
                self.ends.push((self.entries.len() - 1, end));
            }
        }
        self.is_open = false;
        Ok(())
    }

    fn parts(&mut self) -> impl Iterator<Item = &mut Part> {
        let files = self.entries.iter_mut().filter_map(|entry| match &mut entry.kind {
            EntryKind::File(file) => Some(file),
            _ => None,
        });
        files.flat_map(|file| &mut file.parts)
    }

    /// Gives each part its end: where the next stored start is, or the data's end. Parts of one start lie one after the
    /// other in what it decodes to.
    fn lay_out(&mut self, data: u64) -> Result<()> {
        let mut parts: Vec<&mut Part> = self.parts().collect();
        parts.sort_by_key(|part| (part.stored.start(), part.skip));
        let mut end = data;
        let mut later: Option<(u64, u64)> = None;
        for part in parts.into_iter().rev() {
            let start = part.stored.start();
            let after = part.skip.checked_add(part.content.len());
            let after = after.ok_or_else(|| invalid("a part in the table of contents runs over 64 bits"))?;
            match later {
                Some((same, skip)) if same == start && after > skip => {
                    return Err(invalid(format!("parts at stored byte {start} overlap")));
                }
                Some((same, _)) if same == start => {}
                Some((next, _)) => end = next,
                None => {}
            }
            if start >= end {
                return Err(invalid(format!(
                    "a part at stored byte {start} lies outside the {data} bytes of data"
                )));
            }
            part.stored = StoredRange::new(start, end);
            later = Some((start, part.skip));
        }
        self.cut_ends()
    }

    /// Where a file's last part ends by the table's own word.
    fn cut_ends(&mut self) -> Result<()> {
        for (position, end) in std::mem::take(&mut self.ends) {
            let Some(Entry { name, kind: EntryKind::File(file), .. }) = self.entries.get_mut(position) else {
                continue;
            };
            let Some(last) = file.parts.last_mut() else { continue };
            if end <= last.stored.start() || end > last.stored.end() {
                return Err(invalid(format!("{name:?} ends at stored byte {end}, outside its own bytes")));
            }
            last.stored = StoredRange::new(last.stored.start(), end);
        }
        Ok(())
    }
}

fn digest(text: &str) -> Result<Option<ContentDigest>> {
    if text.is_empty() {
        return Ok(None);
    }
    let digest = ContentDigest::parse(text);
    let digest = digest.ok_or_else(|| invalid(format!("\"{}\" is no digest", text.escape_debug())))?;
    Ok(Some(digest))
}

#[cfg(test)]
#[path = "toc_tests.rs"]
pub(crate) mod tests;
