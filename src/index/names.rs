//! The names of one archive as its headers go by: paths and links validated, duplicates resolved.
//!
//! Where the members' data lies is whoever reads the headers' to say: [`plain`](super::plain) hops over them,
//! [`pass`](super::pass) decodes what lies between.

use std::collections::{HashMap, HashSet};

use super::{Entry, EntryKind, ExtentId, compression, layered};
use crate::codec::tar::{Member, MemberKind};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::{Manner, ModelLayer};
use crate::oci::path;

/// The most warnings of one layer: a person reads no more, and an archive could make any number.
const WARNINGS_LIMIT: usize = 100;

/// The entries of one archive as they come by.
pub(super) struct Names {
    /// The layer's place among the index's.
    number: usize,
    layer: ModelLayer,
    /// `None` where a later member took the name.
    entries: Vec<Option<Entry>>,
    /// Where each path stands in `entries`.
    places: HashMap<String, usize>,
    /// Paths that hard links lead to.
    linked: HashSet<String>,
    /// Whether the annotation names the first member, so that it is the layer's one file.
    is_one_file: bool,
    warnings: Vec<String>,
}

impl Names {
    /// Nothing has come by yet of `layer`, which is number `number` of the index's.
    pub(super) fn new(layer: &ModelLayer, number: usize) -> Self {
        Self {
            number,
            layer: layer.clone(),
            entries: Vec::new(),
            places: HashMap::new(),
            linked: HashSet::new(),
            is_one_file: false,
            warnings: Vec::new(),
        }
    }

    /// The entry that a member is, which takes the place of an earlier one of the same path; `None` for one that is no part
    /// of the tree, as the root itself. Of a layer that lies on others each member stays, marks too, for the [union](super::union)
    /// of all layers. Of a compressed layer whose annotation names its first member, a file, no other one is part of the tree:
    /// who mounts it is told so before the others have gone by, and is told the same when they have.
    ///
    /// # Errors
    /// `Invalid` for names and links that are refused.
    pub(super) fn add(&mut self, member: Member, extent: Option<ExtentId>) -> Result<Option<&Entry>> {
        match self.layer.members.manner {
            Manner::Model => self.add_to_model(member, extent),
            Manner::Layered | Manner::Above => {
                let entry = layered::entry(member, extent, self.number)?;
                if self.layer.members.manner == Manner::Above {
                    entry.iter().try_for_each(layered::refuse_mark)?;
                }
                let Some(entry) = entry.filter(|entry| !self.layer.members.skips(&entry.path)) else {
                    return Ok(None);
                };
                self.entries.push(Some(entry));
                Ok(self.entries.last().and_then(Option::as_ref))
            }
        }
    }

    fn add_to_model(&mut self, member: Member, extent: Option<ExtentId>) -> Result<Option<&Entry>> {
        let path = match member.kind {
            MemberKind::Directory => path::of_folder(&member.name)?,
            _ => path::of_member(&member.name)?,
        };
        let Some(path) = path.filter(|path| !self.layer.members.skips(path)) else { return Ok(None) };
        let mut path = self.below(path)?;
        if self.is_one_file {
            self.pass_over(&path);
            return Ok(None);
        }
        if self.entries.is_empty() && member.kind == MemberKind::File {
            path = self.first_file(path)?;
        }
        let kind = match member.kind {
            MemberKind::File => EntryKind::File { extent, size: member.size },
            MemberKind::Directory => EntryKind::Directory,
            MemberKind::Symlink(target) => EntryKind::Symlink(path::link_target(&path, &target)?),
            MemberKind::HardLink(target) => EntryKind::HardLink(self.link_end(&path, &target)?),
        };
        let entry = Entry { path, kind, mode: member.mode, mtime: member.mtime, layer: self.number };
        self.keep(entry)?;
        Ok(self.entries.last().and_then(Option::as_ref))
    }

    /// Whether the annotation names the first member, so that no other is part of the tree.
    pub(super) fn is_one_file(&self) -> bool {
        self.is_one_file
    }

    /// The path of the first member, a file: the annotation's, where the layer is compressed and that is what it names.
    fn first_file(&mut self, path: String) -> Result<String> {
        if compression(self.layer.packaging).is_none() {
            return Ok(path);
        }
        let fuller = fuller_path(&path, self.layer.path.as_deref())?;
        self.is_one_file = fuller.is_some() || self.layer.path.as_ref() == Some(&path);
        Ok(fuller.unwrap_or(path))
    }

    /// Says once that there are members that are not shown.
    fn pass_over(&mut self, path: &str) {
        if let (true, [Some(file)]) = (self.warnings.is_empty(), self.entries.as_slice()) {
            let (layer, file) = (self.layer.name(), &file.path);
            self.warnings.push(format!(
                "{layer}: its annotation says that it is {file:?}; {path:?} and what follows it are not shown"
            ));
        }
    }

    /// The path in the folder that the archive is unpacked into.
    fn below(&self, path: String) -> Result<String> {
        match self.layer.members.below.as_str() {
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
                let layer = self.layer.name();
                self.warnings.push(format!("{layer}: {path:?} occurs twice, the later one is shown"));
            }
        }
        self.entries.push(Some(entry));
        Ok(())
    }

    /// All of them in the archive's order, of a path that came twice only the later, and what a person should know.
    ///
    /// # Errors
    /// `Invalid` where the annotation's path is refused.
    pub(super) fn finish(self) -> Result<(Vec<Entry>, Vec<String>)> {
        let mut entries: Vec<_> = self.entries.into_iter().flatten().collect();
        if self.layer.members.manner == Manner::Model
            && let [Entry { path, kind: EntryKind::File { .. }, .. }] = entries.as_mut_slice()
            && let Some(fuller) = fuller_path(path, self.layer.path.as_deref())?
        {
            *path = fuller;
        }
        Ok((entries, self.warnings))
    }
}

/// The annotation's path where it has a folder before the same name: some writers put only the base name
/// into the archive of a single file. Other annotations of archives (`config`, `docs`) name no file.
pub(super) fn fuller_path(name: &str, annotation: Option<&str>) -> Result<Option<String>> {
    match annotation.and_then(|annotation| Some((annotation, annotation.rsplit_once('/')?.1))) {
        Some((annotation, base)) if base == name => path::validate(annotation.as_bytes()).map(Some),
        _ => Ok(None),
    }
}
