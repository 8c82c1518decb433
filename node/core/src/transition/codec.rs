//! The encoding of what follows a ring, for gossip and for the disk; and of what a member remembers of itself.
//!
//! ```text
//! followers  number of rings that are kept and of proposals, ascending by version, then for each (what is kept is older than its base):
//!              ring with its length, epoch (varint) and hash (8 bytes) of its base, number of the dead, their ids ascending
//!            number of marks, ascending, then for each:
//!              epoch (varint) and hash (8 bytes) of the ring, id of the member, generation (varint) and id (8 bytes) of its
//!              life, step (1 byte: 1 known, 2 synced, 3 reading)
//! heard      0: the volume remembers; else one more than the number of members heard from, then their ids, ascending
//! ```
//! Numbers are varints unless said otherwise, ids carry their length.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use super::{Followers, KEPT_MAX, Mark, PROPOSALS_MAX, Proposal, Step, Transition};
use crate::membership::RingVersion;
use crate::ring::{MEMBERS_MAX, Ring};
use crate::types::{ClusterId, Incarnation, MemberId, digest_u64};
use crate::wire::{DecodeError, Reader, put_bytes, put_varint};

/// A length, an epoch, a hash and a number.
const PROPOSAL_BYTES_MIN: usize = 11;
/// Epoch, hash, an id of one letter, generation, life and step.
const MARK_BYTES_MIN: usize = 21;
/// A length and a letter.
const ID_BYTES_MIN: usize = 2;

impl Followers {
    /// True if no ring is to follow, and none is kept.
    pub fn is_empty(&self) -> bool {
        self.proposals.is_empty() && self.kept.is_empty()
    }

    /// Tells whether two members know the same; 0 if there is nothing to know.
    pub fn hash(&self) -> u64 {
        if self.is_empty() {
            0
        } else {
            digest_u64(&self.encode()).max(1)
        }
    }

    /// The one encoding: equal ones have equal bytes.
    pub fn encode(&self) -> Bytes {
        let mut out = Vec::new();
        self.encode_to(&mut out);
        out.into()
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// If the bytes are not such an encoding, or a ring is of another cluster.
    pub fn decode(bytes: Bytes, cluster: ClusterId) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let followers = Self::read(&mut reader, cluster)?;
        reader.finish()?;
        Ok(followers)
    }

    pub(crate) fn encode_to(&self, out: &mut Vec<u8>) {
        put_varint(out, (self.kept.len() + self.proposals.len()) as u64);
        for proposal in self.kept.iter().chain(&self.proposals) {
            put_bytes(out, &proposal.ring.encode());
            put_version(out, proposal.base);
            put_ids(out, &proposal.dead);
        }
        put_varint(out, self.marks.len() as u64);
        for mark in &self.marks {
            put_version(out, mark.ring);
            put_bytes(out, mark.member.as_str().as_bytes());
            put_varint(out, u64::from(mark.incarnation.generation));
            out.extend_from_slice(&mark.incarnation.id.to_be_bytes());
            out.push(match mark.step {
                Step::Known => 1,
                Step::Synced => 2,
                Step::Reading => 3,
            });
        }
    }

    pub(crate) fn read(reader: &mut Reader, cluster: ClusterId) -> Result<Self, DecodeError> {
        let count = reader.count(PROPOSAL_BYTES_MIN)?;
        if count > KEPT_MAX + PROPOSALS_MAX {
            return Err(DecodeError::Invalid("number of proposals"));
        }
        let mut proposals: Vec<Proposal> = Vec::with_capacity(count);
        for _ in 0..count {
            let proposal = read_proposal(reader, cluster)?;
            if proposals
                .last()
                .is_some_and(|last| last.version() >= proposal.version())
            {
                return Err(DecodeError::Invalid("order of proposals"));
            }
            proposals.push(proposal);
        }
        let count = reader.count(MARK_BYTES_MIN)?;
        let mut marks = BTreeSet::new();
        for _ in 0..count {
            let mark = read_mark(reader)?;
            if marks.last().is_some_and(|last| *last >= mark) {
                return Err(DecodeError::Invalid("order of marks"));
            }
            marks.insert(mark);
        }
        let (kept, proposals) = proposals
            .into_iter()
            .partition(|proposal| proposal.version() < proposal.base);
        Ok(Self {
            proposals,
            marks,
            kept,
        })
    }
}

impl Transition {
    /// What this member must remember over a restart, without the base ring.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        self.followers.encode_to(out);
        match &self.heard {
            None => put_varint(out, 0),
            Some(heard) => {
                put_varint(out, heard.len() as u64 + 1);
                for member in heard {
                    put_bytes(out, member.as_str().as_bytes());
                }
            }
        }
    }

    /// Reads what [`put`](Self::put) wrote.
    pub(crate) fn take(
        reader: &mut Reader,
        me: MemberId,
        life: Incarnation,
        base: Arc<Ring>,
    ) -> Result<Self, DecodeError> {
        let followers = Followers::read(reader, base.cluster_id())?;
        let mut transition = Self::new(me, life, base, false);
        transition.followers = followers.clone();
        transition.heard = match reader.varint()? {
            0 => None,
            count => Some(read_ids(reader, count - 1)?),
        };
        transition.settle();
        if transition.followers != followers {
            return Err(DecodeError::Invalid("rings that follow another base"));
        }
        Ok(transition)
    }
}

fn put_version(out: &mut Vec<u8>, version: RingVersion) {
    put_varint(out, version.epoch);
    out.extend_from_slice(&version.hash.to_be_bytes());
}

fn put_ids(out: &mut Vec<u8>, ids: &BTreeSet<MemberId>) {
    put_varint(out, ids.len() as u64);
    for id in ids {
        put_bytes(out, id.as_str().as_bytes());
    }
}

fn read_proposal(reader: &mut Reader, cluster: ClusterId) -> Result<Proposal, DecodeError> {
    let ring = Ring::decode(reader.bytes()?)?;
    if ring.cluster_id() != cluster {
        return Err(DecodeError::Invalid("cluster of a proposed ring"));
    }
    let base = read_version(reader)?;
    let count = reader.count(ID_BYTES_MIN)?;
    Ok(Proposal {
        ring: Arc::new(ring),
        base,
        dead: read_ids(reader, count as u64)?,
    })
}

fn read_mark(reader: &mut Reader) -> Result<Mark, DecodeError> {
    Ok(Mark {
        ring: read_version(reader)?,
        member: read_id(reader)?,
        incarnation: Incarnation {
            generation: u32::try_from(reader.varint()?).map_err(|_| DecodeError::Invalid("generation"))?,
            id: reader.fixed_u64()?,
        },
        step: match reader.byte()? {
            1 => Step::Known,
            2 => Step::Synced,
            3 => Step::Reading,
            _ => return Err(DecodeError::Invalid("step")),
        },
    })
}

fn read_version(reader: &mut Reader) -> Result<RingVersion, DecodeError> {
    Ok(RingVersion {
        epoch: reader.varint()?,
        hash: reader.fixed_u64()?,
    })
}

fn read_ids(reader: &mut Reader, count: u64) -> Result<BTreeSet<MemberId>, DecodeError> {
    if count > MEMBERS_MAX as u64 {
        return Err(DecodeError::Invalid("number of ids"));
    }
    let mut ids = BTreeSet::new();
    for _ in 0..count {
        let id = read_id(reader)?;
        if ids.last().is_some_and(|last| *last >= id) {
            return Err(DecodeError::Invalid("order of ids"));
        }
        ids.insert(id);
    }
    Ok(ids)
}

fn read_id(reader: &mut Reader) -> Result<MemberId, DecodeError> {
    let id = String::from_utf8(reader.bytes()?.to_vec()).ok();
    let id = id.and_then(|id| MemberId::new(id).ok());
    id.ok_or(DecodeError::Invalid("member id"))
}
