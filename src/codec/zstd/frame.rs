//! The header of a frame: what it asks of whoever decodes it (RFC 8878, 3.1.1.1 and 3.1.2).
//!
//! Only as much as refuses a frame by name before libzstd is given it. [`Scanner`](super::Scanner) and
//! [`Decoder`](super::Decoder) call it.

use super::{invalid, u32_at};
use crate::error::{Error, Kind, Result};

/// The largest window of a frame, in bytes: 128 MiB, which is also where `zstd -d` stops unless told otherwise.
pub const WINDOW_LIMIT: u64 = 128 << 20;

/// No header is longer.
pub(super) const HEADER_LIMIT: usize = 18;

/// What stands at a frame's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// So many bytes from the frame's start on are needed to tell.
    Need(usize),
    /// A frame with content, and the length of its header.
    Frame(usize),
    /// A frame without content: so many bytes after the 8 of its header are to be passed over.
    Skippable(u32),
}

/// Reads the header at the start of `bytes`.
///
/// # Errors
/// [`Kind::Invalid`] where no frame starts; [`Kind::Unsupported`] for one that needs a dictionary, or a window of more
/// than `window_limit` bytes.
pub(super) fn header(bytes: &[u8], window_limit: u64) -> Result<Header> {
    let Some(magic) = u32_at(bytes, 0) else { return Ok(Header::Need(4)) };
    if magic & !0xf == 0x184d_2a50 {
        return Ok(u32_at(bytes, 4).map_or(Header::Need(8), Header::Skippable));
    }
    if magic != 0xfd2f_b528 {
        return Err(invalid("there is no zstd frame where the next one should be"));
    }
    let Some(descriptor) = bytes.get(4).copied() else { return Ok(Header::Need(5)) };
    if descriptor & 8 != 0 {
        return Err(invalid("a frame's header has its reserved bit set"));
    }
    let is_single = descriptor & 0x20 != 0;
    let window = usize::from(!is_single);
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3)).copied().unwrap_or(0);
    let size = [usize::from(is_single), 2, 4, 8].get(usize::from(descriptor >> 6)).copied().unwrap_or(0);
    let end = 5 + window + dictionary + size;
    let Some(fields) = bytes.get(5..end) else { return Ok(Header::Need(end)) };
    let (exponent, rest) = fields.split_at_checked(window).unwrap_or_default();
    let (dictionary, size) = rest.split_at_checked(dictionary).unwrap_or_default();
    if number(dictionary) != 0 {
        return Err(dictionary_needed(number(dictionary)));
    }
    let asked = exponent.first().map_or_else(|| content_size(size), |byte| Some(window_size(*byte)));
    match asked.filter(|asked| *asked <= window_limit) {
        Some(_) => Ok(Header::Frame(end)),
        None => Err(too_large(asked.unwrap_or(u64::MAX), window_limit)),
    }
}

fn number(field: &[u8]) -> u64 {
    field.iter().rev().fold(0, |number, byte| (number << 8) | u64::from(*byte))
}

/// The content's size as written: two bytes count from 256 on. `None` where it does not fit.
fn content_size(field: &[u8]) -> Option<u64> {
    number(field).checked_add(if field.len() == 2 { 256 } else { 0 })
}

/// Five bits of exponent, three of mantissa.
fn window_size(byte: u8) -> u64 {
    let base = 1_u64 << (10 + u32::from(byte >> 3));
    base + (base >> 3) * u64::from(byte & 7)
}

fn too_large(asked: u64, limit: u64) -> Error {
    let why = format!("a frame asks for a window of {asked} bytes, and {limit} is the most");
    Error::new(Kind::Unsupported, why).hint("compress it again without '--long', or with '--long=27'")
}

fn dictionary_needed(id: u64) -> Error {
    Error::new(Kind::Unsupported, format!("a frame needs dictionary {id}, which is not in the blob"))
        .hint("compress it again without a dictionary")
}
