//! Why who asks by gRPC is not given what he asks for: a code, which he goes by, and words for people.
//!
//! For CSI and for containerd's snapshots: of kinds of error there is one table for both. containerd takes what is there already
//! for done, and what is missing for to be made anew; the kubelet asks again.

use tonic::{Code, Status};

use crate::error::{Error, Kind};

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Refused {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What cannot be meant.
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// It is not as it would have to be.
    pub(super) fn state(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }
}

impl From<Error> for Refused {
    fn from(error: Error) -> Self {
        Self::new(code_of(error.kind()), error.to_string())
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        Self::new(refused.code, refused.message)
    }
}

/// The code for a kind of error: those that pass by themselves are `Unavailable`, which has who asks ask again.
fn code_of(kind: Kind) -> Code {
    match kind {
        Kind::Invalid => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::Denied => Code::PermissionDenied,
        Kind::Unreachable | Kind::Broken | Kind::Throttled | Kind::Protocol => Code::Unavailable,
        Kind::Deadline => Code::DeadlineExceeded,
        Kind::Untrusted | Kind::Unsupported => Code::FailedPrecondition,
        Kind::Integrity => Code::DataLoss,
        Kind::Storage | Kind::Kernel => Code::Internal,
        Kind::Busy => Code::Aborted,
    }
}
