//! Artifacts whose layer is compressed as other tools do it: the one tar of many files, without any annotation, that names
//! nothing before its headers are read.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::pack::{self, Artifact, Blob, Content, Dialect, File, Packing};
use super::sample;

/// How a layer was compressed, by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// One member, by `gzip`.
    Gzip,
    /// Blocks that were deflated side by side, by `pigz`.
    Pigz,
    /// One frame, by `zstd`.
    Zstd,
    /// Many frames, by `pzstd`.
    Frames,
}

impl Form {
    /// What compresses standard input.
    fn program(self) -> (&'static str, &'static [&'static str]) {
        match self {
            Self::Gzip => ("gzip", &["-1nc"]),
            Self::Pigz => ("pigz", &["-1", "-p2", "-nic"]),
            Self::Zstd => ("zstd", &["-1qc"]),
            Self::Frames => ("pzstd", &["-1", "-p2", "-qc"]),
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Gzip | Self::Pigz => "tar+gzip",
            Self::Zstd | Self::Frames => "tar+zstd",
        }
    }
}

/// A model of a few files, large and small, which no compression makes smaller: so its layer comes as slowly as its bytes.
pub fn files() -> Vec<File> {
    let sizes = [
        ("config.json", 1_234),
        ("first.safetensors", (1 << 20) + 17),
        ("weights/second.safetensors", 3 << 20),
        ("weights/third.safetensors", (2 << 20) - 1),
        ("empty", 0),
        ("weights/last.safetensors", (4 << 20) + 1),
    ];
    let file = |((path, size), seed): ((&str, usize), u64)| {
        let mut bytes = vec![0; size];
        sample::fill(&mut bytes, seed);
        File::new(path, bytes)
    };
    sizes.into_iter().zip(1..).map(file).collect()
}

/// The files as one compressed layer.
pub fn pack(files: &[File], form: Form) -> Artifact {
    let plain = pack::pack(files, Packing::OneTar, Dialect::Seed, std::path::Path::new("/nowhere"));
    let Content::Bytes(tar) = &plain.blobs[0].content else { panic!("the tar is on disk") };
    with_layer(&plain, form, compress(tar, form))
}

/// The artifact with this in place of its layer.
pub fn with_layer(plain: &Artifact, form: Form, layer: Vec<u8>) -> Artifact {
    let mut manifest: Value = serde_json::from_slice(&plain.manifest).unwrap();
    let blob = Blob { digest: pack::digest(&layer), content: Content::Bytes(layer) };
    manifest["layers"] = json!([{
        "mediaType": format!("application/vnd.cncf.modelpack.model.layer.v1.{}", form.suffix()),
        "digest": blob.digest, "size": blob.content.size()}]);
    let mut artifact = plain.clone();
    artifact.blobs[0] = blob;
    artifact.manifest = manifest.to_string().into_bytes();
    artifact
}

fn compress(bytes: &[u8], form: Form) -> Vec<u8> {
    let (program, arguments) = form.program();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}; run tools/test, which installs it"));
    let mut input = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{program}: {output:?}");
        output.stdout
    })
}
