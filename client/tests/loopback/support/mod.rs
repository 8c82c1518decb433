//! A small cluster in memory that speaks `dynamo.v1.KeyValue` on loopback and does what a test tells it.
//!
//! Versions are plain numbers: a context lists those it has seen. No replication: all fake nodes share one table.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

mod service;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_core::{
    ring::{Member, Placement, Ring, RingParts},
    types::{ClusterId, KeyHash, MemberId, Zone},
    version::KeyState,
};
use dynamo_proto::{
    CLUSTER_METADATA,
    v1::{self, key_value_server::KeyValueServer},
};
use prost::Message as _;
use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Status, service::interceptor::InterceptedService};

use service::Service;

const PARTITIONS: u32 = 32;
/// What the nodes belong to.
const CLUSTER: ClusterId = ClusterId([7; 16]);

/// What a node does with one request, instead of serving it.
pub enum Act {
    /// Answers so, having done nothing.
    Fail(Status),
    /// Serves it, and then answers so.
    ServeThen(Status),
    /// Serves it and never answers.
    ServeAndHang,
    /// Never answers.
    Hang,
    /// Serves another client's blind put of this value just before it serves the put.
    PutFirst(Bytes),
}

/// One request as a node saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Get(String),
    Put {
        key: String,
        op_id: Vec<u8>,
        ttl_ms: u64,
        zones: Option<v1::Replicas>,
    },
    Update {
        key: String,
        op_id: Vec<u8>,
        context: String,
    },
    ReplicaGet(String),
    Delete(String),
    BatchGet(usize),
    BatchPut(usize),
    ListKeys {
        token: String,
    },
    GetRing {
        known_epoch: u64,
    },
}

/// Nodes n0, n1, ... in zones a, b, c, a, ...
pub struct Cluster {
    pub nodes: Vec<FakeNode>,
    pub state: Arc<State>,
}

pub struct FakeNode {
    pub member: String,
    pub address: String,
    inner: Arc<Inner>,
    stop: Option<oneshot::Sender<()>>,
}

/// What all nodes share.
pub struct State {
    pub data: Mutex<BTreeMap<(String, Bytes), Vec<Stored>>>,
    applied: Mutex<BTreeMap<Vec<u8>, u64>>,
    next: AtomicU64,
    ring: Mutex<Option<(Placement, Vec<String>)>>,
    /// The epoch that replies show, whatever the ring's is.
    pub shown_epoch: AtomicU64,
    /// Values of data types.
    pub typed: Mutex<BTreeMap<(String, Bytes), v1::TypedValue>>,
    updated: Mutex<BTreeSet<Vec<u8>>>,
    /// What nodes say of every bucket's reads.
    pub rules: Mutex<Option<v1::ReadRules>>,
    /// Who answered every get first, as the coordinators say.
    pub fastest: Mutex<String>,
}

#[derive(Debug, Clone)]
pub struct Stored {
    version: u64,
    value: Option<Bytes>,
}

struct Inner {
    member: String,
    state: Arc<State>,
    seen: Mutex<Vec<Seen>>,
    script: Mutex<VecDeque<Act>>,
    replica_script: Mutex<VecDeque<Act>>,
    frozen: AtomicBool,
    /// Encoded key states by key, for `ReplicaGet`: apart from the data that all share.
    copies: Mutex<BTreeMap<Bytes, Bytes>>,
    suspect: AtomicBool,
    behind: AtomicBool,
    foreign: AtomicBool,
    /// Of a release without streams.
    older: AtomicBool,
    /// Streams that were opened, or refused.
    streams: AtomicUsize,
    stopped: watch::Sender<bool>,
}

impl Cluster {
    /// Starts nodes with a ring of factor 3 (or fewer) that lists them all.
    pub async fn start(nodes: usize) -> Self {
        let state = Arc::new(State {
            data: Mutex::default(),
            applied: Mutex::default(),
            next: AtomicU64::new(1),
            ring: Mutex::default(),
            shown_epoch: AtomicU64::new(1),
            typed: Mutex::default(),
            updated: Mutex::default(),
            rules: Mutex::new(Some(rules(3, 2, 2))),
            fastest: Mutex::default(),
        });
        let mut started = Vec::new();
        for index in 0..nodes {
            started.push(FakeNode::start(format!("n{index}"), Arc::clone(&state)).await);
        }
        let cluster = Self {
            nodes: started,
            state,
        };
        cluster.set_ring(&Self::ring_of(nodes), &cluster.addresses());
        cluster
    }

    /// Nodes n0.. in three zones.
    pub fn ring_of(nodes: usize) -> Ring {
        let members = (0..nodes)
            .map(|index| Member {
                id: MemberId::new(format!("n{index}")).unwrap(),
                zone: Zone::new(["a", "b", "c"][index % 3]).unwrap(),
                weight: 1,
            })
            .collect();
        Ring::bootstrap(CLUSTER, members, PARTITIONS, nodes.min(3) as u32).unwrap()
    }

    pub fn set_ring(&self, ring: &Ring, addresses: &[String]) {
        self.state.shown_epoch.store(ring.epoch(), Ordering::SeqCst);
        *self.state.ring.lock().unwrap() = Some((Placement::new(Arc::new(ring.clone())), addresses.to_vec()));
    }

    pub fn addresses(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// The nodes that hold a key of the default bucket, best first.
    pub fn primaries(&self, key: &str) -> Vec<usize> {
        self.state.primaries("default", key.as_bytes())
    }

    /// A key whose first primary is this node.
    pub fn key_at(&self, node: usize) -> String {
        (0..10_000)
            .map(|index| format!("key-{index}"))
            .find(|key| self.primaries(key)[0] == node)
            .unwrap()
    }

    /// Requests about data that reached any node.
    pub fn data_requests(&self) -> usize {
        self.nodes.iter().map(|node| node.data_requests().len()).sum()
    }
}

impl FakeNode {
    async fn start(member: String, state: Arc<State>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let inner = Arc::new(Inner {
            member: member.clone(),
            state,
            seen: Mutex::default(),
            script: Mutex::default(),
            replica_script: Mutex::default(),
            frozen: AtomicBool::new(false),
            copies: Mutex::default(),
            suspect: AtomicBool::new(false),
            behind: AtomicBool::new(false),
            foreign: AtomicBool::new(false),
            older: AtomicBool::new(false),
            streams: AtomicUsize::new(0),
            stopped: watch::Sender::new(false),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let service = KeyValueServer::from_arc(Arc::new(Service(Arc::clone(&inner))))
            .max_decoding_message_size(8 << 20);
        let meant = {
            let inner = Arc::clone(&inner);
            move |request: tonic::Request<()>| match request.metadata().get(CLUSTER_METADATA) {
                Some(_) if inner.foreign.load(Ordering::SeqCst) => {
                    Err(status(Code::FailedPrecondition, "FOREIGN_CLUSTER", Vec::new()))
                }
                Some(named) if named != CLUSTER.to_string().as_str() => {
                    Err(Status::internal("a cluster that nobody has told"))
                }
                _ => Ok(request),
            }
        };
        let service = InterceptedService::new(service, meant);
        tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async {
                    let _ = stopped.await;
                })
                .await
                .unwrap();
        });
        Self {
            member,
            address,
            inner,
            stop: Some(stop),
        }
    }

    /// Does this with the next `ReplicaGet`, one entry per request.
    pub fn script_replica(&self, acts: impl IntoIterator<Item = Act>) {
        self.inner.replica_script.lock().unwrap().extend(acts);
    }

    /// Does this with the next other request about data, one entry per request.
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.inner.script.lock().unwrap().extend(acts);
    }

    /// Answers nothing at all any more, or again.
    pub fn freeze(&self, frozen: bool) {
        self.inner.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Its own copy of a key, which only `ReplicaGet` shows.
    pub fn hold(&self, key: &str, state: &KeyState) {
        let key = Bytes::copy_from_slice(key.as_bytes());
        self.inner.copies.lock().unwrap().insert(key, state.encode());
    }

    /// Its store may have lost writes.
    pub fn suspect(&self, suspect: bool) {
        self.inner.suspect.store(suspect, Ordering::SeqCst);
    }

    /// Its own ring is an older one, by which it is a primary of nothing.
    pub fn behind(&self, behind: bool) {
        self.inner.behind.store(behind, Ordering::SeqCst);
    }

    /// Its address is another cluster's now.
    pub fn foreign(&self, foreign: bool) {
        self.inner.foreign.store(foreign, Ordering::SeqCst);
    }

    /// Is of a release that knows no streams.
    pub fn older(&self) {
        self.inner.older.store(true, Ordering::SeqCst);
    }

    /// Streams that were opened, or refused.
    pub fn streams(&self) -> usize {
        self.inner.streams.load(Ordering::SeqCst)
    }

    /// Closes the port.
    pub fn stop(&mut self) {
        self.inner.stopped.send_replace(true);
        drop(self.stop.take());
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().unwrap().clone()
    }

    pub fn data_requests(&self) -> Vec<Seen> {
        self.seen()
            .into_iter()
            .filter(|seen| !matches!(seen, Seen::GetRing { .. }))
            .collect()
    }

    pub fn op_ids(&self) -> Vec<Vec<u8>> {
        let seen = self.seen().into_iter();
        seen.filter_map(|seen| match seen {
            Seen::Put { op_id, .. } | Seen::Update { op_id, .. } => Some(op_id),
            _ => None,
        })
        .collect()
    }
}

/// The same ring with another epoch.
pub fn with_epoch(ring: &Ring, epoch: u64) -> Ring {
    of_cluster(ring, epoch, ring.cluster_id())
}

/// The same ring of another cluster.
pub fn of_cluster(ring: &Ring, epoch: u64, cluster_id: ClusterId) -> Ring {
    Ring::new(RingParts {
        cluster_id,
        epoch,
        factor: ring.factor(),
        members: ring.members().to_vec(),
        owners: ring.owners().to_vec(),
    })
    .unwrap()
}

/// Looks again and again until it holds.
pub async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "{what} has not come true"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What nodes say of a bucket with this quorum and no policy.
pub fn rules(replicas: u32, r: u32, w: u32) -> v1::ReadRules {
    v1::ReadRules {
        quorum: Some(v1::EffectiveQuorum {
            replicas,
            r,
            w,
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A port that accepts connections and never answers.
pub async fn black_hole() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((socket, _)) = listener.accept().await {
            held.push(socket);
        }
    });
    address
}

/// A port that refuses connections.
pub async fn refused() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().to_string()
}

/// A status as nodes give it.
pub fn status(code: Code, reason: &str, details: Vec<(&str, Vec<u8>)>) -> Status {
    let info = tonic_types::pb::ErrorInfo {
        reason: reason.to_owned(),
        domain: "dynamo.rs".to_owned(),
        ..Default::default()
    };
    let mut all = vec![prost_types::Any {
        type_url: "type.googleapis.com/google.rpc.ErrorInfo".to_owned(),
        value: info.encode_to_vec(),
    }];
    all.extend(details.into_iter().map(|(name, value)| prost_types::Any {
        type_url: format!("type.googleapis.com/{name}"),
        value,
    }));
    let message = format!("scripted {reason}");
    let rich = tonic_types::pb::Status {
        code: code as i32,
        message: message.clone(),
        details: all,
    };
    Status::with_details(code, message, rich.encode_to_vec().into())
}

/// A write that some nodes may hold.
pub fn partial(acks: u32) -> Status {
    let outcome = v1::WriteOutcome {
        state: v1::write_outcome::State::Partial.into(),
        acks,
        primaries: acks,
        durable: acks,
        ..Default::default()
    };
    status(
        Code::Unavailable,
        "QUORUM_NOT_MET",
        vec![("dynamo.v1.WriteOutcome", outcome.encode_to_vec())],
    )
}

/// A write that no node holds.
pub fn not_applied(code: Code, reason: &str) -> Status {
    let outcome = v1::WriteOutcome {
        state: v1::write_outcome::State::NotApplied.into(),
        ..Default::default()
    };
    status(
        code,
        reason,
        vec![("dynamo.v1.WriteOutcome", outcome.encode_to_vec())],
    )
}

impl State {
    fn primaries(&self, bucket: &str, key: &[u8]) -> Vec<usize> {
        let ring = self.ring.lock().unwrap();
        let Some((placement, _)) = &*ring else {
            return Vec::new();
        };
        placement
            .primaries_of(KeyHash::of(bucket, key))
            .iter()
            .map(|index| usize::from(*index))
            .collect()
    }

    fn context(versions: impl IntoIterator<Item = u64>) -> Bytes {
        let versions: Vec<_> = versions.into_iter().map(|version| version.to_string()).collect();
        format!("ctx:{}", versions.join(",")).into()
    }

    fn seen(context: &[u8]) -> Result<Vec<u64>, Status> {
        if context.is_empty() {
            return Ok(Vec::new());
        }
        let invalid = || status(Code::InvalidArgument, "INVALID_CONTEXT", Vec::new());
        let text = std::str::from_utf8(context).map_err(|_| invalid())?;
        let list = text.strip_prefix("ctx:").ok_or_else(invalid)?;
        list.split(',')
            .map(|version| version.parse().map_err(|_| invalid()))
            .collect()
    }

    fn write(
        &self,
        at: (String, Bytes),
        context: &[u8],
        value: Option<Bytes>,
        op_id: &[u8],
    ) -> Result<Bytes, Status> {
        let mut seen = Self::seen(context)?;
        let mut applied = self.applied.lock().unwrap();
        let known = (!op_id.is_empty()).then(|| applied.get(op_id).copied()).flatten();
        let version = known.unwrap_or_else(|| self.next.fetch_add(1, Ordering::SeqCst));
        if known.is_none() {
            applied.insert(op_id.to_vec(), version);
            let mut data = self.data.lock().unwrap();
            let stored = data.entry(at).or_default();
            stored.retain(|stored| !seen.contains(&stored.version));
            stored.push(Stored { version, value });
        }
        seen.push(version);
        Ok(Self::context(seen))
    }
}

/// A ring as nodes send it.
pub fn encode(ring: &Ring, addresses: &[String]) -> v1::Ring {
    let members = ring
        .members()
        .iter()
        .zip(addresses)
        .map(|(member, address)| v1::RingMember {
            member_id: member.id.to_string(),
            zone: member.zone.to_string(),
            weight: member.weight,
            client_address: address.clone(),
        });
    v1::Ring {
        cluster_id: Bytes::copy_from_slice(&ring.cluster_id().0),
        epoch: ring.epoch(),
        hash: ring.hash(),
        factor: ring.factor(),
        members: members.collect(),
        owners: ring.owners().iter().map(|owner| u32::from(*owner)).collect(),
    }
}
