//! How much asking again a registry in trouble bears, shared by all who ask it: an outage is no storm.
//!
//! Every attempt after a failure spends one of a few; every success gives one back. Where none is left the registry
//! counts as down: then one attempt a second goes out, whoever's it is, the others wait for what comes of it, and the
//! first success lets everybody go on. The wait that a registry asks for (`Retry-After`) is everybody's too.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::error::{Error, Kind};
use crate::metrics::Metrics;

/// How many attempts after a failure may be ahead of the successes.
const FULL: u32 = 16;
/// What a failure to connect spends besides: it is dearer than an answer and says more.
const UNREACHABLE: u32 = 4;
/// How often a registry that is down is asked.
const PROBE: Duration = Duration::from_secs(1);
/// How long one who has failed before lets those go first who have not tried yet.
const COURTESY: Duration = Duration::from_millis(20);

/// Whether something is tried for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    /// It spends nothing, and goes before the others where the registry is down: it may be about something else.
    First,
    /// It has failed before.
    Again,
}

/// What all readers of a registry know of its health.
#[derive(Debug)]
pub(super) struct Budget {
    state: Mutex<State>,
    changed: Notify,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    left: u32,
    /// When the next attempt may go out; `None` while the registry is not down.
    probe: Option<Instant>,
    /// Until when it wants not to be asked.
    quiet: Option<Instant>,
    /// How many wait that have not tried yet.
    newcomers: usize,
    trouble: Option<Error>,
}

impl Budget {
    /// A registry of which nothing is known.
    pub(super) fn new(metrics: Arc<Metrics>) -> Self {
        let state = State { left: FULL, probe: None, quiet: None, newcomers: 0, trouble: None };
        Self { state: Mutex::new(state), changed: Notify::new(), metrics }
    }

    /// Returns when the attempt may be made. `latest` is when it must be even against the registry's wish to be left
    /// alone, since its reader would fail otherwise. Who waits here must be bounded from outside.
    pub(super) async fn leave(&self, attempt: Attempt, latest: Instant) {
        let _counted = (attempt == Attempt::First).then(|| Newcomer::among(self));
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(wish) = self.wish().map(|until| until.min(latest)).filter(|at| *at > Instant::now()) {
                sleep_until(wish).await;
                continue;
            }
            let taken = self.state.lock().take(attempt, &self.metrics);
            let Some(later) = taken else { return };
            // Whichever comes first: the time, or a success.
            let _ = timeout_at(later, changed).await;
        }
    }

    /// Takes down that the registry answers.
    pub(super) fn succeeded(&self) {
        let mut state = self.state.lock();
        state.trouble = None;
        if state.probe.take().is_none() {
            state.left = state.left.saturating_add(1).min(FULL);
            return;
        }
        state.left = FULL;
        drop(state);
        tracing::info!("the registry answers again");
        self.changed.notify_waiters();
    }

    /// Takes down a failure. An answer that refuses is a sign of life.
    pub(super) fn failed(&self, error: &Error) {
        match error.kind() {
            Kind::Unreachable | Kind::Broken | Kind::Throttled | Kind::Protocol | Kind::Deadline => {}
            Kind::Denied | Kind::NotFound => return self.succeeded(),
            _ => return,
        }
        let mut state = self.state.lock();
        let now = Instant::now();
        if let Some(until) = error.wait().and_then(|wait| now.checked_add(wait)) {
            state.quiet = Some(state.quiet.map_or(until, |quiet| quiet.max(until)));
        }
        if error.kind() == Kind::Unreachable {
            state.left = state.left.saturating_sub(UNREACHABLE);
        }
        if state.left == 0 && state.probe.is_none() {
            state.go_down(now, &self.metrics);
        }
        if error.kind() != Kind::Deadline || state.trouble.is_none() {
            state.trouble = Some(error.clone());
        }
    }

    /// The last failure, while no success has followed.
    pub(super) fn trouble(&self) -> Option<Error> {
        self.state.lock().trouble.clone()
    }

    fn wish(&self) -> Option<Instant> {
        self.state.lock().quiet
    }
}

impl State {
    /// Whether the attempt goes out now; else when to ask again.
    fn take(&mut self, attempt: Attempt, metrics: &Metrics) -> Option<Instant> {
        let now = Instant::now();
        let due = match self.probe {
            None if attempt == Attempt::First => return None,
            None if self.left > 0 => {
                self.left -= 1;
                metrics.retries.add(1);
                return None;
            }
            None => self.go_down(now, metrics),
            Some(due) => due,
        };
        if now < due {
            return Some(due);
        }
        if attempt == Attempt::Again && self.newcomers > 0 {
            return Some(now + COURTESY);
        }
        self.probe = Some(now + PROBE);
        metrics.probes.add(1);
        None
    }

    fn go_down(&mut self, now: Instant, metrics: &Metrics) -> Instant {
        metrics.outages.add(1);
        let cause = self.trouble.as_ref().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(cause, "the registry does not answer as it should; it is asked once a second");
        let due = now + PROBE;
        self.probe = Some(due);
        due
    }
}

/// One who waits and has not tried yet.
struct Newcomer<'a>(&'a Budget);

impl<'a> Newcomer<'a> {
    fn among(budget: &'a Budget) -> Self {
        budget.state.lock().newcomers += 1;
        Self(budget)
    }
}

impl Drop for Newcomer<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.newcomers = state.newcomers.saturating_sub(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Arc<Budget> {
        Arc::new(Budget::new(Arc::default()))
    }

    fn far() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    async fn took(wait: impl Future<Output = ()>) -> Duration {
        let start = Instant::now();
        wait.await;
        start.elapsed()
    }

    fn broken() -> Error {
        Error::new(Kind::Broken, "503")
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_are_tried_again_at_once_and_then_one_a_second() {
        let budget = budget();
        for _ in 0..FULL {
            assert!(took(budget.leave(Attempt::Again, far())).await.is_zero());
            budget.failed(&broken());
        }
        for _ in 0..3 {
            assert!(took(budget.leave(Attempt::Again, far())).await >= PROBE);
            budget.failed(&broken());
        }
        assert!(took(budget.leave(Attempt::First, far())).await >= PROBE, "whoever asks");
        budget.succeeded();
        assert!(took(budget.leave(Attempt::Again, far())).await.is_zero());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_among_more_successes_slow_nobody_down() {
        let budget = budget();
        for _ in 0..1000 {
            assert!(took(budget.leave(Attempt::First, far())).await.is_zero());
            budget.failed(&broken());
            assert!(took(budget.leave(Attempt::Again, far())).await.is_zero());
            budget.succeeded();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_not_tried_yet_goes_before_those_who_failed() {
        let budget = budget();
        for _ in 0..4 {
            budget.failed(&Error::new(Kind::Unreachable, "refused"));
        }
        let wait = |attempt| {
            let budget = Arc::clone(&budget);
            tokio::spawn(async move {
                budget.leave(attempt, far()).await;
                Instant::now()
            })
        };
        let (again, first) = (wait(Attempt::Again), wait(Attempt::First));
        let (again, first) = (again.await.unwrap(), first.await.unwrap());
        assert!(first < again, "{:?}", again - first);
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_lets_everybody_go_on_at_once() {
        let budget = budget();
        for _ in 0..4 {
            budget.failed(&Error::new(Kind::Unreachable, "refused"));
        }
        let waiting = tokio::spawn({
            let budget = Arc::clone(&budget);
            async move { took(budget.leave(Attempt::Again, far())).await }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        budget.succeeded();
        assert!(waiting.await.unwrap() < Duration::from_millis(400));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_to_be_left_alone_is_kept_by_all_up_to_their_own_deadline() {
        let budget = budget();
        budget.failed(&Error::new(Kind::Throttled, "429").retry_after(Duration::from_secs(20)));
        let hurried = Instant::now() + Duration::from_secs(5);
        assert_eq!(took(budget.leave(Attempt::First, hurried)).await.as_secs(), 5);
        assert_eq!(took(budget.leave(Attempt::Again, far())).await.as_secs(), 15);
    }

    #[test]
    fn a_refusal_is_a_sign_of_life() {
        let budget = budget();
        for _ in 0..4 {
            budget.failed(&Error::new(Kind::Unreachable, "refused"));
        }
        assert!(budget.state.lock().probe.is_some());
        budget.failed(&Error::new(Kind::NotFound, "404"));
        assert!(budget.state.lock().probe.is_none() && budget.trouble().is_none());
    }
}
