//! A value that must not be printed: a password or a token.
//!
//! Not encryption: the bytes lie in memory as they are. The type keeps them out of logs and errors, wipes them when
//! they are let go, and [`shield`] keeps them out of what other processes and core files may show.

use std::fmt;
use std::sync::Once;

use zeroize::Zeroizing;

/// Text whose `Debug` and `Display` show nothing of it, not even its length; overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Wraps `text`.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the one place that puts it into a request.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from).map(Self::new)
    }
}

impl Default for Secret {
    fn default() -> Self {
        Self::new(String::new())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// From now on the memory and the environment of this process are shown to root alone, and no core file has them
/// (`PR_SET_DUMPABLE`, man 2 prctl). Called by whoever takes up credentials; costs one system call, once.
pub(crate) fn shield() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = nix::sys::prctl::set_dumpable(false) {
            tracing::debug!(%error, "this process could not be shielded from being looked into");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_prints_as_nothing_of_itself() {
        let secret = Secret::new("hunter2");
        assert_eq!(format!("{secret} {secret:?}"), "[secret] [secret]");
        assert_eq!(secret.expose(), "hunter2");
    }

    #[test]
    fn a_process_that_holds_credentials_cannot_be_looked_into() {
        shield();
        assert!(!nix::sys::prctl::get_dumpable().unwrap());
    }
}
