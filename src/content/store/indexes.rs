//! The indexes of compressed layers that went by on this machine, each beside what is kept of its layer.
//!
//! Who may see the layer may see its index. One that is lost or damaged costs another going by, nothing else: whoever opens
//! one checks it. Written whole or not at all. It counts in the store's budget, and goes last of what is kept of its layer.

use std::fs::{self, File, FileTimes, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use nix::libc;

use super::audit::layer_of;
use super::budget::{INDEX, Image, by_use, entries, is_index};
use super::{Store, private};
use crate::error::{Error, Kind, Result};
use crate::index::local;
use crate::oci::Digest;
#[cfg(doc)]
use crate::oci::artifact::ModelLayer;

/// The index of a layer that went by on this machine.
#[derive(Clone, Debug)]
pub struct KeptIndex {
    /// Its layer.
    pub layer: Digest,
    /// Whether its layer is shared by all who can have it, since it was proved; else it is one place's.
    pub proved: bool,
    /// The repositories by which its layer came here, or may be had, as far as they were noted.
    pub repositories: Vec<String>,
    /// Bytes of the disk.
    pub disk: u64,
    /// When it or a file of its layer was last used; the epoch where unknown.
    pub last_use: SystemTime,
    path: PathBuf,
}

impl Store {
    /// The index of a layer that was made here by one who read it so ([`ModelLayer::reading`]), where `who` may see it: `None`
    /// where there is none. Not checked. It is not evicted while it is open.
    #[must_use]
    pub fn index(&self, who: &str, layer: &Digest, reading: &str) -> Option<File> {
        let path = self.shared(layer).join(format!("{INDEX}{reading}"));
        let file = self.proved(who, layer).then(|| open(&path).ok()).flatten()?;
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
        hold(&file);
        Some(file)
    }

    /// Keeps the index of a layer, read so, beside what is kept of it for `who`, in place of an earlier one, and gives it to be read.
    ///
    /// # Errors
    /// Those of `write`; `Storage` where the store fails or has no room for it.
    pub fn keep_index(
        &self,
        who: &str,
        layer: &Digest,
        reading: &str,
        write: impl FnOnce(&File) -> Result<()>,
    ) -> Result<File> {
        let failed = |error| Error::from_source(Kind::Storage, "cannot keep an index", error);
        let home = self.home(who, layer);
        private::make_dir(&home).map_err(failed)?;
        private::write_whole(&home.join(format!("{INDEX}{reading}")), failed, |file| {
            write(file)?;
            hold(file);
            let room = self.budget.admit(file.metadata().map_err(failed)?.len());
            room.map(drop).ok_or_else(|| {
                let doing = "the store has no room for the index of a layer";
                Error::new(Kind::Storage, doing)
                    .hint("--store-size gives it more, 'weightfs cache prune' makes some")
            })
        })
    }

    /// The indexes that are kept, sorted by layer.
    #[must_use]
    pub fn kept_indexes(&self) -> Vec<KeptIndex> {
        let files = by_use(&self.layers()).into_iter().filter(|file| is_index(&file.path));
        let mut found: Vec<KeptIndex> = files.filter_map(|file| self.kept_index(file)).collect();
        found.sort_by(|one, other| one.path.cmp(&other.path));
        found
    }

    /// Reads a kept index and compares all of it with its digests. One that is wrong is dropped, and why is said: its layer goes
    /// by again when it must. `None` where it is right, or gone meanwhile.
    #[must_use]
    pub fn check_index(&self, index: &KeptIndex) -> Option<Error> {
        let file = Arc::new(open(&index.path).ok()?);
        let wrong = local::check(&file, &index.layer).err();
        // Being looked at is no use.
        let _ = file.set_times(FileTimes::new().set_accessed(index.last_use));
        if wrong.is_some() {
            self.drop_file(&index.path, &file);
        }
        wrong
    }

    /// Drops the index of a layer that was given to `who` as this file, which turned out to be damaged. One that has taken its
    /// place stays.
    pub fn drop_index(&self, who: &str, layer: &Digest, file: &File) {
        entries(&self.home(who, layer)).iter().for_each(|path| self.drop_file(path, file));
    }

    fn kept_index(&self, file: Image) -> Option<KeptIndex> {
        let folder = file.path.parent()?;
        let ((layer, proved), repositories) = (layer_of(folder)?, self.repositories_of(folder));
        let (disk, last_use) = (file.used, file.last_use);
        Some(KeptIndex { layer, proved, repositories, disk, last_use, path: file.path })
    }

    /// Removes the file at `path` if it is this one.
    fn drop_file(&self, path: &Path, file: &File) {
        let place = |metadata: Metadata| (metadata.dev(), metadata.ino());
        let (found, damaged) = (fs::symlink_metadata(path).map(place), file.metadata().map(place));
        if matches!((found, damaged), (Ok(found), Ok(damaged)) if found == damaged) {
            tracing::warn!(path = %path.display(), "a damaged index is dropped; its layer goes by again when it must");
            self.note(fs::remove_file(path), "drop a damaged index");
        }
    }

    /// An empty file without a name, on the store's disk, for what is put aside while a layer goes by.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn scratch(&self, who: &str, layer: &Digest) -> io::Result<File> {
        let home = self.home(who, layer);
        private::make_dir(&home)?;
        private::nameless(&home)
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Keeps a file from being evicted while it is open.
fn hold(file: &File) {
    // Who evicts it at this moment leaves it to be read to its end.
    let _ = file.try_lock_shared();
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;

    use super::super::StoreConfig;
    use super::super::audit::tests::{WHO, store};
    use super::*;
    use crate::codec::gzip::tests::member;
    use crate::codec::tar::tests::plain;
    use crate::content::spans_tests::weights;
    use crate::index::Coding;
    use crate::index::local::tests::indexed;

    #[test]
    fn an_index_is_for_who_may_see_its_layer_and_is_there_whole_or_not_at_all() {
        let (_dir, store) = store();
        let layer = Digest::of(b"layer");
        let write = |bytes: &'static [u8]| {
            move |file: &File| {
                file.write_all_at(bytes, 0).map_err(|error| Error::from_source(Kind::Storage, "", error))
            }
        };
        store.keep_index(WHO, &layer, "so", write(b"one")).unwrap();
        assert!(store.index(WHO, &layer, "so").is_none(), "nobody has proved it");
        store.set_proved(WHO, &layer);
        let failing = |_: &File| Err(Error::new(Kind::Storage, "full"));
        assert!(store.keep_index(WHO, &layer, "so", failing).is_err());
        let read = |file: File| io::read_to_string(file).unwrap();
        assert_eq!(read(store.index(WHO, &layer, "so").unwrap()), "one");
        assert_eq!(read(store.keep_index(WHO, &layer, "so", write(b"two")).unwrap()), "two");
        assert_eq!(read(store.index(WHO, &layer, "so").unwrap()), "two");
        assert!(store.index("somebody else", &layer, "so").is_none());
        assert!(store.index(WHO, &layer, "otherwise").is_none(), "other names");
        let left = fs::read_dir(store.shared(&layer)).unwrap().count();
        assert_eq!(left, 3, "index, origins, proved, and nothing temporary");
    }

    /// Keeps the index of a layer that has gone by and was proved; gives where its checkpoints begin in its file.
    fn kept(store: &Store) -> u64 {
        let content = [plain("a", 300_032), weights(3, 300_032), vec![0; 1024]].concat();
        let (layer, _, index) = indexed("tar+gzip", &member(&content, 6));
        let bytes = fs::read(format!("/proc/self/fd/{}", index.as_raw_fd())).unwrap();
        let write = |file: &File| {
            file.write_all_at(&bytes, 0).map_err(|error| Error::from_source(Kind::Storage, "", error))
        };
        drop(store.keep_index(WHO, &layer.blob.digest, "so", write).unwrap());
        store.set_proved(WHO, &layer.blob.digest);
        let file = store.index(WHO, &layer.blob.digest, "so").unwrap();
        let (found, _) = local::open(Arc::new(file), &layer.blob, 0).unwrap();
        let Coding::Spans(spans) = found.coding else { unreachable!("the layer has gone by") };
        spans.checkpoints.expect("spans of 64 KiB").range.start()
    }

    #[test]
    fn an_index_is_listed_with_its_size_and_layer_and_counts_as_used() {
        let (_dir, store) = store();
        assert!(store.kept_indexes().is_empty());
        kept(&store);
        let [index] = &store.kept_indexes()[..] else { panic!("one index") };
        let folder = index.path.parent().unwrap();
        assert_eq!(index.layer.hex(), folder.file_name().unwrap().to_str().unwrap());
        assert!(index.proved && index.disk >= index.path.metadata().unwrap().len());
        assert!(index.last_use.elapsed().unwrap().as_secs() < 60);
        assert_eq!((store.used(), store.holdings().len()), (index.disk, 0));
    }

    #[test]
    fn a_damaged_index_is_dropped_wherever_the_damage_is_and_a_right_one_stays() {
        let (_dir, store) = store();
        let windows = kept(&store);
        let len = store.kept_indexes()[0].path.metadata().unwrap().len();
        for damaged in [None, Some(20), Some(windows + 5), Some(windows - 40), Some(len - 1)] {
            kept(&store);
            let index = store.kept_indexes().remove(0);
            if let Some(at) = damaged {
                let file = File::options().read(true).write(true).open(&index.path).unwrap();
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            }
            let wrong = store.check_index(&index);
            assert_eq!(wrong.is_some(), damaged.is_some(), "{damaged:?}: {wrong:?}");
            assert_eq!(index.path.exists(), damaged.is_none(), "{damaged:?}");
        }
    }

    #[test]
    fn what_has_taken_the_place_of_a_damaged_index_stays() {
        let (_dir, store) = store();
        kept(&store);
        let KeptIndex { layer, path, .. } = store.kept_indexes().remove(0);
        let damaged = store.index(WHO, &layer, "so").unwrap();
        kept(&store);
        store.drop_index(WHO, &layer, &damaged);
        assert!(path.exists());
        let damaged = store.index(WHO, &layer, "so").unwrap();
        store.drop_index(WHO, &layer, &damaged);
        assert!(!path.exists() && store.proved(WHO, &layer));
    }

    #[test]
    fn an_index_that_there_is_no_room_for_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { folder: dir.path().join("store"), size: Some(4096) };
        let (store, layer) = (Store::open(&config).unwrap(), Digest::of(b"layer"));
        let write =
            |file: &File| file.set_len(5000).map_err(|error| Error::from_source(Kind::Storage, "", error));
        assert_eq!(store.keep_index(WHO, &layer, "so", write).unwrap_err().kind(), Kind::Storage);
        assert_eq!(fs::read_dir(store.own(WHO, &layer)).unwrap().count(), 0);
    }

    #[test]
    fn what_is_put_aside_has_no_name() {
        let (_dir, store) = store();
        let layer = Digest::of(b"layer");
        let file = store.scratch(WHO, &layer).unwrap();
        file.write_all_at(b"aside", 3).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8);
        assert_eq!(fs::read_dir(store.own(WHO, &layer)).unwrap().count(), 0);
    }
}
