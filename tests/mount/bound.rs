//! A model that brings its own chunk digests: strict by default, and a wrong byte costs its own MiB and nothing else.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use nix::libc::{EIO, SIGBUS};

use super::parts;
use crate::support::child::{self, Part};
use crate::support::pack::{self, Artifact, Dialect, Packing};
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::{bound, read, sample, wait};

const MIB: u64 = 1 << 20;
const NAME: &str = "model.safetensors";
const REFERENCE: &str = "bound/model";

/// A bound artifact of one file of 12 MiB and a bit, and one small one.
fn packed(packing: Packing) -> (Vec<pack::File>, Artifact) {
    let mut weights = vec![0; 12 * MIB as usize + 4097];
    sample::fill(&mut weights, 7);
    let files = vec![pack::File::new(NAME, weights), pack::File::new("config.json", *b"{}")];
    let plain = pack::pack(&files, packing, Dialect::Upstream, std::path::Path::new("/nowhere"));
    let artifact = bound::bind(&plain, &files, packing);
    (files, artifact)
}

fn bytes(file: &pack::File) -> &[u8] {
    match &file.content {
        pack::Content::Bytes(bytes) => bytes,
        _ => unreachable!("in memory"),
    }
}

fn start(packing: Packing) -> (Registry, Vec<pack::File>, Artifact) {
    let (registry, (files, artifact)) = (Registry::start(), packed(packing));
    registry.push(REFERENCE, "v1", &artifact);
    (registry, files, artifact)
}

fn assert_whole(place: &Place, files: &[pack::File]) {
    for file in files {
        let path = place.path(&file.path);
        read::assert_same(&path, 0, &fs::read(&path).unwrap(), bytes(file));
    }
}

/// What the store's images hold.
fn images(place: &Place) -> Vec<Vec<u8>> {
    let below = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let layers = below(place.store().join("layers/sha256")).filter(|path| path.is_dir());
    let images = layers.flat_map(below).filter(|path| path.extension().is_some_and(|kind| kind == "data"));
    images.map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn a_mount_shows_what_its_tag_named_when_it_was_made() {
    let (registry, files, _) = start(Packing::Raw);
    let (reference, place) = (registry.reference(&format!("{REFERENCE}:v1")), Place::new());
    place.mount(&reference, &["--warm", "none"]);
    let others = vec![pack::File::new("other.safetensors", vec![7; 4097])];
    let plain = pack::pack(&others, Packing::Raw, Dialect::Upstream, std::path::Path::new("/nowhere"));
    registry.push(REFERENCE, "v1", &bound::bind(&plain, &others, Packing::Raw));
    // Nothing of it was read before.
    assert_whole(&place, &files);
    assert!(!place.path("other.safetensors").exists());
    place.unmount();
    place.mount(&reference, &["--warm", "none"]);
    assert_whole(&place, &others);
    assert!(!place.path(NAME).exists());
    place.unmount();
}

#[test]
fn a_model_with_its_own_digests_is_verified_from_the_first_byte_and_says_so() {
    for packing in [Packing::Raw, Packing::Tar, Packing::OneTar] {
        let (registry, files, _) = start(packing);
        let place = Place::new();
        place.mount(&registry.reference(&format!("{REFERENCE}:v1")), &["--warm", "none"]);
        let status = place.status();
        assert_eq!((&status["standing"], &status["integrity"]), (&"verified".into(), &"strict".into()));
        assert!(!place.path(".weightfs").exists(), "the index is not shown");
        let before = registry.settled();
        let file = File::open(place.path(NAME)).unwrap();
        read::assert_same(
            &place.path(NAME),
            0,
            &read::range(&file, 0, 4096).unwrap(),
            &bytes(&files[0])[..4096],
        );
        assert!(registry.settled() - before <= 3 * MIB, "one byte needs no whole layer");
        assert_whole(&place, &files);
        // Nobody has hashed the whole.
        assert_eq!(read::xattr(&place.path(NAME), "user.modctl.sha256"), None);
        drop(file);
        place.unmount();
    }
}

#[test]
fn one_wrong_byte_in_the_registry_costs_its_own_mebibyte_and_nothing_else() {
    if child::is_part() {
        return parts::touch_once();
    }
    let (registry, files, artifact) = start(Packing::Raw);
    let (weights, wrong) = (bytes(&files[0]), 5 * MIB + 77);
    registry.corrupt(&artifact.blobs[0].digest, wrong);
    let (place, whole) = (Place::new(), weights.len() as u64);
    place.mount(&registry.reference(&format!("{REFERENCE}:v1")), &["--warm", "all"]);
    let (path, file) = (place.path(NAME), File::open(place.path(NAME)).unwrap());
    for offset in (0..whole).step_by(64 << 10) {
        let size = (64 << 10).min(whole - offset);
        match read::range(&file, offset, size) {
            Ok(got) => {
                let at = offset as usize;
                assert_ne!(offset / MIB, wrong / MIB, "at {offset}");
                read::assert_same(&path, offset, &got, &weights[at..at + size as usize]);
            }
            Err(error) => {
                assert_eq!((error.raw_os_error(), offset / MIB), (Some(EIO), wrong / MIB), "at {offset}");
            }
        }
    }
    let mapping = |offset: u64| {
        let part = Part::start(
            "mount::bound::one_wrong_byte_in_the_registry_costs_its_own_mebibyte_and_nothing_else",
            &[("PART_FILE", path.to_str().unwrap()), ("PART_OFFSET", &offset.to_string())],
        );
        part.finish(Duration::from_secs(60)).signal
    };
    assert_eq!(mapping(wrong / MIB * MIB + 9), Some(SIGBUS));
    assert_eq!((mapping(4 * MIB), mapping(6 * MIB)), (None, None), "its neighbours");

    let listed = place.run(["list"]).ok();
    let named = format!("{NAME} bytes {}-{}", 5 * MIB, 6 * MIB - 1);
    assert!(listed.stderr.contains(&named) && listed.stdout.contains("strict"), "{listed:?}");
    let status = place.status();
    assert_eq!(status["refused"], serde_json::json!([named]));
    assert_eq!(status["standing"], "verified", "no layer is given up");
    let total = files.iter().map(|file| file.content.size()).sum::<u64>();
    place.wait_until_kept(total - MIB);
    assert_eq!(place.status()["kept"], total - MIB);
    let right = &weights[wrong as usize..wrong as usize + 4096];
    let images = images(&place);
    let large = images.iter().find(|image| image.len() == weights.len()).expect("the image of the weights");
    let hole = &large[5 * MIB as usize..6 * MIB as usize];
    assert!(hole.iter().all(|byte| *byte == 0), "nothing wrong is kept");
    // Mended, it is served to the reader who has had the file open all the while.
    registry.corrupt(&artifact.blobs[0].digest, wrong);
    read::assert_same(&path, wrong, &read::range(&file, wrong, 4096).unwrap(), right);
    assert_whole(&place, &files);
    wait::until("nothing is refused any more", Duration::from_secs(10), || {
        place.status()["refused"] == serde_json::json!([])
    });
}

#[test]
fn an_index_that_is_wrong_is_an_error_at_the_mount_and_no_step_down() {
    let (registry, files, artifact) = start(Packing::Raw);
    let (index, section) = (bound::index_digest(&artifact), bound::head_size(&artifact));
    let (place, reference) = (Place::new(), registry.reference(&format!("{REFERENCE}:v1")));
    for at in [section - 1, section] {
        registry.corrupt(&index, at);
        place.try_mount(&reference, &["--integrity", "deferred"]).failed(6, &["bound index", &index]);
        registry.corrupt(&index, at);
    }
    place.mount(&reference, &[]);
    assert_whole(&place, &files);
}

#[test]
fn what_was_read_of_a_bound_model_is_there_for_the_next_mount_without_the_registry() {
    let (mut registry, files, _) = start(Packing::OneTar);
    let (place, reference) = (Place::new(), registry.reference(&format!("{REFERENCE}:v1")));
    place.mount(&reference, &["--warm", "all"]);
    place.wait_until_complete();
    place.unmount();
    registry.stop();
    place.mount(&reference, &[]);
    assert_whole(&place, &files);
    assert_eq!(place.status()["standing"], "verified");
}
