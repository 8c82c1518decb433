//! What is asked of one node over `dynamo.admin.v1`.

use std::{net::SocketAddr, time::Duration};

use dynamo_proto::admin::{
    BootstrapRequest, JoinRequest, Member, PeerInfo, PeersRequest, StatusRequest, StatusResponse,
    admin_client::AdminClient,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint},
};

/// For one call: above what a node needs to mint or adopt a ring, below what a person waits.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a call failed.
pub(crate) type Failure = String;

/// What the node is and how it is.
pub(crate) async fn status(admin: SocketAddr) -> Result<StatusResponse, Failure> {
    connect(admin)
        .await?
        .status(StatusRequest {})
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| failure(&status))
}

/// All members as the node sees them, itself among them.
pub(crate) async fn peers(admin: SocketAddr) -> Result<Vec<PeerInfo>, Failure> {
    let answer = connect(admin).await?.peers(PeersRequest {}).await;
    answer
        .map(|answer| answer.into_inner().peers)
        .map_err(|status| failure(&status))
}

/// Mints the first ring.
pub(crate) async fn bootstrap(admin: SocketAddr, request: BootstrapRequest) -> Result<(), Failure> {
    connect(admin)
        .await?
        .bootstrap(request)
        .await
        .map(drop)
        .map_err(|status| failure(&status))
}

/// Tells the node which member it is.
pub(crate) async fn join(
    admin: SocketAddr,
    cluster_id: &[u8],
    member: &Member,
    seeds: &[String],
) -> Result<(), Failure> {
    let request = JoinRequest {
        cluster_id: cluster_id.to_vec().into(),
        member_id: member.member_id.clone(),
        zone: member.zone.clone(),
        weight: member.weight,
        seeds: seeds.to_vec(),
    };
    connect(admin)
        .await?
        .join(request)
        .await
        .map(drop)
        .map_err(|status| failure(&status))
}

async fn connect(admin: SocketAddr) -> Result<AdminClient<Channel>, Failure> {
    let endpoint = Endpoint::from_shared(format!("http://{admin}")).map_err(|error| error.to_string())?;
    let channel = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT).connect().await;
    channel
        .map(AdminClient::new)
        .map_err(|_| format!("it does not listen at {admin} yet"))
}

fn failure(status: &Status) -> Failure {
    format!("{:?}: {}", status.code(), status.message())
}
