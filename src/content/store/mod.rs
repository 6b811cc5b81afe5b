//! What is kept on disk, shared by the processes of one user.
//!
//! ```text
//! STORE/layers/ALGORITHM/HEX/            a layer that was proved, or that is bound: shared by all who can have it
//!     OFFSET-LEN.{data,digests,kept}     one file's content (see [`kept`])
//!     gaps                               archive headers (see [`gaps`])
//!     index-READING                      of a compressed layer that went by here (see [`Store::index`])
//!     proved                             says so
//!     origins                            who can have it (see [`Store::origin`])
//!     digest                             its own digest, once that was found over its bytes, and over which headers
//! STORE/layers/ALGORITHM/HEX.lock        held by who changes what is shared
//! STORE/layers/ALGORITHM/HEX.WHO/        one that was not proved yet: for the one who fetches it
//!     …                                  as above, but for `proved` and `origins`
//!     poisoned                           it was disproved, and with which headers; when, is the file's time
//!     poisoned.emptied                   later than that: what was kept then is gone
//! STORE/small/WHO/ALGORITHM/HEX          manifests, configs, and the parts of bound indexes
//! STORE/small/WHO/repository             which repository that is, for people
//! STORE/small/WHO/attached/…             which attached index was used of an artifact (see [`Store::attached`])
//! STORE/admitted/KEY                     who was given which manifest (see [`Store::admit`])
//! ```
//!
//! HEX is the layer's digest; for a bound layer it is one that the digests of its chunks are part of, so that nothing is
//! left to prove: such a layer is shared once all of it is here.
//!
//! WHO stands for a place and the credentials used there. What nobody has proved yet is never shown to another, and
//! can do him no harm: a registry of somebody's own making may give anything under any digest.
//!
//! All of it may be lost, torn, full, read-only or foreign at any time: that costs speed, never correctness.
//! The table of chunks is plain files beside each image and not a database: the reason is in
//! `docs/decisions/0004-store-form.md`.

mod admitted;
mod attached;
pub mod audit;
pub mod budget;
pub mod catalogue;
pub mod gaps;
pub mod indexes;
pub mod kept;
mod open;
mod private;
pub mod prune;
mod seal;
mod verdict;
mod writing;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

pub use admitted::Asked;
use budget::Budget;
pub use gaps::GapsDigest;
use kept::KeptFile;
use open::OpenFiles;
use parking_lot::Mutex;

use crate::error::{Error, Kind, Result};
use crate::index::ChunkDigest;
use crate::oci::Digest;
use crate::range::ContentRange;

/// How long an admission counts while the registry cannot be asked: seven days.
pub const GRACE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Room for the keys of those who can have a layer.
const ORIGINS_LIMIT: u64 = 1 << 20;

/// After how long the same failure of the disk is said again.
const AGAIN: Duration = Duration::from_secs(60);

/// Room for the largest of the blobs that are kept whole: the chunk digests of a layer of 16 TiB, 32 bytes for each MiB.
/// A bound index's head has at most 256 MiB, manifests and configs 4.
const SMALL_LIMIT: u64 = 512 << 20;

/// Where the store is and how much it may hold.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The folder; made where missing.
    pub folder: PathBuf,
    /// Bytes of images and indexes; `None`: 90 % of what is the store's or free on its file system.
    pub size: Option<u64>,
}

/// Whether a store has what others left there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Layers that were proved there, by whoever.
    Proved,
    /// Nothing: its folder may be anybody's, so no proof counts that is found there.
    Nothing,
}

/// What is kept on disk. Cheap to open however much it holds.
#[derive(Debug)]
pub struct Store {
    sharing: Sharing,
    folder: PathBuf,
    budget: Budget,
    open: OpenFiles,
    fault: Option<String>,
    /// What was last said of the disk in the log, and when.
    told: Mutex<HashMap<io::ErrorKind, Instant>>,
}

impl Store {
    /// The store at `config.folder`, which is made, private to this user (0700), where it is missing.
    ///
    /// A folder that cannot be made or written to (a read-only or full disk) is no error: the store keeps nothing then, and
    /// says so ([`fault`](Self::fault)).
    ///
    /// # Errors
    /// `Storage` where this user may not make the folder, and where it is a link, another user's, or can be written by
    /// others.
    pub fn open(config: &StoreConfig) -> Result<Arc<Self>> {
        Self::open_as(config, Sharing::Proved)
    }

    /// The same, for a folder whose proofs count or do not.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_as(config: &StoreConfig, sharing: Sharing) -> Result<Arc<Self>> {
        let folder = config.folder.clone();
        let made = private::make_dir(&folder);
        if let Err(error) = &made
            && error.kind() == io::ErrorKind::PermissionDenied
        {
            let doing = format!("cannot make the store {}: {error}", folder.display());
            return Err(Error::new(Kind::Storage, doing).hint("choose another folder with --store"));
        }
        private::check_dir(&folder)?;
        let written = made.and_then(|()| private::nameless(&folder)).err();
        let fault = written.map(|error| format!("nothing can be kept in {}: {error}", folder.display()));
        let limit = config.size.unwrap_or_else(|| default_limit(&folder));
        let budget = Budget::new(folder.join("layers"), limit);
        let (open, told) = (OpenFiles::default(), Mutex::default());
        Ok(Arc::new(Self { sharing, budget, folder, open, fault, told }))
    }

    /// Why nothing can be kept, as it was found when the store was opened; `None` where it can.
    #[must_use]
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Whether what is found there may be taken for what it says to be.
    #[must_use]
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The budget of the images and indexes.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Opens the files of one extent for `who`, locked against eviction while they are open, and makes what is
    /// missing. The same files are given again while they are open.
    ///
    /// # Errors
    /// Whatever the file system says; the caller goes on without keeping.
    pub fn file(&self, who: &str, layer: &Digest, extent: ContentRange) -> io::Result<Arc<KeptFile>> {
        let home = self.home(who, layer);
        private::make_dir(&home)?;
        self.open.open(&stem(&home, extent), extent.len())
    }

    /// Closes the files that nobody uses and nobody has used for `idle`, so that they may be evicted.
    pub fn release_idle(&self, idle: Duration) {
        self.open.release_idle(idle);
    }

    /// How many bytes of an extent are said to be here for `who`. Takes no lock and makes nothing.
    #[must_use]
    pub fn kept_bytes(&self, who: &str, layer: &Digest, extent: ContentRange) -> u64 {
        kept::kept_bytes(&stem(&self.home(who, layer), extent), extent.len())
    }

    /// The digests on record of all chunks of these extents, in order; `None` where one is missing. Proof of nothing.
    #[must_use]
    pub fn records(&self, who: &str, layer: &Digest, extents: &[ContentRange]) -> Option<Vec<u8>> {
        let home = self.home(who, layer);
        let records = extents.iter().map(|extent| kept::recorded(&stem(&home, *extent), extent.len()));
        records.collect::<Option<Vec<_>>>().map(|records| records.concat())
    }

    /// Whether the layer's digest was proved over its bytes here before, so that its vouched-for chunk digests are
    /// as good as the manifest's, and `who` may have it.
    #[must_use]
    pub fn proved(&self, who: &str, layer: &Digest) -> bool {
        self.proved_for_some(layer) && self.origin(who, layer)
    }

    /// Whether the layer was proved here, whoever may have it.
    #[must_use]
    pub fn proved_for_some(&self, layer: &Digest) -> bool {
        if self.sharing == Sharing::Nothing {
            return false;
        }
        let marker = private::read_small(&self.shared(layer).join("proved"), 256);
        marker.is_ok_and(|text| text == layer.to_string().as_bytes())
    }

    /// Records that `who` has proved the layer's digest over what is kept for him, all of it: it is shared from now on, in
    /// place of what others have shared, of which part may be evicted by now. Who has that open goes on reading it.
    ///
    /// Does nothing where `who` may see the shared layer already: then that is what he reads and keeps, and what lies in a
    /// folder of his own are beginnings of an earlier time.
    ///
    /// Every file's digests must have been vouched for before, or be part of the name that is given as `layer`.
    pub fn set_proved(&self, who: &str, layer: &Digest) {
        self.share(who, layer, || Ok(()));
    }

    /// The same of a bound layer, which its chunks' digests alone speak for: where it was found to be another layer than its own
    /// digest says, that stays said.
    pub fn set_bound(&self, who: &str, layer: &Digest) {
        self.share(who, layer, || self.keep_word(who, layer));
    }

    /// Shares what is kept for `who`, and does `then` before anybody else looks at the layer's folders.
    fn share(&self, who: &str, layer: &Digest, then: impl FnOnce() -> io::Result<()>) {
        if self.sharing == Sharing::Nothing {
            return;
        }
        let own = self.own(who, layer);
        self.alone(layer, || {
            let share = || {
                let is_proved = self.proved_for_some(layer);
                let others = if is_proved { self.origins_but(who, layer) } else { String::new() };
                private::write_small(&own.join("origins"), (others + &key(who) + "\n").as_bytes())?;
                private::write_small(&own.join("proved"), layer.to_string().as_bytes())?;
                let _ = std::fs::remove_dir_all(self.shared(layer));
                std::fs::rename(&own, self.shared(layer))?;
                then()
            };
            if own.is_dir() && !self.proved(who, layer) {
                self.note(share(), "share a proved layer");
            }
        });
    }

    /// Withdraws a proof whose chunk digests are not those that were vouched for: the layer is fetched anew.
    pub fn withdraw(&self, layer: &Digest) {
        self.alone(layer, || self.withdraw_alone(layer));
    }

    fn withdraw_alone(&self, layer: &Digest) {
        let shared = self.shared(layer);
        let _ = std::fs::remove_file(shared.join("proved"));
        let _ = std::fs::remove_dir_all(&shared);
    }

    /// Shows `who` no longer what is shared of the layer; it goes once nobody is left who can have it.
    pub fn forsake(&self, who: &str, layer: &Digest) {
        self.alone(layer, || {
            let left = self.origins_but(who, layer);
            if left.is_empty() {
                return self.withdraw_alone(layer);
            }
            let path = self.shared(layer).join("origins");
            self.note(private::write_small(&path, left.as_bytes()), "record who may see a layer");
        });
    }

    /// Whether these are files of the layer as it is shared.
    #[must_use]
    pub fn is_shared(&self, layer: &Digest, stem: &Path) -> bool {
        stem.starts_with(self.shared(layer))
    }

    /// Does what changes the shared folder of a layer while no other process does.
    fn alone(&self, layer: &Digest, change: impl FnOnce()) {
        let path = self.shared(layer).with_extension("lock");
        let lock = path.parent().map_or(Ok(()), private::make_dir).and_then(|()| private::lock_file(&path));
        match lock {
            Ok(_until_done) => change(),
            Err(error) => self.note(Err(error), "lock a layer"),
        }
    }

    /// Some kept chunk of the layer as it was proved here for others, picked at random: the extent, the chunk's number in
    /// it, and its digest. `None` where nothing of these extents is kept or vouched for.
    #[must_use]
    pub fn sample(
        &self,
        layer: &Digest,
        extents: &[ContentRange],
    ) -> Option<(ContentRange, u64, ChunkDigest)> {
        let shared = self.shared(layer);
        let kept = |extent: &&ContentRange| kept::kept_bytes(&stem(&shared, **extent), extent.len()) > 0;
        let kept: Vec<ContentRange> = extents.iter().filter(kept).copied().collect();
        let extent = *any(&kept)?;
        let files =
            self.open.open(&stem(&shared, extent), extent.len()).ok().filter(|files| files.vouched())?;
        let here: Vec<u64> =
            (0..).zip(files.all()).filter(|(_, here)| *here).map(|(chunk, _)| chunk).collect();
        let chunk = *any(&here)?;
        Some((extent, chunk, files.digest(chunk)?))
    }

    /// Whether `who` has proved the layer by himself, or has shown that he can have it.
    #[must_use]
    pub fn origin(&self, who: &str, layer: &Digest) -> bool {
        self.origins(layer).lines().any(|origin| origin == key(who))
    }

    /// Records that `who` can have the layer's bytes.
    pub fn add_origin(&self, who: &str, layer: &Digest) {
        self.alone(layer, || self.add_origin_alone(who, layer));
    }

    fn add_origin_alone(&self, who: &str, layer: &Digest) {
        if !self.origin(who, layer) {
            let origins = self.origins(layer) + &key(who) + "\n";
            let path = self.shared(layer).join("origins");
            self.note(private::write_small(&path, origins.as_bytes()), "record who may see a layer");
        }
    }

    /// The keys of all others who can have it, a line each.
    fn origins_but(&self, who: &str, layer: &Digest) -> String {
        let (all, own) = (self.origins(layer), key(who));
        all.lines().filter(|other| *other != own).map(|other| format!("{other}\n")).collect()
    }

    fn origins(&self, layer: &Digest) -> String {
        let file = private::read_small(&self.shared(layer).join("origins"), ORIGINS_LIMIT);
        file.ok().and_then(|file| String::from_utf8(file).ok()).unwrap_or_default()
    }

    /// Keeps a small blob (a manifest, a config, the head or a section of a bound index) under its digest for `who`.
    pub fn keep_small(&self, who: &str, digest: &Digest, bytes: &Bytes) {
        let path = self.small_path(who, digest);
        if !path.exists() {
            self.note(private::write_checked(&path, bytes), "keep a small blob");
        }
    }

    /// A small blob kept for `who` before, verified against its digest; `None` where it is absent or damaged.
    #[must_use]
    pub fn small(&self, who: &str, digest: &Digest) -> Option<Bytes> {
        let path = self.small_path(who, digest);
        let bytes = private::read_small(&path, SMALL_LIMIT).ok()?;
        if digest.matches(&bytes) {
            return Some(bytes.into());
        }
        let _ = std::fs::remove_file(path);
        None
    }

    fn shared(&self, layer: &Digest) -> PathBuf {
        self.folder.join("layers").join(layer.algorithm().name()).join(layer.hex())
    }

    fn own(&self, who: &str, layer: &Digest) -> PathBuf {
        self.folder.join("layers").join(layer.algorithm().name()).join(format!(
            "{}.{}",
            layer.hex(),
            key(who)
        ))
    }

    /// Where `who` reads and keeps the layer.
    fn home(&self, who: &str, layer: &Digest) -> PathBuf {
        if self.proved(who, layer) { self.shared(layer) } else { self.own(who, layer) }
    }

    fn repository_path(&self, key: &str) -> PathBuf {
        self.folder.join("small").join(key).join("repository")
    }

    fn small_path(&self, who: &str, digest: &Digest) -> PathBuf {
        self.folder.join("small").join(key(who)).join(digest.algorithm().name()).join(digest.hex())
    }

    fn note(&self, outcome: io::Result<()>, doing: &str) {
        if let Err(error) = outcome {
            self.complain(&error, format_args!("cannot {doing}; going on without"));
        }
    }

    /// Says in the log that the disk failed. One cause is one warning for a time, however many files it is in the way of; none
    /// where it was clear from the beginning that nothing can be kept, since who opened the store has said so.
    pub(in crate::content) fn complain(&self, error: &io::Error, what: impl std::fmt::Display) {
        let store = self.folder.display();
        let is_told = self.fault.is_some() || !self.is_news(error.kind());
        match is_told {
            true => tracing::debug!(%store, %error, "{what}"),
            false => tracing::warn!(%store, %error, "{what}"),
        }
    }

    fn is_news(&self, kind: io::ErrorKind) -> bool {
        let (mut told, now) = (self.told.lock(), Instant::now());
        let is_old = told.get(&kind).is_some_and(|when| now - *when < AGAIN);
        if !is_old {
            told.insert(kind, now);
        }
        !is_old
    }
}

/// A name for a place and its credentials that is fit for a file.
fn key(who: &str) -> String {
    blake3::hash(who.as_bytes()).to_hex().chars().take(16).collect()
}

/// One of these, at random.
fn any<T>(all: &[T]) -> Option<&T> {
    let at = RandomState::new().hash_one(all.len()) % (all.len() as u64).max(1);
    all.get(usize::try_from(at).ok()?)
}

fn stem(home: &Path, extent: ContentRange) -> PathBuf {
    home.join(format!("{}-{}", extent.start(), extent.len()))
}

/// 90 % of what is free or already the store's. The walk is a second's work at worst, and only at a mount.
fn default_limit(folder: &Path) -> u64 {
    let free = nix::sys::statvfs::statvfs(folder)
        .map(|stat| stat.blocks_available().saturating_mul(stat.fragment_size()))
        .unwrap_or(0);
    free.saturating_add(budget::used(&folder.join("layers"))) / 10 * 9
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("store");
        let store = Store::open(&StoreConfig { folder, size: Some(1 << 30) }).unwrap();
        (dir, store)
    }

    const ALICE: &str = "host:1/a/b as alice";
    const BOB: &str = "host:1/a/b as bob";

    #[test]
    fn what_is_not_proved_is_each_ones_own_and_what_is_proved_is_for_who_can_have_it() {
        let (_dir, store) = store();
        let (layer, extent) = (Digest::of(b"layer"), ContentRange::new(0, 100));
        let kept = store.file(ALICE, &layer, extent).unwrap();
        let other = store.file(BOB, &layer, extent).unwrap();
        assert_ne!(kept.stem(), other.stem());
        store.set_proved(ALICE, &layer);
        assert!(store.proved(ALICE, &layer) && !store.proved(BOB, &layer) && store.proved_for_some(&layer));
        assert_eq!(store.file(BOB, &layer, extent).unwrap().stem(), other.stem());
        store.add_origin(BOB, &layer);
        assert!(store.proved(BOB, &layer));
        let shared = |who| store.file(who, &layer, extent).unwrap().stem().to_owned();
        assert_eq!(shared(ALICE), shared(BOB));
        assert!(!kept.removed(), "moved, not copied");
        store.withdraw(&layer);
        assert!(!store.proved(ALICE, &layer) && kept.removed());
    }

    #[test]
    fn a_store_is_private() {
        use std::os::unix::fs::MetadataExt;
        let (_dir, store) = store();
        let _kept = store.file(ALICE, &Digest::of(b"layer"), ContentRange::new(0, 100)).unwrap();
        let mut dirs = vec![store.folder().to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).unwrap() {
                let (path, mode) = entry.map(|e| (e.path(), e.metadata().unwrap().mode())).unwrap();
                assert_eq!(mode & 0o077, 0, "{}", path.display());
                dirs.extend(path.is_dir().then_some(path));
            }
        }
    }

    #[test]
    fn who_has_all_of_a_layer_brings_it_to_those_who_shared_it_before() {
        let (_dir, store) = store();
        let (layer, extent) = (Digest::of(b"layer"), ContentRange::new(0, 100));
        for who in ["one", "two"] {
            store.file(who, &layer, extent).unwrap();
            store.set_proved(who, &layer);
            // The first one's image is evicted, and what says that it was proved stays.
            if who == "one" {
                std::fs::remove_file(stem(&store.shared(&layer), extent).with_added_extension("data"))
                    .unwrap();
            }
        }
        assert!(stem(&store.shared(&layer), extent).with_added_extension("data").exists());
        assert!(store.proved("one", &layer) && store.proved("two", &layer) && !store.proved("three", &layer));
        assert!(!store.own("two", &layer).exists());
    }

    #[test]
    fn who_may_see_the_shared_layer_never_puts_his_own_beginnings_in_its_place() {
        let (_dir, store) = store();
        let (layer, extent) = (Digest::of(b"layer"), ContentRange::new(0, 100));
        let whole = store.file("one", &layer, extent).unwrap();
        store.set_proved("one", &layer);
        store.file("two", &layer, extent).unwrap();
        store.add_origin("two", &layer);
        // As by a process that saw a whole layer, which was the shared one by then.
        store.set_proved("two", &layer);
        assert!(!whole.removed() && store.proved("one", &layer) && store.proved("two", &layer));
    }

    #[test]
    fn a_store_that_can_keep_nothing_opens_and_says_why() {
        let (dir, store) = store();
        assert_eq!(store.fault(), None);
        assert_eq!(std::fs::read_dir(store.folder()).unwrap().count(), 0, "what was tried leaves nothing");
        std::fs::write(dir.path().join("file"), b"").unwrap();
        let folder = dir.path().join("file/store");
        let store = Store::open(&StoreConfig { folder: folder.clone(), size: None }).unwrap();
        assert!(store.fault().is_some_and(|fault| fault.contains(folder.to_str().unwrap())), "{store:?}");
        store.keep_small(ALICE, &Digest::of(b"x"), &Bytes::from_static(b"x"));
        assert!(store.small(ALICE, &Digest::of(b"x")).is_none());
    }

    #[test]
    fn one_cause_is_told_once() {
        let (_dir, store) = store();
        let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::StorageFull, io::ErrorKind::NotFound];
        assert_eq!(kinds.map(|kind| store.is_news(kind)), [true, false, true]);
    }

    #[test]
    fn a_store_that_shares_nothing_believes_no_proof() {
        let (dir, shared) = store();
        let (layer, extent) = (Digest::of(b"layer"), ContentRange::new(0, 100));
        shared.file("me", &layer, extent).unwrap();
        shared.set_proved("me", &layer);
        let config = StoreConfig { folder: dir.path().join("store"), size: None };
        let alone = Store::open_as(&config, Sharing::Nothing).unwrap();
        assert!(shared.proved("me", &layer) && !alone.proved("me", &layer));
        alone.file("me", &layer, extent).unwrap();
        alone.set_proved("me", &layer);
        assert!(alone.own("me", &layer).exists());
    }
}
