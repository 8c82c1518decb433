use super::*;
use crate::quorum::{QuorumOverrides, ReplicaCount};

#[test]
fn a_put_leaves_once_it_has_its_dot_and_is_applied_at_w() {
    let mut put = Put::new(quorum(3, 2, 2), "+++");
    assert_eq!(put.step(PutEvent::Start), [WRITE_LOCAL]);
    assert_eq!(put.step(PutEvent::LocalPrepared), [send(1), send(2)]);
    assert_eq!(put.peer(2, ACK), []);
    assert_eq!(
        put.step(PutEvent::LocalDone(ACK)),
        reply(WriteState::Applied, 2, 2, None)
    );
    assert!(put.0.replied() && put.0.waiting());
    assert_eq!(put.peer(1, ACK), [], "late and harmless");
    assert!(!put.0.waiting());
}

#[test]
fn peers_alone_can_be_the_quorum() {
    let mut put = Put::sent(quorum(3, 2, 2), "+++");
    put.peer(1, ACK);
    assert_eq!(put.peer(2, ACK), reply(WriteState::Applied, 2, 2, None));
}

#[test]
fn nobody_counts_twice() {
    let mut put = Put::sent(quorum(3, 2, 3), "+++");
    put.step(PutEvent::LocalDone(ACK));
    for _ in 0..3 {
        assert_eq!(put.peer(1, ACK), []);
        assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
        assert_eq!(put.step(PutEvent::Start), []);
        assert_eq!(put.step(PutEvent::LocalPrepared), []);
    }
    assert_eq!(put.peer(1, Err(failure(true, FailureKind::TimedOut))), []);
    assert_eq!(put.peer(9, ACK), [], "was not asked");
    assert_eq!(put.peer(0, ACK), [], "is the local node");
    assert_eq!(put.peer(2, ACK), reply(WriteState::Applied, 3, 3, None));
}

#[test]
fn a_local_end_without_a_preparation_stands_for_both() {
    let mut put = Put::new(quorum(2, 1, 1), "++");
    put.step(PutEvent::Start);
    let mut expected = vec![send(1)];
    expected.extend(reply(WriteState::Applied, 1, 1, None));
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), expected);
}

#[test]
fn an_unreachable_replica_that_is_not_needed_is_not_asked() {
    let mut put = Put::new(quorum(3, 2, 2), "+-+");
    put.step(PutEvent::Start);
    assert_eq!(put.step(PutEvent::LocalPrepared), [send(2)]);
}

#[test]
fn a_put_that_cannot_succeed_leaves_no_trace() {
    let mut put = Put::new(quorum(3, 2, 2), "+--");
    let unmet = WriteFailure::QuorumNotMet {
        field: "w",
        needed: 2,
        possible: 1,
        failed: vec![
            failed(1, FailureKind::Unreachable),
            failed(2, FailureKind::Unreachable),
        ],
    };
    assert_eq!(
        put.step(PutEvent::Start),
        reply(WriteState::NotApplied, 0, 0, Some(unmet))
    );
    assert_eq!(put.step(PutEvent::LocalPrepared), []);
    assert_eq!(put.step(PutEvent::DeadlineReached), []);
}

/// D33: W = 1 is met by the local node, PW = 2 and DW = 2 are judged on who answered.
#[test]
fn pw_and_dw_are_judged_on_responders() {
    let with = |overrides| quorum(3, 2, 1).with(&overrides).unwrap();
    let two = Some(ReplicaCount::Count(2));

    let mut put = Put::sent(
        with(QuorumOverrides {
            pw: two,
            ..QuorumOverrides::default()
        }),
        "+++",
    );
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
    assert_eq!(
        put.peer(1, Ok(Ack { durable: false })),
        reply(WriteState::Applied, 2, 1, None)
    );

    let mut put = Put::sent(
        with(QuorumOverrides {
            dw: two,
            ..QuorumOverrides::default()
        }),
        "+++",
    );
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
    assert_eq!(put.peer(1, Ok(Ack { durable: false })), []);
    let unmet = WriteFailure::QuorumNotMet {
        field: "dw",
        needed: 2,
        possible: 1,
        failed: vec![failed(2, FailureKind::Overloaded)],
    };
    let overloaded = Err(failure(false, FailureKind::Overloaded));
    assert_eq!(
        put.peer(2, overloaded),
        reply(WriteState::Partial, 2, 1, Some(unmet))
    );
}

#[test]
fn a_put_fails_as_soon_as_it_cannot_succeed() {
    let mut put = Put::sent(quorum(3, 2, 2), "+++");
    assert_eq!(put.peer(1, Err(failure(true, FailureKind::Unreachable))), []);
    let unmet = WriteFailure::QuorumNotMet {
        field: "w",
        needed: 2,
        possible: 1,
        failed: vec![
            failed(1, FailureKind::Unreachable),
            failed(2, FailureKind::StaleEpoch),
        ],
    };
    let stale = Err(failure(false, FailureKind::StaleEpoch));
    // The local write is still under way: nobody can say that nothing was stored.
    assert_eq!(put.peer(2, stale), reply(WriteState::Partial, 0, 0, Some(unmet)));
}

#[test]
fn a_local_failure_before_the_dot_ends_the_put() {
    for (sent, state) in [(false, WriteState::NotApplied), (true, WriteState::Partial)] {
        let mut put = Put::new(quorum(3, 2, 1), "+++");
        put.step(PutEvent::Start);
        let local = WriteFailure::Local(FailureKind::Storage);
        let result = Err(failure(sent, FailureKind::Storage));
        assert_eq!(
            put.step(PutEvent::LocalDone(result)),
            reply(state, 0, 0, Some(local))
        );
    }
}

#[test]
fn a_local_failure_after_the_dot_is_one_of_n() {
    let mut put = Put::sent(quorum(3, 2, 2), "+++");
    assert_eq!(
        put.step(PutEvent::LocalDone(Err(failure(true, FailureKind::Storage)))),
        []
    );
    put.peer(1, ACK);
    assert_eq!(put.peer(2, ACK), reply(WriteState::Applied, 2, 2, None));
}

#[test]
fn nothing_stored_and_nothing_on_its_way_is_not_applied() {
    let mut put = Put::sent(quorum(3, 2, 3), "+++");
    put.step(PutEvent::LocalDone(Err(failure(false, FailureKind::Overloaded))));
    // Replied at once as PARTIAL, since two messages were on their way.
    assert!(put.0.replied());

    let mut put = Put::sent(quorum(2, 1, 1), "++");
    put.step(PutEvent::LocalDone(Err(failure(false, FailureKind::Overloaded))));
    let effects = put.peer(1, Err(failure(false, FailureKind::Unreachable)));
    let [PutEffect::Reply(outcome)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!((outcome.state, outcome.acks), (WriteState::NotApplied, 0));
}

#[test]
fn the_deadline_tells_what_is_known() {
    let mut put = Put::sent(quorum(3, 2, 2), "+++");
    put.step(PutEvent::LocalDone(ACK));
    put.peer(1, Err(failure(true, FailureKind::TimedOut)));
    let late = WriteFailure::TimedOut {
        field: "w",
        needed: 2,
        got: 1,
        failed: vec![failed(1, FailureKind::TimedOut)],
    };
    assert_eq!(
        put.step(PutEvent::DeadlineReached),
        reply(WriteState::Partial, 1, 1, Some(late))
    );
    assert_eq!(put.step(PutEvent::DeadlineReached), []);
    assert_eq!(put.peer(2, ACK), []);
}

#[test]
fn after_the_deadline_nothing_leaves_any_more() {
    let mut put = Put::new(quorum(3, 2, 2), "+++");
    put.step(PutEvent::Start);
    let effects = put.step(PutEvent::DeadlineReached);
    let [PutEffect::Reply(outcome)] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(
        outcome.state,
        WriteState::Partial,
        "the local write may still happen"
    );
    assert_eq!(put.step(PutEvent::LocalPrepared), []);
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
}
