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
    let mut command = bench(work.0.path(), &["--quick", "--rows", "peers", "--only", "curl,weightfs"]);
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

/// Rows, and a figure of each that only comes of having read all that the row is of.
const ROWS: [(&str, &str); 15] = [
    ("reader", "direct_mb_s"),
    ("cold-packed-redirect", "cpu_weightfs"),
    ("cold-packed-registry", "ratio"),
    ("user-redirect", "digest_s"),
    ("limited", "ratio"),
    ("direct", "ratio"),
    ("together", "fetched_ratio"),
    ("far-tensor", "ratio"),
    ("far-first", "mid_s"),
    ("warm-plain", "copy_ratio"),
    ("reopen-packed", "second_ratio"),
    ("fault-packed", "p50_us"),
    ("random-advised", "chunks_per_fault"),
    ("memory-32-packed", "anonymous"),
    ("large", "fetched_ready"),
];

#[test]
fn the_bench_measures_rows_and_names_their_goals_without_judging_a_small_model() {
    let _alone = heavy();
    let (place, work) = (Place::new(), Work(scratch::short()));
    let figures = place.folder("figures");
    let (file, page) = (figures.join("bench.json"), figures.join("bench.html"));
    let names = ROWS.map(|(name, _)| name).join(",");
    let mut command = bench(work.0.path(), &["--quick", "--size", "2MiB", "--rows", &names]);
    command.arg("--json").arg(&file).arg("--html").arg(&page);
    let ran = place.finish(command, LIMIT).ok();
    let found: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let rows = &found["rows"];
    for (name, figure) in ROWS {
        assert!(rows[name]["figures"][figure]["median"].is_number(), "{name}: {figure}: {ran:?}");
        for goal in rows[name]["goals"].as_array().unwrap() {
            assert!(goal["goal"].is_string() && goal["reached"].is_null(), "{name}: {goal}");
        }
    }
    // What was told to be far is: a round trip more than the floor, which is of connections that are open.
    let tensor = &rows["far-tensor"]["figures"];
    assert!(tensor["curl_s"]["min"].as_f64() > tensor["base_s"]["max"].as_f64(), "{tensor}");
    // Eight fetch what one does; and a mount of a terabyte none of it, although its index is there.
    assert!(rows["together"]["figures"]["fetched_ratio"]["median"].as_f64() < Some(1.5), "{rows}");
    assert!(rows["large"]["figures"]["fetched_ready"]["median"].as_f64() > Some(1e6), "{rows}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("<svg") && page.contains("far-tensor"));
    assert!(!page.contains("http"), "the page needs nothing else");
    assert!(!Path::new(found["served"].as_str().unwrap()).exists(), "what was served is still there");
    assert_eq!(left(work.0.path()), [""; 0]);
}

#[test]
fn a_bench_that_is_told_to_end_takes_its_mounts_and_folders_along() {
    let _alone = heavy();
    let work = Work(scratch::short());
    let arguments = ["--size", "1MiB", "--pairs", "64", "--rows", "peers", "--only", "weightfs-plain"];
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
