//! How much is started at once that nobody waits for: a plane that comes after another may find hundreds of mounts to be had again.
//!
//! Who is waited for goes before, and who takes long holds up nobody: a registry that does not answer costs this machine nothing.

use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

/// The turns.
#[derive(Debug)]
pub(super) struct Turns {
    free: Semaphore,
    /// How long a start has its turn; what takes longer goes on beside those that come next.
    share: Duration,
}

impl Turns {
    /// So many at once, each for so long.
    pub(super) fn new(at_once: usize, share: Duration) -> Self {
        Self { free: Semaphore::new(at_once), share }
    }

    /// What `start` gives, which is begun when there is a turn for it, or once it is `awaited`.
    pub(super) async fn take<T>(
        &self,
        awaited: impl Future<Output = ()>,
        start: impl Future<Output = T>,
    ) -> T {
        let turn = tokio::select! {
            turn = self.free.acquire() => turn.ok(),
            () = awaited => None,
        };
        tokio::pin!(start);
        if let Ok(started) = timeout(self.share, &mut start).await {
            return started;
        }
        drop(turn);
        start.await
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{Instant, sleep_until};

    use super::*;

    const SHARE: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_is_started_by_few_at_once_and_by_the_next_where_one_takes_long() {
        let (turns, begun) = (Arc::new(Turns::new(3, SHARE)), Arc::new(AtomicUsize::new(0)));
        let start = |awaited: bool| {
            let (turns, begun) = (turns.clone(), begun.clone());
            tokio::spawn(async move {
                let endless = async {
                    begun.fetch_add(1, Ordering::SeqCst);
                    pending::<()>().await;
                };
                match awaited {
                    true => turns.take(ready(()), endless).await,
                    false => turns.take(pending(), endless).await,
                }
            })
        };
        let origin = Instant::now();
        let all: Vec<_> = (0..7).map(|_| start(false)).collect();
        let counted_at = async |time: Duration| {
            sleep_until(origin + time).await;
            begun.load(Ordering::SeqCst)
        };
        assert_eq!(counted_at(SHARE / 2).await, 3);
        let waited_for = start(true);
        assert_eq!(counted_at(SHARE * 3 / 4).await, 4);
        assert_eq!(counted_at(SHARE * 3 / 2).await, 7);
        assert_eq!(counted_at(SHARE * 5 / 2).await, 8);
        all.iter().chain([&waited_for]).for_each(tokio::task::JoinHandle::abort);
    }
}
