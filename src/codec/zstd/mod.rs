//! Zstandard (RFC 8878): where a blob's frames lie, and what a frame or a run of them decodes to.
//!
//! Every frame can be decoded alone, so frames are the spans. They become known in one of three ways: the blob went by
//! once ([`Scanner`]), it ends with a seek table ([`seekable`]), or it brings a table of contents ([`chunked`]).
//! [`Decoder`] decodes a span, [`Writer`] makes blobs with a seek table. Not here: digests, and where bytes come from.
//! Floors 2 and 3 read with it, and `pack` writes.

pub mod chunked;
mod digest;
mod frame;
mod scan;
pub mod seekable;
mod span;
mod spans;
mod write;

pub use frame::WINDOW_LIMIT;
pub use scan::{Moved, Scanner};
pub use span::Decoder;
pub use spans::{Builder, SPANS_LIMIT, Span, Spans};
pub use write::{Compressor, FRAME, Writer};

use crate::error::{Error, Kind};

fn invalid(why: impl Into<String>) -> Error {
    Error::new(Kind::Invalid, why)
}

/// An error of libzstd, by its own words.
fn failed(doing: impl Into<String>, code: usize) -> Error {
    Error::from_source(Kind::Invalid, doing, zstd::zstd_safe::get_error_name(code))
}

/// A little-endian number at `at`; `None` where `bytes` end before it does.
fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A little-endian number at `at`; `None` where `bytes` end before it does.
fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod chunked_tests;
#[cfg(test)]
mod tests;
