//! On what terms a volume is shown: for how long it is waited for, whether all of it has to fit, what other credentials come to.
//!
//! Said by who asks the plane; kept to by [`volumes`](super::volumes).

use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind};

/// How long the registry and the mount's process are waited for where nothing else is said: longer than their own deadlines.
const LONGEST: Duration = Duration::from_secs(600);

/// How something is shown.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long the registry and the mount's process are waited for, all in all.
    pub limit: Duration,
    /// When that began.
    pub begun: Instant,
    /// Whether all of a model has to fit into the store.
    pub room: Room,
    /// What other credentials come to than those that the volume is shown with already.
    pub renewal: Renewal,
}

/// Whether all of a model has to fit into what the store may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// It has to.
    Needed,
    /// It need not: what does not fit is fetched again.
    NotNeeded,
}

/// What other credentials for a volume come to, that the registry has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// Another mount: they may be another's.
    AnotherMount,
    /// They take the place of the former: they are the same one's, and renewed from time to time.
    InPlace,
}

impl Default for Terms {
    fn default() -> Self {
        let (room, renewal) = (Room::NotNeeded, Renewal::AnotherMount);
        Self { limit: LONGEST, begun: Instant::now(), room, renewal }
    }
}

impl Terms {
    /// Returns when `what` has been waited for as long as it may be; gives the error that says so.
    pub(super) async fn over(&self, what: &str) -> Error {
        tokio::time::sleep(self.limit.saturating_sub(self.begun.elapsed())).await;
        let error =
            Error::new(Kind::Deadline, format!("{what} takes longer than {:?} to be had", self.limit));
        error.hint("ask again; the registry may be slow, or away")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_is_given_little_of_the_time_is_told_how_long_was_waited_in_all() {
        let begun = Instant::now();
        let terms = Terms { limit: Duration::from_secs(120), ..Terms::default() };
        tokio::time::advance(Duration::from_secs(119)).await;
        let late = terms.over("the model").await;
        assert!(begun.elapsed() < Duration::from_secs(121), "{:?}", begun.elapsed());
        assert!(late.kind() == Kind::Deadline && late.to_string().contains("longer than 120s"), "{late}");
    }
}
