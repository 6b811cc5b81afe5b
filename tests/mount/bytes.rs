//! Every byte of the model is right, however it was packed and however it is read.

use std::fs::File;
use std::time::Duration;

use super::parts;
use crate::support::child::{self, Part};
use crate::support::pack::{self, Dialect, Packing};
use crate::support::place::Place;
use crate::support::read::{self, Mapping};
use crate::support::registry::Registry;
use crate::support::sample::{REPOSITORY, sample};
use crate::support::{heavy, scratch};

fn a_cold_mount_has_every_file_right(tag: &str) {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let ran = place.mount(&registry.reference(&format!("{REPOSITORY}:{tag}")), &[]);
    assert!(ran.stdout.contains("sha256:"), "the line on stdout names the digest: {}", ran.stdout);
    assert_eq!(ran.stdout.trim_end().lines().count(), 1, "{}", ran.stdout);
    read::assert_whole_sample(&place, sample());
    place.unmount();
}

#[test]
fn the_raw_model_is_right_in_every_file() {
    a_cold_mount_has_every_file_right("raw");
}

#[test]
fn the_tar_model_is_right_in_every_file() {
    a_cold_mount_has_every_file_right("tar");
}

#[test]
fn the_older_dialect_is_right_in_every_file() {
    a_cold_mount_has_every_file_right("legacy");
}

#[test]
fn the_flat_dialect_without_annotations_is_right_in_every_file() {
    a_cold_mount_has_every_file_right("seed");
}

#[test]
fn a_model_in_a_layout_folder_is_right_in_every_file() {
    let _alone = heavy();
    let (place, work) = (Place::new(), scratch::roomy());
    let mut big = vec![0; (9 << 20) + 17];
    crate::support::sample::fill(&mut big, 1);
    let files = [pack::File::new("weights/big.safetensors", big), pack::File::new("config.json", "{}")];
    for (tag, packing) in [("raw", Packing::Raw), ("tar", Packing::Tar), ("one", Packing::OneTar)] {
        let folder = work.path().join(tag);
        pack::pack(&files, packing, Dialect::Upstream, work.path()).write_layout(&folder, "v1");
        place.mount(&format!("oci:{}:v1", folder.display()), &[]);
        for file in &files {
            let pack::Content::Bytes(right) = &file.content else { unreachable!("made in memory") };
            let got = std::fs::read(place.path(&file.path)).unwrap();
            read::assert_same(&place.path(&file.path), 0, &got, right);
        }
        place.unmount();
    }
}

#[test]
fn thirty_two_threads_of_random_faults_over_cold_shards_see_right_bytes() {
    if child::is_part() {
        return parts::random_faults();
    }
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    for tag in ["raw", "tar"] {
        place.mount(&registry.reference(&format!("{REPOSITORY}:{tag}")), &[]);
        let (mounted, original) = (place.dir(), sample().original(""));
        let part = Part::start(
            "mount::bytes::thirty_two_threads_of_random_faults_over_cold_shards_see_right_bytes",
            &[
                ("PART_MOUNT", mounted.to_str().unwrap()),
                ("PART_ORIGINAL", original.to_str().unwrap()),
                ("PART_FILES", &sample().shards.join(":")),
            ],
        );
        let ended = part.finish(Duration::from_secs(180));
        assert_eq!((ended.code, ended.signal), (Some(0), None), "{}", ended.said);
        place.unmount();
    }
}

#[test]
fn direct_reads_see_right_bytes_on_a_cold_file_and_on_a_kept_one() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let name = &sample().shards[1];
    let right = std::fs::read(sample().original(name)).unwrap();
    for _cold_then_kept in 0..2 {
        place.mount(&registry.reference(&format!("{REPOSITORY}:tar")), &[]);
        let got = read::direct(&place.path(name)).unwrap();
        read::assert_same(&place.path(name), 0, &got, &right);
        place.wait_until_kept(right.len() as u64);
        place.unmount();
    }
}

#[test]
fn a_direct_and_a_buffered_reader_of_one_file_agree() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &[]);
    let name = &sample().shards[0];
    let (path, original) = (place.path(name), sample().original(name));
    let right = std::fs::read(&original).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| read::assert_same(&path, 0, &read::direct(&path).unwrap(), &right));
        scope.spawn(|| read::compare_whole(&path, &original));
    });
}

#[test]
fn every_kind_of_mapping_shows_right_bytes() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let kinds = [Mapping::Shared, Mapping::Populated, Mapping::Private];
    for tag in ["raw", "tar"] {
        place.mount(&registry.reference(&format!("{REPOSITORY}:{tag}")), &[]);
        for (kind, name) in kinds.into_iter().zip(&sample().shards) {
            let path = place.path(name);
            let map = read::map_as(&path, kind).unwrap_or_else(|error| panic!("{kind:?}: {error}"));
            read::assert_same(&path, 0, &map, &read::map(&sample().original(name)));
        }
        let name = &sample().shards[3];
        let mut map = read::map_writable(&place.path(name)).unwrap();
        read::assert_same(&place.path(name), 0, &map, &read::map(&sample().original(name)));
        map[4096] = !map[4096];
        read::compare(&place.path(name), &sample().original(name), 0, 8192);
        drop(map);
        place.unmount();
    }
}

#[test]
fn pages_dropped_by_the_kernel_come_back_right() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &[]);
    let name = &sample().shards[2];
    let file = File::open(place.path(name)).unwrap();
    for _again in 0..3 {
        read::compare_whole(&place.path(name), &sample().original(name));
        read::forget(&file);
    }
}

#[test]
fn a_read_at_the_end_is_short_and_one_behind_it_is_empty() {
    let (registry, place) = (Registry::start(), Place::new());
    let files = [pack::File::new("a.bin", vec![9; (1 << 20) + 1]), pack::File::new("empty.txt", "")];
    let artifact = pack::pack(&files, Packing::Raw, Dialect::Upstream, std::path::Path::new("/nowhere"));
    registry.push("acme/llm", "v1", &artifact);
    place.mount(&registry.reference("acme/llm:v1"), &[]);
    let file = File::open(place.path("a.bin")).unwrap();
    assert_eq!(read::range(&file, 1 << 20, 100).unwrap(), [9]);
    assert_eq!(read::range(&file, (1 << 20) + 1, 100).unwrap(), [0_u8; 0]);
    assert_eq!(read::range(&file, 1 << 40, 100).unwrap(), [0_u8; 0]);
    assert_eq!(std::fs::read(place.path("empty.txt")).unwrap(), [0_u8; 0]);
}
