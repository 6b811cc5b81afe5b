//! What the kernel asks of a gallery: the folders are answered here, what is in a model by the model's own adapter.
//!
//! Nothing of the mount's own folder may be kept in mind by the kernel, since models come and go; a model's folder and what is in
//! it stay as they are for as long as they are found. Made by the gallery.

use std::ffi::OsStr;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};

use super::rooms::{Place, Room, Rooms};
use crate::mount::adapter::{BLOCK, negotiate, offer_passthrough};
use crate::mount::answers::FOR_EVER;

/// How long the kernel may keep what may change at any moment.
const NO_TIME: Duration = Duration::ZERO;

/// What `fuser` asks. Everything that writes is refused by the kernel, for which the mount is read-only, or by what `fuser`
/// answers by itself (ENOSYS, EPERM).
#[derive(Debug)]
pub(super) struct Doors {
    rooms: Arc<Rooms>,
}

impl Doors {
    pub(super) fn new(rooms: Arc<Rooms>) -> Self {
        Self { rooms }
    }

    /// `.` and `..` and what is in a folder of ours from `offset` on, each with the offset of what comes after it.
    fn listed(&self, place: &Place, offset: u64) -> Option<Vec<(u64, String, FileAttr, Duration)>> {
        let root = self.rooms.root();
        let (own, rest) = match place {
            Place::Root => {
                let rooms = self.rooms.listing(offset).into_iter();
                (root, rooms.map(|(next, name, attr)| (next, name, attr, NO_TIME)).collect())
            }
            Place::Folder(room) => (room.folder(), inside(room, offset)),
            Place::Note(_) | Place::Inside(_) => return None,
        };
        let dots = [(1, ".".to_owned(), own, NO_TIME), (2, "..".to_owned(), root, NO_TIME)];
        Some(dots.into_iter().filter(|(next, ..)| *next > offset).chain(rest).collect())
    }
}

fn inside(room: &Room, offset: u64) -> Vec<(u64, String, FileAttr, Duration)> {
    let children = (3..).zip(room.children());
    let later = children.filter(|(next, _)| *next > offset);
    later.map(|(next, (name, attr))| (next, name.to_owned(), attr, FOR_EVER)).collect()
}

impl Filesystem for Doors {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config);
        if self.rooms.wants_passthrough() && !offer_passthrough(config) {
            self.rooms.no_passthrough();
        }
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = match self.rooms.place(parent) {
            Some(Place::Root) => {
                let room = self.rooms.named(name.as_encoded_bytes());
                room.map(|room| (room.folder(), NO_TIME))
            }
            Some(Place::Folder(room)) => {
                let child = room.children().into_iter().find(|(own, _)| OsStr::new(own) == name);
                child.map(|(_, attr)| (attr, FOR_EVER))
            }
            Some(Place::Inside(room)) => return room.adapter().lookup(request, parent, name, reply),
            Some(Place::Note(_)) => return reply.error(Errno::ENOTDIR),
            None => None,
        };
        match found {
            Some((attr, life)) => reply.entry(&life, &attr, Generation(0)),
            // Not kept in mind: it may come.
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, request: &Request, ino: INodeNo, handle: Option<FileHandle>, reply: ReplyAttr) {
        match self.rooms.place(ino) {
            Some(Place::Root) => reply.attr(&NO_TIME, &self.rooms.root()),
            Some(Place::Folder(room)) => reply.attr(&FOR_EVER, &room.folder()),
            Some(Place::Note(room)) => reply.attr(&FOR_EVER, &room.note_file()),
            Some(Place::Inside(room)) => room.adapter().getattr(request, ino, handle, reply),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => room.adapter().readlink(request, ino, reply),
            Some(_) => reply.error(Errno::EINVAL),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => room.adapter().open(request, ino, flags, reply),
            Some(Place::Note(room)) if flags.acc_mode() == fuser::OpenAccMode::O_RDONLY => {
                room.open_note();
                reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
            }
            Some(Place::Note(_)) => reply.error(Errno::EROFS),
            Some(Place::Root | Place::Folder(_)) => reply.error(Errno::EISDIR),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => {
                room.adapter().read(request, ino, handle, offset, size, flags, owner, reply);
            }
            Some(Place::Note(room)) => {
                let at = usize::try_from(offset).unwrap_or(usize::MAX);
                let rest = room.note().get(at..).unwrap_or(&[]);
                reply.data(rest.get(..usize::try_from(size).unwrap_or(usize::MAX)).unwrap_or(rest));
            }
            Some(Place::Root | Place::Folder(_)) => reply.error(Errno::EISDIR),
            None => reply.error(Errno::EIO),
        }
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        flush: bool,
        reply: ReplyEmpty,
    ) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => {
                room.adapter().release(request, ino, handle, flags, owner, flush, reply);
            }
            Some(Place::Note(room)) => {
                room.close_note();
                reply.ok();
            }
            _ => reply.ok(),
        }
    }

    fn opendir(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => room.adapter().opendir(request, ino, flags, reply),
            Some(_) => reply.opened(FileHandle(0), FopenFlags::empty()),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readdir(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let place = match self.rooms.place(ino) {
            Some(Place::Inside(room)) => return room.adapter().readdir(request, ino, handle, offset, reply),
            Some(place) => place,
            None => return reply.error(Errno::ENOENT),
        };
        let Some(listed) = self.listed(&place, offset) else { return reply.error(Errno::ENOTDIR) };
        for (next, name, attr, _) in listed {
            if reply.add(attr.ino, next, attr.kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let place = match self.rooms.place(ino) {
            Some(Place::Inside(room)) => {
                return room.adapter().readdirplus(request, ino, handle, offset, reply);
            }
            Some(place) => place,
            None => return reply.error(Errno::ENOENT),
        };
        let Some(listed) = self.listed(&place, offset) else { return reply.error(Errno::ENOTDIR) };
        for (next, name, attr, life) in listed {
            if reply.add(attr.ino, next, name, &life, &attr, Generation(0)) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => room.adapter().statfs(request, ino, reply),
            _ => reply.statfs(0, 0, 0, 0, 0, BLOCK, 255, BLOCK),
        }
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => room.adapter().getxattr(request, ino, name, size, reply),
            Some(_) => reply.error(Errno::NO_XATTR),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.rooms.place(ino) {
            Some(Place::Inside(room)) => room.adapter().listxattr(request, ino, size, reply),
            Some(_) if size == 0 => reply.size(0),
            Some(_) => reply.data(&[]),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
