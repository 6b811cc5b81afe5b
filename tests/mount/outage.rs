//! A registry that is gone, hangs, or breaks off.

use std::fs::File;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};

use crate::support::place::{Place, is_running};
use crate::support::relay::Weather;
use crate::support::sample::{REPOSITORY, sample};
use crate::support::{heavy, read, wait};

const MIB: u64 = 1 << 20;

#[test]
fn without_the_registry_a_model_that_is_kept_mounts_and_reads_and_another_is_refused_soon() {
    let _alone = heavy();
    let (mut registry, place, other) = (sample().registry(), Place::new(), Place::new());
    let reference = registry.reference(&format!("{REPOSITORY}:raw"));
    place.mount(&reference, &["--warm", "all"]);
    place.wait_until_complete();
    place.unmount();
    registry.stop();
    place.mount(&reference, &[]);
    read::assert_whole_sample(&place, sample());
    let ran = other.try_mount(&reference, &[]).failed(5, &[&registry.host()]);
    assert!(ran.took < Duration::from_secs(30), "{ran:?}");
    assert!(!other.is_mounted());
}

#[test]
fn a_mount_of_a_registry_that_never_answers_fails_within_half_a_minute() {
    let (registry, place) = (sample().registry(), Place::new());
    registry.weather(Weather::Stall);
    let ran = place
        .try_mount(&registry.reference(&format!("{REPOSITORY}:raw")), &[])
        .failed(5, &[&registry.host()]);
    assert!(ran.took < Duration::from_secs(31), "{ran:?}");
    assert!(!place.is_mounted());
}

#[test]
fn a_registry_that_comes_back_in_time_is_not_noticed_by_a_reader() {
    let _alone = heavy();
    let (mut registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "none"]);
    let name = &sample().shards[0];
    let (path, original) = (place.path(name), sample().original(name));
    registry.stop();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read::compare(&path, &original, 8 * MIB, 4 * MIB));
        assert!(!wait::eventually(Duration::from_secs(2), || reader.is_finished()), "read out of nowhere");
        registry.restart();
        wait::until("the reader goes on", Duration::from_secs(40), || reader.is_finished());
    });
}

#[test]
fn connections_that_break_off_are_not_noticed_by_a_reader() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "none"]);
    registry.weather(Weather::Cut(9 * MIB + 12_345));
    let name = &sample().shards[0];
    read::compare_whole(&place.path(name), &sample().original(name));
}

#[test]
fn a_read_that_makes_no_progress_fails_at_its_deadline_and_folders_answer_meanwhile() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let reference = registry.reference(&format!("{REPOSITORY}:raw"));
    place.mount(&reference, &["--warm", "none", "--read-deadline", "3s"]);
    registry.weather(Weather::Stall);
    let path = place.path(&sample().shards[0]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let start = Instant::now();
            let said = read::range(&File::open(&path).unwrap(), 8 * MIB, 4096).map(|bytes| bytes.len());
            (said.unwrap_err().raw_os_error(), start.elapsed())
        });
        let start = Instant::now();
        assert_eq!(std::fs::read_dir(place.dir()).unwrap().count(), 12);
        assert!(place.path("tokenizer.json").is_file());
        assert!(
            start.elapsed() < Duration::from_secs(1),
            "folders waited {:?} for the network",
            start.elapsed()
        );
        let (errno, took) = reader.join().unwrap();
        assert_eq!(errno, Some(nix::libc::EIO));
        assert!((Duration::from_secs(2)..Duration::from_secs(15)).contains(&took), "{took:?}");
    });
    registry.weather(Weather::Clear);
    let name = &sample().shards[0];
    read::compare(&path, &sample().original(name), 8 * MIB, MIB);
}

#[test]
fn a_file_is_read_while_another_file_waits_for_the_network() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "none"]);
    let [stuck, free] = [&sample().shards[0], &sample().shards[1]];
    registry.weather(Weather::StallOf(sample().digest(stuck)));
    std::thread::scope(|scope| {
        for reader in 0..16 {
            let path = place.path(stuck);
            scope.spawn(move || {
                read::range(&File::open(path).unwrap(), reader * 2 * MIB, 4096).map(|bytes| bytes.len())
            });
        }
        let start = Instant::now();
        read::compare_whole(&place.path(free), &sample().original(free));
        let took = start.elapsed();
        registry.weather(Weather::Clear);
        assert!(took < Duration::from_secs(30), "the other file took {took:?}");
    });
}

#[test]
fn a_mount_whose_readers_wait_for_a_dead_registry_ends_when_told() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "none"]);
    registry.weather(Weather::Stall);
    let (path, pid) = (place.path(&sample().shards[0]), place.pid());
    std::thread::scope(|scope| {
        let reader =
            scope.spawn(|| read::range(&File::open(&path).unwrap(), 8 * MIB, 4096).map(|bytes| bytes.len()));
        let asked = registry.requests().len();
        wait::eventually(Duration::from_secs(2), || registry.requests().len() > asked);
        kill(pid, Signal::SIGTERM).unwrap();
        wait::until("the process ends", Duration::from_secs(10), || !is_running(pid));
        assert!(reader.join().unwrap().is_err());
    });
    assert!(!place.is_mounted(), "it took its mount with it");
}

#[test]
fn a_mount_with_many_readers_of_a_registry_that_is_gone_ends_when_told() {
    let _alone = heavy();
    let (mut registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "none"]);
    registry.stop();
    let (path, pid) = (place.path(&sample().shards[0]), place.pid());
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..64)
            .map(|at| {
                let path = &path;
                scope.spawn(move || {
                    read::range(&File::open(path).unwrap(), 8 * MIB + at * 64 * 1024, 4096)
                        .map(|bytes| bytes.len())
                })
            })
            .collect();
        assert!(!wait::eventually(Duration::from_secs(2), || readers
            .iter()
            .any(|reader| reader.is_finished())));
        kill(pid, Signal::SIGTERM).unwrap();
        wait::until("the process ends", Duration::from_secs(10), || !is_running(pid));
        for reader in readers {
            assert!(reader.join().unwrap().is_err());
        }
    });
    assert!(!place.is_mounted(), "it took its mount with it");
}

#[test]
fn an_unmount_in_use_is_refused_and_a_lazy_one_is_not() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "none"]);
    let file = File::open(place.path("config.json")).unwrap();
    let dir = place.dir();
    let unmount = |options: &[&str]| place.run([&["unmount", dir.to_str().unwrap()], options].concat());
    unmount(&[]).failed(10, &["--lazy"]);
    assert!(place.is_mounted());
    unmount(&["--lazy"]).ok();
    assert!(!place.is_mounted());
    drop(file);
}
