//! How much asking again a host in trouble bears, shared by all who ask it: an outage is no storm.
//!
//! Every failure spends one of a few, a body that breaks as much as an answer that does; every success gives one back.
//! Where none is left the host counts as down: then one attempt a second goes out, whoever's it is, the others are held
//! back, and the first success lets everybody go on. The wait that a host asks for (`Retry-After`) is everybody's too.
//! There is one budget for a host, whatever repositories of it a process reads, and none has a say in another's.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use url::Url;

use crate::error::{Error, Kind, Result};
use crate::metrics::Metrics;

/// How many failures may be ahead of the successes: as many as readers that usually begin together.
const FULL: u32 = 32;
/// What a failure to connect spends: it is dearer than an answer and says more.
const UNREACHABLE: u32 = 8;
/// How often a host that is down is asked.
const PROBE: Duration = Duration::from_secs(1);
/// The most that is put on top of a wait that was asked for, so that those who waited do not come together.
pub(super) const SPREAD: Duration = Duration::from_secs(1);

/// What is known of the hosts that a process asks.
#[derive(Debug, Default)]
pub struct Budgets {
    hosts: Mutex<HashMap<String, Arc<Budget>>>,
    relief: Arc<Notify>,
}

impl Budgets {
    /// The budget of the host at `root`, by its scheme, name and port.
    pub(super) fn of(&self, root: &Url, metrics: &Arc<Metrics>) -> Arc<Budget> {
        let host = root.origin().ascii_serialization();
        let make = || Arc::new(Budget::new(Arc::clone(&self.relief), Arc::clone(metrics)));
        self.hosts.lock().entry(host).or_insert_with(make).clone()
    }

    /// Returns when a host that was in trouble answers again; whoever waits bounds it.
    pub(super) async fn relief(&self) {
        self.relief.notified().await;
    }
}

/// Leave to ask a host once, and when it was given.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass(Instant);

/// What all who ask a host know of its health.
#[derive(Debug)]
pub(super) struct Budget {
    state: Mutex<State>,
    relief: Arc<Notify>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    left: u32,
    /// When the next attempt may go out; `None` while the host is not down.
    probe: Option<Instant>,
    wish: Option<Wish>,
    trouble: Option<Error>,
}

/// A host's wish not to be asked.
#[derive(Clone, Copy, Debug)]
struct Wish {
    /// When it was last said.
    said: Instant,
    until: Instant,
    /// How far those who waited are spread out after it.
    spread: Duration,
}

impl Budget {
    /// A host of which nothing is known; `relief` is told when it answers again.
    pub(super) fn new(relief: Arc<Notify>, metrics: Arc<Metrics>) -> Self {
        let state = State { left: FULL, probe: None, wish: None, trouble: None };
        Self { state: Mutex::new(state), relief, metrics }
    }

    /// Leave to ask now.
    ///
    /// # Errors
    /// That nobody was asked ([`Error::was_asked`]), of the last failure's kind and with it as the cause; its wait is how
    /// long it is until it is worth asking for leave again.
    pub(super) fn pass(&self) -> Result<Pass> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        if let Some(wish) = state.wish.filter(|wish| now < wish.until) {
            let wait = wish.until.duration_since(now).saturating_add(wish.spread.mul_f64(fastrand::f64()));
            return Err(state.held_back(wait, "it asks to be left alone"));
        }
        match state.probe {
            Some(due) if now < due => {
                let wait = due.duration_since(now);
                return Err(state.held_back(wait, "it is asked once a second"));
            }
            Some(_) => {
                state.probe = Some(now + PROBE);
                self.metrics.probes.add(1);
            }
            None => {}
        }
        Ok(Pass(now))
    }

    /// Takes down that what `pass` was for went well.
    pub(super) fn succeeded(&self, pass: Pass) {
        let mut state = self.state.lock();
        // What was on its way when the host asked for rest does not take that back.
        if state.wish.is_some_and(|wish| pass.0 < wish.said) {
            return;
        }
        let rested = state.wish.take().is_some();
        state.trouble = None;
        let was_down = state.probe.take().is_some();
        state.left = if was_down { FULL } else { state.left.saturating_add(1).min(FULL) };
        drop(state);
        if was_down {
            tracing::info!("the registry answers again");
        }
        if was_down || rested {
            self.relief.notify_waiters();
        }
    }

    /// Takes down a failure of what `pass` was for. An answer that refuses is a sign of life. The host may ask to be left
    /// alone for `longest`, and is asked after that even against its wish, since readers would fail without.
    pub(super) fn failed(&self, pass: Pass, error: &Error, longest: Duration) {
        match error.kind() {
            Kind::Unreachable | Kind::Broken | Kind::Throttled | Kind::Protocol => {}
            Kind::Denied | Kind::NotFound => return self.succeeded(pass),
            _ => return,
        }
        let (mut state, now) = (self.state.lock(), Instant::now());
        if let Some(wait) = error.wait() {
            state.heed(now, wait.min(longest), longest);
        }
        let spent = if error.kind() == Kind::Unreachable { UNREACHABLE } else { 1 };
        state.trouble = Some(error.clone());
        if state.left == 0 && state.probe.is_none() {
            state.go_down(now, &self.metrics);
        }
        state.left = state.left.saturating_sub(spent);
    }
}

impl State {
    fn heed(&mut self, now: Instant, wait: Duration, longest: Duration) {
        let until = now.checked_add(wait).unwrap_or(now);
        let spread = (wait / 4).min(SPREAD).min(longest / 20);
        let until = self.wish.map_or(until, |wish| wish.until.max(until));
        self.wish = Some(Wish { said: now, until, spread });
    }

    fn held_back(&self, wait: Duration, why: &str) -> Error {
        let error = match &self.trouble {
            Some(trouble) => Error::from_source(trouble.kind(), why, trouble.clone()),
            None => Error::new(Kind::Broken, why),
        };
        error.retry_after(wait).unasked()
    }

    fn go_down(&mut self, now: Instant, metrics: &Metrics) {
        metrics.outages.add(1);
        let cause = self.trouble.as_ref().map(ToString::to_string).unwrap_or_default();
        tracing::warn!(cause, "the registry does not answer as it should; it is asked once a second");
        self.probe = Some(now + PROBE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAR: Duration = Duration::from_secs(3600);

    fn budget() -> Arc<Budget> {
        Budgets::default().of(&Url::parse("https://r.io/v2/").unwrap(), &Arc::default())
    }

    fn broken() -> Error {
        Error::new(Kind::Broken, "503")
    }

    fn fail(budget: &Budget, error: &Error) {
        let pass = budget.pass().unwrap();
        budget.failed(pass, error, FAR);
    }

    fn wait(budget: &Budget) -> Duration {
        budget.pass().err().and_then(|error| error.wait()).unwrap_or_default()
    }

    async fn advance(time: Duration) {
        tokio::time::advance(time).await;
    }

    /// A host that counts as down.
    fn down() -> Arc<Budget> {
        let budget = budget();
        let passes: Vec<_> = (0..5).map(|_| budget.pass().unwrap()).collect();
        let refused = Error::new(Kind::Unreachable, "refused");
        passes.into_iter().for_each(|pass| budget.failed(pass, &refused, FAR));
        budget
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_failures_are_borne_and_then_one_attempt_a_second() {
        let budget = budget();
        (0..=FULL).for_each(|_| fail(&budget, &broken()));
        for _ in 0..3 {
            assert_eq!(wait(&budget), PROBE);
            advance(PROBE).await;
            fail(&budget, &broken());
        }
        let error = budget.pass().unwrap_err();
        assert!(!error.was_asked() && error.to_string().contains("503"), "{error}");
        advance(PROBE).await;
        budget.succeeded(budget.pass().unwrap());
        assert!(budget.pass().is_ok() && budget.pass().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_among_more_successes_slow_nobody_down() {
        let budget = budget();
        for _ in 0..1000 {
            fail(&budget, &broken());
            budget.succeeded(budget.pass().unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_lets_everybody_go_on_at_once() {
        let budget = down();
        assert!(budget.pass().is_err());
        let early = Pass(Instant::now());
        let mut relief = std::pin::pin!(budget.relief.notified());
        relief.as_mut().enable();
        budget.succeeded(early);
        relief.await;
        assert!(budget.pass().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_to_be_left_alone_is_kept_by_all_and_nobody_comes_early() {
        let budget = budget();
        let before = budget.pass().unwrap();
        advance(Duration::from_millis(1)).await;
        fail(&budget, &Error::new(Kind::Throttled, "429").retry_after(Duration::from_secs(20)));
        let waits: Vec<_> = (0..100).map(|_| wait(&budget)).collect();
        let (least, most) = (Duration::from_secs(20), Duration::from_secs(20) + SPREAD);
        assert!(waits.iter().all(|wait| (least..=most).contains(wait)), "{waits:?}");
        assert!(waits.iter().any(|wait| *wait > least + SPREAD / 2), "they come together");
        budget.succeeded(before);
        assert!(budget.pass().is_err(), "that was on its way before the wish");
        advance(least).await;
        budget.succeeded(budget.pass().unwrap());
        assert!(budget.state.lock().wish.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wish_is_kept_no_longer_than_readers_last() {
        let budget = budget();
        let pass = budget.pass().unwrap();
        let wish = Error::new(Kind::Throttled, "429").retry_after(FAR);
        budget.failed(pass, &wish, Duration::from_secs(54));
        advance(Duration::from_secs(53)).await;
        assert!(budget.pass().is_err());
        advance(Duration::from_secs(1)).await;
        assert!(budget.pass().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_has_one_budget_and_no_other_hosts() {
        let (budgets, metrics) = (Budgets::default(), Arc::default());
        let of = |url: &str| budgets.of(&Url::parse(url).unwrap(), &metrics);
        let one = of("https://r.io/v2/");
        fail(&one, &Error::new(Kind::Throttled, "429").retry_after(FAR));
        assert!(of("https://r.io:443/other/v2/").pass().is_err());
        for other in ["https://r.io:5000/v2/", "http://r.io/v2/", "https://m.io/v2/"] {
            assert!(of(other).pass().is_ok(), "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_is_a_sign_of_life() {
        let budget = down();
        advance(PROBE).await;
        fail(&budget, &Error::new(Kind::NotFound, "404"));
        assert!(budget.pass().is_ok() && budget.state.lock().trouble.is_none());
    }
}
