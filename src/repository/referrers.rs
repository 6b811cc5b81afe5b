//! What refers to a manifest: lists of referrers as registries give them, and as a tag stands in for them.
//!
//! Distribution specification 1.1, "Listing Referrers": an index whose descriptors say their artifact types. Where a registry
//! does not know the request, the tag `ALGORITHM-HEX` of the subject's digest leads to the same index, which whoever pushes a
//! referrer keeps by himself. Nothing of it is trusted: anybody who may push may refer. Words only, no input or output; the
//! registry and the folder ask, and pushing adds.

use serde_json::{Map, Value, json};

use crate::error::{Error, Kind, Result};
use crate::oci::manifest::{Document, OCI_INDEX};
use crate::oci::{Descriptor, Digest};

/// How many referrers of one type are looked at: more are nobody's honest work.
pub const REFERRERS_LIMIT: usize = 100;

/// The tag that stands in for the list of what refers to `subject`.
#[must_use]
pub(super) fn tag_of(subject: &Digest) -> String {
    let (algorithm, hex) = (subject.algorithm().name(), subject.hex());
    // As long as a tag may be: 32 characters of the one, 64 of the other.
    format!("{algorithm}-{}", hex.get(..64).unwrap_or(hex))
}

/// The descriptors of `artifact_type` in a list of referrers, the first [`REFERRERS_LIMIT`].
///
/// # Errors
/// [`Kind::Protocol`] where `list` is no index.
pub(super) fn of_type(list: &[u8], artifact_type: &str) -> Result<Vec<Descriptor>> {
    let no_list =
        |why: String| Error::new(Kind::Protocol, format!("the list of referrers can't be read: {why}"));
    match Document::parse(list, OCI_INDEX) {
        Ok(Document::Index(index)) => {
            let wanted = index.manifests.into_iter().filter(|one| one.artifact_type == artifact_type);
            Ok(wanted.map(|one| one.descriptor).take(REFERRERS_LIMIT).collect())
        }
        Ok(Document::Manifest(_)) => Err(no_list("it is a manifest".into())),
        Err(error) => Err(no_list(error.to_string())),
    }
}

/// What a manifest refers to; `None` where it refers to nothing, or can't be read.
pub(super) fn subject_of(manifest: &[u8]) -> Option<Digest> {
    let manifest: Value = serde_json::from_slice(manifest).ok()?;
    manifest.get("subject")?.get("digest")?.as_str()?.parse().ok()
}

/// The list with one more referrer, whose manifest these bytes are; `None` where it has it. `list` is empty where there is none
/// yet; what else it has stays as it is.
///
/// # Errors
/// [`Kind::Protocol`] where `list` is no index.
pub(super) fn with(list: &[u8], media_type: &str, manifest: &[u8]) -> Result<Option<Vec<u8>>> {
    let no_list = || Error::new(Kind::Protocol, "the tag for referrers leads to no list of manifests");
    let mut index: Value = match list {
        [] => json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}),
        list => serde_json::from_slice(list).map_err(|_| no_list())?,
    };
    let entries = index.get_mut("manifests").and_then(Value::as_array_mut).ok_or_else(no_list)?;
    let digest = Digest::of(manifest).to_string();
    if entries.iter().any(|entry| entry.get("digest").and_then(Value::as_str) == Some(&digest)) {
        return Ok(None);
    }
    entries.push(Value::Object(entry(media_type, &digest, manifest)));
    Ok(Some(index.to_string().into_bytes()))
}

fn entry(media_type: &str, digest: &str, manifest: &[u8]) -> Map<String, Value> {
    let says: Value = serde_json::from_slice(manifest).unwrap_or_default();
    let mut entry = Map::new();
    entry.insert("mediaType".into(), media_type.into());
    entry.insert("digest".into(), digest.into());
    entry.insert("size".into(), manifest.len().into());
    for key in ["artifactType", "annotations"] {
        if let Some(value) = says.get(key) {
            entry.insert(key.into(), value.clone());
        }
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_stands_for_a_digest() {
        let digest = Digest::of(b"x");
        assert_eq!(tag_of(&digest), format!("sha256-{}", digest.hex()));
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        assert_eq!(tag_of(&long), format!("sha512-{}", "ab".repeat(32)));
    }

    #[test]
    fn a_list_takes_each_referrer_once_and_gives_those_of_a_type() {
        let manifest =
            |kind: &str| json!({"schemaVersion": 2, "artifactType": kind, "layers": []}).to_string();
        let (ours, other) = (manifest("application/ours"), manifest("application/other"));
        let list = with(b"", "m", ours.as_bytes()).unwrap().unwrap();
        let list = with(&list, "m", other.as_bytes()).unwrap().unwrap();
        assert_eq!(with(&list, "m", ours.as_bytes()).unwrap(), None);
        let found = of_type(&list, "application/ours").unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].digest, Digest::of(ours.as_bytes()));
        assert_eq!(found[0].size, ours.len() as u64);
        for wrong in ["[]", "no JSON", r#"{"schemaVersion":2,"layers":[]}"#] {
            assert_eq!(of_type(wrong.as_bytes(), "x").unwrap_err().kind(), Kind::Protocol, "{wrong}");
        }
        assert_eq!(with(b"[]", "m", b"{}").unwrap_err().kind(), Kind::Protocol);
    }

    #[test]
    fn a_subject_is_what_the_manifest_says() {
        let digest = Digest::of(b"subject");
        let manifest = json!({"subject": {"digest": digest.to_string()}}).to_string();
        assert_eq!(subject_of(manifest.as_bytes()), Some(digest));
        for none in ["{}", "7", r#"{"subject":{"digest":"x"}}"#] {
            assert_eq!(subject_of(none.as_bytes()), None, "{none}");
        }
    }
}
