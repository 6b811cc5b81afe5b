//! What of the store can go when a person says so, and what never does.
//!
//! Images go whole under the exclusive lock, as in eviction, so never one that somebody uses. Walks the store's folders, so
//! it blocks for as long as the disk takes. Called by `cache prune`.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::admitted::Admission;
use super::budget::{by_use, entries, evict, is_image, is_index};
use super::{GRACE, Store, catalogue, private};
use crate::oci::Digest;

/// What may go of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prune {
    /// Only what is of no use to anybody any more.
    Leftovers,
    /// Also the least recently used images, and indexes of layers that have none any more, until at most so many bytes are left.
    Keep(u64),
    /// Also images that were not used for so long, and indexes of layers of which nothing was.
    OlderThan(Duration),
    /// Every image and index that nobody uses at this moment, and what is known of layers that have none.
    All,
}

/// What went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Bytes of the disk that images and indexes took.
    pub freed: u64,
    /// How many images went.
    pub images: u64,
    /// How many indexes of compressed layers went.
    pub indexes: u64,
    /// Bytes that should have gone and are in use.
    pub in_use: u64,
    /// How many other files went: digests, manifests, admissions.
    pub leftovers: u64,
}

impl Store {
    /// Removes what may go, never what somebody uses.
    ///
    /// Digests of proved layers stay, except with [`Prune::All`]: what is fetched again is held to them. Who was given a
    /// manifest at most [`GRACE`] ago keeps it, with all that opening it again takes while nobody answers.
    #[must_use]
    pub fn prune(&self, what: Prune) -> Pruned {
        let mut pruned = Pruned::default();
        self.prune_images(what, &mut pruned);
        for algorithm in entries(&self.layers()) {
            let folders = entries(&algorithm).into_iter().filter(|folder| folder.is_dir());
            for folder in folders.filter(|folder| is_leftover(folder, what)) {
                pruned.leftovers += remove_folder(&folder);
            }
        }
        pruned.leftovers += self.prune_admissions();
        pruned.leftovers += self.prune_small(what);
        pruned
    }

    fn prune_images(&self, what: Prune, pruned: &mut Pruned) {
        let images = by_use(&self.layers());
        let mut used: u64 = images.iter().map(|image| image.used).sum();
        for image in images {
            let goes = match what {
                Prune::Leftovers => false,
                Prune::Keep(size) => used > size,
                Prune::OlderThan(age) => image.last_use.elapsed().is_ok_and(|unused| unused >= age),
                Prune::All => true,
            };
            if !goes {
                continue;
            }
            match evict(&image.path) {
                Ok(true) => {
                    used = used.saturating_sub(image.used);
                    pruned.freed = pruned.freed.saturating_add(image.used);
                    match is_index(&image.path) {
                        true => pruned.indexes += 1,
                        false => pruned.images += 1,
                    }
                }
                Ok(false) => pruned.in_use = pruned.in_use.saturating_add(image.used),
                Err(error) => tracing::warn!(path = %image.path.display(), %error, "cannot remove"),
            }
        }
    }

    /// Removes admissions that are over.
    fn prune_admissions(&self) -> u64 {
        let over = entries(&self.folder.join("admitted")).into_iter().filter(|path| older_than(path, GRACE));
        removed(over)
    }

    /// Removes manifests, configs and parts of indexes that no admission stands for.
    fn prune_small(&self, what: Prune) -> u64 {
        let live = self.admitted();
        let mut count = 0;
        for who in entries(&self.folder.join("small")) {
            let needed: HashSet<PathBuf> =
                live.iter().flat_map(|manifest| catalogue::needed(&who, manifest)).collect();
            // An admission is written after what it needs: what is new may be waiting for its own.
            let goes =
                |file: &PathBuf| !needed.contains(file) && (what == Prune::All || older_than(file, GRACE));
            let files = entries(&who).into_iter().flat_map(|algorithm| entries(&algorithm));
            count += removed(files.filter(goes));
        }
        count
    }

    /// The manifests that somebody may open again while nobody answers.
    fn admitted(&self) -> HashSet<Digest> {
        let files = entries(&self.folder.join("admitted")).into_iter();
        let admissions = files.filter(|path| !older_than(path, GRACE)).filter_map(|path| {
            let json = private::read_small(&path, 1 << 16).ok()?;
            serde_json::from_slice::<Admission>(&json).ok()
        });
        admissions.map(|admission| admission.digest).collect()
    }
}

/// Whether a layer's folder has no image any more and nobody needs what is left in it.
fn is_leftover(folder: &Path, what: Prune) -> bool {
    let files = entries(folder);
    if files.iter().any(|file| is_image(file)) {
        return false;
    }
    let unused = || older_than(folder, GRACE) && files.iter().all(|file| older_than(file, GRACE));
    if what == Prune::All {
        // One that is left is in use.
        return !files.iter().any(|file| is_index(file));
    }
    !folder.join("proved").exists() && unused()
}

/// Removes what is left of a layer. An image that somebody has begun meanwhile stays, with what is beside it. The lock of the
/// layer stays too: who waits for it would not see that another one has taken its place.
fn remove_folder(folder: &Path) -> u64 {
    let begun = |file: &PathBuf| file.with_extension("data").exists();
    let count = removed(entries(folder).into_iter().filter(|file| !begun(file)));
    let _ = fs::remove_dir(folder);
    count
}

fn removed(files: impl Iterator<Item = PathBuf>) -> u64 {
    files.map(|file| u64::from(fs::remove_file(file).is_ok())).sum()
}

fn older_than(path: &Path, age: Duration) -> bool {
    let modified = fs::symlink_metadata(path).and_then(|meta| meta.modified());
    modified.is_ok_and(|when| when.elapsed().is_ok_and(|old| old >= age))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, FileTimes};
    use std::os::unix::fs::FileExt;
    use std::time::SystemTime;

    use bytes::Bytes;

    use super::super::Asked;
    use super::super::audit::tests::{LEN, WHO, keep, store};
    use super::*;
    use crate::error::{Error, Kind};
    use crate::oci::Reference;
    use crate::repository::Pinned;

    const DAY: u64 = 24 * 3600;

    fn age(path: &Path, days: u64) {
        let then = SystemTime::now() - Duration::from_secs(days * DAY);
        File::open(path).unwrap().set_times(FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
    }

    /// Keeps a file that was last used so long ago; gives its path without ending.
    fn unused(store: &Store, name: &str, days: u64) -> PathBuf {
        let stem = keep(store, name).stem().to_owned();
        store.release_idle(Duration::ZERO);
        age(&stem.with_added_extension("kept"), days);
        stem
    }

    fn is_there(stem: &Path) -> bool {
        stem.with_added_extension("data").exists()
    }

    #[test]
    fn without_a_word_no_kept_file_goes() {
        let (_dir, store) = store();
        let stem = unused(&store, "one", 100);
        assert_eq!(store.prune(Prune::Leftovers), Pruned::default());
        assert!(is_there(&stem));
    }

    #[test]
    fn what_somebody_uses_stays_and_is_counted() {
        let (_dir, store) = store();
        let (open, idle) = (keep(&store, "open"), unused(&store, "idle", 1));
        let pruned = store.prune(Prune::All);
        assert!(is_there(open.stem()) && !open.removed() && !is_there(&idle));
        assert!(open.stem().with_added_extension("digests").exists());
        assert_eq!(pruned.images, 1);
        assert!(pruned.freed >= LEN && pruned.in_use >= LEN);
        let read = open.read(0, &crate::buffer::Pool::default(), || ());
        assert!(read.is_some());
    }

    #[test]
    fn least_recently_used_goes_first_until_so_much_is_left() {
        let (_dir, store) = store();
        let (old, new) = (unused(&store, "old", 2), unused(&store, "new", 1));
        let pruned = store.prune(Prune::Keep(store.used() - 1));
        assert_eq!(pruned.images, 1);
        assert!(!is_there(&old) && is_there(&new));
        assert_eq!(store.prune(Prune::Keep(store.used())).images, 0);
    }

    #[test]
    fn what_was_not_used_for_long_enough_goes() {
        let (_dir, store) = store();
        let (old, new) = (unused(&store, "old", 3), unused(&store, "new", 1));
        assert_eq!(store.prune(Prune::OlderThan(Duration::from_secs(2 * DAY))).images, 1);
        assert!(!is_there(&old) && is_there(&new));
    }

    #[test]
    fn the_index_of_a_layer_goes_with_its_files_or_after_them_unless_somebody_uses_it() {
        let index = |store: &Store| {
            let layer = Digest::of(b"one");
            let kept = store.keep_index(WHO, &layer, "so", |file| {
                file.write_all_at(b"index", 0).map_err(|error| Error::from_source(Kind::Storage, "", error))
            });
            drop(kept.unwrap());
            store.set_proved(WHO, &layer);
            store.shared(&layer).join("index-so")
        };
        for what in [Prune::All, Prune::Keep(0), Prune::OlderThan(Duration::from_secs(2 * DAY))] {
            let (_dir, store) = store();
            unused(&store, "one", 3);
            let path = index(&store);
            age(&path, 3);
            assert_eq!(store.prune(Prune::OlderThan(Duration::from_secs(4 * DAY))), Pruned::default());
            let reader = store.index(WHO, &Digest::of(b"one"), "so").unwrap();
            assert_eq!((store.prune(what).indexes, path.exists()), (0, true), "{what:?}: it is being used");
            drop(reader);
            age(&path, 3);
            assert_eq!((store.prune(what).indexes, path.exists()), (1, false), "{what:?}");
            assert_eq!(store.proved(WHO, &Digest::of(b"one")), what != Prune::All);
        }
    }

    #[test]
    fn digests_of_proved_layers_stay_without_their_images_unless_all_goes() {
        let (_dir, store) = store();
        let layer = Digest::of(b"one");
        drop(keep(&store, "one"));
        store.set_proved(WHO, &layer);
        store.release_idle(Duration::ZERO);
        let folder = store.shared(&layer);
        assert_eq!(store.prune(Prune::Keep(0)).images, 1);
        entries(&folder).iter().for_each(|file| age(file, 100));
        age(&folder, 100);
        assert_eq!(store.prune(Prune::Keep(0)), Pruned::default());
        assert!(store.proved(WHO, &layer) && folder.join(format!("0-{LEN}.digests")).exists());
        assert!(store.prune(Prune::All).leftovers >= 3);
        assert!(!folder.exists());
    }

    #[test]
    fn what_is_left_of_a_layer_that_nobody_proved_goes_when_it_is_old() {
        let (_dir, store) = store();
        let folder = unused(&store, "one", 1).parent().unwrap().to_owned();
        let _ = store.prune(Prune::Keep(0));
        assert!(folder.exists(), "it may be fetched again by who had it");
        entries(&folder).iter().for_each(|file| age(file, 8));
        age(&folder, 8);
        assert_eq!(store.prune(Prune::Leftovers).leftovers, 1);
        assert!(!folder.exists());
    }

    fn reference(tag: &str) -> Reference {
        format!("127.0.0.1:1/a/b:{tag}").parse().unwrap()
    }

    /// Admits somebody to a manifest with a config, both kept.
    fn admit(store: &Store, tag: &str) -> (PathBuf, PathBuf, PathBuf) {
        let config = Bytes::from(format!("{{\"{tag}\":1}}"));
        let digest = Digest::of(&config);
        let manifest = format!(
            "{{\"schemaVersion\":2,\"config\":{{\"mediaType\":\"a/b\",\"digest\":\"{digest}\",\"size\":{}}},\"layers\":[]}}",
            config.len()
        );
        let pinned = Pinned {
            digest: Digest::of(manifest.as_bytes()),
            media_type: crate::oci::manifest::OCI_MANIFEST.into(),
            bytes: manifest.into(),
        };
        store.keep_small(WHO, &digest, &config);
        store.admit(WHO, &Asked::from(&reference(tag)), &pinned);
        let paths = [digest, pinned.digest].map(|digest| store.small_path(WHO, &digest));
        let [config, manifest] = paths;
        (config, manifest, store.admission(WHO, &Asked::from(&reference(tag))))
    }

    #[test]
    fn what_opens_a_model_offline_stays_as_long_as_its_admission_and_no_longer() {
        for what in [Prune::Leftovers, Prune::All] {
            let (_dir, store) = store();
            let (live, over) = (admit(&store, "live"), admit(&store, "over"));
            for path in [&live.0, &live.1, &over.0, &over.1, &over.2] {
                age(path, 8);
            }
            assert_eq!(store.prune(what).leftovers, 3, "{what:?}");
            assert!(live.0.exists() && live.1.exists() && live.2.exists());
            assert!(store.recall(WHO, &Asked::from(&reference("live"))).is_some());
            assert!(!over.0.exists() && !over.1.exists() && !over.2.exists());
        }
    }

    #[test]
    fn what_was_just_kept_waits_for_its_admission() {
        let (_dir, store) = store();
        let bytes = Bytes::from_static(b"a head");
        store.keep_small(WHO, &Digest::of(&bytes), &bytes);
        assert_eq!(store.prune(Prune::Leftovers).leftovers, 0);
        age(&store.small_path(WHO, &Digest::of(&bytes)), 8);
        assert_eq!(store.prune(Prune::Leftovers).leftovers, 1);
    }
}
