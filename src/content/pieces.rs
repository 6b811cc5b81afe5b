//! The bytes of one answer, piece by piece.

use bytes::Bytes;
use futures_util::StreamExt;

use crate::error::{Error, Kind, Result};
use crate::repository::ByteStream;

/// The bytes of one answer, as they come.
pub(super) struct Pieces {
    pub(super) stream: ByteStream,
    pub(super) left: Bytes,
}

impl Pieces {
    /// The next bytes: at least one.
    pub(super) async fn next(&mut self) -> Result<Bytes> {
        loop {
            let ended = || Err(Error::new(Kind::Broken, "the answer ended early"));
            let piece = self.stream.next().await.unwrap_or_else(ended)?;
            if !piece.is_empty() {
                return Ok(piece);
            }
        }
    }
}
