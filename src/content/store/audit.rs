//! What the store has and whether it is right: for a person who asks, not for readers.
//!
//! Walks the store's folders, so it blocks for as long as the disk takes. Called by the `cache` commands.

use std::fs::{self, FileTimes};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::budget::{Image, by_use, is_image};
use super::catalogue::Catalogue;
use super::kept::{self, KeptFile};
use super::{ORIGINS_LIMIT, Store, private};
use crate::buffer::Pool;
use crate::error::{Result, StorageContext};
use crate::index::{ChunkDigest, Grid};
use crate::oci::Digest;
use crate::range::ContentRange;

/// The kept content of one file.
#[derive(Clone, Debug)]
pub struct Holding {
    /// What names its layer in the store: the layer's digest, or the name of its bound form.
    pub kept_as: Digest,
    /// Where the file lies in its layer's content.
    pub extent: ContentRange,
    /// Whether its layer is shared by all who can have it, since it was proved or is bound; else it is one place's.
    pub proved: bool,
    /// The repositories by which it came here, or may be had, as far as they were noted.
    pub repositories: Vec<String>,
    /// Bytes of content that are said to be here.
    pub kept: u64,
    /// Bytes of the disk.
    pub disk: u64,
    /// When it was last opened or written; the epoch where unknown.
    pub last_use: SystemTime,
    /// Path without ending.
    stem: PathBuf,
}

/// What became of kept content that was read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Bytes that are what they must be.
    pub right: u64,
    /// Where those lay in the file that were not; they count as absent from now on.
    pub dropped: Vec<ContentRange>,
}

impl Store {
    /// What the store has, sorted by layer and place in it. A file of which only digests are left is not listed.
    #[must_use]
    pub fn holdings(&self) -> Vec<Holding> {
        let images = by_use(&self.layers()).into_iter().filter(|file| is_image(&file.path));
        let mut found: Vec<Holding> = images.filter_map(|image| self.holding(image)).collect();
        found.sort_by(|one, other| {
            let place =
                |holding: &Holding| (holding.stem.parent().map(Path::to_owned), holding.extent.start());
            place(one).cmp(&place(other))
        });
        found
    }

    /// Bytes of the disk that kept content and indexes take.
    #[must_use]
    pub fn used(&self) -> u64 {
        super::budget::used(&self.layers())
    }

    /// Reads back every chunk that a holding is said to have. One that is not what its record says, or what the kept
    /// index in `catalogue` says, is dropped, so that it is fetched again. `read` is told of the bytes read.
    ///
    /// # Errors
    /// `Storage` where its files can't be opened.
    pub fn check(&self, holding: &Holding, catalogue: &Catalogue, read: &dyn Fn(u64)) -> Result<Checked> {
        let len = holding.extent.len();
        if image_len(&holding.stem).is_some_and(|found| found != len) {
            // Opening begins it again.
            let dropped = said(&holding.stem, len);
            drop(open(&holding.stem, len)?);
            return Ok(Checked { right: 0, dropped });
        }
        let file = open(&holding.stem, len)?;
        let bound = catalogue.digests(&holding.kept_as, holding.extent);
        let checked = read_back(&file, len, bound.as_deref(), read);
        // Being looked at is no use.
        let marks = fs::File::open(holding.stem.with_added_extension("kept"));
        let _ = marks.and_then(|marks| marks.set_times(FileTimes::new().set_accessed(holding.last_use)));
        Ok(checked)
    }

    pub(super) fn layers(&self) -> PathBuf {
        self.folder.join("layers")
    }

    fn holding(&self, image: Image) -> Option<Holding> {
        let stem = image.path.with_extension("");
        let (start, len) = stem.file_name()?.to_str()?.split_once('-')?;
        let (start, len): (u64, u64) = (start.parse().ok()?, len.parse().ok()?);
        let (kept_as, proved) = layer_of(stem.parent()?)?;
        Some(Holding {
            kept_as,
            extent: ContentRange::new(start, start.checked_add(len)?),
            proved,
            repositories: self.repositories_of(stem.parent()?),
            kept: kept::kept_bytes(&stem, len),
            disk: image.used,
            last_use: image.last_use,
            stem,
        })
    }

    /// Whose a layer's folder is, as people name them: one who fetches it, or all who can have what is shared.
    pub(super) fn repositories_of(&self, folder: &Path) -> Vec<String> {
        let own = folder.file_name().and_then(|name| name.to_str()).and_then(|name| name.split_once('.'));
        match own {
            Some((_, key)) => self.repositories(std::iter::once(key)),
            None => {
                let origins = private::read_small(&folder.join("origins"), ORIGINS_LIMIT).unwrap_or_default();
                self.repositories(String::from_utf8_lossy(&origins).lines())
            }
        }
    }
}

/// Reads each chunk that is said to be here; `bound` is what they must be, where the artifact says so.
fn read_back(file: &KeptFile, len: u64, bound: Option<&[ChunkDigest]>, read: &dyn Fn(u64)) -> Checked {
    let (grid, pool) = (Grid::new(len), Pool::default());
    let mut checked = Checked::default();
    for (chunk, _) in (0..).zip(file.all()).filter(|(_, here)| *here) {
        let range = grid.range(chunk);
        let found = file.read(chunk, &pool, || ());
        let must = bound.and_then(|bound| bound.get(usize::try_from(chunk).ok()?));
        if found.is_some_and(|found| must.is_none_or(|must| *must == found.digest())) {
            checked.right = checked.right.saturating_add(range.len());
        } else {
            file.forget(chunk);
            checked.dropped.push(range);
        }
        read(range.len());
    }
    checked
}

/// Where the chunks lie that are said to be here.
fn said(stem: &Path, len: u64) -> Vec<ContentRange> {
    let grid = Grid::new(len);
    let here = (0..).zip(kept::said(stem, len)).filter(|(_, here)| *here);
    here.map(|(chunk, _)| grid.range(chunk)).collect()
}

fn open(stem: &Path, len: u64) -> Result<KeptFile> {
    KeptFile::open(stem, len).storage(|| format!("cannot open {}", stem.display()))
}

fn image_len(stem: &Path) -> Option<u64> {
    fs::metadata(stem.with_added_extension("data")).ok().map(|meta| meta.len())
}

/// What names the layer of a folder, and whether it is shared since it was proved or is bound.
pub(super) fn layer_of(folder: &Path) -> Option<(Digest, bool)> {
    let algorithm = folder.parent()?.file_name()?.to_str()?;
    let name = folder.file_name()?.to_str()?;
    let hex = name.split_once('.').map_or(name, |(hex, _)| hex);
    let proved = hex == name && folder.join("proved").exists();
    Some((format!("{algorithm}:{hex}").parse().ok()?, proved))
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;
    use crate::content::StoreConfig;
    use crate::content::verify::Verified;
    use crate::index::CHUNK;

    pub(in super::super) const WHO: &str = "host:1/a/b as alice";
    pub(in super::super) const LEN: u64 = CHUNK + 100;

    pub(in super::super) fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let config = StoreConfig { folder: dir.path().join("store"), size: Some(1 << 30) };
        let store = Store::open(&config).unwrap();
        (dir, store)
    }

    /// Keeps two chunks of a file of a layer of this name.
    pub(in super::super) fn keep(store: &Store, name: &str) -> Arc<KeptFile> {
        let file = store.file(WHO, &Digest::of(name.as_bytes()), ContentRange::new(0, LEN)).unwrap();
        for (chunk, len) in [(0, CHUNK), (1, 100)] {
            file.write(chunk, &[verified(&vec![7; usize::try_from(len).unwrap()])]).unwrap();
        }
        file
    }

    fn verified(bytes: &[u8]) -> Verified {
        Verified::check(bytes::Bytes::from(bytes.to_vec()), None).unwrap()
    }

    fn check(store: &Store) -> Checked {
        let holdings = store.holdings();
        assert_eq!(holdings.len(), 1);
        store.check(&holdings[0], &Catalogue::default(), &|_| ()).unwrap()
    }

    fn flip(stem: &Path, ending: &str, at: u64) {
        let path = stem.with_added_extension(ending);
        let file = fs::File::options().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }

    #[test]
    fn what_is_kept_is_listed_with_how_much_of_it_and_how_far_it_is_proved() {
        let (_dir, store) = store();
        drop(keep(&store, "one"));
        let [holding] = &store.holdings()[..] else { panic!("one file") };
        assert_eq!((holding.kept, holding.extent.len(), holding.proved), (LEN, LEN, false));
        assert!(holding.disk >= LEN && store.used() == holding.disk);
        assert!(holding.last_use.elapsed().unwrap().as_secs() < 60);
        store.set_proved(WHO, &Digest::of(b"one"));
        assert!(store.holdings()[0].proved);
    }

    #[test]
    fn what_is_right_stays_and_looking_at_it_is_no_use_of_it() {
        let (_dir, store) = store();
        let stem = keep(&store, "one").stem().to_owned();
        store.release_idle(std::time::Duration::ZERO);
        let then = SystemTime::now() - std::time::Duration::from_secs(1000);
        let marks = fs::File::open(stem.with_added_extension("kept")).unwrap();
        marks.set_times(FileTimes::new().set_accessed(then).set_modified(then)).unwrap();
        assert_eq!(check(&store), Checked { right: LEN, dropped: Vec::new() });
        assert_eq!(store.holdings()[0].last_use, then);
    }

    #[test]
    fn a_chunk_whose_bytes_or_record_are_wrong_is_named_and_dropped_once() {
        for (ending, at, chunk) in
            [("data", 5, 0), ("data", CHUNK + 5, 1), ("digests", 3, 0), ("digests", 79, 1)]
        {
            let (_dir, store) = store();
            let file = keep(&store, "one");
            flip(file.stem(), ending, at);
            let wrong = Grid::new(LEN).range(chunk);
            assert_eq!(check(&store).dropped, [wrong], "{ending} {at}");
            assert!(!file.has(chunk) && file.has(1 - chunk));
            assert_eq!(check(&store), Checked { right: LEN - wrong.len(), dropped: Vec::new() });
        }
    }

    #[test]
    fn flipped_marks_only_lose_what_they_stand_for() {
        let (_dir, store) = store();
        let file = keep(&store, "one");
        for at in 0..66 {
            flip(file.stem(), "kept", at);
        }
        assert_eq!(check(&store), Checked::default());
        flip(file.stem(), "kept", 64);
        assert_eq!(check(&store), Checked { right: CHUNK, dropped: Vec::new() });
    }

    #[test]
    fn an_image_of_another_size_is_wrong_as_a_whole() {
        let (_dir, store) = store();
        let stem = keep(&store, "one").stem().to_owned();
        store.release_idle(std::time::Duration::ZERO);
        fs::File::options().write(true).open(stem.with_added_extension("data")).unwrap().set_len(9).unwrap();
        assert_eq!(check(&store).dropped.len(), 2);
        assert_eq!(check(&store), Checked::default());
    }

    #[test]
    fn what_the_index_says_counts_more_than_a_record() {
        let (_dir, store) = store();
        let file = keep(&store, "one");
        let right = [ChunkDigest::of(&vec![7; usize::try_from(CHUNK).unwrap()]), ChunkDigest::of(b"other")];
        let checked = read_back(&file, LEN, Some(&right), &|_| ());
        assert_eq!(checked, Checked { right: CHUNK, dropped: vec![ContentRange::new(CHUNK, LEN)] });
        assert!(!file.has(1));
    }
}
