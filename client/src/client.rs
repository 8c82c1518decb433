//! The client's operations on single keys.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_core::{ring::Ring, types::KeyHash};
use dynamo_proto::v1;
use prost::Message as _;
use tokio::time::Instant;
use tonic::Code;

use crate::{
    attempts::{Attempts, Verdict},
    call::{Operation, Reply as _, Shared, op_id},
    config::{Builder, Coordination},
    coordinate,
    error::Error,
    memory::Stats,
    status::{Failed, Origin},
    types::{Context, Found, ReadOptions, WriteOptions, Written},
};

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

impl Client {
    /// Begins a configuration.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(crate) fn new(builder: Builder) -> Result<Self, Error> {
        let shared = Shared::start(builder)?;
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

    /// What this client and its clones have done so far.
    pub fn stats(&self) -> Stats {
        self.shared.memory.stats()
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
        let mut operation = self.operation(key.as_ref(), false, options.deadline);
        if self.shared.settings.coordination == Coordination::Client {
            let until = Instant::now() + operation.deadline;
            let read = coordinate::get(&self.shared, &message, options, until);
            if let Some(result) = Box::pin(read).await {
                return result;
            }
            operation.deadline = until.saturating_duration_since(Instant::now());
        }
        let reply = self
            .shared
            .call(operation, |stub, limit| stub.get(message.clone(), limit));
        let reply = Box::pin(reply).await?;
        self.shared.read(self.hash(key.as_ref()), reply.info());
        Ok(reply.into())
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
        let mut operation = self.operation(key.as_ref(), true, options.deadline);
        let message = self.put_request(
            Bytes::copy_from_slice(key.as_ref()),
            value.into(),
            context,
            options,
        );
        operation.bytes = message.encoded_len();
        self.check_size(operation.bytes)?;
        let reply = self
            .shared
            .call(operation, |stub, limit| stub.put(message.clone(), limit));
        let reply = Box::pin(reply).await?;
        self.shared.wrote(operation, reply.info());
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
            zones: options.zones.map(crate::Replicas::encode),
            op_id: op_id(options),
        };
        let reply = self
            .shared
            .call(operation, |stub, limit| stub.delete(message.clone(), limit));
        let reply = Box::pin(reply).await?;
        self.shared.wrote(operation, reply.info());
        Ok(Written::new(reply.context, reply.outcome, reply.info))
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
            ttl_ms: options.ttl_ms(),
            zones: options.zones.map(crate::Replicas::encode),
        }
    }

    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash::of(&self.bucket, key)
    }

    /// An encoder that refuses a message half-way looks like a broken connection: better to refuse it here.
    pub(crate) fn check_size(&self, bytes: usize) -> Result<(), Error> {
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

    pub(crate) fn operation(&self, key: &[u8], write: bool, deadline: Option<Duration>) -> Operation {
        let deadline = deadline.unwrap_or(self.shared.settings.deadline);
        Operation {
            hash: Some(self.hash(key)),
            write,
            bytes: 0,
            deadline,
        }
    }
}
