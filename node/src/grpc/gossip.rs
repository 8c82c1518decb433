//! Gossip on the wire: digests and deltas, between the peer protocol and the core. Paper: §4.8.1.

use bytes::Bytes;
use dynamo_core::{
    bucket::BucketsDigest,
    membership::{Delta, Digest, LogEntry, MemberDigest, MemberEntry, RingVersion},
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
        ring: digest.ring.map(|ring| peer::RingVersion {
            epoch: ring.epoch,
            hash: ring.hash,
        }),
        buckets: Some(peer::BucketsDigest {
            count: digest.buckets.count,
            hash: digest.buckets.hash,
        }),
    }
}

pub(crate) fn digest_from_proto(cluster: ClusterId, digest: GossipDigest) -> Result<Digest, NameError> {
    let members = digest.members.into_iter().map(|entry| {
        Ok(MemberDigest {
            member: MemberId::new(entry.member_id)?,
            incarnation: incarnation_from_proto(entry.incarnation),
            version: entry.version,
        })
    });
    let buckets = digest.buckets.unwrap_or_default();
    Ok(Digest {
        cluster,
        members: members.collect::<Result<_, NameError>>()?,
        ring: digest.ring.map(|ring| RingVersion {
            epoch: ring.epoch,
            hash: ring.hash,
        }),
        buckets: BucketsDigest {
            count: buckets.count,
            hash: buckets.hash,
        },
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
        log: delta.log.iter().map(past_to_proto).collect(),
        buckets: delta.buckets.clone(),
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
    Ok(Delta {
        cluster,
        members: members.collect::<Result<_, NameError>>()?,
        ring: Some(delta.ring).filter(|ring: &Bytes| !ring.is_empty()),
        log: delta
            .log
            .into_iter()
            .map(past_from_proto)
            .collect::<Result<_, NameError>>()?,
        buckets: delta.buckets,
    })
}

fn past_to_proto(past: &LogEntry) -> peer::PastRing {
    peer::PastRing {
        epoch: past.epoch,
        hash: past.hash,
        member_ids: past.members.iter().map(ToString::to_string).collect(),
    }
}

fn past_from_proto(past: peer::PastRing) -> Result<LogEntry, NameError> {
    let members = past.member_ids.into_iter().map(MemberId::new);
    Ok(LogEntry {
        epoch: past.epoch,
        hash: past.hash,
        members: members.collect::<Result<_, NameError>>()?,
    })
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
