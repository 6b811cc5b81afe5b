//! A file as a compressed layer: written once into a file without a name, and gone over as it is, for digests and spans.
//!
//! Frames and members begin where the file does and on its grid of chunks, so that a chunk costs itself. What was written is
//! decoded again at once: no byte is published that does not come back. Called by [`publish`](super::publish()).

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::build::nameless;
use super::digest::read_layer;
use super::layer::Layer;
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
use crate::index::pass::{Digesting, Event, Pass, Passed, Spacing};
use crate::index::spool::Spool;
use crate::index::{self, CHUNK, ChunkDigest, Compression, Entry};
use crate::oci::artifact::ModelLayer;
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Blob, Descriptor, Digest};
use crate::range::StoredRange;
use crate::repository::push::Piece;

/// As `gzip` and `zstd` compress when nothing is said.
const LEVELS: (i32, i32) = (6, 3);

/// A layer that was compressed.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// Digest and size of the stored bytes.
    pub blob: Blob,
    /// The digest of its content.
    pub diff_id: Digest,
    /// The stored bytes.
    pub piece: Piece,
    /// Itself as the index has it.
    pub layer: index::Layer,
    /// Its one name.
    pub entries: Vec<Entry>,
    /// The digests of its chunks.
    pub chunks: Vec<ChunkDigest>,
}

/// Compresses the layer, number `number` of the index's, by `how`, into a file in the folder `scratch`. Blocks; `read(n)` is
/// called for every `n` bytes of the file.
///
/// Takes as much room in `scratch` as the layer will in the registry, and some 16 MiB of memory.
///
/// # Errors
/// As [`digest`](super::digest::digest()), and `Storage` where the compressed bytes can't be written.
pub fn compress(
    layer: &Layer,
    number: usize,
    how: Compression,
    scratch: &Path,
    stop: &AtomicBool,
    read: &(dyn Fn(u64) + Sync),
) -> Result<Compressed> {
    let mut writing = Writing::new(layer, number, how, scratch)?;
    let mut encoder = Encoder::new(how)?;
    let mut diff_id = Hasher::new(Algorithm::Sha256);
    read_layer(layer, stop, read, &mut |len| vec![0; len], &mut |content| {
        diff_id.update(&content);
        encoder.push(&content, &mut |stored| writing.write(stored))
    })?;
    encoder.finish(&mut |stored| writing.write(stored))?;
    writing.finish(diff_id.finish())
}

/// Makes frames or members of content.
enum Encoder {
    Gzip,
    Zstd(Box<zstd::Writer>),
}

impl Encoder {
    fn new(how: Compression) -> Result<Self> {
        match how {
            Compression::Gzip => Ok(Self::Gzip),
            Compression::Zstd => {
                zstd::Writer::new(LEVELS.1, CHUNK).map(|writer| Self::Zstd(Box::new(writer)))
            }
        }
    }

    /// Takes a part of the layer that begins a frame: its headers, chunks of the file, what follows it.
    fn push(&mut self, content: &[u8], write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let chunk = usize::try_from(CHUNK).unwrap_or(usize::MAX);
        for piece in content.chunks(chunk) {
            let mut stored = Vec::new();
            match self {
                Self::Gzip => gzip::write_member(piece, LEVELS.0, &mut stored)?,
                Self::Zstd(writer) => {
                    writer.push(piece, &mut stored)?;
                    writer.cut(&mut stored)?;
                }
            }
            write(&stored)?;
        }
        Ok(())
    }

    fn finish(self, write: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let Self::Zstd(writer) = self else { return Ok(()) };
        let mut stored = Vec::new();
        writer.finish(&mut stored)?;
        write(&stored)
    }
}

/// The compressed bytes on their way into the file.
struct Writing {
    file: Arc<std::fs::File>,
    size: u64,
    stored: Hasher,
    described: ModelLayer,
    pass: Pass,
    spool: Spool,
    digesting: Digesting,
}

impl Writing {
    fn new(layer: &Layer, number: usize, how: Compression, scratch: &Path) -> Result<Self> {
        let described = described(layer)?;
        // Of gzip a member may begin a span when a quarter has gone by, so that each of a chunk does.
        let spacing = if how == Compression::Gzip { 4 * CHUNK } else { CHUNK };
        let pass = Pass::new(&described, number, Spacing::new(spacing)?)?;
        let (file, spool) = (Arc::new(nameless(scratch)?), Spool::new(nameless(scratch)?));
        let (stored, digesting) = (Hasher::new(Algorithm::Sha256), Digesting::default());
        Ok(Self { file, size: 0, stored, described, pass, spool, digesting })
    }

    fn write(&mut self, stored: &[u8]) -> Result<()> {
        let failed = |error| Error::from_source(Kind::Storage, "cannot put a compressed layer aside", error);
        self.file.write_all_at(stored, self.size).map_err(failed)?;
        self.size = self.size.saturating_add(u64::try_from(stored.len()).unwrap_or(u64::MAX));
        self.stored.update(stored);
        let (spool, digesting) = (&mut self.spool, &mut self.digesting);
        self.pass.step(stored, &mut |event| take(event, spool, digesting))
    }

    fn finish(mut self, diff_id: Digest) -> Result<Compressed> {
        let blob = Blob { digest: self.stored.finish(), size: self.size };
        let (spool, digesting) = (&mut self.spool, &mut self.digesting);
        let passed: Passed = self.pass.finish(&mut |event| take(event, spool, digesting))?;
        let mut layer = self.spool.layer(&self.described, &passed);
        layer.blob = blob.clone();
        layer.diff_id = Some(diff_id.clone());
        let piece = Piece::Open { file: self.file, range: StoredRange::new(0, self.size) };
        let chunks = self.digesting.finish();
        Ok(Compressed { blob, diff_id, piece, layer, entries: passed.entries, chunks })
    }
}

fn take(event: Event<'_>, spool: &mut Spool, digesting: &mut Digesting) -> Result<()> {
    match event {
        Event::Content { extent, bytes, .. } => {
            digesting.update(extent, bytes);
            Ok(())
        }
        Event::Window(window) => spool.push(&window),
        Event::Extent(..) | Event::Entry(_) => Ok(()),
    }
}

/// The layer as its manifest will have it, but for digest and size.
fn described(layer: &Layer) -> Result<ModelLayer> {
    let descriptor = Descriptor {
        media_type: layer.media_type(),
        digest: Digest::of(b""),
        size: 0,
        annotations: [("org.cncf.model.filepath".to_owned(), layer.file.path.clone())].into(),
    };
    let read = Artifact::read(Manifest { layers: vec![descriptor], ..Manifest::default() })?;
    let described = read.layers.into_iter().next();
    described.ok_or_else(|| Error::new(Kind::Invalid, "a layer is none"))
}
