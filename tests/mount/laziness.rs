//! What is not read is not fetched, and a mount is there at once.

use std::fs::File;
use std::time::{Duration, Instant};

use crate::support::heavy;
use crate::support::place::Place;
use crate::support::read;
use crate::support::relay::Weather;
use crate::support::sample::{REPOSITORY, sample};

const MIB: u64 = 1 << 20;

fn one_tensor_costs_little_more_than_itself(tag: &str) {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:{tag}")), &[]);
    let before = registry.settled();
    let (name, tensor) = (&sample().shards[2], sample().middle_tensor());
    read::compare(&place.path(name), &sample().original(name), tensor.offset, tensor.size);
    let cost = registry.settled() - before;
    assert!(cost < tensor.size * 3 / 2, "{cost} bytes were fetched for a tensor of {}", tensor.size);
}

#[test]
fn one_tensor_of_a_cold_raw_shard_costs_little_more_than_itself() {
    one_tensor_costs_little_more_than_itself("raw");
}

#[test]
fn one_tensor_of_a_cold_tar_shard_costs_little_more_than_itself() {
    one_tensor_costs_little_more_than_itself("tar");
}

#[test]
fn a_mount_fetches_small_files_and_heads_and_no_more() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &[]);
    let fetched = registry.settled();
    assert!(fetched < 12 * MIB, "{fetched} bytes for nothing but a mount");
    let name = &sample().shards[0];
    read::compare(&place.path(name), &sample().original(name), 0, 4096);
}

#[test]
fn a_mount_told_not_to_warm_fetches_next_to_nothing() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "none"]);
    let fetched = registry.settled();
    assert!(fetched < MIB, "{fetched} bytes for nothing but a mount");
}

#[test]
fn a_mount_told_to_warm_all_comes_to_have_everything() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:tar")), &["--warm", "all"]);
    place.wait_until_complete();
    let before = registry.settled();
    assert!(before <= sample().size() * 105 / 100, "{before} bytes for a model of {}", sample().size());
    read::assert_whole_sample(&place, sample());
    assert_eq!(registry.settled(), before, "everything was there");
}

#[test]
fn a_mount_is_there_after_a_few_round_trips_however_slow_they_are() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    registry.weather(Weather::Delay(Duration::from_millis(100)));
    let ran = place.mount(&registry.reference(&format!("{REPOSITORY}:tar")), &[]);
    assert!(ran.took < Duration::from_secs(3), "{ran:?}");
}

#[test]
fn a_reader_is_served_while_everything_else_is_warmed() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    // At this rate the whole model takes some twenty seconds and one chunk a fraction of one.
    registry.weather(Weather::Limit(sample().size() / 20));
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--warm", "all"]);
    let name = sample().shards.last().unwrap();
    let (file, start) = (File::open(place.path(name)).unwrap(), Instant::now());
    let offset = sample().file(name).size - MIB;
    let got = read::range(&file, offset, 4096).unwrap();
    let took = start.elapsed();
    let right = read::map(&sample().original(name));
    read::assert_same(&place.path(name), offset, &got, &right[offset as usize..offset as usize + 4096]);
    assert!(took < Duration::from_secs(6), "a demand read waited {took:?} behind warming");
}
