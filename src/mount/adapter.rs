//! The FUSE adapter: each question of the kernel as one call of the floor below, and its answer.
//!
//! A thin skin: names, sizes and reads are the model's. Session threads never wait: what may touch disk or
//! network (open, reads that are not in memory, names that have not come yet) moves with its reply to the runtime. A reply that is dropped, as
//! by a panic, answers EIO by itself, so the mount outlives it. Made by the session.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags, KernelConfig,
    LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::answers::{Answers, By, FOR_EVER};
use crate::fs::NodeKind;

/// The longest name of one file, as the tree allows it and as `statfs` says.
const NAME_LIMIT: usize = 255;

/// The block that `statfs` counts in.
pub(super) const BLOCK: u32 = 4096;

/// The largest request, in bytes, whatever `fs.fuse.max_pages_limit` would allow: it bounds a reply's memory.
const REQUEST: u32 = 1 << 20;

/// How many read-ahead requests may wait at once. With the default of 16 the kernel stops asking, and page faults
/// queue behind each other, while 16 requests of 1 MiB wait for the network.
const BACKGROUND: u16 = 64;

/// Wanted where the kernel has them. Immutable content makes all of them safe. `ATOMIC_O_TRUNC` and the write-back
/// cache are left out since nothing is written.
const CAPABILITIES: [InitFlags; 6] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
];

/// By getxattr(2): a size of 0 asks how long the value is; one that is too small is ERANGE.
fn answer_value(value: &[u8], size: u32, reply: ReplyXattr) {
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(value),
        Ok(_) | Err(_) => reply.error(Errno::ERANGE),
    }
}

/// The kernel names the owner of locks where it reads for a program (`fuse_direct_io`, whoever asked for that: a flag of the
/// file, or of one read), and never where it fills the page cache (`fuse_readahead`, `fuse_read_folio`).
fn by(flags: OpenFlags, owner: Option<LockOwner>) -> By {
    let is_direct = owner.is_some() || flags.0 & nix::libc::O_DIRECT != 0;
    if is_direct { By::Program } else { By::Cache }
}

/// Agrees with the kernel upon what the session can.
pub(super) fn negotiate(config: &mut KernelConfig) {
    for capability in CAPABILITIES {
        if config.add_capabilities(capability).is_err() {
            tracing::debug!(?capability, "not in this kernel");
        }
    }
    // Each fails only for values out of range, which these are not.
    let _ = config.set_max_background(BACKGROUND);
    let _ = config.set_congestion_threshold(BACKGROUND);
    let _ = config.set_max_write(REQUEST);
    // 1 is what passthrough needs; with 2 the mount could not be the lower layer of an overlay.
    let _ = config.set_max_stack_depth(1);
}

/// Offers to give the kernel complete files; whether it knows what that is.
pub(super) fn offer_passthrough(config: &mut KernelConfig) -> bool {
    config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
}

/// What `fuser` asks. Everything that writes is EROFS, should it get past the kernel's read-only mount.
#[derive(Debug)]
pub(super) struct Adapter {
    answers: Arc<Answers>,
    runtime: tokio::runtime::Handle,
}

impl Adapter {
    /// Must be called within a tokio runtime, where replies that wait will live.
    pub(super) fn new(answers: Arc<Answers>) -> Self {
        Self { answers, runtime: tokio::runtime::Handle::current() }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        negotiate(config);
        if self.answers.native.may_ask() && !offer_passthrough(config) {
            self.answers.native.unknown();
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_encoded_bytes();
        let Some((parent, _)) = self.answers.node(parent) else { return reply.error(Errno::ENOENT) };
        if name.len() > NAME_LIMIT {
            return reply.error(Errno::ENAMETOOLONG);
        }
        match self.answers.model.known(parent, name) {
            Some(found) => self.answers.name(found, reply),
            None => {
                let (answers, name) = (self.answers.clone(), name.to_owned());
                self.runtime.spawn(async move { answers.look_up(parent, &name, reply).await });
            }
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.answers.node(ino) {
            Some((_, node)) => reply.attr(&FOR_EVER, &self.answers.attributes(ino, node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.answers.node(ino).map(|(_, node)| &node.kind) {
            Some(NodeKind::Symlink(target)) => reply.data(target.as_bytes()),
            Some(NodeKind::File { .. } | NodeKind::Directory(_)) => reply.error(Errno::EINVAL),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let Some((id, _)) = self.answers.node(ino) else { return reply.error(Errno::ENOENT) };
        let answers = self.answers.clone();
        self.runtime.spawn_blocking(move || answers.open(ino, id, reply));
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answers.model.metrics.reads.add(1);
        let Some((id, _)) = self.answers.node(ino) else { return reply.error(Errno::EIO) };
        match self.answers.ready(id, offset, size) {
            Some(bytes) => reply.data(&bytes),
            None => {
                let answers = self.answers.clone();
                self.runtime.spawn(answers.read(id, offset, size, by(flags, owner), reply));
            }
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let held = self.answers.handles.release(handle.0);
        reply.ok();
        // Letting go of the store's file may close it, which is the disk's time and not the session's.
        if held.as_ref().is_some_and(Option::is_some) {
            self.runtime.spawn_blocking(move || {
                let _until_here = held;
            });
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn readdir(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectory) {
        let Some((id, _)) = self.answers.node(ino) else { return reply.error(Errno::ENOENT) };
        if self.answers.model.is_named() {
            return self.answers.list(id, offset, reply);
        }
        let answers = self.answers.clone();
        self.runtime.spawn(async move {
            match answers.all_named().await {
                Ok(()) => answers.list(id, offset, reply),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn readdirplus(&self, _: &Request, ino: INodeNo, _: FileHandle, offset: u64, reply: ReplyDirectoryPlus) {
        let Some((id, _)) = self.answers.node(ino) else { return reply.error(Errno::ENOENT) };
        if self.answers.model.is_named() {
            return self.answers.list_plus(id, offset, reply);
        }
        let answers = self.answers.clone();
        self.runtime.spawn(async move {
            match answers.all_named().await {
                Ok(()) => answers.list_plus(id, offset, reply),
                Err(errno) => reply.error(errno),
            }
        });
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let tree = &self.answers.model.tree;
        let blocks = tree.total().div_ceil(u64::from(BLOCK));
        let files = u64::try_from(tree.len()).unwrap_or(u64::MAX);
        reply.statfs(blocks, 0, 0, files, 0, BLOCK, 255, BLOCK);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let Some((id, _)) = self.answers.node(ino) else { return reply.error(Errno::ENOENT) };
        let value = name.to_str().and_then(|name| self.answers.model.xattr(id, name));
        match value {
            Some(value) => answer_value(value.as_bytes(), size, reply),
            None => reply.error(Errno::NO_XATTR),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let Some((id, _)) = self.answers.node(ino) else { return reply.error(Errno::ENOENT) };
        let mut names = Vec::new();
        for name in self.answers.model.xattrs(id) {
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        answer_value(&names, size, reply);
    }

    fn setattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u32>,
        _: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.error(Errno::EROFS);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EROFS);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EROFS);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::EROFS);
    }

    fn create(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: i32, reply: ReplyCreate) {
        reply.error(Errno::EROFS);
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EROFS);
    }

    /// Nothing is known here (ioctl(2)). Whoever opens a file by way of Python's or C's standard library may ask whether it is a terminal.
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
