//! A platform as images name it: operating system, architecture and variant, in Go's words.
//!
//! Called where one manifest of an index is [chosen](super::choice).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Kind};

/// What a manifest of an index was built for (image specification, image-index.md, "platform").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Empty for the usual one: `v8` of `arm64`, `v7` of `arm`, `v1` of `amd64`.
    variant: String,
}

impl Platform {
    /// In whatever words it is written.
    #[must_use]
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let architecture = match architecture.as_str() {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            "loongarch64" => "loong64",
            other => other,
        };
        let variant = match (architecture, variant.as_str()) {
            ("arm64", "v8" | "8") | ("arm", "v7" | "7") | ("amd64", "v1") => "",
            (_, other) => other,
        };
        let (architecture, variant) = (architecture.to_owned(), variant.to_owned());
        Self { os: os.to_ascii_lowercase(), architecture, variant }
    }

    /// This machine's.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, "")
    }

    /// Whether it is one that nobody has, as attestations are listed under.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// Whether it is the same system and architecture, of whatever variant.
    pub(super) fn is_kin(&self, other: &Self) -> bool {
        (&self.os, &self.architecture) == (&other.os, &other.architecture)
    }

    /// Whether it is no special variant, so that any of its kind serves who asks for it.
    pub(super) fn is_usual(&self) -> bool {
        self.variant.is_empty()
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Reads `linux/amd64` or `linux/arm/v6`.
    fn from_str(text: &str) -> Result<Self, Error> {
        let may = |part: &&str| {
            !part.is_empty() && part.chars().all(|one| one.is_ascii_alphanumeric() || "-_.".contains(one))
        };
        let parts: Vec<&str> = text.split('/').collect();
        match parts.as_slice() {
            all if !all.iter().all(may) => Err(()),
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(()),
        }
        .map_err(|()| {
            Error::new(Kind::Invalid, format!("{text:?} is no platform as linux/amd64 or linux/arm/v6"))
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_platform_is_the_same_in_whatever_words() {
        let read = |text: &str| text.parse::<Platform>().unwrap().to_string();
        for (text, said) in [
            ("linux/amd64", "linux/amd64"),
            ("Linux/x86_64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm/v7", "linux/arm"),
            ("linux/arm/v6", "linux/arm/v6"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("windows/amd64", "windows/amd64"),
        ] {
            assert_eq!(read(text), said);
        }
        for bad in ["", "linux", "linux/", "/amd64", "linux/amd64/v1/x", "linux/am d64", "linux/../x\0"] {
            let error = bad.parse::<Platform>().unwrap_err();
            assert!(error.to_string().contains("linux/amd64"), "{error}");
        }
        assert!(Platform::host().is_usual());
    }
}
