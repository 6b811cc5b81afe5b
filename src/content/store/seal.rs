//! What tells whether an image is as it was left: its size, times and inode, and what this process wrote into it.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;

use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::kept::check_of;

/// The stamp at the head of `.kept`.
pub(super) const STAMP: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"wfkept01");

/// How an image was when all of it had been written: what a seal declares, once what others wrote was read back.
#[derive(Clone, Copy, Debug)]
pub struct Seal(pub(super) Stamp);

/// What this process has written into the image, as long as nobody else has touched it.
#[derive(Debug, Default)]
pub(super) struct Trail {
    /// How the image was after the last write, or when it was opened.
    pub(super) last: Option<Stamp>,
    pub(super) own: HashSet<u64>,
}

impl Trail {
    /// Looks whether the image is as it was left; what others may have changed is not one's own any more.
    pub(super) fn follow(&mut self, image: &File) {
        let now = Stamp::of(image).ok();
        if now.is_none() || now != self.last {
            self.own.clear();
        }
    }
}

/// Has the kernel forget what it has of the image, but for what others have mapped. What was read chunk by chunk, here and there,
/// lies in its page cache in single pages, with which everybody who reads the whole file from there later is slower by a fifth; and
/// those who read it through the mount meanwhile have had it cached once more.
pub(super) fn uncache(image: &File) {
    let _ = posix_fadvise(image, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

/// Size and times of the image when it was last known to be complete and proved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([u64; 6]);

impl Stamp {
    #[allow(clippy::cast_sign_loss, reason = "only compared, never counted with")]
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        let times =
            [meta.mtime() as u64, meta.mtime_nsec() as u64, meta.ctime() as u64, meta.ctime_nsec() as u64];
        let [mtime, mtime_ns, ctime, ctime_ns] = times;
        Ok(Self([meta.size(), mtime, mtime_ns, ctime, ctime_ns, meta.ino()]))
    }

    pub(super) fn encode(self) -> [u8; STAMP] {
        let mut out = [0; STAMP];
        let words = std::iter::once(MAGIC).chain(self.0);
        for (slot, word) in out.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        let (body, check) = out.split_at_mut(STAMP - 8);
        check.copy_from_slice(&check_of(body));
        out
    }
}
