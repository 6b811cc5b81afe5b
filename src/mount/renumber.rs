//! Offers files that became whole while they were open to the kernel, for later opens.
//!
//! The kernel mixes no cached and passthrough handles of one node, and handles and mappings may stay open for as long as an
//! engine runs. So such a file gets another number: who opens it from then on is served by the kernel, and who has
//! it open goes on as before. Only where that is set: whoever has found the old number by the name, and keeps that in mind (an
//! overlay above the mount), is told that the file is stale. Runs on a thread of its own, started by the session.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fuser::Notifier;
use tokio::sync::{mpsc::UnboundedReceiver, watch};
use tokio::time::Instant;

use super::ahead::Ahead;
use super::answers::Answers;
use super::handles::Ino;
use super::kernel;
use crate::fs::NodeId;
use crate::index::ExtentId;

/// How often is looked for files that another process has completed or sealed, of which nothing is heard.
const LOOK: Duration = Duration::from_secs(1);

/// Looking takes no more of the time than one part in so many, however many files are open.
const SHARE: u32 = 50;

/// However long it takes, it is looked again after this.
const LONGEST: Duration = Duration::from_secs(30);

/// What is offered, and to whom.
pub(super) struct Offers {
    answers: Arc<Answers>,
    notifier: Notifier,
    /// Where the mount is.
    dir: PathBuf,
    ended: watch::Receiver<()>,
    ahead: Ahead,
}

/// Offers what becomes whole, until the mount ends.
pub(super) async fn attend(mut sealings: UnboundedReceiver<ExtentId>, mut offers: Offers) {
    let mut ended = offers.ended.clone();
    let mut look = Instant::now() + LOOK;
    loop {
        tokio::select! {
            sealed = sealings.recv() => {
                let Some(sealed) = sealed else { return };
                offers.offer_all(|extent| extent == sealed);
            }
            () = tokio::time::sleep_until(look) => {
                let begun = Instant::now();
                offers.offer_all(|_| true);
                look = Instant::now() + begun.elapsed().saturating_mul(SHARE).clamp(LOOK, LONGEST);
            }
            _ = ended.changed() => return,
        }
    }
}

impl Offers {
    /// Of the mount at `dir`, until it has ended.
    pub(super) fn new(
        answers: Arc<Answers>,
        notifier: Notifier,
        dir: PathBuf,
        ended: watch::Receiver<()>,
    ) -> Self {
        Self { answers, notifier, dir, ended, ahead: Ahead::of_what_is_available() }
    }

    fn offer_all(&mut self, concerned: impl Fn(ExtentId) -> bool) {
        let answers = Arc::clone(&self.answers);
        let open = answers.served_by_replies().into_iter();
        for (ino, id) in open.filter(|(_, id)| answers.model.extent(*id).is_some_and(&concerned)) {
            self.offer(&answers, ino, id);
        }
    }

    /// Gives the file another number, if the store has it whole and the kernel takes it. Blocks on the local disk, and on
    /// lookups in the file's folder.
    fn offer(&mut self, answers: &Answers, ino: Ino, id: NodeId) {
        // A lookup that waits for the network would be waited for with the folder locked; it is tried again.
        if !answers.model.is_named() || !answers.native.is_taken() {
            return;
        }
        let Some(held) = answers.hold(id) else { return };
        let Some(file) = held.whole() else { return };
        // To forget a name that something is mounted at would take that away.
        if self.is_mount_point(id) || !answers.handles.renumber(ino) {
            return;
        }
        answers.model.metrics.renumbered_files.add(1);
        for (folder, name) in answers.model.tree.names(id) {
            let folder = answers.number(folder);
            // Until the kernel has forgotten the name it opens the file under the old number, which is right too.
            if let Err(error) = self.notifier.inval_entry(folder, name.as_ref()) {
                tracing::warn!(%error, path = answers.model.tree.path(id), "the kernel does not forget an old number");
            }
        }
        tracing::info!(path = answers.model.tree.path(id), "whole: later opens are the kernel's own");
        // Its chunks were written past the page cache: who opens it next shall not find it cold.
        self.ahead.read(file, || self.ended.has_changed().is_ok());
    }

    /// Whether something is mounted at one of the file's names, as far as this process can see; where it can't look, it is so.
    fn is_mount_point(&self, id: NodeId) -> bool {
        let tree = &self.answers.model.tree;
        let free = |path: PathBuf| kernel::mounted_at(&path).is_ok_and(|entry| entry.is_none());
        tree.names(id).into_iter().any(|(folder, name)| !free(self.dir.join(tree.path(folder)).join(name)))
    }
}
