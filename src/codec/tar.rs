//! Tar headers: the next member of an archive, from the bytes at its header's place.
//!
//! An indexer, not an unpacker: it says where a member's data lies and what the member is called, and refuses
//! what two readers of tar might understand differently, since a guess shows one file's bytes as another's
//! (`docs/decisions/0003-own-tar-indexer.md`). It validates no paths and holds no state between members.
//! Floor 2 hops through layers with it.
//!
//! Formats: POSIX.1-1988 (ustar), POSIX.1-2001 (PAX) and GNU tar's, as in POSIX `pax` and GNU tar's `tar.h`.

use crate::error::{Error, Kind, Result};

/// The size of a header and the grid that data is padded to.
pub const BLOCK: u64 = 512;

/// The largest extended header or long name: 1 MiB.
pub const EXTENSION_LIMIT: u64 = 1 << 20;

/// The most bytes of headers before one member's data.
const HEADERS_LIMIT: u64 = 4 << 20;

/// What stands at a header's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A member.
    Member(Member),
    /// So many bytes from the header's place on are needed to tell; never more than there are.
    Need(u64),
    /// The end of the archive; its mark takes so many bytes, 0 where the archive just stops.
    End(u64),
}

/// A member of an archive. Offsets count from the header's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name as written, with every extension applied.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: MemberKind,
    /// Where its data begins.
    pub data: u64,
    /// How many bytes of data it has; 0 for all but files.
    pub size: u64,
    /// Where the next header is: the data's end, padded.
    pub next: u64,
    /// Permission bits, with set-id and sticky bits as written.
    pub mode: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
}

/// What a member is. Others (devices, pipes, sparse files, volumes) are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link, with its target as written.
    Symlink(Vec<u8>),
    /// A hard link, with the name of the member it links to as written.
    HardLink(Vec<u8>),
}

/// Reads what stands at the start of `bytes`, where `remaining` bytes of the archive are left from there on.
///
/// Costs time in proportion to the headers before the member's data; allocates names only.
///
/// # Errors
/// [`Kind::Invalid`] where it is no tar header, a checksum or number is wrong, an extension is malformed or
/// contradicts the header, or the archive is cut short; [`Kind::Unsupported`] for a member that is no file,
/// folder or link, naming it.
pub fn step(bytes: &[u8], remaining: u64) -> Result<Step> {
    let mut extensions = Extensions::default();
    let mut at = 0;
    loop {
        if at == remaining {
            extensions.must_be_used_up()?;
            return Ok(Step::End(at));
        }
        let header = match bytes_at(bytes, at, BLOCK, remaining)? {
            Some(header) => header,
            None => return Ok(Step::Need(at + BLOCK)),
        };
        if header.iter().all(|byte| *byte == 0) {
            extensions.must_be_used_up()?;
            return end(bytes, at, remaining);
        }
        let header = Header::new(header)?;
        if !header.is_extension() {
            return member(&header, extensions, at + BLOCK, remaining).map(Step::Member);
        }
        let size = header.number(SIZE).and_then(|size| extension_size(size, at))?;
        let body = match bytes_at(bytes, at + BLOCK, size, remaining)? {
            Some(body) => body,
            None => return Ok(Step::Need(at + BLOCK + size)),
        };
        extensions.take(header.typeflag(), body)?;
        at = padded(at + BLOCK + size).min(remaining);
    }
}

/// `len` bytes from `at` on; `None` where the archive has them and `bytes` does not.
fn bytes_at(bytes: &[u8], at: u64, len: u64, remaining: u64) -> Result<Option<&[u8]>> {
    let end = at.checked_add(len).filter(|end| *end <= remaining);
    let end = end.ok_or_else(|| invalid("the archive is cut short within a header"))?;
    let (Ok(at), Ok(end)) = (usize::try_from(at), usize::try_from(end)) else { return Ok(None) };
    Ok(bytes.get(at..end))
}

/// Two blocks of zeros end an archive. One alone is where some readers stop and some fail, so it ends an
/// archive only as its last block.
fn end(bytes: &[u8], at: u64, remaining: u64) -> Result<Step> {
    let len = (2 * BLOCK).min(remaining - at);
    match bytes_at(bytes, at, len, remaining)? {
        None => Ok(Step::Need(at + len)),
        Some(mark) if mark.iter().all(|byte| *byte == 0) => Ok(Step::End(at + len)),
        Some(_) => Err(invalid("a lone block of zeros is followed by more")),
    }
}

fn extension_size(size: u64, at: u64) -> Result<u64> {
    if size > EXTENSION_LIMIT || at > HEADERS_LIMIT {
        return Err(invalid("an extended header is larger than 1 MiB, or there are too many"));
    }
    Ok(size)
}

fn member(header: &Header<'_>, extensions: Extensions, data: u64, remaining: u64) -> Result<Member> {
    let name = extensions.name()?.unwrap_or_else(|| header.name());
    let named = |error: Error| error.context(format!("member \"{}\"", name.escape_ascii()));
    let size = extensions.size(header.number(SIZE).map_err(named)?).map_err(named)?;
    let link = extensions.link().map_err(named)?.unwrap_or_else(|| header.field(LINK).to_vec());
    let kind = header.kind(&name, link).map_err(named)?;
    if size != 0 && kind != MemberKind::File {
        return Err(named(invalid("it has data and is no regular file")));
    }
    let end = data.checked_add(size).filter(|end| *end <= remaining);
    let end =
        end.ok_or_else(|| named(invalid(&format!("its {size} bytes of data run over the archive's end"))))?;
    let mode = u32::try_from(header.number(MODE).map_err(named)? & 0o7777).unwrap_or(0);
    let mtime = match extensions.mtime {
        Some(mtime) => mtime,
        None => header.signed(MTIME).map_err(named)?,
    };
    Ok(Member { kind, data, size, next: padded(end).min(remaining), mode, mtime, name })
}

fn padded(len: u64) -> u64 {
    len.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX)
}

fn invalid(why: &str) -> Error {
    Error::new(Kind::Invalid, why)
}

/// A field of a header: where it starts, where it ends.
type Field = (usize, usize);
const NAME: Field = (0, 100);
const MODE: Field = (100, 108);
const SIZE: Field = (124, 136);
const MTIME: Field = (136, 148);
const CHECKSUM: Field = (148, 156);
const LINK: Field = (157, 257);
const MAGIC: Field = (257, 265);
const PREFIX: Field = (345, 500);

/// A header block whose checksum is right.
struct Header<'a> {
    block: &'a [u8],
    /// Whether the prefix field is one: GNU tar keeps other things there.
    has_prefix: bool,
}

impl<'a> Header<'a> {
    fn new(block: &'a [u8]) -> Result<Self> {
        let mut header = Self { block, has_prefix: false };
        header.has_prefix = match header.bytes(MAGIC) {
            b"ustar\x0000" => true,
            b"ustar  \0" | b"\0\0\0\0\0\0\0\0" => false,
            _ => return Err(invalid("there is no tar header where the next member should be")),
        };
        // The `star` program keeps times in the prefix field, and marks it so.
        if header.has_prefix && header.bytes((508, 512)) == b"tar\0" {
            return Err(Error::new(Kind::Unsupported, "the archive is in the format of 'star'"));
        }
        header.check_sum()?;
        Ok(header)
    }

    /// The sum of all bytes, the checksum field taken as spaces. Old writers summed signed bytes.
    fn check_sum(&self) -> Result<()> {
        let written = i64::try_from(octal(self.bytes(CHECKSUM))?).unwrap_or(-1);
        let counted = self.block.iter().enumerate();
        let counted =
            counted.map(|(at, byte)| if (CHECKSUM.0..CHECKSUM.1).contains(&at) { b' ' } else { *byte });
        let (unsigned, signed) = counted.fold((0, 0), |(unsigned, signed), byte| {
            (unsigned + i64::from(byte), signed + i64::from(byte.cast_signed()))
        });
        if written == unsigned || written == signed {
            return Ok(());
        }
        Err(invalid("a tar header has the wrong checksum"))
    }

    fn bytes(&self, (start, end): Field) -> &'a [u8] {
        self.block.get(start..end).unwrap_or_default()
    }

    /// A field's text, up to the first NUL.
    fn field(&self, field: Field) -> &'a [u8] {
        until_nul(self.bytes(field))
    }

    fn typeflag(&self) -> u8 {
        self.bytes((156, 157)).first().copied().unwrap_or_default()
    }

    fn is_extension(&self) -> bool {
        matches!(self.typeflag(), b'x' | b'g' | b'L' | b'K')
    }

    fn name(&self) -> Vec<u8> {
        let (prefix, name) = (self.field(PREFIX), self.field(NAME));
        if self.has_prefix && !prefix.is_empty() { [prefix, b"/", name].concat() } else { name.to_vec() }
    }

    /// A number that can't be negative.
    fn number(&self, field: Field) -> Result<u64> {
        u64::try_from(self.signed(field)?).map_err(|_| invalid("a number in the header is negative"))
    }

    /// Octal digits, or with the first bit set a big-endian number in two's complement (GNU "base-256").
    fn signed(&self, field: Field) -> Result<i64> {
        let bytes = self.bytes(field);
        let Some(first) = bytes.first().filter(|first| **first & 0x80 != 0) else {
            return octal(bytes).and_then(|number| i64::try_from(number).map_err(|_| too_large()));
        };
        let sign = if first & 0x40 == 0 { i128::from(first & 0x3f) } else { i128::from(first & 0x3f) - 64 };
        let number = bytes.iter().skip(1).fold(sign, |number, byte| (number << 8) | i128::from(*byte));
        i64::try_from(number).map_err(|_| too_large())
    }

    fn kind(&self, name: &[u8], link: Vec<u8>) -> Result<MemberKind> {
        match self.typeflag() {
            // Before POSIX, a folder was a file whose name ends so.
            0 if name.ends_with(b"/") => Ok(MemberKind::Directory),
            0 | b'0' | b'7' => Ok(MemberKind::File),
            b'1' => Ok(MemberKind::HardLink(link)),
            b'2' => Ok(MemberKind::Symlink(link)),
            b'5' => Ok(MemberKind::Directory),
            other => Err(refused_kind(other)),
        }
    }
}

fn refused_kind(typeflag: u8) -> Error {
    let what = match typeflag {
        b'3' => "a character device".to_owned(),
        b'4' => "a block device".to_owned(),
        b'6' => "a named pipe".to_owned(),
        b'S' => "a sparse file".to_owned(),
        other => format!("of type '{}'", other.escape_ascii()),
    };
    Error::new(Kind::Unsupported, format!("it is {what}, which a model can't hold"))
        .hint("pack the model again from plain files, folders and links")
}

fn too_large() -> Error {
    invalid("a number in the header is too large")
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces, ended by NUL or space; nothing at all counts as 0.
fn octal(field: &[u8]) -> Result<u64> {
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0_u64, |number, byte| match byte {
        b'0'..=b'7' => {
            number.checked_mul(8).map(|number| number + u64::from(byte - b'0')).ok_or_else(too_large)
        }
        _ => Err(invalid("a number in the header has other than octal digits")),
    })
}

fn decimal(value: &[u8]) -> Result<u64> {
    let text = std::str::from_utf8(value).ok();
    let digits = text.filter(|text| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()));
    let number =
        digits.and_then(|text| text.parse::<i64>().ok()).and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| invalid("an extended header has a malformed size"))
}

/// What extended headers say of the member that follows.
#[derive(Default)]
struct Extensions {
    has_pax: bool,
    path: Option<Vec<u8>>,
    linkpath: Option<Vec<u8>>,
    pax_size: Option<u64>,
    mtime: Option<i64>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extensions {
    fn take(&mut self, typeflag: u8, body: &[u8]) -> Result<()> {
        match typeflag {
            b'L' => set(&mut self.long_name, until_nul(body).to_vec(), "long name"),
            b'K' => set(&mut self.long_link, until_nul(body).to_vec(), "long link"),
            b'g' => records(body)?.into_iter().try_for_each(check_global),
            _ if std::mem::replace(&mut self.has_pax, true) => {
                Err(invalid("two extended headers stand before one member"))
            }
            _ => records(body)?.into_iter().try_for_each(|(key, value)| self.record(key, value)),
        }
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        refuse_sparse(key)?;
        match key {
            b"path" => set(&mut self.path, value.to_vec(), "path"),
            b"linkpath" => set(&mut self.linkpath, value.to_vec(), "linkpath"),
            b"size" => set(&mut self.pax_size, decimal(value)?, "size"),
            b"mtime" => {
                self.mtime = Some(time(value)?);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn name(&self) -> Result<Option<Vec<u8>>> {
        one_of(&self.path, &self.long_name)
    }

    fn link(&self) -> Result<Option<Vec<u8>>> {
        one_of(&self.linkpath, &self.long_link)
    }

    /// The extended header's size counts. Where the field has another, one that is not there (0) or not meant
    /// (all sevens, for what does not fit), another reader would step to another place (CVE-2025-62518).
    fn size(&self, field: u64) -> Result<u64> {
        const OVERFLOWED: [u64; 2] = [0o77_777_777_777, 0o777_777_777_777];
        match self.pax_size {
            None => Ok(field),
            Some(size) if size == field || field == 0 || (OVERFLOWED.contains(&field) && size > field) => {
                Ok(size)
            }
            Some(size) => Err(invalid(&format!(
                "its header says {field} bytes and its extended header {size}, so that readers disagree on it"
            ))),
        }
    }

    fn must_be_used_up(&self) -> Result<()> {
        if self.has_pax || self.long_name.is_some() || self.long_link.is_some() {
            return Err(invalid("an extended header is followed by no member"));
        }
        Ok(())
    }
}

/// Readers disagree on whether global records apply to members, so those that would move or rename one are
/// refused; the rest (a comment, times, owners) make no difference here.
fn check_global((key, _): (&[u8], &[u8])) -> Result<()> {
    refuse_sparse(key)?;
    if matches!(key, b"path" | b"linkpath" | b"size") {
        return Err(invalid("a global header sets the path or size of every member"));
    }
    Ok(())
}

fn refuse_sparse(key: &[u8]) -> Result<()> {
    if key.starts_with(b"GNU.sparse.") || key == b"SCHILY.realsize" {
        return Err(Error::new(
            Kind::Unsupported,
            "a member is a sparse file, whose data is not in one piece",
        )
        .hint("pack the model again without '--sparse'"));
    }
    Ok(())
}

fn set<T>(slot: &mut Option<T>, value: T, name: &str) -> Result<()> {
    if slot.replace(value).is_some() {
        return Err(invalid(&format!("a member has two extensions for its {name}")));
    }
    Ok(())
}

fn one_of(pax: &Option<Vec<u8>>, gnu: &Option<Vec<u8>>) -> Result<Option<Vec<u8>>> {
    match (pax, gnu) {
        (Some(_), Some(_)) => Err(invalid("a member is named by a PAX and by a GNU extension")),
        (Some(name), None) | (None, Some(name)) if name.is_empty() => {
            Err(invalid("an extension's name is empty"))
        }
        (pax, gnu) => Ok(pax.clone().or_else(|| gnu.clone())),
    }
}

type Record<'a> = (&'a [u8], &'a [u8]);

/// The records of an extended header: `LENGTH KEY=VALUE\n`, one after the other with nothing between.
fn records(mut body: &[u8]) -> Result<Vec<Record<'_>>> {
    let bad = || invalid("an extended header has a malformed record");
    let mut all = Vec::new();
    while !body.is_empty() {
        let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let len = body.get(..digits).and_then(|text| std::str::from_utf8(text).ok()?.parse::<usize>().ok());
        let (record, rest) = len.and_then(|len| body.split_at_checked(len)).ok_or_else(bad)?;
        let record = record.get(digits..).and_then(|record| record.strip_prefix(b" ")?.strip_suffix(b"\n"));
        let record = record.ok_or_else(bad)?;
        let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(bad)?;
        let (key, value) = record.split_at(equals);
        all.push((key, value.get(1..).unwrap_or_default()));
        body = rest;
    }
    Ok(all)
}

/// `[-]SECONDS[.FRACTION]`, rounded down.
fn time(value: &[u8]) -> Result<i64> {
    let bad = || invalid("an extended header has a malformed time");
    let text = std::str::from_utf8(value).map_err(|_| bad())?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) || whole.starts_with('+') {
        return Err(bad());
    }
    let seconds: i64 = whole.parse().map_err(|_| bad())?;
    let below = whole.starts_with('-') && fraction.bytes().any(|byte| byte != b'0');
    seconds.checked_sub(i64::from(below)).ok_or_else(bad)
}

#[cfg(test)]
#[path = "tar_tests.rs"]
pub(crate) mod tests;
