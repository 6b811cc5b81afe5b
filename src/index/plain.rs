//! The index of one layer that has none: of a raw or tar layer from its descriptor and headers read by hopping; a compressed
//! one is [streamed](super::streamed).
//!
//! A raw layer costs no request. A tar layer costs one for each member larger than 64 KiB, less where they share
//! a window, and none where its gaps are known. No file's data is read for its own sake.
//! [`find`](super::find()) calls it for every layer.
use bytes::Bytes;

use super::allowance::Allowance;
use super::guide::Room;
use super::names::Names;
use super::window::Window;
use super::{Coding, Entry, EntryKind, ExtentId, Guides, Layer, compression, streamed};
use crate::codec::tar::{self, Member, Step};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::{ModelLayer, Packaging};
use crate::oci::path;
use crate::range::{ContentRange, StoredRange};
use crate::repository::Repository;

/// A layer and the entries it brings, in the archive's order.
#[derive(Debug)]
pub(crate) struct Derived {
    pub(crate) layer: Layer,
    pub(crate) entries: Vec<Entry>,
    pub(crate) warnings: Vec<String>,
}

/// What one layer is derived from.
#[derive(Clone, Copy)]
pub(crate) struct Task<'a> {
    pub(crate) repository: &'a dyn Repository,
    pub(crate) layer: &'a ModelLayer,
    /// Its place among the index's layers.
    pub(crate) number: usize,
    pub(crate) allowance: &'a Allowance,
    pub(crate) guides: Guides,
    /// What the guides of all layers may take.
    pub(super) room: &'a Room,
}

impl Task<'_> {
    /// Derives the layer; `known` are bytes of it kept from an earlier time, used before any is asked for.
    ///
    /// Where a path occurs twice in the layer, the later one stays, with a warning.
    ///
    /// # Errors
    /// Those of reading; `Invalid` for names, links and archives that are refused; `Unsupported` for forms that
    /// are not read. The caller names the layer.
    pub(crate) async fn derive(self, known: &[(StoredRange, Bytes)]) -> Result<Derived> {
        let mut layer = Layer {
            bound: None,
            blob: self.layer.descriptor.blob(),
            media_type: self.layer.descriptor.media_type.clone(),
            diff_id: None,
            coding: Coding::Stored,
            extents: Vec::new(),
            gaps: Vec::new(),
        };
        if compression(self.layer.packaging).is_some() {
            return streamed::derive(self, layer).await;
        }
        let (entries, warnings) = match self.layer.packaging {
            Packaging::Raw => self.raw(&mut layer)?,
            _ => self.tar(&mut layer, known).await?,
        };
        Ok(Derived { layer, entries, warnings })
    }

    fn raw(self, layer: &mut Layer) -> Result<(Vec<Entry>, Vec<String>)> {
        let (path, size) = (raw_path(self.layer)?, layer.blob.size);
        let metadata = self.layer.metadata.clone().unwrap_or_default();
        let mut warnings = Vec::new();
        if let Some(other) = metadata.size.filter(|other| *other != size) {
            let name = self.layer.name();
            warnings
                .push(format!("{name}: its metadata says {other} bytes, the manifest {size}, which counts"));
        }
        let extent = (size > 0).then_some(ExtentId { layer: self.number, extent: 0 });
        layer.extents = extent.map(|_| ContentRange::new(0, size)).into_iter().collect();
        let (mode, mtime) = (metadata.mode.unwrap_or(0), metadata.mtime.unwrap_or(0));
        let kind = EntryKind::File { extent, size };
        Ok((vec![Entry { path, kind, mode, mtime, layer: self.number }], warnings))
    }

    async fn tar(
        self,
        layer: &mut Layer,
        known: &[(StoredRange, Bytes)],
    ) -> Result<(Vec<Entry>, Vec<String>)> {
        let blob = layer.blob.clone();
        let mut window = Window::new(self.repository, &blob, known, self.allowance);
        let mut names = Names::new(self.layer, self.number);
        let mut place = 0;
        loop {
            match next_step(&mut window, place, blob.size).await? {
                Step::Member(member) => {
                    let extent = cut_extent(&mut window, layer, place, &member)?;
                    place = place.saturating_add(member.next);
                    let extent = extent.map(|extent| ExtentId { layer: self.number, extent });
                    names.add(member, extent)?;
                }
                // `next_step` reads on instead of asking for more.
                Step::End(len) | Step::Need(len) => {
                    let end = place.saturating_add(len);
                    window.reach(end).await?;
                    layer.gaps.push(window.cut_gap(end, end)?);
                    layer.gaps.extend(window.last_gap()?);
                    layer.gaps.retain(|gap| !gap.range.is_empty());
                    return names.finish();
                }
            }
        }
    }
}

/// The path of the file that a raw layer is: the annotation's, or else one made of its digest.
///
/// # Errors
/// As [`path::validate`].
pub(crate) fn raw_path(layer: &ModelLayer) -> Result<String> {
    let digest = &layer.descriptor.digest;
    match &layer.path {
        Some(path) => path::validate(path.as_bytes()),
        None => Ok(format!("{}-{}", digest.algorithm().name(), digest.hex())),
    }
}

/// What stands at `place`, reading as much as it takes to tell.
async fn next_step(window: &mut Window<'_>, place: u64, size: u64) -> Result<Step> {
    loop {
        match tar::step(window.from(place), size.saturating_sub(place))? {
            Step::Need(len) => window.reach(place.saturating_add(len)).await?,
            step => return Ok(step),
        }
    }
}

/// The gap before the member's data and the extent that the data is; `None` for a member without data.
fn cut_extent(
    window: &mut Window<'_>,
    layer: &mut Layer,
    place: u64,
    member: &Member,
) -> Result<Option<usize>> {
    if member.size == 0 {
        return Ok(None);
    }
    let range = place.checked_add(member.data).and_then(|start| ContentRange::at(start, member.size));
    let range = range.ok_or_else(|| Error::new(Kind::Invalid, "an archive's member lies beyond 64 bits"))?;
    layer.gaps.push(window.cut_gap(range.start(), range.end())?);
    layer.extents.push(range);
    Ok(Some(layer.extents.len() - 1))
}
