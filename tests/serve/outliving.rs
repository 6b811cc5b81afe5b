//! What outlives what: mounts their plane, volumes their process.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};

use super::{WEIGHTS, assert_right, registry};
use crate::support::artifacts::bytes;
use crate::support::node::{Node, SOON};
use crate::support::place::is_running;
use crate::support::registry::Registry;
use crate::support::wait;

/// Reads all models over and over, each opened anew, while `meanwhile` runs; every byte has to be right. Each of them is read
/// once before and once after it.
fn read_while(dirs: &[PathBuf], meanwhile: impl FnOnce()) {
    let (done, rounds) = (AtomicBool::new(false), vec![0; dirs.len()]);
    let rounds: Vec<AtomicU64> = rounds.into_iter().map(AtomicU64::new).collect();
    let all_read = || {
        let before: Vec<u64> = rounds.iter().map(|round| round.load(Ordering::SeqCst)).collect();
        wait::until("everything is read once more", SOON, || {
            rounds.iter().zip(&before).all(|(round, before)| round.load(Ordering::SeqCst) > before + 1)
        });
    };
    std::thread::scope(|scope| {
        for ((number, dir), round) in (1..).zip(dirs).zip(&rounds) {
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::SeqCst) {
                    assert_right(dir, number);
                    round.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Whatever fails here, the readers end.
        let ends = Ends(&done);
        all_read();
        meanwhile();
        all_read();
        drop(ends);
    });
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
fn readers_of_five_mounts_do_not_notice_that_the_plane_is_killed_and_comes_back() {
    let (registry, mut node) = (registry(1..=5), Node::start());
    let dirs = mounted(&node, &registry, 5);
    let servers: Vec<_> = dirs.iter().map(|dir| node.server(dir)).collect();
    read_while(&dirs, || {
        node.kill();
        node.restart();
        wait::until("all are adopted", SOON, || node.metric("weightfs_answering_mounts") == 5);
    });
    for (dir, server) in dirs.iter().zip(&servers) {
        assert_eq!(node.server(dir), *server, "adopted, not started again");
        assert!(node.listed(dir).unwrap()["trouble"].is_null());
    }
    assert_eq!(node.metric("weightfs_restarts_total"), 0);
    node.unmount(&dirs[0]).ok();
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
fn a_killed_mount_comes_back_at_all_of_its_folders_and_others_are_undisturbed() {
    let (registry, node) = (registry(1..=5), Node::start());
    let dirs = mounted(&node, &registry, 5);
    let again = node.dir("again");
    node.mount(&registry.reference("models/5:v1"), &again);
    let victim = node.server(&dirs[4]);
    read_while(&dirs[..4], || {
        kill(victim, Signal::SIGKILL).unwrap();
        wait::until("both of its folders are back", SOON, || is_whole(&dirs[4], 5) && is_whole(&again, 5));
    });
    assert_eq!(node.metric("weightfs_restarts_total"), 1);
    assert_eq!(node.metric("weightfs_abnormal_volumes"), 0);
    let server = node.server(&dirs[4]);
    assert_ne!(server, victim);
    assert_eq!(server, node.server(&again));
    for dir in [&dirs[4], &again] {
        node.unmount(dir).ok();
    }
    Node::await_end(server);
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
