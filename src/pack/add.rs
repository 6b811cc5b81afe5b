//! An index for an artifact that is in a repository already: the same layers and one more, under a new digest.
//!
//! Every layer goes by once, and nothing is published before all of them were what their digests say. Manifest and
//! config stay as their writer wrote them but for what the index adds. Called by the command `index add`.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::Watch;
use super::build::{Making, build, config};
use super::manifest::{Written, json};
use super::publish::{Destination, UPLOADS};
use super::splice;
use crate::error::{Error, Kind, Result};
use crate::index::format::Encoded;
use crate::index::{self, Index, diff_ids};
use crate::oci::artifact::Family;
use crate::oci::config::Description;
use crate::oci::manifest::{Document, LAYER_LIMIT, Manifest, OCI_MANIFEST};
use crate::oci::{Artifact, Blob, Digest, Reference, Which};
use crate::repository::push::Piece;
use crate::repository::{Pinned, Repository};

/// What a person should know of a manifest that refers to another one.
const REFERRER: &str = "it has a subject, and the model with its index will have the same one; what refers to it, as \
                        signatures do, stays with its old digest";

/// An artifact without an index, opened to get one.
#[derive(Debug)]
pub struct Plain {
    repository: Arc<dyn Repository>,
    pinned: Pinned,
    manifest: Manifest,
    artifact: Artifact,
    index: Index,
    config: Option<Bytes>,
    warnings: Vec<String>,
}

/// The artifact with its index.
#[derive(Clone, Debug)]
pub struct Added {
    /// The manifest's digest before.
    pub old: Digest,
    /// The manifest's digest now.
    pub new: Digest,
    /// The index.
    pub index: Blob,
    /// What a person should know of the layers, now that they were read.
    pub warnings: Vec<String>,
}

impl Plain {
    /// Opens the artifact that `reference` names in `repository`, and finds out where its files lie.
    ///
    /// Costs a request for the manifest, one for the config, and those of [`find`](index::find()).
    ///
    /// # Errors
    /// `Unsupported` where it is of a dialect that has no place for an index;
    /// `Invalid` where it has an index, where the reference leads to a list of manifests, where others may read another
    /// value of the manifest than the one that is changed, or it has as many layers as it may; those of the repository and of finding files; `Integrity` where the config's bytes are not
    /// what its digest says.
    pub async fn open(repository: Arc<dyn Repository>, reference: &Reference) -> Result<Self> {
        let opening = |error: Error| error.context(format!("cannot open {reference}"));
        let pinned = repository.manifest(&reference.which()).await.map_err(opening)?;
        let manifest = match Document::parse(&pinned.bytes, &pinned.media_type).map_err(opening)? {
            Document::Manifest(manifest) => manifest,
            Document::Index(_) => {
                let doing = format!("{reference} is a list of manifests, which would stay without an index");
                return Err(Error::new(Kind::Invalid, doing)
                    .hint("name one of them by its digest, after '@', and a TARGET"));
            }
        };
        refuse_twins(&pinned).map_err(opening)?;
        let artifact = Artifact::read(manifest.clone()).map_err(opening)?;
        refuse_indexed(reference, &artifact)?;
        refuse_foreign(reference, &artifact)?;
        let mut index = index::find(&*repository, &artifact, &|_| Vec::new()).await.map_err(opening)?;
        let config = config(&*repository, manifest.config.as_ref()).await.map_err(opening)?;
        let said = config.as_ref().map(|config| Description::parse(config).diff_ids).unwrap_or_default();
        let mut warnings = diff_ids::note(&mut index, &artifact, &said);
        warnings.append(&mut index.warnings);
        warnings.extend(has_subject(&pinned.bytes).then(|| REFERRER.to_owned()));
        Ok(Self { repository, pinned, manifest, artifact, index, config, warnings })
    }

    /// How many stored bytes are read.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.index.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.blob.size))
    }

    /// What a person should know of the artifact.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Reads every layer once, and publishes the artifact with its index. `watch` is told of twice the bytes: once
    /// where they are digested, once where they are uploaded or need not be. Must be called within a tokio runtime.
    ///
    /// `replaced` is the tag of its own repository that is moved, if one is: it is looked at once more right before, so
    /// that nobody's newer manifest gives way. What is pushed within that last moment is not seen: registries have no
    /// word for "only if" (distribution specification, "Pushing Manifests"). `making` says how compressed layers are indexed.
    ///
    /// # Errors
    /// `Integrity` where a layer's bytes are not what its digest says, naming it, and `Busy` where `replaced` stands for
    /// another manifest meanwhile: nothing is published then. Those of reading and of the destination.
    pub async fn add(
        &self,
        destination: &Destination,
        replaced: Option<&str>,
        making: &Making,
        watch: &Watch,
    ) -> Result<Added> {
        let built = build(&*self.repository, &self.artifact, self.index.clone(), making, watch).await?;
        let (encoded, warnings) = (built.encoded, built.index.warnings);
        let config = self.config_with(&encoded.blob.digest);
        let manifest = self.manifest_with(&encoded, config.as_ref())?;
        self.copy_blobs(destination, watch).await?;
        destination.put_index(&encoded, watch).await?;
        if let Some(config) = &config {
            destination.put_bytes("the config", config, watch).await?;
        }
        if let Some(tag) = replaced {
            self.refuse_moved(tag).await?;
        }
        let new = destination.tag(self.media_type(), &manifest).await?;
        Ok(Added { old: self.pinned.digest.clone(), new, index: encoded.blob, warnings })
    }

    async fn refuse_moved(&self, tag: &str) -> Result<()> {
        let old = &self.pinned.digest;
        let now = match self.repository.manifest(&Which::Tag(tag.to_owned())).await {
            Ok(now) if now.digest == *old => return Ok(()),
            Ok(now) => format!("for {} now and no more for {old}", now.digest),
            Err(error) if error.kind() == Kind::NotFound => {
                format!("for nothing any more, and not for {old}")
            }
            Err(error) => return Err(error.context(format!("cannot see whether {tag} still is {old}"))),
        };
        let doing = format!("the tag {tag} of {} stands {now}", self.repository.place());
        Err(Error::new(Kind::Busy, doing).hint("somebody else moved it meanwhile; ask again"))
    }

    fn media_type(&self) -> &str {
        if self.manifest.media_type.is_empty() { OCI_MANIFEST } else { &self.manifest.media_type }
    }

    /// All that the old manifest names, the config too: the new one may name it still.
    async fn copy_blobs(&self, destination: &Destination, watch: &Watch) -> Result<()> {
        let all = self.manifest.config.iter().chain(&self.manifest.layers);
        let copies = all.map(|descriptor| self.copy(descriptor.blob(), destination, watch));
        let copies: Vec<_> = copies.collect();
        stream::iter(copies).buffer_unordered(UPLOADS).try_collect().await
    }

    async fn copy(&self, blob: Blob, destination: &Destination, watch: &Watch) -> Result<()> {
        let piece = Piece::Blob { repository: self.repository.clone(), blob: blob.clone() };
        let put = destination.put(&blob, vec![piece], watch).await;
        put.map_err(|error| error.context(format!("cannot copy {} to {}", blob.digest, destination.place())))
    }

    /// The config with the index's diffID after the others; `None` where it stays as it is, since it gives none, or
    /// not one for each layer, or could be read differently.
    fn config_with(&self, diff_id: &Digest) -> Option<Bytes> {
        let old = self.config.as_ref()?;
        let diff_ids = Description::parse(old).diff_ids;
        if diff_ids.is_empty() || diff_ids.len() != self.artifact.layers.len() {
            return None;
        }
        let text = std::str::from_utf8(old).ok().filter(|text| splice::twins(text).is_none())?;
        let element = format!("\"{diff_id}\"");
        let written = |key| splice::append(text, &["modelfs", key], &element);
        let new = Bytes::from(written("diffIds").or_else(|| written("diff_ids"))?);
        let expected: Vec<Digest> = diff_ids.into_iter().chain([diff_id.clone()]).collect();
        (Description::parse(&new).diff_ids == expected).then_some(new)
    }

    /// The manifest with the index as its last layer and, where there is one, the new config.
    fn manifest_with(&self, index: &Encoded, config: Option<&Bytes>) -> Result<Bytes> {
        let dialect = self.dialect();
        let layer = Written::index(index, dialect, 0)?;
        let layer = String::from_utf8_lossy(&json(&layer)?).into_owned();
        let text = std::str::from_utf8(&self.pinned.bytes).ok();
        let mut new = text.and_then(|text| splice::append(text, &["layers"], &layer));
        if let Some(config) = config {
            let (digest, size) = (format!("\"{}\"", Digest::of(config)), config.len().to_string());
            let changed =
                new.as_deref().and_then(|text| splice::replace(text, &["config", "digest"], &digest));
            new = changed.as_deref().and_then(|text| splice::replace(text, &["config", "size"], &size));
        }
        new.map(Bytes::from).filter(|new| self.is_extended_by(new, index, config)).ok_or_else(|| {
            Error::new(Kind::Unsupported, format!("the manifest {} can't be added to", self.pinned.digest))
                .hint("pack the model's files with 'weightfs pack'")
        })
    }

    /// The `cncf.model` dialect where it is of none that has words for files.
    fn dialect(&self) -> Family {
        if self.artifact.family == Family::Cnai { Family::Cnai } else { Family::Cncf }
    }

    /// Whether `new` is read as the old manifest with the index, the config and nothing else changed.
    fn is_extended_by(&self, new: &Bytes, index: &Encoded, config: Option<&Bytes>) -> bool {
        let Ok(Document::Manifest(mut new)) = Document::parse(new, &self.pinned.media_type) else {
            return false;
        };
        let bound = Artifact::read(new.clone()).ok().and_then(|artifact| artifact.bound_index().ok()?);
        let is_bound = bound.is_some_and(|bound| bound.blob == index.blob && bound.head == index.head);
        new.layers.pop();
        let mut old = self.manifest.clone();
        if let (Some(config), Some(descriptor)) = (config, &mut old.config) {
            descriptor.digest = Digest::of(config);
            descriptor.size = u64::try_from(config.len()).unwrap_or(u64::MAX);
        }
        is_bound && new == old
    }
}

/// Refuses a manifest that readers take differently: what is added for one would be missing for the other.
fn refuse_twins(pinned: &Pinned) -> Result<()> {
    let Some((one, other)) = std::str::from_utf8(&pinned.bytes).ok().and_then(splice::twins) else {
        return Ok(());
    };
    let doing = format!("the manifest {} has both {one:?} and {other:?} in one object", pinned.digest);
    Err(Error::new(Kind::Invalid, doing).hint("pack the model's files with 'weightfs pack'"))
}

fn refuse_indexed(reference: &Reference, artifact: &Artifact) -> Result<()> {
    let bound = artifact.bound_index().map_err(|error| error.context(format!("{reference} has an index")))?;
    if let Some(bound) = bound {
        let doing = format!("{reference} has an index already: {}", bound.blob.digest);
        return Err(Error::new(Kind::Invalid, doing));
    }
    if artifact.layers.len() < LAYER_LIMIT {
        return Ok(());
    }
    Err(Error::new(Kind::Invalid, format!("{reference} has {LAYER_LIMIT} layers, and can have no more")))
}

/// Refuses an artifact whose own tools take layers by their types, and would take an index for one of them, or whose
/// files are not all in its own layers.
fn refuse_foreign(reference: &Reference, artifact: &Artifact) -> Result<()> {
    let others = [Family::KitOps, Family::DockerV1, Family::DockerV2, Family::Ollama, Family::Image];
    if !others.contains(&artifact.family) {
        return Ok(());
    }
    let doing = format!(
        "{reference} is of the dialect '{}', which has no place for an index",
        artifact.family.name()
    );
    Err(Error::new(Kind::Unsupported, doing).hint("mount it, and pack its files with 'weightfs pack'"))
}

/// Whether the manifest names another one that it belongs to (image specification, manifest.md).
fn has_subject(manifest: &[u8]) -> bool {
    #[derive(serde::Deserialize)]
    struct Referrer {
        subject: Option<serde::de::IgnoredAny>,
    }
    serde_json::from_slice::<Referrer>(manifest).is_ok_and(|referrer| referrer.subject.is_some())
}

#[cfg(test)]
#[path = "add_tests.rs"]
mod tests;
