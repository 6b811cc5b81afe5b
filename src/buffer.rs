//! Chunk-sized buffers, aligned for O_DIRECT and used again when their last reader is done.
//!
//! A buffer is filled once, where a connection allows by the network itself, then shared as [`Bytes`]: the reply to the kernel,
//! the writer of the store and the prover all read the same memory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};
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

/// How many free buffers are kept; more are given back to the kernel.
const SPARE: usize = 48;
/// How many are mapped at once: side by side they are one mapping to the kernel, of which it makes huge pages.
const GROUP: usize = 8;
/// Less than so much is no use of a huge page.
const SMALL: usize = 256 << 10;

/// The free buffers of a loader.
#[derive(Clone, Debug, Default)]
pub struct Pool(Arc<Mutex<Spare>>);

#[derive(Debug, Default)]
struct Spare {
    /// The last one is taken first.
    free: Vec<MmapMut>,
    /// How many were free all the time since somebody looked.
    unused: usize,
}

/// A buffer being filled: room for one chunk.
#[derive(Debug)]
pub struct Filling {
    memory: Memory,
    filled: usize,
    pool: Pool,
}

#[derive(Debug)]
enum Memory {
    /// Of the pool.
    Mapped(MmapMut),
    /// Of what lies at the second's place on: for little, or where the kernel maps no more.
    Own(Vec<u8>, usize),
}

struct Filled(Filling);

impl Memory {
    fn own(len: usize) -> Self {
        let memory = vec![0; len.saturating_add(ALIGN)];
        let start = memory.as_ptr().align_offset(ALIGN).min(ALIGN);
        Self::Own(memory, start)
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(memory) => memory,
            Self::Own(memory, start) => memory.get(*start..).unwrap_or_default(),
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Mapped(memory) => memory,
            Self::Own(memory, start) => memory.get_mut(*start..).unwrap_or_default(),
        }
    }
}

impl Pool {
    /// An empty buffer for `len` bytes, at most a chunk.
    #[must_use]
    pub fn take(&self, len: usize) -> Filling {
        let memory = match len < SMALL {
            true => Memory::own(len),
            false => self.mapped().map_or_else(|_| Memory::own(SIZE), Memory::Mapped),
        };
        Filling { memory, filled: 0, pool: self.clone() }
    }

    fn mapped(&self) -> io::Result<MmapMut> {
        let mut spare = self.0.lock();
        if let Some(memory) = spare.free.pop() {
            spare.unused = spare.unused.min(spare.free.len());
            return Ok(memory);
        }
        for _ in 1..GROUP {
            spare.free.push(map()?);
        }
        map()
    }

    /// Gives the free buffers back.
    pub fn release(&self) {
        *self.0.lock() = Spare::default();
    }

    /// Gives those back that were free all the time since this was last called. Costs their unmapping.
    pub fn settle(&self) {
        let mut spare = self.0.lock();
        let unused = spare.unused.min(spare.free.len());
        let gone: Vec<MmapMut> = spare.free.drain(..unused).collect();
        spare.unused = spare.free.len();
        drop(spare);
        drop(gone);
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
        self.memory.bytes().get(..self.filled).unwrap_or_default()
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
        let memory = self.memory.bytes_mut();
        let len = len.min(memory.len());
        if let Some(room) = memory.get_mut(..len) {
            read(room)?;
            self.filled = len;
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
        let memory = self.memory.bytes_mut();
        let end = self.filled.saturating_add(most).min(memory.len());
        memory.get_mut(self.filled..end).unwrap_or_default()
    }

    /// Counts bytes that were written into its room.
    pub fn grow(&mut self, written: usize) {
        self.filled = self.filled.saturating_add(written).min(self.memory.bytes().len());
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
        let memory = std::mem::replace(&mut self.memory, Memory::Own(Vec::new(), 0));
        let Memory::Mapped(memory) = memory else { return };
        let mut spare = self.pool.0.lock();
        if spare.free.len() < SPARE {
            spare.free.push(memory);
        }
    }
}

/// Memory for one chunk, of huge pages where the kernel has any: a fault for two of them instead of 512, and fewer pages to pin for
/// each write past the page cache. They lie side by side since the kernel puts what is mapped below what was mapped before.
fn map() -> io::Result<MmapMut> {
    let memory = MmapMut::map_anon(SIZE)?;
    // Kernels without huge pages know nothing of the advice.
    let _ = memory.advise(Advice::HugePage);
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_buffer_is_aligned_and_returns_to_its_pool() {
        let pool = Pool::default();
        let mut filling = pool.take(SIZE);
        assert_eq!(filling.push(b"weights"), 7);
        let bytes = filling.share();
        assert_eq!(bytes.as_ptr().align_offset(ALIGN), 0);
        let other = bytes.slice(3..);
        drop(bytes);
        let spare = || pool.0.lock().free.len();
        assert_eq!(spare(), GROUP - 1, "still read by the slice");
        assert_eq!(&other[..], b"ghts");
        drop(other);
        assert_eq!(spare(), GROUP);
        pool.release();
        drop(pool.take(100));
        assert_eq!(spare(), 0, "too little for the pool");
    }

    #[test]
    fn what_nobody_has_used_between_two_looks_is_given_back() {
        let pool = Pool::default();
        let spare = || pool.0.lock().free.len();
        let busy: Vec<Filling> = (0..GROUP).map(|_| pool.take(SIZE)).collect();
        pool.settle();
        drop(busy);
        pool.settle();
        assert_eq!(spare(), GROUP, "in use since the look before");
        drop((pool.take(SIZE), pool.take(SIZE)));
        pool.settle();
        assert_eq!(spare(), 2, "as many as were in use at once");
        pool.settle();
        assert_eq!(spare(), 0);
    }

    #[test]
    fn a_buffer_takes_a_whole_chunk_whatever_its_alignment() {
        let pool = Pool::default();
        for len in [1, 100, SMALL - 1, SMALL, SIZE] {
            let chunk = vec![7; len];
            let mut filling = pool.take(len);
            assert_eq!(filling.push(&chunk), chunk.len());
            let bytes = filling.share();
            assert!(is_aligned(&bytes) && bytes == chunk);
        }
    }
}
