//! Metrics that something else counts anyway, and a scrape reads: streams of requests, and what stores say of themselves.

use std::sync::Arc;

use dynamo_lane::{Flow, Traffic};
use opentelemetry::{KeyValue, metrics::Meter};

use crate::storage::{Store, StoreCounters};

/// Metrics of streams of requests, by the name of who asks on them.
pub(super) fn traffic(meter: &Meter, streams: &[(&'static str, Arc<Traffic>); 2]) {
    let counter = |name: &'static str, text: &'static str, read: fn(&Flow) -> u64, sent_only: bool| {
        let streams = streams.clone();
        let observe = move |counter: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            for (from, traffic) in &streams {
                for (direction, kind, flow) in flows(traffic) {
                    let labels = [
                        KeyValue::new("direction", direction),
                        KeyValue::new("from", *from),
                        KeyValue::new("kind", kind),
                    ];
                    if direction == "sent" || !sent_only {
                        counter.observe(read(flow), &labels);
                    }
                }
            }
        };
        meter
            .u64_observable_counter(name)
            .with_description(text)
            .with_callback(observe)
            .build();
    };
    counter(
        "dynamo_stream_messages",
        "Messages with requests of clients, or of nodes to replicas, or with their answers, by who asked, direction and kind",
        Flow::messages,
        false,
    );
    counter(
        "dynamo_stream_message_entries",
        "Requests and answers in those messages",
        Flow::entries,
        false,
    );
    counter(
        "dynamo_stream_message_bytes",
        "Encoded bytes of those messages that this node has sent",
        Flow::bytes,
        true,
    );
}

fn flows(traffic: &Traffic) -> [(&'static str, &'static str, &Flow); 4] {
    [
        ("sent", "requests", &traffic.requests_sent),
        ("received", "requests", &traffic.requests_received),
        ("sent", "answers", &traffic.answers_sent),
        ("received", "answers", &traffic.answers_received),
    ]
}

/// Metrics of what stores count themselves, by the name of the store.
pub(super) fn stores(meter: &Meter, stores: &[(&'static str, Arc<dyn Store>); 2]) {
    let counter = |name: &'static str, text: &'static str, read: fn(&StoreCounters) -> u64| {
        let stores = stores.clone();
        let observe = move |counter: &dyn opentelemetry::metrics::AsyncInstrument<u64>| {
            for (label, store) in &stores {
                counter.observe(read(&store.counters()), &[KeyValue::new("store", *label)]);
            }
        };
        meter
            .u64_observable_counter(name)
            .with_description(text)
            .with_callback(observe)
            .build();
    };
    counter(
        "dynamo_store_reads",
        "Keys looked up in a store, found or not",
        |of| of.reads,
    );
    counter(
        "dynamo_store_read_bytes",
        "Bytes of the values that were found",
        |of| of.read_bytes,
    );
    counter("dynamo_store_batches", "Batches written to a store", |of| {
        of.batches
    });
    counter(
        "dynamo_store_changes",
        "Keys put or deleted by those batches",
        |of| of.changes,
    );
    counter(
        "dynamo_store_log_bytes",
        "Bytes written to a store's write-ahead log",
        |of| of.log_bytes,
    );
    counter(
        "dynamo_store_log_syncs",
        "Syncs of a store's write-ahead log",
        |of| of.log_syncs,
    );
}
