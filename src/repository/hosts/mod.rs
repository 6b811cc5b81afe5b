//! Which hosts are asked for a registry, in which order and how: the folders that containerd reads.
//!
//! A folder a registry, with a `hosts.toml` or with certificates alone (containerd's docs/hosts.md, "Registry
//! Configuration"). Only read here, once, when a repository is connected to; nothing is asked.

mod file;

use std::path::{Path, PathBuf};

use super::Config;
use super::credentials::is_hub;
use super::registry::Endpoint;
use crate::error::{Error, Kind, Result};

/// The file of a registry's folder.
const FILE: &str = "hosts.toml";

/// A host that is asked for a registry.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) endpoint: Endpoint,
    pub(super) can: Can,
}

/// What a host is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Can {
    /// Gives what is asked for by digest.
    pub(super) pull: bool,
    /// Is believed which digest a tag has.
    pub(super) resolve: bool,
    /// Takes what is pushed.
    pub(super) push: bool,
}

impl Can {
    const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// The hosts for `registry`, in the order in which they are asked; the last one is the registry itself, or what its
/// folder names in its place.
///
/// # Errors
/// `Invalid` where what is configured cannot be read or meant, naming file and key.
pub(super) fn of(registry: &str, config: &Config) -> Result<Vec<Host>> {
    let own = Endpoint::of(registry, config.plain_http)?;
    match config.hosts_dir.as_deref().and_then(|root| folder(root, registry)) {
        Some(folder) => named(registry, &folder, own).map_err(Error::of_machine),
        None => Ok(vec![Host { endpoint: own, can: Can::ALL }]),
    }
}

/// Those that a registry's folder names.
fn named(registry: &str, folder: &Path, own: Endpoint) -> Result<Vec<Host>> {
    let path = folder.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.trim().is_empty() => {
            let hosts = file::hosts(&text, folder, registry, own);
            let hosts = hosts.map_err(|why| {
                Error::new(Kind::Invalid, format!("cannot use {}: {why}", path.display()))
                    .hint("docs/deploy.md shows what it may say")
            })?;
            hosts.iter().filter(|host| !host.endpoint.trust.is_checked()).for_each(|host| {
                tracing::warn!(file = %path.display(), "the certificate of {} is NOT CHECKED (skip_verify): whoever is on the way may read and change what is asked of it", host.endpoint.host);
            });
            Ok(hosts)
        }
        Ok(_) => certificates(folder, own),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => certificates(folder, own),
        Err(error) => {
            Err(Error::from_source(Kind::Invalid, format!("cannot read {}", path.display()), error))
        }
    }
}

/// The registry itself, reached as its folder says where that names it, and by its own name alone where it does not.
///
/// # Errors
/// As [`of`].
pub(super) fn origin(registry: &str, config: &Config) -> Result<Host> {
    let named = of(registry, config)?.into_iter().map(|one| one.endpoint).find(|one| one.host == registry);
    let endpoint = named.map_or_else(|| Endpoint::of(registry, config.plain_http), Ok)?;
    Ok(Host { endpoint, can: Can::ALL })
}

/// The folder that counts for a registry: its own, in one of two spellings, else the one for all.
fn folder(root: &Path, registry: &str) -> Option<PathBuf> {
    let registry = if is_hub(registry) { "docker.io" } else { registry };
    let with_port =
        registry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
    let spelled = with_port.map(|(host, port)| format!("{host}_{port}_"));
    let names = spelled.into_iter().chain([registry.to_owned(), "_default".to_owned()]);
    names.map(|name| root.join(name)).find(|folder| folder.is_dir())
}

/// The registry itself, with the certificates that lie in its folder as Docker names them: `NAME.crt` is a root's,
/// `NAME.cert` and `NAME.key` are ours.
fn certificates(folder: &Path, mut own: Endpoint) -> Result<Vec<Host>> {
    let unread =
        |error| Error::from_source(Kind::Invalid, format!("cannot read {}", folder.display()), error);
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(unread)? {
        paths.push(entry.map_err(unread)?.path());
    }
    // The order of a folder is nobody's choice.
    paths.sort();
    let with = |ending: &str| {
        let ending = ending.to_owned();
        paths.iter().filter(move |path| path.extension().is_some_and(|own| own == &*ending))
    };
    own.trust.roots = with("crt").cloned().collect();
    own.trust.shown = with("cert").next().map(|path| (path.clone(), Some(path.with_extension("key"))));
    Ok(vec![Host { endpoint: own, can: Can::ALL }])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(root: &Path) -> Config {
        Config { hosts_dir: Some(root.to_owned()), ..Config::default() }
    }

    fn roots(registry: &str, root: &Path) -> Vec<String> {
        of(registry, &config(root)).unwrap().iter().map(|host| host.endpoint.root.to_string()).collect()
    }

    #[test]
    fn the_folder_of_a_registry_is_found_in_each_spelling_and_the_one_for_all_last() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, mirror: &str| {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
            let text = format!("[host.\"http://{mirror}\"]\n");
            std::fs::write(root.path().join(name).join(FILE), text).unwrap();
        };
        assert_eq!(roots("r.io:5000", root.path()), ["https://r.io:5000/v2/"]);
        write("_default", "all");
        assert_eq!(roots("r.io:5000", root.path()), ["http://all/v2/", "https://r.io:5000/v2/"]);
        write("r.io:5000", "colon");
        assert_eq!(roots("r.io:5000", root.path())[0], "http://colon/v2/");
        write("r.io_5000_", "underscore");
        assert_eq!(roots("r.io:5000", root.path())[0], "http://underscore/v2/");
        assert_eq!(roots("r.io", root.path())[0], "http://all/v2/");
        write("docker.io", "hub");
        let hub = of("docker.io", &config(root.path())).unwrap();
        assert_eq!(hub[0].endpoint.namespace.as_deref(), Some("docker.io"));
        assert_eq!(hub[1].endpoint.root.as_str(), "https://registry-1.docker.io/v2/");
    }

    #[test]
    fn what_is_wrong_with_a_registrys_folder_is_for_its_machine_and_what_is_wrong_with_its_name_for_who_said_it()
     {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("r.io")).unwrap();
        std::fs::write(root.path().join("r.io").join(FILE), "[").unwrap();
        let error = |registry: &str| of(registry, &config(root.path())).unwrap_err();
        assert!(error("r.io").is_of_machine(), "{}", error("r.io"));
        assert!(!error("r.io:x").is_of_machine(), "{}", error("r.io:x"));
    }

    #[test]
    fn the_registry_itself_is_reached_as_its_folder_says_and_never_by_a_mirror() {
        let root = tempfile::tempdir().unwrap();
        let own = |text: &str| {
            std::fs::create_dir_all(root.path().join("r.io")).unwrap();
            std::fs::write(root.path().join("r.io").join(FILE), text).unwrap();
            origin("r.io", &config(root.path())).unwrap().endpoint
        };
        let endpoint = own("ca = \"/ca.pem\"\n[host.\"http://mirror\"]\n");
        assert_eq!(endpoint.root.as_str(), "https://r.io/v2/");
        assert_eq!(endpoint.trust.roots, [Path::new("/ca.pem")]);
        assert_eq!(own("server = \"http://mirror\"\n").root.as_str(), "https://r.io/v2/");
    }

    #[test]
    fn a_folder_of_certificates_alone_is_read_as_docker_reads_it() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("r.io");
        std::fs::create_dir(&folder).unwrap();
        for name in ["ca.crt", "me.cert", "me.key", "README"] {
            std::fs::write(folder.join(name), "").unwrap();
        }
        let hosts = of("r.io", &config(root.path())).unwrap();
        assert_eq!(hosts.len(), 1);
        let trust = &hosts[0].endpoint.trust;
        assert_eq!(trust.roots, [folder.join("ca.crt")]);
        assert_eq!(trust.shown, Some((folder.join("me.cert"), Some(folder.join("me.key")))));
    }
}
