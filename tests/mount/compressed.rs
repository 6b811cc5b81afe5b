//! Compressed layers without an index: mounted before they are here, right as they go by, and read by span from then on.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use nix::libc::EIO;

use crate::support::compressed::{self, Form, files};
use crate::support::pack::{Artifact, Content, File};
use crate::support::place::Place;
use crate::support::registry::Registry;
use crate::support::relay::Weather;
use crate::support::{heavy, read, wait};

const REPOSITORY: &str = "acme/packed";
const MIB: u64 = 1 << 20;
/// At this many bytes a second the layer takes some ten seconds to come.
const SLOW: Weather = Weather::Limit(MIB);

struct Packed {
    registry: Registry,
    artifact: Artifact,
    files: Vec<File>,
    place: Place,
}

impl Packed {
    fn new(form: Form) -> Self {
        let files = files();
        let artifact = compressed::pack(&files, form);
        Self::of(files, artifact)
    }

    fn of(files: Vec<File>, artifact: Artifact) -> Self {
        let registry = Registry::start();
        registry.push(REPOSITORY, "v1", &artifact);
        Self { registry, artifact, files, place: Place::new() }
    }

    fn reference(&self) -> String {
        self.registry.reference(&format!("{REPOSITORY}:v1"))
    }

    fn mount(&self) {
        self.place.mount(&self.reference(), &[]);
    }

    fn layer(&self) -> (&str, u64) {
        (&self.artifact.blobs[0].digest, self.artifact.blobs[0].content.size())
    }

    fn right(&self, path: &str) -> &[u8] {
        let file = self.files.iter().find(|file| file.path == path).unwrap();
        let Content::Bytes(bytes) = &file.content else { panic!("{path} is on disk") };
        bytes
    }

    fn assert_right(&self, place: &Place, path: &str) {
        let got = fs::read(place.path(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        read::assert_same(&place.path(path), 0, &got, self.right(path));
    }

    fn assert_all(&self, place: &Place) {
        assert_eq!(names(&place.dir()), ["config.json", "empty", "first.safetensors", "weights"]);
        assert_eq!(
            names(&place.path("weights")),
            ["last.safetensors", "second.safetensors", "third.safetensors"]
        );
        for file in &self.files {
            self.assert_right(place, &file.path);
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.collect::<BTreeSet<_>>().into_iter().collect()
}

fn errno(path: &Path) -> Option<i32> {
    fs::read(path).err().and_then(|error| error.raw_os_error())
}

/// Mounts over a slow line, reads, mounts again.
fn is_there_before_it_is_here(form: Form) {
    let _alone = heavy();
    let packed = Packed::new(form);
    let (_, size) = packed.layer();
    packed.registry.weather(SLOW);
    packed.mount();
    let fetched = packed.registry.fetched();
    assert!(fetched < size / 2, "{fetched} bytes of {size} for nothing but a mount");
    let first = fs::read(packed.place.path("config.json")).unwrap();
    assert_eq!(first, packed.right("config.json"));
    let fetched = packed.registry.fetched();
    assert!(fetched < size, "the first file came with the last byte of {size}");
    let missing = fs::metadata(packed.place.path("missing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound, "waited for and not there");
    packed.assert_all(&packed.place);
    packed.place.wait_until_complete();
    packed.place.unmount();

    let before = packed.registry.settled();
    packed.mount();
    packed.assert_all(&packed.place);
    let cost = packed.registry.settled() - before;
    assert!(cost < MIB / 4, "{cost} bytes for what is kept");
    assert_eq!(packed.place.status()["standing"], "verified");
}

#[test]
fn a_layer_whose_annotation_names_its_first_file_is_that_file_on_every_mount() {
    let files = files();
    let mut artifact = compressed::pack(&files, Form::Gzip);
    let mut manifest: serde_json::Value = serde_json::from_slice(&artifact.manifest).unwrap();
    manifest["layers"][0]["annotations"] = serde_json::json!({"org.cncf.model.filepath": "text/config.json"});
    artifact.manifest = manifest.to_string().into_bytes();
    let packed = Packed::of(files, artifact);
    let look = |place: &Place, arguments: &[&str]| {
        place.mount(&packed.reference(), arguments);
        assert_eq!(names(&place.dir()), ["text"]);
        assert_eq!(names(&place.path("text")), ["config.json"]);
        assert_eq!(fs::read(place.path("text/config.json")).unwrap(), packed.right("config.json"));
        place.wait_until_complete();
        place.unmount();
    };
    look(&packed.place, &[]);
    look(&packed.place, &[]);
    look(&Place::new(), &["--integrity", "strict"]);
}

#[test]
fn a_gzip_layer_is_mounted_before_it_is_here_and_fetched_once() {
    is_there_before_it_is_here(Form::Gzip);
}

#[test]
fn a_layer_of_pigz_is_mounted_before_it_is_here_and_fetched_once() {
    is_there_before_it_is_here(Form::Pigz);
}

#[test]
fn a_zstd_layer_of_one_frame_is_mounted_before_it_is_here_and_fetched_once() {
    is_there_before_it_is_here(Form::Zstd);
}

#[test]
fn a_zstd_layer_of_many_frames_is_mounted_before_it_is_here_and_fetched_once() {
    is_there_before_it_is_here(Form::Frames);
}

#[test]
fn names_and_reads_wait_for_a_registry_that_goes_and_comes_back_in_the_middle_of_a_layer() {
    let _alone = heavy();
    let mut packed = Packed::new(Form::Gzip);
    packed.registry.weather(SLOW);
    packed.mount();
    assert_eq!(fs::read(packed.place.path("config.json")).unwrap(), packed.right("config.json"));
    packed.registry.stop();
    packed.registry.weather(Weather::Clear);
    let path = packed.place.path("weights/last.safetensors");
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| fs::read(&path).unwrap());
        assert!(!wait::eventually(Duration::from_secs(1), || reader.is_finished()), "read out of nowhere");
        packed.registry.restart();
        let got = reader.join().unwrap();
        assert!(got == packed.right("weights/last.safetensors"));
    });
    packed.assert_all(&packed.place);
}

#[test]
fn what_a_line_that_hangs_does_not_bring_is_an_error_at_the_deadline() {
    let _alone = heavy();
    let packed = Packed::new(Form::Gzip);
    packed.registry.weather(SLOW);
    packed.place.mount(&packed.reference(), &["--read-deadline", "2s"]);
    assert_eq!(fs::read(packed.place.path("config.json")).unwrap(), packed.right("config.json"));
    packed.registry.weather(Weather::Stall);
    let lost = fs::metadata(packed.place.path("weights/last.safetensors")).unwrap_err();
    assert_eq!(lost.raw_os_error(), Some(EIO));
    packed.registry.weather(Weather::Clear);
    packed.assert_all(&packed.place);
}

#[test]
fn a_layer_whose_digest_is_another_is_poisoned_once_it_has_gone_by() {
    let _alone = heavy();
    let packed = Packed::new(Form::Gzip);
    let (digest, size) = packed.layer();
    packed.registry.corrupt(digest, size / 2);
    packed.mount();
    // Where nothing is loaded that nobody asked for, it goes by once somebody asks: who gets what lies before the wrong byte, or an error.
    match fs::read(packed.place.path("first.safetensors")) {
        Ok(got) => read::assert_same(
            &packed.place.path("first.safetensors"),
            0,
            &got,
            packed.right("first.safetensors"),
        ),
        Err(error) => assert_eq!(error.raw_os_error(), Some(EIO)),
    }
    packed.place.wait_for("poisoned", Duration::from_secs(60));
    assert_eq!(errno(&packed.place.path("first.safetensors")), Some(EIO));
    assert!(packed.place.status()["kept"] == 0);
}

#[test]
fn a_layer_that_was_cut_off_by_its_writer_gives_what_it_has_and_errors_for_the_rest() {
    let _alone = heavy();
    let files = files();
    let whole = compressed::pack(&files, Form::Gzip);
    let Content::Bytes(layer) = &whole.blobs[0].content else { panic!("on disk") };
    let cut = compressed::with_layer(&whole, Form::Gzip, layer[..layer.len() / 2].to_vec());
    let packed = Packed::of(files, cut);
    packed.mount();
    packed.assert_right(&packed.place, "config.json");
    packed.assert_right(&packed.place, "first.safetensors");
    assert_eq!(errno(&packed.place.path("weights/last.safetensors")), Some(EIO));
    let listed = fs::read_dir(packed.place.dir()).and_then(|mut names| names.next().transpose());
    assert_eq!(listed.unwrap_err().raw_os_error(), Some(EIO), "nobody knows what else there would be");
    packed.assert_right(&packed.place, "first.safetensors");
}

#[test]
fn a_process_killed_in_the_middle_of_a_layer_leaves_a_store_that_the_next_mount_is_right_with() {
    let _alone = heavy();
    let packed = Packed::new(Form::Zstd);
    packed.registry.weather(SLOW);
    packed.mount();
    packed.assert_right(&packed.place, "first.safetensors");
    packed.place.kill();
    packed.registry.weather(Weather::Clear);
    packed.mount();
    packed.assert_all(&packed.place);
    packed.place.wait_until_complete();
}

#[test]
fn two_mounts_of_a_layer_at_once_are_both_right_and_fetch_it_twice_at_most() {
    let _alone = heavy();
    let packed = Packed::new(Form::Gzip);
    let other = packed.place.neighbour();
    packed.mount();
    other.mount(&packed.reference(), &[]);
    std::thread::scope(|scope| {
        scope.spawn(|| packed.assert_all(&packed.place));
        packed.assert_all(&other);
    });
    packed.place.wait_until_complete();
    other.wait_until_complete();
    let (fetched, (_, size)) = (packed.registry.settled(), packed.layer());
    assert!(fetched < 2 * size + MIB, "{fetched} bytes of {size}");
}

#[test]
fn a_store_without_room_for_the_layer_serves_it_all_the_same() {
    let _alone = heavy();
    let packed = Packed::new(Form::Gzip);
    packed.place.mount(&packed.reference(), &["--store-size", "2MiB"]);
    packed.assert_all(&packed.place);
    packed.assert_all(&packed.place);
}

#[test]
fn strict_names_and_serves_nothing_before_the_layer_is_proved() {
    let _alone = heavy();
    let packed = Packed::new(Form::Gzip);
    let (_, size) = packed.layer();
    packed.registry.weather(SLOW);
    packed.place.mount(&packed.reference(), &["--integrity", "strict"]);
    packed.assert_right(&packed.place, "config.json");
    assert!(packed.registry.fetched() >= size);
    packed.assert_all(&packed.place);
    assert_eq!(packed.place.status()["integrity"], "strict");
}

#[test]
fn commands_read_a_compressed_layer_without_a_mount() {
    let _alone = heavy();
    let packed = Packed::new(Form::Pigz);
    let listed = packed.place.run(["ls", &packed.reference()]).ok().stdout;
    for file in &packed.files {
        assert!(listed.contains(&file.path), "{listed}");
    }
    let config = packed.place.run(["cat", &packed.reference(), "config.json", "--range", "0-9"]).ok();
    assert_eq!(config.stdout, String::from_utf8_lossy(&packed.right("config.json")[..10]));
    let folder = packed.place.folder("pulled");
    packed.place.run(["pull", &packed.reference(), "--output", folder.to_str().unwrap()]).ok();
    for file in &packed.files {
        assert!(fs::read(folder.join(&file.path)).unwrap() == packed.right(&file.path), "{}", file.path);
    }
    packed.place.run(["pull", &packed.reference()]).ok();
    let before = packed.registry.settled();
    packed.mount();
    packed.assert_all(&packed.place);
    assert!(packed.registry.settled() - before < MIB / 4);
}

#[test]
fn what_was_evicted_comes_back_by_span_from_the_index_that_was_made_here() {
    let _alone = heavy();
    let packed = Packed::new(Form::Gzip);
    packed.mount();
    packed.assert_all(&packed.place);
    packed.place.wait_until_complete();
    packed.place.unmount();
    let (digest, size) = packed.layer();
    for file in fs::read_dir(packed.place.layer(digest)).unwrap().map(|file| file.unwrap().path()) {
        if file.extension().is_some_and(|ending| ending == "data" || ending == "kept") {
            fs::remove_file(file).unwrap();
        }
    }
    let before = packed.registry.settled();
    packed.place.mount(&packed.reference(), &["--warm", "none"]);
    assert_eq!(packed.place.status()["standing"], "verified");
    packed.assert_right(&packed.place, "first.safetensors");
    let cost = packed.registry.settled() - before;
    assert!(cost < size * 3 / 4, "{cost} bytes of {size} for a file of one");
    packed.assert_all(&packed.place);
}

#[test]
fn layers_of_one_file_that_say_so_make_nobody_wait_for_a_name() {
    let _alone = heavy();
    let files = files();
    let artifact = compressed::pack_each(&files, Form::Gzip);
    let packed = Packed::of(files, artifact);
    packed.registry.weather(SLOW);
    // Nobody reads the empty file's layer: it is loaded unasked.
    packed.place.mount(&packed.reference(), &["--warm", "auto"]);
    assert!(packed.registry.fetched() < MIB, "a start of each layer is enough");
    packed.registry.weather(Weather::Stall);
    for file in &packed.files {
        assert_eq!(fs::metadata(packed.place.path(&file.path)).unwrap().len(), file.content.size());
    }
    let missing = fs::metadata(packed.place.path("weights/missing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    assert_eq!(names(&packed.place.path("weights")).len(), 3);
    packed.registry.weather(Weather::Clear);
    packed.assert_all(&packed.place);
    packed.place.wait_until_complete();
}
