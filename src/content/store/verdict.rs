//! What was found out about what is kept: that it is its layer, and by which headers; or that it is not.
//!
//! A layer's digest is one over its files and over what lies between them, which each mount was given by itself and read names
//! from. So both verdicts hold for those headers alone, and for a mount that has read none.

use std::path::Path;
use std::time::SystemTime;
use std::{fs, io};

use super::{GapsDigest, Sharing, Store, private};
use crate::oci::Digest;

/// The file that says whose own digest was found over what is kept beside it, and over which headers.
const PAID: &str = "digest";

/// The file that says with which headers what was kept was disproved.
const POISONED: &str = "poisoned";

/// The file that is newer than that once what was kept was removed.
const EMPTIED: &str = "poisoned.emptied";

/// More than one of these files has.
const LIMIT: u64 = 256;

impl Store {
    /// Whether what is kept for `who` under the name `kept_as` was found to be what the layer's own digest says, by the headers
    /// that these are the digest of; `None`, for who has read no names from them: by whichever.
    #[must_use]
    pub fn is_paid(&self, who: &str, kept_as: &Digest, layer: &Digest, gaps: Option<GapsDigest>) -> bool {
        self.sharing == Sharing::Proved && says_paid(&self.home(who, kept_as), layer, gaps)
    }

    /// The same of what all share who can have it.
    #[must_use]
    pub fn is_paid_for_all(&self, kept_as: &Digest, layer: &Digest, gaps: Option<GapsDigest>) -> bool {
        self.sharing == Sharing::Proved && says_paid(&self.shared(kept_as), layer, gaps)
    }

    /// Records that it was. One set of headers is remembered, the last: there is but one that is the layer's.
    pub fn note_paid(&self, who: &str, kept_as: &Digest, layer: &Digest, gaps: Option<GapsDigest>) {
        let home = self.home(who, kept_as);
        if !says_paid(&home, layer, gaps) {
            let text = gaps.map_or_else(|| layer.to_string(), |gaps| format!("{layer} {gaps}"));
            let written = private::write_small(&home.join(PAID), text.as_bytes());
            self.note(written, "record that a layer is right");
        }
    }

    /// Whether somebody found what is kept of the layer for `who` to be wrong with these headers, however long ago.
    #[must_use]
    pub fn is_poisoned(&self, who: &str, layer: &Digest, gaps: Option<GapsDigest>) -> bool {
        let said = private::read_small(&self.own(who, layer).join(POISONED), LIMIT);
        said.is_ok_and(|said| said == poisoned_by(gaps).as_bytes())
    }

    /// Whether somebody found it to be wrong with these headers at or after `since`.
    #[must_use]
    pub fn poisoned_since(
        &self,
        who: &str,
        layer: &Digest,
        gaps: Option<GapsDigest>,
        since: SystemTime,
    ) -> bool {
        modified(&self.own(who, layer).join(POISONED)).is_some_and(|when| when >= since)
            && self.is_poisoned(who, layer, gaps)
    }

    /// Removes everything kept of the layer for `who`, in use or not, and leaves word of it for other processes: for those that
    /// have these headers.
    pub fn poison(&self, who: &str, layer: &Digest, gaps: Option<GapsDigest>) {
        let marker = self.own(who, layer).join(POISONED);
        // What an earlier one removed says nothing of what was kept since.
        let _ = fs::remove_file(self.own(who, layer).join(EMPTIED));
        self.note(private::write_small(&marker, poisoned_by(gaps).as_bytes()), "record a poisoned layer");
        self.empty_for_good(who, layer);
    }

    /// Removes what a process that found the layer to be wrong did not come to remove. What is kept since then stays.
    pub fn finish_poisoning(&self, who: &str, layer: &Digest) {
        let own = self.own(who, layer);
        let Some(poisoned) = modified(&own.join(POISONED)) else { return };
        if modified(&own.join(EMPTIED)).is_none_or(|emptied| emptied < poisoned) {
            self.empty_for_good(who, layer);
        }
    }

    /// Leaves what is said of a layer that is being shared where it holds: with `who` has it from that place.
    pub(super) fn keep_word(&self, who: &str, layer: &Digest) -> io::Result<()> {
        let (shared, own) = (self.shared(layer), self.own(who, layer));
        if !shared.join(POISONED).exists() {
            return Ok(());
        }
        private::make_dir(&own)?;
        [POISONED, EMPTIED].iter().try_for_each(|word| match fs::rename(shared.join(word), own.join(word)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        })
    }

    fn empty_for_good(&self, who: &str, layer: &Digest) {
        self.empty(who, layer);
        let written = private::write_small(&self.own(who, layer).join(EMPTIED), b"");
        self.note(written, "record that a poisoned layer is removed");
    }

    /// Removes what is kept of the layer for `who` and was not proved yet, as if it had never been here.
    pub fn discard(&self, who: &str, layer: &Digest) {
        self.empty(who, layer);
    }

    fn empty(&self, who: &str, layer: &Digest) {
        for entry in fs::read_dir(self.own(who, layer)).into_iter().flatten().flatten() {
            // The word that is left, also while another process is leaving it.
            if !entry.file_name().as_encoded_bytes().starts_with(POISONED.as_bytes()) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::symlink_metadata(path).and_then(|meta| meta.modified()).ok()
}

fn says_paid(home: &Path, layer: &Digest, gaps: Option<GapsDigest>) -> bool {
    let said = private::read_small(&home.join(PAID), LIMIT).unwrap_or_default();
    let mut words = said.split(|byte| *byte == b' ');
    words.next() == Some(layer.to_string().as_bytes())
        && gaps.is_none_or(|gaps| words.next() == Some(gaps.to_string().as_bytes()))
}

fn poisoned_by(gaps: Option<GapsDigest>) -> String {
    gaps.map(|gaps| gaps.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::audit::tests::store;
    use super::super::prune::Prune;
    use super::*;
    use crate::index::Gap;
    use crate::range::ContentRange;

    const ALICE: &str = "host:1/a/b as alice";
    const BOB: &str = "host:1/a/b as bob";

    fn headers(bytes: &'static [u8]) -> Option<GapsDigest> {
        let range = ContentRange::new(0, bytes.len() as u64);
        GapsDigest::of(&[Gap { range, bytes: Some(bytes.into()) }])
    }

    #[test]
    fn what_was_proved_with_some_headers_counts_for_who_has_the_same_and_for_who_has_read_none() {
        let (_dir, store) = store();
        let (name, layer, other) = (Digest::of(b"name"), Digest::of(b"layer"), Digest::of(b"other"));
        let (right, wrong) = (headers(b"right"), headers(b"wrong"));
        let paid = || [right, wrong, None].map(|gaps| store.is_paid(ALICE, &name, &layer, gaps));
        assert_eq!(paid(), [false; 3]);
        store.note_paid(ALICE, &name, &layer, None);
        assert_eq!(paid(), [false, false, true]);
        for gaps in [right, None] {
            store.note_paid(ALICE, &name, &layer, gaps);
            assert_eq!(paid(), [true, false, true]);
        }
        assert!(!store.is_paid(ALICE, &name, &other, right) && !store.is_paid(BOB, &name, &layer, right));
        assert!(!store.is_paid_for_all(&name, &layer, right), "it is one place's");
        store.set_proved(ALICE, &name);
        assert!(store.is_paid_for_all(&name, &layer, right) && !store.is_paid_for_all(&name, &layer, wrong));
    }

    #[test]
    fn poisoning_removes_what_is_kept_and_is_seen_by_who_was_there_with_the_same_headers() {
        let (_dir, store) = store();
        let (layer, now) = (Digest::of(b"layer"), SystemTime::now());
        let (start, later) = (now - Duration::from_secs(1), now + Duration::from_secs(60));
        for gaps in [None, headers(b"wrong")] {
            let kept = store.file(ALICE, &layer, ContentRange::new(0, 100)).unwrap();
            assert!(!store.poisoned_since(ALICE, &layer, gaps, start));
            store.poison(ALICE, &layer, gaps);
            assert!(kept.removed());
            assert!(
                store.poisoned_since(ALICE, &layer, gaps, start) && store.is_poisoned(ALICE, &layer, gaps)
            );
            assert!(!store.poisoned_since(BOB, &layer, gaps, start));
            assert!(!store.poisoned_since(ALICE, &layer, gaps, later));
            assert!(!store.is_poisoned(ALICE, &layer, headers(b"right")));
        }
    }

    #[test]
    fn a_poisoning_is_finished_once_and_what_is_kept_after_it_stays() {
        let (_dir, store) = store();
        let (layer, whole) = (Digest::of(b"layer"), ContentRange::new(0, 100));
        let own = store.own(ALICE, &layer);
        store.poison(ALICE, &layer, None);
        let kept = store.file(ALICE, &layer, whole).unwrap();
        store.finish_poisoning(ALICE, &layer);
        assert!(!kept.removed(), "it came after");
        // As a process leaves it that ends before it has removed anything.
        for left in [None, Some(SystemTime::UNIX_EPOCH)] {
            let kept = store.file(ALICE, &layer, whole).unwrap();
            match left {
                None => fs::remove_file(own.join(EMPTIED)).unwrap(),
                Some(when) => {
                    fs::File::open(own.join(EMPTIED)).unwrap().set_modified(when).unwrap();
                }
            }
            store.finish_poisoning(ALICE, &layer);
            assert!(kept.removed() && store.is_poisoned(ALICE, &layer, None));
        }
    }

    #[test]
    fn sharing_a_bound_layer_leaves_the_word_that_it_is_another_and_proving_a_plain_one_takes_it_back() {
        type Share = fn(&Store, &str, &Digest);
        for (share, stays) in [(Store::set_bound as Share, true), (Store::set_proved as Share, false)] {
            let (_dir, store) = store();
            let layer = Digest::of(b"layer");
            store.poison(ALICE, &layer, headers(b"right"));
            let kept = store.file(ALICE, &layer, ContentRange::new(0, 100)).unwrap();
            share(&store, ALICE, &layer);
            assert!(store.proved(ALICE, &layer) && !kept.removed());
            assert_eq!(store.is_poisoned(ALICE, &layer, headers(b"right")), stays);
            store.finish_poisoning(ALICE, &layer);
            assert!(store.proved(ALICE, &layer));
        }
    }

    #[test]
    fn what_is_noted_of_a_poisoned_layer_goes_when_all_does() {
        let (_dir, store) = store();
        let layer = Digest::of(b"layer");
        store.poison(ALICE, &layer, None);
        assert_eq!(store.prune(Prune::Leftovers).leftovers, 0, "it is new");
        assert!(store.is_poisoned(ALICE, &layer, None));
        assert_eq!(store.prune(Prune::All).leftovers, 2, "the word, and that what was kept is gone");
        assert!(!store.is_poisoned(ALICE, &layer, None));
    }
}
