//! eStargz: a gzip blob of a member for each part of a file, and a table of them in the last but one.
//!
//! Only where things lie: decoding members is the gzip codec's. The layout is in the stargz snapshotter's docs/estargz.md;
//! [`toc`](super::toc) reads the table. Floor 2 calls it.

use super::tar::{self, MemberKind, Step};
use super::toc::{self, ContentDigest, JSON_LIMIT, Toc};
use crate::error::{Error, Kind, Result};
use crate::range::StoredRange;

/// The annotation of a layer with the digest of its table's JSON.
pub const DIGEST_KEY: &str = "containerd.io/snapshot/stargz/toc.digest";

/// The name of the table in the archive.
pub const TABLE: &str = "stargz.index.json";

/// Names at an archive's root that are no files of it: the table, and the marks of where prefetching ends.
pub const HIDDEN: [&str; 3] = [TABLE, ".prefetch.landmark", ".no.prefetch.landmark"];

/// How many bytes of a blob's end the footer needs at most.
pub const TAIL: u64 = 51;

/// What a footer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footer {
    /// The table starts with the first byte of this range, as a gzip member, and ends before it ends.
    Table(StoredRange),
    /// The table is in another artifact, which weightfs does not look for.
    External,
}

/// Reads the footer of a blob of `size` bytes, where `tail` holds the last [`TAIL`] bytes, or all there are; `None` where
/// there is none, so that the blob is plain gzip.
///
/// # Errors
/// [`Kind::Invalid`] where it points outside the blob.
pub fn footer(tail: &[u8], size: u64) -> Result<Option<Footer>> {
    let marked = |len| subfield(tail, len).and_then(|field| field.strip_prefix(b"SG"));
    if let Some(field) = marked(51).and_then(|field| field.strip_prefix(b"\x16\0")) {
        return table(field, 51, size);
    }
    if marked(46).is_some_and(|field| field == b"\x11\0STARGZEXTERNALTOC") {
        return Ok(Some(Footer::External));
    }
    // Before it was eStargz, its field had no name.
    subfield(tail, 47).map_or(Ok(None), |field| table(field, 47, size))
}

/// The extra field of an empty gzip member, the last `len` bytes: 10 of header, 2 of the field's length, 5 of an empty
/// stored block, 8 of checksum and size.
fn subfield(tail: &[u8], len: usize) -> Option<&[u8]> {
    let member = tail.get(tail.len().checked_sub(len)?..)?;
    let (header, rest) = member.split_at_checked(10)?;
    let (len, rest) = rest.split_first_chunk::<2>()?;
    let (field, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let is_empty = rest == b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";
    (header.starts_with(b"\x1f\x8b\x08\x04") && is_empty).then_some(field)
}

/// `%016xSTARGZ`.
fn table(field: &[u8], footer: u64, size: u64) -> Result<Option<Footer>> {
    let Some(digits) = field.strip_suffix(b"STARGZ").filter(|digits| digits.len() == 16) else {
        return Ok(None);
    };
    let text = std::str::from_utf8(digits).ok();
    let text = text.filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let start = text.and_then(|text| u64::from_str_radix(text, 16).ok());
    let start = start.filter(|start| size.checked_sub(footer).is_some_and(|end| *start < end));
    let start = start.ok_or_else(|| invalid("the footer of eStargz points outside the blob"))?;
    Ok(Some(Footer::Table(StoredRange::new(start, size - footer))))
}

/// Reads the table from the content of its gzip member, a tar archive of one file; `stored` is the footer's range.
///
/// `digest` is that of the annotation, where the layer has it; without it the table is anybody's word. Give it no more
/// content than [`JSON_LIMIT`] and 4 KiB. Takes memory as [`toc::read`].
///
/// # Errors
/// [`Kind::Integrity`] where the digest is another; [`Kind::Invalid`] where the member holds no table, and as
/// [`toc::read`]; [`Kind::Unsupported`] past its limits.
pub fn read(content: &[u8], stored: StoredRange, digest: Option<ContentDigest>) -> Result<Toc> {
    let len = u64::try_from(content.len()).unwrap_or(u64::MAX);
    let member = match tar::step(content, len)? {
        Step::Member(member) if member.name == TABLE.as_bytes() && member.kind == MemberKind::File => member,
        _ => return Err(invalid("the footer of eStargz does not lead to a table of contents")),
    };
    if member.size > JSON_LIMIT {
        return Err(toc::too_large());
    }
    let range = usize::try_from(member.data).ok().zip(usize::try_from(member.data + member.size).ok());
    let json = range.and_then(|(start, end)| content.get(start..end)).unwrap_or_default();
    if digest.is_some_and(|digest| digest != ContentDigest::of(json)) {
        return Err(Error::new(
            Kind::Integrity,
            "the table of contents has another digest than its annotation",
        ));
    }
    toc::read(json, stored.start())
}

fn invalid(why: &str) -> Error {
    Error::new(Kind::Invalid, why)
}

#[cfg(test)]
#[path = "estargz_tests.rs"]
mod tests;
