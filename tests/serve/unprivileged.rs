//! What a pod can do to the node and to others with nothing but the volume that is bound into it: read it.
//!
//! A pod is a process of another user in a mount namespace and a root of its own, as a container runtime makes it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::{assert_right, model, registry};
use crate::support::csi::{Client, volume};
use crate::support::node::{Node, SOON};
use crate::support::registry::Registry;
use crate::support::relay::Weather;
use crate::support::wait;

/// The user that runs in pods: nobody.
const POD: &str = "65534";

/// How many reads a pod keeps waiting.
const WAITING: usize = 200;

/// Runs `script` as a pod that has `volume` at `/model`; what it says.
fn in_pod(root: &Path, volume: &Path, script: &str) -> String {
    const SET_UP: &str = r#"set -e
        mount --bind "$1" "$1"
        for part in bin lib lib64 usr; do
            [ -e "/$part" ] || continue
            mkdir -p "$1/$part"
            mount --bind "/$part" "$1/$part"
        done
        mkdir -p "$1/model" "$1/proc" "$1/old"
        mount --bind "$2" "$1/model"
        mount -t proc proc "$1/proc"
        cd "$1"
        pivot_root . old
        cd /
        umount -l /old
        exec setpriv --reuid "$4" --regid "$4" --clear-groups --inh-caps=-all --bounding-set=-all sh -c "$3""#;
    let mut pod = Command::new("unshare");
    pod.args(["--mount", "--pid", "--fork", "--kill-child", "--propagation", "private"]);
    pod.args(["sh", "-c", SET_UP, "pod"]);
    let said = pod.arg(root).arg(volume).arg(script).arg(POD).output().unwrap();
    let errors = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success(), "{script}: {errors}");
    String::from_utf8_lossy(&said.stdout).into_owned()
}

/// A command of the pod's user on the node itself.
fn as_pod(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", POD, "--regid", POD, "--clear-groups", "--inh-caps=-all", "--"]).args(words);
    command
}

#[test]
fn a_pod_reads_its_volume_and_can_neither_unmount_nor_change_it_nor_get_out_of_it() {
    let registry = registry(1..=1);
    let (node, client) = Node::for_pods();
    let target = node.target("pod");
    client.publish(volume("csi-1", &target, &registry.reference("models/1:v1"))).unwrap();
    let root = node.place.folder("root");
    let script = r#"
        cat /model/config.json; echo
        for try in "umount /model" "umount -l /model" "unshare -Urm umount /model" "unshare -Urm umount -l /model" \
            "mount -o remount,rw /model" "umount /proc" "touch /model/new" "rm /model/config.json" "chmod 777 /model/config.json"; do
            if $try 2>/dev/null; then echo "did: $try"; fi
        done
        for up in /model/.. /model/../.. /model/../../../../../../../..; do
            [ "$(ls -d $up/model)" = "$up/model" ] || echo "out at $up"
        done
        cat /model/config.json; echo
    "#;
    let said = in_pod(&root, &target, script);
    assert_eq!(said, "{\"number\":1}\n{\"number\":1}\n");
    assert_right(&target, 1);
    client.unpublish("csi-1", &target).unwrap();
}

#[test]
fn the_state_the_store_and_other_volumes_are_closed_to_the_user_of_a_pod() {
    let registry = registry(1..=2);
    let folder = crate::support::scratch::short();
    let artifacts = folder.path().join("store");
    let node = Node::with(&["--node-id", "node-1", "--artifact-store", artifacts.to_str().unwrap()]);
    let client = Client::connect(&node.csi());
    let (own, other) = (node.target("own"), node.target("other"));
    client.publish(volume("csi-1", &own, &registry.reference("models/1:v1"))).unwrap();
    client.publish(volume("csi-2", &other, &registry.reference("models/2:v1"))).unwrap();
    // What lies around them is open, so that each has to be closed by itself.
    let (home, state, store) = (node.place.folder(""), node.place.state(), node.place.store());
    for open in [&home, store.parent().unwrap(), folder.path(), &artifacts, own.parent().unwrap()] {
        fs::set_permissions(open, Permissions::from_mode(0o755)).unwrap();
    }
    let can = |words: &[&str]| {
        as_pod(words).stderr(Stdio::null()).stdout(Stdio::null()).status().unwrap().success()
    };
    let path = |path: &Path| path.to_str().unwrap().to_owned();
    assert!(can(&["cat", &path(&own.join("config.json"))]), "what is mounted for it can be read");
    let closed = [
        state.clone(),
        state.join("node"),
        state.join("node/hosts"),
        state.join("node/secrets"),
        store.clone(),
        store.join("layers"),
        artifacts.join("artifacts"),
        artifacts.join("artifacts/blobs/sha256"),
    ];
    for folder in closed {
        assert!(folder.is_dir(), "{}", folder.display());
        assert!(!can(&["ls", &path(&folder)]), "{}", folder.display());
        assert!(!can(&["touch", &path(&folder.join("new"))]), "{}", folder.display());
    }
    let host = fs::read_dir(state.join("node/hosts")).unwrap().next().unwrap().unwrap().path();
    assert!(!can(&["cat", &path(&host.join("config.json"))]));
    assert!(!can(&["umount", &path(&own)]) && !can(&["umount", &path(&host)]));
    assert_right(&own, 1);
    assert_right(&other, 2);
}

/// Reads of a pod that wait for a registry, each by a process of its own.
struct Waiting(Vec<Child>);

impl Waiting {
    fn begin(file: &Path) -> Self {
        let read = |number: usize| {
            let input = format!("if={}", file.display());
            let skip = format!("skip={}", number * 5);
            as_pod(&["dd", &input, "of=/dev/null", "bs=4096", "count=1", "status=none", &skip])
                .spawn()
                .unwrap()
        };
        Self((0..WAITING).map(read).collect())
    }

    fn left(&mut self) -> usize {
        self.0.iter_mut().map(|child| child.try_wait().unwrap()).filter(Option::is_none).count()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _already_gone = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_pod_that_keeps_hundreds_of_reads_waiting_holds_up_nobody_elses() {
    let (mut slow, swift) = (Registry::start(), registry(2..=3));
    slow.push("models/1", "v1", &model(1));
    let (node, client) = Node::for_pods();
    let (own, other, third) = (node.target("own"), node.target("other"), node.target("third"));
    slow.weather(Weather::StallOf(model(1).blobs[1].digest.clone()));
    client.publish(volume("csi-1", &own, &slow.reference("models/1:v1"))).unwrap();
    client.publish(volume("csi-2", &other, &swift.reference("models/2:v1"))).unwrap();
    let mut waiting = Waiting::begin(&own.join("weights.bin"));
    wait::until("the registry is asked", SOON, || {
        let asks = |head: &String| head.contains(model(1).blobs[1].digest.as_str());
        slow.requests().iter().any(asks)
    });
    assert_right(&other, 2);
    client.publish(volume("csi-3", &third, &swift.reference("models/3:v1"))).unwrap();
    assert_right(&third, 3);
    assert_eq!(node.metric("weightfs_answering_mounts"), 3, "the pages and the processes answer");
    assert!(node.listed(&own).is_some());
    // Of the same model, in the same process.
    let twin = node.target("twin");
    client.publish(volume("csi-4", &twin, &slow.reference("models/1:v1"))).unwrap();
    assert_eq!(fs::read(twin.join("config.json")).unwrap(), b"{\"number\":1}");
    assert_eq!(waiting.left(), WAITING, "all of them still wait");
    slow.weather(Weather::Clear);
    wait::until("nobody waits any more", SOON, || waiting.left() == 0);
    assert_right(&own, 1);
    slow.stop();
}
