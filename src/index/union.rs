//! The layers of a container image put on one another: what of all their entries is left.
//!
//! As an unpacker goes through them (image specification, layer.md, "Applying Changesets"): a layer first takes away what
//! its marks say of lower ones, then its entries replace what is there, in their order. Folders are merged. What stands
//! below a symbolic link to a folder is put where the link leads, within the image. Pure: [`find`](super::find()) calls it where all layers are known, and the tree where
//! some become known later.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{Allowance, Entry, EntryKind};
use crate::error::{Error, Kind, Result};
use crate::oci::path;

/// The most links that are followed for one path: as many as Linux follows.
const LINKS_LIMIT: usize = 40;

/// How many bytes of paths are looked at to follow all links of an image: hundreds of times what the largest distribution takes,
/// and some seconds' work.
const WALK: u64 = 1 << 30;

/// What a part of a path counts for beside its text: to look it up.
const STEP: u64 = 64;

/// What is left of `entries`, which stand in the order of layers: each path once, no mark, every hard link after the file
/// that it is another name of. In the order of layers and, within one, as they stood.
///
/// # Errors
/// `Invalid`, naming it: a hard link to nothing or to a folder, and a path that leads through more than 40 links or to
/// one that is too long. `Unsupported`: names that take more memory than an artifact's may, and links that take too long to
/// follow.
pub fn merge(entries: Vec<Entry>) -> Result<Vec<Entry>> {
    let mut names = Names::new();
    for layer in entries.chunk_by(|one, other| one.layer == other.layer) {
        let is_mark = |entry: &&Entry| matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque);
        layer.iter().filter(is_mark).try_for_each(|mark| names.take_away(mark))?;
        layer.iter().filter(|entry| !is_mark(entry)).try_for_each(|entry| names.put(entry))?;
    }
    Ok(names.finish())
}

/// A name and what it leads to: several names of one file have one number.
#[derive(Clone, Debug)]
struct Name {
    entry: Entry,
    file: usize,
}

/// The names so far.
struct Names {
    /// By path.
    all: BTreeMap<String, Name>,
    /// How many symbolic links there are or were: where none, no path has to be followed.
    links: usize,
    /// How many entries have been put.
    count: usize,
    /// How much memory they may still take.
    room: Allowance,
    /// How many bytes of paths may still be looked at to follow links.
    walk: u64,
    /// The last folder that links were followed for, and where it is: the next entry mostly lies in it too. Right as long as
    /// no link comes or goes.
    last: Option<(String, String)>,
}

impl Names {
    fn new() -> Self {
        let (all, room) = (BTreeMap::new(), Allowance::names());
        Self { all, links: 0, count: 0, room, walk: WALK, last: None }
    }

    fn take_away(&mut self, mark: &Entry) -> Result<()> {
        if mark.kind == EntryKind::Opaque {
            let folder = self.followed(&mark.path)?;
            self.remove_below(&folder);
            self.imply_folders(&format!("{folder}/"), mark.layer)
        } else {
            let path = self.place(&mark.path)?;
            self.remove(&path);
            self.imply_folders(&path, mark.layer)
        }
    }

    fn put(&mut self, entry: &Entry) -> Result<()> {
        let path = self.place(&entry.path)?;
        let name = match &entry.kind {
            EntryKind::HardLink(target) => self.linked(&path, target, entry)?,
            _ => Name { entry: entry.clone(), file: self.count },
        };
        self.count += 1;
        match name.entry.kind {
            // A folder that is there stays with what is in it.
            EntryKind::Directory => {}
            EntryKind::Symlink(_) => {
                self.links += 1;
                self.last = None;
                self.remove(&path);
            }
            _ => self.remove(&path),
        }
        self.imply_folders(&path, entry.layer)?;
        self.insert(Name { entry: Entry { path, ..name.entry }, ..name })
    }

    fn insert(&mut self, name: Name) -> Result<()> {
        self.room.take_entry(&name.entry)?;
        if let Some(earlier) = self.all.insert(name.entry.path.clone(), name) {
            self.gone(&earlier);
        }
        Ok(())
    }

    /// A name that stood among all does no more.
    fn gone(&mut self, name: &Name) {
        self.room.give_back(&name.entry);
        if matches!(name.entry.kind, EntryKind::Symlink(_)) {
            self.last = None;
        }
    }

    /// Another name of what `target` is now.
    fn linked(&mut self, path: &str, target: &str, link: &Entry) -> Result<Name> {
        let place = self.place(target)?;
        match self.all.get(&place) {
            Some(found) if found.entry.kind != EntryKind::Directory => Ok(found.clone()),
            _ => Err(Error::new(
                Kind::Invalid,
                format!(
                    "hard link {path:?} of layer {} leads to {target:?}, which is no file there",
                    link.layer
                ),
            )),
        }
    }

    /// Where an entry of this path is put: the links above it are followed, it itself is not.
    fn place(&mut self, path: &str) -> Result<String> {
        match path.rsplit_once('/') {
            Some((folder, base)) if self.links > 0 => {
                // A target may have what no path may.
                path::validate(path::below(&self.followed(folder)?, base).as_bytes())
            }
            _ => Ok(path.to_owned()),
        }
    }

    /// The path once every link in it is followed, as a program would whose root is the image.
    fn followed(&mut self, path: &str) -> Result<String> {
        match &self.last {
            Some((last, place)) if last == path => Ok(place.clone()),
            _ => {
                let place = self.walk(path)?;
                self.last = Some((path.to_owned(), place.clone()));
                Ok(place)
            }
        }
    }

    fn walk(&mut self, path: &str) -> Result<String> {
        let (mut place, mut links) = (String::new(), 0);
        let mut rest: VecDeque<String> = path.split('/').map(str::to_owned).collect();
        while let Some(part) = rest.pop_front() {
            match part.as_str() {
                "" | "." => continue,
                ".." => {
                    place.truncate(place.rfind('/').unwrap_or(0));
                    continue;
                }
                _ => {}
            }
            let next = path::below(&place, &part);
            self.step(path, &next)?;
            let Some(EntryKind::Symlink(target)) = self.all.get(&next).map(|name| &name.entry.kind) else {
                place = next;
                continue;
            };
            links += 1;
            if links > LINKS_LIMIT {
                return Err(Error::new(Kind::Invalid, format!("{path:?} leads through more than 40 links")));
            }
            if target.starts_with('/') {
                place.clear();
            }
            for part in target.rsplit('/') {
                rest.push_front(part.to_owned());
            }
        }
        Ok(place)
    }

    /// Counts a look at `next`, to which following `path` has led.
    fn step(&mut self, path: &str, next: &str) -> Result<()> {
        if next.len() > path::PATH_LIMIT {
            let doing = format!("{path:?} leads through links to a path that is longer than 4096 bytes");
            return Err(Error::new(Kind::Invalid, doing));
        }
        let step = STEP.saturating_add(u64::try_from(next.len()).unwrap_or(u64::MAX));
        self.walk = self.walk.checked_sub(step).ok_or_else(|| {
            Error::new(Kind::Unsupported, "the symbolic links of its layers take too long to follow")
                .hint("build the image with fewer of them, or with files under their own paths")
        })?;
        Ok(())
    }

    /// The folders that `path` lies in are there from now on, also when nothing is left in them. A file in the way of one
    /// gives way.
    fn imply_folders(&mut self, path: &str, layer: usize) -> Result<()> {
        let mut rest = path;
        while let Some((above, _)) = rest.rsplit_once('/') {
            // What lies above a folder is one, too.
            let is_folder = |name: &Name| name.entry.kind == EntryKind::Directory;
            if above.is_empty() || self.all.get(above).is_some_and(is_folder) {
                break;
            }
            let entry =
                Entry { path: above.to_owned(), kind: EntryKind::Directory, mode: 0, mtime: 0, layer };
            self.insert(Name { entry, file: self.count })?;
            rest = above;
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) {
        if let Some(name) = self.all.remove(path) {
            self.gone(&name);
        }
        self.remove_below(path);
    }

    /// Everything within the folder `path`; everything there is where it is empty.
    fn remove_below(&mut self, path: &str) {
        if path.is_empty() {
            (self.all, self.room, self.last) = (BTreeMap::new(), Allowance::names(), None);
            return;
        }
        // What follows `/` among bytes is `0`.
        let (first, end) = (format!("{path}/"), format!("{path}0"));
        let gone: Vec<_> = self.all.range(first..end).map(|(path, _)| path.clone()).collect();
        for path in gone {
            if let Some(name) = self.all.remove(&path) {
                self.gone(&name);
            }
        }
    }

    fn finish(self) -> Vec<Entry> {
        let mut names: Vec<_> = self.all.into_values().collect();
        // A file's first name is the one that came first: the others are links to it.
        names.sort_by_key(|name| (name.entry.layer, name.file));
        let mut first: HashMap<usize, String> = HashMap::new();
        let mut entries = Vec::with_capacity(names.len());
        for Name { mut entry, file } in names {
            if let EntryKind::File { .. } = entry.kind {
                match first.get(&file) {
                    Some(path) => entry.kind = EntryKind::HardLink(path.clone()),
                    None => drop(first.insert(file, entry.path.clone())),
                }
            }
            entries.push(entry);
        }
        entries
    }
}

#[cfg(test)]
#[path = "union_tests.rs"]
mod tests;
