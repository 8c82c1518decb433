//! Nodes of one ring, each in a namespace of its own, and what a scenario does with them.

use std::{
    collections::BTreeSet,
    panic::resume_unwind,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_client::{Client, Context, Replicas, WriteOptions};
use dynamo_local::{LocalRing, Settings};
use dynamo_node::Config;
use dynamo_proto::{
    admin::{
        Bucket, HintsRequest, HintsResponse, ListBucketsRequest, LocalGetRequest, LocalGetResponse,
        MembershipLogRequest, MerkleRootRequest, PauseTaskRequest, PeersRequest, PreferenceListRequest,
        RingRequest, SetBucketRequest, admin_client::AdminClient,
    },
    fault::{CrashRequest, SetRequest, fault_client::FaultClient},
};
use tempfile::TempDir;
use tonic::{Code, transport::Channel};

use crate::{
    network::Network,
    support::{LIMIT, folder},
};

/// Partitions of the rings.
const PARTITIONS: u32 = 32;

/// What a ring is to be.
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) zones: u32,
    /// Places that no node has.
    pub(crate) spare: usize,
    pub(crate) configure: fn(&mut Config),
}

impl Shape {
    /// Five nodes in three zones.
    pub(crate) const FIVE: Self = Self {
        nodes: 5,
        zones: 3,
        spare: 0,
        configure: |_| (),
    };
}

/// What is done in minutes is done in a second here.
fn quick(config: &mut Config) {
    let background = &mut config.background;
    background.hints_interval_ms = 300;
    background.exchange_interval_ms = 1000;
    background.reap_interval_ms = 300;
    background.reap_grace_ms = 1000;
    // No request of these tests lasts longer.
    background.recovery_delay_ms = 2000;
    background.p99_target_ms = 30_000;
    config.limits.block_cache_bytes = 4 << 20;
    config.shutdown_grace_s = 5;
}

pub(crate) struct World {
    // First: processes end before their network and their files go.
    pub(crate) ring: LocalRing,
    pub(crate) network: Network,
    pub(crate) dir: TempDir,
}

impl Drop for World {
    /// After a failure the nodes' logs and files are wanted.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dir.disable_cleanup(true);
            println!(
                "logs and files of the nodes are kept in {}",
                self.dir.path().display()
            );
        }
    }
}

/// Runs a scenario on a ring of its own. One at a time: rings take processor time from each other, and with it the deadlines of
/// their clients.
pub(crate) fn scenario<F: Future<Output = ()>>(shape: Shape, run: impl FnOnce(World) -> F + Send) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    let inside = || {
        let network = Network::new(shape.nodes + shape.spare);
        network.enter();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime
            .unwrap()
            .block_on(async { run(World::start(shape, network).await).await });
    };
    // A thread that has entered a network stays there.
    let ended = std::thread::scope(|scope| scope.spawn(inside).join());
    println!("{:.1} s", began.elapsed().as_secs_f64());
    ended.unwrap_or_else(|panic| resume_unwind(panic));
}

pub(crate) fn name(number: usize) -> String {
    format!("node-{number}")
}

pub(crate) fn number(member: &str) -> usize {
    member.strip_prefix("node-").unwrap().parse().unwrap()
}

/// Waits for a condition; fails with its name after the limit.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A write to so many.
pub(crate) fn w(count: u32) -> WriteOptions {
    WriteOptions {
        w: Some(Replicas::Count(count)),
        ..WriteOptions::default()
    }
}

/// Puts a value to all replicas of each key, in place of what is there.
pub(crate) async fn put_all(client: &Client, keys: &[String], value: &'static str) {
    for key in keys {
        let context = match client.get(key).await {
            Ok(found) => found.context,
            Err(error) => {
                assert!(error.is_not_found(), "{error}");
                Context::none()
            }
        };
        client.put_with(key, value, &context, &w(3)).await.unwrap();
    }
}

impl World {
    pub(crate) async fn start(shape: Shape, network: Network) -> Self {
        let dir = folder();
        let mut settings = Settings::new(dir.path().join("ring"), env!("CARGO_BIN_EXE_dynamo-node"));
        settings.wanted.nodes = Some(shape.nodes as u32);
        settings.wanted.zones = Some(shape.zones);
        settings.wanted.partitions = Some(PARTITIONS);
        settings.places = network.places();
        let mut config = Config::default();
        quick(&mut config);
        (shape.configure)(&mut config);
        let file = dir.path().join("node.yaml");
        std::fs::write(&file, serde_yaml::to_string(&config).unwrap()).unwrap();
        settings.options = ["--config".to_owned(), file.display().to_string()].to_vec();
        let ring = LocalRing::start(settings).await.unwrap();
        let mut world = Self { ring, network, dir };
        world.until_whole().await;
        world
    }

    /// Numbers of all nodes.
    pub(crate) fn all(&self) -> Vec<usize> {
        (1..=self.ring.nodes().len()).collect()
    }

    pub(crate) fn data(&self, node: usize) -> PathBuf {
        self.ring.nodes()[node - 1].data()
    }

    /// A client of the whole ring.
    pub(crate) async fn client(&self) -> Client {
        crate::support::client(&self.ring).await
    }

    /// A client that knows these nodes only.
    pub(crate) async fn client_of(&self, nodes: &[usize]) -> Client {
        let endpoints = nodes.iter().map(|node| self.ring.endpoints()[node - 1].clone());
        let builder = Client::builder().endpoints(endpoints).ring_aware(false);
        builder.deadline(Duration::from_secs(5)).connect().await.unwrap()
    }

    fn channel(&self, node: usize) -> Channel {
        let address = self.ring.nodes()[node - 1].addresses().admin;
        let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
        endpoint.timeout(Duration::from_secs(5)).connect_lazy()
    }

    pub(crate) fn admin(&self, node: usize) -> AdminClient<Channel> {
        AdminClient::new(self.channel(node))
    }

    /// Replaces a node's faults.
    pub(crate) async fn faults(&self, node: usize, faults: SetRequest) {
        FaultClient::new(self.channel(node)).set(faults).await.unwrap();
    }

    /// Ends a node's process, with the faults that it has.
    pub(crate) async fn crash(&self, node: usize) {
        let ended = FaultClient::new(self.channel(node)).crash(CrashRequest {}).await;
        ended.unwrap_err();
    }

    pub(crate) async fn status(&self, node: usize) -> dynamo_proto::admin::StatusResponse {
        self.ring.status(&name(node)).await.unwrap()
    }

    /// Waits until `watcher` takes `other` for down.
    pub(crate) async fn sees_down(&self, watcher: usize, other: usize) {
        until(
            &format!("node {watcher} sees that node {other} is down"),
            async || self.status(watcher).await.peers_down.contains(&name(other)),
        )
        .await;
    }

    /// Starts what has ended, as a supervisor does, until all serve, reach each other, and hold whole stores.
    pub(crate) async fn until_whole(&mut self) {
        let began = Instant::now();
        loop {
            self.ring.launch("all").unwrap();
            let started = self.ring.ready().await;
            assert!(began.elapsed() < LIMIT, "{started:?}");
            if started.is_ok() && self.whole_with_hints().await.is_some() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All serve, reach each other and hold whole stores; and how many hints there are.
    async fn whole_with_hints(&self) -> Option<u64> {
        let mut hints = 0;
        for node in self.all() {
            let status = self.ring.status(&name(node)).await.ok()?;
            let peers = self
                .admin(node)
                .peers(PeersRequest {})
                .await
                .ok()?
                .into_inner()
                .peers;
            // One that was never heard of does not count as down.
            let met = peers
                .iter()
                .filter(|peer| peer.reachable && !peer.peer_address.is_empty());
            if !status.not_ready_reason.is_empty() || met.count() < self.all().len() {
                return None;
            }
            hints += status.hints;
        }
        Some(hints)
    }

    /// Starts what has ended, until all reach each other, no hint is left, and all replicas are equal: only then a quorum shows
    /// all that was acknowledged.
    pub(crate) async fn until_equal(&mut self) {
        until("no hint is left, and all replicas are equal", async || {
            self.ring.launch("all").unwrap();
            if self.whole_with_hints().await != Some(0) {
                return false;
            }
            for partition in 0..PARTITIONS {
                if !self.is_equal(partition).await {
                    return false;
                }
            }
            true
        })
        .await;
    }

    async fn is_equal(&self, partition: u32) -> bool {
        let mut roots = BTreeSet::new();
        for node in self.all() {
            match self
                .admin(node)
                .merkle_root(MerkleRootRequest { partition })
                .await
            {
                Ok(root) => {
                    let root = root.into_inner();
                    roots.insert((root.rebuilding, root.root));
                }
                // It is no primary.
                Err(status) if status.code() == Code::InvalidArgument => {}
                // It may have ended since, as one does that sets its damaged store aside.
                Err(_) => return false,
            }
        }
        roots.len() == 1 && roots.iter().all(|(rebuilding, _)| !rebuilding)
    }

    /// A key's primaries and fallbacks, in order.
    pub(crate) async fn placed(&self, bucket: &str, key: &str) -> (Vec<usize>, Vec<usize>) {
        let request = PreferenceListRequest {
            bucket: bucket.to_owned(),
            key: Bytes::copy_from_slice(key.as_bytes()),
        };
        let mut last = None;
        for node in self.all() {
            match self.admin(node).preference_list(request.clone()).await {
                Ok(list) => {
                    let entries = list.into_inner().entries;
                    let (primaries, fallbacks): (Vec<_>, Vec<_>) =
                        entries.into_iter().partition(|entry| entry.primary);
                    let numbers = |entries: Vec<dynamo_proto::admin::PreferenceEntry>| {
                        entries.iter().map(|entry| number(&entry.member_id)).collect()
                    };
                    return (numbers(primaries), numbers(fallbacks));
                }
                Err(status) => last = Some(status),
            }
        }
        panic!("nobody answers: {last:?}");
    }

    /// So many keys of which a node is a primary.
    pub(crate) async fn keys_of(&self, node: usize, count: usize) -> Vec<String> {
        self.keys_in("", node, count).await
    }

    pub(crate) async fn keys_in(&self, bucket: &str, node: usize, count: usize) -> Vec<String> {
        let mut keys = Vec::new();
        for number in 0.. {
            let key = format!("of-{node}-{number}");
            if self.placed(bucket, &key).await.0.contains(&node) {
                keys.push(key);
            }
            if keys.len() == count {
                break;
            }
        }
        keys
    }

    /// The copy of a key that one node alone holds.
    pub(crate) async fn local(&self, bucket: &str, node: usize, key: &str) -> LocalGetResponse {
        let request = LocalGetRequest {
            bucket: bucket.to_owned(),
            key: Bytes::copy_from_slice(key.as_bytes()),
        };
        self.admin(node).local_get(request).await.unwrap().into_inner()
    }

    /// The values that one node alone holds, ascending.
    pub(crate) async fn local_values(&self, node: usize, key: &str) -> Vec<String> {
        let versions = self.local("", node, key).await.versions.into_iter();
        let mut values: Vec<_> = versions
            .map(|version| String::from_utf8(version.value.to_vec()).unwrap())
            .collect();
        values.sort();
        values
    }

    pub(crate) async fn hints(&self, node: usize) -> HintsResponse {
        self.admin(node)
            .hints(HintsRequest {})
            .await
            .unwrap()
            .into_inner()
    }

    /// Hints that a node keeps for another one.
    pub(crate) async fn hints_for(&self, holder: usize, owner: usize) -> u64 {
        let owners = self.hints(holder).await.owners.into_iter();
        let of = owners.filter(|count| count.member_id == name(owner));
        of.map(|count| count.hints).sum()
    }

    /// Sets a bucket's policy at a node; whether others know it is another matter.
    pub(crate) async fn set_bucket(&self, node: usize, bucket: Bucket) {
        let request = SetBucketRequest { bucket: Some(bucket) };
        self.admin(node).set_bucket(request).await.unwrap();
    }

    pub(crate) async fn knows_bucket(&self, node: usize, bucket: &str) -> bool {
        let known = self
            .admin(node)
            .list_buckets(ListBucketsRequest {})
            .await
            .unwrap();
        known.into_inner().buckets.iter().any(|one| one.name == bucket)
    }

    pub(crate) async fn all_know_bucket(&self, nodes: &[usize], bucket: &str) {
        for node in nodes {
            until("a bucket is known", async || {
                self.knows_bucket(*node, bucket).await
            })
            .await;
        }
    }

    pub(crate) async fn pause_task(&self, node: usize, task: &str, paused: bool) {
        let request = PauseTaskRequest {
            name: task.to_owned(),
            paused,
        };
        self.admin(node).pause_task(request).await.unwrap();
    }

    /// Epoch and hash of the ring that each node uses, and how many rings it has seen.
    pub(crate) async fn rings(&self) -> BTreeSet<(u64, u64, usize)> {
        let mut rings = BTreeSet::new();
        for node in self.all() {
            let ring = self.admin(node).ring(RingRequest {}).await.unwrap();
            let ring = ring.into_inner().ring.unwrap();
            let log = self
                .admin(node)
                .membership_log(MembershipLogRequest {})
                .await
                .unwrap();
            rings.insert((ring.epoch, ring.hash, log.into_inner().entries.len()));
        }
        rings
    }
}
