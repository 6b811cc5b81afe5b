//! A span's stored bytes become its content, of a size that is known.
//!
//! Floor 3 decodes what was fetched with it, one decoder a thread.

use zstd::zstd_safe::DCtx;

use super::frame::{self, Header};
use super::{failed, invalid};
use crate::error::Result;

/// Decodes spans; keeps libzstd's tables between them (about 160 KiB) and no window.
pub struct Decoder(DCtx<'static>);

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) where libzstd has no memory.
    pub fn new() -> Result<Self> {
        DCtx::try_create().map(Self).ok_or_else(|| invalid("libzstd has no memory for a decoder"))
    }

    /// Decodes one or more whole frames, `stored`, to exactly `content`. Frames without content give none.
    ///
    /// Needs no memory beside `content`, whatever window the frames ask for. What `content` holds after an error means
    /// nothing.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) where the bytes are not whole frames, break their own checksum, or have
    /// more or less content; [`Kind::Unsupported`](crate::Kind::Unsupported) where the first frame with content needs a
    /// dictionary.
    pub fn span(&mut self, stored: &[u8], content: &mut [u8]) -> Result<()> {
        check_first(stored)?;
        let len = content.len();
        let decoded = self.0.decompress(content, stored);
        let decoded =
            decoded.map_err(|code| failed(format!("a span of {len} bytes cannot be decoded"), code))?;
        if decoded != len {
            return Err(invalid(format!("a span has {decoded} bytes of content and should have {len}")));
        }
        Ok(())
    }
}

/// Refuses by name what libzstd would call corruption.
fn check_first(mut stored: &[u8]) -> Result<()> {
    loop {
        match frame::header(stored, u64::MAX)? {
            Header::Frame(_) => return Ok(()),
            Header::Need(_) if stored.is_empty() => return Ok(()),
            Header::Need(_) => return Err(invalid("a span is cut short within a frame's header")),
            Header::Skippable(len) => {
                let rest = usize::try_from(len).ok().and_then(|len| stored.get(8..)?.get(len..));
                stored = rest.ok_or_else(|| invalid("a span is cut short within a frame without content"))?;
            }
        }
    }
}
