//! Content becomes gzip members, each decodable alone.
//!
//! What comes out is ordinary gzip: `gzip -d` reads members that follow one another. `pack` writes layers with it.

use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Status};

use crate::error::{Error, Kind, Result};

/// What every member begins with: deflate, no name, no time, no system that it was made on (RFC 1952, 2.3).
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Appends one member with all of `content` to `stored`, compressed at `level`, 0 to 9. Allocates a compressor (about
/// 300 KiB) for the time of the call. The same content gives the same bytes.
///
/// # Errors
/// [`Kind::Invalid`] for 4 GiB of content or more, or where the compressor fails.
pub fn write_member(content: &[u8], level: i32, stored: &mut Vec<u8>) -> Result<()> {
    let failed = |why: &str| Error::new(Kind::Invalid, format!("cannot compress: {why}"));
    let len = u32::try_from(content.len()).map_err(|_| failed("a member has 4 GiB or more"))?;
    let config = DeflateConfig { window_bits: -15, level, ..DeflateConfig::default() };
    let mut deflate = Deflate::new_with_config(config);
    // Five bytes for each 16 KiB that do not get smaller (RFC 1951, 3.2.4), and some for the last block.
    let mut body = vec![0; content.len() + content.len() / 1024 + 1024];
    match deflate.compress(content, &mut body, DeflateFlush::Finish) {
        Ok(Status::StreamEnd) => {}
        _ => return Err(failed("the member does not fit where it must")),
    }
    body.truncate(usize::try_from(deflate.total_out()).unwrap_or(0));
    stored.extend(HEADER);
    stored.append(&mut body);
    stored.extend(zlib_rs::crc32::crc32(0, content).to_le_bytes());
    stored.extend(len.to_le_bytes());
    Ok(())
}
