//! An index that somebody published beside an artifact, as a referrer of it: for who may not change the manifest.
//!
//! Entries say whose bytes a name shows, and windows are content, so it counts only where the user says so. Found by
//! [`find_in`](super::find_in) for artifacts with compressed layers that have no index; published by `index push`. A model
//! opens without it as well, only slower, so nobody waits long for it, and one that is wrong is passed over for another.

use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout, timeout_at};

use super::bound::{self, Opened};
use super::cover;
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::BoundIndex;
use crate::oci::manifest::Document;
use crate::oci::metadata::seconds;
use crate::oci::{Artifact, Descriptor, Digest, Which};
use crate::repository::Repository;

/// The artifact type of an attached index.
pub const ARTIFACT_TYPE: &str = "application/vnd.weightfs.index.v1";

/// When a referrer was made (image specification, annotations.md).
const CREATED: &str = "org.opencontainers.image.created";

/// How long the list of referrers is waited for: many registries have none, and some never answer.
const LIST_WAIT: Duration = Duration::from_secs(5);

/// How long looking for an index may take in all.
const WAIT: Duration = Duration::from_secs(20);

/// How many of those that are listed are looked into. Anybody who may push can attach any number.
const TRIED: usize = 8;

/// Whether an attached index counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// It is ignored, but for a line in the log.
    #[default]
    Never,
    /// By the user's word.
    Always,
}

/// An index that was used at an earlier time: as its manifest pinned it, and the bytes of its head.
pub type Kept = (BoundIndex, Bytes);

/// The index that is attached to the artifact `subject`, trusted; `None` where there is none that can be had in time, of
/// which the log then has a line.
///
/// Of several it is the newest of those that say when they were made, else the first that covers all layers of `artifact`, else
/// the first of all. One that is wrong is passed over, with a line in the log. `kept` saves asking for its head. Costs up to four
/// requests one after the other, and two for each index that is passed over.
///
/// # Errors
/// Naming the index, where none is right and one is wrong: `Invalid`, `Integrity` and `Unsupported` where it can't be
/// meant, else those of reading.
pub async fn open(
    repository: &dyn Repository,
    artifact: &Artifact,
    subject: &Digest,
    kept: Option<&Kept>,
) -> Result<Option<Opened>> {
    let end = Instant::now() + WAIT;
    let (mut part, mut wrong) = (None, Vec::new());
    for (referrer, age) in listed(repository, subject).await.into_iter().take(TRIED) {
        let late = |_| Err(named(&referrer.digest, no_answer()));
        let tried = timeout_at(end, one(repository, artifact, subject, (&referrer, kept))).await;
        match tried.unwrap_or_else(late) {
            Ok((opened, covers)) if covers == Covers::All || age == Age::Known => {
                wrong.iter().for_each(pass_over);
                return Ok(Some(opened));
            }
            Ok((opened, _)) => part = part.or(Some(opened)),
            Err(error) => wrong.push(error),
        }
    }
    if part.is_none()
        && let Some(at) = wrong.iter().position(|error| !error.kind().leaves_open())
    {
        return Err(wrong.swap_remove(at));
    }
    wrong.iter().for_each(pass_over);
    Ok(part)
}

fn pass_over(error: &Error) {
    tracing::warn!("{error}; going on without it");
}

fn no_answer() -> Error {
    Error::new(Kind::Deadline, "no answer in time")
}

/// The index that was used of an artifact at an earlier time, for when nobody can be asked; `None` where it is of no use any more.
pub(super) fn reopen((index, head): &Kept, artifact: &Artifact) -> Option<Opened> {
    let opened = bound::read_kept(index, head.clone());
    let fits = opened.and_then(|opened| covers(artifact, &opened).map(|_| opened));
    fits.map_err(|error| unreadable(index, error)).inspect_err(pass_over).ok()
}

/// Writes a line to the log where an index is attached to the artifact `subject`, which is not trusted. Costs a request or
/// two, and nobody should wait for it.
pub async fn mention(repository: &dyn Repository, subject: &Digest) {
    let listed = timeout(LIST_WAIT, repository.referrers(subject, ARTIFACT_TYPE)).await;
    if let Ok(Ok(listed)) = listed
        && let Some(found) = listed.first()
    {
        let index = &found.digest;
        tracing::warn!(
            "the index {index} is attached to {subject} and ignored: it is not trusted (--trust-index)"
        );
    }
}

/// How every failure of the index reads.
pub(super) fn unreadable(index: &BoundIndex, error: Error) -> Error {
    named(&index.blob.digest, error)
}

fn named(index: &Digest, error: Error) -> Error {
    error
        .context(format!("the attached index {index} can't be used"))
        .hint("publish it again with 'weightfs index push', or do without '--trust-index'")
}

/// Whether a referrer says when it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Known,
    Unknown,
}

/// How many of an artifact's compressed layers an index covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Covers {
    All,
    Some,
}

/// The indexes that are attached to `subject`, those that are looked into first before the others; none where that can't be had
/// in time.
async fn listed(repository: &dyn Repository, subject: &Digest) -> Vec<(Descriptor, Age)> {
    let listed = timeout(LIST_WAIT, repository.referrers(subject, ARTIFACT_TYPE)).await;
    let listed = listed.unwrap_or_else(|_| Err(no_answer()));
    let listed = listed.unwrap_or_else(|error| {
        tracing::warn!("cannot look for an index attached to {subject}, going on without: {error}");
        Vec::new()
    });
    let created = |one: &Descriptor| one.annotations.get(CREATED).and_then(|text| seconds(text));
    let mut listed: Vec<_> = listed.into_iter().map(|one| (created(&one), one)).collect();
    // The newest first, and those that do not say it last, as they stand.
    listed.sort_by_key(|(created, _)| std::cmp::Reverse(*created));
    let age = |created: Option<i64>| created.map_or(Age::Unknown, |_| Age::Known);
    listed.into_iter().map(|(created, one)| (one, age(created))).collect()
}

/// One of the indexes, read and found to be of `artifact`.
async fn one(
    repository: &dyn Repository,
    artifact: &Artifact,
    subject: &Digest,
    (referrer, kept): (&Descriptor, Option<&Kept>),
) -> Result<(Opened, Covers)> {
    let index = pinned(repository, subject, referrer).await;
    let index = index.map_err(|error| named(&referrer.digest, error))?;
    let head = kept.filter(|(kept, _)| *kept == index).map(|(_, head)| head.clone());
    let opened = bound::open_index(repository, &index, head).await;
    let checked = opened.and_then(|opened| covers(artifact, &opened).map(|covers| (opened, covers)));
    checked.map_err(|error| unreadable(&index, error))
}

/// # Errors
/// `Invalid` where it is of another artifact.
fn covers(artifact: &Artifact, opened: &Opened) -> Result<Covers> {
    let covered = cover::cover_by(artifact, opened.head.clone(), &|error| error)?;
    let lacks = artifact
        .visible()
        .zip(covered)
        .any(|(layer, covered)| covered.is_none() && super::compression(layer.packaging).is_some());
    Ok(if lacks { Covers::Some } else { Covers::All })
}

/// The index as its manifest pins it.
///
/// # Errors
/// Those of reading the manifest; `Invalid` where it is not one of an index, or of one for another artifact.
async fn pinned(repository: &dyn Repository, subject: &Digest, referrer: &Descriptor) -> Result<BoundIndex> {
    let pinned = repository.manifest(&Which::Digest(referrer.digest.clone())).await?;
    if !refers(&pinned.bytes, subject) {
        let doing = format!("the manifest {} is not of an index for {}", pinned.digest, subject);
        return Err(Error::new(Kind::Invalid, doing));
    }
    let Document::Manifest(manifest) = Document::parse(&pinned.bytes, &pinned.media_type)? else {
        return Err(Error::new(Kind::Invalid, format!("the manifest {} is a list", pinned.digest)));
    };
    let index = Artifact::read(manifest)?.bound_index()?;
    index.ok_or_else(|| Error::new(Kind::Invalid, format!("the manifest {} has no index", pinned.digest)))
}

/// Whether a manifest says of itself that it is one of an index for `subject`.
fn refers(manifest: &[u8], subject: &Digest) -> bool {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Referrer {
        artifact_type: String,
        subject: Subject,
    }
    #[derive(serde::Deserialize)]
    struct Subject {
        digest: Digest,
    }
    let says = serde_json::from_slice::<Referrer>(manifest);
    says.is_ok_and(|says| says.artifact_type == ARTIFACT_TYPE && says.subject.digest == *subject)
}

#[cfg(test)]
#[path = "attached_tests.rs"]
mod tests;
