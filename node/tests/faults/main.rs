//! Real nodes in one process with faults on demand (feature `faults`): cut and slow ways between them, full disks, failing
//! reads. Test names cite the feature rows that they show (see `docs/testing.md`).
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "tests")]

#[path = "../cluster/harness.rs"]
#[allow(dead_code, reason = "the other test target uses all of it")]
mod harness;

mod disks;

mod network;

mod zombies;

use dynamo_proto::fault::{DropKeyRequest, PeerFault, SetRequest, fault_client::FaultClient};
use harness::Cluster;

/// Replaces the faults of a node.
async fn set(cluster: &Cluster, index: usize, faults: SetRequest) {
    let address = format!("http://{}", cluster.node(index).admin);
    let mut client = FaultClient::connect(address).await.unwrap();
    client.set(faults).await.unwrap();
}

/// Ends all faults of all nodes.
async fn heal(cluster: &Cluster) {
    for index in cluster.up() {
        set(cluster, index, SetRequest::default()).await;
    }
}

/// What happens to a node's requests to others.
fn towards(others: impl IntoIterator<Item = usize>, fault: &PeerFault) -> SetRequest {
    let peers = others.into_iter().map(|other| PeerFault {
        member_id: Cluster::id(other),
        ..fault.clone()
    });
    SetRequest {
        peers: peers.collect(),
        ..SetRequest::default()
    }
}

/// Requests are lost.
fn cut() -> PeerFault {
    PeerFault {
        drop_requests: true,
        ..PeerFault::default()
    }
}

/// Loses a node's copy of a key, without a trace.
async fn drop_key(cluster: &Cluster, index: usize, key: &str) -> bool {
    let address = format!("http://{}", cluster.node(index).admin);
    let mut client = FaultClient::connect(address).await.unwrap();
    let request = DropKeyRequest {
        bucket: String::new(),
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
    };
    client.drop_key(request).await.unwrap().into_inner().dropped
}
