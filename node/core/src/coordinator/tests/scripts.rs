use super::*;
use crate::quorum::{QuorumOverrides, ReplicaCount};

/// A put that node 0 coordinates.
struct Put(PutCoordinator);

impl Put {
    fn new(quorum: Quorum, reachable: &str) -> Self {
        Self(PutCoordinator::new(quorum, member(0), candidates(reachable)))
    }

    fn step(&mut self, event: PutEvent) -> Vec<PutEffect> {
        let mut effects = Vec::new();
        self.0.step(event, &mut effects);
        effects
    }

    fn peer(&mut self, index: usize, result: Result<Ack, ReplicaFailure>) -> Vec<PutEffect> {
        self.step(PutEvent::PeerDone {
            member: member(index),
            result,
        })
    }

    /// Up to where the delta has left.
    fn sent(quorum: Quorum, reachable: &str) -> Self {
        let mut put = Self::new(quorum, reachable);
        assert_eq!(put.step(PutEvent::Start), [PutEffect::WriteLocal]);
        put.step(PutEvent::LocalPrepared);
        put
    }
}

fn quorum(n: u32, r: u32, w: u32) -> Quorum {
    Quorum::new(n, r, w).unwrap()
}

const ACK: Result<Ack, ReplicaFailure> = Ok(Ack { durable: true });

fn send(index: usize) -> PutEffect {
    PutEffect::Send {
        member: member(index),
    }
}

fn reply(state: WriteState, acks: u32, durable: u32, failure: Option<WriteFailure>) -> Vec<PutEffect> {
    vec![PutEffect::Reply(WriteOutcome {
        state,
        acks,
        primaries: acks,
        durable,
        failure,
    })]
}

fn failed(index: usize, kind: FailureKind) -> FailedReplica {
    FailedReplica {
        member: member(index),
        kind,
    }
}

#[test]
fn a_put_leaves_once_it_has_its_dot_and_is_applied_at_w() {
    let mut put = Put::new(quorum(3, 2, 2), "+++");
    assert_eq!(put.step(PutEvent::Start), [PutEffect::WriteLocal]);
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

/// A get with its events and the reply.
fn get(quorum: Quorum, reachable: &str, events: Vec<GetEvent>) -> Option<GetOutcome> {
    let mut get = GetCoordinator::new(quorum, candidates(reachable), 0);
    let mut effects = Vec::new();
    get.step(GetEvent::Start, &mut effects);
    for event in events {
        get.step(event, &mut effects);
    }
    let mut replies = effects.into_iter().filter_map(|effect| match effect {
        GetEffect::Reply(outcome) => Some(outcome),
        GetEffect::Read { .. } => None,
    });
    let reply = replies.next();
    assert_eq!(replies.next(), None, "one reply");
    reply
}

fn answer(index: usize, state: Option<KeyState>) -> GetEvent {
    GetEvent::ReplicaDone {
        member: member(index),
        result: Ok(state),
    }
}

fn unreadable(index: usize) -> GetEvent {
    GetEvent::ReplicaDone {
        member: member(index),
        result: Err(failure(true, FailureKind::Storage)),
    }
}

fn unavailable(needed: u32, got: u32, timed_out: bool, failed: Vec<FailedReplica>) -> GetOutcome {
    GetOutcome {
        acks: got,
        result: GetResult::Unavailable {
            needed,
            got,
            timed_out,
            failed,
        },
    }
}

#[test]
fn a_get_asks_all_reachable_primaries_at_once() {
    let mut get = GetCoordinator::new(quorum(3, 2, 2), candidates("+-+"), 0);
    let mut effects = Vec::new();
    get.step(GetEvent::Start, &mut effects);
    assert_eq!(
        effects,
        [
            GetEffect::Read { member: member(0) },
            GetEffect::Read { member: member(2) }
        ]
    );
}

#[test]
fn a_get_finds_at_r_and_merges_what_came() {
    let found = |acks, state| {
        Some(GetOutcome {
            acks,
            result: GetResult::Found(state),
        })
    };
    let q = quorum(3, 2, 2);
    assert_eq!(get(q, "+++", vec![answer(0, Some(value(1)))]), None);
    let events = vec![answer(0, Some(value(1))), answer(0, Some(value(1)))];
    assert_eq!(get(q, "+++", events), None, "nobody counts twice");
    let events = vec![
        answer(0, Some(value(1))),
        answer(1, Some(value(2))),
        answer(2, None),
    ];
    assert_eq!(get(q, "+++", events), found(2, value(2)), "the ancestor is gone");
    assert_eq!(
        get(q, "+++", vec![answer(2, None), answer(1, Some(value(1)))]),
        found(2, value(1))
    );
    assert_eq!(
        get(quorum(3, 1, 3), "-+-", vec![answer(1, Some(value(1)))]),
        found(1, value(1))
    );
}

#[test]
fn absent_takes_enough_primaries_to_be_sure() {
    let absent = |acks, state| {
        Some(GetOutcome {
            acks,
            result: GetResult::Absent(state),
        })
    };
    // R = 1 finds at one answer, but W = 1 may have put the key on any single node.
    let q = quorum(3, 1, 1);
    assert_eq!(get(q, "+++", vec![answer(0, None), answer(1, None)]), None);
    assert_eq!(
        get(q, "+++", vec![answer(0, None), answer(1, None), answer(2, None)]),
        absent(3, None)
    );
    let events = vec![answer(0, None), answer(1, None), unreadable(2)];
    assert_eq!(
        get(q, "+++", events),
        Some(unavailable(3, 2, false, vec![failed(2, FailureKind::Storage)]))
    );
    let events = vec![answer(0, None), answer(1, None), GetEvent::DeadlineReached];
    assert_eq!(get(q, "+++", events), Some(unavailable(3, 2, true, Vec::new())));
    // With W = 3 every replica knows.
    assert_eq!(
        get(quorum(3, 1, 3), "+++", vec![answer(0, None)]),
        absent(1, None)
    );
    let events = vec![answer(0, Some(value(1))), answer(2, Some(tombstone(2)))];
    assert_eq!(get(quorum(3, 2, 2), "+++", events), absent(2, Some(tombstone(2))));
    // A tombstone is no reason to stop looking for a value as long as the quorum is not there.
    assert_eq!(get(q, "+++", vec![answer(0, Some(tombstone(2)))]), None);
}

#[test]
fn a_get_fails_as_soon_as_it_cannot_succeed() {
    let unreachable = |index| failed(index, FailureKind::Unreachable);
    let q = quorum(3, 2, 2);
    assert_eq!(
        get(q, "+--", Vec::new()),
        Some(unavailable(2, 0, false, vec![unreachable(1), unreachable(2)]))
    );
    let events = vec![unreadable(0)];
    let storage = failed(0, FailureKind::Storage);
    assert_eq!(
        get(q, "+-+", events),
        Some(unavailable(2, 0, false, vec![storage.clone(), unreachable(1)]))
    );
    assert_eq!(
        get(q, "+++", vec![GetEvent::DeadlineReached]),
        Some(unavailable(2, 0, true, Vec::new()))
    );
}

#[test]
fn only_who_was_asked_and_has_not_answered_counts() {
    let q = quorum(3, 2, 2);
    let found = || Some(value(1));
    for (case, reachable, events) in [
        ("a stranger", "+++", vec![answer(0, found()), answer(9, found())]),
        (
            "one that was skipped",
            "+-+",
            vec![answer(0, found()), answer(1, found())],
        ),
        (
            "one that had failed",
            "+++",
            vec![answer(0, found()), unreadable(1), answer(1, found())],
        ),
    ] {
        assert_eq!(get(q, reachable, events), None, "{case}");
    }
}

/// D33.
#[test]
fn pr_is_judged_on_responders() {
    let asked = QuorumOverrides {
        pr: Some(ReplicaCount::All),
        ..QuorumOverrides::default()
    };
    let q = quorum(3, 1, 2).with(&asked).unwrap();
    let events = vec![answer(0, Some(value(1))), answer(1, Some(value(1)))];
    assert_eq!(get(q, "+++", events.clone()), None);
    let expected = Some(unavailable(
        3,
        0,
        false,
        vec![failed(2, FailureKind::Unreachable)],
    ));
    assert_eq!(get(q, "++-", events), expected);
}
