//! Where credentials are looked for, and in which order. The first that has some for a repository counts.

use std::path::PathBuf;
use std::time::Duration;

use super::file::{File, unusable};
use super::helper::Helper;
use super::kubelet;
use super::login;
use super::matching::Wanted;
use super::{Candidate, Credentials};
use crate::error::{Error, Kind, Result};
use crate::oci::Place;
use crate::repository::Secret;

/// The places, in the order in which they are looked into.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What was given in so many words, as by a variable.
    pub given: Option<Given>,
    /// One file that was named, of the form of `auth.json`.
    pub auth_file: Option<PathBuf>,
    /// Kubernetes pull secrets: `.dockerconfigjson` or `.dockercfg`, or folders with one. What they say of programs does
    /// not count, since whoever writes a secret does not decide what is run here.
    pub pull_secrets: Vec<PathBuf>,
    /// Docker's `config.json`, or the folder that has it. A missing one says nothing.
    pub docker_config: Option<PathBuf>,
    /// The `auth.json` files of containers' tools. Missing ones say nothing.
    pub containers: Vec<PathBuf>,
    /// The kubelet's credential providers.
    pub providers: Option<Providers>,
    /// A folder that Docker's credential helpers are looked for in before `$PATH`.
    pub helper_folder: Option<PathBuf>,
    /// How long a helper or provider may take. Default 20 s.
    pub program_limit: Duration,
}

impl Default for Sources {
    fn default() -> Self {
        Self {
            given: None,
            auth_file: None,
            pull_secrets: Vec::new(),
            docker_config: None,
            containers: Vec::new(),
            providers: None,
            helper_folder: None,
            program_limit: Duration::from_secs(20),
        }
    }
}

/// The kubelet's credential providers: the two options `--image-credential-provider-config` and `…-bin-dir`.
#[derive(Clone, Debug, Default)]
pub struct Providers {
    /// The configuration, as YAML or JSON.
    pub config: PathBuf,
    /// The folder that has the programs; `None`: the one that has the configuration.
    pub folder: Option<PathBuf>,
}

/// Credentials that were given as text.
#[derive(Clone, Debug)]
pub struct Given(Secret);

impl Given {
    /// `HOST[/NAMESPACE]=USER:PASSWORD`, or the content of a `config.json` with `auths`.
    ///
    /// # Errors
    /// Why it is neither, without anything of it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let json = if text.trim_start().starts_with('{') { text.to_owned() } else { as_json(text)? };
        File::parse(json.as_bytes())?;
        Ok(Self(Secret::new(json)))
    }

    /// What counts of it for this place, in one form however it was written, to be given in its stead there; `None` where nothing
    /// does, as for a folder.
    ///
    /// # Errors
    /// `Invalid` where what counts cannot be meant, without anything of it.
    pub fn only_for(&self, place: &Place) -> Result<Option<Secret>> {
        let Place::Registry { host, repository } = place else { return Ok(None) };
        let found = self.file()?.credentials(Wanted { host, repository });
        let found = found.map_err(|why| Error::new(Kind::Invalid, why))?;
        Ok(found.map(|found| {
            Secret::new(
                serde_json::json!({ "auths": { login::key(host): login::entry(&found) } }).to_string(),
            )
        }))
    }

    fn file(&self) -> Result<File> {
        File::parse(self.0.expose().as_bytes()).map_err(|why| Error::new(Kind::Invalid, why))
    }
}

fn as_json(text: &str) -> Result<String, String> {
    let form = || "it is neither HOST=USER:PASSWORD nor JSON with auths".to_owned();
    let (host, pair) = text.trim().split_once('=').ok_or_else(form)?;
    let (user, password) = pair.split_once(':').ok_or_else(form)?;
    if host.is_empty() || user.is_empty() || password.is_empty() {
        return Err(form());
    }
    Ok(serde_json::json!({ "auths": { host: { "username": user, "password": password } } }).to_string())
}

impl Sources {
    /// The file that `login` writes to: the one that was named, else Docker's.
    #[must_use]
    pub fn login_file(&self) -> Option<PathBuf> {
        self.auth_file.clone().or_else(|| self.docker_config.as_deref().map(super::file::resolve))
    }

    /// Who may have credentials for `wanted`, in order. Reads files, and runs nothing.
    pub(super) fn candidates(&self, wanted: Wanted<'_>) -> Result<Vec<Candidate>> {
        let mut found = Vec::new();
        if let Some(given) = &self.given {
            found.extend(given.file()?.credentials(wanted).unwrap_or_default().map(Candidate::Known));
        }
        for path in self.auth_file.iter() {
            self.look_into(path, wanted, &mut found)?;
        }
        for path in &self.pull_secrets {
            let Some((path, file)) = File::load(path)? else {
                let error = Error::new(Kind::Invalid, format!("no pull secret at {}", path.display()));
                return Err(error);
            };
            let known = file.credentials(wanted).map_err(|why| unusable(&path, &why))?;
            found.extend(known.map(Candidate::Known));
        }
        for path in self.docker_config.iter().chain(&self.containers) {
            self.look_into(path, wanted, &mut found)?;
        }
        if let Some(providers) = self.providers.as_ref().filter(|set| !set.config.as_os_str().is_empty()) {
            let fitting = kubelet::matching(providers, wanted, self.program_limit)?;
            found.extend(fitting.into_iter().map(Candidate::Provider));
        }
        Ok(found)
    }

    /// A file's helper, and then what the file itself has.
    fn look_into(
        &self,
        path: &std::path::Path,
        wanted: Wanted<'_>,
        found: &mut Vec<Candidate>,
    ) -> Result<()> {
        let Some((path, file)) = File::load(path)? else { return Ok(()) };
        if let Some(name) = file.helper(wanted) {
            let helper = self.helper(name, wanted.host).map_err(|why| unusable(&path, &why))?;
            found.push(Candidate::Helper(helper));
        }
        let known: Option<Credentials> = file.credentials(wanted).map_err(|why| unusable(&path, &why))?;
        found.extend(known.map(Candidate::Known));
        Ok(())
    }

    pub(super) fn helper(&self, name: &str, host: &str) -> Result<Helper, String> {
        Helper::new(name, host, self.helper_folder.as_deref(), self.program_limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(sources: &Sources, host: &str, repository: &str) -> Vec<String> {
        let candidates = sources.candidates(Wanted { host, repository }).unwrap();
        let name = |candidate| match candidate {
            Candidate::Known(found) => found.user,
            Candidate::Helper(helper) => format!("helper {}", helper.name),
            Candidate::Provider(provider) => format!("provider {}", provider.name),
        };
        candidates.into_iter().map(name).collect()
    }

    #[test]
    fn places_are_looked_into_in_the_order_of_the_documentation() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, more: &str| {
            let path = folder.path().join(name);
            let json = format!(r#"{{{more}"auths":{{"r.io":{{"username":"{name}","password":"x"}}}}}}"#);
            std::fs::write(&path, json).unwrap();
            path
        };
        let config = folder.path().join("providers.yaml");
        let yaml = "kind: CredentialProviderConfig\nproviders: [{name: p, matchImages: [r.io], \
            apiVersion: credentialprovider.kubelet.k8s.io/v1}]";
        std::fs::write(&config, yaml).unwrap();
        let sources = Sources {
            given: Some(Given::parse("r.io=given:x").unwrap()),
            auth_file: Some(file("named", "")),
            pull_secrets: vec![file("secret", r#""credsStore":"evil","#)],
            docker_config: Some(file("docker", r#""credsStore":"desktop","#)),
            containers: vec![folder.path().join("missing"), file("containers", "")],
            providers: Some(Providers { config, folder: None }),
            ..Sources::default()
        };
        let all = ["given", "named", "secret", "helper desktop", "docker", "containers", "provider p"];
        assert_eq!(known(&sources, "r.io", "a"), all);
        assert_eq!(known(&sources, "x.io", "a"), ["helper desktop"]);
    }

    #[test]
    fn what_is_given_as_text_is_for_its_host_alone_and_not_shown_where_it_is_wrong() {
        let given = |text| Sources { given: Some(Given::parse(text).unwrap()), ..Sources::default() };
        let pair = given("r.io:5000/team=me:p=w:x");
        assert_eq!(known(&pair, "r.io:5000", "team/llm"), ["me"]);
        assert!(
            known(&pair, "r.io:5000", "other").is_empty() && known(&pair, "evil.io", "team/llm").is_empty()
        );
        let json = given(r#"{"auths":{"r.io":{"auth":"dXNlcjpwYXNz"}}}"#);
        assert_eq!(known(&json, "r.io", "a"), ["user"]);
        for wrong in ["hunter2", "r.io=hunter2", "=a:hunter2", "{\"auths\":{\"r.io\":\"hunter2\"}}"] {
            assert!(!Given::parse(wrong).unwrap_err().contains("hunter2"));
        }
    }

    #[test]
    fn what_counts_for_a_registry_is_the_same_however_it_was_written_and_all_that_is_left() {
        let place = Place::Registry { host: "r.io".into(), repository: "team/llm".into() };
        let left = |text: &str| {
            let given = Given::parse(text).unwrap().only_for(&place).unwrap();
            given.map(|secret| secret.expose().to_owned())
        };
        let plain = left("r.io=user:pass").unwrap();
        let among = r#"{"auths":{"r.io/team":{"auth":"dXNlcjpwYXNz"},"other.io":{"auth":"b3RoZXI6eA=="}}}"#;
        assert_eq!(left(among).as_ref(), Some(&plain));
        assert_eq!(left(&plain).as_ref(), Some(&plain));
        assert_ne!(left("r.io=user:word"), Some(plain));
        assert_eq!(left("other.io=user:pass"), None);
    }

    #[test]
    fn a_pull_secret_that_is_missing_is_an_error_and_a_dockers_config_is_none() {
        let missing = || Some(PathBuf::from("/nowhere/config.json"));
        let sources = Sources { docker_config: missing(), auth_file: missing(), ..Sources::default() };
        assert!(known(&sources, "r.io", "a").is_empty());
        let sources = Sources { pull_secrets: missing().into_iter().collect(), ..Sources::default() };
        assert!(sources.candidates(Wanted { host: "r.io", repository: "a" }).is_err());
    }
}
