//! How a request for chunks waits for them to go by.
//!
//! Its flights are on the board before it looks, so whatever goes by from then on lands in them. What went by before is
//! looked for in the store once more, since it may have been on its way there; what is not there either comes when the
//! spans are known, or when the layer goes by again.

use tokio::sync::watch;

use super::{Progress, Stream};
use crate::error::Result;
use crate::range::ContentRange;

/// One request's view of a layer that goes by.
pub(in crate::content) struct Waiter {
    progress: watch::Receiver<Progress>,
    now: Progress,
    asked: bool,
    /// The try whose failure is none of this request's.
    stale: Option<u64>,
    /// The try during which the store was looked into.
    looked: Option<u64>,
}

impl Stream {
    /// A view for a request; sets the layer going where nothing has yet.
    pub(in crate::content) fn waiter(&self) -> Waiter {
        self.begin();
        let progress = self.progress.subscribe();
        let now = progress.borrow().clone();
        Waiter { progress, now, asked: false, stale: None, looked: None }
    }
}

impl Waiter {
    /// Takes in how far the layer is. Asks for more of it, once, where somebody waits.
    pub(in crate::content) fn look(&mut self, stream: &Stream, somebody_waits: bool) {
        if somebody_waits && !self.asked {
            self.asked = true;
            self.stale = stream.ask();
        }
        self.now = self.progress.borrow_and_update().clone();
    }

    /// Whether it is time to look for chunks of this content in the store: they have gone by, and this is the first that is
    /// seen of it.
    pub(in crate::content) fn looks_back(&mut self, content: impl Iterator<Item = ContentRange>) -> bool {
        let mut content = content;
        let fresh =
            self.looked != Some(self.now.tries) && content.any(|range| range.end() <= self.now.settled);
        if fresh {
            self.looked = Some(self.now.tries);
        }
        fresh
    }

    /// Waits for the layer to come further; has it go by again where all of it has gone by to no avail.
    ///
    /// # Errors
    /// Why nothing comes any more.
    pub(in crate::content) async fn further(&mut self, stream: &Stream) -> Result<()> {
        self.now.failure(self.stale)?;
        if self.asked && self.now.is_over() {
            stream.ask_again();
        }
        // Fails only when the layer is gone, with the loader.
        let _ = self.progress.changed().await;
        Ok(())
    }
}
