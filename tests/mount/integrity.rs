//! No wrong byte is served: not from a store that somebody wrote into, not from a registry that lies.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use nix::libc::{EIO, SIGBUS};

use super::parts;
use crate::support::child::{self, Part};
use crate::support::place::Place;
use crate::support::registry::{Registry, flip};
use crate::support::sample::{REPOSITORY, sample};
use crate::support::{heavy, read, wait};

const MIB: u64 = 1 << 20;

/// The file of the store that is the image of a raw layer.
fn image(place: &Place, digest: &str) -> PathBuf {
    let folder = place.layer(digest);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let images: Vec<_> = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "data"))
        .collect();
    assert_eq!(images.len(), 1, "{images:?}");
    images.into_iter().next().unwrap()
}

fn raw(registry: &Registry) -> String {
    registry.reference(&format!("{REPOSITORY}:raw"))
}

#[test]
fn a_byte_flipped_in_the_store_before_a_mount_is_never_served() {
    let _alone = heavy();
    let (registry, place, name) = (sample().registry(), Place::new(), &sample().shards[0]);
    place.mount(&raw(&registry), &["--warm", "all"]);
    place.wait_until_complete();
    place.unmount();
    for offset in [0, sample().middle_tensor().offset + 5, sample().file(name).size - 1] {
        flip(&image(&place, &sample().digest(name)), offset);
        place.mount(&raw(&registry), &[]);
        read::assert_whole_sample(&place, sample());
        place.wait_until_complete();
        place.unmount();
    }
}

#[test]
fn a_byte_flipped_in_a_half_kept_file_is_never_served() {
    let _alone = heavy();
    let (registry, place, name) = (sample().registry(), Place::new(), &sample().shards[1]);
    let tensor = sample().middle_tensor();
    place.mount(&raw(&registry), &["--warm", "none"]);
    read::compare(&place.path(name), &sample().original(name), tensor.offset, tensor.size);
    registry.settled();
    place.unmount();
    flip(&image(&place, &sample().digest(name)), tensor.offset + tensor.size / 2);
    place.mount(&raw(&registry), &["--warm", "none"]);
    read::compare_whole(&place.path(name), &sample().original(name));
}

#[test]
fn a_byte_flipped_in_the_store_behind_a_mounted_model_before_the_file_is_opened_is_never_served() {
    let _alone = heavy();
    let (registry, place, name) = (sample().registry(), Place::new(), &sample().shards[0]);
    place.mount(&raw(&registry), &["--warm", "all"]);
    place.wait_until_complete();
    flip(&image(&place, &sample().digest(name)), sample().middle_tensor().offset + 5);
    read::assert_whole_sample(&place, sample());
    place.unmount();
    place.mount(&raw(&registry), &[]);
    flip(&image(&place, &sample().digest(name)), sample().middle_tensor().offset + MIB);
    read::assert_whole_sample(&place, sample());
}

#[test]
fn a_layer_that_is_not_its_digest_is_poisoned_also_in_cached_pages_and_live_mappings() {
    if child::is_part() {
        return parts::touch_twice();
    }
    let _alone = heavy();
    let (registry, place, name) = (sample().registry(), Place::new(), &sample().shards[0]);
    let tensor = sample().middle_tensor();
    registry.corrupt(&sample().digest(name), tensor.offset + 5);
    place.mount(&raw(&registry), &["--warm", "none"]);
    let path = place.path(name);
    let offset = tensor.offset.next_multiple_of(4096);
    let mut mapping = Part::start(
        "mount::integrity::a_layer_that_is_not_its_digest_is_poisoned_also_in_cached_pages_and_live_mappings",
        &[("PART_FILE", path.to_str().unwrap()), ("PART_OFFSET", &offset.to_string())],
    );
    mapping.wait_for("TOUCHED", Duration::from_secs(60));
    let open = File::open(&path).unwrap();
    let cached = read::range(&open, 0, 64 << 10).expect("not known to be wrong yet");
    assert_eq!(cached.len(), 64 << 10);
    read_to_the_end(&open);
    place.wait_for("poisoned", Duration::from_secs(60));
    let status = place.status();
    let poisoned = status["poisoned"].as_array().expect("poisoned is an array");
    assert!(poisoned.iter().any(|file| file.to_string().contains(name.as_str())), "{status}");
    assert_eq!(read::range(&open, 0, 4096).unwrap_err().raw_os_error(), Some(EIO), "a page that was cached");
    assert_eq!(read_anew(&place, name).unwrap_err().raw_os_error(), Some(EIO), "a new open");
    mapping.go_on();
    let ended = mapping.finish(Duration::from_secs(60));
    assert_eq!(ended.signal, Some(SIGBUS), "{ended:?}");
    let other = &sample().shards[1];
    read::compare_whole(&place.path(other), &sample().original(other));
}

#[test]
fn a_poisoned_layer_stays_poisoned_and_is_not_kept() {
    let _alone = heavy();
    let (registry, place, name) = (sample().registry(), Place::new(), &sample().shards[2]);
    registry.corrupt(&sample().digest(name), 12_345);
    place.mount(&raw(&registry), &["--warm", "all"]);
    place.wait_for("poisoned", Duration::from_secs(120));
    assert_eq!(read_anew(&place, name).unwrap_err().raw_os_error(), Some(EIO));
    place.unmount();
    place.mount(&raw(&registry), &["--warm", "all"]);
    place.wait_for("poisoned", Duration::from_secs(120));
    assert_eq!(read_anew(&place, name).unwrap_err().raw_os_error(), Some(EIO));
}

#[test]
fn a_registry_that_was_mended_is_served_again_by_a_new_mount() {
    let _alone = heavy();
    let (registry, place, name) = (sample().registry(), Place::new(), &sample().shards[2]);
    registry.corrupt(&sample().digest(name), 12_345);
    place.mount(&raw(&registry), &["--warm", "all"]);
    place.wait_for("poisoned", Duration::from_secs(120));
    place.unmount();
    registry.corrupt(&sample().digest(name), 12_345);
    place.mount(&raw(&registry), &[]);
    read::assert_whole_sample(&place, sample());
}

#[test]
fn strict_serves_no_byte_of_a_layer_that_is_not_its_digest() {
    let _alone = heavy();
    let (registry, place, name) = (sample().registry(), Place::new(), &sample().shards[0]);
    registry.corrupt(&sample().digest(name), sample().middle_tensor().offset + 5);
    place.mount(&raw(&registry), &["--integrity", "strict"]);
    let file = File::open(place.path(name)).unwrap();
    for offset in [0, sample().middle_tensor().offset, sample().file(name).size - 4096] {
        let said = read::range(&file, offset, 4096).map(|bytes| bytes.len());
        assert_eq!(said.unwrap_err().raw_os_error(), Some(EIO), "at {offset}");
    }
    assert_eq!(read::direct(&place.path(name)).unwrap_err().raw_os_error(), Some(EIO));
    let other = &sample().shards[1];
    read::compare_whole(&place.path(other), &sample().original(other));
}

#[test]
fn strict_serves_a_right_model_whole() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&registry.reference(&format!("{REPOSITORY}:tar")), &["--integrity", "strict"]);
    read::assert_whole_sample(&place, sample());
}

#[test]
fn a_model_read_whole_becomes_verified() {
    let _alone = heavy();
    let (registry, place) = (sample().registry(), Place::new());
    place.mount(&raw(&registry), &[]);
    assert_eq!(place.status()["standing"], "deferred");
    read::assert_whole_sample(&place, sample());
    place.wait_for("verified", Duration::from_secs(60));
    let name = &sample().shards[0];
    wait::until("the verified file says its digest", Duration::from_secs(10), || {
        read::xattr(&place.path(name), "user.modctl.sha256") == Some(sample().digest(name))
    });
}

/// Reads until the end or the first error, as an engine does that loads the whole file.
fn read_to_the_end(file: &File) {
    let size = file.metadata().unwrap().len();
    for offset in (0..size).step_by(MIB as usize) {
        if read::range(file, offset, MIB).is_err() {
            return;
        }
    }
}

fn read_anew(place: &Place, name: &str) -> std::io::Result<Vec<u8>> {
    let file = File::open(place.path(name))?;
    read::forget(&file);
    read::range(&file, 0, 4096)
}
