#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::atomic::{AtomicUsize, Ordering};

use dynamo_proto::v1::{GetResponse, Request, Requests, Response, response};
use futures::channel::mpsc;
use tokio::sync::{Semaphore, oneshot};

use super::*;
use crate::Clients;

const BOUNDS: Bounds = Bounds {
    requests: 100,
    bytes: 1 << 20,
};

/// Answers as many requests as there are permits; the answer repeats the number.
#[derive(Clone)]
struct Echo {
    permits: Arc<Semaphore>,
    begun: Arc<AtomicUsize>,
}

impl Echo {
    fn new(permits: usize) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(permits)),
            begun: Arc::default(),
        }
    }
}

impl Serves for Echo {
    type Protocol = Clients;

    fn begin(&self, message: Requests) -> Vec<Begun<Response>> {
        let begin = |request: Request| {
            self.begun.fetch_add(1, Ordering::Relaxed);
            let (bytes, permits) = (request.encoded_len(), Arc::clone(&self.permits));
            let answer = Box::pin(async move {
                permits.acquire().await.unwrap().forget();
                Some(Response {
                    id: request.id,
                    response: Some(response::Response::Get(GetResponse::default())),
                })
            });
            Begun { bytes, answer }
        };
        message.requests.into_iter().map(begin).collect()
    }
}

type Sender = mpsc::UnboundedSender<Result<Requests, Status>>;

fn started(echo: &Echo, bounds: Bounds) -> (Sender, oneshot::Sender<()>, Serving<Clients>) {
    let (requests, arriving) = mpsc::unbounded();
    let (stop, stops) = oneshot::channel::<()>();
    let stops = async move { drop(stops.await) };
    (
        requests,
        stop,
        serve(echo.clone(), arriving, stops, bounds, Arc::default()),
    )
}

fn message(ids: impl IntoIterator<Item = u64>) -> Requests {
    let request = |id| Request {
        id,
        ..Request::default()
    };
    Requests {
        requests: ids.into_iter().map(request).collect(),
    }
}

async fn next(serving: &mut Serving<Clients>) -> Option<Vec<u64>> {
    let message = serving.next().await?.unwrap();
    Some(message.responses.iter().map(|response| response.id).collect())
}

/// Lets the work do all that it can.
async fn settled() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn answers_that_are_there_leave_together_within_the_bounds_of_a_message() {
    let echo = Echo::new(0);
    let (requests, _stop, mut serving) = started(&echo, BOUNDS);
    requests.unbounded_send(Ok(message(0..40))).unwrap();
    requests.unbounded_send(Ok(message(40..70))).unwrap();
    settled().await;
    echo.permits.add_permits(70);
    settled().await;
    assert_eq!(next(&mut serving).await.unwrap().len(), MESSAGE_ITEMS_MAX);
    assert_eq!(next(&mut serving).await.unwrap().len(), 6);
    requests.close_channel();
    assert_eq!(next(&mut serving).await, None);
}

#[tokio::test]
async fn who_takes_no_answers_is_not_read_further_and_what_runs_goes_on() {
    let bounds = Bounds {
        requests: 5,
        ..BOUNDS
    };
    let echo = Echo::new(5);
    let (requests, _stop, mut serving) = started(&echo, bounds);
    for id in 0..10 {
        requests.unbounded_send(Ok(message([id]))).unwrap();
    }
    settled().await;
    assert_eq!(
        echo.permits.available_permits(),
        0,
        "they ended though nobody takes their answers"
    );
    assert_eq!(echo.begun.load(Ordering::Relaxed), 5);
    assert_eq!(next(&mut serving).await.unwrap(), [0, 1, 2, 3, 4]);
    settled().await;
    assert_eq!(echo.begun.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn bytes_of_requests_are_bounded_as_well() {
    let bounds = Bounds { bytes: 1, ..BOUNDS };
    let echo = Echo::new(0);
    let (requests, _stop, mut serving) = started(&echo, bounds);
    for id in 1..=3 {
        requests.unbounded_send(Ok(message([id]))).unwrap();
    }
    for id in 1..=3 {
        settled().await;
        assert_eq!(echo.begun.load(Ordering::Relaxed), id);
        echo.permits.add_permits(1);
        assert_eq!(next(&mut serving).await.unwrap(), [id as u64]);
    }
}

#[tokio::test]
async fn a_service_that_stops_answers_what_it_has_read_and_nothing_else() {
    let echo = Echo::new(0);
    let (requests, stop, mut serving) = started(&echo, BOUNDS);
    requests.unbounded_send(Ok(message([1]))).unwrap();
    settled().await;
    stop.send(()).unwrap();
    settled().await;
    let _ = requests.unbounded_send(Ok(message([2])));
    echo.permits.add_permits(2);
    assert_eq!(next(&mut serving).await.unwrap(), [1]);
    assert_eq!(next(&mut serving).await, None);
    assert_eq!(echo.begun.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_connection_that_is_gone_takes_its_requests_with_it() {
    let echo = Echo::new(0);
    let (requests, _stop, serving) = started(&echo, BOUNDS);
    requests.unbounded_send(Ok(message([1]))).unwrap();
    settled().await;
    assert_eq!(
        Arc::strong_count(&echo.permits),
        3,
        "here, in the service, in the request"
    );
    drop(serving);
    settled().await;
    assert_eq!(Arc::strong_count(&echo.permits), 1);
}
