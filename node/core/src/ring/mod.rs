//! The ring: Q equal partitions of the hash space and the member that owns each, as an immutable value.
//!
//! ```text
//!   hash space   0 ──────────────────────────────▶ 2^64
//!   partitions   │ 0 │ 1 │ 2 │ 3 │ ...      │ Q-1 │      Q a power of two, ranges equal
//!   owners       │ b │ a │ d │ c │ ...      │  a  │      one token each, by `claim`
//!                      └─▶ walk clockwise: the preference list, by `preference`
//! ```
//!
//! Every placement answer is a pure function of this value, so nodes that hold the same ring (epoch and hash) agree
//! without talking. Paper: §4.2 (virtual nodes), §4.3 (preference list), §6.2 (strategy 3: Q fixed, equal ranges).
//! Differs: preference lists spread over zones by rule, and weights share the tokens exactly.

use std::ops::RangeInclusive;

use bytes::Bytes;

use crate::types::{ClusterId, KeyHash, MemberId, PartitionId, Zone, digest_u64};

mod claim;
mod codec;
mod placement;
mod plan;
mod preference;

pub use claim::claim;
pub use placement::Placement;
pub use plan::{Plan, PlanError, ShareChange, Target, plan};
pub use preference::PreferenceList;

/// Fewest partitions of a ring.
pub const PARTITIONS_MIN: u32 = 8;
/// Most partitions of a ring.
pub const PARTITIONS_MAX: u32 = 16_384;
/// Most members of a ring.
pub const MEMBERS_MAX: usize = 4096;
/// Most replicas of a key.
pub const FACTOR_MAX: u32 = 7;
/// Largest weight of a member.
pub const WEIGHT_MAX: u32 = 100;

/// One member as the ring knows it: what placement depends on, and nothing that changes with an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The identity that owns tokens.
    pub id: MemberId,
    /// The failure domain that replicas are spread over.
    pub zone: Zone,
    /// Share of the tokens relative to the other members, 1..=100.
    pub weight: u32,
}

/// Everything a ring is made of, unchecked: what [`Ring::new`] takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingParts {
    /// The cluster that the ring belongs to.
    pub cluster_id: ClusterId,
    /// 1 for the first ring; grows by one with every change.
    pub epoch: u64,
    /// N, 1..=7 and at most the number of members.
    pub factor: u32,
    /// Strictly ascending by id.
    pub members: Vec<Member>,
    /// One index into `members` per partition, clockwise from hash 0.
    pub owners: Vec<u16>,
}

/// A checked ring. Rings are ordered by (epoch, hash); the larger wins everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ring {
    parts: RingParts,
    hash: u64,
}

/// Why a ring cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// Q is not a power of two in range.
    #[error(
        "a ring cannot have {0} partitions: use a power of two from {PARTITIONS_MIN} to {PARTITIONS_MAX}"
    )]
    Partitions(u32),
    /// Q cannot be changed together with the members.
    #[error("a ring of {previous} partitions cannot become one of {partitions} while tokens are claimed")]
    PartitionsChanged {
        /// Of the previous ring.
        previous: u32,
        /// Asked for.
        partitions: u32,
    },
    /// No members, or too many.
    #[error("a ring cannot have {0} members: use 1 to {MEMBERS_MAX}")]
    Members(usize),
    /// Some members would have no token.
    #[error(
        "{members} members cannot share {partitions} partitions: each needs at least one, use more partitions"
    )]
    TooFewPartitions {
        /// How many members.
        members: usize,
        /// Q.
        partitions: u32,
    },
    /// N is out of range.
    #[error("a replication factor of {factor} is not possible with {members} members: use 1 to {}", FACTOR_MAX.min(*.members as u32))]
    Factor {
        /// N.
        factor: u32,
        /// How many members there are.
        members: usize,
    },
    /// A member is listed twice.
    #[error("member {0} is listed twice")]
    Duplicate(MemberId),
    /// A ring's members are not in the order of their ids.
    #[error("member {0} is not in the order of the ids")]
    Unordered(MemberId),
    /// A weight is out of range.
    #[error("member {member} cannot have weight {weight}: use 1 to {WEIGHT_MAX}")]
    Weight {
        /// Whose.
        member: MemberId,
        /// What it was.
        weight: u32,
    },
    /// A partition's owner is not a member.
    #[error("partition {0} has an owner that is not a member")]
    Owner(u32),
    /// A member owns nothing, so that no walk would find it.
    #[error("member {0} owns no token")]
    NoToken(MemberId),
    /// Epochs begin at 1.
    #[error("a ring's epoch must be at least 1 and below 2^63")]
    Epoch,
}

impl Ring {
    /// The first ring of a cluster: epoch 1, tokens claimed with no previous ring.
    ///
    /// Members may come in any order; the ring is the same.
    ///
    /// # Errors
    /// If the partitions, the factor or a member is out of range, or a member is listed twice.
    pub fn bootstrap(
        cluster_id: ClusterId,
        members: Vec<Member>,
        partitions: u32,
        factor: u32,
    ) -> Result<Self, RingError> {
        let owners = claim(&members, partitions, factor, None)?;
        Self::new(RingParts {
            cluster_id,
            epoch: 1,
            factor,
            members: sorted(members),
            owners,
        })
    }

    /// The ring of the next epoch with these members instead, moving as little as it can.
    ///
    /// # Errors
    /// If the factor does not fit the members, or a member is out of range or listed twice.
    pub fn with_members(&self, members: Vec<Member>) -> Result<Self, RingError> {
        let owners = claim(&members, self.partitions(), self.factor(), Some(self))?;
        Self::new(RingParts {
            cluster_id: self.cluster_id(),
            epoch: self.epoch() + 1,
            factor: self.factor(),
            members: sorted(members),
            owners,
        })
    }

    /// Checks the parts and makes them a ring.
    ///
    /// # Errors
    /// If any of them breaks a rule of [`RingParts`], or a member owns no token.
    pub fn new(parts: RingParts) -> Result<Self, RingError> {
        check_shape(&parts.members, parts.owners.len() as u32, parts.factor)?;
        if let Some(pair) = parts.members.windows(2).find(|pair| pair[0].id >= pair[1].id) {
            return Err(RingError::Unordered(pair[1].id.clone()));
        }
        if parts.epoch == 0 || parts.epoch >= 1 << 63 {
            return Err(RingError::Epoch);
        }
        let mut found = vec![false; parts.members.len()];
        for (partition, owner) in parts.owners.iter().enumerate() {
            *found
                .get_mut(usize::from(*owner))
                .ok_or(RingError::Owner(partition as u32))? = true;
        }
        if let Some(index) = found.iter().position(|found| !found) {
            return Err(RingError::NoToken(parts.members[index].id.clone()));
        }
        let hash = digest_u64(&codec::body(&parts));
        Ok(Self { parts, hash })
    }

    /// The cluster that the ring belongs to.
    pub fn cluster_id(&self) -> ClusterId {
        self.parts.cluster_id
    }

    /// 1 for the first ring; grows by one with every change.
    pub fn epoch(&self) -> u64 {
        self.parts.epoch
    }

    /// First 8 bytes, big-endian, of the SHA-256 of [`Ring::encode`] without its last 4 bytes, the checksum.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// What orders rings: the larger wins.
    pub fn version(&self) -> (u64, u64) {
        (self.epoch(), self.hash)
    }

    /// N: replicas of every key.
    pub fn factor(&self) -> u32 {
        self.parts.factor
    }

    /// All members, ascending by id.
    pub fn members(&self) -> &[Member] {
        &self.parts.members
    }

    /// Where a member stands in [`Ring::members`].
    pub fn index_of(&self, member: &MemberId) -> Option<usize> {
        self.members()
            .binary_search_by(|candidate| candidate.id.cmp(member))
            .ok()
    }

    /// Q, a power of two.
    pub fn partitions(&self) -> u32 {
        self.parts.owners.len() as u32
    }

    /// The owner of every partition, clockwise from hash 0, as indexes into [`Ring::members`].
    pub fn owners(&self) -> &[u16] {
        &self.parts.owners
    }

    /// The owner of a partition, as an index into [`Ring::members`]. Numbers beyond Q wrap around.
    pub fn owner(&self, partition: PartitionId) -> usize {
        usize::from(self.parts.owners[self.position(partition)])
    }

    /// The partition that holds a key: the top bits of its hash.
    pub fn partition_of(&self, hash: KeyHash) -> PartitionId {
        PartitionId((hash.0 >> self.shift()) as u32)
    }

    /// First and last hash of a partition. Numbers beyond Q wrap around.
    pub fn range(&self, partition: PartitionId) -> RangeInclusive<u64> {
        let first = (self.position(partition) as u64) << self.shift();
        first..=first + ((1 << self.shift()) - 1)
    }

    /// The ring's one encoding, format version 1: equal rings have equal bytes.
    ///
    /// Numbers are LEB128 varints in their shortest form unless said otherwise; names carry their length as a varint.
    /// ```text
    /// 1 byte   format version = 1
    /// 16 bytes cluster id
    /// varint   epoch
    /// varint   factor N
    /// varint   number of members, then for each, ascending by id: id, zone, varint weight
    /// varint   number of partitions Q, then for each, clockwise: its owner's index as 2 bytes, big-endian
    /// 4 bytes  CRC-32C of all bytes before, big-endian
    /// ```
    /// The ring's hash covers everything before the checksum.
    pub fn encode(&self) -> Bytes {
        codec::encode(&self.parts)
    }

    /// Reads what [`Ring::encode`] wrote, and nothing else.
    ///
    /// # Errors
    /// If the bytes are not the encoding of a valid ring.
    pub fn decode(bytes: Bytes) -> Result<Self, crate::wire::DecodeError> {
        codec::decode(bytes)
    }

    fn shift(&self) -> u32 {
        u64::BITS - self.partitions().trailing_zeros()
    }

    fn position(&self, partition: PartitionId) -> usize {
        (partition.0 & (self.partitions() - 1)) as usize
    }
}

/// Members in the order of a ring.
fn sorted(mut members: Vec<Member>) -> Vec<Member> {
    members.sort_by(|a, b| a.id.cmp(&b.id));
    members
}

/// The rules that need no owners and no order.
fn check_shape(members: &[Member], partitions: u32, factor: u32) -> Result<(), RingError> {
    if !partitions.is_power_of_two() || !(PARTITIONS_MIN..=PARTITIONS_MAX).contains(&partitions) {
        return Err(RingError::Partitions(partitions));
    }
    if members.is_empty() || members.len() > MEMBERS_MAX {
        return Err(RingError::Members(members.len()));
    }
    if members.len() > partitions as usize {
        return Err(RingError::TooFewPartitions {
            members: members.len(),
            partitions,
        });
    }
    if factor == 0 || factor > FACTOR_MAX || factor as usize > members.len() {
        return Err(RingError::Factor {
            factor,
            members: members.len(),
        });
    }
    match members
        .iter()
        .find(|member| member.weight == 0 || member.weight > WEIGHT_MAX)
    {
        Some(member) => Err(RingError::Weight {
            member: member.id.clone(),
            weight: member.weight,
        }),
        None => Ok(()),
    }
}
