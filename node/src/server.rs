//! The order of start and stop.
//!
//! Start: sockets are bound, the store is opened, the life of its data decided, then everything serves. Stop: readiness is
//! withdrawn, requests in flight finish within the grace, the writer drains and syncs, and only then the mark of a
//! clean stop is written.

use std::{future::Future, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::serve::Listener;
use dynamo_core::{reap::QuietTable, recovery::Recovery, replica::SiblingCaps};
use dynamo_lane::CLIENT_MESSAGE_BYTES_MAX;
use dynamo_proto::{
    DESCRIPTORS, admin::admin_server::AdminServer, peer::peer_server::PeerServer,
    v1::key_value_server::KeyValueServer,
};
use parking_lot::Mutex;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    service::interceptor::InterceptedService,
    transport::{Server, server::Router},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{
    background, clock,
    config::{Config, DurabilityMode, KEEPALIVE, SIBLINGS_MAX},
    durable::{self, DurableError, Started},
    faults::Faults,
    grpc::{
        admin::AdminService,
        inflow::{Inflow, Others},
        kv::{KvService, MeantHere},
        peer::PeerService,
    },
    host::{Host, Machine, Stores},
    membership::{Addresses, Membership},
    net::Bounded,
    node::{Node, Storage},
    storage::{
        HintStore, Store, StoreError, aside,
        follower::DataFollower,
        set_aside,
        trees::PartitionTrees,
        writer::{Durability, Failure, Mint, Writer, WriterOptions},
    },
    tasks,
    telemetry::http,
};

/// Streams that one connection may have open.
const STREAMS_MAX: u32 = 1024;
/// Bytes of one request that wait unread at most.
const STREAM_WINDOW_BYTES: u32 = 64 << 10;
/// The same of a peer's stream, on which all its requests to this replica come.
const PEER_STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// The same of all requests of one connection: what large ones that wait for room leave unread must not stop the others.
const CONNECTION_WINDOW_BYTES: u32 = STREAMS_MAX * STREAM_WINDOW_BYTES;
/// Bytes of the headers of one request.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// Name of the health service's entry for clients.
const KV_SERVICE: &str = "dynamo.v1.KeyValue";
/// Records that may be removed and have been written lately, at most; about 150 bytes each.
const QUIET_ENTRIES_MAX: usize = 200_000;
/// How often the health service is brought up to date.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// How a node ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// Cleanly.
    Stopped,
    /// The store failed; nothing that was not on disk was acknowledged.
    StorageFailed(String),
}

/// A node that serves.
pub struct Running {
    /// Bound addresses of clients, peers, administrators and HTTP.
    pub client: SocketAddr,
    /// For peers.
    pub peer: SocketAddr,
    /// For administrators.
    pub admin: SocketAddr,
    /// For probes and metrics.
    pub http: SocketAddr,
    node: Arc<Node>,
    store: Arc<dyn Store>,
    failure: Failure,
    hints_failure: Failure,
    /// Ends listening and background tasks.
    shutdown: CancellationToken,
    tracker: TaskTracker,
    health: HealthReporter,
}

/// Runs a node until `stop` completes or its store fails.
///
/// # Errors
/// If it cannot start.
pub async fn run(config: Config, stop: impl Future<Output = ()>) -> anyhow::Result<End> {
    let mut running = start(config).await?;
    tokio::select! {
        () = stop => running.stop().await,
        reason = running.storage_failed() => Ok(End::StorageFailed(reason)),
    }
}

/// Starts a node on this computer and returns once it listens.
///
/// # Errors
/// If an address is taken or the data directory cannot be used.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    start_on(Machine, config).await
}

/// Starts a node on a host of one's own.
///
/// # Errors
/// As [`start`].
pub async fn start_on<H: Host>(host: H, config: Config) -> anyhow::Result<Running> {
    let client = listen(&host, "clients", config.listen.client).await?;
    let peer = listen(&host, "peers", config.listen.peer).await?;
    let admin = listen(&host, "administrators", config.listen.admin).await?;
    let http = listen(&host, "probes and metrics", config.listen.http).await?;
    let addresses = Addresses {
        client: advertised(&config, &client)?,
        peer: advertised(&config, &peer)?,
        admin: advertised(&config, &admin)?,
    };

    let (stores, opening) = (host.open(&config).await?, config.clone());
    let blocks = stores.data.blocks();
    let opened = aside(blocks, move || open_storage(stores, &opening)).await??;
    let Opened {
        storage,
        started,
        failure,
        hints_failure,
    } = opened;
    let store = Arc::clone(&storage.store);
    let membership = Membership::new(&started, addresses, &config.seeds)?;
    let node = Node::new(
        config,
        storage,
        membership,
        Box::new(move |endpoint| host.connect(endpoint)),
    )?;

    let running = Running {
        client: client.local_addr()?,
        peer: peer.local_addr()?,
        admin: admin.local_addr()?,
        http: http.local_addr()?,
        node,
        store,
        failure,
        hints_failure,
        shutdown: CancellationToken::new(),
        tracker: TaskTracker::new(),
        health: HealthReporter::new(),
    };
    running.serve(Listeners {
        client,
        peer,
        admin,
        http,
    })?;
    running.announce()?;
    Ok(running)
}

struct Opened {
    storage: Storage,
    started: Started,
    failure: Failure,
    hints_failure: Failure,
}

/// Decides on the life of the data, and starts the writers of both stores. Waits for the disk.
fn open_storage(stores: Stores, config: &Config) -> anyhow::Result<Opened> {
    let Stores { data, hints } = stores;
    let started = durable::start(&*data, clock::random_u64()).inspect_err(|error| {
        if let DurableError::Store(error) = error {
            set_aside_if_damaged(&config.data_dir, error);
        }
    })?;
    tracing::info!(
        incarnation = %started.incarnation,
        starts = started.starts,
        life = ?started.life,
        recovered = started.recovered,
        suspect = started.suspect.is_some(),
        member = started.identity.as_ref().map(|identity| identity.member.to_string()),
        "store open"
    );
    let options = writer_options(config);
    let mint = Mint::new(started.minter());
    #[cfg_attr(
        not(feature = "faults"),
        expect(
            clippy::default_constructed_unit_structs,
            reason = "no unit struct with the feature"
        )
    )]
    let faults = Faults::default();
    let store = faults.wrap(data, config.data_dir.join("data"));
    let hints = faults.wrap(hints, config.data_dir.join("hints"));
    let trees = PartitionTrees::new();
    let quiet = Arc::new(Mutex::new(QuietTable::new(
        clock::monotonic_ms(),
        QUIET_ENTRIES_MAX,
    )));
    let follower = Arc::new(DataFollower::new(
        Arc::clone(&trees),
        Arc::clone(&quiet),
        config.background.actors_max,
    ));
    let (writer, failure) = Writer::start_with(Arc::clone(&store), mint.clone(), options, Some(follower))?;
    let (hints, hints_failure) = HintStore::start(hints, mint, options, config.hints.bytes_max)?;
    let storage = Storage {
        store,
        writer,
        hints,
        trees,
        recovery: recovery(&started, config),
        quiet,
        fresh: started.fresh,
        life_kept: started.life == durable::Life::Kept,
        faults,
    };
    Ok(Opened {
        storage,
        started,
        failure,
        hints_failure,
    })
}

/// A store that cannot be written for its damage, as when a compaction meets rotten blocks, would fail at every start: the
/// next one sets it aside and begins with an empty one, which the other replicas fill.
fn set_aside_if_damaged(data_dir: &Path, error: &StoreError) {
    if !matches!(error, StoreError::Damaged { .. }) {
        return;
    }
    tracing::error!(%error, "the store is damaged; the next start sets it aside");
    if let Err(error) = set_aside::request(data_dir, &error.to_string()) {
        tracing::error!(%error, "cannot have the store set aside");
    }
}

/// A store that is suspect goes on getting back what it lost.
fn recovery(started: &Started, config: &Config) -> Option<Recovery> {
    let kept = started.suspect.clone()?;
    let (now_ms, delay_ms) = (clock::monotonic_ms(), config.background.recovery_delay_ms);
    let decoded = Recovery::decode(kept, now_ms, delay_ms);
    Some(decoded.unwrap_or_else(|_| Recovery::begin(now_ms, delay_ms)))
}

fn writer_options(config: &Config) -> WriterOptions {
    let interval = Duration::from_millis(config.durability.interval_ms);
    let durability = match config.durability.mode {
        DurabilityMode::Every => Durability::Every,
        DurabilityMode::Interval | DurabilityMode::Buffered => Durability::Interval(interval),
        DurabilityMode::OneOfN => Durability::OneOfN(interval),
    };
    WriterOptions {
        durability,
        caps: SiblingCaps {
            siblings: SIBLINGS_MAX,
            bytes: config.record_bytes_max(),
        },
        free_bytes_min: config.storage.free_bytes_min,
    }
}

struct Listeners<L> {
    client: L,
    peer: L,
    admin: L,
    http: L,
}

async fn listen<H: Host>(host: &H, port_name: &str, address: SocketAddr) -> anyhow::Result<H::Listener> {
    host.listen(address).await.map_err(|error| {
        anyhow::anyhow!(
            "cannot listen on {address} for {port_name}: {error}; choose another address or stop its user"
        )
    })
}

fn advertised(config: &Config, listener: &impl Listener<Addr = SocketAddr>) -> anyhow::Result<String> {
    Ok(format!(
        "{}:{}",
        config.advertise_host,
        listener.local_addr()?.port()
    ))
}

impl Running {
    fn serve<L: Listener<Addr = SocketAddr>>(&self, listeners: Listeners<L>) -> anyhow::Result<()> {
        let node = &self.node;
        let config = node.config();
        let client_bytes_max = config.client_message_bytes_max();
        let peer_bytes_max = config.peer_message_bytes_max();
        let kv = KeyValueServer::new(KvService::new(Arc::clone(node)))
            .max_decoding_message_size(client_bytes_max)
            .max_encoding_message_size(peer_bytes_max);
        let kv = InterceptedService::new(kv, MeantHere(Arc::clone(node)));
        let inflow_bytes_max = config.limits.request_bytes_in_flight_max;
        let others = Others {
            exempt: &[],
            streams: &[("/dynamo.v1.KeyValue/Serve", CLIENT_MESSAGE_BYTES_MAX)],
        };
        let kv = Inflow::new(kv, inflow_bytes_max, client_bytes_max, others);
        let peer = PeerServer::new(PeerService::new(Arc::clone(node)))
            .max_decoding_message_size(peer_bytes_max)
            .max_encoding_message_size(peer_bytes_max);
        let others = Others {
            exempt: &["/dynamo.peer.v1.Peer/Coordinate", "/dynamo.peer.v1.Peer/Serve"],
            streams: &[],
        };
        let peer = Inflow::new(peer, inflow_bytes_max, peer_bytes_max, others);
        let admin =
            AdminServer::new(AdminService::new(Arc::clone(node))).max_encoding_message_size(peer_bytes_max);

        let health = || {
            tonic_health::pb::health_server::HealthServer::new(
                tonic_health::server::HealthService::from_health_reporter(self.health.clone()),
            )
        };
        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        };
        let clients = server()
            .add_service(kv)
            .add_service(health())
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        let admins = server()
            .add_service(admin)
            .add_optional_service(fault_service(node))
            .add_service(health())
            .add_service(reflection().build_v1()?)
            .add_service(reflection().build_v1alpha()?);
        self.spawn("clients", clients, listeners.client);
        let mut peers = server().initial_stream_window_size(PEER_STREAM_WINDOW_BYTES);
        self.spawn("peers", peers.add_service(peer), listeners.peer);
        self.spawn("administrators", admins, listeners.admin);

        let http = self.bounded("probes and metrics", listeners.http);
        let probes = http::serve(http, Arc::clone(node), self.shutdown.clone());
        self.tracker.spawn(async move {
            if let Err(error) = probes.await {
                tracing::error!(%error, "the HTTP server ended");
            }
        });
        self.keep_health_current();
        tasks::start(node, &self.tracker, &self.shutdown);
        background::start(node, &self.tracker, &self.shutdown);
        Ok(())
    }

    fn bounded<L>(&self, name: &'static str, listener: L) -> Bounded<L> {
        Bounded::new(listener, name, self.node.config().limits.connections_max)
    }

    fn spawn(&self, name: &'static str, router: Router, listener: impl Listener<Addr = SocketAddr>) {
        let incoming = self.bounded(name, listener).incoming();
        let ended = router.serve_with_incoming_shutdown(incoming, self.shutdown.clone().cancelled_owned());
        self.tracker.spawn(async move {
            if let Err(error) = ended.await {
                tracing::error!(name, %error, "a gRPC server ended");
            }
        });
    }

    /// `""` says that the process lives, the client service's name that the node serves its ranges.
    fn keep_health_current(&self) {
        let (node, health) = (Arc::clone(&self.node), self.health.clone());
        self.tracker
            .spawn(self.shutdown.clone().run_until_cancelled_owned(async move {
                let mut last = None;
                loop {
                    let ready = node.not_ready_reason().is_none();
                    if last.replace(ready) != Some(ready) {
                        let status = if ready {
                            ServingStatus::Serving
                        } else {
                            ServingStatus::NotServing
                        };
                        health.set_service_status("", ServingStatus::Serving).await;
                        health.set_service_status(KV_SERVICE, status).await;
                    }
                    tokio::time::sleep(clock::until_next(HEALTH_INTERVAL)).await;
                }
            }));
    }

    /// Says where it listens, in the log and, for scripts that let it choose its ports, in the data directory.
    fn announce(&self) -> anyhow::Result<()> {
        let Self {
            client,
            peer,
            admin,
            http,
            ..
        } = self;
        tracing::info!(%client, %peer, %admin, %http, "listening");
        let text = format!(
            "{{\"client\":\"{client}\",\"peer\":\"{peer}\",\"admin\":\"{admin}\",\"http\":\"{http}\"}}\n"
        );
        write_whole(&self.node.config().data_dir.join("addresses.json"), &text)
    }

    /// Completes if the store fails.
    pub async fn storage_failed(&mut self) -> String {
        tokio::select! {
            error = self.failure.failed() => {
                set_aside_if_damaged(&self.node.config().data_dir, &error);
                error.to_string()
            }
            error = self.hints_failure.failed() => format!("hints: {error}"),
            reason = tasks::store_failed(&self.node) => reason,
            reason = self.node.must_end() => reason,
        }
    }

    /// Stops cleanly: see the module.
    ///
    /// # Errors
    /// If the mark of a clean stop cannot be written; the next start is then another incarnation.
    pub async fn stop(self) -> anyhow::Result<End> {
        let grace = Duration::from_secs(self.node.config().shutdown_grace_s);
        self.node.drain();
        self.health
            .set_service_status(KV_SERVICE, ServingStatus::NotServing)
            .await;
        self.shutdown.cancel();
        self.tracker.close();
        if tokio::time::timeout(grace, self.tracker.wait()).await.is_err() {
            tracing::warn!(
                grace_s = grace.as_secs(),
                "the grace is over; requests in flight are dropped"
            );
        }
        // Hints first: their dots, too, must be on disk before the stop is called clean.
        if let Err(error) = self.node.hints().stop().await {
            return Ok(End::StorageFailed(format!("hints: {error}")));
        }
        let minter = match self.node.writer().stop().await {
            Ok(minter) => minter,
            Err(error) => return Ok(End::StorageFailed(error.to_string())),
        };
        let store = Arc::clone(&self.store);
        aside(store.blocks(), move || durable::stop(store.as_ref(), &minter)).await??;
        tracing::info!("stopped");
        Ok(End::Stopped)
    }
}

#[cfg(feature = "faults")]
#[expect(clippy::unnecessary_wraps, reason = "the same shape as without the feature")]
fn fault_service(
    node: &Arc<Node>,
) -> Option<dynamo_proto::fault::fault_server::FaultServer<crate::faults::FaultService>> {
    let service = crate::faults::FaultService::new(Arc::clone(node));
    Some(dynamo_proto::fault::fault_server::FaultServer::new(service))
}

#[cfg(not(feature = "faults"))]
fn fault_service(_node: &Arc<Node>) -> Option<AdminServer<AdminService>> {
    None
}

/// What all ports have in common: pings that find dead connections, and bounds.
fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE * 2))
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
}

fn write_whole(path: &Path, text: &str) -> anyhow::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)
        .and_then(|()| std::fs::rename(&new, path))
        .with_context(|| format!("cannot write {}", path.display()))
}
