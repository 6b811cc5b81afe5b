//! Which key of a configuration is for which repository. Values in, values out.
//!
//! Keys are those of Docker (`HOST`, `https://HOST/v1/`), of containers' `auth.json` (`HOST/NAMESPACE`) and of
//! Kubernetes (`*.HOST:PORT/PREFIX`, "Images", "Interpretation of config.json"): one rule for all.

use globset::Glob;

/// The repository that credentials are wanted for, as a reference names it. An empty one stands for the registry itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) repository: &'a str,
}

impl Wanted<'_> {
    /// `HOST/REPOSITORY`.
    pub(super) fn name(self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

/// How closely a key fits: by more of the path, then by a host that is spelled out. Greater is closer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Fit {
    path: usize,
    host: HostFit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum HostFit {
    Pattern,
    Alias,
    Exact,
}

/// How closely `key` fits, or `None` where it is for others.
///
/// A path counts by whole segments: a key for `r.io/team` is not for `r.io/team-b`, unlike in the kubelet.
pub(super) fn fit(key: &str, wanted: Wanted<'_>) -> Option<Fit> {
    let bare = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (named, path) = bare.split_once('/').unwrap_or((bare, ""));
    let path = match path.trim_end_matches('/') {
        "v1" | "v2" => "",
        path => path,
    };
    let rest = wanted.repository.strip_prefix(path)?;
    if !path.is_empty() && !rest.is_empty() && !rest.starts_with('/') {
        return None;
    }
    Some(Fit { path: path.len(), host: host_fit(named, wanted.host)? })
}

/// The best of several keyed values; of keys that fit alike the first by name, so that no map's order counts.
pub(super) fn best<'a, T>(
    keyed: impl IntoIterator<Item = (&'a String, T)>,
    wanted: Wanted<'_>,
) -> Option<(&'a str, T)> {
    let mut fitting: Vec<_> =
        keyed.into_iter().filter_map(|(key, value)| Some((fit(key, wanted)?, key, value))).collect();
    fitting.sort_by(|(a, left, _), (b, right, _)| b.cmp(a).then(left.cmp(right)));
    fitting.into_iter().next().map(|(_, key, value)| (key.as_str(), value))
}

fn host_fit(named: &str, host: &str) -> Option<HostFit> {
    if named.eq_ignore_ascii_case(host) {
        return Some(HostFit::Exact);
    }
    if is_hub(named) && is_hub(host) {
        return Some(HostFit::Alias);
    }
    matches_pattern(named, host).then_some(HostFit::Pattern)
}

/// `*.r.io` is for `a.r.io`, neither for `r.io` nor for `a.b.r.io`; the ports must be the same.
fn matches_pattern(pattern: &str, host: &str) -> bool {
    if !pattern.contains(['*', '?', '[']) {
        return false;
    }
    let (pattern, port) = without_port(pattern);
    let (host, other_port) = without_port(host);
    let (parts, labels): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), host.split('.').collect());
    let label_fits = |(part, label): (&&str, &&str)| {
        Glob::new(part).is_ok_and(|glob| glob.compile_matcher().is_match(label.to_ascii_lowercase()))
    };
    port == other_port && parts.len() == labels.len() && parts.iter().zip(&labels).all(label_fits)
}

fn without_port(host: &str) -> (&str, &str) {
    host.rsplit_once(':').unwrap_or((host, ""))
}

/// Whether `key` names `host` itself, with no namespace and no pattern.
pub(super) fn is_plainly(key: &str, host: &str) -> bool {
    let found = fit(key, Wanted { host, repository: "" });
    found.is_some_and(|found| found.host != HostFit::Pattern)
}

/// Whether a host is Docker Hub, which goes by several names; `docker login` writes yet another one.
#[must_use]
pub fn is_hub(host: &str) -> bool {
    ["docker.io", "index.docker.io", "registry-1.docker.io"].contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(key: &str, name: &str) -> bool {
        let (host, repository) = name.split_once('/').unwrap_or((name, ""));
        fit(key, Wanted { host, repository }).is_some()
    }

    #[test]
    fn a_host_is_found_under_each_of_its_spellings_and_no_other() {
        for key in ["r.io", "https://r.io", "https://r.io/v1/", "https://r.io/v2/", "r.io/", "R.io"] {
            assert!(fits(key, "r.io/a/b") && fits(key, "r.io"), "{key}");
            assert!(!fits(key, "r.io:5000/a") && !fits(key, "evil.r.io/a"), "{key}");
        }
        assert!(fits("https://index.docker.io/v1/", "docker.io/library/x"));
    }

    #[test]
    fn a_path_counts_by_whole_segments() {
        assert!(fits("r.io/team", "r.io/team") && fits("r.io/team/", "r.io/team/llm"));
        assert!(!fits("r.io/team", "r.io/team-b/llm") && !fits("r.io/team/llm", "r.io/team"));
        assert!(!fits("r.io/team", "r.io"));
    }

    #[test]
    fn a_pattern_stands_for_one_label_each() {
        let ecr = "*.dkr.ecr.*.amazonaws.com";
        assert!(fits(ecr, "123.dkr.ecr.eu-west-1.amazonaws.com/llm"));
        assert!(!fits(ecr, "123.dkr.ecr.eu-west-1.amazonaws.com.evil.io/llm"));
        assert!(fits("*.azurecr.io", "acme.azurecr.io/x") && !fits("*.azurecr.io", "azurecr.io/x"));
        assert!(!fits("*.r.io", "a.b.r.io/x") && !fits("*.r.io", "a.r.io:5000/x"));
        assert!(fits("*.r.io:5000/team", "a.r.io:5000/team/x") && !fits("[", "a/x"));
    }

    #[test]
    fn the_longest_path_is_best_and_then_the_host_that_is_spelled_out() {
        let keys: Vec<String> = ["*.io", "r.io", "r.io/a", "r.io/a/b", "r.io/c"].map(String::from).into();
        let found = |repository| {
            best(keys.iter().map(|key| (key, ())), Wanted { host: "r.io", repository }).map(|(key, ())| key)
        };
        assert_eq!(found("a/b/llm"), Some("r.io/a/b"));
        assert_eq!(found("a/x"), Some("r.io/a"));
        assert_eq!(found("x"), Some("r.io"));
        assert_eq!(best(keys.iter().map(|key| (key, ())), Wanted { host: "x.org", repository: "a" }), None);
    }

    proptest::proptest! {
        #[test]
        fn a_key_that_is_spelled_out_fits_no_other_host(
            key in "(https?://)?[a-c.:/]{0,12}", host in "[a-c]{1,3}(\\.[a-c]{1,3}){0,2}(:[1-9])?",
            repository in "[a-c]{1,2}(/[a-c]{1,2}){0,2}",
        ) {
            let bare = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(&key);
            let fits = fit(&key, Wanted { host: &host, repository: &repository }).is_some();
            proptest::prop_assert!(!fits || bare.split('/').next() == Some(&host));
        }

        #[test]
        fn a_key_of_any_form_is_a_key_or_none(key in "[ -~]{0,40}", host in "[ -~]{0,20}") {
            let _ = fit(&key, Wanted { host: &host, repository: "a/b" });
        }
    }
}
