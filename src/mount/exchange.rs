//! Exchanges what the kernel has of a file by replies for the same bytes of the store's image, once nobody has the file open.
//!
//! Who opens a sealed file gets it from the image ([passthrough](super::native)): the pages that replies filled are worth nothing to
//! him, and the kernel throws them away before it answers his open, 20 ms for 256 MiB. He would then read from the disk what was in
//! memory a moment before. So they go as soon as nobody uses them, and the beginning of the image comes, in the kernel's largest
//! folios. Only while nothing is opened or read by replies; what the kernel serves by itself is not seen here. Runs on a thread of its
//! own, started by the session. What another process has sealed is not noticed: it is read from the disk when it is opened again.

use std::sync::Arc;
use std::time::Duration;

use fuser::Notifier;
use tokio::sync::{mpsc::UnboundedReceiver, watch};

use super::ahead::Ahead;
use super::answers::Answers;
use super::handles::Ino;
use crate::fs::NodeId;
use crate::index::ExtentId;

/// So long nothing is asked of a mount before it counts as quiet.
const QUIET: Duration = Duration::from_millis(100);

/// Files below this size are not worth it: their first read is one read of the disk.
const LEAST: u64 = 2 << 20;

/// What is exchanged, and with whom.
pub(super) struct Exchange {
    answers: Arc<Answers>,
    notifier: Notifier,
    ended: watch::Receiver<()>,
    ahead: Ahead,
}

/// Exchanges what is closed and sealed, in any order, until the mount ends or has had its part of the memory.
pub(super) async fn attend(mut sealings: UnboundedReceiver<ExtentId>, mut exchange: Exchange) {
    let answers = Arc::clone(&exchange.answers);
    let mut ended = exchange.ended.clone();
    while exchange.goes_on() {
        tokio::select! {
            sealed = sealings.recv() => if sealed.is_none() { return },
            () = answers.handles.leaving() => {}
            _ = ended.changed() => return,
        }
        while exchange.goes_on() && exchange.next().is_some() {
            let before = asked(&answers);
            // The thread is for nothing else, and a timer of the runtime would outlive that.
            std::thread::sleep(QUIET);
            while sealings.try_recv().is_ok() {}
            if let Some((ino, id)) = exchange.next().filter(|_| asked(&answers) == before) {
                exchange.make(ino, id, before);
            }
        }
    }
}

impl Exchange {
    /// In the mount that gives these answers, until it has ended.
    pub(super) fn new(answers: Arc<Answers>, notifier: Notifier, ended: watch::Receiver<()>) -> Self {
        answers.handles.note_left();
        Self { answers, notifier, ended, ahead: Ahead::of_what_is_available() }
    }

    fn goes_on(&self) -> bool {
        self.ended.has_changed().is_ok() && !self.ahead.is_spent()
    }

    /// A file that was closed and not opened since, that is worth it, and that was sealed when this process looked last. Asks the
    /// store nothing: to look is no use of a file.
    fn next(&self) -> Option<(Ino, NodeId)> {
        let answers = &self.answers;
        if !answers.native.is_taken() {
            return None;
        }
        answers.handles.left().into_iter().find_map(|ino| {
            let number = answers.outer(ino);
            let (id, node) = answers.node(number)?;
            if answers.attributes(number, node).size < LEAST {
                answers.handles.forget_left(ino);
                return None;
            }
            let sealed =
                answers.model.extent(id).is_some_and(|extent| answers.model.loader.was_sealed(extent));
            sealed.then_some((ino, id))
        })
    }

    /// Exchanges one file, as far as the memory that is meant for it goes and while no more than `before` is asked of the mount. Blocks on
    /// the local disk, and on what the kernel has locked.
    fn make(&mut self, ino: Ino, id: NodeId, before: u64) {
        let answers = Arc::clone(&self.answers);
        let Some(held) = answers.hold(id) else { return };
        // What has lost its trust is no longer called sealed, and comes again when it is.
        let Some(file) = held.whole().filter(|_| answers.handles.forget_left(ino)) else { return };
        if let Err(error) = self.notifier.inval_inode(answers.outer(ino), 0, 0) {
            // It has forgotten the file by itself.
            tracing::debug!(%error, "nothing to exchange");
        }
        // What got another number was read ahead for who opens it under that, and may be being read.
        if answers.number(id) == answers.outer(ino) {
            let is_quiet = || self.ended.has_changed().is_ok() && asked(&answers) == before;
            let read = self.ahead.read(file, is_quiet);
            answers.model.metrics.exchanged_files.add(u64::from(read > 0));
        }
    }
}

/// How much was asked of the mount so far.
fn asked(answers: &Answers) -> u64 {
    let metrics = &answers.model.metrics;
    [&metrics.reads, &metrics.cached_opens, &metrics.passthrough_opens]
        .map(|count| count.value())
        .iter()
        .sum()
}
