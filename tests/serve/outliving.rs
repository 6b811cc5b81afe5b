//! What outlives what: mounts their plane, volumes their process.
//!
//! At full size: `WEIGHTFS_TEST_NODE_MIB=10240`, with `--release`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::made::{self, Models, Reader};
use super::{WEIGHTS, assert_right, registry};
use crate::support::artifacts::bytes;
use crate::support::csi::{Client, volume};
use crate::support::heavy;
use crate::support::node::{Node, SOON};
use crate::support::place::is_running;
use crate::support::registry::Registry;
use crate::support::wait;

/// How many models there are on a node that is in use.
const MODELS: usize = 20;

/// A node whose pods read a model each, from a registry that makes what they read.
struct InUse {
    node: Node,
    client: Client,
    models: Models,
}

impl InUse {
    /// All volumes are published, several at once.
    fn start() -> Self {
        let models = Models::start(MODELS as u64, made::size() / MODELS as u64);
        let (node, client) = Node::for_pods();
        let scene = Self { node, client, models };
        std::thread::scope(|scope| {
            for number in 0..MODELS {
                let scene = &scene;
                scope.spawn(move || scene.publish(number, &scene.target(number)));
            }
        });
        scene
    }

    fn target(&self, number: usize) -> PathBuf {
        self.node.target(&format!("pod-{number}"))
    }

    /// Shows the model of this number at `target` too.
    fn publish(&self, number: usize, target: &Path) {
        self.client.publish(volume(&id(target), target, &self.models.reference(number))).unwrap();
    }

    /// What is wrong with the volume at `target`.
    fn trouble(&self, target: &Path) -> Option<String> {
        self.client.trouble(&id(target), target)
    }

    /// Waits until the plane knows that the process of the volume at `target` has ended, when as many were started again before; gives
    /// how long that took. For as long as that is not made up for the volume is abnormal, which may be hardly a moment.
    fn await_end(&self, target: &Path, restarts: u64) -> Duration {
        wait::closely("its process's end is known", SOON, || {
            let is_abnormal = self.trouble(target).is_some();
            is_abnormal || self.node.metric("weightfs_restarts_total") > restarts
        })
    }

    fn reader(&self, number: usize) -> Reader {
        Reader::open(&self.target(number), self.models.weights(number))
    }

    fn servers(&self) -> Vec<Pid> {
        (0..MODELS).map(|number| self.node.server(&self.target(number))).collect()
    }
}

/// The volume that is at `target`.
fn id(target: &Path) -> String {
    format!("csi-{}", target.file_name().unwrap().display())
}

/// Has all of these read on and on while `meanwhile` runs, which may wait until each has read some more. Gives the longest
/// time that one had to wait for a MiB.
fn read_while(readers: Vec<Reader>, meanwhile: impl FnOnce(&dyn Fn())) -> Duration {
    let (done, steps) = (AtomicBool::new(false), vec![0; readers.len()]);
    let steps: Vec<AtomicU64> = steps.into_iter().map(AtomicU64::new).collect();
    let all_read = || {
        let before: Vec<u64> = steps.iter().map(|steps| steps.load(Ordering::SeqCst)).collect();
        wait::until("everybody reads on", SOON, || {
            // By both ways that a reader has, begun after this.
            steps.iter().zip(&before).all(|(steps, before)| steps.load(Ordering::SeqCst) > before + 2)
        });
    };
    std::thread::scope(|scope| {
        let reading: Vec<_> = readers
            .into_iter()
            .zip(&steps)
            .map(|(mut reader, steps)| {
                let done = &done;
                scope.spawn(move || {
                    while !done.load(Ordering::SeqCst) {
                        reader.step();
                        steps.fetch_add(1, Ordering::SeqCst);
                    }
                    reader.slowest()
                })
            })
            .collect();
        // Whatever fails here, the readers end.
        let ends = Ends(&done);
        all_read();
        meanwhile(&all_read);
        all_read();
        drop(ends);
        reading.into_iter().map(|reading| reading.join().unwrap()).max().unwrap_or_default()
    })
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

fn mounted(node: &Node, registry: &Registry, count: u64) -> Vec<PathBuf> {
    let dirs: Vec<PathBuf> = (1..=count).map(|number| node.dir(&format!("d{number}"))).collect();
    for (number, dir) in (1..).zip(&dirs) {
        node.mount(&registry.reference(&format!("models/{number}:v1")), dir);
    }
    dirs
}

#[test]
fn readers_of_twenty_volumes_do_not_notice_that_the_plane_is_killed_and_comes_back() {
    let _alone = heavy();
    let mut scene = InUse::start();
    let servers = scene.servers();
    let readers = (0..MODELS).map(|number| scene.reader(number)).collect();
    let InUse { node, client, .. } = &mut scene;
    let mut adopted = Duration::ZERO;
    let slowest = read_while(readers, |everybody_reads_on| {
        node.kill();
        everybody_reads_on();
        let begun = Instant::now();
        node.restart();
        // Asked the moment that it is ready.
        assert_eq!(node.metric("weightfs_answering_mounts"), MODELS as u64);
        adopted = begun.elapsed();
    });
    *client = Client::connect(&node.csi());
    println!(
        "{MODELS} mounts in use were adopted after {adopted:?}; the longest that a reader waited for a MiB: {slowest:?}"
    );
    assert_eq!(scene.servers(), servers, "adopted, not started again");
    assert_eq!(scene.node.metric("weightfs_restarts_total"), 0);
    for number in 0..MODELS {
        assert_eq!(scene.trouble(&scene.target(number)), None);
        scene.publish(number, &scene.target(number));
    }
    assert_eq!(scene.servers(), servers, "to publish them once more changes nothing");
    scene.models.assert_no_violations();
    scene.client.unpublish(&id(&scene.target(0)), &scene.target(0)).unwrap();
    Node::await_end(servers[0]);
}

#[test]
fn a_plane_that_is_asked_to_end_leaves_its_mounts_and_says_so_with_its_exit_code() {
    let (registry, mut node) = (registry(1..=1), Node::start());
    let dirs = mounted(&node, &registry, 1);
    let server = node.server(&dirs[0]);
    assert_eq!(node.stop(), Some(0));
    assert!(!node.place.state().join("control.sock").exists() && node.get("/healthz").is_none());
    assert!(is_running(server));
    assert_right(&dirs[0], 1);
    node.restart();
    assert_eq!(node.server(&dirs[0]), server);
}

fn is_whole(dir: &Path, number: u64) -> bool {
    fs::read(dir.join("weights.bin")).is_ok_and(|read| read == bytes(number, WEIGHTS))
}

#[test]
fn a_killed_mount_is_abnormal_until_it_is_back_at_all_its_folders_and_nineteen_others_are_undisturbed() {
    let _alone = heavy();
    let scene = InUse::start();
    let (last, [first, second]) = (MODELS - 1, ["pod-19", "again"].map(|name| scene.node.target(name)));
    scene.publish(last, &second);
    let servers = scene.servers();
    let is_right = |target: &Path| Reader::open(target, scene.models.weights(last)).step();
    let is_well = || scene.trouble(&first).is_none() && scene.trouble(&second).is_none();
    is_right(&first);
    let slowest = read_while((0..last).map(|number| scene.reader(number)).collect(), |everybody_reads_on| {
        assert!(is_well());
        let killed = Instant::now();
        kill(servers[last], Signal::SIGKILL).unwrap();
        let abnormal = scene.await_end(&first, 0);
        let back = abnormal + wait::closely("both of its volumes are back", SOON, is_well);
        is_right(&first);
        is_right(&second);
        println!(
            "a killed mount was known to be dead after {abnormal:?}, back after {back:?} and read after {:?}",
            killed.elapsed()
        );
        everybody_reads_on();
    });
    println!("the longest that a reader of the others waited for a MiB: {slowest:?}");
    let again = scene.servers();
    assert_eq!(again[..last], servers[..last]);
    assert_ne!(again[last], servers[last]);
    assert_eq!(again[last], scene.node.server(&second), "one process for both");
    assert_eq!(scene.node.metric("weightfs_restarts_total"), 1);
    assert_eq!(scene.node.metric("weightfs_abnormal_volumes"), 0);
    scene.models.assert_no_violations();
}

#[test]
fn what_is_published_once_more_is_repaired_and_changes_nothing_else() {
    let _alone = heavy();
    let scene = InUse::start();
    let (first, second) = (scene.target(0), scene.node.target("again"));
    scene.publish(0, &second);
    let server = scene.node.server(&first);
    let is_right = |target: &Path| Reader::open(target, scene.models.weights(0)).step();
    // Somebody takes the pod's mount away.
    umount2(&first, MntFlags::MNT_DETACH).unwrap();
    assert!(scene.trouble(&first).unwrap().contains("it is not mounted at"));
    assert_eq!(scene.trouble(&second), None);
    scene.publish(0, &first);
    assert_eq!(scene.trouble(&first), None);
    is_right(&first);
    assert_eq!(scene.node.server(&first), server, "the same mount");
    // Its process dies, and dies once more: after a first short life its next one waits half a second, unless somebody asks for it.
    kill(server, Signal::SIGKILL).unwrap();
    wait::until("it is started again", SOON, || {
        scene.node.metric("weightfs_restarts_total") == 1 && scene.trouble(&first).is_none()
    });
    kill(scene.node.server(&first), Signal::SIGKILL).unwrap();
    scene.await_end(&first, 1);
    scene.publish(0, &first);
    assert_eq!(scene.trouble(&first), None);
    is_right(&first);
    wait::until("its other volume is back", SOON, || scene.trouble(&second).is_none());
    is_right(&second);
    assert_eq!(scene.node.metric("weightfs_volumes"), MODELS as u64 + 1);
    assert_eq!(scene.node.metric("weightfs_abnormal_volumes"), 0);
}

#[test]
fn a_mount_that_cannot_be_started_again_stays_abnormal_until_it_can() {
    let (registry, node) = (registry(1..=1), Node::start());
    let dirs = mounted(&node, &registry, 1);
    // Nothing can be started with a store that is a file.
    let store = node.place.store();
    let aside = store.with_extension("aside");
    fs::rename(&store, &aside).unwrap();
    fs::write(&store, "no folder").unwrap();
    kill(node.server(&dirs[0]), Signal::SIGKILL).unwrap();
    wait::until("it is abnormal", SOON, || node.metric("weightfs_abnormal_volumes") == 1);
    assert!(!is_whole(&dirs[0], 1), "nobody answers who reads it");
    wait::until("it says why", SOON, || {
        node.mounts()[0]["trouble"].as_str().is_some_and(|why| why.contains("cannot be started again yet"))
    });
    fs::remove_file(&store).unwrap();
    fs::rename(&aside, &store).unwrap();
    wait::until("it is back", SOON, || is_whole(&dirs[0], 1));
    assert_eq!(node.metric("weightfs_abnormal_volumes"), 0);
}

#[test]
fn what_died_while_the_plane_was_away_is_started_again_by_the_next_one() {
    let (registry, mut node) = (registry(1..=2), Node::start());
    let dirs = mounted(&node, &registry, 2);
    let (dead, alive) = (node.server(&dirs[0]), node.server(&dirs[1]));
    node.kill();
    kill(dead, Signal::SIGKILL).unwrap();
    Node::await_end(dead);
    node.restart();
    wait::until("it is back", SOON, || is_whole(&dirs[0], 1));
    assert_right(&dirs[1], 2);
    assert_eq!(node.server(&dirs[1]), alive);
}

#[test]
fn more_mounts_than_are_started_at_once_are_all_back_after_all_of_them_died() {
    let (registry, mut node) = (registry(1..=10), Node::start());
    let dirs = mounted(&node, &registry, 10);
    let servers: Vec<_> = dirs.iter().map(|dir| node.server(dir)).collect();
    node.kill();
    for server in servers {
        kill(server, Signal::SIGKILL).unwrap();
        Node::await_end(server);
    }
    node.restart();
    for (number, dir) in (1..).zip(&dirs) {
        wait::until("it is back", SOON, || is_whole(dir, number));
    }
    assert_eq!(node.metric("weightfs_abnormal_volumes"), 0);
}
