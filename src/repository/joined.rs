//! Several repositories as one: an artifact's own, those of artifacts that it is put together with, and bytes in memory.
//!
//! Manifests are the first one's; a blob is read where it was found. Whoever puts an artifact together makes one.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, StreamExt};

use super::{ByteStream, Pace, Pinned, Repository, identity_of};
use crate::error::{Error, Kind, Result};
use crate::oci::{Blob, Descriptor, Digest, Reference, Which};
use crate::range::StoredRange;

/// A repository, and where else blobs are.
pub struct Joined {
    first: Arc<dyn Repository>,
    /// Repositories in the order they were added, which their identities are part of.
    others: Vec<Arc<dyn Repository>>,
    /// Blobs that are the first one's, whoever else names them.
    own: HashSet<Digest>,
    blobs: HashMap<Digest, Source>,
}

enum Source {
    Repository(Arc<dyn Repository>),
    Memory(Bytes),
}

impl Joined {
    /// `first` alone, whose `own` blobs are read there, whoever is added that names them too.
    #[must_use]
    pub fn new(first: Arc<dyn Repository>, own: impl IntoIterator<Item = Digest>) -> Self {
        Self { first, others: Vec::new(), own: own.into_iter().collect(), blobs: HashMap::new() }
    }

    /// Reads these blobs from `other` from now on, save those that have a place already.
    pub fn add(&mut self, other: &Arc<dyn Repository>, blobs: impl IntoIterator<Item = Digest>) {
        for digest in blobs {
            if !self.own.contains(&digest) {
                self.blobs.entry(digest).or_insert_with(|| Source::Repository(other.clone()));
            }
        }
        self.others.push(other.clone());
    }

    /// Serves `bytes` as a blob from now on.
    pub fn add_bytes(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        self.blobs.insert(Digest::of(&bytes), Source::Memory(bytes));
    }
}

impl fmt::Debug for Joined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined")
            .field("first", &self.first)
            .field("others", &self.others)
            .finish_non_exhaustive()
    }
}

impl Repository for Joined {
    fn manifest<'a>(&'a self, which: &'a Which) -> BoxFuture<'a, Result<Pinned>> {
        self.first.manifest(which)
    }

    fn read<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        match self.blobs.get(&blob.digest) {
            Some(Source::Repository(other)) => other.read(blob, range),
            Some(Source::Memory(bytes)) => {
                let piece = slice(blob, bytes, range);
                Box::pin(async { Ok(stream::iter([Ok(piece?)]).boxed()) })
            }
            None => self.first.read(blob, range),
        }
    }

    fn read_ahead<'a>(&'a self, blob: &'a Blob, range: StoredRange) -> BoxFuture<'a, Result<ByteStream>> {
        match self.blobs.get(&blob.digest) {
            Some(Source::Repository(other)) => other.read_ahead(blob, range),
            Some(Source::Memory(_)) => self.read(blob, range),
            None => self.first.read_ahead(blob, range),
        }
    }

    fn pace(&self) -> Pace {
        self.first.pace()
    }

    /// Of the artifact itself: what others refer to is in their repositories.
    fn referrers<'a>(
        &'a self,
        subject: &'a Digest,
        artifact_type: &'a str,
    ) -> BoxFuture<'a, Result<Vec<Descriptor>>> {
        self.first.referrers(subject, artifact_type)
    }

    fn distrust(&self, blob: &Blob) {
        match self.blobs.get(&blob.digest) {
            Some(Source::Repository(other)) => other.distrust(blob),
            Some(Source::Memory(_)) => {}
            None => self.first.distrust(blob),
        }
    }

    fn place(&self) -> String {
        self.first.place()
    }

    /// Of all of them: who may read one may not therefore see what another gave.
    fn identity(&self) -> String {
        if self.others.is_empty() {
            return self.first.identity();
        }
        let all: Vec<_> =
            std::iter::once(&self.first).chain(&self.others).map(|one| one.identity()).collect();
        identity_of(&all.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn elsewhere(&self, reference: &Reference) -> Result<Arc<dyn Repository>> {
        self.first.elsewhere(reference)
    }
}

fn slice(blob: &Blob, bytes: &Bytes, range: StoredRange) -> Result<Bytes> {
    super::inside(blob, range)?;
    let place = |at| usize::try_from(at).unwrap_or(usize::MAX);
    let piece = bytes.get(place(range.start())..place(range.end()));
    piece
        .map(|piece| bytes.slice_ref(piece))
        .ok_or_else(|| Error::new(Kind::Invalid, format!("bytes {range} are not within {}", blob.digest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::{Memory, read_all};

    #[tokio::test]
    async fn a_blob_is_read_where_it_is_and_the_identity_is_that_of_all() {
        let (first, other) = (Arc::new(Memory::new()), Arc::new(Memory::new()));
        let (own, foreign) = (first.put("own"), other.put("foreign"));
        let mut joined = Joined::new(first.clone(), [own.digest.clone()]);
        let made = Blob { digest: Digest::of(b"made"), size: 4 };
        joined.add_bytes("made");
        assert_eq!(joined.identity(), first.identity());
        let other: Arc<dyn Repository> = other;
        joined.add(&other, [foreign.digest.clone()]);
        // Neither takes over what has a place.
        let empty: Arc<dyn Repository> = Arc::new(Memory::new());
        joined.add(&empty, [&own, &foreign, &made].map(|blob| blob.digest.clone()));
        assert_ne!(joined.identity(), first.identity());
        let all = |blob: Blob| {
            let joined = &joined;
            async move { read_all(joined, &blob, StoredRange::new(1, blob.size)).await.unwrap() }
        };
        assert_eq!(all(own).await, "wn");
        assert_eq!(all(foreign).await, "oreign");
        assert_eq!(all(made.clone()).await, "ade");
        assert_eq!(first.requests(), 1);
        assert!(joined.read(&made, StoredRange::new(0, 5)).await.is_err());
    }
}
