//! The metrics of a node as Prometheus reads them: those of the plane, and those of all mounts together.
//!
//! What a mount counts ends with its process. The [`Tally`] remembers what it last said, so that the sums only grow as long as
//! the plane runs. Text format 0.0.4 (prometheus.io, "Exposition formats"). Rendered by the [`page`](super::page).

use std::collections::BTreeMap;
use std::fmt::Write;

use parking_lot::Mutex;

use super::operations::Operations;
use super::plane::Plane;
use super::volumes::Published;
use crate::error::Result;
use crate::metrics::{
    ABNORMAL, ANSWERING, Gauge, MOUNT_BYTES, MOUNT_LOCAL_BYTES, MOUNT_VOLUMES, MOUNTS, Metrics, NodeMetrics,
    Reading, VOLUMES,
};
use crate::mount::Status;

type Counts = BTreeMap<String, u64>;

/// What the plane has counted, and what mounts have.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) node: NodeMetrics,
    /// What the kubelet and a provisioner have asked.
    pub(super) operations: Operations,
    mounts: Mutex<Mounts>,
}

#[derive(Debug, Default)]
struct Mounts {
    /// What processes had counted that have ended.
    ended: Counts,
    /// What each mount's process said last.
    last: BTreeMap<String, Counts>,
}

impl Mounts {
    fn hear(&mut self, mount: &str, now: Counts) {
        let last = self.last.insert(mount.to_owned(), now);
        let now = self.last.get(mount);
        let is_anew = |last: &Counts| {
            last.iter().any(|(name, value)| now.and_then(|now| now.get(name)).is_some_and(|now| now < value))
        };
        // Counters of one process only grow: this is another.
        if let Some(last) = last.filter(is_anew) {
            add(&mut self.ended, &last);
        }
    }

    fn sums(&self) -> Counts {
        let mut sums = self.ended.clone();
        self.last.values().for_each(|counts| add(&mut sums, counts));
        sums
    }
}

fn add(sums: &mut Counts, counts: &Counts) {
    for (name, value) in counts {
        let sum = sums.entry(name.clone()).or_default();
        *sum = sum.saturating_add(*value);
    }
}

impl Tally {
    /// Counts what came of a wish.
    pub(super) fn count(&self, done: &Result<Published>) {
        match done {
            Ok(Published::Ready(_)) => self.node.published_volumes.add(1),
            _ => self.node.failed_publishes.add(1),
        }
    }

    /// Remembers what a mount said last, which is taken away.
    pub(super) fn end(&self, mount: &str, last: Option<Status>) {
        let mut mounts = self.mounts.lock();
        if let Some(status) = last {
            mounts.hear(mount, status.metrics);
        }
        if let Some(last) = mounts.last.remove(mount) {
            add(&mut mounts.ended, &last);
        }
    }

    fn sums(&self, said: impl Iterator<Item = (String, Counts)>) -> Counts {
        let mut mounts = self.mounts.lock();
        said.for_each(|(mount, counts)| mounts.hear(&mount, counts));
        mounts.sums()
    }
}

impl Plane {
    /// All metrics as text. Asks every mount's process, as [`survey`](Self::survey) does, so it blocks.
    #[must_use]
    pub fn exposition(&self) -> String {
        let survey = self.survey();
        let volumes = self.list_with(&survey);
        let said = survey
            .iter()
            .filter_map(|(host, status)| Some((host.spec.id.clone(), status.as_ref()?.metrics.clone())));
        let sums = self.tally.sums(said);
        let mut text = String::new();
        for reading in self.tally.node.snapshot() {
            counter(&mut text, &reading, reading.value);
        }
        for reading in Metrics::default().snapshot() {
            counter(&mut text, &reading, sums.get(reading.name).copied().unwrap_or(0));
        }
        let answering = survey.iter().filter(|(host, _)| host.process().is_some()).count();
        let abnormal = volumes.iter().filter(|volume| volume.trouble.is_some()).count();
        for (of, count) in
            [(MOUNTS, survey.len()), (ANSWERING, answering), (VOLUMES, volumes.len()), (ABNORMAL, abnormal)]
        {
            gauge(&mut text, of, &[(String::new(), u64::try_from(count).unwrap_or(u64::MAX))]);
        }
        let labels = |host: &super::host::Host| {
            let (mount, reference) = (quoted(&host.spec.id), quoted(host.name()));
            format!("{{mount={mount},reference={reference},digest={}}}", quoted(&host.spec.digest))
        };
        let each = |value: &dyn Fn(&Status) -> u64| -> Vec<(String, u64)> {
            let said =
                survey.iter().filter_map(|(host, status)| Some((labels(host), value(status.as_ref()?))));
            said.collect()
        };
        gauge(&mut text, MOUNT_BYTES, &each(&|status| status.total));
        gauge(&mut text, MOUNT_LOCAL_BYTES, &each(&|status| status.kept));
        let shown = survey.iter().map(|(host, _)| {
            let of_it = volumes.iter().filter(|volume| volume.host == host.dir).count();
            (labels(host), u64::try_from(of_it).unwrap_or(u64::MAX))
        });
        gauge(&mut text, MOUNT_VOLUMES, &shown.collect::<Vec<_>>());
        self.tally.operations.write(&mut text);
        self.write_models(&mut text, &survey);
        text
    }
}

// Writing to a string cannot fail.
fn counter(text: &mut String, reading: &Reading, value: u64) {
    let (name, help, unit) = (reading.name, reading.help, reading.unit);
    let _ = writeln!(text, "# HELP weightfs_{name}_total {help} Unit: {unit}.");
    let _ = writeln!(text, "# TYPE weightfs_{name}_total counter");
    let _ = writeln!(text, "weightfs_{name}_total {value}");
}

fn gauge(text: &mut String, of: Gauge, values: &[(String, u64)]) {
    let Gauge { name, unit, help } = of;
    let _ = writeln!(text, "# HELP weightfs_{name} {help} Unit: {unit}.");
    let _ = writeln!(text, "# TYPE weightfs_{name} gauge");
    let mut seen = std::collections::BTreeSet::new();
    for (labels, value) in values.iter().filter(|(labels, _)| seen.insert(labels.clone())) {
        let _ = writeln!(text, "weightfs_{name}{labels} {value}");
    }
}

/// A label's value: backslash, quotation mark and line break are the three that are escaped.
pub(super) fn quoted(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{value}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(value: u64) -> Counts {
        Counts::from([("reads".to_owned(), value)])
    }

    #[test]
    fn the_sum_of_what_mounts_counted_only_grows_though_they_come_and_go() {
        let tally = Tally::default();
        let sum = |said: &[(&str, u64)]| {
            let said = said.iter().map(|(mount, value)| ((*mount).to_owned(), counts(*value)));
            tally.sums(said.collect::<Vec<_>>().into_iter()).get("reads").copied().unwrap_or(0)
        };
        assert_eq!(sum(&[]), 0);
        assert_eq!(sum(&[("a", 5), ("b", 2)]), 7);
        assert_eq!(sum(&[("b", 3)]), 8, "a says nothing for once");
        assert_eq!(sum(&[("a", 1), ("b", 3)]), 9, "a is another process");
        tally.end("a", None);
        assert_eq!(sum(&[("b", 4)]), 10);
    }

    #[test]
    fn what_an_artifact_is_called_cannot_break_out_of_its_label() {
        assert_eq!(quoted("a\"} 1\nb\\"), "\"a\\\"} 1\\nb\\\\\"");
        let mut text = String::new();
        gauge(&mut text, MOUNT_BYTES, &[("{a=\"1\"}".into(), 1), ("{a=\"1\"}".into(), 2)]);
        assert_eq!(text.lines().filter(|line| line.starts_with("weightfs_mount_bytes{")).count(), 1);
    }
}
