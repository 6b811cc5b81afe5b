//! What a registry asks for on 401, and whether its token service may be asked. Values in, values out.
//!
//! The realm of a challenge is the registry's word, and a password or identity token will be sent there. A registry is
//! believed about hosts of the world, since what it asks for it could ask for itself; it is not believed about hosts
//! that only we can reach ([`Reach`], here and when a connection is made), nor about doing without TLS
//! (GHSA-xf85-363p-868w shows what comes of it).

use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use url::Url;

use super::reach::{OutOfReach, Reach};
use super::{hops, wire};
use crate::error::{Error, Kind, Result};

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Realm {
    pub(super) url: Url,
    pub(super) service: Option<String>,
}

/// What a registry wants.
#[derive(Debug)]
pub(super) enum Challenge {
    Bearer(Realm),
    Basic,
}

/// What a registry wants that leads no further than `reach`; a token rather than a password where it would take either.
///
/// # Errors
/// `Denied` where it says nothing that can be met, `Protocol` where its realm is refused.
pub(super) fn challenge(reach: &Reach, headers: &HeaderMap) -> Result<Challenge> {
    let mut basic = false;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        let Ok(challenges) = http_auth::parse_challenges(text) else { continue };
        for one in challenges {
            if one.scheme.eq_ignore_ascii_case("bearer") {
                return bearer(reach, &one).map(Challenge::Bearer);
            }
            basic |= one.scheme.eq_ignore_ascii_case("basic");
        }
    }
    if basic { Ok(Challenge::Basic) } else { Err(Error::new(Kind::Denied, "401 Unauthorized")) }
}

fn bearer(reach: &Reach, challenge: &http_auth::ChallengeRef<'_>) -> Result<Realm> {
    let value = |name: &str| {
        let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_unescaped())
    };
    let realm = value("realm").unwrap_or_default();
    let shown = || wire::clean(realm.split('?').next().unwrap_or_default());
    let bad = |why: String| wire::protocol(format!("its token service {:?} {why}", shown()));
    let url = Url::parse(&realm).map_err(|error| bad(format!("has no usable URL: {error}")))?;
    may_be_asked(reach, &url).map_err(|why| bad(why.to_owned()).hint(OutOfReach::HINT))?;
    Ok(Realm { url, service: value("service") })
}

/// Whether the token service at `url` may be asked, and sent credentials, on the word of the registry; else why not.
fn may_be_asked(reach: &Reach, url: &Url) -> Result<(), &'static str> {
    reach.may_go(url)?;
    // A registry on this machine is asked without TLS; that says nothing about the way to other machines.
    if url.scheme() == "http" && hops::is_loopback(&reach.registry) && !hops::is_loopback(url) {
        return Err("has no TLS and is on another machine than the registry");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn reach(registry: &str) -> Reach {
        Reach::new(Url::parse(registry).unwrap(), Vec::new())
    }

    fn challenged(registry: &str, values: &[&str]) -> Result<Challenge> {
        let values = values.iter().map(|value| (WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap()));
        challenge(&reach(registry), &values.collect())
    }

    fn may(registry: &str, realm: &str) -> bool {
        challenged(registry, &[&format!("Bearer realm=\"{realm}\"")]).is_ok()
    }

    #[test]
    fn a_token_is_preferred_to_a_password() {
        let found = challenged(
            "https://r.io/",
            &["Basic realm=\"x\"", "Bearer realm=\"https://auth.io/token\",service=\"r.io\",scope=\"x\""],
        );
        let Ok(Challenge::Bearer(realm)) = found else { panic!("no bearer") };
        assert_eq!((realm.url.as_str(), realm.service.as_deref()), ("https://auth.io/token", Some("r.io")));
    }

    #[test]
    fn a_token_service_without_tls_is_refused_where_the_registry_has_it() {
        let plain = &["Bearer realm=\"http://auth.io/token\""];
        assert_eq!(challenged("https://r.io/", plain).err().unwrap().kind(), Kind::Protocol);
        assert!(may("http://r.lan/", "http://auth.lan/token"));
        assert!(!may("http://127.0.0.1:5000/", "http://auth.lan/token"));
        assert!(may("http://127.0.0.1:5000/", "http://localhost:5001/token"));
        assert!(may("http://127.0.0.1:5000/", "https://auth.io/token"));
    }

    #[test]
    fn a_token_service_where_only_we_can_reach_it_is_refused() {
        for realm in [
            "file:///etc/passwd",
            "gopher://r.io/",
            "https://169.254.169.254/latest",
            "https://127.0.0.1/token",
            "https://localhost/token",
            "https://[::1]/token",
            "https://[::ffff:10.0.0.1]/token",
            "https://10.0.0.1/token",
            "https://172.16.3.4/token",
            "https://192.168.1.1/token",
            "https://100.64.0.1/token",
            "https://[fd00::1]/token",
            "https://user:pw@auth.io/token",
        ] {
            assert!(!may("https://r.io/", realm), "{realm}");
        }
        assert!(challenged("https://r.io/", &["Bearer service=\"x\""]).is_err());
        assert!(may("https://10.0.0.2:5000/", "https://10.0.0.1/token"));
        assert!(may("http://127.0.0.1:5000/", "https://10.0.0.1/token"));
        assert!(!may("http://127.0.0.1:5000/", "https://169.254.169.254/token"));
        assert!(may("https://r.io/", "https://172.32.0.1/token"));
    }

    #[test]
    fn a_token_service_that_the_user_names_may_be_anywhere() {
        let named = Reach::new(Url::parse("https://r.io/").unwrap(), vec!["10.0.0.0/8".parse().unwrap()]);
        let asked = |url: &str| may_be_asked(&named, &Url::parse(url).unwrap());
        assert!(asked("https://10.0.0.1/token").is_ok() && asked("https://192.168.0.1/token").is_err());
        assert!(asked("http://10.0.0.1/token").is_err(), "TLS is another matter");
    }

    #[test]
    fn the_error_of_a_realm_does_not_show_its_query() {
        let error = challenged("https://r.io/", &["Bearer realm=\"http://a.io/t?sig=hunter2\""]).unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn an_answer_without_a_usable_challenge_is_a_refusal() {
        assert_eq!(challenged("https://r.io/", &["Negotiate"]).err().unwrap().kind(), Kind::Denied);
        assert_eq!(challenged("https://r.io/", &[]).err().unwrap().kind(), Kind::Denied);
    }

    proptest::proptest! {
        #[test]
        fn whatever_a_registry_says_is_an_answer_or_an_error(
            words in "(Bearer |Basic |bearer)?(realm=|service=|\"|,|=|\\\\|https?://|[ -~]|\u{e9}){0,60}",
        ) {
            let headers = HeaderValue::from_bytes(words.as_bytes()).map(|value| (WWW_AUTHENTICATE, value));
            if let Ok(Challenge::Bearer(realm)) = challenge(&reach("https://r.io/"), &headers.into_iter().collect()) {
                proptest::prop_assert_eq!(realm.url.scheme(), "https");
            }
        }
    }
}
