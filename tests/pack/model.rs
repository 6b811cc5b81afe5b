//! What a packed artifact is: the same for the same files, and all of them, byte for byte, with an index that fits.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime};

use super::*;
use crate::support::tar_writers::{MTIME, Writer};

#[test]
fn every_file_comes_back_byte_for_byte_raw_and_from_tar() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    for options in [&[][..], &["--tar"], &["--no-index"], &["--tar", "--no-index"]] {
        let target = layout(&place, &format!("layout{}", options.concat()));
        let report = packed(&place, folder.path(), &target, options);
        assert_eq!(report["files"], files.len(), "{report}");
        assert_eq!(report["skipped"], json!([".gitattributes", "Modelfile", "__pycache__"]));
        assert_files(&target, &files);
        if options.contains(&"--no-index") {
            assert!(Published::open(&target).artifact.bound_index().unwrap().is_none());
            assert_eq!(report["indexBytes"], 0);
        } else {
            assert_indexed(&target);
        }
    }
}

#[test]
fn a_packed_model_is_mounted_as_the_folder_it_was_made_of() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    for options in [&[][..], &["--tar"]] {
        let target = layout(&place, "layout");
        pack(&place, folder.path(), &target, options).ok();
        place.mount(&target, &[]);
        for (path, content) in &files {
            assert!(fs::read(place.path(path)).unwrap() == *content, "{path}");
        }
        assert!(!place.path(".weightfs").exists(), "the index is no part of the tree");
        let mode = |path: &str| place.path(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("config.json"), mode("nested")), (0o444, 0o555));
        place.unmount();
    }
}

#[test]
fn the_same_files_give_the_same_digest_whoever_has_them_and_since_when() {
    let (place, files) = (Place::new(), files());
    let (one, other) = (folder(&files), folder(&files));
    for (number, path) in files.keys().enumerate() {
        let (file, path) = (fs::File::open(other.path().join(path)).unwrap(), other.path().join(path));
        file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + number as u64)).unwrap();
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(1234), Some(4321)).unwrap();
        }
    }
    for options in [&[][..], &["--tar"], &["--no-index"]] {
        let digests = [&one, &other, &one].map(|folder| {
            let target = layout(&place, &format!("layout{}", options.concat()));
            packed(&place, folder.path(), &target, options)["digest"].clone()
        });
        assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    }
    let digest = |folder: &Path, epoch: &str| {
        let mut command = place.command();
        command.args(["pack", "--keep-times", "--json"]).arg(folder).arg(layout(&place, "times"));
        command.env("SOURCE_DATE_EPOCH", epoch);
        place.finish(command, Duration::from_secs(60)).ok().json()["digest"].clone()
    };
    assert_ne!(digest(one.path(), ""), digest(other.path(), ""), "their times are kept");
    assert_eq!(digest(one.path(), "1000"), digest(other.path(), "1000"), "none is later than that");
}

#[test]
fn a_time_that_is_given_is_every_files_and_the_artifacts() {
    let (place, files) = (Place::new(), files());
    let folder = folder(&files);
    let target = layout(&place, "layout");
    for option in ["--keep-times", "--json"] {
        let mut command = place.command();
        command.arg("pack").arg(folder.path()).args([&target, option]).env("SOURCE_DATE_EPOCH", "86400");
        place.finish(command, Duration::from_secs(60)).ok();
        let published = Published::open(&target);
        assert_eq!(published.config["descriptor"]["createdAt"], "1970-01-02T00:00:00Z");
        assert!(published.found().entries.iter().all(|entry| entry.mtime == 86400));
    }
    let mut command = place.command();
    command.arg("pack").arg(folder.path()).arg(&target).env("SOURCE_DATE_EPOCH", "yesterday");
    place.finish(command, Duration::from_secs(60)).failed(2, &["SOURCE_DATE_EPOCH"]);
}

#[test]
fn a_tar_layer_is_what_go_writes_and_nothing_after_its_end() {
    let place = Place::new();
    let names = ["a.bin".to_owned(), "sub/".repeat(30) + "b.bin", "\u{e9}/c.bin".to_owned()];
    let files: Files =
        names.into_iter().zip([0, 512, 1000]).map(|(name, len)| (name, bytes(9, len))).collect();
    let folder = folder(&files);
    let target = layout(&place, "layout");
    let mut command = place.command();
    command
        .args(["pack", "--tar"])
        .arg(folder.path())
        .arg(&target)
        .env("SOURCE_DATE_EPOCH", MTIME.to_string());
    place.finish(command, Duration::from_secs(60)).ok();
    let published = Published::open(&target);
    let layers: Vec<_> = published.artifact.visible().collect();
    assert_eq!(layers.len(), files.len());
    for layer in layers {
        let path = layer.path.as_deref().unwrap();
        let expected = Writer::Go.archive([(path, files[path].as_slice())]);
        assert!(published.blob(&layer.descriptor.blob()) == expected, "{path}");
    }
}

#[test]
fn a_folder_of_links_is_packed_as_the_files_they_lead_to() {
    let (place, files) = (Place::new(), files());
    let cache = scratch::roomy();
    let snapshot = cache.path().join("snapshots/0123");
    for (number, (path, content)) in files.iter().enumerate() {
        let blob = cache.path().join(format!("blobs/{number}"));
        fs::create_dir_all(blob.parent().unwrap()).unwrap();
        fs::write(&blob, content).unwrap();
        let link = snapshot.join(path);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(&blob, link).unwrap();
    }
    let target = layout(&place, "layout");
    pack(&place, &snapshot, &target, &[]).ok();
    assert_files(&target, &files);
}

#[test]
fn what_cannot_be_packed_is_named() {
    let place = Place::new();
    let folder = folder(&files());
    let target = layout(&place, "layout");
    symlink("nowhere", folder.path().join("dangling.bin")).unwrap();
    pack(&place, folder.path(), &target, &[]).failed(2, &["dangling.bin", "leads nowhere"]);
    fs::remove_file(folder.path().join("dangling.bin")).unwrap();
    let digest = format!("{target}@sha256:{}", "0".repeat(64));
    pack(&place, folder.path(), &digest, &[]).failed(2, &["at a digest"]);
    pack(&place, folder.path(), "nowhere", &[]).failed(2, &["nowhere"]);
    pack(&place, &place.folder("empty"), &target, &[]).failed(3, &["nothing to pack"]);
    let inside = format!("oci:{}", folder.path().join("out/layout").display());
    pack(&place, folder.path(), &inside, &[]).failed(2, &["out/layout", "inside of the folder"]);
    pack(&place, folder.path(), &target, &["--mount-from", "a/b"]).failed(2, &["a/b", "no registry"]);
    for odd in ["host:5000/a/b", "A", "a:v1", ""] {
        let ran = pack(&place, folder.path(), "127.0.0.1:1/a/b:v1", &["--mount-from", odd]);
        ran.failed(2, &["no repository's name"]);
    }
    pack(&place, Path::new("/nowhere/at/all"), &target, &[]).failed(3, &["/nowhere/at/all"]);
    pack(&place, &folder.path().join("config.json"), &target, &[]).failed(2, &["is no folder"]);
}

#[test]
fn a_dry_run_shows_the_plan_and_asks_nobody() {
    let place = Place::new();
    let folder = folder(&files());
    let target = "127.0.0.1:1/acme/llm:v1";
    let plan = packed(&place, folder.path(), target, &["--dry-run", "--family", "mine"]);
    assert_eq!(plan["model"]["family"], "mine");
    assert_eq!(plan["model"]["architecture"], "LlamaForCausalLM");
    assert_eq!(plan["model"]["format"], "safetensors");
    let first = &plan["files"][0];
    assert_eq!((&first["path"], &first["kind"]), (&json!("config.json"), &json!("weight.config")));
    let licenses = ["--dry-run", "--license", "MIT", "--license", "Apache-2.0"];
    let text = pack(&place, folder.path(), target, &licenses).ok().stdout;
    assert!(text.contains("MIT, Apache-2.0"), "{text}");
    for word in ["train.parquet", "dataset", "LICENSE", "doc", "run.sh", "code", "bfloat16", ".gitattributes"]
    {
        assert!(text.contains(word), "{word} in {text}");
    }
}

#[test]
fn a_link_out_of_the_folder_is_packed_only_where_that_is_asked_for() {
    let place = Place::new();
    let folder = folder(&[("config.json".to_owned(), b"{}".to_vec())].into());
    let elsewhere = scratch::roomy();
    let secret = elsewhere.path().canonicalize().unwrap().join("secret");
    fs::write(&secret, "mine").unwrap();
    symlink(&secret, folder.path().join("w.bin")).unwrap();
    let (target, named) = (layout(&place, "layout"), secret.to_str().unwrap());
    for options in [&[][..], &["--dry-run"]] {
        pack(&place, folder.path(), &target, options).failed(2, &["w.bin", named, "--follow-links"]);
    }
    let shown = pack(&place, folder.path(), &target, &["--dry-run", "--follow-links"]).ok().stdout;
    assert!(shown.contains(&format!("w.bin -> {named}")), "{shown}");
    let shown = packed(&place, folder.path(), &target, &["--dry-run", "--follow-links"]);
    assert_eq!((&shown["files"][1]["link"], &shown["files"][0]["link"]), (&json!(named), &Value::Null));
    packed(&place, folder.path(), &target, &["--follow-links"]);
    assert_eq!(contents(&target)["w.bin"], b"mine");
}

#[test]
fn the_answer_is_one_line_with_the_digest() {
    let place = Place::new();
    let folder = folder(&files());
    let target = format!("oci:{}", place.folder("layout").display());
    let ran = pack(&place, folder.path(), &target, &[]).ok();
    assert_eq!(ran.stdout.lines().count(), 1, "{ran:?}");
    assert!(ran.stdout.starts_with(&format!("{target}:latest@sha256:")), "{ran:?}");
    assert!(ran.stdout.contains("12 files") && ran.stdout.contains("index"), "{ran:?}");
    assert!(ran.stderr.contains("left out by name: 3"), "{ran:?}");
}

/// A plan of the folder, and a target in memory of nobody.
fn planned(folder: &Path) -> weightfs::pack::Plan {
    use weightfs::oci::artifact::Packaging;
    use weightfs::pack::{Described, Links, Options, Times};
    let described = Described::default();
    let (times, created) = (Times::Fixed(0), None);
    weightfs::pack::plan(
        folder,
        &Options {
            packaging: Packaging::Raw,
            links: Links::Inside,
            index: true,
            times,
            created,
            described,
            scratch: folder.to_owned(),
        },
    )
    .unwrap()
}

fn publish(
    plan: &weightfs::pack::Plan,
    target: &str,
    watch: &weightfs::pack::Watch,
) -> weightfs::Result<weightfs::pack::Published> {
    let reference: Reference = target.parse().unwrap();
    let target = weightfs::repository::push::Target::open(&reference, &Default::default()).unwrap();
    let destination = weightfs::pack::Destination::new(target, reference.tag.clone(), Vec::new());
    runtime().block_on(weightfs::pack::publish(plan, &destination, watch))
}

#[test]
fn a_file_that_changed_since_it_was_found_is_named_and_nothing_is_published() {
    let place = Place::new();
    let folder = folder(&[("config.json".to_owned(), b"{}".to_vec())].into());
    let plan = planned(folder.path());
    fs::write(folder.path().join("config.json"), "{ }").unwrap();
    let target = layout(&place, "layout");
    let error = publish(&plan, &target, &weightfs::pack::publish::unwatched()).unwrap_err();
    assert!(error.to_string().contains("config.json changed while it was packed"), "{error}");
    assert_eq!(place.run(["ls", &target]).code, 3);
}

#[test]
fn a_file_that_changes_behind_its_times_between_digest_and_upload_is_never_published() {
    let place = Place::new();
    let folder = folder(&[("w.bin".to_owned(), bytes(1, 100_000))].into());
    let plan = planned(folder.path());
    let file = folder.path().join("w.bin");
    let modified = file.metadata().unwrap().modified().unwrap();
    // Called for the first time when the file has been read.
    let watch: weightfs::pack::Watch = Arc::new(move |_| {
        fs::write(&file, bytes(2, 100_000)).unwrap();
        fs::File::open(&file).unwrap().set_modified(modified).unwrap();
    });
    let target = layout(&place, "layout");
    let error = publish(&plan, &target, &watch).unwrap_err();
    assert!(error.to_string().contains("w.bin"), "{error}");
    assert_eq!(place.run(["ls", &target]).code, 3);
}
