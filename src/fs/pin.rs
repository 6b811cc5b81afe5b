//! From a reference to an artifact whose digest is fixed: the first rounds of opening a model.
//!
//! Asks the repository, and the store where nobody answers. Reads no layer. Called by [`Model`](super::Model) only.

use std::time::Duration;

use bytes::Bytes;

use crate::content::Store;
use crate::error::{Error, Kind, Result};
use crate::oci::config::{CONFIG_LIMIT, Description};
use crate::oci::manifest::{Document, Manifest};
use crate::oci::{Artifact, Descriptor, Digest, Reference, Which};
use crate::range::StoredRange;
use crate::repository::{Pinned, Repository, read_all};

/// How long the config is waited for: it says nothing that a reader needs.
const CONFIG_WAIT: Duration = Duration::from_secs(10);

/// An artifact under its digest.
#[derive(Debug)]
pub(super) struct Found {
    /// The manifest; of an index, the one that was chosen.
    pub(super) pinned: Pinned,
    /// What the manifest means.
    pub(super) artifact: Artifact,
    /// Who gave it.
    pub(super) from: Source,
}

/// Who gave a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The repository, just now: the caller may see it.
    Repository,
    /// The store, since nobody answers: the caller was allowed to see it before.
    Store,
}

/// Resolves `reference`, through one level of index. Costs one request, or two where there is an index.
///
/// # Errors
/// Those of [`Repository::manifest`], where the store does not help; those of reading a manifest.
pub(super) async fn pin(repository: &dyn Repository, reference: &Reference, store: &Store) -> Result<Found> {
    match ask(repository, reference).await {
        Ok((pinned, artifact)) => Ok(Found { pinned, artifact, from: Source::Repository }),
        Err(error) if nobody_answers(&error) => recall(repository, reference, store, error),
        Err(error) => Err(error.context(format!("cannot open {reference}"))),
    }
}

async fn ask(repository: &dyn Repository, reference: &Reference) -> Result<(Pinned, Artifact)> {
    let pinned = repository.manifest(&reference.which()).await?;
    match Document::parse(&pinned.bytes, &pinned.media_type)? {
        Document::Manifest(manifest) => Artifact::read(manifest).map(|artifact| (pinned, artifact)),
        Document::Index(choice) => {
            let chosen = choice.choose()?.digest.clone();
            let pinned = repository.manifest(&Which::Digest(chosen)).await?;
            let artifact = Artifact::read(single(&pinned)?)?;
            Ok((pinned, artifact))
        }
    }
}

fn single(pinned: &Pinned) -> Result<Manifest> {
    match Document::parse(&pinned.bytes, &pinned.media_type)? {
        Document::Manifest(manifest) => Ok(manifest),
        Document::Index(_) => {
            let doing = format!("{} is an index inside of an index", pinned.digest);
            Err(Error::new(Kind::Unsupported, doing).hint("name the manifest that is meant with @DIGEST"))
        }
    }
}

/// Whether kept bytes may stand in: never after an answer that refuses or denies that there is such a thing.
fn nobody_answers(error: &Error) -> bool {
    matches!(error.kind(), Kind::Unreachable | Kind::Broken | Kind::Deadline | Kind::Throttled)
}

fn recall(repository: &dyn Repository, reference: &Reference, store: &Store, error: Error) -> Result<Found> {
    let Some(pinned) = store.recall(&repository.identity(), reference) else {
        return Err(error.context(format!("cannot open {reference}, and nothing of it is kept here")));
    };
    tracing::warn!(digest = %pinned.digest, "{reference} is opened from what is kept here: {error}");
    let artifact = Artifact::read(single(&pinned)?)?;
    Ok(Found { pinned, artifact, from: Source::Store })
}

/// The config's bytes, kept or asked for; `None` where the artifact has none, or where it is of no use, of
/// which `warnings` then has a line.
pub(super) async fn config(
    repository: &dyn Repository,
    found: &Found,
    store: &Store,
    warnings: &mut Vec<String>,
) -> Option<Bytes> {
    let descriptor = found.artifact.config.as_ref()?;
    let who = repository.identity();
    if let Some(kept) = store.small(&who, &descriptor.digest) {
        return Some(kept);
    }
    let asked = match found.from {
        Source::Repository => tokio::time::timeout(CONFIG_WAIT, fetch(repository, descriptor)).await,
        Source::Store => Ok(Err(Error::new(Kind::NotFound, "it is not kept here"))),
    };
    match asked.unwrap_or_else(|_| Err(Error::new(Kind::Deadline, "no answer in time"))) {
        Ok(bytes) => {
            store.keep_small(&who, &descriptor.digest, &bytes);
            Some(bytes)
        }
        Err(error) => {
            warnings.push(format!("the config {} can't be read: {error}", descriptor.digest));
            None
        }
    }
}

async fn fetch(repository: &dyn Repository, descriptor: &Descriptor) -> Result<Bytes> {
    if descriptor.size > CONFIG_LIMIT {
        return Err(Error::new(Kind::Invalid, format!("it has {} bytes", descriptor.size)));
    }
    let range = StoredRange::new(0, descriptor.size);
    let bytes = read_all(repository, &descriptor.blob(), range).await?;
    match descriptor.digest.matches(&bytes) {
        true => Ok(bytes),
        false => Err(Error::new(Kind::Integrity, "its bytes are not what the digest says")),
    }
}

/// The diffIDs that the config gives.
pub(super) fn diff_ids(config: Option<&Bytes>) -> Vec<Digest> {
    config.map(|bytes| Description::parse(bytes).diff_ids).unwrap_or_default()
}
