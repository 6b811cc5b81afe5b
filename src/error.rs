//! The one error type: what kind of failure, what was being done, why, and the way out.
//!
//! Not a place for policy beyond two tables: [`Kind::errno`], asked where the kernel is answered, and
//! [`Kind::may_retry`], asked where a request is tried again.

use std::fmt;

/// What went wrong, as far as a caller has to tell cases apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// What was typed or configured cannot be meant: a malformed reference, range, size or option.
    Invalid,
    /// The registry, folder or artifact has no such thing.
    NotFound,
    /// Credentials are missing or refused (HTTP 401 or 403), or the settings do not allow who would be asked. A local permission is [`Storage`](Self::Storage).
    Denied,
    /// Nobody answers: name, connection or TLS set-up failed.
    Unreachable,
    /// Who answers is not who was meant, or cannot be asked that way: a certificate that is not trusted, TLS where there
    /// is none. Asking again gives the same.
    Untrusted,
    /// The other side answered and then failed: a body cut short, a reset, a stall, HTTP 5xx or 408.
    Broken,
    /// The registry asks to slow down (HTTP 429).
    Throttled,
    /// The registry's answer breaks the rules, as a 206 with another range than asked for.
    Protocol,
    /// Bytes are not what their digest says.
    Integrity,
    /// A form that weightfs does not read (yet), named.
    Unsupported,
    /// No progress within the deadline.
    Deadline,
    /// The local store or another local file failed, or may not be used: a permission, an owner.
    Storage,
    /// Mounting or another request to the kernel failed.
    Kernel,
    /// The place is taken: already mounted, not empty, still in use.
    Busy,
}

impl Kind {
    /// Whether the same request may succeed a moment later, so that trying again is right.
    ///
    /// A connection that could not be made, an answer that broke off and a throttled request may; an answer
    /// against the rules may too, since a proxy's page or a truncated header comes and goes.
    #[must_use]
    pub fn may_retry(self) -> bool {
        matches!(self, Self::Unreachable | Self::Broken | Self::Throttled | Self::Protocol)
    }

    /// Whether the repository has said neither yes nor no, so that what is kept of it may stand in: never after an
    /// answer that refuses, or that denies that there is such a thing.
    #[must_use]
    pub fn leaves_open(self) -> bool {
        matches!(self, Self::Unreachable | Self::Untrusted | Self::Broken | Self::Deadline | Self::Throttled)
    }

    /// The errno that a reader of the mount sees. Every failure to produce bytes is `EIO`: readers expect
    /// nothing else from a regular file, and `EAGAIN` or `EACCES` would be misread.
    #[must_use]
    pub fn errno(self) -> i32 {
        nix::errno::Errno::EIO as i32
    }

    /// The exit code of the program for an error of this kind, as the manual lists them.
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 2,
            Self::NotFound => 3,
            Self::Denied => 4,
            Self::Unreachable
            | Self::Untrusted
            | Self::Broken
            | Self::Throttled
            | Self::Protocol
            | Self::Deadline => 5,
            Self::Integrity => 6,
            Self::Unsupported => 7,
            Self::Storage => 8,
            Self::Kernel => 9,
            Self::Busy => 10,
        }
    }
}

/// What every fallible function here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

type Source = Box<dyn std::error::Error + Send + Sync>;

/// A failure: its kind, what was being done, the cause beneath, and what a person can do about it.
///
/// Prints as one line, outermost first: `cannot read …: 403 Forbidden; run 'weightfs login ghcr.io'`.
/// Cloning is cheap, since one failed flight fails everybody who waits for it.
#[derive(Clone)]
pub struct Error(std::sync::Arc<Inner>);

struct Inner {
    kind: Kind,
    doing: String,
    hint: Option<String>,
    source: Option<Source>,
    retry_after: Option<std::time::Duration>,
    unasked: bool,
    of_machine: bool,
}

impl Error {
    /// An error without a cause beneath it; `doing` says what failed, as `no such tag: llama:9b`.
    pub fn new(kind: Kind, doing: impl Into<String>) -> Self {
        Self::from_parts(kind, doing.into(), None)
    }

    /// An error with the cause beneath it, which prints after a colon.
    pub fn from_source(kind: Kind, doing: impl Into<String>, source: impl Into<Source>) -> Self {
        Self::from_parts(kind, doing.into(), Some(source.into()))
    }

    fn from_parts(kind: Kind, doing: String, source: Option<Source>) -> Self {
        let cause = source.as_ref().and_then(|source| source.downcast_ref::<Self>());
        let of_machine = cause.is_some_and(Self::is_of_machine);
        let (hint, retry_after, unasked) = (None, None, false);
        Self(Inner { kind, doing, hint, source, retry_after, unasked, of_machine }.into())
    }

    /// The same error with the way out, which prints last, after a semicolon.
    #[must_use]
    pub fn hint(self, hint: impl Into<String>) -> Self {
        self.with(|inner| inner.hint = Some(hint.into()))
    }

    /// The same error with the time the registry asks to wait before the next try (`Retry-After`).
    #[must_use]
    pub fn retry_after(self, wait: std::time::Duration) -> Self {
        self.with(|inner| inner.retry_after = Some(wait))
    }

    /// The same error where nothing was asked for at all, since it is too early to ask.
    #[must_use]
    pub fn unasked(self) -> Self {
        self.with(|inner| inner.unasked = true)
    }

    /// The same error where its words are this machine's own: paths of its files, or what its programs have said. Whatever has it for
    /// its cause is such an error too.
    #[must_use]
    pub fn of_machine(self) -> Self {
        self.with(|inner| inner.of_machine = true)
    }

    /// The same kind and hint under another sentence: `doing: self`.
    #[must_use]
    pub fn context(self, doing: impl Into<String>) -> Self {
        let (kind, wait, unasked) = (self.kind(), self.wait(), !self.was_asked());
        Self::from_source(kind, doing, self)
            .with(|inner| (inner.retry_after, inner.unasked) = (wait, unasked))
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// How long the registry asked to wait, if it said so; or how long it is until it may be asked.
    #[must_use]
    pub fn wait(&self) -> Option<std::time::Duration> {
        self.0.retry_after
    }

    /// Whether the other side was asked; `false` only of what was held back before that.
    #[must_use]
    pub fn was_asked(&self) -> bool {
        !self.0.unasked
    }

    /// Whether its words are this machine's own, so that they are for who looks after it and for nobody whom it only serves.
    #[must_use]
    pub fn is_of_machine(&self) -> bool {
        self.0.of_machine
    }

    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = match std::sync::Arc::try_unwrap(self.0) {
            Ok(inner) => inner,
            Err(shared) => Inner {
                kind: shared.kind,
                doing: shared.doing.clone(),
                hint: shared.hint.clone(),
                source: shared.source.as_ref().map(|cause| cause.to_string().into()),
                retry_after: shared.retry_after,
                unasked: shared.unasked,
                of_machine: shared.of_machine,
            },
        };
        change(&mut inner);
        Self(inner.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.doing)?;
        let mut cause = self.0.source.as_deref().map(|cause| cause as &dyn std::error::Error);
        let mut hint = self.0.hint.clone();
        while let Some(error) = cause {
            match error.downcast_ref::<Self>() {
                Some(inner) => {
                    write!(f, ": {}", inner.0.doing)?;
                    hint = hint.or_else(|| inner.0.hint.clone());
                    cause = inner.0.source.as_deref().map(|cause| cause as &dyn std::error::Error);
                }
                None => {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
            }
        }
        hint.map_or(Ok(()), |hint| write!(f, "; {hint}"))
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

impl std::error::Error for Error {}

/// Adds what was being done to an [`std::io::Error`] from a local file: kind [`Kind::Storage`].
pub trait StorageContext<T> {
    /// The value, or an error of kind [`Kind::Storage`] that says what was being done.
    ///
    /// # Errors
    /// The I/O error, under the sentence.
    fn storage(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T> StorageContext<T> for std::io::Result<T> {
    fn storage(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::from_source(Kind::Storage, doing(), error))
    }
}

impl<T> StorageContext<T> for nix::Result<T> {
    fn storage(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|errno| Error::from_source(Kind::Storage, doing(), std::io::Error::from(errno)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_prints_as_a_chain_that_ends_with_the_way_out() {
        let cause = Error::new(Kind::Denied, "403 Forbidden").hint("run 'weightfs login ghcr.io'");
        let error = cause.context("cannot read sha256:ab from ghcr.io/acme/llm");
        assert_eq!(
            error.to_string(),
            "cannot read sha256:ab from ghcr.io/acme/llm: 403 Forbidden; run 'weightfs login ghcr.io'"
        );
        assert_eq!(error.kind(), Kind::Denied);
    }

    #[test]
    fn what_a_machine_says_of_itself_stays_that_under_other_sentences() {
        let own = Error::new(Kind::Broken, "/usr/bin/helper failed").of_machine();
        let above = Error::from_source(Kind::Denied, "there are no credentials", own);
        let shared = above.clone();
        let error = above.context("cannot read r.io/a").hint("ask again");
        assert!(error.is_of_machine() && shared.hint("ask again").is_of_machine());
        assert!(!Error::from_source(Kind::Broken, "cannot read", std::io::Error::other("x")).is_of_machine());
    }

    #[test]
    fn a_wait_asked_for_by_the_registry_survives_context() {
        let wait = std::time::Duration::from_secs(3);
        let error = Error::new(Kind::Throttled, "429").retry_after(wait).context("cannot read");
        assert_eq!(error.wait(), Some(wait));
    }
}
