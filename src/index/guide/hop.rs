//! The archive's headers, from one to the next, through what a layer says of its parts.

use super::front::Front;
use crate::codec::tar::{self, Member, MemberKind, Step};
use crate::codec::toc::{self, EntryKind};
use crate::error::{Error, Kind, Result};
use crate::index::names::Names;
use crate::index::plain::Task;
use crate::index::{Entry, ExtentId};
use crate::range::ContentRange;

/// The most bytes of headers of a layer that is looked into.
const HEADERS: u64 = 16 << 20;

/// Where content comes from.
pub(super) enum Source<'a> {
    /// Frames that are read where they are needed.
    Frames(Front<'a>),
    /// All that lies between files, sorted, no two of them neighbours: where each begins, and its bytes.
    Pieces(Vec<(u64, Vec<u8>)>),
}

/// What the headers say.
pub(super) struct Hopped {
    pub(super) extents: Vec<ContentRange>,
    pub(super) entries: Vec<Entry>,
    pub(super) warnings: Vec<String>,
    /// Whether what was said of files before is what the headers say.
    pub(super) agrees: bool,
}

/// Goes over the archive, which has `content` bytes. `said` are its entries by another word, to be compared.
///
/// # Errors
/// Those of reading, decoding and archives; `Invalid` where a header is where no header should be.
pub(super) async fn hop(
    task: &Task<'_>,
    source: &mut Source<'_>,
    content: u64,
    said: &[toc::Entry],
) -> Result<Hopped> {
    let (mut names, mut extents) = (Names::new(task.layer, task.number), Vec::new());
    let (mut said, mut agrees) = (said.iter(), true);
    let (mut place, mut headers) = (0_u64, 0_u64);
    loop {
        let left = content.saturating_sub(place);
        let member = match tar::step(source.from(place), left)? {
            Step::Need(len) => {
                source.reach(ContentRange::new(place, place.saturating_add(len))).await?;
                continue;
            }
            Step::End(_) => break,
            Step::Member(member) => member,
        };
        headers = headers.saturating_add(member.data);
        if headers > HEADERS {
            return Err(Error::new(Kind::Unsupported, "its archive holds more than 16 MiB of headers"));
        }
        agrees &= agree(&member, &mut said);
        let start = place.checked_add(member.data).ok_or_else(beyond)?;
        let range = ContentRange::at(start, member.size).ok_or_else(beyond)?;
        place = place.checked_add(member.next).ok_or_else(beyond)?;
        let extent = (!range.is_empty()).then_some(ExtentId { layer: task.number, extent: extents.len() });
        extents.extend(extent.map(|_| range));
        names.add(member, extent)?;
    }
    agrees &= said.next().is_none();
    let (entries, warnings) = names.finish()?;
    Ok(Hopped { extents, entries, warnings, agrees })
}

fn beyond() -> Error {
    Error::new(Kind::Invalid, "an archive's member lies beyond 64 bits")
}

/// Whether the member is the next of those that were said. The table itself is none of them, nor is the root folder.
fn agree<'a>(member: &Member, said: &mut impl Iterator<Item = &'a toc::Entry>) -> bool {
    let name = plain(&member.name);
    if name.is_empty() || name == crate::codec::estargz::TABLE.as_bytes() {
        return true;
    }
    let Some(entry) = said.find(|entry| !plain(entry.name.as_bytes()).is_empty()) else { return false };
    let same = match (&entry.kind, &member.kind) {
        (EntryKind::File(file), MemberKind::File) => file.size == member.size,
        (EntryKind::Directory, MemberKind::Directory) => true,
        (EntryKind::Symlink(said), MemberKind::Symlink(target)) => said.as_bytes() == target.as_slice(),
        (EntryKind::HardLink(said), MemberKind::HardLink(target)) => plain(said.as_bytes()) == plain(target),
        _ => false,
    };
    same && plain(entry.name.as_bytes()) == name
}

/// The name without what writers put before or behind it.
fn plain(name: &[u8]) -> &[u8] {
    let name = name.strip_prefix(b"./").unwrap_or(name);
    let name = name.strip_suffix(b"/").unwrap_or(name);
    if name == b"." { b"" } else { name }
}

impl Source<'_> {
    fn from(&self, place: u64) -> &[u8] {
        match self {
            Self::Frames(front) => front.from(place),
            Self::Pieces(pieces) => {
                let after = pieces.partition_point(|(start, _)| *start <= place);
                let piece = after.checked_sub(1).and_then(|at| pieces.get(at));
                let rest = piece.and_then(|(start, bytes)| bytes.get(usize::try_from(place - start).ok()?..));
                rest.unwrap_or_default()
            }
        }
    }

    async fn reach(&mut self, wanted: ContentRange) -> Result<()> {
        match self {
            Self::Frames(front) => front.reach(wanted).await,
            Self::Pieces(_) => {
                let doing =
                    format!("its table of contents has a file where a header is, at byte {}", wanted.start());
                Err(Error::new(Kind::Invalid, doing))
            }
        }
    }
}
