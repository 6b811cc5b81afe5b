//! Indexes of compressed layers: made, published beside a model, looked at, and checked against it.

use std::io::Write as _;
use std::process::{Command, Stdio};

use super::*;
use crate::support::pack as made;
use crate::support::pack::{Dialect, Packing};
use crate::support::registry::{Registry, flip};

/// What a program makes of the bytes on its standard input.
fn piped(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, bytes) = (child.stdin.take().unwrap(), bytes.to_vec());
    let writer = std::thread::spawn(move || stdin.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{program}");
    output.stdout
}

/// One layer with all files in the flat form, which has no annotation, compressed by `program`.
fn flat(program: &str) -> made::Artifact {
    let files = files().into_iter().filter(|(path, _)| path.is_ascii());
    let files: Vec<_> = files.map(|(path, content)| made::File::new(path, content)).collect();
    let mut artifact = made::pack(&files, Packing::OneTar, Dialect::Seed, Path::new("/nowhere"));
    let made::Content::Bytes(content) = &artifact.blobs[0].content else { panic!("on disk") };
    let stored = piped(program, &["-c"], content);
    let (old, size) = (artifact.blobs[0].digest.clone(), content.len());
    let layer = made::Blob { digest: made::digest(&stored), content: made::Content::Bytes(stored) };
    let text = String::from_utf8(artifact.manifest).unwrap();
    let text = text
        .replace(&old, &layer.digest)
        .replace(&format!("\"size\":{size}"), &format!("\"size\":{}", layer.content.size()));
    artifact.manifest = text.replace(".v1.tar\"", &format!(".v1.tar+{program}\"")).into_bytes();
    artifact.blobs[0] = layer;
    artifact
}

fn expected() -> Files {
    files().into_iter().filter(|(path, _)| path.is_ascii()).collect()
}

fn index(place: &Place, arguments: &[&str]) -> Ran {
    let mut command = place.command();
    command.arg("index").args(arguments);
    place.finish(command, std::time::Duration::from_secs(120))
}

/// The files that `ls` lists.
fn listed(place: &Place, reference: &str, options: &[&str]) -> Vec<String> {
    let list = place.run([&["ls", reference, "--json"][..], options].concat()).ok().json();
    list.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap().to_owned()).collect()
}

fn has_all_files(place: &Place, reference: &str, options: &[&str]) -> bool {
    let listed = listed(place, reference, options);
    expected().keys().all(|path| listed.iter().any(|found| path.starts_with(found.as_str())))
        && !listed.is_empty()
}

#[test]
fn the_index_of_what_is_packed_compressed_says_what_its_layers_are() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    for option in ["--gzip", "--zstd"] {
        let target = layout(&place, option);
        packed(&place, folder.path(), &target, &[option]);
        let said = index(&place, &["verify", &target, "--json"]).ok().json();
        assert_eq!((&said["layersRead"], &said["names"]), (&json!(true), &json!(files.len())));
    }
}

#[test]
fn a_compressed_artifact_gets_an_index_and_keeps_its_layers() {
    let (registry, place) = (Registry::start(), Place::new());
    for program in ["gzip", "zstd"] {
        registry.push("acme/llm", program, &flat(program));
        let target = registry.reference(&format!("acme/llm:{program}"));
        let before = Published::open(&target);
        index(&place, &["add", &target, "--span", "64KiB"]).ok();
        let after = Published::open(&target);
        assert_eq!(after.layers()[..1], before.layers()[..]);
        assert!(has_all_files(&place, &target, &[]));
        let said = index(&place, &["inspect", &target, "--json"]).ok().json();
        assert_eq!((&said["how"], &said["layers"][0]["coding"]), (&json!("bound"), &json!(program)));
        assert_eq!(said["layers"][0]["checkpointBytes"].as_u64() > Some(0), program == "gzip");
        index(&place, &["verify", &target]).ok();
    }
}

#[test]
fn an_index_is_built_into_a_file_and_published_beside_the_model() {
    let (registry, place) = (Registry::start(), Place::new());
    registry.push("acme/llm", "v1", &flat("gzip"));
    let target = registry.reference("acme/llm:v1");
    index(&place, &["inspect", &target]).failed(3, &["has no index"]);
    let file = place.path("llm.index").display().to_string();
    let built = index(&place, &["build", &target, "--output", &file, "--json"]).ok().json();
    let said = index(&place, &["inspect", &file, "--json"]).ok().json();
    assert_eq!((&said["how"], &said["index"]), (&json!("file"), &built["index"]));
    assert_eq!(index(&place, &["verify", &file, "--json"]).ok().json()["layersRead"], json!(false));

    let pushed = index(&place, &["push", &target, &file, "--json"]).ok().json();
    assert_eq!(pushed["index"], built["index"]);
    let again = index(&place, &["push", &target, "--json"]).ok().json();
    assert_eq!(again["digest"], pushed["digest"], "the same index of the same model");
    let said = index(&place, &["inspect", &target, "--json"]).ok().json();
    assert_eq!((&said["how"], &said["index"]), (&json!("attached"), &built["index"]));
    index(&place, &["verify", &target]).ok();
    assert!(has_all_files(&place, &target, &["--trust-index"]));

    registry.push("acme/llm", "v2", &flat("zstd"));
    let other = registry.reference("acme/llm:v2");
    index(&place, &["push", &other, &file]).failed(2, &["is no index of"]);
    registry.corrupt(built["index"].as_str().unwrap(), 100);
    assert!(has_all_files(&place, &target, &["--trust-index"]), "its head is kept");
    Place::new()
        .run(["ls", &target, "--trust-index"])
        .failed(6, &["the attached index", built["index"].as_str().unwrap()]);
    index(&place, &["verify", &target]).failed(6, &["the attached index"]);
}

#[test]
fn an_attached_index_that_was_used_is_there_while_nobody_answers() {
    let (mut registry, place) = (Registry::start(), Place::new());
    registry.push("acme/llm", "v1", &flat("zstd"));
    let target = registry.reference("acme/llm:v1");
    // Made elsewhere, so that this machine has none of its own.
    index(&Place::new(), &["push", &target]).ok();
    assert!(has_all_files(&place, &target, &["--trust-index"]));
    registry.stop();
    assert!(has_all_files(&place, &target, &["--trust-index"]));
}

#[test]
fn an_index_that_was_built_here_saves_asking_for_the_layer() {
    let (registry, place) = (Registry::start(), Place::new());
    let artifact = flat("zstd");
    registry.push("acme/llm", "v1", &artifact);
    let target = registry.reference("acme/llm:v1");
    index(&place, &["build", &target, "--span", "1MiB"]).ok();
    let asked = || registry.requests().iter().filter(|line| line.contains(&artifact.blobs[0].digest)).count();
    let before = asked();
    assert!(before > 0 && has_all_files(&place, &target, &[]));
    assert_eq!(asked(), before, "names come from the index");
}

#[test]
fn an_index_that_was_built_here_is_listed_checked_and_makes_room_like_what_is_kept() {
    let (registry, place) = (Registry::start(), Place::new());
    let artifact = flat("gzip");
    registry.push("acme/llm", "v1", &artifact);
    let target = registry.reference("acme/llm:v1");
    let list = || place.run(["cache", "list", "--json"]).ok().json();
    for damaged in [true, false] {
        index(&place, &["build", &target]).ok();
        let listed = list();
        assert_eq!(listed["indexes"][0]["layer"], json!(artifact.blobs[0].digest), "{listed}");
        assert_eq!(listed["indexes"][0]["diskBytes"], listed["usedBytes"], "{listed}");
        assert!(place.run(["cache", "list"]).ok().stdout.contains("(index)"));
        if damaged {
            let layer = artifact.blobs[0].digest.replace(':', "/");
            let folder = fs::read_dir(place.store().join("layers").join(layer)).unwrap();
            let kept = folder.map(|entry| entry.unwrap().path());
            let mut kept = kept.filter(|path| path.to_string_lossy().contains("/index-"));
            flip(&kept.next().unwrap(), 100);
            let ran = place.run(["cache", "verify", "--json"]);
            assert_eq!(
                (ran.code, &ran.json()["wrongIndexes"][0]["layer"]),
                (1, &listed["indexes"][0]["layer"])
            );
        } else {
            assert_eq!(place.run(["cache", "verify", "--json"]).ok().json()["indexes"], json!(1));
            assert_eq!(place.run(["cache", "prune", "--json"]).ok().json()["indexes"], json!(0));
            assert_eq!(place.run(["cache", "prune", "--all", "--json"]).ok().json()["indexes"], json!(1));
        }
        assert_eq!(list()["indexes"], json!([]));
    }
}

#[test]
fn an_index_beside_a_model_in_a_folder_leaves_the_model_the_only_one_without_a_tag() {
    let place = Place::new();
    let folder = place.folder("layout");
    flat("zstd").write_layout(&folder, "v1");
    let target = format!("oci:{}", folder.display());
    index(&place, &["push", &target]).ok();
    assert_eq!(index(&place, &["inspect", &target, "--json"]).ok().json()["how"], json!("attached"));
    assert!(has_all_files(&place, &target, &["--trust-index"]));
}

#[test]
fn a_file_that_is_no_index_or_a_damaged_one_is_refused() {
    let (place, registry) = (Place::new(), Registry::start());
    registry.push("acme/llm", "v1", &flat("gzip"));
    let target = registry.reference("acme/llm:v1");
    let file = place.path("llm.index");
    let name = file.display().to_string();
    index(&place, &["build", &target, "--output", &name]).ok();
    let whole = fs::read(&file).unwrap();
    for (at, code) in [(3, 2), (whole.len() - 5, 6)] {
        let mut wrong = whole.clone();
        wrong[at] ^= 1;
        fs::write(&file, wrong).unwrap();
        index(&place, &["verify", &name]).failed(code, &[]);
    }
    fs::write(&file, b"short").unwrap();
    index(&place, &["inspect", &name]).failed(2, &["is no index"]);
    index(&place, &["push", &target, &name]).failed(2, &["is no index"]);
    index(&place, &["build", &target, "--output", &name, "--span", "1KiB"]).failed(2, &["--span"]);
}
