//! What a bound index says, layer by layer of the manifest it is part of, checked against that manifest.
//!
//! Its author is the artifact's own, but a tool may have changed the artifact since: layers attached later are not covered,
//! and one that was taken away fails the opening. Called by [`find`](super::find()) before any layer is derived.

use std::collections::HashSet;
use std::sync::Arc;

use super::find::LARGEST_LAYER;
use super::format::Head;
use super::local::renumbered;
use super::plain::{Derived, raw_path};
use super::{Coding, Entry, EntryKind, Index, Layer, bound, compression, layered};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::{Manner, ModelLayer, Packaging};
use crate::oci::{Artifact, path};

/// What proves the layers that an index covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Proof {
    /// The index: who opens the artifact has chosen it.
    #[default]
    Index,
    /// Their own digests too, since what is shown is seen by others, who know a layer by its digest alone: names are read from the
    /// archives, and each layer is compared with its digest once all of it is here.
    Layer,
}

/// Takes from an image's layers what an index says of their names, where that is not believed; gives what is left, the digests of their
/// chunks. Names of compressed layers stay: nobody could read them otherwise.
pub(super) fn without_names(
    artifact: &Artifact,
    covered: &mut [Option<Derived>],
    proof: Proof,
) -> Vec<Option<Layer>> {
    let is_read = |layer: &ModelLayer| {
        proof == Proof::Layer && artifact.is_layered() && layer.packaging == Packaging::Tar
    };
    let layers = artifact.visible().zip(covered);
    layers.map(|(layer, covered)| covered.take_if(|_| is_read(layer)).map(|derived| derived.layer)).collect()
}

/// Gives the layer, as its archive's headers have it, the digests of its chunks from what an index says of it; `false` where that
/// has files elsewhere.
pub(super) fn bind(layer: &mut Layer, said: Layer) -> bool {
    let agrees = layer.extents == said.extents;
    if agrees {
        layer.bound = said.bound;
    }
    agrees
}

/// For each visible layer of `artifact` what `head` says of it; `None` where it does not say anything.
///
/// The index's layers are the manifest's in its order, so that a blob which is two layers is matched twice.
///
/// # Errors
/// [`Kind::Invalid`], naming index and layer: a layer that is not the manifest's, or not at that place; a raw layer that
/// is not one file of the path that the manifest gives it.
pub(super) fn cover(artifact: &Artifact, head: Head) -> Result<Vec<Option<Derived>>> {
    cover_by(artifact, head, &|error: Error| match artifact.bound_index() {
        Ok(Some(index)) => bound::unreadable(&index, error),
        _ => error,
    })
}

/// The same of any index; `failed` names it.
///
/// # Errors
/// As [`cover`].
pub(super) fn cover_by(
    artifact: &Artifact,
    head: Head,
    failed: &dyn Fn(Error) -> Error,
) -> Result<Vec<Option<Derived>>> {
    let mut left = by_layer(head).into_iter().peekable();
    let mut covered = Vec::new();
    let mut number = 0;
    for layer in &artifact.layers {
        // Also of a layer that is not shown, which the index may cover.
        let next = left.next_if(|(said, _)| said.blob == layer.descriptor.blob());
        if layer.hidden {
            continue;
        }
        let derived = next.map(|(said, entries)| place(said, entries, layer, number));
        covered.push(derived.transpose().map_err(failed)?);
        number += 1;
    }
    match left.next() {
        Some((said, _)) => Err(failed(foreign(artifact, &said))),
        None => Ok(covered),
    }
}

/// What `head` says of the layers of `artifact` that it covers, as an index of those alone: layers are numbered as the visible
/// ones, and one that is not covered is there without files.
///
/// # Errors
/// As [`cover`].
pub fn of(artifact: &Artifact, head: Head) -> Result<Index> {
    let mut index = Index::default();
    for (covered, layer) in cover_by(artifact, head, &|error| error)?.into_iter().zip(artifact.visible()) {
        let covered = covered.unwrap_or_else(|| Derived {
            layer: bare(layer),
            entries: Vec::new(),
            warnings: Vec::new(),
        });
        index.layers.push(covered.layer);
        index.entries.extend(covered.entries);
    }
    Ok(index)
}

/// The layer without anything that is known of it.
pub(super) fn bare(layer: &ModelLayer) -> Layer {
    let streamed = |_| Coding::Streamed(Arc::new(layer.clone()), None);
    Layer {
        blob: layer.descriptor.blob(),
        media_type: layer.descriptor.media_type.clone(),
        diff_id: None,
        coding: compression(layer.packaging).map_or(Coding::Stored, streamed),
        extents: Vec::new(),
        gaps: Vec::new(),
        bound: None,
    }
}

/// A line about the visible layers that are not `covered`; `None` where all are.
pub(super) fn warning(artifact: &Artifact, covered: &[Option<Derived>]) -> Option<String> {
    let mut rest = artifact.visible().zip(covered).filter(|(_, covered)| covered.is_none());
    let (first, _) = rest.next()?;
    let others = match rest.count() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    let name = first.name();
    Some(format!("{name}{others}: not covered by the bound index, so proved only when all of it is here"))
}

/// The layers with the entries of each, which stand in the order of layers.
fn by_layer(head: Head) -> Vec<(Layer, Vec<Entry>)> {
    let mut entries = head.entries.into_iter().peekable();
    let of_layer = |(number, layer)| {
        let own = std::iter::from_fn(|| entries.next_if(|entry| entry.layer == number));
        (layer, own.collect())
    };
    head.layers.into_iter().enumerate().map(of_layer).collect()
}

/// The layer as number `number` of the manifest's visible ones, which is `layer`.
///
/// # Errors
/// [`Kind::Invalid`] where the manifest says otherwise of it.
pub(super) fn place(
    mut said: Layer,
    entries: Vec<Entry>,
    layer: &ModelLayer,
    number: usize,
) -> Result<Derived> {
    check_coding(&said, layer)?;
    if layer.packaging == Packaging::Raw {
        check_raw(&said, &entries, layer)?;
    }
    if layer.members.manner == Manner::Model {
        check_links(&entries, layer)?;
        check_folder(&entries, layer)?;
    }
    if layer.members.manner == Manner::Above {
        entries.iter().try_for_each(layered::refuse_mark)?;
    }
    said.media_type.clone_from(&layer.descriptor.media_type);
    let entries = entries.into_iter().map(|entry| renumbered(entry, number)).collect();
    Ok(Derived { layer: said, entries, warnings: Vec::new() })
}

/// The manifest's media type says how the layer is compressed, if it is: what other tools unpack.
fn check_coding(said: &Layer, layer: &ModelLayer) -> Result<()> {
    let wrong = |why: String| Error::new(Kind::Invalid, format!("it says of {} that {why}", layer.name()));
    let how = match &said.coding {
        Coding::Stored => None,
        Coding::Spans(spans) => Some(spans.how),
        Coding::Streamed(layer, _) => compression(layer.packaging),
    };
    if how != compression(layer.packaging) {
        return Err(wrong(format!("it is otherwise compressed than {}", layer.descriptor.media_type)));
    }
    match said.content() {
        Some(content) if content > LARGEST_LAYER => {
            Err(wrong(format!("it makes {content} bytes, more than the 16 TiB that are read")))
        }
        _ => Ok(()),
    }
}

/// Every name lies in the folder that the archive is unpacked into: the index may have been made where that was another.
fn check_folder(entries: &[Entry], layer: &ModelLayer) -> Result<()> {
    let folder = &layer.members.below;
    let lies_in =
        |entry: &Entry| entry.path.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/'));
    match entries.iter().find(|entry| !folder.is_empty() && !lies_in(entry)) {
        None => Ok(()),
        Some(entry) => {
            let doing = format!("it says of {} that {:?} is not in {folder:?}", layer.name(), entry.path);
            Err(Error::new(Kind::Invalid, doing))
        }
    }
}

/// What only layers of an image have stands in no model: marks, and links that lead out of it or to no file before them.
fn check_links(entries: &[Entry], layer: &ModelLayer) -> Result<()> {
    let mut files = HashSet::new();
    for entry in entries {
        let right = match &entry.kind {
            EntryKind::File { .. } => files.insert(entry.path.as_str()),
            EntryKind::Directory => true,
            EntryKind::Symlink(target) => path::link_target(&entry.path, target.as_bytes()).is_ok(),
            EntryKind::HardLink(target) => files.contains(target.as_str()),
            EntryKind::Whiteout | EntryKind::Opaque => false,
        };
        if !right {
            let doing =
                format!("it says of {} that {:?} is what only an image has", layer.name(), entry.path);
            return Err(Error::new(Kind::Invalid, doing));
        }
    }
    Ok(())
}

/// A raw layer is one file and nothing else, and its path is the manifest's to say: what other tools show.
fn check_raw(said: &Layer, entries: &[Entry], layer: &ModelLayer) -> Result<()> {
    let wrong = |why: String| Error::new(Kind::Invalid, format!("it says of {} that {why}", layer.name()));
    let [Entry { path, kind: EntryKind::File { size, .. }, .. }] = entries else {
        return Err(wrong(format!("it has {} names and not one file", entries.len())));
    };
    if *size != said.blob.size {
        return Err(wrong(format!("its file has {size} of the {} bytes", said.blob.size)));
    }
    let expected = raw_path(layer)?;
    if *path != expected {
        return Err(wrong(format!("its path is {path:?}, and the manifest that it is {expected:?}")));
    }
    Ok(())
}

/// Why a layer of the index was not found where it should be.
fn foreign(artifact: &Artifact, said: &Layer) -> Error {
    let digest = &said.blob.digest;
    let same = artifact.visible().find(|layer| layer.descriptor.digest == *digest);
    let why = match same.map(|layer| layer.descriptor.size) {
        None => format!("it covers layer {digest}, which the manifest does not have"),
        Some(size) if size != said.blob.size => {
            format!("it says {} bytes of layer {digest}, and the manifest {size}", said.blob.size)
        }
        Some(_) => format!("it has layer {digest} in another order than the manifest"),
    };
    Error::new(Kind::Invalid, why)
}
