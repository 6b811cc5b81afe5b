//! A gzip member's header and trailer (RFC 1952), read from pieces of any size.
//!
//! Keeps nothing of what a header says: names, comments and extra fields are passed over, and its checksum is checked.

use crate::error::{Error, Kind, Result};

/// The longest header: 1 MiB. The format has no bound; real ones have some dozen bytes.
const HEADER_LIMIT: u32 = 1 << 20;

const FHCRC: u8 = 2;
const FEXTRA: u8 = 4;
const FNAME: u8 = 8;
const FCOMMENT: u8 = 16;
const RESERVED: u8 = 0xe0;

/// The header of a member, as far as it has gone by.
#[derive(Debug)]
pub(super) struct Header {
    field: Field,
    flags: u8,
    crc: u32,
    len: u32,
}

/// What the next byte belongs to.
#[derive(Debug, Clone, Copy)]
enum Field {
    /// The ten fixed bytes; how many have gone by.
    Fixed(u8),
    /// The length of the extra field; its first byte where that has gone by.
    ExtraLen(Option<u8>),
    /// So many bytes of the extra field are left.
    Extra(u16),
    Name,
    Comment,
    /// The header's own checksum, with the value counted; its first byte where that has gone by.
    Crc(u16, Option<u8>),
    Done,
}

impl Header {
    pub(super) fn new() -> Self {
        Self { field: Field::Fixed(0), flags: 0, crc: 0, len: 0 }
    }

    /// Reads on; how many bytes of `stored` are the header's. It is done where that is not all of them, or none.
    pub(super) fn step(&mut self, stored: &[u8]) -> Result<usize> {
        for (at, byte) in stored.iter().enumerate() {
            if self.is_done() {
                return Ok(at);
            }
            self.take(*byte)?;
        }
        Ok(stored.len())
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(self.field, Field::Done)
    }

    fn take(&mut self, byte: u8) -> Result<()> {
        self.len += 1;
        if self.len > HEADER_LIMIT {
            return Err(invalid("a member's header is longer than 1 MiB"));
        }
        if !matches!(self.field, Field::Crc(..)) {
            self.crc = zlib_rs::crc32::crc32(self.crc, &[byte]);
        }
        self.field = match self.field {
            Field::Fixed(at) => self.fixed(at, byte)?,
            Field::ExtraLen(None) => Field::ExtraLen(Some(byte)),
            Field::ExtraLen(Some(low)) => match u16::from_le_bytes([low, byte]) {
                0 => self.after_extra(),
                len => Field::Extra(len),
            },
            Field::Extra(1) => self.after_extra(),
            Field::Extra(left) => Field::Extra(left - 1),
            Field::Name if byte == 0 => self.after_name(),
            Field::Comment if byte == 0 => self.after_comment(),
            Field::Crc(counted, None) => Field::Crc(counted, Some(byte)),
            Field::Crc(counted, Some(low)) if counted == u16::from_le_bytes([low, byte]) => Field::Done,
            Field::Crc(..) => {
                return Err(Error::new(Kind::Integrity, "a member's header has the wrong CRC"));
            }
            other => other,
        };
        Ok(())
    }

    fn fixed(&mut self, at: u8, byte: u8) -> Result<Field> {
        match at {
            0 if byte != 0x1f => return Err(not_gzip()),
            1 if byte != 0x8b => return Err(not_gzip()),
            2 if byte != 8 => return Err(method(byte)),
            3 if byte & RESERVED != 0 => return Err(invalid("a member's header has reserved flags set")),
            3 => self.flags = byte,
            9 => return Ok(self.after_fixed()),
            _ => {}
        }
        Ok(Field::Fixed(at + 1))
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    fn after_fixed(&self) -> Field {
        if self.has(FEXTRA) { Field::ExtraLen(None) } else { self.after_extra() }
    }

    fn after_extra(&self) -> Field {
        if self.has(FNAME) { Field::Name } else { self.after_name() }
    }

    fn after_name(&self) -> Field {
        if self.has(FCOMMENT) { Field::Comment } else { self.after_comment() }
    }

    fn after_comment(&self) -> Field {
        let [low, high, ..] = self.crc.to_le_bytes();
        if self.has(FHCRC) { Field::Crc(u16::from_le_bytes([low, high]), None) } else { Field::Done }
    }
}

/// The trailer of a member: CRC-32 of its content, and its length modulo 2^32.
#[derive(Debug, Default)]
pub(super) struct Trailer {
    bytes: [u8; 8],
    len: usize,
}

impl Trailer {
    /// Reads on; how many bytes of `stored` are the trailer's.
    pub(super) fn step(&mut self, stored: &[u8]) -> usize {
        let rest = self.bytes.iter_mut().skip(self.len);
        let read = rest.zip(stored).map(|(to, from)| *to = *from).count();
        self.len += read;
        read
    }

    pub(super) fn is_done(&self) -> bool {
        self.len == self.bytes.len()
    }

    /// Compares what it says with what was counted.
    pub(super) fn check(&self, content: &Content) -> Result<()> {
        let [a, b, c, d, e, f, g, h] = self.bytes;
        if u32::from_le_bytes([a, b, c, d]) != content.crc {
            return Err(Error::new(Kind::Integrity, "a member's content has the wrong CRC"));
        }
        if u32::from_le_bytes([e, f, g, h]) != content.len {
            return Err(Error::new(Kind::Integrity, "a member's content has the wrong length"));
        }
        Ok(())
    }
}

/// What a trailer says, counted.
#[derive(Debug, Default)]
pub(super) struct Content {
    crc: u32,
    len: u32,
}

impl Content {
    pub(super) fn add(&mut self, bytes: &[u8]) {
        self.crc = zlib_rs::crc32::crc32(self.crc, bytes);
        let [a, b, c, d, ..] = bytes.len().to_le_bytes();
        self.len = self.len.wrapping_add(u32::from_le_bytes([a, b, c, d]));
    }
}

fn not_gzip() -> Error {
    invalid("there is no gzip header where a member should be")
}

fn method(method: u8) -> Error {
    let what = if method == 9 { "deflate64".to_owned() } else { format!("method {method}") };
    Error::new(Kind::Unsupported, format!("a member is compressed with {what}"))
        .hint("compress the layer again with 'gzip'")
}

fn invalid(why: &str) -> Error {
    Error::new(Kind::Invalid, why)
}
