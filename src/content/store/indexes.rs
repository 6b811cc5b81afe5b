//! The indexes of compressed layers that went by on this machine, each beside what is kept of its layer.
//!
//! Who may see the layer may see its index. One that is lost or damaged costs another going by, nothing else: whoever opens
//! one checks it. Written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use nix::libc;

use super::budget::entries;
use super::{Store, private};
use crate::error::{Error, Kind, Result};
use crate::oci::Digest;
#[cfg(doc)]
use crate::oci::artifact::ModelLayer;

/// What the file's name in the layer's folder begins with; how the layer is read follows.
const NAME: &str = "index-";

impl Store {
    /// The index of a layer that was made here by one who read it so ([`ModelLayer::reading`]), where `who` may see it: `None`
    /// where there is none. Not checked.
    #[must_use]
    pub fn index(&self, who: &str, layer: &Digest, reading: &str) -> Option<File> {
        let path = self.shared(layer).join(format!("{NAME}{reading}"));
        let open = || OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).ok();
        self.proved(who, layer).then(open).flatten()
    }

    /// Keeps the index of a layer, read so, beside what is kept of it for `who`, in place of an earlier one, and gives it to be read.
    ///
    /// # Errors
    /// Those of `write`; `Storage` where the store fails.
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
        private::write_whole(&home.join(format!("{NAME}{reading}")), failed, write)
    }

    /// Drops the index of a layer that was given to `who` as this file, which turned out to be damaged. One that has taken its
    /// place stays.
    pub fn drop_index(&self, who: &str, layer: &Digest, file: &File) {
        let Ok(damaged) = file.metadata() else { return };
        let is_it = |path: &PathBuf| {
            let found = fs::symlink_metadata(path);
            found.is_ok_and(|found| (found.dev(), found.ino()) == (damaged.dev(), damaged.ino()))
        };
        for path in entries(&self.home(who, layer)).into_iter().filter(is_it) {
            tracing::warn!(path = %path.display(), "a damaged index is dropped; its layer goes by again for the next mount");
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::super::audit::tests::{WHO, store};
    use super::*;

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
