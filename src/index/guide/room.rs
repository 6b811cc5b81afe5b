//! What all guides of an artifact may take together, however many layers it has.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::error::Result;
use crate::index::Allowance;

/// How long an artifact's layers are looked into, all together. A mount waits for that.
const TIME: Duration = Duration::from_secs(5);

/// What is left for the guides of one artifact.
#[derive(Debug)]
pub(in crate::index) struct Room {
    /// Memory.
    held: Allowance,
    /// Until when layers are looked into: set by the first.
    until: OnceLock<Instant>,
}

impl Default for Room {
    fn default() -> Self {
        Self { held: Allowance::guides(), until: OnceLock::new() }
    }
}

impl Room {
    /// Takes memory for `count` things of `size` bytes.
    ///
    /// # Errors
    /// `Unsupported` where there is not so much left.
    pub(super) fn hold(&self, count: usize, size: usize) -> Result<()> {
        self.held.take(u64::try_from(count.saturating_mul(size)).unwrap_or(u64::MAX))
    }

    /// What `work` comes to; `None` where that takes longer than there is time for all layers. Needs a runtime with a clock.
    pub(super) async fn in_time<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let until = *self.until.get_or_init(|| Instant::now() + TIME);
        if Instant::now() >= until {
            return None;
        }
        timeout_at(until, work).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_the_memory() {
        let room = Room::default();
        room.hold(1 << 19, 64).unwrap();
        room.hold(1 << 19, 64).unwrap();
        assert!(room.hold(1, 64).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn layers_share_the_time_from_when_the_first_of_them_was_looked_into() {
        let room = Room::default();
        tokio::time::advance(TIME * 2).await;
        let work = async || tokio::time::sleep(TIME * 2 / 3).await;
        assert!(room.in_time(work()).await.is_some());
        assert!(room.in_time(work()).await.is_none(), "it would take longer than is left");
        assert!(room.in_time(std::future::ready(())).await.is_none(), "nothing is left");
    }
}
