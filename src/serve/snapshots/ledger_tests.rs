//! What the ledger keeps, what it refuses, and what is known again after a restart.

use tonic::Code;

use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn code<T: std::fmt::Debug>(done: Result<T, Refused>) -> Code {
    done.unwrap_err().code
}

fn committed(ledger: &Ledger, name: &str, parent: &str) {
    let key = format!("making {name}");
    ledger.create(&key, parent, Kind::Active, Labels::new()).unwrap();
    ledger.commit(&key, name, Labels::new(), Usage::default()).unwrap();
}

#[test]
fn snapshots_are_known_again_after_a_restart_with_their_parents_labels_and_folders() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("snapshots");
    let ledger = Ledger::open(&root).unwrap();
    let first = ledger.create("a", "", Kind::Active, labels(&[("k", "v")])).unwrap();
    std::fs::write(ledger.fs(first.id).join("file"), "x").unwrap();
    ledger.commit("a", "one", labels(&[("l", "w")]), Usage { size: 7, inodes: 2 }).unwrap();
    let second = ledger.create("b", "one", Kind::View, Labels::new()).unwrap();
    drop(ledger);
    let ledger = Ledger::open(&root).unwrap();
    let one = ledger.get("one").unwrap();
    assert_eq!(
        (one.id, one.kind, one.labels, one.usage.size),
        (first.id, Kind::Committed, labels(&[("l", "w")]), 7)
    );
    let chain = ledger.chain("b").unwrap();
    assert_eq!(chain.iter().map(|record| record.id).collect::<Vec<_>>(), [second.id, first.id]);
    assert_eq!(std::fs::read(ledger.fs(first.id).join("file")).unwrap(), b"x");
    assert!(!ledger.work(second.id).exists(), "a view is not written to");
    assert!(ledger.create("c", "", Kind::Active, Labels::new()).unwrap().id > second.id);
}

#[test]
fn a_number_is_given_to_one_snapshot_as_long_as_the_process_lives_and_the_folder_is_there() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("s");
    let ledger = Ledger::open(&root).unwrap();
    let make = |ledger: &Ledger, key: &str| ledger.create(key, "", Kind::Active, Labels::new()).unwrap().id;
    let (first, second) = (make(&ledger, "a"), make(&ledger, "b"));
    ledger.remove("b").unwrap();
    ledger.discard(second);
    let third = make(&ledger, "c");
    assert!(first < second && second < third);
    ledger.remove("c").unwrap();
    drop(ledger);
    // Its folder is nobody's, and not taken away yet.
    let ledger = Ledger::open(&root).unwrap();
    assert!(make(&ledger, "d") > third);
}

#[test]
fn what_containerds_own_snapshotters_refuse_is_refused_with_their_codes() {
    let place = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&place.path().join("s")).unwrap();
    let create = |key: &str, parent: &str| ledger.create(key, parent, Kind::Active, Labels::new());
    let commit = |key: &str, name: &str| ledger.commit(key, name, Labels::new(), Usage::default());
    committed(&ledger, "one", "");
    create("active", "one").unwrap();
    assert_eq!(code(create("active", "one")), Code::AlreadyExists);
    assert_eq!(code(create("one", "")), Code::AlreadyExists);
    assert_eq!(code(create("b", "none")), Code::NotFound);
    assert_eq!(code(create("b", "active")), Code::InvalidArgument);
    assert_eq!(code(commit("none", "two")), Code::NotFound);
    assert_eq!(code(commit("active", "one")), Code::AlreadyExists);
    assert_eq!(code(commit("one", "two")), Code::FailedPrecondition);
    ledger.create("view", "one", Kind::View, Labels::new()).unwrap();
    assert_eq!(code(commit("view", "two")), Code::FailedPrecondition);
    assert_eq!(code(ledger.remove("one")), Code::FailedPrecondition);
    assert_eq!(code(ledger.remove("none")), Code::NotFound);
    assert_eq!(code(ledger.relabel("none", |_| Ok(()))), Code::NotFound);
    for name in ["view", "active", "one"] {
        ledger.remove(name).unwrap();
    }
    assert!(ledger.list(&[]).is_empty());
}

#[test]
fn folders_of_removed_snapshots_are_strays_and_those_under_way_or_with_an_unreadable_record_are_not() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("s");
    let ledger = Ledger::open(&root).unwrap();
    committed(&ledger, "gone", "");
    committed(&ledger, "stays", "");
    committed(&ledger, "odd", "");
    let odd = ledger.get("odd").unwrap().id;
    let gone = ledger.remove("gone").unwrap().id;
    let reserved = ledger.reserve();
    std::fs::create_dir(ledger.folder(reserved.id)).unwrap();
    assert_eq!(ledger.strays(), [gone]);
    assert!(ledger.is_somebodys(reserved.id));
    let under_way = reserved.id;
    drop(reserved);
    assert!(ledger.strays().contains(&under_way));
    for stray in ledger.strays() {
        ledger.discard(stray);
    }
    assert!(ledger.strays().is_empty() && !ledger.folder(gone).exists());
    drop(ledger);
    std::fs::write(root.join("meta").join(format!("{odd}.json")), "{").unwrap();
    let ledger = Ledger::open(&root).unwrap();
    assert!(ledger.strays().is_empty() && ledger.folder(odd).exists());
    assert!(ledger.is_somebodys(odd) && !ledger.is_somebodys(gone), "what is mounted in it stays");
    assert_eq!(ledger.list(&[]).len(), 1);
}

#[test]
fn a_remote_snapshot_is_found_by_what_it_stands_for_and_lies_on() {
    let place = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&place.path().join("s")).unwrap();
    let remote =
        super::super::record::Remote { reference: "r".into(), first: 1, layers: vec![], top: 1, index: None };
    let record = Record {
        labels: labels(&[(TARGET, "sha256:t")]),
        remote: Some(remote),
        ..Record::new(ledger.reserve().id, "r/1/sha256:t", "", Kind::Committed)
    };
    ledger.insert(record.clone()).unwrap();
    assert_eq!(code(ledger.insert(record.clone())), Code::AlreadyExists);
    assert_eq!(ledger.find_remote("sha256:t", "").unwrap().id, record.id);
    assert!(ledger.find_remote("sha256:t", "other").is_none() && ledger.find_remote("t", "").is_none());
    assert_eq!(ledger.holder(&ledger.fs(record.id)), Some(record.id));
    assert_eq!(ledger.holder(Path::new("/elsewhere/7/fs")), None);
}

#[test]
fn a_new_folder_has_its_parents_owner_and_modes_of_its_own() {
    let place = tempfile::tempdir().unwrap();
    let ledger = Ledger::open(&place.path().join("s")).unwrap();
    committed(&ledger, "one", "");
    let one = ledger.get("one").unwrap().id;
    let own = std::fs::metadata(ledger.fs(one)).unwrap();
    assert_eq!(own.mode() & 0o7777, 0o755);
    let child = ledger.create("c", "one", Kind::Active, Labels::new()).unwrap();
    assert_eq!(std::fs::metadata(ledger.fs(child.id)).unwrap().uid(), own.uid());
    assert_eq!(std::fs::metadata(ledger.work(child.id)).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(std::fs::metadata(ledger.folder(child.id)).unwrap().mode() & 0o7777, 0o700);
}

#[test]
fn one_process_has_the_folder_and_its_path_can_stand_among_mount_options() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("s");
    let _first = Ledger::open(&root).unwrap();
    assert_eq!(Ledger::open(&root).unwrap_err().kind(), Fault::Busy);
    for odd in ["a:b", "a,b", "a\\b"] {
        assert_eq!(Ledger::open(&place.path().join(odd)).unwrap_err().kind(), Fault::Invalid);
    }
}
