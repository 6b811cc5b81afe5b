//! How chunks get into the files of an extent: the digest on record, then the bytes, then the mark that they are here.

use std::io::{self, IoSlice};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::libc::off_t;
use nix::sys::uio::pwritev;

use super::kept::{KeptFile, RECORD, kept_at, record_at, record_check};
use super::seal::Stamp;
use crate::buffer::{ALIGN, is_aligned};
use crate::content::verify::{Verified, bytes_of};
use crate::index::ChunkDigest;

/// What [`KeptFile::record`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// The chunk had no digest; it has one now.
    New,
    /// The chunk had this digest.
    Same,
    /// The chunk has another digest, which stays.
    Differs,
}

impl KeptFile {
    /// Takes down the digest of `chunk`, unless it has one.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn record(&self, chunk: u64, digest: ChunkDigest) -> io::Result<Recorded> {
        match self.digest(chunk) {
            Some(known) if known == digest => Ok(Recorded::Same),
            Some(_) => Ok(Recorded::Differs),
            None => {
                let mut record = [0; RECORD];
                let (body, check) = record.split_at_mut(32);
                body.copy_from_slice(digest.bytes());
                check.copy_from_slice(&record_check(chunk, digest.bytes()));
                self.digests.write_all_at(&record, record_at(chunk))?;
                Ok(Recorded::New)
            }
        }
    }

    /// Records the digests of neighbouring chunks from `first` on, writes the chunks where they belong, and marks them as here, in
    /// this order; gives how many of them were not here before.
    ///
    /// One write to the disk where all are in aligned memory and none was here.
    ///
    /// # Errors
    /// Whatever the file system says, `ENOSPC` among it; the chunks count as absent then.
    pub fn write(&self, first: u64, run: &[Verified]) -> io::Result<u64> {
        let mut trail = self.changing.lock();
        let mut written = 0;
        let here = self.among(first..first.saturating_add(run.len() as u64));
        let fresh = |at: &usize| !here.get(*at).copied().unwrap_or(false);
        let fresh: Vec<usize> = (0..run.len()).filter(fresh).collect();
        for group in fresh.chunk_by(|one, next| next - one == 1) {
            let Some((start, chunks)) =
                group.first().and_then(|at| Some((*at, run.get(*at..at + group.len())?)))
            else {
                continue;
            };
            let first = first.saturating_add(start as u64);
            for (chunk, verified) in (first..).zip(chunks) {
                if self.record(chunk, verified.digest())? == Recorded::Differs {
                    return Err(io::Error::other("the chunk has another digest on record"));
                }
            }
            trail.follow(&self.image);
            self.write_image(first, chunks)?;
            trail.last = Stamp::of(&self.image).ok();
            trail.own.extend((first..).take(chunks.len()));
            self.kept.write_all_at(&vec![1; chunks.len()], kept_at(first))?;
            written += chunks.len() as u64;
        }
        Ok(written)
    }

    /// The chunks into the image: past the page cache and at once, as far as they lie as that asks.
    fn write_image(&self, first: u64, chunks: &[Verified]) -> io::Result<()> {
        let lies_well = |verified: &&Verified| {
            verified.bytes().len().is_multiple_of(ALIGN) && is_aligned(verified.bytes())
        };
        let well = chunks.iter().take_while(lies_well).count();
        let mut done = 0;
        if let (Some(direct), Some(chunks)) = (&self.direct, chunks.get(..well).filter(|well| well.len() > 1))
        {
            let slices: Vec<IoSlice<'_>> = chunks.iter().map(|chunk| IoSlice::new(chunk.bytes())).collect();
            let at = off_t::try_from(self.grid.range(first).start()).map_err(io::Error::other)?;
            let written = match pwritev(direct, &slices, at) {
                Err(Errno::EINTR) => 0,
                written => written?,
            };
            if written as u64 == bytes_of(chunks) {
                done = well;
            }
        }
        for (chunk, verified) in (first..).zip(chunks).skip(done) {
            let (bytes, at) = (verified.bytes(), self.grid.range(chunk).start());
            match self.direct.as_ref().filter(|_| lies_well(&verified)) {
                Some(direct) => direct.write_all_at(bytes, at)?,
                None => self.image.write_all_at(bytes, at)?,
            }
        }
        Ok(())
    }
}
