//! What a file of a model's folder is: weights, their configuration, code, a document or a data set.
//!
//! By its name alone, as other packers do it; no file is opened. The order of the tables decides where two would fit.
//! [`plan`](super::plan()) asks for each file.

use crate::oci::artifact::LayerKind;

/// A file of no known name is taken for weights from this size on, and for code below it: 128 MiB, as modctl does.
const WEIGHTY: u64 = 128 << 20;

/// What belongs to the tokenizer or the prompt although its ending says weights or text.
const CONFIG_NAMES: [&str; 6] = [
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "modelcard",
];

const CODE_NAMES: [&str; 9] = [
    "requirements.txt",
    "pyproject.toml",
    "setup.cfg",
    "tox.ini",
    "makefile",
    "dockerfile",
    "cmakelists.txt",
    "package.json",
    "cargo.toml",
];

const DOC_PREFIXES: [&str; 7] =
    ["readme", "license", "licence", "notice", "copying", "changelog", "use_policy"];

const CONFIGS: &str = " json jsonl json5 jsonc yaml yml toml ini config cfg conf properties props xml jinja jinja2 j2 \
    tiktoken spm bpe vocab modelcard hparams params imatrix ";

const WEIGHTS: &str = " safetensors gguf ggml bin pt pth pte pt2 ptl mar onnx onnx_data ort data ckpt checkpoint \
    dist_ckpt h5 hdf hdf5 keras pb tflite msgpack npy npz pkl pickle joblib model mlmodel mlpackage engine trt dlc \
    circle nb llamafile caffemodel tensor tensors weights distcp index meta ot q4_0 q4_1 q5_0 q5_1 q8_0 f16 f32 ";

const CODES: &str = " py ipynb sh bash zsh patch c h cc cpp cxx hpp hh cu cuh java js mjs cjs ts tsx go rs swift rb \
    php scala kt r jl lua pl cs zig sql cmake mk bat ps1 so dll dylib a lib whl ";

const DOCS: &str = " txt md rst pdf html htm log tex bib adoc org doc docx odt rtf jpg jpeg png gif bmp tiff ico webp \
    svg mp4 mov avi mkv webm mp3 wav flac ogg ";

const DATASETS: &str = " parquet arrow feather tfrecord tfrecords csv tsv recordio lance avro orc ";

/// The kind of the file at `path`, of `size` bytes; never [`LayerKind::Unknown`].
#[must_use]
pub fn kind(path: &str, size: u64) -> LayerKind {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    if is_config(&name) {
        return LayerKind::WeightConfig;
    }
    if CODE_NAMES.contains(&name.as_str()) {
        return LayerKind::Code;
    }
    if DOC_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) && !is_one_of(ending, WEIGHTS) {
        return LayerKind::Doc;
    }
    [
        (CONFIGS, LayerKind::WeightConfig),
        (WEIGHTS, LayerKind::Weight),
        (CODES, LayerKind::Code),
        (DATASETS, LayerKind::Dataset),
        (DOCS, LayerKind::Doc),
    ]
    .into_iter()
    .find_map(|(endings, kind)| is_one_of(ending, endings).then_some(kind))
    .unwrap_or_else(|| by_more_than_the_ending(&name, size))
}

fn is_config(name: &str) -> bool {
    CONFIG_NAMES.contains(&name) || name.contains("tokenizer.model") || name.starts_with("config.json.")
}

fn is_one_of(ending: &str, endings: &str) -> bool {
    !ending.is_empty() && endings.split_ascii_whitespace().any(|known| known == ending)
}

/// Checkpoints in shards (`model.ckpt.data-00000-of-00001`), external data of ONNX (`model.onnx_data_1`), and the rest.
fn by_more_than_the_ending(name: &str, size: u64) -> LayerKind {
    let sharded = [".data-", ".onnx_data", ".onnx.data", ".gguf."].iter().any(|part| name.contains(part));
    if sharded || size >= WEIGHTY { LayerKind::Weight } else { LayerKind::Code }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_a_model_are_told_apart_by_name() {
        for (path, expected) in [
            ("model-00001-of-00002.safetensors", LayerKind::Weight),
            ("model.safetensors.index.json", LayerKind::WeightConfig),
            ("sub/PYTORCH_MODEL.BIN", LayerKind::Weight),
            ("onnx/model.onnx_data", LayerKind::Weight),
            ("onnx/model.onnx_data_1", LayerKind::Weight),
            ("variables/variables.data-00000-of-00001", LayerKind::Weight),
            ("tokenizer.model", LayerKind::WeightConfig),
            ("tokenizer.model.v3", LayerKind::WeightConfig),
            ("merges.txt", LayerKind::WeightConfig),
            ("chat_template.jinja", LayerKind::WeightConfig),
            ("modeling_x.py", LayerKind::Code),
            ("requirements.txt", LayerKind::Code),
            ("README.md", LayerKind::Doc),
            ("LICENSE", LayerKind::Doc),
            ("LICENSE.json", LayerKind::Doc),
            ("readme-weights.gguf", LayerKind::Weight),
            ("notes.txt", LayerKind::Doc),
            ("data/train.parquet", LayerKind::Dataset),
            ("odd", LayerKind::Code),
            ("odd.qqq", LayerKind::Code),
        ] {
            assert_eq!(kind(path, 10), expected, "{path}");
        }
    }

    #[test]
    fn what_has_no_known_name_is_weights_where_it_is_large() {
        assert_eq!(kind("blob", WEIGHTY), LayerKind::Weight);
        assert_eq!(kind("blob", WEIGHTY - 1), LayerKind::Code);
    }
}
