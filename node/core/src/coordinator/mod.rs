//! One machine per request: events in, effects out, never waiting. Paper: §4.5, §4.6, §5.
//!
//! ```text
//!                     put                                            get
//!   Start ─────────▶ WriteLocal                        Start ─────▶ Read{member} to all reachable primaries
//!   LocalPrepared ─▶ Send{member} to the others        ReplicaDone ┐
//!   LocalDone     ┐                                    ReplicaDone ├▶ Reply(found | absent | unavailable)
//!   PeerDone      ├▶ Reply(applied | partial | not)    Deadline    ┘
//!   Deadline      ┘                                    the rest  ──▶ Repair{member} to primaries that lack something
//! ```
//!
//! A get may hold back primaries that it does not need if all goes well: they are asked once another one is late or fails, and
//! are named with the reply if that never happened.
//!
//! A machine counts every node once and replies once: as soon as its quorum is met, or as soon as it can no longer be
//! met, or at the deadline. For a primary that is unreachable or fails, a fallback is asked. What arrives after the
//! reply is still of use: a put finds stand-ins until the deadline, a get repairs. A caller may drop the machine
//! then all the same; anti-entropy closes what that leaves open.

pub mod get;

pub mod put;

mod candidates;

mod copies;

mod reads;

pub use crate::bucket::ReadRepair;
pub use candidates::{Candidate, Candidates};
pub use get::{GetCoordinator, GetEffect, GetEvent, GetOutcome, GetResult, ReplicaRead};
pub use put::{Ack, PutCoordinator, PutEffect, PutEvent, WriteFailure, WriteOutcome, WriteState};

use crate::types::MemberId;

/// Why a replica did not do what it was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaFailure {
    /// The request left, so the replica may have carried it out all the same.
    pub sent: bool,
    /// What went wrong.
    pub kind: FailureKind,
}

/// What went wrong at a replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection, or it broke.
    Unreachable,
    /// No answer within the time given to it.
    TimedOut,
    /// It refused for lack of room or time.
    Overloaded,
    /// It uses a newer ring and refused a request under the older one.
    StaleEpoch,
    /// It could not read or write its disk.
    Storage,
    /// A fallback that takes no more hints: their budget on disk is spent.
    Declined,
    /// Its store may have lost what it had acknowledged, so its answer fills no read quorum.
    Suspect,
}

/// A replica that did not count, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailedReplica {
    /// Who.
    pub member: MemberId,
    /// Why.
    pub kind: FailureKind,
}

impl FailureKind {
    /// A fixed word for metrics and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::Overloaded => "overloaded",
            Self::StaleEpoch => "stale_epoch",
            Self::Storage => "storage",
            Self::Declined => "declined",
            Self::Suspect => "suspect",
        }
    }
}

#[cfg(test)]
mod tests;
