//! `dynamo.peer.v1.Peer`: what the nodes of one cluster speak with each other.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    membership::{
        Claim, Delta, Digest, Life, LogEntry, MemberDigest, MemberEntry, PoliciesDigest, Policy, RingVersion,
    },
    types::{ClusterId, Incarnation, MemberId, NameError, Zone},
    version::{KeyState, STATE_FORMAT_VERSION},
};
use dynamo_proto::peer::{
    self, CoordinateRequest, CoordinateResponse, GossipDelta, GossipDigest, GossipRequest, GossipResponse,
    HandshakeRequest, HandshakeResponse, Header, ReadRequest, ReadResponse, ScanRequest, ScanResponse,
    WriteRequest, WriteResponse, peer_server::Peer,
};
use tonic::{Request, Response, Status};

use super::{
    convert, kv,
    status::{Failure, Reason},
};
use crate::{node::Node, peers::PROTOCOL_VERSIONS, request::not_ready, storage::writer::WriteError, tasks};

/// The peer service.
pub(crate) struct PeerService {
    node: Arc<Node>,
}

impl PeerService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Checks who speaks, and that it is meant for this node. Gives the header of the answer.
    fn check(&self, header: Option<&Header>) -> Result<Header, Failure> {
        let membership = self.node.membership();
        let mine = membership
            .header("")
            .ok_or_else(|| not_ready(membership.not_ready_reason()))?;
        let theirs = header.ok_or_else(|| Failure::invalid("a message between nodes must have a header"))?;
        if theirs.cluster_id != mine.cluster_id {
            return Err(Failure::new(
                Reason::ForeignCluster,
                format!(
                    "{} belongs to another cluster than {}",
                    theirs.member_id, mine.member_id
                ),
            ));
        }
        if !theirs.recipient.is_empty() && theirs.recipient != mine.member_id {
            return Err(Failure::new(
                Reason::WrongRecipient,
                format!("this is {}, not {}", mine.member_id, theirs.recipient),
            ));
        }
        Ok(mine)
    }

    /// Like [`Self::check`], for data: a node that stops or waits for its ring serves none.
    fn check_data(&self, header: Option<&Header>) -> Result<(), Failure> {
        self.check(header)?;
        self.node.placed().map(drop)
    }
}

#[tonic::async_trait]
impl Peer for PeerService {
    async fn handshake(
        &self,
        request: Request<HandshakeRequest>,
    ) -> Result<Response<HandshakeResponse>, Status> {
        let request = request.into_inner();
        let mine = self.check(request.header.as_ref())?;
        let (min, max) = PROTOCOL_VERSIONS;
        let version = max.min(request.protocol_version_max);
        if version < min.max(request.protocol_version_min) {
            let message = format!(
                "release {} speaks protocol versions {}..={}, this release ({}) {min}..={max}",
                request.release,
                request.protocol_version_min,
                request.protocol_version_max,
                env!("CARGO_PKG_VERSION")
            );
            return Err(Failure::new(Reason::UnsupportedProtocol, message).into());
        }
        Ok(Response::new(HandshakeResponse {
            header: Some(mine),
            protocol_version: version,
            state_format_version: STATE_FORMAT_VERSION.into(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        }))
    }

    async fn gossip(&self, request: Request<GossipRequest>) -> Result<Response<GossipResponse>, Status> {
        let request = request.into_inner();
        let mine = self.check(request.header.as_ref())?;
        let mut response = GossipResponse {
            header: Some(mine),
            ..GossipResponse::default()
        };
        if let Some(delta) = request.delta {
            tasks::merge(&self.node, delta).await;
        }
        let from = request.header.map(|header| header.member_id).unwrap_or_default();
        if let (Some(digest), Some(cluster)) = (request.digest, self.node.membership().cluster_id()) {
            let digest = digest_from_proto(cluster, from, digest)
                .map_err(|error| Failure::invalid(error.to_string()))?;
            if let Some(answer) = self.node.membership().answer(&digest) {
                response.delta = Some(delta_to_proto(&answer.delta));
                response.wanted_members = answer
                    .wanted
                    .members
                    .iter()
                    .map(|member| member.as_str().to_owned())
                    .collect();
                response.wants_ring = answer.wanted.ring;
                response.wanted_log = answer.wanted.log.into_iter().map(ring_version_to_proto).collect();
                response.wants_policies = answer.wanted.policies;
            }
        }
        Ok(Response::new(response))
    }

    async fn read(&self, request: Request<ReadRequest>) -> Result<Response<ReadResponse>, Status> {
        let request = request.into_inner();
        self.check_data(request.header.as_ref())?;
        let key = convert::record_key(&request.bucket, &request.key)?;
        let state = self.node.load(&key).await.map_err(|error| {
            Failure::new(
                Reason::CorruptRecord,
                format!("key with hash {}: {error}", key.hash()),
            )
        })?;
        Ok(Response::new(ReadResponse {
            state: state.map(|state| state.encode()),
        }))
    }

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let request = request.into_inner();
        self.check_data(request.header.as_ref())?;
        let key = convert::record_key(&request.bucket, &request.key)?;
        let state = KeyState::decode(request.state).map_err(|error| {
            Failure::invalid(format!("the state of the key with hash {}: {error}", key.hash()))
        })?;
        match self.node.writer().merge(key, state, request.sync).await {
            Ok(committed) => Ok(Response::new(WriteResponse {
                durable: committed.durable,
            })),
            Err(error @ WriteError::Overloaded) => {
                Err(Failure::new(Reason::Overloaded, error.to_string()).into())
            }
            Err(error @ WriteError::Stopped) => Err(not_ready(&error.to_string()).into()),
            Err(error) => Err(Failure::new(Reason::Storage, error.to_string()).into()),
        }
    }

    async fn coordinate(
        &self,
        request: Request<CoordinateRequest>,
    ) -> Result<Response<CoordinateResponse>, Status> {
        let request = request.into_inner();
        self.check_data(request.header.as_ref())?;
        kv::coordinate_forwarded(&self.node, request)
            .await
            .map(Response::new)
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanResponse>, Status> {
        let request = request.into_inner();
        self.check_data(request.header.as_ref())?;
        Ok(Response::new(self.node.scan_local(request).await?))
    }
}

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

fn digest_from_proto(cluster: ClusterId, from: String, digest: GossipDigest) -> Result<Digest, NameError> {
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
        log: log.collect::<Result<_, NameError>>()?,
        policies: policies.collect(),
    })
}

fn ring_version_to_proto(ring: RingVersion) -> peer::RingVersion {
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
