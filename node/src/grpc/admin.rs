//! `dynamo.admin.v1.Admin`: what administrators and the operator speak with one node.

use std::sync::Arc;

use bytes::Bytes;
use dynamo_core::{
    ring::Ring,
    types::{ClusterId, MemberId},
    version::{Content, KeyState},
};
use dynamo_proto::admin::{
    AcceptLossRequest, AcceptLossResponse, ActorCounter, BootstrapRequest, BootstrapResponse, CommitRequest,
    CommitResponse, ExchangesRequest, ExchangesResponse, HintsRequest, HintsResponse, InspectRequest,
    InspectResponse, JoinRequest, JoinResponse, ListBucketsRequest, ListBucketsResponse, LocalGetRequest,
    LocalGetResponse, LocateRequest, LocateResponse, MemberShare, MembershipLogEntry, MembershipLogRequest,
    MembershipLogResponse, MerkleRootRequest, MerkleRootResponse, PauseTaskRequest, PauseTaskResponse,
    PeerInfo, PeersRequest, PeersResponse, PlanRequest, PlanResponse, PreferenceEntry, PreferenceListRequest,
    PreferenceListResponse, RepairRequest, RepairResponse, ReplicaState, RingRequest, RingResponse,
    SalvageProgress, SalvageRequest, SetBucketRequest, SetBucketResponse, SiblingInfo, StatusRequest,
    StatusResponse, TasksRequest, TasksResponse, TransitionRequest, TransitionResponse, admin_server::Admin,
    status_response::State,
};
use futures::future::join_all;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{
    change, convert,
    status::{Failure, Reason},
    upkeep,
};
use crate::{
    background::salvage,
    clock::wall_ms,
    membership::member,
    node::{Node, Placed},
    storage::DataKey,
};

/// Q of a bootstrap that names none.
const PARTITIONS_DEFAULT: u32 = 256;
/// N of a bootstrap that names none.
const FACTOR_DEFAULT: u32 = 3;
/// The largest N.
const FACTOR_MAX: u32 = 7;
/// Seeds that a join may add.
const SEEDS_MAX: usize = 100;

/// The administrators' service.
pub(crate) struct AdminService {
    node: Arc<Node>,
}

impl AdminService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    fn ring_in_use(&self) -> Result<Arc<Placed>, Failure> {
        self.node.ring_in_use().ok_or_else(|| {
            Failure::new(
                Reason::NoRing,
                format!("no ring: {}", self.node.membership().not_ready_reason()),
            )
        })
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        let request = request.into_inner();
        let cluster = cluster_id(&request.cluster_id)?;
        let members = request
            .members
            .iter()
            .map(|entry| member(&entry.member_id, &entry.zone, entry.weight));
        let members = members.collect::<Result<Vec<_>, Failure>>()?;
        let me = members
            .iter()
            .find(|member| member.id.as_str() == request.member_id)
            .cloned()
            .ok_or_else(|| {
                Failure::invalid(format!(
                    "member_id {:?} is not among the members",
                    request.member_id
                ))
            })?;
        let partitions = if request.partitions == 0 {
            PARTITIONS_DEFAULT
        } else {
            request.partitions
        };
        let factor = if request.factor == 0 {
            FACTOR_DEFAULT
        } else {
            request.factor
        };
        if !(1..=FACTOR_MAX).contains(&factor) {
            return Err(
                Failure::invalid(format!("the factor is {factor} but must be 1..={FACTOR_MAX}")).into(),
            );
        }
        let ring = Ring::bootstrap(cluster, members, partitions, factor)
            .map_err(|error| Failure::invalid(format!("these members make no ring: {error}")))?;
        let others = request
            .members
            .iter()
            .filter(|entry| entry.member_id != request.member_id);
        let seeds = others
            .map(|entry| entry.peer_address.clone())
            .filter(|address| !address.is_empty())
            .collect();
        let done = self
            .node
            .membership()
            .bootstrap(self.node.writer(), ring, &me, seeds)
            .await?;
        if done.created {
            tracing::info!(%cluster, member = %me.id, "bootstrapped");
            self.node.ring_changed();
        }
        Ok(Response::new(BootstrapResponse {
            ring_epoch: done.ring.epoch(),
            ring_hash: done.ring.hash(),
            created: done.created,
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        let request = request.into_inner();
        let cluster = cluster_id(&request.cluster_id)?;
        let me = member(&request.member_id, &request.zone, request.weight)?;
        if request.seeds.len() > SEEDS_MAX {
            return Err(Failure::invalid(format!("at most {SEEDS_MAX} seeds")).into());
        }
        let joined = self
            .node
            .membership()
            .join(self.node.writer(), cluster, &me, request.seeds)
            .await?;
        if joined {
            tracing::info!(%cluster, member = %me.id, zone = me.zone.as_str(), "joined; waiting for the ring");
        }
        Ok(Response::new(JoinResponse { joined }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        Ok(Response::new(status(&self.node)))
    }

    async fn ring(&self, _: Request<RingRequest>) -> Result<Response<RingResponse>, Status> {
        let placed = self.ring_in_use()?;
        let placement = placed.placement();
        let ring = placement.ring();
        let shares = ring
            .members()
            .iter()
            .enumerate()
            .map(|(index, member)| MemberShare {
                member_id: member.id.as_str().to_owned(),
                tokens: placement.tokens(index),
                partitions: placement.replica_partitions(index),
            });
        Ok(Response::new(RingResponse {
            ring: Some(convert::ring(ring, |member| self.node.client_address(member))),
            shares: shares.collect(),
        }))
    }

    async fn preference_list(
        &self,
        request: Request<PreferenceListRequest>,
    ) -> Result<Response<PreferenceListResponse>, Status> {
        let request = request.into_inner();
        let placed = self.ring_in_use()?;
        let key = convert::record_key(&request.bucket, &request.key)?;
        let ring = placed.placement().ring();
        let partition = ring.partition_of(key.hash());
        let list = placed.placement().preference_list(partition);
        let entry = |index: &usize, primary| {
            let member = &ring.members()[*index];
            PreferenceEntry {
                member_id: member.id.as_str().to_owned(),
                zone: member.zone.as_str().to_owned(),
                primary,
                reachable: member.id == *placed.me() || self.node.peers().reachable(&member.id),
            }
        };
        let primaries = list.primaries.iter().map(|index| entry(index, true));
        let fallbacks = list.fallbacks.iter().map(|index| entry(index, false));
        Ok(Response::new(PreferenceListResponse {
            key_hash: key.hash().0,
            partition: partition.0,
            ring_epoch: ring.epoch(),
            entries: primaries.chain(fallbacks).collect(),
        }))
    }

    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        let request = request.into_inner();
        let placed = self.ring_in_use()?;
        let key = convert::record_key(&request.bucket, &request.key)?;
        let candidates = self.node.get_candidates(&placed, &key)?;
        let replicas = candidates
            .primaries
            .into_iter()
            .map(|candidate| inspect(&self.node, &placed, &key, candidate.member));
        Ok(Response::new(InspectResponse {
            replicas: join_all(replicas).await,
        }))
    }

    async fn local_get(
        &self,
        request: Request<LocalGetRequest>,
    ) -> Result<Response<LocalGetResponse>, Status> {
        let request = request.into_inner();
        let key = convert::record_key(&request.bucket, &request.key)?;
        let me = self
            .node
            .membership()
            .me()
            .map(|me| me.member.to_string())
            .unwrap_or_default();
        let state = self.node.load(&key).await.map_err(|error| {
            Failure::new(
                Reason::CorruptRecord,
                format!("key with hash {}: {error}", key.hash()),
            )
        })?;
        Ok(Response::new(LocalGetResponse {
            versions: state
                .as_ref()
                .map(|state| convert::versions(state, wall_ms()))
                .unwrap_or_default(),
            state: Some(replica_state(me, state.as_ref())),
        }))
    }

    async fn hints(&self, _: Request<HintsRequest>) -> Result<Response<HintsResponse>, Status> {
        Ok(Response::new(upkeep::hints(&self.node)))
    }

    async fn merkle_root(
        &self,
        request: Request<MerkleRootRequest>,
    ) -> Result<Response<MerkleRootResponse>, Status> {
        let placed = self.ring_in_use()?;
        let partition = request.into_inner().partition;
        Ok(Response::new(upkeep::merkle_root(
            &self.node, &placed, partition,
        )?))
    }

    async fn exchanges(&self, _: Request<ExchangesRequest>) -> Result<Response<ExchangesResponse>, Status> {
        Ok(Response::new(upkeep::exchanges(&self.node)))
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Result<Response<RepairResponse>, Status> {
        let placed = self.ring_in_use()?;
        let partition = request.into_inner().partition;
        Ok(Response::new(
            upkeep::repair(&self.node, &placed, partition).await?,
        ))
    }

    async fn accept_loss(
        &self,
        request: Request<AcceptLossRequest>,
    ) -> Result<Response<AcceptLossResponse>, Status> {
        let partitions = request.into_inner().partitions;
        Ok(Response::new(upkeep::accept_loss(&self.node, partitions).await))
    }

    type SalvageStream = ReceiverStream<Result<SalvageProgress, Status>>;

    async fn salvage(
        &self,
        request: Request<SalvageRequest>,
    ) -> Result<Response<Self::SalvageStream>, Status> {
        let placed = self.ring_in_use()?;
        let SalvageRequest { store, dry_run } = request.into_inner();
        let reports = salvage::start(&self.node, placed, store, dry_run).await?;
        Ok(Response::new(ReceiverStream::new(reports)))
    }

    async fn tasks(&self, _: Request<TasksRequest>) -> Result<Response<TasksResponse>, Status> {
        Ok(Response::new(upkeep::tasks(&self.node)))
    }

    async fn pause_task(
        &self,
        request: Request<PauseTaskRequest>,
    ) -> Result<Response<PauseTaskResponse>, Status> {
        let PauseTaskRequest { name, paused } = request.into_inner();
        upkeep::pause_task(&self.node, &name, paused)?;
        Ok(Response::new(PauseTaskResponse {}))
    }

    async fn set_bucket(
        &self,
        request: Request<SetBucketRequest>,
    ) -> Result<Response<SetBucketResponse>, Status> {
        let placed = self.ring_in_use()?;
        let asked = request.into_inner().bucket;
        let asked = asked.ok_or_else(|| Failure::invalid("the request must hold a bucket"))?;
        let bucket = upkeep::set_bucket(&self.node, &placed, asked).await?;
        Ok(Response::new(SetBucketResponse { bucket: Some(bucket) }))
    }

    async fn list_buckets(
        &self,
        _: Request<ListBucketsRequest>,
    ) -> Result<Response<ListBucketsResponse>, Status> {
        let buckets = upkeep::list_buckets(&self.node);
        Ok(Response::new(ListBucketsResponse { buckets }))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        Ok(Response::new(
            upkeep::search(&self.node, request.into_inner()).await?,
        ))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let placed = self.ring_in_use()?;
        let target = request.into_inner().target.unwrap_or_default();
        Ok(Response::new(change::planned(&self.node, &placed, target).await?))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let placed = self.ring_in_use()?;
        let request = request.into_inner();
        Ok(Response::new(change::commit(&self.node, &placed, request).await?))
    }

    async fn transition(
        &self,
        _: Request<TransitionRequest>,
    ) -> Result<Response<TransitionResponse>, Status> {
        Ok(Response::new(change::transition(&self.node)?))
    }

    async fn membership_log(
        &self,
        _: Request<MembershipLogRequest>,
    ) -> Result<Response<MembershipLogResponse>, Status> {
        let entries = self
            .node
            .membership()
            .log()
            .into_iter()
            .map(|entry| MembershipLogEntry {
                ring_epoch: entry.epoch,
                ring_hash: entry.hash,
                member_ids: entry.members.iter().map(ToString::to_string).collect(),
            });
        Ok(Response::new(MembershipLogResponse {
            entries: entries.collect(),
        }))
    }

    async fn peers(&self, _: Request<PeersRequest>) -> Result<Response<PeersResponse>, Status> {
        let ring = self.node.ring_in_use();
        let me = self.node.membership().me().map(|me| me.member);
        let peers = self.node.membership().entries().into_iter().map(|entry| {
            let listed = ring
                .as_ref()
                .is_some_and(|placed| placed.placement().ring().index_of(&entry.member).is_some());
            PeerInfo {
                member: listed,
                reachable: Some(&entry.member) == me.as_ref() || self.node.peers().reachable(&entry.member),
                last_error: self.node.peers().last_error(&entry.member).unwrap_or_default(),
                member_id: entry.member.to_string(),
                zone: entry.zone.to_string(),
                peer_address: entry.peer_address,
                client_address: entry.client_address,
                admin_address: entry.admin_address,
                release: entry.release,
                incarnation_generation: entry.incarnation.generation,
                incarnation_id: entry.incarnation.id,
            }
        });
        Ok(Response::new(PeersResponse {
            peers: peers.collect(),
        }))
    }
}

fn status(node: &Node) -> StatusResponse {
    let membership = node.membership();
    let (me, placed) = (membership.me(), node.ring_in_use());
    let state = match (&me, &placed) {
        _ if node.draining() => State::Draining,
        (None, _) => State::Unassigned,
        (Some(_), Some(placed)) if placed.serves() => State::Valid,
        (Some(_), _) => State::Joining,
    };
    let estimate = node.store().estimate().unwrap_or_default();
    let incarnation = membership.incarnation();
    let mut response = StatusResponse {
        state: state.into(),
        cluster_id: membership
            .cluster_id()
            .map(|id| Bytes::copy_from_slice(&id.0))
            .unwrap_or_default(),
        incarnation_generation: incarnation.generation,
        incarnation_id: incarnation.id,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_s: node.uptime_s(),
        keys_estimate: estimate.keys,
        data_bytes: estimate.bytes,
        not_ready_reason: node.not_ready_reason().unwrap_or_default(),
        hints: node.hints().owners().values().map(|count| count.records).sum(),
        partitions_suspect: node.partitions_suspect(),
        confirming: node.is_unconfirmed(),
        ..StatusResponse::default()
    };
    if let Some(me) = me {
        response.member_id = me.member.to_string();
        response.zone = me.zone.to_string();
    }
    if let Some(placed) = placed {
        let placement = placed.placement();
        response.ring_epoch = placement.ring().epoch();
        response.ring_hash = placement.ring().hash();
        if let Some(index) = placement.ring().index_of(placed.me()) {
            response.tokens = placement.tokens(index);
            response.partitions = placement.replica_partitions(index);
        }
        let others = placement
            .ring()
            .members()
            .iter()
            .filter(|member| member.id != *placed.me());
        let down = others.filter(|member| !node.peers().reachable(&member.id));
        response.peers_down = down.map(|member| member.id.to_string()).collect();
    }
    response
}

async fn inspect(node: &Arc<Node>, placed: &Arc<Placed>, key: &DataKey, member: MemberId) -> ReplicaState {
    let result = if member == *placed.me() {
        let read = node.read_replica(key).await;
        read.map_err(|error| error.to_string())
    } else {
        match node.membership().to(&member) {
            Some(to) => node
                .peers()
                .read(&to, key, false, None)
                .await
                .map_err(|failure| failure.kind.as_str().to_owned()),
            None => Err("its address is not known yet".to_owned()),
        }
    };
    match result {
        Ok(read) => replica_state(member.to_string(), read.state.as_ref()),
        Err(error) => ReplicaState {
            member_id: member.to_string(),
            error,
            ..ReplicaState::default()
        },
    }
}

fn replica_state(member_id: String, state: Option<&KeyState>) -> ReplicaState {
    let Some(state) = state else {
        return ReplicaState {
            member_id,
            ..ReplicaState::default()
        };
    };
    let seen = state.seen().entries().map(|entry| ActorCounter {
        incarnation_id: entry.actor.incarnation,
        epoch: entry.actor.epoch,
        counter: entry.counter,
        // A run is one gap's end; its length is bounded by what the state holds, so naming the ends is enough.
        beyond: entry
            .beyond
            .iter()
            .flat_map(|run| [run.first, run.last])
            .collect(),
    });
    let siblings = state.siblings().iter().map(|(dot, sibling)| SiblingInfo {
        incarnation_id: dot.actor.incarnation,
        epoch: dot.actor.epoch,
        counter: dot.counter,
        tombstone: sibling.content == Content::Tombstone,
        value_bytes: sibling.value().map_or(0, |value| value.len() as u64),
        written_at_ms: sibling.stamp.ms(),
    });
    ReplicaState {
        member_id,
        error: String::new(),
        present: true,
        digest: state.digest(),
        seen: seen.collect(),
        siblings: siblings.collect(),
    }
}

fn cluster_id(bytes: &Bytes) -> Result<ClusterId, Failure> {
    let id = <[u8; 16]>::try_from(bytes.as_ref()).map_err(|_| {
        Failure::invalid(format!(
            "the cluster id has {} bytes but must have 16",
            bytes.len()
        ))
    })?;
    Ok(ClusterId(id))
}
