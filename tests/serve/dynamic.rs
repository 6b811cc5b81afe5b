//! Dynamic volumes: a pod chooses its models at its socket, and gets to nothing else.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tonic::Code;
use weightfs::serve::csi::DRIVER;
use weightfs::serve::csi::v1::{
    CreateVolumeRequest, CreateVolumeResponse, DeleteVolumeRequest, DeleteVolumeResponse,
    NodePublishVolumeRequest,
};

use super::{WEIGHTS, assert_right, registry};
use crate::support::artifacts::bytes;
use crate::support::csi::{Client, code, volume};
use crate::support::http::{self, Body, unchunked};
use crate::support::node::{Node, SOON};
use crate::support::registry::{BASIC, Registry};
use crate::support::scratch::mount_points_below;
use crate::support::wait;

/// A volume that names no model.
fn dynamic(id: &str, target: &Path) -> NodePublishVolumeRequest {
    let mut request = volume(id, target, "");
    request.volume_context.clear();
    request
}

/// A pod with a dynamic volume: what it sees.
struct Pod {
    id: String,
    target: PathBuf,
}

impl Pod {
    fn start(node: &Node, client: &Client, id: &str) -> Self {
        let pod = Self { id: id.to_owned(), target: node.target(id) };
        client.publish(dynamic(id, &pod.target)).unwrap();
        pod
    }

    fn ask(&self, method: &str, below: &str, body: &str) -> (u16, Value) {
        let target = format!("/api/v1/volumes/{}/mounts{below}", self.id);
        let socket = self.target.join("csi/csi.sock");
        let reply = http::send_at(&socket, method, &target, Body::bytes(body.as_bytes())).unwrap();
        (reply.status, serde_json::from_slice(&unchunked(&reply)).unwrap_or(Value::Null))
    }

    /// What `model-csi-cli mount` does.
    fn add(&self, id: &str, reference: &str) -> (u16, Value) {
        self.ask("POST", "", &json!({"mount_id": id, "reference": reference}).to_string())
    }

    fn model(&self, id: &str) -> PathBuf {
        self.target.join("models").join(id).join("model")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.target.join("models")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_pod_adds_models_reads_them_and_takes_them_out_at_the_socket_of_its_volume() {
    let registry = registry(1..=2);
    let (node, client) = Node::for_pods();
    let pod = Pod::start(&node, &client, "csi-1");
    // As its command line tool finds out whom to ask.
    assert_eq!(read_json(&pod.target.join("status.json"))["volume_name"], "csi-1");
    assert!(fs::metadata(pod.target.join("csi/csi.sock")).unwrap().file_type().is_socket());
    assert_eq!(pod.ask("GET", "", ""), (200, json!([])));
    assert!(pod.names().is_empty());

    let (first, second) = (registry.reference("models/1:v1"), registry.reference("models/2:v1"));
    let (status, said) = pod.add("one", &first);
    assert_eq!((status, &said["state"], &said["mount_id"]), (201, &json!("PULL_SUCCEEDED"), &json!("one")));
    assert_right(&pod.model("one"), 1);
    assert_eq!(pod.add("one", &first).0, 201, "once more changes nothing");
    assert_eq!(pod.add("two", &second).0, 201);
    assert_right(&pod.model("two"), 2);
    assert_eq!(pod.names(), ["one", "two"]);
    let noted = read_json(&pod.target.join("models/two/status.json"));
    assert_eq!((&noted["state"], &noted["reference"]), (&json!("PULL_SUCCEEDED"), &json!(second)));
    assert_eq!(noted["progress"]["total"], 2);
    assert_eq!(pod.ask("GET", "/two", ""), (200, noted));
    assert_eq!(pod.ask("GET", "", "").1.as_array().unwrap().len(), 2);

    // Who has a file open goes on reading, also what is not here yet; nobody finds it any more.
    let open = File::open(pod.model("one").join("weights.bin")).unwrap();
    assert_eq!(pod.ask("DELETE", "/one", "").0, 204);
    assert_eq!(pod.ask("DELETE", "/one", "").0, 204);
    assert_eq!(pod.names(), ["two"]);
    assert!(!pod.model("one").exists());
    assert_eq!(pod.ask("GET", "/one", "").0, 404);
    let mut end = vec![0; 100];
    open.read_exact_at(&mut end, WEIGHTS as u64 - 100).unwrap();
    assert_eq!(end, bytes(1, WEIGHTS)[WEIGHTS - 100..]);
    // The name is free for another model, whose bytes are its own.
    assert_eq!(pod.add("one", &second).0, 201);
    assert_right(&pod.model("one"), 2);
    open.read_exact_at(&mut end, WEIGHTS as u64 - 100).unwrap();
    assert_eq!(end, bytes(1, WEIGHTS)[WEIGHTS - 100..]);
    drop(open);

    let process = node.server(&pod.target);
    client.unpublish("csi-1", &pod.target).unwrap();
    assert!(!pod.target.exists());
    Node::await_end(process);
    assert!(mount_points_below(&node.place.folder("")).is_empty());
    let left = fs::read_dir(node.place.state().join("node/dynamic")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn models_that_come_later_are_seen_where_the_volume_was_bound_before() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let pod = Pod::start(&node, &client, "csi-1");
    let reference = registry.reference("models/1:v1");
    let (bound, await_bound) = std::sync::mpsc::channel();
    let (added, await_added) = std::sync::mpsc::channel::<()>();
    let pod = &pod;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // As a container has it: whatever is mounted from now on elsewhere is not seen here.
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            nix::mount::mount(none, "/", none, private, none).unwrap();
            bound.send(()).unwrap();
            await_added.recv().unwrap();
            assert_right(&pod.model("one"), 1);
        });
        await_bound.recv().unwrap();
        assert_eq!(pod.add("one", &reference).0, 201);
        added.send(()).unwrap();
    });
}

#[test]
fn what_a_pod_may_not_ask_is_refused_and_gets_it_nowhere() {
    let registry = registry(1..=2);
    let node = Node::with(&["--node-id", "node-1", "--store-size", "1MiB"]);
    let client = Client::connect(&node.csi());
    let (pod, other) = (Pod::start(&node, &client, "csi-1"), Pod::start(&node, &client, "csi-2"));
    let (first, second) = (registry.reference("models/1:v1"), registry.reference("models/2:v1"));
    assert_eq!(pod.add("taken", &first).0, 201);
    let body = |more: Value| {
        let mut body = json!({"mount_id": "m", "reference": first});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body.to_string()
    };
    let long = format!("{{\"reference\":\"{}\"}}", "a".repeat(70_000));
    let table: [(&str, String, u16, &str); 13] = [
        ("no JSON", "{".to_owned(), 400, "INVALID_ARGUMENT"),
        ("a long body", long, 400, "INVALID_ARGUMENT"),
        ("no name", body(json!({"mount_id": ""})), 400, "INVALID_ARGUMENT"),
        ("a path", body(json!({"mount_id": "../csi-2"})), 400, "INVALID_ARGUMENT"),
        ("a dot", body(json!({"mount_id": ".."})), 400, "INVALID_ARGUMENT"),
        ("no model", body(json!({"reference": ""})), 400, "INVALID_ARGUMENT"),
        ("a folder of the node", body(json!({"reference": "oci:/etc"})), 400, "INVALID_ARGUMENT"),
        ("a flag", body(json!({"reference": "--store=/etc"})), 400, "INVALID_ARGUMENT"),
        ("patterns", body(json!({"exclude_file_patterns": ["a[b"]})), 400, "INVALID_ARGUMENT"),
        ("another model", body(json!({"mount_id": "taken", "reference": second})), 409, "CONFLICT"),
        ("none", body(json!({"reference": registry.reference("models/9:v1")})), 404, "NOT_FOUND"),
        ("nobody's", body(json!({"reference": "127.0.0.1:1/a/b:v1"})), 500, "INTERNAL"),
        ("too much", body(json!({"check_disk_quota": true})), 406, "INSUFFICIENT_DISK_QUOTA"),
    ];
    for (what, body, status, code) in table {
        let (said, why) = pod.ask("POST", "", &body);
        assert_eq!((said, &why["code"]), (status, &json!(code)), "{what}: {why}");
        assert!(!why["message"].as_str().unwrap().contains(node.place.folder("").to_str().unwrap()), "{why}");
    }
    assert_eq!(pod.names(), ["taken"]);
    // The way to another volume does not go by this socket.
    let through = |id: &str, method: &str, below: &str| {
        let target = format!("/api/v1/volumes/{id}/mounts{below}");
        http::send_at(&pod.target.join("csi/csi.sock"), method, &target, Body::none()).unwrap().status
    };
    assert_eq!((through("csi-2", "GET", ""), through("csi-2", "DELETE", "/taken")), (404, 404));
    assert_eq!((through("..", "GET", ""), through("csi-1", "GET", "/%2e%2e")), (400, 400));
    assert_eq!(other.ask("GET", "", ""), (200, json!([])));
    // Nor does any way to write.
    for path in ["status.json", "new", "csi/csi.sock2", "models/new"] {
        assert!(fs::write(pod.target.join(path), "").is_err(), "{path}");
    }
    assert!(fs::remove_file(pod.target.join("csi/csi.sock")).is_err());
    assert!(fs::create_dir(pod.target.join("models/x")).is_err());
    assert_eq!(fs::metadata(pod.target.join("csi/csi.sock")).unwrap().mode() & 0o777, 0o666, "for any user");
}

/// A node whose dynamic volumes have so many models at once at most.
fn with_models(most: usize) -> (Node, Client) {
    let mut node = Node::with(&["--node-id", "node-1"]);
    let text = format!("[serve]\nmax_models = {most}\n");
    fs::write(node.place.folder("config/weightfs").join("config.toml"), text).unwrap();
    node.kill();
    node.restart();
    let client = Client::connect(&node.csi());
    (node, client)
}

#[test]
fn who_has_a_models_note_open_reads_it_after_the_model_was_taken_out() {
    let registry = registry(1..=2);
    let (node, client) = with_models(2);
    let pod = Pod::start(&node, &client, "csi-1");
    let (first, second) = (registry.reference("models/1:v1"), registry.reference("models/2:v1"));
    assert_eq!(pod.add("one", &first).0, 201);
    let mut note = File::open(pod.target.join("models/one/status.json")).unwrap();
    assert_eq!(pod.ask("DELETE", "/one", "").0, 204);
    assert_eq!(pod.add("two", &second).0, 201);
    assert_eq!(pod.ask("DELETE", "/two", "").0, 204);
    // Nobody has anything of this one, which was taken out later.
    wait::until("the other one is closed", SOON, || pod.add("three", &second).0 == 201);
    let mut text = String::new();
    note.read_to_string(&mut text).unwrap();
    assert!(text.contains("PULL_SUCCEEDED"), "{text}");
    assert!(!pod.target.join("models/one/status.json").exists());
    drop(note);
    wait::until("the first one is closed too", SOON, || pod.add("four", &first).0 == 201);
}

#[test]
fn a_volume_has_as_many_models_as_it_may_and_room_again_once_one_is_closed() {
    let registry = registry(1..=2);
    let (node, client) = with_models(1);
    let pod = Pod::start(&node, &client, "csi-1");
    let (first, second) = (registry.reference("models/1:v1"), registry.reference("models/2:v1"));
    assert_eq!(pod.add("one", &first).0, 201);
    let (status, why) = pod.add("two", &second);
    assert_eq!((status, &why["code"]), (429, &json!("RESOURCE_EXHAUSTED")));
    let open = File::open(pod.model("one").join("config.json")).unwrap();
    assert_eq!(pod.ask("DELETE", "/one", "").0, 204);
    assert_eq!(pod.add("two", &second).0, 429, "it is read still");
    drop(open);
    wait::until("it is closed", SOON, || pod.add("two", &second).0 == 201);
    assert_right(&pod.model("two"), 2);
}

#[test]
fn what_a_pod_has_mounted_is_there_again_when_its_process_or_the_plane_dies() {
    let registry = registry(1..=2);
    let (mut node, client) = Node::for_pods();
    let pod = Pod::start(&node, &client, "csi-1");
    assert_eq!(pod.add("one", &registry.reference("models/1:v1")).0, 201);
    assert_eq!(pod.add("two", &registry.reference("models/2:v1")).0, 201);
    assert_eq!(pod.ask("DELETE", "/two", "").0, 204);
    registry.push("models/1", "v1", &super::model(2));
    let process = node.server(&pod.target);
    node.kill();
    assert_right(&pod.model("one"), 1);
    node.restart();
    let client = Client::connect(&node.csi());
    assert_eq!(node.server(&pod.target), process, "adopted");
    kill(process, Signal::SIGKILL).unwrap();
    wait::until("its end is noticed", SOON, || node.metric("weightfs_restarts_total") == 1);
    wait::until("it is back", SOON, || client.trouble("csi-1", &pod.target).is_none());
    assert_eq!(pod.names(), ["one"]);
    assert_right(&pod.model("one"), 1);
    assert_eq!(pod.ask("GET", "/one", "").1["state"], "PULL_SUCCEEDED");
    // Asked for once more by the kubelet, nothing is lost.
    client.publish(dynamic("csi-1", &pod.target)).unwrap();
    assert_eq!(pod.names(), ["one"]);
    client.unpublish("csi-1", &pod.target).unwrap();
    assert!(mount_points_below(&node.place.folder("")).is_empty());
}

#[test]
fn a_model_that_its_pod_was_told_could_not_be_noted_does_not_come_back_with_the_next_process() {
    let registry = registry(1..=2);
    let (node, client) = Node::for_pods();
    let pod = Pod::start(&node, &client, "csi-1");
    let mut volumes = fs::read_dir(node.place.state().join("node/dynamic")).unwrap();
    let noted = volumes.next().unwrap().unwrap().path().join("models.json");
    // Nothing can be put in its place.
    fs::create_dir(&noted).unwrap();
    assert_eq!(pod.add("one", &registry.reference("models/1:v1")).0, 500);
    assert!(pod.names().is_empty());
    fs::remove_dir(&noted).unwrap();
    assert_eq!(pod.add("two", &registry.reference("models/2:v1")).0, 201);
    kill(node.server(&pod.target), Signal::SIGKILL).unwrap();
    wait::until("its end is noticed", SOON, || node.metric("weightfs_restarts_total") == 1);
    wait::until("it is back", SOON, || client.trouble("csi-1", &pod.target).is_none());
    assert_eq!(pod.names(), ["two"]);
}

#[test]
fn a_pod_hears_that_its_node_cannot_do_it_and_nothing_of_the_nodes_files() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let (pod, reference) = (Pod::start(&node, &client, "csi-1"), registry.reference("models/1:v1"));
    let file = node.place.docker().join("config.json");
    for broken in ["{", r#"{"auths":1}"#] {
        fs::write(&file, broken).unwrap();
        let (status, said) = pod.add("one", &reference);
        assert_eq!((status, &said["code"]), (500, &json!("INTERNAL")));
        assert_eq!(said["message"], "the node cannot do it; its log says why");
    }
    fs::remove_file(&file).unwrap();
    assert_eq!(pod.add("one", &reference).0, 201);
    let (status, said) = pod.add("two", &registry.reference("models/2:v1"));
    assert_eq!((status, said["message"].as_str().unwrap().contains("models/2")), (404, true), "{said}");
}

#[test]
fn a_pod_gets_what_its_own_secret_opens_and_what_others_have_stays_closed_to_it() {
    let registry = Registry::with_password();
    registry.push("models/1", "v1", &super::model(1));
    let (node, client) = Node::for_pods();
    let auths = json!({"auths": {registry.host(): {"auth": BASIC}}});
    let secrets = HashMap::from([(".dockerconfigjson".to_owned(), auths.to_string())]);
    let friend = Pod { id: "csi-1".to_owned(), target: node.target("csi-1") };
    client.publish(NodePublishVolumeRequest { secrets, ..dynamic("csi-1", &friend.target) }).unwrap();
    let stranger = Pod::start(&node, &client, "csi-2");
    let reference = registry.reference("models/1:v1");
    assert_eq!(friend.add("one", &reference).0, 201);
    assert_right(&friend.model("one"), 1);
    let (status, why) = stranger.add("one", &reference);
    assert_eq!((status, &why["code"]), (500, &json!("INTERNAL")));
    assert_eq!(stranger.ask("GET", "/one", "").1["state"], "PULL_FAILED");
    assert!(stranger.names().is_empty());
    let user =
        HashMap::from([("username".to_owned(), "u".to_owned()), ("password".to_owned(), "p".to_owned())]);
    let nowhere = NodePublishVolumeRequest { secrets: user, ..dynamic("csi-3", &node.target("csi-3")) };
    assert_eq!(code(client.publish(nowhere)), Code::InvalidArgument);
}

#[test]
fn a_volume_that_is_made_with_a_mount_id_is_a_model_of_a_dynamic_volume() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let pod = Pod::start(&node, &client, "csi-1");
    let reference = registry.reference("models/1:v1");
    let make = |volume: &str, id: &str, reference: &str| {
        let parameters = [("type", "image"), ("mount-id", id), ("reference", reference)];
        let parameters = parameters.map(|(key, value)| (format!("{DRIVER}/{key}"), value.to_owned()));
        let request = CreateVolumeRequest {
            name: volume.to_owned(),
            parameters: parameters.into(),
            ..CreateVolumeRequest::default()
        };
        let made: Result<CreateVolumeResponse, _> = client.call("Controller/CreateVolume", request);
        made.map(|made| made.volume.unwrap().volume_id)
    };
    assert_eq!(make("csi-1", "one", &reference).unwrap(), "csi-1/one");
    assert_eq!(make("csi-1", "one", &reference).unwrap(), "csi-1/one", "once more changes nothing");
    assert_right(&pod.model("one"), 1);
    let refused = |volume, id, reference: &str| code(make(volume, id, reference));
    assert_eq!(refused("csi-1", "one", &registry.reference("models/2:v1")), Code::AlreadyExists);
    assert_eq!(refused("csi-1", "none", &registry.reference("models/9:v1")), Code::NotFound);
    assert_eq!(refused("csi-1", "a/../b", &reference), Code::InvalidArgument);
    assert_eq!(refused("csi-2", "one", &reference), Code::NotFound);
    for _ in 0..2 {
        let volume_id = "csi-1/one".to_owned();
        let request = DeleteVolumeRequest { volume_id, ..DeleteVolumeRequest::default() };
        let _gone: DeleteVolumeResponse = client.call("Controller/DeleteVolume", request).unwrap();
        assert!(!pod.model("one").exists());
    }
}

#[test]
fn a_pull_secret_that_was_changed_is_taken_when_the_volume_is_published_again() {
    let registry = Registry::with_password();
    registry.push("models/1", "v1", &super::model(1));
    let (node, client) = Node::for_pods();
    let pod = Pod { id: "csi-1".to_owned(), target: node.target("csi-1") };
    let publish = |auth: &str| {
        let auths = json!({"auths": {registry.host(): {"auth": auth}}});
        let secrets = HashMap::from([(".dockerconfigjson".to_owned(), auths.to_string())]);
        client.publish(NodePublishVolumeRequest { secrets, ..dynamic("csi-1", &pod.target) }).unwrap();
    };
    // "reader:canary-former"
    publish("cmVhZGVyOmNhbmFyeS1mb3JtZXI=");
    let process = node.server(&pod.target);
    let reference = registry.reference("models/1:v1");
    assert_eq!(pod.add("one", &reference).0, 500);
    publish(BASIC);
    assert_eq!(node.server(&pod.target), process, "the same mount");
    assert_eq!(pod.add("one", &reference).0, 201);
    assert_right(&pod.model("one"), 1);
}

#[test]
fn what_is_shown_to_pods_is_counted_under_the_names_that_dashboards_know() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let reference = registry.reference("models/1:v1");
    let pod = Pod::start(&node, &client, "csi-1");
    assert_eq!(pod.add("one", &reference).0, 201);
    client.publish(volume("pvc-1", &node.target("pvc"), &reference)).unwrap();
    client.publish(volume("csi-2", &node.target("inline"), &reference)).unwrap();
    assert!(client.publish(volume("csi-3", &node.target("none"), "127.0.0.1:1/a/b:v1")).is_err());
    for (name, value) in [
        ("model_csi_node_mounted_pvc_models", 1),
        ("model_csi_node_mounted_inline_models", 1),
        ("model_csi_node_mounted_dynamic_models", 1),
        ("model_csi_node_op_succeed{op=\"publish_volume\"}", 1),
        ("model_csi_node_op_succeed{op=\"publish_dynamic_volume\"}", 2),
        ("model_csi_node_op_failed{op=\"publish_dynamic_volume\"}", 1),
    ] {
        assert_eq!(node.metric(name), value, "{name}");
    }
    let detail = String::from_utf8(unchunked(&node.get("/metrics/detail").unwrap())).unwrap();
    let items: Vec<&str> = detail.lines().filter(|line| line.starts_with("model_csi_mount_item{")).collect();
    assert_eq!(items.len(), 3, "{detail}");
    assert!(items[0].contains("type=\"dynamic\"") && items[0].contains("mount_id=\"one\""), "{detail}");
    // Each volume has a file that says how it is; what belongs to no volume any more has none.
    let report = |id: &str| node.place.state().join("volumes").join(id).join("status.json");
    assert_eq!(read_json(&report("pvc-1"))["state"], "MOUNTED");
    let inline = read_json(&report("csi-2"));
    assert_eq!((&inline["inline"], &inline["progress"]["total"]), (&json!(true), &json!(2)));
    assert_eq!(read_json(&report("csi-3"))["state"], "PULL_FAILED");
    client.unpublish("pvc-1", &node.target("pvc")).unwrap();
    client.unpublish("csi-3", &node.target("none")).unwrap();
    assert!(!report("pvc-1").exists() && !report("csi-3").exists());
}
