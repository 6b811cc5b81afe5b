//! A pod's service account tokens: what a registry that trusts the cluster knows a pod by.
//!
//! The kubelet puts them into a volume's attributes, or its secrets, where the CSIDriver asks for it, and renews them there from time
//! to time. One whose audience is a registry is shown to that registry's token service as an identity token, and to nobody else.

use std::collections::HashMap;

use crate::oci::{Place, Reference};
use crate::repository::Secret;
use crate::repository::credentials::TOKEN_USER;
use crate::serve::refused::Refused;

/// Where the kubelet puts a pod's service account tokens, by their audience (`tokenRequests` of the CSIDriver).
pub(super) const TOKENS: &str = "csi.storage.k8s.io/serviceAccount.tokens";

/// How long all tokens of a pod may be together.
const TOKENS_LIMIT: usize = 64 << 10;

/// A pod's service account tokens, by their audience. Never noted, and printed as nothing.
#[derive(Default)]
pub(super) struct Tokens(HashMap<String, Secret>);

impl Tokens {
    /// Those that the kubelet has written.
    ///
    /// # Errors
    /// `InvalidArgument` where they cannot be meant, without anything of them.
    pub(super) fn read(text: Option<&String>) -> Result<Self, Refused> {
        #[derive(serde::Deserialize)]
        struct Token {
            token: Secret,
        }
        let Some(text) = text else { return Ok(Self::default()) };
        if text.len() > TOKENS_LIMIT {
            return Err(Refused::invalid("the service account tokens are larger than 64 KiB"));
        }
        // The library's words may show a value.
        let tokens: HashMap<String, Token> = serde_json::from_str(text)
            .map_err(|_| Refused::invalid("the service account tokens are not as the kubelet writes them"))?;
        Ok(Self(tokens.into_iter().map(|(audience, token)| (audience, token.token)).collect()))
    }

    /// Those whose audience is a registry, as identity tokens in the form of a pull secret: for the registry of `reference`, or for
    /// all. `None` where there is none.
    pub(super) fn secret_for(&self, reference: Option<&Reference>) -> Option<Secret> {
        let of_it = |host: &str| match reference.map(|reference| &reference.place) {
            Some(Place::Registry { host: own, .. }) => host == own,
            Some(Place::Layout { .. }) => false,
            None => true,
        };
        let auths: serde_json::Map<String, serde_json::Value> = self
            .0
            .iter()
            .map(|(audience, token)| (host(audience), token))
            .filter(|(host, _)| of_it(host))
            .map(|(host, token)| {
                let auth = serde_json::json!({"username": TOKEN_USER, "identitytoken": token.expose()});
                (host.to_owned(), auth)
            })
            .collect();
        (!auths.is_empty()).then(|| Secret::new(serde_json::json!({ "auths": auths }).to_string()))
    }
}

/// The host that an audience names: `r.io` or `https://r.io/`.
fn host(audience: &str) -> &str {
    audience.strip_prefix("https://").unwrap_or(audience).trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_for_the_registry_that_is_its_audience() {
        let text = r#"{"https://r.io":{"token":"canary-token","expirationTimestamp":"2030-01-01T00:00:00Z"},
            "vault":{"token":"canary-other"}}"#
            .to_owned();
        let tokens = Tokens::read(Some(&text)).unwrap();
        let given = |reference: &str| {
            let secret = tokens.secret_for(Some(&reference.parse().unwrap()));
            secret.map(|secret| serde_json::from_str::<serde_json::Value>(secret.expose()).unwrap())
        };
        let own = serde_json::json!({"username": "<token>", "identitytoken": "canary-token"});
        assert_eq!(given("r.io/a/b:v1").unwrap(), serde_json::json!({"auths": {"r.io": own}}));
        assert_eq!(given("other.io/a/b:v1"), None);
        assert!(tokens.secret_for(None).unwrap().expose().contains("r.io"));
        assert!(Tokens::read(None).unwrap().secret_for(None).is_none());
        for wrong in [r#"{"r.io":"canary-token"}"#.to_owned(), "x".repeat(70_000)] {
            let refused = Tokens::read(Some(&wrong)).err().unwrap();
            assert!(!refused.message.contains("canary"), "{}", refused.message);
        }
    }
}
