//! Content becomes a blob of frames that are decodable alone, with a seek table at its end.
//!
//! What comes out is ordinary zstd: `zstd -d` reads it. `pack` writes layers with it.

use zstd::zstd_safe::{CCtx, CParameter, compress_bound};

use super::digest::Digests;
use super::spans::{Builder, Spans};
use super::{failed, invalid, seekable};
use crate::error::Result;

/// The most content of a frame: 1 MiB, a chunk of the index.
pub const FRAME: usize = 1 << 20;

/// Makes single frames; many may work side by side, their frames joined in order and [`seekable::table`] put after them.
pub struct Compressor(CCtx<'static>);

impl Compressor {
    /// A compressor at `level` of libzstd, which takes what lies outside its levels to the nearest.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) where libzstd has no memory or takes no setting.
    pub fn new(level: i32) -> Result<Self> {
        let mut context =
            CCtx::try_create().ok_or_else(|| invalid("libzstd has no memory for an encoder"))?;
        for parameter in [CParameter::CompressionLevel(level), CParameter::ChecksumFlag(true)] {
            context.set_parameter(parameter).map_err(|code| failed("cannot set up libzstd", code))?;
        }
        Ok(Self(context))
    }

    /// Appends one frame with all of `content` to `stored` and gives its length: size of content in its header, checksum
    /// at its end.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) where libzstd fails, for want of memory.
    pub fn frame(&mut self, content: &[u8], stored: &mut Vec<u8>) -> Result<usize> {
        let mut frame = Vec::with_capacity(compress_bound(content.len()));
        let len = self.0.compress2(&mut frame, content).map_err(|code| failed("cannot compress", code))?;
        stored.extend_from_slice(&frame);
        Ok(len)
    }
}

/// Writes a blob: [`push`](Writer::push) content, [`cut`](Writer::cut) where a file begins and ends.
///
/// Holds at most [`FRAME`] bytes of content, twice that while compressing, and 8 bytes for each frame, 48 for each span.
pub struct Writer {
    compressor: Compressor,
    pending: Vec<u8>,
    frames: Vec<(u32, u32)>,
    builder: Builder,
    digests: Digests,
}

impl Writer {
    /// A writer at a blob's start, which joins frames to spans of up to `span` bytes as [`Builder`] does.
    ///
    /// # Errors
    /// As [`Compressor::new`].
    pub fn new(level: i32, span: u64) -> Result<Self> {
        let (compressor, builder, digests) = (Compressor::new(level)?, Builder::new(span), Digests::new());
        Ok(Self { compressor, pending: Vec::new(), frames: Vec::new(), builder, digests })
    }

    /// Takes `content` and appends to `stored` the frames that are full.
    ///
    /// # Errors
    /// As [`Compressor::frame`].
    pub fn push(&mut self, mut content: &[u8], stored: &mut Vec<u8>) -> Result<()> {
        while !content.is_empty() {
            if self.pending.is_empty()
                && let Some((frame, rest)) = content.split_at_checked(FRAME)
            {
                self.write(frame, stored)?;
                content = rest;
                continue;
            }
            let room = FRAME.saturating_sub(self.pending.len()).min(content.len());
            let (part, rest) = content.split_at_checked(room).unwrap_or((content, &[]));
            self.pending.extend_from_slice(part);
            content = rest;
            if self.pending.len() == FRAME {
                self.cut(stored)?;
            }
        }
        Ok(())
    }

    /// Ends the frame here, so that the next byte begins one. Nothing is written where one begins already.
    ///
    /// # Errors
    /// As [`Compressor::frame`].
    pub fn cut(&mut self, stored: &mut Vec<u8>) -> Result<()> {
        if self.pending.is_empty() {
            return Ok(());
        }
        let mut pending = std::mem::take(&mut self.pending);
        let written = self.write(&pending, stored);
        pending.clear();
        self.pending = pending;
        written
    }

    /// Ends the blob with its seek table. Its spans are returned, the digests of their stored bytes among them.
    ///
    /// # Errors
    /// As [`Compressor::frame`], [`seekable::table`] and [`Builder::push`].
    pub fn finish(mut self, stored: &mut Vec<u8>) -> Result<Spans> {
        self.cut(stored)?;
        let table = seekable::table(&self.frames)?;
        self.note(&table, 0)?;
        stored.extend_from_slice(&table);
        let digests = self.digests.finish();
        self.builder.finish()?.with_digests(digests)
    }

    fn write(&mut self, content: &[u8], stored: &mut Vec<u8>) -> Result<()> {
        let before = stored.len();
        let len = self.compressor.frame(content, stored)?;
        let frame = u32::try_from(len).ok().zip(u32::try_from(content.len()).ok());
        self.frames.push(frame.ok_or_else(|| invalid("a frame has 4 GiB or more"))?);
        self.note(stored.get(before..).unwrap_or_default(), content.len())
    }

    /// The next frame of the blob.
    fn note(&mut self, frame: &[u8], content: usize) -> Result<()> {
        let [stored, content] = [frame.len(), content].map(|len| u64::try_from(len).unwrap_or(u64::MAX));
        let before = self.builder.spans();
        self.digests.update(frame, self.builder.may_join(stored, content));
        self.builder.push(stored, content)?;
        self.digests.end_frame(&self.builder, before);
        Ok(())
    }
}
