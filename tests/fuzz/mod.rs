//! The fuzz targets, each with what was found to be worth keeping: replayed here, and run for longer by `tools/fuzz`.
//!
//! `tests/fixtures/fuzz/TARGET` is the corpus: small inputs of which each takes another way through the code, and every input
//! that ever showed a fault.

mod annotations;
mod guide;
mod gzip;
mod index_head;
mod manifest;
mod seek_table;
mod tar;
mod toc;
mod zstd_scan;

use std::path::Path;

fn replay(target: fn(&[u8]), folders: &[&str]) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let mut inputs = 0;
    for folder in folders {
        for entry in std::fs::read_dir(fixtures.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            println!("{}", path.display());
            target(&std::fs::read(path).unwrap());
            inputs += 1;
        }
    }
    assert!(inputs > folders.len(), "a corpus is there");
}

#[test]
fn annotations_from_anybody_are_refused_or_safe() {
    replay(annotations::run, &["fuzz/annotations"]);
}

#[test]
fn gzip_files_from_anybody_are_refused_or_read_at_random_as_they_went_by() {
    replay(gzip::run, &["fuzz/gzip", "gzip"]);
}

#[test]
fn layers_that_say_themselves_where_their_parts_lie_are_refused_or_read_as_they_go_by() {
    replay(guide::run, &["fuzz/guide"]);
}

#[test]
fn indexes_from_anybody_are_refused_or_have_one_form() {
    replay(index_head::run, &["fuzz/index_head", "index-v1"]);
}

#[test]
fn manifests_from_anybody_are_refused_or_read() {
    replay(manifest::run, &["fuzz/manifest"]);
}

#[test]
fn seek_tables_from_anybody_are_refused_or_cover_their_blob() {
    replay(seek_table::run, &["fuzz/seek_table"]);
}

#[test]
fn archives_from_anybody_are_refused_or_the_same_however_they_come() {
    replay(tar::run, &["fuzz/tar"]);
}

#[test]
fn tables_of_contents_from_anybody_are_refused_or_lie_in_their_blob() {
    replay(toc::run, &["fuzz/toc"]);
}

#[test]
fn zstd_blobs_from_anybody_are_refused_or_read_at_random_as_they_went_by() {
    replay(zstd_scan::run, &["fuzz/zstd_scan"]);
}
