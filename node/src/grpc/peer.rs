//! `dynamo.peer.v1.Peer`: what the nodes of one cluster speak with each other.

use std::sync::Arc;

use dynamo_core::{
    transition::Fenced,
    types::{Incarnation, MemberId},
    version::{KeyState, STATE_FORMAT_VERSION},
};
use dynamo_proto::peer::{
    CoordinateRequest, CoordinateResponse, FetchRequest, FetchResponse, GossipRequest, GossipResponse,
    HandshakeRequest, HandshakeResponse, Header, LocateRequest, LocateResponse, PageRequest, PageResponse,
    ReadRequest, ReadResponse, ReapRequest, ReapResponse, RingVersion, ScanRequest, ScanResponse,
    StoreRequest, StoreResponse, TreeHashesRequest, TreeHashesResponse, TreeKeysRequest, TreeKeysResponse,
    WriteRequest, WriteResponse, peer_server::Peer,
};
use tonic::{Request, Response, Status};

use super::{
    anti_entropy, convert,
    gossip::{delta_to_proto, digest_from_proto, ring_version_from_proto, ring_version_to_proto},
    kv, locate, reap,
    status::{Failure, Reason},
};
use crate::{
    node::{Node, Placed},
    peers::PROTOCOL_VERSIONS,
    request::{not_ready, still_wanted},
    storage::hints::HintError,
    tasks,
};

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

    /// Whether a message about data is taken from its sender.
    fn admit(&self, placed: &Placed, header: &Header) -> Result<(), Failure> {
        let member = MemberId::new(&header.member_id).map_err(|error| Failure::invalid(error.to_string()))?;
        let (base, reads) = (header.ring_epoch, header.reads_epoch);
        let life = header.incarnation.map(|life| Incarnation {
            generation: life.generation,
            id: life.id,
        });
        let known = self.node.membership().entry(&member);
        if let (Some(life), Some(known)) = (life, known)
            && known.incarnation.generation > life.generation
        {
            let message = format!("this life of {member} ({life}) is over: it has begun another one");
            return Err(Failure::new(Reason::NotAMember, message));
        }
        let newest = header.newest.unwrap_or(RingVersion {
            epoch: base,
            hash: u64::MAX,
        });
        let newest = ring_version_from_proto(newest);
        if newest > placed.newest() {
            self.node.catch_up();
        }
        if placed.layouts().is_behind(newest) {
            let message = format!("{member} has not heard yet of ring {}", placed.newest().epoch);
            return Err(Failure::new(Reason::StaleRing, message));
        }
        placed.layouts().admits(&member, base, reads).map_err(|fenced| {
            let reason = match fenced {
                Fenced::NotAMember => Reason::NotAMember,
                Fenced::Retired => Reason::StaleRing,
            };
            Failure::new(reason, format!("{member} is refused: {fenced}"))
        })
    }

    /// A write to a node that is to join, and has not heard yet of the ring that lists it: it is taken, for it is going to be
    /// one of the key's primaries. So nobody has to wait until the news of a ring are everywhere.
    fn is_early(&self, header: Option<&Header>) -> bool {
        let Some(header) = header.filter(|header| self.check(Some(*header)).is_ok()) else {
            return false;
        };
        let early = self.node.awaits_ring() && {
            let (membership, base) = (self.node.membership(), header.ring_epoch);
            let known = membership.ring().map(|(_, ring)| ring);
            known.is_some_and(|ring| {
                let listed =
                    MemberId::new(&header.member_id).is_ok_and(|sender| ring.index_of(&sender).is_some());
                base > ring.epoch() || (base == ring.epoch() && listed)
            })
        };
        if early {
            self.node.catch_up();
        }
        early
    }

    /// Loses what is to be lost of messages that change no data.
    async fn through(&self, header: Option<&Header>) {
        let sender = header.map_or("", |header| header.member_id.as_str());
        self.node.faults().on_arrival(sender).await;
        self.node.faults().before_reply(sender).await;
    }

    /// Serves a message about data: a node that stops or waits for its ring serves none, and nobody is served who has no part
    /// in the rings or goes by one that was retired: its old data must not come back, and what it writes must not be lost.
    async fn data<T>(
        &self,
        header: Option<&Header>,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Response<T>, Status> {
        self.check(header)?;
        if self.node.awaits_ring() {
            // It is well, and learns soon of the ring that the sender knows.
            self.node.catch_up();
            let message = "this node has joined, and has not heard yet of a ring that lists it";
            return Err(Failure::new(Reason::StaleRing, message).into());
        }
        let placed = self.node.placed()?;
        let sender = header.map_or("", |header| header.member_id.as_str());
        if let Some(header) = header {
            self.admit(&placed, header)?;
        }
        self.node.faults().on_arrival(sender).await;
        let answer = answer.await;
        self.node.faults().before_reply(sender).await;
        Ok(Response::new(answer?))
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
        self.through(request.header.as_ref()).await;
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
        self.through(request.header.as_ref()).await;
        // Who begins with nothing would know this node only by its own word, and vouch for it afterwards.
        let asker_is_empty = request
            .digest
            .as_ref()
            .is_some_and(|digest| digest.ring.is_none());
        let unconfirmed = self.node.is_unconfirmed();
        let mut response = GossipResponse {
            header: Some(mine),
            fresh: self.node.is_fresh()
                || !self.node.membership().vouches()
                || (asker_is_empty && unconfirmed),
            unconfirmed,
            ..GossipResponse::default()
        };
        let from = request.header.map(|header| header.member_id).unwrap_or_default();
        if let Ok(member) = MemberId::new(&from) {
            self.node.peers().signs_of_life([&member]);
        }
        if let Some(delta) = request.delta {
            tasks::merge(&self.node, delta).await;
        }
        if let (Some(digest), Some(cluster)) = (request.digest, self.node.membership().cluster_id()) {
            let digest = digest_from_proto(cluster, from, digest)
                .map_err(|error| Failure::invalid(error.to_string()))?;
            if let Some(remembered) = self.node.membership().exposed_by(&digest) {
                self.node.exposed(remembered).await;
            }
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
        self.data(request.header.as_ref(), read(&self.node, &request))
            .await
    }

    async fn write(&self, request: Request<WriteRequest>) -> Result<Response<WriteResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        if request.hint_for.is_empty() && self.is_early(header.as_ref()) {
            let sender = header.map_or_else(String::new, |header| header.member_id);
            self.node.faults().on_arrival(&sender).await;
            let written = write(&self.node, request).await;
            self.node.faults().before_reply(&sender).await;
            return Ok(Response::new(written?));
        }
        self.data(header.as_ref(), write(&self.node, request)).await
    }

    async fn coordinate(
        &self,
        request: Request<CoordinateRequest>,
    ) -> Result<Response<CoordinateResponse>, Status> {
        still_wanted().await;
        let mut request = request.into_inner();
        let header = request.header.take();
        let answer = async { Ok(kv::coordinate_forwarded(&self.node, request).await) };
        self.data(header.as_ref(), answer)
            .await?
            .into_inner()
            .map(Response::new)
    }

    async fn scan(&self, request: Request<ScanRequest>) -> Result<Response<ScanResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        self.data(header.as_ref(), self.node.scan_local(request)).await
    }

    async fn tree_hashes(
        &self,
        request: Request<TreeHashesRequest>,
    ) -> Result<Response<TreeHashesResponse>, Status> {
        let request = request.into_inner();
        let answer = async { anti_entropy::tree_hashes(&self.node, &request) };
        self.data(request.header.as_ref(), answer).await
    }

    async fn tree_keys(
        &self,
        request: Request<TreeKeysRequest>,
    ) -> Result<Response<TreeKeysResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        self.data(header.as_ref(), anti_entropy::tree_keys(&self.node, request))
            .await
    }

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<FetchResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        self.data(header.as_ref(), anti_entropy::fetch(&self.node, request))
            .await
    }

    async fn page(&self, request: Request<PageRequest>) -> Result<Response<PageResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        self.data(header.as_ref(), anti_entropy::page(&self.node, request))
            .await
    }

    async fn store(&self, request: Request<StoreRequest>) -> Result<Response<StoreResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        self.data(header.as_ref(), anti_entropy::store(&self.node, request))
            .await
    }

    async fn reap(&self, request: Request<ReapRequest>) -> Result<Response<ReapResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        self.data(header.as_ref(), reap::serve(&self.node, request)).await
    }

    async fn locate(&self, request: Request<LocateRequest>) -> Result<Response<LocateResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        let sender = header.as_ref().map(|header| header.member_id.clone());
        self.data(
            header.as_ref(),
            locate::flood(&self.node, request, sender.as_deref()),
        )
        .await
    }
}

async fn read(node: &Arc<Node>, request: &ReadRequest) -> Result<ReadResponse, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    if !request.fallback && !node.placed()?.is_primary(&key) {
        // It may have handed over what it held.
        let message = format!(
            "this node is no primary of the key with hash {} any more",
            key.hash()
        );
        return Err(Failure::new(Reason::StaleRing, message));
    }
    let read = node.read_replica(&key).await.map_err(|error| {
        let message = format!("key with hash {}: {error}", key.hash());
        Failure::new(Reason::CorruptRecord, message)
    })?;
    Ok(ReadResponse {
        state: read.state.map(|state| state.encode()),
        suspect: read.suspect,
    })
}

/// Merges a write, or keeps it as a hint. A hint for this node, or for a key of which it is a primary, is its own.
async fn write(node: &Arc<Node>, request: WriteRequest) -> Result<WriteResponse, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    let state = KeyState::decode(request.state).map_err(|error| {
        Failure::invalid(format!("the state of the key with hash {}: {error}", key.hash()))
    })?;
    let primary = node.ring_in_use().is_none_or(|placed| placed.is_primary(&key));
    let committed = if request.hint_for.is_empty() || primary {
        let doubtful = node.is_doubtful().then(|| state.clone());
        let committed = node.writer().merge(&key, state, request.sync).await?;
        match doubtful {
            Some(state) => node.keep_for_itself(&key, state, committed).await?,
            None => committed,
        }
    } else {
        let owner = MemberId::new(request.hint_for).map_err(|error| Failure::invalid(error.to_string()))?;
        let owner = node.hint_owner(owner);
        let kept = node.hints().hint(&owner, &key, state, request.sync).await;
        kept.map_err(HintError::into_write)?
    };
    Ok(WriteResponse {
        durable: committed.durable,
    })
}
