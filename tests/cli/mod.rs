//! The program as it is typed: what each command prints, and how it fails.

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::heavy;
use crate::support::pack::{self, Artifact, Dialect, Packing};
use crate::support::place::{PROGRAM, Place, Ran};
use crate::support::registry::{BASIC, PASSWORD, Registry};
use crate::support::sample::{REPOSITORY, sample};
use crate::support::wait;

/// `a.bin` of this many bytes, each with the low bits of its place.
const SIZE: usize = (1 << 20) + 10;

fn files() -> [pack::File; 3] {
    let bytes: Vec<u8> = (0..SIZE).map(|n| n as u8).collect();
    [
        pack::File::new("config.json", "{}"),
        pack::File::new("sub/deep/notes.md", "# notes"),
        pack::File::new("weights/a.bin", bytes),
    ]
}

fn artifact(packing: Packing, dialect: Dialect) -> Artifact {
    pack::pack(&files(), packing, dialect, Path::new("/nowhere"))
}

fn pushed() -> (Registry, Place, Artifact) {
    let (registry, artifact) = (Registry::start(), artifact(Packing::Raw, Dialect::Upstream));
    registry.push("acme/llm", "v1", &artifact);
    (registry, Place::new(), artifact)
}

/// The place with credentials for `registry` in docker's `config.json`.
fn log_in(place: &Place, registry: &Registry, basic: &str) {
    let config = json!({"auths": {registry.host(): {"auth": basic}}});
    fs::write(place.docker().join("config.json"), config.to_string()).unwrap();
}

fn paths(list: &Value) -> Vec<String> {
    let entries = list.as_array().unwrap_or_else(|| panic!("an array: {list}"));
    entries
        .iter()
        .map(|entry| entry["path"].as_str().unwrap_or_else(|| panic!("a path: {entry}")).to_owned())
        .collect()
}

#[test]
fn ls_names_every_file_with_its_size() {
    let (registry, place, _) = pushed();
    let reference = registry.reference("acme/llm:v1");
    let list = place.run(["ls", &reference, "--json"]).ok().json();
    let paths = paths(&list);
    for file in files() {
        let at = paths
            .iter()
            .position(|path| *path == file.path)
            .unwrap_or_else(|| panic!("{} in {list}", file.path));
        assert_eq!(list[at]["size"].as_u64(), Some(file.content.size()), "{list}");
    }
    let text = place.run(["ls", &reference]).ok().stdout;
    assert!(text.contains("config.json") && text.contains("a.bin"), "{text}");
}

#[test]
fn ls_of_a_folder_names_what_is_in_it_and_of_nothing_is_not_found() {
    let (registry, place, _) = pushed();
    let reference = registry.reference("acme/llm:v1");
    let inside = place.run(["ls", &reference, "weights", "--json"]).ok().stdout;
    assert!(inside.contains("a.bin") && !inside.contains("config.json"), "{inside}");
    place.run(["ls", &reference, "nothing"]).failed(3, &["nothing"]);
}

#[test]
fn ls_of_a_tar_fetches_headers_and_not_files() {
    let (registry, place) = (Registry::start(), Place::new());
    let big = [pack::File::new("big.bin", vec![1; 8 << 20])];
    registry.push("acme/llm", "tar", &pack::pack(&big, Packing::Tar, Dialect::Seed, Path::new("/nowhere")));
    let list = place.run(["ls", &registry.reference("acme/llm:tar"), "--json"]).ok().json();
    assert_eq!(paths(&list), ["big.bin"]);
    assert!(registry.settled() < 1 << 20, "{} bytes for a list", registry.fetched());
}

#[test]
fn cat_writes_a_file_or_a_range_of_it() {
    let (registry, place, _) = pushed();
    let reference = registry.reference("acme/llm:v1");
    assert_eq!(place.run(["cat", &reference, "sub/deep/notes.md"]).ok().stdout, "# notes");
    assert_eq!(place.run(["cat", &reference, "sub/deep/notes.md", "--range", "2-4"]).ok().stdout, "not");
    place.run(["cat", &reference, "nothing"]).failed(3, &["nothing"]);
    place.run(["cat", &reference, "weights"]).failed(2, &["weights"]);
    place.run(["cat", &reference, "config.json", "--range", "9-1"]).failed(2, &["9-1"]);
}

#[test]
fn cat_writes_bytes_as_they_are() {
    let (registry, place, _) = pushed();
    let mut command = place.command();
    command.args(["cat", &registry.reference("acme/llm:v1"), "weights/a.bin"]).stdout(Stdio::piped());
    let output = command.output().unwrap();
    assert!(output.status.success());
    assert!(output.stdout.iter().enumerate().all(|(n, byte)| *byte == n as u8));
    assert_eq!(output.stdout.len(), SIZE);
}

#[test]
fn cat_into_a_closed_pipe_ends_quietly() {
    let (registry, place, _) = pushed();
    let mut command = place.command();
    command.args(["cat", &registry.reference("acme/llm:v1"), "weights/a.bin"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert!(wait::ended(&mut child, Duration::from_secs(20)).is_some());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().unwrap(), &mut said).unwrap();
    assert!(!said.contains("panicked"), "{said}");
}

#[test]
fn inspect_tells_digest_layers_and_metadata_of_every_dialect() {
    let (registry, place) = (Registry::start(), Place::new());
    for (tag, dialect) in [("new", Dialect::Upstream), ("old", Dialect::Legacy), ("flat", Dialect::Seed)] {
        let packing = if dialect == Dialect::Seed { Packing::Tar } else { Packing::Raw };
        let artifact = artifact(packing, dialect);
        registry.push("acme/llm", tag, &artifact);
        let ran = place.run(["inspect", &registry.reference(&format!("acme/llm:{tag}")), "--json"]).ok();
        let facts = ran.json();
        assert_eq!(facts["digest"].as_str(), Some(artifact.digest().as_str()), "{facts}");
        assert_eq!(facts["layers"].as_array().map(Vec::len), Some(3), "{facts}");
        for word in ["transformer", "safetensors", "bfloat16"] {
            assert!(ran.stdout.contains(word), "{tag} lacks {word}: {facts}");
        }
    }
}

#[test]
fn a_digest_in_the_reference_pins_what_is_mounted() {
    let (registry, place, artifact) = pushed();
    let digest = artifact.digest();
    let ran = place.mount(&registry.reference(&format!("acme/llm@{digest}")), &["--json"]);
    assert_eq!(ran.json()["digest"].as_str(), Some(digest.as_str()), "{ran:?}");
    place.unmount();
    let wrong = registry.reference(&format!("acme/llm:v1@sha256:{}", "0".repeat(64)));
    let ran = place.try_mount(&wrong, &[]);
    assert!([3, 6].contains(&ran.code), "{ran:?}");
}

#[test]
fn a_tag_that_moves_does_not_change_a_mount() {
    let (registry, place, artifact) = pushed();
    let reference = registry.reference("acme/llm:v1");
    place.mount(&reference, &[]);
    let other = pack::pack(
        &[pack::File::new("config.json", "[1]")],
        Packing::Raw,
        Dialect::Upstream,
        Path::new("/nowhere"),
    );
    registry.push("acme/llm", "v1", &other);
    assert_eq!(fs::read_to_string(place.path("config.json")).unwrap(), "{}");
    assert_eq!(place.status()["digest"].as_str(), Some(artifact.digest().as_str()));
    place.unmount();
    place.mount(&reference, &[]);
    assert_eq!(fs::read_to_string(place.path("config.json")).unwrap(), "[1]");
}

#[test]
fn list_tells_of_each_mount_what_it_is_and_how_far() {
    let (registry, place, artifact) = pushed();
    assert_eq!(place.run(["list", "--json"]).ok().json(), json!([]));
    let reference = registry.reference("acme/llm:v1");
    place.mount(&reference, &["--warm", "all"]);
    place.wait_until_complete();
    let status = place.status();
    assert_eq!(status["reference"].as_str(), Some(reference.as_str()), "{status}");
    assert_eq!(status["digest"].as_str(), Some(artifact.digest().as_str()), "{status}");
    assert_eq!(status["total"].as_u64(), Some(artifact.layer_bytes()), "{status}");
    assert_eq!(status["poisoned"], json!([]), "{status}");
    let text = place.run(["list"]).ok().stdout;
    assert!(text.contains(place.dir().to_str().unwrap()) && text.contains("verified"), "{text}");
    place.kill();
    assert_eq!(place.status()["standing"], "dead");
    place.run(["unmount", place.dir().to_str().unwrap()]).ok();
    assert_eq!(place.run(["list", "--json"]).ok().json(), json!([]));
    assert!(!place.is_mounted());
}

#[test]
fn a_mount_in_the_background_lets_go_of_the_callers_output_and_folder() {
    let (registry, place, _) = pushed();
    let mut command = place.command();
    command.args(["mount", &registry.reference("acme/llm:v1")]).arg(place.dir());
    let folder = place.folder("elsewhere");
    command.current_dir(&folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert!(wait::ended(&mut child, Duration::from_secs(30)).unwrap().success());
    let output = std::thread::spawn(move || child.wait_with_output().unwrap());
    wait::until("the pipes are closed", Duration::from_secs(5), || output.is_finished());
    assert!(place.is_mounted());
    let home = fs::read_link(format!("/proc/{}/cwd", place.pid())).unwrap();
    assert_ne!(home, folder, "the process stands in the caller's folder");
}

#[test]
fn a_mount_in_the_background_keeps_no_descriptor_of_the_callers() {
    let (registry, place, _) = pushed();
    let lock = place.folder("elsewhere").join("lock");
    let mut command = place.command();
    let words =
        ["mount", &registry.reference("acme/llm:v1"), place.dir().to_str().unwrap()].map(str::to_owned);
    // A script that holds a lock by a descriptor, as many do, and mounts.
    let mut script = Command::new("sh");
    script
        .args(["-c", "exec 9>\"$0\"; exec \"$@\""])
        .arg(&lock)
        .arg(command.args(words.clone()).get_program());
    script.args(words).envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(script.stdout(Stdio::null()).status().unwrap().success());
    let open = fs::read_dir(format!("/proc/{}/fd", place.pid())).unwrap();
    let targets: Vec<_> = open.filter_map(|open| fs::read_link(open.ok()?.path()).ok()).collect();
    assert!(!targets.contains(&lock), "{targets:?}");
}

#[test]
fn cat_says_every_time_that_a_files_bytes_are_wrong_and_none_once_they_are_right_again() {
    let (registry, place) = (sample().registry(), Place::new());
    let (reference, name) = (registry.reference(&format!("{REPOSITORY}:raw")), "config.json");
    registry.corrupt(&sample().digest(name), 3);
    for _again in 0..6 {
        let ran = place.run(["cat", &reference, name]);
        ran.failed(6, &["not", "sha256:"]);
    }
    registry.corrupt(&sample().digest(name), 3);
    let ran = place.run(["cat", &reference, name]).ok();
    assert_eq!(ran.stdout, fs::read_to_string(sample().original(name)).unwrap());
}

#[test]
fn a_mount_in_the_foreground_stays_until_it_is_told_and_takes_the_mount_with_it() {
    let (registry, place, _) = pushed();
    let mut command = place.command();
    command.args(["mount", &registry.reference("acme/llm:v1")]).arg(place.dir()).arg("--foreground");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait::until("it answers", Duration::from_secs(30), || place.path("config.json").is_file());
    assert_eq!(place.pid().as_raw(), child.id() as i32);
    nix::sys::signal::kill(place.pid(), nix::sys::signal::Signal::SIGINT).unwrap();
    let status = wait::ended(&mut child, Duration::from_secs(10)).expect("it ends when told");
    assert!(!place.is_mounted(), "{status}");
}

#[test]
fn who_asks_whether_a_file_of_a_mount_is_a_terminal_leaves_nothing_in_its_log() {
    let (registry, place, _) = pushed();
    place.mount(&registry.reference("acme/llm:v1"), &[]);
    let list = place.run(["list", "--json"]).ok().json();
    let log = || fs::read_to_string(list[0]["log"].as_str().expect("a log")).unwrap();
    assert!(!fs::File::open(place.path("config.json")).unwrap().is_terminal());
    assert!(!log().contains("ioctl"), "{}", log());
}

#[test]
fn flags_win_over_the_environment() {
    let (registry, place, _) = pushed();
    let (store, state) = (place.folder("other-store"), place.folder("other-state"));
    let places = ["--store", store.to_str().unwrap(), "--state", state.to_str().unwrap()];
    place.mount(&registry.reference("acme/llm:v1"), &[&places[..], &["--warm", "all"]].concat());
    fs::read(place.path("weights/a.bin")).unwrap();
    assert!(!place.store().exists(), "the store of the environment was used");
    assert_eq!(place.run(["list", "--json"]).ok().json(), json!([]));
    let list = place.run(["list", "--json", "--state", state.to_str().unwrap()]).ok().json();
    assert_eq!(list.as_array().map(Vec::len), Some(1));
    place.run(["unmount", place.dir().to_str().unwrap(), "--state", state.to_str().unwrap()]).ok();
}

#[test]
fn the_store_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let (registry, place, _) = pushed();
    place.mount(&registry.reference("acme/llm:v1"), &["--warm", "all"]);
    assert_eq!(place.store().metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_store_in_which_nothing_can_be_kept_is_said_where_it_was_typed() {
    let (registry, place, _) = pushed();
    let reference = registry.reference("acme/llm:v1");
    let file = place.folder("elsewhere").join("file");
    fs::write(&file, "").unwrap();
    let store = file.join("store");
    let flags = ["--store", store.to_str().unwrap()];
    let ran = place.mount(&reference, &flags);
    assert!(
        ran.stderr.contains("warning: nothing can be kept in") && ran.stderr.contains("--store"),
        "{ran:?}"
    );
    assert_eq!(ran.stderr.lines().count(), 1, "one cause, one line: {ran:?}");
    assert_eq!(fs::read_to_string(place.path("config.json")).unwrap(), "{}");
    place.unmount();
    let ran =
        place.run(["pull", &reference, flags[0], flags[1]]).failed(8, &["nothing can be kept", "--output"]);
    assert_eq!(ran.stderr.lines().count(), 1, "one cause, one line: {ran:?}");
}

#[test]
fn a_mount_of_what_is_kept_says_that_the_registry_was_not_heard() {
    let (mut registry, place, _) = pushed();
    let reference = registry.reference("acme/llm:v1");
    let ran = place.mount(&reference, &["--warm", "all"]);
    assert!(!ran.stdout.contains("kept here"), "{ran:?}");
    place.wait_until_complete();
    place.unmount();
    registry.stop();
    let ran = place.mount(&reference, &[]);
    assert!(
        ran.stdout.contains("opened from what is kept here") && ran.stdout.contains(&registry.host()),
        "{ran:?}"
    );
    place.unmount();
    let json = place.mount(&reference, &["--json"]).json();
    assert!(json["unanswered"].as_str().is_some_and(|why| why.contains(&registry.host())), "{json}");
}

#[test]
fn a_folder_that_others_may_write_to_is_a_failure_of_this_machine() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let folder = place.folder("open");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).unwrap();
    place.run(["list", "--state", folder.to_str().unwrap()]).failed(8, &["others may write"]);
    place.run(["cache", "list", "--store", folder.to_str().unwrap()]).failed(8, &["other users", "--store"]);
}

#[test]
fn a_folder_typed_as_a_path_is_told_how_a_folder_is_written() {
    Place::new().try_mount("./layout:v1", &[]).failed(2, &["oci:./layout:v1"]);
}

#[test]
fn a_place_that_is_taken_is_refused() {
    let (registry, place, _) = pushed();
    let reference = registry.reference("acme/llm:v1");
    fs::write(place.path("mine"), "x").unwrap();
    place.try_mount(&reference, &[]).failed(10, &["not empty"]);
    fs::remove_file(place.path("mine")).unwrap();
    place.mount(&reference, &[]);
    place.try_mount(&reference, &[]).failed(10, &["mounted"]);
    assert_eq!(fs::read_to_string(place.path("config.json")).unwrap(), "{}");
}

#[test]
fn a_folder_that_is_not_there_is_refused_by_name() {
    let (registry, place, _) = pushed();
    let missing = place.dir().join("missing");
    let ran = place.run(["mount", &registry.reference("acme/llm:v1"), missing.to_str().unwrap()]);
    assert!(ran.code != 0 && ran.stderr.contains("missing"), "{ran:?}");
}

#[test]
fn what_the_registry_does_not_have_is_not_found() {
    let (registry, place, _) = pushed();
    place.try_mount(&registry.reference("acme/llm:v9"), &[]).failed(3, &["v9"]);
    place.try_mount(&registry.reference("acme/none:v1"), &[]).failed(3, &["acme/none"]);
    place.try_mount("oci:/nowhere:v1", &[]).failed(3, &["/nowhere"]);
}

#[test]
fn what_cannot_be_meant_is_invalid() {
    let place = Place::new();
    for reference in ["", "UPPER/case:v1", "127.0.0.1:1/acme/llm:", "127.0.0.1:1/acme/llm@sha256:12", "oci:"]
    {
        let ran = place.try_mount(reference, &[]);
        assert_eq!(ran.code, 2, "{reference:?}: {ran:?}");
    }
    place.run(["mount"]).failed(2, &["usage"]);
    place.run(["nonsense"]).failed(2, &["nonsense"]);
    place.try_mount("127.0.0.1:1/acme/llm:v1", &["--integrity", "perhaps"]).failed(2, &["perhaps"]);
    place.try_mount("127.0.0.1:1/acme/llm:v1", &["--store-size", "much"]).failed(2, &["much"]);
}

#[test]
fn a_registry_where_nobody_listens_is_unreachable() {
    let place = Place::new();
    let ran = place.try_mount("127.0.0.1:1/acme/llm:v1", &[]).failed(5, &["127.0.0.1:1"]);
    assert!(ran.took < Duration::from_secs(30), "{ran:?}");
}

#[test]
fn a_name_that_climbs_out_is_refused_by_name() {
    let place = Place::new();
    for path in ["../escape", "/absolute", "a/../../b", "./a", "a//b", "a\u{0}b", &"x".repeat(256)] {
        let files = [pack::File::new(path, "x"), pack::File::new("config.json", "{}")];
        let folder = place.folder("layout");
        fs::remove_dir_all(&folder).unwrap();
        pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"))
            .write_layout(&folder, "v1");
        let ran = place.try_mount(&format!("oci:{}:v1", folder.display()), &[]);
        assert!(ran.code != 0 && !place.is_mounted(), "{path:?}: {ran:?}");
        assert!(
            ran.stderr.contains(path.trim_start_matches('.').split('\u{0}').next().unwrap()),
            "{path:?}: {ran:?}"
        );
    }
}

#[test]
fn credentials_from_dockers_config_open_a_registry_and_are_told_to_nobody() {
    let registry = Registry::with_password();
    registry.push("acme/llm", "v1", &artifact(Packing::Raw, Dialect::Upstream));
    let reference = registry.reference("acme/llm:v1");
    let place = Place::new();
    place.try_mount(&reference, &[]).failed(4, &[&registry.host()]);
    log_in(&place, &registry, "cmVhZGVyOndyb25n");
    place.try_mount(&reference, &[]).failed(4, &[&registry.host()]);
    log_in(&place, &registry, BASIC);
    let ran = place.mount(&reference, &["-v"]);
    assert_eq!(fs::read_to_string(place.path("config.json")).unwrap(), "{}");
    let listed = place.run(["list", "--json"]).ok();
    let line = fs::read(format!("/proc/{}/cmdline", place.pid())).unwrap();
    let told =
        [ran.stdout, ran.stderr, listed.stdout, listed.stderr, String::from_utf8_lossy(&line).into_owned()];
    for text in told.iter().chain(&everything_below(&place.state())).chain(&everything_below(&place.store()))
    {
        assert!(!text.contains(PASSWORD) && !text.contains(BASIC), "the password is told: {text}");
    }
}

/// The text of every file below a folder.
fn everything_below(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let texts = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => everything_below(&entry.path()),
        // A draft may have got its name meanwhile.
        Ok(kind) if kind.is_file() => fs::read(entry.path())
            .map(|bytes| vec![String::from_utf8_lossy(&bytes).into_owned()])
            .unwrap_or_default(),
        _ => Vec::new(),
    });
    texts.collect()
}

#[test]
fn kept_bytes_are_not_served_to_who_may_not_read_them() {
    let registry = Registry::with_password();
    registry.push("acme/llm", "v1", &artifact(Packing::Raw, Dialect::Upstream));
    let (allowed, reference) = (Place::new(), registry.reference("acme/llm:v1"));
    log_in(&allowed, &registry, BASIC);
    allowed.mount(&reference, &["--warm", "all"]);
    allowed.wait_until_complete();
    let stranger = allowed.neighbour();
    stranger.try_mount(&reference, &[]).failed(4, &[&registry.host()]);
}

#[test]
fn unmount_touches_nothing_but_its_own() {
    let place = Place::new();
    let ran: Ran = place.run(["unmount", place.dir().to_str().unwrap()]);
    assert!(ran.code != 0, "{ran:?}");
    let ran = place.run(["unmount", "/proc"]);
    assert!(ran.code != 0 && Path::new("/proc/self").exists(), "{ran:?}");
}

#[test]
fn help_and_version_say_what_they_are() {
    let place = Place::new();
    let help = place.run(["--help"]).ok().stdout;
    for command in ["mount", "unmount", "list", "ls", "cat", "inspect", "demo"] {
        assert!(help.contains(command), "{command} in {help}");
    }
    assert!(place.run(["--version"]).ok().stdout.contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_demo_shows_a_tensor_long_before_the_download_and_leaves_nothing() {
    let _alone = heavy();
    let place = Place::new();
    let temporary = place.folder("tmp");
    let mut command: Command = place.command();
    command.args(["demo", "--json"]).env("TMPDIR", &temporary);
    assert_eq!(command.get_program(), PROGRAM);
    let ran = place.finish(command, Duration::from_secs(400)).ok();
    assert!(!ran.stderr.contains("WARN"), "{ran:?}");
    let measured = ran.json();
    let number = |name: &str| measured[name].as_f64().unwrap_or_else(|| panic!("{name}: {measured}"));
    assert!(number("tensorSeconds") > number("mountSeconds") && number("mountSeconds") > 0.0, "{measured}");
    assert!(number("tensorBytes") * 10.0 < number("modelBytes"), "{measured}");
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "left behind in the temporary folder");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(temporary.to_str().unwrap()), "{table}");
}

#[test]
fn the_demo_over_a_registry_that_fails_says_what_was_met_and_that_no_rule_was_broken() {
    let _alone = heavy();
    let place = Place::new();
    let mut command: Command = place.command();
    let rules = [
        "GET */blobs/* 503 30%",
        "GET */blobs/* truncate 9000 30%",
        "GET */manifests/* reset once",
        "GET /token 500 once",
    ];
    command.args(["demo", "--json"]).env("TMPDIR", place.folder("tmp"));
    command.args(rules.iter().flat_map(|rule| ["--fault", *rule]));
    let measured = place.finish(command, Duration::from_secs(400)).ok().json();
    assert!(measured["faults"]["status"].as_u64() > Some(0), "{measured}");
    assert!(measured["faults"]["truncate"].as_u64() > Some(0), "{measured}");
    assert_eq!(
        (&measured["faults"]["reset"], &measured["violations"]),
        (&1.into(), &serde_json::json!([])),
        "{measured}"
    );
    place.run(["demo", "--fault", "GET * sometimes"]).failed(2, &["sometimes", "is no fault", "truncate"]);
}

#[test]
fn a_fault_of_the_demo_that_stays_is_named_and_leaves_nothing() {
    let _alone = heavy();
    let place = Place::new();
    let temporary = place.folder("tmp");
    let mut command: Command = place.command();
    command.args(["demo", "--fault", "GET */blobs/* 404"]).env("TMPDIR", &temporary);
    let said = place.finish(command, Duration::from_secs(400));
    said.failed(8, &["cannot read", "safetensors", "404", "faults met"]);
    assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "left behind in the temporary folder");
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!table.contains(temporary.to_str().unwrap()), "{table}");
}

#[test]
fn every_fault_of_the_demo_is_in_its_help_and_in_the_documentation() {
    let help = Place::new().run(["demo", "--help"]).ok().stdout;
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md")).unwrap();
    let grammar = weightfs::testing::registry::grammar();
    for line in grammar.lines().filter(|line| !line.is_empty()) {
        let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(words(&help).contains(&words(line)), "{line} in {help}");
        assert!(page.contains(line), "docs/faults.md has no line: {line}");
    }
}
