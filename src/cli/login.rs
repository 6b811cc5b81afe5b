//! `weightfs login` and `logout`: credentials are checked and kept, or taken out again.
//!
//! The password comes from standard input alone: words of a command line are seen by every user of the machine.

use std::io::Read;

use clap::Args;
use zeroize::Zeroizing;

use super::args::{Registries, set};
use super::{print, runtime};
use crate::config::{Flags, Settings};
use crate::error::{Error, Kind, Result, StorageContext};
use crate::oci::Reference;
use crate::oci::reference::Place;
use crate::repository::credentials::{Credentials, login};
use crate::repository::{Secret, Verdict, check_login};

/// The longest password that is read: tokens are long, and no key is longer.
const LONGEST: u64 = 64 << 10;

#[derive(Debug, Args)]
pub(super) struct Login {
    /// The registry, as HOST[:PORT]; docker.io for Docker Hub
    #[arg(value_name = "HOST")]
    host: String,
    /// The user; where none is given, the one known for HOST
    #[arg(short, long)]
    user: Option<String>,
    /// Read the password from standard input: it is read from nowhere else
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    registries: Registries,
    /// Keep credentials in this file
    #[arg(long, value_name = "FILE")]
    auth_file: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Logout {
    /// The registry, as HOST[:PORT]; docker.io for Docker Hub
    #[arg(value_name = "HOST")]
    host: String,
    /// Take credentials out of this file
    #[arg(long, value_name = "FILE")]
    auth_file: Option<String>,
}

impl Login {
    pub(super) fn set(&self, flags: &mut Flags) {
        set(flags, "registry.auth_file", self.auth_file.as_ref());
        self.registries.set(flags);
    }
}

impl Logout {
    pub(super) fn set(&self, flags: &mut Flags) {
        set(flags, "registry.auth_file", self.auth_file.as_ref());
    }
}

/// Checks credentials and keeps them.
///
/// # Errors
/// `Invalid` where host or user are missing or wrong, or no password comes; `Denied` where the registry refuses them; and
/// those of reaching it and of keeping them.
pub(super) fn run(command: &Login, settings: &Settings) -> Result<()> {
    let host = host(&command.host)?;
    if !command.password_stdin {
        let error = Error::new(Kind::Invalid, "a password is read from standard input alone");
        return Err(error.hint(
            "say so by --password-stdin, as in 'weightfs login HOST -u USER --password-stdin < FILE'",
        ));
    }
    let sources = &settings.repository.credentials;
    let known = || login::known_user(sources, &host);
    let user = command.user.clone().map_or_else(known, |user| Ok(Some(user)))?;
    let user = user.filter(|user| !user.is_empty() && !user.contains(':'));
    let user = user.ok_or_else(|| {
        Error::new(Kind::Invalid, format!("no user for {host}")).hint("name one by -u; it has no ':' in it")
    })?;
    let credentials = Credentials::password(user, password()?);
    runtime()?.block_on(async {
        let verdict = check_login(&host, &credentials, &settings.repository).await?;
        let keeper = login::log_in(sources, &host, &credentials).await?;
        if verdict == Verdict::Unasked {
            print::complain(format_args!("{host} asks nobody for a password: this one was not checked"));
        }
        print::line(format_args!("logged in to {host} as {}; kept in {keeper}", credentials.user))
    })
}

/// Takes credentials out.
///
/// # Errors
/// `NotFound` where there are none; those of the file and the helper.
pub(super) fn run_logout(command: &Logout, settings: &Settings) -> Result<()> {
    let host = host(&command.host)?;
    let from = runtime()?.block_on(login::log_out(&settings.repository.credentials, &host))?;
    let from =
        from.ok_or_else(|| Error::new(Kind::NotFound, format!("no credentials for {host} are kept")))?;
    print::line(format_args!("logged out of {host}; removed from {from}"))
}

/// The host as references have it, however it was written.
fn host(text: &str) -> Result<String> {
    let bare = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    let bare = bare.trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    let wrong = || {
        Error::new(Kind::Invalid, format!("not a registry: {bare:?}"))
            .hint("write it as HOST[:PORT], without a repository")
    };
    if bare.contains('/') || bare.is_empty() {
        return Err(wrong());
    }
    let reference: Reference = format!("{bare}/any/thing").parse().map_err(|_| wrong())?;
    match reference.place {
        Place::Registry { host, .. } => Ok(host),
        Place::Layout { .. } => Err(wrong()),
    }
}

/// All of standard input but one line break at its end, which nobody means.
fn password() -> Result<Secret> {
    let mut text = Zeroizing::new(String::new());
    let read = std::io::stdin().lock().take(LONGEST).read_to_string(&mut text);
    read.storage(|| "cannot read the password from standard input".to_owned())?;
    let password = text.strip_suffix('\n').unwrap_or(&text);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() || password.contains(['\n', '\0']) {
        let error = Error::new(Kind::Invalid, "standard input has no password, or more than a line");
        return Err(error.hint("as in 'weightfs login HOST -u USER --password-stdin < FILE'"));
    }
    Ok(Secret::new(password))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_one_however_it_is_written() {
        for text in ["r.io:5000", "https://r.io:5000", "https://r.io:5000/v2/", "http://r.io:5000/"] {
            assert_eq!(host(text).unwrap(), "r.io:5000");
        }
        for text in ["", "r.io/team", "https://r.io/team/", "not a host"] {
            assert_eq!(host(text).unwrap_err().kind(), Kind::Invalid, "{text}");
        }
    }
}
