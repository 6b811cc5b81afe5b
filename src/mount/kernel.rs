//! What the kernel says of mounts and is told about them from outside: the mount table, read-ahead, unmounting.
//!
//! Nothing here speaks the FUSE protocol. Called by the session and by [`unmount`](super::unmount).

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapOptions};
use nix::errno::Errno;
use nix::libc;
use nix::mount::MntFlags;
use nix::unistd::{SysconfVar, sysconf};

use super::Detach;
use crate::error::{Error, Kind, Result, StorageContext};

/// The type that weightfs mounts have in the mount table.
pub(super) const FSTYPE: &str = "fuse.weightfs";

/// How much of a file is read ahead at once: the kernel's largest folio.
const STEP: usize = 2 << 20;

/// How much is mapped at once for that.
pub(super) const WINDOW: u64 = 8 << 20;

/// How long files may stay open that their readers have closed, and how often is looked.
const LEFT_OPEN: Duration = Duration::from_secs(1);
const AGAIN: Duration = Duration::from_millis(50);

/// How long a mount may take to answer `statfs` before it counts as alive but slow.
const PROBE: Duration = Duration::from_secs(2);

/// Whether the page of the file that holds the byte at `at` is in the kernel's cache. Waits for nothing, and unlike a read with
/// `RWF_NOWAIT` brings nothing there: a single page that such a read had begun to bring keeps the kernel from reading in large folios what
/// lies around it. True of any page where the process may neither write to the file nor owns it (mincore(2), Linux 5.2).
#[allow(unsafe_code, reason = "no crate has a call for mincore(2)")]
pub(super) fn is_cached(file: &File, at: u64) -> bool {
    let Ok(Some(page)) = sysconf(SysconfVar::PAGE_SIZE) else { return false };
    let begins = at - at % u64::try_from(page).unwrap_or(1);
    let Ok(mapped) = MmapOptions::new().offset(begins).len(1).map_raw_read_only(file) else { return false };
    let mut state = 0;
    // SAFETY: the address is that of a mapping of one page, which lives until this function returns, and there is a byte for each
    // page to be written.
    let asked = unsafe { libc::mincore(mapped.as_mut_ptr().cast(), 1, &raw mut state) };
    asked == 0 && state & 1 == 1
}

/// Has the kernel read `len` bytes of a file from `from` on into its cache, while `goes_on`; gives how many it did, none before Linux
/// 5.14. Blocks while they come. Copies nothing: they are mapped, as huge pages, which makes the kernel read them in its largest
/// folios from the first byte on (`do_sync_mmap_readahead`, `VM_HUGEPAGE`). What was brought in small ones costs everyone more who
/// reads it later: `posix_fadvise` brings single pages, and so does whoever reads the same at the same time. What is mapped counts
/// as this process's own memory: no more than [`WINDOW`] should be asked for at once.
pub(super) fn read_ahead(file: &File, from: u64, len: u64, goes_on: impl Fn() -> bool) -> u64 {
    let len = usize::try_from(len).unwrap_or(usize::MAX);
    let Ok(mapped) = MmapOptions::new().offset(from).len(len).map_raw_read_only(file) else { return 0 };
    // Refused where the kernel has no huge pages: then it reads as it does for any reader.
    let _ = mapped.advise(Advice::HugePage);
    let comes = |at: usize| mapped.advise_range(Advice::PopulateRead, at, STEP.min(len - at)).is_ok();
    let steps = (0..len).step_by(STEP).take_while(|at| goes_on() && comes(*at)).count();
    steps.saturating_mul(STEP).min(len) as u64
}

/// A superblock's device number, as the mount table and `/sys/class/bdi` write it: `0:57`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Device(String);

/// One line of `/proc/self/mountinfo` (man 5 proc).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MountEntry {
    /// The device number of the mounted superblock.
    pub(super) device: Device,
    /// Which of its folders is.
    pub(super) root: PathBuf,
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// The file system's type with its subtype: `fuse.weightfs`.
    pub(super) fstype: String,
    /// What is mounted, as its owner names it.
    pub(super) source: String,
}

impl MountEntry {
    /// Whether it is a mount of weightfs, alive or dead.
    pub(super) fn is_ours(&self) -> bool {
        self.fstype == FSTYPE
    }
}

/// The mount that is seen at `dir`, an absolute path without links; `None` where nothing is mounted right there.
///
/// Reads the mount table and never the mount itself, so that it answers also where the mount is dead.
///
/// # Errors
/// `Storage` where `/proc` can't be read.
pub(super) fn mounted_at(dir: &Path) -> Result<Option<MountEntry>> {
    Ok(topmost(&table()?, dir))
}

/// Whether a mount of weightfs is at `dir`, also where another covers it.
///
/// # Errors
/// As [`mounted_at`].
pub(super) fn has_ours(dir: &Path) -> Result<bool> {
    Ok(entries(&table()?).any(|entry| entry.point == dir && entry.is_ours()))
}

/// The mount that the folder `dir`, an absolute path without links, is in.
///
/// # Errors
/// As [`mounted_at`].
pub(super) fn mounted_around(dir: &Path) -> Result<Option<MountEntry>> {
    let table = table()?;
    Ok(dir.ancestors().find_map(|at| topmost(&table, at)))
}

fn table() -> Result<Vec<u8>> {
    let table = "/proc/self/mountinfo";
    std::fs::read(table).storage(|| format!("cannot read {table}"))
}

fn entries(table: &[u8]) -> impl DoubleEndedIterator<Item = MountEntry> {
    table.split(|byte| *byte == b'\n').filter_map(parse_line)
}

/// The last line for `dir` wins: a later mount covers an earlier one.
fn topmost(table: &[u8], dir: &Path) -> Option<MountEntry> {
    entries(table).rfind(|entry| entry.point == dir)
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = text(fields.nth(2)?);
    let root = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let point = PathBuf::from(OsString::from_vec(unescape(fields.next()?)));
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = text(rest.next()?);
    let source = text(&unescape(rest.next()?));
    Some(MountEntry { device: Device(device), root, point, fstype, source })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The kernel writes space, tab, newline and backslash as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match octal(rest) {
            Some((byte, after)) => {
                plain.push(byte);
                rest = after;
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

fn octal(rest: &[u8]) -> Option<(u8, &[u8])> {
    let (escape, after) = rest.split_at_checked(4)?;
    let digits = std::str::from_utf8(escape).ok()?.strip_prefix('\\')?;
    u8::from_str_radix(digits, 8).ok().map(|byte| (byte, after))
}

/// Sets how far the kernel reads ahead in files of this superblock.
///
/// The INIT answer can only lower the kernel's 128 KiB; this is the only way to raise it.
///
/// # Errors
/// `Kernel` where `/sys` is read-only or the caller is not root: a mount works without it, more slowly.
pub(super) fn set_read_ahead(device: &Device, bytes: u64) -> Result<()> {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", device.0);
    std::fs::write(&path, format!("{}\n", bytes.div_ceil(1024)))
        .map_err(|error| Error::from_source(Kind::Kernel, format!("cannot write {path}"), error))
}

/// Whether nobody answers the mount at `dir` any more. One that does not answer in time counts as alive.
///
/// Asks for `statfs`, which the kernel never answers from a cache: attributes, kept for ever, would still
/// be given for a dead mount.
pub(super) fn is_dead(dir: &Path) -> bool {
    let (answer, answered) = mpsc::channel();
    let dir = dir.to_owned();
    let probe = std::thread::Builder::new().name("weightfs-probe".to_owned()).spawn(move || {
        let _ = answer.send(nix::sys::statfs::statfs(&dir).err());
    });
    probe.is_ok() && matches!(answered.recv_timeout(PROBE), Ok(Some(Errno::ENOTCONN | Errno::ECONNABORTED)))
}

/// Takes away what is mounted at `dir`: by umount2(2), or by fusermount3 where that is not permitted.
///
/// # Errors
/// `Busy` where it is in use and `how` is [`Detach::Unused`]; `Kernel` for the rest.
pub(super) fn detach(dir: &Path, how: Detach) -> Result<()> {
    let flags = match how {
        Detach::Unused => MntFlags::UMOUNT_NOFOLLOW,
        Detach::Lazy => MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH,
    };
    match nix::mount::umount2(dir, flags) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) => detach_by_helper(dir, how),
        Err(Errno::EBUSY) => Err(in_use(dir)),
        Err(errno) => Err(cannot(dir, errno.desc())),
    }
}

/// The same of the mount that is `entry`, once [nobody uses it](once_unused). Of a dead mount nobody can read: it goes at once.
///
/// # Errors
/// As [`detach`].
pub(super) fn detach_unused(dir: &Path, entry: &MountEntry) -> Result<()> {
    once_unused(|| {
        // It may have been taken away by others since, and something else mounted there.
        match mounted_at(dir)? {
            Some(now) if now == *entry => {}
            _ if has_ours(dir)? => return Err(in_use(dir)),
            _ => return Ok(()),
        }
        match detach(dir, Detach::Unused) {
            Err(error) if error.kind() == Kind::Busy && is_dead(dir) => detach(dir, Detach::Lazy),
            done => done,
        }
    })
}

/// Calls `unmount` until it does not say [busy](Kind::Busy) any more, for a second at most, and gives what it said last. A program
/// that starts another leaves copies of its open files with it until that one has begun (`posix_spawn`, `O_CLOEXEC`), so that files
/// which their readers have closed are still open for moments. Blocks.
///
/// # Errors
/// Those of `unmount`.
pub fn once_unused<T>(mut unmount: impl FnMut() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        match unmount() {
            // Nothing tells when a file of a mount is closed for the last time.
            Err(error) if error.kind() == Kind::Busy && begun.elapsed() < LEFT_OPEN => {
                std::thread::sleep(AGAIN)
            }
            done => return done,
        }
    }
}

fn detach_by_helper(dir: &Path, how: Detach) -> Result<()> {
    let mut helper = Command::new(super::attach::HELPER);
    helper.arg("-u").arg("-q");
    if how == Detach::Lazy {
        helper.arg("-z");
    }
    let output = helper.arg("--").arg(dir).output().map_err(|error| super::attach::no_helper(&error))?;
    let stderr = text(&output.stderr);
    if output.status.success() {
        return Ok(());
    }
    // With -q the helper says nothing of a busy mount; it fails silently for nothing else.
    let busy = stderr.trim().is_empty() || stderr.contains("busy");
    Err(if busy { in_use(dir) } else { cannot(dir, stderr.trim()) })
}

fn in_use(dir: &Path) -> Error {
    Error::new(Kind::Busy, format!("{} is in use", dir.display()))
        .hint("end what reads it, or detach it with --lazy")
}

fn cannot(dir: &Path, why: &str) -> Error {
    Error::new(Kind::Kernel, format!("cannot unmount {}: {why}", dir.display()))
}

/// The folder as the mount table names it: absolute, without links. Asks a mount at `dir` nothing.
///
/// # Errors
/// `NotFound` where there is no such folder, `Denied` where it may not be looked up, else `Storage`.
pub fn resolve(dir: &Path) -> Result<PathBuf> {
    let parent =
        dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    // Only the parents are resolved where the last component is a plain name: the file system of a dead mount
    // might be asked otherwise.
    let found = match dir.file_name() {
        Some(name) if !is_link(dir) => parent.canonicalize().map(|parent| parent.join(name)),
        Some(_) | None => dir.canonicalize(),
    };
    found.map_err(|error| unresolved(dir, error))
}

fn is_link(dir: &Path) -> bool {
    std::fs::read_link(dir).is_ok()
}

fn unresolved(dir: &Path, error: std::io::Error) -> Error {
    let doing = format!("no way to the folder {}", dir.display());
    match error.kind() {
        std::io::ErrorKind::NotFound => Error::from_source(Kind::NotFound, doing, error),
        _ => Error::from_source(Kind::Storage, doing, error),
    }
}

/// `value` as it stands in the helper's options, which are split at commas and protected by backslashes.
pub(super) fn escape_option(value: &str) -> String {
    value.replace('\\', "\\\\").replace(',', "\\,")
}

/// Whether `dir` is found as this name in one of the folders of `PATH`.
pub(super) fn on_path(name: &str, path: Option<&OsStr>) -> bool {
    let folders = path.unwrap_or_else(|| OsStr::from_bytes(b"/usr/bin:/bin"));
    std::env::split_paths(folders).any(|folder| folder.join(name).is_file())
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
    use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
40 22 0:35 / /mnt/a\\040b ro,nosuid,nodev,noatime - fuse.weightfs ghcr.io/acme/llm:1 ro,user_id=0\n\
41 22 0:36 / /mnt/c rw shared:7 master:2 propagate_from:2 - tmpfs tmp\\134fs rw\n\
42 41 0:37 / /mnt/c ro - fuse.weightfs oci:/m ro\n";

    #[test]
    fn the_mount_table_gives_device_type_and_source_also_of_a_path_with_a_space() {
        let entry = topmost(TABLE, Path::new("/mnt/a b")).expect("the mount");
        assert_eq!(entry.device, Device("0:35".to_owned()));
        assert_eq!((entry.fstype.as_str(), entry.source.as_str()), ("fuse.weightfs", "ghcr.io/acme/llm:1"));
        assert!(entry.is_ours());
    }

    #[test]
    fn a_later_mount_covers_an_earlier_one() {
        assert_eq!(topmost(TABLE, Path::new("/mnt/c")).map(|entry| entry.device.0), Some("0:37".to_owned()));
    }

    #[test]
    fn optional_fields_may_be_any_number() {
        let line = TABLE.split(|byte| *byte == b'\n').nth(2).expect("a line");
        let entry = parse_line(line).expect("an entry");
        assert_eq!((entry.fstype.as_str(), entry.source.as_str()), ("tmpfs", "tmp\\fs"));
        assert!(!entry.is_ours());
    }

    #[test]
    fn lines_cut_short_and_folders_inside_a_mount_are_no_mount() {
        assert_eq!(topmost(TABLE, Path::new("/mnt/c/d")), None);
        assert_eq!(parse_line(b""), None);
        assert_eq!(parse_line(b"42 41 0:37 / /mnt/c ro - fuse"), None);
        assert_eq!(parse_line(b"42 41 0:37 / /mnt/c ro shared:1"), None);
    }

    #[test]
    fn asking_whether_a_page_is_cached_does_not_bring_it() {
        let mut file = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut file, &vec![7; 1 << 20]).expect("written");
        assert!(is_cached(&file, 600_000));
        file.sync_all().expect("on the disk");
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).expect("dropped");
        // What lies in memory only stays there.
        if fstatfs(&file).expect("its file system").filesystem_type() != TMPFS_MAGIC {
            assert!((0..1000).all(|_| !is_cached(&file, 600_000)));
        }
    }

    #[test]
    fn a_backslash_that_is_no_escape_stays() {
        assert_eq!(unescape(b"a\\9b\\04"), b"a\\9b\\04");
        assert_eq!(unescape(b"\\011\\012\\134"), b"\t\n\\");
    }

    #[test]
    fn the_root_is_mounted_and_a_fresh_folder_is_not() {
        assert!(mounted_at(Path::new("/")).expect("a table").is_some());
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(mounted_at(&resolve(folder.path()).expect("a path")).expect("a table"), None);
        assert!(!is_dead(folder.path()));
    }

    #[test]
    fn a_folder_is_resolved_through_links_and_a_missing_one_is_not_found() {
        let folder = tempfile::tempdir().expect("a folder");
        let real = folder.path().canonicalize().expect("a path").join("real");
        std::fs::create_dir(&real).expect("a folder");
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&real, &link).expect("a link");
        assert_eq!(resolve(&link).expect("a path"), real);
        assert_eq!(resolve(&folder.path().join("none/deeper")).unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn commas_and_backslashes_in_an_option_are_protected_from_the_helper() {
        assert_eq!(escape_option("oci:/a,b\\c"), "oci:/a\\,b\\\\c");
    }

    #[test]
    fn a_helper_is_looked_for_in_every_folder_of_the_path() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("helper"), b"").expect("a file");
        let path = std::env::join_paths([Path::new("/nowhere"), folder.path()]).expect("a path");
        assert!(on_path("helper", Some(&path)));
        assert!(!on_path("other", Some(&path)));
    }
}
