//! An index for artifacts that others made: the same layers, read back and verified, under a new digest.

use super::*;
use crate::support::pack as made;
use crate::support::pack::{Dialect, Packing};
use crate::support::registry::Registry;

/// An artifact as another tool makes it of the files.
fn artifact(packing: Packing, dialect: Dialect) -> made::Artifact {
    let files: Vec<made::File> = files()
        .into_iter()
        .filter(|(path, _)| path.is_ascii())
        .map(|(path, content)| made::File::new(path, content))
        .collect();
    made::pack(&files, packing, dialect, Path::new("/nowhere"))
}

fn expected() -> Files {
    files().into_iter().filter(|(path, _)| path.is_ascii()).collect()
}

fn add(place: &Place, arguments: &[&str]) -> Ran {
    place.run([&["index", "add"][..], arguments].concat())
}

#[test]
fn every_dialect_and_packing_gets_an_index_and_keeps_its_layers() {
    let (registry, place) = (Registry::start(), Place::new());
    for packing in [Packing::Raw, Packing::Tar, Packing::OneTar] {
        for dialect in [Dialect::Upstream, Dialect::Legacy, Dialect::Seed] {
            // The flat form names files only in archives.
            if (packing, dialect) == (Packing::Raw, Dialect::Seed) {
                continue;
            }
            let tag = format!("{packing:?}-{dialect:?}");
            let old = registry.push("acme/llm", &tag, &artifact(packing, dialect));
            let target = registry.reference(&format!("acme/llm:{tag}"));
            let before = Published::open(&target);
            let report = add(&place, &[&target, "--json"]).ok().json();
            assert_eq!(report["old"], json!(old), "{tag}");
            let after = Published::open(&target);
            let (old_layers, mut new_layers) = (before.layers().to_vec(), after.layers().to_vec());
            let index = new_layers.pop().unwrap();
            assert_eq!(old_layers, new_layers, "{tag}");
            let family = if dialect == Dialect::Legacy { "cnai" } else { "cncf" };
            assert_eq!(index["mediaType"], format!("application/vnd.{family}.model.doc.v1.raw"));
            assert_eq!(index["annotations"][format!("org.{family}.model.filepath")], ".weightfs/index");
            assert_eq!(after.manifest["artifactType"], before.manifest["artifactType"]);
            let key = if dialect == Dialect::Legacy { "diff_ids" } else { "diffIds" };
            if dialect != Dialect::Seed {
                assert_eq!(after.config["modelfs"][key], json!(digests(&after.manifest)), "{tag}");
                assert_eq!(after.config["descriptor"], before.config["descriptor"]);
            } else {
                assert_eq!(after.manifest["config"], before.manifest["config"]);
            }
            assert_indexed(&target);
            assert_files(&target, &expected());
            let old = registry.reference(&format!("acme/llm@{old}"));
            assert_files(&old, &expected());
            add(&place, &[&target]).failed(2, &["has an index already"]);
        }
    }
}

#[test]
fn what_nobody_here_knows_of_a_manifest_stays_as_it_was() {
    let (registry, place) = (Registry::start(), Place::new());
    let mut artifact = artifact(Packing::Raw, Dialect::Upstream);
    let text = String::from_utf8(artifact.manifest).unwrap();
    let more = r#"{ "zz" : [1, {"layers":[]}],"annotations":{"org.cncf.modctl.modelfile":"FROM x\n"}, "#;
    let digest = weightfs::oci::Digest::of(b"subject");
    let subject =
        json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 7});
    artifact.manifest = text.replacen('{', &format!("{more}\"subject\":{subject},"), 1).into_bytes();
    registry.push("acme/llm", "v1", &artifact);
    let target = registry.reference("acme/llm:v1");
    let ran = add(&place, &[&target]).ok();
    assert!(ran.stderr.contains("it has a subject"), "{ran:?}");
    let after = Published::open(&target);
    assert_eq!(after.manifest["subject"], subject);
    assert_eq!(after.manifest["zz"], json!([1, {"layers": []}]));
    assert_eq!(after.manifest["annotations"]["org.cncf.modctl.modelfile"], "FROM x\n");
    assert_indexed(&target);
}

#[test]
fn blobs_are_taken_from_the_repository_they_lie_in_and_copied_elsewhere() {
    let (registry, other, place) = (Registry::start(), Registry::start(), Place::new());
    let artifact = artifact(Packing::Raw, Dialect::Upstream);
    let old = registry.push("acme/llm", "v1", &artifact);
    let source = registry.reference(&format!("acme/llm@{old}"));
    add(&place, &[&source]).failed(2, &["has no tag", "TARGET"]);
    let with_tag = registry.reference(&format!("acme/llm:v1@{old}"));
    add(&place, &[&with_tag]).failed(2, &["by its digest", "the tag v1", "TARGET", "'@'"]);
    let beside = registry.reference("acme/indexed:v1");
    let report = add(&place, &[&source, &beside, "--json"]).ok().json();
    assert!(report["mountedBytes"].as_u64() >= Some(artifact.layer_bytes()), "{report}");
    assert!(report["uploadedBytes"].as_u64() < Some(10_000), "{report}");
    let here = layout(&place, "layout");
    for target in [other.reference("acme/llm:v2"), here] {
        let copied = add(&place, &[&source, &target, "--json"]).ok().json();
        assert_eq!(copied["new"], report["new"]);
        assert_indexed(&target);
        assert_files(&target, &expected());
    }
    assert_files(&beside, &expected());
    let text = add(&place, &[&source, &beside]).ok().stdout;
    assert!(text.contains(&old) && text.contains(report["new"].as_str().unwrap()), "{text}");
}

#[test]
fn a_layer_whose_bytes_are_wrong_is_named_and_nothing_is_published() {
    let (registry, place) = (Registry::start(), Place::new());
    let artifact = artifact(Packing::Raw, Dialect::Upstream);
    let old = registry.push("acme/llm", "v1", &artifact);
    let weights = artifact.blobs.iter().max_by_key(|blob| blob.content.size()).unwrap();
    registry.corrupt(&weights.digest, 1_500_000);
    let (before, target) = (registry.blobs(), registry.reference("acme/llm:v1"));
    add(&place, &[&target]).failed(6, &[&weights.digest]);
    assert_eq!(registry.blobs(), before);
    let inspected = place.run(["inspect", &target, "--json"]).ok().json();
    assert_eq!(inspected["digest"], json!(old));
}

#[test]
fn a_layer_that_is_not_what_its_media_type_says_is_refused_by_name() {
    let (registry, place) = (Registry::start(), Place::new());
    let mut artifact = artifact(Packing::Tar, Dialect::Upstream);
    let text = String::from_utf8(artifact.manifest).unwrap();
    artifact.manifest = text.replace(".v1.tar\"", ".v1.tar+gzip\"").into_bytes();
    registry.push("acme/llm", "gzip", &artifact);
    add(&place, &[&registry.reference("acme/llm:gzip")]).failed(2, &["gzip", "sha256:"]);
}

#[test]
fn what_is_packed_without_an_index_and_gets_one_is_what_is_packed_with_one() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    let (plain, whole) = (layout(&place, "plain"), layout(&place, "whole"));
    packed(&place, folder.path(), &plain, &["--no-index"]);
    let digest = packed(&place, folder.path(), &whole, &[])["digest"].clone();
    let report = add(&place, &[&plain, "--json"]).ok().json();
    assert_eq!(report["new"], digest);
    assert_files(&plain, &files);
}
