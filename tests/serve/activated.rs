//! A plane that inherits its sockets, as from systemd: it answers there, and leaves them when it ends.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Child;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{assert_right, registry};
use crate::support::csi::{Client, volume};
use crate::support::http;
use crate::support::node::{Node, SOON};
use crate::support::place::Place;
use crate::support::wait;

/// Becomes the plane with what its three usual descriptors are at the numbers from 3 on, and with the same process number.
const INHERIT: &str = r#"exec 3<&0 4<&1 5<&2 </dev/null >>"$LOG" 2>&1
export LISTEN_PID=$$ LISTEN_FDS=3
exec "$0" serve --node-id node-1"#;

/// A place whose sockets are listened at by the test, as by a service manager.
struct Manager {
    place: Place,
    control: UnixListener,
    csi: UnixListener,
    pages: UnixListener,
}

impl Manager {
    fn new() -> Self {
        let place = Place::new();
        fs::DirBuilder::new().mode(0o700).create(place.state()).unwrap();
        let at = |path: PathBuf| UnixListener::bind(path).unwrap();
        let folder = place.folder("sockets");
        let control = at(place.state().join("control.sock"));
        let (csi, pages) = (at(folder.join("csi.sock")), at(folder.join("pages.sock")));
        Self { place, control, csi, pages }
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.place.folder("sockets").join(name)
    }

    fn log(&self) -> PathBuf {
        // By this name the place looks through it for secrets.
        self.place.folder("").join("run-plane.err")
    }

    /// Starts a plane that inherits these as `names`.
    fn start_with(&self, names: &str, sockets: [OwnedFd; 3]) -> Child {
        let mut command = self.place.command_by(&["sh", "-c", INHERIT]);
        let [first, second, third] = sockets;
        command.env("LOG", self.log()).env("LISTEN_FDNAMES", names);
        command.stdin(first).stdout(second).stderr(third).spawn().unwrap()
    }

    fn start(&self) -> Child {
        let copy = |socket: &UnixListener| OwnedFd::from(socket.try_clone().unwrap());
        let sockets = [copy(&self.pages), copy(&self.csi), copy(&self.control)];
        let plane = self.start_with("metrics:csi:control", sockets);
        wait::until("the plane is ready", SOON, || {
            http::get_at(&self.socket("pages.sock"), "/readyz").is_ok_and(|reply| reply.status == 200)
        });
        plane
    }
}

fn stop(mut plane: Child) {
    kill(Pid::from_raw(plane.id().try_into().unwrap()), Signal::SIGTERM).unwrap();
    assert_eq!(wait::ended(&mut plane, SOON).and_then(|status| status.code()), Some(0));
}

#[test]
fn a_plane_answers_at_the_sockets_that_it_inherits_and_leaves_them_to_the_next() {
    let (registry, manager) = (registry(1..=1), Manager::new());
    let place = &manager.place;
    let plane = manager.start();
    let pods = place.folder("pods").canonicalize().unwrap();
    let (dir, target) = (pods.join("dir"), pods.join("target"));
    fs::create_dir(&dir).unwrap();
    let reference = registry.reference("models/1:v1");
    place.run(["mount", &reference, dir.to_str().unwrap()]).ok();
    assert_right(&dir, 1);
    Client::connect(&manager.socket("csi.sock")).publish(volume("csi-1", &target, &reference)).unwrap();
    assert_right(&target, 1);
    stop(plane);

    // Nobody accepts now, and nobody is turned away.
    let mut early = UnixStream::connect(place.state().join("control.sock")).unwrap();
    early.write_all(b"{\"do\":\"list\"}\n").unwrap();
    early.set_read_timeout(Some(SOON)).unwrap();
    let plane = manager.start();
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert_eq!(answer.matches("\"trouble\":null").count(), 2, "{answer}");
    place.run(["unmount", dir.to_str().unwrap()]).ok();
    assert_right(&target, 1);
    stop(plane);

    // The mount that is left has none of them.
    let paths =
        [place.state().join("control.sock"), manager.socket("csi.sock"), manager.socket("pages.sock")];
    let Manager { place: _place, control, csi, pages } = manager;
    drop((control, csi, pages));
    for path in paths {
        assert!(UnixStream::connect(&path).is_err(), "somebody still listens at {}", path.display());
    }
}

#[test]
fn a_plane_says_where_it_is_asked_whoever_has_made_the_socket() {
    // It listens before it says so.
    let says = |log: PathBuf, place: PathBuf| {
        let line = format!("serving at {}\n", place.display());
        wait::until(&line, SOON, || fs::read_to_string(&log).unwrap().contains(&line));
    };
    let manager = Manager::new();
    let plane = manager.start();
    says(manager.log(), manager.place.state().join("control.sock"));
    stop(plane);
    let node = Node::start();
    says(node.place.folder("").join("run-plane-1.err"), node.place.state().join("control.sock"));
}

#[test]
fn what_is_inherited_and_cannot_be_meant_ends_the_plane_with_its_name() {
    let manager = Manager::new();
    let own = |socket: &UnixListener| OwnedFd::from(socket.try_clone().unwrap());
    let sockets = || [own(&manager.control), own(&manager.csi), own(&manager.pages)];
    let everywhere = || OwnedFd::from(TcpListener::bind("0.0.0.0:0").unwrap());
    let file = || OwnedFd::from(File::open("/dev/null").unwrap());
    for (names, inherited, said) in [
        ("control:csi:web", sockets(), "\"web\""),
        ("control:csi", sockets(), "\"unknown\""),
        ("control:csi:control", sockets(), "two sockets"),
        (
            "control:csi:metrics",
            [own(&manager.control), own(&manager.csi), everywhere()],
            "reached from elsewhere",
        ),
        ("control:csi:metrics", [own(&manager.control), own(&manager.csi), file()], "\"metrics\""),
    ] {
        let mut plane = manager.start_with(names, inherited);
        let code = wait::ended(&mut plane, SOON).and_then(|status| status.code());
        let log = fs::read_to_string(manager.log()).unwrap();
        assert_eq!(code, Some(2), "{names}: {log}");
        assert!(log.contains(said), "{names}: {log}");
        fs::remove_file(manager.log()).unwrap();
    }
}
