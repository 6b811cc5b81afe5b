//! Volumes of pods: what they show, who gets them, what repairs them.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use serde_json::json;
use tonic::Code;
use weightfs::serve::csi::v1::volume_capability::{AccessType, BlockVolume};
use weightfs::serve::csi::v1::{NodePublishVolumeRequest, VolumeCapability};

use super::{WEIGHTS, assert_right, model, registry};
use crate::support::canary;
use crate::support::csi::{Client, REFERENCE, capability, code, volume};
use crate::support::node::{Node, SOON};
use crate::support::registry::{BASIC, PASSWORD, Registry};
use crate::support::scratch::mount_points_below;
use crate::support::wait;

fn process_of(node: &Node, target: &std::path::Path) -> nix::unistd::Pid {
    node.server(target)
}

#[test]
fn twenty_volumes_of_a_model_fetch_each_chunk_once_and_share_one_process() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let reference = registry.reference("models/1:v1");
    let targets: Vec<PathBuf> = (0..20).map(|number| node.target(&format!("pod-{number}"))).collect();
    std::thread::scope(|scope| {
        for (number, target) in targets.iter().enumerate() {
            let (client, reference) = (&client, &reference);
            scope.spawn(move || client.publish(volume(&format!("csi-{number}"), target, reference)).unwrap());
        }
    });
    targets.iter().for_each(|target| assert_right(target, 1));
    let fetched = registry.settled();
    assert!(fetched < WEIGHTS as u64 * 11 / 10 + 100_000, "{fetched} bytes for one model of {WEIGHTS}");
    assert_eq!((node.metric("weightfs_mounts"), node.metric("weightfs_volumes")), (1, 20));
    let process = process_of(&node, &targets[0]);
    for (number, target) in targets.iter().enumerate() {
        client.unpublish(&format!("csi-{number}"), target).unwrap();
        assert!(!target.exists());
    }
    Node::await_end(process);
    wait::until("nothing is left", SOON, || mount_points_below(&node.place.folder("")).is_empty());
}

#[test]
fn a_volume_is_read_only_private_and_without_suid_and_devices() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let target = node.target("pod");
    let writable = NodePublishVolumeRequest {
        readonly: false,
        ..volume("csi-1", &target, &registry.reference("models/1:v1"))
    };
    client.publish(writable).unwrap();
    let refused = fs::write(target.join("new"), "").unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == target.to_str()).unwrap();
    let options = line.split(' ').nth(5).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(options.split(',').any(|found| found == option), "{line}");
    }
    assert!(!line.contains("shared:") && !line.contains("master:"), "{line}");
    assert_eq!(fs::metadata(target.join("config.json")).unwrap().mode() & 0o777, 0o444);
}

#[test]
fn what_a_pod_may_not_ask_for_is_refused_by_the_codes_of_the_specification() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let reference = registry.reference("models/1:v1");
    let target = node.target("pod");
    let pods = target.parent().unwrap();
    fs::create_dir(pods.join("elsewhere")).unwrap();
    std::os::unix::fs::symlink(pods.join("elsewhere"), pods.join("link")).unwrap();
    fs::write(pods.join("file"), "mine").unwrap();
    let fine = || volume("csi-1", &target, &reference);
    let at = |path: &str| NodePublishVolumeRequest { target_path: path.to_owned(), ..fine() };
    let with = |key: &str, value: &str| {
        let mut request = fine();
        request.volume_context.insert(key.to_owned(), value.to_owned());
        request
    };
    let block = VolumeCapability { access_type: Some(AccessType::Block(BlockVolume {})), ..capability() };
    let traversal = format!("{}/pod/../../etc", pods.display());
    let table: Vec<(&str, NodePublishVolumeRequest, Code)> = vec![
        ("a path with ..", at(&traversal), Code::InvalidArgument),
        ("a path that is not absolute", at("pods/pod"), Code::InvalidArgument),
        ("a link", at(&format!("{}/link", pods.display())), Code::InvalidArgument),
        ("a file", at(&format!("{}/file", pods.display())), Code::InvalidArgument),
        ("a long path", at(&format!("/{}", "a".repeat(5000))), Code::InvalidArgument),
        ("a folder without parents", at(&format!("{}/none/pod", pods.display())), Code::NotFound),
        (
            "a long id",
            NodePublishVolumeRequest { volume_id: "a".repeat(129), ..fine() },
            Code::InvalidArgument,
        ),
        (
            "a block device",
            NodePublishVolumeRequest { volume_capability: Some(block), ..fine() },
            Code::InvalidArgument,
        ),
        (
            "no model",
            NodePublishVolumeRequest {
                volume_id: "pvc-1".to_owned(),
                volume_context: HashMap::new(),
                ..fine()
            },
            Code::InvalidArgument,
        ),
        ("a folder of the node", with(REFERENCE, "oci:/etc"), Code::InvalidArgument),
        ("a reference that is a flag", with(REFERENCE, "--store=/etc"), Code::InvalidArgument),
        ("an attribute nobody knows", with("weightfs.dev/store", "/etc"), Code::InvalidArgument),
        ("less integrity", with("weightfs.dev/integrity", "deferred"), Code::InvalidArgument),
        ("too many attributes", with("any", &"a".repeat(5000)), Code::InvalidArgument),
        ("a model that is not there", with(REFERENCE, &registry.reference("models/2:v1")), Code::NotFound),
        ("nobody's registry", with(REFERENCE, "127.0.0.1:1/models/1:v1"), Code::Unavailable),
    ];
    for (what, request, refused) in table {
        assert_eq!(code(client.publish(request)), refused, "{what}");
    }
    assert!(fs::read_dir(pods.join("elsewhere")).unwrap().next().is_none());
    assert_eq!(fs::read(pods.join("file")).unwrap(), b"mine");
    assert!(mount_points_below(pods).is_empty());
    client.publish(fine()).unwrap();
    assert_right(&target, 1);
}

#[test]
fn a_folder_belongs_to_the_volume_that_is_shown_there() {
    let registry = registry(1..=2);
    let (node, client) = Node::for_pods();
    let (target, other) = (node.target("pod"), node.target("other"));
    let (first, second) = (registry.reference("models/1:v1"), registry.reference("models/2:v1"));
    client.publish(volume("csi-1", &target, &first)).unwrap();
    assert_eq!(code(client.publish(volume("csi-2", &target, &first))), Code::AlreadyExists);
    assert_eq!(code(client.publish(volume("csi-1", &target, &second))), Code::AlreadyExists);
    assert_eq!(code(client.unpublish("csi-2", &target)), Code::NotFound);
    assert_right(&target, 1);
    // One volume of several pods is published once for each.
    client.publish(volume("csi-1", &other, &first)).unwrap();
    client.unpublish("csi-1", &target).unwrap();
    client.unpublish("csi-1", &target).unwrap();
    assert_right(&other, 1);
    // A mount that is no volume is left alone.
    let by_itself = node.dir("by-itself");
    let mut command = node.place.command();
    command.args(["mount", &second, "--config", "/dev/null"]).arg(&by_itself);
    node.place.finish(command, SOON).ok();
    assert_eq!(code(client.unpublish("csi-1", &by_itself)), Code::NotFound);
    assert_right(&by_itself, 2);
}

fn private_registry() -> Registry {
    let registry = Registry::with_password();
    registry.push("models/1", "v1", &model(1));
    registry
}

fn pull_secret(registry: &Registry, basic: &str) -> HashMap<String, String> {
    let auths = json!({"auths": {registry.host(): {"auth": basic}}});
    HashMap::from([(".dockerconfigjson".to_owned(), auths.to_string())])
}

#[test]
fn a_private_model_is_shown_to_who_has_the_right_secret_and_to_nobody_after_them() {
    let registry = private_registry();
    let (node, client) = Node::for_pods();
    let reference = registry.reference("models/1:v1");
    let ask = |name: &str, secrets: HashMap<String, String>| {
        let request = volume(name, &node.target(name), &reference);
        code(client.publish(NodePublishVolumeRequest { secrets, ..request }))
    };
    assert_eq!(ask("stranger", HashMap::new()), Code::PermissionDenied);
    assert_eq!(ask("friend", pull_secret(&registry, BASIC)), Code::Ok);
    assert_right(&node.target("friend"), 1);
    // All of it is here now, and its mount is up: that opens the door to nobody else.
    assert_eq!(ask("stranger", HashMap::new()), Code::PermissionDenied);
    let wrong = HashMap::from([
        ("username".to_owned(), "reader".to_owned()),
        ("password".to_owned(), canary::PASSWORD.to_owned()),
    ]);
    assert_eq!(ask("impostor", wrong), Code::PermissionDenied);
    let right = HashMap::from([
        ("username".to_owned(), "reader".to_owned()),
        ("password".to_owned(), PASSWORD.to_owned()),
    ]);
    assert_eq!(ask("colleague", right), Code::Ok);
    assert_eq!(node.metric("weightfs_mounts"), 1);
    assert!(!node.target("stranger").exists() && !node.target("impostor").exists());
    let process = process_of(&node, &node.target("friend"));
    let words = fs::read(format!("/proc/{process}/cmdline")).unwrap();
    let environment = fs::read(format!("/proc/{process}/environ")).unwrap();
    canary::absent("its words and variables", &String::from_utf8_lossy(&[words, environment].concat()));
    // Started again it still knows them.
    kill(process, Signal::SIGKILL).unwrap();
    wait::until("its end is noticed", SOON, || node.metric("weightfs_restarts_total") == 1);
    wait::until("it is back", SOON, || client.trouble("friend", &node.target("friend")).is_none());
    assert_right(&node.target("friend"), 1);
}

#[test]
fn nothing_that_is_kept_stands_in_for_a_registry_that_does_not_answer() {
    let mut registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let reference = registry.reference("models/1:v1");
    let (first, second) = (node.target("first"), node.target("second"));
    client.publish(volume("csi-1", &first, &reference)).unwrap();
    assert_right(&first, 1);
    registry.stop();
    assert_eq!(code(client.publish(volume("csi-2", &second, &reference))), Code::Unavailable);
    assert_right(&first, 1);
    registry.restart();
    client.publish(volume("csi-2", &second, &reference)).unwrap();
    assert_right(&second, 1);
}

#[test]
fn a_volume_keeps_its_model_when_the_tag_is_moved_and_a_new_one_has_the_new() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let reference = registry.reference("models/1:v1");
    let (first, second) = (node.target("first"), node.target("second"));
    client.publish(volume("csi-1", &first, &reference)).unwrap();
    registry.push("models/1", "v1", &model(2));
    client.publish(volume("csi-1", &first, &reference)).unwrap();
    client.publish(volume("csi-2", &second, &reference)).unwrap();
    assert_right(&first, 1);
    assert_right(&second, 2);
}

#[test]
fn a_model_that_must_fit_and_does_not_is_refused_as_a_lack_of_room() {
    let registry = registry(1..=1);
    let node = Node::with(&["--node-id", "node-1", "--store-size", "1MiB"]);
    let client = Client::connect(&node.csi());
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    let mut whole = volume("csi-1", &target, &reference);
    whole.volume_context.insert("model.csi.modelpack.org/check-disk-quota".to_owned(), "true".to_owned());
    assert_eq!(code(client.publish(whole)), Code::ResourceExhausted);
    client.publish(volume("csi-1", &target, &reference)).unwrap();
    assert_right(&target, 1);
}

#[test]
fn there_are_as_many_mounts_as_there_may_be_and_more_volumes_of_each() {
    let registry = registry(1..=2);
    let mut node = Node::with(&["--node-id", "node-1"]);
    fs::write(node.place.folder("config/weightfs").join("config.toml"), "[serve]\nmax_mounts = 1\n").unwrap();
    node.kill();
    node.restart();
    let client = Client::connect(&node.csi());
    let publish = |name: &str, number: u64| {
        let reference = registry.reference(&format!("models/{number}:v1"));
        client.publish(volume(name, &node.target(name), &reference))
    };
    publish("first", 1).unwrap();
    assert_eq!(code(publish("other", 2)), Code::ResourceExhausted);
    publish("same", 1).unwrap();
    assert_right(&node.target("same"), 1);
    for name in ["first", "same"] {
        client.unpublish(name, &node.target(name)).unwrap();
    }
    wait::until("there is room again", SOON, || publish("other", 2).is_ok());
}

#[test]
fn a_folder_that_has_somebody_elses_mount_is_left_alone() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let target = node.target("pod");
    fs::create_dir(&target).unwrap();
    let none = None::<&str>;
    nix::mount::mount(Some("none"), &target, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    fs::write(target.join("mine"), "").unwrap();
    let asked = client.publish(volume("csi-1", &target, &registry.reference("models/1:v1")));
    assert_eq!(code(asked), Code::FailedPrecondition);
    let left = target.join("mine").exists();
    umount2(&target, MntFlags::empty()).unwrap();
    assert!(left);
}

#[test]
fn a_volume_that_somebody_elses_mount_covers_is_taken_away_once_that_is_gone() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let target = node.target("pod");
    client.publish(volume("csi-1", &target, &registry.reference("models/1:v1"))).unwrap();
    let none = None::<&str>;
    nix::mount::mount(Some("none"), &target, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let refused = code(client.unpublish("csi-1", &target));
    let said = client.trouble("csi-1", &target);
    umount2(&target, MntFlags::empty()).unwrap();
    assert_eq!(refused, Code::Aborted);
    assert!(said.unwrap().contains("another mount"));
    assert_right(&target, 1);
    client.unpublish("csi-1", &target).unwrap();
    assert!(mount_points_below(&target).is_empty() && !target.exists());
}

#[test]
fn volumes_are_known_and_looked_after_by_the_next_plane() {
    let registry = registry(1..=1);
    let (mut node, client) = Node::for_pods();
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    client.publish(volume("csi-1", &target, &reference)).unwrap();
    let process = process_of(&node, &target);
    node.kill();
    assert_right(&target, 1);
    node.restart();
    let client = Client::connect(&node.csi());
    assert_eq!(client.trouble("csi-1", &target), None);
    client.publish(volume("csi-1", &target, &reference)).unwrap();
    assert_eq!(process_of(&node, &target), process);
    client.unpublish("csi-1", &target).unwrap();
    Node::await_end(process);
    assert!(!target.exists());
}

#[test]
fn a_volume_whose_process_is_killed_is_abnormal_until_it_is_back_and_publishing_again_repairs_what_is_missing()
 {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    let publish = || client.publish(volume("csi-1", &target, &reference));
    publish().unwrap();
    // With nowhere to start from it stays down long enough to be looked at.
    let store = node.place.store();
    let aside = store.with_extension("aside");
    fs::rename(&store, &aside).unwrap();
    fs::write(&store, "no folder").unwrap();
    kill(process_of(&node, &target), Signal::SIGKILL).unwrap();
    wait::until("it is abnormal", SOON, || client.trouble("csi-1", &target).is_some());
    fs::remove_file(&store).unwrap();
    fs::rename(&aside, &store).unwrap();
    publish().unwrap();
    assert_eq!(client.trouble("csi-1", &target), None);
    assert_right(&target, 1);
    umount2(&target, MntFlags::MNT_DETACH).unwrap();
    assert!(client.trouble("csi-1", &target).unwrap().contains("not mounted"));
    publish().unwrap();
    assert_eq!(client.trouble("csi-1", &target), None);
    assert_right(&target, 1);
}

#[test]
fn files_that_a_pod_leaves_out_are_not_shown_and_not_loaded() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let (target, whole) = (node.target("pod"), node.target("whole"));
    let reference = registry.reference("models/1:v1");
    let mut request = volume("csi-1", &target, &reference);
    request.volume_context.extend([
        ("model.csi.modelpack.org/exclude-file-patterns".to_owned(), r#"["*.bin"]"#.to_owned()),
        ("weightfs.dev/warm".to_owned(), "all".to_owned()),
    ]);
    client.publish(request).unwrap();
    let names: Vec<_> = fs::read_dir(&target).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["config.json"]);
    let fetched = registry.settled();
    assert!(fetched < WEIGHTS as u64 / 4, "{fetched} bytes without the weights");
    client.publish(volume("csi-2", &whole, &reference)).unwrap();
    assert_right(&whole, 1);
}

#[test]
fn an_inline_volume_as_the_kubelet_asks_for_it_of_model_csi_driver_is_shown_and_leaves_nothing() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let pod = node.target("6a5d5d3c-8f3a-4a76-9d0e-2f5cf2b1c0de/volumes/kubernetes.io~csi/model-volume");
    fs::create_dir_all(&pod).unwrap();
    let (id, target) = (format!("csi-{}", "5e".repeat(32)), pod.join("mount"));
    let mut request = volume(&id, &target, &registry.reference("models/1:v1"));
    request.readonly = true;
    for (key, value) in [
        ("csi.storage.k8s.io/ephemeral", "true"),
        ("csi.storage.k8s.io/pod.name", "model-inference-pod"),
        ("csi.storage.k8s.io/pod.namespace", "default"),
        ("csi.storage.k8s.io/pod.uid", "6a5d5d3c-8f3a-4a76-9d0e-2f5cf2b1c0de"),
        ("csi.storage.k8s.io/serviceAccount.name", "default"),
    ] {
        request.volume_context.insert(key.to_owned(), value.to_owned());
    }
    client.publish(request.clone()).unwrap();
    client.publish(request).unwrap();
    assert_right(&target, 1);
    let process = process_of(&node, &target);
    client.unpublish(&id, &target).unwrap();
    assert!(pod.is_dir() && !target.exists());
    assert!(mount_points_below(&node.place.folder("")).is_empty());
    Node::await_end(process);
    assert!(node.mounts().is_empty());
    for folder in ["hosts", "mounts", "volumes", "secrets", "dynamic"] {
        let left = fs::read_dir(node.place.state().join("node").join(folder)).unwrap().count();
        assert_eq!(left, 0, "{folder}");
    }
}
