//! A hundred volumes of one large model: what they fetch, and what they cost.
//!
//! At full size: `WEIGHTFS_TEST_NODE_MIB=10240`, with `--release`.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::made::{self, Models, Reader, STEP};
use crate::support::csi::{Client, volume};
use crate::support::heavy;
use crate::support::node::{Node, SOON};
use crate::support::scratch::mount_points_below;
use crate::support::wait;

/// How many volumes there are.
const VOLUMES: usize = 100;
/// How many are published and read beside one another.
const BESIDE: usize = 8;
/// The most that each volume after the first may take of memory.
const EACH: u64 = 100 << 10;
/// How many places of the weights are read at all. The first volume reads every second of them.
const PLACES: u64 = 64;

/// A node whose pods all want the same model.
struct Scene {
    node: Node,
    client: Client,
    models: Models,
}

impl Scene {
    fn target(&self, number: usize) -> PathBuf {
        self.node.target(&format!("pod-{number}"))
    }

    /// Publishes a volume; gives how long that took.
    fn publish(&self, number: usize) -> Duration {
        let wanted = volume(&format!("csi-{number}"), &self.target(number), &self.models.reference(0));
        let begun = Instant::now();
        self.client.publish(wanted).unwrap();
        begun.elapsed()
    }

    fn reader(&self, number: usize) -> Reader {
        Reader::open(&self.target(number), self.models.weights(0))
    }

    /// Where a place begins: anywhere within a chunk, and the last one at the end.
    fn place(&self, number: u64) -> u64 {
        let size = self.models.weights(0).size;
        (size / (PLACES - 1) * number + 100).min(size - STEP / 2)
    }

    /// Does what there is to do with each of these, [`BESIDE`] at once.
    fn each(numbers: std::ops::Range<usize>, work: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(numbers.start);
        std::thread::scope(|scope| {
            for _ in 0..BESIDE {
                scope.spawn(|| {
                    while let Some(number) =
                        Some(next.fetch_add(1, Ordering::SeqCst)).filter(|n| *n < numbers.end)
                    {
                        work(number);
                    }
                });
            }
        });
    }

    /// What the plane and the process that serves the model take of memory, what they share with others included.
    fn memory(&self) -> u64 {
        self.models.settle();
        let (plane, process) = (self.node.pid(), self.node.server(&self.target(0)));
        println!("memory: plane {}; mount {}", status(plane), status(process));
        resident(plane) + resident(process)
    }
}

/// The resident memory of a process in bytes (man 5 proc).
fn resident(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

/// What that is made of, for people.
fn status(pid: Pid) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let lines = status
        .lines()
        .filter(|line| ["VmRSS", "RssAnon", "RssFile", "Threads"].iter().any(|name| line.starts_with(name)));
    lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", ")
}

#[test]
fn a_hundred_volumes_of_a_large_model_fetch_no_byte_twice_and_cost_next_to_no_memory_each() {
    let _alone = heavy();
    let models = Models::start(1, made::size());
    let (node, client) = Node::for_pods();
    let scene = Scene { node, client, models };
    let first = scene.publish(0);
    println!("a model of {} MiB was published in {first:?}", scene.models.weights(0).size >> 20);
    assert!(first < SOON);
    let before = scene.memory();
    let read = |number: usize, places: &mut dyn Iterator<Item = u64>| {
        let reader = scene.reader(number);
        places.for_each(|place| reader.read_at(scene.place(place)));
        reader.forget();
    };
    Scene::each(0..BESIDE, |_| read(0, &mut (0..PLACES).step_by(2)));
    // By the first volume all that is read by the others too, as many at once: what remains between the two is what they are.
    let same = [0, PLACES / 2, PLACES - 2];
    Scene::each(1..VOLUMES, |_| read(0, &mut same.into_iter()));
    let one = scene.memory();
    Scene::each(1..VOLUMES, |number| {
        scene.publish(number);
        read(number, &mut same.into_iter());
    });
    let all = scene.memory();
    let each = all.saturating_sub(one) / (VOLUMES as u64 - 1);
    println!(
        "memory of the plane and the mount: {} KiB before anything was read, {} KiB with one volume, {} KiB with {VOLUMES}: \
         {} KiB each",
        before >> 10,
        one >> 10,
        all >> 10,
        each >> 10
    );
    assert!(each < EACH, "{each} bytes of memory for each further volume");
    // What nobody has read, of each place several volumes at once.
    Scene::each(0..VOLUMES, |number| {
        read(number, &mut [(number / BESIDE) as u64 * 2 + 1, PLACES - 1].into_iter())
    });
    assert_eq!(
        (scene.node.metric("weightfs_mounts"), scene.node.metric("weightfs_volumes")),
        (1, VOLUMES as u64)
    );
    let ((fetched, again), hedges) = (scene.models.asked(), scene.node.metric("weightfs_hedges_total"));
    println!(
        "{} MiB were fetched, {again} ranges twice, {hedges} of which were unusually slow",
        fetched >> 20
    );
    // What a reader waits for unusually long is asked for once more, and nothing else is.
    assert!(again <= hedges, "{again} ranges were asked for again, {hedges} of them since they were slow");
    scene.models.assert_no_violations();
    let process = scene.node.server(&scene.target(0));
    Scene::each(0..VOLUMES, |number| {
        scene.client.unpublish(&format!("csi-{number}"), &scene.target(number)).unwrap();
    });
    Node::await_end(process);
    wait::until("nothing is left", SOON, || mount_points_below(&scene.node.place.folder("")).is_empty());
}
