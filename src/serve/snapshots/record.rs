//! What is noted of a snapshot: a small file each, from which everything is known again after a restart.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::oci::cut::Cut;
use crate::oci::{Digest, Place, Reference};

/// A label as containerd gives them.
pub(super) type Labels = BTreeMap<String, String>;

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The number of its folder: nobody else's as long as the folder or the record is there, nor as long as this process lives. Of one
    /// that is gone the next process may give it again.
    pub(super) id: u64,
    /// What containerd calls it: the key while it is active, the name from its commit on. The namespace is part of it.
    pub(super) name: String,
    /// The name of the snapshot that it lies on; empty where there is none.
    pub(super) parent: String,
    pub(super) kind: Kind,
    pub(super) labels: Labels,
    pub(super) created: SystemTime,
    pub(super) updated: SystemTime,
    /// What a committed one takes on the disk.
    #[serde(default)]
    pub(super) usage: Usage,
    /// The image whose layers it shows, where they are read when they are asked for.
    #[serde(default)]
    pub(super) remote: Option<Remote>,
}

impl Record {
    /// A snapshot of just now, without labels.
    pub(super) fn new(id: u64, name: &str, parent: &str, kind: Kind) -> Self {
        let now = SystemTime::now();
        Self {
            id,
            name: name.to_owned(),
            parent: parent.to_owned(),
            kind,
            labels: Labels::new(),
            created: now,
            updated: now,
            usage: Usage::default(),
            remote: None,
        }
    }
}

/// What a snapshot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    /// To be read.
    View,
    /// To be written to.
    Active,
    /// Done, and never changed again.
    Committed,
}

impl Kind {
    /// As filters spell it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// What a snapshot takes on the disk, beside those that it lies on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Usage {
    /// Bytes.
    pub(super) size: u64,
    /// Files and folders.
    pub(super) inodes: u64,
}

/// Layers of an image, one upon the other, that are shown by a mount and are not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remote {
    /// The image, with its manifest's digest.
    pub(super) reference: String,
    /// The lowest layer that is shown, counted from 1. What lies below it are snapshots of their own.
    pub(super) first: usize,
    /// The digests of the layers shown, the snapshot's own last.
    pub(super) layers: Vec<Digest>,
    /// The last layer that is shown by the mount that was made when this was, so that those above it find it there.
    pub(super) top: usize,
    /// The digest of the head of the index that the chunks of these layers are held to; `None` where there is none.
    #[serde(default)]
    pub(super) index: Option<Digest>,
}

impl Remote {
    /// Whether the same word counts for it as for `other`, which shows the same layers: that of one registry, from whose answers names
    /// are read, and of one index, or of none.
    pub(super) fn has_word_of(&self, other: &Self) -> bool {
        let host = |remote: &Self| match remote.reference.parse::<Reference>().ok()?.place {
            Place::Registry { host, .. } => Some(host),
            Place::Layout { .. } => None,
        };
        self.index == other.index && host(self) == host(other)
    }

    /// The snapshot's own layer.
    pub(super) fn last(&self) -> usize {
        self.first.saturating_add(self.layers.len()).saturating_sub(1)
    }

    /// The layers that it shows.
    pub(super) fn own(&self) -> Option<Cut> {
        Cut::new(self.first, self.last())
    }

    /// The layers up to those that will lie on it.
    pub(super) fn whole(&self) -> Option<Cut> {
        Cut::new(self.first, self.top)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_registry_and_one_index_or_none_are_one_word() {
        let remote = |host: &str, index: Option<&[u8]>| {
            let (reference, layers) = (format!("{host}/a/b:v1"), vec![Digest::of(b"a")]);
            Remote { reference, first: 1, layers, top: 1, index: index.map(Digest::of) }
        };
        let (plain, bound) = (remote("r.io", None), remote("r.io", Some(b"i")));
        for (one, other, is_same) in [
            (&plain, remote("r.io", None), true),
            (&plain, remote("evil.io", None), false),
            (&plain, remote("r.io", Some(b"i")), false),
            (&bound, remote("r.io", Some(b"i")), true),
            (&bound, remote("mirror.io", Some(b"i")), false),
            (&bound, remote("r.io", Some(b"forged")), false),
        ] {
            assert_eq!((one.has_word_of(&other), other.has_word_of(one)), (is_same, is_same), "{other:?}");
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let layers = vec![Digest::of(b"a"), Digest::of(b"b")];
        let index = Some(Digest::of(b"index"));
        let remote = Remote { reference: "r.io/a/b@x".into(), first: 2, layers, top: 4, index };
        assert_eq!((remote.last(), remote.own(), remote.whole()), (3, Cut::new(2, 3), Cut::new(2, 4)));
        let record = Record { remote: Some(remote), ..Record::new(1, "ns/1/a", "", Kind::Active) };
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
    }
}
