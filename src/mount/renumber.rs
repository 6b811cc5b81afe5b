//! Offers files that became whole while they were open to the kernel, for later opens.
//!
//! The kernel mixes no cached and passthrough handles of one node, and handles and mappings may stay open for as long as an
//! engine runs. So such a file gets another number: who opens it from then on is served by the kernel, and who has
//! it open goes on as before. Runs on a thread of its own, started by the session.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use fuser::{INodeNo, Notifier};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::off_t;
use tokio::sync::{mpsc::UnboundedReceiver, watch};
use tokio::time::Instant;

use super::answers::Answers;
use super::handles::Ino;
use crate::fs::NodeId;
use crate::index::ExtentId;

/// How often is looked for files that another process has completed or sealed, of which nothing is heard.
const LOOK: Duration = Duration::from_secs(1);

/// How much of a file is read ahead at once. The kernel takes no more than the disk's own read-ahead, which is 128 KiB where
/// nobody has set it, and leaves the rest of a larger wish out.
const STEP: u64 = 128 << 10;

/// How much of a file is read ahead at most: its next reader will be at it for a while then, and reads as fast as the disk does.
const AHEAD: u64 = 4 << 30;

/// Looking takes no more of the time than one part in so many, however many files are open.
const SHARE: u32 = 50;

/// However long it takes, it is looked again after this.
const LONGEST: Duration = Duration::from_secs(30);

/// Offers what becomes whole, until the mount ends.
pub(super) async fn attend(
    mut sealings: UnboundedReceiver<ExtentId>,
    mut ended: watch::Receiver<()>,
    answers: Arc<Answers>,
    notifier: Notifier,
) {
    let mut look = Instant::now() + LOOK;
    loop {
        tokio::select! {
            sealed = sealings.recv() => {
                let Some(sealed) = sealed else { return };
                offer_all(&answers, &notifier, |extent| extent == sealed);
            }
            () = tokio::time::sleep_until(look) => {
                let begun = Instant::now();
                offer_all(&answers, &notifier, |_| true);
                look = Instant::now() + begun.elapsed().saturating_mul(SHARE).clamp(LOOK, LONGEST);
            }
            _ = ended.changed() => return,
        }
    }
}

fn offer_all(answers: &Answers, notifier: &Notifier, concerned: impl Fn(ExtentId) -> bool) {
    let open = answers.served_by_replies().into_iter();
    for (ino, id) in open.filter(|(_, id)| answers.model.extent(*id).is_some_and(&concerned)) {
        offer(answers, notifier, ino, id);
    }
}

/// Gives the file another number, if the store has it whole and the kernel may have it. Blocks on the local disk, and on
/// lookups in the file's folder.
fn offer(answers: &Answers, notifier: &Notifier, ino: Ino, id: NodeId) {
    if answers.native.refusal().is_some() {
        return;
    }
    let Some(held) = answers.hold(id) else { return };
    let Some(file) = held.whole() else { return };
    // Its chunks were written past the page cache: who opens it next shall not find it cold.
    read_ahead(file);
    if !answers.handles.renumber(ino) {
        return;
    }
    answers.model.metrics.renumbered_files.add(1);
    for (folder, name) in answers.model.tree.names(id) {
        let folder = INodeNo(answers.handles.generations().ino(folder).0);
        // Until the kernel has forgotten the name it opens the file under the old number, which is right too.
        if let Err(error) = notifier.inval_entry(folder, name.as_ref()) {
            tracing::warn!(%error, path = answers.model.tree.path(id), "the kernel does not forget an old number");
        }
    }
    tracing::info!(path = answers.model.tree.path(id), "whole: later opens are the kernel's own");
}

/// Has the kernel read the file into its cache, without waiting for the last of it.
fn read_ahead(file: &File) {
    let len = file.metadata().map_or(0, |meta| meta.len()).min(AHEAD);
    let advise = |at: u64| {
        let (at, step) = (off_t::try_from(at).ok()?, off_t::try_from(STEP).ok()?);
        posix_fadvise(file, at, step, PosixFadviseAdvice::POSIX_FADV_WILLNEED).ok()
    };
    let mut at = 0;
    while at < len && advise(at).is_some() {
        at += STEP;
    }
}
