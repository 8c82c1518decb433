use super::*;

fn applied(acks: u32, fallbacks: u32, zones: u32) -> PutEffect {
    PutEffect::Reply(WriteOutcome {
        state: WriteState::Applied,
        acks,
        primaries: acks - fallbacks,
        fallbacks_counted: fallbacks,
        durable: acks,
        zones,
        failure: None,
    })
}

fn outcome(effects: &[PutEffect]) -> WriteOutcome {
    let [PutEffect::Reply(outcome)] = effects else {
        panic!("{effects:?}")
    };
    outcome.clone()
}

fn refused(kind: FailureKind) -> Result<Ack, ReplicaFailure> {
    Err(failure(false, kind))
}

fn members(candidates: &[&Candidate]) -> Vec<MemberId> {
    let members = candidates.iter().map(|candidate| candidate.member.clone());
    members.collect()
}

/// D32: the first N reachable nodes of the whole list.
#[test]
fn writes_are_coordinated_by_the_first_n_reachable() {
    for (nodes, expected) in [
        ("+++|++", &[0, 1, 2][..]),
        ("+-+|-++", &[0, 2, 4]),
        ("---|-+", &[4]),
        ("---|++++", &[3, 4, 5]),
        ("---|--", &[]),
    ] {
        let expected: Vec<_> = expected.iter().map(|index| member(*index)).collect();
        assert_eq!(members(&candidates(nodes).top_reachable()), expected, "{nodes}");
    }
}

/// D32: two of three primaries are down, and W = 2 is met all the same.
#[test]
fn fallbacks_stand_in_for_unreachable_primaries() {
    let mut put = Put::new(quorum(3, 2, 2), "+--|-++");
    assert_eq!(put.step(PutEvent::Start), [WRITE_LOCAL]);
    assert_eq!(
        put.step(PutEvent::LocalPrepared),
        [send_hint(4, 1), send_hint(5, 2)]
    );
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
    assert_eq!(put.peer(5, ACK), [applied(2, 1, 1)]);
}

/// D33: PW is about who answered: neither stand-ins nor a primary that is presumed alive count.
#[test]
fn pw_counts_primaries_that_answered() {
    let with = |pw| Quorum {
        pw,
        ..quorum(3, 2, 1)
    };
    let mut put = Put::new(with(2), "+--|++");
    let effects = put.step(PutEvent::Start);
    let WriteOutcome { state, failure, .. } = outcome(&effects);
    assert_eq!(state, WriteState::NotApplied, "nothing was sent");
    let Some(WriteFailure::QuorumNotMet {
        field,
        needed,
        possible,
        ..
    }) = failure
    else {
        panic!("{failure:?}")
    };
    assert_eq!((field, needed, possible), ("pw", 2, 1));

    let late = Err(super::failure(true, FailureKind::TimedOut));
    let mut put = Put::sent(with(2), "++-|++");
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
    assert_eq!(put.peer(3, ACK), [], "a fallback is no primary");
    let lost = put.peer(1, late);
    assert_eq!(outcome(&lost[..1]).state, WriteState::Partial);
    assert_eq!(outcome(&lost[..1]).primaries, 1);
    assert_eq!(outcome(&lost[..1]).acks, 2);
}

/// D34: a hint that is synced counts like a record that is.
#[test]
fn dw_counts_fallbacks_hints() {
    let dw = Quorum {
        dw: 2,
        ..quorum(3, 2, 2)
    };
    let mut put = Put::sent(dw, "+--|++");
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(3, Ok(Ack { durable: false })), []);
    assert_eq!(put.peer(4, ACK), {
        let PutEffect::Reply(counted) = applied(3, 2, 1) else {
            panic!()
        };
        [PutEffect::Reply(WriteOutcome {
            durable: 2,
            ..counted
        })]
    });
}

/// D36: who fails or declines is replaced by the next, each stands in once, and each is told for whom.
#[test]
fn a_stand_in_that_declines_is_replaced_by_the_next() {
    let mut put = Put::sent(quorum(3, 2, 3), "+++|+++");
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(1, refused(FailureKind::Overloaded)), [send_hint(3, 1)]);
    assert_eq!(put.peer(3, refused(FailureKind::Declined)), [send_hint(4, 1)]);
    let lost = Err(failure(true, FailureKind::TimedOut));
    assert_eq!(put.peer(2, lost), [send_hint(5, 2)]);
    assert_eq!(put.peer(4, ACK), []);
    assert_eq!(put.peer(2, ACK), [], "it has been replaced: counted once");
    assert_eq!(put.peer(5, ACK), [applied(3, 2, 1)]);
}

#[test]
fn with_no_fallback_left_the_put_fails_as_partial() {
    let mut put = Put::sent(quorum(3, 2, 3), "+++|+");
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(1, refused(FailureKind::Overloaded)), [send_hint(3, 1)]);
    let WriteOutcome { state, failure, .. } = outcome(&put.peer(3, refused(FailureKind::Declined)));
    assert_eq!(state, WriteState::Partial);
    let Some(WriteFailure::QuorumNotMet {
        possible,
        failed: who,
        ..
    }) = failure
    else {
        panic!("{failure:?}")
    };
    let expected = vec![
        failed(1, FailureKind::Overloaded),
        failed(3, FailureKind::Declined),
    ];
    assert_eq!((possible, who), (2, expected));
}

/// D36: a replica more than W is wanted, so stand-ins are found after the reply, too, until the deadline.
#[test]
fn primaries_that_fail_after_the_reply_get_a_stand_in() {
    let mut put = Put::sent(quorum(3, 2, 1), "+++|++");
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), [applied(1, 0, 1)]);
    assert_eq!(put.peer(1, refused(FailureKind::Unreachable)), [send_hint(3, 1)]);
    assert!(put.0.waiting());
    assert_eq!(put.step(PutEvent::DeadlineReached), []);
    assert!(!put.0.waiting());
    assert_eq!(put.peer(2, refused(FailureKind::Unreachable)), []);
}

/// What is called not applied stays so: nobody is asked for it any more.
#[test]
fn nothing_is_sent_after_not_applied() {
    let pw = Quorum {
        pw: 2,
        ..quorum(2, 1, 1)
    };
    let mut put = Put::sent(pw, "++|++");
    let effects = put.peer(1, refused(FailureKind::Overloaded));
    assert_eq!(outcome(&effects[..1]).state, WriteState::Partial);
    assert_eq!(effects[1..], [send_hint(2, 1)], "the local write is under way");

    let mut put = Put::new(quorum(3, 2, 1), "+--|++");
    put.step(PutEvent::Start);
    let effects = put.step(PutEvent::LocalDone(refused(FailureKind::Declined)));
    assert_eq!(outcome(&effects).state, WriteState::NotApplied);
    assert_eq!(put.step(PutEvent::LocalPrepared), []);
    assert!(!put.0.waiting());
}

/// D40: the last node that is up takes writes, whatever its place in the list.
#[test]
fn a_fallback_coordinates_and_keeps_a_hint_of_its_own() {
    let own_hint = |primary| PutEffect::WriteLocal {
        hint_for: Some(member(primary)),
    };
    let mut put = Put::at(4, quorum(3, 2, 1), "---|-+");
    assert_eq!(put.step(PutEvent::Start), [own_hint(0)]);
    assert_eq!(put.step(PutEvent::LocalPrepared), []);
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), [applied(1, 1, 1)]);

    let mut put = Put::at(3, quorum(3, 2, 2), "+-+|++");
    assert_eq!(put.step(PutEvent::Start), [own_hint(1)]);
    assert_eq!(put.step(PutEvent::LocalPrepared), [send(0), send(2)]);
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
    assert_eq!(put.peer(2, ACK), [applied(2, 1, 1)]);

    // In the zone of the second.
    let mut put = Put::at(3, quorum(3, 2, 2), "-a-b+c|+b+a");
    assert_eq!(put.step(PutEvent::Start), [own_hint(1)]);
    assert_eq!(put.step(PutEvent::LocalPrepared), [send_hint(4, 0), send(2)]);
}

/// Whoever forwarded the write held a primary unreachable that this node does reach: its hint is one more copy, and
/// counts only in place of that primary.
#[test]
fn a_hint_beside_its_own_primary_counts_once() {
    let mut put = Put::at(3, quorum(3, 2, 2), "+++|+");
    put.step(PutEvent::Start);
    assert_eq!(put.step(PutEvent::LocalPrepared), [send(0), send(1), send(2)]);
    assert_eq!(put.step(PutEvent::LocalDone(ACK)), []);
    assert_eq!(put.peer(0, ACK), []);
    assert_eq!(put.peer(1, ACK), [applied(2, 0, 1)]);
}

/// Stand-ins come from the failed primary's zone first.
#[test]
fn stand_ins_come_from_the_primary_s_zone_first() {
    for (nodes, expected) in [
        ("+a-b-c|+a+b+c", [send_hint(4, 1), send_hint(5, 2)]),
        // The first has no match and leaves the second its own.
        ("+a-b-c|+c+a", [send_hint(4, 1), send_hint(3, 2)]),
        ("+a-b-c|-b-c+a+a", [send_hint(5, 1), send_hint(6, 2)]),
    ] {
        let mut put = Put::new(quorum(3, 2, 2), nodes);
        put.step(PutEvent::Start);
        assert_eq!(put.step(PutEvent::LocalPrepared), expected, "{nodes}");
    }
    let mut put = Put::sent(quorum(3, 2, 2), "+a+b+c|+a+b+c");
    assert_eq!(put.peer(2, refused(FailureKind::Storage)), [send_hint(5, 2)]);
    assert_eq!(put.peer(1, refused(FailureKind::Storage)), [send_hint(4, 1)]);
}

/// D35: a write that needs two zones fails at once with one, and finds the second one among the fallbacks.
#[test]
fn zones_are_counted_over_primaries_and_fallbacks() {
    let two_zones = Quorum {
        zones: 2,
        ..quorum(3, 2, 1)
    };
    let mut put = Put::new(two_zones, "+a-b-c|+a+a-b");
    let WriteOutcome { state, failure, .. } = outcome(&put.step(PutEvent::Start));
    assert_eq!(state, WriteState::NotApplied);
    assert!(
        matches!(
            failure,
            Some(WriteFailure::QuorumNotMet {
                field: "zones",
                needed: 2,
                possible: 1,
                ..
            })
        ),
        "{failure:?}"
    );

    // The fourth zone comes last in the walk, and is asked first.
    let mut put = Put::new(two_zones, "+a-b-c|+a+a+d");
    put.step(PutEvent::Start);
    assert_eq!(
        put.step(PutEvent::LocalPrepared),
        [send_hint(5, 1), send_hint(3, 2)]
    );
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(3, ACK), [], "the same zone again");
    assert_eq!(put.peer(5, ACK), [applied(3, 2, 2)]);

    // Two nodes of one zone are one, also among primaries.
    let mut put = Put::sent(two_zones, "+a+a+b");
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(1, ACK), []);
    assert_eq!(put.peer(2, ACK), [applied(3, 0, 2)]);

    // Without the condition the zones are told all the same.
    let mut put = Put::sent(quorum(3, 2, 2), "+a+b+c");
    put.step(PutEvent::LocalDone(ACK));
    assert_eq!(put.peer(1, ACK), [applied(2, 0, 2)]);
}

/// D32: reads ask for hints where a primary does not answer.
#[test]
fn a_get_asks_fallbacks_for_primaries_that_are_no_help() {
    let mut get = Get::new(quorum(3, 2, 2), ReadRepair::Off, "+a-b+c|+a+b+c+a");
    assert_eq!(
        get.step(GetEvent::Start),
        [read(0), read_fallback(4), read(2)],
        "of its own zone"
    );
    assert_eq!(get.step(unreadable(0)), [read_fallback(3)]);
    assert_eq!(
        get.step(unreadable(3)),
        [read_fallback(6)],
        "the next in the zone"
    );
    assert_eq!(get.step(suspect(2, None)), [read_fallback(5)]);
    assert_eq!(get.step(answer(6, Some(value(1)))), []);
    assert_eq!(get.step(answer(5, Some(value(1)))), [found(2, value(1))]);
}

/// An empty fallback knows nothing, unless it stands beside the record of a primary.
#[test]
fn an_empty_fallback_proves_nothing() {
    let q = quorum(3, 2, 2);
    let mut get = Get::started(q, ReadRepair::Off, "+--|++");
    assert_eq!(get.step(answer(3, None)), []);
    assert_eq!(get.step(answer(4, None)), []);
    let unreachable = |index| failed(index, FailureKind::Unreachable);
    let expected = unavailable(2, 1, false, vec![unreachable(1), unreachable(2)]);
    assert_eq!(get.step(answer(0, None)), [GetEffect::Reply(expected)]);

    let mut get = Get::started(q, ReadRepair::Off, "+--|++");
    get.step(answer(3, None));
    assert_eq!(get.step(answer(0, Some(value(1)))), [found(2, value(1))]);

    let mut get = Get::started(q, ReadRepair::Off, "+--|++");
    get.step(answer(3, None));
    assert_eq!(get.step(answer(4, Some(value(1)))), [], "a hint and nothing");
    assert_eq!(
        get.step(answer(0, None)),
        [found(2, value(1))],
        "R is met without it"
    );

    // A deleted record at one primary is not two primaries that agree.
    let mut get = Get::started(q, ReadRepair::Off, "+--|+-");
    get.step(answer(3, None));
    let expected = unavailable(2, 1, false, vec![unreachable(1), unreachable(2)]);
    assert_eq!(
        get.step(answer(0, Some(tombstone(1)))),
        [GetEffect::Reply(GetOutcome { acks: 2, ..expected })]
    );
}

/// D40: what was written to fallbacks alone is read from fallbacks alone.
#[test]
fn hints_alone_can_be_a_read_quorum() {
    let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Off, "---|++");
    assert_eq!(get.step(answer(3, Some(value(1)))), []);
    assert_eq!(get.step(answer(4, Some(value(2)))), [found(2, value(2))]);
}

/// D33: PR is about primaries that answered; fallbacks may fill R, not PR.
#[test]
fn pr_counts_primaries_that_answered() {
    let pr = Quorum {
        pr: 2,
        ..quorum(3, 2, 2)
    };
    let mut get = Get::started(pr, ReadRepair::Off, "++-|++");
    get.step(answer(3, Some(value(1))));
    assert_eq!(
        get.step(answer(0, Some(value(1)))),
        [],
        "one primary is alive and silent"
    );
    assert_eq!(get.clone().step(answer(1, None)), [found(3, value(1))]);
    let unmet = unavailable(
        2,
        1,
        false,
        vec![
            failed(1, FailureKind::Storage),
            failed(2, FailureKind::Unreachable),
        ],
    );
    assert_eq!(
        get.step(unreadable(1)),
        [GetEffect::Reply(GetOutcome { acks: 2, ..unmet })]
    );
}

/// A store that may have lost writes: what it holds is shown, that it holds nothing means nothing.
#[test]
fn a_suspect_store_fills_no_quorum() {
    let q = quorum(3, 2, 2);
    let mut get = Get::started(q, ReadRepair::Off, "+++");
    assert_eq!(get.step(suspect(0, Some(value(2)))), []);
    assert_eq!(get.step(answer(1, Some(value(1)))), [], "one answer that counts");
    assert_eq!(
        get.step(answer(2, None)),
        [found(2, value(2))],
        "with what it held"
    );

    let mut get = Get::started(q, ReadRepair::Off, "+++");
    assert_eq!(get.step(suspect(0, None)), []);
    let suspects = vec![failed(0, FailureKind::Suspect), failed(1, FailureKind::Suspect)];
    let expected = unavailable(2, 0, false, suspects);
    assert_eq!(get.step(suspect(1, None)), [GetEffect::Reply(expected)]);

    // All have answered, and yet nobody can tell that there is nothing.
    let mut get = Get::started(quorum(3, 1, 1), ReadRepair::Off, "+++");
    get.step(answer(0, None));
    get.step(answer(1, None));
    let expected = unavailable(3, 2, false, vec![failed(2, FailureKind::Suspect)]);
    assert_eq!(get.step(suspect(2, None)), [GetEffect::Reply(expected)]);
}

/// An expired value counts as deleted; it neither is found nor hides that nothing is.
#[test]
fn expired_values_are_not_live() {
    let until = |at_ms| record_until(1, Content::Value(Bytes::from_static(b"v")), Some(at_ms));
    for (at_ms, live) in [(NOW_MS - 1, false), (NOW_MS, false), (NOW_MS + 1, true)] {
        let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Off, "+++");
        get.step(answer(0, Some(until(at_ms))));
        let expected = if live {
            found(2, until(at_ms))
        } else {
            absent(2, Some(until(at_ms)))
        };
        assert_eq!(get.step(answer(1, Some(until(at_ms)))), [expected], "{at_ms}");
    }
}
