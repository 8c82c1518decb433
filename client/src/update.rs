//! Operations on values of data types: increments, additions and removals that commute, so that none is ever lost and
//! nobody has to resolve siblings. Paper: §4.4.

use bytes::Bytes;
use dynamo_proto::v1::{self, update_request::Operation as Wire};
use prost::Message as _;

use crate::{
    call::{Reply as _, op_id},
    client::Client,
    error::Error,
    types::{Context, WriteOptions, Written},
};

/// An update of one key, begun by [`Client::update`]: choices first, then one operation, which sends it.
///
/// Every update carries an op id that its retries repeat, so that it counts once. To repeat one whose outcome was
/// unknown, give it the same [`WriteOptions::op_id`] again.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent before an operation such as `increment` is awaited"]
pub struct Update {
    client: Client,
    key: Bytes,
    context: Context,
    options: WriteOptions,
}

/// Operations on several fields of a map; together they are one update.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct MapUpdate {
    fields: Vec<v1::FieldUpdate>,
}

impl Client {
    /// Begins an update of a key in a bucket of a data type.
    ///
    /// ```no_run
    /// # async fn demo(client: dynamo_client::Client) -> Result<(), dynamo_client::Error> {
    /// client.update("likes", "page:1").increment(2).await?;
    /// client.update("tags", "page:1").add(["new", "hot"]).await?;
    /// let likes = client.with_bucket("likes").get("page:1").await?;
    /// let likes = likes.typed.and_then(|value| value.counter());
    /// # Ok(()) }
    /// ```
    pub fn update(&self, bucket: &str, key: impl AsRef<[u8]>) -> Update {
        Update {
            client: self.with_bucket(bucket),
            key: Bytes::copy_from_slice(key.as_ref()),
            context: Context::none(),
            options: WriteOptions::default(),
        }
    }
}

impl Update {
    /// From a get or update of the key: removals take away what it covers, and need it.
    pub fn context(mut self, context: &Context) -> Self {
        self.context = context.clone();
        self
    }

    /// Quorum, deadline and op id; the time to live is the bucket's.
    pub fn options(mut self, options: WriteOptions) -> Self {
        self.options = options;
        self
    }

    /// Counter: adds `by`, which may be negative.
    ///
    /// # Errors
    /// As [`Client::put`], for this and the other operations; [`Error::InvalidArgument`] if the bucket has another type.
    pub async fn increment(self, by: i64) -> Result<Written, Error> {
        self.send(Wire::Increment(by)).await
    }

    /// Set: adds members.
    ///
    /// # Errors
    /// As [`Update::increment`].
    pub async fn add<B: AsRef<[u8]>>(self, members: impl IntoIterator<Item = B>) -> Result<Written, Error> {
        let none: [&[u8]; 0] = [];
        self.set(members, none).await
    }

    /// Set: removes members, as far as the context covers them.
    ///
    /// # Errors
    /// As [`Update::increment`]; [`Error::InvalidArgument`] without a context.
    pub async fn remove<B: AsRef<[u8]>>(
        self,
        members: impl IntoIterator<Item = B>,
    ) -> Result<Written, Error> {
        let none: [&[u8]; 0] = [];
        self.set(none, members).await
    }

    /// Set: adds and removes in one update.
    ///
    /// # Errors
    /// As [`Update::remove`].
    pub async fn set<A: AsRef<[u8]>, R: AsRef<[u8]>>(
        self,
        add: impl IntoIterator<Item = A>,
        remove: impl IntoIterator<Item = R>,
    ) -> Result<Written, Error> {
        let update = set_update(add, remove);
        self.send(Wire::Set(update)).await
    }

    /// Flag: enables it, which wins over a concurrent [`Update::disable`].
    ///
    /// # Errors
    /// As [`Update::increment`].
    pub async fn enable(self) -> Result<Written, Error> {
        self.send(Wire::Flag(true)).await
    }

    /// Flag: disables it, as far as the context covers what enabled it.
    ///
    /// # Errors
    /// As [`Update::remove`].
    pub async fn disable(self) -> Result<Written, Error> {
        self.send(Wire::Flag(false)).await
    }

    /// Register: writes it. Of concurrent writes the last one by the coordinators' clocks stays.
    ///
    /// # Errors
    /// As [`Update::increment`].
    pub async fn register(self, value: impl Into<Bytes>) -> Result<Written, Error> {
        self.send(Wire::Register(value.into())).await
    }

    /// Map: all these operations in one update.
    ///
    /// # Errors
    /// As [`Update::increment`].
    pub async fn map(self, update: MapUpdate) -> Result<Written, Error> {
        self.send(Wire::Map(v1::MapUpdate {
            fields: update.fields,
        }))
        .await
    }

    async fn send(self, wire: Wire) -> Result<Written, Error> {
        let options = &self.options;
        let message = v1::UpdateRequest {
            bucket: self.client.bucket().to_owned(),
            key: self.key.clone(),
            operation: Some(wire),
            context: self.context.as_bytes().clone(),
            op_id: op_id(options),
            w: options.w.map(crate::Replicas::encode),
            pw: options.pw.map(crate::Replicas::encode),
            dw: options.dw.map(crate::Replicas::encode),
            zones: options.zones.map(crate::Replicas::encode),
        };
        self.client.check_size(message.encoded_len())?;
        let operation = self.client.operation(&self.key, true, options.deadline);
        let reply = self
            .client
            .shared
            .call(operation, |stub, limit| stub.update(message.clone(), limit));
        let reply: v1::UpdateResponse = Box::pin(reply).await?;
        self.client.shared.wrote(operation, reply.info());
        Ok(Written::new(reply.context, reply.outcome, reply.info))
    }
}

impl MapUpdate {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `by` to a counter field.
    #[must_use]
    pub fn increment(self, field: impl Into<Bytes>, by: i64) -> Self {
        self.with(field, v1::field_update::Operation::Increment(by))
    }

    /// Adds to and removes from a set field. Removals need a context.
    #[must_use]
    pub fn set<A: AsRef<[u8]>, R: AsRef<[u8]>>(
        self,
        field: impl Into<Bytes>,
        add: impl IntoIterator<Item = A>,
        remove: impl IntoIterator<Item = R>,
    ) -> Self {
        self.with(field, v1::field_update::Operation::Set(set_update(add, remove)))
    }

    /// Enables or disables a flag field.
    #[must_use]
    pub fn flag(self, field: impl Into<Bytes>, enabled: bool) -> Self {
        self.with(field, v1::field_update::Operation::Flag(enabled))
    }

    /// Writes a register field.
    #[must_use]
    pub fn register(self, field: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.with(field, v1::field_update::Operation::Register(value.into()))
    }

    /// Takes a field away, as far as the context covers it.
    #[must_use]
    pub fn remove(self, field: impl Into<Bytes>) -> Self {
        self.with(field, v1::field_update::Operation::Remove(true))
    }

    fn with(mut self, field: impl Into<Bytes>, operation: v1::field_update::Operation) -> Self {
        self.fields.push(v1::FieldUpdate {
            name: field.into(),
            operation: Some(operation),
        });
        self
    }
}

fn set_update<A: AsRef<[u8]>, R: AsRef<[u8]>>(
    add: impl IntoIterator<Item = A>,
    remove: impl IntoIterator<Item = R>,
) -> v1::SetUpdate {
    v1::SetUpdate {
        add: add
            .into_iter()
            .map(|member| Bytes::copy_from_slice(member.as_ref()))
            .collect(),
        remove: remove
            .into_iter()
            .map(|member| Bytes::copy_from_slice(member.as_ref()))
            .collect(),
    }
}
