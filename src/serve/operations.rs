//! What was asked of the driver, counted under the names that model-csi-driver has, and which models its pods are shown.
//!
//! So that dashboards and alerts made for that driver go on. Rendered with the other metrics by [`exposition`](super::exposition).

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::book::{Origin, Volume};
use super::exposition::quoted;
use super::host::Host;
use super::plane::Plane;
use super::volumes::INLINE;
use crate::metrics::model_csi::{
    CONTROLLER_FAILED, CONTROLLER_LATENCY, CONTROLLER_SUCCEEDED, DYNAMIC_MODELS, INLINE_MODELS, MOUNT_ITEM,
    NODE_FAILED, NODE_LATENCY, NODE_SUCCEEDED, PVC_MODELS, Theirs,
};
use crate::mount::Status;

/// How many buckets a latency has: 1 s, 2 s, 4 s and so on, as there.
const BUCKETS: usize = 16;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asker {
    /// The kubelet.
    Node,
    /// A provisioner.
    Controller,
}

/// All requests.
#[derive(Debug, Default)]
pub(super) struct Operations(Mutex<BTreeMap<(Asker, &'static str), Counts>>);

#[derive(Clone, Debug, Default)]
struct Counts {
    succeeded: u64,
    failed: u64,
    /// How many took no longer than each bucket's bound.
    within: [u64; BUCKETS],
    seconds: f64,
}

impl Operations {
    /// Counts one that took so long.
    pub(super) fn count<T, E>(
        &self,
        asker: Asker,
        operation: &'static str,
        took: Duration,
        done: &Result<T, E>,
    ) {
        let mut all = self.0.lock();
        let counts = all.entry((asker, operation)).or_default();
        if done.is_err() {
            counts.failed += 1;
            return;
        }
        counts.succeeded += 1;
        counts.seconds += took.as_secs_f64();
        for (bound, count) in bounds().zip(&mut counts.within) {
            *count += u64::from(took <= Duration::from_secs(bound));
        }
    }

    /// Writes them.
    pub(super) fn write(&self, text: &mut String) {
        let all = self.0.lock().clone();
        for (asker, [succeeded, failed, latency]) in [
            (Asker::Node, [NODE_SUCCEEDED, NODE_FAILED, NODE_LATENCY]),
            (Asker::Controller, [CONTROLLER_SUCCEEDED, CONTROLLER_FAILED, CONTROLLER_LATENCY]),
        ] {
            let own: Vec<(&str, &Counts)> = all
                .iter()
                .filter(|((who, _), _)| *who == asker)
                .map(|((_, name), counts)| (*name, counts))
                .collect();
            if own.is_empty() {
                continue;
            }
            head(text, succeeded);
            own.iter().for_each(|(op, counts)| line(text, succeeded.name, op, counts.succeeded));
            head(text, failed);
            own.iter().for_each(|(op, counts)| line(text, failed.name, op, counts.failed));
            head(text, latency);
            own.iter().for_each(|(op, counts)| histogram(text, latency.name, op, counts));
        }
    }
}

fn bounds() -> impl Iterator<Item = u64> {
    (0..BUCKETS).map(|power| 1u64 << power)
}

// Writing to a string cannot fail.
fn head(text: &mut String, of: Theirs) {
    let _ = writeln!(text, "# HELP {} {}", of.name, of.help);
    let _ = writeln!(text, "# TYPE {} {}", of.name, of.kind);
}

fn line(text: &mut String, name: &str, op: &str, value: u64) {
    let _ = writeln!(text, "{name}{{op={}}} {value}", quoted(op));
}

fn histogram(text: &mut String, name: &str, op: &str, counts: &Counts) {
    let op = quoted(op);
    for (bound, count) in bounds().zip(counts.within) {
        let _ = writeln!(text, "{name}_bucket{{op={op},le=\"{bound}\"}} {count}");
    }
    let _ = writeln!(text, "{name}_bucket{{op={op},le=\"+Inf\"}} {}", counts.succeeded);
    let _ = writeln!(text, "{name}_sum{{op={op}}} {}", counts.seconds);
    let _ = writeln!(text, "{name}_count{{op={op}}} {}", counts.succeeded);
}

/// A model that a pod is shown.
struct Item {
    form: &'static str,
    volume: String,
    mount_id: String,
    reference: String,
}

impl Plane {
    /// How many models pods are shown, by the form of their volumes.
    pub(super) fn write_models(&self, text: &mut String, survey: &[(Arc<Host>, Option<Status>)]) {
        let items = self.items(survey);
        for (of, form) in [(PVC_MODELS, "pvc"), (INLINE_MODELS, "inline"), (DYNAMIC_MODELS, "dynamic")] {
            head(text, of);
            let _ = writeln!(text, "{} {}", of.name, items.iter().filter(|item| item.form == form).count());
        }
    }

    /// Each model that a pod is shown, as text. Asks every mount's process, as [`survey`](Self::survey) does, so it blocks.
    #[must_use]
    pub fn detail(&self) -> String {
        let mut text = String::new();
        head(&mut text, MOUNT_ITEM);
        for item in self.items(&self.survey()) {
            let (reference, volume, id) =
                (quoted(&item.reference), quoted(&item.volume), quoted(&item.mount_id));
            let labels =
                format!("reference={reference},type=\"{}\",volume_name={volume},mount_id={id}", item.form);
            let _ = writeln!(text, "{}{{{labels}}} 1", MOUNT_ITEM.name);
        }
        text
    }

    fn items(&self, survey: &[(Arc<Host>, Option<Status>)]) -> Vec<Item> {
        let volumes: Vec<Volume> = self.volumes.lock().values().cloned().collect();
        let of_pods = volumes.into_iter().filter(|volume| volume.origin == Origin::Csi);
        let mut items: Vec<Item> = of_pods.flat_map(|volume| items_of(&volume, survey)).collect();
        // One volume may be shown to several pods.
        items.sort_by(|a, b| (&a.volume, &a.mount_id).cmp(&(&b.volume, &b.mount_id)));
        items.dedup_by(|a, b| (&a.volume, &a.mount_id) == (&b.volume, &b.mount_id));
        items
    }
}

fn items_of(volume: &Volume, survey: &[(Arc<Host>, Option<Status>)]) -> Vec<Item> {
    let item = |form, mount_id: &str, reference: &str| Item {
        form,
        volume: volume.id.clone(),
        mount_id: mount_id.to_owned(),
        reference: reference.to_owned(),
    };
    if !volume.is_dynamic() {
        let form = if volume.id.starts_with(INLINE) { "inline" } else { "pvc" };
        return vec![item(form, "", &volume.reference)];
    }
    let status = survey.iter().find(|(host, _)| host.spec.id == volume.mount);
    let models = status.and_then(|(_, status)| status.as_ref()).map(|status| &status.models);
    models.into_iter().flatten().map(|model| item("dynamic", &model.name, &model.reference)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_what_was_asked_under_the_names_that_dashboards_know() {
        let operations = Operations::default();
        let (fine, wrong): (Result<(), ()>, Result<(), ()>) = (Ok(()), Err(()));
        for (done, seconds) in [(fine, 0), (fine, 3), (wrong, 1)] {
            operations.count(Asker::Node, "publish_volume", Duration::from_secs(seconds), &done);
        }
        let mut text = String::new();
        operations.write(&mut text);
        for line in [
            "model_csi_node_op_succeed{op=\"publish_volume\"} 2",
            "model_csi_node_op_failed{op=\"publish_volume\"} 1",
            "model_csi_node_op_latency_in_seconds_bucket{op=\"publish_volume\",le=\"2\"} 1",
            "model_csi_node_op_latency_in_seconds_bucket{op=\"publish_volume\",le=\"4\"} 2",
            "model_csi_node_op_latency_in_seconds_bucket{op=\"publish_volume\",le=\"+Inf\"} 2",
            "model_csi_node_op_latency_in_seconds_count{op=\"publish_volume\"} 2",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        assert!(!text.contains("controller"), "nobody has asked");
    }
}
