//! Temporary folders, and the removal of what an interrupted run of the tests left behind.
//!
//! Every folder's name carries the process that made it, so that the next run knows whose owner is dead.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, Once};

use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

const PREFIX: &str = "weightfs-test-";

/// A folder with a short path, for mounts and sockets: a socket's path may have 107 bytes.
pub fn short() -> TempDir {
    make(&std::env::temp_dir())
}

/// A folder beside the build, on a real disk: for stores and models.
pub fn roomy() -> TempDir {
    make(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

/// Keeps a folder until this process exits, and then removes it: statics are never dropped.
pub fn until_exit(folder: TempDir) -> PathBuf {
    static KEPT: Mutex<Vec<TempDir>> = Mutex::new(Vec::new());
    extern "C" fn remove() {
        if let Ok(mut kept) = KEPT.lock() {
            kept.clear();
        }
    }
    let path = folder.path().to_owned();
    KEPT.lock().unwrap().push(folder);
    #[allow(unsafe_code, reason = "the one way to be called when the test harness exits")]
    // SAFETY: `remove` is a plain function of this program, which is never unloaded, and does not unwind.
    unsafe {
        nix::libc::atexit(remove);
    }
    path
}

fn make(root: &Path) -> TempDir {
    static SWEEP: Once = Once::new();
    SWEEP.call_once(|| {
        sweep(&std::env::temp_dir());
        sweep(Path::new(env!("CARGO_TARGET_TMPDIR")));
    });
    let prefix = format!("{PREFIX}{}-", std::process::id());
    // As the kernel's table of mounts names it: to ask a mount point itself would be to wait for who serves it.
    tempfile::Builder::new().prefix(&prefix).tempdir_in(root.canonicalize().unwrap()).unwrap()
}

fn sweep(root: &Path) {
    for entry in std::fs::read_dir(root).into_iter().flatten().flatten() {
        if owner(&entry.file_name().to_string_lossy()).is_some_and(|pid| !alive(pid)) {
            detach_below(&entry.path());
            let _best_effort = std::fs::remove_dir_all(entry.path());
        }
    }
}

fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn alive(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Detaches everything mounted below `root`, deepest last mounted first.
pub fn detach_below(root: &Path) {
    for point in mount_points_below(root).iter().rev() {
        let _gone_meanwhile = umount2(point, MntFlags::MNT_DETACH);
    }
}

/// What is mounted at or below `root`, in the order of mounting.
pub fn mount_points_below(root: &Path) -> Vec<PathBuf> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    points.filter(|point| point.starts_with(root)).collect()
}
