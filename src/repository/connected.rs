//! A repository that knows how others are reached: by the settings that it was itself.
//!
//! What [`connect`](super::connect) gives. It changes nothing of what the repository within answers. An artifact may name others
//! in its own registry, and elsewhere where the user says so: see [`parents`](super::parents).

use std::sync::Arc;

use super::around::Around;
use super::{Config, Repository, connect};
use crate::error::{Error, Kind, Result};
use crate::oci::{Place, Reference};

/// `R` and the settings it was made by.
#[derive(Debug)]
pub(super) struct Connected<R> {
    inner: R,
    /// The registry that it is in; `None` for a folder.
    host: Option<String>,
    config: Config,
}

impl<R: Repository> Connected<R> {
    pub(super) fn new(inner: R, host: Option<&str>, config: &Config) -> Self {
        Self { inner, host: host.map(str::to_owned), config: config.clone() }
    }

    fn may_name(&self, host: &str) -> Result<()> {
        if self.host.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(host))
            || self.config.parents.has(host)
        {
            return Ok(());
        }
        let doing = format!("an artifact of {} names another registry: {host}", self.inner.place());
        let way_out = format!(
            "if that one is to be asked, with your credentials for it, add {host} to registry.parents"
        );
        Err(Error::new(Kind::Denied, doing).hint(way_out))
    }
}

impl<R: Repository> Around for Connected<R> {
    fn inner(&self) -> &dyn Repository {
        &self.inner
    }

    fn elsewhere(&self, reference: &Reference) -> Result<Arc<dyn Repository>> {
        match reference.place {
            Place::Registry { ref host, .. } => {
                self.may_name(host)?;
                connect(reference, &self.config)
            }
            Place::Layout { .. } => {
                let doing = format!("an artifact of {} names the folder {reference}", self.inner.place());
                Err(Error::new(Kind::Unsupported, doing))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_artifact_names_its_own_registry_and_those_that_the_user_does() {
        let config = Config { parents: "base.example,.corp".parse().unwrap(), ..Config::default() };
        let named = |from: &str, to: &str| {
            let repository = connect(&from.parse().unwrap(), &config).unwrap();
            repository.elsewhere(&to.parse().unwrap()).map(|found| found.place())
        };
        let own = "kits.example:5000/org/kit:v1";
        for to in
            ["kits.example:5000/other/base", "Kits.example:5000/x/y", "base.example/a/b", "r.corp:1/a/b"]
        {
            assert_eq!(named(own, to).unwrap(), to);
        }
        let hostile = [
            "kits.example/a/b",
            "ghcr.io/a/b",
            "169.254.169.254/latest/meta-data",
            "127.0.0.1:2375/a/b",
            "localhost/a/b",
            "[::1]:80/a/b",
            "10.0.0.1/a/b",
        ];
        for to in hostile {
            let error = named(own, to).unwrap_err();
            let (host, said) = (to.split('/').next().unwrap(), error.to_string());
            assert_eq!(error.kind(), Kind::Denied);
            assert!(said.contains(host) && said.contains("registry.parents"), "{said}");
        }
        assert_eq!(named(own, "oci:/etc:v1").unwrap_err().kind(), Kind::Unsupported);
    }

    #[test]
    fn an_artifact_in_a_folder_is_in_no_registry() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let reference = format!("oci:{}", folder.path().display()).parse().unwrap();
        let repository = connect(&reference, &Config::default()).unwrap();
        let error = repository.elsewhere(&"ghcr.io/a/b".parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), Kind::Denied);
    }
}
