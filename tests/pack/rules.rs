//! What others ask of an artifact: the specification's schema, and the rules of those who read models.

use std::process::{Command, Output};

use super::*;
use crate::support::registry::Registry;

/// What a value of a config may be (model specification, schema of the config).
enum Shape {
    Text,
    /// At least one letter.
    Word,
    Time,
    Switch,
    Texts,
    /// Words of two lower-case letters.
    Languages,
    Modalities,
    Digests,
    OneOf(&'static [&'static str]),
    Whole,
    Object {
        required: &'static [&'static str],
        fields: &'static [(&'static str, Shape)],
    },
}

const MODALITIES: &[&str] = &["text", "image", "audio", "video", "embedding", "other"];

const DESCRIPTOR: Shape = Shape::Object {
    required: &[],
    fields: &[
        ("createdAt", Shape::Time),
        ("authors", Shape::Texts),
        ("family", Shape::Text),
        ("name", Shape::Word),
        ("docURL", Shape::Text),
        ("sourceURL", Shape::Text),
        ("datasetsURL", Shape::Texts),
        ("version", Shape::Text),
        ("revision", Shape::Text),
        ("vendor", Shape::Text),
        ("licenses", Shape::Texts),
        ("title", Shape::Text),
        ("description", Shape::Text),
    ],
};

const CAPABILITIES: Shape = Shape::Object {
    required: &[],
    fields: &[
        ("inputTypes", Shape::Modalities),
        ("outputTypes", Shape::Modalities),
        ("knowledgeCutoff", Shape::Time),
        ("reasoning", Shape::Switch),
        ("toolUsage", Shape::Switch),
        ("reward", Shape::Switch),
        ("languages", Shape::Languages),
    ],
};

const TRANSFORMER: Shape = Shape::Object {
    required: &[],
    fields: &[
        ("attentionType", Shape::OneOf(&["mha", "gqa", "mla"])),
        ("mlpType", Shape::OneOf(&["dense", "moe"])),
        ("numLayers", Shape::Whole),
        ("numAttentionHeads", Shape::Whole),
        ("numKVHeads", Shape::Whole),
        ("hiddenSize", Shape::Whole),
        ("intermediateSize", Shape::Whole),
    ],
};

const CONFIG: Shape = Shape::Object {
    required: &["descriptor", "config", "modelfs"],
    fields: &[
        ("descriptor", DESCRIPTOR),
        (
            "config",
            Shape::Object {
                required: &[],
                fields: &[
                    ("architecture", Shape::Text),
                    ("format", Shape::Text),
                    ("paramSize", Shape::Text),
                    ("precision", Shape::Text),
                    ("quantization", Shape::Text),
                    ("transformerConfig", TRANSFORMER),
                    ("capabilities", CAPABILITIES),
                ],
            },
        ),
        (
            "modelfs",
            Shape::Object {
                required: &["type", "diffIds"],
                fields: &[("type", Shape::OneOf(&["layers"])), ("diffIds", Shape::Digests)],
            },
        ),
    ],
};

impl Shape {
    /// What is wrong with a value that stands at `place`.
    fn check(&self, value: &Value, place: &str) -> Result<(), String> {
        let list = |holds: &dyn Fn(&str) -> bool| {
            value.as_array().is_some_and(|all| all.iter().all(|one| one.as_str().is_some_and(holds)))
        };
        let holds = match self {
            Self::Text => value.is_string(),
            Self::Word => value.as_str().is_some_and(|text| !text.is_empty()),
            Self::Time => value.as_str().is_some_and(|text| humantime::parse_rfc3339(text).is_ok()),
            Self::Switch => value.is_boolean(),
            Self::Texts => list(&|_| true),
            Self::Languages => list(&|word| word.len() == 2 && word.bytes().all(|b| b.is_ascii_lowercase())),
            Self::Modalities => list(&|word| MODALITIES.contains(&word)),
            Self::Digests => {
                let is_digest = |text: &str| text.parse::<weightfs::oci::Digest>().is_ok();
                list(&is_digest) && value.as_array().is_some_and(|all| !all.is_empty())
            }
            Self::OneOf(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Self::Whole => value.as_u64().is_some_and(|number| number > 0),
            Self::Object { required, fields } => {
                let object = value.as_object().ok_or_else(|| format!("{place} is no object"))?;
                for (name, value) in object {
                    let field = fields.iter().find(|(known, _)| known == name);
                    let (_, shape) = field.ok_or_else(|| format!("{place}.{name} is not in the schema"))?;
                    shape.check(value, &format!("{place}.{name}"))?;
                }
                required.iter().all(|name| object.contains_key(*name))
            }
        };
        if holds { Ok(()) } else { Err(format!("{place}: {value}")) }
    }
}

#[test]
fn the_checker_of_the_schema_refuses_what_the_schema_refuses() {
    let digest = format!("sha256:{}", "0".repeat(64));
    let right = json!({"descriptor": {"name": "n"}, "config": {}, "modelfs": {"type": "layers", "diffIds": [digest]}});
    CONFIG.check(&right, "").unwrap();
    for (place, value) in [
        ("/descriptor/name", json!("")),
        ("/descriptor/licenses", json!("MIT")),
        ("/descriptor/createdAt", json!("yesterday")),
        ("/descriptor/odd", json!(1)),
        ("/config/paramSize", json!(7)),
        ("/config/capabilities", json!({"inputTypes": ["smell"]})),
        ("/modelfs/type", json!("tree")),
        ("/modelfs/diffIds", json!([])),
        ("/more", json!({})),
    ] {
        let mut wrong = right.clone();
        let (parent, key) = place.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[key] = value;
        assert!(CONFIG.check(&wrong, "").is_err(), "{place}");
    }
    for missing in ["descriptor", "config", "modelfs"] {
        let mut wrong = right.clone();
        wrong.as_object_mut().unwrap().remove(missing);
        assert!(CONFIG.check(&wrong, "").is_err(), "{missing}");
    }
}

#[test]
fn the_config_of_every_kind_of_model_is_valid() {
    let gguf = [&b"GGUF"[..], &3_u32.to_le_bytes(), &[0; 16]].concat();
    let folders: [(&str, Files); 4] = [
        ("safetensors", files()),
        ("gguf", [("model.gguf".to_owned(), gguf)].into()),
        (
            "onnx",
            [("onnx/model.onnx".to_owned(), vec![1]), ("config.json".to_owned(), b"{}".to_vec())].into(),
        ),
        ("", [("x".to_owned(), vec![1])].into()),
    ];
    let place = Place::new();
    for (format, files) in folders {
        let folder = folder(&files);
        for options in [
            &[][..],
            &["--tar"],
            &["--no-index"],
            &[
                "--name",
                "n",
                "--version",
                "1.0",
                "--family",
                "f",
                "--architecture",
                "a",
                "--format",
                "x",
                "--param-size",
                "8b",
                "--precision",
                "p",
                "--quantization",
                "q",
                "--license",
                "MIT",
                "--license",
                "Apache-2.0",
                "--title",
                "t",
                "--description",
                "d",
                "--author",
                "me",
                "--vendor",
                "v",
                "--source-url",
                "https://a",
                "--revision",
                "r",
                "--doc-url",
                "https://b",
            ],
        ] {
            let target = layout(&place, "layout");
            packed(&place, folder.path(), &target, options);
            let published = Published::open(&target);
            CONFIG
                .check(&published.config, "config")
                .unwrap_or_else(|why| panic!("{format} {options:?}: {why}"));
            // Nothing is compressed, so that a layer's diffID is its digest.
            assert_eq!(published.config["modelfs"]["diffIds"], json!(digests(&published.manifest)));
            if options.len() <= 1 && !format.is_empty() {
                assert_eq!(published.config["config"]["format"], format);
            }
        }
        let said = Published::open(&layout(&place, "layout")).config;
        assert_eq!(said["descriptor"]["licenses"], json!(["MIT", "Apache-2.0"]));
        assert_eq!(
            (&said["config"]["paramSize"], &said["descriptor"]["docURL"]),
            (&json!("8b"), &json!("https://b"))
        );
    }
}

/// A packed artifact of every packaging.
fn every_packaging(then: impl Fn(&Published, &str)) {
    let place = Place::new();
    let folder = folder(&files());
    for (suffix, options) in [("raw", &[][..]), ("tar", &["--tar"]), ("raw", &["--no-index"])] {
        let target = layout(&place, "layout");
        packed(&place, folder.path(), &target, options);
        then(&Published::open(&target), suffix);
    }
}

fn annotation<'a>(layer: &'a Value, key: &str) -> &'a str {
    layer["annotations"][key].as_str().unwrap_or_else(|| panic!("{key} of {layer}"))
}

#[test]
fn the_manifest_is_in_the_words_and_the_order_of_modctl() {
    every_packaging(|published, suffix| {
        let manifest = &published.manifest;
        assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
        assert_eq!(manifest["artifactType"], "application/vnd.cncf.model.manifest.v1+json");
        assert_eq!(manifest["config"]["mediaType"], "application/vnd.cncf.model.config.v1+json");
        let mut order = Vec::new();
        for layer in published.layers() {
            let media_type = layer["mediaType"].as_str().unwrap();
            let kind = media_type.strip_prefix("application/vnd.cncf.model.").unwrap();
            let (kind, packaging) = kind.split_once(".v1.").unwrap();
            let path = annotation(layer, "org.cncf.model.filepath");
            if layer["annotations"]["dev.weightfs.index"].is_null() {
                assert_eq!(packaging, suffix, "{layer}");
                let kinds = ["weight.config", "weight", "code", "doc", "dataset"];
                order.push((kinds.iter().position(|known| *known == kind).unwrap(), path.to_owned()));
            } else {
                assert_eq!((kind, packaging, path), ("doc", "raw", ".weightfs/index"));
            }
        }
        assert!(order.is_sorted(), "{order:?}");
    });
}

/// Every read path of modctl asks the suffix for raw or tar and the annotation for a path below the folder; AIKit, KitOps and Docker
/// Model Runner ask for the same annotation.
#[test]
fn every_layer_has_a_suffix_that_modctl_reads_and_a_path_that_stays_inside() {
    every_packaging(|published, _| {
        for layer in published.layers() {
            let media_type = layer["mediaType"].as_str().unwrap();
            assert!(media_type.ends_with(".raw") || media_type.ends_with(".tar"), "{layer}");
            let path = annotation(layer, "org.cncf.model.filepath");
            let inside = |part: &str| !part.is_empty() && part != "." && part != "..";
            assert!(path.split('/').all(inside) && !path.contains(".."), "{path}");
        }
    });
}

/// Keys in the order of the specification's structure, mode in decimal, the base name, the file's own size.
#[test]
fn the_metadata_of_a_file_is_spelled_as_gos_encoder_spells_it() {
    let files = files();
    every_packaging(|published, _| {
        for layer in published.layers() {
            let path = annotation(layer, "org.cncf.model.filepath");
            let base = path.rsplit('/').next().unwrap();
            let size =
                files.get(path).map_or(layer["size"].as_u64().unwrap(), |content| content.len() as u64);
            let mode = if path == "run.sh" { 493 } else { 420 };
            let expected = format!(
                r#"{{"name":"{base}","mode":{mode},"uid":0,"gid":0,"size":{size},"mtime":"1970-01-01T00:00:00Z","typeflag":0}}"#
            );
            assert_eq!(annotation(layer, "org.cncf.model.file.metadata+json"), expected);
            assert!(layer["annotations"]["org.cncf.model.file.mediatype.untested"].is_null());
        }
    });
}

/// Go's reader of archives stops at the two blocks of zeros, and modctl compares the digest of what was read until then.
#[test]
fn a_tar_layer_ends_where_a_reader_of_archives_stops() {
    use weightfs::codec::tar::{Step, step};
    every_packaging(|published, suffix| {
        for layer in published.artifact.visible().filter(|_| suffix == "tar") {
            let blob = published.blob(&layer.descriptor.blob());
            let Step::Member(member) = step(&blob, blob.len() as u64).unwrap() else { panic!("a member") };
            assert_eq!(Some(std::str::from_utf8(&member.name).unwrap()), layer.path.as_deref());
            let rest = &blob[member.next as usize..];
            assert_eq!(step(rest, rest.len() as u64).unwrap(), Step::End(1024));
            assert_eq!(rest.len(), 1024, "nothing after the end");
        }
    });
}

/// CRI-O mounts each blob as a file under its title, else its path, and passes over what has neither.
#[test]
fn every_layer_has_a_name_that_cri_o_can_mount() {
    every_packaging(|published, _| {
        let name = |layer: &Value| {
            let title = layer["annotations"]["org.opencontainers.image.title"].as_str().map(str::to_owned);
            title.unwrap_or_else(|| annotation(layer, "org.cncf.model.filepath").to_owned())
        };
        let mut names: Vec<String> = published.layers().iter().map(name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), published.layers().len());
    });
}

fn skopeo(arguments: &[&str]) -> Output {
    let said = Command::new("skopeo").args(["--insecure-policy"]).args(arguments).output();
    said.unwrap_or_else(|error| panic!("skopeo: {error}; run tools/test, which installs it"))
}

fn skopeo_ok(arguments: &[&str]) -> Vec<u8> {
    let output = skopeo(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn skopeo_copies_it_to_another_repository_and_to_a_folder_and_every_byte_is_there() {
    let (registry, place, files) = (Registry::start(), Place::new(), files());
    let folder = folder(&files);
    for (tag, options) in [("raw", &[][..]), ("tar", &["--tar"])] {
        let from = format!("{}/acme/llm:{tag}", registry.direct());
        let digest = packed(&place, folder.path(), &from, options)["digest"].clone();
        let digest = digest.as_str().unwrap();
        let elsewhere = format!("{}/other/llm:{tag}", registry.direct());
        let (source, target) = (format!("docker://{from}"), format!("docker://{elsewhere}"));
        let plain = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        skopeo_ok(&[&["copy", "--preserve-digests"][..], &plain, &[&source, &target]].concat());
        let on_disk = path(&place, &format!("copy-{tag}"));
        let layout = format!("oci:{}:v1", on_disk.display());
        skopeo_ok(&["copy", "--preserve-digests", plain[0], &source, &layout]);
        for copy in [&elsewhere, &layout] {
            let inspected = place.run(["inspect", copy, "--json"]).ok().json();
            assert_eq!(inspected["digest"], digest, "{copy}");
            assert_indexed(copy);
            assert_files(copy, &files);
        }
        let raw = skopeo_ok(&["inspect", "--raw", "--tls-verify=false", &source]);
        assert_eq!(weightfs::oci::Digest::of(&raw).to_string(), digest);
        // Without `--raw` it wants a container image's config, and refuses every other artifact by the type of its.
        let config = skopeo_ok(&["inspect", "--config", "--raw", "--tls-verify=false", &source]);
        assert_eq!(serde_json::from_slice::<Value>(&config).unwrap(), Published::open(&from).config);
    }
}
