//! Inflate that can stop at a block's end and start in the middle of a stream: the one place around zlib's C interface.
//!
//! Not a gzip reader: it knows raw deflate data only. [`walk`](super::walk) goes through members with it. The library is
//! zlib-rs, written in Rust; only its C interface offers these two, so all that is `unsafe` here is calling it.
#![allow(
    unsafe_code,
    reason = "zlib-rs offers stops at block ends and starts in mid-stream through its C interface only"
)]

use std::ffi::{c_int, c_uint};

use libz_rs_sys as zlib;

use super::WINDOW;
use crate::error::{Error, Kind, Result};

/// Where to stop before input or output is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Nowhere.
    Never,
    /// At the end of the block that is being decoded.
    BlockEnd,
}

/// What stands where inflate stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Anything.
    Inside,
    /// The end of a block that is not the last one; so many bits of the bytes read are not part of it.
    BlockEnd { unused: u64 },
    /// The end of the last block; the next call ends the stream.
    LastBlockEnd,
    /// The end of the stream.
    End,
}

/// How far one call came.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inflated {
    pub(super) read: usize,
    pub(super) written: usize,
    pub(super) place: Place,
}

/// A decoder of raw deflate data. Takes about 48 KiB, window included.
pub(super) struct Inflate {
    /// Set up by `inflateInit2_`, freed on drop. Its input and output pointers are set for the time of one call only. Boxed since C's
    /// interface may take its address for its name.
    stream: Box<zlib::z_stream>,
}

// SAFETY: the stream owns its state, made by Rust's global allocator, and shares nothing; nothing in it is tied to a thread.
unsafe impl Send for Inflate {}

impl Inflate {
    /// A decoder at the start of a stream.
    pub(super) fn new() -> Result<Self> {
        let mut stream = Box::new(zlib::z_stream::default());
        let size = c_int::try_from(size_of::<zlib::z_stream>()).unwrap_or(0);
        // SAFETY: the stream is valid and `default` set its allocator; the version is a C string that lives for ever.
        let code = unsafe { zlib::inflateInit2_(&raw mut *stream, -15, zlib::zlibVersion(), size) };
        if code != zlib::Z_OK {
            return Err(refused("set up"));
        }
        Ok(Self { stream })
    }

    /// Puts it at the start of another stream.
    pub(super) fn reset(&mut self) -> Result<()> {
        // SAFETY: the stream was set up by `inflateInit2_`.
        let code = unsafe { zlib::inflateReset(&raw mut *self.stream) };
        if code == zlib::Z_OK { Ok(()) } else { Err(refused("reset")) }
    }

    /// Gives a fresh decoder the `bits` low bits of `value`, fewer than 8, to read before its input.
    pub(super) fn prime(&mut self, bits: u8, value: u8) -> Result<()> {
        // SAFETY: the stream was set up by `inflateInit2_`.
        let code =
            unsafe { zlib::inflatePrime(&raw mut *self.stream, c_int::from(bits), c_int::from(value)) };
        if code == zlib::Z_OK { Ok(()) } else { Err(refused("start within a byte")) }
    }

    /// Gives a fresh decoder the content before its place, at most 32 KiB.
    pub(super) fn set_window(&mut self, window: &[u8]) -> Result<()> {
        let len = c_uint::try_from(window.len()).map_err(|_| refused("take a window"))?;
        // SAFETY: the stream was set up; the pointer and length are of one slice, which is only read.
        let code = unsafe { zlib::inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), len) };
        if code == zlib::Z_OK { Ok(()) } else { Err(refused("take a window")) }
    }

    /// The content before its place, at most 32 KiB of this stream.
    pub(super) fn window(&self) -> Result<Vec<u8>> {
        let (mut window, mut len): (Vec<u8>, c_uint) = (vec![0; WINDOW], 0);
        // SAFETY: the stream was set up and is only read; 32 KiB are always enough for its window.
        let code =
            unsafe { zlib::inflateGetDictionary(&raw const *self.stream, window.as_mut_ptr(), &raw mut len) };
        if code != zlib::Z_OK {
            return Err(refused("give its window"));
        }
        window.truncate(usize::try_from(len).unwrap_or(0));
        Ok(window)
    }

    /// Decodes from `stored` into `content` until one of them is used up, or `stop`, or the stream's end.
    ///
    /// # Errors
    /// [`Kind::Invalid`] where it is no deflate data.
    pub(super) fn step(&mut self, stored: &[u8], content: &mut [u8], stop: Stop) -> Result<Inflated> {
        let avail_in = c_uint::try_from(stored.len()).unwrap_or(c_uint::MAX);
        let avail_out = c_uint::try_from(content.len()).unwrap_or(c_uint::MAX);
        let flush = match stop {
            Stop::Never => zlib::Z_NO_FLUSH,
            Stop::BlockEnd => zlib::Z_BLOCK,
        };
        let stream = &mut *self.stream;
        (stream.next_in, stream.avail_in) = (stored.as_ptr(), avail_in);
        (stream.next_out, stream.avail_out) = (content.as_mut_ptr(), avail_out);
        // SAFETY: the stream was set up; input and output point at slices of at least the length given, the input is
        // only read, the output only written, and both live longer than this call.
        let code = unsafe { zlib::inflate(&raw mut *stream, flush) };
        let read = used(avail_in, stream.avail_in);
        let written = used(avail_out, stream.avail_out);
        (stream.next_in, stream.avail_in) = (std::ptr::null(), 0);
        (stream.next_out, stream.avail_out) = (std::ptr::null_mut(), 0);
        let place = match code {
            zlib::Z_STREAM_END => Place::End,
            // No progress is no error: more of either is needed.
            zlib::Z_OK | zlib::Z_BUF_ERROR => place(stream.data_type),
            _ => return Err(Error::new(Kind::Invalid, "the deflate data is malformed")),
        };
        Ok(Inflated { read, written, place })
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: the stream was set up by `inflateInit2_` and is not used after.
        unsafe { zlib::inflateEnd(&raw mut *self.stream) };
    }
}

fn used(before: c_uint, after: c_uint) -> usize {
    usize::try_from(before.saturating_sub(after)).unwrap_or(0)
}

/// zlib's `data_type`: the number of unused bits, 64 within the last block, 128 at a block's end.
fn place(data_type: c_int) -> Place {
    match u64::try_from(data_type).unwrap_or(0) {
        state if state & 192 == 192 => Place::LastBlockEnd,
        state if state & 128 != 0 => Place::BlockEnd { unused: state & 63 },
        _ => Place::Inside,
    }
}

fn refused(what: &str) -> Error {
    Error::new(Kind::Invalid, format!("the inflate library does not {what}"))
}
