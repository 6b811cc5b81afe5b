//! Packing into compressed layers: ordinary archives for everybody else, and an index by which each chunk is a span's.

use std::io::Write;
use std::process::{Command, Stdio};

use weightfs::index::{Coding, Layer};

use super::*;

/// How `pack` is asked, what the media type ends in, and what reads such a layer.
const FORMS: [(&str, &str, &[&str]); 2] =
    [("--gzip", "+gzip", &["gzip", "-dc"]), ("--zstd", "+zstd", &["zstd", "-qdc"])];

/// What a program makes of some bytes.
fn through(command: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{command:?}");
    output.stdout
}

fn head(published: &Published) -> index::format::Head {
    let bound = published.artifact.bound_index().unwrap().expect("an index");
    let bytes = bytes::Bytes::from(published.blob(&bound.blob));
    index::format::decode(&bytes.slice(..bound.head.size as usize), &bound.blob).unwrap()
}

fn is_in_spans(layer: &Layer) -> bool {
    matches!(&layer.coding, Coding::Spans(spans) if spans.checkpoints.is_none())
}

#[test]
fn compressed_layers_are_archives_that_others_read_and_the_same_every_time() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    for (option, suffix, command) in FORMS {
        let first = layout(&place, &format!("one{suffix}"));
        let answer = packed(&place, folder.path(), &first, &[option]);
        let again = packed(&place, folder.path(), &layout(&place, &format!("two{suffix}")), &[option]);
        assert_eq!(answer["digest"], again["digest"], "{option}");
        let published = Published::open(&first);
        let mut found = Files::new();
        for layer in published.artifact.visible() {
            assert!(layer.descriptor.media_type.ends_with(&format!(".tar{suffix}")));
            let archive = through(command, &published.blob(&layer.descriptor.blob()));
            let path = layer.path.clone().unwrap();
            assert_eq!(
                String::from_utf8(through(&["tar", "t", "--quoting-style=literal"], &archive))
                    .unwrap()
                    .trim(),
                path
            );
            found.insert(path, through(&["tar", "xO"], &archive));
        }
        assert!(found == files, "{option}");
    }
}

#[test]
fn the_index_of_compressed_layers_has_their_spans_and_no_checkpoints_and_content_s_digests() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    for (option, suffix, command) in FORMS {
        let target = layout(&place, &format!("spans{suffix}"));
        packed(&place, folder.path(), &target, &[option]);
        let published = Published::open(&target);
        let head = head(&published);
        assert!(head.layers.iter().all(is_in_spans), "{option}");
        let diff_ids = published.config["modelfs"]["diffIds"].as_array().unwrap();
        for ((layer, entry), diff_id) in head.layers.iter().zip(&head.entries).zip(diff_ids) {
            let content = through(command, &published.blob(&layer.blob));
            assert_eq!(weightfs::oci::Digest::of(&content).to_string(), *diff_id, "{}", entry.path);
            let file = layer
                .extents
                .first()
                .map_or(&[][..], |extent| &content[extent.start() as usize..extent.end() as usize]);
            assert!(file == files[&entry.path], "{}", entry.path);
        }
    }
}
