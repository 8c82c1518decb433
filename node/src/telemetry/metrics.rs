//! Metrics: instruments of OpenTelemetry, read by Prometheus. Base units, no key, client or partition in a label.

use std::{sync::Arc, time::Duration};

use dynamo_core::{entropy::ExchangeReport, reap::ReapReport};
use dynamo_lane::Traffic;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Gauge, Histogram, MeterProvider as _},
};
use opentelemetry_sdk::metrics::SdkMeterProvider;
use prometheus::{Registry, TextEncoder};

use super::observed;
use crate::storage::Store;

/// From 100 µs to 10 s, about three per decade.
const SECONDS: [f64; 16] = [
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0,
];

/// A client operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Get,
    Put,
    Delete,
    Update,
    ListKeys,
}

impl Operation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Put => "put",
            Self::Delete => "delete",
            Self::Update => "update",
            Self::ListKeys => "list_keys",
        }
    }
}

/// The instruments of one node.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    _provider: SdkMeterProvider,
    request_duration: Histogram<f64>,
    quorum_failures: Counter<u64>,
    forwards: Counter<u64>,
    shed: Counter<u64>,
    siblings: Histogram<u64>,
    fallbacks_counted: Counter<u64>,
    hints_delivered: Counter<u64>,
    read_repairs: Counter<u64>,
    reads_hedged: Counter<u64>,
    exchanges: Counter<u64>,
    exchange_keys: Counter<u64>,
    pulled_bytes: Counter<u64>,
    reaped: Counter<u64>,
    gossip_exchanges: Counter<u64>,
    gossip_entries: Counter<u64>,
    gauges: Gauges,
}

#[derive(Debug)]
struct Gauges {
    ring_epoch: Gauge<u64>,
    tokens: Gauge<u64>,
    partitions: Gauge<u64>,
    zone_violations: Gauge<u64>,
    peer_up: Gauge<u64>,
    ready: Gauge<u64>,
    requests_in_flight: Gauge<u64>,
    requests_in_flight_bound: Gauge<u64>,
    keys: Gauge<u64>,
    data_bytes: Gauge<u64>,
    writer_batches: Gauge<u64>,
    writer_operations: Gauge<u64>,
    writer_syncs: Gauge<u64>,
    writer_queue: Gauge<u64>,
    read_errors: Gauge<u64>,
    hints: Gauge<u64>,
    hints_bytes: Gauge<u64>,
    hints_declined: Gauge<u64>,
    partitions_suspect: Gauge<u64>,
    exchanges_overdue: Gauge<u64>,
    background_rate: Gauge<u64>,
    build_info: Gauge<u64>,
}

/// What a scrape reads from the node.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) ring_epoch: u64,
    pub(crate) tokens: u64,
    pub(crate) partitions: u64,
    pub(crate) zone_violations: u64,
    pub(crate) peers: Vec<(String, bool)>,
    pub(crate) ready: bool,
    pub(crate) requests_in_flight: u64,
    pub(crate) requests_in_flight_bound: u64,
    pub(crate) keys: u64,
    pub(crate) data_bytes: u64,
    pub(crate) writer_batches: u64,
    pub(crate) writer_operations: u64,
    pub(crate) writer_syncs: u64,
    pub(crate) writer_queue: u64,
    pub(crate) read_errors: u64,
    pub(crate) hints: u64,
    pub(crate) hints_bytes: u64,
    pub(crate) hints_declined: u64,
    pub(crate) partitions_suspect: u64,
    pub(crate) exchanges_overdue: u64,
    pub(crate) background_rate: u64,
}

impl Metrics {
    /// Makes the instruments. `streams` and `stores` by their names.
    ///
    /// # Errors
    /// If the exporter cannot be registered.
    pub(crate) fn new(
        streams: &[(&'static str, Arc<Traffic>); 2],
        stores: &[(&'static str, Arc<dyn Store>); 2],
    ) -> anyhow::Result<Self> {
        let registry = Registry::new();
        let exporter = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .without_units()
            .scope_info_enabled(false)
            .without_target_info()
            .build()?;
        let provider = SdkMeterProvider::builder().with_reader(exporter).build();
        let meter = provider.meter("dynamo");
        observed::traffic(&meter, streams);
        observed::stores(&meter, stores);
        let gauge =
            |name: &'static str, text: &'static str| meter.u64_gauge(name).with_description(text).build();
        let counter =
            |name: &'static str, text: &'static str| meter.u64_counter(name).with_description(text).build();
        Ok(Self {
            request_duration: meter
                .f64_histogram("dynamo_request_duration_seconds")
                .with_description("Time from a client's request to its answer")
                .with_boundaries(SECONDS.to_vec())
                .build(),
            quorum_failures: counter(
                "dynamo_quorum_failures",
                "Requests that too few replicas answered",
            ),
            forwards: counter("dynamo_forwards", "Writes forwarded to a coordinator"),
            shed: counter(
                "dynamo_requests_shed",
                "Requests refused because too many are in flight",
            ),
            siblings: meter
                .u64_histogram("dynamo_siblings")
                .with_description("Live versions in the answer of a get")
                .with_boundaries(vec![1.0, 2.0, 3.0, 5.0, 10.0, 25.0, 50.0, 100.0])
                .build(),
            fallbacks_counted: counter(
                "dynamo_fallbacks_counted",
                "Acknowledgements of fallbacks among those that writes were answered with",
            ),
            hints_delivered: counter(
                "dynamo_hints_delivered",
                "Hints delivered to those they were kept for",
            ),
            read_repairs: counter("dynamo_read_repairs", "Replicas brought up to date by gets"),
            reads_hedged: counter(
                "dynamo_reads_hedged",
                "Gets that asked further replicas because one was late",
            ),
            exchanges: counter(
                "dynamo_exchanges",
                "Exchanges of a partition with another primary",
            ),
            exchange_keys: counter(
                "dynamo_exchange_keys",
                "Records that exchanges have moved, by direction",
            ),
            pulled_bytes: counter(
                "dynamo_pulled_bytes",
                "Bytes of records that this node got from its peers: by exchanges, as a page, or as runs that were taken in whole",
            ),
            reaped: counter("dynamo_reaped", "Tombstones removed and histories shortened"),
            gossip_exchanges: counter("dynamo_gossip_exchanges", "Gossip exchanges begun by this node"),
            gossip_entries: counter(
                "dynamo_gossip_entries_sent",
                "Member entries sent by gossip; 0 while peers agree",
            ),
            gauges: Gauges {
                ring_epoch: gauge("dynamo_ring_epoch", "Epoch of the ring in use; 0: none"),
                tokens: gauge("dynamo_tokens_owned", "Tokens of this node"),
                partitions: gauge(
                    "dynamo_partitions_replicated",
                    "Partitions of which this node is a primary",
                ),
                zone_violations: gauge(
                    "dynamo_zone_violations",
                    "Partitions whose replicas break the zone rule",
                ),
                peer_up: gauge("dynamo_peer_up", "1 if this node reaches the peer"),
                ready: gauge("dynamo_ready", "1 if this node serves its ranges"),
                requests_in_flight: gauge("dynamo_requests_in_flight", "Client requests being served"),
                requests_in_flight_bound: gauge(
                    "dynamo_requests_in_flight_bound",
                    "Client requests that may be served at once; falls while they take too long",
                ),
                keys: gauge("dynamo_keys_estimate", "Estimated number of records on this node"),
                data_bytes: gauge("dynamo_data_bytes", "Estimated bytes of records on this node"),
                writer_batches: gauge("dynamo_writer_batches", "Batches committed since the start"),
                writer_operations: gauge("dynamo_writer_operations", "Operations committed since the start"),
                writer_syncs: gauge(
                    "dynamo_writer_syncs",
                    "Syncs of the write-ahead log since the start",
                ),
                writer_queue: gauge("dynamo_writer_queue_length", "Operations waiting for the writer"),
                read_errors: gauge(
                    "dynamo_read_errors",
                    "Writes that failed because their record could not be read, since the start",
                ),
                hints: gauge("dynamo_hints", "Hints that this node keeps for others"),
                hints_bytes: gauge(
                    "dynamo_hints_bytes",
                    "Bytes of hints that this node keeps for others",
                ),
                hints_declined: gauge(
                    "dynamo_hints_declined",
                    "Hints refused for want of room, since the start",
                ),
                partitions_suspect: gauge(
                    "dynamo_partitions_suspect",
                    "Partitions that this node does not answer reads for, since its store lost writes",
                ),
                exchanges_overdue: gauge(
                    "dynamo_exchanges_overdue",
                    "Pairs of partition and primary whose last exchange is longer ago than the interval allows",
                ),
                background_rate: gauge(
                    "dynamo_background_operations_per_second",
                    "Operations a second that background work may do now",
                ),
                build_info: gauge("dynamo_build_info", "Always 1; the release is a label"),
            },
            registry,
            _provider: provider,
        })
    }

    pub(crate) fn request(&self, operation: Operation, result: &'static str, elapsed: Duration) {
        let labels = [
            KeyValue::new("op", operation.name()),
            KeyValue::new("result", result),
        ];
        self.request_duration.record(elapsed.as_secs_f64(), &labels);
    }

    pub(crate) fn quorum_failure(&self, operation: Operation) {
        self.quorum_failures
            .add(1, &[KeyValue::new("op", operation.name())]);
    }

    pub(crate) fn forward(&self) {
        self.forwards.add(1, &[]);
    }

    pub(crate) fn shed(&self) {
        self.shed.add(1, &[]);
    }

    pub(crate) fn siblings(&self, count: usize) {
        self.siblings.record(count as u64, &[]);
    }

    pub(crate) fn fallbacks_counted(&self, count: u32) {
        self.fallbacks_counted.add(count.into(), &[]);
    }

    pub(crate) fn hint_delivered(&self) {
        self.hints_delivered.add(1, &[]);
    }

    pub(crate) fn read_repair(&self) {
        self.read_repairs.add(1, &[]);
    }

    pub(crate) fn read_hedged(&self) {
        self.reads_hedged.add(1, &[]);
    }

    pub(crate) fn exchange(&self, report: &ExchangeReport) {
        let result = if report.finished { "finished" } else { "unfinished" };
        self.exchanges.add(1, &[KeyValue::new("result", result)]);
        let moved = [("pulled", report.keys_pulled), ("pushed", report.keys_pushed)];
        for (direction, keys) in moved {
            self.exchange_keys
                .add(keys, &[KeyValue::new("direction", direction)]);
        }
    }

    /// `by`: exchange, page (a small partition), or run.
    pub(crate) fn pulled(&self, by: &'static str, bytes: u64) {
        self.pulled_bytes.add(bytes, &[KeyValue::new("by", by)]);
    }

    pub(crate) fn reaped(&self, report: &ReapReport) {
        self.reaped.add(report.removed, &[]);
    }

    pub(crate) fn gossip(&self, entries_sent: usize) {
        self.gossip_exchanges.add(1, &[]);
        self.gossip_entries.add(entries_sent as u64, &[]);
    }

    /// All metrics in Prometheus' text format.
    ///
    /// # Errors
    /// If they cannot be encoded.
    pub(crate) fn encode(&self, snapshot: &Snapshot) -> anyhow::Result<String> {
        let gauges = &self.gauges;
        gauges.ring_epoch.record(snapshot.ring_epoch, &[]);
        gauges.tokens.record(snapshot.tokens, &[]);
        gauges.partitions.record(snapshot.partitions, &[]);
        gauges.zone_violations.record(snapshot.zone_violations, &[]);
        for (peer, up) in &snapshot.peers {
            gauges
                .peer_up
                .record(u64::from(*up), &[KeyValue::new("peer", peer.clone())]);
        }
        gauges.ready.record(u64::from(snapshot.ready), &[]);
        gauges.requests_in_flight.record(snapshot.requests_in_flight, &[]);
        gauges
            .requests_in_flight_bound
            .record(snapshot.requests_in_flight_bound, &[]);
        gauges.keys.record(snapshot.keys, &[]);
        gauges.data_bytes.record(snapshot.data_bytes, &[]);
        gauges.writer_batches.record(snapshot.writer_batches, &[]);
        gauges.writer_operations.record(snapshot.writer_operations, &[]);
        gauges.writer_syncs.record(snapshot.writer_syncs, &[]);
        gauges.writer_queue.record(snapshot.writer_queue, &[]);
        gauges.read_errors.record(snapshot.read_errors, &[]);
        gauges.hints.record(snapshot.hints, &[]);
        gauges.hints_bytes.record(snapshot.hints_bytes, &[]);
        gauges.hints_declined.record(snapshot.hints_declined, &[]);
        gauges.partitions_suspect.record(snapshot.partitions_suspect, &[]);
        gauges.exchanges_overdue.record(snapshot.exchanges_overdue, &[]);
        gauges.background_rate.record(snapshot.background_rate, &[]);
        gauges
            .build_info
            .record(1, &[KeyValue::new("release", env!("CARGO_PKG_VERSION"))]);
        Ok(TextEncoder::new().encode_to_string(&self.registry.gather())?)
    }
}
