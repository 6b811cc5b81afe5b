//! A reader that is ahead of the network for a minute: nothing fails, nothing piles up, and folders answer.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::engine::python;
use crate::support::place::Place;
use crate::support::relay::Weather;
use crate::support::sample::{REPOSITORY, sample};

const MIB: u64 = 1 << 20;
const READER: &str = include_str!("ahead_of_network.py");
/// How long the line takes for the model: longer than a read may go without progress.
const LINE: u64 = 66;
/// What the process of a mount may have in memory at most, whatever waits: 32 MiB of chunks, since more requests bring nothing on this line,
/// and four times as much again.
const MEMORY: u64 = 160 * MIB;

/// Not a heavy test, though it moves the whole model: it waits nearly all the time, beside others.
#[test]
fn a_reader_that_is_ahead_of_the_network_for_a_minute_gets_every_byte_and_folders_answer_meanwhile() {
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &[]);
    let pid = place.pid();
    registry.weather(Weather::Limit(sample().size() / LINE));
    let (reading, start) = (AtomicBool::new(true), Instant::now());
    let slowest = std::thread::scope(|scope| {
        let folders = scope.spawn(|| slowest_answer(&place, &reading));
        read_ahead(&place);
        reading.store(false, Ordering::SeqCst);
        folders.join().unwrap()
    });
    let (took, peak) = (start.elapsed(), peak(pid));
    println!("read in {took:?}, slowest folder {slowest:?}, peak {} MiB", peak / MIB);
    assert!(took >= Duration::from_secs(LINE * 9 / 10), "the network was no limit: {took:?}");
    assert!(slowest < Duration::from_secs(5), "a folder waited {slowest:?} for the network");
    assert!(peak < MEMORY, "{peak} bytes in memory");
}

/// Reads all shards, mapped and ahead of that by threads, and compares their digests.
fn read_ahead(place: &Place) {
    let shards = &sample().shards;
    let mut command = Command::new(python());
    let paths: Vec<PathBuf> = shards.iter().map(|shard| place.path(shard)).collect();
    command.args(["-c", READER]).args(paths).stdin(Stdio::null());
    let ran = place.finish(command, Duration::from_secs(300));
    let right: Vec<_> = shards.iter().map(|shard| sample().file(shard).sha256.as_str()).collect();
    assert_eq!((ran.code, ran.stdout.lines().collect::<Vec<_>>()), (0, right), "{}", ran.stderr);
}

/// Looks into folders, and for a new name each time, which the kernel cannot know, until the reader has ended.
fn slowest_answer(place: &Place, reading: &AtomicBool) -> Duration {
    let mut slowest = Duration::ZERO;
    for number in 0_u64.. {
        let start = Instant::now();
        assert!(std::fs::read_dir(place.dir()).unwrap().count() >= sample().shards.len());
        assert_eq!(
            place.path("tokenizer.json").metadata().unwrap().len(),
            sample().file("tokenizer.json").size
        );
        assert!(place.path(&format!("missing-{number}")).symlink_metadata().is_err());
        slowest = slowest.max(start.elapsed());
        if !reading.load(Ordering::SeqCst) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    slowest
}

/// The most that a process has had in memory, in bytes.
fn peak(pid: Pid) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a process has a peak");
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kib * 1024
}
