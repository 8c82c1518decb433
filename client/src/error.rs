//! How an operation can end without success.

use crate::types::Context;

/// Why an operation did not succeed. Everything that can be retried within the deadline has been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No value is live. The next put of the key should pass the context, so that it supersedes deletes.
    #[error("the key is not found")]
    NotFound {
        /// Empty if the key never existed; else covers its tombstones.
        context: Context,
    },
    /// The request can never succeed as it is: a damaged context, a key too long, an impossible quorum.
    #[error("the request is invalid: {detail}")]
    InvalidArgument {
        /// What the node said.
        detail: Box<Detail>,
    },
    /// No node could serve the request, or not enough replicas answered.
    #[error("the cluster is unavailable for this key ({outcome}): {detail}")]
    Unavailable {
        /// What became of a write.
        outcome: Outcome,
        /// The last failure.
        detail: Box<Detail>,
    },
    /// The deadline passed.
    #[error("the deadline passed ({outcome}): {detail}")]
    DeadlineExceeded {
        /// What became of a write.
        outcome: Outcome,
        /// The last failure.
        detail: Box<Detail>,
    },
    /// A limit: too many siblings of the key, an overloaded node, a message too large to read.
    #[error("a limit is reached ({outcome}): {detail}")]
    ResourceExhausted {
        /// What became of a write.
        outcome: Outcome,
        /// What the node said.
        detail: Box<Detail>,
    },
    /// Refused or failed for another reason, named by the code.
    #[error("the request was refused with {code:?} ({outcome}): {detail}", code = detail.code)]
    Refused {
        /// What became of a write.
        outcome: Outcome,
        /// What the node said.
        detail: Box<Detail>,
    },
    /// The client's own configuration cannot work.
    #[error("the client's configuration is invalid: {0}")]
    Configuration(String),
}

/// What became of a write that did not succeed. Reads always have [`Outcome::NotApplied`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// No node holds it: safe to repeat.
    NotApplied,
    /// It may have been applied. Repeat it with the same op id, or read.
    Unknown,
    /// Some nodes may hold it: one read may see it and the next miss it, until it is repaired.
    Partial {
        /// Nodes that accepted it.
        acks: u32,
        /// Of these, primaries.
        primaries: u32,
        /// Of these, nodes that have synced it to disk.
        durable: u32,
    },
}

/// The last failure behind an [`Error`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detail {
    /// The gRPC code.
    pub code: tonic::Code,
    /// Machine-readable, such as `QUORUM_NOT_MET`; empty if no node named one.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Address of the node that was asked last; empty if none was.
    pub node: String,
    /// Requests that were sent.
    pub attempts: u32,
}

impl Error {
    /// What became of the write; [`Outcome::NotApplied`] for errors that are given before anything is sent on.
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unavailable { outcome, .. }
            | Self::DeadlineExceeded { outcome, .. }
            | Self::ResourceExhausted { outcome, .. }
            | Self::Refused { outcome, .. } => *outcome,
            Self::NotFound { .. } | Self::InvalidArgument { .. } | Self::Configuration(_) => {
                Outcome::NotApplied
            }
        }
    }

    /// What the node said, if one was asked.
    pub fn detail(&self) -> Option<&Detail> {
        match self {
            Self::InvalidArgument { detail }
            | Self::Unavailable { detail, .. }
            | Self::DeadlineExceeded { detail, .. }
            | Self::ResourceExhausted { detail, .. }
            | Self::Refused { detail, .. } => Some(detail),
            Self::NotFound { .. } | Self::Configuration(_) => None,
        }
    }

    /// The machine-readable reason; empty if there is none.
    pub fn reason(&self) -> &str {
        match self {
            Self::NotFound { .. } => "KEY_NOT_FOUND",
            other => other.detail().map_or("", |detail| detail.reason.as_str()),
        }
    }

    /// Whether the key has no live value.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotApplied => f.write_str("nothing was applied"),
            Self::Unknown => f.write_str("a write may have been applied"),
            Self::Partial {
                acks,
                primaries,
                durable,
            } => {
                write!(
                    f,
                    "partly applied: {acks} acks, {primaries} of them primaries, {durable} durable"
                )
            }
        }
    }
}

impl std::fmt::Display for Detail {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        if !self.reason.is_empty() {
            write!(f, " [{}]", self.reason)?;
        }
        match self.attempts {
            0 => Ok(()),
            1 => write!(f, "; asked {}", self.node),
            attempts => write!(f, "; {attempts} attempts, the last at {}", self.node),
        }
    }
}
