//! Artifacts whose layer brings a table of its parts, as large as it takes to tell what is read of it: written by
//! `tools/benchlib`, which knows the forms, in Python and by `zstd`.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::pack::{Artifact, Blob, Content};
use super::sample;

/// The files of the model: a shard that is read in its middle, between two others.
pub const FILES: [(&str, usize); 4] = [
    ("config.json", 700),
    ("model-1.safetensors", 60 << 20),
    ("model-2.safetensors", 100 << 20),
    ("model-3.safetensors", 40 << 20),
];

const WRITE: &str = "
import json, sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from benchlib import layers
form = next(form for form in layers.FORMS if form.name == sys.argv[2])
[layer] = form.write(sys.argv[3], sys.argv[5:], sys.argv[4])
print(json.dumps([layer.path, layer.media_type, layer.annotations]))
";

/// Writes the files into `folder`.
pub fn write(folder: &Path) {
    for ((name, size), seed) in FILES.into_iter().zip(40..) {
        let mut bytes = vec![0; size];
        sample::fill(&mut bytes, seed);
        std::fs::write(folder.join(name), bytes).unwrap();
    }
}

/// The files in `folder` as one layer of this form of `tools/layers`, which is written into `out`.
pub fn pack(folder: &Path, form: &str, out: &Path) -> Artifact {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools");
    let names = FILES.map(|(name, _)| name);
    let mut write = Command::new("python3");
    write.args(["-c", WRITE]).arg(tools).arg(form).arg(folder).arg(out).args(names);
    let written = write.output().unwrap();
    assert!(written.status.success(), "{form}: {}", String::from_utf8_lossy(&written.stderr));
    let (path, media_type, annotations): (String, String, Value) =
        serde_json::from_slice(&written.stdout).unwrap();
    of(Content::Disk(path.into()), &media_type, &annotations)
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
