//! Who serves.

use std::{
    collections::VecDeque,
    fmt,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use futures::{Stream, StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::task::AbortHandle;
use tonic::Status;

use crate::{MESSAGE_BYTES_MAX, MESSAGE_ITEMS_MAX, Protocol, Traffic};

/// What carries out requests.
pub trait Serves: Send + 'static {
    /// What it is asked in.
    type Protocol: Protocol;

    /// Begins all requests of a message.
    fn begin(
        &self,
        message: <Self::Protocol as Protocol>::Requests,
    ) -> Vec<Begun<<Self::Protocol as Protocol>::Response>>;
}

/// A request that is carried out.
pub struct Begun<R> {
    /// Of the request.
    pub bytes: usize,
    /// None: there is to be no answer.
    pub answer: BoxFuture<'static, Option<R>>,
}

impl<R> Future for Begun<R> {
    type Output = (usize, Option<R>);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let bytes = self.bytes;
        self.answer.as_mut().poll(context).map(|answer| (bytes, answer))
    }
}

impl<R> fmt::Debug for Begun<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Begun")
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

/// Beyond any of these, no more requests of a stream are read before some are answered, and the answers taken.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Requests that run or whose answers wait to be sent.
    pub requests: usize,
    /// Bytes of requests that run, and of answers that wait.
    pub bytes: usize,
}

/// Carries out what arrives on one stream until it ends, or `stops` is ready: then what has been read is still answered. Requests
/// go on also while nobody takes answers, so that they end by their deadlines.
pub fn serve<S: Serves>(
    service: S,
    arriving: impl Stream<Item = Result<<S::Protocol as Protocol>::Requests, Status>> + Send + Unpin + 'static,
    stops: impl Future<Output = ()> + Send + 'static,
    bounds: Bounds,
    traffic: Arc<Traffic>,
) -> Serving<S::Protocol> {
    let done = Arc::new(Mutex::new(Done {
        responses: VecDeque::new(),
        bytes: 0,
        ended: false,
        taken: None,
        waker: None,
    }));
    let mut work = Work {
        service,
        arriving,
        ended: false,
        stops: Box::pin(stops),
        bounds,
        running: FuturesUnordered::new(),
        bytes: 0,
        done: Arc::clone(&done),
        traffic: Arc::clone(&traffic),
    };
    let work = tokio::spawn(async move { poll_fn(|context| work.poll(context)).await });
    Serving {
        done,
        work: work.abort_handle(),
        traffic,
    }
}

/// The answers. Dropped, as when the connection is gone, all that runs is dropped as well.
pub struct Serving<P: Protocol> {
    done: Arc<Mutex<Done<P>>>,
    work: AbortHandle,
    traffic: Arc<Traffic>,
}

/// Answers that wait to be sent.
struct Done<P: Protocol> {
    responses: VecDeque<(usize, P::Response)>,
    bytes: usize,
    /// No more will come.
    ended: bool,
    /// Of the work, once it waits for answers to be taken.
    taken: Option<Waker>,
    /// Of whoever takes them.
    waker: Option<Waker>,
}

struct Work<S: Serves, A> {
    service: S,
    arriving: A,
    /// The other end sends no more, or the service stops.
    ended: bool,
    stops: Pin<Box<dyn Future<Output = ()> + Send>>,
    bounds: Bounds,
    running: FuturesUnordered<Begun<<S::Protocol as Protocol>::Response>>,
    /// Of what runs.
    bytes: usize,
    done: Arc<Mutex<Done<S::Protocol>>>,
    traffic: Arc<Traffic>,
}

impl<S, A> Work<S, A>
where
    S: Serves,
    A: Stream<Item = Result<<S::Protocol as Protocol>::Requests, Status>> + Unpin,
{
    /// Ready when all is answered and nothing more comes.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            self.take_in(context);
            let idle = self.carry_on(context);
            // Whoever is answered makes room for others.
            if idle || self.ended || !self.has_room(context) {
                break;
            }
        }
        let mut done = self.done.lock();
        done.ended = self.ended && self.running.is_empty();
        if done.ended || !done.responses.is_empty() {
            done.wake();
        }
        if done.ended {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }

    fn has_room(&self, context: &Context<'_>) -> bool {
        let mut done = self.done.lock();
        let room = self.running.len() + done.responses.len() < self.bounds.requests
            && self.bytes + done.bytes < self.bounds.bytes;
        if !room {
            done.taken = Some(context.waker().clone());
        }
        room
    }

    /// Begins what has arrived.
    fn take_in(&mut self, context: &mut Context<'_>) {
        if !self.ended && self.stops.as_mut().poll(context).is_ready() {
            self.ended = true;
        }
        while !self.ended && self.has_room(context) {
            match self.arriving.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(message))) => {
                    let received = &self.traffic.requests_received;
                    received.message(S::Protocol::count(&message));
                    for begun in self.service.begin(message) {
                        self.bytes += begun.bytes;
                        self.running.push(begun);
                    }
                }
                Poll::Ready(Some(Err(_)) | None) => self.ended = true,
                Poll::Pending => return,
            }
        }
    }

    /// Lets all go on that can. True if no request ended.
    fn carry_on(&mut self, context: &mut Context<'_>) -> bool {
        let mut idle = true;
        while let Poll::Ready(Some((bytes, response))) = self.running.poll_next_unpin(context) {
            idle = false;
            self.bytes -= bytes;
            if let Some(response) = response {
                let bytes = response.encoded_len();
                let mut done = self.done.lock();
                done.bytes += bytes;
                done.responses.push_back((bytes, response));
            }
        }
        idle
    }
}

impl<P: Protocol> Done<P> {
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The next message: as many as wait and fit.
    fn message(&mut self, traffic: &Traffic) -> Option<P::Responses> {
        let (mut bytes, first) = self.responses.pop_front()?;
        let mut responses = vec![first];
        while responses.len() < MESSAGE_ITEMS_MAX
            && let Some((more, response)) = self
                .responses
                .pop_front_if(|(more, _)| bytes + *more <= MESSAGE_BYTES_MAX)
        {
            bytes += more;
            responses.push(response);
        }
        self.bytes -= bytes;
        if let Some(work) = self.taken.take() {
            work.wake();
        }
        let entries = responses.len();
        let message = P::join(responses);
        traffic.answers_sent.message_of(entries, message.encoded_len());
        Some(message)
    }
}

impl<P: Protocol> Stream for Serving<P> {
    type Item = Result<P::Responses, Status>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut done = self.done.lock();
        if let Some(message) = done.message(&self.traffic) {
            return Poll::Ready(Some(Ok(message)));
        }
        if done.ended {
            return Poll::Ready(None);
        }
        done.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl<P: Protocol> Drop for Serving<P> {
    fn drop(&mut self) {
        self.work.abort();
    }
}

impl<P: Protocol> fmt::Debug for Serving<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = self.done.lock();
        f.debug_struct("Serving")
            .field("answers_waiting", &done.responses.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
