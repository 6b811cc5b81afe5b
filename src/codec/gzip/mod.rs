//! gzip, read at random: one pass over a file records where decoding can start again, and later reads start there.
//!
//! [`Scanner`] takes a file's stored bytes once, gives its content, and makes a [`Table`] of spans and the windows that
//! decoding needs to start at them. [`Decoder`] gives any stretch of the content from the stored bytes of its
//! spans ([`Table::stored`]) and one window. The index keeps table and windows as two sections
//! (`docs/index-format.md`). Nothing here fetches, keeps or trusts: content is right when its chunks' digests say so.
//!
//! gzip is RFC 1952, deflate RFC 1951; members may follow one another (as `pigz`, `bgzip` and `cat` make them), zeros may
//! follow the last.

mod decode;
mod inflate;
mod member;
mod scan;
mod table;
mod walk;
mod window;
mod write;

pub use decode::{Decoder, Members};
pub use scan::{Scanner, Spacing};
pub use table::{SPANS_LIMIT, Table, WindowPlace};
pub use window::WINDOW_LIMIT;
pub use write::member;

/// How far back deflate data may refer: 32 KiB.
const WINDOW: usize = 32 << 10;

/// How far a step came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// So many stored bytes have been read: they are not to be given again.
    pub read: usize,
    /// So many bytes of content have been written, from the start of the room given.
    pub written: usize,
}

impl Moved {
    fn add(&mut self, by: Self) {
        self.read += by.read;
        self.written += by.written;
    }
}

#[cfg(test)]
pub(crate) mod tests;
