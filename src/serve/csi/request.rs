//! What a volume is asked for with, read and checked: ids, paths, capabilities, attributes and secrets.
//!
//! All of it may be a pod's. What cannot be meant is refused by the codes of the specification, in words that show nothing of a
//! secret; what is an attribute of this driver and not known is refused too, since it was meant to do something. Called by
//! [`node`](super::node).

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tonic::{Code, Status};

use super::v1::VolumeCapability;
use super::v1::volume_capability::access_mode::Mode;
use super::v1::volume_capability::{AccessType, MountVolume};
use crate::error::{Error, Kind};
use crate::oci::exclude::Exclude;
use crate::oci::{Place, Reference};
use crate::repository::Secret;
use crate::serve::{Overrides, Wish};

/// The longest text and the largest table of texts that the specification allows ("Size Limits"), in bytes.
const TEXT_LIMIT: usize = 128;
const TABLE_LIMIT: usize = 4 << 10;

/// The largest pull secret: what Kubernetes keeps in one at most.
const SECRET_LIMIT: usize = 1 << 20;

/// Why a request is not done.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Refused {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::new(code(error.kind()), error.to_string())
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code, refused.message)
    }
}

/// The code for a kind of error: those that pass by themselves are `Unavailable`, which has the orchestrator ask again.
fn code(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Denied => Code::PermissionDenied,
        Kind::Unreachable | Kind::Broken | Kind::Throttled | Kind::Protocol => Code::Unavailable,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Untrusted | Kind::Unsupported => Code::FailedPrecondition,
        Kind::Integrity => Code::DataLoss,
        Kind::Storage | Kind::Kernel => Code::Internal,
        Kind::Busy => Code::Aborted,
    }
}

/// A volume's id.
pub(super) fn volume_id(id: &str) -> Result<&str, Refused> {
    match id {
        "" => Err(Refused::invalid("the volume's id is missing")),
        id if id.len() > TEXT_LIMIT => Err(Refused::invalid("the volume's id is longer than 128 bytes")),
        id if id.chars().any(char::is_control) => {
            Err(Refused::invalid("the volume's id has control characters"))
        }
        id => Ok(id),
    }
}

/// A path that is asked for under `name`. Whether it can be meant is seen by who opens it.
pub(super) fn path<'a>(name: &str, path: &'a str) -> Result<&'a Path, Refused> {
    match path {
        "" => Err(Refused::invalid(format!("{name} is missing"))),
        path => Ok(Path::new(path)),
    }
}

/// Whether a volume can be used so: mounted, by whoever, since nobody can write to it.
pub(super) fn capability(capability: Option<&VolumeCapability>) -> Result<(), Refused> {
    let capability = capability.ok_or_else(|| Refused::invalid("the volume's capability is missing"))?;
    let mode = capability.access_mode.as_ref().map_or(Mode::Unknown, |mode| mode.mode());
    if mode == Mode::Unknown {
        return Err(Refused::invalid("the volume's access mode is missing or unknown"));
    }
    match &capability.access_type {
        Some(AccessType::Mount(MountVolume { mount_flags, .. })) => flags(mount_flags),
        Some(AccessType::Block(_)) => Err(Refused::invalid("a model is no block device")),
        None => Err(Refused::invalid("the volume's access type is missing")),
    }
}

/// What every mount has anyway may be asked for.
fn flags(flags: &[String]) -> Result<(), Refused> {
    let known = ["ro", "nosuid", "nodev", "noatime"];
    match flags.iter().find(|flag| !known.contains(&flag.as_str())) {
        Some(flag) => Err(Refused::invalid(format!("the mount flag {flag:?} is not known"))),
        None => Ok(()),
    }
}

/// What a pod asks for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) wish: Wish,
    /// Whether all of it must fit into the store.
    pub(super) whole: bool,
}

/// Reads the attributes and secrets of a volume.
pub(super) fn asked(
    driver: &str,
    context: &HashMap<String, String>,
    secrets: &HashMap<String, String>,
) -> Result<Asked, Refused> {
    let size: usize = context.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > TABLE_LIMIT {
        return Err(Refused::invalid("the volume's attributes are larger than 4 KiB"));
    }
    let mut attributes = Attributes { driver, context, used: Vec::new() };
    let reference = attributes.reference()?;
    attributes.check_form()?;
    let whole = attributes.switch("check-disk-quota")?;
    let mut settings = Overrides::from([("mount.allow_other".to_owned(), "true".to_owned())]);
    settings.extend(attributes.integrity()?.map(|value| ("content.integrity".to_owned(), value)));
    settings.extend(attributes.warm()?.map(|value| ("content.warm".to_owned(), value)));
    settings.extend(attributes.exclusions()?.map(|value| ("content.exclude".to_owned(), value)));
    attributes.refuse_unknown()?;
    let secret = secret(secrets, &reference)?;
    Ok(Asked { wish: Wish { reference, settings, secret }, whole })
}

/// What says nothing of what is mounted: where a controller put the volume, and what it noted.
const PASSED_OVER: [&str; 3] = ["node-ip", "status/state", "status/progress"];

/// What `exclude-model-weights` leaves out.
const WEIGHTS: [&str; 2] = ["*.safetensors", "model.safetensors.index.json"];

struct Attributes<'a> {
    driver: &'a str,
    context: &'a HashMap<String, String>,
    used: Vec<String>,
}

impl<'a> Attributes<'a> {
    fn get(&mut self, key: String) -> Option<&'a str> {
        let value = self.context.get(&key).map(|value| value.trim()).filter(|value| !value.is_empty());
        self.used.push(key);
        value
    }

    fn own(&mut self, name: &str) -> Option<&'a str> {
        self.get(format!("{}/{name}", self.driver))
    }

    /// Under its name, or under `modelRef`, as the specification's first examples had it.
    fn reference(&mut self) -> Result<Reference, Refused> {
        let text = match (self.own("reference"), self.get("modelRef".to_owned())) {
            (Some(one), Some(other)) if one != other => {
                return Err(Refused::invalid("reference and modelRef name different models"));
            }
            (Some(text), _) | (None, Some(text)) => text,
            (None, None) => {
                let missing = format!("the attribute {}/reference is missing", self.driver);
                return Err(Refused::invalid(missing));
            }
        };
        let reference: Reference = text.parse()?;
        match reference.place {
            Place::Registry { .. } => Ok(reference),
            // Whoever writes a pod does not decide which of the node's folders are read.
            Place::Layout { .. } => Err(Refused::invalid("a volume's model has to be in a registry")),
        }
    }

    fn check_form(&mut self) -> Result<(), Refused> {
        if let Some(other) = self.own("type").filter(|form| *form != "image") {
            return Err(Refused::invalid(format!("the type {other:?} is not known; it is 'image'")));
        }
        if self.own("mount-id").is_some() {
            return Err(Refused::invalid("mount-id: models are not added to a volume that is there"));
        }
        for name in PASSED_OVER {
            let _ = self.own(name);
        }
        Ok(())
    }

    fn switch(&mut self, name: &str) -> Result<bool, Refused> {
        match self.own(name) {
            None | Some("false" | "False" | "FALSE" | "f" | "F" | "0") => Ok(false),
            Some("true" | "True" | "TRUE" | "t" | "T" | "1") => Ok(true),
            Some(other) => Err(Refused::invalid(format!("{name}: {other:?} is neither true nor false"))),
        }
    }

    /// A pod may ask for more than the node does, and not for less.
    fn integrity(&mut self) -> Result<Option<String>, Refused> {
        match self.get("weightfs.dev/integrity".to_owned()) {
            None | Some("auto") => Ok(None),
            Some("strict") => Ok(Some("strict".to_owned())),
            Some(other) => {
                Err(Refused::invalid(format!("weightfs.dev/integrity: {other:?} is neither auto nor strict")))
            }
        }
    }

    fn warm(&mut self) -> Result<Option<String>, Refused> {
        match self.get("weightfs.dev/warm".to_owned()) {
            None => Ok(None),
            Some(how @ ("none" | "auto" | "all")) => Ok(Some(how.to_owned())),
            Some(other) => {
                Err(Refused::invalid(format!("weightfs.dev/warm: {other:?} is none of none, auto, all")))
            }
        }
    }

    /// The patterns of files that are left out: the weights where that is said, and then those that are named, which count
    /// before it.
    fn exclusions(&mut self) -> Result<Option<String>, Refused> {
        let mut patterns = match self.switch("exclude-model-weights")? {
            true => WEIGHTS.map(str::to_owned).to_vec(),
            false => Vec::new(),
        };
        if let Some(text) = self.own("exclude-file-patterns") {
            let named: Vec<String> = serde_json::from_str(text)
                .map_err(|_| Refused::invalid("exclude-file-patterns is no JSON array of patterns"))?;
            patterns.extend(named);
        }
        if patterns.is_empty() {
            return Ok(None);
        }
        let json = serde_json::json!(patterns).to_string();
        Exclude::parse(&json).map_err(|why| Refused::invalid(format!("exclude-file-patterns: {why}")))?;
        Ok(Some(json))
    }

    fn refuse_unknown(&self) -> Result<(), Refused> {
        let ours = |key: &&String| {
            [self.driver, "weightfs.dev"]
                .iter()
                .any(|owner| key.strip_prefix(owner).is_some_and(|rest| rest.starts_with('/')))
        };
        match self.context.keys().filter(ours).find(|key| !self.used.contains(key)) {
            Some(key) => Err(Refused::invalid(format!("the attribute {key:?} is not known"))),
            None => Ok(()),
        }
    }
}

/// The credentials that came with the request: a pull secret, or a user and password for the reference's registry.
fn secret(secrets: &HashMap<String, String>, reference: &Reference) -> Result<Option<Secret>, Refused> {
    if secrets.values().map(String::len).sum::<usize>() > SECRET_LIMIT {
        return Err(Refused::invalid("the secrets are larger than 1 MiB"));
    }
    for name in [".dockerconfigjson", ".dockercfg"] {
        if let Some(text) = secrets.get(name) {
            return Ok(Some(Secret::new(text.clone())));
        }
    }
    match (secrets.get("username"), secrets.get("password"), &reference.place) {
        (Some(user), Some(password), Place::Registry { host, .. }) => {
            let auth = zeroize::Zeroizing::new(format!("{user}:{password}"));
            let auths = serde_json::json!({"auths": {host: {"auth": STANDARD.encode(auth.as_bytes())}}});
            Ok(Some(Secret::new(auths.to_string())))
        }
        _ if secrets.is_empty() => Ok(None),
        _ => Err(Refused::invalid(
            "the secrets have neither .dockerconfigjson nor .dockercfg nor username and password",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::csi::DRIVER;

    fn table(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Asked, Refused> {
        asked(DRIVER, &table(pairs), &HashMap::new())
    }

    const REFERENCE: (&str, &str) = ("model.csi.modelpack.org/reference", "r.io/a/b:v1");

    #[test]
    fn the_attributes_of_model_csi_driver_mean_what_they_do_there() {
        let asked = read(&[
            REFERENCE,
            ("model.csi.modelpack.org/type", "image"),
            ("model.csi.modelpack.org/check-disk-quota", "true"),
            ("model.csi.modelpack.org/node-ip", "10.0.0.1"),
            ("csi.storage.k8s.io/pod.name", "p"),
            ("storage.kubernetes.io/csiProvisionerIdentity", "x"),
        ])
        .unwrap();
        assert_eq!(asked.wish.reference.to_string(), "r.io/a/b:v1");
        assert!(asked.whole);
        assert_eq!(asked.wish.settings, Overrides::from([("mount.allow_other".into(), "true".into())]));
        assert_eq!(read(&[("modelRef", "r.io/a/b:v1")]).unwrap().wish.reference.to_string(), "r.io/a/b:v1");
    }

    #[test]
    fn what_a_pod_cannot_mean_or_may_not_say_is_refused() {
        let long = "a".repeat(5000);
        for wrong in [
            vec![],
            vec![("model.csi.modelpack.org/reference", "")],
            vec![("model.csi.modelpack.org/reference", "oci:/etc")],
            vec![("model.csi.modelpack.org/reference", "../../etc")],
            vec![("model.csi.modelpack.org/reference", "--config=/etc/shadow")],
            vec![REFERENCE, ("modelRef", "r.io/other/one:v1")],
            vec![REFERENCE, ("model.csi.modelpack.org/type", "file")],
            vec![REFERENCE, ("model.csi.modelpack.org/mount-id", "m")],
            vec![REFERENCE, ("model.csi.modelpack.org/check-disk-quota", "perhaps")],
            vec![REFERENCE, ("model.csi.modelpack.org/quick", "true")],
            vec![REFERENCE, ("model.csi.modelpack.org/exclude-file-patterns", "*.bin")],
            vec![REFERENCE, ("model.csi.modelpack.org/exclude-file-patterns", r#"["a[b"]"#)],
            vec![REFERENCE, ("weightfs.dev/integrity", "deferred")],
            vec![REFERENCE, ("weightfs.dev/warm", "hot")],
            vec![REFERENCE, ("weightfs.dev/store", "/etc")],
            vec![REFERENCE, ("any", &long)],
        ] {
            let refused = read(&wrong).unwrap_err();
            assert_eq!(refused.code, Code::InvalidArgument, "{wrong:?}");
        }
    }

    #[test]
    fn patterns_that_are_named_count_before_the_word_that_leaves_out_weights() {
        let exclude = |pairs: &[(&str, &str)]| {
            let asked = read(&[&[REFERENCE], pairs].concat()).unwrap();
            asked.wish.settings.get("content.exclude").map(|json| Exclude::parse(json).unwrap())
        };
        assert!(exclude(&[("model.csi.modelpack.org/exclude-model-weights", "false")]).is_none());
        let both = exclude(&[
            ("model.csi.modelpack.org/exclude-model-weights", "true"),
            ("model.csi.modelpack.org/exclude-file-patterns", r#"["*.md", "!small.safetensors"]"#),
        ])
        .unwrap();
        for (name, out) in [
            ("a/model.safetensors", true),
            ("model.safetensors.index.json", true),
            ("README.md", true),
            ("small.safetensors", false),
            ("config.json", false),
        ] {
            assert_eq!(both.excludes(name), out, "{name}");
        }
    }

    #[test]
    fn a_pod_may_ask_for_more_than_its_node() {
        let asked =
            read(&[REFERENCE, ("weightfs.dev/integrity", "strict"), ("weightfs.dev/warm", "all")]).unwrap();
        assert_eq!(asked.wish.settings["content.integrity"], "strict");
        assert_eq!(asked.wish.settings["content.warm"], "all");
        assert!(
            !read(&[REFERENCE, ("weightfs.dev/integrity", "auto")])
                .unwrap()
                .wish
                .settings
                .contains_key("content.integrity")
        );
    }

    #[test]
    fn secrets_are_a_pull_secret_or_a_user_and_their_password() {
        let reference: Reference = "r.io/a/b:v1".parse().unwrap();
        let read = |pairs: &[(&str, &str)]| secret(&table(pairs), &reference);
        assert!(read(&[]).unwrap().is_none());
        let json = r#"{"auths":{"r.io":{"auth":"dTpw"}}}"#;
        assert_eq!(read(&[(".dockerconfigjson", json)]).unwrap().unwrap().expose(), json);
        assert_eq!(read(&[("username", "u"), ("password", "p")]).unwrap().unwrap().expose(), json);
        let error = read(&[("password", "canary-password")]).unwrap_err();
        assert!(!error.message.contains("canary"), "{}", error.message);
        assert!(read(&[(".dockercfg", &"a".repeat(2 << 20))]).is_err());
    }

    #[test]
    fn ids_paths_and_capabilities_are_checked() {
        assert!(volume_id("").is_err() && volume_id("a\nb").is_err() && volume_id(&"a".repeat(129)).is_err());
        assert!(volume_id(&"a".repeat(128)).is_ok() && path("target_path", "").is_err());
        assert!(capability(None).is_err() && capability(Some(&VolumeCapability::default())).is_err());
    }
}
