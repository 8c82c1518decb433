//! Clients of servers that store nothing.

use std::sync::{
    Arc,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use futures::{FutureExt as _, future::BoxFuture};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

use crate::{
    proto::{Answer, Ask, Asks, echo_client::EchoClient},
    system::{Tally, Target},
};

/// What a get brings back.
const VALUE_BYTES: u32 = 1024;
/// Of a batch: what our nodes' calls to peers are bounded by, too.
const BATCH_OPERATIONS_MAX: usize = 64;
const BATCH_BYTES_MAX: usize = 64 << 10;
/// Batches under way on one stream. With more, HTTP/2's buffers do the waiting, and batches stay small.
const BATCHES_UNDER_WAY: usize = 2;
/// Operations that wait for their batch.
const QUEUE: usize = 1024;

struct Calls {
    channels: Vec<EchoClient<Channel>>,
    turn: AtomicUsize,
}

pub(crate) async fn connect_calls(addresses: &[String]) -> Result<Arc<dyn Target>> {
    let mut channels = Vec::new();
    for address in addresses {
        channels.push(channel(address).await?);
    }
    Ok(Arc::new(Calls {
        channels,
        turn: AtomicUsize::default(),
    }))
}

async fn channel(address: &str) -> Result<EchoClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    let channel = endpoint.connect().await;
    Ok(EchoClient::new(channel.with_context(|| {
        format!("cannot connect to serve-echo at {address}")
    })?))
}

fn ask_put(key: Bytes, value: Bytes) -> Ask {
    Ask {
        key,
        value,
        answer_bytes: 0,
    }
}

fn ask_get(key: Bytes) -> Ask {
    Ask {
        key,
        value: Bytes::new(),
        answer_bytes: VALUE_BYTES,
    }
}

impl Calls {
    async fn call(&self, ask: Ask) -> Result<Bytes> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut channel = self.channels[turn % self.channels.len()].clone();
        Ok(channel.call(ask).await?.into_inner().value)
    }
}

impl Target for Calls {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        async move { self.call(ask_put(key, value)).await.map(drop) }.boxed()
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        async move { self.call(ask_get(key)).await.map(Some) }.boxed()
    }
}

/// One stream a server, on which one task sends whatever has come meanwhile.
struct Batches {
    streams: Vec<mpsc::Sender<Waiting>>,
    turn: AtomicUsize,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    operations: AtomicU64,
    messages: AtomicU64,
}

struct Waiting {
    ask: Ask,
    answer: oneshot::Sender<Answer>,
}

/// Who waits for the answers of one message, and its place among those under way.
type Sent = (Vec<oneshot::Sender<Answer>>, OwnedSemaphorePermit);

pub(crate) async fn connect_batches(addresses: &[String]) -> Result<Arc<dyn Target>> {
    Ok(Arc::new(Batches::connect(addresses).await?))
}

impl Batches {
    async fn connect(addresses: &[String]) -> Result<Self> {
        let counts = Arc::<Counts>::default();
        let mut streams = Vec::new();
        for address in addresses {
            let mut channel = channel(address).await?;
            let (waiting, queue) = mpsc::channel(QUEUE);
            let (messages, outgoing) = mpsc::channel(BATCHES_UNDER_WAY);
            let (sent, unanswered) = mpsc::unbounded_channel();
            tokio::spawn(send(queue, messages, sent, Arc::clone(&counts)));
            let answers = channel.batches(ReceiverStream::new(outgoing)).await;
            let answers = answers.with_context(|| format!("cannot open a stream to {address}"))?;
            tokio::spawn(receive(answers.into_inner(), unanswered));
            streams.push(waiting);
        }
        Ok(Self {
            streams,
            turn: AtomicUsize::default(),
            counts,
        })
    }

    async fn call(&self, ask: Ask) -> Result<Bytes> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        let stream = &self.streams[turn % self.streams.len()];
        let ended = "the stream has ended";
        stream.send(Waiting { ask, answer }).await.ok().context(ended)?;
        Ok(answered.await.context(ended)?.value)
    }
}

impl Target for Batches {
    fn put(&self, key: Bytes, value: Bytes) -> BoxFuture<'_, Result<()>> {
        async move { self.call(ask_put(key, value)).await.map(drop) }.boxed()
    }

    fn get(&self, key: Bytes) -> BoxFuture<'_, Result<Option<Bytes>>> {
        async move { self.call(ask_get(key)).await.map(Some) }.boxed()
    }

    fn batches(&self) -> Option<Tally> {
        Some(Tally {
            parts: self.counts.operations.load(Ordering::Relaxed),
            wholes: self.counts.messages.load(Ordering::Relaxed),
        })
    }
}

async fn send(
    mut queue: mpsc::Receiver<Waiting>,
    messages: mpsc::Sender<Asks>,
    sent: mpsc::UnboundedSender<Sent>,
    counts: Arc<Counts>,
) {
    let under_way = Arc::new(Semaphore::new(BATCHES_UNDER_WAY));
    // First a place, then what is there: the longer the wait, the larger the batch.
    while let Ok(place) = Arc::clone(&under_way).acquire_owned().await {
        let Some(first) = queue.recv().await else { return };
        let mut bytes = first.ask.value.len();
        let (mut asks, mut answers) = (vec![first.ask], vec![first.answer]);
        while asks.len() < BATCH_OPERATIONS_MAX && bytes < BATCH_BYTES_MAX {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.ask.value.len();
            asks.push(next.ask);
            answers.push(next.answer);
        }
        counts.operations.fetch_add(asks.len() as u64, Ordering::Relaxed);
        counts.messages.fetch_add(1, Ordering::Relaxed);
        if sent.send((answers, place)).is_err() || messages.send(Asks { asks }).await.is_err() {
            return;
        }
    }
}

/// Answers come in the order of their messages.
async fn receive(
    mut answers: tonic::Streaming<crate::proto::Answers>,
    mut unanswered: mpsc::UnboundedReceiver<Sent>,
) {
    while let Ok(Some(message)) = answers.message().await {
        let Some((waiting, place)) = unanswered.recv().await else {
            return;
        };
        drop(place);
        for (waiting, answer) in waiting.into_iter().zip(message.answers) {
            // Who has gone meanwhile is not told.
            let _ = waiting.send(answer);
        }
    }
}
