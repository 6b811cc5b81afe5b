//! `tools/bench` itself: that it measures what it says, and leaves nothing behind. Not how fast anything is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::heavy;
use crate::support::place::{PROGRAM, Place};
use crate::support::{scratch, wait};

const LIMIT: Duration = Duration::from_secs(200);

/// The bench's folder; mounts in it are detached when it goes.
struct Work(TempDir);

impl Drop for Work {
    fn drop(&mut self) {
        scratch::detach_below(self.0.path());
    }
}

fn bench(work: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/bench"));
    command.args(["--weightfs", PROGRAM, "--work"]).arg(work).args(arguments);
    command
}

/// What lies in the folder beside the model that is kept for the next run.
fn left(work: &Path) -> Vec<String> {
    let names = fs::read_dir(work).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| !name.starts_with("model-")).collect()
}

#[test]
fn the_bench_measures_each_contender_and_compares_its_bytes() {
    let _alone = heavy();
    let (place, work) = (Place::new(), Work(scratch::short()));
    let file = place.folder("figures").join("bench.json");
    let mut command = bench(work.0.path(), &["--size", "8MiB", "--rounds", "1", "--only", "curl,weightfs"]);
    command.arg("--json").arg(&file);
    let ran = place.finish(command, LIMIT).ok();
    let figures: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let contenders = &figures["contenders"];
    for (name, rows) in [
        ("curl-null", &["total_s", "total_mb_s"][..]),
        ("curl-file-sha256", &["total_s", "total_mb_s"]),
        ("curl-Z4-files-sha256", &["total_s", "total_mb_s"]),
        ("weightfs-plain", &MOUNTED),
        ("weightfs-packed", &MOUNTED),
    ] {
        for row in rows {
            assert!(contenders[name]["rows"][row]["median"].is_number(), "{name}: {row}: {ran:?}");
        }
    }
    for name in ["curl-file-sha256", "curl-Z4-files-sha256", "weightfs-plain", "weightfs-packed"] {
        assert_eq!(contenders[name]["rounds"][0]["same_bytes"], true, "{name}");
    }
    assert!(contenders["weightfs-packed"]["rows"]["all_mb_s"]["ratio"]["median"].is_number());
    assert!(contenders["rclone"].is_null(), "not asked for");
    assert_eq!(left(work.0.path()), [""; 0]);
}

const MOUNTED: [&str; 13] = [
    "ready_s",
    "first_byte_s",
    "header_s",
    "tensor_s",
    "tensor_fetched",
    "seq_mb_s",
    "mmap_mb_s",
    "rand_p99_ms",
    "rand_fetched",
    "all_mb_s",
    "together_mb_s",
    "cpu_s",
    "peak_rss",
];

#[test]
fn a_bench_that_is_told_to_end_takes_its_mounts_and_folders_along() {
    let _alone = heavy();
    let work = Work(scratch::short());
    let arguments = ["--size", "1MiB", "--rounds", "64", "--only", "weightfs-plain"];
    let mut running = bench(work.0.path(), &arguments).spawn().unwrap();
    let mounted = wait::eventually(Duration::from_secs(60), || {
        !scratch::mount_points_below(work.0.path()).is_empty() || running.try_wait().unwrap().is_some()
    });
    kill(Pid::from_raw(running.id() as i32), Signal::SIGTERM).unwrap();
    let ended = wait::ended(&mut running, Duration::from_secs(60));
    assert!(mounted, "nothing was mounted");
    assert_eq!(ended.and_then(|status| status.code()), Some(143));
    assert_eq!(scratch::mount_points_below(work.0.path()), [""; 0].map(std::path::PathBuf::from));
    assert_eq!(left(work.0.path()), [""; 0]);
}
