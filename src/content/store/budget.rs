//! How much the store may hold, and what goes first when it holds too much.
//!
//! Several processes share one folder, so the truth is on the disk: it is counted again after so many bytes
//! were added here, and in between what was added is added to the count. Images go whole, least recently used
//! first, by unlinking under the exclusive lock, so never one that somebody uses; the index of a compressed layer goes the same
//! way, after all images of its layer. Digests stay: what is fetched again is still held to them.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::index::CHUNK;

/// The limit, and what is known of the use.
#[derive(Debug)]
pub struct Budget {
    layers: PathBuf,
    limit: u64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// What the images took when they were counted.
    counted: Option<u64>,
    /// What was written here since.
    added: u64,
    /// What is being written now.
    admitted: u64,
    /// When there was last no room to be made.
    refused: Option<Instant>,
}

/// For so long after there was no room nobody looks for some: looking walks the whole store.
const PAUSE: Duration = Duration::from_secs(1);

/// What the name of an index begins with; how its layer is read follows.
pub(super) const INDEX: &str = "index-";

/// Room for bytes that are being written. Dropped when they are, or when they could not be.
#[derive(Debug)]
pub struct Room<'a> {
    budget: &'a Budget,
    len: u64,
}

/// The image of one file, or the index of a layer.
pub(super) struct Image {
    pub(super) path: PathBuf,
    /// Bytes of the disk.
    pub(super) used: u64,
    /// The epoch where unknown.
    pub(super) last_use: SystemTime,
}

impl Budget {
    /// A budget of `limit` bytes for the images and indexes below `layers`. Looks at nothing yet.
    #[must_use]
    pub fn new(layers: PathBuf, limit: u64) -> Self {
        Self { layers, limit, known: Mutex::default() }
    }

    /// The limit in bytes.
    #[must_use]
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// Makes room for `len` more bytes; `None` where there is none to be had.
    ///
    /// Costs nothing most of the time, else a walk over the store's folders, so it belongs on a thread that
    /// may block.
    pub fn admit(&self, len: u64) -> Option<Room<'_>> {
        let mut known = self.known.lock();
        if known.refused.is_some_and(|when| when.elapsed() < PAUSE) {
            return None;
        }
        let recount_after = (64 << 20).min(self.limit / 16);
        if known.added > recount_after || !known.fit(len, self.limit) {
            let target = self.limit.saturating_sub(known.admitted).saturating_sub(len);
            known.counted = Some(self.shrink_to(target));
            known.added = 0;
        }
        let fit = known.fit(len, self.limit);
        // Where there is none for many chunks there may be some for one.
        if fit || len <= CHUNK {
            known.refused = (!fit).then(Instant::now);
        }
        if fit {
            known.admitted = known.admitted.saturating_add(len);
        }
        // Made only where it fits: dropping a room takes the lock that is held here.
        fit.then(|| Room { budget: self, len })
    }

    /// Whether there was no room the last time that somebody asked for some.
    #[must_use]
    pub fn exhausted(&self) -> bool {
        self.known.lock().refused.is_some()
    }

    /// Evicts until at most `target` bytes are used, or nothing more can go; gives what is used then.
    fn shrink_to(&self, target: u64) -> u64 {
        let images = by_use(&self.layers);
        let mut used: u64 = images.iter().map(|image| image.used).sum();
        for image in images {
            if used <= target {
                break;
            }
            match evict(&image.path) {
                Ok(true) => used = used.saturating_sub(image.used),
                Ok(false) => {}
                Err(error) => tracing::warn!(path = %image.path.display(), %error, "cannot evict"),
            }
        }
        used
    }
}

impl Known {
    fn fit(&self, len: u64, limit: u64) -> bool {
        let used =
            self.counted.map(|counted| counted.saturating_add(self.added).saturating_add(self.admitted));
        used.is_some_and(|used| used.saturating_add(len) <= limit)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        let mut known = self.budget.known.lock();
        known.admitted = known.admitted.saturating_sub(self.len);
        known.added = known.added.saturating_add(self.len);
    }
}

/// What the images and indexes below `layers` take of the disk, in bytes.
#[must_use]
pub fn used(layers: &Path) -> u64 {
    by_use(layers).iter().map(|image| image.used).sum()
}

/// Unlinks the image, unless somebody uses it, or the index, unless its layer has images either. What has it open or mapped
/// keeps it until they are done.
pub(super) fn evict(path: &Path) -> io::Result<bool> {
    if is_index(path) && path.parent().is_some_and(|layer| entries(layer).iter().any(|file| is_image(file))) {
        return Ok(false);
    }
    let image = File::open(path)?;
    match image.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Ok(false),
        Err(fs::TryLockError::Error(error)) => return Err(error),
    }
    // Another evictor may have been faster, and another image may lie at this path by now.
    let (locked, present) = (image.metadata()?, fs::symlink_metadata(path)?);
    if (locked.dev(), locked.ino()) != (present.dev(), present.ino()) {
        return Ok(false);
    }
    // The marks first: marks without an image cost a look, an image without marks costs a fetch.
    let _ = fs::remove_file(path.with_extension("kept"));
    fs::remove_file(path)?;
    tracing::info!(path = %path.display(), "evicted from the store");
    Ok(true)
}

/// All that takes room below `layers`, least recently used first. An index was used when any file of its layer was, and comes
/// after all of them.
pub(super) fn by_use(layers: &Path) -> Vec<Image> {
    let mut found = Vec::new();
    for algorithm in entries(layers) {
        for layer in entries(&algorithm) {
            let files = entries(&layer);
            let images: Vec<Image> = files.iter().filter_map(|file| image(file)).collect();
            let newest = images.iter().map(|image| image.last_use).max();
            let of_layer = |index: Image| Image {
                last_use: newest.max(Some(index.last_use)).unwrap_or(index.last_use),
                ..index
            };
            let indexes = files.iter().filter_map(|file| index(file)).map(of_layer);
            found.extend(images.into_iter().chain(indexes));
        }
    }
    found.sort_by_key(|image| image.last_use);
    found
}

/// Whether this is the image of a file.
pub(super) fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending == "data")
}

/// Whether this is the index of a layer, and not one that is still being written.
pub(super) fn is_index(path: &Path) -> bool {
    let is_whole = path.extension().is_none();
    is_whole && path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(INDEX.as_bytes()))
}

fn image(path: &Path) -> Option<Image> {
    let used = is_image(path).then(|| fs::metadata(path).ok())??.blocks().saturating_mul(512);
    let marks = fs::metadata(path.with_extension("kept")).ok();
    Some(Image {
        path: path.to_owned(),
        used,
        last_use: marks.map_or(SystemTime::UNIX_EPOCH, |marks| last_use(&marks)),
    })
}

fn index(path: &Path) -> Option<Image> {
    let found = is_index(path).then(|| fs::symlink_metadata(path).ok())??;
    Some(Image {
        path: path.to_owned(),
        used: found.blocks().saturating_mul(512),
        last_use: last_use(&found),
    })
}

fn last_use(metadata: &Metadata) -> SystemTime {
    metadata.modified().ok().max(metadata.accessed().ok()).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// What is in a folder; nothing where there is none.
pub(super) fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|dir| dir.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn put(dir: &Path, name: &str, age: u64) -> PathBuf {
        let layer = dir.join("sha256").join(name);
        fs::create_dir_all(&layer).unwrap();
        let path = layer.join("0-1.data");
        fs::write(&path, vec![1; usize::try_from(MIB).unwrap()]).unwrap();
        self::age(&File::create(layer.join("0-1.kept")).unwrap(), age);
        path
    }

    fn age(file: &File, seconds: u64) {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        file.set_times(fs::FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
    }

    #[test]
    fn the_least_recently_used_goes_first_and_what_is_used_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (oldest, old, new) =
            (put(dir.path(), "a", 30), put(dir.path(), "b", 20), put(dir.path(), "c", 10));
        let reader = File::open(&oldest).unwrap();
        reader.lock_shared().unwrap();
        let budget = Budget::new(dir.path().to_owned(), 3 * MIB);
        assert!(budget.admit(MIB).is_some());
        assert!(oldest.exists() && !old.exists() && new.exists());
    }

    #[test]
    fn an_index_counts_and_goes_after_all_files_of_its_layer_unless_somebody_uses_it() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (put(dir.path(), "a", 30), put(dir.path(), "b", 10));
        let [of_old, of_new] = [&old, &new].map(|image| image.with_file_name("index-so"));
        for index in [&of_old, &of_new] {
            fs::write(index, vec![1; usize::try_from(MIB).unwrap()]).unwrap();
            age(&File::open(index).unwrap(), 40);
        }
        assert_eq!(used(dir.path()), 4 * MIB);
        let here = || [&old, &of_old, &new, &of_new].map(|path| path.exists());
        let shrink = |target| Budget::new(dir.path().to_owned(), 4 * MIB).shrink_to(target);
        assert_eq!((shrink(3 * MIB), here()), (3 * MIB, [false, true, true, true]));
        assert_eq!((shrink(2 * MIB), here()), (2 * MIB, [false, false, true, true]));
        let reader = File::open(&of_new).unwrap();
        reader.lock_shared().unwrap();
        assert_eq!((shrink(0), here()), (MIB, [false, false, false, true]));
        drop(reader);
        assert_eq!((shrink(0), here()), (0, [false; 4]));
    }

    #[test]
    fn what_does_not_fit_is_not_admitted() {
        let dir = tempfile::tempdir().unwrap();
        let budget = Budget::new(dir.path().to_owned(), 2 * MIB);
        assert!(budget.admit(3 * MIB).is_none() && !budget.exhausted(), "there may be room for one chunk");
        let (one, two) = (budget.admit(MIB), budget.admit(MIB));
        assert!(one.is_some() && two.is_some());
        assert!(budget.admit(1).is_none() && budget.exhausted(), "what is being written counts");
        drop((one, two));
        assert!(budget.admit(1).is_none(), "not asked again at once");
    }
}
