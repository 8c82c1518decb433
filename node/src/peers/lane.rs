//! What requests ask of a peer's replicas: one long stream, on which as many requests leave in a message as wait for it, and
//! are answered in any order.
//!
//! ```text
//!   request() ─▶ waiting ──(the connection is free: up to 64 of them, or 64 KiB)──▶ sent ─▶ answered
//!                   └──────────────── the stream breaks: not sent                    └─────▶ the stream breaks: perhaps done
//! ```
//!
//! Nothing waits for a timer, so a single request leaves at once. The price of a message is then shared by all that came
//! while the one before it was written.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use dynamo_core::coordinator::FailureKind;
use dynamo_proto::peer::{
    Header, ReplicaRequest, ReplicaRequests, ReplicaResponse, ReplicaResponses, peer_client::PeerClient,
    replica_request::Request as Asked, replica_response::Response as Answer,
};
use futures::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::{Status, transport::Channel};

use super::{CallError, classify, refused};
use crate::telemetry::traffic::Traffic;

/// Requests of one message.
pub(crate) const MESSAGE_REQUESTS_MAX: usize = 64;
/// Bytes of one message; a single request may be larger.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Requests that may wait to be sent; further ones are refused at once.
const WAITING_MAX: usize = 4096;
/// Their bytes; one alone may have more.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// The stream to one peer, opened when it is needed. Dropped, it ends.
pub(super) struct Lane {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared(Mutex<State>, Arc<Traffic>);

#[derive(Default)]
struct State {
    next_id: u64,
    waiting: VecDeque<Waiting>,
    waiting_bytes: usize,
    sent: HashMap<u64, Sender>,
    /// A task carries the stream.
    carried: bool,
    /// Streams that are gone: what is left of one sends nothing any more.
    broken: u64,
    /// No more requests will come.
    closed: bool,
    /// Of whoever sends what waits.
    waker: Option<Waker>,
}

type Sender = oneshot::Sender<Result<Answer, CallError>>;

struct Waiting {
    header: Header,
    request: ReplicaRequest,
    bytes: usize,
    answer: Sender,
}

impl Lane {
    pub(super) fn new(traffic: Arc<Traffic>) -> Self {
        Self {
            shared: Arc::new(Shared(Mutex::default(), traffic)),
        }
    }

    /// Sends a request and waits for its answer. Who no longer waits drops the future: what has not left by then never will.
    pub(super) async fn request(
        &self,
        client: &PeerClient<Channel>,
        header: Header,
        request: Asked,
    ) -> Result<Answer, CallError> {
        let (answer, answered) = oneshot::channel();
        let id = {
            let mut state = self.shared.0.lock();
            let id = state.push(header, request, answer)?;
            if !std::mem::replace(&mut state.carried, true) {
                tokio::spawn(carry(client.clone(), Arc::clone(&self.shared)));
            }
            id
        };
        let _waits = Waits {
            shared: &self.shared,
            id,
        };
        answered.await.unwrap_or_else(|_| Err(broken(true, &ended())))
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let mut state = self.shared.0.lock();
        state.closed = true;
        state.wake();
    }
}

/// Forgets a request that nobody waits for any more.
struct Waits<'a> {
    shared: &'a Shared,
    id: u64,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.shared.0.lock().forget(self.id);
    }
}

impl State {
    fn push(&mut self, header: Header, request: Asked, answer: Sender) -> Result<u64, CallError> {
        let id = self.next_id;
        let request = ReplicaRequest {
            id,
            request: Some(request),
        };
        let bytes = request.encoded_len();
        let full = self.waiting.len() >= WAITING_MAX
            || (!self.waiting.is_empty() && self.waiting_bytes + bytes > WAITING_BYTES_MAX);
        if full {
            return Err(CallError {
                sent: false,
                kind: FailureKind::Overloaded,
                answered: false,
                status: Status::resource_exhausted("too many requests wait to be sent to this peer"),
            });
        }
        self.next_id += 1;
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting {
            header,
            request,
            bytes,
            answer,
        });
        self.wake();
        Ok(id)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn forget(&mut self, id: u64) {
        if self.sent.remove(&id).is_none()
            && let Some(index) = self.waiting.iter().position(|waiting| waiting.request.id == id)
            && let Some(waiting) = self.waiting.remove(index)
        {
            self.waiting_bytes -= waiting.bytes;
        }
    }

    /// The next message: as many as wait, go by the same rings, and fit.
    fn message(&mut self) -> Option<ReplicaRequests> {
        let first = self.waiting.pop_front()?;
        let (header, mut bytes) = (first.header, first.bytes);
        let mut requests = vec![first.request];
        self.waiting_bytes -= first.bytes;
        self.sent.insert(requests[0].id, first.answer);
        while requests.len() < MESSAGE_REQUESTS_MAX
            && let Some(next) = self
                .waiting
                .pop_front_if(|next| bytes + next.bytes <= MESSAGE_BYTES_MAX && next.header == header)
        {
            bytes += next.bytes;
            self.waiting_bytes -= next.bytes;
            self.sent.insert(next.request.id, next.answer);
            requests.push(next.request);
        }
        Some(ReplicaRequests {
            header: Some(header),
            requests,
        })
    }

    fn answered(&mut self, response: ReplicaResponse) {
        let Some(waiter) = self.sent.remove(&response.id) else {
            return;
        };
        let answer = match response.response {
            Some(Answer::Refusal(refusal)) => Err(refused(&refusal)),
            Some(answer) => Ok(answer),
            None => Err(broken(true, &Status::internal("the peer's answer is empty"))),
        };
        // Who no longer waits does not listen.
        let _ = waiter.send(answer);
    }

    /// The stream is gone: what was sent may have been done.
    fn broke(&mut self, status: &Status) {
        self.carried = false;
        self.broken += 1;
        self.wake();
        self.waiting_bytes = 0;
        for waiting in std::mem::take(&mut self.waiting) {
            let _ = waiting.answer.send(Err(broken(false, status)));
        }
        for waiter in std::mem::take(&mut self.sent).into_values() {
            let _ = waiter.send(Err(broken(true, status)));
        }
    }
}

/// Opens the stream, and hands out what comes back until it ends.
async fn carry(mut client: PeerClient<Channel>, shared: Arc<Shared>) {
    let status = match client.serve(Leaving::new(Arc::clone(&shared))).await {
        Ok(response) => {
            let mut answers = response.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(ReplicaResponses { responses })) => {
                        shared.1.answers_received.message(responses.len());
                        let mut state = shared.0.lock();
                        for response in responses {
                            state.answered(response);
                        }
                    }
                    Ok(None) => break ended(),
                    Err(status) => break status,
                }
            }
        }
        Err(status) => status,
    };
    shared.0.lock().broke(&status);
}

fn ended() -> Status {
    Status::unavailable("the peer has ended the connection")
}

fn broken(sent: bool, status: &Status) -> CallError {
    classify(status.clone(), sent)
}

/// What leaves: pulled by the connection whenever it can write.
struct Leaving {
    shared: Arc<Shared>,
    /// Streams that had broken before this one.
    stream: u64,
    /// Others that are ready to run have had their turn, and added what they want to send.
    yielded: bool,
}

impl Leaving {
    fn new(shared: Arc<Shared>) -> Self {
        let stream = shared.0.lock().broken;
        Self {
            stream,
            shared,
            yielded: false,
        }
    }
}

impl Stream for Leaving {
    type Item = ReplicaRequests;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ReplicaRequests>> {
        let yielded = std::mem::replace(&mut self.yielded, false);
        let mut state = self.shared.0.lock();
        if state.closed || state.broken != self.stream {
            return Poll::Ready(None);
        }
        if state.waiting.is_empty() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        if !yielded && state.waiting.len() < MESSAGE_REQUESTS_MAX {
            drop(state);
            self.yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let message = state.message();
        drop(state);
        if let Some(message) = &message {
            let (entries, bytes) = (message.requests.len(), message.encoded_len());
            self.shared.1.requests_sent.message_of(entries, bytes);
        }
        Poll::Ready(message)
    }
}

#[cfg(test)]
mod tests;
