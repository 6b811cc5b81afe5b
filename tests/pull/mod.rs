//! Whole models brought here, from a real registry, and what is left when that is interrupted or refused.

use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::support::pack::{self, Content, Dialect, Packing};
use crate::support::place::Place;
use crate::support::registry::{Registry, flip};
use crate::support::relay::Weather;
use crate::support::sample::{PACKED, REPOSITORY, sample};
use crate::support::{heavy, read, scratch, wait};

const MIB: u64 = 1 << 20;

fn reference(registry: &Registry, tag: &str) -> String {
    registry.reference(&format!("{REPOSITORY}:{tag}"))
}

fn pulled(place: &Place, reference: &str, options: &[&str]) -> Value {
    let mut command = place.command();
    command.args(["pull", reference, "--json"]).args(options);
    place.finish(command, Duration::from_secs(180)).ok().json()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every file of the sample is in `folder`, and nothing else.
fn assert_sample_in(folder: &Path) {
    for file in &sample().files {
        read::compare_whole(&folder.join(&file.path), &sample().original(&file.path));
        let meta = folder.join(&file.path).symlink_metadata().unwrap();
        assert!(meta.is_file() && meta.mode() & 0o777 == 0o644, "{}: {:o}", file.path, meta.mode());
    }
    let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().all(|name| !name.to_str().unwrap().starts_with(".weightfs")));
}

#[test]
fn what_was_pulled_is_mounted_and_read_without_a_registry() {
    let _alone = heavy();
    for tag in ["raw", "tar", PACKED] {
        let (mut registry, place) = (sample().registry(), Place::new());
        let reference = reference(&registry, tag);
        let report = pulled(&place, &reference, &[]);
        assert_eq!(report["bytes"], sample().size(), "{report}");
        assert_eq!(report["fetched"], sample().size(), "{report}");
        let again = pulled(&place, &reference, &[]);
        assert_eq!(again["fetched"], 0, "{again}");
        registry.stop();
        place.mount(&reference, &[]);
        read::assert_whole_sample(&place, sample());
        assert_eq!(place.status()["standing"], "verified", "{tag}");
        place.unmount();
    }
}

/// Five times killed in the middle: what was kept is not fetched again.
#[test]
fn a_pull_that_is_killed_again_and_again_fetches_little_more_than_the_model() {
    let _alone = heavy();
    for (tag, to_folder) in [("raw", false), (PACKED, true)] {
        let (registry, place) = (sample().registry(), Place::new());
        let (reference, output) = (reference(&registry, tag), place.folder("out"));
        let options: &[&str] = if to_folder { &["--output", text(&output)] } else { &[] };
        // A line on which the pull takes some seconds, so that it is in the middle when it is killed.
        registry.weather(Weather::Limit(sample().size() / 4));
        for round in 1..=5 {
            let mut child = place.command().args(["pull", &reference]).args(options).spawn().unwrap();
            let enough = sample().size() * round / 6;
            wait::until("a part of it is fetched", Duration::from_secs(60), || registry.fetched() >= enough);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        registry.weather(Weather::Clear);
        let report = pulled(&place, &reference, options);
        assert!(report["fetched"].as_u64().unwrap() < sample().size() / 2, "{report}");
        let (fetched, allowed) = (registry.settled(), sample().size() + 1024 * MIB / 50);
        assert!(fetched <= allowed, "{tag}: {fetched} bytes for {}", sample().size());
        match to_folder {
            true => assert_sample_in(&output),
            false => {
                place.mount(&reference, &[]);
                read::assert_whole_sample(&place, sample());
                place.unmount();
            }
        }
    }
}

#[test]
fn a_folder_gets_the_model_once_and_keeps_what_is_right() {
    let _alone = heavy();
    for tag in ["raw", "tar", PACKED] {
        let (registry, place) = (sample().registry(), Place::new());
        let (reference, output) = (reference(&registry, tag), place.folder("out"));
        let options = ["--output", text(&output)];
        pulled(&place, &reference, &options);
        assert_sample_in(&output);
        let shard = output.join(&sample().shards[0]);
        let (inode, other) = (shard.metadata().unwrap().ino(), output.join(&sample().shards[1]));
        flip(&other, 5 * MIB);
        let before = other.metadata().unwrap().ino();
        let report = pulled(&place, &reference, &options);
        assert_sample_in(&output);
        assert_ne!(other.metadata().unwrap().ino(), before, "a file of its own");
        if tag != "tar" {
            assert_eq!(shard.metadata().unwrap().ino(), inode);
            assert_eq!(report["present"], sample().files.len() as u64 - 1, "{report}");
            assert_eq!(report["fetched"], sample().file(&sample().shards[1]).size, "{report}");
        }
        assert!(!place.store().exists(), "nothing is kept twice");
    }
}

#[test]
fn only_what_is_meant_is_pulled() {
    let (registry, place) = (sample().registry(), Place::new());
    let reference = reference(&registry, PACKED);
    let output = place.folder("out");
    let report = pulled(
        &place,
        &reference,
        &["--include", "*.json", "--exclude", "tokenizer*", "--output", text(&output)],
    );
    let json =
        |path: &str| path.ends_with(".json") && !path.rsplit('/').next().unwrap().starts_with("tokenizer");
    for file in &sample().files {
        assert_eq!(output.join(&file.path).exists(), json(&file.path), "{}", file.path);
    }
    let meant: u64 = sample().files.iter().filter(|file| json(&file.path)).map(|file| file.size).sum();
    assert_eq!((&report["bytes"], &report["fetched"]), (&meant.into(), &meant.into()), "{report}");
    let ran = place.run(["pull", &reference, "--include", "*.gguf"]);
    ran.failed(3, &["no file is meant", "config.json", "--include"]);
    let ran = place.run(["pull", &reference, "--include", "config.json", "--include", "confg.jsn"]).ok();
    assert!(
        ran.stderr
            .contains("confg.jsn matches no file; near it are \"1_Pooling/config.json\", \"config.json\""),
        "{ran:?}"
    );
}

#[test]
fn a_folder_that_leads_elsewhere_is_refused_and_nothing_of_it_is_touched() {
    let (registry, place) = (sample().registry(), Place::new());
    let reference = reference(&registry, PACKED);
    let (output, outside) = (place.folder("out"), place.folder("outside"));
    let nested = sample().files.iter().find(|file| file.path.contains('/')).unwrap();
    symlink(&outside, output.join(nested.path.split('/').next().unwrap())).unwrap();
    let pull = |words: &[&str]| {
        place
            .run(["pull", &reference, "--output", text(&output), "--exclude", "*.safetensors"])
            .failed(2, words);
    };
    pull(&["symbolic link", &nested.path, "--output"]);
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    std::fs::remove_file(output.join(nested.path.split('/').next().unwrap())).unwrap();
    std::fs::write(outside.join("target"), "mine").unwrap();
    let config = output.join("config.json");
    let _ = std::fs::remove_file(&config);
    symlink(outside.join("target"), &config).unwrap();
    pull(&["symbolic link", "config.json"]);
    assert_eq!(std::fs::read(outside.join("target")).unwrap(), b"mine");
    std::fs::remove_file(&config).unwrap();
    std::fs::create_dir(&config).unwrap();
    pull(&["config.json"]);
    std::fs::remove_dir(&config).unwrap();
    place.run(["pull", &reference, "--output", text(&output)]).ok();
    assert_sample_in(&output);
}

#[test]
fn wrong_bytes_are_placed_under_no_name() {
    for tag in ["raw", PACKED] {
        let (registry, place) = (sample().registry(), Place::new());
        let (name, output) = (&sample().shards[2], place.folder("out"));
        registry.corrupt(&sample().digest(name), 3 * MIB + 7);
        let ran = place.run(["pull", &reference(&registry, tag), "--output", text(&output)]);
        ran.failed(6, &[&sample().digest(name)]);
        assert!(!output.join(name).exists(), "{tag}");
    }
}

#[test]
fn one_folder_is_filled_by_one_pull_at_a_time() {
    let (registry, place) = (sample().registry(), Place::new());
    let (reference, output) = (reference(&registry, PACKED), place.folder("out"));
    registry.weather(Weather::Stall);
    let mut first = place.command().args(["pull", &reference, "--output", text(&output)]).spawn().unwrap();
    wait::until("the first one has begun", Duration::from_secs(20), || {
        output.join(".weightfs-pull/small").exists() || {
            let lock = std::fs::File::open(output.join(".weightfs-pull"));
            lock.is_ok_and(|lock| lock.try_lock().is_err())
        }
    });
    place.run(["pull", &reference, "--output", text(&output)]).failed(10, &["another pull", "--output"]);
    first.kill().unwrap();
    first.wait().unwrap();
    registry.weather(Weather::Clear);
    pulled(&place, &reference, &["--output", text(&output)]);
    assert_sample_in(&output);
}

#[test]
fn a_store_too_small_is_said_before_anything_is_fetched() {
    let (registry, place) = (sample().registry(), Place::new());
    let ran = place.run(["pull", &reference(&registry, PACKED), "--store-size", "32MiB"]);
    ran.failed(8, &["room", "--store-size", "--output"]);
    assert!(registry.settled() < MIB, "{} bytes", registry.fetched());
}

/// What stands in the working folder is neither followed nor believed nor removed, unless a pull left it there.
#[test]
fn a_working_folder_that_no_pull_has_left_is_refused() {
    let (registry, place) = (sample().registry(), Place::new());
    let reference = reference(&registry, PACKED);
    let (output, outside) = (place.folder("out"), place.folder("outside"));
    let working = output.join(".weightfs-pull");
    let pull = || place.run(["pull", &reference, "--output", text(&output), "--include", "*.json"]);
    std::fs::create_dir(&working).unwrap();
    symlink(&outside, working.join("layers")).unwrap();
    pull().failed(2, &["layers", "--output"]);
    std::fs::remove_file(working.join("layers")).unwrap();
    std::fs::write(working.join("notes.txt"), "mine").unwrap();
    pull().failed(2, &["notes.txt"]);
    assert_eq!(std::fs::read(working.join("notes.txt")).unwrap(), b"mine");
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    std::fs::remove_dir_all(&working).unwrap();
    pull().ok();
    assert!(!working.exists());
}

#[test]
fn a_file_of_the_model_cannot_stand_where_pull_has_its_own() {
    let (registry, place, work) = (Registry::start(), Place::new(), scratch::roomy());
    let content = Content::Bytes(b"mine".to_vec());
    let files = [pack::File { path: ".weightfs-pull/layers/x".to_owned(), content }];
    registry.push("acme/odd", "v1", &pack::pack(&files, Packing::Raw, Dialect::Upstream, work.path()));
    let ran = place.run(["pull", &registry.reference("acme/odd:v1"), "--output", text(&place.folder("out"))]);
    ran.failed(2, &[".weightfs-pull/layers/x", "--exclude"]);
}

/// Neither bytes nor proofs are taken from a working folder: what is there is held to the manifest again.
#[test]
fn a_forged_working_folder_places_no_wrong_byte() {
    let _alone = heavy();
    for tag in ["raw", PACKED] {
        let (registry, place) = (sample().registry(), Place::new());
        let (reference, output) = (reference(&registry, tag), place.folder("out"));
        // A whole store of another pull into the store, as if it had been made by this user here.
        pulled(&place, &reference, &[]);
        let working = output.join(".weightfs-pull");
        std::fs::create_dir(&working).unwrap();
        let copied = std::process::Command::new("cp")
            .arg("-a")
            .arg(place.store().join("layers"))
            .arg(&working)
            .status();
        assert!(copied.unwrap().success());
        let data = std::process::Command::new("find")
            .arg(&working)
            .args(["-name", "*.data", "-size", "+4M"])
            .output();
        let data = String::from_utf8(data.unwrap().stdout).unwrap();
        for image in data.lines() {
            flip(Path::new(image), 2 * MIB + 1);
        }
        pulled(&place, &reference, &["--output", text(&output)]);
        assert_sample_in(&output);
    }
}
