//! The snapshotter, asked as containerd asks it: call by call, over its socket, with real mounts.
//!
//! Cases have the names that they have in containerd's own suite for snapshotters (`core/snapshots/testsuite`), as far as one stands
//! behind them: `Basic`, `StatActive`, `StatComitted`, `TransitivityTest`, `PreareViewFailingtest`, `Update`, `Remove`, `Walk`, `LayerFileupdate`,
//! `RemoveDirectoryInLowerLayer`, `Chown`, `DirectoryPermissionOnCommit`, `RemoveIntermediateSnapshot`, `DeletedFilesInChildSnapshot`,
//! `MoveFileFromLowerLayer`, `ViewReadonly`, `StatInWalk`, `CloseTwice` (of a process: killed and started again), `RootPermission`, `Rename`,
//! `128LayersMount`.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::libc::EIO;
use nix::mount::{MntFlags, umount2};
use tonic::{Code, Status};
use weightfs::serve::snapshots::v1::types::Mount;
use weightfs::serve::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest,
    StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest,
    UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};

use crate::support::artifacts::bytes;
use crate::support::bound;
use crate::support::containers::{Layer, Member, chain, image, tar};
use crate::support::csi::Client;
use crate::support::node::{Node, SOON};
use crate::support::pack::{Artifact, File};
use crate::support::read as support_read;
use crate::support::registry::Registry;
use crate::support::scratch::mount_points_below;
use crate::support::wait;

const TARGET: &str = "containerd.io/snapshot.ref";

type Labels = HashMap<String, String>;

/// The snapshotter of a node, and a folder to mount in.
struct Asker {
    client: Client,
    node: Node,
}

fn path(method: &str) -> String {
    format!("/containerd.services.snapshots.v1.Snapshots/{method}")
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

impl Asker {
    fn new() -> Self {
        let node = Node::for_containers();
        Self { client: Client::connect(&node.snapshotter()), node }
    }

    /// The plane is killed and another one takes its place.
    fn restart(&mut self) {
        self.node.kill();
        self.node.restart();
        self.client = Client::connect(&self.node.snapshotter());
    }

    fn prepare_with(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let request = PrepareSnapshotRequest { snapshotter: String::new(), key, parent, labels };
        let answer: PrepareSnapshotResponse = self.client.ask(&path("Prepare"), request)?;
        Ok(answer.mounts)
    }

    fn prepare(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, labels(&[("containerd.io/gc.root", "now")]))
    }

    fn view(&self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.to_owned(), parent.to_owned());
        let request = ViewSnapshotRequest { snapshotter: String::new(), key, parent, labels: Labels::new() };
        let answer: ViewSnapshotResponse = self.client.ask(&path("View"), request)?;
        Ok(answer.mounts)
    }

    fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest { snapshotter: String::new(), key: key.to_owned() };
        let answer: MountsResponse = self.client.ask(&path("Mounts"), request)?;
        Ok(answer.mounts)
    }

    fn commit(&self, name: &str, key: &str) -> Result<(), Status> {
        let (name, key) = (name.to_owned(), key.to_owned());
        let labels = labels(&[("made", "yes")]);
        let request = CommitSnapshotRequest { snapshotter: String::new(), name, key, labels };
        self.client.ask(&path("Commit"), request)
    }

    fn remove(&self, key: &str) -> Result<(), Status> {
        let request = RemoveSnapshotRequest { snapshotter: String::new(), key: key.to_owned() };
        self.client.ask(&path("Remove"), request)
    }

    fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = StatSnapshotRequest { snapshotter: String::new(), key: key.to_owned() };
        let answer: StatSnapshotResponse = self.client.ask(&path("Stat"), request)?;
        Ok(answer.info.expect("a snapshot"))
    }

    fn update(&self, name: &str, labels: Labels, paths: &[&str]) -> Result<Info, Status> {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        let info = Info { name: name.to_owned(), labels, ..Info::default() };
        let update_mask = Some(prost_types::FieldMask { paths });
        let request = UpdateSnapshotRequest { snapshotter: String::new(), info: Some(info), update_mask };
        let answer: UpdateSnapshotResponse = self.client.ask(&path("Update"), request)?;
        Ok(answer.info.expect("a snapshot"))
    }

    fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let request = ListSnapshotsRequest { snapshotter: String::new(), filters };
        let pages: Vec<ListSnapshotsResponse> = self.client.all(&path("List"), request)?;
        Ok(pages.into_iter().flat_map(|page| page.info).collect())
    }

    fn names(&self, filters: &[&str]) -> Vec<String> {
        let mut names: Vec<_> = self.list(filters).unwrap().into_iter().map(|info| info.name).collect();
        names.sort();
        names
    }

    fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let request = UsageRequest { snapshotter: String::new(), key: key.to_owned() };
        self.client.ask(&path("Usage"), request)
    }

    fn cleanup(&self) -> Result<(), Status> {
        self.client.ask(&path("Cleanup"), CleanupRequest { snapshotter: String::new() })
    }

    /// Mounts what was answered, does something there and unmounts.
    fn within<T>(&self, mounts: &[Mount], work: impl FnOnce(&Path) -> T) -> T {
        let mounted = Mounted::new(&self.node, mounts);
        work(&mounted.0)
    }

    /// A committed snapshot of this name, on this parent, in which `work` was done.
    fn layer(&self, name: &str, parent: &str, work: impl FnOnce(&Path)) {
        let key = format!("making {name}");
        let mounts = self.prepare(&key, parent).unwrap();
        self.within(&mounts, work);
        self.commit(name, &key).unwrap();
    }

    /// What a snapshot shows, as a view of it.
    fn shows<T>(&self, name: &str, work: impl FnOnce(&Path) -> T) -> T {
        let key = format!("looking at {name}");
        let mounts = self.view(&key, name).unwrap();
        let shown = self.within(&mounts, work);
        self.remove(&key).unwrap();
        shown
    }
}

/// Something mounted, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(node: &Node, mounts: &[Mount]) -> Self {
        let [mount] = mounts else { panic!("one mount: {mounts:?}") };
        let dir = tempfile::Builder::new().tempdir_in(node.dir("mounted")).unwrap().keep();
        let folder = node.snapshots().canonicalize().unwrap().join("snapshots");
        // As containerd does: the options of many layers are longer than the kernel takes them.
        let short = format!("{}/", folder.display());
        let mut command = Command::new("mount");
        command.current_dir(&folder);
        let options: Vec<_> = mount.options.iter().map(|option| option.replace(&short, "")).collect();
        if mount.r#type == "bind" {
            command.args(["--rbind", "-o", if options.contains(&"ro".to_owned()) { "ro" } else { "rw" }]);
        } else {
            command.args(["-t", &mount.r#type, "-o", &options.join(",")]);
        }
        let done = command.arg(&mount.source).arg(&dir).output().unwrap();
        assert!(done.status.success(), "{mount:?}: {}", String::from_utf8_lossy(&done.stderr));
        Self(dir)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _already_gone = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn code<T: std::fmt::Debug>(done: Result<T, Status>) -> Code {
    done.unwrap_err().code()
}

fn write(path: &Path, name: &str, text: &str) {
    fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
    fs::write(path.join(name), text).unwrap();
}

fn read(path: &Path, name: &str) -> String {
    fs::read_to_string(path.join(name)).unwrap()
}

#[test]
fn basic() {
    let asker = Asker::new();
    asker.layer("one", "", |path| {
        write(path, "foo", "foo\n");
        write(path, "a/b/c", "");
    });
    assert_eq!(code(asker.stat("making one")), Code::NotFound);
    let one = asker.stat("one").unwrap();
    assert_eq!((one.kind(), &*one.parent, &one.labels), (Kind::Committed, "", &labels(&[("made", "yes")])));
    let mounts = asker.prepare("next", "one").unwrap();
    asker.within(&mounts, |path| {
        assert_eq!(read(path, "foo"), "foo\n");
        write(path, "bar", "bar\n");
        write(path, "foo", "bar\n");
        fs::remove_dir_all(path.join("a/b")).unwrap();
    });
    let next = asker.stat("next").unwrap();
    assert_eq!((next.kind(), &*next.parent), (Kind::Active, "one"));
    asker.commit("two", "next").unwrap();
    let walked = asker.list(&[]).unwrap();
    assert!(walked.contains(&one) && walked.contains(&asker.stat("two").unwrap()) && walked.len() == 2);
    asker.shows("two", |path| {
        assert_eq!((read(path, "foo"), read(path, "bar")), ("bar\n".into(), "bar\n".into()));
        assert!(path.join("a").is_dir() && !path.join("a/b").exists());
    });
    asker.shows("one", |path| assert!(path.join("a/b/c").exists() && !path.join("bar").exists()));
    let refused = asker.remove("one").unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("remove"), "{refused}");
    for name in ["two", "one"] {
        asker.remove(name).unwrap();
    }
    assert!(asker.names(&[]).is_empty());
}

#[test]
fn stat_active_stat_comitted_and_transitivity() {
    let asker = Asker::new();
    asker.prepare("active", "").unwrap();
    let active = asker.stat("active").unwrap();
    assert_eq!((&*active.name, active.kind(), &*active.parent), ("active", Kind::Active, ""));
    assert!(active.created_at.is_some() && active.created_at == active.updated_at);
    asker.commit("a", "active").unwrap();
    asker.layer("b", "a", |path| write(path, "foo", "foo bar"));
    let (a, b) = (asker.stat("a").unwrap(), asker.stat("b").unwrap());
    assert_eq!((a.kind(), &*a.parent, &*b.parent), (Kind::Committed, "", "a"));
    assert_eq!(asker.stat(&b.parent).unwrap().parent, "");
}

#[test]
fn prepare_view_failing() {
    let asker = Asker::new();
    asker.layer("a", "", |_| ());
    asker.prepare("new", "a").unwrap();
    asker.view("view", "a").unwrap();
    for key in ["new", "view", "a"] {
        assert_eq!(code(asker.prepare(key, "a")), Code::AlreadyExists, "{key}");
        assert_eq!(code(asker.view(key, "a")), Code::AlreadyExists, "{key}");
    }
    assert_eq!(code(asker.prepare("other", "none")), Code::NotFound);
    assert_eq!(code(asker.prepare("other", "new")), Code::InvalidArgument);
    assert_eq!(code(asker.prepare("", "")), Code::InvalidArgument);
    assert_eq!(code(asker.commit("b", "view")), Code::FailedPrecondition);
    assert_eq!(code(asker.commit("a", "new")), Code::AlreadyExists);
    assert_eq!(code(asker.mounts("a")), Code::FailedPrecondition);
    for done in [code(asker.mounts("none")), code(asker.remove("none")), code(asker.usage("none"))] {
        assert_eq!(done, Code::NotFound);
    }
}

#[test]
fn update() {
    let asker = Asker::new();
    asker.layer("a", "", |_| ());
    let before = asker.stat("a").unwrap();
    let all = asker.update("a", labels(&[("one", "1"), ("two", "2")]), &[]).unwrap();
    assert_eq!(all.labels, labels(&[("one", "1"), ("two", "2")]));
    assert_eq!((all.created_at, all.kind()), (before.created_at, Kind::Committed));
    assert!(all.updated_at.unwrap().seconds >= before.updated_at.unwrap().seconds);
    let some = asker.update("a", labels(&[("two", "3"), ("three", "x")]), &["labels.two"]).unwrap();
    assert_eq!(some.labels, labels(&[("one", "1"), ("two", "3")]));
    assert_eq!(asker.update("a", Labels::new(), &["labels"]).unwrap().labels, Labels::new());
    assert_eq!(asker.stat("a").unwrap().labels, Labels::new());
    assert_eq!(code(asker.update("a", Labels::new(), &["parent"])), Code::InvalidArgument);
    assert_eq!(code(asker.update("none", Labels::new(), &[])), Code::NotFound);
}

#[test]
fn remove_and_remove_intermediate_snapshot() {
    let asker = Asker::new();
    asker.layer("a", "", |_| ());
    asker.layer("b", "a", |_| ());
    asker.view("v", "b").unwrap();
    for name in ["a", "b"] {
        assert_eq!(code(asker.remove(name)), Code::FailedPrecondition, "{name}");
    }
    for name in ["v", "b", "a"] {
        asker.remove(name).unwrap();
        assert_eq!(code(asker.stat(name)), Code::NotFound);
    }
    assert_eq!(fs::read_dir(asker.node.snapshots().join("snapshots")).unwrap().count(), 0);
    asker.prepare("a", "").unwrap();
}

#[test]
fn walk_and_stat_in_walk() {
    let asker = Asker::new();
    asker.layer("a", "", |_| ());
    asker.layer("b", "a", |_| ());
    asker.prepare("active", "b").unwrap();
    asker.view("view", "b").unwrap();
    for info in asker.list(&[]).unwrap() {
        assert_eq!(asker.stat(&info.name).unwrap(), info);
    }
    assert_eq!(asker.names(&[]), ["a", "active", "b", "view"]);
    assert_eq!(asker.names(&["kind==committed"]), ["a", "b"]);
    assert_eq!(asker.names(&["parent==b", "name==a"]), ["a", "active", "view"]);
    assert_eq!(asker.names(&["kind==active,labels.\"containerd.io/gc.root\""]), ["active"]);
    assert_eq!(code(asker.list(&["size==1"])), Code::InvalidArgument);
    // More than go in one message.
    (0..150).for_each(|number| drop(asker.prepare(&format!("many-{number}"), "a").unwrap()));
    assert_eq!(asker.names(&[]).len(), 154);
}

#[test]
fn layer_fileupdate_remove_directory_in_lower_layer_and_deleted_files_in_child_snapshot() {
    let asker = Asker::new();
    asker.layer("1", "", |path| {
        write(path, "foo", "foo");
        write(path, "foobar", "foobar");
        write(path, "lib/dir1/f1", "f1");
        write(path, "lib/dir2/f2", "f2");
    });
    asker.layer("2", "1", |path| {
        fs::remove_file(path.join("foobar")).unwrap();
        fs::remove_dir_all(path.join("lib/dir1")).unwrap();
        fs::create_dir(path.join("lib/dir2/deep")).unwrap();
        write(path, "foo", "foo, updated");
    });
    asker.layer("3", "2", |path| {
        fs::create_dir(path.join("lib/dir1")).unwrap();
        write(path, "foo", "foo, once more");
    });
    asker.shows("3", |path| {
        assert_eq!(read(path, "foo"), "foo, once more");
        assert!(!path.join("foobar").exists() && !path.join("lib/dir1/f1").exists());
        assert!(path.join("lib/dir1").is_dir() && path.join("lib/dir2/deep").is_dir());
        assert_eq!(read(path, "lib/dir2/f2"), "f2");
    });
}

#[test]
fn chown_directory_permission_on_commit_root_permission_rename_and_move_file_from_lower_layer() {
    let asker = Asker::new();
    asker.layer("1", "", |path| {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o755);
        write(path, "opt/a", "a");
        write(path, "dir/sub/file", "f");
        fs::set_permissions(path.join("dir"), fs::Permissions::from_mode(0o1711)).unwrap();
        chown(path.join("opt"), Some(1), Some(2)).unwrap();
    });
    asker.layer("2", "1", |path| {
        chown(path.join("opt/a"), Some(3), Some(4)).unwrap();
        fs::rename(path.join("dir/sub/file"), path.join("moved")).unwrap();
        fs::create_dir(path.join("new")).unwrap();
        fs::rename(path.join("new"), path.join("renamed")).unwrap();
    });
    asker.shows("2", |path| {
        let owner = |name: &str| {
            let found = fs::metadata(path.join(name)).unwrap();
            (found.uid(), found.gid(), found.mode() & 0o7777)
        };
        assert_eq!(owner(""), (0, 0, 0o755));
        assert_eq!((owner("opt").0, owner("opt").1), (1, 2));
        assert_eq!((owner("opt/a").0, owner("opt/a").1), (3, 4));
        assert_eq!(owner("dir").2, 0o1711);
        assert!(!path.join("dir/sub/file").exists() && path.join("renamed").is_dir());
        assert_eq!(read(path, "moved"), "f");
    });
}

#[test]
fn view_readonly() {
    let asker = Asker::new();
    asker.layer("1", "", |path| write(path, "a", "a"));
    asker.layer("2", "1", |path| write(path, "b", "b"));
    for name in ["1", "2"] {
        asker.shows(name, |path| {
            assert_eq!(read(path, "a"), "a");
            let error = fs::write(path.join("c"), "").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(nix::libc::EROFS));
        });
    }
}

#[test]
fn a_hundred_and_twenty_eight_layers_mount() {
    let asker = Asker::new();
    let mut parent = String::new();
    for number in 0..128 {
        let name = format!("layer-{number}");
        let key = format!("making {number}");
        asker.prepare(&key, &parent).unwrap();
        // Each layer's own folder, without mounting all below it each time.
        let folder = asker.node.snapshots().join("snapshots").join((number + 1).to_string()).join("fs");
        fs::write(folder.join(format!("file-{number}")), "x").unwrap();
        asker.commit(&name, &key).unwrap();
        parent = name;
    }
    asker.shows(&parent, |path| assert_eq!(fs::read_dir(path).unwrap().count(), 128));
}

#[test]
fn usage_grows_while_a_snapshot_is_written_to_and_stays_once_it_is_committed() {
    let asker = Asker::new();
    let mounts = asker.prepare("a", "").unwrap();
    let empty = asker.usage("a").unwrap();
    asker.within(&mounts, |path| fs::write(path.join("file"), bytes(1, 500_000)).unwrap());
    let full = asker.usage("a").unwrap();
    assert!(full.size - empty.size >= 500_000 && full.inodes == empty.inodes + 1, "{empty:?} {full:?}");
    asker.commit("one", "a").unwrap();
    assert_eq!(asker.usage("one").unwrap(), full);
    asker.prepare("b", "one").unwrap();
    assert_eq!(asker.usage("b").unwrap().inodes, 1, "what lies below counts for itself");
}

#[test]
fn everything_is_as_it_was_after_the_process_was_killed_and_what_nobody_has_goes_at_a_cleanup() {
    let mut asker = Asker::new();
    asker.layer("a", "", |path| write(path, "a", "a"));
    let mounts = asker.prepare("active", "a").unwrap();
    let before = asker.list(&[]).unwrap();
    let stray = asker.node.snapshots().join("snapshots/777/fs");
    fs::create_dir_all(&stray).unwrap();
    asker.restart();
    assert_eq!(asker.list(&[]).unwrap(), before);
    assert_eq!(asker.mounts("active").unwrap(), mounts);
    asker.within(&mounts, |path| write(path, "b", "b"));
    asker.commit("b", "active").unwrap();
    asker.cleanup().unwrap();
    assert!(!stray.exists());
    asker.shows("b", |path| assert_eq!((read(path, "a"), read(path, "b")), ("a".into(), "b".into())));
}

/// The labels of the stargz snapshotter's client for the last of these layers, of the image `reference`.
fn asking_for(reference: &str, layers: &[Layer]) -> Labels {
    labels(&[
        (TARGET, &chain(layers).to_string()),
        ("containerd.io/snapshot/remote/stargz.reference", reference),
        ("containerd.io/snapshot/remote/stargz.digest", &layers.last().unwrap().digest().to_string()),
    ])
}

/// The same as Kubernetes' plugin of containerd says it.
fn asking_as_kubernetes(reference: &str, layers: &[Layer]) -> Labels {
    let (manifest, layer) = (image(layers).digest(), layers.last().unwrap().digest().to_string());
    labels(&[
        (TARGET, &chain(layers).to_string()),
        ("containerd.io/snapshot/cri.image-ref", reference),
        ("containerd.io/snapshot/cri.manifest-digest", &manifest),
        ("containerd.io/snapshot/cri.layer-digest", &layer),
        ("containerd.io/snapshot/cri.image-layers", &layer),
    ])
}

/// Layers of a model, each a file of 3 MiB.
fn model(count: u64) -> Vec<Layer> {
    let layer = |number: u64| {
        let (name, content) = (format!("models/{number}.bin"), bytes(number, 3 << 20));
        Layer::plain(tar(&[Member::Folder("models/", 0o755), Member::File(&name, 0o644, &content)]))
    };
    (0..count).map(layer).collect()
}

/// The name of the snapshot that stands for a chain.
fn named(asker: &Asker, layers: &[Layer], parent: &str) -> String {
    let filter = format!("labels.\"{TARGET}\"=={},parent==\"{parent}\"", chain(layers));
    let found = asker.list(&[&filter]).unwrap();
    let [info] = found.as_slice() else { panic!("{filter}: {found:?}") };
    assert_eq!(info.kind(), Kind::Committed);
    info.name.clone()
}

/// Asks for all layers of an image as containerd does, and gives the snapshot of the last.
fn had(asker: &Asker, reference: &str, layers: &[Layer]) -> String {
    let mut parent = String::new();
    for count in 1..=layers.len() {
        let asked = asking_for(reference, &layers[..count]);
        let answer = asker.prepare_with(&format!("extract-{count}"), &parent, asked);
        assert_eq!(code(answer), Code::AlreadyExists, "layer {count}");
        parent = named(asker, &layers[..count], &parent);
    }
    parent
}

fn pushed(layers: &[Layer]) -> (Registry, String) {
    let registry = Registry::start();
    registry.push("acme/image", "v1", &image(layers));
    let reference = registry.reference("acme/image:v1");
    (registry, reference)
}

#[test]
fn a_remote_snapshot_is_there_without_its_layers_and_one_process_shows_all_of_them() {
    let (asker, layers) = (Asker::new(), model(3));
    let (_registry, reference) = pushed(&layers);
    let top = had(&asker, &reference, &layers);
    assert_eq!(asker.node.mounts().len(), 1);
    let mounts = asker.prepare("container", &top).unwrap();
    asker.within(&mounts, |path| {
        for number in 0..3 {
            assert!(fs::read(path.join(format!("models/{number}.bin"))).unwrap() == bytes(number, 3 << 20));
        }
        write(path, "models/own", "own");
    });
    // Asked for once more it is the same one; its layers are no files of this machine's snapshots.
    let again =
        asker.prepare_with("again", &asker.stat(&top).unwrap().parent, asking_for(&reference, &layers));
    assert_eq!(code(again), Code::AlreadyExists);
    assert_eq!(asker.names(&[]).len(), 4);
    assert_eq!(asker.usage(&top).unwrap(), UsageResponse { size: 0, inodes: 0 });
    asker.remove("container").unwrap();
    let mut next = top;
    while !next.is_empty() {
        let parent = asker.stat(&next).unwrap().parent;
        asker.remove(&next).unwrap();
        next = parent;
    }
    wait::until("nothing is left", SOON, || {
        asker.node.mounts().is_empty() && mount_points_below(&asker.node.snapshots()).is_empty()
    });
}

#[test]
fn a_second_namespace_has_an_image_by_the_process_that_shows_it_already() {
    let (asker, layers) = (Asker::new(), model(3));
    let (_registry, reference) = pushed(&layers);
    let top = had(&asker, &reference, &layers);
    // containerd keeps records of its own for each namespace, and asks for every layer in each.
    assert_eq!(had(&asker, &reference, &layers), top);
    assert_eq!(asker.node.mounts().len(), 1);
}

#[test]
fn what_lies_on_a_part_of_an_image_sees_that_part_and_no_more() {
    let (mut asker, layers) = (Asker::new(), model(3));
    let (_registry, reference) = pushed(&layers);
    let top = had(&asker, &reference, &layers);
    let middle = asker.stat(&top).unwrap().parent;
    let listed = |path: &Path| {
        let names = fs::read_dir(path.join("models")).unwrap();
        let mut names: Vec<_> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    assert_eq!(asker.shows(&middle, listed), ["0.bin", "1.bin"]);
    assert_eq!(asker.shows(&top, listed), ["0.bin", "1.bin", "2.bin"]);
    // Another image goes on from there with a layer that has to be unpacked.
    asker.layer("own", &middle, |path| write(path, "models/own", "own"));
    assert_eq!(asker.shows("own", listed), ["0.bin", "1.bin", "own"]);
    asker.restart();
    assert_eq!(asker.shows("own", listed), ["0.bin", "1.bin", "own"]);
}

#[test]
fn what_the_registry_does_not_bear_out_is_an_ordinary_snapshot() {
    let (asker, layers) = (Asker::new(), model(2));
    let (mut registry, reference) = pushed(&layers);
    let [one, other] = [&layers[..1], &layers[1..]];
    let refused = [
        // Another layer's chain, a layer of no such image, and images that are not there or in a folder.
        ("chain", labels(&[(TARGET, &chain(other).to_string())]), &*reference),
        ("image", Labels::new(), "127.0.0.1:1/acme/image:v1"),
        ("folder", Labels::new(), "oci:/etc"),
        ("words", Labels::new(), "--config=/etc/shadow"),
    ];
    for (name, changed, reference) in refused {
        let mut asked = asking_for(reference, one);
        asked.extend(changed);
        let mounts = asker.prepare_with(name, "", asked).unwrap();
        asker.within(&mounts, |path| assert_eq!(fs::read_dir(path).unwrap().count(), 0));
    }
    let mut foreign = asking_for(&reference, one);
    foreign.insert("containerd.io/snapshot/remote/stargz.digest".into(), other[0].digest().to_string());
    asker.prepare_with("foreign", "", foreign).unwrap();
    assert!(asker.node.mounts().is_empty() && mount_points_below(&asker.node.snapshots()).is_empty());
    registry.stop();
    asker.prepare_with("silent", "", asking_for(&reference, one)).unwrap();
}

/// Where a model's weights begin in its layer: after the headers of a folder and of themselves.
const WEIGHTS_AT: u64 = 1024;

/// A model's image whose index names the weights by `name`, and their chunks as those of `weights`.
fn indexed(layers: &[Layer], name: &str, weights: Vec<u8>) -> Artifact {
    bound::pin(&image(layers), &[(File::new(name, weights), WEIGHTS_AT)])
}

#[test]
fn no_index_of_another_image_says_what_a_layers_names_and_bytes_are() {
    let (asker, layers, right) = (Asker::new(), model(1), bytes(0, 3 << 20));
    let (evil, good) = (Registry::start(), Registry::start());
    let mut wrong = right.clone();
    wrong[77] = !wrong[77];
    evil.push("acme/image", "v1", &indexed(&layers, "models/other.bin", wrong.clone()));
    evil.corrupt(&layers[0].digest().to_string(), WEIGHTS_AT + 77);
    good.push("acme/image", "v1", &indexed(&layers, "models/0.bin", right.clone()));
    good.push("acme/plain", "v1", &image(&layers));
    let chosen = had(&asker, &evil.reference("acme/image:v1"), &layers);
    let mounts = asker.prepare("chosen", &chosen).unwrap();
    let mounted = Mounted::new(&asker.node, &mounts);
    let first = fs::File::open(mounted.0.join("models/0.bin")).expect("names are the archive's");
    let first = support_read::range(&first, 0, 4096);
    assert!(first.is_err() || first.is_ok_and(|bytes| bytes == wrong[..4096]), "its own index, or nothing");
    // As containerd asks in another of its namespaces, where it does not know the snapshot by its chain.
    for (key, other) in [("bound", "acme/image:v1"), ("plain", "acme/plain:v1")] {
        let asked = asker.prepare_with(key, "", asking_for(&good.reference(other), &layers));
        let mounts = asked.expect("an ordinary snapshot, whose layers containerd downloads");
        asker.within(&mounts, |path| assert_eq!(fs::read_dir(path).unwrap().count(), 0));
    }
    // Once all of it is here it is no secret what it is.
    wait::until("the forged layer is given up", SOON, || {
        fs::read(mounted.0.join("models/0.bin")).is_err_and(|error| error.raw_os_error() == Some(EIO))
    });
}

#[test]
fn images_whose_index_is_the_same_are_one_snapshot_where_they_are_in_one_registry() {
    let (asker, layers) = (Asker::new(), model(1));
    let registries = [Registry::start(), Registry::start()];
    let artifact = indexed(&layers, "models/0.bin", bytes(0, 3 << 20));
    for (registry, repository) in [(0, "acme/image"), (0, "acme/other"), (1, "acme/image")] {
        registries[registry].push(repository, "v1", &artifact);
    }
    let tops =
        ["acme/image:v1", "acme/other:v1"].map(|image| had(&asker, &registries[0].reference(image), &layers));
    assert_eq!(tops[0], tops[1]);
    assert_eq!(asker.node.mounts().len(), 1);
    asker.shows(&tops[0], |path| {
        assert!(fs::read(path.join("models/0.bin")).unwrap() == bytes(0, 3 << 20));
    });
    // Its headers are another's word.
    let asked = asking_for(&registries[1].reference("acme/image:v1"), &layers);
    let mounts = asker.prepare_with("elsewhere", "", asked).expect("an ordinary snapshot");
    asker.within(&mounts, |path| assert_eq!(fs::read_dir(path).unwrap().count(), 0));
}

#[test]
fn a_killed_mount_comes_back_for_the_next_container() {
    let (asker, layers) = (Asker::new(), model(1));
    let (_registry, reference) = pushed(&layers);
    let asked = asking_as_kubernetes(&reference, &layers);
    assert_eq!(code(asker.prepare_with("extract", "", asked)), Code::AlreadyExists);
    let top = named(&asker, &layers, "");
    let pid = asker.node.mounts()[0]["pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
    let mounts = asker.prepare("container", &top).unwrap();
    asker.within(&mounts, |path| {
        assert!(fs::read(path.join("models/0.bin")).unwrap() == bytes(0, 3 << 20));
    });
}
