//! Words that stand for secrets in tests, and the look for them in what was printed, logged or told.
//!
//! Every password, token and signature that a test makes up begins with [`MARK`]; whoever finds one of [`TRACES`] in an
//! output has found a leak, in whatever form it was carried.

/// How every made-up secret begins.
pub const MARK: &str = "canary-";
/// A password.
pub const PASSWORD: &str = "canary-password";
/// What a token begins with; a number or a name follows.
pub const TOKEN: &str = "canary-token";
/// A long-lived token that others are had for (`identitytoken` of Docker's `config.json`).
pub const IDENTITY: &str = "canary-identity";
/// The signature of a redirect's address.
pub const SIGNATURE: &str = "canary-signature";

/// What no output may contain: [`MARK`] as it is, its inner part as Base64 has it at each of the three places it can
/// begin at, and the password of the tests' docker-registry in both forms.
pub const TRACES: [&str; 6] =
    [MARK, "Y2FuYXJ5L", "NhbmFyeS", "jYW5hcnkt", super::registry::PASSWORD, super::registry::BASIC];

/// Makes sure that `text` has no trace of a secret.
///
/// # Panics
/// Where it has one, with the lines that have it; `what` names the output.
pub fn absent(what: &str, text: &str) {
    let leaks: Vec<_> = text.lines().filter(|line| TRACES.iter().any(|trace| line.contains(trace))).collect();
    assert!(leaks.is_empty(), "{what} tells a secret:\n{}", leaks.join("\n"));
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

    use super::*;

    #[test]
    fn a_secret_is_found_as_it_is_and_in_base64_wherever_it_begins() {
        let found = |text: &str| std::panic::catch_unwind(|| absent("it", text)).is_err();
        for user in ["", "u", "us", "use"] {
            let pair = format!("{user}:{PASSWORD}");
            assert!(
                found(&pair) && found(&STANDARD.encode(&pair)) && found(&URL_SAFE_NO_PAD.encode(&pair)),
                "{pair}"
            );
        }
        assert!(!found("a registry at 127.0.0.1 says 401 Unauthorized"));
    }
}
