use super::*;
use crate::membership::Pace;
use crate::quorum::{QuorumOverrides, ReplicaCount};

/// A get without repairs, with its events and the reply.
fn get(quorum: Quorum, nodes: &str, events: Vec<GetEvent>) -> Option<GetOutcome> {
    let mut get = Get::new(quorum, ReadRepair::Off, nodes);
    let mut effects = get.step(GetEvent::Start);
    for event in events {
        effects.extend(get.step(event));
    }
    let mut replies = effects.into_iter().filter_map(|effect| match effect {
        GetEffect::Reply(outcome) => Some(outcome),
        _ => None,
    });
    let reply = replies.next();
    assert_eq!(replies.next(), None, "one reply");
    reply
}

#[test]
fn a_get_asks_all_reachable_primaries_at_once() {
    let mut get = Get::new(quorum(3, 2, 2), ReadRepair::Off, "+-+");
    assert_eq!(get.step(GetEvent::Start), [read(0), read(2)]);
}

/// What a get asks at its start that may hold back: node 0 coordinates, the others take so long, in microseconds.
fn held_back(quorum: Quorum, nodes: &str, means_us: &[Option<u64>]) -> (Option<u64>, Vec<GetEffect>) {
    let mut get = Get::new(quorum, ReadRepair::Async, nodes);
    let late_us = get.0.hold_back(Some(&member(0)), |who| {
        let index = (1..=means_us.len()).find(|index| member(*index) == *who)?;
        means_us[index - 1].map(|mean_us| Pace {
            mean_us,
            late_us: 4 * mean_us,
            is_late: mean_us == 499,
        })
    });
    (late_us, get.step(GetEvent::Start))
}

#[test]
fn a_get_that_may_hold_back_asks_as_many_as_it_needs_the_slow_ones_last() {
    let q = quorum(3, 2, 2);
    let all = [read(0), read(1), read(2)].to_vec();
    let first = [read(0), read(1)].to_vec();
    let last = [read(0), read(2)].to_vec();
    // In preference order, unless one is more than twice as slow, and by more than a millisecond, or is late with another get.
    assert_eq!(
        held_back(q, "+++", &[Some(500), Some(400)]),
        (Some(2000), first.clone())
    );
    assert_eq!(
        held_back(q, "+++", &[Some(1800), Some(400)]),
        (Some(7200), first.clone())
    );
    assert_eq!(
        held_back(q, "+++", &[Some(1801), Some(400)]),
        (Some(1600), last.clone())
    );
    assert_eq!(held_back(q, "+++", &[Some(499), Some(500)]), (Some(2000), last));
    // Nothing is late within a millisecond.
    assert_eq!(held_back(q, "+++", &[Some(100), Some(100)]), (Some(1000), first));
    // Who has not been asked for a while may be slow; who is unreachable is stood in for; and some gets need all.
    assert_eq!(held_back(q, "+++", &[None, Some(400)]), (None, all.clone()));
    assert_eq!(
        held_back(q, "++-", &[Some(400), Some(400)]),
        (None, [read(0), read(1)].to_vec())
    );
    assert_eq!(
        held_back(quorum(3, 3, 1), "+++", &[Some(400), Some(400)]),
        (None, all)
    );
}

/// The "nothing" of a stand-in would fill the quorum beside node 0's old record, before node 2 says what is newer.
#[test]
fn a_primary_that_was_held_back_comes_before_a_stand_in() {
    let mut get = Get::new(quorum(3, 2, 2), ReadRepair::Async, "+++|+");
    let pace = Pace {
        mean_us: 500,
        late_us: 2000,
        is_late: false,
    };
    get.0.hold_back(Some(&member(0)), |_| Some(pace));
    assert_eq!(get.step(GetEvent::Start), [read(0), read(1)]);
    assert_eq!(get.step(answer(0, Some(value(1)))), []);
    assert_eq!(get.step(unreadable(1)), [read(2)]);
    let last = get.step(answer(2, Some(value(2))));
    assert_eq!(last.first(), Some(&found(2, value(2))));
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
