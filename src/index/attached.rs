//! An index that somebody published beside an artifact, as a referrer of it: for who may not change the manifest.
//!
//! Entries say whose bytes a name shows, and windows are content, so it counts only where the user says so. Found by
//! [`find_in`](super::find_in) for artifacts with compressed layers that have no index; published by `index push`.

use super::bound;
use super::find::Subject;
use super::format::Head;
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::BoundIndex;
use crate::oci::manifest::Document;
use crate::oci::{Artifact, Descriptor, Which};
use crate::repository::{Repository, refers};

/// The artifact type of an attached index.
pub const ARTIFACT_TYPE: &str = "application/vnd.weightfs.index.v1";

/// Whether an attached index counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// It is ignored, but for a line in the log.
    #[default]
    Never,
    /// By the user's word.
    Always,
}

/// The head of the index that is attached to `subject`, where it is trusted; the last one where there are several.
///
/// # Errors
/// None where it is not trusted. Else naming the index: those of reading; `Invalid`, `Integrity` and `Unsupported` where
/// it can't be meant.
pub async fn open(repository: &dyn Repository, subject: Subject<'_>) -> Result<Option<(BoundIndex, Head)>> {
    let listed = repository.referrers(subject.digest, ARTIFACT_TYPE).await;
    if subject.trust == Trust::Never {
        if let Some(found) = listed.ok().and_then(|listed| listed.into_iter().next_back()) {
            let (index, subject) = (found.digest, subject.digest);
            tracing::warn!(
                "the index {index} is attached to {subject} and ignored: it is not trusted (--trust-index)"
            );
        }
        return Ok(None);
    }
    let doing = || format!("cannot look for an index attached to {}", subject.digest);
    let Some(found) = listed.map_err(|error| error.context(doing()))?.into_iter().next_back() else {
        return Ok(None);
    };
    let index = pinned(repository, subject, &found).await;
    let index =
        index.map_err(|error| error.context(format!("the attached index {} can't be used", found.digest)))?;
    let opened =
        bound::open_index(repository, &index, None).await.map_err(|error| unreadable(&index, error))?;
    Ok(Some((index, opened.head)))
}

/// How every failure of the index reads.
pub(super) fn unreadable(index: &BoundIndex, error: Error) -> Error {
    error
        .context(format!("the attached index {} can't be used", index.blob.digest))
        .hint("publish it again with 'weightfs index push', or do without '--trust-index'")
}

/// The index as its manifest pins it.
///
/// # Errors
/// Those of reading the manifest; `Invalid` where it is not one of an index, or of one for another artifact.
async fn pinned(
    repository: &dyn Repository,
    subject: Subject<'_>,
    referrer: &Descriptor,
) -> Result<BoundIndex> {
    let pinned = repository.manifest(&Which::Digest(referrer.digest.clone())).await?;
    if !refers(&pinned.bytes, subject.digest, ARTIFACT_TYPE) {
        let doing = format!("the manifest {} is not of an index for {}", pinned.digest, subject.digest);
        return Err(Error::new(Kind::Invalid, doing));
    }
    let Document::Manifest(manifest) = Document::parse(&pinned.bytes, &pinned.media_type)? else {
        return Err(Error::new(Kind::Invalid, format!("the manifest {} is a list", pinned.digest)));
    };
    let index = Artifact::read(manifest)?.bound_index()?;
    index.ok_or_else(|| Error::new(Kind::Invalid, format!("the manifest {} has no index", pinned.digest)))
}

#[cfg(test)]
#[path = "attached_tests.rs"]
mod tests;
