//! Which other registries an artifact may have us ask.
//!
//! A kit names the one that it is built upon by a whole reference, so whoever writes a kit could send us anywhere: to a host of
//! theirs with our credentials for it, or to one that only this machine can reach. So an artifact leads to its own registry, and
//! elsewhere only where the user has said so. How far a registry's own answers may lead is `registry/reach`.

use std::str::FromStr;

/// The hosts that artifacts of other registries may name. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parents(Vec<String>);

impl FromStr for Parents {
    type Err = String;

    /// Reads `ghcr.io,registry.corp:5000,.models.corp`: hosts as they are written in references, and domains with a point before
    /// them.
    fn from_str(text: &str) -> Result<Self, String> {
        let one = |text: &str| {
            let host = text.trim().to_ascii_lowercase();
            let may = |letter: char| letter.is_ascii_alphanumeric() || "-_.:[]".contains(letter);
            match host.trim_start_matches('.').is_empty() || !host.chars().all(may) {
                true => Err(format!("{text:?} is no host as ghcr.io or registry.corp:5000, and no .domain")),
                false => Ok(host),
            }
        };
        text.split(',').map(one).collect::<Result<_, _>>().map(Self)
    }
}

impl Parents {
    /// Whether an artifact may name this host, which is written as in a reference.
    pub(super) fn has(&self, host: &str) -> bool {
        let host = host.to_ascii_lowercase();
        let name = host.rsplit_once(':').map_or(host.as_str(), |(name, _)| name);
        self.0.iter().any(|one| match one.starts_with('.') {
            true => name.ends_with(one.as_str()),
            false => *one == host,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_allowed_with_its_port_and_a_domain_with_any() {
        let parents: Parents = "ghcr.io, Registry.corp:5000,.models.corp".parse().unwrap();
        for host in ["ghcr.io", "GHCR.io", "registry.corp:5000", "a.models.corp", "b.a.models.corp:443"] {
            assert!(parents.has(host), "{host}");
        }
        for host in
            ["ghcr.io:5000", "registry.corp", "models.corp", "evilmodels.corp", "a.models.corp.evil", "x"]
        {
            assert!(!parents.has(host), "{host}");
        }
        assert!(!Parents::default().has("ghcr.io"));
        for bad in ["", "a,,b", ".", "https://x", "a b", "10.0.0.0/8"] {
            assert!(bad.parse::<Parents>().is_err(), "{bad}");
        }
    }
}
