//! Why containerd is not given what it asks for, by the codes that its own snapshotters answer with.
//!
//! containerd goes by the code: it takes what is there already for done, and what is missing for to be made anew.

use tonic::{Code, Status};

use crate::error::Error;
use crate::serve::codes;

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Refused {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What cannot be meant.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// There is no snapshot of this name.
    pub(super) fn no_such(name: &str) -> Self {
        Self::new(Code::NotFound, format!("there is no snapshot {name:?}"))
    }

    /// There is one of this name.
    pub(super) fn exists(name: &str) -> Self {
        Self::new(Code::AlreadyExists, format!("the snapshot {name:?} exists already"))
    }

    /// It is not as it would have to be.
    pub(super) fn state(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::new(codes::of(error.kind()), error.to_string())
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code, refused.message)
    }
}
