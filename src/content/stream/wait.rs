//! How a request for chunks waits for them to go by.
//!
//! Its flights are on the board before it looks, so whatever goes by from then on lands in them. What went by before is
//! looked for in the store once more, since it may have been on its way there; what is not there either comes when the
//! spans are known, or when the layer goes by again.

use std::sync::Arc;

use tokio::sync::watch;

use super::{Progress, Stream};
use crate::content::fetch::Request;
use crate::content::lanes::Lane;
use crate::error::Result;
use crate::range::ContentRange;

/// One request's view of a layer that goes by.
struct Waiter {
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
    fn waiter(&self) -> Waiter {
        self.begin();
        let progress = self.progress.subscribe();
        let now = progress.borrow().clone();
        Waiter { progress, now, asked: false, stale: None, looked: None }
    }
}

impl Request {
    /// Waits for chunks of a layer that goes by, until they have; gives those that are to be had in another way from then on.
    pub(in crate::content) async fn let_come(&mut self, mut left: Vec<u64>) -> Vec<u64> {
        let loader = Arc::clone(&self.loader);
        let (Some(stream), Some(extent)) = (loader.streaming(self.id.layer), loader.extent(self.id)) else {
            return left;
        };
        if self.goes_beside(stream, extent, &left) {
            return left;
        }
        let mut waiter = stream.waiter();
        loop {
            // Anew each time: somebody may begin to wait for what was only wanted ahead.
            let urgent = matches!(self.lane, Lane::Demand | Lane::Whole) || self.urgency.is_raised();
            waiter.look(stream, urgent);
            self.flights.retain(|(_, flight)| !flight.is_settled());
            left.retain(|chunk| self.flights.iter().any(|((_, flown), _)| flown == chunk));
            if left.is_empty() || loader.streaming(self.id.layer).is_none() {
                return left;
            }
            if waiter.looks_back(left.iter().map(|chunk| extent.content(&(*chunk..*chunk + 1)))) {
                (left, _) = self.take_from_store().await;
                continue;
            }
            if self.goes_beside(stream, extent, &left) {
                return left;
            }
            self.flights.iter().for_each(|(_, flight)| flight.progress());
            let further = tokio::select! {
                further = waiter.further(stream) => further,
                () = self.urgency.raised(), if !urgent => Ok(()),
            };
            if let Err(error) = further {
                self.give_up(0..u64::MAX, &error);
                return Vec::new();
            }
        }
    }
}

impl Waiter {
    /// Takes in how far the layer is. Asks for more of it, once, where somebody waits.
    fn look(&mut self, stream: &Stream, somebody_waits: bool) {
        if somebody_waits && !self.asked {
            self.asked = true;
            self.stale = stream.ask();
        }
        self.now = self.progress.borrow_and_update().clone();
    }

    /// Whether it is time to look for chunks of this content in the store: they have gone by, and this is the first that is
    /// seen of it.
    fn looks_back(&mut self, content: impl Iterator<Item = ContentRange>) -> bool {
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
    async fn further(&mut self, stream: &Stream) -> Result<()> {
        self.now.failure(self.stale)?;
        if self.asked && self.now.is_over() {
            stream.ask_again();
        }
        // Fails only when the layer is gone, with the loader.
        let _ = self.progress.changed().await;
        Ok(())
    }
}
