//! What is asked of the plane, and which mount that is: the registry is asked, each time, by who asks.
//!
//! A known digest opens no door: whoever wants a mount has to be given its manifest by the registry just now, with the
//! credentials that came with the wish. Called by the plane.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::book::{Overrides, Spec};
use super::report::Progress;
use crate::content::store::Asked;
use crate::content::{Integrity, StoreConfig};
use crate::error::{Error, Kind, Result};
use crate::fs;
use crate::oci::complete::PARENT_LIMIT;
use crate::oci::{Artifact, Digest, Place, Platform, Reference};
use crate::repository::credentials::{Given, Sources};
use crate::repository::{self, Repository, Secret};

/// The setting that says what is asked of bytes before they are served.
pub const INTEGRITY: &str = "content.integrity";

/// A mount that is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What is to be mounted.
    pub reference: Reference,
    /// What is set for it.
    pub settings: Overrides,
    /// The only credentials it may use, as `.dockerconfigjson` has them; `None`: those of the plane's own configuration.
    pub secret: Option<Secret>,
}

/// What settings come to, for one mount.
#[derive(Clone, Debug)]
pub struct Settled {
    /// How its repository is asked.
    pub repository: repository::Config,
    /// Which manifest of a list is meant.
    pub platform: Option<Platform>,
    /// Where bytes are kept, and how many.
    pub store: StoreConfig,
    /// What is served before it is verified.
    pub integrity: Integrity,
    /// Those of the settings given that say something else than the plane's own, and what is asked of bytes before they are served.
    pub settings: Overrides,
    /// The variables that say all of it to the mount's process.
    pub variables: Vec<(String, OsString)>,
}

/// What the registry says of a wish.
#[derive(Clone, Debug)]
pub(super) struct Pin {
    /// The mount that it is.
    pub(super) spec: Spec,
    /// What its process is given of the wish's credentials; `None` where there were none.
    pub(super) secret: Option<Secret>,
    /// Bytes of all different layers of the model, as the registry keeps them.
    pub(super) size: u64,
    /// Its layers, for who waits for it.
    pub(super) progress: Progress,
}

/// What the registry says of a reference to who may see it.
#[derive(Clone, Debug)]
pub(super) struct Granted {
    /// The reference, with the manifest's digest.
    pub(super) reference: Reference,
    /// That digest.
    pub(super) digest: Digest,
    /// The digests of all kits that it is built upon.
    below: Vec<Digest>,
    /// Who was given it.
    identity: String,
    /// Its layers.
    pub(super) artifact: Artifact,
}

/// Asks the registry what a reference is now: itself, since no mirror knows who may see what. Nothing that is kept on this machine
/// stands in for its answer.
///
/// # Errors
/// Those of the repository and of reading a manifest; `Unsupported` for a kit that is built upon one of another repository.
pub(super) async fn grant(
    reference: &Reference,
    config: &repository::Config,
    platform: Option<Platform>,
) -> Result<Granted> {
    let repository = repository::connect_to_origin(reference, config)?;
    let asked = Asked { reference: reference.clone(), platform };
    let (pinned, artifact) = fs::resolve(&*repository, &asked).await?;
    let below = parents(&*repository, &reference.place, &artifact).await?;
    let pinned_reference = Reference { digest: Some(pinned.digest.clone()), ..reference.clone() };
    let (digest, identity) = (pinned.digest, repository.identity());
    Ok(Granted { reference: pinned_reference, digest, below, identity, artifact })
}

impl Granted {
    /// Bytes of all different layers of the model, as the registry keeps them.
    pub(super) fn size(&self) -> u64 {
        size(&self.artifact)
    }
}

/// [Asks](grant) the registry with the wish's credentials. `key` is what names of mounts are made with, so that nobody learns of a
/// secret from one.
///
/// # Errors
/// Those of [`grant`]; `Invalid` where the credentials can't be read, without anything of them.
pub(super) async fn pin(wish: &Wish, settled: Settled, key: &[u8; 32]) -> Result<Pin> {
    let begun = SystemTime::now();
    let mut config = settled.repository;
    let secret = narrowed(wish, &mut config)?;
    let granted = grant(&wish.reference, &config, settled.platform).await?;
    let shown: Vec<&Digest> = std::iter::once(&granted.digest).chain(&granted.below).collect();
    let id = name(key, &shown, &granted.identity, secret.as_ref(), &settled.settings);
    let (reference, digest) = (granted.reference.to_string(), granted.digest.to_string());
    let spec = Spec { id, reference, digest, settings: settled.settings, volume: None };
    Ok(Pin { spec, secret, size: granted.size(), progress: Progress::done(&granted.artifact, begun) })
}

/// The mount of the dynamic volume `id` at `target`: one for each, whatever its pod has mounted.
///
/// # Errors
/// `Invalid` where the credentials can't be read, without anything of them.
pub(super) fn dynamic(
    id: &str,
    target: &Path,
    settings: Overrides,
    secret: Option<&Secret>,
    key: &[u8; 32],
) -> Result<Spec> {
    secret.map(read).transpose()?;
    let words = format!("{id}\n{}", target.display());
    let id_of_mount = name(key, &[], &words, None, &settings);
    let volume = Some(id.to_owned());
    Ok(Spec { id: id_of_mount, reference: String::new(), digest: String::new(), settings, volume })
}

/// The registry itself, asked with the credentials of the wish; and what of these is for the reference's repository.
///
/// # Errors
/// `Invalid` where the credentials can't be read, without anything of them; those of connecting.
pub(super) fn connect(
    wish: &Wish,
    mut config: repository::Config,
) -> Result<(Arc<dyn Repository>, Option<Secret>)> {
    let secret = narrowed(wish, &mut config)?;
    Ok((repository::connect_to_origin(&wish.reference, &config)?, secret))
}

/// Has `config` ask with the credentials of the wish alone, where it has some; gives what of these is for the reference's repository.
fn narrowed(wish: &Wish, config: &mut repository::Config) -> Result<Option<Secret>> {
    let secret = wish.secret.as_ref().map(|secret| reduced(secret, &wish.reference.place)).transpose()?;
    if let Some(secret) = &secret {
        config.credentials = only(secret, &config.credentials)?;
    }
    Ok(secret)
}

/// The kits that `artifact` is built upon. All of them have to be in its own repository: that is where the registry has just said
/// that who asks may see it, and a mount is shared by all who may.
async fn parents(repository: &dyn Repository, place: &Place, artifact: &Artifact) -> Result<Vec<Digest>> {
    let mut below = Vec::new();
    let mut next = fs::parent(repository, artifact).await?;
    while let Some(reference) = next {
        if reference.place != *place {
            let doing = format!("the kit is built upon {reference}, which is in another repository");
            let way_out = "'weightfs serve' shows no such kit; mount it with 'weightfs mount --foreground'";
            return Err(Error::new(Kind::Unsupported, doing).hint(way_out));
        }
        if below.len() >= PARENT_LIMIT {
            let doing =
                format!("the kit is built upon more than {PARENT_LIMIT} others, or they go in a circle");
            return Err(Error::new(Kind::Unsupported, doing));
        }
        let (pinned, artifact) = fs::resolve(repository, &Asked::from(&reference)).await?;
        below.push(pinned.digest);
        next = fs::parent(repository, &artifact).await?;
    }
    Ok(below)
}

fn size(artifact: &Artifact) -> u64 {
    let layers = artifact.visible().map(|layer| (&layer.descriptor.digest, layer.descriptor.size));
    let different: HashMap<&Digest, u64> = layers.collect();
    different.values().fold(0, |sum, size| sum.saturating_add(*size))
}

fn read(secret: &Secret) -> Result<Given> {
    let given = Given::parse(secret.expose());
    given.map_err(|why| Error::new(Kind::Invalid, format!("the pull secret: {why}")))
}

/// What of these credentials is for this place: nothing else of them is used or kept.
fn reduced(secret: &Secret, place: &Place) -> Result<Secret> {
    let counts = read(secret)?.only_for(place)?;
    Ok(counts.unwrap_or_else(|| Secret::new(r#"{"auths":{}}"#)))
}

/// These credentials, and nothing else that this machine may have.
fn only(secret: &Secret, own: &Sources) -> Result<Sources> {
    let given = read(secret)?;
    Ok(Sources { given: Some(given), program_limit: own.program_limit, ..Sources::default() })
}

/// The same for the same artifacts, seen by the same identity with the same credentials and settings: who may see what another
/// sees, and has said nothing that the other has not.
fn name(
    key: &[u8; 32],
    shown: &[&Digest],
    identity: &str,
    secret: Option<&Secret>,
    settings: &Overrides,
) -> String {
    let mut hasher = blake3::Hasher::new_keyed(key);
    let mut add = |part: &str| {
        hasher.update(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    add(identity);
    add(secret.map_or("", Secret::expose));
    add(&shown.len().to_string());
    shown.iter().for_each(|digest| add(&digest.to_string()));
    for (key, value) in settings {
        add(key);
        add(value);
    }
    hasher.finalize().to_hex().chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::manifest::OCI_MANIFEST;
    use crate::repository::memory::Memory;

    #[test]
    fn another_artifact_parent_identity_secret_or_setting_is_another_mount() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let (set, none) =
            (|value: &str| Overrides::from([("content.warm".into(), value.into())]), Overrides::new());
        let secret = |text: &str| Secret::new(text.to_owned());
        let named = |shown: &[&Digest], who: &str, secret: Option<Secret>, settings: &Overrides| {
            name(&[1; 32], shown, who, secret.as_ref(), settings)
        };
        let names = [
            named(&[&one], "alice", None, &none),
            named(&[&two], "alice", None, &none),
            named(&[&one, &two], "alice", None, &none),
            named(&[&one], "bob", None, &none),
            named(&[&one], "alice", Some(secret("old")), &none),
            named(&[&one], "alice", Some(secret("new")), &none),
            named(&[&one], "alice", None, &set("all")),
            named(&[&one], "alice", None, &set("none")),
        ];
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        assert_eq!(named(&[&one], "alice", None, &set("all")), names[6]);
        assert_ne!(
            name(&[2; 32], &[&one], "alice", None, &none),
            names[0],
            "a name says nothing without the key"
        );
    }

    #[tokio::test]
    async fn a_kit_is_shown_only_where_all_that_it_is_built_upon_is_in_its_own_repository() {
        let repository = Memory::new();
        let push = |tag: &str, parent: &str| {
            let config = format!(r#"{{"manifestVersion":"1.0.0","model":{{"path":"{parent}"}}}}"#);
            let config = repository.put(config.into_bytes());
            let manifest = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.kitops.modelkit.config.v1+json","digest":"{}","size":{}}},"layers":[]}}"#,
                config.digest, config.size
            );
            repository.put_manifest(tag, OCI_MANIFEST, manifest.into_bytes())
        };
        let base = push("base", "model.bin");
        push("near", "r.io/a/kit:base");
        push("far", "r.io/b/kit:v1");
        push("over", "r.io/a/kit:far");
        push("round", "r.io/a/kit:round");
        let place = "r.io/a/kit".parse::<Reference>().unwrap().place;
        let below = async |tag: &str| {
            let asked = Asked::from(&format!("r.io/a/kit:{tag}").parse().unwrap());
            let (_, artifact) = fs::resolve(&repository, &asked).await.unwrap();
            parents(&repository, &place, &artifact).await
        };
        assert!(below("base").await.unwrap().is_empty());
        assert_eq!(below("near").await.unwrap(), [base]);
        for refused in ["far", "over", "round"] {
            assert_eq!(below(refused).await.unwrap_err().kind(), Kind::Unsupported, "{refused}");
        }
    }

    #[test]
    fn a_pull_secret_that_is_none_is_refused_without_being_shown() {
        let error = only(&Secret::new("canary-nonsense".to_owned()), &Sources::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
