//! Indexes of one layer in a file: what is written is read, and what is damaged is not.

use super::*;
use crate::codec::tar::tests::plain;
use crate::index::pass::tests::{sample, stored_forms};
use crate::index::pass::{Digesting, Event, Pass, Spacing};
use crate::index::spool::Spool;
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Descriptor};

/// The layer of these stored bytes gone by, and its index in a file.
pub(crate) fn indexed(suffix: &str, stored: &[u8]) -> (Layer, Vec<Entry>, File) {
    let descriptor = Descriptor {
        media_type: format!("application/vnd.cncf.model.weight.v1.{suffix}"),
        digest: Digest::of(stored),
        size: stored.len().try_into().unwrap(),
        annotations: std::collections::BTreeMap::new(),
    };
    let artifact = Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() }).unwrap();
    let mut pass = Pass::new(&artifact.layers[0], 3, Spacing::new(64 << 10).unwrap()).unwrap();
    let (mut spool, mut digests) = (Spool::new(tempfile::tempfile().unwrap()), Digesting::default());
    let mut sink = |event: Event<'_>| {
        match event {
            Event::Content { extent, bytes, .. } => digests.update(extent, bytes),
            Event::Window(window) => spool.push(&window)?,
            Event::Extent(..) | Event::Entry(_) => {}
        }
        Ok(())
    };
    pass.step(stored, &mut sink).unwrap();
    let passed = pass.finish(&mut sink).unwrap();
    let layer = spool.layer(&artifact.layers[0], &passed);
    let file = tempfile::tempfile().unwrap();
    write(&file, &layer, &passed.entries, digests.finish()).unwrap();
    (layer, passed.entries, file)
}

fn bytes_of(section: &Section) -> Bytes {
    let Home::File(file) = &section.home else { panic!("not in a file") };
    section.bytes.clone().unwrap_or_else(|| read(file, section.range.start(), section.range.len()).unwrap())
}

#[test]
fn what_is_written_of_a_layer_is_read_and_its_chunks_are_kept_under_its_own_digest() {
    for (suffix, stored) in stored_forms(&sample()) {
        let (layer, entries, file) = indexed(suffix, &stored);
        let (found, found_entries) = open(Arc::new(file), &layer.blob, 3).unwrap();
        assert_eq!(found_entries, entries);
        assert_eq!(
            (&found.blob, &found.extents, found.content()),
            (&layer.blob, &layer.extents, layer.content())
        );
        assert_eq!(found.kept_as(), &layer.blob.digest);
        assert!(found.bound.is_some());
        let (Coding::Spans(found), Coding::Spans(spans)) = (&found.coding, &layer.coding) else {
            panic!("not compressed")
        };
        assert_eq!(bytes_of(&found.table), bytes_of(&spans.table));
        assert!(found.table.digest.matches(&bytes_of(&found.table)));
        assert_eq!(found.checkpoints.as_ref().map(bytes_of), spans.checkpoints.as_ref().map(bytes_of));
    }
}

#[test]
fn an_index_of_another_layer_is_not_taken() {
    let (_, stored) = stored_forms(&sample()).swap_remove(0);
    let (layer, _, file) = indexed("tar+gzip", &stored);
    let other = Blob { digest: Digest::of(b"other"), size: layer.blob.size };
    assert_eq!(open(Arc::new(file), &other, 0).unwrap_err().kind(), Kind::Invalid);
}

#[test]
fn a_damaged_or_cut_index_is_refused_or_says_the_same() {
    let mut content = [plain("a", 200), vec![7; 512]].concat();
    content.extend([0; 1024]);
    let (_, stored) = stored_forms(&content).swap_remove(0);
    let (layer, entries, file) = indexed("tar+gzip", &stored);
    let whole = read(&file, 0, file.metadata().unwrap().len()).unwrap();
    let with = |bytes: &[u8]| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        open(Arc::new(file), &layer.blob, 3)
    };
    let (found, _) = open(Arc::new(file), &layer.blob, 3).unwrap();
    let Coding::Spans(spans) = &found.coding else { panic!("not compressed") };
    let sections = [found.bound.as_ref().unwrap().chunks.range, spans.table.range];
    for at in 0..whole.len() {
        let is_in = |section: &crate::range::StoredRange| {
            section.covers(crate::range::StoredRange::new(at as u64, at as u64 + 1))
        };
        let mut wrong = whole.to_vec();
        wrong[at] ^= 0x10;
        match with(&wrong) {
            // What lies between the sections.
            Ok((_, found)) => assert!(found == entries && !sections.iter().any(is_in), "{at}"),
            Err(error) => assert!(matches!(error.kind(), Kind::Invalid | Kind::Integrity), "{error:?}"),
        }
    }
    for len in (0..whole.len()).step_by(7) {
        assert!(with(&whole[..len]).is_err(), "{len} bytes");
    }
}

#[test]
fn a_damaged_checkpoint_is_found_by_who_looks_at_all_of_an_index() {
    let (_, stored) = stored_forms(&sample()).swap_remove(0);
    let (layer, _, file) = indexed("tar+gzip", &stored);
    let file = Arc::new(file);
    check(&file, &layer.blob.digest).unwrap();
    assert_eq!(check(&file, &Digest::of(b"other")).unwrap_err().kind(), Kind::Invalid);
    let (found, _) = open(Arc::clone(&file), &layer.blob, 3).unwrap();
    let Coding::Spans(spans) = &found.coding else { panic!("not compressed") };
    let range = spans.checkpoints.as_ref().unwrap().range;
    for at in [range.start(), range.end() - 1] {
        let right = read(&file, at, 1).unwrap();
        file.write_all_at(&[right[0] ^ 1], at).unwrap();
        assert!(open(Arc::clone(&file), &layer.blob, 3).is_ok(), "checkpoints are had when they are needed");
        assert_eq!(check(&file, &layer.blob.digest).unwrap_err().kind(), Kind::Integrity);
        file.write_all_at(&right, at).unwrap();
    }
    check(&file, &layer.blob.digest).unwrap();
}
