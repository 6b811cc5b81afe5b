//! What kinds of error are in the codes of gRPC: one table for CSI and for containerd's snapshots.

use tonic::Code;

use crate::error::Kind;

/// The code for a kind of error: those that pass by themselves are `Unavailable`, which has who asks ask again.
pub(super) fn of(kind: Kind) -> Code {
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
