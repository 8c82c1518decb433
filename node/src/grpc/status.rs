//! How failures travel: a gRPC status with machine-readable details.
//!
//! `google.rpc.ErrorInfo` carries a [`Reason`]; a failed write adds its `dynamo.v1.WriteOutcome`, a get that found
//! nothing its `dynamo.v1.NotFound`. Messages name the key's hash, never the key or its value.

use bytes::Bytes;
use dynamo_core::replica::UpdateRefused;
use dynamo_proto::v1;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::storage::writer::WriteError;

/// Why, for programs. Each belongs to one gRPC code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// NOT_FOUND: no live value.
    KeyNotFound,
    /// INVALID_ARGUMENT: a field out of its range.
    InvalidArgument,
    /// INVALID_ARGUMENT: a context that is damaged or of another key or cluster.
    InvalidContext,
    /// INVALID_ARGUMENT: a delete without a context.
    ContextRequired,
    /// UNAVAILABLE: too few replicas could be asked or answered.
    QuorumNotMet,
    /// DEADLINE_EXCEEDED.
    ReadTimedOut,
    /// DEADLINE_EXCEEDED; the outcome says what may have been applied.
    WriteTimedOut,
    /// RESOURCE_EXHAUSTED: the put would add a sibling to a key that has too many.
    TooManySiblings,
    /// RESOURCE_EXHAUSTED: too much is in flight here; another node may have room.
    Overloaded,
    /// RESOURCE_EXHAUSTED: this node's disk is nearly full; other nodes may have room.
    DiskFull,
    /// RESOURCE_EXHAUSTED, between nodes: the room for hints is spent.
    HintDeclined,
    /// UNAVAILABLE: unassigned, joining or draining; another node serves.
    NotReady,
    /// FAILED_PRECONDITION: a message of another cluster.
    ForeignCluster,
    /// FAILED_PRECONDITION: a message for another member.
    WrongRecipient,
    /// FAILED_PRECONDITION: a message about data from a member that the ring does not list.
    NotAMember,
    /// FAILED_PRECONDITION: no protocol version in common.
    UnsupportedProtocol,
    /// ALREADY_EXISTS: this node belongs to another cluster, or to this one with another first ring.
    AlreadyBootstrapped,
    /// FAILED_PRECONDITION: this node has another identity.
    AlreadyAssigned,
    /// FAILED_PRECONDITION: this node has no ring yet.
    NoRing,
    /// FAILED_PRECONDITION, between nodes: the sender goes by a ring that was retired. It catches up, then asks again.
    StaleRing,
    /// FAILED_PRECONDITION: a change of the ring cannot be proposed as it was planned, or not by this node now.
    StalePlan,
    /// INTERNAL: the store failed.
    Storage,
    /// DATA_LOSS: the local copy failed its checksum.
    CorruptRecord,
}

impl Reason {
    const ALL: [Self; 23] = [
        Self::KeyNotFound,
        Self::InvalidArgument,
        Self::InvalidContext,
        Self::ContextRequired,
        Self::QuorumNotMet,
        Self::ReadTimedOut,
        Self::WriteTimedOut,
        Self::TooManySiblings,
        Self::Overloaded,
        Self::DiskFull,
        Self::HintDeclined,
        Self::NotReady,
        Self::ForeignCluster,
        Self::WrongRecipient,
        Self::NotAMember,
        Self::UnsupportedProtocol,
        Self::AlreadyBootstrapped,
        Self::AlreadyAssigned,
        Self::NoRing,
        Self::StaleRing,
        Self::StalePlan,
        Self::Storage,
        Self::CorruptRecord,
    ];

    fn code(self) -> Code {
        match self {
            Self::KeyNotFound => Code::NotFound,
            Self::InvalidArgument | Self::InvalidContext | Self::ContextRequired => Code::InvalidArgument,
            Self::QuorumNotMet | Self::NotReady => Code::Unavailable,
            Self::ReadTimedOut | Self::WriteTimedOut => Code::DeadlineExceeded,
            Self::TooManySiblings | Self::Overloaded | Self::DiskFull | Self::HintDeclined => {
                Code::ResourceExhausted
            }
            Self::ForeignCluster
            | Self::WrongRecipient
            | Self::NotAMember
            | Self::UnsupportedProtocol
            | Self::AlreadyAssigned
            | Self::NoRing
            | Self::StaleRing
            | Self::StalePlan => Code::FailedPrecondition,
            Self::AlreadyBootstrapped => Code::AlreadyExists,
            Self::Storage => Code::Internal,
            Self::CorruptRecord => Code::DataLoss,
        }
    }

    /// The word on the wire and in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KeyNotFound => "KEY_NOT_FOUND",
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::InvalidContext => "INVALID_CONTEXT",
            Self::ContextRequired => "CONTEXT_REQUIRED",
            Self::QuorumNotMet => "QUORUM_NOT_MET",
            Self::ReadTimedOut => "READ_TIMED_OUT",
            Self::WriteTimedOut => "WRITE_TIMED_OUT",
            Self::TooManySiblings => "TOO_MANY_SIBLINGS",
            Self::Overloaded => "OVERLOADED",
            Self::DiskFull => "DISK_FULL",
            Self::HintDeclined => "HINT_DECLINED",
            Self::NotReady => "NOT_READY",
            Self::ForeignCluster => "FOREIGN_CLUSTER",
            Self::WrongRecipient => "WRONG_RECIPIENT",
            Self::NotAMember => "NOT_A_MEMBER",
            Self::UnsupportedProtocol => "UNSUPPORTED_PROTOCOL",
            Self::AlreadyBootstrapped => "ALREADY_BOOTSTRAPPED",
            Self::AlreadyAssigned => "ALREADY_ASSIGNED",
            Self::NoRing => "NO_RING",
            Self::StaleRing => "STALE_RING",
            Self::StalePlan => "STALE_PLAN",
            Self::Storage => "STORAGE",
            Self::CorruptRecord => "CORRUPT_RECORD",
        }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        let reason = match &error {
            WriteError::Overloaded => Reason::Overloaded,
            WriteError::DiskFull { .. } => Reason::DiskFull,
            WriteError::BudgetSpent => Reason::HintDeclined,
            WriteError::Refused(
                UpdateRefused::TooManySiblings { .. } | UpdateRefused::SiblingsTooLarge { .. },
            ) => Reason::TooManySiblings,
            WriteError::Refused(_) | WriteError::TypedRefused(_) => Reason::InvalidArgument,
            WriteError::Stopped => Reason::NotReady,
            WriteError::Read(_) | WriteError::Storage(_) | WriteError::WrongSpace(_) => Reason::Storage,
        };
        Self::new(reason, error.to_string())
    }
}

/// A request that failed: what a client is told.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) reason: Reason,
    pub(crate) message: String,
    pub(crate) outcome: Option<v1::WriteOutcome>,
    /// Boxed, so that results stay small.
    pub(crate) not_found: Option<Box<v1::NotFound>>,
}

impl Failure {
    pub(crate) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            outcome: None,
            not_found: None,
        }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(Reason::InvalidArgument, message)
    }

    pub(crate) fn with_outcome(mut self, outcome: v1::WriteOutcome) -> Self {
        self.outcome = Some(outcome);
        self
    }

    /// Nothing was sent or stored.
    pub(crate) fn not_applied(self) -> Self {
        let outcome = v1::WriteOutcome {
            state: v1::write_outcome::State::NotApplied.into(),
            ..v1::WriteOutcome::default()
        };
        self.with_outcome(outcome)
    }

    fn details(&self) -> Vec<prost_types::Any> {
        let info = pb::ErrorInfo {
            reason: self.reason.name().to_owned(),
            domain: "dynamo.rs".to_owned(),
            ..pb::ErrorInfo::default()
        };
        let mut details = vec![any("google.rpc.ErrorInfo", &info)];
        details.extend(
            self.outcome
                .as_ref()
                .map(|outcome| any("dynamo.v1.WriteOutcome", outcome)),
        );
        details.extend(
            self.not_found
                .as_ref()
                .map(|not_found| any("dynamo.v1.NotFound", not_found.as_ref())),
        );
        details
    }
}

fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value: message.encode_to_vec(),
    }
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        let code = failure.reason.code();
        let rich = pb::Status {
            code: code.into(),
            message: failure.message.clone(),
            details: failure.details(),
        };
        Status::with_details(code, failure.message, Bytes::from(rich.encode_to_vec()))
    }
}

impl From<Failure> for v1::Error {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.reason.code().into(),
            message: failure.message,
            reason: failure.reason.name().to_owned(),
            not_found: failure.not_found.map(|not_found| *not_found),
            outcome: failure.outcome,
        }
    }
}

/// The reason that a peer's status carries, if it is one of ours.
pub(crate) fn reason_name(status: &Status) -> Option<String> {
    let rich = pb::Status::decode(status.details()).ok()?;
    let info = rich
        .details
        .iter()
        .find(|any| any.type_url.ends_with("/google.rpc.ErrorInfo"))?;
    Some(pb::ErrorInfo::decode(info.value.as_slice()).ok()?.reason)
}

/// The reason of a status as a word for a metric's label: one of a fixed set.
pub(crate) fn reason_word(status: &Status) -> &'static str {
    let name = reason_name(status).unwrap_or_default();
    Reason::ALL
        .iter()
        .map(|reason| reason.name())
        .find(|known| *known == name)
        .unwrap_or("UNKNOWN")
}

/// A status as an entry of a batch's answer.
pub(crate) fn to_error(status: &Status) -> v1::Error {
    let rich = pb::Status::decode(status.details()).unwrap_or_default();
    let outcome = rich
        .details
        .iter()
        .find(|any| any.type_url.ends_with("/dynamo.v1.WriteOutcome"));
    v1::Error {
        code: status.code().into(),
        message: status.message().to_owned(),
        reason: reason_name(status).unwrap_or_default(),
        not_found: None,
        outcome: outcome.and_then(|any| v1::WriteOutcome::decode(any.value.as_slice()).ok()),
    }
}

/// A status that a coordinator answered, as this node, which forwarded the request, passes it on.
pub(crate) fn relay(status: &Status) -> Status {
    Status::with_details(
        status.code(),
        status.message(),
        Bytes::copy_from_slice(status.details()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_wire() {
        let outcome = v1::WriteOutcome {
            acks: 1,
            ..v1::WriteOutcome::default()
        };
        let status = Status::from(Failure::new(Reason::QuorumNotMet, "too few").with_outcome(outcome));
        assert_eq!(status.code(), Code::Unavailable);
        assert_eq!(reason_name(&relay(&status)).as_deref(), Some("QUORUM_NOT_MET"));
        let rich = pb::Status::decode(status.details()).unwrap();
        assert_eq!(
            rich.details[1].type_url,
            "type.googleapis.com/dynamo.v1.WriteOutcome"
        );
        assert_eq!(
            v1::WriteOutcome::decode(rich.details[1].value.as_slice()).unwrap(),
            outcome
        );
    }
}
