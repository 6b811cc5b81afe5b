//! `verify` of models, mounts and folders: what it says of the chain, and that nothing wrong gets past it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Given, MIB, NAME, SIZE};
use crate::support::pack::{self, Dialect, Packing};
use crate::support::place::{Place, Ran};
use crate::support::registry::{Registry, flip};
use crate::support::{bound, compressed, sample};

/// What the report says of the large file.
fn row(report: &Value) -> &Value {
    let files = report["files"].as_array().unwrap_or_else(|| panic!("{report}"));
    files.iter().find(|file| file["path"] == NAME).unwrap_or_else(|| panic!("{report}"))
}

fn verify(place: &Place, what: &str) -> Ran {
    place.run(["verify", what, "--json"])
}

#[test]
fn a_model_without_an_index_is_proved_once_all_of_it_is_here() {
    let given = Given::new(false);
    let before = verify(&given.place, &given.reference()).ok().json();
    assert_eq!(before["digest"].as_str(), Some(given.artifact.digest().as_str()));
    assert_eq!((&before["pinnedBy"], &before["index"]), (&json!("the tag v1"), &Value::Null));
    assert_eq!((&row(&before)["provedBy"], &row(&before)["keptBytes"]), (&json!("nothing yet"), &json!(0)));
    assert!(given.registry.settled() < MIB, "no content is fetched");
    given.fill();
    let fetched = given.registry.settled();
    let after = verify(&given.place, &given.reference()).ok().json();
    assert_eq!(row(&after)["provedBy"], "layer digest, on this machine");
    assert_eq!(row(&after)["keptBytes"].as_u64(), Some(SIZE as u64));
    assert!(given.registry.settled() - fetched < MIB, "no content is fetched");
    let text = given.place.run(["verify", &given.reference()]).ok().stdout;
    assert!(text.contains("layer digest") && text.contains("100 %"), "{text}");
}

#[test]
fn a_packed_model_is_proved_by_its_index_and_a_digest_in_the_reference_pins_it() {
    let (registry, place) = (Registry::start(), Place::new());
    let folder = place.folder("model");
    fs::write(folder.join("notes.md"), vec![b'a'; 3000]).unwrap();
    fs::write(folder.join(NAME.replace("safetensors", "txt")), vec![b'b'; 2 * MIB as usize]).unwrap();
    let target = format!("{}/acme/packed:v1", registry.direct());
    let packed = place.run(["pack", folder.to_str().unwrap(), &target, "--json"]).ok().json();
    let digest = packed["digest"].as_str().unwrap();
    let pinned = registry.reference(&format!("acme/packed@{digest}"));
    let report = verify(&place, &pinned).ok().json();
    assert_eq!((&report["digest"], &report["pinnedBy"]), (&json!(digest), &json!("the reference")));
    assert_eq!((&report["index"]["covered"], &report["index"]["layers"]), (&json!(2), &json!(2)), "{report}");
    let files = report["files"].as_array().unwrap();
    assert!(files.len() == 2 && files.iter().all(|file| file["provedBy"] == "bound index"), "{report}");
}

#[test]
fn a_wrong_byte_in_the_store_is_named_and_gone_the_next_time() {
    for bind in [false, true] {
        let given = Given::new(bind);
        given.fill();
        flip(&given.image(), MIB + 5);
        let ran = verify(&given.place, &given.reference()).failed(6, &["digests"]);
        assert_eq!(row(&ran.json())["wrong"], json!(["1048576-2097151"]), "{ran:?}");
        let report = verify(&given.place, &given.reference()).ok().json();
        assert_eq!(row(&report)["keptBytes"].as_u64(), Some(SIZE as u64 - MIB), "{report}");
        given.place.mount(&given.reference(), &[]);
        given.assert_right();
    }
}

#[test]
fn records_of_a_proved_layer_that_were_changed_prove_nothing() {
    let given = Given::new(false);
    given.fill();
    flip(&given.image().with_extension("digests"), 3);
    let ran = verify(&given.place, &given.reference()).failed(6, &[]);
    assert_eq!(row(&ran.json())["provedBy"], "nothing yet", "{ran:?}");
    assert_eq!(row(&verify(&given.place, &given.reference()).ok().json())["keptBytes"], 0);
    given.place.mount(&given.reference(), &[]);
    given.assert_right();
}

#[test]
fn a_mount_is_verified_by_its_folder_with_what_its_process_has_found() {
    let given = Given::new(true);
    given.place.mount(&given.reference(), &["--warm", "none"]);
    let dir = given.place.dir();
    let report = verify(&given.place, dir.to_str().unwrap()).ok().json();
    assert_eq!(report["digest"].as_str(), Some(given.artifact.digest().as_str()), "{report}");
    assert_eq!((&report["mount"]["standing"], &report["mount"]["refused"]), (&json!("verified"), &json!([])));
    given.registry.corrupt(&given.artifact.blobs[0].digest, 5);
    fs::read(given.place.path(NAME)).unwrap_err();
    let ran = verify(&given.place, dir.to_str().unwrap()).failed(6, &[]);
    assert_eq!(ran.json()["mount"]["refused"], json!([format!("{NAME} bytes 0-1048575")]), "{ran:?}");
    given.place.kill();
    let report = verify(&given.place, dir.to_str().unwrap()).ok().json();
    assert_eq!(report["mount"]["standing"], "dead", "{report}");
}

#[test]
fn what_was_opened_before_is_verified_while_nobody_answers() {
    let mut given = Given::new(true);
    given.place.mount(&given.reference(), &["--warm", "all"]);
    given.place.wait_until_complete();
    given.registry.stop();
    for what in [given.reference(), given.place.dir().to_str().unwrap().to_owned()] {
        let report = verify(&given.place, &what).ok().json();
        assert_eq!(row(&report)["keptBytes"].as_u64(), Some(SIZE as u64), "{report}");
    }
}

/// The model's files in a folder, marked as pulled from it.
fn pulled(place: &Place, files: &[pack::File], reference: &str) -> PathBuf {
    let folder = place.folder("pulled");
    for file in files {
        let pack::Content::Bytes(bytes) = &file.content else { unreachable!("in memory") };
        fs::create_dir_all(folder.join(&file.path).parent().unwrap()).unwrap();
        fs::write(folder.join(&file.path), bytes).unwrap();
    }
    xattr::set(&folder, "user.weightfs.pulled", reference.as_bytes()).unwrap();
    folder
}

#[test]
fn a_folder_is_compared_with_the_model_that_it_was_pulled_from() {
    let mut weights = vec![0; SIZE];
    sample::fill(&mut weights, 3);
    let files = [
        pack::File::new(NAME, weights),
        pack::File::new("sub/notes.md", *b"# notes"),
        pack::File::new("empty", *b""),
    ];
    for (packing, bind) in
        [(Packing::Raw, false), (Packing::Raw, true), (Packing::OneTar, true), (Packing::OneTar, false)]
    {
        let plain = pack::pack(&files, packing, Dialect::Upstream, std::path::Path::new("/nowhere"));
        let artifact = if bind { bound::bind(&plain, &files, packing) } else { plain };
        let (registry, place) = (Registry::start(), Place::new());
        registry.push("acme/llm", "v1", &artifact);
        let reference = registry.reference(&format!("acme/llm:v1@{}", artifact.digest()));
        let folder = pulled(&place, &files, &reference);
        let text = folder.to_str().unwrap();
        let found = verify(&place, text).ok().json();
        assert_eq!(row(&found)["keptBytes"].as_u64(), Some(SIZE as u64), "the folder's share: {found}");
        let by = match (packing, bind) {
            (_, true) => "bound index",
            (Packing::Raw, false) => "layer digest",
            _ => "nothing",
        };
        assert_eq!(row(&found)["provedBy"], by, "{found}");
        let alone = packing == Packing::OneTar && !bind;
        assert_eq!(found["folder"]["right"], if alone { 1 } else { 3 }, "{found}");
        let unprovable = if alone { json!([NAME, "sub/notes.md"]) } else { json!([]) };
        assert_eq!(found["folder"]["unprovable"], unprovable, "{found}");
        fs::remove_file(folder.join("sub/notes.md")).unwrap();
        fs::write(folder.join("extra"), b"x").unwrap();
        let found = verify(&place, text).ok().json();
        assert_eq!(found["folder"]["missing"], json!(["sub/notes.md"]), "{found}");
        assert_eq!(found["folder"]["extra"], json!(["extra"]), "{found}");
        if alone {
            fs::write(folder.join(NAME), b"short").unwrap();
        } else {
            flip(&folder.join(NAME), MIB + 9);
        }
        let ran = verify(&place, text).failed(6, &["digests"]);
        let wrong = if bind { format!("{NAME} bytes 1048576-2097151") } else { NAME.to_owned() };
        assert_eq!(ran.json()["folder"]["wrong"], json!([wrong]), "{ran:?}");
        let here = if bind { SIZE as u64 - MIB } else { 0 };
        assert_eq!(row(&ran.json())["keptBytes"].as_u64(), Some(here), "{ran:?}");
        let text = place.run(["verify", text]).failed(6, &[]).stdout;
        assert!(text.contains("WRONG") && text.contains(NAME), "{text}");
    }
}

#[test]
fn a_folder_that_is_neither_is_refused_with_the_way_out() {
    let place = Place::new();
    let folder = place.folder("mine");
    place.run(["verify", folder.to_str().unwrap()]).failed(2, &["pull --output", "REF"]);
    xattr::set(&folder, "user.weightfs.pulled", b"no/reference@nothing").unwrap();
    place.run(["verify", folder.to_str().unwrap()]).failed(2, &["user.weightfs.pulled"]);
}

#[test]
fn a_mount_is_verified_by_what_its_own_store_has() {
    let given = Given::new(false);
    let store = given.place.folder("other-store");
    given.place.mount(&given.reference(), &["--warm", "all", "--store", store.to_str().unwrap()]);
    given.place.wait_until_complete();
    let report = verify(&given.place, given.place.dir().to_str().unwrap()).ok().json();
    assert_eq!(row(&report)["keptBytes"].as_u64(), Some(SIZE as u64), "{report}");
    assert_eq!(row(&report)["provedBy"], "layer digest, on this machine", "{report}");
}

#[test]
fn an_index_that_was_made_on_this_machine_is_called_so() {
    let (registry, place) = (Registry::start(), Place::new());
    let artifact = compressed::pack(&compressed::files(), compressed::Form::Gzip);
    registry.push("acme/packed", "v1", &artifact);
    let reference = registry.reference("acme/packed:v1");
    place.run(["index", "inspect", &reference]).failed(3, &["has no index"]);
    place.run(["index", "build", &reference]).ok();
    let report = verify(&place, &reference).ok().json();
    assert_eq!((&report["index"], &report["indexedHere"]), (&Value::Null, &json!(1)), "{report}");
    let files = report["files"].as_array().unwrap();
    let proved = |file: &Value| file["provedBy"] == "layer digest, on this machine";
    assert!(files.iter().filter(|file| file["size"] != 0).all(proved), "{report}");
    let text = place.run(["verify", &reference]).ok().stdout;
    assert!(text.contains("none of the model's own") && text.contains("index of this machine"), "{text}");
    assert!(text.contains("covers 1 layer\n") && !text.contains("()"), "{text}");

    let inspected = place.run(["index", "inspect", &reference, "--json"]).ok().json();
    assert_eq!(
        (&inspected["how"], &inspected["index"]),
        (&json!("this machine"), &Value::Null),
        "{inspected}"
    );
    assert_eq!(inspected["layers"][0]["digest"].as_str(), Some(artifact.blobs[0].digest.as_str()));
    let text = place.run(["index", "inspect", &reference]).ok().stdout;
    assert!(text.starts_with("made on this machine ("), "{text}");
    let checked = place.run(["index", "verify", &reference, "--json"]).ok().json();
    assert_eq!((&checked["index"], &checked["layersRead"]), (&json!("made on this machine"), &json!(true)));
}
