//! Which models a gallery shows, under which names and numbers.
//!
//! A model has a slot of the node numbers for as long as the mount lives: a slot is never used again, since the kernel may have
//! pages under its numbers. Asked by the session's threads and changed by who adds and removes models.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use fuser::{FileAttr, FileType, INodeNo};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::error::{Error, Kind, Result};
use crate::fs::{Model, NodeId};
use crate::mount::adapter::Adapter;
use crate::mount::answers::{Answers, Looks};
use crate::mount::numbers::Base;
use crate::mount::{Options, Passthrough};

/// What a model's folder has in it.
pub(super) const MODEL: &str = "model";
pub(super) const NOTE: &str = "status.json";

/// Which numbers of a slot are none of the model's nodes.
const FOLDER: u64 = 0;
const NOTE_FILE: u64 = 1;

/// One model with its folder.
#[derive(Debug)]
pub(super) struct Room {
    name: String,
    slot: u64,
    base: Base,
    adapter: Adapter,
    answers: Arc<Answers>,
    note: Bytes,
    /// How many have the note open.
    readers: AtomicUsize,
    since: SystemTime,
    looks: Looks,
    /// Dropped with the room: who watches over the model ends then.
    end: watch::Sender<()>,
}

/// What a number means.
#[derive(Debug)]
pub(super) enum Place {
    /// The mount's own folder.
    Root,
    /// A model's folder.
    Folder(Arc<Room>),
    /// The note in it.
    Note(Arc<Room>),
    /// The model.
    Inside(Arc<Room>),
}

impl Room {
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What answers for the model.
    pub(super) fn answers(&self) -> &Arc<Answers> {
        &self.answers
    }

    /// The same, as the kernel asks.
    pub(super) fn adapter(&self) -> &Adapter {
        &self.adapter
    }

    pub(super) fn note(&self) -> &Bytes {
        &self.note
    }

    /// Takes down that somebody opens the note.
    pub(super) fn open_note(&self) {
        self.readers.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes down that somebody who had opened it closes it.
    pub(super) fn close_note(&self) {
        self.readers.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether nobody has a file of the folder open.
    pub(super) fn is_idle(&self) -> bool {
        self.readers.load(Ordering::Relaxed) == 0 && self.answers.handles.is_idle()
    }

    /// Closed once the room is cleared.
    pub(super) fn ended(&self) -> watch::Receiver<()> {
        self.end.subscribe()
    }

    pub(super) fn folder(&self) -> FileAttr {
        let number = self.base.beside(FOLDER);
        FileAttr { nlink: 3, ..self.looks.show(number, FileType::Directory, 0, self.since) }
    }

    pub(super) fn note_file(&self) -> FileAttr {
        let size = u64::try_from(self.note.len()).unwrap_or(0);
        self.looks.show(self.base.beside(NOTE_FILE), FileType::RegularFile, size, self.since)
    }

    /// The model's own root.
    pub(super) fn root(&self) -> Option<FileAttr> {
        self.answers.present(NodeId::ROOT)
    }

    /// What the folder has in it, by name.
    pub(super) fn children(&self) -> Vec<(&'static str, FileAttr)> {
        let root = self.root().map(|root| (MODEL, root));
        root.into_iter().chain([(NOTE, self.note_file())]).collect()
    }
}

/// All rooms.
#[derive(Debug)]
pub(super) struct Rooms {
    table: RwLock<Table>,
    options: Options,
    looks: Looks,
    /// Whether the kernel knows passthrough.
    passthrough: AtomicBool,
}

#[derive(Debug)]
struct Table {
    next: u64,
    shown: BTreeMap<String, Arc<Room>>,
    /// Those that are taken out and still read are here too.
    slots: HashMap<u64, Arc<Room>>,
    changed: SystemTime,
}

impl Rooms {
    /// None yet.
    pub(super) fn new(options: Options) -> Self {
        let (shown, slots) = (BTreeMap::new(), HashMap::new());
        let table = RwLock::new(Table { next: 1, shown, slots, changed: SystemTime::now() });
        Self { table, looks: Looks::of(&options), options, passthrough: AtomicBool::new(true) }
    }

    /// Whether complete files are to be given to the kernel.
    pub(super) fn wants_passthrough(&self) -> bool {
        self.options.passthrough != Passthrough::Off
    }

    /// Takes down that this kernel has no passthrough.
    pub(super) fn no_passthrough(&self) {
        self.passthrough.store(false, Ordering::Relaxed);
    }

    /// A room for `model`, which is found by `name` from now on.
    ///
    /// # Errors
    /// `Busy` where the name is taken, or no slot is left.
    pub(super) fn enter(&self, name: &str, model: Arc<Model>, note: Bytes) -> Result<Arc<Room>> {
        let mut table = self.table.write();
        if table.shown.contains_key(name) {
            return Err(Error::new(Kind::Busy, format!("there is a model {name:?} already")));
        }
        if table.next > Base::SLOTS {
            let doing = "more models came and went than there are numbers for";
            return Err(Error::new(Kind::Busy, doing).hint("start the pod anew"));
        }
        let slot = table.next;
        let base = Base::of(slot);
        let answers = Arc::new(Answers::within(base, model, &self.options));
        if !self.passthrough.load(Ordering::Relaxed) {
            answers.native.unknown();
        }
        let (end, _) = watch::channel(());
        let room = Arc::new(Room {
            name: name.to_owned(),
            slot,
            base,
            adapter: Adapter::new(answers.clone()),
            answers,
            note,
            readers: AtomicUsize::new(0),
            since: SystemTime::now(),
            looks: self.looks,
            end,
        });
        table.next += 1;
        table.changed = room.since;
        table.shown.insert(name.to_owned(), room.clone());
        table.slots.insert(slot, room.clone());
        Ok(room)
    }

    /// Has nobody find `name` any more; gives its room.
    pub(super) fn take_out(&self, name: &str) -> Option<Arc<Room>> {
        let mut table = self.table.write();
        let room = table.shown.remove(name)?;
        table.changed = SystemTime::now();
        Some(room)
    }

    /// Forgets a room that was taken out: nothing in it is answered any more.
    pub(super) fn clear(&self, room: &Room) {
        self.table.write().slots.remove(&room.slot);
        room.end.send_replace(());
    }

    /// What a number means; `None` for one of a room that is cleared.
    pub(super) fn place(&self, ino: INodeNo) -> Option<Place> {
        match Base::slot(ino) {
            0 => (ino == INodeNo::ROOT).then_some(Place::Root),
            slot => {
                let room = self.table.read().slots.get(&slot).cloned()?;
                Some(match ino {
                    ino if ino == room.base.beside(FOLDER) => Place::Folder(room),
                    ino if ino == room.base.beside(NOTE_FILE) => Place::Note(room),
                    _ => Place::Inside(room),
                })
            }
        }
    }

    /// The room that is found by `name`.
    pub(super) fn named(&self, name: &[u8]) -> Option<Arc<Room>> {
        self.table.read().shown.get(std::str::from_utf8(name).ok()?).cloned()
    }

    /// The mount's own folder.
    pub(super) fn root(&self) -> FileAttr {
        let table = self.table.read();
        let folders = u32::try_from(table.shown.len()).unwrap_or(u32::MAX);
        let nlink = folders.saturating_add(2);
        FileAttr { nlink, ..self.looks.show(INodeNo::ROOT, FileType::Directory, 0, table.changed) }
    }

    /// The folders that are shown, from an offset of a listing on, each with the offset of what comes after it: by slots, so
    /// that a listing that goes on while models come and go leaves out none that stays.
    pub(super) fn listing(&self, offset: u64) -> Vec<(u64, String, FileAttr)> {
        let mut shown = self.shown();
        shown.sort_by_key(|room| room.slot);
        let later = shown.iter().map(|room| (room.slot.saturating_add(2), room));
        let later = later.filter(|(next, _)| *next > offset.max(2));
        later.map(|(next, room)| (next, room.name.clone(), room.folder())).collect()
    }

    /// Those that are shown.
    pub(super) fn shown(&self) -> Vec<Arc<Room>> {
        self.table.read().shown.values().cloned().collect()
    }

    /// All, also those that are taken out.
    pub(super) fn all(&self) -> Vec<Arc<Room>> {
        self.table.read().slots.values().cloned().collect()
    }
}
