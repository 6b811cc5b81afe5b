//! A folder that was filled with a model's files, compared with the model name by name.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;
use serde::Serialize;

use crate::cli::progress::Progress;
use crate::error::{Result, StorageContext};
use crate::fs::{IndexedBy, Model, NodeId, NodeKind};
use crate::pull::{self, By, Compared};

/// What a folder was found to be, name by name.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Found {
    /// How many files and links are the model's.
    pub(super) right: usize,
    /// What is other than the model has it, as `PATH bytes A-B` where it is known which bytes.
    pub(super) wrong: Vec<String>,
    /// Files of the right size whose bytes the artifact has no digest of: members of an archive without an index.
    pub(super) unprovable: Vec<String>,
    /// Files of the model that are not there: they may not have been asked for.
    pub(super) missing: Vec<String>,
    /// What is there and is not of the model.
    pub(super) extra: Vec<String>,
    /// How much of each file is there, by its path.
    #[serde(skip)]
    pub(super) shares: HashMap<String, Share>,
}

/// How much of a file is in the folder.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    /// Bytes that are not known to be wrong.
    pub(super) bytes: u64,
    /// What says that they are right.
    pub(super) proved_by: &'static str,
}

impl Default for Share {
    fn default() -> Self {
        Self { bytes: 0, proved_by: "nothing" }
    }
}

/// Compares `folder` with `model`. Reads all of its files that have the model's names, and fetches none, but for compressed
/// layers without an index, whose names cannot be known otherwise.
///
/// # Errors
/// `Storage` where something can't be read; those of reading the bound index and of [`Model::all_named`].
pub(super) async fn check(model: &Model, folder: &Path) -> Result<Found> {
    model.all_named().await?;
    let (mut found, mut names) = (Found::default(), BTreeSet::new());
    let progress = Progress::of("reading", model.tree.total());
    for (path, node) in all_names(model) {
        progress.name(&path);
        check_name(model, node, folder, &path, &mut found).await?;
        if let Some(NodeKind::File { size, .. }) = model.tree.node(node).map(|node| &node.kind) {
            progress.add(*size);
        }
        names.insert(path);
    }
    progress.finish();
    find_extra(folder, "", &names, &mut found.extra)?;
    Ok(found)
}

/// All names of the model, folders before what is in them.
fn all_names(model: &Model) -> Vec<(String, NodeId)> {
    let (mut names, mut folders) = (Vec::new(), vec![(String::new(), NodeId::ROOT)]);
    while let Some((path, node)) = folders.pop() {
        for child in model.tree.children(node).into_iter().flatten() {
            let path =
                if path.is_empty() { child.name.to_string() } else { format!("{path}/{}", child.name) };
            if model.tree.children(child.node).is_some() {
                folders.push((path.clone(), child.node));
            }
            names.push((path, child.node));
        }
    }
    names
}

async fn check_name(model: &Model, node: NodeId, folder: &Path, path: &str, found: &mut Found) -> Result<()> {
    let place = folder.join(path);
    let Ok(meta) = fs::symlink_metadata(&place) else {
        found.missing.push(path.to_owned());
        return Ok(());
    };
    let equal = match model.tree.node(node).map(|node| &node.kind) {
        Some(NodeKind::File { extent, size }) if meta.is_file() => {
            let file = open(&place).storage(|| format!("cannot open {}", place.display()))?;
            let compared = pull::compare(model, *extent, *size, file).await?;
            let by = extent.and_then(|extent| model.indexed_by(extent.layer));
            found.shares.insert(path.to_owned(), Share::of(&compared, *size, by));
            found.note(path, compared);
            return Ok(());
        }
        Some(NodeKind::Symlink(target)) => {
            fs::read_link(&place).is_ok_and(|found| found == Path::new(&**target))
        }
        Some(NodeKind::Directory(_)) if meta.is_dir() => return Ok(()),
        _ => false,
    };
    match equal {
        true => found.right += 1,
        false => found.wrong.push(path.to_owned()),
    }
    Ok(())
}

/// A pipe that has taken the file's place meanwhile holds nobody up, and no link is followed.
fn open(place: &Path) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(place)
}

impl Share {
    /// Of a file of `size` bytes, whose layer has an index from there.
    fn of(compared: &Compared, size: u64, index: Option<IndexedBy>) -> Self {
        let by_chunks = match index {
            Some(IndexedBy::Artifact) => "bound index",
            Some(IndexedBy::Attached) => "attached index",
            Some(IndexedBy::Machine) => "index of this machine",
            None => "nothing",
        };
        match compared {
            Compared::Equal(By::Layer) => Self { bytes: size, proved_by: "layer digest" },
            Compared::Equal(By::Index) => Self { bytes: size, proved_by: by_chunks },
            Compared::Unknown => Self { bytes: size, proved_by: "nothing" },
            // Which bytes are others is not known.
            Compared::Differs(ranges) if ranges.is_empty() => Self::default(),
            Compared::Differs(ranges) => {
                let wrong = ranges.iter().map(|range| range.len()).fold(0, u64::saturating_add);
                Self { bytes: size.saturating_sub(wrong), proved_by: by_chunks }
            }
        }
    }
}

impl Found {
    fn note(&mut self, path: &str, compared: Compared) {
        match compared {
            Compared::Equal(_) => self.right += 1,
            Compared::Unknown => self.unprovable.push(path.to_owned()),
            Compared::Differs(ranges) if ranges.is_empty() => self.wrong.push(path.to_owned()),
            Compared::Differs(ranges) => {
                self.wrong.extend(ranges.iter().map(|range| format!("{path} bytes {range}")));
            }
        }
    }
}

/// Names what is below `path` of `folder` and not among `names`; a folder that is extra counts once. No link is followed.
fn find_extra(folder: &Path, path: &str, names: &BTreeSet<String>, extra: &mut Vec<String>) -> Result<()> {
    let mut inside = vec![path.to_owned()];
    while let Some(path) = inside.pop() {
        let doing = || format!("cannot look into {}", folder.join(&path).display());
        for entry in fs::read_dir(folder.join(&path)).storage(doing)? {
            let entry = entry.storage(doing)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let below = if path.is_empty() { name } else { format!("{path}/{name}") };
            if !names.contains(&below) {
                extra.push(below);
            } else if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                inside.push(below);
            }
        }
    }
    extra.sort();
    Ok(())
}
