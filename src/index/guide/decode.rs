//! Whole members or frames become their content, within bounds.

use super::probe::Bounds;
use super::room::Loan;
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
use crate::index::Compression;

/// Decoded bytes, which count as long as they are held.
#[derive(Debug, Default)]
pub(super) struct Decoded {
    pub(super) bytes: Vec<u8>,
    pub(super) loan: Loan,
}

/// How much content is decoded at once.
const ROOM: usize = 64 << 10;

/// Decodes from the start of a member or frame on.
pub(super) enum Decoder {
    Gzip(Box<gzip::Members>),
    Zstd(Box<zstd::Scanner>),
}

impl Decoder {
    pub(super) fn new(how: Compression) -> Result<Self> {
        Ok(match how {
            Compression::Gzip => Self::Gzip(Box::new(gzip::Members::new()?)),
            Compression::Zstd => Self::Zstd(Box::new(zstd::Scanner::of_known()?)),
        })
    }

    /// How many stored bytes it has read, and how many of content written.
    pub(super) fn step(&mut self, stored: &[u8], room: &mut [u8]) -> Result<(usize, usize)> {
        match self {
            Self::Gzip(members) => members.step(stored, room).map(|moved| (moved.read, moved.written)),
            Self::Zstd(scanner) => scanner.push(stored, room).map(|moved| (moved.stored, moved.content)),
        }
    }

    fn finish(self) -> Result<()> {
        match self {
            Self::Gzip(members) => members.finish(),
            Self::Zstd(scanner) => scanner.finish().map(drop),
        }
    }
}

/// The content of the members or frames that `stored` is, but for its first `skip` bytes: at most `limit`.
///
/// # Errors
/// `Invalid` where `stored` is not whole members or frames, or has less content than `skip`; `Unsupported` where there is more
/// of it than `limit`, or than the bounds allow; as the codecs have it.
pub(super) fn decode(
    bounds: &Bounds,
    how: Compression,
    mut stored: &[u8],
    mut skip: usize,
    limit: usize,
) -> Result<Decoded> {
    let (mut decoder, mut room) = (Decoder::new(how)?, vec![0; ROOM]);
    let (mut kept, mut loan) = (Vec::new(), Loan::default());
    loop {
        let (read, written) = decoder.step(stored, &mut room)?;
        stored = stored.get(read..).unwrap_or_default();
        bounds.decoded(written)?;
        let passed = skip.min(written);
        skip -= passed;
        loan.cover(&bounds.desk, kept.len().saturating_add(written - passed))?;
        kept.extend_from_slice(room.get(passed..written).unwrap_or_default());
        if kept.len() > limit {
            let doing = format!("there is more content between its files than {limit} bytes");
            return Err(Error::new(Kind::Unsupported, doing));
        }
        if stored.is_empty() && written < ROOM {
            break;
        }
        if (read, written) == (0, 0) {
            return Err(Error::new(Kind::Invalid, "what lies between its files leads nowhere"));
        }
    }
    decoder.finish()?;
    match skip {
        0 => Ok(Decoded { bytes: kept, loan }),
        _ => Err(Error::new(Kind::Invalid, "a part has less content than it says")),
    }
}
