//! What the plane is run with as a service: units that systemd understands, and a confinement that the plane can work in.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{assert_right, registry};
use crate::support::node::{Node, SOON};
use crate::support::place::PROGRAM;
use crate::support::registry::Registry;
use crate::support::wait;

/// What gives a service mounts of its own (systemd.exec(5)), so that nobody else sees what it mounts.
const CONCEALING: [&str; 18] = [
    "PrivateMounts",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateUsers",
    "PrivatePIDs",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "BindPaths",
    "RootDirectory",
    "MountFlags",
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/systemd")
}

/// The settings of a unit, in order.
fn settings(unit: &str) -> Vec<(String, String)> {
    let text = fs::read_to_string(folder().join(unit)).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with(['#', ';']));
    let settings = lines.filter_map(|line| line.split_once('='));
    settings.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn value(unit: &str, name: &str) -> String {
    let last = settings(unit).into_iter().rfind(|(found, _)| found == name);
    last.unwrap_or_else(|| panic!("{unit} has no {name}=")).1
}

#[test]
fn systemd_understands_the_units_and_nothing_in_them_hides_mounts() {
    let copies = tempfile::tempdir().unwrap();
    let units = ["weightfs.service", "weightfs.socket", "weightfs-csi.socket"];
    for unit in units {
        // The program that is there.
        let text = fs::read_to_string(folder().join(unit)).unwrap().replace("/usr/bin/weightfs", PROGRAM);
        fs::write(copies.path().join(unit), text).unwrap();
    }
    let mut verify = Command::new("systemd-analyze");
    verify.arg("verify").args(units.map(|unit| copies.path().join(unit)));
    let said = verify.output().expect("systemd; run tools/test, which installs it");
    // Before version 253 one of the two types is not known, as the unit says.
    let said_of_us = String::from_utf8_lossy(&said.stderr).into_owned();
    let wrong: Vec<&str> = said_of_us.lines().filter(|line| line.contains("weightfs")).collect();
    let wrong: Vec<&&str> = wrong.iter().filter(|line| !line.contains("notify-reload")).collect();
    assert!(said.status.success() && wrong.is_empty(), "{said_of_us}");
    let concealing: Vec<_> =
        settings(units[0]).into_iter().filter(|(name, _)| CONCEALING.contains(&&**name)).collect();
    assert!(concealing.is_empty(), "{concealing:?}");
    assert_eq!(value(units[0], "KillMode"), "process");
    assert_eq!(value(units[0], "ExecStart"), "/usr/bin/weightfs serve");
}

#[test]
fn the_sockets_have_the_names_that_the_plane_knows_and_the_places_where_it_is_looked_for() {
    use weightfs::serve::inherited::{CONTROL, CSI};
    for (unit, name, place) in [
        ("weightfs.socket", CONTROL, "/run/weightfs/control.sock"),
        ("weightfs-csi.socket", CSI, "/var/lib/kubelet/plugins/model.csi.modelpack.org/csi.sock"),
    ] {
        assert_eq!(value(unit, "FileDescriptorName"), name);
        assert_eq!(value(unit, "ListenStream"), place);
        assert_eq!(value(unit, "SocketMode"), "0600");
        assert_eq!(value(unit, "Service"), "weightfs.service");
    }
}

#[test]
fn the_folders_that_are_made_at_boot_are_those_of_root_and_private() {
    let environment = weightfs::config::Environment { root: true, ..Default::default() };
    let settings = weightfs::config::Settings::defaults(&environment);
    let text = fs::read_to_string(folder().join("weightfs.tmpfiles")).unwrap();
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    let made: Vec<Vec<&str>> = rows.map(|row| row.split_whitespace().collect()).collect();
    let folders = [settings.state.live, settings.state.logs, settings.store.folder];
    assert_eq!(made.len(), folders.len());
    for (row, folder) in made.iter().zip(&folders) {
        assert_eq!(row[0], "d");
        assert_eq!(Path::new(row[1]), folder);
        assert_eq!(row[2..5], ["0700", "root", "root"]);
    }
}

#[test]
fn a_plane_with_no_more_rights_than_the_service_has_mounts_and_hands_files_to_the_kernel() {
    let unit = "weightfs.service";
    let kept = value(unit, "CapabilityBoundingSet").to_lowercase().replace("cap_", "+");
    let bounding = format!("--bounding-set=-all,{}", kept.replace(' ', ","));
    assert_eq!(value(unit, "NoNewPrivileges"), "yes");
    let registry = registry(1..=1);
    let confined = ["setpriv", "--no-new-privs", "--inh-caps=-all", &bounding];
    let confined = Node::by(&confined, &[], |_| {});
    let status = fs::read_to_string(format!("/proc/{}/status", confined.pid())).unwrap();
    let said =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!(said("NoNewPrivs:"), "1");
    let rights = u64::from_str_radix(&said("CapEff:"), 16).unwrap();
    assert_eq!(rights.count_ones() as usize, kept.split(' ').count(), "{status}");
    assert_eq!(passes_through(&registry, &confined), passes_through(&registry, &Node::start()));
}

/// Whether files of a model that is here as a whole are served by the kernel itself.
fn passes_through(registry: &Registry, node: &Node) -> bool {
    let dir = node.dir("a");
    node.mount(&registry.reference("models/1:v1"), &dir);
    let opens = |how: &str| node.metric(&format!("weightfs_{how}_total"));
    let asked = ["passthrough_opens", "denied_passthroughs", "stacked_passthroughs", "unknown_passthroughs"];
    wait::until("the kernel is asked whether it takes a file", SOON, || {
        assert_right(&dir, 1);
        asked.iter().any(|how| opens(how) > 0)
    });
    opens("passthrough_opens") > 0
}
