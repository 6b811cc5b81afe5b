//! Finding the index of an artifact: every layer's, side by side, put together and checked as one tree.
//!
//! Layers that an index covers are as it says: the artifact's bound one, else one that was made on this machine, else an attached
//! one where that is trusted. All others are as their headers say.
//! It resolves no duplicates across layers of a model: where two have one path, floor 4 shows the higher one's. Layers of a
//! container image are [put together](union) here.
//! Whoever opens a model calls [`find_in`] once.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::allowance::Allowance;
use super::attached::{self, Kept};
use super::bound::{self, Opened};
use super::format::Head;
use super::guide::Room;
use super::plain::{Derived, Task};
use super::{Entry, EntryKind, Guides, Index, Layer, Proof, compression, cover, local, union};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::ModelLayer;
use crate::oci::{Artifact, Digest};
use crate::range::StoredRange;
use crate::repository::Repository;

/// How many layers are read at once.
const SIDE_BY_SIDE: usize = 8;

/// The largest layer that is read: the largest file of ext4, so that what is kept of it fits one. A size is
/// whatever a manifest says, and tables are made by it.
pub(super) const LARGEST_LAYER: u64 = 16 << 40;

/// Bytes of gaps kept from an earlier time, by the digest of their layer; empty where there are none.
pub type Known<'a> = dyn Fn(&Digest) -> Vec<(StoredRange, Bytes)> + Sync + 'a;

/// The file of an index that was made on this machine of a layer, opened for reading; `None` where there is none.
pub type Local<'a> = dyn Fn(&ModelLayer) -> Option<Arc<File>> + Sync + 'a;

/// Where the index of an artifact's layers is looked for, in this order but for `known`, which saves asking.
pub struct Sources<'a> {
    /// The head of its bound index.
    pub bound: Option<Head>,
    /// Indexes that were made on this machine.
    pub local: &'a Local<'a>,
    /// Where one that is attached to the artifact is looked for.
    pub attached: Attached<'a>,
    /// Bytes of gaps kept from an earlier time.
    pub known: &'a Known<'a>,
    /// Which of what compressed layers say of themselves counts.
    pub guides: Guides,
    /// What proves the layers that an index covers.
    pub proof: Proof,
}

/// Where an index that is attached to an artifact is looked for.
#[derive(Clone, Debug)]
pub enum Attached<'a> {
    /// Nowhere: it would not count.
    Nowhere,
    /// Beside the manifest of this digest, in its repository. What was used at an earlier time saves asking for it again.
    Beside(&'a Digest, Option<Kept>),
    /// In what was used at an earlier time: the repository does not answer.
    Kept(Kept),
}

/// The index of `artifact`, as [`find_with`] gives it, once its bound index has been opened, which costs a request.
///
/// # Errors
/// Those of [`bound::open`] and [`find_with`].
pub async fn find(repository: &dyn Repository, artifact: &Artifact, known: &Known<'_>) -> Result<Index> {
    let opened = bound::open(repository, artifact, None).await?;
    find_with(repository, artifact, known, opened.map(|opened| opened.head)).await
}

/// The index of `artifact` by what it brings itself: [`find_in`] without indexes of this machine and attached ones.
///
/// # Errors
/// As [`find_in`].
pub async fn find_with(
    repository: &dyn Repository,
    artifact: &Artifact,
    known: &Known<'_>,
    head: Option<Head>,
) -> Result<Index> {
    let sources = Sources {
        bound: head,
        local: &|_| None,
        attached: Attached::Nowhere,
        known,
        guides: Guides::default(),
        proof: Proof::default(),
    };
    find_in(repository, artifact, sources).await.map(|(index, _)| index)
}

/// The index of `artifact`, and the attached one that was used for it: entries in the order of layers and, within one, of its archive; of a path that
/// occurs twice within a layer only the later, of one that occurs in several layers each. Of a container image it is what is
/// left of them once each lies on those below; while some are compressed and nobody knows their names, it is the others' names
/// and marks, which the tree [puts together](union) with theirs.
///
/// Costs no request for layers that an index covers, for raw layers, and for tar layers whose gaps are known; else one for
/// each 64 KiB window of headers, layers side by side. A layer's diffID is what its index says. Where a compressed layer
/// has neither a bound index nor one of this machine, an attached one is looked for, which costs up to four requests one after
/// the other. A compressed layer without any is [streamed](super::Coding::Streamed), which costs a request where an
/// annotation names a file of it, and some where it may have a [guide](super::guide).
///
/// # Errors
/// Naming the layer: those of reading; `Invalid` for names, links and archives that are refused, for a path
/// that is a file and a folder, and for an index that is not of this artifact; `Unsupported` for layers
/// of more than 16 TiB, devices, sparse files, archives whose headers take more than 64 MiB in all, and names that take more than
/// 512 MiB. An index of this
/// machine that is wrong is passed over.
pub async fn find_in(
    repository: &dyn Repository,
    artifact: &Artifact,
    sources: Sources<'_>,
) -> Result<(Index, Option<Opened>)> {
    artifact.visible().try_for_each(refuse_huge)?;
    let mut index = Index { warnings: artifact.warnings.clone(), ..Index::default() };
    let (mut covered, attached) = covered(repository, artifact, &sources, &mut index.warnings).await?;
    let said = cover::without_names(artifact, &mut covered, sources.proof);
    let known = sources.known;
    let (allowance, room) = (Allowance::headers(0), Room::default());
    let tasks: Vec<_> = artifact
        .visible()
        .enumerate()
        .map(|(number, layer)| Task {
            repository,
            layer,
            number,
            allowance: &allowance,
            guides: sources.guides,
            room: &room,
        })
        .zip(covered)
        .map(|(task, covered)| derive(task, known, covered))
        .collect();
    let layers: Vec<Derived> = stream::iter(tasks).buffered(SIDE_BY_SIDE).try_collect().await?;
    for (mut derived, said) in layers.into_iter().zip(said) {
        if said.is_some_and(|said| !cover::bind(&mut derived.layer, said)) {
            let layer = &derived.layer.blob.digest;
            let wrong =
                format!("the index has files of layer {layer} elsewhere than its headers: it does not count");
            index.warnings.push(wrong);
        }
        index.warnings.extend(derived.warnings);
        index.entries.extend(derived.entries);
        index.layers.push(derived.layer);
    }
    if !artifact.is_layered() {
        check_tree(&index)?;
    } else if !index.layers.iter().any(Layer::is_growing) {
        index.entries = union::merge(std::mem::take(&mut index.entries))?;
    }
    Ok((index, attached))
}

/// What indexes say, layer by layer of the visible ones, and the attached one among them.
async fn covered(
    repository: &dyn Repository,
    artifact: &Artifact,
    sources: &Sources<'_>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<Option<Derived>>, Option<Opened>)> {
    let mut covered = Vec::new();
    if let Some(head) = sources.bound.clone() {
        covered = cover::cover(artifact, head)?;
        warnings.extend(cover::warning(artifact, &covered));
    }
    covered.resize_with(artifact.visible().count(), || None);
    // Of any number of layers, each with an index of its own.
    let room = Allowance::names();
    for ((number, layer), covered) in artifact.visible().enumerate().zip(&mut covered) {
        if covered.is_none() && compression(layer.packaging).is_some() {
            *covered = of_this_machine(layer, number, sources.local);
            let entries = covered.iter().flat_map(|derived| &derived.entries);
            entries.into_iter().try_for_each(|entry| room.take_entry(entry))?;
        }
    }
    let is_streamed = |(layer, covered): (&ModelLayer, &Option<Derived>)| {
        covered.is_none() && compression(layer.packaging).is_some()
    };
    if sources.bound.is_some() || !artifact.visible().zip(&covered).any(is_streamed) {
        return Ok((covered, None));
    }
    let attached = match &sources.attached {
        Attached::Nowhere => None,
        Attached::Beside(subject, kept) => {
            attached::open(repository, artifact, subject, kept.as_ref()).await?
        }
        Attached::Kept(kept) => attached::reopen(kept, artifact),
    };
    if let Some(Opened { index, head, .. }) = &attached {
        let said = cover::cover_by(artifact, head.clone(), &|error| attached::unreadable(index, error))?;
        for (covered, said) in covered.iter_mut().zip(said) {
            *covered = covered.take().or(said);
        }
    }
    Ok((covered, attached))
}

fn of_this_machine(layer: &ModelLayer, number: usize, local: &Local<'_>) -> Option<Derived> {
    let blob = layer.descriptor.blob();
    let opened = local::open(local(layer)?, &blob, number);
    let covered = opened.and_then(|(said, entries)| cover::place(said, entries, layer, number));
    let wrong = |error: &Error| tracing::warn!("the index kept of {} can't be used: {error}", layer.name());
    covered.inspect_err(wrong).ok()
}

async fn derive(task: Task<'_>, known: &Known<'_>, covered: Option<Derived>) -> Result<Derived> {
    if let Some(covered) = covered {
        return Ok(covered);
    }
    let known = known(&task.layer.descriptor.digest);
    task.derive(&known)
        .await
        .map_err(|error| error.context(format!("cannot list the files of {}", task.layer.name())))
}

fn refuse_huge(layer: &ModelLayer) -> Result<()> {
    if layer.descriptor.size <= LARGEST_LAYER {
        return Ok(());
    }
    let doing =
        format!("{} has {} bytes, more than the 16 TiB that are read", layer.name(), layer.descriptor.size);
    Err(Error::new(Kind::Unsupported, doing))
}

/// No path may be a folder and something else, nor lie below what is no folder, as below a symbolic link.
///
/// Sorted with `/` before every other byte, what lies below a path follows it at once.
fn check_tree(index: &Index) -> Result<()> {
    let mut sorted: Vec<&Entry> = index.entries.iter().collect();
    sorted.sort_by(|one, other| in_tree(&one.path).cmp(in_tree(&other.path)));
    let mut last: Option<&Entry> = None;
    for entry in sorted {
        let is_folder = entry.kind == EntryKind::Directory;
        if let Some(last) = last {
            let below = entry.path.strip_prefix(last.path.as_str()).is_some_and(|rest| rest.starts_with('/'));
            let was_folder = last.kind == EntryKind::Directory;
            if (below && !was_folder) || (entry.path == last.path && is_folder != was_folder) {
                return Err(conflict(index, last, entry));
            }
        }
        last = Some(entry);
    }
    Ok(())
}

fn in_tree(path: &str) -> impl Iterator<Item = u8> {
    // NUL stands in no path.
    path.bytes().map(|byte| if byte == b'/' { 0 } else { byte })
}

fn conflict(index: &Index, one: &Entry, other: &Entry) -> Error {
    let layer = |entry: &Entry| {
        index.layers.get(entry.layer).map_or_else(String::new, |layer| layer.blob.digest.to_string())
    };
    let (first, second) = (layer(one), layer(other));
    let doing = if matches!(one.kind, EntryKind::Symlink(_)) && one.path != other.path {
        format!(
            "{:?} of layer {second} lies below the symbolic link {:?} of layer {first}",
            other.path, one.path
        )
    } else {
        format!(
            "{:?} is file and folder, by {:?} of layer {second} and itself of layer {first}",
            one.path, other.path
        )
    };
    Error::new(Kind::Invalid, doing)
}

#[cfg(test)]
#[path = "find_tests.rs"]
mod tests;
