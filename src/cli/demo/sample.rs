//! The demo's model: made up, but of the real form, and the same every time.
//!
//! Two safetensors files of [`TENSORS`] tensors each and a few small JSON files, packaged as one raw layer a file in
//! an OCI image layout, the way `modctl` does it. The weights are noise, which nothing compresses.

use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::{Result, StorageContext};
use crate::oci::Blob;
use crate::oci::digest::{Algorithm, Hasher};

/// The tag under which the model is found.
pub(super) const TAG: &str = "demo";

/// Files of weights.
const SHARDS: u64 = 2;

/// Tensors in each: with [`SHARDS`] and [`TENSOR`] 512 MiB of weights.
const TENSORS: u64 = 32;

/// Bytes of a tensor: 2048 by 2048 numbers of 16 bits.
pub(super) const TENSOR: usize = 8 << 20;

const SIDE: u64 = 2048;

/// The tensor that is read: in the middle of the last file.
pub(super) const WANTED: Place = Place { shard: SHARDS - 1, tensor: TENSORS / 2 };

/// Which tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    shard: u64,
    tensor: u64,
}

impl Place {
    /// The file it is in.
    pub(super) fn file(self) -> String {
        shard_name(self.shard)
    }

    /// Its name in the file's header.
    pub(super) fn name(self) -> String {
        format!("model.layers.{}.self_attn.q_proj.weight", self.shard * TENSORS + self.tensor)
    }

    /// What its bytes are.
    pub(super) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0; TENSOR];
        fill(self.shard * TENSORS + self.tensor, &mut bytes);
        bytes
    }
}

fn shard_name(shard: u64) -> String {
    format!("model-{:05}-of-{SHARDS:05}.safetensors", shard + 1)
}

/// A model in a layout.
#[derive(Debug)]
pub(super) struct Sample {
    /// Its layers.
    pub(super) layers: Vec<Blob>,
}

impl Sample {
    /// Bytes of all layers.
    pub(super) fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }
}

/// Makes the model as an image layout at `folder`, which is made too.
///
/// # Errors
/// `Storage`.
pub(super) fn make(folder: &Path) -> Result<Sample> {
    let layout = Layout { folder: folder.to_owned() };
    fs::create_dir_all(layout.blobs()).storage(|| format!("cannot make {}", folder.display()))?;
    let mut layers = Vec::new();
    let mut described = Vec::new();
    for (name, text) in small_files() {
        let blob = layout.keep(|out| out.write_all(text.to_string().as_bytes()))?;
        described.push(descriptor("weight.config", name, &blob));
        layers.push(blob);
    }
    for shard in 0..SHARDS {
        let blob = layout.keep(|out| write_shard(shard, out))?;
        described.push(descriptor("weight", &shard_name(shard), &blob));
        layers.push(blob);
    }
    layout.finish(&layers, &described)?;
    Ok(Sample { layers })
}

fn small_files() -> [(&'static str, Value); 3] {
    let layers = SHARDS * TENSORS;
    [
        ("config.json", json!({ "model_type": "llama", "hidden_size": SIDE, "num_hidden_layers": layers })),
        ("generation_config.json", json!({ "temperature": 0.6, "top_p": 0.9 })),
        ("tokenizer_config.json", json!({ "model_max_length": 4096 })),
    ]
}

fn descriptor(kind: &str, name: &str, blob: &Blob) -> Value {
    json!({
        "mediaType": format!("application/vnd.cncf.model.{kind}.v1.raw"),
        "digest": blob.digest.to_string(),
        "size": blob.size,
        "annotations": { "org.cncf.model.filepath": name },
    })
}

/// A header of tensors' names and places, preceded by its length, and the tensors (safetensors' README, "Format").
fn write_shard(shard: u64, out: &mut dyn Write) -> std::io::Result<()> {
    let mut header = serde_json::Map::new();
    for tensor in 0..TENSORS {
        let start = tensor * SIDE * SIDE * 2;
        let place = json!({ "dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [start, start + SIDE * SIDE * 2] });
        header.insert(Place { shard, tensor }.name(), place);
    }
    let mut header = Value::Object(header).to_string();
    // Data begins at a multiple of eight.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    out.write_all(&u64::try_from(header.len()).unwrap_or(u64::MAX).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for tensor in 0..TENSORS {
        out.write_all(&Place { shard, tensor }.bytes())?;
    }
    Ok(())
}

/// Fills `bytes` with the noise of `seed`: SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
fn fill(seed: u64, bytes: &mut [u8]) {
    let mut state = seed.wrapping_mul(0xD1B5_4A32_D192_ED03);
    for word in bytes.chunks_mut(8) {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        for (to, from) in word.iter_mut().zip((mixed ^ (mixed >> 31)).to_le_bytes()) {
            *to = from;
        }
    }
}

struct Layout {
    folder: PathBuf,
}

impl Layout {
    fn blobs(&self) -> PathBuf {
        self.folder.join("blobs/sha256")
    }

    /// Keeps what `write` writes as a blob under its digest.
    fn keep(&self, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<Blob> {
        let draft = self.blobs().join("draft");
        let doing = || format!("cannot write {}", draft.display());
        let mut out = Hashed {
            file: File::create(&draft).storage(doing)?,
            hasher: Hasher::new(Algorithm::Sha256),
            size: 0,
        };
        write(&mut out).storage(doing)?;
        let blob = Blob { digest: out.hasher.finish(), size: out.size };
        fs::rename(&draft, self.blobs().join(blob.digest.hex())).storage(doing)?;
        Ok(blob)
    }

    fn finish(&self, layers: &[Blob], described: &[Value]) -> Result<()> {
        let digests: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        let config = json!({
            "descriptor": { "name": "demo", "family": "llama" },
            "config": { "architecture": "transformer", "format": "safetensors", "precision": "bf16" },
            "modelfs": { "type": "layers", "diffIds": digests },
        });
        let config = self.keep(|out| out.write_all(config.to_string().as_bytes()))?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "artifactType": "application/vnd.cncf.model.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.cncf.model.config.v1+json",
                "digest": config.digest.to_string(),
                "size": config.size,
            },
            "layers": described,
        });
        let manifest = self.keep(|out| out.write_all(manifest.to_string().as_bytes()))?;
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": manifest.digest.to_string(),
                "size": manifest.size,
                "annotations": { "org.opencontainers.image.ref.name": TAG },
            }],
        });
        self.write("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        self.write("index.json", &index)
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        let path = self.folder.join(name);
        fs::write(&path, value.to_string()).storage(|| format!("cannot write {}", path.display()))
    }
}

/// A file that knows the digest of what was written.
struct Hashed {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(bytes.get(..count).unwrap_or_default());
        self.size += u64::try_from(count).unwrap_or(u64::MAX);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// How many bytes say how long a safetensors file's header is.
pub(super) const LENGTH: usize = 8;

/// Where the header lies in a safetensors file of `size` bytes that begins so; `None` where it has none.
pub(super) fn header(start: &[u8], size: usize) -> Option<Range<usize>> {
    let (len, _) = start.split_first_chunk::<LENGTH>()?;
    let end = usize::try_from(u64::from_le_bytes(*len)).ok()?.checked_add(LENGTH)?;
    (end <= size).then_some(LENGTH..end)
}

/// Where a tensor lies in a safetensors file of `size` bytes, from the file's header, which is within `start`. `None`
/// where there is no such tensor or the header can't be read.
pub(super) fn locate(start: &[u8], size: usize, tensor: &str) -> Option<Range<usize>> {
    let header = header(start, size)?;
    let data = header.end;
    let header: Value = serde_json::from_slice(start.get(header)?).ok()?;
    let offset = |which: usize| {
        let value = header.get(tensor)?.get("data_offsets")?.get(which)?.as_u64()?;
        usize::try_from(value).ok()?.checked_add(data)
    };
    let range = offset(0)?..offset(1)?;
    (range.start <= range.end && range.end <= size).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_found_where_it_was_written() {
        let mut shard = Vec::new();
        write_shard(WANTED.shard, &mut shard).unwrap();
        let range = locate(&shard, shard.len(), &WANTED.name()).unwrap();
        assert_eq!(range.start % 8, 0);
        assert!(shard[range] == WANTED.bytes());
        assert_eq!(locate(&shard, shard.len(), "no.such.tensor"), None);
        assert_eq!(locate(&shard[..100], 100, &WANTED.name()), None);
        assert_eq!(locate(b"", 0, &WANTED.name()), None);
    }

    #[test]
    fn tensors_differ() {
        let other = Place { tensor: 0, ..WANTED };
        assert!(other.bytes() != WANTED.bytes());
    }
}
