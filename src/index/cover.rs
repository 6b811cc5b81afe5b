//! What a bound index says, layer by layer of the manifest it is part of, checked against that manifest.
//!
//! Its author is the artifact's own, but a tool may have changed the artifact since: layers attached later are not covered,
//! and one that was taken away fails the opening. Called by [`find`](super::find()) before any layer is derived.

use super::find::LARGEST_LAYER;
use super::format::Head;
use super::local::renumbered;
use super::plain::{Derived, raw_path};
use super::{Coding, Entry, EntryKind, Layer, bound, compression};
use crate::error::{Error, Kind, Result};
use crate::oci::Artifact;
use crate::oci::artifact::{ModelLayer, Packaging};

/// For each visible layer of `artifact` what `head` says of it; `None` where it does not say anything.
///
/// The index's layers are the manifest's in its order, so that a blob which is two layers is matched twice.
///
/// # Errors
/// [`Kind::Invalid`], naming index and layer: a layer that is not the manifest's, or not at that place; a raw layer that
/// is not one file of the path that the manifest gives it.
pub(super) fn cover(artifact: &Artifact, head: Head) -> Result<Vec<Option<Derived>>> {
    let failed = |error: Error| match artifact.bound_index() {
        Ok(Some(index)) => bound::unreadable(&index, error),
        _ => error,
    };
    let mut left = by_layer(head).into_iter().peekable();
    let mut covered = Vec::new();
    for (number, layer) in artifact.visible().enumerate() {
        let next = left.next_if(|(said, _)| said.blob == layer.descriptor.blob());
        let derived = next.map(|(said, entries)| place(said, entries, layer, number));
        covered.push(derived.transpose().map_err(failed)?);
    }
    match left.next() {
        Some((said, _)) => Err(failed(foreign(artifact, &said))),
        None => Ok(covered),
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

/// The layer as number `number` of the manifest's visible ones.
fn place(mut said: Layer, entries: Vec<Entry>, layer: &ModelLayer, number: usize) -> Result<Derived> {
    check_coding(&said, layer)?;
    if layer.packaging == Packaging::Raw {
        check_raw(&said, &entries, layer)?;
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
        Coding::Streamed(how) => Some(*how),
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
