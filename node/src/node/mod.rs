//! What the parts of one node share.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use dynamo_core::{
    coordinator::{Candidate, Candidates},
    overload::Overload,
    quorum::Quorum,
    reap::QuietTable,
    recovery::Recovery,
    ring::{Member, Ring},
    transition::Layouts,
    types::{MemberId, PartitionId},
    version::{Hlc, Stamp},
};
use dynamo_lane::Traffic;
use dynamo_proto::peer;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::{
    background::{Background, checks::Checks, refetch::Refetches, transition},
    clock,
    config::{Config, PAGE_KEYS_MAX},
    faults::Faults,
    grpc::{
        locate::Asked,
        status::{Failure, Reason},
    },
    membership::Membership,
    peers::{Connect, Peers},
    request::not_ready,
    storage::{
        DataKey, HintStore, ScanLimit, Store, keys::HashRange, look, records, trees::PartitionTrees,
        writer::Writer,
    },
    telemetry::metrics::{Metrics, Operation, Snapshot},
};

mod change;
mod operations;
mod place;
mod placed;
mod replica;

use change::Change;
pub(crate) use operations::Begun;
pub(crate) use place::Place;
pub(crate) use placed::{List, Placed};
pub(crate) use replica::{Digest, Unless};

/// Bytes of records that one page of a scan reads.
const SCAN_BYTES_MAX: usize = 4 << 20;
/// Reachable fallbacks that one request may try.
const FALLBACKS_MAX: usize = 16;
/// The lowest W that a request may ask for.
const LOWEST_W: u32 = 1;

/// One node, while it runs.
pub(crate) struct Node {
    config: Config,
    store: Arc<dyn Store>,
    writer: Writer,
    hints: HintStore,
    trees: Arc<PartitionTrees>,
    /// While the store may have lost writes.
    recovery: Mutex<Option<Recovery>>,
    quiet: Arc<Mutex<QuietTable>>,
    /// No peer had ever confirmed the store before this start.
    fresh: bool,
    /// The process goes on with the life that its clean stop had left.
    life_kept: bool,
    /// A peer has in this process; for a fresh one this gates nothing.
    confirmed: AtomicBool,
    confirmed_by_peer: AtomicBool,
    /// Rounds of gossip since the start, answered or not.
    gossip_rounds: AtomicU64,
    /// The store has been found to be an old copy, and is to be set aside.
    outdated: AtomicBool,
    end: Notify,
    change: Change,
    /// Rings are taken up one after the other.
    taking_up: Mutex<()>,
    gossip_due: Notify,
    faults: Faults,
    asked: Asked,
    refetches: Refetches,
    checks: Checks,
    background: Background,
    membership: Membership,
    placed: ArcSwapOption<Placed>,
    peers: Peers,
    client_traffic: Arc<Traffic>,
    metrics: Metrics,
    hlc: Mutex<Hlc>,
    in_flight: Arc<Mutex<Overload>>,
    /// Cancelled once the node stops.
    stops: CancellationToken,
    started_ms: u64,
}

/// Requests should take this part of what one call to a peer may take, in the mean: those above it are then still in time.
const PATIENCE_PARTS: u64 = 4;

/// What a node keeps on disk, and what follows it.
pub(crate) struct Storage {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) writer: Writer,
    pub(crate) hints: HintStore,
    pub(crate) trees: Arc<PartitionTrees>,
    /// Present while the store may have lost writes.
    pub(crate) recovery: Option<Recovery>,
    /// When something last arrived for a record that may be removed.
    pub(crate) quiet: Arc<Mutex<QuietTable>>,
    /// No peer has ever confirmed the store.
    pub(crate) fresh: bool,
    /// The store was stopped cleanly, and its life goes on.
    pub(crate) life_kept: bool,
    pub(crate) faults: Faults,
}

impl Node {
    pub(crate) fn new(
        config: Config,
        storage: Storage,
        membership: Membership,
        connect: Connect,
    ) -> anyhow::Result<Arc<Self>> {
        let Storage {
            store,
            writer,
            hints,
            trees,
            recovery,
            quiet,
            fresh,
            life_kept,
            faults,
        } = storage;
        let peers = Peers::new(&config, faults.clone(), connect);
        let client_traffic = Arc::default();
        let streams = [
            ("nodes", Arc::clone(peers.traffic())),
            ("clients", Arc::clone(&client_traffic)),
        ];
        let stores = [("data", Arc::clone(&store)), ("hints", Arc::clone(hints.store()))];
        let node = Self {
            background: Background::new(&config),
            hints,
            trees,
            recovery: Mutex::new(recovery),
            quiet,
            fresh,
            life_kept,
            confirmed: AtomicBool::new(fresh),
            confirmed_by_peer: AtomicBool::new(false),
            gossip_rounds: AtomicU64::new(0),
            outdated: AtomicBool::new(false),
            end: Notify::new(),
            change: Change::default(),
            taking_up: Mutex::default(),
            gossip_due: Notify::new(),
            faults,
            asked: Asked::default(),
            refetches: Refetches::default(),
            checks: Checks::default(),
            metrics: Metrics::new(&streams, &stores)?,
            peers,
            client_traffic,
            hlc: Mutex::new(Hlc::default()),
            in_flight: Arc::new(Mutex::new(Overload::new(
                config.limits.requests_in_flight_max as u64,
                config.limits.peer_timeout_ms / PATIENCE_PARTS,
                clock::monotonic_ms(),
            ))),
            stops: CancellationToken::new(),
            placed: ArcSwapOption::empty(),
            started_ms: clock::monotonic_ms(),
            config,
            store,
            writer,
            membership,
        };
        node.ring_changed();
        // It left before this start, or its joining was called off.
        if let Some((_, base)) = node.membership.ring()
            && node.placed.load().is_none()
            && node.holds_data()
        {
            node.leave(&base);
        }
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

    /// What goes over the streams of clients.
    pub(crate) fn client_traffic(&self) -> &Arc<Traffic> {
        &self.client_traffic
    }

    pub(crate) fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.faults
    }

    pub(crate) fn refetches(&self) -> &Refetches {
        &self.refetches
    }

    pub(crate) fn checks(&self) -> &Checks {
        &self.checks
    }

    pub(crate) fn asked(&self) -> &Asked {
        &self.asked
    }

    pub(crate) fn background(&self) -> &Background {
        &self.background
    }

    /// Notes how a client's request went, and how long it took: background work keeps out of the way of the next ones.
    pub(crate) fn foreground(&self, operation: Operation, word: &'static str, latency: Duration) {
        self.metrics.request(operation, word, latency);
        self.background.foreground(latency);
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
    pub(crate) fn admit(&self) -> Result<Place, Failure> {
        Place::take(&self.in_flight).map_err(|bound| {
            self.metrics.shed();
            let message = format!("{bound} requests are in flight here; try another node, or later");
            Failure::new(Reason::Overloaded, message).not_applied()
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

    /// As [`placed`](Self::placed), to give a write its name. A life that goes on after a clean stop may be that of an old
    /// copy, whose next names were given already: until a peer has had the chance to say so, another node coordinates. So
    /// too for a store that has taken the place of one that was set aside: its rings may be retired, and where one replica's
    /// word is enough it would acknowledge what nobody reads.
    ///
    /// # Errors
    /// As there, and while the start waits for a peer's word.
    pub(crate) fn placed_to_coordinate(&self) -> Result<Arc<Placed>, Failure> {
        let outdated = self.is_suspect_anywhere() && self.is_fresh() && !self.has_waited();
        if outdated || (self.life_kept && self.is_unconfirmed()) {
            return Err(not_ready("it waits for a peer's word on its disk"));
        }
        self.placed()
    }

    /// As [`placed`](Self::placed), to coordinate a read. An old copy of this node's disk may not know that others serve by another
    /// ring: until a peer has had the chance to say so, another node coordinates.
    ///
    /// # Errors
    /// As there, and while the start waits for a peer's word.
    pub(crate) fn placed_to_read(&self) -> Result<Arc<Placed>, Failure> {
        if self.is_unconfirmed() {
            return Err(not_ready("it waits for a peer's word on its disk"));
        }
        self.placed()
    }

    /// The ring in use, also while stopping; none before the first.
    pub(crate) fn ring_in_use(&self) -> Option<Arc<Placed>> {
        self.placed.load_full()
    }

    /// Takes up the rings that the membership holds now.
    pub(crate) fn ring_changed(&self) {
        // One after the other: the last one has seen the newest rings.
        let _one = self.taking_up.lock();
        let Some((me, transition)) = self.membership.me().zip(self.membership.transition()) else {
            return;
        };
        let before = self.placed.load_full();
        let layouts = Layouts::of(&transition, before.as_deref().map(Placed::layouts));
        let me = me.member;
        if !layouts.lists(&me) {
            self.placed.store(None);
            if before.is_some() {
                self.leave(layouts.base().ring());
            }
            return;
        }
        let ring = layouts.base().ring();
        let Some(quorum) = self.quorum(ring) else { return };
        let another_base = before
            .as_ref()
            .is_none_or(|before| before.layouts().base().ring().version() != ring.version());
        if another_base {
            tracing::info!(
                epoch = ring.epoch(),
                hash = format!("{:016x}", ring.hash()),
                members = ring.members().len(),
                partitions = ring.partitions(),
                factor = quorum.n,
                r = quorum.r,
                w = quorum.w,
                "ring in use"
            );
            let (now_ms, random) = (clock::monotonic_ms(), clock::random_u64());
            self.background
                .with_schedule(|schedule| schedule.place(layouts.base(), &me, now_ms, random));
        }
        if another_base && let Some(before) = &before {
            if before.serves() && ring.index_of(&me).is_none() && !transition.keeps(&me) {
                // It left, and is to come back by a later ring: with nothing of then.
                self.placed.store(None);
                self.leave(ring);
                return;
            }
            self.freed(before, &layouts);
        }
        self.keep_trees(&layouts, &me);
        self.place_recovery(&layouts, &me);
        let other_sources = |before: &Arc<Placed>| layouts.has_other_sources(before.layouts());
        if before.as_ref().is_some_and(other_sources) {
            self.sync_again(&layouts, &me);
        } else {
            self.place_sync(&layouts, &me);
        }
        self.placed
            .store(Some(Arc::new(Placed::new(layouts, me, quorum))));
        self.background.transition_due();
    }

    /// The quorum of requests that name none; `None` if the configured one does not fit.
    fn quorum(&self, ring: &Ring) -> Option<Quorum> {
        let replication = &self.config.replication;
        let majority = ring.factor() / 2 + 1;
        let r = replication.read_quorum.unwrap_or(majority);
        let w = replication.write_quorum.unwrap_or(majority);
        Quorum::new(ring.factor(), r, w)
            .inspect_err(
                |error| tracing::error!(%error, "the configured quorums do not fit the ring; not serving"),
            )
            .ok()
    }

    /// Whether there is a record in the store.
    fn holds_data(&self) -> bool {
        records::any(self.store.as_ref(), &HashRange::all(&(0..=u64::MAX))).unwrap_or(false)
    }

    /// Keeps the trees of what this node holds by any ring, and of what it may have to give.
    fn keep_trees(&self, layouts: &Layouts, me: &MemberId) {
        let q = layouts.base().ring().partitions();
        let held = |partition: &PartitionId| {
            layouts.may_give_partition(*partition, me) || self.with_strays(|strays| strays.has(*partition))
        };
        self.trees
            .keep(q, &(0..q).map(PartitionId).filter(held).collect());
    }

    /// What a suspect store has to get back.
    fn place_recovery(&self, layouts: &Layouts, me: &MemberId) {
        self.recovery(|recovery| recovery.place(layouts.base(), me, LOWEST_W, layouts.dead()));
    }

    /// Refuses new requests from now on.
    pub(crate) fn drain(&self) {
        self.stops.cancel();
    }

    /// Cancelled once the node refuses new requests.
    pub(crate) fn stops(&self) -> CancellationToken {
        self.stops.clone()
    }

    pub(crate) fn draining(&self) -> bool {
        self.stops.is_cancelled()
    }

    /// Why the node does not serve its ranges; none if it does.
    pub(crate) fn not_ready_reason(&self) -> Option<String> {
        if self.draining() {
            return Some("draining: the node is stopping".to_owned());
        }
        match self.placed.load().as_deref() {
            None => return Some(self.membership.not_ready_reason().to_owned()),
            Some(placed) if !placed.serves() => return Some(transition::joining(self, placed)),
            Some(_) => {}
        }
        if self.is_unconfirmed() {
            return Some(
                "confirming: waits for a peer's word that nothing is missing on this disk".to_owned(),
            );
        }
        let suspect = self.partitions_suspect();
        let progress =
            || format!("suspect: {suspect} partitions are still to be got back from other members");
        self.is_suspect_anywhere().then(progress)
    }

    /// Where clients reach a member; none while it is not known.
    pub(crate) fn client_address(&self, member: &str) -> Option<String> {
        self.membership
            .entry(&MemberId::new(member).ok()?)
            .map(|entry| entry.client_address)
    }

    /// Whom a get asks: as many primaries as the bucket has replicas, and fallbacks, of the ring that reads go to.
    ///
    /// # Errors
    /// UNAVAILABLE while this node must not coordinate reads.
    pub(crate) fn get_candidates(&self, placed: &Placed, key: &DataKey) -> Result<Candidates, Failure> {
        let partition = placed.read_partition_of(key)?;
        self.read_candidates(placed, partition, self.bucket(key.bucket()).n)
    }

    /// As [`get_candidates`](Self::get_candidates), for a partition of the ring that reads go to.
    pub(crate) fn read_candidates(
        &self,
        placed: &Placed,
        partition: PartitionId,
        replicas: Option<u32>,
    ) -> Result<Candidates, Failure> {
        let list = placed.read_list(partition, replicas)?;
        Ok(self.candidates(placed, list))
    }

    /// Whom a write goes to: the primaries of the base ring, and while another ring is to follow, those of it that they are
    /// paired with.
    pub(crate) fn put_candidates(&self, placed: &Placed, key: &DataKey) -> Candidates {
        let replicas = self.bucket(key.bucket()).n;
        self.candidates(placed, placed.write_list(key, replicas))
    }

    fn candidates(&self, placed: &Placed, list: List<'_>) -> Candidates {
        let candidate = |member: &Member| Candidate {
            member: member.id.clone(),
            zone: member.zone.clone(),
            reachable: member.id == *placed.me() || self.peers.reachable(&member.id),
        };
        Candidates {
            primaries: list.primaries.into_iter().map(candidate).collect(),
            partners: list
                .partners
                .into_iter()
                .map(|(slot, member)| (slot, candidate(member)))
                .collect(),
            fallbacks: list
                .fallbacks
                .map(candidate)
                .filter(|candidate| candidate.reachable)
                .take(FALLBACKS_MAX)
                .collect(),
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
        let page = look(&self.store, "scanning records", move |store| {
            records::scan(store, &range, limit)
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
        let (in_flight, bound) = {
            let overload = self.in_flight.lock();
            (overload.in_flight(), overload.bound())
        };
        let mut snapshot = Snapshot {
            ready: self.not_ready_reason().is_none(),
            requests_in_flight: in_flight,
            requests_in_flight_bound: bound,
            keys: estimate.keys,
            data_bytes: estimate.bytes,
            writer_batches: writer.groups,
            writer_operations: writer.operations,
            writer_syncs: writer.syncs,
            writer_queue: writer.queued,
            read_errors: writer.read_errors,
            hints_declined: self.hints.counters().budget_spent,
            partitions_suspect: self.partitions_suspect().into(),
            background_rate: self.background.pace().1,
            ..Snapshot::default()
        };
        for count in self.hints.owners().into_values() {
            snapshot.hints += count.records;
            snapshot.hints_bytes += count.bytes;
        }
        let overdue = self
            .background
            .with_schedule(|schedule| schedule.overdue(clock::monotonic_ms()));
        snapshot.exchanges_overdue = overdue as u64;
        if let Some(placed) = self.ring_in_use() {
            let placement = placed.placement();
            snapshot.ring_epoch = placement.ring().epoch();
            if let Some(me) = placement.ring().index_of(placed.me()) {
                snapshot.tokens = placement.tokens(me).into();
                snapshot.partitions = placement.replica_partitions(me).into();
            }
            snapshot.zone_violations = placement.zone_violations().into();
            let others = placement
                .ring()
                .members()
                .iter()
                .filter(|member| member.id != *placed.me());
            snapshot.peers = others
                .map(|member| (member.id.to_string(), self.peers.reachable(&member.id)))
                .collect();
        }
        snapshot
    }
}
