//! What the kernel is answered, from the model and the table of handles: attributes, listings, opens and reads.
//!
//! Shared by the session threads and by the tasks that replies move to, so that everything here may be called from
//! any of them at once. Called by the [`adapter`](super::adapter), and by the session for invalidation.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackingId, Errno, FileAttr, FileHandle, FileType, FopenFlags, Generation, INodeNo, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen,
};
use parking_lot::Mutex;

use super::complaints::Complaints;
use super::handles::{Handles, Ino, Opened};
use super::native::{Native, Verdict};
use super::numbers::Base;
use super::{Modes, Options, ReadAround, kernel};
use crate::content::{Held, Wholeness};
use crate::error::Error;
use crate::fs::{Child, Model, Node, NodeId, NodeKind};

/// An artifact is pinned by digest and never changes, so names and attributes stay for ever (34 years).
pub(super) const FOR_EVER: Duration = Duration::from_secs(1 << 30);

/// What `stat` recommends to read at once: the largest request the kernel makes. Buffered readers size their
/// buffers by it: llama.cpp parses a header of megabytes with a system call for each block.
const BLKSIZE: u32 = 1 << 20;

/// How much of a file that the kernel serves by itself is read ahead when it is opened: a few milliseconds of a disk.
const AHEAD: u64 = kernel::WINDOW;

/// What files and folders look like, apart from what the tree says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Looks {
    /// The owner shown.
    uid: u32,
    /// The group shown.
    gid: u32,
    /// Taken from 0444 and 0555.
    umask: u32,
    /// Whose permissions are shown.
    modes: Modes,
}

impl Looks {
    /// As the options of the mount have it.
    pub(super) fn of(options: &Options) -> Self {
        Self {
            uid: options.uid.unwrap_or_else(|| nix::unistd::getuid().as_raw()),
            gid: options.gid.unwrap_or_else(|| nix::unistd::getgid().as_raw()),
            umask: options.umask,
            modes: options.modes,
        }
    }

    /// The attributes of something that others may read, of that many bytes.
    pub(super) fn show(&self, ino: INodeNo, kind: FileType, size: u64, time: SystemTime) -> FileAttr {
        let (mode, kept) = match kind {
            FileType::Symlink => (0o777, 0o777),
            FileType::Directory => (0o555, 0o777 & !self.umask),
            _ => (0o444, 0o777 & !self.umask),
        };
        FileAttr {
            ino,
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm: u16::try_from(mode & kept).unwrap_or(0),
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLKSIZE,
            flags: 0,
        }
    }

    /// The permissions of what a reader needs `least` of, and of which `recorded` are its writer's; nothing was where it has
    /// `unsaid`.
    fn mode(&self, least: u32, recorded: u32, unsaid: u32) -> u32 {
        let mode = match (self.modes, recorded) {
            (Modes::Read, _) => least,
            (Modes::Image, 0) => unsaid,
            // Without those that lend the rights of an owner, who is another one here.
            (Modes::Image, recorded) => recorded & 0o1777,
        };
        mode & !self.umask
    }
}

/// What answers, shared by session threads and the tasks that replies move to.
#[derive(Debug)]
pub(super) struct Answers {
    /// What is mounted.
    pub(super) model: Arc<Model>,
    looks: Looks,
    /// What its numbers have in common.
    base: Base,
    /// What is open.
    pub(super) handles: Handles<Option<Held>, BackingId>,
    /// Whether the kernel takes complete files.
    pub(super) native: Verdict,
    read_around: ReadAround,
    complaints: Complaints,
    /// Held while the beginning of a file is read ahead.
    ahead: Mutex<()>,
}

/// For whom the kernel reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// For its page cache: what somebody needs, and what it wishes to have beside that.
    Cache,
    /// For a program that reads past the page cache.
    Program,
}

impl Answers {
    /// Answers from `model`, which has the superblock for itself; nothing is open yet.
    pub(super) fn new(model: Arc<Model>, options: &Options) -> Self {
        Self::within(Base::default(), model, options)
    }

    /// The same, for a model whose numbers have `base` in common.
    pub(super) fn within(base: Base, model: Arc<Model>, options: &Options) -> Self {
        let handles = Handles::new(model.tree.len(), base);
        let native = Verdict::new(options.passthrough);
        let (looks, read_around) = (Looks::of(options), options.read_around);
        let (complaints, ahead) = (Complaints::default(), Mutex::default());
        Self { model, looks, base, handles, native, read_around, complaints, ahead }
    }

    /// What an open file keeps; `None` for what has no content. Blocks for a moment on the local disk.
    pub(super) fn hold(&self, id: NodeId) -> Option<Held> {
        self.model.extent(id).map(|extent| self.model.loader.hold(extent))
    }

    /// The files that are open and served by replies under the number that lookups answer now, with these numbers.
    pub(super) fn served_by_replies(&self) -> Vec<(Ino, NodeId)> {
        let open = self.handles.served_by_replies().into_iter();
        let found = open.filter_map(|ino| Some((ino, self.model.tree.at(ino.position()?)?)));
        found.filter(|(ino, id)| self.handles.generations().ino(*id) == *ino).collect()
    }

    /// How many files the kernel serves by itself, and why not the others. Reads a small file of the store for each that is not
    /// sealed, so it blocks.
    pub(super) fn count_native(&self) -> Native {
        let mut native = Native::default();
        for (id, _) in self.model.tree.nodes() {
            let wholeness = self.model.extent(id).and_then(|extent| self.model.loader.wholeness(extent));
            if let Some(wholeness) = wholeness {
                native.count(self.why_not_native(id, wholeness));
            }
        }
        native
    }

    fn why_not_native(&self, id: NodeId, wholeness: Wholeness) -> Option<&'static str> {
        if let Some(refusal) = self.native.refusal() {
            return Some(refusal.name());
        }
        match wholeness {
            Wholeness::Incomplete => Some("incomplete"),
            Wholeness::Unproved => Some("unproved"),
            Wholeness::Unsealed => Some("unsealed"),
            Wholeness::Sealed if self.native.is_unasked() => Some("unasked"),
            Wholeness::Sealed => {
                let ino = self.handles.generations().ino(id);
                self.handles.is_served_by_replies(ino).then_some("open")
            }
        }
    }

    /// Every number that the kernel may know for a file of this layer.
    pub(super) fn inodes_of(&self, layer: usize) -> impl Iterator<Item = INodeNo> {
        let files = self.model.tree.nodes().filter(move |(_, node)| extent_layer(node) == Some(layer));
        files.flat_map(move |(id, _)| self.handles.generations().known(id).map(|ino| self.base.outer(ino)))
    }

    pub(super) fn node(&self, ino: INodeNo) -> Option<(NodeId, &Node)> {
        let id = self.model.tree.at(self.base.inner(ino).position()?)?;
        self.model.tree.node(id).map(|node| (id, node))
    }

    /// A number as the kernel knows it.
    pub(super) fn outer(&self, ino: Ino) -> INodeNo {
        self.base.outer(ino)
    }

    /// The number that a lookup answers now.
    pub(super) fn number(&self, id: NodeId) -> INodeNo {
        self.base.outer(self.handles.generations().ino(id))
    }

    pub(super) fn attributes(&self, ino: INodeNo, node: &Node) -> FileAttr {
        let (kind, size, mode) = match &node.kind {
            NodeKind::File { size, .. } => {
                (FileType::RegularFile, *size, self.looks.mode(0o444, node.mode, 0o400))
            }
            // One that only its files' names imply has none recorded.
            NodeKind::Directory(_) => (FileType::Directory, 0, self.looks.mode(0o555, node.mode, 0o755)),
            NodeKind::Symlink(target) => {
                (FileType::Symlink, target.len().try_into().unwrap_or(u64::MAX), 0o777)
            }
        };
        let shown = self.looks.show(ino, kind, size, time(node.mtime));
        FileAttr { perm: u16::try_from(mode).unwrap_or(0), nlink: node.nlink(), ..shown }
    }

    /// The attributes under the number that a lookup answers now.
    pub(super) fn present(&self, id: NodeId) -> Option<FileAttr> {
        let node = self.model.tree.node(id)?;
        Some(self.attributes(self.number(id), node))
    }

    /// `.` and `..` and the children from `offset` on, each with the offset of what comes after it.
    pub(super) fn listing(&self, id: NodeId, offset: u64) -> impl Iterator<Item = (u64, &str, NodeId)> {
        let parent = self.model.tree.node(id).map_or(NodeId::ROOT, |node| node.parent);
        listed(id, parent, self.model.tree.children(id).unwrap_or(&[]), offset)
    }

    /// Answers a lookup. That there is no such name the kernel keeps in mind as well, so it is said only of what will never be.
    pub(super) fn name(&self, found: Option<NodeId>, reply: ReplyEntry) {
        let found = found.and_then(|id| self.present(id));
        reply.entry(&FOR_EVER, &found.unwrap_or_else(absent), Generation(0));
    }

    /// Answers a lookup of a name that has not come yet.
    pub(super) async fn look_up(&self, parent: NodeId, name: &[u8], reply: ReplyEntry) {
        match self.model.look_up(parent, name).await {
            Ok(found) => self.name(found, reply),
            Err(error) => reply.error(self.complain(&error)),
        }
    }

    /// Waits until folders can be listed.
    pub(super) async fn all_named(&self) -> Result<(), Errno> {
        self.model.all_named().await.map_err(|error| self.complain(&error))
    }

    /// Answers a listing from `offset` on.
    pub(super) fn list(&self, id: NodeId, offset: u64, mut reply: ReplyDirectory) {
        for (next, name, node) in self.listing(id, offset) {
            let Some(attr) = self.present(node) else { continue };
            if reply.add(attr.ino, next, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    /// The same, with what lookups of the names would answer.
    pub(super) fn list_plus(&self, id: NodeId, offset: u64, mut reply: ReplyDirectoryPlus) {
        for (next, name, node) in self.listing(id, offset) {
            let Some(attr) = self.present(node) else { continue };
            if reply.add(attr.ino, next, name, &FOR_EVER, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    /// Opens for reading; may look at the store's disk for a moment.
    pub(super) fn open(&self, ino: INodeNo, id: NodeId, reply: ReplyOpen) {
        let metrics = &self.model.metrics;
        if let Some(digest) = self.model.poisoned(id) {
            let path = self.model.tree.path(id);
            self.complaints.say(&format!("{path} is not opened: its layer {digest} is poisoned"));
            return reply.error(Errno::EIO);
        }
        let whole = if self.native.may_ask() { whole } else { nothing };
        let mut cold = None;
        let register = |file: &File| {
            let registered = self.native.heard(reply.open_backing(file), metrics);
            cold = file.try_clone().ok().filter(|_| registered.is_ok());
            registered
        };
        let held = self.hold(id);
        if let Some(image) = held.as_ref().and_then(Held::image).filter(|_| self.native.is_unasked()) {
            // Whatever it has of the file so far: what was registered is let go of at once.
            self.native.learn(&reply.open_backing(image));
        }
        let opened = self.handles.open(self.base.inner(ino), held, whole, register);
        match opened {
            Opened::Cached(handle) => {
                metrics.cached_opens.add(1);
                reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Opened::Native(handle, id) => {
                metrics.passthrough_opens.add(1);
                // Chunks are written past the page cache: the first reader would wait for the disk by 128 KiB. Not beside him: where
                // two read the same, the kernel brings it in single pages, and touching those takes half as long again.
                if let Some(file) = cold {
                    self.read_ahead(&file);
                }
                // FOPEN_KEEP_CACHE beside passthrough is refused by the kernel (EINVAL).
                reply.opened_passthrough(FileHandle(handle), FopenFlags::FOPEN_NOFLUSH, &id);
            }
            // The kernel walks the path again, asks for the name anew and gets another number.
            Opened::Stale => reply.error(Errno::ESTALE),
        }
    }

    /// Has the kernel read the beginning of a file that it serves by itself; nothing while it does so of another, so that whoever
    /// opens many holds up neither the disk nor the threads that open.
    fn read_ahead(&self, file: &File) {
        let Some(_alone) = self.ahead.try_lock() else { return };
        let len = file.metadata().map_or(0, |meta| meta.len()).min(AHEAD);
        if !kernel::is_cached(file, len / 2) || !kernel::is_cached(file, len.saturating_sub(1)) {
            kernel::read_ahead(file, 0, len, || !self.model.loader.is_closing());
        }
    }

    /// The bytes in memory, if they are; a panic below counts as their not being there.
    pub(super) fn ready(&self, id: NodeId, offset: u64, size: u32) -> Option<bytes::Bytes> {
        catch_unwind(AssertUnwindSafe(|| self.model.ready(id, offset, u64::from(size)))).unwrap_or(None)
    }

    /// Answers a read that waits for disk or network.
    pub(super) async fn read(self: Arc<Self>, id: NodeId, offset: u64, size: u32, by: By, reply: ReplyData) {
        let may_decline = by == By::Cache && self.read_around == ReadAround::Auto;
        if may_decline && self.model.declines(id, offset, u64::from(size)).await {
            self.model.metrics.declined_reads.add(1);
            return reply.error(Errno::EAGAIN);
        }
        match self.model.read(id, offset, u64::from(size)).await {
            Ok(bytes) => reply.data(&bytes),
            Err(error) => {
                self.model.metrics.read_errors.add(1);
                reply.error(self.complain(&error));
            }
        }
    }

    fn complain(&self, error: &Error) -> Errno {
        // What the kernel reads ahead is given up when the mount is ended, and nobody waits for it.
        if !self.model.loader.is_closing() {
            self.complaints.say(&error.to_string());
        }
        Errno::from_i32(error.kind().errno())
    }
}

/// Begins at `offset` at once, so that listing a large folder part by part costs no more than listing it.
fn listed(
    id: NodeId,
    parent: NodeId,
    children: &[Child],
    offset: u64,
) -> impl Iterator<Item = (u64, &str, NodeId)> {
    let skip = usize::try_from(offset).unwrap_or(usize::MAX);
    let dots = [(".", id), ("..", parent)].into_iter().skip(skip);
    let rest = children.get(skip.saturating_sub(2)..).unwrap_or(&[]);
    let named = rest.iter().map(|child| (&*child.name, child.node));
    dots.chain(named).zip(offset.saturating_add(1)..).map(|((name, node), next)| (next, name, node))
}

fn whole(held: &Option<Held>) -> Option<&File> {
    held.as_ref()?.whole()
}

fn nothing(_: &Option<Held>) -> Option<&File> {
    None
}

fn extent_layer(node: &Node) -> Option<usize> {
    match node.kind {
        NodeKind::File { extent, .. } => extent.map(|extent| extent.layer),
        NodeKind::Directory(_) | NodeKind::Symlink(_) => None,
    }
}

fn time(seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let time = match seconds {
        0.. => SystemTime::UNIX_EPOCH.checked_add(span),
        _ => SystemTime::UNIX_EPOCH.checked_sub(span),
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Attributes whose number 0 makes an entry say that there is no such name, which the kernel then keeps in mind.
pub(super) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
        crtime: SystemTime::UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLKSIZE,
        flags: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_beyond_what_the_clock_holds_are_shown_as_well_as_can_be() {
        assert_eq!(time(0), SystemTime::UNIX_EPOCH);
        assert_eq!(time(-1), SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        let _ = (time(i64::MIN), time(i64::MAX));
    }

    #[test]
    fn permissions_are_those_to_read_or_those_recorded_and_lend_no_owners_rights() {
        let looks = |modes, umask| Looks { uid: 0, gid: 0, umask, modes };
        assert_eq!(looks(Modes::Read, 0o077).mode(0o444, 0o4755, 0o400), 0o400);
        let image = looks(Modes::Image, 0);
        assert_eq!((image.mode(0o444, 0o6755, 0o400), image.mode(0o555, 0o1777, 0o755)), (0o755, 0o1777));
        assert_eq!((image.mode(0o444, 0, 0o400), image.mode(0o555, 0, 0o755)), (0o400, 0o755));
    }

    #[test]
    fn a_listing_goes_on_at_any_offset() {
        let child = |name: &str| Child { name: name.into(), node: NodeId::ROOT };
        let children = ["a", "b", "c"].map(child);
        let names = |offset| {
            let listed = listed(NodeId::ROOT, NodeId::ROOT, &children, offset);
            listed.map(|(next, name, _)| (next, name.to_owned())).collect::<Vec<_>>()
        };
        let all = names(0);
        assert_eq!(all.iter().map(|(_, name)| &**name).collect::<Vec<_>>(), [".", "..", "a", "b", "c"]);
        for (at, (next, _)) in (1..).zip(&all) {
            assert_eq!((*next, names(*next)), (at as u64, all[at..].to_vec()));
        }
        assert!(names(6).is_empty() && names(u64::MAX).is_empty());
    }
}
