//! A client of our own nodes.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use bytes::Bytes;
use dynamo_client::{Builder, Client, Context, Coordination, Error, Found};
use futures::{FutureExt as _, future::BoxFuture};
use parking_lot::Mutex;

use crate::{
    servers::ours::BUCKET,
    system::{Conflict, Route, Shape, Tally, Target},
};

/// So many tasks can look up contexts at once.
const SHARDS: usize = 64;

/// For a request to a node that may not serve yet: the client tries again at growing intervals, which would be counted as the node's.
const AT_ONCE: Duration = Duration::from_millis(100);

struct Ours {
    client: Client,
    /// None where the last write wins.
    contexts: Option<Contexts>,
    reads: AtomicU64,
    values: AtomicU64,
}

pub(crate) async fn connect(endpoints: Vec<String>, shape: Shape) -> Result<Arc<dyn Target>> {
    let coordination = match shape.route {
        Route::Client => Coordination::Client,
        Route::Owner | Route::Random => Coordination::Server,
    };
    let builder = Client::builder()
        .endpoints(endpoints)
        .ring_aware(shape.route != Route::Random)
        .coordination(coordination);
    connected(builder, shape).await
}

/// Of one node, which may not serve yet.
pub(crate) async fn connect_to(endpoint: String, shape: Shape) -> Result<Arc<dyn Target>> {
    let builder = Client::builder()
        .endpoint(endpoint)
        .ring_aware(false)
        .deadline(AT_ONCE);
    connected(builder, shape).await
}

async fn connected(builder: Builder, shape: Shape) -> Result<Arc<dyn Target>> {
    let client = builder.connect().await?.with_bucket(BUCKET);
    Ok(Arc::new(Ours {
        client,
        contexts: (shape.conflict == Conflict::Siblings).then(Contexts::default),
        reads: AtomicU64::default(),
        values: AtomicU64::default(),
    }))
}

impl Ours {
    async fn read(&self, key: &Bytes) -> Result<Option<Found>> {
        let found = match self.client.get(key).await {
            Ok(found) => found,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.values
            .fetch_add(found.versions.len() as u64, Ordering::Relaxed);
        if let Some(contexts) = &self.contexts {
            contexts.put(key.clone(), found.context.clone());
        }
        Ok(Some(found))
    }

    async fn write(&self, key: Bytes, value: Bytes, context: &Context) -> Result<()> {
        let written = self.client.put(&key, value, context).await?;
        if let Some(contexts) = &self.contexts {
            contexts.put(key, written.context);
        }
        Ok(())
    }
}

impl Target for Ours {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        let context = self.contexts.as_ref().and_then(|contexts| contexts.get(&key));
        async move { self.write(key, value, &context.unwrap_or_default()).await }.boxed()
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        let found = async move {
            Ok(self
                .read(&key)
                .await?
                .and_then(|found| found.values().next().cloned()))
        };
        found.boxed()
    }

    fn read_modify_write(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        async move {
            let context = self.read(&key).await?.map(|found| found.context);
            self.write(key, value, &context.unwrap_or_default()).await
        }
        .boxed()
    }

    fn hedges(&self) -> Option<u64> {
        Some(self.client.stats().hedged)
    }

    fn siblings(&self) -> Option<Tally> {
        Some(Tally {
            parts: self.values.load(Ordering::Relaxed),
            wholes: self.reads.load(Ordering::Relaxed),
        })
    }
}

/// What this client knows of each key.
struct Contexts {
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<Bytes, Context>>>,
}

impl Default for Contexts {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Contexts {
    fn get(&self, key: &Bytes) -> Option<Context> {
        self.shard(key).lock().get(key).cloned()
    }

    fn put(&self, key: Bytes, context: Context) {
        self.shard(&key).lock().insert(key, context);
    }

    fn shard(&self, key: &Bytes) -> &Mutex<HashMap<Bytes, Context>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }
}
