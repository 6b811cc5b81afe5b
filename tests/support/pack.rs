//! Artifacts made of files, as the tools in the wild write them: raw or tar layers, in three dialects.
//!
//! The shapes follow modctl (one file a layer, annotations with path and metadata) and AIKit (one tar of many files under
//! the name of its kind); the oddities of each tool are the fixtures' business, not this file's.

use std::fs::File as Disk;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use weightfs::range::StoredRange;
use weightfs::testing::registry::Synthetic;

/// 2026-01-02T03:04:05Z, the time every file carries.
pub const MTIME: u64 = 1_767_323_045;

/// Bytes in memory, on disk, or nowhere.
#[derive(Clone, Debug)]
pub enum Content {
    Bytes(Vec<u8>),
    Disk(PathBuf),
    /// Made as they are read, by the library's own registry, which alone has them.
    Made(Synthetic),
}

impl Content {
    /// Content of `size` bytes that takes no room, and shares none of its pages of 4 KiB with what begins elsewhere. Costs a pass
    /// over it, in `sha256sum`.
    pub fn made(first: u64, size: u64) -> Self {
        let mut made = Synthetic { digest: weightfs::oci::Digest::of(b""), size, first };
        made.digest = format!("sha256:{}", sha256sum_of(&mut Making::of(&made))).parse().unwrap();
        Self::Made(made)
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Disk(path) => path.metadata().unwrap().len(),
            Self::Made(made) => made.size,
        }
    }

    /// `sha256:…` of the bytes. What is on disk is left to `sha256sum`, which is fast in a debug build too.
    pub fn digest(&self) -> String {
        match self {
            Self::Bytes(bytes) => digest(bytes),
            Self::Disk(path) => format!("sha256:{}", sha256sum(path)),
            Self::Made(made) => made.digest.to_string(),
        }
    }

    /// Its bytes, from the first on.
    pub fn reader(&self) -> Box<dyn Read + '_> {
        match self {
            Self::Bytes(bytes) => Box::new(bytes.as_slice()),
            Self::Disk(path) => Box::new(Disk::open(path).unwrap()),
            Self::Made(made) => Box::new(Making::of(made)),
        }
    }
}

/// The bytes of a blob that is made as it is read, as far as they have not been read.
struct Making<'a> {
    made: &'a Synthetic,
    at: u64,
}

impl<'a> Making<'a> {
    fn of(made: &'a Synthetic) -> Self {
        Self { made, at: 0 }
    }
}

impl Read for Making<'_> {
    fn read(&mut self, room: &mut [u8]) -> std::io::Result<usize> {
        let end = self.made.size.min(self.at + room.len() as u64);
        let part = self.made.part(StoredRange::new(self.at, end));
        room[..part.len()].copy_from_slice(&part);
        self.at = end;
        Ok(part.len())
    }
}

/// One file of a model: its path inside and its bytes.
#[derive(Clone, Debug)]
pub struct File {
    pub path: String,
    pub content: Content,
}

impl File {
    /// A file with these bytes.
    pub fn new(path: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.into(), content: Content::Bytes(bytes.into()) }
    }
}

/// How files become layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// A layer a file; the blob is the file.
    Raw,
    /// A layer a file; the blob is a tar of it.
    Tar,
    /// One tar layer with all files.
    OneTar,
}

/// Whose media types and annotations are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `application/vnd.cncf.model.*`.
    Upstream,
    /// `application/vnd.cnai.model.*`.
    Legacy,
    /// `application/vnd.cncf.modelpack.*`: no annotations, flat config; names come from tar headers.
    Seed,
}

/// A blob of an artifact, with what its descriptor says.
#[derive(Clone, Debug)]
pub struct Blob {
    pub digest: String,
    pub content: Content,
}

/// A manifest and everything it names.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Layers in order, then the config.
    pub blobs: Vec<Blob>,
    pub manifest: Vec<u8>,
    pub media_type: String,
}

impl Artifact {
    /// The manifest's digest.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Bytes of all layers.
    pub fn layer_bytes(&self) -> u64 {
        self.blobs.iter().rev().skip(1).map(|blob| blob.content.size()).sum()
    }

    /// Writes an OCI image layout with the artifact under `tag`, beside those that are there already. What is made as it is read
    /// is not in it.
    pub fn write_layout(&self, folder: &Path, tag: &str) {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        for blob in self.blobs.iter().filter(|blob| !matches!(blob.content, Content::Made(_))) {
            let mut file = Disk::create(blobs.join(hex(&blob.digest))).unwrap();
            std::io::copy(&mut blob.content.reader(), &mut file).unwrap();
        }
        std::fs::write(blobs.join(hex(&self.digest())), &self.manifest).unwrap();
        let there = std::fs::read(folder.join("index.json")).ok();
        let mut manifests = there
            .map_or(json!([]), |index| serde_json::from_slice::<Value>(&index).unwrap()["manifests"].take());
        manifests.as_array_mut().unwrap().push(json!({
            "mediaType": self.media_type, "digest": self.digest(), "size": self.manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": tag}}));
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
    }
}

/// An artifact of these files, as modctl would build it (AIKit for [`Packing::OneTar`]). Tars of files that lie on disk
/// are written under `work`.
pub fn pack(files: &[File], packing: Packing, dialect: Dialect, work: &Path) -> Artifact {
    let layers: Vec<(Value, Blob)> = match packing {
        Packing::OneTar => vec![one_tar(files, dialect)],
        _ => files.iter().map(|file| layer(file, packing, dialect, work)).collect(),
    };
    let diff_ids = layers.iter().map(|(_, blob)| blob.digest.clone()).collect::<Vec<_>>();
    let (descriptors, mut blobs): (Vec<Value>, Vec<Blob>) = layers.into_iter().unzip();
    let config = Content::Bytes(config(dialect, &diff_ids).to_string().into_bytes());
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": format!("{}.manifest.v1+json", prefix(dialect)),
        "config": {"mediaType": format!("{}.config.v1+json", prefix(dialect)),
                   "digest": config.digest(), "size": config.size()},
        "layers": descriptors,
    });
    blobs.push(Blob { digest: config.digest(), content: config });
    Artifact { blobs, manifest: manifest.to_string().into_bytes(), media_type: MANIFEST.to_owned() }
}

/// The media type of an OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn prefix(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Upstream => "application/vnd.cncf.model",
        Dialect::Legacy => "application/vnd.cnai.model",
        Dialect::Seed => "application/vnd.cncf.modelpack",
    }
}

fn config(dialect: Dialect, diff_ids: &[String]) -> Value {
    match dialect {
        Dialect::Upstream => json!({
            "descriptor": {"createdAt": "2026-01-02T03:04:05Z", "name": "sample", "family": "llama"},
            "config": {"architecture": "transformer", "format": "safetensors", "paramSize": "1b", "precision": "bfloat16"},
            "modelfs": {"type": "layers", "diffIds": diff_ids}}),
        Dialect::Legacy => json!({
            "descriptor": {"createdAt": "2026-01-02T03:04:05Z", "name": "sample", "family": "llama"},
            "config": {"architecture": "transformer", "format": "safetensors", "param_size": "1b", "precision": "bfloat16"},
            "modelfs": {"type": "layers", "diff_ids": diff_ids}}),
        Dialect::Seed => json!({
            "name": "sample", "version": "1.0", "framework": "pytorch", "frameworkVersion": "2.15",
            "format": "safetensors", "architecture": "transformer", "parameters": 1_000_000_000_u64, "precision": "bfloat16"}),
    }
}

fn layer(file: &File, packing: Packing, dialect: Dialect, work: &Path) -> (Value, Blob) {
    let content = match packing {
        Packing::Raw => file.content.clone(),
        _ => tar_of_one(file, work),
    };
    let suffix = if packing == Packing::Raw { "raw" } else { "tar" };
    let blob = Blob { digest: content.digest(), content };
    let mut descriptor = json!({
        "mediaType": layer_type(dialect, kind(&file.path), suffix),
        "digest": blob.digest, "size": blob.content.size()});
    if let Some(annotations) = annotations(file, dialect) {
        descriptor["annotations"] = annotations;
    }
    (descriptor, blob)
}

fn layer_type(dialect: Dialect, kind: &str, suffix: &str) -> String {
    match dialect {
        Dialect::Seed => format!("{}.model.layer.v1.{suffix}", prefix(dialect)),
        _ => format!("{}.{kind}.v1.{suffix}", prefix(dialect)),
    }
}

fn kind(path: &str) -> &'static str {
    match path.rsplit('.').next() {
        Some("safetensors" | "gguf" | "bin") => "weight",
        Some("md") => "doc",
        _ => "weight.config",
    }
}

fn annotations(file: &File, dialect: Dialect) -> Option<Value> {
    let family = match dialect {
        Dialect::Upstream => "org.cncf.model",
        Dialect::Legacy => "org.cnai.model",
        Dialect::Seed => return None,
    };
    let name = file.path.rsplit('/').next().unwrap_or_default();
    let metadata = json!({"name": name, "mode": 0o644, "uid": 0, "gid": 0, "size": file.content.size(),
        "mtime": "2026-01-02T03:04:05Z", "typeflag": 0});
    Some(json!({
        format!("{family}.filepath"): file.path,
        format!("{family}.file.metadata+json"): metadata.to_string(),
    }))
}

fn one_tar(files: &[File], dialect: Dialect) -> (Value, Blob) {
    let mut bytes = Vec::new();
    for file in files {
        write_member(&mut bytes, file);
    }
    bytes.extend([0; 1024]);
    let content = Content::Bytes(bytes);
    let blob = Blob { digest: content.digest(), content };
    let mut descriptor = json!({
        "mediaType": layer_type(dialect, "dataset", "tar"), "digest": blob.digest, "size": blob.content.size()});
    if dialect != Dialect::Seed {
        descriptor["annotations"] = json!({"org.cncf.model.filepath": "dataset"});
    }
    (descriptor, blob)
}

fn tar_of_one(file: &File, work: &Path) -> Content {
    match &file.content {
        Content::Bytes(_) | Content::Made(_) => {
            let mut bytes = Vec::new();
            write_member(&mut bytes, file);
            bytes.extend([0; 1024]);
            Content::Bytes(bytes)
        }
        Content::Disk(_) => {
            let path = work.join(format!("{}.tar", file.path.replace('/', "_")));
            let mut tar = Disk::create(&path).unwrap();
            write_member(&mut tar, file);
            tar.write_all(&[0; 1024]).unwrap();
            Content::Disk(path)
        }
    }
}

/// Header, bytes and padding of one regular file, in USTAR.
fn write_member(to: &mut impl Write, file: &File) {
    to.write_all(&header(&file.path, file.content.size())).unwrap();
    let written = std::io::copy(&mut file.content.reader(), to).unwrap();
    let padding = written.next_multiple_of(512) - written;
    to.write_all(&vec![0; padding as usize]).unwrap();
}

fn header(path: &str, size: u64) -> [u8; 512] {
    assert!(path.len() <= 100, "the tests' own tar writes names of up to 100 bytes");
    let mut block = [0_u8; 512];
    let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{size:011o}\0"));
    put(136, &format!("{MTIME:011o}\0"));
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// `sha256:…` of bytes in memory.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// The part of a digest after the colon.
pub fn hex(digest: &str) -> &str {
    digest.split_once(':').unwrap().1
}

/// What `sha256sum` says of all that can be read here, as 64 hex digits.
fn sha256sum_of(reader: &mut impl Read) -> String {
    let mut program = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut piece) = (program.stdin.take().unwrap(), vec![0; 1 << 20]);
    loop {
        let count = reader.read(&mut piece).unwrap();
        if count == 0 {
            break;
        }
        input.write_all(&piece[..count]).unwrap();
    }
    drop(input);
    let said = program.wait_with_output().unwrap();
    assert!(said.status.success(), "sha256sum: {said:?}");
    String::from_utf8(said.stdout).unwrap()[..64].to_owned()
}

/// What `sha256sum` says of a file, as 64 hex digits.
pub fn sha256sum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg("--").arg(path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let wrong = || panic!("sha256sum {}: {}", path.display(), String::from_utf8_lossy(&output.stderr));
    assert!(
        output.status.success(),
        "sha256sum {}: {}",
        path.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    said.trim_start_matches('\\').get(..64).map_or_else(wrong, str::to_owned)
}
