//! What all guides of an artifact may take together, however many layers it has: time, what is kept, and what is held while
//! layers are looked into.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::error::{Error, Kind, Result};
use crate::index::Allowance;

/// How long an artifact's layers are looked into, all together. A mount waits for that.
const TIME: Duration = Duration::from_secs(5);

/// How much is held at once while layers are looked into, all of them together, in KiB: 64 MiB.
const DESK: u32 = 64 << 10;

/// What is left for the guides of one artifact.
#[derive(Debug)]
pub(in crate::index) struct Room {
    /// Memory that is held as long as the artifact is open.
    held: Allowance,
    /// Memory that is held for a while, in KiB.
    desk: Arc<Semaphore>,
    /// Until when layers are looked into: set by the first.
    until: OnceLock<Instant>,
}

impl Default for Room {
    fn default() -> Self {
        let desk = Arc::new(Semaphore::new(usize::try_from(DESK).unwrap_or(0)));
        Self { held: Allowance::guides(), desk, until: OnceLock::new() }
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

    /// A desk that is shared with the other layers.
    pub(super) fn share(&self) -> Desk {
        Desk::Shared { left: Arc::clone(&self.desk), crowded: Arc::default() }
    }

    /// The desk for one layer alone, once nobody else holds any of it. Who waits for it must hold nothing, so that nobody waits
    /// for him.
    ///
    /// # Errors
    /// None that can happen: it is never closed.
    pub(super) async fn all(&self) -> Result<Desk> {
        let all = Arc::clone(&self.desk).acquire_many_owned(DESK).await.map_err(|_| too_much())?;
        Ok(Desk::Alone(Arc::new(Alone { left: AtomicU64::new(u64::from(DESK)), _all: all })))
    }
}

/// Where one layer takes the memory from that it needs while it is looked into.
#[derive(Clone, Debug)]
pub(super) enum Desk {
    /// With the others. `crowded`: whether there was not enough.
    Shared { left: Arc<Semaphore>, crowded: Arc<AtomicBool> },
    /// All of it is this layer's.
    Alone(Arc<Alone>),
}

/// The whole desk.
#[derive(Debug)]
pub(super) struct Alone {
    left: AtomicU64,
    _all: OwnedSemaphorePermit,
}

/// Memory that is held for a while: given back when this is dropped.
#[derive(Debug, Default)]
pub(super) struct Loan {
    /// In KiB.
    size: u32,
    of: Option<Lender>,
}

#[derive(Debug)]
enum Lender {
    Shared(OwnedSemaphorePermit),
    Alone(Arc<Alone>),
}

impl Desk {
    /// Whether it was the others' fault that there was not enough.
    pub(super) fn is_crowded(&self) -> bool {
        matches!(self, Self::Shared { crowded, .. } if crowded.load(Ordering::Acquire))
    }

    /// Memory for so many bytes.
    ///
    /// # Errors
    /// `Unsupported` where there is not so much left.
    pub(super) fn take(&self, bytes: u64) -> Result<Loan> {
        let size = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let of = match self {
            Self::Shared { left, crowded } => match Arc::clone(left).try_acquire_many_owned(size) {
                Ok(permit) => Lender::Shared(permit),
                Err(_) => {
                    crowded.store(true, Ordering::Release);
                    return Err(too_much());
                }
            },
            Self::Alone(alone) => {
                let less = |left: u64| left.checked_sub(u64::from(size));
                let taken = alone.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, less);
                taken.map_err(|_| too_much())?;
                Lender::Alone(Arc::clone(alone))
            }
        };
        Ok(Loan { size, of: Some(of) })
    }
}

impl Loan {
    /// Sees to it that it is enough for so many bytes.
    ///
    /// # Errors
    /// As [`Desk::take`].
    pub(super) fn cover(&mut self, desk: &Desk, bytes: usize) -> Result<()> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let more = bytes.saturating_sub(u64::from(self.size).saturating_mul(1024));
        if more > 0 {
            self.join(desk.take(more)?);
        }
        Ok(())
    }

    /// Takes in what another one holds, of the same desk.
    pub(super) fn join(&mut self, mut other: Self) {
        let size = self.size.saturating_add(other.size);
        match (&mut self.of, other.of.take()) {
            (Some(Lender::Shared(permit)), Some(Lender::Shared(more))) => permit.merge(more),
            (own @ None, more) => *own = more,
            // The two count for one.
            (Some(_), _) => {}
        }
        (self.size, other.size) = (size, 0);
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        // What is shared is given back by its permit.
        if let Some(Lender::Alone(alone)) = &self.of {
            alone.left.fetch_add(u64::from(self.size), Ordering::AcqRel);
        }
    }
}

fn too_much() -> Error {
    Error::new(
        Kind::Unsupported,
        "looking into what the layers say of their parts takes more than 64 MiB of memory",
    )
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const MIB: u64 = 1 << 20;

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

    #[tokio::test]
    async fn what_is_lent_is_given_back_and_no_more_is_lent_than_there_is() {
        let room = Room::default();
        for is_shared in [true, false, true] {
            let desk = if is_shared { room.share() } else { room.all().await.unwrap() };
            let mut loan = desk.take(40 * MIB).unwrap();
            loan.join(desk.take(10 * MIB).unwrap());
            loan.cover(&desk, 60 << 20).unwrap();
            loan.cover(&desk, 1).unwrap();
            assert!(desk.take(5 * MIB).is_err());
            drop(loan);
            drop(desk.take(64 * MIB).unwrap());
            assert!(desk.take(65 * MIB).is_err());
        }
    }

    #[tokio::test]
    async fn who_finds_too_little_is_alone_at_the_desk_when_the_others_are_done() {
        let room = Room::default();
        let (one, other) = (room.share(), room.share());
        let loan = one.take(40 * MIB).unwrap();
        assert!(other.take(40 * MIB).is_err());
        assert!(other.is_crowded() && !one.is_crowded());
        let mut waiting = std::pin::pin!(room.all());
        assert!((&mut waiting).now_or_never().is_none());
        drop(loan);
        let alone = waiting.await.unwrap();
        assert!(one.take(1).is_err() && alone.take(64 * MIB).is_ok());
        drop(alone);
        assert!(other.take(64 * MIB).is_ok());
    }
}
