//! Exchanges what the kernel has of a file by replies for the same bytes of the store's image, once nobody has the file open.
//!
//! Who opens a sealed file gets it from the image ([passthrough](super::native)): the pages that replies filled are worth nothing to
//! him, and the kernel throws them away before it answers his open, 20 ms for 256 MiB. He would then read from the disk what was in
//! memory a moment before. So they go as soon as nobody uses them, and as much of the image comes, in the kernel's largest folios.
//! Only while the mount is quiet: whoever reads goes first. Runs on a thread of its own, started by the session.

use std::sync::Arc;
use std::time::Duration;

use fuser::Notifier;
use tokio::sync::{mpsc::UnboundedReceiver, watch};

use super::answers::Answers;
use super::handles::Ino;
use super::renumber::Ahead;
use crate::content::Held;
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

/// Exchanges what is closed and sealed, in any order, until the mount ends.
pub(super) async fn attend(mut sealings: UnboundedReceiver<ExtentId>, mut exchange: Exchange) {
    let answers = Arc::clone(&exchange.answers);
    let mut ended = exchange.ended.clone();
    loop {
        tokio::select! {
            sealed = sealings.recv() => if sealed.is_none() { return },
            () = answers.handles.leaving() => {}
            _ = ended.changed() => return,
        }
        while let Some((ino, held)) = exchange.next() {
            let before = answers.model.metrics.reads.value();
            tokio::select! {
                () = tokio::time::sleep(QUIET) => {}
                _ = ended.changed() => return,
            }
            if before == answers.model.metrics.reads.value() {
                exchange.make(ino, &held);
            }
        }
    }
}

impl Exchange {
    /// In the mount that gives these answers, until it has ended.
    pub(super) fn new(answers: Arc<Answers>, notifier: Notifier, ended: watch::Receiver<()>) -> Self {
        Self { answers, notifier, ended, ahead: Ahead::of_what_is_available() }
    }

    /// A sealed file that was closed and not opened since, the only kind that is worth it. Reads small files of the store.
    fn next(&self) -> Option<(Ino, Held)> {
        if !self.answers.native.is_taken() {
            return None;
        }
        self.answers.handles.left().into_iter().find_map(|ino| {
            let number = self.answers.outer(ino);
            let (id, node) = self.answers.node(number)?;
            if self.answers.attributes(number, node).size < LEAST {
                self.answers.handles.forget_left(ino);
                return None;
            }
            let held = self.answers.hold(id)?;
            held.whole().is_some().then_some((ino, held))
        })
    }

    /// Exchanges one file, as far as the memory that is meant for it goes. Blocks on the local disk, and on what the kernel has locked.
    fn make(&mut self, ino: Ino, held: &Held) {
        let Some(file) = held.whole() else { return };
        if !self.answers.handles.forget_left(ino) {
            return;
        }
        if let Err(error) = self.notifier.inval_inode(self.answers.outer(ino), 0, 0) {
            // It has forgotten the file by itself.
            tracing::debug!(%error, "nothing to exchange");
        }
        let (reads, before) = (&self.answers.model.metrics.reads, self.answers.model.metrics.reads.value());
        self.ahead.read(file, || self.ended.has_changed().is_ok() && reads.value() == before);
        self.answers.model.metrics.exchanged_files.add(1);
    }
}
