//! Reading manifests from a registry, and the lists of what refers to them.
//!
//! A manifest is what its digest says or is no manifest; a list is the registry's word and no more.

use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};

use super::ask::Ask;
use super::hops::Hop;
use super::{Registry, wire};
use crate::error::{Error, Kind, Result};
use crate::oci::digest::{Algorithm, Hasher};
use crate::oci::manifest::OCI_INDEX;
use crate::oci::{Descriptor, Digest, Which};
use crate::repository::{MANIFEST_LIMIT, Pinned, referrers};

/// The forms of manifest that are asked for: OCI, Docker, and ModelPack's own in its three families.
const MANIFESTS: &str = "application/vnd.oci.image.manifest.v1+json, \
    application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.cncf.modelpack.manifest.v1+json, \
    application/vnd.cncf.model.manifest.v1+json, \
    application/vnd.cnai.model.manifest.v1+json";

pub(super) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

impl Registry {
    /// The manifest or index, pinned.
    pub(super) async fn pin(&self, which: &Which) -> Result<Pinned> {
        let url = self.url(&format!("manifests/{which}"))?;
        let ask = Ask::new(Method::GET, &self.auth).header(ACCEPT, HeaderValue::from_static(MANIFESTS));
        let (_, response) = self.follow(Hop::first(url), &ask).await?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(response).await);
        }
        wire::check_encoding(response.headers())?;
        let told = wire::one(response.headers(), &CONTENT_DIGEST)?;
        let media_type = wire::one(response.headers(), &CONTENT_TYPE)?.unwrap_or_default();
        let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
        let limit = usize::try_from(MANIFEST_LIMIT).unwrap_or(usize::MAX);
        let bytes = wire::limited(response, limit, self.stall).await?;
        let digest = pinned_digest(which, told.as_deref(), &bytes)?;
        Ok(Pinned { digest, media_type, bytes })
    }

    /// The list of what refers to `subject`, as the registry gives it; `None` where it does not know the request.
    async fn list(&self, subject: &Digest, artifact_type: &str) -> Result<Option<Bytes>> {
        let mut url = self.url(&format!("referrers/{subject}"))?;
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
        let ask = Ask::new(Method::GET, &self.auth).header(ACCEPT, HeaderValue::from_static(OCI_INDEX));
        let (_, response) = self.follow(Hop::first(url), &ask).await?;
        let media_type = wire::one(response.headers(), &CONTENT_TYPE)?.unwrap_or_default();
        let is_list = media_type.split(';').next().is_some_and(|kind| kind.trim() == OCI_INDEX);
        match response.status() {
            StatusCode::OK if is_list => {
                wire::check_encoding(response.headers())?;
                let limit = usize::try_from(MANIFEST_LIMIT).unwrap_or(usize::MAX);
                wire::limited(response, limit, self.stall).await.map(Some)
            }
            // A page for people, or a word that the request is unknown.
            StatusCode::OK
            | StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::BAD_REQUEST => Ok(None),
            _ => Err(self.refusal(response).await),
        }
    }

    /// What refers to `subject`, of this type.
    pub(super) async fn referring(&self, subject: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>> {
        let list = match self.list(subject, artifact_type).await? {
            Some(list) => list,
            None => self.list_by_tag(subject).await?,
        };
        if list.is_empty() { Ok(Vec::new()) } else { referrers::of_type(&list, artifact_type) }
    }

    /// The list that a tag stands in for; empty where there is none.
    async fn list_by_tag(&self, subject: &Digest) -> Result<Bytes> {
        match self.pin(&Which::Tag(referrers::tag_of(subject))).await {
            Ok(pinned) => Ok(pinned.bytes),
            Err(error) if error.kind() == Kind::NotFound => Ok(Bytes::new()),
            Err(error) => Err(error),
        }
    }

    /// The list that a tag must stand in for, empty where there is none yet; `None` where the registry keeps lists by itself.
    pub(in crate::repository) async fn own_list(
        &self,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Option<Bytes>> {
        match self.list(subject, artifact_type).await? {
            Some(_) => Ok(None),
            None => self.list_by_tag(subject).await.map(Some),
        }
    }
}

/// The digest of a manifest's bytes, which must be the one asked for, or the one told where a tag was asked.
fn pinned_digest(which: &Which, told: Option<&str>, bytes: &[u8]) -> Result<Digest> {
    if let Which::Digest(asked) = which {
        if asked.matches(bytes) {
            return Ok(asked.clone());
        }
        return Err(Error::new(Kind::Integrity, format!("its bytes are not what {asked} names")));
    }
    let Some(told) = told else { return Ok(Digest::of(bytes)) };
    let told: Digest =
        told.parse().map_err(|error| Error::from_source(Kind::Protocol, "Docker-Content-Digest", error))?;
    let mut hasher = Hasher::new(told.algorithm());
    hasher.update(bytes);
    if hasher.finish() != told {
        return Err(wire::protocol(format!("its bytes are not what Docker-Content-Digest says, {told}")));
    }
    // Pinned by sha256 unless the registry names it by the longer one.
    Ok(if told.algorithm() == Algorithm::Sha256 { Digest::of(bytes) } else { told })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_pinned_only_where_its_bytes_agree() {
        let (tag, digest) = (Which::Tag("t".into()), Digest::of(b"{}"));
        let other = Digest::of(b"[]").to_string();
        assert_eq!(pinned_digest(&tag, None, b"{}").unwrap(), digest);
        assert_eq!(pinned_digest(&tag, Some(&digest.to_string()), b"{}").unwrap(), digest);
        assert_eq!(pinned_digest(&tag, Some(&other), b"{}").unwrap_err().kind(), Kind::Protocol);
        let asked = Which::Digest(digest.clone());
        assert_eq!(pinned_digest(&asked, Some(&other), b"{}").unwrap(), digest);
        assert_eq!(pinned_digest(&asked, None, b"[]").unwrap_err().kind(), Kind::Integrity);
    }
}
