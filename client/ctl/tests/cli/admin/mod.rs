//! A node's admin service that says the same to everyone, and remembers tasks paused, buckets set and the ring committed.

use std::sync::Mutex;

use dynamo_proto::{
    admin::{
        AcceptLossRequest, AcceptLossResponse, ActorCounter, BootstrapRequest, BootstrapResponse, Bucket,
        CommitRequest, CommitResponse, ExchangeInfo, ExchangesRequest, ExchangesResponse, HintCount,
        HintsRequest, HintsResponse, InspectRequest, InspectResponse, JoinRequest, JoinResponse,
        ListBucketsRequest, ListBucketsResponse, LocalGetRequest, LocalGetResponse, LocateRequest,
        LocateResponse, MemberChange, MemberShare, MembershipLogRequest, MembershipLogResponse,
        MerkleRootRequest, MerkleRootResponse, PauseTaskRequest, PauseTaskResponse, PeerInfo, PeersRequest,
        PeersResponse, PlanRequest, PlanResponse, PreferenceEntry, PreferenceListRequest,
        PreferenceListResponse, RepairRequest, RepairResponse, ReplicaState, RingRequest, RingResponse,
        RingTarget, SalvageProgress, SalvageRequest, SetBucketRequest, SetBucketResponse, SiblingInfo,
        StatusRequest, StatusResponse, TaskInfo, TasksRequest, TasksResponse, TransitionRequest,
        TransitionResponse,
        admin_server::{Admin, AdminServer},
        status_response::State,
    },
    v1,
};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// Starts it; its address.
pub(crate) async fn start() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = AdminServer::new(Fake {
        address: address.clone(),
        paused: Mutex::default(),
        buckets: Mutex::default(),
        change: Mutex::default(),
    });
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    address
}

struct Fake {
    address: String,
    paused: Mutex<Vec<String>>,
    buckets: Mutex<Vec<Bucket>>,
    change: Mutex<Option<Change>>,
}

/// A ring that was committed, and how often it was asked where that stands: twice, then it is reached.
struct Change {
    target: RingTarget,
    asked: u32,
}

/// Of the ring that every target comes to.
const PLANNED_HASH: u64 = 0xab;

fn member(id: &str, zone: &str) -> v1::RingMember {
    v1::RingMember {
        member_id: id.into(),
        zone: zone.into(),
        weight: 1,
        client_address: format!("{id}:7700"),
    }
}

fn replica(id: &str, digest: u64) -> ReplicaState {
    ReplicaState {
        member_id: id.into(),
        present: true,
        digest,
        seen: vec![ActorCounter {
            incarnation_id: 1,
            epoch: 1,
            counter: 2,
            beyond: vec![4],
        }],
        siblings: vec![SiblingInfo {
            incarnation_id: 1,
            epoch: 1,
            counter: 2,
            value_bytes: 6,
            ..Default::default()
        }],
        ..Default::default()
    }
}

#[tonic::async_trait]
impl Admin for Fake {
    async fn bootstrap(
        &self,
        request: Request<BootstrapRequest>,
    ) -> Result<Response<BootstrapResponse>, Status> {
        let request = request.into_inner();
        if request.cluster_id.len() != 16 || request.members.len() != 2 || request.factor != 2 {
            return Err(Status::invalid_argument("not as the test asks"));
        }
        Ok(Response::new(BootstrapResponse {
            ring_epoch: 1,
            ring_hash: 7,
            created: true,
        }))
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        if request.into_inner().member_id != "n2" {
            return Err(Status::failed_precondition("the node is member n2 already"));
        }
        Ok(Response::new(JoinResponse { joined: true }))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let mut status = StatusResponse {
            member_id: "n1".into(),
            zone: "a".into(),
            ring_epoch: 3,
            tokens: 4,
            partitions: 8,
            release: "0.1.0".into(),
            hints: 12,
            partitions_suspect: 3,
            ..Default::default()
        };
        status.set_state(State::Valid);
        Ok(Response::new(status))
    }

    async fn ring(&self, _: Request<RingRequest>) -> Result<Response<RingResponse>, Status> {
        let ring = v1::Ring {
            cluster_id: vec![1; 16].into(),
            epoch: 3,
            hash: 9,
            factor: 2,
            members: vec![member("n1", "a"), member("n2", "b")],
            owners: vec![0, 1, 0, 1, 0, 1, 0, 1],
        };
        let share = |id: &str| MemberShare {
            member_id: id.into(),
            tokens: 4,
            partitions: 8,
        };
        Ok(Response::new(RingResponse {
            ring: Some(ring),
            shares: vec![share("n1"), share("n2")],
        }))
    }

    async fn preference_list(
        &self,
        _: Request<PreferenceListRequest>,
    ) -> Result<Response<PreferenceListResponse>, Status> {
        let entry = |id: &str, primary| PreferenceEntry {
            member_id: id.into(),
            zone: "a".into(),
            primary,
            reachable: true,
        };
        Ok(Response::new(PreferenceListResponse {
            key_hash: 42,
            partition: 3,
            ring_epoch: 3,
            entries: vec![entry("n1", true), entry("n2", true), entry("n3", false)],
        }))
    }

    async fn inspect(&self, _: Request<InspectRequest>) -> Result<Response<InspectResponse>, Status> {
        Ok(Response::new(InspectResponse {
            replicas: vec![replica("n1", 1), replica("n2", 2)],
        }))
    }

    async fn local_get(&self, _: Request<LocalGetRequest>) -> Result<Response<LocalGetResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn membership_log(
        &self,
        _: Request<MembershipLogRequest>,
    ) -> Result<Response<MembershipLogResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn peers(&self, _: Request<PeersRequest>) -> Result<Response<PeersResponse>, Status> {
        let me = PeerInfo {
            member_id: "n1".into(),
            zone: "a".into(),
            member: true,
            reachable: true,
            admin_address: self.address.clone(),
            ..Default::default()
        };
        let other = PeerInfo {
            member_id: "n2".into(),
            member: true,
            last_error: "connection refused".into(),
            // Nothing listens on the discard port of a test machine's loopback.
            admin_address: "127.0.0.1:9".into(),
            ..Default::default()
        };
        Ok(Response::new(PeersResponse {
            peers: vec![me, other],
        }))
    }

    async fn hints(&self, _: Request<HintsRequest>) -> Result<Response<HintsResponse>, Status> {
        Ok(Response::new(HintsResponse {
            owners: vec![HintCount {
                member_id: "n2".into(),
                hints: 12,
                bytes: 2048,
            }],
            bytes: 2048,
            bytes_max: 1 << 30,
            declined: 1,
        }))
    }

    async fn merkle_root(
        &self,
        _: Request<MerkleRootRequest>,
    ) -> Result<Response<MerkleRootResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn exchanges(&self, _: Request<ExchangesRequest>) -> Result<Response<ExchangesResponse>, Status> {
        let exchange = |partition, age_ms| ExchangeInfo {
            partition,
            member_id: "n2".into(),
            age_ms,
        };
        Ok(Response::new(ExchangesResponse {
            exchanges: vec![
                exchange(0, Some(5000)),
                exchange(1, None),
                exchange(2, Some(180_000)),
            ],
        }))
    }

    async fn repair(&self, request: Request<RepairRequest>) -> Result<Response<RepairResponse>, Status> {
        let partition = request.into_inner().partition;
        Ok(Response::new(RepairResponse {
            exchanged: vec!["n3".into()],
            // Of the partitions that the tests repair, one cannot be exchanged with everybody.
            failed: Vec::from_iter((partition == 2).then(|| "n2: unreachable".to_owned())),
            keys_pulled: 4,
            keys_pushed: 5,
        }))
    }

    async fn accept_loss(
        &self,
        request: Request<AcceptLossRequest>,
    ) -> Result<Response<AcceptLossResponse>, Status> {
        // Partition 3 is the only one that this node waits for.
        let asked = request.into_inner().partitions;
        let accepted = Vec::from_iter((asked.is_empty() || asked.contains(&3)).then_some(3));
        Ok(Response::new(AcceptLossResponse { accepted }))
    }

    type SalvageStream = tokio_stream::Iter<std::vec::IntoIter<Result<SalvageProgress, Status>>>;

    async fn salvage(
        &self,
        request: Request<SalvageRequest>,
    ) -> Result<Response<Self::SalvageStream>, Status> {
        let SalvageRequest { store, dry_run } = request.into_inner();
        let progress = |records, percent| SalvageProgress {
            records,
            // One of them is never taken.
            merged: if dry_run { 0 } else { records - 1 },
            damaged: 2,
            gaps: 1,
            percent,
        };
        let all = match store.as_str() {
            "set-aside-1" => vec![Ok(progress(5, 40)), Ok(progress(9, 100))],
            "set-aside-2" => vec![Ok(progress(5, 40))],
            _ => {
                return Err(Status::invalid_argument(
                    "there is no such store: there are set-aside-1",
                ));
            }
        };
        Ok(Response::new(tokio_stream::iter(all)))
    }

    async fn tasks(&self, _: Request<TasksRequest>) -> Result<Response<TasksResponse>, Status> {
        let paused = self.paused.lock().unwrap();
        let task = |name: &str| TaskInfo {
            name: name.into(),
            paused: paused.iter().any(|paused| paused == name),
            operations: 7,
        };
        Ok(Response::new(TasksResponse {
            tasks: vec![task("hints"), task("exchange")],
            foreground_p99_us: 2500,
            operations_per_s: 400,
        }))
    }

    async fn pause_task(
        &self,
        request: Request<PauseTaskRequest>,
    ) -> Result<Response<PauseTaskResponse>, Status> {
        let request = request.into_inner();
        if !["hints", "exchange"].contains(&request.name.as_str()) {
            return Err(Status::not_found("no task has this name"));
        }
        let mut paused = self.paused.lock().unwrap();
        paused.retain(|name| *name != request.name);
        if request.paused {
            paused.push(request.name);
        }
        Ok(Response::new(PauseTaskResponse {}))
    }

    async fn set_bucket(
        &self,
        request: Request<SetBucketRequest>,
    ) -> Result<Response<SetBucketResponse>, Status> {
        let mut bucket = request.into_inner().bucket.unwrap();
        bucket.version += 1;
        let mut buckets = self.buckets.lock().unwrap();
        buckets.retain(|other| other.name != bucket.name);
        buckets.push(bucket.clone());
        Ok(Response::new(SetBucketResponse { bucket: Some(bucket) }))
    }

    async fn list_buckets(
        &self,
        _: Request<ListBucketsRequest>,
    ) -> Result<Response<ListBucketsResponse>, Status> {
        let buckets = self.buckets.lock().unwrap().clone();
        Ok(Response::new(ListBucketsResponse { buckets }))
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let copy = |id: &str, role: v1::located_copy::Role, hint_for: &str| v1::LocatedCopy {
            member_id: id.into(),
            role: role.into(),
            hint_for: hint_for.into(),
            digest: 0xab,
            siblings: 1,
            deleted: false,
        };
        let ttl = request.into_inner().ttl;
        Ok(Response::new(LocateResponse {
            copies: vec![
                copy("n1", v1::located_copy::Role::Primary, ""),
                copy("n3", v1::located_copy::Role::Hint, "n2"),
            ],
            asked: ttl,
        }))
    }

    async fn plan(&self, request: Request<PlanRequest>) -> Result<Response<PlanResponse>, Status> {
        let target = request.into_inner().target.unwrap();
        if target.members.iter().any(|member| member.member_id == "n9") {
            return Err(Status::failed_precondition("n9 has not joined"));
        }
        let mut changes: Vec<MemberChange> = ["n1", "n2"]
            .into_iter()
            .map(|id| MemberChange {
                member_id: id.into(),
                weight_before: 1,
                tokens_before: 4,
                partitions_before: 8,
                ..Default::default()
            })
            .collect();
        for member in &target.members {
            if !changes.iter().any(|change| change.member_id == member.member_id) {
                changes.push(MemberChange {
                    member_id: member.member_id.clone(),
                    gets: 5,
                    ..Default::default()
                });
            }
            let change = changes
                .iter_mut()
                .find(|change| change.member_id == member.member_id);
            let change = change.unwrap();
            change.weight_after = member.weight.max(1);
            change.tokens_after = 3;
            change.partitions_after = 5;
        }
        let unchanged = target.partitions == 0 && ids(&target) == ["n1", "n2"];
        let ring = v1::Ring {
            hash: PLANNED_HASH,
            owners: vec![0; target.partitions.max(8) as usize],
            ..Default::default()
        };
        Ok(Response::new(PlanResponse {
            expected_epoch: 3,
            ring: Some(ring),
            members: changes,
            moves: 5,
            moves_min: 4,
            bytes: 2048,
            unchanged,
            warnings: target
                .dead
                .iter()
                .map(|id| format!("{id} is declared dead"))
                .collect(),
            ..Default::default()
        }))
    }

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let request = request.into_inner();
        if (request.expected_epoch, request.expected_hash) != (3, PLANNED_HASH) {
            return Err(Status::failed_precondition(
                "the target comes to another ring by now",
            ));
        }
        *self.change.lock().unwrap() = Some(Change {
            target: request.target.unwrap(),
            asked: 0,
        });
        Ok(Response::new(CommitResponse {
            epoch: 4,
            hash: PLANNED_HASH,
            proposed: true,
        }))
    }

    async fn transition(
        &self,
        _: Request<TransitionRequest>,
    ) -> Result<Response<TransitionResponse>, Status> {
        let mut response = TransitionResponse {
            base_epoch: 3,
            base_hash: 9,
            base_members: vec!["n1".into(), "n2".into()],
            ..Default::default()
        };
        if let Some(change) = self.change.lock().unwrap().as_mut() {
            change.asked += 1;
            if change.asked > 2 {
                response.base_epoch = 4;
                response.base_hash = PLANNED_HASH;
                response.base_members = ids(&change.target);
            } else {
                response.next_epoch = 4;
                response.next_hash = PLANNED_HASH;
                response.next_members = ids(&change.target);
                response.dead.clone_from(&change.target.dead);
                response.step = "synced".into();
                response.waits_for = vec!["n2".into()];
                response.pulls = 4;
                response.pulled = change.asked;
            }
        }
        Ok(Response::new(response))
    }
}

fn ids(target: &RingTarget) -> Vec<String> {
    let members = target.members.iter();
    members.map(|member| member.member_id.clone()).collect()
}
