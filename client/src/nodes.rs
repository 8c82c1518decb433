//! One channel and one local opinion per node address.
//!
//! Failure detection is purely local (paper: §4.8.3): a node that failed is put aside, and the background asks it every
//! second whether it answers again, so that requests do not pay for it twice.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use dynamo_core::types::ClusterId;
use dynamo_proto::{CLUSTER_METADATA, v1::key_value_client::KeyValueClient};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;
use tonic::{Request, Status, metadata::AsciiMetadataValue, service::Interceptor, transport::Endpoint};

use crate::{
    config::{Settings, check_address},
    error::Error,
    hedge::Latencies,
    stub::{Link, Stub},
};

/// A node that has never answered is asked less and less often, down to this: it may not be reachable from here at all.
const PROBE_INTERVAL_STRANGER_MAX: Duration = Duration::from_secs(10);

/// All nodes that are known by address.
#[derive(Debug)]
pub(crate) struct Nodes {
    settings: Settings,
    by_address: RwLock<BTreeMap<String, Arc<Node>>>,
    /// Numbers nodes, and counts uses to find the channel that was used longest ago.
    ticks: AtomicU64,
    open: AtomicU64,
    cluster: NamesCluster,
}

/// Says in every request which cluster is meant, once it is known: another one may have got a member's address.
#[derive(Debug, Clone, Default)]
pub(crate) struct NamesCluster(Arc<OnceLock<AsciiMetadataValue>>);

impl Interceptor for NamesCluster {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(cluster) = self.0.get() {
            request.metadata_mut().insert(CLUSTER_METADATA, cluster.clone());
        }
        Ok(request)
    }
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    /// Unique in this client.
    pub(crate) id: usize,
    /// host:port.
    pub(crate) address: String,
    endpoint: Endpoint,
    aside: AtomicBool,
    used: AtomicU64,
    /// Of its reads.
    pub(crate) latencies: Latencies,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Arc<Link>>,
    last_heard: Option<Instant>,
    probe_due: Option<Instant>,
    probe_failures: u32,
}

impl Nodes {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            by_address: RwLock::new(BTreeMap::new()),
            ticks: AtomicU64::new(0),
            open: AtomicU64::new(0),
            cluster: NamesCluster::default(),
        }
    }

    /// The cluster that all further requests are for; the first one that is told stays.
    pub(crate) fn name_cluster(&self, cluster: ClusterId) {
        if let Ok(cluster) = cluster.to_string().try_into() {
            let _ = self.cluster.0.set(cluster);
        }
    }

    /// The node at an address, the same one every time.
    pub(crate) fn at(&self, address: &str) -> Result<Arc<Node>, Error> {
        let address = check_address(address)?;
        if let Some(node) = self.by_address.read().get(address) {
            return Ok(Arc::clone(node));
        }
        let endpoint = self.settings.endpoint(address)?;
        let mut nodes = self.by_address.write();
        let node = nodes.entry(address.to_owned()).or_insert_with(|| {
            Arc::new(Node {
                id: self.ticks.fetch_add(1, Ordering::Relaxed) as usize,
                address: address.to_owned(),
                endpoint,
                aside: AtomicBool::new(false),
                used: AtomicU64::new(0),
                latencies: Latencies::default(),
                state: Mutex::new(State::default()),
            })
        });
        Ok(Arc::clone(node))
    }

    /// Forgets nodes that are neither endpoints nor members any more.
    pub(crate) fn retain(&self, keep: impl Fn(&Node) -> bool) {
        let mut nodes = self.by_address.write();
        nodes.retain(|_, node| {
            let keep = keep(node);
            if !keep {
                self.close(node);
            }
            keep
        });
    }

    /// A stub for the node, over its one channel, which is opened now if it was not.
    pub(crate) fn stub(&self, node: &Node) -> Stub {
        node.used
            .store(self.ticks.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
        let (link, opened) = {
            let mut state = node.state.lock();
            let opened = state.link.is_none();
            let link = state
                .link
                .get_or_insert_with(|| Arc::new(Link::new(node.endpoint.connect_lazy())));
            (Arc::clone(link), opened)
        };
        if opened {
            let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
            if open > self.settings.channels_max as u64 {
                self.close_oldest(node.id);
            }
        }
        let calls = KeyValueClient::with_interceptor(link.channel.clone(), self.cluster.clone())
            .max_encoding_message_size(self.settings.send_bytes_max)
            .max_decoding_message_size(self.settings.receive_bytes_max);
        Stub::new(link, calls)
    }

    /// The node did not answer a request that was begun at `started`, or said that it is not ready. Something heard
    /// from it since then is the fresher evidence.
    ///
    /// The channel is dropped too: over a healed split, a new connection is quicker than an old one's retransmission.
    pub(crate) fn failed(&self, node: &Node, started: Instant, why: &str) {
        let now = Instant::now();
        let mut state = node.state.lock();
        if state.last_heard.is_some_and(|heard| heard > started) {
            return;
        }
        if !node.aside.swap(true, Ordering::Relaxed) {
            tracing::warn!(node = node.address, why, "node is put aside");
            state.probe_due = Some(now + self.settings.probe_interval);
        }
        drop(state);
        self.close(node);
    }

    /// Nodes to probe now; each is due again after its interval.
    pub(crate) fn probes_due(&self) -> Vec<Arc<Node>> {
        let now = Instant::now();
        let nodes = self.by_address.read();
        let due = nodes.values().filter(|node| {
            if !node.is_aside() {
                return false;
            }
            let mut state = node.state.lock();
            if state.probe_due.is_some_and(|due| due > now) {
                return false;
            }
            let interval = self.settings.probe_interval;
            let interval = if state.last_heard.is_some() {
                interval
            } else {
                interval
                    .saturating_mul(1 << state.probe_failures.min(4))
                    .min(PROBE_INTERVAL_STRANGER_MAX.max(interval))
            };
            state.probe_failures = state.probe_failures.saturating_add(1);
            state.probe_due = Some(now + interval);
            true
        });
        due.cloned().collect()
    }

    /// Whether any node is put aside.
    pub(crate) fn any_aside(&self) -> bool {
        self.by_address.read().values().any(|node| node.is_aside())
    }

    fn close(&self, node: &Node) {
        if node.state.lock().link.take().is_some() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn close_oldest(&self, except: usize) {
        let nodes = self.by_address.read();
        let open = nodes
            .values()
            .filter(|node| node.id != except && node.state.lock().link.is_some());
        if let Some(oldest) = open.min_by_key(|node| node.used.load(Ordering::Relaxed)) {
            self.close(oldest);
        }
    }
}

impl Node {
    /// Put aside: asked only if nobody else is left.
    pub(crate) fn is_aside(&self) -> bool {
        self.aside.load(Ordering::Relaxed)
    }

    /// The node answered, whatever it said.
    pub(crate) fn heard(&self) {
        let mut state = self.state.lock();
        state.last_heard = Some(Instant::now());
        state.probe_failures = 0;
        if self.aside.swap(false, Ordering::Relaxed) {
            tracing::info!(node = self.address, "node answers again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Builder;

    fn nodes(channels_max: usize) -> Nodes {
        Nodes::new(Builder::default().channels_max(channels_max).settings)
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_is_put_aside_by_fresh_evidence_only_and_probed_each_second() {
        let nodes = nodes(8);
        let node = nodes.at("127.0.0.1:1").unwrap();
        let started = Instant::now();
        tokio::time::advance(Duration::from_millis(10)).await;
        node.heard();
        nodes.failed(&node, started, "slow request");
        assert!(!node.is_aside(), "an answer was heard after the request began");
        tokio::time::advance(Duration::from_millis(10)).await;
        nodes.failed(&node, Instant::now(), "timed out");
        assert!(node.is_aside());
        assert!(nodes.probes_due().is_empty());
        for _ in 0..20 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(nodes.probes_due().len(), 1);
            assert!(nodes.probes_due().is_empty());
        }
        node.heard();
        assert!(!node.is_aside() && !nodes.any_aside());
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_never_heard_of_is_probed_less_and_less() {
        let nodes = nodes(8);
        let node = nodes.at("127.0.0.1:1").unwrap();
        nodes.failed(&node, Instant::now(), "refused");
        let mut probes = 0;
        for _ in 0..60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            probes += nodes.probes_due().len();
        }
        assert!((7..=10).contains(&probes), "{probes}");
    }

    #[tokio::test]
    async fn channels_are_bounded_and_reused() {
        let nodes = nodes(2);
        for port in 1..=5 {
            let node = nodes.at(&format!("127.0.0.1:{port}")).unwrap();
            nodes.stub(&node);
            nodes.stub(&node);
            assert!(Arc::ptr_eq(&node, &nodes.at(&node.address).unwrap()));
        }
        let open = |nodes: &Nodes| {
            nodes
                .by_address
                .read()
                .values()
                .filter(|node| node.state.lock().link.is_some())
                .count()
        };
        assert_eq!((open(&nodes), nodes.open.load(Ordering::Relaxed)), (2, 2));
        nodes.retain(|node| node.address.ends_with('5'));
        assert_eq!((open(&nodes), nodes.open.load(Ordering::Relaxed)), (1, 1));
    }
}
