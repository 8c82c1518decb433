//! Starts nodes, makes them a cluster, and speaks the plain protocol with them.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use dynamo_node::{Config, Running, config::Listen};
use dynamo_proto::{
    admin::{
        BootstrapRequest, Bucket, HintsRequest, HintsResponse, InspectRequest, JoinRequest,
        ListBucketsRequest, LocalGetRequest, LocalGetResponse, Member, MerkleRootRequest, PauseTaskRequest,
        PeersRequest, SalvageProgress, SalvageRequest, SetBucketRequest, StatusRequest, StatusResponse,
        admin_client::AdminClient,
    },
    v1::{self, key_value_client::KeyValueClient},
};
use futures::{FutureExt as _, future::BoxFuture};
use tempfile::TempDir;
use tonic::{Code, IntoRequest, Status, transport::Channel};

#[path = "../support/messages.rs"]
mod messages;

pub(crate) use messages::*;

pub(crate) const CLUSTER: [u8; 16] = [7; 16];

/// For whatever is waited for; `DYNAMO_TEST_DEADLINE_S` allows more where there are more keys than usual.
fn deadline() -> Duration {
    let seconds = std::env::var("DYNAMO_TEST_DEADLINE_S");
    Duration::from_secs(seconds.map_or(30, |seconds| seconds.parse().unwrap()))
}

/// What a cluster is to be.
#[derive(Clone)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    /// So many of them are the first ring; the others join, and wait for one that lists them.
    pub(crate) first: usize,
    pub(crate) zones: usize,
    pub(crate) factor: u32,
    pub(crate) partitions: u32,
    pub(crate) configure: fn(&mut Config),
    /// In addition, for one node.
    pub(crate) configure_node: fn(usize, &mut Config),
    /// How a node starts.
    pub(crate) start: fn(Config) -> BoxFuture<'static, anyhow::Result<Running>>,
}

impl Shape {
    pub(crate) fn new(nodes: usize, zones: usize) -> Self {
        Self {
            nodes,
            first: nodes,
            zones,
            factor: 3,
            partitions: 16,
            configure: |_| (),
            configure_node: |_, _| (),
            start: |config| dynamo_node::start(config).boxed(),
        }
    }

    /// With short times of all background work.
    pub(crate) fn quick(nodes: usize, zones: usize) -> Self {
        Self {
            configure: quick,
            ..Self::new(nodes, zones)
        }
    }

    pub(crate) fn with_first(self, first: usize) -> Self {
        Self { first, ..self }
    }

    pub(crate) fn with_factor(self, factor: u32) -> Self {
        Self { factor, ..self }
    }

    pub(crate) fn weight(index: usize) -> u32 {
        if index == 0 { 2 } else { 1 }
    }
}

/// Short times of all background work. Peers get as long as a busy machine may take.
pub(crate) fn quick(config: &mut Config) {
    let background = &mut config.background;
    background.hints_interval_ms = 200;
    background.exchange_interval_ms = 300;
    background.reap_interval_ms = 200;
    background.reap_grace_ms = 500;
    background.recovery_delay_ms = 500;
    background.p99_target_ms = 30_000;
    config.limits.peer_timeout_ms = 2000;
}

/// The same, but replicas are brought together only by what a test does itself: no hints, no exchanges.
pub(crate) fn apart(config: &mut Config) {
    quick(config);
    config.hints.bytes_max = 0;
    config.background.exchange_interval_ms = 3_600_000;
}

/// Nodes of one cluster; their directories go with it.
pub(crate) struct Cluster {
    pub(crate) shape: Shape,
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
        (0..self.shape.first).map(member).collect()
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
            self.join(index).await;
        }
    }

    /// Tells a node who it is.
    pub(crate) async fn join(&self, index: usize) {
        self.admin(index).join(self.join_request(index)).await.unwrap();
    }

    /// Waits until every node that runs serves, and knows and reaches all others that run where they are now.
    pub(crate) async fn all_valid(&self) {
        for index in self.up().into_iter().filter(|index| *index < self.shape.first) {
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
                    ready && self.up().into_iter().all(reaches)
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
        (self.shape.configure_node)(index, &mut config);
        let running = started(self.shape.start, config).await;
        if index == 0 {
            self.seed_port = Some(running.peer.port());
        }
        self.nodes[index] = Some(running);
    }

    pub(crate) async fn stop_node(&mut self, index: usize) {
        let running = self.nodes[index].take().unwrap();
        assert_eq!(running.stop().await.unwrap(), dynamo_node::End::Stopped);
    }

    pub(crate) async fn restart_node(&mut self, index: usize) {
        self.stop_node(index).await;
        self.start_node(index).await;
    }

    /// Starts those again that have ended by themselves, as whoever runs them does.
    pub(crate) async fn revive(&mut self) {
        for index in self.up() {
            let ended = self.nodes[index]
                .as_mut()
                .unwrap()
                .storage_failed()
                .now_or_never();
            if ended.is_some() {
                self.restart_node(index).await;
            }
        }
    }

    /// Takes a node down that ends by itself.
    pub(crate) async fn ended(&mut self, index: usize) {
        let mut running = self.nodes[index].take().unwrap();
        let ends = tokio::time::timeout(deadline(), running.storage_failed()).await;
        assert!(ends.is_ok(), "node {index} goes on");
        running.stop().await.unwrap();
    }

    pub(crate) fn dir(&self, index: usize) -> &Path {
        self.dirs[index].path()
    }

    /// A node that does not run comes back with an empty volume, and is told who it is.
    pub(crate) async fn start_emptied(&mut self, index: usize) {
        self.dirs[index] = tempfile::tempdir().unwrap();
        self.start_node(index).await;
        self.join(index).await;
    }

    /// A copy of the volume of a node that does not run.
    pub(crate) fn snapshot(&self, index: usize) -> TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_all(self.dir(index), copy.path());
        copy
    }

    /// Gives a node that does not run a volume.
    pub(crate) fn put_back(&mut self, index: usize, volume: TempDir) {
        self.dirs[index] = volume;
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

    /// A put that is accepted.
    pub(crate) async fn accepted(&self, at: usize, put: impl IntoRequest<v1::PutRequest>) -> v1::PutResponse {
        self.kv(at).put(put).await.unwrap().into_inner()
    }

    /// Has a node merge a store that was set aside; what it said last.
    pub(crate) async fn salvage(
        &self,
        index: usize,
        store: &str,
        dry_run: bool,
    ) -> Result<SalvageProgress, Status> {
        let request = SalvageRequest {
            store: store.into(),
            dry_run,
        };
        let mut reports = self.admin(index).salvage(request).await?.into_inner();
        let mut last = SalvageProgress::default();
        while let Some(progress) = reports.message().await? {
            last = progress;
        }
        Ok(last)
    }

    /// The copy of a key in the default bucket that one node alone holds.
    pub(crate) async fn local(&self, index: usize, key: &str) -> LocalGetResponse {
        self.local_in("", index, key).await
    }

    pub(crate) async fn local_in(&self, bucket: &str, index: usize, key: &str) -> LocalGetResponse {
        let request = LocalGetRequest {
            bucket: bucket.to_owned(),
            key: Bytes::copy_from_slice(key.as_bytes()),
        };
        self.admin(index).local_get(request).await.unwrap().into_inner()
    }

    /// The values that one node alone holds, ascending.
    pub(crate) async fn local_values(&self, index: usize, key: &str) -> Vec<String> {
        let versions = self.local(index, key).await.versions.into_iter();
        let mut values: Vec<_> = versions
            .map(|version| String::from_utf8(version.value.to_vec()).unwrap())
            .collect();
        values.sort();
        values
    }

    /// Whether one node has any record of a key, be it a tombstone.
    pub(crate) async fn present(&self, index: usize, key: &str) -> bool {
        self.local(index, key).await.state.unwrap().present
    }

    pub(crate) async fn hints(&self, index: usize) -> HintsResponse {
        self.admin(index)
            .hints(HintsRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// How many hints a node keeps.
    pub(crate) async fn hint_count(&self, index: usize) -> u64 {
        self.hints(index)
            .await
            .owners
            .iter()
            .map(|owner| owner.hints)
            .sum()
    }

    pub(crate) async fn pause(&self, index: usize, task: &str, paused: bool) {
        let request = PauseTaskRequest {
            name: task.to_owned(),
            paused,
        };
        self.admin(index).pause_task(request).await.unwrap();
    }

    /// Sets a bucket's policy and waits until all nodes know it.
    pub(crate) async fn set_bucket(&self, bucket: Bucket) {
        let request = SetBucketRequest { bucket: Some(bucket) };
        let set = self
            .admin(0)
            .set_bucket(request)
            .await
            .unwrap()
            .into_inner()
            .bucket;
        for index in self.up() {
            until("a bucket's policy is known everywhere", || async {
                let mut admin = self.admin(index);
                let known = admin.list_buckets(ListBucketsRequest {}).await.unwrap();
                known.into_inner().buckets.contains(set.as_ref().unwrap())
            })
            .await;
        }
    }

    /// The nodes that run.
    pub(crate) fn up(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|index| self.nodes[*index].is_some())
            .collect()
    }

    /// Digests of a key's record on all primaries; equal ones once. An absent one is `None`.
    pub(crate) async fn digests(&self, bucket: &str, key: &str) -> std::collections::BTreeSet<Option<u64>> {
        let request = InspectRequest {
            bucket: bucket.to_owned(),
            key: Bytes::copy_from_slice(key.as_bytes()),
        };
        let up = self.up()[0];
        let replicas = self
            .admin(up)
            .inspect(request)
            .await
            .unwrap()
            .into_inner()
            .replicas;
        assert!(!replicas.is_empty());
        let digest = |replica: dynamo_proto::admin::ReplicaState| {
            replica
                .error
                .is_empty()
                .then_some(replica.present.then_some(replica.digest))
        };
        // One that cannot be read is equal to none.
        let unread = Some(u64::MAX);
        replicas
            .into_iter()
            .map(|replica| digest(replica).unwrap_or(unread))
            .collect()
    }

    /// Waits until all primaries hold the same record of a key, and there is one.
    pub(crate) async fn equal(&self, bucket: &str, key: &str) {
        until(&format!("all primaries hold the same of {key}"), || async {
            let digests = self.digests(bucket, key).await;
            digests.len() == 1 && !digests.contains(&None) && !digests.contains(&Some(u64::MAX))
        })
        .await;
    }

    /// Waits until the trees of every partition are equal on all its primaries that run.
    pub(crate) async fn equal_trees(&self) {
        until("the trees of all partitions are equal", || async {
            for partition in 0..self.shape.partitions {
                let mut roots = std::collections::BTreeSet::new();
                for index in self.up() {
                    let asked = self
                        .admin(index)
                        .merkle_root(MerkleRootRequest { partition })
                        .await;
                    match asked {
                        Ok(root) => {
                            let root = root.into_inner();
                            roots.insert((root.root, root.rebuilding));
                        }
                        // It is no primary, or no member at all.
                        Err(status)
                            if matches!(status.code(), Code::InvalidArgument | Code::FailedPrecondition) => {}
                        Err(_) => return false,
                    }
                }
                if roots.len() != 1 || roots.iter().any(|(_, rebuilding)| *rebuilding) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// The sum of all series of a metric whose labels contain `label`.
    pub(crate) async fn metric(&self, index: usize, name: &str, label: &str) -> u64 {
        let (_, text) = self.http(index, "/metrics").await;
        let series = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
        series
            .filter(|line| line.contains(label))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }

    /// The sum over all nodes that run.
    pub(crate) async fn metrics(&self, name: &str, label: &str) -> u64 {
        let mut sum = 0;
        for index in self.up() {
            sum += self.metric(index, name, label).await;
        }
        sum
    }

    /// Status and body of a page of the HTTP port.
    pub(crate) async fn http(&self, index: usize, path: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.node(index).http)
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The first key of a series whose primaries and fallbacks fit.
    pub(crate) async fn key_with(&self, fits: impl Fn(&[usize], &[usize]) -> bool) -> String {
        for number in 0..1000 {
            let key = format!("key-{number}");
            let (primaries, fallbacks) = self.placed(&key).await;
            if fits(&primaries, &fallbacks) {
                return key;
            }
        }
        panic!("no key fits");
    }

    /// A key's primaries and fallbacks, in order.
    pub(crate) async fn placed(&self, key: &str) -> (Vec<usize>, Vec<usize>) {
        let (primaries, fallbacks) = self.preference_list(key.as_bytes()).await;
        let indices = |members: Vec<String>| members.iter().map(|member| index_of(member)).collect();
        (indices(primaries), indices(fallbacks))
    }

    /// What a quorum read at a node shows; none for NOT_FOUND. Tries again while too few replicas answer.
    pub(crate) async fn read(&self, index: usize, key: &str) -> Option<Vec<String>> {
        let begun = tokio::time::Instant::now();
        loop {
            match self.kv(index).get(get(key)).await {
                Ok(response) => return Some(values(&response.into_inner())),
                Err(status) if status.code() == Code::NotFound => return None,
                Err(status) => {
                    assert!(begun.elapsed() < deadline(), "{status}");
                    // Between two looks at the condition.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
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
        self.preference_list_in("", key).await
    }

    pub(crate) async fn preference_list_in(&self, bucket: &str, key: &[u8]) -> (Vec<String>, Vec<String>) {
        let request = dynamo_proto::admin::PreferenceListRequest {
            bucket: bucket.to_owned(),
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

async fn started(
    start: fn(Config) -> BoxFuture<'static, anyhow::Result<Running>>,
    config: Config,
) -> Running {
    let begun = tokio::time::Instant::now();
    loop {
        match start(config.clone()).await {
            Ok(running) => return running,
            // In one process, what a stopped node still had under way may hold its store for a moment.
            Err(error) if begun.elapsed() < deadline() && format!("{error:#}").contains("has it open") => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(error) => panic!("{error:#}"),
        }
    }
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy_all(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
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
        tokio::time::timeout(deadline(), met).await.is_ok(),
        "not within {:?}: {what}",
        deadline()
    );
}

/// Waits until a request is answered; fails with what it was for and the last refusal after the deadline.
pub(crate) async fn until_ok<T, F: Future<Output = Result<T, Status>>>(
    what: &str,
    mut request: impl FnMut() -> F,
) -> T {
    let mut refused = None;
    let answered = async {
        loop {
            match request().await {
                Ok(answer) => return answer,
                Err(status) => refused = Some(status),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answer = tokio::time::timeout(deadline(), answered).await;
    answer.unwrap_or_else(|_| panic!("not within {:?}: {what}; refused: {refused:?}", deadline()))
}
