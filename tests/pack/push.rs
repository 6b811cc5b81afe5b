//! What goes over the line: nothing twice, nothing that is there, and all of it in the end.

use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;
use crate::support::registry::{BASIC, Registry};
use crate::support::relay::Weather;
use crate::support::wait;

/// The requests that carry bytes or begin to.
fn writes(registry: &Registry) -> Vec<String> {
    let requests = registry.requests();
    let lines = requests.iter().filter_map(|head| head.lines().next());
    lines.filter(|line| !line.starts_with("HEAD") && !line.starts_with("GET")).map(str::to_owned).collect()
}

#[test]
fn packing_twice_gives_one_digest_and_uploads_nothing_the_second_time() {
    let (registry, place, files) = (Registry::start(), Place::new(), files());
    let folder = folder(&files);
    let target = registry.reference("acme/llm:v1");
    let first = packed(&place, folder.path(), &target, &[]);
    let (blobs, before) = (registry.blobs(), writes(&registry).len());
    let second = packed(&place, folder.path(), &target, &[]);
    assert_eq!(first["digest"], second["digest"]);
    assert_eq!(
        (&second["uploadedBytes"], &first["presentBytes"]),
        (&json!(0), &json!(0)),
        "{first} {second}"
    );
    // Two files are equal, and one blob.
    assert_eq!(second["presentBytes"], first["uploadedBytes"], "{first} {second}");
    let again = writes(&registry).split_off(before);
    assert!(again.iter().all(|line| line.contains("/manifests/")) && again.len() == 1, "{again:?}");
    assert_eq!(registry.blobs(), blobs);
    assert_files(&target, &files);
    assert_indexed(&target);
    let elsewhere = packed(&place, folder.path(), &layout(&place, "layout"), &[]);
    assert_eq!(elsewhere["digest"], first["digest"], "in a folder as in a registry");
}

#[test]
fn what_another_repository_has_is_taken_from_there() {
    let (registry, place, files) = (Registry::start(), Place::new(), files());
    let folder = folder(&files);
    packed(&place, folder.path(), &registry.reference("acme/base:v1"), &[]);
    let before = writes(&registry).len();
    let target = registry.reference("acme/tuned:v1");
    let report =
        packed(&place, folder.path(), &target, &["--mount-from", "acme/none", "--mount-from", "acme/base"]);
    assert_eq!(report["uploadedBytes"], 0, "{report}");
    assert!(report["mountedBytes"].as_u64() > Some(3 << 20), "{report}");
    assert!(writes(&registry).split_off(before).iter().all(|line| !line.starts_with("PATCH")));
    assert_files(&target, &files);
}

#[test]
fn a_run_that_was_killed_is_finished_by_the_next_and_sends_only_what_is_missing() {
    let (registry, place, files) = (Registry::start(), Place::new(), files());
    let folder = folder(&files);
    let whole = packed(&place, folder.path(), &layout(&place, "layout"), &[]);
    let published = Published::open(&layout(&place, "layout"));
    let layers = digests(&published.manifest);
    // One layer is not even asked for; all others arrive, and nothing that comes after the layers does.
    let (held, size) = {
        let held = published.artifact.visible().find(|layer| layer.path.as_deref() == Some("tokenizer.json"));
        let descriptor = &held.unwrap().descriptor;
        (descriptor.digest.to_string(), descriptor.size)
    };
    registry.weather(Weather::StallOf(held.clone()));
    let target = registry.reference("acme/llm:v1");
    let mut command = place.command();
    command.arg("pack").arg(folder.path()).arg(&target).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let others: Vec<String> =
        layers[..layers.len() - 1].iter().filter(|digest| **digest != held).cloned().collect();
    wait::until("all others are there", Duration::from_secs(60), || {
        let there = registry.blobs();
        others.iter().all(|digest| there.contains(digest))
    });
    child.kill().unwrap();
    child.wait().unwrap();
    registry.weather(Weather::Clear);
    let report = packed(&place, folder.path(), &target, &[]);
    assert_eq!(report["digest"], whole["digest"]);
    let index = report["indexBytes"].as_u64().unwrap();
    let config = published.manifest["config"]["size"].as_u64().unwrap();
    assert_eq!(report["uploadedBytes"], size + index + config, "{report}");
    assert_files(&target, &files);
}

#[test]
fn a_registry_that_asks_for_a_password_is_packed_into_with_dockers_credentials() {
    let (registry, place) = (Registry::with_password(), Place::new());
    let folder = folder(&files());
    let target = registry.reference("acme/llm:v1");
    pack(&place, folder.path(), &target, &[]).failed(4, &[&registry.host()]);
    let config = json!({"auths": {registry.host(): {"auth": BASIC}}});
    fs::write(place.docker().join("config.json"), config.to_string()).unwrap();
    packed(&place, folder.path(), &target, &[]);
    place.run(["ls", &target]).ok();
}

#[test]
fn nobody_who_listens_is_an_error_within_bounds() {
    let place = Place::new();
    let folder = folder(&files());
    let mut command = place.command();
    command.arg("pack").arg(folder.path()).arg("127.0.0.1:1/acme/llm:v1").env("WEIGHTFS_READ_DEADLINE", "2s");
    command.env("WEIGHTFS_SETUP_DEADLINE", "2s");
    place.finish(command, Duration::from_secs(60)).failed(5, &["127.0.0.1:1"]);
}

#[test]
fn garbage_collection_keeps_the_index() {
    let (mut registry, place, files) = (Registry::start(), Place::new(), files());
    let folder = folder(&files);
    packed(&place, folder.path(), &registry.reference("acme/llm:v1"), &[]);
    let before = registry.blobs();
    registry.stop();
    let collected = Command::new("docker-registry")
        .args(["garbage-collect", "--delete-untagged=true"])
        .arg(registry.config())
        .env("OTEL_TRACES_EXPORTER", "none")
        .output()
        .unwrap();
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    registry.restart();
    assert_eq!(registry.blobs(), before);
    let target = registry.reference("acme/llm:v1");
    assert_indexed(&target);
    assert_files(&target, &files);
}
