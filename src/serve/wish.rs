//! What is asked of the plane, and which mount that is: the registry is asked, each time, by who asks.
//!
//! A known digest opens no door: whoever wants a mount has to be given its manifest by the registry just now, with the
//! credentials that came with the wish. Called by the plane.

use std::collections::HashMap;
use std::ffi::OsString;

use super::book::{Overrides, Spec};
use crate::content::StoreConfig;
use crate::content::store::Asked;
use crate::error::{Error, Kind, Result};
use crate::fs;
use crate::oci::{Artifact, Digest, Platform, Reference};
use crate::repository::credentials::{Given, Sources};
use crate::repository::{self, Secret};

/// A mount that is asked for.
#[derive(Clone, Debug)]
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
    /// Those of the settings given that say something else than the plane's own.
    pub settings: Overrides,
    /// The variables that say all of it to the mount's process.
    pub variables: Vec<(String, OsString)>,
}

/// What the registry says of a wish.
#[derive(Clone, Debug)]
pub(super) struct Pin {
    /// The mount that it is.
    pub(super) spec: Spec,
    /// Bytes of all different layers of the model, as the registry keeps them.
    pub(super) size: u64,
}

/// Asks the registry what the wish's reference is now. Nothing that is kept on this machine stands in for its answer.
///
/// # Errors
/// Those of the repository and of reading a manifest; `Invalid` where the credentials can't be read, without anything of them.
pub(super) async fn pin(wish: &Wish, settled: Settled) -> Result<Pin> {
    let mut config = settled.repository;
    if let Some(secret) = &wish.secret {
        config.credentials = only(secret, &config.credentials)?;
    }
    let repository = repository::connect(&wish.reference, &config)?;
    let asked = Asked { reference: wish.reference.clone(), platform: settled.platform };
    let (pinned, artifact) = fs::resolve(&*repository, &asked).await?;
    let reference = Reference { digest: Some(pinned.digest.clone()), ..wish.reference.clone() };
    let id = name(&pinned.digest, &repository.identity(), &settled.settings);
    let digest = pinned.digest.to_string();
    let spec = Spec { id, reference: reference.to_string(), digest, settings: settled.settings };
    Ok(Pin { spec, size: size(&artifact) })
}

fn size(artifact: &Artifact) -> u64 {
    let layers = artifact.visible().map(|layer| (&layer.descriptor.digest, layer.descriptor.size));
    let different: HashMap<&Digest, u64> = layers.collect();
    different.values().fold(0, |sum, size| sum.saturating_add(*size))
}

/// These credentials, and nothing else that this machine may have.
fn only(secret: &Secret, own: &Sources) -> Result<Sources> {
    let given = Given::parse(secret.expose());
    let given = given.map_err(|why| Error::new(Kind::Invalid, format!("the pull secret: {why}")))?;
    Ok(Sources { given: Some(given), program_limit: own.program_limit, ..Sources::default() })
}

/// The same for the same artifact, seen by the same identity with the same settings: who may see what another sees.
fn name(digest: &Digest, identity: &str, settings: &Overrides) -> String {
    let mut parts = format!("{digest}\0{identity}");
    for (key, value) in settings {
        parts.push_str(&format!("\0{key}\0{value}"));
    }
    Digest::of(parts.as_bytes()).hex().chars().take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_artifact_identity_or_setting_is_another_mount() {
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let set = |value: &str| Overrides::from([("content.warm".to_owned(), value.to_owned())]);
        let names = [
            name(&one, "alice", &Overrides::new()),
            name(&two, "alice", &Overrides::new()),
            name(&one, "bob", &Overrides::new()),
            name(&one, "alice", &set("all")),
            name(&one, "alice", &set("none")),
        ];
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        assert_eq!(name(&one, "alice", &set("all")), names[3]);
    }

    #[test]
    fn a_pull_secret_that_is_none_is_refused_without_being_shown() {
        let error = only(&Secret::new("canary-nonsense".to_owned()), &Sources::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Invalid);
        assert!(!error.to_string().contains("canary"), "{error}");
    }
}
