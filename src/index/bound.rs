//! The bound index at opening: its head is had, proved by the digest that the manifest gives, and read.
//!
//! What fails here fails the opening: an artifact that says what its chunks must be is never read without that. Sections
//! that do not come along are fetched on floor 3, when a layer is first touched. Called by [`find`](super::find()), and by
//! whoever keeps heads of earlier times.

use bytes::Bytes;

use super::format::{self, HEAD_LIMIT, Head};
use super::{Coding, Layer, Section};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::BoundIndex;
use crate::oci::digest::Algorithm;
use crate::oci::{Artifact, Digest};
use crate::range::StoredRange;
use crate::repository::{Repository, read_all};

/// The largest index that is fetched whole in the request for its head: it saves one for each layer that is touched, and
/// takes no longer than a chunk, of which the first read waits for one anyway. Enough for the digests of 30 GiB.
const WHOLE: u64 = 1 << 20;

/// The most bytes of an index without checkpoints: head, chunk digests and spans of a model of 16 TiB. What a process holds
/// of them is no more. Checkpoints are read one by one.
const INDEX_LIMIT: u64 = 768 << 20;

/// The largest index that is read, checkpoints and all.
const LARGEST: u64 = 512 << 30;

/// The head of an artifact's bound index, proved and read.
#[derive(Clone, Debug)]
pub struct Opened {
    /// The index as the manifest pins it.
    pub index: BoundIndex,
    /// What it says. Sections that came along are in its layers' [`Section::bytes`](super::Section::bytes), proved as well.
    pub head: Head,
    /// Its bytes, to be kept.
    pub bytes: Bytes,
}

/// The head of the artifact's bound index; `None` where it has none. `kept` are the head's bytes as they were kept of an
/// earlier time: used where they are right.
///
/// Costs one request, or none where `kept` is right, or two where the first answer was wrong.
///
/// # Errors
/// Naming the index: those of reading; `Integrity` where its bytes are not what the manifest says; `Invalid` and
/// `Unsupported` as [`format::decode`] and [`Artifact::bound_index`] have it.
pub async fn open(
    repository: &dyn Repository,
    artifact: &Artifact,
    kept: Option<Bytes>,
) -> Result<Option<Opened>> {
    let Some(index) = artifact.bound_index().map_err(with_way_out)? else { return Ok(None) };
    let opened = open_index(repository, &index, kept).await;
    opened.map(Some).map_err(|error| unreadable(&index, error))
}

/// The head of an index that a manifest pins. Costs as [`open`].
///
/// # Errors
/// As [`open`]; the caller names the index.
pub async fn open_index(
    repository: &dyn Repository,
    index: &BoundIndex,
    kept: Option<Bytes>,
) -> Result<Opened> {
    match kept.filter(|kept| index.head.digest.matches(kept)) {
        Some(kept) => read(index, kept),
        None => fetch(repository, index).await,
    }
}

/// How every failure of the index reads.
pub(super) fn unreadable(index: &BoundIndex, error: Error) -> Error {
    let doing = format!("the bound index {} of this artifact can't be used", index.blob.digest);
    with_way_out(error.context(doing))
}

/// With what a person can do, unless the error says so itself.
fn with_way_out(error: Error) -> Error {
    match error.kind() {
        Kind::NotFound => error.hint("push the index layer again, or pack the model again"),
        Kind::Integrity | Kind::Invalid => error.hint("pack the model again, or push the index layer again"),
        Kind::Protocol | Kind::Broken => error.hint("if it stays so, push the index layer again"),
        Kind::Unreachable | Kind::Untrusted | Kind::Deadline | Kind::Throttled => {
            error.hint("no byte can be verified without it: try again when the registry answers")
        }
        _ => error,
    }
}

async fn fetch(repository: &dyn Repository, index: &BoundIndex) -> Result<Opened> {
    let BoundIndex { blob, head } = index;
    if blob.size > LARGEST {
        let doing = format!("it has {} bytes, more than the 512 GiB that are read", blob.size);
        return Err(Error::new(Kind::Unsupported, doing));
    }
    if head.size > HEAD_LIMIT || head.digest.algorithm() != Algorithm::Sha256 {
        let doing = format!("its head of {} bytes under {} is none that is read", head.size, head.digest);
        return Err(Error::new(Kind::Invalid, doing));
    }
    // What a proxy has spoiled is right the second time, or elsewhere.
    match ask(repository, index).await {
        Err(error) if error.kind() == Kind::Integrity => {
            repository.distrust(blob);
            ask(repository, index).await
        }
        answer => answer,
    }
}

async fn ask(repository: &dyn Repository, index: &BoundIndex) -> Result<Opened> {
    let BoundIndex { blob, head } = index;
    let end = if blob.size <= WHOLE { blob.size } else { head.size };
    let bytes = read_all(repository, blob, StoredRange::new(0, end)).await?;
    let length = usize::try_from(head.size).unwrap_or(usize::MAX);
    let found = bytes.slice_ref(bytes.get(..length).unwrap_or_default());
    if !head.digest.matches(&found) {
        let doing = format!("its head is not what the manifest says: {}", head.digest);
        return Err(Error::new(Kind::Integrity, doing));
    }
    let mut opened = read(index, found)?;
    if end == blob.size {
        add_sections(&mut opened.head, &bytes)?;
    }
    Ok(opened)
}

/// The head as it was kept of an earlier time, read.
///
/// # Errors
/// `Integrity` where it is not what the manifest says; else as [`open`].
pub(super) fn read_kept(index: &BoundIndex, kept: Bytes) -> Result<Opened> {
    match index.head.digest.matches(&kept) {
        true => read(index, kept),
        false => Err(Error::new(Kind::Integrity, "its head is not what was kept")),
    }
}

fn read(index: &BoundIndex, bytes: Bytes) -> Result<Opened> {
    let head = format::decode(&bytes, &index.blob)?;
    refuse_large(&head, index.head.size)?;
    Ok(Opened { index: index.clone(), head, bytes })
}

/// Refuses an index that would fill the memory.
pub(super) fn refuse_large(head: &Head, size: u64) -> Result<()> {
    let chunks = |layer: &Layer| layer.bound.as_ref().map_or(0, |bound| bound.chunks.range.len());
    let table =
        |layer: &Layer| if let Coding::Spans(spans) = &layer.coding { spans.table.range.len() } else { 0 };
    let sections = head.layers.iter().map(|layer| chunks(layer).saturating_add(table(layer)));
    let held = sections.fold(size, u64::saturating_add);
    if held <= INDEX_LIMIT {
        return Ok(());
    }
    let doing = format!("it has {held} bytes beside checkpoints, more than the 768 MiB that are read");
    Err(Error::new(Kind::Unsupported, doing))
}

/// Gives each layer its sections of the whole index.
fn add_sections(head: &mut Head, whole: &Bytes) -> Result<()> {
    for layer in &mut head.layers {
        let name = &layer.blob.digest;
        if let Some(bound) = &mut layer.bound {
            add_section(&mut bound.chunks, name, whole)?;
        }
        if let Coding::Spans(spans) = &mut layer.coding {
            add_section(&mut spans.table, name, whole)?;
            spans.checkpoints.as_mut().map_or(Ok(()), |kept| add_section(kept, name, whole))?;
        }
    }
    Ok(())
}

fn add_section(section: &mut Section, layer: &Digest, whole: &Bytes) -> Result<()> {
    let place = |at| usize::try_from(at).unwrap_or(usize::MAX);
    let bytes = whole.get(place(section.range.start())..place(section.range.end())).unwrap_or_default();
    if !section.digest.matches(bytes) {
        let digest = &section.digest;
        let doing = format!("its section for layer {layer} is not what its head says: {digest}");
        return Err(Error::new(Kind::Integrity, doing));
    }
    section.bytes = Some(whole.slice_ref(bytes));
    Ok(())
}

#[cfg(test)]
#[path = "bound_tests.rs"]
mod tests;
