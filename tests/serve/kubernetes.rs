//! What a cluster is given: manifests that are valid and are the chart's own, words that the program knows, and what the pod of
//! the DaemonSet does and does not outlive.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use serde_json::Value;
use weightfs::config::{Environment, KEYS, Settings};
use weightfs::serve::csi::v1::{CreateVolumeRequest, CreateVolumeResponse};

use super::{assert_right, registry};
use crate::support::csi::{Client, REFERENCE, capability, volume};
use crate::support::node::{Node, SOON};
use crate::support::place::{PROGRAM, Place};
use crate::support::scratch::mount_points_below;
use crate::support::wait;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/kubernetes")
}

/// Every document of the manifests and of the examples, with the name of its file.
fn documents() -> Vec<(String, Value)> {
    let mut documents = Vec::new();
    for name in ["manifests", "examples"] {
        for file in fs::read_dir(folder().join(name)).unwrap() {
            let path = file.unwrap().path();
            let read: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(&path).unwrap()).unwrap();
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            documents.extend(read.into_iter().map(|document| (file.clone(), document)));
        }
    }
    documents
}

/// The containers that run weightfs, wherever they stand.
fn containers<'a>(value: &'a Value, found: &mut Vec<&'a Value>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| containers(value, found)),
        Value::Object(map) => {
            let is_ours = |image: &Value| image.as_str().is_some_and(|image| image.contains("/weightfs:"));
            if map.get("image").is_some_and(is_ours) {
                found.push(value);
            }
            map.values().for_each(|value| containers(value, found));
        }
        _ => {}
    }
}

/// The texts of an array, with what Kubernetes puts in the place of `$(NAME)`.
fn words(list: &Value) -> Vec<String> {
    let words = list.as_array().into_iter().flatten().map(|word| word.as_str().expect("a text"));
    words.map(|word| word.replace("$(NODE_NAME)", "node-1")).collect()
}

#[test]
fn the_manifests_are_valid_and_are_what_the_chart_gives() {
    let python = std::env::var_os("WEIGHTFS_TEST_PYTHON");
    let python = python.expect("WEIGHTFS_TEST_PYTHON is not set: run tools/test");
    let mut check = Command::new(python);
    check.arg(folder().join("check.py"));
    if std::env::var_os("WEIGHTFS_TEST_WRITE").is_some() {
        check.arg("--write");
    }
    let said = check.output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    assert!(said.status.success(), "{out}{err}");
}

#[test]
fn every_word_that_weightfs_is_given_is_one_that_it_knows() {
    let mut seen = 0;
    for (file, document) in documents() {
        let mut ours = Vec::new();
        containers(&document, &mut ours);
        for container in ours {
            let words = words(&container["args"]);
            // Everything before the last word is read, and nothing is done.
            let read = Command::new(PROGRAM).args(&words).arg("--help").output().unwrap();
            assert!(read.status.success(), "{file}: {words:?}: {}", String::from_utf8_lossy(&read.stderr));
            settings(&file, &words, &container["env"]);
            seen += 1;
        }
    }
    assert!(seen >= 3, "{seen} containers");
}

/// Makes sure that flags and variables set what can be set, to what can be meant.
fn settings(file: &str, words: &[String], variables: &Value) {
    let mut environment = Environment { variables: BTreeMap::new(), root: true };
    for word in words.iter().filter(|word| word.starts_with("--")) {
        let Some((flag, value)) = word.split_once('=') else { continue };
        // It is there only in the container; `the_configuration_that_the_chart_writes…` reads it.
        let Some(key) = KEYS.iter().find(|key| key.flag == Some(flag)) else {
            assert_eq!(flag, "--config", "{file}");
            continue;
        };
        // A folder that has to be there is the container's, too.
        let value = if key.name == "registry.hosts_dir" { "/etc" } else { value };
        environment.variables.insert(key.variable.to_owned(), OsString::from(value));
    }
    for variable in variables.as_array().into_iter().flatten() {
        let name = variable["name"].as_str().unwrap();
        if name.starts_with("WEIGHTFS_") {
            assert!(KEYS.iter().any(|key| key.variable == name), "{file}: {name}");
            environment.variables.insert(name.to_owned(), variable["value"].as_str().unwrap().into());
        }
    }
    Settings::load(&environment, None, &Vec::new()).unwrap_or_else(|error| panic!("{file}: {error}"));
}

#[test]
fn the_configuration_that_the_chart_writes_can_be_meant() {
    let documents = documents();
    let configs: Vec<&Value> =
        documents.iter().map(|(_, document)| &document["data"]["config.toml"]).collect();
    let text = configs.into_iter().find_map(Value::as_str).expect("a configuration");
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("config.toml");
    fs::write(&path, text).unwrap();
    let environment = Environment { root: true, ..Environment::default() };
    let settings = Settings::load(&environment, Some(&path), &Vec::new()).unwrap();
    assert_eq!(settings.store.size, Some(200 << 30));
    assert_eq!(settings.serve.max_mounts, 256);
}

/// The container of this name in the pod of the first document that has it, and that pod's specification.
fn container(document: &str, name: &str) -> (Value, Value) {
    let pods = documents().into_iter().filter(|(file, _)| file == document);
    let mut pods = pods.map(|(_, document)| document["spec"]["template"]["spec"].clone());
    let named = |pod: &Value| {
        let containers = pod["containers"].as_array()?;
        containers.iter().find(|container| container["name"] == name).cloned()
    };
    pods.find_map(|pod| named(&pod).map(|container| (container, pod))).expect("a container")
}

/// What stands in a place for the container's folder of this path: for that of its state by default, the place's own.
fn stands_for(place: &Place, path: &str) -> PathBuf {
    match Path::new(path).strip_prefix("/run/weightfs") {
        Ok(inside) => place.state().join(inside),
        Err(_) => place.folder("").join(path.trim_start_matches('/')),
    }
}

/// The words of the controller's container, its folders being those of the place, made as the kubelet makes an `emptyDir`: for all to write to.
fn of_the_controller(place: &Place) -> Vec<String> {
    let (container, pod) = container("controller.yaml", "weightfs");
    for folder in container["volumeMounts"].as_array().unwrap() {
        let volumes = pod["volumes"].as_array().unwrap();
        let volume = volumes.iter().find(|volume| volume["name"] == folder["name"]).unwrap();
        assert!(volume["emptyDir"].is_object(), "{volume}");
        let folder = stands_for(place, folder["mountPath"].as_str().unwrap());
        fs::create_dir_all(&folder).unwrap();
        fs::set_permissions(&folder, PermissionsExt::from_mode(0o777)).unwrap();
    }
    let placed = |word: String| match word.split_once('=') {
        Some((flag, path)) if path.starts_with('/') => {
            format!("{flag}={}", stands_for(place, path).display())
        }
        Some((flag, socket)) if socket.starts_with("unix:///") => {
            format!("{flag}={}", stands_for(place, socket.trim_start_matches("unix://")).display())
        }
        _ => word,
    };
    let words = words(&container["args"]);
    assert_eq!(words[0], "serve");
    words.into_iter().skip(1).map(placed).collect()
}

#[test]
fn the_controller_makes_volumes_of_claims_in_folders_that_all_may_write_to_with_none_of_roots_rights() {
    let by = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let node = Node::by_words(&by, of_the_controller);
    let status = fs::read_to_string(format!("/proc/{}/status", node.pid())).unwrap();
    assert!(status.contains("CapEff:\t0000000000000000"), "{status}");
    let reference = "registry.example/acme/llm:v1";
    let request = CreateVolumeRequest {
        name: "pvc-1".to_owned(),
        volume_capabilities: vec![capability()],
        parameters: [(REFERENCE.to_owned(), reference.to_owned())].into(),
        ..CreateVolumeRequest::default()
    };
    let client = Client::connect(&node.csi());
    let made: CreateVolumeResponse = client.call("Controller/CreateVolume", request).unwrap();
    assert_eq!(made.volume.unwrap().volume_context[REFERENCE], reference);
}

#[test]
fn a_probe_that_names_a_port_names_one_of_its_own_container() {
    let mut probes = 0;
    for (file, document) in documents() {
        let containers = document["spec"]["template"]["spec"]["containers"].as_array().cloned();
        for container in containers.into_iter().flatten() {
            let ports = container["ports"].as_array().cloned().unwrap_or_default();
            for kind in ["startupProbe", "readinessProbe", "livenessProbe"] {
                let port = &container[kind]["httpGet"]["port"];
                probes += u32::from(!port.is_null());
                let is_known = || ports.iter().any(|known| known["name"] == *port);
                assert!(!port.is_string() || is_known(), "{file}: {}: {kind}: {port}", container["name"]);
            }
        }
    }
    assert!(probes >= 4, "{probes} probes");
}

#[test]
fn what_ends_the_plane_of_a_pod_asks_it_where_nobody_else_can_keep_it_busy() {
    let (container, _) = container("weightfs.yaml", "weightfs");
    let mut node = Node::on_loopback();
    let _silent: Vec<_> = (0..70).map(|_| node.silence()).collect();
    let asked: Vec<Vec<String>> = ["startupProbe", "livenessProbe"]
        .map(|probe| words(&container[probe]["exec"]["command"]))
        // The configuration is there only in the container.
        .map(|words| words.into_iter().filter(|word| !word.starts_with("--config=")).collect())
        .into();
    for words in &asked {
        assert_eq!(words.first().map(String::as_str), Some("weightfs"), "it is asked at an address");
        node.place.run(&words[1..]).ok();
    }
    node.kill();
    for words in &asked {
        node.place.run(&words[1..]).failed(3, &["weightfs serve"]);
    }
}

/// As a container has them: processes and mounts of its own, and of all mounts only the kubelet's folder of pods goes both ways.
const CONTAINER: [&str; 10] = [
    "unshare",
    "--mount",
    "--propagation",
    "unchanged",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
];

const BECOME: &str = r#"
awk '{print $5}' /proc/self/mountinfo | grep -Fvx "$HOME/pods" | while read -r point; do
    mount --make-private "$point" 2>/dev/null
done
exec "$0" "$@""#;

/// A node whose plane is in a container, as the DaemonSet has it, and how it is asked.
fn contained() -> (Node, Client) {
    let by = [&CONTAINER[..], &[BECOME]].concat();
    let node = Node::by(&by, &["--node-id", "node-1"], |place| {
        let (pods, none) = (place.folder("pods"), None::<&str>);
        mount(Some(&pods), &pods, none, MsFlags::MS_BIND, none).unwrap();
        mount(none, &pods, none, MsFlags::MS_SHARED, none).unwrap();
    });
    let client = Client::connect(&node.csi());
    (node, client)
}

/// Whether nobody answers there who would have to open a file. What the kernel has in its page cache can still be read.
fn is_dead(dir: &Path) -> bool {
    let opened = fs::File::open(dir.join("weights.bin"));
    opened.is_err_and(|error| error.raw_os_error() == Some(nix::libc::ENOTCONN))
}

#[test]
fn volumes_of_a_plane_in_a_pod_are_seen_by_the_node_end_with_the_pod_and_are_back_with_the_next() {
    let registry = registry(1..=1);
    let (mut node, client) = contained();
    let (target, reference) = (node.target("pod"), registry.reference("models/1:v1"));
    client.publish(volume("csi-1", &target, &reference)).unwrap();
    assert_right(&target, 1);
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == target.to_str()).unwrap();
    for option in ["ro", "nosuid", "nodev"] {
        assert!(line.split(' ').nth(5).unwrap().split(',').any(|found| found == option), "{line}");
    }
    assert!(
        mount_points_below(&node.place.state()).is_empty(),
        "the node sees volumes, and not what they show"
    );

    // A pod that runs has the mount itself bound into it.
    let running = node.dir("running");
    let none = None::<&str>;
    mount(Some(&target), &running, none, MsFlags::MS_BIND, none).unwrap();
    assert_right(&running, 1);
    node.kill();
    wait::until("the mount has ended with the pod", SOON, || is_dead(&running));
    assert!(is_dead(&target));

    node.restart();
    wait::until("the volume is back", SOON, || fs::File::open(target.join("weights.bin")).is_ok());
    assert_right(&target, 1);
    assert_eq!((node.metric("weightfs_volumes"), node.metric("weightfs_abnormal_volumes")), (1, 0));
    assert!(is_dead(&running), "the pod has to be started again");
    let client = Client::connect(&node.csi());
    client.publish(volume("csi-1", &target, &reference)).unwrap();
    client.unpublish("csi-1", &target).unwrap();
    assert!(!target.exists());
}
