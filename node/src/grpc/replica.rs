//! What peers' requests ask of this replica. One stream serves one peer: its requests arrive many in a message, run at the same
//! time, and the answers that are there leave together.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use dynamo_core::{types::MemberId, version::KeyState};
use dynamo_proto::peer::{
    ReadRequest, ReadResponse, Refusal, ReplicaRequest, ReplicaRequests, ReplicaResponse, ReplicaResponses,
    WriteRequest, WriteResponse, replica_request::Request as Asked, replica_response::Response as Answer,
};
use futures::{Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use prost::Message as _;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::{Status, Streaming};

use super::{
    convert, gate,
    status::{Failure, Reason},
};
use crate::{
    node::{Digest, Node, Unless},
    peers::lane::{MESSAGE_BYTES_MAX, MESSAGE_REQUESTS_MAX},
    storage::hints::HintError,
};

/// Requests of one peer that run at a time; no more are read before some are answered,
const RUNNING_MAX: usize = 1024;
/// nor if they have so many bytes.
const RUNNING_BYTES_MAX: usize = 4 << 20;

/// The answers to one peer's requests.
pub(crate) struct Serving {
    node: Arc<Node>,
    arriving: Streaming<ReplicaRequests>,
    /// The peer sends no more, or this node stops.
    ended: bool,
    stops: Pin<Box<WaitForCancellationFutureOwned>>,
    running: FuturesUnordered<BoxFuture<'static, Done>>,
    running_bytes: usize,
}

struct Done {
    /// Of the request.
    bytes: usize,
    /// None: it is to be lost.
    response: Option<ReplicaResponse>,
}

impl Serving {
    pub(super) fn new(node: Arc<Node>, arriving: Streaming<ReplicaRequests>) -> Self {
        Self {
            stops: Box::pin(node.stops().cancelled_owned()),
            node,
            arriving,
            ended: false,
            running: FuturesUnordered::new(),
            running_bytes: 0,
        }
    }

    /// Begins what has arrived.
    fn take_in(&mut self, context: &mut Context<'_>) {
        if !self.ended && self.stops.as_mut().poll(context).is_ready() {
            self.ended = true;
        }
        while !self.ended && self.running.len() < RUNNING_MAX && self.running_bytes < RUNNING_BYTES_MAX {
            match self.arriving.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(message))) => self.begin(message),
                Poll::Ready(Some(Err(_)) | None) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }

    fn begin(&mut self, message: ReplicaRequests) {
        self.node
            .peers()
            .traffic()
            .requests_received
            .message(message.requests.len());
        let header = message.header.as_ref();
        let early = gate::is_early(&self.node, header);
        let served = gate::data(&self.node, header);
        let sender: Arc<str> = header.map_or("", |header| header.member_id.as_str()).into();
        for request in message.requests {
            let bytes = request.encoded_len();
            // It is going to be one of the key's primaries.
            let early =
                early && matches!(&request.request, Some(Asked::Write(write)) if write.hint_for.is_empty());
            let served = if early { Ok(()) } else { served.clone() };
            let (node, sender) = (Arc::clone(&self.node), Arc::clone(&sender));
            self.running_bytes += bytes;
            self.running.push(Box::pin(async move {
                let response = serve(&node, &sender, served, request).await;
                Done { bytes, response }
            }));
        }
    }
}

impl Stream for Serving {
    type Item = Result<ReplicaResponses, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        this.take_in(context);
        let (mut responses, mut bytes) = (Vec::new(), 0);
        while responses.len() < MESSAGE_REQUESTS_MAX && bytes < MESSAGE_BYTES_MAX {
            match this.running.poll_next_unpin(context) {
                Poll::Ready(Some(done)) => {
                    this.running_bytes -= done.bytes;
                    bytes += done.response.as_ref().map_or(0, ReplicaResponse::encoded_len);
                    responses.extend(done.response);
                }
                Poll::Ready(None) if responses.is_empty() && this.ended => return Poll::Ready(None),
                _ => break,
            }
        }
        if !responses.is_empty() {
            let message = ReplicaResponses { responses };
            let (entries, bytes) = (message.responses.len(), message.encoded_len());
            this.node
                .peers()
                .traffic()
                .answers_sent
                .message_of(entries, bytes);
            return Poll::Ready(Some(Ok(message)));
        }
        Poll::Pending
    }
}

async fn serve(
    node: &Arc<Node>,
    sender: &str,
    served: Result<(), Failure>,
    request: ReplicaRequest,
) -> Option<ReplicaResponse> {
    if node.faults().loses_arrival(sender) {
        return None;
    }
    let answer = match (served, request.request) {
        (Err(failure), _) => Err(failure),
        (Ok(()), Some(Asked::Read(asked))) => read(node, &asked).await.map(Answer::Read),
        (Ok(()), Some(Asked::Write(asked))) => write(node, asked).await.map(Answer::Write),
        (Ok(()), None) => Err(Failure::invalid("a request to a replica must ask something")),
    };
    if node.faults().loses_reply(sender) {
        return None;
    }
    Some(ReplicaResponse {
        id: request.id,
        response: Some(answer.unwrap_or_else(|failure| {
            Answer::Refusal(Refusal {
                reason: failure.reason.name().to_owned(),
                message: failure.message,
            })
        })),
    })
}

async fn read(node: &Arc<Node>, request: &ReadRequest) -> Result<ReadResponse, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    if !request.fallback && !node.placed()?.is_primary(&key) {
        // It may have handed over what it held.
        let message = format!(
            "this node is no primary of the key with hash {} any more",
            key.hash()
        );
        return Err(Failure::new(Reason::StaleRing, message));
    }
    let known = request.known.map(Digest);
    let read = node.read_unless(&key, known).await.map_err(|error| {
        let message = format!("key with hash {}: {error}", key.hash());
        Failure::new(Reason::CorruptRecord, message)
    })?;
    Ok(match read {
        Unless::Same { suspect } => ReadResponse {
            state: None,
            suspect,
            same: true,
        },
        Unless::Other(read) => ReadResponse {
            state: read.state.map(|state| state.encode()),
            suspect: read.suspect,
            same: false,
        },
    })
}

/// Merges a write, or keeps it as a hint. A hint for this node, or for a key of which it is a primary, is its own.
async fn write(node: &Arc<Node>, request: WriteRequest) -> Result<WriteResponse, Failure> {
    let key = convert::record_key(&request.bucket, &request.key)?;
    let state = KeyState::decode(request.state).map_err(|error| {
        Failure::invalid(format!("the state of the key with hash {}: {error}", key.hash()))
    })?;
    let primary = node.ring_in_use().is_none_or(|placed| placed.is_primary(&key));
    let committed = if request.hint_for.is_empty() || primary {
        let doubtful = node.is_doubtful().then(|| state.clone());
        let committed = node.writer().merge(&key, state, request.sync).await?;
        match doubtful {
            Some(state) => node.keep_for_itself(&key, state, committed).await?,
            None => committed,
        }
    } else {
        let owner = MemberId::new(request.hint_for).map_err(|error| Failure::invalid(error.to_string()))?;
        let owner = node.hint_owner(owner);
        let kept = node.hints().hint(&owner, &key, state, request.sync).await;
        kept.map_err(HintError::into_write)?
    };
    Ok(WriteResponse {
        durable: committed.durable,
    })
}
