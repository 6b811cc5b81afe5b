//! Finding the index of an artifact: every layer's, side by side, put together and checked as one tree.
//!
//! Layers that the artifact's bound index covers are as it says, all others as their headers say.
//! It resolves no duplicates across layers: where two layers have one path, floor 4 shows the higher one's.
//! Whoever opens a model calls [`find`] once.

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::format::Head;
use super::plain::{Derived, Task};
use super::window::Allowance;
use super::{Entry, EntryKind, Index, bound, cover};
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

/// The index of `artifact`, as [`find_with`] gives it, once its bound index has been opened, which costs a request.
///
/// # Errors
/// Those of [`bound::open`] and [`find_with`].
pub async fn find(repository: &dyn Repository, artifact: &Artifact, known: &Known<'_>) -> Result<Index> {
    let opened = bound::open(repository, artifact, None).await?;
    find_with(repository, artifact, known, opened.map(|opened| opened.head)).await
}

/// The index of `artifact`: entries in the order of layers and, within one, of its archive; of a path that
/// occurs twice within a layer only the later, of one that occurs in several layers each.
///
/// Costs no request for layers that `head`, the head of its bound index, covers, for raw layers, and for tar layers whose
/// gaps are `known`; else one for each 64 KiB window of headers, layers side by side. A layer's diffID is what `head` says.
///
/// # Errors
/// Naming the layer: those of reading; `Invalid` for names, links and archives that are refused, for a path
/// that is a file and a folder, and for a `head` that is not of this artifact; `Unsupported` for compressed layers, layers
/// of more than 16 TiB, devices, sparse files and archives whose headers take more than 64 MiB in all.
pub async fn find_with(
    repository: &dyn Repository,
    artifact: &Artifact,
    known: &Known<'_>,
    head: Option<Head>,
) -> Result<Index> {
    artifact.refuse_compressed()?;
    artifact.visible().try_for_each(refuse_huge)?;
    let mut index = Index { warnings: artifact.warnings.clone(), ..Index::default() };
    let mut covered = Vec::new();
    if let Some(head) = head {
        covered = cover::cover(artifact, head)?;
        index.warnings.extend(cover::warning(artifact, &covered));
    }
    covered.resize_with(artifact.layers.len(), || None);
    let allowance = Allowance::new();
    let tasks: Vec<_> = artifact
        .visible()
        .enumerate()
        .map(|(number, layer)| Task { repository, layer, number, allowance: &allowance })
        .zip(covered)
        .map(|(task, covered)| derive(task, known, covered))
        .collect();
    let layers: Vec<Derived> = stream::iter(tasks).buffered(SIDE_BY_SIDE).try_collect().await?;
    for derived in layers {
        index.warnings.extend(derived.warnings);
        index.entries.extend(derived.entries);
        index.layers.push(derived.layer);
    }
    check_tree(&index)?;
    Ok(index)
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
