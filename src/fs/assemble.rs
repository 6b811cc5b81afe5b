//! From one manifest to all that a model is made of: its own layers, files that are made of its config, and the layers of
//! the artifacts that it is built upon.
//!
//! Most artifacts are whole as they are, and cost nothing here. Called by [`Model`](super::Model) once a manifest is
//! pinned.

use std::sync::Arc;

use bytes::Bytes;

use super::pin::{self, Found, Source};
use crate::content::store::{Asked, Store};
use crate::error::{Error, Kind, Result};
use crate::oci::artifact::Family;
use crate::oci::complete::{Extras, PARENT_LIMIT};
use crate::oci::{Artifact, Reference};
use crate::repository::{Joined, Repository};

/// An artifact with every layer that its files come from, and where they all are.
#[derive(Debug)]
pub(super) struct Whole {
    /// The layers of parents come first, so that its own lie above them.
    pub(super) artifact: Artifact,
    /// Gives all of its blobs.
    pub(super) repository: Arc<dyn Repository>,
}

/// Puts `found` together. Costs a request for the config where names come from it, and two for each parent.
///
/// # Errors
/// Those of pinning and reading a config, naming whose; `Invalid` for parents that go in a circle, and where a config can't
/// be meant; `Unsupported` for more than [`PARENT_LIMIT`] parents, and one that is no kit or in no registry.
pub(super) async fn assemble(
    repository: Arc<dyn Repository>,
    found: &Found,
    store: &Arc<Store>,
) -> Result<Whole> {
    let mut artifact = found.artifact.clone();
    let Extras { made, mut parent } = completed(&*repository, &mut artifact, found.from, store).await?;
    if made.is_empty() && parent.is_none() {
        return Ok(Whole { artifact, repository });
    }
    let own = artifact.layers.iter().map(|layer| layer.descriptor.digest.clone());
    let mut joined = Joined::new(repository, own);
    made.into_iter().for_each(|file| joined.add_bytes(file));
    let mut chain: Vec<Reference> = Vec::new();
    while let Some(reference) = parent {
        refuse_endless(&chain, &reference)?;
        let of_parent = |error: Error| error.context(format!("cannot open the parent kit {reference}"));
        let (below, next) = add_parent(&mut joined, &reference, store).await.map_err(of_parent)?;
        artifact.warnings.extend(below.warnings);
        artifact.layers.splice(0..0, below.layers);
        chain.push(reference);
        parent = next;
    }
    Ok(Whole { artifact, repository: Arc::new(joined) })
}

/// The parent's model, and the parent's own parent.
async fn add_parent(
    joined: &mut Joined,
    reference: &Reference,
    store: &Arc<Store>,
) -> Result<(Artifact, Option<Reference>)> {
    let repository = joined.elsewhere(reference)?;
    let asked = Asked::from(reference);
    let found = pin::pin(&*repository, &asked, store).await?;
    let mut artifact = found.artifact.clone();
    if artifact.family != Family::KitOps {
        let doing = format!("it is no ModelKit but of the dialect '{}'", artifact.family.name());
        return Err(Error::new(Kind::Unsupported, doing));
    }
    let extras = completed(&*repository, &mut artifact, found.from, store).await?;
    if found.from == Source::Repository {
        pin::admit(&*repository, &asked, store, &found.pinned).await;
    }
    artifact.retain_model();
    artifact.warnings.push(format!("the parent kit {reference} is {}", found.pinned.digest));
    joined.add(&repository, artifact.layers.iter().map(|layer| layer.descriptor.digest.clone()));
    Ok((artifact, extras.parent))
}

async fn completed(
    repository: &dyn Repository,
    artifact: &mut Artifact,
    from: Source,
    store: &Arc<Store>,
) -> Result<Extras> {
    let config = match &artifact.config {
        Some(config) if artifact.needs_config() => {
            let doing = || format!("cannot read the config {}, which names files", config.digest);
            pin::needed_config(repository, config, from, store)
                .await
                .map_err(|error| error.context(doing()))?
        }
        _ => Bytes::new(),
    };
    artifact.complete(&config)
}

fn refuse_endless(chain: &[Reference], next: &Reference) -> Result<()> {
    let shown = || {
        let all: Vec<_> = chain.iter().chain([next]).map(Reference::to_string).collect();
        all.join(" => ")
    };
    if chain.contains(next) {
        return Err(Error::new(Kind::Invalid, format!("the parent kits go in a circle: {}", shown())));
    }
    if chain.len() >= PARENT_LIMIT {
        let doing = format!("the model is built upon more than {PARENT_LIMIT} kits: {}", shown());
        return Err(Error::new(Kind::Unsupported, doing));
    }
    Ok(())
}
