//! The engines: how each is run on a folder, and what is known of its answer.
//!
//! The Python that has them is named by `WEIGHTFS_TEST_PYTHON`, the program on candle by `WEIGHTFS_TEST_CANDLE`; `tools/test`
//! makes both.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::models::Model;
use crate::support::place::Place;

const SAFETENSORS: &str = include_str!("safetensors_digest.py");
const LLAMA: &str = include_str!("llama_four_tokens.py");
const GGUF: &str = include_str!("gguf_table.py");
const ONNX: &str = include_str!("onnx_sums.py");

/// SHA-256 (its first 16 digits) over all tensors of MiniLM in order of their names.
const MINILM: &str = "tensors=104 bytes=90856960 sha=6feed19bc1a8f3af";
/// What SmolLM2 says to "The capital of France is", greedily, in four tokens.
const PARIS: &str = r"' Paris.\n\n'";
/// What 16 tokens give in the word embeddings and the first layer of MiniLM.
const FIRST_LAYER: &str = "(1, 16, 1536) 417.609122";
/// The embedding that MiniLM has for "The quick brown fox jumps over the lazy dog", in transformers too.
const FOX: &str = "dim=384 first5=[0.035497,0.061286,0.052692,0.070705,0.033101] sum=0.082104";

/// An engine and the way it is told to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// safetensors, to numpy: `mmap`, `pread` (one read a tensor) or `read` (the whole file at once).
    Safetensors(&'static str),
    /// The reader of gguf-py, which maps.
    Gguf,
    /// llama.cpp: `MMAP`, `NONE` (reads into memory of its own) or `DIRECT_IO` (the same with `O_DIRECT`).
    Llama(&'static str),
    /// ONNX Runtime with external data, which it maps privately and writable.
    OnnxExternal,
    /// ONNX Runtime with a model in one file, which it reads.
    OnnxAlone,
    /// candle, in Rust: a shared map.
    Candle,
}

/// All engines in all their ways.
pub const ENGINES: [Engine; 10] = [
    Engine::Safetensors("mmap"),
    Engine::Safetensors("pread"),
    Engine::Safetensors("read"),
    Engine::Gguf,
    Engine::Llama("MMAP"),
    Engine::Llama("NONE"),
    Engine::Llama("DIRECT_IO"),
    Engine::OnnxExternal,
    Engine::OnnxAlone,
    Engine::Candle,
];

impl Engine {
    /// The model that it is run on.
    pub fn model(self) -> Model {
        match self {
            Self::Safetensors(_) | Self::Candle => Model::MiniLm,
            Self::Gguf | Self::Llama(_) => Model::SmolLm,
            Self::OnnxExternal | Self::OnnxAlone => Model::Onnx,
        }
    }

    /// What it answers to its model in `folder`. `place` lends what a command needs and ends with it.
    ///
    /// # Panics
    /// When it fails, or takes longer than five minutes.
    pub fn answer(self, place: &Place, folder: &Path) -> String {
        let ran = place.finish(self.command(folder), Duration::from_secs(300));
        assert_eq!(ran.code, 0, "{self:?}: {ran:?}; if a module is missing, run tools/test");
        // What llama.cpp logs comes before.
        ran.stdout.lines().last().unwrap_or_default().to_owned()
    }

    /// What it is known to answer, on any machine.
    pub fn known(self) -> Option<&'static str> {
        match self {
            Self::Safetensors(_) => Some(MINILM),
            Self::Llama(_) => Some(PARIS),
            Self::OnnxExternal => Some(FIRST_LAYER),
            Self::Candle => Some(FOX),
            Self::Gguf | Self::OnnxAlone => None,
        }
    }

    fn command(self, folder: &Path) -> Command {
        let (script, file, how) = match self {
            Self::Candle => return candle(folder),
            Self::Safetensors(way) => (SAFETENSORS, "model.safetensors", way),
            Self::Gguf => (GGUF, "SmolLM2-135M-Instruct.Q4_1.gguf", ""),
            Self::Llama(mode) => (LLAMA, "SmolLM2-135M-Instruct.Q4_1.gguf", mode),
            Self::OnnxExternal => (ONNX, "model.onnx", "16"),
            Self::OnnxAlone => (ONNX, "magika.onnx", "1"),
        };
        let mut command = Command::new(python());
        command.args(["-c", script]).arg(folder.join(file)).arg(how).stdin(Stdio::null());
        command
    }
}

/// The Python that has the engines and the models.
pub fn python() -> PathBuf {
    made("WEIGHTFS_TEST_PYTHON")
}

fn candle(folder: &Path) -> Command {
    let mut command = Command::new(made("WEIGHTFS_TEST_CANDLE"));
    command.arg(folder).stdin(Stdio::null());
    command
}

fn made(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    path.unwrap_or_else(|| {
        panic!("{variable} is not set, so there are no engines to test with: run tools/test")
    })
}
