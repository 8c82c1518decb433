//! A small cluster in memory that speaks `dynamo.v1.KeyValue` on loopback and does what a test tells it.
//!
//! Versions are plain numbers: a context lists those it has seen. No replication: all fake nodes share one table.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    reason = "each test file uses a part of it"
)]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use dynamo_core::{
    ring::{Member, Placement, Ring},
    types::{ClusterId, KeyHash, MemberId, Zone},
};
use dynamo_proto::v1::{
    self,
    key_value_server::{KeyValue, KeyValueServer},
};
use prost::Message as _;
use tokio::{net::TcpListener, sync::oneshot};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Code, Request, Response, Status};

const PARTITIONS: u32 = 32;

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
}

/// One request as a node saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    Get(String),
    Put { key: String, op_id: Vec<u8> },
    Delete(String),
    BatchGet(usize),
    BatchPut(usize),
    ListKeys { token: String },
    GetRing { known_epoch: u64 },
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
    frozen: AtomicBool,
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
        Ring::bootstrap(ClusterId([7; 16]), members, PARTITIONS, nodes.min(3) as u32).unwrap()
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
            frozen: AtomicBool::new(false),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let service = KeyValueServer::from_arc(Arc::new(Service(Arc::clone(&inner))))
            .max_decoding_message_size(8 << 20);
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

    /// Does this with the next request about data, one entry per request.
    pub fn script(&self, acts: impl IntoIterator<Item = Act>) {
        self.inner.script.lock().unwrap().extend(acts);
    }

    /// Answers nothing at all any more, or again.
    pub fn freeze(&self, frozen: bool) {
        self.inner.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Closes the port.
    pub fn stop(&mut self) {
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
            Seen::Put { op_id, .. } => Some(op_id),
            _ => None,
        })
        .collect()
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

struct Service(Arc<Inner>);

impl Service {
    /// Notes the request; what the script says to answer instead of the truth.
    async fn begin(&self, seen: Seen) -> Option<Act> {
        let ring = matches!(seen, Seen::GetRing { .. });
        self.0.seen.lock().unwrap().push(seen);
        if self.0.frozen.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if ring {
            None
        } else {
            self.0.script.lock().unwrap().pop_front()
        }
    }

    async fn end<T>(
        act: Option<Act>,
        answer: impl FnOnce() -> Result<T, Status>,
    ) -> Result<Response<T>, Status> {
        match act {
            None => answer().map(Response::new),
            Some(Act::Fail(status)) => Err(status),
            Some(Act::Hang) => std::future::pending().await,
            Some(Act::ServeThen(status)) => {
                let _ = answer();
                Err(status)
            }
            Some(Act::ServeAndHang) => {
                let _ = answer();
                std::future::pending().await
            }
        }
    }

    fn info(&self, bucket: &str, key: &[u8], write: bool) -> v1::ResponseInfo {
        let primaries = self.0.state.primaries(bucket, key);
        let me = self.0.member[1..].parse::<usize>().unwrap();
        let inside = !write || primaries.is_empty() || primaries.contains(&me);
        let coordinator = if inside { me } else { primaries[0] };
        v1::ResponseInfo {
            ring_epoch: self.0.state.shown_epoch.load(Ordering::SeqCst),
            coordinator: format!("n{coordinator}"),
            hops: u32::from(!inside),
            acks: 2,
            fallbacks_counted: 0,
            quorum: Some(v1::EffectiveQuorum {
                replicas: 3,
                r: 2,
                w: 2,
                pr: 0,
                pw: 0,
                dw: 0,
            }),
        }
    }

    fn get_one(&self, request: &v1::GetRequest) -> Result<v1::GetResponse, Status> {
        let data = self.0.state.data.lock().unwrap();
        let stored = data
            .get(&(request.bucket.clone(), request.key.clone()))
            .cloned()
            .unwrap_or_default();
        let context = State::context(stored.iter().map(|stored| stored.version));
        let info = self.info(&request.bucket, &request.key, false);
        let versions: Vec<_> = stored
            .iter()
            .filter_map(|stored| stored.value.clone().map(|value| (stored.version, value)))
            .map(|(version, value)| v1::Version {
                value,
                written_at_ms: 1_700_000_000_000 + version,
            })
            .collect();
        if versions.is_empty() {
            let context = if stored.is_empty() { Bytes::new() } else { context };
            let detail = v1::NotFound {
                context,
                info: Some(info),
            }
            .encode_to_vec();
            return Err(status(
                Code::NotFound,
                "KEY_NOT_FOUND",
                vec![("dynamo.v1.NotFound", detail)],
            ));
        }
        let deleted_concurrently = versions.len() < stored.len();
        Ok(v1::GetResponse {
            versions,
            context,
            deleted_concurrently,
            info: Some(info),
        })
    }

    fn put_one(&self, request: &v1::PutRequest) -> Result<v1::PutResponse, Status> {
        if request.key.is_empty() {
            return Err(not_applied(Code::InvalidArgument, "INVALID_ARGUMENT"));
        }
        let at = (request.bucket.clone(), request.key.clone());
        let value = Some(request.value.clone());
        let context = self.0.state.write(at, &request.context, value, &request.op_id)?;
        let info = Some(self.info(&request.bucket, &request.key, true));
        Ok(v1::PutResponse {
            context,
            outcome: Some(applied()),
            info,
        })
    }
}

fn applied() -> v1::WriteOutcome {
    v1::WriteOutcome {
        state: v1::write_outcome::State::Applied.into(),
        acks: 2,
        primaries: 2,
        durable: 2,
    }
}

fn text(bytes: &Bytes) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn batch_error(status: &Status) -> v1::Error {
    let details = tonic_types::pb::Status::decode(status.details())
        .unwrap_or_default()
        .details;
    let find = |name: &str| {
        let found = details.iter().find(|any| any.type_url.ends_with(name));
        found.map(|any| Bytes::from(any.value.clone()))
    };
    v1::Error {
        code: status.code() as i32,
        message: status.message().to_owned(),
        reason: find("ErrorInfo")
            .and_then(|value| tonic_types::pb::ErrorInfo::decode(value).ok())
            .map(|info| info.reason)
            .unwrap_or_default(),
        not_found: find("NotFound").and_then(|value| v1::NotFound::decode(value).ok()),
        outcome: find("WriteOutcome").and_then(|value| v1::WriteOutcome::decode(value).ok()),
    }
}

#[tonic::async_trait]
impl KeyValue for Service {
    type ListKeysStream = ReceiverStream<Result<v1::ListKeysResponse, Status>>;

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let request = request.into_inner();
        let act = self.begin(Seen::Get(text(&request.key))).await;
        Self::end(act, || self.get_one(&request)).await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let request = request.into_inner();
        let seen = Seen::Put {
            key: text(&request.key),
            op_id: request.op_id.to_vec(),
        };
        let act = self.begin(seen).await;
        Self::end(act, || self.put_one(&request)).await
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        let request = request.into_inner();
        let act = self.begin(Seen::Delete(text(&request.key))).await;
        Self::end(act, || {
            let at = (request.bucket.clone(), request.key.clone());
            let mut context = request.context.clone();
            if context.is_empty() {
                if !request.force {
                    return Err(status(Code::InvalidArgument, "CONTEXT_REQUIRED", Vec::new()));
                }
                let data = self.0.state.data.lock().unwrap();
                let stored = data.get(&at).cloned().unwrap_or_default();
                context = State::context(stored.iter().map(|stored| stored.version));
            }
            if context.as_ref() == b"ctx:" {
                context = Bytes::new();
            }
            let context = self.0.state.write(at, &context, None, &request.op_id)?;
            let info = Some(self.info(&request.bucket, &request.key, true));
            Ok(v1::DeleteResponse {
                context,
                outcome: Some(applied()),
                info,
            })
        })
        .await
    }

    async fn batch_get(
        &self,
        request: Request<v1::BatchGetRequest>,
    ) -> Result<Response<v1::BatchGetResponse>, Status> {
        let requests = request.into_inner().requests;
        let act = self.begin(Seen::BatchGet(requests.len())).await;
        Self::end(act, || {
            let results = requests.iter().map(|request| v1::GetResult {
                result: Some(match self.get_one(request) {
                    Ok(response) => v1::get_result::Result::Response(response),
                    Err(status) => v1::get_result::Result::Error(batch_error(&status)),
                }),
            });
            Ok(v1::BatchGetResponse {
                results: results.collect(),
            })
        })
        .await
    }

    async fn batch_put(
        &self,
        request: Request<v1::BatchPutRequest>,
    ) -> Result<Response<v1::BatchPutResponse>, Status> {
        let requests = request.into_inner().requests;
        let act = self.begin(Seen::BatchPut(requests.len())).await;
        Self::end(act, || {
            let results = requests.iter().map(|request| v1::PutResult {
                result: Some(match self.put_one(request) {
                    Ok(response) => v1::put_result::Result::Response(response),
                    Err(status) => v1::put_result::Result::Error(batch_error(&status)),
                }),
            });
            Ok(v1::BatchPutResponse {
                results: results.collect(),
            })
        })
        .await
    }

    async fn list_keys(
        &self,
        request: Request<v1::ListKeysRequest>,
    ) -> Result<Response<Self::ListKeysStream>, Status> {
        let request = request.into_inner();
        let act = self
            .begin(Seen::ListKeys {
                token: text(&request.page_token),
            })
            .await;
        let data = self.0.state.data.lock().unwrap().clone();
        let keys: Vec<Bytes> = data
            .into_iter()
            .filter(|((bucket, key), stored)| {
                *bucket == request.bucket
                    && key.starts_with(&request.prefix)
                    && key > &request.page_token
                    && stored.iter().any(|stored| stored.value.is_some())
            })
            .map(|((_, key), _)| key)
            .take(if request.limit == 0 {
                usize::MAX
            } else {
                request.limit as usize
            })
            .collect();
        let size = if request.page_size == 0 {
            1000
        } else {
            request.page_size as usize
        };
        let pages: Vec<Vec<Bytes>> = keys.chunks(size).map(<[Bytes]>::to_vec).collect();
        let (send, receive) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let last = pages.len().saturating_sub(1);
            for (index, keys) in pages.into_iter().enumerate() {
                // A scripted failure comes after the first page.
                if index == 1
                    && let Some(Act::Fail(status)) = act
                {
                    let _ = send.send(Err(status)).await;
                    return;
                }
                let token = if index == last {
                    Bytes::new()
                } else {
                    keys[keys.len() - 1].clone()
                };
                let page = v1::ListKeysResponse {
                    keys,
                    next_page_token: token,
                };
                if send.send(Ok(page)).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }

    async fn get_ring(
        &self,
        request: Request<v1::GetRingRequest>,
    ) -> Result<Response<v1::GetRingResponse>, Status> {
        let known_epoch = request.into_inner().known_epoch;
        let act = self.begin(Seen::GetRing { known_epoch }).await;
        Self::end(act, || {
            let ring = self.0.state.ring.lock().unwrap();
            let Some((placement, addresses)) = &*ring else {
                return Err(status(Code::Unavailable, "NOT_READY", Vec::new()));
            };
            let ring = placement.ring();
            let epoch = ring.epoch();
            let ring = (known_epoch != epoch).then(|| encode(ring, addresses));
            Ok(v1::GetRingResponse { epoch, ring })
        })
        .await
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
