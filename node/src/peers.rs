//! Calls to other members: one channel each, a handshake before anything else, a time-out on every call.
//!
//! Whoever answers is checked: addresses are reused, so every message names its recipient, and the first one on a
//! channel settles protocol and format versions. Each outcome feeds the failure detector; nothing is broadcast.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use dynamo_core::{
    coordinator::{Ack, FailureKind, ReplicaFailure, ReplicaRead},
    membership::{Detector, Silence},
    types::MemberId,
    version::{KeyState, STATE_FORMAT_VERSION},
};
use dynamo_lane::{Lane, Lost, Peers as PeerMessages, Traffic};
use dynamo_proto::peer::{
    self, CoordinateRequest, CoordinateResponse, GossipRequest, GossipResponse, HandshakeRequest, Header,
    ReadRequest, Refusal, ScanRequest, ScanResponse, WriteRequest, peer_client::PeerClient,
    replica_request::Request as Asked, replica_response::Response as Answer,
};
use parking_lot::Mutex;
use tonic::{Code, Response, Status, transport::Channel, transport::Endpoint};

use crate::{
    clock,
    config::{Config, KEEPALIVE},
    faults::Faults,
    grpc::status,
    node::Digest,
    storage::DataKey,
};

/// The oldest and newest peer protocol that this release speaks.
pub(crate) const PROTOCOL_VERSIONS: (u32, u32) = (1, 1);

/// A call that moves many records gets the time of so many others.
const BULK_CALLS: u32 = 4;

/// Makes the channel of an endpoint.
pub(crate) type Connect = Box<dyn Fn(Endpoint) -> Channel + Send + Sync>;

/// How a write to a replica is to be carried out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Replication {
    /// Answer only once it is on the disk.
    pub(crate) sync: bool,
    /// Keep it as a hint for this member.
    pub(crate) hint_for: Option<MemberId>,
}

/// A record that a peer need not send if it holds the same.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) digest: Digest,
    pub(crate) state: KeyState,
}

/// How a call to a peer failed.
#[derive(Debug, Clone)]
pub(crate) struct CallError {
    /// The peer may have acted on it.
    pub(crate) sent: bool,
    pub(crate) kind: FailureKind,
    /// The peer is alive and this status is its answer.
    pub(crate) answered: bool,
    pub(crate) status: Status,
}

/// The other members, by name.
pub(crate) struct Peers {
    connect: Connect,
    channels: Mutex<BTreeMap<MemberId, Arc<Peer>>>,
    detector: Mutex<Detector>,
    faults: Faults,
    traffic: Arc<Traffic>,
    call_timeout: Duration,
    message_bytes_max: usize,
}

struct Peer {
    address: Arc<str>,
    client: PeerClient<Channel>,
    lane: Lane<PeerMessages>,
    greeted: AtomicBool,
}

impl Peers {
    pub(crate) fn new(config: &Config, faults: Faults, connect: Connect) -> Self {
        Self {
            connect,
            channels: Mutex::default(),
            faults,
            traffic: Arc::default(),
            detector: Mutex::new(Detector::new(config.limits.peer_timeout_ms)),
            call_timeout: Duration::from_millis(config.limits.peer_timeout_ms),
            message_bytes_max: config.peer_message_bytes_max(),
        }
    }

    /// What goes over the streams to and from them.
    pub(crate) fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    pub(crate) fn reachable(&self, member: &MemberId) -> bool {
        self.detector.lock().reachable(member)
    }

    pub(crate) fn last_error(&self, member: &MemberId) -> Option<String> {
        self.detector.lock().last_error(member).map(ToOwned::to_owned)
    }

    pub(crate) fn probes_due(&self) -> Vec<MemberId> {
        self.detector.lock().probes_due(clock::monotonic_ms())
    }

    /// These run, as they say themselves or others say.
    pub(crate) fn signs_of_life<'a>(&self, members: impl IntoIterator<Item = &'a MemberId>) {
        let (mut detector, now_ms) = (self.detector.lock(), clock::monotonic_ms());
        for member in members {
            detector.sign_of_life(member, now_ms);
        }
    }

    /// Reads of these have waited longer than usual.
    pub(crate) fn late<'a>(&self, members: impl Iterator<Item = &'a MemberId>) {
        let mut detector = self.detector.lock();
        for member in members {
            detector.late(member);
        }
    }

    /// Whom to gossip with, chosen by the core's rule.
    pub(crate) fn with_detector<T>(&self, read: impl FnOnce(&Detector) -> T) -> T {
        read(&self.detector.lock())
    }

    /// How long one call may take at most.
    pub(crate) fn call_timeout(&self) -> Duration {
        self.call_timeout
    }

    /// A call that moves, or passes, many records.
    async fn bulk_call<T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        to: &To,
        request: impl FnOnce(PeerClient<Channel>) -> F,
    ) -> Result<T, CallError> {
        self.call(to, self.call_timeout * BULK_CALLS, request).await
    }

    pub(crate) async fn read(
        &self,
        to: &To,
        key: &DataKey,
        fallback: bool,
        known: Option<&Known>,
    ) -> Result<ReplicaRead, ReplicaFailure> {
        let request = ReadRequest {
            bucket: key.bucket().to_owned(),
            key: key.key(),
            fallback,
            known: known.map(|known| known.digest.0),
        };
        // It waits as long as is usual for the peer, and shows how long that is.
        let timeout = Duration::from_millis(self.detector.lock().timeout_ms(&to.member));
        let started = tokio::time::Instant::now();
        let Answer::Read(response) = self.replica(to, timeout, Asked::Read(request)).await? else {
            return Err(unfitting(to).into());
        };
        let trip_us = started.elapsed().as_micros() as u64;
        let now_ms = clock::monotonic_ms();
        self.detector.lock().round_trip(&to.member, trip_us, now_ms);
        if response.same {
            // Same as what? Never an absence.
            let known = known.ok_or_else(|| unfitting(to))?;
            let (state, suspect) = (Some(known.state.clone()), response.suspect);
            return Ok(ReplicaRead { state, suspect });
        }
        let state = response.state.map(KeyState::decode).transpose().map_err(|error| {
            tracing::warn!(peer = %to.member, key_hash = %key.hash(), %error, "a peer sent a state that cannot be decoded");
            ReplicaFailure { sent: true, kind: FailureKind::Storage }
        })?;
        Ok(ReplicaRead {
            state,
            suspect: response.suspect,
        })
    }

    pub(crate) async fn write(
        &self,
        to: &To,
        key: &DataKey,
        state: Bytes,
        replication: Replication,
    ) -> Result<Ack, ReplicaFailure> {
        let request = WriteRequest {
            bucket: key.bucket().to_owned(),
            key: key.key(),
            state,
            sync: replication.sync,
            hint_for: replication
                .hint_for
                .map(|owner| owner.to_string())
                .unwrap_or_default(),
        };
        match self.replica(to, self.call_timeout, Asked::Write(request)).await? {
            Answer::Write(response) => Ok(Ack {
                durable: response.durable,
            }),
            _ => Err(unfitting(to).into()),
        }
    }

    pub(crate) async fn scan(&self, to: &To, request: ScanRequest) -> Result<ScanResponse, ReplicaFailure> {
        Ok(self
            .bulk_call(to, |mut client| async move { client.scan(request).await })
            .await?)
    }

    pub(crate) async fn tree_hashes(
        &self,
        to: &To,
        request: peer::TreeHashesRequest,
    ) -> Result<peer::TreeHashesResponse, CallError> {
        self.call(to, self.call_timeout, |mut client| async move {
            client.tree_hashes(request).await
        })
        .await
    }

    pub(crate) async fn compare(
        &self,
        to: &To,
        request: peer::CompareRequest,
    ) -> Result<peer::CompareResponse, CallError> {
        self.call(to, self.call_timeout, |mut client| async move {
            client.compare(request).await
        })
        .await
    }

    pub(crate) async fn tree_keys(
        &self,
        to: &To,
        request: peer::TreeKeysRequest,
    ) -> Result<peer::TreeKeysResponse, CallError> {
        self.bulk_call(to, |mut client| async move { client.tree_keys(request).await })
            .await
    }

    pub(crate) async fn fetch(
        &self,
        to: &To,
        request: peer::FetchRequest,
    ) -> Result<peer::FetchResponse, CallError> {
        self.bulk_call(to, |mut client| async move { client.fetch(request).await })
            .await
    }

    pub(crate) async fn page(
        &self,
        to: &To,
        request: peer::PageRequest,
    ) -> Result<peer::PageResponse, CallError> {
        self.bulk_call(to, |mut client| async move { client.page(request).await })
            .await
    }

    pub(crate) async fn store(
        &self,
        to: &To,
        request: peer::StoreRequest,
    ) -> Result<peer::StoreResponse, CallError> {
        self.bulk_call(to, |mut client| async move { client.store(request).await })
            .await
    }

    pub(crate) async fn reap(
        &self,
        to: &To,
        request: peer::ReapRequest,
    ) -> Result<peer::ReapResponse, CallError> {
        self.bulk_call(to, |mut client| async move { client.reap(request).await })
            .await
    }

    pub(crate) async fn locate(
        &self,
        to: &To,
        request: peer::LocateRequest,
        timeout: Duration,
    ) -> Result<peer::LocateResponse, CallError> {
        self.call(
            to,
            timeout,
            |mut client| async move { client.locate(request).await },
        )
        .await
    }

    pub(crate) async fn coordinate(
        &self,
        to: &To,
        request: CoordinateRequest,
        timeout: Duration,
    ) -> Result<CoordinateResponse, CallError> {
        self.call(to, timeout, |mut client| async move {
            client.coordinate(request).await
        })
        .await
    }

    pub(crate) async fn gossip(&self, to: &To, request: GossipRequest) -> Result<GossipResponse, CallError> {
        self.call(to, self.call_timeout, |mut client| async move {
            client.gossip(request).await
        })
        .await
    }

    /// Gossip with an address whose member is not known yet.
    pub(crate) async fn gossip_seed(
        &self,
        address: &str,
        request: GossipRequest,
    ) -> Result<GossipResponse, Status> {
        let mut client = self.connect(address)?;
        match tokio::time::timeout(self.call_timeout, client.gossip(request)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded("the seed did not answer in time")),
        }
    }

    /// Asks an unreachable or silent peer for a sign of life; the answer reaches the failure detector. It waits longer than
    /// other calls: who is slow is not gone. True if the peer was unreachable, and answers.
    pub(crate) async fn probe(&self, to: &To) -> bool {
        if let Ok(peer) = self.peer(to) {
            peer.greeted.store(false, Ordering::Relaxed);
        }
        let was_reachable = self.reachable(&to.member);
        let timeout = self.call_timeout * BULK_CALLS;
        let probed = self.call(to, timeout, |_| async { Ok(Response::new(())) }).await;
        let again = probed.is_ok() && !was_reachable;
        if again {
            tracing::info!(peer = %to.member, "peer answers again");
        }
        again
    }

    async fn call<T, F: Future<Output = Result<Response<T>, Status>>>(
        &self,
        to: &To,
        timeout: Duration,
        request: impl FnOnce(PeerClient<Channel>) -> F,
    ) -> Result<T, CallError> {
        self.attempt(to, timeout, |peer| {
            let answer = request(peer.client.clone());
            async {
                let answer = answer.await.map_err(|status| classify(status, true))?;
                Ok(answer.into_inner())
            }
        })
        .await
    }

    /// Asks a replica, together with whatever else is asked of that peer now.
    async fn replica(&self, to: &To, timeout: Duration, request: Asked) -> Result<Answer, CallError> {
        let header = Arc::clone(&to.header);
        self.attempt(to, timeout, |peer| async move {
            let open = |leaving| {
                let mut client = peer.client.clone();
                async move { client.serve(leaving).await }
            };
            let response = peer.lane.request(header, request, open).await.map_err(lost)?;
            match response.response {
                Some(Answer::Refusal(refusal)) => Err(refused(&refusal)),
                Some(answer) => Ok(answer),
                None => Err(classify(Status::internal("the peer's answer is empty"), true)),
            }
        })
        .await
    }

    /// Greets a peer if that is still to be done, asks it, and tells the failure detector how it went.
    async fn attempt<T, F: Future<Output = Result<T, CallError>>>(
        &self,
        to: &To,
        timeout: Duration,
        request: impl FnOnce(Arc<Peer>) -> F,
    ) -> Result<T, CallError> {
        let started_ms = clock::monotonic_ms();
        let peer = self.peer(to).map_err(|status| classify(status, false))?;
        let attempt = async {
            if !peer.greeted.load(Ordering::Relaxed) {
                greet(&peer, &to.header)
                    .await
                    .map_err(|status| classify(status, false))?;
                peer.greeted.store(true, Ordering::Relaxed);
            }
            self.faults.before_request(&to.member).await;
            request(Arc::clone(&peer)).await
        };
        let outcome = match tokio::time::timeout(timeout, attempt).await {
            Ok(outcome) => outcome,
            Err(_) => Err(CallError {
                sent: true,
                kind: FailureKind::TimedOut,
                answered: false,
                status: Status::deadline_exceeded(format!("no answer within {} ms", timeout.as_millis())),
            }),
        };
        self.note(&to.member, &peer, started_ms, outcome.as_ref().err());
        outcome
    }

    /// Feeds the failure detector. A peer that refuses for lack of room is alive.
    fn note(&self, member: &MemberId, peer: &Peer, started_ms: u64, error: Option<&CallError>) {
        let now_ms = clock::monotonic_ms();
        match error {
            // It was not asked.
            Some(CallError {
                answered: false,
                kind: FailureKind::Overloaded,
                ..
            }) => {}
            Some(CallError {
                answered: false,
                status,
                kind,
                ..
            }) => {
                let silence = if *kind == FailureKind::TimedOut {
                    Silence::TimedOut
                } else {
                    peer.greeted.store(false, Ordering::Relaxed);
                    Silence::Refused
                };
                let was_reachable = self.reachable(member);
                let (times, reason) = ((started_ms, now_ms), status.message().to_owned());
                self.detector.lock().failed(member, silence, times, reason);
                if was_reachable && !self.reachable(member) {
                    tracing::warn!(peer = %member, error = status.message(), "peer does not answer; skipping it");
                }
            }
            _ => self.detector.lock().succeeded(member, started_ms, now_ms),
        }
    }

    fn peer(&self, to: &To) -> Result<Arc<Peer>, Status> {
        let mut channels = self.channels.lock();
        if let Some(peer) = channels.get(&to.member)
            && peer.address == to.address
        {
            return Ok(Arc::clone(peer));
        }
        let peer = Arc::new(Peer {
            address: Arc::clone(&to.address),
            client: self.connect(&to.address)?,
            lane: Lane::new(Arc::clone(&self.traffic)),
            greeted: AtomicBool::new(false),
        });
        channels.insert(to.member.clone(), Arc::clone(&peer));
        Ok(peer)
    }

    fn connect(&self, address: &str) -> Result<PeerClient<Channel>, Status> {
        let endpoint = Endpoint::from_shared(format!("http://{address}"))
            .map_err(|error| Status::unavailable(format!("invalid address {address:?}: {error}")))?
            .connect_timeout(self.call_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        Ok(PeerClient::new((self.connect)(endpoint))
            .max_decoding_message_size(self.message_bytes_max)
            .max_encoding_message_size(self.message_bytes_max))
    }
}

/// A member as a destination.
#[derive(Debug, Clone)]
pub(crate) struct To {
    pub(crate) member: MemberId,
    pub(crate) address: Arc<str>,
    /// What goes into each message to it.
    pub(crate) header: Arc<Header>,
}

impl To {
    /// For a message of its own.
    pub(crate) fn header(&self) -> Header {
        Header::clone(&self.header)
    }
}

async fn greet(peer: &Peer, header: &Header) -> Result<(), Status> {
    let request = HandshakeRequest {
        header: Some(header.clone()),
        protocol_version_min: PROTOCOL_VERSIONS.0,
        protocol_version_max: PROTOCOL_VERSIONS.1,
        state_format_version: STATE_FORMAT_VERSION.into(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let answer = peer.client.clone().handshake(request).await?.into_inner();
    let answered = answer.header.unwrap_or_default();
    if answered.cluster_id != header.cluster_id || answered.member_id != header.recipient {
        return Err(Status::unavailable(format!(
            "{} is at {} where {} was expected",
            answered.member_id, peer.address, header.recipient
        )));
    }
    let (min, max) = PROTOCOL_VERSIONS;
    if !(min..=max).contains(&answer.protocol_version) {
        return Err(Status::unavailable(format!(
            "it speaks protocol version {}",
            answer.protocol_version
        )));
    }
    Ok(())
}

fn classify(status: Status, past_handshake: bool) -> CallError {
    match status::reason_name(&status) {
        Some(reason) => answered(&reason, past_handshake, status),
        None if status.code() == Code::DeadlineExceeded => CallError {
            sent: past_handshake,
            kind: FailureKind::TimedOut,
            answered: false,
            status,
        },
        None => CallError {
            sent: past_handshake && !never_connected(&status),
            kind: FailureKind::Unreachable,
            answered: false,
            status,
        },
    }
}

/// The peer says why it does not do it.
fn answered(reason: &str, past_handshake: bool, status: Status) -> CallError {
    let (sent, kind, answered) = match reason {
        // Refusals before anything was done.
        "NOT_READY" | "FOREIGN_CLUSTER" | "WRONG_RECIPIENT" | "NOT_A_MEMBER" | "UNSUPPORTED_PROTOCOL" => {
            (false, FailureKind::Unreachable, false)
        }
        "OVERLOADED" | "DISK_FULL" => (false, FailureKind::Overloaded, true),
        "STALE_RING" => (false, FailureKind::StaleEpoch, true),
        "HINT_DECLINED" => (false, FailureKind::Declined, true),
        _ => (past_handshake, FailureKind::Storage, true),
    };
    CallError {
        sent,
        kind,
        answered,
        status,
    }
}

/// The stream gave no answer.
fn lost(lost: Lost) -> CallError {
    match lost {
        Lost::Full => CallError {
            sent: false,
            kind: FailureKind::Overloaded,
            answered: false,
            status: Status::resource_exhausted("too many requests wait to be sent to this peer"),
        },
        Lost::Unsent(status) => classify(status, false),
        Lost::Sent(status) => classify(status, true),
    }
}

/// A replica's refusal.
fn refused(refusal: &Refusal) -> CallError {
    answered(&refusal.reason, true, Status::unknown(refusal.message.clone()))
}

/// An answer to another question than the one that was asked.
fn unfitting(to: &To) -> CallError {
    let message = format!("{} answered another question", to.member);
    answered("", true, Status::internal(message))
}

/// No connection could be made, so nothing left this node.
fn never_connected(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

impl From<CallError> for ReplicaFailure {
    fn from(error: CallError) -> Self {
        Self {
            sent: error.sent,
            kind: error.kind,
        }
    }
}
