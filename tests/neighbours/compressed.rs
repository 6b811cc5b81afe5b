//! The same with compressed layers, as most of these tools publish them: names become known as the layers go by.

use std::io::Write;
use std::process::{Command, Stdio};

use super::{expected, names, open, open_in};
use crate::support::artifacts::{Artifact, Layer};
use crate::support::neighbours::{Age, Part, image, image_of, kit, oras, oras_folder};
use crate::support::tar_writers::Member::{File, Folder, HardLink, Symlink};
use crate::support::tar_writers::members;

/// What the program makes of `bytes`.
fn through(program: &str, arguments: &[&str], bytes: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    let mut child = command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success());
    output.stdout
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    through("gzip", &["-nc"], bytes)
}

/// The artifact with every layer compressed: by gzip, or every other one by zstd.
fn compressed(mut artifact: Artifact) -> Artifact {
    for (at, layer) in artifact.layers.iter_mut().enumerate() {
        let zstd = at % 2 == 1 && layer.media_type.starts_with("application/vnd.oci.image.");
        let (suffix, content) = match zstd {
            true => ("+zstd", through("zstd", &["-qc"], &layer.content)),
            false => ("+gzip", gzip(&layer.content)),
        };
        layer.media_type.push_str(suffix);
        layer.content = content;
    }
    artifact
}

#[test]
fn compressed_layers_of_an_image_are_put_on_one_another_once_all_are_known() {
    let base = [
        Folder("models/"),
        File("models/old", "old"),
        File("usr/lib/a", "a"),
        Symlink("lib", "usr/lib"),
        File("b", "file"),
        File("emptied/x", "x"),
    ];
    let upper = [
        File("models/.wh.old", ""),
        File("models/llm.gguf", "weights"),
        HardLink("again", "usr/lib/a"),
        File("lib/new", "new"),
        Folder("b/"),
        File("emptied/.wh..wh..opq", ""),
        Symlink("out", "/proc/self/mounts"),
    ];
    let plain = image(&[&base, &upper, &[File("top", "top")]]);
    let wanted = expected([
        ("again", "a"),
        ("b", "/"),
        ("emptied", "/"),
        ("lib", "-> usr/lib"),
        ("models/llm.gguf", "weights"),
        ("out", "-> /proc/self/mounts"),
        ("top", "top"),
        ("usr/lib/a", "a"),
        ("usr/lib/new", "new"),
    ]);
    let opened = open(&compressed(plain.clone())).unwrap();
    assert_eq!(opened.names(), wanted);
    // What the layers were found to be is kept: from then on all names are known at once.
    let again = open_in(opened.folder).unwrap();
    assert_eq!(again.names(), wanted);

    let mut mixed = compressed(plain.clone());
    mixed.layers[0] = plain.layers[0].clone();
    mixed.layers[2] = plain.layers[2].clone();
    assert_eq!(names(&mixed), wanted);
}

#[test]
fn a_compressed_image_that_cannot_be_put_together_says_so_to_who_looks() {
    let artifact = compressed(image(&[&[File("a", "a")], &[HardLink("b", "nothing")]]));
    let opened = open(&artifact).unwrap();
    let error = opened.runtime.block_on(opened.model.all_named()).unwrap_err();
    assert!(error.to_string().contains("nothing"), "{error}");
    assert!(opened.runtime.block_on(opened.model.find("a")).is_err());
    opened.runtime.block_on(opened.model.close());
}

#[test]
fn landmarks_of_a_compressed_layer_are_not_shown() {
    let all = [File(".prefetch.landmark", "x"), File("models/m", "weights"), File("stargz.index.json", "{}")];
    let layer = Layer::new("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&members(0, 0, &all)));
    assert_eq!(names(&image_of(vec![layer])), expected([("models/m", "weights")]));
}

#[test]
fn a_compressed_kit_has_the_names_of_its_archives_below_the_folder_of_each_part() {
    let model = [File("llm.gguf", "weights")];
    let code = [Folder("tools/"), File("tools/run.py", "print()")];
    let parts = [
        Part { kind: "model", path: "models/llm.gguf", members: &model },
        Part { kind: "code", path: "tools", members: &code },
    ];
    let found = names(&compressed(kit(&parts, None, Age::Older)));
    let paths: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(paths, ["Kitfile", "models/llm.gguf", "tools/run.py"]);
    assert_eq!(found["models/llm.gguf"], "weights");
}

#[test]
fn a_kit_of_before_kitops_had_its_name_is_one() {
    let model = [File("models/llm.gguf", "weights")];
    let part = Part { kind: "model", path: "models/llm.gguf", members: &model };
    let mut artifact = kit(&[part], None, Age::Today);
    artifact.config_type = "application/vnd.jozu.model.config.v1+json".to_owned();
    artifact.layers[0].media_type = "application/vnd.jozu.model.content.v1.tar".to_owned();
    let found = names(&compressed(artifact));
    let paths: Vec<_> = found.keys().map(String::as_str).collect();
    assert_eq!(paths, ["Kitfile", "models/llm.gguf"]);
    assert_eq!(found["models/llm.gguf"], "weights");
}

#[test]
fn a_folder_that_oras_packed_is_unpacked() {
    let archive = members(0, 0, &[File("data/x.csv", "x"), File("data/y.csv", "y")]);
    let layer = oras_folder("application/vnd.oci.image.layer.v1.tar+gzip", "data", gzip(&archive), &archive);
    assert_eq!(names(&oras(vec![layer])), expected([("data/x.csv", "x"), ("data/y.csv", "y")]));
}
