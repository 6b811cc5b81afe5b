//! An index published beside an artifact, for who may not change the manifest: a manifest of its own whose subject is the
//! artifact (image specification, manifest.md, "subject").
//!
//! A registry that knows of referrers lists it. For others the list stands under a tag, which whoever pushes keeps
//! (distribution specification, "Pushing Manifests with Subject"). Called by the command `index push`.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Value, json};

use super::Watch;
use super::manifest::{Written, json as written};
use super::publish::Destination;
use crate::error::{Error, Kind, Result};
use crate::index::ARTIFACT_TYPE;
use crate::index::format::Encoded;
use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};
use crate::oci::{Digest, Which};
use crate::repository::{Pinned, Repository, referrers_tag};

/// What a referrer without a config has in its place (image specification, manifest.md, "empty descriptor").
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Publishes `index` as one of the artifact `subject`, which is in the same repository, and gives its manifest's digest. The
/// same index of the same artifact gives the same digest.
///
/// # Errors
/// Those of the destination and of the repository.
pub async fn attach(
    repository: &dyn Repository,
    subject: &Pinned,
    index: &Encoded,
    destination: &Destination,
    watch: &Watch,
) -> Result<Digest> {
    let manifest = manifest(subject, index)?;
    destination.put_bytes("the config", &Bytes::from_static(b"{}"), watch).await?;
    destination.put_index(index, watch).await?;
    let digest = destination.tag(OCI_MANIFEST, &manifest).await?;
    let listed = repository.referrers(&subject.digest, ARTIFACT_TYPE).await?;
    if !listed.iter().any(|one| one.digest == digest) {
        enter(repository, subject, &digest, manifest.len(), destination).await?;
    }
    Ok(digest)
}

fn manifest(subject: &Pinned, index: &Encoded) -> Result<Bytes> {
    let subject_type = if subject.media_type.is_empty() { OCI_MANIFEST } else { &subject.media_type };
    written(&json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": { "mediaType": EMPTY, "digest": Digest::of(b"{}"), "size": 2 },
        "layers": [Written::attached(index)],
        "subject": { "mediaType": subject_type, "digest": subject.digest, "size": subject.bytes.len() },
    }))
}

/// Enters the referrer into the list under the subject's tag. Two who do so at once may lose one: the tag has no lock.
async fn enter(
    repository: &dyn Repository,
    subject: &Pinned,
    digest: &Digest,
    size: usize,
    destination: &Destination,
) -> Result<()> {
    let tag = referrers_tag(&subject.digest);
    let mut list = match repository.manifest(&Which::Tag(tag.clone())).await {
        Ok(list) => serde_json::from_slice(&list.bytes).unwrap_or(Value::Null),
        Err(error) if error.kind() == Kind::NotFound => {
            json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [] })
        }
        Err(error) => return Err(error),
    };
    let entry =
        json!({ "mediaType": OCI_MANIFEST, "digest": digest, "size": size, "artifactType": ARTIFACT_TYPE });
    let manifests = list.get_mut("manifests").and_then(Value::as_array_mut);
    let manifests = manifests.ok_or_else(|| {
        Error::new(Kind::Protocol, format!("what stands under {tag} is no list of referrers"))
    })?;
    if manifests.iter().any(|one| one.get("digest").and_then(Value::as_str) == Some(&digest.to_string())) {
        return Ok(());
    }
    manifests.push(entry);
    destination.put_list(&tag, OCI_INDEX, &written(&list)?).await
}

/// The annotations that pin an index's head.
pub(super) fn pins(index: &Encoded) -> BTreeMap<String, String> {
    use crate::oci::artifact::{INDEX_HEAD_DIGEST_KEY, INDEX_HEAD_SIZE_KEY, INDEX_KEY, INDEX_VERSION};
    [
        (INDEX_KEY.to_owned(), INDEX_VERSION.to_owned()),
        (INDEX_HEAD_DIGEST_KEY.to_owned(), index.head.digest.to_string()),
        (INDEX_HEAD_SIZE_KEY.to_owned(), index.head.size.to_string()),
    ]
    .into()
}
