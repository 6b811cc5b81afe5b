//! One thing at a time for each folder: who shows a volume there or takes it away has its claim meanwhile.
//!
//! Who takes a volume away goes before who is about to show it: that one gives its claim up. Used by the plane's volumes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::plane::Plane;

/// How long who is about to show something may take to let go of it: longer than the local work that is seen through.
const LETTING_GO: Duration = Duration::from_secs(10);

/// What is under way for a folder.
#[derive(Debug, Default)]
pub(super) struct Claimed {
    /// Whether somebody wants it given up.
    given_up: watch::Sender<bool>,
    over: watch::Sender<bool>,
}

/// The word that something is under way for a folder.
#[derive(Debug)]
pub(super) struct Claim {
    plane: Arc<Plane>,
    target: PathBuf,
    claimed: Arc<Claimed>,
}

impl Claim {
    /// Returns when somebody wants the volume taken away.
    pub(super) async fn given_up(&self) {
        let _ = self.claimed.given_up.subscribe().wait_for(|wanted| *wanted).await;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.plane.claims.lock().remove(&self.target);
        self.claimed.over.send_replace(true);
    }
}

impl Plane {
    /// The word for a folder; `None` where something is under way for it.
    pub(super) fn claim(self: &Arc<Self>, target: &Path) -> Option<Claim> {
        self.claim_or_see(target).ok()
    }

    /// The claim of who takes the volume at `target` away: whoever is about to show something there gives it up. `None` where
    /// that takes too long.
    pub(super) async fn take_over(self: &Arc<Self>, target: &Path) -> Option<Claim> {
        let taking = async {
            loop {
                match self.claim_or_see(target) {
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
    fn claim_or_see(self: &Arc<Self>, target: &Path) -> Result<Claim, Arc<Claimed>> {
        let mut claims = self.claims.lock();
        if let Some(other) = claims.get(target) {
            return Err(other.clone());
        }
        let claimed = Arc::new(Claimed::default());
        claims.insert(target.to_owned(), claimed.clone());
        Ok(Claim { plane: self.clone(), target: target.to_owned(), claimed })
    }
}
