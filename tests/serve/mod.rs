//! The plane of a node, on real mounts of a real registry: who asks for mounts, what they get, and what outlives what.
//!
//! `plane` is the plane by its control socket and its pages; `outliving` is what happens when one of its processes dies; `hundred` is
//! what many volumes cost, and `made` has models of any size for both; `csi` is volumes of pods, `dynamic` those whose models the pod
//! chooses, `deadlines` what happens while a registry is away and credentials are renewed, `manifests` what is written for
//! model-csi-driver, `sanity` the cases of the interface's own test suite, `generated` that code and protocols agree; `snapshots` and
//! `containerd` are the roots of containers; `artifacts` is the artifact store that CRI-O reads; `unprivileged` is what a pod cannot
//! do. `activated` is a plane that inherits its sockets, `metrics` its page and what is drawn from it, `kubernetes` and `systemd` what
//! it is deployed with, `traces` what a collector gets of it.

mod activated;
mod artifacts;
mod containerd;
mod csi;
mod deadlines;
mod dynamic;
mod generated;
mod hundred;
mod kubernetes;
mod made;
mod manifests;
mod metrics;
mod outliving;
mod plane;
mod sanity;
mod snapshots;
mod systemd;
#[cfg(feature = "otel")]
mod traces;
mod unprivileged;

use std::path::Path;

use crate::support::artifacts::bytes;
use crate::support::pack::{self, Artifact, Dialect, File, Packing};
use crate::support::registry::Registry;

/// Bytes of the weights of [`model`].
const WEIGHTS: usize = (4 << 20) + 100;

/// A small model, another one for each number.
fn model(number: u64) -> Artifact {
    let files = [
        File::new("config.json", format!("{{\"number\":{number}}}")),
        File::new("weights.bin", bytes(number, WEIGHTS)),
    ];
    pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"))
}

/// A registry that has the models of these numbers as `models/N:v1`.
fn registry(numbers: std::ops::RangeInclusive<u64>) -> Registry {
    let registry = Registry::start();
    for number in numbers {
        registry.push(&format!("models/{number}"), "v1", &model(number));
    }
    registry
}

/// Reads the whole model at `dir` and compares it.
fn assert_right(dir: &Path, number: u64) {
    let read = |name: &str| {
        std::fs::read(dir.join(name)).unwrap_or_else(|error| panic!("{name} of {number}: {error}"))
    };
    assert_eq!(read("config.json"), format!("{{\"number\":{number}}}").as_bytes());
    assert!(read("weights.bin") == bytes(number, WEIGHTS), "other bytes of model {number}");
}
