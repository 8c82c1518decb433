//! How many bytes of requests are taken in at a time. Those beyond wait in the network: their senders feel it as a slow
//! connection, not as a refusal.
//!
//! ```text
//!   first frame: 5 bytes of gRPC say how long the message is ──▶ small: on it goes
//!                                                          └──▶ large: wait for so much room, held until the answer
//! ```

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures::future::BoxFuture;
use http_body::Frame;
use pin_project_lite::pin_project;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

/// Messages of fewer bytes do not count, so that large ones do not hold them up.
const SMALL_BYTES: u64 = 64 << 10;
/// A message that has room must be whole in so long: who sends a head and no more would keep it from others.
const ARRIVAL: Duration = Duration::from_secs(5);
/// Room is counted in KiB.
const UNIT: u64 = 1 << 10;

/// A service whose large requests share so much room.
#[derive(Clone)]
pub(crate) struct Inflow<S> {
    service: S,
    room: Arc<Room>,
}

struct Room {
    free: Arc<Semaphore>,
    most: u32,
    /// Longer messages are refused as soon as their head is read.
    message_bytes_max: u64,
    others: Others,
}

/// Methods with rules of their own.
#[derive(Clone, Copy)]
pub(crate) struct Others {
    /// Their requests do not count: they end only when others were served, or bound what they hold themselves.
    pub(crate) exempt: &'static [&'static str],
    /// Streams that bound what they hold if no message of theirs has more bytes: others end the stream.
    pub(crate) streams: &'static [(&'static str, usize)],
}

/// What a request holds until it is answered.
type Held = Arc<OnceLock<OwnedSemaphorePermit>>;

impl<S> Inflow<S> {
    /// So many bytes at a time; a message that is larger than all of it is taken in alone. `message_bytes_max` is the service's
    /// own limit.
    pub(crate) fn new(service: S, bytes_max: usize, message_bytes_max: usize, others: Others) -> Self {
        let most = u32::try_from(bytes_max as u64 / UNIT).unwrap_or(u32::MAX);
        let room = Room {
            free: Arc::new(Semaphore::new(most as usize)),
            most,
            message_bytes_max: message_bytes_max as u64,
            others,
        };
        Self {
            service,
            room: Arc::new(room),
        }
    }
}

impl<S: NamedService> NamedService for Inflow<S> {
    const NAME: &'static str = S::NAME;
}

impl<S: Service<http::Request<Body>>> Service<http::Request<Body>> for Inflow<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answered<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let held = Held::default();
        let (path, others) = (request.uri().path(), self.room.others);
        let stream = others.streams.iter().find(|(method, _)| *method == path);
        let request = if others.exempt.contains(&path) {
            request
        } else if let Some(&(_, message_bytes_max)) = stream {
            request.map(|body| {
                Body::new(Checked {
                    body,
                    heads: Heads::new(message_bytes_max),
                })
            })
        } else {
            request.map(|body| {
                Body::new(Metered {
                    body,
                    room: Arc::clone(&self.room),
                    held: Arc::clone(&held),
                    state: State::First,
                })
            })
        };
        Answered {
            answer: self.service.call(request),
            held,
        }
    }
}

pin_project! {
    /// The answer to a request; what it holds goes back with it.
    pub(crate) struct Answered<F> {
        #[pin]
        answer: F,
        held: Held,
    }
}

impl<F: Future> Future for Answered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.project().answer.poll(context)
    }
}

struct Metered {
    body: Body,
    room: Arc<Room>,
    held: Held,
    state: State,
}

enum State {
    First,
    Waiting(Frame<Bytes>, BoxFuture<'static, Option<OwnedSemaphorePermit>>),
    /// With room: until when.
    Flowing(Option<Pin<Box<Sleep>>>),
}

impl Room {
    /// What a message needs that begins with this frame; 0: nothing.
    fn needed(&self, first: &Frame<Bytes>) -> u32 {
        let Some(mut data) = first.data_ref().map(Bytes::as_ref) else {
            return 0;
        };
        // Nobody sends the head of a message in parts, except to find out what happens then.
        let bytes = if data.len() < 5 {
            self.message_bytes_max
        } else {
            data.advance(1);
            u64::from(data.get_u32())
        };
        if bytes < SMALL_BYTES || bytes > self.message_bytes_max {
            return 0;
        }
        u32::try_from(bytes.div_ceil(UNIT))
            .unwrap_or(u32::MAX)
            .min(self.most)
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let State::First = self.state {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()? else {
                return Poll::Ready(None);
            };
            let needed = self.room.needed(&frame);
            if needed == 0 {
                self.state = State::Flowing(None);
                return Poll::Ready(Some(Ok(frame)));
            }
            let free = Arc::clone(&self.room.free);
            let room = async move { free.acquire_many_owned(needed).await.ok() };
            self.state = State::Waiting(frame, Box::pin(room));
        }
        if let State::Waiting(_, room) = &mut self.state {
            if let Some(permit) = ready!(room.as_mut().poll(context)) {
                let _ = self.held.set(permit);
            }
            let flowing = State::Flowing(Some(Box::pin(sleep(ARRIVAL))));
            if let State::Waiting(frame, _) = std::mem::replace(&mut self.state, flowing) {
                return Poll::Ready(Some(Ok(frame)));
            }
        }
        let frame = Pin::new(&mut self.body).poll_frame(context);
        if frame.is_pending()
            && let State::Flowing(Some(end)) = &mut self.state
        {
            ready!(end.as_mut().poll(context));
            let why = format!(
                "the rest of the request did not come within {} s",
                ARRIVAL.as_secs()
            );
            return Poll::Ready(Some(Err(Status::deadline_exceeded(why))));
        }
        frame
    }
}

/// A stream whose messages are small.
struct Checked {
    body: Body,
    heads: Heads,
}

/// Finds the heads of messages among the bytes of a stream.
struct Heads {
    message_bytes_max: usize,
    head: [u8; 5],
    /// Bytes of the head that are there.
    known: usize,
    /// Bytes of the message that are still to come.
    rest: usize,
}

impl Heads {
    fn new(message_bytes_max: usize) -> Self {
        Self {
            message_bytes_max,
            head: [0; 5],
            known: 0,
            rest: 0,
        }
    }

    /// Goes on with these bytes; the length of a message that is too long.
    fn pass(&mut self, mut bytes: &[u8]) -> Result<(), usize> {
        while !bytes.is_empty() {
            if self.rest > 0 {
                let passed = bytes.len().min(self.rest);
                self.rest -= passed;
                bytes.advance(passed);
                continue;
            }
            self.head[self.known] = bytes.get_u8();
            self.known += 1;
            if self.known == self.head.len() {
                self.known = 0;
                self.rest = (&self.head[1..]).get_u32() as usize;
                if self.rest > self.message_bytes_max {
                    return Err(self.rest);
                }
            }
        }
        Ok(())
    }
}

impl http_body::Body for Checked {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()?;
        if let Some(data) = frame.as_ref().and_then(Frame::data_ref)
            && let Err(bytes) = self.heads.pass(data)
        {
            let most = self.heads.message_bytes_max;
            let why = format!(
                "a message of {bytes} bytes on a stream that takes {most}; send it by a call of its own"
            );
            return Poll::Ready(Some(Err(Status::out_of_range(why))));
        }
        Poll::Ready(frame.map(Ok))
    }
}

#[cfg(test)]
mod tests;
