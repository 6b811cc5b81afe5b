//! Stores that are too small, full, or taken away: that costs speed and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::support::place::Place;
use crate::support::sample::{REPOSITORY, sample};
use crate::support::{heavy, read, scratch, wait};

const MIB: u64 = 1 << 20;

#[test]
fn a_store_smaller_than_the_model_serves_right_bytes_and_stays_small() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let reference = registry.reference(&format!("{REPOSITORY}:raw"));
    place.mount(&reference, &["--store-size", "100MiB"]);
    for _again in 0..2 {
        read::assert_whole_sample(&place, sample());
    }
    place.unmount();
    let used = used(&place.store());
    assert!(used < 110 * MIB, "{used} bytes on disk");
}

#[test]
fn a_store_taken_away_while_mounted_is_not_missed() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &[]);
    let name = &sample().shards[0];
    read::compare_whole(&place.path(name), &sample().original(name));
    // A chunk may be on its way into a folder just emptied: then once more.
    let gone = || std::fs::remove_dir_all(place.store()).is_ok();
    wait::until("the store is gone", Duration::from_secs(10), gone);
    read::assert_whole_sample(&place, sample());
    place.unmount();
}

#[test]
fn a_full_disk_under_the_store_is_not_noticed_by_a_reader() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let disk = SmallDisk::mount(&place);
    let store = disk.folder.join("store");
    place.mount(&registry.reference(&format!("{REPOSITORY}:raw")), &["--store", store.to_str().unwrap()]);
    for _again in 0..2 {
        read::assert_whole_sample(&place, sample());
    }
    place.unmount();
}

#[test]
fn a_store_with_strangers_files_in_it_serves_right_bytes() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    let raw = registry.reference(&format!("{REPOSITORY}:raw"));
    place.mount(&raw, &["--warm", "all"]);
    place.wait_until_complete();
    place.unmount();
    let folder = place.layer(&sample().digest(&sample().shards[0]));
    for file in std::fs::read_dir(&folder).unwrap() {
        std::fs::write(file.unwrap().path(), vec![0xff; 100_000]).unwrap();
    }
    std::fs::write(folder.join("0-1.data"), b"x").unwrap();
    place.mount(&raw, &[]);
    read::assert_whole_sample(&place, sample());
}

/// A file system of 32 MiB in memory, detached when dropped.
struct SmallDisk {
    folder: PathBuf,
}

impl SmallDisk {
    fn mount(place: &Place) -> Self {
        let folder = place.folder("disk");
        let options = Some("size=32m,mode=700");
        mount(Some("weightfs-test"), &folder, Some("tmpfs"), MsFlags::empty(), options)
            .expect("tests mount a tmpfs: run them as root");
        Self { folder }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        scratch::detach_below(&self.folder);
    }
}

/// Bytes that the files below a folder take on disk.
fn used(folder: &std::path::Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => used(&entry.path()),
            Ok(found) => found.blocks() * 512,
            Err(_) => 0,
        })
        .sum()
}
