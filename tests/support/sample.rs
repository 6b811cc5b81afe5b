//! The sample model: four safetensors shards of 16 MiB tensors and the small files around them, in a registry's storage.
//!
//! Made once a test process, and the same bytes every time. Its size is `WEIGHTFS_TEST_MODEL_MIB` (256; the full-size
//! run has 1024). Tests get a registry of their own that links to the one storage, see [`Sample::registry`].

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use super::pack::{self, Content, Dialect, Packing};
use super::place::Place;
use super::registry::Registry;
use super::scratch;

const MIB: u64 = 1 << 20;
const SHARDS: u64 = 4;

/// The tags under which [`REPOSITORY`] has the model.
pub const TAGS: [&str; 4] = ["raw", "tar", "legacy", "seed"];
/// The tag under which [`REPOSITORY`] has it with a bound index, as `weightfs pack` writes it.
pub const PACKED: &str = "packed";
/// Where it lies in the registry.
pub const REPOSITORY: &str = "models/sample";

/// One file of the model.
pub struct SampleFile {
    pub path: String,
    pub size: u64,
    pub sha256: String,
}

/// The bytes of a tensor in its shard.
#[derive(Clone, Copy, Debug)]
pub struct Tensor {
    pub offset: u64,
    pub size: u64,
}

/// The model, where it lies, and what is known of it.
pub struct Sample {
    folder: PathBuf,
    storage: PathBuf,
    pub files: Vec<SampleFile>,
    /// Names of the shards, in order.
    pub shards: Vec<String>,
    /// Tensors of each shard, in the order of the file; all shards have the same.
    pub tensors: Vec<Tensor>,
}

/// The sample model of this process.
pub fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(Sample::make)
}

impl Sample {
    /// A registry of the caller's own that has the model under every tag of [`TAGS`] and as [`PACKED`].
    pub fn registry(&self) -> Registry {
        Registry::like(&self.storage)
    }

    /// The original of a file.
    pub fn original(&self, path: &str) -> PathBuf {
        self.folder.join(path)
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// What is known of a file.
    pub fn file(&self, path: &str) -> &SampleFile {
        self.files.iter().find(|file| file.path == path).unwrap()
    }

    /// The digest of the raw layer that is this file.
    pub fn digest(&self, path: &str) -> String {
        format!("sha256:{}", self.file(path).sha256)
    }

    /// A tensor from the middle of a shard.
    pub fn middle_tensor(&self) -> Tensor {
        self.tensors[self.tensors.len() / 2]
    }

    fn make() -> Self {
        let home = scratch::until_exit(scratch::roomy());
        let (folder, work) = (home.join("model"), home.join("work"));
        std::fs::create_dir_all(folder.join("1_Pooling")).unwrap();
        std::fs::create_dir_all(&work).unwrap();
        let shard_size = model_mib() / SHARDS * MIB;
        let shards: Vec<String> =
            (1..=SHARDS).map(|n| format!("model-{n:05}-of-{SHARDS:05}.safetensors")).collect();
        let mut tensors = Vec::new();
        for (number, name) in (0..).zip(&shards) {
            tensors = write_shard(&folder.join(name), number, shard_size);
        }
        for (path, text) in small_files(&shards) {
            std::fs::write(folder.join(path), text).unwrap();
        }
        let files = survey(&folder, &shards);
        let storage = push(&folder, &files, &work, &home);
        std::fs::remove_dir_all(&work).unwrap();
        Self { folder, storage, files, shards, tensors }
    }
}

/// The size asked for, in MiB: a multiple of the number of shards.
fn model_mib() -> u64 {
    let asked = std::env::var("WEIGHTFS_TEST_MODEL_MIB")
        .ok()
        .map(|text| text.parse().expect("WEIGHTFS_TEST_MODEL_MIB"));
    asked.unwrap_or(256_u64).max(SHARDS).next_multiple_of(SHARDS)
}

fn survey(folder: &Path, shards: &[String]) -> Vec<SampleFile> {
    let small = small_files(shards).into_iter().map(|(path, _)| path.to_owned());
    small
        .chain(shards.iter().cloned())
        .map(|path| {
            let original = folder.join(&path);
            SampleFile { size: original.metadata().unwrap().len(), sha256: pack::sha256sum(&original), path }
        })
        .collect()
}

/// Pushes every variant into a registry of its own and gives the folder that it keeps them in.
fn push(folder: &Path, files: &[SampleFile], work: &Path, home: &Path) -> PathBuf {
    let original = folder;
    let files: Vec<pack::File> = files
        .iter()
        .map(|file| pack::File { path: file.path.clone(), content: Content::Disk(folder.join(&file.path)) })
        .collect();
    let mut registry = Registry::start();
    let variants = [
        (Packing::Raw, Dialect::Upstream),
        (Packing::Tar, Dialect::Upstream),
        (Packing::Raw, Dialect::Legacy),
        (Packing::Tar, Dialect::Seed),
    ];
    for (tag, (packing, dialect)) in TAGS.into_iter().zip(variants) {
        registry.push(REPOSITORY, tag, &pack::pack(&files, packing, dialect, work));
    }
    let target = format!("{}/{REPOSITORY}:{PACKED}", registry.direct());
    Place::new().run([std::ffi::OsStr::new("pack"), original.as_os_str(), target.as_ref()]).ok();
    registry.stop();
    std::fs::rename(registry.storage(), home.join("storage")).unwrap();
    home.join("storage")
}

/// Writes `size` bytes of tensors under a safetensors header: 16 MiB each, or four a shard where it is small.
fn write_shard(path: &Path, number: u64, size: u64) -> Vec<Tensor> {
    let tensor = (16 * MIB).min(size / 4);
    let mut header = Map::from_iter([("__metadata__".to_owned(), json!({"format": "pt"}))]);
    for n in 0..size / tensor {
        let name = format!("model.layers.{}.mlp.down_proj.weight", number * (size / tensor) + n);
        header.insert(name, json!({"dtype": "BF16", "shape": [tensor / 4096, 2048], "data_offsets": [n * tensor, (n + 1) * tensor]}));
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let start = 8 + header.len() as u64;
    let mut file = BufWriter::with_capacity(MIB as usize, File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    let mut block = vec![0; MIB as usize];
    for n in 0..size / MIB {
        fill(&mut block, number << 32 | n);
        file.write_all(&block).unwrap();
    }
    file.flush().unwrap();
    (0..size / tensor).map(|n| Tensor { offset: start + n * tensor, size: tensor }).collect()
}

/// Fills `block` with bytes that depend on `seed` alone and do not compress (splitmix64).
pub fn fill(block: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5bf0_3635;
    for eight in block.chunks_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        eight.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes()[..eight.len()]);
    }
}

fn small_files(shards: &[String]) -> Vec<(&'static str, String)> {
    let vocabulary: Map<String, Value> = (0..60_000_u64).map(|n| (word(n), json!(n))).collect();
    vec![
        (
            "1_Pooling/config.json",
            json!({"word_embedding_dimension": 4096, "pooling_mode_mean_tokens": true}).to_string(),
        ),
        ("LICENSE", "Synthetic test data; no rights reserved.\n".repeat(200)),
        ("README.md", "# synthetic model\n\nMade for tests.\n".to_owned()),
        (
            "config.json",
            json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"})
                .to_string(),
        ),
        ("generation_config.json", json!({"bos_token_id": 1, "eos_token_id": 2}).to_string()),
        ("model.safetensors.index.json", json!({"metadata": {}, "shards": shards}).to_string()),
        (
            "tokenizer.json",
            json!({"version": "1.0", "model": {"type": "BPE", "vocab": vocabulary}}).to_string(),
        ),
        ("tokenizer_config.json", json!({"tokenizer_class": "LlamaTokenizer"}).to_string()),
    ]
}

fn word(number: u64) -> String {
    let mut bytes = [0; 12];
    fill(&mut bytes, number);
    let letters: String = bytes.iter().map(|byte| char::from(b'a' + byte % 26)).collect();
    format!("{letters}{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_is_the_size_asked_for_and_its_tensors_lie_in_it() {
        let sample = sample();
        let data: u64 = sample.tensors.iter().map(|tensor| tensor.size).sum();
        assert_eq!(data * SHARDS, model_mib() * MIB);
        let last = sample.tensors.last().unwrap();
        assert_eq!(last.offset + last.size, sample.file(&sample.shards[0]).size);
        assert!(sample.size() > model_mib() * MIB);
    }
}
