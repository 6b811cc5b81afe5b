//! The environment and the user of this process: looked at here, once, and nowhere else.
//!
//! Also the other way: what is set here said to another process, as variables or by the names of the settings. Used by the
//! settings and by the commands that start a process or ask one.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use super::{Flags, KEYS, key, refuse_secret, wrong};
use crate::error::{Error, Kind, Result};
use crate::repository::{Exceptions, Proxies, Proxy};
use crate::serve::{INTEGRITY, Overrides};

/// How many sockets may be inherited: more than there are names for.
const INHERITED: usize = 64;

/// The environment and the user of this process, as far as settings hang on them.
#[derive(Clone, Debug, Default)]
pub struct Environment {
    /// The variables.
    pub variables: BTreeMap<String, OsString>,
    /// Whether the process runs as root.
    pub root: bool,
}

impl Environment {
    /// Reads it. Variables whose name is no UTF-8 are left out.
    #[must_use]
    pub fn of_process() -> Self {
        let variables = std::env::vars_os();
        let variables = variables.filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        Self { variables: variables.collect(), root: nix::unistd::geteuid().is_root() }
    }

    /// A folder for what lasts no longer than the process: `$TMPDIR`, else `/tmp`.
    #[must_use]
    pub fn temporary(&self) -> PathBuf {
        self.path("TMPDIR").unwrap_or_else(|| "/tmp".into())
    }

    /// The time that what is made is to be of, in seconds since 1970, if `SOURCE_DATE_EPOCH` says so
    /// (reproducible-builds.org, "SOURCE_DATE_EPOCH").
    ///
    /// # Errors
    /// `Invalid` where it is no number.
    pub fn source_date_epoch(&self) -> Result<Option<u64>> {
        const NAME: &str = "SOURCE_DATE_EPOCH";
        let Some(value) = self.get(NAME) else { return Ok(None) };
        let number = value.to_str().and_then(|text| text.parse().ok());
        number.map(Some).ok_or_else(|| {
            let doing = format!("{NAME}: {value:?} is no number of seconds since 1970");
            Error::new(Kind::Invalid, doing)
        })
    }

    /// Whether a variable names the configuration file.
    #[must_use]
    pub fn names_a_file(&self) -> bool {
        self.get("WEIGHTFS_CONFIG").is_some()
    }

    /// Where the service manager is told of this process (sd_notify(3)).
    #[must_use]
    pub fn notify_socket(&self) -> Option<&OsStr> {
        self.get("NOTIFY_SOCKET").map(OsString::as_os_str)
    }

    /// The names of the sockets that this process inherits from who started it, in their order (sd_listen_fds(3)). None where they
    /// are another process's; one that has no name is `unknown`.
    ///
    /// # Errors
    /// `Invalid` where it is not said how many there are.
    pub fn inherited_sockets(&self) -> Result<Vec<String>> {
        let number = |name| self.get(name).and_then(|value| value.to_str()?.parse::<usize>().ok());
        if number("LISTEN_PID") != usize::try_from(std::process::id()).ok() {
            return Ok(Vec::new());
        }
        let count = number("LISTEN_FDS").filter(|count| *count <= INHERITED);
        let count = count.ok_or_else(|| Error::new(Kind::Invalid, "LISTEN_FDS is no number of sockets"))?;
        let names = self.get("LISTEN_FDNAMES").map(|names| names.to_string_lossy()).unwrap_or_default();
        let names = names.split(':').filter(|name| !name.is_empty()).map(str::to_owned);
        Ok(names.chain(std::iter::repeat("unknown".to_owned())).take(count).collect())
    }

    /// The same with these settings as variables, which count before those that are there.
    ///
    /// # Errors
    /// `Invalid` where there is no such setting.
    pub fn with<'a>(&self, settings: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self> {
        let mut changed = self.clone();
        for (name, value) in settings {
            changed.variables.insert(key(name)?.variable.to_owned(), value.into());
        }
        Ok(changed)
    }

    /// Those of the settings that are not set here to the same value, and what is asked of bytes before they are served: whoever asks
    /// for that counts on it, whatever is set here later.
    #[must_use]
    pub fn differing(&self, settings: &Overrides) -> Overrides {
        let differs = |(name, value): &(&String, &String)| {
            let here = key(name).ok().and_then(|key| self.get(key.variable));
            *name == INTEGRITY || here.is_none_or(|here| here != OsStr::new(value.as_str()))
        };
        settings.iter().filter(differs).map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// What variables and `flags` set of a mount, flags first, with paths made absolute: as who has another working folder
    /// and environment is told of it.
    ///
    /// # Errors
    /// `Invalid` where a value is no UTF-8, or a path that cannot be meant.
    pub fn said(&self, flags: &Flags) -> Result<Overrides> {
        let mut said = Overrides::new();
        for key in KEYS.iter().filter(|key| key.is_of_a_mount()) {
            let Some(value) = self.get(key.variable) else { continue };
            let text = value.to_str().ok_or_else(|| wrong(key.variable, "it is no UTF-8"))?;
            said.insert(key.name.to_owned(), key.absolute(text)?);
        }
        for (name, value) in flags {
            let key = key(name)?;
            refuse_secret(key, value)?;
            if key.is_of_a_mount() {
                said.insert(key.name.to_owned(), key.absolute(value)?);
            }
        }
        Ok(said)
    }

    /// The proxies that the usual variables name, in capitals or, where these are not set, in small letters.
    ///
    /// # Errors
    /// `Invalid` where one cannot be meant; its value is not shown.
    pub(super) fn proxies(&self) -> Result<Proxies> {
        let of_all = self.proxy("ALL_PROXY")?;
        let except = self.in_either_case("NO_PROXY").map(|list| list.to_string_lossy()).unwrap_or_default();
        Ok(Proxies {
            tls: self.proxy("HTTPS_PROXY")?.or_else(|| of_all.clone()),
            plain: self.proxy("HTTP_PROXY")?.or(of_all),
            except: Exceptions::read(&except),
        })
    }

    fn proxy(&self, name: &str) -> Result<Option<Proxy>> {
        let Some(value) = self.in_either_case(name) else { return Ok(None) };
        let read = value.to_str().ok_or_else(|| "it is no UTF-8".to_owned()).and_then(str::parse);
        read.map(Some).map_err(|why| Error::new(Kind::Invalid, format!("{name}: {why}")))
    }

    fn in_either_case(&self, name: &str) -> Option<&OsString> {
        self.get(name).or_else(|| self.get(&name.to_ascii_lowercase()))
    }

    /// A variable that is set and not empty.
    pub(super) fn get(&self, name: &str) -> Option<&OsString> {
        self.variables.get(name).filter(|value| !value.is_empty())
    }

    /// A variable that holds an absolute path; a relative one counts as not set (XDG base directories).
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    pub(super) fn under_home(&self, variable: &str, otherwise: &str) -> PathBuf {
        let home = || self.path("HOME").unwrap_or_else(|| "/nonexistent".into()).join(otherwise);
        self.path(variable).unwrap_or_else(home).join("weightfs")
    }
}
