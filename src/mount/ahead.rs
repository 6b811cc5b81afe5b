//! How much the files of a mount are read ahead into the kernel's cache, for readers that are to come.
//!
//! Used by those who give such files to the kernel ([`renumber`](super::renumber), [`exchange`](super::exchange)).

use std::fs::File;
use std::path::Path;

use super::kernel;

/// How much of a file is read ahead at most: its next reader will be at it for a while then, and reads as fast as the disk does.
const AHEAD: u64 = 256 << 20;

/// Of the memory that is available when the mount begins, one part in so many is for what is offered, and one for what is exchanged.
const PART: u64 = 8;

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

    /// Has the kernel read the file into its cache while `goes_on`, as far as is worth it and left; gives how many bytes have come. Blocks on
    /// the local disk. Looks at none of them, though on a virtual machine that would spare the next reader 4 to 7 µs a page: it costs as much
    /// here, and he may never come (docs/benchmarks.md, "What is opened again").
    pub(super) fn read(&mut self, file: &File, goes_on: impl Fn() -> bool) -> u64 {
        let len = file.metadata().map_or(0, |meta| meta.len()).min(AHEAD).min(self.0);
        let mut read = 0;
        while read < len {
            let part = kernel::WINDOW.min(len - read);
            let come = kernel::read_ahead(file, read, part, &goes_on);
            read += come;
            if come < part {
                break;
            }
        }
        self.0 = self.0.saturating_sub(read);
        read
    }
}

/// How many bytes of memory this process could have now: what the machine has available (`MemAvailable` in man 5 proc), and no more than
/// its control group, or one that this lies in, may have in all (`memory.max` of cgroup v2), to which pages count that it has read.
fn available() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let bytes = kib.checked_mul(1024)?;
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Some(most_of_group(Path::new("/sys/fs/cgroup"), group).map_or(bytes, |most| most.min(bytes)))
}

/// What a control group may have, and all that it lies in, as far as they are shown below `root`; `None` where none has a limit.
fn most_of_group(root: &Path, group: &str) -> Option<u64> {
    let limit =
        |group: &Path| std::fs::read_to_string(root.join(group).join("memory.max")).ok()?.trim().parse().ok();
    Path::new(group).ancestors().filter_map(limit).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_how_much_memory_is_available() {
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn the_least_limit_of_a_group_and_what_it_lies_in_counts() {
        let root = tempfile::tempdir().expect("a folder");
        let write = |group: &str, limit: &str| {
            let folder = root.path().join(group);
            std::fs::create_dir_all(&folder).expect("a group");
            std::fs::write(folder.join("memory.max"), limit).expect("its limit");
        };
        assert_eq!(most_of_group(root.path(), "pod/box"), None);
        write("pod/box", "max\n");
        assert_eq!(most_of_group(root.path(), "pod/box"), None);
        write("pod", "4096\n");
        assert_eq!(most_of_group(root.path(), "pod/box"), Some(4096));
        write("pod/box", "1024\n");
        assert_eq!(most_of_group(root.path(), "pod/box"), Some(1024));
        assert_eq!(most_of_group(root.path(), ""), None);
    }
}
