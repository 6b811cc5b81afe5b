//! One member of a container image's layer as an entry: a name, or a mark that takes names of lower layers away.
//!
//! Marks as the image specification has them (layer.md, "Whiteouts"). Nothing is resolved here: that is
//! [`union`](super::union)'s, once all layers are known.

use super::{Entry, EntryKind, ExtentId};
use crate::codec::tar::{Member, MemberKind};
use crate::error::{Error, Kind, Result};
use crate::oci::path;

/// How the name of a mark begins.
const MARK: &str = ".wh.";

/// The name of the mark that empties its folder, and how the names of other marks begin that are only aufs' own.
const OPAQUE: &str = ".wh..wh..opq";
const OTHERS: &str = ".wh..wh.";

/// What `member` of layer `layer` is; `None` where it is no name, as the root folder and aufs' own data.
///
/// # Errors
/// `Invalid` for names and targets that no tree can hold.
pub(super) fn entry(member: Member, extent: Option<ExtentId>, layer: usize) -> Result<Option<Entry>> {
    let Some(path) = path::of_layered(&member.name)? else { return Ok(None) };
    let Some((path, kind)) = meaning(path, &member, extent)? else { return Ok(None) };
    Ok(Some(Entry { path, kind, mode: member.mode, mtime: member.mtime, layer }))
}

/// Refuses a mark where what it takes away is not shown.
///
/// # Errors
/// `Unsupported`.
pub(super) fn refuse_mark(entry: &Entry) -> Result<()> {
    match entry.kind {
        EntryKind::Whiteout | EntryKind::Opaque => {
            let doing = format!("it takes {:?} away from layers that are not shown", entry.path);
            Err(Error::new(Kind::Unsupported, doing).hint("show the layers below it too"))
        }
        _ => Ok(()),
    }
}

fn meaning(path: String, member: &Member, extent: Option<ExtentId>) -> Result<Option<(String, EntryKind)>> {
    let (folder, base) = path.rsplit_once('/').unwrap_or(("", &path));
    match base.strip_prefix(MARK) {
        Some(_) if base == OPAQUE => return Ok(Some((folder.to_owned(), EntryKind::Opaque))),
        Some(_) if base.starts_with(OTHERS) => return Ok(None),
        Some(gone) => {
            let path = path::validate(path::below(folder, gone).as_bytes())?;
            return Ok(Some((path, EntryKind::Whiteout)));
        }
        None => {}
    }
    let kind = match &member.kind {
        MemberKind::File => EntryKind::File { extent, size: member.size },
        MemberKind::Directory => EntryKind::Directory,
        MemberKind::Symlink(target) => EntryKind::Symlink(path::link_text(&path, target)?),
        MemberKind::HardLink(target) => {
            let end = path::of_layered(target)?;
            EntryKind::HardLink(end.ok_or_else(|| {
                Error::new(Kind::Invalid, format!("refused hard link {path:?}: it is one to the root"))
            })?)
        }
    };
    Ok(Some((path, kind)))
}
