//! One pass over a layer: the SHA-256 of its stored bytes and the BLAKE3 of every chunk of its files.
//!
//! Both digests are made of the same buffer while it is in the processor's reach, in two threads, so that one large
//! layer uses two cores. [`publish`](super::publish()) digests files, [`add`](super::add) what a repository sends.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, channel, sync_channel};

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::layer::Layer;
use crate::error::{Error, Kind, Result};
use crate::index::{CHUNK, ChunkDigest};
use crate::oci::Blob;
use crate::oci::digest::{Algorithm, Hasher};
use crate::range::ContentRange;
use crate::repository::push::Seal;

/// How much is read at once: whole chunks of a raw layer.
const BUFFER: usize = 4 << 20;

/// How many buffers are under way between the two threads.
const BUFFERS: usize = 3;

/// A layer's bytes by their digests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digested {
    /// Digest and size of the stored bytes.
    pub blob: Blob,
    /// The digests of the chunks of its extents, in order.
    pub chunks: Vec<ChunkDigest>,
}

/// A word to whoever digests that nobody waits for it any more; given when dropped.
#[derive(Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// What the digesting thread looks at.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Digests a layer that is made of a file. Blocks; `read(n)` is called for every `n` bytes of it.
///
/// Costs one reading of the file, and 12 MiB while it lasts.
///
/// # Errors
/// `Busy` where the file is not the one that was found or changed while it was read, naming it; `Storage` where it can't
/// be read; `Deadline` where `stop` was set.
pub fn digest(layer: &Layer, stop: &AtomicBool, read: &(dyn Fn(u64) + Sync)) -> Result<Digested> {
    let mut chunks = Chunks::new(layer.extents());
    let (full, to_digest) = sync_channel::<Arc<Vec<u8>>>(BUFFERS);
    let (done, empty) = channel::<Arc<Vec<u8>>>();
    let (stored, chunks) = std::thread::scope(|scope| {
        let aside = scope.spawn(move || {
            while let Ok(buffer) = to_digest.recv() {
                chunks.update(&buffer);
                // Nobody takes it back once all is read.
                let _ = done.send(buffer);
            }
            chunks
        });
        let buffers = Buffers { full, empty };
        let mut stored = Hasher::new(Algorithm::Sha256);
        let done = read_layer(layer, stop, read, &mut |len| buffers.take(len), &mut |buffer| {
            buffers.give(buffer, &mut stored);
            Ok(())
        });
        drop(buffers);
        (done.map(|()| stored), aside.join())
    });
    let digest = stored?.finish();
    let chunks = chunks.map_err(|_| Error::new(Kind::Kernel, "a thread that digests has ended"))?;
    Ok(Digested { blob: Blob { digest, size: layer.size() }, chunks: chunks.finish() })
}

/// The way of the buffers to the other thread and back.
struct Buffers {
    full: SyncSender<Arc<Vec<u8>>>,
    empty: Receiver<Arc<Vec<u8>>>,
}

impl Buffers {
    /// One to fill: a used one where there is any.
    fn take(&self, len: usize) -> Vec<u8> {
        let used = match self.empty.try_recv() {
            Ok(buffer) => Arc::try_unwrap(buffer).ok(),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => None,
        };
        let mut buffer = used.unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// Digests it on both sides.
    fn give(&self, buffer: Vec<u8>, stored: &mut Hasher) {
        let buffer = Arc::new(buffer);
        // The other thread ends only when this side is gone.
        let _ = self.full.send(buffer.clone());
        stored.update(&buffer);
    }
}

/// Gives the layer's content to `give`, in order: its headers, whole chunks of the file, what follows it. `room(n)` gives `n` bytes to
/// read into. Blocks; `read(n)` is called for every `n` bytes of the file.
///
/// # Errors
/// As [`digest`]; those of `give`.
pub(super) fn read_layer(
    layer: &Layer,
    stop: &AtomicBool,
    read: &(dyn Fn(u64) + Sync),
    room: &mut dyn FnMut(usize) -> Vec<u8>,
    give: &mut dyn FnMut(Vec<u8>) -> Result<()>,
) -> Result<()> {
    let file = &layer.file;
    let failed = || format!("cannot read {}", file.place.display());
    give(layer.headers.to_vec())?;
    let open = file.open()?;
    let unchanged = || match open.metadata().map(|metadata| Seal::of(&metadata)) {
        Ok(seal) if seal == file.seal => Ok(()),
        Ok(_) => Err(file.changed()),
        Err(error) => Err(Error::from_source(Kind::Storage, failed(), error)),
    };
    // Advice: what comes of it changes nothing but the time.
    let _ = posix_fadvise(&open, 0, 0, PosixFadviseAdvice::POSIX_FADV_SEQUENTIAL);
    let mut at = 0;
    while at < file.size {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Deadline, format!("{} was given up", file.place.display())));
        }
        let len = usize::try_from(file.size - at).unwrap_or(usize::MAX).min(BUFFER);
        let mut buffer = room(len);
        open.read_exact_at(&mut buffer, at).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => file.changed(),
            _ => Error::from_source(Kind::Storage, failed(), error),
        })?;
        give(buffer)?;
        let len = u64::try_from(len).unwrap_or(u64::MAX);
        at = at.saturating_add(len);
        read(len);
    }
    unchanged()?;
    // And nobody put another file in its place, which is the one that is uploaded.
    file.check()?;
    give(vec![0; usize::try_from(layer.tail).unwrap_or(0)])
}

/// The digests of the chunks of a layer's extents, from the layer's content as it goes by in order.
#[derive(Debug)]
pub struct Chunks {
    extents: Vec<ContentRange>,
    /// The extent that is under way.
    extent: usize,
    /// How much of the content has gone by.
    at: u64,
    /// The chunk that is under way, where it came in parts.
    part: blake3::Hasher,
    digests: Vec<ChunkDigest>,
}

impl Chunks {
    /// Nothing has gone by yet of a layer with these extents, which are sorted.
    #[must_use]
    pub fn new(extents: Vec<ContentRange>) -> Self {
        Self { extents, extent: 0, at: 0, part: blake3::Hasher::new(), digests: Vec::new() }
    }

    /// The next bytes of the content.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while let (false, Some(extent)) = (bytes.is_empty(), self.extents.get(self.extent).copied()) {
            if self.at < extent.start() {
                bytes = self.pass(bytes, extent.start() - self.at).1;
                continue;
            }
            let within = (self.at - extent.start()) % CHUNK;
            let room = (CHUNK - within).min(extent.end().saturating_sub(self.at));
            let (taken, rest) = self.pass(bytes, room);
            bytes = rest;
            let ends = u64::try_from(taken.len()).is_ok_and(|len| len == room);
            match (within, ends) {
                (0, true) => self.digests.push(ChunkDigest::of(taken)),
                (_, false) => drop(self.part.update(taken)),
                (_, true) => {
                    let digest = self.part.update(taken).finalize();
                    self.digests.push(ChunkDigest::recorded(*digest.as_bytes()));
                    self.part.reset();
                }
            }
            if self.at >= extent.end() {
                self.extent += 1;
            }
        }
    }

    /// The digests, once all of the content has gone by.
    #[must_use]
    pub fn finish(self) -> Vec<ChunkDigest> {
        self.digests
    }

    /// At most `len` of the bytes, and the rest of them.
    fn pass<'a>(&mut self, bytes: &'a [u8], len: u64) -> (&'a [u8], &'a [u8]) {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
        self.at = self.at.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        bytes.split_at_checked(len).unwrap_or((bytes, &[]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::Grid;

    #[test]
    fn a_pipe_in_a_files_place_is_a_file_that_changed_and_holds_up_nobody() {
        use crate::oci::artifact::{LayerKind, Packaging};
        use crate::pack::walk::{Links, walk};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.bin");
        std::fs::write(&path, "abc").unwrap();
        let file = walk(folder.path(), Links::Inside).unwrap().files.remove(0);
        let layer = Layer::new(file, LayerKind::Weight, Packaging::Raw, 0).unwrap();
        assert_eq!(digest(&layer, &AtomicBool::new(false), &|_| {}).unwrap().blob.size, 3);
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = digest(&layer, &AtomicBool::new(false), &|_| {}).unwrap_err();
        assert_eq!(error.kind(), Kind::Busy);
        assert!(error.to_string().contains("w.bin changed while it was packed"), "{error}");
    }

    #[test]
    fn chunks_are_those_of_the_grid_however_the_bytes_come() {
        let content: Vec<u8> = (0..3 * CHUNK + 4000).map(|n| (n % 251) as u8).collect();
        let extents = vec![
            ContentRange::new(7, 8),
            ContentRange::new(8, CHUNK + 8),
            ContentRange::new(CHUNK + 9, 3 * CHUNK + 3000),
        ];
        let part = |range: ContentRange, of: &[u8]| {
            let [start, end] = [range.start(), range.end()].map(|at| usize::try_from(at).unwrap());
            of[start..end].to_vec()
        };
        let of_file = |extent: &ContentRange| {
            let (file, grid) = (part(*extent, &content), Grid::new(extent.len()));
            let chunks = (0..grid.chunks()).map(|chunk| ChunkDigest::of(&part(grid.range(chunk), &file)));
            chunks.collect::<Vec<_>>()
        };
        let expected: Vec<ChunkDigest> = extents.iter().flat_map(of_file).collect();
        for len in [1 << 20, 4 << 20, 100_003, 513] {
            let mut chunks = Chunks::new(extents.clone());
            content.chunks(len).for_each(|part| chunks.update(part));
            assert!(chunks.finish() == expected, "{len}");
        }
    }
}
