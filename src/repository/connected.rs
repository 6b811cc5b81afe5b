//! A repository that knows how others are reached: by the settings that it was itself.
//!
//! What [`connect`](super::connect) gives. It changes nothing of what the repository within answers.

use std::sync::Arc;

use super::around::Around;
use super::{Config, Repository, connect};
use crate::error::{Error, Kind, Result};
use crate::oci::{Place, Reference};

/// `R` and the settings it was made by.
#[derive(Debug)]
pub(super) struct Connected<R> {
    inner: R,
    config: Config,
}

impl<R: Repository> Connected<R> {
    pub(super) fn new(inner: R, config: &Config) -> Self {
        Self { inner, config: config.clone() }
    }
}

impl<R: Repository> Around for Connected<R> {
    fn inner(&self) -> &dyn Repository {
        &self.inner
    }

    fn elsewhere(&self, reference: &Reference) -> Result<Arc<dyn Repository>> {
        match reference.place {
            Place::Registry { .. } => connect(reference, &self.config),
            Place::Layout { .. } => {
                let doing = format!("an artifact of {} names the folder {reference}", self.inner.place());
                Err(Error::new(Kind::Unsupported, doing))
            }
        }
    }
}
