//! `weightfs login` and `logout` as they are typed, against a real registry with passwords.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::scene::content;
use crate::support::canary;
use crate::support::pack::{self, Dialect, Packing};
use crate::support::place::{Place, Ran};
use crate::support::registry::{BASIC, PASSWORD, Registry};

/// A registry with a password and a small model in it, and a place without credentials.
pub(super) fn locked() -> (Registry, Place) {
    let registry = Registry::with_password();
    let files = [pack::File::new("config.json", "{}"), pack::File::new("a.bin", vec![7; 300_000])];
    let artifact = pack::pack(&files, Packing::Raw, Dialect::Upstream, Path::new("/nowhere"));
    registry.push("acme/llm", "v1", &artifact);
    (registry, Place::new())
}

/// Runs a command with this on its standard input.
pub(super) fn with_input(place: &Place, mut command: Command, input: &str) -> Ran {
    let path = place.folder("input").join("text");
    fs::write(&path, input).unwrap();
    command.stdin(Stdio::from(fs::File::open(&path).unwrap()));
    place.finish(command, Duration::from_secs(60))
}

fn log_in(place: &Place, words: &[&str], password: &str) -> Ran {
    let mut command = place.command();
    command.args(["login", "-vvv"]).args(words).arg("--password-stdin");
    let ran = with_input(place, command, password);
    canary::absent("login", &ran.stdout);
    canary::absent("login", &ran.stderr);
    ran
}

#[test]
fn a_right_password_is_kept_and_used_and_removed_again() {
    let (registry, place) = locked();
    let (host, reference) = (registry.host(), registry.reference("acme/llm:v1"));
    place.run(["ls", &reference]).failed(4, &[&format!("weightfs login {host}")]);
    let ran = log_in(&place, &[&host, "-u", "reader"], &format!("{PASSWORD}\n")).ok();
    assert!(ran.stdout.contains(&host) && ran.stdout.contains("reader"), "{ran:?}");
    let file = place.docker().join("config.json");
    assert_eq!(content(&file), json!({"auths": {&host: {"auth": BASIC}}}));
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let listed = place.run(["ls", &reference, "-vvv"]).ok();
    assert!(listed.stdout.contains("a.bin"));
    canary::absent("ls", &listed.stderr);
    place.run(["logout", &host]).ok();
    assert_eq!(content(&file), json!({"auths": {}}));
    place.run(["ls", &reference]).failed(4, &[]);
    place.run(["logout", &host]).failed(3, &[&host]);
}

#[test]
fn a_wrong_password_is_refused_and_nothing_is_written() {
    let (registry, place) = locked();
    log_in(&place, &[&registry.host(), "-u", "reader"], canary::PASSWORD).failed(4, &["refused"]);
    assert!(!place.docker().join("config.json").exists());
}

#[test]
fn a_password_comes_from_standard_input_and_nowhere_else() {
    let (registry, place) = locked();
    let host = registry.host();
    place.run(["login", &host, "-u", "reader"]).failed(2, &["--password-stdin"]);
    place.run(["login", &host, "-u", "reader", "--password", "canary"]).failed(2, &["--password"]);
    log_in(&place, &[&host, "-u", "reader"], "").failed(2, &["no password"]);
    log_in(&place, &[&host], PASSWORD).failed(2, &["no user"]);
    log_in(&place, &["r.io/acme/llm", "-u", "reader"], PASSWORD).failed(2, &["HOST"]);
}

#[test]
fn who_logs_in_again_need_not_say_who() {
    let (registry, place) = locked();
    log_in(&place, &[&registry.host(), "-u", "reader"], PASSWORD).ok();
    log_in(&place, &[&registry.host()], PASSWORD).ok();
}

#[test]
fn a_helper_that_is_set_keeps_the_password_and_the_file_does_not() {
    let (registry, place) = locked();
    let programs = place.folder("programs");
    let helper = programs.join("docker-credential-chest");
    let script = "#!/bin/sh\nkept=\"${0%/*}/kept\"\necho \"$0 $*\" >> \"$kept.words\"\ncase \"$1\" in\n\
        store) cat > \"$kept\" ;;\n\
        get) [ -f \"$kept\" ] && cat \"$kept\" || { echo 'credentials not found in native keychain'; exit 1; } ;;\n\
        erase) rm -f \"$kept\" ;;\nesac\n";
    fs::File::create(&helper).unwrap().write_all(script.as_bytes()).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let file = place.docker().join("config.json");
    fs::write(&file, r#"{"credsStore":"chest","HttpHeaders":{"X-Meta":"1"}}"#).unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let command = |words: &[&str]| {
        let mut command = place.command();
        command.args(words).env("PATH", &path);
        command
    };
    let (host, reference) = (registry.host(), registry.reference("acme/llm:v1"));
    with_input(&place, command(&["login", &host, "-u", "reader", "--password-stdin"]), PASSWORD).ok();
    assert_eq!(
        content(&file),
        json!({"credsStore": "chest", "HttpHeaders": {"X-Meta": "1"}, "auths": {&host: {}}})
    );
    assert!(fs::read_to_string(programs.join("kept")).unwrap().contains(PASSWORD));
    canary::absent("the helper's words", &fs::read_to_string(programs.join("kept.words")).unwrap());
    place.finish(command(&["ls", &reference]), Duration::from_secs(60)).ok();
    place.finish(command(&["logout", &host]), Duration::from_secs(60)).ok();
    assert!(!programs.join("kept").exists());
    place.finish(command(&["ls", &reference]), Duration::from_secs(60)).failed(4, &[]);
}

#[test]
fn credentials_come_from_a_variable_a_pull_secret_and_a_named_file() {
    let (registry, place) = locked();
    let (host, reference) = (registry.host(), registry.reference("acme/llm:v1"));
    let json = json!({"auths": {&host: {"auth": BASIC}}}).to_string();
    let secret = place.folder("secret");
    fs::write(secret.join(".dockerconfigjson"), &json).unwrap();
    let named = place.folder("named").join("auth.json");
    fs::write(&named, &json).unwrap();
    let pair = format!("{host}/acme=reader:{PASSWORD}");
    for (variable, value) in [
        ("WEIGHTFS_REGISTRY_AUTH", &*json),
        ("WEIGHTFS_REGISTRY_AUTH", &pair),
        ("DOCKER_AUTH_CONFIG", &json),
        ("WEIGHTFS_PULL_SECRETS", secret.to_str().unwrap()),
        ("WEIGHTFS_AUTH_FILE", named.to_str().unwrap()),
        ("REGISTRY_AUTH_FILE", named.to_str().unwrap()),
    ] {
        let mut command = place.command();
        command.args(["ls", &reference, "-vvv"]).env(variable, value);
        let ran = place.finish(command, Duration::from_secs(60)).ok();
        canary::absent(variable, &ran.stderr);
    }
    let mut command = place.command();
    command.args(["ls", &reference]).env("WEIGHTFS_REGISTRY_AUTH", format!("{host}/other=reader:{PASSWORD}"));
    place.finish(command, Duration::from_secs(60)).failed(4, &[]);
}
