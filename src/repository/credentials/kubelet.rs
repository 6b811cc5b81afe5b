//! The kubelet's credential providers: programs that hand out short-lived credentials for images, as those of ECR, GAR
//! and ACR do (KEP-2133; `kubelet.config.k8s.io/v1` CredentialProviderConfig and `credentialprovider.kubelet.k8s.io/v1`).
//!
//! A configuration names them and the images that each is for. One is given a request on its standard input and answers
//! with credentials, and how long and for what else they hold.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::matching::{Wanted, best, fit};
use super::program;
use super::{Credentials, Providers, file};
use crate::error::{Error, Kind, Result};
use crate::repository::Secret;

/// The versions of the protocol, which differ in nothing that is used here.
const VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

#[derive(Deserialize)]
struct Config {
    kind: String,
    #[serde(default)]
    providers: Vec<Described>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Described {
    name: String,
    #[serde(default)]
    match_images: Vec<String>,
    #[serde(default)]
    default_cache_duration: Option<String>,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Clone, Debug, Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    #[serde(default)]
    require_service_account: bool,
}

/// One program.
#[derive(Clone, Debug)]
pub(super) struct Provider {
    pub(super) name: String,
    program: PathBuf,
    version: String,
    args: Vec<String>,
    env: Vec<Variable>,
    life: Duration,
    limit: Duration,
}

/// What an answer holds for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct CacheKey {
    provider: String,
    scope: Scope,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Scope {
    Image(String),
    Registry(String),
    Global,
}

/// Credentials by the images that they are for.
#[derive(Clone, Debug, Default)]
pub(super) struct Auths(HashMap<String, Auth>);

#[derive(Clone, Debug, Deserialize)]
struct Auth {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: Secret,
}

/// What a provider answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) key: CacheKey,
    pub(super) life: Duration,
    pub(super) auths: Auths,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    kind: String,
    #[serde(default)]
    cache_key_type: String,
    #[serde(default)]
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<HashMap<String, Auth>>,
}

/// The providers that `providers` names for `wanted`, in the order of the configuration.
///
/// # Errors
/// `Invalid` where the configuration is missing, cannot be read or meant.
pub(super) fn matching(providers: &Providers, wanted: Wanted<'_>, limit: Duration) -> Result<Vec<Provider>> {
    let path = &providers.config;
    let wrong = |why: String| {
        Error::new(Kind::Invalid, format!("cannot use {}: {why}", path.display()))
            .hint("it must be a CredentialProviderConfig as the kubelet reads it")
    };
    let bytes = file::read(path)?.ok_or_else(|| wrong("there is no such file".to_owned()))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| wrong(error.to_string()))?;
    // Its variables may be secrets, so that nothing of a parser's message is told but where it stood.
    let config: Config = serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map(|at| format!(" at line {} column {}", at.line(), at.column()));
        wrong(format!("no valid configuration{}", place.unwrap_or_default()))
    })?;
    if config.kind != "CredentialProviderConfig" {
        return Err(wrong(format!("its kind is {:?}", config.kind)));
    }
    let folder = providers.folder.as_deref().or(path.parent()).unwrap_or(Path::new("/"));
    let fitting = config.providers.into_iter().filter(|one| {
        one.match_images.iter().any(|pattern| fit(pattern, wanted).is_some())
            // The kubelet does not ask these without a pod's own token, which nobody here has.
            && !one.token_attributes.as_ref().is_some_and(|attributes| attributes.require_service_account)
    });
    fitting.map(|one| one.provider(folder, limit).map_err(&wrong)).collect()
}

impl Described {
    fn provider(self, folder: &Path, limit: Duration) -> Result<Provider, String> {
        let name = self.name;
        if name.is_empty() || name.starts_with('.') || name.contains(['/', ' ', '\0']) {
            return Err(format!("{name:?} is no provider's name"));
        }
        if !VERSIONS.contains(&&*self.api_version) {
            return Err(format!("{name} has an apiVersion of {:?}", self.api_version));
        }
        let life = self.default_cache_duration.as_deref().map_or(Some(Duration::ZERO), go_duration);
        Ok(Provider {
            program: folder.join(&name),
            version: self.api_version,
            args: self.args.unwrap_or_default(),
            env: self.env.unwrap_or_default(),
            life: life.ok_or_else(|| format!("{name} has no valid defaultCacheDuration"))?,
            limit,
            name,
        })
    }
}

impl Provider {
    /// Asks it for `wanted`.
    ///
    /// # Errors
    /// `NotFound` where there is no such program; `Broken` where it fails, answers nonsense or takes too long.
    pub(super) async fn ask(&self, wanted: Wanted<'_>) -> Result<Answer> {
        let image = wanted.name();
        let request =
            Request { api_version: &self.version, kind: "CredentialProviderRequest", image: &image };
        let request = serde_json::to_vec(&request)
            .map_err(|error| Error::from_source(Kind::Invalid, "no such image", error))?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|one| (&one.name, &one.value)));
        let said = program::run(command, &self.program, &request, self.limit).await?;
        if !said.status.success() {
            return Err(said.failure(&self.program));
        }
        self.read(&said.answer, wanted)
            .map_err(|why| Error::new(Kind::Broken, format!("{} {why}", self.program.display())))
    }

    fn read(&self, answer: &[u8], wanted: Wanted<'_>) -> Result<Answer, String> {
        let said: Response =
            serde_json::from_slice(answer).map_err(|_| "gave no answer as JSON".to_owned())?;
        if said.kind != "CredentialProviderResponse" {
            return Err("answered something else".to_owned());
        }
        let life = said.cache_duration.as_deref().map_or(Some(self.life), go_duration);
        let life = life.ok_or_else(|| "gave no valid cacheDuration".to_owned())?;
        let [image, registry, global] = self.cache_keys(wanted);
        let key = match &*said.cache_key_type {
            "Image" => image,
            "Registry" => registry,
            "Global" => global,
            other => return Err(format!("gave a cacheKeyType of {other:?}")),
        };
        Ok(Answer { key, life, auths: Auths(said.auth.unwrap_or_default()) })
    }

    /// What an answer for `wanted` may be remembered under, the narrowest first.
    pub(super) fn cache_keys(&self, wanted: Wanted<'_>) -> [CacheKey; 3] {
        [Scope::Image(wanted.name()), Scope::Registry(wanted.host.to_owned()), Scope::Global]
            .map(|scope| CacheKey { provider: self.name.clone(), scope })
    }
}

impl Auths {
    /// The credentials that fit best.
    pub(super) fn find(&self, wanted: Wanted<'_>) -> Option<Credentials> {
        let (_, auth) = best(&self.0, wanted)?;
        let there = !auth.password.expose().is_empty();
        there.then(|| Credentials::password(auth.username.clone(), auth.password.clone()))
    }
}

/// A duration as Go writes it: `12h0m0s`, `1.5h`, `300ms`. `None` where it is none, or a negative one.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let (mut rest, mut total) = (text, Duration::ZERO);
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at_checked(end)?;
        let end = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(end)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr-credential-provider
    matchImages:
      - "*.dkr.ecr.*.amazonaws.com"
    defaultCacheDuration: "12h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env:
      - name: AWS_PROFILE
        value: test
  - name: with-a-pod
    matchImages: ["*.dkr.ecr.*.amazonaws.com"]
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    tokenAttributes: {requireServiceAccount: true, serviceAccountTokenAudience: x, cacheType: Token}
  - name: other
    matchImages: [r.io]
    apiVersion: credentialprovider.kubelet.k8s.io/v1
"#;

    fn named(text: &str, host: &str) -> Result<Vec<Provider>> {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yaml");
        std::fs::write(&config, text).unwrap();
        let providers = Providers { config, folder: Some("/plugins".into()) };
        matching(&providers, Wanted { host, repository: "llm" }, Duration::from_secs(1))
    }

    fn one() -> Provider {
        named(YAML, "1.dkr.ecr.eu-west-1.amazonaws.com").unwrap().pop().unwrap()
    }

    #[test]
    fn a_provider_is_asked_for_its_images_only() {
        let found = named(YAML, "1.dkr.ecr.eu-west-1.amazonaws.com").unwrap();
        let [provider] = &found[..] else { panic!("{found:?}") };
        assert_eq!(provider.program, Path::new("/plugins/ecr-credential-provider"));
        assert_eq!(
            (provider.life, &provider.args[..]),
            (Duration::from_secs(43_200), &["get-credentials".to_owned()][..])
        );
        assert!(named(YAML, "ghcr.io").unwrap().is_empty());
    }

    #[test]
    fn the_configuration_may_be_json_and_nonsense_is_refused_without_being_shown() {
        let json = r#"{"kind":"CredentialProviderConfig","providers":[{"name":"p","matchImages":["r.io"],
            "apiVersion":"credentialprovider.kubelet.k8s.io/v1","defaultCacheDuration":"5m"}]}"#;
        assert_eq!(named(json, "r.io").unwrap().len(), 1);
        for wrong in [
            json.replace("\"p\"", "\"../hunter2\"").replace("hunter2", "x"),
            json.replace("5m", "soon"),
            json.replace("kubelet.k8s.io/v1", "kubelet.k8s.io/v9"),
            json.replace("CredentialProviderConfig", "Pod"),
            json.replace("\"p\"", "[\"hunter2\"]"),
            "kind: [hunter2".to_owned(),
        ] {
            let error = named(&wrong, "r.io").unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn an_answer_says_how_long_and_for_what_it_holds() {
        let wanted = Wanted { host: "1.dkr.ecr.eu-west-1.amazonaws.com", repository: "llm" };
        let answer = r#"{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1",
            "cacheKeyType":"Registry","cacheDuration":"6h0m0s",
            "auth":{"*.dkr.ecr.*.amazonaws.com":{"username":"AWS","password":"pw"}}}"#;
        let read = one().read(answer.as_bytes(), wanted).unwrap();
        assert_eq!(read.life, Duration::from_secs(6 * 3600));
        assert_eq!(read.key, one().cache_keys(Wanted { repository: "other", ..wanted })[1]);
        assert_eq!(read.auths.find(wanted).unwrap().user, "AWS");
        let nothing = answer.replace("\"cacheDuration\":\"6h0m0s\",", "").replace("pw", "");
        let read = one().read(nothing.as_bytes(), wanted).unwrap();
        assert_eq!((read.life, read.auths.find(wanted)), (Duration::from_secs(43_200), None));
        assert!(one().read(answer.replace("Registry", "Moon").as_bytes(), wanted).is_err());
    }

    #[test]
    fn durations_are_read_as_go_writes_them() {
        let seconds = |text| go_duration(text).map(|life| life.as_secs_f64());
        assert_eq!(seconds("12h0m0s"), Some(43_200.0));
        assert_eq!(seconds("1.5h"), Some(5400.0));
        assert_eq!((seconds("0s"), seconds("0")), (Some(0.0), Some(0.0)));
        assert_eq!(seconds("300ms"), Some(0.3));
        for wrong in ["", "5", "-5m", "5 m", "h", "1e9h", "5x", "99999999999999999999h"] {
            assert_eq!(go_duration(wrong), None, "{wrong}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_duration_of_any_form_is_one_or_none(text in "([0-9.]{0,20}(h|m|s|ms|us|µs|ns|-| )?){0,4}") {
            let _ = go_duration(&text);
        }

        #[test]
        fn a_file_of_any_form_is_one_or_none(text in "[\\[{\"a:}\\], uths]{0,60}") {
            let _ = file::File::parse(text.as_bytes());
        }
    }
}
