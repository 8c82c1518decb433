//! Redis: every write with a WAIT of its own, on a connection of its own meanwhile; or, as cheap as can be, writes that wait at the
//! same time as one pipeline with one WAIT.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use redis::{AsyncConnectionConfig, Client, RedisResult, aio::MultiplexedConnection};
use tokio::sync::{mpsc, oneshot};

use crate::system::{RedisWait, Target};

/// Connections of writes that share a WAIT. It holds up what follows it on its connection, so a second one is written to meanwhile.
const WRITERS: usize = 2;
/// Connections of reads, apart since a WAIT would hold them up.
const READERS: usize = 2;
/// Writes that may share a WAIT, and that may wait for their turn.
const BATCH: usize = 256;
/// How long replicas may take.
const WAIT_MS: u16 = 1000;
/// Longer than WAIT, which is the longest of all.
const RESPONSE: Duration = Duration::from_secs(10);

struct Put {
    key: Bytes,
    value: Bytes,
    done: oneshot::Sender<Result<(), String>>,
}

/// How writes are done.
enum Writers {
    Each(Pool),
    Shared(Vec<mpsc::Sender<Put>>),
}

/// A connection for each write under way: WAIT holds up what follows it on its connection.
struct Pool {
    primary: String,
    acknowledgements: u16,
    idle: Mutex<Vec<MultiplexedConnection>>,
}

struct Redis {
    writers: Writers,
    readers: Vec<MultiplexedConnection>,
    turn: AtomicUsize,
}

pub(crate) async fn connect(
    primary: String,
    acknowledgements: u16,
    wait: RedisWait,
) -> Result<Arc<dyn Target>> {
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(connection(&primary).await?);
    }
    let writers = match wait {
        RedisWait::Each => Writers::Each(Pool {
            primary,
            acknowledgements,
            idle: Mutex::default(),
        }),
        RedisWait::Shared => Writers::Shared(shared(&primary, acknowledgements).await?),
    };
    Ok(Arc::new(Redis {
        writers,
        readers,
        turn: AtomicUsize::new(0),
    }))
}

async fn shared(primary: &str, acknowledgements: u16) -> Result<Vec<mpsc::Sender<Put>>> {
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let (sender, puts) = mpsc::channel(BATCH);
        tokio::spawn(write(connection(primary).await?, puts, acknowledgements));
        writers.push(sender);
    }
    Ok(writers)
}

/// How many replicas have all that the primary has, and follow it.
pub(crate) async fn followers(primary: &str) -> Result<usize> {
    let mut connection = connection(primary).await?;
    let info: String = redis::cmd("INFO")
        .arg("replication")
        .query_async(&mut connection)
        .await?;
    Ok(info.matches("state=online").count())
}

async fn connection(primary: &str) -> Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(RESPONSE));
    Client::open(primary)?
        .get_multiplexed_async_connection_with_config(&config)
        .await
        .with_context(|| format!("connect to {primary}"))
}

/// Writes what is there, without waiting for more, until nobody can ask any more.
async fn write(mut connection: MultiplexedConnection, mut puts: mpsc::Receiver<Put>, acknowledgements: u16) {
    let mut batch = Vec::with_capacity(BATCH);
    while puts.recv_many(&mut batch, BATCH).await > 0 {
        let pairs = batch.iter().map(|put| (&put.key, &put.value));
        let result = write_all(&mut connection, pairs, acknowledgements).await;
        for put in batch.drain(..) {
            // Whoever asked may have gone.
            let _ = put.done.send(result.clone());
        }
    }
}

/// In one pipeline, with one WAIT at its end.
async fn write_all(
    connection: &mut MultiplexedConnection,
    pairs: impl Iterator<Item = (&Bytes, &Bytes)>,
    acknowledgements: u16,
) -> Result<(), String> {
    let mut pipeline = redis::pipe();
    for (key, value) in pairs {
        pipeline.cmd("SET").arg(&**key).arg(&**value).ignore();
    }
    if acknowledgements > 0 {
        pipeline.cmd("WAIT").arg(acknowledgements).arg(WAIT_MS);
    }
    let answers: RedisResult<Vec<u16>> = pipeline.query_async(connection).await;
    let answers = answers.map_err(|error| format!("Redis refused a write: {error}"))?;
    match answers.first() {
        Some(&found) if found < acknowledgements => Err(format!(
            "{found} replicas instead of {acknowledgements} have a write after {WAIT_MS} ms"
        )),
        _ => Ok(()),
    }
}

impl Pool {
    async fn put(&self, key: &Bytes, value: &Bytes) -> Result<()> {
        let idle = self.idle.lock().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => connection(&self.primary).await?,
        };
        let written = write_all(
            &mut connection,
            std::iter::once((key, value)),
            self.acknowledgements,
        );
        let result = written.await.map_err(anyhow::Error::msg);
        // One that failed may be of no more use.
        if result.is_ok() {
            self.idle.lock().push(connection);
        }
        result
    }
}

impl Redis {
    fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }
}

impl Target for Redis {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let writers = match &self.writers {
                Writers::Each(pool) => return pool.put(&key, &value).await,
                Writers::Shared(writers) => writers,
            };
            let (done, answer) = oneshot::channel();
            let writer = &writers[self.turn() % WRITERS];
            writer
                .send(Put { key, value, done })
                .await
                .map_err(|_| anyhow!("the connection's task has ended"))?;
            answer
                .await
                .context("the connection's task has ended")?
                .map_err(anyhow::Error::msg)
        })
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        Box::pin(async move {
            let mut connection = self.readers[self.turn() % READERS].clone();
            let value: Option<Vec<u8>> = redis::cmd("GET").arg(&*key).query_async(&mut connection).await?;
            Ok(value.map(Bytes::from))
        })
    }
}
