//! Indexes that were made on this machine: one layer each, in a file of ours, with the digest of the head behind it.
//!
//! Made while the layer went by and its own digest was proved. So its chunks are kept under the layer's digest itself, and
//! what was kept then is found again. The file may have been damaged since: its head is checked by the digest behind
//! it, its sections but for the checkpoints by theirs, and whoever finds one wrong does without. Called by the loader, `find` and `index build`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;

use super::bound::refuse_large;
use super::format::{self, HEAD_LIMIT};
use super::{ChunkDigest, Coding, Entry, EntryKind, Home, Index, Layer, Section, sections};
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Digest};

/// The length of the digest behind the index.
const SEAL: u64 = 32;

/// The longest section that is read when an index is opened: the chunk digests of 512 GiB.
const ALONG: u64 = 16 << 20;

/// Where the head's length stands (docs/index-format.md).
const LENGTH_AT: u64 = 16;

/// Writes the index of `layer`, whose entries and chunk digests these are, into the empty `file`.
///
/// Blocks on the local disk. The entries' layer may be any number, all of them the same.
///
/// # Errors
/// As [`format::encode()`]; [`Kind::Storage`] where the file can't be written.
pub fn write(file: &File, layer: &Layer, entries: &[Entry], digests: Vec<ChunkDigest>) -> Result<()> {
    let entries = entries.iter().cloned().map(|entry| renumbered(entry, 0)).collect();
    let index = Index { entries, layers: vec![layer.clone()], warnings: Vec::new() };
    let encoded = format::encode(&index, &[digests])?;
    let mut at = 0;
    let mut put = |piece: &[u8]| {
        let written = file.write_all_at(piece, at);
        at = at.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        written.map_err(|error| Error::from_source(Kind::Storage, "cannot write an index", error))
    };
    encoded.each(&mut put)?;
    put(&encoded.head.digest.value())
}

/// The layer `blob` as the index in `file` has it, and its entries, as of number `number` of an artifact's layers. Chunk digests
/// and the table of spans come along, verified; checkpoints stay in the file. Blocks on the local disk; costs memory as
/// [`format::decode()`], and 16 MiB for each of both at most.
///
/// # Errors
/// [`Kind::Invalid`] and [`Kind::Integrity`] where it is not such an index, or not of this layer, and [`Kind::Storage`] where
/// it can't be read: the caller does without it.
pub fn open(file: Arc<File>, blob: &Blob, number: usize) -> Result<(Layer, Vec<Entry>)> {
    let (mut layer, entries) = said(file)?;
    if layer.blob != *blob {
        return Err(of_another(&layer, &blob.digest));
    }
    if let Some(bound) = &mut layer.bound {
        bound.kept_as = blob.digest.clone();
        take_along(&mut bound.chunks)?;
    }
    if let Coding::Spans(spans) = &mut layer.coding {
        take_along(&mut spans.table)?;
    }
    let entries = entries.into_iter().map(|entry| renumbered(entry, number)).collect();
    Ok((layer, entries))
}

/// Reads all of the index in `file`, checkpoints too, and compares it with its digests. Blocks on the local disk; costs memory as
/// its longest section and [`format::decode()`].
///
/// # Errors
/// As [`open`].
pub fn check(file: &Arc<File>, layer: &Digest) -> Result<()> {
    let (found, _) = said(Arc::clone(file))?;
    if found.blob.digest != *layer {
        return Err(of_another(&found, layer));
    }
    // Waits for nothing where there is no repository to ask.
    let checked = sections::check(None, &found).now_or_never();
    checked.unwrap_or_else(|| Err(Error::new(Kind::Storage, "reading an index was interrupted")))
}

/// What the head of the index in `file` says, which is right: its one layer, and the entries.
fn said(file: Arc<File>) -> Result<(Layer, Vec<Entry>)> {
    let metadata = file.metadata();
    let len =
        metadata.map_err(|error| Error::from_source(Kind::Storage, "cannot read an index", error))?.len();
    let size = len.saturating_sub(SEAL);
    let said = read(&file, LENGTH_AT, 8)?;
    let said = said.first_chunk().map_or(u64::MAX, |said| u64::from_le_bytes(*said));
    if said > HEAD_LIMIT.min(size) {
        return Err(Error::new(Kind::Invalid, format!("the head of an index says it has {said} bytes")));
    }
    let (head, seal) = (read(&file, 0, said)?, read(&file, size, SEAL)?);
    if Digest::of(&head).value() != seal {
        return Err(Error::new(Kind::Integrity, "the head of an index is not what was written"));
    }
    let mut head = format::decode_at(&head, size, &Home::File(file))?;
    refuse_large(&head, said)?;
    match (head.layers.pop(), head.layers.is_empty()) {
        (Some(layer), true) => Ok((layer, head.entries)),
        _ => Err(Error::new(Kind::Invalid, "an index of one layer has another number of them")),
    }
}

fn of_another(found: &Layer, layer: &Digest) -> Error {
    Error::new(Kind::Invalid, format!("an index is of layer {} and not of {layer}", found.blob.digest))
}

/// Reads a section and compares it with its digest, so that damage is found while the layer can still go by instead, and none
/// that comes later counts. A very long one is left to who touches it.
fn take_along(section: &mut Section) -> Result<()> {
    let Home::File(file) = &section.home else { return Ok(()) };
    if section.range.len() > ALONG {
        return Ok(());
    }
    let bytes = read(file, section.range.start(), section.range.len())?;
    if !section.digest.matches(&bytes) {
        return Err(Error::new(Kind::Integrity, "a section of an index is not what was written"));
    }
    section.bytes = Some(bytes);
    Ok(())
}

/// The entry as one of the layer `number`.
pub(crate) fn renumbered(mut entry: Entry, number: usize) -> Entry {
    entry.layer = number;
    if let EntryKind::File { extent: Some(id), .. } = &mut entry.kind {
        id.layer = number;
    }
    entry
}

fn read(file: &File, at: u64, len: u64) -> Result<Bytes> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let read = file.read_exact_at(&mut bytes, at);
    read.map_err(|error| Error::from_source(Kind::Storage, "cannot read an index", error))?;
    Ok(bytes.into())
}

#[cfg(test)]
#[path = "local_tests.rs"]
pub(crate) mod tests;
