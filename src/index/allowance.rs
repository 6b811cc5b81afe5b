//! How much of an artifact's names may be held, whoever wrote it: its archives' headers, and the tree that is made of them.
//!
//! A few bytes of an artifact can ask for much: one path of 4 KiB for two thousand folders, each of ten thousand layers for
//! headers without end. So there is one allowance for all layers together. Held by [`find`](super::find()), by the tree while
//! names come, and by whoever lets layers go by.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Entry, EntryKind};
use crate::error::{Error, Kind, Result};

/// 64 MiB: the headers of some 60 000 files.
const HEADERS: u64 = 64 << 20;

/// 64 MiB: the places of some million frames, or of as many parts of files.
const GUIDES: u64 = 64 << 20;

/// 512 MiB: some million and a half names.
const NAMES: u64 = 512 << 20;

/// What a name takes beside its text: its entry, its node, and its place in its folder.
const NAME: u64 = 256;

/// How many bytes of one kind may still be held.
#[derive(Debug)]
pub struct Allowance {
    left: AtomicU64,
    refusal: fn() -> Error,
}

impl Allowance {
    /// For the headers of an artifact's archives: 64 MiB, less the `held` bytes of them that are held already.
    #[must_use]
    pub fn headers(held: u64) -> Self {
        Self { left: AtomicU64::new(HEADERS.saturating_sub(held)), refusal: many_headers }
    }

    /// For what the compressed layers of an artifact say of themselves: 64 MiB.
    #[must_use]
    pub(super) fn guides() -> Self {
        Self { left: AtomicU64::new(GUIDES), refusal: large_guides }
    }

    /// For the names of a tree: 512 MiB.
    #[must_use]
    pub fn names() -> Self {
        Self { left: AtomicU64::new(NAMES), refusal: many_names }
    }

    /// Refuses what would not fit.
    ///
    /// # Errors
    /// `Unsupported`.
    pub fn check(&self, len: u64) -> Result<()> {
        if len > self.left.load(Ordering::Relaxed) { Err((self.refusal)()) } else { Ok(()) }
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    /// `Unsupported` where there are not so many left; then none are taken.
    pub fn take(&self, len: u64) -> Result<()> {
        let taken =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(len));
        taken.map(drop).map_err(|_| (self.refusal)())
    }

    /// Takes what the entry needs in a tree.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_entry(&self, entry: &Entry) -> Result<()> {
        self.take(weight(entry))
    }

    /// Takes what a folder needs that only a path implies.
    ///
    /// # Errors
    /// As [`take`](Self::take).
    pub fn take_folder(&self, path: &str) -> Result<()> {
        self.take(NAME.saturating_add(length(path)))
    }

    /// Gives back what was taken for the entry.
    pub(super) fn give_back(&self, entry: &Entry) {
        self.left.fetch_add(weight(entry), Ordering::Relaxed);
    }
}

fn weight(entry: &Entry) -> u64 {
    let target = match &entry.kind {
        EntryKind::Symlink(target) | EntryKind::HardLink(target) => length(target),
        EntryKind::File { .. } | EntryKind::Directory | EntryKind::Whiteout | EntryKind::Opaque => 0,
    };
    NAME.saturating_add(length(&entry.path)).saturating_add(target)
}

fn length(text: &str) -> u64 {
    u64::try_from(text.len()).unwrap_or(u64::MAX)
}

fn many_headers() -> Error {
    Error::new(Kind::Unsupported, "its archives hold more than 64 MiB of headers")
        .hint("pack many small files as fewer larger ones, or as raw layers")
}

fn large_guides() -> Error {
    Error::new(Kind::Unsupported, "what its layers say of their parts takes more than 64 MiB of memory")
}

fn many_names() -> Error {
    Error::new(Kind::Unsupported, "its files and the folders they lie in take more than 512 MiB of memory")
        .hint("pack many small files as fewer larger ones, in fewer folders")
}

/// What one layer has had of an artifact's allowance for headers. However often the layer goes by, its headers count once.
#[derive(Clone, Debug)]
pub struct Headers {
    allowance: Arc<Allowance>,
    had: Arc<AtomicU64>,
}

impl Headers {
    /// Nothing yet of `allowance`.
    #[must_use]
    pub fn of(allowance: &Arc<Allowance>) -> Self {
        Self { allowance: Arc::clone(allowance), had: Arc::default() }
    }

    /// The layer has had so many bytes of headers by now, from its start on.
    ///
    /// # Errors
    /// `Unsupported` where all layers together have more than they may.
    pub(super) fn reach(&self, total: u64) -> Result<()> {
        let more = total.saturating_sub(self.had.load(Ordering::Relaxed));
        self.allowance.take(more)?;
        self.had.fetch_max(total, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_share_one_allowance_and_one_that_goes_by_again_takes_nothing_more() {
        let allowance = Arc::new(Allowance::headers(HEADERS - 100));
        let (one, other) = (Headers::of(&allowance), Headers::of(&allowance));
        one.reach(40).unwrap();
        one.reach(60).unwrap();
        for total in [20, 60] {
            one.clone().reach(total).unwrap();
        }
        other.reach(40).unwrap();
        let error = other.reach(41).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported);
        assert!(error.to_string().contains("64 MiB of headers"), "{error}");
    }

    #[test]
    fn what_a_name_took_is_what_is_given_back() {
        let allowance = Allowance::names();
        let kind = EntryKind::Symlink("target".to_owned());
        let entry = Entry { path: "a/b".to_owned(), kind, mode: 0, mtime: 0, layer: 0 };
        allowance.take_entry(&entry).unwrap();
        assert!(allowance.check(NAMES).is_err());
        allowance.give_back(&entry);
        allowance.check(NAMES).unwrap();
    }
}
