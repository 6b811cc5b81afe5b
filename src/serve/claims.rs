//! One thing at a time for each folder or name: who shows a volume there or takes it away has its claim meanwhile.
//!
//! Who takes something away goes before who is about to show it: that one gives its claim up. Used by the plane's volumes, by
//! folder, and by the artifact store, by name.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

/// How long who is about to show something may take to let go of it: longer than the local work that is seen through.
const LETTING_GO: Duration = Duration::from_secs(10);

type Table<K> = Arc<Mutex<HashMap<K, Arc<Claimed>>>>;

/// What is under way, by what it is for.
#[derive(Debug)]
pub(super) struct Claims<K>(Table<K>);

/// Something that is under way.
#[derive(Debug, Default)]
struct Claimed {
    /// Whether somebody wants it given up.
    given_up: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

/// The word that something is under way.
#[derive(Debug)]
pub(super) struct Claim<K: Eq + Hash> {
    table: Table<K>,
    key: K,
    claimed: Arc<Claimed>,
}

impl<K: Eq + Hash> Claim<K> {
    /// Returns when somebody wants it given up.
    pub(super) async fn given_up(&self) {
        let _ = self.claimed.given_up.subscribe().wait_for(|wanted| *wanted).await;
    }

    /// Whether somebody does.
    pub(super) fn is_given_up(&self) -> bool {
        *self.claimed.given_up.borrow()
    }
}

impl<K: Eq + Hash> Drop for Claim<K> {
    fn drop(&mut self) {
        self.table.lock().remove(&self.key);
        self.claimed.over.send_replace(true);
    }
}

impl<K> Default for Claims<K> {
    fn default() -> Self {
        Self(Table::default())
    }
}

impl<K: Eq + Hash + Clone> Claims<K> {
    /// The word for `key`; `None` where something is under way for it.
    pub(super) fn claim(&self, key: &K) -> Option<Claim<K>> {
        self.claim_or_see(key).ok()
    }

    /// The word for `key`, once nothing is under way for it any more: whatever is, goes before.
    pub(super) async fn claim_in_turn(&self, key: &K) -> Claim<K> {
        loop {
            match self.claim_or_see(key) {
                Ok(claim) => return claim,
                Err(other) => drop(other.over.subscribe().wait_for(|over| *over).await),
            }
        }
    }

    /// The claim of who goes before: whoever has one gives it up. `None` where that takes too long.
    pub(super) async fn take_over(&self, key: &K) -> Option<Claim<K>> {
        let taking = async {
            loop {
                match self.claim_or_see(key) {
                    Ok(claim) => return claim,
                    Err(other) => {
                        other.given_up.send_replace(true);
                        let _ = other.over.subscribe().wait_for(|over| *over).await;
                    }
                }
            }
        };
        tokio::time::timeout(LETTING_GO, taking).await.ok()
    }

    /// The claim, or that of who has one.
    fn claim_or_see(&self, key: &K) -> Result<Claim<K>, Arc<Claimed>> {
        let mut table = self.0.lock();
        if let Some(other) = table.get(key) {
            return Err(other.clone());
        }
        let claimed = Arc::new(Claimed::default());
        table.insert(key.clone(), claimed.clone());
        Ok(Claim { table: self.0.clone(), key: key.clone(), claimed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_goes_before_is_given_the_claim_of_who_waits_for_somebody_else() {
        let claims = Claims::default();
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
}
