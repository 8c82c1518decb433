//! Reads a gRPC status and its details; forgiving where details are missing.

use std::error::Error as _;

use bytes::Bytes;
use dynamo_proto::v1;
use prost::Message as _;
use tonic::{Code, Status};
use tonic_types::pb;

use crate::error::Outcome;

/// One failed attempt.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Failed {
    /// Who says so.
    pub(crate) origin: Origin,
    /// The gRPC code.
    pub(crate) code: Code,
    /// From ErrorInfo; empty if missing.
    pub(crate) reason: String,
    /// For people.
    pub(crate) message: String,
    /// From the detail of NOT_FOUND.
    pub(crate) context: Option<Bytes>,
    /// Detail of a failed write.
    pub(crate) outcome: Option<v1::WriteOutcome>,
}

/// Where a failure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The node answered so.
    Node,
    /// No connection could be made: nothing was sent.
    Connect,
    /// The connection broke, or the answer could not be read.
    Transport,
    /// No answer in time.
    TimedOut,
}

impl Failed {
    /// Reads what a call returned.
    pub(crate) fn from_status(status: &Status) -> Self {
        let origin = origin(status);
        let mut failed = Self {
            origin,
            code: status.code(),
            reason: String::new(),
            message: status.message().to_owned(),
            context: None,
            outcome: None,
        };
        if origin == Origin::Connect {
            failed.message = innermost(status);
        }
        failed.read_details(status.details());
        failed
    }

    /// Reads an error inside a batch's answer, or on a stream.
    pub(crate) fn from_error(error: v1::Error) -> Self {
        Self {
            origin: Origin::Node,
            code: Code::from_i32(error.code),
            reason: error.reason,
            message: error.message,
            context: error.not_found.map(|found| found.context),
            outcome: error.outcome,
        }
    }

    /// No answer within the attempt's time.
    pub(crate) fn timed_out(message: String) -> Self {
        Self::local(Origin::TimedOut, Code::DeadlineExceeded, message)
    }

    /// A failure that the client itself found.
    pub(crate) fn local(origin: Origin, code: Code, message: String) -> Self {
        Self {
            origin,
            code,
            reason: String::new(),
            message,
            context: None,
            outcome: None,
        }
    }

    /// Who answered does not serve as the member that was meant: it joins, stops, or another one has its address now.
    pub(crate) fn is_no_member(&self) -> bool {
        self.origin == Origin::Node
            && ["NOT_READY", "FOREIGN_CLUSTER", "WRONG_RECIPIENT"].contains(&self.reason.as_str())
    }

    /// What became of a write in this attempt.
    pub(crate) fn write_outcome(&self) -> Outcome {
        if let Some(outcome) = &self.outcome {
            return match outcome.state() {
                v1::write_outcome::State::NotApplied => Outcome::NotApplied,
                v1::write_outcome::State::Partial | v1::write_outcome::State::Applied => Outcome::Partial {
                    acks: outcome.acks,
                    primaries: outcome.primaries,
                    durable: outcome.durable,
                },
                v1::write_outcome::State::Unspecified => Outcome::Unknown,
            };
        }
        let untouched = match self.origin {
            Origin::Connect => true,
            Origin::Transport | Origin::TimedOut => false,
            Origin::Node => self.is_no_member() || decided_at_once(self.code),
        };
        if untouched {
            Outcome::NotApplied
        } else {
            Outcome::Unknown
        }
    }

    fn read_details(&mut self, details: &[u8]) {
        let Ok(status) = pb::Status::decode(details) else {
            return;
        };
        for any in status.details {
            let name = any.type_url.rsplit('/').next().unwrap_or_default();
            let value = Bytes::from(any.value);
            match name {
                "google.rpc.ErrorInfo" => {
                    if let Ok(info) = pb::ErrorInfo::decode(value) {
                        self.reason = info.reason;
                    }
                }
                "dynamo.v1.NotFound" => {
                    self.context = v1::NotFound::decode(value).ok().map(|found| found.context);
                }
                "dynamo.v1.WriteOutcome" => self.outcome = v1::WriteOutcome::decode(value).ok(),
                _ => {}
            }
        }
    }
}

/// Refusals that a node gives before it sends or stores anything.
fn decided_at_once(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::ResourceExhausted
            | Code::Unimplemented
    )
}

/// A status that tonic made up from an error of the transport has a source; one that a node sent has none.
fn origin(status: &Status) -> Origin {
    let mut source = status.source();
    if source.is_none() {
        // The stream ended without trailers: also not an answer of the node.
        let torn = status.code() == Code::Unknown && status.message().starts_with("protocol error");
        return if torn { Origin::Transport } else { Origin::Node };
    }
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return Origin::Connect;
        }
        if error.is::<tonic::TimeoutExpired>() {
            return Origin::TimedOut;
        }
        source = error.source();
    }
    Origin::Transport
}

/// The deepest cause, such as "Connection refused", which tonic hides behind "transport error".
fn innermost(status: &Status) -> String {
    let mut message = status.message().to_owned();
    let mut source = status.source();
    while let Some(error) = source {
        message = error.to_string();
        source = error.source();
    }
    message
}

impl From<Status> for Failed {
    fn from(status: Status) -> Self {
        Self::from_status(&status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, message: &impl prost::Message) -> prost_types::Any {
        prost_types::Any {
            type_url: format!("type.googleapis.com/{name}"),
            value: message.encode_to_vec(),
        }
    }

    fn status(code: Code, details: Vec<prost_types::Any>) -> Status {
        let rich = pb::Status {
            code: code as i32,
            message: "m".to_owned(),
            details,
        };
        Status::with_details(code, "m", rich.encode_to_vec().into())
    }

    #[test]
    fn details_are_read() {
        let info = pb::ErrorInfo {
            reason: "QUORUM_NOT_MET".to_owned(),
            ..Default::default()
        };
        let outcome = v1::WriteOutcome {
            state: 2,
            acks: 1,
            primaries: 1,
            durable: 0,
            ..Default::default()
        };
        let unknown = prost_types::Any {
            type_url: "x/y.Z".to_owned(),
            value: vec![0xff; 3],
        };
        let details = vec![
            unknown,
            any("google.rpc.ErrorInfo", &info),
            any("dynamo.v1.WriteOutcome", &outcome),
        ];
        let failed = Failed::from_status(&status(Code::Unavailable, details));
        assert_eq!(failed.reason, "QUORUM_NOT_MET");
        assert_eq!(
            failed.write_outcome(),
            Outcome::Partial {
                acks: 1,
                primaries: 1,
                durable: 0
            }
        );
        assert_eq!(failed.origin, Origin::Node);
    }

    #[test]
    fn missing_or_damaged_details_are_forgiven_and_an_outcome_is_never_invented() {
        for details in [Bytes::new(), Bytes::from_static(&[0xff, 0xff, 0x01])] {
            let failed = Failed::from_status(&Status::with_details(Code::Unavailable, "m", details));
            assert_eq!((failed.reason.as_str(), failed.outcome), ("", None));
            assert_eq!(
                Failed::from_status(&Status::unavailable("m")).write_outcome(),
                Outcome::Unknown
            );
        }
        let refused = Failed::from_status(&Status::invalid_argument("m"));
        assert_eq!(refused.write_outcome(), Outcome::NotApplied);
    }
}
