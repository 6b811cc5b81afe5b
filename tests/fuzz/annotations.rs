//! What an artifact says of its files, from anybody: names, links, metadata, configs, references. Refused, or of the form that
//! the rest of the house relies on.

use weightfs::oci::config::Description;
use weightfs::oci::metadata::{FileMetadata, seconds};
use weightfs::oci::path::{self, COMPONENT_LIMIT, PATH_LIMIT};
use weightfs::oci::{Digest, Reference};

/// Runs the input, and panics where it shows a fault.
pub fn run(data: &[u8]) {
    if let Ok(path) = path::validate(data) {
        is_safe(&path);
        assert_eq!(path.as_bytes(), data);
    }
    for found in [path::of_member(data), path::of_folder(data)].into_iter().flatten().flatten() {
        is_safe(&found);
    }
    if let Ok(target) = path::link_target("one/two/link", data) {
        stays_inside(&target, 2);
    }
    let _ = Description::parse(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let _ = (FileMetadata::parse(text), seconds(text));
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        let shown = reference.to_string();
        assert_eq!(shown.parse::<Reference>().expect("what is shown can be typed"), reference, "{shown}");
    }
}

fn is_safe(path: &str) {
    assert!(!path.is_empty() && path.len() <= PATH_LIMIT && !path.contains('\0'), "{path:?}");
    for part in path.split('/') {
        assert!(!matches!(part, "" | "." | "..") && part.len() <= COMPONENT_LIMIT, "{path:?}");
    }
}

/// A link in a folder so deep, followed by the letter.
fn stays_inside(target: &str, mut depth: i32) {
    for part in target.split('/') {
        depth += match part {
            "" | "." => 0,
            ".." => -1,
            _ => 1,
        };
        assert!(depth >= 0, "{target:?}");
    }
}
