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
    Frames(Box<Front<'a>>),
    /// All that lies between files, sorted, no two of them neighbours: where each begins, and its bytes.
    Pieces(Vec<(u64, Vec<u8>)>),
}

/// What the headers say.
pub(super) struct Hopped {
    pub(super) extents: Vec<ContentRange>,
    pub(super) entries: Vec<Entry>,
    pub(super) warnings: Vec<String>,
    /// Which entry said of it each extent is, where it agrees.
    pub(super) files: Vec<Option<usize>>,
    /// Whether what was said of files before is what the headers say.
    pub(super) agrees: bool,
}

/// What is said of the archive by another word, to be compared.
#[derive(Clone, Copy, Default)]
pub(super) struct Said<'a> {
    /// Its entries.
    pub(super) entries: &'a [toc::Entry],
    /// Where the content begins of the member that is the table itself.
    pub(super) table: Option<u64>,
}

/// Goes over the archive, which has `content` bytes.
///
/// # Errors
/// Those of reading, decoding and archives; `Invalid` where a header is where no header should be.
pub(super) async fn hop(
    task: &Task<'_>,
    source: &mut Source<'_>,
    content: u64,
    said: Said<'_>,
) -> Result<Hopped> {
    let (mut names, mut extents) = (Names::new(task.layer, task.number), Vec::new());
    let (mut entries, mut agrees, mut files) = (said.entries.iter().enumerate(), true, Vec::new());
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
        let is_table = said.table == Some(place);
        let agreed = agree(&member, is_table, &mut entries);
        agrees &= agreed.is_some();
        // Its names are held twice: by the tree, and by who compares them when the layer has gone by.
        task.room.hold(2, usize::try_from(member.data).unwrap_or(usize::MAX))?;
        let start = place.checked_add(member.data).ok_or_else(beyond)?;
        let range = ContentRange::at(start, member.size).ok_or_else(beyond)?;
        place = place.checked_add(member.next).ok_or_else(beyond)?;
        let extent = (!range.is_empty()).then_some(ExtentId { layer: task.number, extent: extents.len() });
        extents.extend(extent.map(|_| range));
        files.extend(extent.map(|_| agreed.flatten()));
        names.add(member, extent)?;
        // There may be many that are here already.
        tokio::task::consume_budget().await;
    }
    agrees &= entries.next().is_none();
    let (entries, warnings) = names.finish()?;
    Ok(Hopped { extents, entries, warnings, files, agrees })
}

fn beyond() -> Error {
    Error::new(Kind::Invalid, "an archive's member lies beyond 64 bits")
}

/// Which of those that were said the member is: the next one, or none of them where it is the table itself or the root
/// folder. `None` where it is another than was said.
fn agree<'a>(
    member: &Member,
    is_table: bool,
    said: &mut impl Iterator<Item = (usize, &'a toc::Entry)>,
) -> Option<Option<usize>> {
    let name = plain(&member.name);
    let is_own = is_table && name == crate::codec::estargz::TABLE.as_bytes();
    if (is_own && member.kind == MemberKind::File)
        || (name.is_empty() && member.kind == MemberKind::Directory)
    {
        return Some(None);
    }
    let (number, entry) = said.find(|(_, entry)| !plain(entry.name.as_bytes()).is_empty())?;
    let same = match (&entry.kind, &member.kind) {
        (EntryKind::File(file), MemberKind::File) => file.size == member.size,
        (EntryKind::Directory, MemberKind::Directory) => true,
        (EntryKind::Symlink(said), MemberKind::Symlink(target)) => said.as_bytes() == target.as_slice(),
        (EntryKind::HardLink(said), MemberKind::HardLink(target)) => plain(said.as_bytes()) == plain(target),
        _ => false,
    };
    let same = same && entry.mode == member.mode & 0o7777 && plain(entry.name.as_bytes()) == name;
    same.then_some(Some(number))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tar::tests::plain as header;
    use crate::codec::toc::File;

    fn member(name: &str) -> Member {
        match tar::step(&header(name, 5), 4096).unwrap() {
            Step::Member(member) => member,
            other => panic!("{other:?}"),
        }
    }

    fn entry(name: &str, mode: u32) -> toc::Entry {
        let kind = EntryKind::File(File { size: 5, digest: None, parts: Vec::new() });
        toc::Entry { name: name.to_owned(), kind, mode }
    }

    #[test]
    fn a_member_that_was_not_said_is_passed_over_only_where_the_table_itself_is() {
        let table = member(crate::codec::estargz::TABLE);
        let agreed = |member: &Member, is_table| agree(member, is_table, &mut std::iter::empty());
        assert_eq!(agreed(&table, true), Some(None));
        assert_eq!(agreed(&table, false), None);
        assert_eq!(agreed(&member("other"), true), None);
        assert_eq!(agreed(&member("./"), false), None, "a file");
    }

    #[test]
    fn a_member_is_the_next_that_was_said_with_its_name_and_permissions() {
        let member = member("a");
        let agreed = |entry: &toc::Entry| agree(&member, false, &mut [(7, entry)].into_iter());
        assert_eq!(agreed(&entry("./a", member.mode)), Some(Some(7)));
        assert_eq!(agreed(&entry("a", member.mode ^ 0o111)), None);
        assert_eq!(agreed(&entry("b", member.mode)), None);
    }
}
