//! Looking after what is kept: `cache list`, `cache verify` and `cache prune`, beside mounts and after them; and [`verify`],
//! the chain from a model's digest to its bytes on this machine.

mod verify;

use std::fs::{self, File};
use std::path::PathBuf;

use crate::support::pack::{self, Artifact, Dialect, Packing};
use crate::support::place::Place;
use crate::support::registry::{Registry, flip};
use crate::support::{bound, read, sample};

const MIB: u64 = 1 << 20;
const NAME: &str = "model.safetensors";
const SIZE: usize = 3 * MIB as usize + 4097;

/// What a test needs: a model in a registry, and a place.
struct Given {
    registry: Registry,
    place: Place,
    artifact: Artifact,
    weights: Vec<u8>,
}

impl Given {
    /// A model of a large and a small file, with or without an index of its own.
    fn new(bind: bool) -> Self {
        let mut weights = vec![0; SIZE];
        sample::fill(&mut weights, 7);
        let files = [pack::File::new(NAME, weights.clone()), pack::File::new("config.json", *b"{}")];
        let plain = pack::pack(&files, Packing::Raw, Dialect::Upstream, std::path::Path::new("/nowhere"));
        let artifact = if bind { bound::bind(&plain, &files, Packing::Raw) } else { plain };
        let (registry, place) = (Registry::start(), Place::new());
        registry.push("acme/llm", "v1", &artifact);
        Self { registry, place, artifact, weights }
    }

    fn reference(&self) -> String {
        self.registry.reference("acme/llm:v1")
    }

    /// Mounts, brings everything here, and unmounts.
    fn fill(&self) {
        self.place.mount(&self.reference(), &["--warm", "all"]);
        self.place.wait_until_complete();
        self.place.unmount();
    }

    /// The image of the large file.
    fn image(&self) -> PathBuf {
        let below = |folder: PathBuf| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let layers = below(self.place.store().join("layers/sha256")).filter(|path| path.is_dir());
        let name = format!("0-{SIZE}.data");
        let mut images = layers.flat_map(below).filter(|path| path.ends_with(&name));
        images.next().expect("the file is kept")
    }

    fn assert_right(&self) {
        let path = self.place.path(NAME);
        read::assert_same(&path, 0, &fs::read(&path).unwrap(), &self.weights);
    }
}

#[test]
fn a_store_that_is_empty_is_listed_verified_and_pruned() {
    let place = Place::new();
    let list = place.run(["cache", "list", "--json"]).ok().json();
    assert_eq!(list["files"].as_array().map(Vec::len), Some(0), "{list}");
    assert_eq!(list["folder"].as_str(), place.store().to_str());
    place.run(["cache", "list"]).ok();
    place.run(["cache", "verify"]).ok();
    assert_eq!(place.run(["cache", "prune", "--json"]).ok().json()["files"], 0);
}

#[test]
fn what_is_kept_is_listed_by_name_with_its_share_and_standing() {
    for (bind, state) in [(false, "proved"), (true, "bound")] {
        let given = Given::new(bind);
        given.fill();
        let list = given.place.run(["cache", "list", "--json"]).ok().json();
        let files = list["files"].as_array().unwrap();
        assert_eq!(files.len(), 2, "{list}");
        let row = files.iter().find(|row| row["path"] == NAME).unwrap_or_else(|| panic!("{list}"));
        assert_eq!(
            (row["keptBytes"].as_u64(), row["totalBytes"].as_u64()),
            (Some(SIZE as u64), Some(SIZE as u64))
        );
        assert_eq!(row["state"], state);
        let repository = given.registry.reference("acme/llm");
        assert_eq!(row["repositories"], serde_json::json!([repository]), "{list}");
        assert_eq!(row["layer"].as_str(), Some(given.artifact.blobs[0].digest.as_str()), "{list}");
        assert!(row["lastUse"].as_str().is_some_and(|time| time.ends_with('Z')), "{list}");
        assert_eq!(list["keptBytes"].as_u64(), Some(SIZE as u64 + 2));
        assert!(list["usedBytes"].as_u64() >= list["keptBytes"].as_u64());
        assert!(list["budgetBytes"].as_u64() > list["usedBytes"].as_u64());
        let text = given.place.run(["cache", "list"]).ok().stdout;
        assert!(text.contains(NAME) && text.contains(state) && text.contains(&repository), "{text}");
        assert!(text.contains("2 files, ") && text.contains("; 0 indexes; "), "{text}");
    }
}

#[test]
fn a_wrong_byte_is_found_named_and_fetched_again() {
    for bind in [false, true] {
        let given = Given::new(bind);
        given.fill();
        given.place.run(["cache", "verify"]).ok();
        flip(&given.image(), MIB + 5);
        let ran = given.place.run(["cache", "verify", "--json"]);
        assert_eq!(ran.code, 1, "{ran:?}");
        let found = ran.json();
        assert_eq!(found["wrong"][0]["path"], NAME, "{found}");
        assert_eq!(found["wrong"][0]["bytes"][0], "1048576-2097151", "{found}");
        assert_eq!(found["rightBytes"].as_u64(), Some(SIZE as u64 + 2 - MIB), "{found}");
        given.place.run(["cache", "verify"]).ok();
        given.place.mount(&given.reference(), &[]);
        given.assert_right();
    }
}

#[test]
fn bytes_that_somebody_changed_along_with_their_record_are_found_where_the_model_has_an_index() {
    let given = Given::new(true);
    given.fill();
    let image = given.image();
    flip(&image, 5);
    let chunk = fs::read(&image).unwrap()[..MIB as usize].to_vec();
    let digest = blake3::hash(&chunk);
    let check = blake3::hash(&[&0_u64.to_le_bytes()[..], digest.as_bytes()].concat());
    let records = image.with_extension("digests");
    let mut bytes = fs::read(&records).unwrap();
    bytes[..32].copy_from_slice(digest.as_bytes());
    bytes[32..40].copy_from_slice(&check.as_bytes()[..8]);
    fs::write(&records, bytes).unwrap();
    let ran = given.place.run(["cache", "verify"]);
    assert!(ran.code == 1 && ran.stdout.contains(NAME) && ran.stdout.contains("0-1048575"), "{ran:?}");
    given.place.mount(&given.reference(), &[]);
    given.assert_right();
}

#[test]
fn what_a_mount_holds_open_is_not_pruned_and_the_rest_is() {
    let given = Given::new(false);
    given.place.mount(&given.reference(), &["--warm", "all"]);
    given.place.wait_until_complete();
    let file = File::open(given.place.path(NAME)).unwrap();
    read::range(&file, 0, 4096).unwrap();
    let gone = given.place.run(["cache", "prune", "--all", "--json"]).ok().json();
    assert!(gone["inUseBytes"].as_u64() >= Some(SIZE as u64), "{gone}");
    assert!(given.image().exists());
    given.assert_right();
    drop(file);
    given.place.unmount();
    let gone = given.place.run(["cache", "prune", "--all", "--json"]).ok().json();
    assert!(gone["freedBytes"].as_u64() >= Some(SIZE as u64) && gone["inUseBytes"] == 0, "{gone}");
    let list = given.place.run(["cache", "list", "--json"]).ok().json();
    assert_eq!(list["files"].as_array().map(Vec::len), Some(0), "{list}");
    given.place.mount(&given.reference(), &[]);
    given.assert_right();
}

#[test]
fn a_model_whose_content_was_pruned_still_opens_while_nobody_answers() {
    let mut given = Given::new(true);
    given.fill();
    given.place.run(["cache", "prune", "--all"]).ok();
    let reference = given.reference();
    given.registry.stop();
    let list = given.place.run(["ls", &reference]).ok().stdout;
    assert!(list.contains(NAME), "{list}");
}

#[test]
fn pruning_to_a_size_or_an_age_leaves_what_is_within_it() {
    let given = Given::new(false);
    given.fill();
    let files = |gone: &serde_json::Value| gone["files"].as_u64();
    let prune = |words: &[&str]| given.place.run([&["cache", "prune", "--json"], words].concat()).ok().json();
    assert_eq!(files(&prune(&[])), Some(0));
    assert_eq!(files(&prune(&["--older-than", "30days"])), Some(0));
    assert_eq!(files(&prune(&["--keep", "1GiB"])), Some(0));
    assert!(files(&prune(&["--keep", "1MiB"])) >= Some(1));
    assert!(files(&prune(&["--older-than", "0s"])) <= Some(1));
    given.place.run(["cache", "prune", "--keep", "much"]).failed(2, &["--keep", "much"]);
    given.place.run(["cache", "prune", "--older-than", "long"]).failed(2, &["--older-than"]);
    given.place.run(["cache", "prune", "--all", "--keep", "1GiB"]).failed(2, &["--keep"]);
}
