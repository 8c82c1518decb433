//! What the operator asks of nodes: a trait, so that tests can stand in for nodes, and its gRPC client.

use std::{future::Future, net::IpAddr, sync::Arc, time::Duration};

use dynamo_core::{ring::Placement, types::ClusterId};
use dynamo_proto::admin::{self as pb, admin_client::AdminClient};
use tonic::transport::{Channel, Endpoint};

use crate::ring::{self, RingReadError};

/// Port of every node's admin service.
pub const ADMIN_PORT: u16 = 7702;
/// A call to a node may take this long, connecting included.
const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Bootstrap, Join and Commit sync to disk, which a loaded disk does slowly; a plan of a large ring takes a while.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// A ring of 16384 partitions and 100 members stays well below.
const RING_BYTES_MAX: usize = 1 << 20;

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Where it is in its life.
    pub state: NodeState,
    /// Its cluster; `None` while unassigned.
    pub cluster_id: Option<ClusterId>,
    /// Its identity; empty while unassigned.
    pub member_id: String,
    /// Its zone; empty while unassigned and without zones.
    pub zone: String,
    /// Epoch of its ring; 0 without one.
    pub ring_epoch: u64,
    /// Hash of its ring.
    pub ring_hash: u64,
    /// What it runs.
    pub release: String,
    /// Why it is not ready; empty if it is.
    pub not_ready_reason: String,
    /// Hints that it keeps for others.
    pub hints: u64,
    /// Partitions that it holds but does not answer reads for.
    pub partitions_suspect: u32,
    /// Estimated bytes of its live data.
    pub data_bytes: u64,
}

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Waits for Bootstrap or Join.
    Unassigned,
    /// Waits for a ring that lists it, or to be whole.
    Joining,
    /// Serves its ranges.
    Valid,
    /// Shuts down.
    Draining,
}

/// Why a node did not do what it was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AdminError {
    /// No answer: the node may be up, down or out of reach, and may have done what it was asked.
    #[error("no answer from {address}: {why}")]
    Silent {
        /// Who was asked.
        address: IpAddr,
        /// What the transport said.
        why: String,
    },
    /// It answered with an error.
    #[error("{address} refused {what}: {why}")]
    Refused {
        /// Who was asked.
        address: IpAddr,
        /// What was asked.
        what: &'static str,
        /// The gRPC code and message.
        why: String,
    },
    /// Its answer makes no sense.
    #[error("{address} sent a bad answer: {why}")]
    Bad {
        /// Who was asked.
        address: IpAddr,
        /// What is wrong.
        why: String,
    },
}

/// What the operator asks of nodes, each by the IP address of its pod.
pub trait Admin: Send + Sync + 'static {
    /// What the node is and how it is.
    fn status(&self, node: IpAddr) -> impl Future<Output = Result<NodeReport, AdminError>> + Send;
    /// The ring that the node uses.
    fn ring(&self, node: IpAddr) -> impl Future<Output = Result<Arc<Placement>, AdminError>> + Send;
    /// Mints the first ring; true if this call did.
    fn bootstrap(
        &self,
        node: IpAddr,
        request: pb::BootstrapRequest,
    ) -> impl Future<Output = Result<bool, AdminError>> + Send;
    /// Gives a node its identity; true if this call did.
    fn join(
        &self,
        node: IpAddr,
        request: pb::JoinRequest,
    ) -> impl Future<Output = Result<bool, AdminError>> + Send;
    /// Where a change of the ring stands, as the node knows.
    fn transition(
        &self,
        node: IpAddr,
    ) -> impl Future<Output = Result<pb::TransitionResponse, AdminError>> + Send;
    /// What a change would come to; changes nothing.
    fn plan(
        &self,
        node: IpAddr,
        target: pb::RingTarget,
    ) -> impl Future<Output = Result<pb::PlanResponse, AdminError>> + Send;
    /// Proposes a ring.
    fn commit(
        &self,
        node: IpAddr,
        request: pb::CommitRequest,
    ) -> impl Future<Output = Result<pb::CommitResponse, AdminError>> + Send;
}

/// Real nodes over gRPC. Each call makes its own connection: pods and their addresses come and go, and a call every few
/// seconds is not worth a pool that remembers addresses of the dead.
#[derive(Clone, Copy, Debug, Default)]
pub struct GrpcAdmin;

impl Admin for GrpcAdmin {
    async fn status(&self, node: IpAddr) -> Result<NodeReport, AdminError> {
        let call = async { connect(node).await?.status(pb::StatusRequest {}).await };
        report(node, answer(node, "Status", CALL_TIMEOUT, call).await?)
    }

    async fn ring(&self, node: IpAddr) -> Result<Arc<Placement>, AdminError> {
        let call = async { connect(node).await?.ring(pb::RingRequest {}).await };
        let bad = |error: RingReadError| AdminError::Bad {
            address: node,
            why: error.to_string(),
        };
        ring::read(answer(node, "Ring", CALL_TIMEOUT, call).await?).map_err(bad)
    }

    async fn bootstrap(&self, node: IpAddr, request: pb::BootstrapRequest) -> Result<bool, AdminError> {
        let call = async { connect(node).await?.bootstrap(request).await };
        Ok(answer(node, "Bootstrap", CHANGE_TIMEOUT, call).await?.created)
    }

    async fn join(&self, node: IpAddr, request: pb::JoinRequest) -> Result<bool, AdminError> {
        let call = async { connect(node).await?.join(request).await };
        Ok(answer(node, "Join", CHANGE_TIMEOUT, call).await?.joined)
    }

    async fn transition(&self, node: IpAddr) -> Result<pb::TransitionResponse, AdminError> {
        let call = async { connect(node).await?.transition(pb::TransitionRequest {}).await };
        answer(node, "Transition", CALL_TIMEOUT, call).await
    }

    async fn plan(&self, node: IpAddr, target: pb::RingTarget) -> Result<pb::PlanResponse, AdminError> {
        let request = pb::PlanRequest { target: Some(target) };
        let call = async { connect(node).await?.plan(request).await };
        answer(node, "Plan", CHANGE_TIMEOUT, call).await
    }

    async fn commit(
        &self,
        node: IpAddr,
        request: pb::CommitRequest,
    ) -> Result<pb::CommitResponse, AdminError> {
        let call = async { connect(node).await?.commit(request).await };
        answer(node, "Commit", CHANGE_TIMEOUT, call).await
    }
}

async fn connect(node: IpAddr) -> Result<AdminClient<Channel>, tonic::Status> {
    let unreachable = |error: tonic::transport::Error| tonic::Status::unavailable(chain(&error));
    let endpoint = Endpoint::from_shared(format!(
        "http://{}",
        std::net::SocketAddr::from((node, ADMIN_PORT))
    ));
    let channel = endpoint
        .map_err(unreachable)?
        .connect_timeout(CALL_TIMEOUT)
        .http2_keep_alive_interval(CALL_TIMEOUT)
        .keep_alive_timeout(CALL_TIMEOUT)
        .connect()
        .await
        .map_err(unreachable)?;
    Ok(AdminClient::new(channel).max_decoding_message_size(RING_BYTES_MAX))
}

/// An error with its causes: tonic's own text is only "transport error".
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

async fn answer<T>(
    node: IpAddr,
    what: &'static str,
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
) -> Result<T, AdminError> {
    let silent = |why: String| AdminError::Silent { address: node, why };
    match tokio::time::timeout(timeout, call).await {
        Err(_) => Err(silent(format!("nothing within {} ms", timeout.as_millis()))),
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => match status.code() {
            tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Unknown => {
                Err(silent(status.message().into()))
            }
            code => Err(AdminError::Refused {
                address: node,
                what,
                why: format!("{code:?}: {}", status.message()),
            }),
        },
    }
}

fn report(node: IpAddr, status: pb::StatusResponse) -> Result<NodeReport, AdminError> {
    use pb::status_response::State;
    let bad = |why: String| AdminError::Bad { address: node, why };
    let state = match status.state() {
        State::Unspecified => return Err(bad(format!("unknown state {}", status.state))),
        State::Unassigned => NodeState::Unassigned,
        State::Joining => NodeState::Joining,
        State::Valid => NodeState::Valid,
        State::Draining => NodeState::Draining,
    };
    let cluster_id = match status.cluster_id.as_ref() {
        [] => None,
        bytes => {
            Some(ClusterId(<[u8; 16]>::try_from(bytes).map_err(|_| {
                bad(format!("a cluster id of {} bytes", bytes.len()))
            })?))
        }
    };
    if cluster_id.is_none() && matches!(state, NodeState::Joining | NodeState::Valid) {
        return Err(bad("a state beyond unassigned without a cluster id".into()));
    }
    Ok(NodeReport {
        state,
        cluster_id,
        member_id: status.member_id,
        zone: status.zone,
        ring_epoch: status.ring_epoch,
        ring_hash: status.ring_hash,
        release: status.release,
        not_ready_reason: status.not_ready_reason,
        hints: status.hints,
        partitions_suspect: status.partitions_suspect,
        data_bytes: status.data_bytes,
    })
}
