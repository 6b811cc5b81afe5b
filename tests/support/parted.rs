//! Artifacts whose layer brings a table of its parts, as large as it takes to tell what is read of it: written by
//! `tools/benchlib`, which knows the forms, in Python and by `zstd`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::pack::{Artifact, Blob, Content};
use super::sample;

/// The names and sizes of a model's files.
pub type Files = [(&'static str, usize)];

/// A shard that is read in its middle, between two others.
pub const FILES: [(&str, usize); 4] = [
    ("config.json", 700),
    ("model-1.safetensors", 60 << 20),
    ("model-2.safetensors", 100 << 20),
    ("model-3.safetensors", 40 << 20),
];

/// Of few parts.
pub const SMALL: [(&str, usize); 3] =
    [("config.json", 700), ("model-1.safetensors", 9 << 20), ("model-2.safetensors", 6 << 20)];

/// A layer so large that it does not go by for what a reader of one tensor fetches.
pub const LARGE: [(&str, usize); 3] =
    [("config.json", 700), ("model-1.safetensors", 40 << 20), ("model-2.safetensors", 440 << 20)];

/// Where the first tensor begins in every shard.
pub const HEAD: u64 = 16 << 10;

/// How large the tensors are that the heads of the shards name.
pub const TENSOR: u64 = 16 << 20;

const WRITE: &str = "
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from benchlib import layers
form = next(form for form in layers.FORMS if form.name == sys.argv[2])
[layer] = form.write(sys.argv[3], sys.argv[5:], sys.argv[4])
print(json.dumps([layer.path, layer.media_type, layer.annotations]))
";

/// Writes the files into `folder`: shards as engines have them, of bytes that no compression makes smaller.
pub fn write(folder: &Path, files: &Files) {
    for ((name, size), seed) in files.iter().zip(40..) {
        let mut bytes = vec![0; *size];
        sample::fill(&mut bytes, seed);
        if name.ends_with(".safetensors") {
            let head = head(*size as u64);
            bytes[..head.len()].copy_from_slice(&head);
        }
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

/// The head of a shard of so many bytes: tensors of [`TENSOR`] bytes, and the rest as one.
fn head(size: u64) -> Vec<u8> {
    let data = size - HEAD;
    let tensor = |number: u64| {
        let (start, end) = (number * TENSOR, ((number + 1) * TENSOR).min(data));
        (number.to_string(), json!({"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}))
    };
    let tensors: serde_json::Map<String, Value> = (0..data.div_ceil(TENSOR)).map(tensor).collect();
    let mut json = serde_json::to_vec(&tensors).unwrap();
    json.resize(HEAD as usize - 8, b' ');
    [&(HEAD - 8).to_le_bytes()[..], &json].concat()
}

/// The files in `folder` as one layer of this form of `tools/layers`, which is written into `out`.
pub fn pack(folder: &Path, files: &Files, form: &str, out: &Path) -> Artifact {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
    let names = files.iter().map(|(name, _)| name);
    let mut write = Command::new("python3");
    write.args(["-c", WRITE]).arg(tools).arg(form).arg(folder).arg(out).args(names);
    let written = write.output().unwrap();
    assert!(written.status.success(), "{form}: {}", String::from_utf8_lossy(&written.stderr));
    let (path, media_type, annotations): (String, String, Value) =
        serde_json::from_slice(&written.stdout).unwrap();
    of(Content::Disk(path.into()), &media_type, &annotations)
}

/// The artifact with one byte of its layer changed, so many bytes before its end, and described as if it had been written so.
pub fn damaged(artifact: &Artifact, before_end: u64) -> Artifact {
    let Content::Disk(path) = &artifact.blobs[0].content else { panic!("the layer is in memory") };
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() - before_end as usize;
    bytes[at] ^= 0x10;
    let manifest: Value = serde_json::from_slice(&artifact.manifest).unwrap();
    let layer = &manifest["layers"][0];
    of(Content::Bytes(bytes), layer["mediaType"].as_str().unwrap(), &layer["annotations"])
}

/// An artifact of this one layer.
pub fn of(content: Content, media_type: &str, annotations: &Value) -> Artifact {
    let layer = Blob { digest: content.digest(), content };
    let config = Content::Bytes(b"{}".to_vec());
    let config = Blob { digest: config.digest(), content: config };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {"mediaType": "application/vnd.cncf.model.config.v1+json", "digest": config.digest, "size": config.content.size()},
        "layers": [{"mediaType": media_type, "digest": layer.digest, "size": layer.content.size(), "annotations": annotations}],
    });
    Artifact {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        manifest: manifest.to_string().into_bytes(),
        blobs: vec![layer, config],
    }
}
