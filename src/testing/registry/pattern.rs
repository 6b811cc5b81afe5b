//! Which requests a rule is for, by what is written on their first line.

use std::borrow::Cow;

/// A text that a request's method, path and query (`GET /v2/…`) are compared with.
///
/// One that has a `*`, which stands for anything, describes the whole of it; any other is to be found somewhere in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(Cow<'static, str>);

impl<T: Into<Cow<'static, str>>> From<T> for Pattern {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl Pattern {
    /// Whether it is about this request.
    pub(super) fn fits(&self, request: &str) -> bool {
        let Some((first, rest)) = self.0.split_once('*') else { return request.contains(&*self.0) };
        let Some(mut left) = request.strip_prefix(first) else { return false };
        let mut parts = rest.split('*');
        let last = parts.next_back().unwrap_or_default();
        for part in parts {
            let Some((_, after)) = left.split_once(part) else { return false };
            left = after;
        }
        left.ends_with(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_anywhere_and_one_with_stars_is_all_there_is() {
        let request = "GET /v2/a/b/blobs/sha256:00?x=y";
        let fits = |pattern: &'static str| Pattern::from(pattern).fits(request);
        for pattern in ["", "/blobs/", "GET", "*", "GET *", "GET */blobs/*", "GET /v2/*/blobs/*y", "*/*/*"] {
            assert!(fits(pattern), "{pattern}");
        }
        for pattern in ["PUT", "PUT *", "GET */blobs/", "*/manifests/*", "GET /v2/*z", "b/*", "*x=y*x=y"] {
            assert!(!fits(pattern), "{pattern}");
        }
    }
}
