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
    /// Requests to these methods do not count: they end only when others were served, or bound what they hold themselves.
    exempt: &'static [&'static str],
}

/// What a request holds until it is answered.
type Held = Arc<OnceLock<OwnedSemaphorePermit>>;

impl<S> Inflow<S> {
    /// So many bytes at a time; a message that is larger than all of it is taken in alone. `message_bytes_max` is the service's
    /// own limit.
    pub(crate) fn new(
        service: S,
        bytes_max: usize,
        message_bytes_max: usize,
        exempt: &'static [&'static str],
    ) -> Self {
        let most = u32::try_from(bytes_max as u64 / UNIT).unwrap_or(u32::MAX);
        let room = Room {
            free: Arc::new(Semaphore::new(most as usize)),
            most,
            message_bytes_max: message_bytes_max as u64,
            exempt,
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
        let exempt = self.room.exempt.contains(&request.uri().path());
        let request = if exempt {
            request
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

#[cfg(test)]
mod tests;
