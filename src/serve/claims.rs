//! One thing at a time for each folder or name: who shows a volume there or takes it away has its claim meanwhile.
//!
//! Who takes something away goes before who is about to show it: that one gives its claim up. Who asks for the same as is under
//! way waits for that. Used by the plane's volumes, by folder, and by the artifact store, by name.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

/// How long who is about to show something may take to let go of it: longer than the local work that is seen through.
const LETTING_GO: Duration = Duration::from_secs(10);

type Table<K, W> = Arc<Mutex<HashMap<K, Arc<Claimed<W>>>>>;

/// What is under way, by what it is for. `W` is what can be asked for.
#[derive(Debug)]
pub(super) struct Claims<K, W = ()> {
    table: Table<K, W>,
    /// How many have asked for something.
    asked: AtomicU64,
}

/// Something that is under way.
#[derive(Debug, Default)]
struct Claimed<W> {
    what: W,
    /// Which of all that asked for something this was; 0: of no matter.
    number: u64,
    /// Whether somebody wants it given up.
    given_up: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

/// The word that something is under way.
#[derive(Debug)]
pub(super) struct Claim<K: Eq + Hash, W = ()> {
    table: Table<K, W>,
    key: K,
    claimed: Arc<Claimed<W>>,
}

/// Why there is no claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    /// Something else was asked for later.
    Outdone,
    /// What is under way is not let go of.
    Occupied,
}

impl<W> Claimed<W> {
    async fn over(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// Has it given up.
    async fn end(&self) {
        self.given_up.send_replace(true);
        self.over().await;
    }
}

impl<K: Eq + Hash, W> Claim<K, W> {
    /// Returns when somebody wants it given up.
    pub(super) async fn given_up(&self) {
        let _ = self.claimed.given_up.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// Whether somebody does.
    pub(super) fn is_given_up(&self) -> bool {
        *self.claimed.given_up.borrow()
    }
}

impl<K: Eq + Hash, W> Drop for Claim<K, W> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
        self.claimed.over.send_replace(true);
    }
}

impl<K, W> Default for Claims<K, W> {
    fn default() -> Self {
        Self { table: Table::default(), asked: AtomicU64::new(0) }
    }
}

impl<K: Eq + Hash + Clone, W: Clone + Default + PartialEq> Claims<K, W> {
    /// The word for `key`; `None` where something is under way for it.
    pub(super) fn claim(&self, key: &K) -> Option<Claim<K, W>> {
        self.claim_or_see(key, Claimed::default).ok()
    }

    /// The word for `key`, once nothing is under way for it any more: whatever is, goes before.
    pub(super) async fn claim_in_turn(&self, key: &K) -> Claim<K, W> {
        loop {
            match self.claim_or_see(key, Claimed::default) {
                Ok(claim) => return claim,
                Err(other) => other.over().await,
            }
        }
    }

    /// The claim for `what`: once nobody is at the same any more, and before whoever is at something else, which gives that up.
    pub(super) async fn claim_for(&self, key: &K, what: &W) -> Result<Claim<K, W>, Kept> {
        let number = self.next();
        loop {
            let mine = || Claimed { what: what.clone(), number, ..Claimed::default() };
            let other = match self.claim_or_see(key, mine) {
                Ok(claim) => return Ok(claim),
                Err(other) => other,
            };
            if other.what == *what {
                other.over().await;
            } else if other.number > number {
                return Err(Kept::Outdone);
            } else {
                let ended = tokio::time::timeout(LETTING_GO, other.end()).await;
                ended.map_err(|_| Kept::Occupied)?;
            }
        }
    }

    /// The claim of who goes before: whoever has one gives it up. `None` where that takes too long.
    pub(super) async fn take_over(&self, key: &K) -> Option<Claim<K, W>> {
        let number = self.next();
        let taking = async {
            loop {
                match self.claim_or_see(key, || Claimed { number, ..Claimed::default() }) {
                    Ok(claim) => return claim,
                    Err(other) => other.end().await,
                }
            }
        };
        tokio::time::timeout(LETTING_GO, taking).await.ok()
    }

    fn next(&self) -> u64 {
        self.asked.fetch_add(1, Ordering::Relaxed).saturating_add(1)
    }

    /// The claim, or that of who has one.
    fn claim_or_see(
        &self,
        key: &K,
        mine: impl FnOnce() -> Claimed<W>,
    ) -> Result<Claim<K, W>, Arc<Claimed<W>>> {
        let mut table = self.table.lock();
        if let Some(other) = table.get(key) {
            return Err(other.clone());
        }
        let claimed = Arc::new(mine());
        table.insert(key.clone(), claimed.clone());
        Ok(Claim { table: self.table.clone(), key: key.clone(), claimed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_goes_before_is_given_the_claim_of_who_waits_for_somebody_else() {
        let claims: Claims<&str> = Claims::default();
        let first = claims.claim(&"a").unwrap();
        assert!(claims.claim(&"a").is_none() && claims.claim(&"b").is_some());
        let (second, ()) = tokio::join!(claims.take_over(&"a"), async {
            first.given_up().await;
            drop(first);
        });
        let second = second.unwrap();
        // Who waits for his turn takes nothing from anybody.
        let (third, ()) = tokio::join!(claims.claim_in_turn(&"a"), async {
            tokio::task::yield_now().await;
            assert!(!second.is_given_up());
            drop(second);
        });
        assert!(claims.claim(&"a").is_none());
        drop(third);
        assert!(claims.claim(&"a").is_some());
    }

    #[tokio::test]
    async fn who_asks_for_the_same_waits_for_it_and_who_asks_for_something_else_goes_before_both() {
        let claims = Claims::default();
        let (same, other) = (Some("same"), Some("other"));
        let first = claims.claim_for(&"a", &same).await.unwrap();
        let (second, ()) = tokio::join!(claims.claim_for(&"a", &same), async {
            tokio::task::yield_now().await;
            assert!(!first.is_given_up());
            drop(first);
        });
        let second = second.unwrap();
        let third = claims.claim_for(&"a", &same);
        tokio::pin!(third);
        tokio::select! {
            biased;
            _ = &mut third => panic!("somebody is at the same"),
            () = std::future::ready(()) => {}
        }
        let (fourth, ()) = tokio::join!(claims.claim_for(&"a", &other), async {
            second.given_up().await;
            drop(second);
        });
        assert_eq!(third.await.unwrap_err(), Kept::Outdone);
        drop(fourth.unwrap());
        // What nobody has asked for, as what is had again, is no later than anything.
        let own = claims.claim_in_turn(&"a").await;
        let (last, ()) = tokio::join!(claims.claim_for(&"a", &same), async {
            own.given_up().await;
            drop(own);
        });
        assert!(last.is_ok());
    }
}
