//! The demo's registry, which fails as it is told to, and what is to be said of that at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::error::Result;
use crate::testing::registry::{Door, Habits, Registry, Rule, Source, Tokens};

/// How long signed addresses live, where something is to end them before.
const LIFE: Duration = Duration::from_secs(3600);

/// Serves `source` by these rules. One that is told to fail wants tokens, so that they can be revoked; and has a storage
/// where signed addresses are to end, which lies beside the slow line.
///
/// # Errors
/// Those of [`Registry::start`].
pub(super) async fn registry(source: Source, rules: &[Rule]) -> Result<Registry> {
    let storage = rules.iter().any(Rule::is_for_a_storage).then_some(LIFE);
    let door = if rules.is_empty() { Door::Open } else { Door::Tokens(Tokens::for_everybody()) };
    let registry = Registry::start(source, Habits { door, storage }).await?;
    for rule in rules {
        let storage = registry.storage().filter(|_| rule.is_for_a_storage());
        storage.unwrap_or(&registry).rule(rule.clone());
    }
    Ok(registry)
}

/// What a registry did and saw.
#[derive(Debug, Serialize)]
pub(super) struct Met {
    /// How often each kind of fault was given.
    faults: BTreeMap<&'static str, usize>,
    /// What weightfs did against the rules.
    violations: Vec<String>,
}

impl Met {
    /// At this registry, so far.
    pub(super) fn at(registry: &Registry) -> Self {
        let violations = registry.violations().iter().map(ToString::to_string).collect();
        Self { faults: registry.faults_given(), violations }
    }

    /// The same for a person: what it is, and how much of it.
    pub(super) fn rows(&self) -> Vec<(&'static str, String)> {
        let faults: Vec<_> = self.faults.iter().map(|(name, count)| format!("{count} {name}")).collect();
        let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(", ") };
        let violations = self.violations.iter().map(|one| ("  against the rules", one.clone()));
        [("faults met", faults), ("client violations", self.violations.len().to_string())]
            .into_iter()
            .chain(violations)
            .collect()
    }
}
