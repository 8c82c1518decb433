//! Nodes and clients as hosts of one simulated network.
//!
//! A run is one thread: every host has a runtime of its own, whose time goes on in ticks. Nothing of the node is outside of
//! it: its stores never wait ([`Store::blocks`](dynamo_node::storage::Store::blocks)), so that its writers need no threads,
//! and time and chance are the simulation's ([`dynamo_node::simulate`]). What a cut loses is not sent again: a connection
//! over a cut is dead for good, as one over a lost entry of a connection table is.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, Once},
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use dynamo_node::{Config, End, Host, Simulated, Stores, storage::memory::MemoryStore};
use dynamo_proto::{
    admin::{
        BootstrapRequest, InspectRequest, JoinRequest, Member, PeersRequest, PreferenceListRequest,
        ReplicaState, StatusRequest, StatusResponse, admin_client::AdminClient,
    },
    v1::{self, key_value_client::KeyValueClient},
};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
    time::Instant,
};
use tonic::{
    Status,
    transport::{Channel, Endpoint, Uri},
};
use turmoil::net::{TcpListener, TcpStream};

#[path = "../support/messages.rs"]
mod messages;

pub(crate) use messages::{count, detail, get, values, why};

/// When every simulation begins: 2023-11-14.
const EPOCH_S: u64 = 1_700_000_000;
/// Simulated time in which a condition must come true.
const DEADLINE: Duration = Duration::from_secs(30);
/// Simulated time after which a run is stuck.
const LONGEST: Duration = Duration::from_mins(5);

/// What a cluster is to be.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) nodes: usize,
    pub(crate) configure: fn(&mut Config),
    pub(crate) tick: Duration,
}

impl Shape {
    pub(crate) fn new(nodes: usize) -> Self {
        Self {
            nodes,
            configure: |_| (),
            tick: Duration::from_millis(1),
        }
    }
}

/// Hosts that are yet to run.
pub(crate) struct World {
    sim: turmoil::Sim<'static>,
    cluster: Cluster,
    seed: u64,
}

/// The nodes, as seen by a client's host.
#[derive(Clone)]
pub(crate) struct Cluster {
    volumes: Rc<Vec<Rc<Volume>>>,
    orders: Rc<RefCell<Vec<Order>>>,
}

/// What of a node outlives its process.
struct Volume {
    data: MemoryStore,
    hints: MemoryStore,
    dir: TempDir,
    /// As SIGTERM.
    stop: Notify,
    /// How its processes ended that were not killed.
    ends: RefCell<Vec<End>>,
}

/// What only the simulation itself can do, between two ticks.
enum Order {
    Kill(usize),
    Start(usize),
}

impl World {
    pub(crate) fn new(shape: Shape, seed: u64) -> Self {
        prepare(seed);
        let mut sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(UNIX_EPOCH + Duration::from_secs(EPOCH_S))
            .tick_duration(shape.tick)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(10))
            .simulation_duration(LONGEST)
            .build();
        let volumes: Vec<_> = (0..shape.nodes).map(|_| Rc::new(Volume::empty())).collect();
        for (index, volume) in volumes.iter().enumerate() {
            let mut config = Config {
                data_dir: volume.dir.path().into(),
                advertise_host: id(index),
                ..Config::default()
            };
            quick(&mut config);
            (shape.configure)(&mut config);
            let volume = Rc::clone(volume);
            sim.host(id(index), move || run_node(Rc::clone(&volume), config.clone()));
        }
        let cluster = Cluster {
            volumes: Rc::new(volumes),
            orders: Rc::default(),
        };
        Self { sim, cluster, seed }
    }

    /// Adds a host that runs a client; the run ends when all clients have.
    pub(crate) fn client<F: Future<Output = ()> + 'static>(
        &mut self,
        name: &str,
        client: impl FnOnce(Cluster) -> F,
    ) {
        let client = client(self.cluster.clone());
        self.sim.client(name, async move {
            client.await;
            Ok(())
        });
    }

    pub(crate) fn run(mut self) {
        loop {
            let seed = self.seed;
            let stepped = self.sim.step();
            let finished = stepped.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            // A task that panics on a host takes nobody else along.
            assert_eq!(PANICS.get(), 0, "seed {seed}: a task panicked");
            for order in self.cluster.orders.take() {
                match order {
                    Order::Kill(index) => self.sim.crash(id(index)),
                    Order::Start(index) => self.sim.bounce(id(index)),
                }
            }
            if finished {
                return;
            }
        }
    }
}

/// A cluster with one client, that has been assigned and serves.
pub(crate) fn run<F: Future<Output = ()> + 'static>(
    shape: Shape,
    seed: u64,
    test: impl FnOnce(Cluster) -> F,
) {
    let mut world = World::new(shape, seed);
    world.client("client", |cluster| {
        let test = test(cluster.clone());
        async move {
            cluster.assign().await;
            test.await;
        }
    });
    world.run();
}

impl Volume {
    fn empty() -> Self {
        Self {
            data: MemoryStore::immediate(),
            hints: MemoryStore::immediate(),
            dir: tempfile::tempdir().unwrap(),
            stop: Notify::new(),
            ends: RefCell::default(),
        }
    }
}

async fn run_node(volume: Rc<Volume>, config: Config) -> turmoil::Result {
    let host = Simulation {
        data: volume.data.clone(),
        hints: volume.hints.clone(),
    };
    let mut running = dynamo_node::start_on(host, config).await?;
    tokio::select! {
        biased;
        () = volume.stop.notified() => {}
        reason = running.storage_failed() => return Err(reason.into()),
    }
    let end = running.stop().await?;
    volume.ends.borrow_mut().push(end);
    // The end of a process takes all its tasks and sockets along; see [`Cluster::stopped`].
    std::future::pending().await
}

/// Short times of background work.
fn quick(config: &mut Config) {
    let background = &mut config.background;
    background.hints_interval_ms = 500;
    background.exchange_interval_ms = 1000;
    background.reap_interval_ms = 1000;
    background.reap_grace_ms = 60_000;
    background.recovery_delay_ms = 500;
    background.p99_target_ms = 30_000;
    config.shutdown_grace_s = 10;
}

pub(crate) fn id(index: usize) -> String {
    format!("node-{index}")
}

#[allow(clippy::unused_self, reason = "nodes are asked of their cluster")]
impl Cluster {
    pub(crate) fn len(&self) -> usize {
        self.volumes.len()
    }

    /// Makes the nodes a cluster and waits until all serve.
    pub(crate) async fn assign(&self) {
        let member = |index| Member {
            member_id: id(index),
            zone: String::new(),
            weight: 1,
            peer_address: format!("{}:7701", id(index)),
        };
        let cluster_id = Bytes::from_static(&[7; 16]);
        let bootstrap = BootstrapRequest {
            cluster_id: cluster_id.clone(),
            member_id: id(0),
            members: (0..self.len()).map(member).collect(),
            partitions: 16,
            factor: 3,
        };
        self.admin(0).bootstrap(bootstrap).await.unwrap();
        for index in 1..self.len() {
            let join = JoinRequest {
                cluster_id: cluster_id.clone(),
                member_id: id(index),
                zone: String::new(),
                weight: 1,
                seeds: vec![format!("{}:7701", id(0))],
            };
            self.admin(index).join(join).await.unwrap();
        }
        self.all_well().await;
    }

    /// Waits until all nodes serve, and know and reach each other.
    pub(crate) async fn all_well(&self) {
        for index in 0..self.len() {
            let what = format!("{} serves and reaches all others", id(index));
            until(&what, || async { self.is_well(index).await.unwrap_or(false) }).await;
        }
    }

    async fn is_well(&self, index: usize) -> Result<bool, Status> {
        let ready = self.status(index).await?.not_ready_reason.is_empty();
        let request = within(Duration::from_secs(1), PeersRequest {});
        let peers = self.admin(index).peers(request).await?.into_inner().peers;
        let reached = peers
            .iter()
            .filter(|peer| peer.member_id != id(index) && peer.reachable && !peer.peer_address.is_empty());
        Ok(ready && reached.count() == self.len() - 1)
    }

    /// Waits until connections that are made when they are first needed have been.
    pub(crate) async fn settled(&self) {
        self.all_well().await;
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    pub(crate) fn kv(&self, index: usize) -> KeyValueClient<Channel> {
        KeyValueClient::new(channel(index, 7700))
    }

    pub(crate) fn admin(&self, index: usize) -> AdminClient<Channel> {
        AdminClient::new(channel(index, 7702))
    }

    pub(crate) async fn status(&self, index: usize) -> Result<StatusResponse, Status> {
        let request = within(Duration::from_secs(1), StatusRequest {});
        Ok(self.admin(index).status(request).await?.into_inner())
    }

    /// Waits until all primaries hold the same record of a key, or none.
    pub(crate) async fn equal(&self, key: &str) {
        until(&format!("all primaries hold the same of {key}"), || async {
            let request = InspectRequest {
                bucket: String::new(),
                key: Bytes::copy_from_slice(key.as_bytes()),
            };
            let replicas = self
                .admin(0)
                .inspect(request)
                .await
                .unwrap()
                .into_inner()
                .replicas;
            let equals = |replica: &ReplicaState| {
                let first = &replicas[0];
                replica.error.is_empty() && (replica.present, replica.digest) == (first.present, first.digest)
            };
            replicas.len() == 3 && replicas.iter().all(equals)
        })
        .await;
    }

    /// The first key of a series whose primaries fit.
    pub(crate) async fn key_with(&self, fits: impl Fn(&[usize]) -> bool) -> String {
        for number in 0..1000 {
            let key = format!("key-{number}");
            let request = PreferenceListRequest {
                bucket: String::new(),
                key: Bytes::copy_from_slice(key.as_bytes()),
            };
            let list = self.admin(0).preference_list(request).await.unwrap().into_inner();
            let primaries: Vec<usize> = list
                .entries
                .iter()
                .filter(|entry| entry.primary)
                .map(|entry| entry.member_id.strip_prefix("node-").unwrap().parse().unwrap())
                .collect();
            if fits(&primaries) {
                return key;
            }
        }
        panic!("no key fits");
    }

    /// The sum of all series of a metric.
    pub(crate) async fn metric(&self, index: usize, name: &str) -> u64 {
        let mut stream = TcpStream::connect((id(index).as_str(), 9700)).await.unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n";
        stream.write_all(request).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let series = text
            .lines()
            .filter(|line| line.starts_with(&format!("{name}{{")) || line.starts_with(&format!("{name} ")));
        series
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64)
            .sum()
    }

    pub(crate) async fn in_flight(&self, index: usize) -> u64 {
        self.metric(index, "dynamo_requests_in_flight").await
    }

    /// Asks a node to stop, as SIGTERM does.
    pub(crate) fn stop(&self, index: usize) {
        self.volumes[index].stop.notify_one();
    }

    /// Whether it has stopped.
    pub(crate) fn has_stopped(&self, index: usize) -> bool {
        !self.volumes[index].ends.borrow().is_empty()
    }

    /// Waits until a node that was asked to stop has ended well.
    pub(crate) async fn stopped(&self, index: usize) {
        until(&format!("{} has stopped", id(index)), || async {
            self.has_stopped(index)
        })
        .await;
        assert_eq!(self.volumes[index].ends.take(), [End::Stopped]);
        self.kill(index).await;
    }

    /// Ends a node's process at once.
    pub(crate) async fn kill(&self, index: usize) {
        self.order(Order::Kill(index)).await;
    }

    /// Starts a node that does not run, on what it kept.
    pub(crate) async fn start(&self, index: usize) {
        self.order(Order::Start(index)).await;
    }

    async fn order(&self, order: Order) {
        self.orders.borrow_mut().push(order);
        // Carried out between this tick and the next.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A put or get that a client waits for until a moment, which the request tells the node.
pub(crate) fn within<T>(timeout: Duration, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(timeout);
    request
}

/// A blind put that w replicas must accept.
pub(crate) fn put(key: &str, value: &str, w: u32) -> v1::PutRequest {
    v1::PutRequest {
        w: count(w),
        ..messages::put(key, value, &Bytes::new())
    }
}

/// Waits for a condition; fails with its name after the deadline.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A channel to a port of a node that notices when it is dead.
pub(crate) fn channel(index: usize, port: u16) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}:{port}", id(index))).unwrap();
    connect(
        endpoint
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(1))
            .keep_alive_while_idle(true),
    )
}

pub(crate) fn connect(endpoint: Endpoint) -> Channel {
    // A host that is down is silent.
    let endpoint = endpoint.connect_timeout(Duration::from_secs(1));
    endpoint.connect_with_connector_lazy(tower::service_fn(|uri: Uri| async move {
        let host = uri.host().unwrap_or_default();
        let stream = TcpStream::connect((host, uri.port_u16().unwrap_or_default())).await?;
        Ok::<_, io::Error>(TokioIo::new(stream))
    }))
}

/// What a node of the simulation runs on.
struct Simulation {
    data: MemoryStore,
    hints: MemoryStore,
}

impl Host for Simulation {
    type Listener = Listener;

    async fn listen(&self, address: SocketAddr) -> io::Result<Listener> {
        TcpListener::bind(address).await.map(Listener)
    }

    fn connect(&self, endpoint: Endpoint) -> Channel {
        connect(endpoint)
    }

    async fn open(&self, _config: &Config) -> anyhow::Result<Stores> {
        Ok(Stores {
            data: Arc::new(self.data.clone()),
            hints: Arc::new(self.hints.clone()),
        })
    }
}

struct Listener(TcpListener);

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            if let Ok(accepted) = self.0.accept().await {
                return accepted;
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

thread_local! {
    /// Panics on this thread, which is the whole of a run.
    static PANICS: Cell<u32> = const { Cell::new(0) };
    static CHANCE: RefCell<Chance> = const { RefCell::new(Chance(0)) };
    static LAST: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Gives the nodes of this thread the time of the simulation, and chance from its seed.
fn prepare(seed: u64) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        dynamo_node::simulate(Simulated {
            monotonic: || {
                // None while a host is taken down.
                LAST.set(turmoil::sim_elapsed().unwrap_or(LAST.get()));
                LAST.get()
            },
            wall: || Duration::from_secs(EPOCH_S) + turmoil::sim_elapsed().unwrap_or(LAST.get()),
            random: || CHANCE.with_borrow_mut(Chance::next),
        });
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            report(panic);
        }));
    });
    PANICS.set(0);
    CHANCE.set(Chance::new(seed, u64::MAX));
    LAST.set(Duration::ZERO);
}

/// Numbers that a seed determines (splitmix64).
pub(crate) struct Chance(u64);

impl Chance {
    /// A sequence of its own for each name.
    pub(crate) fn new(seed: u64, name: u64) -> Self {
        let mut chance = Self(seed ^ (name << 32));
        Self(chance.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn ms(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.next() % (to - from))
    }
}
