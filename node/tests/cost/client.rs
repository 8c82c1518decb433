//! One client on a thread and a runtime of its own: one operation after the other, and between two of them it waits until the
//! servers have done all that the last one has begun.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use alloc_tracker::Session;
use bytes::Bytes;
use dynamo_proto::v1::{
    self, Request, Requests, Responses, request::Request as Asked, response::Response as Answer,
};
use futures::channel::mpsc;
use prost::Message as _;
use tokio::{runtime::Handle, time::timeout};
use tonic::Streaming;

use crate::harness::Cluster;

/// Operations of each kind that are measured.
pub(crate) const OPERATIONS: u64 = 50;
/// Operations before: numbers that grow, as those of requests on a stream, have two bytes from then on, for longer than
/// this takes; buffers have the size that they keep.
const WARM_UP: u64 = 150;
/// Of these once more, one after the other, so that it is known what the servers are like at rest.
const REPEATED: u64 = 20;
const VALUE_BYTES: usize = 1024;
/// For an answer, and for the servers to come to rest: longer than a disk may be busy with others.
const DEADLINE: Duration = Duration::from_mins(5);

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    PutNew,
    PutOver,
    Get,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::PutNew, Self::PutOver, Self::Get];
}

/// Figures of [`OPERATIONS`] operations with their names, always in the same order.
pub(crate) type Measured = Vec<(&'static str, u64)>;

/// Metrics of the nodes that a figure is the sum of: name, labels.
const METRICS: [(&str, &str, &str); 14] = [
    ("client requests", "dynamo_request_duration_seconds_count", ""),
    ("forwarded writes", "dynamo_forwards_total", ""),
    ("read repairs", "dynamo_read_repairs_total", ""),
    (
        "requests to replicas",
        "dynamo_stream_message_entries_total",
        r#"direction="sent",from="nodes",kind="requests""#,
    ),
    (
        "messages with requests",
        "dynamo_stream_messages_total",
        r#"direction="sent",from="nodes",kind="requests""#,
    ),
    (
        "bytes of requests",
        "dynamo_stream_message_bytes_total",
        r#"direction="sent",from="nodes",kind="requests""#,
    ),
    (
        "messages with answers",
        "dynamo_stream_messages_total",
        r#"direction="sent",from="nodes",kind="answers""#,
    ),
    (
        "bytes of answers",
        "dynamo_stream_message_bytes_total",
        r#"direction="sent",from="nodes",kind="answers""#,
    ),
    ("look-ups in stores", "dynamo_store_reads_total", ""),
    ("bytes read", "dynamo_store_read_bytes_total", ""),
    ("batches written", "dynamo_store_batches_total", ""),
    ("changes written", "dynamo_store_changes_total", ""),
    ("log bytes", "dynamo_store_log_bytes_total", ""),
    ("log syncs", "dynamo_store_log_syncs_total", ""),
];

pub(crate) struct Client {
    cluster: Arc<Cluster>,
    /// Of the servers.
    servers: Handle,
    requests: mpsc::UnboundedSender<Requests>,
    responses: Streaming<Responses>,
    last_id: u64,
    /// Tasks of the servers that are always there.
    tasks_at_rest: usize,
    /// The context that the last put of each key gave.
    contexts: BTreeMap<u64, Bytes>,
    /// Encoded requests and responses of this client.
    request_bytes: u64,
    response_bytes: u64,
}

impl Client {
    pub(crate) async fn new(cluster: Arc<Cluster>, servers: Handle) -> Self {
        let (requests, leaving) = mpsc::unbounded();
        let responses = cluster.kv(0).serve(leaving).await.unwrap().into_inner();
        Self {
            requests,
            responses,
            last_id: 0,
            cluster,
            servers,
            tasks_at_rest: usize::MAX,
            contexts: BTreeMap::new(),
            request_bytes: 0,
            response_bytes: 0,
        }
    }

    /// Connections, streams, and whatever else is made at its first use.
    async fn warm_up(&mut self) {
        for key in 0..WARM_UP {
            self.put(key).await;
            self.get(key).await;
        }
        for key in 0..REPEATED {
            self.put(key).await;
            self.wait_for_rest().await;
            self.get(key).await;
            self.wait_for_rest().await;
        }
    }

    /// What [`OPERATIONS`] of each kind cost.
    pub(crate) async fn measure(mut self) -> [Measured; 3] {
        self.warm_up().await;
        let [first, second, third] = Kind::ALL;
        [
            self.measure_one(first).await,
            self.measure_one(second).await,
            self.measure_one(third).await,
        ]
    }

    async fn measure_one(&mut self, kind: Kind) -> Measured {
        let before = self.counted().await;
        self.wait_for_rest().await;
        let session = Session::new().no_stdout().no_file();
        let (everybody, me) = (session.operation("everybody"), session.operation("me"));
        let spans = (
            everybody.measure_process().iterations(1),
            me.measure_thread().iterations(1),
        );
        for key in WARM_UP..WARM_UP + OPERATIONS {
            match kind {
                Kind::PutNew | Kind::PutOver => self.put(key).await,
                Kind::Get => self.get(key).await,
            }
            self.wait_for_rest().await;
        }
        drop(spans);
        let mut measured = self.counted().await;
        for ((_, count), (_, before)) in measured.iter_mut().zip(before) {
            *count -= before;
        }
        measured.extend(servers_part(&session));
        measured
    }

    /// All figures but those of allocations, since the start.
    async fn counted(&self) -> Measured {
        let mut counted = vec![
            ("bytes of client requests", self.request_bytes),
            ("bytes of client responses", self.response_bytes),
        ];
        for (name, metric, label) in METRICS {
            counted.push((name, self.cluster.metrics(metric, label).await));
        }
        counted
    }

    /// Waits until the servers do nothing: what they still had to do after the last reply is done.
    async fn wait_for_rest(&mut self) {
        let begun = Instant::now();
        loop {
            let metrics = self.servers.metrics();
            let tasks = metrics.num_alive_tasks();
            // An odd number: it waits for something to happen.
            let parked = metrics.worker_park_unpark_count(0) % 2 == 1;
            if parked && tasks <= self.tasks_at_rest {
                self.tasks_at_rest = tasks;
                return;
            }
            assert!(
                begun.elapsed() < DEADLINE,
                "{tasks} tasks are alive, not {}",
                self.tasks_at_rest
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// On the stream, as clients do; the nodes' time-outs stand still.
    async fn ask(&mut self, asked: Asked) -> Answer {
        self.last_id += 1;
        let request = Request {
            id: self.last_id,
            request: Some(asked),
            ..Request::default()
        };
        let requests = Requests {
            requests: vec![request],
        };
        self.request_bytes += requests.encoded_len() as u64;
        self.requests.unbounded_send(requests).unwrap();
        let message = timeout(DEADLINE, self.responses.message()).await.unwrap();
        let mut responses = message.unwrap().unwrap();
        self.response_bytes += responses.encoded_len() as u64;
        assert_eq!(responses.responses.len(), 1);
        responses.responses.remove(0).response.unwrap()
    }

    async fn put(&mut self, key: u64) {
        let request = v1::PutRequest {
            key: name(key),
            value: vec![b'v'; VALUE_BYTES].into(),
            context: self.contexts.get(&key).cloned().unwrap_or_default(),
            ..v1::PutRequest::default()
        };
        let Answer::Put(response) = self.ask(Asked::Put(request)).await else {
            panic!("a put was answered by something else");
        };
        self.contexts.insert(key, response.context);
    }

    async fn get(&mut self, key: u64) {
        let request = v1::GetRequest {
            key: name(key),
            ..v1::GetRequest::default()
        };
        let Answer::Get(response) = self.ask(Asked::Get(request)).await else {
            panic!("a get was answered by something else");
        };
        assert_eq!(response.versions.len(), 1);
    }
}

/// 24 bytes, whatever the number.
fn name(key: u64) -> Bytes {
    format!("user{key:020}").into()
}

/// What all threads but this one have allocated.
fn servers_part(session: &Session) -> Measured {
    let report = session.to_report();
    let operations: BTreeMap<_, _> = report.operations().collect();
    let (everybody, me) = (operations["everybody"], operations["me"]);
    vec![
        (
            "allocations",
            everybody.total_allocations_count() - me.total_allocations_count(),
        ),
        (
            "bytes allocated",
            everybody.total_bytes_allocated() - me.total_bytes_allocated(),
        ),
    ]
}
