//! Who asks.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::Stream;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::{Response, Status, Streaming};

use crate::{MESSAGE_BYTES_MAX, MESSAGE_ITEMS_MAX, Protocol, Traffic};

/// Requests that may wait to be sent; further ones are refused at once.
const WAITING_MAX: usize = 4096;
/// Their bytes; one alone may have more.
const WAITING_BYTES_MAX: usize = 64 << 20;

/// A stream of requests, opened when it is needed, and again when it has broken. Dropped, it ends.
pub struct Lane<P: Protocol> {
    shared: Arc<Shared<P>>,
}

/// Why there is no answer.
#[derive(Debug, Clone)]
pub enum Lost {
    /// Too many requests wait to be sent.
    Full,
    /// The stream broke before the request was sent, and why.
    Unsent(Status),
    /// It broke later: the request may have been carried out.
    Sent(Status),
}

struct Shared<P: Protocol> {
    state: Mutex<State<P>>,
    traffic: Arc<Traffic>,
}

struct State<P: Protocol> {
    next_id: u64,
    waiting: VecDeque<Waiting<P>>,
    waiting_bytes: usize,
    sent: HashMap<u64, Sender<P>>,
    /// A task carries the stream.
    carried: bool,
    /// Streams that are gone: what is left of one sends nothing any more.
    broken: u64,
    /// No more requests will come.
    closed: bool,
    /// Of whoever sends what waits.
    waker: Option<Waker>,
}

type Sender<P> = oneshot::Sender<Result<<P as Protocol>::Response, Lost>>;

struct Waiting<P: Protocol> {
    id: u64,
    group: P::Group,
    request: P::Request,
    bytes: usize,
    answer: Sender<P>,
}

impl<P: Protocol> Lane<P> {
    /// Nothing is opened yet; `traffic` counts what will go over it.
    pub fn new(traffic: Arc<Traffic>) -> Self {
        let state = Mutex::new(State::new());
        Self {
            shared: Arc::new(Shared { state, traffic }),
        }
    }

    /// Sends a request and waits for its answer. Who no longer waits drops the future: what has not left by then never will.
    /// `open` opens the stream, if there is none.
    ///
    /// # Errors
    /// See [`Lost`].
    pub async fn request<F>(
        &self,
        group: P::Group,
        asked: P::Asked,
        open: impl FnOnce(Leaving<P>) -> F,
    ) -> Result<P::Response, Lost>
    where
        F: Future<Output = Result<Response<Streaming<P::Responses>>, Status>> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let (id, carried) = {
            let mut state = self.shared.state.lock();
            let id = state.push(group, asked, answer)?;
            (id, std::mem::replace(&mut state.carried, true))
        };
        if !carried {
            let opened = open(Leaving::new(Arc::clone(&self.shared)));
            tokio::spawn(carry(opened, Arc::clone(&self.shared)));
        }
        let _waits = Waits {
            shared: &self.shared,
            id,
        };
        answered.await.unwrap_or_else(|_| Err(Lost::Sent(ended())))
    }
}

impl<P: Protocol> Drop for Lane<P> {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        state.wake();
    }
}

impl<P: Protocol> fmt::Debug for Lane<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("Lane")
            .field("waiting", &state.waiting.len())
            .field("sent", &state.sent.len())
            .finish_non_exhaustive()
    }
}

/// Forgets a request that nobody waits for any more.
struct Waits<'a, P: Protocol> {
    shared: &'a Shared<P>,
    id: u64,
}

impl<P: Protocol> Drop for Waits<'_, P> {
    fn drop(&mut self) {
        self.shared.state.lock().forget(self.id);
    }
}

impl<P: Protocol> State<P> {
    fn new() -> Self {
        Self {
            next_id: 0,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            sent: HashMap::new(),
            carried: false,
            broken: 0,
            closed: false,
            waker: None,
        }
    }

    fn push(&mut self, group: P::Group, asked: P::Asked, answer: Sender<P>) -> Result<u64, Lost> {
        let id = self.next_id;
        let request = P::request(id, asked);
        let bytes = request.encoded_len();
        let full = self.waiting.len() >= WAITING_MAX
            || (!self.waiting.is_empty() && self.waiting_bytes + bytes > WAITING_BYTES_MAX);
        if full {
            return Err(Lost::Full);
        }
        self.next_id += 1;
        self.waiting_bytes += bytes;
        self.waiting.push_back(Waiting {
            id,
            group,
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
            && let Some(index) = self.waiting.iter().position(|waiting| waiting.id == id)
            && let Some(waiting) = self.waiting.remove(index)
        {
            self.waiting_bytes -= waiting.bytes;
        }
    }

    /// The next message: as many as wait, belong together, and fit.
    fn message(&mut self) -> Option<P::Requests> {
        let first = self.waiting.pop_front()?;
        let (group, mut bytes) = (first.group, first.bytes);
        let mut requests = vec![first.request];
        self.waiting_bytes -= first.bytes;
        self.sent.insert(first.id, first.answer);
        while requests.len() < MESSAGE_ITEMS_MAX
            && let Some(next) = self
                .waiting
                .pop_front_if(|next| bytes + next.bytes <= MESSAGE_BYTES_MAX && next.group == group)
        {
            bytes += next.bytes;
            self.waiting_bytes -= next.bytes;
            self.sent.insert(next.id, next.answer);
            requests.push(next.request);
        }
        Some(P::requests(group, requests))
    }

    fn answered(&mut self, response: P::Response) {
        if let Some(waiter) = self.sent.remove(&P::id(&response)) {
            // Who no longer waits does not listen.
            let _ = waiter.send(Ok(response));
        }
    }

    /// The stream is gone: what was sent may have been done.
    fn broke(&mut self, status: &Status) {
        self.carried = false;
        self.broken += 1;
        self.wake();
        self.waiting_bytes = 0;
        for waiting in std::mem::take(&mut self.waiting) {
            let _ = waiting.answer.send(Err(Lost::Unsent(status.clone())));
        }
        for waiter in std::mem::take(&mut self.sent).into_values() {
            let _ = waiter.send(Err(Lost::Sent(status.clone())));
        }
    }
}

/// Hands out what comes back until the stream ends.
async fn carry<P: Protocol>(
    opened: impl Future<Output = Result<Response<Streaming<P::Responses>>, Status>>,
    shared: Arc<Shared<P>>,
) {
    let status = match opened.await {
        Ok(response) => {
            let mut answers = response.into_inner();
            loop {
                match answers.message().await {
                    Ok(Some(responses)) => {
                        let responses = P::split(responses);
                        shared.traffic.answers_received.message(responses.len());
                        let mut state = shared.state.lock();
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
    shared.state.lock().broke(&status);
}

fn ended() -> Status {
    Status::unavailable("the node has ended the stream")
}

/// What leaves: pulled by the connection whenever it can write.
pub struct Leaving<P: Protocol> {
    shared: Arc<Shared<P>>,
    /// Streams that had broken before this one.
    stream: u64,
    /// Others that are ready to run have had their turn, and added what they want to send.
    yielded: bool,
}

impl<P: Protocol> Leaving<P> {
    fn new(shared: Arc<Shared<P>>) -> Self {
        let stream = shared.state.lock().broken;
        Self {
            stream,
            shared,
            yielded: false,
        }
    }
}

impl<P: Protocol> fmt::Debug for Leaving<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaving")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl<P: Protocol> Stream for Leaving<P> {
    type Item = P::Requests;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<P::Requests>> {
        let yielded = std::mem::replace(&mut self.yielded, false);
        let mut state = self.shared.state.lock();
        if state.closed || state.broken != self.stream {
            return Poll::Ready(None);
        }
        if state.waiting.is_empty() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        if !yielded && state.waiting.len() < MESSAGE_ITEMS_MAX {
            drop(state);
            self.yielded = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let message = state.message();
        drop(state);
        if let Some(message) = &message {
            let sent = &self.shared.traffic.requests_sent;
            sent.message_of(P::count(message), message.encoded_len());
        }
        Poll::Ready(message)
    }
}

#[cfg(test)]
mod tests;
