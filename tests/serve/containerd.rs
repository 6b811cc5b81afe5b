//! Debian's containerd and runc with a node of ours as snapshotter: images that are converted models start containers before they
//! are downloaded, ordinary ones work as ever, and all of it outlives what is killed.
//!
//! At full size: `WEIGHTFS_TEST_CONTAINER_MIB=1024`, with `--release`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::artifacts::bytes;
use crate::support::containerd::{Containerd, SNAPSHOTTER};
use crate::support::containers::{Layer, Member, image, image_saying, tar};
use crate::support::node::{Node, SOON};
use crate::support::registry::Registry;
use crate::support::scratch::{self, mount_points_below};
use crate::support::wait;

/// How much a container may fetch until it has read its first bytes: 2 % of a model of 1 GiB.
const FEW: u64 = (1 << 30) / 50;

const MIB: usize = 1 << 20;

/// A node, containerd upon it, and a registry.
struct Scene {
    registry: Registry,
    // Before the node: its containers' roots are the node's mounts.
    containerd: Containerd,
    node: Node,
}

impl Scene {
    fn new() -> Self {
        let node = Node::for_containers();
        let containerd = Containerd::start(&node.snapshotter());
        Self { registry: Registry::start(), containerd, node }
    }

    /// Publishes a model of `mib` MiB and a program that can read it, and converts it; gives the image.
    fn model(&self, mib: usize) -> String {
        let folder = scratch::roomy();
        let program = folder.path().join("bin/busybox");
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::copy("/bin/busybox", &program).expect("busybox-static; run tools/test, which installs it");
        fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        fs::create_dir(folder.path().join("models")).unwrap();
        fs::write(folder.path().join("models/config.json"), "{}").unwrap();
        write_weights(&folder.path().join("models/model.bin"), mib);
        let (packed, car) = (format!("{}/acme/llm:v1", self.registry.direct()), "acme/car:v1");
        let mut command = self.node.place.command();
        command.arg("pack").arg(folder.path()).args([&*packed, "--tar"]);
        self.node.place.finish(command, Duration::from_secs(600)).ok();
        let into = format!("{}/{car}", self.registry.direct());
        let mut command = self.node.place.command();
        command.args(["convert", &packed, &into, "--json"]);
        let said = self.node.place.finish(command, SOON).ok().json();
        assert_eq!(said["uploadedBytes"].as_u64().map(|sent| sent < 100_000), Some(true), "{said}");
        assert!(said["index"].is_string(), "its chunks are pinned: {said}");
        self.registry.reference(car)
    }

    fn run(&self, image: &str, id: &str, program: &[&str]) -> String {
        self.containerd.run(SNAPSHOTTER, image, id, program)
    }

    /// The shell that images of ours have.
    fn shell(&self, image: &str, id: &str, script: &str) -> String {
        self.run(image, id, &["/bin/busybox", "sh", "-c", script])
    }

    /// Where the node has anything of an image mounted.
    fn shown(&self) -> usize {
        mount_points_below(&self.node.snapshots()).len()
    }

    /// Waits until containerd has found a node that was away: it tries every few seconds.
    fn await_node(&self) {
        // Of a snapshot that is to be made it has to ask; a list that is empty it knows by itself.
        let snapshots = |words: &[&str]| {
            let words = [&["snapshots", "--snapshotter", SNAPSHOTTER], words].concat();
            self.containerd.try_run("ctr", &words).is_ok
        };
        wait::until("containerd asks the node again", SOON, || snapshots(&["prepare", "awaited"]));
        assert!(snapshots(&["remove", "awaited"]));
    }

    fn remove(&self, image: &str) {
        self.containerd.ctr(&["images", "remove", "--sync", image]);
    }
}

/// The weights' MiB of this number.
fn weights(number: usize) -> Vec<u8> {
    bytes(number as u64, MIB)
}

fn write_weights(path: &Path, mib: usize) {
    use std::io::Write as _;
    let mut file = fs::File::create(path).unwrap();
    // The same MiB again and again would be fetched once.
    let all = weights(0);
    for number in 0..mib {
        file.write_all(&(number as u64).to_le_bytes()).unwrap();
        file.write_all(&all[8..]).unwrap();
    }
}

fn size() -> usize {
    std::env::var("WEIGHTFS_TEST_CONTAINER_MIB").map_or(48, |text| text.parse().expect("a number of MiB"))
}

/// Programs and the system's folders: what a container's root needs.
fn base() -> Vec<u8> {
    let busybox = fs::read("/bin/busybox").expect("busybox-static; run tools/test, which installs it");
    tar(&[
        Member::Folder("bin/", 0o755),
        Member::File("bin/busybox", 0o755, &busybox),
        Member::Link("bin/sh", "busybox"),
        Member::Folder("etc/", 0o755),
        Member::File("etc/secret", 0o600, b"root's"),
        Member::Folder("tmp/", 0o1777),
    ])
}

const FIRST: &str = "dd if=/models/model.bin bs=8 skip=131072 count=1 2>/dev/null | od -An -tu8";

#[test]
fn a_converted_model_starts_a_container_before_it_is_downloaded() {
    let scene = Scene::new();
    let (mib, image) = (size(), scene.model(size()));
    let before = scene.registry.fetched();
    let begun = Instant::now();
    scene.containerd.rpull(&image);
    // The second MiB begins with its number.
    assert_eq!(scene.shell(&image, "first", FIRST).trim(), "1");
    let (took, fetched) = (begun.elapsed(), scene.registry.fetched() - before);
    println!(
        "of {mib} MiB, {fetched} bytes were fetched until a container had read its first after {took:?}"
    );
    assert!(fetched < FEW, "{fetched} bytes");
    assert!(scene.shown() > 0, "the image is mounted");
    // The last byte of it is right, too, and reading all of it gives what was packed.
    let sum = scene.shell(&image, "whole", "cat /models/model.bin | sha256sum | cut -c1-64");
    let folder = scratch::roomy();
    write_weights(&folder.path().join("model.bin"), mib);
    let expected =
        std::process::Command::new("sha256sum").arg(folder.path().join("model.bin")).output().unwrap();
    assert_eq!(sum.trim(), String::from_utf8_lossy(&expected.stdout).split(' ').next().unwrap());

    // The same image by a client that downloads first, on containerd's own snapshotter.
    let other = Containerd::start(&scene.node.snapshotter());
    let begun = Instant::now();
    other.pull(&image, "overlayfs");
    let words = ["/bin/busybox", "sh", "-c", FIRST];
    assert_eq!(other.run("overlayfs", &image, "first", &words).trim(), "1");
    let ordinary = begun.elapsed();
    let ratio = ordinary.as_secs_f64() / took.as_secs_f64();
    println!("with the overlayfs snapshotter and a pull: {ordinary:?}, {ratio:.1} times as long");
}

#[test]
fn a_client_that_downloads_first_gets_ordinary_snapshots_that_show_the_same() {
    let scene = Scene::new();
    let image = scene.model(4);
    scene.containerd.pull(&image, SNAPSHOTTER);
    assert_eq!(scene.shown(), 0, "nothing is mounted");
    assert_eq!(scene.shell(&image, "first", FIRST).trim(), "1");
    assert_eq!(scene.shell(&image, "list", "/bin/busybox ls /models").trim(), "config.json\nmodel.bin");
}

#[test]
fn a_container_writes_to_a_layer_of_its_own_that_lies_on_what_is_mounted() {
    let scene = Scene::new();
    let image = scene.model(2);
    scene.containerd.rpull(&image);
    let script = "cd /models && echo new > config.json && rm model.bin && mkdir /tmp && echo own > /tmp/file \
        && cat config.json /tmp/file && ls";
    assert_eq!(scene.shell(&image, "writer", script), "new\nown\nconfig.json\n");
    let script = "cat /models/config.json && ls -d /tmp /models/model.bin";
    assert_eq!(
        scene.shell(&image, "reader", &format!("{script} 2>/dev/null; true")),
        "{}/models/model.bin\n"
    );
    // A container that stays, and what it has written.
    let words =
        ["run", "--detach", "--snapshotter", SNAPSHOTTER, &image, "stays", "/bin/busybox", "sleep", "600"];
    scene.containerd.ctr(&words);
    let exec = |id: &str, script: &str| {
        let words = ["tasks", "exec", "--exec-id", id, "stays", "/bin/busybox", "sh", "-c", script];
        scene.containerd.ctr(&words)
    };
    exec("one", "head -c 300000 /models/model.bin > /models/copy");
    let usage = scene.containerd.ctr(&["snapshots", "--snapshotter", SNAPSHOTTER, "usage", "-b", "stays"]);
    let taken: u64 = usage.lines().last().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!((300_000..1_000_000).contains(&taken), "{usage}");
    assert_eq!(exec("two", "cmp -n 300000 /models/model.bin /models/copy && echo same").trim(), "same");
    scene.containerd.ctr(&["tasks", "kill", "-s", "SIGKILL", "stays"]);
    wait::until("the container ends", SOON, || {
        scene.containerd.try_run("ctr", &["tasks", "delete", "stays"]).is_ok
    });
    scene.containerd.ctr(&["containers", "delete", "stays"]);
}

#[test]
fn an_image_that_is_removed_leaves_nothing_and_can_be_had_again() {
    let scene = Scene::new();
    let image = scene.model(2);
    for number in ["one", "two"] {
        scene.containerd.rpull(&image);
        assert_eq!(scene.shell(&image, number, FIRST).trim(), "1");
        assert!(!scene.containerd.snapshots().is_empty() && scene.shown() > 0);
        scene.remove(&image);
        wait::until("nothing is left", SOON, || {
            scene.containerd.snapshots().is_empty() && scene.shown() == 0 && scene.node.mounts().is_empty()
        });
        let left = fs::read_dir(scene.node.snapshots().join("snapshots")).unwrap().count();
        assert_eq!(left, 0, "folders of snapshots");
    }
    scene.containerd.pull(&image, SNAPSHOTTER);
    assert_eq!(scene.shell(&image, "ordinary", FIRST).trim(), "1");
}

#[test]
fn snapshots_outlive_containerd_the_node_and_all_that_it_has_mounted() {
    let mut scene = Scene::new();
    let image = scene.model(2);
    scene.containerd.rpull(&image);
    let before = scene.containerd.snapshots();
    let words =
        ["run", "--detach", "--snapshotter", SNAPSHOTTER, &image, "stays", "/bin/busybox", "sleep", "600"];
    scene.containerd.ctr(&words);
    let reads = |scene: &Scene, id: &str| {
        let words = ["tasks", "exec", "--exec-id", id, "stays", "/bin/busybox", "sh", "-c", FIRST];
        scene.containerd.ctr(&words).trim().to_owned()
    };
    assert_eq!(reads(&scene, "first"), "1");

    scene.containerd.kill();
    scene.containerd.restart();
    assert_eq!(reads(&scene, "second"), "1");
    assert_eq!(scene.shell(&image, "after-containerd", FIRST).trim(), "1");

    scene.node.kill();
    assert_eq!(reads(&scene, "third"), "1", "the mount lives on");
    scene.node.restart();
    scene.await_node();
    assert_eq!(reads(&scene, "fourth"), "1");
    assert_eq!(scene.shell(&image, "after-the-node", FIRST).trim(), "1");
    scene.containerd.ctr(&["tasks", "kill", "-s", "SIGKILL", "stays"]);
    wait::until("the container ends", SOON, || {
        scene.containerd.try_run("ctr", &["tasks", "delete", "stays"]).is_ok
    });
    scene.containerd.ctr(&["containers", "delete", "stays"]);

    // As after a restart of the machine: no mount, no process, and nothing that was noted in /run.
    scene.containerd.kill();
    let servers: Vec<Pid> = scene.node.mounts().iter().map(server).collect();
    scene.node.kill();
    for pid in servers {
        kill(pid, Signal::SIGKILL).unwrap();
        Node::await_end(pid);
    }
    scratch::detach_below(&scene.node.place.state());
    scratch::detach_below(&scene.node.snapshots());
    fs::remove_dir_all(scene.node.place.state()).unwrap();
    scene.node.restart();
    scene.containerd.restart();
    assert_eq!(scene.containerd.snapshots(), before);
    assert_eq!(scene.shown(), 0);
    assert_eq!(scene.shell(&image, "after-all", FIRST).trim(), "1", "what is needed is mounted again");
    scene.remove(&image);
    wait::until("nothing is left", SOON, || scene.containerd.snapshots().is_empty() && scene.shown() == 0);
}

fn server(mount: &serde_json::Value) -> Pid {
    Pid::from_raw(mount["pid"].as_i64().unwrap().try_into().unwrap())
}

#[test]
fn an_images_programs_permissions_and_marks_are_a_containers_as_if_it_were_unpacked() {
    let scene = Scene::new();
    let upper = tar(&[
        Member::Folder("models/", 0o755),
        Member::File("models/a", 0o640, b"a"),
        Member::File("models/b", 0o4755, b"b"),
    ]);
    let marks = tar(&[Member::File("models/.wh.a", 0, b""), Member::File("models/c", 0o644, b"c")]);
    let layers = [base(), upper, marks].map(Layer::plain);
    scene.registry.push("acme/image", "v1", &image(&layers));
    let name = scene.registry.reference("acme/image:v1");
    scene.containerd.rpull(&name);
    assert!(scene.shown() > 0);
    let look = "cd /; for f in bin/busybox bin/sh etc/secret tmp models models/b models/c; do \
        stat -c '%n %a %F %U' $f; done; ls models; cat etc/secret";
    let lazy = scene.shell(&name, "lazy", look);
    let other = Containerd::start(&scene.node.snapshotter());
    other.pull(&name, "overlayfs");
    let unpacked = other.run("overlayfs", &name, "unpacked", &["/bin/busybox", "sh", "-c", look]);
    // A mount has one owner, and lends nobody his rights.
    assert_eq!(lazy, unpacked.replace("4755", "755"));
    assert!(lazy.contains("tmp 1777") && lazy.contains("etc/secret 600"), "{lazy}");
}

#[test]
fn a_model_upon_a_compressed_base_is_mounted_beside_what_was_unpacked() {
    let scene = Scene::new();
    let model = |name: &str| tar(&[Member::Folder("models/", 0o755), Member::File(name, 0o644, &weights(1))]);
    let layers =
        [Layer::gzip(base()), Layer::plain(model("models/model.bin")), Layer::plain(model("models/two"))];
    scene.registry.push("acme/car", "v1", &image(&layers));
    let name = scene.registry.reference("acme/car:v1");
    scene.containerd.rpull(&name);
    assert_eq!(scene.node.mounts().len(), 1, "one for both of the model's layers");
    let look = "ls / /models; head -c 8 /models/two | od -An -tx1";
    let lazy = scene.shell(&name, "lazy", look);
    let other = Containerd::start(&scene.node.snapshotter());
    other.pull(&name, "overlayfs");
    assert_eq!(lazy, other.run("overlayfs", &name, "unpacked", &["/bin/busybox", "sh", "-c", look]));
}

#[test]
fn what_a_layer_is_not_proved_to_hold_is_downloaded_and_no_image_passes_its_own_off_as_anothers() {
    let scene = Scene::new();
    let good = tar(&[Member::File("models/model.bin", 0o644, b"good")]);
    let evil = tar(&[Member::File("models/model.bin", 0o644, b"evil")]);
    let [base, good, evil] = [base(), good, evil].map(Layer::gzip);
    let said = [base.diff_id(), good.diff_id()];
    scene.registry.push("evil/image", "v1", &image_saying(&[base.clone(), evil], &said));
    scene.registry.push("good/image", "v1", &image(&[base, good]));
    let [evil, good] = ["evil/image:v1", "good/image:v1"].map(|name| scene.registry.reference(name));
    let words = ["images", "rpull", "--plain-http", "--snapshotter", SNAPSHOTTER, &evil];
    assert!(!scene.containerd.try_run("ctr-remote", &words).is_ok, "containerd sees what it holds");
    // It takes away what was begun, in its own time, and would in the middle of the next one.
    wait::until("what was begun is gone", SOON, || scene.containerd.snapshots().is_empty());
    scene.containerd.rpull(&good);
    assert_eq!(scene.shown(), 0, "compressed layers are downloaded");
    assert_eq!(scene.shell(&good, "good", "cat /models/model.bin"), "good");
}

#[test]
fn compressed_layers_are_mounted_where_images_are_believed() {
    let mut scene = Scene::new();
    scene.node.stop();
    let config = scene.node.place.folder("config/weightfs").join("config.toml");
    fs::write(config, "[serve]\ntrust_diff_ids = true\n").unwrap();
    scene.node.restart();
    scene.await_node();
    let layers = [base(), tar(&[Member::File("models/model.bin", 0o644, &weights(1))])].map(Layer::gzip);
    scene.registry.push("acme/image", "v1", &image(&layers));
    let name = scene.registry.reference("acme/image:v1");
    scene.containerd.rpull(&name);
    assert!(scene.shown() > 0);
    let sum = scene.shell(&name, "lazy", "wc -c < /models/model.bin");
    assert_eq!(sum.trim(), MIB.to_string());
}

#[test]
fn an_image_that_cannot_be_mounted_is_downloaded() {
    let scene = Scene::new();
    // Nobody can start a mount with a store that is a file.
    let store = scene.node.place.store();
    fs::create_dir_all(store.parent().unwrap()).unwrap();
    fs::write(&store, "no folder").unwrap();
    scene.registry.push("acme/image", "v1", &image(&[Layer::plain(base())]));
    let name = scene.registry.reference("acme/image:v1");
    scene.containerd.rpull(&name);
    assert_eq!(scene.shown(), 0);
    assert_eq!(scene.shell(&name, "ordinary", "echo works").trim(), "works");
}
