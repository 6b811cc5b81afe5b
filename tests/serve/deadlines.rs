//! While a registry is away, and while credentials are renewed: who waits, for how long, and what is left of it.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tonic::Code;
use weightfs::serve::csi::v1::NodePublishVolumeRequest;

use super::{WEIGHTS, assert_right, registry};
use crate::support::artifacts::bytes;
use crate::support::canary;
use crate::support::csi::{Client, code, volume};
use crate::support::node::{Node, SOON};
use crate::support::read;
use crate::support::registry::Registry;
use crate::support::relay::Weather;
use crate::support::scratch::mount_points_below;
use crate::support::tokens::Tokens;
use crate::support::wait;

#[test]
fn a_publish_ends_when_who_asks_gives_up_and_leaves_nothing_behind() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    registry.weather(Weather::Stall);
    let asked = client.publish_within(volume("csi-1", &target, &reference), Duration::from_secs(3));
    assert!(matches!(code(asked), Code::DeadlineExceeded | Code::Cancelled));
    registry.weather(Weather::Clear);
    // Nobody holds the folder any more.
    wait::until("it can be asked for again", SOON, || {
        code(client.publish(volume("csi-1", &target, &reference))) == Code::Ok
    });
    assert_right(&target, 1);
}

#[test]
fn a_volume_is_taken_away_at_once_though_the_registry_does_not_answer_who_publishes_it() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    registry.weather(Weather::Stall);
    std::thread::scope(|scope| {
        let publishing = scope.spawn(|| code(client.publish(volume("csi-1", &target, &reference))));
        wait::until("the registry is asked", SOON, || !registry.requests().is_empty());
        let other = Client::connect(&node.csi());
        other.unpublish("csi-1", &target).unwrap();
        assert_eq!(publishing.join().unwrap(), Code::Aborted, "given up, and not for a registry's deadline");
    });
    assert!(!target.exists() && mount_points_below(&target).is_empty());
    assert!(!node.place.state().join("volumes/csi-1").exists());
    registry.weather(Weather::Clear);
    client.publish(volume("csi-1", &target, &reference)).unwrap();
    // Nor is it waited for where the volume is there already.
    registry.weather(Weather::Stall);
    client.unpublish("csi-1", &target).unwrap();
    assert!(!target.exists());
}

#[test]
fn a_process_that_stands_still_makes_its_volumes_abnormal_wherever_they_are_shown() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    client.publish(volume("csi-1", &target, &reference)).unwrap();
    assert_eq!(node.metric("weightfs_abnormal_volumes"), 0);
    let process = node.server(&target);
    kill(process, Signal::SIGSTOP).unwrap();
    let counted = node.metric("weightfs_abnormal_volumes");
    let row = node.listed(&target).unwrap();
    let said = client.trouble("csi-1", &target);
    kill(process, Signal::SIGCONT).unwrap();
    assert_eq!(counted, 1);
    assert!(row.to_string().contains("does not answer"), "{row}");
    assert!(said.unwrap().contains("does not answer"));
    wait::until("it is well again", SOON, || node.metric("weightfs_abnormal_volumes") == 0);
    // Two mounts of one model are told apart, and what ended leaves no log.
    let mut masked = volume("csi-2", &node.target("other"), &reference);
    masked.volume_context.insert("weightfs.dev/warm".to_owned(), "none".to_owned());
    client.publish(masked).unwrap();
    let text = String::from_utf8(crate::support::http::unchunked(&node.get("/metrics").unwrap())).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("weightfs_mount_volumes{mount=")).count(), 2);
    let logs = || fs::read_dir(node.place.state().join("log")).unwrap().count();
    assert_eq!(logs(), 2);
    client.unpublish("csi-1", &target).unwrap();
    client.unpublish("csi-2", &node.target("other")).unwrap();
    wait::until("the logs are gone", SOON, || logs() == 0);
}

/// A pod's volume with its service account's token for this registry.
fn with_token(target: &Path, registry: &Registry, token: &str) -> NodePublishVolumeRequest {
    let tokens = json!({registry.host(): {"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"}});
    let mut request = volume("csi-1", target, &registry.reference("models/1:v1"));
    request.volume_context.extend(HashMap::from([
        ("csi.storage.k8s.io/serviceAccount.tokens".to_owned(), tokens.to_string()),
        ("weightfs.dev/warm".to_owned(), "none".to_owned()),
    ]));
    request
}

#[test]
fn a_service_accounts_token_opens_the_registry_and_is_renewed_beside_the_running_mount() {
    let (open, tokens) = (registry(1..=1), Tokens::start());
    let realm = format!("http://{}/token", tokens.host());
    let registry = Registry::with_tokens(&open.storage(), tokens.config(&realm));
    let (node, client) = Node::for_pods();
    let target = node.target("pod");
    let (first, second) = (canary::IDENTITY, "canary-second-identity");
    tokens.know(first);
    assert_eq!(code(client.publish(with_token(&target, &registry, "canary-wrong"))), Code::PermissionDenied);
    client.publish(with_token(&target, &registry, first)).unwrap();
    let process = node.server(&target);
    // The former is over. The kubelet brings the next one, and readers notice nothing.
    tokens.know(second);
    client.publish(with_token(&target, &registry, second)).unwrap();
    assert_eq!(node.server(&target), process, "the same mount");
    assert_eq!(node.metric("weightfs_mounts"), 1);
    // What was given for the former lives for two seconds; reads after that need what only the second gets.
    let file = fs::File::open(target.join("weights.bin")).unwrap();
    let given = tokens.given();
    let mut offset = 0;
    wait::until("the process has asked with the second", SOON, || {
        let got = read::range(&file, offset, 100).unwrap();
        assert_eq!(got, bytes(1, WEIGHTS)[offset as usize..offset as usize + 100]);
        offset = (offset + (1 << 20)) % (4 << 20);
        tokens.given() > given || registry.fetched() > WEIGHTS as u64
    });
    kill(process, Signal::SIGKILL).unwrap();
    wait::until("its end is noticed", SOON, || node.metric("weightfs_restarts_total") == 1);
    wait::until("it is back", SOON, || client.trouble("csi-1", &target).is_none());
    assert_right(&target, 1);
    for folder in ["mounts", "volumes"] {
        for entry in fs::read_dir(node.place.state().join("node").join(folder)).unwrap() {
            canary::absent("what is noted", &fs::read_to_string(entry.unwrap().path()).unwrap());
        }
    }
    client.unpublish("csi-1", &target).unwrap();
    assert_eq!(fs::read_dir(node.place.state().join("node/secrets")).unwrap().count(), 0);
}

#[test]
fn who_asks_whether_the_plane_is_ready_hears_it_once_all_that_ran_is_looked_after() {
    let registry = registry(1..=1);
    let (mut node, client) = Node::for_pods();
    let targets: Vec<_> = (0..3).map(|number| node.target(&format!("pod-{number}"))).collect();
    for (number, target) in targets.iter().enumerate() {
        let mut request = volume(&format!("csi-{number}"), target, &registry.reference("models/1:v1"));
        let left_out = format!("[\"none-{number}\"]");
        request.volume_context.insert("model.csi.modelpack.org/exclude-file-patterns".to_owned(), left_out);
        client.publish(request).unwrap();
    }
    let processes: Vec<_> = targets.iter().map(|target| node.server(target)).collect();
    node.kill();
    node.restart();
    // Asked the moment it is ready.
    assert_eq!(node.metric("weightfs_answering_mounts"), 3);
    assert_eq!(node.metric("weightfs_abnormal_volumes"), 0);
    let again: Vec<_> = targets.iter().map(|target| node.server(target)).collect();
    assert_eq!(processes, again);
}
