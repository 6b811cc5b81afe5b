//! What a person types to name an artifact: `HOST[:PORT]/REPO[:TAG][@DIGEST]` or `oci:FOLDER[:TAG]`.

use std::fmt;
use std::path::PathBuf;

use super::digest::Digest;

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
