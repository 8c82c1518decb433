//! What the parts of one node share.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use arc_swap::ArcSwapOption;
use dynamo_core::{
    coordinator::{Candidate, FailureKind, ReplicaFailure},
    quorum::Quorum,
    ring::Placement,
    types::{ClusterId, MemberId, PartitionId},
    version::{Hlc, KeyState, Stamp},
};
use dynamo_proto::peer;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    clock,
    config::{Config, PAGE_KEYS_MAX},
    grpc::status::{Failure, Reason},
    membership::Membership,
    peers::Peers,
    request::{Served, not_ready},
    storage::{
        DataKey, ScanLimit, Store, StoreError,
        keys::HashRange,
        records::{self, CachedState},
        writer::Writer,
    },
    telemetry::metrics::{Metrics, Snapshot},
};

/// Bytes of records that one page of a scan reads.
const SCAN_BYTES_MAX: usize = 4 << 20;

/// One node, while it runs.
pub(crate) struct Node {
    config: Config,
    store: Arc<dyn Store>,
    writer: Writer,
    membership: Membership,
    placed: ArcSwapOption<Placed>,
    peers: Peers,
    metrics: Metrics,
    hlc: Mutex<Hlc>,
    in_flight: Arc<Semaphore>,
    draining: AtomicBool,
    started_ms: u64,
}

/// This node's place in a ring: what every request works with.
pub(crate) struct Placed {
    placement: Placement,
    me: MemberId,
    me_index: u16,
    quorum: Quorum,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        store: Arc<dyn Store>,
        writer: Writer,
        membership: Membership,
    ) -> anyhow::Result<Arc<Self>> {
        let node = Self {
            peers: Peers::new(&config),
            metrics: Metrics::new()?,
            hlc: Mutex::new(Hlc::default()),
            in_flight: Arc::new(Semaphore::new(config.limits.requests_in_flight_max)),
            draining: AtomicBool::new(false),
            placed: ArcSwapOption::empty(),
            started_ms: clock::monotonic_ms(),
            config,
            store,
            writer,
            membership,
        };
        node.ring_changed();
        Ok(Arc::new(node))
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn writer(&self) -> &Writer {
        &self.writer
    }

    pub(crate) fn membership(&self) -> &Membership {
        &self.membership
    }

    pub(crate) fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(crate) fn uptime_s(&self) -> u64 {
        (clock::monotonic_ms() - self.started_ms) / 1000
    }

    /// A stamp for a new version.
    pub(crate) fn stamp(&self) -> Stamp {
        self.hlc.lock().tick(clock::wall_ms())
    }

    /// Takes one of the places for client requests.
    ///
    /// # Errors
    /// RESOURCE_EXHAUSTED if all are taken: early, instead of a queue that nobody waits for.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Failure> {
        Arc::clone(&self.in_flight).try_acquire_owned().map_err(|_| {
            self.metrics.shed();
            let most = self.config.limits.requests_in_flight_max;
            Failure::new(
                Reason::Overloaded,
                format!("{most} requests are in flight here; try another node, or later"),
            )
            .not_applied()
        })
    }

    /// The ring to serve by.
    ///
    /// # Errors
    /// UNAVAILABLE while there is none that lists this node, and once it stops.
    pub(crate) fn placed(&self) -> Result<Arc<Placed>, Failure> {
        if self.draining() {
            return Err(not_ready("it is stopping"));
        }
        self.placed
            .load_full()
            .ok_or_else(|| not_ready(self.membership.not_ready_reason()))
    }

    /// The ring in use, also while stopping; none before the first.
    pub(crate) fn ring_in_use(&self) -> Option<Arc<Placed>> {
        self.placed.load_full()
    }

    /// Takes up the ring that the membership holds now.
    pub(crate) fn ring_changed(&self) {
        let Some((me, ring)) = self.membership.ring() else {
            return;
        };
        let replication = &self.config.replication;
        let factor = ring.factor();
        let majority = factor / 2 + 1;
        let (r, w) = (
            replication.read_quorum.unwrap_or(majority),
            replication.write_quorum.unwrap_or(majority),
        );
        let quorum = match Quorum::new(factor, r, w) {
            Ok(quorum) => quorum,
            Err(error) => {
                tracing::error!(%error, "the configured quorums do not fit the ring; not serving");
                return;
            }
        };
        let Some(me_index) = ring.index_of(&me) else {
            tracing::warn!(epoch = ring.epoch(), member = %me, "the ring does not list this node; not serving");
            self.placed.store(None);
            return;
        };
        tracing::info!(
            epoch = ring.epoch(),
            hash = format!("{:016x}", ring.hash()),
            members = ring.members().len(),
            partitions = ring.partitions(),
            factor,
            r,
            w,
            "ring in use"
        );
        let placement = Placement::new(ring);
        self.placed.store(Some(Arc::new(Placed {
            placement,
            me,
            me_index: me_index as u16,
            quorum,
        })));
    }

    /// Refuses new requests from now on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    pub(crate) fn draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Why the node does not serve its ranges; none if it does.
    pub(crate) fn not_ready_reason(&self) -> Option<String> {
        if self.draining() {
            return Some("draining: the node is stopping".to_owned());
        }
        self.placed
            .load()
            .is_none()
            .then(|| self.membership.not_ready_reason().to_owned())
    }

    /// Where clients reach a member; none while it is not known.
    pub(crate) fn client_address(&self, member: &str) -> Option<String> {
        self.membership
            .entry(&MemberId::new(member).ok()?)
            .map(|entry| entry.client_address)
    }

    /// The key's primaries in preference order, with what this node knows of them.
    pub(crate) fn candidates(&self, placed: &Placed, key: &DataKey) -> Vec<Candidate> {
        self.candidates_of(placed, placed.placement.ring().partition_of(key.hash()))
    }

    pub(crate) fn candidates_of(&self, placed: &Placed, partition: PartitionId) -> Vec<Candidate> {
        let members = placed.placement.ring().members();
        let primaries = placed.placement.primaries(partition).iter();
        primaries
            .map(|index| {
                let member = &members[usize::from(*index)];
                Candidate {
                    member: member.id.clone(),
                    zone: member.zone.clone(),
                    reachable: *index == placed.me_index || self.peers.reachable(&member.id),
                }
            })
            .collect()
    }

    /// The local copy of a key; never an error taken for an absence.
    pub(crate) async fn read_local(&self, key: &DataKey) -> Result<Option<KeyState>, ReplicaFailure> {
        self.load(key).await.map_err(|error| {
            tracing::warn!(key_hash = %key.hash(), %error, "the local read failed");
            ReplicaFailure {
                sent: false,
                kind: FailureKind::Storage,
            }
        })
    }

    /// Like [`Self::read_local`], with the store's own words. What the block cache holds is read in place; the disk only
    /// by a thread that may wait.
    pub(crate) async fn load(&self, key: &DataKey) -> Result<Option<KeyState>, StoreError> {
        match records::read_cached(self.store.as_ref(), key)? {
            CachedState::Known(state) => Ok(state),
            CachedState::OnDisk => {
                let (store, key) = (Arc::clone(&self.store), key.clone());
                blocking("reading a record", move || records::read(store.as_ref(), &key)).await
            }
        }
    }

    /// One page of this node's records in a range, values left out.
    pub(crate) async fn scan_local(&self, request: peer::ScanRequest) -> Result<peer::ScanResponse, Failure> {
        let hashes = request.hash_first..=request.hash_last;
        let mut range = HashRange::all(&hashes);
        if !request.after.is_empty() {
            let after = DataKey::parse(request.after.clone()).map_err(|error| {
                Failure::invalid(format!("the position to go on from is not valid: {error}"))
            })?;
            range = range.after(&after);
        }
        let limit = ScanLimit {
            entries: request.limit.clamp(1, PAGE_KEYS_MAX) as usize,
            bytes: SCAN_BYTES_MAX,
        };
        let store = Arc::clone(&self.store);
        let page = blocking("scanning records", move || {
            records::scan(store.as_ref(), &range, limit)
        })
        .await
        .map_err(|error| Failure::new(Reason::Storage, error.to_string()))?;
        let position = page
            .entries
            .last()
            .map(|(key, _)| key.as_bytes().clone())
            .unwrap_or_default();
        let wanted = |key: &DataKey| key.bucket() == request.bucket && key.key().starts_with(&request.prefix);
        let entries = page
            .entries
            .into_iter()
            .filter(|(key, _)| wanted(key))
            .map(|(key, state)| peer::ScanEntry {
                position: key.as_bytes().clone(),
                state: state.without_values().encode(),
            });
        Ok(peer::ScanResponse {
            entries: entries.collect(),
            done: page.done,
            position,
        })
    }

    /// What a scrape of the metrics shows.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let estimate = self.store.estimate().unwrap_or_default();
        let writer = self.writer.counters();
        let mut snapshot = Snapshot {
            ready: self.not_ready_reason().is_none(),
            requests_in_flight: (self.config.limits.requests_in_flight_max
                - self.in_flight.available_permits()) as u64,
            keys: estimate.keys,
            data_bytes: estimate.bytes,
            writer_batches: writer.groups,
            writer_operations: writer.operations,
            writer_syncs: writer.syncs,
            writer_queue: writer.queued,
            read_errors: writer.read_errors,
            ..Snapshot::default()
        };
        if let Some(placed) = self.ring_in_use() {
            let placement = &placed.placement;
            snapshot.ring_epoch = placement.ring().epoch();
            snapshot.tokens = placement.tokens(placed.me_index.into()).into();
            snapshot.partitions = placement.replica_partitions(placed.me_index.into()).into();
            snapshot.zone_violations = placement.zone_violations().into();
            let others = placement
                .ring()
                .members()
                .iter()
                .filter(|member| member.id != placed.me);
            snapshot.peers = others
                .map(|member| (member.id.to_string(), self.peers.reachable(&member.id)))
                .collect();
        }
        snapshot
    }
}

impl Placed {
    pub(crate) fn placement(&self) -> &Placement {
        &self.placement
    }

    pub(crate) fn me(&self) -> &MemberId {
        &self.me
    }

    pub(crate) fn me_index(&self) -> usize {
        self.me_index.into()
    }

    /// The quorum of requests that name none.
    pub(crate) fn quorum(&self) -> &Quorum {
        &self.quorum
    }

    pub(crate) fn cluster_id(&self) -> ClusterId {
        self.placement.ring().cluster_id()
    }

    pub(crate) fn is_primary(&self, key: &DataKey) -> bool {
        self.placement.primaries_of(key.hash()).contains(&self.me_index)
    }

    pub(crate) fn served(&self, quorum: &Quorum, acks: u32) -> Served {
        Served {
            ring_epoch: self.placement.ring().epoch(),
            coordinator: self.me.clone(),
            acks,
            quorum: *quorum,
        }
    }
}

async fn blocking<T: Send + 'static>(
    attempted: &str,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(StoreError::Io {
            attempted: attempted.to_owned(),
            reason: format!("the task ended early: {error}"),
        })
    })
}
