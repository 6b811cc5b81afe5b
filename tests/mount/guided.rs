//! Compressed layers without an index that say themselves where their parts lie: read in their middle for little more than
//! what is read, before they are here.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use nix::libc::EIO;
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
    files: &'static parted::Files,
    folder: TempDir,
    place: Place,
}

impl Parted {
    fn new(form: &str) -> Self {
        Self::of(&parted::FILES, form)
    }

    fn of(files: &'static parted::Files, form: &str) -> Self {
        let folder = scratch::roomy();
        let (source, out) = (folder.path().join("source"), folder.path().join("out"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&out).unwrap();
        parted::write(&source, files);
        let artifact = parted::pack(&source, files, form, &out);
        let registry = Registry::start();
        registry.push(REPOSITORY, "v1", &artifact);
        Self { registry, artifact, files, folder, place: Place::new() }
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
        for (name, _) in self.files {
            read::compare_whole(&place.path(name), &self.original(name));
        }
    }

    fn original(&self, name: &str) -> PathBuf {
        self.folder.path().join("source").join(name)
    }

    /// Reads all files piece by piece: each piece is right, or an error of input and output. How many were errors.
    fn right_or_refused(&self, place: &Place) -> u64 {
        let mut refused = 0;
        for (name, size) in self.files {
            let (file, right) = (File::open(place.path(name)), File::open(self.original(name)).unwrap());
            let Ok(file) = file.inspect_err(|error| assert_eq!(error.raw_os_error(), Some(EIO), "{name}"))
            else {
                refused += 1;
                continue;
            };
            for at in (0..*size as u64).step_by(MIB as usize) {
                let len = MIB.min(*size as u64 - at);
                match read::range(&file, at, len) {
                    Ok(got) => {
                        let right = read::range(&right, at, len).unwrap();
                        read::assert_same(&place.path(name), at, &got, &right);
                    }
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(EIO), "{name} at {at}: {error}");
                        refused += 1;
                    }
                }
            }
        }
        refused
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
    assert_eq!(wrong.raw_os_error(), Some(EIO));
    read::compare(&other.path(SHARD), &parted.folder.path().join("source").join(SHARD), 0, 4 * MIB);
    read::compare_whole(&other.path("config.json"), &parted.folder.path().join("source/config.json"));
}

/// How far before a layer's end the bytes lie that are changed: in the footer, in the rows of its seek table.
const ROWS: &[u64] = &[3, 12, 20, 40];
/// The same of a table of contents: in the footer, and all over the table.
const CONTENTS: &[u64] = &[3, 12, 30, 60, 100, 150, 300];

/// A table that the registry gives otherwise than it was written: no wrong byte is read.
fn damaged_on_its_way(form: &str, places: &[u64]) {
    let _alone = heavy();
    let parted = Parted::of(&parted::SMALL, form);
    let (digest, size) = parted.layer();
    for before_end in places {
        let place = Place::new();
        parted.registry.corrupt(digest, size - before_end);
        parted.mount(&place, &[]);
        parted.right_or_refused(&place);
        place.unmount();
        parted.registry.corrupt(digest, size - before_end);
    }
}

/// A table that was written wrong, in a layer that is what its digest says. How many pieces can't be read.
fn written_wrong(form: &str, places: &[u64]) -> u64 {
    let _alone = heavy();
    let parted = Parted::of(&parted::SMALL, form);
    let mut refused = 0;
    for before_end in places {
        parted.registry.push(REPOSITORY, "v1", &parted::damaged(&parted.artifact, *before_end));
        for options in [&[][..], &["--integrity", "strict"]] {
            let place = Place::new();
            parted.mount(&place, options);
            refused += parted.right_or_refused(&place);
            place.unmount();
        }
    }
    refused
}

#[test]
fn a_seek_table_that_is_damaged_leads_to_no_wrong_byte() {
    damaged_on_its_way("tar+zstd, seekable", ROWS);
    assert_eq!(written_wrong("tar+zstd, seekable", ROWS), 0, "it goes by instead");
}

#[test]
fn a_table_of_contents_that_is_damaged_leads_to_no_wrong_byte() {
    damaged_on_its_way("zstd:chunked", CONTENTS);
    assert_eq!(written_wrong("zstd:chunked", CONTENTS), 0, "it goes by instead");
    damaged_on_its_way("eStargz", CONTENTS);
    // Footer and table are members of the gzip file, which can't be decoded to its end then.
    let _some = written_wrong("eStargz", CONTENTS);
}

/// What a tensor in the middle of a shard costs who mounts without a word about it: little more than the tensor, beside the heads
/// of the files, which lie in parts of their own.
fn a_tensor_costs_little_more_than_itself(form: &str) {
    const PART: u64 = 4 * MIB;
    let _alone = heavy();
    let parted = Parted::of(&parted::LARGE, form);
    let before = parted.registry.settled();
    let reference = parted.registry.reference(&format!("{REPOSITORY}:v1"));
    parted.place.mount(&reference, &[]);
    let (at, len) = (parted::HEAD + 12 * parted::TENSOR, parted::TENSOR);
    let got = read::range(&File::open(parted.place.path(SHARD)).unwrap(), at, len).unwrap();
    let right = read::range(&File::open(parted.original(SHARD)).unwrap(), at, len).unwrap();
    read::assert_same(&parted.place.path(SHARD), at, &got, &right);
    let sent = parted.registry.settled() - before;
    let (_, size) = parted.layer();
    let heads = parted.files.len() as u64 * PART;
    assert!(sent < len * 5 / 2 + heads, "{form}: {sent} bytes of {size} for a tensor of {len}");
}

#[test]
fn a_tensor_in_a_seekable_zstd_layer_costs_little_more_than_itself() {
    a_tensor_costs_little_more_than_itself("tar+zstd, seekable");
}

#[test]
fn a_tensor_in_an_estargz_layer_costs_little_more_than_itself() {
    a_tensor_costs_little_more_than_itself("eStargz");
}
