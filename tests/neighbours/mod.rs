//! What other tools publish: each fixture opens under the names that its own tool would give.
//!
//! In this process, over an image layout folder; what takes several repositories or a kernel is in [`whole`].

mod compressed;
mod images;
mod whole;

use std::collections::BTreeMap;

use weightfs::content::store::StoreConfig;
use weightfs::content::{Config, Store};
use weightfs::fs::{Model, NodeId, NodeKind};
use weightfs::oci::Reference;

use crate::support::artifacts::{Artifact, Layer};
use crate::support::neighbours::{
    self, Age, Part, RUNTIME_CONFIG, docker_cncf, docker_v1, docker_v2, kit, ollama, oras, oras_file,
    oras_folder,
};
use crate::support::tar_writers::{Member, members};

/// Every name of a model: a file's content, a link's `-> TARGET`, `/` for a folder with nothing in it.
type Names = BTreeMap<String, String>;

/// An artifact opened for reading, and the folders it needs.
struct Opened {
    model: Model,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

fn open(artifact: &Artifact) -> weightfs::Result<Opened> {
    let folder = tempfile::tempdir().unwrap();
    artifact.write(&folder.path().join("layout"), "v1");
    open_in(folder)
}

/// Opens what lies in the folder, with the store that is there.
fn open_in(folder: tempfile::TempDir) -> weightfs::Result<Opened> {
    let reference: Reference = format!("oci:{}/layout:v1", folder.path().display()).parse().unwrap();
    let repository = weightfs::repository::connect(&reference, &Default::default()).unwrap();
    let store = StoreConfig { folder: folder.path().join("store"), size: None };
    let store = Store::open(&store).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let model = runtime.block_on(Model::open(repository, reference, store, Config::default()))?;
    Ok(Opened { model, runtime, folder })
}

impl Opened {
    fn names(&self) -> Names {
        let mut names = Names::new();
        self.runtime.block_on(self.model.all_named()).unwrap();
        self.add_folder(NodeId::ROOT, "", &mut names);
        self.runtime.block_on(self.model.close());
        names
    }

    fn add_folder(&self, folder: NodeId, path: &str, names: &mut Names) {
        for child in self.model.tree.children(folder).unwrap() {
            let path =
                if path.is_empty() { child.name.to_string() } else { format!("{path}/{}", child.name) };
            match &self.model.tree.node(child.node).unwrap().kind {
                NodeKind::File { size, .. } => {
                    let bytes = self.runtime.block_on(self.model.read(child.node, 0, u64::MAX)).unwrap();
                    assert_eq!(bytes.len() as u64, *size);
                    names.insert(path, String::from_utf8(bytes.to_vec()).unwrap());
                }
                NodeKind::Symlink(target) => drop(names.insert(path, format!("-> {target}"))),
                NodeKind::Directory(_) if self.model.tree.children(child.node).unwrap().is_empty() => {
                    names.insert(path, "/".to_owned());
                }
                NodeKind::Directory(_) => self.add_folder(child.node, &path, names),
            }
        }
    }
}

fn names(artifact: &Artifact) -> Names {
    open(artifact).unwrap().names()
}

fn expected<const N: usize>(names: [(&str, &str); N]) -> Names {
    names.into_iter().map(|(path, content)| (path.to_owned(), content.to_owned())).collect()
}

fn refusal(artifact: &Artifact) -> weightfs::Error {
    open(artifact).err().expect("it is refused")
}

fn family(artifact: &Artifact) -> &'static str {
    open(artifact).unwrap().model.artifact.family.name()
}

const KITFILE: &str = "manifestVersion: 1.0.0
package:
  name: sample
  version: \"1.0\"
  authors: [A]
model:
  name: llm
  path: models/llm.gguf
  parts:
    - path: lora
code:
  - path: run.py
  - path: tools
datasets:
  - path: data
docs:
  - path: README.md
";

#[test]
fn a_model_kit_has_the_files_of_its_archives_and_a_kitfile() {
    let parts = |prefix: bool| {
        // Archives of today have whole paths, older ones paths below the folder of the part.
        let model = if prefix { "models/llm.gguf" } else { "llm.gguf" };
        [
            ("model", "models/llm.gguf", vec![Member::File(model, "weights")]),
            ("modelpart", "lora", vec![Member::Folder("lora/"), Member::File("lora/a.bin", "adapter")]),
            ("code", "run.py", vec![Member::File("run.py", "print()")]),
            ("code", "tools", vec![Member::Folder("tools"), Member::Folder("tools/empty")]),
            ("dataset", "data", vec![Member::Folder("data/"), Member::File("data/x.csv", "1,2")]),
            ("docs", "README.md", vec![Member::File("README.md", "# kit")]),
        ]
    };
    for (age, prefix) in [(Age::Today, true), (Age::Older, false)] {
        let parts = parts(prefix);
        let parts: Vec<_> = parts.iter().map(|(kind, path, members)| Part { kind, path, members }).collect();
        let artifact = kit(&parts, None, age);
        let wanted = expected([
            ("Kitfile", KITFILE),
            ("README.md", "# kit"),
            ("data/x.csv", "1,2"),
            ("lora/a.bin", "adapter"),
            ("models/llm.gguf", "weights"),
            ("run.py", "print()"),
            ("tools/empty", "/"),
        ]);
        assert_eq!(names(&artifact), wanted, "{age:?}");
        assert_eq!(family(&artifact), "kitops");
    }
}

#[test]
fn a_kit_whose_config_or_paths_can_not_be_meant_is_refused_by_name() {
    let part = |path| Part { kind: "model", path, members: &[Member::File("m", "x")] };
    let error = refusal(&kit(&[part("../../etc/x")], None, Age::Older));
    assert!(error.to_string().contains("../../etc/x"), "{error}");
    let mut artifact = kit(&[part("m")], None, Age::Today);
    artifact.config = b"[]".to_vec();
    assert!(refusal(&artifact).to_string().contains("Kitfile"));
    let error = refusal(&kit(&[], Some("org/base:v1"), Age::Today));
    assert_eq!(error.kind(), weightfs::Kind::Unsupported);
    assert!(error.to_string().contains("org/base:v1"), "{error}");
}

#[test]
fn a_model_pack_that_kitops_wrote_has_its_kitfile_too() {
    let mut artifact = Artifact::modctl_tar(&[crate::support::artifacts::file("sub/a.json", "{}")]);
    let kitfile = r#"{"manifestVersion":"1.0.0","model":{"name":"llm","digest":"sha256:0"}}"#;
    artifact.annotations.insert("ml.kitops.modelkit.kitfile".to_owned(), kitfile.to_owned());
    let wanted =
        expected([("Kitfile", "manifestVersion: 1.0.0\nmodel:\n  name: llm\n"), ("sub/a.json", "{}")]);
    assert_eq!(names(&artifact), wanted);
}

#[test]
fn a_docker_model_has_the_layout_of_its_bundle() {
    let archive = members(0, 0, &[Member::File("tokenizer.json", "tokens"), Member::File("./sub/b", "b")]);
    let artifact = docker_v1(&[
        ("gguf.v3", "ignored.gguf", b"weights"),
        ("mmproj", "", b"projector"),
        ("chat.template.jinja", "", b"template"),
        ("license", "", b"license"),
        ("vllm.config.tar", "", &archive),
        ("model.file", "vocab/merges.txt", b"merges"),
        ("model.file", "", b"nobody knows what"),
    ]);
    let wanted = expected([
        ("config.json", RUNTIME_CONFIG),
        ("model/LICENSE", "license"),
        ("model/model.gguf", "weights"),
        ("model/model.mmproj", "projector"),
        ("model/sub/b", "b"),
        ("model/template.jinja", "template"),
        ("model/tokenizer.json", "tokens"),
        ("model/vocab/merges.txt", "merges"),
    ]);
    let opened = open(&artifact).unwrap();
    assert_eq!(opened.names(), wanted);
    let warnings = &opened.model.index.warnings;
    assert!(warnings.iter().any(|warning| warning.contains("nothing names its file")), "{warnings:?}");
    assert_eq!(family(&artifact), "docker-model v0.1");

    let shards = docker_v1(&[
        ("safetensors", "", b"one"),
        ("safetensors", "text/two.safetensors", b"two"),
        ("safetensors", "", b"three"),
        ("gguf.v3", "", b"a"),
        ("gguf.v3", "", b"b"),
    ]);
    let wanted = expected([
        ("config.json", RUNTIME_CONFIG),
        ("model/model-00001-of-00002.gguf", "a"),
        ("model/model-00001-of-00003.safetensors", "one"),
        ("model/model-00002-of-00002.gguf", "b"),
        ("model/model-00003-of-00003.safetensors", "three"),
        ("model/text/two.safetensors", "two"),
    ]);
    assert_eq!(names(&shards), wanted);
}

#[test]
fn a_docker_model_of_other_types_has_the_layout_of_its_bundle_too() {
    let folder = members(
        0,
        0,
        &[Member::Folder("text_encoder/"), Member::File("text_encoder/model.safetensors", "encoder")],
    );
    let artifact = docker_v1(&[
        ("safetensors", "", b"weights"),
        ("dduf", "", b"pipeline"),
        ("dir.tar", "", &folder),
        ("license", "licenses/MIT", b"licence"),
    ]);
    let pipeline = format!("model/{}.dduf", weightfs::oci::Digest::of(b"pipeline").hex());
    let wanted = expected([
        ("config.json", RUNTIME_CONFIG),
        (pipeline.as_str(), "pipeline"),
        ("model/licenses/MIT", "licence"),
        ("model/model.safetensors", "weights"),
        ("model/text_encoder/model.safetensors", "encoder"),
    ]);
    assert_eq!(names(&artifact), wanted);
}

#[test]
fn a_docker_model_in_the_form_of_a_model_pack_has_the_paths_of_its_annotations() {
    let artifact = docker_cncf(&[
        ("weight", "model.gguf", b"weights"),
        ("weight.config", "tokenizer/tokenizer.json", b"[]"),
        ("doc", "LICENSE", b"licence"),
    ]);
    let wanted =
        expected([("LICENSE", "licence"), ("model.gguf", "weights"), ("tokenizer/tokenizer.json", "[]")]);
    assert_eq!(names(&artifact), wanted);
    assert_eq!(family(&artifact), "cncf.model");
}

#[test]
fn a_docker_model_of_single_files_has_their_paths_without_leading_dots() {
    let artifact = docker_v2(&[
        ("safetensors", "text_encoder/model.safetensors", b"weights"),
        ("model.file", "../../home/u/config.json", b"{}"),
        ("model.file", "", b"no name"),
    ]);
    let wanted = expected([
        ("config.json", RUNTIME_CONFIG),
        ("model/home/u/config.json", "{}"),
        ("model/text_encoder/model.safetensors", "weights"),
    ]);
    assert_eq!(names(&artifact), wanted);
    assert_eq!(family(&artifact), "docker-model v0.2");
    let error = refusal(&docker_v2(&[("model.file", "a/../../b", b"x")]));
    assert!(error.to_string().contains("a/../../b"), "{error}");
}

#[test]
fn docker_types_of_weights_in_a_model_pack_are_files() {
    let mut artifact = Artifact::modctl_raw(&[crate::support::artifacts::file("a/model.gguf", "weights")]);
    for (media_type, path) in [("gguf", "a/model.gguf"), ("safetensors", "b.safetensors")] {
        artifact.layers[0].media_type = format!("application/vnd.cncf.model.weight.v1.{media_type}");
        artifact.layers[0].annotations.insert("org.cncf.model.filepath".to_owned(), path.to_owned());
        assert_eq!(names(&artifact), expected([(path, "weights")]));
    }
}

#[test]
fn ollama_layers_have_sensible_names_with_numbers_where_there_are_several() {
    let artifact = ollama(&[
        ("model", "", b"weights"),
        ("projector", "", b"projector"),
        ("template", "", b"template"),
        ("system", "", b"system"),
        ("params", "", b"{}"),
        ("license", "", b"one"),
        ("license", "", b"two"),
        ("adapter", "", b"lora"),
        ("adapter", "", b"another"),
        ("draft", "", b"draft"),
        ("messages", "", b"[]"),
        ("prompt", "", b"prompt"),
    ]);
    let wanted = expected([
        ("adapter-2.gguf", "another"),
        ("adapter.gguf", "lora"),
        ("draft.gguf", "draft"),
        ("license", "one"),
        ("license-2", "two"),
        ("messages.json", "[]"),
        ("model.gguf", "weights"),
        ("params.json", "{}"),
        ("prompt", "prompt"),
        ("projector.gguf", "projector"),
        ("system", "system"),
        ("template", "template"),
    ]);
    assert_eq!(names(&artifact), wanted);
    assert_eq!(family(&artifact), "ollama");
}

#[test]
fn ollama_tensors_and_json_stand_under_their_own_names() {
    let artifact = ollama(&[
        ("tensor", "text_encoder/model.embed_tokens.weight", b"tensor"),
        ("json", "config.json", b"{}"),
        ("json", "tokenizer/tokenizer.json", b"[]"),
    ]);
    let wanted = expected([
        ("config.json", "{}"),
        ("text_encoder/model.embed_tokens.weight", "tensor"),
        ("tokenizer/tokenizer.json", "[]"),
    ]);
    assert_eq!(names(&artifact), wanted);
    let error = refusal(&ollama(&[("tensor", "../x", b"tensor")]));
    assert!(error.to_string().contains("../x"), "{error}");
}

#[test]
fn a_ramalama_artifact_is_a_model_pack_whose_types_say_nothing() {
    let artifact = neighbours::ramalama(&[("model.gguf", "weights"), ("sub/chat.jinja", "template")]);
    assert_eq!(names(&artifact), expected([("model.gguf", "weights"), ("sub/chat.jinja", "template")]));
    assert_eq!(family(&artifact), "cncf.model");
}

#[test]
fn files_that_oras_pushed_are_named_by_their_titles_and_folders_are_unpacked() {
    let archive = members(0, 0, &[Member::Folder("data/"), Member::File("data/x.csv", "x")]);
    let tar = "application/vnd.oci.image.layer.v1.tar";
    let artifact = oras(vec![
        oras_file("application/octet-stream", "a/model.bin", "weights"),
        oras_file("application/vnd.oci.image.layer.v1.tar+gzip", "packed.tar.gz", "still packed"),
        oras_folder(tar, "data", archive.clone(), &archive),
        Layer::new("application/octet-stream", "without a title"),
    ]);
    let wanted =
        expected([("a/model.bin", "weights"), ("data/x.csv", "x"), ("packed.tar.gz", "still packed")]);
    assert_eq!(names(&artifact), wanted);
    assert_eq!(family(&artifact), "oras");
    let error = refusal(&oras(vec![oras_file("application/octet-stream", "/etc/passwd", "x")]));
    assert!(error.to_string().contains("absolute"), "{error}");
}

#[test]
fn what_goes_with_a_model_is_not_taken_for_one() {
    let mut soci = oras(vec![oras_file("application/octet-stream", "ztoc", "x")]);
    soci.artifact_type = "application/vnd.amazon.soci.index.v1+json".to_owned();
    let error = refusal(&soci);
    assert_eq!(error.kind(), weightfs::Kind::Unsupported);
    assert!(error.to_string().contains("goes with"), "{error}");
}
