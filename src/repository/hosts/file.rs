//! What a `hosts.toml` says. Text in, values out.
//!
//! It may hold secrets, as headers: no error shows a value. What is not known is warned about and left out, as newer
//! versions of containerd may know it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use toml::{Table, Value};
use url::Url;

use super::{Can, Host};
use crate::repository::registry::{Checks, Endpoint};

/// What goes wrong here, without the file's name.
type Result<T> = std::result::Result<T, String>;

/// The hosts in the order of the file, and at the end the server: the one it names, else the registry's `own`.
pub(super) fn hosts(text: &str, folder: &Path, registry: &str, own: Endpoint) -> Result<Vec<Host>> {
    let mut table: Table = text.parse().map_err(|error| malformed(text, &error))?;
    let tables = match table.remove("host") {
        None => Table::new(),
        Some(Value::Table(tables)) => tables,
        Some(_) => return Err("host must be tables, as [host.\"https://mirror.example\"]".to_owned()),
    };
    let mut hosts = Vec::new();
    for (url, said) in &tables {
        let Value::Table(said) = said else { return Err(format!("host.{url:?} must be a table")) };
        let section = Section { name: format!("host.{url:?}."), folder, said };
        hosts.push(section.host(section.endpoint(url, registry)?)?);
    }
    let server = match table.remove("server") {
        None => None,
        Some(Value::String(url)) if url.is_empty() => None,
        Some(Value::String(url)) => Some(url),
        Some(_) => return Err("server must be a text".to_owned()),
    };
    let section = Section { name: String::new(), folder, said: &table };
    let own = match server {
        Some(url) => section.endpoint(&url, registry)?,
        None => own,
    };
    hosts.push(section.host(own)?);
    Ok(hosts)
}

/// Where the text is no TOML. The library's own words would show the line.
fn malformed(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
    format!("no valid TOML at line {}: {}", before.matches('\n').count().saturating_add(1), error.message())
}

/// The settings of one host.
struct Section<'a> {
    /// What stands before a key's name in messages.
    name: String,
    folder: &'a Path,
    said: &'a Table,
}

impl Section<'_> {
    /// The host of `url`, for which `https://` is meant where it has no scheme.
    fn endpoint(&self, url: &str, registry: &str) -> Result<Endpoint> {
        let with_scheme = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
        let bad = |why: &str| format!("{} is no address of a registry: {why}", shown(url));
        let mut root = Url::parse(&with_scheme).map_err(|error| bad(&error.to_string()))?;
        if !matches!(root.scheme(), "http" | "https") {
            return Err(bad("it must begin with https:// or http://"));
        }
        if !root.username().is_empty() || root.password().is_some() {
            return Err(bad("credentials do not belong there; run 'weightfs login'"));
        }
        if root.query().is_some() || root.fragment().is_some() {
            return Err(bad("it must end with its path"));
        }
        let path = root.path().trim_end_matches('/').to_owned();
        let version = if path.ends_with("/v2") || self.switch("override_path")? { "" } else { "/v2" };
        root.set_path(&format!("{path}{version}/"));
        Ok(Endpoint::at(root, registry))
    }

    /// The host with all that is said of it.
    fn host(&self, mut endpoint: Endpoint) -> Result<Host> {
        let mut can = Can::ALL;
        for (key, value) in self.said {
            match key.as_str() {
                "capabilities" => can = self.capabilities(value)?,
                "ca" => endpoint.trust.roots = self.paths(key, value)?,
                "client" => endpoint.trust.shown = self.client(value)?,
                "skip_verify" => {
                    let none = self.switch(key)?;
                    endpoint.trust.checks = if none { Checks::None } else { Checks::All };
                }
                "header" => self.headers(value, &mut endpoint)?,
                "dial_timeout" => endpoint.connect_timeout = Some(self.time(key, value)?),
                "override_path" => {}
                _ => tracing::warn!(
                    "{}{key} in {} is not known and left out",
                    self.name,
                    self.folder.display()
                ),
            }
        }
        Ok(Host { endpoint, can })
    }

    fn wrong(&self, key: &str, why: &str) -> String {
        format!("{}{key} {why}", self.name)
    }

    fn switch(&self, key: &str) -> Result<bool> {
        match self.said.get(key) {
            None => Ok(false),
            Some(Value::Boolean(on)) => Ok(*on),
            Some(_) => Err(self.wrong(key, "must be true or false")),
        }
    }

    fn capabilities(&self, value: &Value) -> Result<Can> {
        let form = || self.wrong("capabilities", "must be a list of \"pull\", \"resolve\" and \"push\"");
        let words = value.as_array().ok_or_else(form)?;
        if words.is_empty() {
            return Ok(Can::ALL);
        }
        let mut can = Can { pull: false, resolve: false, push: false };
        for word in words {
            match word.as_str().map(str::to_ascii_lowercase).as_deref() {
                Some("pull") => can.pull = true,
                Some("resolve") => can.resolve = true,
                Some("push") => can.push = true,
                _ => return Err(form()),
            }
        }
        Ok(can)
    }

    /// One path or several, counted from the file's folder.
    fn paths(&self, key: &str, value: &Value) -> Result<Vec<PathBuf>> {
        let path = |value: &Value| {
            let text = value.as_str().ok_or_else(|| self.wrong(key, "must be a path, or a list of paths"))?;
            Ok(self.folder.join(text))
        };
        match value {
            Value::Array(paths) => paths.iter().map(path).collect(),
            one => Ok(vec![path(one)?]),
        }
    }

    /// The certificate that is shown: a path, a certificate's and its key's, or a list of either.
    fn client(&self, value: &Value) -> Result<Option<(PathBuf, Option<PathBuf>)>> {
        let pairs: Vec<Vec<PathBuf>> = match value {
            Value::Array(list) if list.iter().any(Value::is_array) => {
                list.iter().map(|pair| self.paths("client", pair)).collect::<Result<_>>()?
            }
            // Two files of which the first has no key are a pair; containerd would take each for itself.
            Value::Array(list) if list.len() == 2 => {
                let both = self.paths("client", value)?;
                if both.first().is_some_and(|path| has_key(path)) {
                    both.into_iter().map(|path| vec![path]).collect()
                } else {
                    vec![both]
                }
            }
            _ => self.paths("client", value)?.into_iter().map(|path| vec![path]).collect(),
        };
        if pairs.len() > 1 {
            tracing::warn!(
                "of {} client certificates for {} only the first is shown",
                pairs.len(),
                self.name
            );
        }
        match pairs.into_iter().next().as_deref() {
            None => Ok(None),
            Some([both]) => Ok(Some((both.clone(), None))),
            Some([certificate, key]) => Ok(Some((certificate.clone(), Some(key.clone())))),
            Some(_) => Err(self.wrong("client", "must have a certificate and its key in a pair")),
        }
    }

    fn headers(&self, value: &Value, endpoint: &mut Endpoint) -> Result<()> {
        let form = |name: &str| self.wrong(&format!("header.{name}"), "must be a text, or a list of texts");
        let table = value.as_table().ok_or_else(|| self.wrong("header", "must be a table"))?;
        for (name, said) in table {
            let one = std::slice::from_ref(said);
            for text in said.as_array().map_or(one, Vec::as_slice) {
                let text = text.as_str().ok_or_else(|| form(name))?;
                let unusable = || self.wrong(&format!("header.{name}"), "cannot be sent");
                let mut value = HeaderValue::from_str(text).map_err(|_| unusable())?;
                value.set_sensitive(true);
                let name = HeaderName::try_from(name).map_err(|_| unusable())?;
                endpoint.headers.append(name, value);
            }
        }
        Ok(())
    }

    fn time(&self, key: &str, value: &Value) -> Result<Duration> {
        let text = value.as_str().and_then(duration);
        let time = text.filter(|time| !time.is_zero());
        time.ok_or_else(|| self.wrong(key, "must be a time as \"5s\" or \"1m30s\""))
    }
}

/// A duration as Go writes it: numbers, also with fractions, each with its unit.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text.trim(), 0.0);
    while !rest.is_empty() {
        let end = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, behind) = rest.split_at_checked(end)?;
        let end = behind.find(|letter: char| letter.is_ascii_digit()).unwrap_or(behind.len());
        let (unit, behind) = behind.split_at_checked(end)?;
        let unit = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * unit;
        rest = behind;
    }
    Duration::try_from_secs_f64(sum).ok()
}

fn has_key(path: &Path) -> bool {
    std::fs::read(path).is_ok_and(|pem| pem.windows(12).any(|at| at == b"PRIVATE KEY-"))
}

/// An address as it may be shown: what stands before an `@` may be a password.
fn shown(url: &str) -> String {
    let behind = url.rsplit_once('@').map_or(url, |(_, behind)| behind);
    format!("{:?}", behind.split('?').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::PlainHttp;

    fn read(text: &str) -> Result<Vec<Host>> {
        let own = Endpoint::of("r.io", PlainHttp::default()).unwrap();
        hosts(text, Path::new("/certs/r.io"), "r.io", own)
    }

    fn roots(text: &str) -> Vec<String> {
        read(text).unwrap().iter().map(|host| host.endpoint.root.to_string()).collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file_and_the_server_last() {
        let text = r#"
            server = "https://upstream.io"
            [host."http://z.io:1"]
            [host."https://a.io"]
            [host."m.io"]
        "#;
        let expected =
            ["http://z.io:1/v2/", "https://a.io/v2/", "https://m.io/v2/", "https://upstream.io/v2/"];
        assert_eq!(roots(text), expected);
        assert_eq!(roots("[host.\"https://a.io\"]")[1], "https://r.io/v2/", "the registry itself");
    }

    #[test]
    fn a_path_is_followed_by_the_version_unless_it_is_to_stay() {
        let path = |url: &str, more: &str| roots(&format!("[host.\"{url}\"]\n{more}")).remove(0);
        assert_eq!(path("https://h.io/", ""), "https://h.io/v2/");
        assert_eq!(path("https://h.io/v2/", ""), "https://h.io/v2/");
        assert_eq!(path("https://h.io/proxy", ""), "https://h.io/proxy/v2/");
        assert_eq!(path("https://h.io/v2/proxy", "override_path = true"), "https://h.io/v2/proxy/");
    }

    #[test]
    fn all_that_is_said_of_a_host_is_read() {
        let text = r#"
            ca = "own.pem"
            [host."https://m.io"]
            capabilities = ["pull", "Resolve"]
            ca = ["a.pem", "/b.pem"]
            client = [["me.cert", "me.key"], ["other.cert", "other.key"]]
            skip_verify = true
            dial_timeout = "1m1.5s"
            newer = "than this"
            [host."https://m.io".header]
            x-one = "1"
            x-two = ["2", "3"]
        "#;
        let hosts = read(text).unwrap();
        let (host, own) = (&hosts[0], &hosts[1]);
        assert_eq!(host.can, Can { pull: true, resolve: true, push: false });
        let trust = &host.endpoint.trust;
        assert_eq!(trust.roots, [Path::new("/certs/r.io/a.pem"), Path::new("/b.pem")]);
        assert_eq!(trust.shown, Some(("/certs/r.io/me.cert".into(), Some("/certs/r.io/me.key".into()))));
        assert_eq!(trust.checks, Checks::None);
        assert_eq!(host.endpoint.connect_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(host.endpoint.namespace.as_deref(), Some("r.io"));
        assert_eq!(host.endpoint.headers.get_all("x-two").iter().count(), 2);
        assert!(!format!("{host:?}").contains("\"3\""), "{host:?}");
        assert_eq!((own.can, &own.endpoint.namespace), (Can::ALL, &None));
        assert_eq!(own.endpoint.trust.roots, [Path::new("/certs/r.io/own.pem")]);
    }

    #[test]
    fn a_client_certificate_is_written_in_each_of_containerds_forms() {
        let client = |form: &str| {
            let hosts = read(&format!("client = {form}")).unwrap();
            let shown = hosts[0].endpoint.trust.shown.clone().unwrap();
            (shown.0.file_name().unwrap().to_owned(), shown.1.map(|key| key.file_name().unwrap().to_owned()))
        };
        assert_eq!(client(r#""me.pem""#), ("me.pem".into(), None));
        assert_eq!(client(r#"["me.pem"]"#), ("me.pem".into(), None));
        assert_eq!(client(r#"["me.cert", "me.key"]"#), ("me.cert".into(), Some("me.key".into())));
        assert_eq!(client(r#"[["me.cert", "me.key"]]"#), ("me.cert".into(), Some("me.key".into())));
        assert!(read(r#"client = [["a", "b", "c"]]"#).is_err());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name_without_its_value() {
        for (text, name) in [
            ("[host.\"https://m.io\"]\ncapabilities = [\"pul\"]", "capabilities"),
            ("capabilities = \"pull\"", "capabilities"),
            ("skip_verify = \"yes\"", "skip_verify"),
            ("ca = 7", "ca"),
            ("dial_timeout = \"soon\"", "dial_timeout"),
            ("dial_timeout = \"0s\"", "dial_timeout"),
            ("[header]\nx = 1", "header.x"),
            ("[header]\nx = \"hunter2\\n\"", "header.x"),
            ("server = 1", "server"),
            ("host = 1", "host"),
            ("server = \"ftp://r.io\"", "r.io"),
            ("server = \"https://me:hunter2@r.io\"", "weightfs login"),
            ("\n[header]\nauthorization = \"hunter2", "line 3"),
        ] {
            let why = read(text).unwrap_err();
            assert!(why.contains(name), "{why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }
}
