//! Who was given which manifest for which reference, so that he may have it again while nobody answers.
//!
//! One small file each, named after who asked and what; the manifest itself is kept under its digest. Asked where a model is
//! opened, and by who says what may go.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{GRACE, Store, budget, private};
use crate::oci::{Digest, Platform, Reference};
use crate::repository::Pinned;

/// Room for the name of a repository: a registry's, or a folder's.
const NAME_LIMIT: u64 = 16 << 10;

/// What is asked of a repository: a reference and, where that leads to a list, for which platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// As it was typed.
    pub reference: Reference,
    /// `None` where nobody said it.
    pub platform: Option<Platform>,
}

impl Asked {
    fn platform_text(&self) -> Option<String> {
        self.platform.as_ref().map(Platform::to_string)
    }
}

impl From<&Reference> for Asked {
    /// For whatever platform.
    fn from(reference: &Reference) -> Self {
        Self { reference: reference.clone(), platform: None }
    }
}

/// What was given.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Admission {
    reference: String,
    /// The platform that was asked for, if one was.
    #[serde(default)]
    platform: Option<String>,
    pub(super) digest: Digest,
    media_type: String,
}

impl Store {
    /// Remembers that `who` was just given this manifest for what he asked, so that he may have it again while
    /// nobody answers there.
    pub fn admit(&self, who: &str, asked: &Asked, pinned: &Pinned) {
        self.keep_small(who, &pinned.digest, &pinned.bytes);
        self.name_repository(who, &asked.reference.place.to_string());
        let admission = Admission {
            reference: asked.reference.to_string(),
            platform: asked.platform_text(),
            digest: pinned.digest.clone(),
            media_type: pinned.media_type.clone(),
        };
        let json = serde_json::to_vec(&admission).unwrap_or_default();
        self.note(private::write_small(&self.admission(who, asked), &json), "record an admission");
    }

    /// What `who` was given for this at most [`GRACE`] ago; for when nobody answers.
    #[must_use]
    pub fn recall(&self, who: &str, asked: &Asked) -> Option<Pinned> {
        let path = self.admission(who, asked);
        let when = std::fs::symlink_metadata(&path).and_then(|meta| meta.modified()).ok()?;
        // A time in the future is no proof of anything.
        if when.elapsed().is_ok_and(|age| age <= GRACE) {
            let admission: Admission =
                serde_json::from_slice(&private::read_small(&path, 1 << 16).ok()?).ok()?;
            let bytes = self.small(who, &admission.digest)?;
            let meant = admission.reference == asked.reference.to_string()
                && admission.platform == asked.platform_text();
            return meant.then_some(Pinned {
                digest: admission.digest,
                media_type: admission.media_type,
                bytes,
            });
        }
        None
    }

    /// Forgets what `who` was given for this reference, for whatever platform: the registry was asked and refused.
    pub fn revoke(&self, who: &str, reference: &Reference) {
        let key = key(who, reference);
        let is_of_it = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&key))
        };
        for path in budget::entries(&self.folder.join("admitted")).into_iter().filter(is_of_it) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Notes which repository `who` stands for, whose key says nothing to a person.
    fn name_repository(&self, who: &str, place: &str) {
        let path = self.repository_path(&super::key(who));
        if private::read_small(&path, NAME_LIMIT).is_ok_and(|noted| noted == place.as_bytes()) {
            return;
        }
        self.note(private::write_small(&path, place.as_bytes()), "note a repository's name");
    }

    /// The repositories of those whose keys these are, sorted, each once; none of whom nothing was noted.
    pub(super) fn repositories<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Vec<String> {
        let noted = |key: &str| private::read_small(&self.repository_path(key), NAME_LIMIT).ok();
        let names = keys.filter_map(|key| String::from_utf8(noted(key)?).ok());
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    pub(super) fn admission(&self, who: &str, asked: &Asked) -> PathBuf {
        let platform = asked.platform_text().map(|text| format!("-{}", text.replace('/', "-")));
        let name = key(who, &asked.reference) + &platform.unwrap_or_default();
        self.folder.join("admitted").join(name)
    }
}

/// How the names of the files begin that say what `who` was given for this reference.
fn key(who: &str, reference: &Reference) -> String {
    blake3::hash(format!("{who}\n{reference}").as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::audit::tests::store;
    use super::*;

    const ALICE: &str = "alice";
    const BOB: &str = "bob";

    fn reference(tag: &str) -> Reference {
        format!("127.0.0.1:1/a/b:{tag}").parse().unwrap()
    }

    fn asked(tag: &str) -> Asked {
        Asked::from(&reference(tag))
    }

    #[test]
    fn only_who_was_admitted_is_given_a_manifest_offline() {
        let (_dir, store) = store();
        let bytes = Bytes::from_static(b"{}");
        let pinned = Pinned { digest: Digest::of(&bytes), media_type: "m".into(), bytes };
        store.admit(ALICE, &asked("v1"), &pinned);
        let found = store.recall(ALICE, &asked("v1")).unwrap();
        assert_eq!((found.digest, found.media_type), (pinned.digest.clone(), "m".to_owned()));
        assert!(store.recall(BOB, &asked("v1")).is_none());
        assert!(store.recall(ALICE, &asked("v2")).is_none());
        assert!(store.small(BOB, &pinned.digest).is_none());
        std::fs::write(store.small_path(ALICE, &pinned.digest), b"{ }").unwrap();
        assert!(store.recall(ALICE, &asked("v1")).is_none(), "a damaged manifest is none");
        store.admit(ALICE, &asked("v1"), &pinned);
        store.revoke(ALICE, &reference("v1"));
        assert!(store.recall(ALICE, &asked("v1")).is_none());
    }

    #[test]
    fn what_was_given_for_one_platform_is_given_for_no_other_and_forgotten_with_the_rest() {
        let (_dir, store) = store();
        let pinned = |bytes: &'static [u8]| Pinned {
            digest: Digest::of(bytes),
            media_type: String::new(),
            bytes: bytes.into(),
        };
        let on = |platform: &str| Asked { platform: Some(platform.parse().unwrap()), ..asked("v1") };
        store.admit(ALICE, &asked("v1"), &pinned(b"any"));
        store.admit(ALICE, &on("linux/arm64"), &pinned(b"arm"));
        let found = |asked: &Asked| store.recall(ALICE, asked).map(|found| found.bytes);
        assert_eq!(found(&asked("v1")).unwrap(), "any");
        assert_eq!(found(&on("linux/aarch64")).unwrap(), "arm");
        assert_eq!(found(&on("linux/arm64/v9")), None);
        store.revoke(ALICE, &reference("v1"));
        assert!(found(&asked("v1")).is_none() && found(&on("linux/arm64")).is_none());
    }
}
