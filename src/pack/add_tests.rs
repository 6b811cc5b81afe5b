//! Tests of adding an index to artifacts in memory: what is asked of the repository, and what stays as it was.

use super::*;
use crate::codec::gzip::tests::member;
use crate::codec::tar::tests::plain;
use crate::pack::build::{Source, compare};
use crate::pack::publish::unwatched;
use crate::repository::push::Target;
use crate::repository::{Config, Memory};

const WEIGHT: &str = "application/vnd.cncf.model.weight.v1.raw";

/// An artifact of raw layers, under the tag `v1`, whose config says `config` and whose manifest has these layers more.
fn memory(layers: &[&[u8]], config: &str, more: &str) -> Arc<Memory> {
    let layers: Vec<_> = layers.iter().map(|bytes| (WEIGHT, *bytes)).collect();
    memory_of(&layers, config, more)
}

/// The same of layers with these media types.
fn memory_of(layers: &[(&str, &[u8])], config: &str, more: &str) -> Arc<Memory> {
    let memory = Memory::new();
    let config = memory.put(config.as_bytes().to_vec());
    let layers = layers.iter().enumerate().map(|(number, (media_type, bytes))| {
        let blob = memory.put(bytes.to_vec());
        format!(
            r#"{{"mediaType":"{media_type}","digest":"{}","size":{},"annotations":{{"org.cncf.model.filepath":"{number}"}}}}"#,
            blob.digest, blob.size
        )
    });
    let layers: Vec<String> = layers.collect();
    let manifest = format!(
        r#"{{"schemaVersion":2,{more}"config":{{"mediaType":"x","digest":"{}","size":{}}},"layers":[{}]}}"#,
        config.digest,
        config.size,
        layers.join(",")
    );
    memory.put_manifest("v1", OCI_MANIFEST, manifest.into_bytes());
    Arc::new(memory)
}

fn reference() -> Reference {
    "127.0.0.1:1/a/b:v1".parse().unwrap()
}

/// Spans of the usual size, and checkpoints beside the target.
fn making(folder: &std::path::Path) -> Making {
    let (spacing, scratch) = (index::pass::Spacing::default(), folder.join("scratch"));
    Making { spacing, scratch, contents: super::super::build::Contents::Compared }
}

/// Adds an index, and gives what was added and the new manifest.
async fn add(memory: &Arc<Memory>) -> Result<(Added, String)> {
    let folder = tempfile::tempdir().unwrap();
    let target: Reference = format!("oci:{}:v1", folder.path().display()).parse().unwrap();
    let destination =
        Destination::new(Target::open(&target, &Config::default()).unwrap(), Some("v1".into()), Vec::new());
    let plain = Plain::open(memory.clone(), &reference()).await?;
    let added = plain.add(&destination, None, &making(folder.path()), &unwatched()).await?;
    let manifest = folder.path().join("blobs/sha256").join(added.new.hex());
    Ok((added, std::fs::read_to_string(manifest).unwrap()))
}

#[tokio::test]
async fn content_of_a_compressed_layer_that_its_diff_id_denies_is_a_warning_and_no_more() {
    let content = [plain("a", 512), vec![7; 512], vec![0; 1024]].concat();
    let stored = member(&content, 6);
    let (layer, right, wrong) = (Digest::of(&stored), Digest::of(&content), Digest::of(b"other"));
    for (said, is_right) in [(&right, true), (&wrong, false)] {
        let config = format!(r#"{{"modelfs":{{"type":"layers","diffIds":["{said}"]}}}}"#);
        let memory = memory_of(&[("application/vnd.cncf.model.weight.v1.tar+gzip", &stored)], &config, "");
        let is_said = |warnings: &[String]| {
            let denial =
                |text: &String| text.contains(&layer.to_string()) && text.contains(&said.to_string());
            assert!(warnings.len() <= 1 && warnings.iter().all(denial), "{warnings:?}");
            assert!(warnings.iter().all(|text| text.contains(&right.to_string())), "{warnings:?}");
            !warnings.is_empty()
        };
        let (added, _) = add(&memory).await.unwrap();
        assert_eq!(is_said(&added.warnings), !is_right);

        let folder = tempfile::tempdir().unwrap();
        let source = Source::open(memory.clone(), &reference(), None).await.unwrap();
        let (artifact, found, making) = (&source.artifact, source.found.clone(), making(folder.path()));
        let built = build(&*memory, artifact, found, &making, &unwatched()).await.unwrap();
        assert_eq!(built.index.layers[0].diff_id.as_ref(), Some(said));
        assert_eq!(is_said(&built.index.warnings), !is_right);

        let nothing = Index::default();
        let compared = compare(&*memory, artifact, &nothing, making.scratch, &unwatched()).await.unwrap();
        assert_eq!(is_said(&compared.warnings), !is_right);
    }
}

#[tokio::test]
async fn a_config_that_cannot_be_had_costs_no_index() {
    let memory = memory(&[b"bytes"], "{}", "");
    let config = Digest::of(b"{}");
    memory.replace(&config, b"[]".to_vec());
    let source = Source::open(memory.clone(), &reference(), None).await.unwrap();
    let [warning] = &source.found.warnings[..] else { panic!("{:?}", source.found.warnings) };
    assert!(warning.contains(&config.to_string()), "{warning}");
}

#[tokio::test]
async fn the_config_gets_a_diff_id_only_where_it_has_one_for_each_layer() {
    let id = Digest::of(b"a");
    for (config, changes) in [
        (format!(r#"{{"modelfs":{{"type":"layers","diffIds":["{id}"]}},"x":1}}"#), true),
        (format!(r#"{{"modelfs":{{"diff_ids":[ "{id}" ]}}}}"#), true),
        (format!(r#"{{"modelfs":{{"diffIds":["{id}","{id}"]}}}}"#), false),
        (r#"{"modelfs":{"diffIds":[]}}"#.to_owned(), false),
        ("{}".to_owned(), false),
        ("no JSON".to_owned(), false),
    ] {
        let memory = memory(&[b"a"], &config, "");
        let (_, manifest) = add(&memory).await.unwrap();
        let old = Digest::of(config.as_bytes()).to_string();
        assert_eq!(!manifest.contains(&old), changes, "{config}");
    }
}

#[tokio::test]
async fn a_manifest_that_others_may_read_differently_gets_none() {
    for more in [r#""Layers":[],"#, r#""x":{"a":1,"A":2},"#] {
        let memory = memory(&[b"abc"], "{}", more);
        let error = add(&memory).await.unwrap_err();
        assert!(error.kind() == Kind::Invalid && error.to_string().contains("in one object"), "{error}");
        assert_eq!(memory.bytes(), 0, "nothing is read for it");
    }
}

#[tokio::test]
async fn a_manifest_that_has_a_subject_gets_an_index_with_a_warning() {
    let subject = format!(r#""subject":{{"mediaType":"x","digest":"{}","size":1}},"#, Digest::of(b"s"));
    for (more, warns) in [(&*subject, true), (r#""subject":null,"#, false), ("", false)] {
        let memory = memory(&[b"abc"], "{}", more);
        let plain = Plain::open(memory.clone(), &reference()).await.unwrap();
        assert_eq!(plain.warnings().iter().any(|text| text.contains("signatures")), warns, "{more}");
        let (_, manifest) = add(&memory).await.unwrap();
        assert!(manifest.contains(more));
    }
}

#[tokio::test]
async fn every_layer_is_read_once_before_it_is_copied_and_none_where_it_is_refused() {
    let memory = memory(&[b"abc", b"", b"defg"], "{}", "");
    let (added, manifest) = add(&memory).await.unwrap();
    assert!(manifest.contains(&added.index.digest.to_string()));
    // The config is read for its diffIDs; it and the layers are read once more where the target has none of them.
    assert_eq!(memory.bytes(), 2 * (2 + 3 + 4));
}

#[tokio::test]
async fn a_tag_that_somebody_moved_or_removed_meanwhile_is_not_moved_back() {
    let memory = memory(&[b"abc"], "{}", "");
    let plain = Plain::open(memory.clone(), &reference()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target: Reference = format!("oci:{}", folder.path().display()).parse().unwrap();
    let open = || Target::open(&target, &Config::default()).unwrap();
    let newer = memory.manifest(&Which::Tag("v1".into())).await.unwrap().bytes.to_vec();
    let newer = [&newer[..newer.len() - 1], br#","annotations":{"newer":"x"}}"#].concat();
    memory.put_manifest("v1", OCI_MANIFEST, newer);
    for (tag, why) in [("v1", "stands for sha256:"), ("gone", "for nothing any more")] {
        let destination = Destination::new(open(), Some(tag.into()), Vec::new());
        let error =
            plain.add(&destination, Some(tag), &making(folder.path()), &unwatched()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Busy, "{error}");
        assert!(error.to_string().contains(why), "{error}");
        let tagged = std::fs::read_to_string(folder.path().join("index.json")).unwrap();
        assert!(!tagged.contains(&format!("\"{tag}\"")), "{tagged}");
    }
    let plain = Plain::open(memory.clone(), &reference()).await.unwrap();
    let destination = Destination::new(open(), Some("v1".into()), Vec::new());
    plain.add(&destination, Some("v1"), &making(folder.path()), &unwatched()).await.unwrap();
}

#[tokio::test]
async fn bytes_that_are_not_the_layers_are_refused_by_its_digest() {
    let memory = memory(&[b"abc"], "{}", "");
    memory.replace(&Digest::of(b"abc"), b"abd".to_vec());
    let error = add(&memory).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Integrity);
    assert!(error.to_string().contains(&Digest::of(b"abc").to_string()), "{error}");
}

#[tokio::test]
async fn an_artifact_that_has_an_index_or_is_a_list_gets_none() {
    let more = r#""annotations":{"a":"b"},"#;
    let memory = memory(&[b"abc"], "{}", more);
    let (_, manifest) = add(&memory).await.unwrap();
    assert!(manifest.contains(more), "what is not known stays");
    memory.put_manifest("v1", OCI_MANIFEST, manifest.into_bytes());
    let error = add(&memory).await.unwrap_err();
    assert!(error.kind() == Kind::Invalid && error.to_string().contains("has an index already"), "{error}");
    memory.put_manifest(
        "v1",
        crate::oci::manifest::OCI_INDEX,
        br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(),
    );
    let error = add(&memory).await.unwrap_err();
    assert!(error.to_string().contains("a list of manifests"), "{error}");
}
