//! Tests of [`describe`] over folders as they are found, with headers and no data.

use std::fs;
use std::path::Path;

use super::gguf::tests::{Value, file as gguf};
use super::safetensors::tests::file as safetensors;
use super::*;
use crate::pack::kind::kind;
use crate::pack::walk::{Links, walk};

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

fn described(folder: &Path) -> Described {
    let found = walk(folder, Links::Inside).unwrap();
    let files: Vec<_> = found.files.iter().map(|file| (kind(&file.path, file.size), file)).collect();
    describe(&files)
}

fn of(files: &[(&str, Vec<u8>)]) -> Described {
    described(folder(files).path())
}

const CONFIG: &str =
    r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"torch_dtype":"bfloat16"}"#;

#[test]
fn a_folder_of_safetensors_is_described_by_its_config_and_its_tensors() {
    let shard = |n: u64| safetensors(&[("a", "BF16", &[1_000_000, 4_000 + n]), ("b", "F32", &[3])]);
    let described = of(&[
        ("config.json", CONFIG.into()),
        ("model-00001-of-00002.safetensors", shard(0)),
        ("model-00002-of-00002.safetensors", shard(30)),
        ("other/adapter.safetensors", shard(9)),
    ]);
    let expected = Described {
        family: Some("llama".into()),
        architecture: Some("LlamaForCausalLM".into()),
        precision: Some("bfloat16".into()),
        param_size: Some("8b".into()),
        format: Some("safetensors".into()),
        ..Described::default()
    };
    assert_eq!(described, expected);
}

#[test]
fn without_a_config_the_dominant_type_is_the_precision() {
    let described = of(&[("model.safetensors", safetensors(&[("a", "F16", &[900]), ("b", "F32", &[100])]))]);
    assert_eq!(described.precision.as_deref(), Some("float16"));
    assert_eq!(described.param_size.as_deref(), Some("1k"));
    assert_eq!(described.family, None);
}

#[test]
fn the_index_of_shards_says_which_files_are_the_model() {
    let shard = || safetensors(&[("a", "F32", &[1_000_000])]);
    let index = r#"{"weight_map":{"a":"a.safetensors","b":"b.safetensors","c":"a.safetensors"}}"#;
    let files = [
        ("model.safetensors.index.json", index.into()),
        ("a.safetensors", shard()),
        ("b.safetensors", shard()),
        ("consolidated.safetensors", shard()),
    ];
    assert_eq!(of(&files).param_size.as_deref(), Some("2m"));
    assert_eq!(of(&files[1..]).param_size, None, "which of them are the model can't be told");
    assert_eq!(of(&files[..2]).param_size, None, "one is missing");
}

#[test]
fn packed_numbers_are_not_counted() {
    let config = r#"{"torch_dtype":"float16","quantization_config":{"quant_method":"gptq","bits":4}}"#;
    let described = of(&[
        ("config.json", config.into()),
        ("model.safetensors", safetensors(&[("q", "I32", &[1_000_000]), ("s", "F16", &[1_000])])),
    ]);
    assert_eq!(described.quantization.as_deref(), Some("gptq"));
    assert_eq!((described.param_size, described.precision.as_deref()), (None, Some("float16")));
}

#[test]
fn a_gguf_file_is_described_by_its_keys() {
    let keys = [
        ("general.architecture", Value::Text("qwen2")),
        ("general.name", Value::Text("Qwen2 7B")),
        ("general.size_label", Value::Text("7B")),
        ("general.license", Value::Text("apache-2.0")),
        ("general.file_type", Value::U32(15)),
    ];
    let described = of(&[("model.gguf", gguf(&keys, &[&[10, 10]]))]);
    let expected = Described {
        name: Some("Qwen2 7B".into()),
        family: Some("qwen2".into()),
        architecture: Some("qwen2".into()),
        param_size: Some("7b".into()),
        quantization: Some("Q4_K_M".into()),
        format: Some("gguf".into()),
        licenses: vec!["apache-2.0".into()],
        ..Described::default()
    };
    assert_eq!(described, expected);
}

#[test]
fn of_several_gguf_files_only_what_all_say_is_said() {
    let one = |file_type| {
        let keys =
            [("general.architecture", Value::Text("llama")), ("general.file_type", Value::U32(file_type))];
        gguf(&keys, &[&[1_000, 135_000]])
    };
    let described = of(&[("a-Q4_K_M.gguf", one(15)), ("a-Q8_0.gguf", one(7))]);
    assert_eq!((described.family.as_deref(), described.param_size.as_deref()), (Some("llama"), Some("135m")));
    assert_eq!(described.quantization, None);
}

#[test]
fn the_parts_of_a_split_gguf_are_one_model() {
    let part = |number: u32| {
        let keys = [("split.no", Value::U32(number)), ("split.count", Value::U32(2))];
        gguf(&keys, &[&[1_000_000, 500]])
    };
    let described = of(&[("a-00001-of-00002.gguf", part(0)), ("a-00002-of-00002.gguf", part(1))]);
    assert_eq!(described.param_size.as_deref(), Some("1b"));
    assert_eq!(of(&[("a-00001-of-00002.gguf", part(0))]).param_size, None, "a part is not all of it");
}

#[test]
fn nothing_is_said_of_what_nothing_is_known_of() {
    assert_eq!(of(&[("x.bin", vec![1; 9]), ("notes.txt", vec![2])]), Described::default());
    let broken =
        [("config.json", b"{".to_vec()), ("m.safetensors", vec![0xff; 20]), ("m.gguf", b"GGUF".to_vec())];
    assert_eq!(of(&broken), Described::default());
    let onnx = of(&[("model.onnx", vec![1]), ("model.onnx_data", vec![1])]);
    assert_eq!(onnx, Described { format: Some("onnx".into()), ..Described::default() });
}

#[test]
fn parameters_are_counted_as_people_do() {
    for (count, text) in [
        (999, "999"),
        (134_515_008, "135m"),
        (22_713_216, "23m"),
        (1_500_000, "1.5m"),
        (8_030_261_248, "8b"),
        (7_241_732_096, "7.2b"),
        (70_553_706_496, "70.6b"),
        (999_999_999, "1b"),
        (1_000_000_000_000, "1t"),
        (u64::MAX, "18446744.1t"),
    ] {
        assert_eq!(short(count), text, "{count}");
    }
}

#[test]
fn what_is_typed_overrules_what_is_found() {
    let typed =
        Described { family: Some("mine".into()), licenses: vec!["MIT".into()], ..Described::default() };
    let found = Described {
        family: Some("theirs".into()),
        precision: Some("int8".into()),
        licenses: vec!["other".into()],
        ..Described::default()
    };
    let both = typed.or(found);
    assert_eq!((both.family.as_deref(), both.precision.as_deref()), (Some("mine"), Some("int8")));
    assert_eq!(both.licenses, ["MIT"]);
}

#[test]
fn pipes_in_the_place_of_files_say_nothing_and_hold_up_nobody() {
    let names = ["config.json", "model.safetensors", "other.gguf"];
    let folder = folder(&names.map(|name| (name, b"{}".to_vec())));
    let found = walk(folder.path(), Links::Inside).unwrap();
    for name in names {
        fs::remove_file(folder.path().join(name)).unwrap();
        nix::unistd::mkfifo(&folder.path().join(name), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    let files: Vec<_> = found.files.iter().map(|file| (kind(&file.path, file.size), file)).collect();
    assert_eq!(describe(&files), Described::default());
}
