//! Content becomes gzip members that are decodable alone.
//!
//! Members may follow one another (RFC 1952 §2.2), so `gzip -d` and `tar -z` read a file of them. `pack` writes layers so.

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};

use crate::error::{Error, Kind, Result};

/// What asks zlib for a gzip wrapper around a window of 32 KiB.
const GZIP: i32 = 16 + 15;

/// Appends one member with all of `content` to `stored` and gives its length. Its header has neither name nor time, so that the
/// same content gives the same bytes with the same library.
///
/// Takes about 300 KiB beside its output.
///
/// # Errors
/// [`Kind::Invalid`] where the library fails.
pub fn member(content: &[u8], stored: &mut Vec<u8>) -> Result<usize> {
    let config = DeflateConfig { window_bits: GZIP, ..DeflateConfig::default() };
    let mut deflate = Deflate::new_with_config(config);
    let before = stored.len();
    // What does not compress is stored in blocks of at most 65,535 bytes with 5 bytes before each (RFC 1951 §3.2.4).
    stored.resize(before + content.len() + content.len() / 100 + 1024, 0);
    let room = stored.get_mut(before..).unwrap_or_default();
    let ended = deflate.compress(content, room, DeflateFlush::Finish);
    let len = usize::try_from(deflate.total_out()).unwrap_or(usize::MAX);
    stored.truncate(before.saturating_add(len));
    match ended {
        Ok(Status::StreamEnd) => Ok(len),
        other => Err(Error::new(Kind::Invalid, format!("cannot compress: {other:?}"))),
    }
}
