//! What a long run has to say at its end, in one line.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::AddAssign;
use std::time::Duration;

use weightfs::testing::registry::{Fault, Registry};

/// How often each kind of fault was met.
#[derive(Debug, Default)]
pub(super) struct Given(BTreeMap<&'static str, usize>);

impl Given {
    /// Those that a registry and its storage gave.
    pub(super) fn of(registry: &Registry) -> Self {
        Self(registry.faults_given())
    }

    /// The kinds, in order.
    pub(super) fn kinds(&self) -> Vec<&'static str> {
        self.0.keys().copied().collect()
    }
}

impl AddAssign for Given {
    fn add_assign(&mut self, other: Self) {
        for (kind, count) in other.0 {
            *self.0.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each: Vec<_> = self.0.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        write!(f, "{} faults ({})", self.0.values().sum::<usize>(), each.join(", "))
    }
}

/// The kinds of these faults, in order.
pub(super) fn kinds(faults: &[Fault]) -> Vec<&'static str> {
    let mut kinds: Vec<_> = faults.iter().map(Fault::name).collect();
    kinds.sort_unstable();
    kinds.dedup();
    kinds
}

/// As `12.3 s`.
pub(super) fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}
