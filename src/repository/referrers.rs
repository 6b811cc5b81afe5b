//! Who refers to a manifest: the lists that say so, and the tag they stand under where a registry has no other way.
//!
//! Values in, values out (distribution specification, "Listing Referrers" and "Referrers Tag Schema"). Called by every
//! repository, and by who publishes a referrer.

use super::REFERRERS_LIMIT;
use crate::error::{Error, Kind, Result};
use crate::oci::manifest::Document;
use crate::oci::{Descriptor, Digest};

/// The tag of the list of those who refer to `subject`: `sha256-HEX`.
#[must_use]
pub fn tag(subject: &Digest) -> String {
    // Tags are shorter than a SHA-512.
    let text = format!("{}-{}", subject.algorithm().name(), subject.hex());
    text.chars().take(128).collect()
}

/// Those of `artifact_type` in a list, which is an image index.
///
/// # Errors
/// `Protocol` where it is none.
pub(super) fn of_type(list: &[u8], artifact_type: &str) -> Result<Vec<Descriptor>> {
    let wrong =
        |error: Error| Error::from_source(Kind::Protocol, "the list of referrers can't be meant", error);
    let all = match Document::parse(list, "").map_err(wrong)? {
        Document::Index(all) => all.manifests,
        Document::Manifest(_) => return Err(Error::new(Kind::Protocol, "a list of referrers is a manifest")),
    };
    let wanted = all.into_iter().filter(|one| one.artifact_type == artifact_type);
    Ok(wanted.map(|one| one.descriptor).take(REFERRERS_LIMIT).collect())
}

/// Whether a manifest says of itself that it is a referrer of `artifact_type` to `subject`.
#[must_use]
pub fn refers(manifest: &[u8], subject: &Digest, artifact_type: &str) -> bool {
    let Ok(referrer) = serde_json::from_slice::<Referrer>(manifest) else { return false };
    referrer.artifact_type == artifact_type
        && referrer.subject.is_some_and(|said| said.digest == subject.to_string())
}

/// Whether a manifest names another one that it belongs to.
pub(super) fn has_subject(manifest: &[u8]) -> bool {
    serde_json::from_slice::<Referrer>(manifest).is_ok_and(|referrer| referrer.subject.is_some())
}

/// What of a manifest says that it is a referrer (image specification, manifest.md).
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    #[serde(default)]
    artifact_type: String,
    subject: Option<Subject>,
}

#[derive(serde::Deserialize)]
struct Subject {
    digest: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_gives_those_of_the_type_and_what_is_no_list_is_refused() {
        let one = |artifact_type: &str, content: &[u8]| {
            let digest = Digest::of(content);
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":1,"artifactType":"{artifact_type}"}}"#
            )
        };
        let soci = one("application/vnd.amazon.soci.index.v1+json", b"soci");
        let list =
            format!(r#"{{"schemaVersion":2,"manifests":[{},{soci},{}]}}"#, one("x", b"a"), one("x", b"b"));
        let found = of_type(list.as_bytes(), "x").unwrap();
        assert_eq!(
            found.iter().map(|one| one.digest.clone()).collect::<Vec<_>>(),
            [Digest::of(b"a"), Digest::of(b"b")]
        );
        for wrong in ["{}", "[]", "no JSON", r#"{"schemaVersion":2,"layers":[]}"#] {
            assert_eq!(of_type(wrong.as_bytes(), "x").unwrap_err().kind(), Kind::Protocol, "{wrong}");
        }
    }

    #[test]
    fn a_manifest_refers_where_its_own_bytes_say_so() {
        let (subject, other) = (Digest::of(b"s"), Digest::of(b"o"));
        let manifest = format!(r#"{{"artifactType":"x","subject":{{"digest":"{subject}"}}}}"#);
        assert!(refers(manifest.as_bytes(), &subject, "x") && has_subject(manifest.as_bytes()));
        assert!(!refers(manifest.as_bytes(), &other, "x") && !refers(manifest.as_bytes(), &subject, "y"));
        assert!(!has_subject(b"{}") && !has_subject(b"no JSON"));
        assert_eq!(tag(&subject), format!("sha256-{}", subject.hex()));
    }
}
