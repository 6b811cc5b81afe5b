//! Roof: each floor's settings put together, from defaults, a file, the environment and flags, checked once.
//!
//! [`KEYS`] is the one table of what can be set; `docs/configuration.md` is held to it by a test. The process's
//! environment is looked at in [`Environment::of_process`] and nowhere else. Used by the commands only.

mod environment;
mod values;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::environment::Environment;
use self::values::{
    duration, existing_folder, folder, integrity, modes, mounts, number, passthrough, plain_http, proof,
    read_ahead, read_around, redirect_to, requests, size, switch, traces, umask, view, warm,
};
use crate::content;
use crate::content::store::StoreConfig;
use crate::error::{Error, Kind, Result, StorageContext};
use crate::index::Trust;
use crate::metrics::Metrics;
use crate::mount;
use crate::oci::exclude::Exclude;
use crate::repository::credentials::{Given, Providers, Sources};
use crate::repository::{self, Exceptions, Proxy};
use crate::serve::listen::{name, socket};
use crate::serve::snapshots::DiffIds;
use crate::serve::{Listening, StateConfig};

/// Everything that can be set, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is kept on disk.
    pub store: StoreConfig,
    /// How a repository is asked.
    pub repository: repository::Config,
    /// How bytes are loaded and verified.
    pub content: content::Config,
    /// How a mount looks.
    pub mount: mount::Options,
    /// Where running mounts are noted.
    pub state: StateConfig,
    /// Where `weightfs serve` listens.
    pub serve: Listening,
    /// What is logged, as a filter of `tracing`; `None`: warnings, and in the log of a mount also what it does.
    pub log: Option<String>,
}

/// One thing that can be set.
#[derive(Debug)]
pub struct Key {
    /// Its name in the configuration file: `TABLE.NAME`.
    pub name: &'static str,
    /// The variable.
    pub variable: &'static str,
    /// The flag, or none.
    pub flag: Option<&'static str>,
    /// The default, for people.
    pub default: &'static str,
    /// The form of a value, with its unit.
    pub form: &'static str,
    /// What it sets.
    pub help: &'static str,
    set: fn(&mut Settings, &str) -> Result<(), String>,
}

impl Key {
    /// Whether it says something of a mount, and not of where mounts are noted and asked for.
    fn is_of_a_mount(&self) -> bool {
        !["state.", "serve.", "log."].iter().any(|table| self.name.starts_with(table))
    }

    /// The value with the paths in it made absolute.
    fn absolute(&self, text: &str) -> Result<String> {
        let path = |text: &str| {
            folder(text).map(|path| path.display().to_string()).map_err(|why| wrong(self.name, &why))
        };
        match self.form {
            "files or folders, with `:` between them" => {
                text.split(':').map(path).collect::<Result<Vec<_>>>().map(|paths| paths.join(":"))
            }
            form if form.starts_with("file") || form.starts_with("folder") => path(text),
            _ => Ok(text.to_owned()),
        }
    }
}

fn key(name: &str) -> Result<&'static Key> {
    KEYS.iter().find(|key| key.name == name).ok_or_else(|| wrong(name, "there is no such key"))
}

macro_rules! keys {
    ($($name:literal, $variable:literal, $flag:expr, $default:literal, $form:literal, $help:literal, $set:expr;)*) => {
        /// All that can be set, in the order of the documentation.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name, variable: $variable, flag: $flag, default: $default, form: $form, help: $help, set: $set,
        },)*];
    };
}

keys! {
    "store.folder", "WEIGHTFS_STORE", Some("--store"),
    "`$XDG_CACHE_HOME/weightfs`; root: `/var/cache/weightfs`", "folder", "where fetched bytes are kept",
    |all, text| folder(text).map(|value| all.store.folder = value);
    "store.size", "WEIGHTFS_STORE_SIZE", Some("--store-size"), "90 % of what its file system has", "size, `50GiB`",
    "how much is kept; what was not used for longest goes first",
    |all, text| size(text, 1).map(|value| all.store.size = Some(value));
    "registry.plain_http", "WEIGHTFS_PLAIN_HTTP", Some("--plain-http"), "`auto`: one on this machine", "`auto`, `true` or `false`",
    "which registries are asked over HTTP, without TLS: those on this machine, all, or none",
    |all, text| plain_http(text).map(|value| all.repository.plain_http = value);
    "registry.hosts_dir", "WEIGHTFS_HOSTS_DIR", Some("--hosts-dir"), "`/etc/containerd/certs.d`", "folder",
    "a folder a registry with a `hosts.toml`: its mirrors, certificates and headers, as containerd has them",
    |all, text| existing_folder(text).map(|value| all.repository.hosts_dir = Some(value));
    "registry.ca_file", "WEIGHTFS_CA_FILE", Some("--ca-file"), "none", "file, PEM",
    "certificates of further CAs that are trusted, beside the machine's own",
    |all, text| folder(text).map(|value| all.repository.ca_file = Some(value));
    "registry.proxy", "WEIGHTFS_PROXY", Some("--proxy"), "`$HTTPS_PROXY` and `$HTTP_PROXY`, else `$ALL_PROXY`",
    "URL: `http://`, `https://`, `socks5://` or `socks5h://`", "through whom registries are asked",
    |all, text| text.parse::<Proxy>().map(|proxy| {
        (all.repository.proxies.tls, all.repository.proxies.plain) = (Some(proxy.clone()), Some(proxy));
    });
    "registry.no_proxy", "WEIGHTFS_NO_PROXY", None, "`$NO_PROXY`", "list: `corp.example,10.0.0.0/8,r.io:5000`",
    "who is asked without a proxy; this machine always is, unless `<-loopback>` is on the list",
    |all, text| { all.repository.proxies.except = Exceptions::read(text); Ok(()) };
    "registry.auth", "WEIGHTFS_REGISTRY_AUTH", None, "`$DOCKER_AUTH_CONFIG`",
    "`HOST=USER:PASSWORD`, or JSON with `auths`", "credentials in so many words, for the registries that they name",
    |all, text| Given::parse(text).map(|value| all.repository.credentials.given = Some(value));
    "registry.auth_file", "WEIGHTFS_AUTH_FILE", Some("--auth-file"), "`$REGISTRY_AUTH_FILE`", "file",
    "an `auth.json` or `config.json` for credentials, before all others; `login` writes to it",
    |all, text| folder(text).map(|value| all.repository.credentials.auth_file = Some(value));
    "registry.pull_secrets", "WEIGHTFS_PULL_SECRETS", None, "none", "files or folders, with `:` between them",
    "Kubernetes pull secrets, as `.dockerconfigjson` or `.dockercfg`",
    |all, text| text.split(':').map(folder).collect::<Result<_, _>>().map(|value| {
        all.repository.credentials.pull_secrets = value;
    });
    "registry.docker_config", "WEIGHTFS_DOCKER_CONFIG", None, "`$DOCKER_CONFIG`, else `~/.docker`",
    "folder or file", "Docker's `config.json`, for credentials",
    |all, text| folder(text).map(|value| all.repository.credentials.docker_config = Some(value));
    "registry.credential_providers", "WEIGHTFS_CREDENTIAL_PROVIDERS", None, "none", "file",
    "a `CredentialProviderConfig` as the kubelet reads it",
    |all, text| folder(text).map(|value| providers(all).config = value);
    "registry.credential_provider_folder", "WEIGHTFS_CREDENTIAL_PROVIDER_FOLDER", None,
    "that of the `CredentialProviderConfig`", "folder", "where the programs are that it names",
    |all, text| folder(text).map(|value| providers(all).folder = Some(value));
    "registry.helper_folder", "WEIGHTFS_HELPER_FOLDER", None, "none", "folder",
    "where `docker-credential-…` programs are looked for before `$PATH`",
    |all, text| folder(text).map(|value| all.repository.credentials.helper_folder = Some(value));
    "registry.helper_limit", "WEIGHTFS_HELPER_LIMIT", None, "`20s`", "duration",
    "how long a credential helper or provider may take",
    |all, text| duration(text).map(|value| all.repository.credentials.program_limit = value);
    "registry.setup_deadline", "WEIGHTFS_SETUP_DEADLINE", None, "`25s`", "duration",
    "how long a manifest may take in all",
    |all, text| duration(text).map(|value| all.repository.setup_deadline = value);
    "registry.connect_timeout", "WEIGHTFS_CONNECT_TIMEOUT", None, "`5s`", "duration",
    "how long one attempt to connect may take, name and TLS included",
    |all, text| duration(text).map(|value| all.repository.connect_timeout = value);
    "registry.stall", "WEIGHTFS_STALL", None, "`15s`", "duration",
    "how long an answer may go without a byte before it is asked for again",
    |all, text| duration(text).map(|value| all.repository.stall = value);
    "registry.requests", "WEIGHTFS_REQUESTS", None, "`16`", "number, `1` to `64`",
    "how many requests read ahead beside one another at most; how many is measured, from 4 on",
    |all, text| requests(text).map(|value| all.repository.requests = value);
    "registry.rate", "WEIGHTFS_RATE", None, "as fast as it comes", "size, at least `64KiB`",
    "how many bytes are read from a registry in a second; what somebody waits for goes first, in layers that are not compressed",
    |all, text| size(text, 64 << 10).map(|value| all.repository.rate = Some(value));
    "registry.redirect_to", "WEIGHTFS_REDIRECT_TO", None, "none",
    "hosts, `.domains` and networks as `10.0.0.0/8`, with commas between",
    "where registries may lead although it is a private, link-local or loopback address and they are elsewhere",
    |all, text| redirect_to(text).map(|value| all.repository.redirect_to = value);
    "registry.parents", "WEIGHTFS_PARENTS", None, "none",
    "hosts as in references and `.domains`, with commas between",
    "other registries than its own that a ModelKit may be built upon: they are asked with your credentials for them",
    |all, text| text.parse().map(|value| all.repository.parents = value);
    "registry.only_pull_secret", "WEIGHTFS_ONLY_PULL_SECRET", None, "none", "file",
    "a Kubernetes pull secret that is the only place where credentials are looked for",
    |all, text| folder(text).map(|value| {
        let program_limit = all.repository.credentials.program_limit;
        all.repository.credentials = Sources { pull_secrets: vec![value], program_limit, ..Sources::default() };
    });
    "content.integrity", "WEIGHTFS_INTEGRITY", Some("--integrity"), "`auto`", "`auto`, `deferred` or `strict`",
    "what is asked of bytes before they are served, where the artifact does not bring their digests",
    |all, text| integrity(text).map(|value| all.content.integrity = value);
    "content.trust_index", "WEIGHTFS_TRUST_INDEX", Some("--trust-index"), "`false`", "`true` or `false`",
    "believe an index that somebody attached to the artifact, where its compressed layers have none of their own",
    |all, text| switch(text).map(|on| {
        all.content.trust_index = if on { Trust::Always } else { Trust::Never };
    });
    "content.proof", "WEIGHTFS_PROOF", None, "`index`", "`index` or `layer`",
    "what proves layers of which the artifact brings the digests of chunks: these, or each layer's own digest too, once all of it is here; compressed ones these alone",
    |all, text| proof(text).map(|value| all.content.proof = value);
    "content.platform", "WEIGHTFS_PLATFORM", Some("--platform"), "this machine's, or the only one",
    "`OS/ARCHITECTURE` or `OS/ARCHITECTURE/VARIANT`, as `linux/arm64`",
    "which manifest is meant where a reference leads to a list with one for each platform, as container images have",
    |all, text| text.parse().map(|value| all.content.platform = Some(value)).map_err(|error: Error| error.to_string());
    "content.layers", "WEIGHTFS_LAYERS", None, "all", "`N` or `N-M`",
    "which layers of a container image are shown, counted from its lowest one",
    |all, text| text.parse().map(|value| all.content.layers = Some(value));
    "content.exclude", "WEIGHTFS_EXCLUDE", None, "none", "JSON array of patterns as `.gitignore` has them",
    "files that are left out, by their names without folders",
    |all, text| Exclude::parse(text).map(|value| all.content.exclude = value);
    "content.view", "WEIGHTFS_VIEW", None, "`files`", "`files` or `blobs`",
    "what a mount shows: the files of the model, or the blobs that it is made of, as `ALGORITHM/HEX` of their digests",
    |all, text| view(text).map(|value| all.content.view = value);
    "content.warm", "WEIGHTFS_WARM", Some("--warm"), "`auto`", "`none`, `auto` or `all`",
    "what is loaded before it is asked for",
    |all, text| warm(text).map(|value| all.content.warm = value);
    "content.read_deadline", "WEIGHTFS_READ_DEADLINE", Some("--read-deadline"), "`60s`", "duration",
    "how long a read may go without progress before it fails",
    |all, text| duration(text).map(|value| {
        all.content.read_deadline = value;
        all.repository.read_deadline = value;
    });
    "content.memory", "WEIGHTFS_MEMORY", None, "`128MiB`", "size, at least `4MiB`",
    "how many verified bytes may wait in memory for their readers at most, more than `32MiB` only while more requests bring more, and half as \
     many for a disk that is slower than the network; half as many stored bytes of compressed layers for neighbours, `16MiB` at most",
    |all, text| size(text, 4 << 20).map(|value| {
        all.content.memory = value;
        all.repository.window = value;
    });
    "mount.allow_other", "WEIGHTFS_ALLOW_OTHER", Some("--allow-other"), "`false`", "`true` or `false`",
    "let other users read the mount",
    |all, text| switch(text).map(|value| all.mount.allow_other = value);
    "mount.uid", "WEIGHTFS_UID", Some("--uid"), "the mounting user", "number", "the owner shown",
    |all, text| number(text).map(|value| all.mount.uid = Some(value));
    "mount.gid", "WEIGHTFS_GID", Some("--gid"), "the mounting user's group", "number", "the group shown",
    |all, text| number(text).map(|value| all.mount.gid = Some(value));
    "mount.umask", "WEIGHTFS_UMASK", Some("--umask"), "`000`", "octal number up to `777`",
    "permissions taken from `0444` of files and `0555` of folders",
    |all, text| umask(text).map(|value| all.mount.umask = value);
    "mount.modes", "WEIGHTFS_MODES", None, "`read`", "`read` or `image`",
    "which permissions are shown: those to read, or the ones that the model's writer recorded, as for a container's root",
    |all, text| modes(text).map(|value| all.mount.modes = value);
    "mount.read_ahead", "WEIGHTFS_READ_AHEAD", Some("--read-ahead"), "`1MiB`", "size, at most `1GiB`",
    "how far the kernel reads ahead in a file (only root can set it)",
    |all, text| read_ahead(text).map(|value| all.mount.read_ahead = value);
    "mount.read_around", "WEIGHTFS_READ_AROUND", Some("--read-around"), "`auto`", "`auto` or `always`",
    "whether what the kernel reads around a page fault is fetched also where a file is read at random",
    |all, text| read_around(text).map(|value| all.mount.read_around = value);
    "mount.passthrough", "WEIGHTFS_PASSTHROUGH", Some("--passthrough"), "`auto`: where the kernel can", "`auto`, `swap` or `off`",
    "let the kernel serve complete, proved files by itself, from the store (Linux 6.9, root); `swap`: also such that became complete while they were open",
    |all, text| passthrough(text).map(|value| all.mount.passthrough = value);
    "state.folder", "WEIGHTFS_STATE", Some("--state"),
    "`$XDG_RUNTIME_DIR/weightfs` and `$XDG_STATE_HOME/weightfs`; root: `/run/weightfs` and `/var/log/weightfs`",
    "folder", "where running mounts are noted, with their logs in `log` below it",
    |all, text| folder(text).map(|live| all.state = StateConfig { logs: live.join("log"), live });
    "serve.control", "WEIGHTFS_CONTROL", Some("--control"), "`control.sock` in the state folder", "socket's path, or `unix:///PATH`",
    "where `weightfs serve` is asked by `mount`, `unmount` and `list`",
    |all, text| socket(text).map(|value| all.serve.control = Some(value));
    "serve.metrics", "WEIGHTFS_METRICS", Some("--metrics"), "none", "`127.0.0.1:PORT` or `unix:///PATH`",
    "where `weightfs serve` shows `/metrics`, `/healthz`, `/readyz` and `/mounts`",
    |all, text| text.parse().map(|value| all.serve.metrics = Some(value));
    "serve.csi", "WEIGHTFS_CSI", Some("--csi"), "none", "socket's path, or `unix:///PATH`",
    "where `weightfs serve` answers the kubelet (CSI)",
    |all, text| socket(text).map(|value| all.serve.csi = Some(value));
    "serve.node_id", "WEIGHTFS_NODE_ID", Some("--node-id"), "none", "name", "what this node is called there",
    |all, text| name(text, 192).map(|value| all.serve.node_id = Some(value));
    "serve.csi_driver", "WEIGHTFS_CSI_DRIVER", Some("--csi-driver"), "`model.csi.modelpack.org`", "name",
    "what the driver is called there, and what the attributes of its volumes begin with",
    |all, text| name(text, 63).map(|value| all.serve.csi_driver = value);
    "serve.artifact_store", "WEIGHTFS_ARTIFACT_STORE", Some("--artifact-store"), "none", "folder",
    "an additional artifact store for CRI-O, in `artifacts` below it, of what `weightfs artifact add` registers",
    |all, text| folder(text).map(|value| all.serve.artifact_store = Some(value));
    "serve.snapshotter", "WEIGHTFS_SNAPSHOTTER", Some("--snapshotter"), "none", "socket's path, or `unix:///PATH`",
    "where `weightfs serve` answers containerd as a snapshotter",
    |all, text| socket(text).map(|value| all.serve.snapshotter = Some(value));
    "serve.snapshots", "WEIGHTFS_SNAPSHOTS", Some("--snapshots"), "`/var/lib/weightfs/snapshots`", "folder",
    "where containerd's snapshots are kept; it must last as long as containerd's own folder",
    |all, text| folder(text).map(|value| all.serve.snapshots = value);
    "serve.trust_diff_ids", "WEIGHTFS_TRUST_DIFF_IDS", None, "`false`", "`true` or `false`",
    "believe an image what its compressed layers hold, so that containerd need not download them",
    |all, text| switch(text).map(|on| all.serve.diff_ids = if on { DiffIds::Trusted } else { DiffIds::Proved });
    "serve.max_mounts", "WEIGHTFS_MAX_MOUNTS", None, "`256`", "number, `1` to `65536`",
    "how many mounts `weightfs serve` may have, each a process; further ones are refused",
    |all, text| mounts(text).map(|value| all.serve.max_mounts = value);
    "serve.max_models", "WEIGHTFS_MAX_MODELS", None, "`32`", "number, `1` to `65536`",
    "how many models a pod may have at once in a dynamic volume; further ones are refused",
    |all, text| mounts(text).map(|value| all.serve.max_models = value);
    "serve.traces", "WEIGHTFS_TRACES", None, "`$OTEL_EXPORTER_OTLP_ENDPOINT`", "URL: `http://HOST:PORT`",
    "where `weightfs serve` and its mounts send traces (OpenTelemetry, gRPC), if the program was built with the feature `otel`",
    |all, text| traces(text).map(|value| all.serve.traces = Some(value));
    "log.filter", "WEIGHTFS_LOG", Some("-v"), "`warn`; the log of a mount: `warn,weightfs=info`",
    "`error` to `trace`, or a list as `warn,weightfs=debug`", "what is logged",
    |all, text| { all.log = Some(text.to_owned()); Ok(()) };
}

/// What flags set: names of [`KEYS`] with their values.
pub type Flags = Vec<(&'static str, String)>;

impl Settings {
    /// The defaults for this environment.
    #[must_use]
    pub fn defaults(environment: &Environment) -> Self {
        let metrics: Arc<Metrics> = Arc::default();
        Self {
            store: StoreConfig { folder: store_folder(environment), size: None },
            repository: repository::Config {
                credentials: sources(environment),
                hosts_dir: Some("/etc/containerd/certs.d".into()),
                metrics: Arc::clone(&metrics),
                ..repository::Config::default()
            },
            content: content::Config { metrics, ..content::Config::default() },
            mount: mount::Options::default(),
            state: state_folders(environment),
            serve: Listening::default(),
            log: None,
        }
    }

    /// The defaults, overruled by the configuration file, that by `WEIGHTFS_…` variables, those by `flags`.
    ///
    /// `file` must exist where it is given; else the user's own file, and where there is none the machine's, is
    /// read if it is there.
    ///
    /// # Errors
    /// `Invalid` where a value can't be meant or a key of the file is unknown, naming where it stands; `Storage` or
    /// `NotFound` where the file can't be read.
    pub fn load(environment: &Environment, file: Option<&Path>, flags: &Flags) -> Result<Self> {
        let mut settings = Self::defaults(environment);
        settings.repository.proxies = environment.proxies()?;
        // A variable of others: it counts like a default, and is looked at here since it can be wrong.
        if let Some(text) = environment.get("DOCKER_AUTH_CONFIG") {
            let given =
                Given::parse(&text.to_string_lossy()).map_err(|why| wrong("DOCKER_AUTH_CONFIG", &why))?;
            settings.repository.credentials.given = Some(given);
        }
        // Likewise, where it can be followed.
        if let Some(text) = environment.get("OTEL_EXPORTER_OTLP_ENDPOINT").filter(|_| cfg!(feature = "otel"))
        {
            let url = traces(&text.to_string_lossy());
            settings.serve.traces = Some(url.map_err(|why| wrong("OTEL_EXPORTER_OTLP_ENDPOINT", &why))?);
        }
        if let Some((path, text)) = read_file(environment, file)? {
            settings.apply_file(&path, &text)?;
        }
        for key in KEYS {
            let Some(value) = environment.get(key.variable) else { continue };
            let text = value.to_str().ok_or_else(|| wrong(key.variable, "it is no UTF-8"))?;
            (key.set)(&mut settings, text).map_err(|why| wrong(key.variable, &why))?;
        }
        for (name, value) in flags {
            let key = key(name)?;
            refuse_secret(key, value)?;
            (key.set)(&mut settings, value).map_err(|why| wrong(key.flag.unwrap_or(name), &why))?;
        }
        Ok(settings)
    }

    fn apply_file(&mut self, path: &Path, text: &str) -> Result<()> {
        let file = path.display();
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
            // The library's own words show the line, which may have a password.
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = before.matches('\n').count().saturating_add(1);
            let doing = format!("cannot read {file}: no valid TOML at line {line}: {}", error.message());
            Error::new(Kind::Invalid, doing)
        })?;
        for (section, values) in &table {
            let toml::Value::Table(values) = values else {
                return Err(wrong(&format!("{section} in {file}"), "there is no such table"));
            };
            for (name, value) in values {
                let name = format!("{section}.{name}");
                self.apply(&name, value).map_err(|why| wrong(&format!("{name} in {file}"), &why))?;
            }
        }
        Ok(())
    }

    fn apply(&mut self, name: &str, value: &toml::Value) -> Result<(), String> {
        let Some(key) = KEYS.iter().find(|key| key.name == name) else {
            return Err("there is no such key".to_owned());
        };
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(on) => on.to_string(),
            // Not shown itself: it may be a secret that was written in the wrong form.
            other => return Err(format!("{} is no text, number, true or false", other.type_str())),
        };
        (key.set)(self, &text)
    }
}

fn wrong(place: &str, why: &str) -> Error {
    Error::new(Kind::Invalid, format!("{place}: {why}")).hint("docs/configuration.md lists what can be set")
}

fn providers(all: &mut Settings) -> &mut Providers {
    all.repository.credentials.providers.get_or_insert_default()
}

/// Where others keep credentials: Docker, and containers' tools (containers-auth.json(5)).
fn sources(environment: &Environment) -> Sources {
    let home = environment.path("HOME");
    let docker = || home.as_ref().map(|home| home.join(".docker"));
    let runtime = || environment.root.then(|| PathBuf::from("/run/containers/0"));
    let runtime = environment.path("XDG_RUNTIME_DIR").map(|path| path.join("containers")).or_else(runtime);
    let own = environment.path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));
    let own = own.map(|path| path.join("containers"));
    Sources {
        auth_file: environment.path("REGISTRY_AUTH_FILE"),
        docker_config: environment.path("DOCKER_CONFIG").or_else(docker),
        containers: [runtime, own].into_iter().flatten().map(|folder| folder.join("auth.json")).collect(),
        ..Sources::default()
    }
}

/// Refuses a password among the words of a command, which every user of the machine can read.
fn refuse_secret(key: &Key, value: &str) -> Result<()> {
    let secret = key.name == "registry.proxy" && value.parse().is_ok_and(|proxy: Proxy| proxy.has_password());
    if !secret {
        return Ok(());
    }
    let flag = key.flag.unwrap_or(key.name);
    Err(Error::new(Kind::Invalid, format!("{flag}: others can read a password there"))
        .hint(format!("put it into {}, or into the configuration file", key.variable)))
}

/// The file that counts, and its text: the one named, else the user's, else the machine's; `None` where there is none.
///
/// # Errors
/// `NotFound` where one is named that is not there, `Storage` where it can't be read.
pub fn read_file(environment: &Environment, named: Option<&Path>) -> Result<Option<(PathBuf, String)>> {
    let named = named.map(Path::to_owned).or_else(|| environment.get("WEIGHTFS_CONFIG").map(PathBuf::from));
    if let Some(path) = named {
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Error::new(Kind::NotFound, format!("no such configuration file: {}", path.display()))
            }
            _ => Error::from_source(Kind::Storage, format!("cannot read {}", path.display()), error),
        });
        return text.map(|text| Some((path, text)));
    }
    let own = environment.under_home("XDG_CONFIG_HOME", ".config").join("config.toml");
    for path in [own, "/etc/weightfs/config.toml".into()] {
        match std::fs::read_to_string(&path) {
            Err(error) if is_absent(&error) => {}
            read => {
                return read
                    .storage(|| format!("cannot read {}", path.display()))
                    .map(|text| Some((path, text)));
            }
        }
    }
    Ok(None)
}

fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn store_folder(environment: &Environment) -> PathBuf {
    match environment.root {
        true => environment.path("XDG_CACHE_HOME").unwrap_or_else(|| "/var/cache".into()).join("weightfs"),
        false => environment.under_home("XDG_CACHE_HOME", ".cache"),
    }
}

fn state_folders(environment: &Environment) -> StateConfig {
    if environment.root {
        return StateConfig { live: "/run/weightfs".into(), logs: "/var/log/weightfs".into() };
    }
    let logs = environment.under_home("XDG_STATE_HOME", ".local/state");
    let runtime = environment.path("XDG_RUNTIME_DIR").map(|path| path.join("weightfs"));
    // Not /tmp where there is no runtime folder: anybody could be there first.
    StateConfig { live: runtime.unwrap_or_else(|| logs.join("live")), logs }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
