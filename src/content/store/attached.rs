//! Which attached index was used of an artifact, so that it is used again while nobody answers.
//!
//! One small file a subject, `small/WHO/attached/ALGORITHM-HEX`; the index's head is kept beside it under its own digest. Whoever
//! trusts such indexes asks; others never do.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Store, key, private};
use crate::oci::artifact::BoundIndex;
use crate::oci::{Blob, Digest};

/// More than such a file has.
const LIMIT: u64 = 4 << 10;

#[derive(Deserialize, Serialize)]
struct Note {
    index: Digest,
    size: u64,
    head: Digest,
    head_size: u64,
}

impl Store {
    /// Remembers that `who` has used `index` of the artifact `subject`.
    pub fn keep_attached(&self, who: &str, subject: &Digest, index: &BoundIndex) {
        let (blob, head) = (&index.blob, &index.head);
        let note = Note {
            index: blob.digest.clone(),
            size: blob.size,
            head: head.digest.clone(),
            head_size: head.size,
        };
        let json = serde_json::to_vec(&note).unwrap_or_default();
        let path = note_path(&self.folder.join("small").join(key(who)), subject);
        self.note(private::write_small(&path, &json), "remember an attached index");
    }

    /// The index that `who` has used of the artifact `subject` the last time.
    #[must_use]
    pub fn attached(&self, who: &str, subject: &Digest) -> Option<BoundIndex> {
        read(&self.folder.join("small").join(key(who)), subject)
    }
}

/// The index that was used of the artifact `subject` by whose small files these are, and where that is noted.
pub(super) fn noted(who: &Path, subject: &Digest) -> Option<(PathBuf, BoundIndex)> {
    Some((note_path(who, subject), read(who, subject)?))
}

fn read(who: &Path, subject: &Digest) -> Option<BoundIndex> {
    let json = private::read_small(&note_path(who, subject), LIMIT).ok()?;
    let note: Note = serde_json::from_slice(&json).ok()?;
    let head = Blob { digest: note.head, size: note.head_size };
    Some(BoundIndex { blob: Blob { digest: note.index, size: note.size }, head })
}

fn note_path(who: &Path, subject: &Digest) -> PathBuf {
    who.join("attached").join(format!("{}-{}", subject.algorithm().name(), subject.hex()))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::Asked;
    use super::super::audit::tests::store;
    use super::super::prune::Prune;
    use super::*;
    use crate::oci::Reference;
    use crate::repository::Pinned;

    #[test]
    fn an_index_that_was_used_is_known_to_who_used_it_and_stays_with_its_artifact() {
        let (_dir, store) = store();
        let bytes = Bytes::from_static(br#"{"schemaVersion":2,"layers":[]}"#);
        let pinned = Pinned { digest: Digest::of(&bytes), media_type: String::new(), bytes };
        let head = Bytes::from_static(b"head");
        let index = BoundIndex {
            blob: Blob { digest: Digest::of(b"index"), size: 9 },
            head: Blob { digest: Digest::of(&head), size: 4 },
        };
        store.keep_small("me", &index.head.digest, &head);
        store.keep_attached("me", &pinned.digest, &index);
        assert_eq!(store.attached("me", &pinned.digest), Some(index.clone()));
        assert_eq!(store.attached("you", &pinned.digest), None);
        let reference: Reference = "127.0.0.1:1/a/b:v1".parse().unwrap();
        store.admit("me", &Asked::from(&reference), &pinned);
        let _ = store.prune(Prune::All);
        assert_eq!(store.attached("me", &pinned.digest), Some(index.clone()));
        assert_eq!(store.small("me", &index.head.digest), Some(head));
        store.revoke("me", &reference);
        let _ = store.prune(Prune::All);
        assert_eq!(store.attached("me", &pinned.digest), None);
    }
}
