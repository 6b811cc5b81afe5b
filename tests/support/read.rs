//! Ways to read a file, and comparing what was read with what it should be.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use memmap2::{Mmap, MmapMut, MmapOptions};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::pack;
use super::place::Place;
use super::sample::Sample;

const MIB: u64 = 1 << 20;
/// What O_DIRECT wants buffers, offsets and lengths to be multiples of, whatever lies below.
const ALIGNMENT: usize = 4096;

/// The bytes of `[offset, offset + size)`, or as many as there are.
///
/// # Errors
/// What the read says.
pub fn range(file: &File, offset: u64, size: u64) -> io::Result<Vec<u8>> {
    let (mut bytes, mut filled) = (vec![0; size as usize], 0);
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads `[offset, offset + size)` of `path` with reads of 1 MiB and compares it with the same of `original`.
///
/// # Panics
/// When a read fails or a byte differs.
pub fn compare(path: &Path, original: &Path, offset: u64, size: u64) {
    let (file, right) = (File::open(path).unwrap(), map(original));
    let end = offset + size;
    for at in (offset..end).step_by(MIB as usize) {
        let part = MIB.min(end - at);
        let bytes =
            range(&file, at, part).unwrap_or_else(|error| panic!("{} at {at}: {error}", path.display()));
        assert_same(path, at, &bytes, &right[at as usize..(at + part) as usize]);
    }
}

/// [`compare`], of the whole file; the lengths must be equal too.
pub fn compare_whole(path: &Path, original: &Path) {
    let size = original.metadata().unwrap().len();
    assert_eq!(path.metadata().unwrap().len(), size, "{}", path.display());
    compare(path, original, 0, size);
}

/// Panics with the first place where they differ, and not with a megabyte of numbers.
pub fn assert_same(path: &Path, at: u64, got: &[u8], right: &[u8]) {
    if got != right {
        let first = got.iter().zip(right).position(|(one, other)| one != other);
        let zeros = got.iter().all(|byte| *byte == 0);
        panic!(
            "{} at {at}: {} bytes for {}, first wrong {first:?}, all zero: {zeros}",
            path.display(),
            got.len(),
            right.len()
        );
    }
}

/// Reads a whole file with O_DIRECT, 1 MiB a read, from a buffer aligned as the strictest disk wants it.
///
/// # Errors
/// What opening or reading says.
pub fn direct(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::options().read(true).custom_flags(nix::libc::O_DIRECT).open(path)?;
    let mut room = vec![0_u8; MIB as usize + ALIGNMENT];
    let start = room.as_ptr().align_offset(ALIGNMENT);
    let buffer = &mut room[start..start + MIB as usize];
    let mut bytes = Vec::new();
    loop {
        let count = file.read_at(buffer, bytes.len() as u64)?;
        bytes.extend_from_slice(&buffer[..count]);
        // A read that ends off the grid was the last: there is nothing to ask for in between.
        if count == 0 || count % ALIGNMENT != 0 {
            return Ok(bytes);
        }
    }
}

/// Drops what the kernel keeps of a file.
pub fn forget(file: &File) {
    posix_fadvise(file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
}

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// PROT_READ, MAP_SHARED.
    Shared,
    /// PROT_READ, MAP_SHARED | MAP_POPULATE.
    Populated,
    /// PROT_READ, MAP_PRIVATE.
    Private,
}

/// Maps a whole file for reading.
///
/// # Errors
/// What mmap says.
pub fn map_as(path: &Path, how: Mapping) -> io::Result<Mmap> {
    let file = File::open(path)?;
    #[allow(unsafe_code, reason = "mapping a file is what is tested")]
    // SAFETY: nobody shortens or writes the files of a read-only mount or of the sample while a test maps them; where a test
    // breaks this, it does so in a process made for dying.
    unsafe {
        match how {
            Mapping::Shared => MmapOptions::new().map(&file),
            Mapping::Populated => MmapOptions::new().populate().map(&file),
            Mapping::Private => MmapOptions::new().map_copy_read_only(&file),
        }
    }
}

/// Maps a whole file PROT_READ | PROT_WRITE and MAP_PRIVATE, as torch and ONNX Runtime do.
///
/// # Errors
/// What mmap says.
pub fn map_writable(path: &Path) -> io::Result<MmapMut> {
    let file = File::open(path)?;
    #[allow(unsafe_code, reason = "mapping a file is what is tested")]
    // SAFETY: as in `map_as`; what is written stays with this process.
    unsafe {
        MmapOptions::new().map_copy(&file)
    }
}

/// [`map_as`] with [`Mapping::Shared`], of a file that is there.
pub fn map(path: &Path) -> Mmap {
    map_as(path, Mapping::Shared).unwrap()
}

/// An extended attribute as text; `None` when there is no such.
pub fn xattr(path: &Path, name: &str) -> Option<String> {
    let path = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    let name = std::ffi::CString::new(name).unwrap();
    let mut value = vec![0_u8; 256];
    #[allow(unsafe_code, reason = "the standard library has no extended attributes")]
    // SAFETY: both strings end with a zero and the buffer is as long as said.
    let size =
        unsafe { nix::libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(usize::try_from(size).ok()?);
    Some(String::from_utf8(value).unwrap())
}

/// An open folder that is read in steps of a chosen size, as `getdents64` has it.
pub struct Folder(File);

/// A name in a folder, and where reading goes on after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub name: String,
    pub next: i64,
}

impl Folder {
    /// Opens a folder that is there.
    pub fn open(path: &Path) -> Self {
        Self(File::open(path).unwrap())
    }

    /// Goes to a place that a [`Name::next`] gave; 0 is the start.
    pub fn seek(&mut self, to: i64) {
        io::Seek::seek(&mut self.0, io::SeekFrom::Start(to as u64)).unwrap();
    }

    /// As many names as fit in a buffer of `room` bytes; none at the end.
    pub fn step(&mut self, room: usize) -> Vec<Name> {
        let mut buffer = vec![0_u8; room];
        #[allow(unsafe_code, reason = "the standard library hides the offsets that are tested")]
        // SAFETY: the buffer is as long as said, and the kernel writes nothing else.
        let size = unsafe {
            nix::libc::syscall(nix::libc::SYS_getdents64, self.0.as_raw_fd(), buffer.as_mut_ptr(), room)
        };
        assert!(size >= 0, "getdents64: {}", io::Error::last_os_error());
        buffer.truncate(size as usize);
        let mut names = Vec::new();
        // A record: inode and next offset of 8 bytes each, its length in 2, a type in 1, the name up to a zero.
        while !buffer.is_empty() {
            let length = usize::from(u16::from_le_bytes(buffer[16..18].try_into().unwrap()));
            let record: Vec<u8> = buffer.drain(..length).collect();
            let name = record[19..].split(|byte| *byte == 0).next().unwrap().to_vec();
            let next = i64::from_le_bytes(record[8..16].try_into().unwrap());
            names.push(Name { name: String::from_utf8(name).unwrap(), next });
        }
        names
    }

    /// All names from here on, in steps of `room` bytes.
    pub fn rest(&mut self, room: usize) -> Vec<Name> {
        let mut names = Vec::new();
        loop {
            match self.step(room) {
                some if some.is_empty() => return names,
                some => names.extend(some),
            }
        }
    }
}

/// Makes sure that every file of the sample is in the mount with the right length and SHA-256.
pub fn assert_whole_sample(place: &Place, sample: &Sample) {
    for file in &sample.files {
        let path = place.path(&file.path);
        assert_eq!(path.metadata().unwrap().len(), file.size, "{}", file.path);
        assert_eq!(pack::sha256sum(&path), file.sha256, "{}", file.path);
    }
}
