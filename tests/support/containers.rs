//! Container images of a test's own making: archives with permissions, and the manifests that name them.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::json;
use weightfs::oci::Digest;

use super::pack::{Artifact, Blob, Content};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// A member of an archive.
#[derive(Clone, Copy, Debug)]
pub enum Member<'a> {
    /// A file: path, permissions, bytes.
    File(&'a str, u32, &'a [u8]),
    /// A folder: path with a slash at its end, permissions.
    Folder(&'a str, u32),
    /// A symbolic link: path, target.
    Link(&'a str, &'a str),
}

/// An archive with these members, of root, in this order.
pub fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut archive = Vec::new();
    for member in members {
        let (path, mode, kind, target, content): (_, _, _, _, &[u8]) = match *member {
            Member::File(path, mode, content) => (path, mode, b'0', "", content),
            Member::Folder(path, mode) => (path, mode, b'5', "", &[]),
            Member::Link(path, target) => (path, 0o777, b'2', target, &[]),
        };
        archive.extend(header(path, mode, kind, target, content.len()));
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

/// A header of POSIX's ustar (IEEE 1003.1, pax, "ustar Interchange Format").
fn header(path: &str, mode: u32, kind: u8, target: &str, size: usize) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, text: &[u8]| block[at..at + text.len()].copy_from_slice(text);
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    put(108, b"0000000\x000000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0        ");
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// A layer: its archive, and its stored bytes.
#[derive(Clone, Debug)]
pub struct Layer {
    archive: Vec<u8>,
    stored: Vec<u8>,
    end: &'static str,
}

impl Layer {
    /// The archive as it is.
    pub fn plain(archive: Vec<u8>) -> Self {
        Self { stored: archive.clone(), archive, end: "" }
    }

    /// The archive compressed by gzip.
    pub fn gzip(archive: Vec<u8>) -> Self {
        let mut command = Command::new("gzip");
        let mut child = command.arg("-nc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, bytes) = (child.stdin.take().unwrap(), archive.clone());
        let writer = std::thread::spawn(move || stdin.write_all(&bytes).unwrap());
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        Self { archive, stored: output.stdout, end: "+gzip" }
    }

    /// The digest of its content.
    pub fn diff_id(&self) -> Digest {
        Digest::of(&self.archive)
    }

    /// The digest of its stored bytes.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.stored)
    }
}

/// An image of these layers, the lowest first, whose config says the truth.
pub fn image(layers: &[Layer]) -> Artifact {
    let said: Vec<Digest> = layers.iter().map(Layer::diff_id).collect();
    image_saying(layers, &said)
}

/// The same, whose config says that its layers hold these.
pub fn image_saying(layers: &[Layer], diff_ids: &[Digest]) -> Artifact {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
    let config = json!({ "architecture": architecture, "os": "linux", "config": {}, "rootfs": rootfs });
    let config = config.to_string().into_bytes();
    let named = |layer: &Layer| {
        let media_type = format!("{LAYER}{}", layer.end);
        json!({ "mediaType": media_type, "digest": layer.digest(), "size": layer.stored.len() })
    };
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": Digest::of(&config),
            "size": config.len(),
        },
        "layers": layers.iter().map(named).collect::<Vec<_>>(),
    });
    let blobs = layers.iter().map(|layer| layer.stored.clone()).chain([config]);
    let blob =
        |bytes: Vec<u8>| Blob { digest: Digest::of(&bytes).to_string(), content: Content::Bytes(bytes) };
    Artifact {
        blobs: blobs.map(blob).collect(),
        manifest: manifest.to_string().into_bytes(),
        media_type: MANIFEST.to_owned(),
    }
}

/// The chain that these layers are, the lowest first (image specification, config.md, "Layer ChainID").
pub fn chain(layers: &[Layer]) -> Digest {
    let mut contents = layers.iter().map(Layer::diff_id);
    let first = contents.next().unwrap();
    contents.fold(first, |below, own| Digest::of(format!("{below} {own}").as_bytes()))
}
