//! Whose word counts for a blob of two artifacts: it is shown of one of both, and who reads the other has not chosen that.
//!
//! So both have to be held to the same, or the blob is looked at: what is right needs nobody's word. Why, and what else was thought
//! of, is decision 9. Only what the two say of themselves here; [`Layout`](super::layout::Layout) knows what they have.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use super::layout::Named;
use crate::error::{Error, Kind, Result};
use crate::oci::Digest;
use crate::oci::artifact::INDEX_KEY;
use crate::oci::digest::Hasher;
use crate::oci::manifest::Descriptor;
pub(super) use crate::serve::INTEGRITY;

/// Up to how many bytes a blob of two artifacts is read to see whether it is right: 4 MiB.
const LOOKED_AT: u64 = 4 << 20;

/// The same of what is the index of both, which nothing but its digest says anything of: 64 MiB, as a model of 2 TiB has.
const INDEX_LOOKED_AT: u64 = 64 << 20;

/// How many bytes are read at once.
const STEP: usize = 1 << 20;

/// The value of [`INTEGRITY`] where nothing is served before it is verified.
pub(super) const STRICT: &str = "strict";

impl Named {
    /// Whether nothing of it is served but what was found to be what its digest says.
    pub(super) fn is_strict(&self) -> bool {
        self.settings.get(INTEGRITY).is_some_and(|value| value == STRICT)
    }

    /// Whether a blob may be shown of this one to who reads `other`: the same index counts for both, or none for either, and they are
    /// of one registry.
    pub(super) fn has_word_of(&self, other: &Self, blob: &Digest) -> bool {
        let host = |named: &Self| named.name.split('/').next().map(str::to_owned);
        match (self.chunks.get(blob), other.chunks.get(blob)) {
            (Some(own), Some(others)) => own == others,
            (None, None) => host(self) == host(other),
            // Whoever has no index has not chosen the other's, and may be of the same registry as anybody.
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Of those that have a blob the least is the one that shows it.
    pub(super) fn rank(&self, blob: &Digest) -> u8 {
        match (self.is_strict(), self.chunks.contains_key(blob)) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        }
    }
}

/// A blob that two artifacts have, by different words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Doubt {
    /// Of what name the other one is.
    pub(super) other: String,
    pub(super) blob: Digest,
    /// Where each of both shows it.
    pub(super) shown_at: [PathBuf; 2],
    /// Up to how many bytes it is read.
    pub(super) limit: u64,
}

impl Doubt {
    /// Up to how many bytes a blob is read that two artifacts have by these descriptors.
    pub(super) fn limit_of(of_both: [&Descriptor; 2]) -> u64 {
        let are_indexes = of_both.iter().all(|blob| blob.annotations.contains_key(INDEX_KEY));
        if are_indexes { INDEX_LOOKED_AT } else { LOOKED_AT }
    }

    /// Reads the blob where either artifact shows it. Waits for their registries, each as long as a read may take.
    ///
    /// # Errors
    /// `Busy`, unless it is right in both.
    pub(super) fn look(&self) -> Result<()> {
        let is_large = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|found| found.len() > self.limit);
        let mib = self.limit >> 20;
        let why = if self.shown_at.iter().any(is_large) {
            format!("with more than {mib} MiB it is not compared at once")
        } else if self.shown_at.iter().all(|path| is_right(path, &self.blob)) {
            return Ok(());
        } else {
            "not both of them show it as its digest says".to_owned()
        };
        let Self { other, blob, .. } = self;
        let doing =
            format!("{other} has the blob {blob} too, by the word of another index or registry: {why}");
        let way_out = "with --integrity strict it is compared with its digest before it is served; or remove the other one";
        Err(Error::new(Kind::Busy, doing).hint(way_out))
    }
}

/// Whether the file is what the digest says.
fn is_right(path: &Path, digest: &Digest) -> bool {
    let hashed = || -> std::io::Result<Digest> {
        let (mut file, mut step) = (File::open(path)?, vec![0; STEP]);
        let mut hasher = Hasher::new(digest.algorithm());
        loop {
            match file.read(&mut step) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(read) => hasher.update(step.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    };
    hashed().is_ok_and(|found| found == *digest)
}
