//! The attempts at one thing: when the next is due, and when it is given up.
//!
//! What may be tried again is [`Kind::may_retry`]'s to say. Used by reading ([`super::retry`]) and by pushing.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::budget::{Budgets, SPREAD};
use crate::error::{Error, Kind, Result};

/// How often in a row an answer against the rules is asked for again where a person waits: a proxy's page comes and
/// goes, a registry that is none stays. A reader waits as long as for any other failure, since failing kills it.
const PROTOCOL_RETRIES: u32 = 3;

/// How long a manifest is asked for where nobody answers at all, with [`UNREACHABLE_ATTEMPTS`] made: long
/// enough for a registry that restarts, short enough for a person who mistyped a host.
pub(super) const UNREACHABLE_PATIENCE: Duration = Duration::from_secs(5);
const UNREACHABLE_ATTEMPTS: u32 = 3;

/// A pause is drawn between nothing and this ("full jitter"), which doubles with each failure up to the other.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);

/// How long one who has failed before lets those go first who have not tried yet, where one a second goes.
const COURTESY: Duration = Duration::from_millis(20);
/// How often who is held back looks whether a mirror can be asked again. It costs no request.
const LOOK: Duration = Duration::from_secs(2);

/// The attempts at one thing since its last progress.
pub(super) struct Tries {
    since: Instant,
    deadline: Duration,
    unreachable_patience: Duration,
    protocol_retries: u32,
    attempts: u32,
    protocol_in_row: u32,
    last: Option<Error>,
}

impl Tries {
    /// None yet. `unreachable_patience` is how long it is tried where nobody answers at all.
    pub(super) fn new(deadline: Duration, unreachable_patience: Duration) -> Self {
        Self {
            since: Instant::now(),
            deadline,
            unreachable_patience,
            protocol_retries: PROTOCOL_RETRIES,
            attempts: 0,
            protocol_in_row: 0,
            last: None,
        }
    }

    /// None yet, for a reader: whatever may pass is borne until the deadline.
    pub(super) fn reading(deadline: Duration) -> Self {
        Self { protocol_retries: u32::MAX, ..Self::new(deadline, deadline) }
    }

    /// What `attempt` gives, or a `Deadline` error where the time is over first.
    pub(super) async fn bounded<T>(&mut self, attempt: impl Future<Output = Result<T>>) -> Result<T> {
        match timeout_at(self.at(self.deadline), attempt).await {
            Ok(done) => done,
            Err(_) => Err(Error::new(Kind::Deadline, "nothing came")),
        }
    }

    /// How many attempts have failed.
    pub(super) fn failed(&self) -> u32 {
        self.attempts
    }

    /// Starts the deadline anew, and neither the pauses nor what was counted: bytes moved, and nobody has said yet
    /// that they came in.
    pub(super) fn moved(&mut self) {
        self.since = Instant::now();
    }

    /// Waits until the next attempt is due, or gives up with the reason.
    pub(super) async fn pause(&mut self, error: Error, doing: &str) -> Result<()> {
        self.rest(error, doing, Self::wait_before_next).await
    }

    async fn rest(
        &mut self,
        error: Error,
        doing: &str,
        wait: fn(&Self, Option<Duration>) -> Duration,
    ) -> Result<()> {
        if error.kind() == Kind::Deadline {
            return Err(self.overdue(doing));
        }
        self.attempts = self.attempts.saturating_add(1);
        self.protocol_in_row =
            if error.kind() == Kind::Protocol { self.protocol_in_row.saturating_add(1) } else { 0 };
        if !error.kind().may_retry() || self.protocol_in_row > self.protocol_retries {
            return Err(error);
        }
        let wait = wait(self, error.wait());
        if self.nobody_there(&error, wait) {
            return Err(error);
        }
        tracing::debug!(%error, attempt = self.attempts, ?wait, "asking again");
        self.last = Some(error);
        if self.since.elapsed().saturating_add(wait) >= self.deadline {
            return Err(self.overdue(doing));
        }
        sleep(wait).await;
        Ok(())
    }

    /// The same where `budgets` keep what hosts ask for, so that what others can give meanwhile is not waited for. Of what
    /// was held back waits until its turn may come, or a host answers again.
    pub(super) async fn pause_within(&mut self, budgets: &Budgets, error: Error, doing: &str) -> Result<()> {
        if error.was_asked() {
            return self.rest(error, doing, |tries, _| pause_before(tries.attempts)).await;
        }
        let unreachable = error.kind() == Kind::Unreachable && self.unreachable_patience < self.deadline;
        if unreachable && self.since.elapsed() >= self.unreachable_patience {
            return Err(error);
        }
        // Those who have not tried yet go first: theirs may be about something else.
        let courtesy = if self.attempts == 0 { Duration::ZERO } else { COURTESY };
        let due = Instant::now() + error.wait().unwrap_or_default().saturating_add(courtesy).min(LOOK);
        let end = self.at(self.deadline);
        // It never came to an attempt of its own: what others met is the reason.
        self.last.get_or_insert(error);
        let _ = timeout_at(due.min(end), budgets.relief()).await;
        if Instant::now() >= end { Err(self.overdue(doing)) } else { Ok(()) }
    }

    fn nobody_there(&self, error: &Error, wait: Duration) -> bool {
        error.kind() == Kind::Unreachable
            && self.unreachable_patience < self.deadline
            && self.attempts >= UNREACHABLE_ATTEMPTS
            && self.since.elapsed().saturating_add(wait) > self.unreachable_patience
    }

    /// The longer of our own pause and the one asked for; where that lies beyond the deadline, a last attempt
    /// is due shortly before it, since a failed page fault kills the reader.
    fn wait_before_next(&self, asked: Option<Duration>) -> Duration {
        let own = pause_before(self.attempts);
        let reserve = self.deadline / 10;
        let latest = self.deadline.saturating_sub(self.since.elapsed()).saturating_sub(reserve);
        // Never earlier than asked, and not all together after that.
        let spread = |asked: Duration| asked.saturating_add((asked / 4).min(SPREAD).mul_f64(fastrand::f64()));
        asked.map_or(own, |asked| spread(asked).min(latest).max(own))
    }

    fn at(&self, after: Duration) -> Instant {
        self.since.checked_add(after).unwrap_or_else(|| self.since + Duration::from_secs(86_400))
    }

    /// The end at the deadline; the last failure, where there was one, names what was done where.
    fn overdue(&self, doing: &str) -> Error {
        let sentence = format!("no progress for {} s", self.deadline.as_secs_f32());
        match &self.last {
            Some(last) => Error::from_source(Kind::Deadline, sentence, last.clone()),
            None => Error::new(Kind::Deadline, format!("{sentence} {doing}")),
        }
    }
}

/// A pause before the attempt after so many failures.
fn pause_before(failed: u32) -> Duration {
    let doublings = failed.saturating_sub(1).min(16);
    let longest = FIRST_PAUSE.saturating_mul(1 << doublings).min(LONGEST_PAUSE);
    longest.mul_f64(fastrand::f64())
}

impl fmt::Debug for Tries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tries").field("attempts", &self.attempts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_lies_anywhere_between_nothing_and_twice_what_the_last_might_have_been() {
        for (failed, longest) in [(1, 50), (2, 100), (3, 200), (7, 3000), (u32::MAX, 3000)] {
            let drawn: Vec<_> = (0..200).map(|_| pause_before(failed)).collect();
            let longest = Duration::from_millis(longest);
            assert!(drawn.iter().all(|pause| *pause <= longest), "{failed}");
            assert!(drawn.iter().any(|pause| *pause < longest / 4), "{failed}: not down to nothing");
            assert!(drawn.iter().any(|pause| *pause > longest * 3 / 4), "{failed}: not up to all of it");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_person_is_told_of_answers_against_the_rules_after_three_more() {
        let mut tries = Tries::new(Duration::from_secs(60), Duration::from_secs(60));
        let error = || Error::new(Kind::Protocol, "a page for people");
        for _ in 0..3 {
            tries.pause(error(), "asking").await.unwrap();
        }
        assert_eq!(tries.pause(error(), "asking").await.unwrap_err().kind(), Kind::Protocol);
    }
}
