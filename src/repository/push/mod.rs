//! Where manifests and blobs are put: a registry's repository or an image layout folder, with one set of words for both.
//!
//! The other direction from [`super::Repository`], and not a part of it: what is only read need not be able to. What is
//! pushed, and in which order, is the packing floor's to say: blobs first, then the manifest that names them.

mod layout;
mod registry;
mod seal;
pub(in crate::repository) mod source;
pub(crate) mod temporary;

use bytes::Bytes;

use self::layout::Folder;
use self::registry::Pushing;
pub use self::seal::Seal;
pub use self::source::Piece;
use super::{Config, referrers};
use crate::error::{Error, Kind, Result};
use crate::oci::manifest::OCI_INDEX;
use crate::oci::{Blob, Digest, Place, Reference};
use crate::repository::MANIFEST_LIMIT;

/// A blob that is to be put somewhere, and its bytes.
#[derive(Clone, Debug)]
pub struct Upload {
    /// Its digest and size.
    pub blob: Blob,
    /// Its bytes in order; together they have the blob's size.
    pub pieces: Vec<Piece>,
}

/// A place that manifests and blobs are put into. Shared by as many tasks as push at once.
#[derive(Debug)]
pub struct Target(Way);

#[derive(Debug)]
enum Way {
    Registry(Box<Pushing>),
    Layout(Folder),
}

impl Target {
    /// The place that `reference` names; its tag and digest mean nothing here.
    ///
    /// Makes an image layout folder where it is missing or empty; asks no network.
    ///
    /// # Errors
    /// `Invalid` where the host, or a file with credentials, cannot be meant; `Busy` where the folder has other files and is no
    /// image layout, `Unsupported` where it is one of another version, `Storage` where it cannot be made.
    pub fn open(reference: &Reference, config: &Config) -> Result<Self> {
        let way = match &reference.place {
            Place::Registry { host, repository } => {
                Way::Registry(Box::new(Pushing::new(host, repository, config)?))
            }
            Place::Layout { folder } => Way::Layout(Folder::open(folder)?),
        };
        Ok(Self(way))
    }

    /// Where this is, as error messages name it: `ghcr.io/acme/llm` or `oci:/models/llm`.
    #[must_use]
    pub fn place(&self) -> String {
        match &self.0 {
            Way::Registry(registry) => registry.place(),
            Way::Layout(folder) => folder.place(),
        }
    }

    /// Whether the blob is there already, under its digest and with its size. Costs one request.
    ///
    /// # Errors
    /// `Denied`, `Unreachable`, and what the wire or the disk may bring.
    pub async fn has(&self, blob: &Blob) -> Result<bool> {
        match &self.0 {
            Way::Registry(registry) => registry.has(blob).await,
            Way::Layout(folder) => folder.has(blob).await,
        }
    }

    /// Takes the blob from the repository `from` of the same registry, without sending it (distribution specification,
    /// "Mounting a blob from another repository"). `false` where that is not possible: it must be put. Costs one
    /// request, or two where the registry would rather be sent it.
    ///
    /// # Errors
    /// `Unreachable`, and what the wire may bring; `Integrity` where the registry mounts another blob. A refusal is no
    /// error.
    pub async fn mount(&self, blob: &Blob, from: &str) -> Result<bool> {
        match &self.0 {
            Way::Registry(registry) => registry.mount(blob, from).await,
            Way::Layout(_) => Ok(false),
        }
    }

    /// Puts the blob there, whether or not it is; a folder reads it only where it is not.
    ///
    /// `sent(n)` is called when `n` more bytes have gone, never twice for the same; where this succeeds they are the
    /// blob's size together. Holds a few MiB at a time. What breaks is asked again, from where it broke, until nothing
    /// moves for [`Config::read_deadline`].
    ///
    /// # Errors
    /// `Invalid` where the pieces are not as many bytes as the blob; `Integrity` where they are not what its digest
    /// names; `Denied` and `NotFound` where the registry takes none; `Deadline`; `Storage` where a file or the
    /// registry's disk fails; for a piece from another repository also as [`super::Repository::read`].
    pub async fn put(&self, upload: &Upload, sent: &(dyn Fn(u64) + Send + Sync)) -> Result<()> {
        match &self.0 {
            Way::Registry(registry) => registry.put(upload, sent).await,
            Way::Layout(folder) => folder.put(upload, sent).await,
        }
    }

    /// Puts a manifest or an index there, whose blobs must be there before, and names it by `tag`; `None`: by its digest
    /// alone. A tag that stands for another manifest is moved. Gives the digest, of SHA-256.
    ///
    /// # Errors
    /// `Invalid` where it is larger than [`MANIFEST_LIMIT`]; `Integrity` where the registry took other bytes; else as
    /// [`put`](Self::put).
    pub async fn tag(&self, tag: Option<&str>, media_type: &str, manifest: &Bytes) -> Result<Digest> {
        if u64::try_from(manifest.len()).unwrap_or(u64::MAX) > MANIFEST_LIMIT {
            let doing = format!("a manifest of {} bytes: registries take {MANIFEST_LIMIT}", manifest.len());
            return Err(Error::new(Kind::Invalid, doing));
        }
        match &self.0 {
            Way::Registry(registry) => registry.tag(tag, media_type, manifest).await,
            Way::Layout(folder) => folder.tag(tag, media_type, manifest).await,
        }
    }

    /// Puts a manifest there that refers to `subject` (its own field `subject` says so too), so that whoever lists what refers
    /// to that finds it. A registry that keeps no such lists is given one under the tag that stands for it; two who do that at
    /// the same time may lose one of their entries, as the specification says. Gives the manifest's digest.
    ///
    /// # Errors
    /// As [`tag`](Self::tag); `Protocol` where the tag leads to something else than a list.
    pub async fn refer(
        &self,
        subject: &Digest,
        artifact_type: &str,
        media_type: &str,
        manifest: &Bytes,
    ) -> Result<Digest> {
        let digest = self.tag(None, media_type, manifest).await?;
        if let Way::Registry(registry) = &self.0
            && let Some(list) = registry.own_list(subject, artifact_type).await?
            && let Some(list) = referrers::with(&list, media_type, manifest)?
        {
            self.tag(Some(&referrers::tag_of(subject)), OCI_INDEX, &list.into()).await?;
        }
        Ok(digest)
    }
}
