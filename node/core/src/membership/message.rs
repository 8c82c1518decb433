//! What two nodes tell each other; see [`view`](super::view).

use bytes::Bytes;

use super::entry::MemberEntry;
use super::history::Claim;
use super::log::LogEntry;
use super::policies::{PoliciesDigest, Policy};
use crate::ring::Ring;
use crate::types::{ClusterId, Incarnation, MemberId};

/// Most entries of one delta, about 1 MB; what is left over comes with the next round.
pub const DELTA_ENTRIES_MAX: usize = 1024;

/// How new a member's statement is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberDigest {
    /// Whose.
    pub member: MemberId,
    /// Which life.
    pub incarnation: Incarnation,
    /// Which statement of that life.
    pub version: u64,
}

/// Which ring; the larger wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingVersion {
    /// Its epoch.
    pub epoch: u64,
    /// Its hash.
    pub hash: u64,
}

/// What a node knows, without the contents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// One for each member.
    pub members: Vec<MemberDigest>,
    /// Absent while the node has no ring.
    pub ring: Option<RingVersion>,
    /// Of the rings that are to follow it: [`Followers::hash`](crate::transition::Followers::hash).
    pub followers: u64,
    /// The rings of its log, ascending.
    pub log: Vec<RingVersion>,
    /// Absent if the sender knows nothing of policies.
    pub policies: Option<PoliciesDigest>,
    /// How far the sender can account for its own lives; absent if it does not say.
    pub claim: Option<Claim>,
}

/// Contents for another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delta {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// At most [`DELTA_ENTRIES_MAX`]; the first may be one about the receiver's own past that contradicts its claim.
    pub members: Vec<MemberEntry>,
    /// The encoded base ring.
    pub ring: Option<Bytes>,
    /// What follows it: encoded [`Followers`](crate::transition::Followers).
    pub followers: Option<Bytes>,
    /// Rings of the log, newest first, as many as [`DELTA_LOG_MEMBERS_MAX`](super::log::DELTA_LOG_MEMBERS_MAX) allows.
    pub log: Vec<LogEntry>,
    /// All policies with their names, or none.
    pub policies: Vec<(String, Policy)>,
}

/// What a node lacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// At most [`DELTA_ENTRIES_MAX`].
    pub members: Vec<MemberId>,
    /// The base ring and what follows it, too.
    pub ring: bool,
    /// These rings of the log, ascending.
    pub log: Vec<RingVersion>,
    /// All policies too.
    pub policies: bool,
}

/// The reply to a digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What this node knows better.
    pub delta: Delta,
    /// What the other knows better.
    pub wanted: Wanted,
}

impl From<&Ring> for RingVersion {
    fn from(ring: &Ring) -> Self {
        Self {
            epoch: ring.epoch(),
            hash: ring.hash(),
        }
    }
}
