//! The client's operations, and the loop that carries each of them to its end.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use dynamo_core::{ring::Ring, types::KeyHash};
use dynamo_proto::v1::{self, key_value_client::KeyValueClient};
use prost::Message as _;
use tokio::{
    sync::Notify,
    task::AbortHandle,
    time::{Instant, sleep_until, timeout},
};
use tonic::{Code, Request, Response, Status, transport::Channel};

use crate::{
    attempts::{Attempts, Verdict},
    background,
    config::{Builder, Settings},
    error::Error,
    nodes::Node,
    routing::Router,
    status::{Failed, Origin},
    types::{Context, Found, OpId, ReadOptions, WriteOptions, Written},
};

/// With less time left than this, no further attempt is begun.
const ATTEMPT_MIN: Duration = Duration::from_millis(5);
/// The bucket of requests that name none.
const BUCKET_DEFAULT: &str = "default";

/// A handle on a cluster; clones share their connections and the ring. Dropping the last one ends the background work.
///
/// Cancelling a returned future ends the waiting; a write may then have been applied or not.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    pub(crate) bucket: Arc<str>,
}

/// What clones of a client share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) settings: Settings,
    pub(crate) router: Router,
    wake: Arc<Notify>,
    tasks: OnceLock<Vec<AbortHandle>>,
}

/// What the loop needs to know of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operation {
    pub(crate) hash: Option<KeyHash>,
    pub(crate) write: bool,
    pub(crate) deadline: Duration,
}

/// Replies that tell the epoch of the ring they were served by; 0 if they do not.
pub(crate) trait Reply {
    fn ring_epoch(&self) -> u64;
}

impl Client {
    /// Begins a configuration.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(builder: Builder) -> Result<Self, Error> {
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
        let wake = Arc::new(Notify::new());
        let shared = Arc::new(Shared {
            settings,
            router,
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
        Ok(Self {
            shared,
            bucket: BUCKET_DEFAULT.into(),
        })
    }

    /// The same client for another bucket: 1..=63 characters of `[a-z0-9-]`.
    #[must_use]
    pub fn with_bucket(&self, bucket: &str) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            bucket: bucket.into(),
        }
    }

    /// The bucket that this handle reads and writes.
    pub fn bucket(&self) -> &str {
        &self.bucket
    }

    /// The ring in use; none before the first refresh or if the client is not ring-aware.
    pub fn ring(&self) -> Option<Arc<Ring>> {
        self.shared.router.ring()
    }

    /// Asks for the ring now. The background does so every 10 s and when a reply shows a newer one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] or [`Error::DeadlineExceeded`] if no node answers in time.
    pub async fn refresh_ring(&self) -> Result<(), Error> {
        self.shared.refresh().await
    }

    /// All causally unrelated values of a key. Paper: §4.4.
    ///
    /// # Errors
    /// [`Error::NotFound`] if no value is live, and the others as their names say.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Found, Error> {
        self.get_with(key, &ReadOptions::default()).await
    }

    /// As [`Client::get`], with choices.
    pub async fn get_with(&self, key: impl AsRef<[u8]>, options: &ReadOptions) -> Result<Found, Error> {
        let message = self.get_request(Bytes::copy_from_slice(key.as_ref()), options);
        let operation = self.operation(key.as_ref(), false, options.deadline);
        let reply = self.shared.call(operation, |mut stub, limit| {
            let request = with_timeout(message.clone(), limit);
            async move { stub.get(request).await }
        });
        Ok(Box::pin(reply).await?.into())
    }

    /// Writes a value that supersedes exactly the versions that the context covers; with [`Context::none`] it
    /// supersedes nothing and becomes a sibling of what is there.
    ///
    /// A retry repeats the same op id, so that the write counts once.
    ///
    /// # Errors
    /// Every error tells by [`Error::outcome`] what became of the write.
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        context: &Context,
    ) -> Result<Written, Error> {
        self.put_with(key, value, context, &WriteOptions::default()).await
    }

    /// As [`Client::put`], with choices.
    pub async fn put_with(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        context: &Context,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let operation = self.operation(key.as_ref(), true, options.deadline);
        let message = self.put_request(
            Bytes::copy_from_slice(key.as_ref()),
            value.into(),
            context,
            options,
        );
        self.check_size(message.encoded_len())?;
        let reply = self.shared.call(operation, |mut stub, limit| {
            let request = with_timeout(message.clone(), limit);
            async move { stub.put(request).await }
        });
        let reply = Box::pin(reply).await?;
        Ok(Written::new(reply.context, reply.outcome, reply.info))
    }

    /// Deletes exactly the versions that the context covers. A put that is concurrent with it stays.
    ///
    /// # Errors
    /// As [`Client::put`]; [`Error::InvalidArgument`] for an empty context.
    pub async fn delete(&self, key: impl AsRef<[u8]>, context: &Context) -> Result<Written, Error> {
        self.delete_with(key, Some(context), &WriteOptions::default())
            .await
    }

    /// As [`Client::delete`], with choices. Without a context the coordinator reads first and deletes what it read.
    pub async fn delete_with(
        &self,
        key: impl AsRef<[u8]>,
        context: Option<&Context>,
        options: &WriteOptions,
    ) -> Result<Written, Error> {
        let operation = self.operation(key.as_ref(), true, options.deadline);
        let message = v1::DeleteRequest {
            bucket: self.bucket.to_string(),
            key: Bytes::copy_from_slice(key.as_ref()),
            context: context
                .map(|context| context.as_bytes().clone())
                .unwrap_or_default(),
            force: context.is_none(),
            w: options.w.map(crate::Replicas::encode),
            pw: options.pw.map(crate::Replicas::encode),
            dw: options.dw.map(crate::Replicas::encode),
            op_id: op_id(options),
        };
        let reply = self.shared.call(operation, |mut stub, limit| {
            let request = with_timeout(message.clone(), limit);
            async move { stub.delete(request).await }
        });
        let reply = Box::pin(reply).await?;
        Ok(Written::new(reply.context, reply.outcome, reply.info))
    }

    /// Reads a key, lets `merge` make one value of all its siblings (none if the key is absent), and writes that back
    /// with the context of what was read. Paper: §4.4, semantic reconciliation.
    ///
    /// A write that happens meanwhile becomes a sibling of the result, for the next resolution.
    ///
    /// # Errors
    /// As [`Client::get`], except that an absent key is none, and [`Client::put`].
    pub async fn resolve<V: Into<Bytes>>(
        &self,
        key: impl AsRef<[u8]>,
        merge: impl FnOnce(Vec<Bytes>) -> V,
    ) -> Result<Written, Error> {
        let (siblings, context) = match self.get(key.as_ref()).await {
            Ok(found) => (
                found.versions.into_iter().map(|version| version.value).collect(),
                found.context,
            ),
            Err(Error::NotFound { context }) => (Vec::new(), context),
            Err(error) => return Err(error),
        };
        self.put(key.as_ref(), merge(siblings), &context).await
    }

    pub(crate) fn get_request(&self, key: Bytes, options: &ReadOptions) -> v1::GetRequest {
        v1::GetRequest {
            bucket: self.bucket.to_string(),
            key,
            r: options.r.map(crate::Replicas::encode),
            pr: options.pr.map(crate::Replicas::encode),
        }
    }

    pub(crate) fn put_request(
        &self,
        key: Bytes,
        value: Bytes,
        context: &Context,
        options: &WriteOptions,
    ) -> v1::PutRequest {
        v1::PutRequest {
            bucket: self.bucket.to_string(),
            key,
            value,
            context: context.as_bytes().clone(),
            w: options.w.map(crate::Replicas::encode),
            pw: options.pw.map(crate::Replicas::encode),
            dw: options.dw.map(crate::Replicas::encode),
            op_id: op_id(options),
        }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash::of(&self.bucket, key)
    }

    /// An encoder that refuses a message half-way looks like a broken connection: better to refuse it here.
    fn check_size(&self, bytes: usize) -> Result<(), Error> {
        let bytes_max = self.shared.settings.send_bytes_max;
        if bytes <= bytes_max {
            return Ok(());
        }
        let message = format!("the message has {bytes} bytes, more than the client sends ({bytes_max})");
        let mut attempts = Attempts::new(true);
        let failed = Failed::local(Origin::Node, Code::InvalidArgument, message);
        match attempts.failed(failed, "", 0.0) {
            Verdict::Fail(error) => Err(error),
            Verdict::Retry(_) => Err(attempts.error()),
        }
    }

    fn operation(&self, key: &[u8], write: bool, deadline: Option<Duration>) -> Operation {
        let deadline = deadline.unwrap_or(self.shared.settings.deadline);
        Operation {
            hash: Some(self.hash(key)),
            write,
            deadline,
        }
    }
}

impl Shared {
    /// Asks nodes until one answers or the deadline passes.
    pub(crate) async fn call<T, F>(
        &self,
        operation: Operation,
        mut send: impl FnMut(KeyValueClient<Channel>, Duration) -> F,
    ) -> Result<T, Error>
    where
        T: Reply,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let until = Instant::now() + operation.deadline;
        let usual = self.settings.attempt_timeout.min(operation.deadline);
        let mut attempts = Attempts::new(operation.write);
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left < ATTEMPT_MIN {
                return Err(attempts.error());
            }
            let node = self.router.pick(operation.hash, &attempts, rand::random());
            attempts.begin(node.id);
            let limit = left.min(usual);
            let stub = self.router.nodes.stub(&node);
            let failed = match self.attempt(&node, limit, usual, send(stub, limit)).await {
                Ok(reply) => {
                    self.notice(reply.ring_epoch());
                    return Ok(reply);
                }
                Err(failed) => failed,
            };
            match attempts.failed(failed, &node.address, rand::random()) {
                Verdict::Fail(error) => return Err(error),
                Verdict::Retry(pause) => sleep_until((Instant::now() + pause).min(until)).await,
            }
        }
    }

    /// One request to one node, and what its end says about the node.
    pub(crate) async fn attempt<T>(
        &self,
        node: &Node,
        limit: Duration,
        usual: Duration,
        request: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Failed> {
        let started = Instant::now();
        let failed = match timeout(limit, request).await {
            Ok(Ok(reply)) => {
                node.heard();
                return Ok(reply.into_inner());
            }
            Ok(Err(status)) => Failed::from_status(&status),
            Err(_) => Failed::timed_out(format!("no answer within {} ms", limit.as_millis())),
        };
        let nodes = &self.router.nodes;
        match failed.origin {
            Origin::Node if failed.reason == "NOT_READY" => nodes.failed(node, started, &failed.message),
            Origin::Node => node.heard(),
            // The rest of a deadline may be too short to blame the node.
            Origin::TimedOut if limit < usual / 2 => {}
            Origin::Connect | Origin::Transport | Origin::TimedOut => {
                nodes.failed(node, started, &failed.message);
            }
        }
        Err(failed)
    }

    /// Fetches the ring and takes it.
    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let operation = Operation {
            hash: None,
            write: false,
            deadline: self.settings.deadline,
        };
        let known_epoch = self.router.known_epoch();
        let reply = self.call(operation, |mut stub, limit| {
            let request = with_timeout(v1::GetRingRequest { known_epoch }, limit);
            async move { stub.get_ring(request).await }
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
            self.wake.notify_one();
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in self.tasks.get().into_iter().flatten() {
            task.abort();
        }
    }
}

/// The node learns the time that the client waits, as `grpc-timeout`, and should answer a little before it ends.
pub(crate) fn with_timeout<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

fn op_id(options: &WriteOptions) -> Bytes {
    let id: OpId = options.op_id.unwrap_or_else(rand::random);
    Bytes::copy_from_slice(&id)
}

impl Reply for v1::GetResponse {
    fn ring_epoch(&self) -> u64 {
        self.info.as_ref().map_or(0, |info| info.ring_epoch)
    }
}

impl Reply for v1::PutResponse {
    fn ring_epoch(&self) -> u64 {
        self.info.as_ref().map_or(0, |info| info.ring_epoch)
    }
}

impl Reply for v1::DeleteResponse {
    fn ring_epoch(&self) -> u64 {
        self.info.as_ref().map_or(0, |info| info.ring_epoch)
    }
}

impl Reply for v1::GetRingResponse {
    /// The reply itself brings the ring.
    fn ring_epoch(&self) -> u64 {
        0
    }
}
