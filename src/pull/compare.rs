//! Whether a file on disk is a file of the model, found out by reading it and fetching none of it.
//!
//! Called by who asks whether a folder still is what was pulled.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::error::{Error, Kind, Result, StorageContext};
use crate::fs::Model;
use crate::index::{CHUNK, ChunkDigest, ExtentId, Grid};
use crate::oci::Digest;
use crate::oci::digest::Hasher;
use crate::range::ContentRange;

/// What a file was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The model's.
    Equal(By),
    /// Another; where, as far as that is known.
    Differs(Vec<ContentRange>),
    /// Of the right size, and nothing says what it must be by itself.
    Unknown,
}

/// What says that a file is the model's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The bound index, chunk by chunk.
    Index,
    /// The digest of the layer, which the file is by itself.
    Layer,
}

/// Compares `file` with the model's file of `size` bytes at `extent` (`None`: an empty one).
///
/// Reads all of it; asks the network for a section of the bound index at most.
///
/// # Errors
/// `Storage` where the file can't be read; those of reading the bound index.
pub async fn compare(model: &Model, extent: Option<ExtentId>, size: u64, file: File) -> Result<Compared> {
    if file.metadata().storage(|| "cannot read a file's size".to_owned())?.len() != size {
        return Ok(Compared::Differs(Vec::new()));
    }
    let Some(extent) = extent else { return Ok(Compared::Equal(By::Index)) };
    let digests = model.loader.chunk_digests(extent).await?;
    let layer = model.whole_blob(extent).map(|blob| blob.digest.clone());
    let read = tokio::task::spawn_blocking(move || match (digests, layer) {
        (Some(digests), _) => by_chunks(&file, size, &digests),
        (None, Some(layer)) => as_a_whole(&file, size, &layer),
        (None, None) => Ok(Compared::Unknown),
    });
    read.await.map_err(|error| Error::from_source(Kind::Storage, "reading was interrupted", error))?
}

fn by_chunks(file: &File, size: u64, digests: &[ChunkDigest]) -> Result<Compared> {
    let grid = Grid::new(size);
    let mut wrong = Vec::new();
    for (chunk, digest) in (0..grid.chunks()).zip(digests) {
        let range = grid.range(chunk);
        if ChunkDigest::of(&read(file, range)?) != *digest {
            wrong.push(range);
        }
    }
    Ok(if wrong.is_empty() { Compared::Equal(By::Index) } else { Compared::Differs(wrong) })
}

fn as_a_whole(file: &File, size: u64, layer: &Digest) -> Result<Compared> {
    let grid = Grid::new(size);
    let mut hasher = Hasher::new(layer.algorithm());
    for chunk in 0..grid.chunks() {
        hasher.update(&read(file, grid.range(chunk))?);
    }
    let equal = hasher.finish() == *layer;
    Ok(if equal { Compared::Equal(By::Layer) } else { Compared::Differs(Vec::new()) })
}

fn read(file: &File, range: ContentRange) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.len().min(CHUNK)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, range.start()).storage(|| "cannot read a file".to_owned())?;
    Ok(bytes)
}
