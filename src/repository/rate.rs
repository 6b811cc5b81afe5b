//! A limit of bytes a second, where what somebody waits for goes before what is read ahead.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

use super::Purpose;

/// How long bytes read ahead stand back for others at most: some may wait for them too by now.
const PATIENCE: Duration = Duration::from_secs(1);

/// The limit, shared by all reads.
#[derive(Debug)]
pub(super) struct Rate {
    bytes_a_second: u64,
    next: Mutex<Next>,
}

/// From when on the next bytes may pass.
#[derive(Debug)]
struct Next {
    /// As if there were nothing but what somebody waits for.
    demand: Instant,
    all: Instant,
}

impl Rate {
    /// So many bytes a second, at least one.
    pub(super) fn new(bytes_a_second: u64) -> Self {
        let now = Instant::now();
        Self { bytes_a_second: bytes_a_second.max(1), next: Mutex::new(Next { demand: now, all: now }) }
    }

    /// Returns when the bytes may go on.
    pub(super) async fn pass(&self, purpose: Purpose, bytes: u64) {
        match purpose {
            Purpose::Demand => sleep_until(self.take(bytes)).await,
            Purpose::Ahead => self.pass_behind(bytes).await,
        }
    }

    async fn pass_behind(&self, bytes: u64) {
        let end = Instant::now() + PATIENCE;
        loop {
            let all = self.next.lock().all;
            let now = Instant::now();
            if all <= now {
                let cost = self.cost(bytes);
                self.next.lock().all = now + cost;
                return;
            }
            if now >= end {
                self.take(bytes);
                return;
            }
            sleep_until(all.min(end)).await;
        }
    }

    /// Takes the next place before all that is read ahead; from when on it is.
    fn take(&self, bytes: u64) -> Instant {
        let (now, cost) = (Instant::now(), self.cost(bytes));
        let mut next = self.next.lock();
        let at = next.demand.max(now);
        next.demand = at + cost;
        next.all = next.all.max(now) + cost;
        at
    }

    fn cost(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64((bytes as f64 / self.bytes_a_second as f64).min(3600.0))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn pass(rate: Arc<Rate>, purpose: Purpose, pieces: u32) -> Duration {
        let start = Instant::now();
        for _ in 0..pieces {
            rate.pass(purpose, 10_000).await;
        }
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_passes_than_the_limit_whoever_asks() {
        for purpose in [Purpose::Demand, Purpose::Ahead] {
            let rate = Arc::new(Rate::new(100_000));
            let took = pass(rate, purpose, 100).await;
            assert!(
                (Duration::from_millis(9_800)..Duration::from_millis(10_200)).contains(&took),
                "{took:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_goes_before_what_is_read_ahead() {
        let rate = Arc::new(Rate::new(100_000));
        let ahead = tokio::spawn(pass(Arc::clone(&rate), Purpose::Ahead, 100));
        tokio::time::sleep(Duration::from_millis(500)).await;
        let demand = pass(Arc::clone(&rate), Purpose::Demand, 50).await;
        assert!(demand < Duration::from_millis(6_000), "{demand:?}");
        let ahead = ahead.await.unwrap();
        assert!(ahead > Duration::from_millis(14_000), "{ahead:?}");
    }
}
