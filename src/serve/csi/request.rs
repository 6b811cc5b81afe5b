//! What a volume is asked for with, read and checked: ids, paths, capabilities, attributes and secrets.
//!
//! All of it may be a pod's. What cannot be meant is refused by the codes of the specification, in words that show nothing of a
//! secret; what is an attribute of this driver and not known is refused too, since it was meant to do something. Called by
//! [`node`](super::node).

use std::collections::HashMap;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::tokens::{TOKENS, Tokens};
use super::v1::VolumeCapability;
use super::v1::volume_capability::access_mode::Mode;
use super::v1::volume_capability::{AccessType, MountVolume};
use crate::oci::exclude::{Exclude, WEIGHTS};
use crate::oci::{Place, Reference};
use crate::repository::Secret;
use crate::serve::book::is_plain;
use crate::serve::dynamic::Addition;
use crate::serve::refused::Refused;
use crate::serve::volumes::INLINE;
use crate::serve::{INTEGRITY, Overrides, Renewal, Room, Wanted, Wish};

/// The longest text and the largest table of texts that the specification allows ("Size Limits"), in bytes.
const TEXT_LIMIT: usize = 128;
const TABLE_LIMIT: usize = 4 << 10;

/// The largest pull secret: what Kubernetes keeps in one at most.
const SECRET_LIMIT: usize = 1 << 20;

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

/// The name that a volume is to have, which becomes its id.
pub(super) fn volume_name(name: &str) -> Result<&str, Refused> {
    match volume_id(name) {
        Err(_) if name.is_empty() => Err(Refused::invalid("the volume's name is missing")),
        other => other,
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
    pub(super) wanted: Wanted,
    /// Whether all of it must fit into the store.
    pub(super) room: Room,
    /// Whether the credentials are such as are renewed from time to time.
    pub(super) renewal: Renewal,
}

/// Reads the attributes and secrets of the volume `id`.
pub(super) fn asked(
    driver: &str,
    id: &str,
    context: &HashMap<String, String>,
    secrets: &HashMap<String, String>,
) -> Result<Asked, Refused> {
    let mut attributes = Attributes::new(driver, context)?;
    let tokens = Tokens::read(context.get(TOKENS).or_else(|| secrets.get(TOKENS)))?;
    if id.starts_with(INLINE) && !attributes.names_a_model() {
        return dynamic(attributes, id, secrets, &tokens);
    }
    let reference = attributes.reference()?;
    attributes.check_form()?;
    let room = attributes.room()?;
    let mut settings = attributes.settings()?;
    settings.extend(attributes.exclusions()?.map(|value| ("content.exclude".to_owned(), value)));
    attributes.refuse_unknown()?;
    // A pull secret says more of whom it is for.
    let (secret, renewal) = match secret(secrets, Some(&reference))? {
        Some(secret) => (Some(secret), Renewal::AnotherMount),
        None => (tokens.secret_for(Some(&reference)), Renewal::InPlace),
    };
    let renewal = if secret.is_some() { renewal } else { Renewal::AnotherMount };
    Ok(Asked { wanted: Wanted::Model(Wish { reference, settings, secret }), room, renewal })
}

/// A volume whose pod chooses its models: what is said of single models is said there.
fn dynamic(
    mut attributes: Attributes<'_>,
    id: &str,
    secrets: &HashMap<String, String>,
    tokens: &Tokens,
) -> Result<Asked, Refused> {
    if !is_plain(id) {
        return Err(Refused::invalid(
            "the id of a dynamic volume has other than letters, digits, '-' and '_'",
        ));
    }
    attributes.check_form()?;
    let settings = attributes.settings()?;
    attributes.refuse_unknown()?;
    let secret = secret(secrets, None)?.or_else(|| tokens.secret_for(None));
    // The mount is this one pod's, whatever it is known by: the registry is shown what it has now, for each model anew.
    let renewal = Renewal::InPlace;
    Ok(Asked { wanted: Wanted::Dynamic { settings, secret }, room: Room::NotNeeded, renewal })
}

/// What is noted of a volume that is made before anybody asks for it: the attributes that are this driver's, checked. What others
/// have added, as the node that a pod was meant for, is left out.
pub(super) fn context(
    driver: &str,
    parameters: &HashMap<String, String>,
) -> Result<HashMap<String, String>, Refused> {
    let mut attributes = Attributes::new(driver, parameters)?;
    attributes.reference()?;
    attributes.check_form()?;
    attributes.room()?;
    attributes.settings()?;
    attributes.exclusions()?;
    attributes.refuse_unknown()?;
    let known = parameters.iter().filter(|(key, _)| attributes.used.contains(key));
    Ok(known.map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// The model that is to be added to a dynamic volume, where that is what is asked for: then it says under which name.
pub(super) fn addition(
    driver: &str,
    parameters: &HashMap<String, String>,
) -> Result<Option<Addition>, Refused> {
    let mut attributes = Attributes::new(driver, parameters)?;
    let Some(mount_id) = attributes.own("mount-id") else { return Ok(None) };
    attributes.check_type()?;
    let addition = Addition {
        mount_id: mount_id.to_owned(),
        reference: attributes.reference()?.to_string(),
        check_disk_quota: attributes.switch("check-disk-quota")?,
        exclude_model_weights: attributes.switch("exclude-model-weights")?,
        exclude_file_patterns: attributes.patterns()?,
    };
    attributes.refuse_unknown()?;
    Ok(Some(addition))
}

/// What says nothing of what is mounted: where a controller put the volume, and what it noted.
const PASSED_OVER: [&str; 3] = ["node-ip", "status/state", "status/progress"];

struct Attributes<'a> {
    driver: &'a str,
    context: &'a HashMap<String, String>,
    used: Vec<String>,
}

impl<'a> Attributes<'a> {
    fn new(driver: &'a str, context: &'a HashMap<String, String>) -> Result<Self, Refused> {
        let counted = context.iter().filter(|(key, _)| *key != TOKENS);
        let size: usize = counted.map(|(key, value)| key.len() + value.len()).sum();
        if size > TABLE_LIMIT {
            return Err(Refused::invalid("the volume's attributes are larger than 4 KiB"));
        }
        Ok(Self { driver, context, used: Vec::new() })
    }

    /// Whether the volume says itself which model it shows.
    fn names_a_model(&mut self) -> bool {
        self.own("reference").is_some() || self.get("modelRef".to_owned()).is_some()
    }

    fn room(&mut self) -> Result<Room, Refused> {
        Ok(match self.switch("check-disk-quota")? {
            true => Room::Needed,
            false => Room::NotNeeded,
        })
    }

    /// What is set for the volume.
    fn settings(&mut self) -> Result<Overrides, Refused> {
        let mut settings = Overrides::from([("mount.allow_other".to_owned(), "true".to_owned())]);
        settings.extend(self.integrity()?.map(|value| (INTEGRITY.to_owned(), value)));
        settings.extend(self.warm()?.map(|value| ("content.warm".to_owned(), value)));
        Ok(settings)
    }

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
        if self.own("mount-id").is_some() {
            let way_out =
                "a model is added to a dynamic volume at its own socket, csi/csi.sock, or by CreateVolume";
            return Err(Refused::invalid(format!("mount-id: {way_out}")));
        }
        self.check_type()
    }

    fn check_type(&mut self) -> Result<(), Refused> {
        if let Some(other) = self.own("type").filter(|form| *form != "image") {
            return Err(Refused::invalid(format!("the type {other:?} is not known; it is 'image'")));
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
        patterns.extend(self.patterns()?.unwrap_or_default());
        if patterns.is_empty() {
            return Ok(None);
        }
        let json = serde_json::json!(patterns).to_string();
        Exclude::parse(&json).map_err(|why| Refused::invalid(format!("exclude-file-patterns: {why}")))?;
        Ok(Some(json))
    }

    fn patterns(&mut self) -> Result<Option<Vec<String>>, Refused> {
        let no_array = |_| Refused::invalid("exclude-file-patterns is no JSON array of patterns");
        self.own("exclude-file-patterns").map(serde_json::from_str).transpose().map_err(no_array)
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
fn secret(
    secrets: &HashMap<String, String>,
    reference: Option<&Reference>,
) -> Result<Option<Secret>, Refused> {
    if secrets.values().map(String::len).sum::<usize>() > SECRET_LIMIT {
        return Err(Refused::invalid("the secrets are larger than 1 MiB"));
    }
    for name in [".dockerconfigjson", ".dockercfg"] {
        if let Some(text) = secrets.get(name) {
            return Ok(Some(Secret::new(text.clone())));
        }
    }
    let place = reference.map(|reference| &reference.place);
    match (secrets.get("username"), secrets.get("password"), place) {
        (Some(user), Some(password), Some(Place::Registry { host, .. })) => {
            let auth = zeroize::Zeroizing::new(format!("{user}:{password}"));
            let auths = serde_json::json!({"auths": {host: {"auth": STANDARD.encode(auth.as_bytes())}}});
            Ok(Some(Secret::new(auths.to_string())))
        }
        _ if secrets.keys().all(|key| key == TOKENS) => Ok(None),
        (Some(_), Some(_), None) => Err(Refused::invalid(
            "a user and a password are for no registry here; give them as .dockerconfigjson",
        )),
        _ => Err(Refused::invalid(
            "the secrets have neither .dockerconfigjson nor .dockercfg nor username and password",
        )),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;
    use crate::serve::csi::DRIVER;

    fn table(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn read(pairs: &[(&str, &str)]) -> Result<Asked, Refused> {
        asked(DRIVER, "pvc-1", &table(pairs), &HashMap::new())
    }

    fn wish(asked: Asked) -> Wish {
        match asked.wanted {
            Wanted::Model(wish) => wish,
            Wanted::Dynamic { .. } => panic!("a dynamic volume"),
        }
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
        assert_eq!((asked.room, asked.renewal), (Room::Needed, Renewal::AnotherMount));
        let wanted = wish(asked);
        assert_eq!(wanted.reference.to_string(), "r.io/a/b:v1");
        assert_eq!(wanted.settings, Overrides::from([("mount.allow_other".into(), "true".into())]));
        let alias = wish(read(&[("modelRef", "r.io/a/b:v1")]).unwrap());
        assert_eq!(alias.reference.to_string(), "r.io/a/b:v1");
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
            let wanted = wish(read(&[&[REFERENCE], pairs].concat()).unwrap());
            wanted.settings.get("content.exclude").map(|json| Exclude::parse(json).unwrap())
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
        let set = |pairs: &[(&str, &str)]| wish(read(&[&[REFERENCE], pairs].concat()).unwrap()).settings;
        let more = set(&[("weightfs.dev/integrity", "strict"), ("weightfs.dev/warm", "all")]);
        assert_eq!((&*more["content.integrity"], &*more["content.warm"]), ("strict", "all"));
        assert!(!set(&[("weightfs.dev/integrity", "auto")]).contains_key("content.integrity"));
    }

    #[test]
    fn a_single_pods_volume_without_a_model_is_dynamic_and_says_nothing_of_models() {
        let read = |id: &str, pairs: &[(&str, &str)]| asked(DRIVER, id, &table(pairs), &HashMap::new());
        let warm = read("csi-1", &[("weightfs.dev/warm", "all")]).unwrap();
        assert_eq!(warm.renewal, Renewal::InPlace, "it is one pod's, with whatever secret");
        let Wanted::Dynamic { settings, secret: None } = warm.wanted else { panic!("{warm:?}") };
        assert_eq!(settings["content.warm"], "all");
        assert!(matches!(read("csi-1", &[REFERENCE]).unwrap().wanted, Wanted::Model(_)));
        for (id, pairs) in [
            ("pvc-1", vec![]),
            ("csi-../1", vec![]),
            ("csi-1", vec![("model.csi.modelpack.org/mount-id", "m")]),
            ("csi-1", vec![("model.csi.modelpack.org/check-disk-quota", "true")]),
            ("csi-1", vec![("model.csi.modelpack.org/exclude-model-weights", "true")]),
        ] {
            assert_eq!(read(id, &pairs).unwrap_err().code, Code::InvalidArgument, "{id} {pairs:?}");
        }
    }

    #[test]
    fn what_is_made_for_a_claim_has_the_attributes_that_are_ours_and_no_others() {
        let parameters = table(&[
            REFERENCE,
            ("model.csi.modelpack.org/type", "image"),
            ("weightfs.dev/warm", "none"),
            ("volume.kubernetes.io/selected-node", "node-1"),
        ]);
        let made = context(DRIVER, &parameters).unwrap();
        assert_eq!(made.len(), 3);
        assert!(
            wish(asked(DRIVER, "pvc-1", &made, &HashMap::new()).unwrap())
                .settings
                .contains_key("content.warm")
        );
        for wrong in [vec![], vec![REFERENCE, ("model.csi.modelpack.org/quick", "true")]] {
            assert_eq!(context(DRIVER, &table(&wrong)).unwrap_err().code, Code::InvalidArgument);
        }
    }

    #[test]
    fn what_has_a_name_of_its_own_is_added_to_a_dynamic_volume() {
        let named = ("model.csi.modelpack.org/mount-id", "m");
        let read = |pairs: &[(&str, &str)]| addition(DRIVER, &table(pairs));
        assert_eq!(read(&[REFERENCE]).unwrap(), None);
        let plain = read(&[REFERENCE, named, ("model.csi.modelpack.org/type", "image")]).unwrap().unwrap();
        assert_eq!((&*plain.mount_id, &*plain.reference), ("m", "r.io/a/b:v1"));
        let patterns = ("model.csi.modelpack.org/exclude-file-patterns", r#"["*.md"]"#);
        let weights = ("model.csi.modelpack.org/exclude-model-weights", "true");
        let some = read(&[REFERENCE, named, patterns, weights]).unwrap().unwrap();
        let exclude_file_patterns = Some(vec!["*.md".to_owned()]);
        assert_eq!(some, Addition { exclude_model_weights: true, exclude_file_patterns, ..plain });
        for wrong in [vec![named], vec![named, REFERENCE, ("weightfs.dev/warm", "all")]] {
            assert_eq!(read(&wrong).unwrap_err().code, Code::InvalidArgument, "{wrong:?}");
        }
    }

    #[test]
    fn a_token_is_used_where_there_is_no_pull_secret_and_is_renewed_in_place() {
        let tokens = format!(r#"{{"r.io":{{"token":"canary-token"}}}}{}"#, " ".repeat(5000));
        let given = |secrets: &[(&str, &str)]| {
            let asked =
                asked(DRIVER, "pvc-1", &table(&[REFERENCE, (TOKENS, &tokens)]), &table(secrets)).unwrap();
            assert!(!format!("{asked:?}").contains("canary"));
            (asked.renewal, wish(asked).secret.unwrap().expose().contains("canary-token"))
        };
        assert_eq!(given(&[]), (Renewal::InPlace, true));
        let pull = (".dockerconfigjson", r#"{"auths":{}}"#);
        assert_eq!(given(&[pull]), (Renewal::AnotherMount, false));
        let other = table(&[REFERENCE, (TOKENS, r#"{"other.io":{"token":"canary-token"}}"#)]);
        let asked = asked(DRIVER, "pvc-1", &other, &HashMap::new()).unwrap();
        assert_eq!((asked.renewal, wish(asked).secret), (Renewal::AnotherMount, None));
    }

    #[test]
    fn secrets_are_a_pull_secret_or_a_user_and_their_password() {
        let reference: Reference = "r.io/a/b:v1".parse().unwrap();
        let read = |pairs: &[(&str, &str)]| secret(&table(pairs), Some(&reference));
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
