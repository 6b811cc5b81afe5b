//! One file as a compressed tar that can be read at random: a frame or member of its own for the header, for each chunk of the
//! file, and for what ends the archive.
//!
//! What is written is ordinary zstd with a seek table, or ordinary gzip of many members: `tar x` reads it. It goes into a
//! file without a name, since its digest is known at the end only; and by as any layer would that somebody else wrote
//! ([`Pass`]), so that its index is that of what is there. Called by [`publish`](super::publish()).

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use nix::libc;

use super::layer::Layer;
use crate::codec::{gzip, zstd};
use crate::error::{Error, Kind, Result};
use crate::index::pass::{Digesting, Event, Pass, Spacing};
use crate::index::spool::Spool;
use crate::index::{self, CHUNK, ChunkDigest, Compression, Entry};
use crate::oci::artifact::ModelLayer;
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::manifest::Manifest;
use crate::oci::{Artifact, Blob, Descriptor, Digest};
use crate::range::StoredRange;
use crate::repository::push::Piece;

/// The level of libzstd that `zstd` itself takes.
const LEVEL: i32 = 3;

/// How many pieces of a file are in memory for each core.
const PIECES: usize = 4;

/// A layer that was compressed.
#[derive(Clone, Debug)]
pub struct Compressed {
    /// Digest and size of its stored bytes.
    pub blob: Blob,
    /// The digest of its content.
    pub diff_id: Digest,
    /// The digests of the file's chunks.
    pub chunks: Vec<ChunkDigest>,
    /// What the index says of it, but for these.
    pub layer: index::Layer,
    /// The file's entry, of layer 0.
    pub entries: Vec<Entry>,
    file: Arc<File>,
}

impl Compressed {
    /// Its stored bytes, for an upload.
    #[must_use]
    pub fn pieces(&self) -> Vec<Piece> {
        vec![Piece::Open { file: self.file.clone(), range: StoredRange::new(0, self.blob.size) }]
    }
}

/// Compresses a layer, into a file in the folder for temporary ones. Blocks, on as many threads as there are cores;
/// `read(n)` is called for every `n` bytes of content.
///
/// Costs one reading of the file, its compression and one decompression, room on the disk for what is stored, and 8 MiB
/// for each core.
///
/// # Errors
/// `Busy` where the file is not the one that was found or changed while it was read, naming it; `Storage` where it can't
/// be read, or there is no room; `Deadline` where `stop` was set.
pub fn compress(
    layer: &Layer,
    how: Compression,
    stop: &AtomicBool,
    read: &(dyn Fn(u64) + Sync),
) -> Result<Compressed> {
    let mut writing = Writing::begin(layer, how)?;
    let mut content = Content::open(layer)?;
    let cores = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Deadline, format!("{} was given up", layer.file.place.display())));
        }
        let pieces = content.next(cores * PIECES)?;
        if pieces.is_empty() {
            break;
        }
        for (piece, stored) in pieces.iter().zip(side_by_side(how, &pieces, cores)) {
            writing.take(piece, &stored?)?;
            read(length(piece.len()));
        }
    }
    writing.finish()
}

/// Each piece compressed, in order.
fn side_by_side(how: Compression, pieces: &[Bytes], cores: usize) -> Vec<Result<Vec<u8>>> {
    let share = pieces.len().div_ceil(cores).max(1);
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            pieces.chunks(share).map(|own| scope.spawn(move || one_by_one(how, own))).collect();
        let interrupted = || vec![Err(Error::new(Kind::Kernel, "a thread that compresses has ended"))];
        threads.into_iter().flat_map(|thread| thread.join().unwrap_or_else(|_| interrupted())).collect()
    })
}

fn one_by_one(how: Compression, pieces: &[Bytes]) -> Vec<Result<Vec<u8>>> {
    let mut zstd = zstd::Compressor::new(LEVEL);
    let mut compressed = |piece: &Bytes| {
        let mut stored = Vec::new();
        match how {
            Compression::Gzip => gzip::member(piece, &mut stored)?,
            Compression::Zstd => zstd.as_mut().map_err(|error| error.clone())?.frame(piece, &mut stored)?,
        };
        Ok(stored)
    };
    pieces.iter().map(&mut compressed).collect()
}

/// The content in pieces, cut where the file begins, at each of its chunks, and where it ends.
struct Content<'a> {
    layer: &'a Layer,
    open: File,
    /// How much of the file has been read; `None` before the header.
    at: Option<u64>,
    ended: bool,
}

impl<'a> Content<'a> {
    fn open(layer: &'a Layer) -> Result<Self> {
        Ok(Self { layer, open: layer.file.open()?, at: None, ended: false })
    }

    /// The next pieces, so many or fewer; none at the end.
    fn next(&mut self, count: usize) -> Result<Vec<Bytes>> {
        let mut pieces = Vec::with_capacity(count);
        while pieces.len() < count {
            let Some(piece) = self.piece()? else { break };
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn piece(&mut self) -> Result<Option<Bytes>> {
        let file = &self.layer.file;
        let Some(at) = self.at else {
            self.at = Some(0);
            return Ok(Some(self.layer.headers.clone()));
        };
        if at < file.size {
            let mut piece = vec![0; usize::try_from(CHUNK.min(file.size - at)).unwrap_or(0)];
            self.open.read_exact_at(&mut piece, at).map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => file.changed(),
                _ => {
                    Error::from_source(Kind::Storage, format!("cannot read {}", file.place.display()), error)
                }
            })?;
            self.at = Some(at.saturating_add(length(piece.len())));
            return Ok(Some(piece.into()));
        }
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        file.check()?;
        let tail = usize::try_from(self.layer.tail).unwrap_or(0);
        Ok(Some(vec![0; tail].into()))
    }
}

/// What is stored, as it is written.
struct Writing {
    how: Compression,
    model: ModelLayer,
    file: File,
    size: u64,
    stored: Hasher,
    content: Hasher,
    frames: Vec<(u32, u32)>,
    pass: Pass,
    chunks: Digesting,
    spool: Spool,
}

impl Writing {
    fn begin(layer: &Layer, how: Compression) -> Result<Self> {
        let model = described(layer, &Blob { digest: Digest::of(b""), size: 0 })?;
        let spacing = Spacing::new(match how {
            // A member begins a span when a quarter has gone by: each chunk's does, and none is cut within.
            Compression::Gzip => 2 * CHUNK,
            // Frames are joined up to this: none of those of chunks is.
            Compression::Zstd => CHUNK,
        })?;
        Ok(Self {
            how,
            file: unnamed()?,
            size: 0,
            stored: Hasher::new(Algorithm::Sha256),
            content: Hasher::new(Algorithm::Sha256),
            frames: Vec::new(),
            pass: Pass::new(&model, 0, spacing)?,
            chunks: Digesting::default(),
            spool: Spool::new(unnamed()?),
            model,
        })
    }

    /// A piece of content, and what is stored of it.
    fn take(&mut self, content: &[u8], stored: &[u8]) -> Result<()> {
        self.content.update(content);
        let frame = u32::try_from(stored.len()).ok().zip(u32::try_from(content.len()).ok());
        self.frames.extend(frame);
        self.put(stored)
    }

    fn put(&mut self, stored: &[u8]) -> Result<()> {
        let failed = |error| Error::from_source(Kind::Storage, "cannot put a compressed layer aside", error);
        let hint = "set TMPDIR to a folder with room for the largest file";
        self.file.write_all_at(stored, self.size).map_err(|error| failed(error).hint(hint))?;
        self.size = self.size.saturating_add(length(stored.len()));
        self.stored.update(stored);
        let (chunks, spool) = (&mut self.chunks, &mut self.spool);
        self.pass.step(stored, &mut |event| sink(event, chunks, spool))
    }

    fn finish(mut self) -> Result<Compressed> {
        if self.how == Compression::Zstd {
            let table = zstd::seekable::table(&self.frames)?;
            self.put(&table)?;
        }
        let Self { mut model, file, size, stored, content, pass, mut chunks, mut spool, .. } = self;
        let passed = pass.finish(&mut |event| sink(event, &mut chunks, &mut spool))?;
        let blob = Blob { digest: stored.finish(), size };
        model.descriptor.digest = blob.digest.clone();
        let diff_id = content.finish();
        let layer = index::Layer { diff_id: Some(diff_id.clone()), ..spool.layer(&model, &passed) };
        let (chunks, entries) = (chunks.finish(), passed.entries);
        Ok(Compressed { blob, diff_id, chunks, layer, entries, file: Arc::new(file) })
    }
}

fn sink(event: Event<'_>, chunks: &mut Digesting, spool: &mut Spool) -> Result<()> {
    match event {
        Event::Content { extent, bytes, .. } => chunks.update(extent, bytes),
        Event::Window(window) => spool.push(&window)?,
        Event::Extent(..) | Event::Entry(_) => {}
    }
    Ok(())
}

/// The layer as a reader finds it in the manifest.
fn described(layer: &Layer, blob: &Blob) -> Result<ModelLayer> {
    let annotations = [("org.cncf.model.filepath".to_owned(), layer.file.path.clone())].into();
    let (digest, size, media_type) = (blob.digest.clone(), blob.size, layer.media_type());
    let layers = vec![Descriptor { media_type, digest, size, annotations }];
    let artifact = Artifact::read(Manifest { layers, ..Manifest::default() })?;
    artifact.layers.into_iter().next().ok_or_else(|| Error::new(Kind::Invalid, "a layer is none"))
}

/// A file in the folder for temporary ones that has no name, so that it goes with this process.
fn unnamed() -> Result<File> {
    let folder = std::env::temp_dir();
    let made =
        OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(&folder);
    made.map_err(|error| {
        Error::from_source(Kind::Storage, format!("cannot make a file in {}", folder.display()), error)
            .hint("set TMPDIR to another folder")
    })
}

fn length(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
