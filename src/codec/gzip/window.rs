//! A window as it is kept: the content before a span, deflated where that is smaller.
//!
//! 4 bytes say how it is kept and how long it is; `docs/index-format.md` draws them. Of 16-bit weights a window of 32 KiB
//! takes 27,021 bytes by Huffman codes alone, 26,977 with matches looked for in twice the time, and 26,984 by zstd at its
//! best level (measured): all but the exponents is random.

use bytes::Bytes;
use zlib_rs::{Deflate, DeflateConfig, DeflateFlush, Inflate, InflateFlush, Status, Strategy};

use super::WINDOW;
use crate::error::{Error, Kind, Result};

/// The most bytes a kept window takes.
pub const WINDOW_LIMIT: usize = HEADER + WINDOW;

const HEADER: usize = 4;
const AS_IT_IS: u8 = 0;
const DEFLATED: u8 = 1;

/// The kept form of `window`, at most 32 KiB. Allocates it and, for the time of the call, a deflater (about 300 KiB).
pub(super) fn keep(window: &[u8]) -> Bytes {
    let mut smaller = vec![0; window.len()];
    let huffman =
        DeflateConfig { window_bits: -15, strategy: Strategy::HuffmanOnly, ..DeflateConfig::default() };
    let mut deflate = Deflate::new_with_config(huffman);
    let (how, body) = match deflate.compress(window, &mut smaller, DeflateFlush::Finish) {
        Ok(Status::StreamEnd) => {
            let len = usize::try_from(deflate.total_out()).unwrap_or(0);
            (DEFLATED, smaller.get(..len).unwrap_or_default())
        }
        _ => (AS_IT_IS, window),
    };
    let [low, high, ..] = window.len().to_le_bytes();
    [&[how, 0, low, high], body].concat().into()
}

/// The window whose kept form is `kept`. Allocates at most 32 KiB for it, and for the call an inflater.
///
/// # Errors
/// [`Kind::Invalid`] where it is no kept window.
pub(super) fn unkeep(kept: &[u8]) -> Result<Vec<u8>> {
    let bad = || Error::new(Kind::Invalid, "a window of the index is malformed");
    let (header, body) = kept.split_first_chunk::<HEADER>().ok_or_else(bad)?;
    let [how, reserved, low, high] = *header;
    let len = usize::from(u16::from_le_bytes([low, high]));
    if len > WINDOW || reserved != 0 {
        return Err(bad());
    }
    match how {
        AS_IT_IS if body.len() == len => Ok(body.to_vec()),
        DEFLATED => {
            let (mut window, mut inflate) = (vec![0; len], Inflate::new(false, 15));
            let ended = inflate.decompress(body, &mut window, InflateFlush::Finish).map_err(|_| bad())?;
            let whole = ended == Status::StreamEnd
                && usize::try_from(inflate.total_out()) == Ok(len)
                && usize::try_from(inflate.total_in()) == Ok(body.len());
            if whole { Ok(window) } else { Err(bad()) }
        }
        _ => Err(bad()),
    }
}
