#![allow(clippy::unwrap_used, reason = "tests")]

use dynamo_proto::peer::{
    Header, ReadRequest, ReadResponse, ReplicaRequests, ReplicaResponse, replica_request::Request as Asked,
    replica_response::Response as Answer,
};
use futures::{StreamExt as _, task::noop_waker};

use super::*;
use crate::Peers;

type Answered = oneshot::Receiver<Result<ReplicaResponse, Lost>>;

fn under(ring_epoch: u64) -> Arc<Header> {
    Arc::new(Header {
        ring_epoch,
        ..Header::default()
    })
}

fn read(key_bytes: usize) -> Asked {
    Asked::Read(ReadRequest {
        key: vec![7; key_bytes].into(),
        ..ReadRequest::default()
    })
}

fn push(state: &mut State<Peers>, ring_epoch: u64, key_bytes: usize) -> (u64, Answered) {
    let (answer, answered) = oneshot::channel();
    let id = state.push(under(ring_epoch), read(key_bytes), answer).unwrap();
    (id, answered)
}

fn ids(message: Option<ReplicaRequests>) -> Vec<u64> {
    let requests = message.unwrap().requests;
    requests.into_iter().map(|request| request.id).collect()
}

#[test]
fn a_message_takes_what_waits_and_belongs_together_up_to_its_bounds() {
    let mut state = State::new();
    let _kept: Vec<_> = (0..100).map(|_| push(&mut state, 1, 10)).collect();
    let _large = push(&mut state, 1, MESSAGE_BYTES_MAX);
    let _newer = push(&mut state, 2, 10);
    assert_eq!(ids(state.message()).len(), MESSAGE_ITEMS_MAX);
    assert_eq!(ids(state.message()), (64..100).collect::<Vec<u64>>());
    assert_eq!(
        ids(state.message()),
        [100],
        "alone, for it is larger than a message"
    );
    let newer = state.message().unwrap();
    assert_eq!(newer.header.unwrap().ring_epoch, 2);
    assert!(state.message().is_none());
    assert_eq!((state.waiting_bytes, state.sent.len()), (0, 102));
}

#[test]
fn answers_find_who_asked_in_any_order() {
    let mut state = State::new();
    let (first, mut first_answer) = push(&mut state, 1, 10);
    let (second, mut second_answer) = push(&mut state, 1, 10);
    state.message();
    let answer = |id| ReplicaResponse {
        id,
        response: Some(Answer::Read(ReadResponse::default())),
    };
    state.answered(answer(second));
    assert!(first_answer.try_recv().is_err());
    assert_eq!(second_answer.try_recv().unwrap().unwrap().id, second);
    state.answered(answer(77));
    state.answered(answer(first));
    assert_eq!(first_answer.try_recv().unwrap().unwrap().id, first);
    assert!(state.sent.is_empty());
}

#[test]
fn what_was_given_up_before_it_was_sent_never_is() {
    let mut state = State::new();
    let (first, _first) = push(&mut state, 1, 10);
    let (second, _second) = push(&mut state, 1, 10);
    state.forget(first);
    assert_eq!(ids(state.message()), [second]);
    state.forget(second);
    assert_eq!((state.waiting_bytes, state.sent.len()), (0, 0));
}

#[test]
fn a_broken_stream_tells_what_was_sent_from_what_was_not() {
    let mut state = State::new();
    let (_, mut sent) = push(&mut state, 1, 10);
    state.message();
    let (_, mut waiting) = push(&mut state, 1, 10);
    state.broke(&Status::unavailable("gone"));
    assert!(matches!(sent.try_recv().unwrap(), Err(Lost::Sent(_))));
    assert!(matches!(waiting.try_recv().unwrap(), Err(Lost::Unsent(_))));
    assert_eq!((state.waiting_bytes, state.carried), (0, false));
}

#[test]
fn what_is_left_of_a_broken_stream_takes_nothing_of_the_next_one() {
    let lane = Lane::<Peers>::new(Arc::default());
    let mut old = Leaving::new(Arc::clone(&lane.shared));
    lane.shared.state.lock().broke(&Status::unavailable("gone"));
    let mut new = Leaving::new(Arc::clone(&lane.shared));
    let (id, _answer) = push(&mut lane.shared.state.lock(), 1, 10);
    let waker = noop_waker();
    let mut context = Context::from_waker(&waker);
    assert!(matches!(old.poll_next_unpin(&mut context), Poll::Ready(None)));
    // Others have their turn first.
    assert!(new.poll_next_unpin(&mut context).is_pending());
    let sent = new.poll_next_unpin(&mut context).map(ids);
    assert_eq!(sent, Poll::Ready(vec![id]));
    let sent = &lane.shared.traffic.requests_sent;
    assert_eq!((sent.messages(), sent.entries()), (1, 1));
}

#[test]
fn who_takes_nothing_is_asked_no_more_than_the_bound() {
    let mut state = State::new();
    let kept: Vec<_> = (0..WAITING_MAX).map(|_| push(&mut state, 1, 10)).collect();
    let (answer, _) = oneshot::channel();
    let refused = state.push(under(1), read(10), answer).unwrap_err();
    assert!(matches!(refused, Lost::Full));
    assert_eq!(kept.len(), state.waiting.len());
}

#[test]
fn a_lane_that_is_dropped_ends_its_stream() {
    let lane = Lane::<Peers>::new(Arc::default());
    let mut leaving = Leaving::new(Arc::clone(&lane.shared));
    let waker = noop_waker();
    let mut context = Context::from_waker(&waker);
    assert!(leaving.poll_next_unpin(&mut context).is_pending());
    drop(lane);
    assert!(matches!(leaving.poll_next_unpin(&mut context), Poll::Ready(None)));
}
