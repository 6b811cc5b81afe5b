//! One file's kept content: a sparse image of the file, the digests of its chunks, and which of them are here.
//!
//! Three files under the layer's folder, named by where the extent lies in the layer:
//!
//! * `OFFSET-LEN.data`: the image, chunk by chunk where they belong. Once complete and proved, the kernel is
//!   given this very file. It is never truncated and never punched: whoever has it open may map it.
//! * `OFFSET-LEN.digests`: a record for each chunk ever seen; outlives the image when that is evicted.
//! * `OFFSET-LEN.kept`: a stamp, then one byte a chunk: 1 where the image has it. A lie here costs a read and
//!   a hash, never a wrong byte, so nothing is synced while chunks arrive.
//!
//! Whoever has a [`KeptFile`] holds a shared lock on the image; eviction takes the exclusive one. Processes that
//! fetch at the same time claim chunks by open-file-description locks on the `kept` file, which the kernel
//! gives back when their process dies.

use std::collections::HashSet;
use std::fs::{File, FileTimes, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use parking_lot::Mutex;

pub use super::seal::Seal;
use super::seal::{self, STAMP, Stamp, Trail};
pub use super::writing::Recorded;
use crate::buffer::Pool;
use crate::content::verify::Verified;
use crate::index::ChunkDigest;
use crate::index::Grid;

/// A record of `.digests`: the digest and eight bytes that bind it to its chunk.
pub(super) const RECORD: usize = 40;

/// One extent's files, open, with the image locked against eviction.
#[derive(Debug)]
pub struct KeptFile {
    stem: PathBuf,
    pub(super) grid: Grid,
    pub(super) image: File,
    pub(super) direct: Option<File>,
    pub(super) digests: File,
    pub(super) kept: File,
    /// Held while a chunk is written or found to be damaged, so that a chunk mended meanwhile is not given up.
    pub(super) changing: Mutex<Trail>,
    /// How the image was when it was last found sealed here; `None` where it was not.
    seal: Mutex<Option<Stamp>>,
    last_use: Mutex<Instant>,
}

/// Chunks that this process alone fetches until the claim is dropped.
#[derive(Debug)]
pub struct Claim<'a> {
    kept: &'a File,
    chunk: u64,
}

impl KeptFile {
    /// Opens the three files at `stem` (a path without its ending), making what is missing; the folder must exist.
    ///
    /// An image of another size than `len` is foreign: it is unlinked and begun again.
    ///
    /// # Errors
    /// Whatever the file system says; the caller goes on without keeping.
    pub fn open(stem: &Path, len: u64) -> io::Result<Self> {
        let image = lock_image(stem, len)?;
        let digests = open(&stem.with_added_extension("digests"))?;
        let kept = open(&stem.with_added_extension("kept"))?;
        // Where the file system knows no O_DIRECT, writes go through the page cache.
        let direct = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW)
            .open(stem.with_added_extension("data"))
            .ok()
            .filter(|direct| same_file(direct, &image));
        // When it was last used, for eviction. The image's own times are its seal and stay as they are.
        let _ = kept.set_times(FileTimes::new().set_accessed(SystemTime::now()));
        let trail = Trail { last: Stamp::of(&image).ok(), own: HashSet::new() };
        Ok(Self {
            stem: stem.to_owned(),
            grid: Grid::new(len),
            image,
            direct,
            digests,
            kept,
            changing: Mutex::new(trail),
            seal: Mutex::new(None),
            last_use: Mutex::new(Instant::now()),
        })
    }

    /// The image file.
    #[must_use]
    pub fn image(&self) -> &File {
        &self.image
    }

    /// The digest recorded for `chunk`; `None` where there is none or the record is damaged.
    #[must_use]
    pub fn digest(&self, chunk: u64) -> Option<ChunkDigest> {
        let mut record = [0; RECORD];
        self.digests.read_exact_at(&mut record, record_at(chunk)).ok()?;
        let (digest, check) = record.split_at(32);
        let digest: [u8; 32] = digest.try_into().ok()?;
        (check == record_check(chunk, &digest)).then(|| ChunkDigest::recorded(digest))
    }

    /// Whether the image is said to have `chunk`; only [`read`](Self::read) finds out whether it is true.
    #[must_use]
    pub fn has(&self, chunk: u64) -> bool {
        let mut byte = [0];
        self.kept.read_exact_at(&mut byte, kept_at(chunk)).is_ok() && byte == [1]
    }

    /// For every chunk whether the image is said to have it.
    #[must_use]
    pub fn all(&self) -> Vec<bool> {
        self.among(0..self.grid.chunks())
    }

    /// For each of these chunks whether the image is said to have it.
    #[must_use]
    pub fn among(&self, chunks: Range<u64>) -> Vec<bool> {
        read_kept(&self.kept, chunks)
    }

    /// The chunk as the image has it, matched against its recorded digest; `None` where it is absent. One that
    /// does not match, or cannot be read, is marked absent first, and counted as `damaged`.
    ///
    /// Costs a read of at most 1 MiB and its hash, so it belongs on a thread that may block.
    pub fn read(&self, chunk: u64, pool: &Pool, damaged: impl FnOnce()) -> Option<Verified> {
        if !self.has(chunk) {
            return None;
        }
        self.read_verified(chunk, pool).or_else(|| {
            let mut trail = self.changing.lock();
            let mended = self.read_verified(chunk, pool);
            if mended.is_none() && self.has(chunk) {
                damaged();
                self.unmark(chunk, &mut trail);
            }
            mended
        })
    }

    fn read_verified(&self, chunk: u64, pool: &Pool) -> Option<Verified> {
        let found = self.read_unproved(chunk, pool).ok()?;
        Verified::check(found, Some(self.digest(chunk)?))
    }

    fn read_unproved(&self, chunk: u64, pool: &Pool) -> io::Result<bytes::Bytes> {
        let range = self.grid.range(chunk);
        let len = usize::try_from(range.len()).map_err(io::Error::other)?;
        let mut buffer = pool.take(len);
        buffer.fill_with(len, |room| self.image.read_exact_at(room, range.start()))?;
        Ok(buffer.share())
    }

    /// Marks the chunk as absent, and the file as no longer known to be whole.
    pub fn forget(&self, chunk: u64) {
        self.unmark(chunk, &mut self.changing.lock());
    }

    fn unmark(&self, chunk: u64, trail: &mut Trail) {
        trail.own.remove(&chunk);
        *self.seal.lock() = None;
        // Where even this fails, the chunk is read and found wrong again next time.
        let _ = self.kept.write_all_at(&[0; STAMP], 0);
        let _ = self.kept.write_all_at(&[0], kept_at(chunk));
    }

    /// Takes down how the image is, so that it can be sealed when the chunks that are [`doubtful`](Self::doubtful) have
    /// been read back.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn prepare_seal(&self) -> io::Result<Seal> {
        let synced = || {
            self.digests.sync_data()?;
            self.image.sync_all()?;
            Ok(Seal(Stamp::of(&self.image)?))
        };
        synced().inspect_err(|_| {
            // What a sync reports it reports once, and what the page cache has may not be what the disk has.
            self.changing.lock().own.clear();
            seal::uncache(&self.image);
        })
    }

    /// The chunks that must be read back before the image is sealed: all but those that this process itself wrote, verified,
    /// where nobody has touched the image between its writes or after them (by size, times and inode). A touch in the very
    /// time of one of its writes can't be told from that.
    #[must_use]
    pub fn doubtful(&self, seal: &Seal) -> Vec<u64> {
        let trail = self.changing.lock();
        let untouched = trail.last == Some(seal.0);
        (0..self.grid.chunks()).filter(|chunk| !untouched || !trail.own.contains(chunk)).collect()
    }

    /// Declares the image complete and proved as it was when the seal was prepared. Somebody who touches it
    /// after that breaks the seal, whether before or after this call.
    ///
    /// # Errors
    /// Whatever the file system says; the image is verified again when next used then.
    pub fn seal(&self, seal: Seal) -> io::Result<()> {
        let mut trail = self.changing.lock();
        if !self.all().into_iter().all(|here| here) {
            return Err(io::Error::other("a chunk was found to be damaged meanwhile"));
        }
        self.kept.write_all_at(&seal.0.encode(), 0)?;
        *self.seal.lock() = Some(seal.0);
        trail.own = HashSet::new();
        seal::uncache(&self.image);
        Ok(())
    }

    /// Whether the image was complete and proved once and nobody has touched it since, by size, times and inode. Reads from the disk.
    #[must_use]
    pub fn sealed(&self) -> bool {
        let mut recorded = [0; STAMP];
        let read = self.kept.read_exact_at(&mut recorded, 0);
        let now = Stamp::of(&self.image).ok().filter(|now| read.is_ok() && now.encode() == recorded);
        *self.seal.lock() = now;
        now.is_some()
    }

    /// The same as far as the kernel knows without its disk: whether the image is as it was when it was last found
    /// [`sealed`](Self::sealed) here. What another process has found out about it since does not count.
    #[must_use]
    pub fn still_sealed(&self) -> bool {
        let seal = *self.seal.lock();
        seal.is_some() && seal == Stamp::of(&self.image).ok()
    }

    /// Vouches for the digests on record as they are now, all of them: for a layer that was just proved. Whatever
    /// changes in the records afterwards takes the voucher away.
    ///
    /// # Errors
    /// Whatever the file system says, or that a chunk has no digest on record.
    pub fn vouch(&self) -> io::Result<()> {
        let records = self.records()?;
        let all = (0..self.grid.chunks()).all(|chunk| self.digest(chunk).is_some());
        if !all {
            return Err(io::Error::other("not every chunk has a digest on record"));
        }
        self.digests.write_all_at(blake3::hash(&records).as_bytes(), record_at(self.grid.chunks()))?;
        self.digests.sync_data()
    }

    /// Whether the digests on record are those that were vouched for. Reads them all: 40 bytes a chunk.
    #[must_use]
    pub fn vouched(&self) -> bool {
        let mut voucher = [0; 32];
        let read = self.digests.read_exact_at(&mut voucher, record_at(self.grid.chunks()));
        read.is_ok() && self.records().is_ok_and(|records| *blake3::hash(&records).as_bytes() == voucher)
    }

    /// Makes these the digests on record (32 bytes a chunk) and vouches for them: for a bound layer, whose digests are
    /// the artifact's. Writes only where the records are others. Not synced: what is lost is written again.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn hold_to(&self, digests: &[u8]) -> io::Result<()> {
        let mut right = Vec::with_capacity(digests.len() / 4 * 5 + 32);
        for (chunk, digest) in (0..).zip(digests.as_chunks::<32>().0) {
            right.extend_from_slice(digest);
            right.extend_from_slice(&record_check(chunk, digest));
        }
        let voucher = blake3::hash(&right);
        right.extend_from_slice(voucher.as_bytes());
        let mut found = vec![0; right.len()];
        if self.digests.read_exact_at(&mut found, 0).is_ok() && found == right {
            return Ok(());
        }
        self.digests.write_all_at(&right, 0)
    }

    fn records(&self) -> io::Result<Vec<u8>> {
        let len = usize::try_from(record_at(self.grid.chunks())).map_err(io::Error::other)?;
        let mut records = vec![0; len];
        self.digests.read_exact_at(&mut records, 0)?;
        Ok(records)
    }

    /// Says that the file is in use now.
    pub fn touch(&self) {
        *self.last_use.lock() = Instant::now();
    }

    /// How long ago it was last in use.
    #[must_use]
    pub fn unused_for(&self) -> Duration {
        self.last_use.lock().elapsed()
    }

    /// Claims `chunk` for this process until the claim is dropped; `None` while another process has it.
    #[must_use]
    pub fn claim(&self, chunk: u64) -> Option<Claim<'_>> {
        set_claim(&self.kept, chunk, libc::F_WRLCK).is_ok().then_some(Claim { kept: &self.kept, chunk })
    }

    /// Whether somebody has removed the image from its folder while it was locked here.
    #[must_use]
    pub fn removed(&self) -> bool {
        self.image.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }

    /// Path without ending, for messages.
    #[must_use]
    pub fn stem(&self) -> &Path {
        &self.stem
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        // A claim that can't be given back goes with the process.
        let _ = set_claim(self.kept, self.chunk, libc::F_UNLCK);
    }
}

/// How many of the chunks at `stem` are said to be here, in bytes; 0 where nothing is kept. Takes no lock.
#[must_use]
pub fn kept_bytes(stem: &Path, len: u64) -> u64 {
    let grid = Grid::new(len);
    (0..).zip(said(stem, len)).filter(|(_, here)| *here).map(|(chunk, _)| grid.range(chunk).len()).sum()
}

/// For every chunk at `stem` whether it is said to be here; empty where nothing is kept. Takes no lock.
#[must_use]
pub fn said(stem: &Path, len: u64) -> Vec<bool> {
    let kept = File::open(stem.with_added_extension("kept"));
    kept.map(|kept| read_kept(&kept, 0..Grid::new(len).chunks())).unwrap_or_default()
}

/// The digests on record at `stem`, one after the other; `None` where one is missing or damaged. Takes no lock.
#[must_use]
pub fn recorded(stem: &Path, len: u64) -> Option<Vec<u8>> {
    let file = File::open(stem.with_added_extension("digests")).ok()?;
    let mut records = vec![0; usize::try_from(record_at(Grid::new(len).chunks())).ok()?];
    file.read_exact_at(&mut records, 0).ok()?;
    let records = (0..).zip(records.as_chunks::<RECORD>().0);
    let digests = records.map(|(chunk, record)| {
        let (digest, check) = record.split_first_chunk::<32>()?;
        (check == record_check(chunk, digest)).then_some(*digest)
    });
    digests.collect::<Option<Vec<_>>>().map(|digests| digests.concat())
}

fn read_kept(kept: &File, chunks: Range<u64>) -> Vec<bool> {
    let count = usize::try_from(chunks.end.saturating_sub(chunks.start)).unwrap_or(0);
    let mut bytes = vec![0; count];
    let mut at = 0;
    while let Some(room) = bytes.get_mut(at..).filter(|room| !room.is_empty()) {
        match kept.read_at(room, kept_at(chunks.start.saturating_add(at as u64))) {
            Ok(0) | Err(_) => break,
            Ok(read) => at += read,
        }
    }
    bytes.into_iter().map(|byte| byte == 1).collect()
}

/// Opens or makes the image and locks it against eviction. An evictor may unlink it in between: then again.
fn lock_image(stem: &Path, len: u64) -> io::Result<File> {
    let path = stem.with_added_extension("data");
    for _ in 0..16 {
        let image = open(&path)?;
        if image.try_lock_shared().is_err() {
            // An evictor holds it for the time of two unlinks. One that was stopped meanwhile must not stop us.
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        let meta = image.metadata()?;
        if meta.nlink() == 0 {
            continue;
        }
        if meta.len() == 0 {
            image.set_len(len)?;
            return Ok(image);
        }
        if meta.len() == len {
            return Ok(image);
        }
        tracing::warn!(path = %path.display(), "an image of another size is removed from the store");
        let _ = std::fs::remove_file(stem.with_added_extension("kept"));
        std::fs::remove_file(&path)?;
    }
    Err(io::Error::other("the image is being evicted, again and again"))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

fn same_file(a: &File, b: &File) -> bool {
    match (a.metadata(), b.metadata()) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn set_claim(kept: &File, chunk: u64, kind: libc::c_int) -> io::Result<()> {
    let start = libc::off_t::try_from(kept_at(chunk)).map_err(io::Error::other)?;
    let lock = libc::flock {
        l_type: libc::c_short::try_from(kind).map_err(io::Error::other)?,
        l_whence: libc::c_short::try_from(libc::SEEK_SET).map_err(io::Error::other)?,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(kept.as_fd(), FcntlArg::F_OFD_SETLK(&lock)).map(drop).map_err(io::Error::from)
}

pub(super) fn record_at(chunk: u64) -> u64 {
    chunk.saturating_mul(RECORD as u64)
}

pub(super) fn kept_at(chunk: u64) -> u64 {
    chunk.saturating_add(STAMP as u64)
}

pub(super) fn record_check(chunk: u64, digest: &[u8; 32]) -> [u8; 8] {
    let mut body = [0; 40];
    let (number, rest) = body.split_at_mut(8);
    number.copy_from_slice(&chunk.to_le_bytes());
    rest.copy_from_slice(digest);
    check_of(&body)
}

pub(super) fn check_of(body: &[u8]) -> [u8; 8] {
    let hash = blake3::hash(body);
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::CHUNK;

    const LEN: u64 = 2 * CHUNK + 100;

    fn chunk_of(byte: u8, len: u64) -> Verified {
        let pool = Pool::default();
        let mut filling = pool.take(usize::try_from(len).unwrap());
        filling.push(&vec![byte; usize::try_from(len).unwrap()]);
        Verified::check(filling.share(), None).unwrap()
    }

    fn fresh() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let stem = dir.path().join("0-1");
        (dir, stem)
    }

    fn read(kept: &KeptFile, chunk: u64) -> Option<Verified> {
        kept.read(chunk, &Pool::default(), || ())
    }

    #[test]
    fn what_is_written_is_read_back_by_the_next_process() {
        let (_dir, stem) = fresh();
        let kept = KeptFile::open(&stem, LEN).unwrap();
        assert!(read(&kept, 0).is_none());
        kept.write(1, &[chunk_of(7, CHUNK)]).unwrap();
        kept.write(2, &[chunk_of(9, 100)]).unwrap();
        drop(kept);
        let kept = KeptFile::open(&stem, LEN).unwrap();
        assert_eq!(kept.all(), [false, true, true]);
        assert_eq!(read(&kept, 1).unwrap().bytes().first(), Some(&7));
        assert_eq!(read(&kept, 2).unwrap().bytes().len(), 100);
        assert_eq!(kept_bytes(&stem, LEN), CHUNK + 100);
    }

    #[test]
    fn every_flipped_byte_of_every_file_makes_a_miss_and_never_other_bytes() {
        let (_dir, stem) = fresh();
        let right = chunk_of(7, 100);
        for ending in ["data", "digests", "kept"] {
            let path = stem.with_added_extension(ending);
            let _ = std::fs::remove_file(&path);
            KeptFile::open(&stem, 100).unwrap().write(0, std::slice::from_ref(&right)).unwrap();
            for at in 0..std::fs::metadata(&path).unwrap().len() {
                let mut bytes = std::fs::read(&path).unwrap();
                bytes[usize::try_from(at).unwrap()] ^= 0x10;
                std::fs::write(&path, &bytes).unwrap();
                let kept = KeptFile::open(&stem, 100).unwrap();
                if let Some(found) = read(&kept, 0) {
                    assert_eq!(found.bytes(), right.bytes(), "{ending} byte {at}");
                }
                assert!(!kept.sealed());
                drop(kept);
                std::fs::remove_file(&path).unwrap();
                KeptFile::open(&stem, 100).unwrap().write(0, std::slice::from_ref(&right)).unwrap();
            }
        }
    }

    #[test]
    fn a_sealed_image_that_somebody_touched_is_not_trusted() {
        let (_dir, stem) = fresh();
        let kept = KeptFile::open(&stem, 100).unwrap();
        assert!(!kept.sealed());
        kept.write(0, &[chunk_of(7, 100)]).unwrap();
        assert!(!kept.still_sealed());
        kept.seal(kept.prepare_seal().unwrap()).unwrap();
        assert!(kept.still_sealed() && kept.sealed() && kept.still_sealed());
        let other = OpenOptions::new().write(true).open(stem.with_added_extension("data")).unwrap();
        other.write_all_at(b"x", 50).unwrap();
        assert!(!kept.sealed());
        assert!(read(&kept, 0).is_none());
    }

    #[test]
    fn what_this_process_wrote_need_not_be_read_back_unless_somebody_touched_the_image() {
        let (_dir, stem) = fresh();
        let kept = KeptFile::open(&stem, LEN).unwrap();
        kept.write(0, &[chunk_of(1, CHUNK)]).unwrap();
        kept.write(2, &[chunk_of(3, 100)]).unwrap();
        assert_eq!(kept.doubtful(&kept.prepare_seal().unwrap()), [1], "not written yet");
        kept.write(1, &[chunk_of(2, CHUNK)]).unwrap();
        let seal = kept.prepare_seal().unwrap();
        assert!(kept.doubtful(&seal).is_empty());
        kept.seal(seal).unwrap();
        assert!(kept.sealed());

        let other = KeptFile::open(&stem, LEN).unwrap();
        assert_eq!(
            other.doubtful(&other.prepare_seal().unwrap()),
            [0, 1, 2],
            "another process knows nothing of it"
        );
        let image = OpenOptions::new().write(true).open(stem.with_added_extension("data")).unwrap();
        image.write_all_at(b"x", 50).unwrap();
        assert_eq!(kept.doubtful(&kept.prepare_seal().unwrap()), [0, 1, 2]);
        let seal = kept.prepare_seal().unwrap();
        kept.forget(2);
        assert!(kept.seal(seal).is_err() && !kept.sealed(), "found to be damaged meanwhile");
        kept.write(2, &[chunk_of(3, 100)]).unwrap();
        assert_eq!(kept.doubtful(&kept.prepare_seal().unwrap()), [0, 1], "written after it was touched");
    }

    #[test]
    fn a_chunk_has_one_digest_for_ever() {
        let (_dir, stem) = fresh();
        let kept = KeptFile::open(&stem, LEN).unwrap();
        let (first, second) = (chunk_of(1, CHUNK).digest(), chunk_of(2, CHUNK).digest());
        assert_eq!(kept.record(1, first).unwrap(), Recorded::New);
        assert_eq!(kept.record(1, first).unwrap(), Recorded::Same);
        assert_eq!(kept.record(1, second).unwrap(), Recorded::Differs);
        assert_eq!(kept.digest(1), Some(first));
        assert_eq!(kept.digest(0), None);
    }

    #[test]
    fn a_voucher_holds_for_the_records_that_it_was_given_for_and_no_others() {
        let (_dir, stem) = fresh();
        let kept = KeptFile::open(&stem, LEN).unwrap();
        assert!(kept.vouch().is_err() && !kept.vouched(), "nothing on record");
        for (chunk, len) in [(0, CHUNK), (1, CHUNK), (2, 100)] {
            kept.record(chunk, chunk_of(7, len).digest()).unwrap();
        }
        kept.vouch().unwrap();
        assert!(kept.vouched());
        let path = stem.with_added_extension("digests");
        for at in 0..std::fs::metadata(&path).unwrap().len() {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[usize::try_from(at).unwrap()] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(!KeptFile::open(&stem, LEN).unwrap().vouched(), "byte {at}");
            bytes[usize::try_from(at).unwrap()] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(kept.vouched());
    }

    #[test]
    fn records_that_are_lost_damaged_or_of_others_give_way_to_those_the_artifact_brings() {
        let (_dir, stem) = fresh();
        let digests: Vec<u8> =
            [1, 2, 3].iter().flat_map(|byte| *chunk_of(*byte, 100).digest().bytes()).collect();
        let kept = KeptFile::open(&stem, LEN).unwrap();
        assert_eq!(recorded(&stem, LEN), None);
        kept.record(1, chunk_of(9, 100).digest()).unwrap();
        kept.hold_to(&digests).unwrap();
        assert!(kept.vouched());
        assert_eq!(recorded(&stem, LEN).unwrap(), digests);
        let path = stem.with_added_extension("digests");
        for at in 0..std::fs::metadata(&path).unwrap().len() {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[usize::try_from(at).unwrap()] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            assert!(recorded(&stem, LEN).is_none_or(|found| found == digests), "byte {at}");
            kept.hold_to(&digests).unwrap();
            assert!(kept.vouched(), "byte {at}");
        }
        std::fs::write(&path, b"").unwrap();
        kept.hold_to(&digests).unwrap();
        assert_eq!(kept.digest(2).unwrap().bytes(), &digests[64..]);
    }

    #[test]
    fn a_claim_excludes_other_openers_until_it_is_dropped() {
        let (_dir, stem) = fresh();
        let (one, two) = (KeptFile::open(&stem, LEN).unwrap(), KeptFile::open(&stem, LEN).unwrap());
        let claim = one.claim(1).unwrap();
        assert!(two.claim(1).is_none());
        assert!(two.claim(0).is_some());
        drop(claim);
        assert!(two.claim(1).is_some());
    }

    #[test]
    fn an_image_of_another_size_is_begun_again() {
        let (_dir, stem) = fresh();
        KeptFile::open(&stem, LEN).unwrap().write(0, &[chunk_of(3, CHUNK)]).unwrap();
        let kept = KeptFile::open(&stem, 100).unwrap();
        assert_eq!(kept.all(), [false]);
        assert_eq!(kept.image().metadata().unwrap().len(), 100);
    }
}
