//! What a person types to name an artifact: `HOST[:PORT]/REPO[:TAG][@DIGEST]` or `oci:FOLDER[:TAG]`.
//!
//! Only words: whether the place exists is asked by floor 1, which is given one of
//! these by whoever parsed the command line.

use std::fmt;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::digest::Digest;
use crate::error::{Error, Kind, Result};

/// A place and what is meant there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Where to ask.
    pub place: Place,
    /// The tag, if one was typed. `latest` is meant where neither tag nor digest was.
    pub tag: Option<String>,
    /// The digest, if one was typed; it wins over the tag.
    pub digest: Option<Digest>,
}

/// Where an artifact is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A repository of a registry.
    Registry {
        /// Host name or address, with a port where one was typed: `ghcr.io`, `127.0.0.1:5000`, `[::1]:5000`.
        host: String,
        /// The repository's path: `acme/llm`.
        repository: String,
    },
    /// An OCI image layout folder.
    Layout {
        /// The folder that has `oci-layout` and `index.json`.
        folder: PathBuf,
    },
}

/// Which manifest is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Which {
    /// Whatever a tag points to now.
    Tag(String),
    /// The one with this digest.
    Digest(Digest),
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Reference {
    /// Which manifest is meant: the digest where one was typed, else the tag, else the tag `latest`.
    #[must_use]
    pub fn which(&self) -> Which {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => Which::Digest(digest.clone()),
            (None, Some(tag)) => Which::Tag(tag.clone()),
            (None, None) => Which::Tag("latest".to_owned()),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// Parses `HOST[:PORT]/REPO[:TAG][@DIGEST]` or `oci:FOLDER[:TAG][@DIGEST]`.
    ///
    /// Names and tags follow the OCI distribution specification ("Pulling manifests"). The host is always
    /// typed: it has a dot or a port, is `localhost` or an IPv6 address in brackets. A folder whose last
    /// component has a colon needs a tag after it or a slash at its end.
    ///
    /// # Errors
    /// [`Kind::Invalid`], with the part that is wrong and the form that is right.
    fn from_str(text: &str) -> Result<Self> {
        match text.strip_prefix("oci:") {
            Some(rest) => layout(text, rest),
            None => registry(text),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.place.fmt(f)?;
        match (&self.tag, &self.place) {
            (Some(tag), _) => write!(f, ":{tag}")?,
            (None, Place::Layout { folder }) if ends_like_a_tag(folder) => f.write_str("/")?,
            (None, _) => {}
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl fmt::Display for Place {
    /// The reference without tag and digest.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry { host, repository } => write!(f, "{host}/{repository}"),
            Self::Layout { folder } => write!(f, "oci:{}", folder.display()),
        }
    }
}

/// Whether a folder without a tag, printed as it is, would be read as a folder with one.
fn ends_like_a_tag(folder: &Path) -> bool {
    let text = folder.as_os_str().to_string_lossy();
    text.rsplit('/').next().is_some_and(|last| last.contains([':', '@']))
}

fn invalid(text: &str, why: impl fmt::Display) -> Error {
    Error::new(Kind::Invalid, format!("not a reference: {text:?}: {why}"))
}

fn registry(text: &str) -> Result<Reference> {
    if text.contains("://") {
        return Err(invalid(text, "it has a scheme").hint("leave off everything up to and including '://'"));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(|error| invalid(text, error))?)),
        None => (text, None),
    };
    let (host, path) = name.split_once('/').ok_or_else(|| no_host(text))?;
    if !looks_like_a_host(host) {
        return Err(no_host(text));
    }
    if !is_host(host) {
        return Err(invalid(text, format!("{host:?} is not a host name with an optional port")));
    }
    let (repository, tag) = match path.split_once(':') {
        Some((repository, tag)) => (repository, Some(checked_tag(text, tag)?)),
        None => (path, None),
    };
    if !is_repository(repository) {
        let why = format!("the repository {repository:?} may have a-z, 0-9, and between them . _ - and /");
        return Err(invalid(text, why));
    }
    let place = Place::Registry { host: host.to_owned(), repository: repository.to_owned() };
    Ok(Reference { place, tag, digest })
}

fn no_host(text: &str) -> Error {
    let is_path = text.starts_with(['.', '/', '~']);
    let folder = if is_path { format!("oci:{text}") } else { "oci:FOLDER".to_owned() };
    invalid(text, "it names no registry").hint(format!(
        "write the full reference, as registry.example/team/model:tag, or {folder} for an image layout folder"
    ))
}

fn layout(text: &str, rest: &str) -> Result<Reference> {
    let (rest, digest) = match rest.rsplit_once('@') {
        Some((before, after)) if is_digest_like(after) => {
            (before, Some(after.parse().map_err(|error| invalid(text, error))?))
        }
        _ => (rest, None),
    };
    let (folder, tag) = match rest.rsplit_once(':') {
        Some((folder, tag)) if !tag.contains('/') => (folder, Some(checked_tag(text, tag)?)),
        _ => (rest, None),
    };
    if folder.is_empty() || folder.contains('\0') {
        return Err(invalid(text, "it names no folder").hint("write oci:FOLDER or oci:FOLDER:TAG"));
    }
    Ok(Reference { place: Place::Layout { folder: PathBuf::from(folder) }, tag, digest })
}

fn is_digest_like(text: &str) -> bool {
    !text.contains('/') && (text.starts_with("sha256:") || text.starts_with("sha512:"))
}

fn checked_tag(text: &str, tag: &str) -> Result<String> {
    let mut bytes = tag.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let rest = bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    if first && rest && tag.len() <= 128 {
        return Ok(tag.to_owned());
    }
    let why = format!(
        "the tag {tag:?} must be 1 to 128 letters, digits, '.', '_' or '-', not beginning with . or -"
    );
    Err(invalid(text, why))
}

fn looks_like_a_host(host: &str) -> bool {
    // `.` and `..` are folders.
    (host.contains(['.', ':']) && !matches!(host, "." | "..")) || host == "localhost"
}

fn is_host(host: &str) -> bool {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split_once(']').is_some_and(|(address, port)| {
            address.parse::<Ipv6Addr>().is_ok()
                && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
        });
    }
    match host.split_once(':') {
        Some((name, port)) => is_host_name(name) && is_port(port),
        None => is_host_name(host),
    }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_host_name(name: &str) -> bool {
    name.len() <= 253
        && name.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        })
}

fn is_repository(path: &str) -> bool {
    path.len() <= 255 && path.split('/').all(is_path_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, as the distribution specification has it.
fn is_path_component(component: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends_plain =
        component.bytes().next().is_some_and(plain) && component.bytes().last().is_some_and(plain);
    let allowed = component.bytes().all(|byte| plain(byte) || matches!(byte, b'.' | b'_' | b'-'));
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    ends_plain
        && allowed
        && separators
            .into_iter()
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn every_form_prints_as_it_was_typed() {
        let digest = format!("@sha256:{HEX}");
        for text in [
            "ghcr.io/acme/llm",
            "ghcr.io/acme/llm:8b",
            "127.0.0.1:5000/a:1.0",
            "localhost/a/b/c",
            "[::1]:5000/a:t",
            "[::1]/a",
            "r.example/a__b/c--d/e.f_g",
            "oci:/models/llm",
            "oci:/models/llm:8b",
            "oci:relative/x",
            "oci:/a:b/c",
            "oci:/a:b:c",
            "oci:/a:b/",
            "oci:/home/me@work/x:t",
        ] {
            assert_eq!(parse(text).to_string(), text);
            let pinned = format!("{text}{digest}");
            assert_eq!(parse(&pinned).to_string(), pinned);
            assert_eq!(parse(&pinned).which().to_string(), digest.trim_start_matches('@'));
        }
    }

    #[test]
    fn a_folder_may_have_colons_before_the_tag() {
        let reference = parse("oci:/a:b/c:d:tag");
        assert_eq!(reference.place, Place::Layout { folder: "/a:b/c:d".into() });
        assert_eq!(reference.tag.as_deref(), Some("tag"));
        assert_eq!(parse("oci:/a:b/").place, Place::Layout { folder: "/a:b/".into() });
    }

    #[test]
    fn latest_is_meant_where_neither_tag_nor_digest_was_typed() {
        assert_eq!(parse("ghcr.io/a").which(), Which::Tag("latest".into()));
        assert_eq!(parse("ghcr.io/a:b").which(), Which::Tag("b".into()));
    }

    #[test]
    fn a_short_name_is_told_to_name_its_registry() {
        for text in ["llama:8b", "acme/llm", "llama", "", "/a", "localhost"] {
            let error = text.parse::<Reference>().unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
            assert!(error.to_string().contains("write the full reference"), "{error}");
        }
    }

    #[test]
    fn a_folder_typed_as_a_path_is_told_how_a_folder_is_written() {
        for text in ["./layout:v1", "../models/llm", "/models/llm:v1", "~/llm:v1"] {
            let error = text.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(&format!("or oci:{text} for an image layout folder")), "{error}");
        }
    }

    #[test]
    fn what_the_grammar_does_not_allow_is_refused() {
        let long_tag = format!("r.io/a:{}", "t".repeat(129));
        let long_name = format!("r.io/{}", "a".repeat(256));
        for text in [
            "https://ghcr.io/a/b",
            "ghcr.io/",
            "ghcr.io/A",
            "ghcr.io/a//b",
            "ghcr.io/a/",
            "ghcr.io/../a",
            "ghcr.io/a___b",
            "ghcr.io/a..b",
            "ghcr.io/a-",
            "ghcr.io/a:",
            "ghcr.io/a:b:c",
            "ghcr.io/a:.b",
            "ghcr.io/a:b/c",
            "ghcr.io/a@sha256:12",
            "ghcr.io/a@",
            "ghcr.io:0/a",
            "ghcr.io:99999/a",
            "ghcr.io:/a",
            "ghcr.io:+5/a",
            "user@ghcr.io/a",
            "-x.io/a",
            "x..io/a",
            "[::1/a",
            "[zz]/a",
            "[::1]5/a",
            "ghcr.io/a?b",
            "ghcr.io/ü",
            "oci:",
            "oci::tag",
            "oci:/a:",
            "oci:/a@sha256:12",
            &long_tag,
            &long_name,
        ] {
            assert_eq!(text.parse::<Reference>().unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }
}
