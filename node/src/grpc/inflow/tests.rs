use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};

use futures::{StreamExt as _, stream::FuturesUnordered};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::watch;
use tower::service_fn;

use super::*;

const MIB: usize = 1 << 20;

const OTHERS: Others = Others {
    exempt: &["/exempt"],
    streams: &[("/stream", 1000)],
};

/// A message of so many bytes, its head cut after `head` of them.
fn message(bytes: usize, head: usize) -> Body {
    let mut all = vec![0];
    all.extend((bytes as u32).to_be_bytes());
    all.extend(vec![7; bytes]);
    let rest = Bytes::from(all.split_off(head));
    let frames = [all.into(), rest].map(|part| Ok::<_, Infallible>(Frame::data(part)));
    Body::new(StreamBody::new(futures::stream::iter(frames)))
}

fn request(path: &str, body: Body) -> http::Request<Body> {
    http::Request::builder().uri(path).body(body).unwrap()
}

/// How many requests of these are read by a service that answers none of them before it is told to; then all are answered.
async fn read_at_once(bytes_max: usize, requests: Vec<http::Request<Body>>) -> usize {
    let (release, released) = watch::channel(false);
    let read = Arc::new(AtomicUsize::new(0));
    let count = requests.len();
    let service = {
        let read = Arc::clone(&read);
        service_fn(move |request: http::Request<Body>| {
            let (read, mut released) = (Arc::clone(&read), released.clone());
            async move {
                request.into_body().collect().await.unwrap();
                read.fetch_add(1, SeqCst);
                released.wait_for(|released| *released).await.unwrap();
                Ok::<_, Infallible>(())
            }
        })
    };
    let mut inflow = Inflow::new(service, bytes_max, 4 * MIB, OTHERS);
    let mut answers: FuturesUnordered<_> = requests.into_iter().map(|one| inflow.call(one)).collect();
    assert!(futures::poll!(answers.next()).is_pending());
    let at_once = read.load(SeqCst);
    release.send(true).unwrap();
    assert_eq!(answers.by_ref().count().await, count);
    assert_eq!(inflow.room.free.available_permits(), inflow.room.most as usize);
    at_once
}

#[tokio::test]
async fn large_requests_wait_for_room_until_others_are_answered() {
    let large = |count| (0..count).map(|_| request("/", message(MIB, 5))).collect();
    assert_eq!(read_at_once(3 * MIB, large(3)).await, 3);
    assert_eq!(read_at_once(3 * MIB, large(10)).await, 3);
    // One that is larger than all of the room has it alone.
    assert_eq!(read_at_once(MIB / 2, large(4)).await, 1);
}

#[tokio::test]
async fn small_and_exempt_requests_do_not_wait() {
    let mut requests = vec![
        request("/", message(2 * MIB, 5)),
        request("/", message(2 * MIB, 5)),
    ];
    requests.extend((0..20).map(|_| request("/", message(SMALL_BYTES as usize - 1, 5))));
    requests.extend((0..20).map(|_| request("/exempt", message(MIB, 5))));
    // Longer than the service takes: it refuses them itself.
    requests.extend((0..20).map(|_| request("/", message(4 * MIB + 1, 5))));
    assert_eq!(read_at_once(3 * MIB, requests).await, 61);
}

#[tokio::test]
async fn a_message_whose_head_comes_in_parts_counts_as_the_largest() {
    let requests = [1, 3, 4].map(|head| request("/", message(10, head)));
    assert_eq!(read_at_once(3 * MIB, requests.into()).await, 1);
}

#[tokio::test(start_paused = true)]
async fn who_sends_a_head_and_no_more_gives_its_room_back() {
    let head = Bytes::from_static(&[0, 0, 0x10, 0, 0]);
    let first = futures::stream::iter([Ok::<_, Infallible>(Frame::data(head))]);
    let stuck = Body::new(StreamBody::new(first.chain(futures::stream::pending())));
    let service = service_fn(async |request: http::Request<Body>| {
        let body = request.into_body().collect().await;
        Ok::<_, Infallible>(body.map(drop).map_err(|status| status.code()))
    });
    let mut inflow = Inflow::new(service, MIB, 4 * MIB, OTHERS);
    let (stuck, whole) = (
        inflow.call(request("/", stuck)),
        inflow.call(request("/", message(MIB, 5))),
    );
    let (stuck, whole) = futures::join!(stuck, whole);
    assert_eq!(stuck.unwrap(), Err(tonic::Code::DeadlineExceeded));
    assert_eq!(whole.unwrap(), Ok(()));
}

/// What a stream's messages become if they arrive in parts of so many bytes.
async fn streamed(messages: &[usize], part: usize) -> Result<usize, Status> {
    let service = service_fn(|request: http::Request<Body>| async move {
        let read = request.into_body().collect().await;
        Ok::<_, Infallible>(read.map(|read| read.to_bytes().len()))
    });
    let mut all = Vec::new();
    for bytes in messages {
        all.push(0);
        all.extend((*bytes as u32).to_be_bytes());
        all.extend(vec![7; *bytes]);
    }
    let parts: Vec<_> = all.chunks(part).map(Bytes::copy_from_slice).collect();
    let frames = parts
        .into_iter()
        .map(|part| Ok::<_, Infallible>(Frame::data(part)));
    let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
    let mut inflow = Inflow::new(service, MIB, 4 * MIB, OTHERS);
    inflow.call(request("/stream", body)).await.unwrap()
}

#[tokio::test]
async fn a_stream_passes_small_messages_and_ends_at_a_large_one_however_it_is_cut() {
    for part in [1, 2, 5, 6, 7, 1000, 100_000] {
        let passed = streamed(&[1000, 0, 3, 1000], part).await.unwrap();
        assert_eq!(passed, 2003 + 4 * 5);
        let refused = streamed(&[1000, 1001, 1], part).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::OutOfRange, "{refused}");
    }
}
