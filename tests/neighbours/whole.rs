//! Neighbours through the whole program: a registry, the commands, a kernel.

use std::fs;

use serde_json::{Value, json};

use weightfs::oci::Digest;
use weightfs::oci::manifest::{OCI_INDEX, OCI_MANIFEST};

use crate::support::artifacts::Artifact;
use crate::support::neighbours::{Age, Part, image, kit};
use crate::support::pack;
use crate::support::place::Place;
use crate::support::registry::{BASIC, Registry};
use crate::support::tar_writers::Member;

fn push(registry: &Registry, repository: &str, artifact: &Artifact) {
    let blobs = artifact.blobs().into_iter().map(|(digest, bytes)| pack::Blob {
        digest: digest.to_string(),
        content: pack::Content::Bytes(bytes.to_vec()),
    });
    let (manifest, media_type) = (artifact.manifest(), artifact.media_type.clone());
    registry.push(repository, "v1", &pack::Artifact { blobs: blobs.collect(), manifest, media_type });
}

fn model<'a>(members: &'a [Member<'a>]) -> Part<'a> {
    Part { kind: "model", path: "model.gguf", members }
}

fn docs<'a>(members: &'a [Member<'a>]) -> Part<'a> {
    Part { kind: "docs", path: "README.md", members }
}

#[test]
fn a_kit_is_mounted_upon_its_parents_of_which_only_the_model_is_taken() {
    let mut registry = Registry::start();
    let place = Place::new();
    let base = [model(&[Member::File("model.gguf", "base")]), docs(&[Member::File("README.md", "of base")])];
    push(&registry, "org/base", &kit(&base, None, Age::Today));
    let base = registry.reference("org/base:v1");
    let part = Part { kind: "modelpart", path: "lora", members: &[Member::File("lora/a.bin", "adapter")] };
    push(&registry, "org/middle", &kit(&[part], Some(&base), Age::Today));
    let middle = registry.reference("org/middle:v1");
    push(
        &registry,
        "org/top",
        &kit(&[docs(&[Member::File("README.md", "of top")])], Some(&middle), Age::Today),
    );
    let top = registry.reference("org/top:v1");

    place.mount(&top, &[]);
    let read = |path: &str| fs::read_to_string(place.path(path)).unwrap();
    assert_eq!((read("model.gguf"), read("lora/a.bin")), ("base".to_owned(), "adapter".to_owned()));
    assert_eq!(read("README.md"), "of top");
    assert!(read("Kitfile").contains(&middle));
    let mut names: Vec<_> =
        fs::read_dir(place.dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["Kitfile", "README.md", "lora", "model.gguf"]);
    place.unmount();

    registry.stop();
    let kept = place.run(["ls", &top]).ok().stdout;
    assert!(kept.contains("model.gguf") && kept.contains("a.bin"), "{kept}");
    registry.restart();
    let said = place.run(["inspect", &top, "--json"]).ok().json();
    assert_eq!(said["dialect"], "kitops");
    let warnings: Vec<_> = said["warnings"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert!(warnings.iter().any(|warning| warning.contains(&base)), "{warnings:?}");
}

#[test]
fn a_parent_in_another_registry_is_asked_only_where_the_user_says_so() {
    let (kits, other, place) = (Registry::start(), Registry::with_password(), Place::new());
    push(&other, "org/base", &kit(&[model(&[Member::File("model.gguf", "base")])], None, Age::Today));
    let base = other.reference("org/base:v1");
    let readme = [Member::File("README.md", "of top")];
    push(&kits, "org/top", &kit(&[docs(&readme)], Some(&base), Age::Today));
    let (top, host) = (kits.reference("org/top:v1"), base.split('/').next().unwrap());
    let auths = json!({"auths": {host: {"auth": BASIC}}});
    fs::write(place.docker().join("config.json"), auths.to_string()).unwrap();

    let before = other.requests().len();
    place.run(["ls", &top]).failed(4, &["parent kit", host, "registry.parents"]);
    assert_eq!(other.requests().len(), before, "nobody has asked it");

    let mut command = place.command();
    command.args(["cat", &top, "model.gguf"]).env("WEIGHTFS_PARENTS", host);
    assert_eq!(place.finish(command, std::time::Duration::from_secs(60)).ok().stdout, "base");
    assert!(other.requests().len() > before);
}

#[test]
fn parents_that_go_in_a_circle_or_are_too_many_are_refused_by_name() {
    let registry = Registry::start();
    let place = Place::new();
    let reference = |number: usize| registry.reference(&format!("org/kit{number}:v1"));
    for number in 0..12 {
        push(&registry, &format!("org/kit{number}"), &kit(&[], Some(&reference(number + 1)), Age::Today));
    }
    place.run(["ls", &reference(0)]).failed(7, &["more than 10 kits", &reference(11)]);
    push(&registry, "org/kit1", &kit(&[], Some(&reference(0)), Age::Today));
    place.run(["ls", &reference(0)]).failed(2, &["circle", &reference(1)]);
}

#[test]
fn of_a_list_of_images_the_one_for_the_platform_is_mounted() {
    let (mut registry, place) = (Registry::start(), Place::new());
    let listed = [("amd64", ""), ("arm64", "v8"), ("riscv64", "")].map(|(architecture, variant)| {
        let image = image(&[&[Member::File("models/which", architecture)]]);
        push(&registry, "org/car", &image);
        let (digest, size) = (Digest::of(&image.manifest()).to_string(), image.manifest().len());
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size,
            "platform": {"os": "linux", "architecture": architecture, "variant": variant}})
    });
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).to_string();
    let list = pack::Artifact {
        blobs: Vec::new(),
        manifest: manifest.into_bytes(),
        media_type: OCI_INDEX.to_owned(),
    };
    registry.push("org/car", "v1", &list);
    let car = registry.reference("org/car:v1");
    let which = |options: &[&str]| place.run([&["cat", &car, "models/which"][..], options].concat());

    let own = weightfs::oci::Platform::host().to_string();
    assert_eq!(which(&[]).ok().stdout, own.trim_start_matches("linux/"));
    assert_eq!(which(&["--platform", "linux/arm64"]).ok().stdout, "arm64");
    assert_eq!(which(&["--platform", "linux/riscv64"]).ok().stdout, "riscv64");
    let lists = ["no manifest for linux/s390x", "linux/amd64", "linux/arm64", "--platform"];
    which(&["--platform", "linux/s390x"]).failed(3, &lists);
    which(&["--platform", "s390x"]).failed(2, &["--platform", "linux/amd64"]);
    let said = place.run(["inspect", &car, "--platform", "linux/riscv64", "--json"]).ok().json();
    assert_eq!(said["digest"], listed[2]["digest"]);
    let folder = place.folder("pulled");
    let output = folder.to_str().unwrap();
    place.run(["pull", &car, "--platform", "linux/riscv64", "--output", output]).ok();
    assert_eq!(fs::read_to_string(folder.join("models/which")).unwrap(), "riscv64");

    registry.stop();
    place.mount(&car, &["--platform", "linux/arm64"]);
    assert_eq!(fs::read_to_string(place.path("models/which")).unwrap(), "arm64");
    place.unmount();
    which(&["--platform", "linux/arm/v7"]).failed(5, &["nothing of it is kept"]);
}

#[test]
fn a_modelcar_is_mounted_and_its_links_lead_where_a_reader_follows_them() {
    let registry = Registry::start();
    let place = Place::new();
    let base = [Member::Folder("models/"), Member::File("models/old", "old"), Member::File("etc/os", "x")];
    let car = [
        Member::File("models/.wh.old", ""),
        Member::File("models/llm/model.gguf", "weights"),
        Member::Symlink("models/model.file", "llm/model.gguf"),
        Member::Symlink("out", "/proc/self/mounts"),
        Member::HardLink("models/again", "models/llm/model.gguf"),
    ];
    push(&registry, "org/car", &image(&[&base, &car]));
    let reference = registry.reference("org/car:v1");
    place.mount(&reference, &[]);
    let read = |path: &str| fs::read_to_string(place.path(path)).unwrap();
    assert_eq!(read("models/model.file"), "weights");
    assert_eq!(read("models/again"), "weights");
    assert_eq!(fs::read_link(place.path("out")).unwrap().to_str(), Some("/proc/self/mounts"));
    assert!(!place.path("models/old").exists() && !place.path("models/.wh.old").exists());
    place.unmount();
    let listed = place.run(["ls", &reference, "models"]).ok().stdout;
    assert!(listed.contains("model.file") && !listed.contains("old"), "{listed}");
    assert_eq!(place.run(["cat", &reference, "models/llm/model.gguf"]).ok().stdout, "weights");
    assert_eq!(place.run(["inspect", &reference, "--json"]).ok().json()["dialect"], "image");

    let folder = place.folder("pulled");
    place.run(["pull", &reference, "--output", folder.to_str().unwrap()]).ok();
    assert_eq!(fs::read_to_string(folder.join("models/model.file")).unwrap(), "weights");
    assert_eq!(fs::read_link(folder.join("out")).unwrap().to_str(), Some("/proc/self/mounts"));
    assert!(!folder.join("models/old").exists());
    place.run(["index", "add", &reference]).failed(7, &["image", "no place for an index"]);
}
