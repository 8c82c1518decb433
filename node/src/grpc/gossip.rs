//! Gossip on the wire: digests and deltas, between the peer protocol and the core. Paper: §4.8.1.

use bytes::Bytes;
use dynamo_core::{
    membership::{
        Claim, Delta, Digest, Life, LogEntry, MemberDigest, MemberEntry, PoliciesDigest, Policy, RingVersion,
    },
    types::{ClusterId, Incarnation, MemberId, NameError, Zone},
};
use dynamo_proto::peer::{self, GossipDelta, GossipDigest};

pub(crate) fn digest_to_proto(digest: &Digest) -> GossipDigest {
    GossipDigest {
        members: digest
            .members
            .iter()
            .map(|entry| peer::MemberDigest {
                member_id: entry.member.as_str().to_owned(),
                incarnation: Some(incarnation_to_proto(entry.incarnation)),
                version: entry.version,
            })
            .collect(),
        ring: digest.ring.map(ring_version_to_proto),
        followers: digest.followers,
        log: digest.log.iter().copied().map(ring_version_to_proto).collect(),
        policies: digest.policies.map(|policies| peer::PoliciesDigest {
            count: policies.count,
            hash: policies.hash,
        }),
        lives: digest
            .claim
            .iter()
            .flat_map(|claim| &claim.lives)
            .map(|life| peer::Life {
                incarnation: Some(incarnation_to_proto(life.incarnation)),
                synced: life.synced,
            })
            .collect(),
    }
}

pub(crate) fn digest_from_proto(
    cluster: ClusterId,
    from: String,
    digest: GossipDigest,
) -> Result<Digest, NameError> {
    let members = digest.members.into_iter().map(|entry| {
        Ok(MemberDigest {
            member: MemberId::new(entry.member_id)?,
            incarnation: incarnation_from_proto(entry.incarnation),
            version: entry.version,
        })
    });
    let lives = digest.lives.into_iter().map(|life| Life {
        incarnation: incarnation_from_proto(life.incarnation),
        synced: life.synced,
    });
    let lives: Vec<Life> = lives.collect();
    let claim = if lives.is_empty() {
        None
    } else {
        Some(Claim {
            member: MemberId::new(from)?,
            lives,
        })
    };
    Ok(Digest {
        cluster,
        members: members.collect::<Result<_, NameError>>()?,
        ring: digest.ring.map(ring_version_from_proto),
        followers: digest.followers,
        log: digest.log.into_iter().map(ring_version_from_proto).collect(),
        policies: digest.policies.map(|policies| PoliciesDigest {
            count: policies.count,
            hash: policies.hash,
        }),
        claim,
    })
}

pub(crate) fn delta_to_proto(delta: &Delta) -> GossipDelta {
    GossipDelta {
        members: delta
            .members
            .iter()
            .map(|entry| peer::MemberEntry {
                member_id: entry.member.as_str().to_owned(),
                incarnation: Some(incarnation_to_proto(entry.incarnation)),
                version: entry.version,
                peer_address: entry.peer_address.clone(),
                client_address: entry.client_address.clone(),
                admin_address: entry.admin_address.clone(),
                zone: entry.zone.as_str().to_owned(),
                release: entry.release.clone(),
                starts: entry.starts,
                synced: entry.synced,
            })
            .collect(),
        ring: delta.ring.clone().unwrap_or_default(),
        followers: delta.followers.clone().unwrap_or_default(),
        log: delta
            .log
            .iter()
            .map(|entry| peer::RingLogEntry {
                epoch: entry.epoch,
                hash: entry.hash,
                member_ids: entry.members.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        policies: delta
            .policies
            .iter()
            .map(|(name, policy)| peer::Policy {
                name: name.clone(),
                version: policy.version,
                contents: policy.bytes.clone(),
            })
            .collect(),
    }
}

pub(crate) fn delta_from_proto(cluster: ClusterId, delta: GossipDelta) -> Result<Delta, NameError> {
    let members = delta.members.into_iter().map(|entry| {
        Ok(MemberEntry {
            member: MemberId::new(entry.member_id)?,
            incarnation: incarnation_from_proto(entry.incarnation),
            version: entry.version,
            peer_address: entry.peer_address,
            client_address: entry.client_address,
            admin_address: entry.admin_address,
            zone: Zone::new(entry.zone)?,
            release: entry.release,
            starts: entry.starts,
            synced: entry.synced,
        })
    });
    let log = delta.log.into_iter().map(|entry| {
        let members = entry.member_ids.into_iter().map(MemberId::new);
        Ok(LogEntry {
            epoch: entry.epoch,
            hash: entry.hash,
            members: members.collect::<Result<_, NameError>>()?,
        })
    });
    let policies = delta.policies.into_iter().map(|policy| {
        let (version, bytes) = (policy.version, policy.contents);
        (policy.name, Policy { version, bytes })
    });
    Ok(Delta {
        cluster,
        members: members.collect::<Result<_, NameError>>()?,
        ring: Some(delta.ring).filter(|ring: &Bytes| !ring.is_empty()),
        followers: Some(delta.followers).filter(|followers: &Bytes| !followers.is_empty()),
        log: log.collect::<Result<_, NameError>>()?,
        policies: policies.collect(),
    })
}

pub(crate) fn ring_version_to_proto(ring: RingVersion) -> peer::RingVersion {
    peer::RingVersion {
        epoch: ring.epoch,
        hash: ring.hash,
    }
}

pub(crate) fn ring_version_from_proto(ring: peer::RingVersion) -> RingVersion {
    RingVersion {
        epoch: ring.epoch,
        hash: ring.hash,
    }
}

fn incarnation_to_proto(incarnation: Incarnation) -> peer::Incarnation {
    peer::Incarnation {
        generation: incarnation.generation,
        id: incarnation.id,
    }
}

fn incarnation_from_proto(incarnation: Option<peer::Incarnation>) -> Incarnation {
    let incarnation = incarnation.unwrap_or_default();
    Incarnation {
        generation: incarnation.generation,
        id: incarnation.id,
    }
}
