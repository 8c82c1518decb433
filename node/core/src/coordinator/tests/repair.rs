use super::*;

fn repair(index: usize, state: KeyState) -> GetEffect {
    GetEffect::Repair {
        member: member(index),
        state,
    }
}

fn repaired(index: usize) -> GetEvent {
    GetEvent::RepairDone {
        member: member(index),
        result: Ok(()),
    }
}

fn not_repaired(index: usize) -> GetEvent {
    GetEvent::RepairDone {
        member: member(index),
        result: Err(failure(true, FailureKind::TimedOut)),
    }
}

/// A write of another actor: unrelated to those of [`value`].
fn unrelated() -> KeyState {
    let actor = Actor {
        incarnation: 2,
        epoch: 0,
    };
    let sibling = Sibling {
        stamp: Stamp(0),
        expires_at_ms: None,
        op_id: None,
        content: Content::Value(Bytes::from_static(b"other")),
    };
    KeyState::from_write(&Seen::default(), Dot { actor, counter: 1 }, sibling)
}

fn merged(states: &[KeyState]) -> KeyState {
    let mut merged = KeyState::new();
    for state in states {
        merged.merge(state);
    }
    merged
}

/// D37, test R: a stale primary is current after one quorum read.
#[test]
fn whoever_lacks_something_is_repaired_after_the_reply() {
    let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Async, "+++");
    get.step(answer(0, Some(value(1))));
    assert_eq!(get.step(answer(1, Some(value(2)))), [found(2, value(2))]);
    assert!(get.0.replied() && !get.0.finished(), "one answer is outstanding");
    assert_eq!(
        get.step(answer(2, None)),
        [repair(0, value(2)), repair(2, value(2))]
    );
    assert!(!get.0.finished());
    assert_eq!(get.step(repaired(0)), []);
    assert_eq!(get.step(not_repaired(2)), [], "anti-entropy will find it");
    assert!(get.0.finished());
}

#[test]
fn equal_replicas_are_left_alone() {
    for state in [None, Some(value(1)), Some(tombstone(1))] {
        let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Async, "+++");
        for index in 0..3 {
            let effects = get.step(answer(index, state.clone()));
            assert!(
                effects.iter().all(|effect| matches!(effect, GetEffect::Reply(_))),
                "{effects:?}"
            );
        }
        assert!(get.0.finished());
    }
}

/// Each holds something that the others lack; the last answer adds to what they all get.
#[test]
fn repairs_carry_all_that_is_known() {
    let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Async, "+++");
    get.step(answer(0, Some(value(1))));
    get.step(answer(1, Some(value(1))));
    let all = merged(&[value(1), unrelated()]);
    let expected = [0, 1, 2].map(|index| repair(index, all.clone()));
    assert_eq!(get.step(answer(2, Some(unrelated()))), expected);
}

/// A deletion is repaired as a value is.
#[test]
fn tombstones_are_repaired() {
    let mut get = Get::started(quorum(2, 2, 2), ReadRepair::Async, "++");
    get.step(answer(0, Some(value(1))));
    assert_eq!(
        get.step(answer(1, Some(tombstone(2)))),
        [absent(2, Some(tombstone(2))), repair(0, tombstone(2))]
    );
}

/// Test R: only primaries are written, and only those that have answered.
#[test]
fn neither_fallbacks_nor_those_that_failed_are_repaired() {
    let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Async, "++-|++");
    get.step(answer(3, None));
    assert_eq!(get.step(answer(0, Some(value(1)))), [found(2, value(1))]);
    assert_eq!(get.step(unreadable(1)), [], "all who answered are current");
    assert!(get.0.finished());

    // A hint is newer than the primary: the hint stays as it is, the primary does not.
    let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Async, "+--|++");
    get.step(answer(0, Some(value(1))));
    get.step(answer(3, Some(value(2))));
    assert_eq!(get.step(answer(4, Some(value(1)))), [repair(0, value(2))]);
}

/// A store that is being recovered may be given anything.
#[test]
fn suspect_primaries_are_repaired() {
    let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Async, "+++");
    get.step(suspect(0, None));
    get.step(answer(1, Some(value(1))));
    assert_eq!(
        get.step(answer(2, Some(value(1)))),
        [found(2, value(1)), repair(0, value(1))]
    );
}

#[test]
fn at_the_deadline_those_that_have_answered_are_repaired() {
    let mut get = Get::started(quorum(3, 1, 1), ReadRepair::Async, "+++");
    assert_eq!(get.step(answer(0, Some(value(2)))), [found(1, value(2))]);
    get.step(answer(1, Some(value(1))));
    assert_eq!(get.step(GetEvent::DeadlineReached), [repair(1, value(2))]);
    assert_eq!(get.step(answer(2, None)), [], "too late");
    assert!(!get.0.finished());
    assert_eq!(get.step(repaired(1)), []);
    assert!(get.0.finished());
}

#[test]
fn a_read_without_a_verdict_repairs_nothing() {
    let mut get = Get::started(quorum(3, 3, 2), ReadRepair::Async, "+++");
    get.step(answer(0, Some(value(1))));
    get.step(answer(1, None));
    let effects = get.step(unreadable(2));
    assert!(matches!(effects.as_slice(), [GetEffect::Reply(_)]), "{effects:?}");
    assert!(get.0.finished());
}

#[test]
fn off_is_off() {
    let mut get = Get::started(quorum(3, 1, 1), ReadRepair::Off, "+++");
    get.step(answer(0, Some(value(2))));
    assert!(get.0.finished());
    assert_eq!(get.step(answer(1, None)), []);
    assert_eq!(get.step(GetEvent::DeadlineReached), []);
}

/// D37: with blocking repair the reply waits until every later read quorum meets what it returns.
#[test]
fn blocking_repair_comes_before_the_reply() {
    let q = quorum(3, 2, 2);
    let mut get = Get::started(q, ReadRepair::Blocking, "+++");
    get.step(answer(0, Some(value(2))));
    assert_eq!(get.step(answer(1, Some(value(1)))), [repair(1, value(2))]);
    assert!(!get.0.replied());
    assert_eq!(get.clone().step(repaired(1)), [found(2, value(2))]);
    // Another that holds it is as good.
    assert_eq!(get.clone().step(answer(2, Some(value(2)))), [found(3, value(2))]);
    // A newer record: what was under way no longer suffices.
    let mut newer = get.clone();
    assert_eq!(newer.step(answer(2, Some(value(3)))), [repair(0, value(3))]);
    assert_eq!(newer.step(repaired(1)), [repair(1, value(3))]);
    assert_eq!(newer.step(repaired(0)), [found(3, value(3))]);

    let mut late = get.clone();
    assert_eq!(
        late.step(GetEvent::DeadlineReached),
        [GetEffect::Reply(GetOutcome {
            acks: 2,
            ..unavailable(2, 1, true, Vec::new())
        })]
    );
    assert_eq!(get.step(not_repaired(1)), [], "one may still answer");
    let storage = vec![failed(2, FailureKind::Storage)];
    assert_eq!(
        get.step(unreadable(2)),
        [GetEffect::Reply(GetOutcome {
            acks: 2,
            ..unavailable(2, 1, false, storage)
        })]
    );
}

/// What stands in for a primary may be another node the next time, so it proves nothing to later reads.
#[test]
fn blocking_reads_count_primaries_alone() {
    let mut get = Get::started(quorum(3, 2, 2), ReadRepair::Blocking, "++-|+");
    get.step(answer(3, Some(value(2))));
    assert_eq!(get.step(answer(0, Some(value(1)))), []);
    assert_eq!(
        get.step(answer(1, Some(value(1)))),
        [repair(0, value(2)), repair(1, value(2))],
        "and show what hints hold"
    );
    get.step(repaired(0));
    assert_eq!(get.step(repaired(1)), [found(2, value(2))]);
}

/// The part of the store that a read can change, and how it ends.
#[derive(Clone)]
struct Store {
    /// Of three primaries.
    records: Vec<Option<KeyState>>,
}

/// How a repair goes: it arrives and is acknowledged, arrives and is not, or does not arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Arrival {
    Known,
    Unknown,
    Lost,
}

impl Store {
    /// A blocking read that those in `order` answer, with an empty fallback for everybody else; the reply.
    fn read(&mut self, quorum: Quorum, order: &[usize], arrivals: &[Arrival]) -> GetResult {
        let mut get = Get::new(quorum, ReadRepair::Blocking, "+++|+++");
        let mut effects = get.step(GetEvent::Start);
        let (mut reply, mut done) = (None, Vec::new());
        for index in 0..3 {
            if !order.contains(&index) {
                effects.extend(get.step(unreadable(index)));
            }
        }
        for index in 3..6 {
            effects.extend(get.step(answer(index, None)));
        }
        for index in order {
            effects.extend(get.step(answer(*index, self.records[*index].clone())));
        }
        while !effects.is_empty() || !done.is_empty() {
            for effect in std::mem::take(&mut effects) {
                match effect {
                    GetEffect::Reply(outcome) => reply = Some(outcome.result),
                    GetEffect::Repair { member: who, state } => {
                        let index = (0..3).find(|index| member(*index) == who).unwrap();
                        if arrivals[index] != Arrival::Lost {
                            let record = self.records[index].get_or_insert_default();
                            record.merge(&state);
                        }
                        done.push(index);
                    }
                    GetEffect::Read { .. } | GetEffect::LeftOut { .. } => {}
                }
            }
            if let Some(index) = done.pop() {
                let known = arrivals[index] == Arrival::Known;
                effects.extend(get.step(if known {
                    repaired(index)
                } else {
                    not_repaired(index)
                }));
            }
        }
        effects.extend(get.step(GetEvent::DeadlineReached));
        for effect in effects {
            if let GetEffect::Reply(outcome) = effect {
                reply = Some(outcome.result);
            }
        }
        reply.expect("every read is answered")
    }
}

/// Test R, D37: once a quorum read has returned the value of a failed write, every later one does: for every place
/// where the write arrived, every r, every pair of read quorums and every fate of the repairs.
#[test]
fn with_blocking_repair_a_value_that_was_read_stays() {
    let orders: Vec<Vec<usize>> = (1..=3)
        .flat_map(|length| lists(&[0, 1, 2], length))
        .filter(|order| (1..order.len()).all(|at| !order[..at].contains(&order[at])))
        .collect();
    let arrivals = lists(&[Arrival::Known, Arrival::Unknown, Arrival::Lost], 3);
    let (mut kept, mut unanswered) = (0, 0);
    for wrote in 1..8u32 {
        let record = |index: u32| Some(value(if wrote >> index & 1 == 1 { 2 } else { 1 }));
        let before = Store {
            records: (0..3).map(record).collect(),
        };
        for r in 1..=3 {
            let quorum = quorum(3, r, 2);
            for (first, arrivals) in orders
                .iter()
                .flat_map(|first| arrivals.iter().map(move |a| (first, a)))
            {
                let mut store = before.clone();
                let result = store.read(quorum, first, arrivals);
                if result != GetResult::Found(value(2)) {
                    unanswered += u32::from(matches!(result, GetResult::Unavailable { .. }));
                    continue;
                }
                for later in orders.iter().filter(|later| later.len() >= r as usize) {
                    let case = format!("{wrote:b} r={r} {first:?} {arrivals:?} {later:?}");
                    let result = store.clone().read(quorum, later, &[Arrival::Lost; 3]);
                    assert_ne!(result, GetResult::Found(value(1)), "{case}");
                    kept += u32::from(result == GetResult::Found(value(2)));
                }
            }
        }
    }
    assert!(kept > 1000 && unanswered > 100, "{kept} {unanswered}");
}
