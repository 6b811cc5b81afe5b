//! Compressed layers: packed so that they can be read at any place, and indexed where others have packed them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use weightfs::index::{CHUNK, Coding, sections};

use super::*;
use crate::support::pack as made;
use crate::support::pack::{Dialect, Packing};
use crate::support::registry::Registry;

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
fn what_is_packed_compressed_is_read_by_plain_tools_and_the_same_every_time() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    for (option, program) in [("--gzip", "gzip"), ("--zstd", "zstd")] {
        let (target, again) = (layout(&place, program), layout(&place, &format!("{program}-again")));
        let report = packed(&place, folder.path(), &target, &[option]);
        assert_eq!(packed(&place, folder.path(), &again, &[option])["digest"], report["digest"]);
        let published = Published::open(&target);
        let mut found = Files::new();
        for layer in published.artifact.visible() {
            assert!(layer.descriptor.media_type.ends_with(&format!(".tar+{program}")));
            let content = piped(program, &["-dc"], &published.blob(&layer.descriptor.blob()));
            let path = layer.path.clone().unwrap();
            found.insert(path.clone(), piped("tar", &["-xO", "-f", "-", "--", &path], &content));
        }
        assert!(found == files, "{program}");
        let ids = published.config["modelfs"]["diffIds"].as_array().unwrap().len();
        assert_eq!(ids, published.layers().len());
        let said = index(&place, &["verify", &target, "--json"]).ok().json();
        assert_eq!((&said["layersRead"], &said["names"]), (&json!(true), &json!(files.len())));
    }
}

#[test]
fn every_chunk_of_what_is_packed_compressed_begins_a_span() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    for option in ["--gzip", "--zstd"] {
        let target = layout(&place, option);
        packed(&place, folder.path(), &target, &[option]);
        let published = Published::open(&target);
        let opened = index::bound::open(&*published.repository, &published.artifact, None);
        let head = runtime().block_on(opened).unwrap().unwrap().head;
        for layer in &head.layers {
            let Coding::Spans(spans) = &layer.coding else { panic!("not compressed") };
            let table = sections::table(Some(&*published.repository), layer, spans);
            let starts: Vec<u64> = match runtime().block_on(table).unwrap() {
                sections::Table::Gzip(table) => {
                    (0..table.len()).map(|span| table.content(span).start()).collect()
                }
                sections::Table::Zstd(spans) => spans.iter().map(|span| span.content.start()).collect(),
            };
            for extent in &layer.extents {
                // The first may share its span with the header.
                let chunks = (1..extent.len().div_ceil(CHUNK)).map(|chunk| extent.start() + chunk * CHUNK);
                for start in chunks {
                    assert!(starts.contains(&start), "{option} {start} of {starts:?}");
                }
            }
        }
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
    place
        .run(["ls", &target, "--trust-index"])
        .failed(6, &["the attached index", built["index"].as_str().unwrap()]);
    index(&place, &["verify", &target]).failed(6, &["the attached index"]);
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
