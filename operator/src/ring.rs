//! The ring as a node told it, checked and walked by the core.

use std::sync::Arc;

use dynamo_core::{
    ring::{Member, Placement, Ring, RingError, RingParts},
    types::{ClusterId, MemberId, NameError, PartitionId, Zone},
};
use dynamo_proto::{admin as pb, v1};

/// What a node told is no ring.
#[derive(Debug, thiserror::Error)]
pub enum RingReadError {
    /// The message lacks it.
    #[error("the node's answer holds no ring")]
    Missing,
    /// A name breaks its rule.
    #[error("the node's ring has a bad name: {0}")]
    Name(#[from] NameError),
    /// The cluster id has another length than 16 bytes, or an owner does not fit 16 bits.
    #[error("the node's ring has a field out of range: {0}")]
    Range(&'static str),
    /// The parts fit no ring.
    #[error("the node's ring breaks a rule: {0}")]
    Ring(#[from] RingError),
    /// The hash is not that of the parts.
    #[error("the node says that its ring has the hash {said:016x}, but its parts have {found:016x}")]
    Hash {
        /// In the message.
        said: u64,
        /// Of the parts.
        found: u64,
    },
}

/// Reads a node's answer to `Admin.Ring`.
///
/// # Errors
/// If it is no valid ring, or its hash is not the one it claims.
pub fn read(response: pb::RingResponse) -> Result<Arc<Placement>, RingReadError> {
    let message = response.ring.ok_or(RingReadError::Missing)?;
    let said = message.hash;
    let ring = Ring::new(parts(message)?)?;
    if ring.hash() != said {
        return Err(RingReadError::Hash {
            said,
            found: ring.hash(),
        });
    }
    Ok(Arc::new(Placement::new(Arc::new(ring))))
}

fn parts(message: v1::Ring) -> Result<RingParts, RingReadError> {
    let id =
        <[u8; 16]>::try_from(message.cluster_id.as_ref()).map_err(|_| RingReadError::Range("cluster_id"))?;
    let members = message.members.into_iter().map(|member| {
        Ok(Member {
            id: MemberId::new(member.member_id)?,
            zone: Zone::new(member.zone)?,
            weight: member.weight,
        })
    });
    let owners = message
        .owners
        .into_iter()
        .map(u16::try_from)
        .collect::<Result<Vec<_>, _>>();
    Ok(RingParts {
        cluster_id: ClusterId(id),
        epoch: message.epoch,
        factor: message.factor,
        members: members.collect::<Result<_, NameError>>()?,
        owners: owners.map_err(|_| RingReadError::Range("owners"))?,
    })
}

/// The message of a ring: what a node answers.
pub fn write(ring: &Ring) -> pb::RingResponse {
    let members = ring.members().iter().map(|member| v1::RingMember {
        member_id: member.id.as_str().into(),
        zone: member.zone.as_str().into(),
        weight: member.weight,
        client_address: String::new(),
    });
    pb::RingResponse {
        ring: Some(v1::Ring {
            cluster_id: ring.cluster_id().0.to_vec().into(),
            epoch: ring.epoch(),
            hash: ring.hash(),
            factor: ring.factor(),
            members: members.collect(),
            owners: ring.owners().iter().map(|owner| u32::from(*owner)).collect(),
        }),
        shares: Vec::new(),
    }
}

/// How many partitions have fewer than `needed` primaries among the members that `serves` names.
pub fn partitions_without_quorum(placement: &Placement, needed: u32, serves: impl Fn(&str) -> bool) -> u32 {
    let ring = placement.ring();
    let serving: Vec<bool> = ring
        .members()
        .iter()
        .map(|member| serves(member.id.as_str()))
        .collect();
    let lacks = |partition: &u32| {
        let primaries = placement.primaries(PartitionId(*partition));
        let count = primaries
            .iter()
            .filter(|primary| serving[usize::from(**primary)])
            .count();
        u32::try_from(count).is_ok_and(|count| count < needed)
    };
    (0..ring.partitions()).filter(lacks).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(members: &[(&str, &str)], factor: u32) -> Ring {
        let members = members.iter().map(|(id, zone)| Member {
            id: MemberId::new(*id).unwrap(),
            zone: Zone::new(*zone).unwrap(),
            weight: 1,
        });
        Ring::bootstrap(ClusterId([7; 16]), members.collect(), 64, factor).unwrap()
    }

    #[test]
    fn a_ring_survives_the_wire_and_a_wrong_hash_does_not() {
        let ring = ring(&[("a-0", "a"), ("b-0", "b"), ("c-0", "c")], 3);
        assert_eq!(read(write(&ring)).unwrap().ring().as_ref(), &ring);
        let mut message = write(&ring);
        message.ring.as_mut().unwrap().hash ^= 1;
        assert!(matches!(read(message), Err(RingReadError::Hash { .. })));
    }

    #[test]
    fn quorums_are_counted_per_partition() {
        let three = Placement::new(Arc::new(ring(&[("a-0", "a"), ("b-0", "b"), ("c-0", "c")], 3)));
        assert_eq!(partitions_without_quorum(&three, 2, |_| true), 0);
        assert_eq!(partitions_without_quorum(&three, 2, |id| id != "a-0"), 0);
        assert_eq!(partitions_without_quorum(&three, 3, |id| id != "a-0"), 64);
        assert_eq!(partitions_without_quorum(&three, 2, |id| id == "a-0"), 64);

        // Six members in three zones: a whole zone lost costs no partition its quorum, for none has two replicas there.
        let members = [
            ("a-0", "a"),
            ("a-1", "a"),
            ("b-0", "b"),
            ("b-1", "b"),
            ("c-0", "c"),
            ("c-1", "c"),
        ];
        let six = Placement::new(Arc::new(ring(&members, 3)));
        assert_eq!(partitions_without_quorum(&six, 2, |id| !id.starts_with('b')), 0);
        let two_gone = partitions_without_quorum(&six, 2, |id| id != "a-0" && id != "b-0");
        assert!((1..64).contains(&two_gone), "{two_gone}");
    }
}
