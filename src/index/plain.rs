//! The index of one raw or tar layer, derived from its descriptor and, for tar, from headers read by hopping.
//!
//! A raw layer costs no request. A tar layer costs one for each member larger than 64 KiB, less where they share
//! a window, and none where its gaps are known. No file's data is read for its own sake.
//! [`find`](super::find()) calls it for every layer.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::window::{Allowance, Window};
use super::{Coding, Entry, EntryKind, ExtentId, Layer, layered};
use crate::codec::tar::{self, Member, MemberKind, Step};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::{Manner, ModelLayer, Packaging};
use crate::oci::path;
use crate::range::{ContentRange, StoredRange};
use crate::repository::Repository;

/// The most warnings of one layer: a person reads no more, and an archive could make any number.
const WARNINGS_LIMIT: usize = 100;

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
        let (entries, warnings) = match self.layer.packaging {
            Packaging::Raw => self.raw(&mut layer)?,
            Packaging::Tar => self.tar(&mut layer, known).await?,
            Packaging::TarGzip | Packaging::TarZstd => {
                return Err(Error::new(Kind::Unsupported, "the layer is compressed"));
            }
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
        let mut names = Names::new(self);
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

/// The entries of one archive as they come by.
struct Names<'a> {
    task: Task<'a>,
    /// `None` where a later member took the name.
    entries: Vec<Option<Entry>>,
    /// Where each path stands in `entries`.
    places: HashMap<String, usize>,
    /// Paths that hard links lead to.
    linked: HashSet<String>,
    warnings: Vec<String>,
}

impl<'a> Names<'a> {
    fn new(task: Task<'a>) -> Self {
        let (places, linked) = (HashMap::new(), HashSet::new());
        Self { task, entries: Vec::new(), places, linked, warnings: Vec::new() }
    }

    fn add(&mut self, member: Member, extent: Option<ExtentId>) -> Result<()> {
        match self.task.layer.members.manner {
            Manner::Model => self.add_to_model(member, extent),
            Manner::Layered => {
                let entry = layered::entry(member, extent, self.task.number)?;
                let members = &self.task.layer.members;
                self.entries.extend(entry.filter(|entry| !members.skips(&entry.path)).map(Some));
                Ok(())
            }
        }
    }

    fn add_to_model(&mut self, member: Member, extent: Option<ExtentId>) -> Result<()> {
        let path = match member.kind {
            MemberKind::Directory => path::of_folder(&member.name)?,
            _ => path::of_member(&member.name)?,
        };
        let Some(path) = path.filter(|path| !self.task.layer.members.skips(path)) else { return Ok(()) };
        let path = self.below(path)?;
        let kind = match member.kind {
            MemberKind::File => EntryKind::File { extent, size: member.size },
            MemberKind::Directory => EntryKind::Directory,
            MemberKind::Symlink(target) => EntryKind::Symlink(path::link_target(&path, &target)?),
            MemberKind::HardLink(target) => EntryKind::HardLink(self.link_end(&path, &target)?),
        };
        let entry = Entry { path, kind, mode: member.mode, mtime: member.mtime, layer: self.task.number };
        self.keep(entry)
    }

    /// The path in the folder that the archive is unpacked into.
    fn below(&self, path: String) -> Result<String> {
        match self.task.layer.members.below.as_str() {
            "" => Ok(path),
            folder => path::validate(path::below(folder, &path).as_bytes()),
        }
    }

    /// The path of the regular file that a hard link is another name of.
    fn link_end(&mut self, link: &str, target: &[u8]) -> Result<String> {
        let shown = target.escape_ascii();
        let refused = |why: &str| {
            Error::new(Kind::Invalid, format!("refused hard link {link:?} to \"{shown}\": {why}"))
        };
        let path = self.below(path::of_member(target)?.unwrap_or_default())?;
        let earlier = self.places.get(&path).and_then(|place| self.entries.get(*place)?.as_ref());
        let end = match earlier.map(|entry| &entry.kind) {
            Some(EntryKind::File { .. }) if path != link => path,
            Some(EntryKind::HardLink(end)) if path != link => end.clone(),
            Some(_) => return Err(refused("it is the link itself or no regular file")),
            None => return Err(refused("no such file comes before it in its layer")),
        };
        self.linked.insert(end.clone());
        Ok(end)
    }

    /// Keeps the entry in place of an earlier one of the same path.
    fn keep(&mut self, entry: Entry) -> Result<()> {
        let path = entry.path.clone();
        if let Some(earlier) = self.places.insert(path.clone(), self.entries.len()) {
            let earlier = self.entries.get_mut(earlier).and_then(Option::take);
            let was_folder = earlier.is_some_and(|earlier| earlier.kind == EntryKind::Directory);
            let is_folder = entry.kind == EntryKind::Directory;
            // Replacing it would give the other names of the earlier file the later one's bytes.
            if was_folder != is_folder || self.linked.contains(&path) {
                let why = if was_folder == is_folder {
                    "two files, one with hard links"
                } else {
                    "file and folder"
                };
                return Err(Error::new(Kind::Invalid, format!("{path:?} is {why} in one layer")));
            }
            if !is_folder && self.warnings.len() < WARNINGS_LIMIT {
                let layer = self.task.layer.name();
                self.warnings.push(format!("{layer}: {path:?} occurs twice, the later one is shown"));
            }
        }
        self.entries.push(Some(entry));
        Ok(())
    }

    fn finish(self) -> Result<(Vec<Entry>, Vec<String>)> {
        let mut entries: Vec<_> = self.entries.into_iter().flatten().collect();
        if self.task.layer.members.manner == Manner::Model
            && let [Entry { path, kind: EntryKind::File { .. }, .. }] = entries.as_mut_slice()
            && let Some(fuller) = fuller_path(path, self.task.layer.path.as_deref())?
        {
            *path = fuller;
        }
        Ok((entries, self.warnings))
    }
}

/// The annotation's path where it has a folder before the same name: some writers put only the base name
/// into the archive of a single file. Other annotations of archives (`config`, `docs`) name no file.
fn fuller_path(name: &str, annotation: Option<&str>) -> Result<Option<String>> {
    match annotation.and_then(|annotation| Some((annotation, annotation.rsplit_once('/')?.1))) {
        Some((annotation, base)) if base == name => path::validate(annotation.as_bytes()).map(Some),
        _ => Ok(None),
    }
}
