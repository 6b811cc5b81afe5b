//! Compressed layers without an index that say themselves where their parts lie: read in their middle for little more than
//! what is read, before they are here.

use std::fs::File;
use std::time::Duration;

use tempfile::TempDir;

use crate::support::pack::Artifact;
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::{heavy, parted, read, scratch};

const REPOSITORY: &str = "acme/parted";
const MIB: u64 = 1 << 20;
/// The stretch that is read: a tensor in the middle of a shard, at no bound of anything.
const STRETCH: (u64, u64) = (47 * MIB + 12_345, 16 * MIB);
const SHARD: &str = "model-2.safetensors";
/// What the mount and the stretch may cost: names, the stretch, and the parts that its ends lie in. Less than an eighth of the
/// layer, from which on it would go by.
const COST: u64 = 32 * MIB;

struct Parted {
    registry: Registry,
    artifact: Artifact,
    folder: TempDir,
    place: Place,
}

impl Parted {
    fn new(form: &str) -> Self {
        let folder = scratch::roomy();
        let (source, out) = (folder.path().join("source"), folder.path().join("out"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&out).unwrap();
        parted::write(&source);
        let artifact = parted::pack(&source, form, &out);
        let registry = Registry::start();
        registry.push(REPOSITORY, "v1", &artifact);
        Self { registry, artifact, folder, place: Place::new() }
    }

    fn mount(&self, place: &Place, options: &[&str]) {
        let options = [&["--warm", "none"], options].concat();
        place.mount(&self.registry.reference(&format!("{REPOSITORY}:v1")), &options);
    }

    /// Reads the stretch; what the registry sent for it, from before the mount on.
    fn stretch(&self, place: &Place, options: &[&str]) -> u64 {
        let before = self.registry.settled();
        self.mount(place, options);
        let (at, len) = STRETCH;
        let got = read::range(&File::open(place.path(SHARD)).unwrap(), at, len).unwrap();
        let sent = self.registry.settled() - before;
        let original = File::open(self.folder.path().join("source").join(SHARD)).unwrap();
        read::assert_same(&place.path(SHARD), at, &got, &read::range(&original, at, len).unwrap());
        sent
    }

    fn assert_all(&self, place: &Place) {
        for (name, _) in parted::FILES {
            read::compare_whole(&place.path(name), &self.folder.path().join("source").join(name));
        }
    }

    fn layer(&self) -> (&str, u64) {
        (&self.artifact.blobs[0].digest, self.artifact.blobs[0].content.size())
    }
}

/// Reads a stretch for little, then everything, which proves the layer and leaves an index.
fn is_read_in_its_middle(form: &str) {
    let _alone = heavy();
    let parted = Parted::new(form);
    let (_, size) = parted.layer();
    let sent = parted.stretch(&parted.place, &[]);
    assert!(sent < COST && sent < size / 5, "{form}: {sent} bytes of {size}");
    assert_eq!(parted.place.status()["standing"], "deferred");
    parted.assert_all(&parted.place);
    parted.place.wait_for("verified", Duration::from_secs(180));
    parted.assert_all(&parted.place);
    parted.place.unmount();

    let before = parted.registry.settled();
    parted.mount(&parted.place, &[]);
    parted.assert_all(&parted.place);
    let cost = parted.registry.settled() - before;
    assert!(cost < MIB / 4, "{cost} bytes for what is kept");
}

#[test]
fn a_seekable_zstd_layer_is_read_in_its_middle_before_it_is_here() {
    is_read_in_its_middle("tar+zstd, seekable");
}

#[test]
fn a_layer_of_zstd_chunked_is_read_in_its_middle_before_it_is_here() {
    is_read_in_its_middle("zstd:chunked");
}

#[test]
fn a_layer_of_estargz_is_read_in_its_middle_before_it_is_here() {
    is_read_in_its_middle("eStargz");
}

#[test]
fn strict_serves_what_the_manifest_pins_before_the_layer_is_here_and_no_part_that_is_wrong() {
    let _alone = heavy();
    let parted = Parted::new("eStargz");
    let (digest, size) = parted.layer();
    let sent = parted.stretch(&parted.place, &["--integrity", "strict"]);
    assert!(sent < COST && sent < size / 5, "{sent} bytes of {size}");
    parted.place.unmount();
    // In the second shard, after the stretch.
    parted.registry.corrupt(digest, 140 * MIB);
    let other = parted.place.neighbour();
    parted.stretch(&other, &["--integrity", "strict"]);
    let shard = File::open(other.path(SHARD)).unwrap();
    let wrong = read::range(&shard, 70 * MIB, 20 * MIB).unwrap_err();
    assert_eq!(wrong.raw_os_error(), Some(nix::libc::EIO));
    read::compare(&other.path(SHARD), &parted.folder.path().join("source").join(SHARD), 0, 4 * MIB);
    read::compare_whole(&other.path("config.json"), &parted.folder.path().join("source/config.json"));
}
