//! One pass over a blob: content out, and where its frames lie.
//!
//! It is pushed stored bytes in any pieces and keeps none. Floor 2 builds an index with it while a layer goes by; a span
//! too large to be held is decoded by one that starts where the span does.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::digest::Digests;
use super::frame::{self, HEADER_LIMIT, Header, WINDOW_LIMIT};
use super::spans::{Builder, Spans};
use super::{failed, invalid};
use crate::error::Result;

/// What one [`Scanner::push`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// How many stored bytes were taken.
    pub stored: usize,
    /// How many bytes of content were written.
    pub content: usize,
}

/// Decodes the frames of a blob one after the other, and notes where they lie.
///
/// Holds the window of the frame it is in, at most [`WINDOW_LIMIT`] (8 MiB for what `zstd` writes up to level 19), half a
/// mebibyte beside it, and 48 bytes for each span.
pub struct Scanner {
    context: DCtx<'static>,
    window_limit: u64,
    place: Place,
    /// The start of a header that is not all here.
    header: Vec<u8>,
    builder: Builder,
    digests: Digests,
    /// Of the frame it is in.
    stored: u64,
    content: u64,
    /// Whether libzstd holds no content that is still to come out.
    is_flushed: bool,
    /// Whether not all bytes before were in order.
    failed: bool,
}

/// Where in a blob the next byte lies.
enum Place {
    Between,
    Frame,
    /// Within a frame without content, of which so much is left.
    Skippable(u64),
}

impl Scanner {
    /// A scanner at the start of a blob or span, for windows of up to [`WINDOW_LIMIT`], that joins frames to spans of up
    /// to `span` bytes as [`Builder`] does.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) where libzstd has no memory or takes no setting.
    pub fn new(span: u64) -> Result<Self> {
        Self::with_window_limit(span, WINDOW_LIMIT)
    }

    /// The same for windows of up to `window_limit` bytes, which counts up to [`WINDOW_LIMIT`].
    ///
    /// # Errors
    /// As [`Scanner::new`].
    pub fn with_window_limit(span: u64, window_limit: u64) -> Result<Self> {
        let mut context = DCtx::try_create().ok_or_else(|| invalid("libzstd has no memory for a decoder"))?;
        let set = context.set_parameter(DParameter::WindowLogMax(WINDOW_LIMIT.ilog2()));
        set.map_err(|code| failed("cannot set libzstd's window", code))?;
        Ok(Self {
            context,
            window_limit: window_limit.min(WINDOW_LIMIT),
            place: Place::Between,
            header: Vec::with_capacity(HEADER_LIMIT),
            builder: Builder::new(span),
            digests: Digests::new(),
            stored: 0,
            content: 0,
            is_flushed: true,
            failed: false,
        })
    }

    /// Decodes from `stored` into `content`, until either is used up.
    ///
    /// Push what is left of `stored` again until all is taken and `content` was not filled: only then has all content
    /// come out. `content` must have room.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) where no frame starts where one should, or one is malformed or breaks its
    /// own checksum; [`Kind::Unsupported`](crate::Kind::Unsupported) as by [`Builder::push`], and for a frame that needs
    /// a dictionary or a larger window, by name. A scanner that failed fails for ever.
    pub fn push(&mut self, stored: &[u8], content: &mut [u8]) -> Result<Moved> {
        if std::mem::replace(&mut self.failed, true) {
            return Err(invalid("the frames before are not in order"));
        }
        let mut moved = Moved::default();
        loop {
            let (from, to) = (stored.get(moved.stored..), content.get_mut(moved.content..));
            let (from, to) = (from.unwrap_or_default(), to.unwrap_or_default());
            let step = self.step(from, to)?;
            moved.stored += step.stored;
            moved.content += step.content;
            if step == Moved::default() {
                self.failed = false;
                return Ok(moved);
            }
        }
    }

    /// Ends the blob: the spans that frames were joined to, over all bytes pushed.
    ///
    /// # Errors
    /// [`Kind::Invalid`](crate::Kind::Invalid) where the blob ends within a frame, has none, or failed before.
    pub fn finish(self) -> Result<Spans> {
        if self.failed || !matches!(self.place, Place::Between) || !self.header.is_empty() {
            return Err(invalid("the blob is cut short within a frame"));
        }
        let digests = self.digests.finish();
        self.builder.finish()?.with_digests(digests)
    }

    /// How many bytes of content the frames that have ended hold.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.builder.content()
    }

    /// Moves what can be moved where it is; nothing moved means that more bytes or more room are needed.
    fn step(&mut self, stored: &[u8], content: &mut [u8]) -> Result<Moved> {
        match self.place {
            Place::Between => self.between(stored),
            Place::Frame => self.decode(stored, content),
            Place::Skippable(left) => self.skip(left, stored),
        }
    }

    fn between(&mut self, stored: &[u8]) -> Result<Moved> {
        let mut taken = 0;
        loop {
            match frame::header(&self.header, self.window_limit)? {
                Header::Need(wanted) => {
                    let end = (taken + wanted.saturating_sub(self.header.len())).min(stored.len());
                    let part = stored.get(taken..end).filter(|part| !part.is_empty());
                    let Some(part) = part else { return Ok(Moved { stored: taken, content: 0 }) };
                    self.header.extend_from_slice(part);
                    taken = end;
                }
                Header::Frame(_) => {
                    self.begin_frame()?;
                    return Ok(Moved { stored: taken, content: 0 });
                }
                Header::Skippable(len) => {
                    (self.stored, self.content) = (8, 0);
                    let header = std::mem::take(&mut self.header);
                    self.digest(&header);
                    // One without bytes ends here, with none to wait for.
                    self.skip(u64::from(len), &[])?;
                    return Ok(Moved { stored: taken, content: 0 });
                }
            }
        }
    }

    /// Gives libzstd the header that was gathered.
    fn begin_frame(&mut self) -> Result<()> {
        let reset = self.context.reset(ResetDirective::SessionOnly);
        reset.map_err(|code| failed("cannot start a frame", code))?;
        (self.stored, self.content) = (0, 0);
        let mut header = std::mem::take(&mut self.header);
        let (moved, ended) = self.give(&header, &mut [])?;
        if ended || moved.stored != header.len() {
            return Err(invalid("libzstd takes a frame's header for another length"));
        }
        self.digest(&header);
        header.clear();
        self.header = header;
        self.place = Place::Frame;
        self.is_flushed = true;
        Ok(())
    }

    fn decode(&mut self, stored: &[u8], content: &mut [u8]) -> Result<Moved> {
        // libzstd takes calls that can move nothing for a caller gone astray, and fails after some.
        if content.is_empty() || (stored.is_empty() && self.is_flushed) {
            return Ok(Moved::default());
        }
        let room = content.len();
        let (moved, ended) = self.give(stored, content)?;
        self.digest(stored.get(..moved.stored).unwrap_or_default());
        self.is_flushed = moved.content < room;
        if ended {
            self.end_frame()?;
        }
        Ok(moved)
    }

    fn give(&mut self, stored: &[u8], content: &mut [u8]) -> Result<(Moved, bool)> {
        let (mut from, mut to) = (InBuffer::around(stored), OutBuffer::around(content));
        let left = self.context.decompress_stream(&mut to, &mut from);
        let left = left.map_err(|code| failed("a frame is malformed", code))?;
        let moved = Moved { stored: from.pos(), content: to.pos() };
        self.stored = self.stored.saturating_add(u64::try_from(moved.stored).unwrap_or(u64::MAX));
        self.content = self.content.saturating_add(u64::try_from(moved.content).unwrap_or(u64::MAX));
        Ok((moved, left == 0))
    }

    fn skip(&mut self, left: u64, stored: &[u8]) -> Result<Moved> {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(stored.len());
        let moved = u64::try_from(len).unwrap_or(u64::MAX);
        self.stored = self.stored.saturating_add(moved);
        self.digest(stored.get(..len).unwrap_or_default());
        self.place = Place::Skippable(left - moved);
        if left == moved {
            self.end_frame()?;
        }
        Ok(Moved { stored: len, content: 0 })
    }

    fn end_frame(&mut self) -> Result<()> {
        self.place = Place::Between;
        let before = self.builder.spans();
        self.builder.push(self.stored, self.content)?;
        self.digests.end_frame(&self.builder, before);
        Ok(())
    }

    /// Takes stored bytes of the frame it is in, which have been counted already, into its digest.
    fn digest(&mut self, bytes: &[u8]) {
        let may_join = self.builder.may_join(self.stored, self.content);
        self.digests.update(bytes, may_join);
    }
}
