//! `dynamo.peer.v1.Peer`: what the nodes of one cluster speak with each other.

use std::sync::Arc;

use dynamo_core::{
    membership::may_send_data,
    types::MemberId,
    version::{KeyState, STATE_FORMAT_VERSION},
};
use dynamo_proto::peer::{
    CoordinateRequest, CoordinateResponse, FetchRequest, FetchResponse, GossipRequest, GossipResponse,
    HandshakeRequest, HandshakeResponse, Header, LocateRequest, LocateResponse, ReadRequest, ReadResponse,
    ReapRequest, ReapResponse, ScanRequest, ScanResponse, StoreRequest, StoreResponse, TreeHashesRequest,
    TreeHashesResponse, TreeKeysRequest, TreeKeysResponse, WriteRequest, WriteResponse, peer_server::Peer,
};
use tonic::{Request, Response, Status};

use super::{
    anti_entropy, convert,
    gossip::{delta_to_proto, digest_from_proto, ring_version_to_proto},
    kv, locate, reap,
    status::{Failure, Reason},
};
use crate::{
    node::Node,
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

    /// Loses what is to be lost of messages that change no data.
    async fn through(&self, header: Option<&Header>) {
        let sender = header.map_or("", |header| header.member_id.as_str());
        self.node.faults().on_arrival(sender).await;
        self.node.faults().before_reply(sender).await;
    }

    /// Serves a message about data: a node that stops or waits for its ring serves none, and nobody is served whom the
    /// ring does not list. Such a member was removed: its old data must not come back.
    async fn data<T>(
        &self,
        header: Option<&Header>,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Response<T>, Status> {
        self.check(header)?;
        let placed = self.node.placed()?;
        let sender = header.map_or("", |header| header.member_id.as_str());
        let epoch = header.map_or(0, |header| header.ring_epoch);
        let member = MemberId::new(sender).map_err(|error| Failure::invalid(error.to_string()))?;
        if !may_send_data(placed.placement().ring(), &member, epoch) {
            let message = format!("{sender} is not a member of this cluster's ring");
            return Err(Failure::new(Reason::NotAMember, message).into());
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
        let mut response = GossipResponse {
            header: Some(mine),
            fresh: self.node.is_fresh() || (asker_is_empty && self.node.is_unconfirmed()),
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
