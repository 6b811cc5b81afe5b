//! Who has what open, and by which way of I/O: the one table of the adapter that changes.
//!
//! The kernel refuses (EIO) to mix cached and passthrough handles of one node, so the way of a node's first live
//! handle is the way of all others until the last is released. Knows nothing of replies: who answers says how a
//! file is registered with the kernel. Called by [`answers`](super::answers) only.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::numbers::Base;
use crate::fs::NodeId;

/// How many low bits of a node number say which node; the rest is the generation.
pub(super) const NODE_BITS: u32 = 40;

/// The last generation: node numbers stay positive as the signed integers that some programs read them into.
pub(super) const LAST_GENERATION: u32 = (1 << (63 - NODE_BITS)) - 1;

/// A node as the kernel names it: the node's position and one, and above them the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ino(pub(super) u64);

impl Ino {
    /// The number of a node in a generation.
    pub(super) fn new(node: NodeId, generation: u32) -> Self {
        let position = u64::try_from(node.position()).unwrap_or(u64::MAX).saturating_add(1);
        Self((position & ((1 << NODE_BITS) - 1)) | (u64::from(generation) << NODE_BITS))
    }

    /// The position in the tree that it says, or `None` for a number that none of ours can be.
    pub(super) fn position(self) -> Option<usize> {
        let position = (self.0 & ((1 << NODE_BITS) - 1)).checked_sub(1)?;
        usize::try_from(position).ok()
    }

    /// The generation that it says.
    pub(super) fn generation(self) -> u32 {
        u32::try_from(self.0 >> NODE_BITS).unwrap_or(u32::MAX)
    }

    /// The same node in another generation.
    fn in_generation(self, generation: u32) -> Self {
        Self((self.0 & ((1 << NODE_BITS) - 1)) | (u64::from(generation) << NODE_BITS))
    }
}

/// The present generation of every node, read without a lock but for nodes that came after the mount was made.
///
/// A node gets another when its live handles have one way of I/O and new ones are to have the other: looked up again, it has
/// another number, which the kernel takes for another file. After the last generation comes the first again, but for those under
/// which there are handles still: what the kernel remembers of the others is the same node's, with the same bytes.
#[derive(Debug)]
pub(super) struct Generations {
    /// How many have come after the first.
    first: Vec<AtomicU32>,
    /// Of nodes that have come since; only those that are not at 0.
    later: Mutex<HashMap<usize, u32>>,
    /// The last one that there is a number for.
    last: u32,
}

impl Generations {
    /// All at 0, for `nodes` nodes and for any that come. Costs 4 bytes a node.
    pub(super) fn new(nodes: usize, base: Base) -> Self {
        let first = (0..nodes).map(|_| AtomicU32::new(0)).collect();
        Self { first, later: Mutex::default(), last: base.last_generation() }
    }

    /// The number that a lookup of the node answers now.
    pub(super) fn ino(&self, node: NodeId) -> Ino {
        Ino::new(node, self.numbered(self.count(node.position())))
    }

    /// Every number that the kernel may know for the node.
    pub(super) fn known(&self, node: NodeId) -> impl Iterator<Item = Ino> + use<> {
        let latest = self.count(node.position()).min(self.last);
        (0..=latest).map(move |generation| Ino::new(node, generation))
    }

    fn count(&self, position: usize) -> u32 {
        let later = || self.later.lock().get(&position).copied().unwrap_or(0);
        self.first.get(position).map_or_else(later, |count| count.load(Ordering::Acquire))
    }

    /// Which generation has come after so many others.
    fn numbered(&self, count: u32) -> u32 {
        count % self.last.saturating_add(1)
    }

    /// Retires the number, so that lookups answer the next one that `fits`; one that is retired already stays so. Whether there is
    /// another. Called under the lock of the table.
    fn retire(&self, ino: Ino, fits: impl Fn(Ino) -> bool) -> bool {
        let Some(position) = ino.position() else { return false };
        let count = self.count(position);
        if self.numbered(count) != ino.generation() {
            return true;
        }
        let following = (1..=self.last).map(|step| count.saturating_add(step));
        let Some(next) = following.into_iter().find(|next| fits(ino.in_generation(self.numbered(*next))))
        else {
            return false;
        };
        match self.first.get(position) {
            Some(count) => count.store(next, Ordering::Release),
            None => drop(self.later.lock().insert(position, next)),
        }
        true
    }
}

/// What an open is answered with.
#[derive(Debug)]
pub(super) enum Opened<B> {
    /// A handle that is served by replies.
    Cached(u64),
    /// A handle that the kernel serves from the file registered under this id.
    Native(u64, Arc<B>),
    /// This node has live passthrough handles, and its file is not to be given away any more: another generation has
    /// to be looked up.
    Stale,
}

/// The live handles. `H` is what each keeps, `B` the kernel's id of a registered file.
#[derive(Debug)]
pub(super) struct Handles<H, B> {
    table: Mutex<Table<H, B>>,
    generations: Generations,
    /// Told when something is left.
    leaving: Notify,
}

#[derive(Debug)]
struct Table<H, B> {
    next: u64,
    open: HashMap<u64, (Ino, H)>,
    nodes: HashMap<Ino, Live<B>>,
    /// What was served by replies until its last handle went, and was not opened since: the kernel may have pages of it. `None`
    /// where nobody asks.
    left: Option<HashSet<Ino>>,
}

#[derive(Debug)]
struct Live<B> {
    handles: usize,
    way: Way<B>,
}

#[derive(Debug)]
enum Way<B> {
    Cached,
    Native(Arc<B>),
}

impl<H, B> Handles<H, B> {
    /// No handle yet, for a tree of `nodes` nodes, which may grow, whose numbers have `base` in common.
    pub(super) fn new(nodes: usize, base: Base) -> Self {
        let table = Table { next: 1, open: HashMap::new(), nodes: HashMap::new(), left: None };
        Self { table: Mutex::new(table), generations: Generations::new(nodes, base), leaving: Notify::new() }
    }

    /// Whether nothing is open.
    pub(super) fn is_idle(&self) -> bool {
        self.table.lock().open.is_empty()
    }

    /// The present generations.
    pub(super) fn generations(&self) -> &Generations {
        &self.generations
    }

    /// A new handle of `ino` that keeps `held` until it is released. `whole` takes from `held` the file that may be
    /// given to the kernel now, if any, and `register` gives it; where that fails the handle is a cached one.
    ///
    /// `register` runs under the table's lock: it is one ioctl that waits for nobody.
    pub(super) fn open(
        &self,
        ino: Ino,
        held: H,
        whole: impl FnOnce(&H) -> Option<&File>,
        register: impl FnOnce(&File) -> io::Result<B>,
    ) -> Opened<B> {
        let mut table = self.table.lock();
        let file = whole(&held);
        let way = match (table.nodes.get(&ino).map(|live| &live.way), file) {
            (Some(Way::Cached), _) | (None, None) => Way::Cached,
            (Some(Way::Native(id)), Some(_)) => Way::Native(id.clone()),
            (Some(Way::Native(_)), None) => {
                let takes_replies = |ino| table.nodes.get(&ino).is_none_or(Live::is_cached);
                self.generations.retire(ino, takes_replies);
                return Opened::Stale;
            }
            (None, Some(file)) => registered(register(file)),
        };
        table.add(ino, held, way)
    }

    /// The numbers under which there are live handles that are served by replies, retired ones among them.
    pub(super) fn served_by_replies(&self) -> Vec<Ino> {
        let table = self.table.lock();
        table.nodes.iter().filter(|(_, live)| live.is_cached()).map(|(ino, _)| *ino).collect()
    }

    /// Whether the number has live handles that are served by replies.
    pub(super) fn is_served_by_replies(&self, ino: Ino) -> bool {
        self.table.lock().nodes.get(&ino).is_some_and(Live::is_cached)
    }

    /// Retires the number if it has live handles that are served by replies, so that later opens come under another; whether
    /// it did. Without such handles the next open may have another way of I/O as it is.
    pub(super) fn renumber(&self, ino: Ino) -> bool {
        let table = self.table.lock();
        let is_free = |ino| table.nodes.get(&ino).is_none_or(|live| !live.is_cached());
        !is_free(ino) && self.generations.retire(ino, is_free)
    }

    /// Ends a handle; with the last one of a node its way of I/O is free again. Gives back what the handle
    /// kept, to be dropped outside of the lock; `None` for a handle that is not open.
    pub(super) fn release(&self, handle: u64) -> Option<H> {
        let mut table = self.table.lock();
        let (ino, held) = table.open.remove(&handle)?;
        let last = table.nodes.get_mut(&ino).is_some_and(|live| {
            live.handles = live.handles.saturating_sub(1);
            live.handles == 0
        });
        if last && table.nodes.remove(&ino).is_some_and(|live| live.is_cached()) {
            table.left.as_mut().map(|left| left.insert(ino));
            self.leaving.notify_one();
        }
        Some(held)
    }

    /// Notes from now on what is [`left`](Self::left).
    pub(super) fn note_left(&self) {
        self.table.lock().left.get_or_insert_default();
    }

    /// Returns when the last handle of something that was served by replies has gone since this was called before. For one caller.
    pub(super) async fn leaving(&self) {
        self.leaving.notified().await;
    }

    /// The numbers that had handles served by replies, have none now, and were not opened since.
    pub(super) fn left(&self) -> Vec<Ino> {
        self.table.lock().left.iter().flatten().copied().collect()
    }

    /// Strikes the number off those that were [`left`](Self::left); whether it was one of them.
    pub(super) fn forget_left(&self, ino: Ino) -> bool {
        self.table.lock().left.as_mut().is_some_and(|left| left.remove(&ino))
    }
}

impl<B> Live<B> {
    fn is_cached(&self) -> bool {
        matches!(self.way, Way::Cached)
    }
}

fn registered<B>(id: io::Result<B>) -> Way<B> {
    match id {
        Ok(id) => Way::Native(Arc::new(id)),
        Err(error) => {
            // Expected without CAP_SYS_ADMIN, before Linux 6.9, and where the store lies on a stacked file system.
            tracing::debug!(%error, "the kernel does not take the store's file; serving it by replies");
            Way::Cached
        }
    }
}

impl<H, B> Table<H, B> {
    fn add(&mut self, ino: Ino, held: H, way: Way<B>) -> Opened<B> {
        let handle = self.next;
        self.next = self.next.wrapping_add(1);
        self.left.as_mut().map(|left| left.remove(&ino));
        self.open.insert(handle, (ino, held));
        let opened = match &way {
            Way::Cached => Opened::Cached(handle),
            Way::Native(id) => Opened::Native(handle, id.clone()),
        };
        self.nodes.entry(ino).or_insert(Live { handles: 0, way }).handles += 1;
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Table = Handles<Option<File>, u32>;

    fn open(table: &Table, ino: Ino, file: Option<File>) -> Opened<u32> {
        table.open(ino, file, |held| held.as_ref(), |_| Ok(7))
    }

    fn some_file() -> Option<File> {
        Some(File::open("/dev/null").expect("a file"))
    }

    fn handle(opened: &Opened<u32>) -> u64 {
        match opened {
            Opened::Cached(handle) | Opened::Native(handle, _) => *handle,
            Opened::Stale => panic!("stale"),
        }
    }

    const FIRST: Ino = Ino(2);

    #[test]
    fn node_numbers_hold_position_and_generation() {
        let ino = Ino::new(NodeId::ROOT, 0);
        assert_eq!((ino.0, ino.position(), ino.generation()), (1, Some(0), 0));
        let ino = Ino::new(NodeId::ROOT, LAST_GENERATION);
        assert_eq!((ino.position(), ino.generation()), (Some(0), LAST_GENERATION));
        assert!(i64::try_from(ino.0).is_ok());
        assert_eq!(Ino(0).position(), None);
    }

    #[test]
    fn a_node_with_live_cached_handles_stays_cached_until_the_last_is_released() {
        let table = Table::new(2, Base::default());
        let first = open(&table, FIRST, None);
        let second = open(&table, FIRST, some_file());
        assert!(matches!(second, Opened::Cached(_)));
        table.release(handle(&first));
        assert!(matches!(open(&table, FIRST, some_file()), Opened::Cached(3)));
        table.release(handle(&second));
        table.release(3);
        assert!(matches!(open(&table, FIRST, some_file()), Opened::Native(..)));
    }

    #[test]
    fn all_passthrough_handles_of_a_node_share_one_registered_file() {
        let table = Table::new(2, Base::default());
        let (Opened::Native(first, one), Opened::Native(second, two)) =
            (open(&table, FIRST, some_file()), open(&table, FIRST, some_file()))
        else {
            panic!("not native");
        };
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(Arc::strong_count(&one), 3);
        table.release(first);
        table.release(second);
        assert_eq!(Arc::strong_count(&one), 2, "the table has let go of it");
    }

    #[test]
    fn a_file_the_kernel_does_not_take_is_served_by_replies() {
        let table = Table::new(2, Base::default());
        let opened =
            table.open(FIRST, some_file(), |held| held.as_ref(), |_| Err(io::Error::from_raw_os_error(1)));
        assert!(matches!(opened, Opened::Cached(_)));
    }

    #[test]
    fn a_file_that_lost_its_trust_under_passthrough_handles_gets_another_number() {
        let table = Table::new(2, Base::default());
        let node = Ino::new(NodeId::ROOT, 0);
        let native = open(&table, node, some_file());
        assert!(matches!(open(&table, node, None), Opened::Stale));
        assert!(matches!(open(&table, node, None), Opened::Stale));
        let next = table.generations().ino(NodeId::ROOT);
        assert_eq!(next.generation(), 1, "however often it is asked");
        assert!(matches!(open(&table, next, None), Opened::Cached(_)));
        table.release(handle(&native));
        assert!(matches!(open(&table, node, None), Opened::Cached(_)), "free again");
    }

    #[test]
    fn after_the_last_generation_comes_the_first_under_which_nobody_has_the_file_from_the_kernel() {
        let table = Table::new(1, Base::of(1));
        let present = || table.generations().ino(NodeId::ROOT);
        let lose_trust = || {
            let native = open(&table, present(), some_file());
            assert!(matches!(native, Opened::Native(..)));
            assert!(matches!(open(&table, present(), None), Opened::Stale));
            handle(&native)
        };
        let held = lose_trust();
        let last = Base::of(1).last_generation();
        for generation in 1..=last {
            assert_eq!(present().generation(), generation);
            table.release(lose_trust());
        }
        assert_eq!(present().generation(), 1, "the first of all is still held");
        assert!(matches!(open(&table, present(), None), Opened::Cached(_)));
        assert_eq!(table.generations().known(NodeId::ROOT).count(), usize::try_from(last).unwrap() + 1);
        table.release(held);
    }

    #[test]
    fn a_node_that_came_after_the_mount_was_made_has_generations_too() {
        let table = Table::new(0, Base::default());
        let node = Ino::new(NodeId::ROOT, 0);
        assert_eq!(table.generations().ino(NodeId::ROOT), node);
        let _native = open(&table, node, some_file());
        assert!(matches!(open(&table, node, None), Opened::Stale));
        assert!(matches!(open(&table, node, None), Opened::Stale));
        assert_eq!(table.generations().ino(NodeId::ROOT).generation(), 1);
    }

    #[test]
    fn a_file_that_became_whole_under_handles_served_by_replies_gets_another_number_once() {
        let table = Table::new(2, Base::default());
        let old = Ino::new(NodeId::ROOT, 0);
        assert!(!table.renumber(old), "nobody has it open");
        let first = open(&table, old, None);
        assert_eq!(table.served_by_replies(), [old]);
        assert!(table.renumber(old));
        let new = table.generations().ino(NodeId::ROOT);
        assert_eq!(new.generation(), 1);
        assert!(matches!(open(&table, new, some_file()), Opened::Native(..)));
        assert!(!table.renumber(new), "the kernel has it");
        // An open that was under way goes to the old number, and on as those before it.
        assert!(matches!(open(&table, old, some_file()), Opened::Cached(_)));
        assert!(table.is_served_by_replies(old) && !table.is_served_by_replies(new));
        table.release(handle(&first));
        assert_eq!(table.generations().ino(NodeId::ROOT), new);
    }

    #[test]
    fn a_number_is_left_from_its_last_handle_served_by_replies_to_its_next() {
        let table = Table::new(2, Base::default());
        let unnoted = open(&table, FIRST, None);
        table.release(handle(&unnoted));
        table.note_left();
        let (first, second) = (open(&table, FIRST, None), open(&table, FIRST, None));
        table.release(handle(&first));
        assert_eq!(table.left(), []);
        table.release(handle(&second));
        assert_eq!(table.left(), [FIRST]);
        let native = open(&table, FIRST, some_file());
        assert_eq!(table.left(), [], "the kernel has let go of its pages");
        table.release(handle(&native));
        assert_eq!(table.left(), [], "it had none");
        let third = open(&table, FIRST, None);
        table.release(handle(&third));
        assert!(table.forget_left(FIRST) && !table.forget_left(FIRST));
    }

    #[test]
    fn a_handle_is_released_once() {
        let table = Table::new(2, Base::default());
        let opened = open(&table, FIRST, some_file());
        assert!(table.release(handle(&opened)).is_some());
        assert!(table.release(handle(&opened)).is_none());
    }
}
