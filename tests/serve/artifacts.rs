//! The artifact store that CRI-O reads: what other tools find in it, how little that costs, and what outlives what.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::{WEIGHTS, model, registry};
use crate::support::artifacts::bytes;
use crate::support::bound;
use crate::support::node::{Node, SOON};
use crate::support::pack::{self, Artifact, Content, Dialect, Packing, hex};
use crate::support::place::{Ran, is_running};
use crate::support::read;
use crate::support::registry::{PASSWORD, Registry};
use crate::support::relay::Weather;
use crate::support::scratch::{self, mount_points_below};
use crate::support::wait;

/// The media type of a list of manifests.
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A node with an artifact store.
struct Store {
    node: Node,
    dir: PathBuf,
    /// Holds the folder, which is to be there before the node knows of it.
    _folder: tempfile::TempDir,
}

impl Store {
    fn start() -> Self {
        Self::with(&[])
    }

    /// The same, with more words on the plane's command line.
    fn with(words: &[&str]) -> Self {
        let folder = scratch::short();
        let dir = folder.path().join("store");
        let node = Node::with(&[&["--artifact-store", dir.to_str().unwrap()][..], words].concat());
        Self { node, dir, _folder: folder }
    }

    fn layout(&self) -> PathBuf {
        self.dir.join("artifacts")
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.layout().join("blobs/sha256").join(hex(digest))
    }

    fn artifact(&self, words: &[&str]) -> Ran {
        self.node.place.run([&["artifact"][..], words].concat())
    }

    fn add(&self, reference: &str) -> Value {
        self.artifact(&["add", reference, "--json"]).ok().json()
    }

    fn list(&self) -> Vec<Value> {
        self.artifact(&["list", "--json"]).ok().json().as_array().unwrap().clone()
    }

    /// The process that serves an artifact, once it does.
    fn server(&self, reference: &str) -> Pid {
        let mut pid = None;
        wait::until("the artifact is served", SOON, || {
            let one = self.list().into_iter().find(|one| one["reference"] == reference).unwrap();
            pid = one["pid"].as_i64().filter(|_| one["trouble"].is_null());
            pid.is_some()
        });
        Pid::from_raw(pid.unwrap().try_into().unwrap())
    }

    /// As when the machine stops: nothing of the plane and of these processes is left but what is on the store's disk.
    fn stop_machine(&mut self, servers: &[Pid]) {
        self.node.kill();
        for server in servers {
            kill(*server, Signal::SIGKILL).unwrap();
            Node::await_end(*server);
        }
        scratch::detach_below(&self.dir);
        scratch::detach_below(&self.node.place.state());
        fs::remove_dir_all(self.node.place.state()).unwrap();
    }

    fn names(&self) -> Vec<String> {
        let index: Value =
            serde_json::from_slice(&fs::read(self.layout().join("index.json")).unwrap()).unwrap();
        let manifests = index["manifests"].as_array().unwrap().iter();
        let name =
            |one: &Value| one["annotations"]["org.opencontainers.image.ref.name"].as_str().map(str::to_owned);
        manifests.map(|one| name(one).unwrap()).collect()
    }

    /// What skopeo finds under a name: the manifest's digest.
    fn inspected(&self, reference: &str) -> String {
        let source = format!("oci:{}:{reference}", self.layout().display());
        let raw = skopeo(&["inspect", "--raw", &source]);
        pack::digest(&raw)
    }

    /// Has skopeo copy an artifact to a folder, and holds every blob in it to its digest.
    fn assert_copied(&self, reference: &str, artifact: &Artifact) {
        let folder = scratch::roomy();
        let source = format!("oci:{}:{reference}", self.layout().display());
        skopeo(&["copy", "--preserve-digests", &source, &format!("dir:{}", folder.path().display())]);
        let manifest = fs::read(folder.path().join("manifest.json")).unwrap();
        assert_eq!(pack::digest(&manifest), artifact.digest());
        for blob in &artifact.blobs {
            let copy = folder.path().join(hex(&blob.digest));
            assert_eq!(pack::sha256sum(&copy), hex(&blob.digest), "{}", copy.display());
        }
    }

    /// Nothing is left of any artifact.
    fn assert_empty(&self) {
        assert!(self.names().is_empty());
        for folder in ["blobs/sha256", "mounts"] {
            let left: Vec<_> = fs::read_dir(self.layout().join(folder)).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        assert!(mount_points_below(&self.dir).is_empty());
        wait::until("no mount is left", SOON, || self.node.mounts().is_empty());
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        scratch::detach_below(&self.dir);
    }
}

fn skopeo(words: &[&str]) -> Vec<u8> {
    let said = Command::new("skopeo").arg("--insecure-policy").args(words).output();
    let said = said.unwrap_or_else(|error| panic!("skopeo: {error}; run tools/test, which installs it"));
    assert!(said.status.success(), "{words:?}: {}", String::from_utf8_lossy(&said.stderr));
    said.stdout
}

/// Pushes a model whose weights are of this size, all zero but for `mark` in their middle; gives the weights' digest.
fn push_large(registry: &Registry, name: &str, size: u64, mark: &[u8]) -> String {
    let folder = scratch::roomy();
    let path = folder.path().join("weights.bin");
    let file = File::create(&path).unwrap();
    file.set_len(size).unwrap();
    file.write_all_at(mark, size / 2).unwrap();
    let weights = pack::File { path: "weights.bin".to_owned(), content: Content::Disk(path) };
    let files = [pack::File::new("config.json", "{}"), weights];
    let artifact = pack::pack(&files, Packing::Raw, Dialect::Upstream, folder.path());
    registry.push(name, "v1", &artifact);
    artifact.blobs[1].digest.clone()
}

/// Pushes a model without an index as `models/plain:v1`, and the same layers with one that says otherwise of them as `models/forged:v1`.
fn push_forged(registry: &Registry) -> (Artifact, Artifact) {
    let right = bytes(3, WEIGHTS);
    let mut wrong = right.clone();
    wrong[77] = !wrong[77];
    let [honest, other] = [right, wrong].map(|content| [pack::File::new("weights.bin", content)]);
    let plain = pack::pack(&honest, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
    let forged = bound::bind(&plain, &other, Packing::Raw);
    registry.push("models/plain", "v1", &plain);
    registry.push("models/forged", "v1", &forged);
    (plain, forged)
}

#[test]
fn other_tools_read_the_store_as_the_layout_that_it_is() {
    let (registry, store) = (registry(1..=1), Store::start());
    let reference = registry.reference("models/1:v1");
    let added = store.add(&reference);
    let artifact = model(1);
    assert_eq!(added["digest"], artifact.digest());
    assert_eq!((store.names(), &added["warnings"]), (vec![reference.clone()], &Value::Array(Vec::new())));
    assert_eq!(store.inspected(&reference), artifact.digest());
    store.assert_copied(&reference, &artifact);
    let copy = format!("oci:{}@{}", store.layout().display(), artifact.digest());
    let inspected = store.node.place.run(["inspect", &copy, "--json"]).ok().json();
    assert_eq!(inspected["digest"], artifact.digest());
    assert!(store.layout().join("index.lock").is_file());
}

#[test]
fn a_reader_of_eight_bytes_of_a_blob_fetches_less_than_two_percent_of_it() {
    const SIZE: u64 = 128 << 20;
    let (registry, store) = (Registry::start(), Store::start());
    let weights = push_large(&registry, "models/large", SIZE, b"8 bytes!");
    store.add(&registry.reference("models/large:v1"));
    let blob = File::open(store.blob(&weights)).unwrap();
    assert_eq!(blob.metadata().unwrap().len(), SIZE);
    let mut eight = [0; 8];
    blob.read_exact_at(&mut eight, SIZE / 2).unwrap();
    assert_eq!(&eight, b"8 bytes!");
    let fetched = registry.settled();
    assert!(fetched < SIZE / 50, "{fetched} bytes of {SIZE}");
}

#[test]
fn a_layer_of_two_artifacts_is_fetched_once_and_stays_as_long_as_either_does() {
    let (registry, store) = (Registry::start(), Store::start());
    let shared = || pack::File::new("weights.bin", bytes(1, WEIGHTS));
    let of = |card: &str| {
        let files = [pack::File::new("card.md", card), shared()];
        pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"))
    };
    let (first, second) = (of("first"), of("second"));
    registry.push("models/a", "v1", &first);
    registry.push("models/b", "v1", &second);
    let (one, other) = (registry.reference("models/a:v1"), registry.reference("models/b:v1"));
    store.add(&one);
    store.assert_copied(&one, &first);
    let fetched = registry.settled();
    store.add(&other);
    store.assert_copied(&other, &second);
    assert!(registry.settled() - fetched < WEIGHTS as u64 / 10, "what is kept is not fetched anew");
    store.artifact(&["remove", &one]).ok();
    assert_eq!(store.names(), [other.as_str()]);
    store.assert_copied(&other, &second);
    assert!(!store.blob(&first.blobs[0].digest).is_symlink());
    store.artifact(&["remove", &one]).failed(3, &["no artifact"]);
    store.artifact(&["remove", &other]).ok();
    store.assert_empty();
}

#[test]
fn the_digests_of_a_bound_index_hold_for_blobs_too_and_wrong_bytes_are_not_served() {
    let (registry, store) = (Registry::start(), Store::start());
    let files = [pack::File::new("weights.bin", bytes(3, WEIGHTS))];
    let plain = pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
    let artifact = bound::bind(&plain, &files, Packing::Raw);
    registry.push("models/bound", "v1", &artifact);
    let weights = plain.blobs[0].digest.clone();
    registry.corrupt(&weights, WEIGHTS as u64 - 1);
    store.add(&registry.reference("models/bound:v1"));
    let blob = File::open(store.blob(&weights)).unwrap();
    assert!(read::range(&blob, 0, 1 << 20).unwrap() == bytes(3, WEIGHTS)[..1 << 20]);
    let last = read::range(&blob, WEIGHTS as u64 - 50, 50).unwrap_err();
    assert_eq!(last.raw_os_error(), Some(nix::libc::EIO), "{last}");
    assert!(store.blob(&bound::index_digest(&artifact)).is_file(), "the index is a blob as any other");
}

#[test]
fn no_index_of_another_artifact_says_what_the_bytes_of_a_blob_are() {
    let (evil, good, store) = (Registry::start(), Registry::start(), Store::start());
    let right = bytes(3, WEIGHTS);
    let mut wrong = right.clone();
    wrong[77] = !wrong[77];
    let [honest, forged] = [&right, &wrong].map(|content| [pack::File::new("weights.bin", content.clone())]);
    let plain = pack::pack(&honest, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
    let weights = plain.blobs[0].digest.clone();
    evil.push("models/forged", "v1", &bound::bind(&plain, &forged, Packing::Raw));
    evil.corrupt(&weights, 77);
    let artifact = bound::bind(&plain, &honest, Packing::Raw);
    good.push("models/honest", "v1", &artifact);
    let (bad, other) = (evil.reference("models/forged:v1"), good.reference("models/honest:v1"));
    let dir = store.add(&bad)["dir"].as_str().unwrap().to_owned();
    let chosen = Path::new(&dir).join("sha256").join(hex(&weights));
    let first = File::open(&chosen).and_then(|blob| read::range(&blob, 0, 4096));
    assert!(first.is_err() || first.is_ok_and(|bytes| bytes == wrong[..4096]), "its own index, or nothing");

    store.artifact(&["add", &other]).failed(10, &[&bad, &weights, "--integrity strict"]);
    assert_eq!(store.names(), [bad.as_str()]);
    store.artifact(&["add", &other, "--integrity", "strict"]).ok();
    assert!(fs::read(store.blob(&weights)).unwrap() == right);
    store.assert_copied(&other, &artifact);
    // Once all of it is here it is no secret what it is.
    wait::until("the forged blob is given up", SOON, || {
        fs::read(&chosen).is_err_and(|error| error.raw_os_error() == Some(nix::libc::EIO))
    });
    assert!(fs::read(store.blob(&weights)).unwrap() == right);
}

#[test]
fn on_one_registry_too_no_index_of_another_artifact_says_what_the_bytes_of_a_blob_are() {
    let (registry, store) = (Registry::start(), Store::start());
    let (plain, _) = push_forged(&registry);
    let (good, bad) = (registry.reference("models/plain:v1"), registry.reference("models/forged:v1"));
    let weights = plain.blobs[0].digest.clone();
    store.add(&good);
    store.artifact(&["add", &bad]).failed(10, &[&good, &weights, "more than 4 MiB", "--integrity strict"]);
    assert_eq!(store.names(), [good.as_str()]);
    store.assert_copied(&good, &plain);
}

#[test]
fn on_a_strict_plane_no_index_of_any_artifact_counts_and_all_of_them_are_taken() {
    let (registry, store) = (Registry::start(), Store::with(&["--integrity", "strict"]));
    let (plain, forged) = push_forged(&registry);
    let (good, bad) = (registry.reference("models/plain:v1"), registry.reference("models/forged:v1"));
    store.add(&bad);
    store.add(&good);
    store.assert_copied(&good, &plain);
    store.assert_copied(&bad, &forged);
}

/// A model with these weights, and a card that others of them have too.
fn carded(weights: u64) -> Artifact {
    let card = pack::File::new("card.md", "what both have");
    let files = [card, pack::File::new("weights.bin", bytes(weights, WEIGHTS))];
    pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"))
}

#[test]
fn while_what_two_artifacts_have_cannot_be_compared_others_are_removed_and_who_waits_gives_way() {
    let (stalled, registry, store) = (Registry::start(), registry(1..=1), Store::start());
    stalled.push("models/a", "v1", &carded(7));
    registry.push("models/b", "v1", &carded(8));
    let one = stalled.reference("models/a:v1");
    let (two, third) = (registry.reference("models/b:v1"), registry.reference("models/1:v1"));
    store.artifact(&["add", &one, "--warm", "none"]).ok();
    store.add(&third);
    stalled.weather(Weather::Stall);
    let asked = stalled.requests().len();
    std::thread::scope(|scope| {
        let adding = scope.spawn(|| store.artifact(&["add", &two, "--warm", "none"]));
        wait::until("the other one is looked at", SOON, || stalled.requests().len() > asked);
        store.artifact(&["remove", &third]).ok();
        assert_eq!(store.list().len(), 1);
        // Nothing to be taken out yet.
        store.artifact(&["remove", &two]).failed(3, &["no artifact"]);
        adding.join().unwrap().failed(10, &["something else was asked for"]);
    });
    assert_eq!(store.names(), [one.as_str()]);
    stalled.weather(Weather::Clear);
    store.add(&two);
    store.assert_copied(&two, &carded(8));
}

#[test]
fn who_adds_the_same_at_once_is_told_that_it_is_there() {
    let (registry, store) = (registry(1..=1), Store::start());
    let reference = registry.reference("models/1:v1");
    registry.weather(Weather::Delay(std::time::Duration::from_millis(200)));
    std::thread::scope(|scope| {
        let adding: Vec<_> = (0..4).map(|_| scope.spawn(|| store.add(&reference))).collect();
        for one in adding {
            assert_eq!(one.join().unwrap()["digest"], model(1).digest());
        }
    });
    registry.weather(Weather::Clear);
    assert_eq!(store.names(), [reference.as_str()]);
    store.assert_copied(&reference, &model(1));
}

#[test]
fn mounts_of_artifacts_outlive_the_plane_and_the_next_one_adopts_them() {
    let (registry, mut store) = (registry(1..=1), Store::start());
    let reference = registry.reference("models/1:v1");
    store.add(&reference);
    let server = store.server(&reference);
    store.node.kill();
    store.assert_copied(&reference, &model(1));
    store.node.restart();
    assert_eq!(store.server(&reference), server);
    store.assert_copied(&reference, &model(1));
    store.artifact(&["remove", &reference]).ok();
    store.assert_empty();
    Node::await_end(server);
}

#[test]
fn an_artifact_whose_process_is_killed_is_repaired() {
    let (registry, store) = (registry(1..=1), Store::start());
    let reference = registry.reference("models/1:v1");
    store.add(&reference);
    let server = store.server(&reference);
    kill(server, Signal::SIGKILL).unwrap();
    wait::until("another process serves it", SOON, || store.server(&reference) != server);
    store.assert_copied(&reference, &model(1));
}

#[test]
fn what_is_registered_is_there_again_after_the_machine_has_started_anew() {
    let (mut registry, mut store) = (registry(1..=2), Store::start());
    let references = [1, 2].map(|number| registry.reference(&format!("models/{number}:v1")));
    references.iter().for_each(|reference| drop(store.add(reference)));
    let servers = references.each_ref().map(|reference| store.server(reference));
    store.stop_machine(&servers);
    registry.stop();
    store.node.restart();
    wait::until("it is said why there is no mount", 3 * SOON, || {
        let all = store.list();
        all.len() == 2 && all.iter().all(|one| one["trouble"].to_string().contains(&registry.host()))
    });
    registry.restart();
    for (number, reference) in (1..).zip(&references) {
        store.server(reference);
        store.assert_copied(reference, &model(number));
    }
    references.iter().for_each(|reference| drop(store.artifact(&["remove", reference]).ok()));
    store.assert_empty();
}

#[test]
fn what_two_artifacts_have_is_compared_again_when_they_are_had_again() {
    let (evil, good, mut store) = (Registry::start(), Registry::start(), Store::start());
    evil.push("models/a", "v1", &carded(7));
    good.push("models/b", "v1", &carded(8));
    let references = [evil.reference("models/a:v1"), good.reference("models/b:v1")];
    references.iter().for_each(|reference| drop(store.add(reference)));
    let servers = references.each_ref().map(|reference| store.server(reference));
    store.stop_machine(&servers);
    fs::remove_dir_all(store.node.place.store()).unwrap();
    let card = carded(7).blobs[0].digest.clone();
    evil.corrupt(&card, 0);
    store.node.restart();
    wait::until("one of both is shown, and the other not", 3 * SOON, || {
        let all = store.list();
        let one_waits = |one: &Value| one["trouble"].to_string().contains(&card) && one["pid"].is_null();
        let shown = all.iter().filter(|one| one["pid"].is_number() && one["trouble"].is_null());
        all.iter().filter(|one| one_waits(one)).count() == 1 && shown.count() == 1
    });
    // With the one out of the way that lies, the other is had by and by.
    store.artifact(&["remove", &references[0]]).ok();
    store.server(&references[1]);
    store.assert_copied(&references[1], &carded(8));
}

#[test]
fn while_a_registry_does_not_answer_an_artifact_is_removed_at_once_and_adding_it_says_why_it_cannot_be_had() {
    let (mut registry, mut store) = (registry(1..=1), Store::start());
    let reference = registry.reference("models/1:v1");
    store.add(&reference);
    store.stop_machine(&[store.server(&reference)]);
    // The next plane has the mount again as long as that takes, and is at that whenever somebody else asks.
    registry.weather(Weather::Stall);
    store.node.restart();
    wait::until("the registry is asked", SOON, || !registry.requests().is_empty());
    store.artifact(&["remove", &reference]).ok();
    assert!(store.names().is_empty());
    store.assert_empty();

    registry.weather(Weather::Clear);
    store.add(&reference);
    store.stop_machine(&[store.server(&reference)]);
    registry.stop();
    store.node.restart();
    wait::until("it is missing", SOON, || store.list()[0]["trouble"].is_string());
    store.artifact(&["add", &reference]).failed(5, &[&registry.host()]);
    registry.restart();
    store.server(&reference);
    store.assert_copied(&reference, &model(1));
}

#[test]
fn a_blob_bound_into_a_container_is_right_can_be_mapped_and_outlives_the_artifacts_removal() {
    let (registry, store) = (registry(1..=1), Store::start());
    let reference = registry.reference("models/1:v1");
    store.add(&reference);
    let weights = model(1).blobs[1].digest.clone();
    let inside = store.dir.join("container").join("weights.bin");
    fs::create_dir(inside.parent().unwrap()).unwrap();
    File::create(&inside).unwrap();
    let none = None::<&str>;
    mount(Some(&store.blob(&weights)), &inside, none, MsFlags::MS_BIND, none).unwrap();
    let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(none, &inside, none, read_only, none).unwrap();
    let server = store.server(&reference);
    store.artifact(&["remove", &reference]).ok();
    assert!(is_running(server), "a container has its file");
    assert!(read::map(&inside)[..] == bytes(1, WEIGHTS)[..]);
    assert_eq!(pack::sha256sum(&inside), hex(&weights));
    umount2(&inside, MntFlags::empty()).unwrap();
    Node::await_end(server);
    store.assert_empty();
}

#[test]
fn a_tag_that_leads_elsewhere_leads_there_once_it_is_added_again() {
    let (registry, store) = (registry(1..=1), Store::start());
    let reference = registry.reference("models/1:v1");
    let first = store.add(&reference);
    registry.push("models/1", "v1", &model(2));
    assert_eq!(store.inspected(&reference), model(1).digest(), "nobody has asked");
    let second = store.add(&reference);
    assert_ne!(first["dir"], second["dir"]);
    assert_eq!(store.inspected(&reference), model(2).digest());
    store.assert_copied(&reference, &model(2));
    assert!(!store.blob(&model(1).digest()).exists());
    wait::until("the former mount has gone", SOON, || store.node.mounts().len() == 1);
    let pinned = registry.reference(&format!("models/1@{}", model(1).digest()));
    store.add(&pinned);
    assert_eq!(store.inspected(&pinned), model(1).digest());
    let twin = store.add(&registry.reference(&format!("models/1:v1@{}", model(2).digest())));
    assert_eq!(twin["reference"], reference.as_str());
    registry.push("models/1", "v2", &model(2));
    let warned = store.add(&registry.reference("models/1:v2"));
    assert!(warned["warnings"][0].as_str().unwrap().contains(&reference), "{warned}");
}

#[test]
fn what_containers_could_not_use_is_refused_or_warned_of_and_leaves_nothing() {
    let (registry, store) = (registry(1..=1), Store::start());
    let files = [pack::File::new("weights.bin", bytes(5, 100_000))];
    let tar = pack::pack(&files, Packing::Tar, Dialect::Upstream, Path::new("/nowhere"));
    registry.push("models/tar", "v1", &tar);
    let older = pack::pack(&files, Packing::Raw, Dialect::Legacy, Path::new("/nowhere"));
    registry.push("models/older", "v1", &older);
    let image = String::from_utf8(model(1).manifest).unwrap();
    let image = image
        .replace("application/vnd.cncf.model.config.v1+json", "application/vnd.oci.image.config.v1+json")
        .replace("\"artifactType\"", "\"artifactTyped\"");
    registry.push("models/image", "v1", &Artifact { manifest: image.into_bytes(), ..model(1) });
    let add = |name: &str| store.artifact(&["add", &registry.reference(name)]);
    add("models/image:v1").failed(7, &[]);
    add("models/none:v1").failed(3, &["models/none:v1"]);
    store.artifact(&["add", "oci:/models"]).failed(2, &["in no registry"]);
    store.assert_empty();
    assert!(add("models/tar:v1").ok().stderr.contains("an archive"));
    assert!(add("models/older:v1").ok().stderr.contains("without a name"));
    store.assert_copied(&registry.reference("models/tar:v1"), &tar);
    let dir = store.list()[0]["dir"].as_str().unwrap().to_owned();
    store.node.unmount(Path::new(&dir)).failed(10, &["artifact remove"]);
    let without = Node::start();
    without.place.run(["artifact", "list"]).failed(2, &["--artifact-store"]);
    let words = ["serve", "--artifact-store", store.dir.to_str().unwrap()];
    let mut other = without.place.command();
    other.args(words).env("WEIGHTFS_STATE", without.place.folder("other-state"));
    without.place.finish(other, SOON).failed(10, &["another 'weightfs serve' has the artifact store"]);
}

#[test]
fn of_a_list_the_manifest_for_this_machine_is_registered_and_settings_stay_until_it_is_removed() {
    let (registry, store) = (registry(1..=1), Store::start());
    let (manifest, digest) = (model(1).manifest, model(1).digest());
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let list = format!(
        r#"{{"schemaVersion":2,"mediaType":"{INDEX}","manifests":[{{"mediaType":"{}","digest":"{digest}","size":{},
        "platform":{{"os":"linux","architecture":"{architecture}"}}}}]}}"#,
        pack::MANIFEST,
        manifest.len()
    );
    let list = Artifact { blobs: Vec::new(), manifest: list.into_bytes(), media_type: INDEX.to_owned() };
    registry.push("models/1", "list", &list);
    let reference = registry.reference("models/1:list");
    assert_eq!(store.add(&reference)["digest"], digest);
    store.assert_copied(&reference, &model(1));
    store.artifact(&["add", &reference, "--warm", "all"]).failed(10, &["other settings", "remove it"]);
    store.artifact(&["remove", &reference]).ok();
    store.artifact(&["add", &reference, "--warm", "all"]).ok();
}

#[test]
fn a_private_artifact_is_added_by_who_has_its_credentials() {
    let (registry, store) = (Registry::with_password(), Store::start());
    registry.push("models/1", "v1", &model(1));
    let reference = registry.reference("models/1:v1");
    store.artifact(&["add", &reference]).failed(4, &[]);
    store.assert_empty();
    let mut command = store.node.place.command();
    command.args(["artifact", "add", &reference]);
    command.env("WEIGHTFS_REGISTRY_AUTH", format!("{}=reader:{PASSWORD}", registry.host()));
    store.node.place.finish(command, SOON).ok();
    store.assert_copied(&reference, &model(1));
    let index = fs::read_to_string(store.layout().join("index.json")).unwrap();
    assert!(!index.contains(PASSWORD), "credentials are none of its settings");
}
