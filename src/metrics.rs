//! Every counter that is kept: its name, its unit and what it counts, in one table; and the gauges of a node's plane.
//!
//! Counters are plain atomics that any floor may add to; who shows them (the status of a mount, the page of the plane) reads
//! them all with [`Metrics::snapshot`].

use std::sync::atomic::{AtomicU64, Ordering};

/// The target of the spans that are traced: how long publishing, mounting and waiting for a fetch take. Not below `weightfs`, so that no
/// line of the log has them unless somebody asks for them.
pub const TRACED: &str = "traced";

macro_rules! metrics {
    ($(#[$doc:meta])* $table:ident: $($name:ident, $unit:literal, $help:literal;)*) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        pub struct $table {
            $(#[doc = concat!($help, " Unit: ", $unit, ".")] pub $name: Counter,)*
        }

        impl $table {
            /// Name, unit, help and present value of every counter, in the order of the table.
            #[must_use]
            pub fn snapshot(&self) -> Vec<Reading> {
                vec![$(Reading { name: stringify!($name), unit: $unit, help: $help, value: self.$name.value() },)*]
            }
        }
    };
}

/// One line of [`Metrics::snapshot`].
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Reading {
    /// The counter's name.
    pub name: &'static str,
    /// What it counts in: bytes, requests, chunks, reads, errors.
    pub unit: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Its value now.
    pub value: u64,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `by`.
    pub fn add(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

metrics! {
    /// The counters of one mount. All start at zero and only grow.
    Metrics:
    fetched_bytes, "bytes", "Stored bytes of layers that arrived from the repository.";
    decoded_bytes, "bytes", "Content bytes that were decoded from compressed layers.";
    fetched_ranges, "requests", "Range requests sent to the repository by the loader.";
    demand_ranges, "requests", "Those of them that a reader was waiting for.";
    retries, "requests", "Requests to a registry made again after a failure.";
    probes, "requests", "Requests to a registry that counted as down, one a second.";
    outages, "outages", "Times that a registry was found to be down.";
    hedges, "requests", "Second requests for what a reader waited for unusually long.";
    won_hedges, "requests", "Those of them that were faster than the first.";
    rangeless_streams, "requests", "Whole blobs asked for because a registry ignores ranges.";
    mirrors_left, "times", "Times that a mirror failed and was stepped over.";
    kept_bytes, "bytes", "Bytes written to the store.";
    unkept_bytes, "bytes", "Bytes served without being kept, because the store is full or failing.";
    store_reads, "chunks", "Chunks read back from the store and verified.";
    store_mismatches, "chunks", "Chunks of the store that did not match their digest: treated as absent.";
    fetch_mismatches, "chunks", "Chunks fetched whose bytes did not match a digest known before.";
    refused_chunks, "chunks", "Chunks of bound layers refused because they were wrong each time; each reading counts.";
    poisoned_layers, "layers", "Layers whose bytes did not match the manifest's digest.";
    proved_layers, "layers", "Layers proved by the manifest's digest while this process ran.";
    read_errors, "reads", "Reads answered with an error.";
    reads, "reads", "Reads asked for by the kernel.";
    served_bytes, "bytes", "Content bytes given to readers; what the kernel serves by itself is not counted.";
    waited_chunks, "chunks", "Chunks that a reader had to wait for.";
    waited_microseconds, "microseconds", "How long readers waited for them, all together.";
    instant_reads, "reads", "Reads answered at once out of the page cache of the store's disk.";
    declined_reads, "reads", "Reads around page faults of who reads at random, left out but for the page that is needed.";
    passthrough_opens, "opens", "Opens that the kernel serves by itself from the store.";
    cached_opens, "opens", "Opens served by replies of this process.";
    renumbered_files, "files", "Files that became whole while they were open, and got another number for passthrough.";
    exchanged_files, "files", "Sealed files that nobody had open any more, whose pages in memory were exchanged for the store's.";
    denied_passthroughs, "opens", "Complete files the kernel did not take: this process may not ask (CAP_SYS_ADMIN).";
    stacked_passthroughs, "opens", "Complete files the kernel did not take: the store is on a stacked file system.";
    unknown_passthroughs, "opens", "Complete files the kernel did not take: it has no passthrough (Linux 6.9).";
    refused_passthroughs, "opens", "Complete files the kernel did not take for another reason.";
}

metrics! {
    /// The counters of the plane of a node. All start at zero and only grow.
    NodeMetrics:
    published_volumes, "volumes", "Volumes shown at a folder when they were asked for; one that was there already counts too.";
    unpublished_volumes, "volumes", "Volumes taken away.";
    failed_publishes, "volumes", "Volumes that were asked for and could not be shown.";
    restarts, "processes", "Mounts' processes that ended by themselves and were started again.";
}

/// Something that is counted when it is asked for: it may grow and shrink.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    /// Its name.
    pub name: &'static str,
    /// What it counts in.
    pub unit: &'static str,
    /// What it is.
    pub help: &'static str,
}

macro_rules! gauges {
    ($($place:ident, $name:literal, $unit:literal, $help:literal;)*) => {
        $(#[doc = concat!($help, " Unit: ", $unit, ".")]
        pub const $place: Gauge = Gauge { name: $name, unit: $unit, help: $help };)*

        /// All gauges of the plane of a node.
        pub const GAUGES: &[Gauge] = &[$($place),*];
    };
}

gauges! {
    MOUNTS, "mounts", "mounts", "Mounts that have a process on this node, or should have.";
    ANSWERING, "answering_mounts", "mounts", "Those of them whose process answers.";
    VOLUMES, "volumes", "volumes", "Volumes that show them.";
    ABNORMAL, "abnormal_volumes", "volumes", "Those of them that cannot be read as they should.";
    MOUNT_BYTES, "mount_bytes", "bytes", "Content bytes of a mount's model.";
    MOUNT_LOCAL_BYTES, "mount_local_bytes", "bytes", "Those of them that are on this machine.";
    MOUNT_VOLUMES, "mount_volumes", "volumes", "Volumes that show a mount.";
}

/// The names that model-csi-driver has for what both count, so that what watches it goes on: `model_csi_…`. Name, kind, help; what is
/// done is the label `op`.
pub mod model_csi {
    /// A name of theirs.
    #[derive(Clone, Copy, Debug)]
    pub struct Theirs {
        /// The whole name.
        pub name: &'static str,
        /// `counter`, `gauge` or `histogram`.
        pub kind: &'static str,
        /// What it is.
        pub help: &'static str,
    }

    macro_rules! theirs {
        ($($place:ident, $name:literal, $kind:literal, $help:literal;)*) => {
            $(#[doc = $help] pub const $place: Theirs = Theirs { name: concat!("model_csi_", $name), kind: $kind, help: $help };)*

            /// All of them.
            pub const THEIRS: &[Theirs] = &[$($place),*];
        };
    }

    theirs! {
        NODE_SUCCEEDED, "node_op_succeed", "counter", "Requests of the kubelet that were done, by what was asked.";
        NODE_FAILED, "node_op_failed", "counter", "Requests of the kubelet that were not done, by what was asked.";
        NODE_LATENCY, "node_op_latency_in_seconds", "histogram", "How long those took that were done, in seconds.";
        CONTROLLER_SUCCEEDED, "controller_op_succeed", "counter", "Requests of a provisioner that were done, by what was asked.";
        CONTROLLER_FAILED, "controller_op_failed", "counter", "Requests of a provisioner that were not done, by what was asked.";
        CONTROLLER_LATENCY, "controller_op_latency_in_seconds", "histogram", "How long those took that were done, in seconds.";
        PVC_MODELS, "node_mounted_pvc_models", "gauge", "Volumes of claims that show a model.";
        INLINE_MODELS, "node_mounted_inline_models", "gauge", "Volumes of single pods that show a model.";
        DYNAMIC_MODELS, "node_mounted_dynamic_models", "gauge", "Models that are shown in dynamic volumes.";
        MOUNT_ITEM, "mount_item", "gauge", "One for each model that a pod is shown: at /metrics/detail.";
    }
}
