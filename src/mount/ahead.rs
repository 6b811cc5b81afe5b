//! How much the files of a mount are read ahead into the kernel's cache, for readers that are to come.
//!
//! Used by those who give such files to the kernel ([`renumber`](super::renumber), [`exchange`](super::exchange)).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::kernel;

/// How much of a file is read ahead at most: its next reader will be at it for a while then, and reads as fast as the disk does.
const AHEAD: u64 = 256 << 20;

/// Of the memory that is available when the mount begins, one part in so many is for what is offered, and one for what is exchanged.
const PART: u64 = 8;

/// How much is read at once of what is in memory: what a processor's own cache holds.
const PIECE: usize = 128 << 10;

/// How much may still be read ahead of the files of a mount, so that its page cache is not filled for nobody.
pub(super) struct Ahead(u64);

impl Ahead {
    /// A part of what is available now; nothing where that is not known.
    pub(super) fn of_what_is_available() -> Self {
        Self(available().unwrap_or(0) / PART)
    }

    /// Whether nothing is left.
    pub(super) fn is_spent(&self) -> bool {
        self.0 == 0
    }

    /// Has the kernel read the file into its cache while `goes_on`, as far as is worth it and left; gives how many bytes it did. Blocks on
    /// the local disk.
    pub(super) fn read(&mut self, file: &File, goes_on: impl Fn() -> bool) -> u64 {
        let len = file.metadata().map_or(0, |meta| meta.len()).min(AHEAD).min(self.0);
        let read = kernel::read_ahead(file, len, &goes_on);
        touch(file, read, &goes_on);
        self.0 = self.0.saturating_sub(read);
        read
    }
}

/// Reads the first `len` bytes, which lie in the kernel's cache, while `goes_on`: on a virtual machine a page that only the disk has
/// written to is one that the host has not given to this machine's processors yet, and the first of them to look at it waits 4 to 7 µs,
/// longer than the disk took (docs/benchmarks.md, "What is opened again"). Costs a copy of the bytes within a processor's own cache. A map
/// would cost less, and the whole process where the disk fails.
fn touch(file: &File, len: u64, goes_on: impl Fn() -> bool) {
    let mut room = vec![0; PIECE];
    let mut at = 0;
    while at < len && goes_on() {
        match file.read_at(&mut room, at) {
            Ok(read @ 1..) => at += read as u64,
            _ => return,
        }
    }
}

/// How many bytes of memory this process could have now: what the machine has available (`MemAvailable` in man 5 proc), and no more than
/// its control group may have in all (`memory.max` of cgroup v2), to which pages count that it has read.
fn available() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let bytes = kib.checked_mul(1024)?;
    Some(most_of_group().map_or(bytes, |most| most.min(bytes)))
}

/// What the process's own group may have; `None` where it has no limit of its own.
fn most_of_group() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let limit = PathBuf::from("/sys/fs/cgroup").join(group).join("memory.max");
    std::fs::read_to_string(limit).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_how_much_memory_is_available() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
