//! What skopeo writes is read here, and what is written here skopeo reads: against Debian's docker-registry.

use std::fs;
use std::process::Command;
use std::time::Duration;

use super::login::{locked, with_input};
use crate::support::place::{Place, Ran};
use crate::support::registry::PASSWORD;

const PATIENCE: Duration = Duration::from_secs(60);

/// skopeo, with the place's home and nothing of the user's.
fn skopeo(place: &Place, words: &[&str]) -> Command {
    let home = place.folder("");
    let mut command = Command::new("skopeo");
    command.args(words).env_remove("DOCKER_CONFIG").env_remove("REGISTRY_AUTH_FILE").env("HOME", &home);
    command.env("XDG_RUNTIME_DIR", home.join("runtime")).env("XDG_CONFIG_HOME", home.join("config"));
    command
}

fn skopeo_login(place: &Place, host: &str, more: &[&str]) -> Ran {
    fs::create_dir_all(place.folder("runtime")).unwrap();
    let mut command =
        skopeo(place, &["login", "--tls-verify=false", "--username", "reader", "--password-stdin"]);
    command.args(more).arg(host);
    with_input(place, command, PASSWORD).ok()
}

#[test]
fn what_skopeo_login_wrote_opens_the_registry() {
    let (registry, place) = locked();
    let reference = registry.reference("acme/llm:v1");
    place.run(["ls", &reference]).failed(4, &[]);
    skopeo_login(&place, &registry.host(), &[]);
    assert!(place.folder("runtime").join("containers/auth.json").exists());
    place.run(["ls", &reference]).ok();
    place.mount(&reference, &[]);
    assert_eq!(fs::read(place.path("a.bin")).unwrap(), vec![7; 300_000]);
    place.unmount();
}

#[test]
fn what_skopeo_login_wrote_for_a_namespace_opens_that_alone() {
    let (registry, place) = locked();
    let file = place.folder("named").join("auth.json");
    let namespace = format!("{}/acme", registry.host());
    skopeo_login(&place, &namespace, &["--authfile", file.to_str().unwrap()]);
    assert!(fs::read_to_string(&file).unwrap().contains(&namespace));
    let ls = |name: &str| {
        let mut command = place.command();
        command.args(["ls", &registry.reference(name), "--auth-file"]).arg(&file);
        place.finish(command, PATIENCE)
    };
    ls("acme/llm:v1").ok();
    ls("other/llm:v1").failed(4, &[]);
}

#[test]
fn what_was_written_here_opens_the_registry_for_skopeo() {
    let (registry, place) = locked();
    let (host, reference) = (registry.host(), format!("docker://{}", registry.reference("acme/llm:v1")));
    let inspect = |more: &[&str]| {
        let mut command = skopeo(&place, &["inspect", "--raw", "--tls-verify=false"]);
        command.args(more).arg(&reference);
        place.finish(command, PATIENCE)
    };
    assert_ne!(inspect(&[]).code, 0);
    // Into Docker's own file, where skopeo looks too.
    let mut command = place.command();
    command.env_remove("DOCKER_CONFIG").args(["login", &host, "-u", "reader", "--password-stdin"]);
    with_input(&place, command, PASSWORD).ok();
    assert!(place.folder(".docker").join("config.json").exists());
    assert!(inspect(&[]).ok().stdout.contains("layers"));
    let mut command = place.command();
    command.env_remove("DOCKER_CONFIG").args(["logout", &host]);
    place.finish(command, PATIENCE).ok();
    assert_ne!(inspect(&[]).code, 0);
    // And into the file that both are told of.
    let file = place.folder("named").join("auth.json");
    let mut command = place.command();
    command.args(["login", &host, "-u", "reader", "--password-stdin", "--auth-file"]).arg(&file);
    with_input(&place, command, PASSWORD).ok();
    let file = file.to_str().unwrap();
    assert!(inspect(&["--authfile", file]).ok().stdout.contains("layers"));
    let mut logout = skopeo(&place, &["logout", "--authfile", file]);
    logout.arg(&host);
    place.finish(logout, PATIENCE).ok();
    let mut command = place.command();
    command.args(["logout", &host, "--auth-file", file]);
    place.finish(command, PATIENCE).failed(3, &[]);
}
