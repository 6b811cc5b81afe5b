//! Whether a file on disk is a file of the model, byte for byte, found out without fetching it.
//!
//! Called before a file is brought, and by who asks whether a folder still is what was pulled.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::content::Loader;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::fs::Model;
use crate::index::{CHUNK, ChunkDigest, ExtentId, Grid};
use crate::oci::Digest;
use crate::oci::digest::Hasher;
use crate::range::ContentRange;

/// What a file was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    /// The model's, by these digests.
    Equal(By),
    /// Another: of another size, or with other bytes; where, as far as it is known, chunk by chunk.
    Differs(Vec<ContentRange>),
    /// Of the right size, and the artifact has no digest for it alone.
    Unknown,
}

/// What says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The bound index, chunk by chunk.
    Index,
    /// The digest of the layer, which the file is by itself.
    Layer,
}

/// What a file of the model must be.
enum Expected {
    Chunks(Vec<ChunkDigest>),
    Whole(Digest),
    Unknown,
}

/// Compares `file` with the model's file of `size` bytes at `extent` (`None`: an empty file). Reads all of it, and fetches
/// nothing but a section of the index.
///
/// # Errors
/// `Storage` where the file can't be read; those of reading the bound index.
pub async fn compare(model: &Model, extent: Option<ExtentId>, size: u64, file: File) -> Result<Compared> {
    let len = file.metadata().storage(|| "cannot read a file's size".to_owned())?.len();
    let Some(extent) = extent.filter(|_| len == size) else {
        return Ok(if len == size { Compared::Equal(By::Index) } else { Compared::Differs(Vec::new()) });
    };
    let expected = expected(model, &model.loader, extent).await?;
    let read = tokio::task::spawn_blocking(move || match expected {
        Expected::Chunks(digests) => by_chunks(&file, size, &digests),
        Expected::Whole(digest) => by_whole(&file, size, &digest),
        Expected::Unknown => Ok(Compared::Unknown),
    });
    read.await.map_err(|error| Error::from_source(Kind::Kernel, "reading was interrupted", error))?
}

async fn expected(model: &Model, loader: &Arc<Loader>, id: ExtentId) -> Result<Expected> {
    if let Some(digests) = loader.chunk_digests(id).await? {
        return Ok(Expected::Chunks(digests));
    }
    Ok(model.whole_blob(id).map_or(Expected::Unknown, |blob| Expected::Whole(blob.digest.clone())))
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

fn by_whole(file: &File, size: u64, digest: &Digest) -> Result<Compared> {
    let grid = Grid::new(size);
    let mut hasher = Hasher::new(digest.algorithm());
    for chunk in 0..grid.chunks() {
        hasher.update(&read(file, grid.range(chunk))?);
    }
    let equal = hasher.finish() == *digest;
    Ok(if equal { Compared::Equal(By::Layer) } else { Compared::Differs(Vec::new()) })
}

fn read(file: &File, range: ContentRange) -> Result<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(range.len().min(CHUNK)).unwrap_or(0)];
    file.read_exact_at(&mut bytes, range.start()).storage(|| "cannot read a file".to_owned())?;
    Ok(bytes)
}
