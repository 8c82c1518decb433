//! Starts nodes, makes them a cluster, and speaks the plain protocol with them.

use std::time::Duration;

use bytes::Bytes;
use dynamo_node::{Config, Running, config::Listen};
use dynamo_proto::{
    admin::{
        BootstrapRequest, JoinRequest, Member, PeersRequest, StatusRequest, StatusResponse,
        admin_client::AdminClient,
    },
    v1::{self, key_value_client::KeyValueClient},
};
use prost::Message as _;
use tempfile::TempDir;
use tonic::{Code, Status, transport::Channel};

pub(crate) const CLUSTER: [u8; 16] = [7; 16];
const DEADLINE: Duration = Duration::from_secs(30);

/// What a cluster is to be.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) zones: usize,
    pub(crate) factor: u32,
    pub(crate) partitions: u32,
    pub(crate) configure: fn(&mut Config),
}

impl Shape {
    pub(crate) fn new(nodes: usize, zones: usize) -> Self {
        Self {
            nodes,
            zones,
            factor: 3,
            partitions: 16,
            configure: |_| (),
        }
    }

    pub(crate) fn with_factor(self, factor: u32) -> Self {
        Self { factor, ..self }
    }

    pub(crate) fn weight(index: usize) -> u32 {
        if index == 0 { 2 } else { 1 }
    }
}

/// Nodes of one cluster; their directories go with it.
pub(crate) struct Cluster {
    shape: Shape,
    dirs: Vec<TempDir>,
    nodes: Vec<Option<Running>>,
    /// The first node is everybody's seed, so it comes back at the same address.
    seed_port: Option<u16>,
}

impl Cluster {
    /// Starts the nodes, bootstraps the first, joins the others and waits until all serve.
    pub(crate) async fn start(shape: Shape) -> Self {
        let cluster = Self::unassigned(shape).await;
        cluster.assign().await;
        cluster.all_valid().await;
        cluster
    }

    /// Starts the nodes only.
    pub(crate) async fn unassigned(shape: Shape) -> Self {
        let mut cluster = Self {
            dirs: Vec::new(),
            nodes: Vec::new(),
            seed_port: None,
            shape,
        };
        for index in 0..cluster.shape.nodes {
            cluster.dirs.push(tempfile::tempdir().unwrap());
            cluster.nodes.push(None);
            cluster.start_node(index).await;
        }
        cluster
    }

    pub(crate) fn id(index: usize) -> String {
        format!("node-{index}")
    }

    pub(crate) fn zone(&self, index: usize) -> String {
        if self.shape.zones == 0 {
            String::new()
        } else {
            format!("zone-{}", index % self.shape.zones)
        }
    }

    pub(crate) fn members(&self) -> Vec<Member> {
        let member = |index| Member {
            member_id: Self::id(index),
            zone: self.zone(index),
            weight: Shape::weight(index),
            peer_address: self.node(index).peer.to_string(),
        };
        (0..self.shape.nodes).map(member).collect()
    }

    pub(crate) fn bootstrap_request(&self) -> BootstrapRequest {
        BootstrapRequest {
            cluster_id: Bytes::copy_from_slice(&CLUSTER),
            member_id: Self::id(0),
            members: self.members(),
            partitions: self.shape.partitions,
            factor: self.shape.factor,
        }
    }

    pub(crate) fn join_request(&self, index: usize) -> JoinRequest {
        JoinRequest {
            cluster_id: Bytes::copy_from_slice(&CLUSTER),
            member_id: Self::id(index),
            zone: self.zone(index),
            weight: Shape::weight(index),
            seeds: vec![self.node(0).peer.to_string()],
        }
    }

    pub(crate) async fn assign(&self) {
        self.admin(0).bootstrap(self.bootstrap_request()).await.unwrap();
        for index in 1..self.shape.nodes {
            self.admin(index).join(self.join_request(index)).await.unwrap();
        }
    }

    /// Waits until every node that runs serves, and knows and reaches all others that run where they are now.
    pub(crate) async fn all_valid(&self) {
        let up = || (0..self.shape.nodes).filter(|index| self.nodes[*index].is_some());
        for index in up() {
            until(
                &format!("node {index} serves and reaches all that run"),
                || async move {
                    let ready = self.status(index).await.not_ready_reason.is_empty();
                    let known = self
                        .admin(index)
                        .peers(PeersRequest {})
                        .await
                        .unwrap()
                        .into_inner()
                        .peers;
                    let reaches = |other: usize| {
                        let address = self.node(other).peer.to_string();
                        known.iter().any(|peer| {
                            peer.member_id == Self::id(other)
                                && peer.peer_address == address
                                && peer.reachable
                        })
                    };
                    ready && up().all(reaches)
                },
            )
            .await;
        }
    }

    pub(crate) fn node(&self, index: usize) -> &Running {
        self.nodes[index].as_ref().unwrap()
    }

    pub(crate) async fn start_node(&mut self, index: usize) {
        let mut config = Config {
            data_dir: self.dirs[index].path().into(),
            ..Config::default()
        };
        let any = "127.0.0.1:0".parse().unwrap();
        config.listen = Listen {
            client: any,
            peer: any,
            admin: any,
            http: any,
        };
        if index == 0
            && let Some(port) = self.seed_port
        {
            config.listen.peer.set_port(port);
        }
        config.shutdown_grace_s = 5;
        config.limits.block_cache_bytes = 1 << 20;
        (self.shape.configure)(&mut config);
        let running = dynamo_node::start(config).await.unwrap();
        if index == 0 {
            self.seed_port = Some(running.peer.port());
        }
        self.nodes[index] = Some(running);
    }

    pub(crate) async fn stop_node(&mut self, index: usize) {
        let running = self.nodes[index].take().unwrap();
        assert_eq!(running.stop().await.unwrap(), dynamo_node::End::Stopped);
    }

    pub(crate) fn kv(&self, index: usize) -> KeyValueClient<Channel> {
        KeyValueClient::new(channel(self.node(index).client)).max_decoding_message_size(64 << 20)
    }

    pub(crate) fn admin(&self, index: usize) -> AdminClient<Channel> {
        AdminClient::new(channel(self.node(index).admin))
    }

    pub(crate) async fn status(&self, index: usize) -> StatusResponse {
        self.admin(index)
            .status(StatusRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// Waits until `watcher` sees that `other` does not answer.
    pub(crate) async fn sees_down(&self, watcher: usize, other: usize) {
        until(
            &format!("node {watcher} sees that node {other} is down"),
            || async move { self.status(watcher).await.peers_down.contains(&Self::id(other)) },
        )
        .await;
    }

    /// Members of a key's preference list: the primaries, then the fallbacks.
    pub(crate) async fn preference_list(&self, key: &[u8]) -> (Vec<String>, Vec<String>) {
        let request = dynamo_proto::admin::PreferenceListRequest {
            bucket: String::new(),
            key: Bytes::copy_from_slice(key),
        };
        let up = self.nodes.iter().position(Option::is_some).unwrap();
        let list = self
            .admin(up)
            .preference_list(request)
            .await
            .unwrap()
            .into_inner();
        let (primaries, fallbacks): (Vec<_>, Vec<_>) =
            list.entries.into_iter().partition(|entry| entry.primary);
        let ids = |entries: Vec<dynamo_proto::admin::PreferenceEntry>| {
            entries
                .into_iter()
                .map(|entry| entry.member_id)
                .collect::<Vec<_>>()
        };
        (ids(primaries), ids(fallbacks))
    }
}

pub(crate) fn index_of(member: &str) -> usize {
    member.strip_prefix("node-").unwrap().parse().unwrap()
}

fn channel(address: std::net::SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy()
}

/// Waits for a condition; fails with its name after the deadline.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let met = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(DEADLINE, met).await.is_ok(),
        "not within {DEADLINE:?}: {what}"
    );
}

pub(crate) fn get(key: &str) -> v1::GetRequest {
    v1::GetRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        ..v1::GetRequest::default()
    }
}

pub(crate) fn put(key: &str, value: &str, context: &Bytes) -> v1::PutRequest {
    v1::PutRequest {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
        context: context.clone(),
        ..v1::PutRequest::default()
    }
}

/// As a request's field.
#[allow(clippy::unnecessary_wraps, reason = "the field is optional")]
pub(crate) fn count(count: u32) -> Option<v1::Replicas> {
    Some(v1::Replicas {
        amount: Some(v1::replicas::Amount::Count(count)),
    })
}

pub(crate) fn values(response: &v1::GetResponse) -> Vec<String> {
    let mut values: Vec<_> = response
        .versions
        .iter()
        .map(|version| String::from_utf8(version.value.to_vec()).unwrap())
        .collect();
    values.sort();
    values
}

/// The code and the reason of a failure.
pub(crate) fn why(status: &Status) -> (Code, String) {
    let info: Option<tonic_types::pb::ErrorInfo> = detail(status, "google.rpc.ErrorInfo");
    (status.code(), info.unwrap().reason)
}

/// A typed detail of a failure.
pub(crate) fn detail<M: prost::Message + Default>(status: &Status, name: &str) -> Option<M> {
    let rich = tonic_types::pb::Status::decode(status.details()).unwrap();
    let any = rich
        .details
        .into_iter()
        .find(|any| any.type_url == format!("type.googleapis.com/{name}"))?;
    Some(M::decode(any.value.as_slice()).unwrap())
}
