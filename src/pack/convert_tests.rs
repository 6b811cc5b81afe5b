//! Tests of converting artifacts in memory: what the image says of its layers, and what cannot be one.

use super::super::publish::unwatched;
use super::*;
use crate::codec::gzip::tests::member;
use crate::codec::tar::tests::plain;
use crate::index::pass::Spacing;
use crate::repository::push::Target;
use crate::repository::{Config, Memory, connect};

const TAR: &str = "application/vnd.cncf.model.weight.v1.tar";
const GZIP: &str = "application/vnd.cncf.model.weight.v1.tar+gzip";

/// A tar of one file.
fn tar(path: &str, content: &[u8]) -> Vec<u8> {
    let padding = vec![0; content.len().next_multiple_of(512) - content.len() + 1024];
    [plain(path, content.len() as u64), content.to_vec(), padding].concat()
}

/// An artifact of layers with these media types and paths, whose config gives `diff_ids`.
fn memory(layers: &[(&str, &str, &[u8])], diff_ids: &[&Digest]) -> Arc<Memory> {
    let memory = Memory::new();
    let config = memory.put(json!({ "modelfs": { "type": "layers", "diffIds": diff_ids } }).to_string());
    let layer = |(media_type, path, bytes): &(&str, &str, &[u8])| {
        let blob = memory.put(bytes.to_vec());
        let annotations = json!({ "org.cncf.model.filepath": path });
        json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size, "annotations": annotations })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": { "mediaType": "x", "digest": config.digest, "size": config.size },
        "layers": layers.iter().map(layer).collect::<Vec<_>>(),
    });
    memory.put_manifest("v1", OCI_MANIFEST, manifest.to_string());
    Arc::new(memory)
}

/// The folder that an artifact was converted into.
struct Image {
    folder: tempfile::TempDir,
    converted: Converted,
}

impl Image {
    fn blob(&self, digest: &str) -> serde_json::Value {
        let path = self.folder.path().join("layout/blobs/sha256").join(digest.trim_start_matches("sha256:"));
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn manifest(&self) -> serde_json::Value {
        self.blob(&self.converted.digest.to_string())
    }

    fn diff_ids(&self) -> serde_json::Value {
        self.blob(self.manifest()["config"]["digest"].as_str().unwrap())["rootfs"]["diff_ids"].clone()
    }

    /// The image's index as a reader finds it, and the artifact that it is.
    async fn read(&self) -> (Artifact, Index) {
        let reference: Reference =
            format!("oci:{}:image", self.folder.path().join("layout").display()).parse().unwrap();
        let layout = connect(&reference, &Config::default()).unwrap();
        let Opened { repository, artifact, .. } = Opened::open(layout, &reference, None).await.unwrap();
        let index = index::find(&*repository, &artifact, &|_| Vec::new()).await.unwrap();
        (artifact, index)
    }
}

async fn convert(memory: &Arc<Memory>) -> Result<Image> {
    let folder = tempfile::tempdir().unwrap();
    let source: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
    let target: Reference = format!("oci:{}", folder.path().join("layout").display()).parse().unwrap();
    let target = Target::open(&target, &Config::default()).unwrap();
    let destination = Destination::new(target, Some("image".into()), Vec::new());
    let (spacing, scratch) = (Spacing::default(), folder.path().join("scratch"));
    let making = Making { spacing, scratch, contents: Contents::Compared };
    let convertible = Convertible::open(memory.clone(), &source, None).await?;
    let platform = "linux/arm64/v9".parse().unwrap();
    let converted = convertible.convert(&destination, &platform, &making, &unwatched()).await?;
    Ok(Image { folder, converted })
}

/// The files of an index.
fn paths(index: &Index) -> Vec<&str> {
    index.entries.iter().filter_map(file).map(|(_, path)| path).collect()
}

#[tokio::test]
async fn an_image_has_the_same_blobs_and_says_of_each_what_it_holds() {
    let layers = [tar("config.json", b"{}"), tar("w/model.bin", &[7; 3000])];
    let digests = [Digest::of(&layers[0]), Digest::of(&layers[1])];
    let memory = memory(&[(TAR, "config.json", &layers[0]), (TAR, "w/model.bin", &layers[1])], &[]);
    let image = convert(&memory).await.unwrap();
    let manifest = image.manifest();
    for (layer, digest) in manifest["layers"].as_array().unwrap().iter().zip(&digests) {
        assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar");
        assert_eq!(layer["digest"], digest.to_string());
    }
    assert!(manifest.get("artifactType").is_none());
    assert_eq!(image.diff_ids(), json!(digests));
    let config = image.blob(manifest["config"]["digest"].as_str().unwrap());
    assert_eq!(
        (&config["os"], &config["architecture"], &config["variant"]),
        (&json!("linux"), &json!("arm64"), &json!("v9"))
    );
    assert!(image.converted.index.is_none() && image.converted.warnings.is_empty());
    let (artifact, index) = image.read().await;
    assert!(artifact.is_layered());
    assert_eq!(paths(&index), ["config.json", "w/model.bin"]);
    let again = convert(&memory).await.unwrap();
    assert_eq!(again.converted.digest, image.converted.digest, "the same image");
}

#[tokio::test]
async fn what_a_compressed_layer_holds_is_found_by_reading_it_and_its_index_is_pinned() {
    let content = tar("model.bin", &[9; 5000]);
    let (stored, id, other) = (member(&content, 6), Digest::of(&content), Digest::of(b"other"));
    for (said, is_right) in [(&[][..], true), (&[&id][..], true), (&[&other][..], false)] {
        let memory = memory(&[(GZIP, "model.bin", &stored)], said);
        let made = convert(&memory).await;
        if !is_right {
            let error = made.err().unwrap();
            assert_eq!(error.kind(), Kind::Integrity);
            assert!(error.to_string().contains(&other.to_string()), "{error}");
            continue;
        }
        let image = made.unwrap();
        assert_eq!(image.diff_ids(), json!([id]));
        let (artifact, index) = image.read().await;
        let bound = artifact.bound_index().unwrap().unwrap();
        assert_eq!(Some(bound.blob), image.converted.index);
        assert!(index.layers[0].is_covered());
        assert_eq!(paths(&index), ["model.bin"]);
    }
}

#[tokio::test]
async fn the_digests_that_a_model_brings_are_the_images_too_without_a_layer_being_read() {
    let layers = [tar("config.json", b"{}"), tar("model.bin", &[7; 3 << 20])];
    let memory = memory(&[(TAR, "config.json", &layers[0]), (TAR, "model.bin", &layers[1])], &[]);
    let folder = tempfile::tempdir().unwrap();
    let source: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
    let plain = super::super::add::Plain::open(memory.clone(), &source).await.unwrap();
    let layout: Reference = format!("oci:{}:v1", folder.path().join("bound").display()).parse().unwrap();
    let target = Target::open(&layout, &Config::default()).unwrap();
    let destination = Destination::new(target, Some("v1".into()), Vec::new());
    let making = Making {
        spacing: Spacing::default(),
        scratch: folder.path().join("scratch"),
        contents: Contents::Compared,
    };
    let added = plain.add(&destination, None, &making, &unwatched()).await.unwrap();
    let bound = connect(&layout, &Config::default()).unwrap();
    let convertible = Convertible::open(bound, &layout, None).await.unwrap();
    assert_eq!(convertible.bytes(), 0, "nothing is read");
    let converted =
        convertible.convert(&destination, &Platform::host(), &making, &unwatched()).await.unwrap();
    assert_eq!(converted.from, added.new);
    let index = converted.index.expect("an index");
    assert_eq!(index.digest, added.index.digest, "the same names, chunks and layers are the same index");
    let reference: Reference = format!("{layout}@{}", converted.digest).parse().unwrap();
    let layout = connect(&reference, &Config::default()).unwrap();
    let Opened { repository, artifact, .. } = Opened::open(layout, &reference, None).await.unwrap();
    let found = index::find(&*repository, &artifact, &|_| Vec::new()).await.unwrap();
    assert!(artifact.is_layered() && found.layers.iter().all(|layer| layer.bound.is_some()));
    let mut cut = artifact.clone();
    cut.cut("2".parse().unwrap()).unwrap();
    let found = index::find(&*repository, &cut, &|_| Vec::new()).await.unwrap();
    assert!(found.layers.len() == 1 && found.layers[0].bound.is_some(), "also of a part of the image");
    assert_eq!(paths(&found), ["model.bin"]);
}

#[tokio::test]
async fn what_no_image_can_be_made_of_is_refused_with_the_way_out() {
    let file = tar("a", b"x");
    let refused = async |layers: &[(&str, &str, &[u8])], word: &str| {
        let error = convert(&memory(layers, &[])).await.err().unwrap();
        assert_eq!(error.kind(), Kind::Unsupported, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    };
    refused(&[(TAR, "a", &file), ("application/vnd.cncf.model.weight.v1.raw", "b", b"raw")], "--tar").await;
    refused(&[(TAR, "a", &tar(".wh.a", b"x"))], "would not show").await;
    refused(&[], "no layers").await;
}

#[tokio::test]
async fn files_that_are_called_otherwise_in_the_image_are_said() {
    let memory = memory(&[(TAR, "sub/model.bin", &tar("model.bin", b"x"))], &[]);
    let image = convert(&memory).await.unwrap();
    let [warning] = image.converted.warnings.as_slice() else { panic!("{:?}", image.converted.warnings) };
    assert!(warning.contains("sub/model.bin is model.bin"), "{warning}");
    assert_eq!(paths(&image.read().await.1), ["model.bin"]);
}

#[tokio::test]
async fn of_a_path_that_comes_twice_an_image_shows_what_the_model_does_and_it_is_the_same_bytes_twice() {
    let (old, new) = (tar("config.json", b"old"), tar("config.json", b"new and longer"));
    let stored = [member(&old, 6), member(&new, 6)];
    let memory = memory(&[(GZIP, "config.json", &stored[0]), (GZIP, "config.json", &stored[1])], &[]);
    let (image, again) = (convert(&memory).await.unwrap(), convert(&memory).await.unwrap());
    assert_eq!(again.converted.digest, image.converted.digest);
    assert!(image.converted.index.is_some() && again.converted.index == image.converted.index);
    let (_, index) = image.read().await;
    assert!(index.layers.iter().all(index::Layer::is_covered));
    let shown: Vec<_> = index.entries.iter().filter_map(file).collect();
    assert_eq!(shown, [(ExtentId { layer: 1, extent: 0 }, "config.json")]);
    assert_eq!(index.layers[1].extents[0].len(), 14);
}
