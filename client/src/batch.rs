//! Many keys in one call: grouped by the node that is best for each, and retried key by key.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_core::types::KeyHash;
use dynamo_proto::v1;
use futures::{StreamExt as _, stream};
use prost::Message;
use tokio::time::{Instant, sleep_until};
use tonic::Code;

use crate::{
    attempts::{Attempts, Verdict},
    call::{Reply as _, Shared},
    client::Client,
    error::Error,
    nodes::Node,
    status::{Failed, Origin},
    stub::{Stub, with_timeout},
    types::{Context, Found, OpId, ReadOptions, WriteOptions, Written},
};

/// Keys in one message, as the protocol says.
const MESSAGE_KEYS_MAX: usize = 100;
/// Bytes in one message of several keys, so that it stays far below any node's limit.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Messages in flight of one call.
const MESSAGES_IN_FLIGHT_MAX: usize = 16;

/// One put of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PutEntry {
    /// 1..=4096 bytes.
    pub key: Bytes,
    /// Up to 1 MiB unless the cluster allows more.
    pub value: Bytes,
    /// What it supersedes.
    pub context: Context,
    /// Instead of a random one: entries of one key with equal ids count once.
    pub op_id: Option<OpId>,
}

impl PutEntry {
    /// A blind put.
    pub fn new(key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
            context: Context::none(),
            op_id: None,
        }
    }
}

impl Client {
    /// Gets many keys within one deadline. The results are in the order of the keys; each key fails alone.
    pub async fn batch_get<K: AsRef<[u8]>>(
        &self,
        keys: impl IntoIterator<Item = K>,
        options: &ReadOptions,
    ) -> Vec<Result<Found, Error>> {
        let items = keys.into_iter().map(|key| {
            let request = self.get_request(Bytes::copy_from_slice(key.as_ref()), options);
            Item::new(request, self.hash(key.as_ref()), false)
        });
        let items = items.collect();
        let deadline = options.deadline.unwrap_or(self.shared.settings.deadline);
        Box::pin(run(&self.shared, items, deadline)).await
    }

    /// Puts many keys within one deadline. The results are in the order of the entries; each fails alone, never all or
    /// nothing. Each entry has its own op id, so [`WriteOptions::op_id`] is not used.
    pub async fn batch_put(
        &self,
        entries: impl IntoIterator<Item = PutEntry>,
        options: &WriteOptions,
    ) -> Vec<Result<Written, Error>> {
        let items = entries.into_iter().map(|entry| {
            let hash = self.hash(&entry.key);
            let options = WriteOptions {
                op_id: entry.op_id,
                ..*options
            };
            Item::new(
                self.put_request(entry.key, entry.value, &entry.context, &options),
                hash,
                true,
            )
        });
        let items = items.collect();
        let deadline = options.deadline.unwrap_or(self.shared.settings.deadline);
        Box::pin(run(&self.shared, items, deadline)).await
    }
}

/// A request that can be sent in batches.
trait Batched: Message + Clone + Sized {
    /// What a single call returns.
    type Output;

    /// Sends them all in one message.
    fn send(
        stub: Stub,
        requests: Vec<Self>,
        limit: Duration,
    ) -> impl Future<Output = Result<Answers<Self::Output>, Failed>> + Send;
}

/// The answers in the order of the requests, and the newest ring epoch among them.
struct Answers<T> {
    answers: Vec<Result<T, Failed>>,
    ring_epoch: u64,
}

/// One key on its way.
struct Item<R: Batched> {
    request: R,
    hash: KeyHash,
    attempts: Attempts,
    /// Its batch was too large to answer.
    alone: bool,
    result: Option<Result<R::Output, Error>>,
}

/// Items of one message to one node.
struct Chunk {
    node: Arc<Node>,
    items: Vec<usize>,
    bytes: usize,
}

impl<R: Batched> Item<R> {
    fn new(request: R, hash: KeyHash, write: bool) -> Self {
        Self {
            request,
            hash,
            attempts: Attempts::new(write),
            alone: false,
            result: None,
        }
    }
}

/// Sends in rounds: each one asks for what has no result yet.
async fn run<R: Batched>(
    shared: &Shared,
    mut items: Vec<Item<R>>,
    deadline: Duration,
) -> Vec<Result<R::Output, Error>> {
    let until = Instant::now() + deadline;
    for _ in &items {
        shared.earn_retry();
    }
    // A message of many keys takes longer than one key.
    let usual = (shared.settings.attempt_timeout * 2).min(deadline);
    loop {
        let limit = until.saturating_duration_since(Instant::now()).min(usual);
        if limit.is_zero() || items.iter().all(|item| item.result.is_some()) {
            break;
        }
        let chunks = chunks(shared, &mut items);
        let calls = chunks.into_iter().map(|chunk| {
            let requests = chunk
                .items
                .iter()
                .map(|index| items[*index].request.clone())
                .collect();
            let stub = shared.router.nodes.stub(&chunk.node);
            async move {
                let request = R::send(stub, requests, limit);
                let answer = shared.attempt(&chunk.node, limit, usual, request).await;
                (chunk, answer)
            }
        });
        let calls: Vec<_> = calls.collect();
        let answers: Vec<_> = stream::iter(calls)
            .buffer_unordered(MESSAGES_IN_FLIGHT_MAX)
            .collect()
            .await;
        let mut pause = None;
        for (chunk, answer) in answers {
            pause = pause.max(absorb(shared, &mut items, &chunk, answer));
        }
        if let Some(pause) = pause {
            sleep_until((Instant::now() + pause).min(until)).await;
        }
    }
    let results = items
        .into_iter()
        .map(|item| item.result.unwrap_or_else(|| Err(item.attempts.error())));
    results.collect()
}

/// Groups what is pending by the node that is best for it now.
fn chunks<R: Batched>(shared: &Shared, items: &mut [Item<R>]) -> Vec<Chunk> {
    let mut full = Vec::new();
    let mut open: BTreeMap<usize, Chunk> = BTreeMap::new();
    let random = rand::random();
    for (index, item) in items
        .iter_mut()
        .enumerate()
        .filter(|(_, item)| item.result.is_none())
    {
        let node = shared.router.pick(Some(item.hash), None, &item.attempts, random);
        item.attempts.begin(node.id);
        let bytes = item.request.encoded_len();
        if item.alone {
            full.push(Chunk {
                node,
                items: vec![index],
                bytes,
            });
            continue;
        }
        let chunk = open.entry(node.id).or_insert_with(|| Chunk {
            node: Arc::clone(&node),
            items: Vec::new(),
            bytes: 0,
        });
        let fits = chunk.items.len() < MESSAGE_KEYS_MAX && chunk.bytes + bytes <= MESSAGE_BYTES_MAX;
        if !fits && !chunk.items.is_empty() {
            let next = Chunk {
                node,
                items: Vec::new(),
                bytes: 0,
            };
            full.push(std::mem::replace(chunk, next));
        }
        chunk.items.push(index);
        chunk.bytes += bytes;
    }
    full.extend(open.into_values());
    full
}

/// Takes the answers of one message; returns how long to wait if something has to be tried again.
fn absorb<R: Batched>(
    shared: &Shared,
    items: &mut [Item<R>],
    chunk: &Chunk,
    answer: Result<Answers<R::Output>, Failed>,
) -> Option<Duration> {
    let answers = match answer {
        Ok(answers) => {
            shared.notice(answers.ring_epoch);
            answers.answers
        }
        Err(failed) if chunk.items.len() > 1 && failed.code == Code::OutOfRange => {
            for index in &chunk.items {
                items[*index].alone = true;
            }
            return Some(Duration::ZERO);
        }
        Err(failed) => chunk.items.iter().map(|_| Err(failed.clone())).collect(),
    };
    let mut pause = None;
    let mut answers = answers.into_iter();
    for index in &chunk.items {
        let item = &mut items[*index];
        let answer = answers.next().unwrap_or_else(|| {
            let message = "the node's answer leaves this key out".to_owned();
            Err(Failed::local(Origin::Transport, Code::Internal, message))
        });
        match answer {
            Ok(output) => item.result = Some(Ok(output)),
            Err(failed) => match shared.judge(&mut item.attempts, failed, &chunk.node) {
                Verdict::Fail(error) => item.result = Some(Err(error)),
                Verdict::Retry(after) => pause = pause.max(Some(after)),
            },
        }
    }
    pause
}

fn unset() -> Failed {
    Failed::local(
        Origin::Transport,
        Code::Internal,
        "the node's answer for this key is empty".to_owned(),
    )
}

impl Batched for v1::GetRequest {
    type Output = Found;

    async fn send(mut stub: Stub, requests: Vec<Self>, limit: Duration) -> Result<Answers<Found>, Failed> {
        let request = with_timeout(v1::BatchGetRequest { requests }, limit);
        let reply = stub.calls.batch_get(request).await?.into_inner();
        let mut ring_epoch = 0;
        let answers = reply.results.into_iter().map(|result| match result.result {
            Some(v1::get_result::Result::Response(response)) => {
                ring_epoch = ring_epoch.max(response.ring_epoch());
                Ok(response.into())
            }
            Some(v1::get_result::Result::Error(error)) => Err(Failed::from_error(error)),
            None => Err(unset()),
        });
        Ok(Answers {
            answers: answers.collect(),
            ring_epoch,
        })
    }
}

impl Batched for v1::PutRequest {
    type Output = Written;

    async fn send(mut stub: Stub, requests: Vec<Self>, limit: Duration) -> Result<Answers<Written>, Failed> {
        let request = with_timeout(v1::BatchPutRequest { requests }, limit);
        let reply = stub.calls.batch_put(request).await?.into_inner();
        let mut ring_epoch = 0;
        let answers = reply.results.into_iter().map(|result| match result.result {
            Some(v1::put_result::Result::Response(response)) => {
                ring_epoch = ring_epoch.max(response.ring_epoch());
                Ok(Written::new(response.context, response.outcome, response.info))
            }
            Some(v1::put_result::Result::Error(error)) => Err(Failed::from_error(error)),
            None => Err(unset()),
        });
        Ok(Answers {
            answers: answers.collect(),
            ring_epoch,
        })
    }
}
