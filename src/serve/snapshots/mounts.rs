//! How a snapshot is mounted, as containerd's overlay snapshotter answers: a bind where one folder is all there is, else an overlay.
//!
//! Words only: containerd does the mounting, wherever it wants the snapshot. What is in them are this machine's own paths, whose
//! letters the ledger has checked.

use std::path::{Path, PathBuf};

use super::ledger::Ledger;
use super::record::{Kind, Record};
use super::v1::types::Mount;

/// The mounts of the snapshot that `chain` begins with, which lies on the others.
pub(super) fn of(ledger: &Ledger, chain: &[Record]) -> Vec<Mount> {
    let Some((record, below)) = chain.split_first() else { return Vec::new() };
    let lower = lower(ledger, below);
    let own = ledger.fs(record.id);
    vec![match (record.kind, lower.as_slice()) {
        (Kind::Active, []) => bind(&own, "rw"),
        (_, []) => bind(&own, "ro"),
        (Kind::Active, lower) => {
            let upper = format!("upperdir={}", own.display());
            overlay(lower, vec![format!("workdir={}", ledger.work(record.id).display()), upper])
        }
        (_, [one]) => bind(one, "ro"),
        (_, lower) => overlay(lower, Vec::new()),
    }]
}

/// The folders that these snapshots come to, the uppermost first: a remote one shows others that it lies on as well.
pub(super) fn lower(ledger: &Ledger, chain: &[Record]) -> Vec<PathBuf> {
    shown(chain).iter().map(|record| ledger.fs(record.id)).collect()
}

/// Those of the chain whose folders are needed to show all of it.
pub(super) fn shown(chain: &[Record]) -> Vec<&Record> {
    let (mut shown, mut left) = (Vec::new(), chain);
    while let Some(record) = left.first() {
        shown.push(record);
        let covers = record.remote.as_ref().map_or(1, |remote| remote.layers.len()).max(1);
        left = left.get(covers..).unwrap_or_default();
    }
    shown
}

fn bind(source: &Path, how: &str) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: source.display().to_string(),
        target: String::new(),
        options: vec![how.to_owned(), "rbind".to_owned()],
    }
}

fn overlay(lower: &[PathBuf], mut options: Vec<String>) -> Mount {
    // Where the kernel would keep an index of upper folders, one could not be used by two mounts after one another.
    if Path::new("/sys/module/overlay/parameters/index").exists() {
        options.insert(0, "index=off".to_owned());
    }
    let lower: Vec<String> = lower.iter().map(|path| path.display().to_string()).collect();
    options.push(format!("lowerdir={}", lower.join(":")));
    Mount { r#type: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;
    use crate::serve::snapshots::record::Remote;

    fn record(id: u64, kind: Kind, layers: usize) -> Record {
        let layers = vec![Digest::of(b"l"); layers];
        let remote = Remote { reference: "r".into(), first: 1, layers, top: 9, index: None };
        let remote = Some(remote).filter(|remote| !remote.layers.is_empty());
        Record { remote, ..Record::new(id, &id.to_string(), "", kind) }
    }

    /// Type, source and options without the path before `snapshots/` and without the index.
    fn words(chain: &[Record]) -> String {
        let place = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(place.path()).unwrap();
        let [mount] = of(&ledger, chain).try_into().unwrap();
        let options: Vec<_> = mount.options.into_iter().filter(|option| option != "index=off").collect();
        let folder = ledger.folder(0).parent().unwrap().display().to_string();
        format!("{} {} {}", mount.r#type, mount.source, options.join(",")).replace(&format!("{folder}/"), "")
    }

    #[test]
    fn one_folder_is_bound_and_several_are_laid_upon_one_another() {
        let committed = |id| record(id, Kind::Committed, 0);
        assert_eq!(words(&[record(1, Kind::Active, 0)]), "bind 1/fs rw,rbind");
        assert_eq!(words(&[record(1, Kind::View, 0)]), "bind 1/fs ro,rbind");
        assert_eq!(words(&[record(2, Kind::View, 0), committed(1)]), "bind 1/fs ro,rbind");
        assert_eq!(
            words(&[record(3, Kind::Active, 0), committed(2), committed(1)]),
            "overlay overlay workdir=3/work,upperdir=3/fs,lowerdir=2/fs:1/fs"
        );
        assert_eq!(
            words(&[record(3, Kind::View, 0), committed(2), committed(1)]),
            "overlay overlay lowerdir=2/fs:1/fs"
        );
    }

    #[test]
    fn a_remote_snapshot_stands_for_those_below_it_that_it_shows() {
        let chain = [
            record(6, Kind::Active, 0),
            record(5, Kind::Committed, 0),
            record(4, Kind::Committed, 2),
            record(3, Kind::Committed, 1),
            record(2, Kind::Committed, 0),
        ];
        assert_eq!(words(&chain), "overlay overlay workdir=6/work,upperdir=6/fs,lowerdir=5/fs:4/fs:2/fs");
        assert_eq!(words(&[record(6, Kind::View, 0), record(4, Kind::Committed, 1)]), "bind 4/fs ro,rbind");
    }
}
