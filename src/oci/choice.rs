//! One manifest of several: an index, and which of what it lists is meant.
//!
//! Models are the same on all machines, so most lists have one; those of container images have one for each platform. Read by
//! [`manifest`](super::manifest); whoever opens an artifact follows [`Choice::choose`], one list deep.

use super::family::{self, Family};
use super::manifest::{Descriptor, is_document};
use super::platform::Platform;
use crate::error::{Error, Kind, Result};

/// An image index (image specification, image-index.md).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// What there is to choose from, at most [`LAYER_LIMIT`](super::manifest::LAYER_LIMIT).
    pub manifests: Vec<Choosable>,
}

/// One manifest of an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choosable {
    /// Where it is.
    pub descriptor: Descriptor,
    /// Its artifact type, empty where the index does not say.
    pub artifact_type: String,
    /// What it was built for; `None` where the index does not say: for all.
    pub platform: Option<Platform>,
}

impl Choice {
    /// The one manifest that is meant: for `wanted`, where that is given. Else the only one there is, or the only one that is a
    /// model, or that for this machine's platform.
    ///
    /// One for all platforms serves where there is none for the one that is wanted. Attestations, what goes with another
    /// artifact, and entries for platform `unknown/unknown` beside others, don't count.
    ///
    /// # Errors
    /// [`Kind::NotFound`] where there is none, [`Kind::Invalid`] where several could be meant; both list what there is.
    pub fn choose(&self, wanted: Option<&Platform>) -> Result<&Descriptor> {
        let usable: Vec<_> = self.manifests.iter().filter(|one| one.is_usable()).collect();
        let is_known = |one: &&Choosable| !one.platform.as_ref().is_some_and(Platform::is_unknown);
        let known: Vec<_> = usable.iter().copied().filter(is_known).collect();
        let rest = if known.is_empty() { usable } else { known };
        if rest.is_empty() {
            return Err(Error::new(Kind::NotFound, "the index lists no manifest"));
        }
        match wanted {
            Some(platform) => of_platform(&rest, platform),
            None => of_any(&rest),
        }
    }
}

impl Choosable {
    fn is_usable(&self) -> bool {
        let kind = self.descriptor.annotations.get("vnd.docker.reference.type").map(String::as_str);
        let media_type = self.descriptor.media_type.as_str();
        kind != Some("attestation-manifest")
            && !family::is_about_another(&self.artifact_type)
            && (media_type.is_empty() || is_document(media_type))
    }
}

/// The one for `platform`.
fn of_platform<'a>(all: &[&'a Choosable], platform: &Platform) -> Result<&'a Descriptor> {
    let for_all: Vec<_> = all.iter().copied().filter(|one| one.platform.is_none()).collect();
    match (built_for(all, platform), for_all.as_slice()) {
        (Some(found), _) => Ok(found),
        (None, [one]) => Ok(&one.descriptor),
        (None, several) if several.len() == all.len() => of_any(all),
        _ => {
            let doing = format!("the index has no manifest for {platform} alone: it lists {}", listed(all));
            Err(Error::new(Kind::NotFound, doing).hint(HINT))
        }
    }
}

/// The one that is meant where nobody says for which platform.
fn of_any<'a>(all: &[&'a Choosable]) -> Result<&'a Descriptor> {
    let models: Vec<_> =
        all.iter().copied().filter(|one| Family::of_type(&one.artifact_type).is_some()).collect();
    match (all, models.as_slice()) {
        ([one], _) | (_, [one]) => Ok(&one.descriptor),
        _ => built_for(all, &Platform::host()).ok_or_else(|| {
            let doing = format!("the index lists several manifests: {}", listed(all));
            Error::new(Kind::Invalid, doing).hint(HINT)
        }),
    }
}

/// The only one that was built for exactly this platform, or else, for the usual variant, the only one of its kind.
fn built_for<'a>(all: &[&'a Choosable], platform: &Platform) -> Option<&'a Descriptor> {
    let only = |test: &dyn Fn(&Platform) -> bool| {
        let fitting = all.iter().copied().filter(|one| one.platform.as_ref().is_some_and(test));
        match *fitting.collect::<Vec<_>>() {
            [one] => Some(&one.descriptor),
            _ => None,
        }
    };
    only(&|own| own == platform).or_else(|| only(&|own| platform.is_usual() && own.is_kin(platform)))
}

const HINT: &str = "name the one that is meant with --platform OS/ARCHITECTURE, or with @DIGEST";

/// At most sixteen of them, for people.
fn listed(all: &[&Choosable]) -> String {
    let show = |one: &&Choosable| {
        let platform = one.platform.as_ref().map(Platform::to_string);
        let what = if one.artifact_type.is_empty() {
            platform.unwrap_or_default()
        } else {
            one.artifact_type.clone()
        };
        format!("{} ({what})", one.descriptor.digest)
    };
    let mut list: Vec<_> = all.iter().take(16).map(show).collect();
    if all.len() > list.len() {
        list.push(format!("and {} more", all.len() - list.len()));
    }
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::manifest::Document;
    use super::*;
    use crate::oci::Digest;

    fn choice(entries: &[&str]) -> Choice {
        let entries: Vec<_> = entries
            .iter()
            .enumerate()
            .map(|(at, rest)| {
                format!(r#"{{"digest":"{}","size":2{rest}}}"#, Digest::of(&[u8::try_from(at).unwrap()]))
            })
            .collect();
        match Document::parse(format!(r#"{{"manifests":[{}]}}"#, entries.join(",")).as_bytes(), "").unwrap() {
            Document::Index(choice) => choice,
            Document::Manifest(_) => panic!("an index was read as a manifest"),
        }
    }

    /// What an entry of an index says where it was built for this.
    fn built(platform: &str) -> String {
        let mut parts = platform.split('/');
        let mut part = || parts.next().unwrap_or_default();
        format!(r#","platform":{{"os":"{}","architecture":"{}","variant":"{}"}}"#, part(), part(), part())
    }

    fn chosen(entries: &[String], wanted: &str) -> Result<usize> {
        let entries: Vec<_> = entries.iter().map(String::as_str).collect();
        let wanted = Some(wanted).filter(|text| !text.is_empty()).map(|text| text.parse().unwrap());
        let choice = choice(&entries);
        let digest = choice.choose(wanted.as_ref())?.digest.clone();
        Ok(choice.manifests.iter().position(|one| one.descriptor.digest == digest).unwrap())
    }

    #[test]
    fn of_an_index_the_only_usable_manifest_is_chosen() {
        let unknown = built("unknown/unknown");
        let attestation = r#","annotations":{"vnd.docker.reference.type":"attestation-manifest"}"#.to_owned();
        let model = r#","artifactType":"application/vnd.cncf.model.manifest.v1+json""#.to_owned();
        let linux = built("linux/amd64");
        for (entries, at) in [
            (vec![String::new()], 0),
            (vec![unknown.clone()], 0),
            (vec![unknown, linux.clone()], 1),
            (vec![attestation.clone(), String::new()], 1),
            (vec![linux, model], 1),
            (vec![built("plan9/mips")], 0),
        ] {
            assert_eq!(chosen(&entries, "").unwrap(), at, "{entries:?}");
        }
        assert_eq!(chosen(&[attestation], "").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn of_images_that_of_this_machine_is_chosen_and_no_other() {
        let own = built(&Platform::host().to_string());
        let (other, more) = (built("linux/s390x-like"), built("linux/mips-like"));
        let soci = r#","artifactType":"application/vnd.amazon.soci.index.v2+json""#.to_owned() + &own;
        for (entries, at) in [
            (vec![other.clone(), own.clone(), more.clone()], 1),
            (vec![soci.clone(), other.clone(), own.clone()], 2),
            (vec![soci, own.clone()], 1),
        ] {
            assert_eq!(chosen(&entries, "").unwrap(), at, "{entries:?}");
        }
        for entries in [[other, more], [own.clone(), own]] {
            let error = chosen(&entries, "").unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().contains("--platform"), "{error}");
        }
    }

    #[test]
    fn the_platform_that_is_wanted_is_chosen_or_what_there_is_is_listed() {
        let all =
            ["linux/amd64", "linux/arm64/v8", "linux/arm/v6", "linux/arm/v7", "windows/amd64"].map(built);
        for (wanted, at) in [
            ("linux/amd64", 0),
            ("linux/x86_64", 0),
            ("linux/arm64", 1),
            ("linux/aarch64/v8", 1),
            ("linux/arm/v6", 2),
            ("linux/arm", 3),
            ("windows/amd64", 4),
        ] {
            assert_eq!(chosen(&all, wanted).unwrap(), at, "{wanted}");
        }
        for wanted in ["linux/s390x", "linux/amd64/v3", "linux/arm/v5"] {
            let error = chosen(&all, wanted).unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound);
            let said = error.to_string();
            assert!(
                said.contains(wanted) && said.contains("linux/arm64") && said.contains("windows/amd64"),
                "{said}"
            );
        }
        let variants = ["linux/amd64/v2", "linux/amd64", "linux/amd64/v3"].map(built);
        assert_eq!(chosen(&variants, "linux/amd64").unwrap(), 1);
        assert_eq!(chosen(&variants[..1], "linux/amd64").unwrap(), 0, "the only one of its kind");
        assert!(chosen(&[built("linux/amd64")], "linux/arm64").is_err(), "also where there is one only");
    }

    #[test]
    fn what_says_no_platform_is_for_all() {
        let model = r#","artifactType":"application/vnd.cncf.model.manifest.v1+json""#.to_owned();
        assert_eq!(chosen(std::slice::from_ref(&model), "linux/arm64").unwrap(), 0);
        assert_eq!(chosen(&[built("linux/amd64"), model.clone()], "linux/arm64").unwrap(), 1);
        assert_eq!(chosen(&[built("linux/amd64"), model.clone()], "linux/amd64").unwrap(), 0);
        assert_eq!(chosen(&[model, r#","artifactType":"x/y""#.to_owned()], "linux/arm64").unwrap(), 0);
    }

    #[test]
    fn an_index_that_leaves_a_choice_lists_it() {
        let error = chosen(&[r#","artifactType":"x/y""#.to_owned(), String::new()], "").unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(error.to_string().contains(&Digest::of(&[0]).to_string()), "{error}");
        assert!(error.to_string().ends_with("@DIGEST"), "{error}");
    }
}
