//! Failures told in the log, at most one line a second: a dead registry fails thousands of reads at once.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

const PAUSE: Duration = Duration::from_secs(1);

/// Tells failures, and counts those it leaves out.
#[derive(Debug, Default)]
pub(super) struct Complaints(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Instant>,
    left_out: u64,
}

impl Complaints {
    /// Logs `what`, unless another line has been logged within the last second.
    pub(super) fn say(&self, what: &str) {
        match self.turn(Instant::now()) {
            Some(0) => tracing::warn!("{what}"),
            Some(left_out) => tracing::warn!(left_out, "{what}"),
            None => {}
        }
    }

    /// How many were left out since the last line, if it is time for another.
    fn turn(&self, now: Instant) -> Option<u64> {
        let mut told = self.0.lock();
        if told.last.is_some_and(|last| now.saturating_duration_since(last) < PAUSE) {
            told.left_out = told.left_out.saturating_add(1);
            return None;
        }
        told.last = Some(now);
        Some(std::mem::take(&mut told.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_line_and_the_next_line_says_how_many_were_left_out() {
        let complaints = Complaints::default();
        let start = Instant::now();
        assert_eq!(complaints.turn(start), Some(0));
        assert_eq!(complaints.turn(start), None);
        assert_eq!(complaints.turn(start), None);
        assert_eq!(complaints.turn(start + PAUSE), Some(2));
    }
}
