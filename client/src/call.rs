//! The loop that carries an operation to its end, and what clones of a client share.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use dynamo_core::types::{KeyHash, MemberId};
use dynamo_proto::v1;
use futures::{StreamExt as _, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, Semaphore},
    task::AbortHandle,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tonic::Code;

use crate::{
    attempts::{Attempts, Verdict},
    background,
    config::{Builder, Settings},
    error::Error,
    hedge::{Budget, HEDGES_SAVED_MAX, Stopwatch},
    memory::Memory,
    nodes::Node,
    routing::Router,
    status::{Failed, Origin},
    stub::{Stub, with_timeout},
    types::{OpId, WriteOptions},
};

/// With less time left than this, no further attempt is begun.
pub(crate) const ATTEMPT_MIN: Duration = Duration::from_millis(5);

/// Requests that overloaded nodes have refused are made again for so many of a hundred operations: where all nodes are
/// overloaded, more would only add to it.
const RETRIES_PERCENT: u32 = 20;
/// Of these, so many can be saved up, for a node that is overloaded for a moment.
const RETRIES_SAVED_MAX: u32 = 100;

/// Bytes of large writes that a client sends at a time. More would share the wire until none of them ends within its attempt.
const UPLOAD_BYTES: u32 = 16 << 20;
/// Writes of fewer bytes do not count.
const SMALL_BYTES: u32 = 64 << 10;

/// What clones of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) router: Router,
    pub(crate) memory: Memory,
    hedges: Budget,
    retries: Budget,
    upload: Semaphore,
    wake: Arc<Notify>,
    tasks: OnceLock<Vec<AbortHandle>>,
}

/// What the loop needs to know of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) hash: Option<KeyHash>,
    pub(crate) write: bool,
    /// That a put sends; 0 for everything else.
    pub(crate) bytes: usize,
    pub(crate) deadline: Duration,
}

impl Operation {
    /// Reads of one key may be hedged: they change nothing, and any node of the key's can answer them.
    fn is_read_of_key(self) -> bool {
        !self.write && self.hash.is_some()
    }
}

/// Replies that may tell how they were served.
pub(crate) trait Reply {
    fn info(&self) -> Option<&v1::ResponseInfo>;

    /// Of the ring that it was served by; 0 if the reply does not tell.
    fn ring_epoch(&self) -> u64 {
        self.info().map_or(0, |info| info.ring_epoch)
    }
}

impl Shared {
    /// Sets up what clones share and starts the background work.
    pub(crate) fn start(builder: Builder) -> Result<Arc<Self>, Error> {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return Err(Error::Configuration(
                "a client needs a running tokio runtime".to_owned(),
            ));
        };
        let Builder {
            endpoints,
            zone,
            settings,
        } = builder;
        let router = Router::new(settings.clone(), &endpoints, zone)?;
        let hedges = Budget::new(settings.hedge_percent, HEDGES_SAVED_MAX);
        let retries = Budget::new(RETRIES_PERCENT, RETRIES_SAVED_MAX).full();
        let wake = Arc::new(Notify::new());
        let shared = Arc::new(Self {
            settings,
            router,
            memory: Memory::default(),
            hedges,
            retries,
            upload: Semaphore::new(UPLOAD_BYTES as usize),
            wake,
            tasks: OnceLock::new(),
        });
        let settings = &shared.settings;
        let weak = Arc::downgrade(&shared);
        let mut tasks = vec![
            runtime
                .spawn(background::probe(weak.clone(), settings.probe_interval))
                .abort_handle(),
        ];
        if settings.ring_aware {
            let wake = Arc::clone(&shared.wake);
            let refresh = background::refresh(weak, settings.ring_refresh_interval, wake);
            tasks.push(runtime.spawn(refresh).abort_handle());
        }
        let _ = shared.tasks.set(tasks);
        Ok(shared)
    }

    /// Asks nodes until one answers or the deadline passes.
    pub(crate) async fn call<T, F>(
        &self,
        operation: Operation,
        mut send: impl FnMut(Stub, Duration) -> F,
    ) -> Result<T, Error>
    where
        T: Reply,
        F: Future<Output = Result<T, Failed>>,
    {
        let until = Instant::now() + operation.deadline;
        let mut attempts = Attempts::new(operation.write);
        self.earn_retry();
        if operation.is_read_of_key() {
            self.hedges.earn();
        }
        let bytes = u32::try_from(operation.bytes).map_or(UPLOAD_BYTES, |bytes| bytes.min(UPLOAD_BYTES));
        let bytes = if bytes < SMALL_BYTES { 0 } else { bytes };
        // If there is no room before the deadline, the loop says so.
        let _room = timeout_at(until, self.upload.acquire_many(bytes)).await;
        loop {
            if until.saturating_duration_since(Instant::now()) < ATTEMPT_MIN {
                return Err(attempts.error());
            }
            match self.round(operation, until, &mut attempts, &mut send).await {
                Ok(reply) => {
                    self.notice(reply.ring_epoch());
                    return Ok(reply);
                }
                Err(Verdict::Fail(error)) => return Err(error),
                Err(Verdict::Retry(pause)) => sleep_until((Instant::now() + pause).min(until)).await,
            }
        }
    }

    /// Asks the best node, and for a read that takes it unusually long another one as well: the first reply, or the last
    /// failure's verdict.
    async fn round<T, F>(
        &self,
        operation: Operation,
        until: Instant,
        attempts: &mut Attempts,
        send: &mut impl FnMut(Stub, Duration) -> F,
    ) -> Result<T, Verdict>
    where
        F: Future<Output = Result<T, Failed>>,
    {
        let usual = self.settings.attempt_timeout.min(operation.deadline);
        let mut next = self.pick(operation, attempts);
        let mut hedge_at = operation
            .is_read_of_key()
            .then(|| next.latencies.hedge_after())
            .flatten()
            .map(|after| Instant::now() + after);
        let mut running = FuturesUnordered::new();
        loop {
            let limit = until.saturating_duration_since(Instant::now()).min(usual);
            attempts.begin(next.id);
            let request = send(self.router.nodes.stub(&next), limit);
            running.push(self.timed(operation, next, limit, usual, request));
            next = loop {
                tokio::select! {
                    Some((node, result)) = running.next() => match result {
                        Ok(reply) => return Ok(reply),
                        Err(failed) => match self.judge(attempts, failed, &node) {
                            // The other one may still answer.
                            Verdict::Retry(_) if !running.is_empty() => {}
                            verdict => return Err(verdict),
                        },
                    },
                    () = sleep_until(hedge_at.unwrap_or(until)), if hedge_at.is_some() => {
                        hedge_at = None;
                        if let Some(second) = self.second(operation, attempts, until) {
                            break second;
                        }
                    }
                }
            };
        }
    }

    /// An operation is begun, which may one day pay for another one's retry.
    pub(crate) fn earn_retry(&self) {
        self.retries.earn();
    }

    /// What to do after a failure.
    pub(crate) fn judge(&self, attempts: &mut Attempts, failed: Failed, node: &Node) -> Verdict {
        let overloaded = failed.reason == "OVERLOADED";
        match attempts.failed(failed, &node.address, rand::random()) {
            Verdict::Retry(_) if overloaded && !self.retries.spend() => Verdict::Fail(attempts.error()),
            verdict => verdict,
        }
    }

    fn pick(&self, operation: Operation, attempts: &Attempts) -> Arc<Node> {
        let preferred = self.preferred(operation);
        self.router
            .pick(operation.hash, preferred.as_ref(), attempts, rand::random())
    }

    /// Another node for a read that waits, if there is one, time enough, and something left of the budget.
    fn second(&self, operation: Operation, attempts: &Attempts, until: Instant) -> Option<Arc<Node>> {
        let node = self.pick(operation, attempts);
        let fresh = !node.is_aside() && attempts.asked(node.id) == 0;
        let left = until.saturating_duration_since(Instant::now());
        (fresh && left >= ATTEMPT_MIN && self.hedges.spend()).then(|| {
            self.memory.hedged();
            node
        })
    }

    /// One attempt, with the node that it was made at; of a read, it is noted how long it took.
    async fn timed<T>(
        &self,
        operation: Operation,
        node: Arc<Node>,
        limit: Duration,
        usual: Duration,
        request: impl Future<Output = Result<T, Failed>>,
    ) -> (Arc<Node>, Result<T, Failed>) {
        let watch = operation
            .is_read_of_key()
            .then(|| Stopwatch::start(&node).at_most_usual());
        let result = self.attempt(&node, limit, usual, request).await;
        match (&result, watch) {
            (Err(failed), Some(watch))
                if failed.origin != Origin::TimedOut && failed.code != Code::NotFound =>
            {
                watch.forget();
            }
            (_, Some(watch)) => watch.stop(),
            (_, None) => {}
        }
        (node, result)
    }

    /// One request to one node, and what its end says about the node.
    pub(crate) async fn attempt<T>(
        &self,
        node: &Node,
        limit: Duration,
        usual: Duration,
        request: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let started = Instant::now();
        let failed = match timeout(limit, request).await {
            Ok(Ok(reply)) => {
                node.heard();
                return Ok(reply);
            }
            Ok(Err(failed)) => failed,
            Err(_) => Failed::timed_out(format!("no answer within {} ms", limit.as_millis())),
        };
        let nodes = &self.router.nodes;
        match failed.origin {
            Origin::Node if failed.is_no_member() => nodes.failed(node, started, &failed.message),
            Origin::Node => node.heard(),
            // The rest of a deadline may be too short to blame the node.
            Origin::TimedOut if limit < usual / 2 => {}
            Origin::Connect | Origin::Transport | Origin::TimedOut => {
                nodes.failed(node, started, &failed.message);
            }
        }
        Err(failed)
    }

    /// A write goes to the node that answered the key's last read first. Paper: §5.
    fn preferred(&self, operation: Operation) -> Option<MemberId> {
        let hash = operation.hash.filter(|_| operation.write)?;
        self.memory.fastest(hash)
    }

    /// Notes that a node served a write.
    pub(crate) fn wrote(&self, operation: Operation, info: Option<&v1::ResponseInfo>) {
        self.memory.served(info);
        if let Some(fastest) = self.preferred(operation) {
            let at_fastest = info.is_some_and(|info| info.coordinator == fastest.as_str());
            self.memory.wrote_after_read(at_fastest);
        }
    }

    /// Notes that a node served a read.
    pub(crate) fn read(&self, hash: KeyHash, info: Option<&v1::ResponseInfo>) {
        self.memory.served(info);
        let fastest = info.and_then(|info| MemberId::new(info.fastest.clone()).ok());
        if let Some(fastest) = fastest {
            self.memory.answered_first(hash, fastest);
        }
    }

    /// Fetches the ring and takes it.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let operation = Operation {
            hash: None,
            write: false,
            bytes: 0,
            deadline: self.settings.deadline,
        };
        self.memory.forget_refusals();
        let known_epoch = self.router.known_epoch();
        let reply = self.call(operation, |mut stub, limit| {
            let request = with_timeout(v1::GetRingRequest { known_epoch }, limit);
            async move { Ok(stub.calls.get_ring(request).await?.into_inner()) }
        });
        let reply: v1::GetRingResponse = Box::pin(reply).await?;
        if let Some(ring) = reply.ring
            && self.settings.ring_aware
            && let Err(error) = self.router.adopt(ring)
        {
            tracing::warn!(%error, "ring is not taken");
        }
        Ok(())
    }

    /// A reply shows a ring: a newer one is fetched in the background.
    pub(crate) fn notice(&self, epoch: u64) {
        if self.settings.ring_aware && epoch > self.router.epoch() {
            self.refresh_soon();
        }
    }

    /// Has the ring fetched in the background.
    pub(crate) fn refresh_soon(&self) {
        self.wake.notify_one();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.tasks.get().into_iter().flatten() {
            task.abort();
        }
    }
}

/// The operation's own id, or a random one; its retries repeat it.
pub(crate) fn op_id(options: &WriteOptions) -> Bytes {
    let id: OpId = options.op_id.unwrap_or_else(rand::random);
    Bytes::copy_from_slice(&id)
}

impl Reply for v1::GetResponse {
    fn info(&self) -> Option<&v1::ResponseInfo> {
        self.info.as_ref()
    }
}

impl Reply for v1::PutResponse {
    fn info(&self) -> Option<&v1::ResponseInfo> {
        self.info.as_ref()
    }
}

impl Reply for v1::DeleteResponse {
    fn info(&self) -> Option<&v1::ResponseInfo> {
        self.info.as_ref()
    }
}

impl Reply for v1::UpdateResponse {
    fn info(&self) -> Option<&v1::ResponseInfo> {
        self.info.as_ref()
    }
}

impl Reply for v1::ReplicaGetResponse {
    fn info(&self) -> Option<&v1::ResponseInfo> {
        None
    }

    fn ring_epoch(&self) -> u64 {
        self.ring_epoch
    }
}

impl Reply for v1::GetRingResponse {
    /// The reply itself brings the ring.
    fn info(&self) -> Option<&v1::ResponseInfo> {
        None
    }
}
