//! `dynamo.peer.v1.Peer`: what the nodes of one cluster speak with each other.

use std::sync::Arc;

use dynamo_core::{types::MemberId, version::STATE_FORMAT_VERSION};
use dynamo_lane::{Peers, Serving};
use dynamo_proto::peer::{
    CompareRequest, CompareResponse, CoordinateRequest, CoordinateResponse, FetchRequest, FetchResponse,
    GossipRequest, GossipResponse, HandshakeRequest, HandshakeResponse, Header, LocateRequest,
    LocateResponse, PageRequest, PageResponse, ReapRequest, ReapResponse, ReplicaRequests, ScanRequest,
    ScanResponse, StoreRequest, StoreResponse, TreeHashesRequest, TreeHashesResponse, TreeKeysRequest,
    TreeKeysResponse, peer_server::Peer,
};
use tonic::{Request, Response, Status, Streaming};

use super::{
    anti_entropy, gate,
    gossip::{delta_to_proto, digest_from_proto, ring_version_to_proto},
    kv, locate, reap,
    replica::{self, Replica},
    status::{Failure, Reason},
};
use crate::{node::Node, peers::PROTOCOL_VERSIONS, request::still_wanted, tasks};

/// The peer service.
pub(crate) struct PeerService {
    node: Arc<Node>,
}

impl PeerService {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Loses what is to be lost of messages that change no data.
    async fn through(&self, header: Option<&Header>) {
        let sender = header.map_or("", |header| header.member_id.as_str());
        self.node.faults().on_arrival(sender).await;
        self.node.faults().before_reply(sender).await;
    }

    /// Serves a message about data.
    async fn data<T>(
        &self,
        header: Option<&Header>,
        answer: impl Future<Output = Result<T, Failure>>,
    ) -> Result<Response<T>, Status> {
        gate::data(&self.node, header)?;
        let sender = header.map_or("", |header| header.member_id.as_str());
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
        let mine = gate::check(&self.node, request.header.as_ref())?;
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
        let mine = gate::check(&self.node, request.header.as_ref())?;
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

    type ServeStream = Serving<Peers>;

    async fn serve(
        &self,
        request: Request<Streaming<ReplicaRequests>>,
    ) -> Result<Response<Self::ServeStream>, Status> {
        let stops = self.node.stops().cancelled_owned();
        let replica = Replica(Arc::clone(&self.node));
        Ok(Response::new(dynamo_lane::serve(
            replica,
            request.into_inner(),
            stops,
            replica::BOUNDS,
            Arc::clone(self.node.peers().traffic()),
        )))
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

    async fn compare(&self, request: Request<CompareRequest>) -> Result<Response<CompareResponse>, Status> {
        let mut request = request.into_inner();
        let header = request.header.take();
        self.data(header.as_ref(), anti_entropy::compare(&self.node, request))
            .await
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
