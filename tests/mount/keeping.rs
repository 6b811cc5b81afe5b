//! What was fetched is kept: over restarts, kills, and for neighbours.

use std::time::Duration;

use crate::support::place::{Place, is_running};
use crate::support::relay::Weather;
use crate::support::sample::{REPOSITORY, sample};
use crate::support::{heavy, read, wait};

const MIB: u64 = 1 << 20;

fn kept(place: &Place) -> u64 {
    place.status()["kept"].as_u64().expect("kept is a number")
}

#[test]
fn after_a_kill_the_same_mount_on_the_same_folder_fetches_only_what_was_not_kept() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let reference = registry.reference(&format!("{REPOSITORY}:raw"));
    place.mount(&reference, &[]);
    for name in &sample().shards[..3] {
        read::compare_whole(&place.path(name), &sample().original(name));
    }
    registry.settled();
    let kept_before = kept(&place);
    assert!(kept_before > sample().size() / 2, "{kept_before} bytes kept");
    place.kill();
    assert!(place.is_mounted(), "the dead mount is there");
    let before = registry.fetched();
    place.mount(&reference, &[]);
    read::assert_whole_sample(&place, sample());
    let again = (registry.settled() - before).saturating_sub(sample().size() - kept_before);
    assert!(again < 16 * MIB, "{again} bytes of {kept_before} kept were fetched again");
}

#[test]
fn a_kill_while_reading_leaves_no_wrong_byte_behind() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let reference = registry.reference(&format!("{REPOSITORY}:tar"));
    for round in 1..=3 {
        place.mount(&reference, &["--warm", "all"]);
        let enough = registry.fetched() + round * sample().size() / 10;
        wait::until("some of it is fetched", Duration::from_secs(60), || {
            registry.fetched() >= enough || kept(&place) == sample().size()
        });
        place.kill();
    }
    place.mount(&reference, &[]);
    read::assert_whole_sample(&place, sample());
    place.unmount();
}

#[test]
fn a_mount_after_an_unmount_fetches_nothing_again() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let reference = registry.reference(&format!("{REPOSITORY}:tar"));
    place.mount(&reference, &["--warm", "all"]);
    place.wait_until_complete();
    place.unmount();
    let before = registry.settled();
    place.mount(&reference, &[]);
    read::assert_whole_sample(&place, sample());
    let again = registry.settled() - before;
    assert!(again < MIB, "{again} bytes fetched for a model that is kept");
}

#[test]
fn two_mounts_with_one_store_that_read_at_once_fetch_the_model_once() {
    let _alone = heavy();
    for tag in ["raw", "tar"] {
        let (registry, one) = (sample().registry(), Place::new());
        let other = one.neighbour();
        let reference = registry.reference(&format!("{REPOSITORY}:{tag}"));
        one.mount(&reference, &[]);
        other.mount(&reference, &[]);
        assert_ne!(one.pid(), other.pid());
        std::thread::scope(|scope| {
            scope.spawn(|| read::assert_whole_sample(&one, sample()));
            scope.spawn(|| read::assert_whole_sample(&other, sample()));
        });
        let (fetched, size) = (registry.settled(), sample().size());
        assert!(fetched <= size * 105 / 100, "{tag}: {fetched} bytes fetched for a model of {size}");
    }
}

#[test]
fn a_neighbour_goes_on_when_the_other_is_killed_while_both_read() {
    let _alone = heavy();
    let (registry, one) = (sample().registry(), Place::new());
    let other = one.neighbour();
    let reference = registry.reference(&format!("{REPOSITORY}:raw"));
    // Slow enough that the kill comes in the middle.
    registry.weather(Weather::Limit(sample().size() / 8));
    one.mount(&reference, &["--warm", "all"]);
    other.mount(&reference, &[]);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read::assert_whole_sample(&other, sample()));
        let half = sample().size() / 3;
        wait::until("a third is fetched", Duration::from_secs(60), || {
            registry.fetched() > half || reader.is_finished()
        });
        one.kill();
        registry.weather(Weather::Clear);
    });
    assert!(is_running(other.pid()));
}

#[test]
fn two_mounts_on_two_folders_are_both_listed() {
    let (registry, one) = (sample().registry(), Place::new());
    let second = one.folder("second");
    let reference = registry.reference(&format!("{REPOSITORY}:raw"));
    one.mount(&reference, &["--warm", "none"]);
    let mut command = one.command();
    command.args(["mount", &reference]).arg(&second).args(["--warm", "none"]);
    one.finish(command, Duration::from_secs(60)).ok();
    let list = one.run(["list", "--json"]).ok().json();
    assert_eq!(list.as_array().unwrap().len(), 2, "{list}");
    assert!(second.join("config.json").is_file());
}
