//! Chunk-sized buffers, aligned for O_DIRECT and used again when their last reader is done.
//!
//! A buffer is filled once, where a connection allows by the network itself, then shared as [`Bytes`]: the reply to the kernel,
//! the writer of the store and the prover all read the same memory.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// The size of a buffer: that of a chunk.
pub const SIZE: usize = 1 << 20;

/// What O_DIRECT asks of addresses, offsets and lengths: 4 KiB satisfies every file system here.
pub const ALIGN: usize = 4096;

/// Whether the bytes lie as O_DIRECT asks, so that they need no buffer of their own to be kept.
#[must_use]
pub fn is_aligned(bytes: &[u8]) -> bool {
    bytes.as_ptr().align_offset(ALIGN) == 0
}

/// How many free buffers are kept; more are given back to the allocator.
const SPARE: usize = 16;

/// The free buffers of a loader.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

/// A buffer being filled: room for one chunk.
#[derive(Debug)]
pub struct Filling {
    memory: Vec<u8>,
    start: usize,
    filled: usize,
    pool: Pool,
}

struct Filled(Filling);

impl Pool {
    /// An empty buffer for one chunk.
    #[must_use]
    pub fn take(&self) -> Filling {
        let memory = self.0.lock().pop().unwrap_or_else(|| vec![0; SIZE + ALIGN]);
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Filling { memory, start, filled: 0, pool: self.clone() }
    }

    /// Gives the free buffers back.
    pub fn release(&self) {
        self.0.lock().clear();
    }
}

impl Filling {
    /// How many bytes are in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// What is in it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.memory.get(self.start..self.start + self.filled).unwrap_or_default()
    }

    /// Copies as much of `bytes` as fits and gives how much that was.
    pub fn push(&mut self, bytes: &[u8]) -> usize {
        let room = self.room(bytes.len());
        let count = room.len();
        room.copy_from_slice(bytes.get(..count).unwrap_or_default());
        self.grow(count);
        count
    }

    /// Fills exactly `len` bytes by `read`, which is given the memory.
    ///
    /// # Errors
    /// What `read` says.
    pub fn fill_with<E>(
        &mut self,
        len: usize,
        read: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let end = (self.start + len).min(self.memory.len());
        if let Some(room) = self.memory.get_mut(self.start..end) {
            read(room)?;
            self.filled = room.len();
        }
        Ok(())
    }

    /// Lets `write` put at most `most` bytes behind those that are in it, and gives how many it says it did.
    ///
    /// # Errors
    /// What `write` says; nothing counts as written then.
    pub fn extend_with<E>(
        &mut self,
        most: usize,
        write: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        let room = self.room(most);
        let room_len = room.len();
        let written = write(room)?.min(room_len);
        self.grow(written);
        Ok(written)
    }

    /// The memory behind what is in it, at most `most` bytes; what is written there counts once it [grows](Self::grow).
    pub fn room(&mut self, most: usize) -> &mut [u8] {
        let from = self.start + self.filled;
        let end = from.saturating_add(most).min(self.memory.len());
        self.memory.get_mut(from..end).unwrap_or_default()
    }

    /// Counts bytes that were written into its room.
    pub fn grow(&mut self, written: usize) {
        self.filled = self.filled.saturating_add(written).min(self.memory.len().saturating_sub(self.start));
    }

    /// Takes all bytes out again.
    pub fn clear(&mut self) {
        self.filled = 0;
    }

    /// The bytes, shared from now on. The memory returns to the pool with the last of them.
    #[must_use]
    pub fn share(self) -> Bytes {
        Bytes::from_owner(Filled(self))
    }
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let mut spare = self.pool.0.lock();
        if spare.len() < SPARE {
            spare.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_is_aligned_and_returns_to_its_pool() {
        let pool = Pool::default();
        let mut filling = pool.take();
        assert_eq!(filling.push(b"weights"), 7);
        let bytes = filling.share();
        assert_eq!(bytes.as_ptr().align_offset(ALIGN), 0);
        let other = bytes.slice(3..);
        drop(bytes);
        assert!(pool.0.lock().is_empty(), "still read by the slice");
        assert_eq!(&other[..], b"ghts");
        drop(other);
        assert_eq!(pool.0.lock().len(), 1);
    }

    #[test]
    fn a_buffer_takes_a_whole_chunk_whatever_its_alignment() {
        let pool = Pool::default();
        let chunk = vec![7; SIZE];
        for _ in 0..4 {
            let mut filling = pool.take();
            assert_eq!(filling.push(&chunk), chunk.len());
            std::mem::forget(filling.share());
        }
    }
}
