//! `mount`, `unmount` and `list` by way of the plane, its pages, its configuration.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;

use nix::sys::signal::{Signal, kill};
use serde_json::json;

use super::{WEIGHTS, assert_right, registry};
use crate::support::canary;
use crate::support::http;
use crate::support::node::{Node, SOON};
use crate::support::place::is_running;
use crate::support::registry::{BASIC, PASSWORD, Registry};
use crate::support::scratch::{self, mount_points_below};
use crate::support::wait;

fn parent(pid: nix::unistd::Pid) -> i32 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_mount_by_way_of_the_plane_is_read_listed_and_taken_away_like_any_other() {
    let (registry, node) = (registry(1..=1), Node::start());
    let dir = node.dir("a");
    let said = node.mount(&registry.reference("models/1:v1"), &dir).json();
    assert_eq!(said["dir"], json!(dir));
    assert_right(&dir, 1);
    let row = node.listed(&dir).unwrap();
    assert_eq!(
        (&row["reference"], &row["digest"]),
        (&json!(registry.reference("models/1:v1")), &said["digest"])
    );
    node.place.run([std::ffi::OsStr::new("verify"), dir.as_os_str()]).ok();
    let pid = node.server(&dir);
    assert_eq!(parent(pid), node.pid().as_raw(), "the plane has started it");
    node.unmount(&dir).ok();
    assert!(mount_points_below(node.place.folder("").as_path()).is_empty());
    Node::await_end(pid);
    assert!(dir.is_dir(), "the folder is who mounted's");
    node.unmount(&dir).failed(3, &["nothing is mounted"]);
    wait::until("nothing is noted", SOON, || node.mounts().is_empty());
}

#[test]
fn folders_that_show_one_model_share_a_process_and_what_was_fetched() {
    let (registry, node) = (registry(1..=1), Node::start());
    let reference = registry.reference("models/1:v1");
    let dirs: Vec<_> = (0..20).map(|number| node.dir(&format!("d{number}"))).collect();
    std::thread::scope(|scope| {
        for dir in &dirs {
            scope.spawn(|| node.mount(&reference, dir));
        }
    });
    dirs.iter().for_each(|dir| assert_right(dir, 1));
    let devices: Vec<u64> = dirs.iter().map(|dir| fs::metadata(dir).unwrap().dev()).collect();
    assert!(devices.iter().all(|device| *device == devices[0]), "one superblock");
    let fetched = registry.settled();
    assert!(fetched < WEIGHTS as u64 * 11 / 10 + 100_000, "{fetched} bytes for one model of {WEIGHTS}");
    assert_eq!(node.mounts().len(), 1);
    let pid = node.server(&dirs[0]);
    for dir in &dirs[1..] {
        node.unmount(dir).ok();
    }
    assert_right(&dirs[0], 1);
    assert!(is_running(pid), "the last folder still shows it");
    node.unmount(&dirs[0]).ok();
    Node::await_end(pid);
}

#[test]
fn who_holds_all_connections_to_the_pages_and_says_nothing_is_let_go() {
    let node = Node::on_loopback();
    let mut silent: Vec<_> = (0..70).map(|_| node.silence()).collect();
    // There is no place for this one before others have lost theirs.
    assert_eq!(node.get("/healthz").unwrap().status, 200);
    silent[0].set_read_timeout(Some(SOON)).unwrap();
    assert_eq!(silent[0].read(&mut [0]).unwrap(), 0, "closed");
    assert_eq!(node.get("/metrics").unwrap().header("connection"), Some("close"));
}

#[test]
fn other_settings_make_another_process_and_those_of_the_plane_itself_do_not() {
    let (registry, node) = (registry(1..=1), Node::start());
    let reference = registry.reference("models/1:v1");
    let (plain, masked, same) = (node.dir("plain"), node.dir("masked"), node.dir("same"));
    node.mount(&reference, &plain);
    node.try_mount(&reference, &masked, &["--umask", "077"]).ok();
    let store = node.place.store();
    node.try_mount(&reference, &same, &["--store", store.to_str().unwrap()]).ok();
    assert_eq!(fs::metadata(plain.join("config.json")).unwrap().mode() & 0o777, 0o444);
    assert_eq!(fs::metadata(masked.join("config.json")).unwrap().mode() & 0o777, 0o400);
    assert_ne!(node.server(&plain), node.server(&masked));
    assert_eq!(node.server(&plain), node.server(&same));
}

#[test]
fn a_folder_in_use_is_left_alone_unless_it_is_taken_away_lazily() {
    let (registry, node) = (registry(1..=1), Node::start());
    let dir = node.dir("a");
    node.mount(&registry.reference("models/1:v1"), &dir);
    let open = fs::File::open(dir.join("weights.bin")).unwrap();
    node.unmount(&dir).failed(10, &["in use"]);
    assert_right(&dir, 1);
    let mut command = node.place.command();
    command.arg("unmount").arg(&dir).arg("--lazy");
    node.place.finish(command, SOON).ok();
    let mut last = [0; 100];
    std::os::unix::fs::FileExt::read_exact_at(&open, &mut last, WEIGHTS as u64 - 100).unwrap();
    assert_eq!(last, crate::support::artifacts::bytes(1, WEIGHTS)[WEIGHTS - 100..]);
}

#[test]
fn what_cannot_be_mounted_is_said_with_its_cause_and_leaves_nothing() {
    let (registry, node) = (registry(1..=1), Node::start());
    let dir = node.dir("a");
    node.try_mount(&registry.reference("models/2:v1"), &dir, &[]).failed(3, &["models/2:v1"]);
    node.try_mount("127.0.0.1:1/models/1:v1", &dir, &["--read-deadline", "1s"]).failed(5, &["127.0.0.1:1"]);
    fs::write(dir.join("mine"), "").unwrap();
    node.try_mount(&registry.reference("models/1:v1"), &dir, &[]).failed(10, &["not empty"]);
    wait::until("nothing is noted", SOON, || node.mounts().is_empty());
    assert_eq!(node.metric("weightfs_failed_publishes_total"), 2);
}

#[test]
fn the_control_socket_is_its_owners_alone_and_there_is_one_plane_for_a_state_folder() {
    let node = Node::start();
    let socket = fs::metadata(node.place.state().join("control.sock")).unwrap();
    assert!(socket.file_type().is_socket());
    assert_eq!(socket.mode() & 0o777, 0o600);
    node.place.run(["serve"]).failed(10, &["another 'weightfs serve'"]);
    node.place.run(["serve", "--metrics", "0.0.0.0:1"]).failed(2, &["0.0.0.0"]);
}

#[test]
fn the_pages_show_metrics_health_and_mounts_and_no_more() {
    let (registry, node) = (registry(1..=2), Node::on_loopback());
    let (first, second) = (node.dir("a"), node.dir("b"));
    node.mount(&registry.reference("models/1:v1"), &first);
    node.mount(&registry.reference("models/2:v1"), &second);
    assert_right(&first, 1);
    assert_right(&second, 2);
    assert_eq!(node.get("/healthz").unwrap().status, 200);
    assert_eq!(node.get("/readyz").unwrap().status, 200);
    assert_eq!(node.get("/elsewhere").unwrap().status, 404);
    assert_eq!((node.metric("weightfs_mounts"), node.metric("weightfs_answering_mounts")), (2, 2));
    assert_eq!((node.metric("weightfs_volumes"), node.metric("weightfs_abnormal_volumes")), (2, 0));
    let both = node.metric("weightfs_fetched_bytes_total");
    assert!(both >= 2 * WEIGHTS as u64, "{both}");
    let mounts = node.mounts();
    assert_eq!(mounts[0]["volumes"][0]["dir"], json!(first));
    node.unmount(&first).ok();
    wait::until("one mount is left", SOON, || node.metric("weightfs_mounts") == 1);
    assert!(node.metric("weightfs_fetched_bytes_total") >= both, "what was counted stays counted");
    let reply = node.get("/metrics").unwrap();
    let text = String::from_utf8(http::unchunked(&reply)).unwrap();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        assert!(text.contains(&format!("# TYPE {name} ")), "{name} has a type");
    }
}

#[test]
fn credentials_in_a_variable_of_who_mounts_are_used_and_not_noted_among_settings() {
    let (registry, node) = (Registry::with_password(), Node::start());
    registry.push("models/1", "v1", &super::model(1));
    let mount = |name: &str, password: &str| {
        let mut command = node.place.command();
        command.args(["mount", &registry.reference("models/1:v1")]).arg(node.dir(name));
        command.env("WEIGHTFS_REGISTRY_AUTH", format!("{}=reader:{password}", registry.host()));
        node.place.finish(command, SOON)
    };
    mount("wrong", canary::PASSWORD).failed(4, &[]);
    mount("right", PASSWORD).ok();
    assert_right(&node.target("right"), 1);
    assert!(node.listed(&node.target("right")).is_some(), "by way of the plane");
    for folder in ["mounts", "volumes"] {
        let noted = fs::read_dir(node.place.state().join("node").join(folder)).unwrap();
        let noted: Vec<String> =
            noted.map(|file| fs::read_to_string(file.unwrap().path()).unwrap()).collect();
        assert_eq!(noted.len(), 1);
        assert!(!noted[0].contains(PASSWORD) && !noted[0].contains(BASIC), "{folder}");
    }
}

#[test]
fn a_configuration_that_can_be_meant_counts_from_the_signal_on_and_another_never() {
    let (registry, mut node) = (registry(1..=3), Node::start());
    let file = node.place.folder("config/weightfs").join("config.toml");
    let reference = |number: u64| registry.reference(&format!("models/{number}:v1"));
    let mode = |dir: &std::path::Path| fs::metadata(dir.join("config.json")).unwrap().mode() & 0o777;
    let reload = |node: &Node, counted: &str| {
        kill(node.pid(), Signal::SIGHUP).unwrap();
        let output = node.place.folder("").join("run-plane-1.err");
        wait::until(counted, SOON, || fs::read_to_string(&output).unwrap().contains(counted));
    };
    fs::write(&file, "[mount]\numask = \"077\"\n").unwrap();
    let before = node.dir("before");
    node.mount(&reference(1), &before);
    assert_eq!(mode(&before), 0o444, "nobody has told the plane");
    reload(&node, "read anew");
    let after = node.dir("after");
    node.mount(&reference(2), &after);
    assert_eq!(mode(&after), 0o400);
    fs::write(&file, "[mount]\numask = \"999\"\n").unwrap();
    reload(&node, "the former configuration counts on");
    let third = node.dir("third");
    fs::remove_file(&file).unwrap();
    node.mount(&reference(3), &third);
    assert_eq!(mode(&third), 0o400);
    assert_eq!(node.stop(), Some(0));
}

#[test]
fn a_service_manager_is_told_of_the_plane_and_hears_nothing_of_its_mounts() {
    let (registry, folder) = (registry(1..=1), scratch::short());
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let told = || {
        let mut text = [0; 200];
        let len = manager.recv(&mut text).unwrap();
        String::from_utf8_lossy(&text[..len]).split('\n').next().unwrap().to_owned()
    };
    let mut node = Node::with_manager(&path);
    assert_eq!(told(), "READY=1");
    let dir = node.dir("a");
    node.mount(&registry.reference("models/1:v1"), &dir);
    let environment = fs::read(format!("/proc/{}/environ", node.server(&dir))).unwrap();
    assert!(!String::from_utf8_lossy(&environment).contains("NOTIFY_SOCKET"));
    kill(node.pid(), Signal::SIGHUP).unwrap();
    assert_eq!((told(), told()), ("RELOADING=1".to_owned(), "READY=1".to_owned()));
    assert_eq!(node.stop(), Some(0));
    assert_eq!(told(), "STOPPING=1");
}

/// How many bytes a process of user `uid` is sent at `socket` when it says `question`; `None` where it may not even connect.
fn heard_by(uid: u32, socket: &std::path::Path, question: &str) -> Option<usize> {
    const TALK: &str = "$SIG{PIPE} = 'IGNORE'; use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0) or exit 200; \
        connect(S, sockaddr_un($ARGV[0])) or exit 201; syswrite(S, $ARGV[1]); \
        my $n = sysread(S, my $b, 100); exit(defined $n ? $n : 0);";
    let mut talk = std::process::Command::new("perl");
    talk.args(["-e", TALK]).arg(socket).arg(question).uid(uid).gid(uid).current_dir("/");
    let code = talk.status().unwrap().code().unwrap();
    assert_ne!(code, 200);
    (code != 201).then_some(code as usize)
}

#[test]
fn another_user_is_turned_away_even_where_the_sockets_can_be_reached() {
    const NOBODY: u32 = 65534;
    let (node, _client) = Node::for_pods();
    let control = node.place.state().join("control.sock");
    let open = |path: &std::path::Path, mode: u32| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    assert_eq!(heard_by(NOBODY, &control, ""), None);
    assert_eq!(heard_by(NOBODY, &node.csi(), ""), None);
    for path in [node.place.folder(""), node.place.state(), node.place.folder("csi")] {
        open(&path, 0o755);
    }
    for socket in [&control, &node.csi()] {
        open(socket, 0o666);
    }
    // The beginning of HTTP/2, which a server answers with its settings.
    let http = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let list = "{\"do\":\"list\"}\n";
    for (socket, question) in [(&control, list), (&node.csi(), http)] {
        assert!(heard_by(0, socket, question).unwrap() > 0, "root is answered at {}", socket.display());
        assert_eq!(heard_by(NOBODY, socket, question), Some(0), "nobody is not at {}", socket.display());
    }
}
